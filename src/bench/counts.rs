//! What a run counts, for its progress and its verdict.
//! Law: each thread has counters of its own, and only the sums are looked at.

use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Handshakes that ended in a WebSocket.
    Opened,
    /// Clients that have done all that comes before the run: authenticated, subscribed.
    Ready,
    /// Refusals by HTTP status that said when to come back.
    RefusedUntil,
    /// Refusals that did not.
    Refused,
    /// Connections that were not made, or broke in the handshake.
    NotConnected,
    /// Messages of a run with a rate that were due before its window ended, sent or not.
    Due,
    /// Messages sent.
    Sent,
    /// Messages that came, as they had to.
    Received,
    /// Messages that came and are not what had to come.
    Wrong,
    /// Messages that never came, as later ones show.
    Missing,
    /// Messages that came twice, or after later ones.
    Again,
    /// Pings of the server, answered.
    Pings,
    /// Connections that ended as this side wanted it.
    Left,
    /// Connections that the server closed, by a close frame.
    Closed,
    /// Connections that broke.
    Lost,
    /// Bytes that came.
    BytesIn,
    /// Deliveries that the server said it had queued.
    Queued,
    /// Deliveries that the server said it had dropped.
    Dropped,
    /// Publishes that the server answered.
    Receipts,
    /// What the server refused to do.
    Errors,
}

/// How many there are.
const COUNTS: usize = Count::Errors as usize + 1;

/// The counters of one thread.
#[derive(Debug, Default)]
#[repr(align(128))] // no two threads' in one pair of cache lines
pub struct Counts {
    counters: [AtomicU64; COUNTS],
    /// The stage that the thread is in.
    pub(super) stage: AtomicU32,
    /// How the first connection ended that nobody wanted to end.
    pub(super) first_end: Mutex<Option<String>>,
    /// Why the server first refused to do something, in its words.
    pub(super) first_refusal: Mutex<Option<String>>,
}

impl Counts {
    /// Counts some more.
    pub fn add(&self, count: Count, more: u64) {
        let counter = &self.counters[count as usize];
        // One writer: no need to lock the bus.
        counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    }

    /// Counts something that the server refused to do.
    pub(super) fn add_refused(&self, why: String) {
        self.add(Count::Errors, 1);
        self.first_refusal.lock().get_or_insert(why);
    }

    /// How many so far.
    pub fn get(&self, count: Count) -> u64 {
        self.counters[count as usize].load(Ordering::Relaxed)
    }
}

/// The sum of all threads.
pub(super) fn sum(counts: &[std::sync::Arc<Counts>], count: Count) -> u64 {
    counts.iter().map(|counts| counts.get(count)).sum()
}
