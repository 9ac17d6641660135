//! How connections live and end: deadlines, slow readers, oversized messages, and the closing handshake.

use std::io::Read;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tidewheel::Context;
use tidewheel::metrics::{CloseReason, Drop};

use super::raw::{self, BINARY, CLOSE, FIN, PING, PONG, Raw, TEXT};
use super::server::Server;

#[test]
fn idle() {
    let server = Server::start("websocket: {idle_timeout_seconds: 1, ping_interval_seconds: 0}");
    let mut client = server.connect();
    client.quiet();
    client.parted(4001, true);
    assert_eq!(server.closed(CloseReason::Idle), 1);
    server.rest();
}

/// A subscriber that only listens is in use as long as there is something to hear.
#[test]
fn who_receives_is_not_idle() {
    let server = Server::start("websocket: {idle_timeout_seconds: 2, ping_interval_seconds: 0}");
    // A machine that stands still for as long as the timeout proves nothing: try again.
    for _ in 0..5 {
        let (mut publisher, mut subscriber) = server.connect_across();
        subscriber.subscribe("t");
        let (start, mut last, mut pause) = (Instant::now(), Instant::now(), Duration::ZERO);
        let mut number = 0;
        while start.elapsed() < Duration::from_secs(4) && pause < Duration::from_secs(1) {
            assert_eq!(publisher.publish("t", json!(number)).0, 1, "the subscriber is gone after {number} messages");
            assert_eq!(subscriber.data("t"), number);
            number += 1;
            pause = pause.max(last.elapsed());
            last = Instant::now();
            thread::sleep(Duration::from_millis(50));
        }
        if pause < Duration::from_secs(1) {
            // And once there is nothing more, it is idle.
            subscriber.parted(4001, true);
            return;
        }
    }
    panic!("this machine stands still");
}

#[test]
fn pings_of_the_server() {
    let server = Server::start("websocket: {ping_interval_seconds: 1, pong_timeout: 200ms}");
    // Who answers stays, through more than one round.
    let mut raw = server.raw_open();
    for _ in 0..3 {
        let ping = raw.until(PING);
        raw.frame(PONG, &ping.payload);
    }
    raw.text(r#"{"type":"ping","id":"still here"}"#);
    assert_eq!(raw.json()["reply_to"], "still here");
    drop(raw);
    // Who does not is closed.
    let mut raw = server.raw_open();
    raw.until(PING);
    let disconnect = raw.json();
    assert_eq!((&disconnect["type"], &disconnect["payload"]["code"]), (&json!("disconnect"), &json!(4002)));
    assert_eq!(raw.until(CLOSE).payload[..2], 4002u16.to_be_bytes());
    assert_eq!(raw.next(), None);
    super::until("the count", || server.closed(CloseReason::NoPong) == 1);
    server.rest();
}

/// A connection that was not read from for a while is looked after again afterwards.
#[test]
fn pings_go_on_after_a_pause() {
    let yaml = "websocket: {idle_timeout_seconds: 0, ping_interval_seconds: 1, pong_timeout: 200ms}";
    let server = Server::build(1, yaml, |builder| {
        builder.route("rest", async |_: Context, _: serde::de::IgnoredAny| {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            Ok(())
        })
    });
    let mut raw = server.raw_open();
    // More than a connection may have waiting: the rest is not read until they are done.
    let requests: Vec<u8> = (0..40).flat_map(|id| raw::text(&format!(r#"{{"type":"rest","id":{id}}}"#))).collect();
    raw.write(&requests);
    let mut acks = 0;
    while acks < 40 {
        let frame = raw.next().expect("an ack");
        match frame.first & 0xf {
            PING => raw.frame(PONG, &frame.payload),
            _ => acks += 1,
        }
    }
    // From now on it is silent.
    raw.until(PING);
    assert_eq!(raw.json()["payload"]["code"], 4002);
    drop(raw);
    server.rest();
}

#[test]
fn pings_of_the_client() {
    let server = Server::start("");
    let mut raw = server.raw_open();
    for payload in [&b""[..], b"hello", &[0xff; 125]] {
        raw.frame(PING, payload);
        let pong = raw.next().unwrap();
        assert_eq!((pong.first, &pong.payload[..]), (FIN | PONG, payload));
    }
    // A pong that nobody asked for is no mistake.
    raw.frame(PONG, b"unasked");
    raw.text(r#"{"type":"ping","id":1}"#);
    assert_eq!(raw.json()["reply_to"], 1);
    // In the middle of a fragmented message it is answered at once.
    raw.write(&raw::masked(TEXT, br#"{"type":"#));
    raw.frame(PING, b"between");
    assert_eq!(raw.next().unwrap().payload, b"between");
    raw.write(&raw::masked(FIN, br#""ping","id":2}"#));
    assert_eq!(raw.json()["reply_to"], 2);
}

/// A client with little room in its kernel, so that it is slow soon.
pub fn narrow(address: SocketAddr) -> Raw {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut raw = Raw::over(socket.into());
    raw.upgrade("/ws");
    raw
}

#[test]
fn a_slow_consumer_sees_a_prefix_and_costs_nobody_anything() {
    let server =
        Server::start("outbound: {max_bytes: 64KiB}\nwebsocket: {close_timeout: 60s, ping_interval_seconds: 0}");
    let (mut publisher, mut neighbour) = server.connect_across();
    neighbour.subscribe("t");
    let mut slow = narrow(server.address);
    slow.text(r#"{"type":"subscribe","payload":{"topic":"t"}}"#);
    assert_eq!(slow.json()["type"], "ack");

    let padding = "x".repeat(16 * 1024);
    let dropped = || server.sum(|shard| &shard.dropped[Drop::Disconnect as usize]);
    let mut receipts = Vec::new();
    while dropped() == 0 {
        let number = receipts.len();
        assert!(number < 10_000, "nobody is slow here");
        receipts.push(publisher.publish("t", json!([number, padding])));
        assert_eq!(neighbour.data("t")[0], number, "the neighbour gets everything, in order");
    }
    // The receipt told of it: the last publish matched two and was queued for one.
    assert_eq!(receipts.pop(), Some((2, 1, 1)));
    assert!(receipts.iter().all(|&receipt| receipt == (2, 2, 0)));
    assert_eq!(publisher.publish("t", json!(["after"])), (1, 1, 0));
    assert_eq!(neighbour.data("t")[0], "after");

    // All that was said to be queued arrives, then the reason, then nothing.
    for number in 0..receipts.len() {
        assert_eq!(slow.json()["payload"]["data"][0], number);
    }
    let disconnect = slow.json();
    assert_eq!((&disconnect["type"], &disconnect["payload"]["code"]), (&json!("disconnect"), &json!(4008)));
    assert_eq!(disconnect["payload"]["reconnect"], true);
    assert_eq!(slow.until(CLOSE).payload[..2], 4008u16.to_be_bytes());
    slow.write(&raw::close(4008));
    assert_eq!(slow.next(), None);
    neighbour.close();
    publisher.close();
    assert_eq!(server.closed(CloseReason::SlowConsumer), 1);
    server.rest();
}

#[test]
fn a_slow_consumer_that_never_reads_is_dropped() {
    let server = Server::start("outbound: {max_bytes: 64KiB, max_age: 300ms}\nwebsocket: {close_timeout: 300ms}");
    let mut publisher = server.connect();
    let mut slow = narrow(server.address);
    slow.text(r#"{"type":"subscribe","payload":{"topic":"t"}}"#);
    assert_eq!(slow.json()["type"], "ack");
    // By size or by age, whichever comes first.
    let padding = "x".repeat(16 * 1024);
    super::until("the slow consumer to be gone", || {
        publisher.publish("t", json!(padding));
        server.closed(CloseReason::SlowConsumer) == 1
    });
    assert_eq!(publisher.publish("t", json!(0)).0, 0);
    publisher.close();
    server.rest();
}

/// A client that asks and asks and does not read: its requests wait in its own kernel, not in the server.
#[test]
fn who_does_not_read_replies_is_not_read_from() {
    let server = Server::start(
        "outbound: {max_bytes: 64KiB, max_age: 1h}\nwebsocket: {idle_timeout_seconds: 0, ping_interval_seconds: 0}",
    );
    let mut neighbour = server.connect();
    let mut greedy = narrow(server.address);
    let (count, padding) = (100_000, " ".repeat(200));
    let mut writer = greedy.stream.try_clone().unwrap();
    let wrote = thread::spawn(move || {
        let request = |id: usize| raw::text(&format!(r#"{{"type":"ping",{padding}"id":{id}}}"#));
        for ids in (0..count).collect::<Vec<_>>().chunks(1000) {
            let requests: Vec<u8> = ids.iter().flat_map(|&id| request(id)).collect();
            std::io::Write::write_all(&mut writer, &requests).unwrap();
        }
    });
    let mut received = 0;
    super::until("the server to stop reading", || {
        let before = std::mem::replace(&mut received, server.sum(|shard| &shard.bytes_in));
        thread::sleep(Duration::from_millis(50));
        received > 0 && received == before
    });
    assert!(!wrote.is_finished(), "the server has read everything");
    neighbour.quiet();
    // With a window that small the kernel may wait for a timer of 200 ms before each segment.
    SockRef::from(&greedy.stream).set_recv_buffer_size(1 << 20).unwrap();
    for id in 0..count {
        assert_eq!(greedy.json()["reply_to"], id);
    }
    wrote.join().unwrap();
    drop(greedy);
    neighbour.close();
    server.rest();
}

#[test]
fn messages_too_big() {
    let server = Server::start("websocket: {max_message_size: 1000B}\necho_path: /echo");
    let mut neighbour = server.connect();
    // At the limit, whole and in pieces.
    let mut raw = server.raw();
    raw.upgrade("/echo");
    raw.frame(BINARY, &[7; 1000]);
    assert_eq!(raw.until(BINARY).payload, [7; 1000]);
    raw.write(&raw::masked(BINARY, &[7; 500]));
    raw.write(&raw::masked(FIN, &[7; 500]));
    assert_eq!(raw.until(BINARY).payload, [7; 1000]);
    // One byte over, as soon as it is declared: the payload never comes.
    let whole = raw::masked(FIN | BINARY, &[7; 1001]);
    raw.write(&whole[..8]);
    assert_eq!(raw.closed(), 1009);
    // The longest length there is.
    let mut raw = server.raw_open();
    raw.write(&[FIN | TEXT, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(raw.closed(), 1009);
    // While it arrives, in fragments that are small enough each; and the rest of it does no harm.
    let mut raw = server.raw_open();
    raw.write(&raw::masked(TEXT, &[b' '; 400]));
    raw.write(&raw::masked(0, &[b' '; 400]));
    raw.write(&raw::masked(0, &[b' '; 400]));
    raw.write(&raw::masked(FIN, &[b' '; 100_000]));
    assert_eq!(raw.closed(), 1009);
    assert_eq!(server.closed(CloseReason::TooBig), 0, "counted at the end");
    neighbour.quiet();
    neighbour.close();
    super::until("the counts", || server.closed(CloseReason::TooBig) == 3);
    server.rest();
}

#[test]
fn close_handshakes_that_the_client_begins() {
    let server = Server::start("");
    let check = |payload: &[u8], answer: u16| {
        let mut raw = server.raw_open();
        raw.frame(CLOSE, payload);
        assert_eq!(raw.closed(), answer, "{payload:?}");
    };
    check(b"", 1000);
    check(&1000u16.to_be_bytes(), 1000);
    check(&[&3001u16.to_be_bytes()[..], b"going"].concat(), 3001);
    check(&4999u16.to_be_bytes(), 4999);
    // Broken ones.
    check(b"\x03", 1002);
    check(&1005u16.to_be_bytes(), 1002);
    check(&999u16.to_be_bytes(), 1002);
    check(&2999u16.to_be_bytes(), 1002);
    check(&5000u16.to_be_bytes(), 1002);
    check(b"\x03\xe8\xff", 1007);
    super::until("the counts", || server.closed(CloseReason::Peer) == 4 && server.closed(CloseReason::Protocol) == 6);
    server.rest();
}

#[test]
fn requests_before_a_close_frame_are_answered() {
    let server = Server::start("");
    let (mut here, mut there) = server.connect_across();
    here.subscribe("t");
    there.subscribe("t");
    for end in ["close", "half close", "both"] {
        let mut raw = server.raw_open();
        let mut bytes = Vec::new();
        let mut ids = 0..;
        let mut request = |rest: &str| {
            let id = ids.next().unwrap();
            bytes.extend(raw::text(&format!(r#"{{"id":{id},{rest}}}"#)));
        };
        request(r#""type":"subscribe","payload":{"topic":"u"}"#);
        for number in 0..20 {
            request(&format!(r#""type":"publish","payload":{{"topic":"t","data":{number}}}"#));
            request(r#""type":"ping""#);
        }
        request(r#""type":"dance""#);
        if end != "half close" {
            bytes.extend(raw::close(1000));
        }
        raw.write(&bytes);
        if end != "close" {
            raw.half_close();
        }
        for id in 0..ids.next().unwrap() {
            let reply = raw.json();
            assert_eq!(reply["reply_to"], id, "{end}: {reply}");
            if reply["type"] == "ack" && id > 0 {
                assert_eq!(reply["payload"]["queued"], 2, "{reply}");
            }
        }
        match end {
            "half close" => assert_eq!(raw.next(), None),
            _ => assert_eq!(raw.closed(), 1000),
        }
        for client in [&mut here, &mut there] {
            for number in 0..20 {
                assert_eq!(client.data("t"), number);
            }
        }
    }
    here.close();
    there.close();
    server.rest();
}

/// What was asked for before the mistake is answered before the verdict.
#[test]
fn requests_before_a_protocol_error_are_answered() {
    let server = Server::start("");
    let (mut here, mut there) = server.connect_across();
    here.subscribe("t");
    there.subscribe("t");
    let mut raw = server.raw_open();
    let publish = raw::text(r#"{"id":1,"type":"publish","payload":{"topic":"t","data":1}}"#);
    let ping = raw::text(r#"{"id":2,"type":"ping"}"#);
    raw.write(&[&publish[..], &ping, &[0xff; 20]].concat());
    for id in [1, 2] {
        assert_eq!(raw.json()["reply_to"], id);
    }
    assert_eq!(raw.closed(), 1002);
    here.close();
    there.close();
    server.rest();
}

#[test]
fn a_close_that_is_never_answered_has_a_deadline() {
    let server = Server::start("websocket: {idle_timeout_seconds: 1, close_timeout: 200ms}");
    let mut raw = server.raw_open();
    assert_eq!(raw.until(CLOSE).payload[..2], 4001u16.to_be_bytes());
    let end = raw.stream.read(&mut [0; 100]);
    assert!(matches!(end, Ok(0)), "{end:?}");
    server.rest();
}

/// After the server's close frame the client's messages are not acted on, and its own close frame ends it.
#[test]
fn nothing_is_done_after_the_close() {
    let server = Server::start("limits: {errors: 1}");
    let mut watcher = server.connect();
    watcher.subscribe("t");
    let mut raw = server.raw_open();
    raw.write(&[raw::text("x"), raw::text(r#"{"type":"publish","payload":{"topic":"t","data":1}}"#)].concat());
    assert_eq!(raw.json()["type"], "error");
    let disconnect: Value = raw.json();
    assert_eq!(disconnect["payload"]["code"], 4506);
    assert_eq!(raw.until(CLOSE).payload[..2], 4506u16.to_be_bytes());
    raw.text(r#"{"type":"publish","payload":{"topic":"t","data":2}}"#);
    raw.write(&raw::close(4506));
    assert_eq!(raw.next(), None);
    watcher.quiet();
    watcher.close();
    server.rest();
}
