//! What the machine can hold: descriptors and memory, in connections.

use std::io;
use std::path::Path;

use crate::config::{Auto, Config};
use crate::io::probe;

use super::cost::{Cost, fixed_bytes};
use super::host::Memory;

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
        let room = Memory::of(Path::new("/")).known_room();
        Self::compute(config, shards, probe::raise_descriptor_limit()?, room.map_or(MEMORY_BYTES, |room| room.bytes))
    }

    /// The same of a machine with so many descriptors for each process and so much memory that can still be had.
    pub(super) fn compute(config: &Config, shards: usize, descriptors: u64, memory_bytes: u64) -> io::Result<Self> {
        let descriptors = descriptors.min(TABLE_MAX);
        // Direct descriptors: the limit holds for each ring's table, not for all together.
        if descriptors <= TABLE_SPARE {
            return Err(io::Error::other(format!(
                "{descriptors} descriptors are too few to serve anyone; raise `nofile` (ulimit -Hn, LimitNOFILE=) to \
                 {} or more",
                2 * TABLE_SPARE
            )));
        }
        let by_descriptors = (descriptors - TABLE_SPARE).saturating_mul(shards as u64);
        let by_memory =
            memory_share(memory_bytes).saturating_sub(fixed_bytes(config, shards)) / Cost::idle(config, shards).bytes();
        let (connections, computed) = match config.websocket.max_total_connections {
            Auto::Value(connections) => (u64::from(connections), false),
            Auto::Auto if by_memory == 0 => {
                return Err(io::Error::other(format!(
                    "{memory_bytes} bytes of memory can still be had, which is too little to serve anyone; free some, raise \
                     the limit of the control group (MemoryMax=, docker run --memory), or set \
                     websocket.max_total_connections"
                )));
            }
            Auto::Auto => (connections_for(descriptors, shards as u64).min(by_memory), true),
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

/// Places that each shard's table needs for so many connections on all: its share, and as much again as chance gives it
/// more than that. Where a table is full its shard accepts nobody, and who comes to it waits unanswered while others have room.
pub(super) fn table_for(connections: u64, shards: u64) -> u64 {
    let share = connections.div_ceil(shards);
    let by_chance = if shards > 1 { SIGMAS * share.isqrt() } else { 0 };
    share.saturating_add(by_chance).saturating_add(TABLE_SPARE)
}

/// The most connections for which tables of so many places are large enough.
pub(super) fn connections_for(places: u64, shards: u64) -> u64 {
    let most = places.saturating_sub(TABLE_SPARE);
    let chance = if shards > 1 { SIGMAS * most.isqrt() } else { 0 };
    // Of the share chance takes a little less than of all places.
    let share =
        (most.saturating_sub(chance)..=most).take_while(|share| table_for(share * shards, shards) <= places).last();
    share.unwrap_or(0) * shards
}

/// What idle connections may take of the memory that can be had; the rest is for what they do.
pub(super) fn memory_share(bytes: u64) -> u64 {
    bytes / 5 * 4
}

/// Largest descriptor table the kernel makes.
pub(super) const TABLE_MAX: u64 = 1 << 20;
/// Table places beyond the connections: those that are closing, and those that are told that the server is full.
pub(super) const TABLE_SPARE: u64 = 128;
/// Connections are spread by hash, so a shard's share has the variance of a binomial distribution, at most its mean; more than
/// six standard deviations beyond the mean happens once in a billion times.
const SIGMAS: u64 = 6;
/// Taken for what can be had where the machine does not say.
pub(super) const MEMORY_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn compute(yaml: &str, descriptors: u64, memory_bytes: u64) -> Result<Capacity, String> {
        let config = Config::parse(&format!("auth: {{required: false}}\n{yaml}")).unwrap();
        Capacity::compute(&config, 2, descriptors, memory_bytes).map_err(|error| error.to_string())
    }

    const TLS: &str = "tls: {listen: 127.0.0.1:0, cert_file: a, key_file: b}";

    #[test]
    fn descriptors_bound_each_shard() {
        let check = |yaml: &str, descriptors: u64, connections: u32, table: u32, computed: bool| {
            let capacity = compute(yaml, descriptors, 1 << 40);
            assert_eq!(capacity, Ok(Capacity { connections, table, computed }), "{yaml}, {descriptors}");
        };
        check("", 20_000, 38_088, 20_000, true);
        check("", u64::MAX, 2_084_656, 1 << 20, true);
        check("", 256, 160, 256, true);
        check("websocket: {max_total_connections: 39744}", 20_000, 39_744, 20_000, false);
        check("websocket: {max_total_connections: 1000}", 20_000, 1_000, 1_128, false);
        assert!(compute("", 128, 1 << 40).unwrap_err().contains("raise `nofile`"));
        let too_many = compute("websocket: {max_total_connections: 39745}", 20_000, 1 << 40).unwrap_err();
        assert!(too_many.contains("39745 need more descriptors"), "{too_many}");
    }

    /// Chance gives some shards more than their share; with the computed number even theirs fits.
    #[test]
    fn no_table_is_full_before_the_engine_is() {
        for shards in [1, 2, 7, 255] {
            for places in [129, 130, 256, 1_000, 20_000, 1 << 20] {
                let most = connections_for(places, shards);
                assert!(
                    most.is_multiple_of(shards) && (most == 0 || table_for(most, shards) <= places),
                    "{places}, {shards}"
                );
                assert!(table_for(most + 1, shards) > places, "{places}, {shards}: {most}");
            }
        }
        assert_eq!(table_for(38_088, 2), 19_044 + 6 * 138 + 128);
    }

    /// A connection over TLS costs user memory that one without does not, and the server counts on it.
    #[test]
    fn memory_bounds_all_and_tls_takes_its_part() {
        let connections = |yaml: &str| compute(yaml, u64::MAX, 1 << 30).unwrap().connections;
        let (plain, tls) = (connections(""), connections(TLS));
        let left = (1u64 << 30) / 5 * 4 - fixed_bytes(&Config::default(), 2);
        let idle = Cost::idle(&Config::default(), 2).bytes();
        assert_eq!(u64::from(plain), left / idle);
        assert_eq!(u64::from(tls), left / (idle + 1_081));
        assert!(connections("io: {wait: poll}") > plain);
        assert!(connections("io: {receive_buffers: 16384}") < plain);
    }

    #[test]
    fn no_memory_at_all_is_said() {
        assert!(compute("", 20_000, 20 << 20).unwrap_err().contains("MemoryMax="));
        assert!(compute("websocket: {max_total_connections: 10}", 20_000, 20 << 20).is_ok());
    }
}
