//! Reloads of what is no limit of a client: proxies, lifetimes, histories, and handshakes under way.
//! Law: as in `reload`, every test sees the old value at work first.

use std::thread;
use std::time::Duration;

use serde_json::json;
use tidewheel::metrics::CloseReason;
use tidewheel::shard::queries::ConnectionsQuery;

use super::handlers::block_on;
use super::raw::{Raw, request, request_with};
use super::reload::reload;
use super::server::Server;

fn status_of(raw: &mut Raw) -> u16 {
    raw.head().split(' ').nth(1).unwrap().parse().unwrap()
}

/// Whose connections these are, as the engine sees it.
fn addresses(server: &Server) -> Vec<String> {
    let open = block_on(server.handle.connections(ConnectionsQuery::default())).unwrap();
    open.connections.iter().map(|state| json!(state)["address"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn proxies_are_believed_from_then_on() {
    let server = Server::start("");
    let named = |preamble: &str| {
        let mut raw = server.raw();
        raw.write(format!("{preamble}{}", request_with("/ws", "X-Forwarded-For: 192.0.2.7\r\n")).as_bytes());
        let status = status_of(&mut raw);
        let seen = if status == 101 { addresses(&server) } else { Vec::new() };
        drop(raw);
        super::until("it to be gone", || server.active() == 0);
        (status, seen)
    };
    let seen = |address: &str| (101, vec![address.to_owned()]);
    assert_eq!(named(""), seen("127.0.0.1"));
    reload(&server, "proxy: {trusted: 127.0.0.1}");
    assert_eq!(named(""), seen("192.0.2.7"));
    let preamble = "PROXY TCP4 192.0.2.8 192.0.2.255 1000 80\r\n";
    assert_eq!(named(preamble).0, 400);
    reload(&server, "proxy: {trusted: 127.0.0.1, proxy_protocol: true}");
    assert_eq!(named(preamble), seen("192.0.2.8"));
    assert_eq!(named("").0, 400);
    reload(&server, "");
    assert_eq!(named(""), seen("127.0.0.1"));
}

/// A lifetime counts from the connection's begin: who has had it goes at once.
#[test]
fn lifetimes_of_what_is_connected() {
    let websocket = |keys: &str| format!("websocket: {{ping_interval_seconds: 0{keys}}}");
    let server = Server::start(&websocket(""));
    let mut early = server.connect();
    thread::sleep(Duration::from_millis(1_100));
    early.quiet();
    reload(&server, &websocket(", max_lifetime: 1h"));
    early.quiet();
    reload(&server, &websocket(", max_lifetime: 1s"));
    early.parted(1012, true);
    server.connect().parted(1012, true);
    reload(&server, &websocket(""));
    let mut late = server.connect();
    thread::sleep(Duration::from_millis(1_100));
    late.quiet();
    assert_eq!(server.closed(CloseReason::Lifetime), 2);
}

/// How much is remembered of a session, and how many that have ended.
#[test]
fn histories() {
    let websocket = |keys: &str| format!("websocket: {{ping_interval_seconds: 0, {keys}}}");
    let server = Server::start(&websocket("max_session_history: 100"));
    let mut client = server.connect();
    let history = || {
        let id = block_on(server.handle.connections(ConnectionsQuery::default())).unwrap().connections[0].session_id;
        block_on(server.handle.session(id)).unwrap().history.len()
    };
    let subscribe = |client: &mut super::client::Client, prefix: &str| {
        for number in 0..10 {
            client.subscribe(&format!("{prefix}{number}"));
        }
    };
    subscribe(&mut client, "a");
    let before = history();
    assert!(before > 10, "{before}");
    reload(&server, &websocket("max_session_history: 4"));
    client.subscribe("one");
    assert!(history() <= 4, "{}", history());
    reload(&server, &websocket("max_session_history: 100"));
    subscribe(&mut client, "b");
    assert!(history() > 10);
    reload(&server, &websocket("max_session_history: 0"));
    client.subscribe("another");
    assert_eq!(history(), 0);

    let kept = || {
        let closed = json!({"state": "closed"});
        let query: ConnectionsQuery = serde_json::from_value(closed).unwrap();
        block_on(server.handle.connections(query)).unwrap().matched
    };
    drop(client);
    super::until("it to be remembered", || kept() == 1);
    reload(&server, &websocket("closed_sessions_kept: 0"));
    super::until("it to be forgotten, although no other ends", || kept() == 0);
    server.connect().close();
    super::until("the next one to be gone", || server.active() == 0);
    assert_eq!(kept(), 0);
}

#[test]
fn handshakes_under_way() {
    let yaml = |most: u32| format!("limits: {{handshakes_in_flight: {most}, connection_attempts: null}}");
    let server = Server::start(&yaml(8));
    let begin = || {
        let mut raw = server.raw();
        raw.write(b"GET /ws HTTP/1.1\r\n");
        raw
    };
    let mut under_way = [begin(), begin()];
    super::until("both to have a place", || server.active() == 2);
    let status = || {
        let mut raw = server.raw();
        raw.write(request("/ws").as_bytes());
        status_of(&mut raw)
    };
    assert_eq!(status(), 101);
    // Who has a place keeps it, newcomers find none, until there are as few.
    reload(&server, &yaml(2));
    assert_eq!(status(), 503);
    reload(&server, &yaml(3));
    assert_eq!(status(), 101);
    reload(&server, &yaml(1));
    for raw in &mut under_way {
        assert_eq!(status(), 503);
        raw.write(request("/ws").split_once("\r\n").unwrap().1.as_bytes());
        assert_eq!(status_of(raw), 101);
    }
    assert_eq!(status(), 101);
}
