//! Clients behind proxies: whose address counts, by headers and by the PROXY protocol.

use std::net::SocketAddr;

use serde_json::json;
use socket2::{Domain, Socket, Type};
use tidewheel::metrics::{CloseReason, Refusal};

use super::auth::{SECRET, token};
use super::raw::{self, CLOSE, Raw};
use super::server::Server;

/// Connections of each address that are let in at once; few come back while a test runs.
const BURST: usize = 4;

fn server(proxy: &str) -> Server {
    let limits = format!("limits: {{connection_attempts: {{per_second: 1, burst: {BURST}}}}}");
    Server::start(&format!("proxy: {{{proxy}}}\n{limits}"))
}

/// A TCP connection from 127.0.0.`from`.
fn connect(server: &Server, from: u8) -> Raw {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, from], 0)).into()).unwrap();
    socket.connect(&server.address.into()).unwrap();
    Raw::over(socket.into())
}

/// The status of an upgrade from there, with this in front of the request and these lines in it.
#[track_caller]
fn status(server: &Server, from: u8, preamble: &[u8], lines: &str) -> u16 {
    let mut raw = connect(server, from);
    raw.write(&[preamble, raw::request_with("/ws", lines).as_bytes()].concat());
    raw.head().split(' ').nth(1).unwrap().parse().unwrap()
}

/// Whether these count as attempts of one address: the burst is let in, and not all of what follows.
#[track_caller]
fn check_same(mut next: impl FnMut(usize) -> u16, is_same: bool) {
    let statuses: Vec<u16> = (0..4 * BURST).map(&mut next).collect();
    assert_eq!(statuses[..BURST], [101; BURST], "{statuses:?}");
    let refused = statuses.iter().filter(|&&status| status == 429).count();
    assert!(if is_same { refused > BURST } else { refused == 0 }, "{statuses:?}");
}

#[test]
fn headers_of_trusted_proxies_name_the_client() {
    let server = server("trusted: 127.0.0.0/30");
    let by = |from: u8, lines: &dyn Fn(usize) -> String, is_same| {
        check_same(|attempt| status(&server, from, b"", &lines(attempt)), is_same);
    };
    // Each its own client, and a client that adds what it likes in front.
    by(1, &|attempt| format!("X-Forwarded-For: 198.51.100.{attempt}\r\n"), false);
    by(1, &|attempt| format!("Forwarded: for=\"[2001:db8:{attempt}::1]:1\"\r\n"), false);
    by(1, &|attempt| format!("X-Forwarded-For: 198.51.100.{attempt}, 192.0.2.1\r\n"), true);
    by(2, &|attempt| format!("X-Forwarded-For: 198.51.100.{attempt}, 192.0.2.2, 127.0.0.1\r\n"), true);
    by(2, &|attempt| format!("Forwarded: for={attempt}.1.1.1, for=192.0.2.3\r\nX-Forwarded-For: 192.0.2.3\r\n"), true);
    // Where the headers contradict each other, or name nobody, it is the proxy itself.
    by(3, &|attempt| format!("Forwarded: for=192.0.2.{attempt}\r\nX-Forwarded-For: 192.0.3.1\r\n"), true);
    assert_eq!(status(&server, 3, b"", "X-Forwarded-For: unknown\r\n"), 429);
    assert_eq!(status(&server, 3, b"", ""), 429);
    assert_eq!(status(&server, 3, b"", "X-Forwarded-For: 192.0.2.4\r\n"), 101);
    // Who is not trusted counts as itself, whatever it says.
    by(4, &|attempt| format!("X-Forwarded-For: 198.51.101.{attempt}\r\n"), true);
    assert!(server.sum(|shard| &shard.refused[Refusal::RateLimited as usize]) > 0);
    server.rest();
}

/// Addresses are one client as far as the leading bits of `limits.connection_attempts.ipv6_prefix` are the same.
#[test]
fn the_prefix_of_ipv6_addresses() {
    let check = |prefix: &str, lines: &dyn Fn(usize) -> String, is_same| {
        let limits = format!("limits: {{connection_attempts: {{per_second: 1, burst: {BURST}{prefix}}}}}");
        let server = Server::start(&format!("proxy: {{trusted: 127.0.0.1}}\n{limits}"));
        check_same(|attempt| status(&server, 1, b"", &format!("X-Forwarded-For: {}\r\n", lines(attempt))), is_same);
    };
    let hosts = |attempt: usize| format!("2001:db8:1:1::{attempt:x}");
    let networks = |attempt: usize| format!("2001:db8:1:{attempt:x}::1");
    let sites = |attempt: usize| format!("2001:db8:{attempt:x}::1");
    check("", &hosts, true);
    check("", &networks, false);
    check(", ipv6_prefix: 128", &hosts, false);
    check(", ipv6_prefix: 48", &networks, true);
    check(", ipv6_prefix: 48", &sites, false);
}

#[test]
fn nobody_is_trusted_by_default() {
    let server = server("");
    check_same(|attempt| status(&server, 1, b"", &format!("X-Forwarded-For: 192.0.2.{attempt}\r\n")), true);
    let preamble = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
    let mut raw = connect(&server, 2);
    raw.write(&[&preamble[..], raw::request("/ws").as_bytes()].concat());
    let (status, _, body) = raw.refusal();
    assert!(status == 400 && body.contains("proxy.trusted"), "{status} {body}");
    server.rest();
}

fn line(client: usize) -> Vec<u8> {
    format!("PROXY TCP4 192.0.2.{client} 192.0.2.255 {} 80\r\n", 1000 + client).into_bytes()
}

fn binary(command: u8, client: usize, values: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, 0x11]);
    header.extend((12 + values.len() as u16).to_be_bytes());
    header.extend([198, 51, 100, client as u8, 192, 0, 2, 255, 0, client as u8, 0, 80]);
    header.extend(values);
    header
}

#[test]
fn the_proxy_protocol_names_the_client() {
    let server = server("trusted: [127.0.0.1, 127.0.0.2, 192.0.2.200], proxy_protocol: true");
    let by = |preamble: &dyn Fn(usize) -> Vec<u8>, lines: &str, is_same| {
        check_same(|attempt| status(&server, 1, &preamble(attempt), lines), is_same);
    };
    by(&|attempt| line(attempt), "", false);
    by(&|_| line(100), "", true);
    by(&|attempt| binary(1, attempt, &[]), "", false);
    by(&|_| binary(1, 100, &[4, 0, 2, 0, 0]), "", true);
    // The client is no proxy, so its headers are nothing; another proxy's are.
    by(&|attempt| binary(1, 101, &vec![0; attempt]), "X-Forwarded-For: 203.0.113.9\r\n", true);
    by(&|_| line(200), "X-Forwarded-For: 203.0.113.10\r\n", true);
    assert_eq!(status(&server, 1, &line(200), "X-Forwarded-For: 203.0.113.11\r\n"), 101);
    // Proxies that connect for themselves, or do not say for whom.
    by(&|attempt| binary(0, attempt, &[]), "", true);
    assert_eq!(status(&server, 1, b"PROXY UNKNOWN\r\n", ""), 429);
    assert_eq!(status(&server, 2, b"PROXY UNKNOWN\r\n", ""), 101);
    server.rest();
}

#[test]
fn proxy_headers_in_any_split() {
    let server = Server::start("proxy: {trusted: 127.0.0.1, proxy_protocol: true}");
    for preamble in [line(1), binary(1, 1, &[1; 300])] {
        let whole = [&preamble[..], raw::request("/ws").as_bytes(), &raw::text(r#"{"type":"ping","id":1}"#)].concat();
        for cut in (1..whole.len()).step_by(13).chain([preamble.len() - 1, preamble.len(), preamble.len() + 1]) {
            let mut raw = server.raw();
            raw.stream.set_nodelay(true).unwrap();
            raw.write(&whole[..cut]);
            std::thread::yield_now();
            raw.write(&whole[cut..]);
            assert!(raw.head().starts_with("HTTP/1.1 101 "), "cut at {cut}");
            assert_eq!(raw.json()["reply_to"], 1, "cut at {cut}");
        }
    }
    let mut raw = server.raw();
    let whole = [binary(1, 1, &[1; 30]), raw::request("/ws").into_bytes()].concat();
    whole.iter().for_each(|&byte| raw.write(&[byte]));
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    drop(raw);
    server.rest();
}

#[test]
fn bad_proxy_headers() {
    let server = Server::start("proxy: {trusted: 127.0.0.1, proxy_protocol: true}\nwebsocket: {max_header_bytes: 512}");
    let check = |from: u8, preamble: &[u8], expected: u16, why: &str| {
        let mut raw = connect(&server, from);
        raw.write(&[preamble, raw::request("/ws").as_bytes()].concat());
        let head = raw.head();
        assert_eq!(head.split(' ').nth(1), Some(&*expected.to_string()), "{}: {head}", preamble.escape_ascii());
        if expected != 101 {
            raw.rest();
            assert!(raw.body().contains(why), "{}: {}", preamble.escape_ascii(), raw.body());
        }
    };
    check(1, b"", 400, "header missing");
    check(1, b"PROXY TCP4 nowhere\r\n", 400, "malformed");
    check(1, &[b"PROXY UNKNOWN ", &[b'x'; 91][..], b"\r\n"].concat(), 101, "");
    check(1, &[b"PROXY UNKNOWN ", &[b'x'; 92][..], b"\r\n"].concat(), 400, "malformed");
    check(1, &binary(1, 1, &[0; 484]), 101, "");
    check(1, &binary(1, 1, &[0; 485]), 400, "too long");
    check(1, &binary(2, 1, &[]), 400, "unknown version, command or family");
    // Once is enough.
    check(1, &[line(1), line(1)].concat(), 400, "PROXY protocol");
    // From others none is taken.
    check(2, b"", 101, "");
    check(2, &line(1), 400, "proxy.trusted");
    check(2, &binary(1, 1, &[]), 400, "HTTP");
    assert!(server.sum(|shard| &shard.refused[Refusal::BadRequest as usize]) >= 8);
    server.rest();
}

/// An upgrade from 127.0.0.`from`: the status, and the connection if it is one.
#[track_caller]
fn upgrade(server: &Server, from: u8, path: &str, lines: &str) -> (u16, Raw) {
    let mut raw = connect(server, from);
    raw.write(raw::request_with(path, lines).as_bytes());
    let status = raw.head().split(' ').nth(1).unwrap().parse().unwrap();
    (status, raw)
}

#[track_caller]
fn is_alive(raw: &mut Raw) {
    raw.text(r#"{"type":"ping","id":1}"#);
    assert_eq!(raw.json()["reply_to"], 1);
}

#[test]
fn connections_of_an_address_make_room_for_each_other() {
    let server = Server::start(
        "proxy: {trusted: 127.0.0.9}\nwebsocket: {max_total_connections: 4096, max_connections_per_address: 3}",
    );
    let open = |from, lines| {
        let (status, raw) = upgrade(&server, from, "/ws", lines);
        assert_eq!(status, 101);
        raw
    };
    let mut others = vec![open(2, ""), open(9, "X-Forwarded-For: 192.0.2.1\r\n"), open(9, "X-Forwarded-For: ::1\r\n")];
    let mut ours: Vec<Raw> = (0..3).map(|_| open(1, "")).collect();
    ours.iter_mut().for_each(is_alive);
    for from in [1, 9] {
        // By way of the proxy they come from the same address.
        ours.push(open(from, "X-Forwarded-For: 127.0.0.1\r\n"));
        let mut oldest = ours.remove(0);
        assert_eq!(oldest.until(CLOSE).payload[..2], 4503u16.to_be_bytes());
        ours.iter_mut().chain(&mut others).for_each(is_alive);
    }
    // Whoever has left is not counted.
    drop(ours.pop());
    super::until("the end of one", || server.closed(CloseReason::Lost) + server.closed(CloseReason::Peer) >= 1);
    ours.push(open(1, ""));
    ours.iter_mut().chain(&mut others).for_each(is_alive);
    assert_eq!(server.closed(CloseReason::Evicted), 2);
    drop((ours, others));
    server.rest();
}

#[test]
fn an_address_with_too_many_connections_is_rejected() {
    let server = Server::start(&format!(
        "echo_path: /echo\nauth: {{required: false, secret: '{SECRET}'}}\n\
         websocket: {{max_connections_per_address: 2, client_limit_policy: reject}}"
    ));
    let (mut first, mut second) = (upgrade(&server, 1, "/ws", "").1, upgrade(&server, 1, "/echo", "").1);
    assert_eq!(upgrade(&server, 1, "/ws", "").0, 429);
    assert_eq!(upgrade(&server, 1, "/echo", "").0, 429);
    assert_eq!(server.sum(|shard| &shard.refused[Refusal::Address as usize]), 2);
    assert_eq!(upgrade(&server, 2, "/ws", "").0, 101);
    // Somebody is not nobody: who authenticates makes room, and who does so at once needs none.
    let alice = token(json!({"sub": "alice"}));
    let (status, mut known) = upgrade(&server, 1, "/ws", &format!("Authorization: Bearer {alice}\r\n"));
    assert_eq!((status, &known.json()["payload"]["user_id"]), (101, &json!("alice")));
    first.text(&json!({"type": "authenticate", "payload": {"token": alice}}).to_string());
    assert_eq!(first.json()["payload"]["authenticated"], true);
    let mut third = upgrade(&server, 1, "/ws", "");
    assert_eq!((third.0, upgrade(&server, 1, "/ws", "").0), (101, 429));
    [&mut first, &mut third.1, &mut known].into_iter().for_each(is_alive);
    // However one ends, there is room again.
    second.write(&raw::close(1000));
    assert_eq!(second.closed(), 1000);
    let mut fourth = upgrade(&server, 1, "/ws", "");
    assert_eq!((fourth.0, upgrade(&server, 1, "/ws", "").0), (101, 429));
    is_alive(&mut fourth.1);
    drop((first, second, third, fourth, known));
    server.rest();
}

#[test]
fn who_is_not_counted_by_address() {
    for (section, count) in [
        ("auth: {required: false}\n", 40),
        (&*format!("auth: {{secret: '{SECRET}'}}\nwebsocket: {{max_connections_per_address: 1}}"), 5),
    ] {
        let server = Server::start(section);
        let mut all: Vec<(u16, Raw)> = (0..count).map(|_| upgrade(&server, 1, "/ws", "")).collect();
        all.iter_mut().for_each(|(status, raw)| {
            assert_eq!(*status, 101);
            is_alive(raw);
        });
    }
}
