//! One schedule: an engine of two to four shards, its clients, and other threads that publish, reload and drain.
//! Law: whoever was subscribed when a publish was sent gets it once, each publisher's in order, and receipts say so; of an
//! address stay as many as may; every shard ends, and nothing is left of anybody.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use shuttle::rand::{RngCore, thread_rng};
use shuttle::thread;
use tidewheel::app::Router;
use tidewheel::config::ClientLimitPolicy;
use tidewheel::conn::RateLimits;
use tidewheel::id::ShardId;
use tidewheel::io::sim::{Dice, Faults, SimConfig, World};
use tidewheel::metrics::ErrorCode::NotFound;
use tidewheel::pubsub::Bus;
use tidewheel::shard::settings::Settings;
use tidewheel::shard::{DrainOrder, Inbox, Order, Shard, Shared, Turn};
use tidewheel::{Config, Context, Delivery, HandlerError};
use tokio::sync::oneshot;

use crate::client::Client;
use crate::driver::{Bells, Driver, Ringer};
use crate::stage::{Stage, aside, count, count_many, end, sleep, stage, wait_for, wake, world};

/// What all threads of a schedule know.
struct Plan {
    shards: usize,
    /// The shard of each client: the subscribers first, then the publishers, then those of one address.
    places: Vec<usize>,
    inboxes: Vec<Arc<Inbox>>,
    shared: Arc<Shared>,
    settings: Settings,
    /// The drain begins when it may, not when everything has been said.
    drains_early: bool,
}

impl Plan {
    fn draw(dice: &mut Dice) -> Self {
        let shards = 2 + dice.below(3);
        let places = (0..SUBSCRIBERS + PUBLISHERS + NEWCOMERS).map(|_| dice.below(shards)).collect();
        let mut router = Router::default();
        // A handler that waits until another thread wakes it.
        let elsewhere = async |_: Context, _: serde_json::Value| {
            let (tell, told) = oneshot::channel();
            aside(move || {
                let _ = tell.send(7_u32); // its connection may have gone
            });
            told.await.map(|number| ("told", number)).map_err(|_| HandlerError::new(NotFound, "nobody told"))
        };
        router.add_fn("elsewhere", elsewhere).expect("a free name");
        let shared = Arc::new(Shared::new(router, Bus::with_bound(shards, 1 + dice.below(3)), Arc::default()));
        let mut settings = Settings::new(&Config::default(), 100, 20);
        settings.auth_required = false;
        settings.rates = RateLimits::default();
        (settings.idle_timeout_ms, settings.ping_interval_ms) = (0, 0);
        (settings.handshake_timeout_ms, settings.close_timeout_ms) = (60_000, 60_000);
        settings.client_limit_policy = ClientLimitPolicy::EvictOldest;
        settings.address_connections_max = Some(STAY as u32);
        let inboxes = (0..shards).map(|_| Arc::default()).collect();
        Self { shards, places, inboxes, shared, settings, drains_early: dice.chance(0.3) }
    }

    fn threads(&self) -> usize {
        self.operator() + 1
    }

    /// The thread of a client.
    fn who(&self, client: usize) -> usize {
        self.shards + client
    }

    fn operator(&self) -> usize {
        self.shards + self.places.len()
    }

    fn connect(&self, client: usize, address: u8) -> Option<Client> {
        let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, address));
        Client::connect(self.who(client), self.places[client], address)
    }
}

pub fn run() {
    let mut dice = Dice::new(thread_rng().next_u64());
    let plan = Arc::new(Plan::draw(&mut dice));
    let world = World::new(dice.bits(), Faults::default());
    world.set_socket_buffers(&[200, 4096]); // smaller ones make long schedules of the same few steps
    let kernel = SimConfig { table: 20, buffers: 4, buffer_size: 512 };
    let sims = (0..plan.shards).map(|shard| world.driver(ShardId(shard as u16), kernel)).collect();
    // A driver that never sleeps: time passes as the stage says, and does not jump to deadlines by itself.
    let _ = world.driver(ShardId(plan.shards as u16), SimConfig { table: 0, buffers: 0, buffer_size: 0 });
    Stage::set(world, sims, plan.threads());

    let bells: Bells = (0..plan.shards).map(|shard| Arc::new(Ringer::new(shard))).collect();
    let settings = Arc::new(plan.settings.clone());
    let shards: Vec<_> = (0..plan.shards)
        .map(|shard| {
            let (plan, bells, settings) = (plan.clone(), bells.clone(), settings.clone());
            thread::spawn(move || serve(&plan, shard, bells, settings))
        })
        .collect();
    let spawn = |client: usize, run: fn(&Plan, usize) -> Story| {
        let plan = plan.clone();
        thread::spawn(move || {
            let story = run(&plan, client);
            end(plan.who(client));
            story
        })
    };
    let subscribers: Vec<_> = (0..SUBSCRIBERS).map(|client| spawn(client, subscribe)).collect();
    let publishers: Vec<_> = (SUBSCRIBERS..SUBSCRIBERS + PUBLISHERS).map(|client| spawn(client, publish)).collect();
    let first = SUBSCRIBERS + PUBLISHERS;
    let newcomers: Vec<_> = (first..first + NEWCOMERS).map(|client| spawn(client, come)).collect();
    let operator = {
        let plan = plan.clone();
        thread::spawn(move || {
            let broadcasts = operate(&plan);
            end(plan.operator());
            broadcasts
        })
    };

    let stories = |threads: Vec<thread::JoinHandle<Story>>| -> Vec<Story> {
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    };
    let (subscribers, publishers, newcomers) = (stories(subscribers), stories(publishers), stories(newcomers));
    let broadcasts = operator.join().expect("no panic");
    shards.into_iter().for_each(|shard| shard.join().expect("no panic"));
    judge(&plan, &subscribers, &publishers, &newcomers, &broadcasts);
    crate::stage::world().audit().expect("nothing is left");
    assert!(plan.shared.registry.is_empty() && plan.shared.addresses.is_empty());
}

/// A shard's thread.
fn serve(plan: &Plan, id: usize, bells: Bells, settings: Arc<Settings>) {
    let sim = stage(|stage| stage.drivers[id].take()).expect("one thread a driver");
    let clients = (0..plan.places.len()).filter(|&client| plan.places[client] == id).map(|client| plan.who(client));
    let driver = Driver::new(sim, bells, id, clients.collect());
    let (shared, inbox) = (plan.shared.clone(), plan.inboxes[id].clone());
    let mut shard = Shard::new(ShardId(id as u16), driver, settings, shared, Arc::default(), inbox, world().now());
    shard.open();
    while shard.turn().expect("a driver that works") == Turn::Again {}
    // In an early drain broadcasts may still be counted; they are refused, since nobody may be left who counts.
    let is_left = |&(what, count): &(&str, usize)| count > 0 && !(plan.drains_early && what == "receipts");
    let left: Vec<_> = shard.leftovers().into_iter().filter(is_left).collect();
    assert!(left.is_empty(), "shard {id} leaves {left:?}");
    shard.end();
    end(id);
}

/// What a client has to tell.
#[derive(Default)]
struct Story {
    /// How many publishes each publisher had sent when the subscription was acked; `None` without an ack.
    from: Option<[u64; PUBLISHERS]>,
    received: Vec<[u64; 2]>,
    receipts: Vec<Delivery>,
    closed: Option<u16>,
}

impl Story {
    fn end(self, mut client: Client) -> Self {
        client.finish();
        Self { received: client.received, closed: client.closed, ..self }
    }
}

fn subscribe(plan: &Plan, client: usize) -> Story {
    let mut story = Story::default();
    let Some(mut me) = plan.connect(client, 1 + client as u8) else { return story };
    if me.ask("subscribe", r#"{"topic":"t"}"#).is_some_and(|ack| ack["success"] == true) {
        story.from = Some(stage(|stage| stage.sent));
    }
    story.end(me)
}

fn publish(plan: &Plan, client: usize) -> Story {
    let (mut story, publisher) = (Story::default(), client - SUBSCRIBERS);
    let me = plan.connect(client, 1 + client as u8);
    if let Some(mut me) = me {
        for number in 0..PUBLISHES {
            stage(|stage| stage.sent[publisher] += 1);
            let payload = format!(r#"{{"topic":"t","data":[{publisher},{number}]}}"#);
            let Some(ack) = me.ask("publish", &payload) else { break };
            let [matched, queued, dropped] =
                ["matched", "queued", "dropped"].map(|name| ack[name].as_u64().expect("a receipt"));
            story.receipts.push(Delivery { matched, queued, dropped });
        }
        if me.ask("elsewhere", "{}").is_some_and(|told| told == 7) {
            count("handlers woken by other threads");
        }
        has_published(plan);
        return story.end(me);
    }
    has_published(plan);
    story
}

fn has_published(plan: &Plan) {
    stage(|stage| stage.published += 1);
    wake(plan.operator());
}

fn come(plan: &Plan, client: usize) -> Story {
    let Some(me) = plan.connect(client, 200) else { return Story::default() };
    stage(|stage| stage.came += 1);
    wake(plan.operator());
    let story = Story::default().end(me);
    stage(|stage| stage.evicted += usize::from(story.closed == Some(4503)));
    wake(plan.operator());
    story
}

/// The embedding program: broadcasts from elsewhere, reloads, and drains in the end. The broadcasts' receipts.
fn operate(plan: &Plan) -> Vec<Option<Delivery>> {
    let mut answers = Vec::new();
    for number in 0..BROADCASTS {
        let (answer, answered) = oneshot::channel();
        let shard = number as usize % plan.shards;
        let order = Order::Broadcast { data: format!("[{},{number}]", u64::MAX).into_bytes(), answer };
        plan.inboxes[shard].push(order).expect("room in a shard that has not ended");
        answers.push(answered);
        let settings = Arc::new(Settings { edition: 1 + number as u32, ..plan.settings.clone() });
        plan.inboxes.iter().for_each(|inbox| inbox.reload(settings.clone()));
    }
    if !plan.drains_early {
        // Nobody else ends before.
        while stage(|stage| stage.published < PUBLISHERS || stage.came < NEWCOMERS || stage.evicted < NEWCOMERS - STAY)
        {
            sleep(plan.operator(), None);
        }
    }
    let drain = || plan.inboxes.iter().for_each(|inbox| inbox.drain(DrainOrder::within(60_000)));
    if plan.drains_early {
        drain();
    }
    let receipts = answers.into_iter().map(|answered| wait_for(plan.operator(), answered).ok()?.ok()).collect();
    if !plan.drains_early {
        drain();
    }
    receipts
}

fn judge(
    plan: &Plan,
    subscribers: &[Story],
    publishers: &[Story],
    newcomers: &[Story],
    broadcasts: &[Option<Delivery>],
) {
    let mut delivered = 0;
    for story in subscribers {
        for publisher in 0..PUBLISHERS as u64 {
            let of = story.received.iter().filter(|[from, _]| *from == publisher);
            let numbers: Vec<u64> = of.map(|[_, number]| *number).collect();
            delivered += numbers.len() as u64;
            assert!(numbers.is_sorted_by(|a, b| a + 1 == *b), "lost, twice or out of order: {numbers:?}");
            if let (Some(from), false) = (story.from, plan.drains_early) {
                let acked = publishers[publisher as usize].receipts.len() as u64;
                let expected = from[publisher as usize]..acked;
                assert!(
                    expected.into_iter().all(|number| numbers.contains(&number)),
                    "missed: {numbers:?} of {from:?}..{acked}"
                );
            }
        }
    }
    let receipts = publishers.iter().flat_map(|story| &story.receipts);
    let queued: u64 = receipts.clone().map(|receipt| receipt.queued).sum();
    assert!(
        receipts.clone().all(|receipt| receipt.matched == receipt.queued + receipt.dropped && receipt.dropped == 0)
    );
    if !plan.drains_early {
        assert_eq!(delivered, queued, "receipts and deliveries");
        assert_eq!(receipts.clone().count(), PUBLISHERS * PUBLISHES as usize, "each publish has its receipt");
        let evicted = newcomers.iter().filter(|story| story.closed == Some(4503)).count();
        assert_eq!(evicted, NEWCOMERS - STAY, "as many stay as may");
        count_many("evictions", evicted as u64);
        assert!(broadcasts.iter().all(Option::is_some), "each broadcast has its receipt");
    }
    let everyone = || subscribers.iter().chain(publishers).chain(newcomers);
    for number in 0..BROADCASTS {
        let got = everyone().map(|story| story.received.iter().filter(|at| **at == [u64::MAX, number]).count());
        assert!(got.clone().all(|times| times <= 1), "a broadcast arrives once");
        if let Some(receipt) = broadcasts[number as usize] {
            assert!(got.sum::<usize>() as u64 <= receipt.queued, "more than the receipt says");
        }
    }
    assert!(everyone().all(|story| matches!(story.closed, None | Some(1012 | 4503))), "an end without a reason");
    count_many("deliveries", delivered);
    count_many("receipts", receipts.count() as u64);
    count(if plan.drains_early { "early drains" } else { "late drains" });
}

const SUBSCRIBERS: usize = 2;
pub const PUBLISHERS: usize = 2;
const PUBLISHES: u64 = 3;
/// Of one address, of which so many may stay.
const NEWCOMERS: usize = 3;
const STAY: usize = 2;
const BROADCASTS: u64 = 2;
