//! What other threads want of a shard: publishes of the embedding program, and the drain.
//! Law: the inbox is bounded; at the bound the caller is told so at once and nothing waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;

use crate::app::context::{Answer, Refused};
use crate::conn::Phase;
use crate::id::ConnKey;
use crate::io::{Doorbell, Io};
use crate::metrics::{CloseReason, ErrorCode, Refusal};
use crate::pubsub::Delivery;
use crate::ws;

use super::Shard;
use super::accept::Accepting;
use super::closing::Goodbye;

/// An order to a shard.
#[derive(Debug)]
pub enum Order {
    /// Publish to a topic.
    Publish {
        /// The topic.
        topic: Box<str>,
        /// The JSON text of the data.
        data: Vec<u8>,
        /// Where the receipt goes.
        answer: Answer<Delivery>,
    },
    /// Send to every connection of the engine.
    Broadcast {
        /// The JSON text of the data.
        data: Vec<u8>,
        /// Where the receipt goes.
        answer: Answer<Delivery>,
    },
}

/// Orders that a shard holds at most.
const ORDERS_MAX: usize = 1024;

/// A shard's inbox for other threads.
pub struct Inbox {
    orders: ArrayQueue<Order>,
    /// Milliseconds until the deadline of a drain that has been ordered, plus one; 0 if none has. Not a queued order: it
    /// must always find room.
    drain_ms: AtomicU64,
    /// The shard has ended.
    closed: AtomicBool,
    doorbell: OnceLock<Arc<dyn Doorbell>>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            orders: ArrayQueue::new(ORDERS_MAX),
            drain_ms: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            doorbell: OnceLock::new(),
        }
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("orders", &self.orders.len()).finish_non_exhaustive()
    }
}

impl Inbox {
    /// Leaves an order and wakes the shard. An order that the shard ends without having taken is dropped, and with it
    /// the sender of its answer.
    ///
    /// # Errors
    /// `limit_exceeded` if the inbox is full, `not_found` if the shard has ended.
    pub fn push(&self, order: Order) -> Result<(), Refused> {
        self.orders.push(order).map_err(|_| refused_for_room())?;
        self.ring();
        // Looked at after the push: whoever closes empties the queue afterwards, so one of the two sees the order.
        if self.closed.load(Ordering::SeqCst) {
            self.close();
            return Err(Refused::gone());
        }
        Ok(())
    }

    /// Nobody takes orders any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        while self.orders.pop().is_some() {}
    }

    /// Orders the shard to accept nobody any more, close everybody and end; whoever is left `deadline_ms` from then is
    /// cut.
    pub fn drain(&self, deadline_ms: u64) {
        self.drain_ms.store(deadline_ms.saturating_add(1), Ordering::SeqCst);
        self.ring();
    }

    /// Whether a drain has been ordered that the shard has not taken up.
    pub(super) fn wants_drain(&self) -> bool {
        self.drain_ms.load(Ordering::SeqCst) != 0
    }

    /// Whether orders wait.
    pub(super) fn has_orders(&self) -> bool {
        !self.orders.is_empty()
    }

    fn ring(&self) {
        if let Some(doorbell) = self.doorbell.get() {
            doorbell.ring();
        }
    }

    pub(super) fn attach(&self, doorbell: Arc<dyn Doorbell>) {
        let _ = self.doorbell.set(doorbell); // the first of an inbox is the only one
    }
}

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
    pub(super) fn take_orders(&mut self) {
        if self.inbox.wants_drain()
            && let Some(deadline_ms) = self.inbox.drain_ms.swap(0, Ordering::SeqCst).checked_sub(1)
        {
            self.drain(deadline_ms);
        }
        while self.inbox.has_orders()
            && self.has_room_to_publish()
            && let Some(order) = self.inbox.orders.pop()
        {
            match order {
                Order::Publish { topic, data, answer } => match self.check_name(&topic) {
                    Ok(()) => self.publish_for(&topic, &data, answer),
                    Err((code, text)) => drop(answer.send(Err(Refused::new(code, text)))),
                },
                Order::Broadcast { data, answer } => self.broadcast_for(&data, answer),
            }
        }
    }

    fn drain(&mut self, deadline_ms: u64) {
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
                Some(Phase::Handshake(_)) => {
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

/// The refusal of a publish that has no room.
pub(super) fn refused_for_room() -> Refused {
    Refused::new(ErrorCode::LimitExceeded, "the engine is busy; publish again later")
}
