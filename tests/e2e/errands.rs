//! What the API and the library do to certain connections, across two shards.

use serde_json::{Value, json};
use tidewheel::metrics::CloseReason;
use tidewheel::{Disconnect, OutgoingMessage, Target, TopicQuery};

use super::api::Api;
use super::auth::{SECRET, now_s, token};
use super::client::Client;
use super::handlers::block_on;

/// An API whose clients authenticate when the test gets to it, and may have any number of connections.
fn start(limits: &str) -> Api {
    let limits = format!("{{messages: null, bytes: null, connection_attempts: null{limits}}}");
    Api::start(&format!(
        "auth: {{secret: '{SECRET}', timeout: 60s}}\nlimits: {limits}\n\
         websocket: {{max_total_connections: 4096, ping_interval_seconds: 0, max_connections_per_client: 10000}}"
    ))
}

/// Authenticates; returns the session's id.
fn enter(client: &mut Client, user: &str) -> String {
    // A token that allows no topic at all.
    let token = token(json!({"sub": user, "exp": now_s() + 3600, "topics": {}}));
    let result = client.ask("authenticate", json!({"token": token}));
    assert_eq!(result["payload"]["authenticated"], true, "{result}");
    result["payload"]["session_id"].as_str().unwrap().to_owned()
}

/// `ann` on both shards, and `bob`.
fn three(api: &Api) -> [(Client, String); 3] {
    let (mut one, mut two) = api.server.connect_across();
    let ids = [enter(&mut one, "ann"), enter(&mut two, "ann")];
    let mut bob = api.server.connect();
    let id = enter(&mut bob, "bob");
    let [first, second] = ids;
    [(one, first), (two, second), (bob, id)]
}

const NOBODY: &str = "00000000-0000-8000-8000-000000000000";

#[test]
fn sends_to_a_session_or_to_all_of_a_client() {
    let api = start("");
    let [(mut one, id), (mut two, _), (mut bob, _)] = three(&api);
    assert_eq!(api.post("send", json!({"session_id": id, "payload": {"n": 1}})), json!({"matched": 1, "done": 1}));
    assert_eq!(one.expect("direct"), json!({"n": 1}));
    let payload = r#"{"b":1.50,"a":[ 1 ]}"#;
    let answer = api.ask("POST /api/send", &format!(r#"{{"client":"ann","type":"notice","payload":{payload}}}"#));
    assert_eq!((answer.status, answer.json()), (200, json!({"matched": 2, "done": 2})));
    for client in [&mut one, &mut two] {
        let text = client.text();
        assert!(text.contains(r#""type":"notice""#) && text.contains(&format!(r#""payload":{payload}"#)), "{text}");
    }
    bob.quiet();
    // Once for each idempotency key.
    let once = json!({"client": "bob", "payload": null, "idempotency_key": "k"});
    assert_eq!(api.post("send", once.clone()), api.post("send", once));
    assert_eq!(bob.expect("direct"), Value::Null);
    bob.quiet();

    let refused = |body: Value, status: u16, code: &str, text: &str| {
        api.refused("POST /api/send", &body.to_string(), status, code, text);
    };
    refused(json!({"session_id": NOBODY, "payload": 1}), 404, "not_found", "no such connection");
    refused(json!({"session_id": "ffffffff-ffff-8fff-bfff-ffffffffffff", "payload": 1}), 404, "not_found", "");
    // The right address with other random bits.
    let forged = format!("{}{}", &id[..24], "0123456789ab");
    refused(json!({"session_id": forged, "payload": 1}), 404, "not_found", "");
    refused(json!({"client": "eve", "payload": 1}), 404, "not_found", "");
    refused(json!({"session_id": "x", "payload": 1}), 400, "invalid_message", "UUID");
    refused(json!({"payload": 1}), 400, "invalid_message", "exactly one of `session_id`");
    refused(json!({"session_id": id, "client": "ann", "payload": 1}), 400, "invalid_message", "exactly one");
    refused(json!({"client": "ann"}), 400, "invalid_message", "missing field `payload`");
    refused(json!({"client": null, "session_id": id, "payload": 1}), 400, "invalid_message", "null");
    refused(json!({"client": "ann", "payload": 1, "type": ""}), 400, "invalid_message", "`type` must be");
    refused(json!({"client": "ann", "payload": 1, "type": "t".repeat(65)}), 400, "invalid_message", "`type` must be");
    assert_eq!(api.post("send", json!({"client": "ann", "payload": 1, "type": "t".repeat(64)}))["done"], 2);
    // A session that has ended is nobody.
    one.close();
    super::until("the session has ended", || {
        api.ask("POST /api/send", &json!({"session_id": id, "payload": 1}).to_string()).status == 404
    });
}

/// Who has not authenticated where that is asked for has no session yet.
#[test]
fn nothing_reaches_who_has_not_authenticated() {
    let api = start("");
    let mut client = api.server.connect();
    client.tell("ping", json!({}));
    assert_eq!(client.next()["type"], "pong");
    assert_eq!(api.post("broadcast", json!({"data": 1}))["matched"], 0);
    client.quiet();
}

#[test]
fn disconnects_by_session_client_and_topic() {
    let api = start("");
    let disconnect = |body: Value| api.post("disconnect", body);
    let [(mut one, id), (mut two, _), (mut bob, _)] = three(&api);
    assert_eq!(disconnect(json!({"session_id": id})), json!({"matched": 1, "done": 1}));
    let ended = one.parted(4504, false);
    assert_eq!(ended.disconnect.unwrap()["reason"], "closed by an operator");
    two.quiet();
    let how = json!({"client": "ann", "code": 4321, "reason": "moved"});
    assert_eq!(disconnect(how)["done"], 1);
    assert_eq!(two.parted(4321, true).close, Some((4321, "moved".into())));
    bob.quiet();
    assert_eq!(disconnect(json!({"client": "bob", "code": 1000, "reconnect": true}))["done"], 1);
    bob.parted(1000, true);

    // A topic's subscribers, more than one order is for, and nobody else.
    let mut others = [api.server.connect(), api.server.connect()];
    others.iter_mut().for_each(|client| drop(enter(client, "carl")));
    let mut members: Vec<Client> = (0..700).map(|_| api.server.connect()).collect();
    members.iter_mut().for_each(|client| drop(enter(client, "dora")));
    assert_eq!(api.post("subscribe", json!({"client": "dora", "topic": "t"})), json!({"matched": 700, "done": 700}));
    let reason = "r".repeat(123);
    let all = disconnect(json!({"topic": "t", "code": 4999, "reason": reason, "reconnect": false}));
    assert_eq!(all, json!({"matched": 700, "done": 700}));
    for mut member in members {
        assert_eq!(member.parted(4999, false).close, Some((4999, reason.clone())));
    }
    others.iter_mut().for_each(Client::quiet);
    super::until("the count", || api.server.closed(CloseReason::Application) == 703);

    let refused = |body: Value, status: u16, code: &str, text: &str| {
        api.refused("POST /api/disconnect", &body.to_string(), status, code, text);
    };
    refused(json!({"topic": "t"}), 404, "not_found", "");
    refused(json!({"client": "dora"}), 404, "not_found", "");
    refused(json!({"client": "carl", "code": 999}), 400, "invalid_message", "`code`");
    refused(json!({"client": "carl", "code": 1001}), 400, "invalid_message", "`code`");
    refused(json!({"client": "carl", "code": 2999}), 400, "invalid_message", "`code`");
    refused(json!({"client": "carl", "code": 5000}), 400, "invalid_message", "`code`");
    refused(json!({"client": "carl", "reason": "r".repeat(124)}), 413, "too_large", "123 bytes");
    refused(json!({"client": "carl", "topic": "t"}), 400, "invalid_message", "exactly one");
    others.iter_mut().for_each(Client::quiet);
}

#[test]
fn subscribes_whatever_the_token_allows_within_the_bounds_of_a_connection() {
    let api = start(", subscriptions_per_connection: 2, topic_length: 10");
    let [(mut one, id), (mut two, _), (mut bob, _)] = three(&api);
    one.refused("subscribe", json!({"topic": "a"}), "forbidden");
    let subscribe = |body: Value| api.post("subscribe", body);
    assert_eq!(subscribe(json!({"client": "ann", "topic": "a"})), json!({"matched": 2, "done": 2}));
    assert_eq!(subscribe(json!({"client": "ann", "topic": "a"})), json!({"matched": 2, "done": 2}));
    assert_eq!(subscribe(json!({"session_id": id, "topic": "b"})), json!({"matched": 1, "done": 1}));
    assert_eq!(one.ask("list_subscriptions", json!({}))["payload"]["subscriptions"].as_array().unwrap().len(), 2);
    assert_eq!(api.post("publish", json!({"topic": "a", "data": 1}))["matched"], 2);
    assert_eq!((one.data("a"), two.data("a")), (json!(1), json!(1)));
    // Over the bound for one of the two.
    let outcome = subscribe(json!({"client": "ann", "topic": "c"}));
    assert_eq!((&outcome["matched"], &outcome["done"]), (&json!(2), &json!(1)));
    assert_eq!(outcome["refused"]["code"], "limit_exceeded", "{outcome}");
    let over = json!({"session_id": id, "topic": "c"}).to_string();
    api.refused("POST /api/subscribe", &over, 429, "limit_exceeded", "2 subscriptions");
    let bad = |topic: &str, status: u16, code: &str| {
        api.refused(
            "POST /api/subscribe",
            &json!({"client": "ann", "topic": topic}).to_string(),
            status,
            code,
            "topic",
        );
    };
    bad("a..b", 400, "invalid_message");
    bad("12345678901", 413, "too_large");
    assert_eq!(subscribe(json!({"client": "bob", "topic": "1234567890"}))["done"], 1);

    let unsubscribe = |body: Value| api.post("unsubscribe", body);
    assert_eq!(unsubscribe(json!({"client": "ann", "topic": "b"})), json!({"matched": 2, "done": 1}));
    assert_eq!(unsubscribe(json!({"client": "ann", "topic": "b"})), json!({"matched": 2, "done": 0}));
    assert_eq!(api.post("publish", json!({"topic": "b", "data": 1}))["matched"], 0);
    api.refused("POST /api/unsubscribe", r#"{"client":"eve","topic":"a"}"#, 404, "not_found", "");
    [&mut one, &mut two, &mut bob].into_iter().for_each(Client::quiet);
}

#[test]
fn topics_by_page_over_both_shards() {
    let api = start(", subscriptions_per_connection: 10000");
    let [(one, first), (two, second), (bob, third)] = three(&api);
    let subscribe = |id: &str, topic: &str| {
        assert_eq!(api.post("subscribe", json!({"session_id": id, "topic": topic}))["done"], 1);
    };
    (0..30).for_each(|number| subscribe(&first, &format!("a.{number:02}")));
    (20..40).for_each(|number| subscribe(&second, &format!("a.{number:02}")));
    subscribe(&third, "b");
    let page = |query: &str| {
        let page = api.get(&format!("topics?{query}"));
        let names = page["topics"].as_array().unwrap().iter().map(|topic| topic["topic"].as_str().unwrap().to_owned());
        (names.collect::<Vec<_>>(), page["more"].as_bool().unwrap())
    };
    let all: Vec<String> = (0..40).map(|number| format!("a.{number:02}")).chain(["b".into()]).collect();
    assert_eq!(page(""), (all.clone(), false));
    assert_eq!(page("limit=41"), (all.clone(), false));
    assert_eq!(page("limit=40"), (all[..40].to_vec(), true));
    assert_eq!(page("limit=1"), (all[..1].to_vec(), true));
    assert_eq!(page("prefix=a.&limit=40"), (all[..40].to_vec(), false));
    assert_eq!(page("prefix=a.3"), (all[30..40].to_vec(), false));
    assert_eq!(page("after=a.38&limit=2"), (all[39..].to_vec(), false));
    assert_eq!(page("prefix=nothing"), (Vec::new(), false));
    let topics = api.get("topics?prefix=a.2")["topics"].clone();
    for topic in topics.as_array().unwrap() {
        let shards = topic["shards"].as_array().unwrap().clone();
        assert_eq!((&topic["subscribers"], shards), (&json!(2), vec![json!(0), json!(1)]), "{topic}");
    }
    for (query, text) in [
        ("limit=0", "`limit`"),
        ("limit=1001", "`limit`"),
        ("limit=x", "limit"),
        ("limt=1", "unknown field `limt`"),
        ("limit=1&limit=2", "duplicate"),
    ] {
        api.refused(&format!("GET /api/topics?{query}"), "", 400, "invalid_message", text);
    }
    // More than one order looks at.
    for number in 0..9000 {
        let name = format!("c.{number:04}");
        let subscribed = block_on(api.server.handle.subscribe(Target::Client("bob".into()), &name));
        assert_eq!(subscribed.unwrap().done, 1);
    }
    let (names, more) = page("limit=1000&after=c.8000");
    assert_eq!((names.len(), names[0].as_str(), names[998].as_str(), more), (999, "c.8001", "c.8999", false));

    let shards = api.get("shards")["shards"].as_array().unwrap().clone();
    assert_eq!(shards.len(), 2);
    let sum = |name: &str| shards.iter().map(|shard| shard[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("connections"), sum("authenticated"), sum("opened")), (3, 3, api.server.opened().iter().sum()));
    drop((one, two, bob));
}

#[test]
fn the_library_does_the_same() {
    let api = start("");
    let [(mut one, id), (mut two, _), (mut bob, _)] = three(&api);
    let handle = &api.server.handle;
    let session: tidewheel::id::SessionId = id.parse().unwrap();
    let message = |n: u32| OutgoingMessage::new("note", &n).unwrap();
    let done = |reached: tidewheel::Reached| {
        assert_eq!(reached.refusal, None);
        (reached.matched, reached.done)
    };
    assert_eq!(done(block_on(handle.send_to(session, message(1))).unwrap()), (1, 1));
    assert_eq!(one.expect("note"), 1);
    let ann = || Target::Client("ann".into());
    assert_eq!(done(block_on(handle.subscribe(ann(), "t")).unwrap()), (2, 2));
    assert_eq!(done(block_on(handle.send_to(Target::Topic("t".into()), message(2))).unwrap()), (2, 2));
    assert_eq!((one.expect("note"), two.expect("note")), (json!(2), json!(2)));
    let topics = block_on(handle.topics(TopicQuery { limit: 5, ..TopicQuery::default() })).unwrap();
    assert_eq!((topics.len(), &*topics[0].name, topics[0].subscribers), (1, "t", 2));
    assert_eq!(done(block_on(handle.unsubscribe(session, "t")).unwrap()), (1, 1));
    assert_eq!(done(block_on(handle.disconnect(ann(), Disconnect::default())).unwrap()), (2, 2));
    one.parted(4504, false);
    two.parted(4504, false);
    assert_eq!(done(block_on(handle.disconnect(ann(), Disconnect::default())).unwrap()), (0, 0));
    bob.quiet();
}
