//! Panics: of a request, and of a whole shard, while others go on.
//!
//! A shard's own code has no panic to offer, so it is made to run some of the embedding program's: the waker of whoever
//! awaits an [`tidewheel::EngineHandle::broadcast`], which shard 0 answers.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::task::{Context as TaskContext, Wake};
use std::time::Duration;
use std::{panic, thread};

use serde::Deserialize;
use serde_json::json;
use tidewheel::metrics::PanicSite;
use tidewheel::shard::queries::{ConnectionState, ConnectionsQuery};
use tidewheel::{Context, EngineBuilder, HandlerError};

use super::client::Client;
use super::handlers::block_on;
use super::raw::request;
use super::server::Server;
use super::until;

/// At once and after an await, some with destructors that panic too.
#[test]
fn a_thousand_panics_cost_nobody_else_a_message() {
    quiet();
    let limits = "limits: {messages: null, bytes: null, connection_attempts: null, errors: 65535}";
    let server = Server::build(4, &format!("{limits}\n{PATIENT}"), routes);
    let mut subscribers: Vec<Client> = (0..12).map(|_| server.connect()).collect();
    subscribers.iter_mut().for_each(|client| client.subscribe("t"));
    let calm = AtomicBool::new(false);
    thread::scope(|scope| {
        let panicking: Vec<_> = ["now", "later", "bomb", "later"]
            .into_iter()
            .map(|kind| {
                let mut client = server.connect();
                scope.spawn(move || {
                    (0..250).for_each(|_| drop(client.refused(kind, json!({}), "internal_error")));
                    client.quiet();
                    client.close();
                })
            })
            .collect();
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let (mut client, calm) = (server.connect(), &calm);
                scope.spawn(move || {
                    let mut published = 0;
                    while published < 100 || !calm.load(Ordering::Relaxed) {
                        let receipt = client.publish("t", json!([publisher, published]));
                        assert_eq!(receipt, (12, 12, 0));
                        published += 1;
                    }
                    client.close();
                    published
                })
            })
            .collect();
        panicking.into_iter().for_each(|thread| thread.join().unwrap());
        calm.store(true, Ordering::Relaxed);
        let published: Vec<u64> = publishers.into_iter().map(|thread| thread.join().unwrap()).collect();
        for client in &mut subscribers {
            everything(client, &published);
            client.quiet();
        }
    });
    let panics = |site: PanicSite| server.sum(|shard| &shard.panics[site as usize]);
    assert_eq!(PanicSite::ALL.iter().map(|&site| panics(site)).collect::<Vec<_>>(), [1_000, 0, 0]);
    subscribers.into_iter().for_each(Client::close);
    server.rest();
}

#[test]
fn a_shard_that_panics_takes_only_its_own_along() {
    quiet();
    let server = Server::build(2, "", routes);
    let [mut here, mut there] = [0, 1].map(|shard| connect_to(&server, shard, 3));
    for client in here.iter_mut().chain(&mut there) {
        client.subscribe("t");
    }
    // A handler that waits goes with its connection; so does half a request.
    here[0].tell("never", json!({}));
    until("the handler to wait", || server.sum(|shard| &shard.parked) == 1);
    let mut half = half_a_request(&server, 0);
    assert_eq!(there[0].publish("t", json!(1)), (6, 6, 0));

    break_shard(&server);
    for client in &mut here {
        client.parted(1011, true);
    }
    half.rest();
    let ended = ConnectionsQuery { state: ConnectionState::Closed, ..ConnectionsQuery::default() };
    let ended = serde_json::to_value(block_on(server.handle.connections(ended)).unwrap()).unwrap();
    let reasons = ended["connections"].as_array().unwrap().iter().map(|state| &state["closed"]["reason"]);
    assert_eq!(reasons.filter(|&reason| reason == "internal").count(), 3, "remembered as ended: {ended}");
    // Nobody waits for the dead, and their places are free.
    assert_eq!(there[0].publish("t", json!(2)), (3, 3, 0));
    let mut again = connect_to(&server, 0, 2);
    again[0].subscribe("t");
    assert_eq!(again[0].publish("t", json!(3)), (4, 4, 0));
    assert_eq!(there[0].publish("t", json!(4)), (4, 4, 0));
    for client in &mut there {
        let got: Vec<_> = (0..4).map(|_| message(client)).collect();
        assert_eq!(got, [1, 2, 3, 4], "also while the other shard was away");
        assert!(client.take_early().is_empty());
    }
    assert_eq!([message(&mut again[0]), message(&mut again[0])], [3, 4]);
    let panics = server.sum(|shard| &shard.panics[PanicSite::Shard as usize]);
    assert_eq!((panics, server.sum(|shard| &shard.restarts)), (1, 1));
    assert_eq!((server.active(), server.sum(|shard| &shard.parked)), (5, 0));
    again.into_iter().chain(there).for_each(Client::close);
    server.rest_after_failures(4);
}

/// Publishes are acked and arrive while the subscribers' neighbours are taken away again and again.
#[test]
fn nobody_elsewhere_loses_a_message() {
    quiet();
    let server = Server::build(3, PATIENT, routes);
    let mut safe: Vec<Client> = [1, 2].iter().flat_map(|&shard| connect_to(&server, shard, 2)).collect();
    safe.iter_mut().for_each(|client| client.subscribe("t"));
    let calm = AtomicBool::new(false);
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let mut client = connect_to(&server, 1 + publisher as usize % 2, 1).remove(0);
                let calm = &calm;
                scope.spawn(move || {
                    let mut published = 0;
                    while !calm.load(Ordering::Relaxed) {
                        let (matched, queued, dropped) = client.publish("t", json!([publisher, published]));
                        assert!(matched == queued && dropped == 0 && (4..=6).contains(&matched), "{matched} {queued}");
                        published += 1;
                    }
                    published
                })
            })
            .collect();
        for round in 1..=4 {
            let mut doomed = connect_to(&server, 0, 2);
            doomed.iter_mut().for_each(|client| client.subscribe("t"));
            break_shard(&server);
            assert_eq!(server.sum(|shard| &shard.restarts), round);
            doomed.iter_mut().for_each(|client| drop(client.parted(1011, true)));
        }
        calm.store(true, Ordering::Relaxed);
        let published: Vec<u64> = publishers.into_iter().map(|thread| thread.join().unwrap()).collect();
        for client in &mut safe {
            everything(client, &published);
        }
    });
    drop(safe);
    server.rest_after_failures(8);
}

#[test]
fn a_shard_that_panics_while_it_drains_goes_on_draining() {
    quiet();
    let mut server = Server::build(2, "drain: {deadline: 5s}\nwebsocket: {close_timeout: 1h}", routes);
    // Some who do not answer the close frame, so that the drain lasts, on both shards.
    let mut mute: Vec<_> = (0..2).map(|shard| connect_to(&server, shard, 1).remove(0)).collect();
    server.handle.drain();
    until("the drain to be under way", || mute.iter_mut().all(|client| client.text().contains("1012")));
    break_shard(&server);
    let address = server.address;
    until("nobody to be accepted", || std::net::TcpStream::connect(address).is_err());
    let summary = server.wait();
    assert_eq!((summary.broken_shards, summary.cut), (0, 1), "{summary}");
    server.rest_after_failures(1);
}

#[test]
fn a_shard_that_breaks_again_and_again_ends_the_engine() {
    quiet();
    let mut server = Server::build(2, "", routes);
    let mut elsewhere = connect_to(&server, 1, 1).remove(0);
    (0..5).for_each(|_| break_shard(&server));
    elsewhere.expect("broadcast"); // it has noticed nothing but these
    bomb(&server, || server.sum(|shard| &shard.panics[PanicSite::Shard as usize]) == 6);
    elsewhere.parted(1012, true);
    let summary = server.wait();
    assert_eq!(summary.broken_shards, 1, "{summary}");
    server.rest();
}

#[derive(Deserialize)]
struct Nothing {}

/// Panics when it is dropped, with something that panics when it is dropped, and so on.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic::panic_any(Bomb);
    }
}

fn routes(builder: EngineBuilder) -> EngineBuilder {
    builder
        .route("now", async |_: Context, _: Nothing| -> Result<(), HandlerError> { panic!("{ON_PURPOSE}") })
        .route("later", async |_: Context, _: Nothing| -> Result<(), HandlerError> {
            tokio::time::sleep(Duration::from_millis(1)).await;
            panic!("{ON_PURPOSE}")
        })
        .route("bomb", async |_: Context, _: Nothing| -> Result<(), HandlerError> {
            tokio::task::yield_now().await;
            panic::panic_any(Bomb)
        })
        .route("never", async |_: Context, _: Nothing| {
            let _bomb = Bomb;
            std::future::pending::<()>().await;
            Ok(())
        })
}

/// Clients of one shard.
fn connect_to(server: &Server, shard: usize, count: usize) -> Vec<Client> {
    let mut here = Vec::new();
    for _ in 0..256 {
        let before = server.opened()[shard];
        let client = server.connect();
        match server.opened()[shard] > before {
            true => here.push(client),
            false => client.close(),
        }
        if here.len() == count {
            return here;
        }
    }
    panic!("the kernel gives shard {shard} nobody")
}

/// A peer of one shard that has sent half of its request.
fn half_a_request(server: &Server, shard: usize) -> super::raw::Raw {
    loop {
        let before = server.opened();
        let mut raw = server.raw();
        raw.write(&request("/ws").as_bytes()[..40]);
        until("the newcomer to be accepted", || server.opened() != before);
        if server.opened()[shard] > before[shard] {
            return raw;
        }
        raw.half_close();
        raw.rest();
    }
}

/// Makes shard 0 panic, and waits until it serves again.
fn break_shard(server: &Server) {
    let before = server.handle.metrics()[0].restarts.get();
    bomb(server, || server.handle.metrics()[0].restarts.get() > before);
}

/// Broadcasts with a waker that panics, until `is_broken`.
fn bomb(server: &Server, is_broken: impl Fn() -> bool) {
    struct Panicking;

    impl Wake for Panicking {
        fn wake(self: Arc<Self>) {
            panic!("{ON_PURPOSE}");
        }
    }

    let waker = Arc::new(Panicking).into();
    let asked = std::time::Instant::now();
    while !is_broken() {
        assert!(asked.elapsed() < super::PATIENCE, "shard 0 does not break");
        let mut answer = pin!(server.handle.broadcast(&"boo"));
        // If the answer was there first nobody is woken.
        if answer.as_mut().poll(&mut TaskContext::from_waker(&waker)).is_pending() {
            let hopeless = std::time::Instant::now() + Duration::from_secs(2);
            while !is_broken() && std::time::Instant::now() < hopeless {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// The next message of `t`, broadcasts passed over.
fn message(client: &mut Client) -> serde_json::Value {
    loop {
        let message = client.next();
        if message["type"] == "message" {
            return message["payload"]["data"].clone();
        }
        assert_eq!(message["type"], "broadcast", "{message}");
    }
}

/// Everything that each publisher has published, in order.
fn everything(client: &mut Client, published: &[u64]) {
    let mut next = vec![0; published.len()];
    while next != published {
        let [publisher, number]: [u64; 2] = serde_json::from_value(message(client)).unwrap();
        assert_eq!(number, next[publisher as usize], "of publisher {publisher}");
        next[publisher as usize] += 1;
    }
}

/// Panics on purpose say nothing.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let on_purpose = info.payload_as_str().is_some_and(|text| text.contains(ON_PURPOSE));
            if !on_purpose && !info.payload().is::<Bomb>() {
                usual(info);
            }
        }));
    });
}

const ON_PURPOSE: &str = "on purpose";
const PUBLISHERS: u64 = 4;
/// Subscribers are read from at the end.
const PATIENT: &str = "outbound: {max_bytes: 100MB, max_frames: 500000, max_age: 1h}";
