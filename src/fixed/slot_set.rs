//! A set of slots that is told in their order, whatever the order in which they came.
//! Law: few slots are a sorted list, many a bitmap that is never larger than 8 bytes a slot. Who goes through connections in
//! the order of their slots goes through memory from one end to the other.

use std::slice;

/// The set.
#[derive(Clone, Debug)]
pub struct SlotSet(Held);

#[derive(Clone, Debug)]
enum Held {
    /// Sorted.
    List(Vec<u32>),
    /// A bit for each slot, 64 in a word, and how many are set. There are no more words than bits.
    Bitmap(Vec<u64>, u32),
}

/// A list of up to so many is never worth a bitmap.
const FEW: usize = 64;
/// Slots of a list for each word of the bitmap that takes its place: where both are of the same size. The list takes its place
/// again at half of it, lest the set goes back and forth.
const SLOTS_IN_PLACE_OF_A_WORD: usize = size_of::<u64>() / size_of::<u32>();

impl SlotSet {
    /// An empty one. Allocates nothing yet.
    pub const fn new() -> Self {
        Self(Held::List(Vec::new()))
    }

    /// Slots inside.
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::List(slots) => slots.len(),
            Held::Bitmap(_, len) => *len as usize,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a slot in; `false` if it is inside. In a list, all that lies behind it moves: 4 bytes for each 32 slots of the
    /// pool at most.
    pub fn insert(&mut self, slot: u32) -> bool {
        let (word, bit) = place(slot);
        match &mut self.0 {
            Held::List(slots) => {
                let Err(at) = search(slots, slot) else { return false };
                slots.insert(at, slot);
                let words = place(slots[slots.len() - 1]).0 + 1;
                if slots.len() > FEW && words * SLOTS_IN_PLACE_OF_A_WORD <= slots.len() {
                    self.0 = bitmap(slots, words);
                }
                true
            }
            // One that lies far behind all others.
            Held::Bitmap(_, len) if word > *len as usize => {
                self.become_list();
                self.insert(slot)
            }
            Held::Bitmap(words, len) => {
                if word >= words.len() {
                    words.resize(word + 1, 0);
                }
                let is_new = words[word] & bit == 0;
                words[word] |= bit;
                *len += u32::from(is_new);
                is_new
            }
        }
    }

    /// Takes a slot out; `false` if it is not inside.
    pub fn remove(&mut self, slot: u32) -> bool {
        match &mut self.0 {
            Held::List(slots) => {
                let Ok(at) = search(slots, slot) else { return false };
                slots.remove(at);
                if slots.len() * 4 < slots.capacity() {
                    slots.shrink_to(slots.len() * 2);
                }
            }
            Held::Bitmap(words, len) => {
                let (word, bit) = place(slot);
                let Some(word) = words.get_mut(word).filter(|word| **word & bit != 0) else { return false };
                *word &= !bit;
                *len -= 1;
                if (*len as usize) < words.len() {
                    self.become_list();
                }
            }
        }
        true
    }

    /// Every slot, lowest first.
    pub fn iter(&self) -> Slots<'_> {
        let left = match &self.0 {
            Held::List(slots) => Left::List(slots.iter()),
            Held::Bitmap(words, _) => Left::Bitmap { words: words.iter(), word: 0, base: 0u32.wrapping_sub(u64::BITS) },
        };
        Slots { left, len: self.len() }
    }

    fn become_list(&mut self) {
        self.0 = Held::List(self.iter().collect());
    }
}

impl Default for SlotSet {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a slot is in a sorted list, or belongs. Slots of a server that fills up come in their order, and are at its end.
fn search(slots: &[u32], slot: u32) -> Result<usize, usize> {
    match slots.last() {
        Some(&last) if last >= slot => slots.binary_search(&slot),
        _ => Err(slots.len()),
    }
}

/// The word of a slot in a bitmap, and its bit.
fn place(slot: u32) -> (usize, u64) {
    ((slot / u64::BITS) as usize, 1 << (slot % u64::BITS))
}

fn bitmap(slots: &[u32], words: usize) -> Held {
    let mut bitmap = vec![0; words];
    for &slot in slots {
        let (word, bit) = place(slot);
        bitmap[word] |= bit;
    }
    Held::Bitmap(bitmap, slots.len() as u32)
}

/// The slots of a set, lowest first.
#[derive(Clone, Debug)]
pub struct Slots<'a> {
    left: Left<'a>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Left<'a> {
    List(slice::Iter<'a, u32>),
    /// What is left of a word, whose first slot is `base`, and the words behind it.
    Bitmap {
        words: slice::Iter<'a, u64>,
        word: u64,
        base: u32,
    },
}

impl Iterator for Slots<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        let slot = match &mut self.left {
            Left::List(slots) => *slots.next()?,
            Left::Bitmap { words, word, base } => {
                while *word == 0 {
                    *word = *words.next()?;
                    *base = base.wrapping_add(u64::BITS);
                }
                take_lowest(word, *base)
            }
        };
        self.len -= 1;
        Some(slot)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }

    /// Which of the two it is, is asked once and not at each slot.
    #[inline]
    fn fold<B, F: FnMut(B, u32) -> B>(self, mut folded: B, mut fold: F) -> B {
        match self.left {
            Left::List(slots) => slots.copied().fold(folded, fold),
            Left::Bitmap { words, mut word, mut base } => {
                let mut words = words.copied();
                loop {
                    while word != 0 {
                        folded = fold(folded, take_lowest(&mut word, base));
                    }
                    let Some(next) = words.next() else { return folded };
                    word = next;
                    base = base.wrapping_add(u64::BITS);
                }
            }
        }
    }
}

impl ExactSizeIterator for Slots<'_> {}

fn take_lowest(word: &mut u64, base: u32) -> u32 {
    let slot = base + word.trailing_zeros();
    *word &= *word - 1;
    slot
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn is_bitmap(set: &SlotSet) -> bool {
        matches!(set.0, Held::Bitmap(..))
    }

    #[test]
    fn many_slots_are_a_bitmap_and_few_a_list() {
        let mut set = SlotSet::new();
        let even = || (0..400).map(|at| at * 2);
        for slot in even() {
            assert!(set.insert(slot));
            assert_eq!(is_bitmap(&set), set.len() > FEW, "slots that lie close together: more than a few are a bitmap");
        }
        assert_eq!((set.len(), set.iter().collect::<Vec<_>>()), (400, even().collect()));
        assert!(set.insert(100_000) && !is_bitmap(&set), "one far away would make it large");
        assert!(set.remove(100_000) && set.insert(1) && is_bitmap(&set), "and it is a bitmap again without it");
        let gone = even().position(|slot| set.remove(slot) && !is_bitmap(&set));
        assert_eq!((gone, set.len()), (Some(388), 12), "fewer than its 13 words");
        assert!(even().skip(389).all(|slot| set.remove(slot)) && set.remove(1) && set.is_empty());
        assert!(!set.remove(1) && set.iter().next().is_none());
    }

    #[test]
    fn a_bitmap_takes_the_place_of_a_list_of_its_size() {
        let mut set = SlotSet::new();
        let words = |set: &SlotSet| match &set.0 {
            Held::List(_) => 0,
            Held::Bitmap(words, _) => words.len(),
        };
        assert!((0..65).all(|at| set.insert(at * 32) && !is_bitmap(&set)), "33 words are larger than 65 slots");
        assert!(set.insert(65 * 32) && words(&set) == 33, "and as large as 66");
        assert!(set.insert(66 * 64) && words(&set) == 67, "as many as slots, and no more");
        assert!(set.insert(68 * 64) && !is_bitmap(&set), "69 are too many for 68");
    }

    #[test]
    fn a_list_gives_back_the_room_of_those_that_have_gone() {
        let mut set = SlotSet::new();
        let far_apart = || (0..1_000).map(|at| at * 1_024);
        let room = |set: &SlotSet| match &set.0 {
            Held::List(slots) => slots.capacity(),
            Held::Bitmap(..) => unreachable!("they are far apart"),
        };
        assert!(far_apart().all(|slot| set.insert(slot)));
        let mut moves = 0;
        for slot in far_apart() {
            let before = room(&set);
            assert!(set.remove(slot));
            assert!(room(&set) <= 4 * set.len(), "room for {} of {}", room(&set), set.len());
            if room(&set) != before {
                assert_eq!(room(&set), 2 * set.len(), "lest the next to come needs more");
                moves += 1;
            }
        }
        assert!(moves <= 10, "{moves}");
    }

    #[test]
    fn the_highest_slots() {
        let mut set = SlotSet::new();
        let highest = || (0..40).map(|below| u32::MAX - below);
        assert!(highest().all(|slot| set.insert(slot)) && !set.insert(u32::MAX));
        assert_eq!((set.iter().last(), set.iter().next()), (Some(u32::MAX), Some(u32::MAX - 39)));
    }

    proptest! {
        /// It is what the standard library's is, and never larger than it says.
        #[test]
        fn as_a_set_is(moves in prop::collection::vec((any::<bool>(), 0..3_u8, 0..1_u32 << 14), 0..1_500)) {
            let (mut set, mut model) = (SlotSet::new(), BTreeSet::new());
            for (inserts, near, slot) in moves {
                let slot = if near > 0 { slot % 512 } else { slot };
                if inserts || near == 1 {
                    prop_assert_eq!(set.insert(slot), model.insert(slot));
                } else {
                    prop_assert_eq!(set.remove(slot), model.remove(&slot));
                }
                if let Held::Bitmap(words, len) = &set.0 {
                    prop_assert!(words.len() <= *len as usize);
                }
            }
            prop_assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
            let mut slots = set.iter();
            prop_assert_eq!(slots.len(), model.len());
            let one_by_one: Vec<u32> = std::iter::from_fn(|| slots.next()).collect();
            prop_assert_eq!(slots.len(), 0);
            let mut folded = Vec::new();
            set.iter().for_each(|slot| folded.push(slot));
            prop_assert!(one_by_one.iter().eq(&model) && one_by_one == folded);
        }
    }
}
