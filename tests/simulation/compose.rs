//! What simulated clients send: upgrade requests good and bad, requests, mistakes, and the ways to leave.

use std::collections::BTreeSet;

use tidewheel::app::auth::{Algorithm, KeyMaterial, KeySettings, make_token};
use tidewheel::io::sim::{Dice, World};

use crate::client::Client;
use crate::ledger::Source;
use crate::secure::Link;
use crate::terms::{ALLOWED, BROADCAST, Id, Leaving, Membership, Plan, Rules, Scene, TOPICS, Token, Want};
use crate::wire::{self, BINARY, CLOSE, PING, TEXT};

/// The `data` of publish `number`: as long as chance and the limits say, the same wherever it is asked for.
pub fn data_text(number: usize, rules: &Rules) -> String {
    let most = rules.message_bytes_max - 240;
    let mut dice = Dice::new(number as u64);
    let pad = if dice.chance(0.2) { dice.below(most) } else { dice.below(most.min(20)) };
    format!("{{\"n\":{number},\"pad\":\"{}\"}}", "x".repeat(pad))
}

impl Client {
    /// A newcomer with its upgrade request, and perhaps frames right behind it.
    pub fn connect(world: &World, dice: &mut Dice, number: usize, scene: &mut Scene) -> Self {
        let (plan, head) = upgrade_request(dice, &scene.rules);
        let mut client = Self::new(world.connect(), number, plan);
        if scene.rules.tls && dice.chance(0.6) {
            world.client_port(client.id, 1);
            client.link = Some(Box::new(Link::new(dice)));
        }
        client.offers = head.contains("permessage-deflate");
        client.head_left = head.len();
        client.connected_ms = world.now().monotonic_ms();
        client.to_send.extend(head.bytes());
        client.mute = scene.rules.timers && dice.chance(0.1);
        match client.plan {
            Plan::Native => client.everyone = Some(scene.ledger.asked(number, BROADCAST, scene.step)),
            Plan::Unfinished if dice.coin() => client.leaving = Some((Leaving::Fin, scene.step)),
            _ => {}
        }
        client.token = match dice.below(10) {
            0..=5 => Token::Good,
            6 => Token::Narrow,
            7 => Token::Short,
            8 => Token::Bad,
            _ => Token::None,
        };
        if matches!(client.plan, Plan::Native | Plan::Echo) && dice.chance(0.2) {
            client.compose(world, scene, dice);
        }
        client
    }

    /// Does one of the things clients do.
    pub fn act(&mut self, world: &World, scene: &mut Scene, dice: &mut Dice) {
        if dice.chance(scene.rules.unrest) {
            let stalled = dice.coin();
            self.was_stalled |= stalled;
            world.client_stall(self.id, stalled);
        }
        if self.is_open && self.may_ask() && self.to_send.len() + world.client_unsent(self.id) < UNSENT_MAX {
            self.compose(world, scene, dice);
            if dice.chance(scene.rules.unrest) {
                self.leave(world, scene, dice);
            }
        } else if !self.is_open && self.leaving.is_none() && dice.chance(0.01) {
            self.leaving = Some((if dice.coin() { Leaving::Fin } else { Leaving::Reset }, scene.step));
        }
        let all = dice.chance(0.6);
        let count = if all || self.to_send.is_empty() { self.to_send.len() } else { dice.part_of(self.to_send.len()) };
        self.transmit(world, count);
    }

    /// Hands bytes to the network, and what follows the last of them.
    pub fn transmit(&mut self, world: &World, count: usize) {
        if self.end.is_some() || self.fin_sent {
            return;
        }
        if let Some((Leaving::Reset, _)) = self.leaving {
            self.to_send.clear();
            return world.client_reset(self.id);
        }
        let bytes: Vec<u8> = self.to_send.drain(..count).collect();
        if self.head_left > 0 {
            self.head_left = self.head_left.saturating_sub(count);
            self.head_took_ms = world.now().monotonic_ms() - self.connected_ms;
        }
        match &mut self.link {
            None => world.client_send(self.id, &bytes),
            Some(link) => world.client_send(self.id, &link.say(&bytes)),
        }
        // What was said before there are keys is said when there are.
        let is_said = self.link.as_ref().is_none_or(|link| !link.is_handshaking());
        if self.to_send.is_empty() && is_said && matches!(self.leaving, Some((Leaving::Fin, _))) {
            self.fin_sent = true;
            self.link.iter_mut().for_each(|link| world.client_send(self.id, &link.bye()));
            world.client_shutdown(self.id);
        }
    }

    /// Some requests, in one piece.
    fn compose(&mut self, world: &World, scene: &mut Scene, dice: &mut Dice) {
        if scene.rules.auth && self.plan == Plan::Native {
            if !self.greeted {
                self.greet(world, scene, dice);
            } else if self.authenticated && dice.chance(0.02) {
                let token = self.make_token(world, dice);
                self.ask(Want::Authenticated, "refresh", &token, dice);
            }
            match self.token {
                Token::Bad => return,
                Token::None => return self.compose_unauthorized(dice),
                Token::Good | Token::Narrow | Token::Short => {}
            }
        }
        let many = if dice.chance(0.05) { 20 } else { 4 };
        for _ in 0..1 + dice.below(many) {
            if self.to_send.len() > UNSENT_MAX {
                return;
            }
            match self.plan {
                Plan::Native => self.compose_request(scene, dice),
                Plan::Echo => self.compose_echo(scene, dice),
                Plan::Bad(_) | Plan::Unfinished => {}
            }
            if dice.chance(0.1) {
                let payload: Vec<u8> = (0..dice.below(126)).map(|_| dice.bits() as u8).collect();
                self.control(PING, &payload, dice);
                self.pongs.push_back(payload);
            }
        }
    }

    /// Shows what it has to show, first of all.
    fn greet(&mut self, world: &World, scene: &Scene, dice: &mut Dice) {
        self.greeted = true;
        let token = self.make_token(world, dice);
        match self.token {
            Token::None => {}
            Token::Bad => {
                self.ask(Want::NotAuthenticated, "authenticate", &token, dice);
                self.leaving = Some((Leaving::Asked(4501), scene.step));
            }
            Token::Good | Token::Narrow | Token::Short => {
                self.ask(Want::Authenticated, "authenticate", &token, dice);
            }
        }
    }

    fn make_token(&self, world: &World, dice: &mut Dice) -> String {
        let topics: Vec<&str> = (0..TOPICS.len()).filter(|&topic| ALLOWED[topic]).map(|topic| TOPICS[topic]).collect();
        let mut claims = serde_json::json!({"sub": format!("u{}", self.number)});
        // Time jumps to deadlines when nothing else is to be done, so others have no end at all.
        if self.token == Token::Short {
            claims["exp"] = (world.now().unix_ms / 1000 + 1 + dice.below(20) as u64).into();
        }
        if self.token == Token::Narrow {
            claims["topics"] = serde_json::json!({"subscribe": topics, "publish": topics});
        }
        let mut token = make_token(&claims, &key()).expect("a token");
        if self.token == Token::Bad {
            token.insert(dice.below(token.len()), 'A');
        }
        format!("{{\"token\":\"{token}\"}}")
    }

    fn compose_unauthorized(&mut self, dice: &mut Dice) {
        match dice.below(4) {
            0 => self.ask(Want::Pong, "ping", "", dice),
            1 if dice.chance(0.2) => self.ask(Want::Error("unauthorized"), "subscribe", "{\"topic\":\"a\"}", dice),
            2 if dice.chance(0.2) => self.ask(Want::Error("unauthorized"), "add", "{}", dice),
            _ => {}
        }
    }

    fn is_forbidden(&self, topic: usize, rules: &Rules) -> bool {
        rules.auth && self.token == Token::Narrow && !ALLOWED[topic]
    }

    fn compose_echo(&mut self, scene: &Scene, dice: &mut Dice) {
        let most = scene.rules.message_bytes_max;
        let length = if dice.chance(0.3) { dice.below(most + 1) } else { dice.below(150) };
        let opcode = if dice.coin() { TEXT } else { BINARY };
        let payload: Vec<u8> =
            (0..length).map(|at| if opcode == TEXT { b'a' + (at % 26) as u8 } else { at as u8 }).collect();
        self.message(opcode, &payload, dice);
        self.echoes.push_back((opcode, payload));
    }

    fn compose_request(&mut self, scene: &mut Scene, dice: &mut Dice) {
        match dice.below(20) {
            0..=1 => self.ask(Want::Pong, "ping", "", dice),
            2..=5 => self.subscribe(scene, dice),
            6..=7 => self.unsubscribe(scene, dice),
            8 if !self.is_unsure() => {
                let held = |topic: &usize| matches!(self.topics[*topic], Membership::In(_));
                let names: BTreeSet<_> = (0..TOPICS.len()).filter(held).map(|topic| TOPICS[topic]).collect();
                self.ask(Want::Listing(names), "list_subscriptions", "", dice);
            }
            8..=14 if scene.rules.is_silent(dice) => {}
            8..=14 => {
                let exclude_self = dice.chance(0.2);
                let topic = dice.below(TOPICS.len());
                if self.is_forbidden(topic, &scene.rules) {
                    let payload = format!("{{\"topic\":\"{}\",\"data\":0}}", TOPICS[topic]);
                    return self.ask(Want::Error("forbidden"), "publish", &payload, dice);
                }
                let except = exclude_self.then_some(self.number);
                let number = scene.ledger.publish(Source::Client(self.number), topic, scene.step, except);
                let data = data_text(number, &scene.rules);
                let mut extra = if exclude_self { ",\"exclude_self\":true" } else { "" }.to_owned();
                if let Some(key) = scene.ledger.publishes[number].key {
                    extra.push_str(&format!(",\"key\":\"{key}\""));
                }
                let payload = format!("{{\"topic\":\"{}\",\"data\":{data}{extra}}}", TOPICS[topic]);
                self.ask(Want::Published(number), "publish", &payload, dice);
            }
            15 if dice.chance(0.5) => self.compose_error(scene, dice),
            _ => self.compose_handler(scene, dice),
        }
    }

    fn subscribe(&mut self, scene: &mut Scene, dice: &mut Dice) {
        let topic = dice.below(TOPICS.len());
        let payload = format!("{{\"topic\":\"{}\"}}", TOPICS[topic]);
        if self.is_unsure() {
            return;
        }
        if self.is_forbidden(topic, &scene.rules) {
            return self.ask(Want::Error("forbidden"), "subscribe", &payload, dice);
        }
        let held = self.topics.iter().filter(|held| matches!(held, Membership::In(_))).count();
        match self.topics[topic] {
            Membership::In(_) => self.ask(Want::Again { topic }, "subscribe", &payload, dice),
            Membership::Out if held >= scene.rules.subscriptions_max => {
                // The operator's subscription may be one, or not.
                if !scene.rules.operated && dice.chance(0.2) {
                    self.ask(Want::Error("limit_exceeded"), "subscribe", &payload, dice);
                }
            }
            Membership::Out => {
                let period = scene.ledger.asked(self.number, topic, scene.step);
                self.topics[topic] = Membership::In(period);
                self.ask(Want::Subscribed { topic, period }, "subscribe", &payload, dice);
            }
            Membership::Leaving(_) | Membership::Unsure(_) => {}
        }
    }

    fn unsubscribe(&mut self, scene: &mut Scene, dice: &mut Dice) {
        let topic = dice.below(TOPICS.len());
        let payload = format!("{{\"topic\":\"{}\"}}", TOPICS[topic]);
        if self.is_unsure() {
            return;
        }
        match self.topics[topic] {
            Membership::In(period) => {
                scene.ledger.periods[period].leaving = scene.step;
                self.topics[topic] = Membership::Leaving(period);
                self.ask(Want::Unsubscribed { topic, period }, "unsubscribe", &payload, dice);
            }
            Membership::Out if dice.chance(0.1) => {
                self.ask(Want::Error("not_found"), "unsubscribe", &payload, dice);
            }
            _ => {}
        }
    }

    fn compose_error(&mut self, scene: &Scene, dice: &mut Dice) {
        let long = format!("{{\"topic\":\"{}\"}}", "t".repeat(scene.rules.topic_length_max + 1));
        match dice.below(8) {
            0 => self.ask(Want::Error("unknown_message"), "nobody", "", dice),
            1 => self.ask(Want::Error("invalid_message"), "subscribe", "{}", dice),
            2 => self.ask(Want::Error("invalid_message"), "publish", "{\"topic\":\"a..b\",\"data\":1}", dice),
            3 => self.ask(Want::Error("too_large"), "subscribe", &long, dice),
            4 if scene.rules.auth => {
                self.ask(Want::Error("invalid_message"), "authenticate", "{\"token\":\"t\"}", dice)
            }
            4 => self.ask(Want::Error("unauthorized"), "refresh", "{\"token\":\"t\"}", dice),
            5 => self.ask(Want::Fails("invalid_message"), "add", "{\"a\":1}", dice),
            6 => {
                self.message(TEXT, b"{\"type\":", dice);
                self.ordered.push_back((Id::None, Want::Error("invalid_message")));
            }
            _ => {
                self.message(BINARY, b"{\"type\":\"\xff\"}", dice);
                self.ordered.push_back((Id::None, Want::Error("invalid_message")));
            }
        }
    }

    fn compose_handler(&mut self, scene: &mut Scene, dice: &mut Dice) {
        let topic = dice.below(TOPICS.len());
        let payload = format!("{{\"topic\":\"{}\"}}", TOPICS[topic]);
        match dice.below(9) {
            0 => {
                let (a, b) = (dice.below(100) as u64, dice.below(100) as u64);
                self.ask(Want::Sum(a + b), "add", &format!("{{\"a\":{a},\"b\":{b}}}"), dice);
            }
            1 => self.ask_later(Want::Done, "wait", "", dice),
            2 if dice.chance(0.3) => self.ask(Want::Fails("internal_error"), "panic", "{\"a\":1,\"b\":1}", dice),
            3 if dice.chance(0.3) => {
                self.ask_later(Want::Fails("internal_error"), "panic_later", "{\"a\":1,\"b\":1}", dice);
            }
            4 if dice.chance(0.3) => self.ask(Want::Fails("not_found"), "fail", "", dice),
            5 if scene.rules.is_silent(dice) => {}
            5 => {
                let number = scene.ledger.publish(Source::HandlerOf(self.number), topic, scene.step, None);
                let data = data_text(number, &scene.rules);
                let payload = format!("{{\"topic\":\"{}\",\"data\":{data}}}", TOPICS[topic]);
                self.ask_later(Want::Posted(number), "post", &payload, dice);
            }
            6 if !self.is_unsure() => match self.topics[topic] {
                Membership::Out => {
                    let period = scene.ledger.asked(self.number, topic, scene.step);
                    self.topics[topic] = Membership::Unsure(period);
                    self.ask_later(Want::Joined { topic, period }, "join", &payload, dice);
                }
                Membership::In(period) => {
                    scene.ledger.periods[period].leaving = scene.step;
                    self.topics[topic] = Membership::Unsure(period);
                    self.ask_later(Want::Left { topic, period }, "leave", &payload, dice);
                }
                _ => {}
            },
            7 => {
                let times = dice.below(4) as u32;
                // What is said between two handlers' replies cannot be told apart, so it is asked for one at a time.
                if !self.ordered.iter().any(|(_, want)| matches!(want, Want::Said { .. })) {
                    self.ask(Want::Said { times }, "say", &format!("{{\"times\":{times}}}"), dice);
                }
            }
            _ => {}
        }
    }

    /// Ends this client's part in one of many ways.
    pub fn leave(&mut self, world: &World, scene: &Scene, dice: &mut Dice) {
        if !self.may_ask() || !self.is_open {
            return;
        }
        let leaving = match dice.below(10) {
            0..=3 => {
                let codes = [None, Some(1000), Some(1001), Some(1014), Some(3000), Some(4999)];
                let code = codes[dice.below(codes.len())];
                let mut payload = code.map_or(Vec::new(), |code: u16| code.to_be_bytes().to_vec());
                if code.is_some() {
                    payload.extend_from_slice(&b"so long"[..dice.below(8)]);
                }
                self.control(CLOSE, &payload, dice);
                Leaving::Close(code.unwrap_or(1000))
            }
            4..=5 => Leaving::Fin,
            6..=7 => Leaving::Mistake(self.compose_mistake(scene, dice)),
            8 if self.plan == Plan::Native && !scene.rules.auth && dice.coin() => {
                self.ask(Want::NotAuthenticated, "authenticate", "{\"token\":\"t\"}", dice);
                Leaving::Asked(4501)
            }
            8 if self.plan == Plan::Native && (self.authenticated || !scene.rules.auth) => {
                self.ask(Want::Bye, "bye", "{\"code\":3999}", dice);
                Leaving::Asked(3999)
            }
            _ => Leaving::Reset,
        };
        self.leaving = Some((leaving, scene.step));
        if leaving == Leaving::Reset {
            self.transmit(world, 0);
        }
    }

    /// Something RFC 6455 forbids, and the close code for it; perhaps with more behind it.
    fn compose_mistake(&mut self, scene: &Scene, dice: &mut Dice) -> u16 {
        let mut out = Vec::new();
        let code = match dice.below(10) {
            0 => {
                out.extend_from_slice(b"\x81\x02hi");
                1002
            }
            1 => {
                wire::frame(&mut out, 0x83, b"", dice);
                1002
            }
            2 => {
                // The first reserved bit has a meaning where that may have been agreed.
                wire::frame(&mut out, if self.offers { 0xa1 } else { 0xc1 }, b"text", dice);
                1002
            }
            3 => {
                wire::frame(&mut out, 0x80, b"goes on", dice);
                1002
            }
            4 => {
                wire::frame(&mut out, PING, b"", dice);
                1002
            }
            5 => {
                wire::frame(&mut out, 0x89, &[7; 126], dice);
                1002
            }
            6 => {
                wire::frame(&mut out, 0x81, b"caf\xe9", dice);
                1007
            }
            7 => {
                wire::header(&mut out, 0x82, scene.rules.message_bytes_max as u64 + 1 + dice.below(1 << 30) as u64);
                out.extend([0; 4]);
                1009
            }
            8 => {
                wire::frame(&mut out, 0x88, &[3], dice);
                1002
            }
            _ => {
                wire::frame(&mut out, 0x88, &1005_u16.to_be_bytes(), dice);
                1002
            }
        };
        if dice.coin() {
            out.extend((0..dice.below(600)).map(|_| dice.bits() as u8));
        }
        self.to_send.extend(out);
        code
    }

    fn is_unsure(&self) -> bool {
        self.topics.iter().any(|topic| matches!(topic, Membership::Unsure(_)))
    }

    /// A request whose reply comes in its turn.
    fn ask(&mut self, want: Want, kind: &str, payload: &str, dice: &mut Dice) {
        let id = match dice.below(3) {
            0 => Id::None,
            _ => self.next_id(dice),
        };
        self.request(id, kind, payload, dice);
        self.ordered.push_back((id, want));
    }

    /// A request whose reply comes when it is ready.
    fn ask_later(&mut self, want: Want, kind: &str, payload: &str, dice: &mut Dice) {
        let id = self.next_id(dice);
        self.request(id, kind, payload, dice);
        self.parked.insert(id, want);
    }

    fn next_id(&mut self, dice: &mut Dice) -> Id {
        self.next_id += 1;
        if dice.coin() { Id::Number(self.next_id) } else { Id::Text(self.next_id) }
    }

    fn request(&mut self, id: Id, kind: &str, payload: &str, dice: &mut Dice) {
        let id = match id {
            Id::None => String::new(),
            Id::Number(number) => format!("\"id\":{number},"),
            Id::Text(number) => format!("\"id\":\"r{number}\","),
        };
        let payload = match payload {
            "" if dice.coin() => String::new(),
            "" => ",\"payload\":{}".into(),
            payload => format!(",\"payload\":{payload}"),
        };
        let text = format!("{{{id}\"type\":\"{kind}\"{payload}}}");
        let opcode = if dice.chance(0.1) { BINARY } else { TEXT };
        self.message(opcode, text.as_bytes(), dice);
    }

    fn message(&mut self, opcode: u8, payload: &[u8], dice: &mut Dice) {
        let mut out = Vec::new();
        let deflated = (self.reader.deflates() && dice.coin()).then(|| {
            let takeover = self.reader.takeover;
            self.deflater.get_or_insert_default().deflate(payload, takeover)
        });
        self.pongs.extend(match deflated {
            Some(deflated) => wire::message(&mut out, RSV1 | opcode, &deflated, dice),
            None => wire::message(&mut out, opcode, payload, dice),
        });
        self.to_send.extend(out);
    }

    fn control(&mut self, opcode: u8, payload: &[u8], dice: &mut Dice) {
        let mut out = Vec::new();
        wire::frame(&mut out, 0x80 | opcode, payload, dice);
        self.to_send.extend(out);
    }
}

/// The key that tokens are signed with.
pub fn key() -> KeySettings {
    KeySettings { algorithm: Algorithm::HS256, key: KeyMaterial::Secret(vec![7; 32]), id: None }
}

fn upgrade_request(dice: &mut Dice, rules: &Rules) -> (Plan, String) {
    let offer = dice.chance(0.4).then(|| (8 + dice.below(8) as u32, dice.coin()));
    let upgrade = |path| match offer {
        Some((window_bits, takeover)) => wire::request_with_offer(path, window_bits, takeover),
        None => wire::request(path),
    };
    let good = upgrade("/ws");
    let bad = |status, text: String| (Plan::Bad(status), text);
    match dice.below(40) {
        0..=27 => (Plan::Native, good),
        28..=31 => (Plan::Echo, upgrade("/echo")),
        32 => (Plan::Unfinished, good[..1 + dice.below(good.len() - 1)].into()),
        33 => bad(404, wire::request("/nowhere")),
        34 => bad(405, good.replace("GET", "POST")),
        35 => bad(426, good.replace("Version: 13", "Version: 12")),
        36 => bad(400, good.replace("Host: example.org\r\n", "")),
        37 => bad(400, "\u{16}\u{3}\u{1} this is not HTTP".into()),
        38 => bad(431, good.replace("Host", &format!("X-Filler: {}\r\nHost", "x".repeat(rules.header_bytes_max)))),
        _ => bad(414, wire::request(&format!("/{}", "x".repeat(rules.header_bytes_max)))),
    }
}

const RSV1: u8 = 0x40;
/// A client that has so many bytes on their way asks for nothing more.
const UNSENT_MAX: usize = 3000;
