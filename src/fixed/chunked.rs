//! An array that grows a chunk at a time.
//! Law: an element never moves, so growing costs one chunk and never a copy of everything before it.

use std::ops::{Index, IndexMut};

/// Elements in a chunk: the most that is ever allocated ahead of need.
pub(super) const CHUNK: usize = 512;

/// The array.
#[derive(Debug)]
pub struct Chunked<T> {
    chunks: Vec<Box<[T; CHUNK]>>,
}

impl<T> Chunked<T> {
    /// An empty one, which has allocated nothing.
    pub fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// Makes `index` valid, filling what is added with `vacant()`.
    pub fn grow_to(&mut self, index: u32, mut vacant: impl FnMut() -> T) {
        while self.chunks.len() <= index as usize / CHUNK {
            // Collected on the heap: an array built on the stack first could be larger than the stack.
            let chunk: Vec<T> = (0..CHUNK).map(|_| vacant()).collect();
            self.chunks.push(chunk.try_into().ok().expect("a chunk has CHUNK elements"));
        }
    }

    /// Memory of the chunks.
    pub fn bytes(&self) -> usize {
        self.chunks.len() * size_of::<[T; CHUNK]>()
    }

    /// The element at `index`, if the array has grown that far.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&T> {
        // The index within the chunk is below CHUNK by construction, so this is the one bounds check.
        Some(&self.chunks.get(index as usize / CHUNK)?[index as usize % CHUNK])
    }

    /// The element at `index`, to change.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        Some(&mut self.chunks.get_mut(index as usize / CHUNK)?[index as usize % CHUNK])
    }
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Index<u32> for Chunked<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: u32) -> &T {
        &self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }
}

impl<T> IndexMut<u32> for Chunked<T> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }
}
