//! What a completion is about, in the 64 bits that the kernel carries from a request to its completions.
//! Law: `op:8 | generation:24 | slot:32`; a connection's token names the slot *and* its generation, so that a
//! completion which outlives its connection finds nothing.

use crate::id::{ConnKey, GENERATION_MAX};

/// The kind of request a completion answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    /// An accept; slot: `listener << 16 | accept slot`.
    Accept = 1,
    /// A receive, multishot or single.
    Receive,
    /// A multishot poll for input.
    Poll,
    /// A send.
    Send,
    /// The end of this side's stream, by a worker thread of the kernel.
    Shutdown,
    /// The close of a connection's descriptor.
    Close,
    /// A cancel of a connection's receive; a success is silent.
    Pause,
    /// A cancel of a closing connection's request; a success is silent.
    Cancel,
    /// A request whose success is silent and whose failure changes nothing.
    Forget,
    /// The multishot poll of the shard's own eventfd.
    Bell,
    /// A MSG_RING that this shard sent and that failed; slot: the shard that was meant.
    Knock,
    /// A MSG_RING that another ring sent here.
    Rang,
    /// A descriptor that moves into the table; slot: index of the move.
    Take,
    /// An ordinary descriptor for a connection's socket, for the end of this side's stream.
    Install,
}

/// The user data of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(pub(super) u64);

const _: () = assert!(size_of::<Token>() == 8);

impl Token {
    /// A token of the driver itself.
    pub(super) const fn of_driver(op: Op, slot: u32) -> Self {
        Self((op as u64) << 56 | slot as u64)
    }

    /// A token of a connection.
    pub(super) fn of_conn(op: Op, conn: ConnKey) -> Self {
        debug_assert!(conn.generation <= GENERATION_MAX);
        Self((op as u64) << 56 | u64::from(conn.generation) << 32 | u64::from(conn.slot))
    }

    /// The kind of request; `None` for user data this driver never wrote.
    pub(super) fn op(self) -> Option<Op> {
        OPS.get((self.0 >> 56) as usize).copied().flatten()
    }

    /// The connection, for tokens of connections.
    pub(super) fn conn(self) -> ConnKey {
        ConnKey { slot: self.slot(), generation: (self.0 >> 32) as u32 & GENERATION_MAX }
    }

    /// The slot.
    pub(super) fn slot(self) -> u32 {
        self.0 as u32
    }
}

/// Every op at its own number.
const OPS: [Option<Op>; 15] = {
    use Op::*;
    let all = [Accept, Receive, Poll, Send, Shutdown, Close, Pause, Cancel, Forget, Bell, Knock, Rang, Take, Install];
    let mut ops = [None; 15];
    let mut i = 0;
    while i < all.len() {
        assert!(all[i] as usize == i + 1);
        ops[i + 1] = Some(all[i]);
        i += 1;
    }
    ops
};

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(op: Op, slot: u32, generation: u32) {
        let conn = ConnKey { slot, generation };
        let token = Token::of_conn(op, conn);
        assert_eq!((token.op(), token.conn(), token.slot()), (Some(op), conn, slot));
    }

    #[test]
    fn carries_op_generation_and_slot() {
        check(Op::Accept, 0, 0);
        check(Op::Receive, 1, 2);
        check(Op::Send, u32::MAX, GENERATION_MAX);
        check(Op::Take, 1 << 26, 1);
    }

    #[test]
    fn foreign_user_data_has_no_op() {
        for user_data in [0, u64::MAX, 15 << 56, 255 << 56 | 7] {
            assert_eq!(Token(user_data).op(), None);
        }
    }
}
