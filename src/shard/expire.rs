//! Deadlines: when a connection must be looked at again, and what is done then.
//!
//! Law: a connection has one timer. A message only writes a timestamp; when the timer fires, everything is judged from
//! the connection's own fields and the timer is set to the next thing that could fall due. So a message costs no timer
//! work, and a timer is never late: whatever brings a deadline nearer sets it.
//!
//! Activity, for the idle timeout, is a message in either direction or a ping from the client. The server's own ping
//! and its pong prove that the peer is there, not that it is in use.
//!
//! While a message is on its way to it, a peer is neither pinged nor idle, however long that takes: its pong could only come
//! behind what is there to be read. What waits behind the message ends it (`outbound.max_age`), or the kernel, when nothing of
//! it is acknowledged any more (`TCP_USER_TIMEOUT`).

use crate::conn::{Conn, FlushLine, Ms, Phase, Ping};
use crate::id::ConnKey;
use crate::io::Io;
use crate::metrics::CloseReason;
use crate::ws::{self, Opcode};

use super::Shard;
use super::closing::Goodbye;
use super::settings::{CONNS_A_TURN, LIFETIME_SPREAD_MS, LINGER_MS, QUIET_MS};

/// What a connection's timer stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Handshake,
    Auth,
    Idle,
    Ping,
    Pong,
    Expiry,
    /// What it has spent of its rates can be forgotten.
    Quiet,
    Lifetime,
    Grace,
    Age,
    Close,
    Linger,
}

impl<I: Io> Shard<I> {
    /// Sets the connection's timer to the earliest thing that can fall due.
    pub(super) fn reschedule(&mut self, key: ConnKey) {
        match self.next_due(key) {
            Some((at_ms, _)) => self.wheel.schedule(key.slot, at_ms),
            None => self.wheel.cancel(key.slot),
        }
    }

    pub(super) fn expire(&mut self) {
        self.resume_accepting();
        self.advance_drain();
        self.give_up_handlers();
        let now_ms = self.now.monotonic_ms();
        // After a freeze all of them may be due; those beyond are no later than if there were more to do for each.
        for _ in 0..CONNS_A_TURN {
            let Some(slot) = self.wheel.pop_expired(now_ms) else { break };
            self.metrics.timer_lag.observe(self.wheel.late_ms(slot, now_ms) * 1_000_000);
            let Some(key) = self.conns.key_of(slot) else { continue };
            while let Some((at_ms, due)) = self.next_due(key) {
                if at_ms > now_ms {
                    self.wheel.schedule(slot, at_ms);
                    break;
                }
                self.on_due(key, due);
            }
        }
    }

    /// The earliest thing that can fall due, and when; past times are due now.
    fn next_due(&mut self, key: ConnKey) -> Option<(u64, Due)> {
        let lifetime_ms = self.lifetime_ms(key);
        let together_ms = together_ms(self.settings.ping_interval_ms, self.conns.len());
        let conn = self.conns.get_mut(key)?;
        let settings = &self.settings;
        let now_ms = self.now.monotonic_ms();
        let at = |since: Ms, after_ms: u64| now_ms - u64::from((now_ms as Ms).wrapping_sub(since)) + after_ms;
        // After an absence of the shard what peers sent is read before they are judged.
        let lenient_ms = self.lenient_until_ms;
        match conn.phase {
            Phase::Handshake { .. } => {
                return Some((at(conn.since, settings.handshake_timeout_ms).max(lenient_ms), Due::Handshake));
            }
            Phase::Settling(..) | Phase::Closing(_) | Phase::Finishing { .. } => {
                let close_ms = at(conn.since, settings.close_timeout_ms);
                // A drain lets what is owed and queued leave for as long as it lasts.
                let drained_ms = match (&self.draining, &conn.phase) {
                    (Some(draining), Phase::Settling(..)) => {
                        draining.deadline_ms.saturating_sub(settings.close_timeout_ms)
                    }
                    (Some(draining), _) if !conn.outbound.is_empty() => draining.deadline_ms,
                    _ => 0,
                };
                return Some((close_ms.max(drained_ms), Due::Close));
            }
            Phase::Lingering(_) => return Some((at(conn.since, LINGER_MS), Due::Linger)),
            Phase::Gone => return None,
            Phase::Open => {}
        }
        let mut earliest = None;
        let mut consider = |at_ms: u64, due| {
            if earliest.is_none_or(|(best, _)| at_ms < best) {
                earliest = Some((at_ms, due));
            }
        };
        let native = conn.endpoint == crate::conn::Endpoint::Native;
        if native && settings.auth_required && conn.identity.is_none() {
            consider(at(conn.since, settings.auth_timeout_ms).max(lenient_ms), Due::Auth);
        }
        if settings.idle_timeout_ms > 0 {
            consider(at(conn.active, settings.idle_timeout_ms).max(lenient_ms), Due::Idle);
        }
        if let Some(lifetime_ms) = lifetime_ms {
            consider(at(conn.since, lifetime_ms), Due::Lifetime);
        }
        if settings.ping_interval_ms > 0 && conn.held().is_none() {
            if conn.ping == Ping::Awaited {
                consider(at(conn.pinged, settings.pong_timeout_ms).max(lenient_ms), Due::Pong);
            } else {
                consider(at(conn.heard, settings.ping_interval_ms).next_multiple_of(together_ms), Due::Ping);
            }
        }
        if let Some(expires_ms) = conn.identity.as_ref().and_then(|identity| identity.expires_ms()) {
            // In terms of the wall clock, which may jump; looked at again with every ping at the latest.
            let (due_ms, due) = match conn.expiry_announced {
                false => (expires_ms, Due::Expiry),
                true => (expires_ms.saturating_add(settings.expiry_grace_ms), Due::Grace),
            };
            consider(now_ms.saturating_add(due_ms.saturating_sub(self.now.unix_ms)), due);
        }
        if let Some(intake) = &conn.intake
            && intake.holds_nothing()
        {
            let full_ms = intake.rates.is_full_from_ms(&settings.rates, now_ms);
            consider(at(conn.heard, QUIET_MS).max(full_ms), Due::Quiet);
        }
        match conn.outbound.over_age(&settings.outbound, now_ms as Ms) {
            Ok(None) => {}
            Ok(Some(look)) => consider(now_ms + u64::from(look.wrapping_sub(now_ms as Ms)), Due::Age),
            Err(crate::conn::Aged) => consider(now_ms.max(lenient_ms), Due::Age),
        }
        earliest
    }

    fn on_due(&mut self, key: ConnKey, due: Due) {
        match due {
            Due::Handshake => {
                let write = |out: &mut Vec<u8>| {
                    ws::refuse(out, 408, "the upgrade request was not finished in time", &[]);
                };
                self.refuse(key, write, CloseReason::HandshakeTimeout);
            }
            Due::Auth => self.part(key, Goodbye::new(CloseReason::AuthTimeout, 4502, "not authenticated in time")),
            Due::Idle if self.is_being_sent_to(key) => self.put_off(key, |conn, now| conn.active = now),
            Due::Ping if self.is_being_sent_to(key) => self.put_off(key, |conn, now| conn.heard = now),
            Due::Idle => self.part(key, Goodbye::new(CloseReason::Idle, 4001, "idle timeout")),
            Due::Pong => self.part(key, Goodbye::new(CloseReason::NoPong, 4002, "no pong")),
            Due::Lifetime => {
                let mut goodbye = Goodbye::new(CloseReason::Lifetime, 1012, "the connection has lived long enough");
                goodbye.retry_after_ms = Some(self.io.random() % LIFETIME_SPREAD_MS);
                self.part(key, goodbye);
            }
            Due::Grace => self.part(key, Goodbye::new(CloseReason::Expired, 4003, "the token has expired")),
            Due::Age => self.part_slow(key, "a message has waited too long"),
            Due::Ping => self.ping(key),
            Due::Expiry => self.announce_expiry(key),
            Due::Quiet => self.forget_spent(key),
            Due::Close => self.give_up(key),
            Due::Linger => self.retire(key, CloseReason::Internal),
        }
    }

    fn is_being_sent_to(&self, key: ConnKey) -> bool {
        self.conns.get(key).is_some_and(|conn| !conn.outbound.is_empty())
    }

    fn put_off(&mut self, key: ConnKey, begin_anew: impl FnOnce(&mut Conn, Ms)) {
        let now = self.ms();
        if let Some(conn) = self.conns.get_mut(key) {
            begin_anew(conn, now);
        }
    }

    fn ping(&mut self, key: ConnKey) {
        let now = self.ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.pinged = now;
        conn.ping = Ping::Awaited;
        let sent_ns = self.now.monotonic_ns.to_be_bytes();
        conn.outbound.control(self.io.palette(), now, |out| ws::frame(out, Opcode::Ping, &sent_ns));
        self.list(key, FlushLine::Own);
    }

    /// A pong that answers the last ping, once, says how far the peer is; every other one says nothing. Returns whether it
    /// is one that answers.
    pub(super) fn on_pong(&mut self, key: ConnKey, payload: &[u8]) -> bool {
        let Ok(sent_ns) = payload.try_into().map(u64::from_be_bytes) else { return false };
        let Some(conn) = self.conns.get_mut(key) else { return false };
        if conn.ping == Ping::Answered || (sent_ns / 1_000_000) as Ms != conn.pinged {
            return false;
        }
        conn.ping = Ping::Answered;
        let rtt_ns = self.now.monotonic_ns.saturating_sub(sent_ns);
        self.metrics.rtt.observe(rtt_ns);
        self.sessions.set_rtt(key.slot, rtt_ns);
        true
    }

    /// How long the session may last: between four fifths of `max_lifetime` and all of it, so that connections that came
    /// together do not come back together.
    fn lifetime_ms(&self, key: ConnKey) -> Option<u64> {
        let most_ms = self.settings.max_lifetime_ms?;
        Some(most_ms - most_ms / 5 * (self.session_id(key).random() % 1_024) / 1_024)
    }

    fn announce_expiry(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.expiry_announced = true;
        let Some(expires_at) = conn.identity.as_ref().and_then(|identity| identity.expires_at) else { return };
        self.push(key, |envelope| envelope.token_expiring(expires_at.get()));
    }
}

/// Pings are sent together, some at a time: a turn for each of them, and one for its pong, would cost more than the ping. They
/// are late for it by less than a hundredth of the interval, and no more of them come together than a turn does in passing.
fn together_ms(interval_ms: u64, connections: usize) -> u64 {
    (interval_ms * PINGS_TOGETHER / (connections as u64).max(1)).clamp(1, (interval_ms / 128).max(1))
}

/// Pings of one turn, where there are as many connections that all are silent.
const PINGS_TOGETHER: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_come_together() {
        let check = |interval_ms, connections, expected| {
            assert_eq!(together_ms(interval_ms, connections), expected, "{connections} every {interval_ms} ms");
        };
        check(30_000, 0, 234);
        check(30_000, 1_000, 234);
        check(30_000, 20_000, 96);
        check(30_000, 500_000, 3);
        check(30_000, 10_000_000, 1);
        check(1_000, 10, 7);
        check(100, 10, 1);
        check(3_600_000, 100, 28_125);
    }
}
