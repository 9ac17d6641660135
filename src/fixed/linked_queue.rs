//! Bounded queue of small values, out of whose middle values can be taken.
//! Law: a place names a value from its push to its removal, wherever it has got to in the queue meanwhile; every
//! operation takes the same time whatever the length. Storage follows the largest length so far.

use super::Full;

/// Where a value lies, until it is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u32);

/// A queue of at most `bound` values.
#[derive(Debug)]
pub struct LinkedQueue<T> {
    nodes: Vec<Node<T>>,
    /// `NONE` when empty, as are the next two.
    front: u32,
    back: u32,
    /// The first unused node; others follow by `newer`.
    free: u32,
    len: u32,
    bound: u32,
}

#[derive(Debug)]
struct Node<T> {
    value: T,
    older: u32,
    newer: u32,
}

const NONE: u32 = u32::MAX;

impl<T: Copy> LinkedQueue<T> {
    /// An empty queue. Allocates nothing yet.
    ///
    /// # Panics
    /// If `bound` is no number below `u32::MAX`.
    pub fn new(bound: usize) -> Self {
        let bound = u32::try_from(bound).ok().filter(|&bound| bound < NONE).expect("a bound of less than 32 bits");
        Self { nodes: Vec::new(), front: NONE, back: NONE, free: NONE, len: 0, bound }
    }

    /// Puts `value` last.
    ///
    /// # Errors
    /// [`Full`] at the bound.
    pub fn push_back(&mut self, value: T) -> Result<Place, Full> {
        let older = self.back;
        let at = self.add(Node { value, older, newer: NONE })?;
        *self.newer_of(older) = at;
        self.back = at;
        Ok(Place(at))
    }

    /// Puts `value` first.
    ///
    /// # Errors
    /// [`Full`] at the bound.
    pub fn push_front(&mut self, value: T) -> Result<Place, Full> {
        let newer = self.front;
        let at = self.add(Node { value, older: NONE, newer })?;
        *self.older_of(newer) = at;
        self.front = at;
        Ok(Place(at))
    }

    /// Takes a value out, wherever it is. The place names nothing any more.
    pub fn remove(&mut self, Place(at): Place) -> T {
        let Node { value, older, newer } = self.nodes[at as usize];
        *self.newer_of(older) = newer;
        *self.older_of(newer) = older;
        self.nodes[at as usize].newer = self.free;
        self.free = at;
        self.len -= 1;
        value
    }

    /// The first place.
    pub fn front(&self) -> Option<Place> {
        (self.front != NONE).then_some(Place(self.front))
    }

    /// The last place.
    pub fn back(&self) -> Option<Place> {
        (self.back != NONE).then_some(Place(self.back))
    }

    /// The place behind this one.
    pub fn newer(&self, Place(at): Place) -> Option<Place> {
        Some(self.nodes[at as usize].newer).filter(|&newer| newer != NONE).map(Place)
    }

    /// The value at a place.
    pub fn get(&self, Place(at): Place) -> &T {
        &self.nodes[at as usize].value
    }

    /// The value at a place, to change.
    pub fn get_mut(&mut self, Place(at): Place) -> &mut T {
        &mut self.nodes[at as usize].value
    }

    /// Every value, front first.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        std::iter::successors(self.front(), |&place| self.newer(place)).map(|place| *self.get(place))
    }

    /// Values inside.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn add(&mut self, node: Node<T>) -> Result<u32, Full> {
        if self.len == self.bound {
            return Err(Full);
        }
        self.len += 1;
        if self.free == NONE {
            self.nodes.push(node);
            return Ok(self.nodes.len() as u32 - 1);
        }
        let at = self.free;
        self.free = self.nodes[at as usize].newer;
        self.nodes[at as usize] = node;
        Ok(at)
    }

    /// What names the neighbour on the newer side of `at`: of no node, the front.
    fn newer_of(&mut self, at: u32) -> &mut u32 {
        if at == NONE { &mut self.front } else { &mut self.nodes[at as usize].newer }
    }

    /// What names the neighbour on the older side of `at`: of no node, the back.
    fn older_of(&mut self, at: u32) -> &mut u32 {
        if at == NONE { &mut self.back } else { &mut self.nodes[at as usize].older }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_at_the_bound() {
        let mut queue = LinkedQueue::new(2);
        assert!(queue.push_back(1).is_ok() && queue.push_front(0).is_ok());
        assert_eq!((queue.push_back(2), queue.push_front(2)), (Err(Full), Err(Full)));
        assert!(queue.iter().eq([0, 1]));
    }

    #[derive(Clone, Debug)]
    enum Op {
        PushBack(u16),
        PushFront(u16),
        /// The place at this index, modulo the length.
        Remove(usize),
        Replace(usize, u16),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => any::<u16>().prop_map(Op::PushBack),
            1 => any::<u16>().prop_map(Op::PushFront),
            3 => any::<usize>().prop_map(Op::Remove),
            1 => (any::<usize>(), any::<u16>()).prop_map(|(at, value)| Op::Replace(at, value)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_vector_of_places(bound in 0..40_usize, ops in proptest::collection::vec(op(), 0..400)) {
            let mut queue = LinkedQueue::new(bound);
            let mut model: Vec<(Place, u16)> = Vec::new();
            let mut longest = 0;
            for op in ops {
                let is_full = model.len() >= bound;
                match op {
                    Op::PushBack(value) => match queue.push_back(value) {
                        Ok(place) => model.push((place, value)),
                        Err(Full) => prop_assert!(is_full),
                    },
                    Op::PushFront(value) => match queue.push_front(value) {
                        Ok(place) => model.insert(0, (place, value)),
                        Err(Full) => prop_assert!(is_full),
                    },
                    Op::Remove(_) | Op::Replace(..) if model.is_empty() => {}
                    Op::Remove(at) => {
                        let (place, value) = model.remove(at % model.len());
                        prop_assert_eq!(queue.remove(place), value);
                    }
                    Op::Replace(at, value) => {
                        let at = at % model.len();
                        model[at].1 = value;
                        *queue.get_mut(model[at].0) = value;
                    }
                }
                longest = longest.max(model.len());
                prop_assert!(queue.iter().eq(model.iter().map(|&(_, value)| value)));
                prop_assert!(model.iter().all(|&(place, value)| *queue.get(place) == value));
                let ends = (model.first().map(|first| first.0), model.last().map(|last| last.0));
                prop_assert_eq!((queue.front(), queue.back()), ends);
                prop_assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
                prop_assert!(queue.nodes.len() <= longest);
            }
        }
    }
}
