//! Clients that lie idle, and are then all touched: each by a ping, and by one message for all.
//! Law: each of them answers, and each gets the message exactly once.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Setup;
use super::counts::Count;
use super::crew::{Crew, Progress, Share};
use super::lanes::{Lanes, Part};
use super::native::{self, Expected, Message, Said};
use super::observe::Look;
use super::report::{Durations, Report};
use crate::id::ConnKey;
use crate::ws::Opcode;

/// What is asked of the server.
#[derive(Clone, Debug)]
pub struct Idle {
    /// How long they lie idle.
    pub time: Duration,
    /// Topic that all subscribe to, for the message to all; none: any WebSocket server will do.
    pub topic: Option<String>,
}

const TOUCH: u32 = 2;
const BROADCAST: u32 = 3;
const LEAVE: u32 = 4;
const HOLD: u32 = 1;

/// Runs it.
///
/// # Errors
/// The server does not let the clients in, this machine lacks something, or nothing happens for too long.
pub fn run(setup: Setup, idle: Idle, watch: &dyn Fn(Progress)) -> io::Result<Report> {
    let setup = Arc::new(setup);
    let topic: Option<Arc<str>> = idle.topic.as_deref().map(Arc::from);
    let empty = Look::at(setup.process);
    let start = Instant::now();
    let mut crew = Crew::start(&setup, watch, |share| IdlePart {
        share,
        topic: topic.clone(),
        stage: None,
        at: 0,
        unanswered: 0,
        found: Found::default(),
    })?;
    let all = u64::from(setup.connections);
    crew.until("connecting", all, |crew| crew.sum(Count::Ready))?;
    let connected = start.elapsed();
    let opened = Look::at(setup.process);
    crew.go(HOLD)?;
    crew.for_a_while("settling", SETTLE)?;
    let (before, start, pings) = (Look::at(setup.process), Instant::now(), crew.sum(Count::Pings));
    crew.for_a_while("idle", idle.time)?;
    let (after, held, pings) = (Look::at(setup.process), start.elapsed(), crew.sum(Count::Pings) - pings);

    crew.go(TOUCH)?;
    let start = Instant::now();
    let mut failed = crew.until("touching each", all, |crew| crew.sum(Count::Received)).err();
    let (touched, answered) = (start.elapsed(), crew.sum(Count::Received));
    let mut broadcast = None;
    if topic.is_some() && failed.is_none() {
        let (before, start) = (Look::at(setup.process), Instant::now());
        crew.go(BROADCAST)?;
        failed = crew.until("one message for all", all, |crew| crew.sum(Count::Received) - answered).err();
        let reached = start.elapsed();
        crew.for_a_while("whatever comes twice", SETTLE)?;
        broadcast = Some((before, Look::at(setup.process), reached));
    }
    let reached = crew.sum(Count::Received) - answered;
    crew.go(LEAVE)?;
    let start = Instant::now();
    let gone = |crew: &Crew<'_, Found>| crew.sum(Count::Left) + crew.sum(Count::Closed) + crew.sum(Count::Lost);
    let left = crew.until("leaving", all, gone);
    let leaving = start.elapsed();
    crew.for_a_while("settling", SETTLE)?;
    let last = Look::at(setup.process);

    let mut report = Report::new("idle");
    let each = |after: Option<u64>, before: Option<u64>| Some((after? as f64 - before? as f64) / all as f64);
    let cpu_ns = |after: &Look, before: &Look| Some(after.cpu?.checked_sub(before.cpu?)?.as_nanos() as f64);
    report.figure("connections", all as f64);
    report.figure("seconds_to_connect", connected.as_secs_f64());
    report.figure("server_cpu_us_to_connect_one", cpu_ns(&opened, &empty).map(|ns| ns / 1e3 / all as f64));
    report.figure("server_user_bytes_each", each(before.user_bytes, empty.user_bytes));
    report.figure("kernel_bytes_each_of_both_ends", each(before.kernel_bytes, empty.kernel_bytes));
    report.figure("machine_bytes_in_use", before.machine_bytes.map(|bytes| bytes as f64));
    report.figure("idle_seconds", held.as_secs_f64());
    report.figure("server_pings_while_idle", pings as f64);
    report.figure("server_cpu_percent_while_idle", cpu_ns(&after, &before).map(|ns| ns / 1e7 / held.as_secs_f64()));
    report.figure("answered_a_ping", answered as f64);
    report.figure("seconds_for_all_pings", touched.as_secs_f64());
    if let Some((before, after, elapsed)) = &broadcast {
        report.figure("reached_by_one_message", reached as f64);
        report.figure("seconds_until_all_had_it", elapsed.as_secs_f64());
        report.figure("server_cpu_ns_per_delivery", cpu_ns(after, before).map(|ns| ns / all as f64));
    }
    report.figure("seconds_to_leave", leaving.as_secs_f64());
    report.figure("server_user_bytes_left_each", each(last.user_bytes, empty.user_bytes));
    report.figure("kernel_bytes_left_each", each(last.kernel_bytes, empty.kernel_bytes));
    report.find(crew.sum(Count::Wrong), "answers or messages were not what had to come");
    report.find(crew.sum(Count::Again), "answers or messages came twice");
    report.find_refusals(&crew);
    report.find(all.saturating_sub(answered), "clients did not answer a ping");
    if topic.is_some() {
        report.find(all.saturating_sub(reached), "clients did not get the message");
    }
    report.find_ends(&crew);
    report.findings.extend(failed.into_iter().chain(left.err()).map(|error| error.to_string()));
    let mut found = Found::default();
    for own in crew.finish()? {
        found.connect.merge(&own.connect);
        found.touch.merge(&own.touch);
        found.broadcast.merge(&own.broadcast);
    }
    report.durations("connect_until_ready", found.connect);
    report.durations("ping_to_pong", found.touch);
    report.durations("publish_to_delivery", found.broadcast);
    Ok(report)
}

#[derive(Default)]
struct Client {
    has_answered: bool,
    has_message: bool,
}

#[derive(Default)]
struct Found {
    connect: Durations,
    touch: Durations,
    broadcast: Durations,
}

struct IdlePart {
    share: Share,
    topic: Option<Arc<str>>,
    stage: Option<u32>,
    /// The next slot of a walk around all.
    at: u32,
    /// Pings that have not been answered.
    unanswered: u32,
    found: Found,
}

impl IdlePart {
    /// So many of all, in each turn, until all have had their turn.
    fn walk(
        &mut self,
        lanes: &mut Lanes<Client>,
        step: u32,
        mut each: impl FnMut(&mut Lanes<Client>, ConnKey),
    ) -> Option<u64> {
        let until = (self.at + step).min(lanes.slots());
        for slot in self.at..until {
            if let Some(conn) = lanes.open_at(slot) {
                each(lanes, conn);
            }
        }
        self.at = until;
        (until < lanes.slots()).then_some(0)
    }
}

impl Part for IdlePart {
    type Client = Client;
    type Outcome = Found;

    fn opened(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey) {
        if let Some(took_ns) = native::join(lanes, conn, self.topic.as_deref()) {
            self.found.connect.record(took_ns);
        }
    }

    fn message(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey, opcode: Opcode, payload: &[u8]) {
        let now_ns = lanes.clock_ns();
        let Some((number, client)) = lanes.client(conn) else { return };
        let count = if opcode == Opcode::Pong {
            let Ok(payload) = <[u8; 12]>::try_from(payload) else { return lanes.counts().add(Count::Wrong, 1) };
            let (sent_ns, of) = payload.split_at(8);
            let is_mine = of == number.to_be_bytes();
            match std::mem::replace(&mut client.has_answered, true) {
                false if is_mine => {
                    self.unanswered = self.unanswered.saturating_sub(1);
                    let sent_ns = u64::from_be_bytes(sent_ns.try_into().unwrap_or_default());
                    self.found.touch.record(now_ns.saturating_sub(sent_ns));
                    Count::Received
                }
                true if is_mine => Count::Again,
                _ => Count::Wrong,
            }
        } else {
            let expected = self.topic.as_deref().map(|topic| Expected { topic, data_bytes: DATA_BYTES });
            match native::said(payload, expected) {
                Said::Ack(_) => {
                    if let Some(took_ns) = lanes.ready(conn) {
                        self.found.connect.record(took_ns);
                    }
                    return;
                }
                Said::Other => return,
                Said::Message(Message { publisher: 0, number: 1, due_ns }) => {
                    match std::mem::replace(&mut client.has_message, true) {
                        false => {
                            self.found.broadcast.record(now_ns.saturating_sub(due_ns));
                            Count::Received
                        }
                        true => Count::Again,
                    }
                }
                Said::Refused(why) => return lanes.counts().add_refused(why),
                Said::Message(_) | Said::Changed => Count::Wrong,
            }
        };
        lanes.counts().add(count, 1);
    }

    fn ended(&mut self, lanes: &mut Lanes<Client>, number: u32, was_ready: bool) {
        // One that was not ready yet is not counted as one of all.
        if !was_ready {
            lanes.want(number, lanes.now_ns() + AGAIN_NS);
        }
    }

    fn turn(&mut self, lanes: &mut Lanes<Client>, stage: u32) -> Option<u64> {
        let before = self.stage.replace(stage);
        if before != Some(stage) {
            self.at = 0;
        }
        match stage {
            TOUCH => {
                // All at once would be a storm, and what they wait for would be each other.
                let step = STEP.saturating_sub(self.unanswered);
                let mut sent = 0;
                let next = self.walk(lanes, step, |lanes, conn| {
                    let Some((number, _)) = lanes.client(conn) else { return };
                    let mut payload = [0; 12];
                    payload[..8].copy_from_slice(&lanes.clock_ns().to_be_bytes());
                    payload[8..].copy_from_slice(&number.to_be_bytes());
                    lanes.send(conn, Opcode::Ping, &payload);
                    sent += 1;
                });
                self.unanswered += sent;
                next.filter(|_| step > 0)
            }
            BROADCAST if before != Some(stage) && self.share.thread == 0 => {
                let topic = self.topic.as_deref()?;
                let conn = (0..lanes.slots()).find_map(|slot| lanes.open_at(slot))?;
                let message = Message { publisher: 0, number: 1, due_ns: lanes.clock_ns() };
                lanes.send(conn, Opcode::Text, native::publish(topic, &message, DATA_BYTES).as_bytes());
                None
            }
            LEAVE => self.walk(lanes, STEP, Lanes::leave),
            _ => None,
        }
    }

    fn finish(self) -> Found {
        self.found
    }
}

/// Clients that a thread touches, or leaves with, in one turn.
const STEP: u32 = 128;
/// Of the message to all: as few as there can be.
const DATA_BYTES: usize = 0;
/// When a client comes again that was closed before it was served.
const AGAIN_NS: u64 = 1_000_000_000;
const SETTLE: Duration = Duration::from_secs(2);
