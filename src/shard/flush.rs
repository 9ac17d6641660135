//! The end of the turn: one send for each connection that has something to say.
//! Law: a slot is on the dirty list at most once; whatever was queued for a connection during the turn leaves together.

use std::io;

use crate::conn::{Flow, Phase};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::CloseReason;

use super::Shard;
use super::closing::Goodbye;

impl<I: Io> Shard<I> {
    /// The connection has something to flush, or may be finished.
    pub(super) fn mark_dirty(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(key.slot);
        }
    }

    pub(super) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for &slot in &dirty {
            let Some(key) = self.conns.key_of(slot) else { continue };
            let Some(conn) = self.conns.get_mut(key) else { continue };
            // Clear if the slot was listed for a connection that has gone since.
            if !std::mem::take(&mut conn.dirty) {
                continue;
            }
            if !conn.outbound.is_empty() {
                self.metrics.queue_frames.observe(conn.outbound.depth() as u64);
                self.metrics.queue_bytes.observe(conn.outbound.bytes() as u64);
            }
            if let Some(part) = conn.outbound.next_send(self.io.palette(), &mut self.gather) {
                self.metrics.sends.add(1);
                self.io.send(key, part.frame, part.from);
                if let Some(spilled) = conn.traffic.add(Flow::MessagesOut, self.gather.published) {
                    self.sessions.spill(key.slot, Flow::MessagesOut, spilled);
                }
            }
            if conn.outbound.watch(&self.settings.outbound).is_some() {
                self.reschedule(key);
            } else if conn.outbound.is_empty() && matches!(conn.phase, Phase::Finishing { .. }) {
                self.on_drained(key);
            }
        }
        self.gather.reset(self.io.palette());
        // What finishing connections added meanwhile stays for the next turn; the list keeps its memory.
        dirty.clear();
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    pub(super) fn on_sent(&mut self, key: ConnKey, sent: Result<u32, io::ErrorKind>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let bytes = match sent {
            Ok(bytes) => bytes,
            Err(_) => return self.retire(key, CloseReason::Lost),
        };
        self.metrics.bytes_out.add(u64::from(bytes));
        if let Some(spilled) = conn.traffic.add(Flow::BytesOut, bytes) {
            self.sessions.spill(key.slot, Flow::BytesOut, spilled);
        }
        if matches!(conn.phase, Phase::Gone) {
            let reason = conn.reason;
            return self.count_sent_late(reason, bytes);
        }
        if let Some(rest) = conn.outbound.on_sent(self.io.palette(), bytes) {
            self.metrics.sends.add(1);
            return self.io.send(key, rest.frame, rest.from);
        }
        let more = !conn.outbound.is_empty() || matches!(conn.phase, Phase::Finishing { .. });
        let held = conn.held().is_some();
        if !more && matches!(conn.phase, Phase::Closing) {
            // The close frame has left: from now on the peer's is awaited.
            conn.since = self.now.monotonic_ms() as u32;
            self.reschedule(key);
        }
        if more {
            self.mark_dirty(key);
        }
        if held {
            self.want_resume(key);
        }
        self.tell_drained(key);
    }

    /// Parts from subscribers whose queue refused a published frame: they have seen a prefix, never a gap.
    pub(super) fn part_from_slow(&mut self) {
        for slot in std::mem::take(&mut self.over) {
            let Some(key) = self.conns.key_of(slot) else { continue };
            self.part_slow(key, "the queue of messages for this client is full");
        }
    }

    pub(super) fn part_slow(&mut self, key: ConnKey, why: &str) {
        self.part(key, Goodbye::new(CloseReason::SlowConsumer, 4008, format!("slow consumer: {why}")));
    }
}
