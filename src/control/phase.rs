//! How far the engine is between its start and its end.
//! Law: it only moves forward, so that a late "ready" cannot undo a drain.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// The stations of an engine's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not yet accepting.
    Starting,
    /// Accepting and serving.
    Ready,
    /// Serving what is connected, refusing newcomers, on the way to the end.
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
pub struct Phase(AtomicU8);

impl Phase {
    /// Moves on to `stage`; nothing happens if the engine is there or further already.
    pub fn advance(&self, stage: Stage) {
        self.0.fetch_max(stage as u8, Relaxed);
    }

    /// The stage now.
    pub fn get(&self) -> Stage {
        Stage::ALL[usize::from(self.0.load(Relaxed))]
    }
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
}
