//! Buffers that are not in use, kept for whoever needs one next.
//! Law: never more than `BYTES_MAX` bytes and `BUFFERS_MAX` buffers inside; where one more is too much, the oldest goes back to
//! the allocator.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// Empty buffers with what they have room for.
#[derive(Debug, Default)]
pub struct SpareBuffers<const BYTES_MAX: usize, const BUFFERS_MAX: usize> {
    /// Oldest first.
    buffers: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl<const BYTES_MAX: usize, const BUFFERS_MAX: usize> SpareBuffers<BYTES_MAX, BUFFERS_MAX> {
    /// A larger buffer is not kept, since it would be most of what is.
    pub const CAPACITY_MAX: usize = BYTES_MAX / 4;

    /// Takes out the newest buffer with such a capacity in bytes. All are looked through.
    pub fn take(&mut self, capacities: RangeInclusive<usize>) -> Option<Vec<u8>> {
        let at = self.buffers.iter().rposition(|buffer| capacities.contains(&buffer.capacity()))?;
        let buffer = self.buffers.remove(at)?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// Keeps a buffer, what is in it left out, or gives it back to the allocator if it is too large.
    pub fn keep(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() == 0 || buffer.capacity() > Self::CAPACITY_MAX {
            return;
        }
        buffer.clear();
        self.bytes += buffer.capacity();
        self.buffers.push_back(buffer);
        while (self.bytes > BYTES_MAX || self.buffers.len() > BUFFERS_MAX)
            && let Some(oldest) = self.buffers.pop_front()
        {
            self.bytes -= oldest.capacity();
        }
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spares = SpareBuffers<1000, 8>;

    /// What is inside: capacities, oldest first.
    #[track_caller]
    fn check(spares: &Spares, capacities: &[usize]) {
        let inside: Vec<usize> = spares.buffers.iter().map(Vec::capacity).collect();
        assert_eq!((inside.as_slice(), spares.bytes()), (capacities, capacities.iter().sum()));
        assert!(spares.buffers.iter().all(Vec::is_empty));
    }

    fn kept(capacities: impl IntoIterator<Item = usize>) -> Spares {
        let mut spares = Spares::default();
        for capacity in capacities {
            let mut buffer = Vec::with_capacity(capacity);
            buffer.resize(capacity, 7);
            spares.keep(buffer);
        }
        spares
    }

    #[test]
    fn the_newest_that_fits_is_taken() {
        let mut spares = kept([100, 20, 100, 30]);
        let newest = spares.buffers[2].as_ptr();
        assert_eq!(spares.take(31..=99), None);
        assert_eq!(spares.take(50..=100).map(|buffer| (buffer.as_ptr(), buffer.len())), Some((newest, 0)));
        check(&spares, &[100, 20, 30]);
        assert_eq!(spares.take(20..=20).map(|buffer| buffer.capacity()), Some(20));
        check(&spares, &[100, 30]);
    }

    #[test]
    fn the_oldest_make_room() {
        check(&kept([10, 20, 250, 250, 250, 250]), &[250, 250, 250, 250]);
        check(&kept([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), &[3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn nothing_is_kept_that_is_none_or_would_be_most_of_it() {
        check(&kept([0, Spares::CAPACITY_MAX, Spares::CAPACITY_MAX + 1]), &[Spares::CAPACITY_MAX]);
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let mut spares = Spares::default();
        for capacity in (0..1000).map(|round| round * 37 % 300) {
            spares.keep(Vec::with_capacity(capacity));
            let inside: usize = spares.buffers.iter().map(Vec::capacity).sum();
            assert_eq!(spares.bytes(), inside);
            assert!(inside <= 1000 && spares.buffers.len() <= 8);
        }
    }
}
