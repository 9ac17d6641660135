//! How much a connection sends: messages and bytes, each against a rate.
//! Law: a message that is refused costs nothing; a connection that has been quiet for long enough owes nothing, so that
//! its limiter can be dropped and forgotten.

use crate::fixed::{Rate, TokenBucket};

/// The rates of every connection; `None` is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimits {
    /// Messages.
    pub messages: Option<Rate>,
    /// Bytes of messages.
    pub bytes: Option<Rate>,
    /// Another number for other rates: what was spent at those means nothing here.
    pub edition: u16,
}

impl RateLimits {
    /// Whether messages that are so far apart are within the rate of messages, whatever it has been used for.
    pub fn is_apart(&self, ms: u32) -> bool {
        self.messages.is_none_or(|rate| u64::from(ms) * u64::from(rate.per_second) >= 1000)
    }
}

/// A message over a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverRate {
    /// How many were refused since the connection last had its whole burst to spend, this one included.
    pub refused: u16,
}

/// What one connection has spent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionRateLimiter {
    messages: TokenBucket,
    bytes: TokenBucket,
    refused: u16,
    edition: u16,
}

impl ConnectionRateLimiter {
    /// Takes a message of so many bytes at `now_ms`.
    ///
    /// # Errors
    /// It is over a rate.
    pub fn take(&mut self, limits: &RateLimits, now_ms: u64, bytes: u32) -> Result<(), OverRate> {
        if self.edition != limits.edition {
            *self = Self { edition: limits.edition, ..Self::default() };
        }
        if self.refused > 0 && self.is_full(limits, now_ms) {
            self.refused = 0;
        }
        let admits =
            |bucket: &TokenBucket, rate: Option<Rate>, cost| rate.is_none_or(|rate| bucket.admits(rate, now_ms, cost));
        if !admits(&self.messages, limits.messages, 1) || !admits(&self.bytes, limits.bytes, bytes) {
            self.refused = self.refused.saturating_add(1);
            return Err(OverRate { refused: self.refused });
        }
        if let Some(rate) = limits.messages {
            self.messages.take(rate, now_ms, 1);
        }
        if let Some(rate) = limits.bytes {
            self.bytes.take(rate, now_ms, bytes);
        }
        Ok(())
    }

    /// How many were refused since the connection last had its whole burst to spend.
    pub fn refused(&self) -> u16 {
        self.refused
    }

    /// The last refusal counts for so many more.
    pub fn weigh_refusal(&mut self, more: u16) -> OverRate {
        self.refused = self.refused.saturating_add(more);
        OverRate { refused: self.refused }
    }

    /// Whether nothing was spent yet.
    pub fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// From when on it is as good as a new one, if nothing is spent meanwhile.
    pub fn is_full_from_ms(&self, limits: &RateLimits, now_ms: u64) -> u64 {
        if self.edition != limits.edition {
            return now_ms;
        }
        let full = |bucket: &TokenBucket, rate: Option<Rate>| {
            rate.map_or(now_ms, |rate| bucket.admits_from_ms(rate, now_ms, rate.burst))
        };
        full(&self.messages, limits.messages).max(full(&self.bytes, limits.bytes))
    }

    /// Whether it is as good as a new one.
    pub fn is_full(&self, limits: &RateLimits, now_ms: u64) -> bool {
        self.is_full_from_ms(limits, now_ms) == now_ms
    }
}

const _: () = assert!(size_of::<ConnectionRateLimiter>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: Option<Rate> = Some(Rate { per_second: 10, burst: 3 });
    const BYTES: Option<Rate> = Some(Rate { per_second: 1000, burst: 100 });

    /// Messages as (time, bytes) and how many were refused in a row when each came; 0 if it was taken.
    #[track_caller]
    fn check(messages: Option<Rate>, bytes: Option<Rate>, steps: &[(u64, u32, u16)]) {
        let (limits, mut limiter) = (RateLimits { messages, bytes, edition: 0 }, ConnectionRateLimiter::default());
        for (step, &(now_ms, bytes, expected)) in steps.iter().enumerate() {
            let refused = limiter.take(&limits, now_ms, bytes).map_or_else(|over| over.refused, |()| 0);
            assert_eq!(refused, expected, "step {step}");
        }
    }

    #[test]
    fn each_rate_by_itself() {
        check(MESSAGES, None, &[(0, 9, 0), (0, 9, 0), (0, 9, 0), (0, 9, 1), (99, 9, 2), (100, 9, 0)]);
        check(None, BYTES, &[(0, 60, 0), (0, 40, 0), (0, 1, 1), (1, 1, 0), (1, 1, 2)]);
        check(None, None, &[(0, u32::MAX, 0), (0, u32::MAX, 0)]);
    }

    #[test]
    fn a_refused_message_costs_nothing() {
        check(MESSAGES, BYTES, &[(0, 99, 0), (0, 2, 1), (0, 1, 0), (0, 0, 0), (0, 0, 2)]);
    }

    #[test]
    fn other_rates_begin_anew() {
        let rates = |per_second, burst, edition| RateLimits {
            messages: Some(Rate { per_second, burst }),
            bytes: BYTES,
            edition,
        };
        let mut limiter = ConnectionRateLimiter::default();
        let mut spend =
            |limits: &RateLimits, now_ms| (0..).take_while(|_| limiter.take(limits, now_ms, 1).is_ok()).count();
        let late = 1 << 40;
        assert_eq!(spend(&rates(10, 3, 0), late), 3);
        assert_eq!(spend(&rates(1, 7, 1), late), 7, "slower");
        assert_eq!(spend(&rates(1000, 5, 2), late), 5, "faster");
        assert_eq!(spend(&rates(1000, 5, 2), late + 2), 2);
        assert!(!limiter.is_full(&rates(1000, 5, 2), late + 2));
        assert!(limiter.is_full(&rates(1000, 6, 3), late + 2));
    }

    #[test]
    fn refusals_are_forgotten_after_a_pause_only() {
        let over = [(0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 1), (100, 0, 0), (100, 0, 2), (399, 0, 0)];
        check(MESSAGES, None, &[&over[..], &[(399, 0, 0), (399, 0, 3)]].concat());
        check(MESSAGES, None, &[&over[..], &[(600, 0, 0), (600, 0, 0), (600, 0, 0), (600, 0, 1)]].concat());
    }
}
