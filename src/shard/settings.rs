//! The numbers a shard works with, out of the configuration and in the units of the loop.

use std::sync::Arc;

use crate::app::auth::{Authenticator, Carriers};
use crate::app::{ConnectionAttempts, envelope};
use crate::config::{AttemptRate, ClientLimitPolicy, Compression, Config, Origins, Proxy};
use crate::conn::{HistoryLimits, OutboundLimits, RateLimits};
use crate::fixed::Rate;
use crate::pubsub::Policies;
use crate::tls::Terms;
use crate::ws::{Extensions, HandshakeLimits, Limits};

/// What a shard needs to know of the configuration. Times in milliseconds; 0 means never where the key says so.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is the configuration key of the same name, in milliseconds or bytes")]
pub struct Settings {
    /// Which configuration it is: another number than before if anything but the keys may differ.
    pub edition: u32,
    pub path: String,
    pub echo_path: Option<String>,
    pub origins: Origins,
    pub proxy: Proxy,
    pub prefixes: AttemptRate,
    pub connections_max: u32,
    pub handshakes_max: u32,
    pub connections_per_second: Option<u32>,
    pub slots: u32,
    pub handshake: HandshakeLimits,
    pub messages: Limits,
    pub compression: Compression,
    pub rates: RateLimits,
    pub outbound: OutboundLimits,
    /// The keys `topics` and `outbound.policy`.
    pub policies: Arc<Policies>,
    pub handshake_timeout_ms: u64,
    pub auth_required: bool,
    pub credentials: Carriers,
    pub auth_timeout_ms: u64,
    pub expiry_grace_ms: u64,
    pub idle_timeout_ms: u64,
    pub ping_interval_ms: u64,
    pub pong_timeout_ms: u64,
    pub close_timeout_ms: u64,
    pub max_lifetime_ms: Option<u64>,
    pub history: HistoryLimits,
    pub closed_sessions_kept: usize,
    pub unfinished_bytes_max: u64,
    pub outbound_bytes_max: u64,
    pub errors_max: u16,
    pub subscriptions_max: usize,
    pub topic_length_max: usize,
    pub parked_max: usize,
    pub handler_timeout_ms: Option<u64>,
    pub client_connections_max: Option<u32>,
    pub address_connections_max: Option<u32>,
    pub client_limit_policy: ClientLimitPolicy,
    /// Checks tokens; `None` if no key is configured.
    pub authenticator: Option<Arc<Authenticator>>,
    /// How many of the listening sockets are without TLS; those with it come after.
    pub plain_ports: usize,
    /// What newcomers of ports with TLS are offered; `None` if there are none.
    pub tls: Option<Arc<Terms>>,
    /// How often which addresses connect, for all shards; `None` if that is not limited.
    pub attempts: Option<Arc<ConnectionAttempts>>,
}

impl Settings {
    /// The settings of a shard with `slots` places, in an engine that may hold `connections_max` connections. What is
    /// built, and not only looked up, is added by the caller: `authenticator`, `tls` and `attempts`.
    pub fn new(config: &Config, connections_max: u32, slots: u32) -> Self {
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let outbound = &config.outbound;
        Self {
            edition: 0,
            path: config.path.clone(),
            echo_path: config.echo_path.clone(),
            origins: config.origins.clone(),
            proxy: config.proxy.clone(),
            prefixes: config.limits.connection_attempts.clone().unwrap_or_default(),
            connections_max,
            handshakes_max: config.limits.handshakes_in_flight,
            connections_per_second: config.limits.connections_per_second,
            slots,
            handshake: HandshakeLimits { header_bytes_max: config.websocket.max_header_bytes.0 },
            messages: Limits { message_bytes_max: config.websocket.max_message_size.0, extensions: Extensions::NONE },
            compression: config.websocket.compression.clone(),
            rates: RateLimits {
                messages: config.limits.messages.as_ref().map(|messages| {
                    let (per_second, burst) = (messages.per_second, messages.burst);
                    Rate { per_second, burst }
                }),
                bytes: config.limits.bytes.as_ref().map(|bytes| {
                    let [per_second, burst] =
                        [bytes.per_second, bytes.burst].map(|size| size.0.try_into().unwrap_or(u32::MAX));
                    Rate { per_second, burst }
                }),
                edition: 0,
            },
            outbound: OutboundLimits {
                bytes_max: outbound.max_bytes.0.try_into().unwrap_or(u32::MAX),
                frames_max: outbound.max_frames.try_into().unwrap_or(u32::MAX),
                age_max_ms: ms(outbound.max_age).try_into().unwrap_or(u32::MAX / 2),
            },
            policies: Arc::new(Policies::new(config, 0)),
            handshake_timeout_ms: ms(config.websocket.handshake_timeout),
            auth_required: config.auth.required,
            credentials: Carriers { cookie: config.auth.cookie.clone(), query: config.auth.query },
            auth_timeout_ms: ms(config.auth.timeout),
            expiry_grace_ms: ms(config.auth.leeway) + ms(config.auth.expiry_grace),
            idle_timeout_ms: config.websocket.idle_timeout_seconds * 1000,
            ping_interval_ms: config.websocket.ping_interval_seconds * 1000,
            pong_timeout_ms: ms(config.websocket.pong_timeout),
            close_timeout_ms: ms(config.websocket.close_timeout),
            max_lifetime_ms: config.websocket.max_lifetime.map(ms),
            history: HistoryLimits::of_events(config.websocket.max_session_history),
            closed_sessions_kept: config.websocket.closed_sessions_kept,
            unfinished_bytes_max: config.limits.unfinished_bytes.0 as u64,
            outbound_bytes_max: config.outbound.max_total_bytes.0 as u64,
            errors_max: config.limits.errors.try_into().unwrap_or(u16::MAX),
            subscriptions_max: config.limits.subscriptions_per_connection,
            topic_length_max: config.limits.topic_length,
            parked_max: config.limits.parked_handlers,
            handler_timeout_ms: config.limits.handler_timeout.map(ms),
            client_connections_max: config.websocket.max_connections_per_client,
            address_connections_max: config.websocket.max_connections_per_address,
            client_limit_policy: config.websocket.client_limit_policy,
            authenticator: None,
            plain_ports: if config.tls.addresses().is_empty() { usize::MAX } else { config.listen.len() },
            tls: None,
            attempts: None,
        }
    }
}

impl Settings {
    /// Sessions that have ended and are remembered by one shard of so many.
    pub fn closed_sessions_max(&self, shards: usize) -> usize {
        self.closed_sessions_kept.div_ceil(shards)
    }

    /// The rate at which one shard of so many takes connections in: one a second at least.
    pub fn connection_rate(&self, shards: usize) -> Option<Rate> {
        let per_second = self.connections_per_second?.div_ceil(u32::try_from(shards).unwrap_or(u32::MAX));
        Some(Rate { per_second, burst: per_second.div_ceil(10) })
    }

    /// One shard's part, of so many, of a bound on bytes of all of them.
    pub fn part(bytes: u64, shards: usize) -> usize {
        usize::try_from(bytes / shards as u64).unwrap_or(usize::MAX)
    }
}

/// Connections of all that a turn looks at or closes, where what there is to do (new settings, timers after a freeze, a
/// drain at once) is to be done to all: it takes some milliseconds, and the next turn goes on.
pub const CONNS_A_TURN: u32 = 4096;
/// Requests of one connection that may be waiting on handlers; at the bound it is not read from.
pub const PARKED_PER_CONN_MAX: u8 = 32;
/// Publishes that one connection may make before others that wait have their turn.
pub const SHARE: u32 = 64;
/// A connection that waits for its next share of a turn is read from until so much of it waits.
pub const READ_ON_BYTES: usize = 64 * 1024;
/// Messages of a connection that are refused for their rate, without a pause in between that would have given it its
/// whole burst again, until it is closed.
pub const OVER_RATE_MAX: u16 = 200;
/// How long nothing must have come from a connection until its memory of what it has spent goes, if it has all of it again.
pub const QUIET_MS: u64 = 1_000;
/// Inflated bytes that count as much as one refusal more.
pub const REFUSAL_BYTES: usize = 16 * 1024;
/// How far those whose lifetime has ended are spread when they come back: their ends are spread already.
pub const LIFETIME_SPREAD_MS: u64 = 5_000;
/// Bytes that are read of a connection that has been told its last, and beyond the largest message of one whose close frame
/// is awaited.
pub const LATE_BYTES: usize = 64 * 1024;
/// Connections that found no free receive buffer and are read from again in one turn.
pub const STARVED_A_TURN: usize = 32;
/// Connections that have been told their last and are read from again in one turn: each may bring 32 KiB, which the kernel copies
/// while everybody else waits, to be thrown away.
pub const LATE_A_TURN: usize = 8;
/// How long a connection lingers so that what it was sent last is not destroyed by a reset.
pub const LINGER_MS: u64 = 1_000;
/// Subprotocol of the native JSON.
pub const SUBPROTOCOL: &str = "tidewheel.v1";
/// How long accepting pauses when a table is full and no connection ends meanwhile.
pub const ACCEPT_RETRY_MS: u64 = 100;
/// A shard that did not look at its sockets for longer than this may have been frozen (SIGSTOP, a suspended machine).
pub const ABSENCE_MS: u64 = 250;
/// For how long such a shard reads before it judges anyone: some turns, for kernels that bring bytes in the second one
/// and for receives that find no buffer.
pub const READ_FIRST_MS: u64 = 100;

const _: () = assert!(READ_FIRST_MS < ABSENCE_MS, "waiting for the judgement is no absence");
const _: () = assert!(envelope::ID_LENGTH_MAX <= 64, "a request id is kept while its reply waits");
