//! The load generator behind `tidewheel bench`: many clients on the same driver as the server's connections, which verify
//! what they receive.
//!
//! Law: every byte of a message that comes is compared with what had to come, and a run that was not served as it must be says
//! so in its findings. Latencies of a run with a rate count from when a message was to leave, not from when it left, and are
//! those of all messages that were to leave in the window, so that a server that stalls does not hide what it would have done
//! to those who waited (coordinated omission).
//!
//! | file | its one job |
//! |---|---|
//! | `lanes` | connections of one thread: dialed, upgraded, read, written, left |
//! | `crew` | threads, the stages of a run, its progress |
//! | `schedule` | when messages are due, and which are measured |
//! | `wire`, `native` | the client's half of RFC 6455, and of this server's JSON |
//! | [`echo`], [`fanout`], [`idle`], [`newcomers`] | what clients do |
//! | [`observe`], [`report`] | what it cost the server; what was found |

pub mod counts;
mod crew;
pub mod echo;
pub mod fanout;
pub mod idle;
mod lanes;
mod native;
pub mod newcomers;
pub mod observe;
pub mod report;
mod schedule;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use serde::Serialize;

pub use crew::Progress;
pub use report::Report;

use crate::app::auth::{KeySettings, make_token};

/// Who connects where, as whom.
#[derive(Debug)]
pub struct Setup {
    /// The servers' addresses, which take turns; at least one.
    pub targets: Vec<SocketAddr>,
    /// What the request says in `Host`.
    pub host: String,
    /// Path and query of the request.
    pub path: String,
    /// How they speak TLS; `None`: they do not.
    pub tls: Option<Tls>,
    /// Addresses to connect from, which take turns; none: the kernel picks one.
    pub sources: Vec<IpAddr>,
    /// Clients.
    pub connections: u32,
    /// Threads, each with a ring and a table of descriptors; 0: one a core, or more if their tables are too small.
    pub threads: u32,
    /// Handshakes of all threads that have begun and not ended.
    pub handshakes_at_once: u32,
    /// Connections that all threads may begin in a second.
    pub dials_per_second: Option<f64>,
    /// What clients prove who they are with.
    pub credentials: Credentials,
    /// The server's process, to see what it spends.
    pub process: Option<observe::Process>,
    /// How long the run may stand still before it is given up.
    pub patience: Duration,
}

/// How clients speak TLS: each with a handshake of its own, and none takes up a session of another.
#[derive(Clone, Debug)]
pub struct Tls {
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// To a server of this name.
    ///
    /// # Errors
    /// The name is neither one of DNS nor an address.
    pub fn new(mut client: ClientConfig, name: &str) -> io::Result<Self> {
        client.resumption = Resumption::disabled();
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        Ok(Self { client: Arc::new(client), name })
    }
}

/// What clients prove who they are with.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// Nothing.
    None,
    /// The same token for all.
    Token(String),
    /// Tokens for `NAME-0`, `NAME-1` and so on, signed with the server's key.
    Key {
        /// What user ids begin with.
        name: String,
        /// Signs them.
        key: KeySettings,
        /// Until when they are valid, in Unix seconds.
        expires_at: u64,
    },
}

#[derive(Serialize)]
struct Claims {
    sub: String,
    exp: u64,
}

impl Credentials {
    /// Whether they are good for tokens at all.
    ///
    /// # Errors
    /// The key does not fit its algorithm.
    pub fn check(&self) -> io::Result<()> {
        match self {
            Self::Key { key, .. } => make_token(&(), key).map(|_| ()).map_err(io::Error::other),
            _ => Ok(()),
        }
    }

    fn token(&self, number: u32) -> Option<String> {
        match self {
            Self::None => None,
            Self::Token(token) => Some(token.clone()),
            Self::Key { name, key, expires_at } => {
                let claims = Claims { sub: format!("{name}-{number}"), exp: *expires_at };
                make_token(&claims, key).ok() // was tried before the run
            }
        }
    }
}

impl Setup {
    /// From where to where the so-manieth connection of a thread goes. Every address has its turn with every target.
    fn ends(&self, dialed: u64) -> (Option<IpAddr>, SocketAddr) {
        let at = |len: usize, number: u64| (number % len as u64) as usize;
        let target = self.targets[at(self.targets.len(), dialed)];
        let source = (!self.sources.is_empty()).then(|| {
            let number = dialed / self.targets.len() as u64;
            self.sources[at(self.sources.len(), number)]
        });
        (source, target)
    }
}
