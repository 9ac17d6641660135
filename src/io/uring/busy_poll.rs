//! How a shard waits that has nothing to do: asleep in the kernel, or for a moment awake.
//! Law: it polls for no longer than was asked for; with zero, the default, a wait is one sleep.
//!
//! A sleep costs a switch of contexts and an interrupt, which is most of what one message at a time costs; polling costs the core.
//! So a shard polls only as long as it pays: while its last waits were shorter than it would poll for.

use std::time::Duration;

/// Whether polling pays.
#[derive(Debug, Default)]
pub(super) struct BusyPoll {
    most_ns: u64,
    /// A moving mean of how long it took until something was there.
    wait_ns: u64,
}

impl BusyPoll {
    pub(super) fn new(most: Duration) -> Self {
        Self { most_ns: u64::try_from(most.as_nanos()).unwrap_or(u64::MAX / 2), wait_ns: 0 }
    }

    /// For how many nanoseconds to poll now.
    pub(super) fn budget_ns(&self) -> u64 {
        if self.wait_ns < self.most_ns { self.most_ns } else { 0 }
    }

    /// Something was there after so long. A long wait counts for no more than twice the budget, so that after a quiet night a
    /// few short ones are enough.
    pub(super) fn note(&mut self, waited_ns: u64) {
        let waited_ns = waited_ns.min(self.most_ns.saturating_mul(2));
        self.wait_ns = self.wait_ns - self.wait_ns / WEIGHT + waited_ns / WEIGHT;
    }
}

/// One wait counts for an eighth of the mean.
const WEIGHT: u64 = 8;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::id::ShardId;
    use crate::io::bell::Bell;
    use crate::io::uring::{ReceiveMode, Uring, UringConfig};
    use crate::io::{Io, Wait};

    /// What is polled for after each of these waits, in microseconds, of at most 50.
    #[track_caller]
    fn check(waits_us: &[u64], polls: &[bool]) {
        let mut busy_poll = BusyPoll::new(Duration::from_micros(50));
        let budgets = waits_us.iter().map(|&wait| {
            busy_poll.note(wait * 1000);
            busy_poll.budget_ns() == 50_000
        });
        assert_eq!(budgets.collect::<Vec<_>>(), polls, "{waits_us:?}");
    }

    #[test]
    fn polls_while_it_pays() {
        check(&[10, 49, 10], &[true, true, true]);
        check(&[100_000_000; 6], &[true, true, true, true, true, false]);
        let long_and_short = [vec![100_000_000; 50], vec![5; 8]].concat();
        let expected = [vec![true; 5], vec![false; 45], vec![false; 5], vec![true; 3]].concat();
        check(&long_and_short, &expected);
    }

    #[test]
    fn without_a_budget_it_never_polls() {
        let mut never = BusyPoll::new(Duration::ZERO);
        assert_eq!(never.budget_ns(), 0);
        never.note(0);
        assert_eq!(never.budget_ns(), 0);
    }

    /// Whoever waits for a deadline polls first and sleeps for the rest, and does not sleep for all of it after that.
    #[test]
    fn polling_makes_no_deadline_late() {
        let (polled, timeout) = (Duration::from_millis(40), Duration::from_millis(60));
        let mut io = Uring::new(UringConfig {
            table: 4,
            buffers: 1,
            buffer_size: 64,
            mode: ReceiveMode::Recv,
            busy_poll: polled,
            listeners: Vec::new(),
            bells: Arc::from([Arc::new(Bell::new().unwrap())]),
            shard: ShardId(0),
        })
        .unwrap();
        let mut wait = || {
            let begin = Instant::now();
            io.wait(Wait::AtMost(timeout)).unwrap();
            begin.elapsed()
        };
        // This thread may have to wait for a core: one of many that is in time is enough, and with the mistake none would be.
        let tries = (1..=50).find(|_| (timeout..polled + timeout).contains(&wait()));
        let tries = tries.expect("a wait that ends in time");
        assert_eq!((io.counters().busy_polls, io.counters().busy_poll_hits), (tries, 0));
    }
}
