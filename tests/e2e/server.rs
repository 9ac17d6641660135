//! An engine in this process, on ports of its own.

use std::net::{SocketAddr, TcpStream};

use tidewheel::metrics::{CloseReason, Counter, ShardMetrics};
use tidewheel::server::Summary;
use tidewheel::{Config, Engine, EngineBuilder, EngineHandle};

use super::client::Client;
use super::raw::Raw;
use super::until;

/// An engine that ends with the test.
pub struct Server {
    engine: Option<Engine>,
    pub handle: EngineHandle,
    /// The first address, with TLS where there is no other.
    pub address: SocketAddr,
    /// The first address with TLS.
    pub tls_address: Option<SocketAddr>,
    /// The internal port.
    pub admin: SocketAddr,
}

impl Server {
    /// Starts an engine of two shards; `yaml` is the rest of its configuration. Nobody needs to authenticate unless it
    /// has a section `auth`.
    pub fn start(yaml: &str) -> Self {
        Self::build(2, yaml, |builder| builder)
    }

    /// Starts an engine with `shards` shards, and with routes.
    pub fn build(shards: usize, yaml: &str, add: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Self {
        Self::run(add(Engine::builder(config(shards, yaml))))
    }

    /// Starts an engine.
    pub fn run(builder: EngineBuilder) -> Self {
        let engine = builder.start().unwrap();
        let admin = engine.admin_address().expect("on unless switched off");
        let tls_address = engine.tls_addresses().first().copied();
        let address = engine.addresses().first().copied().or(tls_address).expect("somewhere");
        Self { handle: engine.handle(), address, tls_address, admin, engine: Some(engine) }
    }

    /// A client that is connected.
    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// A client that writes every byte itself, and has only a TCP connection so far.
    pub fn raw(&self) -> Raw {
        Raw::connect(self.address)
    }

    /// A client that writes every byte itself, upgraded.
    pub fn raw_open(&self) -> Raw {
        let mut raw = self.raw();
        raw.upgrade("/ws");
        raw
    }

    /// A counter over all shards.
    pub fn sum(&self, counter: impl Fn(&ShardMetrics) -> &Counter) -> u64 {
        self.handle.metrics().iter().map(|shard| counter(shard).get()).sum()
    }

    /// Connections that ended for this reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.sum(|shard| &shard.closed[reason as usize])
    }

    /// Connections that have a slot.
    pub fn active(&self) -> u64 {
        self.handle.metrics().iter().map(|shard| shard.active()).sum()
    }

    /// Connections opened so far, by shard.
    pub fn opened(&self) -> Vec<u64> {
        self.handle.metrics().iter().map(|shard| shard.opened.get()).collect()
    }

    /// Two clients on different shards: where publishes and receipts cross.
    pub fn connect_across(&self) -> (Client, Client) {
        let first = self.connect();
        let home = self.handle.metrics().iter().position(|shard| shard.active() > 0).expect("just connected");
        // The kernel spreads connections by a hash of the ports, so one of these is elsewhere.
        let mut here = Vec::new();
        loop {
            let before = self.opened();
            let other = self.connect();
            let after = self.opened();
            let shard = before.iter().zip(after).position(|(before, after)| *before < after).expect("just connected");
            if shard != home {
                return (first, other);
            }
            assert!(here.len() < 64, "the kernel gives one shard everything");
            here.push(other);
        }
    }

    /// Waits until nothing is left of any connection, and checks that the accounts add up.
    #[track_caller]
    pub fn rest(&self) {
        self.rest_after_failures(0);
    }

    /// As [`Server::rest`], where so many connections were to fail in the engine's own hands.
    #[track_caller]
    pub fn rest_after_failures(&self, failed: u64) {
        let gauges: [fn(&ShardMetrics) -> &Counter; 4] =
            [|shard| &shard.frames, |shard| &shard.topics, |shard| &shard.subscriptions, |shard| &shard.parked];
        let left = || (self.active(), gauges.map(|gauge| self.sum(gauge)));
        until(&format!("an engine at rest, {:?}", left()), || left() == (0, [0; 4]));
        assert_eq!(self.sum(|shard| &shard.authenticated), 0);
        let ended: u64 = CloseReason::ALL.iter().map(|&reason| self.closed(reason)).sum();
        assert_eq!(ended, self.sum(|shard| &shard.opened), "every connection ended for one reason");
        assert_eq!(self.closed(CloseReason::Internal), failed, "connections that failed in the engine's own hands");
    }

    /// Drains and waits for the end.
    pub fn stop(mut self) -> Summary {
        self.handle.drain();
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> Summary {
        self.engine.take().expect("waited for once").wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            self.handle.drain();
            let summary = engine.wait();
            if !std::thread::panicking() {
                assert_eq!(summary.broken_shards, 0, "{summary}");
            }
        }
    }
}

/// A configuration for this machine and moment: ports that the kernel chooses, no pings, since a test that is busy
/// elsewhere does not answer them, and a drain that does not hold tests up.
pub fn config(shards: usize, yaml: &str) -> Config {
    let mut text = format!("shards: {shards}\n");
    for (section, usual) in [
        ("listen:", "listen: 127.0.0.1:0\n"),
        ("admin:", "admin: {listen: 127.0.0.1:0}\n"),
        ("auth:", "auth: {required: false}\n"),
        ("limits:", "limits: {messages: null, bytes: null, connection_attempts: null}\n"),
        ("drain:", "drain: {deadline: 2s}\n"),
        ("websocket:", "websocket: {max_total_connections: 4096, ping_interval_seconds: 0}\n"),
    ] {
        if !yaml.lines().any(|line| line.starts_with(section)) {
            text.push_str(usual);
        }
    }
    Config::parse(&(text + yaml)).unwrap()
}

/// A connection of the test's own program that is no client of the engine.
pub fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}
