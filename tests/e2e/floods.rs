//! Peers that send what costs much and says little, as fast as they can.
//! Law: whoever is over a bound is told so and ended, what it sent meanwhile was read up to a bound, and its neighbour is served.

use serde_json::json;
use tidewheel::metrics::{CloseReason, ErrorCode};

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
    let check = |end: &dyn Fn(&mut Raw), reason: CloseReason| {
        let server = Server::build(1, yaml, |builder| builder);
        let mut raw = server.raw();
        end(&mut raw);
        let flood = masked(FIN | PING, &[0; 125]).repeat(1000);
        for _ in 0..1000 {
            raw.write(&flood);
        }
        super::until("it to be gone", || server.active() == 0);
        let read = server.sum(|shard| &shard.bytes_in);
        assert!(read < 512 * 1024, "{read} bytes were read of who was being closed: {reason:?}");
        assert_eq!(server.closed(reason), 1);
        server.rest();
    };
    check(&|raw| raw.write(b"GET / HTTP/1.1\r\n\r\n"), CloseReason::BadHandshake);
    let upgraded = |raw: &mut Raw, frame: &[u8]| {
        raw.upgrade("/ws");
        raw.write(frame);
    };
    check(&|raw| upgraded(raw, &[0xff, 0x80, 0, 0, 0, 0]), CloseReason::Protocol);
    let bad_token = json!({"type": "authenticate", "payload": {"token": "x"}}).to_string();
    check(&|raw| upgraded(raw, &raw::text(&bad_token)), CloseReason::AuthFailed);
}
