//! What messages were gathered in, kept for the next ones.
//! Law: what is kept has a bound in bytes; nobody gets more than twice what was received of a message, as if it were new.

use crate::fixed::SpareBuffers;

use super::{CAPACITY_MIN, Partial};

/// Memory of messages that have been handled. Whoever decodes for many keeps one for all of them.
#[derive(Debug, Default)]
pub struct Memory {
    #[expect(clippy::vec_box, reason = "a decoder is eight bytes, so what it points to comes and goes as it is")]
    partials: Vec<Box<Partial>>,
    buffers: SpareBuffers<BYTES_MAX, BUFFERS_MAX>,
}

impl Memory {
    /// Where an incomplete frame or message is kept.
    pub(super) fn partial(&mut self) -> Option<Box<Partial>> {
        self.partials.pop()
    }

    /// Gives a buffer that is too small room for `needed` bytes, and `capacity` if it has to be made.
    pub(super) fn grow(&mut self, buffer: &mut Vec<u8>, needed: usize, capacity: usize) {
        let Some(mut larger) = self.buffers.take(needed..=(2 * needed).max(CAPACITY_MIN)) else {
            return buffer.reserve_exact(capacity - buffer.len());
        };
        larger.extend_from_slice(buffer);
        self.buffers.keep(std::mem::replace(buffer, larger));
    }

    /// A frame or message is over.
    pub(super) fn keep(&mut self, mut partial: Box<Partial>) {
        if let Some(message) = partial.message.take() {
            self.buffers.keep(message.bytes);
        }
        if self.partials.len() < PARTIALS_MAX {
            self.partials.push(partial);
        }
    }

    /// Bytes of what is kept.
    pub fn bytes(&self) -> usize {
        self.partials.len() * size_of::<Partial>() + self.buffers.bytes()
    }
}

/// Incomplete messages whose place is kept, at most.
const PARTIALS_MAX: usize = 64;
/// Bytes of buffers kept, at most. Each may have a quarter of that.
const BYTES_MAX: usize = 512 * 1024;
/// Buffers kept, at most: they are looked through.
const BUFFERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_where_it_is_not_too_large() {
        let mut memory = Memory::default();
        memory.buffers.keep(Vec::with_capacity(4096));
        let mut small = Vec::with_capacity(100);
        small.extend_from_slice(b"head");
        memory.grow(&mut small, 2_000, 2_500);
        assert_eq!((&small[..], small.capacity(), memory.bytes()), (&b"head"[..], 2_500, 4096), "twice is too much");
        memory.grow(&mut small, 3_000, 3_500);
        assert_eq!((&small[..], small.capacity()), (&b"head"[..], 4096));
        assert_eq!(memory.bytes(), 2_500, "the one before is kept");
        let mut new = Vec::new();
        memory.buffers.keep(Vec::with_capacity(CAPACITY_MIN));
        memory.grow(&mut new, 1, CAPACITY_MIN);
        assert_eq!((new.capacity(), memory.bytes()), (CAPACITY_MIN, 2_500), "none is smaller");
    }

    #[test]
    fn places_that_are_kept_have_a_bound_and_are_counted() {
        let mut memory = Memory::default();
        for _ in 0..2 * PARTIALS_MAX {
            memory.keep(Box::default());
        }
        assert_eq!(memory.bytes(), PARTIALS_MAX * size_of::<Partial>());
        memory.partial();
        assert_eq!(memory.bytes(), (PARTIALS_MAX - 1) * size_of::<Partial>());
    }
}
