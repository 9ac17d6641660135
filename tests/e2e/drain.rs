//! The end of an engine: everyone is told, what was acked is delivered, and nobody can hold it up.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidewheel::metrics::CloseReason;

use super::PATIENCE;
use super::api::Api;
use super::http;
use super::raw::{self, Raw, request};
use super::server::Server;

#[test]
fn everyone_is_told_and_gets_what_was_acked() {
    let mut server = Server::build(4, "drain: {deadline: 30s}", |builder| builder);
    let mut clients: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.subscribe("t");
    }
    let mut newcomer = server.raw();
    newcomer.write(&request("/ws").as_bytes()[..40]);
    super::until("the newcomer to be accepted", || server.active() == 41);
    let mut publisher = server.connect();
    let count = 200;
    for number in 0..count {
        assert_eq!(publisher.publish("t", json!(number)).1, 40);
    }
    server.handle.drain();
    for client in &mut clients {
        for number in 0..count {
            assert_eq!(client.data("t"), number);
        }
        let ended = client.parted(1012, true);
        let delay = ended.disconnect.as_ref().unwrap()["retry_after_ms"].as_u64().unwrap();
        // A client that looks at the close frame alone learns the same.
        let reason: Value = serde_json::from_str(&ended.close.unwrap().1).unwrap();
        assert_eq!(reason, json!({"retry_after_ms": delay}));
    }
    let (status, head, _) = newcomer.refusal();
    assert!(status == 503 && head.contains("\r\nRetry-After: "), "{head}");
    publisher.parted(1012, true);
    let summary = server.wait();
    assert_eq!((summary.connections, summary.drained, summary.cut, summary.broken_shards), (42, 42, 0, 0), "{summary}");
    server.rest();
}

/// Clients that do nothing to help: one never reads, one never answers the close frame, one sends half a request.
#[test]
fn the_deadline_holds_whatever_clients_do() {
    let mut server = Server::start(
        "drain: {deadline: 5s}\nwebsocket: {close_timeout: 1h, idle_timeout_seconds: 0}\noutbound: {max_bytes: 100MB, max_frames: 100000, max_age: 1h}",
    );
    let mut deaf = server.raw_open();
    deaf.text(r#"{"type":"subscribe","payload":{"topic":"t"}}"#);
    deaf.json();
    let mut mute = server.raw_open();
    let mut publisher = server.connect();
    let padding = "x".repeat(100_000);
    for _ in 0..300 {
        publisher.publish("t", json!(padding));
    }
    let mut half = server.raw();
    half.write(b"GET /ws");
    super::until("all to be accepted", || server.active() == 4);

    let start = Instant::now();
    server.handle.drain();
    publisher.parted(1012, true);
    assert_eq!(half.refusal().0, 503);
    assert_eq!(mute.json()["type"], "disconnect");
    assert_eq!(mute.until(raw::CLOSE).payload[..2], 1012u16.to_be_bytes());
    let summary = server.wait();
    assert!(start.elapsed() < PATIENCE, "the drain took {:?}", start.elapsed());
    assert_eq!((summary.drained, summary.cut), (4, 2), "{summary}");
    // Both see an end, not a silence.
    deaf.rest();
    mute.rest();
    assert_eq!(server.closed(CloseReason::Drain), 4);
    server.rest();
}

#[test]
fn newcomers_are_refused() {
    let mut server = Server::start("drain: {deadline: 3s}");
    let address = server.address;
    // Somebody who never answers the close frame, so that the drain lasts.
    let mut holder = server.raw_open();
    server.handle.drain();
    assert_eq!(holder.json()["type"], "disconnect");
    // No upgrade from now on: not reachable, an answer, or an end, and all of it at once.
    for _ in 0..10 {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        let outcome = stream.write_all(request("/ws").as_bytes()).and_then(|()| stream.read_to_end(&mut answer));
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(!matches!(outcome, Err(error) if error.kind() == ErrorKind::WouldBlock), "a silence");
    }
    assert_eq!(server.active(), 1, "still draining");
    holder.write(&raw::close(1012));
    assert_eq!(holder.until(raw::CLOSE).payload[..2], 1012u16.to_be_bytes());
    let summary = server.wait();
    assert_eq!((summary.drained, summary.cut), (1, 0), "{summary}");
}

/// Under load, every ack that a publisher got is a delivery that each subscriber gets, up to the last.
#[test]
fn acks_hold_through_a_drain_under_load() {
    let mut server = Server::build(4, "drain: {deadline: 30s}", |builder| builder);
    let subscribers: Vec<_> = (0..8)
        .map(|_| {
            let mut client = server.connect();
            client.subscribe("t");
            client
        })
        .collect();
    let subscribers: Vec<_> = subscribers
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                let mut seen = [0u64; 4];
                loop {
                    let message = client.next();
                    if message["type"] == "disconnect" {
                        return seen;
                    }
                    let data = &message["payload"]["data"];
                    let publisher = data[0].as_u64().unwrap() as usize;
                    assert_eq!(data[1].as_u64().unwrap(), seen[publisher], "in order and without a gap");
                    seen[publisher] += 1;
                }
            })
        })
        .collect();
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            let mut client: Raw = server.raw_open();
            thread::spawn(move || {
                let mut queued = Vec::new();
                for number in 0.. {
                    client.text(&format!(
                        r#"{{"type":"publish","payload":{{"topic":"t","data":[{publisher},{number}]}}}}"#
                    ));
                    let reply = client.json();
                    if reply["type"] == "disconnect" {
                        return queued;
                    }
                    queued.push(reply["payload"]["queued"].as_u64().unwrap());
                }
                unreachable!("it counts until it is closed")
            })
        })
        .collect();
    super::until("a load", || server.sum(|shard| &shard.published) > 2000);
    server.handle.drain();
    let acked: Vec<Vec<u64>> = publishers.into_iter().map(|thread| thread.join().unwrap()).collect();
    let seen: Vec<[u64; 4]> = subscribers.into_iter().map(|thread| thread.join().unwrap()).collect();
    for (publisher, queued) in acked.iter().enumerate() {
        let delivered: u64 = seen.iter().map(|seen| seen[publisher]).sum();
        let promised: u64 = queued.iter().sum();
        assert_eq!(delivered, promised);
    }
    assert_eq!(server.wait().cut, 0);
}

/// `drain.wait`: not ready at once, and served all the same as long as balancers may not know.
#[test]
fn balancers_are_waited_for() {
    let mut server = Server::start("drain: {wait: 1500ms, deadline: 20s}");
    let ready = |server: &Server| http::request(server.admin, "GET /readyz", "", b"").status;
    assert_eq!(ready(&server), 200);
    let mut before = server.connect();
    let start = Instant::now();
    server.handle.drain();
    assert_eq!(ready(&server), 503);
    let mut newcomer = server.connect();
    newcomer.subscribe("t");
    assert_eq!(before.publish("t", json!(1)), (1, 1, 0));
    assert_eq!(newcomer.data("t"), 1);
    assert!(start.elapsed() < Duration::from_millis(1500), "this machine stands still");
    before.parted(1012, true);
    assert!(start.elapsed() >= Duration::from_millis(1500));
    newcomer.parted(1012, true);
    assert_eq!(server.wait().closed_cleanly, 2);
}

/// `drain.spread` and `drain.reconnects_per_second`: how long closing takes, and until when clients are told to stay away.
#[test]
fn closes_and_returns_keep_to_the_rate() {
    let check = |count: u32, yaml: &str, closing_ms: u64, returning_ms: u64| {
        let mut server = Server::build(4, &format!("drain: {{{yaml}}}"), |builder| builder);
        let clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
        let start = Instant::now();
        server.handle.drain();
        let watch = |mut client: super::client::Client| {
            thread::spawn(move || {
                let delay_ms = client.parted(1012, true).disconnect.unwrap()["retry_after_ms"].as_u64().unwrap();
                let closed_ms = start.elapsed().as_millis() as u64;
                (closed_ms, closed_ms + delay_ms)
            })
        };
        let watchers: Vec<_> = clients.into_iter().map(watch).collect();
        let (mut closed, mut back): (Vec<u64>, Vec<u64>) =
            watchers.into_iter().map(|watcher| watcher.join().unwrap()).unzip();
        assert_eq!(server.wait().closed_cleanly, u64::from(count));
        closed.sort_unstable();
        back.sort_unstable();
        // Each has a slot of its shard's own, so the k-th is not before its time by more than a slot of each shard.
        let slots = |index: usize, window_ms: u64| (index as u64).saturating_sub(4) * window_ms / u64::from(count);
        for (index, (&closed, &back)) in closed.iter().zip(&back).enumerate() {
            assert!(closed + 2 >= slots(index, closing_ms), "{yaml}: {index} closed after {closed} ms");
            assert!(back + 2 >= slots(index, returning_ms), "{yaml}: {index} back after {back} ms");
        }
        // No limit for a machine that stands still, but who is told to stay away is told for how long, not longer.
        let last_ms = *back.last().unwrap();
        assert!(last_ms <= returning_ms.max(*closed.last().unwrap()) + 500, "{yaml}: back after {last_ms} ms");
    };
    check(60, "deadline: 30s", 60, 5_060);
    check(60, "deadline: 30s, reconnects_per_second: 20", 3_000, 8_000);
    check(60, "deadline: 30s, reconnects_per_second: 20, spread: 1s", 1_000, 6_000);
    check(60, "deadline: 30s, reconnects_per_second: 2, spread: 0s", 0, 30_000);
}

/// Who is on the way in is turned away with a delay that is not the same for all.
#[test]
fn handshakes_are_refused_with_jitter() {
    let server = Server::start("drain: {deadline: 10s, reconnects_per_second: 1}");
    let mut newcomers: Vec<Raw> = (0..40).map(|_| server.raw()).collect();
    newcomers.iter_mut().for_each(|newcomer| newcomer.write(b"GET /ws"));
    super::until("all to be accepted", || server.active() == 40);
    server.handle.drain();
    let delays: Vec<u64> = newcomers
        .iter_mut()
        .map(|newcomer| {
            let (status, head, _) = newcomer.refusal();
            assert_eq!(status, 503, "{head}");
            let line = head.lines().find_map(|line| line.strip_prefix("Retry-After: ")).unwrap();
            line.parse().unwrap()
        })
        .collect();
    assert!(delays.iter().all(|delay| (1..=40).contains(delay)), "{delays:?}");
    let different: std::collections::BTreeSet<_> = delays.iter().collect();
    assert!(different.len() > 10, "{delays:?}");
}

#[test]
fn the_api_drains() {
    let api = Api::start("drain: {wait: 1s, deadline: 20s}");
    let mut deaf = api.server.raw_open();
    let mut client = api.server.connect();
    let before = api.get("drain");
    assert_eq!((&before["phase"], &before["connections_left"]), (&json!("ready"), &json!(2)));
    assert_eq!(before.get("deadline_in_ms"), None);
    let refused = |body: &str, text: &str| api.refused("POST /api/drain", body, 400, "invalid_message", text);
    refused(r#"{"deadline": "soon"}"#, "drain.deadline");
    refused(r#"{"deadline": "2h"}"#, "drain.deadline: 2h is out of range");
    // Of a script whose variable is not set.
    refused(r#"{"deadline": ""}"#, "drain.deadline: this key cannot be null");
    refused(r#"{"wait": "", "spread": "auto"}"#, "drain.wait: this key cannot be null");
    refused(r#"{"spread": ""}"#, "drain.spread: this key cannot be null");
    refused(r#"{"deadline": "500ms"}"#, "drain.wait: 1s is longer than drain.deadline: 500ms");
    refused(r#"{"wait": "0s", "spread": "3s", "deadline": "2s"}"#, "drain.spread: 3s is longer than");
    refused(r#"{"reconnects_per_second": 0}"#, "drain.reconnects_per_second: 0 is out of range");
    refused(r#"{"dedline": "1s"}"#, "dedline");
    assert_eq!(api.get("drain"), before, "nothing has begun");

    let began = api.post("drain", json!({"wait": "0s", "deadline": "4s", "spread": "auto"}));
    assert_eq!((&began["phase"], &began["connections_left"]), (&json!("draining"), &json!(2)));
    assert!((1..=4000).contains(&began["deadline_in_ms"].as_u64().unwrap()), "{began}");
    client.parted(1012, true);
    super::until("the one to have gone", || api.get("drain")["connections_left"] == 1);
    let progress = api.get("drain");
    assert_eq!((&progress["closed_cleanly"], &progress["cut"]), (&json!(1), &json!(0)));
    assert_eq!(deaf.json()["type"], "disconnect");
    let Api { mut server } = api;
    let summary = server.wait();
    assert_eq!((summary.closed_cleanly, summary.cut, summary.unsent_bytes), (1, 1, 0), "{summary}");
    assert!(summary.to_string().ends_with("drained: 1 closed cleanly, 1 cut, 0 bytes unsent"), "{summary}");
}

#[test]
fn a_program_drains_as_it_likes() {
    let mut server = Server::start("drain: {wait: 1h, deadline: 1h}");
    let mut client = server.connect();
    let drain = |deadline| tidewheel::config::Drain { wait: Duration::from_secs(1), deadline, ..Default::default() };
    let problems = server.handle.drain_with(&drain(Duration::ZERO)).unwrap_err().to_string();
    assert!(problems.contains("drain.wait: 1s is longer"), "{problems}");
    client.quiet();
    server.handle.drain();
    client.quiet();
    server.handle.drain_with(&drain(Duration::from_secs(10))).unwrap();
    client.parted(1012, true);
    assert_eq!(server.wait().closed_cleanly, 1);
}

/// What supervises the server must not kill one that still says goodbye.
#[test]
fn the_unit_gives_the_drain_its_time() {
    let unit = include_str!("../../tuning/tidewheel.service");
    let seconds = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap().parse().unwrap();
    let drain = tidewheel::Config::default().drain;
    assert!(Duration::from_secs(seconds) >= drain.deadline + Duration::from_secs(10));
}
