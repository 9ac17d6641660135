//! The connections of one thread of a load generator: dialed, upgraded, read, written, left.
//!
//! Law: a client has a number; its connection comes, is a WebSocket, and goes, and its part is told of each once. Who is
//! refused or not let in comes again when it was told to, or after a while that grows, a number of times. A connection has at
//! most one send in flight, and all that is written meanwhile leaves in the next one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Setup;
use super::counts::{Count, Counts};
use super::wire::{self, Answer, WireError};
use crate::fixed::SlotMap;
use crate::id::{ConnKey, ShardId};
use crate::io::bell::Bell;
use crate::io::dial::dial;
use crate::io::uring::{ReceiveMode, Uring, UringConfig};
use crate::io::{Completion, FrameKey, Io, Socket, Wait};
use crate::ws::Opcode;

/// What the connections of one thread do. Every call may write, leave and dial through `lanes`.
pub(super) trait Part: Send {
    /// What is kept of each connection.
    type Client: Default + Send;
    /// What is left at the end.
    type Outcome: Send;

    /// What a client proves who it is with; asked whenever it dials.
    fn token(&mut self, number: u32) -> Option<String>;
    /// A client is connected; `since_ns` is when it dialed.
    fn opened(&mut self, lanes: &mut Lanes<Self::Client>, conn: ConnKey, since_ns: u64);
    /// A message has come, or a pong.
    fn message(&mut self, lanes: &mut Lanes<Self::Client>, conn: ConnKey, opcode: Opcode, payload: &[u8]);
    /// A connection that was open is over, and has been counted.
    fn ended(&mut self, lanes: &mut Lanes<Self::Client>, number: u32, client: Self::Client);
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
    sending: bool,
    paused: bool,
    pending: Option<FrameKey>,
    since_ns: u64,
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
                Completion::Accepted(socket) => self.adopt(part, socket),
                Completion::AcceptStopped(error) => return Err(error),
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

    fn dial(&mut self) -> io::Result<()> {
        for _ in 0..DIALS_A_TURN {
            let Some(&Reverse(wanted)) = self.wanted.peek() else { return Ok(()) };
            if wanted.due_ns > self.now_ns || self.shaking() >= self.pace.handshakes_at_once {
                return Ok(());
            }
            if let Some(per_second) = self.pace.dials_per_second {
                if self.pace_ns > self.now_ns {
                    return Ok(());
                }
                self.pace_ns = self.pace_ns.max(self.now_ns.saturating_sub(PACE_SLACK_NS)) + (1e9 / per_second) as u64;
            }
            self.wanted.pop();
            let (from, to) = self.setup.ends(self.dialed);
            self.dialed += 1;
            let now_ns = self.io.clock_ns();
            match dial(from, to) {
                Ok(socket) => {
                    self.io.take(socket)?;
                    self.dialing.push_back((wanted, now_ns));
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.again(wanted.number, wanted.attempt, &End::Lost(error.kind()))?;
                }
                Err(error) => return Err(named(error, from, to)),
            }
        }
        Ok(())
    }

    fn adopt<P: Part<Client = C>>(&mut self, part: &mut P, socket: Socket) {
        let (wanted, since_ns) = self.dialing.pop_front().expect("every socket was dialed");
        let Wanted { number, attempt, .. } = wanted;
        let lane = Lane {
            number,
            attempt,
            stage: Stage::Shaking,
            let_in: false,
            sending: false,
            paused: false,
            pending: None,
            since_ns,
            partial: None,
            end: None,
            client: C::default(),
        };
        let Ok(conn) = self.lanes.insert_with(|_| lane) else { return self.io.refuse(socket) };
        self.io.adopt(socket, conn);
        self.io.receive(conn);
        self.shaking += 1;
        let token = part.token(number);
        let setup = Arc::clone(&self.setup);
        self.write(conn, |out| wire::request(out, &setup.host, &setup.path, nonce(conn, since_ns), token.as_deref()));
    }

    fn received<P: Part<Client = C>>(&mut self, part: &mut P, conn: ConnKey, bytes: &[u8]) {
        let Some(lane) = self.lanes.get_mut(conn) else { return };
        self.counts.add(Count::BytesIn, bytes.len() as u64);
        let outcome = match lane.partial.take() {
            None => self.read(part, conn, bytes).map(|taken| (taken, None)),
            Some(mut partial) => {
                partial.bytes.extend_from_slice(bytes);
                let bytes = std::mem::take(&mut partial.bytes);
                if let Some(lane) = self.lanes.get_mut(conn) {
                    lane.partial = (partial.opcode != 0).then_some(partial);
                }
                self.read(part, conn, &bytes).map(|taken| (taken, Some(bytes)))
            }
        };
        match outcome {
            Ok((taken, gathered)) => {
                let rest = gathered.as_deref().unwrap_or(bytes).get(taken..).unwrap_or_default();
                let Some(lane) = self.lanes.get_mut(conn).filter(|lane| lane.stage != Stage::Closing) else { return };
                if !rest.is_empty() {
                    lane.partial.get_or_insert_default().bytes.extend_from_slice(rest);
                }
            }
            Err(error) => self.end(conn, End::Broken(error)),
        }
    }

    /// Reads what is whole of the bytes; returns how many those were.
    fn read<P: Part<Client = C>>(&mut self, part: &mut P, conn: ConnKey, bytes: &[u8]) -> Result<usize, WireError> {
        let mut taken = 0;
        loop {
            let Some(lane) = self.lanes.get_mut(conn) else { return Ok(taken) };
            match lane.stage {
                Stage::Closing => return Ok(bytes.len()),
                Stage::Shaking => match wire::response(bytes, nonce(conn, lane.since_ns))? {
                    None => return Ok(0),
                    Some(Answer::Refused { status, retry_after_s }) => {
                        self.end(conn, End::Refused { status, retry_after_s });
                        return Ok(bytes.len());
                    }
                    Some(Answer::Switched(len)) => {
                        let since_ns = lane.since_ns;
                        (lane.stage, lane.let_in) = (Stage::Open, true);
                        self.shaking -= 1;
                        self.counts.add(Count::Opened, 1);
                        part.opened(self, conn, since_ns);
                        taken = len;
                    }
                },
                Stage::Open | Stage::Leaving => match wire::split(&bytes[taken..])? {
                    None => return Ok(taken),
                    Some(frame) => {
                        taken += frame.len;
                        self.on_frame(part, conn, &frame)?;
                    }
                },
            }
        }
    }

    fn on_frame<P: Part<Client = C>>(
        &mut self,
        part: &mut P,
        conn: ConnKey,
        frame: &wire::Frame<'_>,
    ) -> Result<(), WireError> {
        let Some(lane) = self.lanes.get_mut(conn) else { return Ok(()) };
        let is_open = lane.stage == Stage::Open;
        let is_within = lane.partial.is_some();
        match (Opcode::from_bits(frame.opcode), frame.fin) {
            (Some(Opcode::Close), true) => {
                let code = frame.payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                // The server ends the stream (RFC 6455 §7.1.1); who does not is not waited for.
                self.parting.push_back((self.now_ns + PARTING_NS, conn));
                lane.end.get_or_insert_with(|| Box::new(if is_open { End::Closed(code) } else { End::Left }));
                if is_open {
                    lane.stage = Stage::Leaving;
                    self.send(conn, Opcode::Close, &frame.payload[..frame.payload.len().min(2)]);
                }
            }
            (Some(Opcode::Ping), true) => {
                self.counts.add(Count::Pings, 1);
                self.send(conn, Opcode::Pong, frame.payload);
            }
            (Some(opcode @ (Opcode::Text | Opcode::Binary | Opcode::Pong)), true)
                if opcode == Opcode::Pong || !is_within =>
            {
                if is_open {
                    part.message(self, conn, opcode, frame.payload);
                }
            }
            (Some(Opcode::Text | Opcode::Binary), false) if !is_within => {
                lane.partial = Some(Box::new(Partial {
                    bytes: Vec::new(),
                    opcode: frame.opcode,
                    message: frame.payload.to_vec(),
                }));
            }
            (Some(Opcode::Continuation), fin) if is_within => {
                let Some(mut partial) = lane.partial.take() else { return Ok(()) };
                partial.message.extend_from_slice(frame.payload);
                if partial.message.len() > wire::MESSAGE_BYTES_MAX {
                    return Err(WireError::TooLong);
                }
                match (fin, Opcode::from_bits(partial.opcode)) {
                    (true, Some(opcode)) if is_open => part.message(self, conn, opcode, &partial.message),
                    (true, _) => {}
                    (false, _) => lane.partial = Some(partial),
                }
            }
            _ => return Err(WireError::Fragments),
        }
        Ok(())
    }

    /// A connection is over, for this reason unless there is one before it.
    fn end(&mut self, conn: ConnKey, end: End) {
        let Some(lane) = self.lanes.get_mut(conn).filter(|lane| lane.stage != Stage::Closing) else { return };
        lane.end.get_or_insert_with(|| Box::new(end));
        self.shaking -= u32::from(lane.stage == Stage::Shaking);
        lane.stage = Stage::Closing;
        lane.partial = None;
        if let Some(frame) = lane.pending.take() {
            self.io.palette().release(frame);
        }
        self.io.close(conn);
    }

    fn closed<P: Part<Client = C>>(&mut self, part: &mut P, conn: ConnKey) -> io::Result<()> {
        let Some(lane) = self.lanes.remove(conn) else { return Ok(()) };
        let Lane { number, attempt, let_in, end, client, .. } = lane;
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
            self.counts.first_end.get_or_init(|| format!("client {number}: {end:?}"));
        }
        self.counts.add(count, 1);
        part.ended(self, number, client);
        Ok(())
    }

    /// Has a client that was not let in come again.
    fn again(&mut self, number: u32, attempt: u8, end: &End) -> io::Result<()> {
        let wait_ns = match end {
            End::Refused { retry_after_s: Some(seconds), .. } => {
                self.counts.add(Count::RefusedUntil, 1);
                // All at once would be refused again.
                seconds * 1_000_000_000 + self.io.random() % 1_000_000_000
            }
            End::Refused { .. } => {
                self.counts.add(Count::Refused, 1);
                backoff_ns(attempt)
            }
            _ => {
                self.counts.add(Count::NotConnected, 1);
                backoff_ns(attempt)
            }
        };
        if attempt >= ATTEMPTS_MAX {
            let why = match end {
                End::Refused { status, .. } => format!("HTTP status {status}"),
                End::Lost(kind) => kind.to_string(),
                End::Broken(error) => error.to_string(),
                other => format!("{other:?}"),
            };
            return Err(io::Error::other(format!("client {number} was not let in {attempt} times, at last: {why}")));
        }
        let due_ns = self.now_ns + wait_ns;
        self.wanted.push(Reverse(Wanted { due_ns, number, attempt: attempt + 1 }));
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

/// Names the ends of a connection that could not be dialed, and what to do about it.
fn named(error: io::Error, from: Option<IpAddr>, to: SocketAddr) -> io::Error {
    let from = from.map_or_else(|| "this machine".to_owned(), |from| from.to_string());
    let remedy = match error.kind() {
        ErrorKind::AddrNotAvailable => {
            "; the address is not this machine's, or all its ports to that server are taken: name more with --from, or \
             widen net.ipv4.ip_local_port_range"
        }
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot connect from {from} to {to}: {error}{remedy}"))
}

/// The nonce of a handshake: sixteen bytes that no other one has.
fn nonce(conn: ConnKey, since_ns: u64) -> [u8; 16] {
    let words = [since_ns, u64::from(conn.slot) << 32 | u64::from(conn.generation)];
    let mut nonce = [0; 16];
    for (bytes, word) in nonce.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    nonce
}

/// How long a client waits that was not let in and not told for how long.
fn backoff_ns(attempt: u8) -> u64 {
    (100_000_000 << attempt.min(6)).min(5_000_000_000)
}

/// How long a server may take to end the stream behind its close frame.
const PARTING_NS: u64 = 1_000_000_000;
/// How often a client dials that is not let in, until the run is given up.
const ATTEMPTS_MAX: u8 = 20;
/// Sockets that are made in one turn, so that those there are get theirs.
const DIALS_A_TURN: u32 = 64;
/// How far dials that have a rate catch up.
const PACE_SLACK_NS: u64 = 20_000_000;
/// Receive buffers of a thread.
const BUFFERS: u16 = 512;
const BUFFER_BYTES: u32 = 4096;
