//! Crowds of one client on four shards: exactly as many stay as may, and they are the newest.
//!
//! Newest means last in the order in which the owner of the client's list let connections in. That order is not on the
//! wire, but it agrees with time: whoever was let in before another asked stands before it. So of two of which one was
//! acknowledged before the other asked, the first never stays without the second.
//!
//! `TIDEWHEEL_RACE_ROUNDS=1000 cargo test --test e2e eviction` runs all rounds, which takes half a minute.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use serde_json::json;
use tidewheel::metrics::CloseReason;

use super::auth::{SECRET, token};
use super::raw::{self, CLOSE, Raw};
use super::server::Server;

const CROWD: usize = 100;
const THREADS: usize = 10;
const STAY: usize = 5;

/// One connection of the crowd, and when it asked and was acknowledged.
struct Member {
    raw: Raw,
    asked: Instant,
    acked: Instant,
}

fn ask(server: &Server, request: &str) -> (Raw, Instant) {
    let mut raw = server.raw();
    let asked = Instant::now();
    raw.write(request.as_bytes());
    (raw, asked)
}

#[track_caller]
fn acked((mut raw, asked): (Raw, Instant)) -> Member {
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    let answer = raw.json();
    assert_eq!(answer["payload"]["authenticated"], true, "{answer}");
    Member { raw, asked, acked: Instant::now() }
}

/// A crowd that connects and authenticates at once, each thread's part in one go or one after the other.
fn crowd(server: &Server, request: &str, in_one_go: bool) -> Vec<Member> {
    let gate = Barrier::new(THREADS);
    let part = || {
        gate.wait();
        let asking = (0..CROWD / THREADS).map(|_| ask(server, request));
        match in_one_go {
            true => asking.collect::<Vec<_>>().into_iter().map(acked).collect(),
            false => asking.map(acked).collect::<Vec<_>>(),
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(part)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Waits until all but five of these were told to go, and returns both; who stays is told nothing.
#[track_caller]
fn part(crowd: Vec<Member>) -> (Vec<Member>, Vec<Member>) {
    let (mut stay, mut gone) = (crowd, Vec::new());
    super::until("all but five to be told to go", || {
        for mut member in std::mem::take(&mut stay) {
            member.raw.text(r#"{"type":"ping","id":1}"#);
            let said = member.raw.json();
            if said["type"] == "pong" {
                stay.push(member);
                continue;
            }
            assert_eq!((&said["type"], &said["payload"]["code"]), (&json!("disconnect"), &json!(4503)), "{said}");
            assert_eq!(said["payload"]["reconnect"], false, "{said}");
            assert_eq!(member.raw.until(CLOSE).payload[..2], 4503u16.to_be_bytes());
            member.raw.write(&raw::close(4503));
            gone.push(member);
        }
        assert!(stay.len() >= STAY, "only {} are left", stay.len());
        stay.len() == STAY
    });
    (stay, gone)
}

#[test]
fn exactly_the_newest_five_of_any_crowd_stay() {
    let rounds = std::env::var("TIDEWHEEL_RACE_ROUNDS").map_or(100, |rounds| rounds.parse().expect("a number"));
    let most = 2 * CROWD;
    let yaml = format!("auth: {{secret: '{SECRET}'}}\nwebsocket: {{max_total_connections: {most}}}");
    let server = Server::build(4, &yaml, |builder| builder);
    let bearer = format!("Authorization: Bearer {}\r\n", token(json!({"sub": "alice"})));
    let request = raw::request_with("/ws", &bearer);
    let mut stay: Vec<Member> = Vec::new();
    let mut ordered = 0;
    for round in 0..rounds {
        let newcomers = crowd(&server, &request, round % 2 == 0);
        // The five of the round before are older than all of these.
        let (five, gone) = part(stay.drain(..).chain(newcomers).collect());
        stay = five;
        for evicted in &gone {
            let older = stay.iter().filter(|member| member.acked < evicted.asked);
            assert_eq!(older.count(), 0, "round {round}: an older connection stayed in place of a newer one");
            ordered += stay.iter().filter(|member| evicted.acked < member.asked).count();
        }
        drop(gone);
        super::until("the pools to hold the five and nobody else", || server.active() == STAY as u64);
        assert_eq!(server.sum(|shard| &shard.authenticated), STAY as u64);
        let evicted = (round + 1) * CROWD - STAY;
        assert_eq!(server.closed(CloseReason::Evicted), evicted as u64);
    }
    assert!(ordered > rounds * CROWD, "only {ordered} pairs were in an order that could be told");
    // The total is what the pools hold: as many as are left find room, and not one more.
    let fill: Vec<Raw> = (0..most - STAY).map(|_| server.raw_open()).collect();
    let mut surplus = server.raw();
    surplus.write(raw::request("/ws").as_bytes());
    assert_eq!(surplus.refusal().0, 503);
    drop((fill, stay));
    server.rest();
}
