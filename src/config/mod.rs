//! Every key of the configuration: its name, type, default, unit and range, each in one place.
//!
//! Law: what is not written here is an error, in the file and in the environment; a key that is here is honoured.
//! Precedence is flags, environment, file, default: [`Sources`] reads them in the opposite order, and what the whole
//! makes of it is judged last ([`Draft::finish`], [`Config::validate`]), because a later source may mend what an earlier
//! one left out.
//!
//! The YAML file has the shape of [`Config`]. The environment has `TIDEWHEEL_` and the key's path in upper case, such as
//! `TIDEWHEEL_WEBSOCKET_MAX_MESSAGE_SIZE`; its names are derived from the definition below, never listed.

pub mod file;
pub mod keys;
mod load;
pub mod network;
mod node;
pub mod origin;
mod problem;
mod reference;
pub mod tls;
mod tree;
mod units;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use jsonwebtoken::Algorithm;

use crate::id::SLOT_MAX;
use keys::{KeySource, TokenKey};
pub use load::{Draft, Flag, Sources, environment};
use network::Network;
pub use node::{Apply, Changes, Key};
use node::{section, words};
use origin::OriginPattern;
pub use problem::{Place, Problem, Problems};
use tls::Tls;
pub use units::Size;

section! {
    /// The whole configuration.
    Config {
        /// Addresses that accept WebSocket connections, one or a list. Port 0: the kernel chooses. `[]`: none, where
        /// `tls.listen` has one.
        restart listen: Vec<SocketAddr> = vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
        /// Path of the endpoint: starts with `/`, without query.
        restart path: String = "/ws".to_owned(),
        /// Path of a raw endpoint that returns every message, for conformance suites and benchmarks. `null`: none.
        restart echo_path: Option<String> = None,
        /// Shards, each a thread pinned to a core. `auto`: one for each core the process may use.
        restart shards: Auto<u16> = Auto::Auto => 1..=255,
        /// TLS without a proxy in front.
        section tls: Tls,
        /// The connections.
        section websocket: Websocket,
        /// The queue of messages towards one connection.
        section outbound: Outbound,
        /// What holds for which topics: of the entries whose pattern covers a topic the first one counts, whole.
        live topics: Vec<TopicRule> = Vec::new(),
        /// Who may connect.
        section auth: Auth,
        /// What one client may use.
        section limits: Limits,
        /// Which pages may connect.
        section origins: Origins,
        /// Who may say whose connection it passes on.
        section proxy: Proxy,
        /// How the server stops.
        section drain: Drain,
        /// The internal port.
        section admin: Admin,
        /// How the kernel is used.
        section io: Io,
        /// What is written to standard error.
        section log: Log,
    }
}

section! {
    /// Connections: how many, how long, how large.
    Websocket {
        /// Authenticated connections of one client (the claim `sub`) on all shards together; the claim
        /// `max_connections` goes before it. `null`: no limit.
        live max_connections_per_client: Option<u32> = Some(5) => 1..=1_000_000,
        /// Connections without an identity, where none is required, of one address prefix (as in
        /// `limits.connection_attempts`) on all shards together. `null`: no limit, since many users may share an address.
        live max_connections_per_address: Option<u32> = None => 1..=1_000_000,
        /// Who makes room for one connection more.
        live client_limit_policy: ClientLimitPolicy = ClientLimitPolicy::EvictOldest,
        /// Connections on all shards together; beyond, newcomers get 503. `auto`: what the machine's
        /// descriptors and memory allow, computed and logged at the start. A reload lowers it, and raises it to as many as
        /// there was room for at the start.
        live max_total_connections: Auto<u32> = Auto::Auto => 1..=SLOT_MAX + 1,
        /// Seconds without a message in either direction and without a ping from the client until close 4001.
        /// 0: never. The server's own pings and their pongs do not count.
        live idle_timeout_seconds: u64 = 300 => 0..=MONTH_SECONDS,
        /// Seconds without a byte from the client until it is pinged. 0: never pinged.
        live ping_interval_seconds: u64 = 30 => 0..=MONTH_SECONDS,
        /// Time for the pong after a ping until close 4002.
        live pong_timeout: Duration = Duration::from_secs(10) => SHORTEST..=HOUR,
        /// Time from accept until the upgrade is complete; then 408.
        live handshake_timeout: Duration = Duration::from_secs(10) => SHORTEST..=HOUR,
        /// Time for the peer's part of the closing handshake; then the connection is dropped.
        live close_timeout: Duration = Duration::from_secs(5) => SHORTEST..=HOUR,
        /// How long a connection may last at most; each ends at a time of its own between four fifths of this and all
        /// of it, with close 1012, and is asked to connect again. `null`: any time.
        live max_lifetime: Option<Duration> = None => SHORTEST..=MONTH,
        /// Events of each session that are remembered, its beginning and its end among them; older ones are counted.
        /// 32 bytes each in the mean, so that long topic names leave room for fewer. 0: none.
        live max_session_history: u32 = 100 => 0..=10_000,
        /// Sessions that are remembered after their end, on all shards together and at most 4 MiB on each; the oldest
        /// are forgotten.
        live closed_sessions_kept: usize = 1_000 => 0..=1_000_000,
        /// Bytes of one message from a client, all fragments together; beyond, close 1009.
        live max_message_size: Size = Size(1_000_000) => 1..=GIB,
        /// permessage-deflate, for clients that ask for it.
        section compression: Compression,
        /// Bytes of the upgrade request up to its empty line; beyond, 431.
        live max_header_bytes: Size = Size(16 * 1024) => 256..=MIB,
    }
}

section! {
    /// permessage-deflate (RFC 7692). The server's messages never refer to each other, so what is published is compressed
    /// once for all.
    Compression {
        /// Whether newcomers that ask for it get it.
        live enabled: bool = true,
        /// From 1, fast, to 9, small.
        live level: u32 = 3 => 1..=9,
        /// Bytes from which on a message is compressed; shorter ones, and those that would not get shorter, are sent plain.
        live min_size: Size = Size(256) => 1..=GIB,
        /// Whether a newcomer's messages may refer to its earlier ones. They are smaller then, and the connection costs 48 KiB
        /// more from its first compressed message to its end.
        live client_context_takeover: bool = false,
        /// Bytes that a byte of a client's compressed message may become, once it has become 64 KiB; beyond, close 1009.
        /// DEFLATE ends at 1032. `max_message_size` holds for what a message inflates to.
        live max_ratio: usize = 200 => 2..=1_100,
    }
}

section! {
    /// Bounds of each connection's outbound queue, and what is done with a message that finds it full. Replies are always
    /// queued: at `max_bytes` the connection is not read from.
    Outbound {
        /// Bytes queued. One message is admitted into an empty queue whatever its size.
        live max_bytes: Size = Size(1_000_000) => 1..=GIB,
        /// Frames queued.
        live max_frames: usize = 1024 => 1..=MIB / 2,
        /// How long a message may wait behind a send that makes no progress; one that trickles is found within
        /// twice that. Then close 4008, whatever the policy; messages that a policy may drop may wait longer while others
        /// leave. The kernel gives up later, after twice as long and 30s at least (`TCP_USER_TIMEOUT`, set at the start).
        live max_age: Duration = Duration::from_secs(30) => SHORTEST..=HOUR,
        /// What is done at `max_bytes` and `max_frames`, for topics of which `topics` says nothing else.
        live policy: OutboundPolicy = OutboundPolicy::Disconnect,
        /// Bytes queued for all connections together; beyond, a connection for which a reply waits is not read from. What is
        /// published counts once, however many wait for it.
        live max_total_bytes: Size = Size(1_000_000_000) => MIB..=1024 * GIB,
    }
}

section! {
    /// What holds for the topics that a pattern covers.
    TopicRule {
        /// Dot-separated segments; `*` stands for any one of them, a last `>` for one or more. 1 to 255 bytes.
        live pattern: String = String::new(),
        /// What is done with a message that finds a subscriber's queue full. `null`: what `outbound.policy` says.
        live policy: Option<OutboundPolicy> = None,
    }
}

section! {
    /// Authentication by JSON Web Token.
    Auth {
        /// Whether a client must authenticate before anything else. Needs a key: `secret`, `public_key_file`,
        /// `keys` or `jwks`.
        live required: bool = true,
        /// Time from the upgrade until authenticated; then close 4502.
        live timeout: Duration = Duration::from_secs(10) => SHORTEST..=HOUR,
        /// Shared secret of the HS algorithms; RFC 7518 §3.2 asks for 32 bytes or more of it.
        live secret: Option<Secret> = None,
        /// PEM file with the issuer's public key, for the other algorithms; a relative path starts at the working
        /// directory.
        live public_key_file: Option<PathBuf> = None,
        /// The one algorithm of `secret` or `public_key_file`. `null`: HS256 with a secret, RS256 with a public key.
        live algorithm: Option<Algorithm> = None,
        /// More keys, each with its algorithm and its `kid`, and with an issuer of its own if it has one.
        live keys: Vec<TokenKey> = Vec::new(),
        /// Key sets (JWKS) as issuers publish them: URLs or files, with an issuer each where there are several.
        live jwks: Vec<KeySource> = Vec::new(),
        /// PEM file with the certificates that sign for `https` sources. `null`: those that this machine trusts.
        live jwks_ca_file: Option<PathBuf> = None,
        /// How long a fetched set is fresh where its `Cache-Control` does not say (`max-age` counts between
        /// `jwks_interval` and 1h, or this if it is more); it is fetched again a fifth before that.
        live jwks_lifetime: Duration = Duration::from_secs(300) => SHORTEST..=DAY,
        /// Least time between two looks at a source: at a file for a change, at a URL for a key that a token names and
        /// nobody has. After a failure it doubles up to `jwks_lifetime`.
        live jwks_interval: Duration = Duration::from_secs(10) => SHORTEST..=HOUR,
        /// Time for one fetch, from the name's look-up to the last byte.
        live jwks_timeout: Duration = Duration::from_secs(5) => SHORTEST..=HOUR,
        /// Bytes of a set; beyond, it is refused.
        live jwks_max_bytes: Size = Size(256 * 1024) => 1..=MIB,
        /// Required `iss` claim, where key and key set have none of their own. `null`: any.
        live issuer: Option<String> = None,
        /// What the `aud` claim must be or hold, one of them, where key and key set have none of their own. `null`: none may be
        /// there.
        live audience: Option<Vec<String>> = None,
        /// Clock difference tolerated in `exp` and `nbf`.
        live leeway: Duration = Duration::ZERO => Duration::ZERO..=HOUR,
        /// Time after a token's expiry in which the client may refresh it; then close 4003.
        live expiry_grace: Duration = Duration::from_secs(25) => Duration::ZERO..=DAY,
        /// Name of the cookie that may carry a token in the upgrade request. `null`: none. Browsers add cookies to the
        /// requests of every page, so `origins.allow` decides who may use it.
        live cookie: Option<String> = None,
        /// Whether the upgrade request may carry a token as `?token=`, which others may log. false: the query is ignored.
        live query: bool = false,
    }
}

section! {
    /// Bounds for one connection, and the one for handlers.
    Limits {
        /// Attempts to connect from one address prefix, before the upgrade; beyond, 429. `null`: no limit.
        live connection_attempts: Option<AttemptRate> = Some(AttemptRate::default()),
        /// Connections that are taken in a second, of all addresses, each shard its part and a tenth of that at once; beyond,
        /// newcomers are not refused but wait in the kernel's queue of the listener. `null`: no limit.
        live connections_per_second: Option<u32> = None => 1..=1_000_000,
        /// Connections on all shards together whose upgrade request is not complete; beyond, newcomers get 503 at once.
        /// `websocket.handshake_timeout` gives the places of slow ones back.
        live handshakes_in_flight: u32 = 8192 => 1..=SLOT_MAX + 1,
        /// Messages from one connection; beyond, `rate_limited`, and 4505 for who goes on. `null`: no limit.
        live messages: Option<MessageRate> = Some(MessageRate::default()),
        /// Bytes of messages from one connection; beyond, as for `messages`. `null`: no limit.
        live bytes: Option<ByteRate> = Some(ByteRate::default()),
        /// Bytes of all connections together that were received and wait, for the rest of their message or for their turn;
        /// beyond, of those that are looked at in one turn, the connection for which most wait is closed (1013).
        live unfinished_bytes: Size = Size(256_000_000) => MIB..=1024 * GIB,
        /// Errors answered to one connection until close 4506; `rate_limited` is counted apart.
        live errors: u32 = 50 => 1..=65_535,
        /// Topics one connection may be subscribed to; beyond, `limit_exceeded`.
        live subscriptions_per_connection: usize = 128 => 1..=65_535,
        /// Bytes of a topic's name; beyond, `too_large`.
        live topic_length: usize = 255 => 1..=4 * KIB,
        /// Handler futures waiting on one shard; beyond, `limit_exceeded`.
        restart parked_handlers: usize = 4096 => 1..=MIB,
        /// How long a handler may wait; beyond, it is dropped and its client gets `internal_error`. `null`: no limit.
        live handler_timeout: Option<Duration> = Some(Duration::from_secs(30)) => SHORTEST..=DAY,
    }
}

section! {
    /// How often one address prefix may connect. Loopback is no exception.
    AttemptRate {
        /// Attempts a second in the long run.
        live per_second: u32 = 20 => 1..=1_000_000,
        /// Attempts at once after a pause.
        live burst: u32 = 100 => 1..=1_000_000,
        /// Leading bits that make IPv4 addresses the same client.
        live ipv4_prefix: u8 = 32 => 1..=32,
        /// Leading bits that make IPv6 addresses the same client. Whoever has one address usually has its /64.
        live ipv6_prefix: u8 = 64 => 1..=128,
    }
}

section! {
    /// How many messages one connection may send, and pings, pongs that nobody asked for, and fragments of at most 125 bytes
    /// that do not end their message: they count as messages. The raw echo endpoint is exempt.
    MessageRate {
        /// Messages a second in the long run.
        live per_second: u32 = 100 => 1..=1_000_000,
        /// Messages at once after a pause.
        live burst: u32 = 200 => 1..=1_000_000,
    }
}

section! {
    /// How many bytes of messages one connection may send. The raw echo endpoint is exempt.
    ByteRate {
        /// Bytes a second in the long run.
        live per_second: Size = Size(1_000_000) => 1..=GIB,
        /// Bytes at once after a pause. A larger message needs a pause that would have filled it.
        live burst: Size = Size(4_000_000) => 1..=GIB,
    }
}

section! {
    /// Which pages may connect, as told by the `Origin` that browsers send with every upgrade; others get 403.
    Origins {
        /// One or a list of: `same_host`, where the page's host is that of the request, on any port; an origin such as
        /// `https://example.com` or `http://localhost:3000`, where no port means the scheme's own;
        /// `https://*.example.com` for all hosts below that one; `null` for pages without an origin; `*` for all.
        /// `[]`: no page.
        live allow: Vec<OriginPattern> = vec![OriginPattern::SameHost],
        /// Whether a request without `Origin`, which is from no browser, is allowed.
        live allow_missing: bool = true,
    }
}

section! {
    /// Proxies in front of the server. A client's address is its peer's, unless that is one of them and names another.
    Proxy {
        /// One or a list of addresses and networks, such as `10.0.0.0/8`, whose `Forwarded` and `X-Forwarded-For` headers
        /// are believed. Nobody else may connect from there: who does may call itself anything. `[]`: nobody.
        live trusted: Vec<Network> = Vec::new(),
        /// Whether every connection from there must begin with a header of the PROXY protocol, version 1 or 2.
        live proxy_protocol: bool = false,
    }
}

section! {
    /// What happens on SIGTERM. Everyone is told when to connect again, evenly over a window.
    Drain {
        /// Time from the signal, when `/readyz` begins to answer 503, until nobody is accepted any more: as long as a load
        /// balancer needs to notice. Newcomers are served meanwhile.
        live wait: Duration = Duration::ZERO => Duration::ZERO..=HOUR,
        /// Time after `wait` in which connections are closed one after the other; less if the rate does not need it.
        /// `auto`: two thirds of what `deadline` leaves, which is 20s by default.
        live spread: Auto<Duration> = Auto::Auto => Duration::ZERO..=HOUR,
        /// Time from the signal until the process exits whatever clients do. Not shorter than `wait` and `spread` together.
        live deadline: Duration = Duration::from_secs(30) => Duration::ZERO..=HOUR,
        /// Clients that are told to connect again within the same second; closes keep to it too, as far as `spread` allows.
        live reconnects_per_second: u32 = 1000 => 1..=1_000_000,
    }
}

section! {
    /// Metrics, health and the admin API.
    Admin {
        /// Address of the internal port; it must not be reachable from outside. Port 0: the kernel chooses.
        restart listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9090)),
        /// What callers of `/api/` must send as `Authorization: Bearer`: 16 to 512 printable ASCII characters without
        /// spaces. `null`: the API is off; health, metrics and the page never need it.
        live key: Option<Secret> = None,
    }
}

section! {
    /// The ring of each shard.
    Io {
        /// How a connection waits for input.
        restart wait: ReceiveWait = ReceiveWait::Recv,
        /// Receive buffers of one shard, shared by its connections: a power of two.
        restart receive_buffers: usize = 1024 => 1..=RECEIVE_BUFFERS_MAX,
        /// Bytes of a receive buffer.
        restart receive_buffer_size: Size = Size(4 * 1024) => 256..=MIB,
        /// Microseconds for which an idle shard polls before it sleeps, as long as it pays: 0 is never, which saves the core;
        /// 50 saves messages that come one by one the time of waking up.
        restart busy_poll_us: u32 = 0 => 0..=1_000_000,
    }
}

section! {
    /// The log.
    Log {
        /// Least severe level that is written.
        live level: LogLevel = LogLevel::Info,
        /// Form of a line.
        restart format: LogFormat = LogFormat::Text,
    }
}

impl Drain {
    /// Checks the section alone, as [`Config::validate`] does.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn validate(&self) -> Result<(), Problems> {
        Config { auth: Auth { required: false, ..Auth::default() }, drain: self.clone(), ..Config::default() }
            .validate()
    }

    /// Time in which connections are closed, after `wait`.
    pub fn closes_within(&self) -> Duration {
        match self.spread {
            Auto::Auto => self.deadline.saturating_sub(self.wait) * 2 / 3,
            Auto::Value(spread) => spread,
        }
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
#[derive(Clone, PartialEq, Eq)]
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

words! {
    /// How a connection waits for input.
    ReceiveWait {
        /// A multishot receive stays armed.
        Recv = "recv",
        /// A multishot poll stays armed, and input is received when it is there: less kernel memory a connection.
        Poll = "poll",
    }
}

words! {
    /// Who makes room when a client connects once more than it may.
    ClientLimitPolicy {
        /// Of its connections the one that authenticated first; closed with 4503.
        EvictOldest = "evict_oldest",
        /// The one whose last `authenticate` or `refresh` is longest ago; closed with 4503. Messages do not count: who owns
        /// the list does not see them.
        EvictIdle = "evict_idle",
        /// The newcomer; closed with 4501.
        Reject = "reject",
    }
}

words! {
    /// What is done with a published message that finds a subscriber's queue at its bound.
    OutboundPolicy {
        /// The subscriber is closed with 4008: what it has seen is a prefix.
        Disconnect = "disconnect",
        /// The oldest waiting messages of the same topic go until it fits; if that would not do, it goes itself.
        DropOldest = "drop_oldest",
        /// It goes itself; later ones may find room again.
        DropNewest = "drop_newest",
        /// It takes the place of a waiting message of the same topic and key, also below the bound; at the bound as
        /// `drop_oldest`.
        LatestPerKey = "latest_per_key",
    }
}

words! {
    /// Severity of log lines, most severe first.
    #[expect(missing_docs, reason = "the names are the documentation")]
    LogLevel {
        Off = "off",
        Error = "error",
        Warn = "warn",
        Info = "info",
        Debug = "debug",
        Trace = "trace",
    }
}

words! {
    /// Form of log lines.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

const MONTH_SECONDS: u64 = 30 * 24 * 60 * 60;
const HOUR: Duration = Duration::from_secs(60 * 60);
const MONTH: Duration = Duration::from_secs(MONTH_SECONDS);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest time that means anything at the resolution of a shard's timers.
const SHORTEST: Duration = Duration::from_millis(100);
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Frames are counted in 32 bits; this leaves room for headers and several of them in one buffer.
const GIB: usize = 1 << 30;
/// The kernel's bound on a ring of provided buffers.
const RECEIVE_BUFFERS_MAX: usize = 1 << 15;
