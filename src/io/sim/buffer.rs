//! The receive buffers of a simulated shard.
//! Law: there are as many as the ring was made with; one that comes back carries nothing of what was in it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// Bytes that were received; the buffer goes back to its shard when dropped.
#[derive(Debug)]
pub struct Buffer {
    block: Box<[u8]>,
    filled: usize,
    pool: Rc<Pool>,
}

#[derive(Debug)]
pub(super) struct Pool {
    free: RefCell<Vec<Box<[u8]>>>,
    buffers: usize,
    buffer_size: usize,
}

impl Pool {
    pub fn new(buffers: usize, buffer_size: usize) -> Rc<Self> {
        let free = (0..buffers).map(|_| vec![POISON; buffer_size].into_boxed_slice()).collect();
        Rc::new(Self { free: RefCell::new(free), buffers, buffer_size })
    }

    pub fn free(&self) -> usize {
        self.free.borrow().len()
    }

    pub fn lent(&self) -> usize {
        self.buffers - self.free()
    }

    /// Bytes of one buffer.
    pub fn buffer_size(&self) -> usize {
        self.buffer_size
    }

    /// Moves the first `count` bytes of `source` into a buffer, if one is free.
    pub fn fill(self: &Rc<Self>, source: &mut VecDeque<u8>, count: usize) -> Option<Buffer> {
        let mut block = self.free.borrow_mut().pop()?;
        for (to, from) in block.iter_mut().zip(source.drain(..count)) {
            *to = from;
        }
        Some(Buffer { block, filled: count, pool: Rc::clone(self) })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.block[..self.filled]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.block[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut block = std::mem::take(&mut self.block);
        block.fill(POISON);
        self.pool.free.borrow_mut().push(block);
    }
}

/// What a free buffer is filled with.
const POISON: u8 = 0xdd;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_poisoned() {
        let pool = Pool::new(1, 4);
        let mut source = VecDeque::from(*b"abcde");
        let buffer = pool.fill(&mut source, 3).unwrap();
        assert_eq!((&buffer[..], source.len(), pool.free()), (&b"abc"[..], 2, 0));
        assert!(pool.fill(&mut source, 1).is_none());
        assert_eq!(source.len(), 2, "no buffer, no bytes taken");
        drop(buffer);
        assert_eq!(&*pool.free.borrow()[0], &[POISON; 4]);
    }
}
