//! The two clocks of the engine.
//! Law: the monotonic one counts suspended time and starts at 1 ns, so that 0 can mean "never".

#![allow(unsafe_code, reason = "clock_gettime")]

use std::sync::OnceLock;

use super::Now;

/// Reads both clocks (two vDSO calls, no syscall).
pub fn now() -> Now {
    Now { monotonic_ns: monotonic_ns(), unix_ms: read(libc::CLOCK_REALTIME) / 1_000_000 }
}

/// Reads the monotonic clock alone.
pub fn monotonic_ns() -> u64 {
    let boot_ns = read(libc::CLOCK_BOOTTIME);
    let start_ns = *START_NS.get_or_init(|| boot_ns.saturating_sub(1));
    boot_ns.saturating_sub(start_ns)
}

/// CLOCK_BOOTTIME at the first reading of the process: the engine's start.
static START_NS: OnceLock<u64> = OnceLock::new();

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live timespec that the call may write.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    debug_assert_eq!(result, 0, "both clocks exist on every kernel that has io_uring");
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_forward_and_unix_time_is_plausible() {
        let (first, second) = (now(), now());
        assert!(first.monotonic_ns >= 1 && second.monotonic_ns >= first.monotonic_ns);
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(u128::from(second.unix_ms).abs_diff(unix.as_millis()) < 60_000);
    }
}
