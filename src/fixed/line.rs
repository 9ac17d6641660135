//! A line of those who wait, some of whom may have gone meanwhile.

use std::collections::VecDeque;

/// Who waits for something, in order; each is there once. Whoever goes away while it waits leaves its entry behind. Those are
/// swept out once they may be as many as the ones who still wait: so there are at most twice as many entries as there can be
/// waiting ones.
#[derive(Debug)]
pub struct Line<K> {
    queue: VecDeque<K>,
}

impl<K: Copy> Line<K> {
    /// A line of nobody.
    pub const fn new() -> Self {
        Self { queue: VecDeque::new() }
    }

    /// Puts `who` at the end. There are at most `present` who could wait, and `waits` tells whether one does.
    pub fn push(&mut self, who: K, present: usize, waits: impl Fn(K) -> bool) {
        if self.queue.len() >= 2 * present {
            self.queue.retain(|&who| waits(who));
        }
        self.queue.push_back(who);
    }

    /// Takes out whoever came first; it may have gone.
    pub fn pop(&mut self) -> Option<K> {
        self.queue.pop_front()
    }

    /// Entries, those who have gone included.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl<K: Copy> Default for Line<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::Line;

    #[test]
    fn first_come_first_served() {
        let mut line = Line::new();
        for who in 0..5 {
            line.push(who, 5, |_| true);
        }
        assert_eq!((line.len(), line.is_empty()), (5, false));
        assert_eq!(std::iter::from_fn(|| line.pop()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(line.is_empty());
    }

    #[test]
    fn those_who_have_gone_are_swept_out() {
        let mut line = Line::new();
        // Three are there at a time; whoever is not among the last three has gone.
        for who in 0..1000 {
            line.push(who, 3, |other| other + 3 > who);
            assert!(line.len() <= 2 * 3);
        }
        let left: Vec<i32> = std::iter::from_fn(|| line.pop()).collect();
        assert!(left.ends_with(&[997, 998, 999]) && left.is_sorted());
    }

    #[test]
    fn where_most_have_gone_at_once_the_next_to_come_finds_a_short_line() {
        let mut line = Line::new();
        (0..100).for_each(|who| line.push(who, 100, |_| true));
        line.push(100, 3, |who| who >= 98);
        assert!(std::iter::from_fn(|| line.pop()).eq(98..=100));
    }

    #[test]
    fn each_who_comes_costs_two_looks_at_most() {
        let (mut line, looks) = (Line::new(), Cell::new(0));
        for who in 0..10_000 {
            line.push(who, 100, |other| {
                looks.set(looks.get() + 1);
                other + 100 > who
            });
        }
        assert!(looks.get() <= 2 * 10_000, "{}", looks.get());
    }
}
