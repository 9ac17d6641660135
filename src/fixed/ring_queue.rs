//! Bounded first-in first-out queue of small values.
//! Law: never more than `bound` values inside, and no storage beyond twice the need: it starts with none, doubles from
//! 4 places up to the bound, and goes back to the allocator when the queue empties, unless it is small enough to keep.

use super::Full;

/// A queue of at most `bound` values.
#[derive(Debug)]
pub struct RingQueue<T> {
    storage: Box<[T]>,
    /// Where the front is.
    head: u32,
    len: u32,
    bound: u32,
}

/// Places the first push takes.
const FIRST: usize = 4;
/// An empty queue keeps up to this many places, so that ordinary traffic does not allocate for each burst.
const KEPT: usize = 16;

impl<T: Copy> RingQueue<T> {
    /// An empty queue. Allocates nothing yet.
    ///
    /// # Panics
    /// If `bound` does not fit in 32 bits.
    pub fn new(bound: usize) -> Self {
        Self { storage: Box::default(), head: 0, len: 0, bound: u32::try_from(bound).expect("a bound of 32 bits") }
    }

    /// Puts `value` last.
    ///
    /// # Errors
    /// [`Full`] at the bound.
    #[inline]
    pub fn push_back(&mut self, value: T) -> Result<(), Full> {
        self.make_room(value)?;
        let at = self.place(self.len());
        self.storage[at] = value;
        self.len += 1;
        Ok(())
    }

    /// Puts `value` first.
    ///
    /// # Errors
    /// [`Full`] at the bound.
    pub fn push_front(&mut self, value: T) -> Result<(), Full> {
        self.make_room(value)?;
        let at = self.place(self.storage.len() - 1);
        self.storage[at] = value;
        self.head = at as u32;
        self.len += 1;
        Ok(())
    }

    /// The last value.
    #[inline]
    pub fn back(&self) -> Option<T> {
        self.get(self.len().checked_sub(1)?)
    }

    /// Takes the first value out.
    #[inline]
    pub fn pop_front(&mut self) -> Option<T> {
        let value = self.front()?;
        self.head = self.place(1) as u32;
        self.len -= 1;
        if self.len == 0 && self.storage.len() > KEPT {
            self.clear();
        }
        Some(value)
    }

    /// The first value.
    #[inline]
    pub fn front(&self) -> Option<T> {
        self.get(0)
    }

    /// The value at `index`, counted from the front.
    #[inline]
    pub fn get(&self, index: usize) -> Option<T> {
        (index < self.len()).then(|| self.storage[self.place(index)])
    }

    /// Values inside.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is inside.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values it can hold.
    pub fn bound(&self) -> usize {
        self.bound as usize
    }

    /// Bytes of storage held now, for memory accounts.
    pub fn storage_bytes(&self) -> usize {
        size_of_val(&*self.storage)
    }

    /// Every value, front first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = T> {
        (0..self.len()).map(|index| self.storage[self.place(index)])
    }

    /// Empties the queue and gives its storage back.
    pub fn clear(&mut self) {
        *self = Self::new(self.bound());
    }

    /// Where the value at `index` lies; `index` is at most the storage's length.
    #[inline]
    fn place(&self, index: usize) -> usize {
        let at = self.head as usize + index;
        if at >= self.storage.len() { at - self.storage.len() } else { at }
    }

    /// Finds room for one more value, or makes it, with copies of `filler` in the new places.
    #[inline]
    fn make_room(&mut self, filler: T) -> Result<(), Full> {
        if self.len() < self.storage.len() {
            return Ok(());
        }
        if self.len == self.bound {
            return Err(Full);
        }
        self.grow(filler);
        Ok(())
    }

    #[cold]
    fn grow(&mut self, filler: T) {
        let places = (self.storage.len() * 2).max(FIRST).min(self.bound());
        let mut storage = Vec::with_capacity(places);
        storage.extend(self.iter());
        storage.resize(places, filler);
        self.storage = storage.into_boxed_slice();
        self.head = 0;
    }
}

const _: () = assert!(size_of::<RingQueue<u32>>() <= 32);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check_storage(bound: usize, pushed: usize, expected_places: usize) {
        let mut queue = RingQueue::new(bound);
        for n in 0..pushed {
            queue.push_back(n as u32).unwrap();
        }
        assert_eq!(queue.storage_bytes(), expected_places * size_of::<u32>());
    }

    #[test]
    fn storage_follows_need() {
        check_storage(1024, 0, 0);
        check_storage(1024, 1, 4);
        check_storage(1024, 5, 8);
        check_storage(1024, 1024, 1024);
        check_storage(1, 1, 1);
        check_storage(6, 5, 6);
    }

    #[test]
    fn an_emptied_queue_gives_back_what_a_burst_took() {
        for (pushed, kept) in [(16, 16), (17, 0)] {
            let mut queue = RingQueue::new(17);
            (0..pushed).for_each(|n| queue.push_back(n).unwrap());
            assert!(std::iter::from_fn(|| queue.pop_front()).eq(0..pushed));
            assert_eq!(queue.storage_bytes(), kept * size_of::<i32>());
        }
    }

    #[test]
    fn refuses_at_the_bound() {
        let mut queue = RingQueue::new(2);
        assert_eq!((queue.push_back(1), queue.push_front(0)), (Ok(()), Ok(())));
        assert_eq!((queue.push_back(2), queue.push_front(2)), (Err(Full), Err(Full)));
        assert!(queue.iter().eq([0, 1]));
        assert_eq!(RingQueue::new(0).push_back(1), Err(Full));
    }

    #[derive(Clone, Debug)]
    enum Op {
        PushBack(u16),
        PushFront(u16),
        PopFront,
        Clear,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            20 => any::<u16>().prop_map(Op::PushBack),
            5 => any::<u16>().prop_map(Op::PushFront),
            15 => Just(Op::PopFront),
            1 => Just(Op::Clear),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_vec_deque(bound in 0..70_usize, ops in proptest::collection::vec(op(), 0..400)) {
            let mut queue = RingQueue::new(bound);
            let mut model = VecDeque::new();
            for op in ops {
                let room = if model.len() < bound { Ok(()) } else { Err(Full) };
                match op {
                    Op::PushBack(value) => {
                        prop_assert_eq!(queue.push_back(value), room);
                        room.into_iter().for_each(|()| model.push_back(value));
                    }
                    Op::PushFront(value) => {
                        prop_assert_eq!(queue.push_front(value), room);
                        room.into_iter().for_each(|()| model.push_front(value));
                    }
                    Op::PopFront => prop_assert_eq!(queue.pop_front(), model.pop_front()),
                    Op::Clear => {
                        queue.clear();
                        model.clear();
                    }
                }
                prop_assert!(queue.iter().eq(model.iter().copied()));
                prop_assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!((queue.front(), queue.back()), (model.front().copied(), model.back().copied()));
                prop_assert_eq!(queue.get(model.len()), None);
                prop_assert!(queue.storage_bytes() <= bound * size_of::<u16>());
            }
        }
    }
}
