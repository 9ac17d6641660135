//! How many receivers there are for each window of compression, for all shards to see.
//! Law: touched when a receiver comes or goes, read by publishers. A publisher that misses the newest of them sends them
//! plain messages, which they can read too.

use crate::sync::{AtomicU32, Ordering};
use crate::ws::deflate::{WINDOW_BITS_MIN, WINDOWS, Windows};

/// Receivers by window.
#[derive(Debug)]
pub struct WindowCounts([AtomicU32; WINDOWS]);

impl Default for WindowCounts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl WindowCounts {
    /// A receiver comes; 0 or a window that nobody can compress with is not counted.
    pub fn join(&self, bits: u8) {
        if let Some(count) = self.of(bits) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A receiver that has come goes.
    pub fn leave(&self, bits: u8) {
        if let Some(count) = self.of(bits) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The windows that have a receiver.
    pub fn in_use(&self) -> Windows {
        let counts = self.0.iter().zip(WINDOW_BITS_MIN..);
        counts.filter(|(count, _)| count.load(Ordering::Relaxed) > 0).map(|(_, bits)| bits).collect()
    }

    fn of(&self, bits: u8) -> Option<&AtomicU32> {
        self.0.get(usize::from(bits.checked_sub(WINDOW_BITS_MIN)?))
    }
}
