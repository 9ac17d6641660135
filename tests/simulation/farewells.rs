//! The last words to somebody whose input was held or paused: they arrive, since what it still sends is read.

use tidewheel::io::sim::Dice;
use tidewheel::shard::settings::LINGER_MS;

use crate::stage::Stage;
use crate::wire;

const PING: &str = r#"{"type":"ping"}"#;
const WAIT: &str = r#"{"type":"wait"}"#;
/// So many handlers may wait for one connection.
const PARKED_MAX: usize = 32;
const MISTAKE: &[u8] = b"\x81\x00 without a mask";

/// One shard with a client, whose replies have room for so many bytes.
fn stage_with_client(reply_bytes_max: u32) -> (Stage, usize) {
    let mut stage = Stage::new(1, 8, |settings| settings.outbound.bytes_max = reply_bytes_max);
    stage.world.set_socket_buffers(&[64 * 1024]);
    let client = stage.client(0);
    (stage, client)
}

/// The client, which does not read, goes on sending for as long as it is read from, and reads then.
fn told_after_all(stage: &mut Stage, client: usize) -> String {
    stage.world.client_send(stage.id(client), b"it is still sending");
    stage.pass(2 * LINGER_MS);
    stage.world.client_stall(stage.id(client), false);
    stage.pass(1_000);
    stage.told(client)
}

fn release_all(stage: &mut Stage) {
    while stage.waiting.len() > 0 {
        stage.waiting.release(0, true);
    }
    stage.rest();
}

#[test]
fn a_mistake_in_what_was_held() {
    for (reply_bytes_max, held) in [(1_000_000, false), (100, true)] {
        let (mut stage, client) = stage_with_client(reply_bytes_max);
        stage.world.client_stall(stage.id(client), true);
        stage.send(client, &[PING; 20]);
        stage.world.client_send(stage.id(client), MISTAKE);
        stage.rest();
        let told = told_after_all(&mut stage, client);
        assert_eq!(told, format!("{}close 1002", "pong, ".repeat(20)), "held: {held}");
        assert_eq!(stage.metrics[0].active(), 0);
    }
}

/// Its end is seen when it comes, not when its time is over.
#[test]
fn who_made_a_mistake_in_what_was_held_ends_its_stream() {
    for (reply_bytes_max, held) in [(1_000_000, false), (100, true)] {
        let (mut stage, client) = stage_with_client(reply_bytes_max);
        stage.send(client, &[PING; 20]);
        stage.world.client_send(stage.id(client), MISTAKE);
        stage.rest();
        assert!(stage.told(client).ends_with("close 1002"));
        stage.world.client_shutdown(stage.id(client));
        stage.pass(LINGER_MS / 2);
        assert_eq!(stage.metrics[0].active(), 0, "held: {held}");
    }
}

#[test]
fn one_error_too_many_while_a_request_is_held() {
    for held in [false, true] {
        let mut stage = Stage::new(1, 8, |settings| settings.errors_max = 1);
        stage.world.set_socket_buffers(&[64 * 1024]);
        let client = stage.client(0);
        stage.world.client_stall(stage.id(client), true);
        let mut texts = vec![r#"{"type":"panic_later","payload":{"a":1,"b":2}}"#];
        texts.extend([WAIT; PARKED_MAX - 1]);
        texts.extend(held.then_some(PING));
        stage.send(client, &texts);
        stage.rest();
        release_all(&mut stage);
        let told = told_after_all(&mut stage, client);
        assert!(told.ends_with("disconnect, close 4506"), "held: {held}: {told}");
    }
}

#[test]
fn who_is_closed_for_what_waits_of_it() {
    let mut stage = Stage::new(1, 8, |settings| settings.unfinished_bytes_max = 2_000);
    stage.world.set_socket_buffers(&[64 * 1024]);
    let (client, other) = (stage.client(0), stage.client(0));
    let long = "x".repeat(1_500);
    let mut texts = vec![WAIT; PARKED_MAX];
    texts.push(&long);
    stage.send(client, &texts);
    stage.rest();
    stage.world.client_stall(stage.id(client), true);
    let mut begun = Vec::new();
    wire::frame(&mut begun, wire::TEXT, &[b'x'; 1_000], &mut Dice::new(1));
    stage.world.client_send(stage.id(other), &begun);
    stage.rest();
    release_all(&mut stage);
    let told = told_after_all(&mut stage, client);
    assert!(told.ends_with("disconnect, close 1013"), "{told}");
}

#[test]
fn who_was_paused_on_a_shard_that_breaks() {
    for held in [false, true] {
        let mut stage = Stage::new(1, 8, |_| {});
        stage.world.set_socket_buffers(&[64 * 1024]);
        let client = stage.client(0);
        let mut texts = vec![WAIT; PARKED_MAX];
        texts.extend(held.then_some(PING));
        stage.send(client, &texts);
        stage.rest();
        stage.world.client_stall(stage.id(client), true);
        stage.send(client, &[PING]);
        stage.deliver();
        stage.restart(0);
        stage.world.client_stall(stage.id(client), false);
        stage.pass(1_000);
        let told = stage.told(client);
        assert!(told.ends_with("disconnect, close 1011"), "held: {held}: {told}");
    }
}
