//! What a handler learns of a client that does not read: what became of each message, and when there is room again.

use std::cell::RefCell;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tidewheel::metrics::CloseReason;
use tidewheel::{Context, EngineBuilder, OutgoingMessage, Sent};

use super::lifecycle::narrow;
use super::server::Server;

const LIMITS: &str = "outbound: {max_bytes: 64KiB, max_age: 1h}\nwebsocket: {close_timeout: 200ms}";

thread_local! {
    /// A context that outlives its request. One shard has one thread.
    static KEPT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

#[derive(Deserialize)]
struct Many {
    count: u64,
}

fn kept() -> Context {
    KEPT.with_borrow(|kept| kept.clone()).expect("kept before")
}

fn large(number: u64) -> OutgoingMessage {
    OutgoingMessage::new("large", &json!([number, "x".repeat(10_000)])).unwrap()
}

fn routes(builder: EngineBuilder) -> EngineBuilder {
    builder
        .route("keep", async |context: Context, _: Value| {
            KEPT.set(Some(context));
            Ok(())
        })
        .route("send_kept", async |_: Context, _: Value| Ok(("sent", format!("{:?}", kept().send(large(0)).await))))
        // Nobody awaits these.
        .route("fill_kept", async |_: Context, Many { count }: Many| {
            (0..count).for_each(|number| drop(kept().send(large(number))));
            Ok(())
        })
        .route("flood_kept", async |_: Context, _: Value| {
            let context = kept();
            let mut queued = 0_u64;
            loop {
                match context.send(large(queued)).await {
                    Sent::Queued => queued += 1,
                    other => return Ok(("flooded", (queued, format!("{other:?}")))),
                }
            }
        })
        .route("stream", async |context: Context, Many { count }: Many| {
            for number in 0..count {
                assert_eq!(context.send(large(number)).await, Sent::Queued);
                context.drained().await?;
            }
            Ok(("streamed", count))
        })
        .route("drained_kept", async |_: Context, _: Value| {
            Ok(("drained", kept().drained().await.map_err(|refused| refused.code.label())))
        })
        .route("crowd_kept", async |_: Context, _: Value| {
            let context = kept();
            let mut crowd: Vec<_> = (0..65).map(|_| Box::pin(context.drained())).collect();
            let last = crowd.pop().expect("the last of them").await;
            // Those that are dropped make room for others.
            drop(crowd);
            let waits = tokio::time::timeout(Duration::from_millis(20), context.drained()).await.is_err();
            Ok(("crowd", (last.map_err(|refused| refused.code.label()), waits)))
        })
}

#[test]
fn a_handler_learns_what_became_of_what_it_sent() {
    let server = Server::build(1, LIMITS, routes);
    let (mut slow, mut other) = (narrow(server.address), server.connect());
    slow.text(r#"{"type":"keep","id":1,"payload":{}}"#);
    assert_eq!(slow.json()["reply_to"], 1);
    assert_eq!(other.ask("send_kept", json!({}))["payload"], "Queued");
    let flooded = other.ask("flood_kept", json!({}))["payload"].clone();
    assert_eq!(flooded[1], "Dropped", "four times the bound");
    assert!(flooded[0].as_u64().unwrap() >= 25, "{flooded}");
    super::until("the slow one to be gone", || server.active() == 1);
    assert_eq!(server.closed(CloseReason::SlowConsumer), 1);
    assert_eq!(other.ask("send_kept", json!({}))["payload"], "Closed");
    other.close();
    server.rest();
}

#[test]
fn a_handler_that_waits_for_room_floods_nobody() {
    let server = Server::build(1, LIMITS, routes);
    let (mut slow, mut other) = (narrow(server.address), server.connect());
    slow.text(r#"{"type":"stream","id":1,"payload":{"count":300}}"#);
    // It waits, and its neighbours do not.
    let mut before = 0;
    super::until("the handler to wait", || {
        std::thread::sleep(Duration::from_millis(20));
        other.quiet();
        let sent = server.sum(|shard| &shard.bytes_out);
        sent < std::mem::replace(&mut before, sent) + 1_000 && server.sum(|shard| &shard.parked) == 1
    });
    for number in 0..300 {
        assert_eq!(slow.json()["payload"][0], number);
    }
    assert_eq!(slow.json()["type"], "streamed");
    assert_eq!(server.closed(CloseReason::SlowConsumer), 0);
    drop((slow, other));
    server.rest();
}

#[test]
fn who_waits_for_room_is_told_when_there_is_some_and_when_there_never_will_be() {
    let server = Server::build(1, LIMITS, routes);
    let (mut slow, mut other) = (narrow(server.address), server.connect());
    slow.text(r#"{"type":"keep","id":1,"payload":{}}"#);
    assert_eq!(slow.json()["reply_to"], 1);
    assert_eq!(other.ask("drained_kept", json!({}))["payload"], json!({"Ok": null}), "there is room");

    // Its kernel and half the queue are full, and more waits than that.
    super::until("a full kernel", || {
        other.ask("fill_kept", json!({"count": 1}));
        other.ask("crowd_kept", json!({}))["payload"] == json!([{"Err": "limit_exceeded"}, true])
    });
    other.send(r#"{"type":"drained_kept","payload":{},"id":"drained"}"#);
    other.quiet();
    let drained = loop {
        slow.json();
        other.ask("ping", json!({}));
        if let Some(reply) = other.take_early().pop() {
            break reply;
        }
    };
    assert_eq!((&drained["reply_to"], &drained["payload"]), (&json!("drained"), &json!({"Ok": null})));

    super::until("a full kernel", || {
        other.ask("fill_kept", json!({"count": 1}));
        other.ask("crowd_kept", json!({}))["payload"] == json!([{"Err": "limit_exceeded"}, true])
    });
    other.send(r#"{"type":"drained_kept","payload":{},"id":"gone"}"#);
    other.quiet();
    drop(slow);
    let reply = other.next();
    assert_eq!((&reply["reply_to"], &reply["payload"]), (&json!("gone"), &json!({"Err": "not_found"})));
    other.close();
    server.rest();
}
