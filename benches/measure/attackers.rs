//! The attackers: one process, one thread, a thousand connections that each do one thing as fast as the kernel takes it.
//!
//! Law: in the first wave whoever is closed stays away, unless the attack is one of connecting; in the second, each comes
//! again at once, from another address and as another user. How each ended is counted. Sockets do not block, so one that
//! the server does not read from slows no other down.

use std::collections::BTreeMap;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use flate2::{Compress, Compression, FlushCompress};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::server::SECRET;
use super::websocket;

/// What they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attack {
    /// An upgrade request that comes line by line and never ends.
    SlowHandshake,
    /// Headers without end.
    HeaderFlood,
    /// Upgraded, and never authenticated.
    NoAuth,
    /// A message in fragments of one byte.
    TinyFragments,
    /// A message in fragments of none.
    EmptyFragments,
    /// Messages of no byte.
    EmptyMessages,
    /// Pings of no byte.
    PingFlood,
    /// Random bytes for frames.
    Garbage,
    /// Messages that inflate to more than a message may be.
    ZipBomb,
    /// Messages that inflate to as much as a message may be, at a ratio that is allowed.
    LegalZip,
    /// Publishes, over the rate.
    PublishFlood,
    /// Requests with long answers, which are not read.
    ZeroWindow,
    /// Connect, and reset.
    ResetStorm,
    /// Connect, upgrade, and reset.
    UpgradeStorm,
}

impl Attack {
    /// Whether who is closed comes again, from another address: connecting is the attack.
    pub fn comes_again(self) -> bool {
        matches!(self, Self::ResetStorm | Self::UpgradeStorm)
    }

    fn authenticates(self) -> bool {
        use Attack::*;
        matches!(
            self,
            TinyFragments
                | EmptyFragments
                | EmptyMessages
                | PingFlood
                | Garbage
                | ZipBomb
                | LegalZip
                | PublishFlood
                | ZeroWindow
        )
    }

    fn upgrades(self) -> bool {
        self.authenticates() || self == Self::NoAuth
    }

    /// The header line with the extension that it needs.
    fn offer(self) -> &'static str {
        match self {
            Self::ZipBomb | Self::LegalZip => "Sec-WebSocket-Extensions: permessage-deflate\r\n",
            _ => "",
        }
    }
}

/// What became of a wave: how many were left, what they sent, and how the others ended.
#[derive(Debug, Default)]
struct Outcome {
    left: usize,
    sent_bytes: u64,
    ends: BTreeMap<String, u64>,
}

impl Outcome {
    fn print(&self, begin: Instant) -> io::Result<()> {
        writeln!(io::stdout(), "{} {} {}", begin.elapsed().as_millis(), self.left, self.sent_bytes)?;
        for (how, count) in &self.ends {
            writeln!(io::stdout(), "{count} {how}")?;
        }
        writeln!(io::stdout(), "end")
    }
}

/// Attacks the server at `address`: connects everybody, says so on standard output, waits for a line, attacks until all are
/// gone or the time is up, and prints what became of it. For each further line it attacks for [`AGAIN`], with as many, of whom
/// each comes again when it is closed.
///
/// # Errors
/// The server did not let them in.
pub fn run(attack: Attack, address: SocketAddr, connections: usize, most: Duration) -> io::Result<()> {
    let (first, again) = script(attack);
    let mut crowd =
        Crowd { attack, address, first, again, next: 0, attackers: Vec::new(), outcome: Outcome::default() };
    if !attack.comes_again() {
        for _ in 0..connections {
            let attacker = crowd.prepare()?;
            crowd.attackers.push(attacker);
        }
    }
    writeln!(io::stdout(), "ready")?;
    let mut orders = io::stdin().lock().lines();
    if orders.next().is_some() {
        let begin = Instant::now();
        match attack.comes_again() {
            true => crowd.storm(connections, begin + most)?,
            false => crowd.attack(begin + most, 0)?,
        }
        std::mem::take(&mut crowd.outcome).print(begin)?;
    }
    while orders.next().is_some() {
        let begin = Instant::now();
        crowd.attack(begin + AGAIN, connections)?;
        std::mem::take(&mut crowd.outcome).print(begin)?;
    }
    Ok(())
}

struct Crowd {
    attack: Attack,
    address: SocketAddr,
    /// What each says once it may speak.
    first: Vec<u8>,
    /// What it says then again and again.
    again: Vec<u8>,
    /// How many have connected so far.
    next: u32,
    attackers: Vec<Attacker>,
    outcome: Outcome,
}

struct Attacker {
    socket: TcpStream,
    /// What it says once; nothing when it has.
    first: Vec<u8>,
    /// How much of what it is saying has left.
    offset: usize,
    received: Vec<u8>,
    /// The status line or the close code that it got.
    told: Option<String>,
}

impl Crowd {
    /// A connection from the next address: each has 20 connections, less than one address may make at once.
    fn connect(&mut self) -> io::Result<TcpStream> {
        let socket = self.socket()?;
        socket.connect(&self.address.into())?;
        Ok(socket.into())
    }

    fn socket(&mut self) -> io::Result<Socket> {
        let from = self.next / PER_ADDRESS;
        self.next += 1;
        let from = Ipv4Addr::new(127, 1 + (from >> 16) as u8, (from >> 8) as u8, from as u8);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if self.attack == Attack::ZeroWindow {
            socket.set_recv_buffer_size(4096)?;
        }
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    }

    fn prepare(&mut self) -> io::Result<Attacker> {
        let number = self.next;
        let mut socket = self.connect()?;
        if self.attack.upgrades() {
            websocket::shake_hands_with(&mut socket, "/ws", self.attack.offer())?;
        }
        if self.attack.authenticates() {
            let answer = websocket::ask(&mut socket, &authenticate(number)?)?;
            if !answer.contains(r#""authenticated":true"#) {
                return Err(io::Error::other(answer));
            }
        }
        socket.set_nonblocking(true)?;
        Ok(Attacker { socket, first: self.first.clone(), offset: 0, received: Vec::new(), told: None })
    }

    /// One more, that waits for no answer: its attack follows its handshake.
    fn newcomer(&mut self) -> io::Result<Attacker> {
        let number = self.next;
        let socket = self.socket()?;
        socket.set_nonblocking(true)?;
        match socket.connect(&self.address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let mut first = Vec::new();
        if self.attack.upgrades() {
            first.extend_from_slice(websocket::request("/ws", self.attack.offer()).as_bytes());
        }
        if self.attack.authenticates() {
            websocket::text_frame(&mut first, authenticate(number)?.as_bytes(), MASK);
        }
        first.extend_from_slice(&self.first);
        Ok(Attacker { socket: socket.into(), first, offset: 0, received: Vec::new(), told: None })
    }

    /// Until nobody is left or the time is up; newcomers make them `least` again and again.
    fn attack(&mut self, until: Instant, least: usize) -> io::Result<()> {
        let reads = self.attack != Attack::ZeroWindow;
        let pause = if self.attack == Attack::SlowHandshake { Duration::from_millis(50) } else { Duration::ZERO };
        while Instant::now() < until {
            while self.attackers.len() < least {
                let newcomer = self.newcomer()?;
                self.attackers.push(newcomer);
            }
            if self.attackers.is_empty() {
                break;
            }
            let Self { attackers, outcome, again, .. } = self;
            attackers.retain_mut(|attacker| {
                let is_broken = attacker.write(again, &mut outcome.sent_bytes).is_err();
                let has_ended = (reads || is_broken) && attacker.read();
                if has_ended {
                    let how = attacker.told.take().unwrap_or_else(|| "reset".into());
                    *outcome.ends.entry(how).or_default() += 1;
                }
                !has_ended
            });
            std::thread::sleep(pause);
        }
        self.outcome.left = self.attackers.len();
        Ok(())
    }

    /// So many connections at a time, each for one moment.
    fn storm(&mut self, connections: usize, until: Instant) -> io::Result<()> {
        while Instant::now() < until {
            let mut sockets = Vec::with_capacity(connections);
            for _ in 0..connections {
                let mut socket = self.connect()?;
                if self.attack == Attack::UpgradeStorm {
                    socket.write_all(websocket::request("/ws", "").as_bytes())?;
                    self.outcome.sent_bytes += 200;
                }
                sockets.push(socket);
            }
            for socket in sockets {
                Socket::from(socket).set_linger(Some(Duration::ZERO))?;
            }
            *self.outcome.ends.entry("of itself".into()).or_default() += connections as u64;
        }
        Ok(())
    }
}

impl Attacker {
    /// Writes as much as the kernel takes at once, up to a turn's share.
    fn write(&mut self, again: &[u8], sent_bytes: &mut u64) -> io::Result<()> {
        let bytes = if self.first.is_empty() { again } else { &self.first };
        if bytes.is_empty() {
            return Ok(());
        }
        match self.socket.write(&bytes[self.offset..]) {
            Ok(count) => {
                *sent_bytes += count as u64;
                self.offset += count;
                if self.offset == bytes.len() {
                    self.offset = 0;
                    self.first = Vec::new();
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads what there is; whether that was the end.
    fn read(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut piece) {
                Ok(0) => return true,
                Ok(count) => self.note(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }

    /// Remembers the status of an answer, or the code of a close frame.
    fn note(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
        if self.received.starts_with(b"HTTP/1.1 101 ") {
            match self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) => drop(self.received.drain(..at + 4)),
                None => return,
            }
        }
        if let Some(line) = self.received.strip_prefix(b"HTTP/1.1 ") {
            self.told = Some(format!("HTTP {}", String::from_utf8_lossy(&line[..line.len().min(3)])));
            return;
        }
        let mut at = 0;
        while let Some((opcode, payload, end)) = websocket::split(&self.received[at..]) {
            if opcode == 8 && payload.len() >= 2 {
                self.told = Some(u16::from_be_bytes([payload[0], payload[1]]).to_string());
            }
            at += end;
        }
        self.received.drain(..at);
    }
}

/// What an attacker says first, and what it says then again and again.
fn script(attack: Attack) -> (Vec<u8>, Vec<u8>) {
    let whole = websocket::request("/ws", "");
    let begun = whole.trim_end_matches("\r\n").as_bytes();
    let line = b"\r\nX-A: b";
    let text = |text: &str| {
        let mut frame = Vec::new();
        websocket::text_frame(&mut frame, text.as_bytes(), MASK);
        frame
    };
    let frame = |first: u8, payload: &[u8]| {
        let mut frame = vec![first, 0x80 | payload.len() as u8];
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK).map(|(byte, mask)| byte ^ mask));
        frame
    };
    match attack {
        Attack::SlowHandshake => (begun.to_vec(), line.to_vec()),
        Attack::HeaderFlood => (begun.to_vec(), line.repeat(2000)),
        Attack::NoAuth | Attack::ResetStorm | Attack::UpgradeStorm => (Vec::new(), Vec::new()),
        Attack::TinyFragments => (frame(0x01, b"a"), frame(0x00, b"a").repeat(2000)),
        Attack::EmptyFragments => (frame(0x01, b""), frame(0x00, b"").repeat(2000)),
        Attack::EmptyMessages => (Vec::new(), frame(0x81, b"").repeat(2000)),
        Attack::PingFlood => (Vec::new(), frame(0x89, b"").repeat(2000)),
        Attack::Garbage => {
            let mut state = 1u64;
            let random = std::iter::repeat_with(move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            });
            (Vec::new(), random.take(16 * 1024).collect())
        }
        Attack::ZipBomb => (Vec::new(), deflated(&vec![b' '; 20_000_000])),
        Attack::LegalZip => {
            // One letter in some hundred differs, for a ratio below 200.
            let varied = |at: usize| if at.is_multiple_of(290) { b'a' + (at / 290 * 7 % 26) as u8 } else { b' ' };
            let noise: Vec<u8> = (0..990_000).map(varied).collect();
            (Vec::new(), deflated(&[br#"{"type":"ping","note":""#, &noise[..], br#""}"#].concat()))
        }
        Attack::PublishFlood => {
            let publish = text(r#"{"type":"publish","payload":{"topic":"attack","data":"0123456789"}}"#);
            (Vec::new(), publish.repeat(100))
        }
        Attack::ZeroWindow => {
            let topic = |number: usize| format!("{number}{}", "t".repeat(240));
            let subscribe = |number| format!(r#"{{"type":"subscribe","payload":{{"topic":"{}"}}}}"#, topic(number));
            let first = (0..40).flat_map(|number| text(&subscribe(number))).collect();
            (first, text(r#"{"type":"list_subscriptions"}"#))
        }
    }
}

/// A compressed text message in one frame.
fn deflated(message: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(message.len() / 50 + 1000);
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(message, &mut payload, FlushCompress::Sync).expect("plain bytes compress");
    payload.truncate(payload.len() - 4);
    let mut frame = vec![0xc1, 0x80 | 126];
    frame.extend_from_slice(&u16::try_from(payload.len()).expect("a short payload").to_be_bytes());
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn authenticate(number: u32) -> io::Result<String> {
    let token = token(&format!("attacker-{number}"))?;
    Ok(format!(r#"{{"type":"authenticate","payload":{{"token":"{token}"}}}}"#))
}

/// A token for this user.
pub fn token(sub: &str) -> io::Result<String> {
    #[derive(Serialize)]
    struct Claims<'a> {
        sub: &'a str,
        exp: u64,
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let claims = Claims { sub, exp: now.as_secs() + 3600 };
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).map_err(io::Error::other)
}

const MASK: [u8; 4] = [0x1f, 0x2e, 0x3d, 0x4c];
const PER_ADDRESS: u32 = 20;
/// How long a further wave lasts.
const AGAIN: Duration = Duration::from_secs(5);
