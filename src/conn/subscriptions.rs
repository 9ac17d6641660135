//! The topics of one connection.
//! Law: each names a topic of the shard's table whose members this connection is among, in both directions. Most connections
//! have few subscriptions, so up to three are kept inline and more on the heap.

/// The subscriptions of one connection, by the index of their topic in the shard's topic table.
#[derive(Debug)]
pub struct Subscriptions(Held);

#[derive(Debug)]
enum Held {
    Few {
        len: u8,
        topics: [u32; FEW],
    },
    #[expect(clippy::box_collection, reason = "8 bytes in every connection instead of 24 for the few that have many")]
    Many(Box<Vec<u32>>),
}

const FEW: usize = 3;

impl Subscriptions {
    /// All of them, in no order.
    pub fn as_slice(&self) -> &[u32] {
        match &self.0 {
            Held::Few { len, topics } => &topics[..usize::from(*len)],
            Held::Many(many) => many,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `topic` is among them.
    pub fn has(&self, topic: u32) -> bool {
        self.as_slice().contains(&topic)
    }

    /// Adds one; the caller has checked that it is not among them.
    pub fn add(&mut self, topic: u32) {
        debug_assert!(!self.has(topic));
        match &mut self.0 {
            Held::Few { len, topics } if usize::from(*len) < FEW => {
                topics[usize::from(*len)] = topic;
                *len += 1;
            }
            Held::Few { topics, .. } => {
                let mut many = Vec::with_capacity(FEW * 2);
                many.extend_from_slice(topics);
                many.push(topic);
                self.0 = Held::Many(Box::new(many));
            }
            Held::Many(many) => many.push(topic),
        }
    }

    /// Takes one out; `false` if it was not among them.
    pub fn remove(&mut self, topic: u32) -> bool {
        let Some(at) = self.as_slice().iter().position(|&held| held == topic) else { return false };
        match &mut self.0 {
            Held::Few { len, topics } => {
                *len -= 1;
                topics[at] = topics[usize::from(*len)];
            }
            Held::Many(many) => {
                many.swap_remove(at);
                if let Some(&topics) = many.as_array() {
                    self.0 = Held::Few { len: FEW as u8, topics };
                }
            }
        }
        true
    }

    /// Takes any one out.
    pub fn pop(&mut self) -> Option<u32> {
        let topic = *self.as_slice().last()?;
        self.remove(topic);
        Some(topic)
    }
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self(Held::Few { len: 0, topics: [0; FEW] })
    }
}

const _: () = assert!(size_of::<Subscriptions>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_none_few_and_many() {
        let mut held = Subscriptions::default();
        assert!(held.is_empty());
        for topic in 10..16 {
            held.add(topic);
            assert_eq!((held.len(), held.has(topic)), (topic as usize - 9, true));
            assert_eq!(matches!(held.0, Held::Few { .. }), held.len() <= FEW);
        }
        assert!(!held.remove(9) && held.remove(10) && !held.remove(10));
        assert!(held.remove(14) && held.remove(12));
        assert!(matches!(held.0, Held::Few { .. }), "few again, and inline");
        assert!(held.remove(11) && !held.has(11));
        let mut left = [held.pop(), held.pop()];
        left.sort();
        assert_eq!((left, held.pop()), ([Some(13), Some(15)], None));
    }
}
