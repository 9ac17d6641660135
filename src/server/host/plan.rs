//! What a machine needs for a number of connections, what it has, and what fits.

use std::fmt;

use serde::Serialize;

use crate::id::SLOT_MAX;
use crate::server::cost::{Cost, fixed_bytes, has_tls};

use super::limits::{Demand, JUDGES, Judge, Limit};
use super::verdict::{amount, thousands};
use super::{Host, Verdict};

/// What was planned, for people (`Display`) and for programs (JSON).
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The connections that were asked for.
    pub connections: u64,
    /// Threads that serve them.
    pub shards: u64,
    /// Whether they may be encrypted.
    pub tls: bool,
    /// Messages a second of each; none if they lie idle.
    pub rate: Option<f64>,
    /// Bytes of a message; none if they lie idle.
    pub message_bytes: Option<u64>,
    /// Memory of all of them, idle.
    pub idle: MemoryBytes,
    /// What their messages take beside that; none if they lie idle.
    pub busy: Option<MemoryBytes>,
    /// Memory of the server before the first connection, in bytes.
    pub fixed_bytes: u64,
    /// Every limit of the machine.
    pub limits: Vec<Limit>,
    /// What would fit.
    pub fits: Fits,
    /// The worst of all limits.
    pub verdict: Verdict,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryBytes {
    /// In the kernel.
    pub kernel: u64,
    /// In the server.
    pub user: u64,
}

/// The most that a machine holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fits {
    /// Connections, as far as the limits are known.
    pub connections: u64,
    /// What is too little for one more.
    pub limited_by: Vec<&'static str>,
    /// Limits that are not known, so that fewer may fit.
    pub unknown: Vec<&'static str>,
}

impl Plan {
    /// Whether all of it is known to fit.
    pub fn fits(&self) -> bool {
        self.verdict < Verdict::Unknown
    }
}

/// Compares a machine with what is asked of it.
pub fn plan(host: &Host, demand: &Demand<'_>) -> Plan {
    let shards = demand.shards(host);
    let Cost { kernel_bytes, user_bytes } = Cost::idle(demand.config, shards as usize);
    let all = |bytes: u64| demand.connections.saturating_mul(bytes);
    let tls = has_tls(demand.config);
    let limits: Vec<Limit> = JUDGES.iter().filter_map(|judge| judge(host, demand)).collect();
    Plan {
        connections: demand.connections,
        shards,
        tls,
        rate: demand.traffic.map(|traffic| traffic.rate),
        message_bytes: demand.traffic.map(|traffic| traffic.message_bytes),
        idle: MemoryBytes { kernel: all(kernel_bytes), user: all(user_bytes) },
        busy: demand.traffic.map(|traffic| MemoryBytes {
            kernel: all(traffic.kernel_bytes(tls)),
            user: traffic.user_bytes(demand.connections, demand.config),
        }),
        fixed_bytes: fixed_bytes(demand.config, shards as usize),
        fits: fits(host, demand, JUDGES),
        verdict: limits.iter().map(|limit| limit.verdict).max().unwrap_or(Verdict::Unknown),
        limits,
    }
}

/// The most connections for which none of these limits is bad.
fn fits(host: &Host, demand: &Demand<'_>, judges: &[Judge]) -> Fits {
    let of = |connections: u64, verdict: Verdict| {
        let demand = Demand { connections, ..*demand };
        let limits = judges.iter().filter_map(move |judge| judge(host, &demand));
        limits.filter(move |limit| limit.verdict == verdict).map(|limit| limit.what).collect::<Vec<_>>()
    };
    let connections = first(|connections| !of(connections, Verdict::Bad).is_empty());
    let connections = connections.map_or(CONNECTIONS_MAX, |first| first.saturating_sub(1));
    let mut limited_by = of(connections + 1, Verdict::Bad);
    if limited_by.is_empty() {
        limited_by.push("session ids");
    }
    Fits { connections, limited_by, unknown: of(connections, Verdict::Unknown) }
}

/// The smallest number of connections for which something holds that holds for all larger ones too.
pub(super) fn first(holds: impl Fn(u64) -> bool) -> Option<u64> {
    if !holds(CONNECTIONS_MAX) {
        return None;
    }
    let (mut below, mut at) = (0, CONNECTIONS_MAX);
    if holds(0) {
        return Some(0);
    }
    while at - below > 1 {
        let middle = below.midpoint(at);
        if holds(middle) { at = middle } else { below = middle }
    }
    Some(at)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls { ", with TLS" } else { "" };
        writeln!(f, "{} on {}{tls}", amount(self.connections, "connections"), amount(self.shards, "shards"))?;
        let bytes = |bytes| amount(bytes, "bytes");
        writeln!(f, "idle: {} in the kernel, {} here", bytes(self.idle.kernel), bytes(self.idle.user))?;
        if let (Some(busy), Some(rate), Some(message)) = (self.busy, self.rate, self.message_bytes) {
            let (kernel, user) = (bytes(busy.kernel), bytes(busy.user));
            writeln!(
                f,
                "busy, {rate} a second of {} bytes each: {kernel} in the kernel and {user} here more",
                thousands(message)
            )?;
        }
        writeln!(f, "\n{:<9}{:<33}{:>24}{:>24}", "verdict", "what", "needed", "has")?;
        for limit in &self.limits {
            let (needed, has) = (amount(limit.needed, limit.unit), limit.has_text());
            writeln!(f, "{:<9}{:<33}{needed:>24}{has:>24}", limit.verdict.as_str(), limit.what)?;
            if limit.verdict != Verdict::Ok {
                writeln!(f, "         {}", limit.why)?;
            }
            if let Some(mend) = &limit.mend {
                writeln!(f, "         mend: {mend}")?;
            }
        }
        let Fits { connections, limited_by, unknown } = &self.fits;
        writeln!(f, "\nfits: {}; the first limit is {}", amount(*connections, "connections"), limited_by.join(", "))?;
        if !unknown.is_empty() {
            writeln!(f, "not known, so it may be fewer: {}", unknown.join(", "))?;
        }
        Ok(())
    }
}

/// What session ids have room for on one shard, and the most that a configuration may ask for.
const CONNECTIONS_MAX: u64 = SLOT_MAX as u64 + 1;

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;
    use crate::config::Config;
    use crate::server::Traffic;

    fn planned(tree: &Tree, connections: u64, traffic: Option<Traffic>, yaml: &str) -> Plan {
        let config = Config::parse(&format!("auth: {{required: false}}\n{yaml}")).unwrap();
        plan(&tree.host(), &Demand { connections, traffic, config: &config })
    }

    #[test]
    fn what_fits_is_what_the_limits_say() {
        #[track_caller]
        fn check(tree: &Tree, yaml: &str, connections: u64, limited_by: &[&str]) {
            let Fits { connections: fitting, limited_by: by, .. } = planned(tree, 1, None, yaml).fits;
            assert_eq!((fitting, by.as_slice()), (connections, limited_by));
            let verdict = |connections| planned(tree, connections, None, yaml).verdict;
            assert!(verdict(fitting) < Verdict::Bad && verdict(fitting + 1) == Verdict::Bad);
        }
        let limits = |nofile: &str| format!("Max open files            1024      {nofile}    files\n");
        check(&Tree::good(), "", 2_097_152 - 1024 - 840, &["fs.file-max"]);
        check(&Tree::good().with("/proc/self/limits", &limits("20000")), "", 152_352, &["nofile", "shards"]);
        let two = |most: &str| format!("shards: 2\nwebsocket: {{max_total_connections: {most}}}");
        let few = Tree::good().with("/proc/self/limits", &limits("20000"));
        // As many as the server computes for itself: beyond that it refuses.
        check(&few, &two("auto"), 38_088, &["nofile", "shards"]);
        check(&few, &two("39744"), 39_744, &["websocket.max_total_connections", "nofile", "shards"]);
        check(&Tree::good(), "websocket: {max_total_connections: 5}", 5, &["websocket.max_total_connections"]);
        let small = Tree::good().with("/proc/meminfo", "MemAvailable: 1048576 kB\n");
        let left = (1u64 << 30) / 5 * 4 - fixed_bytes(&Config::default(), 8);
        check(&small, "", left / Cost::idle(&Config::default(), 8).bytes(), &["memory"]);
        let tracked = Tree::good()
            .with("/proc/sys/net/netfilter/nf_conntrack_max", "65536")
            .with("/proc/sys/net/netfilter/nf_conntrack_count", "36");
        check(&tracked, "", 65_500, &["net.netfilter.nf_conntrack_max"]);
    }

    #[test]
    fn a_machine_without_limits_ends_at_the_session_ids() {
        let host = Tree::good().host();
        let demand = Demand { connections: 1, traffic: None, config: &Config::default() };
        let Fits { connections, limited_by, unknown } = fits(&host, &demand, &[]);
        assert_eq!((connections, limited_by, unknown), (1 << 26, vec!["session ids"], vec![]));
    }

    #[test]
    fn what_is_not_known_does_not_fit() {
        let tree = Tree::good().without("/proc/sys/fs/file-max");
        let plan = planned(&tree, 10, None, "");
        assert_eq!(
            (plan.verdict, plan.fits(), plan.fits.unknown.as_slice()),
            (Verdict::Unknown, false, &["fs.file-max"][..])
        );
        assert!(plan.to_string().contains("not known, so it may be fewer: fs.file-max"), "{plan}");
        assert!(planned(&Tree::good(), 10, None, "").fits());
        assert_eq!(planned(&Tree::empty(), 10, None, "").verdict, Verdict::Unknown);
    }

    #[test]
    fn memory_is_told_idle_and_busy() {
        let tls = "tls: {listen: 127.0.0.1:0, cert_file: a, key_file: b}";
        let (plain, tls) = (planned(&Tree::good(), 1000, None, ""), planned(&Tree::good(), 1000, None, tls));
        assert_eq!(tls.idle.user - plain.idle.user, 1_081_000);
        assert!(plain.busy.is_none() && !plain.tls && tls.tls);
        let traffic = Traffic { rate: 5.0, message_bytes: 128 };
        let busy = planned(&Tree::good(), 1000, Some(traffic), "");
        assert_eq!(busy.busy, Some(MemoryBytes { kernel: 1_226_000, user: 104_000 }));
        assert!(busy.to_string().contains("busy, 5 a second of 128 bytes each: 1.2 MiB in the kernel"), "{busy}");
    }

    /// Each line: what, needed, has, verdict, and the command that mends it.
    #[test]
    fn a_plan_for_people() {
        let text = planned(&Tree::good().with("/proc/sys/net/core/somaxconn", "4096"), 100_000, None, "").to_string();
        let line = text.lines().find(|line| line.contains("somaxconn")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["warning", "net.core.somaxconn", "12,500", "connections", "4,096", "connections"]);
        assert!(text.contains("\n         mend: sysctl -w net.core.somaxconn=65535\n"), "{text}");
        assert!(text.contains("\nok       nofile"), "{text}");
    }

    #[test]
    fn the_first_is_found() {
        for at in [0, 1, 2, 1000, CONNECTIONS_MAX] {
            assert_eq!(first(|connections| connections >= at), Some(at));
        }
        assert_eq!(first(|_| false), None);
    }
}
