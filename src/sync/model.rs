//! Locks and queues made of what loom or shuttle can schedule, with the interfaces of parking_lot, std and crossbeam.
//! Law: they promise no more than the originals do. A push happens before the pop that takes its value; that a queue is
//! empty or not may be yesterday's news unless a fence says otherwise.

use std::collections::VecDeque;
use std::fmt;
use std::sync::PoisonError;

#[cfg(tidewheel_model)]
use loom::{sync as checked, thread};
#[cfg(not(tidewheel_model))]
use shuttle::{sync as checked, thread};

use checked::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A lock with the interface of parking_lot's.
#[derive(Debug, Default)]
pub struct Mutex<T>(checked::Mutex<T>);

#[expect(missing_docs, reason = "as in parking_lot")]
impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(checked::Mutex::new(value))
    }

    pub fn lock(&self) -> checked::MutexGuard<'_, T> {
        self.0.lock().expect("no panic under a lock")
    }
}

/// A lock with the interface of parking_lot's.
#[derive(Debug)]
pub struct RwLock<T>(checked::RwLock<T>);

#[expect(missing_docs, reason = "as in parking_lot")]
impl<T> RwLock<T> {
    pub fn new(value: T) -> Self {
        Self(checked::RwLock::new(value))
    }

    pub fn read(&self) -> checked::RwLockReadGuard<'_, T> {
        self.0.read().expect("no panic under a lock")
    }

    pub fn write(&self) -> checked::RwLockWriteGuard<'_, T> {
        self.0.write().expect("no panic under a lock")
    }
}

/// A cell with the interface of std's. A reader may miss a value that was set, until something else orders the two.
#[derive(Debug)]
pub struct OnceLock<T> {
    is_set: AtomicBool,
    value: std::sync::OnceLock<T>,
}

#[expect(missing_docs, reason = "as in std")]
impl<T> OnceLock<T> {
    pub fn new() -> Self {
        Self { is_set: AtomicBool::new(false), value: std::sync::OnceLock::new() }
    }

    pub fn get(&self) -> Option<&T> {
        if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    pub fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.is_set.store(true, Ordering::Release);
        Ok(())
    }
}

/// A queue with the interface of crossbeam's.
pub struct ArrayQueue<T> {
    /// Never contended, since both checkers run one thread at a time: what they see of it are the two counts.
    values: std::sync::Mutex<VecDeque<T>>,
    capacity: usize,
    pushed: AtomicUsize,
    popped: AtomicUsize,
}

#[expect(missing_docs, reason = "as in crossbeam")]
impl<T> ArrayQueue<T> {
    pub fn new(capacity: usize) -> Self {
        Self { values: Default::default(), capacity, pushed: AtomicUsize::new(0), popped: AtomicUsize::new(0) }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn push(&self, value: T) -> Result<(), T> {
        self.pushed.fetch_add(1, Ordering::AcqRel);
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() < self.capacity {
            values.push_back(value);
            return Ok(());
        }
        drop(values);
        self.pushed.fetch_sub(1, Ordering::AcqRel);
        Err(value)
    }

    pub fn force_push(&self, value: T) -> Option<T> {
        self.pushed.fetch_add(0, Ordering::AcqRel);
        // A full queue is as long afterwards as before, and nobody sees another length.
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() == self.capacity {
            values.push_back(value);
            return values.pop_front();
        }
        drop(values);
        self.pushed.fetch_add(1, Ordering::AcqRel);
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = if values.len() < self.capacity { None } else { values.pop_front() };
        values.push_back(value);
        drop(values);
        if oldest.is_some() {
            self.popped.fetch_add(1, Ordering::AcqRel);
        }
        oldest
    }

    pub fn pop(&self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let value = self.values.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        // A count and its value are two steps, as in the original, which waits here for whoever is between the two.
        let Some(value) = value else {
            thread::yield_now();
            return None;
        };
        self.popped.fetch_add(1, Ordering::AcqRel);
        self.pushed.fetch_add(0, Ordering::AcqRel); // all pushes until now happened before, this value's among them
        Some(value)
    }

    pub fn len(&self) -> usize {
        let popped = self.popped.load(Ordering::Acquire);
        self.pushed.load(Ordering::Acquire).saturating_sub(popped).min(self.capacity)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> fmt::Debug for ArrayQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArrayQueue").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// A queue without a bound with the interface of crossbeam's.
#[derive(Debug)]
pub struct SegQueue<T>(ArrayQueue<T>);

impl<T> Default for SegQueue<T> {
    fn default() -> Self {
        Self(ArrayQueue::new(usize::MAX))
    }
}

#[expect(missing_docs, reason = "as in crossbeam")]
impl<T> SegQueue<T> {
    pub fn push(&self, value: T) {
        let full = self.0.push(value).is_err();
        assert!(!full, "it has no bound");
    }

    pub fn pop(&self) -> Option<T> {
        self.0.pop()
    }
}
