//! Publishes whose counts are still coming from other shards, and the replies that must wait behind their acks.
//!
//! Law: replies of a connection leave in the order of its requests; so while a publish of it is unanswered, later
//! replies are kept here, each behind the publish it followed. The entries of one connection form a ring of links, of
//! which the connection knows the newest. Bound: given to the constructor; at the bound connections are not read from.

use crate::id::ReceiptIndex;

use super::Delivery;

#[derive(Debug)]
struct Entry<O> {
    /// Who asked and what the reply must say; `None` once nobody is there to read it.
    owed: Option<O>,
    /// When, in nanoseconds.
    opened_ns: u64,
    /// Shards that have not counted yet.
    awaited: u32,
    delivery: Delivery,
    /// The next newer entry of the same connection; the newest points at the oldest.
    next: Option<ReceiptIndex>,
    /// Complete wire frames to send after this receipt.
    after: Vec<u8>,
    /// In a connection's newest entry: bytes that wait with all its entries, see [`Receipts::waiting`].
    waiting: usize,
}

/// What an entry counts for besides the frames that wait behind it: about what its receipt takes on the wire.
const RECEIPT_BYTES: usize = 256;

/// The unanswered publishes of one shard, each with what is owed for it.
#[derive(Debug)]
pub struct Receipts<O> {
    entries: Vec<Option<Entry<O>>>,
    free: Vec<u32>,
    bound: usize,
}

/// One answered publish, taken out.
#[derive(Debug)]
pub struct Answered<O> {
    /// What is owed, if anybody is still there.
    pub owed: Option<O>,
    /// When the entry was opened, in nanoseconds.
    pub opened_ns: u64,
    /// The counts of all shards.
    pub delivery: Delivery,
    /// Complete wire frames to send after the receipt.
    pub after: Vec<u8>,
}

impl<O> Receipts<O> {
    /// Room for `bound` publishes.
    pub fn new(bound: usize) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), bound }
    }

    /// Whether another publish may wait for counts.
    pub fn has_room(&self) -> bool {
        self.len() < self.bound
    }

    /// Publishes that wait.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Opens an entry at `now_ns` that waits for the counts of `awaited` shards (≥ 1). `newest` is the connection's newest entry,
    /// for a client's publish; it becomes this one.
    pub fn open(
        &mut self,
        owed: O,
        now_ns: u64,
        awaited: u32,
        delivery: Delivery,
        newest: Option<&mut Option<ReceiptIndex>>,
    ) -> ReceiptIndex {
        debug_assert!(self.has_room() && awaited > 0);
        let at = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        let index = ReceiptIndex::new(at);
        let (mut next, mut waiting) = (None, RECEIPT_BYTES);
        if let Some(newest) = newest {
            next = match *newest {
                Some(previous) => {
                    let previous = self.entry_mut(previous);
                    waiting += previous.waiting;
                    previous.next.replace(index)
                }
                None => Some(index),
            };
            *newest = Some(index);
        }
        let entry = Entry { owed: Some(owed), opened_ns: now_ns, awaited, delivery, next, after: Vec::new(), waiting };
        self.entries[at as usize] = Some(entry);
        index
    }

    /// Appends a reply that follows the publish `newest`: `write` adds one or more complete wire frames.
    pub fn reply(&mut self, newest: ReceiptIndex, write: impl FnOnce(&mut Vec<u8>)) {
        let entry = self.entry_mut(newest);
        let before = entry.after.len();
        write(&mut entry.after);
        entry.waiting += entry.after.len() - before;
    }

    /// Bytes that wait with all entries of the connection whose newest is `newest`: its replies, and about what the
    /// receipts themselves take.
    pub fn waiting(&self, newest: ReceiptIndex) -> usize {
        self.entries[newest.index()].as_ref().map_or(0, |entry| entry.waiting)
    }

    /// A shard has counted. Returns whose publish it was; it may be answerable now.
    pub fn count(&mut self, index: ReceiptIndex, delivery: Delivery) -> Option<&O> {
        let entry = self.entry_mut(index);
        entry.delivery += delivery;
        entry.awaited -= 1;
        entry.owed.as_ref()
    }

    /// Takes the entry out if all its counts are in, whatever is older: for entries outside any connection's order.
    pub fn take(&mut self, index: ReceiptIndex) -> Option<Answered<O>> {
        if self.entry_mut(index).awaited > 0 {
            return None;
        }
        let entry = self.entries[index.index()].take().expect("looked at above");
        self.free.push(index.index() as u32);
        Some(Answered { owed: entry.owed, opened_ns: entry.opened_ns, delivery: entry.delivery, after: entry.after })
    }

    /// Takes the connection's oldest entry out if all its counts are in.
    pub fn take_oldest(&mut self, newest: &mut Option<ReceiptIndex>) -> Option<Answered<O>> {
        let last = (*newest)?;
        let oldest = self.entry_mut(last).next.expect("a connection's entries form a ring");
        let next = self.entry_mut(oldest).next;
        let answered = self.take(oldest)?;
        if oldest == last {
            *newest = None;
        } else {
            let newest = self.entry_mut(last);
            newest.next = next;
            newest.waiting -= RECEIPT_BYTES + answered.after.len();
        }
        Some(answered)
    }

    /// The connection goes: its entries stay until their counts are in and then vanish.
    pub fn detach(&mut self, newest: &mut Option<ReceiptIndex>) {
        let Some(last) = newest.take() else { return };
        let mut at = last;
        loop {
            let entry = self.entry_mut(at);
            entry.owed = None;
            entry.after = Vec::new();
            let next = entry.next.take().expect("a connection's entries form a ring");
            // What was complete but waited behind an older entry will not be counted again.
            self.take(at);
            if next == last {
                return;
            }
            at = next;
        }
    }

    /// Gives everything up; what was owed is for the caller to drop.
    pub fn abandon(self) -> impl Iterator<Item = O> {
        self.entries.into_iter().flatten().filter_map(|entry| entry.owed)
    }

    fn entry_mut(&mut self, index: ReceiptIndex) -> &mut Entry<O> {
        self.entries[index.index()].as_mut().expect("an entry is named only while it waits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Delivery = Delivery { matched: 1, queued: 1, dropped: 0 };

    #[test]
    fn answers_leave_in_the_order_of_the_requests() {
        let mut receipts = Receipts::new(8);
        let mut newest = None;
        let indices = ["a", "b", "c"].map(|n| receipts.open(n, 7, 1, Delivery::default(), Some(&mut newest)));
        receipts.reply(newest.unwrap(), |out| out.extend_from_slice(b"pong"));
        assert_eq!(receipts.waiting(newest.unwrap()), 3 * RECEIPT_BYTES + 4, "whichever entry it is behind");
        receipts.count(indices[1], ONE);
        assert!(receipts.take_oldest(&mut newest).is_none(), "b is in, but a is not");
        receipts.count(indices[0], ONE);
        let a = receipts.take_oldest(&mut newest).unwrap();
        let b = receipts.take_oldest(&mut newest).unwrap();
        assert_eq!((a.owed, b.owed, a.delivery, a.opened_ns), (Some("a"), Some("b"), ONE, 7));
        assert!(receipts.take_oldest(&mut newest).is_none());
        assert_eq!(receipts.waiting(newest.unwrap()), RECEIPT_BYTES + 4);
        receipts.count(indices[2], ONE);
        assert_eq!(receipts.take_oldest(&mut newest).unwrap().after, b"pong");
        assert_eq!((newest, receipts.len()), (None, 0));
    }

    #[test]
    fn there_is_room_up_to_the_bound() {
        let mut receipts = Receipts::new(2);
        let [first, _] = ["a", "b"].map(|n| {
            assert!(receipts.has_room());
            receipts.open(n, 7, 1, Delivery::default(), None)
        });
        assert!(!receipts.has_room());
        receipts.count(first, ONE);
        assert!(!receipts.has_room() && receipts.take(first).is_some() && receipts.has_room());
    }

    #[test]
    fn a_connection_that_goes_leaves_nothing_behind() {
        let mut receipts = Receipts::new(8);
        let mut newest = None;
        let indices = ["a", "b", "c"].map(|n| receipts.open(n, 7, 1, Delivery::default(), Some(&mut newest)));
        receipts.count(indices[1], ONE);
        receipts.detach(&mut newest);
        assert_eq!((newest, receipts.len()), (None, 2));
        for index in [indices[0], indices[2]] {
            assert!(receipts.count(index, ONE).is_none());
            assert!(receipts.take(index).is_some());
        }
        assert!(receipts.is_empty());
    }
}
