//! A machine in a temporary directory, for tests.

use std::fs;

use tempfile::TempDir;

use super::files::Files;
use super::{Host, sysctl};

pub(super) struct Tree(TempDir);

impl Tree {
    pub(super) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Eight cores and 64 GiB, set up as `tuning/` has it.
    pub(super) fn good() -> Self {
        let mut tree = Self::empty();
        for (path, text) in FILES {
            tree = tree.with(path, text);
        }
        for (key, value) in sysctl::settings() {
            tree = tree.with(&format!("/proc/sys/{}", key.replace('.', "/")), value);
        }
        let auxv: Vec<u8> = [33usize, 1, 6, 4096, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        fs::write(tree.0.path().join("proc/self/auxv"), auxv).unwrap();
        for queue in ["rx-1", "rx-2", "rx-3", "rx-4", "rx-5", "rx-6", "rx-7", "tx-0"] {
            fs::create_dir(tree.0.path().join("sys/class/net/eth0/queues").join(queue)).unwrap();
        }
        tree
    }

    pub(super) fn with(self, path: &str, text: &str) -> Self {
        let file = self.0.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        self
    }

    /// Without a file, or a directory and all in it.
    pub(super) fn without(self, path: &str) -> Self {
        let place = self.0.path().join(path.trim_start_matches('/'));
        if place.is_dir() {
            fs::remove_dir_all(place).unwrap()
        } else {
            fs::remove_file(place).unwrap()
        }
        self
    }

    pub(super) fn files(&self) -> Files {
        Files::new(self.0.path())
    }

    pub(super) fn host(&self) -> Host {
        Host::read(self.0.path())
    }
}

const FILES: &[(&str, &str)] = &[
    ("/proc/sys/kernel/osrelease", "6.18.44\n"),
    ("/proc/self/status", "Name:\ttidewheel\nSeccomp:\t0\nSeccomp_filters:\t0\nCpus_allowed_list:\t0-7\n"),
    (
        "/proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max processes             96254                96254                processes \n\
         Max open files            1024                 1048576              files     \n",
    ),
    ("/proc/sys/fs/file-nr", "840\t0\t2097152\n"),
    ("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    (
        "/proc/meminfo",
        "MemTotal:       67108864 kB\nMemFree:        60000000 kB\nMemAvailable:   62914560 kB\n\
         SwapTotal:             0 kB\nCommitLimit:    33554432 kB\nCommitted_AS:    1048576 kB\n",
    ),
    ("/proc/sys/vm/overcommit_memory", "0\n"),
    ("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"),
    ("/proc/self/cgroup", "0::/system.slice/tidewheel.service\n"),
    ("/sys/fs/cgroup/system.slice/tidewheel.service/memory.max", "max\n"),
    ("/sys/fs/cgroup/system.slice/tidewheel.service/cpu.max", "max 100000\n"),
    ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
    ("/sys/devices/system/cpu/cpufreq/policy0/scaling_driver", "intel_pstate\n"),
    ("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance\n"),
    ("/sys/devices/system/cpu/cpufreq/policy1/scaling_driver", "intel_pstate\n"),
    ("/sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "performance\n"),
    ("/sys/class/net/eth0/operstate", "up\n"),
    ("/sys/class/net/eth0/queues/rx-0/rps_cpus", "00\n"),
    ("/sys/class/net/eth0/device/uevent", "DRIVER=virtio_net\n"),
    ("/sys/class/net/lo/operstate", "unknown\n"),
    ("/sys/class/net/lo/queues/rx-0/rps_cpus", "00\n"),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
];
