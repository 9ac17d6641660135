//! What messages were gathered in, kept for the next ones.
//! Law: what is kept has a bound in bytes; nobody gets more than twice what was received of a message, as if it were new.

use std::collections::VecDeque;

use super::{CAPACITY_MIN, Partial};

/// Memory of messages that have been handled. Whoever decodes for many keeps one for all of them.
#[derive(Debug, Default)]
pub struct Memory {
    #[expect(clippy::vec_box, reason = "a decoder is eight bytes, so what it points to comes and goes as it is")]
    partials: Vec<Box<Partial>>,
    /// Oldest first.
    buffers: VecDeque<Vec<u8>>,
    buffer_bytes: usize,
}

impl Memory {
    /// Where an incomplete frame or message is kept.
    pub(super) fn partial(&mut self) -> Option<Box<Partial>> {
        self.partials.pop()
    }

    /// Gives a buffer that is too small room for `needed` bytes, and `capacity` if it has to be made.
    pub(super) fn grow(&mut self, buffer: &mut Vec<u8>, needed: usize, capacity: usize) {
        let fits = |kept: &Vec<u8>| (needed..=(2 * needed).max(CAPACITY_MIN)).contains(&kept.capacity());
        let Some(mut larger) = self.buffers.iter().rposition(fits).and_then(|at| self.buffers.remove(at)) else {
            return buffer.reserve_exact(capacity - buffer.len());
        };
        self.buffer_bytes -= larger.capacity();
        larger.extend_from_slice(buffer);
        self.keep_buffer(std::mem::replace(buffer, larger));
    }

    /// A frame or message is over.
    pub(super) fn keep(&mut self, mut partial: Box<Partial>) {
        if let Some(message) = partial.message.take() {
            self.keep_buffer(message.bytes);
        }
        if self.partials.len() < PARTIALS_MAX {
            self.partials.push(partial);
        }
    }

    /// Where there are enough of them, the oldest goes.
    fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() == 0 || buffer.capacity() > BUFFER_BYTES_MAX {
            return;
        }
        buffer.clear();
        self.buffer_bytes += buffer.capacity();
        self.buffers.push_back(buffer);
        while (self.buffer_bytes > BUFFERS_BYTES_MAX || self.buffers.len() > BUFFERS_MAX)
            && let Some(oldest) = self.buffers.pop_front()
        {
            self.buffer_bytes -= oldest.capacity();
        }
    }
}

/// Incomplete messages whose place is kept, at most.
const PARTIALS_MAX: usize = 64;
/// Buffers kept, at most: they are looked through.
const BUFFERS_MAX: usize = 64;
/// Bytes of buffers kept, at most.
const BUFFERS_BYTES_MAX: usize = 512 * 1024;
/// A larger buffer is given back to the allocator.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_where_it_is_not_too_large() {
        let mut memory = Memory::default();
        memory.keep_buffer(Vec::with_capacity(4096));
        let mut small = Vec::with_capacity(100);
        small.extend_from_slice(b"head");
        memory.grow(&mut small, 2_000, 2_500);
        assert_eq!((&small[..], small.capacity(), memory.buffers.len()), (&b"head"[..], 2_500, 1), "twice is too much");
        memory.grow(&mut small, 3_000, 3_500);
        assert_eq!((&small[..], small.capacity()), (&b"head"[..], 4096));
        assert_eq!(memory.buffer_bytes, 2_500, "the one before is kept");
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let mut memory = Memory::default();
        for bytes in (0..4 * BUFFERS_MAX).flat_map(|_| [0, 1, 20_000, BUFFER_BYTES_MAX, BUFFER_BYTES_MAX + 1]) {
            memory.keep_buffer(Vec::with_capacity(bytes));
            let kept: usize = memory.buffers.iter().map(Vec::capacity).sum();
            assert_eq!(memory.buffer_bytes, kept);
            assert!(kept <= BUFFERS_BYTES_MAX && memory.buffers.len() <= BUFFERS_MAX);
            memory.keep(Box::default());
        }
        assert_eq!(memory.partials.len(), PARTIALS_MAX);
    }
}
