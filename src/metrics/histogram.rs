//! How values are distributed: how many fell between fixed bounds, and their sum.
//!
//! Law: the bounds are known at compile time, one thread writes, anyone reads. An observation is a look in a table, a
//! comparison or two, and two relaxed stores; a reader's count is the sum of the buckets it read, so it always agrees
//! with them, while the sum of values may be a few observations ahead or behind.

use std::fmt;
use std::marker::PhantomData;

use super::Counter;

/// What is measured, in which unit, and between which bounds.
pub trait Scale {
    /// Upper bounds, each inclusive, ascending.
    const BOUNDS: &'static [u64];
    /// Observed units in one exposed unit.
    const PER_UNIT: f64;
}

/// Nanoseconds, exposed as seconds: from 10 µs to 10 s.
#[derive(Debug)]
pub struct Latency;

impl Scale for Latency {
    const BOUNDS: &'static [u64] = &[
        10 * MICROSECOND,
        25 * MICROSECOND,
        50 * MICROSECOND,
        100 * MICROSECOND,
        250 * MICROSECOND,
        500 * MICROSECOND,
        MILLISECOND,
        5 * MILLISECOND / 2,
        5 * MILLISECOND,
        10 * MILLISECOND,
        25 * MILLISECOND,
        50 * MILLISECOND,
        100 * MILLISECOND,
        250 * MILLISECOND,
        500 * MILLISECOND,
        SECOND,
        5 * SECOND / 2,
        5 * SECOND,
        10 * SECOND,
    ];
    const PER_UNIT: f64 = SECOND as f64;
}

/// Milliseconds, exposed as seconds: from a second to a week.
#[derive(Debug)]
pub struct Lifetime;

impl Scale for Lifetime {
    const BOUNDS: &'static [u64] = &[
        1_000,
        5_000,
        15_000,
        60_000,
        300_000,
        900_000,
        3_600_000,
        10_800_000,
        21_600_000,
        43_200_000,
        86_400_000,
        259_200_000,
        604_800_000,
    ];
    const PER_UNIT: f64 = 1_000.0;
}

/// Bytes: from 64 to 16 MiB.
#[derive(Debug)]
pub struct Bytes;

impl Scale for Bytes {
    const BOUNDS: &'static [u64] = &[64, 256, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24];
    const PER_UNIT: f64 = 1.0;
}

/// A number of things: from none to 4,096.
#[derive(Debug)]
pub struct Amount;

impl Scale for Amount {
    const BOUNDS: &'static [u64] = &[0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096];
    const PER_UNIT: f64 = 1.0;
}

/// A distribution with one writing thread.
pub struct Histogram<S> {
    /// One for each bound, and one for what is above the last.
    buckets: [Counter; BUCKETS_MAX],
    sum: Counter,
    scale: PhantomData<S>,
}

/// What was read of a [`Histogram`], in exposed units.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Each bucket's upper bound and how many values fell into it alone; the last bound is [`f64::INFINITY`].
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all values.
    pub sum: f64,
}

impl<S: Scale> Histogram<S> {
    /// Counts one value, in the scale's own unit. Only the owning thread may call this.
    #[inline]
    pub fn observe(&self, value: u64) {
        let starts: &'static [u8; 65] = const { &starts(S::BOUNDS) };
        let mut at = usize::from(starts[(u64::BITS - value.leading_zeros()) as usize]);
        while at < S::BOUNDS.len() && value > S::BOUNDS[at] {
            at += 1;
        }
        self.buckets[at].add(1);
        self.sum.add(value);
    }

    /// What was observed so far.
    pub fn read(&self) -> Distribution {
        let bounds = S::BOUNDS.iter().map(|&bound| bound as f64 / S::PER_UNIT).chain([f64::INFINITY]);
        let buckets = bounds.zip(self.buckets.iter().map(Counter::get)).collect();
        Distribution { buckets, sum: self.sum.get() as f64 / S::PER_UNIT }
    }
}

impl Distribution {
    /// How many values were observed.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

impl<S> Default for Histogram<S> {
    fn default() -> Self {
        Self { buckets: Default::default(), sum: Counter::default(), scale: PhantomData }
    }
}

impl<S: Scale> fmt::Debug for Histogram<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(f)
    }
}

/// For each length in bits, the first bucket that a value of that length can belong to.
const fn starts(bounds: &[u64]) -> [u8; 65] {
    assert!(bounds.len() < BUCKETS_MAX);
    let mut starts = [0; 65];
    let mut bits = 1;
    while bits < starts.len() {
        let least = 1 << (bits - 1);
        let mut at = 0;
        while at < bounds.len() && bounds[at] < least {
            at += 1;
        }
        starts[bits] = at as u8;
        bits += 1;
    }
    starts
}

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const BUCKETS_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The value must fall into the bucket with this upper bound, and no other.
    #[track_caller]
    fn check<S: Scale>(value: u64, upper: f64) {
        let histogram = Histogram::<S>::default();
        histogram.observe(value);
        let read = histogram.read();
        let hit: Vec<_> = read.buckets.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!((hit, read.count()), (vec![&(upper, 1)], 1));
        assert_eq!(read.sum, value as f64 / S::PER_UNIT);
    }

    #[test]
    fn bounds_are_inclusive_and_everything_has_a_bucket() {
        check::<Amount>(0, 0.0);
        check::<Amount>(1, 1.0);
        check::<Amount>(3, 4.0);
        check::<Amount>(4, 4.0);
        check::<Amount>(4096, 4096.0);
        check::<Amount>(4097, f64::INFINITY);
        check::<Bytes>(0, 64.0);
        check::<Bytes>(65, 256.0);
        check::<Latency>(10_000, 0.000_01);
        check::<Latency>(10_001, 0.000_025);
        check::<Latency>(2_500_000, 0.002_5);
        check::<Latency>(10_000_000_001, f64::INFINITY);
        check::<Lifetime>(604_800_000, 604_800.0);
        check::<Lifetime>(u64::MAX, f64::INFINITY);
    }

    fn agrees_with_a_search<S: Scale>(values: &[u64]) {
        let histogram = Histogram::<S>::default();
        let mut expected = vec![0; S::BOUNDS.len() + 1];
        for &value in values {
            histogram.observe(value);
            expected[S::BOUNDS.partition_point(|&bound| bound < value)] += 1;
        }
        let read = histogram.read();
        assert!(read.buckets.iter().map(|bucket| bucket.1).eq(expected));
        assert_eq!(read.count(), values.len() as u64);
        assert!(S::BOUNDS.is_sorted_by(|a, b| a < b));
    }

    proptest! {
        #[test]
        fn every_value_is_counted_where_it_belongs(
            values in proptest::collection::vec((0..64_u32, any::<u64>()).prop_map(|(shift, value)| value >> shift), 0..200),
        ) {
            agrees_with_a_search::<Latency>(&values);
            agrees_with_a_search::<Lifetime>(&values);
            agrees_with_a_search::<Bytes>(&values);
            agrees_with_a_search::<Amount>(&values);
        }
    }
}
