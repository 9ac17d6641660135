//! The shards' threads: how each starts, lives, starts again and ends.
//!
//! Law: a shard that breaks takes only its own connections along and starts again on its thread, with a new ring and
//! the sockets it listened on. One that breaks again and again, or cannot have a ring, ends the engine: what is wrong
//! then is better seen to by whoever starts processes.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use crate::contain::contain;
use crate::id::ShardId;
use crate::io::uring::{Uring, UringConfig};
use crate::io::{affinity, clock};
use crate::metrics::ShardMetrics;
use crate::shard::{DrainOrder, Estate, Inbox, Shard, Shared, Turn};

use super::Inner;

/// Ends when its shard has drained, or with the error that broke its ring.
pub(super) type ShardThread = JoinHandle<io::Result<()>>;

/// What one shard's thread is given.
pub(super) struct Plan {
    pub(super) shard: ShardId,
    pub(super) core: usize,
    pub(super) ring: UringConfig,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<ShardMetrics>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) engine: Arc<Inner>,
}

impl Plan {
    /// The shard's whole life. If it is broken for good, the engine ends: nobody would serve its port and its topics.
    fn run_guarded(self, started: mpsc::Sender<io::Result<()>>) -> io::Result<()> {
        let (shard, engine) = (self.shard, self.engine.clone());
        let outcome = catch_unwind(AssertUnwindSafe(move || self.run(started)));
        let outcome = outcome.unwrap_or_else(|_| Err(io::Error::other("the shard's thread panicked")));
        if let Err(error) = &outcome {
            tracing::error!(shard = shard.0, %error, "a shard is broken for good; the engine ends");
            let deadline_ms = DrainOrder::new(&engine.drains.configured()).deadline_ms.min(BROKEN_DEADLINE_MS);
            engine.drains.begin_by(DrainOrder::within(deadline_ms));
        }
        outcome
    }

    fn run(mut self, started: mpsc::Sender<io::Result<()>>) -> io::Result<()> {
        if let Err(error) = affinity::pin(self.core) {
            tracing::warn!(shard = self.shard.0, core = self.core, %error, "the shard's thread is not pinned");
        }
        self.metrics.thread.set(affinity::thread_id());
        // So that handlers can use tokio's timers and clients.
        let runtime = self.runtime.clone();
        let _runtime = runtime.enter();
        let listeners = std::mem::take(&mut self.ring.listeners);
        let io = match Uring::new(self.ring(listeners)) {
            Ok(io) => io,
            Err(error) => {
                let _ = started.send(Err(error)); // the engine has given up already
                return Ok(());
            }
        };
        // Those of now: there may have been a reload.
        let (settings, shared, metrics) = (self.engine.running.settings(), self.shared.clone(), self.metrics.clone());
        let mut shard = Shard::new(self.shard, io, settings, shared, metrics, self.inbox.clone(), clock::now());
        shard.open();
        let _ = started.send(Ok(())); // the engine has given up already
        drop(started); // so that whoever waits for the others learns of one that died
        let mut restarts = Restarts::default();
        loop {
            let (panicked, cause) = match contain(|| live(&mut shard)) {
                Ok(Ok(())) => {
                    shard.end();
                    return Ok(());
                }
                Ok(Err(error)) => (false, error.to_string()),
                Err(panic) => (true, panic),
            };
            tracing::error!(
                shard = self.shard.0,
                panicked,
                cause,
                "a shard broke: its connections end, it starts again"
            );
            let (io, estate) = shard.break_up(panicked);
            shard = self.replace(io, estate, &mut restarts)?;
        }
    }

    /// A shard in place of a broken one.
    fn replace(&self, io: Uring, estate: Estate, restarts: &mut Restarts) -> io::Result<Shard<Uring>> {
        let io = contain(|| io.end())
            .map_err(|panic| io::Error::other(format!("its ring cannot be taken down: {panic}")))
            .and_then(|listeners| match restarts.admit(clock::now().monotonic_ms()) {
                true => Uring::new(self.ring(listeners)),
                false => Err(io::Error::other(format!("it broke {} times within a minute", RESTARTS_MAX + 1))),
            });
        match io {
            Ok(io) => Ok(Shard::succeed(estate, io, clock::now())),
            Err(error) => {
                estate.bury();
                Err(error)
            }
        }
    }

    fn ring(&self, listeners: Vec<TcpListener>) -> UringConfig {
        let UringConfig { table, buffers, buffer_size, mode, busy_poll, ref bells, shard, .. } = self.ring;
        UringConfig { table, buffers, buffer_size, mode, busy_poll, listeners, bells: bells.clone(), shard }
    }
}

/// Turns a shard until it has drained.
fn live(shard: &mut Shard<Uring>) -> io::Result<()> {
    while shard.turn()? == Turn::Again {}
    Ok(())
}

/// When a shard started again of late.
#[derive(Debug, Default)]
struct Restarts(VecDeque<u64>);

impl Restarts {
    /// Whether it may once more.
    fn admit(&mut self, now_ms: u64) -> bool {
        while self.0.front().is_some_and(|&at_ms| now_ms.saturating_sub(at_ms) >= RESTARTS_WINDOW_MS) {
            self.0.pop_front();
        }
        let admitted = self.0.len() < RESTARTS_MAX;
        if admitted {
            self.0.push_back(now_ms);
        }
        admitted
    }
}

/// Starts the shards' threads and waits until each accepts, or the first that could not start.
pub(super) fn launch(plans: impl Iterator<Item = Plan>) -> (Vec<ShardThread>, io::Result<()>) {
    let (started, wait_started) = mpsc::channel();
    let mut threads = Vec::new();
    for plan in plans {
        let started = started.clone();
        let name = format!("shard-{}", plan.shard.0);
        match thread::Builder::new().name(name).spawn(move || plan.run_guarded(started)) {
            Ok(thread) => threads.push(thread),
            Err(error) => return (threads, Err(error)),
        }
    }
    drop(started);
    let mut outcomes = threads
        .iter()
        .map(|_| wait_started.recv().unwrap_or_else(|_| Err(io::Error::other("a shard ended while starting"))));
    let outcome = outcomes.find(Result::is_err).unwrap_or(Ok(()));
    (threads, outcome)
}

/// Restarts of one shard within the window, beyond which the engine ends.
const RESTARTS_MAX: usize = 5;
const RESTARTS_WINDOW_MS: u64 = 60_000;
/// How long an engine with a broken shard takes to say goodbye.
const BROKEN_DEADLINE_MS: u64 = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_starts_again_five_times_a_minute() {
        let mut restarts = Restarts::default();
        let times = [0, 1, 2, 3, 4, 5, 59_999, 60_000, 60_000, 60_001, 60_010, 60_010, 60_010, 60_010];
        let admitted = times.map(|at_ms| restarts.admit(at_ms));
        let expected = [[true; 5].as_slice(), &[false, false, true, false, true], &[true, true, true, false]].concat();
        assert_eq!(admitted.as_slice(), expected);
    }
}
