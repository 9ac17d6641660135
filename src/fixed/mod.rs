//! Structures whose size is settled in their type or their constructor.
//! Law: none of them knows what it holds, each names what happens at its bound, and each belongs to one thread: there
//! are no locks and no atomics here because there is nothing to share.

mod chunked;
mod line;
mod linked_queue;
mod ring_queue;
mod slot_map;
mod slot_set;
mod spare_buffers;
mod timer_wheel;
mod token_bucket;

pub use chunked::Chunked;
pub use line::Line;
pub use linked_queue::{LinkedQueue, Place};
pub use ring_queue::RingQueue;
pub use slot_map::SlotMap;
pub use slot_set::{SlotSet, Slots};
pub use spare_buffers::SpareBuffers;
pub use timer_wheel::TimerWheel;
pub use token_bucket::{Rate, TokenBucket};

/// A structure is at its bound; nothing was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at its bound")]
pub struct Full;
