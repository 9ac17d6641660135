//! What users of the library write: routes, what they answer, and what they do through their context.

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidewheel::metrics::{ErrorCode, PanicSite};
use tidewheel::{Context, EngineBuilder, HandlerError, MessageHandler, OutgoingMessage};

use super::server::Server;

#[derive(Deserialize)]
struct Add {
    a: i64,
    b: i64,
}

#[derive(Serialize)]
struct Sum {
    sum: i64,
}

#[derive(Deserialize)]
struct Nothing {}

#[derive(Deserialize)]
struct On {
    topic: String,
}

#[derive(Deserialize)]
struct Ticks {
    to: u64,
}

/// Answers after as many timer ticks as it is asked for.
struct Count;

impl MessageHandler for Count {
    type Message = Ticks;
    type Reply = (&'static str, u64);

    async fn handle(&self, context: Context, message: Ticks) -> Result<(&'static str, u64), HandlerError> {
        for tick in 0..message.to {
            tokio::time::sleep(Duration::from_millis(1)).await;
            context.send(OutgoingMessage::new("tick", &tick)?);
        }
        Ok(("counted", message.to))
    }
}

fn routes(builder: EngineBuilder) -> EngineBuilder {
    builder
        .route("add", async |_: Context, add: Add| Ok(("sum", Sum { sum: add.a + add.b })))
        .handler("count", Count)
        .route("never", async |_: Context, _: Nothing| {
            std::future::pending::<()>().await;
            Ok(())
        })
        .route("panic", async |_: Context, _: Nothing| -> Result<(), HandlerError> { panic!("a handler's own") })
        .route("panic_later", async |_: Context, _: Nothing| -> Result<(), HandlerError> {
            tokio::time::sleep(Duration::from_millis(5)).await;
            panic!("a handler's own")
        })
        .route("teapot", async |_: Context, _: Nothing| -> Result<(), HandlerError> {
            Err(HandlerError::new(ErrorCode::NotFound, "no coffee here"))
        })
        .route("io_error", async |_: Context, _: Nothing| {
            std::fs::read("a secret path").map_err(HandlerError::from).map(drop)
        })
        .route("join", async |context: Context, on: On| {
            context.subscribe(&on.topic).await?;
            context.send(OutgoingMessage::new("hello", &json!({"from": context.session_id().to_string()}))?);
            assert!(
                context.since() > 1_700_000_000_000 && context.address().is_some_and(|address| address.is_loopback())
            );
            let receipt = context.publish(&on.topic, &json!({"joined": true})).await?;
            Ok(("joined", receipt))
        })
        .route("part", async |context: Context, on: On| {
            context.unsubscribe(&on.topic).await?;
            Ok(())
        })
        .route("refused", async |context: Context, on: On| match context.subscribe(&on.topic).await {
            Err(refused) => Ok(("refused", refused.code.label())),
            Ok(()) => Err(HandlerError::new(ErrorCode::InternalError, "it should not have been possible")),
        })
        .route("leave", async |context: Context, _: Nothing| {
            context.send(OutgoingMessage::new("bye", &Value::Null)?);
            context.close(4123, "as you wish");
            Ok(())
        })
}

#[test]
fn replies_and_errors() {
    let server = Server::build(2, "", routes);
    let mut client = server.connect();
    let reply = client.ask("add", json!({"a": 2, "b": -5}));
    assert_eq!((&reply["type"], &reply["payload"]), (&json!("sum"), &json!({"sum": -3})));
    // What does not fit never reaches the handler.
    let text = client.refused("add", json!({"a": 2}), "invalid_message");
    assert!(text.contains('b'), "{text}");
    client.refused("add", json!({"a": "2", "b": 1}), "invalid_message");
    client.refused("add", json!({"a": 1e99, "b": 1}), "invalid_message");
    // Errors of the handler's own, and those it did not think of.
    assert_eq!(client.refused("teapot", json!({}), "not_found"), "no coffee here");
    let text = client.refused("io_error", json!({}), "internal_error");
    assert!(!text.contains("secret") && !text.contains("os error"), "the client learns nothing of {text}");
    client.refused("panic", json!({}), "internal_error");
    client.refused("panic_later", json!({}), "internal_error");
    assert_eq!(server.sum(|shard| &shard.panics[PanicSite::Handler as usize]), 2);
    client.quiet();
    client.close();
    server.rest();
}

#[test]
fn what_waits_holds_nobody_up() {
    let server = Server::build(1, &format!("{SHORT}\nlimits: {{parked_handlers: 40}}"), routes);
    let mut client = server.connect();
    let mut neighbour = server.connect();
    client.send(r#"{"type":"never","payload":{},"id":"never"}"#);
    client.send(r#"{"type":"count","payload":{"to":3},"id":"count"}"#);
    client.send(r#"{"type":"add","payload":{"a":1,"b":1},"id":"add"}"#);
    assert_eq!(client.next()["reply_to"], "add");
    for tick in 0..3 {
        assert_eq!(client.expect("tick"), tick);
    }
    let reply = client.next();
    assert_eq!((&reply["reply_to"], &reply["payload"]), (&json!("count"), &json!(3)));
    neighbour.quiet();

    // One connection may have 32 of them; then it is not read from, and its neighbours live on.
    for _ in 0..60 {
        client.tell("never", json!({}));
    }
    super::until("the connection to be at its bound", || server.sum(|shard| &shard.parked) == 32);
    neighbour.quiet();
    // The shard has its bound too, and says so.
    for _ in 0..8 {
        neighbour.tell("never", json!({}));
    }
    neighbour.refused("never", json!({}), "limit_exceeded");
    neighbour.quiet();
    // Whoever goes takes the futures along.
    drop(neighbour);
    super::until("the neighbour's futures to be gone", || server.sum(|shard| &shard.parked) == 32);
    let mut neighbour = server.connect();
    assert_eq!(neighbour.ask("add", json!({"a": 1, "b": 2}))["payload"], json!({"sum": 3}));
    neighbour.close();
    client.parted(4001, true);
    server.rest();
}

/// A close that the server begins waits for handlers, but not for ever, and is always told of.
#[test]
fn a_handler_that_never_ends_keeps_nobody() {
    let server = Server::build(2, SHORT, routes);
    let mut client = server.connect();
    client.tell("never", json!({}));
    client.parted(4001, true);
    let mut raw = server.raw_open();
    raw.text(r#"{"type":"never","payload":{}}"#);
    raw.write(&super::raw::close(1000));
    assert_eq!(raw.closed(), 1000);
    let mut raw = server.raw_open();
    raw.text(r#"{"type":"never","payload":{}}"#);
    raw.write(&[0xff; 20]);
    assert_eq!(raw.closed(), 1002);
    let mut raw = server.raw_open();
    raw.text(r#"{"type":"never","payload":{}}"#);
    raw.half_close();
    assert_eq!(raw.next(), None);
    // Nor does it keep a drain.
    let mut client = server.connect();
    client.tell("never", json!({}));
    super::until("the handler to wait", || server.sum(|shard| &shard.parked) == 1);
    server.handle.drain();
    client.parted(1012, true);
    server.rest();
}

const SHORT: &str = "websocket: {idle_timeout_seconds: 1, close_timeout: 200ms}";

#[test]
fn a_handler_has_so_much_time() {
    let server = Server::build(2, "limits: {handler_timeout: 1s}", routes);
    let mut client = server.connect();
    client.send(r#"{"type":"never","payload":{},"id":"never"}"#);
    // One that gets on is not disturbed, and nobody waits for the other.
    assert_eq!(client.ask("count", json!({"to": 100}))["payload"], 100);
    client.take_early().iter().for_each(|message| assert_eq!(message["type"], "tick", "{message}"));
    let reply = client.next();
    assert_eq!((&reply["reply_to"], &reply["type"]), (&json!("never"), &json!("error")), "{reply}");
    assert_eq!(reply["payload"], json!({"code": "internal_error", "message": "the handler took too long"}));
    client.quiet();
    assert_eq!(server.sum(|shard| &shard.handler_timeouts), 1);
    assert_eq!(server.sum(|shard| &shard.parked), 0);
    client.close();
    server.rest();
}

#[test]
fn a_handler_may_have_all_the_time() {
    let server = Server::build(1, "limits: {handler_timeout: null}\nwebsocket: {idle_timeout_seconds: 1}", routes);
    let mut client = server.connect();
    client.tell("never", json!({}));
    client.parted(4001, true); // more than a second later
    assert_eq!(server.sum(|shard| &shard.handler_timeouts), 0);
    server.rest();
}

#[test]
fn what_a_context_can_do() {
    let server = Server::build(2, "limits: {subscriptions_per_connection: 1}", routes);
    let (mut client, mut other) = server.connect_across();
    other.subscribe("room.1");
    // In the order in which the handler asked, and before its reply.
    client.send(r#"{"type":"join","payload":{"topic":"room.1"},"id":"join"}"#);
    assert!(client.expect("hello")["from"].as_str().is_some_and(|session| session.len() == 36));
    assert_eq!(client.data("room.1"), json!({"joined": true}));
    let reply = client.next();
    assert_eq!(reply["reply_to"], "join");
    assert_eq!(reply["payload"], json!({"matched": 2, "queued": 2, "dropped": 0}));
    assert_eq!(other.data("room.1"), json!({"joined": true}));
    let list = client.ask("list_subscriptions", json!({}));
    assert_eq!(list["payload"]["subscriptions"], json!(["room.1"]));

    let refused = |client: &mut super::client::Client, topic: &str| {
        client.ask("refused", json!({"topic": topic}))["payload"].as_str().unwrap().to_owned()
    };
    assert_eq!(refused(&mut client, "room.2"), "limit_exceeded");
    assert_eq!(refused(&mut client, "room.*"), "invalid_message");
    client.ack("part", json!({"topic": "room.1"}));
    client.refused("part", json!({"topic": "room.1"}), "internal_error");
    assert_eq!(other.publish("room.1", json!(1)), (1, 1, 0));

    client.send(r#"{"type":"leave","payload":{},"id":"leave"}"#);
    client.expect("bye");
    let ended = client.parted(4123, true);
    assert_eq!(ended.close.unwrap().1, "as you wish");
    other.close();
    server.rest();
}

#[test]
fn the_embedding_program_publishes_and_broadcasts() {
    let server = Server::build(4, "", routes);
    let mut clients: Vec<_> = (0..12).map(|_| server.connect()).collect();
    for client in &mut clients[..5] {
        client.subscribe("news");
    }
    let receipt = block_on(server.handle.publish("news", &json!({"a": 1}))).unwrap();
    assert_eq!((receipt.matched, receipt.queued, receipt.dropped), (5, 5, 0));
    let receipt = block_on(server.handle.publish("nobody", &1)).unwrap();
    assert_eq!(receipt.matched, 0);
    assert_eq!(block_on(server.handle.publish("bad.*", &1)).unwrap_err().code, ErrorCode::InvalidMessage);
    let receipt = block_on(server.handle.broadcast(&"to all")).unwrap();
    assert_eq!((receipt.matched, receipt.queued, receipt.dropped), (12, 12, 0));
    for (index, client) in clients.iter_mut().enumerate() {
        if index < 5 {
            let payload = client.expect("message");
            assert_eq!(payload, json!({"topic": "news", "data": {"a": 1}}));
        }
        assert_eq!(client.expect("broadcast"), json!({"data": "to all"}));
        client.quiet();
    }
    // Many at once keep their order, and each gets its receipt.
    let receipts: Vec<_> = (0..500).map(|number| server.handle.publish("news", &number)).collect();
    for receipt in receipts {
        assert_eq!(block_on(receipt).unwrap().queued, 5);
    }
    for client in &mut clients[..5] {
        for number in 0..500 {
            assert_eq!(client.data("news"), number);
        }
    }
    drop(clients);
    server.rest();
    let handle = server.handle.clone();
    server.stop();
    assert!(block_on(handle.publish("news", &1)).is_err(), "an engine that has ended answers that it has");
}

/// Waits for a future that needs no runtime.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
