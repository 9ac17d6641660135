//! Whatever bytes come: each mistake has its answer, costs its neighbours nothing and leaves nothing behind.

use std::net::SocketAddr;
use std::thread;

use serde_json::{Value, json};

use super::raw::{self, BINARY, CLOSE, FIN, PING, PONG, Raw, TEXT, masked, request};
use super::server::Server;

/// What the server is to say.
enum Answer {
    /// An HTTP status, and the end of the stream.
    Status(u16),
    /// A close frame with this code and nothing after it.
    Close(u16),
    /// An error with this code; the connection lives on.
    Error(&'static str),
    /// Nothing that the client waits for.
    Nothing,
}

use Answer::{Close, Error, Nothing, Status};

/// One client that misbehaves.
struct Case {
    name: &'static str,
    /// Whether it makes a proper upgrade first.
    upgraded: bool,
    bytes: Vec<u8>,
    answer: Answer,
}

/// Every kind of bad input, with the answer that it gets. The limits are the defaults.
fn cases() -> Vec<Case> {
    let handshake = |name, bytes: &[u8], answer| Case { name, upgraded: false, bytes: bytes.to_vec(), answer };
    let frames = |name, bytes: &[u8], answer| Case { name, upgraded: true, bytes: bytes.to_vec(), answer };
    let message = |name, text: &str, code| Case { name, upgraded: true, bytes: raw::text(text), answer: Error(code) };
    let good = request("/ws");
    let topic = |topic: &str| json!({"type": "subscribe", "payload": {"topic": topic}}).to_string();
    let garbage: Vec<u8> = (0..4096u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80).collect();
    let unmasked = [&[FIN | TEXT, 5][..], b"hello"].concat();
    let nested = "[".repeat(999_000);
    vec![
        handshake("garbage", &garbage, Status(400)),
        handshake("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Status(400)),
        handshake("long headers", good.replace("\r\n\r\n", &"\r\nX: y".repeat(5000)).as_bytes(), Status(431)),
        handshake("long line", good.replace("/ws", &"/x".repeat(20_000)).as_bytes(), Status(414)),
        handshake(
            "many headers",
            good.replace("\r\n\r\n", &format!("{}\r\n\r\n", "\r\nX: y".repeat(2000))).as_bytes(),
            Status(431),
        ),
        handshake("method", good.replace("GET", "PUT").as_bytes(), Status(405)),
        handshake("version", good.replace("13", "8").as_bytes(), Status(426)),
        handshake("path", good.replace("/ws", "/").as_bytes(), Status(404)),
        handshake("no key", good.replace("Sec-WebSocket-Key", "X").as_bytes(), Status(400)),
        handshake("no host", good.replace("Host", "X").as_bytes(), Status(400)),
        handshake("half a request", &good.as_bytes()[..60], Nothing),
        handshake("half a request line", b"GE", Nothing),
        handshake("silence", b"", Nothing),
        handshake("frames in the request's segment", &[good.as_bytes(), &unmasked].concat(), Nothing),
        frames("RSV1", &masked(FIN | 0x40 | TEXT, b"{}"), Close(1002)),
        frames("RSV2", &masked(FIN | 0x20 | TEXT, b"{}"), Close(1002)),
        frames("RSV3", &masked(FIN | 0x10 | TEXT, b"{}"), Close(1002)),
        frames("all reserved bits", &masked(0xf0 | TEXT, b"{}"), Close(1002)),
        frames("not masked", &unmasked, Close(1002)),
        frames("opcode 3", &masked(FIN | 3, b""), Close(1002)),
        frames("opcode 7", &masked(FIN | 7, b""), Close(1002)),
        frames("opcode 11", &masked(FIN | 11, b""), Close(1002)),
        frames("opcode 15", &masked(FIN | 15, b""), Close(1002)),
        frames("fragmented ping", &masked(PING, b""), Close(1002)),
        frames("fragmented close", &masked(CLOSE, b""), Close(1002)),
        frames("long ping", &masked(FIN | PING, &[0; 126]), Close(1002)),
        frames("continuation of nothing", &masked(FIN, b"{}"), Close(1002)),
        frames("text in a text", &[masked(TEXT, b"{"), masked(FIN | TEXT, b"}")].concat(), Close(1002)),
        frames("non-minimal 16", &[FIN | TEXT, 0x80 | 126, 0, 2, 0, 0, 0, 0, b'{', b'}'], Close(1002)),
        frames(
            "non-minimal 64",
            &[FIN | TEXT, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, b'{', b'}'],
            Close(1002),
        ),
        frames("top bit", &[FIN | TEXT, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], Close(1002)),
        frames("too long", &[FIN | TEXT, 0x80 | 127, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], Close(1009)),
        frames("no UTF-8", &masked(FIN | TEXT, b"{\"type\":\"\xff\"}"), Close(1007)),
        frames("no UTF-8 early", &masked(TEXT, b"\xc3\x28"), Close(1007)),
        frames("surrogate", &masked(FIN | TEXT, b"\"\xed\xa0\x80\""), Close(1007)),
        frames("half a character", &masked(FIN | TEXT, b"\"\xe2\x82"), Close(1007)),
        frames("binary that is no text", &masked(FIN | BINARY, b"\x80\x81"), Error("invalid_message")),
        frames("half a frame", &masked(FIN | TEXT, &[b' '; 5000])[..3000], Nothing),
        frames("half a header", &[FIN | TEXT, 0xff, 0, 0], Nothing),
        frames("a fragment and no more", &masked(TEXT, &[b' '; 50_000]), Nothing),
        message("not JSON", "GET / HTTP/1.1", "invalid_message"),
        message("half of JSON", r#"{"type":"ping","#, "invalid_message"),
        message("JSON and more", r#"{"type":"ping"} x"#, "invalid_message"),
        message("an array", "[1,2,3]", "invalid_message"),
        message("a nest", &nested, "invalid_message"),
        message(
            "a nest below data",
            &format!(r#"{{"type":"publish","payload":{{"topic":"t","data":{nested}"#),
            "invalid_message",
        ),
        message("no type", r#"{"payload":{}}"#, "invalid_message"),
        message("type is a number", r#"{"type":1}"#, "invalid_message"),
        message("id is an object", r#"{"type":"ping","id":{}}"#, "invalid_message"),
        message("payload is a text", r#"{"type":"ping","payload":"x"}"#, "invalid_message"),
        message("token is a number", r#"{"type":"authenticate","payload":{"token":1}}"#, "invalid_message"),
        message("topic is a list", r#"{"type":"subscribe","payload":{"topic":["t"]}}"#, "invalid_message"),
        message("a long topic", &topic(&"t".repeat(10_240)), "too_large"),
        message("an empty topic", &topic(""), "invalid_message"),
        message("a wildcard topic", &topic("a.*"), "invalid_message"),
        message("a wildcard topic of the rest", &topic(">"), "invalid_message"),
        message("unknown", r#"{"type":"launch"}"#, "unknown_message"),
    ]
}

/// Plays one case on a connection of its own and returns when the server has answered.
fn play(address: SocketAddr, case: &Case) {
    let Case { name, upgraded, bytes, answer } = case;
    let mut raw = Raw::connect(address);
    if *upgraded {
        raw.upgrade("/ws");
    }
    raw.write(bytes);
    match answer {
        Status(status) => assert_eq!(raw.refusal().0, *status, "{name}"),
        Close(code) => assert_eq!(raw.closed(), *code, "{name}"),
        Error(code) => {
            assert_eq!(raw.json()["payload"]["code"], *code, "{name}");
            raw.text(r#"{"type":"ping","id":"alive"}"#);
            assert_eq!(raw.json()["reply_to"], "alive", "{name}");
        }
        Nothing => {}
    }
}

/// Plays all of them against any server at this address.
pub fn play_all(address: SocketAddr) {
    cases().iter().for_each(|case| play(address, case));
}

#[test]
fn each_mistake_has_its_answer() {
    each_with("io: {wait: recv}");
}

#[test]
fn each_mistake_has_its_answer_when_polled() {
    each_with("io: {wait: poll}");
}

fn each_with(yaml: &str) {
    let server = Server::start(yaml);
    let (mut here, mut there) = server.connect_across();
    there.subscribe("t");
    for (number, case) in cases().iter().enumerate() {
        play(server.address, case);
        assert_eq!(here.publish("t", json!(number)), (1, 1, 0), "after {}", case.name);
        assert_eq!(there.data("t"), number, "after {}", case.name);
    }
    super::until("the strangers to be gone", || server.active() == 2);
    here.close();
    there.close();
    server.rest();
}

/// The same from several sides at once, and many times in a row.
#[test]
fn all_mistakes_at_once() {
    let server = Server::build(4, "", |builder| builder);
    let mut neighbour = server.connect();
    neighbour.subscribe("t");
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| play_all(server.address))).collect();
        while !threads.iter().all(|thread| thread.is_finished()) {
            assert_eq!(neighbour.publish("t", json!("still here")), (1, 1, 0));
            assert_eq!(neighbour.data("t"), "still here");
        }
    });
    neighbour.close();
    server.rest();
}

/// A reset in the middle of everything: of the request, of a frame, of what the server is sending.
#[test]
fn resets() {
    let server = Server::start("");
    let mut neighbour = server.connect();
    neighbour.subscribe("t");
    let padding = "x".repeat(50_000);
    for round in 0..40 {
        let mut raw = server.raw();
        let subscribe = raw::text(r#"{"type":"subscribe","payload":{"topic":"t"}}"#);
        match round % 8 {
            0 => {}
            1 => raw.write(&request("/ws").as_bytes()[..round]),
            2 => raw.write(request("/ws").as_bytes()),
            3 => raw.upgrade("/ws"),
            4 => {
                raw.upgrade("/ws");
                raw.write(&subscribe[..round]);
            }
            5 => {
                raw.upgrade("/ws");
                raw.write(&subscribe);
            }
            6 => {
                raw.upgrade("/ws");
                raw.write(&subscribe);
                raw.json();
                for _ in 0..20 {
                    neighbour.publish("t", json!(padding));
                    neighbour.data("t");
                }
            }
            _ => {
                raw.upgrade("/ws");
                raw.write(
                    &[subscribe, raw::text(r#"{"type":"publish","payload":{"topic":"t","data":1}}"#), raw::close(1000)]
                        .concat(),
                );
                // Whether its publish was read before the reset is not known.
                raw.json();
                neighbour.data("t");
            }
        }
        raw.reset();
        let (matched, queued, dropped) = neighbour.publish("t", json!(round));
        assert_eq!((matched, dropped), (queued, 0));
        assert_eq!(neighbour.data("t"), round);
    }
    super::until("them to be gone", || server.active() == 1);
    assert_eq!(neighbour.publish("t", json!(0)).0, 1);
    drop(neighbour);
    server.rest();
}

#[test]
fn many_pings_in_one_segment() {
    let server = Server::start("");
    let mut raw = server.raw_open();
    let mut writer = raw.stream.try_clone().unwrap();
    let count = 10_000u32;
    let pings: Vec<u8> = (0..count).flat_map(|number| masked(FIN | PING, &number.to_be_bytes())).collect();
    let wrote = thread::spawn(move || std::io::Write::write_all(&mut writer, &pings).unwrap());
    for number in 0..count {
        let pong = raw.next().unwrap();
        assert_eq!((pong.first, pong.payload), (FIN | PONG, number.to_be_bytes().to_vec()));
    }
    wrote.join().unwrap();
    raw.write(&raw::close(1000));
    assert_eq!(raw.closed(), 1000);
    server.rest();
}

#[test]
fn a_large_message_in_tiny_frames() {
    let server = Server::start("echo_path: /echo");
    let mut raw = server.raw();
    raw.upgrade("/echo");
    let size = 1_000_000;
    let byte = |index: usize| (index % 251) as u8;
    let mut frames = Vec::with_capacity(7 * size);
    for index in 0..size {
        let first = if index == 0 { BINARY } else { 0 };
        let last = if index == size - 1 { FIN } else { 0 };
        frames.extend_from_slice(&[first | last, 0x81, 1, 2, 3, 4, byte(index) ^ 1]);
        if index % 1000 == 0 {
            // Empty fragments cost bytes too, and nothing else.
            frames.extend_from_slice(&[first, 0x80, 1, 2, 3, 4]);
            if first == BINARY {
                let start = frames.len() - 13;
                frames[start + 7] = 0;
            }
        }
    }
    raw.write(&frames);
    let echo = raw.until(BINARY).payload;
    assert!(echo.len() == size && echo.iter().enumerate().all(|(index, &got)| got == byte(index)));
    // One byte more is too much, however it comes.
    raw.write(&masked(BINARY, &vec![0; size]));
    raw.write(&masked(FIN, b"x"));
    assert_eq!(raw.closed(), 1009);
    server.rest();
}

/// Fewer receive buffers than connections that send: each gets its turn, in both ways of waiting for input.
#[test]
fn few_receive_buffers() {
    for wait in ["recv", "poll"] {
        let yaml = format!("io: {{wait: {wait}, receive_buffers: 2, receive_buffer_size: 256B}}\necho_path: /echo");
        let server = Server::build(1, &yaml, |builder| builder);
        let mut clients: Vec<Raw> = (0..40).map(|_| server.raw()).collect();
        clients.iter_mut().for_each(|client| client.upgrade("/echo"));
        let message = |client: usize, size: usize| vec![client as u8; size];
        for size in [1, 255, 256, 20_000] {
            for (index, client) in clients.iter_mut().enumerate() {
                client.frame(BINARY, &message(index, size));
            }
            for (index, client) in clients.iter_mut().enumerate() {
                assert!(client.until(BINARY).payload == message(index, size), "{size} bytes of client {index}");
            }
        }
        drop(clients);
        server.rest();
    }
}

/// A receive finds no buffer where there are too few, or too small ones, for what comes at once, and only there.
#[test]
fn as_many_receive_buffers_as_configured() {
    let message = vec![7; 60_000];
    let starved = |io: &str, clients: usize, rounds: usize| {
        let server = Server::build(1, &format!("io: {{{io}}}\necho_path: /echo"), |builder| builder);
        let mut clients: Vec<Raw> = (0..clients).map(|_| server.raw()).collect();
        clients.iter_mut().for_each(|client| client.upgrade("/echo"));
        (0..rounds).any(|_| {
            clients.iter_mut().for_each(|client| client.frame(BINARY, &message));
            for client in &mut clients {
                assert!(client.until(BINARY).payload == message);
            }
            server.sum(|shard| &shard.starved) > 0
        })
    };
    for (io, expected) in [
        ("receive_buffers: 4, receive_buffer_size: 4KiB", true),
        ("receive_buffers: 1024, receive_buffer_size: 4KiB", false),
        ("receive_buffers: 16, receive_buffer_size: 256B", true),
        ("receive_buffers: 16, receive_buffer_size: 64KiB", false),
    ] {
        // One client takes a few buffers at a time, however much it sends.
        let (clients, rounds) = if expected { (8, 2_000) } else { (1, 20) };
        assert_eq!(starved(io, clients, rounds), expected, "{io}");
    }
}

/// Frames that end just before, on and behind the ends of receive buffers, alone and one after the other.
#[test]
fn sizes_around_the_receive_buffer() {
    let server = Server::start("echo_path: /echo");
    let mut raw = server.raw();
    raw.upgrade("/echo");
    let sizes: Vec<usize> = [1, 2, 3, 4, 8, 16]
        .iter()
        .flat_map(|pages| pages * 4096 - 16..=pages * 4096 + 16)
        .chain([0, 1, 125, 126, 127, 65_535, 65_536])
        .collect();
    let message = |size: usize| -> Vec<u8> { (0..size).map(|index| (index * 31 + size) as u8).collect() };
    for &size in &sizes {
        raw.frame(BINARY, &message(size));
        assert!(raw.until(BINARY).payload == message(size), "{size}");
    }
    let all: Vec<u8> = sizes.iter().flat_map(|&size| masked(FIN | BINARY, &message(size))).collect();
    let mut writer = raw.stream.try_clone().unwrap();
    let wrote = thread::spawn(move || std::io::Write::write_all(&mut writer, &all).unwrap());
    for &size in &sizes {
        assert!(raw.until(BINARY).payload == message(size), "{size} in a row");
    }
    wrote.join().unwrap();
    drop(raw);

    // And as text of the native protocol, whose parts must come back whole.
    let mut raw = server.raw_open();
    raw.text(r#"{"type":"subscribe","payload":{"topic":"t"}}"#);
    raw.json();
    for &size in sizes.iter().filter(|&&size| size > 200) {
        let head = r#"{"type":"publish","payload":{"topic":"t","data":""#;
        let data = "é".repeat((size - head.len() - 3) / 2);
        raw.text(&format!(r#"{head}{data}"}}}}"#));
        let message: Value = raw.json();
        assert!(message["payload"]["data"].as_str() == Some(&data), "{size}");
        assert_eq!(raw.json()["payload"]["queued"], 1);
    }
    drop(raw);
    server.rest();
}
