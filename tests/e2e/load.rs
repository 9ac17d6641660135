//! Bursts, crowds and breakage: what one connection or one shard does costs no other its messages, its order or its life.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidewheel::metrics::CloseReason;
use tidewheel::{Context, Engine, OutgoingMessage};

use super::raw;
use super::server::{Server, config};

fn publishes(count: usize, data_bytes: usize) -> Vec<u8> {
    let data = "x".repeat(data_bytes);
    let request = |number| format!(r#"{{"id":{number},"type":"publish","payload":{{"topic":"t","data":"{data}"}}}}"#);
    (0..count).flat_map(|number| raw::text(&request(number))).collect()
}

/// A burst that is many times what a queue holds, written at once: a subscriber that reads all the time gets all of it.
#[track_caller]
fn check_burst(shards: usize, count: usize, data_bytes: usize) {
    let server = Server::build(shards, "", |builder| builder);
    let (mut subscriber, mut publisher) = (server.connect(), server.raw_open());
    subscriber.subscribe("t");
    let mut writer = publisher.stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all(&publishes(count, data_bytes)).unwrap());
        scope.spawn(|| (0..count).for_each(|_| drop(subscriber.data("t"))));
        for number in 0..count {
            let receipt = publisher.json();
            assert_eq!((&receipt["reply_to"], &receipt["payload"]["queued"]), (&json!(number), &json!(1)), "{receipt}");
        }
    });
    assert_eq!(server.closed(CloseReason::SlowConsumer), 0);
}

#[test]
fn a_burst_of_small_messages_disconnects_nobody() {
    check_burst(1, 5_000, 20);
    check_burst(2, 5_000, 20);
}

#[test]
fn a_burst_of_large_messages_disconnects_nobody() {
    check_burst(1, 200, 20_000);
    check_burst(2, 200, 20_000);
}

/// While two publishers keep the bus to another shard full, because that shard does not turn, everybody else's commands
/// are answered.
#[test]
fn a_full_bus_holds_up_publishers_only() {
    let blocked = std::sync::Arc::new(AtomicBool::new(true));
    let until = blocked.clone();
    let server = Server::build(2, "outbound: {max_frames: 100000, max_bytes: 100MB}", |builder| {
        builder.route("block", async move |_: Context, _: Value| {
            while until.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })
    });
    let (mut here, mut there) = server.connect_across();
    there.subscribe("t");
    // They land on either shard, two at least beside the blocked one; those on that only wait with it.
    let mut publishers = Vec::new();
    while server.handle.metrics().iter().any(|shard| shard.active() < 3) {
        assert!(publishers.len() < 64, "the kernel gives one shard everything");
        publishers.push(server.raw_open());
    }
    there.tell("block", json!({}));
    for publisher in &mut publishers {
        let mut writer = publisher.stream.try_clone().unwrap();
        let requests = publishes(4_000, 20);
        thread::spawn(move || drop(writer.write_all(&requests)));
    }
    super::until("the bus to be full", || server.sum(|metrics| &metrics.bus_full) > 0);
    for _ in 0..20 {
        here.ask("ping", json!({}));
    }
    assert!(blocked.swap(false, Ordering::SeqCst), "all answered while the other shard stood still");
    for publisher in &mut publishers {
        for number in 0..4_000 {
            assert_eq!(publisher.json()["reply_to"], number);
        }
    }
}

/// The engine goes on when its value is dropped: handlers that wait for a timer too.
#[test]
fn a_dropped_engine_goes_on() {
    let engine = Engine::builder(config(1, "auth: {required: false}"))
        .route("later", async |_: Context, _: Value| {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(OutgoingMessage::new("now", &json!(null))?)
        })
        .start()
        .unwrap();
    let (address, handle) = (engine.addresses()[0], engine.handle());
    drop(engine);
    let mut client = super::client::Client::connect(address);
    assert_eq!(client.ask("later", json!({}))["type"], "now");
    handle.drain();
    client.parted(1012, true);
}

/// A drain that is longer than `close_timeout` delivers everything acked to a client that reads slowly.
#[test]
fn a_drain_delivers_what_was_acked_to_a_slow_reader() {
    let mut server = Server::start("websocket: {close_timeout: 200ms}\ndrain: {deadline: 30s}");
    let (mut slow, mut publisher) = (server.connect(), server.connect());
    slow.subscribe("t");
    let data = json!("x".repeat(60_000));
    for _ in 0..15 {
        assert_eq!(publisher.publish("t", data.clone()), (1, 1, 0));
    }
    server.handle.drain();
    publisher.parted(1012, true);
    let began = Instant::now();
    for _ in 0..15 {
        thread::sleep(Duration::from_millis(40));
        assert_eq!(slow.data("t"), data);
    }
    slow.parted(1012, true);
    assert!(began.elapsed() > Duration::from_millis(400), "slower than the close timeout, or this shows nothing");
    // It may have got its last words too late to answer them in time, but it got them.
    assert_eq!(server.wait().unsent_bytes, 0);
}
