//! The drain: how a shard ends in order.
//! Law: whatever clients do, it is over soon after its deadline.

use std::sync::atomic::Ordering;

use crate::conn::Phase;
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::{CloseReason, Refusal};
use crate::ws;

use super::Shard;
use super::accept::Accepting;
use super::closing::Goodbye;

/// A drain under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draining {
    /// On the shard's clock.
    pub(super) deadline_ms: u64,
    /// Everybody left has been cut.
    enforced: bool,
}

/// How far reconnects are spread after a drain, in milliseconds.
const RECONNECT_SPREAD_MS: u64 = 5_000;
/// How long after the deadline a shard waits for the kernel's last completions.
const LAST_COMPLETIONS_MS: u64 = 1_000;

impl<I: Io> Shard<I> {
    pub(super) fn drain(&mut self, deadline_ms: u64) {
        let deadline_ms = self.now.monotonic_ms() + deadline_ms;
        if let Some(draining) = &mut self.draining {
            draining.deadline_ms = draining.deadline_ms.min(deadline_ms);
            return;
        }
        self.draining = Some(Draining { deadline_ms, enforced: false });
        self.accepting = Accepting::Stopped;
        self.io.stop_accepting();
        let everyone: Vec<ConnKey> = self.conns.keys().collect();
        for key in everyone {
            match self.conns.get(key).map(|conn| &conn.phase) {
                Some(Phase::Open) => {
                    let mut goodbye = Goodbye::new(CloseReason::Drain, 1012, "the server drains");
                    goodbye.retry_after_ms = Some(self.io.random() % RECONNECT_SPREAD_MS);
                    self.part(key, goodbye);
                }
                Some(Phase::Handshake { .. }) => {
                    self.metrics.refused[Refusal::Draining as usize].add(1);
                    let write = |out: &mut Vec<u8>| {
                        ws::refuse(out, 503, "the server drains; connect again later", &[("Retry-After", "2")]);
                    };
                    self.refuse(key, write, CloseReason::Drain);
                }
                _ => {}
            }
        }
        if self.shared.connections.load(Ordering::Relaxed) == 0 {
            self.bus.wake_others(); // shards that drained before may have waited for this one's connections
        }
    }

    pub(super) fn drain_deadline_ms(&self) -> Option<u64> {
        let draining = self.draining?;
        let last_ms = if draining.enforced { LAST_COMPLETIONS_MS } else { 0 };
        Some(draining.deadline_ms + last_ms)
    }

    /// Cuts whoever is left at the deadline.
    pub(super) fn enforce_drain(&mut self) {
        let now_ms = self.now.monotonic_ms();
        let Some(draining) = &mut self.draining else { return };
        if draining.enforced || now_ms < draining.deadline_ms {
            return;
        }
        draining.enforced = true;
        tracing::warn!(shard = self.id.0, connections = self.conns.len(), "drain deadline: cutting who is left");
        let still_here = self.conns.iter().filter(|(_, conn)| !matches!(conn.phase, Phase::Gone));
        let still_here: Vec<ConnKey> = still_here.map(|(key, _)| key).collect();
        self.metrics.cut.add(still_here.len() as u64);
        for key in still_here {
            self.retire(key, CloseReason::Drain);
        }
    }

    /// Whether the drain is over: no shard has a connection left, since others' may still wait for counts of this one.
    pub(super) fn is_done(&self) -> bool {
        let Some(draining) = self.draining else { return false };
        let gave_up = draining.enforced && self.now.monotonic_ms() >= draining.deadline_ms + LAST_COMPLETIONS_MS;
        gave_up || (self.conns.is_empty() && self.shared.connections.load(Ordering::Relaxed) == 0)
    }
}
