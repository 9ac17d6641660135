//! All shards of an engine, as other threads see them: the embedding program and the control plane.
//! Law: nothing here waits for a shard; an order is placed or refused at once, and its answer is a future.

use std::future::Future;
use std::sync::Arc;

use ahash::RandomState;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::app::context::{Answer, Refused, not_json};
use crate::pubsub::Delivery;

use crate::shard::{Inbox, Order};

/// The shards' inboxes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shards {
    inboxes: Arc<[Arc<Inbox>]>,
    hasher: RandomState,
}

impl Shards {
    /// The inboxes of `shards` (≥ 1) shards to be.
    pub fn new(shards: usize) -> Self {
        Self { inboxes: (0..shards).map(|_| Arc::default()).collect(), hasher: RandomState::new() }
    }

    /// The inbox of each shard, in shard order.
    pub fn inboxes(&self) -> &[Arc<Inbox>] {
        &self.inboxes
    }

    /// Publishes to a topic and gives the receipt. Messages of one thread to one topic keep their order.
    ///
    /// # Errors
    /// `invalid_message` for a bad topic name or data that is not JSON, `limit_exceeded` if the engine is busy.
    pub fn publish<T: Serialize>(
        &self,
        topic: &str,
        data: &T,
    ) -> impl Future<Output = Result<Delivery, Refused>> + Send + use<T> {
        let data = serde_json::to_vec(data).map_err(not_json);
        // One topic always goes through the same shard, so that its messages keep their order.
        let shard = self.hasher.hash_one(topic) as usize % self.inboxes.len();
        let topic: Box<str> = topic.into();
        self.ask(shard, data.map(|data| move |answer| Order::Publish { topic, data, answer }))
    }

    /// Sends to every connection, subscribed or not.
    ///
    /// # Errors
    /// `invalid_message` if the data is not JSON, `limit_exceeded` if the engine is busy.
    pub fn broadcast<T: Serialize>(&self, data: &T) -> impl Future<Output = Result<Delivery, Refused>> + Send + use<T> {
        let data = serde_json::to_vec(data).map_err(not_json);
        self.ask(0, data.map(|data| move |answer| Order::Broadcast { data, answer }))
    }

    /// Places an order with one shard; the future gives its answer.
    fn ask<A: Send, F: FnOnce(Answer<A>) -> Order>(
        &self,
        shard: usize,
        order: Result<F, Refused>,
    ) -> impl Future<Output = Result<A, Refused>> + Send + use<A, F> {
        let placed = order.and_then(|order| {
            let (answer, answered) = oneshot::channel();
            self.inboxes[shard].push(order(answer))?;
            Ok(answered)
        });
        async move { placed?.await.unwrap_or_else(|_| Err(Refused::gone())) }
    }
}
