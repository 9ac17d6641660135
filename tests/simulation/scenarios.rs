//! Single mishaps, each played step by step: what the runs from seeds found, or would find too seldom.

use std::sync::Arc;
use std::time::Duration;

use tidewheel::app::context::Refused;
use tidewheel::config::{OutboundPolicy, TopicRule};
use tidewheel::fixed::Rate;
use tidewheel::id::{ConnKey, ShardId};
use tidewheel::io::sim::{ClientState, Dice, Faults, SimConfig};
use tidewheel::metrics::ErrorCode;
use tidewheel::pubsub::Policies;
use tidewheel::shard::errands::{Addressees, Errand};
use tidewheel::shard::settings::{LINGER_MS, Settings};
use tidewheel::shard::{DrainOrder, Order};
use tidewheel::{Config, Delivery, Disconnect, OutgoingMessage};
use tokio::sync::oneshot;

use crate::secure;
use crate::stage::Stage;
use crate::wire;

const PUBLISH: &str = r#"{"id":1,"type":"publish","payload":{"topic":"t","data":1}}"#;
const SUBSCRIBE: &str = r#"{"id":0,"type":"subscribe","payload":{"topic":"t"}}"#;

#[test]
fn the_last_words_come_after_what_is_owed() {
    let mut stage = Stage::new(1, 8, |_| {});
    let client = stage.client(0);
    let wait = r#"{"id":1,"type":"wait"}"#;
    stage.send(client, &[wait, r#"{"id":2,"type":"bye","payload":{"code":3999}}"#]);
    stage.rest();
    assert_eq!(stage.told(client), "ack 2");
    stage.waiting.release(0, true);
    stage.rest();
    assert_eq!(stage.told(client), "ack 1, disconnect, close 3999");
}

#[test]
fn publishes_before_a_protocol_error_are_acked() {
    let mut stage = Stage::new(2, 8, |_| {});
    let (publisher, subscriber) = (stage.client(0), stage.client(1));
    stage.send(subscriber, &[SUBSCRIBE]);
    stage.rest();
    stage.send(publisher, &[PUBLISH]);
    stage.world.client_send(stage.id(publisher), b"\x81\x00 without a mask");
    stage.deliver();
    stage.turns(0, 50);
    assert_eq!(stage.told(publisher), "", "shard 1 has not counted yet");
    stage.rest();
    assert_eq!(stage.told(publisher), "ack 1, close 1002");
    assert_eq!(stage.told(subscriber), "ack 0, message");
}

/// Who was told of its mistake may still be sending, so its stream is read until it ends, or for a second.
#[test]
fn who_is_told_of_a_mistake_is_closed_when_it_has_ended_its_stream() {
    let mistake = b"\x81\x00 without a mask";
    for ends in [true, false] {
        let mut stage = Stage::new(1, 8, |_| {});
        let client = stage.client(0);
        stage.world.client_send(stage.id(client), mistake);
        stage.rest();
        assert_eq!(stage.told(client), "close 1002");
        let lingering = |stage: &Stage| stage.metrics[0].active();
        stage.pass(LINGER_MS / 2);
        stage.world.client_send(stage.id(client), mistake);
        stage.rest();
        assert_eq!(lingering(&stage), 1);
        if ends {
            stage.world.client_shutdown(stage.id(client));
        } else {
            stage.pass(LINGER_MS);
        }
        stage.rest();
        assert_eq!(lingering(&stage), 0);
        assert_eq!(stage.world.client_state(stage.id(client)), ClientState::ServerClosed { clean: true });
        assert!(ends || stage.world.now().monotonic_ms() >= LINGER_MS);
    }
}

/// A close frame is the last of a client, also a wrong one. If it sends more all the same it is told all of what was wrong.
#[test]
fn what_comes_behind_a_wrong_close_frame_does_not_destroy_its_answer() {
    let mut stage = Stage::new(1, 32, |_| {});
    stage.world.set_socket_buffers(&[50]);
    let mut close = Vec::new();
    wire::frame(&mut close, 0x80 | wire::CLOSE, b"?", &mut Dice::new(1));
    let clients: Vec<usize> = (0..16).map(|_| stage.client(0)).collect();
    clients.iter().for_each(|&client| stage.world.client_send(stage.id(client), &close));
    for _ in 0..LINGER_MS / 2 {
        clients.iter().for_each(|&client| stage.world.client_send(stage.id(client), b"more"));
        stage.tick();
    }
    stage.pass(LINGER_MS);
    for client in clients {
        assert_eq!(stage.told(client), "close 1002");
        assert_eq!(stage.world.client_state(stage.id(client)), ClientState::ServerClosed { clean: true });
    }
}

/// Who finds no receive buffer waits for its turn. If all of them tried again in every turn, that would be all it does.
#[test]
fn who_finds_no_buffer_is_not_tried_again_and_again() {
    const CROWD: usize = 500;
    let kernel = SimConfig { table: CROWD + 8, buffers: 2, buffer_size: 256 };
    let mut stage = Stage::on_kernel(kernel, 1, 1, 8, |settings| {
        (settings.connections_max, settings.handshakes_max, settings.slots) = (600, 600, 600);
    });
    let crowd: Vec<usize> = (0..CROWD).map(|_| stage.client(0)).collect();
    let starved = |stage: &Stage| stage.metrics[0].starved.get();
    let before = starved(&stage);
    crowd.iter().for_each(|&client| stage.send(client, &[r#"{"type":"ping"}"#]));
    stage.deliver();
    for _ in 0..20 {
        stage.rest();
    }
    crowd.iter().for_each(|&client| assert_eq!(stage.told(client), "pong"));
    let times = starved(&stage) - before;
    let all_each_turn = (CROWD * CROWD / 4) as u64; // there are two buffers
    assert!((CROWD as u64..all_each_turn).contains(&times), "{times}");
}

#[test]
fn a_shard_without_connections_counts_for_others_that_drain() {
    let mut stage = Stage::new(2, 8, |_| {});
    let client = stage.client(0);
    stage.send(client, &[r#"{"id":1,"type":"wait"}"#]);
    stage.rest();
    stage.inboxes.iter().for_each(|inbox| inbox.drain(DrainOrder::within(30_000)));
    stage.turns(1, 10);
    let mut answered = stage.broadcast(0);
    stage.rest();
    assert_eq!(answered.try_recv().unwrap().unwrap(), Delivery::default(), "counted by both shards");
    stage.waiting.release(0, true);
    stage.rest();
    assert_eq!(stage.told(client), "ack 1, disconnect, close 1012");
    stage.world.client_shutdown(stage.id(client));
    stage.rest();
    assert_eq!(stage.done, [true, true], "before the deadline");
    assert!(stage.world.now().monotonic_ms() < 10_000);
}

#[test]
fn what_waits_behind_publishes_is_bounded() {
    let limit = 2_000;
    let small = |settings: &mut Settings| settings.outbound.bytes_max = limit;
    let mut stage = Stage::new(2, 1_000, small);
    let (publisher, subscriber) = (stage.client(0), stage.client(1));
    stage.send(subscriber, &[SUBSCRIBE]);
    stage.rest();
    let list = r#"{"id":2,"type":"list_subscriptions"}"#;
    for _ in 0..100 {
        stage.send(publisher, &[PUBLISH, list, list]);
        stage.deliver();
        stage.turns(0, 10);
        let [_, outbound, _] = stage.shards[0].heaviest();
        assert!(outbound <= limit as usize + 500, "{outbound} bytes wait");
    }
    stage.rest();
    let told = stage.told(publisher);
    assert_eq!((told.matches("ack").count(), told.matches("subscriptions").count()), (100, 200), "{told}");
}

/// Each of a crowd has many publishes to make, and together many more than a turn takes.
#[test]
fn who_has_one_publish_waits_for_connections_not_for_publishes() {
    const CROWD: usize = 60;
    let kernel = SimConfig { table: 64, buffers: 64, buffer_size: 4096 };
    let mut stage = Stage::on_kernel(kernel, 1, 1, 8, |settings| settings.outbound.frames_max = 160);
    let crowd: Vec<usize> = (0..CROWD).map(|_| stage.client(0)).collect();
    let bystander = stage.client(0);
    for &client in &crowd {
        stage.send(client, &[PUBLISH; 60]);
    }
    stage.deliver();
    stage.turns(0, 3);
    stage.send(bystander, &[PUBLISH]);
    stage.deliver();
    // A turn takes 40 of them, so all of them are 90 turns' worth.
    let mut turns = 0;
    while stage.told(bystander).is_empty() {
        turns += 1;
        assert!(turns <= 10, "it waits for the publishes of all");
        stage.turn(0);
        stage.world.advance(Duration::from_millis(5));
    }
    let done =
        |stage: &mut Stage| crowd.iter().map(|&client| stage.told(client).matches("ack 1").count()).sum::<usize>();
    let before = done(&mut stage);
    assert!(before < CROWD * 60, "it was not the last");
    stage.rest();
    assert_eq!(before + done(&mut stage), CROWD * 60);
}

#[test]
fn a_connection_that_was_held_is_pinged_again() {
    let change = |settings: &mut Settings| {
        settings.outbound.bytes_max = 300;
        (settings.ping_interval_ms, settings.pong_timeout_ms) = (1_000, 500);
    };
    let mut stage = Stage::new(1, 8, change);
    let client = stage.client(0);
    stage.world.client_stall(stage.id(client), true);
    let list = r#"{"id":1,"type":"list_subscriptions"}"#;
    (0..2_000).for_each(|_| stage.send(client, &[list]));
    stage.rest();
    stage.pass(1_500); // the timer of the ping comes while the connection is not read from
    stage.world.client_stall(stage.id(client), false);
    stage.rest();
    let told = stage.told(client);
    assert_eq!(told.matches("subscriptions 1").count(), 2_000, "{told}");
    stage.pass(1_200);
    assert_eq!(stage.told(client), "opcode 9");
}

/// Its pong would come behind the message, as the ping does; bytes that arrive show as well that it is there.
#[test]
fn who_takes_a_large_message_slowly_is_neither_dead_nor_idle() {
    let change = |settings: &mut Settings| {
        (settings.ping_interval_ms, settings.pong_timeout_ms, settings.idle_timeout_ms) = (300, 100, 1_500);
    };
    let mut stage = Stage::new(1, 8, change);
    stage.world.set_socket_buffers(&[1]);
    let client = stage.client(0);
    let (answer, _answered) = oneshot::channel();
    let data = format!("\"{}\"", "x".repeat(40_000)).into_bytes();
    stage.inboxes[0].push(Order::Broadcast { data, answer }).unwrap();
    let from_ms = stage.world.now().monotonic_ms();
    let mut told = String::new();
    while told.is_empty() && stage.world.client_state(stage.id(client)) == ClientState::Open {
        stage.tick();
        told = stage.told(client);
    }
    let took_ms = stage.world.now().monotonic_ms() - from_ms;
    assert_eq!(told, "broadcast", "after {took_ms} ms");
    assert!(took_ms > 2_000, "{took_ms} ms are no long time");
    // From then on it has as long as any other; it does not answer the ping.
    stage.pass(600);
    assert_eq!(stage.told(client), "opcode 9, disconnect, close 4002");
}

#[test]
fn a_subscriber_that_gets_messages_is_not_idle() {
    let mut stage = Stage::new(2, 8, |settings| settings.idle_timeout_ms = 1_000);
    let (publisher, subscriber) = (stage.client(0), stage.client(1));
    stage.send(subscriber, &[SUBSCRIBE]);
    stage.rest();
    assert_eq!(stage.told(subscriber), "ack 0");
    for _ in 0..5 {
        stage.pass(500);
        stage.send(publisher, &[PUBLISH]);
        stage.rest();
        assert_eq!((stage.told(publisher), stage.told(subscriber)), ("ack 1".into(), "message".into()));
    }
    stage.pass(1_400);
    assert_eq!(stage.told(subscriber), "disconnect, close 4001");
}

/// Seed 270076 of the runs: the last words wait behind what a socket buffer of one byte lets through.
#[test]
fn last_words_that_do_not_leave_in_time_are_cut_off() {
    let check = |bytes: usize, told: &str| {
        let change = |settings: &mut Settings| {
            (settings.max_lifetime_ms, settings.close_timeout_ms) = (Some(2_000), 500);
        };
        let mut stage = Stage::new(1, 8, change);
        stage.world.set_socket_buffers(&[1]);
        let client = stage.client(0);
        let (answer, _answered) = oneshot::channel();
        let from_ms = stage.world.now().monotonic_ms();
        stage.inboxes[0].push(Order::Broadcast { data: vec![b'1'; bytes], answer }).unwrap();
        stage.pass(3_000);
        assert_eq!(stage.told(client), told, "{bytes} bytes");
        let id = stage.id(client);
        assert_eq!(stage.world.client_state(id), ClientState::ServerClosed { clean: true }, "{bytes} bytes");
        let took_ms = stage.world.now().monotonic_ms() - from_ms;
        (stage.world.client_backlog_ms(id), took_ms)
    };
    assert_eq!(check(300, "broadcast, disconnect, close 1012").0, 0, "all of it had left");
    let (backlog_ms, took_ms) = check(20_000, "");
    assert!((1_500..=took_ms).contains(&backlog_ms), "a lifetime and the close timeout: {backlog_ms} of {took_ms} ms");
}

#[test]
fn after_a_freeze_sockets_are_read_before_anyone_is_judged() {
    let ping = r#"{"id":1,"type":"ping"}"#;
    for frozen_ms in [3_000, 9_990, 10_005, 10_020, 10_100, 10_900, 12_990, 13_010, 60_000] {
        for (idle_timeout_ms, ping_interval_ms) in [(10_000, 0), (0, 10_000)] {
            for seed in 0..20 {
                let change = |settings: &mut Settings| {
                    (settings.idle_timeout_ms, settings.ping_interval_ms) = (idle_timeout_ms, ping_interval_ms);
                    settings.pong_timeout_ms = 3_000;
                    settings.outbound.age_max_ms = 3_000;
                };
                let mut stage = Stage::from_seed(seed, 1, 8, change);
                let client = stage.client(0);
                stage.send(client, &[ping]);
                // The kernel may take some turns to bring what it has.
                stage.world.set_faults(Faults { delay: 0.5, starve: 0.3, ..Faults::default() });
                stage.world.advance(Duration::from_millis(frozen_ms));
                stage.rest();
                let told = stage.told(client).replace("opcode 9, ", "");
                assert_eq!(
                    told, "pong 1",
                    "frozen for {frozen_ms} ms, idle {idle_timeout_ms}, ping {ping_interval_ms}"
                );
            }
        }
    }
}

#[test]
fn an_order_to_a_shard_that_has_ended_is_refused() {
    let mut stage = Stage::new(1, 8, |_| {});
    let mut before = stage.broadcast(0);
    stage.inboxes[0].drain(DrainOrder::within(1_000));
    stage.rest();
    assert_eq!((stage.done[0], before.try_recv().unwrap().unwrap()), (true, Delivery::default()));
    let mut late = stage.broadcast(0);
    stage.shards.remove(0).end();
    assert_eq!(late.try_recv().unwrap_err(), oneshot::error::TryRecvError::Closed, "nobody takes it any more");
    let (answer, _answered) = oneshot::channel();
    let refused = stage.inboxes[0].push(Order::Broadcast { data: b"1".to_vec(), answer }).unwrap_err();
    assert_eq!(refused, Refused::gone());
}

/// Nobody is refused, none is lost, and who is here is served while they wait.
#[test]
fn newcomers_over_the_rate_wait_to_be_accepted() {
    let kernel = SimConfig { table: 100, buffers: 8, buffer_size: 4096 };
    // Two shards: each has half of it.
    let mut stage = Stage::on_kernel(kernel, 7, 2, 8, |settings| settings.connections_per_second = Some(100));
    let here = stage.client(0);
    stage.pass(1_000);
    let newcomers: Vec<usize> = (0..60).map(|_| stage.newcomer(0)).collect();
    newcomers.iter().for_each(|&client| stage.world.client_send(stage.id(client), wire::request("/ws").as_bytes()));
    let begin_ms = stage.world.now().monotonic_ms();
    for _ in 0..6 {
        stage.send(here, &[r#"{"id":1,"type":"ping"}"#]);
        (0..100).for_each(|_| stage.tick());
        assert_eq!(stage.told(here), "pong 1");
        let (answered, after_ms) = (stage.metrics[0].active() - 1, stage.world.now().monotonic_ms() - begin_ms);
        let due = 5 + after_ms * 50 / 1000;
        // Accepts that were out when it was enough are paid for later.
        assert!((due - 1..=due + 6).contains(&answered), "{answered} after {after_ms} ms, where {due} are due");
    }
    assert!((10..60).contains(&stage.metrics[0].accept_paced.get()));
    // Without a limit, the others come at once.
    stage.reload(0, |settings| settings.connections_per_second = None);
    stage.tick();
    stage.rest();
    assert!(newcomers.iter().all(|&client| stage.response(client) == Some(101)));
    assert_eq!(stage.metrics[1].accept_paced.get(), 0);
}

#[test]
fn who_is_on_a_shard_that_breaks_is_told() {
    let mut stage = Stage::new(2, 8, |_| {});
    let clients = [0, 1, 1].map(|shard| stage.client(shard));
    stage.send(clients[1], &[SUBSCRIBE, r#"{"id":1,"type":"wait"}"#]);
    stage.rest();
    assert_eq!(stage.told(clients[1]), "ack 0");
    // One more newcomer is not accepted yet, and has lost nothing.
    let newcomer = stage.newcomer(1);
    stage.world.client_send(stage.id(newcomer), wire::request("/ws").as_bytes());
    stage.deliver();
    stage.restart(1);
    stage.rest();
    let told = clients.map(|client| stage.told(client));
    assert_eq!(told, ["", "disconnect, close 1011", "disconnect, close 1011"]);
    assert_eq!(stage.response(newcomer), Some(101));
    for client in [clients[0], newcomer] {
        stage.send(client, &[PUBLISH]);
        stage.rest();
        assert_eq!(stage.told(client), "ack 1");
    }
    let [before, after] = [0, 1].map(|shard| stage.shards[shard].leftovers()[0].1);
    assert_eq!((before, after, stage.metrics[1].active(), stage.metrics[1].restarts.get()), (1, 1, 1, 1));
}

#[test]
fn a_shard_that_breaks_counts_no_tls_connection_any_more() {
    let mut stage = Stage::new(1, 8, |settings| (settings.tls, settings.plain_ports) = (Some(secure::terms()), 0));
    stage.newcomer(0);
    stage.rest();
    assert_eq!(stage.metrics[0].tls_connections.get(), 1);
    stage.restart(0);
    stage.rest();
    assert_eq!((stage.metrics[0].active(), stage.metrics[0].tls_connections.get()), (0, 0));
}

#[test]
fn an_eviction_meant_for_the_dead_finds_nobody() {
    let mut stage = Stage::new(2, 8, |_| {});
    stage.client(1);
    let key = ConnKey { slot: 0, generation: 1 };
    let mut other = stage.shared.bus.port(ShardId(0));
    other.evict(ShardId(1), key);
    stage.restart(1);
    let newcomer = stage.client(1);
    other.evict(ShardId(1), key);
    stage.send(newcomer, &[PUBLISH]);
    stage.rest();
    assert_eq!(stage.told(newcomer), "ack 1", "it has the same slot");
}

#[test]
fn counts_of_a_broken_shard_are_given_once_and_those_for_it_reach_nobody() {
    let mut stage = Stage::new(2, 8, |_| {});
    let (publisher, subscriber) = (stage.client(0), stage.client(1));
    stage.send(subscriber, &[SUBSCRIBE]);
    stage.rest();
    // The subscriber's shard breaks with a publish in its mail.
    stage.send(publisher, &[PUBLISH]);
    stage.deliver();
    stage.turns(0, 4);
    stage.restart(1);
    stage.rest();
    assert_eq!(matched(&mut stage, publisher), [0]);
    // The publisher's shard breaks with a count on its way, and the next publisher has the same receipt.
    let subscriber = stage.client(1);
    stage.send(subscriber, &[SUBSCRIBE]);
    stage.rest();
    stage.send(publisher, &[PUBLISH]);
    stage.deliver();
    stage.turns(0, 4);
    stage.restart(0);
    let publishers = [stage.newcomer(0), stage.newcomer(0)];
    for publisher in publishers {
        stage.world.client_send(stage.id(publisher), wire::request("/ws").as_bytes());
    }
    stage.deliver();
    stage.turns(0, 20);
    for publisher in publishers {
        stage.send(publisher, &[PUBLISH]);
    }
    stage.deliver();
    stage.turns(0, 20);
    stage.rest();
    for publisher in publishers {
        assert_eq!(stage.response(publisher), Some(101));
        assert_eq!(matched(&mut stage, publisher), [1]);
    }
    assert_eq!(stage.told(subscriber), "ack 0, message, message, message");
    assert!(stage.shards[0].leftovers().contains(&("receipts", 0)));
}

/// A publish that still waits in a shard's mail when its last subscriber leaves is for nobody: whoever subscribes next, and
/// before the mail is taken, would get it without those that came between, for which the shard was not interested.
#[test]
fn what_waited_while_the_last_subscriber_left_is_not_for_the_next_one() {
    let unsubscribe = SUBSCRIBE.replace("subscribe", "unsubscribe");
    let other_topic = PUBLISH.replace("\"t\"", "\"u\"");
    for leaves in [true, false] {
        let mut stage = Stage::new(2, 8, |settings| settings.outbound.frames_max = 4); // one publish a turn
        stage.world.set_socket_buffers(&[64 * 1024]); // or what some say would take many turns
        let [publisher, elsewhere, first, next] = [0, 0, 1, 1].map(|shard| stage.client(shard));
        stage.send(first, &[SUBSCRIBE, &SUBSCRIBE.replace("\"t\"", "\"u\"")]);
        stage.send(elsewhere, &[SUBSCRIBE]); // or there would be no topic once the first has left
        stage.rest();
        let say = |stage: &mut Stage, shard: usize, client: usize, texts: &[&str]| {
            stage.send(client, texts);
            stage.deliver();
            stage.turns(shard, texts.len() + 1);
        };
        say(&mut stage, 0, publisher, &[&other_topic, &other_topic, &other_topic, &other_topic, PUBLISH]);
        assert_eq!(stage.shared.bus.depth(ShardId(1)), 5);
        if leaves {
            say(&mut stage, 1, first, &[&unsubscribe]);
            say(&mut stage, 0, publisher, &[PUBLISH]);
        }
        say(&mut stage, 1, next, &[SUBSCRIBE]);
        assert!(stage.shared.bus.depth(ShardId(1)) > 0, "it waits still");
        stage.rest();
        let expected = if leaves { "ack 0" } else { "ack 0, message" };
        assert_eq!(stage.told(next), expected, "left: {leaves}");
        stage.send(publisher, &[PUBLISH]);
        stage.rest();
        assert_eq!(stage.told(next), "message", "and what is published from now on");
        let receivers: &[u64] = if leaves { &[1, 1, 1, 1, 1, 1, 2] } else { &[1, 1, 1, 1, 3, 3] };
        assert_eq!(matched(&mut stage, publisher), receivers);
    }
}

/// What the acks of publishes say that came since the last call.
fn matched(stage: &mut Stage, client: usize) -> Vec<u64> {
    let texts = stage.frames(client).into_iter().map(|frame| serde_json::from_slice(&frame.payload).unwrap());
    texts.map(|ack: serde_json::Value| ack["payload"]["matched"].as_u64().unwrap()).collect()
}

/// What it had begun is answered before its last words, and what it had not is not done: a client knows of each request.
#[test]
fn what_is_not_answered_before_the_last_words_was_not_done() {
    let mut stage = Stage::new(2, 2, |_| {});
    let (publisher, subscriber) = (stage.client(0), stage.client(1));
    stage.send(subscriber, &[SUBSCRIBE]);
    stage.rest();
    stage.send(publisher, &[PUBLISH; 9]);
    stage.deliver();
    stage.turns(0, 9); // shard 1 has not counted, so two are on their way and seven wait
    stage.inboxes[0].drain(DrainOrder::within(30_000));
    stage.turns(0, 9);
    assert_eq!(stage.told(publisher), "");
    stage.rest();
    assert_eq!(stage.told(publisher), "ack 1, ack 1, disconnect, close 1012");
    assert_eq!(stage.told(subscriber), "ack 0, message, message");
}

/// Whom a message of the operator's may not reach cannot be made to get a topic's either.
#[test]
fn an_operator_subscribes_only_whom_it_could_send_to() {
    let mut stage = Stage::new(1, 8, |_| {});
    let (native, echo) = (stage.client(0), stage.newcomer(0));
    stage.world.client_send(stage.id(echo), wire::request("/echo").as_bytes());
    stage.rest();
    assert_eq!(stage.response(echo), Some(101));
    let conns = [0, 1].map(|slot| ConnKey { slot, generation: 1 }).to_vec();
    let mut run = |errand| {
        let (answer, mut answered) = oneshot::channel();
        let addressees = Addressees::Conns(conns.clone());
        stage.inboxes[0].push(Order::Run { errand, addressees, answer }).unwrap();
        stage.rest();
        answered.try_recv().unwrap().unwrap()
    };
    let joined = run(Errand::Subscribe { topic: "t".into() });
    assert_eq!((joined.matched, joined.done, joined.refusal.unwrap().code), (2, 1, ErrorCode::Forbidden));
    let sent = run(Errand::Send(OutgoingMessage::new("direct", &1).unwrap()));
    assert_eq!(sent.done, 1);
    stage.send(native, &[PUBLISH]);
    stage.rest();
    assert_eq!((stage.told(native), stage.told(echo)), ("direct, message, ack 1".into(), String::new()));
}

/// The subscriber's shard has taken up another policy of its topic already when it leaves and comes back, the publisher's
/// has not: what waits from before is before the acks, and what is published after them is behind.
#[test]
fn while_shards_reload_no_message_overtakes_the_ack_of_its_subscription() {
    let policies = |policy, edition| {
        let rule = TopicRule { pattern: "t".into(), policy: Some(policy) };
        Arc::new(Policies::new(&Config { topics: vec![rule], ..Config::default() }, edition))
    };
    let latest = policies(OutboundPolicy::LatestPerKey, 0);
    let mut stage = Stage::new(2, 100, |settings| settings.policies = latest.clone());
    let (client, publisher) = (stage.client(0), stage.client(1));
    stage.send(client, &[SUBSCRIBE]);
    stage.rest();
    assert_eq!(stage.told(client), "ack 0");
    stage.world.client_stall(stage.id(client), true);
    let list = r#"{"id":1,"type":"list_subscriptions"}"#;
    (0..500).for_each(|_| stage.send(client, &[list])); // more than the kernel takes
    stage.rest();
    let publish = PUBLISH.replace("\"data\"", "\"key\":\"k\",\"data\"");
    stage.send(publisher, &[&publish]);
    stage.rest();
    stage.reload(0, |settings| settings.policies = policies(OutboundPolicy::Disconnect, 1));
    let unsubscribe = SUBSCRIBE.replace("subscribe", "unsubscribe").replace(":0", ":2");
    stage.send(client, &[&unsubscribe, &SUBSCRIBE.replace(":0", ":3")]);
    stage.rest();
    stage.send(publisher, &[&publish]);
    stage.rest();
    stage.world.client_stall(stage.id(client), false);
    stage.pass(1_000);
    assert_eq!(stage.told(publisher), "ack 1, ack 1");
    let told = stage.told(client).replace("subscriptions 1, ", "");
    assert_eq!(told, "message, ack 2, ack 3, message");
}

#[test]
fn orders_that_find_the_bus_full_wait_asleep() {
    let mut stage = Stage::new(2, 1, |_| {});
    let mut answers: Vec<_> = (0..3).map(|_| stage.broadcast(0)).collect();
    stage.turns(0, 10);
    assert!(stage.world.asleep(ShardId(0)), "shard 1 has not counted, and nothing can be done meanwhile");
    stage.rest();
    stage.pass(10);
    for answer in &mut answers {
        assert_eq!(answer.try_recv().unwrap().unwrap(), Delivery::default());
    }
}

#[test]
fn who_has_gone_by_the_deadline_was_not_cut() {
    let mut stage = Stage::new(1, 8, |_| {});
    let (slow, gone) = (stage.client(0), stage.client(0));
    stage.world.client_stall(stage.id(slow), true);
    stage.send(slow, &[r#"{"id":1,"type":"wait"}"#]);
    stage.rest();
    stage.inboxes[0].drain(DrainOrder::within(1_000));
    stage.rest();
    stage.world.client_shutdown(stage.id(gone));
    stage.rest();
    stage.pass(1_500);
    assert_eq!((stage.done[0], stage.metrics[0].cut.get()), (true, 1));
}

/// Each turn's publishes are the clients', and an order is taken all the same: the one that parts from them, too.
#[test]
fn orders_are_taken_while_clients_publish() {
    for clients in [1, 4] {
        let mut stage = Stage::new(1, 8, |settings| settings.outbound.frames_max = 16); // four publishes a turn
        stage.world.set_socket_buffers(&[64 * 1024]);
        let clients: Vec<usize> = (0..clients).map(|_| stage.client(0)).collect();
        let play = |stage: &mut Stage| {
            clients.iter().for_each(|&client| stage.send(client, &[PUBLISH; 8]));
            stage.world.advance(Duration::from_millis(1));
            stage.turn(0);
        };
        (0..50).for_each(|_| play(&mut stage));
        let (answer, mut answered) = oneshot::channel();
        let everybody = (0..4).map(|slot| ConnKey { slot, generation: 1 }).collect();
        let (errand, addressees) = (Errand::Disconnect(Disconnect::default()), Addressees::Conns(everybody));
        stage.inboxes[0].push(Order::Run { errand, addressees, answer }).unwrap();
        let turns = (1..=10).find(|_| {
            play(&mut stage);
            answered.try_recv().is_ok()
        });
        assert!(turns.is_some(), "with {} clients nobody looks at it", clients.len());
    }
}

/// What waits behind a publish that is being counted is its client's as much as what is on its queue.
#[test]
fn a_handler_that_sends_on_and_on_is_stopped_behind_a_publish_too() {
    const MOST: u32 = 2_000;
    for publishes in [false, true] {
        let mut stage = Stage::new(2, 8, |settings| settings.outbound.bytes_max = MOST);
        stage.world.set_socket_buffers(&[64 * 1024]);
        let (client, subscriber) = (stage.client(0), stage.client(1));
        stage.send(subscriber, &[SUBSCRIBE]);
        stage.rest();
        if publishes {
            stage.send(client, &[PUBLISH]);
        }
        stage.send(client, &[r#"{"type":"say","payload":{"times":5000}}"#]);
        stage.deliver();
        stage.turns(0, 20);
        let [_, outbound, _] = stage.shards[0].heaviest();
        assert!(outbound <= 4 * MOST as usize + 1_000, "publishes: {publishes}: {outbound} bytes wait");
    }
}

/// What arrives is counted as well as what it becomes: blocks that yield nothing are work too.
#[test]
fn a_message_counts_for_no_less_than_it_was_compressed_to() {
    let mut stage = Stage::new(1, 8, |settings| {
        settings.compression.enabled = true;
        settings.rates.bytes = Some(Rate { per_second: 1_000, burst: 15_000 });
    });
    stage.world.set_socket_buffers(&[64 * 1024]);
    let client = stage.newcomer(0);
    stage.world.client_send(stage.id(client), wire::request_with_offer("/ws", 15, false).as_bytes());
    stage.rest();
    assert_eq!(stage.response(client), Some(101));
    let mut payload = [0, 0, 0, 0xff, 0xff].repeat(2_000); // stored blocks of no bytes
    payload.extend(wire::Deflater::default().deflate(br#"{"id":1,"type":"ping"}"#, false));
    for told in ["pong 1", "error 1"] {
        let mut message = Vec::new();
        wire::frame(&mut message, 0xc0 | wire::TEXT, &payload, &mut Dice::new(1));
        stage.world.client_send(stage.id(client), &message);
        stage.rest();
        assert_eq!(stage.told(client), told);
    }
}
