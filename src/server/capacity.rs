//! What the machine can hold: descriptors and memory, in connections.

use std::io;

use crate::config::{Auto, Config};
use crate::io::probe;

/// How many connections fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Connections of the whole engine.
    pub connections: u32,
    /// Places in each shard's descriptor table.
    pub table: u32,
    /// Whether `connections` was computed from the machine.
    pub computed: bool,
}

impl Capacity {
    /// What this machine's descriptors and memory allow, or the configured number if that is less.
    pub(super) fn of_machine(config: &Config, shards: usize) -> io::Result<Self> {
        let descriptors = probe::raise_descriptor_limit()?.min(TABLE_MAX);
        // Direct descriptors: the limit holds for each ring's table, not for all together.
        if descriptors <= TABLE_SPARE {
            return Err(io::Error::other(format!(
                "{descriptors} descriptors are too few to serve anyone; raise `nofile` (ulimit -Hn, LimitNOFILE=) to \
                 {} or more",
                2 * TABLE_SPARE
            )));
        }
        let by_descriptors = (descriptors - TABLE_SPARE).saturating_mul(shards as u64);
        let (connections, computed) = match config.websocket.max_total_connections {
            Auto::Value(connections) => (u64::from(connections), false),
            Auto::Auto => (by_descriptors.min(available_memory_bytes() * 4 / 5 / CONNECTION_BYTES), true),
        };
        if connections > by_descriptors {
            return Err(io::Error::other(format!(
                "websocket.max_total_connections: {connections} need more descriptors than {shards} shards of \
                 {descriptors} have; raise `nofile` (ulimit -Hn, LimitNOFILE=) or the number of shards"
            )));
        }
        // Any shard may get more than its share: the kernel spreads connections by hash.
        let table = (connections + TABLE_SPARE).min(descriptors) as u32;
        Ok(Self { connections: connections as u32, table, computed })
    }
}

/// Memory that can still be had, from /proc/meminfo; a gigabyte if that cannot be read.
fn available_memory_bytes() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(1 << 30, |kib| kib * 1024)
}

/// User memory of an idle connection with a token and one subscription, in bytes: the connection and its slot, timer,
/// driver record, identity (with what the allocator adds), session with three events, and place in the topic's list.
/// `measure idle` finds it.
pub const IDLE_CONNECTION_BYTES: usize = crate::conn::CONN_BYTES + 8 + 12 + 12 + 64 + crate::conn::SESSION_BYTES + 7;
const _: () = assert!(IDLE_CONNECTION_BYTES <= 256);

/// Largest descriptor table the kernel makes.
const TABLE_MAX: u64 = 1 << 20;
/// Table places beyond the connections: those that are closing, and those that are told that the server is full.
const TABLE_SPARE: u64 = 128;
/// What an idle connection costs: about 4.5 KB in the kernel and 0.3 KB here.
const CONNECTION_BYTES: u64 = 4_800;
