//! How far a drain is, for the log and for whoever asks.
//! Law: it looks at counters and at the phase; it waits for no shard.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::phase::{Phase, Stage};
use crate::metrics::{Counter, ShardMetrics};

/// A drain's progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Progress {
    phase: &'static str,
    /// Connections that are still there.
    connections_left: u64,
    /// See [`ShardMetrics::closed_cleanly`].
    closed_cleanly: u64,
    /// See [`ShardMetrics::cut`].
    cut: u64,
    /// See [`ShardMetrics::unsent_bytes`].
    unsent_bytes: u64,
    /// Until everyone is cut; `None` before a drain.
    deadline_in_ms: Option<u64>,
}

impl Progress {
    pub(super) fn read(shards: &[Arc<ShardMetrics>], phase: &Phase) -> Self {
        let sum = |count: fn(&ShardMetrics) -> &Counter| shards.iter().map(|shard| count(shard).get()).sum();
        Self {
            phase: phase.get().label(),
            connections_left: shards.iter().map(|shard| shard.active()).sum(),
            closed_cleanly: sum(|shard| &shard.closed_cleanly),
            cut: sum(|shard| &shard.cut),
            unsent_bytes: sum(|shard| &shard.unsent_bytes),
            deadline_in_ms: phase.left().map(|left| left.as_millis() as u64),
        }
    }
}

/// Writes how far a drain is, as long as there is one.
pub(super) async fn log_progress(shards: Vec<Arc<ShardMetrics>>, phase: Arc<Phase>) {
    phase.drains().await;
    let Progress { connections_left: connections, deadline_in_ms, .. } = Progress::read(&shards, &phase);
    tracing::info!(connections, deadline_ms = deadline_in_ms, "draining");
    loop {
        tokio::time::sleep(LOG_PAUSE).await;
        if phase.get() != Stage::Draining {
            return;
        }
        let Progress { connections_left: left, closed_cleanly, cut, deadline_in_ms, .. } =
            Progress::read(&shards, &phase);
        tracing::info!(left, closed_cleanly, cut, deadline_ms = deadline_in_ms, "draining");
    }
}

const LOG_PAUSE: Duration = Duration::from_secs(3);
