//! permessage-deflate (RFC 7692): what is agreed, what arrives compressed, what is inflated, and where that ends.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::{Value, json};
use tidewheel::Config;
use tidewheel::metrics::{Deflated, Inflated};

use super::client::Client;
use super::raw::{BINARY, FIN, Frame, PING, PONG, Raw, TEXT, masked};
use super::server::{Server, config};
use super::until;

const RSV1: u8 = 0x40;
const ECHO: &str = "echo_path: /echo";

/// A client that has been agreed with, and both its codecs.
struct Peer {
    raw: Raw,
    window_bits: u8,
    compress: Compress,
}

impl Peer {
    #[track_caller]
    fn open(server: &Server, path: &str, offer: &str) -> Self {
        let mut raw = server.raw();
        raw.upgrade_with(path, &format!("Sec-WebSocket-Extensions: {offer}\r\n"));
        let bits = offer.split_once("server_max_window_bits=").map_or(15, |(_, bits)| bits.parse().unwrap());
        Self { raw, window_bits: bits, compress: Compress::new(Compression::best(), false) }
    }

    /// The next message, and whether it came compressed. Every message stands by itself.
    #[track_caller]
    fn next(&mut self) -> (bool, Vec<u8>) {
        let Frame { first, mut payload } = self.raw.next().expect("a message");
        assert!(first & !RSV1 == FIN | TEXT || first & !RSV1 == FIN | BINARY, "{first:#x}");
        if first & RSV1 == 0 {
            return (false, payload);
        }
        payload.extend_from_slice(&[0, 0, 0xff, 0xff]);
        let mut stream = Decompress::new_with_window_bits(false, self.window_bits);
        let (mut message, mut rest) = (Vec::new(), &payload[..]);
        while !rest.is_empty() {
            let mut piece = [0; 500]; // less than any window, so that nothing else is looked back at
            let before = (stream.total_in(), stream.total_out());
            stream.decompress(rest, &mut piece, FlushDecompress::Sync).unwrap();
            message.extend_from_slice(&piece[..(stream.total_out() - before.1) as usize]);
            rest = &rest[(stream.total_in() - before.0) as usize..];
        }
        (true, message)
    }

    #[track_caller]
    fn json(&mut self) -> Value {
        serde_json::from_slice(&self.next().1).unwrap()
    }

    /// A message's compressed payload; it may refer to the ones before.
    fn deflate(&mut self, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * message.len() + 1000);
        self.compress.compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&[0, 0, 0xff, 0xff]));
        out.truncate(out.len() - 4);
        out
    }

    /// Sends a message compressed, by itself.
    fn send(&mut self, opcode: u8, message: &[u8]) {
        self.compress.reset();
        self.send_on(opcode, message);
    }

    /// Sends a message that may refer to those before it.
    fn send_on(&mut self, opcode: u8, message: &[u8]) {
        let payload = self.deflate(message);
        self.raw.write(&masked(FIN | RSV1 | opcode, &payload));
    }
}

fn words(bytes: usize) -> String {
    let mut text = String::new();
    for number in 0_u64.. {
        if text.len() >= bytes {
            break;
        }
        text += ["wave ", "tide ", "wheel ", "shard "][number.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 61 & 3];
        text += &(number * number % 97).to_string();
    }
    text.truncate(bytes);
    text
}

fn noise(bytes: usize) -> String {
    let mut state = 1_u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b' ' + (state >> 58) as u8) // 6 bits of chance in each byte
    };
    (0..bytes).map(|_| letter()).filter(|letter| !['"', '\\'].contains(letter)).collect()
}

#[test]
fn what_is_agreed() {
    #[track_caller]
    fn check(server: &Server, lines: &str, expected: Option<&str>) {
        for path in ["/ws", "/echo"] {
            let mut raw = server.raw();
            raw.write(super::raw::request_with(path, lines).as_bytes());
            let head = raw.head();
            let agreed = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
            assert_eq!(agreed, expected, "{head}");
        }
    }
    let server = Server::start(ECHO);
    let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    check(&server, "", None);
    check(&server, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n", Some(plain));
    check(
        &server,
        "Sec-WebSocket-Extensions: x-unknown\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        Some(plain),
    );
    check(&server, "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=16\r\n", None);
    let takeover = Server::start(&format!("{ECHO}\nwebsocket: {{compression: {{client_context_takeover: true}}}}"));
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n";
    check(&takeover, offer, Some("permessage-deflate; server_no_context_takeover; server_max_window_bits=10"));
    let off = Server::start(&format!("{ECHO}\nwebsocket: {{compression: {{enabled: false}}}}"));
    check(&off, offer, None);
}

/// One topic, on two shards, with every window and without; each message comes to all, and is the same for all.
#[test]
fn everyone_gets_the_same_message() {
    let server = Server::start("");
    let mut peers = Vec::new();
    for bits in (8..=15).cycle().take(32) {
        let mut peer = Peer::open(&server, "/ws", &format!("permessage-deflate; server_max_window_bits={bits}"));
        peer.raw.text(r#"{"type":"subscribe","payload":{"topic":"t"}}"#);
        assert_eq!(peer.json()["type"], "ack");
        peers.push(peer);
    }
    let (mut plain, mut other) = server.connect_across();
    plain.subscribe("t");
    let compressions = || server.sum(|shard| &shard.deflated[Deflated::Compressed as usize]);
    // What is published, whether it gets shorter, and how many forms of it there have to be.
    for (data, shrinks, forms) in [
        (words(100), false, 0),
        (words(400), true, 1), // all windows hold it
        (words(900), true, 2), // that of 9 bits does not
        (words(3_000), true, 4),
        (words(100_000), true, 7),
        ("x".repeat(300_000), true, 7),
    ] {
        let before = compressions();
        assert_eq!(other.publish("t", json!(data)), (33, 33, 0));
        let expected = plain.text();
        assert!(expected.contains(&data));
        for peer in &mut peers {
            let (is_compressed, message) = peer.next();
            assert!(message == expected.as_bytes(), "{} bits", peer.window_bits);
            assert_eq!(is_compressed, shrinks && peer.window_bits > 8, "{} bits, {}", peer.window_bits, data.len());
        }
        assert_eq!(compressions() - before, forms, "{} bytes", data.len());
    }
    // A publish that no subscriber wants compressed is not.
    let before = compressions();
    plain.subscribe("other");
    other.publish("other", json!(words(900)));
    assert_eq!((plain.data("other"), compressions()), (json!(words(900)), before));
    drop((peers, plain, other));
    server.rest();
}

#[test]
fn what_does_not_get_shorter_is_sent_plain() {
    let server = Server::start(ECHO);
    let mut peer = Peer::open(&server, "/echo", "permessage-deflate");
    let mut bytes: Vec<u8> = (0..1000_u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let mut state = 1_u64;
    bytes.iter_mut().for_each(|byte| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    });
    peer.send(BINARY, &bytes);
    assert_eq!(peer.next(), (false, bytes));
    assert_eq!(server.sum(|shard| &shard.deflated[Deflated::Incompressible as usize]), 1);
}

#[test]
fn replies_and_broadcasts_too() {
    let server = Server::start("");
    let mut peer = Peer::open(&server, "/ws", "permessage-deflate; server_max_window_bits=9");
    let topics: Vec<String> = (0..40).map(|number| format!("some.rather.long.topic.{number}")).collect();
    for topic in &topics {
        peer.raw.text(&json!({"type": "subscribe", "payload": {"topic": topic}}).to_string());
        assert_eq!(peer.json()["payload"]["topic"], topic.as_str());
    }
    peer.send(TEXT, br#"{"type":"list_subscriptions"}"#);
    let (is_compressed, reply) = peer.next();
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert_eq!((is_compressed, reply["payload"]["subscriptions"].as_array().map(Vec::len)), (true, Some(40)));
    let sent = server.handle.broadcast(&words(2_000));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(sent).unwrap().queued, 1);
    let (is_compressed, message) = peer.next();
    let message: Value = serde_json::from_slice(&message).unwrap();
    assert_eq!((is_compressed, &message["payload"]["data"]), (true, &json!(words(2_000))));
}

#[test]
fn how_small_and_how_much() {
    let echoed = |yaml: &str, message: &str| {
        let server = Server::start(&format!("{ECHO}\nwebsocket: {{compression: {{{yaml}}}}}"));
        let mut peer = Peer::open(&server, "/echo", "permessage-deflate");
        peer.send(TEXT, message.as_bytes());
        let Frame { first, payload } = peer.raw.next().unwrap();
        (first & RSV1 != 0, payload.len())
    };
    assert!(!echoed("min_size: 300B", &words(299)).0);
    assert!(echoed("min_size: 300B", &words(300)).0);
    assert!(!echoed("", &words(255)).0);
    assert!(echoed("", &words(256)).0);
    let sizes = [1, 9].map(|level| echoed(&format!("level: {level}"), &words(20_000)).1);
    assert!(sizes[0] > sizes[1] + 100, "{sizes:?}");
}

#[test]
fn messages_that_refer_to_each_other() {
    let yaml = |takeover| {
        format!(
            "{ECHO}\nlimits: {{connection_attempts: null}}\n\
             websocket: {{ping_interval_seconds: 1, compression: {{client_context_takeover: {takeover}}}}}"
        )
    };
    let message = format!(r#"{{"type":"ping","payload":{{"noise":"{}"}}}}"#, noise(200));
    let server = Server::start(&yaml(true));
    let held = || server.sum(|shard| &shard.inflater_bytes);
    let mut peer = Peer::open(&server, "/ws", "permessage-deflate");
    for _ in 0..3 {
        peer.send_on(TEXT, message.as_bytes());
        assert_eq!(peer.json()["type"], "pong");
        // A quiet connection gives back what it can; not this.
        for _ in 0..2 {
            let ping = peer.raw.until(PING);
            peer.raw.frame(PONG, &ping.payload);
        }
        assert_eq!(held(), 48 * 1024);
    }
    assert!(peer.deflate(message.as_bytes()).len() < 20, "it does refer to the ones before");
    // Who does not want that costs nothing.
    let mut other = Peer::open(&server, "/ws", "permessage-deflate; client_no_context_takeover");
    other.send(TEXT, message.as_bytes());
    assert_eq!((other.json()["type"].as_str(), held()), (Some("pong"), 48 * 1024));
    drop((peer, other));
    server.rest();
    until("its inflater to go", || held() == 0);

    let server = Server::start(&yaml(false));
    let mut peer = Peer::open(&server, "/ws", "permessage-deflate");
    peer.send_on(TEXT, message.as_bytes());
    assert_eq!(peer.json()["type"], "pong");
    peer.send_on(TEXT, message.as_bytes());
    assert_eq!(peer.raw.closed(), 1007);
    assert_eq!(server.sum(|shard| &shard.inflated[Inflated::Malformed as usize]), 1);
}

#[test]
fn bombs() {
    let check = |yaml: &str, bytes: usize, expected: Result<(), u16>| {
        let server = Server::start(&format!("{ECHO}\nwebsocket: {{{yaml}}}"));
        let mut peer = Peer::open(&server, "/echo", "permessage-deflate");
        let bomb = vec![0; bytes];
        peer.send(BINARY, &bomb);
        match expected {
            Ok(()) => assert!(peer.next() == (true, bomb)),
            Err(code) => assert_eq!(peer.raw.closed(), code),
        }
        let refused = server.sum(|shard| &shard.inflated[Inflated::TooLarge as usize]);
        assert_eq!(refused, u64::from(expected.is_err()));
    };
    let any_ratio = "compression: {max_ratio: 1100}";
    check(&format!("max_message_size: 99999B, {any_ratio}"), 99_998, Ok(()));
    check(&format!("max_message_size: 99999B, {any_ratio}"), 99_999, Ok(()));
    check(&format!("max_message_size: 99999B, {any_ratio}"), 100_000, Err(1009));
    check(&format!("max_message_size: 99999B, {any_ratio}"), 30_000_000, Err(1009));
    check("", 64 * 1024, Ok(())); // however regular
    check("", 64 * 1024 + 1, Err(1009));
    check(any_ratio, 64 * 1024 + 1, Ok(()));
}

/// A browser compresses whatever a page sends, and what cannot be compressed gets longer by that.
#[test]
fn the_largest_message_may_be_incompressible() {
    let server = Server::start(ECHO);
    let mut bytes = vec![0; 1_000_000];
    let mut state = 1_u64;
    bytes.iter_mut().for_each(|byte| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    });
    for level in [Compression::none(), Compression::fast(), Compression::best()] {
        let mut peer = Peer::open(&server, "/echo", "permessage-deflate");
        peer.compress = Compress::new(level, false);
        let payload = peer.deflate(&bytes);
        assert!(payload.len() > bytes.len(), "{}", payload.len());
        peer.raw.write(&masked(FIN | RSV1 | BINARY, &payload));
        assert!(peer.next() == (false, bytes.clone()), "{level:?}");
        peer.send(BINARY, &[&bytes[..], b"x"].concat());
        assert_eq!(peer.raw.closed(), 1009, "one byte more is too much");
    }
    server.rest();
}

#[test]
fn what_may_not_be_sent() {
    let server = Server::start(ECHO);
    let check = |offer: &str, bytes: &[u8], expected: u16| {
        let mut raw = server.raw();
        raw.upgrade_with("/ws", offer);
        raw.write(bytes);
        assert_eq!(raw.closed(), expected, "{bytes:x?}");
    };
    let deflate = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let ping = br#"{"type":"ping"}"#;
    let deflated = |message: &[u8]| {
        let mut out = Vec::with_capacity(1000);
        Compress::new(Compression::fast(), false).compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
        out.truncate(out.len() - 4);
        out
    };
    let whole = |message: &[u8]| masked(FIN | RSV1 | TEXT, &deflated(message));
    check("", &whole(ping), 1002);
    check(deflate, &masked(FIN | RSV1 | PING, b""), 1002);
    check(deflate, &[masked(RSV1 | TEXT, b""), masked(FIN | RSV1, b"")].concat(), 1002);
    check(deflate, &masked(FIN | 0x20 | TEXT, b""), 1002);
    check(deflate, &whole(b"\xff\xfe"), 1007);
    check(deflate, &masked(FIN | RSV1 | TEXT, b"\x07\xff\xff"), 1007);
    // After the end nothing more is looked at, compressed or not.
    check(deflate, &[whole(b"\xff"), whole(ping), super::raw::text("{}")].concat(), 1007);
    server.rest();
}

#[test]
fn in_fragments_with_pings_between() {
    let server = Server::start(ECHO);
    let mut peer = Peer::open(&server, "/echo", "permessage-deflate");
    let message = words(5_000);
    let payload = peer.deflate(message.as_bytes());
    let mut first = RSV1 | TEXT;
    for piece in payload.chunks(97) {
        peer.raw.write(&masked(first, piece));
        peer.raw.write(&masked(FIN | PING, b"?"));
        first = 0;
    }
    peer.raw.write(&masked(FIN, b""));
    for _ in payload.chunks(97) {
        assert_eq!(peer.raw.next().unwrap().payload, b"?");
    }
    assert_eq!(peer.next(), (true, message.into_bytes()));
    let from = server.sum(|shard| &shard.inflated_from_bytes);
    let to = server.sum(|shard| &shard.inflated_to_bytes);
    assert_eq!((from, to), (payload.len() as u64, 5_000));
}

/// What is inflated is what costs, so that is what counts.
#[test]
fn rates_are_of_what_was_inflated() {
    let limits = "limits: {connection_attempts: null, messages: null, bytes: {per_second: 1B, burst: 4000B}}";
    let server = Server::start(&format!("{limits}\nwebsocket: {{max_message_size: 4000B}}"));
    let mut peer = Peer::open(&server, "/ws", "permessage-deflate");
    let message = format!(r#"{{"type":"ping","payload":{{"x":"{}"}}}}"#, "x".repeat(2_500));
    let replies = [(); 2].map(|()| {
        peer.send(TEXT, message.as_bytes());
        peer.json()["type"].clone()
    });
    assert_eq!(replies, ["pong", "error"]);
}

/// Few bytes must not make much work for as long as many do: a message that was inflated and refused counts for more.
#[test]
fn refusals_weigh_what_they_cost() {
    let limits = "limits: {connection_attempts: null, messages: null, bytes: {per_second: 1B, burst: 600KB}}";
    let server = Server::start(limits);
    let mut peer = Peer::open(&server, "/ws", "permessage-deflate");
    let message = format!(r#"{{"type":"ping","payload":{{"x":"{}"}}}}"#, words(500_000));
    let mut refused = 0;
    loop {
        peer.send(TEXT, message.as_bytes());
        let reply = peer.json();
        match reply["payload"]["code"].as_str() {
            Some("rate_limited") => refused += 1,
            _ if reply["type"] == "disconnect" => break,
            _ => assert_eq!(reply["type"], "pong"),
        }
        assert!(refused <= 7, "it goes on and on");
    }
    // Of 200, each counted for itself and for thirty times 16 KiB.
    assert_eq!(refused, 7);
    drop(peer);
    server.rest();
}

#[test]
fn reloads() {
    let server = Server::start(ECHO);
    let text = words(200);
    let reload = |compression: &str| {
        let mut changed: Config = config(
            2,
            &format!(
                "{ECHO}\nwebsocket: {{max_total_connections: 4096, ping_interval_seconds: 0, compression: {{{compression}}}}}"
            ),
        );
        changed.listen = server.handle.config().listen.clone();
        server.handle.reload(changed).unwrap();
    };
    let mut peer = Peer::open(&server, "/echo", "permessage-deflate");
    let is_compressed = |peer: &mut Peer| {
        peer.send(TEXT, text.as_bytes());
        peer.next().0
    };
    assert!(!is_compressed(&mut peer));
    reload("min_size: 100B");
    until("the new size counts", || is_compressed(&mut peer));
    reload("min_size: 100B, enabled: false");
    let agrees = || {
        let mut raw = server.raw();
        raw.write(super::raw::request_with("/echo", "Sec-WebSocket-Extensions: permessage-deflate\r\n").as_bytes());
        raw.head().contains("permessage-deflate")
    };
    until("newcomers get none", || (0..8).all(|_| !agrees()));
    assert!(is_compressed(&mut peer), "what was agreed holds");
    let _ = Client::connect(server.address);
}
