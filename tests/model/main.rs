//! What several threads share, under every interleaving that loom can tell apart.
//! Law: a model has the real types and as few steps as show the law; whoever sleeps in it really sleeps, so one that is
//! slept on is a deadlock, which loom reports.
//!
//!     RUSTFLAGS='--cfg tidewheel_model' cargo test --test model --target-dir target/model -- --nocapture
//!
//! With `LOOM_LOG=trace` and `LOOM_CHECKPOINT_FILE=a_file` loom tells a failing execution, and starts with it the next time.
#![cfg(tidewheel_model)]

mod bus;
mod clients;
mod drain;
mod inbox;
mod mail;
mod places;
mod topics;
mod wakes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use loom::sync::Notify;
use tidewheel::id::{ConnKey, ShardId};
use tidewheel::io::Doorbell;
use tidewheel::io::bell::Bell;

const A: ShardId = ShardId(0);
const B: ShardId = ShardId(1);
const C: ShardId = ShardId(2);

/// Runs a model under all interleavings with at most so many switches that a thread did not ask for, and says how many
/// those were.
fn explore(name: &str, preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicU64::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    let counted = executions.clone();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    tell(&format!("{name}: {} executions with at most {preemptions} preemptions", executions.load(Ordering::Relaxed)));
}

#[expect(clippy::print_stdout, reason = "captured by the test harness unless asked for")]
fn tell(text: &str) {
    println!("{text}");
}

/// A shard's thread as others see it: the engine's bell, and a sleep that loom knows of.
struct Sleeper {
    bell: Bell,
    wake: Notify,
}

impl Default for Sleeper {
    fn default() -> Self {
        Self { bell: Bell::new().expect("a free descriptor"), wake: Notify::new() }
    }
}

impl Sleeper {
    /// What a shard does that finds nothing to do: it says that it will sleep, looks once more, and sleeps if there is nothing.
    fn nap(&self, has_work: impl Fn() -> bool) {
        self.bell.announce_sleep();
        if !has_work() {
            self.wake.wait();
        }
        self.bell.awake();
    }
}

impl Doorbell for Sleeper {
    fn ring(&self) {
        if self.bell.take_sleeper() {
            self.wake.notify();
        }
    }
}

fn conn(slot: u32) -> ConnKey {
    ConnKey { slot, generation: 1 }
}
