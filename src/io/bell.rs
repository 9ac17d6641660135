//! The doorbell of one shard: wakes its thread when something was put into its inbox, and costs nothing while it runs.
//!
//! Law: nobody who put something in before ringing is missed, and a shard that is awake is never interrupted.
//!
//! # The protocol
//! ```text
//! shard:   announce_sleep()  →  look into every inbox again  →  wait (or not)  →  awake()
//! others:  put it in         →  ring()
//! ```
//! Both sides write, pass a sequentially consistent fence, and then read what the other wrote. So either the ringer sees
//! the announcement and wakes the shard, or the shard's second look sees what was put in; never neither. Of many
//! ringers one takes the announcement and pays for the wake.
//!
//! A thread without a ring wakes the shard through an eventfd that the shard's driver watches; a thread with a ring
//! sends MSG_RING to [`Bell::ring_fd`] with [`USER_DATA`], after [`Bell::take_sleeper`] said yes.

#![allow(unsafe_code, reason = "eventfd")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicI32;

use super::Doorbell;
use super::token::{Op, Token};
use crate::sync::{AtomicBool, Ordering, fence};

/// User data of a MSG_RING that rings a shard from another ring.
pub const USER_DATA: u64 = Token::of_driver(Op::Rang, 0).0;

/// A shard's doorbell. Made before the shard's thread starts and shared by all who may ring it.
#[derive(Debug)]
pub struct Bell {
    asleep: AtomicBool,
    /// Never read: a poll reports every write, and 2^64 rings do not happen.
    eventfd: File,
    /// A duplicate of the shard's ring descriptor, which this owns, until the shard has another ring; -1: none.
    ring: AtomicI32,
}

impl Bell {
    /// A bell whose shard is awake.
    ///
    /// # Errors
    /// No descriptor was free.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { asleep: AtomicBool::new(false), eventfd: File::from(fd), ring: AtomicI32::new(-1) })
    }

    /// The shard is about to sleep. It must look into its inboxes once more after this, and not sleep if it finds
    /// anything.
    pub fn announce_sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The shard is awake; ringers need not wake it.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the shard if it sleeps. Any thread may call this, after it put something in.
    pub fn ring(&self) {
        if self.take_sleeper() {
            self.knock();
        }
    }

    /// Whether the shard sleeps and this caller is the one to wake it: true for one caller a sleep.
    pub fn take_sleeper(&self) -> bool {
        fence(Ordering::SeqCst);
        let take = || self.asleep.compare_exchange(true, false, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        self.asleep.load(Ordering::Relaxed) && take()
    }

    /// The ring to send MSG_RING to; `None` until the shard has its driver.
    ///
    /// If the shard starts again before the message is sent, the number may be closed, or another file's: then the
    /// message fails or wakes somebody for nothing. Nobody is missed, since a shard that starts looks into every inbox.
    pub fn ring_fd(&self) -> Option<RawFd> {
        Some(self.ring.load(Ordering::Relaxed)).filter(|&fd| fd >= 0)
    }

    /// Wakes the shard through its eventfd, asleep or not.
    pub(super) fn knock(&self) {
        // The only failure of this write is a counter at its maximum, and then the shard has been woken.
        let _ = (&self.eventfd).write(&1u64.to_ne_bytes());
    }

    /// The descriptor that becomes readable with the first knock, and reports each one to a poll.
    pub(super) fn eventfd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// Tells ringers the shard's ring, in place of a former one, which is closed.
    pub(super) fn set_ring(&self, ring: OwnedFd) {
        close(self.ring.swap(ring.into_raw_fd(), Ordering::AcqRel));
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        close(*self.ring.get_mut());
    }
}

/// Closes a descriptor that a bell has owned, if it is one.
fn close(fd: RawFd) {
    if fd >= 0 {
        // SAFETY: it came out of an `OwnedFd` and has left the bell, so nobody else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        Bell::ring(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ringer_takes_the_sleeper() {
        let bell = Bell::new().unwrap();
        assert!(!bell.take_sleeper(), "awake");
        bell.announce_sleep();
        assert!(bell.take_sleeper());
        assert!(!bell.take_sleeper(), "taken");
        bell.announce_sleep();
        bell.awake();
        assert!(!bell.take_sleeper(), "awake again");
    }

    #[test]
    fn user_data_is_that_of_a_ring() {
        assert_eq!(Token(USER_DATA).op(), Some(Op::Rang));
    }
}
