//! One of many subscribers stops reading: what the others, the server's memory and its counters show of it.
//!
//! Law: every healthy subscriber checks every byte, in order; the stalled one must get what the policy of the topic promises
//! when it reads again, and what it does not get must be counted. Publishes go one at a time, on two engines by turns, of
//! which only one has a stalled subscriber.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tidewheel::id::ConnKey;
use tidewheel::io::Wait;
use tidewheel::io::uring::ReceiveMode;
use tidewheel::metrics::Drop;

use super::child::Server;
use super::lanes::Lanes;
use super::server::Kind;
use super::table::Table;
use super::websocket;

/// An engine, its publisher (lane 0), its healthy subscribers, and perhaps one that does not read.
struct Load {
    server: Server,
    lanes: Lanes,
    crowd: Crowd,
    stalled: Option<TcpStream>,
    pss_max: u64,
}

struct Crowd {
    topic: &'static str,
    published: u64,
    /// The message on its way, as far as somebody has got it; whole it has `length` bytes.
    message: Vec<u8>,
    length: usize,
    /// How much of it each healthy subscriber has.
    offsets: Vec<usize>,
    delivered: usize,
    sent_at: Instant,
    latencies_us: Vec<u32>,
    answers: Vec<u8>,
    acks: u64,
    /// Of all receipts: matched, queued, dropped.
    receipts: [u64; 3],
}

impl Load {
    fn start(topic: &'static str, healthy: usize, has_stalled: bool) -> io::Result<Self> {
        let server = Server::start(Kind::TidewheelPolicies)?;
        let subscribe = format!(r#"{{"type":"subscribe","payload":{{"topic":"{topic}"}}}}"#);
        let join = |socket: &mut TcpStream, subscribes: bool| -> io::Result<()> {
            websocket::shake_hands(socket, "/ws")?;
            let is_in = !subscribes || websocket::ask(socket, &subscribe)?.contains(r#""success":true"#);
            if is_in { Ok(()) } else { Err(io::Error::other("no subscription")) }
        };
        let mut sockets = Vec::new();
        for index in 0..=healthy {
            let mut socket = server.connect()?;
            join(&mut socket, index > 0)?;
            sockets.push(socket);
        }
        let stalled = match has_stalled {
            true => {
                // With little room in its own kernel: over loopback a usual one holds megabytes.
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.set_recv_buffer_size(4096)?;
                socket.connect(&server.address().into())?;
                let mut socket = TcpStream::from(socket);
                join(&mut socket, true)?;
                Some(socket)
            }
            false => None,
        };
        let mut lanes = Lanes::new(Vec::new(), ReceiveMode::Recv)?;
        lanes.take(sockets)?;
        Ok(Self { server, lanes, crowd: Crowd::new(topic, healthy), stalled, pss_max: 0 })
    }

    /// Publishes, each time when everybody has got the message before.
    fn publish(&mut self, messages: u64) -> io::Result<()> {
        let Self { lanes, crowd, .. } = self;
        for _ in 0..messages {
            crowd.publish(lanes);
            let deadline = Instant::now() + Duration::from_secs(10);
            while crowd.delivered < crowd.offsets.len() || crowd.acks < crowd.published {
                let mut is_right = true;
                lanes.turn(Wait::AtMost(Duration::from_secs(1)), &mut |_, conn, bytes| {
                    is_right &= match conn.slot {
                        0 => crowd.take_answers(bytes),
                        slot => crowd.verify(slot as usize - 1, bytes),
                    };
                })?;
                if !is_right || lanes.ended() > 0 || Instant::now() > deadline {
                    let number = crowd.published - 1;
                    return Err(io::Error::other(format!("{}: a neighbour lost message {number}", crowd.topic)));
                }
            }
        }
        self.pss_max = self.pss_max.max(self.server.pss_bytes()?);
        Ok(())
    }

    /// The stalled one reads again. Returns the numbers that it gets, and the code it is told to go with, if it is.
    fn read_stalled(&mut self) -> io::Result<(Vec<u64>, Option<u64>)> {
        let mut socket = self.stalled.take().ok_or_else(|| io::Error::other("nobody is stalled"))?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut ping = Vec::new();
        websocket::text_frame(&mut ping, br#"{"type":"ping"}"#, [1, 2, 3, 4]);
        socket.write_all(&ping)?;
        let mut numbers = Vec::new();
        let mut reader = io::BufReader::new(socket);
        loop {
            let mut header = [0; 2];
            reader.read_exact(&mut header)?;
            let mut length = usize::from(header[1]);
            if length == 126 {
                let mut long = [0; 2];
                reader.read_exact(&mut long)?;
                length = usize::from(u16::from_be_bytes(long));
            }
            let mut payload = vec![0; length];
            reader.read_exact(&mut payload)?;
            let said: Value = serde_json::from_slice(&payload)?;
            match said["type"].as_str() {
                Some("message") => numbers.extend(said["payload"]["data"][0].as_u64()),
                Some("pong") => return Ok((numbers, None)),
                _ => return Ok((numbers, said["payload"]["code"].as_u64())),
            }
        }
    }
}

impl Crowd {
    fn new(topic: &'static str, healthy: usize) -> Self {
        let envelope = format!(
            r#"{{"type":"message","payload":{{"topic":"{topic}","data":{}}},"timestamp":1700000000000}}"#,
            data(0)
        );
        Self {
            topic,
            published: 0,
            message: Vec::new(),
            length: 4 + envelope.len(),
            offsets: vec![0; healthy],
            delivered: 0,
            sent_at: Instant::now(),
            latencies_us: Vec::new(),
            answers: Vec::new(),
            acks: 0,
            receipts: [0; 3],
        }
    }

    fn publish(&mut self, lanes: &mut Lanes) {
        let (topic, number) = (self.topic, self.published);
        let (data, key) = (data(number), number % KEYS);
        let text = format!(r#"{{"type":"publish","payload":{{"topic":"{topic}","key":"k{key}","data":{data}}}}}"#);
        lanes
            .write(ConnKey { slot: 0, generation: 1 }, |out| websocket::text_frame(out, text.as_bytes(), [9, 8, 7, 6]));
        self.published += 1;
        self.message.clear();
        self.offsets.fill(0);
        self.delivered = 0;
        self.sent_at = Instant::now();
    }

    /// Compares what a subscriber got with what others did. The time in a message is the server's: the first that gets a
    /// byte of it sets what the others must get, and the first that has all of it checks the number.
    fn verify(&mut self, subscriber: usize, bytes: &[u8]) -> bool {
        let offset = &mut self.offsets[subscriber];
        let end = *offset + bytes.len();
        let known = self.message.len().clamp(*offset, end) - *offset;
        if end > self.length || bytes[..known] != self.message[*offset..*offset + known] {
            return false;
        }
        self.message.extend_from_slice(&bytes[known..]);
        *offset = end;
        if end < self.length {
            return true;
        }
        let number = format!(r#""data":[{},"#, FIRST + self.published - 1);
        let is_right = self.delivered > 0 || String::from_utf8_lossy(&self.message[4..]).contains(&number);
        self.delivered += 1;
        self.latencies_us.push(self.sent_at.elapsed().as_micros() as u32);
        is_right
    }

    fn take_answers(&mut self, bytes: &[u8]) -> bool {
        self.answers.extend_from_slice(bytes);
        while let [0x81, 126, high, low, ..] = self.answers[..]
            && let end = 4 + usize::from(u16::from_be_bytes([high, low]))
            && self.answers.len() >= end
        {
            let Ok(receipt) = serde_json::from_slice::<Value>(&self.answers[4..end]) else { return false };
            for (sum, name) in self.receipts.iter_mut().zip(["matched", "queued", "dropped"]) {
                *sum += receipt["payload"][name].as_u64().unwrap_or_default();
            }
            self.answers.drain(..end);
            self.acks += 1;
        }
        true
    }

    /// In microseconds.
    fn p99(&mut self) -> f64 {
        let at = self.latencies_us.len() * 99 / 100;
        f64::from(*self.latencies_us.select_nth_unstable(at).1)
    }
}

/// About 1 KB of JSON.
fn data(number: u64) -> String {
    // A number of one length; JSON has no leading zeros.
    format!(r#"[{},"{}"]"#, FIRST + number, "~".repeat(1_000))
}

/// Whether the stalled one got what the policy promises; `numbers` of `published` messages.
fn is_promised(policy: Drop, numbers: &[u64], published: u64) -> bool {
    let waits = numbers.len().saturating_sub(FRAMES_MAX as usize);
    match policy {
        Drop::DropOldest => {
            numbers.is_sorted() && numbers[waits..].iter().copied().eq(published - FRAMES_MAX..published)
        }
        Drop::DropNewest => numbers.iter().copied().eq(0..numbers.len() as u64),
        Drop::LatestPerKey => (0..KEYS).all(|key| {
            let of_key = || numbers.iter().copied().filter(|number| number % KEYS == key);
            of_key().is_sorted() && of_key().next_back() == Some(published - KEYS + key)
        }),
        _ => numbers.iter().copied().eq(0..numbers.len() as u64),
    }
}

/// Prints, for each policy, the latency of the healthy subscribers beside and without a stalled one, and what became of
/// that one.
///
/// # Errors
/// A server failed, or broke a promise.
pub fn compare(subscribers: usize, messages: u64) -> io::Result<()> {
    let labels = ["p99 us alone", "p99 us beside", "ratio", "stalled got", "counted", "+PSS MB"];
    let name = format!("1 of {subscribers} subscribers stops reading while {messages} x 1 KB are published");
    let mut table = Table::new(&name, &labels);
    for policy in [Drop::Disconnect, Drop::DropOldest, Drop::DropNewest, Drop::LatestPerKey] {
        let topic = policy.label();
        let healthy = subscribers - 1;
        let mut alone = Load::start(topic, healthy, false)?;
        let mut beside = Load::start(topic, healthy, true)?;
        for _ in 0..ROUNDS {
            alone.publish(messages / ROUNDS)?;
            beside.publish(messages / ROUNDS)?;
        }
        let published = beside.crowd.published;
        let matched = beside.crowd.receipts[0] - published * healthy as u64;
        let (numbers, code) = beside.read_stalled()?;
        let numbers: Vec<u64> = numbers.into_iter().map(|number| number - FIRST).collect();
        let dropped = beside.server.dropped()?;
        let got = numbers.len() as u64;
        let is_counted = got + dropped[policy as usize] == matched
            && dropped.iter().sum::<u64>() == dropped[policy as usize]
            && beside.crowd.receipts[0] == beside.crowd.receipts[1] + beside.crowd.receipts[2];
        let stays =
            if policy == Drop::Disconnect { code == Some(4008) } else { code.is_none() && matched == published };
        if !(is_counted && stays && is_promised(policy, &numbers, published)) {
            let what = format!("{topic}: got {got}, {code:?}, counted {dropped:?} of {matched}");
            return Err(io::Error::other(what));
        }
        let [alone_us, beside_us] = [&mut alone, &mut beside].map(|load| load.crowd.p99());
        let more_mb = (beside.pss_max as f64 - alone.pss_max as f64) / 1e6;
        let counted = dropped[policy as usize] as f64;
        table.row(topic, &[alone_us, beside_us, beside_us / alone_us, got as f64, counted, more_mb], 2);
    }
    table.print()
}

const ROUNDS: u64 = 20;
const KEYS: u64 = 100;
/// The engine's default.
const FRAMES_MAX: u64 = 1024;
/// Messages are numbered from here, so that all numbers have one length.
const FIRST: u64 = 1_000_000_000;
