//! The atomics and the lock of what two threads share and whose correctness depends on the order of memory accesses, so
//! that loom can stand in for them (`tests/model.rs`).
//! Law: such a module imports from here, never from `std` or `parking_lot` directly.
//!
//! The condition is a name of our own, not `loom`: tokio and crossbeam react to that one too.

#[cfg(tidewheel_model)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(tidewheel_model)]
pub use model::RwLock;
#[cfg(not(tidewheel_model))]
pub use parking_lot::RwLock;
#[cfg(not(tidewheel_model))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(tidewheel_model)]
mod model {
    /// loom's lock with the interface of parking_lot's.
    #[derive(Debug)]
    pub struct RwLock<T>(loom::sync::RwLock<T>);

    #[expect(missing_docs, reason = "as in parking_lot")]
    impl<T> RwLock<T> {
        pub fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        pub fn read(&self) -> loom::sync::RwLockReadGuard<'_, T> {
            self.0.read().expect("no panic under a lock")
        }

        pub fn write(&self) -> loom::sync::RwLockWriteGuard<'_, T> {
            self.0.write().expect("no panic under a lock")
        }
    }
}
