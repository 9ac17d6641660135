//! What the kernel says of this process and of the shards' threads.
//! Law: what cannot be read is left out of the scrape, never guessed.

use std::fs;
use std::time::Duration;

/// Seconds of processor time of the whole process, user and system.
pub(super) fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, which may hold anything, parentheses too.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / TICKS_PER_SECOND)
}

/// A field of `/proc/self/status` that is in kibibytes, `VmRSS` for instance; in bytes.
pub(super) fn memory_bytes(field: &str) -> Option<u64> {
    Some(status(field)?.strip_suffix("kB")?.trim_end().parse::<u64>().ok()? * 1024)
}

/// Threads of the process.
pub(super) fn threads() -> Option<u64> {
    status("Threads")?.parse().ok()
}

/// The kernel says the number as the size of the directory since 6.2; before, the entries are counted.
pub(super) fn open_fds() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}

/// Descriptors that the process may have open; `None` if it may have any number.
pub(super) fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How long a thread of this process has run, and how long it could have but waited for a core.
pub(super) fn thread_times(thread: u64) -> Option<(Duration, Duration)> {
    let times = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    let mut times = times.split_whitespace().map(str::parse).map_while(Result::ok).map(Duration::from_nanos);
    Some((times.next()?, times.next()?))
}

fn status(field: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// USER_HZ, which is part of the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_all_of_it() {
        while cpu_seconds().unwrap() == 0.0 {} // it counts in ticks of 10 ms
        assert!(memory_bytes("VmRSS").unwrap() > 1 << 20);
        assert!(memory_bytes("VmSize").unwrap() >= memory_bytes("VmRSS").unwrap());
        assert_eq!((memory_bytes("Vm"), memory_bytes("Threads")), (None, None));
        assert!(threads().unwrap() >= 1 && open_fds().unwrap() >= 3);
        assert!(max_fds().is_none_or(|max| max >= open_fds().unwrap()));
        let (ran, _) = thread_times(std::process::id().into()).unwrap();
        assert!(ran > Duration::ZERO && thread_times(0).is_none());
    }
}
