//! What can go wrong on a machine that no number of connections has to do with, or only in part.

use std::fmt::Write;

use crate::io::probe::{Cause, Features, Unavailable};

use super::doctor::Finding;
use super::files::{Fact, Unknown};
use super::limits::Demand;
use super::verdict::{Verdict, amount, thousands};
use super::{Host, sysctl};

/// What the kernel has of io_uring.
pub(super) fn ring(_: &Host, demand: &Demand<'_>, ring: &Result<Features, Unavailable>) -> Finding {
    let what = "io_uring";
    let features = match ring {
        Ok(features) => features,
        Err(unavailable) => {
            let mend = match unavailable.cause {
                Cause::TooOld => "a kernel of 6.1 or newer with CONFIG_IO_URING",
                Cause::Sysctl => "sysctl -w kernel.io_uring_disabled=0",
                Cause::Seccomp => "docker run --security-opt seccomp=tuning/seccomp.json",
                Cause::Limit => "free memory, or a higher nofile",
            };
            let text = unavailable.to_string();
            let effect = format!("the server does not start: {}", text.lines().next().unwrap_or_default());
            let found = format!("kernel {}: not available", unavailable.release);
            return Finding::new(what, Verdict::Bad, found, effect).broken_from(Some(0)).mended_by(mend);
        }
    };
    let mut missing = String::new();
    let mut lacks = |there: bool, text: String| {
        if !there {
            let _ = write!(missing, "{}{text}", if missing.is_empty() { "" } else { "; " }); // a String takes everything
        }
    };
    let buffer_bytes = demand.config.io.receive_buffer_size.0 as u64;
    lacks(features.no_sqarray, "no_sqarray (6.6): each submission writes four bytes more".into());
    lacks(
        features.fd_install,
        "fd_install (6.8): a worker thread of the kernel ends the streams of who is closed for an error, and takes the shard's \
         core for milliseconds where those are many"
            .into(),
    );
    lacks(
        features.no_iowait,
        "no_iowait (6.15): shards that sleep count as waiting for a disk, in the load average and in iowait".into(),
    );
    lacks(
        features.bounded_receives,
        format!(
            "bounded receives (6.18): of who sends much {} are read before others have their turn, instead of {}",
            amount(32 * buffer_bytes, "bytes"),
            amount(8 * buffer_bytes, "bytes")
        ),
    );
    if missing.is_empty() {
        return Finding::new(what, Verdict::Ok, features.to_string(), "all that the server can use is there".into());
    }
    Finding::new(what, Verdict::Note, features.to_string(), format!("missing: {missing}")).mended_by("a newer kernel")
}

/// Whether the sysctl forbids io_uring.
pub(super) fn disabled(host: &Host, _: &Demand<'_>, ring: &Result<Features, Unavailable>) -> Finding {
    let what = "kernel.io_uring_disabled";
    let allowed = || "everyone may use io_uring".to_owned();
    match &host.io_uring_disabled {
        Ok(0) => Finding::new(what, Verdict::Ok, "0".into(), allowed()),
        Ok(1) => {
            let verdict = if ring.is_ok() { Verdict::Warning } else { Verdict::Bad };
            let effect =
                "only root and members of kernel.io_uring_group may use io_uring; for others the server does not \
                          start"
                    .to_owned();
            Finding::new(what, verdict, "1".into(), effect).mended_by(&sysctl::command(what, 0))
        }
        Ok(2) => {
            let effect = "nobody may use io_uring: the server does not start".to_owned();
            Finding::new(what, Verdict::Bad, "2".into(), effect)
                .broken_from(Some(0))
                .mended_by(&sysctl::command(what, 0))
        }
        Ok(other) => Finding::unknown(what, format!("{other} is none of 0, 1, 2")),
        // Kernels before 6.6 cannot forbid it so; where it works, nothing does.
        Err(Unknown::Absent(_)) if ring.is_ok() => Finding::new(what, Verdict::Ok, "not there".into(), allowed()),
        Err(unknown) => Finding::unknown(what, unknown.to_string()),
    }
}

/// Whether a filter of system calls is in the way.
pub(super) fn seccomp(host: &Host, _: &Demand<'_>, ring: &Result<Features, Unavailable>) -> Finding {
    let what = "seccomp";
    let found = |text: &str| text.to_owned();
    match &host.seccomp {
        Ok(0) => Finding::new(what, Verdict::Ok, found("no filter"), "nothing is forbidden".into()),
        Ok(2) if ring.is_ok() => {
            Finding::new(what, Verdict::Ok, found("a filter"), "it allows io_uring to this process".into())
        }
        Ok(mode @ (1 | 2)) => {
            let kind = if *mode == 1 { "strict" } else { "a filter" };
            let effect = "io_uring does not work under it: the server does not start".to_owned();
            let finding = Finding::new(what, Verdict::Bad, found(kind), effect).broken_from(Some(0));
            finding.mended_by("docker run --security-opt seccomp=tuning/seccomp.json")
        }
        Ok(other) => Finding::unknown(what, format!("/proc/self/status: mode {other} is none of 0, 1, 2")),
        Err(unknown) => Finding::unknown(what, unknown.to_string()),
    }
}

/// What peers that do not read hold in the kernel.
pub(super) fn receive_buffers(host: &Host, demand: &Demand<'_>, _: &Result<Features, Unavailable>) -> Finding {
    buffers("net.ipv4.tcp_rmem", &host.tcp_rmem, "that the server does not read from", host, demand)
}

/// What peers that are not read from hold in the kernel.
pub(super) fn send_buffers(host: &Host, demand: &Demand<'_>, _: &Result<Features, Unavailable>) -> Finding {
    buffers("net.ipv4.tcp_wmem", &host.tcp_wmem, "that do not read", host, demand)
}

fn buffers(key: &'static str, sizes: &Fact<[u64; 3]>, whose: &str, host: &Host, demand: &Demand<'_>) -> Finding {
    let known = || -> Fact<([u64; 3], u64)> {
        let [_, _, pages] = host.tcp_mem.clone()?;
        Ok((sizes.clone()?, pages.saturating_mul(host.page_bytes.clone()?)))
    };
    let (sizes, all_bytes) = match known() {
        Ok(known) => known,
        Err(unknown) => return Finding::unknown(key, unknown.to_string()),
    };
    let [_, initial, most] = sizes;
    let found = sizes.map(|bytes| bytes.to_string()).join(" ");
    let breaks_at = all_bytes.checked_div(initial).map(|fitting| fitting + 1);
    let a_second = most.saturating_mul(ROUND_TRIPS_A_SECOND);
    let mut effect = format!(
        "{} connections {whose}, at {} each, fill net.ipv4.tcp_mem; with one more, packets are dropped",
        thousands(breaks_at.map_or(0, |breaks_at| breaks_at - 1)),
        amount(initial, "bytes"),
    );
    let mut verdict = Verdict::Ok;
    if breaks_at.is_none_or(|breaks_at| breaks_at <= demand.connections) {
        verdict = Verdict::Warning;
    }
    if most < BUFFER_BYTES_MIN {
        verdict = Verdict::Warning;
        let _ = write!(
            effect,
            "; one connection half around the world carries at most {} a second",
            amount(a_second, "bytes")
        );
    }
    let finding = Finding::new(key, verdict, found, effect).broken_from(breaks_at);
    if verdict == Verdict::Ok {
        return finding;
    }
    finding.mended_by(&format!("sysctl -w {key}='{}'", sysctl::wanted(key).unwrap_or_default()))
}

/// Processor time that the control group takes away.
pub(super) fn quota(host: &Host, demand: &Demand<'_>, _: &Result<Features, Unavailable>) -> Finding {
    let what = "cgroup cpu";
    let limit = match &host.cpu_limit {
        Ok(Some(limit)) => limit,
        Ok(None) => return Finding::new(what, Verdict::Ok, "no quota".into(), "shards have their cores".into()),
        Err(unknown) => return Finding::unknown(what, unknown.to_string()),
    };
    let shards = demand.shards(host);
    let found = format!("{:.2} cores ({})", limit.cores, limit.file);
    if limit.cores >= shards as f64 {
        return Finding::new(what, Verdict::Ok, found, format!("as much as {}", amount(shards, "shards")));
    }
    let period_ms = limit.period_us as f64 / 1000.0;
    let works_ms = period_ms * limit.cores / shards as f64;
    let effect = format!(
        "{} that are busy have used it up {works_ms:.0} ms into each {period_ms:.0} ms, and all stand still for the other \
         {:.0} ms",
        amount(shards, "shards"),
        period_ms - works_ms
    );
    let mend = format!("shards: {} in the configuration, or CPUQuota={}%", (limit.cores as u64).max(1), shards * 100);
    Finding::new(what, Verdict::Warning, found, effect).mended_by(&mend)
}

/// What time is read from.
pub(super) fn clock(host: &Host, _: &Demand<'_>, _: &Result<Features, Unavailable>) -> Finding {
    let what = "clock source";
    let source = match &host.clock_source {
        Ok(source) => source,
        Err(unknown) => return Finding::unknown(what, unknown.to_string()),
    };
    if FAST_CLOCKS.contains(&source.as_str()) {
        let effect = "read without a system call, in some 20 ns".into();
        return Finding::new(what, Verdict::Ok, source.clone(), effect);
    }
    if !SLOW_CLOCKS.contains(&source.as_str()) {
        return Finding::unknown(what, format!("nothing is known of `{}`", source.escape_debug()));
    }
    let effect =
        "every look at the clock is a system call and a slow device's answer, a microsecond or more; a shard takes \
                  two a turn, and one for each large message"
            .into();
    let mend = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, if available_clocksource has it; \
                else the kernel's log says why not";
    Finding::new(what, Verdict::Warning, source.clone(), effect).mended_by(mend)
}

/// How frequencies are chosen.
pub(super) fn governor(host: &Host, _: &Demand<'_>, _: &Result<Features, Unavailable>) -> Finding {
    let what = "frequency governor";
    let governors = match &host.governors {
        Ok(governors) => governors,
        Err(Unknown::Absent(path)) => {
            let effect = format!("the kernel sets no frequencies here ({path} is not there), as in a virtual machine");
            return Finding::new(what, Verdict::Ok, "none".into(), effect);
        }
        Err(unknown) => return Finding::unknown(what, unknown.to_string()),
    };
    // Drivers that leave the frequency to the processor know two names: both are dynamic.
    let is_own = |driver: &str| matches!(driver, "intel_pstate" | "amd-pstate-epp");
    let of = |governor: &super::Governor| match governor.governor.as_str() {
        "performance" => Verdict::Ok,
        "schedutil" => Verdict::Note,
        "powersave" if is_own(&governor.driver) => Verdict::Note,
        "powersave" | "ondemand" | "conservative" | "userspace" => Verdict::Warning,
        _ => Verdict::Unknown,
    };
    let verdict = governors.iter().map(of).max().unwrap_or(Verdict::Unknown);
    let names: Vec<_> = governors.iter().map(|each| format!("{} ({})", each.governor, each.driver)).collect();
    let found = names.join(", ").escape_debug().to_string();
    let effect = match verdict {
        Verdict::Ok => "cores are as fast as they can be when a message comes",
        Verdict::Unknown => "nothing is known of this governor",
        _ => "a core that idles between messages is slow when the next one comes, which shows in latencies",
    };
    let finding = Finding::new(what, verdict, found, effect.into());
    if verdict == Verdict::Ok { finding } else { finding.mended_by("cpupower frequency-set -g performance") }
}

/// Whether packets come in on as many cores as there are shards.
pub(super) fn queues(host: &Host, demand: &Demand<'_>, _: &Result<Features, Unavailable>) -> Finding {
    let what = "network queues";
    let cards = match &host.cards {
        Ok(cards) => cards,
        Err(unknown) => return Finding::unknown(what, unknown.to_string()),
    };
    if cards.is_empty() {
        return Finding::unknown(what, "/sys/class/net has no interface with a device behind it".into());
    }
    let shards = demand.shards(host);
    let names: Vec<_> = cards
        .iter()
        .map(|card| format!("{}: {} in, {} out", card.name, card.receive_queues, card.transmit_queues))
        .collect();
    let found = names.join("; ");
    let poor: Vec<_> = cards.iter().filter(|card| (card.receive_queues as u64) < shards && !card.is_spread).collect();
    let Some(card) = poor.first() else {
        return Finding::new(
            what,
            Verdict::Ok,
            found,
            format!("packets come in on as many cores as {shards} shards have"),
        );
    };
    let effect = format!(
        "packets of all connections of {} are taken in by {} of {shards} cores, whose shards have less time and more delay",
        card.name, card.receive_queues
    );
    let mend = format!("ethtool -L {0} combined {shards}, or RPS: see tuning/cpus.md", card.name);
    Finding::new(what, Verdict::Warning, found, effect).mended_by(&mend)
}

/// Whether memory comes in pages of 2 MiB unasked.
pub(super) fn huge_pages(host: &Host, demand: &Demand<'_>, _: &Result<Features, Unavailable>) -> Finding {
    let what = "transparent huge pages";
    match &host.huge_pages {
        Err(Unknown::Absent(path)) => {
            Finding::new(what, Verdict::Ok, "none".into(), format!("this kernel has none ({path} is not there)"))
        }
        Err(unknown) => Finding::unknown(what, unknown.to_string()),
        Ok(word) if word == "madvise" || word == "never" => {
            Finding::new(what, Verdict::Ok, word.clone(), "memory comes as it is used".into())
        }
        Ok(word) if word == "always" => {
            let shards = demand.shards(host);
            let effect = format!(
                "memory comes and goes in steps of 2 MiB, for {} with several areas each; the kernel may stop a shard to make \
                 room for one",
                amount(shards, "shards")
            );
            let mend = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
            Finding::new(what, Verdict::Note, word.clone(), effect).mended_by(mend)
        }
        Ok(word) => Finding::unknown(what, format!("`{}` is none of always, madvise, never", word.escape_debug())),
    }
}

/// Whether idle memory may go to a disk.
pub(super) fn swap(host: &Host, demand: &Demand<'_>, _: &Result<Features, Unavailable>) -> Finding {
    let what = "swap";
    match host.memory.swap.clone() {
        Ok(0) => Finding::new(what, Verdict::Ok, "none".into(), "memory stays in memory".into()),
        Ok(bytes) => {
            let user = demand.user_bytes(host);
            let effect = format!(
                "connections that lie idle may be written to a disk, {} in all, and a message to everybody waits until they \
                 are back",
                amount(user.min(bytes), "bytes")
            );
            Finding::new(what, Verdict::Note, amount(bytes, "bytes"), effect)
                .mended_by("MemorySwapMax=0 in the unit, or swapoff -a")
        }
        Err(unknown) => Finding::unknown(what, unknown.to_string()),
    }
}

/// Clocks that the C library reads without a system call.
const FAST_CLOCKS: &[&str] =
    &["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "hyperv_clocksource", "xen", "arch_sys_counter"];
const SLOW_CLOCKS: &[&str] = &["hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"];
/// Half around the world.
const ROUND_TRIPS_A_SECOND: u64 = 5;
/// Least buffer that keeps a connection busy over some distance.
const BUFFER_BYTES_MIN: u64 = 64 * 1024;
