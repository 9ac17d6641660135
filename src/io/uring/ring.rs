//! The ring itself: a submission queue that never loses an entry, a completion queue, and one `io_uring_enter` a turn.
//! Law: entries reach the kernel in the order they were pushed.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter, cqueue, squeue};

use super::Counters;
use crate::io::probe::{self, Features};

/// A ring of the calling thread.
pub(super) struct Ring {
    // The parts borrow from `memory`, whose drop comes after theirs by the order of these fields. They are kept, rather
    // than split off each time, because the submitter is what remembers the registered descriptor.
    submitter: Submitter<'static>,
    submissions: SubmissionQueue<'static>,
    completions: CompletionQueue<'static>,
    memory: RingMemory,
    /// Flags of every enter.
    flags: EnterFlags,
    /// Set when entries could not be given to the kernel for good; ends the driver.
    broken: Option<io::Error>,
    pub(super) counters: Counters,
}

impl Ring {
    pub(super) fn new(submissions: u32, completions: u32, tells_work: bool) -> io::Result<(Self, Features)> {
        let probe::Ready { ring, features } = probe::build_ring(submissions, completions, tells_work)?;
        let memory = RingMemory(NonNull::from(Box::leak(Box::new(ring))));
        let ring: *mut IoUring = memory.0.as_ptr();
        // SAFETY: the box lives until `memory` drops, which is after the parts that borrow from it, and nothing but the
        // parts uses it in between.
        let ring: &'static mut IoUring = unsafe { &mut *ring };
        let (mut submitter, submissions, completions) = ring.split();
        submitter.register_ring_fd()?;
        let mut flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if features.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let counters = Counters::default();
        Ok((Self { submitter, submissions, completions, memory, flags, broken: None, counters }, features))
    }

    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// The ring's own descriptor, for a duplicate.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the box lives as long as `self`.
        let ring = unsafe { self.memory.0.as_ref() };
        // SAFETY: the descriptor is open as long as the ring, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }
    }

    /// Queues one entry; a full queue is submitted on the spot.
    ///
    /// # Safety
    /// The memory that the entry names stays valid, and untouched where the kernel writes it, until its last completion.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        if self.submissions.is_full() && !self.make_room() {
            return;
        }
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.submissions.push(entry) };
        debug_assert!(pushed.is_ok());
    }

    /// Submits in the middle of a turn until a place is free. False when the kernel takes nothing any more.
    #[cold]
    fn make_room(&mut self) -> bool {
        for _ in 0..ROOM_ATTEMPTS {
            self.submissions.sync();
            if !self.submissions.is_full() {
                return true;
            }
            self.counters.enters += 1;
            self.counters.full_queues += 1;
            // No GETEVENTS: completions wait for the turn they belong to.
            // SAFETY: no argument is passed, and what the entries name was promised when they were pushed.
            let taken = unsafe { self.submitter.enter::<()>(self.submissions.len() as u32, 0, 0, None) };
            match taken {
                Ok(taken) => self.counters.submitted += taken as u64,
                Err(error) if is_temporary(&error) => std::thread::yield_now(),
                Err(error) => {
                    self.broken.get_or_insert(error);
                    return false;
                }
            }
        }
        self.broken.get_or_insert_with(|| io::Error::other("the kernel takes no more submissions"));
        false
    }

    /// Whether everything that was pushed has been submitted.
    pub(super) fn is_submitted(&self) -> bool {
        self.submissions.is_empty()
    }

    /// Whether completions are waiting.
    pub(super) fn has_completions(&mut self) -> bool {
        self.completions.sync();
        !self.completions.is_empty()
    }

    /// Whether the kernel has work that an enter would do. Known only to rings that were made for busy polling.
    pub(super) fn has_task_work(&self) -> bool {
        self.submissions.taskrun()
    }

    /// The next completion that is there.
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        self.completions.next()
    }

    /// Submits everything, runs the kernel's task work and, with `wanted` = 1, sleeps until a completion is there or
    /// `timeout` has passed.
    ///
    /// The kernel runs twenty pieces of that work in one call, in the order in which they came. So that many who came first
    /// do not keep a later one from being seen for many turns, it is asked again as long as there are as many, until there
    /// are `most` completions.
    pub(super) fn enter(&mut self, wanted: u32, timeout: Option<Duration>, most: usize) -> io::Result<()> {
        let mut before = self.completions.len();
        self.enter_once(wanted, timeout)?;
        while self.completions.len() >= before + WORK_A_CALL && self.completions.len() < most {
            before = self.completions.len();
            self.enter_once(0, None)?;
        }
        Ok(())
    }

    fn enter_once(&mut self, wanted: u32, timeout: Option<Duration>) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        let timespec = Timespec::from(timeout.unwrap_or_default());
        let mut arguments = SubmitArgs::new();
        if timeout.is_some() {
            arguments = arguments.timespec(&timespec);
        }
        loop {
            // Publishes the new tail and head: the kernel counts what is unread against `wanted`.
            self.submissions.sync();
            self.completions.sync();
            let queued = self.submissions.len();
            self.counters.enters += 1;
            let flags = self.flags.bits();
            // SAFETY: `arguments` is what EXT_ARG asks for and lives through the call, as does the timespec in it; what
            // the entries name was promised when they were pushed.
            let taken = unsafe { self.submitter.enter(queued as u32, wanted, flags, Some(&arguments)) };
            self.submissions.sync();
            self.completions.sync();
            self.counters.overflows = u64::from(self.completions.overflow());
            match taken {
                Ok(taken) => {
                    self.counters.submitted += taken as u64;
                    if taken == queued {
                        return Ok(());
                    }
                    // The kernel stopped early and did not sleep; the rest follows at once.
                }
                Err(error) => match error.raw_os_error() {
                    // Nothing was submitted, or all of it was: a count would have come back otherwise.
                    Some(libc::ETIME | libc::EINTR) => return Ok(()),
                    // Completions must be read, or memory be freed, before the kernel goes on: the next turn tries again.
                    Some(libc::EAGAIN | libc::EBUSY) => {
                        std::thread::yield_now();
                        return Ok(());
                    }
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The registration holds the ring open until the thread ends.
        let _ = self.submitter.unregister_ring_fd();
    }
}

/// The one owner of the boxed ring.
struct RingMemory(NonNull<IoUring>);

impl Drop for RingMemory {
    fn drop(&mut self) {
        // SAFETY: the pointer is that of a leaked box and this is its one owner; the parts are gone (field order).
        let ring = unsafe { Box::from_raw(self.0.as_ptr()) };
        drop(ring);
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// How often a full queue is offered to the kernel before the ring counts as broken.
const ROOM_ATTEMPTS: u32 = 10_000;

/// How much task work the kernel does in one call (IO_LOCAL_TW_DEFAULT_MAX, since 6.13).
const WORK_A_CALL: usize = 20;

// `enter` is told the argument's size by its type.
const _: () = assert!(mem::size_of::<SubmitArgs<'_, '_>>() == 24);
