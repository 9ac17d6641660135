//! The connections of one thread of a load generator: dialed, upgraded, read, written, left.
//!
//! Law: a client has a number; its connection comes, is a WebSocket, and goes, and its part is told of each once. Who is
//! refused or not let in comes again when it was told to, or after a while that grows, a number of times. A connection has at
//! most one send in flight, and all that is written meanwhile leaves in the next one.

mod dial;
mod frames;
mod tls;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;

use super::Setup;
use super::counts::{Count, Counts};
use super::wire::{self, WireError};
use crate::fixed::SlotMap;
use crate::id::{ConnKey, ShardId};
use crate::io::bell::Bell;
use crate::io::uring::{ReceiveMode, Uring, UringConfig};
use crate::io::{Completion, FrameKey, Io, Wait};
use crate::ws::Opcode;

/// What the connections of one thread do. Every call may write, leave and dial through `lanes`.
pub(super) trait Part: Send {
    /// What is kept of each connection.
    type Client: Default + Send;
    /// What is left at the end.
    type Outcome: Send;

    /// A client is connected.
    fn opened(&mut self, lanes: &mut Lanes<Self::Client>, conn: ConnKey);
    /// A message has come, or a pong.
    fn message(&mut self, lanes: &mut Lanes<Self::Client>, conn: ConnKey, opcode: Opcode, payload: &[u8]);
    /// A connection that was open is over, and has been counted; its client was [ready](Lanes::ready) or not yet.
    fn ended(&mut self, lanes: &mut Lanes<Self::Client>, number: u32, was_ready: bool);
    /// Called once a turn: does what is due, and says when something is next, on the clock of [`Lanes::now_ns`].
    fn turn(&mut self, lanes: &mut Lanes<Self::Client>, stage: u32) -> Option<u64>;
    /// The end of the run.
    fn finish(self) -> Self::Outcome;
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// This side left, and the server answered its close frame.
    Left,
    /// This side dropped it without a word.
    Dropped,
    /// The server closed it with this code; 1005 if it gave none.
    Closed(u16),
    /// The server did not let it in.
    Refused { status: u16, retry_after_s: Option<u64> },
    /// It broke, or the server ended the stream without a close frame.
    Lost(ErrorKind),
    /// The server sent what it may not.
    Broken(WireError),
}

/// Many connections of one thread.
pub(super) struct Lanes<C> {
    io: Uring,
    lanes: SlotMap<Lane<C>>,
    /// Who dials when, the earliest first.
    wanted: BinaryHeap<Reverse<Wanted>>,
    /// Who has dialed and is not in the driver's table yet, in order.
    dialing: VecDeque<(Wanted, u64)>,
    /// Lanes whose handshake is not over.
    shaking: u32,
    /// Lanes that were written to and have no send in flight.
    dirty: Vec<ConnKey>,
    /// Lanes whose receive must be armed again.
    rearm: Vec<ConnKey>,
    /// Lanes that have the server's close frame, and until when it may end the stream; in order.
    parting: VecDeque<(u64, ConnKey)>,
    counts: Arc<Counts>,
    setup: Arc<Setup>,
    pace: Pace,
    /// The earliest moment of the next dial, where dials have a rate.
    pace_ns: u64,
    /// How many have dialed, for the choice of addresses.
    dialed: u64,
    now_ns: u64,
    masks: u64,
}

/// How fast clients of one thread come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Handshakes that have begun and not ended.
    pub(super) handshakes_at_once: u32,
    /// Connections that may begin in a second.
    pub(super) dials_per_second: Option<f64>,
}

/// A client that is to dial. Compared by when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    due_ns: u64,
    number: u32,
    attempt: u8,
}

struct Lane<C> {
    number: u32,
    attempt: u8,
    stage: Stage,
    /// It was open once.
    let_in: bool,
    is_ready: bool,
    sending: bool,
    paused: bool,
    pending: Option<FrameKey>,
    since_ns: u64,
    tls: Option<Box<ClientConnection>>,
    /// What is not whole yet.
    partial: Option<Box<Partial>>,
    end: Option<Box<End>>,
    client: C,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Shaking,
    Open,
    /// Its close frame has been sent; the server's, or the end of the stream, is awaited.
    Leaving,
    Closing,
}

#[derive(Default)]
struct Partial {
    /// A response or a frame, as far as it has come.
    bytes: Vec<u8>,
    /// A message of several frames.
    opcode: u8,
    message: Vec<u8>,
}

impl<C: Default> Lanes<C> {
    /// No connection yet.
    ///
    /// # Errors
    /// There is no ring or no memory.
    pub(super) fn new(setup: Arc<Setup>, counts: Arc<Counts>, pace: Pace, table: u32) -> io::Result<Self> {
        let io = Uring::new(UringConfig {
            table,
            buffers: BUFFERS,
            buffer_size: BUFFER_BYTES,
            mode: ReceiveMode::Recv,
            busy_poll: Duration::ZERO,
            listeners: Vec::new(),
            bells: Arc::from([Arc::new(Bell::new()?)]),
            shard: ShardId(0),
        })?;
        let now_ns = io.clock_ns();
        let mut lanes = Self {
            io,
            lanes: SlotMap::new(table),
            wanted: BinaryHeap::new(),
            dialing: VecDeque::new(),
            shaking: 0,
            dirty: Vec::new(),
            rearm: Vec::new(),
            parting: VecDeque::new(),
            counts,
            setup,
            pace,
            pace_ns: now_ns,
            dialed: 0,
            now_ns,
            masks: 0,
        };
        lanes.masks = lanes.io.random() | 1;
        Ok(lanes)
    }

    /// When this turn began, in nanoseconds of the process's clock.
    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// The clock at this moment.
    pub(super) fn clock_ns(&self) -> u64 {
        self.io.clock_ns()
    }

    /// 64 bits by chance.
    pub(super) fn random(&mut self) -> u64 {
        self.io.random()
    }

    /// The counters of this thread.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The connections there are.
    pub(super) fn conns(&self) -> Vec<ConnKey> {
        self.lanes.keys().collect()
    }

    /// The connection in a slot, if it is open: for walks around all of them.
    pub(super) fn open_at(&self, slot: u32) -> Option<ConnKey> {
        let conn = self.lanes.key_of(slot)?;
        self.lanes.get(conn).is_some_and(|lane| lane.stage == Stage::Open).then_some(conn)
    }

    /// Slots that were ever used.
    pub(super) fn slots(&self) -> u32 {
        self.lanes.slots()
    }

    /// What is kept of an open connection, and its client's number.
    pub(super) fn client(&mut self, conn: ConnKey) -> Option<(u32, &mut C)> {
        let lane = self.lanes.get_mut(conn).filter(|lane| lane.stage == Stage::Open)?;
        Some((lane.number, &mut lane.client))
    }

    /// A client has all that it needs to begin: counts it, and says how long it took since it dialed, in nanoseconds; `None` if
    /// it was ready before.
    pub(super) fn ready(&mut self, conn: ConnKey) -> Option<u64> {
        let now_ns = self.io.clock_ns();
        let lane = self.lanes.get_mut(conn).filter(|lane| lane.stage == Stage::Open && !lane.is_ready)?;
        lane.is_ready = true;
        self.counts.add(Count::Ready, 1);
        Some(now_ns.saturating_sub(lane.since_ns))
    }

    /// Whether a client has all that it needs.
    pub(super) fn is_ready(&self, conn: ConnKey) -> bool {
        self.lanes.get(conn).is_some_and(|lane| lane.is_ready)
    }

    /// Has a client connect, at this time or later.
    pub(super) fn want(&mut self, number: u32, due_ns: u64) {
        self.wanted.push(Reverse(Wanted { due_ns, number, attempt: 0 }));
    }

    /// Sends a message, or a control frame.
    pub(super) fn send(&mut self, conn: ConnKey, opcode: Opcode, payload: &[u8]) {
        let key = self.mask();
        self.write(conn, |out| wire::frame(out, opcode, payload, key));
    }

    /// Leaves politely: with a close frame.
    pub(super) fn leave(&mut self, conn: ConnKey) {
        let Some(lane) = self.lanes.get_mut(conn).filter(|lane| lane.stage == Stage::Open) else { return };
        lane.stage = Stage::Leaving;
        self.send(conn, Opcode::Close, &1000u16.to_be_bytes());
    }

    /// Leaves without a word.
    pub(super) fn drop_it(&mut self, conn: ConnKey) {
        self.end(conn, End::Dropped);
    }

    /// Stops reading from a connection, or reads on.
    pub(super) fn pause(&mut self, conn: ConnKey, paused: bool) {
        let Some(lane) = self.lanes.get_mut(conn).filter(|lane| lane.stage == Stage::Open) else { return };
        if lane.paused == paused {
            return;
        }
        lane.paused = paused;
        match paused {
            true => self.io.pause(conn),
            false => self.rearm.push(conn),
        }
    }

    /// Until when there is nothing to do here, if anything is due at all.
    pub(super) fn next_dial_ns(&self) -> Option<u64> {
        let due_ns = self.wanted.peek().map(|Reverse(wanted)| wanted.due_ns.max(self.pace_ns))?;
        (self.shaking() < self.pace.handshakes_at_once).then_some(due_ns)
    }

    /// One turn: waits, hands on what arrived, dials, sends what was written.
    ///
    /// # Errors
    /// The ring is broken, this machine lacks something, or a client was not let in again and again.
    pub(super) fn turn<P: Part<Client = C>>(&mut self, part: &mut P, wait: Wait) -> io::Result<()> {
        let wait = if self.dirty.is_empty() && self.rearm.is_empty() { wait } else { Wait::No };
        self.now_ns = self.io.wait(wait)?.monotonic_ns;
        while let Some(completion) = self.io.poll() {
            match completion {
                Completion::Received { conn, bytes, armed } => {
                    if !armed {
                        self.want_more(conn);
                    }
                    self.received(part, conn, &bytes);
                }
                Completion::ReceiveStopped { conn, .. } => self.want_more(conn),
                Completion::ReceiveEnded { conn, lost } => {
                    self.end(
                        conn,
                        match lost {
                            crate::io::Lost::EndOfStream => End::Lost(ErrorKind::UnexpectedEof),
                            crate::io::Lost::Broken(kind) => End::Lost(kind),
                        },
                    );
                }
                Completion::Sent { conn, sent } => {
                    let Some(lane) = self.lanes.get_mut(conn) else { continue };
                    lane.sending = false;
                    match sent {
                        Ok(_) if lane.pending.is_some() => self.dirty.push(conn),
                        Ok(_) => {}
                        Err(kind) => self.end(conn, End::Lost(kind)),
                    }
                }
                Completion::Accepted(socket) => self.adopt(socket)?,
                Completion::AcceptStopped(_) => self.no_place()?,
                Completion::Closed { conn } => self.closed(part, conn)?,
                Completion::Rang => {}
            }
        }
        while self.parting.front().is_some_and(|(until_ns, _)| *until_ns <= self.now_ns) {
            if let Some((_, conn)) = self.parting.pop_front() {
                self.end(conn, End::Dropped);
            }
        }
        self.dial()?;
        self.flush();
        Ok(())
    }

    fn shaking(&self) -> u32 {
        self.shaking + self.dialing.len() as u32
    }

    fn mask(&mut self) -> [u8; 4] {
        // Xorshift (Marsaglia 2003): masks need not be hard to guess here.
        self.masks ^= self.masks << 13;
        self.masks ^= self.masks >> 7;
        self.masks ^= self.masks << 17;
        (self.masks as u32).to_be_bytes()
    }

    /// A connection is over, for this reason unless there is one before it.
    fn end(&mut self, conn: ConnKey, end: End) {
        let Some(lane) = self.lanes.get_mut(conn).filter(|lane| lane.stage != Stage::Closing) else { return };
        lane.end.get_or_insert_with(|| Box::new(end));
        self.shaking -= u32::from(lane.stage == Stage::Shaking);
        lane.stage = Stage::Closing;
        (lane.partial, lane.tls) = (None, None);
        if let Some(frame) = lane.pending.take() {
            self.io.palette().release(frame);
        }
        self.io.close(conn);
    }

    fn closed<P: Part<Client = C>>(&mut self, part: &mut P, conn: ConnKey) -> io::Result<()> {
        let Some(lane) = self.lanes.remove(conn) else { return Ok(()) };
        let Lane { number, attempt, let_in, is_ready, end, .. } = lane;
        let end = end.map_or(End::Dropped, |end| *end);
        if !let_in {
            return self.again(number, attempt, &end);
        }
        let count = match end {
            End::Left | End::Dropped => Count::Left,
            End::Closed(_) => Count::Closed,
            _ => Count::Lost,
        };
        if count != Count::Left {
            self.counts.first_end.lock().get_or_insert_with(|| format!("client {number}: {end:?}"));
        }
        self.counts.add(count, 1);
        part.ended(self, number, is_ready);
        Ok(())
    }

    /// Adds bytes to what leaves next.
    fn write(&mut self, conn: ConnKey, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(lane) = self.lanes.get_mut(conn).filter(|lane| lane.stage != Stage::Closing) else { return };
        let palette = self.io.palette();
        let frame = *lane.pending.get_or_insert_with(|| {
            if !lane.sending {
                self.dirty.push(conn);
            }
            palette.open()
        });
        palette.append(frame, write).expect("nobody sends a pending frame");
    }

    fn want_more(&mut self, conn: ConnKey) {
        if self.lanes.get(conn).is_some_and(|lane| !lane.paused) {
            self.rearm.push(conn);
        }
    }

    fn flush(&mut self) {
        for conn in self.dirty.drain(..) {
            let Some(lane) = self.lanes.get_mut(conn).filter(|lane| lane.stage != Stage::Closing) else { continue };
            if let Some(frame) = lane.pending.take_if(|_| !lane.sending) {
                let frame = match &mut lane.tls {
                    None => frame,
                    Some(session) => match tls::seal(self.io.palette(), session, frame) {
                        None => continue,
                        Some(sealed) => sealed,
                    },
                };
                lane.sending = true;
                self.io.send(conn, frame, 0);
                self.io.palette().release(frame);
            }
        }
        // After the turn's buffers have been given back.
        for conn in self.rearm.drain(..) {
            if self.lanes.get(conn).is_some_and(|lane| lane.stage != Stage::Closing) {
                self.io.receive(conn);
            }
        }
    }
}

/// How long a server may take to end the stream behind its close frame.
const PARTING_NS: u64 = 1_000_000_000;
/// Receive buffers of a thread.
const BUFFERS: u16 = 512;
const BUFFER_BYTES: u32 = 4096;
