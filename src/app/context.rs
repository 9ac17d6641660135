//! What a handler can see and do.
//! Law: an action is noted here and carried out by the shard, in order, as soon as the handler's poll returns; so a
//! handler never runs while the shard's own data is half changed.

use std::cell::{OnceCell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use serde::Serialize;
use tokio::sync::oneshot;

use super::envelope::KEY_LENGTH_MAX;
use super::message::{OutgoingMessage, PublishOptions};
use crate::conn::{Identity, UserText, UuidText};
use crate::id::{ConnKey, SessionId};
use crate::metrics::ErrorCode;
use crate::pubsub::Delivery;

/// Why something asked of the engine was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.label())]
pub struct Refused {
    /// The kind of refusal.
    pub code: ErrorCode,
    /// What was wrong, and what to do.
    pub message: String,
}

impl Refused {
    /// A refusal.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The engine or the connection ended first.
    pub fn gone() -> Self {
        Self::new(ErrorCode::NotFound, "the connection or the engine has ended")
    }
}

/// What became of a message that a handler sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It waits for its turn, and leaves unless the connection ends before.
    Queued,
    /// Four times `outbound.max_bytes` wait for the client, which does not read: the message was dropped and the client is
    /// being disconnected (4008).
    Dropped,
    /// The connection has ended, or is past its last words.
    Closed,
}

/// Tells what became of a message, as soon as it is known: after the poll in which it was sent. The message is sent
/// whether this is awaited or not.
#[derive(Debug)]
pub struct Sending(oneshot::Receiver<Sent>);

impl Future for Sending {
    type Output = Sent;

    fn poll(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<Sent> {
        Pin::new(&mut self.0).poll(context).map(|sent| sent.unwrap_or(Sent::Closed))
    }
}

/// Where the answer to an action goes.
pub type Answer<T> = oneshot::Sender<Result<T, Refused>>;

/// Something a handler wants done.
#[derive(Debug)]
#[expect(missing_docs, reason = "the methods of `Context` describe them")]
pub enum Action {
    Send { message: OutgoingMessage, outcome: oneshot::Sender<Sent> },
    Drained { answer: Answer<()> },
    Publish { topic: Box<str>, data: Vec<u8>, options: PublishOptions, answer: Answer<Delivery> },
    Subscribe { topic: Box<str>, answer: Answer<()> },
    Unsubscribe { topic: Box<str>, answer: Answer<()> },
    Close { code: u16, reason: String },
}

/// The actions noted on one shard and not carried out yet.
#[derive(Debug, Default)]
pub struct Desk {
    actions: RefCell<Vec<(ConnKey, Action)>>,
}

impl Desk {
    /// Whether nothing was noted.
    pub fn is_empty(&self) -> bool {
        self.actions.borrow().is_empty()
    }

    /// Takes what was noted, in order.
    pub fn take(&self) -> Vec<(ConnKey, Action)> {
        std::mem::take(&mut self.actions.borrow_mut())
    }
}

/// A handler's view of the connection whose message it handles. Cheap to clone; stays on the shard.
#[derive(Clone, Debug)]
pub struct Context {
    session: SessionId,
    conn: ConnKey,
    since: u64,
    address: Option<IpAddr>,
    identity: Option<Identity>,
    /// The text of a user id that does not have it, once asked for.
    user_id: OnceCell<UuidText>,
    desk: Rc<Desk>,
}

impl Context {
    pub(crate) fn new(
        session: SessionId,
        conn: ConnKey,
        (since, address): (u64, Option<IpAddr>),
        identity: Option<Identity>,
        desk: Rc<Desk>,
    ) -> Self {
        Self { session, conn, since, address, identity, user_id: OnceCell::new(), desk }
    }

    /// The session's id.
    pub fn session_id(&self) -> SessionId {
        self.session
    }

    /// When the session began, in Unix milliseconds.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// Where the client is, as far as the server can tell: the peer, or what a trusted proxy says.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The `sub` of the client's token; `None` where authentication is not required and did not happen.
    pub fn user_id(&self) -> Option<&str> {
        self.identity.as_ref().map(|identity| match identity.user_id.text() {
            UserText::Held(text) => text,
            UserText::Made(text) => &**self.user_id.get_or_init(|| text),
        })
    }

    /// Sends a message to this connection, before the handler's reply. What became of it can be awaited, or ignored. A
    /// handler that sends much awaits [`Context::drained`] in between, so that its client can follow.
    pub fn send(&self, message: OutgoingMessage) -> Sending {
        let (outcome, sent) = oneshot::channel();
        self.note(Action::Send { message, outcome });
        Sending(sent)
    }

    /// Waits until the client has read: until no more than half of `outbound.max_bytes` wait for it, not counting published
    /// messages that their topic's policy may drop. At once, if that is so already.
    ///
    /// # Errors
    /// `not_found` if the connection ends first or is ending, `limit_exceeded` if 64 futures wait for this connection.
    pub fn drained(&self) -> impl Future<Output = Result<(), Refused>> + use<> {
        self.ask(Ok(|answer| Action::Drained { answer }))
    }

    /// Publishes to a topic, whatever the client's own permissions; the future gives the receipt. The message is
    /// published even if the future is dropped.
    ///
    /// # Errors
    /// `invalid_message` for a bad topic name or data that is not JSON, `limit_exceeded` if the bus has no room now.
    pub fn publish<T: Serialize>(
        &self,
        topic: &str,
        data: &T,
    ) -> impl Future<Output = Result<Delivery, Refused>> + use<T> {
        self.publish_with(topic, data, PublishOptions::new())
    }

    /// As [`Context::publish`], with more to say.
    ///
    /// # Errors
    /// Those of [`Context::publish`], and `too_large` for a key of more than 255 bytes.
    pub fn publish_with<T: Serialize>(
        &self,
        topic: &str,
        data: &T,
        options: PublishOptions,
    ) -> impl Future<Output = Result<Delivery, Refused>> + use<T> {
        let data = publishable(data, &options);
        let topic = topic.into();
        self.ask(data.map(|data| move |answer| Action::Publish { topic, data, options, answer }))
    }

    /// Subscribes this connection to a topic, whatever the client's own permissions.
    ///
    /// # Errors
    /// `invalid_message` for a bad topic name, `limit_exceeded` at `subscriptions_per_connection`.
    pub fn subscribe(&self, topic: &str) -> impl Future<Output = Result<(), Refused>> + use<> {
        let topic = topic.into();
        self.ask(Ok(move |answer| Action::Subscribe { topic, answer }))
    }

    /// Ends this connection's subscription.
    ///
    /// # Errors
    /// `not_found` if it has none to this topic.
    pub fn unsubscribe(&self, topic: &str) -> impl Future<Output = Result<(), Refused>> + use<> {
        let topic = topic.into();
        self.ask(Ok(move |answer| Action::Unsubscribe { topic, answer }))
    }

    /// Closes this connection after what is queued and owed, with a code in 1000 or 3000–4999 (others become 1000) and
    /// a reason of at most 123 bytes.
    pub fn close(&self, code: u16, reason: &str) {
        self.note(Action::Close { code, reason: reason.into() });
    }

    fn note(&self, action: Action) {
        self.desk.actions.borrow_mut().push((self.conn, action));
    }

    fn ask<T, F: FnOnce(Answer<T>) -> Action>(
        &self,
        action: Result<F, Refused>,
    ) -> impl Future<Output = Result<T, Refused>> + use<T, F> {
        let asked = action.map(|action| {
            let (answer, answered) = oneshot::channel();
            self.note(action(answer));
            answered
        });
        async move { asked?.await.unwrap_or_else(|_| Err(Refused::gone())) }
    }
}

/// The JSON text of what is to be published.
pub(crate) fn publishable<T: Serialize>(data: &T, options: &PublishOptions) -> Result<Vec<u8>, Refused> {
    if options.key.as_ref().is_some_and(|key| key.len() > KEY_LENGTH_MAX) {
        let why = format!("`key` must not be longer than {KEY_LENGTH_MAX} bytes");
        return Err(Refused::new(ErrorCode::TooLarge, why));
    }
    serde_json::to_vec(data).map_err(not_json)
}

pub(crate) fn not_json(error: serde_json::Error) -> Refused {
    Refused::new(ErrorCode::InvalidMessage, format!("the data cannot be written as JSON: {error}"))
}
