//! The built-in commands, and what is answered to messages that are none.
//! Law: every well-formed request gets exactly one reply; a refused one gets an error that names the culprit, and an
//! error never closes the connection by itself, a budget of errors does.

use std::fmt::Display;
use std::num::NonZeroU64;

use crate::app::auth::{Authenticator, Claims};
use crate::app::clients::Place;
use crate::app::envelope::{self, EnvelopeWriter, IncomingMessage, Invalid, MessageIdRef};
use crate::config::ClientLimitPolicy;
use crate::conn::{Conn, Flow, FlushLine, Identity, Note, Then};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::{CloseReason, ErrorCode};
use crate::topic::{TopicError, check_topic};
use crate::ws::Opcode;

use super::Shard;
use super::closing::Goodbye;

/// Why a command was not carried out.
pub(super) type Fault = (ErrorCode, String);

impl<I: Io> Shard<I> {
    /// Handles one native message.
    pub(super) fn on_message(&mut self, key: ConnKey, bytes: &mut [u8]) {
        self.metrics.messages_in.add(1);
        let message = match self.contain_in(key, |_| envelope::parse(bytes)) {
            None => return,
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                return self.fault(key, error.cause.code(), &error, error.id.as_ref().map(|id| id.borrow()));
            }
        };
        let Some(conn) = self.conns.get(key) else { return };
        let authorized = conn.identity.is_some() || !self.settings.auth_required;
        match message.kind {
            // It has a budget of its own, and those that come together leave together, which saves most of their cost.
            "publish" => self.fair.pass_over(),
            _ => self.fair.watch(),
        }
        match message.kind {
            "ping" => self.reply(key, message.id, |envelope| envelope.pong()),
            "authenticate" => self.authenticate(key, message),
            "refresh" => self.refresh(key, message),
            _ if !authorized => self.fault(key, ErrorCode::Unauthorized, "authenticate first", message.id),
            "publish" => self.publish(key, message),
            "subscribe" => self.subscribe(key, message),
            "unsubscribe" => self.unsubscribe(key, message),
            "list_subscriptions" => self.list_subscriptions(key, message.id),
            _ => self.call_handler(key, message),
        }
    }

    fn authenticate(&mut self, key: ConnKey, message: IncomingMessage<'_>) {
        let (id, payload) = (message.id, message.payload);
        let Some(request) = self.understand(key, id, || payload.authenticate()) else { return };
        let Some(conn) = self.conns.get(key) else { return };
        if conn.identity.is_some() {
            let why = "already authenticated; send `refresh` to renew the token";
            return self.fault(key, ErrorCode::InvalidMessage, why, id);
        }
        match self.contain_in(key, |shard| shard.verify(request.token)) {
            None => {}
            Some(Ok(claims)) => self.enter(key, claims, id),
            Some(Err(error)) => self.turn_away(key, ErrorCode::Unauthorized, &error, id),
        }
    }

    /// The payload of a built-in command; one that is not what it must be is answered here.
    pub(super) fn understand<T>(
        &mut self,
        key: ConnKey,
        id: Option<MessageIdRef<'_>>,
        read: impl FnOnce() -> Result<T, Invalid>,
    ) -> Option<T> {
        match self.contain_in(key, |_| read())? {
            Ok(request) => Some(request),
            Err(invalid) => {
                self.fault(key, invalid.code(), &invalid, id);
                None
            }
        }
    }

    /// Makes the connection one of its client's, where that may have one more or another makes room for it.
    pub(super) fn enter(&mut self, key: ConnKey, claims: Claims, id: Option<MessageIdRef<'_>>) {
        let Claims { identity, max_connections } = claims;
        let most = max_connections.or(self.settings.client_connections_max);
        let policy = self.settings.client_limit_policy;
        match self.shared.clients.admit(&identity.user_id.text(), most, policy, (self.id, key)) {
            Ok(evicted) => {
                // First: they are on no list any more, so whatever happens next they must go.
                evicted.into_iter().for_each(|place| self.send_away(place));
                self.unlist_anonymous(key);
                self.adopt_identity(key, identity, id);
            }
            Err(too_many) => self.turn_away(key, ErrorCode::LimitExceeded, &too_many, id),
        }
    }

    fn turn_away<E: Display>(&mut self, key: ConnKey, code: ErrorCode, error: &E, id: Option<MessageIdRef<'_>>) {
        tracing::debug!(session = %self.session_id(key), %error, "not authenticated");
        self.count_error(code);
        self.note(key, Note::Error(code));
        self.reply(key, id, |envelope| envelope.not_authenticated(error));
        let text = format!("authentication failed: {error}");
        self.part(key, Goodbye::new(CloseReason::AuthFailed, 4501, text));
    }

    /// Parts from a connection, wherever it is, for a newer one of the same client, which does not wait for that.
    pub(super) fn send_away(&mut self, (shard, key): Place) {
        if shard == self.id { self.evict(key) } else { self.bus.evict(shard, key) }
    }

    pub(super) fn evict(&mut self, key: ConnKey) {
        let text = "evicted by a newer connection of the same client";
        self.part(key, Goodbye::new(CloseReason::Evicted, 4503, text));
    }

    /// A new token for the same user. A bad one changes nothing: the old token goes on until it expires.
    fn refresh(&mut self, key: ConnKey, message: IncomingMessage<'_>) {
        let (id, payload) = (message.id, message.payload);
        let Some(request) = self.understand(key, id, || payload.authenticate()) else { return };
        let Some(present) = self.conns.get(key).and_then(|conn| conn.identity.clone()) else {
            return self.fault(key, ErrorCode::Unauthorized, "authenticate first", id);
        };
        match self.contain_in(key, |shard| shard.verify(request.token)) {
            None => {}
            Some(Ok(Claims { identity, .. })) if identity.user_id == present.user_id => {
                if self.settings.client_limit_policy == ClientLimitPolicy::EvictIdle {
                    self.shared.clients.touch(&identity.user_id.text(), (self.id, key));
                }
                self.adopt_identity(key, identity, id);
            }
            Some(Ok(_)) => self.fault(key, ErrorCode::Forbidden, "the token is for another user", id),
            Some(Err(error)) => {
                tracing::debug!(session = %self.session_id(key), error, "not refreshed");
                self.reply(key, id, |envelope| envelope.not_authenticated(&error));
                self.spend_error(key, ErrorCode::Unauthorized);
            }
        }
    }

    pub(super) fn verify(&self, token: &str) -> Result<Claims, String> {
        match &self.settings.authenticator {
            Some(authenticator) => {
                Authenticator::verify(authenticator, token, self.now.unix_ms).map_err(|error| error.to_string())
            }
            None => Err("the server has no key to check tokens with".into()),
        }
    }

    /// Makes the connection that of a user, and tells it so.
    fn adopt_identity(&mut self, key: ConnKey, identity: Identity, id: Option<MessageIdRef<'_>>) {
        let session = self.session_id(key);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let before = conn.identity.replace(identity.clone());
        let is_first = before.is_none();
        conn.expiry_announced = false;
        if is_first {
            self.metrics.authenticated.add(1);
        }
        self.note(key, if is_first { Note::Authenticated } else { Note::Refreshed });
        tracing::debug!(%session, user = &*identity.user_id.text(), "authenticated");
        let expires_at = identity.expires_at.map(NonZeroU64::get);
        self.reply(key, id, |envelope| envelope.authenticated(&identity.user_id.text(), session, expires_at));
        if let Some(before) = before {
            self.end_what_is_withdrawn(key, &before, &identity);
        }
        self.reschedule(key);
    }

    /// Ends the subscriptions that the token before allowed and the new one does not. Those that neither allows were made by
    /// a handler or an operator, who need no token's leave.
    fn end_what_is_withdrawn(&mut self, key: ConnKey, before: &Identity, now: &Identity) {
        if before.permissions == now.permissions || now.permissions.is_none() {
            return;
        }
        let Some(conn) = self.conns.get(key) else { return };
        let names = conn.subscriptions.as_slice().iter().map(|&topic| self.topics.topic(topic).name());
        let withdrawn = names.filter(|name| before.may_subscribe(name) && !now.may_subscribe(name));
        let withdrawn: Vec<Box<str>> = withdrawn.map(Box::from).collect();
        for topic in withdrawn {
            if self.leave(key, &topic).is_ok() {
                self.push(key, |envelope| envelope.unsubscribed_for(&topic, "the new token does not allow it"));
            }
        }
    }

    fn subscribe(&mut self, key: ConnKey, message: IncomingMessage<'_>) {
        let (id, payload) = (message.id, message.payload);
        let Some(request) = self.understand(key, id, || payload.subscribe()) else { return };
        match self.conns.get(key) {
            Some(conn) if conn.receipts.is_some() => self.hold_subscribe(key, id, request.topic),
            _ => self.subscribe_to(key, id, request.topic),
        }
    }

    pub(super) fn subscribe_to(&mut self, key: ConnKey, id: Option<MessageIdRef<'_>>, topic: &str) {
        let allowed = self.permit(key, topic, "subscribe to", |identity, topic| identity.may_subscribe(topic));
        match allowed.and_then(|()| self.join(key, topic)) {
            Ok(()) => self.reply(key, id, |envelope| envelope.subscribed(topic)),
            Err((code, text)) => self.fault(key, code, &text, id),
        }
    }

    fn unsubscribe(&mut self, key: ConnKey, message: IncomingMessage<'_>) {
        let (id, payload) = (message.id, message.payload);
        let Some(request) = self.understand(key, id, || payload.unsubscribe()) else { return };
        match self.leave(key, request.topic) {
            Ok(()) => self.reply(key, id, |envelope| envelope.unsubscribed(request.topic)),
            Err((code, text)) => self.fault(key, code, &text, id),
        }
    }

    fn list_subscriptions(&mut self, key: ConnKey, id: Option<MessageIdRef<'_>>) {
        let Some(conn) = self.conns.get(key) else { return };
        let topics = conn.subscriptions.as_slice().iter();
        let names: Vec<Box<str>> = topics.map(|&topic| self.topics.topic(topic).name().into()).collect();
        self.reply(key, id, |envelope| envelope.subscriptions(names.iter().map(|name| &**name)));
    }

    /// Makes the connection a member of a topic; it may be one already.
    pub(super) fn join(&mut self, key: ConnKey, topic: &str) -> Result<(), Fault> {
        self.check_name(topic)?;
        let Some(conn) = self.conns.get(key).filter(|conn| conn.is_open()) else { return Err(gone()) };
        if self.topics.find(topic).is_some_and(|index| conn.subscriptions.has(index)) {
            return Ok(());
        }
        let most = self.settings.subscriptions_max;
        if conn.subscriptions.len() >= most {
            return Err((ErrorCode::LimitExceeded, format!("a connection may have {most} subscriptions")));
        }
        self.topics.subscribe(topic, key, &mut self.conns);
        self.note(key, Note::Subscribed(topic));
        Ok(())
    }

    pub(super) fn leave(&mut self, key: ConnKey, topic: &str) -> Result<(), Fault> {
        let now = self.ms();
        let Some(index) = self.topics.find(topic) else { return Err(not_subscribed()) };
        // Of whatever policy it is here by now: of another where it was published, or it was when that came to wait.
        let known_by = self.topics.topic(index).known_by();
        let left = self.topics.unsubscribe(index, key, &mut self.conns);
        if left && let Some(conn) = self.conns.get_mut(key) {
            conn.outbound.forget_keys(known_by, self.io.palette(), now);
        }
        if !left {
            return Err(not_subscribed());
        }
        self.note(key, Note::Unsubscribed(topic));
        Ok(())
    }

    /// Whether the connection's token allows it; without a token everything is allowed, where none is required.
    pub(super) fn permit(
        &self,
        key: ConnKey,
        topic: &str,
        what: &str,
        allows: impl Fn(&Identity, &str) -> bool,
    ) -> Result<(), Fault> {
        self.check_name(topic)?;
        match self.conns.get(key).and_then(|conn| conn.identity.as_ref()) {
            Some(identity) if !allows(identity, topic) => {
                Err((ErrorCode::Forbidden, format!("the token does not allow to {what} this topic")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_name(&self, topic: &str) -> Result<(), Fault> {
        check_topic(topic, self.settings.topic_length_max).map_err(|error| match error {
            TopicError::TooLong { .. } => (ErrorCode::TooLarge, error.to_string()),
            _ => (ErrorCode::InvalidMessage, error.to_string()),
        })
    }

    /// Answers a request. Behind unanswered publishes of the connection the reply waits for its turn.
    pub(super) fn reply(&mut self, key: ConnKey, id: Option<MessageIdRef<'_>>, write: impl FnOnce(EnvelopeWriter<'_>)) {
        let unix_ms = self.now.unix_ms;
        self.say(key, |out| write(EnvelopeWriter::reply(out, id, unix_ms)));
    }

    /// Sends something that nobody asked for.
    pub(super) fn push(&mut self, key: ConnKey, write: impl FnOnce(EnvelopeWriter<'_>)) {
        let unix_ms = self.now.unix_ms;
        self.say(key, |out| write(EnvelopeWriter::push(out, unix_ms)));
    }

    fn say(&mut self, key: ConnKey, write: impl FnOnce(&mut Vec<u8>)) {
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !can_be_told(conn) {
            return;
        }
        conn.active = now;
        let (codecs, deflate) = (&mut self.codecs, conn.deflate);
        let frame = |out: &mut Vec<u8>| codecs.frame_of(out, Opcode::Text, deflate, write);
        match conn.receipts {
            Some(newest) => self.receipts.reply(newest, frame),
            None => conn.outbound.reply(self.io.palette(), now, frame),
        }
        self.metrics.messages_out.add(1);
        self.count_flow(key, Flow::MessagesOut, 1);
        self.list(key, FlushLine::Own);
    }

    /// Answers with an error and spends one of the connection's error budget.
    pub(super) fn fault<E: Display + ?Sized>(
        &mut self,
        key: ConnKey,
        code: ErrorCode,
        message: &E,
        id: Option<MessageIdRef<'_>>,
    ) {
        self.reply(key, id, |envelope| envelope.error(code, &format_args!("{message}")));
        self.spend_error(key, code);
    }

    fn spend_error(&mut self, key: ConnKey, code: ErrorCode) {
        self.count_error(code);
        self.note(key, Note::Error(code));
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.errors = conn.errors.saturating_add(1);
        if conn.errors >= self.settings.errors_max {
            // It would hardly stop to answer a close frame, so nothing more of what it sends is looked at.
            let goodbye = Goodbye::new(CloseReason::Errors, 4506, "too many errors");
            self.part(key, Goodbye { then: Then::Linger, ..goodbye });
        }
    }

    pub(super) fn count_error(&self, code: ErrorCode) {
        self.metrics.errors[code as usize].add(1);
    }
}

/// Whether the connection is still to be told things: until its close frame is queued.
pub(super) fn can_be_told(conn: &Conn) -> bool {
    matches!(conn.phase, crate::conn::Phase::Open | crate::conn::Phase::Settling(..))
}

fn not_subscribed() -> Fault {
    (ErrorCode::NotFound, "not subscribed to this topic".into())
}

pub(super) fn gone() -> Fault {
    (ErrorCode::NotFound, "the connection has ended".into())
}
