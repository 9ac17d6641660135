//! The contract of `Io`, exercised by a small echo shard on the simulated kernel, one run a seed.
//! Law: every run ends clean, and each client's bytes come back in order; a shard that breaks the contract is caught.
//!
//! `SIM_SEED=17 cargo test --test io_sim` runs one seed; `SIM_SEEDS=100000` runs that many.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tidewheel::id::{ConnKey, ShardId};
use tidewheel::io::sim::{ClientId, ClientState, Dice, Faults, Sim, SimConfig, World};
use tidewheel::io::{Completion, FrameKey, Io, Lost, Wait};

#[test]
fn echo_under_swarms_of_faults() {
    for_each_seed(|seed| {
        run(seed, Faults::swarm(&mut Dice::new(!seed)), Mistake::None);
    });
}

#[test]
fn echo_under_all_faults() {
    for_each_seed(|seed| {
        run(seed, Faults::all(), Mistake::None);
    });
}

#[test]
fn without_faults_every_byte_comes_back() {
    for_each_seed(|seed| {
        let outcome = run(seed, Faults::default(), Mistake::None);
        assert_eq!(outcome.echoed_in_full, outcome.expected_in_full, "clients whose bytes all came back");
    });
}

#[test]
fn equal_seeds_make_equal_runs() {
    let trace = |seed| run(seed, Faults::all(), Mistake::None).trace;
    let traces: Vec<u64> = (0..50).map(trace).collect();
    assert_eq!(traces, (0..50).map(trace).collect::<Vec<_>>());
    assert!(traces.windows(2).all(|pair| pair[0] != pair[1]), "different seeds make different runs");
}

#[test]
fn broken_shards_are_caught() {
    let check = |mistake, complaint: &str| {
        let caught = |&seed: &u64| {
            catch_unwind(|| run(seed, Faults::all(), mistake)).is_err_and(|payload| {
                let text = message(&*payload);
                assert!(text.contains(complaint), "seed {seed}: {mistake:?} was caught, but as {text:?}");
                true
            })
        };
        let first = (0..100).find(caught);
        assert!(first.is_some(), "{mistake:?} goes unnoticed");
    };
    check(Mistake::ReusesSlotBeforeClosed, "the slot is still in use");
    check(Mistake::SendsTwice, "one is in flight already");
    check(Mistake::SendsBeyondTheEnd, "from byte");
    check(Mistake::ClosesTwice, "after its close");
    check(Mistake::ActsOnStaleKey, "is not adopted");
    check(Mistake::ShutsDownUnderSend, "with a send in flight");
    check(Mistake::ForgetsSocket, "neither adopted nor refused");
    check(Mistake::KeepsBuffers, "receive buffers did not come back");
    check(Mistake::SkipsBytes, "not what it sent");
}

/// What a deliberately wrong echo shard does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    ReusesSlotBeforeClosed,
    SendsTwice,
    SendsBeyondTheEnd,
    ClosesTwice,
    ActsOnStaleKey,
    ShutsDownUnderSend,
    ForgetsSocket,
    KeepsBuffers,
    SkipsBytes,
}

/// Sends back what it receives, and closes after the end of the stream.
struct Echo {
    sim: Sim,
    mistake: Mistake,
    slots: Vec<Slot>,
    /// Turns until accepting is tried again.
    accept_in: Option<u32>,
    kept: Vec<<Sim as Io>::Buffer>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    conn: Option<Conn>,
}

#[derive(Default)]
struct Conn {
    pending: Vec<u8>,
    sending: Option<(FrameKey, u32)>,
    armed: bool,
    pausing: bool,
    ended: bool,
    closing: bool,
}

impl Echo {
    fn new(sim: Sim, slots: usize, mistake: Mistake) -> Self {
        let slots = (0..slots).map(|_| Slot::default()).collect();
        Self { sim, mistake, slots, accept_in: Some(0), kept: Vec::new() }
    }

    fn turn(&mut self) {
        match &mut self.accept_in {
            Some(0) => {
                self.accept_in = None;
                self.sim.accept();
            }
            Some(turns) => *turns -= 1,
            None => {}
        }
        let waiting = self.accept_in.is_some();
        self.sim.wait(if waiting { Wait::AtMost(Duration::from_millis(5)) } else { Wait::Forever }).unwrap();
        while let Some(completion) = self.sim.poll() {
            self.react(completion);
        }
        for slot in 0..self.slots.len() {
            self.flush(slot);
        }
    }

    fn react(&mut self, completion: Completion<<Sim as Io>::Buffer>) {
        match completion {
            Completion::Accepted(socket) => {
                let mistake = self.mistake;
                let closing = |slot: &Slot| slot.conn.as_ref().is_some_and(|conn| conn.closing);
                let mut free = self.slots.iter().position(|slot| slot.conn.is_none());
                if mistake == Mistake::ReusesSlotBeforeClosed {
                    free = self.slots.iter().position(closing).or(free);
                }
                if mistake == Mistake::ForgetsSocket {
                    return;
                }
                let Some(free) = free else { return self.sim.refuse(socket) };
                self.slots[free].generation += 1;
                self.slots[free].conn = Some(Conn { armed: true, ..Conn::default() });
                let key = self.key(free);
                self.sim.adopt(socket, key);
                self.sim.receive(key);
            }
            Completion::AcceptStopped(_) => self.accept_in = Some(3),
            Completion::Received { conn: key, bytes, armed } => {
                let conn = self.conn(key);
                conn.pending.extend_from_slice(&bytes);
                conn.armed = armed;
                if self.mistake == Mistake::SkipsBytes && bytes.len() > 20 {
                    self.conn(key).pending.pop();
                }
                if self.mistake == Mistake::KeepsBuffers {
                    self.kept.push(bytes);
                }
            }
            Completion::ReceiveStopped { conn, .. } => {
                let conn = self.conn(conn);
                (conn.armed, conn.pausing) = (false, false);
            }
            Completion::ReceiveEnded { conn: key, lost } => {
                let conn = self.conn(key);
                (conn.armed, conn.ended) = (false, true);
                if lost != Lost::EndOfStream {
                    self.close(key);
                }
            }
            Completion::Sent { conn: key, sent } => {
                let (frame, from) = self.conn(key).sending.take().expect("one Sent a send");
                match sent {
                    Ok(count) if (from + count) as usize == self.sim.palette().bytes(frame).len() => {
                        if self.mistake == Mistake::SendsBeyondTheEnd && !self.conn(key).closing {
                            self.sim.send(key, frame, from + count);
                        }
                        self.sim.palette().release(frame);
                    }
                    Ok(count) if !self.conn(key).closing => {
                        self.conn(key).sending = Some((frame, from + count));
                        self.sim.send(key, frame, from + count);
                    }
                    _ => {
                        self.sim.palette().release(frame);
                        self.close(key);
                    }
                }
            }
            Completion::Closed { conn: key } => {
                assert!(self.conn(key).closing && self.conn(key).sending.is_none());
                self.slots[key.slot as usize].conn = None;
                if self.mistake == Mistake::ActsOnStaleKey {
                    self.sim.receive(key);
                }
            }
            Completion::Rang => {}
        }
    }

    /// Starts what this connection can do next.
    fn flush(&mut self, slot: usize) {
        let key = self.key(slot);
        let Self { sim, slots, mistake, .. } = self;
        let Some(conn) = slots[slot].conn.as_mut().filter(|conn| !conn.closing) else { return };
        if !conn.pending.is_empty() && (conn.sending.is_none() || *mistake == Mistake::SendsTwice) {
            let frame = sim.palette().open();
            sim.palette().append(frame, |out| out.append(&mut conn.pending)).unwrap();
            conn.sending = Some((frame, 0));
            sim.send(key, frame, 0);
            if *mistake == Mistake::ShutsDownUnderSend {
                sim.shutdown(key);
            }
        }
        if conn.pending.len() > PENDING_MAX {
            if conn.armed && !conn.pausing {
                conn.pausing = true;
                sim.pause(key);
            }
        } else if !conn.armed && !conn.ended {
            // A pause that ended in bytes with `armed: false` gives no ReceiveStopped any more.
            (conn.armed, conn.pausing) = (true, false);
            sim.receive(key);
        }
        if conn.ended && conn.sending.is_none() && conn.pending.is_empty() {
            self.close(key);
        }
    }

    fn close(&mut self, key: ConnKey) {
        if !self.conn(key).closing || self.mistake == Mistake::ClosesTwice {
            self.conn(key).closing = true;
            self.sim.close(key);
            if self.mistake == Mistake::ClosesTwice {
                self.sim.close(key);
            }
        }
    }

    fn key(&self, slot: usize) -> ConnKey {
        ConnKey { slot: slot as u32, generation: self.slots[slot].generation }
    }

    /// The connection of a completion.
    fn conn(&mut self, key: ConnKey) -> &mut Conn {
        assert_eq!(key, self.key(key.slot as usize), "a completion with a stale key");
        self.slots[key.slot as usize].conn.as_mut().expect("no completion after Closed")
    }
}

struct Client {
    id: ClientId,
    /// Chunks it will send, then a FIN.
    plan: VecDeque<Vec<u8>>,
    finished: bool,
    resets: bool,
    sent: Vec<u8>,
    got: Vec<u8>,
}

impl Client {
    fn connect(world: &World, dice: &mut Dice, index: usize) -> Self {
        let next_byte = |i: usize| (i.wrapping_mul(31) + index * 7) as u8;
        let mut bytes = (0..).map(next_byte);
        let plan = (0..dice.below(8)).map(|_| bytes.by_ref().take(dice.part_of(600)).collect()).collect();
        let resets = dice.chance(0.1);
        Self { id: world.connect(), plan, finished: false, resets, sent: Vec::new(), got: Vec::new() }
    }

    fn act(&mut self, world: &World, dice: &mut Dice) {
        self.got.extend(world.client_take(self.id));
        assert!(self.sent.starts_with(&self.got), "a client received bytes that are not what it sent");
        match self.plan.pop_front() {
            Some(chunk) => {
                self.sent.extend_from_slice(&chunk);
                world.client_send(self.id, &chunk);
            }
            None if self.finished => {}
            None => {
                self.finished = true;
                if self.resets { world.client_reset(self.id) } else { world.client_shutdown(self.id) }
            }
        }
        world.client_stall(self.id, dice.chance(0.1));
    }
}

struct Outcome {
    trace: u64,
    echoed_in_full: usize,
    expected_in_full: usize,
}

/// Runs two shards and some clients until everything is closed.
fn run(seed: u64, faults: Faults, mistake: Mistake) -> Outcome {
    let mut dice = Dice::new(seed ^ 0x5eed);
    let world = World::new(seed, faults);
    let slots = 2 + dice.below(8);
    let roomy = slots >= CLIENTS_MAX;
    let mut shards: Vec<Echo> = (0..2)
        .map(|shard| {
            let config = SimConfig { table: 8, buffers: 1 + dice.below(4), buffer_size: 1 + dice.part_of(128) };
            Echo::new(world.driver(ShardId(shard), config), slots, mistake)
        })
        .collect();
    let clients_max = 1 + dice.below(CLIENTS_MAX);
    let mut clients = vec![Client::connect(&world, &mut dice, 0)];

    for turn in 0.. {
        if turn == FAULTY_TURNS {
            world.set_faults(Faults::default());
        }
        assert!(turn < TURNS_MAX, "the run does not end: {:?}", world.audit());
        let shard = dice.below(shards.len());
        if !world.asleep(ShardId(shard as u16)) {
            shards[shard].turn();
        } else {
            world.step();
        }
        if clients.len() < clients_max && dice.chance(0.05) {
            clients.push(Client::connect(&world, &mut dice, clients.len()));
        }
        if dice.chance(0.1) {
            let client = dice.below(clients.len());
            clients[client].act(&world, &mut dice);
        }
        let done = |client: &Client| client.finished && world.client_state(client.id) != ClientState::Open;
        if clients.len() == clients_max && clients.iter().all(done) && shards.iter().all(Echo::is_idle) {
            break;
        }
        if mistake == Mistake::ForgetsSocket && turn > 200 {
            break;
        }
    }
    world.set_faults(Faults::default());
    for shard in &mut shards {
        shard.sim.stop_accepting();
        while shard.sim.poll().is_some_and(|completion| !matches!(completion, Completion::Accepted(_))) {}
        assert_eq!(shard.sim.palette().live(), 0, "frames are left");
    }
    if let Err(left) = world.audit() {
        panic!("{left}");
    }
    let mut outcome = Outcome { trace: world.trace(), echoed_in_full: 0, expected_in_full: 0 };
    for client in &mut clients {
        client.got.extend(world.client_take(client.id));
        assert!(client.sent.starts_with(&client.got), "a client received bytes that are not what it sent");
        let clean = world.client_state(client.id) == ClientState::ServerClosed { clean: true };
        let in_full = client.got == client.sent;
        // A refused client got nothing; anyone else whose stream ended in order got everything.
        assert!(!clean || in_full || client.got.is_empty(), "a stream ended in order too early");
        outcome.echoed_in_full += usize::from(in_full && !client.resets);
        outcome.expected_in_full += usize::from(if roomy { !client.resets } else { in_full && !client.resets });
    }
    outcome
}

impl Echo {
    fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.conn.is_none())
    }
}

fn for_each_seed(run: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(2000),
    };
    for seed in seeds {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            panic!("seed {seed}: {}", message(&*payload));
        }
    }
}

/// What a panic said.
fn message(payload: &dyn Any) -> &str {
    let formatted = payload.downcast_ref::<String>().map(String::as_str);
    formatted.or(payload.downcast_ref::<&str>().copied()).expect("a panic with a message")
}

const CLIENTS_MAX: usize = 6;
/// Bytes received and not yet being sent back at which the echo shard stops receiving.
const PENDING_MAX: usize = 256;
/// Turns with faults; then a run must settle.
const FAULTY_TURNS: u32 = 4_000;
const TURNS_MAX: u32 = 40_000;
