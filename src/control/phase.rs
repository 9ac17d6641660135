//! How far the engine is between its start and its end.
//! Law: it only moves forward, so that a late "ready" cannot undo a drain, and a drain's deadline only comes nearer.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

/// The stations of an engine's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not yet accepting.
    Starting,
    /// Accepting and serving.
    Ready,
    /// On the way to the end: not to be sent newcomers any more, and after a while not accepting any.
    Draining,
    /// Nothing is served any more.
    Stopped,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: &'static [Self] = &[Self::Starting, Self::Ready, Self::Draining, Self::Stopped];

    /// The stage's label in metrics and answers.
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// The engine's stage, shared between the engine, which advances it, and those who ask.
#[derive(Debug, Default)]
pub struct Phase {
    stage: AtomicU8,
    /// Unix time in milliseconds when the drain ends at the latest; 0: no drain.
    deadline_ms: AtomicU64,
    drains: Notify,
}

impl Phase {
    /// Moves on to `stage`; nothing happens if the engine is there or further already.
    pub fn advance(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Relaxed);
    }

    /// Moves on to the drain, which ends within `time`.
    pub fn drain_within(&self, time: Duration) {
        let deadline_ms = unix_ms().saturating_add(time.as_millis() as u64).max(1);
        let sooner = |now_ms| (now_ms == 0 || deadline_ms < now_ms).then_some(deadline_ms);
        let _ = self.deadline_ms.fetch_update(Relaxed, Relaxed, sooner); // an earlier one stays
        self.advance(Stage::Draining);
        self.drains.notify_one();
    }

    /// The stage now.
    pub fn get(&self) -> Stage {
        Stage::ALL[usize::from(self.stage.load(Relaxed))]
    }

    /// Unix time in milliseconds when the drain ends at the latest, once there is one.
    pub fn deadline_ms(&self) -> Option<u64> {
        Some(self.deadline_ms.load(Relaxed)).filter(|&deadline_ms| deadline_ms > 0)
    }

    /// How much time a drain has left.
    pub fn left(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.deadline_ms()?.saturating_sub(unix_ms())))
    }

    /// Waits for the drain. For one task.
    pub(super) async fn drains(&self) {
        while self.deadline_ms().is_none() {
            self.drains.notified().await;
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(steps: &[Stage], expected: Stage) {
        let phase = Phase::default();
        steps.iter().for_each(|&stage| phase.advance(stage));
        assert_eq!(phase.get(), expected);
    }

    #[test]
    fn only_moves_forward() {
        use Stage::*;
        check(&[], Starting);
        check(&[Ready], Ready);
        check(&[Ready, Draining, Ready], Draining);
        check(&[Draining, Starting], Draining);
        check(&[Ready, Draining, Stopped, Draining], Stopped);
    }

    #[test]
    fn the_deadline_only_comes_nearer() {
        let phase = Phase::default();
        assert_eq!((phase.deadline_ms(), phase.left()), (None, None));
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let check = |order, expected| {
            phase.drain_within(minutes(order));
            let left = phase.left().unwrap();
            assert!(left <= minutes(expected) && left > minutes(expected - 1), "{left:?}");
            assert_eq!(phase.get(), Stage::Draining);
        };
        check(20, 20);
        check(30, 20);
        check(10, 10);
    }
}
