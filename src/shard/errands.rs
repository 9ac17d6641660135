//! What an operator, or the embedding program, wants of certain connections: found, and then acted on.
//! Law: one order is a bounded piece of work, and whoever places it comes back for the rest; so however many connections
//! are meant, no turn is long. A connection that has ended meanwhile, or a session id that was made up, is nobody.

use crate::app::OutgoingMessage;
use crate::app::context::Refused;
use crate::conn::{Conn, Endpoint};
use crate::id::{ConnKey, SessionId};
use crate::io::Io;
use crate::metrics::{CloseReason, ErrorCode};
use crate::pubsub::Delivery;

use super::Shard;
use super::closing::Goodbye;
use super::commands::{Fault, gone};

/// Connections of one shard, at most [`ERRAND_CONNS_MAX`] of them.
#[derive(Clone, Debug)]
pub enum Addressees {
    /// The one of a session.
    Session(SessionId),
    /// These.
    Conns(Vec<ConnKey>),
}

/// What is to be done to each of some connections.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Errand {
    Send(OutgoingMessage),
    Disconnect(Disconnect),
    Subscribe { topic: Box<str> },
    Unsubscribe { topic: Box<str> },
}

/// How a connection is closed by an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// Close code: 1000 or 3000–4999; others become 4504.
    pub code: u16,
    /// Text for people, at most 123 bytes; what is longer is cut.
    pub reason: String,
    /// Whether the client should come back; `None`: as the code says, 4000–4499 come back and others stay away.
    pub reconnect: Option<bool>,
}

impl Default for Disconnect {
    /// 4504, "closed by an operator".
    fn default() -> Self {
        Self { code: 4504, reason: "closed by an operator".into(), reconnect: None }
    }
}

/// What an errand came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Connections that were meant and are open.
    pub matched: u64,
    /// Those of them that it was done to; for a message, those on whose queue it was put.
    pub done: u64,
    /// Why it was not done to others, if they have different reasons one of them.
    pub refusal: Option<Refused>,
}

impl Reached {
    pub(crate) fn add(&mut self, other: Self) {
        self.matched += other.matched;
        self.done += other.done;
        self.refusal = self.refusal.take().or(other.refusal);
    }
}

/// A part of a topic's members on one shard.
#[derive(Debug)]
pub struct Members {
    /// Those found.
    pub conns: Vec<ConnKey>,
    /// Where to go on looking; `None`: everywhere was looked.
    pub next: Option<u32>,
}

/// A part of the topics of one shard.
#[derive(Debug)]
pub struct TopicPage {
    /// Names with their local subscribers, in order of the names.
    pub topics: Vec<(Box<str>, u64)>,
    /// Where to go on looking; `None`: everywhere was looked.
    pub next: Option<u32>,
}

/// Which topics are asked for.
#[derive(Clone, Debug, Default)]
pub struct TopicQuery {
    /// What their names begin with.
    pub prefix: Box<str>,
    /// Only names behind this one.
    pub after: Option<Box<str>>,
    /// The first so many of them.
    pub limit: usize,
}

impl<I: Io> Shard<I> {
    pub(super) fn run(&mut self, errand: Errand, addressees: Addressees) -> Reached {
        let keys = match addressees {
            Addressees::Conns(keys) => keys,
            Addressees::Session(id) => self.find_session(id).into_iter().collect(),
        };
        let keys: Vec<_> = keys.into_iter().filter(|&key| self.conns.get(key).is_some_and(Conn::is_open)).collect();
        let matched = keys.len() as u64;
        match errand {
            Errand::Send(message) => {
                let Delivery { matched, queued, .. } = self.send_to(&keys, &message);
                Reached { matched, done: queued, refusal: None }
            }
            Errand::Disconnect(Disconnect { code, reason, reconnect }) => {
                let code = if matches!(code, 1000 | 3000..=4999) { code } else { 4504 };
                let mut goodbye = Goodbye::new(CloseReason::Application, code, reason);
                if let Some(reconnect) = reconnect {
                    goodbye.retry_after_ms = reconnect.then_some(0);
                }
                keys.into_iter().for_each(|key| self.part(key, goodbye.clone()));
                Reached { matched, done: matched, refusal: None }
            }
            Errand::Subscribe { topic } => {
                let joined: Vec<_> = keys.into_iter().map(|key| self.join_for(key, &topic)).collect();
                let refusal = joined.iter().find_map(|joined| joined.as_ref().err());
                let refusal = refusal.map(|(code, text)| Refused::new(*code, text.clone()));
                Reached { matched, done: joined.iter().filter(|joined| joined.is_ok()).count() as u64, refusal }
            }
            Errand::Unsubscribe { topic } => {
                let left = keys.into_iter().filter(|&key| self.leave(key, &topic).is_ok()).count() as u64;
                Reached { matched, done: left, refusal: None }
            }
        }
    }

    /// Puts a message on the queues of connections that may be sent to; what does not fit is dropped by the policy
    /// `disconnect`, as if it had been published.
    fn send_to(&mut self, keys: &[ConnKey], message: &OutgoingMessage) -> Delivery {
        let slots: Vec<u32> = keys.iter().filter(|&&key| self.may_get(key).is_ok()).map(|key| key.slot).collect();
        let windows = slots.iter().filter_map(|&slot| self.conns.slot(slot)).map(Conn::window_bits).collect();
        let frame = self.encode(None, windows, |envelope| envelope.raw(message.kind(), message.payload()));
        self.deliver_to(&slots, frame)
    }

    /// Makes a connection that may be sent to a member of a topic.
    fn join_for(&mut self, key: ConnKey, topic: &str) -> Result<(), Fault> {
        self.may_get(key)?;
        self.join(key, topic)
    }

    /// Whether messages may be put on the connection's queue: it understands them, and is somebody's where it must be.
    fn may_get(&self, key: ConnKey) -> Result<(), Fault> {
        let Some(conn) = self.conns.get(key) else { return Err(gone()) };
        if conn.endpoint != Endpoint::Native {
            return Err((ErrorCode::Forbidden, "it only gets back what it sends".into()));
        }
        if self.settings.auth_required && conn.identity.is_none() {
            return Err((ErrorCode::Unauthorized, "it has not authenticated yet".into()));
        }
        Ok(())
    }

    /// Looks for members of a topic in some slots, from `from` on.
    pub(super) fn members_from(&self, topic: &str, from: u32) -> Members {
        let Some(topic) = self.topics.find(topic) else { return Members { conns: Vec::new(), next: None } };
        let end = self.conns.slots().min(from.saturating_add(PORTION));
        let is_member = |&slot: &u32| self.conns.slot(slot).is_some_and(|conn| conn.subscriptions.has(topic));
        let conns = (from..end).filter(is_member).filter_map(|slot| self.conns.key_of(slot)).collect();
        Members { conns, next: (end < self.conns.slots()).then_some(end) }
    }

    /// Looks for topics in some places of the table, from `from` on.
    pub(super) fn topics_from(&self, query: &TopicQuery, from: u32) -> TopicPage {
        let (found, next) = self.topics.list(from, PORTION);
        let is_asked_for = |(name, _): &(&str, usize)| {
            name.starts_with(&*query.prefix) && query.after.as_ref().is_none_or(|after| *name > &**after)
        };
        let mut topics: Vec<_> = found.filter(is_asked_for).collect();
        topics.sort_unstable();
        topics.truncate(query.limit);
        let topics = topics.into_iter().map(|(name, members)| (name.into(), members as u64)).collect();
        TopicPage { topics, next }
    }
}

/// Connections that one order may be for.
pub const ERRAND_CONNS_MAX: usize = 256;
/// Slots, or places of the topic table, that one order looks at.
const PORTION: u32 = 4096;
