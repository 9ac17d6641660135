//! A driver under test, and what a shard would know beside it.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidewheel::id::{ConnKey, ShardId};
use tidewheel::io::bell::Bell;
use tidewheel::io::listener::listen;
use tidewheel::io::uring::{ReceiveMode, Uring, UringConfig};
use tidewheel::io::{Completion, Io, RecvBuffer, SharedFrame, Wait};

pub const BOTH: [ReceiveMode; 2] = [ReceiveMode::Recv, ReceiveMode::Poll];
pub const ANY_PORT: &str = "127.0.0.1:0";
/// How long anything may take before a test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Server {
    pub io: Uring,
    pub address: SocketAddr,
    admitted: u32,
}

impl Server {
    pub fn new(mode: ReceiveMode) -> Self {
        Self::sized(mode, 64, 64, 1024)
    }

    /// One that polls for so long before it sleeps.
    pub fn polling(mode: ReceiveMode, busy_poll: Duration) -> Self {
        Self::made(mode, 64, 64, 1024, busy_poll)
    }

    pub fn sized(mode: ReceiveMode, table: u32, buffers: u16, buffer_size: u32) -> Self {
        Self::made(mode, table, buffers, buffer_size, Duration::ZERO)
    }

    fn made(mode: ReceiveMode, table: u32, buffers: u16, buffer_size: u32, busy_poll: Duration) -> Self {
        let listeners = listen(ANY_PORT.parse().unwrap(), 1, super::USER_TIMEOUT).unwrap();
        let address = listeners[0].local_addr().unwrap();
        let bells = Arc::from([Arc::new(Bell::new().unwrap())]);
        let config = UringConfig { table, buffers, buffer_size, mode, busy_poll, listeners, bells, shard: ShardId(0) };
        let mut io = Uring::new(config).unwrap();
        io.accept();
        Self { io, address, admitted: 0 }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The next completion.
    #[track_caller]
    pub fn next(&mut self) -> Completion<RecvBuffer> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(completion) = self.io.poll() {
                return completion;
            }
            assert!(Instant::now() < deadline, "no completion came");
            self.io.wait(Wait::AtMost(PATIENCE)).unwrap();
        }
    }

    /// What comes within a short while, where nothing is expected.
    pub fn stray(&mut self) -> Option<Completion<RecvBuffer>> {
        let deadline = Instant::now() + Duration::from_millis(50);
        while Instant::now() < deadline {
            self.io.wait(Wait::AtMost(Duration::from_millis(10))).unwrap();
            if let Some(completion) = self.io.poll() {
                return Some(completion);
            }
        }
        None
    }

    /// Admits the next newcomer; slots count up from 0.
    #[track_caller]
    pub fn admit(&mut self) -> ConnKey {
        match self.next() {
            Completion::Accepted(socket) => {
                let conn = ConnKey { slot: self.admitted, generation: 1 };
                self.admitted += 1;
                self.io.adopt(socket, conn);
                conn
            }
            other => panic!("expected a newcomer: {other:?}"),
        }
    }

    /// A client and its connection, receiving.
    #[track_caller]
    pub fn pair(&mut self) -> (TcpStream, ConnKey) {
        let client = self.connect();
        let conn = self.admit();
        self.io.receive(conn);
        (client, conn)
    }

    pub fn send(&mut self, conn: ConnKey, bytes: &[u8]) {
        let frame = self.io.palette().share(SharedFrame::new(bytes.to_vec()), 1);
        self.io.send(conn, frame, 0);
        // The driver's own hold keeps the frame until the send is over.
        self.io.palette().release(frame);
    }

    /// Receives until `len` bytes are there, whatever interrupts.
    #[track_caller]
    pub fn collect(&mut self, conn: ConnKey, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            match self.next() {
                Completion::Received { conn: from, bytes, armed } => {
                    assert_eq!(from, conn);
                    all.extend_from_slice(&bytes);
                    drop(bytes);
                    if !armed {
                        self.io.receive(conn);
                    }
                }
                Completion::ReceiveStopped { .. } => {
                    self.io.wait(Wait::No).unwrap();
                    self.io.receive(conn);
                }
                other => panic!("after {} of {len} bytes: {other:?}", all.len()),
            }
        }
        all
    }

    /// Closes, and returns what still came; asserts that `Closed` is last and comes once.
    #[track_caller]
    pub fn close(&mut self, conn: ConnKey) -> Vec<Completion<RecvBuffer>> {
        self.io.close(conn);
        let mut before = Vec::new();
        loop {
            match self.next() {
                Completion::Closed { conn: closed } => {
                    assert_eq!(closed, conn);
                    break;
                }
                other => before.push(other),
            }
        }
        let stray = self.stray();
        assert!(stray.is_none(), "after Closed: {stray:?}");
        before
    }
}

/// Bytes that show a swap, a gap and a repetition.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
