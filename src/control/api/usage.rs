//! How much the API is used, for the metrics.
//! Law: the labels are the API's own paths and a closed list of outcomes, so callers cannot add series.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::once::Once;

/// What became of a request, roughly; the answer says it exactly.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// 2xx.
    Ok,
    /// 401 and 403.
    Denied,
    /// Any other 4xx.
    Refused,
    /// 5xx.
    Failed,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Ok, Self::Denied, Self::Refused, Self::Failed];

    fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Denied,
            _ if status.is_server_error() => Self::Failed,
            _ if status.is_client_error() => Self::Refused,
            _ => Self::Ok,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Denied => "denied",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Requests by path and outcome, and what idempotency keys did.
#[derive(Debug)]
pub(super) struct Usage {
    endpoints: Vec<(String, [AtomicU64; Outcome::ALL.len()])>,
    once: Arc<Once>,
}

impl Usage {
    pub(super) fn new(paths: impl Iterator<Item = String>, once: Arc<Once>) -> Self {
        Self { endpoints: paths.map(|path| (path, Default::default())).collect(), once }
    }

    pub(super) fn count(&self, path: &str, status: StatusCode) {
        if let Some((_, counts)) = self.endpoints.iter().find(|(endpoint, _)| endpoint == path) {
            counts[Outcome::of(status) as usize].fetch_add(1, Relaxed);
        }
    }
}

impl Collector for Usage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests to the admin API, by path and outcome.";
        let mut metric = encoder.encode_descriptor("tidewheel_api_requests", help, None, MetricType::Counter)?;
        for (path, counts) in &self.endpoints {
            for (outcome, count) in Outcome::ALL.into_iter().zip(counts) {
                let labels = [("endpoint", path.as_str()), ("outcome", outcome.label())];
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&count.load(Relaxed), None)?;
            }
        }
        let help = "Idempotency keys: answers given again, keys used for another request, answers forgotten early.";
        let mut metric = encoder.encode_descriptor("tidewheel_api_idempotency", help, None, MetricType::Counter)?;
        let counts = &self.once.counts;
        let events =
            [("replayed", &counts.replayed), ("conflict", &counts.conflicts), ("forgotten", &counts.forgotten)];
        events.into_iter().try_for_each(|(event, count)| {
            metric
                .encode_family(&[("event", event)])?
                .encode_counter::<NoLabelSet, u64, u64>(&count.load(Relaxed), None)
        })
    }
}
