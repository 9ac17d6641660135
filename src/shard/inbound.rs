//! From received bytes to commands and handlers.
//!
//! Law: a message is decoded only when everything it may need has room: on the bus, among the receipts, in the
//! connection's own queue. If not, its bytes are held, the connection is not read from, and the message is tried again.

use crate::conn::{Endpoint, Held, Phase};
use crate::id::{ConnKey, MessageId, MessageIdRef};
use crate::io::{Io, Lost};
use crate::metrics::{CloseReason, ErrorCode};
use crate::ws::{self, Event, Input, Opcode};

use super::Shard;
use super::settings::PARKED_PER_CONN_MAX;

/// Whether a connection's next message may be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// Nothing of it is of interest any more.
    Shut,
    /// The bus or the receipts are full: shared with others, tried again every turn.
    FullBus,
    /// Its own queue or its own handlers are full: tried again when those get shorter.
    FullOwn,
}

impl<I: Io> Shard<I> {
    pub(super) fn on_received(&mut self, key: ConnKey, mut bytes: I::Buffer, armed: bool) {
        self.metrics.bytes_in.add(bytes.len() as u64);
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.heard = now;
        conn.awaiting_pong = false;
        if !armed {
            self.want_more(key);
        }
        self.on_bytes(key, &mut bytes);
    }

    fn on_bytes(&mut self, key: ConnKey, bytes: &mut [u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match &mut conn.phase {
            Phase::Open | Phase::Settling(_) | Phase::Closing => match &mut conn.held {
                // Reading was paused, but these were on their way: at most what the receive buffers hold.
                Some(held) => held.bytes.extend_from_slice(bytes),
                None => self.on_frames(key, bytes),
            },
            Phase::Handshake(_) => self.shake_hands(key, bytes),
            Phase::Finishing { .. } | Phase::Lingering | Phase::Gone => {}
        }
    }

    /// Decodes what the bytes hold and acts on each message.
    pub(super) fn on_frames(&mut self, key: ConnKey, bytes: &mut [u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        // Out of the connection meanwhile: an event borrows the decoder while commands change the connection.
        let mut decoder = std::mem::take(&mut conn.decoder);
        let limits = self.settings.messages;
        let mut input = Input::new(bytes);
        loop {
            match self.gate(key) {
                Gate::Shut => break,
                full @ (Gate::FullBus | Gate::FullOwn) if !input.is_empty() => {
                    self.hold(key, input.rest(), full);
                    break;
                }
                _ => {}
            }
            match decoder.next(&mut input, &limits) {
                Ok(Some(event)) => self.on_event(key, event),
                Ok(None) => break,
                Err(error) => {
                    self.on_protocol_error(key, error);
                    break;
                }
            }
        }
        if self.gate(key) != Gate::Shut
            && let Some(conn) = self.conns.get_mut(key)
        {
            conn.decoder = decoder;
        }
    }

    fn on_event(&mut self, key: ConnKey, event: Event<'_>) {
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        match event {
            Event::Close(close) => self.on_peer_close(key, close.map(|close| close.code)),
            // It is closing: nothing but the peer's close frame is of interest.
            _ if !conn.is_open() => {}
            Event::Pong(_) => {}
            Event::Ping(payload) => {
                conn.active = now;
                conn.outbound.control(self.io.palette(), now, |out| ws::frame(out, Opcode::Pong, payload));
                self.mark_dirty(key);
            }
            Event::Text(bytes) => {
                conn.active = now;
                match conn.endpoint {
                    Endpoint::Native => self.on_message(key, bytes),
                    Endpoint::Echo => self.echo(key, Opcode::Text, bytes),
                }
            }
            Event::Binary(bytes) => {
                conn.active = now;
                match conn.endpoint {
                    Endpoint::Native => self.on_binary_message(key, bytes),
                    Endpoint::Echo => self.echo(key, Opcode::Binary, bytes),
                }
            }
        }
    }

    /// A binary frame carries the same JSON as a text frame, so it must be UTF-8 too.
    fn on_binary_message(&mut self, key: ConnKey, bytes: &mut [u8]) {
        if simdutf8::basic::from_utf8(bytes).is_ok() {
            return self.on_message(key, bytes);
        }
        self.metrics.messages_in.add(1);
        self.fault(key, ErrorCode::InvalidMessage, "a binary message must be JSON in UTF-8", None);
    }

    fn echo(&mut self, key: ConnKey, opcode: Opcode, bytes: &[u8]) {
        self.metrics.messages_in.add(1);
        self.metrics.messages_out.add(1);
        let now = self.ms();
        if let Some(conn) = self.conns.get_mut(key) {
            conn.outbound.reply(self.io.palette(), now, |out| ws::frame(out, opcode, bytes));
            self.mark_dirty(key);
        }
    }

    fn gate(&mut self, key: ConnKey) -> Gate {
        let Some(conn) = self.conns.get_mut(key) else { return Gate::Shut };
        match conn.phase {
            Phase::Open => {}
            Phase::Settling(_) | Phase::Closing => return Gate::Open,
            _ => return Gate::Shut,
        }
        if conn.held.is_some() {
            return Gate::FullOwn;
        }
        let waiting = conn.outbound.bytes() + conn.receipts.map_or(0, |newest| self.receipts.waiting(newest));
        if waiting >= self.settings.outbound.bytes_max as usize || conn.parked >= PARKED_PER_CONN_MAX {
            Gate::FullOwn
        } else if !self.bus.has_room() || !self.receipts.has_room() {
            Gate::FullBus
        } else {
            Gate::Open
        }
    }

    fn hold(&mut self, key: ConnKey, rest: &[u8], full: Gate) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.held.get_or_insert_default().bytes.extend_from_slice(rest);
        self.io.pause(key);
        if full == Gate::FullBus {
            self.metrics.bus_full.add(1);
            self.want_resume(key);
        }
    }

    /// Tries held messages again in the next turn: not from within the handling of another message.
    pub(super) fn want_resume(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !conn.retrying {
            conn.retrying = true;
            self.held.push(key);
        }
    }

    /// Puts a subscribe request off until the publishes before it are answered: its ack must come after theirs, and no
    /// message of the topic before its ack. What follows it is put off too.
    pub(super) fn hold_subscribe(&mut self, key: ConnKey, id: Option<MessageIdRef<'_>>, topic: &str) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let subscribe = Some((id.map(MessageId::from), topic.into()));
        conn.held = Some(Box::new(Held { subscribe, bytes: Vec::new() }));
        self.io.pause(key);
    }

    /// Tries held messages again whose room is shared with others.
    pub(super) fn retry_held(&mut self) {
        for key in std::mem::take(&mut self.held) {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            conn.retrying = false;
            self.resume(key);
        }
    }

    /// Tries a connection's held messages again, if it has any.
    pub(super) fn resume(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.held.as_ref().is_some_and(|held| held.subscribe.is_some()) && conn.receipts.is_some() {
            return;
        }
        let Some(held) = conn.held.take() else { return };
        let Held { subscribe, mut bytes } = *held;
        if let Some((id, topic)) = subscribe
            && conn.is_open()
        {
            self.subscribe_to(key, id.as_ref().map(MessageId::borrow), &topic);
        }
        self.on_frames(key, &mut bytes);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.held.is_some() {
            return;
        }
        match conn.phase {
            Phase::Open if conn.receive_ended => self.finish_silently(key, CloseReason::Lost),
            _ => {
                self.want_more(key);
                self.reschedule(key); // it is pinged again
            }
        }
    }

    /// Reads from the connection again at the end of the turn, when the buffers of this turn are back.
    pub(super) fn want_more(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !conn.rearming {
            conn.rearming = true;
            self.rearm.push(key);
        }
    }

    pub(super) fn on_receive_stopped(&mut self, key: ConnKey, starved: bool) {
        if starved {
            self.metrics.starved.add(1);
        }
        self.want_more(key);
    }

    pub(super) fn on_receive_ended(&mut self, key: ConnKey, lost: Lost) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.receive_ended = true;
        match (lost, &conn.phase) {
            (_, Phase::Gone) => {}
            (Lost::Broken(_), _) | (Lost::EndOfStream, Phase::Handshake(_) | Phase::Lingering) => {
                self.retire(key, CloseReason::Lost);
            }
            // The peer has only ended its own side: what is owed and queued still goes out.
            (Lost::EndOfStream, Phase::Open) if conn.held.is_none() => self.finish_silently(key, CloseReason::Lost),
            (Lost::EndOfStream, Phase::Closing) => self.finish(key),
            (Lost::EndOfStream, Phase::Open | Phase::Settling(_) | Phase::Finishing { .. }) => {}
        }
    }
}
