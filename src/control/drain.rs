//! How a drain begins, whoever wants one, and how far it is.
//! Law: a drain is placed with all shards or not at all; progress is read from counters and the phase; nothing here waits
//! for a shard.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::phase::{Phase, Stage};
use super::running::Running;
use crate::config::{Drain, Problems};
use crate::metrics::{Counter, ShardMetrics};
use crate::shard::DrainOrder;

/// Begins drains, from any thread.
#[derive(Debug)]
pub struct Drains {
    running: Arc<Running>,
    phase: Arc<Phase>,
    metrics: Vec<Arc<ShardMetrics>>,
}

impl Drains {
    /// For the shards of this configuration, which end as it says unless somebody says otherwise.
    pub fn new(running: Arc<Running>, phase: Arc<Phase>, metrics: Vec<Arc<ShardMetrics>>) -> Self {
        Self { running, phase, metrics }
    }

    /// What the configuration says now.
    pub fn configured(&self) -> Drain {
        self.running.config().drain.clone()
    }

    /// Drains as configured.
    pub fn begin(&self) {
        self.begin_by(DrainOrder::new(&self.configured()));
    }

    /// Drains in another way.
    ///
    /// # Errors
    /// It contradicts itself; nothing has begun.
    pub fn begin_with(&self, drain: &Drain) -> Result<(), Problems> {
        drain.validate()?;
        self.begin_by(DrainOrder::new(drain));
        Ok(())
    }

    /// Says that the engine drains, and tells the shards.
    pub fn begin_by(&self, order: DrainOrder) {
        self.announce(order.deadline_ms);
        for inbox in self.running.shards().inboxes() {
            inbox.drain(order);
        }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress::read(&self.metrics, &self.phase)
    }

    /// Says that the engine drains, which is so soon.
    pub(super) fn announce(&self, deadline_ms: u64) {
        self.phase.drain_within(Duration::from_millis(deadline_ms));
    }
}

/// How far a drain is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = DrainProgress)]
pub(super) struct Progress {
    /// Before a drain `ready`, then `draining`.
    phase: &'static str,
    /// Connections that are still there.
    connections_left: u64,
    /// Connections that the drain closed with everything sent and the peer's side ended.
    closed_cleanly: u64,
    /// Connections that the drain ended otherwise.
    cut: u64,
    /// Bytes queued for those that the kernel had not taken.
    unsent_bytes: u64,
    /// Milliseconds until who is left is cut; missing before a drain.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    deadline_in_ms: Option<u64>,
}

impl Progress {
    fn read(shards: &[Arc<ShardMetrics>], phase: &Phase) -> Self {
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
pub(super) async fn log_progress(drains: Arc<Drains>) {
    drains.phase.drains().await;
    let Progress { connections_left: connections, deadline_in_ms, .. } = drains.progress();
    tracing::info!(connections, deadline_ms = deadline_in_ms, "draining");
    loop {
        tokio::time::sleep(LOG_PAUSE).await;
        if drains.phase.get() != Stage::Draining {
            return;
        }
        let Progress { connections_left: left, closed_cleanly, cut, deadline_in_ms, .. } = drains.progress();
        tracing::info!(left, closed_cleanly, cut, deadline_ms = deadline_in_ms, "draining");
    }
}

const LOG_PAUSE: Duration = Duration::from_secs(3);
