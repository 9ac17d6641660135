//! Fan-out: what one delivery of a published message costs the server.
//!
//! Law: every subscriber checks every byte of every message, in order; the publisher checks every receipt. A short message is
//! 132 bytes on the wire, and so many bytes the bare server sends too.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use tidewheel::id::ConnKey;
use tidewheel::io::Wait;
use tidewheel::io::uring::ReceiveMode;
use tidewheel::ws::deflate::{InflateLimits, Inflater};

use super::child::Server;
use super::lanes::Lanes;
use super::server::{BARE_MESSAGE_BYTES, Kind};
use super::table::{Table, median};
use super::websocket::{self, PING, PING_BYTES, PONG};

/// A publisher and the subscribers of one topic.
pub struct FanoutLoad {
    server: Server,
    lanes: Lanes,
    state: State,
    in_flight: u64,
}

/// What was published and what has come; lane 0 is the publisher, the others are subscribers.
struct State {
    kind: Kind,
    data: Data,
    published: u64,
    /// Messages on their way; the first one is number `first`.
    messages: VecDeque<Message>,
    first: u64,
    subscribers: Vec<Subscriber>,
    /// What the engine has answered the publisher, up to the end of the last whole answer.
    answers: Vec<u8>,
    acks: u64,
    deliveries: u64,
    delivered_bytes: u64,
}

/// What is published: the JSON of message number so and so, which is longer than 125 bytes in its envelope.
pub type Data = fn(u64) -> String;

/// One message: the frame that everybody gets, as far as somebody has got it.
struct Message {
    bytes: Vec<u8>,
    /// Subscribers that have all of it.
    delivered: usize,
}

impl Message {
    /// Where the frame ends, or its header as long as that is not known.
    fn end(&self) -> usize {
        match self.bytes[..] {
            [_, 126, high, low, ..] => HEADER_BYTES + usize::from(u16::from_be_bytes([high, low])),
            _ => HEADER_BYTES,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Subscriber {
    message: u64,
    offset: usize,
    /// So many bytes of a ping have come.
    ping_bytes: usize,
}

/// What the deliveries of some time cost, each.
#[derive(Clone, Copy)]
pub struct Measured {
    /// User and system time of the server, in nanoseconds.
    pub cpu_ns: f64,
    /// Deliveries a second.
    pub per_second: f64,
    /// Bytes of the frame.
    pub bytes: f64,
}

impl FanoutLoad {
    /// Starts a server, connects subscribers and a publisher that has `in_flight` messages on their way.
    ///
    /// # Errors
    /// The server did not come up, or refused somebody.
    pub fn start(kind: Kind, subscribers: usize, in_flight: u64, data: Data) -> io::Result<Self> {
        let server = Server::start(kind)?;
        let mut sockets = Vec::new();
        for index in 0..=subscribers {
            let mut socket = server.open()?;
            if kind.is_websocket() {
                websocket::shake_hands_offering(&mut socket, "/ws", kind.offer())?;
                if index > 0 {
                    let ask = format!(r#"{{"type":"subscribe","payload":{{"topic":"{TOPIC}"}}}}"#);
                    let answer = websocket::ask(&mut socket, &ask)?;
                    if !answer.contains(r#""success":true"#) {
                        return Err(io::Error::other(answer));
                    }
                }
            }
            sockets.push(socket);
        }
        let mut lanes = Lanes::new(Vec::new(), ReceiveMode::Recv)?;
        lanes.take(sockets)?;
        let state = State {
            kind,
            data,
            published: 0,
            messages: VecDeque::new(),
            first: 0,
            subscribers: vec![Subscriber::default(); subscribers],
            answers: Vec::new(),
            acks: 0,
            deliveries: 0,
            delivered_bytes: 0,
        };
        Ok(Self { server, lanes, state, in_flight })
    }

    /// Publishes for so long, and takes the server's figures without the beginning and the end.
    ///
    /// # Errors
    /// The server ended, a message was lost or a byte was wrong.
    pub fn measure(&mut self, duration: Duration) -> io::Result<Measured> {
        (0..self.in_flight).for_each(|_| self.state.publish(&mut self.lanes));
        self.run_for(WARM_UP)?;
        let before = self.server.spent()?;
        let (start, deliveries, bytes) = (Instant::now(), self.state.deliveries, self.state.delivered_bytes);
        self.run_for(duration)?;
        let seconds = start.elapsed().as_secs_f64();
        let after = self.server.spent()?;
        let deliveries = (self.state.deliveries - deliveries) as f64;
        let bytes = (self.state.delivered_bytes - bytes) as f64 / deliveries;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.state.is_settled() {
            self.turn(false)?;
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{} lost a message", self.server.kind.label())));
            }
        }
        Ok(Measured {
            cpu_ns: (after.cpu - before.cpu).as_nanos() as f64 / deliveries,
            per_second: deliveries / seconds,
            bytes,
        })
    }

    fn run_for(&mut self, duration: Duration) -> io::Result<()> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.turn(true)?;
        }
        Ok(())
    }

    fn turn(&mut self, go_on: bool) -> io::Result<()> {
        let Self { server, lanes, state, .. } = self;
        let mut wrong = None;
        lanes.turn(Wait::AtMost(Duration::from_secs(1)), &mut |lanes, conn, bytes| {
            let right = match (conn.slot, state.kind) {
                (0, Kind::BareFanout) => true, // its own message: the subscribers check it
                (0, _) => state.take_answers(lanes, bytes),
                (slot, _) => state.verify(lanes, slot, bytes),
            };
            if !right {
                wrong.get_or_insert(conn);
            }
        })?;
        if let Some(conn) = wrong {
            return Err(io::Error::other(format!("{}: client {} got wrong bytes", server.kind.label(), conn.slot)));
        }
        if lanes.ended() > 0 {
            return Err(io::Error::other(format!("{} closed a connection", server.kind.label())));
        }
        while state.messages.front().is_some_and(|message| message.delivered == state.subscribers.len()) {
            state.messages.pop_front();
            state.first += 1;
            if go_on {
                state.publish(lanes);
            }
        }
        Ok(())
    }
}

impl State {
    fn publish(&mut self, lanes: &mut Lanes) {
        let data = (self.data)(self.published);
        let publisher = ConnKey { slot: 0, generation: 1 };
        let mut bytes = Vec::new();
        if self.kind.is_websocket() {
            let publish = format!(r#"{{"type":"publish","payload":{{"topic":"{TOPIC}","data":{data}}}}}"#);
            lanes.write(publisher, |out| websocket::text_frame(out, publish.as_bytes(), [9, 8, 7, 6]));
        } else {
            websocket::server_text_frame(&mut bytes, envelope(&data, "1700000000000").as_bytes());
            assert_eq!(bytes.len(), BARE_MESSAGE_BYTES);
            lanes.write(publisher, |out| out.extend_from_slice(&bytes));
        }
        self.published += 1;
        self.messages.push_back(Message { bytes, delivered: 0 });
    }

    /// Compares what a subscriber got with what it must get. The time in a message is the server's: the first that gets
    /// a byte of it sets what the others must get, and the first that has all of it checks the whole.
    fn verify(&mut self, lanes: &mut Lanes, slot: u32, bytes: &[u8]) -> bool {
        let mut unread = bytes;
        while let Some(&byte) = unread.first() {
            let subscriber = &mut self.subscribers[slot as usize - 1];
            if subscriber.ping_bytes > 0 || (subscriber.offset == 0 && byte == PING[0]) {
                if PING.get(subscriber.ping_bytes).is_some_and(|&expected| byte != expected) {
                    return false;
                }
                subscriber.ping_bytes += 1;
                if subscriber.ping_bytes == PING_BYTES {
                    lanes.write(ConnKey { slot, generation: 1 }, |out| out.extend_from_slice(&PONG));
                    subscriber.ping_bytes = 0;
                }
                unread = &unread[1..];
                continue;
            }
            let Some(message) = self.messages.get_mut((subscriber.message - self.first) as usize) else { return false };
            let count = unread.len().min(message.end() - subscriber.offset);
            let (piece, rest) = unread.split_at(count);
            let end = subscriber.offset + count;
            let known = message.bytes.len().clamp(subscriber.offset, end) - subscriber.offset;
            if piece[..known] != message.bytes[subscriber.offset..subscriber.offset + known] {
                return false;
            }
            message.bytes.extend_from_slice(&piece[known..]);
            unread = rest;
            subscriber.offset = end;
            if end == message.end() {
                let is_right =
                    || is_message(&message.bytes, &(self.data)(subscriber.message), self.kind.offer().is_some());
                if message.delivered == 0 && !is_right() {
                    return false;
                }
                message.delivered += 1;
                self.delivered_bytes += end as u64;
                subscriber.message += 1;
                subscriber.offset = 0;
                self.deliveries += 1;
            }
        }
        true
    }

    /// Takes the engine's receipts: each says that everybody was matched and nobody left out.
    fn take_answers(&mut self, lanes: &mut Lanes, bytes: &[u8]) -> bool {
        self.answers.extend_from_slice(bytes);
        loop {
            let (header, len) = match self.answers[..] {
                [0x89, 8, ..] if self.answers.len() < PING_BYTES => return true,
                [0x89, 8, ..] => {
                    lanes.write(ConnKey { slot: 0, generation: 1 }, |out| out.extend_from_slice(&PONG));
                    self.answers.drain(..PING_BYTES);
                    continue;
                }
                [0x81, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
                [0x81, len @ ..126, ..] => (2, usize::from(len)),
                [] | [_] | [0x81, 126, ..] => return true,
                _ => return false,
            };
            if self.answers.len() < header + len {
                return true;
            }
            let answer = String::from_utf8_lossy(&self.answers[header..header + len]);
            let count = self.subscribers.len();
            if !answer.contains(&format!(r#""matched":{count},"queued":{count},"dropped":0"#)) {
                return false;
            }
            self.answers.drain(..header + len);
            self.acks += 1;
        }
    }

    fn is_settled(&self) -> bool {
        self.messages.is_empty() && (!self.kind.is_websocket() || self.acks == self.published)
    }
}

/// Whether `frame` is a message with this data and any time, in the form that was agreed on.
fn is_message(frame: &[u8], data: &str, is_deflated: bool) -> bool {
    let (first, payload) = (frame[0], &frame[HEADER_BYTES..]);
    let mut text = payload.to_vec();
    if is_deflated {
        let limits = InflateLimits { message_bytes_max: 1 << 16, ratio_max: usize::MAX };
        if Inflater::default().inflate(payload, false, &limits, &mut text).is_err() {
            return false;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let timestamp = text.trim_end_matches('}').rsplit(':').next().unwrap_or_default();
    let is_right_kind = first == if is_deflated { 0xc1 } else { 0x81 };
    is_right_kind && text == envelope(data, timestamp) && timestamp.parse::<u64>().is_ok()
}

fn envelope(data: &str, timestamp: &str) -> String {
    format!(r#"{{"type":"message","payload":{{"topic":"{TOPIC}","data":{data}}},"timestamp":{timestamp}}}"#)
}

/// A JSON string that makes the envelope 128 bytes.
fn data(number: u64) -> String {
    format!(r#""{number:010}{}""#, "~".repeat(31))
}

/// Prints what a delivery costs, one publish at a time and several on their way.
///
/// # Errors
/// A server failed.
pub fn compare(rounds: usize, seconds: f64, subscribers: usize, in_flight: &[u64], servers: &[Kind]) -> io::Result<()> {
    let labels: Vec<_> = servers.iter().map(|kind| kind.label()).collect();
    let name = format!("server CPU ns a delivery of 128 B to {subscribers} subscribers (median of rounds)");
    let mut table = Table::new(&name, &labels);
    for &in_flight in in_flight {
        let mut loads = Vec::new();
        for &kind in servers {
            loads.push(FanoutLoad::start(kind, subscribers, in_flight, data)?);
        }
        let mut measured = vec![Vec::new(); servers.len()];
        for _ in 0..rounds {
            for (load, measured) in loads.iter_mut().zip(&mut measured) {
                measured.push(load.measure(Duration::from_secs_f64(seconds))?);
            }
        }
        let all = |figure: fn(&Measured) -> f64| -> Vec<f64> {
            measured.iter().map(|rounds| median(rounds.iter().map(figure))).collect()
        };
        table.row(&format!("{in_flight} in flight"), &all(|m| m.cpu_ns), 0);
        // Of the same round each: what disturbs a round disturbs both.
        let ratios: Vec<f64> = measured
            .iter()
            .map(|rounds| median(rounds.iter().zip(&measured[0]).map(|(own, floor)| own.cpu_ns / floor.cpu_ns)))
            .collect();
        table.row(&format!("  × {}", labels[0]), &ratios, 3);
        table.row("  deliveries a second", &all(|m| m.per_second), 0);
    }
    table.print()
}

/// Of a frame of 126 to 65,535 bytes.
const HEADER_BYTES: usize = 4;
const TOPIC: &str = "prices.eur";
const WARM_UP: Duration = Duration::from_millis(200);
