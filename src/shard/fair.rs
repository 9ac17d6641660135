//! A turn is shared by all who send.
//!
//! Law: what little has arrived from one that does not wait already is worked on in the turn in which it arrives. Of one that
//! sent more than there was time for, the rest is held and waits in one line for its next share; that line has a part of each
//! turn, and each in it a part of that. So a turn ends soon whatever is sent, and who sends little never waits for those
//! who send much. (The new and the old flows of FQ-CoDel, RFC 8290 §4.2, with time for bytes.)
//!
//! A single message is never cut: a turn is longer than its time by at most the longest one.

use crate::conn::{Conn, ConnPool, Phase, WaitsFor};
use crate::fixed::Line;
use crate::id::ConnKey;
use crate::io::Io;

use super::Shard;
use super::settings::SHARE;

/// Who has a share of this turn, and how much of it is left.
#[derive(Debug, Default)]
pub(super) struct Fairness {
    /// Those whose held bytes wait for their share.
    line: Line<ConnKey>,
    /// Until when the line is served.
    line_until_ns: u64,
    /// Until when what arrives is worked on however much it is.
    turn_until_ns: u64,
    /// Until when the connection at hand goes on.
    until_ns: u64,
    /// What it may do until the clock is looked at.
    unwatched: u32,
    /// It has had its share, and there is more of it.
    is_stopped: bool,
}

impl Fairness {
    pub(super) fn begin_turn(&mut self, now_ns: u64) {
        self.line_until_ns = now_ns + LINE_NS;
        self.turn_until_ns = now_ns + TURN_NS;
    }

    /// What was just done may have taken long: the clock is looked at before the next.
    #[inline]
    pub(super) fn watch(&mut self) {
        self.unwatched = 0;
    }

    /// What was just done is bounded otherwise: it does not count.
    #[inline]
    pub(super) fn pass_over(&mut self) {
        self.unwatched += 1;
    }

    /// Whether the connection at hand had to stop where it might have gone on.
    pub(super) fn has_stopped(&self) -> bool {
        self.is_stopped
    }

    fn grant(&mut self, until_ns: u64) {
        (self.until_ns, self.unwatched, self.is_stopped) = (until_ns, UNWATCHED, false);
    }

    pub(super) fn waiting(&self) -> usize {
        self.line.len()
    }
}

impl<I: Io> Shard<I> {
    /// Gives whoever has just sent something its share; `false` if that has to wait, since the turn is late and it is not
    /// little.
    pub(super) fn share_arrival(&mut self, is_little: bool) -> bool {
        let until_ns = self.fair.turn_until_ns;
        self.fair.grant(until_ns);
        self.fair.is_stopped = !is_little && self.io.clock_ns() >= until_ns;
        !self.fair.is_stopped
    }

    /// Whether the connection at hand may go on: asked before each message.
    #[inline]
    pub(super) fn may_go_on(&mut self) -> bool {
        if self.fair.unwatched == 0 {
            if self.io.clock_ns() >= self.fair.until_ns {
                self.fair.is_stopped = true;
                return false;
            }
            self.fair.unwatched = UNWATCHED;
        }
        self.fair.unwatched -= 1;
        true
    }

    /// Puts a connection that has something held at the end of one of the lines; `false` if it stands in one already.
    pub(super) fn stand_in_line(&mut self, key: ConnKey, what: WaitsFor) -> bool {
        let Some(held) = self.conns.get_mut(key).and_then(Conn::held_mut) else { return false };
        if held.waits_for != WaitsFor::Itself {
            return false;
        }
        held.waits_for = what;
        let line = match what {
            WaitsFor::Itself => return false,
            WaitsFor::Share => &mut self.fair.line,
            WaitsFor::Room => &mut self.held,
        };
        let conns = &self.conns;
        line.push(key, conns.len(), |key| waits_for(conns, key) == Some(what));
        true
    }

    /// Gives the next in a line its share of the turn, in which it may make so many publishes; something of it is worked on in
    /// any case. False if it has gone.
    pub(super) fn serve(&mut self, key: ConnKey, what: WaitsFor, publishes: u32) -> bool {
        let waits = waits_for(&self.conns, key) == Some(what);
        if waits {
            self.share = publishes;
            let until_ns = self.fair.line_until_ns.min(self.io.clock_ns() + SHARE_NS);
            self.fair.grant(until_ns);
            self.resume(key);
        }
        waits
    }

    /// Serves the line: one at least, and each that is there now at most once.
    pub(super) fn serve_line(&mut self) {
        for _ in 0..self.fair.line.len() {
            let Some(key) = self.fair.line.pop() else { return };
            let publishes = if self.held.is_empty() { SHARE } else { 0 }; // publishers have a line of their own
            if self.serve(key, WaitsFor::Share, publishes) && self.io.clock_ns() >= self.fair.line_until_ns {
                return;
            }
        }
    }
}

/// Whether so many bytes just received are little work: they may end a message of which the most has come before, or inflate
/// to many times as many, and a newcomer's request takes much work however short it is.
pub(super) fn is_little(conn: &Conn, bytes: usize) -> bool {
    let gathered = conn.intake.as_ref().map_or(0, |intake| intake.decoder.held_bytes());
    let few = if conn.deflate.is_some() { FEW_DEFLATED_BYTES } else { FEW_BYTES };
    !matches!(conn.phase, Phase::Handshake(_)) && bytes + gathered <= few
}

/// What the connection's held bytes wait for, if it has some.
fn waits_for(conns: &ConnPool, key: ConnKey) -> Option<WaitsFor> {
    conns.get(key)?.held().map(|held| held.waits_for)
}

/// Until when a turn works on whatever arrives; later, on what is little. Whoever arrives meanwhile waits for a turn, so it is as
/// short as it may be: what a turn costs beside, to enter the kernel and look at everything once, is some 5 µs.
const TURN_NS: u64 = 100_000;
/// The line's part of a turn.
const LINE_NS: u64 = TURN_NS / 2;
/// The most that one in the line goes on for.
const SHARE_NS: u64 = LINE_NS / 2;
/// What is worked on even in a turn that is late: a message that people write, or some.
const FEW_BYTES: usize = 1024;
/// The same where messages are compressed.
const FEW_DEFLATED_BYTES: usize = 128;
/// Echoes, pings and parts of messages between two looks at the clock.
const UNWATCHED: u32 = 8;
