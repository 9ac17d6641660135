//! What connections cost in memory and time: one source for the start of a server, its banner, plans and the doctor.
//! Law: every figure says which command measures it; each is for the dearer case where it depends on the peer.

use crate::app::CLIENT_BYTES;
use crate::config::{Config, ReceiveWait};
use crate::conn::{CONN_BYTES, SESSION_BYTES};
use crate::io::listener::NOTSENT_LOWAT_BYTES;

/// A part of what a connection costs in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub what: &'static str,
    /// Bytes; of tables and nodes with what is empty in them on the average.
    pub bytes: u64,
}

const fn part(what: &'static str, bytes: usize) -> Part {
    Part { what, bytes: bytes as u64 }
}

/// The memory contract: what an idle connection costs this process, authenticated and with one subscription. It has no allocation
/// of its own unless its user id is longer than 22 bytes and no UUID, its token names topics, or its session has seen much. `tests/allocations.rs` counts it.
pub const IDLE: [Part; 7] = [
    part("connection with its identity", CONN_BYTES),
    part("slot in the pool", 8),
    part("timer", 12),
    part("driver's record", 12),
    part("session with three events", SESSION_BYTES),
    part("place among the topic's members", 7),
    part("entry in the list of clients", CLIENT_BYTES),
];

/// All parts of the memory contract together, in bytes.
pub const IDLE_CONNECTION_BYTES: usize = {
    let (mut sum, mut at) = (0, 0);
    while at < IDLE.len() {
        sum += IDLE[at].bytes as usize;
        at += 1;
    }
    sum
};
const _: () = assert!(IDLE_CONNECTION_BYTES <= 256, "the memory contract");

/// What one idle connection costs in memory: authenticated, with one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Bytes in the kernel.
    pub kernel_bytes: u64,
    /// Bytes in this process.
    pub user_bytes: u64,
}

impl Cost {
    /// With this configuration on so many shards.
    pub fn idle(config: &Config, shards: usize) -> Self {
        let sum = |parts: Vec<Part>| parts.iter().map(|part| part.bytes).sum();
        Self {
            kernel_bytes: sum(Self::idle_kernel_parts(config, shards)),
            user_bytes: sum(Self::idle_user_parts(config)),
        }
    }

    /// What of it is in this process. Where there is a port with TLS, every connection may be one.
    pub fn idle_user_parts(config: &Config) -> Vec<Part> {
        let tls = has_tls(config).then_some(Part { what: "TLS 1.3", bytes: TLS_BYTES });
        IDLE.into_iter().chain(tls).collect()
    }

    /// What of it is in the kernel.
    pub fn idle_kernel_parts(config: &Config, shards: usize) -> Vec<Part> {
        let waiting = match config.io.wait {
            ReceiveWait::Recv => Part { what: "its receive", bytes: ARMED_RECEIVE_BYTES },
            ReceiveWait::Poll => Part { what: "its poll", bytes: ARMED_POLL_BYTES },
        };
        // Each shard's table has a place for each connection, since any of them may get it.
        let places = Part { what: "a place in each shard's table", bytes: TABLE_PLACE_BYTES * shards as u64 };
        vec![Part { what: "socket", bytes: SOCKET_BYTES }, waiting, places]
    }

    /// Both together.
    pub fn bytes(self) -> u64 {
        self.kernel_bytes + self.user_bytes
    }
}

/// Bytes that the server takes before the first connection.
pub fn fixed_bytes(config: &Config, shards: usize) -> u64 {
    let buffers = config.io.receive_buffers.saturating_mul(config.io.receive_buffer_size.0);
    PROCESS_BYTES.saturating_add((buffers as u64).saturating_mul(shards as u64))
}

/// Whether connections may be encrypted.
pub fn has_tls(config: &Config) -> bool {
    !config.tls.addresses().is_empty()
}

/// What connections send and are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Messages a second of each connection, in both directions together.
    pub rate: f64,
    /// Bytes of a message.
    pub message_bytes: u64,
}

impl Traffic {
    /// Messages of a connection that its peer has not acknowledged yet. One at least: what is published to everybody is on
    /// its way to everybody at once.
    pub fn in_flight(self) -> u64 {
        ((self.rate * ACKNOWLEDGED_AFTER_S).ceil() as u64).max(1)
    }

    /// Bytes of the kernel's for the messages of a connection that are on their way.
    pub fn kernel_bytes(self, tls: bool) -> u64 {
        let record = if tls { TLS_RECORD_BYTES } else { 0 };
        // The kernel takes what is not on its way yet only up to a mark; the rest is this process'.
        let message = self.message_bytes.saturating_add(FRAME_HEAD_BYTES + record);
        self.in_flight().saturating_mul(message.min(KERNEL_TAKES_BYTES).saturating_add(PACKET_BYTES))
    }

    /// Pages of `net.ipv4.tcp_mem` for them. A socket takes whole pages.
    pub fn pages(self, tls: bool, page_bytes: u64) -> u64 {
        self.kernel_bytes(tls).div_ceil(page_bytes.max(1))
    }

    /// Bytes of this process' for `connections` that are busy so, beside what they take idle.
    pub fn user_bytes(self, connections: u64, config: &Config) -> u64 {
        let each = |bytes: u64| connections.saturating_mul(bytes);
        let too_large_to_send = self.message_bytes.saturating_sub(KERNEL_TAKES_BYTES);
        let unsent = each(too_large_to_send.saturating_mul(self.in_flight()));
        // What fits into a receive buffer needs none of its own.
        let is_cut = self.message_bytes > config.io.receive_buffer_size.0 as u64;
        let arriving = if is_cut { each(self.message_bytes) } else { 0 };
        each(LIMITER_BYTES + QUEUE_BYTES)
            .saturating_add(unsent.min(config.outbound.max_total_bytes.0 as u64))
            .saturating_add(arriving.min(config.limits.unfinished_bytes.0 as u64))
    }

    /// Cores that `connections` keep busy, in hundredths.
    pub fn core_percent(self, connections: u64, tls: bool) -> u64 {
        let message_ns = if tls { TLS_MESSAGE_NS } else { MESSAGE_NS };
        (connections as f64 * self.rate * message_ns / 1e7).ceil() as u64
    }
}

/// Bytes of this process' for `connections` when every bound on what waits is reached: messages to slow readers, messages
/// that have not arrived whole, and histories of sessions.
pub fn bounds_bytes(connections: u64, config: &Config) -> u64 {
    let history = connections.saturating_mul(u64::from(config.websocket.max_session_history) * EVENT_BYTES);
    let (unsent, unfinished) = (config.outbound.max_total_bytes.0 as u64, config.limits.unfinished_bytes.0 as u64);
    history.saturating_add(unsent).saturating_add(unfinished)
}

/// A socket of TCP with its inode, file, name, and the security labels of file and inode: what grows in `/proc/slabinfo`, with
/// its sizes there (Linux 6.18), when connections come.
const SOCKET_BYTES: u64 = 2368 + 832 + 192 + 192 + 24 + 32;
/// A multishot receive that waits: its request, the message it is to fill, its polls, and its place in the table.
const ARMED_RECEIVE_BYTES: u64 = 256 + 512 + 96 + 64 + 32;
/// A multishot poll that waits, and its place in the table.
const ARMED_POLL_BYTES: u64 = 256 + 32;
/// A pointer in a ring's table of descriptors.
const TABLE_PLACE_BYTES: u64 = 8;
/// What TLS 1.3 adds to an idle connection's user memory: `measure -- tls` finds it (1.2: 256).
const TLS_BYTES: u64 = 1_081;
/// The program itself, with the rings of a few shards.
const PROCESS_BYTES: u64 = 16 << 20;

/// A round trip around half the world, or a delayed acknowledgement and a short one (RFC 1122 §4.2.3.2).
const ACKNOWLEDGED_AFTER_S: f64 = 0.2;
/// The most that a server's frame has before its payload (RFC 6455 §5.2).
const FRAME_HEAD_BYTES: u64 = 10;
/// Header, content type and tag of a TLS record.
const TLS_RECORD_BYTES: u64 = 5 + 1 + 16;
/// Of a packet until it is acknowledged: the kernel's record of it, twice for what may be sent again, and its head.
const PACKET_BYTES: u64 = 512 + 576;
const KERNEL_TAKES_BYTES: u64 = NOTSENT_LOWAT_BYTES as u64;
/// The token buckets of `limits.messages` and `limits.bytes`.
const LIMITER_BYTES: u64 = 32;
/// The keys of queued frames that an outbound queue keeps room for, and what the allocator adds.
const QUEUE_BYTES: u64 = 16 * 4 + 8;
/// An event of a session's history.
const EVENT_BYTES: u64 = 32;

/// Server CPU for an echo of 64 bytes over 10,000 connections, in nanoseconds, on two shared AMD EPYC cores (`measure -- echo`).
const MESSAGE_NS: f64 = 10_000.0;
/// The same over 1,000 connections with TLS (`measure -- tls`).
const TLS_MESSAGE_NS: f64 = 12_100.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{BACKLOG_BYTES, GREETING_BYTES, INTAKE_BYTES};
    use crate::ws::deflate::INFLATER_BYTES;

    fn config(yaml: &str) -> Config {
        Config::parse(&format!("auth: {{required: false}}\n{yaml}")).unwrap()
    }

    /// What comes to it while it is busy, each in an allocation of its own that goes with the need for it.
    const ACTIVE: [Part; 4] = [
        part("greeting, until it is upgraded", GREETING_BYTES),
        part("intake: a message that is not whole, rates, what is held", INTAKE_BYTES),
        part("backlog behind a send", BACKLOG_BYTES),
        part("window of compressed messages, with `client_context_takeover`", INFLATER_BYTES),
    ];

    const TLS: &str = "tls: {listen: 127.0.0.1:0, cert_file: a, key_file: b}";

    #[test]
    fn an_idle_connection() {
        let check = |yaml: &str, shards: usize, kernel_bytes: u64, user_bytes: u64| {
            assert_eq!(Cost::idle(&config(yaml), shards), Cost { kernel_bytes, user_bytes }, "{yaml}");
        };
        let user = IDLE_CONNECTION_BYTES as u64;
        check("", 2, 4616, user);
        check("io: {wait: poll}", 2, 3944, user);
        check("", 64, 5112, user);
        check(TLS, 2, 4616, user + 1081);
    }

    /// The guide's tables name every part with its bytes, and no other bytes.
    #[test]
    fn the_guide_has_the_contract() {
        let guide = include_str!("../guide/memory.md");
        let both = [config("io: {wait: recv}"), config(&format!("io: {{wait: poll}}\n{TLS}"))];
        let parts =
            both.iter().flat_map(|config| [Cost::idle_user_parts(config), Cost::idle_kernel_parts(config, 1)].concat());
        for Part { what, bytes } in parts.chain(ACTIVE) {
            let row = format!("| {what} | {bytes} |");
            assert!(guide.contains(&row), "src/guide/memory.md has no row that begins `{row}`");
        }
        let sum = format!("| together | {IDLE_CONNECTION_BYTES} |");
        assert!(guide.contains(&sum), "src/guide/memory.md has no row that begins `{sum}`");
        let of_session = format!(
            "A session takes {SESSION_BYTES} bytes beside its connection, which **{IDLE_CONNECTION_BYTES} bytes**"
        );
        assert!(include_str!("../guide/sessions.md").contains(&of_session), "src/guide/sessions.md: `{of_session}`");
    }

    #[test]
    fn what_is_on_its_way() {
        let check = |rate: f64, message_bytes: u64, tls: bool, kernel: u64, pages: u64| {
            let traffic = Traffic { rate, message_bytes };
            assert_eq!((traffic.kernel_bytes(tls), traffic.pages(tls, 4096)), (kernel, pages), "{traffic:?}");
        };
        check(0.0, 128, false, 1226, 1); // one message to everybody
        check(5.0, 128, false, 1226, 1);
        check(5.0, 128, true, 1248, 1);
        check(50.0, 128, false, 12_260, 3);
        check(1.0, 1_000_000, false, 16_384 + 1088, 5); // the rest waits in this process
        check(f64::MAX, u64::MAX, true, u64::MAX, u64::MAX.div_ceil(4096));
    }

    #[test]
    fn what_waits_in_this_process_is_bounded_by_the_configuration() {
        let bounds = "outbound: {max_total_bytes: 64MiB}\nlimits: {unfinished_bytes: 32MiB}";
        let user = |connections, message_bytes| {
            Traffic { rate: 1.0, message_bytes }.user_bytes(connections, &config(bounds)) - 104 * connections
        };
        assert_eq!(user(1_000, 128), 0);
        assert_eq!(user(10, 10_000), 100_000);
        assert_eq!(user(10, 20_000), 200_000 + 36_160);
        assert_eq!(user(100_000, 100_000), 96 << 20);
        assert_eq!(bounds_bytes(1_000, &config(bounds)), (96 << 20) + 1_000 * 100 * 32);
    }

    #[test]
    fn cores() {
        let traffic = Traffic { rate: 2.0, message_bytes: 64 };
        assert_eq!((traffic.core_percent(10_000, false), traffic.core_percent(10_000, true)), (20, 25));
    }
}
