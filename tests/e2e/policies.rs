//! What becomes of a subscriber that stops reading, under each policy, and what its neighbours notice: nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use tidewheel::PublishOptions;
use tidewheel::metrics::{CloseReason, Drop};
use tidewheel::shard::queries::ConnectionsQuery;

use super::api::Api;
use super::handlers::block_on;
use super::lifecycle::narrow;
use super::raw::{self, CLOSE, Raw, TEXT};
use super::server::Server;

const SUBSCRIBERS: usize = 100;
const READERS: usize = 4;
const MESSAGES: usize = 2_000;
const KEYS: usize = 25;
/// Messages that healthy subscribers may be behind: fewer than a queue holds.
const WINDOW: usize = 50;
const FRAMES_MAX: usize = 64;

fn dropped(server: &Server, policy: Drop) -> u64 {
    server.sum(|shard| &shard.dropped[policy as usize])
}

/// How many drops by this policy the only session that is there, or the last one, has in its history.
fn told(server: &Server, policy: Drop) -> u64 {
    let open = block_on(server.handle.connections(ConnectionsQuery::default())).unwrap();
    let id = open.connections[0].session_id;
    let history = block_on(server.handle.session(id)).unwrap().history;
    let drops: Vec<_> = history.iter().filter(|event| event.event == "dropped").collect();
    assert_eq!((drops.len(), drops[0].cause), (1, Some(policy.label())), "{history:?}");
    drops[0].count.unwrap().into()
}

/// A subscriber that does not read any more.
fn stalled(server: &Server, topics: &[&str]) -> Raw {
    let mut slow = narrow(server.address);
    for topic in topics {
        slow.text(&json!({"type": "subscribe", "payload": {"topic": topic}}).to_string());
        assert_eq!(slow.json()["type"], "ack");
    }
    slow
}

/// The number in the data `[number, …]` of a message, found without reading all of it.
fn number_of(frame: &raw::Frame) -> usize {
    let text = std::str::from_utf8(&frame.payload).unwrap();
    let (_, data) = text.split_once(r#""data":["#).unwrap_or_else(|| panic!("{text}"));
    data.split_once(',').unwrap().0.parse().unwrap()
}

/// Reads what waits for a client up to the answer to a ping of its own, and returns the numbers of the messages.
fn numbers(slow: &mut Raw) -> Vec<usize> {
    slow.text(r#"{"type":"ping","id":"end"}"#);
    let mut numbers = Vec::new();
    loop {
        let frame = slow.until(TEXT);
        if frame.payload.starts_with(br#"{"type":"pong""#) {
            return numbers;
        }
        numbers.push(number_of(&frame));
    }
}

/// One of many subscribers stops reading while messages of 1 KB are published; the others get all of them in order, and
/// accounts add up. Returns the engine, the stalled one, and how many publishes matched it.
fn one_of_many_stalls(policy: &str) -> (Server, Raw, u64) {
    let server = Server::start(&format!(
        "outbound: {{max_frames: {FRAMES_MAX}, max_bytes: 10MB, max_age: 1h}}\n\
         topics: [{{pattern: other, policy: disconnect}}, {{pattern: prices.*, policy: {policy}}}]\n\
         websocket: {{close_timeout: 1h, ping_interval_seconds: 0}}"
    ));
    let slow = stalled(&server, &["prices.all"]);
    let mut healthy: Vec<Raw> = (1..SUBSCRIBERS).map(|_| server.raw_open()).collect();
    for raw in &mut healthy {
        raw.text(r#"{"type":"subscribe","payload":{"topic":"prices.all"}}"#);
        assert_eq!(raw.json()["type"], "ack");
    }
    let progress: Vec<AtomicUsize> = (0..READERS).map(|_| AtomicUsize::new(0)).collect();
    let mut publisher = server.raw_open();
    let mut matched = 0;
    thread::scope(|scope| {
        for (crowd, progress) in healthy.chunks_mut((SUBSCRIBERS - 1).div_ceil(READERS)).zip(&progress) {
            scope.spawn(move || {
                for number in 0..MESSAGES {
                    for raw in &mut *crowd {
                        assert_eq!(number_of(&raw.until(TEXT)), number, "a neighbour of the stalled one");
                    }
                    progress.store(number + 1, Ordering::Relaxed);
                }
            });
        }
        let padding = "x".repeat(1_000);
        for number in 0..MESSAGES {
            super::until("the neighbours", || {
                progress.iter().all(|progress| progress.load(Ordering::Relaxed) + WINDOW > number)
            });
            let key = number % KEYS;
            publisher.text(&format!(
                r#"{{"id":1,"type":"publish","payload":{{"topic":"prices.all","key":"k{key}","data":[{number},"{padding}"]}}}}"#
            ));
            let receipt = publisher.json()["payload"].clone();
            let [all, queued, dropped] = ["matched", "queued", "dropped"].map(|name| receipt[name].as_u64().unwrap());
            assert_eq!(all, queued + dropped, "{receipt}");
            matched += all;
        }
    });
    drop((publisher, healthy));
    super::until("the others to be gone", || server.active() == 1);
    (server, slow, matched - (MESSAGES * (SUBSCRIBERS - 1)) as u64)
}

/// The same for a policy that drops. Returns what the stalled one gets when it reads again.
fn one_of_many_loses(policy: &str, drop: Drop) -> Vec<usize> {
    let (server, mut slow, matched) = one_of_many_stalls(policy);
    let numbers = numbers(&mut slow);
    assert_eq!(matched, MESSAGES as u64, "it stayed");
    assert_eq!(numbers.len() as u64 + dropped(&server, drop), matched, "what did not arrive is counted");
    let all: u64 = Drop::ALL.iter().map(|&policy| dropped(&server, policy)).sum();
    assert_eq!(all, dropped(&server, drop), "under this policy");
    assert!(all > MESSAGES as u64 / 10, "or it was not slow");
    assert_eq!(told(&server, drop), all, "its history tells it, as one event");
    // It is as good as new.
    let receipt = block_on(server.handle.publish("prices.all", &[MESSAGES, 0])).unwrap();
    assert_eq!((receipt.matched, receipt.queued), (1, 1));
    assert_eq!(number_of(&slow.until(TEXT)), MESSAGES);
    std::mem::drop(slow);
    server.rest();
    numbers
}

#[test]
fn of_drop_oldest_the_newest_arrive() {
    let numbers = one_of_many_loses("drop_oldest", Drop::DropOldest);
    assert!(numbers.is_sorted_by(|a, b| a < b), "in order: {numbers:?}");
    let newest = &numbers[numbers.len() - FRAMES_MAX..];
    assert!(newest.iter().copied().eq(MESSAGES - FRAMES_MAX..MESSAGES), "a whole queue of the newest: {newest:?}");
}

#[test]
fn of_drop_newest_the_oldest_arrive() {
    let numbers = one_of_many_loses("drop_newest", Drop::DropNewest);
    assert!(numbers.is_sorted_by(|a, b| a < b), "in order: {numbers:?}");
    let oldest = &numbers[..FRAMES_MAX];
    assert!(oldest.iter().copied().eq(0..FRAMES_MAX), "at least a whole queue of the oldest: {oldest:?}");
}

#[test]
fn of_latest_per_key_the_latest_of_each_arrives() {
    let numbers = one_of_many_loses("latest_per_key", Drop::LatestPerKey);
    for key in 0..KEYS {
        let of_key: Vec<_> = numbers.iter().filter(|&number| number % KEYS == key).collect();
        assert!(of_key.is_sorted_by(|a, b| a < b), "in order: {of_key:?}");
        assert_eq!(of_key.last(), Some(&&(MESSAGES - KEYS + key)), "the latest of key {key}");
    }
}

#[test]
fn of_disconnect_a_prefix_arrives() {
    let (server, mut slow, matched) = one_of_many_stalls("disconnect");
    assert!(matched < MESSAGES as u64);
    // The last one that it was matched for found its queue full.
    for number in 0..matched - 1 {
        assert_eq!(number_of(&slow.until(TEXT)) as u64, number);
    }
    assert_eq!(slow.json()["payload"]["code"], 4008);
    slow.until(CLOSE);
    assert_eq!(told(&server, Drop::Disconnect), 1);
    let counts = [Drop::Disconnect, Drop::DropOldest, Drop::DropNewest, Drop::LatestPerKey, Drop::Closed];
    assert_eq!(counts.map(|policy| dropped(&server, policy)), [1, 0, 0, 0, 0]);
    drop(slow);
    server.rest();
}

#[test]
fn the_first_entry_that_covers_a_topic_counts() {
    let text = "
outbound: {max_frames: 8, max_bytes: 10MB, max_age: 1h, policy: drop_newest}
topics:
  - {pattern: a.b, policy: latest_per_key}
  - {pattern: a.*, policy: drop_oldest}
  - {pattern: 'a.>', policy: disconnect}";
    let check = |topic: &str, expected| {
        let server = Server::start(text);
        let _slow = stalled(&server, &[topic]);
        let mut publisher = server.connect();
        let padding = "x".repeat(100_000);
        let count = || Drop::ALL.iter().copied().find(|&policy| dropped(&server, policy) > 0);
        super::until("a drop", || {
            publisher.publish(topic, json!(padding));
            count().is_some()
        });
        assert_eq!(count(), Some(expected), "{topic}");
    };
    check("a.b", Drop::LatestPerKey);
    check("a.c", Drop::DropOldest);
    check("a.b.c", Drop::Disconnect);
    check("b", Drop::DropNewest);
}

/// A subscriber that has fallen behind with what may be dropped is still told what may not.
#[test]
fn what_may_not_be_dropped_finds_room() {
    let server = Server::start(
        "outbound: {max_frames: 8, max_bytes: 10MB, max_age: 1h}\ntopics: [{pattern: lossy.*, policy: drop_oldest}]",
    );
    let mut slow = stalled(&server, &["lossy.a", "firm"]);
    let mut publisher = server.connect();
    let padding = "x".repeat(100_000);
    super::until("a full queue", || {
        publisher.publish("lossy.a", json!([0, padding]));
        dropped(&server, Drop::DropOldest) > 0
    });
    let before = dropped(&server, Drop::DropOldest);
    for number in 1..=5 {
        assert_eq!(publisher.publish("firm", json!([number, 0])), (1, 1, 0));
    }
    assert_eq!(dropped(&server, Drop::DropOldest), before + 5);
    // Its requests are read, though its queue is full.
    slow.text(r#"{"type":"unsubscribe","payload":{"topic":"lossy.a"}}"#);
    super::until("the request to be read", || publisher.publish("lossy.a", json!([0, padding])).0 == 0);
    let mut firm = Vec::new();
    while firm.len() < 5 {
        firm.extend(Some(number_of(&slow.until(TEXT))).filter(|&number| number > 0));
    }
    assert_eq!((firm, slow.json()["type"].clone()), (vec![1, 2, 3, 4, 5], json!("ack")));
    drop((slow, publisher));
    server.rest();
}

/// Whoever makes no progress at all goes after `max_age`, whatever may be dropped for it meanwhile.
#[test]
fn a_dead_peer_goes_under_every_policy() {
    for policy in ["drop_oldest", "drop_newest", "latest_per_key"] {
        let server = Server::start(&format!(
            "outbound: {{max_frames: 8, max_bytes: 10MB, max_age: 300ms, policy: {policy}}}\n\
             websocket: {{close_timeout: 300ms}}"
        ));
        let _slow = stalled(&server, &["t"]);
        let mut publisher = server.connect();
        let padding = "x".repeat(100_000);
        super::until("the dead peer to be gone", || {
            publisher.publish("t", json!(padding));
            server.closed(CloseReason::SlowConsumer) == 1
        });
    }
}

#[test]
fn keys_of_every_publisher() {
    let api =
        Api::start("outbound: {max_bytes: 10MB, max_age: 1h}\ntopics: [{pattern: prices, policy: latest_per_key}]");
    let server = &api.server;
    let mut slow = stalled(server, &["prices"]);
    let mut publisher = server.connect();
    let padding = "x".repeat(100_000);
    super::until("a queue behind a send", || {
        publisher.publish("prices", json!([0, padding]));
        dropped(server, Drop::LatestPerKey) > 0
    });
    let before = dropped(server, Drop::LatestPerKey);
    let publish = |number: usize, key: &str| {
        let options = PublishOptions::new().key(key);
        block_on(server.handle.publish_with("prices", &[number, 0], options))
    };
    publish(1, "a").unwrap();
    publish(2, "b").unwrap();
    api.post("publish", json!({"topic": "prices", "data": [3, 0], "key": "a"}));
    publisher.ack("publish", json!({"topic": "prices", "data": [4, 0], "key": "b"}));
    assert_eq!(dropped(server, Drop::LatestPerKey), before + 2, "each in the place of its key");
    let mut numbers = numbers(&mut slow);
    numbers.retain(|&number| number > 0);
    assert_eq!(numbers, [3, 4]);
    // A key has its bound.
    assert_eq!(publish(5, &"k".repeat(255)).unwrap().queued, 1);
    assert_eq!(publish(5, &"k".repeat(256)).unwrap_err().code.label(), "too_large");
    let long = |length: usize| json!({"topic": "prices", "data": 6, "key": "k".repeat(length)});
    api.post("publish", long(255));
    api.refused("POST /api/publish", &long(256).to_string(), 413, "too_large", "key");
    let results = api.post("batch", json!({"messages": [long(256), long(255)]}))["results"].clone();
    assert_eq!((&results[0]["code"], &results[1]["queued"]), (&json!("too_large"), &json!(1)));
    publisher.ack("publish", long(255));
    publisher.refused("publish", long(256), "too_large");
    publisher.refused("publish", json!({"topic": "prices", "data": 6, "key": Value::Null}), "invalid_message");
}
