//! Publish and subscribe within and across shards.
//!
//! [`Registry`] knows, for all shards, which shards have subscribers of a topic; [`Topics`] holds one shard's members;
//! [`fan_out`] puts one frame on their queues; [`Bus`] carries frames and receipts between shards; [`Receipts`] waits
//! for the counts of the other shards.
//!
//! # Why nothing is missed
//! A shard sets its bit in the topic's interest before it queues the subscribe ack, and a publisher reads the interest
//! after the publish arrived; so a publish that was sent after an ack was seen finds the bit. Between two shards frames
//! travel one FIFO queue, so one publisher's messages keep their order.

mod bus;
mod fanout;
mod policies;
mod receipts;
mod registry;
mod topics;
mod windows;

pub use bus::{Bus, BusPort, Publish};
pub use fanout::{Delivery, FanOut, Queues, fan_out};
pub use policies::Policies;
pub use receipts::{Answered, Receipts};
pub use registry::{Period, Registry, ShardSet, Topic};
pub use topics::Topics;
pub use windows::WindowCounts;

/// Most shards an engine can have: the width of [`ShardSet`].
pub const SHARDS_MAX: usize = 256;
