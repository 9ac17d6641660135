//! The families whose samples come straight from each shard's counters.
//! Law: one entry a family; who adds a counter to [`ShardMetrics`] names it here and in the guide.

use crate::metrics::{Counter, Deflated, Distribution, Drop, ErrorCode, Inflated, PanicSite, Refusal};
use crate::metrics::{ShardMetrics, TlsHandshake};

/// A metric family whose samples come straight from each shard's counters.
pub(super) struct Family {
    /// Without the `_total` that a counter's samples get.
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) values: Values,
}

pub(super) enum Values {
    Gauge(fn(&ShardMetrics) -> &Counter),
    /// Gauges with one more label: its name, then each value with its gauge.
    Gauges(&'static str, fn(&ShardMetrics) -> Vec<(&'static str, &Counter)>),
    Counter(fn(&ShardMetrics) -> &Counter),
    /// Counters with one more label.
    Counters(&'static str, fn(&ShardMetrics) -> Vec<(&'static str, &Counter)>),
    Histogram(fn(&ShardMetrics) -> Distribution),
    /// Histograms with one more label.
    Histograms(&'static str, fn(&ShardMetrics) -> Vec<(&'static str, Distribution)>),
}

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "tidewheel_handshakes_in_flight",
        help: "Connections whose handshake is in flight now.",
        values: Values::Gauge(|shard| &shard.handshakes),
    },
    Family {
        name: "websocket_upgrades",
        help: "Upgrades that succeeded.",
        values: Values::Counter(|shard| &shard.upgraded),
    },
    Family {
        name: "tidewheel_drain_closed_cleanly",
        help: "Connections that the drain closed with everything sent and the peer's side ended, part of those closed.",
        values: Values::Counter(|shard| &shard.closed_cleanly),
    },
    Family {
        name: "tidewheel_drain_cut",
        help: "Connections that the drain ended otherwise, part of those closed.",
        values: Values::Counter(|shard| &shard.cut),
    },
    Family {
        name: "tidewheel_drain_unsent_bytes",
        help: "Bytes queued for connections that were cut which the kernel had not taken.",
        values: Values::Gauge(|shard| &shard.unsent_bytes),
    },
    Family {
        name: "websocket_refused",
        help: "Newcomers turned away before the upgrade, by cause.",
        values: Values::Counters("cause", |shard| labelled(Refusal::ALL, Refusal::label, &shard.refused)),
    },
    Family {
        name: "websocket_messages",
        help: "Messages received, and messages queued for clients.",
        values: Values::Counters("direction", |shard| vec![("in", &shard.messages_in), ("out", &shard.messages_out)]),
    },
    Family {
        name: "websocket_bytes",
        help: "Bytes received and sent, handshakes and frame headers included.",
        values: Values::Counters("direction", |shard| vec![("in", &shard.bytes_in), ("out", &shard.bytes_out)]),
    },
    Family {
        name: "websocket_errors",
        help: "Errors answered, by code.",
        values: Values::Counters("code", |shard| labelled(ErrorCode::ALL, ErrorCode::label, &shard.errors)),
    },
    Family {
        name: "websocket_published",
        help: "Messages published.",
        values: Values::Counter(|shard| &shard.published),
    },
    Family {
        name: "websocket_dropped",
        help: "Deliveries dropped, by cause.",
        values: Values::Counters("cause", |shard| labelled(Drop::ALL, Drop::label, &shard.dropped)),
    },
    Family {
        name: "websocket_deliveries_matched",
        help: "Connections that publishes and broadcasts were for.",
        values: Values::Counter(|shard| &shard.matched),
    },
    Family {
        name: "websocket_deliveries_queued",
        help: "Deliveries put on the queues of connections.",
        values: Values::Counter(|shard| &shard.queued),
    },
    Family {
        name: "tidewheel_subscriptions",
        help: "Subscriptions held now.",
        values: Values::Gauge(|shard| &shard.subscriptions),
    },
    Family {
        name: "tidewheel_authenticated_connections",
        help: "Connections authenticated now.",
        values: Values::Gauge(|shard| &shard.authenticated),
    },
    Family {
        name: "tidewheel_topics",
        help: "Topics with a local subscriber now.",
        values: Values::Gauge(|shard| &shard.topics),
    },
    Family {
        name: "tidewheel_frames",
        help: "Outbound frames alive now.",
        values: Values::Gauge(|shard| &shard.frames),
    },
    Family {
        name: "tidewheel_frame_bytes",
        help: "Bytes of the outbound frames alive now.",
        values: Values::Gauge(|shard| &shard.frame_bytes),
    },
    Family {
        name: "tidewheel_inbound_bytes",
        help: "Bytes received that wait now, held messages and parts of messages.",
        values: Values::Gauge(|shard| &shard.inbound_bytes),
    },
    Family {
        name: "tidewheel_pool_bytes",
        help: "Memory of the pool of connections, of their timers and sessions.",
        values: Values::Gauge(|shard| &shard.pool_bytes),
    },
    Family {
        name: "tidewheel_spare_bytes",
        help: "Memory kept for the next messages that come in pieces, and for the next replies.",
        values: Values::Gauges("direction", |shard| {
            vec![("in", &shard.spare_in_bytes), ("out", &shard.spare_out_bytes)]
        }),
    },
    Family {
        name: "tidewheel_inflater_bytes",
        help: "Memory of the connections whose compressed messages refer to each other.",
        values: Values::Gauge(|shard| &shard.inflater_bytes),
    },
    Family {
        name: "websocket_deflated_messages",
        help: "Compressions of messages for clients, by outcome; a publish once for each form of it.",
        values: Values::Counters("outcome", |shard| labelled(Deflated::ALL, Deflated::label, &shard.deflated)),
    },
    Family {
        name: "websocket_deflated_bytes",
        help: "Bytes of messages for clients that were compressed, before and after.",
        values: Values::Counters("form", |shard| {
            vec![("plain", &shard.deflated_from_bytes), ("compressed", &shard.deflated_to_bytes)]
        }),
    },
    Family {
        name: "websocket_inflated_messages",
        help: "Compressed messages of clients, by outcome.",
        values: Values::Counters("outcome", |shard| labelled(Inflated::ALL, Inflated::label, &shard.inflated)),
    },
    Family {
        name: "websocket_inflated_bytes",
        help: "Bytes of compressed messages of clients, before and after.",
        values: Values::Counters("form", |shard| {
            vec![("plain", &shard.inflated_to_bytes), ("compressed", &shard.inflated_from_bytes)]
        }),
    },
    Family {
        name: "tidewheel_tls_connections",
        help: "Connections that speak TLS now, handshakes included.",
        values: Values::Gauge(|shard| &shard.tls_connections),
    },
    Family {
        name: "tidewheel_tls_handshakes_waiting",
        help: "TLS handshakes whose next step waits for its share of a turn now.",
        values: Values::Gauge(|shard| &shard.tls_waiting),
    },
    Family {
        name: "tidewheel_tls_handshakes",
        help: "TLS handshakes, by outcome.",
        values: Values::Counters("outcome", |shard| {
            labelled(TlsHandshake::ALL, TlsHandshake::label, &shard.tls_handshakes)
        }),
    },
    Family {
        name: "tidewheel_tls_key_updates",
        help: "Key updates of TLS 1.3 that clients made.",
        values: Values::Counter(|shard| &shard.tls_key_updates),
    },
    Family {
        name: "tidewheel_connections_unflushed",
        help: "Connections whose messages leave, or which are closed, in a later turn: this one has made its sends.",
        values: Values::Gauge(|shard| &shard.unflushed),
    },
    Family {
        name: "tidewheel_publishers_in_line",
        help: "Connections whose publish waits for its turn and for room on the bus now.",
        values: Values::Gauge(|shard| &shard.in_line),
    },
    Family {
        name: "tidewheel_senders_in_line",
        help: "Connections whose input waits for a share of a turn now.",
        values: Values::Gauge(|shard| &shard.sharing),
    },
    Family {
        name: "tidewheel_sender_waits",
        help: "How often a connection had sent more than its share of a turn, and the rest had to wait for the next.",
        values: Values::Counter(|shard| &shard.shares),
    },
    Family {
        name: "tidewheel_receipts_waiting",
        help: "Publishes that wait for the counts of other shards now.",
        values: Values::Gauge(|shard| &shard.receipts_waiting),
    },
    Family {
        name: "tidewheel_parked_handlers",
        help: "Handler futures waiting for something now.",
        values: Values::Gauge(|shard| &shard.parked),
    },
    Family {
        name: "tidewheel_handler_timeouts",
        help: "Handlers given up because they took too long.",
        values: Values::Counter(|shard| &shard.handler_timeouts),
    },
    Family {
        name: "tidewheel_panics",
        help: "Panics caught, by what they took down.",
        values: Values::Counters("where", |shard| labelled(PanicSite::ALL, PanicSite::label, &shard.panics)),
    },
    Family {
        name: "tidewheel_shard_restarts",
        help: "Times a shard started again after a panic or with a new ring.",
        values: Values::Counter(|shard| &shard.restarts),
    },
    Family { name: "tidewheel_turns", help: "Turns of the loop.", values: Values::Counter(|shard| &shard.turns) },
    Family {
        name: "tidewheel_sends",
        help: "Sends submitted to the kernel.",
        values: Values::Counter(|shard| &shard.sends),
    },
    Family {
        name: "tidewheel_receives_starved",
        help: "Receives that found no free buffer.",
        values: Values::Counter(|shard| &shard.starved),
    },
    Family {
        name: "tidewheel_accept_stopped",
        help: "Times accepting stopped because a table was full.",
        values: Values::Counter(|shard| &shard.accept_stopped),
    },
    Family {
        name: "tidewheel_accept_paced",
        help: "Times accepting waited because newcomers came faster than limits.connections_per_second.",
        values: Values::Counter(|shard| &shard.accept_paced),
    },
    Family {
        name: "tidewheel_bus_full",
        help: "Times a publisher waited for room on the bus between shards.",
        values: Values::Counter(|shard| &shard.bus_full),
    },
    Family {
        name: "tidewheel_busy_polls",
        help: "Waits that polled before they slept.",
        values: Values::Counter(|shard| &shard.busy_polls),
    },
    Family {
        name: "tidewheel_busy_poll_hits",
        help: "Waits that polled and did not have to sleep.",
        values: Values::Counter(|shard| &shard.busy_poll_hits),
    },
    Family {
        name: "tidewheel_completion_queue_overflows",
        help: "Times completions overflowed into the kernel's own list.",
        values: Values::Counter(|shard| &shard.cq_overflow),
    },
    Family {
        name: "websocket_connection_duration_seconds",
        help: "Time from the upgrade to the end, of connections that ended.",
        values: Values::Histogram(|shard| shard.lifetime.read()),
    },
    Family {
        name: "websocket_handshake_duration_seconds",
        help: "Time from the accepted socket to the answer, of upgrades that succeeded.",
        values: Values::Histogram(|shard| shard.handshake.read()),
    },
    Family {
        name: "websocket_ping_rtt_seconds",
        help: "Time from a ping of the server to its pong.",
        values: Values::Histogram(|shard| shard.rtt.read()),
    },
    Family {
        name: "websocket_outbound_queue_frames",
        help: "Frames on a connection's queue when a turn flushes it.",
        values: Values::Histogram(|shard| shard.queue_frames.read()),
    },
    Family {
        name: "websocket_outbound_queue_bytes",
        help: "Bytes on a connection's queue when a turn flushes it.",
        values: Values::Histogram(|shard| shard.queue_bytes.read()),
    },
    Family {
        name: "websocket_receipt_duration_seconds",
        help: "Time from a publish to the counts of all shards, where others had to count.",
        values: Values::Histogram(|shard| shard.receipt.read()),
    },
    Family {
        name: "tidewheel_handler_duration_seconds",
        help: "Time a handler took: a sample of those that ended at once, and all that had to wait.",
        values: Values::Histograms("mode", |shard| {
            vec![("inline", shard.handler_inline.read()), ("parked", shard.handler_parked.read())]
        }),
    },
    Family {
        name: "tidewheel_turn_duration_seconds",
        help: "Time between two looks at the sockets in which the shard worked.",
        values: Values::Histogram(|shard| shard.turn.read()),
    },
    Family {
        name: "tidewheel_turn_events",
        help: "Completions of a turn.",
        values: Values::Histogram(|shard| shard.turn_events.read()),
    },
    Family {
        name: "tidewheel_timer_lag_seconds",
        help: "How late timers were acted on.",
        values: Values::Histogram(|shard| shard.timer_lag.read()),
    },
];

fn labelled<'s, T: Copy>(
    all: &[T],
    label: fn(T) -> &'static str,
    counters: &'s [Counter],
) -> Vec<(&'static str, &'s Counter)> {
    all.iter().map(|&value| label(value)).zip(counters).collect()
}
