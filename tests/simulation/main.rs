//! Whole engines in simulation: shards, clients, handlers and a network that fails, thousands of runs from seeds.
//! Law: a run is a function of its seed; what is promised on the wire is checked in every one.
//!
//! `TIDEWHEEL_SIM_SEEDS=100000 cargo test --test simulation` runs that many, from `TIDEWHEEL_SIM_FROM=100000` on if some have
//! been run before, and `TIDEWHEEL_SIM_SEED=17` that one.

mod brittle;
mod client;
mod compose;
mod crowds;
mod drains;
mod farewells;
mod handlers;
mod ledger;
mod multitude;
mod operator;
mod run;
mod scenarios;
#[allow(dead_code, reason = "fuzzing needs more of it")]
mod secure;
mod shares;
mod sizes;
mod stage;
mod steady;
mod terms;
mod wire;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use handlers::ON_PURPOSE;
use run::{run, run_brittle};
use terms::Tamper;

#[test]
fn every_promise_is_kept_whatever_happens() {
    let seen = Mutex::new(BTreeMap::<&str, u64>::new());
    let seeds = for_each_seed("every_promise_is_kept_whatever_happens", |seed| {
        let outcome = run(seed, None);
        let mut seen = seen.lock().unwrap();
        outcome.seen.into_iter().for_each(|(what, count)| *seen.entry(what).or_default() += count);
    });
    let seen = seen.into_inner().unwrap();
    // With `--nocapture`: how often what happened.
    tell(&format!("{seeds} runs: {seen:?}"));
    // A simulation that hits no bound tests little; what cannot happen without rates is left out.
    let never: Vec<_> = seen.iter().filter(|&(what, count)| *count == 0 && !ELSEWHERE.contains(what)).collect();
    assert!(seeds < 1_000 || never.is_empty(), "never happened in {seeds} runs: {never:?} of {seen:?}");
}

/// Shards break, at any call of their drivers, while they serve, while they say goodbye, and in the drain: what is
/// promised to clients of the others is kept, and nothing is left of anybody.
#[test]
fn a_shard_that_breaks_takes_nobody_else_along() {
    let (restarts, told) = (AtomicU64::new(0), AtomicU64::new(0));
    // Every restart takes half a second of virtual time in small steps.
    let seeds = for_each_of(SEEDS / 10, "a_shard_that_breaks_takes_nobody_else_along", |seed| {
        let seen: BTreeMap<_, _> = run_brittle(seed).seen.into_iter().collect();
        restarts.fetch_add(seen["restarts"], Ordering::Relaxed);
        told.fetch_add(seen["told 1011"], Ordering::Relaxed);
    });
    let (restarts, told) = (restarts.into_inner(), told.into_inner());
    tell(&format!("{seeds} runs: {restarts} restarts, {told} clients were told"));
    assert!(seeds < 1_000 || (restarts > seeds && told > seeds), "{restarts} restarts, {told} told in {seeds} runs");
}

#[test]
fn equal_seeds_make_equal_runs() {
    for seed in 0..20 {
        assert_eq!(run(seed, None).trace, run(seed, None).trace, "seed {seed}");
    }
}

#[test]
fn an_oracle_that_looks_away_is_caught() {
    let check = |tamper, complaint: &str| {
        // Some swaps break the books before they break the order, so the first complaint need not be the one.
        let is_caught = (0..200).any(|seed| {
            catch_unwind(|| run(seed, Some(tamper))).is_err_and(|panic| text_of(&*panic).contains(complaint))
        });
        assert!(is_caught, "{tamper:?} goes unnoticed, or under another name than {complaint:?}");
    };
    quiet();
    check(Tamper::LoseMessage, "");
    check(Tamper::RepeatMessage, "twice or out of order");
    check(Tamper::SwapMessages, "");
    check(Tamper::LoseReply, "");
    check(Tamper::RepeatReply, "");
    check(Tamper::LieInReceipt, "not the number of");
    check(Tamper::ExpectOneMore, "missed");
}

/// Runs `run` for every seed, on two threads; a failure names the command that replays it.
fn for_each_seed(test: &str, run: impl Fn(u64) + Sync) -> u64 {
    for_each_of(SEEDS, test, run)
}

/// As [`for_each_seed`], for so many unless the environment says how many.
fn for_each_of(seeds: u64, test: &str, run: impl Fn(u64) + Sync) -> u64 {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (first, last) = match number("TIDEWHEEL_SIM_SEED") {
        Some(seed) => (seed, seed + 1),
        None => {
            let first = number("TIDEWHEEL_SIM_FROM").unwrap_or(0);
            (first, first + number("TIDEWHEEL_SIM_SEEDS").unwrap_or(seeds))
        }
    };
    quiet();
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last {
                        return;
                    }
                    if seed > first && seed.is_multiple_of(TOLD_EVERY) {
                        tell(&format!("{test}: seed {seed}"));
                    }
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
                        failed.store(true, Ordering::Relaxed);
                        *failure.lock().unwrap() = Some((seed, text_of(&*panic).to_owned()));
                    }
                }
            });
        }
    });
    if let Some((seed, text)) = failure.into_inner().unwrap() {
        panic!(
            "seed {seed}: {text}\n\nreplay: TIDEWHEEL_SIM_SEED={seed} cargo test --test simulation {test} -- --nocapture"
        );
    }
    last - first
}

#[expect(clippy::print_stdout, reason = "captured by the test harness unless asked for")]
fn tell(text: &str) {
    println!("{text}");
}

/// Panics on purpose say nothing; all others do where they happen, unless they are caught and told by the caller.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        let single = std::env::var_os("TIDEWHEEL_SIM_SEED").is_some();
        std::panic::set_hook(Box::new(move |info| {
            let on_purpose = info.payload_as_str().is_some_and(|text| text.contains(ON_PURPOSE));
            let told_later = std::thread::current().name().is_none();
            if !on_purpose && (single || !told_later) {
                usual(info);
            }
        }));
    });
}

/// What a panic said.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let formatted = panic.downcast_ref::<String>().map(String::as_str);
    formatted.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

const SEEDS: u64 = 10_000;
const THREADS: usize = 2;
/// How far a long run is, with `--nocapture`.
const TOLD_EVERY: u64 = 10_000;
const ELSEWHERE: &[&str] = &["restarts", "told 1011", "internal", "rate_limit", "overload"];
