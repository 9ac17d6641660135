//! What the log says of those who are turned away: why, how many, and where the remedy is.
//! Law: a line when it begins, and ever fewer while it goes on. Who has no other eyes than the log sees that clients are
//! refused, and no attacker fills a disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::metrics::{CloseReason, Counter, Refusal, ShardMetrics};

/// How often the counters are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// After its first line a cause has the next after this time at the earliest, and the one after that after twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(60);

/// The longest that it grows to.
const PAUSE_MAX: Duration = Duration::from_hours(1);

/// Writes what there is to say, for ever.
pub(super) async fn log(metrics: Vec<Arc<ShardMetrics>>) {
    let start = Instant::now();
    let mut watch = Watch::new();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        watch.look(start.elapsed(), &metrics, |told| {
            let Told { cause, meaning, count, within } = told;
            tracing::warn!(cause = cause.label(), count, within_s = within.as_secs(), "turned away: {meaning}");
        });
    }
}

/// Why somebody was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Refused(Refusal),
    Closed(CloseReason),
}

impl Cause {
    fn all() -> impl Iterator<Item = Self> {
        let closed = CloseReason::ALL.iter().map(|&reason| Self::Closed(reason));
        Refusal::ALL.iter().map(|&cause| Self::Refused(cause)).chain(closed)
    }

    fn label(self) -> &'static str {
        match self {
            Self::Refused(cause) => cause.label(),
            Self::Closed(reason) => reason.label(),
        }
    }

    fn counter(self, metrics: &ShardMetrics) -> &Counter {
        match self {
            Self::Refused(cause) => &metrics.refused[cause as usize],
            Self::Closed(reason) => &metrics.closed[reason as usize],
        }
    }

    /// What happens and what may be done about it; `None` for what is no news to an operator: ends that a client, a clock
    /// or the operator wished for, what the log has of its own, and the noise of every open port.
    fn meaning(self) -> Option<&'static str> {
        Some(match self {
            Self::Refused(Refusal::Full) => {
                "503, no place is left: raise websocket.max_total_connections if the machine has room, or add a server"
            }
            Self::Refused(Refusal::Handshakes) => {
                "503, as many handshakes as limits.handshakes_in_flight allows; limits.connections_per_second lets newcomers wait"
            }
            Self::Refused(Refusal::RateLimited) => {
                "429, more attempts of one address than limits.connection_attempts allows; a proxy is one address unless \
                 proxy.trusted lists it"
            }
            Self::Refused(Refusal::Address) => {
                "429, as many connections of one address as websocket.max_connections_per_address allows"
            }
            Self::Refused(Refusal::Origin) => "403, a page that origins.allow does not list",
            Self::Refused(Refusal::Unauthorized) => {
                "401, the token or certificate of a request is not valid; at log.level debug there is a line for each"
            }
            Self::Closed(CloseReason::HandshakeTimeout) => "408, no whole request within websocket.handshake_timeout",
            Self::Closed(CloseReason::Protocol) => {
                "1002 or 1007, a client broke the protocol; at log.level debug there is a line for each"
            }
            Self::Closed(CloseReason::TooBig) => "1009, a message over websocket.max_message_size",
            Self::Closed(CloseReason::AuthFailed) => {
                "4501, a token that is not valid, or more connections than its client may have; at log.level debug there is a \
                 line for each"
            }
            Self::Closed(CloseReason::AuthTimeout) => "4502, not authenticated within auth.timeout",
            Self::Closed(CloseReason::SlowConsumer) => {
                "4008, what waited for a client reached a bound of outbound; a topic's policy may drop messages instead"
            }
            Self::Closed(CloseReason::Errors) => "4506, more errors than limits.errors allows",
            Self::Closed(CloseReason::RateLimit) => "4505, on and on over limits.messages or limits.bytes",
            Self::Closed(CloseReason::Overload) => {
                "1013, messages that began and did not end came to more than limits.unfinished_bytes"
            }
            Self::Refused(Refusal::Draining | Refusal::BadRequest)
            | Self::Closed(
                CloseReason::Peer
                | CloseReason::Lost
                | CloseReason::BadHandshake
                | CloseReason::Expired
                | CloseReason::Idle
                | CloseReason::NoPong
                | CloseReason::Evicted
                | CloseReason::Application
                | CloseReason::Lifetime
                | CloseReason::Drain
                | CloseReason::Internal,
            ) => return None,
        })
    }
}

/// One line: so many within the time since the last one, or since there were none.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    cause: Cause,
    meaning: &'static str,
    count: u64,
    within: Duration,
}

/// What each cause has been told of.
struct Watch(Vec<Entry>);

struct Entry {
    cause: Cause,
    meaning: &'static str,
    /// How many had been counted when last there was a line, or none to write.
    counted: u64,
    /// When that was.
    at: Duration,
    /// How long there is no line from then on; zero while there is nothing to tell.
    pause: Duration,
}

impl Watch {
    fn new() -> Self {
        let entry = |cause: Cause| {
            let meaning = cause.meaning()?;
            Some(Entry { cause, meaning, counted: 0, at: Duration::ZERO, pause: Duration::ZERO })
        };
        Self(Cause::all().filter_map(entry).collect())
    }

    /// Tells what is due at `now`, a time since the start.
    fn look(&mut self, now: Duration, metrics: &[Arc<ShardMetrics>], mut tell: impl FnMut(Told)) {
        for entry in &mut self.0 {
            if now < entry.at + entry.pause {
                continue;
            }
            let total: u64 = metrics.iter().map(|shard| entry.cause.counter(shard).get()).sum();
            let (count, within) = (total.wrapping_sub(entry.counted), now - entry.at);
            entry.pause = match count {
                0 => Duration::ZERO,
                _ => (entry.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
            };
            (entry.counted, entry.at) = (total, now);
            if count > 0 {
                tell(Told { cause: entry.cause, meaning: entry.meaning, count, within });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Cause = Cause::Refused(Refusal::Origin);

    /// What is told over so many seconds of looks, when in each of them `turned_away` says how many there are.
    fn told(seconds: u64, turned_away: impl Fn(u64) -> u64) -> Vec<(u64, u64, u64)> {
        let metrics: Vec<Arc<ShardMetrics>> = (0..2).map(|_| Arc::default()).collect();
        let mut watch = Watch::new();
        let mut all = Vec::new();
        for second in 0..seconds {
            ORIGIN.counter(&metrics[second as usize % 2]).add(turned_away(second));
            watch.look(Duration::from_secs(second), &metrics, |Told { cause, count, within, .. }| {
                assert_eq!(cause, ORIGIN);
                all.push((second, count, within.as_secs()));
            });
        }
        all
    }

    #[test]
    fn what_begins_is_told_at_once_and_what_goes_on_ever_more_rarely() {
        let always = told(10_000, |second| u64::from(second >= 5));
        let lines = [(5, 1, 1), (65, 60, 60), (185, 120, 120), (425, 240, 240), (905, 480, 480), (1_865, 960, 960)];
        assert_eq!(always[..6], lines);
        assert_eq!(always[6..], [(3_785, 1_920, 1_920), (7_385, 3_600, 3_600)]);
    }

    #[test]
    fn each_of_them_is_told_once() {
        let turned_away = |second: u64| second * 7 % 5;
        let lines = told(100_000, turned_away);
        let (until, ..) = *lines.last().unwrap();
        assert_eq!(lines.iter().map(|line| line.1).sum::<u64>(), (0..=until).map(turned_away).sum::<u64>());
    }

    /// Whoever comes once a day is told of on that day, and who comes again soon after a quiet time has a line at once.
    #[test]
    fn what_has_ended_begins_anew() {
        assert_eq!(told(400, |second| u64::from(matches!(second, 10 | 200))), [(10, 1, 1), (200, 1, 1)]);
        // Told after the pause of the first line, which was not quiet, and then anew.
        let thrice = told(1_000, |second| u64::from(matches!(second, 10 | 20 | 400)));
        assert_eq!(thrice, [(10, 1, 1), (70, 1, 60), (400, 1, 1)]);
    }

    /// Each has a line that says more than its label, and begins with what the client is told.
    #[test]
    fn what_is_told_says_what_the_client_was_told() {
        for cause in Cause::all().filter_map(Cause::meaning) {
            let code = cause.split([',', ' ']).next().unwrap();
            assert!(code.parse::<u16>().is_ok_and(|code| code >= 401), "{cause}");
        }
    }
}
