//! The control plane: all that is not hot, on one thread of its own.
//! Law: a shard never waits for it, and it never reads or writes what belongs to a shard beyond its relaxed counters.
//!
//! The thread runs a [`tokio_uring`] runtime: a whole tokio runtime, timers and sockets included, whose file operations
//! go through a ring. Shard threads enter its handle, so that handlers can await tokio timers and clients.

mod api;
mod certificates;
mod drain;
mod exposition;
mod http;
mod keys;
pub mod logging;
mod phase;
pub mod running;
mod runtime;
mod shards;
mod stream;
mod turned_away;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use crate::metrics::ShardMetrics;
pub use drain::Drains;
pub use exposition::{Holdings, ReadHoldings};
pub use keys::{CheckTokenError, check_token};
pub use phase::{Phase, Stage};
pub use running::{ReloadError, Reloaded, Reread, Running};
pub use shards::{Shards, Target, TopicEntry};

/// What the control plane is given at its start.
pub struct ControlSettings {
    /// Where health, metrics and the page are served; bound by the caller, so that a taken port is known before
    /// anything else starts. `None`: no HTTP at all.
    pub admin: Option<TcpListener>,
    /// The counters of each shard, in shard order.
    pub metrics: Vec<Arc<ShardMetrics>>,
    /// What else a scrape asks of the engine.
    pub holdings: ReadHoldings,
    /// How far the engine is; `/readyz` answers from it.
    pub phase: Arc<Phase>,
    /// What the page at `/` fills in.
    pub page: PageSettings,
    /// What begins drains, for the admin API and the log.
    pub drains: Arc<Drains>,
    /// The configuration in force, which SIGHUP and the admin API reload, and the shards.
    pub running: Arc<Running>,
    /// Whether this process's signals are the engine's: SIGTERM and SIGINT terminate, SIGHUP reloads. An embedding
    /// program that has signal handling of its own says `false`.
    pub signals: bool,
    /// Called once, on the control thread, at the first SIGTERM or SIGINT. It must not block.
    pub on_terminate: Box<dyn Fn() + Send>,
}

/// What the page at `/` fills in for the visitor.
#[derive(Clone, Debug)]
pub struct PageSettings {
    /// The address that accepts WebSocket connections without TLS. For an unspecified or loopback address the page uses the
    /// host name it was opened with.
    pub websocket: Option<SocketAddr>,
    /// The address that accepts them with TLS: for a page that came that way, and where there is no other.
    pub tls: Option<SocketAddr>,
    /// The path that upgrades, `/ws` for instance.
    pub path: String,
}

/// The running control plane. Dropping it ends every HTTP connection and joins the thread. Shards that entered
/// [`ControlPlane::tokio_handle`] must have ended before: a tokio timer that is polled after its runtime has gone panics.
pub struct ControlPlane {
    tokio: tokio::runtime::Handle,
    admin_address: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the control plane and returns when it serves.
///
/// # Errors
/// The kernel refuses a ring or a thread, a signal cannot be watched, or the listener is broken.
pub fn start(settings: ControlSettings) -> io::Result<ControlPlane> {
    let admin_address = settings.admin.as_ref().map(TcpListener::local_addr).transpose()?;
    let (started, wait_started) = mpsc::channel();
    let (stop, stopped) = oneshot::channel();
    let thread =
        thread::Builder::new().name("control".into()).spawn(move || runtime::run(settings, &started, stopped))?;
    // A thread that dies before it reports has dropped its sender.
    let tokio = wait_started.recv().map_err(|_| io::Error::other("the control thread ended while starting"))??;
    Ok(ControlPlane { tokio, admin_address, stop: Some(stop), thread: Some(thread) })
}

impl ControlPlane {
    /// The control thread's runtime. Shard threads `enter()` it before they run handlers.
    pub fn tokio_handle(&self) -> &tokio::runtime::Handle {
        &self.tokio
    }

    /// Where the internal HTTP port listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Dropping the sender is the message.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane").field("admin_address", &self.admin_address).finish_non_exhaustive()
    }
}
