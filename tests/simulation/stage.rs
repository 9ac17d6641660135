//! A small engine without faults, whose every turn a test tells.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tidewheel::conn::RateLimits;
use tidewheel::id::ShardId;
use tidewheel::io::sim::{ClientId, Dice, Faults, Sim, SimConfig, World};
use tidewheel::metrics::ShardMetrics;
use tidewheel::pubsub::Bus;
use tidewheel::shard::settings::Settings;
use tidewheel::shard::{Inbox, Order, Shard, Shared, Turn};
use tidewheel::{Config, Delivery};
use tokio::sync::oneshot;

use crate::handlers::{Waiting, router};
use crate::wire::{self, CLOSE, Frame, Reader, TEXT};

/// An engine without faults whose every turn is told.
pub struct Stage {
    pub world: World,
    pub shards: Vec<Shard<Sim>>,
    pub done: Vec<bool>,
    pub metrics: Vec<Arc<ShardMetrics>>,
    pub inboxes: Vec<Arc<Inbox>>,
    pub shared: Arc<Shared>,
    pub waiting: Waiting,
    settings: Settings,
    dice: Dice,
    /// What clients have read, by number.
    readers: Vec<(ClientId, Reader)>,
}

impl Stage {
    pub fn new(shards: usize, bus_bound: usize, change: impl Fn(&mut Settings)) -> Self {
        Self::from_seed(7, shards, bus_bound, change)
    }

    pub fn from_seed(seed: u64, shards: usize, bus_bound: usize, change: impl Fn(&mut Settings)) -> Self {
        let kernel = SimConfig { table: 20, buffers: 8, buffer_size: 4096 };
        Self::on_kernel(kernel, seed, shards, bus_bound, change)
    }

    pub fn on_kernel(
        kernel: SimConfig,
        seed: u64,
        shards: usize,
        bus_bound: usize,
        change: impl Fn(&mut Settings),
    ) -> Self {
        let world = World::new(seed, Faults::default());
        let waiting = Waiting::default();
        let shared = Arc::new(Shared::new(router(&waiting), Bus::with_bound(shards, bus_bound), Arc::default()));
        let mut settings = Settings::new(&Config::default(), 100, 100);
        settings.auth_required = false;
        settings.rates = RateLimits::default();
        settings.idle_timeout_ms = 0;
        settings.ping_interval_ms = 0;
        settings.echo_path = Some("/echo".into());
        settings.client_connections_max = None;
        change(&mut settings);
        let shared_settings = Arc::new(settings.clone());
        let metrics: Vec<Arc<ShardMetrics>> = (0..shards).map(|_| Arc::default()).collect();
        let inboxes: Vec<Arc<Inbox>> = (0..shards).map(|_| Arc::default()).collect();
        let open = |index: usize| {
            let io = world.driver(ShardId(index as u16), kernel);
            let (metrics, inbox) = (metrics[index].clone(), inboxes[index].clone());
            let (settings, shared) = (shared_settings.clone(), shared.clone());
            let mut shard = Shard::new(ShardId(index as u16), io, settings, shared, metrics, inbox, world.now());
            shard.open();
            shard
        };
        // A driver that never sleeps: time passes as the test says, and does not jump to deadlines.
        let (shards, done) = ((0..shards).map(open).collect(), vec![false; shards]);
        let _ = world.driver(ShardId(done.len() as u16), SimConfig { table: 0, buffers: 0, buffer_size: 0 });
        let (dice, readers) = (Dice::new(1), Vec::new());
        Self { world, shards, done, metrics, inboxes, shared, waiting, settings, dice, readers }
    }

    /// A client of this shard that has been upgraded.
    pub fn client(&mut self, shard: usize) -> usize {
        let client = self.newcomer(shard);
        self.world.client_send(self.id(client), wire::request("/ws").as_bytes());
        self.rest();
        assert_eq!(self.response(client), Some(101));
        client
    }

    /// A client of this shard that has said nothing yet.
    pub fn newcomer(&mut self, shard: usize) -> usize {
        self.readers.push((self.world.connect_to(ShardId(shard as u16)), Reader::default()));
        self.readers.len() - 1
    }

    /// A client of this shard, from this address, that asks for an upgrade.
    pub fn newcomer_from(&mut self, address: IpAddr, shard: usize) -> usize {
        self.readers.push((self.world.connect_from(address, ShardId(shard as u16)), Reader::default()));
        let client = self.readers.len() - 1;
        self.world.client_send(self.id(client), wire::request("/ws").as_bytes());
        client
    }

    /// The answer to its upgrade request.
    pub fn response(&mut self, client: usize) -> Option<u16> {
        let (id, reader) = &mut self.readers[client];
        reader.feed(&self.world.client_take(*id));
        reader.response()
    }

    /// The frames it got since the last call.
    pub fn frames(&mut self, client: usize) -> Vec<Frame> {
        let (id, reader) = &mut self.readers[client];
        reader.feed(&self.world.client_take(*id));
        std::iter::from_fn(|| reader.frame()).collect()
    }

    pub fn id(&self, client: usize) -> ClientId {
        self.readers[client].0
    }

    pub fn send(&mut self, client: usize, texts: &[&str]) {
        let mut out = Vec::new();
        texts.iter().for_each(|text| wire::frame(&mut out, 0x81, text.as_bytes(), &mut self.dice));
        self.world.client_send(self.id(client), &out);
    }

    /// Lets the network deliver everything, and time pass, while no shard runs.
    pub fn deliver(&self) {
        self.world.advance(Duration::from_millis(50));
    }

    pub fn turn(&mut self, shard: usize) {
        self.done[shard] = self.shards[shard].turn().unwrap() == Turn::Done;
    }

    /// What a shard's thread does when its shard broke between two turns.
    pub fn restart(&mut self, shard: usize) {
        let (sim, estate) = self.shards.remove(shard).break_up(true);
        let sim = self.world.restart(sim);
        self.shards.insert(shard, Shard::succeed(estate, sim, self.world.now()));
    }

    /// Turns one shard some times; others are late.
    pub fn turns(&mut self, shard: usize, times: usize) {
        (0..times).for_each(|_| self.turn(shard));
    }

    /// Gives a shard settings that differ from its present ones.
    pub fn reload(&mut self, shard: usize, change: impl Fn(&mut Settings)) {
        change(&mut self.settings);
        self.inboxes[shard].reload(Arc::new(self.settings.clone()));
        self.rest();
    }

    /// Turns every shard until nothing is left to do now; less than a second passes.
    pub fn rest(&mut self) {
        let (mut quiet, mut turns, mut moved) = (0, 0, self.moved_bytes());
        loop {
            let is_awake = |&shard: &usize| !self.done[shard] && !self.world.asleep(ShardId(shard as u16));
            match (0..self.shards.len()).find(is_awake) {
                Some(shard) => {
                    self.turn(shard);
                    quiet = 0;
                }
                None => {
                    // In so many milliseconds nothing would be found to do.
                    let idle_ms = (self.quiet_for().as_millis() as u64).clamp(1, QUIET_MS - quiet);
                    self.world.advance(Duration::from_millis(idle_ms));
                    quiet += idle_ms;
                }
            }
            if quiet >= QUIET_MS {
                return;
            }
            // Some sockets give a byte at a time.
            let before = std::mem::replace(&mut moved, self.moved_bytes());
            turns = if moved == before { turns + 1 } else { 0 };
            assert!(turns < TURNS_MAX, "the shards do not come to rest");
        }
    }

    fn moved_bytes(&self) -> u64 {
        self.metrics.iter().map(|metrics| metrics.bytes_in.get() + metrics.bytes_out.get()).sum()
    }

    /// For how long nothing happens by itself.
    fn quiet_for(&self) -> Duration {
        self.world
            .quiet_for((0..self.shards.len()).filter(|&shard| !self.done[shard]).map(|shard| ShardId(shard as u16)))
    }

    /// One millisecond, in which every shard does what it has to do.
    pub fn tick(&mut self) {
        for shard in 0..self.shards.len() {
            while !self.done[shard] && !self.world.asleep(ShardId(shard as u16)) {
                self.turn(shard);
            }
        }
        self.world.advance(Duration::from_millis(1));
    }

    /// Lets time pass in which the shards run as they like.
    pub fn pass(&mut self, time_ms: u64) {
        let until = self.world.now().monotonic_ms() + time_ms;
        while self.world.now().monotonic_ms() < until {
            self.rest();
        }
    }

    /// What the client was told since the last call: types of messages with their codes, and close codes.
    pub fn told(&mut self, client: usize) -> String {
        let mut told = Vec::new();
        for frame in self.frames(client) {
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

    pub fn broadcast(&self, shard: usize) -> oneshot::Receiver<Result<Delivery, tidewheel::app::context::Refused>> {
        let (answer, answered) = oneshot::channel();
        self.inboxes[shard].push(Order::Broadcast { data: b"1".to_vec(), answer }).unwrap();
        answered
    }
}

/// In so many turns something moves, or nothing ever will.
const TURNS_MAX: u32 = 100_000;
/// Nothing is left to do when nothing has happened for so long.
const QUIET_MS: u64 = 61;
