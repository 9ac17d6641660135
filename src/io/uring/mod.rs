//! The driver on the kernel: one raw io_uring of one shard's thread.
//!
//! Laws: requests of a connection are counted, and its slot is free only after the last one completed; memory that a
//! request names outlives the request, also when the driver is dropped in the middle of things; nothing is retried in
//! a loop.
//!
//! The ring runs with deferred task work: the kernel completes requests only while this thread is inside
//! [`Io::wait`], so nothing interrupts a turn and completions come in batches. Sockets live in the ring's own
//! descriptor table, which no other thread touches and which RLIMIT_NOFILE bounds a ring, not a process.

#![allow(unsafe_code, reason = "requests that name memory; each with its proof")]

mod accept;
mod busy_poll;
mod complete;
mod records;
mod ring;
mod shutdown;
mod teardown;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, Fixed};
use io_uring::{cqueue, opcode, squeue};

use self::accept::{Acceptor, Arrivals};
use self::busy_poll::BusyPoll;
use self::records::{Records, TABLE_MAX, flag};
use self::ring::Ring;
use super::bell::{self, Bell};
use super::probe::Features;
use super::random::Random;
use super::recv_ring::{GROUP, RecvBuffer, RecvRing, bounded_receive};
use super::token::{Op, Token};
use super::{Completion, Doorbell, FrameKey, Io, Now, Palette, Socket, Wait, clock, memory};
use crate::id::{ConnKey, ShardId};

/// How a connection waits for input. The completions are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveMode {
    /// One multishot receive: fewest requests, 864 bytes of kernel memory for each idle connection.
    Recv,
    /// A multishot poll, and a receive of all that is there each time it reports input: 256 bytes of kernel memory for each idle
    /// connection, and input that nobody asked for stays in the socket.
    Poll,
}

/// What a driver is made of.
#[derive(Debug)]
pub struct UringConfig {
    /// Places in the descriptor table: most sockets at a time, accepted ones that are not adopted yet included. At most
    /// RLIMIT_NOFILE and 2^20.
    pub table: u32,
    /// Receive buffers of the shard; 1 to 32,768.
    pub buffers: u16,
    /// Size of a receive buffer in bytes.
    pub buffer_size: u32,
    /// How connections wait for input.
    pub mode: ReceiveMode,
    /// For how long a shard that has nothing to do polls before it sleeps, as long as that pays.
    pub busy_poll: Duration,
    /// This shard's listening sockets; may be none. See [`listen`](super::listener::listen).
    pub listeners: Vec<TcpListener>,
    /// The doorbells of all shards, by shard.
    pub bells: Arc<[Arc<Bell>]>,
    /// This shard.
    pub shard: ShardId,
}

/// Counts of a driver since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of io_uring_enter.
    pub enters: u64,
    /// Requests submitted.
    pub submitted: u64,
    /// Completions read.
    pub completed: u64,
    /// Submissions in the middle of a turn because the queue was full.
    pub full_queues: u64,
    /// Completions that found the completion queue full. They were kept, but multishot requests ended.
    pub overflows: u64,
    /// Completions of connections that no longer exist; dropped.
    pub stale: u64,
    /// Receive buffers given back to the kernel.
    pub republished: u64,
    /// Receives that found no free buffer.
    pub starved: u64,
    /// Waits that polled before they slept, and those among them that did not have to sleep.
    pub busy_polls: u64,
    /// See `busy_polls`.
    pub busy_poll_hits: u64,
    /// Closes that had to cancel a second time, because a request was between two states of the kernel.
    pub recancelled: u64,
    /// Ends of streams that a worker thread of the kernel did.
    pub worker_shutdowns: u64,
}

/// The driver. Lives on the thread that made it.
pub struct Uring {
    // `Drop` has made the kernel let go of all memory below, or leaked it, before any field drops.
    ring: Ring,
    mode: ReceiveMode,
    records: Records,
    acceptor: Acceptor,
    arrivals: Arrivals,
    buffers: RecvRing,
    palette: Palette,
    /// What is to be yielded before the next completion of the kernel.
    deferred: VecDeque<Deferred>,
    /// Scratch: buffers that came with another one.
    more: VecDeque<RecvBuffer>,
    /// Closing connections with a request that a cancel did not find.
    lingering: Vec<ConnKey>,
    /// Requests that name memory and are with the kernel.
    holding: u32,
    /// Requests for ordinary descriptors that are with the kernel.
    installing: u32,
    bells: Arc<[Arc<Bell>]>,
    shard: ShardId,
    features: Features,
    random: Random,
    slept_from_ns: Option<u64>,
    busy_poll: BusyPoll,
}

/// A completion that the driver makes itself.
#[derive(Debug)]
enum Deferred {
    /// One more of the buffers that came with one completion of the kernel.
    Received { conn: ConnKey, bytes: RecvBuffer, armed: bool },
    /// Poll mode: receiving stopped without the kernel's help.
    Paused(ConnKey),
    /// The last request of a closing connection is over.
    Closed(ConnKey),
    /// A listener has no accept out any more, because the descriptor table has no place for a newcomer.
    TableFull,
}

impl Uring {
    /// Makes the driver of the calling thread, which alone may use it.
    ///
    /// # Errors
    /// io_uring is not available (see [`Unavailable`](super::probe::Unavailable)), the configuration is out of range,
    /// or there is not enough memory.
    pub fn new(config: UringConfig) -> io::Result<Self> {
        let UringConfig { table, buffers, buffer_size, mode, busy_poll, listeners, bells, shard } = config;
        if table == 0 || table > TABLE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a table of {table}: 1 to {TABLE_MAX}")));
        }
        let buffers = RecvRing::new(buffers, buffer_size)?;
        let completions = (table.saturating_mul(4)).next_power_of_two().clamp(COMPLETIONS.0, COMPLETIONS.1);
        let (ring, features) = Ring::new(completions / 16, completions, !busy_poll.is_zero())?;
        ring.submitter().register_files_sparse(table).map_err(|error| {
            io::Error::new(error.kind(), format!("a table of {table} descriptors (RLIMIT_NOFILE bounds it): {error}"))
        })?;
        buffers.register(ring.submitter())?;
        // Only shutdowns use the kernel's worker threads, and few of them; one is enough.
        ring.submitter().register_iowq_max_workers(&mut [1, 1])?;
        let own = bells.get(shard.index()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("shard {} of {} has no bell", shard.0, bells.len()))
        })?;
        own.set_ring(ring.fd().try_clone_to_owned()?);
        let mut uring = Self {
            ring,
            mode,
            records: Records::default(),
            acceptor: Acceptor::new(listeners, table)?,
            arrivals: Arrivals::default(),
            buffers,
            palette: Palette::default(),
            deferred: VecDeque::new(),
            more: VecDeque::new(),
            lingering: Vec::new(),
            holding: 0,
            installing: 0,
            bells,
            shard,
            features,
            random: Random::default(),
            slept_from_ns: None,
            busy_poll: BusyPoll::new(busy_poll),
        };
        uring.watch_bell();
        Ok(uring)
    }

    /// Ends the driver and every connection in it. The listening sockets stay open, with whoever waits to be accepted.
    pub fn end(mut self) -> Vec<TcpListener> {
        let listeners = self.acceptor.take_sockets();
        drop(self);
        listeners
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.ring.counters
    }

    /// What the kernel offers.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// User memory of the driver's own records, in bytes: 12 a slot in use, in chunks.
    pub fn record_bytes(&self) -> usize {
        self.records.bytes()
    }

    fn watch_bell(&mut self) {
        let eventfd = Fd(self.bells[self.shard.index()].eventfd().as_raw_fd());
        let poll = opcode::PollAdd::new(eventfd, libc::POLLIN as u32).multi(true).build();
        // SAFETY: a poll names no memory.
        unsafe { self.ring.push(&poll.user_data(Token::of_driver(Op::Bell, 0).0)) };
    }

    /// Submits, and looks for completions without sleeping. Whether there are some, or no time is left.
    fn poll_busily(&mut self, from_ns: u64, timeout: Option<Duration>, most: usize) -> io::Result<bool> {
        self.ring.counters.busy_polls += 1;
        let timeout_ns = timeout.map_or(u64::MAX, |timeout| timeout.as_nanos() as u64);
        let until_ns = from_ns.saturating_add(self.busy_poll.budget_ns().min(timeout_ns));
        self.ring.enter(0, None, most)?;
        while !self.ring.has_completions() {
            if clock::monotonic_ns() >= until_ns {
                return Ok(until_ns.saturating_sub(from_ns) >= timeout_ns);
            }
            if self.ring.has_task_work() {
                self.ring.enter(0, None, most)?;
            }
            std::hint::spin_loop();
        }
        self.ring.counters.busy_poll_hits += 1;
        Ok(true)
    }

    /// How long this wait has polled, which is a part of the time it may take.
    fn polled_for(&self) -> Duration {
        let from_ns = self.slept_from_ns.filter(|_| self.busy_poll.budget_ns() > 0);
        Duration::from_nanos(from_ns.map_or(0, |from_ns| clock::monotonic_ns().saturating_sub(from_ns)))
    }

    /// Recv mode: asks for all that comes. The kernel picks buffers itself and posts one completion for each, or for some:
    /// where it can be told how much one connection may bring at once, before others have their turn, that comes in one. It
    /// is little at first: of very many that begin to send in one instant each has to be seen before anybody who sends later,
    /// with all that its receive may bring.
    fn receive_all(&mut self, conn: ConnKey, descriptor: u32, is_wide: bool) {
        if !self.features.bounded_receives {
            return self.push_receive(conn, opcode::RecvMulti::new(Fixed(descriptor), GROUP).build());
        }
        let buffers = if is_wide { [BUFFERS_AT_ONCE, BUFFERS_A_REQUEST] } else { [1, 1] };
        let [at_once, most] = buffers.map(|buffers| buffers * self.buffers.buffer_size());
        let receive = opcode::Recv::new(Fixed(descriptor), std::ptr::null_mut(), at_once);
        self.push_receive(conn, bounded_receive(receive, most));
    }

    /// Poll mode: asks for all that is there, up to the kernel's own bound of a round (32 buffers).
    fn drain(&mut self, conn: ConnKey, descriptor: u32) {
        let receive = opcode::RecvMulti::new(Fixed(descriptor), GROUP).flags(libc::MSG_DONTWAIT);
        self.push_receive(conn, receive.build());
    }

    fn push_receive(&mut self, conn: ConnKey, receive: squeue::Entry) {
        self.holding += 1;
        // SAFETY: the kernel writes into published buffers only, which stay mapped while `holding` counts this request.
        unsafe { self.ring.push(&receive.user_data(Token::of_conn(Op::Receive, conn).0)) };
    }

    /// Poll mode: asks to be told about input, now and whenever more arrives.
    fn poll_input(&mut self, conn: ConnKey, descriptor: u32) {
        // RDHUP: the end of the stream makes no second report when it came together with data.
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let poll = opcode::PollAdd::new(Fixed(descriptor), events).multi(true).build();
        // SAFETY: a poll names no memory.
        unsafe { self.ring.push(&poll.user_data(Token::of_conn(Op::Poll, conn).0)) };
    }

    /// Cancels one request by its user data. `op` says what a failure means.
    fn cancel(&mut self, target: Token, op: Op) {
        let answer = Token::of_conn(op, target.conn()).0;
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::user_data(target.0)).build();
        // SAFETY: a cancel names no memory.
        unsafe { self.ring.push(&cancel.flags(squeue::Flags::SKIP_SUCCESS).user_data(answer)) };
    }

    /// Cancels what is out of a closing connection, which would hold its socket open. Each request by its own name, which
    /// the kernel finds by hash; by descriptor it would look at every request of the ring.
    fn cancel_requests(&mut self, conn: ConnKey) {
        let Some(record) = self.records.get(conn) else { return };
        let requests = [
            (Op::Receive, record.is(flag::RECEIVE)),
            (Op::Poll, record.is(flag::POLL)),
            (Op::Send, record.frame.is_some()),
            (Op::Shutdown, record.is(flag::SHUTDOWN)),
        ];
        for (op, _) in requests.into_iter().filter(|(_, out)| *out) {
            self.cancel(Token::of_conn(op, conn), Op::Cancel);
        }
    }
}

impl Io for Uring {
    type Buffer = RecvBuffer;

    fn wait(&mut self, wait: Wait) -> io::Result<Now> {
        self.ring.counters.republished += self.buffers.republish();
        for conn in std::mem::take(&mut self.lingering) {
            self.ring.counters.recancelled += 1;
            self.cancel_requests(conn);
        }
        let waiting = !self.deferred.is_empty() || self.ring.has_completions();
        let (wanted, timeout) = match wait {
            Wait::AtMost(timeout) if !waiting && !timeout.is_zero() => (1, Some(timeout)),
            Wait::Forever if !waiting => (1, None),
            _ => (0, None),
        };
        let most = if wait == Wait::No { COMPLETIONS_LEFT_OVER } else { COMPLETIONS_A_TURN };
        self.slept_from_ns = (wanted > 0).then(clock::monotonic_ns);
        let has_polled = match self.slept_from_ns {
            Some(from_ns) if self.busy_poll.budget_ns() > 0 => self.poll_busily(from_ns, timeout, most)?,
            _ => false,
        };
        // With work at hand and nothing to submit there is nothing to ask of the kernel.
        if !has_polled && (!waiting || !self.ring.is_submitted()) {
            let rest = |timeout: Duration| timeout.saturating_sub(self.polled_for());
            self.ring.enter(wanted, timeout.map(rest), most)?;
        }
        self.bells[self.shard.index()].awake();
        let now = clock::now();
        if let Some(from_ns) = self.slept_from_ns {
            self.busy_poll.note(now.monotonic_ns.saturating_sub(from_ns));
        }
        Ok(now)
    }

    fn slept_from_ns(&self) -> Option<u64> {
        self.slept_from_ns
    }

    fn clock_ns(&self) -> u64 {
        clock::monotonic_ns()
    }

    fn poll(&mut self) -> Option<Completion<RecvBuffer>> {
        loop {
            match self.deferred.pop_front() {
                Some(Deferred::Received { conn, bytes, armed }) => {
                    return Some(Completion::Received { conn, bytes, armed });
                }
                Some(Deferred::Closed(conn)) => return Some(Completion::Closed { conn }),
                Some(Deferred::TableFull) => {
                    return Some(Completion::AcceptStopped(io::Error::from_raw_os_error(libc::ENFILE)));
                }
                Some(Deferred::Paused(conn)) => {
                    if let Some(record) = self.records.get(conn) {
                        record.clear(flag::ARMED | flag::PAUSING);
                    }
                    return Some(Completion::ReceiveStopped { conn, starved: false });
                }
                None => {}
            }
            let completion = self.ring.next()?;
            self.ring.counters.completed += 1;
            let completion = self.complete(&completion);
            if completion.is_some() {
                return completion;
            }
        }
    }

    fn accept(&mut self) {
        for listener in 0..self.acceptor.listeners() {
            self.arm_accepts(listener);
        }
    }

    fn pause_accepting(&mut self) {
        for listener in 0..self.acceptor.listeners() {
            self.pause_listener(listener);
        }
    }

    fn stop_accepting(&mut self) {
        for listener in 0..self.acceptor.listeners() {
            self.stop_listener(listener);
        }
    }

    fn peer(&self, socket: &Socket) -> Option<SocketAddr> {
        self.acceptor.peer(socket.0)
    }

    fn port(&self, socket: &Socket) -> usize {
        self.acceptor.port(socket.0)
    }

    fn adopt(&mut self, socket: Socket, conn: ConnKey) {
        self.records.open(conn, socket.0);
    }

    fn refuse(&mut self, socket: Socket) {
        self.push_refuse(socket.0);
    }

    fn receive(&mut self, conn: ConnKey) {
        let Some(record) = self.records.get(conn) else { return debug_assert!(false, "receive on a stale key") };
        if record.is(flag::ARMED | flag::CLOSING) {
            return;
        }
        record.set(flag::ARMED);
        let (descriptor, is_wide) = (record.descriptor(), record.is(flag::WIDE));
        match self.mode {
            ReceiveMode::Recv => {
                record.set(flag::RECEIVE);
                self.receive_all(conn, descriptor, is_wide);
            }
            ReceiveMode::Poll => {
                let poll = !record.is(flag::POLL);
                let receive = record.is(flag::READABLE | flag::HANGUP) && !record.is(flag::RECEIVE);
                if poll {
                    record.set(flag::POLL);
                }
                if receive {
                    record.set(flag::RECEIVE);
                    record.clear(flag::READABLE);
                    self.drain(conn, descriptor);
                }
                if poll {
                    self.poll_input(conn, descriptor);
                }
            }
        }
    }

    fn pause(&mut self, conn: ConnKey) {
        let Some(record) = self.records.get(conn) else { return debug_assert!(false, "pause on a stale key") };
        if !record.is(flag::ARMED) || record.is(flag::PAUSING | flag::CLOSING) {
            return;
        }
        record.set(flag::PAUSING);
        match self.mode {
            ReceiveMode::Recv => self.cancel(Token::of_conn(Op::Receive, conn), Op::Pause),
            // The receive that is out answers for the pause.
            ReceiveMode::Poll if record.is(flag::RECEIVE) => {}
            ReceiveMode::Poll => self.deferred.push_back(Deferred::Paused(conn)),
        }
    }

    fn send(&mut self, conn: ConnKey, frame: FrameKey, from: u32) {
        let Some(record) = self.records.get(conn) else { return debug_assert!(false, "send on a stale key") };
        assert!(record.frame.is_none(), "a second send on one connection");
        // The descriptor's place in the table may be another connection's by then.
        assert!(!record.is(flag::CLOSING), "a send after close");
        record.frame = Some(frame);
        let descriptor = record.descriptor();
        self.holding += 1;
        let bytes = &self.palette.lend(frame)[from as usize..];
        // WAITALL: the kernel goes on by itself when the peer takes more; there is no short send to handle.
        let send = opcode::Send::new(Fixed(descriptor), bytes.as_ptr(), bytes.len().min(SEND_MAX) as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        // SAFETY: the palette keeps the lent bytes in place and unchanged until `returned`, which is called when this
        // request has completed; the palette itself is dropped only when `holding` is 0 (`Drop for Uring`).
        unsafe { self.ring.push(&send.user_data(Token::of_conn(Op::Send, conn).0)) };
        self.palette.give(frame);
    }

    fn close(&mut self, conn: ConnKey) {
        let Some(record) = self.records.get(conn) else { return debug_assert!(false, "close on a stale key") };
        if record.is(flag::CLOSING) {
            return;
        }
        record.set(flag::CLOSING | flag::CLOSE);
        let descriptor = Fixed(record.descriptor());
        self.cancel_requests(conn);
        let close = opcode::Close::new(descriptor).build().user_data(Token::of_conn(Op::Close, conn).0);
        // SAFETY: a close names no memory.
        unsafe { self.ring.push(&close) };
    }

    fn shutdown(&mut self, conn: ConnKey) {
        let Some(record) = self.records.get(conn) else { return debug_assert!(false, "shutdown on a stale key") };
        if record.is(flag::CLOSING | flag::INSTALL | flag::SHUTDOWN | flag::FINISH) {
            return;
        }
        if record.frame.is_some() {
            record.set(flag::FINISH);
            return;
        }
        self.end_stream(conn);
    }

    fn ring(&mut self, shard: ShardId) {
        let bell = &self.bells[shard.index()];
        if !bell.take_sleeper() {
            return;
        }
        let Some(target) = bell.ring_fd() else { return bell.knock() };
        let message = opcode::MsgRingData::new(Fd(target), 0, bell::USER_DATA, None).build();
        let message =
            message.flags(squeue::Flags::SKIP_SUCCESS).user_data(Token::of_driver(Op::Knock, u32::from(shard.0)).0);
        // SAFETY: a message names no memory.
        unsafe { self.ring.push(&message) };
    }

    fn announce_sleep(&mut self) {
        self.bells[self.shard.index()].announce_sleep();
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        self.bells[self.shard.index()].clone()
    }

    fn overflows(&self) -> u64 {
        self.ring.counters.overflows
    }

    fn busy_polls(&self) -> (u64, u64) {
        (self.ring.counters.busy_polls, self.ring.counters.busy_poll_hits)
    }

    fn give_back(&mut self) {
        self.records.give_back();
        memory::give_back();
    }

    fn random(&mut self) -> u64 {
        self.random.draw()
    }

    fn palette(&mut self) -> &mut Palette {
        &mut self.palette
    }
}

/// Whether the kernel will post more completions for the request of this one.
fn has_more(completion: &cqueue::Entry) -> bool {
    cqueue::more(completion.flags())
}

/// Least and most entries of the completion queue: 4 for each connection, 64 KiB to 1 MiB. A sixteenth of it is the
/// submission queue.
const COMPLETIONS: (u32, u32) = (4096, 65_536);
/// Completions after which a turn begins, though there may be more to come: few, so that what was received is still in the
/// core's cache when it is looked at and sent.
const COMPLETIONS_A_TURN: usize = 64;
/// The same for a shard that has work left over: it sees all who have come, to serve first who has sent little.
const COMPLETIONS_LEFT_OVER: usize = 1024;
/// Receive buffers that one connection fills before others have their turn, where the kernel can be told; one, until it has
/// filled that.
const BUFFERS_AT_ONCE: u32 = 4;
/// And in all, until its receive is asked for again; one, until it has filled that.
const BUFFERS_A_REQUEST: u32 = 8;
/// Most bytes of one send: the kernel's own bound on one transfer.
const SEND_MAX: usize = 0x7fff_f000;
