//! Single mishaps, each played step by step: what the runs from seeds found, or would find too seldom.

use std::sync::Arc;
use std::time::Duration;

use tidewheel::id::ShardId;
use tidewheel::io::sim::{ClientId, Dice, Faults, Sim, SimConfig, World};
use tidewheel::metrics::ShardMetrics;
use tidewheel::pubsub::{Bus, Registry};
use tidewheel::shard::settings::Settings;
use tidewheel::shard::{Inbox, Order, Shard, Shared, Turn};
use tidewheel::{Config, Delivery};
use tokio::sync::oneshot;

use crate::handlers::{Waiting, router};
use crate::wire::{self, CLOSE, Reader, TEXT};

/// An engine without faults whose every turn is told.
struct Stage {
    world: World,
    shards: Vec<Shard<Sim>>,
    done: Vec<bool>,
    metrics: Vec<Arc<ShardMetrics>>,
    inboxes: Vec<Arc<Inbox>>,
    waiting: Waiting,
    dice: Dice,
    /// What clients have read, by number.
    readers: Vec<(ClientId, Reader)>,
}

impl Stage {
    fn new(shards: usize, bus_bound: usize, change: impl Fn(&mut Settings)) -> Self {
        Self::from_seed(7, shards, bus_bound, change)
    }

    fn from_seed(seed: u64, shards: usize, bus_bound: usize, change: impl Fn(&mut Settings)) -> Self {
        let world = World::new(seed, Faults::default());
        let waiting = Waiting::default();
        let shared = Arc::new(Shared {
            router: router(&waiting),
            authenticator: None,
            registry: Arc::new(Registry::new(shards)),
            bus: Bus::with_bound(shards, bus_bound),
            shards,
            connections: Default::default(),
        });
        let mut settings = Settings::new(&Config::default(), 100, 100);
        settings.auth_required = false;
        settings.idle_timeout_ms = 0;
        settings.ping_interval_ms = 0;
        settings.echo_path = Some("/echo".into());
        change(&mut settings);
        let metrics: Vec<Arc<ShardMetrics>> = (0..shards).map(|_| Arc::default()).collect();
        let inboxes: Vec<Arc<Inbox>> = (0..shards).map(|_| Arc::default()).collect();
        let open = |index: usize| {
            let io = world.driver(ShardId(index as u16), SimConfig { table: 20, buffers: 8, buffer_size: 4096 });
            let (metrics, inbox) = (metrics[index].clone(), inboxes[index].clone());
            let (settings, shared) = (settings.clone(), shared.clone());
            let mut shard = Shard::new(ShardId(index as u16), io, settings, shared, metrics, inbox, world.now());
            shard.open();
            shard
        };
        // A driver that never sleeps: time passes as the test says, and does not jump to deadlines.
        let (shards, done) = ((0..shards).map(open).collect(), vec![false; shards]);
        let _ = world.driver(ShardId(done.len() as u16), SimConfig { table: 0, buffers: 0, buffer_size: 0 });
        let (dice, readers) = (Dice::new(1), Vec::new());
        Self { world, shards, done, metrics, inboxes, waiting, dice, readers }
    }

    /// A client of this shard that has been upgraded.
    fn client(&mut self, shard: usize) -> usize {
        let id = self.world.connect_to(ShardId(shard as u16));
        self.world.client_send(id, wire::request("/ws").as_bytes());
        self.readers.push((id, Reader::default()));
        self.rest();
        let (_, reader) = self.readers.last_mut().unwrap();
        reader.feed(&self.world.client_take(id));
        assert_eq!(reader.response(), Some(101));
        self.readers.len() - 1
    }

    fn id(&self, client: usize) -> ClientId {
        self.readers[client].0
    }

    fn send(&mut self, client: usize, texts: &[&str]) {
        let mut out = Vec::new();
        texts.iter().for_each(|text| wire::frame(&mut out, 0x81, text.as_bytes(), &mut self.dice));
        self.world.client_send(self.id(client), &out);
    }

    /// Lets the network deliver everything, and time pass, while no shard runs.
    fn deliver(&self) {
        self.world.advance(Duration::from_millis(50));
    }

    fn turn(&mut self, shard: usize) {
        self.done[shard] = self.shards[shard].turn().unwrap() == Turn::Done;
    }

    /// Turns one shard some times; others are late.
    fn turns(&mut self, shard: usize, times: usize) {
        (0..times).for_each(|_| self.turn(shard));
    }

    /// Turns every shard until nothing is left to do now; less than a second passes.
    fn rest(&mut self) {
        let mut quiet = 0;
        for _ in 0..100_000 {
            let is_awake = |&shard: &usize| !self.done[shard] && !self.world.asleep(ShardId(shard as u16));
            match (0..self.shards.len()).find(is_awake) {
                Some(shard) => {
                    self.turn(shard);
                    quiet = 0;
                }
                None => {
                    self.world.advance(Duration::from_millis(1));
                    quiet += 1;
                }
            }
            if quiet > 60 {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    /// Lets time pass in which the shards run as they like.
    fn pass(&mut self, time_ms: u64) {
        let until = self.world.now().monotonic_ms() + time_ms;
        while self.world.now().monotonic_ms() < until {
            self.rest();
        }
    }

    /// What the client was told since the last call: types of messages with their codes, and close codes.
    fn told(&mut self, client: usize) -> String {
        let (id, reader) = &mut self.readers[client];
        reader.feed(&self.world.client_take(*id));
        let mut told = Vec::new();
        while let Some(frame) = reader.frame() {
            told.push(match frame.opcode {
                CLOSE => format!("close {}", u16::from_be_bytes(*frame.payload.first_chunk().unwrap())),
                TEXT => {
                    let value: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
                    let id = value.get("reply_to").map_or(String::new(), |id| format!(" {id}"));
                    format!("{}{id}", value["type"].as_str().unwrap())
                }
                opcode => format!("opcode {opcode}"),
            });
        }
        told.join(", ")
    }

    fn broadcast(&self, shard: usize) -> oneshot::Receiver<Result<Delivery, tidewheel::app::context::Refused>> {
        let (answer, answered) = oneshot::channel();
        self.inboxes[shard].push(Order::Broadcast { data: b"1".to_vec(), answer }).unwrap();
        answered
    }
}

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

#[test]
fn a_shard_without_connections_counts_for_others_that_drain() {
    let mut stage = Stage::new(2, 8, |_| {});
    let client = stage.client(0);
    stage.send(client, &[r#"{"id":1,"type":"wait"}"#]);
    stage.rest();
    stage.inboxes.iter().for_each(|inbox| inbox.drain(30_000));
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
    stage.inboxes[0].drain(1_000);
    stage.rest();
    assert_eq!((stage.done[0], before.try_recv().unwrap().unwrap()), (true, Delivery::default()));
    let mut late = stage.broadcast(0);
    stage.shards.clear();
    assert_eq!(late.try_recv().unwrap_err(), oneshot::error::TryRecvError::Closed, "nobody takes it any more");
    let (answer, _answered) = oneshot::channel();
    assert!(stage.inboxes[0].push(Order::Broadcast { data: b"1".to_vec(), answer }).is_err());
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
    stage.inboxes[0].drain(1_000);
    stage.rest();
    stage.world.client_shutdown(stage.id(gone));
    stage.rest();
    stage.pass(1_500);
    assert_eq!((stage.done[0], stage.metrics[0].cut.get()), (true, 1));
}
