//! The machine as the engine meets it: its limits, read once, and what they mean for a number of connections.
//!
//! [`Host::read`] reads them from the files of a root directory, `/` or a tree that a test made. [`plan`] compares them with
//! what a number of connections needs, [`doctor`] adds what else of a machine can go wrong. Both are functions of what was
//! read: nothing is changed on the machine.
//! Law: what could not be read is said to be unknown, and is never taken for good.

mod cgroup;
pub mod doctor;
mod files;
mod limits;
mod machine;
pub mod plan;
mod sysctl;
#[cfg(test)]
mod tree;
mod verdict;

use std::path::Path;

use serde::Serialize;

pub use cgroup::{CpuLimit, MemoryLimit};
pub use files::{Fact, Unknown};
use files::{Files, parse, unreadable};
pub use limits::Demand;
pub use sysctl::wanted;
pub use verdict::Verdict;

/// What was found on a machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// The kernel's release, as `uname -r` prints it.
    pub release: Fact<String>,
    /// `kernel.io_uring_disabled`; kernels before 6.6 do not have it.
    pub io_uring_disabled: Fact<u64>,
    /// How this process' system calls are filtered: 0 not at all, 1 strictly, 2 by a program.
    pub seccomp: Fact<u64>,
    /// Cores that this process may run on.
    pub cores: Fact<usize>,
    /// Open files of this process, which is also the size of one ring's table.
    pub nofile: Fact<SoftAndHard>,
    /// `fs.nr_open`, the most that the limit of a process may be.
    pub nr_open: Fact<u64>,
    /// `fs.file-max`, open files of the machine.
    pub file_max: Fact<u64>,
    /// Files that are open on the machine.
    pub files_open: Fact<u64>,
    /// `net.core.somaxconn`.
    pub somaxconn: Fact<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub syn_backlog: Fact<u64>,
    /// `net.ipv4.tcp_mem` in pages: low, pressure, most.
    pub tcp_mem: Fact<[u64; 3]>,
    /// `net.ipv4.tcp_rmem` in bytes: least, initial, most.
    pub tcp_rmem: Fact<[u64; 3]>,
    /// `net.ipv4.tcp_wmem` in bytes: least, initial, most.
    pub tcp_wmem: Fact<[u64; 3]>,
    /// `net.ipv4.ip_local_port_range`: first and last.
    pub ports: Fact<[u64; 2]>,
    /// Connection tracking; absent where it is not loaded.
    pub conntrack: Fact<Conntrack>,
    /// Bytes of a page.
    pub page_bytes: Fact<u64>,
    /// Memory.
    pub memory: Memory,
    /// The tightest limit of processor time.
    pub cpu_limit: Fact<Option<CpuLimit>>,
    /// What the kernel reads time from.
    pub clock_source: Fact<String>,
    /// Frequency drivers and governors of the cores, each once; absent where the kernel does not set frequencies.
    pub governors: Fact<Vec<Governor>>,
    /// Network cards.
    pub cards: Fact<Vec<Card>>,
    /// When memory is given in huge pages: `always`, `madvise` or `never`.
    pub huge_pages: Fact<String>,
}

/// A limit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SoftAndHard {
    /// What is in force.
    pub soft: u64,
    /// How far the process may raise it, as the server does.
    pub hard: u64,
}

/// The kernel's table of connections that a firewall keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Conntrack {
    /// Entries there are.
    pub count: u64,
    /// Entries there may be.
    pub max: u64,
}

/// How the frequency of some cores is chosen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Governor {
    /// The frequency driver.
    pub driver: String,
    /// Its policy.
    pub governor: String,
}

/// A network card: an interface with a device behind it, real or a virtual machine's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// Queues that packets arrive in.
    pub receive_queues: usize,
    /// Queues that packets leave by.
    pub transmit_queues: usize,
    /// Whether packets of some queue are handed to other cores (RPS).
    pub is_spread: bool,
}

/// Memory, in bytes.
#[derive(Clone, Debug)]
pub struct Memory {
    /// All of the machine.
    pub total: Fact<u64>,
    /// What can be had without swapping.
    pub available: Fact<u64>,
    /// Limits of the control groups over this process.
    pub groups: Fact<Vec<MemoryLimit>>,
    /// `vm.overcommit_memory`: 2 if the kernel promises no more memory than there is.
    pub overcommit: Fact<u64>,
    /// The most that is promised, where that is limited.
    pub commit_limit: Fact<u64>,
    /// What is promised.
    pub committed: Fact<u64>,
    /// Swap space.
    pub swap: Fact<u64>,
}

/// Memory that can still be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// So much of it.
    pub bytes: u64,
    /// The file whose limit comes first.
    pub file: String,
}

impl Host {
    /// Reads what is below `root`.
    pub fn read(root: &Path) -> Self {
        let files = Files::new(root);
        let sys = |key: &str| format!("/proc/sys/{}", key.replace('.', "/"));
        Self {
            release: files.text("/proc/sys/kernel/osrelease"),
            io_uring_disabled: files.number(&sys("kernel.io_uring_disabled")),
            seccomp: files.amount("/proc/self/status", "Seccomp:"),
            cores: cores(&files),
            nofile: nofile(&files),
            nr_open: files.number(&sys("fs.nr_open")),
            file_max: files.number(&sys("fs.file-max")),
            files_open: files.numbers(&sys("fs.file-nr")).map(|[allocated, free, _]| allocated.saturating_sub(free)),
            somaxconn: files.number(&sys("net.core.somaxconn")),
            syn_backlog: files.number(&sys("net.ipv4.tcp_max_syn_backlog")),
            tcp_mem: files.numbers(&sys("net.ipv4.tcp_mem")),
            tcp_rmem: files.numbers(&sys("net.ipv4.tcp_rmem")),
            tcp_wmem: files.numbers(&sys("net.ipv4.tcp_wmem")),
            ports: ports(&files, &sys("net.ipv4.ip_local_port_range")),
            conntrack: conntrack(&files),
            page_bytes: page_bytes(&files),
            memory: Memory::read(&files),
            cpu_limit: cgroup::cpu(&files),
            clock_source: files.text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            governors: governors(&files),
            cards: cards(&files),
            huge_pages: huge_pages(&files),
        }
    }
}

impl Memory {
    /// Reads what is below `root`.
    pub fn of(root: &Path) -> Self {
        Self::read(&Files::new(root))
    }

    fn read(files: &Files) -> Self {
        let amount = |name: &str| files.amount(MEMINFO, name);
        Self {
            total: amount("MemTotal:"),
            available: amount("MemAvailable:"),
            groups: cgroup::memory(files),
            overcommit: files.number("/proc/sys/vm/overcommit_memory"),
            commit_limit: amount("CommitLimit:"),
            committed: amount("Committed_AS:"),
            swap: amount("SwapTotal:"),
        }
    }

    /// What can still be had: the least of what the machine and each control group leave.
    ///
    /// # Errors
    /// Some limit is not known.
    pub fn room(&self) -> Fact<Room> {
        self.available.clone()?;
        self.groups.clone()?;
        self.known_room().ok_or_else(|| unreadable(MEMINFO, "says nothing"))
    }

    /// As [`Memory::room`], of those limits that are known; none if none is.
    pub fn known_room(&self) -> Option<Room> {
        let machine = self.available.iter().map(|&bytes| Room { bytes, file: MEMINFO.to_owned() });
        let of_group = |group: &MemoryLimit| Room { bytes: group.room_bytes(), file: group.file.clone() };
        let groups = self.groups.iter().flatten().map(of_group);
        machine.chain(groups).min_by_key(|room| room.bytes)
    }
}

/// The number of cores in a list such as `0-3,8`.
fn cores(files: &Files) -> Fact<usize> {
    let status = "/proc/self/status";
    let list = files.field(status, "Cpus_allowed_list:")?;
    let mut count = 0usize;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (parse(status, first)?, parse(status, last)?);
        count = count.saturating_add(last.saturating_sub(first)).saturating_add(1);
    }
    Ok(count)
}

fn nofile(files: &Files) -> Fact<SoftAndHard> {
    let file = "/proc/self/limits";
    let line = files.field(file, "Max open files")?;
    let limit = |word: Option<&str>| match word {
        Some("unlimited") => Ok(u64::MAX),
        word => parse(file, word.unwrap_or_default()),
    };
    let mut words = line.split_whitespace();
    Ok(SoftAndHard { soft: limit(words.next())?, hard: limit(words.next())? })
}

fn ports(files: &Files, path: &str) -> Fact<[u64; 2]> {
    let [first, last] = files.numbers(path)?;
    if first > last {
        return Err(unreadable(path, "the last port is before the first"));
    }
    Ok([first, last])
}

fn conntrack(files: &Files) -> Fact<Conntrack> {
    let max = files.number("/proc/sys/net/netfilter/nf_conntrack_max")?;
    Ok(Conntrack { count: files.number("/proc/sys/net/netfilter/nf_conntrack_count")?, max })
}

/// From the auxiliary vector that the kernel gave this process: pairs of a type and a value.
fn page_bytes(files: &Files) -> Fact<u64> {
    let file = "/proc/self/auxv";
    let vector = files.bytes(file)?;
    let (words, _) = vector.as_chunks::<{ size_of::<usize>() }>();
    let (pairs, _) = words.as_chunks::<2>();
    let page = pairs.iter().find(|[kind, _]| usize::from_ne_bytes(*kind) == AT_PAGESZ);
    let bytes = page.map(|[_, value]| usize::from_ne_bytes(*value) as u64).filter(|bytes| bytes.is_power_of_two());
    bytes.ok_or_else(|| unreadable(file, "does not say how large a page is"))
}

fn governors(files: &Files) -> Fact<Vec<Governor>> {
    let directory = "/sys/devices/system/cpu/cpufreq";
    let mut governors = Vec::new();
    for policy in files.names(directory)?.iter().filter(|name| name.starts_with("policy")) {
        governors.push(Governor {
            driver: files.text(&format!("{directory}/{policy}/scaling_driver"))?,
            governor: files.text(&format!("{directory}/{policy}/scaling_governor"))?,
        });
    }
    if governors.is_empty() {
        return Err(Unknown::Absent(format!("{directory}/policy0")));
    }
    governors.sort();
    governors.dedup();
    Ok(governors)
}

fn cards(files: &Files) -> Fact<Vec<Card>> {
    let directory = "/sys/class/net";
    let mut cards = Vec::new();
    for name in files.names(directory)? {
        // Without a device behind it, it is loopback, a bridge or a tunnel, whose packets another one has brought.
        let is_up = files.text(&format!("{directory}/{name}/operstate")).is_ok_and(|state| state != "down");
        if !files.has(&format!("{directory}/{name}/device")) || !is_up {
            continue;
        }
        let queues = format!("{directory}/{name}/queues");
        let all = files.names(&queues)?;
        let receiving: Vec<_> = all.iter().filter(|queue| queue.starts_with("rx-")).collect();
        let masks = receiving.iter().filter_map(|queue| files.text(&format!("{queues}/{queue}/rps_cpus")).ok());
        cards.push(Card {
            name,
            receive_queues: receiving.len(),
            transmit_queues: all.iter().filter(|queue| queue.starts_with("tx-")).count(),
            is_spread: masks.into_iter().any(|mask| mask.contains(|digit: char| !matches!(digit, '0' | ','))),
        });
    }
    Ok(cards)
}

/// The word in brackets, as in `always [madvise] never`.
fn huge_pages(files: &Files) -> Fact<String> {
    let file = "/sys/kernel/mm/transparent_hugepage/enabled";
    let text = files.text(file)?;
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map(|(word, _)| word.to_owned()).ok_or_else(|| unreadable(file, "chooses nothing"))
}

const MEMINFO: &str = "/proc/meminfo";
/// The entry of the auxiliary vector with the size of a page.
const AT_PAGESZ: usize = 6;

#[cfg(test)]
mod tests {
    use super::tree::Tree;
    use super::*;

    #[test]
    fn this_machine_is_read() {
        let host = Host::read(Path::new("/"));
        assert_eq!(host.cores, Ok(crate::io::affinity::allowed_cores().unwrap().len()));
        let page = host.page_bytes.unwrap();
        assert!(page >= 4096 && host.memory.total.unwrap() > page);
        let nofile = host.nofile.unwrap();
        assert!(nofile.soft <= nofile.hard && nofile.hard <= host.nr_open.unwrap());
        assert!(host.release.unwrap().starts_with(|c: char| c.is_ascii_digit()));
    }

    #[test]
    fn a_good_machine_is_read_whole() {
        let host = Tree::good().host();
        assert_eq!(host.cores, Ok(8));
        assert_eq!(host.nofile, Ok(SoftAndHard { soft: 1024, hard: 1_048_576 }));
        assert_eq!(host.files_open, Ok(840));
        assert_eq!(host.page_bytes, Ok(4096));
        assert_eq!(host.ports, Ok([32_768, 60_999]));
        assert_eq!(host.governors.unwrap().len(), 1);
        assert_eq!(host.huge_pages, Ok("madvise".to_owned()));
        let cards = host.cards.unwrap();
        let eth0 = Card { name: "eth0".into(), receive_queues: 8, transmit_queues: 1, is_spread: false };
        assert_eq!(cards, [eth0]);
        assert_eq!(host.memory.room().unwrap(), Room { bytes: 60 << 30, file: MEMINFO.into() });
    }

    #[test]
    fn lists_of_cores() {
        let check = |list: &str, expected: Option<usize>| {
            let host = Tree::good().with("/proc/self/status", &format!("Cpus_allowed_list:\t{list}\n")).host();
            assert_eq!(host.cores.ok(), expected, "{list}");
        };
        check("0", Some(1));
        check("0-1,4,6-7", Some(5));
        check("0-18446744073709551615,5", Some(usize::MAX));
        check("", None);
        check("a-b", None);
    }

    #[test]
    fn the_tightest_memory_counts_and_an_unknown_one_is_said() {
        let limit = |bytes: u64| MemoryLimit { file: format!("/{bytes}"), limit_bytes: bytes, used_bytes: 5 };
        let mut memory = Tree::good().host().memory;
        memory.groups = Ok(vec![limit(900), limit(700), limit(3)]);
        assert_eq!(memory.room(), Ok(Room { bytes: 0, file: "/3".into() }));
        memory.groups = Err(Unknown::Absent("/g".into()));
        assert_eq!(memory.room(), Err(Unknown::Absent("/g".into())));
        assert_eq!(memory.known_room().unwrap().bytes, 60 << 30);
        memory.available = Err(Unknown::Absent(MEMINFO.into()));
        assert_eq!(memory.known_room(), None);
    }
}
