//! What becomes of a shard that broke: by a panic in the middle of anything, or because its ring did.
//!
//! Law: of the old shard's own data nothing is used again but to read who there is to say goodbye to, and to remember their
//! sessions as ended. What other shards
//! see of it is put right from structures that are right at every instant, however far a turn had got: the registry,
//! the clients' lists, this shard's end of the bus, the metrics. In the order of this file:
//!
//! 1. *Settle*: no topic names this shard any more; its connections leave their clients' lists; the publish that it was
//!    about is answered with nothing; the mail it had been told of is looked for again. What it has published itself is
//!    still counted by others; [`BusPort`] knows how many counts are coming and discards as many, so that none reaches a
//!    receipt of the new shard. From here on no other shard waits for anything.
//! 2. *Say goodbye*: while the driver still works, whoever is between two frames is told (`disconnect`, 1011).
//! 3. *Account*: whoever was not closed is counted as closed now; opened = closed, and the engine's total is less by them.
//! 4. *Start again*, with a new driver. Keys of the new pool begin where those of the old ended, so that an eviction, an
//!    order or a completion that was meant for the dead finds nothing. A drain goes on as it was.

use std::sync::Arc;
use std::time::Duration;

use crate::app::envelope::EnvelopeWriter;
use crate::conn::{ConnPool, Gather, LateBytes, Ms, Phase, Receiving};
use crate::contain::{contain, drop_quietly};
use crate::id::{ConnKey, ShardId};
use crate::io::{Completion, Io, Lost, Now, Wait};
use crate::metrics::{CloseReason, Drop, PanicSite, ShardMetrics};
use crate::pubsub::BusPort;
use crate::tls::{Bytes, Layer};
use crate::ws::{self, Opcode};

use super::accept::Accepting;
use super::contain::INTERNAL;
use super::drain::Draining;
use super::sessions::Sessions;
use super::settings::Settings;
use super::{Inbox, Shard, Shared};

/// What a broken shard leaves to the one that takes its place.
#[derive(Debug)]
pub struct Estate {
    id: ShardId,
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    metrics: Arc<ShardMetrics>,
    inbox: Arc<Inbox>,
    bus: BusPort,
    /// Those of the old shard have all ended.
    sessions: Sessions,
    accepting: Accepting,
    draining: Option<Draining>,
    /// The first generation that no key of the old shard had.
    generation: u32,
    /// What the old drivers counted.
    overflows: u64,
}

impl<I: Io> Shard<I> {
    /// Takes a shard apart after a panic of [`Shard::turn`], or an error. What comes back is the driver, to be ended, and
    /// what the next shard needs. Takes half a second if peers are slow to take their leave.
    pub fn break_up(self, panicked: bool) -> (I, Estate) {
        let Self {
            id,
            mut io,
            settings,
            shared,
            metrics,
            now,
            mut conns,
            mut bus,
            executor,
            receipts,
            desk,
            waiters,
            walks,
            sessions,
            names,
            inbox,
            accepting,
            mut draining,
            overflows_before,
            ..
        } = self;
        if panicked {
            metrics.panics[PanicSite::Shard as usize].add(1);
        }
        shared.registry.leave_all(id);
        shared.clients.release_all(id);
        shared.addresses.release_all(id);
        let _ = contain(|| conns.iter().for_each(|(_, conn)| shared.windows.leave(conn.window_bits())));
        bus.restart();
        // What others wait for, and what they do when they learn that it will not come, is code of the user's.
        drop(executor);
        receipts.abandon().for_each(drop_quietly);
        desk.take().into_iter().for_each(drop_quietly);
        waiters.into_values().flatten().for_each(drop_quietly);
        drop_quietly(walks);
        let most = settings.closed_sessions_max(shared.shards);
        let end_all = || sessions.end_all(&conns, |key| names.of(id, key), now.unix_ms, &settings.history, most);
        let sessions = contain(end_all).unwrap_or_else(|_| Sessions::new());
        let overflows = overflows_before + contain(|| io.overflows()).unwrap_or(0);
        let gone = conns.len();
        // The driver may be what broke; then nobody is told.
        let said = contain(|| Goodbye { io: &mut io, conns: &mut conns, bus: &mut bus, metrics: &metrics, now }.say());
        if let Err(panic) = said {
            tracing::error!(shard = id.0, panic, "saying goodbye panicked too; who was not told is cut");
        }
        shared.tally.leave(gone);
        let unaccounted = metrics.active();
        metrics.closed[CloseReason::Internal as usize].add(unaccounted);
        // Those that the next shard would write in its first turn too: there may be none.
        let counted = [&metrics.authenticated, &metrics.frames, &metrics.topics, &metrics.subscriptions];
        let held = [&metrics.parked, &metrics.frame_bytes, &metrics.inbound_bytes, &metrics.in_line, &metrics.sharing];
        let tls = [&metrics.tls_connections, &metrics.tls_waiting];
        let others = [&metrics.receipts_waiting, &metrics.inflater_bytes, &metrics.unflushed];
        let spare = [&metrics.spare_in_bytes, &metrics.spare_out_bytes];
        let gauges = counted.into_iter().chain(held).chain(tls).chain(others).chain(spare);
        gauges.for_each(|gauge| gauge.set(0));
        draining.iter_mut().for_each(Draining::lose_everyone);
        let generation = conns.next_generation();
        (
            io.into_inner(),
            Estate { id, settings, shared, metrics, inbox, bus, sessions, accepting, draining, generation, overflows },
        )
    }

    /// The shard that takes the place of a broken one.
    pub fn succeed(estate: Estate, io: I, now: Now) -> Self {
        let Estate { id, settings, shared, metrics, inbox, bus, sessions, accepting, draining, generation, overflows } =
            estate;
        metrics.restarts.add(1);
        let conns = ConnPool::starting_at(settings.slots, generation);
        let mut shard = Self::new(id, io, settings, shared, metrics, inbox, now);
        (shard.bus, shard.conns, shard.sessions, shard.overflows_before) = (bus, conns, sessions, overflows);
        shard.bus.wake_others(); // the old shard may not have got to that
        (shard.accepting, shard.draining) = (accepting, draining);
        match accepting {
            Accepting::Stopped => shard.io.stop_accepting(),
            Accepting::Idle | Accepting::On | Accepting::Paused { .. } | Accepting::Paced { .. } => shard.open(),
        }
        shard
    }
}

impl Estate {
    /// The shard is not to be replaced: whoever leaves an order is refused.
    pub fn bury(self) {
        self.inbox.close();
        if self.accepting.is_counted() {
            self.shared.tally.stops();
        }
    }
}

/// The last words of a broken shard, said with its driver and what its connections have in flight, and nothing else.
struct Goodbye<'a, I: Io> {
    io: &'a mut Layer<I>,
    conns: &'a mut ConnPool,
    bus: &'a mut BusPort,
    metrics: &'a ShardMetrics,
    now: Now,
}

impl<I: Io> Goodbye<'_, I> {
    /// Tells everyone who can be told, and waits until they have taken it and left, or for so long.
    fn say(&mut self) {
        self.io.pause_accepting(); // newcomers wait for the next shard
        self.bus.take_rings().iter().for_each(|shard| self.io.ring(shard)); // they may wait for what was settled
        let keys: Vec<ConnKey> = self.conns.keys().collect();
        let (mut told, mut panics) = (0, 0);
        for key in keys {
            match contain(|| self.tell(key)) {
                Ok(is_told) => told += usize::from(is_told),
                Err(_) => panics += 1,
            }
            if panics > PANICS_MAX {
                return;
            }
        }
        let until_ms = self.now.monotonic_ms() + PATIENCE_MS;
        while told > 0 && self.now.monotonic_ms() < until_ms {
            let left = Duration::from_millis(until_ms - self.now.monotonic_ms());
            let Ok(now) = self.io.wait(Wait::AtMost(left)) else { return };
            self.now = now;
            while let Some(completion) = self.io.poll() {
                told -= usize::from(self.on_completion(completion)).min(told);
            }
        }
    }

    /// Puts the last words behind the frame that is being sent, in place of everything that waits.
    fn tell(&mut self, key: ConnKey) -> bool {
        let Some(conn) = self.conns.get_mut(key) else { return false };
        // Who is past that has been told why it ends, or is no WebSocket.
        let can_be_told = matches!(conn.phase, Phase::Open | Phase::Settling(..));
        conn.phase = if can_be_told { Phase::Closing(LateBytes::default()) } else { Phase::Gone };
        let palette = self.io.palette();
        let dropped = &self.metrics.dropped[Drop::Closed as usize];
        if !can_be_told {
            dropped.add(conn.outbound.clear(palette));
            return false;
        }
        dropped.add(conn.outbound.forget_waiting(palette));
        let unix_ms = self.now.unix_ms;
        conn.outbound.reply(palette, self.now.monotonic_ms() as Ms, |out| {
            ws::frame_of(out, Opcode::Text, |out| {
                EnvelopeWriter::push(out, unix_ms).disconnect(1011, INTERNAL, true, 0);
            });
            ws::close(out, 1011, INTERNAL);
        });
        let receive_ended = conn.receive_ended();
        self.flush(key);
        if !receive_ended {
            self.io.receive(key); // it may have been paused, and what is not read destroys these words
        }
        true
    }

    fn flush(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Some(part) = conn.outbound.next_send(self.io.palette(), &mut Gather::default()) {
            self.io.send(key, part.frame, part.from);
        }
    }

    /// Whether somebody who was told has now left.
    fn on_completion(&mut self, completion: Completion<Bytes<I::Buffer>>) -> bool {
        match completion {
            Completion::Sent { conn, sent: Ok(sent) } => self.on_sent(conn, sent),
            Completion::Sent { conn, sent: Err(_) } => self.close(conn),
            // Input that nobody reads would make the kernel reset the connection and destroy what was sent.
            Completion::Received { conn, armed: false, .. } | Completion::ReceiveStopped { conn, .. } => {
                if self.is_told(conn) {
                    self.io.receive(conn);
                }
                false
            }
            Completion::ReceiveEnded { conn, lost: Lost::Broken(_) } => self.close(conn),
            Completion::ReceiveEnded { conn: key, lost: Lost::EndOfStream } => {
                let Some(conn) = self.conns.get_mut(key) else { return false };
                conn.receiving = Receiving::Ended;
                conn.outbound.is_empty() && self.close(key)
            }
            Completion::Accepted(socket) => {
                self.io.refuse(socket);
                false
            }
            Completion::Received { armed: true, .. }
            | Completion::AcceptStopped(_)
            | Completion::Closed { .. }
            | Completion::Rang => false,
        }
    }

    fn on_sent(&mut self, key: ConnKey, sent: u32) -> bool {
        if !self.is_told(key) {
            return false;
        }
        let Some(conn) = self.conns.get_mut(key) else { return false };
        self.metrics.bytes_out.add(u64::from(sent));
        if let Some(rest) = conn.outbound.on_sent(self.io.palette(), sent) {
            self.io.send(key, rest.frame, rest.from);
        } else if !conn.outbound.is_empty() {
            self.flush(key);
        } else if conn.receive_ended() {
            return self.close(key);
        } else {
            self.io.shutdown(key); // and its input is read until it has left too
        }
        false
    }

    fn close(&mut self, key: ConnKey) -> bool {
        if !self.is_told(key) {
            return false;
        }
        if let Some(conn) = self.conns.get_mut(key) {
            conn.phase = Phase::Gone;
        }
        self.io.close(key);
        true
    }

    fn is_told(&self, key: ConnKey) -> bool {
        self.conns.get(key).is_some_and(|conn| matches!(conn.phase, Phase::Closing(_)))
    }
}

/// How long a broken shard waits for peers to take its last words. Other shards do not wait for it meanwhile.
const PATIENCE_MS: u64 = 500;
/// Connections that cannot be told, because something they share is broken, until no other is tried.
const PANICS_MAX: usize = 8;
