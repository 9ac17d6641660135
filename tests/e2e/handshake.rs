//! The upgrade: what a client may ask for, and how a server that will not upgrade says so.

use tidewheel::metrics::Refusal;

use super::client::Client;
use super::raw::{Raw, request};
use super::server::Server;

#[test]
fn subprotocols() {
    let server = Server::start("");
    let check = |offered: &[(&'static str, &str)], chosen: Option<&str>| {
        let (mut client, response) = match Client::try_connect_to(server.address, "/ws", offered) {
            Ok(connected) => connected,
            // RFC 6455 §4.1 lets a client give up when its subprotocol was not chosen, which tungstenite does.
            Err(error) => return assert!(chosen.is_none(), "{error}"),
        };
        let header = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap());
        assert_eq!(header, chosen, "{offered:?}");
        client.quiet();
    };
    check(&[], None);
    check(&[("Sec-WebSocket-Protocol", "tidewheel.v1")], Some("tidewheel.v1"));
    check(&[("Sec-WebSocket-Protocol", "chat, tidewheel.v1")], Some("tidewheel.v1"));
    check(&[("Sec-WebSocket-Protocol", "chat")], None);

    // Asked for an unknown one only, it still speaks JSON.
    let mut raw = server.raw();
    raw.write(request("/ws").replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\n\r\n").as_bytes());
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 101 ") && !head.contains("-Protocol"), "{head}");
    raw.text(r#"{"type":"ping","id":1}"#);
    assert_eq!(raw.json()["reply_to"], 1);
    drop(raw);
    server.rest();
}

/// What a terminal client does, with no library in between.
#[test]
fn by_hand() {
    let server = Server::start("");
    let mut raw = server.raw();
    // One byte at a time, and the first frame in the same segment as the end of the request.
    let request = request("/ws?whatever=1");
    let (most, last) = request.as_bytes().split_at(request.len() - 1);
    most.iter().for_each(|&byte| raw.write(&[byte]));
    raw.write(&[last, &super::raw::text(r#"{"type":"subscribe","payload":{"topic":"t"}}"#)].concat());
    let head = raw.head();
    let lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines[0], "HTTP/1.1 101 Switching Protocols");
    assert!(lines.contains(&"Upgrade: websocket") && lines.contains(&"Connection: Upgrade"), "{head}");
    assert_eq!(raw.json()["payload"]["message"], "Subscribed to t");
    raw.text(r#"{"type":"publish","payload":{"topic":"t","data":"hello"}}"#);
    assert_eq!(raw.json()["payload"]["data"], "hello");
    assert_eq!(raw.json()["payload"]["matched"], 1);
    raw.write(&super::raw::close(1000));
    assert_eq!(raw.closed(), 1000);
    server.rest();
}

#[test]
fn refusals() {
    let server = Server::start("websocket: {max_header_bytes: 1KiB, max_total_connections: 100}");
    let good = request("/ws");
    let mut neighbour = server.connect();
    let mut check = |request: &str, status: u16, body: &str| {
        let mut raw = server.raw();
        raw.write(request.as_bytes());
        let (got, head, text) = raw.refusal();
        assert_eq!(got, status, "{request:?}: {head}{text}");
        assert!(text.contains(body), "{request:?}: {text}");
        assert!(head.contains("\r\nConnection: close\r\n") && head.contains("\r\nContent-Length: "), "{head}");
        match status {
            405 => assert!(head.contains("\r\nAllow: GET\r\n"), "{head}"),
            426 => assert!(head.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{head}"),
            _ => {}
        }
        neighbour.quiet();
    };
    check("hello\r\n\r\n", 405, "GET");
    check("\r\n\r\n", 400, "HTTP");
    check("\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03 and so on", 400, "HTTP");
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405, "GET");
    check(&good.replace("GET", "POST"), 405, "GET");
    check(&good.replace("GET", "get"), 405, "GET");
    check(&good.replace("HTTP/1.1", "HTTP/1.0"), 400, "HTTP/1.1");
    check(&good.replace("HTTP/1.1", "HTTP/2"), 400, "HTTP/1.1");
    check(&good.replace("\r\n", "\n"), 400, "line feed");
    check(&good.replace("/ws", "/elsewhere"), 404, "path");
    check(&good.replace("/ws", "/ws/"), 404, "path");
    check(&good.replace("/ws", "/WS"), 404, "path");
    check(&good.replace("Host: 127.0.0.1\r\n", ""), 400, "Host");
    check(&good.replace("Host: 127.0.0.1\r\n", "Host: a\r\nHost: b\r\n"), 400, "Host");
    check(&good.replace("Upgrade: websocket\r\n", ""), 400, "Upgrade");
    check(&good.replace("Upgrade: websocket", "Upgrade: h2c"), 400, "Upgrade");
    check(&good.replace("Connection: Upgrade\r\n", ""), 400, "Connection");
    check(&good.replace("Connection: Upgrade", "Connection: close"), 400, "Connection");
    check(&good.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), 400, "Sec-WebSocket-Key");
    check(&good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j"), 400, "Sec-WebSocket-Key");
    check(&good.replace("Version: 13", "Version: 12"), 426, "13");
    check(&good.replace("Sec-WebSocket-Version: 13\r\n", ""), 400, "Sec-WebSocket-Version");
    check(&good.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"), 400, "body");
    check(&good.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400, "body");
    check(&good.replace("\r\n\r\n", "\r\n: nameless\r\n\r\n"), 400, "header");
    check(&good.replace("/ws", &format!("/{}", "x".repeat(1100))), 414, "too long");
    check(&good.replace("\r\n\r\n", &format!("\r\nX: {}\r\n\r\n", "x".repeat(1100))), 431, "too large");
    check(&format!("GET /{}", "x".repeat(100_000)), 414, "too long");
    check(&good.replace("\r\n\r\n", &"\r\nX: y".repeat(30_000)), 431, "too large");
    neighbour.close();
    server.rest();
}

#[test]
fn no_more_than_there_is_room_for() {
    let server = Server::start("websocket: {max_total_connections: 4}");
    let clients: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    let mut raw = server.raw();
    raw.write(request("/ws").as_bytes());
    let (status, head, _) = raw.refusal();
    assert!(status == 503 && head.contains("\r\nRetry-After: "), "{head}");
    for client in clients {
        client.close();
    }
    server.rest();
    server.connect().quiet();
    server.rest();
}

/// Under, at and over the bound, over all shards; places are given back by upgrades, refusals, ends and the timeout.
#[test]
fn no_more_handshakes_than_may_be_in_flight() {
    let server = Server::start("limits: {handshakes_in_flight: 3}\nwebsocket: {handshake_timeout: 2s}");
    let in_flight = || server.sum(|shard| &shard.handshakes);
    let slow = |bytes: &[u8]| {
        let before = in_flight();
        let mut raw = server.raw();
        raw.write(bytes);
        super::until("a handshake in flight", || in_flight() == before + 1);
        raw
    };
    let refused = || {
        // At once: nothing has been sent.
        let mut raw = server.raw();
        let (status, head, body) = raw.refusal();
        assert!(status == 503 && head.contains("\r\nRetry-After: ") && body.contains("handshakes"), "{head}{body}");
    };
    let mut held: Vec<Raw> = [&b""[..], b"GET /ws"].map(slow).into();
    for _ in 0..5 {
        server.connect().quiet(); // the third place, again and again
    }
    super::until("two handshakes", || in_flight() == 2);
    held.push(slow(b"G"));
    (0..3).for_each(|_| refused());
    assert_eq!((in_flight(), server.sum(|shard| &shard.refused[Refusal::Handshakes as usize])), (3, 3));

    // A refusal, an upgrade and a client that goes: each makes room for one.
    held[2].write(b"OOD\r\n\r\n");
    assert_eq!(held[2].refusal().0, 405);
    super::until("two handshakes", || in_flight() == 2);
    let mut upgraded = slow(b"");
    refused();
    upgraded.upgrade("/ws");
    super::until("two handshakes", || in_flight() == 2);
    let gone = slow(b"GET");
    refused();
    drop(gone);
    super::until("two handshakes", || in_flight() == 2);
    drop(slow(b"GET /ws HTTP/1.1"));

    // Whoever is slow is told so, and has its place no more.
    for mut raw in held.into_iter().take(2) {
        assert_eq!(raw.refusal().0, 408);
    }
    super::until("no handshake", || in_flight() == 0);
    let mut three: Vec<Raw> = (0..3).map(|_| slow(b"GET ")).collect();
    refused();
    three.iter_mut().for_each(|raw| raw.write(&request("/ws").as_bytes()[4..]));
    three.iter_mut().for_each(|raw| assert!(raw.head().starts_with("HTTP/1.1 101 ")));
    drop((three, upgraded));
    server.rest();
}

#[test]
fn who_does_not_finish_is_told_so() {
    let server = Server::start("websocket: {handshake_timeout: 300ms}");
    let check = |bytes: &[u8]| {
        let mut raw: Raw = server.raw();
        raw.write(bytes);
        let (status, head, _) = raw.refusal();
        assert_eq!(status, 408, "{head}");
    };
    check(b"");
    check(b"GET");
    check(&request("/ws").as_bytes()[..100]);
    server.rest();
}
