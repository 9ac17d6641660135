//! New settings for a running shard.
//! Law: they are swapped between two turns, so nothing is judged by a mixture. What connections hold is adapted at once
//! where a message would meet it, and their timers, a slice of the slots each turn, before the shard sleeps again.

use std::ops::Range;

use crate::io::Io;

use super::Shard;
use super::settings::CONNS_A_TURN;

impl<I: Io> Shard<I> {
    pub(super) fn has_settings_to_take(&self) -> bool {
        self.resetting.is_some() || self.inbox.has_settings()
    }

    pub(super) fn take_settings(&mut self) {
        if let Some(settings) = self.inbox.take_settings() {
            // Keys change no timer: whoever has an identity keeps it.
            if settings.edition != self.settings.edition {
                self.resetting = Some(0);
            }
            if settings.connections_per_second != self.settings.connections_per_second {
                self.forget_pace();
            }
            self.codecs.set(&settings.compression);
            self.settings = settings;
            self.sessions.forget_beyond(self.settings.closed_sessions_max(self.shared.shards));
            tracing::debug!(shard = self.id.0, "new settings");
        }
        if let Some(from) = self.resetting {
            let (slice, rest) = slice(from, self.conns.slots());
            self.resetting = rest;
            for slot in slice {
                if let Some(key) = self.conns.key_of(slot) {
                    self.reschedule(key);
                }
            }
        }
    }
}

/// The slots to look at in this turn, and where to go on.
pub(super) fn slice(from: u32, slots: u32) -> (Range<u32>, Option<u32>) {
    let to = slots.min(from.saturating_add(CONNS_A_TURN));
    (from..to, (to < slots).then_some(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices() {
        assert_eq!(slice(0, 0), (0..0, None));
        assert_eq!(slice(0, 4096), (0..4096, None));
        assert_eq!(slice(0, 4097), (0..4096, Some(4096)));
        assert_eq!(slice(4096, 4097), (4096..4097, None));
        assert_eq!(slice(u32::MAX - 1, u32::MAX), (u32::MAX - 1..u32::MAX, None));
    }
}
