//! One run: an engine of one to four shards, its clients and the network, on one thread, all from a seed.
//!
//! Law: a run goes on until every client has left or the engine has drained; then nothing may be left of it, and the
//! ledger is judged. A shard that is asleep is not turned, so a wake-up that gets lost is found.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidewheel::app::auth::{AuthSettings, Authenticator};
use tidewheel::config::{ClientLimitPolicy, OutboundPolicy, TopicRule};
use tidewheel::conn::{OutboundLimits, RateLimits};
use tidewheel::id::ShardId;
use tidewheel::io::Lossy;
use tidewheel::io::sim::{Dice, Faults, SimConfig, World};
use tidewheel::metrics::{CloseReason, Deflated, Drop, Inflated, ShardMetrics, TlsHandshake};
use tidewheel::pubsub::{Bus, Policies};
use tidewheel::shard::settings::Settings;
use tidewheel::shard::{DrainOrder, Inbox, Order, Shard, Shared, Turn};
use tidewheel::tls::PLAIN_MAX;
use tidewheel::ws::{HandshakeLimits, Limits};
use tidewheel::{Config, Delivery, PublishOptions};
use tokio::sync::oneshot;

use crate::brittle::{Brittle, Fuse};
use crate::client::Client;
use crate::compose::{data_text, key};
use crate::handlers::{ON_PURPOSE, Waiting, router};
use crate::ledger::{Ledger, Losses, NEVER, Source, Verdict};
use crate::operator::Operator;
use crate::secure;
use crate::terms::{BROADCAST, Rules, Scene, TOPICS, Tamper};

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    pub trace: u64,
    /// What happened how often, to see that every bound is hit.
    pub seen: Vec<(&'static str, u64)>,
}

type Answered = oneshot::Receiver<Result<Delivery, tidewheel::app::context::Refused>>;

pub struct Run {
    pub dice: Dice,
    pub world: World,
    pub shards: Vec<Shard<Brittle>>,
    pub done: Vec<bool>,
    pub shared: Arc<Shared>,
    pub metrics: Vec<Arc<ShardMetrics>>,
    pub inboxes: Vec<Arc<Inbox>>,
    pub waiting: Waiting,
    pub clients: Vec<Client>,
    pub scene: Scene,
    orders: Vec<(Answered, usize)>,
    /// Whoever is at work besides.
    operator: Option<Operator>,
    /// Whether time may jump.
    jumps: bool,
    pub settings: Arc<Settings>,
    /// What breaks each shard.
    pub fuses: Vec<Fuse>,
    /// How probable it is, each time, that a shard is about to break, and the dice for that.
    brittle: (f64, Dice),
    restarts: u64,
    /// A shard that is late with everything.
    lazy: Option<usize>,
    /// Bytes of one connection that a shard may hold, and that may wait for it.
    bounds: [usize; 2],
}

/// Runs a whole life of an engine.
pub fn run(seed: u64, tamper: Option<Tamper>) -> Outcome {
    run_with(seed, tamper, 0.0)
}

/// Runs a whole life of an engine whose shards break.
pub fn run_brittle(seed: u64) -> Outcome {
    run_with(seed, None, 0.01)
}

fn run_with(seed: u64, tamper: Option<Tamper>, brittle: f64) -> Outcome {
    let mut dice = Dice::new(seed ^ 0x71d3);
    let faults = match dice.below(10) {
        0..=2 => Faults::default(),
        3 => Faults::all(),
        _ => Faults::swarm(&mut dice),
    };
    let mut settings = draw_settings(&mut dice);
    // From dice of its own, so that the other seeds go on telling what they told.
    if Dice::new(seed ^ 0x715).chance(TLS_SHARE) {
        (settings.0.tls, settings.0.plain_ports) = (Some(secure::terms()), 1);
    }
    let mut run = Run::new(seed, faults, settings, tamper);
    if brittle == 0.0 && tamper.is_none() && Dice::new(seed ^ 0x0b5).chance(0.4) {
        run.call_operator();
    }
    run.break_with(brittle);
    let clients_max = 2 + run.dice.below(14);
    let iterations = 200 + run.dice.below(1200);
    for _ in 0..iterations {
        run.play(clients_max);
    }
    if tamper == Some(Tamper::ExpectOneMore) {
        run.expect_one_more();
    }
    match run.dice.below(10) {
        0..=4 => {
            run.settle();
            run.everyone_leaves();
        }
        5..=7 => run.settle(),
        _ => run.calm(),
    }
    run.drain();
    run.judge()
}

impl Run {
    pub fn new(seed: u64, faults: Faults, (settings, bus_bound, shards): Drawn, tamper: Option<Tamper>) -> Self {
        let mut dice = Dice::new(seed ^ 0xd1ce);
        let mut settings = settings;
        settings.authenticator = settings.auth_required.then(|| {
            let keys = vec![key()];
            Arc::new(Authenticator::new(&AuthSettings { keys, ..AuthSettings::default() }).expect("a good key"))
        });
        settings.client_connections_max = Some(1);
        settings.client_limit_policy = ClientLimitPolicy::Reject;
        let (policies, losses) = draw_policies(&mut dice, &settings);
        settings.policies = Arc::new(policies);
        let settings = Arc::new(settings);
        let world = World::new(seed, faults);
        let waiting = Waiting::default();
        let shared = Arc::new(Shared::new(router(&waiting), Bus::with_bound(shards, bus_bound), Arc::default()));
        let metrics: Vec<Arc<ShardMetrics>> = (0..shards).map(|_| Arc::default()).collect();
        let inboxes: Vec<Arc<Inbox>> = (0..shards).map(|_| Arc::default()).collect();
        // Larger where the pool is, which it need not hold.
        let scale = (settings.slots as usize / 33).max(1);
        let (table, buffers) = (scale * (8 + dice.below(25)), scale * (1 + dice.below(6)));
        let kernel = SimConfig { table, buffers, buffer_size: 64 + dice.below(193) };
        let fuses: Vec<Fuse> = (0..shards).map(|_| Fuse::default()).collect();
        let shards: Vec<_> = (0..shards)
            .map(|index| {
                let id = ShardId(index as u16);
                let io = Brittle::new(world.driver(id, kernel), &fuses[index]);
                let (metrics, inbox) = (metrics[index].clone(), inboxes[index].clone());
                let mut shard = Shard::new(id, io, settings.clone(), shared.clone(), metrics, inbox, world.now());
                shard.open();
                shard
            })
            .collect();
        let hasty = settings.close_timeout_ms < 1_000;
        let rough = hasty
            || [faults.reset, faults.stall, faults.send_fails, faults.clock_jump].into_iter().any(|fault| fault > 0.0);
        let rules = Rules {
            subscriptions_max: settings.subscriptions_max,
            errors_max: settings.errors_max.into(),
            message_bytes_max: settings.messages.message_bytes_max,
            header_bytes_max: settings.handshake.header_bytes_max,
            topic_length_max: settings.topic_length_max,
            auth: settings.auth_required,
            timers: settings.idle_timeout_ms > 0 || settings.ping_interval_ms > 0,
            tight: true,
            hurried: false,
            rough,
            close_timeout_ms: settings.close_timeout_ms,
            brittle: false,
            publishing: 1.0,
            unrest: [0.0, 0.005, 0.03][dice.below(3)],
            operated: false,
            tls: settings.tls.is_some(),
            roomy: settings.outbound.bytes_max == ROOMY_BYTES && !rough,
        };
        let scene = Scene { step: 0, rules, ledger: Ledger { losses, ..Ledger::default() }, drained_at: NEVER, tamper };
        // One request is held, and a cancelled receive may still bring bytes a few times. Beyond the bound of the queue there may be one message,
        // what parked handlers answer, and the last words.
        let request = settings.handshake.header_bytes_max.max(settings.messages.message_bytes_max);
        // With TLS, a message comes with all that is in its record.
        let record = if settings.tls.is_some() { 2 * PLAIN_MAX } else { 0 };
        let held = request + 8 * kernel.buffers * kernel.buffer_size + record;
        let replies = settings.messages.message_bytes_max + 300 * (2 + settings.parked_max);
        // What may be dropped has its own room, and leaves that of the others to them.
        let lossy = usize::from(losses.policies.iter().any(Option::is_some));
        let bounds = [held, settings.outbound.bytes_max as usize * (1 + lossy) + replies];
        let done = vec![false; shards.len()];
        let lazy = dice.chance(0.3).then(|| dice.below(shards.len()));
        let (clients, orders, operator) = (Vec::new(), Vec::new(), None);
        let (brittle, restarts) = ((0.0, Dice::new(seed ^ 0xb0b)), 0);
        Self {
            settings,
            fuses,
            brittle,
            restarts,
            dice,
            world,
            shards,
            done,
            shared,
            metrics,
            inboxes,
            waiting,
            clients,
            scene,
            orders,
            operator,
            jumps: true,
            lazy,
            bounds,
        }
    }

    /// From now on shards break, each time with this probability.
    pub fn break_with(&mut self, chance: f64) {
        self.brittle.0 = chance;
        self.scene.rules.brittle = chance > 0.0;
    }

    /// From now on somebody changes settings, and does things to sessions.
    fn call_operator(&mut self) {
        let mut settings = (*self.settings).clone();
        settings.subscriptions_max += 1;
        self.operator = Some(Operator::new(&settings));
        let rules = &mut self.scene.rules;
        (rules.operated, rules.timers, rules.roomy) = (true, true, false);
        self.scene.ledger.losses.unbounded = false;
        self.inboxes.iter().for_each(|inbox| inbox.reload(Arc::new(settings.clone())));
    }

    /// One step of the busy part of a run.
    fn play(&mut self, clients_max: usize) {
        self.scene.step += 1;
        self.light_a_fuse();
        if self.all_asleep() {
            // Peers answer before time jumps to the next deadline.
            (0..self.clients.len()).for_each(|client| self.read(client));
        }
        match self.dice.below(100) {
            0..=3 if self.clients.len() < clients_max => self.connect(),
            4 if !self.clients.is_empty() && self.clients.len() < 2 * clients_max && self.dice.chance(0.2) => {
                self.connect()
            }
            5 => self.order(),
            91..=93 if self.operator.is_some() => {
                let operator = self.operator.as_mut().expect("just seen");
                operator.act(&self.inboxes, self.scene.step, &mut self.dice);
            }
            6..=9 if self.waiting.len() > 0 => self.release_one(),
            10 if self.jumps && self.scene.rules.timers && self.dice.chance(0.1) => {
                self.world.advance(Duration::from_secs(self.dice.below(20) as u64));
                self.scene.rules.rough = true;
            }
            11..=45 if !self.clients.is_empty() => {
                let client = self.dice.below(self.clients.len());
                self.read(client);
                self.act(client);
            }
            _ => drop(self.turn_one()),
        }
        self.read_answers();
    }

    pub fn connect(&mut self) {
        let number = self.clients.len();
        let client = Client::connect(&self.world, &mut self.dice, number, &mut self.scene);
        self.clients.push(client);
    }

    pub fn read(&mut self, client: usize) {
        let client = &mut self.clients[client];
        if !client.mute {
            client.read(&self.world, &mut self.scene, &mut self.dice);
        }
    }

    /// A client does one of the things clients do.
    pub fn act(&mut self, client: usize) {
        self.clients[client].act(&self.world, &mut self.scene, &mut self.dice);
    }

    /// A client ends its part.
    pub fn leave(&mut self, client: usize) {
        self.clients[client].leave(&self.world, &self.scene, &mut self.dice);
    }

    /// What the embedding program asks for.
    pub fn order(&mut self) {
        let topic = self.dice.below(TOPICS.len() + 1);
        let publish = self.scene.ledger.publish(Source::Engine, topic, self.scene.step, None);
        let key = self.scene.ledger.publishes[publish].key;
        let data = data_text(publish, &self.scene.rules).into_bytes();
        let (answer, answered) = oneshot::channel();
        let (shard, order) = match topic {
            BROADCAST => (0, Order::Broadcast { data, answer }),
            _ => (
                topic % self.shards.len(),
                Order::Publish {
                    topic: TOPICS[topic].into(),
                    data,
                    options: key.map_or_else(PublishOptions::new, |key| PublishOptions::new().key(key)),
                    answer,
                },
            ),
        };
        self.inboxes[shard].push(order).expect("far fewer orders than the inbox holds");
        self.orders.push((answered, publish));
    }

    pub fn read_answers(&mut self) {
        let step = self.scene.step;
        self.operator.iter_mut().for_each(|operator| operator.read(step));
        let (ledger, step) = (&mut self.scene.ledger, self.scene.step);
        self.orders.retain_mut(|(answered, publish)| match answered.try_recv() {
            Ok(Ok(delivery)) => {
                ledger.acked(*publish, step, delivery);
                false
            }
            Ok(Err(refused)) => panic!("an order with room was refused: {refused}"),
            Err(oneshot::error::TryRecvError::Empty) => true,
            // The shard that had taken it broke.
            Err(oneshot::error::TryRecvError::Closed) if self.restarts > 0 => false,
            Err(oneshot::error::TryRecvError::Closed) => panic!("an order was dropped"),
        });
    }

    pub fn release_one(&mut self) {
        let index = self.dice.below(self.waiting.len());
        self.waiting.release(index, self.dice.coin());
    }

    pub fn all_asleep(&self) -> bool {
        (0..self.shards.len()).all(|shard| self.done[shard] || self.world.asleep(ShardId(shard as u16)))
    }

    /// Turns some shard, or lets time pass if that one is asleep. Returns which was turned.
    pub fn turn_one(&mut self) -> Option<usize> {
        let index = self.dice.below(self.shards.len());
        if self.lazy == Some(index) && self.shards.len() > 1 && self.dice.chance(0.95) {
            self.world.step();
            return None;
        }
        if self.done[index] || self.world.asleep(ShardId(index as u16)) {
            // A shard that is done does not sleep, so the world would never find that everybody does.
            match self.done.contains(&true) && self.all_asleep() {
                true => self.world.advance(Duration::from_millis(2)),
                false => self.world.step(),
            }
            return None;
        }
        self.turn(index);
        let [held, outbound, retried] = self.shards[index].heaviest();
        assert!(held <= self.bounds[0], "{held} bytes are held for one connection, more than {}", self.bounds[0]);
        assert!(outbound <= self.bounds[1], "{outbound} bytes wait for one connection, more than {}", self.bounds[1]);
        assert!(retried <= self.clients.len(), "{retried} connections to try again, of {}", self.clients.len());
        Some(index)
    }

    fn turn(&mut self, index: usize) {
        match catch_unwind(AssertUnwindSafe(|| self.shards[index].turn())) {
            Ok(Ok(turn)) => self.done[index] = turn == Turn::Done,
            Ok(Err(_)) => self.restart(index, false),
            Err(panic) => match panic.downcast_ref::<String>() {
                Some(text) if text.contains(ON_PURPOSE) => self.restart(index, true),
                _ => resume_unwind(panic),
            },
        }
    }

    /// What a shard's thread does when its shard broke. The driver may break again meanwhile.
    fn restart(&mut self, index: usize, panicked: bool) {
        self.restarts += 1;
        let again = self.brittle.1.chance(0.3).then(|| self.brittle.1.below(60));
        self.fuses[index].set(again);
        let (io, estate) = self.shards.remove(index).break_up(panicked);
        self.fuses[index].set(None);
        let shard = Shard::succeed(estate, io.restart(&self.world), self.world.now());
        self.shards.insert(index, shard);
    }

    /// Some shard is about to break.
    pub fn light_a_fuse(&mut self) {
        let (chance, dice) = &mut self.brittle;
        if dice.chance(*chance) {
            self.fuses[dice.below(self.shards.len())].set(Some(dice.below(120)));
        }
    }

    /// Nothing goes wrong any more, everybody reads, and nobody asks for more.
    pub fn calm(&mut self) {
        self.lazy = None;
        self.world.set_faults(Faults::default());
        self.fuses.iter().for_each(|fuse| fuse.set(None));
        for client in &mut self.clients {
            client.mute = false;
            self.world.client_stall(client.id, false);
        }
    }

    /// Runs until every request of everyone who is still connected has been answered.
    pub fn settle(&mut self) {
        self.calm();
        for turn in 0.. {
            self.scene.step += 1;
            for client in 0..self.clients.len() {
                let count = self.clients[client].to_send.len();
                self.clients[client].transmit(&self.world, count);
                self.read(client);
            }
            while self.waiting.len() > 0 {
                self.release_one();
            }
            self.read_answers();
            let owed = self.owed();
            let unsent =
                self.clients.iter().any(|client| client.is_open && client.end.is_none() && !client.to_send.is_empty());
            let is_served = self.operator.as_ref().is_none_or(Operator::is_served);
            if owed.is_none() && self.orders.is_empty() && is_served && !unsent {
                break;
            }
            assert!(turn < SETTLE_TURNS, "after {turn} turns still owed: {owed:?} {:?}", self.orders);
            let owed = owed.map(|client| client.number);
            let before = self.world.now().monotonic_ms();
            self.turn_one();
            // Nobody but the shards owes anything, so nothing may wait for a deadline.
            let jumped = self.world.now().monotonic_ms() - before > QUIET_MS;
            if jumped && !self.scene.rules.rough {
                (0..self.clients.len()).for_each(|client| self.read(client));
                self.read_answers();
                let owed = owed.map(|client| &self.clients[client]).filter(|client| client.is_owed());
                assert!(owed.is_none() && self.orders.is_empty(), "a wake-up is lost: {owed:?} {:?}", self.orders);
            }
        }
    }

    /// A client that is owed something.
    pub fn owed(&self) -> Option<&Client> {
        self.clients.iter().find(|client| client.is_owed())
    }

    /// Whether the embedding program is owed an answer.
    pub fn is_asked(&self) -> bool {
        !self.orders.is_empty()
    }

    /// Everyone goes, each in its own way, until the engine is empty.
    fn everyone_leaves(&mut self) {
        for turn in 0.. {
            self.scene.step += 1;
            if self.all_asleep() || turn % 16 == 0 {
                for client in 0..self.clients.len() {
                    self.leave(client);
                    if self.dice.chance(0.8) {
                        let count = self.clients[client].to_send.len();
                        self.clients[client].transmit(&self.world, count);
                    }
                    self.read(client);
                }
            }
            if self.shared.tally.connections() == 0 && self.waiting_for_no_one() {
                break;
            }
            if turn < 1_000 {
                self.light_a_fuse();
            }
            assert!(turn < SETTLE_TURNS, "connections are left: {:?}", self.still_there());
            self.turn_one();
        }
    }

    /// Whether everyone who connected has been accepted and has gone.
    pub fn waiting_for_no_one(&self) -> bool {
        self.clients.iter().all(|client| client.end.is_some())
    }

    pub fn still_there(&self) -> Vec<&Client> {
        self.clients.iter().filter(|client| client.end.is_none()).collect()
    }

    /// Orders the drain as the engine does, and turns the shards to their end.
    pub fn drain(&mut self) {
        self.world.set_faults(Faults::default());
        self.jumps = false;
        let from = self.world.now().monotonic_ms();
        let deadline_ms = [0, 100, 5_000, 30_000][self.dice.below(4)];
        let mut part_of_deadline = || deadline_ms * [0, 0, 1, 3][self.dice.below(4)] / 10;
        let (wait_ms, spread_ms) = (part_of_deadline(), part_of_deadline());
        let reconnects_per_second = [1, 5, 1_000][self.dice.below(3)];
        self.scene.drained_at = self.scene.step;
        if deadline_ms < 30_000 {
            self.scene.rules.rough = true; // some will be cut
        }
        for inbox in &self.inboxes {
            inbox.drain(DrainOrder { wait_ms, spread_ms, deadline_ms, reconnects_per_second });
        }
        let stuck = self.dice.chance(0.3);
        let (clients_max, mut busy) = (self.clients.len() + 4, self.dice.chance(0.5));
        let restarts = self.restarts;
        for turn in 0.. {
            self.scene.step += 1;
            if busy && (turn > BUSY_TURNS || self.world.now().monotonic_ms() - from > wait_ms + spread_ms) {
                busy = false;
                self.calm();
            }
            if busy && self.dice.chance(0.2) {
                self.play(clients_max);
            }
            if self.all_asleep() || self.dice.chance(0.1) {
                for client in 0..self.clients.len() {
                    if !stuck || client % 3 != 0 {
                        let count = self.clients[client].to_send.len();
                        self.clients[client].transmit(&self.world, count);
                    }
                    self.read(client);
                }
            }
            if self.waiting.len() > 0 && self.dice.chance(0.1) {
                self.release_one();
            }
            if self.done.iter().all(|&done| done) {
                break;
            }
            if turn < 200 {
                self.light_a_fuse();
            }
            let took = self.world.now().monotonic_ms() - from;
            assert!(
                turn < DRAIN_TURNS,
                "the drain does not end in {took} of {deadline_ms} ms: {:?}",
                self.still_there()
            );
            self.turn_one();
        }
        if busy {
            self.calm();
        }
        let took = self.world.now().monotonic_ms() - from;
        // Time passes for all of them while one says goodbye.
        let took = took.saturating_sub(600 * (self.restarts - restarts));
        assert!(took <= deadline_ms + 2_000, "the drain took {took} ms, with a deadline of {deadline_ms}");
    }

    fn expect_one_more(&mut self) {
        self.scene.tamper = None;
        let client = self.clients.iter().find(|client| client.may_ask() && client.everyone.is_some() && client.is_open);
        let Some(period) = client.and_then(|client| client.everyone) else { return };
        let (sent, topic) = (self.scene.step, BROADCAST);
        self.scene.ledger.periods[period].acked = 0;
        let publish = self.scene.ledger.publish(Source::HandlerOf(usize::MAX), topic, sent, None);
        self.scene.ledger.acked(publish, sent + 1, Delivery { matched: 1, queued: 1, dropped: 0 });
    }

    /// What must be true of every run at its end.
    pub fn judge(mut self) -> Outcome {
        self.fuses.iter().for_each(|fuse| fuse.set(None));
        // What the engine sent last may still be on its way.
        for _ in 0..SETTLE_TURNS {
            self.scene.step += 1;
            self.world.advance(Duration::from_millis(2));
            (0..self.clients.len()).for_each(|client| self.read(client));
            if self.waiting_for_no_one() {
                break;
            }
        }
        // A publish of the embedding program, or of a handler whose client has gone, may outlive whoever would count it.
        let unanswered = self.scene.ledger.publishes.iter().filter(|publish| publish.receipt.is_none()).count();
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let left = shard.leftovers().into_iter();
            let left: Vec<_> =
                left.filter(|&(what, count)| count > if what == "receipts" { unanswered } else { 0 }).collect();
            assert!(left.is_empty(), "shard {index} has leftovers: {left:?}");
        }
        assert!(self.shared.registry.is_empty(), "topics are left in the registry");
        assert!(
            self.shared.clients.is_empty() && self.shared.addresses.is_empty(),
            "clients are listed that are not there"
        );
        assert!(self.shared.addresses.is_empty(), "connections are counted by address that are not there");
        assert_eq!(self.shared.handshakes.load(Ordering::Relaxed), 0, "handshakes are in flight that are not");
        assert_eq!(self.shared.tally.connections(), 0, "connections are counted that are not there");
        if let Err(left) = self.world.audit() {
            panic!("{left}");
        }
        let sum = |count: &dyn Fn(&ShardMetrics) -> u64| self.metrics.iter().map(|metrics| count(metrics)).sum::<u64>();
        let closed = sum(&|metrics| metrics.closed.iter().map(|counter| counter.get()).sum());
        assert_eq!(sum(&|metrics| metrics.opened.get()), closed, "opened and closed");
        assert!(self.still_there().is_empty(), "clients that never saw their end: {:?}", self.still_there());
        let tails: Vec<_> =
            self.clients.iter().map(|client| client.tail(self.scene.drained_at, self.scene.rules.operated)).collect();
        self.operator.iter().for_each(|operator| operator.judge(&self.clients, &tails));
        let Verdict { receipts: exact, lost } = self.scene.ledger.judge(&tails);
        let dropped = |policy: Drop| sum(&|metrics| metrics.dropped[policy as usize].get());
        let by_policy = dropped(Drop::DropOldest) + dropped(Drop::DropNewest) + dropped(Drop::LatestPerKey);
        assert!((lost.0..=lost.1).contains(&by_policy), "{by_policy} dropped by policies, but {lost:?} are missing");

        let secured = |how: TlsHandshake| sum(&|metrics| metrics.tls_handshakes[how as usize].get());
        assert_eq!(
            secured(TlsHandshake::Failed),
            0,
            "clients speak TLS, and streams that break are no failed handshakes"
        );

        let mut seen: Vec<(&str, u64)> = CloseReason::ALL
            .iter()
            .map(|&reason| (reason.label(), sum(&|metrics| metrics.closed[reason as usize].get())))
            .collect();
        seen.extend([
            ("cut at the drain", sum(&|metrics| metrics.cut.get())),
            ("exact receipts", exact),
            ("starved", sum(&|metrics| metrics.starved.get())),
            ("accept stopped", sum(&|metrics| metrics.accept_stopped.get())),
            ("accept paced", sum(&|metrics| metrics.accept_paced.get())),
            ("bus full", sum(&|metrics| metrics.bus_full.get())),
            ("deflated", sum(&|metrics| metrics.deflated[Deflated::Compressed as usize].get())),
            ("read deflated", self.clients.iter().map(|client| client.reader.inflated as u64).sum()),
            ("inflated", sum(&|metrics| metrics.inflated[Inflated::Inflated as usize].get())),
            ("secured", secured(TlsHandshake::Full)),
            (
                "read secured",
                self.clients
                    .iter()
                    .filter(|client| client.link.is_some())
                    .map(|client| client.reader.frames as u64)
                    .sum(),
            ),
            ("panics", sum(&|metrics| metrics.panics.iter().map(|panics| panics.get()).sum())),
            ("restarts", sum(&|metrics| metrics.restarts.get())),
            ("told 1011", self.clients.iter().filter(|client| client.end_code() == Some(1011)).count() as u64),
            ("operated", self.operator.as_ref().map_or(0, |operator| operator.done)),
            ("handlers given up", self.clients.iter().map(|client| client.overdue).sum()),
            ("of the operator's topic", self.clients.iter().map(|client| client.operated.len() as u64).sum()),
            ("deliveries", self.scene.ledger.periods.iter().map(|period| period.got.len() as u64).sum()),
            ("exact drops", if lost.0 == lost.1 { by_policy } else { 0 }),
        ]);
        seen.extend(Drop::ALL.iter().map(|&policy| (DROPPED[policy as usize], dropped(policy))));
        Outcome { trace: self.world.trace(), seen }
    }
}

/// How many of the runs have a port with TLS, whose handshakes take most of such a run's time.
const TLS_SHARE: f64 = 0.06;

/// Settings, the bound of the bus, and how many shards.
type Drawn = (Settings, usize, usize);

pub fn draw_settings(dice: &mut Dice) -> Drawn {
    let mut settings = Settings::new(&Config::default(), 0, 0);
    let (timers, hasty) = (dice.chance(0.4), dice.chance(0.15));
    let some = |dice: &mut Dice, values: &[u64]| values[dice.below(values.len())];
    settings.echo_path = Some("/echo".into());
    settings.connections_per_second = dice.chance(0.2).then(|| 10 + dice.below(1_000) as u32);
    settings.connections_max = 4 + dice.below(30) as u32;
    settings.slots = 4 + dice.below(29) as u32;
    settings.compression.enabled = dice.chance(0.9);
    settings.compression.level = 1 + dice.below(9) as u32;
    settings.compression.min_size.0 = 1 + dice.below(300);
    settings.compression.client_context_takeover = dice.coin();
    settings.handshake = HandshakeLimits { header_bytes_max: 300 + dice.below(700) };
    settings.messages = Limits { message_bytes_max: 300 + dice.below(1700), ..settings.messages };
    settings.outbound = OutboundLimits {
        bytes_max: 300 + dice.below(4000) as u32,
        frames_max: 1 + dice.below(20) as u32,
        age_max_ms: some(dice, &[20, 500, 10_000]) as u32,
    };
    if dice.chance(0.3) {
        settings.outbound = OutboundLimits { bytes_max: ROOMY_BYTES, frames_max: 1 << 16, age_max_ms: 1 << 30 };
    }
    // What a refused message leads to is another matter in every reply.
    settings.rates = RateLimits::default();
    // So is what a handler did that was given up.
    settings.handler_timeout_ms = None;
    settings.auth_required = dice.chance(0.3);
    settings.auth_timeout_ms = some(dice, &[300, 10_000]);
    settings.expiry_grace_ms = some(dice, &[0, 500, 25_000]);
    settings.handshake_timeout_ms = if hasty { 200 } else { 20_000 };
    settings.close_timeout_ms = if hasty { 100 } else { 10_000 };
    settings.idle_timeout_ms = if timers { some(dice, &[0, 1_000, 20_000]) } else { 0 };
    settings.ping_interval_ms = if timers { some(dice, &[0, 100, 7_000]) } else { 0 };
    settings.pong_timeout_ms = some(dice, &[50, 3_000]);
    settings.errors_max = 3 + dice.below(40) as u16;
    settings.subscriptions_max = 1 + dice.below(5);
    settings.topic_length_max = 5 + dice.below(20);
    settings.parked_max = 1 + dice.below(12);
    let bus_bound = if dice.coin() { 1 + dice.below(4) } else { 64 };
    (settings, bus_bound, 1 + dice.below(4))
}

/// Which topics have which policy.
fn draw_policies(dice: &mut Dice, settings: &Settings) -> (Policies, Losses) {
    let mut losses = Losses { unbounded: settings.outbound.bytes_max == ROOMY_BYTES, ..Losses::default() };
    let mut config = Config::default();
    for (topic, name) in TOPICS.iter().enumerate() {
        let (policy, lossy) = match dice.below(8) {
            0 => (OutboundPolicy::DropOldest, Lossy::DropOldest),
            1 => (OutboundPolicy::DropNewest, Lossy::DropNewest),
            2 => (OutboundPolicy::LatestPerKey, Lossy::LatestPerKey),
            _ => continue,
        };
        config.topics.push(TopicRule { pattern: (*name).into(), policy: Some(policy) });
        losses.policies[topic] = Some(lossy);
    }
    (Policies::new(&config, 0), losses)
}

/// What was dropped, by policy.
const DROPPED: [&str; Drop::ALL.len()] = [
    "dropped: disconnect",
    "dropped: drop_oldest",
    "dropped: drop_newest",
    "dropped: latest_per_key",
    "dropped: closed",
];
const ROOMY_BYTES: u32 = 1 << 24;
/// Turns until a run without faults must have come to rest.
const SETTLE_TURNS: u32 = 200_000;
/// The same for a drain, where one that trickles has until the deadline.
const DRAIN_TURNS: u32 = 1_000_000;
/// Turns of a drain in which clients still come, ask and go.
const BUSY_TURNS: u32 = 1_000;
/// Longest time one turn takes unless everybody sleeps until a deadline: a few steps of the network.
pub const QUIET_MS: u64 = 5;
