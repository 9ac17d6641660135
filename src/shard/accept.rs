//! Newcomers: a slot for a socket, or a refusal.
//! Law: a socket that was accepted is adopted or refused in the same turn. A full table stops accepting, is said once,
//! and accepting goes on when a connection ends or after a pause.

use std::io;
use std::sync::atomic::Ordering;

use crate::conn::{Conn, Phase};
use crate::id::ConnKey;
use crate::io::{Io, Socket};
use crate::metrics::Refusal;

use super::Shard;
use super::settings::ACCEPT_RETRY_MS;

/// Whether newcomers are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accepting {
    /// Not asked for yet.
    #[default]
    Idle,
    /// Yes.
    On,
    /// A table is full; again at this time of the shard's clock, or when a connection ends.
    Paused { until_ms: u64 },
    /// No more: the shard drains.
    Stopped,
}

impl<I: Io> Shard<I> {
    /// Starts accepting.
    pub fn open(&mut self) {
        self.accepting = Accepting::On;
        self.io.accept();
    }

    pub(super) fn on_accepted(&mut self, socket: Socket) {
        if self.accepting == Accepting::Stopped {
            self.metrics.refused[Refusal::Draining as usize].add(1);
            return self.io.refuse(socket);
        }
        let now = self.ms();
        let is_flood = self.is_flood(&socket);
        match self.conns.insert_with(|_| Conn::new(now)) {
            Ok(key) => {
                // A reservation, not a check: of newcomers on all shards never more than there is room for are
                // below the limit. Who is not is told so when its request is complete.
                let before = self.shared.connections.fetch_add(1, Ordering::Relaxed);
                let is_full = before >= self.settings.connections_max as usize;
                if let Some(Conn { phase: Phase::Handshake { unwelcome, .. }, .. }) = self.conns.get_mut(key) {
                    *unwelcome = is_flood.then_some(Refusal::RateLimited).or_else(|| is_full.then_some(Refusal::Full));
                }
                self.metrics.opened.add(1);
                self.io.adopt(socket, key);
                self.io.receive(key);
                self.reschedule(key);
            }
            Err(crate::fixed::Full) => {
                self.metrics.refused[Refusal::Full as usize].add(1);
                self.io.refuse(socket);
            }
        }
    }

    /// Whether too many attempts come from where this one does.
    fn is_flood(&self, socket: &Socket) -> bool {
        let Some(attempts) = &self.shared.attempts else { return false };
        let peer = self.io.peer(socket);
        peer.is_some_and(|peer| !attempts.admit(peer.ip(), self.now.monotonic_ms()))
    }

    pub(super) fn on_accept_stopped(&mut self, error: &io::Error) {
        if self.accepting == Accepting::Stopped {
            return;
        }
        if self.metrics.accept_stopped.get() == 0 {
            tracing::warn!(
                shard = self.id.0,
                %error,
                connections = self.conns.len(),
                "accepting pauses: a descriptor table is full; raise `nofile` (or fs.file-max) or lower \
                 websocket.max_total_connections. Said once; see tidewheel_accept_stopped_total"
            );
        }
        self.metrics.accept_stopped.add(1);
        self.accepting = Accepting::Paused { until_ms: self.now.monotonic_ms() + ACCEPT_RETRY_MS };
    }

    pub(super) fn accept_retry_ms(&self) -> Option<u64> {
        match self.accepting {
            Accepting::Paused { until_ms } => Some(until_ms),
            _ => None,
        }
    }

    /// Goes on accepting if it was paused and the time has come.
    pub(super) fn resume_accepting(&mut self) {
        if let Accepting::Paused { until_ms } = self.accepting
            && until_ms <= self.now.monotonic_ms()
        {
            self.open();
        }
    }

    /// The kernel is done with a connection: its slot is free, and so is its descriptor.
    pub(super) fn on_closed(&mut self, key: ConnKey) {
        if self.conns.remove(key).is_some()
            && self.shared.connections.fetch_sub(1, Ordering::Relaxed) == 1
            && self.accepting == Accepting::Stopped
        {
            self.bus.wake_others(); // it was the last of all, and they wait for that to end
        }
        if let Accepting::Paused { .. } = self.accepting {
            self.open();
        }
    }
}
