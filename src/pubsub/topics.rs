//! The topics of one shard and their members.
//!
//! Law: the members of a topic are the slots of exactly those connections whose subscriptions name it; a topic without
//! members has left the registry and its index is free. Bound: the subscriptions of the shard's connections, plus
//! [`REMOTE_MAX`] remembered topics of other shards.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

use crate::conn::ConnPool;
use crate::fixed::{SlotSet, Slots};
use crate::id::{ConnKey, ShardId};

use super::{Registry, Topic, WindowCounts};

/// Topics without local members that a publishing shard remembers, to publish again without the registry's lock. At
/// the bound all of them are forgotten and looked up again.
pub const REMOTE_MAX: usize = 4096;

#[derive(Debug)]
struct Local {
    topic: Arc<Topic>,
    /// Slots of the subscribed connections.
    members: SlotSet,
    /// Those that take compressed messages.
    windows: WindowCounts,
}

impl Local {
    /// Counts a member that comes or goes, by its window.
    fn count(&self, window_bits: u8, shard: ShardId, count: impl FnOnce(&WindowCounts, u8)) {
        if window_bits != 0 {
            count(&self.windows, window_bits);
            self.topic.set_windows(shard, self.windows.in_use());
        }
    }
}

/// The topic table of one shard.
#[derive(Debug)]
pub struct Topics {
    shard: ShardId,
    registry: Arc<Registry>,
    by_name: HashMap<Arc<str>, u32, RandomState>,
    locals: Vec<Option<Local>>,
    free: Vec<u32>,
    remote: HashMap<Box<str>, Arc<Topic>, RandomState>,
    subscriptions: usize,
}

impl Topics {
    /// An empty table.
    pub fn new(shard: ShardId, registry: Arc<Registry>) -> Self {
        Self {
            shard,
            registry,
            by_name: HashMap::default(),
            locals: Vec::new(),
            free: Vec::new(),
            remote: HashMap::default(),
            subscriptions: 0,
        }
    }

    /// Index of a topic with local members.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The topic to publish to, wherever its subscribers are; `None` if there are none.
    pub fn resolve(&mut self, name: &str) -> Option<Arc<Topic>> {
        if let Some(index) = self.find(name) {
            return Some(self.local(index).topic.clone());
        }
        if let Some(topic) = self.remote.get(name) {
            if topic.interest().is_some() {
                return Some(topic.clone());
            }
            self.remote.remove(name);
        }
        let topic = self.registry.find(name)?;
        if self.remote.len() >= REMOTE_MAX {
            self.remote.clear();
        }
        self.remote.insert(name.into(), topic.clone());
        Some(topic)
    }

    /// Slots of the members of a local topic, in their order: a fan-out goes through the pool from one end to the other.
    pub fn members(&self, index: u32) -> Slots<'_> {
        self.local(index).members.iter()
    }

    /// A local topic.
    pub fn topic(&self, index: u32) -> &Topic {
        &self.local(index).topic
    }

    /// Makes the connection a member. It must be live and not a member yet.
    pub fn subscribe(&mut self, name: &str, conn: ConnKey, conns: &mut ConnPool) {
        let index = self.find(name).unwrap_or_else(|| self.add(name));
        let local = self.locals[index as usize].as_mut().expect("found or just added");
        let is_new = local.members.insert(conn.slot);
        debug_assert!(is_new, "it is not a member yet");
        self.subscriptions += 1;
        let conn = conns.get_mut(conn).expect("only a live connection subscribes");
        local.count(conn.window_bits(), self.shard, WindowCounts::join);
        conn.subscriptions.add(index);
    }

    /// Ends the connection's membership of a local topic; `false` if it was none.
    pub fn unsubscribe(&mut self, index: u32, conn: ConnKey, conns: &mut ConnPool) -> bool {
        let Some(member) = conns.get_mut(conn) else { return false };
        let was_subscribed = member.subscriptions.remove(index);
        if was_subscribed {
            let window_bits = member.window_bits();
            self.drop_member(index, conn.slot, window_bits);
        }
        was_subscribed
    }

    /// Ends all memberships of a connection.
    pub fn unsubscribe_all(&mut self, conn: ConnKey, conns: &mut ConnPool) {
        let Some(member) = conns.get_mut(conn) else { return };
        let window_bits = member.window_bits();
        while let Some(topic) = member.subscriptions.pop() {
            self.drop_member(topic, conn.slot, window_bits);
        }
    }

    /// Names and numbers of members of the topics in `portion` places of the table from `from` on, and where to go on, if
    /// there is more of it.
    pub fn list(&self, from: u32, portion: u32) -> (impl Iterator<Item = (&str, usize)>, Option<u32>) {
        let places = self.locals.get(from as usize..).unwrap_or_default();
        let next = (places.len() > portion as usize).then_some(from.saturating_add(portion));
        let there = places.iter().take(portion as usize).flatten();
        (there.map(|local| (local.topic.name(), local.members.len())), next)
    }

    /// Topics with local members.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is no local member at all.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Local memberships.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    fn local(&self, index: u32) -> &Local {
        self.locals[index as usize].as_ref().expect("an index is used only while its topic has members")
    }

    fn add(&mut self, name: &str) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.locals.push(None);
            self.locals.len() as u32 - 1
        });
        self.remote.remove(name);
        let topic = self.registry.join(name, self.shard, index);
        self.locals[index as usize] = Some(Local { topic, members: SlotSet::new(), windows: WindowCounts::default() });
        self.by_name.insert(name.into(), index);
        index
    }

    /// The connection's subscriptions do not name the topic any more.
    fn drop_member(&mut self, topic: u32, slot: u32, window_bits: u8) {
        self.subscriptions -= 1;
        let local = self.locals[topic as usize].as_mut().expect("it has a member");
        local.count(window_bits, self.shard, WindowCounts::leave);
        let was_member = local.members.remove(slot);
        debug_assert!(was_member, "its subscriptions named the topic");
        if local.members.is_empty() {
            let local = self.locals[topic as usize].take().expect("seen above");
            self.registry.leave(&local.topic, self.shard);
            self.by_name.remove(local.topic.name());
            self.free.push(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{Conn, Greeting};
    use crate::ws::deflate::{Terms, Windows, negotiate};

    /// A publisher finds the topics of other shards without the registry's lock, as they are now: one that has died, or was
    /// forgotten with all others at the bound, is looked up again.
    #[test]
    fn topics_of_other_shards_are_remembered_up_to_a_bound() {
        let (here, there) = (ShardId(0), ShardId(1));
        let registry = Arc::new(Registry::new(2));
        let mut topics = Topics::new(here, registry.clone());
        assert!(topics.resolve("t").is_none() && topics.remote.is_empty(), "what nobody has is not remembered");
        let first = registry.join("t", there, 0);
        for _ in 0..2 {
            assert!(Arc::ptr_eq(&topics.resolve("t").unwrap(), &first));
        }
        registry.leave(&first, there);
        assert!(topics.resolve("t").is_none() && topics.remote.is_empty(), "nor is what has died");
        let second = registry.join("t", there, 0);
        assert!(Arc::ptr_eq(&topics.resolve("t").unwrap(), &second));
        for number in 1..REMOTE_MAX {
            registry.join(&number.to_string(), there, number as u32);
            topics.resolve(&number.to_string()).unwrap();
        }
        assert_eq!(topics.remote.len(), REMOTE_MAX);
        registry.join("one more", there, REMOTE_MAX as u32);
        topics.resolve("one more").unwrap();
        assert_eq!(topics.remote.len(), 1);
        assert!(Arc::ptr_eq(&topics.resolve("t").unwrap(), &second));
        // With a member of its own the shard has the topic in its table.
        let mut conns = ConnPool::new(1);
        let key = conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap();
        topics.subscribe("t", key, &mut conns);
        assert!(!topics.remote.contains_key("t"));
        assert!(Arc::ptr_eq(&topics.resolve("t").unwrap(), &second));
    }

    /// What a publisher on any shard learns of a topic's members, through all the ways in which they go.
    #[test]
    fn a_topic_knows_which_windows_its_members_have() {
        let registry = Arc::new(Registry::new(2));
        let mut shards: Vec<_> =
            (0..2).map(|shard| (Topics::new(ShardId(shard), registry.clone()), ConnPool::new(8))).collect();
        let mut member = |shard: usize, offer: &str| {
            let (topics, conns) = &mut shards[shard];
            let key = conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap();
            let terms = Terms { client_context_takeover: false };
            conns.get_mut(key).unwrap().deflate = negotiate([offer].into_iter(), &terms);
            topics.subscribe("t", key, conns);
            key
        };
        let narrow = "permessage-deflate; server_max_window_bits=9";
        let [plain, first, second] = ["", narrow, narrow].map(|offer| member(0, offer));
        let wide = member(1, "permessage-deflate");
        member(1, "permessage-deflate; server_max_window_bits=8");
        let topic = registry.find("t").unwrap();
        let set = |bits: &[u8]| bits.iter().copied().collect::<Windows>();
        assert_eq!(topic.windows(), set(&[9, 15]));
        let (topics, conns) = &mut shards[0];
        topics.unsubscribe(0, plain, conns);
        topics.unsubscribe(0, first, conns);
        assert_eq!(topic.windows(), set(&[9, 15]));
        topics.unsubscribe_all(second, conns);
        assert_eq!(topic.windows(), set(&[15]));
        let (topics, conns) = &mut shards[1];
        topics.unsubscribe_all(wide, conns);
        assert_eq!((topic.windows(), topic.interest().is_some()), (set(&[]), true));
        let key = conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap();
        conns.get_mut(key).unwrap().deflate =
            negotiate([narrow].into_iter(), &Terms { client_context_takeover: false });
        topics.subscribe("t", key, conns);
        assert_eq!(topic.windows(), set(&[9]));
        registry.leave_all(ShardId(1));
        assert_eq!(topic.windows(), set(&[]), "nor does a shard that broke leave any");
    }
}
