//! The servers that are measured. Each runs in a process of its own, pinned to the first core, so that its CPU time is
//! the process's and the load generator's is not in it.

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use clap::ValueEnum;
use tidewheel::id::ConnKey;
use tidewheel::io::uring::ReceiveMode;
use tidewheel::io::{Completion, FrameKey, Io, SharedFrame, Wait, affinity, listener};
use tidewheel::{Config, Engine};

use super::lanes::{Lanes, driver};
use super::secure::{CERTIFICATE, KEY};
use super::tokio_tls;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Bare TCP echo on the engine's driver: the floor.
    BareEcho,
    /// The same, with a poll and a receive in place of the multishot receive.
    BareEchoPoll,
    /// Bare SENDs on the engine's driver: what is published is a fixed number of bytes, and everybody gets it.
    BareFanout,
    /// The engine.
    Tidewheel,
    /// The engine with `io.wait: poll`.
    TidewheelPoll,
    /// The engine, whose subscribers take messages compressed.
    TidewheelDeflate,
    /// The engine, whose clients' messages may refer to those before.
    TidewheelTakeover,
    /// The engine, whose clients must authenticate.
    TidewheelAuth,
    /// The same with `io.wait: poll`.
    TidewheelAuthPoll,
    /// The engine, with topics named after their policies, and patience with who does not read.
    TidewheelPolicies,
    /// The engine with its default limits, whose clients must authenticate.
    TidewheelDefaults,
    /// The same, that takes in a thousand connections a second.
    TidewheelPaced,
    /// The engine on a port with TLS.
    TidewheelTls,
    /// The same, whose clients must authenticate.
    TidewheelTlsAuth,
    /// WebSocket echo over TLS on tokio, tokio-rustls and tungstenite.
    TokioTls,
    /// TCP echo with a task a connection on tokio-uring.
    TokioUring,
}

impl Kind {
    /// Column head.
    pub fn label(self) -> &'static str {
        match self {
            Self::BareEcho => "bare TCP",
            Self::BareEchoPoll => "bare TCP, poll",
            Self::BareFanout => "bare SENDs",
            Self::Tidewheel | Self::TidewheelPolicies | Self::TidewheelDefaults => "tidewheel",
            Self::TidewheelPaced => "tidewheel, paced",
            Self::TidewheelPoll => "tidewheel, poll",
            Self::TidewheelDeflate => "tidewheel, deflate",
            Self::TidewheelTakeover => "tidewheel, context takeover",
            Self::TidewheelAuth => "tidewheel, recv",
            Self::TidewheelAuthPoll => "tidewheel, poll",
            Self::TidewheelTls | Self::TidewheelTlsAuth => "tidewheel, TLS",
            Self::TokioTls => "tokio-rustls + tungstenite",
            Self::TokioUring => "tokio-uring TCP",
        }
    }

    /// Whether it speaks TLS.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::TidewheelTls | Self::TidewheelTlsAuth | Self::TokioTls)
    }

    /// Whether clients shake hands and send frames.
    pub fn is_websocket(self) -> bool {
        !matches!(self, Self::BareEcho | Self::BareEchoPoll | Self::BareFanout | Self::TokioUring)
    }

    /// The extension that clients ask for.
    pub fn offer(self) -> Option<&'static str> {
        matches!(self, Self::TidewheelDeflate | Self::TidewheelTakeover).then_some("permessage-deflate")
    }
}

/// Path of the engine's raw echo.
pub const ECHO_PATH: &str = "/echo";
/// What is measured is what the engine can do, not what it lets one client do.
const LIMITS: &str = "{messages: null, bytes: null, connection_attempts: null}";
const PACED: &str = "{connections_per_second: 1000}";
const CLIENTS: &str = "websocket: {max_connections_per_client: null}";
const TAKEOVER: &str = "websocket: {max_connections_per_client: null, compression: {client_context_takeover: true}}";
const PATIENCE: &str = "websocket: {max_connections_per_client: null, ping_interval_seconds: 0, idle_timeout_seconds: 0, \
                        close_timeout: 1h}, outbound: {max_bytes: 10MB, max_age: 1h}, topics: [\
                        {pattern: drop_oldest, policy: drop_oldest}, {pattern: drop_newest, policy: drop_newest}, \
                        {pattern: latest_per_key, policy: latest_per_key}]";
/// Secret of the tokens.
pub const SECRET: &str = "a-secret-of-thirty-two-bytes-or-more";
/// Bytes of a published message, and of a delivery, on the bare fan-out.
pub const BARE_MESSAGE_BYTES: usize = 132;

/// Runs a server on this core until its standard input ends.
///
/// # Errors
/// The server could not start.
pub fn serve(kind: Kind, core: usize) -> io::Result<()> {
    affinity::pin(core)?;
    let turns = Arc::new(AtomicU64::new(0));
    match kind {
        Kind::BareEcho => bare_echo(ReceiveMode::Recv, &turns),
        Kind::BareEchoPoll => bare_echo(ReceiveMode::Poll, &turns),
        Kind::BareFanout => BareFanout::serve(&turns),
        Kind::Tidewheel | Kind::TidewheelDeflate => engine("recv", false, LIMITS, CLIENTS),
        Kind::TidewheelTakeover => engine("recv", false, LIMITS, TAKEOVER),
        Kind::TidewheelPoll => engine("poll", false, LIMITS, CLIENTS),
        Kind::TidewheelAuth => engine("recv", true, LIMITS, CLIENTS),
        Kind::TidewheelAuthPoll => engine("poll", true, LIMITS, CLIENTS),
        Kind::TidewheelPolicies => engine("recv", false, LIMITS, PATIENCE),
        Kind::TidewheelDefaults => engine("recv", true, "{}", "websocket: {}"),
        Kind::TidewheelPaced => engine("recv", true, PACED, "websocket: {}"),
        Kind::TidewheelTls => engine("recv", false, LIMITS, &format!("{CLIENTS}, {}", secure_port())),
        Kind::TidewheelTlsAuth => engine("recv", true, LIMITS, &format!("{CLIENTS}, {}", secure_port())),
        Kind::TokioTls => {
            let listener = listener::listen(ANY.parse().expect("an address"), 1, USER_TIMEOUT)?.remove(0);
            tidewheel::io::probe::raise_descriptor_limit()?;
            tokio_tls::serve(listener, |address| answer_parent(address, || vec![0, 0]))
        }
        Kind::TokioUring => tokio_uring_echo(),
    }
}

fn engine(wait: &str, auth: bool, limits: &str, rest: &str) -> io::Result<()> {
    let auth = if auth { format!("{{secret: {SECRET}}}") } else { "{required: false}".into() };
    let yaml = format!(
        "{{listen: \"{ANY}\", echo_path: {ECHO_PATH}, shards: 1, io: {{wait: {wait}}}, auth: {auth}, \
         limits: {limits}, {rest}}}"
    );
    let config = Config::parse(&yaml).map_err(io::Error::other)?;
    let engine = Engine::builder(config).admin(false).start().map_err(io::Error::other)?;
    let metrics = engine.handle();
    let address = engine.tls_addresses().first().unwrap_or(&engine.addresses()[0]);
    answer_parent(*address, move || {
        let shard = &metrics.metrics()[0];
        let dropped = shard.dropped.iter().map(|counter| counter.get());
        [shard.turns.get(), shard.starved.get()].into_iter().chain(dropped).collect()
    })?;
    engine.wait();
    Ok(())
}

/// In the working directory the parent has put a certificate.
fn secure_port() -> String {
    format!("tls: {{listen: \"{ANY}\", cert_file: {CERTIFICATE}, key_file: {KEY}}}")
}

fn bare_echo(mode: ReceiveMode, turns: &Arc<AtomicU64>) -> io::Result<()> {
    let listeners = listener::listen(ANY.parse().expect("an address"), 1, USER_TIMEOUT)?;
    let address = listeners[0].local_addr()?;
    let mut lanes = Lanes::new(listeners, mode)?;
    lanes.accept();
    let counted = turns.clone();
    answer_parent(address, move || vec![counted.load(Relaxed), 0])?;
    loop {
        lanes.turn(Wait::Forever, &mut |lanes, conn, bytes| lanes.write(conn, |out| out.extend_from_slice(bytes)))?;
        turns.store(turns.load(Relaxed) + 1, Relaxed);
    }
}

/// Sends what one connection says to all of them, itself included.
struct BareFanout {
    io: tidewheel::io::uring::Uring,
    lanes: Vec<Delivered>,
    /// What was received, from message `first` on.
    log: Vec<u8>,
    first: usize,
    /// This turn's sends: those of one stretch of messages share a frame.
    frames: Vec<(usize, FrameKey)>,
}

/// How many messages a connection was sent, and whether it is being sent some.
#[derive(Clone, Copy)]
struct Delivered {
    messages: usize,
    sending: bool,
}

impl BareFanout {
    fn serve(turns: &Arc<AtomicU64>) -> io::Result<()> {
        let listeners = listener::listen(ANY.parse().expect("an address"), 1, USER_TIMEOUT)?;
        let address = listeners[0].local_addr()?;
        let io = driver(listeners, ReceiveMode::Recv)?;
        let mut fanout = Self { io, lanes: Vec::new(), log: Vec::new(), first: 0, frames: Vec::new() };
        fanout.io.accept();
        let counted = turns.clone();
        answer_parent(address, move || vec![counted.load(Relaxed), 0])?;
        loop {
            fanout.turn()?;
            turns.store(turns.load(Relaxed) + 1, Relaxed);
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        self.io.wait(Wait::Forever)?;
        let before = self.published();
        while let Some(completion) = self.io.poll() {
            match completion {
                Completion::Received { conn, bytes, armed } => {
                    self.log.extend_from_slice(&bytes);
                    drop(bytes);
                    if !armed {
                        self.io.receive(conn);
                    }
                }
                Completion::Sent { conn, sent } => {
                    sent?;
                    self.lanes[conn.slot as usize].sending = false;
                    self.send(conn.slot);
                }
                Completion::Accepted(socket) => {
                    let conn = ConnKey { slot: self.lanes.len() as u32, generation: 1 };
                    self.lanes.push(Delivered { messages: self.published(), sending: false });
                    self.io.adopt(socket, conn);
                    self.io.receive(conn);
                }
                Completion::AcceptStopped(error) => return Err(error),
                Completion::ReceiveEnded { .. } | Completion::ReceiveStopped { .. } => {
                    return Err(io::Error::other("a receive ended"));
                }
                Completion::Closed { .. } | Completion::Rang => {}
            }
        }
        if self.published() > before {
            (0..self.lanes.len() as u32).for_each(|slot| self.send(slot));
        }
        self.frames.drain(..).for_each(|(_, frame)| self.io.palette().release(frame));
        // The publisher waits for everybody, so what all but the last few messages were is of no interest.
        if self.log.len() > 2 * KEPT * BARE_MESSAGE_BYTES {
            self.log.drain(..KEPT * BARE_MESSAGE_BYTES);
            self.first += KEPT;
        }
        Ok(())
    }

    fn published(&self) -> usize {
        self.first + self.log.len() / BARE_MESSAGE_BYTES
    }

    fn send(&mut self, slot: u32) {
        let published = self.published();
        let lane = &mut self.lanes[slot as usize];
        if lane.sending || lane.messages == published {
            return;
        }
        let known = self.frames.iter().find(|(from, _)| *from == lane.messages);
        let frame = known.map(|(_, frame)| *frame).unwrap_or_else(|| {
            let bytes = &self.log[(lane.messages - self.first) * BARE_MESSAGE_BYTES..];
            let whole = bytes.len() / BARE_MESSAGE_BYTES * BARE_MESSAGE_BYTES;
            let frame = self.io.palette().share(SharedFrame::new(bytes[..whole].to_vec()), 1);
            self.frames.push((lane.messages, frame));
            frame
        });
        lane.messages = published;
        lane.sending = true;
        self.io.send(ConnKey { slot, generation: 1 }, frame, 0);
    }
}

fn tokio_uring_echo() -> io::Result<()> {
    // Its fastest set-up: it hangs with deferred task work.
    let mut ring = tokio_uring::uring_builder();
    ring.setup_single_issuer().setup_coop_taskrun();
    tokio_uring::builder().entries(4096).uring_builder(&ring).start(async {
        tidewheel::io::probe::raise_descriptor_limit()?;
        let listeners = listener::listen(ANY.parse().expect("an address"), 1, USER_TIMEOUT)?;
        let listener = tokio_uring::net::TcpListener::from_std(listeners.into_iter().next().expect("one"));
        answer_parent(listener.local_addr()?, || vec![0, 0])?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio_uring::spawn(async move {
                use tokio_uring::buf::BoundedBuf;
                let mut buffer = vec![0; 4096];
                loop {
                    let (read, bytes) = stream.read(buffer).await;
                    let Ok(count @ 1..) = read else { return };
                    let (written, bytes) = stream.write_all(bytes.slice(..count)).await;
                    if written.is_err() {
                        return;
                    }
                    buffer = bytes.into_inner();
                }
            });
        }
    })
}

/// Tells the parent the address and then, for each line it writes, the number of turns so far, how many receives
/// found no buffer, and what was dropped for each cause. Ends the process when the parent is gone.
fn answer_parent(address: SocketAddr, counts: impl Fn() -> Vec<u64> + Send + 'static) -> io::Result<()> {
    writeln!(io::stdout(), "{address}")?;
    let answer = move || -> io::Result<()> {
        for line in io::stdin().lock().lines() {
            line?;
            let counts: Vec<_> = counts().iter().map(u64::to_string).collect();
            writeln!(io::stdout(), "{}", counts.join(" "))?;
        }
        Ok(())
    };
    thread::spawn(move || {
        let _ = answer(); // a parent that is gone cannot be told
        std::process::exit(0)
    });
    Ok(())
}

const ANY: &str = "127.0.0.1:0";
const USER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
/// Messages that the bare fan-out remembers.
const KEPT: usize = 64;
