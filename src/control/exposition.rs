//! The counters as OpenMetrics text.
//! Law: every shard's books balance in every scrape: opened = active + the sum of closed by reason.
//!
//! Only counters and gauges are written, so that readers of the older Prometheus text format understand it too.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::logging;
use super::phase::{Phase, Stage};
use crate::metrics::{CloseReason, Counter, Drop, ErrorCode, Refusal, ShardMetrics};

/// All that a scrape answers with.
pub(super) struct Exposition(Registry);

impl Exposition {
    pub(super) fn new(shards: Vec<Arc<ShardMetrics>>, phase: Arc<Phase>) -> Self {
        let start_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Engine { shards, phase, start_time }));
        Self(registry)
    }

    /// The text of one scrape.
    pub(super) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct Engine {
    shards: Vec<Arc<ShardMetrics>>,
    phase: Arc<Phase>,
    /// Unix time in seconds.
    start_time: f64,
}

impl Collector for Engine {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.encode_books(&mut page)?;
        for family in FAMILIES {
            self.encode_family(&mut page, family)?;
        }
        self.encode_process(&mut page)
    }
}

impl Engine {
    /// The families that must add up, from one reading of each shard.
    fn encode_books(&self, page: &mut Page<'_>) -> fmt::Result {
        let names: Vec<String> = (0..self.shards.len()).map(|shard| shard.to_string()).collect();
        let books: Vec<(&str, Books)> =
            names.iter().zip(&self.shards).map(|(name, shard)| (name.as_str(), Books::read(shard))).collect();

        let samples = books.iter().map(|(shard, books)| ([("shard", *shard)], books.active()));
        page.gauges("active_websocket_connections", "Connections that have a slot now.", samples)?;
        let samples = books.iter().map(|(shard, books)| ([("shard", *shard)], books.opened));
        page.counters("websocket_connections_opened", "Connections admitted.", samples)?;
        let samples = books.iter().flat_map(|(shard, books)| {
            let reasons = CloseReason::ALL.iter().zip(books.closed);
            reasons.map(|(reason, closed)| ([("shard", *shard), ("reason", reason.label())], closed))
        });
        page.counters("websocket_connections_closed", "Connections ended, by reason.", samples)
    }

    fn encode_family(&self, page: &mut Page<'_>, family: &Family) -> fmt::Result {
        let shards = self.shards.iter().enumerate().map(|(index, shard)| (index.to_string(), shard));
        match family.values {
            Values::Gauge(read) => {
                let samples = shards.map(|(name, shard)| ([("shard", name)], read(shard).get()));
                page.gauges(family.name, family.help, samples)
            }
            Values::Counter(read) => {
                let samples = shards.map(|(name, shard)| ([("shard", name)], read(shard).get()));
                page.counters(family.name, family.help, samples)
            }
            Values::Counters(label, read) => {
                let samples = shards.flat_map(|(name, shard)| {
                    let values = read(shard).into_iter();
                    values
                        .map(move |(value, counter)| ([("shard", name.clone()), (label, value.into())], counter.get()))
                });
                page.counters(family.name, family.help, samples)
            }
        }
    }

    fn encode_process(&self, page: &mut Page<'_>) -> fmt::Result {
        let now = self.phase.get();
        let stages = Stage::ALL.iter().map(|&stage| ([("phase", stage.label())], u64::from(stage == now)));
        page.gauges("tidewheel_phase", "1 for the phase the engine is in, 0 for the others.", stages)?;
        let help = "Log lines dropped because stderr took no more.";
        let mut metric = page.0.encode_descriptor("tidewheel_log_lines_lost", help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, u64>(&logging::lost_lines(), None)?;
        let version = ([("version", env!("CARGO_PKG_VERSION"))], 1);
        page.gauges("tidewheel_build_info", "Always 1; the labels say what was built.", [version])?;
        page.gauge("process_start_time_seconds", "Unix time of the start.", &self.start_time)?;
        if let Some(bytes) = resident_memory_bytes() {
            page.gauge("process_resident_memory_bytes", "Resident memory.", &bytes)?;
        }
        if let Some(count) = open_fds() {
            let help = "Open descriptors of the process; a ring's own table is not among them.";
            page.gauge("process_open_fds", help, &count)?;
        }
        Ok(())
    }
}

/// One shard's connections, read so that they add up although the shard goes on counting.
struct Books {
    opened: u64,
    closed: [u64; CloseReason::ALL.len()],
}

impl Books {
    fn read(shard: &ShardMetrics) -> Self {
        let closed: [u64; CloseReason::ALL.len()] = std::array::from_fn(|reason| shard.closed[reason].get());
        // Whoever is closed was opened before, but relaxed reads may see the one without the other.
        let opened = shard.opened.get().max(closed.iter().sum());
        Self { opened, closed }
    }

    fn active(&self) -> u64 {
        self.opened - self.closed.iter().sum::<u64>()
    }
}

/// A metric family whose samples come straight from each shard's counters.
struct Family {
    /// Without the `_total` that a counter's samples get.
    name: &'static str,
    help: &'static str,
    values: Values,
}

enum Values {
    Gauge(fn(&ShardMetrics) -> &Counter),
    Counter(fn(&ShardMetrics) -> &Counter),
    /// Counters with one more label: its name, then each value with its counter.
    Counters(&'static str, fn(&ShardMetrics) -> Vec<(&'static str, &Counter)>),
}

/// Writes families: a description, then the samples.
struct Page<'e>(DescriptorEncoder<'e>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: &impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(value)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        samples.into_iter().try_for_each(|(labels, value)| metric.encode_family(&labels)?.encode_gauge(&value))
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
        })
    }
}

/// From `/proc/self/status`, which gives kibibytes and needs no page size.
fn resident_memory_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()? * 1024)
}

/// The kernel says the number as the size of the directory since 6.2; before, the entries are counted.
fn open_fds() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}

/// The `Content-Type` of [`Exposition::encode`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const FAMILIES: &[Family] = &[
    Family {
        name: "websocket_upgrades",
        help: "Upgrades that succeeded.",
        values: Values::Counter(|shard| &shard.upgraded),
    },
    Family {
        name: "websocket_connections_cut",
        help: "Connections cut at the drain's deadline, part of those closed.",
        values: Values::Counter(|shard| &shard.cut),
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
        name: "tidewheel_parked_handlers",
        help: "Handler futures waiting for something now.",
        values: Values::Gauge(|shard| &shard.parked),
    },
    Family {
        name: "tidewheel_handler_panics",
        help: "Handler panics caught.",
        values: Values::Counter(|shard| &shard.panics),
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
        name: "tidewheel_bus_full",
        help: "Times a publisher waited for room on the bus between shards.",
        values: Values::Counter(|shard| &shard.bus_full),
    },
    Family {
        name: "tidewheel_completion_queue_overflows",
        help: "Times completions overflowed into the kernel's own list.",
        values: Values::Counter(|shard| &shard.cq_overflow),
    },
];

fn labelled<'s, T: Copy>(
    all: &[T],
    label: fn(T) -> &'static str,
    counters: &'s [Counter],
) -> Vec<(&'static str, &'s Counter)> {
    all.iter().map(|&value| label(value)).zip(counters).collect()
}
