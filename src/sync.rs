//! The atomics, locks and queues of what several threads share and whose correctness depends on the order of memory
//! accesses, so that loom (`tests/model.rs`) and shuttle (`tests/schedules`) can stand in for them.
//! Law: such a module imports from here, never from `std`, `parking_lot` or `crossbeam` directly.
//!
//! The conditions are names of our own, not `loom` and `shuttle`: tokio and crossbeam react to the first one too.

#[cfg(any(tidewheel_model, tidewheel_shuttle))]
mod model;

#[cfg(not(any(tidewheel_model, tidewheel_shuttle)))]
pub use crossbeam::queue::{ArrayQueue, SegQueue};
#[cfg(tidewheel_model)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(any(tidewheel_model, tidewheel_shuttle))]
pub use model::{ArrayQueue, Mutex, OnceLock, RwLock, SegQueue};
#[cfg(not(any(tidewheel_model, tidewheel_shuttle)))]
pub use parking_lot::{Mutex, RwLock};
#[cfg(tidewheel_shuttle)]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(any(tidewheel_model, tidewheel_shuttle)))]
pub use std::sync::OnceLock;
#[cfg(not(any(tidewheel_model, tidewheel_shuttle)))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// How many locks a map is divided among that is touched by all shards.
#[cfg(not(any(tidewheel_model, tidewheel_shuttle)))]
pub const STRIPES: usize = 64;
/// One lock is enough to explore, and what loom can.
#[cfg(any(tidewheel_model, tidewheel_shuttle))]
pub const STRIPES: usize = 1;
