//! What the shards of an engine must agree on to end together: how many connections there are, and who still accepts.
//! Law: a shard ends only when no shard accepts and no connection is left anywhere; whoever makes that so learns it, and
//! wakes the others. Of several that do so at the same time at least one learns it.
//!
//! Why somebody always does: whoever stops accepting and whoever counts the last connection out changes a number, passes
//! a fence, and then reads the other number. So of the two that come last one sees both as they will stay, as do all whom
//! it wakes.

use crate::sync::{AtomicUsize, Ordering, fence};

/// The numbers of an engine that all its shards change.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections of all shards, those that are being told that the server is full included.
    connections: AtomicUsize,
    /// Shards that accept newcomers.
    accepting: AtomicUsize,
    /// Connections there were when the first shard began to close, plus one; 0: none has begun.
    total: AtomicUsize,
}

impl Tally {
    /// Connections of all shards, about: they come and go meanwhile.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// A shard accepts from now on.
    pub fn opens(&self) {
        self.accepting.fetch_add(1, Ordering::Relaxed);
    }

    /// A shard that was counted accepts nobody any more. Whether this was what the end waited for: the others are to be
    /// woken.
    pub fn stops(&self) -> bool {
        self.accepting.fetch_sub(1, Ordering::Release); // whoever sees it sees the newcomers of before
        self.is_over()
    }

    /// A shard that accepts has a newcomer. A reservation, not a check: how many there were before.
    pub fn arrives(&self) -> usize {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// So many connections have gone. Whether this was what the end waited for: the others are to be woken.
    pub fn leave(&self, connections: usize) -> bool {
        self.connections.fetch_sub(connections, Ordering::Relaxed) == connections && self.is_over()
    }

    /// How many connections the drain began with, and whether this is the first call.
    pub fn total(&self) -> (usize, bool) {
        let connections = self.connections();
        match self.total.compare_exchange(0, connections + 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => (connections, true),
            Err(total) => (total - 1, false),
        }
    }

    /// Whether no shard has a connection or may get one.
    pub fn is_over(&self) -> bool {
        fence(Ordering::SeqCst);
        self.accepting.load(Ordering::Acquire) == 0 && self.connections() == 0
    }
}
