//! What was received and has to wait: for the connection's own queue or handlers to get shorter, for room on the bus, or
//! for the publishes before it to be answered.
//!
//! Law: nothing that follows overtakes what waits, and the connection is not read from meanwhile, unless it only waits for
//! its next share of a turn (`fair.rs`) and has sent little. Whoever waits for room that is shared stands in one line, in
//! order, and nobody takes more than a share at a time; who has not waited finds a part of the turn's publishes left. Nothing
//! but publishes waits for that room: a ping is answered whatever the bus does. Bound: one request, and what was on its
//! way when reading was paused, at most the shard's receive buffers.

use crate::app::envelope::Publish;
use crate::conn::{Conn, Deferred, Held, Phase, WaitsFor};
use crate::id::{ConnKey, MessageId, MessageIdRef};
use crate::io::Io;
use crate::metrics::CloseReason;

use super::Shard;
use super::settings::{READ_ON_BYTES, SHARE};

impl<I: Io> Shard<I> {
    /// Holds bytes behind what waits already, and stops reading, if anything waits at all.
    pub(super) fn hold(&mut self, key: ConnKey, rest: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if rest.is_empty() && conn.held().is_none() {
            return;
        }
        conn.hold().bytes.extend_from_slice(rest);
        self.inbound_bytes += rest.len();
        self.keep_waiting(key);
    }

    /// Finds a connection that has something held its line, if it is to stand in one, and stops reading: at once, unless it
    /// only waits for its share and has sent little.
    fn keep_waiting(&mut self, key: ConnKey) {
        if self.fair.has_stopped() && self.stand_in_line(key, WaitsFor::Share) {
            self.metrics.shares.add(1);
        }
        let Some(held) = self.conns.get(key).and_then(Conn::held) else { return };
        if held.waits_for != WaitsFor::Share || held.bytes.len() - held.from > READ_ON_BYTES {
            self.io.pause(key);
        }
        self.relieve(key);
    }

    /// Puts a subscribe request off until the publishes before it are answered.
    pub(super) fn hold_subscribe(&mut self, key: ConnKey, id: Option<MessageIdRef<'_>>, topic: &str) {
        let id = id.map(MessageId::from);
        self.defer(key, Deferred::Subscribe { id, topic: topic.into() });
    }

    /// Puts a publish off until it is its turn and there is room.
    pub(super) fn hold_publish(&mut self, key: ConnKey, id: Option<MessageIdRef<'_>>, request: &Publish<'_>) {
        let Publish { topic, data, key: of, exclude_self } = *request;
        let id = id.map(MessageId::from);
        let (topic, data, of) = (topic.into(), data.into(), of.map(Box::from));
        self.defer(key, Deferred::Publish { id, topic, data, of, exclude_self });
        self.metrics.bus_full.add(1);
        self.stand_in_line(key, WaitsFor::Room);
    }

    /// Whether a client's publish has to wait.
    pub(super) fn must_wait(&mut self) -> bool {
        self.share == 0 || !self.has_room_to_publish()
    }

    /// How many publishes each of those in line may make before the next has its turn: the fewer, the more there are, so that
    /// who has one to make waits for as many turns as there are connections, not publishes, before it.
    fn share_in_line(&self) -> u32 {
        let each = self.settings.outbound.frames_max / 4 / (self.held.len() as u32 + 1);
        each.clamp(1, SHARE)
    }

    /// Something that the connection's held messages were waiting for has changed: they are tried when it is their turn, not
    /// from within the handling of another message.
    pub(super) fn want_resume(&mut self, key: ConnKey) {
        self.stand_in_line(key, WaitsFor::Share);
    }

    /// Tries held messages again: those that wait for room while there is some, and those that wait for their share.
    pub(super) fn retry_held(&mut self) {
        self.serve_publishers();
        self.serve_line();
    }

    /// Those who have not waited find some of the turn's publishes left.
    fn serve_publishers(&mut self) {
        for _ in 0..self.held.len() {
            if self.budget.is_down_to_reserve() || !self.has_room_on_bus() {
                return;
            }
            let Some(key) = self.held.pop() else { return };
            self.serve(key, WaitsFor::Room, self.share_in_line());
        }
    }

    /// Whether held messages could be tried again now.
    pub(super) fn can_retry(&mut self) -> bool {
        self.fair.waiting() > 0 || (!self.held.is_empty() && self.has_room_on_bus())
    }

    /// Tries a connection's held messages again, if it has any.
    pub(super) fn resume(&mut self, key: ConnKey) {
        let must_wait = self.must_wait();
        let Some(conn) = self.conns.get_mut(key) else { return };
        let (is_open, owes) = (conn.is_open(), conn.receipts.is_some());
        let Some(held) = conn.held_mut() else { return };
        held.waits_for = WaitsFor::Itself;
        let waits = match held.request {
            _ if !is_open => false,
            Some(Deferred::Subscribe { .. }) => owes,
            Some(Deferred::Publish { .. }) if must_wait => {
                self.stand_in_line(key, WaitsFor::Room);
                return;
            }
            Some(Deferred::Publish { .. }) | None => self.is_full(key),
        };
        if waits {
            return;
        }
        let Some(held) = self.conns.get_mut(key).and_then(Conn::take_held) else { return };
        self.inbound_bytes -= held.waiting_bytes();
        let Held { request, mut bytes, from, .. } = *held;
        self.carry_out(key, request);
        if self.greeting(key).is_some() {
            self.shake_hands(key, &mut bytes[from..]);
            return self.go_on(key);
        }
        let taken = from + self.decode(key, &mut bytes[from..]);
        let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.is_listened_to()) else { return };
        if taken < bytes.len() {
            let mut from = taken;
            if from > bytes.len() / 2 {
                bytes.drain(..std::mem::take(&mut from)); // or what is read meanwhile would make it longer and longer
            }
            self.inbound_bytes += bytes.len();
            let held = conn.hold();
            // Whatever holds it now was put there just now, without bytes.
            (held.bytes, held.from) = (bytes, from);
        }
        self.go_on(key);
    }

    /// After held messages were tried again: reads on, if nothing is held any more.
    fn go_on(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get(key) else { return };
        match conn.phase {
            _ if conn.held().is_some() => self.keep_waiting(key),
            Phase::Finishing { .. } | Phase::Lingering(_) | Phase::Gone => {}
            Phase::Open if conn.receive_ended() => self.finish_silently(key, CloseReason::Lost),
            Phase::Handshake(_) if conn.receive_ended() => self.retire(key, CloseReason::Lost),
            _ => {
                self.want_more(key);
                self.reschedule(key); // it is pinged again
            }
        }
    }

    fn carry_out(&mut self, key: ConnKey, request: Option<Deferred>) {
        if !self.conns.get(key).is_some_and(|conn| conn.is_open()) {
            return;
        }
        match request {
            None => {}
            Some(Deferred::Subscribe { id, topic }) => {
                self.subscribe_to(key, id.as_ref().map(MessageId::borrow), &topic);
            }
            Some(Deferred::Publish { id, topic, data, of, exclude_self }) => {
                let request = Publish { topic: &topic, data: &data, key: of.as_deref(), exclude_self };
                self.publish_to(key, id.as_ref().map(MessageId::borrow), &request);
            }
        }
    }

    fn defer(&mut self, key: ConnKey, request: Deferred) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        debug_assert!(conn.held().is_none(), "what follows a held request is not decoded");
        let held = Held { request: Some(request), ..Held::default() };
        self.inbound_bytes += held.waiting_bytes();
        *conn.hold() = held;
    }
}
