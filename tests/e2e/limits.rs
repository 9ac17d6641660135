//! What one client may use: just under, at and over each limit, and with the limit off.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tidewheel::metrics::{CloseReason, ErrorCode, Refusal};

use super::auth::{SECRET, token};
use super::client::Client;
use super::raw::{self, BINARY, CLOSE, Raw, TEXT, masked};
use super::server::Server;

fn ping(id: usize) -> Vec<u8> {
    raw::text(&format!(r#"{{"id":{id},"type":"ping"}}"#))
}

/// Sends so many pings at once, and returns how many of them were answered and how many refused, in that order.
#[track_caller]
pub fn pings(raw: &mut Raw, count: usize) -> (usize, usize) {
    raw.write(&(0..count).flat_map(ping).collect::<Vec<_>>());
    let (mut pongs, mut refused) = (0, 0);
    for id in 0..count {
        let reply = raw.json();
        assert_eq!(reply["reply_to"], id, "{reply}");
        match reply["type"].as_str() {
            Some("pong") => pongs += 1,
            _ => refused += usize::from(reply["payload"]["code"] == "rate_limited"),
        }
    }
    (pongs, refused)
}

#[test]
fn messages_over_the_rate_are_refused() {
    let server = Server::start("limits: {messages: {per_second: 1, burst: 30}, bytes: null, errors: 3}");
    let mut watcher = server.connect();
    watcher.subscribe("t");
    let mut raw = server.raw_open();
    assert_eq!(pings(&mut raw, 29), (29, 0));
    assert_eq!(pings(&mut raw, 2), (1, 1));
    // Every kind of request gets its one answer, nothing is carried out, and the error budget is not spent.
    for (id, text) in [
        (json!("a"), r#"{"id":"a","type":"publish","payload":{"topic":"t","data":1}}"#),
        (json!(7), r#"{"id":7,"type":"nonsense"}"#),
        (json!(8), r#"{"id":8,"type":"subscribe","payload":{}}"#),
        (Value::Null, r#"{"type":"publish","payload":{"topic":"t","data":2}}"#),
        (Value::Null, "not JSON"),
    ] {
        raw.text(text);
        let reply = raw.json();
        assert_eq!((&reply["payload"]["code"], &reply["reply_to"]), (&json!("rate_limited"), &id), "{reply}");
    }
    raw.frame(BINARY, b"\xff");
    assert_eq!(raw.json()["payload"]["code"], "rate_limited");
    watcher.quiet();
    // It comes back at the rate.
    super::until("a message to be let through", || {
        thread::sleep(Duration::from_millis(200));
        pings(&mut raw, 1) == (1, 0)
    });
    assert!(server.sum(|shard| &shard.errors[ErrorCode::RateLimited as usize]) >= 7);
    // Its neighbours have a rate of their own.
    assert_eq!(pings(&mut server.raw_open(), 30), (30, 0));
    drop((raw, watcher));
    server.rest();
}

#[test]
fn bytes_over_the_rate_are_refused() {
    let server = Server::start("limits: {messages: null, bytes: {per_second: 1B, burst: 1000B}}");
    let check = |lengths: &[usize], expected: &[&str]| {
        let mut raw = server.raw_open();
        for &length in lengths {
            let text = r#"{"id":1,"type":"ping"}"#;
            raw.write(&masked(raw::FIN | TEXT, format!("{text}{}", " ".repeat(length - text.len())).as_bytes()));
        }
        for expected in expected {
            let reply = raw.json();
            let said = reply["payload"]["code"].as_str().or(reply["type"].as_str());
            assert_eq!((said, &reply["reply_to"]), (Some(*expected), &json!(1)), "{lengths:?}");
        }
    };
    check(&[500, 499, 40], &["pong", "pong", "rate_limited"]);
    check(&[500, 500, 40], &["pong", "pong", "rate_limited"]);
    // What is refused costs nothing.
    check(&[500, 540, 500, 40], &["pong", "rate_limited", "pong", "rate_limited"]);
    // What is larger than the burst needs all of it, and then some.
    check(&[2000, 40], &["pong", "rate_limited"]);
    check(&[40, 2000], &["pong", "rate_limited"]);
    server.rest();
}

/// Who goes on is closed after 200 refusals, not one earlier.
#[test]
fn who_goes_on_is_closed() {
    let server = Server::start("limits: {messages: {per_second: 1, burst: 10}}");
    let mut raw = server.raw_open();
    let mut refused = 0;
    for id in 0.. {
        raw.write(&ping(id));
        let reply = raw.json();
        if reply["type"] == "disconnect" {
            assert_eq!((&reply["payload"]["code"], &reply["payload"]["reconnect"]), (&json!(4505), &json!(false)));
            break;
        }
        refused += usize::from(reply["payload"]["code"] == "rate_limited");
        assert!(refused <= 200, "it goes on and on");
    }
    assert_eq!(refused, 200);
    assert_eq!(raw.until(CLOSE).payload[..2], 4505u16.to_be_bytes());
    raw.write(&raw::close(4505));
    raw.rest();
    super::until("the count", || server.closed(CloseReason::RateLimit) == 1);
    server.rest();
}

#[test]
fn rates_by_default_and_off() {
    let check = |limits: &str, path: &str, is_limited: bool| {
        let server = Server::start(&format!("echo_path: /echo\nlimits: {{{limits}}}"));
        let mut raw = server.raw();
        raw.upgrade(path);
        raw.write(&(0..390).flat_map(ping).collect::<Vec<_>>());
        let refused = (0..390).filter(|_| raw.json()["payload"]["code"] == "rate_limited").count();
        // A slow machine brings some back meanwhile.
        assert!(if is_limited { (1..=190).contains(&refused) } else { refused == 0 }, "{limits} {path}: {refused}");
    };
    check("errors: 7", "/ws", true);
    check("messages: null", "/ws", false);
    check("messages: null, bytes: {per_second: 1B, burst: 8KB}", "/ws", true);
    check("bytes: null", "/ws", true);
    // The raw echo is exempt.
    check("errors: 7", "/echo", false);
}

/// An upgrade from this address of the loopback network: the status, and the connection if it is one.
fn attempt(server: &Server, from: u8) -> (u16, Raw) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, from], 0)).into()).unwrap();
    socket.connect(&server.address.into()).unwrap();
    let mut raw = Raw::over(socket.into());
    raw.write(raw::request("/ws").as_bytes());
    let head = raw.head();
    let retry = head.lines().find_map(|line| line.strip_prefix("Retry-After: "));
    let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(retry.is_some_and(|after| (1..=4).contains(&after.parse::<u32>().unwrap())), status == 429, "{head}");
    (status, raw)
}

#[test]
fn attempts_over_the_rate_are_refused() {
    let server = Server::start("limits: {connection_attempts: {per_second: 1, burst: 20}}");
    // Of each address as many as its burst, on whichever shards they are; a slow machine brings one or two back.
    for from in [1, 2] {
        let statuses: Vec<u16> = (0..40).map(|_| attempt(&server, from).0).collect();
        assert_eq!(statuses[..20], [101; 20]);
        assert!(statuses[20..].iter().filter(|&&status| status == 429).count() > 10, "{statuses:?}");
    }
    super::until("an attempt to be let through", || {
        thread::sleep(Duration::from_millis(200));
        attempt(&server, 1).0 == 101
    });
    assert!(server.sum(|shard| &shard.refused[Refusal::RateLimited as usize]) > 20);
    server.rest();
}

#[test]
fn attempts_by_prefix_by_default_and_off() {
    let check = |limits: &str, addresses: u8, each: usize, is_limited: bool| {
        let server = Server::start(&format!("limits: {{{limits}}}"));
        let attempts = (1..=addresses).flat_map(|from| (0..each).map(move |_| from));
        let refused = attempts.filter(|&from| attempt(&server, from).0 == 429).count();
        assert_eq!(refused > 0, is_limited, "{limits}: {refused}");
        server.rest();
    };
    check("connection_attempts: null", 1, 150, false);
    check("errors: 7", 1, 100, false);
    // Twenty a second come back while a slow machine tries.
    check("errors: 7", 1, 600, true);
    check("connection_attempts: {per_second: 1, burst: 3}", 12, 3, false);
    check("connection_attempts: {per_second: 1, burst: 3, ipv4_prefix: 24}", 12, 3, true);
}

#[test]
fn newcomers_over_the_rate_of_all_wait_and_are_let_in() {
    let server = Server::build(2, "limits: {connections_per_second: 50, connection_attempts: null}", |builder| builder);
    let mut here = server.connect();
    let begin = Instant::now();
    let mut newcomers: Vec<Raw> = (0..40).map(|_| server.raw()).collect();
    newcomers.iter_mut().for_each(|raw| raw.write(raw::request("/ws").as_bytes()));
    assert_eq!(here.ask("ping", json!({}))["type"], "pong");
    assert!(newcomers.iter_mut().all(|raw| raw.head().starts_with("HTTP/1.1 101 ")));
    // A shard may have taken in three at once, and as many as were on their way when it had.
    assert!(begin.elapsed() > Duration::from_millis(300), "{:?}", begin.elapsed());
    assert!(server.sum(|shard| &shard.accept_paced) > 1);
    drop((here, newcomers));
    server.rest();
}

fn clients(limits: &str) -> Server {
    Server::build(4, &format!("auth: {{secret: '{SECRET}'}}\nwebsocket: {{{limits}}}"), |builder| builder)
}

/// A new connection of this user that has asked to be let in, and the answer.
fn enter(server: &Server, claims: Value) -> (Client, Value) {
    let mut client = server.connect();
    let reply = client.ask("authenticate", json!({"token": token(claims)}));
    (client, reply["payload"].clone())
}

#[track_caller]
fn entered(server: &Server, claims: Value) -> Client {
    let (client, reply) = enter(server, claims);
    assert_eq!(reply["authenticated"], true, "{reply}");
    client
}

#[test]
fn the_oldest_connection_of_a_client_makes_room() {
    for (limits, most, claims) in [
        ("idle_timeout_seconds: 300", 5, json!({"sub": "alice"})),
        ("max_connections_per_client: 2", 2, json!({"sub": "alice"})),
        ("max_connections_per_client: 1", 1, json!({"sub": "alice"})),
        ("max_connections_per_client: 2", 7, json!({"sub": "alice", "max_connections": 7})),
        ("max_connections_per_client: 5", 1, json!({"sub": "alice", "max_connections": 1})),
        ("max_connections_per_client: null", 3, json!({"sub": "alice", "max_connections": 3})),
    ] {
        let server = clients(limits);
        let mut bob = entered(&server, json!({"sub": "bob"}));
        let mut alices: VecDeque<Client> = (0..most).map(|_| entered(&server, claims.clone())).collect();
        alices.iter_mut().for_each(Client::quiet);
        for _ in 0..3 {
            alices.push_back(entered(&server, claims.clone()));
            alices.pop_front().unwrap().parted(4503, false);
            alices.iter_mut().for_each(Client::quiet);
        }
        // Whoever has left is not counted.
        alices.pop_back().unwrap().close();
        alices.push_back(entered(&server, claims));
        alices.iter_mut().for_each(Client::quiet);
        bob.quiet();
        super::until("the count", || server.closed(CloseReason::Evicted) == 3);
        drop((alices, bob));
        server.rest();
    }
}

#[test]
fn no_limit_for_a_client() {
    let server = clients("max_connections_per_client: null");
    let mut alices: Vec<Client> = (0..20).map(|_| entered(&server, json!({"sub": "alice"}))).collect();
    alices.iter_mut().for_each(Client::quiet);
}

#[test]
fn the_idlest_connection_of_a_client_makes_room() {
    let server = clients("max_connections_per_client: 2, client_limit_policy: evict_idle");
    let (alice, again) = (json!({"sub": "alice"}), json!({"token": token(json!({"sub": "alice"}))}));
    let (mut first, mut second) = (entered(&server, alice.clone()), entered(&server, alice.clone()));
    assert_eq!(first.ask("refresh", again)["payload"]["authenticated"], true);
    let mut third = entered(&server, alice);
    second.parted(4503, false);
    first.quiet();
    third.quiet();
}

#[test]
fn a_client_that_is_rejected() {
    let server = clients("max_connections_per_client: 2, client_limit_policy: reject");
    let alice = json!({"sub": "alice"});
    let (mut first, mut second) = (entered(&server, alice.clone()), entered(&server, alice.clone()));
    let (mut third, reply) = enter(&server, alice.clone());
    assert_eq!(reply["authenticated"], false, "{reply}");
    assert!(reply["error"].as_str().unwrap().contains("limit_exceeded"), "{reply}");
    third.parted(4501, false);
    first.quiet();
    second.quiet();
    entered(&server, json!({"sub": "bob"})).quiet();
    // However one ends, there is room again.
    first.close();
    drop(entered(&server, alice.clone()));
    super::until("room for one more", || enter(&server, alice.clone()).1["authenticated"] == true);
    second.quiet();
}

/// A token in the upgrade request counts like one in a message.
#[test]
fn a_client_that_is_known_from_its_request() {
    for (policy, is_let_in) in [("evict_oldest", true), ("reject", false)] {
        let server = clients(&format!("max_connections_per_client: 1, client_limit_policy: {policy}"));
        let bearer = format!("Bearer {}", token(json!({"sub": "alice"})));
        let connect = || Client::connect_to(server.address, "/ws", &[("authorization", &bearer)]).0;
        let (mut first, mut second) = (connect(), connect());
        for (client, is_let_in) in [(&mut first, true), (&mut second, is_let_in)] {
            assert_eq!(client.expect("auth_result")["authenticated"], is_let_in);
        }
        let (mut stays, mut goes) = if is_let_in { (second, first) } else { (first, second) };
        goes.parted(if is_let_in { 4503 } else { 4501 }, false);
        stays.quiet();
        drop((stays, goes));
        server.rest();
    }
}
