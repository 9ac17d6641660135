//! What the driver knows of each connection: 12 bytes.
//! Law: a record is idle exactly when the kernel has no request of its connection; only then is the slot free again.

use crate::id::ConnKey;
use crate::io::FrameKey;

/// Requests in flight and intentions; bits of [`Record`].
pub(super) mod flag {
    /// A receive is with the kernel.
    pub const RECEIVE: u32 = 1;
    /// A multishot poll is with the kernel.
    pub const POLL: u32 = 1 << 1;
    /// A shutdown is with a worker thread of the kernel.
    pub const SHUTDOWN: u32 = 1 << 2;
    /// The close is with the kernel.
    pub const CLOSE: u32 = 1 << 3;
    /// The shard asked to receive, and has not been told that it ended.
    pub const ARMED: u32 = 1 << 4;
    /// The shard asked to pause, and has not been told that receiving stopped.
    pub const PAUSING: u32 = 1 << 5;
    /// Poll mode: input may wait that no request has been made for.
    pub const READABLE: u32 = 1 << 6;
    /// Poll mode: the stream has ended or broken, so it is read to its end without waiting for another poll.
    pub const HANGUP: u32 = 1 << 7;
    /// The shard asked to end the stream while a send was in flight.
    pub const FINISH: u32 = 1 << 8;
    /// The shard asked to close.
    pub const CLOSING: u32 = 1 << 9;
    /// The kernel was asked for an ordinary descriptor.
    pub const INSTALL: u32 = 1 << 10;
    /// A receive has brought all that it might: the next may bring more.
    pub const WIDE: u32 = 1 << 11;
    /// The requests among the flags; a send is in flight when there is a frame.
    pub const REQUESTS: u32 = RECEIVE | POLL | SHUTDOWN | CLOSE | INSTALL;
}

/// One connection.
#[derive(Clone, Copy)]
pub(super) struct Record {
    /// The key's generation; 0 for a free slot.
    generation: u32,
    /// Index in the descriptor table (low 20 bits: the kernel's own bound of a table) and [`flag`]s above.
    descriptor_and_flags: u32,
    /// The frame of the send in flight.
    pub(super) frame: Option<FrameKey>,
}

const _: () = assert!(size_of::<Record>() == 12);

/// Largest descriptor table, by the kernel's rule.
pub(super) const TABLE_MAX: u32 = 1 << DESCRIPTOR_BITS;
const DESCRIPTOR_BITS: u32 = 20;
const DESCRIPTOR_MASK: u32 = TABLE_MAX - 1;
const _: () = assert!(flag::WIDE.leading_zeros() >= DESCRIPTOR_BITS, "the last flag there is room for");

impl Record {
    const FREE: Self = Self { generation: 0, descriptor_and_flags: 0, frame: None };

    pub(super) fn descriptor(&self) -> u32 {
        self.descriptor_and_flags & DESCRIPTOR_MASK
    }

    /// Whether any of `flags` is set.
    pub(super) fn is(&self, flags: u32) -> bool {
        self.descriptor_and_flags >> DESCRIPTOR_BITS & flags != 0
    }

    pub(super) fn set(&mut self, flags: u32) {
        self.descriptor_and_flags |= flags << DESCRIPTOR_BITS;
    }

    pub(super) fn clear(&mut self, flags: u32) {
        self.descriptor_and_flags &= !(flags << DESCRIPTOR_BITS);
    }

    /// Whether the kernel has no request of this connection.
    pub(super) fn is_idle(&self) -> bool {
        !self.is(flag::REQUESTS) && self.frame.is_none()
    }
}

/// The records of a driver, by slot. Grows in chunks, so that growing neither copies nor pauses.
#[derive(Default)]
pub(super) struct Records {
    chunks: Vec<Box<[Record; CHUNK]>>,
}

impl Records {
    /// Opens the record of a connection whose slot is free.
    pub(super) fn open(&mut self, conn: ConnKey, descriptor: u32) {
        debug_assert!(descriptor < TABLE_MAX && conn.generation > 0);
        let (chunk, index) = place(conn.slot);
        while self.chunks.len() <= chunk {
            self.chunks.push(Box::new([Record::FREE; CHUNK]));
        }
        let record = &mut self.chunks[chunk][index];
        assert!(record.generation == 0, "a slot was used again before its last completion");
        *record = Record { generation: conn.generation, descriptor_and_flags: descriptor, frame: None };
    }

    /// The connection's record; `None` if the key is stale.
    pub(super) fn get(&mut self, conn: ConnKey) -> Option<&mut Record> {
        let (chunk, index) = place(conn.slot);
        let record = &mut self.chunks.get_mut(chunk)?[index];
        (record.generation == conn.generation && conn.generation != 0).then_some(record)
    }

    /// Frees the slot if the connection is closing and the kernel is through with it.
    pub(super) fn free_if_over(&mut self, conn: ConnKey) -> bool {
        match self.get(conn) {
            Some(record) if record.is(flag::CLOSING) && record.is_idle() => {
                *record = Record::FREE;
                true
            }
            _ => false,
        }
    }

    /// Gives back the memory of records that are all free; nothing otherwise.
    pub(super) fn give_back(&mut self) {
        if self.chunks.iter().all(|chunk| chunk.iter().all(|record| record.generation == 0)) {
            self.chunks = Vec::new();
        }
    }

    /// Memory in use, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.len() * size_of::<[Record; CHUNK]>()
    }
}

fn place(slot: u32) -> (usize, usize) {
    (slot as usize / CHUNK, slot as usize % CHUNK)
}

/// Records of one chunk: 64 KiB.
const CHUNK: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const CONN: ConnKey = ConnKey { slot: 70_000, generation: 9 };

    #[test]
    fn flags_and_descriptor_do_not_touch() {
        let mut records = Records::default();
        records.open(CONN, TABLE_MAX - 1);
        let record = records.get(CONN).unwrap();
        record.set(flag::CLOSING | flag::RECEIVE);
        assert!(record.is(flag::RECEIVE) && record.is(flag::CLOSING) && !record.is(flag::POLL));
        record.clear(flag::RECEIVE);
        assert!(record.is_idle() && record.is(flag::CLOSING));
        assert_eq!(record.descriptor(), TABLE_MAX - 1);
    }

    #[test]
    fn a_slot_is_free_after_its_last_request() {
        let mut records = Records::default();
        records.open(CONN, 3);
        assert!(!records.free_if_over(CONN), "open");
        records.get(CONN).unwrap().set(flag::CLOSING | flag::CLOSE);
        assert!(!records.free_if_over(CONN), "closing");
        records.get(CONN).unwrap().clear(flag::CLOSE);
        assert!(records.free_if_over(CONN));
        assert!(records.get(CONN).is_none());
        records.open(ConnKey { generation: 10, ..CONN }, 3);
        assert!(records.get(CONN).is_none(), "stale");
    }

    #[test]
    fn memory_goes_back_when_all_are_free() {
        let mut records = Records::default();
        records.open(CONN, 3);
        let bytes = records.bytes();
        records.give_back();
        assert_eq!(records.bytes(), bytes, "one is open");
        records.get(CONN).unwrap().set(flag::CLOSING);
        assert!(records.free_if_over(CONN));
        records.give_back();
        assert_eq!(records.bytes(), 0);
        assert!(records.get(CONN).is_none());
        records.open(ConnKey { generation: 10, ..CONN }, 3);
        assert!(records.get(CONN).is_none() && records.bytes() == bytes);
    }

    #[test]
    #[should_panic(expected = "before its last completion")]
    fn a_busy_slot_is_not_given_away() {
        let mut records = Records::default();
        records.open(CONN, 3);
        records.open(ConnKey { generation: 10, ..CONN }, 4);
    }
}
