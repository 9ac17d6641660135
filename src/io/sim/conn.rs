//! One adopted connection as a simulated kernel sees it: its receive, its send, its close.
//! Law: at most one of each is under way; bytes leave a frame only while it is as it was when its send began.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind};
use std::rc::Rc;

use super::buffer::{Buffer, Pool};
use super::dice::Dice;
use super::faults::Faults;
use super::stream::Stream;
use crate::id::ConnKey;
use crate::io::{Completion, FrameKey, Palette};

/// What the kernel needs of the world while it works.
pub(super) struct Surroundings<'a> {
    pub streams: &'a mut [Stream],
    pub dice: &'a mut Dice,
    pub faults: &'a Faults,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub key: ConnKey,
    pub descriptor: usize,
    pub stream: usize,
    pub receive: Receive,
    pub send: Option<Sending>,
    pub busy: Busy,
    pub phase: Phase,
    pub shut_down: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    Idle,
    /// `fresh` until the kernel has looked once: it takes a buffer before it looks for bytes.
    Armed {
        fresh: bool,
    },
    /// Armed, and a cancel is on its way.
    Pausing,
    /// Its last completion is posted, not polled.
    Over,
}

/// Sends that follow each other without a pause: the next is asked for in the turn that is told of the end of the one before.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// When the first of them was asked for.
    pub since_ns: u64,
    /// When the shard was told of the end of the last one that has ended.
    pub until_ns: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Sending {
    pub frame: FrameKey,
    from: usize,
    /// The frame's bytes when the send began, from `from` on.
    promised: Vec<u8>,
    taken: usize,
    /// `Sent` is posted, not polled.
    over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// The shard asked to close; operations are being cancelled.
    Closing,
    /// The descriptor is closed; `Closed` is not posted.
    Shut,
    /// `Closed` is posted, not polled.
    Over,
}

impl Conn {
    pub fn new(key: ConnKey, descriptor: usize, stream: usize) -> Self {
        let (receive, phase) = (Receive::Idle, Phase::Open);
        Self { key, descriptor, stream, receive, send: None, busy: Busy::default(), phase, shut_down: false }
    }

    pub fn is_busy(&self, stream: &Stream) -> bool {
        let receive = match self.receive {
            Receive::Armed { fresh } => fresh || stream.readable(),
            Receive::Pausing => true,
            Receive::Idle | Receive::Over => false,
        };
        let send = self.send.as_ref().is_some_and(|send| !send.over && (send.is_done() || stream.writable()));
        receive || send || matches!(self.phase, Phase::Closing | Phase::Shut)
    }

    /// An operation is with the kernel.
    pub fn has_operation(&self) -> bool {
        matches!(self.receive, Receive::Armed { .. } | Receive::Pausing) || self.send.as_ref().is_some_and(|s| !s.over)
    }

    /// A completion other than `Closed` is still to be polled.
    pub fn has_unpolled(&self) -> bool {
        self.receive != Receive::Idle || self.send.is_some()
    }

    /// Lets the receive, the send and the close make progress. Returns the descriptor once it is closed.
    pub fn work(
        &mut self,
        pool: &Rc<Pool>,
        palette: &Palette,
        ready: &mut VecDeque<Completion<Buffer>>,
        around: &mut Surroundings,
    ) -> Option<usize> {
        if around.dice.coin() {
            self.work_receive(pool, ready, around);
            self.work_send(palette, ready, around);
        } else {
            self.work_send(palette, ready, around);
            self.work_receive(pool, ready, around);
        }
        let mut closed = None;
        if self.phase == Phase::Closing && !self.has_operation() {
            around.streams[self.stream].close();
            closed = Some(self.descriptor);
            self.phase = Phase::Shut;
        }
        if self.phase == Phase::Shut && !around.dice.chance(around.faults.delay) {
            self.phase = Phase::Over;
            ready.push_back(Completion::Closed { conn: self.key });
        }
        closed
    }

    fn work_receive(&mut self, pool: &Rc<Pool>, ready: &mut VecDeque<Completion<Buffer>>, around: &mut Surroundings) {
        let fresh = match self.receive {
            Receive::Idle | Receive::Over => return,
            Receive::Armed { fresh } => fresh,
            Receive::Pausing => false,
        };
        let (dice, faults) = (&mut *around.dice, around.faults);
        let stream = &mut around.streams[self.stream];
        let conn = self.key;
        let cancelled = self.receive == Receive::Pausing || self.phase != Phase::Open;
        let starved = pool.free() == 0 || dice.chance(faults.starve);
        if starved && !cancelled && (fresh || stream.readable()) {
            self.receive = Receive::Over;
            return ready.push_back(Completion::ReceiveStopped { conn, starved: true });
        }
        // A cancel meets bytes that are already there: either may come first.
        let receives = if cancelled && !dice.chance(faults.late_cancel) { 0 } else { 1 + dice.below(RECEIVES_MAX) };
        let mut received = false;
        for _ in 0..receives {
            let there = stream.rx.len().min(pool.buffer_size());
            if there == 0 {
                break;
            }
            let count = if dice.chance(faults.short_read) { dice.part_of(there) } else { there };
            let Some(bytes) = pool.fill(&mut stream.rx, count) else { break };
            received = true;
            let armed = !dice.chance(faults.disarm);
            ready.push_back(Completion::Received { conn, bytes, armed });
            if !armed {
                self.receive = Receive::Over;
                return;
            }
        }
        if cancelled && (!received || dice.coin()) {
            self.receive = Receive::Over;
            return ready.push_back(Completion::ReceiveStopped { conn, starved: false });
        }
        if let Some(lost) = stream.lost() {
            self.receive = Receive::Over;
            return ready.push_back(Completion::ReceiveEnded { conn, lost });
        }
        if let Receive::Armed { fresh } = &mut self.receive {
            *fresh = false;
        }
    }

    fn work_send(&mut self, palette: &Palette, ready: &mut VecDeque<Completion<Buffer>>, around: &mut Surroundings) {
        let Some(send) = self.send.as_mut().filter(|send| !send.over) else { return };
        let (dice, faults) = (&mut *around.dice, around.faults);
        let stream = &mut around.streams[self.stream];
        if !stream.is_broken() && dice.chance(faults.send_fails) {
            stream.fault(dice);
        }
        if !send.is_done() && !stream.is_broken() {
            let room = (send.promised.len() - send.taken).min(stream.tx_room());
            if room > 0 {
                let count = if dice.coin() { room } else { dice.part_of(room) };
                send.transmit(count, palette, stream);
            }
        }
        let sent = if send.is_done() {
            if dice.chance(faults.delay) && self.phase == Phase::Open {
                return;
            }
            Ok(send.taken as u32)
        } else if send.taken > 0 && (stream.is_broken() || self.phase != Phase::Open || dice.chance(faults.short_send))
        {
            Ok(send.taken as u32)
        } else if stream.is_broken() {
            Err(stream.send_error())
        } else if self.phase != Phase::Open {
            Err(cancelled())
        } else {
            return;
        };
        send.check(palette);
        send.over = true;
        ready.push_back(Completion::Sent { conn: self.key, sent });
    }
}

impl Sending {
    /// A send of `bytes`, which are those of `frame` from `from` on.
    pub fn new(frame: FrameKey, from: usize, bytes: &[u8]) -> Self {
        Self { frame, from, promised: bytes.to_vec(), taken: 0, over: false }
    }

    fn is_done(&self) -> bool {
        self.taken == self.promised.len()
    }

    fn transmit(&mut self, count: usize, palette: &Palette, stream: &mut Stream) {
        let part = self.taken..self.taken + count;
        let bytes = palette.bytes(self.frame).get(self.from..).unwrap_or_default();
        assert!(bytes.get(part.clone()) == Some(&self.promised[part.clone()]), "{UNDER_SEND} ({:?})", self.frame);
        stream.transmit(&bytes[part]);
        self.taken += count;
    }

    /// The whole of what was lent, also what has been transmitted before or will be by the next send.
    fn check(&self, palette: &Palette) {
        let bytes = palette.bytes(self.frame).get(self.from..).unwrap_or_default();
        assert!(bytes == self.promised, "{UNDER_SEND} ({:?})", self.frame);
    }
}

/// What a cancelled operation ends with; `std` has no name for it.
fn cancelled() -> ErrorKind {
    Error::from_raw_os_error(libc::ECANCELED).kind()
}

const UNDER_SEND: &str = "a frame was written or freed under a send";
/// Receive completions of one connection in one visit, at most.
const RECEIVES_MAX: usize = 4;
