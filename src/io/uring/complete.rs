//! From the kernel's completions to the closed list of the contract.
//! Law: a completion ends its request in the record before anything is yielded for it.

use std::io;

use io_uring::cqueue;

use super::records::flag;
use super::{Deferred, ReceiveMode, Uring, has_more};
use crate::id::ConnKey;
use crate::io::recv_ring::RecvBuffer;
use crate::io::token::{Op, Token};
use crate::io::{Completion, Lost};

pub(super) type Yield = Option<Completion<RecvBuffer>>;

impl Uring {
    /// What a completion means to the shard; often nothing.
    pub(super) fn complete(&mut self, completion: &cqueue::Entry) -> Yield {
        let token = Token(completion.user_data());
        let conn = token.conn();
        match token.op() {
            Some(Op::Receive) => {
                // Taken first: dropped on any way out, it goes back to the kernel.
                let len = u32::try_from(completion.result()).unwrap_or(0);
                let first = cqueue::buffer_select(completion.flags());
                let bytes = first.map(|first| self.buffers.lend(first, len, &mut self.more));
                let outcome = match self.mode {
                    ReceiveMode::Recv => self.received(conn, completion, bytes),
                    ReceiveMode::Poll => self.drained(conn, completion, bytes),
                };
                self.more.clear(); // of a former connection
                outcome
            }
            Some(Op::Poll) => self.polled(conn, completion),
            Some(Op::Send) => self.sent(conn, completion.result()),
            Some(Op::Shutdown) => self.over(conn, flag::SHUTDOWN),
            Some(Op::Install) => self.installed(conn, completion.result()),
            Some(Op::Close) => self.over(conn, flag::CLOSE),
            Some(Op::Pause) => self.pause_missed(conn),
            Some(Op::Cancel) => self.cancel_missed(conn, completion.result()),
            Some(Op::Accept) => self.accepted(token.slot(), completion),
            Some(Op::Take) => self.taken(token.slot(), completion),
            Some(Op::Rang) => Some(Completion::Rang),
            Some(Op::Bell) => {
                if !has_more(completion) {
                    self.watch_bell();
                }
                Some(Completion::Rang)
            }
            Some(Op::Knock) => {
                // The target's ring could not take the message; its eventfd always can.
                if let Some(bell) = self.bells.get(token.slot() as usize) {
                    bell.knock();
                }
                None
            }
            Some(Op::Forget) => None,
            None => {
                self.ring.counters.stale += 1;
                None
            }
        }
    }

    /// Recv mode: one of the completions of a multishot receive.
    fn received(&mut self, conn: ConnKey, completion: &cqueue::Entry, bytes: Option<RecvBuffer>) -> Yield {
        let Some(record) = self.records.get(conn) else { return self.stale() };
        let armed = has_more(completion);
        // Only the last buffer says that no more will come.
        let first_armed = armed || !self.more.is_empty();
        while let Some(bytes) = self.more.pop_front() {
            let armed = armed || !self.more.is_empty();
            self.deferred.push_back(Deferred::Received { conn, bytes, armed });
        }
        if !armed {
            if completion.result() > 0 {
                record.set(flag::WIDE);
            }
            record.clear(flag::RECEIVE | flag::ARMED | flag::PAUSING);
            self.holding -= 1;
            self.close_if_over(conn);
        }
        Some(match (completion.result(), bytes) {
            (1.., Some(bytes)) => Completion::Received { conn, bytes, armed: first_armed },
            (result, _) => self.receive_ended(conn, result),
        })
    }

    /// Poll mode: one of the completions of a drain; the last of them is an error, mostly EAGAIN.
    fn drained(&mut self, conn: ConnKey, completion: &cqueue::Entry, bytes: Option<RecvBuffer>) -> Yield {
        let buffer_size = self.buffers.buffer_size();
        let Some(record) = self.records.get(conn) else { return self.stale() };
        let result = completion.result();
        if let Ok(len @ 1..) = u32::try_from(result) {
            // The poll reports arrivals, not what is left, and the kernel bounds the rounds of a drain. A drain runs in
            // one go, so what earlier polls said is answered by now.
            record.clear(flag::READABLE);
            if cqueue::sock_nonempty(completion.flags()) || len == buffer_size || record.is(flag::HANGUP) {
                record.set(flag::READABLE);
            }
        }
        if has_more(completion) {
            let armed = record.is(flag::ARMED);
            return bytes.map(|bytes| Completion::Received { conn, bytes, armed });
        }
        record.clear(flag::RECEIVE);
        self.holding -= 1;
        if matches!(-result, libc::ENOBUFS | libc::EINTR) {
            record.set(flag::READABLE);
        }
        let more = result > 0 || result == -libc::EAGAIN;
        let armed = more && record.is(flag::ARMED) && !record.is(flag::PAUSING | flag::CLOSING);
        if !armed {
            record.clear(flag::ARMED | flag::PAUSING);
        } else if record.is(flag::READABLE) {
            record.set(flag::RECEIVE);
            record.clear(flag::READABLE);
            let descriptor = record.descriptor();
            self.drain(conn, descriptor);
        }
        self.close_if_over(conn);
        match bytes {
            Some(bytes) if result > 0 => Some(Completion::Received { conn, bytes, armed }),
            _ if armed => None,
            _ => Some(self.receive_ended(conn, result)),
        }
    }

    /// Poll mode: input has arrived, or the stream has ended or broken.
    fn polled(&mut self, conn: ConnKey, completion: &cqueue::Entry) -> Yield {
        let Some(record) = self.records.get(conn) else { return self.stale() };
        let result = completion.result();
        let ended = !has_more(completion);
        if ended {
            record.clear(flag::POLL);
        }
        if record.is(flag::CLOSING) {
            self.close_if_over(conn);
            return None;
        }
        if result < 0 {
            // No memory for the poll; the shard arms it again when it likes. A receive that is out goes on.
            if !record.is(flag::ARMED) || record.is(flag::RECEIVE) {
                return None;
            }
            record.clear(flag::ARMED | flag::PAUSING);
            return Some(Completion::ReceiveStopped { conn, starved: true });
        }
        record.set(flag::READABLE);
        if result & i32::from(libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0 {
            record.set(flag::HANGUP);
        }
        if record.is(flag::ARMED) && !record.is(flag::PAUSING) {
            let descriptor = record.descriptor();
            let receive = !record.is(flag::RECEIVE);
            if receive {
                record.set(flag::RECEIVE);
                record.clear(flag::READABLE);
            }
            if ended {
                record.set(flag::POLL);
            }
            if receive {
                self.drain(conn, descriptor);
            }
            if ended {
                self.poll_input(conn, descriptor);
            }
        }
        None
    }

    /// A receive came back without bytes.
    fn receive_ended(&mut self, conn: ConnKey, result: i32) -> Completion<RecvBuffer> {
        match -result {
            0 => Completion::ReceiveEnded { conn, lost: Lost::EndOfStream },
            libc::ENOBUFS => {
                self.ring.counters.starved += 1;
                Completion::ReceiveStopped { conn, starved: true }
            }
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => Completion::ReceiveStopped { conn, starved: false },
            errno => Completion::ReceiveEnded { conn, lost: Lost::Broken(kind(errno)) },
        }
    }

    fn sent(&mut self, conn: ConnKey, result: i32) -> Yield {
        let Some(record) = self.records.get(conn) else { return self.stale() };
        let Some(frame) = record.frame.take() else { return self.stale() };
        self.holding -= 1;
        self.palette.take_back(frame);
        let finish = record.is(flag::FINISH) && !record.is(flag::CLOSING);
        if finish {
            record.clear(flag::FINISH);
            self.end_stream(conn);
        }
        self.close_if_over(conn);
        Some(Completion::Sent { conn, sent: u32::try_from(result).map_err(|_| kind(-result)) })
    }

    /// Recv mode: a pause did not find its receive. If that is still out it was between two states; try again.
    fn pause_missed(&mut self, conn: ConnKey) -> Yield {
        let record = self.records.get(conn)?;
        if record.is(flag::RECEIVE) && record.is(flag::PAUSING) && !record.is(flag::CLOSING) {
            self.cancel(Token::of_conn(Op::Receive, conn), Op::Pause);
        }
        None
    }

    /// A close did not find one of its connection's requests: the kernel was just about to repeat it, so it was in none
    /// of the places where a cancel looks. It is cancelled again in the next turn. What a cancel has found ends by itself.
    fn cancel_missed(&mut self, conn: ConnKey, result: i32) -> Yield {
        let record = self.records.get(conn)?;
        if record.is(flag::CLOSING) && result == -libc::ENOENT && self.lingering.last() != Some(&conn) {
            self.lingering.push(conn);
        }
        None
    }

    /// A request that yields nothing by itself is over.
    fn over(&mut self, conn: ConnKey, request: u32) -> Yield {
        let Some(record) = self.records.get(conn) else { return self.stale() };
        record.clear(request);
        self.close_if_over(conn);
        None
    }

    pub(super) fn close_if_over(&mut self, conn: ConnKey) {
        if self.records.free_if_over(conn) {
            self.place_is_free();
            self.deferred.push_back(Deferred::Closed(conn));
        }
    }

    pub(super) fn stale(&mut self) -> Yield {
        self.ring.counters.stale += 1;
        None
    }
}

/// The kind of an error number. A request that a close cancelled was aborted by this side.
fn kind(errno: i32) -> io::ErrorKind {
    match errno {
        libc::ECANCELED => io::ErrorKind::ConnectionAborted,
        errno => io::Error::from_raw_os_error(errno).kind(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Duration;

    use io_uring::types::{CancelBuilder, Fixed};
    use io_uring::{opcode, squeue};

    use super::*;
    use crate::id::ShardId;
    use crate::io::bell::Bell;
    use crate::io::uring::{BUFFERS_A_REQUEST, BUFFERS_AT_ONCE, UringConfig};
    use crate::io::{Io, Wait, recv_ring};

    pub const CONN: ConnKey = ConnKey { slot: 3, generation: 2 };
    const STALE: ConnKey = ConnKey { slot: 3, generation: 1 };

    /// A driver with one connection under [`CONN`], and its peer.
    pub fn connected(mode: ReceiveMode) -> (Uring, TcpStream) {
        let mut io = driver(mode, 2);
        let peer = connect(&mut io, CONN);
        (io, peer)
    }

    /// A driver of no connection yet, with so many receive buffers of 64 bytes.
    fn driver(mode: ReceiveMode, buffers: u16) -> Uring {
        let bells = Arc::from([Arc::new(Bell::new().unwrap())]);
        let (listeners, shard) = (Vec::new(), ShardId(0));
        Uring::new(UringConfig {
            table: 4,
            buffers,
            buffer_size: 64,
            mode,
            busy_poll: Duration::ZERO,
            listeners,
            bells,
            shard,
        })
        .unwrap()
    }

    /// Makes one more connection; returns its peer.
    fn connect(io: &mut Uring, conn: ConnKey) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        io.take(TcpStream::connect(listener.local_addr().unwrap()).unwrap()).unwrap();
        let Some(Completion::Accepted(socket)) = next(io) else { panic!("not taken") };
        io.adopt(socket, conn);
        listener.accept().unwrap().0
    }

    /// The next completion, or nothing within a while.
    pub fn next(io: &mut Uring) -> Option<Completion<RecvBuffer>> {
        for _ in 0..5 {
            if let Some(completion) = io.poll() {
                return Some(completion);
            }
            io.wait(Wait::AtMost(Duration::from_millis(20))).unwrap();
        }
        io.poll()
    }

    fn push(io: &mut Uring, entry: squeue::Entry) {
        // SAFETY: the tests push requests that name no memory but the driver's own receive buffers.
        unsafe { io.ring.push(&entry) };
    }

    #[test]
    fn a_completion_of_a_former_connection_finds_nothing() {
        for op in [Op::Receive, Op::Poll, Op::Send, Op::Shutdown, Op::Close, Op::Pause, Op::Cancel] {
            let (mut io, _peer) = connected(ReceiveMode::Recv);
            push(&mut io, opcode::Nop::new().build().user_data(Token::of_conn(op, STALE).0));
            assert!(next(&mut io).is_none(), "{op:?}");
            assert_eq!(
                io.counters().stale,
                u64::from(!matches!(op, Op::Pause | Op::Cancel)),
                "{op:?}: late ones are no surprise"
            );
            io.send_hello();
        }
    }

    #[test]
    fn bytes_of_a_former_connection_reach_nobody_and_their_buffer_comes_back() {
        let (mut io, mut peer) = connected(ReceiveMode::Recv);
        let descriptor = io.records.get(CONN).unwrap().descriptor();
        for round in 1..=5 {
            peer.write_all(b"secret").unwrap();
            let receive = opcode::Recv::new(Fixed(descriptor), std::ptr::null_mut(), 0);
            let receive = receive.buf_group(recv_ring::GROUP).build().flags(squeue::Flags::BUFFER_SELECT);
            push(&mut io, receive.user_data(Token::of_conn(Op::Receive, STALE).0));
            assert!(next(&mut io).is_none());
            assert_eq!(io.counters().stale, round);
        }
        assert_eq!(io.counters().republished, 5, "more than the two there are: each came back");
        if !io.features().bounded_receives {
            return;
        }
        // Nor does what came together with others.
        peer.write_all(&[b's'; 100]).unwrap();
        let receive = opcode::Recv::new(Fixed(descriptor), std::ptr::null_mut(), 128);
        push(&mut io, recv_ring::bounded_receive(receive, 128).user_data(Token::of_conn(Op::Receive, STALE).0));
        assert!(next(&mut io).is_none());
        assert_eq!((io.counters().stale, io.counters().republished), (6, 7));
        io.receive(CONN);
        io.wait(Wait::No).unwrap();
        peer.write_all(b"mine").unwrap();
        let Some(Completion::Received { bytes, .. }) = next(&mut io) else { panic!("nothing") };
        assert_eq!(&*bytes, b"mine");
        assert!(next(&mut io).is_none());
    }

    /// What comes in several buffers at once comes in order, and says once, at its end, whether there will be more.
    #[test]
    fn many_buffers_of_one_completion() {
        let mut io = driver(ReceiveMode::Recv, 4);
        let mut peer = connect(&mut io, CONN);
        io.receive(CONN);
        io.wait(Wait::No).unwrap();
        let sent: Vec<u8> = (0..2_000u32).map(|number| number as u8).collect();
        peer.write_all(&sent).unwrap();
        let mut received = Vec::new();
        while received.len() < sent.len() {
            match next(&mut io).expect("more of it") {
                Completion::Received { conn: CONN, bytes, armed } => {
                    received.extend_from_slice(&bytes);
                    drop(bytes);
                    if !armed {
                        io.receive(CONN);
                    }
                }
                Completion::ReceiveStopped { conn: CONN, starved: true } => io.receive(CONN),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received, sent);
    }

    /// Who sends without end has others served in between, where the kernel can be told so.
    #[test]
    fn a_receive_lets_others_have_their_turn() {
        const OTHER: ConnKey = ConnKey { slot: 2, generation: 1 };
        let mut io = driver(ReceiveMode::Recv, 64);
        let (mut greedy, mut modest) = (connect(&mut io, CONN), connect(&mut io, OTHER));
        io.records.get(CONN).unwrap().set(flag::WIDE);
        io.receive(CONN);
        io.receive(OTHER);
        io.wait(Wait::No).unwrap();
        greedy.write_all(&[0; 60 * 64]).unwrap();
        modest.write_all(b"one message").unwrap();
        let mut before = 0;
        while let Some(completion) = next(&mut io) {
            match completion {
                Completion::Received { conn: CONN, .. } => before += 1,
                Completion::Received { conn: OTHER, .. } => break,
                other => panic!("{other:?}"),
            }
        }
        let most = if io.features().bounded_receives { BUFFERS_AT_ONCE } else { 60 };
        assert!(before <= most, "{before} buffers were filled first, {}", io.features());
    }

    /// Who begins to send brings one buffer, however much it sends, and more once the shard has asked for more.
    #[test]
    fn a_receive_is_little_until_it_was_not_enough() {
        let mut io = driver(ReceiveMode::Recv, 64);
        if !io.features().bounded_receives {
            return;
        }
        let mut peer = connect(&mut io, CONN);
        peer.write_all(&[0; 60 * 64]).unwrap();
        let mut brought = || {
            io.receive(CONN);
            let mut buffers = 0;
            while let Some(completion) = next(&mut io) {
                let Completion::Received { conn: CONN, armed, .. } = completion else { panic!("{completion:?}") };
                buffers += 1;
                if !armed {
                    break;
                }
            }
            assert!(next(&mut io).is_none(), "nobody has asked for more");
            buffers
        };
        assert_eq!([brought(), brought(), brought()], [1, BUFFERS_A_REQUEST, BUFFERS_A_REQUEST]);
    }

    /// A connection's end comes last, also behind all buffers of the completion that ends its receive.
    #[test]
    fn nothing_comes_after_the_end() {
        let mut io = driver(ReceiveMode::Recv, 16);
        let mut peer = connect(&mut io, CONN);
        io.records.get(CONN).unwrap().set(flag::WIDE);
        io.receive(CONN);
        io.wait(Wait::No).unwrap();
        io.records.get(CONN).unwrap().set(flag::CLOSING); // its close was over before
        const BYTES: usize = 8 * 64; // as many buffers as one request brings
        peer.write_all(&[7; BYTES]).unwrap();
        drop(peer);
        let (mut bytes_in, mut closed) = (0, 0);
        while let Some(completion) = next(&mut io) {
            assert_eq!(closed, 0, "{completion:?} comes after the end");
            match completion {
                Completion::Received { bytes, .. } => bytes_in += bytes.len(),
                Completion::Closed { conn: CONN } => closed += 1,
                _ => {}
            }
        }
        assert_eq!((bytes_in, closed), (BYTES, 1));
    }

    #[test]
    fn a_request_that_the_cancel_of_a_close_did_not_find_is_cancelled_again() {
        for mode in [ReceiveMode::Recv, ReceiveMode::Poll] {
            let (mut io, mut peer) = connected(mode);
            io.receive(CONN);
            io.wait(Wait::No).unwrap();
            // A close whose cancel came at the wrong moment.
            let record = io.records.get(CONN).unwrap();
            record.set(flag::CLOSING | flag::CLOSE);
            let descriptor = record.descriptor();
            io.cancel(Token::of_conn(Op::Send, CONN), Op::Cancel);
            let close = opcode::Close::new(Fixed(descriptor)).build();
            push(&mut io, close.user_data(Token::of_conn(Op::Close, CONN).0));
            let mut closed = 0;
            while let Some(completion) = next(&mut io) {
                closed += u32::from(matches!(completion, Completion::Closed { conn: CONN }));
            }
            assert_eq!((closed, io.counters().recancelled), (1, 1), "{mode:?}");
            io.wait(Wait::No).unwrap();
            assert!(io.lingering.is_empty());
            assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
        }
    }

    #[test]
    fn a_pause_that_did_not_find_its_receive_tries_again() {
        let (mut io, mut peer) = connected(ReceiveMode::Recv);
        io.receive(CONN);
        io.wait(Wait::No).unwrap();
        io.records.get(CONN).unwrap().set(flag::PAUSING);
        let miss = opcode::AsyncCancel2::new(CancelBuilder::user_data(u64::MAX)).build();
        push(&mut io, miss.user_data(Token::of_conn(Op::Pause, CONN).0));
        assert!(matches!(next(&mut io), Some(Completion::ReceiveStopped { conn: CONN, starved: false })));
        peer.write_all(b"held back").unwrap();
        assert!(next(&mut io).is_none());
    }

    impl Uring {
        /// Shows that the connection still works.
        fn send_hello(&mut self) {
            let frame = self.palette.share(crate::io::SharedFrame::new(b"hello".to_vec()), 1);
            self.send(CONN, frame, 0);
            assert!(matches!(next(self), Some(Completion::Sent { conn: CONN, sent: Ok(5) })));
        }
    }
}
