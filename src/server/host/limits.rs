//! What a number of connections needs of each limit of a machine, and what the machine has.
//! Law: a limit is a function of the machine and of what is asked of it; it never gets better with more connections.

use serde::Serialize;

use crate::config::{Auto, Config};
use crate::io::listener::BACKLOG;
use crate::server::SHARDS_MAX;
use crate::server::capacity::{TABLE_MAX, TABLE_SPARE, memory_share, table_for};
use crate::server::cost::{Cost, Traffic, bounds_bytes, fixed_bytes, has_tls};

use super::files::Fact;
use super::verdict::{Verdict, amount};
use super::{Host, sysctl};

/// What is asked of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    /// Connections at the same time.
    pub connections: u64,
    /// What they send and are sent; none if they lie idle.
    pub traffic: Option<Traffic>,
    /// The configuration of the server.
    pub config: &'a Config,
}

impl Demand<'_> {
    /// Threads that serve them: as configured, or one a core. One where the cores are not known.
    pub(super) fn shards(&self, host: &Host) -> u64 {
        match self.config.shards {
            Auto::Value(shards) => shards.into(),
            Auto::Auto => host.cores.as_ref().map_or(1, |&cores| cores.clamp(1, SHARDS_MAX.into()) as u64),
        }
    }

    /// Bytes of this process' for all of them, idle.
    pub(super) fn user_bytes(&self, host: &Host) -> u64 {
        self.connections.saturating_mul(self.cost(host).user_bytes)
    }

    fn cost(&self, host: &Host) -> Cost {
        Cost::idle(self.config, self.shards(host) as usize)
    }

    fn memory_bytes(&self, host: &Host) -> u64 {
        let fixed = fixed_bytes(self.config, self.shards(host) as usize);
        self.connections.saturating_mul(self.cost(host).bytes()).saturating_add(fixed)
    }

    fn traffic_bytes(&self) -> u64 {
        let Some(traffic) = self.traffic else { return 0 };
        let kernel = self.connections.saturating_mul(traffic.kernel_bytes(has_tls(self.config)));
        kernel.saturating_add(traffic.user_bytes(self.connections, self.config))
    }
}

/// One limit: what is needed, what there is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// The limit's name.
    pub what: &'static str,
    /// Of what the numbers are.
    pub unit: &'static str,
    /// How much is needed.
    pub needed: u64,
    /// How much there is; none if it is not known.
    pub has: Option<u64>,
    /// How well that fits.
    pub verdict: Verdict,
    /// What is counted, what happens beyond it, or why it is not known.
    pub why: String,
    /// The command, or the line of a file, that mends it; none if nothing needs it.
    pub mend: Option<String>,
}

impl Limit {
    /// A limit beyond which it is `beyond`.
    fn new(what: &'static str, unit: &'static str, needed: u64, has: Fact<u64>, beyond: Verdict, why: String) -> Self {
        match has {
            Ok(has) => {
                let verdict = if needed <= has { Verdict::Ok } else { beyond };
                Self { what, unit, needed, has: Some(has), verdict, why, mend: None }
            }
            Err(unknown) => {
                let why = format!("{why}; {unknown}");
                Self { what, unit, needed, has: None, verdict: Verdict::Unknown, why, mend: None }
            }
        }
    }

    /// With a command, if anything is to be mended.
    fn mended_by(mut self, command: impl FnOnce() -> String) -> Self {
        self.mend = (self.verdict >= Verdict::Warning).then(command);
        self
    }

    /// What there is, in words.
    pub(super) fn has_text(&self) -> String {
        self.has.map_or_else(|| "unknown".to_owned(), |has| amount(has, self.unit))
    }
}

/// Judges one limit; none where it does not exist.
pub(super) type Judge = fn(&Host, &Demand<'_>) -> Option<Limit>;

/// Every limit, in the order in which people meet them.
pub(super) const JUDGES: &[Judge] = &[
    configured,
    nofile,
    shards,
    nr_open,
    file_max,
    memory,
    busy_memory,
    bounded_memory,
    committed,
    tcp_mem,
    somaxconn,
    syn_backlog,
    conntrack,
    cores,
    ports,
];

pub(super) fn configured(_: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let Auto::Value(most) = demand.config.websocket.max_total_connections else { return None };
    let needed = demand.connections;
    let why = "beyond it newcomers are answered 503".to_owned();
    let limit =
        Limit::new("websocket.max_total_connections", "connections", needed, Ok(most.into()), Verdict::Bad, why);
    Some(limit.mended_by(|| format!("websocket: {{max_total_connections: {needed}}} in the configuration, or auto")))
}

pub(super) fn nofile(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let shards = demand.shards(host);
    let has = host.nofile.clone().map(|nofile| nofile.hard.min(TABLE_MAX));
    let needed = table_for(demand.connections, shards);
    // The kernel spreads connections by hash, so a server that is told to take so many may be lucky with less than that. One
    // that computes how many it takes does not try.
    let computes = matches!(demand.config.websocket.max_total_connections, Auto::Auto);
    let enough = demand.connections.div_ceil(shards).saturating_add(TABLE_SPARE);
    let may_do = !computes && has.as_ref().is_ok_and(|&has| enough <= has);
    let beyond = if may_do { Verdict::Warning } else { Verdict::Bad };
    let then = match computes {
        true => "The server computes how many it takes from this, and answers 503 beyond",
        false => "A shard whose table is full accepts nobody; who comes to it waits",
    };
    let why = format!(
        "the hard limit of open files, which each of {shards} rings' tables may have: its share of the connections, and \
         what it gets more than that by chance; at most 1,048,576. {then}"
    );
    let limit = Limit::new("nofile", "descriptors", needed, has, beyond, why);
    Some(limit.mended_by(|| match needed <= TABLE_MAX {
        true => format!("LimitNOFILE={0} in the unit, or `* hard nofile {0}` in /etc/security/limits.d/", TABLE_MAX),
        false => format!("more shards: a ring's table has at most {TABLE_MAX} places"),
    }))
}

pub(super) fn shards(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let nofile = host.nofile.clone().map(|nofile| nofile.hard.min(TABLE_MAX));
    let has = nofile.as_ref().map(|_| demand.shards(host)).map_err(Clone::clone);
    let table = nofile.unwrap_or(TABLE_MAX);
    let needed = (1..=u64::from(SHARDS_MAX)).find(|&shards| table_for(demand.connections, shards) <= table);
    let why = match needed {
        Some(_) => format!("so many tables of {}", amount(table, "descriptors")),
        None => format!("even {SHARDS_MAX} tables of {} are too few", amount(table, "descriptors")),
    };
    let needed = needed.unwrap_or(u64::from(SHARDS_MAX) + 1);
    let limit = Limit::new("shards", "shards", needed, has, nofile_verdict(host, demand), why);
    Some(limit.mended_by(|| match needed <= SHARDS_MAX.into() {
        true => format!("shards: {needed} in the configuration, or a higher nofile"),
        false => "a higher nofile, or another machine".to_owned(),
    }))
}

/// Too few shards are as bad as too few descriptors: each mends the other.
fn nofile_verdict(host: &Host, demand: &Demand<'_>) -> Verdict {
    nofile(host, demand).map_or(Verdict::Bad, |limit| limit.verdict)
}

pub(super) fn nr_open(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let needed = table_for(demand.connections, demand.shards(host)).min(TABLE_MAX);
    let why = "the most that nofile can be raised to".to_owned();
    let limit = Limit::new("fs.nr_open", "descriptors", needed, host.nr_open.clone(), Verdict::Bad, why);
    Some(limit.mended_by(|| sysctl::command("fs.nr_open", needed)))
}

pub(super) fn file_max(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let open = host.files_open.clone();
    let needed =
        demand.connections.saturating_add(FILES_SPARE).saturating_add(open.as_ref().copied().unwrap_or_default());
    let has = open.and(host.file_max.clone());
    let why = "open files of the machine: those of now, one for each connection, and some. Beyond it accepting fails \
               (ENFILE)"
        .to_owned();
    let limit = Limit::new("fs.file-max", "files", needed, has, Verdict::Bad, why);
    Some(limit.mended_by(|| sysctl::command("fs.file-max", needed)))
}

/// The memory of idle connections.
pub(super) fn memory(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let cost = demand.cost(host);
    let each = |bytes: u64| amount(demand.connections.saturating_mul(bytes), "bytes");
    let why = format!(
        "idle: {} in the kernel ({} bytes each), {} here ({} bytes each{}), {} for the server itself. There is four fifths \
         of what can be had, so that the rest is for what they do; beyond it the kernel kills (OOM)",
        each(cost.kernel_bytes),
        cost.kernel_bytes,
        each(cost.user_bytes),
        cost.user_bytes,
        if has_tls(demand.config) { ", TLS included" } else { "" },
        amount(fixed_bytes(demand.config, demand.shards(host) as usize), "bytes"),
    );
    let needed = demand.memory_bytes(host);
    let has = host.memory.room().map(|room| memory_share(room.bytes));
    let limit = Limit::new("memory", "bytes", needed, has, Verdict::Bad, why);
    Some(limit.mended_by(|| more_memory(host, needed / 4 * 5)))
}

/// The same with what is on its way.
pub(super) fn busy_memory(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let traffic = demand.traffic?;
    let why = format!(
        "as above, and {} for {} on the way to or from each",
        amount(demand.traffic_bytes(), "bytes"),
        amount(traffic.in_flight(), "messages"),
    );
    let needed = demand.memory_bytes(host).saturating_add(demand.traffic_bytes());
    let has = host.memory.room().map(|room| room.bytes);
    let limit = Limit::new("memory with its rate", "bytes", needed, has, Verdict::Bad, why);
    Some(limit.mended_by(|| more_memory(host, needed)))
}

/// The same when everything that may wait waits.
pub(super) fn bounded_memory(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let bounds = bounds_bytes(demand.connections, demand.config);
    let why = format!(
        "at worst: as above, and {} of what may wait for slow readers (outbound.max_total_bytes), may have arrived in part \
         (limits.unfinished_bytes), and may be remembered (websocket.max_session_history)",
        amount(bounds, "bytes")
    );
    let needed = demand.memory_bytes(host).saturating_add(demand.traffic_bytes()).saturating_add(bounds);
    let has = host.memory.room().map(|room| room.bytes);
    let limit = Limit::new("memory at its bounds", "bytes", needed, has, Verdict::Warning, why);
    Some(limit.mended_by(|| "lower these three, or more memory".to_owned()))
}

fn more_memory(host: &Host, needed: u64) -> String {
    let file = host.memory.known_room().map(|room| room.file).unwrap_or_default();
    let needed = amount(needed, "bytes");
    match file.contains("/memory.") {
        true => format!("raise {file} (MemoryMax=, docker run --memory) by what is missing to {needed} free"),
        false => format!("{needed} of free memory, or fewer connections (websocket.max_total_connections)"),
    }
}

/// What the kernel still promises, where it promises no more than there is.
pub(super) fn committed(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let memory = &host.memory;
    let has = match memory.overcommit.clone() {
        Ok(STRICT) => memory.commit_limit.clone().and_then(|limit| Ok(limit.saturating_sub(memory.committed.clone()?))),
        Ok(0 | 1) => return None,
        Ok(other) => Err(super::unreadable("/proc/sys/vm/overcommit_memory", format!("{other} is none of 0, 1, 2"))),
        Err(unknown) => Err(unknown),
    };
    let fixed = fixed_bytes(demand.config, demand.shards(host) as usize);
    let needed = demand.user_bytes(host).saturating_add(fixed);
    let why =
        "with vm.overcommit_memory = 2 the kernel refuses memory beyond CommitLimit, and the server ends".to_owned();
    let limit = Limit::new("vm.overcommit_memory", "bytes", needed, has, Verdict::Bad, why);
    Some(limit.mended_by(|| "sysctl -w vm.overcommit_memory=0".to_owned()))
}

pub(super) fn tcp_mem(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    const KEY: &str = "net.ipv4.tcp_mem";
    let pages = match (demand.traffic, &host.page_bytes) {
        (None, _) => Ok(0),
        (Some(traffic), Ok(page)) => Ok(traffic.pages(has_tls(demand.config), *page)),
        (Some(_), Err(unknown)) => Err(unknown.clone()),
    };
    let needed = demand.connections.saturating_mul(pages.as_ref().copied().unwrap_or_default());
    let all = pages.and(host.tcp_mem.clone());
    let beyond = match &all {
        Ok([_, _, most]) if needed > *most => Verdict::Bad,
        _ => Verdict::Warning,
    };
    let why =
        "pages of all sockets with something on its way; an idle one has none. There is the second number: beyond it \
               buffers shrink, beyond the third packets are dropped"
            .to_owned();
    let limit = Limit::new(KEY, "pages", needed, all.map(|[_, pressure, _]| pressure), beyond, why);
    Some(limit.mended_by(|| {
        let wanted = sysctl::numbers(KEY);
        let pressure = wanted.get(1).copied().unwrap_or_default().max(needed);
        let (low, most) = (pressure / 4 * 3, pressure.saturating_mul(3) / 2);
        match pressure > needed || wanted.get(1) == Some(&needed) {
            true => format!("sysctl -w {KEY}='{}'", sysctl::wanted(KEY).unwrap_or_default()),
            false => format!("sysctl -w {KEY}='{low} {pressure} {most}'"),
        }
    }))
}

pub(super) fn somaxconn(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let why =
        "connections waiting to be accepted, for each shard, when all come back at once. Beyond it the kernel drops \
               them, and clients try again after a second and more"
            .to_owned();
    Some(queue("net.core.somaxconn", host.somaxconn.clone(), host, demand, why))
}

pub(super) fn syn_backlog(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let why =
        "handshakes of TCP under way, for each shard, when all come back at once. Beyond it the kernel answers with \
               cookies, or drops"
            .to_owned();
    Some(queue("net.ipv4.tcp_max_syn_backlog", host.syn_backlog.clone(), host, demand, why))
}

fn queue(key: &'static str, has: Fact<u64>, host: &Host, demand: &Demand<'_>, why: String) -> Limit {
    let needed = demand.connections.div_ceil(demand.shards(host)).min(BACKLOG as u64);
    Limit::new(key, "connections", needed, has, Verdict::Warning, why).mended_by(|| sysctl::command(key, needed))
}

pub(super) fn conntrack(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    const KEY: &str = "net.netfilter.nf_conntrack_max";
    if matches!(host.conntrack, Err(super::Unknown::Absent(_))) {
        return None;
    }
    let count = host.conntrack.as_ref().map_or(0, |conntrack| conntrack.count);
    let needed = demand.connections.saturating_add(count);
    let why =
        "connections that the firewall keeps: those of now, and each of these. Beyond it packets are dropped (`table \
               full` in the kernel's log)"
            .to_owned();
    let has = host.conntrack.clone().map(|conntrack| conntrack.max);
    let limit = Limit::new(KEY, "entries", needed, has, Verdict::Bad, why);
    let most = needed.saturating_mul(5) / 4;
    Some(limit.mended_by(|| format!("sysctl -w {KEY}={most}, or a `notrack` rule for the server's ports")))
}

/// Processor time, from figures of another machine.
pub(super) fn cores(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let traffic = demand.traffic.filter(|traffic| traffic.rate > 0.0)?;
    let needed = traffic.core_percent(demand.connections, has_tls(demand.config));
    let has = host.cores.clone().and_then(|cores| {
        let limit = host.cpu_limit.clone()?.map_or(f64::INFINITY, |limit| limit.cores);
        Ok((limit.min(demand.shards(host).min(cores as u64) as f64) * 100.0) as u64)
    });
    let why =
        "an estimate, in hundredths of a core, of messages that are received and answered one by one on the machine \
               of the README; deliveries of one message to many cost a tenth"
            .to_owned();
    let limit = Limit::new("processor", "% of a core", needed, has, Verdict::Warning, why);
    Some(limit.mended_by(|| "more cores, fewer connections, or `measure -- echo` on this machine".to_owned()))
}

/// Ports of clients that all come from one address.
pub(super) fn ports(host: &Host, demand: &Demand<'_>) -> Option<Limit> {
    let own = demand.config.public_addresses().count().max(1) as u64;
    let has = host.ports.clone().map(|[first, last]| (last - first + 1).saturating_mul(own));
    let addresses = has.as_ref().map_or(0, |&has| demand.connections.div_ceil(has.max(1)));
    let why = format!(
        "only behind one proxy that has this machine's net.ipv4.ip_local_port_range: so many connections come from one \
         address to {}. These need {addresses} of the proxy's, or as many here",
        amount(own, "listening addresses"),
    );
    let limit = Limit::new("source ports", "connections", demand.connections, has, Verdict::Note, why);
    let is_behind_proxy = !demand.config.proxy.trusted.is_empty();
    Some(if limit.verdict == Verdict::Note && is_behind_proxy {
        Limit {
            verdict: Verdict::Warning,
            mend: Some(format!(
                "on the proxy: sysctl -w net.ipv4.ip_local_port_range='1024 65535', and {addresses} addresses"
            )),
            ..limit
        }
    } else {
        limit
    })
}

/// Files that a machine opens beside the connections.
const FILES_SPARE: u64 = 1024;
/// The value of `vm.overcommit_memory` that promises no more than there is.
const STRICT: u64 = 2;

#[cfg(test)]
mod tests;
