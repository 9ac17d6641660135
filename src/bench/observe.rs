//! What a run costs the server and the machine, read from `/proc`.
//! Law: what cannot be read is not there; nothing is guessed.

use std::fs;
use std::io;
use std::time::Duration;

/// A process, by its number.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

/// What was seen at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// CPU time of the threads that the process has now, in the scheduler's nanoseconds.
    pub cpu: Option<Duration>,
    /// The process's own memory in bytes: anonymous and shared, without the text of its program.
    pub user_bytes: Option<u64>,
    /// The kernel's memory for sockets, files and requests on the whole machine, in bytes: of both ends of connections
    /// within it. Needs root.
    pub kernel_bytes: Option<u64>,
    /// Memory of the machine that is not available, in bytes.
    pub machine_bytes: Option<u64>,
}

impl Process {
    /// # Errors
    /// There is no such process.
    pub fn check(self) -> io::Result<()> {
        fs::metadata(self.proc("stat"))
            .map(|_| ())
            .map_err(|error| io::Error::new(error.kind(), format!("there is no process {}: {error}", self.0)))
    }

    /// CPU time of all its threads; up to a tick old for one that runs just now.
    pub fn cpu(self) -> Option<Duration> {
        let mut sum_ns = 0;
        for thread in fs::read_dir(self.proc("task")).ok()?.flatten() {
            let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default(); // one that has just ended
            sum_ns += stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        Some(Duration::from_nanos(sum_ns))
    }

    fn user_bytes(self) -> Option<u64> {
        let rollup = fs::read_to_string(self.proc("smaps_rollup")).ok()?;
        Some(kib(&rollup, "Pss_Anon:")? + kib(&rollup, "Pss_Shmem:").unwrap_or(0))
    }

    fn proc(self, file: &str) -> String {
        format!("/proc/{}/{file}", self.0)
    }
}

impl Look {
    /// Looks at the machine, and at a process if there is one to look at.
    pub fn at(process: Option<Process>) -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let machine = || Some(kib(&meminfo, "MemTotal:")? - kib(&meminfo, "MemAvailable:")?);
        Self {
            cpu: process.and_then(Process::cpu),
            user_bytes: process.and_then(Process::user_bytes),
            kernel_bytes: kernel_bytes(&fs::read_to_string("/proc/slabinfo").unwrap_or_default()),
            machine_bytes: machine(),
        }
    }
}

/// A line such as `Pss:   12 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Bytes in use of the slabs that sockets, their files and requests come from.
fn kernel_bytes(slabs: &str) -> Option<u64> {
    let bytes = |line: &str| -> Option<u64> {
        let mut fields = line.split_whitespace();
        if !SLABS.contains(&fields.next()?) {
            return None;
        }
        let active: u64 = fields.next()?.parse().ok()?;
        let size: u64 = fields.nth(1)?.parse().ok()?;
        Some(active * size)
    };
    slabs.lines().filter_map(bytes).reduce(|one, other| one + other)
}

/// Of Linux 6: sockets, their files, requests that wait, and what those allocate.
const SLABS: &[&str] = &[
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "lsm_file_cache",
    "io_kiocb",
    "kmalloc-96",
    "kmalloc-192",
    "kmalloc-512",
    "skbuff_head_cache",
    "skbuff_small_head",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_cpu_time_and_memory() {
        let look = Look::at(Some(Process(std::process::id())));
        assert!(look.cpu.unwrap() > Duration::ZERO);
        assert!(look.user_bytes.unwrap() > 1 << 20);
        assert!(look.machine_bytes.unwrap() > 1 << 20);
        Process(std::process::id()).check().unwrap();
        Process(u32::MAX).check().unwrap_err();
    }

    #[test]
    fn slabs_are_summed_by_name() {
        let slabs = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\nTCP 10 12 2432 13 8\nfilp 100 128 256 1 1\nother 9 9 9\n";
        assert_eq!(kernel_bytes(slabs), Some(10 * 2432 + 100 * 256));
        assert_eq!(kernel_bytes(""), None);
    }
}
