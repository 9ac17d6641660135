//! Clients that have their messages echoed.
//! Law: each message says whose it is and the how-manieth, and comes back in order and unchanged.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Setup;
use super::counts::Count;
use super::crew::{CONNECT, Crew, Progress};
use super::lanes::{Lanes, Part};
use super::observe::Look;
use super::report::{Durations, Report};
use crate::id::ConnKey;
use crate::ws::Opcode;

/// What is asked of the server.
#[derive(Clone, Debug)]
pub struct Echo {
    /// Messages of a client on their way at a time, unless there is a rate.
    pub in_flight: u32,
    /// Bytes of a message; 16 at least.
    pub size: usize,
    /// Messages of all clients a second; they leave when they are due, whatever has come back.
    pub rate: Option<f64>,
    /// How long it is measured.
    pub time: Duration,
    /// How long it goes on before that.
    pub warm_up: Duration,
}

const WARM_UP: u32 = 1;
const RUN: u32 = 2;
const END: u32 = 3;

/// Runs it.
///
/// # Errors
/// The server does not let the clients in, this machine lacks something, or nothing happens for too long.
pub fn run(setup: Setup, echo: Echo, watch: &dyn Fn(Progress)) -> io::Result<Report> {
    let (setup, size) = (Arc::new(setup), echo.size.max(HEAD_BYTES));
    let pattern: Arc<[u8]> = (0..size + PATTERNS).map(|at| (at * 7 % 251) as u8).collect();
    let mut crew = Crew::start(&setup, watch, |share| EchoPart {
        rate: echo.rate.map(|rate| share.of(rate)),
        in_flight: echo.in_flight.max(1),
        size,
        pattern: Arc::clone(&pattern),
        stage: None,
        began_ns: 0,
        scheduled: 0,
        at: 0,
        durations: Durations::default(),
        scratch: Vec::new(),
    })?;
    let all = u64::from(setup.connections);
    crew.until("connecting", all, |crew| crew.sum(Count::Opened))?;
    crew.go(WARM_UP)?;
    crew.for_a_while("warming up", echo.warm_up)?;
    crew.go(RUN)?;
    let (before, start, came) = (Look::at(setup.process), std::time::Instant::now(), crew.sum(Count::Received));
    crew.for_a_while("measuring", echo.time)?;
    let (came, elapsed, after) = (crew.sum(Count::Received) - came, start.elapsed(), Look::at(setup.process));
    crew.go(END)?;
    let ended = crew.until("the last ones", crew.sum(Count::Sent), |crew| crew.sum(Count::Received));

    let mut report = Report::new("echo");
    let messages = came as f64;
    report.figure("connections", f64::from(setup.connections));
    report.figure("message_bytes", size as f64);
    report.figure("messages", messages);
    report.figure("messages_per_second", messages / elapsed.as_secs_f64());
    report.spent(&before, &after, elapsed, (messages, "server_cpu_ns_per_message"));
    report.find(crew.sum(Count::Wrong), "messages came back changed, or to someone else");
    report.find(crew.sum(Count::Again), "messages came twice or out of order");
    report.find(crew.sum(Count::Sent).saturating_sub(crew.sum(Count::Received)), "messages never came back");
    report.find_ends(&crew);
    if let Err(error) = ended {
        report.findings.push(error.to_string());
    }
    let mut durations = Durations::default();
    crew.finish()?.iter().for_each(|own| durations.merge(own));
    report.durations(if echo.rate.is_some() { "round_trip_since_due" } else { "round_trip" }, durations);
    Ok(report)
}

#[derive(Default)]
struct Client {
    /// Messages sent, and come back.
    sent: u32,
    came: u32,
}

struct EchoPart {
    /// Messages a second of this thread.
    rate: Option<f64>,
    in_flight: u32,
    size: usize,
    pattern: Arc<[u8]>,
    stage: Option<u32>,
    /// Of the schedule, where there is a rate.
    began_ns: u64,
    scheduled: u64,
    at: u32,
    durations: Durations,
    scratch: Vec<u8>,
}

impl EchoPart {
    fn send(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey, due_ns: u64) {
        let Some((client, state)) = lanes.client(conn) else { return };
        let number = state.sent;
        state.sent += 1;
        self.scratch.clear();
        self.scratch.extend_from_slice(&due_ns.to_be_bytes());
        self.scratch.extend_from_slice(&client.to_be_bytes());
        self.scratch.extend_from_slice(&number.to_be_bytes());
        let from = pattern_of(client, number);
        self.scratch.extend_from_slice(&self.pattern[from..][..self.size - HEAD_BYTES]);
        lanes.counts().add(Count::Sent, 1);
        lanes.send(conn, Opcode::Binary, &self.scratch);
    }

    /// Sends what is due; returns when the next is.
    fn keep_rate(&mut self, lanes: &mut Lanes<Client>, rate: f64) -> Option<u64> {
        loop {
            let due_ns = self.began_ns + (self.scheduled as f64 * 1e9 / rate) as u64;
            if due_ns > lanes.clock_ns() {
                return Some(due_ns);
            }
            let slots = lanes.slots().max(1);
            let next = (0..slots).map(|step| (self.at + step) % slots).find_map(|slot| lanes.open_at(slot));
            let conn = next?;
            let (_, client) = lanes.client(conn)?;
            if client.sent - client.came >= UNANSWERED_MAX {
                return None; // it is sent later, and counts from when it was due
            }
            self.at = (conn.slot + 1) % slots;
            self.scheduled += 1;
            self.send(lanes, conn, due_ns);
        }
    }
}

impl Part for EchoPart {
    type Client = Client;
    type Outcome = Durations;

    fn opened(&mut self, _: &mut Lanes<Client>, _: ConnKey) {}

    fn message(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey, opcode: Opcode, payload: &[u8]) {
        let Some((number, client)) = lanes.client(conn) else { return };
        let (Opcode::Binary, Some((head, rest))) = (opcode, payload.split_first_chunk::<HEAD_BYTES>()) else {
            return lanes.counts().add(Count::Wrong, 1);
        };
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let due_ns = u64::from(word(0)) << 32 | u64::from(word(4));
        let (of, nth) = (word(8), word(12));
        if of != number || rest != &self.pattern[pattern_of(of, nth)..][..self.size - HEAD_BYTES] {
            return lanes.counts().add(Count::Wrong, 1);
        }
        if nth != client.came {
            return lanes.counts().add(Count::Again, 1);
        }
        client.came += 1;
        lanes.counts().add(Count::Received, 1);
        let now_ns = lanes.clock_ns();
        if self.stage == Some(RUN) {
            self.durations.record(now_ns.saturating_sub(due_ns));
        }
        if self.rate.is_none() && matches!(self.stage, Some(WARM_UP | RUN)) {
            self.send(lanes, conn, now_ns);
        }
    }

    fn ended(&mut self, _: &mut Lanes<Client>, _: u32, _: bool) {}

    fn turn(&mut self, lanes: &mut Lanes<Client>, stage: u32) -> Option<u64> {
        let before = self.stage.replace(stage);
        if before == Some(CONNECT) && stage != CONNECT {
            self.began_ns = lanes.clock_ns();
            if self.rate.is_none() {
                for conn in lanes.conns() {
                    (0..self.in_flight).for_each(|_| self.send(lanes, conn, lanes.clock_ns()));
                }
            }
        }
        match (self.rate, stage) {
            (Some(rate), WARM_UP | RUN) => self.keep_rate(lanes, rate),
            _ => None,
        }
    }

    fn finish(self) -> Durations {
        self.durations
    }
}

/// Where in the pattern a message begins: neighbours differ, so that a mix-up shows.
fn pattern_of(client: u32, number: u32) -> usize {
    (client.wrapping_mul(31).wrapping_add(number)) as usize % PATTERNS
}

/// When it was due, whose it is, the how-manieth.
const HEAD_BYTES: usize = 16;
const PATTERNS: usize = 61;
/// Messages of one client that have not come back: a server that stalls is not sent more, and late ones count as late.
const UNANSWERED_MAX: u32 = 256;
