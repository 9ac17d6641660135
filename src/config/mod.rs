//! Every key of the configuration: its name, type, default, unit and range, each in one place.
//!
//! Law: what is not written here is an error, in the file and in the environment; a key that is here is honoured.
//! Precedence is flags, environment, file, default: [`Config::load`] takes the middle two, [`Config::set`] is for
//! flags, and [`Config::validate`] comes last, because a later source may mend what an earlier one left out.
//!
//! The YAML file has the shape of [`Config`]. The environment has `TIDEWHEEL_` and the key's path in upper case, such as
//! `TIDEWHEEL_WEBSOCKET_MAX_MESSAGE_SIZE`; its names are derived from the definition below, never listed.

mod load;
pub mod origin;
mod units;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use jsonwebtoken::Algorithm;
use serde::Deserialize;

pub use load::{Problems, environment};
use origin::OriginPattern;

/// Declares a section: its struct, its defaults, and the walk over its keys that the environment needs.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$key_doc:meta])* $key:ident: $type:ty = $default:expr,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$key_doc])* pub $key: $type,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl Node for $name {
            fn keys(path: &str, keys: &mut Vec<String>) {
                let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
                $(<$type as Node>::keys(&format!("{prefix}{}", stringify!($key)), keys);)+
            }

            fn replace_key(&mut self, path: &[&str], from: Self) {
                match path {
                    $([key, rest @ ..] if *key == stringify!($key) => self.$key.replace_key(rest, from.$key),)+
                    _ => unreachable!("no key {path:?} in {}", stringify!($name)),
                }
            }
        }
    };
}

section! {
    /// The whole configuration. Unless a key says otherwise, it is read once, at the start.
    Config {
        /// Addresses that accept WebSocket connections, one or a list (at least one). Port 0: the kernel chooses.
        #[serde(deserialize_with = "units::addresses")]
        listen: Vec<SocketAddr> = vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
        /// Path of the endpoint: starts with `/`, without query.
        path: String = "/ws".to_owned(),
        /// Path of a raw endpoint that returns every message, for conformance suites and benchmarks. `null`: none.
        echo_path: Option<String> = None,
        /// Shards, each a thread pinned to a core, 1 to 255. `auto`: one for each core the process may use.
        shards: Auto<u16> = Auto::Auto,
        /// The connections.
        #[serde(deserialize_with = "units::section")]
        websocket: Websocket = Websocket::default(),
        /// The queue of messages towards one connection.
        #[serde(deserialize_with = "units::section")]
        outbound: Outbound = Outbound::default(),
        /// Who may connect.
        #[serde(deserialize_with = "units::section")]
        auth: Auth = Auth::default(),
        /// What one client may use.
        #[serde(deserialize_with = "units::section")]
        limits: Limits = Limits::default(),
        /// Which pages may connect.
        #[serde(deserialize_with = "units::section")]
        origins: Origins = Origins::default(),
        /// How the server stops.
        #[serde(deserialize_with = "units::section")]
        drain: Drain = Drain::default(),
        /// The internal port.
        #[serde(deserialize_with = "units::section")]
        admin: Admin = Admin::default(),
        /// How the kernel is used.
        #[serde(deserialize_with = "units::section")]
        io: Io = Io::default(),
        /// What is written to standard error.
        #[serde(deserialize_with = "units::section")]
        log: Log = Log::default(),
    }
}

section! {
    /// Connections: how many, how long, how large.
    Websocket {
        /// Connections on all shards together, 1 to 67,108,864; beyond, newcomers get 503. `auto`: what the machine's
        /// descriptors and memory allow, computed and logged at the start.
        max_total_connections: Auto<u32> = Auto::Auto,
        /// Seconds without a message in either direction and without a ping from the client until close 4001, 1 to
        /// 2,592,000. 0: never. The server's own pings and their pongs do not count.
        idle_timeout_seconds: u64 = 300,
        /// Seconds without a byte from the client until it is pinged, 1 to 2,592,000. 0: never pinged.
        ping_interval_seconds: u64 = 30,
        /// Time for the pong after a ping until close 4002, 100ms to 1h.
        #[serde(deserialize_with = "units::duration")]
        pong_timeout: Duration = Duration::from_secs(10),
        /// Time from accept until the upgrade is complete, 100ms to 1h; then 408.
        #[serde(deserialize_with = "units::duration")]
        handshake_timeout: Duration = Duration::from_secs(10),
        /// Time for the peer's part of the closing handshake, 100ms to 1h; then the connection is dropped.
        #[serde(deserialize_with = "units::duration")]
        close_timeout: Duration = Duration::from_secs(5),
        /// Bytes of one message from a client, all fragments together, 1B to 1GiB; beyond, close 1009.
        #[serde(deserialize_with = "units::size")]
        max_message_size: usize = 1_000_000,
        /// Bytes of the upgrade request up to its empty line, 256B to 1MiB; beyond, 431.
        #[serde(deserialize_with = "units::size")]
        max_header_bytes: usize = 16 * 1024,
    }
}

section! {
    /// Bounds of each connection's outbound queue; at any of them the subscriber is disconnected with 4008. Replies are
    /// always queued: at `max_bytes` the connection is not read from.
    Outbound {
        /// Bytes queued, 1B to 1GiB. One message is admitted into an empty queue whatever its size.
        #[serde(deserialize_with = "units::size")]
        max_bytes: usize = 1_000_000,
        /// Frames queued, 1 to 524,288.
        max_frames: usize = 1024,
        /// How long a message may wait behind a send that makes no progress, 100ms to 1h; one that trickles is found within
        /// twice that.
        #[serde(deserialize_with = "units::duration")]
        max_age: Duration = Duration::from_secs(30),
    }
}

section! {
    /// Authentication by JSON Web Token.
    Auth {
        /// Whether a client must authenticate before anything else. Needs a key: `secret` or `public_key_file`.
        required: bool = true,
        /// Time from the upgrade until authenticated, 100ms to 1h; then close 4502.
        #[serde(deserialize_with = "units::duration")]
        timeout: Duration = Duration::from_secs(10),
        /// Shared secret of the HS algorithms; RFC 7518 §3.2 asks for 32 bytes or more of it.
        secret: Option<Secret> = None,
        /// PEM file with the issuer's public key, for the other algorithms; a relative path starts at the working
        /// directory.
        public_key_file: Option<PathBuf> = None,
        /// The one algorithm accepted. `null`: HS256 with a secret, RS256 with a public key.
        algorithm: Option<Algorithm> = None,
        /// Required `iss` claim. `null`: any.
        issuer: Option<String> = None,
        /// Required `aud` claim. `null`: any.
        audience: Option<String> = None,
        /// Clock difference tolerated in `exp` and `nbf`, 0s to 1h.
        #[serde(deserialize_with = "units::duration")]
        leeway: Duration = Duration::ZERO,
        /// Time after a token's expiry in which the client may refresh it, 0s to 24h; then close 4003.
        #[serde(deserialize_with = "units::duration")]
        expiry_grace: Duration = Duration::from_secs(25),
        /// Name of the cookie that may carry a token in the upgrade request. `null`: none. Browsers add cookies to the
        /// requests of every page, so `origins.allow` decides who may use it.
        cookie: Option<String> = None,
        /// Whether the upgrade request may carry a token as `?token=`, which others may log. false: the query is ignored.
        query: bool = false,
    }
}

section! {
    /// Bounds for one connection, and the one for handlers.
    Limits {
        /// Errors answered to one connection until close 4506, 1 to 65,535.
        errors: u32 = 50,
        /// Topics one connection may be subscribed to, 1 to 65,535; beyond, `limit_exceeded`.
        subscriptions_per_connection: usize = 128,
        /// Bytes of a topic's name, 1 to 4,096; beyond, `too_large`.
        topic_length: usize = 255,
        /// Handler futures waiting on one shard, 1 to 1,048,576; beyond, `limit_exceeded`.
        parked_handlers: usize = 4096,
    }
}

section! {
    /// Which pages may connect, as told by the `Origin` that browsers send with every upgrade; others get 403.
    Origins {
        /// One or a list of: `same_host`, where the page's host is that of the request, on any port; an origin such as
        /// `https://example.com` or `http://localhost:3000`, where no port means the scheme's own;
        /// `https://*.example.com` for all hosts below that one; `null` for pages without an origin; `*` for all.
        /// `[]`: no page.
        #[serde(deserialize_with = "units::origins")]
        allow: Vec<OriginPattern> = vec![OriginPattern::SameHost],
        /// Whether a request without `Origin`, which is from no browser, is allowed.
        allow_missing: bool = true,
    }
}

section! {
    /// What happens on SIGTERM.
    Drain {
        /// Time from the signal until the process exits whatever clients do, 0s to 1h.
        #[serde(deserialize_with = "units::duration")]
        deadline: Duration = Duration::from_secs(30),
    }
}

section! {
    /// Metrics, health and the admin API.
    Admin {
        /// Address of the internal port; it must not be reachable from outside. Port 0: the kernel chooses.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9090)),
    }
}

section! {
    /// The ring of each shard.
    Io {
        /// How a connection waits for input.
        wait: ReceiveWait = ReceiveWait::Recv,
        /// Receive buffers of one shard, shared by its connections: a power of two, 1 to 32,768.
        receive_buffers: usize = 1024,
        /// Bytes of a receive buffer, 256B to 1MiB.
        #[serde(deserialize_with = "units::size")]
        receive_buffer_size: usize = 4 * 1024,
    }
}

section! {
    /// The log.
    Log {
        /// Least severe level that is written.
        level: LogLevel = LogLevel::Info,
        /// Form of a line.
        format: LogFormat = LogFormat::Text,
    }
}

/// What the server computes itself unless it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto<T> {
    /// Computed, and logged at the start.
    Auto,
    /// As configured.
    Value(T),
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How a connection waits for input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReceiveWait {
    /// A multishot receive stays armed.
    Recv,
    /// A multishot poll stays armed, and input is received when it is there: less kernel memory a connection.
    Poll,
}

/// Severity of log lines, most severe first.
#[expect(missing_docs, reason = "the names are the documentation")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The level's name, as it is configured.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A node of the definition: a section with keys below it or, with the methods given here, a single key.
trait Node: Sized {
    /// Adds the paths of all keys from here down, in order of declaration.
    fn keys(path: &str, keys: &mut Vec<String>) {
        keys.push(path.to_owned());
    }

    /// Takes over the value of one key, named by its path from here, and nothing else.
    fn replace_key(&mut self, _path: &[&str], from: Self) {
        *self = from;
    }
}

impl Node for bool {}
impl Node for u32 {}
impl Node for u64 {}
impl Node for usize {}
impl Node for String {}
impl Node for Duration {}
impl Node for SocketAddr {}
impl Node for ReceiveWait {}
impl Node for LogLevel {}
impl Node for LogFormat {}
impl<T> Node for Auto<T> {}
impl<T> Node for Option<T> {}
impl<T> Node for Vec<T> {}
