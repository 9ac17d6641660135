//! The promises about order: subscribing, unsubscribing, and one publisher's messages across shards.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::json;

use super::raw::{self, TEXT};
use super::server::Server;

/// After the ack of a subscribe nothing published later is missed; after that of an unsubscribe nothing published later
/// arrives. A publisher on another shard counts up without a pause meanwhile.
#[test]
fn acks_draw_the_line() {
    let server = Server::start("");
    let (mut publisher, mut subscriber) = server.connect_across();
    let (acked, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                publisher.publish("t", json!(number));
                acked.store(number, Ordering::SeqCst);
            }
        });
        for _ in 0..50 {
            subscriber.subscribe("t");
            let before = acked.load(Ordering::SeqCst);
            // The one that is on its way now, or the one after it.
            let first = subscriber.data("t").as_u64().unwrap();
            assert!(first <= before + 2, "subscribed when {before} were acked, and the first message is {first}");
            for number in first + 1..first + 5 {
                assert_eq!(subscriber.data("t"), number);
            }
            subscriber.ack("unsubscribe", json!({"topic": "t"}));
            let last = acked.load(Ordering::SeqCst);
            let arrived: Vec<u64> =
                subscriber.take_early().iter().map(|m| m["payload"]["data"].as_u64().unwrap()).collect();
            assert!(arrived.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a gap in {arrived:?}");
            super::until("more to be published", || acked.load(Ordering::SeqCst) > last + 2);
            subscriber.quiet();
        }
        stop.store(true, Ordering::SeqCst);
    });
    publisher.close();
    subscriber.close();
    server.rest();
}

/// A publisher that does not wait for its receipts: they come in order, and so do the messages, on every shard.
#[test]
fn a_pipelined_publisher() {
    let server = Server::build(4, "outbound: {max_frames: 100000, max_bytes: 100MB}", |builder| builder);
    let mut subscribers: Vec<_> = (0..12).map(|_| server.connect()).collect();
    for subscriber in &mut subscribers {
        subscriber.subscribe("t");
    }
    let count = 5000;
    let mut publisher = server.raw_open();
    let requests: Vec<u8> = (0..count)
        .flat_map(|number| {
            raw::text(&format!(
                r#"{{"id":{number},"type":"publish","payload":{{"topic":"t","data":{number},"exclude_self":true}}}}"#
            ))
        })
        .collect();
    let mut writer = publisher.stream.try_clone().unwrap();
    let wrote = thread::spawn(move || std::io::Write::write_all(&mut writer, &requests).unwrap());
    for number in 0..count {
        let receipt = publisher.json();
        assert_eq!((&receipt["reply_to"], &receipt["payload"]["queued"]), (&json!(number), &json!(12)), "{receipt}");
    }
    wrote.join().unwrap();
    for subscriber in &mut subscribers {
        for number in 0..count {
            assert_eq!(subscriber.data("t"), number);
        }
        subscriber.quiet();
    }
    drop((publisher, subscribers));
    server.rest();
}

/// Replies come in the order of the requests, although receipts of other shards take longer.
#[test]
fn replies_keep_the_order_of_requests() {
    let server = Server::build(4, "", |builder| builder);
    let mut subscribers: Vec<_> = (0..12).map(|_| server.connect()).collect();
    for subscriber in &mut subscribers {
        subscriber.subscribe("far");
    }
    let mut raw = server.raw_open();
    for round in 0..20 {
        let mut bytes = Vec::new();
        for id in 0..60 {
            let rest = match id % 6 {
                0 => r#""type":"publish","payload":{"topic":"far","data":1}"#,
                1 => r#""type":"ping""#,
                2 => r#""type":"subscribe","payload":{"topic":"near"}"#,
                3 => r#""type":"publish","payload":{"topic":"nobody","data":1}"#,
                4 => r#""type":"list_subscriptions""#,
                _ => r#""type":"unsubscribe","payload":{"topic":"near"}"#,
            };
            bytes.extend(raw::text(&format!(r#"{{"id":{},{rest}}}"#, round * 60 + id)));
        }
        raw.write(&bytes);
        for id in 0..60 {
            assert_eq!(raw.json()["reply_to"], round * 60 + id);
        }
    }
    // Its own message comes before the ack that counts it.
    raw.text(r#"{"type":"subscribe","payload":{"topic":"far"}}"#);
    assert_eq!(raw.until(TEXT).first, raw::FIN | TEXT);
    raw.text(r#"{"type":"publish","payload":{"topic":"far","data":"own"}}"#);
    assert_eq!(raw.json()["payload"]["data"], "own");
    assert_eq!(raw.json()["payload"]["queued"], 13);
    drop((raw, subscribers));
    server.rest();
}
