//! `tidewheel bench`: a load generator that verifies what it receives.
//! Law: the report goes to stdout, progress to stderr; a run that found something wrong ends without success.

use std::env;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use tidewheel::app::auth::{Algorithm, KeyMaterial, KeySettings};
use tidewheel::bench::echo::{self, Echo};
use tidewheel::bench::fanout::{self, Fanout, Life};
use tidewheel::bench::idle::{self, Idle};
use tidewheel::bench::newcomers::{self, Newcomers};
use tidewheel::bench::observe::Process;
use tidewheel::bench::{Credentials, Progress, Report, Setup, Tls};
use tidewheel::tls::trust;

use super::token::SECRET_VARIABLE;
use super::{Failure, output};

#[derive(Subcommand)]
pub(super) enum Bench {
    /// Messages that come back: any WebSocket server that returns them will do (`tidewheel serve --echo`).
    ///
    /// Without --rate each client sends the next message when one has come back. With it messages leave when they are due,
    /// latencies count from then, and all that were due are waited for (no coordinated omission).
    Echo {
        #[command(flatten)]
        common: Common,
        /// Messages of a client on their way at a time.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        in_flight: u32,
        /// Bytes of a message.
        #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = size)]
        size: usize,
        /// Messages of all clients a second.
        #[arg(long, value_name = "PER_SECOND", conflicts_with = "in_flight", value_parser = rate)]
        rate: Option<f64>,
        /// How long it is measured, after a second of warming up.
        #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
        time: Duration,
    },
    /// Messages to many: clients that publish, and clients that are subscribed to a topic each.
    ///
    /// Without --rate each publisher sends the next message when one has been answered. With it messages leave when they are
    /// due, latencies count from then, and all that were due are waited for (no coordinated omission).
    Fanout {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        publishing: Publishing,
    },
    /// A day in the life: messages to many, while some read slowly, some leave, some are gone without a word, and all come again.
    Mixed {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        publishing: Publishing,
        /// Subscribers that go in a second, every other one without a close frame, and come again.
        #[arg(long, value_name = "PER_SECOND", default_value_t = 10.0, value_parser = rate)]
        leavers: f64,
        /// Subscribers that stop reading in a second.
        #[arg(long, value_name = "PER_SECOND", default_value_t = 2.0, value_parser = rate)]
        slow: f64,
        /// How long those do not read.
        #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
        pause: Duration,
    },
    /// Clients that lie idle, are touched by a ping each and by one message for all, and leave.
    Idle {
        #[command(flatten)]
        common: Common,
        /// How long they lie idle.
        #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
        time: Duration,
        #[command(flatten)]
        topic: Topic,
    },
    /// Newcomers a second: connect, upgrade, subscribe, leave, again and again.
    Connect {
        #[command(flatten)]
        common: Common,
        /// How long it is measured, after a second of warming up.
        #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
        time: Duration,
        #[command(flatten)]
        topic: Topic,
    },
    /// All clients drop their connections at once and come again at once.
    Storm {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        topic: Topic,
    },
}

#[derive(Args)]
pub(super) struct Publishing {
    /// Topics, among which publishers and subscribers are divided evenly.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    topics: u32,
    /// Clients that publish; all others are subscribed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    publishers: u32,
    /// Publishes of a publisher on their way at a time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    in_flight: u32,
    /// Messages of all publishers a second.
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "in_flight", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of a message's data.
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = size)]
    size: usize,
    /// How long it is measured, after a second of warming up.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    time: Duration,
}

impl Publishing {
    fn with(self, common: &Common, life: Option<Life>) -> Result<Fanout, Failure> {
        let Self { topics, publishers, in_flight, rate, size, time } = self;
        let fanout = Fanout { topics, publishers, rate, in_flight, size, time, warm_up: WARM_UP, life };
        fanout.check(common.connections).map_err(|why| Failure::Usage(format!("-c, --publishers: {why}")))?;
        Ok(fanout)
    }
}

#[derive(Args)]
pub(super) struct Topic {
    /// Topic that each client subscribes to.
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Subscribe to nothing: for servers of another kind.
    #[arg(long)]
    plain: bool,
}

#[derive(Args)]
pub(super) struct Common {
    /// Where the server is, such as ws://127.0.0.1:8080/ws, or wss://; several take turns, for the ports there are to each.
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// Clients.
    #[arg(short, long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=50_000_000))]
    connections: u32,
    /// Threads, each with a ring and a table of as many descriptors as `nofile` allows; one a core, or more if they are too few.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: u32,
    /// Addresses to connect from, which take turns: an address or a network such as 127.1.0.0/24. Each has some 28,000 ports for
    /// each server. Without it the kernel chooses, and on loopback enough of 127.0.0.0/8 are taken.
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    from: Vec<String>,
    /// Handshakes that have begun and not ended, of all clients.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    handshakes: u32,
    /// Connections that are begun in a second, of all clients; as many as there can be.
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    connect_rate: Option<f64>,
    /// The server's secret: clients bring tokens for bench-0, bench-1 and so on. Also in TIDEWHEEL_AUTH_SECRET.
    #[arg(long, value_name = "SECRET", conflicts_with = "token")]
    key: Option<String>,
    /// The same token for all clients.
    #[arg(long)]
    token: Option<String>,
    /// Of wss://: the authority that has signed the server's certificate, as PEM; otherwise those that the machine trusts.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Of wss://: take any certificate.
    #[arg(long)]
    insecure: bool,
    /// The server's process on this machine: its CPU time and memory are reported.
    #[arg(long)]
    pid: Option<u32>,
    /// How long the run may stand still before it is given up.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    patience: Duration,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), Failure> {
        let watch = Watch::default();
        let watch = |progress: Progress| watch.show(progress);
        let topic = |Topic { topic, plain }: Topic| (!plain).then_some(topic);
        let (report, json) = match self {
            Self::Echo { common, in_flight, size, rate, time } => {
                let echo = Echo { in_flight, size, rate, time, warm_up: WARM_UP };
                (echo::run(common.setup()?, echo, &watch), common.json)
            }
            Self::Fanout { common, publishing } => {
                (fanout::run(common.setup()?, publishing.with(&common, None)?, &watch), common.json)
            }
            Self::Mixed { common, publishing, leavers, slow, pause } => {
                let life = Life { leavers_per_second: leavers, slow_per_second: slow, pause };
                (fanout::run(common.setup()?, publishing.with(&common, Some(life))?, &watch), common.json)
            }
            Self::Idle { common, time, topic: of } => {
                (idle::run(common.setup()?, Idle { time, topic: topic(of) }, &watch), common.json)
            }
            Self::Connect { common, time, topic: of } => {
                (newcomers::run(common.setup()?, Newcomers::Connect { time, topic: topic(of) }, &watch), common.json)
            }
            Self::Storm { common, topic: of } => {
                (newcomers::run(common.setup()?, Newcomers::Storm { topic: topic(of) }, &watch), common.json)
            }
        };
        let report = report.map_err(|error| Failure::Run(error.to_string()))?;
        output::print(&if json { report.json() + "\n" } else { report.to_string() })?;
        verdict(&report)
    }
}

fn verdict(report: &Report) -> Result<(), Failure> {
    match report.findings.len() {
        0 => Ok(()),
        count => Err(Failure::Run(format!("{}: {count} finding(s), see the report", report.scenario))),
    }
}

impl Common {
    fn setup(&self) -> Result<Setup, Failure> {
        let mut targets = Vec::new();
        let (mut host, mut path, mut name) = (String::new(), String::new(), None);
        for (at, url) in self.urls.iter().enumerate() {
            let target = target(url).map_err(|why| Failure::Usage(format!("{url}: {why}")))?;
            if at == 0 {
                (host, path, name) = (target.host, target.path, target.tls_name);
            } else if path != target.path {
                return Err(Failure::Usage(format!("{url}: all servers need the same path")));
            } else if name.is_some() != target.tls_name.is_some() {
                return Err(Failure::Usage(format!("{url}: all servers speak TLS, or none")));
            }
            targets.push(target.address);
        }
        let sources = self.sources(&targets)?;
        let process = self.pid.map(Process);
        process.map_or(Ok(()), Process::check).map_err(|error| Failure::Usage(format!("--pid: {error}")))?;
        let credentials = self.credentials()?;
        credentials.check().map_err(|error| Failure::Usage(format!("--key: {error}")))?;
        Ok(Setup {
            targets,
            host,
            path,
            tls: name.map(|name| self.tls(&name)).transpose()?,
            sources,
            connections: self.connections,
            threads: self.threads,
            handshakes_at_once: self.handshakes,
            dials_per_second: self.connect_rate,
            credentials,
            process,
            patience: self.patience,
        })
    }

    fn sources(&self, targets: &[SocketAddr]) -> Result<Vec<IpAddr>, Failure> {
        let mut sources = Vec::new();
        for text in &self.from {
            let more = network(text).ok_or_else(|| {
                Failure::Usage(format!(
                    "--from {text}: an address, or an IPv4 network of at most a /16, such as 127.1.0.0/24"
                ))
            })?;
            sources.extend(more);
        }
        let is_loopback = targets.iter().all(|target| target.is_ipv4() && target.ip().is_loopback());
        let needed = self.connections.div_ceil(CONNECTIONS_AN_ADDRESS * targets.len() as u32);
        if sources.is_empty() && is_loopback && needed > 1 {
            sources
                .extend((0..needed).map(|number| IpAddr::V4(Ipv4Addr::from_bits(LOOPBACK_SOURCES.to_bits() + number))));
        }
        Ok(sources)
    }

    fn tls(&self, name: &str) -> Result<Tls, Failure> {
        let client = match &self.ca {
            _ if self.insecure => trust::client_of_anybody(),
            Some(file) => {
                let pem =
                    fs::read(file).map_err(|error| Failure::Usage(format!("--ca {}: {error}", file.display())))?;
                let roots =
                    trust::of_pem(&pem).map_err(|why| Failure::Usage(format!("--ca {} {why}", file.display())))?;
                trust::client(roots)
            }
            None => {
                let nobody = || Failure::Usage("this machine trusts no certificates: --ca FILE or --insecure".into());
                trust::client(trust::of_machine().ok_or_else(nobody)?)
            }
        };
        client.and_then(|client| Tls::new(client, name).map_err(|error| error.to_string())).map_err(Failure::Usage)
    }

    fn credentials(&self) -> Result<Credentials, Failure> {
        if let Some(token) = &self.token {
            return Ok(Credentials::Token(token.clone()));
        }
        let secret = self.key.clone().or_else(|| env::var(SECRET_VARIABLE).ok()).filter(|secret| !secret.is_empty());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(secret.map_or(Credentials::None, |secret| Credentials::Key {
            name: "bench".into(),
            key: KeySettings { id: None, algorithm: Algorithm::HS256, key: KeyMaterial::Secret(secret.into_bytes()) },
            expires_at: now + TOKEN_TTL_S,
        }))
    }
}

struct Target {
    address: SocketAddr,
    host: String,
    path: String,
    /// What its certificate must be for, if it speaks TLS.
    tls_name: Option<String>,
}

fn target(url: &str) -> Result<Target, String> {
    let uri: http::Uri = url.parse().map_err(|error| format!("{error}; write ws://HOST:PORT/PATH, or wss://"))?;
    let (port, is_tls) = match uri.scheme_str() {
        Some("ws") => (uri.port_u16().unwrap_or(80), false),
        Some("wss") => (uri.port_u16().unwrap_or(443), true),
        _ => return Err("write ws://HOST:PORT/PATH, or wss://".into()),
    };
    let name = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let found = (name, port).to_socket_addrs().and_then(|mut found| {
        found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    });
    let host = uri.authority().map_or_else(String::new, |authority| authority.as_str().to_owned());
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let tls_name = is_tls.then(|| name.to_owned());
    Ok(Target { address: found.map_err(|error| error.to_string())?, host, path, tls_name })
}

/// The addresses of a network, without the first and the last; or one address.
fn network(text: &str) -> Option<Vec<IpAddr>> {
    let Some((address, prefix)) = text.split_once('/') else { return Some(vec![text.parse().ok()?]) };
    let (address, prefix): (Ipv4Addr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
    if !(16..=30).contains(&prefix) {
        return None;
    }
    let first = address.to_bits() & u32::MAX << (32 - prefix);
    Some((1..(1 << (32 - prefix)) - 1).map(|host| IpAddr::V4(Ipv4Addr::from_bits(first + host))).collect())
}

/// A bar for what a run is at; nothing where stderr is no terminal.
#[derive(Default)]
struct Watch(Mutex<Option<(&'static str, ProgressBar)>>);

impl Watch {
    fn show(&self, progress: Progress) {
        let Ok(mut shown) = self.0.lock() else { return };
        let is_other = shown.as_ref().is_none_or(|(what, _)| *what != progress.what);
        if is_other {
            if let Some((_, bar)) = shown.take() {
                bar.finish_and_clear();
            }
            let style =
                ProgressStyle::with_template("{msg:>20} {wide_bar} {human_pos}/{human_len} {elapsed} (eta {eta})");
            let bar = ProgressBar::new(progress.total).with_message(progress.what);
            *shown = Some((progress.what, style.map_or(bar.clone(), |style| bar.with_style(style))));
        }
        if let Some((_, bar)) = &*shown {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            if progress.done >= progress.total {
                bar.finish_and_clear();
            }
        }
    }
}

fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| (16..=16 << 20).contains(size));
    size.ok_or_else(|| "16 to 16777216 bytes".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1e9).contains(rate));
    rate.ok_or_else(|| "a number a second, more than 0".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit_ms) = [("ms", 1.0), ("s", 1e3), ("m", 6e4), ("h", 36e5)]
        .into_iter()
        .find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, ms)))
        .ok_or("a number with a unit is needed: 500ms, 10s, 5m, 1h")?;
    let ms = number.parse::<f64>().ok().map(|number| number * unit_ms).filter(|ms| (1.0..=8.64e7).contains(ms));
    ms.map(|ms| Duration::from_secs_f64(ms / 1e3)).ok_or_else(|| "at least a millisecond and at most a day".into())
}

const WARM_UP: Duration = Duration::from_secs(1);
/// Of the ports that an address has for each server, so that those in TIME_WAIT leave enough.
const CONNECTIONS_AN_ADDRESS: u32 = 8192;
const LOOPBACK_SOURCES: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
const TOKEN_TTL_S: u64 = 24 * 60 * 60;
