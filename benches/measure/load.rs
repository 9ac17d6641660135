//! Clients that have their messages echoed.
//! Law: every byte that comes back is compared with what must come back, and neighbours send different messages.

use std::io;
use std::time::{Duration, Instant};

use tidewheel::id::ConnKey;
use tidewheel::io::Wait;
use tidewheel::io::uring::ReceiveMode;

use super::child::Server;
use super::lanes::Lanes;
use super::server::{ECHO_PATH, Kind};
use super::websocket;

/// Clients of one server.
pub struct EchoLoad {
    server: Server,
    lanes: Lanes,
    messages: Vec<Message>,
    clients: Vec<Client>,
    in_flight: u32,
}

/// Bytes that go out, and bytes that must come back.
struct Message {
    out: Vec<u8>,
    back: Vec<u8>,
}

/// Which message a client sends next, which one it is getting back, and how much of that has come.
#[derive(Clone, Default)]
struct Client {
    next: u32,
    awaited: u32,
    offset: usize,
}

/// What a server did for some messages.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Messages that came back.
    pub messages: u64,
    /// User and system time of the server.
    pub cpu: Duration,
    /// How long it took.
    pub elapsed: Duration,
    /// Turns of the server's loop; 0 if it does not count them.
    pub turns: u64,
    /// Receives that found no free buffer.
    pub starved: u64,
}

impl EchoLoad {
    /// Starts a server and connects `connections` clients to it, each with `in_flight` messages of `payload_bytes` on
    /// their way.
    ///
    /// # Errors
    /// The server did not come up, or refused somebody.
    pub fn start(kind: Kind, connections: usize, in_flight: u32, payload_bytes: usize) -> io::Result<Self> {
        let server = Server::start(kind)?;
        let mut lanes = Lanes::new(Vec::new(), ReceiveMode::Recv)?;
        let mut sockets = Vec::new();
        for _ in 0..connections {
            let mut socket = server.open()?;
            if kind.is_websocket() {
                websocket::shake_hands_offering(&mut socket, ECHO_PATH, kind.offer())?;
            }
            sockets.push(socket);
        }
        lanes.take(sockets)?;
        let messages = (0..MESSAGES).map(|index| Message::new(index, payload_bytes, kind.is_websocket())).collect();
        let clients = (0..connections as u32).map(|slot| Client { next: slot, awaited: slot, offset: 0 }).collect();
        Ok(Self { server, lanes, messages, clients, in_flight })
    }

    /// Drives the server until `enough` says so of the messages that have come back and the time it took, and takes its
    /// figures, without the beginning and the end.
    ///
    /// # Errors
    /// The server ended, a message was lost or a byte was wrong.
    pub fn measure(&mut self, enough: impl Fn(u64, Duration) -> bool) -> io::Result<Measured> {
        for slot in 0..self.clients.len() {
            for _ in 0..self.in_flight {
                send_next(&mut self.lanes, &mut self.clients[slot], slot as u32, &self.messages);
            }
        }
        self.run(|_, elapsed| elapsed >= WARM_UP)?;
        let before = self.server.spent()?;
        let start = Instant::now();
        let messages = self.run(enough)?;
        let elapsed = start.elapsed();
        let after = self.server.spent()?;
        self.end()?;
        Ok(Measured {
            messages,
            cpu: after.cpu - before.cpu,
            elapsed,
            turns: after.turns - before.turns,
            starved: after.starved - before.starved,
        })
    }

    fn run(&mut self, enough: impl Fn(u64, Duration) -> bool) -> io::Result<u64> {
        let start = Instant::now();
        let mut messages = 0;
        while !enough(messages, start.elapsed()) {
            messages += self.turn(true)?;
        }
        Ok(messages)
    }

    /// Waits until every message has come back.
    fn end(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.clients.iter().any(|client| client.awaited != client.next) {
            self.turn(false)?;
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{} lost a message", self.server.kind.label())));
            }
        }
        Ok(())
    }

    /// Takes what has come back, and answers each message with the next if `go_on`. Returns how many came.
    fn turn(&mut self, go_on: bool) -> io::Result<u64> {
        let Self { lanes, messages, clients, server, .. } = self;
        let (mut came, mut wrong) = (0, None);
        lanes.turn(Wait::AtMost(Duration::from_secs(1)), &mut |lanes, conn, bytes| {
            let client = &mut clients[conn.slot as usize];
            let Some(whole) = client.verify(bytes, messages) else {
                wrong.get_or_insert(conn);
                return;
            };
            came += u64::from(whole);
            if go_on {
                (0..whole).for_each(|_| send_next(lanes, client, conn.slot, messages));
            }
        })?;
        if let Some(conn) = wrong {
            return Err(io::Error::other(format!("{}: client {} got wrong bytes", server.kind.label(), conn.slot)));
        }
        if lanes.ended() > 0 {
            return Err(io::Error::other(format!("{} closed a connection", server.kind.label())));
        }
        Ok(came)
    }
}

impl Client {
    /// Compares bytes with those that must come; returns how many messages they complete.
    fn verify(&mut self, mut bytes: &[u8], messages: &[Message]) -> Option<u32> {
        let mut whole = 0;
        while !bytes.is_empty() {
            let expected = &messages[self.awaited as usize % MESSAGES].back[self.offset..];
            let count = expected.len().min(bytes.len());
            if self.awaited == self.next || bytes[..count] != expected[..count] {
                return None;
            }
            bytes = &bytes[count..];
            self.offset += count;
            if count == expected.len() {
                self.offset = 0;
                self.awaited += 1;
                whole += 1;
            }
        }
        Some(whole)
    }
}

fn send_next(lanes: &mut Lanes, client: &mut Client, slot: u32, messages: &[Message]) {
    let message = &messages[client.next as usize % MESSAGES];
    client.next += 1;
    lanes.write(ConnKey { slot, generation: 1 }, |out| out.extend_from_slice(&message.out));
}

impl Message {
    /// One of [`MESSAGES`] different ones; neighbours begin with different ones, so a mix-up shows.
    fn new(index: usize, payload_bytes: usize, is_websocket: bool) -> Self {
        let payload_bytes = if is_websocket { payload_bytes } else { payload_bytes + FRAMING };
        let payload: Vec<u8> = (0..payload_bytes).map(|at| b'0' + ((index * 31 + at * 7) % 71) as u8).collect();
        let (mut out, mut back) = (Vec::new(), Vec::new());
        if is_websocket {
            let mask = (index as u32).wrapping_mul(0x9e37_79b9).to_be_bytes();
            websocket::text_frame(&mut out, &payload, mask);
            websocket::server_text_frame(&mut back, &payload);
        } else {
            out.clone_from(&payload);
            back = payload;
        }
        Self { out, back }
    }
}

/// Half of what the headers of a short message add, in and out.
const FRAMING: usize = 4;
/// Different messages.
const MESSAGES: usize = 61;
/// Until caches are warm and batches have found their size.
const WARM_UP: Duration = Duration::from_millis(150);
