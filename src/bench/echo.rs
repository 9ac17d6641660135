//! Clients that have their messages echoed.
//! Law: each message says whose it is and the how-manieth, and comes back in order and unchanged.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Setup;
use super::counts::Count;
use super::crew::{CONNECT, Crew, Progress};
use super::lanes::{Lanes, Part};
use super::observe::Look;
use super::report::{Durations, Report};
use super::schedule::{Schedule, Window};
use crate::id::ConnKey;
use crate::io::clock;
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
    let window = Arc::new(Window::default());
    let pattern: Arc<[u8]> = (0..size + PATTERNS).map(|at| (at * 7 % 251) as u8).collect();
    let mut crew = Crew::start(&setup, watch, |share| EchoPart {
        rate: echo.rate.map(|rate| share.of(rate)),
        in_flight: echo.in_flight.max(1),
        size,
        pattern: Arc::clone(&pattern),
        stage: None,
        schedule: Schedule::default(),
        window: Arc::clone(&window),
        at: 0,
        durations: Durations::default(),
        scratch: Vec::new(),
    })?;
    let all = u64::from(setup.connections);
    crew.until("connecting", all, |crew| crew.sum(Count::Opened))?;
    crew.go(WARM_UP)?;
    crew.for_a_while("warming up", echo.warm_up)?;
    crew.go(RUN)?;
    let before = Look::at(setup.process);
    window.begin(clock::monotonic_ns());
    let came = crew.sum(Count::Received);
    crew.for_a_while("measuring", echo.time)?;
    let came = crew.sum(Count::Received) - came;
    let (elapsed, after) = (window.end(clock::monotonic_ns()), Look::at(setup.process));
    crew.go(END)?;
    // With a rate some of those may have to leave yet.
    let asked = crew.sum(Count::Sent).max(crew.sum(Count::Due));
    let ended = crew.until("the last ones", asked, |crew| crew.sum(Count::Received));

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
    report.find(asked.saturating_sub(crew.sum(Count::Sent)), "messages were due and never sent");
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
    /// When those were due that have not come back.
    due_ns: VecDeque<u64>,
}

struct EchoPart {
    /// Messages a second of this thread.
    rate: Option<f64>,
    in_flight: u32,
    size: usize,
    pattern: Arc<[u8]>,
    stage: Option<u32>,
    /// Where there is a rate.
    schedule: Schedule,
    window: Arc<Window>,
    at: u32,
    durations: Durations,
    scratch: Vec<u8>,
}

impl EchoPart {
    fn send(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey, due_ns: u64) {
        let Some((client, state)) = lanes.client(conn) else { return };
        let number = state.sent;
        state.sent += 1;
        state.due_ns.push_back(due_ns);
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
        while let Some(due_ns) = self.schedule.take(rate, self.window.due_by(lanes.clock_ns())) {
            let slots = lanes.slots().max(1);
            let next = (0..slots).map(|step| (self.at + step) % slots).find_map(|slot| lanes.open_at(slot));
            let has_room = |conn: &ConnKey| {
                lanes.client(*conn).is_some_and(|(_, client)| client.sent - client.came < UNANSWERED_MAX)
            };
            let Some(conn) = next.filter(has_room) else {
                self.schedule.put_back(); // it is sent later, and counts from when it was due
                return None;
            };
            self.at = (conn.slot + 1) % slots;
            self.send(lanes, conn, due_ns);
        }
        self.schedule.next_ns(rate)
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
        // Its latency counts from then, if it is measured at all.
        if client.due_ns.front() != Some(&due_ns) {
            return lanes.counts().add(Count::Wrong, 1);
        }
        client.due_ns.pop_front();
        client.came += 1;
        lanes.counts().add(Count::Received, 1);
        let now_ns = lanes.clock_ns();
        if self.window.measures(self.rate.is_some(), due_ns, now_ns) {
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
            self.schedule.begin(lanes.clock_ns());
            if self.rate.is_none() {
                for conn in lanes.conns() {
                    (0..self.in_flight).for_each(|_| self.send(lanes, conn, lanes.clock_ns()));
                }
            }
        }
        match (self.rate, stage) {
            (Some(rate), WARM_UP | RUN) => self.keep_rate(lanes, rate),
            (Some(rate), END) => {
                if before != Some(END) {
                    lanes.counts().add(Count::Due, self.schedule.due_before(rate, self.window.end_ns()));
                }
                self.keep_rate(lanes, rate);
                None
            }
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
