//! A steady rate with room for bursts, in eight bytes.
//! Law: over any stretch of time no more is taken than the burst and what the rate brings, and no less can be: time is
//! counted in thousandths of a token, of which a millisecond brings a whole number, so nothing is rounded and nothing
//! drifts.
//!
//! The state is the time at which the bucket will be full again. So waiting costs nothing, a bucket that was never used
//! is all zeros, and there is no division.

/// How fast a bucket fills and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second; at most 2^30.
    pub per_second: u32,
    /// Tokens a full bucket holds; at most 2^30.
    pub burst: u32,
}

/// A bucket. Its rate is passed to every call, always the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenBucket {
    /// In thousandths of a token, of which `per_second` pass in a millisecond; modulo 2^64.
    full_at: u64,
}

const _: () = assert!(size_of::<TokenBucket>() == 8);

impl TokenBucket {
    /// Whether `cost` tokens are there at `now_ms` (milliseconds on a clock that does not go back). What costs more than
    /// a full bucket holds needs a full one.
    pub fn admits(&self, rate: Rate, now_ms: u64, cost: u32) -> bool {
        let burst = u64::from(rate.burst) * UNITS;
        self.owed(rate, now_ms) + (u64::from(cost) * UNITS).min(burst) <= burst
    }

    /// Takes `cost` tokens, admitted or not: what is not there is owed.
    pub fn take(&mut self, rate: Rate, now_ms: u64, cost: u32) {
        let owed = (self.owed(rate, now_ms) + u64::from(cost) * UNITS).min(OWED_MAX);
        self.full_at = time(rate, now_ms).wrapping_add(owed);
    }

    /// From when on a bucket from which nothing is taken meanwhile admits `cost` tokens: `now_ms`, if it does already.
    pub fn admits_from_ms(&self, rate: Rate, now_ms: u64, cost: u32) -> u64 {
        let burst = u64::from(rate.burst) * UNITS;
        let missing = (self.owed(rate, now_ms) + (u64::from(cost) * UNITS).min(burst)).saturating_sub(burst);
        now_ms.saturating_add(missing.div_ceil(rate.per_second.into()))
    }

    /// What is missing until the bucket is full, in thousandths of a token.
    pub fn owed(&self, rate: Rate, now_ms: u64) -> u64 {
        let owed = self.full_at.wrapping_sub(time(rate, now_ms));
        // More than can be owed is a time that has passed.
        if owed > OWED_MAX { 0 } else { owed }
    }
}

fn time(rate: Rate, now_ms: u64) -> u64 {
    now_ms.wrapping_mul(rate.per_second.into())
}

const UNITS: u64 = 1000;
/// A full bucket and the largest cost, and room above.
const OWED_MAX: u64 = 1 << 44;
const _: () = assert!(((1 << 30) + u32::MAX as u64) * UNITS < OWED_MAX);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(bucket: &mut TokenBucket, rate: Rate, now_ms: u64, cost: u32) -> bool {
        let admitted = bucket.admits(rate, now_ms, cost);
        if admitted {
            bucket.take(rate, now_ms, cost);
        }
        admitted
    }

    /// Somebody who takes whatever is there, looking every `step_ms`, gets this many tokens in ten seconds.
    #[track_caller]
    fn check(per_second: u32, burst: u32, step_ms: usize, expected: u64) {
        let rate = Rate { per_second, burst };
        for start_ms in [0, 12_345, u64::from(u32::MAX), u64::MAX / 1_000_000] {
            let mut bucket = TokenBucket::default();
            let mut taken = 0_u64;
            for at_ms in (0..10_000).step_by(step_ms) {
                while take(&mut bucket, rate, start_ms + at_ms, 1) {
                    taken += 1;
                }
            }
            assert!(taken.abs_diff(expected) * 100 <= expected, "{taken} from {start_ms}, not {expected}");
        }
    }

    #[test]
    fn the_rate_is_steady() {
        check(1, 1, 1, 10);
        check(1, 1, 7, 10);
        check(10, 1, 1, 100);
        check(10, 5, 3, 104);
        check(1000, 1, 1, 10_000);
        check(1000, 200, 50, 10_150);
        check(3, 1, 1, 30);
        check(999, 2, 1, 9990);
        check(7, 7, 1, 76);
    }

    #[test]
    fn just_under_at_and_over() {
        let rate = Rate { per_second: 10, burst: 5 };
        let mut bucket = TokenBucket::default();
        assert!(bucket.owed(rate, 0) == 0 && bucket.admits(rate, 0, 5));
        (0..5).for_each(|_| assert!(take(&mut bucket, rate, 0, 1)));
        assert!(!take(&mut bucket, rate, 0, 1) && !take(&mut bucket, rate, 99, 1));
        assert!(take(&mut bucket, rate, 100, 1) && !take(&mut bucket, rate, 100, 1));
        assert!(bucket.owed(rate, 599) > 0 && bucket.owed(rate, 600) == 0);
        // Waiting longer brings no more than a full bucket.
        assert!(take(&mut bucket, rate, 1 << 50, 5) && !take(&mut bucket, rate, 1 << 50, 1));
    }

    #[test]
    fn what_is_larger_than_the_bucket_needs_a_full_one_and_is_paid_for() {
        let rate = Rate { per_second: 10, burst: 5 };
        let mut bucket = TokenBucket::default();
        assert!(take(&mut bucket, rate, 0, 20));
        assert!(!bucket.admits(rate, 1599, 1) && bucket.admits(rate, 1600, 1));
        assert!(!bucket.admits(rate, 1999, 20) && bucket.admits(rate, 2000, 20));
    }

    proptest! {
        #[test]
        fn as_a_sum_over_time_says(
            per_second in 1..2000_u32,
            burst in 1..500_u32,
            steps in prop::collection::vec((0..3000_u64, 1..100_u32), 1..100),
        ) {
            let rate = Rate { per_second, burst };
            let (mut bucket, full) = (TokenBucket::default(), u64::from(burst) * UNITS);
            let (mut now_ms, mut left) = (0, full);
            for (wait_ms, cost) in steps {
                now_ms += wait_ms;
                left = (left + wait_ms * u64::from(per_second)).min(full);
                let (cost, price) = (cost.min(burst), u64::from(cost.min(burst)) * UNITS);
                let from_ms = bucket.admits_from_ms(rate, now_ms, cost);
                prop_assert!(bucket.admits(rate, from_ms, cost));
                prop_assert!(from_ms == now_ms || !bucket.admits(rate, from_ms - 1, cost));
                prop_assert_eq!(take(&mut bucket, rate, now_ms, cost), left >= price);
                left -= if left >= price { price } else { 0 };
            }
        }
    }
}
