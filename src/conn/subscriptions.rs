//! The topics of one connection.
//! Law: every entry names a local topic and this connection's position in that topic's member list, in both directions.
//! Most connections have one subscription, so one is kept inline and more on the heap.

/// One subscription: a topic of this shard and the place in its member list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Index of the topic in the shard's topic table.
    pub topic: u32,
    /// Index of this connection in the topic's member list.
    pub position: u32,
}

/// The subscriptions of one connection.
#[derive(Debug, Default)]
pub struct Subscriptions(Held);

#[derive(Debug, Default)]
enum Held {
    #[default]
    None,
    One(Subscription),
    #[expect(clippy::box_collection, reason = "8 bytes in every connection instead of 24 for the few that have many")]
    Many(Box<Vec<Subscription>>),
}

impl Subscriptions {
    /// All of them, in no order.
    pub fn as_slice(&self) -> &[Subscription] {
        match &self.0 {
            Held::None => &[],
            Held::One(one) => std::slice::from_ref(one),
            Held::Many(many) => many,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Held::None)
    }

    /// The subscription to `topic`.
    pub fn find(&self, topic: u32) -> Option<Subscription> {
        self.as_slice().iter().copied().find(|s| s.topic == topic)
    }

    /// Adds one; the caller has checked that the topic is not among them.
    pub fn add(&mut self, subscription: Subscription) {
        debug_assert!(self.find(subscription.topic).is_none());
        match &mut self.0 {
            Held::None => self.0 = Held::One(subscription),
            Held::One(one) => self.0 = Held::Many(Box::new(vec![*one, subscription])),
            Held::Many(many) => many.push(subscription),
        }
    }

    /// Takes the one to `topic` out.
    pub fn remove(&mut self, topic: u32) -> Option<Subscription> {
        match &mut self.0 {
            Held::One(one) if one.topic == topic => {
                let removed = *one;
                self.0 = Held::None;
                Some(removed)
            }
            Held::Many(many) => {
                let removed = many.swap_remove(many.iter().position(|s| s.topic == topic)?);
                if let [one] = many[..] {
                    self.0 = Held::One(one);
                }
                Some(removed)
            }
            Held::None | Held::One(_) => None,
        }
    }

    /// Takes any one out.
    pub fn pop(&mut self) -> Option<Subscription> {
        let topic = self.as_slice().last()?.topic;
        self.remove(topic)
    }

    /// The member list of `topic` moved this connection to `position`.
    pub fn moved(&mut self, topic: u32, position: u32) {
        let entries = match &mut self.0 {
            Held::None => return,
            Held::One(one) => std::slice::from_mut(one),
            Held::Many(many) => many,
        };
        if let Some(entry) = entries.iter_mut().find(|s| s.topic == topic) {
            entry.position = position;
        }
    }
}

const _: () = assert!(size_of::<Subscriptions>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_none_one_and_many() {
        let mut held = Subscriptions::default();
        for topic in 0..4 {
            held.add(Subscription { topic, position: topic + 10 });
            assert_eq!(held.len(), topic as usize + 1);
        }
        held.moved(2, 99);
        assert_eq!(held.find(2), Some(Subscription { topic: 2, position: 99 }));
        assert_eq!(held.remove(7), None);
        for topic in [1, 2, 3] {
            assert!(held.remove(topic).is_some());
        }
        assert_eq!(held.as_slice(), [Subscription { topic: 0, position: 10 }]);
        assert!(held.pop().is_some() && held.is_empty() && held.pop().is_none());
    }
}
