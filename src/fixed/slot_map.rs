//! Generational pool: values by slot, and keys that go stale when their value leaves.
//! Law: a key finds the value it was made for, or nothing; a value never moves while it is in.
//!
//! "Lock-free" here means what it costs: one thread owns the pool, so there is no lock, no atomic and no retry.
//!
//! Memory follows the peak in chunks of 512 entries and is kept until the pool is empty and [`SlotMap::give_back`] is called. An entry costs 8 bytes beside its value (generation
//! and free list), plus a discriminant if the value has no niche; anything that holds a `Vec`, a `Box`, a `bool` or an
//! enum has one.

use super::Full;
use super::chunked::Chunked;
use crate::id::{ConnKey, GENERATION_MAX};

/// A pool of at most `capacity` values.
#[derive(Debug)]
pub struct SlotMap<T> {
    entries: Chunked<Entry<T>>,
    /// Head of the list of vacated slots, last out first in: the warmest memory is used again first.
    free: u32,
    /// Slots from here on were never used.
    fresh: u32,
    len: u32,
    capacity: u32,
    /// Of the first value in each slot.
    first_generation: u32,
}

#[derive(Debug)]
struct Entry<T> {
    /// Of the value inside, or of the next one if there is none.
    generation: u32,
    /// The next vacated slot, while this one is vacant.
    next_free: u32,
    value: Option<T>,
}

const NONE: u32 = u32::MAX;

impl<T> SlotMap<T> {
    /// An empty pool. Allocates nothing yet.
    ///
    /// # Panics
    /// If `capacity` is 2^32 − 1, which is no slot's number.
    pub fn new(capacity: u32) -> Self {
        Self::starting_at(capacity, 1)
    }

    /// An empty pool whose keys begin with this generation (1 to [`GENERATION_MAX`]), so that those of a pool before it
    /// find nothing; see [`SlotMap::next_generation`].
    ///
    /// # Panics
    /// As [`SlotMap::new`], and if there is no such generation.
    pub fn starting_at(capacity: u32, first_generation: u32) -> Self {
        assert!(capacity < NONE && (1..=GENERATION_MAX).contains(&first_generation));
        Self { entries: Chunked::new(), free: NONE, fresh: 0, len: 0, capacity, first_generation }
    }

    /// A generation that no key of this pool has, unless one of its slots has been through all of them.
    pub fn next_generation(&self) -> u32 {
        let newest = (0..self.fresh).map(|slot| self.entries[slot].generation).max();
        match newest {
            Some(GENERATION_MAX) => 1,
            Some(newest) => newest + 1,
            None => self.first_generation,
        }
    }

    /// Puts in the value that `make` builds for its key.
    ///
    /// # Errors
    /// [`Full`] at `capacity`; `make` is not called.
    pub fn insert_with(&mut self, make: impl FnOnce(ConnKey) -> T) -> Result<ConnKey, Full> {
        if self.len == self.capacity {
            return Err(Full);
        }
        let slot = if self.free != NONE {
            self.free
        } else {
            let generation = self.first_generation;
            self.entries.grow_to(self.fresh, || Entry { generation, next_free: NONE, value: None });
            self.fresh
        };
        let entry = &mut self.entries[slot];
        let key = ConnKey { slot, generation: entry.generation };
        // The lists change only once `make` has returned: a panic in it leaves the pool as it was.
        entry.value = Some(make(key));
        if slot == self.fresh {
            self.fresh += 1;
        } else {
            self.free = entry.next_free;
        }
        self.len += 1;
        Ok(key)
    }

    /// Gives back the memory of an empty pool. Keys of before go on finding nothing.
    pub fn give_back(&mut self) {
        if self.is_empty() {
            *self = Self::starting_at(self.capacity, self.next_generation());
        }
    }

    /// The value of `key`; `None` if the key is stale, forged or beyond the pool.
    #[inline]
    pub fn get(&self, key: ConnKey) -> Option<&T> {
        let entry = self.entries.get(key.slot)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    /// The value of `key`, to change.
    #[inline]
    pub fn get_mut(&mut self, key: ConnKey) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.slot)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    /// The value in `slot`, whatever its generation: for lists that are emptied before the slot is.
    #[inline]
    pub fn slot(&self, slot: u32) -> Option<&T> {
        self.entries.get(slot)?.value.as_ref()
    }

    /// The value in `slot`, whatever its generation, to change.
    #[inline]
    pub fn slot_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot)?.value.as_mut()
    }

    /// The key of the value in `slot`.
    pub fn key_of(&self, slot: u32) -> Option<ConnKey> {
        let entry = self.entries.get(slot)?;
        entry.value.is_some().then_some(ConnKey { slot, generation: entry.generation })
    }

    /// Takes the value of `key` out; the key and all its copies are stale from now on.
    pub fn remove(&mut self, key: ConnKey) -> Option<T> {
        let entry = self.entries.get_mut(key.slot)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        // 0 is no generation, so that a zeroed key finds nothing.
        entry.generation = if entry.generation == GENERATION_MAX { 1 } else { entry.generation + 1 };
        entry.next_free = self.free;
        self.free = key.slot;
        self.len -= 1;
        Some(value)
    }

    /// Values inside.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Memory of the slots, what values keep elsewhere left out.
    pub fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    /// Slots ever used; every occupied slot is below. For walks that change values or spread over several turns.
    pub fn slots(&self) -> u32 {
        self.fresh
    }

    /// Every value with its key, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (ConnKey, &T)> {
        (0..self.fresh).filter_map(|slot| {
            let Entry { generation, value, .. } = &self.entries[slot];
            Some((ConnKey { slot, generation: *generation }, value.as_ref()?))
        })
    }

    /// Every key, by slot.
    pub fn keys(&self) -> impl Iterator<Item = ConnKey> {
        self.iter().map(|(key, _)| key)
    }
}

const _: () = assert!(size_of::<Entry<Box<u8>>>() == size_of::<Box<u8>>() + 8);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(slot: u32, generation: u32) -> ConnKey {
        ConnKey { slot, generation }
    }

    #[test]
    fn refuses_at_capacity_and_calls_nobody() {
        let mut map = SlotMap::new(1);
        assert_eq!(map.insert_with(|key| key.slot), Ok(key(0, 1)));
        assert_eq!(map.insert_with(|_| unreachable!()), Err(Full));
        assert_eq!(SlotMap::<u8>::new(0).insert_with(|_| unreachable!()), Err(Full));
    }

    #[test]
    fn the_last_slot_out_is_the_first_in() {
        let mut map = SlotMap::new(8);
        let keys: Vec<_> = (0..3).map(|n| map.insert_with(|_| n).unwrap()).collect();
        map.remove(keys[0]);
        map.remove(keys[1]);
        assert_eq!(map.insert_with(|_| 9), Ok(key(1, 2)));
        assert_eq!(map.insert_with(|_| 9), Ok(key(0, 2)));
        assert_eq!(map.insert_with(|_| 9), Ok(key(3, 1)));
    }

    #[test]
    fn a_forged_key_finds_nothing() {
        let mut map = SlotMap::new(1000);
        map.insert_with(|_| ()).unwrap();
        for forged in [key(0, 0), key(0, 2), key(1, 1), key(511, 1), key(512, 1), key(u32::MAX, u32::MAX)] {
            assert_eq!(map.get(forged), None, "{forged:?}");
            assert_eq!(map.get_mut(forged), None, "{forged:?}");
            assert_eq!(map.remove(forged), None, "{forged:?}");
        }
        assert_eq!((map.slot(1), map.slot(512), map.key_of(1)), (None, None, None));
    }

    #[test]
    fn generations_wrap_to_one() {
        let mut map = SlotMap::new(1);
        let first = map.insert_with(|_| ()).unwrap();
        map.remove(first);
        map.entries[0].generation = GENERATION_MAX;
        let last = map.insert_with(|_| ()).unwrap();
        assert_eq!(last, key(0, GENERATION_MAX));
        map.remove(last);
        assert_eq!(map.insert_with(|_| ()), Ok(key(0, 1)));
    }

    #[test]
    fn keys_of_the_pool_before_find_nothing() {
        let mut old = SlotMap::new(2);
        assert_eq!(old.next_generation(), 1);
        let mut keys: Vec<_> = (0..2).map(|_| old.insert_with(|_| ()).unwrap()).collect();
        (0..3).for_each(|_| {
            old.remove(*keys.last().unwrap());
            keys.push(old.insert_with(|_| ()).unwrap());
        });
        let mut new = SlotMap::starting_at(2, old.next_generation());
        (0..2).for_each(|_| assert!(new.insert_with(|_| ()).is_ok()));
        assert!(keys.iter().all(|&key| new.get(key).is_none()));
        assert_eq!(SlotMap::<()>::starting_at(1, GENERATION_MAX).next_generation(), GENERATION_MAX);
        new = SlotMap::starting_at(1, GENERATION_MAX);
        new.insert_with(|_| ()).unwrap();
        assert_eq!(new.next_generation(), 1);
    }

    #[test]
    fn an_empty_pool_gives_its_memory_back_and_stale_keys_stay_stale() {
        let mut map = SlotMap::new(2_000);
        let keys: Vec<_> = (0..2_000).map(|number| map.insert_with(|_| number).unwrap()).collect();
        let bytes = map.bytes();
        map.give_back();
        assert_eq!((map.bytes(), map.get(keys[7])), (bytes, Some(&7)), "it is not empty");
        keys.iter().for_each(|&key| assert!(map.remove(key).is_some()));
        map.give_back();
        assert_eq!((map.bytes(), map.slots(), map.len()), (0, 0, 0));
        let again: Vec<_> = (0..2_000).map(|number| map.insert_with(|_| number).unwrap()).collect();
        assert!(keys.iter().all(|&key| map.get(key).is_none() && !again.contains(&key)));
    }

    #[test]
    fn a_panic_while_building_leaves_the_pool_as_it_was() {
        let mut map = SlotMap::<u8>::new(2);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| map.insert_with(|_| panic!())));
        assert!(panicked.is_err());
        assert_eq!((map.len(), map.insert_with(|_| 7)), (0, Ok(key(0, 1))));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64),
        /// Index into all keys ever given out, stale ones included.
        Remove(usize),
        Change(usize, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => any::<u64>().prop_map(Op::Insert),
            2 => any::<usize>().prop_map(Op::Remove),
            1 => (any::<usize>(), any::<u64>()).prop_map(|(at, value)| Op::Change(at, value)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_list(capacity in 0..700_u32, ops in proptest::collection::vec(op(), 0..1500)) {
            let mut map = SlotMap::new(capacity);
            // Every key ever given out, with its value while it is in.
            let mut model: Vec<(ConnKey, Option<u64>)> = Vec::new();
            for op in ops {
                match op {
                    Op::Insert(value) => match map.insert_with(|_| value) {
                        Ok(key) => {
                            prop_assert!(key.slot < capacity && model.iter().all(|(given, _)| *given != key));
                            model.push((key, Some(value)));
                        }
                        Err(Full) => prop_assert_eq!(map.len(), capacity as usize),
                    },
                    Op::Remove(at) if !model.is_empty() => {
                        let at = at % model.len();
                        prop_assert_eq!(map.remove(model[at].0), model[at].1.take());
                    }
                    Op::Change(at, to) if !model.is_empty() => {
                        let at = at % model.len();
                        let (key, inside) = &mut model[at];
                        prop_assert_eq!(map.get_mut(*key).map(|value| std::mem::replace(value, to)), *inside);
                        *inside = inside.map(|_| to);
                    }
                    _ => {}
                }
            }
            let mut inside = Vec::new();
            for (key, value) in model {
                prop_assert_eq!(map.get(key), value.as_ref());
                if let Some(mut value) = value {
                    prop_assert_eq!(map.slot_mut(key.slot), Some(&mut value));
                    prop_assert_eq!((map.slot(key.slot), map.key_of(key.slot)), (Some(&value), Some(key)));
                    inside.push((key, value));
                }
            }
            inside.sort_by_key(|(key, _)| key.slot);
            prop_assert_eq!(map.len(), inside.len());
            prop_assert!(map.keys().eq(inside.iter().map(|(key, _)| *key)));
            prop_assert!(map.iter().map(|(key, value)| (key, *value)).eq(inside));
        }
    }
}
