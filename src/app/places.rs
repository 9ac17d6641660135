//! The connections of one client that has, or had, more than one, in the order in which they have to go.
//! Law: few lie in a list, which costs least; many have an index too, so that the end of one costs the same whether its
//! client has ten others or a hundred thousand, and so does making room for a newcomer.

use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;

use super::clients::Place;

/// The connections of one client; never none for long.
#[derive(Debug)]
pub(super) enum Places {
    /// Whoever has to go first in front.
    Few(Vec<Place>),
    Many(Box<Many>),
}

/// Many connections, each with a number: the smaller, the sooner it has to go.
#[derive(Debug, Default)]
pub(super) struct Many {
    line: BTreeMap<u64, Place>,
    numbers: HashMap<Place, u64, RandomState>,
    next: u64,
}

impl Places {
    /// The first ones, in order.
    pub fn of(first: [Place; 2]) -> Self {
        Self::Few(first.to_vec())
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Few(list) => list.len(),
            Self::Many(many) => many.line.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In order.
    pub fn to_vec(&self) -> Vec<Place> {
        match self {
            Self::Few(list) => list.clone(),
            Self::Many(many) => many.line.values().copied().collect(),
        }
    }

    /// Adds one that is the last to go.
    pub fn push(&mut self, place: Place) {
        match self {
            Self::Few(list) if list.len() < FEW_MAX => list.push(place),
            Self::Few(list) => {
                let mut many = Box::<Many>::default();
                list.drain(..).chain([place]).for_each(|place| many.push(place));
                *self = Self::Many(many);
            }
            Self::Many(many) => many.push(place),
        }
    }

    /// Takes out the first `count`, in order.
    pub fn take_first(&mut self, count: usize) -> Vec<Place> {
        match self {
            Self::Few(list) => list.drain(..count.min(list.len())).collect(),
            Self::Many(many) => std::iter::from_fn(|| many.pop_first()).take(count).collect(),
        }
    }

    /// Takes one out, if it is there.
    pub fn remove(&mut self, place: Place) -> bool {
        match self {
            Self::Few(list) => {
                let at = list.iter().position(|&other| other == place);
                at.map(|at| list.remove(at)).is_some()
            }
            Self::Many(many) => many.remove(place),
        }
    }

    /// Keeps those that `is_kept` says.
    pub fn retain(&mut self, is_kept: impl Fn(Place) -> bool) {
        match self {
            Self::Few(list) => list.retain(|&place| is_kept(place)),
            Self::Many(many) => {
                many.numbers.retain(|&place, _| is_kept(place));
                many.line.retain(|_, place| is_kept(*place));
            }
        }
    }
}

impl Many {
    fn push(&mut self, place: Place) {
        self.line.insert(self.next, place);
        self.numbers.insert(place, self.next);
        self.next += 1;
    }

    fn pop_first(&mut self) -> Option<Place> {
        let (_, place) = self.line.pop_first()?;
        self.numbers.remove(&place);
        Some(place)
    }

    fn remove(&mut self, place: Place) -> bool {
        let number = self.numbers.remove(&place);
        number.and_then(|number| self.line.remove(&number)).is_some()
    }
}

/// So many are looked through one by one.
const FEW_MAX: usize = 32;
