//! Coming and going: accounts that add up while everything changes, and tables that are full.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::json;
use tidewheel::metrics::Refusal;

use super::raw::{Raw, request};
use super::server::Server;

/// Subscribers of a few topics come and go on all shards while others publish to them: what the receipts promise is
/// exactly what arrives.
#[test]
fn receipts_are_what_arrives() {
    let server = Server::build(4, "", |builder| builder);
    let (promised, arrived) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..8 {
            let (server, stop, arrived) = (&server, &stop, &arrived);
            threads.push(scope.spawn(move || {
                let mut client = server.connect();
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let topic = format!("t.{}", (number + round) % 3);
                    client.subscribe(&topic);
                    client.ask("ping", json!({}));
                    client.ack("unsubscribe", json!({"topic": topic}));
                    let count = client.take_early().len() as u64;
                    arrived.fetch_add(count, Ordering::Relaxed);
                    client.quiet();
                }
                client.close();
            }));
        }
        let publishers: Vec<_> = (0..4)
            .map(|_| {
                let (server, promised) = (&server, &promised);
                scope.spawn(move || {
                    let mut client = server.connect();
                    for number in 0..600 {
                        let (matched, queued, dropped) = client.publish(&format!("t.{}", number % 3), json!(number));
                        assert_eq!((matched, dropped), (queued, 0));
                        promised.fetch_add(queued, Ordering::Relaxed);
                    }
                    client.close();
                })
            })
            .collect();
        publishers.into_iter().for_each(|thread| thread.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
    assert!(promised.load(Ordering::Relaxed) > 0, "nobody was ever subscribed");
    assert_eq!(arrived.load(Ordering::Relaxed), promised.load(Ordering::Relaxed));
    server.rest();
}

/// Thousands of connections one after the other, in a pool that has room for a few: every place is used again.
#[test]
fn places_are_used_again() {
    let server = Server::start("websocket: {max_total_connections: 64}");
    let mut neighbour = server.connect();
    neighbour.subscribe("t");
    thread::scope(|scope| {
        for worker in 0..4 {
            let server = &server;
            scope.spawn(move || {
                for number in 0..500 {
                    let mut raw = server.raw();
                    raw.upgrade("/ws");
                    raw.text(r#"{"type":"subscribe","payload":{"topic":"other"}}"#);
                    assert_eq!(raw.json()["payload"]["topic"], "other");
                    match (worker + number) % 4 {
                        0 => raw.reset(),
                        1 => drop(raw),
                        2 => {
                            raw.write(&super::raw::close(1000));
                            assert_eq!(raw.closed(), 1000);
                        }
                        _ => {
                            raw.write(&[0xff; 8]);
                            assert_eq!(raw.closed(), 1002);
                        }
                    }
                }
            });
        }
        for number in 0..500 {
            assert_eq!(neighbour.publish("t", json!(number)), (1, 1, 0));
            assert_eq!(neighbour.data("t"), number);
        }
    });
    neighbour.close();
    assert_eq!(server.sum(|shard| &shard.upgraded), 2001);
    server.rest();
}

/// More connections at once than the server has places of any kind: as many as it may hold come in, all others are told
/// that they cannot, and afterwards there is room again.
#[test]
fn a_crowd_at_a_small_door() {
    let server = Server::start("websocket: {max_total_connections: 10}");
    let refused = || server.sum(|shard| &shard.refused[Refusal::Full as usize]);
    for _ in 0..3 {
        let before = refused();
        let mut crowd: Vec<Raw> = (0..600).map(|_| server.raw()).collect();
        crowd.iter_mut().for_each(|raw| raw.write(request("/ws").as_bytes()));
        let mut inside = Vec::new();
        for mut raw in crowd {
            let head = raw.head();
            match head.split(' ').nth(1) {
                Some("101") => inside.push(raw),
                Some("503") => assert!(head.contains("\r\nRetry-After: "), "{head}"),
                _ => panic!("{head}"),
            }
        }
        assert_eq!(inside.len(), 10);
        assert_eq!(refused() - before, 590);
        for raw in &mut inside {
            raw.text(r#"{"type":"ping","id":1}"#);
            assert_eq!(raw.json()["reply_to"], 1);
        }
        drop(inside);
        server.rest();
    }
}
