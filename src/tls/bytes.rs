//! Bytes as a shard gets them: where they were received, or out of records.
//! Law: what is lent goes back when this is dropped, whichever part of it is shown.

use std::ops::{Deref, DerefMut};

/// Received bytes.
#[derive(Debug)]
pub enum Bytes<B> {
    /// As they came.
    Whole(B),
    /// What was opened in the place where it came.
    Opened(B, usize),
    /// What came in pieces, and was opened when the last one was there.
    Own(Vec<u8>, usize),
}

impl<B: Deref<Target = [u8]>> Deref for Bytes<B> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Opened(bytes, len) => &bytes[..*len],
            Self::Own(bytes, len) => &bytes[..*len],
        }
    }
}

impl<B: DerefMut<Target = [u8]>> DerefMut for Bytes<B> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Opened(bytes, len) => &mut bytes[..*len],
            Self::Own(bytes, len) => &mut bytes[..*len],
        }
    }
}
