//! Which shards have subscribers of which topic, for all shards.
//!
//! Law: a topic in the map is alive and has interest; the last shard that leaves takes it out and marks it dead under
//! the map's lock, so a publisher that still holds it looks it up again. The lock is touched when a shard gains its
//! first or loses its last subscriber of a topic, and when a shard publishes to a topic that it does not know or that
//! nobody subscribes to; a known topic is read with atomic loads alone. Bound: at most one entry for each subscription that exists.

use std::sync::Arc;

use ahash::RandomState;

use crate::id::ShardId;
use crate::io::{Lossy, Stream};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, RwLock, STRIPES};
use crate::ws::deflate::Windows;

use super::{Policies, SHARDS_MAX};

/// A set of shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet([u64; SHARDS_MAX / 64]);

impl ShardSet {
    /// Whether no shard is in it.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; SHARDS_MAX / 64]
    }

    /// How many shards are in it.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Adds a shard.
    pub fn insert(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] |= 1 << (shard.index() % 64);
    }

    /// Takes a shard out.
    pub fn remove(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] &= !(1 << (shard.index() % 64));
    }

    /// Whether the shard is in it.
    pub fn contains(&self, shard: ShardId) -> bool {
        self.0[shard.index() / 64] & (1 << (shard.index() % 64)) != 0
    }

    /// The shards, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        self.0.into_iter().enumerate().flat_map(|(at, mut word)| {
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                word &= word.checked_sub(1)?;
                Some(ShardId((at * 64) as u16 + bit as u16))
            })
        })
    }
}

/// A topic with at least one subscriber somewhere.
#[derive(Debug)]
pub struct Topic {
    name: Box<str>,
    /// The edition of the policies that it was last looked up in, and what they say of it. Each shard has the policies
    /// of its own settings: while they take up others one after another, they look it up in turns.
    policy: AtomicU64,
    /// Of its name.
    hash: u64,
    interest: [AtomicU64; SHARDS_MAX / 64],
    dead: AtomicBool,
    /// The windows of each shard's members that take compressed messages; written by that shard alone.
    windows: Box<[AtomicU32]>,
    /// For each shard, the [`Period`] that it is in or was in last, above the topic's index in its own table, or
    /// [`NOT_LOCAL`]; written by that shard alone. While there is an index, the shard is in `interest`.
    local: Box<[AtomicU64]>,
}

/// One stretch of time in which a shard had subscribers of a topic.
///
/// A publish that is on its way to a shard is for the members of the period in which it was sent. If the last of them has
/// left and another has come meanwhile, that one must not get it: it would not get those that were sent in between, when
/// the shard was not interested, and see a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period(u32);

const NOT_LOCAL: u32 = u32::MAX;

impl Topic {
    fn new(name: &str, hash: u64, shards: usize) -> Self {
        Self {
            name: name.into(),
            policy: AtomicU64::new(UNKNOWN),
            hash,
            interest: std::array::from_fn(|_| AtomicU64::new(0)),
            dead: AtomicBool::new(false),
            windows: (0..shards).map(|_| AtomicU32::new(0)).collect(),
            local: (0..shards).map(|_| AtomicU64::new(u64::from(NOT_LOCAL))).collect(),
        }
    }

    /// The topic's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What those frames of it are known by that may be dropped.
    pub fn known_by(&self) -> u64 {
        self.hash
    }

    /// What may be dropped of it.
    fn policy(&self, policies: &Policies) -> Option<Lossy> {
        let (edition, known) = (u64::from(policies.edition()), self.policy.load(Ordering::Relaxed));
        if known / CODES == edition {
            return BY_CODE[(known % CODES) as usize];
        }
        let policy = policies.of(&self.name);
        let code = BY_CODE.iter().position(|&one| one == policy).expect("each policy has a code");
        self.policy.store(edition * CODES + code as u64, Ordering::Relaxed);
        policy
    }

    /// The shards with subscribers now; `None` if the topic has died and must be looked up again.
    pub fn interest(&self) -> Option<ShardSet> {
        if self.dead.load(Ordering::SeqCst) {
            return None;
        }
        Some(ShardSet(std::array::from_fn(|word| self.interest[word].load(Ordering::SeqCst))))
    }

    /// The windows of its members that take compressed messages, on all shards.
    pub fn windows(&self) -> Windows {
        self.windows.iter().map(|mask| Windows::of_mask(mask.load(Ordering::Relaxed) as u16)).collect()
    }

    /// Says which windows the members on `shard` have, which must be the calling shard.
    pub fn set_windows(&self, shard: ShardId, windows: Windows) {
        self.windows[shard.index()].store(u32::from(windows.mask()), Ordering::Relaxed);
    }

    /// The topic's index in the table of `shard`, which must be the calling shard.
    pub fn local(&self, shard: ShardId) -> Option<u32> {
        Some(self.place(shard).1).filter(|&index| index != NOT_LOCAL)
    }

    /// The same, for what was sent in `period`: `None` also if that is over.
    pub fn local_in(&self, period: Period, shard: ShardId) -> Option<u32> {
        let (now, index) = self.place(shard);
        (now == period && index != NOT_LOCAL).then_some(index)
    }

    /// The period of `shard` to which a publish belongs that is sent to it now. To be asked after [`Topic::interest`]: if
    /// the period is not over when the publish arrives, every publish that was sent in between has found the interest too.
    pub fn period(&self, shard: ShardId) -> Period {
        self.place(shard).0
    }

    fn place(&self, shard: ShardId) -> (Period, u32) {
        let place = self.local[shard.index()].load(Ordering::SeqCst);
        (Period((place >> 32) as u32), place as u32)
    }

    /// The interest is shown before the period begins, or a publisher could read of a period, and not of interest.
    fn begin(&self, shard: ShardId, index: u32) {
        self.interest[shard.index() / 64].fetch_or(1 << (shard.index() % 64), Ordering::SeqCst);
        let Period(last) = self.period(shard);
        let place = u64::from(last.wrapping_add(1)) << 32 | u64::from(index);
        self.local[shard.index()].store(place, Ordering::SeqCst);
    }

    /// Whether the topic has died with it. To be called with its stripe locked.
    fn end(&self, shard: ShardId) -> bool {
        self.local[shard.index()].fetch_or(u64::from(NOT_LOCAL), Ordering::SeqCst);
        self.interest[shard.index() / 64].fetch_and(!(1 << (shard.index() % 64)), Ordering::SeqCst);
        let is_dead = self.interest.iter().all(|word| word.load(Ordering::SeqCst) == 0);
        self.dead.store(is_dead, Ordering::SeqCst);
        is_dead
    }
}

/// No edition.
const UNKNOWN: u64 = u64::MAX;
const BY_CODE: [Option<Lossy>; 4] = [None, Some(Lossy::DropOldest), Some(Lossy::DropNewest), Some(Lossy::LatestPerKey)];
const CODES: u64 = BY_CODE.len() as u64;

/// All topics of an engine that have subscribers.
#[derive(Debug)]
pub struct Registry {
    stripes: Box<[RwLock<Stripe>]>,
    /// Keyed by random numbers of this process: topic names come from clients.
    hasher: RandomState,
    shards: usize,
}

type Stripe = std::collections::HashMap<Box<str>, Arc<Topic>, RandomState>;

impl Registry {
    /// A registry for `shards` shards.
    pub fn new(shards: usize) -> Self {
        assert!((1..=SHARDS_MAX).contains(&shards));
        let stripes = (0..STRIPES).map(|_| RwLock::new(Stripe::default())).collect();
        Self { stripes, hasher: RandomState::new(), shards }
    }

    /// What the frames of a topic may be dropped for, `key` being that of the message; `None` if they may not be dropped.
    /// Under other policies no frame takes the place of one from before: between the two there may be one of its key that
    /// was queued for itself.
    pub fn stream(&self, topic: &Topic, key: Option<&str>, policies: &Policies) -> Option<Stream> {
        let policy = topic.policy(policies)?;
        let key = match policy {
            Lossy::LatestPerKey => self.hasher.hash_one((topic.hash, policies.edition(), key)),
            Lossy::DropOldest | Lossy::DropNewest => 0,
        };
        Some(Stream { policy, topic: topic.hash, key })
    }

    /// The topic, if any shard has a subscriber of it.
    pub fn find(&self, name: &str) -> Option<Arc<Topic>> {
        self.stripe(name).read().get(name).cloned()
    }

    /// `shard` has its first subscriber of the topic, which it keeps at `local` in its table.
    pub fn join(&self, name: &str, shard: ShardId, local: u32) -> Arc<Topic> {
        let mut stripe = self.stripe(name).write();
        let topic = match stripe.get(name) {
            Some(topic) => topic.clone(),
            None => {
                let topic = Arc::new(Topic::new(name, self.hasher.hash_one(name), self.shards));
                stripe.insert(name.into(), topic.clone());
                topic
            }
        };
        topic.begin(shard, local);
        topic
    }

    /// `shard` has lost its last subscriber of the topic.
    pub fn leave(&self, topic: &Topic, shard: ShardId) {
        let mut stripe = self.stripe(&topic.name).write();
        if topic.end(shard) {
            stripe.remove(&*topic.name);
        }
    }

    /// `shard` has lost all its subscribers at once, and with them what it knew of its topics.
    pub fn leave_all(&self, shard: ShardId) {
        for stripe in &self.stripes {
            stripe.write().retain(|_, topic| {
                topic.set_windows(shard, Windows::default());
                !topic.end(shard)
            });
        }
    }

    /// Topics with a subscriber anywhere.
    pub fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.read().len()).sum()
    }

    /// Whether no topic has a subscriber.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn stripe(&self, name: &str) -> &RwLock<Stripe> {
        &self.stripes[self.hasher.hash_one(name) as usize % STRIPES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(70);

    #[test]
    fn a_topic_lives_while_a_shard_has_subscribers() {
        let registry = Registry::new(71);
        let topic = registry.join("t", A, 7);
        assert_eq!(registry.join("t", B, 9).name(), "t");
        let interest = topic.interest().unwrap();
        assert_eq!(interest.iter().collect::<Vec<_>>(), [A, B]);
        assert_eq!((topic.local(A), topic.local(B), topic.local(ShardId(1))), (Some(7), Some(9), None));
        registry.leave(&topic, A);
        assert!(registry.find("t").is_some());
        registry.leave(&topic, B);
        assert_eq!((registry.find("t").is_none(), topic.interest(), registry.len()), (true, None, 0));
        assert!(registry.join("t", A, 1).interest().is_some(), "a name comes back as a new topic");
    }

    /// With other shards' subscribers the topic stays the same one, and its index may be what it was.
    #[test]
    fn a_period_ends_with_the_last_subscriber_of_its_shard() {
        let registry = Registry::new(71);
        let topic = registry.join("t", A, 7);
        type Leave = fn(&Registry, &Topic);
        let leaves: [Leave; 2] = [|registry, topic| registry.leave(topic, B), |registry, _| registry.leave_all(B)];
        for leave in leaves {
            registry.join("t", B, 9);
            let sent = topic.period(B);
            assert_eq!(topic.local_in(sent, B), Some(9));
            leave(&registry, &topic);
            assert_eq!((topic.local_in(sent, B), topic.local_in(topic.period(B), B)), (None, None));
            let between = topic.period(B);
            registry.join("t", B, 9);
            assert_eq!([sent, between].map(|period| topic.local_in(period, B)), [None; 2]);
            assert_eq!((topic.local_in(topic.period(B), B), topic.local(A)), (Some(9), Some(7)));
            registry.leave(&topic, B);
        }
    }

    #[test]
    fn a_shard_leaves_all_topics_at_once() {
        let registry = Registry::new(71);
        let [both, one] = ["both", "one"].map(|name| registry.join(name, B, 3));
        registry.join("both", A, 4);
        registry.leave_all(B);
        assert_eq!((both.local(A), both.local(B), one.local(B)), (Some(4), None, None));
        assert_eq!(both.interest().unwrap().iter().collect::<Vec<_>>(), [A]);
        assert_eq!((one.interest(), registry.len()), (None, 1));
        registry.leave_all(A);
        assert!(registry.is_empty() && both.interest().is_none());
    }

    #[test]
    fn a_topic_has_the_policy_of_the_edition() {
        let registry = Registry::new(1);
        let topic = registry.join("prices.a", A, 0);
        let policies = |edition, policy| {
            let yaml = format!("topics: [{{pattern: prices.*, policy: {policy}}}]");
            Policies::new(&crate::config::Config::parse(&yaml).unwrap(), edition)
        };
        let [latest, again, newest] = [(0, "latest_per_key"), (0, "latest_per_key"), (1, "drop_newest")]
            .map(|(edition, policy)| policies(edition, policy));
        let later = policies(2, "latest_per_key");
        let stream = |policies: &Policies, key| registry.stream(&topic, Some(key), policies);
        for _ in 0..2 {
            assert_eq!(stream(&latest, "k").unwrap().policy, Lossy::LatestPerKey);
            assert_eq!(stream(&Policies::default(), "k"), stream(&latest, "k"), "looked up once in an edition");
            assert_eq!(stream(&newest, "k").unwrap().policy, Lossy::DropNewest);
        }
        assert_eq!(stream(&latest, "k"), stream(&again, "k"));
        assert_ne!(stream(&latest, "k"), stream(&latest, "l"));
        assert_ne!(stream(&latest, "k"), stream(&later, "k"), "no place of the edition before");
        assert_eq!(stream(&newest, "k").unwrap().topic, topic.known_by());
    }

    #[test]
    fn a_set_of_shards() {
        let mut set = ShardSet::default();
        for shard in [0, 63, 64, 255] {
            set.insert(ShardId(shard));
        }
        assert_eq!((set.len(), set.contains(ShardId(64)), set.contains(ShardId(65))), (4, true, false));
        set.remove(ShardId(64));
        assert_eq!(set.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 63, 255]);
        assert!(!set.is_empty() && ShardSet::default().is_empty());
    }
}
