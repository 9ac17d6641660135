//! One shard's half of the simulated kernel: its listener, descriptor table, operations and completions.
//! Law: it keeps the contract of [`crate::io::Io`] and panics, saying which line of it was broken, when the shard does
//! not. What a shard cannot know before it has polled a completion is not held to have happened before then.

use std::collections::VecDeque;
use std::io::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::buffer::{Buffer, Pool};
use super::conn::{Conn, Phase, Receive, Sending, Surroundings};
use super::dice::Dice;
use super::stream::Stream;
use crate::id::{ConnKey, ShardId};
use crate::io::{ACCEPTS, Completion, Doorbell, FrameKey, Palette, Socket};

/// Sizes of one shard's simulated ring.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// Entries of the descriptor table: sockets that can be open at once.
    pub table: usize,
    /// Receive buffers.
    pub buffers: usize,
    /// Bytes of a receive buffer.
    pub buffer_size: usize,
}

#[derive(Debug)]
pub(super) struct Kernel {
    shard: ShardId,
    pool: Rc<Pool>,
    listener: Listener,
    /// Streams that wait to be accepted.
    backlog: VecDeque<usize>,
    table: Vec<Descriptor>,
    /// By slot.
    conns: Vec<Slot>,
    /// Shards whose doorbells the next wait rings.
    pub ringing: Vec<ShardId>,
    /// Rings of this shard's doorbell not yet reported.
    pub rung: u32,
    /// The doorbell that other threads would ring.
    pub bell: Arc<Bell>,
    ready: VecDeque<Completion<Buffer>>,
    /// Until when the shard sleeps; 0 while it is awake.
    pub wake_at_ns: u64,
    /// The time the shard was told last.
    pub told_ns: u64,
    /// Scratch: in which order sources are asked for completions.
    order: Vec<usize>,
}

/// A simulated shard's doorbell: rung until the shard is told.
#[derive(Debug, Default)]
pub struct Bell(AtomicBool);

impl Doorbell for Bell {
    fn ring(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listener {
    Idle,
    Accepting,
    /// `AcceptStopped` is posted, not polled.
    Stopped,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Descriptor {
    Free,
    /// Accepted, neither adopted nor refused yet.
    Fresh {
        stream: usize,
    },
    Adopted,
}

#[derive(Debug, Default)]
struct Slot {
    last_generation: u32,
    conn: Option<Conn>,
}

impl Kernel {
    pub fn new(shard: ShardId, config: SimConfig) -> Self {
        Self {
            shard,
            pool: Pool::new(config.buffers, config.buffer_size),
            listener: Listener::Idle,
            backlog: VecDeque::new(),
            table: vec![Descriptor::Free; config.table],
            conns: Vec::new(),
            ringing: Vec::new(),
            rung: 0,
            bell: Arc::default(),
            ready: VecDeque::new(),
            wake_at_ns: 0,
            told_ns: 0,
            order: Vec::new(),
        }
    }

    /// The ring has gone, and with it everything but the listener, its queue and the doorbell.
    pub fn restart(&mut self, streams: &mut [Stream]) {
        let mut end = |stream: usize| {
            streams[stream].faulted = true;
            streams[stream].close();
        };
        for conn in self.conns.iter_mut().filter_map(|slot| slot.conn.take()) {
            if !matches!(conn.phase, Phase::Shut | Phase::Over) {
                end(conn.stream);
            }
        }
        for descriptor in &mut self.table {
            if let Descriptor::Fresh { stream } = std::mem::replace(descriptor, Descriptor::Free) {
                end(stream);
            }
        }
        self.ready.clear();
        self.wake_at_ns = 0;
        if self.listener != Listener::Closed {
            self.listener = Listener::Idle;
        }
    }

    // What the shard asks for.

    pub fn accept(&mut self) {
        if self.listener == Listener::Idle {
            self.listener = Listener::Accepting;
        }
    }

    pub fn pause_accepting(&mut self) {
        if self.listener == Listener::Accepting {
            self.listener = Listener::Idle;
        }
    }

    pub fn stop_accepting(&mut self, streams: &mut [Stream]) {
        self.listener = Listener::Closed;
        for stream in self.backlog.drain(..) {
            streams[stream].abort();
        }
    }

    pub fn adopt(&mut self, socket: Socket, key: ConnKey) {
        let shard = self.shard;
        let descriptor = socket.0 as usize;
        let Descriptor::Fresh { stream } = self.table[descriptor] else {
            panic!("{shard:?}: {socket:?} is adopted or refused twice, or is another shard's");
        };
        self.table[descriptor] = Descriptor::Adopted;
        let slots = self.conns.len().max(key.slot as usize + 1);
        self.conns.resize_with(slots, Slot::default);
        let slot = &mut self.conns[key.slot as usize];
        if let Some(conn) = &slot.conn {
            panic!("{shard:?}: adopt of {key:?}: the slot is still in use by {:?} ({:?})", conn.key, conn.phase);
        }
        assert!(slot.last_generation != key.generation, "{shard:?}: adopt of {key:?}: the generation was used before");
        slot.last_generation = key.generation;
        slot.conn = Some(Conn::new(key, descriptor, stream));
    }

    /// The stream of a socket that was neither adopted nor refused yet.
    pub fn stream_of(&self, socket: &Socket) -> Option<usize> {
        match self.table[socket.0 as usize] {
            Descriptor::Fresh { stream } => Some(stream),
            _ => None,
        }
    }

    pub fn refuse(&mut self, socket: Socket, streams: &mut [Stream]) {
        let descriptor = socket.0 as usize;
        let Descriptor::Fresh { stream } = self.table[descriptor] else {
            panic!("{:?}: {socket:?} is adopted or refused twice, or is another shard's", self.shard);
        };
        self.table[descriptor] = Descriptor::Free;
        streams[stream].close();
    }

    pub fn receive(&mut self, key: ConnKey) {
        let conn = self.open("receive", key);
        if conn.receive == Receive::Idle {
            conn.receive = Receive::Armed { fresh: true };
        }
    }

    pub fn pause(&mut self, key: ConnKey) {
        let conn = self.open("pause", key);
        if let Receive::Armed { .. } = conn.receive {
            conn.receive = Receive::Pausing;
        }
    }

    pub fn send(&mut self, key: ConnKey, frame: FrameKey, from: u32, bytes: &[u8]) {
        let (shard, now_ns) = (self.shard, self.told_ns);
        let conn = self.open("send", key);
        assert!(conn.send.is_none(), "{shard:?}: send on {key:?}: one is in flight already");
        assert!(!conn.shut_down, "{shard:?}: send on {key:?} after its shutdown");
        let from = from as usize;
        assert!(from < bytes.len(), "{shard:?}: send on {key:?} from byte {from} of a frame of {}", bytes.len());
        conn.send = Some(Sending::new(frame, from, &bytes[from..]));
        if conn.busy.until_ns != Some(now_ns) {
            conn.busy.since_ns = now_ns;
        }
    }

    pub fn close(&mut self, key: ConnKey, streams: &mut [Stream]) {
        let now_ns = self.told_ns;
        let conn = self.open("close", key);
        conn.phase = Phase::Closing;
        if conn.send.is_some() {
            // In whole milliseconds of the clock, as a shard counts.
            streams[conn.stream].backlog_ms = now_ns / 1_000_000 - conn.busy.since_ns / 1_000_000;
        }
    }

    pub fn shutdown(&mut self, key: ConnKey, streams: &mut [Stream]) {
        let shard = self.shard;
        let conn = self.open("shutdown", key);
        assert!(conn.send.is_none(), "{shard:?}: shutdown of {key:?} with a send in flight");
        conn.shut_down = true;
        streams[conn.stream].shutdown();
    }

    /// The connection an operation may be asked of.
    fn open(&mut self, operation: &str, key: ConnKey) -> &mut Conn {
        let shard = self.shard;
        let conn = self.conns.get_mut(key.slot as usize).and_then(|slot| slot.conn.as_mut());
        let Some(conn) = conn.filter(|conn| conn.key == key) else {
            panic!("{shard:?}: {operation} on {key:?}, which is not adopted (stale, or never was)");
        };
        assert!(conn.phase == Phase::Open, "{shard:?}: {operation} on {key:?} after its close");
        conn
    }

    // What the kernel does.

    pub fn listens(&self) -> bool {
        self.listener != Listener::Closed
    }

    pub fn connect(&mut self, stream: usize) {
        self.backlog.push_back(stream);
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether some operation could complete: a shard that sleeps would be woken.
    pub fn is_busy(&self, streams: &[Stream]) -> bool {
        !self.ready.is_empty()
            || self.rung > 0
            || !self.ringing.is_empty()
            || self.bell.0.load(Ordering::Relaxed)
            || (self.listener == Listener::Accepting && !self.backlog.is_empty())
            || self.conns.iter().filter_map(|slot| slot.conn.as_ref()).any(|conn| conn.is_busy(&streams[conn.stream]))
    }

    /// Lets operations make progress and complete, some of them.
    pub fn work(&mut self, palette: &Palette, around: &mut Surroundings) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(0..self.conns.len() + 2);
        if around.dice.chance(around.faults.reorder) {
            around.dice.shuffle(&mut order);
        }
        for &source in &order {
            if around.dice.chance(around.faults.delay) {
                continue;
            }
            match source {
                0 => self.work_listener(around),
                1 => self.work_doorbell(around),
                slot => self.work_conn(slot - 2, palette, around),
            }
        }
        self.order = order;
    }

    fn work_listener(&mut self, around: &mut Surroundings) {
        for _ in 0..ACCEPTS {
            if self.listener != Listener::Accepting || self.backlog.is_empty() {
                return;
            }
            if around.dice.chance(around.faults.accept_fails) {
                let code = if around.dice.coin() { libc::EMFILE } else { libc::ENFILE };
                return self.stop_listener(code);
            }
            let stream = self.backlog.pop_front().expect("looked at above");
            let Some(descriptor) = self.free_descriptor(around.dice) else {
                // The kernel finds the table full only when it has the connection already, and drops it.
                around.streams[stream].close();
                return self.stop_listener(libc::ENFILE);
            };
            self.table[descriptor] = Descriptor::Fresh { stream };
            self.ready.push_back(Completion::Accepted(Socket(descriptor as u32)));
        }
    }

    fn stop_listener(&mut self, code: i32) {
        self.listener = Listener::Stopped;
        self.ready.push_back(Completion::AcceptStopped(Error::from_raw_os_error(code)));
    }

    fn free_descriptor(&self, dice: &mut Dice) -> Option<usize> {
        let start = dice.below(self.table.len().max(1));
        (start..self.table.len()).chain(0..start).find(|&i| self.table[i] == Descriptor::Free)
    }

    fn work_doorbell(&mut self, around: &mut Surroundings) {
        let spurious = u32::from(around.dice.chance(around.faults.spurious_ring));
        let remote = u32::from(self.bell.0.swap(false, Ordering::Relaxed));
        for _ in 0..std::mem::take(&mut self.rung) + remote + spurious {
            self.ready.push_back(Completion::Rang);
        }
    }

    fn work_conn(&mut self, slot: usize, palette: &Palette, around: &mut Surroundings) {
        let Some(conn) = &mut self.conns[slot].conn else { return };
        if let Some(descriptor) = conn.work(&self.pool, palette, &mut self.ready, around) {
            self.table[descriptor] = Descriptor::Free;
        }
    }

    /// The next completion; with it the shard knows, and the kernel's account of what the shard knows follows.
    pub fn poll(&mut self, palette: &mut Palette) -> Option<Completion<Buffer>> {
        let completion = self.ready.pop_front()?;
        let now_ns = self.told_ns;
        match &completion {
            Completion::AcceptStopped(_) if self.listener == Listener::Stopped => self.listener = Listener::Idle,
            Completion::Accepted(_) | Completion::AcceptStopped(_) | Completion::Rang => {}
            Completion::Received { armed: true, .. } => {}
            Completion::Received { conn, armed: false, .. }
            | Completion::ReceiveStopped { conn, .. }
            | Completion::ReceiveEnded { conn, .. } => {
                let conn = self.posted(*conn);
                debug_assert_eq!(conn.receive, Receive::Over);
                conn.receive = Receive::Idle;
            }
            Completion::Sent { conn, .. } => {
                let conn = self.posted(*conn);
                let send = conn.send.take().expect("a send that completes was in flight");
                conn.busy.until_ns = Some(now_ns);
                palette.returned(send.frame);
            }
            Completion::Closed { conn } => {
                debug_assert!(!self.posted(*conn).has_unpolled(), "Closed is the last completion");
                self.conns[conn.slot as usize].conn = None;
            }
        }
        Some(completion)
    }

    /// The connection of a completion: it cannot be gone before its `Closed` was polled.
    fn posted(&mut self, key: ConnKey) -> &mut Conn {
        let conn = self.conns[key.slot as usize].conn.as_mut().filter(|conn| conn.key == key);
        conn.expect("a completion names a connection that is adopted")
    }

    /// What is left over when everything should be closed.
    pub fn audit(&self) -> Result<(), String> {
        let mut found = Vec::new();
        for conn in self.conns.iter().filter_map(|slot| slot.conn.as_ref()) {
            let (receive, phase) = (conn.receive, conn.phase);
            let lent = if conn.send.is_some() { ", a frame lent to its send" } else { "" };
            found.push(format!("{:?} is open (phase {phase:?}, receive {receive:?}{lent})", conn.key));
        }
        for (index, descriptor) in self.table.iter().enumerate() {
            match descriptor {
                Descriptor::Free => {}
                Descriptor::Fresh { .. } => found.push(format!("Socket({index}) was neither adopted nor refused")),
                Descriptor::Adopted => found.push(format!("descriptor {index} is in use")),
            }
        }
        let missing = self.pool.lent();
        if missing > 0 {
            found.push(format!("{missing} of {} receive buffers did not come back", missing + self.pool.free()));
        }
        if !self.ready.is_empty() {
            found.push(format!("{} completions were not polled", self.ready.len()));
        }
        if found.is_empty() { Ok(()) } else { Err(format!("{:?}: {}", self.shard, found.join("; "))) }
    }
}
