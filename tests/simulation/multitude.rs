//! Multitudes: eight to sixteen shards and a thousand clients or more, with all that goes wrong in the other runs too.
//!
//! Law: what a client is promised does not depend on how many there are: it is judged by the same ledger. After every turn of
//! a shard the total is the sum of what the pools hold, and each of them and the total are within their bounds.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use tidewheel::io::sim::{Dice, Faults};

use crate::run::{Outcome, QUIET_MS, Run, draw_settings};
use crate::{for_each_seed, tell};

#[test]
fn promises_are_kept_to_a_multitude() {
    let seen = Mutex::new(BTreeMap::<&str, u64>::new());
    // These runs are long, so few of the seeds have one.
    for_each_seed("promises_are_kept_to_a_multitude", |seed| {
        if seed.is_multiple_of(SEEDS_EACH) {
            let outcome = run(seed);
            let mut seen = seen.lock().unwrap();
            outcome.seen.into_iter().for_each(|(what, count)| *seen.entry(what).or_default() += count);
        }
    });
    let seen = seen.into_inner().unwrap();
    tell(&format!("{seen:?}"));
    // One seed alone may be replayed, which need not have it all.
    let is_whole = std::env::var_os("TIDEWHEEL_SIM_SEED").is_none();
    assert!(!is_whole || OFTEN.iter().all(|what| seen[what] > 0), "one of {OFTEN:?} never happened: {seen:?}");
}

/// Runs a whole life of a large engine.
fn run(seed: u64) -> Outcome {
    let mut dice = Dice::new(seed ^ 0x3a55e5);
    let shards = 8 + dice.below(9);
    let most = 1_000 + dice.below(500);
    // With so many connections, what befalls one in some hundred steps befalls all.
    let faults = if dice.chance(0.3) { Faults::default() } else { Faults::swarm(&mut dice) };
    let faults = Faults { reset: faults.reset / 500.0, stall: faults.stall / 100.0, clock_jump: 0.0, ..faults };
    let (mut settings, bus_bound, _) = draw_settings(&mut dice);
    settings.connections_max = (most * (5 + dice.below(6)) / 8) as u32;
    settings.slots = (2 * most / shards) as u32;
    settings.handshakes_max = (most / (1 + dice.below(4))) as u32;
    settings.idle_timeout_ms = 0;
    let brittle = if dice.chance(0.25) { 0.0005 } else { 0.0 };
    let mut run = Run::new(seed, faults, (settings, bus_bound, shards), None);
    run.break_with(brittle);
    let rules = &mut run.scene.rules;
    (rules.hurried, rules.unrest) = (true, rules.unrest / 10.0);
    let [connections_max, handshakes_max, pool] =
        [run.settings.connections_max, run.settings.handshakes_max, run.settings.slots].map(|max| max as usize);
    let mut books = Books { connections_max, handshakes_max, pool, held: vec![[0; 2]; shards] };
    let rounds = 25 + dice.below(25);
    for round in 0..rounds {
        let newcomers = (3 * most / rounds).min(most.saturating_sub(run.clients.len()));
        (0..newcomers).for_each(|_| run.connect());
        books.round(&mut run, if round < 2 { 0 } else { ACTS });
    }
    books.settle(&mut run);
    if dice.coin() {
        books.everyone_leaves(&mut run);
    }
    run.drain();
    run.judge()
}

/// The bounds of an engine, and of each of its pools.
struct Books {
    connections_max: usize,
    handshakes_max: usize,
    pool: usize,
    /// What each shard held after its last turn: connections, and those of them that were upgraded.
    held: Vec<[usize; 2]>,
}

impl Books {
    /// Some clients do something, then every shard has a few turns.
    fn round(&mut self, run: &mut Run, acts: usize) {
        // Now and then so many publish at once that the mail of one shard is more than another's turn takes.
        let is_burst = run.dice.chance(0.15);
        for act in 0..acts {
            run.scene.rules.publishing = if is_burst && act < BURST { 1.0 } else { PUBLISHING };
            run.scene.step += 1;
            let client = run.dice.below(run.clients.len());
            run.read(client);
            run.act(client);
        }
        if run.dice.chance(0.3) {
            run.order();
        }
        while run.waiting.len() > 0 && run.dice.chance(0.9) {
            run.release_one();
        }
        for _ in 0..TURNS * run.shards.len() {
            run.light_a_fuse();
            self.turn(run);
        }
        run.read_answers();
    }

    fn turn(&mut self, run: &mut Run) {
        run.scene.step += 1;
        let Some(index) = run.turn_one() else { return };
        let left = run.fuses[index].spare(|| run.shards[index].leftovers());
        let count = |name| left.iter().find(|&&(what, _)| what == name).expect("counted").1;
        self.held[index] = [count("connections"), count("sessions")];
        assert!(self.held[index][0] <= self.pool, "{} connections in a pool of {}", self.held[index][0], self.pool);
        let [held, upgraded] = [0, 1].map(|of| self.held.iter().map(|counts| counts[of]).sum::<usize>());
        let (total, handshakes) = (run.shared.tally.connections(), run.shared.handshakes.load(Ordering::Relaxed));
        assert_eq!(total, held, "the total and what the pools hold");
        // Beyond the bound there are only those who are being told that there is no place for them.
        assert!(upgraded <= self.connections_max, "{upgraded} connections, more than {}", self.connections_max);
        assert!(handshakes <= self.handshakes_max, "{handshakes} handshakes, more than {}", self.handshakes_max);
        let active: u64 = run.metrics.iter().map(|metrics| metrics.active()).sum();
        assert!(active <= total as u64, "{active} are said to be active, of {total}");
    }

    /// Runs until every request of everyone who is still connected has been answered.
    fn settle(&mut self, run: &mut Run) {
        run.calm();
        for round in 0.. {
            self.hear_all(run, |_, _| {});
            let unsent = run.clients.iter().any(|client| client.may_ask() && !client.to_send.is_empty());
            if run.owed().is_none() && !run.is_asked() && !unsent {
                return;
            }
            assert!(round < ROUNDS_MAX, "after {round} rounds still owed: {:?}", run.owed());
            for _ in 0..TURNS * run.shards.len() {
                let before_ms = run.world.now().monotonic_ms();
                self.turn(run);
                if run.waiting.len() > 0 {
                    run.release_one();
                }
                // Nobody but the shards owes anything, so nothing may wait for a deadline.
                if run.world.now().monotonic_ms() - before_ms > QUIET_MS && !run.scene.rules.rough {
                    self.hear_all(run, |_, _| {});
                    assert!(run.owed().is_none() && !run.is_asked(), "a wake-up is lost: {:?}", run.owed());
                }
            }
        }
    }

    /// Everyone goes, each in its own way, until the engine is empty.
    fn everyone_leaves(&mut self, run: &mut Run) {
        for round in 0.. {
            self.hear_all(run, Run::leave);
            if run.shared.tally.connections() == 0 && run.waiting_for_no_one() {
                return;
            }
            assert!(round < ROUNDS_MAX, "connections are left: {:?}", run.still_there());
            for _ in 0..TURNS * run.shards.len() {
                run.light_a_fuse();
                self.turn(run);
            }
        }
    }

    /// Everyone says what it has to say, after what is to be `done` by each, and reads.
    fn hear_all(&mut self, run: &mut Run, done: impl Fn(&mut Run, usize)) {
        run.scene.step += 1;
        for client in 0..run.clients.len() {
            done(run, client);
            let count = run.clients[client].to_send.len();
            run.clients[client].transmit(&run.world, count);
            run.read(client);
        }
        run.read_answers();
    }
}

/// What happens in every run of this size.
const OFTEN: [&str; 5] = ["deliveries", "inflated", "read deflated", "peer", "starved"];
/// One seed in so many.
const SEEDS_EACH: u64 = 5_000;
/// How probable it is that a client that could publish does, so that a message to many is not the rule.
const PUBLISHING: f64 = 0.03;
/// Clients that do something in each round.
const ACTS: usize = 500;
/// Clients that publish whenever they can, in a round of that kind.
const BURST: usize = 60;
/// Turns for each shard in each round.
const TURNS: usize = 4;
const ROUNDS_MAX: u32 = 20_000;
