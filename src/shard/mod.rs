//! One shard: a thread, a ring, and everything its connections need.
//!
//! Law: [`Shard::turn`] is the whole order of work. Whatever happens in a turn only changes this shard's own data and
//! appends to queues; everything that leaves the shard leaves at the end of the turn, in one submission.

mod accept;
mod actions;
mod anonymous;
#[cfg(test)]
mod budgets;
mod closing;
mod codecs;
mod commands;
mod contain;
mod drain;
mod drained;
pub mod errands;
pub mod executor;
mod expire;
mod fair;
mod flush;
mod handshake;
mod held;
mod inbound;
mod mail;
mod orders;
mod publish;
pub mod queries;
mod rates;
mod reload;
mod restart;
mod sessions;
pub mod settings;
mod tally;

use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;

use crate::app::context::Desk;
use crate::app::{Clients, Router};
use crate::conn::{Conn, ConnPool, FlushLine, Gather, Ms, Receiving, Unflushed};
use crate::fixed::{Line, TimerWheel, TokenBucket};
use crate::id::{ConnKey, SessionId, SessionNames, ShardId};
use crate::io::{Completion, Io, Now, Wait};
use crate::metrics::ShardMetrics;
use crate::pubsub::{Bus, BusPort, Receipts, Registry, Topics, WindowCounts};
use crate::sync::AtomicUsize;
use crate::tls::Layer;
use crate::ws::decoder::Memory;
use crate::ws::deflate::INFLATER_BYTES;
use codecs::Codecs;
pub use drain::DrainOrder;
use executor::Executor;
use fair::Fairness;
pub use orders::{Inbox, Order};
use publish::{Budget, Owed};
pub use restart::Estate;
use sessions::Sessions;
use settings::{LATE_A_TURN, STARVED_A_TURN, Settings};
pub use tally::Tally;

/// What all shards of an engine share.
#[derive(Debug)]
pub struct Shared {
    /// The user's handlers.
    pub router: Router,
    /// Which shards have subscribers of which topic.
    pub registry: Arc<Registry>,
    /// The queues between shards.
    pub bus: Arc<Bus>,
    /// How many shards there are.
    pub shards: usize,
    /// Which connections each client has.
    pub clients: Arc<Clients>,
    /// Which connections without an identity each address has.
    pub addresses: Clients,
    /// Handshakes in flight on all shards.
    pub handshakes: Arc<AtomicUsize>,
    /// Connections that take compressed messages, by their window.
    pub windows: WindowCounts,
    /// How many connections there are, and who accepts: what they must agree on to end together.
    pub tally: Tally,
}

impl Shared {
    /// What the shards of an engine that begins share; there are as many as the bus joins.
    pub fn new(router: Router, bus: Arc<Bus>, clients: Arc<Clients>) -> Self {
        let shards = bus.shards();
        Self {
            router,
            registry: Arc::new(Registry::new(shards)),
            bus,
            shards,
            clients,
            addresses: Clients::default(),
            handshakes: Arc::default(),
            windows: WindowCounts::default(),
            tally: Tally::default(),
        }
    }
}

/// A shard.
pub struct Shard<I: Io> {
    id: ShardId,
    io: Layer<I>,
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    metrics: Arc<ShardMetrics>,
    now: Now,

    names: SessionNames,
    conns: ConnPool,
    sessions: Sessions,
    wheel: TimerWheel,
    topics: Topics,
    bus: BusPort,
    receipts: Receipts<Owed>,
    executor: Executor,
    desk: Rc<Desk>,
    inbox: Arc<Inbox>,

    /// Questions about all connections that are on their way.
    walks: queries::Walks,
    /// Who has something to flush.
    unflushed: Unflushed,
    /// Since when those who leave have been more than one turn takes.
    leaving_since_ms: Option<u64>,
    /// Slots whose queue refused a published frame this turn.
    over: Vec<u32>,
    /// Connections to start reading from again at the end of the turn.
    rearm: Vec<ConnKey>,
    /// Those that found no free buffer, and wait for some.
    starved: Line<ConnKey>,
    /// Those who have been told their last and are to be read from again, so that it is not destroyed.
    late: Line<ConnKey>,
    /// Connections whose publish waits for its turn and for room on the bus, in order.
    held: Line<ConnKey>,
    /// Who has a share of this turn, and who waits for one.
    fair: Fairness,
    /// Handlers that wait for connections to drain.
    waiters: drained::Waiters,
    /// Publishes that the connection at hand may still make before others have their turn.
    share: u32,
    /// What this turn's own publishes may still put on queues.
    budget: Budget,
    /// What other shards' publishes may, in this turn.
    mail_budget: Budget,
    /// Whether this turn began with all of both.
    refilled: bool,
    /// Whose mail was taken first.
    first_sender: u16,
    gather: Gather,
    /// What messages that come in pieces are gathered in.
    gathered: Memory,
    codecs: Codecs,
    /// Connections that have an inflater of their own.
    inflaters: usize,
    /// Connections that are counted by address, and under which name.
    anonymous: HashMap<ConnKey, Box<str>, RandomState>,
    /// Handlers called so far, to time one in some.
    calls: u32,
    /// What [`Conn::inbound_bytes`] of all connections add up to.
    inbound_bytes: usize,
    /// The slot from which on holders of such bytes are looked for, when these are too many.
    relieve_from: u32,

    accepting: accept::Accepting,
    /// What newcomers have used of `limits.connections_per_second`.
    newcomers: TokenBucket,
    draining: Option<drain::Draining>,
    /// The slot at which setting the timers anew goes on, after a reload.
    resetting: Option<u32>,
    /// What the drivers before this one counted.
    overflows_before: u64,
    /// Until then nobody is judged idle or late: the shard was away, and reads first. Milliseconds of its clock.
    lenient_until_ms: u64,
}

/// Whether a shard has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Call again.
    Again,
    /// The drain is over; nothing is left.
    Done,
}

impl<I: Io> Shard<I> {
    /// A shard that accepts as soon as it turns.
    pub fn new(
        id: ShardId,
        io: I,
        settings: Arc<Settings>,
        shared: Arc<Shared>,
        metrics: Arc<ShardMetrics>,
        inbox: Arc<Inbox>,
        now: Now,
    ) -> Self {
        let capacity = settings.slots;
        let publishes_max = shared.bus.publishes_max();
        let mut io = Layer::new(io, metrics.clone());
        inbox.attach(io.doorbell());
        Self {
            id,
            now,
            names: SessionNames::new([io.random(), io.random()]),
            conns: ConnPool::new(capacity),
            sessions: Sessions::new(),
            wheel: TimerWheel::new(capacity, WHEEL_TICK_MS, now.monotonic_ms()),
            topics: Topics::new(id, shared.registry.clone()),
            bus: shared.bus.port(id),
            receipts: Receipts::new(publishes_max),
            executor: Executor::new(settings.parked_max, io.doorbell(), now.monotonic_ms()),
            desk: Rc::default(),
            inbox,
            walks: queries::Walks::default(),
            unflushed: Unflushed::default(),
            leaving_since_ms: None,
            over: Vec::new(),
            rearm: Vec::new(),
            starved: Line::default(),
            late: Line::default(),
            held: Line::new(),
            fair: Fairness::default(),
            waiters: drained::Waiters::default(),
            share: 0,
            budget: Budget::default(),
            mail_budget: Budget::default(),
            refilled: false,
            first_sender: 0,
            gather: Gather::default(),
            gathered: Memory::default(),
            codecs: Codecs::new(&settings.compression, metrics.clone()),
            inflaters: 0,
            anonymous: HashMap::default(),
            calls: 0,
            inbound_bytes: 0,
            relieve_from: 0,
            accepting: accept::Accepting::default(),
            newcomers: TokenBucket::default(),
            draining: None,
            resetting: None,
            overflows_before: 0,
            lenient_until_ms: 0,
            io,
            settings,
            shared,
            metrics,
        }
    }

    /// One turn of the loop: the order of work.
    ///
    /// # Errors
    /// Only when the ring itself is broken; the shard cannot go on, see [`Shard::break_up`].
    pub fn turn(&mut self) -> io::Result<Turn> {
        // Looked at first: what the turn before wanted of the kernel, the others' doorbells too, leaves with this wait.
        let done = self.is_done();
        let wait = if done { Wait::No } else { self.nap() };
        let before = std::mem::replace(&mut self.now, self.io.wait(wait)?);
        self.notice_turn(before);

        self.take_settings(); // a reload: everything in a turn is judged by one set of settings
        self.refill();
        self.retry_held(); // messages that waited: for room, for acks, for their share of a turn
        self.reap(); // what the kernel has: newcomers, bytes, ends of sends
        self.take_mail(); // what other shards published, and their counts
        self.take_orders(); // what other threads want: publishes, answers, the drain
        self.walk(); // a slice of a question about all connections
        self.poll_handlers(); // futures that were woken
        self.expire(); // deadlines
        self.part_from_slow(); // queues over their bound
        self.flush(); // one send for each connection that has something to say, or for many of them

        self.rearm();
        self.ring();
        self.publish_gauges();
        Ok(if done { Turn::Done } else { Turn::Again })
    }

    /// The shard has drained: whoever leaves an order is refused, and so is who still waits for what became of a publish from
    /// outside, since the shards that would count it may have ended.
    pub fn end(self) {
        self.inbox.close();
        if self.accepting.is_counted() {
            self.shared.tally.stops();
        }
        // None, unless the kernel did not let go of one: others that drain need not wait for it.
        self.shared.tally.leave(self.conns.len());
    }

    /// Takes what the kernel has completed; one batch, since completions are only made while waiting.
    fn reap(&mut self) {
        let mut events = 0;
        while let Some(completion) = self.io.poll() {
            events += 1;
            match completion {
                Completion::Received { conn, bytes, armed } => self.on_received(conn, bytes, armed),
                Completion::Sent { conn, sent } => self.on_sent(conn, sent),
                Completion::ReceiveStopped { conn, starved } => self.on_receive_stopped(conn, starved),
                Completion::ReceiveEnded { conn, lost } => self.on_receive_ended(conn, lost),
                Completion::Accepted(socket) => self.on_accepted(socket),
                Completion::AcceptStopped(error) => self.on_accept_stopped(&error),
                Completion::Closed { conn } => self.on_closed(conn),
                Completion::Rang => {}
            }
        }
        self.metrics.turn_events.observe(events);
    }

    /// How long the next wait may be: not at all while work is left, else until the next deadline. The sleep is
    /// announced before the queues are looked at for the last time, so that whoever pushes later rings.
    fn nap(&mut self) -> Wait {
        if self.has_work() {
            return Wait::No;
        }
        self.io.announce_sleep();
        if self.has_work() {
            return Wait::No;
        }
        let now = self.now.monotonic_ms();
        // What waits for room on the bus is not told when there is some.
        let waits = !self.held.is_empty() || self.inbox.has_orders();
        let retry = waits.then_some(now + HELD_RETRY_MS);
        let deadlines = [
            self.wheel.next_deadline_ms(),
            self.handler_deadline_ms(),
            self.accept_retry_ms(),
            self.drain_due_ms(),
            retry,
        ];
        let deadline = deadlines.into_iter().flatten().min();
        match deadline {
            Some(deadline) => Wait::AtMost(Duration::from_millis(deadline.saturating_sub(now))),
            None => Wait::Forever,
        }
    }

    fn has_work(&mut self) -> bool {
        !self.unflushed.is_empty()
            || !self.starved.is_empty()
            || !self.late.is_empty()
            || self.can_retry()
            || !self.desk.is_empty()
            || self.bus.has_mail()
            || self.executor.has_ready()
            || self.inbox.wants_drain()
            || self.has_settings_to_take()
            || !self.walks.is_empty()
            || (self.inbox.has_orders() && self.has_room_on_bus())
            || self.is_done() // told by a ring alone, which nobody hears before the sleep is announced
    }

    /// Takes note of how long the turn before worked. If the shard has not looked at its sockets for a while, it slept or
    /// was frozen, and cannot tell which. What peers sent meanwhile may still be in the kernel, so nobody is judged
    /// silent or slow until it has been read.
    fn notice_turn(&mut self, before: Now) {
        let worked_until_ns = self.io.slept_from_ns().unwrap_or(self.now.monotonic_ns);
        self.metrics.turn.observe(worked_until_ns.saturating_sub(before.monotonic_ns));
        let now_ms = self.now.monotonic_ms();
        if now_ms.saturating_sub(before.monotonic_ms()) > settings::ABSENCE_MS {
            self.lenient_until_ms = now_ms + settings::READ_FIRST_MS;
        }
    }

    /// What may be put on queues is for as many turns as it takes to flush it.
    fn refill(&mut self) {
        self.refilled = self.unflushed.len(FlushLine::Crowd) == 0;
        if self.refilled {
            self.budget = Budget::of_turn(&self.settings.outbound);
            self.mail_budget = self.budget;
        }
        self.fair.begin_turn(self.now.monotonic_ns);
    }

    fn rearm(&mut self) {
        let mut rearm = std::mem::take(&mut self.rearm); // nothing is added meanwhile; the list keeps its memory
        for key in rearm.drain(..) {
            let conns = &self.conns;
            match conns.get(key).is_some_and(Conn::is_listened_to) {
                true => self.arm(key),
                false => self.late.push(key, conns.len(), |key| inbound::is_rearming(conns, key)),
            }
        }
        self.rearm = rearm;
        // As many as may find a buffer: each that does not costs as much as one that does, and all of them each turn would
        // leave no time for those.
        for _ in 0..STARVED_A_TURN {
            let Some(key) = self.starved.pop() else { break };
            self.arm(key);
        }
        for _ in 0..LATE_A_TURN {
            let Some(key) = self.late.pop() else { break };
            self.arm(key);
        }
    }

    fn arm(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.receive_ended() {
            return;
        }
        conn.receiving = Receiving::Armed;
        if !inbound::is_too_late(conn, &self.settings)
            && conn.held().is_none()
            && !matches!(conn.phase, crate::conn::Phase::Gone)
        {
            self.io.receive(key);
        }
    }

    fn ring(&mut self) {
        for shard in self.bus.take_rings().iter() {
            self.io.ring(shard);
        }
    }

    fn publish_gauges(&mut self) {
        let metrics = &self.metrics;
        metrics.turns.add(1);
        let (busy_polls, hits) = self.io.busy_polls();
        metrics.busy_polls.set(busy_polls);
        metrics.busy_poll_hits.set(hits);
        metrics.cq_overflow.set(self.overflows_before + self.io.overflows());
        metrics.frames.set(self.io.palette().live() as u64);
        metrics.topics.set(self.topics.len() as u64);
        metrics.subscriptions.set(self.topics.subscriptions() as u64);
        metrics.parked.set(self.executor.parked() as u64);
        metrics.frame_bytes.set(self.io.palette().live_bytes() as u64);
        metrics.inbound_bytes.set(self.inbound_bytes as u64);
        metrics.pool_bytes.set((self.conns.bytes() + self.wheel.bytes() + self.sessions.bytes()) as u64);
        metrics.spare_in_bytes.set(self.gathered.bytes() as u64);
        metrics.spare_out_bytes.set(self.io.palette().spare_bytes() as u64);
        metrics.inflater_bytes.set((self.inflaters * INFLATER_BYTES) as u64);
        metrics.unflushed.set(self.unflushed.total() as u64);
        metrics.in_line.set(self.held.len() as u64);
        metrics.sharing.set(self.fair.waiting() as u64);
        metrics.receipts_waiting.set(self.receipts.len() as u64);
    }

    /// The connection's clock: milliseconds, wrapping.
    fn ms(&self) -> Ms {
        self.now.monotonic_ms() as Ms
    }

    fn session_id(&self, key: ConnKey) -> SessionId {
        self.names.of(self.id, key)
    }

    /// The connection that a session's id names, if it is here and the id was not made up.
    pub fn find_session(&self, id: SessionId) -> Option<ConnKey> {
        let key = id.conn();
        (self.session_id(key) == id && self.conns.get(key).is_some()).then_some(key)
    }

    /// The driver, for tests that look at it from outside.
    pub fn io_mut(&mut self) -> &mut I {
        self.io.inner_mut()
    }

    /// The most bytes of any one connection that may not be looked at yet, the most that wait for one, and how many
    /// connections are listed to be tried again: for tests of the bounds.
    pub fn heaviest(&self) -> [usize; 3] {
        let held = |conn: &Conn| conn.held().map_or(0, |held| held.waiting_bytes());
        let outbound =
            |conn: &Conn| conn.outbound.bytes() + conn.receipts.map_or(0, |newest| self.receipts.waiting(newest));
        let most = |of: &dyn Fn(&Conn) -> usize| self.conns.iter().map(|(_, conn)| of(conn)).max().unwrap_or(0);
        [most(&held), most(&outbound), self.held.len() + self.fair.waiting()]
    }

    /// What must be nothing once every connection has gone: connections, timers, topics, unanswered publishes, parked
    /// handlers, frames.
    pub fn leftovers(&mut self) -> [(&'static str, usize); 11] {
        [
            ("sessions", self.sessions.live(self.conns.slots())),
            ("connections", self.conns.len()),
            ("timers", self.wheel.len()),
            ("topics", self.topics.len()),
            ("receipts", self.receipts.len()),
            ("handlers", self.executor.parked()),
            ("frames", self.io.palette().live()),
            ("bytes of frames", self.io.palette().live_bytes()),
            ("bytes received", self.inbound_bytes),
            ("inflaters", self.inflaters),
            ("TLS connections", self.io.live()),
        ]
    }
}

const WHEEL_TICK_MS: u64 = 8;
/// How soon a message that waits for room on the bus is tried again, if nothing else happens.
const HELD_RETRY_MS: u64 = 1;
