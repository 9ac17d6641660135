//! The drain: how a shard ends in order.
//!
//! Law: whatever clients do, it is over soon after its deadline; until its turn comes a connection is served as ever; and
//! the times at which clients are told to come back lie evenly, at no more than the configured rate.
//!
//! Each connection has a place in the window, between 0 and 1. It is closed at that part of the time that closing may take,
//! and told to come back at that part of the time that reconnecting takes, so both are even, and so is the delay, which is
//! their difference. Each shard spreads its own connections over the whole window, so all that shards must agree on is how
//! many connections there are together.

use crate::config;
use crate::conn::{FlushLine, Phase};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::{CloseReason, Refusal};
use crate::ws;

use super::Shard;
use super::accept::Accepting;
use super::closing::Goodbye;
use super::settings::CONNS_A_TURN;

/// How a drain is to go. Times count from the order, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainOrder {
    /// For how long newcomers are still accepted.
    pub wait_ms: u64,
    /// Within which time after that everyone is told, at most.
    pub spread_ms: u64,
    /// When those who are left are cut.
    pub deadline_ms: u64,
    /// How many clients of all shards may be told to come back within a second.
    pub reconnects_per_second: u32,
}

impl DrainOrder {
    /// A drain as configured.
    pub fn new(drain: &config::Drain) -> Self {
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            wait_ms: ms(drain.wait),
            spread_ms: ms(drain.closes_within()),
            deadline_ms: ms(drain.deadline),
            reconnects_per_second: drain.reconnects_per_second,
        }
    }

    /// Nobody is waited for and everyone is told at once; whoever is left `deadline_ms` from then is cut.
    pub fn within(deadline_ms: u64) -> Self {
        let reconnects_per_second = config::Drain::default().reconnects_per_second;
        Self { wait_ms: 0, spread_ms: 0, deadline_ms, reconnects_per_second }
    }

    /// One order in place of two: of each time the more urgent.
    pub(super) fn hastened_by(self, other: Self) -> Self {
        let wait_ms = self.wait_ms.min(other.wait_ms);
        let close_by_ms = |order: Self| order.wait_ms.saturating_add(order.spread_ms);
        let spread_ms = close_by_ms(self).min(close_by_ms(other)) - wait_ms;
        Self { wait_ms, spread_ms, deadline_ms: self.deadline_ms.min(other.deadline_ms), ..self }
    }
}

/// A drain under way. Times are on the shard's clock.
#[derive(Debug)]
pub(super) struct Draining {
    close_from_ms: u64,
    close_by_ms: u64,
    pub(super) deadline_ms: u64,
    reconnects_per_second: u32,
    /// `None` while newcomers are still accepted.
    schedule: Option<Schedule>,
    /// Whoever was left at the deadline, as far as they have not been cut; `None` before it.
    left: Option<Vec<ConnKey>>,
    /// Until when the kernel may take over those that have been cut.
    end_ms: u64,
}

impl Draining {
    fn new(order: DrainOrder, now_ms: u64) -> Self {
        let close_from_ms = now_ms + order.wait_ms.min(order.deadline_ms);
        Self {
            close_from_ms,
            close_by_ms: close_from_ms + order.spread_ms,
            deadline_ms: now_ms + order.deadline_ms,
            reconnects_per_second: order.reconnects_per_second,
            schedule: None,
            left: None,
            end_ms: u64::MAX,
        }
    }

    /// The shard's connections have ended otherwise, all of them.
    pub(super) fn lose_everyone(&mut self) {
        self.schedule.iter_mut().for_each(|schedule| (schedule.conns, schedule.done) = (Vec::new(), 0));
        self.left.iter_mut().for_each(Vec::clear);
    }

    /// Of two orders the more urgent of each time counts.
    fn hasten(&mut self, other: &Self, now_ms: u64) {
        self.close_from_ms = self.close_from_ms.min(other.close_from_ms);
        self.close_by_ms = self.close_by_ms.min(other.close_by_ms);
        self.deadline_ms = self.deadline_ms.min(other.deadline_ms);
        if let Some(schedule) = &mut self.schedule {
            schedule.hasten(self.close_by_ms, now_ms);
        }
    }
}

/// Who is closed when, and told to come back when.
#[derive(Debug)]
struct Schedule {
    conns: Vec<ConnKey>,
    /// How many have had their turn.
    done: usize,
    /// The place of the next one, 0 to 1.
    place: f64,
    /// From which place on, and from when to when, those who are left are closed.
    closes: (f64, u64, u64),
    /// When the first and the last are told to come back.
    returns: (u64, u64),
}

impl Schedule {
    fn new(conns: Vec<ConnKey>, now_ms: u64, windows: Windows, random: u64) -> Self {
        let mut schedule = Self {
            conns,
            done: 0,
            place: 0.0,
            closes: (0.0, now_ms, now_ms + windows.closes_ms),
            returns: (now_ms, now_ms + windows.returns_ms),
        };
        schedule.draw_place(random);
        schedule
    }

    /// Each has a part of the window of its own, and a random place within that.
    fn draw_place(&mut self, random: u64) {
        let jitter = (random >> 11) as f64 / (1u64 << 53) as f64;
        self.place = (self.done as f64 + jitter) / self.conns.len().max(1) as f64;
    }

    /// When the next one is closed.
    fn due_ms(&self) -> Option<u64> {
        let (from, from_ms, to_ms) = self.closes;
        let part = if from < 1.0 { (self.place - from) / (1.0 - from) } else { 1.0 };
        (self.done < self.conns.len()).then(|| from_ms + ((to_ms - from_ms) as f64 * part) as u64)
    }

    /// Who is closed next, and how long it should stay away if that is now.
    fn take(&mut self, now_ms: u64, random: u64) -> (ConnKey, u64) {
        let key = self.conns[self.done];
        let (first_ms, last_ms) = self.returns;
        let return_ms = first_ms + ((last_ms - first_ms) as f64 * self.place) as u64;
        self.done += 1;
        self.draw_place(random);
        (key, return_ms.saturating_sub(now_ms))
    }

    /// Those who are left are closed sooner; when they are told to come back does not change.
    fn hasten(&mut self, by_ms: u64, now_ms: u64) {
        if by_ms < self.closes.2 {
            self.closes = (self.place, now_ms, by_ms.max(now_ms));
        }
    }
}

/// How long closing and reconnecting take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Windows {
    closes_ms: u64,
    returns_ms: u64,
}

impl Windows {
    /// Closes keep to the rate as well, for clients that come back at once whatever they are told, but take no longer than
    /// they may. Beyond that, clients are told to wait: as long as the rate needs, and as RFC 6455 §7.2.3 proposes at least.
    fn new(connections: usize, spread_ms: u64, reconnects_per_second: u32) -> Self {
        let rate_ms = (connections as u64 * 1000).div_ceil(u64::from(reconnects_per_second.max(1)));
        let closes_ms = rate_ms.min(spread_ms);
        Self { closes_ms, returns_ms: rate_ms.max(closes_ms + DELAYS_MS) }
    }
}

/// The longest delay that a client is told if the rate does not need a longer one: a server that starts again at once is
/// there before most are back.
const DELAYS_MS: u64 = 5_000;
/// How long after the deadline a shard waits for the kernel's last completions.
const LAST_COMPLETIONS_MS: u64 = 1_000;

impl<I: Io> Shard<I> {
    pub(super) fn drain(&mut self, order: DrainOrder) {
        let now_ms = self.now.monotonic_ms();
        let draining = Draining::new(order, now_ms);
        match &mut self.draining {
            Some(before) => before.hasten(&draining, now_ms),
            None => self.draining = Some(draining),
        }
        self.advance_drain();
    }

    /// Does what the drain wants done by now.
    pub(super) fn advance_drain(&mut self) {
        let now_ms = self.now.monotonic_ms();
        let Some(draining) = &self.draining else { return };
        if draining.schedule.is_none() && draining.close_from_ms <= now_ms {
            self.begin_closing();
        }
        self.close_due();
        self.enforce_drain();
    }

    /// Newcomers are accepted no more, who is on the way in is turned away, and everybody gets a place in the window.
    fn begin_closing(&mut self) {
        let now_ms = self.now.monotonic_ms();
        if self.accepting != Accepting::Stopped {
            // In one breath: whatever breaks this shard later, it is counted as long as it says so itself.
            let is_over = self.accepting.is_counted() && self.shared.tally.stops();
            self.accepting = Accepting::Stopped;
            if is_over {
                self.bus.wake_others(); // shards that drained before may have waited for this one's connections
            }
            self.io.stop_accepting();
        }
        let (total, is_first) = self.shared.tally.total();
        let Some(draining) = &mut self.draining else { return };
        let spread_ms = draining.close_by_ms.min(draining.deadline_ms).saturating_sub(now_ms);
        let windows = Windows::new(total, spread_ms, draining.reconnects_per_second);
        let open = self.conns.iter().filter(|(_, conn)| conn.is_open()).map(|(key, _)| key).collect();
        draining.schedule = Some(Schedule::new(open, now_ms, windows, self.io.random()));
        if is_first {
            tracing::info!(
                connections = total,
                closing_ms = windows.closes_ms,
                reconnecting_ms = windows.returns_ms,
                deadline_ms = draining.deadline_ms.saturating_sub(now_ms),
                "accepting has stopped; everyone is told to reconnect"
            );
        }
        let handshakes = self.conns.iter().filter(|(_, conn)| matches!(conn.phase, Phase::Handshake { .. }));
        let handshakes: Vec<ConnKey> = handshakes.map(|(key, _)| key).collect();
        for key in handshakes {
            self.metrics.refused[Refusal::Draining as usize].add(1);
            let after = (1 + self.io.random() % windows.returns_ms.div_ceil(1000)).to_string();
            let write = |out: &mut Vec<u8>| {
                ws::refuse(out, 503, "the server drains; connect again later", &[("Retry-After", &after)]);
            };
            self.refuse(key, write, CloseReason::Drain);
        }
    }

    /// Parts from those whose turn has come.
    fn close_due(&mut self) {
        let now_ms = self.now.monotonic_ms();
        for _ in 0..CONNS_A_TURN {
            let schedule = self.draining.as_mut().and_then(|draining| draining.schedule.as_mut());
            let Some(schedule) = schedule.filter(|schedule| schedule.due_ms().is_some_and(|due_ms| due_ms <= now_ms))
            else {
                return;
            };
            let (key, delay_ms) = schedule.take(now_ms, self.io.random());
            let mut goodbye = Goodbye::new(CloseReason::Drain, 1012, "the server drains");
            goodbye.retry_after_ms = Some(delay_ms);
            self.part(key, goodbye);
        }
    }

    /// When the drain wants something done next.
    pub(super) fn drain_due_ms(&self) -> Option<u64> {
        let draining = self.draining.as_ref()?;
        let Some(schedule) = &draining.schedule else { return Some(draining.close_from_ms) };
        let last_ms = match &draining.left {
            Some(left) if left.is_empty() => self.gives_up_ms(draining),
            _ => draining.deadline_ms,
        };
        Some(schedule.due_ms().map_or(last_ms, |due_ms| due_ms.min(last_ms)))
    }

    /// Cuts whoever is left at the deadline, so many a turn.
    fn enforce_drain(&mut self) {
        let now_ms = self.now.monotonic_ms();
        let Some(draining) = &mut self.draining else { return };
        if now_ms < draining.deadline_ms {
            return;
        }
        if draining.left.is_none() {
            draining.schedule.iter_mut().for_each(|schedule| schedule.done = schedule.conns.len());
            let still_here = self.conns.iter().filter(|(_, conn)| !matches!(conn.phase, Phase::Gone));
            let still_here: Vec<ConnKey> = still_here.map(|(key, _)| key).collect();
            if !still_here.is_empty() {
                tracing::warn!(
                    shard = self.id.0,
                    connections = still_here.len(),
                    "drain deadline: cutting who is left"
                );
            }
            (draining.left, draining.end_ms) = (Some(still_here), now_ms + LAST_COMPLETIONS_MS);
        }
        if self.unflushed.len(FlushLine::Leaving) > 0 {
            draining.end_ms = now_ms + LAST_COMPLETIONS_MS; // there are some still to be closed
        }
        for _ in 0..CONNS_A_TURN {
            let Some(draining) = &mut self.draining else { return };
            let Some(key) = draining.left.as_mut().and_then(Vec::pop) else { return };
            draining.end_ms = now_ms + LAST_COMPLETIONS_MS;
            self.retire(key, CloseReason::Drain);
        }
    }

    /// A connection is about to be given up: counts how the drain ended it, if that did.
    ///
    /// Cleanly means that everything queued had left and that the peer had closed or ended its side. What the kernel had
    /// taken and the peer had not acknowledged by then is not known, and not counted as unsent.
    pub(super) fn count_drained(&self, key: ConnKey, reason: CloseReason) {
        let Some(draining) = &self.draining else { return };
        let Some(conn) = self.conns.get(key) else { return };
        if reason != CloseReason::Drain && draining.left.is_none() {
            return;
        }
        let has_ended = conn.receive_ended() || matches!(conn.phase, Phase::Finishing { .. } | Phase::Lingering(_));
        if conn.outbound.is_empty() && has_ended {
            self.metrics.closed_cleanly.add(1);
        } else {
            self.metrics.cut.add(1);
            self.metrics.unsent_bytes.add(conn.outbound.bytes() as u64);
        }
    }

    /// The kernel had taken bytes of a connection before it was cut.
    pub(super) fn count_sent_late(&self, reason: Option<CloseReason>, bytes: u32) {
        if self.draining.is_some() && reason == Some(CloseReason::Drain) {
            let unsent = &self.metrics.unsent_bytes;
            unsent.set(unsent.get().saturating_sub(u64::from(bytes)));
        }
    }

    /// Until when the kernel's last completions are waited for. A shard that was away has not seen what the kernel has.
    fn gives_up_ms(&self, draining: &Draining) -> u64 {
        draining.end_ms.max(self.lenient_until_ms)
    }

    /// Whether the drain is over: no shard has a connection left or may get one, since others' may still wait for counts of
    /// this one.
    pub(super) fn is_done(&self) -> bool {
        let Some(draining) = &self.draining else { return false };
        let has_cut_all = draining.left.as_ref().is_some_and(Vec::is_empty);
        let gave_up = has_cut_all && self.now.monotonic_ms() >= self.gives_up_ms(draining);
        gave_up || (draining.schedule.is_some() && self.conns.is_empty() && self.shared.tally.is_over())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_windows(connections: usize, spread_ms: u64, rate: u32, closes_ms: u64, returns_ms: u64) {
        assert_eq!(Windows::new(connections, spread_ms, rate), Windows { closes_ms, returns_ms });
    }

    #[test]
    fn windows_follow_the_rate() {
        check_windows(0, 20_000, 1_000, 0, 5_000);
        check_windows(3, 20_000, 1_000, 3, 5_003);
        check_windows(10_000, 20_000, 1_000, 10_000, 15_000);
        // The server cannot wait as long as the rate needs, so the clients do.
        check_windows(20_000, 20_000, 1_000, 20_000, 25_000);
        check_windows(60_000, 20_000, 1_000, 20_000, 60_000);
        check_windows(60_000, 0, 1_000, 0, 60_000);
        check_windows(1_000, 20_000, 1, 20_000, 1_000_000);
        check_windows(1, 20_000, 1_000_000, 1, 5_001);
    }

    /// Runs a schedule of `count` connections with the closes as late as `late_ms`: when each is closed and comes back.
    fn run(count: u32, windows: Windows, late_ms: u64, hasten: Option<(u64, u64)>) -> Vec<(u64, u64)> {
        let mut seed = 1u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed
        };
        let conns = (0..count).map(|slot| ConnKey { slot, generation: 1 }).collect();
        let mut schedule = Schedule::new(conns, 1_000, windows, random());
        let mut told = Vec::new();
        while let Some(due_ms) = schedule.due_ms() {
            if let Some((at_ms, by_ms)) = hasten
                && due_ms >= at_ms
                && schedule.closes.2 > by_ms
            {
                schedule.hasten(by_ms, at_ms);
                continue;
            }
            let now_ms = due_ms + late_ms;
            let (key, delay_ms) = schedule.take(now_ms, random());
            assert_eq!(key.slot as usize, told.len(), "everyone once");
            told.push((now_ms, now_ms + delay_ms));
        }
        assert_eq!(told.len(), count as usize);
        told
    }

    /// Times are in order, and of the n of a window of `ms` each has its own nth part.
    #[track_caller]
    fn check_even(times: impl Iterator<Item = u64>, count: u32, from_ms: u64, ms: u64) {
        for (index, time) in times.enumerate() {
            let part = |index: u64| from_ms + ms * index / u64::from(count);
            let (first, last) = (part(index as u64), part(index as u64 + 1));
            assert!((first.saturating_sub(1)..=last).contains(&time), "{index}: {time} is not in {first}..{last}");
        }
    }

    #[test]
    fn closes_and_returns_are_even() {
        for (count, closes_ms, returns_ms) in
            [(1, 3, 5_003), (10, 0, 5_000), (999, 20_000, 60_000), (5_000, 700, 9_000)]
        {
            let told = run(count, Windows { closes_ms, returns_ms }, 0, None);
            check_even(told.iter().map(|told| told.0), count, 1_000, closes_ms);
            check_even(told.iter().map(|told| told.1), count, 1_000, returns_ms);
        }
    }

    #[test]
    fn who_is_closed_late_comes_back_in_time() {
        let told = run(1_000, Windows { closes_ms: 1_000, returns_ms: 9_000 }, 100, None);
        check_even(told.iter().map(|told| told.1).skip(13), 1_000, 1_000 + 9 * 13, 9_000);
    }

    #[test]
    fn a_hastened_drain_closes_sooner_and_keeps_the_returns() {
        let told = run(1_000, Windows { closes_ms: 10_000, returns_ms: 20_000 }, 0, Some((6_000, 7_000)));
        let (before, after): (Vec<(u64, u64)>, Vec<_>) = told.iter().partition(|told| told.0 < 6_000);
        assert!((480..=520).contains(&before.len()), "{}", before.len());
        assert!(after.iter().all(|told| told.0 <= 7_000));
        let by_half: usize = after.iter().filter(|told| told.0 < 6_500).count();
        assert!((by_half as i64 - after.len() as i64 / 2).abs() <= 2, "{by_half} of {}", after.len());
        check_even(told.iter().map(|told| told.1), 1_000, 1_000, 20_000);
    }
}
