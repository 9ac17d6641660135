//! What the engine tells about its connections: state, history, those that have ended, and round trips.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidewheel::id::SessionId;
use tidewheel::metrics::CloseReason;
use tidewheel::shard::queries::{ConnectionSort, ConnectionState, Connections, ConnectionsQuery};

use super::api::Api;
use super::auth::{SECRET, in_an_hour, token};
use super::handlers::block_on;
use super::raw::{PING, PONG};
use super::server::Server;

/// A server with one shard, whose clients may authenticate.
fn with_auth(required: bool) -> Server {
    Server::build(1, &format!("auth: {{required: {required}, secret: '{SECRET}'}}"), |builder| builder)
}

fn ask(server: &Server, query: ConnectionsQuery) -> Connections {
    block_on(server.handle.connections(query)).unwrap()
}

fn closed() -> ConnectionsQuery {
    ConnectionsQuery { state: ConnectionState::Closed, ..ConnectionsQuery::default() }
}

/// Ids of what a query finds, in order.
fn ids(server: &Server, query: ConnectionsQuery) -> Vec<SessionId> {
    ask(server, query).connections.iter().map(|state| state.session_id).collect()
}

/// The only session there is.
#[track_caller]
fn only(server: &Server) -> SessionId {
    let ids = ids(server, ConnectionsQuery::default());
    assert_eq!(ids.len(), 1);
    ids[0]
}

fn report(server: &Server, id: SessionId) -> Value {
    serde_json::to_value(block_on(server.handle.session(id)).unwrap()).unwrap()
}

/// The events of a session in short, and how many were forgotten.
fn history(server: &Server, id: SessionId) -> (Vec<String>, u64) {
    let report = report(server, id);
    let mut last = 0;
    let events = report["history"].as_array().unwrap().iter().map(|event| {
        let at = event["at"].as_u64().unwrap();
        assert!(at >= last && at > 1_700_000_000_000, "{event}");
        last = at;
        let detail = ["topic", "cause"].map(|name| event[name].as_str().unwrap_or("")).concat();
        format!("{} {detail}{}", event["event"].as_str().unwrap(), event["count"].as_u64().unwrap_or(0))
    });
    (events.collect(), report["forgotten"].as_u64().unwrap())
}

#[test]
fn a_session_from_begin_to_end() {
    let server = with_auth(true);
    let mut client = server.connect();
    let reply = client.ask("authenticate", json!({"token": token(in_an_hour())}));
    let id: SessionId = reply["payload"]["session_id"].as_str().unwrap().parse().unwrap();
    client.subscribe("news");
    client.refused("nonsense", json!({}), "unknown_message");
    client.refused("nonsense", json!({}), "unknown_message");
    client.ask("refresh", json!({"token": token(in_an_hour())}));
    client.subscribe("weather");
    client.ack("unsubscribe", json!({"topic": "news"}));
    assert_eq!(client.publish("weather", json!("rain")), (1, 1, 0));
    client.data("weather");

    let open = report(&server, id);
    let expected = json!({"user_id": "alice", "address": "127.0.0.1", "shard": 0, "endpoint": "native", "phase": "open",
        "messages_in": 8, "messages_out": 9, "pending_frames": 0, "pending_bytes": 0, "subscriptions": 1,
        "topics": ["weather"], "rtt_ms": null, "closed": null, "forgotten": 0});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&open[name], value, "{name} of {open}");
    }
    assert_eq!(open["session_id"], id.to_string());
    let bytes = ["bytes_in", "bytes_out"].map(|name| open[name].as_u64().unwrap());
    assert_eq!(bytes, [server.sum(|shard| &shard.bytes_in), server.sum(|shard| &shard.bytes_out)]);
    let events = [
        "connected 0",
        "authenticated 0",
        "subscribed news0",
        "error unknown_message2",
        "refreshed 0",
        "subscribed weather0",
        "unsubscribed news0",
        "closed peer0",
    ];
    assert_eq!(history(&server, id), (events[..7].iter().map(|&event| event.to_owned()).collect(), 0));

    client.close();
    server.rest();
    assert_eq!(history(&server, id).0, events);
    let ended = report(&server, id);
    assert_eq!((&ended["phase"], &ended["closed"]["reason"]), (&json!("closed"), &json!("peer")), "{ended}");
    assert_eq!(ended["closed"]["code"], 1000);
    assert_eq!((&ended["user_id"], &ended["messages_in"]), (&json!("alice"), &json!(8)));
    let lasted = ended["closed"]["at"].as_u64().unwrap() - ended["since"].as_u64().unwrap();
    assert_eq!(ended["closed"]["duration_ms"], lasted);
    assert_eq!((ids(&server, ConnectionsQuery::default()), ids(&server, closed())), (vec![], vec![id]));
}

#[test]
fn a_history_has_its_bound() {
    for (bound, subscriptions, forgotten) in [(4, 3, 0), (4, 4, 1), (1, 0, 0), (1, 2, 2), (0, 5, 0)] {
        let server = Server::start(&format!("websocket: {{max_session_history: {bound}, ping_interval_seconds: 0}}"));
        let mut client = server.connect();
        let topics: Vec<_> = (0..subscriptions).map(|topic| format!("t{topic}")).collect();
        topics.iter().for_each(|topic| client.subscribe(topic));
        let all: Vec<_> = ["connected 0".to_owned()]
            .into_iter()
            .chain(topics.iter().map(|topic| format!("subscribed {topic}0")))
            .collect();
        let shown = all[all.len().saturating_sub(bound)..].to_vec();
        assert_eq!(history(&server, only(&server)), (shown, forgotten), "{bound} {subscriptions}");
        client.close();
        server.rest();
    }
}

#[test]
fn so_many_ended_sessions_are_remembered_and_no_refused_handshake() {
    let yaml = "websocket: {closed_sessions_kept: 2, ping_interval_seconds: 0}";
    let server = Server::build(1, yaml, |builder| builder);
    let mut gone = Vec::new();
    for round in 1..=3 {
        let client = server.connect();
        gone.insert(0, only(&server));
        client.close();
        let mut refused = server.raw();
        refused.write(super::raw::request("/nowhere").as_bytes());
        assert_eq!(refused.refusal().0, 404);
        server.rest();
        gone.truncate(2);
        assert_eq!(ids(&server, closed()), gone, "after {round}");
    }
    assert!(block_on(server.handle.session(gone[1])).is_ok());
    let client = server.connect();
    client.close();
    server.rest();
    let error = block_on(server.handle.session(gone[1])).unwrap_err();
    assert_eq!(error.code.label(), "not_found");
    let stranger = "ffffffff-ffff-8fff-bfff-ffffffffffff".parse().unwrap();
    assert_eq!(block_on(server.handle.session(stranger)).unwrap_err().code.label(), "not_found");
}

#[test]
fn none_is_remembered_unless_asked_for() {
    let server = Server::start("websocket: {closed_sessions_kept: 0, ping_interval_seconds: 0}");
    server.connect().close();
    server.rest();
    assert_eq!(ask(&server, closed()), Connections::default());
}

/// Promise 6: nothing of a session reaches the next user of its slot.
#[test]
fn the_next_user_of_a_slot_begins_with_nothing() {
    let server = with_auth(true);
    let mut client = server.connect();
    client.ask("authenticate", json!({"token": token(in_an_hour())}));
    client.subscribe("secret");
    for _ in 0..100 {
        client.publish("secret", json!("x".repeat(1000)));
    }
    let first = only(&server);
    assert!(report(&server, first)["bytes_in"].as_u64().unwrap() > 100_000);
    client.close();
    server.rest();

    let mut client = server.connect();
    client.ask("ping", json!({}));
    let next = only(&server);
    assert_eq!(first.conn().slot, next.conn().slot, "the slot is used again");
    assert_ne!(first, next);
    assert_eq!(history(&server, next), (vec!["connected 0".to_owned()], 0));
    let report = report(&server, next);
    assert_eq!((&report["user_id"], &report["messages_in"], &report["topics"]), (&Value::Null, &json!(1), &json!([])));
    assert!(report["bytes_in"].as_u64().unwrap() < 1_000, "{report}");
    client.close();
    server.rest();
}

#[test]
fn connections_are_sorted_filtered_and_limited() {
    let server = with_auth(false);
    let mut clients: Vec<_> = Vec::new();
    for _ in 0..3 {
        clients.push(server.connect());
        std::thread::sleep(Duration::from_millis(3)); // so that each is older than the next
    }
    clients[2].ask("authenticate", json!({"token": token(in_an_hour())}));
    clients[1].subscribe("news");
    clients[1].ask("ping", json!({"ballast": "x".repeat(70_000)}));
    std::thread::sleep(Duration::from_millis(3));
    clients[0].ask("ping", json!({}));

    let all = ask(&server, ConnectionsQuery::default());
    assert_eq!((all.matched, all.connections.len()), (3, 3));
    let [first, second, third] = [0, 1, 2].map(|index| all.connections[index].session_id);
    let by = |sort| ConnectionsQuery { sort: Some(sort), ..ConnectionsQuery::default() };
    assert_eq!(ids(&server, by(ConnectionSort::Since)), [first, second, third]);
    assert_eq!(ids(&server, by(ConnectionSort::Bytes))[0], second);
    assert_eq!(ids(&server, by(ConnectionSort::Idle))[2], first, "it has just spoken");
    assert_eq!(ids(&server, by(ConnectionSort::Rtt)).len(), 3);
    assert_eq!(ids(&server, by(ConnectionSort::Pending)).len(), 3);
    let one = ask(&server, ConnectionsQuery { limit: 1, ..by(ConnectionSort::Bytes) });
    assert_eq!((one.matched, one.connections.len(), one.connections[0].session_id), (3, 1, second));
    let of = |client: Option<&str>, topic: Option<&str>| ConnectionsQuery {
        client: client.map(str::to_owned),
        topic: topic.map(str::to_owned),
        ..ConnectionsQuery::default()
    };
    assert_eq!(ids(&server, of(Some("alice"), None)), [third]);
    assert_eq!(ids(&server, of(None, Some("news"))), [second]);
    assert_eq!(ids(&server, of(Some("alice"), Some("news"))), []);
    assert_eq!(ids(&server, of(None, Some("nowhere"))), []);
    for limit in [0, 1_001] {
        let query = ConnectionsQuery { limit, ..ConnectionsQuery::default() };
        assert_eq!(block_on(server.handle.connections(query)).unwrap_err().code.label(), "invalid_message");
    }
    clients.into_iter().for_each(|client| client.close());
    server.rest();
}

/// More connections than a shard looks at in one turn.
#[test]
fn a_look_at_many_connections_takes_several_turns() {
    const MANY: usize = 4_500;
    let server =
        Server::build(1, "websocket: {max_total_connections: 8192, ping_interval_seconds: 0}", |builder| builder);
    let sockets: Vec<_> = (0..MANY).map(|_| server.raw_open()).collect();
    let mut last = server.connect();
    last.subscribe("news");
    last.ask("ping", json!({"ballast": "x".repeat(1_000)}));
    let by_bytes = ConnectionsQuery { sort: Some(ConnectionSort::Bytes), limit: 10, ..ConnectionsQuery::default() };
    let found = ask(&server, by_bytes);
    assert_eq!((found.matched, found.connections.len()), (MANY as u64 + 1, 10));
    assert_eq!(found.connections[0].subscriptions, 1);
    let of_topic = ConnectionsQuery { topic: Some("news".into()), ..ConnectionsQuery::default() };
    assert_eq!(ask(&server, of_topic).matched, 1);
    last.close();
    drop(sockets);
    server.rest();
}

#[test]
fn a_pong_is_a_round_trip_once_and_only_if_it_was_asked_for() {
    let server = Server::start("websocket: {ping_interval_seconds: 1}");
    let mut raw = server.raw_open();
    let id = only(&server);
    let observed = || server.handle.metrics().iter().map(|shard| shard.rtt.read().count()).sum::<u64>();
    raw.frame(PONG, b"unasked");
    raw.frame(PONG, &[0; 8]);
    let ping = raw.until(PING);
    assert_eq!((observed(), &report(&server, id)["rtt_ms"]), (0, &Value::Null));
    raw.frame(PONG, b"another");
    raw.text(r#"{"type":"ping","id":1}"#);
    assert_eq!(raw.json()["reply_to"], 1);
    for _ in 0..3 {
        raw.frame(PONG, &ping.payload);
    }
    raw.text(r#"{"type":"ping","id":2}"#);
    assert_eq!(raw.json()["reply_to"], 2);
    assert_eq!(observed(), 1);
    let rtt_ms = report(&server, id)["rtt_ms"].as_f64().expect("it was measured");
    assert!(rtt_ms > 0.0 && rtt_ms < 30_000.0, "{rtt_ms}");
    let again = raw.until(PING);
    assert_ne!(ping.payload, again.payload);
    raw.frame(PONG, &ping.payload); // too late
    raw.frame(PONG, &again.payload);
    raw.text(r#"{"type":"ping","id":3}"#);
    assert_eq!(raw.json()["reply_to"], 3);
    assert_eq!(observed(), 2);
    drop(raw);
    server.rest();
}

#[test]
fn a_lifetime_ends_with_an_invitation() {
    let server = Server::start("websocket: {max_lifetime: 1s, ping_interval_seconds: 0}");
    let start = Instant::now();
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for client in &mut clients {
        let ended = client.parted(1012, true);
        assert!(start.elapsed() >= Duration::from_millis(800), "before four fifths of its time");
        let retry_after_ms = ended.disconnect.unwrap()["retry_after_ms"].clone();
        assert_eq!(ended.close.unwrap().1, format!("{{\"retry_after_ms\":{retry_after_ms}}}"));
    }
    assert_eq!(server.closed(CloseReason::Lifetime), 8);
    let ends = ask(&server, closed()).connections;
    let lasted: Vec<_> = ends.iter().map(|end| end.closed.as_ref().unwrap().duration_ms).collect();
    assert!(ends.iter().all(|end| end.closed.as_ref().unwrap().reason == "lifetime"));
    assert!(lasted.iter().any(|ms| *ms != lasted[0]), "all at once: {lasted:?}");
    server.rest();
}

#[test]
fn operators_ask_over_http() {
    let api = Api::start("");
    let mut client = api.server.connect();
    client.subscribe("news");
    let other = api.server.connect();
    assert_eq!(api.get("connections")["matched"], 2);
    let found = api.get("connections?sort=bytes&limit=1&state=open&topic=news");
    assert_eq!((&found["matched"], found["connections"].as_array().unwrap().len()), (&json!(1), 1));
    let state = &found["connections"][0];
    assert_eq!((&state["phase"], &state["subscriptions"]), (&json!("open"), &json!(1)));
    let path = format!("sessions/{}", state["session_id"].as_str().unwrap());
    let report = api.get(&path);
    assert_eq!((&report["topics"], &report["history"][1]["topic"]), (&json!(["news"]), &json!("news")));
    assert_eq!(api.get("connections?client=nobody")["matched"], 0);
    client.close();
    other.close();
    api.server.rest();
    assert_eq!(api.get("connections?state=closed")["matched"], 2);
    assert_eq!(api.get("connections")["connections"], json!([]));
    assert_eq!(api.get(&path)["closed"]["reason"], "peer");
    for (query, text) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=", ""),
        ("sort=name", "unknown variant"),
        ("state=", "unknown variant"),
        ("colour=red", "unknown field"),
    ] {
        api.refused(&format!("GET /api/connections?{query}"), "", 400, "invalid_message", text);
    }
    api.refused("GET /api/sessions/x", "", 400, "invalid_message", "UUID");
    let stranger = "GET /api/sessions/00000000-0000-8001-8000-000000000000";
    api.refused(stranger, "", 404, "not_found", "no session");
    api.refused("GET /api/sessions/ffffffff-ffff-8fff-bfff-ffffffffffff", "", 404, "not_found", "no session");
}
