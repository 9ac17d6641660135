//! When messages of a run with a rate are due, and which of them are measured.
//! Law: what was due in the window is measured, whenever it leaves and whenever it is answered: a server that stalls as the
//! window ends makes messages late, not fewer.

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};

/// Something that happens so often a second.
#[derive(Default)]
pub(super) struct Schedule {
    began_ns: u64,
    done: u64,
}

impl Schedule {
    /// The first is due now.
    pub(super) fn begin(&mut self, now_ns: u64) {
        self.began_ns = now_ns;
    }

    /// How many were taken.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// When the next is due.
    pub(super) fn next_ns(&self, per_second: f64) -> Option<u64> {
        (per_second > 0.0).then(|| self.due_ns(self.done, per_second))
    }

    /// When it was due, if it is by now.
    pub(super) fn take(&mut self, per_second: f64, now_ns: u64) -> Option<u64> {
        let due_ns = self.next_ns(per_second).filter(|due_ns| *due_ns <= now_ns)?;
        self.done += 1;
        Some(due_ns)
    }

    /// The one that was just taken cannot be done yet: it is taken again later, and was due when it was.
    pub(super) fn put_back(&mut self) {
        self.done -= 1;
    }

    /// How many are due before this time, those included that were taken.
    pub(super) fn due_before(&self, per_second: f64, end_ns: u64) -> u64 {
        if per_second <= 0.0 {
            return self.done;
        }
        let mut count = (end_ns.saturating_sub(self.began_ns) as f64 * per_second / 1e9) as u64;
        // Floating point may be one off; what is taken decides.
        while count > 0 && self.due_ns(count - 1, per_second) >= end_ns {
            count -= 1;
        }
        while self.due_ns(count, per_second) < end_ns {
            count += 1;
        }
        count.max(self.done)
    }

    fn due_ns(&self, number: u64, per_second: f64) -> u64 {
        self.began_ns + (number as f64 * 1e9 / per_second) as u64
    }
}

/// The time that is measured, on the clock of this process: the same for all threads of a run, so that it does not depend on
/// which of them sends and which receives.
#[derive(Debug)]
pub(super) struct Window {
    begin_ns: AtomicU64,
    end_ns: AtomicU64,
}

impl Default for Window {
    /// One that has not begun.
    fn default() -> Self {
        Self { begin_ns: AtomicU64::new(u64::MAX), end_ns: AtomicU64::new(u64::MAX) }
    }
}

impl Window {
    pub(super) fn begin(&self, now_ns: u64) {
        self.begin_ns.store(now_ns, Ordering::Release);
    }

    /// Returns how long it was.
    pub(super) fn end(&self, now_ns: u64) -> Duration {
        self.end_ns.store(now_ns, Ordering::Release);
        Duration::from_nanos(now_ns.saturating_sub(self.begin_ns.load(Ordering::Acquire)))
    }

    /// When it ended; never, if it has not.
    pub(super) fn end_ns(&self) -> u64 {
        self.end_ns.load(Ordering::Acquire)
    }

    /// The time by which what leaves now was due: this time, and after the end what was due before it.
    pub(super) fn due_by(&self, now_ns: u64) -> u64 {
        now_ns.min(self.end_ns() - 1)
    }

    /// Whether a message is measured: where there is a rate one that was due in the window, else one that came in it.
    pub(super) fn measures(&self, has_rate: bool, due_ns: u64, came_ns: u64) -> bool {
        self.has(if has_rate { due_ns } else { came_ns })
    }

    fn has(&self, at_ns: u64) -> bool {
        (self.begin_ns.load(Ordering::Acquire)..self.end_ns()).contains(&at_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A schedule of one in 10 ns that began at 1,000 ns.
    fn schedule() -> Schedule {
        let mut schedule = Schedule::default();
        schedule.begin(1_000);
        schedule
    }
    const RATE: f64 = 1e8;

    /// The server takes nothing from 1,250 ns on; the window ends at 1,300 ns.
    #[test]
    fn what_was_due_before_the_end_leaves_after_it_and_is_measured() {
        let (mut schedule, window) = (schedule(), Window::default());
        let mut take = |until_ns: u64| std::iter::from_fn(|| schedule.take(RATE, until_ns)).collect::<Vec<_>>();
        let before = take(window.due_by(1_095));
        window.begin(1_100);
        let within = take(window.due_by(1_250));
        assert_eq!(window.end(1_300), Duration::from_nanos(200));
        let after = take(window.due_by(9_000));
        assert_eq!(after, [1_260, 1_270, 1_280, 1_290]);
        assert!(!before.into_iter().any(|due_ns| window.has(due_ns)), "it was due before the window");
        assert!(within.into_iter().chain(after).all(|due_ns| window.has(due_ns)));
        assert!(!window.has(1_300));
        assert_eq!((schedule.done(), schedule.due_before(RATE, window.end_ns())), (30, 30));
    }

    #[test]
    fn with_a_rate_counts_when_it_was_due_and_without_one_when_it_came() {
        let window = Window::default();
        window.begin(1_000);
        window.end(2_000);
        for (due_ns, came_ns, with_rate, without) in [
            (999, 1_000, false, true),
            (1_000, 1_999, true, true),
            (1_999, 2_000, true, false),
            (2_000, 2_001, false, false),
        ] {
            let measured = [true, false].map(|has_rate| window.measures(has_rate, due_ns, came_ns));
            assert_eq!(measured, [with_rate, without], "due at {due_ns}, here at {came_ns}");
        }
    }

    #[test]
    fn nothing_is_measured_before_the_window_begins() {
        assert!(!Window::default().has(1_000));
    }

    #[test]
    fn what_is_put_back_was_due_when_it_was() {
        let mut schedule = schedule();
        assert_eq!(schedule.take(RATE, 1_500), Some(1_000));
        schedule.put_back();
        assert_eq!(schedule.take(RATE, 2_000), Some(1_000));
    }

    /// As many as are taken, however odd the rate.
    #[test]
    fn what_is_due_is_what_is_taken() {
        for rate in [0.0, 0.001, 3.0, 300.0, 7_777.7, 1e6, 1e9] {
            for end_ns in [0, 1_000, 1_001, 1_010, 2_000, 333_334_333, 1_000_001_000] {
                let mut schedule = schedule();
                // Counted one by one only where that is soon done.
                if rate * end_ns as f64 > 1e15 {
                    continue;
                }
                let expected = schedule.due_before(rate, end_ns);
                while end_ns > 0 && schedule.take(rate, end_ns - 1).is_some() {}
                assert_eq!(schedule.done(), expected, "{rate} until {end_ns}");
            }
        }
    }
}
