//! The receive buffers of one shard, which the kernel fills by its own choice (a provided-buffer ring).
//!
//! Law: at any time a buffer is with the kernel (published), lent as one [`RecvBuffer`], or on the list of returned
//! ones; never in two places. The memory outlives every lent buffer and every request that may still fill one.

#![allow(unsafe_code, reason = "memory that is shared with the kernel")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use io_uring::{Submitter, opcode, squeue};

use super::asan;

/// Most buffers a kernel ring can hold.
pub(super) const BUFFERS_MAX: u16 = 32_768;
/// The one buffer group of a driver.
pub(super) const GROUP: u16 = 0;

/// Bytes that were received. Goes back to the kernel, with all its neighbours, in the [`wait`](super::Io::wait) after
/// it was dropped.
pub struct RecvBuffer {
    memory: Rc<Memory>,
    buffer: u16,
    len: u32,
}

impl Deref for RecvBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.memory.address(self.buffer);
        // SAFETY: the kernel wrote `len` bytes (checked against the size when lent) of this buffer, which is mapped as
        // long as `memory` lives and belongs to this guard alone until dropped: the kernel gave it away.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for RecvBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.memory.address(self.buffer);
        // SAFETY: as in `deref`, and the borrow of `self` is unique.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.len as usize) }
    }
}

impl Drop for RecvBuffer {
    fn drop(&mut self) {
        self.memory.give(self.buffer);
        self.memory.returned.borrow_mut().push(self.buffer);
    }
}

impl fmt::Debug for RecvBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBuffer({} bytes)", self.len)
    }
}

/// The kernel's queue of free buffers, and the buffers.
pub(super) struct RecvRing {
    memory: Rc<Memory>,
    tail: u16,
    /// Where in the kernel's queue each buffer was published last.
    places: Vec<u16>,
}

impl RecvRing {
    /// Maps and fills in the memory for `buffers` of `buffer_size` bytes; all of them are published.
    ///
    /// # Errors
    /// No buffers, more than [`BUFFERS_MAX`], empty ones, or not enough memory.
    pub(super) fn new(buffers: u16, buffer_size: u32) -> io::Result<Self> {
        if buffers == 0 || buffers > BUFFERS_MAX || buffer_size == 0 {
            let why = format!("{buffers} receive buffers of {buffer_size} bytes: 1 to {BUFFERS_MAX}, not empty");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let memory = Memory::map(buffers, buffer_size)?;
        (0..buffers).for_each(|buffer| memory.give(buffer));
        memory.returned.borrow_mut().extend(0..buffers);
        let mut ring = Self { memory: Rc::new(memory), tail: 0, places: vec![0; usize::from(buffers)] };
        ring.republish();
        Ok(ring)
    }

    /// Makes the ring known to the kernel as group [`GROUP`].
    ///
    /// # Errors
    /// The kernel's own.
    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let entries = self.memory.entries();
        let address = entries.as_ptr() as u64;
        // SAFETY: the address is that of `entries.len()` entries, page-aligned, in a mapping that the driver unmaps only
        // after it has unregistered the group (see `Drop for Uring`).
        unsafe { submitter.register_buf_ring_with_flags(address, entries.len() as u16, GROUP, 0) }
    }

    /// The buffer that a completion names, and in `rest` those that the kernel filled after it, in the order in which they were
    /// published; `len` bytes in all. The entries say how long each was to the kernel, which may have shortened one, and
    /// stay as they are until all buffers of this completion have been lent and given back.
    pub(super) fn lend(&self, first: u16, len: u32, rest: &mut VecDeque<RecvBuffer>) -> RecvBuffer {
        assert!(first < self.memory.buffers, "the kernel named a buffer it never got");
        let mut place = self.places[usize::from(first)];
        let bytes = self.lend_at(place, len);
        let mut left = len - bytes.len;
        while left > 0 {
            place = place.wrapping_add(1);
            let more = self.lend_at(place, left);
            assert!(more.len > 0, "the kernel filled a buffer it never got");
            left -= more.len;
            rest.push_back(more);
        }
        bytes
    }

    /// The buffer that was published at this place, filled as far as `most` bytes fill it.
    fn lend_at(&self, place: u16, most: u32) -> RecvBuffer {
        let entries = self.memory.entries();
        let entry = &entries[usize::from(place) & (entries.len() - 1)];
        let (buffer, len) = (entry.buffer.load(Ordering::Relaxed), entry.len.load(Ordering::Relaxed).min(most));
        assert!(len <= self.memory.buffer_size, "the kernel filled more than there is");
        asan::take_back(self.memory.address(buffer).as_ptr(), len as usize);
        RecvBuffer { memory: Rc::clone(&self.memory), buffer, len }
    }

    /// Gives the returned buffers back to the kernel; how many there were.
    pub(super) fn republish(&mut self) -> u64 {
        let entries = self.memory.entries();
        let mut returned = self.memory.returned.borrow_mut();
        let count = returned.len() as u64;
        for buffer in returned.drain(..) {
            let entry = &entries[usize::from(self.tail) & (entries.len() - 1)];
            entry.address.store(self.memory.address(buffer).as_ptr() as u64, Ordering::Relaxed);
            entry.len.store(self.memory.buffer_size, Ordering::Relaxed);
            entry.buffer.store(buffer, Ordering::Relaxed);
            self.places[usize::from(buffer)] = self.tail;
            self.tail = self.tail.wrapping_add(1);
        }
        if count > 0 {
            // Release: the kernel must see the entries before it sees the tail that covers them.
            entries[0].tail.store(self.tail, Ordering::Release);
        }
        count
    }

    /// Size of one buffer.
    pub(super) fn buffer_size(&self) -> u32 {
        self.memory.buffer_size
    }

    /// Never unmaps the memory: for a kernel that could not be made to let go of it.
    pub(super) fn leak(&self) {
        std::mem::forget(Rc::clone(&self.memory));
    }
}

/// Makes of a receive of at most so many bytes at once one into buffers of the ring that goes on until it has brought `most`
/// bytes. After those at once it lets the receives of other connections have their turn; they come in one completion,
/// whatever number of buffers they fill.
pub(super) fn bounded_receive(at_once: opcode::Recv, most: u32) -> squeue::Entry {
    const MULTISHOT: u16 = 1 << 1; // IORING_RECV_MULTISHOT
    const BUNDLE: u16 = 1 << 4; // IORING_RECVSEND_BUNDLE
    const MOST_AT: usize = 44; // `optlen` of `struct io_uring_sqe`
    const { assert!(size_of::<squeue::Entry>() == 64, "the layout that the kernel reads") };
    let mut entry = at_once.ioprio(MULTISHOT | BUNDLE).buf_group(GROUP).build().flags(squeue::Flags::BUFFER_SELECT);
    let field = (&raw mut entry).cast::<u8>().wrapping_add(MOST_AT).cast::<u32>();
    // SAFETY: a submission is 64 bytes of plain numbers, aligned to 8, which this one owns; four of them are written.
    unsafe { field.write(most) };
    entry
}

/// One place of the kernel's queue (`struct io_uring_buf`). The queue's tail lies in the reserved bytes of the first.
/// Atomics, because the kernel reads while we write.
#[repr(C)]
struct Entry {
    address: AtomicU64,
    len: AtomicU32,
    buffer: AtomicU16,
    tail: AtomicU16,
}

const _: () = assert!(size_of::<Entry>() == size_of::<io_uring::types::BufRingEntry>());

/// One mapping: the entries (whole pages), then the buffers.
struct Memory {
    base: NonNull<u8>,
    mapped: usize,
    entries: usize,
    entries_bytes: usize,
    buffers: u16,
    buffer_size: u32,
    /// Dropped guards leave their buffer's number here. As large as the number of buffers from the start.
    returned: RefCell<Vec<u16>>,
}

impl Memory {
    fn map(buffers: u16, buffer_size: u32) -> io::Result<Self> {
        let entries = usize::from(buffers.next_power_of_two());
        let entries_bytes = (entries * size_of::<Entry>()).next_multiple_of(PAGE);
        let mapped = entries_bytes + usize::from(buffers) * buffer_size as usize;
        // Populated at once: page faults in the middle of the first burst of traffic are the wrong time.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("mmap never returns null without MAP_FIXED");
        let returned = RefCell::new(Vec::with_capacity(usize::from(buffers)));
        Ok(Self { base, mapped, entries, entries_bytes, buffers, buffer_size, returned })
    }

    fn entries(&self) -> &[Entry] {
        // SAFETY: the mapping starts, page-aligned, with room for this many entries; all-zero bytes are valid entries;
        // all access is atomic.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.entries) }
    }

    fn address(&self, buffer: u16) -> NonNull<u8> {
        debug_assert!(buffer < self.buffers);
        let offset = self.entries_bytes + usize::from(buffer) * self.buffer_size as usize;
        // SAFETY: `buffer < buffers`, so the offset lies within the mapping.
        unsafe { self.base.add(offset) }
    }

    /// Nobody looks into the buffer from here on, until it is lent.
    fn give(&self, buffer: u16) {
        asan::give(self.address(buffer).as_ptr(), self.buffer_size as usize);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        asan::take_back(self.base.as_ptr(), self.mapped); // another mapping may be there next
        // SAFETY: the mapping was made by `map`. No guard is left (each holds an `Rc` of this), and the driver, which
        // holds another, drops its one only after the kernel has let go or leaks it (`Drop for Uring`).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

/// Page size of every supported architecture's default kernel, or a divisor of it.
const PAGE: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_published_again_even_by_a_panic() {
        let mut ring = RecvRing::new(3, 64).unwrap();
        assert_eq!((ring.tail, ring.republish()), (3, 0), "all published, nothing returned");
        let lent = ring.lend(1, 64, &mut VecDeque::new());
        let other = ring.lend(2, 0, &mut VecDeque::new());
        assert_eq!(ring.republish(), 0, "lent");
        drop(lent);
        assert_eq!(ring.republish(), 1);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = other;
            panic!("a handler failed");
        }));
        assert!(panicked.is_err());
        assert_eq!((ring.republish(), ring.tail), (1, 5));
        let published = &ring.memory.entries()[4 % 4];
        assert_eq!(published.buffer.load(Ordering::Relaxed), 2);
        assert_eq!(published.address.load(Ordering::Relaxed), ring.memory.address(2).as_ptr() as u64);
    }

    #[test]
    fn buffers_that_were_filled_together_come_in_the_order_of_the_ring() {
        let mut ring = RecvRing::new(4, 64).unwrap();
        let mut rest = VecDeque::new();
        // Given back in another order than they came in, some of them around the end of the queue.
        let lent: Vec<_> = (0..4).map(|buffer| ring.lend(buffer, 64, &mut rest)).collect();
        assert!(rest.is_empty());
        for buffer in lent.into_iter().rev() {
            drop(buffer);
            ring.republish();
        }
        ring.memory.entries()[1].len.store(10, Ordering::Relaxed); // the kernel takes less of a buffer at times
        let first = ring.lend(3, 64 + 10 + 5, &mut rest);
        let lent: Vec<_> = std::iter::once(&first).chain(&rest).map(|bytes| (bytes.buffer, bytes.len)).collect();
        assert_eq!(lent, [(3, 64), (2, 10), (1, 5)]);
        drop((first, std::mem::take(&mut rest)));
        assert_eq!(ring.republish(), 3);
        assert_eq!(ring.memory.entries()[1].len.load(Ordering::Relaxed), 64, "whole again");
        let first = ring.lend(0, 64 + 1, &mut rest);
        assert_eq!((first.buffer, rest.len(), rest[0].buffer), (0, 1, 3));
    }

    #[test]
    #[should_panic(expected = "never got")]
    fn more_than_all_buffers_hold_is_not_believed() {
        let ring = RecvRing::new(3, 64).unwrap();
        ring.lend(0, 64 * 4 + 1, &mut VecDeque::new());
    }

    #[test]
    fn a_lent_buffer_outlives_the_ring() {
        let ring = RecvRing::new(2, 4096).unwrap();
        let mut lent = ring.lend(1, 5, &mut VecDeque::new());
        drop(ring);
        lent.copy_from_slice(b"alive");
        assert_eq!(&*lent, b"alive");
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for (buffers, size) in [(0, 64), (BUFFERS_MAX + 1, 64), (1, 0)] {
            assert_eq!(RecvRing::new(buffers, size).err().unwrap().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
