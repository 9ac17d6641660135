//! Each limit: a machine that has enough, one that has too little, one that does not say, and one that says nonsense.

use super::super::tree::Tree;
use super::*;

/// Judges 100,000 connections that each get a message of 128 bytes at once, on eight cores.
fn judge(judge: Judge, tree: &Tree, yaml: &str) -> Option<Limit> {
    let config = Config::parse(&format!("auth: {{required: false}}\n{yaml}")).unwrap();
    let traffic = Some(Traffic { rate: 0.0, message_bytes: 128 });
    judge(&tree.host(), &Demand { connections: 100_000, traffic, config: &config })
}

/// What the tuned machine, and ones with another value at `path`, have of a limit: the value there, the verdict, and a part
/// of what mends it.
#[track_caller]
fn check(limit: Judge, needed: u64, path: &str, cases: &[(&str, Verdict, &str)]) {
    let good = judge(limit, &Tree::good(), "").unwrap();
    assert_eq!((good.verdict, good.needed, &good.mend), (Verdict::Ok, needed, &None), "{good:?}");
    for (text, verdict, mend) in cases {
        let limit = judge(limit, &Tree::good().with(path, text), "").unwrap();
        assert_eq!((limit.verdict, limit.has.is_none()), (*verdict, *verdict == Verdict::Unknown), "{text}: {limit:?}");
        assert!(limit.mend.as_ref().is_some_and(|text| text.contains(mend)), "{text}: {limit:?}");
        assert!(*verdict != Verdict::Unknown || limit.why.contains(path), "{text}: {limit:?}");
    }
    let gone = judge(limit, &Tree::good().without(path), "").unwrap();
    assert_eq!((gone.verdict, gone.has), (Verdict::Unknown, None), "{gone:?}");
    assert!(gone.why.contains(&format!("{path} is not there")), "{gone:?}");
}

use Verdict::{Bad, Unknown, Warning};

#[test]
fn open_files_of_a_process() {
    let limits = |hard: &str| format!("Max open files            1024                 {hard}                files\n");
    // 12,500 each, 666 by chance, 128 to spare.
    let (less, least, too_few) = (limits("13293"), limits("12628"), limits("12627"));
    check(
        nofile,
        13_294,
        "/proc/self/limits",
        &[(&less, Bad, "LimitNOFILE=1048576"), (&limits("many"), Unknown, "LimitNOFILE"), ("", Unknown, "LimitNOFILE")],
    );
    check(
        shards,
        1,
        "/proc/self/limits",
        &[(&less, Bad, "shards: 9"), (&limits("129"), Bad, "a higher nofile"), ("x", Unknown, "nofile")],
    );
    // A server that is told to take them all may be lucky.
    let told = |limit: Judge, hard: &str| {
        let yaml = "websocket: {max_total_connections: 100000}";
        judge(limit, &Tree::good().with("/proc/self/limits", hard), yaml).unwrap().verdict
    };
    for limit in [nofile, shards] {
        assert_eq!([&less, &least, &too_few].map(|hard| told(limit, hard)), [Warning, Warning, Bad]);
    }
    let unlimited = Tree::good().with("/proc/self/limits", &limits("unlimited"));
    assert_eq!(judge(nofile, &unlimited, "").unwrap().has, Some(1 << 20));
    let one = judge(nofile, &Tree::good(), "shards: 1").unwrap();
    assert_eq!((one.needed, one.verdict), (100_128, Verdict::Ok));
}

#[test]
fn open_files_of_the_machine() {
    check(
        nr_open,
        13_294,
        "/proc/sys/fs/nr_open",
        &[("13293", Bad, "fs.nr_open=1048576"), ("-", Unknown, "fs.nr_open=1048576")],
    );
    check(
        file_max,
        101_864,
        "/proc/sys/fs/file-max",
        &[("101863", Bad, "fs.file-max=2097152"), ("", Unknown, "fs.file-max=2097152")],
    );
    for text in ["", "1 2", "a 0 0"] {
        let limit = judge(file_max, &Tree::good().with("/proc/sys/fs/file-nr", text), "").unwrap();
        assert_eq!(limit.verdict, Unknown, "{limit:?}");
    }
}

#[test]
fn memory_that_can_be_had() {
    let fixed = fixed_bytes(&Config::default(), 8);
    let idle = 100_000 * Cost::idle(&Config::default(), 8).bytes() + fixed;
    let meminfo = |bytes: u64| format!("MemAvailable: {} kB\n", bytes.div_ceil(1024));
    let cases = |bad, last| [(meminfo(bad), last, "free memory"), ("MemFree: 1 kB\n".into(), Unknown, "")];
    for (limit, needed, too_little, verdict) in [
        (memory as Judge, idle, idle / 4 * 5 - 10_000, Bad),
        (busy_memory, idle + 100_000 * (1226 + 104), idle + 132_900_000, Bad),
    ] {
        let cases = cases(too_little, verdict);
        let cases: Vec<_> = cases.iter().map(|(text, verdict, mend)| (text.as_str(), *verdict, *mend)).collect();
        check(limit, needed, "/proc/meminfo", &cases);
    }
    let at_most =
        judge(bounded_memory, &Tree::good().with("/proc/meminfo", &meminfo(idle + 1_700_000_000)), "").unwrap();
    assert_eq!((at_most.verdict, at_most.mend.is_some()), (Warning, true), "{at_most:?}");
}

#[test]
fn memory_of_a_control_group() {
    let group = "/sys/fs/cgroup/system.slice";
    let limited = |max: &str| {
        Tree::good()
            .with(&format!("{group}/memory.max"), max)
            .with(&format!("{group}/memory.current"), "1000")
            .with(&format!("{group}/memory.stat"), "inactive_file 0\n")
    };
    let bad = judge(memory, &limited("500000000"), "").unwrap();
    assert_eq!((bad.verdict, bad.has), (Bad, Some((500_000_000 - 1000) / 5 * 4)), "{bad:?}");
    assert!(bad.mend.unwrap().starts_with(&format!("raise {group}/memory.max (MemoryMax=")));
    let unknown = judge(memory, &limited("half"), "").unwrap();
    assert_eq!((unknown.verdict, unknown.has), (Unknown, None));
    assert!(unknown.why.contains("`half` is no number"), "{unknown:?}");
    assert_eq!(judge(memory, &limited("max"), "").unwrap().verdict, Verdict::Ok);
}

#[test]
fn promised_memory() {
    assert_eq!(judge(committed, &Tree::good(), ""), None);
    let strict = |text: &str| Tree::good().with("/proc/sys/vm/overcommit_memory", text);
    let limit = judge(committed, &strict("2"), "").unwrap();
    assert_eq!((limit.verdict, limit.has), (Verdict::Ok, Some(31 << 30)), "{limit:?}");
    let short = strict("2").with("/proc/meminfo", "CommitLimit: 20000 kB\nCommitted_AS: 10000 kB\n");
    let limit = judge(committed, &short, "").unwrap();
    assert_eq!((limit.verdict, limit.mend.as_deref()), (Bad, Some("sysctl -w vm.overcommit_memory=0")));
    for tree in [
        strict("3"),
        strict("?"),
        strict("2").with("/proc/meminfo", ""),
        strict("0").without("/proc/sys/vm/overcommit_memory"),
    ] {
        assert_eq!(judge(committed, &tree, "").unwrap().verdict, Unknown);
    }
}

#[test]
fn memory_of_tcp() {
    let wanted = sysctl::wanted("net.ipv4.tcp_mem").unwrap();
    check(
        tcp_mem,
        100_000,
        "/proc/sys/net/ipv4/tcp_mem",
        &[
            ("1 99999 100000", Warning, wanted),
            ("1 2 99999", Bad, wanted),
            ("1 2", Unknown, wanted),
            ("1 2 x", Unknown, wanted),
        ],
    );
    let host = Tree::good().host();
    let config = Config::default();
    let many =
        Demand { connections: 1_000_000, traffic: Some(Traffic { rate: 0.0, message_bytes: 128 }), config: &config };
    let limit = tcp_mem(&host, &many).unwrap();
    assert_eq!(
        (limit.verdict, limit.mend.as_deref()),
        (Bad, Some("sysctl -w net.ipv4.tcp_mem='750000 1000000 1500000'"))
    );
    assert_eq!(tcp_mem(&host, &Demand { traffic: None, ..many }).unwrap().needed, 0);
    for tree in [Tree::good().with("/proc/self/auxv", ""), Tree::good().without("/proc/self/auxv")] {
        assert_eq!(judge(tcp_mem, &tree, "").unwrap().verdict, Unknown);
    }
}

#[test]
fn queues_of_newcomers() {
    for (limit, path) in
        [(somaxconn as Judge, "/proc/sys/net/core/somaxconn"), (syn_backlog, "/proc/sys/net/ipv4/tcp_max_syn_backlog")]
    {
        check(limit, 12_500, path, &[("12499", Warning, "=65535"), ("", Unknown, "=65535"), ("4k", Unknown, "=65535")]);
    }
    assert_eq!(judge(somaxconn, &Tree::good(), "shards: 1").unwrap().needed, BACKLOG as u64);
}

#[test]
fn tracked_connections() {
    assert_eq!(judge(conntrack, &Tree::good(), ""), None);
    let tracked = |max: &str, count: &str| {
        Tree::good()
            .with("/proc/sys/net/netfilter/nf_conntrack_max", max)
            .with("/proc/sys/net/netfilter/nf_conntrack_count", count)
    };
    let verdict = |max: &str, count: &str| judge(conntrack, &tracked(max, count), "").unwrap().verdict;
    assert_eq!(verdict("100010", "10"), Verdict::Ok);
    assert_eq!(verdict("100009", "10"), Bad);
    assert_eq!(verdict("", "10"), Unknown);
    assert_eq!(verdict("100009", "ten"), Unknown);
    let limit = judge(conntrack, &tracked("262144", "200000"), "").unwrap();
    assert!(limit.mend.unwrap().starts_with("sysctl -w net.netfilter.nf_conntrack_max=375000"));
}

#[test]
fn processor_time() {
    let config = Config::default();
    let busy = |tree: &Tree, connections: u64| {
        let traffic = Some(Traffic { rate: 10.0, message_bytes: 64 });
        cores(&tree.host(), &Demand { connections, traffic, config: &config }).unwrap()
    };
    let quota = |text: &str| Tree::good().with("/sys/fs/cgroup/system.slice/tidewheel.service/cpu.max", text);
    for (tree, connections, needed, has, verdict) in [
        (Tree::good(), 80_000, 800, Some(800), Verdict::Ok),
        (Tree::good(), 80_001, 801, Some(800), Warning),
        (quota("150000 100000"), 15_000, 150, Some(150), Verdict::Ok),
        (quota("150000 100000"), 16_000, 160, Some(150), Warning),
        (quota("x 100000"), 1, 1, None, Unknown),
        (Tree::good().with("/proc/self/status", ""), 1, 1, None, Unknown),
    ] {
        let limit = busy(&tree, connections);
        assert_eq!((limit.needed, limit.has, limit.verdict), (needed, has, verdict), "{limit:?}");
    }
    assert_eq!(judge(cores, &Tree::good(), ""), None);
}

#[test]
fn ports_behind_a_proxy() {
    let range = |text: &str| Tree::good().with("/proc/sys/net/ipv4/ip_local_port_range", text);
    let proxy = "proxy: {trusted: 127.0.0.1}";
    for (tree, yaml, has, verdict) in [
        (Tree::good(), "", Some(28_232), Verdict::Note),
        (Tree::good(), proxy, Some(28_232), Warning),
        (
            Tree::good(),
            "proxy: {trusted: 127.0.0.1}\nlisten: [127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3, 127.0.0.1:4]",
            Some(112_928),
            Verdict::Ok,
        ),
        (range("2 1"), proxy, None, Unknown),
        (range("1"), "", None, Unknown),
        (range("low high"), "", None, Unknown),
    ] {
        let limit = judge(ports, &tree, yaml).unwrap();
        assert_eq!((limit.has, limit.verdict), (has, verdict), "{limit:?}");
    }
    assert!(judge(ports, &Tree::good(), proxy).unwrap().mend.unwrap().contains("and 4 addresses"));
}

#[test]
fn a_configured_number() {
    let most = |text: &str| judge(configured, &Tree::good(), &format!("websocket: {{max_total_connections: {text}}}"));
    assert_eq!(most("auto"), None);
    assert_eq!(most("100000").unwrap().verdict, Verdict::Ok);
    assert_eq!(most("99999").unwrap().verdict, Bad);
}

/// What the tuning sets is what is asked for: a machine with all of it has all that is asked for, and for every key of it
/// there is a limit that a command with the file's own value mends.
#[test]
fn the_tuning_is_enough_for_what_the_limits_ask() {
    for limit in JUDGES.iter().filter_map(|limit| judge(*limit, &Tree::good(), "")) {
        assert!(limit.verdict <= Verdict::Note, "{limit:?}");
    }
    let needy = Tree::good();
    let needy = sysctl::settings().fold(needy, |tree, (key, value)| {
        let zeros = value.split_whitespace().map(|_| "0").collect::<Vec<_>>().join(" ");
        tree.with(&format!("/proc/sys/{}", key.replace('.', "/")), &zeros)
    });
    let limits: Vec<Limit> = JUDGES.iter().filter_map(|limit| judge(*limit, &needy, "")).collect();
    let judged_elsewhere = ["kernel.io_uring_disabled", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"];
    for (key, value) in sysctl::settings().filter(|(key, _)| !judged_elsewhere.contains(key)) {
        let limit = limits.iter().find(|limit| limit.what == key).expect(key);
        let mend = limit.mend.as_deref().expect(key);
        assert!(mend == format!("sysctl -w {key}={value}") || mend == format!("sysctl -w {key}='{value}'"), "{mend}");
    }
}
