//! Cores: which ones this process may use, and pinning a thread to one. And what the thread is called.

#![allow(unsafe_code, reason = "sched_getaffinity, sched_setaffinity, gettid")]

use std::io;

/// The cores that this thread may run on, ascending.
///
/// # Errors
/// The machine has more cores than the mask of the C library has bits (1,024).
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    let mut set = Set::default();
    // SAFETY: the pointer and the size describe `set`, which the call may write.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<Set>(), (&raw mut set).cast()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((0..CORES_MAX).filter(|&core| set.0[core / 64] & 1 << (core % 64) != 0).collect())
}

/// Pins the current thread to `core`.
///
/// # Errors
/// `core` does not exist or is not allowed.
pub fn pin(core: usize) -> io::Result<()> {
    let mut set = Set::default();
    *set.0.get_mut(core / 64).ok_or(io::ErrorKind::InvalidInput)? |= 1 << (core % 64);
    // SAFETY: the pointer and the size describe `set`, which the call reads.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<Set>(), (&raw const set).cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The kernel's number of the current thread.
pub fn thread_id() -> u64 {
    // SAFETY: the call takes nothing and cannot fail.
    u64::try_from(unsafe { libc::gettid() }).unwrap_or(0)
}

const CORES_MAX: usize = 1024;

/// The kernel's core mask: one bit a core, in words.
#[derive(Default)]
#[repr(C)]
struct Set([u64; CORES_MAX / 64]);

const _: () =
    assert!(size_of::<Set>() == size_of::<libc::cpu_set_t>() && align_of::<Set>() == align_of::<libc::cpu_set_t>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_to_one_of_the_allowed_cores() {
        let core = *allowed_cores().unwrap().last().unwrap();
        std::thread::spawn(move || {
            pin(core).unwrap();
            assert_eq!(allowed_cores().unwrap(), [core]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_core_that_does_not_exist_is_refused() {
        assert!(pin(CORES_MAX - 1).is_err());
        assert!(pin(CORES_MAX).is_err());
    }
}
