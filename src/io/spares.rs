//! Buffers of private frames that have left, kept for the next ones.
//! Law: what is kept has a bound in bytes; a frame gets no buffer that is more than four times what it needs, so that who reads
//! slowly pins no more than what was said to it.

use crate::fixed::SpareBuffers;

/// A buffer that grew beyond this is a large one.
const SMALL_CAPACITY_MAX: usize = 4096;
/// Small buffers kept, at most: 1,024 × 4 KiB = 4 MiB a shard.
const SMALL_MAX: usize = 1024;
/// Capacity a new small buffer starts with: most replies have room in it.
const SMALL_CAPACITY: usize = 256;
/// Bytes of large buffers kept, at most. Each may have a quarter of that, which is twice what is gathered for one send.
const LARGE_BYTES_MAX: usize = 1024 * 1024;
/// So many large buffers there can be at most.
const LARGE_MAX: usize = LARGE_BYTES_MAX / SMALL_CAPACITY_MAX;

/// The buffers.
#[derive(Debug, Default)]
pub(super) struct Spares {
    small: Vec<Vec<u8>>,
    small_bytes: usize,
    large: SpareBuffers<LARGE_BYTES_MAX, LARGE_MAX>,
}

impl Spares {
    /// An empty buffer for a frame of which nothing is known.
    pub(super) fn take(&mut self) -> Vec<u8> {
        match self.small.pop() {
            Some(buffer) => {
                self.small_bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(SMALL_CAPACITY),
        }
    }

    /// Makes room for `more` bytes in a buffer. A small one that would become a large one is exchanged for such a one, so that
    /// neither kind runs out in favour of the other.
    #[inline]
    pub(super) fn make_room(&mut self, buffer: &mut Vec<u8>, more: usize) {
        let needed = buffer.len() + more;
        if needed <= buffer.capacity() {
            return;
        }
        match needed <= SMALL_CAPACITY_MAX {
            true => buffer.reserve_exact(needed.next_power_of_two() - buffer.len()),
            false => self.exchange(buffer, needed),
        }
    }

    #[cold]
    fn exchange(&mut self, buffer: &mut Vec<u8>, needed: usize) {
        let larger = self.large.take(needed..=needed.saturating_mul(4));
        let mut larger = larger.unwrap_or_else(|| Vec::with_capacity(needed.next_power_of_two()));
        larger.extend_from_slice(buffer);
        self.keep(std::mem::replace(buffer, larger));
    }

    /// Keeps a buffer, or gives it back to the allocator: a small one where there are enough, of large ones the oldest.
    pub(super) fn keep(&mut self, mut buffer: Vec<u8>) {
        match buffer.capacity() {
            0 => {}
            capacity @ ..=SMALL_CAPACITY_MAX => {
                if self.small.len() < SMALL_MAX {
                    buffer.clear();
                    self.small_bytes += capacity;
                    self.small.push(buffer);
                }
            }
            _ => self.large.keep(buffer),
        }
    }

    /// Bytes of the buffers.
    pub(super) fn bytes(&self) -> usize {
        self.small_bytes + self.large.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_outgrows_its_kind_is_exchanged_and_both_are_kept() {
        let mut spares = Spares::default();
        let mut buffer = spares.take();
        buffer.extend_from_slice(b"head");
        spares.make_room(&mut buffer, 10_000);
        assert_eq!((&buffer[..], buffer.capacity() >= 10_004, spares.small.len()), (&b"head"[..], true, 1));
        let (at, capacity) = (buffer.as_ptr(), buffer.capacity());
        spares.keep(buffer);
        assert_eq!(spares.large.bytes(), capacity);
        let mut again = spares.take();
        spares.make_room(&mut again, 10_000);
        assert_eq!((again.as_ptr(), again.len(), spares.large.bytes()), (at, 0, 0));
    }

    #[test]
    fn a_small_buffer_that_grows_in_small_steps_stays_a_small_one() {
        let mut spares = Spares::default();
        let mut buffer = spares.take();
        let mut capacities = Vec::new();
        for _ in 0..4 {
            spares.make_room(&mut buffer, 1000);
            buffer.resize(buffer.len() + 1000, 0);
            capacities.push(buffer.capacity());
        }
        assert_eq!(capacities, [1024, 2048, 4096, 4096]);
        spares.make_room(&mut buffer, 1000);
        assert_eq!((buffer.capacity(), spares.small[0].capacity()), (8192, 4096));
    }

    #[test]
    fn a_frame_gets_no_buffer_that_is_far_larger() {
        let mut spares = Spares::default();
        spares.keep(Vec::with_capacity(128 * 1024));
        let mut buffer = spares.take();
        spares.make_room(&mut buffer, 5_000);
        assert_eq!((buffer.capacity(), spares.large.bytes()), (8192, 128 * 1024));
    }

    #[test]
    fn what_is_kept_is_counted_and_has_a_bound() {
        let mut spares = Spares::default();
        for _ in 0..2 * SMALL_MAX {
            spares.keep(Vec::with_capacity(SMALL_CAPACITY));
            spares.keep(Vec::with_capacity(20_000));
        }
        spares.keep(Vec::new());
        let full = spares.bytes();
        assert_eq!((spares.small.len(), full - spares.large.bytes()), (SMALL_MAX, SMALL_MAX * SMALL_CAPACITY));
        assert!((LARGE_BYTES_MAX - 20_000..=LARGE_BYTES_MAX).contains(&spares.large.bytes()));
        let buffer = spares.take();
        assert_eq!(spares.bytes(), full - buffer.capacity());
    }
}
