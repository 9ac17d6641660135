//! What a shard allocates once nothing is new any more: nothing for a message that comes back, a command, a ping, or a
//! subscriber of a publish; and of the rest no more than is known, with the reason.
//! Law: only the shard's side is counted, on this thread; `cargo bench --bench counts -- allocations` says how much it is.

#[path = "../benches/counts/calm.rs"]
mod calm;
#[path = "../benches/measure/json.rs"]
mod json;
#[path = "../benches/counts/scenes.rs"]
mod scenes;
#[path = "../benches/counts/server.rs"]
mod server;

use scenes::{SCENES, Scene};
use tidewheel::server::IDLE_CONNECTION_BYTES;

/// Rounds before the count, until what is kept for each connection is there.
const WARM_UP: u32 = 256;
/// Rounds that are counted.
const ROUNDS: u64 = 32;

/// Allocations of one round, at most, of scenes that need some.
const NEEDED: &[(&str, u64)] = &[
    // The handler's future, which may outlive the buffer its message came in, and its reply as JSON. A text grows.
    ("handler", 3),
    // The bytes that all subscribers share, and the count of who does.
    ("publish to nobody", 2),
    ("publish to 1", 2),
    ("publish to 100", 2),
    ("publish to 1,000", 2),
    // Where several messages wait for a subscriber there is a place for them, and an empty queue holds no memory.
    ("publish to 1, 4 at once", 4 * 2 + 2),
    ("publish to 100, 4 at once", 4 * 2 + 2 * 100),
    // The compressed form and the list of forms besides.
    ("publish 1 KiB compressed to 1", 4),
    ("publish 1 KiB compressed to 100", 4),
    ("publish 1 KiB compressed to 1,000", 4),
    // A record that came in several buffers is put together, in memory that doubles.
    ("echo 16 KiB over TLS", 4),
    // What a connection is: its session, its greeting; and what its token said.
    ("connect with a token", 14),
];

/// Allocations of some rounds.
fn allocations(scene: &Scene) -> u64 {
    let mut round = scene.warm(WARM_UP);
    let mut count = 0;
    for _ in 0..ROUNDS {
        round(&mut |work| count += allocation_counter::measure(work).count_total);
    }
    count
}

#[test]
fn nothing_is_allocated_that_need_not_be() {
    let mut found = Vec::new();
    for scene in SCENES {
        let needed = NEEDED.iter().find(|(name, _)| *name == scene.name).map_or(0, |&(_, needed)| needed);
        let count = allocations(scene);
        // A hash table that grows once is no finding where something is allocated anyway.
        if count > needed * ROUNDS + needed {
            let (unit, units) = scene.of;
            let name = scene.name;
            found.push(format!(
                "{name}: {count} allocations in {ROUNDS} rounds (of {units} × {unit}), not {needed} each"
            ));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    let unknown = NEEDED.iter().find(|(needed, _)| !SCENES.iter().any(|scene| scene.name == *needed));
    assert_eq!(unknown, None, "there is no such scene");
}

/// The memory contract, counted: what a shard keeps for connections that are authenticated, have one subscription and lie idle.
#[test]
fn an_idle_connection_keeps_no_more_than_the_contract_says() {
    const CONNECTIONS: u64 = 4000;
    let mut server = scenes::guarded();
    let subscribe = server::text(r#"{"type":"subscribe","payload":{"topic":"news"}}"#);
    let mut bytes = 0;
    for number in 0..CONNECTIONS {
        let client =
            if number % 2 == 0 { format!("client-{number}") } else { uuid::Uuid::from_u128(number.into()).to_string() };
        let request = scenes::request_of(&client);
        server.calm().connect();
        let mut turns = |server: &mut server::Server| {
            bytes += allocation_counter::measure(|| (0..3).for_each(|_| server.turn())).bytes_current;
        };
        turns(&mut server);
        let conn = server.calm().adopted().expect("there is room");
        server.calm().say(conn, &request);
        turns(&mut server);
        server.calm().say(conn, &subscribe);
        turns(&mut server);
    }
    assert_eq!(
        (server.metrics().authenticated.get(), server.metrics().subscriptions.get()),
        (CONNECTIONS, CONNECTIONS)
    );
    // The driver's record is not among them, and of each kind of chunk the last one is not full.
    let each = u64::try_from(bytes).expect("more is taken than given back") / CONNECTIONS;
    let contract = IDLE_CONNECTION_BYTES as u64;
    assert!((contract - 40..=contract).contains(&each), "{each} bytes each, where the contract says {contract}");
}

#[test]
fn an_allocation_in_a_turn_is_seen() {
    let connect = SCENES.iter().find(|scene| scene.name == "connect with a token").expect("a scene");
    assert!(allocations(connect) >= 5 * ROUNDS);
}
