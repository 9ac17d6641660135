//! Handlers that wait until a client has read: until less than half of what its queue may hold waits in it.
//! Law: a waiter is answered by the send whose end made the room, or when its connection leaves `Open`; nobody looks in
//! between. Bound: so many waiters a connection, those whose future was dropped not counted; beyond, `limit_exceeded`.

use std::collections::HashMap;

use ahash::RandomState;

use crate::app::context::{Answer, Refused};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::ErrorCode;

use super::Shard;

/// Who waits for which connection; empty most of the time.
pub(super) type Waiters = HashMap<ConnKey, Vec<Answer<()>>, RandomState>;

/// As many as a connection may have handlers waiting, and some for those that wait twice.
const WAITERS_PER_CONN_MAX: usize = 64;

impl<I: Io> Shard<I> {
    /// Answers when the connection's queue has drained, which may be now.
    pub(super) fn await_drained(&mut self, key: ConnKey, answer: Answer<()>) {
        if !self.conns.get(key).is_some_and(|conn| conn.is_open()) {
            let _ = answer.send(Err(Refused::gone())); // nobody waits for it
            return;
        }
        if self.has_drained(key) {
            let _ = answer.send(Ok(())); // nobody waits for it
            return;
        }
        let waiters = self.waiters.entry(key).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        if waiters.len() < WAITERS_PER_CONN_MAX {
            waiters.push(answer);
        } else {
            let refused = Refused::new(ErrorCode::LimitExceeded, "too many wait for this connection to drain");
            let _ = answer.send(Err(refused)); // nobody waits for it
        }
    }

    /// A send of the connection has ended.
    pub(super) fn tell_drained(&mut self, key: ConnKey) {
        if !self.waiters.is_empty() && self.has_drained(key) {
            for waiter in self.waiters.remove(&key).into_iter().flatten() {
                let _ = waiter.send(Ok(())); // nobody waits for it
            }
        }
    }

    /// The connection ends: whoever waits is told that it has.
    pub(super) fn forget_waiters(&mut self, key: ConnKey) {
        if !self.waiters.is_empty() {
            self.waiters.remove(&key);
        }
    }

    fn has_drained(&self, key: ConnKey) -> bool {
        self.waiting_bytes(key) <= self.settings.outbound.bytes_max as usize / 2
    }
}
