//! Each finding: good, bad, a file that is not there, and one that says nonsense.

use super::super::tree::Tree;
use super::super::wanted;
use super::*;
use crate::config::Config;
use crate::io::probe::Cause;
use crate::server::Traffic;

fn features() -> Result<Features, Unavailable> {
    Ok(Features {
        release: "6.18.44".into(),
        no_sqarray: true,
        no_iowait: true,
        fd_install: true,
        min_wait: true,
        bounded_receives: true,
    })
}

fn refused(cause: Cause) -> Result<Features, Unavailable> {
    let source = std::io::Error::from_raw_os_error(1);
    Err(Unavailable { cause, release: "6.18.44".into(), source })
}

/// 100,000 connections that get one message at once.
fn examined(tree: &Tree, ring: &Result<Features, Unavailable>) -> Diagnosis {
    let config = Config::parse("auth: {required: false}").unwrap();
    let traffic = Some(Traffic { rate: 0.0, message_bytes: 128 });
    examine(&tree.host(), &Demand { connections: 100_000, traffic, config: &config }, ring, false)
}

fn finding(tree: &Tree, ring: &Result<Features, Unavailable>, what: &str) -> Finding {
    let mut findings = examined(tree, ring).findings;
    let at = findings.iter().position(|finding| finding.what == what).expect(what);
    findings.swap_remove(at)
}

#[track_caller]
fn check(tree: &Tree, ring: &Result<Features, Unavailable>, what: &str, verdict: Verdict, said: &[&str]) {
    let finding = finding(tree, ring, what);
    assert_eq!(finding.verdict, verdict, "{finding:?}");
    let text = format!("{} {} {}", finding.found, finding.effect, finding.mend.clone().unwrap_or_default());
    for said in said {
        assert!(text.contains(said), "{said}: {finding:?}");
    }
    assert!(verdict < Verdict::Warning || !finding.effect.is_empty(), "{finding:?}");
}

/// The file at `path` with each text has each verdict, and without it another.
#[track_caller]
fn check_file(what: &str, path: &str, cases: &[(&str, Verdict, &[&str])], absent: Verdict) {
    for (text, verdict, said) in cases {
        check(&Tree::good().with(path, text), &features(), what, *verdict, said);
    }
    check(&Tree::good().without(path), &features(), what, absent, &[]);
}

use Verdict::{Bad, Note, Ok as Good, Unknown, Warning};

#[test]
fn a_machine_that_is_set_up_as_the_tuning_has_it_is_well() {
    let diagnosis = examined(&Tree::good(), &features());
    let odd: Vec<_> = diagnosis.findings.iter().filter(|finding| finding.verdict > Note).collect();
    assert!(odd.is_empty(), "{odd:#?}");
    assert!(diagnosis.verdict <= Note);
    // Every sysctl of the tuning is looked at.
    for (key, _) in super::super::sysctl::settings() {
        assert!(diagnosis.findings.iter().any(|finding| finding.what == key), "{key}");
    }
}

#[test]
fn a_machine_that_says_nothing_is_unknown() {
    let diagnosis = examined(&Tree::empty(), &features());
    let known: Vec<_> =
        diagnosis.findings.iter().filter(|finding| finding.verdict != Unknown).map(|finding| finding.what).collect();
    // What the probe itself has found, and what not every machine has.
    let expected = [
        "io_uring",
        "kernel.io_uring_disabled",
        "transparent huge pages",
        "net.netfilter.nf_conntrack_max",
        "frequency governor",
    ];
    assert_eq!(known, expected);
}

#[test]
fn io_uring() {
    check(&Tree::good(), &features(), "io_uring", Good, &["kernel 6.18.44"]);
    let lacking = |change: fn(&mut Features)| {
        features().map(|mut features| {
            change(&mut features);
            features
        })
    };
    check(&Tree::good(), &lacking(|f| f.no_sqarray = false), "io_uring", Note, &["no_sqarray (6.6)"]);
    check(&Tree::good(), &lacking(|f| f.no_iowait = false), "io_uring", Note, &["no_iowait (6.15)", "iowait"]);
    check(&Tree::good(), &lacking(|f| f.fd_install = false), "io_uring", Note, &["fd_install (6.8)", "worker thread"]);
    let bounded = lacking(|f| f.bounded_receives = false);
    check(&Tree::good(), &bounded, "io_uring", Note, &["128.0 KiB", "instead of 32.0 KiB", "a newer kernel"]);
    check(&Tree::good(), &lacking(|f| f.min_wait = false), "io_uring", Good, &[]);
    for (cause, mend) in [
        (Cause::TooOld, "a kernel of 6.1"),
        (Cause::Sysctl, "sysctl -w kernel.io_uring_disabled=0"),
        (Cause::Seccomp, "seccomp=tuning/seccomp.json"),
        (Cause::Limit, "free memory"),
    ] {
        check(&Tree::good(), &refused(cause), "io_uring", Bad, &["does not start", mend]);
    }
}

#[test]
fn io_uring_forbidden_by_a_sysctl() {
    let (what, path) = ("kernel.io_uring_disabled", "/proc/sys/kernel/io_uring_disabled");
    check_file(
        what,
        path,
        &[
            ("0\n", Good, &[]),
            ("1\n", Warning, &["kernel.io_uring_group", "sysctl -w kernel.io_uring_disabled=0"]),
            ("2\n", Bad, &["sysctl -w kernel.io_uring_disabled=0"]),
            ("3\n", Unknown, &[]),
            ("", Unknown, &[path]),
        ],
        Good,
    );
    check(&Tree::good().with(path, "1"), &refused(Cause::Sysctl), what, Bad, &[]);
    check(&Tree::good().without(path), &refused(Cause::TooOld), what, Unknown, &["is not there"]);
}

#[test]
fn filters_of_system_calls() {
    let status = |mode: &str| format!("Seccomp:\t{mode}\nCpus_allowed_list:\t0-7\n");
    let (none, strict, filter, odd) = (status("0"), status("1"), status("2"), status("7"));
    check_file(
        "seccomp",
        "/proc/self/status",
        &[
            (&none, Good, &[]),
            (&strict, Bad, &[]),
            (&filter, Good, &["allows io_uring"]),
            (&odd, Unknown, &[]),
            ("", Unknown, &["Seccomp:"]),
        ],
        Unknown,
    );
    let filtered = Tree::good().with("/proc/self/status", &filter);
    check(&filtered, &refused(Cause::Seccomp), "seccomp", Bad, &["tuning/seccomp.json"]);
}

/// What is a limit of a number of connections says from which on it breaks.
#[test]
fn limits_break_at_a_number() {
    #[track_caller]
    fn check(path: &str, text: &str, what: &str, breaks_at: Option<u64>, verdict: Verdict) {
        let finding = finding(&Tree::good().with(path, text), &features(), what);
        assert_eq!((finding.breaks_at, finding.verdict), (breaks_at, verdict), "{finding:?}");
    }
    check("/proc/sys/fs/file-max", "50000", "fs.file-max", Some(50_000 - 1024 - 840 + 1), Bad);
    check("/proc/sys/fs/file-max", "500000", "fs.file-max", Some(500_000 - 1024 - 840 + 1), Good);
    check("/proc/sys/net/core/somaxconn", "4096", "net.core.somaxconn", Some(8 * 4096 + 1), Warning);
    check("/proc/sys/net/core/somaxconn", "65535", "net.core.somaxconn", None, Good);
    check("/proc/sys/net/ipv4/tcp_mem", "1000 2000 3000", "net.ipv4.tcp_mem", Some(2001), Bad);
    check("/proc/sys/net/ipv4/tcp_mem", "?", "net.ipv4.tcp_mem", None, Unknown);
    let tracked = Tree::good()
        .with("/proc/sys/net/netfilter/nf_conntrack_max", "65536")
        .with("/proc/sys/net/netfilter/nf_conntrack_count", "536");
    let finding = finding(&tracked, &features(), "net.netfilter.nf_conntrack_max");
    assert_eq!((finding.breaks_at, finding.verdict), (Some(65_001), Bad));
}

#[test]
fn buffers_of_sockets() {
    for (key, path) in
        [("net.ipv4.tcp_rmem", "/proc/sys/net/ipv4/tcp_rmem"), ("net.ipv4.tcp_wmem", "/proc/sys/net/ipv4/tcp_wmem")]
    {
        let mend = format!("sysctl -w {key}='{}'", wanted(key).unwrap());
        check_file(
            key,
            path,
            &[
                ("4096 131072 6291456", Warning, &["24,576 connections that", &mend]),
                ("4096 16384 32768", Warning, &["160.0 KiB a second", &mend]),
                ("4096 0 6291456", Warning, &[&mend]),
                ("4096 16384", Unknown, &[path]),
                ("a b c", Unknown, &[path]),
            ],
            Unknown,
        );
        check(
            &Tree::good().without("/proc/sys/net/ipv4/tcp_mem"),
            &features(),
            key,
            Unknown,
            &["tcp_mem is not there"],
        );
    }
}

#[test]
fn quotas_of_processor_time() {
    check_file(
        "cgroup cpu",
        "/sys/fs/cgroup/system.slice/tidewheel.service/cpu.max",
        &[
            ("max 100000", Good, &["no quota"]),
            ("800000 100000", Good, &["8.00 cores"]),
            ("200000 100000", Warning, &["25 ms into each 100 ms", "other 75 ms", "shards: 2 ", "CPUQuota=800%"]),
            ("50000 100000", Warning, &["shards: 1 "]),
            ("lots", Unknown, &["cpu.max"]),
        ],
        Good,
    );
    check(&Tree::good().without("/proc/self/cgroup"), &features(), "cgroup cpu", Unknown, &["/proc/self/cgroup"]);
}

#[test]
fn clocks() {
    check_file(
        "clock source",
        "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        &[
            ("tsc\n", Good, &[]),
            ("kvm-clock\n", Good, &[]),
            ("hpet\n", Warning, &["system call", "echo tsc"]),
            ("acpi_pm\n", Warning, &[]),
            ("sundial\n", Unknown, &["`sundial`"]),
            ("", Unknown, &[]),
        ],
        Unknown,
    );
}

#[test]
fn governors() {
    let path = "/sys/devices/system/cpu/cpufreq/policy1/scaling_governor";
    let own: &[(&str, Verdict, &[&str])] = &[
        ("performance\n", Good, &[]),
        ("powersave\n", Note, &["cpupower"]),
        ("ondemand\n", Warning, &["cpupower frequency-set -g performance"]),
        ("warp\n", Unknown, &["warp"]),
    ];
    check_file("frequency governor", path, own, Good); // as of policies that say nothing at all
    let acpi = Tree::good()
        .with("/sys/devices/system/cpu/cpufreq/policy1/scaling_driver", "acpi-cpufreq")
        .with(path, "powersave");
    check(&acpi, &features(), "frequency governor", Warning, &["powersave (acpi-cpufreq)"]);
    let none = Tree::good().without("/sys/devices/system/cpu/cpufreq");
    check(&none, &features(), "frequency governor", Good, &["none"]);
}

#[test]
fn network_queues() {
    let queues = "/sys/class/net/eth0/queues";
    let poor = || (1..8).fold(Tree::good(), |tree, queue| tree.without(&format!("{queues}/rx-{queue}")));
    check(&Tree::good(), &features(), "network queues", Good, &["eth0: 8 in, 1 out"]);
    check(&poor(), &features(), "network queues", Warning, &["1 of 8 cores", "ethtool -L eth0 combined 8"]);
    check(
        &poor().with(&format!("{queues}/rx-0/rps_cpus"), "00000000,000000ff\n"),
        &features(),
        "network queues",
        Good,
        &[],
    );
    // Down, or nothing behind it: no card.
    for tree in [poor().with("/sys/class/net/eth0/operstate", "down\n"), poor().without("/sys/class/net/eth0/device")] {
        check(&tree, &features(), "network queues", Unknown, &["no interface with a device"]);
    }
    check(&Tree::good().without("/sys/class/net"), &features(), "network queues", Unknown, &["is not there"]);
    check(&Tree::good().without(queues), &features(), "network queues", Unknown, &["is not there"]);
}

#[test]
fn huge_pages_and_swap() {
    check_file(
        "transparent huge pages",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        &[
            ("always madvise [never]\n", Good, &[]),
            ("[always] madvise never\n", Note, &["2 MiB", "echo madvise"]),
            ("always [sometimes]\n", Unknown, &["sometimes"]),
            ("always\n", Unknown, &["chooses nothing"]),
        ],
        Good,
    );
    check_file(
        "swap",
        "/proc/meminfo",
        &[
            ("SwapTotal: 0 kB\n", Good, &[]),
            ("SwapTotal: 1048576 kB\n", Note, &["MemorySwapMax=0"]),
            ("SwapTotal: x kB\n", Unknown, &[]),
        ],
        Unknown,
    );
}

/// What the server admits when nobody says how many: as many as descriptors and memory allow, whatever else breaks.
#[test]
fn the_default_is_what_the_server_admits() {
    let config = Config::parse("auth: {required: false}").unwrap();
    let admitted = |tree: &Tree, config: &Config| admitted(&tree.host(), config);
    let limits = "Max open files            1024      20000    files\n";
    let tree = || Tree::good().with("/proc/self/limits", limits).with("/proc/sys/fs/file-max", "5000");
    assert_eq!(admitted(&tree(), &config), 8 * 19_044);
    let few = Config::parse("auth: {required: false}\nwebsocket: {max_total_connections: 77}").unwrap();
    assert_eq!(admitted(&tree(), &few), 77);
    // A limit of a group above its own binds the server, too.
    let group = "/sys/fs/cgroup/system.slice";
    let limited = tree()
        .with(&format!("{group}/memory.max"), "104857600")
        .with(&format!("{group}/memory.current"), "0")
        .with(&format!("{group}/memory.stat"), "inactive_file 0\n");
    assert!((1..20_000).contains(&admitted(&limited, &config)));
    assert!(admitted(&tree().with("/proc/meminfo", "MemAvailable: 102400 kB\n"), &config) < 20_000);
}

#[test]
fn a_diagnosis_for_people() {
    let text = examined(&Tree::good().with("/proc/sys/net/core/somaxconn", "4096"), &features()).to_string();
    let line = "warning  net.core.somaxconn: 4,096 connections, needed 12,500 connections; too little from 32,769 connections on\n";
    assert!(text.contains(line), "{text}");
    assert!(
        text.contains("mend: sysctl -w net.core.somaxconn=65535\n") && text.contains(" 1 warning, 0 unknown, 0 bad\n"),
        "{text}"
    );
}
