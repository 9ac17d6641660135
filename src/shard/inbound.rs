//! From received bytes to commands and handlers.
//!
//! Law: a message is decoded only when its reply has room in the connection's own queue. If not, its bytes are held and
//! the connection is not read from (see `held.rs`).

use std::io::ErrorKind;

use crate::conn::{Conn, ConnPool, Endpoint, Flow, FlushLine, Phase, Ping, Receiving, Then};
use crate::contain::contain;
use crate::id::ConnKey;
use crate::io::{Io, Lost};
use crate::metrics::{CloseReason, ErrorCode};
use crate::tls::Bytes;
use crate::ws::{self, Decoder, Event, Extensions, Input, Limits, Opcode};

use super::Shard;
use super::closing::Goodbye;
use super::codecs::Failed;
use super::fair;
use super::reload::slice;
use super::settings::{LATE_BYTES, PARKED_PER_CONN_MAX, SHARE, Settings};

/// Whether a connection's next message may be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// Nothing of it is of interest any more.
    Shut,
    /// What came before it waits, or its replies have no room.
    Full,
}

impl<I: Io> Shard<I> {
    pub(super) fn on_received(&mut self, key: ConnKey, mut bytes: Bytes<I::Buffer>, armed: bool) {
        self.metrics.bytes_in.add(bytes.len() as u64);
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.heard = now;
        conn.count_late(bytes.len());
        let spilled = conn.traffic.add(Flow::BytesIn, bytes.len() as u32);
        if let Some(spilled) = spilled {
            self.sessions.spill(key.slot, Flow::BytesIn, spilled);
        }
        if is_too_late(conn, &self.settings) {
            return self.io.pause(key);
        }
        let is_little = fair::is_little(conn, bytes.len());
        if conn.ping == Ping::Awaited {
            conn.ping = Ping::Heard;
            self.reschedule(key); // the next ping may be due before the pong would have been
        }
        if !armed {
            self.want_more(key);
        }
        self.share = if self.held.is_empty() { SHARE } else { 1 };
        let has_share = self.share_arrival(is_little);
        let Some(conn) = self.conns.get(key) else { return };
        match conn.phase {
            Phase::Finishing { .. } | Phase::Lingering(_) | Phase::Gone => {}
            // Nothing overtakes what is held.
            _ if !has_share || conn.held().is_some() => self.hold(key, &bytes),
            Phase::Open | Phase::Settling(..) | Phase::Closing(_) => self.on_frames(key, &mut bytes),
            Phase::Handshake(_) => self.shake_hands(key, &mut bytes),
        }
    }

    /// Decodes what has just arrived, and holds what may not be decoded yet.
    pub(super) fn on_frames(&mut self, key: ConnKey, bytes: &mut [u8]) {
        let taken = self.decode(key, bytes);
        self.hold(key, &bytes[taken..]);
    }

    /// Decodes and acts on one message after the other; returns how many bytes are done with.
    pub(super) fn decode(&mut self, key: ConnKey, bytes: &mut [u8]) -> usize {
        let len = bytes.len();
        let Some(conn) = self.conns.get_mut(key) else { return len };
        // Out of the connection meanwhile: an event borrows the decoder while commands change the connection.
        let mut decoder = conn.intake.as_mut().map(|intake| std::mem::take(&mut intake.decoder)).unwrap_or_default();
        self.inbound_bytes -= decoder.held_bytes();
        let extensions = if conn.deflate.is_some() { Extensions::DEFLATE } else { Extensions::NONE };
        let limits = Limits { extensions, ..self.settings.messages };
        let mut memory = std::mem::take(&mut self.gathered);
        let mut input = Input::with_memory(bytes, &mut memory);
        while !input.is_empty() {
            match self.gate(key) {
                Gate::Open => {}
                Gate::Full => break,
                Gate::Shut => {
                    self.gathered = memory;
                    return len;
                }
            }
            if !self.may_go_on() {
                break;
            }
            // The decoder is out of the connection, and ends with its panic.
            let outcome = match contain(|| decoder.next(&mut input, &limits)) {
                Ok(Ok(Some(Event::Deflated { opcode, payload }))) => self.on_deflated(key, opcode, payload),
                Ok(Ok(Some(event))) => {
                    self.on_event(key, event, 0);
                    Ok(())
                }
                Ok(Ok(None)) => break,
                Ok(Err(error)) => Err(Failed::Peer(error)),
                Err(panic) => Err(Failed::Panic(panic)),
            };
            if let Err(failed) = outcome {
                decoder = Decoder::ended();
                match failed {
                    Failed::Peer(error) => self.on_protocol_error(key, error),
                    Failed::Panic(panic) => self.fail(key, &panic),
                }
                break;
            }
        }
        let (taken, short_fragments) = (len - input.rest().len(), input.short_fragments());
        decoder.settle_into(Some(&mut memory));
        self.gathered = memory;
        self.count_frames(key, short_fragments);
        match self.conns.get_mut(key) {
            Some(conn) if conn.is_listened_to() => {
                if !decoder.is_idle() {
                    self.inbound_bytes += decoder.held_bytes();
                    conn.intake.get_or_insert_default().decoder = decoder;
                    self.relieve(key);
                }
                taken
            }
            _ => len,
        }
    }

    /// A message counts for at least `cost` bytes in its connection's rates.
    pub(super) fn on_event(&mut self, key: ConnKey, event: Event<'_>, cost: usize) {
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        let endpoint = conn.endpoint;
        match event {
            Event::Close(close) => self.on_peer_close(key, close.map(|close| close.code)),
            // It is closing: nothing but the peer's close frame is of interest.
            _ if !conn.is_open() => {}
            Event::Pong(payload) => {
                if !self.on_pong(key, payload) {
                    self.count_frames(key, 1);
                }
            }
            Event::Deflated { .. } => {} // is inflated first, and comes as what it is then
            Event::Ping(payload) => {
                // One now and then is within any rate, and leaves nothing behind.
                let is_lone = conn.intake.is_none() && self.settings.rates.is_apart(now.wrapping_sub(conn.active));
                conn.active = now;
                conn.outbound.control(self.io.palette(), now, |out| ws::frame(out, Opcode::Pong, payload));
                self.list(key, FlushLine::Own);
                self.count_frames(key, u32::from(!is_lone));
            }
            Event::Text(bytes) => {
                conn.active = now;
                self.count_flow(key, Flow::MessagesIn, 1);
                match endpoint {
                    Endpoint::Native if !self.is_within_rates(key, bytes, cost) => {}
                    Endpoint::Native => self.on_message(key, bytes),
                    Endpoint::Echo => self.echo(key, Opcode::Text, bytes),
                }
            }
            Event::Binary(bytes) => {
                conn.active = now;
                self.count_flow(key, Flow::MessagesIn, 1);
                match endpoint {
                    Endpoint::Native if !self.is_within_rates(key, bytes, cost) => {}
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
            let (codecs, deflate) = (&mut self.codecs, conn.deflate);
            conn.outbound.reply_of(self.io.palette(), now, bytes.len() + ws::encoder::HEADER_BYTES_MAX, |out| {
                codecs.frame_of(out, opcode, deflate, |out| out.extend_from_slice(bytes));
            });
            self.count_flow(key, Flow::MessagesOut, 1);
            self.list(key, FlushLine::Own);
        }
    }

    fn gate(&mut self, key: ConnKey) -> Gate {
        let Some(conn) = self.conns.get(key).filter(|conn| conn.is_listened_to()) else { return Gate::Shut };
        let (is_open, is_held) = (conn.is_open(), conn.held().is_some());
        match is_open && (is_held || self.is_full(key)) {
            true => Gate::Full,
            false => Gate::Open,
        }
    }

    /// Whether the connection's replies or handlers have reached their bound.
    pub(super) fn is_full(&mut self, key: ConnKey) -> bool {
        let waiting = self.waiting_bytes(key);
        waiting >= self.settings.outbound.bytes_max as usize
            || (waiting > 0 && self.io.palette().live_bytes() > self.outbound_bytes_max())
            || self.conns.get(key).is_some_and(|conn| conn.parked >= PARKED_PER_CONN_MAX)
    }

    /// Where what was received of all connections and waits is too much, closes whoever has most of it of those that are looked
    /// at. Its part is given back at once.
    pub(super) fn relieve(&mut self, key: ConnKey) {
        if self.inbound_bytes <= Settings::part(self.settings.unfinished_bytes_max, self.shared.shards) {
            return;
        }
        let (looked_at, rest) = slice(self.relieve_from, self.conns.slots());
        self.relieve_from = rest.unwrap_or_default();
        let bytes = |key: &ConnKey| {
            let conn = self.conns.get(*key).filter(|conn| conn.is_open());
            conn.map_or(0, Conn::inbound_bytes)
        };
        let holders = looked_at.filter_map(|slot| self.conns.key_of(slot)).chain([key]);
        let Some(most) = holders.max_by_key(bytes).filter(|most| bytes(most) > 0) else { return };
        let Some(conn) = self.conns.get_mut(most) else { return };
        self.inbound_bytes -= conn.inbound_bytes();
        if let Some(intake) = &mut conn.intake {
            intake.held = None;
            intake.decoder = Decoder::ended();
        }
        self.inbound_bytes += conn.inbound_bytes();
        let goodbye = Goodbye::new(CloseReason::Overload, 1013, "too much waits to be worked on; connect again later");
        self.part(most, Goodbye { then: Then::Linger, ..goodbye });
    }

    /// This shard's part of what may wait to be sent.
    fn outbound_bytes_max(&self) -> usize {
        Settings::part(self.settings.outbound_bytes_max, self.shared.shards)
    }

    /// Bytes that wait to be sent to the connection and may not be dropped.
    pub(super) fn waiting_bytes(&self, key: ConnKey) -> usize {
        let Some(conn) = self.conns.get(key) else { return 0 };
        conn.outbound.firm_bytes() + conn.receipts.map_or(0, |newest| self.receipts.waiting(newest))
    }

    /// Reads from the connection again at the end of the turn, when the buffers of this turn are back.
    pub(super) fn want_more(&mut self, key: ConnKey) {
        if self.begin_rearming(key) {
            self.rearm.push(key);
        }
    }

    /// Whether the connection was armed and is to be put on a list of those to be armed again.
    fn begin_rearming(&mut self, key: ConnKey) -> bool {
        let Some(conn) = self.conns.get_mut(key) else { return false };
        let was_armed = conn.receiving == Receiving::Armed;
        if was_armed {
            conn.receiving = Receiving::Rearming;
        }
        was_armed
    }

    pub(super) fn on_receive_stopped(&mut self, key: ConnKey, starved: bool) {
        if !starved {
            return self.want_more(key);
        }
        self.metrics.starved.add(1);
        if self.begin_rearming(key) {
            let conns = &self.conns;
            self.starved.push(key, conns.len(), |key| is_rearming(conns, key));
        }
    }

    pub(super) fn on_receive_ended(&mut self, key: ConnKey, lost: Lost) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.receiving = Receiving::Ended;
        match (lost, &conn.phase) {
            (_, Phase::Gone) => {}
            (Lost::Broken(ErrorKind::InvalidData), Phase::Handshake(_)) => self.retire(key, CloseReason::BadHandshake),
            (Lost::Broken(ErrorKind::InvalidData), _) => self.retire(key, CloseReason::Protocol),
            (Lost::EndOfStream, Phase::Handshake(_)) if conn.held().is_some() => {}
            (Lost::Broken(_), _) | (Lost::EndOfStream, Phase::Handshake { .. } | Phase::Lingering(_)) => {
                self.retire(key, CloseReason::Lost);
            }
            // The peer has only ended its own side: what is owed and queued still goes out.
            (Lost::EndOfStream, Phase::Open) if conn.held().is_none() => self.finish_silently(key, CloseReason::Lost),
            (Lost::EndOfStream, Phase::Closing(_)) => self.finish(key),
            (Lost::EndOfStream, Phase::Open | Phase::Settling(..) | Phase::Finishing { .. }) => {}
        }
    }
}

/// Whether the connection is to be read from again.
pub(super) fn is_rearming(conns: &ConnPool, key: ConnKey) -> bool {
    conns.get(key).is_some_and(|conn| conn.receiving == Receiving::Rearming)
}

/// Whether no more is read of a connection that is being closed: it has sent more than the message that was on its way and
/// frames around it, so its close frame is not awaited; or than little, where that is not awaited anyway.
pub(super) fn is_too_late(conn: &Conn, settings: &Settings) -> bool {
    let message_bytes = if conn.is_listened_to() { settings.messages.message_bytes_max } else { 0 };
    conn.late_bytes() as usize > message_bytes.saturating_add(LATE_BYTES)
}
