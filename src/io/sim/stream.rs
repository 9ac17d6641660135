//! One TCP connection between a simulated client and a shard: both ends and the network between them.
//! Law: bytes arrive in order and once, or the connection ends; the server's end holds no more than its socket buffers.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;

use super::dice::Dice;
use super::faults::Faults;
use crate::io::Lost;

/// What a client knows of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// Connected, as far as the client can see.
    Open,
    /// The server's stream ended: `clean` with a FIN after its last byte, else with a RST.
    ServerClosed {
        /// Whether everything the server sent has arrived.
        clean: bool,
    },
    /// Nobody listened.
    Refused,
    /// The client reset the connection itself.
    Gone,
}

#[derive(Debug)]
pub(super) struct Stream {
    /// Where the client connects from.
    pub peer: SocketAddr,
    /// Through which listening socket.
    pub port: usize,
    pub state: ClientState,
    /// What the client has sent and the server's kernel has not taken yet.
    outbox: VecDeque<u8>,
    /// What has arrived at the client.
    pub inbox: Vec<u8>,
    client_fin: bool,
    stalled: bool,
    stalled_until_ns: u64,
    /// A RST is on its way to the server.
    reset_coming: bool,
    /// Received by the server's kernel, not by the shard.
    pub rx: VecDeque<u8>,
    rx_max: usize,
    rx_fin: bool,
    /// Taken from the shard, not arrived at the client.
    tx: VecDeque<u8>,
    tx_max: usize,
    tx_fin: bool,
    /// The socket's pending error: the first operation that looks gets it, later ones see an ended stream.
    error: Option<ErrorKind>,
    broken: bool,
    closed: bool,
    /// The network broke it: neither the shard nor the client is to blame.
    pub faulted: bool,
    /// For how long the shard had been sending without a pause when it closed the connection under a send.
    pub backlog_ms: u64,
}

impl Stream {
    /// A connection whose socket buffers have two of these sizes.
    pub fn new(peer: SocketAddr, buffers: &[usize], dice: &mut Dice) -> Self {
        let mut socket_buffer = || buffers[dice.below(buffers.len())];
        Self {
            peer,
            port: 0,
            state: ClientState::Open,
            outbox: VecDeque::new(),
            inbox: Vec::new(),
            client_fin: false,
            stalled: false,
            stalled_until_ns: 0,
            reset_coming: false,
            rx: VecDeque::new(),
            rx_max: socket_buffer(),
            rx_fin: false,
            tx: VecDeque::new(),
            tx_max: socket_buffer(),
            tx_fin: false,
            error: None,
            broken: false,
            closed: false,
            faulted: false,
            backlog_ms: 0,
        }
    }

    // The client's side.

    pub fn client_send(&mut self, bytes: &[u8]) {
        assert!(!self.client_fin, "a client sends after its own shutdown");
        if matches!(self.state, ClientState::Open | ClientState::ServerClosed { clean: true }) && !self.broken {
            self.outbox.extend(bytes);
        }
    }

    pub fn client_unsent(&self) -> usize {
        self.outbox.len()
    }

    pub fn client_shutdown(&mut self) {
        self.client_fin = true;
    }

    pub fn client_reset(&mut self) {
        if !matches!(self.state, ClientState::Refused | ClientState::Gone) {
            self.state = ClientState::Gone;
            self.outbox.clear();
            self.reset_coming = !self.broken && !self.closed;
        }
    }

    pub fn client_stall(&mut self, stalled: bool) {
        self.stalled = stalled;
    }

    // The network.

    /// Moves bytes and signals on their way, some of them. Returns whether there was anything to move.
    pub fn carry(&mut self, now_ns: u64, dice: &mut Dice, faults: &Faults) -> bool {
        if dice.chance(faults.stall) {
            self.stalled_until_ns = now_ns + STALLS_NS[dice.below(STALLS_NS.len())];
        }
        if dice.chance(faults.reset) && !self.closed && !self.broken {
            self.fault(dice);
            return true;
        }
        if !self.is_moving(now_ns) {
            return false;
        }
        if dice.coin() {
            self.rise(dice);
        }
        if dice.coin() && self.can_sink(now_ns) {
            self.sink(dice);
        }
        true
    }

    /// Something is on its way, either way.
    pub fn is_moving(&self, now_ns: u64) -> bool {
        self.can_rise() || self.can_sink(now_ns)
    }

    /// Nothing will ever move again.
    pub fn is_over(&self) -> bool {
        self.state != ClientState::Open && (self.closed || self.broken) && !self.reset_coming
    }

    /// When a stalled peer will read what waits for it.
    pub fn resumes_ns(&self) -> Option<u64> {
        (!self.stalled && self.has_for_client()).then_some(self.stalled_until_ns)
    }

    /// Breaks the connection from the middle: both sides find it reset.
    pub fn fault(&mut self, dice: &mut Dice) {
        self.faulted = true;
        let kinds = [ErrorKind::ConnectionReset, ErrorKind::TimedOut, ErrorKind::HostUnreachable];
        self.break_with(kinds[dice.below(kinds.len())], dice);
        self.reset_client();
    }

    fn can_rise(&self) -> bool {
        self.reset_coming
            || !self.broken && (!self.outbox.is_empty() && (self.closed || self.rx_room() > 0) || self.fin_can_rise())
    }

    fn fin_can_rise(&self) -> bool {
        self.client_fin && self.outbox.is_empty() && !self.rx_fin && !self.closed
    }

    fn can_sink(&self, now_ns: u64) -> bool {
        !self.stalled && now_ns >= self.stalled_until_ns && self.has_for_client()
    }

    fn has_for_client(&self) -> bool {
        self.state == ClientState::Open && (!self.tx.is_empty() || self.tx_fin)
    }

    /// Client to server.
    fn rise(&mut self, dice: &mut Dice) {
        let reset = std::mem::take(&mut self.reset_coming);
        if self.broken {
            return;
        }
        if reset {
            return self.break_with(ErrorKind::ConnectionReset, dice);
        }
        if self.closed {
            // Bytes for a socket that nobody has open: the kernel answers with a RST, and what was on its way is lost.
            if !self.outbox.is_empty() {
                self.reset_client();
            }
            return;
        }
        let count = self.outbox.len().min(self.rx_room());
        if count > 0 {
            self.rx.extend(self.outbox.drain(..dice.part_of(count)));
        }
        self.rx_fin |= self.fin_can_rise();
    }

    /// Server to client.
    fn sink(&mut self, dice: &mut Dice) {
        if !self.tx.is_empty() {
            let count = dice.part_of(self.tx.len());
            self.inbox.extend(self.tx.drain(..count));
        }
        if self.tx.is_empty() && self.tx_fin {
            self.state = ClientState::ServerClosed { clean: true };
        }
    }

    fn break_with(&mut self, kind: ErrorKind, dice: &mut Dice) {
        self.broken = true;
        self.error = Some(kind);
        self.tx.clear();
        self.outbox.clear();
        // What was received before a RST can still be read, unless the two arrived the other way round.
        if dice.coin() {
            self.rx.clear();
        }
    }

    fn reset_client(&mut self) {
        self.outbox.clear();
        self.tx.clear();
        if self.state == ClientState::Open {
            self.state = ClientState::ServerClosed { clean: false };
        }
    }

    // The server's kernel.

    /// Whether a receive has something to report.
    pub fn readable(&self) -> bool {
        !self.rx.is_empty() || self.rx_fin || self.broken
    }

    /// Why nothing more can be received, once everything received has been taken.
    pub fn lost(&mut self) -> Option<Lost> {
        if !self.rx.is_empty() {
            return None;
        }
        if let Some(kind) = self.error.take() {
            return Some(Lost::Broken(kind));
        }
        (self.broken || self.rx_fin).then_some(Lost::EndOfStream)
    }

    /// Whether a send has something to report.
    pub fn writable(&self) -> bool {
        self.broken || self.tx_room() > 0
    }

    pub fn tx_room(&self) -> usize {
        self.tx_max - self.tx.len()
    }

    fn rx_room(&self) -> usize {
        self.rx_max - self.rx.len()
    }

    pub fn transmit(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.tx_room() && !self.tx_fin);
        self.tx.extend(bytes);
    }

    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The error a send on a broken connection ends with.
    pub fn send_error(&mut self) -> ErrorKind {
        self.error.take().unwrap_or(ErrorKind::BrokenPipe)
    }

    /// The shard ended its side of the stream.
    pub fn shutdown(&mut self) {
        self.tx_fin = true;
    }

    /// The last descriptor is gone. With bytes unread the kernel answers with a RST and forgets what it still had to
    /// transmit; otherwise it transmits that and a FIN by itself.
    pub fn close(&mut self) {
        self.closed = true;
        if !self.rx.is_empty() {
            self.rx.clear();
            self.reset_client();
        } else if !self.broken {
            self.tx_fin = true;
        }
    }

    /// The listener closed before anyone accepted this connection.
    pub fn abort(&mut self) {
        self.closed = true;
        self.rx.clear();
        self.reset_client();
    }
}

/// Sizes a socket buffer may have unless the harness says otherwise, bytes.
pub(super) const SOCKET_BUFFERS: [usize; 5] = [1, 50, 700, 4096, 65_536];
/// How long a stalled peer may stop reading: 1 ms, 100 ms, 30 s.
const STALLS_NS: [u64; 3] = [1_000_000, 100_000_000, 30_000_000_000];
