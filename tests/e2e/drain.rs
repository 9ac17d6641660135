//! The end of an engine: everyone is told, what was acked is delivered, and nobody can hold it up.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use tidewheel::metrics::CloseReason;

use super::PATIENCE;
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
