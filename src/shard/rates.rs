//! Messages over a connection's rates.
//! Law: such a message is answered and not carried out. It does not spend the error budget, which is for a connection's
//! whole life, but who goes on without a pause is closed.

use crate::app::envelope;
use crate::conn::{ConnectionRateLimiter, Endpoint, Intake, Note, OverRate, RateLimits, Then};
use crate::id::{ConnKey, MessageId, MessageIdRef};
use crate::io::Io;
use crate::metrics::{CloseReason, ErrorCode};

use super::Shard;
use super::closing::Goodbye;
use super::settings::{OVER_RATE_MAX, REFUSAL_BYTES};

impl<I: Io> Shard<I> {
    /// Whether a message is within its connection's rates, where it counts for at least `cost` bytes; one that is not is
    /// answered here.
    pub(super) fn is_within_rates(&mut self, key: ConnKey, bytes: &mut [u8], cost: usize) -> bool {
        let rates = &self.settings.rates;
        if rates.messages.is_none() && rates.bytes.is_none() {
            return true;
        }
        let cost = bytes.len().max(cost).try_into().unwrap_or(u32::MAX);
        match self.spend(key, |limiter, rates, now_ms| limiter.take(rates, now_ms, cost)) {
            None => false,
            Some(Ok(())) => true,
            Some(Err(over)) => {
                self.refuse_over_rate(key, bytes, over);
                false
            }
        }
    }

    /// Spends of a connection's rates; with the first of it begins the time after which it is forgotten.
    fn spend<T>(
        &mut self,
        key: ConnKey,
        spend: impl FnOnce(&mut ConnectionRateLimiter, &RateLimits, u64) -> T,
    ) -> Option<T> {
        let limiter = &mut self.conns.get_mut(key)?.intake.get_or_insert_default().rates;
        let is_first = limiter.is_new();
        let spent = spend(limiter, &self.settings.rates, self.now.monotonic_ms());
        if is_first {
            self.reschedule(key);
        }
        Some(spent)
    }

    fn refuse_over_rate(&mut self, key: ConnKey, bytes: &mut [u8], over: OverRate) {
        self.metrics.messages_in.add(1);
        self.fair.watch();
        self.count_error(ErrorCode::RateLimited);
        self.note(key, Note::RateLimited);
        // A binary message may be anything.
        let read = move |_: &Self| simdutf8::basic::from_utf8(bytes).is_ok().then(move || envelope::parse(bytes));
        let Some(parsed) = self.contain_in(key, read) else { return };
        let id = match parsed {
            Some(Ok(message)) => message.id.map(MessageId::from),
            Some(Err(error)) => error.id,
            None => None,
        };
        let id: Option<MessageIdRef<'_>> = id.as_ref().map(MessageId::borrow);
        let text = "too many messages or bytes a second; this one was not carried out";
        self.reply(key, id, |envelope| envelope.error(ErrorCode::RateLimited, &text));
        if over.refused >= OVER_RATE_MAX {
            self.end_flood(key);
        }
    }

    /// Counts frames that bring no message as messages: pings, pongs that nobody asked for, fragments that hardly bring
    /// their message forward. They are carried out all the same, until the connection is closed for them.
    pub(super) fn count_frames(&mut self, key: ConnKey, frames: u32) {
        if frames == 0 || self.settings.rates.messages.is_none() {
            return;
        }
        let Some(conn) = self.conns.get(key) else { return };
        if !conn.is_open() || conn.endpoint == Endpoint::Echo {
            return;
        }
        let is_flood = self.spend(key, |limiter, rates, now_ms| {
            let mut over = (0..frames).filter_map(|_| limiter.take(rates, now_ms, 0).err());
            over.any(|over| over.refused >= OVER_RATE_MAX)
        });
        if is_flood == Some(true) {
            self.end_flood(key);
        }
    }

    /// How many messages of a connection were refused so far without a pause.
    pub(super) fn refusals(&self, key: ConnKey) -> u16 {
        let intake = self.conns.get(key).and_then(|conn| conn.intake.as_deref());
        intake.map_or(0, |intake| intake.rates.refused())
    }

    /// A compressed message was work for so many bytes. If it was refused, since there were fewer refusals `before`, it counts for as
    /// many as that was worth: small messages cost little, and must not make much work for as long as plain ones may.
    pub(super) fn weigh_refusal(&mut self, key: ConnKey, before: u16, work_bytes: usize) {
        if self.refusals(key) <= before {
            return;
        }
        let more = u16::try_from(work_bytes / REFUSAL_BYTES).unwrap_or(u16::MAX);
        let Some(intake) = self.conns.get_mut(key).and_then(|conn| conn.intake.as_mut()) else { return };
        if intake.rates.weigh_refusal(more).refused >= OVER_RATE_MAX {
            self.end_flood(key);
        }
    }

    /// It would hardly stop to answer a close frame, so nothing more of what it sends is looked at.
    fn end_flood(&mut self, key: ConnKey) {
        self.part(key, Goodbye { then: Then::Linger, ..Goodbye::new(CloseReason::RateLimit, 4505, "rate limit") });
    }

    /// Forgets what a connection has spent once it has it all again.
    pub(super) fn forget_spent(&mut self, key: ConnKey) {
        let now_ms = self.now.monotonic_ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        let is_quiet = |intake: &Intake| intake.holds_nothing() && intake.rates.is_full(&self.settings.rates, now_ms);
        if conn.intake.as_deref().is_some_and(is_quiet) {
            conn.intake = None;
        }
    }
}
