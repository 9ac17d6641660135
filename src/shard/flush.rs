//! The end of the turn: one send for each connection that has something to say, or for as many of them as there is time for.
//! Law: whatever is queued for a connection when it is flushed leaves together. A send is the kernel's work at once, and
//! takes longer than everything else that is done for a message; so a turn makes a bounded number of them, first for those
//! who get something of their own: a message to a hundred thousand holds up nobody's answer. Until a crowd is flushed
//! publishes have what was left of their budget (`refill`), so no queue gets longer for it.

use std::io;

use crate::conn::{Flow, FlushLine, Phase};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::CloseReason;
use crate::ws::message::CONTROL_BYTES_MAX;

use super::Shard;
use super::closing::Goodbye;
use super::settings::CONNS_A_TURN;

impl<I: Io> Shard<I> {
    /// The connection has something to flush, or is to be finished or closed.
    pub(super) fn list(&mut self, key: ConnKey, line: FlushLine) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        self.unflushed.add(key.slot, conn, line);
    }

    pub(super) fn flush(&mut self) {
        self.flush_line(FlushLine::Own, OWN_A_TURN);
        self.flush_line(FlushLine::Crowd, CROWD_A_TURN);
        self.flush_leaving();
        self.gather.reset(self.io.palette());
    }

    /// Few of those who leave in one turn, since each is a send and a close; many where that has taken long. Turns are slow
    /// where very many threads share a core, and hundreds of them would be longer than a close may take: who leaves would be
    /// cut off without the answer to its close.
    fn flush_leaving(&mut self) {
        let now_ms = self.now.monotonic_ms();
        let is_late = self.leaving_since_ms.is_some_and(|since_ms| now_ms >= since_ms + LEAVING_MS);
        self.flush_line(FlushLine::Leaving, if is_late { CONNS_A_TURN as usize } else { LEAVING_A_TURN });
        if self.unflushed.len(FlushLine::Leaving) == 0 {
            self.leaving_since_ms = None;
        } else if is_late || self.leaving_since_ms.is_none() {
            self.leaving_since_ms = Some(now_ms);
        }
    }

    /// Flushes a line until `left` sends have been made. What finishing connections add meanwhile stays for the next turn.
    fn flush_line(&mut self, line: FlushLine, mut left: usize) {
        for _ in 0..self.unflushed.len(line) {
            if left == 0 {
                return;
            }
            let Some(slot) = self.unflushed.next(line) else { return };
            let Some(key) = self.conns.key_of(slot) else { continue };
            let Some(conn) = self.conns.get_mut(key) else { continue };
            if !conn.unflushed.take(line) {
                continue; // it is not the one that was put in line, which has gone
            }
            if matches!(conn.phase, Phase::Gone) {
                // In another line it may still stand for what it was sent before.
                if line == FlushLine::Leaving {
                    self.io.close(key);
                    left -= 1;
                }
                continue;
            }
            if !conn.outbound.is_empty() {
                self.metrics.queue_frames.observe(conn.outbound.depth() as u64);
                self.metrics.queue_bytes.observe(conn.outbound.bytes() as u64);
            }
            if let Some(part) = conn.outbound.next_send(self.io.palette(), &mut self.gather) {
                left = left.saturating_sub(1 + conn.outbound.bytes() / BYTES_LIKE_A_SEND);
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
    }

    pub(super) fn on_sent(&mut self, key: ConnKey, sent: Result<u32, io::ErrorKind>) {
        let now = self.ms();
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
        if bytes > CONTROL_FRAME_BYTES_MAX {
            conn.active = now; // no ping: a message, which may have been on its way for long
        }
        let more = !conn.outbound.is_empty() || matches!(conn.phase, Phase::Finishing { .. });
        let held = conn.held().is_some();
        if !more && matches!(conn.phase, Phase::Closing(_)) {
            // The close frame has left: from now on the peer's is awaited.
            conn.since = now;
            self.reschedule(key);
        }
        if more {
            self.list(key, FlushLine::Own);
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

/// Sends of a turn to those who get something of their own: some 2 ms of the kernel's time.
const OWN_A_TURN: usize = 256;
/// Sends of a turn to a crowd, 1 ms: a turn beside costs some microseconds.
pub(super) const CROWD_A_TURN: usize = 128;
/// Those who leave in a turn, at first: 1 ms.
pub(super) const LEAVING_A_TURN: usize = 64;
/// After how long there are [`CONNS_A_TURN`] of them.
pub(super) const LEAVING_MS: u64 = 100;
/// Of a server: no mask.
const CONTROL_FRAME_BYTES_MAX: u32 = 2 + CONTROL_BYTES_MAX as u32;
/// To copy so much takes the kernel about as long as a send beside.
const BYTES_LIKE_A_SEND: usize = 32 * 1024;
