//! A kernel in which everything has happened by the next turn: bytes arrive when they were said, in receive buffers of the
//! default size, a send ends whole, and time passes when it is told to.
//! Law: equal calls make equal turns, and once it is warm the driver allocates nothing, so that what is counted is the shard's.
//!
//! [`io::sim`](tidewheel::io::sim) gives the sockets and the doorbell. Its network is left out: it copies every send to see that
//! nobody changes it, and draws when what arrives.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use tidewheel::id::{ConnKey, ShardId};
use tidewheel::io::sim::{Faults, Sim, SimConfig, World};
use tidewheel::io::{Completion, Doorbell, FrameKey, Io, Now, Palette, Socket, Wait};

/// The default of `io.receive_buffer_size`.
const BUFFER_BYTES: usize = 4096;
/// Receive buffers: a client that says more at once than they hold is another bench's.
const BUFFERS: usize = 256;
/// Completions that wait to be polled, at most.
const COMPLETIONS: usize = 8192;

/// The driver.
pub struct Calm {
    world: World,
    sim: Sim,
    now: Now,
    /// What the next poll yields.
    ready: VecDeque<Completion<Lent>>,
    /// What the next wait makes ready: first what the shard has asked for, then what clients have said since.
    ending: VecDeque<Completion<Lent>>,
    arriving: VecDeque<Completion<Lent>>,
    blocks: Blocks,
    adopted: Option<ConnKey>,
    /// What was sent to the connection that somebody listens to.
    heard: Option<(ConnKey, Vec<u8>)>,
    /// Sends so far, and their bytes.
    pub sent: (u64, u64),
}

/// What is heard has so much room before it has to be made.
const HEARD_BYTES: usize = 4096;

/// Receive buffers that are not lent.
type Blocks = Rc<RefCell<Vec<Box<[u8]>>>>;

/// Bytes that have arrived.
pub struct Lent {
    block: Box<[u8]>,
    filled: usize,
    blocks: Blocks,
}

impl Calm {
    /// With room for so many connections in its life.
    pub fn new(sockets: usize) -> Self {
        let world = World::new(1, Faults::default());
        let sim = world.driver(ShardId(0), SimConfig { table: sockets, buffers: 0, buffer_size: 0 });
        let blocks = (0..BUFFERS).map(|_| vec![0; BUFFER_BYTES].into_boxed_slice()).collect();
        Self {
            now: Now { monotonic_ns: 1_000_000_000, ..world.now() },
            world,
            sim,
            ready: VecDeque::with_capacity(COMPLETIONS),
            ending: VecDeque::with_capacity(COMPLETIONS),
            arriving: VecDeque::with_capacity(COMPLETIONS),
            blocks: Rc::new(RefCell::new(blocks)),
            adopted: None,
            heard: None,
            sent: (0, 0),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Now {
        self.now
    }

    /// Lets time pass.
    pub fn pass(&mut self, ms: u64) {
        self.now.monotonic_ns += ms * 1_000_000;
        self.now.unix_ms += ms;
    }

    /// A client connects.
    pub fn connect(&mut self) {
        self.world.connect();
        loop {
            self.sim.wait(Wait::No).expect("a simulated ring does not break");
            if let Some(Completion::Accepted(socket)) = self.sim.poll() {
                return self.arriving.push_back(Completion::Accepted(socket));
            }
        }
    }

    /// Whom the shard adopted since the last call.
    pub fn adopted(&mut self) -> Option<ConnKey> {
        self.adopted.take()
    }

    /// A client says something; it arrives with the next turn. What takes several buffers ends the receive, as it does where the
    /// kernel shares.
    pub fn say(&mut self, conn: ConnKey, bytes: &[u8]) {
        let parts = bytes.len().div_ceil(BUFFER_BYTES);
        for (at, part) in bytes.chunks(BUFFER_BYTES).enumerate() {
            let mut block = self.blocks.borrow_mut().pop().expect("a receive buffer");
            block[..part.len()].copy_from_slice(part);
            let bytes = Lent { block, filled: part.len(), blocks: self.blocks.clone() };
            self.arriving.push_back(Completion::Received { conn, bytes, armed: parts == 1 || at + 1 < parts });
        }
    }

    /// From now on what is sent to this connection is kept.
    pub fn listen(&mut self, conn: ConnKey) {
        self.heard = Some((conn, Vec::with_capacity(HEARD_BYTES)));
    }

    /// What was sent to the connection that somebody listens to, since the last call.
    pub fn hear(&mut self) -> Vec<u8> {
        self.heard.as_mut().map(|(_, heard)| std::mem::take(heard)).unwrap_or_default()
    }

    /// Nobody listens any more.
    pub fn ignore(&mut self) {
        self.heard = None;
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.block[..self.filled]
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.block[..self.filled]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.blocks.borrow_mut().push(std::mem::take(&mut self.block));
    }
}

impl Io for Calm {
    type Buffer = Lent;

    fn wait(&mut self, _: Wait) -> io::Result<Now> {
        self.ready.append(&mut self.ending);
        self.ready.append(&mut self.arriving);
        Ok(self.now)
    }

    fn slept_from_ns(&self) -> Option<u64> {
        Some(self.now.monotonic_ns)
    }

    fn clock_ns(&self) -> u64 {
        self.now.monotonic_ns
    }

    fn poll(&mut self) -> Option<Completion<Lent>> {
        self.ready.pop_front()
    }

    fn accept(&mut self) {
        self.sim.accept();
    }

    fn pause_accepting(&mut self) {}

    fn stop_accepting(&mut self) {}

    fn peer(&self, socket: &Socket) -> Option<SocketAddr> {
        self.sim.peer(socket)
    }

    fn adopt(&mut self, _: Socket, conn: ConnKey) {
        self.adopted = Some(conn);
    }

    fn refuse(&mut self, _: Socket) {}

    fn receive(&mut self, _: ConnKey) {}

    fn pause(&mut self, conn: ConnKey) {
        self.ending.push_back(Completion::ReceiveStopped { conn, starved: false });
    }

    fn send(&mut self, conn: ConnKey, frame: FrameKey, from: u32) {
        let bytes = &self.sim.palette().bytes(frame)[from as usize..];
        self.sent = (self.sent.0 + 1, self.sent.1 + bytes.len() as u64);
        if let Some((_, heard)) = self.heard.as_mut().filter(|heard| heard.0 == conn) {
            heard.extend_from_slice(bytes);
        }
        self.ending.push_back(Completion::Sent { conn, sent: Ok(bytes.len() as u32) });
    }

    fn close(&mut self, conn: ConnKey) {
        self.ending.push_back(Completion::Closed { conn });
    }

    fn shutdown(&mut self, _: ConnKey) {}

    fn ring(&mut self, _: ShardId) {}

    fn announce_sleep(&mut self) {}

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        self.sim.doorbell()
    }

    fn random(&mut self) -> u64 {
        self.sim.random()
    }

    fn palette(&mut self) -> &mut Palette {
        self.sim.palette()
    }
}
