//! Which connections each client has: one owner for every client id, or for every address.
//! Law: a client's connections change under one lock, so of newcomers on all shards exactly as many stay as it may have,
//! whatever happens at the same time. Whoever is evicted leaves the list at once and is named to one newcomer, once. An
//! entry lives as long as it has a connection. Touched when a connection authenticates, refreshes its token or ends,
//! never by a message.
//!
//! Memory: some 32 bytes for a client with one connection. Ids are not kept, only what nobody can find two ids for; and a tree
//! grows by nodes, where a table would double at once, under its lock, and be half empty then.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::Hash;

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::config::ClientLimitPolicy;
use crate::id::{ConnKey, ShardId};
use crate::sync::{Mutex, STRIPES};

use super::places::Places;

/// A connection, wherever it is.
pub type Place = (ShardId, ConnKey);

/// The client has as many connections as it may, and the policy is to refuse more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit_exceeded: this client has {0} connections, which is all it may have")]
pub struct TooMany(pub u32);

/// The connections of all clients.
#[derive(Debug)]
pub struct Clients {
    /// With the keys of this process.
    hasher: SipHasher24,
    parts: Box<[Mutex<Part>]>,
}

/// A user id by 80 bits of a hash keyed by random numbers, beside the 6 that say in which part: of a million ids two are taken for
/// one with a probability of 6 in 10^15, of a thousand million of 6 in 10^9 (SipHash, Aumasson and Bernstein 2012).
type Name = [u16; 5];

/// Some of the clients. Who has one connection, as most do, lies in a tree of its own, in half the memory.
#[derive(Debug, Default)]
struct Part {
    alone: BTreeMap<Name, Packed>,
    several: BTreeMap<Name, Places>,
}

/// A [`Place`] by halves of words, so that nothing lies between it and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed([u16; 5]);

impl From<Place> for Packed {
    fn from((shard, ConnKey { slot, generation }): Place) -> Self {
        Self([shard.0, slot as u16, (slot >> 16) as u16, generation as u16, (generation >> 16) as u16])
    }
}

impl From<Packed> for Place {
    fn from(Packed([shard, slot, slot_high, generation, generation_high]): Packed) -> Self {
        let word = |low, high| u32::from(low) | u32::from(high) << 16;
        (ShardId(shard), ConnKey { slot: word(slot, slot_high), generation: word(generation, generation_high) })
    }
}

/// What a client with one connection costs, in bytes: a name and where the connection is, in nodes that are two thirds full.
pub const CLIENT_BYTES: usize = 32;
const _: () = assert!((size_of::<Name>() + size_of::<Packed>()) * 3 / 2 < CLIENT_BYTES);

impl Default for Clients {
    /// Nobody is here yet.
    fn default() -> Self {
        let mut key = [0; 16];
        getrandom::fill(&mut key).expect("the kernel's random numbers, there since Linux 3.17");
        let hasher = SipHasher24::new_with_key(&key);
        Self { hasher, parts: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }
}

impl Clients {
    /// Takes a newcomer in and returns the connections that have to go for it; the caller sees to that. `most` is how
    /// many the client may have; `None`: any number, which are listed too, since a reload may set a limit.
    ///
    /// # Errors
    /// There are too many, and none of them has to go.
    pub fn admit(
        &self,
        user_id: &str,
        most: Option<u32>,
        policy: ClientLimitPolicy,
        newcomer: Place,
    ) -> Result<Vec<Place>, TooMany> {
        let most = most.unwrap_or(u32::MAX);
        let (name, part) = self.part(user_id);
        let Part { alone, several } = &mut *part.lock();
        let Some(places) = several.get_mut(&name) else {
            return match alone.entry(name) {
                Entry::Vacant(none) => {
                    none.insert(newcomer.into());
                    Ok(Vec::new())
                }
                Entry::Occupied(_) if most < 2 && policy == ClientLimitPolicy::Reject => Err(TooMany(most)),
                Entry::Occupied(mut one) if most < 2 => Ok(vec![one.insert(newcomer.into()).into()]),
                Entry::Occupied(one) => {
                    several.insert(name, Places::of([one.remove().into(), newcomer]));
                    Ok(Vec::new())
                }
            };
        };
        let surplus = (places.len() + 1).saturating_sub(most as usize);
        if surplus > 0 && policy == ClientLimitPolicy::Reject {
            return Err(TooMany(most));
        }
        let evicted = places.take_first(surplus);
        places.push(newcomer);
        Ok(evicted)
    }

    /// A connection has shown that it is in use, by a new token: it is the last to go.
    pub fn touch(&self, user_id: &str, place: Place) {
        let (name, part) = self.part(user_id);
        if let Some(places) = part.lock().several.get_mut(&name)
            && places.remove(place)
        {
            places.push(place);
        }
    }

    /// A connection ends. Harmless for one that is not in the list (any more).
    pub fn release(&self, user_id: &str, place: Place) {
        let (name, part) = self.part(user_id);
        let Part { alone, several } = &mut *part.lock();
        if let Entry::Occupied(one) = alone.entry(name) {
            if *one.get() == place.into() {
                one.remove();
            }
        } else if let Entry::Occupied(mut places) = several.entry(name) {
            places.get_mut().remove(place);
            if places.get().is_empty() {
                places.remove();
            }
        }
    }

    /// Where the connections of a client are.
    pub fn places(&self, user_id: &str) -> Vec<Place> {
        let (name, part) = self.part(user_id);
        let part = part.lock();
        let several = part.several.get(&name).map(Places::to_vec);
        several.unwrap_or_else(|| part.alone.get(&name).map(|&one| one.into()).into_iter().collect())
    }

    /// All connections of a shard end at once.
    pub fn release_all(&self, shard: ShardId) {
        for part in &self.parts {
            let Part { alone, several } = &mut *part.lock();
            alone.retain(|_, one| Place::from(*one).0 != shard);
            several.retain(|_, places| {
                places.retain(|(other, _)| other != shard);
                !places.is_empty()
            });
        }
    }

    /// How many clients have an entry.
    pub fn len(&self) -> usize {
        let clients = |Part { alone, several }: &Part| alone.len() + several.len();
        self.parts.iter().map(|part| clients(&part.lock())).sum()
    }

    /// Whether no client has an entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn part(&self, user_id: &str) -> (Name, &Mutex<Part>) {
        let mut hasher = self.hasher;
        user_id.hash(&mut hasher);
        let hash = hasher.finish128();
        let [second, third, fourth, fifth] = [0, 16, 32, 48].map(|bits| (hash.h2 >> bits) as u16);
        (Name::from([hash.h1 as u16, second, third, fourth, fifth]), &self.parts[(hash.h1 >> 32) as usize % STRIPES])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use ClientLimitPolicy::{EvictIdle, EvictOldest, Reject};

    fn place(number: u32) -> Place {
        (ShardId(0), ConnKey { slot: number, generation: 1 })
    }

    type Step = (char, u32, Result<&'static [u32], u32>);

    /// What happens to one client: `+` a newcomer, `~` a refresh, `-` an end, each with what it leads to.
    #[track_caller]
    fn check(most: Option<u32>, own: Option<u32>, policy: ClientLimitPolicy, steps: &[Step]) {
        let clients = Clients::default();
        for &(what, number, expected) in steps {
            let outcome = match what {
                '+' => clients.admit("ann", own.or(most), policy, place(number)).map_err(|TooMany(most)| most),
                '~' if policy == EvictIdle => Ok((Vec::new(), clients.touch("ann", place(number))).0),
                '~' => Ok(Vec::new()),
                _ => Ok((Vec::new(), clients.release("ann", place(number))).0),
            };
            let expected = expected.map(|evicted| evicted.iter().map(|&number| place(number)).collect());
            assert_eq!(outcome, expected, "{what}{number}");
        }
        assert!(
            clients.admit("bob", own.or(most), policy, place(99)).unwrap().is_empty(),
            "others have lists of their own"
        );
        (0..=99).for_each(|number| ["ann", "bob"].iter().for_each(|user| clients.release(user, place(number))));
        assert!(clients.is_empty());
    }

    #[test]
    fn policies() {
        const NONE: Result<&[u32], u32> = Ok(&[]);
        let three = [('+', 1, NONE), ('+', 2, NONE), ('+', 3, NONE)];
        check(
            Some(3),
            None,
            EvictOldest,
            &[&three[..], &[('~', 1, NONE), ('+', 4, Ok(&[1])), ('+', 5, Ok(&[2]))]].concat(),
        );
        check(
            Some(3),
            None,
            EvictIdle,
            &[&three[..], &[('~', 1, NONE), ('+', 4, Ok(&[2])), ('+', 5, Ok(&[3]))]].concat(),
        );
        check(Some(3), None, Reject, &[&three[..], &[('+', 4, Err(3)), ('-', 2, NONE), ('+', 5, NONE)]].concat());
        check(
            Some(3),
            None,
            EvictOldest,
            &[&three[..], &[('-', 1, NONE), ('+', 4, NONE), ('+', 5, Ok(&[2]))]].concat(),
        );
        check(Some(5), Some(2), EvictOldest, &[('+', 1, NONE), ('+', 2, NONE), ('+', 3, Ok(&[1]))]);
        check(Some(1), Some(2), Reject, &[('+', 1, NONE), ('+', 2, NONE), ('+', 3, Err(2))]);
        check(None, Some(1), EvictOldest, &[('+', 1, NONE), ('+', 2, Ok(&[1]))]);
        check(None, None, Reject, &[&three[..], &[('+', 4, NONE)]].concat());
    }

    #[test]
    fn a_smaller_number_evicts_as_many_as_it_takes() {
        let clients = Clients::default();
        (1..=5).for_each(|number| assert!(clients.admit("ann", None, EvictOldest, place(number)).unwrap().is_empty()));
        assert_eq!(clients.admit("ann", Some(2), EvictOldest, place(6)), Ok([1, 2, 3, 4].map(place).to_vec()));
    }

    #[test]
    fn a_shard_takes_its_own_along() {
        let clients = Clients::default();
        let admit = |user: &str, place| clients.admit(user, Some(2), Reject, place);
        let elsewhere = (ShardId(1), place(1).1);
        assert!(admit("ann", place(1)).is_ok() && admit("ann", elsewhere).is_ok());
        assert!(admit("bob", place(2)).is_ok());
        clients.release_all(ShardId(0));
        assert_eq!((clients.len(), admit("ann", place(3))), (1, Ok(Vec::new())));
        assert!(admit("ann", place(4)).is_err());
        clients.release_all(ShardId(0));
        clients.release_all(ShardId(1));
        assert!(clients.is_empty());
    }

    /// The others keep their order, and each can still be released, touched and evicted.
    #[test]
    fn a_shard_takes_its_own_along_of_many() {
        const MANY: u32 = 100;
        let clients = Clients::default();
        let on = |shard, number| (ShardId(shard), place(number).1);
        let admit = |place| clients.admit("ann", Some(MANY), EvictOldest, place).unwrap();
        (0..MANY).for_each(|number| assert!(admit(on(number as u16 % 2, number)).is_empty()));
        clients.release_all(ShardId(0));
        let left: Vec<Place> =
            (0..MANY).map(|number| on(number as u16 % 2, number)).filter(|place| place.0.0 == 1).collect();
        assert_eq!(clients.places("ann"), left);
        clients.release("ann", on(0, 0));
        clients.touch("ann", on(0, 2));
        assert_eq!(clients.places("ann"), left, "they have gone");
        let more = MANY - left.len() as u32;
        (0..more).for_each(|number| assert!(admit(on(0, MANY + number)).is_empty()));
        assert_eq!(admit(on(0, MANY + more)), [left[0]]);
        clients.release_all(ShardId(1));
        assert_eq!(clients.places("ann").len() as u32, more + 1);
        clients.release_all(ShardId(0));
        assert!(clients.is_empty());
    }

    /// As many as one client may have: in the same order as few, and the end of one costs no more than that of one of few.
    #[test]
    fn many_connections_of_one_client() {
        const MANY: u32 = 200_000;
        let clients = Clients::default();
        let admit = |number| clients.admit("ann", Some(MANY), EvictOldest, place(number)).unwrap();
        (0..MANY).for_each(|number| assert!(admit(number).is_empty()));
        assert_eq!(admit(MANY), [place(0)]);
        clients.touch("ann", place(1));
        assert_eq!(admit(MANY + 1), [place(2)]);
        let order = clients.places("ann");
        assert!(order[..3] == [3, 4, 5].map(place) && order[MANY as usize - 3..] == [MANY, 1, MANY + 1].map(place));
        // The last first: what a list is slowest at, 20 thousand million comparisons.
        order.into_iter().rev().for_each(|place| clients.release("ann", place));
        assert!(clients.is_empty());
    }

    /// From several threads at once: everybody is evicted once or stays, and the limit stay.
    #[test]
    fn at_once() {
        let clients = Arc::new(Clients::default());
        let threads = (0..4_u32).map(|thread| {
            let clients = clients.clone();
            let admit =
                move |number| clients.admit("ann", Some(5), EvictOldest, place(thread * 1000 + number)).unwrap();
            std::thread::spawn(move || (0..1000).flat_map(admit).collect::<Vec<_>>())
        });
        let threads: Vec<_> = threads.collect();
        let mut evicted: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        evicted.extend(clients.admit("ann", Some(1), EvictOldest, place(4000)).unwrap());
        evicted.sort_by_key(|(_, conn)| conn.slot);
        assert_eq!(evicted, (0..4000).map(place).collect::<Vec<_>>());
    }
}
