//! Every built-in command, its exact reply, and its refusals.

use serde_json::{Value, json};
use tidewheel::metrics::ErrorCode;
use tungstenite::Message;

use super::client::Client;
use super::server::Server;

/// Sends `text` and compares the reply, without its timestamp, with `expected`.
#[track_caller]
fn check(client: &mut Client, text: &str, expected: Value) {
    client.send(text);
    let mut reply = client.next();
    reply.as_object_mut().unwrap().remove("timestamp");
    if reply["type"] == "pong" {
        assert!(reply["payload"]["timestamp"].take().as_u64().is_some(), "{reply}");
    }
    assert_eq!(reply, expected, "{text}");
}

#[test]
fn each_has_its_reply() {
    let server = Server::start("");
    let mut client = server.connect();
    let client = &mut client;
    let pong = |extra: Value| {
        let mut pong = json!({"type": "pong", "payload": {"timestamp": null}});
        pong.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        pong
    };
    check(client, r#"{"type":"ping"}"#, pong(json!({})));
    check(client, r#" { "unknown" : [1] , "payload" : {} , "type" : "ping" } "#, pong(json!({})));
    // Ids come back with the type they have.
    check(client, r#"{"type":"ping","id":"a"}"#, pong(json!({"reply_to": "a"})));
    check(client, r#"{"type":"ping","id":""}"#, pong(json!({"reply_to": ""})));
    check(client, r#"{"type":"ping","id":"7"}"#, pong(json!({"reply_to": "7"})));
    check(client, r#"{"type":"ping","id":7}"#, pong(json!({"reply_to": 7})));
    check(client, r#"{"type":"ping","id":0}"#, pong(json!({"reply_to": 0})));
    check(client, r#"{"type":"ping","id":18446744073709551615}"#, pong(json!({"reply_to": u64::MAX})));
    check(client, r#"{"type":"ping","id":"\u00e9\"\\\n€"}"#, pong(json!({"reply_to": "é\"\\\n€"})));

    let ack = |id: u64, message: &str| json!({"type": "ack", "payload": {"success": true, "message": message, "topic": "a.b"}, "reply_to": id});
    let published = |id: u64, count: u64| {
        json!({
            "type": "ack",
            "payload": {"success": true, "message": "Published to a.b", "topic": "a.b", "matched": count,
                        "queued": count, "dropped": 0},
            "reply_to": id,
        })
    };
    let list = |topics: &[&str]| json!({"type": "subscriptions", "payload": {"subscriptions": topics}});
    check(client, r#"{"type":"publish","payload":{"topic":"a.b","data":1},"id":1}"#, published(1, 0));
    check(client, r#"{"type":"list_subscriptions"}"#, list(&[]));
    check(client, r#"{"type":"subscribe","payload":{"topic":"a.b"},"id":2}"#, ack(2, "Subscribed to a.b"));
    // Once more is no error and no second subscription.
    check(client, r#"{"type":"subscribe","payload":{"topic":"a.b"},"id":3}"#, ack(3, "Subscribed to a.b"));
    check(client, r#"{"type":"list_subscriptions"}"#, list(&["a.b"]));
    check(
        client,
        r#"{"type":"publish","payload":{"topic":"a.b","data":{"x":1},"exclude_self":true},"id":4}"#,
        published(4, 0),
    );
    client.send(r#"{"type":"publish","payload":{"topic":"a.b","data":{"x":2},"key":"k","exclude_self":false},"id":5}"#);
    assert_eq!(client.data("a.b"), json!({"x": 2}));
    assert_eq!(client.next()["payload"], published(5, 1)["payload"]);
    check(client, r#"{"type":"unsubscribe","payload":{"topic":"a.b"},"id":6}"#, ack(6, "Unsubscribed from a.b"));
    check(client, r#"{"type":"list_subscriptions"}"#, list(&[]));
    check(client, r#"{"type":"publish","payload":{"topic":"a.b","data":1},"id":7}"#, published(7, 0));
}

#[test]
fn what_is_refused() {
    let server = Server::start(
        "limits: {subscriptions_per_connection: 2, topic_length: 12, errors: 1000}\nwebsocket: {max_message_size: 4KiB}",
    );
    let mut client = server.connect();
    let mut check = |text: &str, code: &str, reply_to: Value, culprit: &str| {
        client.send(text);
        let reply = client.next();
        assert_eq!((&reply["type"], &reply["payload"]["code"]), (&json!("error"), &json!(code)), "{text}: {reply}");
        assert_eq!(reply["reply_to"], reply_to, "{text}: {reply}");
        assert!(reply["payload"]["message"].as_str().unwrap().contains(culprit), "{text}: {reply}");
    };
    // No message at all.
    check("", "invalid_message", Value::Null, "");
    check("hello", "invalid_message", Value::Null, "");
    check("{", "invalid_message", Value::Null, "");
    check(r#"{"type":"ping"}{"type":"ping"}"#, "invalid_message", Value::Null, "");
    check(r#"{"type":"ping",}"#, "invalid_message", Value::Null, "");
    check("[]", "invalid_message", Value::Null, "object");
    check("null", "invalid_message", Value::Null, "object");
    check(r#""ping""#, "invalid_message", Value::Null, "object");
    // Members.
    check("{}", "invalid_message", Value::Null, "`type` is missing");
    check(r#"{"type":null,"id":1}"#, "invalid_message", json!(1), "`type`");
    check(r#"{"type":7,"id":1}"#, "invalid_message", json!(1), "`type`");
    check(r#"{"type":"ping","type":"ping","id":1}"#, "invalid_message", json!(1), "`type`");
    check(r#"{"type":"ping","payload":[],"id":1}"#, "invalid_message", json!(1), "`payload`");
    check(r#"{"type":"ping","payload":"x","id":1}"#, "invalid_message", json!(1), "`payload`");
    check(r#"{"type":"ping","id":-1}"#, "invalid_message", Value::Null, "`id`");
    check(r#"{"type":"ping","id":1.5}"#, "invalid_message", Value::Null, "`id`");
    check(r#"{"type":"ping","id":true}"#, "invalid_message", Value::Null, "`id`");
    check(r#"{"type":"ping","id":{}}"#, "invalid_message", Value::Null, "`id`");
    check(r#"{"type":"ping","id":18446744073709551616}"#, "invalid_message", Value::Null, "`id`");
    check(&format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(65)), "too_large", Value::Null, "`id`");
    check(r#"{"type":"subscribe","id":1}"#, "invalid_message", json!(1), "`topic` is missing");
    check(r#"{"type":"subscribe","payload":{"topic":7},"id":1}"#, "invalid_message", json!(1), "`topic`");
    check(r#"{"type":"unsubscribe","payload":{},"id":1}"#, "invalid_message", json!(1), "`topic`");
    check(r#"{"type":"publish","payload":{"data":1},"id":1}"#, "invalid_message", json!(1), "`topic`");
    check(r#"{"type":"publish","payload":{"topic":"t"},"id":1}"#, "invalid_message", json!(1), "`data`");
    check(
        r#"{"type":"publish","payload":{"topic":"t","data":1,"exclude_self":1},"id":1}"#,
        "invalid_message",
        json!(1),
        "`exclude_self`",
    );
    check(
        r#"{"type":"publish","payload":{"topic":"t","data":1,"key":1},"id":1}"#,
        "invalid_message",
        json!(1),
        "`key`",
    );
    check(r#"{"type":"authenticate","payload":{"token":1},"id":1}"#, "invalid_message", json!(1), "`token`");
    check(r#"{"type":"refresh","payload":{},"id":1}"#, "invalid_message", json!(1), "`token`");
    check(r#"{"type":"refresh","payload":{"token":"t"},"id":1}"#, "unauthorized", json!(1), "authenticate");
    // Topics.
    for command in ["subscribe", "publish"] {
        let with = |topic: &str| format!(r#"{{"type":"{command}","payload":{{"topic":"{topic}","data":1}},"id":"t"}}"#);
        check(&with(""), "invalid_message", json!("t"), "topic");
        check(&with("a.*"), "invalid_message", json!("t"), "topic");
        check(&with("a.>"), "invalid_message", json!("t"), "topic");
        check(&with("a..b"), "invalid_message", json!("t"), "topic");
        check(&with(".a"), "invalid_message", json!("t"), "topic");
        check(&with("a\\n"), "invalid_message", json!("t"), "topic");
        check(&with("thirteen.byte"), "too_large", json!("t"), "12 bytes");
        check(&with(&"x".repeat(4000)), "too_large", json!("t"), "12 bytes");
    }
    check(r#"{"type":"unsubscribe","payload":{"topic":"never"},"id":1}"#, "not_found", json!(1), "not subscribed");
    // Handlers.
    check(r#"{"type":"dance","id":"x"}"#, "unknown_message", json!("x"), "`dance`");
    check(r#"{"type":"","id":"x"}"#, "unknown_message", json!("x"), "");
    check(&format!(r#"{{"type":"{}","id":"x"}}"#, "é".repeat(1000)), "unknown_message", json!("x"), "é");

    client.subscribe("one");
    client.subscribe("two");
    let text = client.refused("subscribe", json!({"topic": "three"}), "limit_exceeded");
    assert!(text.contains('2'), "{text}");
    client.subscribe("one");
    client.ack("unsubscribe", json!({"topic": "one"}));
    client.subscribe("three");
    assert!(server.sum(|shard| &shard.errors[ErrorCode::InvalidMessage as usize]) > 30);
    client.close();
    server.rest();
}

#[test]
fn errors_have_a_budget() {
    let server = Server::start("limits: {errors: 3}");
    let mut client = server.connect();
    client.refused("dance", json!({}), "unknown_message");
    client.refused("subscribe", json!({}), "invalid_message");
    client.subscribe("t");
    client.refused("unsubscribe", json!({"topic": "u"}), "not_found");
    client.parted(4506, false);
    server.rest();
}

#[test]
fn data_travels_byte_for_byte() {
    let server = Server::start("");
    let (mut publisher, mut subscriber) = server.connect_across();
    subscriber.subscribe("t");
    publisher.subscribe("t");
    for data in [
        r#"{ "z" : 1.0 , "a":[ 1e400,-0,0.1000000000000000055511151231257827 ],"z2":123456789012345678901234567890}"#,
        r#""\u00e9\ud83c\udf0a \/ é 🌊""#,
        r#"{"a":1,"a":2,"":null}"#,
        "true",
        "null",
        "-0.0e-0",
        "[]",
        "{}",
        "\"\"",
    ] {
        let request = format!(r#"{{"id":"r","type":"publish","payload":{{"topic":"t","data": {data} }}}}"#);
        publisher.send(&request);
        let expected = format!(r#""data":{data}}}"#);
        let text = subscriber.text();
        assert!(text.contains(&expected), "{text} instead of {expected}");
        let text = publisher.text();
        assert!(text.contains(&expected), "{text} instead of {expected}");
        assert_eq!(publisher.next()["reply_to"], "r");
    }
}

#[test]
fn binary_frames_carry_the_same_json() {
    let server = Server::start("");
    let mut client = server.connect();
    client.socket.send(Message::binary(br#"{"type":"ping","id":9}"#.as_slice())).unwrap();
    let reply = client.next();
    assert_eq!((&reply["type"], &reply["reply_to"]), (&json!("pong"), &json!(9)));
    client.socket.send(Message::binary(b"\xff{}".as_slice())).unwrap();
    assert_eq!(client.expect("error")["code"], "invalid_message");
    client.quiet();
}

#[test]
fn receipts_count_over_all_shards() {
    let server = Server::build(4, "", |builder| builder);
    let mut publisher = server.connect();
    let mut subscribers: Vec<Client> = (0..24).map(|_| server.connect()).collect();
    for (count, subscriber) in subscribers.iter_mut().enumerate() {
        subscriber.subscribe("t");
        let now = count as u64 + 1;
        assert_eq!(publisher.publish("t", json!(count)), (now, now, 0));
    }
    publisher.subscribe("t");
    let passed_over = publisher.ack("publish", json!({"topic": "t", "data": "not me", "exclude_self": true}));
    assert_eq!(passed_over["matched"], 24);
    assert_eq!(publisher.publish("t", json!("all")), (25, 25, 0));
    assert_eq!(publisher.data("t"), "all");
    for (first, subscriber) in subscribers.iter_mut().enumerate() {
        for count in first..24 {
            assert_eq!(subscriber.data("t"), count);
        }
        assert_eq!(subscriber.data("t"), "not me");
        assert_eq!(subscriber.data("t"), "all");
        subscriber.quiet();
    }
    // The more leave, however they do, the fewer are counted.
    for (left, subscriber) in subscribers.into_iter().enumerate().rev() {
        match left % 2 {
            0 => subscriber.close(),
            _ => drop(subscriber),
        }
        super::until("a subscriber to be gone", || server.active() == 1 + left as u64);
        assert_eq!(publisher.publish("t", json!("fewer")), (1 + left as u64, 1 + left as u64, 0));
    }
    drop(publisher);
    server.rest();
}
