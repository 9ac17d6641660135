//! Crowds: few clients with many connections each, under every policy, on shards that are late and sockets that break, with
//! limits on attempts and messages, and a drain that may come at any time.
//!
//! Law: after every turn the total is what the pools hold. Nobody goes who need not: who is told to go is told why. Whoever
//! stays is among the newest of its client: of two of which one was acknowledged before the other asked, the first never
//! stays where the second had to go. And when a client asks often enough, it has exactly as many as it may.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde_json::Value;
use tidewheel::app::ConnectionAttempts;
use tidewheel::app::auth::{AuthSettings, Authenticator, make_token};
use tidewheel::config::{AttemptRate, ClientLimitPolicy};
use tidewheel::fixed::Rate;
use tidewheel::id::ShardId;
use tidewheel::io::sim::{ClientState, Dice, Faults, Sim, SimConfig};
use tidewheel::shard::{DrainOrder, Shard};

use crate::compose::key;
use crate::for_each_seed;
use crate::stage::Stage;
use crate::wire::{self, CLOSE, TEXT};

#[test]
fn limits_of_clients_hold_whatever_happens() {
    // These runs are long, so few of the seeds have one.
    for_each_seed("limits_of_clients_hold_whatever_happens", |seed| {
        if seed.is_multiple_of(100) {
            Crowd::new(seed).run();
        }
    });
}

/// How far one connection is, as its client knows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stand {
    /// Has asked for the upgrade.
    Asking,
    /// Has asked to be let in.
    Entering,
    In,
    /// Was refused, told to go, or has gone.
    Out,
}

#[derive(Debug)]
struct Member {
    /// Number of the stage's client.
    number: usize,
    user: usize,
    stand: Stand,
    /// One of the addresses that are used again and again.
    from: Option<usize>,
    /// When it asked to be let in, and when it was last acknowledged: steps of the harness.
    asked: u64,
    acked: u64,
    /// Told to make room.
    evicted: bool,
    /// A refresh is on its way.
    refreshing: bool,
    answered: u64,
    upgraded_ms: u64,
}

struct Crowd {
    dice: Dice,
    stage: Stage,
    policy: ClientLimitPolicy,
    most: usize,
    attempts: Option<AttemptRate>,
    messages: Option<Rate>,
    step: u64,
    members: Vec<Member>,
    /// Attempts that were let through, by address.
    let_through: [u64; ADDRESSES],
    drains: bool,
}

const USERS: usize = 3;
const ADDRESSES: usize = 2;

impl Crowd {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0xc2_0a3d);
        use ClientLimitPolicy::{EvictIdle, EvictOldest, Reject};
        let policy = [EvictOldest, EvictIdle, Reject][dice.below(3)];
        let most = 1 + dice.below(4);
        let attempts = dice.chance(0.3).then(|| AttemptRate { per_second: 50, burst: 5, ..AttemptRate::default() });
        let messages = dice.chance(0.3).then_some(Rate { per_second: 20, burst: 4 });
        let kernel = SimConfig { table: 256, buffers: 1 + dice.below(8), buffer_size: 256 + dice.below(1024) };
        let (shards, bus_bound) = (1 + dice.below(4), 1 + dice.below(8));
        let stage = Stage::on_kernel(kernel, seed, shards, bus_bound, |settings| {
            let keys = AuthSettings { keys: vec![key()], ..AuthSettings::default() };
            settings.authenticator = Some(Arc::new(Authenticator::new(&keys).expect("a good key")));
            (settings.client_connections_max, settings.client_limit_policy) = (Some(most as u32), policy);
            settings.attempts = attempts.as_ref().map(|rate| Arc::new(ConnectionAttempts::new(rate)));
            (settings.connections_max, settings.slots) = (1000, 256);
            (settings.auth_required, settings.auth_timeout_ms) = (true, 1 << 30);
            settings.handshake_timeout_ms = 1 << 30;
            settings.rates.messages = messages;
        });
        let faults = Faults { reset: 0.0, clock_jump: 0.0, unix_jump: 0.0, stall: 0.0, ..Faults::swarm(&mut dice) };
        stage.world.set_faults(Faults { send_fails: 0.0, accept_fails: 0.0, ..faults });
        let (members, let_through) = (Vec::new(), [0; ADDRESSES]);
        Self { dice, stage, policy, most, attempts, messages, step: 0, members, let_through, drains: false }
    }

    fn run(mut self) {
        let steps = 200 + self.dice.below(1500);
        let drain_at = if self.dice.chance(0.3) { self.dice.below(steps) } else { usize::MAX };
        for step in 0..steps {
            if step == drain_at {
                self.drain();
            }
            match self.dice.below(10) {
                0 if self.members.iter().filter(|member| member.stand != Stand::Out).count() < 25 => self.connect(),
                1..=4 if !self.members.is_empty() => {
                    let member = self.dice.below(self.members.len());
                    self.act(member);
                }
                _ => self.turn(),
            }
        }
        self.stage.world.set_faults(Faults::default());
        self.settle();
        if !self.drains {
            self.fill_up();
            self.judge();
            self.drain();
        }
        self.settle();
        self.end();
    }

    fn connect(&mut self) {
        let (user, from) = (self.dice.below(USERS), self.dice.below(ADDRESSES));
        self.connect_from(user, Ipv4Addr::new(10, 0, 0, from as u8));
        self.members.last_mut().expect("just connected").from = Some(from);
    }

    fn connect_from(&mut self, user: usize, address: Ipv4Addr) {
        let shard = self.dice.below(self.stage.shards.len());
        let number = self.stage.newcomer_from(IpAddr::V4(address), shard);
        let (asked, acked) = (self.step, u64::MAX);
        let stand = if self.drains { Stand::Out } else { Stand::Asking };
        self.members.push(Member {
            number,
            user,
            stand,
            from: None,
            asked,
            acked,
            evicted: false,
            refreshing: false,
            answered: 0,
            upgraded_ms: 0,
        });
    }

    /// One shard's turn, or a step of the network.
    fn turn(&mut self) {
        self.step += 1;
        let shard = self.dice.below(self.stage.shards.len());
        if self.stage.done[shard] || self.stage.world.asleep(ShardId(shard as u16)) {
            self.stage.world.step();
        } else {
            self.stage.turn(shard);
        }
        let of_shard = |shard: &mut Shard<Sim>| {
            let left = shard.leftovers();
            left.into_iter().find(|&(what, _)| what == "connections").expect("counted").1
        };
        let held: usize = self.stage.shards.iter_mut().map(of_shard).sum();
        let total = self.stage.shared.tally.connections();
        assert_eq!(total, held, "the total and what the pools hold");
    }

    /// A client reads, and perhaps does something.
    fn act(&mut self, member: usize) {
        self.step += 1;
        self.read(member);
        let chance = self.dice.below(40);
        let Member { number, stand, refreshing, .. } = self.members[member];
        if stand != Stand::In {
            return;
        }
        match chance {
            0 => self.stage.world.client_send(self.stage.id(number), &closing(1000)),
            1 => self.stage.world.client_reset(self.stage.id(number)),
            2..=5 if !refreshing => return self.ask(member, "refresh"),
            6..=12 => return self.stage.send(number, &[r#"{"id":"ping","type":"ping"}"#]),
            _ => return,
        }
        self.members[member].stand = Stand::Out;
    }

    fn ask(&mut self, member: usize, kind: &str) {
        let Member { number, user, .. } = self.members[member];
        let token = make_token(&serde_json::json!({"sub": format!("user {user}")}), &key()).expect("a token");
        let text = format!(r#"{{"id":"{kind}","type":"{kind}","payload":{{"token":"{token}"}}}}"#);
        self.stage.send(number, &[&text]);
        self.members[member].refreshing = true;
    }

    fn read(&mut self, at: usize) {
        let Member { number, stand, .. } = self.members[at];
        if stand == Stand::Out {
            return;
        }
        let state = self.stage.world.client_state(self.stage.id(number));
        if stand == Stand::Asking {
            match self.stage.response(number) {
                None => {}
                Some(101) => {
                    let member = &mut self.members[at];
                    (member.stand, member.asked) = (Stand::Entering, self.step);
                    member.upgraded_ms = self.stage.world.now().monotonic_ms();
                    if let (Some(from), Some(rate)) = (member.from, &self.attempts) {
                        self.let_through[from] += 1;
                        let most = u64::from(rate.burst) + member.upgraded_ms * u64::from(rate.per_second) / 1000;
                        assert!(self.let_through[from] <= most, "too many attempts were let through");
                    }
                    self.ask(at, "authenticate");
                }
                Some(status) => {
                    let known = (status == 503 && self.drains) || (status == 429 && self.attempts.is_some());
                    assert!(known, "answered {status}");
                    self.members[at].stand = Stand::Out;
                }
            }
        }
        if self.members[at].stand != Stand::Asking {
            for frame in self.stage.frames(number) {
                match frame.opcode {
                    TEXT => self.on_message(at, &serde_json::from_slice(&frame.payload).expect("JSON")),
                    CLOSE => {
                        let code = u16::from_be_bytes(*frame.payload.first_chunk().expect("a code"));
                        self.stage.world.client_send(self.stage.id(number), &closing(code));
                        assert_eq!(self.members[at].stand, Stand::Out, "closed with {code} and not told why");
                    }
                    other => panic!("opcode {other}"),
                }
            }
        }
        if state != ClientState::Open && self.members[at].stand != Stand::Out {
            assert!(self.drains, "cut: {:?}", self.members[at]);
            self.members[at].stand = Stand::Out;
        }
    }

    fn on_message(&mut self, at: usize, said: &Value) {
        let member = &mut self.members[at];
        assert_ne!(member.stand, Stand::Out, "{said} after it was told to go");
        match said["type"].as_str() {
            Some("auth_result") if said["payload"]["authenticated"] == true => {
                (member.stand, member.acked, member.refreshing) = (Stand::In, self.step, false);
                member.answered += 1;
            }
            Some("auth_result") => {
                let error = said["payload"]["error"].as_str().expect("why");
                assert!(error.contains("limit_exceeded") && self.policy == ClientLimitPolicy::Reject, "{said}");
                assert_eq!(member.stand, Stand::Entering, "{said}");
            }
            Some("pong") => member.answered += 1,
            Some("error") => {
                assert!(said["payload"]["code"] == "rate_limited" && self.messages.is_some(), "{said}");
                member.refreshing &= said["reply_to"] != "refresh";
            }
            Some("disconnect") => {
                match said["payload"]["code"].as_u64() {
                    Some(4503) => {
                        assert_ne!(self.policy, ClientLimitPolicy::Reject);
                        member.evicted = true;
                    }
                    Some(4501) => assert_eq!((self.policy, member.acked), (ClientLimitPolicy::Reject, u64::MAX)),
                    Some(1012) => assert!(self.drains, "{said}"),
                    _ => panic!("{said}"),
                }
                member.stand = Stand::Out;
            }
            _ => panic!("{said}"),
        }
        if let Some(Rate { per_second, burst }) = self.messages {
            let since_ms = self.stage.world.now().monotonic_ms() - member.upgraded_ms;
            assert!(member.answered <= u64::from(burst) + since_ms * u64::from(per_second) / 1000 + 1, "too many");
        }
    }

    /// Everybody is heard until nothing more is going to happen.
    fn settle(&mut self) {
        for _ in 0..SETTLE_ROUNDS {
            (0..40).for_each(|_| self.turn());
            self.stage.rest();
            (0..self.members.len()).for_each(|member| self.read(member));
        }
    }

    /// One client after the other asks until it must have all that it may.
    fn fill_up(&mut self) {
        for user in 0..USERS {
            for nth in 0..=self.most {
                self.step += 1;
                self.connect_from(user, Ipv4Addr::new(10, 1, user as u8, nth as u8));
                (0..3).for_each(|_| {
                    self.stage.rest();
                    (0..self.members.len()).for_each(|member| self.read(member));
                });
            }
        }
    }

    fn judge(&self) {
        for user in 0..USERS {
            let of_user = || self.members.iter().filter(|member| member.user == user);
            let stay: Vec<&Member> = of_user().filter(|member| member.stand == Stand::In).collect();
            assert_eq!(stay.len(), self.most, "of user {user} under {:?}: {stay:?}", self.policy);
            for evicted in of_user().filter(|member| member.evicted) {
                let older = stay.iter().find(|member| member.acked < evicted.asked);
                assert!(older.is_none(), "{older:?} stayed in place of {evicted:?}");
            }
        }
        assert_eq!(self.stage.shared.clients.len(), USERS);
    }

    fn drain(&mut self) {
        self.drains = true;
        let wait_ms = [0, 200][self.dice.below(2)];
        let order = DrainOrder { wait_ms, spread_ms: 1_000, deadline_ms: 5_000, reconnects_per_second: 10 };
        self.stage.inboxes.iter().for_each(|inbox| inbox.drain(order));
    }

    fn end(mut self) {
        for _ in 0..200 {
            if self.stage.done.iter().all(|&done| done) {
                break;
            }
            self.stage.pass(100);
            (0..self.members.len()).for_each(|member| self.read(member));
        }
        assert!(self.stage.done.iter().all(|&done| done), "the drain does not end");
        assert!(self.stage.shared.clients.is_empty(), "clients are listed that are not there");
        assert_eq!(Arc::strong_count(&self.stage.shared.handshakes), 1, "handshakes that nobody makes");
    }
}

fn closing(code: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    wire::frame(&mut frame, 0x80 | CLOSE, &code.to_be_bytes(), &mut Dice::new(1));
    frame
}

const SETTLE_ROUNDS: usize = 4;
