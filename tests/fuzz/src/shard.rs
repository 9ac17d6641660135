//! Whole shards over a simulated kernel: what clients, the network and the embedding program do comes from bytes.
//! Law: whatever they do, what shards send is legal, and nothing is left of anybody once all have gone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::Duration;

use tidewheel::PublishOptions;
use tidewheel::app::auth::{Algorithm, AuthSettings, Authenticator, KeyMaterial, KeySettings, make_token};
use tidewheel::config::ClientLimitPolicy;
use tidewheel::conn::OutboundLimits;
use tidewheel::io::sim::{Dice, Faults, SimConfig};
use tidewheel::metrics::ShardMetrics;
use tidewheel::shard::settings::Settings;
use tidewheel::shard::{DrainOrder, Order};
use tidewheel::ws::{HandshakeLimits, Limits};
use tokio::sync::oneshot;

use crate::handlers::ON_PURPOSE;
use crate::script::Script;
use crate::stage::Stage;
use crate::wire;

/// The engine, and what is done with it.
pub fn try_bytes(bytes: &[u8]) {
    play(bytes);
}

/// The same; returns what the shards have counted.
fn play(bytes: &[u8]) -> Vec<Arc<ShardMetrics>> {
    pass_over_panics_on_purpose();
    let mut script = Script(bytes);
    let (seed, shards, faults) = (u64::from(script.word()), 1 + script.below(3), script.byte());
    let mut settings = Script(script.take(SETTINGS_BYTES));
    let settings = RefCell::new(&mut settings);
    let kernel = SimConfig { table: 6, buffers: 4, buffer_size: 512 };
    let stage = Stage::on_kernel(kernel, seed, shards, 2, |chosen| choose(chosen, &mut settings.borrow_mut()));
    if faults & 1 != 0 {
        stage.world.set_faults(Faults::swarm(&mut Dice::new(u64::from(faults))));
    }
    let (clients, silent, deflaters) = (Vec::new(), Vec::new(), HashMap::new());
    let mut run = Run { stage, clients, silent, deflaters, dice: Dice::new(seed) };
    while !script.is_over() {
        run.step(&mut script);
    }
    run.end()
}

/// Small bounds, so that a few moves reach them.
fn choose(settings: &mut Settings, script: &mut Script<'_>) {
    settings.connections_max = 1 + script.below(12) as u32;
    settings.slots = settings.connections_max;
    settings.handshake = HandshakeLimits { header_bytes_max: 200 + 4 * usize::from(script.byte()) };
    settings.messages = Limits { message_bytes_max: [64, 300, 1_500, 70_000][script.below(4)], ..settings.messages };
    settings.outbound = OutboundLimits {
        bytes_max: [200, 1_000, 20_000, 1 << 20][script.below(4)],
        frames_max: 1 + script.below(16) as u32,
        age_max_ms: [50, 5_000][script.below(2)],
    };
    let timers = script.byte();
    settings.idle_timeout_ms = if timers & 1 == 0 { 0 } else { 2_000 };
    settings.ping_interval_ms = if timers & 2 == 0 { 0 } else { 500 };
    settings.auth_required = timers & 4 != 0;
    settings.max_lifetime_ms = (timers & 8 != 0).then_some(10_000);
    settings.handler_timeout_ms = (timers & 16 != 0).then_some(1_000);
    settings.client_connections_max = (timers & 32 != 0).then_some(1);
    settings.address_connections_max = (timers & 64 != 0).then_some(4);
    settings.compression.enabled = true;
    settings.compression.client_context_takeover = timers & 128 != 0;
    settings.compression.min_size.0 = 1;
    settings.errors_max = 1 + script.below(20) as u16;
    settings.subscriptions_max = 1 + script.below(4);
    settings.parked_max = 1 + script.below(4);
    let policies = [ClientLimitPolicy::EvictOldest, ClientLimitPolicy::EvictIdle, ClientLimitPolicy::Reject];
    settings.client_limit_policy = policies[script.below(3)];
    settings.authenticator = Some(authenticator());
}

/// What has come of a client, as far as it tells apart what it gets.
#[derive(Clone, Copy, PartialEq)]
enum Talk {
    /// It has asked for an upgrade, and for nothing else.
    Asked,
    Upgraded,
    /// It talks as it likes: what it gets means nothing.
    Wild,
}

struct Run {
    stage: Stage,
    clients: Vec<Talk>,
    /// Clients that have said that they send no more.
    silent: Vec<usize>,
    /// Those that have sent compressed messages.
    deflaters: HashMap<usize, wire::Deflater>,
    dice: Dice,
}

impl Run {
    fn step(&mut self, script: &mut Script<'_>) {
        let shard = script.below(self.stage.shards.len());
        let client = script.byte();
        match script.below(24) {
            0 => self.join(shard, Talk::Wild),
            1..4 => self.join(shard, Talk::Asked),
            4..8 => self.turn(shard),
            8 => self.stage.tick(),
            9 => self.stage.world.advance(Duration::from_millis([1, 20, 300, 3_000, 70_000][script.below(5)])),
            10 => self.read_all(),
            11 => self.publish(shard, script),
            12 => self.stage.inboxes[shard].drain(DrainOrder::within([0, 500, 20_000][script.below(3)])),
            13 => self.restart(shard),
            14 => self.release(script.byte()),
            kind => {
                if !self.clients.is_empty() {
                    let client = usize::from(client) % self.clients.len();
                    self.client(client, kind, script);
                }
            }
        }
    }

    fn join(&mut self, shard: usize, talk: Talk) {
        if self.clients.len() < CLIENTS_MAX {
            let client = self.stage.newcomer(shard);
            self.clients.push(talk);
            if talk == Talk::Asked {
                let path = if client % 4 == 3 { "/echo" } else { "/ws" };
                let request = match client % 3 {
                    0 => wire::request(path),
                    1 => wire::request_with_offer(path, 9, false),
                    _ => wire::request_with_offer(path, 15, true),
                };
                self.stage.world.client_send(self.stage.id(client), request.as_bytes());
            }
        }
    }

    fn client(&mut self, client: usize, kind: usize, script: &mut Script<'_>) {
        let (world, id) = (self.stage.world.clone(), self.stage.id(client));
        match kind {
            15 => world.client_reset(id),
            16 => {
                world.client_shutdown(id);
                self.silent.push(client);
            }
            17 => world.client_stall(id, script.byte() & 1 == 0),
            _ if self.silent.contains(&client) => {}
            18 => {
                if self.clients[client] == Talk::Asked {
                    self.clients[client] = Talk::Wild; // its bytes may become part of its request
                }
                world.client_send(id, script.piece());
            }
            19 => {
                let mut out = Vec::new();
                wire::frame(&mut out, script.byte(), script.piece(), &mut self.dice);
                world.client_send(id, &out);
            }
            20 | 21 if !client.is_multiple_of(3) => {
                let (text, mut out) = (message(script), Vec::new());
                let deflater = self.deflaters.entry(client).or_default();
                let deflated = deflater.deflate(text.as_bytes(), kind == 21);
                wire::frame(&mut out, 0xc0 | wire::TEXT, &deflated, &mut self.dice);
                world.client_send(id, &out);
            }
            _ => {
                let text = message(script);
                self.stage.send(client, &[&text]);
            }
        }
    }

    fn turn(&mut self, shard: usize) {
        if !self.stage.done[shard] {
            self.stage.turn(shard);
        }
    }

    fn restart(&mut self, shard: usize) {
        if !self.stage.done[shard] {
            self.stage.restart(shard);
        }
    }

    fn release(&mut self, which: u8) {
        let waiting = self.stage.waiting.len();
        if waiting > 0 {
            self.stage.waiting.release(usize::from(which) % waiting, which & 0x80 == 0);
        }
    }

    fn publish(&mut self, shard: usize, script: &mut Script<'_>) {
        let (answer, _) = oneshot::channel();
        let data = format!("\"{}\"", "p".repeat(usize::from(script.byte()))).into_bytes();
        let order = match script.below(3) {
            0 => Order::Broadcast { data, answer },
            topic => {
                let options = PublishOptions::new().key("k");
                Order::Publish { topic: TOPICS[topic].into(), data, options, answer }
            }
        };
        let _ = self.stage.inboxes[shard].push(order); // the shard may have ended
    }

    /// What clients get is legal, which `wire` makes sure of.
    fn read_all(&mut self) {
        for client in 0..self.clients.len() {
            if self.clients[client] == Talk::Asked
                && let Some(status) = self.stage.response(client)
            {
                self.clients[client] = if status == 101 { Talk::Upgraded } else { Talk::Wild };
            }
            match self.clients[client] {
                Talk::Asked => {}
                Talk::Upgraded => {
                    for frame in self.stage.frames(client) {
                        check(&frame);
                    }
                }
                Talk::Wild => drop(self.stage.world.client_take(self.stage.id(client))),
            }
        }
    }

    /// All go, and nothing is left.
    fn end(mut self) -> Vec<Arc<ShardMetrics>> {
        let world = self.stage.world.clone();
        world.set_faults(Faults::default());
        (0..self.clients.len()).for_each(|client| world.client_stall(self.stage.id(client), false));
        if self.stage.done.contains(&true) {
            // A drain is for all: an order for the one that has ended would wait for ever on another that goes on.
            self.stage.inboxes.iter().for_each(|inbox| inbox.drain(DrainOrder::within(0)));
        }
        self.stage.rest();
        self.read_all();
        while self.stage.waiting.len() > 0 {
            self.release(0);
        }
        (0..self.clients.len()).for_each(|client| world.client_reset(self.stage.id(client)));
        self.stage.pass(END_MS);
        let Stage { shards, shared, done, .. } = &mut self.stage;
        // One that has drained counts no more for the others; who waits for that is refused when they end.
        let is_owed = |what| what == "receipts" && done.contains(&true);
        for (index, shard) in shards.iter_mut().enumerate() {
            let left: Vec<_> =
                shard.leftovers().into_iter().filter(|&(what, count)| count > 0 && !is_owed(what)).collect();
            assert!(left.is_empty(), "shard {index} has leftovers: {left:?}");
        }
        assert!(shared.registry.is_empty(), "topics are left in the registry");
        assert!(shared.clients.is_empty() && shared.addresses.is_empty(), "clients are listed that are not there");
        let counts = (shared.tally.connections(), shared.handshakes.load(Ordering::Relaxed));
        assert_eq!(counts, (0, 0), "connections and handshakes are counted that are not there");
        world.audit().unwrap_or_else(|left| panic!("{left}"));
        self.stage.metrics
    }
}

/// What a server says: JSON, a close code that may be sent, or an echo.
fn check(frame: &wire::Frame) {
    if frame.opcode == wire::CLOSE && !frame.payload.is_empty() {
        let code = u16::from_be_bytes(*frame.payload.first_chunk().expect("a code"));
        assert!(matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999), "close code {code}");
        assert!(std::str::from_utf8(&frame.payload[2..]).is_ok());
    }
}

/// A client's message: a command, a handler's, or anything.
fn message(script: &mut Script<'_>) -> String {
    let (topic, more) = (TOPICS[script.below(TOPICS.len())], script.byte());
    let id = more & 7;
    match script.below(16) {
        0..3 => format!(r#"{{"type":"subscribe","id":{id},"payload":{{"topic":"{topic}"}}}}"#),
        3 => format!(r#"{{"type":"unsubscribe","id":{id},"payload":{{"topic":"{topic}"}}}}"#),
        4..7 => {
            let (data, key) = ("d".repeat(usize::from(more) * 8), more & 3);
            let exclude = more & 8 != 0;
            format!(
                r#"{{"type":"publish","payload":{{"topic":"{topic}","data":"{data}","key":"{key}","exclude_self":{exclude}}}}}"#
            )
        }
        7 => r#"{"type":"ping"}"#.to_owned(),
        8 => format!(r#"{{"type":"list_subscriptions","id":"{id}"}}"#),
        9 => format!(r#"{{"type":"authenticate","payload":{{"token":"{}"}}}}"#, token(more & 3)),
        10 => format!(r#"{{"type":"refresh","payload":{{"token":"{}"}}}}"#, token(more & 3)),
        11 => format!(r#"{{"type":"wait","id":{id}}}"#),
        12 => format!(r#"{{"type":"panic_later","id":{id},"payload":{{"a":{id},"b":4}}}}"#),
        13 => format!(r#"{{"type":"post","id":{id},"payload":{{"topic":"{topic}","data":{{"n":1,"pad":"p"}}}}}}"#),
        14 => {
            let kind = ["join", "leave", "say", "bye", "fail", "panic"][usize::from(more) % 6];
            format!(
                r#"{{"type":"{kind}","payload":{{"topic":"{topic}","times":{more},"code":4{more:03},"a":1,"b":2}}}}"#
            )
        }
        _ => String::from_utf8_lossy(script.piece()).into_owned(),
    }
}

fn keys() -> KeySettings {
    let key = KeyMaterial::Secret(b"a secret of more than thirty-two bytes".to_vec());
    KeySettings { algorithm: Algorithm::HS256, key, id: None }
}

/// Made once: it takes longer than many moves.
fn authenticator() -> Arc<Authenticator> {
    thread_local! { static ONCE: RefCell<Option<Arc<Authenticator>>> = const { RefCell::new(None) } }
    let make = || {
        let settings = AuthSettings { keys: vec![keys()], ..AuthSettings::default() };
        Arc::new(Authenticator::new(&settings).expect("a good key"))
    };
    ONCE.with_borrow_mut(|once| Arc::clone(once.get_or_insert_with(make)))
}

/// A user's token; that of user 3 may do next to nothing, and soon expires.
fn token(user: u8) -> String {
    thread_local! { static MADE: RefCell<HashMap<u8, String>> = RefCell::default() }
    let make = || {
        let mut claims = serde_json::json!({"sub": format!("user {user}")});
        if user == 3 {
            claims["topics"] = serde_json::json!({"subscribe": ["a.>"], "publish": []});
            claims["exp"] = (SIMULATION_BEGIN_S + 30).into();
        }
        make_token(&claims, &keys()).expect("claims")
    };
    MADE.with_borrow_mut(|made| made.entry(user).or_insert_with(make).clone())
}

/// Handlers that panic on purpose are caught, which libFuzzer's hook does not wait for.
fn pass_over_panics_on_purpose() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !info.payload_as_str().is_some_and(|text| text.contains(ON_PURPOSE)) {
                usual(info);
            }
        }));
    });
}

const TOPICS: [&str; 4] = ["a.b", "a.c", "b", "not..a.topic"];
const SETTINGS_BYTES: usize = 11;
const CLIENTS_MAX: usize = 24;
/// Longer than a connection lingers, or accepting pauses.
const END_MS: u64 = 2_500;
/// When a simulated world begins, in Unix seconds.
const SIMULATION_BEGIN_S: u64 = 1_767_225_600;

#[cfg(test)]
mod tests {
    use tidewheel::metrics::{CloseReason, Deflated, Inflated};

    use super::*;

    /// Seeds that hit nothing would teach the fuzzer nothing.
    #[test]
    fn the_seeds_go_through_much_of_a_shard() {
        let home = crate::tests::home().join("seeds/shard");
        let seeds = crate::tests::files(&home).into_iter().map(|seed| std::fs::read(seed).unwrap());
        let metrics: Vec<_> = seeds.flat_map(|seed| play(&seed)).collect();
        let sum = |count: &dyn Fn(&ShardMetrics) -> u64| metrics.iter().map(|metrics| count(metrics)).sum::<u64>();
        let seen = [
            ("opened", sum(&|metrics| metrics.opened.get())),
            ("panics", sum(&|metrics| metrics.panics.iter().map(|panics| panics.get()).sum())),
            ("restarts", sum(&|metrics| metrics.restarts.get())),
            ("idle", sum(&|metrics| metrics.closed[CloseReason::Idle as usize].get())),
            ("deliveries", sum(&|metrics| metrics.messages_out.get())),
            ("compressed", sum(&|metrics| metrics.deflated[Deflated::Compressed as usize].get())),
            ("inflated", sum(&|metrics| metrics.inflated[Inflated::Inflated as usize].get())),
            ("not DEFLATE", sum(&|metrics| metrics.inflated[Inflated::Malformed as usize].get())),
        ];
        assert!(seen.iter().all(|&(_, count)| count > 0), "{seen:?}");
    }
}
