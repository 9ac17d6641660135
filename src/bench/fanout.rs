//! Clients that publish and clients that are subscribed; and a day in the life of them: some read slowly, some leave, some are
//! gone without a word, and all come again.
//!
//! Law: a subscriber gets what was published in its topic in order, each message once and unchanged. What the server says it
//! has dropped, and only that, may be missing; and who was away begins with whatever comes first.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Setup;
use super::counts::Count;
use super::crew::{CONNECT, Crew, Progress, Share};
use super::lanes::{Lanes, Part};
use super::native::{self, Expected, Message, Receipt, Said};
use super::observe::Look;
use super::report::{Durations, Report};
use super::schedule::{Schedule, Window};
use crate::id::ConnKey;
use crate::io::clock;
use crate::ws::Opcode;

/// What is asked of the server.
#[derive(Clone, Debug)]
pub struct Fanout {
    /// Topics; subscribers and publishers are spread over them evenly.
    pub topics: u32,
    /// Clients that publish; all others are subscribed to one topic each.
    pub publishers: u32,
    /// Messages of all publishers a second; they leave when they are due, whatever has been answered.
    pub rate: Option<f64>,
    /// Publishes of a publisher that are not answered yet, unless there is a rate.
    pub in_flight: u32,
    /// Bytes of a message's `data`.
    pub size: usize,
    /// How long it is measured.
    pub time: Duration,
    /// How long it goes on before that.
    pub warm_up: Duration,
    /// What else subscribers do, if they do.
    pub life: Option<Life>,
}

impl Fanout {
    /// Whether so many connections will do.
    ///
    /// # Errors
    /// So many connections leave nobody to publish, or nobody to be told.
    pub fn check(&self, connections: u32) -> Result<(), String> {
        let Self { publishers, topics, .. } = *self;
        if publishers == 0 || topics == 0 || connections <= publishers {
            return Err(format!(
                "{connections} connections, {publishers} publishers, {topics} topics: some of each are needed, and more \
                 connections than publishers"
            ));
        }
        Ok(())
    }
}

/// What subscribers do beside reading.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// How many of all leave in a second, half of them without a word, and come again.
    pub leavers_per_second: f64,
    /// How many of all stop reading in a second, for [`Life::pause`].
    pub slow_per_second: f64,
    /// How long those do not read.
    pub pause: Duration,
}

const WARM_UP: u32 = 1;
const RUN: u32 = 2;
const END: u32 = 3;

/// Runs it.
///
/// # Errors
/// The server does not let the clients in, this machine lacks something, or nothing happens for too long.
pub fn run(setup: Setup, fanout: Fanout, watch: &dyn Fn(Progress)) -> io::Result<Report> {
    fanout.check(setup.connections).map_err(io::Error::other)?;
    let (publishers, topics) = (fanout.publishers, fanout.topics);
    let (setup, fanout) = (Arc::new(setup), Arc::new(fanout));
    let names: Arc<[String]> = (0..topics).map(|topic| format!("bench.{topic}")).collect();
    let window = Arc::new(Window::default());
    let is_lively = fanout.life.is_some();
    let mut crew = Crew::start(&setup, watch, |share| FanoutPart {
        share,
        fanout: Arc::clone(&fanout),
        names: Arc::clone(&names),
        window: Arc::clone(&window),
        stage: None,
        publishing: Vec::new(),
        schedule: Schedule::default(),
        leavers: Schedule::default(),
        slow: Schedule::default(),
        paused: Vec::new(),
        durations: Durations::default(),
    })?;
    crew.until("connecting", u64::from(setup.connections), |crew| crew.sum(Count::Ready))?;
    crew.go(WARM_UP)?;
    crew.for_a_while("warming up", fanout.warm_up)?;
    crew.go(RUN)?;
    let counted = |crew: &Crew<'_, Durations>| [Count::Received, Count::Receipts].map(|count| crew.sum(count));
    let before = Look::at(setup.process);
    window.begin(clock::monotonic_ns());
    let [came, published] = counted(&crew);
    crew.for_a_while("measuring", fanout.time)?;
    let counts = counted(&crew);
    let (elapsed, after) = (window.end(clock::monotonic_ns()), Look::at(setup.process));
    let [came, published] = [counts[0] - came, counts[1] - published].map(|count| count as f64);
    crew.go(END)?;
    // With a rate some of those may have to leave yet.
    let asked = crew.sum(Count::Sent).max(crew.sum(Count::Due));
    let answered = crew.until("the last receipts", asked, |crew| crew.sum(Count::Receipts));
    loop {
        let came = crew.sum(Count::Received);
        crew.for_a_while("settling", SETTLE)?;
        if !is_lively || crew.sum(Count::Received) == came {
            break;
        }
    }
    // Who was parted from has not got what was on its queue: where some were, nobody knows how many are to come.
    let queued = crew.sum(Count::Queued);
    let last = match is_lively {
        true => Ok(()),
        false => crew.until("the last deliveries", queued, |crew| crew.sum(Count::Received) + crew.sum(Count::Missing)),
    };

    let mut report = Report::new(if is_lively { "mixed" } else { "fanout" });
    report.figure("subscribers", f64::from(setup.connections - publishers));
    report.figure("topics", f64::from(topics));
    report.figure("publishers", f64::from(publishers));
    report.figure("data_bytes", fanout.size as f64);
    report.figure("published", published);
    report.figure("published_per_second", published / elapsed.as_secs_f64());
    report.figure("delivered", came);
    report.figure("delivered_per_second", came / elapsed.as_secs_f64());
    report.spent(&before, &after, elapsed, (came, "server_cpu_ns_per_delivery"));
    report.figure("dropped_as_the_server_says", crew.sum(Count::Dropped) as f64);
    if is_lively {
        report.figure("left", crew.sum(Count::Left) as f64);
        report.figure("came", crew.sum(Count::Opened) as f64);
        report.figure("closed_as_too_slow", crew.sum(Count::Closed) as f64);
        report.figure("refused_with_retry_after", crew.sum(Count::RefusedUntil) as f64);
        report.find(crew.sum(Count::Lost), "connections broke");
    } else {
        report.find(queued.saturating_sub(crew.sum(Count::Received)), "messages were queued and never came");
        report.find_ends(&crew);
    }
    report.find(asked.saturating_sub(crew.sum(Count::Sent)), "messages were due and never sent");
    let missing = crew.sum(Count::Missing).saturating_sub(crew.sum(Count::Dropped));
    report.find(missing, "messages are missing between others");
    report.find(crew.sum(Count::Again), "messages came twice or out of order");
    report.find(crew.sum(Count::Wrong), "messages were changed, or were another topic's");
    report.find_refusals(&crew);
    report.find(crew.sum(Count::Refused), "refusals did not say when to come back");
    report.findings.extend(answered.err().into_iter().chain(last.err()).map(|error| error.to_string()));
    let mut durations = Durations::default();
    crew.finish()?.iter().for_each(|own| durations.merge(own));
    let since_due = fanout.rate.is_some();
    report.durations(if since_due { "due_to_delivery" } else { "publish_to_delivery" }, durations);
    Ok(report)
}

#[derive(Default)]
struct Client {
    /// Of a publisher: publishes that were sent and not answered, and how many it has made in each topic.
    unanswered: u32,
    made: Box<[u32]>,
    /// The topic in which its next publish is, by its place among its own.
    next: u32,
    /// Of a subscriber: the last number it has seen of each publisher in its topic; 0 for none.
    seen: Box<[u32]>,
    is_paused: bool,
}

struct FanoutPart {
    share: Share,
    fanout: Arc<Fanout>,
    /// The topics' names.
    names: Arc<[String]>,
    window: Arc<Window>,
    stage: Option<u32>,
    /// The publishers of this thread that are connected.
    publishing: Vec<ConnKey>,
    schedule: Schedule,
    leavers: Schedule,
    slow: Schedule,
    /// Who does not read, and until when; in order.
    paused: Vec<(u64, ConnKey)>,
    durations: Durations,
}

impl FanoutPart {
    /// The topics of a publisher, if it has several, and its place among those of its topic, if that has several.
    fn topics_of(&self, publisher: u32) -> impl Iterator<Item = u32> + use<> {
        let Fanout { topics, publishers, .. } = *self.fanout;
        let first = publisher % topics;
        (first..topics).step_by(if publishers < topics { publishers } else { topics } as usize)
    }

    fn topic_of(&self, subscriber: u32) -> u32 {
        (subscriber - self.fanout.publishers) % self.fanout.topics
    }

    /// The publisher's place in `seen` of a subscriber of its topic.
    fn place_of(&self, publisher: u32, topic: u32) -> Option<usize> {
        let Fanout { topics, publishers, .. } = *self.fanout;
        let is_of_topic = match publishers < topics {
            true => topic % publishers == publisher,
            false => publisher % topics == topic && publisher < publishers,
        };
        is_of_topic.then_some(if publishers < topics { 0 } else { (publisher / topics) as usize })
    }

    fn publish(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey, due_ns: u64) {
        let Some((publisher, client)) = lanes.client(conn) else { return };
        let place = client.next as usize;
        client.next = (client.next + 1) % client.made.len() as u32;
        client.unanswered += 1;
        client.made[place] += 1;
        let message = Message { publisher, number: client.made[place], due_ns };
        let topic = self.topics_of(publisher).nth(place).unwrap_or_default();
        let text = native::publish(&self.names[topic as usize], &message, self.fanout.size);
        lanes.counts().add(Count::Sent, 1);
        lanes.send(conn, Opcode::Text, text.as_bytes());
    }

    /// Publishes what is due; returns when the next is.
    fn keep_rate(&mut self, lanes: &mut Lanes<Client>, rate: f64) -> Option<u64> {
        if self.publishing.is_empty() {
            return None;
        }
        while let Some(due_ns) = self.schedule.take(rate, self.window.due_by(lanes.clock_ns())) {
            let conn = self.publishing[(self.schedule.done() as usize) % self.publishing.len()];
            let unanswered = lanes.client(conn).map_or(0, |(_, client)| client.unanswered);
            if unanswered >= UNANSWERED_MAX {
                self.schedule.put_back(); // it is sent later, and counts from when it was due
                return None;
            }
            self.publish(lanes, conn, due_ns);
        }
        self.schedule.next_ns(rate)
    }

    /// Some leave, some stop reading, some read on.
    fn live(&mut self, lanes: &mut Lanes<Client>) -> Option<u64> {
        let Life { leavers_per_second, slow_per_second, pause } = self.fanout.life?;
        let (leavers, slow) = (self.share.of(leavers_per_second), self.share.of(slow_per_second));
        let now_ns = lanes.now_ns();
        while self.leavers.take(leavers, now_ns).is_some() {
            if let Some(conn) = self.some_subscriber(lanes) {
                match self.leavers.done() % 2 {
                    0 => lanes.leave(conn),
                    _ => lanes.drop_it(conn),
                }
            }
        }
        while self.slow.take(slow, now_ns).is_some() {
            if let Some(conn) = self.some_subscriber(lanes)
                && let Some((_, client)) = lanes.client(conn)
                && !std::mem::replace(&mut client.is_paused, true)
            {
                lanes.pause(conn, true);
                self.paused.push((now_ns + pause.as_nanos() as u64, conn));
            }
        }
        let over = self.paused.partition_point(|(until_ns, _)| *until_ns <= now_ns);
        for (_, conn) in self.paused.drain(..over) {
            if let Some((_, client)) = lanes.client(conn) {
                client.is_paused = false;
                lanes.pause(conn, false);
            }
        }
        let next =
            [self.leavers.next_ns(leavers), self.slow.next_ns(slow), self.paused.first().map(|(until, _)| *until)];
        next.into_iter().flatten().min()
    }

    fn some_subscriber(&self, lanes: &mut Lanes<Client>) -> Option<ConnKey> {
        let slots = u64::from(lanes.slots().max(1));
        let slot = (lanes.random() % slots) as u32;
        let conn = lanes.open_at(slot)?;
        let (number, _) = lanes.client(conn)?;
        (number >= self.fanout.publishers && lanes.is_ready(conn)).then_some(conn)
    }

    fn on_message(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey, message: &Message) {
        let now_ns = lanes.clock_ns();
        let Some((number, client)) = lanes.client(conn) else { return };
        let is_subscriber = number >= self.fanout.publishers;
        let place = is_subscriber.then(|| self.place_of(message.publisher, self.topic_of(number))).flatten();
        let Some(seen) = place.and_then(|place| client.seen.get_mut(place)) else {
            return lanes.counts().add(Count::Wrong, 1);
        };
        let (before, gap) = (*seen, message.number.saturating_sub(*seen + 1));
        if message.number <= before {
            return lanes.counts().add(Count::Again, 1);
        }
        *seen = message.number;
        lanes.counts().add(Count::Received, 1);
        // Who came while messages were on their way has seen none before this one.
        if before > 0 {
            lanes.counts().add(Count::Missing, u64::from(gap));
        }
        if self.window.measures(self.fanout.rate.is_some(), message.due_ns, now_ns) {
            self.durations.record(now_ns.saturating_sub(message.due_ns));
        }
    }

    fn on_ack(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey, receipt: Receipt) {
        if lanes.ready(conn).is_some() {
            return;
        }
        let Some((_, client)) = lanes.client(conn) else { return };
        client.unanswered = client.unanswered.saturating_sub(1);
        lanes.counts().add(Count::Receipts, 1);
        lanes.counts().add(Count::Queued, receipt.queued);
        lanes.counts().add(Count::Dropped, receipt.dropped);
        if self.fanout.rate.is_none() && matches!(self.stage, Some(WARM_UP | RUN)) {
            self.publish(lanes, conn, lanes.clock_ns());
        }
    }
}

impl Part for FanoutPart {
    type Client = Client;
    type Outcome = Durations;

    fn opened(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey) {
        let Some((number, client)) = lanes.client(conn) else { return };
        let Fanout { topics, publishers, .. } = *self.fanout;
        if number < publishers {
            client.made = self.topics_of(number).map(|_| 0).collect();
            self.publishing.push(conn);
            lanes.ready(conn);
            return;
        }
        client.seen = vec![0; publishers.div_ceil(topics) as usize].into();
        native::join(lanes, conn, Some(&self.names[self.topic_of(number) as usize]));
    }

    fn message(&mut self, lanes: &mut Lanes<Client>, conn: ConnKey, opcode: Opcode, payload: &[u8]) {
        if opcode == Opcode::Pong {
            return;
        }
        let Some((number, _)) = lanes.client(conn) else { return };
        let expected = (number >= self.fanout.publishers)
            .then(|| Expected { topic: &self.names[self.topic_of(number) as usize], data_bytes: self.fanout.size });
        match native::said(payload, expected) {
            Said::Message(message) => self.on_message(lanes, conn, &message),
            Said::Ack(receipt) => self.on_ack(lanes, conn, receipt),
            Said::Other => {}
            Said::Refused(why) => lanes.counts().add_refused(why),
            Said::Changed => lanes.counts().add(Count::Wrong, 1),
        }
    }

    fn ended(&mut self, lanes: &mut Lanes<Client>, number: u32, _: bool) {
        if self.fanout.life.is_some() && number >= self.fanout.publishers && self.stage != Some(END) {
            lanes.want(number, lanes.now_ns());
        }
    }

    fn turn(&mut self, lanes: &mut Lanes<Client>, stage: u32) -> Option<u64> {
        let before = self.stage.replace(stage);
        if before == Some(CONNECT) && stage != CONNECT {
            let now_ns = lanes.clock_ns();
            for schedule in [&mut self.schedule, &mut self.leavers, &mut self.slow] {
                schedule.begin(now_ns);
            }
            if self.fanout.rate.is_none() {
                for conn in self.publishing.clone() {
                    (0..self.fanout.in_flight.max(1)).for_each(|_| self.publish(lanes, conn, lanes.clock_ns()));
                }
            }
        }
        // A thread has its part of the rate by its part of the publishers.
        let part = self.publishing.len() as f64 / f64::from(self.fanout.publishers);
        let rate = self.fanout.rate.map(|rate| rate * part);
        match stage {
            WARM_UP | RUN => {
                let next = rate.and_then(|rate| self.keep_rate(lanes, rate));
                next.into_iter().chain(self.live(lanes)).min()
            }
            END => {
                if before != Some(END) {
                    let due = rate.map_or(0, |rate| self.schedule.due_before(rate, self.window.end_ns()));
                    lanes.counts().add(Count::Due, due);
                    self.read_on(lanes);
                }
                if let Some(rate) = rate {
                    self.keep_rate(lanes, rate);
                }
                None
            }
            _ => None,
        }
    }

    fn finish(self) -> Durations {
        self.durations
    }
}

impl FanoutPart {
    /// At the end everybody reads.
    fn read_on(&mut self, lanes: &mut Lanes<Client>) {
        for (_, conn) in self.paused.drain(..) {
            lanes.pause(conn, false);
        }
    }
}

/// Publishes of one client that have not been answered.
const UNANSWERED_MAX: u32 = 256;
const SETTLE: Duration = Duration::from_millis(500);
