//! Whole shards on threads of their own, under schedules that shuttle draws: at random, or with a few changes of priority
//! at random places (PCT), which finds what needs an unlikely order of few steps.
//! Law: nothing but the scheduler decides who runs, so a schedule is a function of its seed.
//!
//!     RUSTFLAGS='--cfg tidewheel_shuttle' CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo test --test schedules --target-dir target/shuttle
//!
//! `TIDEWHEEL_SHUTTLE_SCHEDULES=1000000` runs so many, from `TIDEWHEEL_SHUTTLE_FROM=100000` on if so many have been run before,
//! and `TIDEWHEEL_SHUTTLE_SEED=17` the batch of that seed.
#![cfg(tidewheel_shuttle)]

mod client;
mod driver;
mod engine;
mod stage;
#[path = "../simulation/wire.rs"]
#[allow(dead_code, reason = "the half of the wire that is needed here")]
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

#[test]
fn every_promise_is_kept_in_every_schedule() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let batches = number("TIDEWHEEL_SHUTTLE_SCHEDULES").unwrap_or(SCHEDULES).div_ceil(BATCH as u64);
    let seeds = match number("TIDEWHEEL_SHUTTLE_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("TIDEWHEEL_SHUTTLE_FROM").unwrap_or(0).div_ceil(BATCH as u64);
            first..first + batches
        }
    };
    let mut schedules = 0;
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(ran) => schedules += ran,
            Err(panic) => {
                tell(&format!("so far: {}", stage::seen()));
                tell(&format!(
                    "replay: TIDEWHEEL_SHUTTLE_SEED={seed}, with the rest of the command as at the top of {}",
                    file!()
                ));
                std::panic::resume_unwind(panic);
            }
        }
        if seed % 100 == 99 {
            tell(&format!("{schedules} schedules"));
        }
    }
    tell(&format!("{schedules} schedules; {}", stage::seen()));
}

/// One batch: every other at random, the rest with two to four changes of priority.
fn run(seed: u64) -> usize {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.failure_persistence = FailurePersistence::None; // the seed is shorter
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    if seed.is_multiple_of(2) {
        Runner::new(RandomScheduler::new_from_seed(seed, BATCH), config).run(engine::run)
    } else {
        let depth = 3 + (seed / 2 % 3) as usize;
        Runner::new(PctScheduler::new_from_seed(seed, depth, BATCH), config).run(engine::run)
    }
}

#[expect(clippy::print_stdout, reason = "captured by the test harness unless asked for")]
fn tell(text: &str) {
    println!("{text}");
}

const SCHEDULES: u64 = 2_000;
/// Schedules of a seed. PCT learns from the first of them how long a schedule is.
const BATCH: usize = 50;
const STEPS_MAX: usize = 200_000;
