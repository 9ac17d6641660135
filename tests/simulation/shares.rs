//! A turn is shared by all who send, played step by step on a shard whose every look at the clock finds it later.

use tidewheel::io::sim::{Dice, Faults, SimConfig};
use tidewheel::metrics::CloseReason;
use tidewheel::shard::settings::Settings;

use crate::stage::Stage;
use crate::wire;

const LIST: &str = r#"{"id":1,"type":"list_subscriptions"}"#;
const PUBLISH: &str = r#"{"id":1,"type":"publish","payload":{"topic":"t","data":1}}"#;

/// One shard with so many clients, which from now on has no time left in any turn.
fn busy(clients: usize, change: impl Fn(&mut Settings)) -> (Stage, Vec<usize>) {
    let kernel = SimConfig { table: 64, buffers: 64, buffer_size: 4096 };
    let mut stage = Stage::on_kernel(kernel, 1, 1, 8, change);
    stage.world.set_socket_buffers(&[64 * 1024]); // or some would have to send little at a time
    let clients = (0..clients).map(|_| stage.client(0)).collect();
    stage.world.set_faults(Faults { slow: 1.0, ..Faults::default() });
    (stage, clients)
}

#[test]
fn who_sends_little_never_waits_for_who_sends_much() {
    const EACH: usize = 100;
    let (mut stage, crowd) = busy(20, |_| {});
    let modest = stage.client(0);
    crowd.iter().for_each(|&client| stage.send(client, &[LIST; EACH]));
    stage.deliver();
    stage.turns(0, 3);
    for message in [PUBLISH, LIST, PUBLISH] {
        stage.send(modest, &[message]);
        stage.deliver();
        let mut turns = 0;
        while stage.told(modest).is_empty() {
            turns += 1;
            stage.turn(0);
            stage.deliver();
        }
        assert!(turns <= 7, "it waits for the others: {turns} turns, where 5 is what nobody else would make it");
    }
    assert!(stage.metrics[0].sharing.get() >= 19, "{} wait", stage.metrics[0].sharing.get());
    stage.rest();
    for &client in &crowd {
        assert_eq!(stage.told(client).matches("subscriptions 1").count(), EACH, "all of it was done");
    }
    assert_eq!((stage.metrics[0].sharing.get(), stage.metrics[0].inbound_bytes.get()), (0, 0));
    assert!(stage.metrics[0].shares.get() > 0);
}

/// The end of a large message is as much work as all of it, however few bytes it is; and so are a few compressed ones.
#[test]
fn what_is_much_work_waits_for_its_share_however_few_bytes_come() {
    const CROWD: usize = 20;
    let text = format!(r#"{{"type":"ping","note":"{}"}}"#, "x".repeat(20_000));
    for is_compressed in [false, true] {
        let (mut stage, _) = busy(0, |settings| settings.compression.enabled = true);
        let crowd: Vec<usize> = (0..CROWD).map(|_| stage.newcomer(0)).collect();
        for &client in &crowd {
            stage.world.client_send(stage.id(client), wire::request_with_offer("/ws", 15, false).as_bytes());
        }
        stage.rest();
        let mut message = Vec::new();
        let mut deflater = wire::Deflater::default();
        match is_compressed {
            true => {
                let deflated = deflater.deflate(text.as_bytes(), false);
                wire::frame(&mut message, 0xc0 | wire::TEXT, &deflated, &mut Dice::new(1));
            }
            false => wire::frame(&mut message, 0x80 | wire::TEXT, text.as_bytes(), &mut Dice::new(1)),
        }
        let (begin, end) = message.split_at(message.len() - if is_compressed { message.len() } else { 100 });
        for &client in &crowd {
            assert_eq!(stage.response(client), Some(101));
            stage.world.client_send(stage.id(client), begin);
        }
        stage.rest();
        crowd.iter().for_each(|&client| stage.world.client_send(stage.id(client), end));
        assert!(end.len() <= 1024, "{} bytes", end.len());
        stage.deliver();
        let done = |stage: &Stage| stage.metrics[0].messages_in.get();
        let (mut before, mut most) = (done(&stage), 0);
        assert_eq!(before, 0);
        while before < CROWD as u64 {
            stage.turn(0);
            stage.deliver();
            most = most.max(done(&stage) - before);
            before = done(&stage);
        }
        assert!(most <= 3, "{most} of them in one turn, compressed: {is_compressed}");
    }
}

/// Who is through first has not gone on while others waited.
#[test]
fn shares_are_even() {
    const EACH: usize = 400;
    let (mut stage, crowd) = busy(10, |_| {});
    crowd.iter().for_each(|&client| stage.send(client, &[LIST; EACH]));
    let mut done = vec![0; crowd.len()];
    while !done.contains(&EACH) {
        stage.turn(0);
        stage.deliver();
        for (done, &client) in done.iter_mut().zip(&crowd) {
            *done += stage.told(client).matches("subscriptions").count();
        }
    }
    assert!(done.iter().all(|&done| done > EACH / 3), "{done:?}");
}

/// A crowd that connects takes its turns behind those who are there, and loses nothing: not even what came with the request
/// and was the last that its client said.
#[test]
fn requests_wait_for_their_share_too() {
    let (mut stage, crowd) = busy(10, |_| {});
    crowd.iter().for_each(|&client| stage.send(client, &[LIST; 50]));
    let newcomers: Vec<usize> = (0..10).map(|_| stage.newcomer(0)).collect();
    for &newcomer in &newcomers {
        stage.world.client_send(stage.id(newcomer), wire::request("/ws").as_bytes());
        stage.send(newcomer, &[PUBLISH, LIST]);
        stage.world.client_shutdown(stage.id(newcomer));
    }
    stage.rest();
    assert!(stage.metrics[0].shares.get() > 10);
    for &newcomer in &newcomers {
        assert_eq!(stage.response(newcomer), Some(101));
        assert_eq!(stage.told(newcomer), "ack 1, subscriptions 1");
    }
    assert_eq!(stage.metrics[0].published.get(), 10);
}

/// What is only read so that it does not destroy the last words is read when nobody waits, some of them at a time.
#[test]
fn who_has_been_told_its_last_is_read_from_behind_the_others() {
    const CROWD: usize = 40;
    let kernel = SimConfig { table: 64, buffers: 256, buffer_size: 4096 };
    let mut stage = Stage::on_kernel(kernel, 1, 1, 8, |_| {});
    stage.world.set_socket_buffers(&[64 * 1024]);
    stage.world.set_faults(Faults { disarm: 1.0, ..Faults::default() }); // a receive brings one buffer
    let crowd: Vec<usize> = (0..CROWD).map(|_| stage.client(0)).collect();
    let modest = stage.client(0);
    for &client in &crowd {
        stage.world.client_send(stage.id(client), &[b"\x81\x00 without a mask", &[0; 30_000][..]].concat());
    }
    stage.deliver();
    let read = |stage: &Stage| stage.metrics[0].bytes_in.get();
    let mut before = read(&stage);
    while read(&stage) < before + CROWD as u64 * 4096 {
        stage.turn(0); // each is convicted by the first buffer
    }
    stage.send(modest, &[LIST]);
    stage.deliver();
    let (end, mut turns) = (CROWD as u64 * 30_000, 0);
    while read(&stage) < end {
        before = read(&stage);
        stage.turn(0);
        turns += 1;
        let bytes = read(&stage) - before;
        assert!(bytes <= 8 * 4096 + 1024, "{bytes} bytes in turn {turns}");
        if turns < 6 {
            stage.deliver();
        }
        assert!(turns != 6 || stage.told(modest) == "subscriptions 1", "it waits for the others");
    }
    assert!(turns >= CROWD * 7 / 8, "{turns} turns");
    stage.rest();
    for &client in &crowd {
        assert_eq!(stage.told(client), "close 1002");
        stage.world.client_shutdown(stage.id(client));
    }
    stage.rest();
    assert_eq!(stage.metrics[0].active(), 1);
}

/// What waits of all is bounded: whoever has most of it makes room.
#[test]
fn what_waits_of_all_is_bounded() {
    const MOST: u64 = 20_000;
    let (mut stage, crowd) = busy(10, |settings| settings.unfinished_bytes_max = MOST);
    stage.send(crowd[0], &[LIST; 10]);
    crowd[1..].iter().for_each(|&client| stage.send(client, &[LIST; 200]));
    stage.deliver();
    for _ in 0..20 {
        stage.turn(0);
        assert!(stage.metrics[0].inbound_bytes.get() <= MOST, "{} wait", stage.metrics[0].inbound_bytes.get());
    }
    stage.pass(3_000);
    let closed = stage.metrics[0].closed[CloseReason::Overload as usize].get();
    assert!((1..9).contains(&closed), "{closed} were closed");
    assert_eq!(stage.told(crowd[0]).matches("subscriptions").count(), 10, "who had little is served");
    let told: Vec<String> = crowd[1..].iter().map(|&client| stage.told(client)).collect();
    assert_eq!(told.iter().filter(|told| told.ends_with("close 1013")).count() as u64, closed);
    assert_eq!(told.iter().filter(|told| told.matches("subscriptions").count() == 200).count() as u64, 9 - closed);
    assert_eq!(stage.metrics[0].inbound_bytes.get(), 0);
}

/// Whoever waited for its own acks or its own queue, and then goes on in the line, has not sent more than its share.
#[test]
fn who_waited_for_itself_is_not_counted() {
    let mut stage = Stage::new(2, 8, |settings| settings.outbound.bytes_max = 300);
    stage.world.set_socket_buffers(&[4 * 1024]);
    let (client, subscriber) = (stage.client(0), stage.client(1));
    let subscribe = r#"{"id":0,"type":"subscribe","payload":{"topic":"t"}}"#;
    stage.send(subscriber, &[subscribe]);
    stage.rest();
    let waits = |stage: &Stage| (stage.metrics[0].inbound_bytes.get() > 0, stage.metrics[0].shares.get());

    stage.send(client, &[PUBLISH, subscribe, LIST]);
    stage.deliver();
    stage.turns(0, 3);
    assert_eq!(waits(&stage), (true, 0), "the other shard has not counted yet");
    stage.rest();
    assert_eq!(stage.told(client), "ack 1, ack 0, subscriptions 1");
    assert_eq!(waits(&stage), (false, 0));

    stage.world.client_stall(stage.id(client), true);
    stage.send(client, &[LIST; 200]);
    stage.rest();
    assert_eq!(waits(&stage), (true, 0), "its queue is full");
    stage.world.client_stall(stage.id(client), false);
    stage.rest();
    assert_eq!(stage.told(client).matches("subscriptions").count(), 200);
    assert_eq!(waits(&stage), (false, 0));
}

/// Publishes that come together leave together however late the turn is: they have a budget of their own, and to send them
/// one by one would cost many times as much.
#[test]
fn publishes_that_come_together_stay_together() {
    let (mut stage, clients) = busy(12, |_| {});
    let subscribe = r#"{"id":0,"type":"subscribe","payload":{"topic":"t"}}"#;
    stage.send(clients[0], &[subscribe]);
    stage.rest();
    stage.told(clients[0]);
    clients[2..].iter().for_each(|&client| stage.send(client, &[LIST; 200]));
    stage.deliver();
    stage.turns(0, 3);
    let before = stage.metrics[0].sends.get();
    stage.send(clients[1], &[PUBLISH; 60]);
    stage.deliver();
    let mut turns = 0;
    while stage.metrics[0].published.get() < 60 {
        turns += 1;
        stage.turn(0);
    }
    let sends = stage.metrics[0].sends.get() - before;
    assert!(sends < 60, "{sends} sends, in {turns} turns");
    stage.rest();
    assert_eq!(stage.told(clients[0]).matches("message").count(), 60);
}
