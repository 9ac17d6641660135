//! Messages of every size around the ends of receive buffers, and small ones cut at every byte: they arrive as if whole.

use tidewheel::io::sim::{Dice, SimConfig};

use crate::stage::Stage;
use crate::wire::{self, BINARY, Frame, PING, TEXT};

const BUFFER: usize = 64;

#[test]
fn messages_around_the_ends_of_buffers_come_back() {
    let kernel = SimConfig { table: 4, buffers: 2, buffer_size: BUFFER };
    for seed in 0..4 {
        let mut stage = Stage::on_kernel(kernel, seed, 1, 1, |_| {});
        let client = stage.newcomer(0);
        stage.world.client_send(stage.id(client), wire::request("/echo").as_bytes());
        stage.rest();
        assert_eq!(stage.response(client), Some(101));
        let mut dice = Dice::new(seed);
        for size in (1..=5).flat_map(|k| k * BUFFER - 16..=k * BUFFER + 16) {
            // Alone, and with a small one right behind it that lies across the end.
            for follower in [None, Some(3)] {
                let opcode = if dice.coin() { TEXT } else { BINARY };
                let payload: Vec<u8> = (0..size).map(|at| (at % 127) as u8).collect();
                let mut expected = vec![Frame { opcode, payload }];
                expected.extend(follower.map(|size| Frame { opcode: BINARY, payload: vec![9; size] }));
                let mut out = Vec::new();
                expected
                    .iter()
                    .for_each(|frame| drop(wire::message(&mut out, frame.opcode, &frame.payload, &mut dice)));
                stage.world.client_send(stage.id(client), &out);
                stage.rest();
                let mut got = stage.frames(client);
                got.retain(|frame| frame.opcode != wire::PONG);
                assert_eq!(got, expected, "seed {seed}, size {size}");
            }
        }
    }
}

#[test]
fn messages_cut_at_any_byte_arrive_as_if_whole() {
    let mut dice = Dice::new(1);
    let mut stream = Vec::new();
    wire::frame(&mut stream, 0x80 | TEXT, br#"{"id":1,"type":"ping"}"#, &mut dice);
    wire::frame(&mut stream, TEXT, br#"{"id":"r2","type":"subscribe","#, &mut dice);
    wire::frame(&mut stream, 0x80 | PING, b"between", &mut dice);
    wire::frame(&mut stream, 0, b"", &mut dice);
    wire::frame(&mut stream, 0x80, "\"payload\":{\"topic\":\"caf\u{e9}\u{1f30a}\"}}".as_bytes(), &mut dice);
    wire::frame(&mut stream, 0x80 | BINARY, br#"{"id":3,"type":"list_subscriptions"}"#, &mut dice);
    wire::frame(&mut stream, 0x80 | TEXT, b"not JSON", &mut dice);
    wire::frame(&mut stream, 0x88, &4999_u16.to_be_bytes(), &mut dice);
    let told = "pong 1, opcode 10, ack \"r2\", subscriptions 3, error, close 4999";
    for cut in 0..=stream.len() {
        let mut stage = Stage::from_seed(cut as u64, 1, 1, |_| {});
        let client = stage.client(0);
        for part in [&stream[..cut], &stream[cut..]] {
            stage.world.client_send(stage.id(client), part);
            stage.rest();
        }
        assert_eq!(stage.told(client), told, "cut at {cut}");
    }
}

#[test]
fn a_request_cut_at_any_byte_is_upgraded() {
    let mut stream = wire::request("/ws").into_bytes();
    wire::frame(&mut stream, 0x80 | TEXT, br#"{"id":1,"type":"ping"}"#, &mut Dice::new(1));
    for cut in 0..=stream.len() {
        let mut stage = Stage::from_seed(cut as u64, 1, 1, |_| {});
        let client = stage.newcomer(0);
        for part in [&stream[..cut], &stream[cut..]] {
            stage.world.client_send(stage.id(client), part);
            stage.rest();
        }
        assert_eq!((stage.response(client), stage.told(client).as_str()), (Some(101), "pong 1"), "cut at {cut}");
    }
}

#[test]
fn memory_that_is_kept_for_the_next_is_counted() {
    const SIZE: u64 = 10_000;
    let mut stage = Stage::new(1, 1, |_| {});
    let kept =
        |stage: &Stage| [&stage.metrics[0].spare_in_bytes, &stage.metrics[0].spare_out_bytes].map(|gauge| gauge.get());
    assert_eq!(kept(&stage), [0, 0]);
    let client = stage.newcomer(0);
    stage.world.client_send(stage.id(client), wire::request("/echo").as_bytes());
    stage.rest();
    let [received, sent] = kept(&stage);
    assert!(received == 0 && (1..4096).contains(&sent), "{received}, {sent}: there was one answer");

    let mut message = Vec::new();
    wire::frame(&mut message, 0x80 | BINARY, &[7; SIZE as usize], &mut Dice::new(1));
    stage.world.client_send(stage.id(client), &message);
    stage.rest();
    let [received, sent] = kept(&stage);
    assert!((SIZE..2 * SIZE + 1024).contains(&received), "{received} of one message that came in pieces");
    assert!((SIZE..4 * SIZE).contains(&sent), "{sent} of its echo");
    stage.world.client_send(stage.id(client), &message[..message.len() - 1]);
    stage.rest();
    let [received, _] = kept(&stage);
    assert!(received < SIZE, "{received}, though the next is in it");

    let (_, estate) = stage.shards.remove(0).break_up(true);
    assert_eq!(kept(&stage), [0, 0], "a shard that broke keeps nothing");
    drop(estate);
}
