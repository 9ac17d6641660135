//! One timer for each slot of a pool, in a hierarchical wheel.
//! Law: a timer never fires early, and at most one tick after the later of its deadline and the call that set it.
//!
//! Seven levels of 64 buckets. A timer lies on the level of the highest base-64 digit in which its tick differs from
//! the current one, in the bucket of that digit; when time reaches the bucket, its timers move to lower levels. So
//! every timer of a level is due before every timer of the level above, a jump over any distance costs what is due and
//! a constant, and nobody counts ticks that passed with nothing in them.
//!
//! Memory: 12 bytes for each slot up to the highest ever scheduled, in chunks of 512 slots, and 2 KB of buckets.

use super::chunked::Chunked;

/// Timers for the slots `0..capacity`, at most one each.
#[derive(Debug)]
pub struct TimerWheel {
    links: Chunked<Link>,
    /// First timer of each bucket, level by level, and of the due list, which is the last.
    heads: [u32; BUCKETS + 1],
    /// For each level, which of its buckets hold a timer.
    occupied: [u64; LEVELS],
    /// Last timer of the due list: it is emptied in the order it was filled.
    due_tail: u32,
    /// Every timer in a bucket has a later tick than this one; no timer with a tick up to this one is in a bucket.
    current: u64,
    len: u32,
    capacity: u32,
    tick_ms: u64,
    start_ms: u64,
}

/// A slot's place in the doubly linked list of its bucket.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// The timer after it, or `NONE`.
    next: u32,
    /// The timer before it; `IS_HEAD` and the bucket if it is the first; `NONE` if it has no timer.
    prev: u32,
    /// The tick it fires at, modulo 2^32: always within 2^32 of the current tick.
    tick: u32,
}

const DIGIT_BITS: u32 = 6;
const DIGITS: usize = 1 << DIGIT_BITS;
/// Enough for 2^42 ticks.
const LEVELS: usize = 7;
const BUCKETS: usize = LEVELS * DIGITS;
const DUE: u32 = BUCKETS as u32;
const NONE: u32 = u32::MAX;
const IS_HEAD: u32 = 1 << 31;
/// Time stands still here, so that the farthest timer still has a bucket.
const TICK_MAX: u64 = (1 << (LEVELS as u32 * DIGIT_BITS)) - 1 - u32::MAX as u64;

impl TimerWheel {
    /// A wheel that counts 2^42 ticks of `tick_ms` (≥ 1; 139 years of 1 ms) from `start_ms` on. Allocates no slots yet.
    ///
    /// # Panics
    /// If `tick_ms` is 0 or `capacity` exceeds 2^31 − 1.
    pub fn new(capacity: u32, tick_ms: u64, start_ms: u64) -> Self {
        assert!(tick_ms > 0 && capacity < IS_HEAD);
        Self {
            links: Chunked::new(),
            heads: [NONE; BUCKETS + 1],
            occupied: [0; LEVELS],
            due_tail: NONE,
            current: 0,
            len: 0,
            capacity,
            tick_ms,
            start_ms,
        }
    }

    /// Sets the timer of `slot`, in place of an earlier one. A deadline that has passed falls due with the next tick,
    /// so that whoever sets timers while taking expired ones comes to an end. A deadline more than 2^32 − 1 ticks
    /// after the last call of [`TimerWheel::pop_expired`] (497 days of 10 ms) is cut to that.
    ///
    /// # Panics
    /// If `slot` is not below the capacity.
    pub fn schedule(&mut self, slot: u32, deadline_ms: u64) {
        assert!(slot < self.capacity, "slot {slot} of a wheel for {}", self.capacity);
        self.links.grow_to(slot, || Link { next: NONE, prev: NONE, tick: 0 });
        self.cancel(slot);
        let tick = deadline_ms.saturating_sub(self.start_ms).div_ceil(self.tick_ms);
        let ahead = tick.saturating_sub(self.current).clamp(1, u64::from(u32::MAX));
        self.place(slot, self.current + ahead);
        self.len += 1;
    }

    /// Gives back the memory of a wheel without timers.
    pub fn give_back(&mut self) {
        if self.len == 0 {
            self.links = Chunked::new();
        }
    }

    /// Removes the timer of `slot`, due or not; harmless if it has none.
    pub fn cancel(&mut self, slot: u32) {
        let Some(&Link { next, prev, .. }) = self.links.get(slot) else { return };
        if prev == NONE {
            return;
        }
        self.links[slot].prev = NONE;
        self.len -= 1;
        if next != NONE {
            self.links[next].prev = prev;
        }
        if self.due_tail == slot {
            self.due_tail = if prev & IS_HEAD == 0 { prev } else { NONE };
        }
        if prev & IS_HEAD == 0 {
            self.links[prev].next = next;
            return;
        }
        let bucket = prev & !IS_HEAD;
        self.heads[bucket as usize] = next;
        if next == NONE && bucket != DUE {
            self.occupied[bucket as usize / DIGITS] &= !(1 << (bucket as usize % DIGITS));
        }
    }

    /// Takes out one timer whose deadline has passed at `now_ms`; earlier ticks come first. Called until `None` with
    /// the same `now_ms` it takes each timer at most once, whatever is scheduled or cancelled in between.
    pub fn pop_expired(&mut self, now_ms: u64) -> Option<u32> {
        let now = (now_ms.saturating_sub(self.start_ms) / self.tick_ms).min(TICK_MAX);
        if now > self.current {
            self.advance(now);
        }
        let slot = self.heads[DUE as usize];
        if slot == NONE {
            return None;
        }
        self.cancel(slot);
        Some(slot)
    }

    /// How late at `now_ms` the timer of `slot` is, which [`TimerWheel::pop_expired`] has just taken out: from its tick on,
    /// in milliseconds.
    pub fn late_ms(&self, slot: u32, now_ms: u64) -> u64 {
        let late = self.links.get(slot).map_or(0, |link| (self.current as u32).wrapping_sub(link.tick));
        now_ms.saturating_sub(self.ms_of(self.current - u64::from(late)))
    }

    /// Memory of the timers.
    pub fn bytes(&self) -> usize {
        self.links.bytes() + size_of::<Self>()
    }

    /// When to look again: no timer fires before, and a call of [`TimerWheel::pop_expired`] then either takes a timer
    /// or brings the next deadline nearer. In the past if something is due already; `None` without timers.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        if self.heads[DUE as usize] != NONE {
            return Some(self.ms_of(self.current));
        }
        let level = self.occupied.iter().position(|&occupied| occupied != 0)?;
        let shift = level as u32 * DIGIT_BITS;
        let digit = u64::from(self.occupied[level].trailing_zeros());
        let above = self.current >> (shift + DIGIT_BITS) << DIGIT_BITS;
        Some(self.ms_of((above | digit) << shift))
    }

    /// Whether `slot` has a timer, due or not.
    pub fn is_scheduled(&self, slot: u32) -> bool {
        self.links.get(slot).is_some_and(|link| link.prev != NONE)
    }

    /// Timers set, due ones included.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no timer is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn ms_of(&self, tick: u64) -> u64 {
        tick.saturating_mul(self.tick_ms).saturating_add(self.start_ms)
    }

    /// Moves time to tick `now`, and every timer up to it to the due list.
    fn advance(&mut self, now: u64) {
        let before = std::mem::replace(&mut self.current, now);
        for level in 0..LEVELS {
            let shift = level as u32 * DIGIT_BITS;
            // All timers of a level share their higher digits with `before`. If these have changed, all are due;
            // otherwise those whose digit has been reached are due or belong on a lower level.
            let is_last = before >> (shift + DIGIT_BITS) == now >> (shift + DIGIT_BITS);
            let digit = (now >> shift) as usize % DIGITS;
            let reached = if is_last { u64::MAX >> (DIGITS - 1 - digit) } else { u64::MAX };
            let mut buckets = self.occupied[level] & reached;
            self.occupied[level] &= !reached;
            while buckets != 0 {
                let bucket = level * DIGITS + buckets.trailing_zeros() as usize;
                buckets &= buckets - 1;
                self.empty_bucket(bucket, before);
            }
            // Higher digits have not changed: nothing there has been reached.
            if is_last {
                return;
            }
        }
    }

    fn empty_bucket(&mut self, bucket: usize, before: u64) {
        let mut slot = std::mem::replace(&mut self.heads[bucket], NONE);
        while slot != NONE {
            let Link { next, tick, .. } = self.links[slot];
            let tick = before + u64::from(tick.wrapping_sub(before as u32));
            if tick <= self.current {
                self.append_due(slot);
            } else {
                self.place(slot, tick);
            }
            slot = next;
        }
    }

    /// Puts `slot` first in the bucket of `tick`, a tick after the current one.
    fn place(&mut self, slot: u32, tick: u64) {
        debug_assert!(tick > self.current);
        let highest_differing_bit = (tick ^ self.current).ilog2();
        let level = (highest_differing_bit / DIGIT_BITS) as usize;
        let digit = (tick >> (level as u32 * DIGIT_BITS)) as usize % DIGITS;
        let bucket = level * DIGITS + digit;
        let next = std::mem::replace(&mut self.heads[bucket], slot);
        if next != NONE {
            self.links[next].prev = slot;
        }
        self.occupied[level] |= 1 << digit;
        self.links[slot] = Link { next, prev: IS_HEAD | bucket as u32, tick: tick as u32 };
    }

    fn append_due(&mut self, slot: u32) {
        let last = std::mem::replace(&mut self.due_tail, slot);
        let link = &mut self.links[slot];
        link.next = NONE;
        if last == NONE {
            link.prev = IS_HEAD | DUE;
            self.heads[DUE as usize] = slot;
        } else {
            link.prev = last;
            self.links[last].next = slot;
        }
    }
}

const _: () = assert!(size_of::<Link>() == 12);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn expired(wheel: &mut TimerWheel, now_ms: u64) -> Vec<u32> {
        std::iter::from_fn(|| wheel.pop_expired(now_ms)).collect()
    }

    /// With a tick of 10 ms from 1,000 ms on: the timer must still sleep at `asleep_ms` and fire at `fires_ms`.
    #[track_caller]
    fn check(deadline_ms: u64, asleep_ms: u64, fires_ms: u64) {
        let mut wheel = TimerWheel::new(1, 10, 1_000);
        wheel.schedule(0, deadline_ms);
        assert_eq!(wheel.pop_expired(asleep_ms), None, "early");
        assert_eq!(wheel.pop_expired(fires_ms), Some(0), "late");
        assert_eq!((wheel.len(), wheel.is_scheduled(0), wheel.next_deadline_ms()), (0, false, None));
    }

    #[test]
    fn never_early_and_at_most_a_tick_late() {
        check(1_010, 1_009, 1_010);
        check(1_011, 1_019, 1_020);
        check(1_640, 1_639, 1_640);
        check(5_000_001, 5_000_009, 5_000_010);
        check(5_000_001, 1_000, u64::MAX);
    }

    #[test]
    fn lateness_counts_from_the_tick() {
        let late = |deadline_ms: u64, taken_ms: u64| {
            let mut wheel = TimerWheel::new(1, 10, 1_000);
            wheel.schedule(0, deadline_ms);
            assert_eq!(wheel.pop_expired(taken_ms), Some(0));
            wheel.late_ms(0, taken_ms)
        };
        assert_eq!(late(1_010, 1_010), 0);
        assert_eq!(late(1_001, 1_013), 3);
        assert_eq!(late(1_001, 1_045), 35);
        assert_eq!(late(5_000, 3_600_000), 3_595_000);
        assert_eq!(late(0, 1_010), 0, "it was late when it was set");
    }

    #[test]
    fn a_passed_deadline_fires_with_the_next_tick() {
        check(0, 1_009, 1_010);
        check(1_000, 1_009, 1_010);
    }

    #[test]
    fn a_deadline_beyond_the_horizon_is_cut_to_it() {
        let horizon_ms = 1_000 + u64::from(u32::MAX) * 10;
        check(horizon_ms, horizon_ms - 1, horizon_ms);
        check(u64::MAX, horizon_ms - 1, horizon_ms);
    }

    #[test]
    fn at_the_end_of_time_the_farthest_timer_still_has_a_bucket() {
        let mut wheel = TimerWheel::new(1, 1, 0);
        assert_eq!(wheel.pop_expired(u64::MAX), None);
        wheel.schedule(0, u64::MAX);
        assert_eq!(wheel.next_deadline_ms(), Some((1 << 42) - (1 << 30)));
        assert_eq!(wheel.pop_expired(u64::MAX), None, "time stands still");
    }

    #[test]
    fn a_jump_leaves_alone_what_it_does_not_reach() {
        let mut wheel = TimerWheel::new(6, 1, 0);
        // Two in a bucket of each of three levels: whoever empties one turns them round.
        for (slot, tick) in [60, 60, 3_000, 3_000, 200_000, 200_000].into_iter().enumerate() {
            wheel.schedule(slot as u32, tick);
        }
        let before = wheel.heads;
        assert_eq!(wheel.pop_expired(59), None);
        assert_eq!(wheel.heads, before);
    }

    #[test]
    fn rescheduling_while_expiring_comes_to_an_end() {
        let mut wheel = TimerWheel::new(2, 10, 0);
        wheel.schedule(0, 0);
        wheel.schedule(1, 5_000);
        let mut fired = Vec::new();
        while let Some(slot) = wheel.pop_expired(6_000) {
            fired.push(slot);
            wheel.schedule(slot, 0);
        }
        assert_eq!(fired, [0, 1]);
        assert_eq!((wheel.len(), wheel.next_deadline_ms()), (2, Some(6_010)));
    }

    #[test]
    fn a_due_timer_can_be_cancelled_or_moved() {
        let mut wheel = TimerWheel::new(4, 1, 0);
        (0..4).for_each(|slot| wheel.schedule(slot, 5 + u64::from(slot)));
        assert_eq!(wheel.pop_expired(10), Some(0));
        wheel.cancel(3);
        wheel.schedule(2, 11);
        assert_eq!(expired(&mut wheel, 10), [1]);
        assert_eq!(expired(&mut wheel, 11), [2]);
    }

    #[test]
    fn the_last_due_timer_that_is_cancelled_takes_no_other_along() {
        let mut wheel = TimerWheel::new(4, 1, 0);
        (0..4).for_each(|slot| wheel.schedule(slot, 5 + u64::from(slot)));
        assert_eq!(wheel.pop_expired(7), Some(0));
        wheel.cancel(2);
        assert_eq!(expired(&mut wheel, 8), [1, 3]);
    }

    #[test]
    fn a_cancelled_timer_leaves_nothing_behind_in_any_bucket() {
        for (level, digit) in (0..5).flat_map(|level| (1..DIGITS as u64).map(move |digit| (level, digit))) {
            let mut wheel = TimerWheel::new(1, 1, 0);
            wheel.schedule(0, digit << (level * DIGIT_BITS));
            wheel.cancel(0);
            assert_eq!(wheel.next_deadline_ms(), None, "digit {digit} of level {level}");
        }
    }

    #[test]
    fn a_wheel_gives_its_memory_back_when_it_has_no_timer() {
        let mut wheel = TimerWheel::new(1_000, 1, 0);
        let without = wheel.bytes();
        wheel.schedule(999, 5);
        let with = wheel.bytes();
        wheel.give_back();
        assert_eq!((wheel.bytes(), wheel.is_empty()), (with, false), "it has one");
        assert_eq!((wheel.pop_expired(5), wheel.is_empty()), (Some(999), true));
        wheel.give_back();
        assert_eq!(wheel.bytes(), without);
        wheel.schedule(0, 6);
        assert_eq!(expired(&mut wheel, 6), [0]);
    }

    #[test]
    fn what_is_left_due_goes_before_what_falls_due_later() {
        let mut wheel = TimerWheel::new(3, 1, 0);
        (0..3).for_each(|slot| wheel.schedule(slot, 1 + u64::from(slot)));
        assert_eq!(wheel.pop_expired(2), Some(0));
        assert_eq!(expired(&mut wheel, 3), [1, 2]);
    }

    #[test]
    #[should_panic(expected = "slot 8 of a wheel for 8")]
    fn a_slot_beyond_the_capacity_is_a_mistake_of_the_owner() {
        TimerWheel::new(8, 1, 0).schedule(8, 1);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Schedule { slot: u32, in_ms: i64 },
        Cancel { slot: u32 },
        Pass { ms: u64, take_at_most: usize },
        SleepUntilNext,
    }

    const SLOTS: u32 = 1100;

    fn op() -> impl Strategy<Value = Op> {
        let span = prop_oneof![
            Just(0_i64),
            -50..100_i64,
            0..10_000_i64,
            0..1_000_000_i64,
            0..1_i64 << 31,
            // Around the edges of the levels.
            (0..6_u32, -3..4_i64).prop_map(|(level, off)| (1 << (6 * level)) + off),
        ];
        let slot = prop_oneof![0..8_u32, 0..SLOTS];
        let ms = prop_oneof![5 => 0..20_u64, 5 => 0..5_000_u64, 2 => 0..10_000_000_u64, 1 => 0..1_u64 << 33];
        let take = prop_oneof![3 => Just(usize::MAX), 1 => 1..3_usize];
        prop_oneof![
            6 => (slot.clone(), span).prop_map(|(slot, in_ms)| Op::Schedule { slot, in_ms }),
            1 => slot.prop_map(|slot| Op::Cancel { slot }),
            3 => (ms, take).prop_map(|(ms, take_at_most)| Op::Pass { ms, take_at_most }),
            2 => Just(Op::SleepUntilNext),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(
            tick_ms in prop_oneof![Just(1_u64), Just(10), 1..100_u64],
            start_ms in prop_oneof![Just(0_u64), 0..1_u64 << 41],
            ops in proptest::collection::vec(op(), 0..200),
        ) {
            let mut now_ms = start_ms;
            let mut wheel = TimerWheel::new(SLOTS, tick_ms, start_ms);
            // Slot → (deadline, moment by which it must have fired), in ms.
            let mut model: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
            for op in ops {
                let mut take_at_most = usize::MAX;
                match op {
                    Op::Schedule { slot, in_ms } => {
                        let deadline_ms = now_ms.saturating_add_signed(in_ms);
                        wheel.schedule(slot, deadline_ms);
                        model.insert(slot, (deadline_ms, deadline_ms.max(now_ms) + tick_ms));
                        continue;
                    }
                    Op::Cancel { slot } => {
                        wheel.cancel(slot);
                        model.remove(&slot);
                        continue;
                    }
                    Op::Pass { ms, take_at_most: most } => {
                        now_ms += ms;
                        take_at_most = most;
                    }
                    Op::SleepUntilNext => {
                        let Some(next_ms) = wheel.next_deadline_ms() else {
                            prop_assert!(model.is_empty());
                            continue;
                        };
                        // Never late: whoever sleeps until then misses nothing.
                        let latest_ms = model.values().map(|(_, latest_ms)| *latest_ms).min();
                        prop_assert!(Some(next_ms) <= latest_ms || next_ms <= now_ms);
                        now_ms = now_ms.max(next_ms);
                    }
                }
                let before = (wheel.next_deadline_ms(), wheel.len());
                let mut taken = 0;
                while taken < take_at_most && let Some(slot) = wheel.pop_expired(now_ms) {
                    let (deadline_ms, _) = model.remove(&slot).expect("fired without being set");
                    prop_assert!(deadline_ms <= now_ms, "{} fired at {}", deadline_ms, now_ms);
                    taken += 1;
                }
                if taken < take_at_most {
                    for (deadline_ms, latest_ms) in model.values() {
                        prop_assert!(now_ms < *latest_ms, "{} missed at {}", deadline_ms, now_ms);
                    }
                    if before.0.is_some_and(|next_ms| next_ms <= now_ms) {
                        prop_assert!(wheel.len() < before.1 || wheel.next_deadline_ms() > before.0, "no progress");
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
            }
            for slot in 0..SLOTS {
                prop_assert_eq!(wheel.is_scheduled(slot), model.contains_key(&slot));
            }
        }
    }
}
