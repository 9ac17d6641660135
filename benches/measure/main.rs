//! The figures of the README, each by one command; see `--help`.
//!
//! ```text
//! cargo run --release --example measure -- echo        server CPU of an echoed message, beside a bare TCP echo
//! cargo run --release --example measure -- fanout      server CPU of a delivery, beside bare SENDs
//! cargo run --release --example measure -- deflate     the same of 1 KB of JSON, compressed beside plain
//! cargo run --release --example measure -- takeover    server memory of a connection whose messages refer to each other
//! cargo run --release --example measure -- idle        server memory of an idle connection
//! cargo run --release --example measure -- slow        what one subscriber that stops reading costs the others
//! cargo run --release --example measure -- attack      what a thousand attackers cost a client that behaves
//! cargo run --release --example measure -- tls         all of these with TLS, beside tokio-rustls with tungstenite
//! ```
//! Servers run on the first core this process may use and the load generator on the last, over loopback.

mod attack;
mod attackers;
mod child;
mod deflate;
mod echo;
mod fanout;
mod idle;
mod json;
mod lanes;
mod load;
mod neighbours;
mod secure;
mod server;
mod slow;
mod table;
mod takeover;
mod tls;
mod tokio_tls;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tidewheel::io::affinity;

#[derive(Parser)]
#[command(about = "Measures the engine beside the least that the kernel allows")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Server CPU of an echoed message
    Echo {
        /// Bytes of a message
        #[arg(long, default_value_t = 64)]
        size: usize,
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        /// Seconds of each server in each round
        #[arg(long, default_value_t = 0.7)]
        seconds: f64,
        /// Connections, or connections x messages in flight
        #[arg(long, value_delimiter = ',', default_value = "64,1000,10000,64x16", value_parser = case)]
        cases: Vec<(usize, u32)>,
        /// The first is what the others are compared with
        #[arg(long, value_delimiter = ',', default_value = "bare-echo,tidewheel,tidewheel-poll,tokio-uring")]
        servers: Vec<server::Kind>,
    },
    /// Server CPU of one delivery of a message to many subscribers
    Fanout {
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        #[arg(long, default_value_t = 0.7)]
        seconds: f64,
        #[arg(long, default_value_t = 5000)]
        subscribers: usize,
        /// Publishes on their way at a time
        #[arg(long, value_delimiter = ',', default_value = "1,8")]
        in_flight: Vec<u64>,
        /// The first is what the others are compared with
        #[arg(long, value_delimiter = ',', default_value = "bare-fanout,tidewheel,tidewheel-poll")]
        servers: Vec<server::Kind>,
    },
    /// Server CPU of one delivery of 1 KB of JSON to many subscribers, compressed and plain
    Deflate {
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        #[arg(long, default_value_t = 0.7)]
        seconds: f64,
        #[arg(long, default_value_t = 5000)]
        subscribers: usize,
        /// Publishes on their way at a time
        #[arg(long, value_delimiter = ',', default_value = "1,8")]
        in_flight: Vec<u64>,
    },
    /// Server memory of a connection whose compressed messages refer to each other
    Takeover {
        #[arg(long, default_value_t = 1000)]
        connections: usize,
    },
    /// Server memory of an idle, authenticated connection with one subscription
    Idle {
        #[arg(long, default_value_t = 15_000)]
        connections: usize,
    },
    /// One subscriber of many stops reading, under each policy
    Slow {
        #[arg(long, default_value_t = 1000)]
        subscribers: usize,
        #[arg(long, default_value_t = 10_000)]
        messages: u64,
    },
    /// A thousand attackers at full speed, beside clients that behave, for each attack
    Attack {
        #[arg(long, default_value_t = 1000)]
        connections: usize,
        /// Seconds that an attack may last
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// With `limits.connections_per_second` at a thousand, which is not limited by default
        #[arg(long)]
        paced: bool,
        /// All of them, unless some are named
        #[arg(value_delimiter = ',')]
        attacks: Vec<attackers::Attack>,
    },
    /// Messages, deliveries, newcomers and idle connections with TLS
    Tls(tls::Options),
    /// Runs one of the servers (the other commands do)
    #[command(hide = true)]
    Serve { kind: server::Kind, core: usize },
    /// Attacks a server (`attack` does)
    #[command(hide = true)]
    Attackers { attack: attackers::Attack, address: SocketAddr, connections: usize, seconds: u64 },
    /// Behaves (`attack` does)
    #[command(hide = true)]
    Neighbours { address: SocketAddr },
}

fn main() -> io::Result<()> {
    let command = Arguments::parse().command;
    if let Command::Serve { kind, core } = command {
        return server::serve(kind, core);
    }
    let cores = affinity::allowed_cores()?;
    child::CORE.get_or_init(|| cores[0]);
    affinity::pin(cores[cores.len() - 1])?;
    match command {
        Command::Echo { size, rounds, seconds, cases, servers } => {
            echo::compare(rounds, seconds, &cases, size, &servers)
        }
        Command::Fanout { rounds, seconds, subscribers, in_flight, servers } => {
            fanout::compare(rounds, seconds, subscribers, &in_flight, &servers)
        }
        Command::Deflate { rounds, seconds, subscribers, in_flight } => {
            deflate::compare(rounds, seconds, subscribers, &in_flight)
        }
        Command::Takeover { connections } => takeover::report(connections),
        Command::Idle { connections } => idle::report(connections),
        Command::Slow { subscribers, messages } => slow::compare(subscribers, messages),
        Command::Attack { connections, seconds, paced, attacks } => {
            let kind = if paced { server::Kind::TidewheelPaced } else { server::Kind::TidewheelDefaults };
            attack::compare(&attacks, kind, connections, Duration::from_secs(seconds))
        }
        Command::Attackers { attack, address, connections, seconds } => {
            attackers::run(attack, address, connections, Duration::from_secs(seconds))
        }
        Command::Neighbours { address } => neighbours::run(address),
        Command::Tls(options) => tls::compare(options),
        Command::Serve { .. } => Ok(()),
    }
}

/// `1000`, or `64x16` for 16 messages in flight on each connection.
fn case(text: &str) -> Result<(usize, u32), String> {
    let (connections, in_flight) = text.split_once('x').unwrap_or((text, "1"));
    match (connections.parse(), in_flight.parse()) {
        (Ok(connections), Ok(in_flight @ 1..)) => Ok((connections, in_flight)),
        _ => Err("a number of connections, or connections x messages in flight".into()),
    }
}
