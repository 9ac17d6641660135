//! Memory that the allocator keeps for later.

#![allow(unsafe_code, reason = "malloc_trim")]

/// Gives free pages of the allocator back to the system, where the C library can be told to (malloc_trim(3)); elsewhere it does
/// as it likes. Takes the lock of each arena in turn, so it is for moments in which little is going on.
pub(in crate::io) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number and touches nothing but the allocator's own, under its locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
