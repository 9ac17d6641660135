//! All shards of an engine, as other threads see them: the embedding program and the control plane.
//! Law: nothing here waits for a shard other than in the future it returns. Work on many connections goes to their shards
//! in portions, one at a time, so that it never fills an inbox.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use ahash::RandomState;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::app::context::{Answer, Refused, not_json, publishable};
use crate::app::{Clients, PublishOptions};
use crate::id::{ConnKey, SessionId, ShardId};
use crate::metrics::ErrorCode;
use crate::pubsub::Delivery;
use crate::shard::errands::{Addressees, ERRAND_CONNS_MAX, Errand, Reached, TopicQuery};
use crate::shard::queries::{Connections, ConnectionsQuery, SessionReport};
use crate::shard::{Inbox, Order};

/// The shards' inboxes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shards {
    inboxes: Arc<[Arc<Inbox>]>,
    clients: Arc<Clients>,
    hasher: RandomState,
}

/// Connections, by what is known of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The connection of a session.
    Session(SessionId),
    /// All authenticated connections of a client, by its user id (the claim `sub`).
    Client(Box<str>),
    /// All subscribers of a topic.
    Topic(Box<str>),
}

impl From<SessionId> for Target {
    fn from(id: SessionId) -> Self {
        Self::Session(id)
    }
}

/// A topic with subscribers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicEntry {
    /// Its name.
    pub name: Box<str>,
    /// Its subscribers on all shards.
    pub subscribers: u64,
    /// The shards that have some, in ascending order.
    pub shards: Vec<ShardId>,
}

impl Shards {
    /// The inboxes of `shards` (≥ 1) shards to be, which share `clients`.
    pub fn new(shards: usize, clients: Arc<Clients>) -> Self {
        Self { inboxes: (0..shards).map(|_| Arc::default()).collect(), clients, hasher: RandomState::new() }
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
        self.publish_with(topic, data, PublishOptions::new())
    }

    /// As [`Shards::publish`], with more to say.
    ///
    /// # Errors
    /// Those of [`Shards::publish`], and `too_large` for a key of more than 255 bytes.
    pub fn publish_with<T: Serialize>(
        &self,
        topic: &str,
        data: &T,
        options: PublishOptions,
    ) -> impl Future<Output = Result<Delivery, Refused>> + Send + use<T> {
        let data = publishable(data, &options);
        // One topic always goes through the same shard, so that its messages keep their order.
        let shard = self.hasher.hash_one(topic) as usize % self.inboxes.len();
        let topic: Box<str> = topic.into();
        self.ask(shard, data.map(|data| move |answer| Order::Publish { topic, data, options, answer }))
    }

    /// Sends to every connection, subscribed or not.
    ///
    /// # Errors
    /// `invalid_message` if the data is not JSON, `limit_exceeded` if the engine is busy.
    pub fn broadcast<T: Serialize>(&self, data: &T) -> impl Future<Output = Result<Delivery, Refused>> + Send + use<T> {
        let data = serde_json::to_vec(data).map_err(not_json);
        self.ask(0, data.map(|data| move |answer| Order::Broadcast { data, answer }))
    }

    /// Does something to connections. Those that come while it is being done may be left out. What is refused halfway is
    /// told in [`Reached::refusal`], beside what was done.
    ///
    /// # Errors
    /// `limit_exceeded` if the engine is busy, `not_found` if it has ended; nothing was done then.
    pub fn run(&self, target: Target, errand: Errand) -> impl Future<Output = Result<Reached, Refused>> + Send + use<> {
        let shards = self.clone();
        async move {
            let mut reached = Reached::default();
            match shards.run_all(target, &errand, &mut reached).await {
                Err(refused) if reached.matched == 0 => return Err(refused),
                Err(refused) => reached.refusal = Some(refused),
                Ok(()) => {}
            }
            Ok(reached)
        }
    }

    async fn run_all(&self, target: Target, errand: &Errand, reached: &mut Reached) -> Result<(), Refused> {
        match target {
            Target::Session(id) => {
                // An id that was made up may name a shard that does not exist.
                if let Some(shard) = Some(id.shard()).filter(|shard| shard.index() < self.inboxes.len()) {
                    reached.add(self.run_on(shard, errand, Addressees::Session(id)).await?);
                }
            }
            Target::Client(user_id) => {
                let mut by_shard = BTreeMap::<ShardId, Vec<ConnKey>>::new();
                for (shard, conn) in self.clients.places(&user_id) {
                    by_shard.entry(shard).or_default().push(conn);
                }
                for (shard, conns) in by_shard {
                    self.run_on_each(shard, errand, &conns, reached).await?;
                }
            }
            Target::Topic(topic) => {
                for shard in self.ids() {
                    let mut place = Some(0);
                    while let Some(from) = place {
                        let topic = topic.clone();
                        let order = move |answer| Order::Members { topic, from, answer };
                        let members = self.ask(shard.index(), Ok(order)).await?;
                        self.run_on_each(shard, errand, &members.conns, reached).await?;
                        place = members.next;
                    }
                }
            }
        }
        Ok(())
    }

    async fn run_on_each(
        &self,
        shard: ShardId,
        errand: &Errand,
        conns: &[ConnKey],
        reached: &mut Reached,
    ) -> Result<(), Refused> {
        for conns in conns.chunks(ERRAND_CONNS_MAX) {
            reached.add(self.run_on(shard, errand, Addressees::Conns(conns.to_vec())).await?);
        }
        Ok(())
    }

    fn run_on(
        &self,
        shard: ShardId,
        errand: &Errand,
        addressees: Addressees,
    ) -> impl Future<Output = Result<Reached, Refused>> + Send + use<> {
        let errand = errand.clone();
        self.ask(shard.index(), Ok(move |answer| Order::Run { errand, addressees, answer }))
    }

    /// The first topics that a query asks for, in order of their names. Subscribers come and go while it is answered.
    ///
    /// # Errors
    /// `limit_exceeded` if the engine is busy, `not_found` if it has ended.
    pub fn topics(&self, query: TopicQuery) -> impl Future<Output = Result<Vec<TopicEntry>, Refused>> + Send + use<> {
        let shards = self.clone();
        async move {
            // Each shard's first so many hold all of its topics that are among the first so many of all.
            let mut topics = BTreeMap::<Box<str>, BTreeMap<ShardId, u64>>::new();
            for shard in shards.ids() {
                let mut place = Some(0);
                while let Some(from) = place {
                    let part = query.clone();
                    let order = move |answer| Order::Topics { query: part, from, answer };
                    let page = shards.ask(shard.index(), Ok(order)).await?;
                    for (name, subscribers) in page.topics {
                        topics.entry(name).or_default().insert(shard, subscribers);
                    }
                    while topics.len() > query.limit {
                        topics.pop_last();
                    }
                    place = page.next;
                }
            }
            let entry = |(name, by_shard): (Box<str>, BTreeMap<ShardId, u64>)| TopicEntry {
                name,
                subscribers: by_shard.values().sum(),
                shards: by_shard.into_keys().collect(),
            };
            Ok(topics.into_iter().map(entry).collect())
        }
    }

    /// The connections that a query asks for, of all shards, in its order. A shard that has ended has none.
    ///
    /// # Errors
    /// `invalid_message` if the limit is out of range, `limit_exceeded` if too many such questions are being answered.
    pub fn connections(
        &self,
        query: ConnectionsQuery,
    ) -> impl Future<Output = Result<Connections, Refused>> + Send + use<> {
        let asked: Vec<_> = (0..self.inboxes.len())
            .map(|shard| {
                let query = query.clone();
                self.ask(shard, query.check().map(|()| move |answer| Order::Connections { query, answer }))
            })
            .collect();
        async move {
            let mut parts = Vec::with_capacity(asked.len());
            for answer in asked {
                match answer.await {
                    Ok(part) => parts.push(part),
                    Err(refused) if refused.code == ErrorCode::NotFound => {}
                    Err(refused) => return Err(refused),
                }
            }
            if parts.is_empty() {
                return Err(Refused::gone());
            }
            Ok(query.merge(parts))
        }
    }

    /// Everything about one session: its state and its history, also for a while after its end. `None` if nothing is
    /// known of it.
    ///
    /// # Errors
    /// `limit_exceeded` if the engine is busy.
    pub fn session(
        &self,
        id: SessionId,
    ) -> impl Future<Output = Result<Option<SessionReport>, Refused>> + Send + use<> {
        let shard = id.shard().index();
        let asked =
            (shard < self.inboxes.len()).then(|| self.ask(shard, Ok(move |answer| Order::Session { id, answer })));
        async move {
            match asked {
                Some(asked) => asked.await,
                None => Ok(None), // made up
            }
        }
    }

    fn ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.inboxes.len() as u16).map(ShardId)
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
