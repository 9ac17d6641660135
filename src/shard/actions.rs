//! The user's handlers: called, polled, answered, and what they asked for done.
//! Law: a handler runs between two changes of the shard's data, never inside one; a panic in it ends with an error to
//! its client, a count and a line in the log, and nothing else.

use crate::app::context::{Action, Refused, Sent};
use crate::app::envelope::{IncomingMessage, MessageId};
use crate::app::handler::HandlerError;
use crate::app::{Context, OutgoingMessage};
use crate::conn::Conn;
use crate::contain::contain;
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::{CloseReason, ErrorCode, HANDLER_SAMPLE, PanicSite};

use super::Shard;
use super::closing::Goodbye;
use super::commands::can_be_told;
use super::executor::{Done, Ended};
use super::orders::refused_for_room;

impl<I: Io> Shard<I> {
    pub(super) fn call_handler(&mut self, key: ConnKey, message: IncomingMessage<'_>) {
        let id = message.id;
        let Some(handler) = self.shared.router.find(message.kind) else {
            let kind = message.kind.chars().take(64).collect::<String>();
            return self.fault(key, ErrorCode::UnknownMessage, &format!("no handler for type `{kind}`"), id);
        };
        if !self.executor.has_room() {
            return self.fault(key, ErrorCode::LimitExceeded, "too many requests are waiting; try again later", id);
        }
        let Some(conn) = self.conns.get(key) else { return };
        let identity = conn.identity.clone();
        let begin = self.sessions.get(key.slot).map_or((0, None), |session| (session.since(), session.address()));
        let context = Context::new(self.session_id(key), key, begin, identity, self.desk.clone());
        let owned_id = id.map(MessageId::from);
        let called_ns = self.now.monotonic_ns;
        self.calls = self.calls.wrapping_add(1);
        let timed_from_ns = self.calls.is_multiple_of(HANDLER_SAMPLE).then(|| self.io.clock_ns());
        let future = match contain(|| handler.call(context, message)) {
            Ok(Ok(future)) => future,
            Ok(Err(error)) => {
                return self.fault(key, error.cause.code(), &error, owned_id.as_ref().map(MessageId::borrow));
            }
            Err(panic) => {
                let ended = Ended::Panicked(panic);
                return self.on_handler_done(Done { conn: key, id: owned_id, called_ns, ended });
            }
        };
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.parked += 1;
        let deadline_ms = self.settings.handler_timeout_ms.map(|timeout_ms| self.now.monotonic_ms() + timeout_ms);
        let done = self.executor.start(key, owned_id, called_ns, future, deadline_ms);
        if let Some(from_ns) = timed_from_ns.filter(|_| done.is_some()) {
            self.metrics.handler_inline.observe(self.io.clock_ns() - from_ns);
        }
        self.act();
        if let Some(done) = done {
            self.unpark(done);
        }
    }

    /// Polls the futures that were woken.
    pub(super) fn poll_handlers(&mut self) {
        let mut left = self.executor.ready();
        while let Some(index) = self.executor.next_ready(&mut left) {
            let done = self.executor.poll(index);
            self.act();
            if let Some(done) = done {
                self.metrics.handler_parked.observe(self.now.monotonic_ns - done.called_ns);
                self.unpark(done);
            }
        }
        self.act(); // what destructors of cancelled handlers asked for
    }

    /// Gives up handlers that have taken too long, once those that were woken during an absence have been polled.
    pub(super) fn give_up_handlers(&mut self) {
        let now_ms = self.now.monotonic_ms();
        if now_ms < self.lenient_until_ms {
            return;
        }
        while let Some(done) = self.executor.give_up_one(now_ms) {
            self.metrics.handler_parked.observe(self.now.monotonic_ns - done.called_ns);
            self.act(); // what its destructor asked for
            self.unpark(done);
        }
    }

    /// When [`Shard::give_up_handlers`] has something to do.
    pub(super) fn handler_deadline_ms(&self) -> Option<u64> {
        self.executor.next_deadline_ms().map(|deadline_ms| deadline_ms.max(self.lenient_until_ms))
    }

    fn unpark(&mut self, done: Done) {
        let key = done.conn;
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.parked = conn.parked.saturating_sub(1);
        self.on_handler_done(done);
        self.settle(key);
    }

    fn on_handler_done(&mut self, done: Done) {
        let Done { conn: key, id, ended, .. } = done;
        let id = id.as_ref().map(MessageId::borrow);
        match ended {
            Ended::Returned(Ok(message)) => {
                self.reply(key, id, |envelope| envelope.raw(message.kind(), message.payload()));
            }
            Ended::Returned(Err(HandlerError { code, message, cause })) => {
                if let Some(cause) = cause {
                    // The user's own `Display` and `Drop`.
                    let cause = contain(move || cause.to_string()).unwrap_or_else(|panic| panic);
                    let session = self.conns.get(key).map(|_| self.session_id(key));
                    tracing::warn!(?session, %cause, "handler failed");
                }
                self.fault(key, code, &message, id);
            }
            Ended::Panicked(panic) => {
                self.metrics.panics[PanicSite::Handler as usize].add(1);
                let session = self.conns.get(key).map(|_| self.session_id(key));
                tracing::error!(?session, panic, "handler panicked");
                self.fault(key, ErrorCode::InternalError, "the handler failed", id);
            }
            Ended::Overdue => {
                self.metrics.handler_timeouts.add(1);
                let session = self.conns.get(key).map(|_| self.session_id(key));
                tracing::warn!(?session, "a handler took too long");
                self.fault(key, ErrorCode::InternalError, "the handler took too long", id);
            }
        }
        self.want_resume(key);
    }

    /// Whether what waits for the connection is several times what may: published messages stop at the bound, requests are
    /// not read beyond it, and a handler that sends without being asked stops here.
    fn is_flooded(&self, key: ConnKey) -> bool {
        let flood_bytes = flood_bytes(self.settings.outbound.bytes_max);
        let behind = |newest| self.receipts.waiting(newest);
        let waiting = |conn: &Conn| conn.outbound.bytes() + conn.receipts.map_or(0, behind);
        self.conns.get(key).is_some_and(|conn| waiting(conn) >= flood_bytes)
    }

    /// Queues a message of a handler, unless it sends on and on to a client that does not read.
    fn send(&mut self, key: ConnKey, message: &OutgoingMessage) -> Sent {
        if !self.conns.get(key).is_some_and(can_be_told) {
            return Sent::Closed;
        }
        if self.is_flooded(key) {
            self.part_slow(key, "a handler sends more than it reads");
            return Sent::Dropped;
        }
        self.push(key, |envelope| envelope.raw(message.kind(), message.payload()));
        Sent::Queued
    }

    /// Does what handlers asked for, in the order in which they asked.
    fn act(&mut self) {
        for (key, action) in self.desk.take() {
            match action {
                // A handler that sends on and on to a client that does not read.
                Action::Send { message, outcome } => {
                    let _ = outcome.send(self.send(key, &message)); // nobody waits for it
                }
                Action::Drained { answer } => self.await_drained(key, answer),
                Action::Publish { topic, data, options, answer } => match self.check_name(&topic) {
                    Err((code, text)) => drop(answer.send(Err(Refused::new(code, text)))),
                    Ok(()) if self.has_room_to_publish() => {
                        self.publish_for(&topic, &data, options.key.as_deref(), answer);
                    }
                    Ok(()) => drop(answer.send(Err(refused_for_room()))),
                },
                Action::Subscribe { topic, answer } => {
                    let joined = self.join(key, &topic);
                    let _ = answer.send(joined.map_err(|(code, text)| Refused::new(code, text)));
                }
                Action::Unsubscribe { topic, answer } => {
                    let left = self.leave(key, &topic);
                    let _ = answer.send(left.map_err(|(code, text)| Refused::new(code, text)));
                }
                Action::Close { code, reason } => {
                    let code = if matches!(code, 1000 | 3000..=4999) { code } else { 1000 };
                    self.part(key, Goodbye::new(CloseReason::Application, code, reason));
                }
            }
        }
    }
}

/// Bytes on a connection's queue at which a handler that goes on sending to it is stopped; a queue counts them in 32 bits.
fn flood_bytes(bytes_max: u32) -> usize {
    (4 * bytes_max as usize).min(FLOOD_BYTES_MAX)
}

/// What is left of 32 bits is more than any message that comes on top.
const FLOOD_BYTES_MAX: usize = 2 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_stopped_while_it_can_be_counted() {
        assert_eq!(flood_bytes(1_000_000), 4_000_000);
        let largest = 1 << 30; // of `outbound.max_bytes`
        assert!(flood_bytes(largest) + largest as usize <= u32::MAX as usize);
    }
}
