//! How a connection ends.
//!
//! Law: a connection leaves [`Phase::Open`] exactly once, with its reason; from then on it is a member of no topic
//! and none of its client's connections.
//! What is owed to it (receipts, handlers' replies) is settled first, what is queued leaves before the close frame, and
//! every step has a deadline; `retire` is the only way out and the only place that counts.

use crate::app::envelope::EnvelopeWriter;
use crate::conn::{Farewell, FlushLine, LateBytes, Note, Notice, Phase, Then};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::{CloseReason, Drop};
use crate::ws::deflate::Agreement;
use crate::ws::{self, Opcode, ProtocolError};

use super::Shard;

/// A close that this server begins, as the client is told of it in `disconnect` and in the close frame.
#[derive(Clone, Debug)]
pub(super) struct Goodbye {
    /// Why, for the metrics.
    pub reason: CloseReason,
    /// Close code.
    pub code: u16,
    /// Text for people.
    pub text: String,
    /// Whether the client should connect again, and after how long.
    pub retry_after_ms: Option<u64>,
    /// What is awaited after it.
    pub then: Then,
}

impl Goodbye {
    pub(super) fn new(reason: CloseReason, code: u16, text: impl Into<String>) -> Self {
        // 4000–4499 ask the client to come back, 4500–4999 to stay away.
        let reconnect = matches!(code, 1001 | 1011..=1013 | 4000..=4499);
        Self { reason, code, text: text.into(), retry_after_ms: reconnect.then_some(0), then: Then::Await }
    }
}

impl<I: Io> Shard<I> {
    /// Begins to close an open connection: what is owed, `disconnect` in words, then the close frame.
    pub(super) fn part(&mut self, key: ConnKey, goodbye: Goodbye) {
        if !self.conns.get(key).is_some_and(|conn| conn.is_open()) {
            return;
        }
        let Goodbye { reason, code, text, retry_after_ms, then } = goodbye;
        let notice = Some(Notice { reason: text.clone(), retry_after_ms });
        // A client that does not read messages finds the delay in the close frame.
        let text = match retry_after_ms {
            Some(ms) if code == 1012 => format!("{{\"retry_after_ms\":{ms}}}"),
            _ => text,
        };
        self.leave_open(key, reason, Farewell { notice, code: Some(code), text, then });
    }

    /// The peer's close frame arrived.
    pub(super) fn on_peer_close(&mut self, key: ConnKey, code: Option<u16>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match &mut conn.phase {
            Phase::Open => {
                let (code, text) = (Some(code.unwrap_or(1000)), String::new());
                self.leave_open(key, CloseReason::Peer, Farewell { notice: None, code, text, then: Then::Close });
            }
            Phase::Settling(farewell, _) => farewell.then = Then::Close,
            Phase::Closing(_) => self.finish(key),
            _ => {}
        }
    }

    /// The peer's stream ended without a close frame: no close frame goes back, but what is queued and owed does.
    pub(super) fn finish_silently(&mut self, key: ConnKey, reason: CloseReason) {
        self.leave_open(key, reason, Farewell { notice: None, code: None, text: String::new(), then: Then::Close });
    }

    /// The peer broke the protocol: what it asked for before is answered, it is told what was wrong, and nothing more is
    /// looked at.
    pub(super) fn on_protocol_error(&mut self, key: ConnKey, error: ProtocolError) {
        let code = error.close_code();
        tracing::debug!(shard = self.id.0, slot = key.slot, %error, code, "protocol error");
        let reason = if code == 1009 { CloseReason::TooBig } else { CloseReason::Protocol };
        let (code, text) = (Some(code), error.to_string());
        self.break_off(key, reason, Farewell { notice: None, code, text, then: Then::Linger });
    }

    /// Nothing more of what the peer sends is looked at: `farewell`, unless it has been told its last, and then the end.
    pub(super) fn break_off(&mut self, key: ConnKey, reason: CloseReason, farewell: Farewell) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match &mut conn.phase {
            Phase::Open => self.leave_open(key, reason, farewell),
            Phase::Settling(earlier, _) => earlier.then = farewell.then,
            &mut Phase::Closing(late) => {
                conn.phase = Phase::Finishing { linger: farewell.then == Then::Linger, late };
                self.finish(key);
                self.discard_input(key);
            }
            _ => {}
        }
    }

    /// Answers a handshake that leads nowhere, as the last word to a peer that may still be sending.
    pub(super) fn refuse(&mut self, key: ConnKey, write: impl FnOnce(&mut Vec<u8>), reason: CloseReason) {
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        debug_assert!(matches!(conn.phase, Phase::Handshake { .. }));
        conn.phase = Phase::Finishing { linger: true, late: LateBytes::default() };
        conn.reason = Some(reason);
        conn.since = now;
        conn.outbound.reply(self.io.palette(), now, write);
        self.discard_input(key);
        self.list(key, FlushLine::Leaving);
        self.reschedule(key);
    }

    fn leave_open(&mut self, key: ConnKey, reason: CloseReason, farewell: Farewell) {
        let now = self.ms();
        self.leave_client(key);
        self.forget_waiters(key);
        self.topics.unsubscribe_all(key, &mut self.conns);
        self.note(key, Note::Closed(reason, farewell.code));
        let Some(conn) = self.conns.get_mut(key) else { return };
        debug_assert!(conn.is_open());
        conn.phase = Phase::Settling(Box::new(farewell), LateBytes::default());
        conn.reason = Some(reason);
        conn.since = now;
        self.reschedule(key);
        self.settle(key);
    }

    /// An open connection is about to end, and makes room for others of its client.
    fn leave_client(&mut self, key: ConnKey) {
        self.unlist_anonymous(key);
        if let Some(conn) = self.conns.get(key)
            && conn.is_open()
            && let Some(identity) = &conn.identity
        {
            self.shared.clients.release(&identity.user_id.text(), (self.id, key));
        }
    }

    /// Says the farewell if nothing is owed any more. Called whenever a debt is paid.
    pub(super) fn settle(&mut self, key: ConnKey) {
        let (now, unix_ms) = (self.ms(), self.now.unix_ms);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let &Phase::Settling(_, late) = &conn.phase else { return };
        if conn.owes() {
            return;
        }
        let Phase::Settling(farewell, _) = std::mem::replace(&mut conn.phase, Phase::Closing(late)) else { return };
        let Farewell { notice, code, text, then } = *farewell;
        if let Some(code) = code {
            conn.outbound.reply(self.io.palette(), now, |out| {
                if let Some(Notice { reason, retry_after_ms }) = notice {
                    let (reconnect, delay_ms) = (retry_after_ms.is_some(), retry_after_ms.unwrap_or(0));
                    ws::frame_of(out, Opcode::Text, |out| {
                        EnvelopeWriter::push(out, unix_ms).disconnect(code, &reason, reconnect, delay_ms);
                    });
                }
                ws::close(out, code, &text);
            });
        }
        self.list(key, FlushLine::Leaving);
        let Some(conn) = self.conns.get_mut(key) else { return };
        match then {
            Then::Linger => {
                conn.phase = Phase::Finishing { linger: true, late };
                self.discard_input(key);
            }
            Then::Await if !conn.receive_ended() => {}
            Then::Await | Then::Close => self.finish(key),
        }
    }

    /// Closing takes too long. A handler that is still waiting is given up once, so that the client gets the last words all
    /// the same; who does not take them either, or is owed a receipt that another shard does not give, is cut off.
    pub(super) fn give_up(&mut self, key: ConnKey) {
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !matches!(conn.phase, Phase::Settling(..)) || conn.receipts.is_some() {
            return self.retire(key, CloseReason::Internal);
        }
        conn.since = now;
        conn.parked = 0;
        self.executor.cancel(key);
        self.settle(key);
    }

    /// Nothing of what came or comes is looked at: what was held goes, and reading goes on where it had been paused. Else
    /// the socket would be closed with input in it, which destroys what is on its way to the peer.
    fn discard_input(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        self.inbound_bytes -= conn.take_held().map_or(0, |held| held.waiting_bytes());
        self.want_more(key);
    }

    /// Both sides have said their last: close when the queue has left.
    pub(super) fn finish(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Phase::Closing(late) = conn.phase {
            conn.phase = Phase::Finishing { linger: false, late };
            self.inbound_bytes -= conn.take_held().map_or(0, |held| held.waiting_bytes());
        }
        self.list(key, FlushLine::Leaving);
    }

    /// The queue of a finishing connection has left.
    pub(super) fn on_drained(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match conn.phase {
            Phase::Finishing { linger: true, late } if !conn.receive_ended() => {
                conn.phase = Phase::Lingering(late);
                conn.since = self.now.monotonic_ms() as u32;
                self.io.shutdown(key);
                self.reschedule(key);
            }
            Phase::Finishing { .. } => self.retire(key, CloseReason::Internal), // unless it has its reason
            _ => {}
        }
    }

    /// The end: gives back everything but the slot, which the kernel's last completion frees.
    pub(super) fn retire(&mut self, key: ConnKey, reason: CloseReason) {
        self.leave_client(key);
        self.forget_waiters(key);
        self.topics.unsubscribe_all(key, &mut self.conns);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if matches!(conn.phase, Phase::Gone) {
            return;
        }
        let reason = *conn.reason.get_or_insert(reason);
        self.count_drained(key, reason);
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.phase = Phase::Gone;
        self.inbound_bytes -= conn.inbound_bytes();
        if conn.intake.take().is_some_and(|intake| intake.inflater.is_some()) {
            self.inflaters -= 1;
        }
        self.shared.windows.leave(conn.deflate.take().map_or(0, Agreement::window_bits));
        let unsent = conn.outbound.clear(self.io.palette());
        self.metrics.dropped[Drop::Closed as usize].add(unsent);
        if let Some(session) = self.sessions.get(key.slot) {
            self.metrics.lifetime.observe(self.now.unix_ms.saturating_sub(session.since()));
        }
        self.end_session(key, reason, unsent);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.identity.take().is_some() {
            self.metrics.authenticated.set(self.metrics.authenticated.get() - 1);
        }
        self.receipts.detach(&mut conn.receipts);
        if std::mem::take(&mut conn.parked) > 0 {
            self.executor.cancel(key);
        }
        self.wheel.cancel(key.slot);
        self.metrics.count_closed(reason);
        tracing::debug!(session = %self.session_id(key), reason = reason.label(), unsent, "closed");
        self.list(key, FlushLine::Leaving);
    }
}
