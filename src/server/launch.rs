//! The shards' threads: how each starts, lives and ends.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use crate::id::ShardId;
use crate::io::uring::{Uring, UringConfig};
use crate::io::{affinity, clock};
use crate::metrics::ShardMetrics;
use crate::shard::{DrainOrder, Inbox, Shard, Shared, Turn};

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
    /// The shard's whole life. If it breaks, the engine ends: what it owes the others (counts, connections) never comes.
    fn run_guarded(self, started: mpsc::Sender<io::Result<()>>) -> io::Result<()> {
        let (shard, engine) = (self.shard, self.engine.clone());
        let outcome = catch_unwind(AssertUnwindSafe(move || self.run(started)));
        let outcome = outcome.unwrap_or_else(|_| Err(io::Error::other("the shard panicked")));
        if let Err(error) = &outcome {
            tracing::error!(shard = shard.0, %error, "a shard broke; the engine ends");
            let deadline_ms = DrainOrder::new(&engine.drains.configured()).deadline_ms.min(BROKEN_DEADLINE_MS);
            engine.drains.begin_by(DrainOrder::within(deadline_ms));
        }
        outcome
    }

    fn run(self, started: mpsc::Sender<io::Result<()>>) -> io::Result<()> {
        if let Err(error) = affinity::pin(self.core) {
            tracing::warn!(shard = self.shard.0, core = self.core, %error, "the shard's thread is not pinned");
        }
        self.metrics.thread.set(affinity::thread_id());
        // So that handlers can use tokio's timers and clients.
        let _runtime = self.runtime.enter();
        let io = match Uring::new(self.ring) {
            Ok(io) => io,
            Err(error) => {
                let _ = started.send(Err(error)); // the engine has given up already
                return Ok(());
            }
        };
        // Those of now: there may have been a reload.
        let settings = self.engine.running.settings();
        let mut shard = Shard::new(self.shard, io, settings, self.shared, self.metrics, self.inbox, clock::now());
        shard.open();
        let _ = started.send(Ok(())); // the engine has given up already
        drop(started); // so that whoever waits for the others learns of one that died
        while shard.turn()? == Turn::Again {}
        Ok(())
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

/// How long an engine with a broken shard takes to say goodbye.
const BROKEN_DEADLINE_MS: u64 = 2_000;
