//! The counters as OpenMetrics text.
//! Law: every shard's books balance in every scrape: opened = active + the sum of closed by reason.
//!
//! A label's values are those of its enum: one that is added there appears here by itself. Only counters, gauges and
//! histograms are written, so that readers of the older Prometheus text format understand it too.

mod families;
mod process;
mod text;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::NoLabelSet;
use prometheus_client::encoding::{self, DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Running;
use super::keys::Outcome;
use super::logging;
use super::phase::{Phase, Stage};
use super::running::Reloads;
use crate::metrics::{CloseReason, Counter, Distribution, ShardMetrics};
use families::{FAMILIES, Family, Values};

/// All that a scrape answers with.
pub(super) struct Exposition(Registry);

impl Exposition {
    pub(super) fn new(
        shards: Vec<Arc<ShardMetrics>>,
        phase: Arc<Phase>,
        holdings: ReadHoldings,
        running: Arc<Running>,
        api: Box<dyn Collector>,
    ) -> Self {
        let start_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Engine { shards, phase, holdings, running, start_time }));
        registry.register_collector(api);
        Self(registry)
    }

    /// One scrape, as OpenMetrics if the reader's `Accept` names it, else in the older format of Prometheus: its
    /// `Content-Type` and its text.
    pub(super) fn encode(&self, accept: &str) -> Result<(&'static str, String), fmt::Error> {
        let mut written = String::new();
        encoding::text::encode(&mut written, &self.0)?;
        let open_metrics = text::canonical(&written);
        Ok(match accept.contains("application/openmetrics-text") {
            true => (OPEN_METRICS, open_metrics),
            false => (PLAIN, text::plain(&open_metrics)),
        })
    }
}

/// What a scrape asks of the engine, beyond what its shards count.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// Clients that have an entry in the list of who has which connections.
    pub clients: u64,
    /// Addresses that have one, of those that do not authenticate.
    pub addresses: u64,
    /// Publishes that may wait between two shards.
    pub bus_bound: u64,
    /// Publishes of others that wait for each shard, in shard order.
    pub bus_depths: Vec<u64>,
}

/// Looks at the engine; called on the control thread, once a scrape.
pub type ReadHoldings = Box<dyn Fn() -> Holdings + Send + Sync>;

struct Engine {
    shards: Vec<Arc<ShardMetrics>>,
    phase: Arc<Phase>,
    holdings: ReadHoldings,
    running: Arc<Running>,
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
        self.encode_holdings(&mut page)?;
        self.encode_key_sets(&mut page)?;
        self.encode_certificates(&mut page)?;
        self.encode_threads(&mut page)?;
        encode_process(&mut page, self.start_time)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("shards", &self.shards.len()).finish_non_exhaustive()
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
            Values::Gauges(label, read) => {
                let samples = shards.flat_map(|(name, shard)| with_label(name, label, read(shard)));
                page.gauges(family.name, family.help, samples)
            }
            Values::Counter(read) => {
                let samples = shards.map(|(name, shard)| ([("shard", name)], read(shard).get()));
                page.counters(family.name, family.help, samples)
            }
            Values::Counters(label, read) => {
                let samples = shards.flat_map(|(name, shard)| with_label(name, label, read(shard)));
                page.counters(family.name, family.help, samples)
            }
            Values::Histogram(read) => {
                let samples = shards.map(|(name, shard)| ([("shard", name)], read(shard)));
                page.histograms(family.name, family.help, samples)
            }
            Values::Histograms(label, read) => {
                let samples = shards.flat_map(|(name, shard)| {
                    let values = read(shard).into_iter();
                    values.map(move |(value, read)| ([("shard", name.clone()), (label, value.into())], read))
                });
                page.histograms(family.name, family.help, samples)
            }
        }
    }

    fn encode_drain(&self, page: &mut Page<'_>) -> fmt::Result {
        let deadline_ms = self.phase.deadline_ms();
        let left: u64 = self.shards.iter().filter(|_| deadline_ms.is_some()).map(|shard| shard.active()).sum();
        page.gauge(
            "tidewheel_drain_connections_left",
            "Connections that a drain has still to end; 0 without one.",
            &left,
        )?;
        let help = "Unix time when the drain ends at the latest; 0 without one.";
        page.gauge("tidewheel_drain_deadline_timestamp_seconds", help, &(deadline_ms.unwrap_or(0) as f64 / 1000.0))
    }

    /// What is the engine's as a whole.
    fn encode_holdings(&self, page: &mut Page<'_>) -> fmt::Result {
        let Holdings { clients, addresses, bus_bound, bus_depths } = (self.holdings)();
        let help = "Connections that the engine may hold, on all shards together.";
        page.gauge("websocket_connections_max", help, &self.running.settings().connections_max)?;
        page.gauge("tidewheel_clients", "Clients in the list of who has which connections.", &clients)?;
        let help = "Addresses in the list of those whose connections do not authenticate.";
        page.gauge("tidewheel_client_addresses", help, &addresses)?;
        let depths = bus_depths.into_iter().enumerate().map(|(shard, depth)| ([("shard", shard.to_string())], depth));
        page.gauges("tidewheel_bus_depth", "Publishes of other shards that wait for this one.", depths)?;
        page.gauge("tidewheel_bus_depth_max", "Publishes that may wait from one shard to another.", &bus_bound)?;
        let now = self.phase.get();
        let stages = Stage::ALL.iter().map(|&stage| ([("phase", stage.label())], u64::from(stage == now)));
        page.gauges("tidewheel_phase", "1 for the phase the engine is in, 0 for the others.", stages)?;
        self.encode_drain(page)?;
        let Reloads { applied, refused, last_success_s } = &self.running.counts;
        let outcomes = [([("outcome", "applied")], applied), ([("outcome", "refused")], refused)];
        let outcomes = outcomes.map(|(label, count)| (label, count.load(Relaxed)));
        page.counters("tidewheel_config_reloads", "Reloads of the configuration, by what became of them.", outcomes)?;
        let help = "Unix time of the last reload that was taken up, or of the start.";
        let last_success_s = last_success_s.load(Relaxed);
        page.gauge("tidewheel_config_last_reload_success_timestamp_seconds", help, &last_success_s)?;
        let help = "Log lines dropped because stderr took no more.";
        page.counter("tidewheel_log_lines_lost", help, &logging::lost_lines())?;
        let version = ([("version", env!("CARGO_PKG_VERSION"))], 1);
        page.gauges("tidewheel_build_info", "Always 1; the labels say what was built.", [version])
    }

    /// Where keys for tokens come from, if anywhere: a family has samples.
    fn encode_key_sets(&self, page: &mut Page<'_>) -> fmt::Result {
        let sources = self.running.key_sources();
        if sources.is_empty() {
            return Ok(());
        }
        let sources = || sources.iter().enumerate().map(|(index, source)| (index.to_string(), source));
        let samples = sources().map(|(index, source)| ([("source", index)], source.keys()));
        page.gauges("tidewheel_jwks_keys", "Keys of the set in use.", samples)?;
        let help = "Unix time when the source was last looked at and good; 0: never.";
        let samples =
            sources().map(|(index, source)| ([("source", index)], source.counts.last_success_s.load(Relaxed)));
        page.gauges("tidewheel_jwks_last_success_timestamp_seconds", help, samples)?;
        let samples = sources().flat_map(|(index, source)| {
            let counts = Outcome::ALL.iter().zip(&source.counts.outcomes);
            let labels = move |outcome: &Outcome| [("source", index.clone()), ("outcome", outcome.label().to_owned())];
            counts.map(move |(outcome, count)| (labels(outcome), count.load(Relaxed)))
        });
        page.counters("tidewheel_jwks_fetches", "Looks at the source of a key set, by what became of them.", samples)
    }

    /// When certificates end, if there are any: as many as the configuration names.
    fn encode_certificates(&self, page: &mut Page<'_>) -> fmt::Result {
        let ends_s = self.running.certificate_ends_s();
        if ends_s.is_empty() {
            return Ok(());
        }
        let help = "Unix time when the certificate that the TLS ports show ends.";
        let samples = ends_s.iter().enumerate().map(|(index, end_s)| ([("certificate", index.to_string())], *end_s));
        page.gauges("tidewheel_tls_certificate_expiry_timestamp_seconds", help, samples)
    }

    /// What the kernel says of the shards' threads.
    fn encode_threads(&self, page: &mut Page<'_>) -> fmt::Result {
        let times = |shard: &ShardMetrics| process::thread_times(shard.thread.get()).unwrap_or_default();
        let (ran, waited): (Vec<_>, Vec<_>) = self.shards.iter().map(|shard| times(shard)).unzip();
        for (name, help, times) in [
            ("tidewheel_shard_cpu_seconds", "Processor time of the shard's thread.", ran),
            ("tidewheel_shard_cpu_wait_seconds", "Time the shard's thread could have run but had no core.", waited),
        ] {
            let samples = times.iter().enumerate();
            page.counters(
                name,
                help,
                samples.map(|(shard, time)| ([("shard", shard.to_string())], time.as_secs_f64())),
            )?;
        }
        Ok(())
    }
}

/// A shard's samples of a family with one more label.
fn with_label(
    shard: String,
    label: &'static str,
    values: Vec<(&'static str, &Counter)>,
) -> impl Iterator<Item = ([(&'static str, String); 2], u64)> {
    let values = values.into_iter().map(|(value, counter)| (value, counter.get()));
    values.map(move |(value, count)| ([("shard", shard.clone()), (label, value.into())], count))
}

/// The names that every exporter gives these.
fn encode_process(page: &mut Page<'_>, start_time: f64) -> fmt::Result {
    page.gauge("process_start_time_seconds", "Unix time of the start.", &start_time)?;
    if let Some(seconds) = process::cpu_seconds() {
        page.counter("process_cpu_seconds", "Processor time, user and system.", &seconds)?;
    }
    let resident = process::memory_bytes("VmRSS");
    let virtual_ = process::memory_bytes("VmSize");
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Resident memory.", resident),
        ("process_virtual_memory_bytes", "Address space.", virtual_),
        (
            "process_open_fds",
            "Open descriptors; those in the rings' own tables are not among them.",
            process::open_fds(),
        ),
        ("process_max_fds", "Descriptors that may be open.", process::max_fds()),
        ("process_threads", "Threads.", process::threads()),
    ] {
        if let Some(value) = value {
            page.gauge(name, help, &value)?;
        }
    }
    Ok(())
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

/// Writes families: a description, then the samples.
struct Page<'e>(DescriptorEncoder<'e>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: &impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(value)
    }

    fn counter(&mut self, name: &str, help: &str, value: &impl EncodeCounterValue) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(value, None)
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

    fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, V, u64>(&value, None)
        })
    }

    fn histograms<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, Distribution)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            let mut metric = metric.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(value.sum, value.count(), &value.buckets, None)
        })
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests;
