//! How often one address connects, counted before it is known who that is.
//! Law: memory is settled at the start, however many addresses there are. An address costs sixteen bytes in one of 4,096
//! sets of 16, chosen by a keyed hash of its prefix; where a set is full, whoever has used least of its burst makes room
//! and begins anew, so that who floods is remembered longest. One lock a set, held for sixteen comparisons, once for each
//! accepted socket.

use std::net::IpAddr;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::config::AttemptRate;
use crate::fixed::{Rate, TokenBucket};

/// Attempts by address prefix, for all shards.
#[derive(Debug)]
pub struct ConnectionAttempts {
    rate: Rate,
    ipv4_mask: u32,
    ipv6_mask: u128,
    hasher: RandomState,
    sets: Box<[Mutex<[Entry; WAYS]>]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Hash of the prefix. Two that are equal share a bucket: with a keyed hash of 64 bits nobody can arrange that.
    prefix: u64,
    spent: TokenBucket,
}

impl ConnectionAttempts {
    /// Nobody has tried yet.
    pub fn new(config: &AttemptRate) -> Self {
        Self {
            rate: Rate { per_second: config.per_second, burst: config.burst },
            ipv4_mask: u32::MAX.checked_shl(32 - u32::from(config.ipv4_prefix)).unwrap_or(0),
            ipv6_mask: u128::MAX.checked_shl(128 - u32::from(config.ipv6_prefix)).unwrap_or(0),
            hasher: RandomState::new(),
            sets: (0..SETS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Whether `address` may connect once more at `now_ms`, which this counts as an attempt. One that is refused costs
    /// nothing, so who slows down gets in again.
    pub fn admit(&self, address: IpAddr, now_ms: u64) -> bool {
        let prefix = self.hasher.hash_one(match address.to_canonical() {
            IpAddr::V4(address) => (4, u128::from(address.to_bits() & self.ipv4_mask)),
            IpAddr::V6(address) => (6, address.to_bits() & self.ipv6_mask),
        });
        let mut set = self.sets[prefix as usize % SETS].lock();
        let at = set.iter().position(|entry| entry.prefix == prefix).unwrap_or_else(|| {
            let least = |at: &usize| set[*at].spent.owed(self.rate, now_ms);
            let at = (0..WAYS).min_by_key(least).unwrap_or_default();
            set[at] = Entry { prefix, ..Entry::default() };
            at
        });
        let spent = &mut set[at].spent;
        let admitted = spent.admits(self.rate, now_ms, 1);
        if admitted {
            spent.take(self.rate, now_ms, 1);
        }
        admitted
    }
}

const SETS: usize = 4096;
const WAYS: usize = 16;
const _: () = assert!(size_of::<Mutex<[Entry; WAYS]>>() * SETS <= 17 << 16, "a megabyte and a bit");

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn attempts(ipv4_prefix: u8, ipv6_prefix: u8) -> ConnectionAttempts {
        ConnectionAttempts::new(&AttemptRate { per_second: 10, burst: 3, ipv4_prefix, ipv6_prefix })
    }

    /// After `first` has used up its burst, whether `second` may still connect.
    #[track_caller]
    fn check(ipv4_prefix: u8, ipv6_prefix: u8, first: &str, second: &str, expected: bool) {
        let attempts = attempts(ipv4_prefix, ipv6_prefix);
        let [first, second] = [first, second].map(|address| address.parse().unwrap());
        (0..3).for_each(|_| assert!(attempts.admit(first, 0)));
        assert!(!attempts.admit(first, 99));
        assert_eq!(attempts.admit(second, 99), expected, "{first} {second}");
        assert!(attempts.admit(first, 200), "it comes back at the rate");
    }

    #[test]
    fn prefixes() {
        check(32, 64, "10.0.0.1", "10.0.0.1", false);
        check(32, 64, "10.0.0.1", "10.0.0.2", true);
        check(24, 64, "10.0.0.1", "10.0.0.2", false);
        check(24, 64, "10.0.0.1", "10.0.1.1", true);
        check(1, 1, "10.0.0.1", "127.0.0.1", false);
        check(32, 64, "2001:db8::1", "2001:db8::ffff:0:0:1", false);
        check(32, 64, "2001:db8::1", "2001:db8:0:1::1", true);
        check(32, 128, "2001:db8::1", "2001:db8::2", true);
        check(32, 64, "10.0.0.1", "::ffff:10.0.0.1", false);
        check(32, 64, "::ffff:10.0.0.1", "::ffff:10.0.0.2", true);
    }

    /// Nobody of the few who come back is forgotten over a million who come once, and the table does not grow.
    #[test]
    fn a_million_addresses() {
        let attempts = attempts(32, 64);
        let flooder = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        (0..3).for_each(|_| assert!(attempts.admit(flooder, 0)));
        let refused = (0..1_000_000_u128).filter(|&number| {
            let address = IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | number << 64));
            !attempts.admit(address, 0)
        });
        assert_eq!(refused.count(), 0, "a newcomer always has its burst");
        assert!(!attempts.admit(flooder, 99), "who has used its burst is remembered");
    }

    /// Four shards' threads on one address, each asking for more than there is in every millisecond of ten seconds: the
    /// burst, and what each of the 9,999 milliseconds after the first brings, neither more nor less.
    #[test]
    fn the_rate_is_steady_across_threads() {
        for (per_second, burst) in [(1, 1), (10, 1), (10, 5), (1000, 1), (1000, 200)] {
            let attempts = ConnectionAttempts::new(&AttemptRate { per_second, burst, ..AttemptRate::default() });
            let (address, tick) = (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), Barrier::new(4));
            let shard = || {
                let mut admitted = 0;
                for now_ms in 1_000..11_000 {
                    tick.wait(); // all clocks show the same time
                    while attempts.admit(address, now_ms) {
                        admitted += 1;
                    }
                }
                admitted
            };
            let admitted: u64 = thread::scope(|scope| {
                let shards = [(); 4].map(|()| scope.spawn(shard));
                shards.map(|shard| shard.join().unwrap()).iter().sum()
            });
            assert_eq!(admitted, u64::from(burst) + 9_999 * u64::from(per_second) / 1000, "{per_second}/s, {burst}");
        }
    }
}
