//! The engine: pins shards to cores, wires the bus and the control plane, and ends in order.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use tidewheel::{Config, Context, Engine, OutgoingMessage};
//!
//! #[derive(Deserialize)]
//! struct Add { a: i64, b: i64 }
//! #[derive(Serialize)]
//! struct Sum { sum: i64 }
//! #[derive(Deserialize)]
//! struct Remind { after_ms: u64, text: String }
//!
//! let config = Config::parse("auth: {secret: a-shared-secret-of-32-bytes-or-more}")?;
//! let engine = Engine::builder(config)
//!     .route("add", async |_: Context, add: Add| Ok(("sum", Sum { sum: add.a + add.b })))
//!     .route("remind", async |context: Context, remind: Remind| {
//!         tokio::time::sleep(std::time::Duration::from_millis(remind.after_ms)).await;
//!         context.send(OutgoingMessage::new("reminder", &remind.text)?);
//!         Ok(())
//!     })
//!     .start()?;
//! engine.wait();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use ahash::RandomState;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::app::auth::{AuthSettings, AuthSetupError, Authenticator, KeyMaterial, KeySettings};
use crate::app::context::{Answer, Refused, not_json};
use crate::app::{Clients, ConnectionAttempts, Context, HandlerError, IntoReply, MessageHandler, RouteError, Router};
use crate::config::{Algorithm, Auto, Config, Problems, ReceiveWait};
use crate::control::{self, ControlPlane, ControlSettings, PageSettings, Phase, Stage};
use crate::id::ShardId;
use crate::io::bell::Bell;
use crate::io::probe::{self, Features, Unavailable};
use crate::io::uring::{ReceiveMode, Uring, UringConfig};
use crate::io::{affinity, clock, listener};
use crate::metrics::{CloseReason, Counter, ShardMetrics};
use crate::pubsub::{Bus, Delivery, Registry};
use crate::shard::settings::Settings;
use crate::shard::{Inbox, Order, Shard, Shared, Turn};

/// Why an engine did not start. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] Problems),
    /// A route could not be added.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The kernel has no io_uring for this process.
    #[error(transparent)]
    Kernel(#[from] Unavailable),
    /// The key for tokens is missing or cannot be used.
    #[error("auth: {0}")]
    Auth(String),
    /// A port, a thread or memory could not be had.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<AuthSetupError> for StartError {
    fn from(error: AuthSetupError) -> Self {
        Self::Auth(error.to_string())
    }
}

/// An engine to be.
#[derive(Debug)]
pub struct EngineBuilder {
    config: Config,
    router: Router,
    wrong: Option<RouteError>,
    signals: bool,
    admin: bool,
}

impl EngineBuilder {
    /// Adds an async function as the handler of messages of type `kind`. It runs on the connection's own shard; see
    /// [`MessageHandler`]. A name that is taken is reported by [`EngineBuilder::start`].
    #[must_use]
    pub fn route<F, M, R>(mut self, kind: &str, function: F) -> Self
    where
        F: AsyncFn(Context, M) -> Result<R, HandlerError> + Send + Sync + 'static,
        M: DeserializeOwned + 'static,
        R: IntoReply + 'static,
    {
        if let Err(error) = self.router.add_fn(kind, function) {
            self.wrong.get_or_insert(error);
        }
        self
    }

    /// Adds a handler for messages of type `kind`.
    #[must_use]
    pub fn handler<H: MessageHandler>(mut self, kind: &str, handler: H) -> Self {
        if let Err(error) = self.router.add(kind, handler) {
            self.wrong.get_or_insert(error);
        }
        self
    }

    /// Whether SIGTERM and SIGINT of this process drain the engine. Off unless asked for.
    #[must_use]
    pub fn signals(mut self, signals: bool) -> Self {
        self.signals = signals;
        self
    }

    /// Whether the internal port with page, health and metrics is served. On unless switched off.
    #[must_use]
    pub fn admin(mut self, admin: bool) -> Self {
        self.admin = admin;
        self
    }

    /// Starts the engine: it accepts connections when this returns.
    ///
    /// # Errors
    /// With cause and remedy; nothing is left running.
    pub fn start(self) -> Result<Engine, StartError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong.into());
        }
        self.config.validate()?;
        let features = probe::check()?;
        let authenticator = authenticator(&self.config)?;
        let cores = affinity::allowed_cores()?;
        let shards = match self.config.shards {
            Auto::Auto => cores.len().min(usize::from(SHARDS_MAX)),
            Auto::Value(shards) => usize::from(shards),
        };
        let capacity = Capacity::of_machine(&self.config, shards)?;

        let (listeners, addresses) = listen(&self.config.listen, shards)?;
        let admin = match self.admin {
            true => Some(bind_admin(self.config.admin.listen)?),
            false => None,
        };

        let metrics: Vec<_> = (0..shards).map(|_| Arc::<ShardMetrics>::default()).collect();
        let inner = Arc::new(Inner {
            inboxes: (0..shards).map(|_| Arc::default()).collect(),
            phase: Arc::default(),
            metrics: metrics.clone(),
            deadline_ms: self.config.drain.deadline.as_millis() as u64,
            hasher: RandomState::new(),
        });
        let on_terminate = {
            let inner = inner.clone();
            Box::new(move || inner.drain())
        };
        let control = control::start(ControlSettings {
            admin,
            metrics,
            phase: inner.phase.clone(),
            page: PageSettings { websocket: addresses[0], path: self.config.path.clone() },
            signals: self.signals,
            on_terminate,
        })?;

        let shared = Arc::new(Shared {
            router: self.router,
            authenticator,
            registry: Arc::new(Registry::new(shards)),
            bus: Bus::new(shards),
            shards,
            clients: Clients::new(
                self.config.websocket.max_connections_per_client,
                self.config.websocket.client_limit_policy,
            ),
            attempts: self.config.limits.connection_attempts.as_ref().map(ConnectionAttempts::new),
            connections: Default::default(),
        });
        let bells: Arc<[Arc<Bell>]> =
            (0..shards).map(|_| Bell::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?.into();
        let plans = listeners.into_iter().enumerate().map(|(index, listeners)| Plan {
            shard: ShardId(index as u16),
            core: cores[index % cores.len()],
            ring: UringConfig {
                table: capacity.table,
                buffers: self.config.io.receive_buffers as u16,
                buffer_size: self.config.io.receive_buffer_size as u32,
                mode: match self.config.io.wait {
                    ReceiveWait::Recv => ReceiveMode::Recv,
                    ReceiveWait::Poll => ReceiveMode::Poll,
                },
                listeners,
                bells: bells.clone(),
                shard: ShardId(index as u16),
            },
            settings: Settings::new(&self.config, capacity.connections, capacity.table),
            shared: shared.clone(),
            metrics: inner.metrics[index].clone(),
            inbox: inner.inboxes[index].clone(),
            runtime: control.tokio_handle().clone(),
            engine: inner.clone(),
        });
        let (threads, started) = launch(plans);
        let engine = Engine { inner, threads, control: Some(control), addresses, capacity, features };
        if let Err(error) = started {
            engine.inner.drain();
            engine.wait();
            return Err(error.into());
        }
        engine.inner.phase.advance(Stage::Ready);
        Ok(engine)
    }
}

/// A running engine. Dropping it leaves it running for as long as the process; [`Engine::wait`] waits for its end.
#[derive(Debug)]
#[must_use = "`wait` for its end, or keep it and `drain` it by its handle"]
pub struct Engine {
    inner: Arc<Inner>,
    threads: Vec<ShardThread>,
    control: Option<ControlPlane>,
    addresses: Vec<SocketAddr>,
    capacity: Capacity,
    features: Features,
}

impl Engine {
    /// Checks everything of a configuration that can be checked without serving: values, and the key for tokens.
    ///
    /// # Errors
    /// What [`EngineBuilder::start`] would say.
    pub fn check(config: &Config) -> Result<(), StartError> {
        config.validate()?;
        authenticator(config)?;
        Ok(())
    }

    /// Begins an engine with this configuration.
    pub fn builder(config: Config) -> EngineBuilder {
        EngineBuilder { config, router: Router::default(), wrong: None, signals: false, admin: true }
    }

    /// Where clients connect.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where the internal port listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.control.as_ref()?.admin_address()
    }

    /// What the machine allows.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// What the kernel offers.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.inner.inboxes.len()
    }

    /// A handle for other threads.
    pub fn handle(&self) -> EngineHandle {
        EngineHandle { inner: self.inner.clone() }
    }

    /// Waits until the engine has drained, which [`EngineHandle::drain`] or a signal begins.
    pub fn wait(mut self) -> Summary {
        let mut broken = 0;
        for thread in std::mem::take(&mut self.threads) {
            // The shard's thread has said why.
            broken += usize::from(!matches!(thread.join(), Ok(Ok(()))));
        }
        self.inner.phase.advance(Stage::Stopped);
        // Shards have left the runtime, so it may go.
        drop(self.control.take());
        self.inner.summary(broken)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The shards go on, and their handlers need the control plane's timers.
        std::mem::forget(self.control.take());
    }
}

/// Publishes, broadcasts and drains from any thread.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

impl EngineHandle {
    /// Publishes to a topic and gives the receipt. Messages of one thread to one topic keep their order.
    ///
    /// # Errors
    /// `invalid_message` for a bad topic name or data that is not JSON, `limit_exceeded` if the engine is busy.
    pub fn publish<T: Serialize>(
        &self,
        topic: &str,
        data: &T,
    ) -> impl Future<Output = Result<Delivery, Refused>> + Send + use<T> {
        let data = serde_json::to_vec(data).map_err(not_json);
        // One topic always goes through the same shard, so that its messages keep their order.
        let shard = self.inner.hasher.hash_one(topic) as usize % self.inner.inboxes.len();
        let topic: Box<str> = topic.into();
        self.order(shard, data.map(|data| move |answer| Order::Publish { topic, data, answer }))
    }

    /// Sends to every connection, subscribed or not.
    ///
    /// # Errors
    /// `invalid_message` if the data is not JSON, `limit_exceeded` if the engine is busy.
    pub fn broadcast<T: Serialize>(&self, data: &T) -> impl Future<Output = Result<Delivery, Refused>> + Send + use<T> {
        let data = serde_json::to_vec(data).map_err(not_json);
        self.order(0, data.map(|data| move |answer| Order::Broadcast { data, answer }))
    }

    /// Stops accepting, tells everyone, flushes what is queued, and ends within `drain.deadline`. Returns at once.
    pub fn drain(&self) {
        self.inner.drain();
    }

    /// The counters of each shard.
    pub fn metrics(&self) -> &[Arc<ShardMetrics>] {
        &self.inner.metrics
    }

    fn order<F: FnOnce(Answer<Delivery>) -> Order>(
        &self,
        shard: usize,
        order: Result<F, Refused>,
    ) -> impl Future<Output = Result<Delivery, Refused>> + Send + use<F> {
        let placed = order.and_then(|order| {
            let (answer, answered) = oneshot::channel();
            self.inner.inboxes[shard].push(order(answer))?;
            Ok(answered)
        });
        async move { placed?.await.unwrap_or_else(|_| Err(Refused::gone())) }
    }
}

/// Ends when its shard has drained, or with the error that broke its ring.
type ShardThread = JoinHandle<io::Result<()>>;

#[derive(Debug)]
struct Inner {
    inboxes: Box<[Arc<Inbox>]>,
    phase: Arc<Phase>,
    metrics: Vec<Arc<ShardMetrics>>,
    deadline_ms: u64,
    hasher: RandomState,
}

impl Inner {
    fn drain(&self) {
        self.drain_within(self.deadline_ms);
    }

    fn drain_within(&self, deadline_ms: u64) {
        self.phase.advance(Stage::Draining);
        for inbox in &self.inboxes {
            inbox.drain(deadline_ms);
        }
    }

    fn summary(&self, broken: usize) -> Summary {
        let sum = |count: &dyn Fn(&ShardMetrics) -> &Counter| self.metrics.iter().map(|m| count(m).get()).sum();
        Summary {
            connections: sum(&|m| &m.opened),
            drained: sum(&|m| &m.closed[CloseReason::Drain as usize]),
            cut: sum(&|m| &m.cut),
            messages_in: sum(&|m| &m.messages_in),
            messages_out: sum(&|m| &m.messages_out),
            broken_shards: broken,
        }
    }
}

/// What an engine has done, when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the Display says it in words")]
pub struct Summary {
    pub connections: u64,
    pub drained: u64,
    pub cut: u64,
    pub messages_in: u64,
    pub messages_out: u64,
    pub broken_shards: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, drained, cut, messages_in, messages_out, broken_shards } = self;
        write!(
            f,
            "served {connections} connections, {messages_in} messages in, {messages_out} out; {drained} closed by the \
             drain, {cut} of them cut"
        )?;
        if *broken_shards > 0 {
            write!(f, "; {broken_shards} shards broke")?;
        }
        Ok(())
    }
}

/// How many connections fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Connections of the whole engine.
    pub connections: u32,
    /// Places in each shard's descriptor table.
    pub table: u32,
    /// Whether `connections` was computed from the machine.
    pub computed: bool,
}

impl Capacity {
    /// What this machine's descriptors and memory allow, or the configured number if that is less.
    fn of_machine(config: &Config, shards: usize) -> io::Result<Self> {
        let descriptors = probe::raise_descriptor_limit()?.min(TABLE_MAX);
        // Direct descriptors: the limit holds for each ring's table, not for all together.
        if descriptors <= TABLE_SPARE {
            return Err(io::Error::other(format!(
                "{descriptors} descriptors are too few to serve anyone; raise `nofile` (ulimit -Hn, LimitNOFILE=) to \
                 {} or more",
                2 * TABLE_SPARE
            )));
        }
        let by_descriptors = (descriptors - TABLE_SPARE).saturating_mul(shards as u64);
        let (connections, computed) = match config.websocket.max_total_connections {
            Auto::Value(connections) => (u64::from(connections), false),
            Auto::Auto => (by_descriptors.min(available_memory_bytes() * 4 / 5 / CONNECTION_BYTES), true),
        };
        if connections > by_descriptors {
            return Err(io::Error::other(format!(
                "websocket.max_total_connections: {connections} need more descriptors than {shards} shards of \
                 {descriptors} have; raise `nofile` (ulimit -Hn, LimitNOFILE=) or the number of shards"
            )));
        }
        // Any shard may get more than its share: the kernel spreads connections by hash.
        let table = (connections + TABLE_SPARE).min(descriptors) as u32;
        Ok(Self { connections: connections as u32, table, computed })
    }
}

/// What one shard's thread is given.
struct Plan {
    shard: ShardId,
    core: usize,
    ring: UringConfig,
    settings: Settings,
    shared: Arc<Shared>,
    metrics: Arc<ShardMetrics>,
    inbox: Arc<Inbox>,
    runtime: tokio::runtime::Handle,
    engine: Arc<Inner>,
}

impl Plan {
    /// The shard's whole life. If it breaks, the engine ends: what it owes the others (counts, connections) never comes.
    fn run_guarded(self, started: mpsc::Sender<io::Result<()>>) -> io::Result<()> {
        let (shard, engine) = (self.shard, self.engine.clone());
        let outcome = catch_unwind(AssertUnwindSafe(move || self.run(started)));
        let outcome = outcome.unwrap_or_else(|_| Err(io::Error::other("the shard panicked")));
        if let Err(error) = &outcome {
            tracing::error!(shard = shard.0, %error, "a shard broke; the engine ends");
            engine.drain_within(engine.deadline_ms.min(BROKEN_DEADLINE_MS));
        }
        outcome
    }

    fn run(self, started: mpsc::Sender<io::Result<()>>) -> io::Result<()> {
        if let Err(error) = affinity::pin(self.core) {
            tracing::warn!(shard = self.shard.0, core = self.core, %error, "the shard's thread is not pinned");
        }
        // So that handlers can use tokio's timers and clients.
        let _runtime = self.runtime.enter();
        let io = match Uring::new(self.ring) {
            Ok(io) => io,
            Err(error) => {
                let _ = started.send(Err(error)); // the engine has given up already
                return Ok(());
            }
        };
        let mut shard = Shard::new(self.shard, io, self.settings, self.shared, self.metrics, self.inbox, clock::now());
        shard.open();
        let _ = started.send(Ok(())); // the engine has given up already
        drop(started); // so that whoever waits for the others learns of one that died
        while shard.turn()? == Turn::Again {}
        Ok(())
    }
}

/// Starts the shards' threads and waits until each accepts, or the first that could not start.
fn launch(plans: impl Iterator<Item = Plan>) -> (Vec<ShardThread>, io::Result<()>) {
    let (started, wait_started) = mpsc::channel();
    let mut threads = Vec::new();
    for plan in plans {
        let started = started.clone();
        let name = format!("shard-{}", plan.shard.0);
        match thread::Builder::new().name(name).spawn(move || plan.run_guarded(started)) {
            Ok(thread) => threads.push(thread),
            Err(error) => return (threads, Err(error)),
        }
    }
    drop(started);
    let mut outcomes = threads
        .iter()
        .map(|_| wait_started.recv().unwrap_or_else(|_| Err(io::Error::other("a shard ended while starting"))));
    let outcome = outcomes.find(Result::is_err).unwrap_or(Ok(()));
    (threads, outcome)
}

/// Listens on a port that is free or about to be: the kernel takes the rings of a killed process down, and their accepts
/// and listening sockets with them, some time after the process has ended.
fn listen_soon(address: SocketAddr, shards: usize) -> io::Result<Vec<TcpListener>> {
    for _ in 0..PORT_RETRIES {
        match listener::listen(address, shards) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => thread::sleep(PORT_RETRY_PAUSE),
            outcome => return outcome,
        }
    }
    listener::listen(address, shards)
}

/// One listening socket for each shard on each address: `[shard][address]`, and what the addresses are.
fn listen(addresses: &[SocketAddr], shards: usize) -> io::Result<(Vec<Vec<TcpListener>>, Vec<SocketAddr>)> {
    let mut by_shard: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    let mut bound = Vec::new();
    for &address in addresses {
        let each = listen_soon(address, shards)?;
        bound.push(each[0].local_addr()?);
        by_shard.iter_mut().zip(each).for_each(|(own, listener)| own.push(listener));
    }
    Ok((by_shard, bound))
}

fn authenticator(config: &Config) -> Result<Option<Authenticator>, StartError> {
    let auth = &config.auth;
    let key = match (&auth.secret, &auth.public_key_file) {
        (Some(secret), _) => KeySettings {
            id: None,
            algorithm: auth.algorithm.unwrap_or(Algorithm::HS256),
            key: KeyMaterial::Secret(secret.expose().as_bytes().to_vec()),
        },
        (None, Some(file)) => KeySettings {
            id: None,
            algorithm: auth.algorithm.unwrap_or(Algorithm::RS256),
            key: KeyMaterial::Pem(std::fs::read(file).map_err(|error| {
                StartError::Auth(format!("public_key_file {} cannot be read: {error}", file.display()))
            })?),
        },
        (None, None) if auth.required => {
            let why = "no key to check tokens with; set auth.secret (32 bytes or more) or auth.public_key_file, or \
                       auth.required: false to let everyone in";
            return Err(StartError::Auth(why.into()));
        }
        (None, None) => return Ok(None),
    };
    let settings = AuthSettings {
        keys: vec![key],
        issuer: auth.issuer.clone(),
        audience: auth.audience.clone(),
        leeway: auth.leeway,
    };
    Ok(Some(Authenticator::new(&settings)?))
}

fn bind_admin(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("admin.listen: cannot listen on {address}: {error}; another process may have this port"),
        )
    })
}

/// Memory that can still be had, from /proc/meminfo; a gigabyte if that cannot be read.
fn available_memory_bytes() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(1 << 30, |kib| kib * 1024)
}

/// User memory of an idle connection with a token and one subscription, in bytes: the connection and its slot, timer,
/// driver record, identity (with what the allocator adds) and place in the topic's list. `measure idle` finds it.
pub const IDLE_CONNECTION_BYTES: usize = crate::conn::CONN_BYTES + 8 + 12 + 12 + 64 + 7;
const _: () = assert!(IDLE_CONNECTION_BYTES <= 256);

const SHARDS_MAX: u16 = 255;
/// How long an engine with a broken shard takes to say goodbye.
const BROKEN_DEADLINE_MS: u64 = 2_000;
/// Largest descriptor table the kernel makes.
const TABLE_MAX: u64 = 1 << 20;
/// Table places beyond the connections: those that are closing, and those that are told that the server is full.
const TABLE_SPARE: u64 = 128;
/// What an idle connection costs: about 4.5 KB in the kernel and 0.3 KB here.
const CONNECTION_BYTES: u64 = 4_800;
/// For two seconds in all: tens of milliseconds are usual, more is needed on a machine that has much else to do.
const PORT_RETRIES: u32 = 200;
const PORT_RETRY_PAUSE: Duration = Duration::from_millis(10);
