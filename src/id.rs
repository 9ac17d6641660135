//! Names of things: shards, connections, sessions.
//! Law: a key whose generation is stale finds nothing; a session id is unguessable and carries its own address.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use ahash::RandomState;
use siphasher::sip::SipHasher24;
use uuid::Uuid;

/// Longest name of a client (the claim `sub`, or what its certificate says), in bytes.
pub const USER_ID_LENGTH_MAX: usize = 255;

/// Index of a shard, `0..shards`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The shard's number as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A connection within one shard: its slot and the slot's generation when the connection was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnKey {
    /// Index in the shard's connection pool.
    pub slot: u32,
    /// Generation of the slot, 24 bits, starting at 1; reused only after 2^24 connections on the same slot.
    pub generation: u32,
}

/// Names a publish that waits for the counts of other shards; `Option` of it is four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptIndex(NonZeroU32);

impl ReceiptIndex {
    /// The name of entry `index`.
    pub fn new(index: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(index))
    }

    /// The entry it names.
    pub fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// A client's name for a request, kept for a reply that is written after the request's bytes are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageId {
    /// A string of at most 64 bytes.
    Text(Box<str>),
    /// An unsigned integer.
    Number(u64),
}

/// A client's name for a request, still in the request's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageIdRef<'a> {
    /// A string of at most 64 bytes.
    Text(&'a str),
    /// An unsigned integer.
    Number(u64),
}

impl MessageId {
    /// The id as the encoders take it.
    pub fn borrow(&self) -> MessageIdRef<'_> {
        match self {
            Self::Text(text) => MessageIdRef::Text(text),
            Self::Number(number) => MessageIdRef::Number(*number),
        }
    }
}

impl From<MessageIdRef<'_>> for MessageId {
    fn from(id: MessageIdRef<'_>) -> Self {
        match id {
            MessageIdRef::Text(text) => Self::Text(text.into()),
            MessageIdRef::Number(number) => Self::Number(number),
        }
    }
}

/// Largest generation: it must fit the 24 bits that a completion token and a session id have for it.
pub const GENERATION_MAX: u32 = (1 << 24) - 1;
/// Largest slot a session id can carry (26 bits).
pub const SLOT_MAX: u32 = (1 << 26) - 1;
/// Largest shard number a session id can carry (10 bits).
pub const SHARD_MAX: u16 = (1 << 10) - 1;

/// Public name of a session: a UUID of version 8 (RFC 9562 §5.8) that carries shard, slot and generation, so that it
/// is found without a global map, and 62 random bits, so that it cannot be guessed.
///
/// ```text
/// custom_a (48 bits): shard:10 slot:26 generation[23:12]:12 | ver:4 | custom_b: generation[11:0]:12 | var:2 | random:62
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(Uuid);

/// Makes the unguessable bits of a shard's session ids: a keyed hash of the connection's key, so that no connection has
/// to keep them. A shard that starts again takes a new secret, so that no id of before is an id of now; and where the
/// generations of a slot begin anew, what comes is named by another hash than what was.
pub struct SessionNames {
    hasher: SipHasher24,
    /// How often the generations of all slots have begun anew.
    rounds: u32,
    /// How often those of single slots have beside that: of each that has had 2^24 connections.
    rounds_of: HashMap<u32, u32, RandomState>,
}

impl SessionNames {
    /// The names that come of a secret: 128 bits that nobody can guess.
    pub fn new(secret: [u64; 2]) -> Self {
        let hasher = SipHasher24::new_with_keys(secret[0], secret[1]);
        Self { hasher, rounds: 0, rounds_of: HashMap::default() }
    }

    /// The id of connection `conn` on `shard`; the same whenever it is asked for.
    pub fn of(&self, shard: ShardId, conn: ConnKey) -> SessionId {
        let round = self.rounds.wrapping_add(self.rounds_of.get(&conn.slot).copied().unwrap_or_default());
        let mut named = [0; 12];
        for (place, part) in named.chunks_exact_mut(4).zip([conn.slot, conn.generation, round]) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        SessionId::new(shard, conn, self.hasher.hash(&named))
    }

    /// The connection with the largest generation of its slot has gone: the next one has the first.
    #[cold]
    pub fn begin_anew(&mut self, slot: u32) {
        *self.rounds_of.entry(slot).or_default() += 1;
    }

    /// The next connection of every slot may have a generation that it had before.
    #[cold]
    pub fn begin_all_anew(&mut self) {
        self.rounds = self.rounds.wrapping_add(1);
    }
}

/// Mask of the random bits of a session id.
pub const SESSION_RANDOM_MASK: u64 = (1 << 62) - 1;

impl SessionId {
    /// The id of connection `conn` on `shard`, with 62 bits of `random`.
    pub fn new(shard: ShardId, conn: ConnKey, random: u64) -> Self {
        debug_assert!(shard.0 <= SHARD_MAX && conn.slot <= SLOT_MAX && conn.generation <= GENERATION_MAX);
        let address = (u64::from(shard.0) << 50) | (u64::from(conn.slot) << 24) | u64::from(conn.generation);
        // 60 bits of address: the first 48 before the version nibble, the last 12 after it.
        let high = ((address >> 12) << 16) | (address & 0xfff);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&(random & SESSION_RANDOM_MASK).to_be_bytes());
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The shard this session lives on, if the id was made by an engine at all.
    pub fn shard(self) -> ShardId {
        ShardId((self.address() >> 50) as u16)
    }

    /// The connection this id names; whether it still exists is for the shard's pool to say.
    pub fn conn(self) -> ConnKey {
        let address = self.address();
        ConnKey { slot: (address >> 24) as u32 & SLOT_MAX, generation: address as u32 & GENERATION_MAX }
    }

    /// The random bits; they must match the connection's before the id is believed.
    pub fn random(self) -> u64 {
        self.0.as_u64_pair().1 & SESSION_RANDOM_MASK
    }

    fn address(self) -> u64 {
        let high = self.0.as_u64_pair().0;
        ((high >> 16) << 12) | (high & 0xfff)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl serde::Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[track_caller]
    fn check(shard: u16, slot: u32, generation: u32, random: u64) {
        let conn = ConnKey { slot, generation };
        let id = SessionId::new(ShardId(shard), conn, random);
        assert_eq!((id.shard(), id.conn(), id.random()), (ShardId(shard), conn, random & SESSION_RANDOM_MASK));
        assert_eq!(id.to_string().parse::<SessionId>().unwrap(), id);
        assert_eq!(id.0.get_version_num(), 8);
    }

    #[test]
    fn names_are_stable_and_belong_to_one_connection_and_one_secret() {
        let (names, others) = (SessionNames::new([1, 2]), SessionNames::new([1, 3]));
        let of = |slot, generation| names.of(ShardId(3), ConnKey { slot, generation });
        assert_eq!(of(7, 1), of(7, 1));
        let (first, next) = (of(7, 1), of(7, 2));
        assert_ne!(first.random(), next.random());
        assert_ne!(first.random(), of(8, 1).random());
        assert_ne!(first.random(), others.of(ShardId(3), ConnKey { slot: 7, generation: 1 }).random());
    }

    #[test]
    fn each_round_of_generations_has_names_of_its_own() {
        let mut names = SessionNames::new([1, 2]);
        let key = |slot| ConnKey { slot, generation: 1 };
        let mut named = HashSet::new();
        let mut check = |names: &SessionNames, slot, is_new| {
            assert_eq!(named.insert(names.of(ShardId(0), key(slot))), is_new, "{slot}");
        };
        check(&names, 7, true);
        check(&names, 8, true);
        names.begin_anew(7);
        check(&names, 7, true);
        check(&names, 8, false);
        names.begin_all_anew();
        check(&names, 7, true);
        check(&names, 8, true);
    }

    #[test]
    fn carries_its_address() {
        check(0, 0, 0, 0);
        check(1, 2, 3, 4);
        check(SHARD_MAX, SLOT_MAX, GENERATION_MAX, u64::MAX);
        check(513, 1 << 25, 0xabc_def, 0x1234_5678_9abc_def0);
    }
}
