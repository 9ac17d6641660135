//! What other threads want of a shard: publishes of the embedding program and the API, what is to be done to certain
//! connections, and the drain.
//! Law: the inbox is bounded; at the bound the caller is told so at once and nothing waits.

use std::sync::Arc;

use crate::app::PublishOptions;
use crate::app::context::{Answer, Refused};
use crate::contain::drop_quietly;
use crate::id::SessionId;
use crate::io::{Doorbell, Io};
use crate::metrics::ErrorCode;
use crate::pubsub::Delivery;
use crate::sync::{ArrayQueue, AtomicBool, OnceLock, Ordering, fence};

use super::Shard;
use super::drain::DrainOrder;
use super::errands::{Addressees, Errand, Members, Reached, TopicPage, TopicQuery};
use super::queries::{Connections, ConnectionsQuery, SessionReport};
use super::settings::Settings;

/// An order to a shard.
#[derive(Debug)]
pub enum Order {
    /// Publish to a topic.
    Publish {
        /// The topic.
        topic: Box<str>,
        /// The JSON text of the data.
        data: Vec<u8>,
        /// What else there is to say.
        options: PublishOptions,
        /// Where the receipt goes.
        answer: Answer<Delivery>,
    },
    /// Look for connections of this shard.
    Connections {
        /// Which.
        query: ConnectionsQuery,
        /// Where they go.
        answer: Answer<Connections>,
    },
    /// Tell everything about one session of this shard.
    Session {
        /// Which.
        id: SessionId,
        /// Where it goes; nothing if it is not known.
        answer: Answer<Option<SessionReport>>,
    },
    /// Send to every connection of the engine.
    Broadcast {
        /// The JSON text of the data.
        data: Vec<u8>,
        /// Where the receipt goes.
        answer: Answer<Delivery>,
    },
    /// Do something to some connections.
    Run {
        /// What.
        errand: Errand,
        /// To whom.
        addressees: Addressees,
        /// Where it goes what it came to.
        answer: Answer<Reached>,
    },
    /// Find members of a topic.
    Members {
        /// The topic.
        topic: Box<str>,
        /// Where to begin to look: 0, or [`Members::next`].
        from: u32,
        /// Where they go.
        answer: Answer<Members>,
    },
    /// List topics with local subscribers.
    Topics {
        /// Which.
        query: TopicQuery,
        /// Where to begin to look: 0, or [`TopicPage::next`].
        from: u32,
        /// Where they go.
        answer: Answer<TopicPage>,
    },
}

/// Orders that a shard holds at most.
const ORDERS_MAX: usize = 1024;
const DRAINS_MAX: usize = 8;
/// Orders taken in one turn that go through many connections or topics; publishes have a budget of their own.
const WALKS_PER_TURN: u32 = 4;

/// A shard's inbox for other threads.
pub struct Inbox {
    orders: ArrayQueue<Order>,
    /// Drains that have been ordered and not taken up. Apart from the other orders, since they must always find room: of more
    /// than fit, two become one.
    drains: ArrayQueue<DrainOrder>,
    /// The newest settings that the shard has not taken up. Not a queued order either.
    settings: ArrayQueue<Arc<Settings>>,
    /// The shard has ended.
    closed: AtomicBool,
    doorbell: OnceLock<Arc<dyn Doorbell>>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            orders: ArrayQueue::new(ORDERS_MAX),
            drains: ArrayQueue::new(DRAINS_MAX),
            settings: ArrayQueue::new(1),
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
        // Looked at after the push and a fence: whoever closes empties the queue afterwards, so one of the two sees the order.
        if self.closed.load(Ordering::Relaxed) {
            self.close();
            return Err(Refused::gone());
        }
        Ok(())
    }

    /// Nobody takes orders any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Whoever waits for an answer is woken, which is code of the user's.
        while let Some(order) = self.orders.pop() {
            drop_quietly(order);
        }
    }

    /// Orders the shard to close everybody and end. A second order can only make that faster.
    pub fn drain(&self, mut order: DrainOrder) {
        while let Err(refused) = self.drains.push(order) {
            order = self.drains.pop().map_or(refused, |older| older.hastened_by(refused));
        }
        self.ring();
    }

    /// Orders the shard to work by these settings from its next turn on. Of several orders the last one counts.
    pub fn reload(&self, settings: Arc<Settings>) {
        let _ = self.settings.force_push(settings);
        self.ring();
    }

    /// Whether there are settings that the shard has not taken up.
    pub fn has_settings(&self) -> bool {
        !self.settings.is_empty()
    }

    /// The newest settings that the shard has not taken up.
    pub fn take_settings(&self) -> Option<Arc<Settings>> {
        self.settings.pop()
    }

    /// Whether a drain has been ordered that the shard has not taken up.
    pub fn wants_drain(&self) -> bool {
        !self.drains.is_empty()
    }

    pub(super) fn take_drain(&self) -> Option<DrainOrder> {
        self.drains.pop()
    }

    /// Whether orders wait.
    pub fn has_orders(&self) -> bool {
        !self.orders.is_empty()
    }

    /// The order that waits longest. For the shard.
    pub fn take_order(&self) -> Option<Order> {
        self.orders.pop()
    }

    fn ring(&self) {
        // A shard that begins says how it is woken and then looks: one of the two sees the other.
        fence(Ordering::SeqCst);
        if let Some(doorbell) = self.doorbell.get() {
            doorbell.ring();
        }
    }

    /// Says how the shard is woken, once; before that it looks into its inbox by itself.
    pub fn attach(&self, doorbell: Arc<dyn Doorbell>) {
        let _ = self.doorbell.set(doorbell); // the first of an inbox is the only one
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn take_orders(&mut self) {
        while self.inbox.wants_drain()
            && let Some(order) = self.inbox.take_drain()
        {
            self.drain(order);
        }
        let mut walks = WALKS_PER_TURN;
        // One at least of what a turn may publish, however much of it clients have used up.
        let mut has_one = self.refilled;
        while walks > 0
            && self.inbox.has_orders()
            && (std::mem::take(&mut has_one) && self.has_room_on_bus() || self.has_room_to_publish())
            && let Some(order) = self.inbox.take_order()
        {
            walks -= u32::from(!matches!(order, Order::Publish { .. } | Order::Broadcast { .. }));
            match order {
                Order::Publish { topic, data, options, answer } => match self.check_name(&topic) {
                    Ok(()) => self.publish_for(&topic, &data, options.key.as_deref(), answer),
                    Err((code, text)) => drop(answer.send(Err(Refused::new(code, text)))),
                },
                Order::Broadcast { data, answer } => self.broadcast_for(&data, answer),
                // Nobody may wait for an answer any more.
                Order::Run { errand, addressees, answer } => drop(answer.send(Ok(self.run(errand, addressees)))),
                Order::Members { topic, from, answer } => drop(answer.send(Ok(self.members_from(&topic, from)))),
                Order::Topics { query, from, answer } => drop(answer.send(Ok(self.topics_from(&query, from)))),
                Order::Connections { query, answer } => self.look_for(query, answer),
                Order::Session { id, answer } => drop(answer.send(Ok(self.report(id)))),
            }
        }
    }
}

/// The refusal of a publish that has no room.
pub(super) fn refused_for_room() -> Refused {
    Refused::new(ErrorCode::LimitExceeded, "the engine is busy; publish again later")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard that stands still may have more orders to drain than there is room for: none of them can make it slower.
    #[test]
    fn the_most_urgent_of_many_drains_is_not_forgotten() {
        let inbox = Inbox::default();
        inbox.drain(DrainOrder { spread_ms: 5_000, ..DrainOrder::within(60_000) });
        inbox.drain(DrainOrder { wait_ms: 7_000, spread_ms: 1_000, ..DrainOrder::within(9_000) });
        for _ in 0..3 * DRAINS_MAX {
            inbox.drain(DrainOrder { wait_ms: 20_000, spread_ms: 20_000, ..DrainOrder::within(60_000) });
        }
        let orders: Vec<DrainOrder> = std::iter::from_fn(|| inbox.take_drain()).collect();
        let least = |time: fn(&DrainOrder) -> u64| orders.iter().map(time).min().unwrap();
        assert_eq!(least(|order| order.wait_ms), 0);
        assert_eq!(least(|order| order.wait_ms + order.spread_ms), 5_000);
        assert_eq!(least(|order| order.deadline_ms), 9_000);
        assert!(orders.len() <= DRAINS_MAX);
    }
}
