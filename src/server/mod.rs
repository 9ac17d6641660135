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

mod capacity;
mod cost;
mod errands;
pub mod host;
mod launch;
mod listen;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::app::auth::Claims;
use crate::app::context::Refused;
use crate::app::{Clients, Context, HandlerError, IntoReply, MessageHandler, PublishOptions, RouteError, Router};
use crate::config::{self, Auto, Config, Problem, Problems, ReceiveWait};
use crate::control::running::{Room, check_files};
use crate::control::{self, ControlPlane, ControlSettings, Drains, Holdings, PageSettings, Phase, ReadHoldings};
use crate::control::{CheckTokenError, ReloadError, Reloaded, Reread, Running, Shards, Stage};
use crate::id::{SessionId, ShardId};
use crate::io::affinity;
use crate::io::bell::Bell;
use crate::io::probe::{self, Features, Unavailable};
use crate::io::uring::{ReceiveMode, UringConfig};
use crate::metrics::{CloseReason, Counter, ErrorCode, ShardMetrics};
use crate::pubsub::{Bus, Delivery};
use crate::shard::queries::{Connections, ConnectionsQuery, SessionReport};
use crate::shard::{DrainOrder, Shared};
pub use capacity::Capacity;
pub use cost::{Cost, IDLE_CONNECTION_BYTES, Part, Traffic};
use launch::{Plan, ShardThread, launch};
use listen::{bind_admin, listen};

/// Why an engine did not start. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not valid, or a key or a file of it cannot be used.
    #[error(transparent)]
    Config(#[from] Problems),
    /// A route could not be added.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The kernel has no io_uring for this process.
    #[error(transparent)]
    Kernel(#[from] Unavailable),
    /// A port, a thread or memory could not be had.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<ReloadError> for StartError {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::Config(problems) => Self::Config(problems),
            ReloadError::NoSource => Self::System(io::Error::other(error)),
        }
    }
}

/// An engine to be.
pub struct EngineBuilder {
    config: Config,
    reread: Option<Reread>,
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

    /// How the sources of the configuration are read again, for SIGHUP and `POST /api/reload`: the configuration, and
    /// what is odd in it ([`Draft::finish`](crate::config::Draft::finish) and
    /// [`Draft::warnings`](crate::config::Draft::warnings)). Without it only [`EngineHandle::reload`] reloads.
    #[must_use]
    pub fn reread(
        mut self,
        reread: impl Fn() -> Result<(Config, Vec<Problem>), Problems> + Send + Sync + 'static,
    ) -> Self {
        self.reread = Some(Box::new(reread));
        self
    }

    /// Whether SIGTERM and SIGINT of this process drain the engine and SIGHUP reloads it. Off unless asked for.
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
        let cores = affinity::allowed_cores()?;
        let shards = match self.config.shards {
            Auto::Auto => cores.len().min(usize::from(SHARDS_MAX)),
            Auto::Value(shards) => usize::from(shards),
        };
        let capacity = Capacity::of_machine(&self.config, shards)?;

        // Those without TLS first: a shard tells them apart by their order.
        let public: Vec<_> = self.config.public_addresses().collect();
        let (listeners, mut addresses) = listen(&public, shards, self.config.outbound.max_age)?;
        let tls_addresses = addresses.split_off(self.config.listen.len());
        let admin = match self.admin {
            true => Some(bind_admin(self.config.admin.listen)?),
            false => None,
        };

        let clients = Arc::<Clients>::default();
        let inboxes = Shards::new(shards, clients.clone());
        let room = Room { connections: capacity.connections, slots: capacity.table };
        let running = Arc::new(Running::new(self.config.clone(), room, inboxes.clone(), self.reread)?);
        let metrics: Vec<_> = (0..shards).map(|_| Arc::<ShardMetrics>::default()).collect();
        let phase = Arc::<Phase>::default();
        let drains = Arc::new(Drains::new(running.clone(), phase.clone(), metrics.clone()));
        let inner =
            Arc::new(Inner { shards: inboxes, phase, metrics: metrics.clone(), drains, running: running.clone() });
        let shared = Arc::new(Shared::new(self.router, Bus::new(shards), clients));
        let on_terminate = {
            let drains = inner.drains.clone();
            Box::new(move || drains.begin())
        };
        let control = control::start(ControlSettings {
            admin,
            metrics,
            holdings: read_holdings(shared.clone()),
            phase: inner.phase.clone(),
            page: PageSettings {
                websocket: addresses.first().copied(),
                tls: tls_addresses.first().copied(),
                path: self.config.path.clone(),
            },
            drains: inner.drains.clone(),
            running,
            signals: self.signals,
            on_terminate,
        })?;

        let bells: Arc<[Arc<Bell>]> =
            (0..shards).map(|_| Bell::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?.into();
        let plans = listeners.into_iter().enumerate().map(|(index, listeners)| Plan {
            shard: ShardId(index as u16),
            core: cores[index % cores.len()],
            ring: UringConfig {
                table: capacity.table,
                buffers: self.config.io.receive_buffers as u16,
                buffer_size: self.config.io.receive_buffer_size.0 as u32,
                mode: match self.config.io.wait {
                    ReceiveWait::Recv => ReceiveMode::Recv,
                    ReceiveWait::Poll => ReceiveMode::Poll,
                },
                busy_poll: Duration::from_micros(self.config.io.busy_poll_us.into()),
                listeners,
                bells: bells.clone(),
                shard: ShardId(index as u16),
            },
            shared: shared.clone(),
            metrics: inner.metrics[index].clone(),
            inbox: inner.shards.inboxes()[index].clone(),
            runtime: control.tokio_handle().clone(),
            engine: inner.clone(),
        });
        let (threads, started) = launch(plans);
        let engine = Engine { inner, threads, control: Some(control), addresses, tls_addresses, capacity, features };
        if let Err(error) = started {
            engine.inner.drains.begin_by(DrainOrder::within(0));
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
    tls_addresses: Vec<SocketAddr>,
    capacity: Capacity,
    features: Features,
}

impl Engine {
    /// Checks everything of a configuration that can be checked without serving: values, and the keys for tokens and the
    /// certificates, as far as they are on this machine. Tells what is odd in their files.
    ///
    /// # Errors
    /// What [`EngineBuilder::start`] would say.
    pub fn check(config: &Config) -> Result<Vec<String>, StartError> {
        config.validate()?;
        Ok(check_files(config)?)
    }

    /// Judges a token as an engine with this configuration would now. Fetches key sets, each once; blocks meanwhile.
    ///
    /// # Errors
    /// Why the token is refused, or what is wrong with the configuration.
    pub fn check_token(config: &Config, token: &str) -> Result<Claims, CheckTokenError> {
        config.validate()?;
        control::check_token(&config.auth, token)
    }

    /// Begins an engine with this configuration.
    pub fn builder(config: Config) -> EngineBuilder {
        EngineBuilder { config, reread: None, router: Router::default(), wrong: None, signals: false, admin: true }
    }

    /// Where clients connect without TLS.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where clients connect that speak TLS.
    pub fn tls_addresses(&self) -> &[SocketAddr] {
        &self.tls_addresses
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
        self.inner.shards.inboxes().len()
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

/// What other threads may ask of an engine.
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
        self.inner.shards.publish(topic, data)
    }

    /// As [`EngineHandle::publish`], with more to say.
    ///
    /// # Errors
    /// Those of [`EngineHandle::publish`], and `too_large` for a key of more than 255 bytes.
    pub fn publish_with<T: Serialize>(
        &self,
        topic: &str,
        data: &T,
        options: PublishOptions,
    ) -> impl Future<Output = Result<Delivery, Refused>> + Send + use<T> {
        self.inner.shards.publish_with(topic, data, options)
    }

    /// Sends to every connection, subscribed or not.
    ///
    /// # Errors
    /// `invalid_message` if the data is not JSON, `limit_exceeded` if the engine is busy.
    pub fn broadcast<T: Serialize>(&self, data: &T) -> impl Future<Output = Result<Delivery, Refused>> + Send + use<T> {
        self.inner.shards.broadcast(data)
    }

    /// The connections that a query asks for, in its order.
    ///
    /// # Errors
    /// `invalid_message` if the limit is out of range, `limit_exceeded` if too many such questions are being answered.
    pub fn connections(
        &self,
        query: ConnectionsQuery,
    ) -> impl Future<Output = Result<Connections, Refused>> + Send + use<> {
        self.inner.shards.connections(query)
    }

    /// Everything about one session: its state and its history, also for a while after its end.
    ///
    /// # Errors
    /// `not_found` if nothing is known of it, `limit_exceeded` if the engine is busy.
    pub fn session(&self, id: SessionId) -> impl Future<Output = Result<SessionReport, Refused>> + Send + use<> {
        let asked = self.inner.shards.session(id);
        async move {
            let unknown = || Refused::new(ErrorCode::NotFound, "no session has this id, or it ended too long ago");
            asked.await?.ok_or_else(unknown)
        }
    }

    /// Drains as configured: becomes unready, waits for load balancers, stops accepting, tells everyone when to come back,
    /// flushes what is queued, and ends within `drain.deadline`. Returns at once.
    pub fn drain(&self) {
        self.inner.drains.begin();
    }

    /// Drains in another way than configured, such as within a shorter time. Of two orders the more urgent of each time
    /// counts.
    ///
    /// # Errors
    /// What [`Config::validate`] would say of the section; nothing has begun then.
    pub fn drain_with(&self, drain: &config::Drain) -> Result<(), Problems> {
        self.inner.drains.begin_with(drain)
    }

    /// Takes up what another configuration changes, as far as that is possible while the engine runs; every key says in
    /// `tidewheel config doc` whether it is. All of it or nothing: each shard works by the new values from its next turn
    /// on, and none by some of them. What is connected stays connected: who has more connections or topics than the new
    /// limits allow keeps them, an identity holds until its token ends, and timers count from when they began.
    ///
    /// # Errors
    /// As for [`EngineBuilder::start`]; nothing has changed then.
    pub fn reload(&self, config: Config) -> Result<Reloaded, StartError> {
        Ok(self.inner.running.reload(config)?)
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.inner.running.config()
    }

    /// The counters of each shard.
    pub fn metrics(&self) -> &[Arc<ShardMetrics>] {
        &self.inner.metrics
    }
}

#[derive(Debug)]
struct Inner {
    shards: Shards,
    phase: Arc<Phase>,
    metrics: Vec<Arc<ShardMetrics>>,
    drains: Arc<Drains>,
    running: Arc<Running>,
}

impl Inner {
    fn summary(&self, broken: usize) -> Summary {
        let sum = |count: &dyn Fn(&ShardMetrics) -> &Counter| self.metrics.iter().map(|m| count(m).get()).sum();
        Summary {
            connections: sum(&|m| &m.opened),
            drained: sum(&|m| &m.closed[CloseReason::Drain as usize]),
            closed_cleanly: sum(&|m| &m.closed_cleanly),
            cut: sum(&|m| &m.cut),
            unsent_bytes: sum(&|m| &m.unsent_bytes),
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
    pub closed_cleanly: u64,
    pub cut: u64,
    pub unsent_bytes: u64,
    pub messages_in: u64,
    pub messages_out: u64,
    pub broken_shards: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            connections,
            drained: _,
            closed_cleanly,
            cut,
            unsent_bytes,
            messages_in,
            messages_out,
            broken_shards,
        } = self;
        write!(
            f,
            "served {connections} connections, {messages_in} messages in, {messages_out} out; drained: {closed_cleanly} \
             closed cleanly, {cut} cut, {unsent_bytes} bytes unsent"
        )?;
        if *broken_shards > 0 {
            write!(f, "; {broken_shards} shards broke")?;
        }
        Ok(())
    }
}

/// What a scrape asks of the engine.
fn read_holdings(shared: Arc<Shared>) -> ReadHoldings {
    Box::new(move || Holdings {
        clients: shared.clients.len() as u64,
        addresses: shared.addresses.len() as u64,
        bus_bound: shared.bus.publishes_max() as u64,
        bus_depths: (0..shared.shards).map(|shard| shared.bus.depth(ShardId(shard as u16)) as u64).collect(),
    })
}

const SHARDS_MAX: u16 = 255;
