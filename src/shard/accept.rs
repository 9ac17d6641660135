//! Newcomers: a slot for a socket, or a refusal.
//! Law: a socket that was accepted is adopted or refused in the same turn. A full table stops accepting, is said once,
//! and accepting goes on when a connection ends or after a pause. Who comes faster than `limits.connections_per_second` is not
//! refused, which would cost nearly as much as taking it in, but waits where it costs nothing, in the kernel.

use std::io;
use std::net::SocketAddr;

use crate::app::forwarded;
use crate::conn::{Conn, Greeting, Seat};
use crate::fixed::TokenBucket;
use crate::id::{ConnKey, GENERATION_MAX};
use crate::io::{Io, Socket};
use crate::metrics::{CloseReason, Refusal};
use crate::ws::decoder::Memory;

use super::Shard;
use super::settings::ACCEPT_RETRY_MS;

/// Whether newcomers are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accepting {
    /// Not asked for yet.
    #[default]
    Idle,
    /// Yes.
    On,
    /// A table is full; again at this time of the shard's clock, or when a connection ends.
    Paused { until_ms: u64 },
    /// Not until this time, since they came faster than they may.
    Paced { until_ms: u64 },
    /// No more: the shard drains.
    Stopped,
}

impl Accepting {
    /// Whether the shard is among those that may get connections.
    pub(super) fn is_counted(self) -> bool {
        matches!(self, Self::On | Self::Paused { .. } | Self::Paced { .. })
    }
}

impl<I: Io> Shard<I> {
    /// Starts accepting.
    pub fn open(&mut self) {
        if self.accepting == Accepting::Idle {
            self.shared.tally.opens();
        }
        self.accepting = Accepting::On;
        self.io.accept();
    }

    pub(super) fn on_accepted(&mut self, socket: Socket) {
        if self.accepting == Accepting::Stopped {
            self.metrics.refused[Refusal::Draining as usize].add(1);
            return self.io.refuse(socket);
        }
        self.pace();
        let (now, greeting) = (self.ms(), self.greeting_for(&socket));
        let begins_with_tls = greeting.is_secure && greeting.request_at.is_some();
        match self.conns.insert_with(|_| Conn::new(now, greeting)) {
            Ok(key) => {
                // In one breath: whatever breaks this shard later, both are as many as the pool says.
                let before = self.shared.tally.arrives();
                self.metrics.opened.add(1);
                self.io.adopt(socket, key);
                self.io.receive(key);
                if begins_with_tls {
                    self.begin_tls(key, &[]);
                }
                self.reschedule(key);
                self.welcome(key, before);
            }
            Err(crate::fixed::Full) => {
                self.metrics.refused[Refusal::Full as usize].add(1);
                self.io.refuse(socket);
            }
        }
    }

    /// Counts a newcomer, and has the next ones wait if they come too fast. Some more may be on their way: they are taken in, and
    /// those after them wait for longer.
    fn pace(&mut self) {
        let Some(rate) = self.settings.connection_rate(self.shared.shards) else { return };
        let now_ms = self.now.monotonic_ms();
        self.newcomers.take(rate, now_ms, 1);
        let until_ms = self.newcomers.admits_from_ms(rate, now_ms, 1);
        if until_ms > now_ms && matches!(self.accepting, Accepting::On | Accepting::Paced { .. }) {
            if self.accepting == Accepting::On {
                self.metrics.accept_paced.add(1);
                self.io.pause_accepting();
            }
            self.accepting = Accepting::Paced { until_ms };
        }
    }

    /// Another rate: what was used of the one before means nothing.
    pub(super) fn forget_pace(&mut self) {
        self.newcomers = TokenBucket::default();
        if let Accepting::Paced { .. } = self.accepting {
            self.open();
        }
    }

    /// What is known of a newcomer by its address. A trusted proxy's attempts are those of its clients, who are known
    /// when it has said whom it passes on.
    fn greeting_for(&self, socket: &Socket) -> Greeting {
        let peer = self.io.peer(socket);
        let proxy = &self.settings.proxy;
        let is_proxied = peer.is_some_and(|peer| forwarded::is_trusted(peer, &proxy.trusted));
        let request_at = if is_proxied && proxy.proxy_protocol { None } else { Some(0) };
        let is_flood = !is_proxied && peer.is_some_and(|peer| self.is_flood(peer));
        let unwelcome = is_flood.then_some(Refusal::RateLimited);
        // Those without TLS come first.
        let is_secure = self.io.port(socket) >= self.settings.plain_ports;
        Greeting { request_at, peer, is_proxied, unwelcome, is_secure, ..Greeting::default() }
    }

    /// From here on nothing is said in the clear; `received` is what has come behind a PROXY header.
    pub(super) fn begin_tls(&mut self, key: ConnKey, received: &[u8]) {
        match self.settings.tls.clone() {
            Some(terms) => self.io.secure(key, &terms.server, received),
            None => self.retire(key, CloseReason::Internal), // there is none of its ports without
        }
    }

    /// Reservations, not checks: of newcomers on all shards never more than there is room for are below a limit. Who
    /// finds the server full is told so when its request is complete; who finds too many such requests on their way, at
    /// once.
    fn welcome(&mut self, key: ConnKey, before: usize) {
        let is_full = before >= self.settings.connections_max as usize;
        let seat = Seat::take(&self.shared.handshakes, self.settings.handshakes_max as usize, &self.metrics);
        let has_seat = seat.is_some();
        if let Some(greeting) = self.greeting(key) {
            greeting.unwelcome = greeting.unwelcome.or(is_full.then_some(Refusal::Full));
            greeting.seat = seat;
        }
        if !has_seat {
            let why = "too many handshakes are in flight; connect again later";
            self.turn_down(key, 503, why, Refusal::Handshakes);
        }
    }

    /// Whether too many attempts come from where this one does.
    pub(super) fn is_flood(&self, client: SocketAddr) -> bool {
        let now_ms = self.now.monotonic_ms();
        self.settings.attempts.as_ref().is_some_and(|attempts| !attempts.admit(client.ip(), now_ms))
    }

    pub(super) fn on_accept_stopped(&mut self, error: &io::Error) {
        if self.accepting == Accepting::Stopped {
            return;
        }
        if self.metrics.accept_stopped.get() == 0 {
            tracing::warn!(
                shard = self.id.0,
                %error,
                connections = self.conns.len(),
                "accepting pauses: a descriptor table is full; raise `nofile` (or fs.file-max) or lower \
                 websocket.max_total_connections. Said once; see tidewheel_accept_stopped_total"
            );
        }
        self.metrics.accept_stopped.add(1);
        self.accepting = Accepting::Paused { until_ms: self.now.monotonic_ms() + ACCEPT_RETRY_MS };
    }

    pub(super) fn accept_retry_ms(&self) -> Option<u64> {
        match self.accepting {
            Accepting::Paused { until_ms } | Accepting::Paced { until_ms } => Some(until_ms),
            Accepting::Idle | Accepting::On | Accepting::Stopped => None,
        }
    }

    /// Goes on accepting if it waits and the time has come.
    pub(super) fn resume_accepting(&mut self) {
        if self.accept_retry_ms().is_some_and(|until_ms| until_ms <= self.now.monotonic_ms()) {
            self.open();
        }
    }

    /// The kernel is done with a connection: its slot is free, and so is its descriptor.
    pub(super) fn on_closed(&mut self, key: ConnKey) {
        if self.conns.remove(key).is_some() {
            if key.generation == GENERATION_MAX {
                self.names.begin_anew(key.slot);
            }
            if self.shared.tally.leave(1) {
                self.bus.wake_others(); // it was the last of all, and they wait for that to end
            }
        }
        if self.conns.is_empty() && self.conns.slots() >= GIVE_BACK_SLOTS {
            if self.conns.next_generation() == 1 {
                self.names.begin_all_anew();
            }
            self.conns.give_back();
            self.wheel.give_back();
            self.sessions.give_back();
            self.io.give_back();
            self.io.palette().give_back();
            self.gathered = Memory::default();
        }
        if let Accepting::Paused { .. } = self.accepting {
            self.open();
        }
    }
}

/// A shard that had at least so many connections, and has none any more, gives their memory back. Fewer come and go.
const GIVE_BACK_SLOTS: u32 = 4096;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Config;
    use crate::app::Router;
    use crate::conn::ConnPool;
    use crate::id::{SessionId, ShardId};
    use crate::io::sim::{Faults, Sim, SimConfig, World};
    use crate::pubsub::Bus;
    use crate::shard::{Settings, Shared};

    /// A shard whose first connection has this generation.
    fn shard(generation: u32) -> Shard<Sim> {
        let world = World::new(1, Faults::default());
        let shared = Arc::new(Shared::new(Router::default(), Bus::new(1), Arc::default()));
        let settings = Arc::new(Settings::new(&Config::default(), GIVE_BACK_SLOTS, GIVE_BACK_SLOTS));
        let io = world.driver(ShardId(0), SimConfig { table: 9, buffers: 9, buffer_size: 99 });
        let mut shard = Shard::new(ShardId(0), io, settings, shared, Arc::default(), Arc::default(), world.now());
        shard.conns = ConnPool::starting_at(GIVE_BACK_SLOTS, generation);
        shard
    }

    /// So many connections come and go; the ids of their sessions.
    fn come_and_go(shard: &mut Shard<Sim>, count: u32) -> Vec<SessionId> {
        let newcomer = |_| {
            shard.shared.tally.arrives();
            shard.conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap()
        };
        let keys: Vec<ConnKey> = (0..count).map(newcomer).collect();
        let ids = keys.iter().map(|&key| shard.session_id(key)).collect();
        keys.into_iter().for_each(|key| shard.on_closed(key));
        ids
    }

    #[test]
    fn no_session_has_the_id_of_another_one_after_all_generations_of_its_slot() {
        let mut shard = shard(GENERATION_MAX);
        let first = shard.session_id(ConnKey { slot: 0, generation: 1 });
        let ids: Vec<SessionId> = (0..2).flat_map(|_| come_and_go(&mut shard, 1)).collect();
        assert_eq!([0, 1].map(|at: usize| ids[at].conn().generation), [GENERATION_MAX, 1]);
        assert_ne!(ids[1], first);
    }

    #[test]
    fn nor_has_one_after_the_memory_of_all_slots_was_given_back() {
        let mut shard = shard(GENERATION_MAX - 1);
        let first = shard.session_id(ConnKey { slot: 7, generation: 1 });
        come_and_go(&mut shard, GIVE_BACK_SLOTS);
        assert_eq!(shard.conns.slots(), 0, "given back");
        let ids = come_and_go(&mut shard, 8);
        assert_eq!((ids[7].conn(), ids[7] == first), (first.conn(), false));
    }
}
