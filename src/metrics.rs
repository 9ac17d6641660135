//! What an engine counts: one set of counters a shard, written by its thread alone, read by anyone at any time.
//!
//! Law: every label value comes from a closed enum of this file, so the number of series is known at compile time.
//! A count is a relaxed load and store of the one writer: no locked instruction on the data path.

mod histogram;

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use histogram::{Amount, Bytes, Distribution, Histogram, Latency, Lifetime, Scale};

/// A number with one writing thread.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call this.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Replaces the value. Only the owning thread may call this.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A counter for each value of a closed enum, by its number: `closed[CloseReason::Idle as usize]`.
#[derive(Debug)]
pub struct Counters<const N: usize>([Counter; N]);

impl<const N: usize> Default for Counters<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Deref for Counters<N> {
    type Target = [Counter];

    fn deref(&self) -> &[Counter] {
        &self.0
    }
}

/// Declares a fieldless enum with the label each variant has in the metrics.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every value, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// The value's label in metrics, logs and errors.
            pub fn label(self) -> &'static str {
                match self { $($name::$variant => $label,)+ }
            }
        }
    };
}

labels! {
    /// Why a connection ended. One value for each connection that was ever admitted.
    CloseReason {
        /// The peer closed with a close frame.
        Peer = "peer",
        /// The peer's stream ended or broke without a close frame.
        Lost = "lost",
        /// The upgrade was refused, or the bytes were none; answered with a status of its own.
        BadHandshake = "bad_handshake",
        /// The upgrade did not finish within `handshake_timeout`.
        HandshakeTimeout = "handshake_timeout",
        /// The peer broke RFC 6455 (1002, 1007).
        Protocol = "protocol",
        /// A frame or message over `max_message_size` (1009).
        TooBig = "too_big",
        /// Authentication failed (4501).
        AuthFailed = "auth_failed",
        /// Not authenticated within `auth.timeout` (4502).
        AuthTimeout = "auth_timeout",
        /// The token expired and was not refreshed within the grace period (4003).
        Expired = "expired",
        /// No message in either direction, and no ping from the client, for `idle_timeout_seconds` (4001).
        Idle = "idle",
        /// No pong within `pong_timeout` (4002).
        NoPong = "no_pong",
        /// The outbound queue reached a bound under the policy `disconnect` (4008).
        SlowConsumer = "slow_consumer",
        /// Too many errors (4506).
        Errors = "errors",
        /// Message after message over a rate (4505).
        RateLimit = "rate_limit",
        /// Most of what was received waited for it, when that of all connections was too much (1013).
        Overload = "overload",
        /// A newer connection of the same client took its place (4503).
        Evicted = "evicted",
        /// A handler asked for it, or an operator did (4504 unless another code was given).
        Application = "application",
        /// It had lasted as long as `max_lifetime` lets it (1012).
        Lifetime = "lifetime",
        /// The server drained (1012).
        Drain = "drain",
        /// The connection's own handling failed beyond repair (1011).
        Internal = "internal",
    }
}

labels! {
    /// Error codes a client can get in an `error` message.
    ErrorCode {
        /// Not JSON, not an object, a member of the wrong type, a missing member.
        InvalidMessage = "invalid_message",
        /// No handler has this `type`.
        UnknownMessage = "unknown_message",
        /// Not authenticated yet.
        Unauthorized = "unauthorized",
        /// The token's permissions do not allow it.
        Forbidden = "forbidden",
        /// The thing named does not exist.
        NotFound = "not_found",
        /// Too many messages or bytes.
        RateLimited = "rate_limited",
        /// A bound of the server or the connection is reached.
        LimitExceeded = "limit_exceeded",
        /// A part of the request is too large.
        TooLarge = "too_large",
        /// The handler failed; the connection lives on.
        InternalError = "internal_error",
    }
}

labels! {
    /// Why a newcomer was turned away before the upgrade.
    Refusal {
        /// 503: the shard's pool is full.
        Full = "full",
        /// 503: as many handshakes as may be are in flight.
        Handshakes = "handshakes",
        /// 503: the server drains.
        Draining = "draining",
        /// 400, 404, 405, 414, 426, 431: the request was not an upgrade this server answers.
        BadRequest = "bad_request",
        /// 429: too many attempts from the same address prefix.
        RateLimited = "rate_limited",
        /// 429: the address has as many connections without an identity as it may.
        Address = "address",
        /// 403: the page that asks may not connect.
        Origin = "origin",
        /// 401: the token in the request was not valid.
        Unauthorized = "unauthorized",
    }
}

labels! {
    /// Why a frame was not put on a queue, or taken off it unsent.
    Drop {
        /// The subscriber was over a bound and is being disconnected.
        Disconnect = "disconnect",
        /// Of a topic that drops the oldest: thrown out of a full queue for a newer one, or not taken where that would not
        /// have made room.
        DropOldest = "drop_oldest",
        /// Of a topic that drops the newest: not taken by a full queue, or thrown out of one for a message that may not be
        /// dropped.
        DropNewest = "drop_newest",
        /// Of a topic that keeps the latest of each key: replaced by a newer one with its key, or as for `drop_oldest`.
        LatestPerKey = "latest_per_key",
        /// The connection ended with the frame still queued.
        Closed = "closed",
    }
}

labels! {
    /// What became of a message that was long enough to be compressed.
    Deflated {
        /// It got shorter.
        Compressed = "compressed",
        /// It would not have got shorter, and was sent plain.
        Incompressible = "incompressible",
        /// The compressor broke, and it was sent plain. Should be 0.
        Failed = "failed",
    }
}

labels! {
    /// What became of a client's compressed message.
    Inflated {
        /// It was inflated.
        Inflated = "inflated",
        /// It was no DEFLATE data (1007).
        Malformed = "malformed",
        /// It was, or would have become, too large (1009).
        TooLarge = "too_large",
    }
}

labels! {
    /// What became of a TLS handshake.
    TlsHandshake {
        /// New keys were agreed on.
        Full = "full",
        /// A ticket of an earlier session was taken.
        Resumed = "resumed",
        /// It led nowhere: no common version or cipher, a certificate that is not trusted, no TLS at all.
        Failed = "failed",
    }
}

labels! {
    /// How much a panic took down.
    PanicSite {
        /// One request: the client got `internal_error`.
        Handler = "handler",
        /// One connection (1011), or its upgrade request (500).
        Connection = "connection",
        /// All connections of the shard (1011), which started again.
        Shard = "shard",
    }
}

/// How many deliveries were dropped, for each cause.
pub type Drops = [u64; Drop::ALL.len()];

/// One call of a handler in so many is timed if it ends at once: that takes two readings of the clock.
pub const HANDLER_SAMPLE: u32 = 16;

/// The counters of one shard.
#[derive(Debug, Default)]
pub struct ShardMetrics {
    /// Connections admitted since the start (sockets that got a slot).
    pub opened: Counter,
    /// Handshakes in flight now.
    pub handshakes: Counter,
    /// Upgrades that succeeded.
    pub upgraded: Counter,
    /// Connections ended, by reason.
    pub closed: Counters<{ CloseReason::ALL.len() }>,
    /// Connections that a drain closed with everything queued sent and the peer's side ended, part of those closed.
    pub closed_cleanly: Counter,
    /// Connections that a drain ended otherwise: at its deadline, without an answer to the close frame, or broken off by the
    /// peer with bytes unsent. Part of those closed.
    pub cut: Counter,
    /// Bytes queued for those that the kernel had not taken.
    pub unsent_bytes: Counter,
    /// Newcomers turned away, by cause.
    pub refused: Counters<{ Refusal::ALL.len() }>,
    /// Errors answered, by code.
    pub errors: Counters<{ ErrorCode::ALL.len() }>,
    /// Messages received from clients.
    pub messages_in: Counter,
    /// Messages put on queues for clients (a fan-out to n subscribers counts n).
    pub messages_out: Counter,
    /// Bytes received, handshakes included.
    pub bytes_in: Counter,
    /// Bytes the kernel took for sending.
    pub bytes_out: Counter,
    /// Messages published by clients and the API of this shard.
    pub published: Counter,
    /// Deliveries dropped, by cause.
    pub dropped: Counters<{ Drop::ALL.len() }>,
    /// Subscriptions held now.
    pub subscriptions: Counter,
    /// Connections authenticated now.
    pub authenticated: Counter,
    /// Handler futures parked now.
    pub parked: Counter,
    /// Handlers given up because they took longer than `limits.handler_timeout`.
    pub handler_timeouts: Counter,
    /// Panics caught, by what they took down.
    pub panics: Counters<{ PanicSite::ALL.len() }>,
    /// Times the shard started again after a panic or with a new ring.
    pub restarts: Counter,
    /// Turns of the loop.
    pub turns: Counter,
    /// Sends submitted.
    pub sends: Counter,
    /// Receives that found no free buffer (`ENOBUFS`).
    pub starved: Counter,
    /// Times accepting stopped because a descriptor or slot table was full.
    pub accept_stopped: Counter,
    /// Times accepting waited because of `limits.connections_per_second`.
    pub accept_paced: Counter,
    /// Times a connection waited for room on the bus before its next message was read.
    pub bus_full: Counter,
    /// Frames alive in the palette now.
    pub frames: Counter,
    /// Topics with a local subscriber now.
    pub topics: Counter,
    /// Waits that polled before they slept, since the shard last began.
    pub busy_polls: Counter,
    /// Those among them that did not have to sleep.
    pub busy_poll_hits: Counter,
    /// Times the completion queue overflowed into the kernel's own list.
    pub cq_overflow: Counter,
    /// From a ping to its pong, in nanoseconds. Observed whenever a pong answers a ping of the server.
    pub rtt: Histogram<Latency>,
    /// From the accepted socket to the answer that upgrades it, for those that are, in nanoseconds, to a millisecond.
    pub handshake: Histogram<Latency>,
    /// From the upgrade to the end, of every connection that was upgraded and has ended, in milliseconds of the wall clock.
    pub lifetime: Histogram<Lifetime>,
    /// From a publish to the counts of all shards, where other shards had to count, in nanoseconds; to a turn.
    pub receipt: Histogram<Latency>,
    /// Of one call in [`HANDLER_SAMPLE`] whose future was ready at once: from the call to its end, in nanoseconds.
    pub handler_inline: Histogram<Latency>,
    /// Of every call whose future had to wait: from the call to its end, in nanoseconds; to a turn.
    pub handler_parked: Histogram<Latency>,
    /// Frames on a connection's queue, the one in flight included, whenever a turn that queued some flushes it.
    pub queue_frames: Histogram<Amount>,
    /// Bytes of the same.
    pub queue_bytes: Histogram<Bytes>,
    /// A turn's work, in nanoseconds: from when waiting ended to when the kernel was told that it may sleep, or to the
    /// end of the next wait where it was not.
    pub turn: Histogram<Latency>,
    /// Completions of a turn.
    pub turn_events: Histogram<Amount>,
    /// How late a timer was acted on, in nanoseconds, to a millisecond; a timer of the wheel is due at a tick.
    pub timer_lag: Histogram<Latency>,
    /// Connections of this shard that publishes and broadcasts were for.
    pub matched: Counter,
    /// Deliveries of them that were put on queues.
    pub queued: Counter,
    /// Bytes of the frames in the palette now; a frame that several shards deliver counts on each.
    pub frame_bytes: Counter,
    /// Bytes received that wait now: held messages, and messages of which a part has arrived.
    pub inbound_bytes: Counter,
    /// Memory of the pool of connections, of timers and sessions, which follows the most there ever were.
    pub pool_bytes: Counter,
    /// Memory kept for the next messages that come in pieces.
    pub spare_in_bytes: Counter,
    /// Memory kept for the next replies and for what is sent together.
    pub spare_out_bytes: Counter,
    /// Compressions of messages for clients, by outcome: a publish once for each form that it needs.
    pub deflated: Counters<{ Deflated::ALL.len() }>,
    /// Bytes of those that got shorter.
    pub deflated_from_bytes: Counter,
    /// What they became.
    pub deflated_to_bytes: Counter,
    /// Compressed messages of clients, by outcome.
    pub inflated: Counters<{ Inflated::ALL.len() }>,
    /// Bytes of those that were inflated.
    pub inflated_from_bytes: Counter,
    /// What they became.
    pub inflated_to_bytes: Counter,
    /// Memory of the connections whose messages refer to each other.
    pub inflater_bytes: Counter,
    /// Connections that speak TLS now, handshakes included.
    pub tls_connections: Counter,
    /// TLS handshakes whose next step waits for its share of a turn now.
    pub tls_waiting: Counter,
    /// TLS handshakes, by outcome.
    pub tls_handshakes: Counters<{ TlsHandshake::ALL.len() }>,
    /// Key updates of TLS 1.3 that clients made.
    pub tls_key_updates: Counter,
    /// Connections whose messages, or whose end, wait for a later turn now.
    pub unflushed: Counter,
    /// Connections whose publish waits for its turn and for room on the bus now.
    pub in_line: Counter,
    /// Connections whose input waits for a share of a turn now.
    pub sharing: Counter,
    /// How often a connection's input had to wait for its next share, since it had more than there was time for.
    pub shares: Counter,
    /// Publishes that wait for the counts of other shards now.
    pub receipts_waiting: Counter,
    /// The kernel's number of the shard's thread, 0 before it runs.
    pub thread: Counter,
}

impl ShardMetrics {
    /// Connections that have a slot now.
    pub fn active(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(Counter::get).sum();
        self.opened.get().saturating_sub(closed)
    }

    /// Counts a connection's end.
    pub fn count_closed(&self, reason: CloseReason) {
        self.closed[reason as usize].add(1);
    }
}
