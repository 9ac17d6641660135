//! The kernel, as a trait with a closed list of completions.
//!
//! Law: this directory holds the only unsafe code and the only syscalls of the crate, and knows nothing of WebSocket.
//! [`uring`] is the kernel; [`sim`] is a seeded simulation of it, so that whole shards replay from a seed.
//!
//! # The contract of a driver
//! - A socket arrives by [`Completion::Accepted`] and is either [`Io::adopt`]ed under a [`ConnKey`] or [`Io::refuse`]d.
//! - An adopted connection has at most one send in flight and at most one armed receive.
//! - Every completion names its connection by the key it was adopted under. After [`Io::close`] the driver yields the
//!   outstanding completions of the connection in any order and then [`Completion::Closed`] exactly once, as the very
//!   last. Only then may the slot be used again.
//! - Memory that the kernel reads (frames) belongs to the [`Palette`] and cannot be freed or written while a send of it
//!   is in flight; memory that the kernel wrote (receive buffers) is lent as [`Io::Buffer`] and goes back when dropped.

pub mod affinity;
mod asan;
pub mod bell;
pub mod clock;
pub mod dial;
pub mod listener;
mod memory;
mod palette;
pub mod probe;
mod random;
mod recv_ring;
pub mod sim;
mod spares;
mod token;
pub mod uring;

use std::io;
use std::net::SocketAddr;
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Duration;

pub use palette::{Form, FrameKey, Lossy, Palette, SharedFrame, Stream};
pub use recv_ring::RecvBuffer;

use crate::id::{ConnKey, ShardId};

/// Accepts out on each listener, so connections that one turn can take in from each; the kernel queues the others. Few: a
/// newcomer with its handshake and its token is 60 µs, and those who are there wait for the turn. If each of them is closed for an
/// error, that is some 14 completions: more newcomers than leave with the completions of a turn would pile up, and everybody
/// else's input behind theirs.
const ACCEPTS: usize = 3;

/// An accepted socket that has no connection yet: an index in the driver's descriptor table. Not `Clone`: it is
/// adopted or refused exactly once.
#[derive(Debug)]
#[must_use = "an accepted socket must be adopted or refused"]
pub struct Socket(pub(in crate::io) u32);

/// A point in time as a shard knows it: read once a turn, passed down as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Nanoseconds on a clock that never goes back and counts suspended time (CLOCK_BOOTTIME), from the engine's start.
    pub monotonic_ns: u64,
    /// Unix time in milliseconds, for timestamps on the wire and token expiry; may jump.
    pub unix_ms: u64,
}

impl Now {
    /// Milliseconds since the engine's start.
    pub fn monotonic_ms(self) -> u64 {
        self.monotonic_ns / 1_000_000
    }
}

/// How long [`Io::wait`] may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Submit and collect what is there; do not sleep.
    No,
    /// Sleep until a completion comes or this much time has passed.
    AtMost(Duration),
    /// Sleep until a completion comes.
    Forever,
}

/// Why nothing more will be received from a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The peer ended its sending side in order (FIN).
    EndOfStream,
    /// The connection broke (reset, timed out, host unreachable …). `InvalidData`: the peer sent what is no TLS, or was
    /// changed on its way.
    Broken(io::ErrorKind),
}

#[expect(missing_docs, reason = "the variant says what its fields are")]
/// Everything that can come back from a driver; closed, so that a shard's reaction is readable in one `match`.
#[derive(Debug)]
pub enum Completion<B> {
    /// A peer has connected.
    Accepted(Socket),
    /// Accepting stopped: the descriptor table or the system's file table is full, or the listener failed. The shard
    /// calls [`Io::accept`] again, later.
    AcceptStopped(io::Error),
    /// Bytes arrived. `armed` says whether more will come by themselves; if not, the shard calls [`Io::receive`] again
    /// when it wants more.
    Received { conn: ConnKey, bytes: B, armed: bool },
    /// The receive ended without bytes and without the connection being lost: no receive buffer was free
    /// (`starved`), or it was paused. The shard calls [`Io::receive`] when it wants more.
    ReceiveStopped { conn: ConnKey, starved: bool },
    /// Nothing more will be received.
    ReceiveEnded { conn: ConnKey, lost: Lost },
    /// The send in flight is over; `sent` counts bytes from where that send began and may be short.
    Sent { conn: ConnKey, sent: Result<u32, io::ErrorKind> },
    /// The connection's last completion: its descriptor is closed and its slot may be used again.
    Closed { conn: ConnKey },
    /// Another thread rang this shard's doorbell.
    Rang,
}

/// Wakes a shard from any thread.
pub trait Doorbell: Send + Sync {
    /// Wakes the shard if it sleeps or is about to; what was pushed before is seen by it.
    fn ring(&self);
}

/// A driver: what a shard asks of the kernel. One driver belongs to one shard and one thread.
pub trait Io {
    /// Bytes that were received, lent until dropped.
    type Buffer: DerefMut<Target = [u8]>;

    /// Submits everything asked for since the last call, sleeps if `wait` allows and nothing has completed, and reads
    /// the clock once.
    ///
    /// # Errors
    /// Only when the ring itself is broken; the shard cannot go on.
    fn wait(&mut self, wait: Wait) -> io::Result<Now>;

    /// When the last [`Io::wait`] told the kernel that it may sleep, in the terms of [`Now::monotonic_ns`]; `None` if it
    /// did not. Until then the shard worked.
    fn slept_from_ns(&self) -> Option<u64>;

    /// The clock of [`Now::monotonic_ns`] at this moment: for samples of how long something within a turn takes, which
    /// the turn's own reading cannot tell.
    fn clock_ns(&self) -> u64;

    /// The next completion that is already there.
    fn poll(&mut self) -> Option<Completion<Self::Buffer>>;

    /// Starts (or starts again) accepting. Harmless while accepting.
    fn accept(&mut self);
    /// Stops accepting until [`Io::accept`]: newcomers wait in the listener's queue.
    fn pause_accepting(&mut self);
    /// Stops accepting for good: the listener closes, and the kernel answers newcomers itself.
    fn stop_accepting(&mut self);

    /// Who is at the other end of a socket, if the driver knows. Asked before the next [`Io::poll`]: only the address of
    /// the socket yielded last is kept.
    fn peer(&self, socket: &Socket) -> Option<SocketAddr> {
        let _ = socket;
        None
    }

    /// Through which of the driver's listening sockets it came, by their order. Asked as [`Io::peer`] is.
    fn port(&self, socket: &Socket) -> usize {
        let _ = socket;
        0
    }

    /// Takes a socket under a key. Receiving is not armed by this; call [`Io::receive`].
    fn adopt(&mut self, socket: Socket, conn: ConnKey);
    /// Closes an accepted socket that will have no connection.
    fn refuse(&mut self, socket: Socket);

    /// Arms receiving. Harmless while armed.
    fn receive(&mut self, conn: ConnKey);
    /// Asks to stop receiving; bytes that were on their way may still come. If it was armed it ends in exactly one of
    /// [`Completion::ReceiveStopped`], [`Completion::Received`] with `armed: false` and [`Completion::ReceiveEnded`].
    /// Until that came, [`Io::receive`] counts as armed and does nothing: who wants bytes again by then asks again.
    fn pause(&mut self, conn: ConnKey);

    /// Sends `frame` from byte `from` on. At most one send a connection is in flight. The driver holds the frame until
    /// [`Completion::Sent`].
    fn send(&mut self, conn: ConnKey, frame: FrameKey, from: u32);

    /// Cancels what is in flight and closes. Ends in [`Completion::Closed`].
    fn close(&mut self, conn: ConnKey);
    /// Ends this side of the stream (FIN) after what has been sent, and keeps receiving.
    fn shutdown(&mut self, conn: ConnKey);

    /// Rings the doorbell of another shard, if it sleeps; leaves with the next [`Io::wait`].
    fn ring(&mut self, shard: ShardId);
    /// Says that this shard is about to sleep: from now until the next [`Io::wait`] returns, ringing it wakes it. The
    /// shard looks at its queues once more afterwards, so that nothing pushed before the announcement is slept on.
    fn announce_sleep(&mut self);
    /// This shard's doorbell, for other threads.
    fn doorbell(&self) -> Arc<dyn Doorbell>;

    /// How often a wait polled before it slept, and how often it did not have to sleep.
    fn busy_polls(&self) -> (u64, u64) {
        (0, 0)
    }

    /// How often the completion queue was full, so that completions waited in the kernel's own list.
    fn overflows(&self) -> u64 {
        0
    }

    /// Nothing is left of many connections: gives memory that they needed back to the system.
    fn give_back(&mut self) {}

    /// 64 bits that nobody can guess.
    fn random(&mut self) -> u64;

    /// The frames that sends refer to.
    fn palette(&mut self) -> &mut Palette;
}
