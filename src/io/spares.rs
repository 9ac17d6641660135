//! Buffers of private frames that have left, kept for the next ones.
//! Law: what is kept has a bound in bytes; a frame gets no buffer that is more than four times what it needs, so that who reads
//! slowly pins no more than what was said to it.

use std::collections::VecDeque;

/// A buffer that grew beyond this is a large one.
const SMALL_CAPACITY_MAX: usize = 4096;
/// Small buffers kept, at most: 1,024 × 4 KiB = 4 MiB a shard.
const SMALL_MAX: usize = 1024;
/// Capacity a new small buffer starts with.
const SMALL_CAPACITY: usize = 512;
/// A buffer that grew beyond this is given back to the allocator. What is gathered for one send is half of it.
const LARGE_CAPACITY_MAX: usize = 256 * 1024;
/// Bytes of large buffers kept, at most.
const LARGE_BYTES_MAX: usize = 1024 * 1024;

/// The buffers.
#[derive(Debug, Default)]
pub(super) struct Spares {
    small: Vec<Vec<u8>>,
    /// Oldest first.
    large: VecDeque<Vec<u8>>,
    large_bytes: usize,
}

impl Spares {
    /// An empty buffer for a frame of which nothing is known.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.small.pop().unwrap_or_else(|| Vec::with_capacity(SMALL_CAPACITY))
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
        let fits = |large: &Vec<u8>| (needed..=needed.saturating_mul(4)).contains(&large.capacity());
        let mut larger = match self.large.iter().rposition(fits).and_then(|at| self.large.remove(at)) {
            Some(larger) => {
                self.large_bytes -= larger.capacity();
                larger
            }
            None => Vec::with_capacity(needed.next_power_of_two()),
        };
        larger.extend_from_slice(buffer);
        self.keep(std::mem::replace(buffer, larger));
    }

    /// Keeps a buffer, or gives it back to the allocator; where there are enough large ones, the oldest goes.
    pub(super) fn keep(&mut self, mut buffer: Vec<u8>) {
        match buffer.capacity() {
            0 | LARGE_CAPACITY_BEYOND.. => return,
            ..=SMALL_CAPACITY_MAX => {
                if self.small.len() < SMALL_MAX {
                    buffer.clear();
                    self.small.push(buffer);
                }
                return;
            }
            capacity => self.large_bytes += capacity,
        }
        buffer.clear();
        self.large.push_back(buffer);
        while self.large_bytes > LARGE_BYTES_MAX
            && let Some(oldest) = self.large.pop_front()
        {
            self.large_bytes -= oldest.capacity();
        }
    }
}

const LARGE_CAPACITY_BEYOND: usize = LARGE_CAPACITY_MAX + 1;

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
        assert_eq!(spares.large_bytes, capacity);
        let mut again = spares.take();
        spares.make_room(&mut again, 10_000);
        assert_eq!((again.as_ptr(), again.len(), spares.large_bytes), (at, 0, 0));
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
        assert_eq!((buffer.capacity(), spares.large_bytes), (8192, 128 * 1024));
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let mut spares = Spares::default();
        for _ in 0..2 * SMALL_MAX {
            spares.keep(Vec::with_capacity(SMALL_CAPACITY));
            spares.keep(Vec::with_capacity(20_000));
        }
        spares.keep(Vec::with_capacity(LARGE_CAPACITY_MAX + 1));
        spares.keep(Vec::new());
        let large: usize = spares.large.iter().map(Vec::capacity).sum();
        assert_eq!((spares.small.len(), spares.large_bytes), (SMALL_MAX, large));
        assert!((LARGE_BYTES_MAX - 20_000..=LARGE_BYTES_MAX).contains(&large), "{large}");
    }
}
