//! What of a machine will break, at how many connections, and the command that mends it.

use std::fmt;

use serde::Serialize;

use crate::config::{Auto, Config};
use crate::io::probe::{Features, Unavailable};
use crate::server::capacity::{Capacity, MEMORY_BYTES};

use super::limits::{self, Demand, Judge};
use super::plan::first;
use super::verdict::{amount, thousands};
use super::{Host, Verdict, machine};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What is there.
    pub found: String,
    /// The number of connections from which on it is too little; none if no number is.
    pub breaks_at: Option<u64>,
    /// What that means.
    pub effect: String,
    /// The command, or the line of a file, that mends it; none if nothing needs it.
    pub mend: Option<String>,
}

impl Finding {
    pub(super) fn new(what: &'static str, verdict: Verdict, found: String, effect: String) -> Self {
        Self { what, verdict, found, breaks_at: None, effect, mend: None }
    }

    pub(super) fn unknown(what: &'static str, why: String) -> Self {
        Self::new(what, Verdict::Unknown, "unknown".to_owned(), why)
    }

    pub(super) fn broken_from(mut self, connections: Option<u64>) -> Self {
        self.breaks_at = connections;
        self
    }

    pub(super) fn mended_by(mut self, command: &str) -> Self {
        self.mend = Some(command.to_owned());
        self
    }
}

/// All that was found, for people (`Display`) and for programs (JSON).
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// For so many connections.
    pub connections: u64,
    /// Whether that is what the server would admit, since nobody said.
    pub computed: bool,
    /// Each thing.
    pub findings: Vec<Finding>,
    /// The worst of all.
    pub verdict: Verdict,
}

/// As many connections as a server would admit here: as configured, or what descriptors and memory allow.
pub fn admitted(host: &Host, config: &Config) -> u64 {
    if let Auto::Value(connections) = config.websocket.max_total_connections {
        return connections.into();
    }
    let shards = Demand { connections: 0, traffic: None, config }.shards(host);
    let descriptors = host.nofile.as_ref().map_or(u64::MAX, |nofile| nofile.hard);
    let memory_bytes = host.memory.known_room().map_or(MEMORY_BYTES, |room| room.bytes);
    let capacity = Capacity::compute(config, shards as usize, descriptors, memory_bytes);
    capacity.map_or(0, |capacity| capacity.connections.into())
}

/// Looks at everything. `ring` is what [`probe::check`](crate::io::probe::check) said.
pub fn examine(host: &Host, demand: &Demand<'_>, ring: &Result<Features, Unavailable>, computed: bool) -> Diagnosis {
    let of_limits =
        |judges: &[Judge]| judges.iter().filter_map(|judge| limit(host, demand, *judge)).collect::<Vec<_>>();
    let mut findings = Vec::new();
    let machine = |looks: &[Look]| looks.iter().map(|look| look(host, demand, ring)).collect::<Vec<_>>();
    findings.extend(machine(&[machine::ring, machine::disabled, machine::seccomp]));
    findings.extend(of_limits(&[limits::nofile, limits::shards, limits::nr_open, limits::file_max]));
    findings.extend(of_limits(&[limits::memory, limits::bounded_memory, limits::committed]));
    findings.extend(machine(&[machine::swap, machine::huge_pages, machine::quota]));
    findings.extend(of_limits(&[limits::somaxconn, limits::syn_backlog, limits::tcp_mem]));
    findings.extend(machine(&[machine::receive_buffers, machine::send_buffers]));
    findings.push(limit(host, demand, limits::conntrack).unwrap_or_else(not_tracked));
    findings.extend(of_limits(&[limits::ports]));
    findings.extend(machine(&[machine::queues, machine::clock, machine::governor]));
    let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Unknown);
    Diagnosis { connections: demand.connections, computed, findings, verdict }
}

/// Looks at one thing.
type Look = fn(&Host, &Demand<'_>, &Result<Features, Unavailable>) -> Finding;

/// A limit, and from which number of connections on it is too little.
fn limit(host: &Host, demand: &Demand<'_>, judge: Judge) -> Option<Finding> {
    let limit = judge(host, demand)?;
    let has = limit.has_text();
    let breaks_at = limit.has.and_then(|_| {
        first(|connections| {
            let demand = Demand { connections, ..*demand };
            judge(host, &demand).is_some_and(|limit| limit.needed > limit.has.unwrap_or_default())
        })
    });
    let found = match limit.has {
        Some(_) => format!("{has}, needed {}", amount(limit.needed, limit.unit)),
        None => has,
    };
    Some(Finding { what: limit.what, verdict: limit.verdict, found, breaks_at, effect: limit.why, mend: limit.mend })
}

fn not_tracked() -> Finding {
    let effect = "no firewall keeps connections".to_owned();
    Finding::new("net.netfilter.nf_conntrack_max", Verdict::Ok, "not loaded".to_owned(), effect)
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = if self.computed { ", as many as the server would admit here" } else { "" };
        writeln!(f, "for {}{origin}\n", amount(self.connections, "connections"))?;
        for finding in &self.findings {
            let Finding { what, verdict, found, breaks_at, effect, mend } = finding;
            write!(f, "{:<9}{what}: {found}", verdict.as_str())?;
            if let Some(breaks_at) = breaks_at.filter(|&breaks_at| breaks_at > 0) {
                write!(f, "; too little from {} connections on", thousands(breaks_at))?;
            }
            writeln!(f)?;
            if *verdict != Verdict::Ok {
                writeln!(f, "         {effect}")?;
            }
            if let Some(mend) = mend {
                writeln!(f, "         mend: {mend}")?;
            }
        }
        let all = [Verdict::Ok, Verdict::Note, Verdict::Warning, Verdict::Unknown, Verdict::Bad];
        let count = |verdict| self.findings.iter().filter(|finding| finding.verdict == verdict).count();
        let counts = all.map(|verdict| format!("{} {}", count(verdict), verdict.as_str()));
        writeln!(f, "\n{}", counts.join(", "))
    }
}

#[cfg(test)]
mod tests;
