//! Drains that take their time: who is told what when, by several shards that agree without talking.

use std::time::Duration;

use tidewheel::io::sim::{Dice, Faults, SimConfig};
use tidewheel::shard::DrainOrder;

use crate::stage::Stage;
use crate::wire::{self, CLOSE, Frame, TEXT};

const DRAIN: DrainOrder = DrainOrder { wait_ms: 0, spread_ms: 2_000, deadline_ms: 30_000, reconnects_per_second: 10 };

/// The delay that a client was told, in words and in the close frame; `None` if it was not told anything.
fn delay(frames: &[Frame]) -> Option<u64> {
    let close = frames.iter().find(|frame| frame.opcode == CLOSE)?;
    assert_eq!(close.payload[..2], 1012u16.to_be_bytes());
    let reason: serde_json::Value = serde_json::from_slice(&close.payload[2..]).unwrap();
    let disconnect = frames.iter().rfind(|frame| frame.opcode == TEXT).unwrap();
    let disconnect: serde_json::Value = serde_json::from_slice(&disconnect.payload).unwrap();
    assert_eq!(disconnect["type"], "disconnect");
    assert_eq!(disconnect["payload"]["retry_after_ms"], reason["retry_after_ms"]);
    reason["retry_after_ms"].as_u64()
}

fn roomy(seed: u64, shards: usize) -> Stage {
    let kernel = SimConfig { table: 200, buffers: 8, buffer_size: 4096 };
    Stage::on_kernel(kernel, seed, shards, 8, |settings| {
        (settings.connections_max, settings.slots) = (1_000, 200);
    })
}

/// Connections of unequal shards, some of which leave meanwhile: the times to come back are even over all of them, and
/// the engine ends as soon as the last has gone.
#[test]
fn shards_spread_their_clients_over_one_window() {
    for seed in 0..20 {
        let mut dice = Dice::new(seed);
        let shards = 1 + dice.below(4);
        let mut stage = roomy(seed, shards);
        let mut clients: Vec<(usize, Vec<Frame>)> = Vec::new();
        for shard in 0..shards {
            for _ in 0..10 + dice.below(60) {
                clients.push((stage.client(shard), Vec::new()));
            }
        }
        let count = clients.len() as u64;
        let begin_ms = stage.world.now().monotonic_ms();
        stage.inboxes.iter().for_each(|inbox| inbox.drain(DRAIN));
        let (mut closed, mut back, mut left) = (Vec::new(), Vec::new(), 0);
        while !stage.done.iter().all(|&done| done) {
            stage.tick();
            let now_ms = stage.world.now().monotonic_ms() - begin_ms;
            clients.retain_mut(|(client, frames)| {
                frames.extend(stage.frames(*client));
                if let Some(delay_ms) = delay(frames) {
                    closed.push(now_ms);
                    back.push(now_ms + delay_ms);
                } else if dice.chance(0.000_03) {
                    left += 1; // on its own account, unaware of the drain
                } else {
                    return true;
                }
                stage.world.client_shutdown(stage.id(*client));
                false
            });
            assert!(now_ms < DRAIN.deadline_ms, "{clients:?} are left");
        }
        // The network takes its time.
        let late_ms = 150;
        let window_ms = (count * 1_000 / u64::from(DRAIN.reconnects_per_second)).max(DRAIN.spread_ms + 5_000);
        check_even(&mut closed, count, left, DRAIN.spread_ms, late_ms);
        check_even(&mut back, count, left, window_ms, late_ms);
        let cut: u64 = stage.metrics.iter().map(|metrics| metrics.cut.get()).sum();
        assert_eq!(cut, 0, "seed {seed}");
        let cleanly: u64 = stage.metrics.iter().map(|metrics| metrics.closed_cleanly.get()).sum();
        // One may leave while it is being told.
        assert!((count - left..=count).contains(&cleanly), "seed {seed}: {cleanly} of {count}, {left} left");
    }
}

/// In every part of the window there are as many as there should be, but for one a shard at each end and those who left.
#[track_caller]
fn check_even(times: &mut [u64], count: u64, left: u64, window_ms: u64, late_ms: u64) {
    assert!(times.iter().all(|&time| time <= window_ms + late_ms), "{times:?}");
    times.sort_unstable();
    for (index, &time) in times.iter().enumerate() {
        let expected = index as f64 / count as f64;
        let (from, to) = (time.saturating_sub(late_ms) as f64, time as f64);
        let slack = (4.0 + left as f64) / count as f64;
        let (from, to) = (from / window_ms as f64 - slack, to / window_ms as f64 + slack);
        assert!((from..=to).contains(&expected), "{index} of {count} at {time} of {window_ms} ms");
    }
}

#[test]
fn newcomers_get_in_while_balancers_are_waited_for() {
    let mut stage = roomy(7, 2);
    let first = stage.client(0);
    let order = DrainOrder { wait_ms: 1_000, ..DRAIN };
    stage.inboxes.iter().for_each(|inbox| inbox.drain(order));
    stage.rest();
    let second = stage.client(1);
    stage.send(second, &[r#"{"id":1,"type":"ping"}"#]);
    stage.rest();
    assert_eq!((stage.told(first), stage.told(second)), (String::new(), "pong 1".into()));
    let late = stage.newcomer(1);
    stage.world.client_send(stage.id(late), &wire::request("/ws").as_bytes()[..40]);
    stage.pass(1_000);
    assert_eq!(stage.response(late), Some(503));
    stage.pass(400); // two, at ten a second
    assert_eq!(stage.told(first), "disconnect, close 1012");
    assert_eq!(stage.told(second), "disconnect, close 1012");
    [first, second, late].iter().for_each(|&client| stage.world.client_shutdown(stage.id(client)));
    stage.rest();
    assert_eq!(stage.done, [true, true]);
}

#[test]
fn an_empty_engine_waits_for_balancers_too_and_ends_then() {
    let mut stage = roomy(7, 3);
    let order = DrainOrder { wait_ms: 1_000, ..DRAIN };
    stage.inboxes.iter().for_each(|inbox| inbox.drain(order));
    stage.pass(800);
    assert_eq!(stage.done, [false; 3]);
    stage.pass(400);
    assert_eq!(stage.done, [true; 3]);
}

/// One shard is late: the others stay as long as it may get somebody whose messages they must count.
#[test]
fn nobody_ends_before_all_have_stopped_accepting() {
    let mut stage = roomy(7, 2);
    stage.inboxes[0].drain(DrainOrder::within(10_000));
    stage.turns(0, 20);
    assert_eq!(stage.done, [false; 2]);
    let client = stage.client(1);
    let mut answered = stage.broadcast(1);
    stage.rest();
    assert_eq!(answered.try_recv().unwrap().unwrap().queued, 1, "both shards have counted");
    stage.world.client_shutdown(stage.id(client));
    stage.inboxes[1].drain(DrainOrder::within(10_000));
    stage.rest();
    assert_eq!(stage.done, [true; 2]);
}

/// A second order makes the first one faster, never slower.
#[test]
fn a_second_order_hastens() {
    let mut stage = roomy(7, 1);
    let clients: Vec<usize> = (0..20).map(|_| stage.client(0)).collect();
    stage.inboxes[0].drain(DrainOrder { spread_ms: 20_000, reconnects_per_second: 1, ..DRAIN });
    stage.pass(5_000);
    let told = |stage: &mut Stage| clients.iter().filter(|&&client| !stage.frames(client).is_empty()).count();
    let before = told(&mut stage);
    assert!((4..=6).contains(&before), "{before} of 20 in a quarter of the time");
    stage.inboxes[0].drain(DrainOrder { wait_ms: 60_000, deadline_ms: 1_000_000, ..DRAIN });
    stage.inboxes[0].drain(DrainOrder::within(2_000));
    stage.rest();
    assert_eq!(told(&mut stage), 20 - before);
    stage.pass(2_100);
    assert_eq!((stage.done[0], stage.metrics[0].cut.get()), (true, 20));
}

/// What is queued for a client that reads nothing is counted when it is cut.
#[test]
fn bytes_that_nobody_took_are_counted() {
    let mut stage = Stage::new(1, 8, |settings| settings.outbound.bytes_max = 1 << 20);
    let client = stage.client(0);
    stage.world.client_stall(stage.id(client), true);
    let list = r#"{"id":1,"type":"list_subscriptions"}"#;
    (0..2_000).for_each(|_| stage.send(client, &[list]));
    stage.rest();
    let waiting = stage.shards[0].heaviest()[1] as u64;
    assert!(waiting > 10_000, "{waiting}");
    stage.inboxes[0].drain(DrainOrder::within(1_000));
    stage.rest();
    let sent = |stage: &Stage| stage.metrics[0].bytes_out.get();
    let queued = sent(&stage) + stage.shards[0].heaviest()[1] as u64;
    stage.pass(1_500);
    let metrics = &stage.metrics[0];
    assert_eq!((stage.done[0], metrics.cut.get(), metrics.closed_cleanly.get()), (true, 1, 0));
    assert!(metrics.unsent_bytes.get() > 10_000);
    // Nothing is counted twice: what the kernel took while the connection was being cut is not unsent.
    assert_eq!(sent(&stage) + metrics.unsent_bytes.get(), queued);
}

/// A shard that is frozen while the kernel closes the last sockets looks at what that has to say before it gives up.
#[test]
fn who_was_away_in_the_last_second_does_not_give_up_at_once() {
    let mut stage = roomy(7, 1);
    stage.client(0);
    stage.inboxes[0].drain(DrainOrder::within(0));
    let has_been_cut = |stage: &Stage| stage.metrics[0].cut.get() == 1;
    stage.world.set_faults(Faults { delay: 1.0, ..Faults::default() });
    while !has_been_cut(&stage) {
        stage.turn(0);
    }
    stage.turns(0, 3);
    stage.world.advance(Duration::from_secs(3));
    stage.turns(0, 3);
    assert_eq!(stage.done, [false], "the kernel is late, and was asked for no time");
    stage.world.set_faults(Faults::default());
    stage.rest();
    assert_eq!((stage.done[0], stage.shards[0].leftovers()[1]), (true, ("connections", 0)));
}
