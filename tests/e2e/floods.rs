//! Peers that send what costs much and says little, as fast as they can.
//! Law: whoever is over a bound is told so and ended, what it sent meanwhile was read up to a bound, and its neighbour is served.

use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::json;
use tidewheel::metrics::{CloseReason, ErrorCode};

use super::lifecycle::narrow;
use super::raw::{self, BINARY, CLOSE, FIN, PING, PONG, Raw, TEXT, masked};
use super::server::Server;

/// Frames that bring no message count as messages, as far as they could flood.
#[test]
fn frames_without_a_message_have_the_rate_of_messages() {
    let server = Server::start("limits: {messages: {per_second: 1, burst: 30}, bytes: null}");
    // Over the rate, and not for long enough to be closed.
    let allowed = 30 + 150;
    let check = |name: &str, begin: &[u8], frame: &[u8], is_counted: bool| {
        let mut raw = server.raw_open();
        raw.write(begin);
        raw.write(&frame.repeat(allowed));
        raw.write(&masked(FIN | PING, b"still here"));
        while raw.until(PONG).payload != b"still here" {}
        raw.write(&frame.repeat(100));
        if is_counted {
            raw.until(TEXT);
            assert_eq!(raw.until(CLOSE).payload[..2], 4505u16.to_be_bytes(), "{name}");
            raw.rest();
        } else {
            raw.write(&masked(FIN | PING, b"and now"));
            while raw.until(PONG).payload != b"and now" {}
        }
    };
    let before = server.closed(CloseReason::RateLimit);
    check("pings", b"", &masked(FIN | PING, b"x"), true);
    check("pongs that nobody asked for", b"", &masked(FIN | PONG, b"x"), true);
    check("empty fragments", &masked(TEXT, b""), &masked(0, b""), true);
    check("short fragments", &masked(BINARY, b""), &masked(0, &[b' '; 125]), true);
    check("fragments that carry something", &masked(TEXT, b""), &masked(0, &[b' '; 126]), false);
    check("empty messages", b"", &masked(FIN | TEXT, b""), true);
    super::until("the counts", || server.closed(CloseReason::RateLimit) == before + 5);
    assert!(server.sum(|shard| &shard.errors[ErrorCode::RateLimited as usize]) > 150);
    server.rest();
}

/// Who is being closed and sends on is read no further than to the end of what may have been on its way.
#[test]
fn who_sends_on_while_it_is_closed_is_not_read_for_ever() {
    let yaml = "auth: {secret: a-secret-of-32-bytes-for-the-tests}\nio: {receive_buffers: 16}\n\
                websocket: {max_message_size: 64KiB, ping_interval_seconds: 0, close_timeout: 2s}";
    let check = |end: &dyn Fn(&mut Raw), reason: CloseReason, most: u64| {
        let server = Server::build(1, yaml, |builder| builder);
        let mut raw = server.raw();
        end(&mut raw);
        let flood = masked(FIN | PING, &[0; 125]).repeat(1000);
        for _ in 0..1000 {
            raw.write(&flood);
        }
        super::until("it to be gone", || server.active() == 0);
        let read = server.sum(|shard| &shard.bytes_in);
        assert!(read < most, "{read} bytes were read of who was being closed: {reason:?}");
        assert_eq!(server.closed(reason), 1);
        server.rest();
    };
    check(&|raw| raw.write(b"GET / HTTP/1.1\r\n\r\n"), CloseReason::BadHandshake, 256 * 1024);
    let upgraded = |raw: &mut Raw, frame: &[u8]| {
        raw.upgrade("/ws");
        raw.write(frame);
    };
    check(&|raw| upgraded(raw, &[0xff, 0x80, 0, 0, 0, 0]), CloseReason::Protocol, 256 * 1024);
    let bad_token = json!({"type": "authenticate", "payload": {"token": "x"}}).to_string();
    check(&|raw| upgraded(raw, &raw::text(&bad_token)), CloseReason::AuthFailed, 512 * 1024);
    let mistakes = raw::text("no JSON").repeat(60);
    check(&|raw| upgraded(raw, &mistakes), CloseReason::Errors, 256 * 1024);
}

/// However many begin messages and do not end them, the server holds no more than it may; and it is not the small ones that go.
#[test]
fn unfinished_messages_of_all_are_bounded() {
    let server = Server::build(1, "limits: {unfinished_bytes: 1MiB, messages: null, bytes: null}", |builder| builder);
    let begin = |first: &[u8], of: usize| {
        let mut raw = server.raw_open();
        let whole = masked(FIN | TEXT, &vec![b' '; of]);
        let header = whole.len() - of;
        raw.write(&[&whole[..header], first].concat());
        (raw, whole[header..].to_vec())
    };
    let (mut small, rest) = begin(b"", 400);
    small.write(&rest[..100]);
    let mut large: Vec<Raw> = (0..12)
        .map(|number| {
            let (mut raw, rest) = begin(b"", 300_000);
            raw.write(&rest[..299_000]);
            // One after the other, so that none is closed for what all of them send at once.
            super::until("it to be read or closed", || {
                let ended = server.closed(CloseReason::Overload);
                server.sum(|shard| &shard.bytes_in) >= 299_000 * (number + 1 - ended)
            });
            raw
        })
        .collect();
    super::until("the surplus to be closed", || server.closed(CloseReason::Overload) >= 12 - 3);
    assert!(server.sum(|shard| &shard.inbound_bytes) <= 1024 * 1024 + 64 * 1024);
    small.write(&rest[100..]);
    assert_eq!(small.json()["payload"]["code"], "invalid_message", "the small one is served");
    let closed = large.iter_mut().map(|raw| {
        raw.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut head = [0; 512];
        std::io::Read::read(&mut raw.stream, &mut head)
            .is_ok_and(|count| head[..count].windows(4).any(|at| at == b"1013"))
    });
    assert!(closed.filter(|&closed| closed).count() >= 9, "they are told so");
    drop((small, large));
    super::until("everybody to be gone", || server.active() == 0);
    assert_eq!(server.sum(|shard| &shard.inbound_bytes), 0);
    server.rest();
}

/// However many ask and do not read, what waits for them together is bounded, and comes when they do.
#[test]
fn replies_that_wait_for_all_are_bounded() {
    const CLIENTS: usize = 30;
    const REPLIES: usize = 60;
    let yaml = "outbound: {max_total_bytes: 2MiB, max_age: 1h}\nlimits: {messages: null, bytes: null}\n\
                websocket: {idle_timeout_seconds: 0, ping_interval_seconds: 0}";
    let server = Server::build(1, yaml, |builder| builder);
    let mut greedy: Vec<Raw> = (0..CLIENTS).map(|_| narrow(server.address)).collect();
    // Each could make a megabyte wait.
    for raw in &mut greedy {
        for number in 0..100 {
            let topic = format!("{number}.{}", "t".repeat(240));
            raw.text(&json!({"type": "subscribe", "payload": {"topic": topic}}).to_string());
            raw.json();
        }
    }
    for raw in &mut greedy {
        raw.write(&raw::text(r#"{"type":"list_subscriptions"}"#).repeat(REPLIES));
    }
    let mut received = 0;
    super::until("the server to stop reading", || {
        let before = std::mem::replace(&mut received, server.sum(|shard| &shard.bytes_in));
        thread::sleep(Duration::from_millis(50));
        received > 0 && received == before
    });
    let waiting = server.sum(|shard| &shard.frame_bytes);
    // Beyond the bound a reply of each.
    assert!(waiting < 2 * 1024 * 1024 + CLIENTS as u64 * 30_000, "{waiting} bytes wait");
    for raw in &mut greedy {
        for _ in 0..REPLIES {
            assert_eq!(raw.json()["type"], "subscriptions");
        }
    }
    drop(greedy);
    server.rest();
}

/// Topics, clients and keys are found by hashes that no client can foresee: in each process by other ones.
#[test]
fn hashes_of_names_are_keyed_anew_in_each_process() {
    let hash = ahash::RandomState::default().hash_one("name").to_string();
    let mut child = Command::new(std::env::current_exe().unwrap());
    let arguments = ["--exact", "floods::hashed_child", "--ignored", "--nocapture"];
    let other = String::from_utf8(child.args(arguments).output().unwrap().stdout).unwrap();
    let other = other.split("hashed to ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a hash");
    assert_ne!(hash, other);
}

#[test]
#[ignore = "runs as a child of the test of hashes"]
fn hashed_child() {
    use std::io::Write;
    let hash = ahash::RandomState::default().hash_one("name");
    writeln!(std::io::stdout(), "hashed to {hash} ").unwrap();
}
