//! TLS: what it adds to a message, a delivery, a newcomer and an idle connection, beside tokio-rustls with tungstenite.
//!
//! Law: all of them show the same kind of certificate and agree on the same suite and group, which is printed; clients check
//! what they get as they do without TLS.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use tidewheel::tls::SECURED_BYTES;

use super::child::Server;
use super::secure::Socket;
use super::server::{ECHO_PATH, Kind};
use super::table::{Table, median};
use super::{echo, fanout, idle, websocket};

/// How much of it is measured.
#[derive(Clone, Copy, clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Seconds of each server in each round of messages
    #[arg(long, default_value_t = 0.7)]
    seconds: f64,
    /// Newcomers of each kind in each round
    #[arg(long, default_value_t = 600)]
    newcomers: usize,
    /// Idle connections
    #[arg(long, default_value_t = 8000)]
    idle: usize,
    /// Prints one of the tables
    #[arg(long)]
    only: Option<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Echo,
    Fanout,
    Newcomers,
    Idle,
}

/// Prints all of it.
///
/// # Errors
/// A server failed.
pub fn compare(options: Options) -> io::Result<()> {
    let Options { rounds, seconds, only, .. } = options;
    let prints = |part| only.is_none_or(|only| only == part);
    agreements()?;
    if prints(Part::Echo) {
        for payload_bytes in [64, 1024] {
            let servers = [Kind::Tidewheel, Kind::TidewheelTls, Kind::TokioTls];
            echo::compare(rounds, seconds, &[(64, 1), (1000, 1)], payload_bytes, &servers)?;
        }
    }
    if prints(Part::Fanout) {
        for subscribers in [1000, 5000] {
            fanout::compare(rounds, seconds, subscribers, &[1, 8], &[Kind::Tidewheel, Kind::TidewheelTls])?;
        }
    }
    if prints(Part::Newcomers) {
        newcomers(rounds, options.newcomers)?;
    }
    if prints(Part::Idle) {
        idle_connections(options.idle)?;
    }
    Ok(())
}

/// What the measured connections speak.
fn agreements() -> io::Result<()> {
    for kind in [Kind::TidewheelTls, Kind::TokioTls] {
        let mut server = Server::start(kind)?;
        for version in VERSIONS {
            offer(&mut server, version)?;
            let mut socket = server.open()?;
            websocket::shake_hands(&mut socket, ECHO_PATH)?;
            writeln!(io::stdout(), "{}: {}", kind.label(), socket.agreed())?;
        }
    }
    writeln!(io::stdout())
}

fn offer(server: &mut Server, version: &'static SupportedProtocolVersion) -> io::Result<()> {
    let secure = server.secure().ok_or_else(|| io::Error::other("it speaks no TLS"))?;
    secure.offer = secure.authority.offer(version, Resumption::disabled())?;
    Ok(())
}

/// How a newcomer comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Full(&'static SupportedProtocolVersion),
    Resumed(&'static SupportedProtocolVersion),
}

/// What a connection costs that comes, upgrades and goes.
fn newcomers(rounds: usize, count: usize) -> io::Result<()> {
    let mut plain = Server::start(Kind::Tidewheel)?;
    let mut servers = [Server::start(Kind::TidewheelTls)?, Server::start(Kind::TokioTls)?];
    let ways = [
        ("TLS 1.3, whole handshake", Way::Full(&TLS13)),
        ("TLS 1.3, resumed", Way::Resumed(&TLS13)),
        ("TLS 1.2, whole handshake", Way::Full(&TLS12)),
        ("TLS 1.2, resumed", Way::Resumed(&TLS12)),
    ];
    let mut without = Vec::new();
    let mut measured = [const { [const { Vec::new() }; 2] }; 4];
    for _ in 0..rounds {
        without.push(come_and_go(&mut plain, Way::Plain, count)?);
        for ((_, way), measured) in ways.iter().zip(&mut measured) {
            for (server, measured) in servers.iter_mut().zip(measured) {
                measured.push(come_and_go(server, *way, count)?);
            }
        }
    }
    let name = format!("server CPU µs to connect, shake hands, upgrade and close ({count} times, median of rounds)");
    let mut table = Table::new(&name, &servers.each_ref().map(|server| server.kind.label()));
    let all = |measured: &[Vec<f64>; 2], figure: fn(f64) -> f64| -> Vec<f64> {
        measured.iter().map(|rounds| median(rounds.iter().copied().map(figure))).collect()
    };
    table.row("without TLS", &[median(without.into_iter()), f64::NAN], 0);
    for ((name, _), measured) in ways.iter().zip(&measured) {
        table.row(name, &all(measured, |us| us), 0);
        // Of the same round each: what disturbs a round disturbs both.
        let ratio = median(measured[0].iter().zip(&measured[1]).map(|(own, other)| other / own));
        table.row("  × tidewheel", &[1.0, ratio], 3);
        table.row("  newcomers a second of CPU", &all(measured, |us| 1e6 / us), 0);
    }
    table.print()
}

/// Server CPU in microseconds of each of `count` connections. Several come at a time, so that a server has always work.
fn come_and_go(server: &mut Server, way: Way, count: usize) -> io::Result<f64> {
    let clients = (0..AT_A_TIME).map(|_| Client::new(server, way)).collect::<io::Result<Vec<_>>>()?;
    thread::sleep(SETTLE);
    let before = server.spent()?.cpu;
    let all = &*server;
    thread::scope(|scope| {
        let visits = |client: Client| move || (0..count / AT_A_TIME).try_for_each(|_| client.visit(all));
        let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(visits(client))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a client does not panic"))
    })?;
    thread::sleep(SETTLE);
    let cpu = server.spent()?.cpu - before;
    Ok(cpu.as_secs_f64() * 1e6 / (count / AT_A_TIME * AT_A_TIME) as f64)
}

/// One that comes again and again.
struct Client {
    offer: Option<Arc<ClientConfig>>,
    expected: Option<HandshakeKind>,
}

impl Client {
    /// Who comes back has been there before.
    fn new(server: &mut Server, way: Way) -> io::Result<Self> {
        let offer = |server: &mut Server, version, resumption| match server.secure() {
            Some(secure) => secure.authority.offer(version, resumption).map(Some),
            None => Ok(None),
        };
        let mut client = Self { offer: None, expected: None };
        match way {
            Way::Plain => {}
            Way::Full(version) => {
                client.offer = offer(server, version, Resumption::disabled())?;
                client.expected = Some(HandshakeKind::Full);
            }
            Way::Resumed(version) => {
                client.offer = offer(server, version, Resumption::in_memory_sessions(4))?;
                client.visit(server)?;
                client.expected = Some(HandshakeKind::Resumed);
            }
        }
        Ok(client)
    }

    /// Connects, upgrades and closes.
    fn visit(&self, server: &Server) -> io::Result<()> {
        let tcp = server.connect()?;
        let mut socket = match &self.offer {
            None => tcp.into(),
            Some(offer) => Socket::secure(tcp, offer)?,
        };
        websocket::shake_hands(&mut socket, ECHO_PATH)?;
        let how = socket.tls.as_ref().and_then(|tls| tls.handshake_kind());
        if self.expected.is_some_and(|expected| how != Some(expected)) {
            return Err(io::Error::other(format!("{}: {how:?}", server.kind.label())));
        }
        socket.write_all(&CLOSE)?;
        socket.flush()?;
        let mut end = Vec::new();
        socket.read_to_end(&mut end)?;
        match end[..] {
            [0x88, 2, 0x03, 0xe8] => Ok(()),
            _ => Err(io::Error::other(format!("{} said at the end: {end:x?}", server.kind.label()))),
        }
    }
}

/// What a connection costs that does nothing.
fn idle_connections(connections: usize) -> io::Result<()> {
    let cases = [
        ("tidewheel", Kind::TidewheelAuth, None),
        ("tidewheel, TLS 1.3", Kind::TidewheelTlsAuth, Some(&TLS13)),
        ("tidewheel, TLS 1.2", Kind::TidewheelTlsAuth, Some(&TLS12)),
        ("tokio-rustls + tungstenite, TLS 1.3", Kind::TokioTls, Some(&TLS13)),
        ("tokio-rustls + tungstenite, TLS 1.2", Kind::TokioTls, Some(&TLS12)),
    ];
    let mut columns = Vec::new();
    for (_, kind, version) in cases {
        let mut server = Server::start(kind)?;
        if let Some(version) = version {
            offer(&mut server, version)?;
        }
        columns.push(idle::measure(server, connections)?);
    }
    let name =
        format!("bytes for each of {connections} idle connections; tidewheel's are authenticated and subscribed");
    idle::table(&name, &cases.map(|(label, ..)| label), &columns)?;

    let kernel = size_of::<KernelConnection<ServerConnectionData>>();
    let rows = [
        ("keys, what is on its way, where it is", SECURED_BYTES, SECURED_BYTES),
        ("its place in the table of connections", size_of::<usize>(), size_of::<usize>()),
        ("what rustls keeps to derive the next keys from, without what that points to", kernel, 0),
    ];
    let mut table = Table::new("what TLS adds, from the sizes of the structures", &["TLS 1.3", "TLS 1.2"]);
    for (name, tls13, tls12) in rows {
        table.row(name, &[tls13 as f64, tls12 as f64], 0);
    }
    table.print()
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
/// Newcomers at a time.
const AT_A_TIME: usize = 16;
/// Until a thread's account of its time is up to date, and the last has gone.
const SETTLE: Duration = Duration::from_millis(100);
/// A close frame: 1000, masked with zeros.
const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
