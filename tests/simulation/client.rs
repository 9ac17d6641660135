//! A simulated client: reads what the server says and holds it against what was asked.
//!
//! Law: every request is answered exactly once, those of built-in commands in their order, and a stream ends only in a
//! way that somebody asked for. What a client sends is composed in [`crate::compose`].

use std::collections::{BTreeSet, HashMap, VecDeque};

use serde::Deserialize;
use serde_json::value::RawValue;
use tidewheel::Delivery;
use tidewheel::id::SessionId;
use tidewheel::io::sim::{ClientId, ClientState, Dice, World};

use crate::compose::data_text;
use crate::ledger::{NEVER, Period, Source, Step, Tail};
use crate::operator::OPERATED;
use crate::secure::Link;
use crate::terms::{End, Id, Leaving, Membership, Plan, Scene, TOPICS, Tamper, Token, Want};
use crate::wire::{self, BINARY, CLOSE, Deflater, Frame, PING, PONG, Reader, TEXT};

pub struct Client {
    pub id: ClientId,
    pub number: usize,
    pub plan: Plan,
    pub is_open: bool,
    pub leaving: Option<(Leaving, Step)>,
    pub end: Option<(End, Step)>,
    /// Never answers pings and never reads.
    pub mute: bool,
    pub to_send: VecDeque<u8>,
    /// It speaks TLS.
    pub link: Option<Box<Link>>,
    /// Bytes of the upgrade request that are still to be sent.
    pub head_left: usize,
    /// When it connected, in milliseconds, and how long it took over its request.
    pub connected_ms: u64,
    pub head_took_ms: u64,
    pub fin_sent: bool,
    pub was_stalled: bool,
    pub next_id: u64,
    pub ordered: VecDeque<(Id, Want)>,
    pub parked: HashMap<Id, Want>,
    pub pongs: VecDeque<Vec<u8>>,
    pub echoes: VecDeque<(u8, Vec<u8>)>,
    pub topics: [Membership; TOPICS.len()],
    pub token: Token,
    /// Has sent what it has to show.
    pub greeted: bool,
    pub authenticated: bool,
    pub everyone: Option<usize>,
    /// Has offered to compress.
    pub offers: bool,
    pub deflater: Option<Box<Deflater>>,
    pub reader: Reader,
    /// Replies of `said` that came before their handler's own.
    said: u32,
    pub errors: usize,
    /// Handlers that were given up.
    pub overdue: u64,
    /// Messages to its session, with the session, and those of the operator's topic.
    pub directs: Vec<(usize, SessionId)>,
    pub operated: Vec<usize>,
    parted: Option<u16>,
    closed: Option<u16>,
    /// A message that a canary holds back.
    kept: Option<Frame>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    reply_to: Option<&'a RawValue>,
    timestamp: u64,
}

#[derive(Deserialize)]
struct Message<'a> {
    topic: Option<&'a str>,
    #[serde(borrow)]
    data: &'a RawValue,
    publisher: Option<&'a str>,
}

#[derive(Deserialize)]
struct Direct<'a> {
    n: usize,
    session: &'a str,
}

#[derive(Deserialize)]
struct Data {
    n: usize,
}

#[derive(Deserialize)]
struct Ack<'a> {
    success: bool,
    message: &'a str,
    topic: Option<&'a str>,
}

#[derive(Deserialize)]
struct Receipt {
    matched: u64,
    queued: u64,
    dropped: u64,
}

#[derive(Deserialize)]
struct Failure<'a> {
    code: &'a str,
}

#[derive(Deserialize)]
struct AuthResult {
    authenticated: bool,
}

#[derive(Deserialize)]
struct Disconnect {
    code: u16,
    reconnect: bool,
}

#[derive(Deserialize)]
struct Listing<'a> {
    #[serde(borrow)]
    subscriptions: BTreeSet<&'a str>,
}

impl Client {
    pub fn new(id: ClientId, number: usize, plan: Plan) -> Self {
        Self {
            id,
            number,
            plan,
            is_open: false,
            leaving: None,
            end: None,
            mute: false,
            link: None,
            to_send: VecDeque::new(),
            head_left: 0,
            connected_ms: 0,
            head_took_ms: 0,
            fin_sent: false,
            was_stalled: false,
            next_id: 0,
            ordered: VecDeque::new(),
            parked: HashMap::new(),
            pongs: VecDeque::new(),
            echoes: VecDeque::new(),
            topics: [Membership::Out; TOPICS.len()],
            token: Token::Good,
            greeted: false,
            authenticated: false,
            everyone: None,
            offers: false,
            deflater: None,
            reader: Reader::default(),
            said: 0,
            errors: 0,
            overdue: 0,
            directs: Vec::new(),
            operated: Vec::new(),
            parted: None,
            closed: None,
            kept: None,
        }
    }

    /// Whether something is still to come that takes no time.
    pub fn is_owed(&self) -> bool {
        self.end.is_none() && self.is_open && self.parted.is_none() && self.is_owed_replies()
    }

    /// Whether it can still ask for things.
    pub fn may_ask(&self) -> bool {
        self.end.is_none() && self.leaving.is_none() && self.parted.is_none() && self.closed.is_none()
    }

    /// The code that it was parted from with.
    pub fn end_code(&self) -> Option<u16> {
        match self.end {
            Some((End::Parted(code), _)) => Some(code),
            _ => None,
        }
    }

    /// What the judge of delivery must know.
    pub fn tail(&self, drained_at: Step, operated: bool) -> Tail {
        let leaving = self.leaving.map_or(NEVER, |(_, step)| step);
        match self.end {
            None => Tail { whole_until: leaving, deaf_from: NEVER },
            Some((End::Wanted, step)) => Tail { whole_until: leaving, deaf_from: step },
            // Or its lifetime had ended.
            Some((End::Parted(1012), step)) if !operated => {
                Tail { whole_until: leaving.min(drained_at), deaf_from: step }
            }
            Some((End::Parted(_), step)) => Tail { whole_until: 0, deaf_from: step },
            Some((End::Cut | End::Refused, _)) => Tail { whole_until: 0, deaf_from: NEVER },
        }
    }

    /// Reads what has arrived and answers what must be answered.
    pub fn read(&mut self, world: &World, scene: &mut Scene, dice: &mut Dice) {
        if self.end.is_some() {
            return;
        }
        // The state first: what arrives after it was looked at is read the next time.
        let state = world.client_state(self.id);
        let arrived = match &mut self.link {
            None => world.client_take(self.id),
            Some(link) => {
                let (arrived, has_more) = link.take(world, self.id, !self.fin_sent && state == ClientState::Open);
                if !self.is_open && has_more {
                    // Its request left no sooner.
                    self.head_took_ms = world.now().monotonic_ms() - self.connected_ms;
                }
                arrived
            }
        };
        self.reader.feed(&arrived);
        if !self.is_open
            && let Some(status) = self.reader.response()
        {
            self.on_response(status, scene);
        }
        if self.is_open {
            while self.closed.is_none()
                && let Some(frame) = self.reader.frame()
            {
                self.on_tampered_frame(frame, scene, dice);
            }
        }
        if self.closed.is_some() {
            assert!(self.reader.rest().is_empty(), "bytes after the last word: {self:?}");
        }
        if state != ClientState::Open {
            self.on_end(state, world, scene);
        }
    }

    fn on_response(&mut self, status: u16, scene: &mut Scene) {
        let drains = scene.drained_at != NEVER;
        let full = status == 503 && (drains || scene.rules.tight);
        let slow = self.head_left > 0 || self.head_took_ms > 10_000 || scene.rules.rough;
        let late = status == 408 && slow;
        let crowded = matches!(status, 429 | 503) && scene.rules.operated || status == 503 && scene.rules.hurried;
        let expected = match self.plan {
            _ if crowded => true,
            Plan::Native | Plan::Echo => status == 101 || full || late,
            Plan::Bad(404) => status == 404 || full || late,
            Plan::Bad(bad) => status == bad || late || (status == 503 && drains),
            Plan::Unfinished => status == 408 || (status == 503 && drains),
        };
        assert!(expected, "answered {status}: {self:?}");
        if status != 101 {
            self.closed = Some(status);
            return;
        }
        self.is_open = true;
        if self.plan == Plan::Native && !scene.rules.auth {
            let period = self.everyone.expect("asked for when it connected");
            scene.ledger.periods[period].acked = scene.step;
        }
    }

    fn on_tampered_frame(&mut self, frame: Frame, scene: &mut Scene, dice: &mut Dice) {
        if scene.tamper.is_none() {
            return self.on_frame(frame, scene, dice);
        }
        let is_message = frame.payload.starts_with(br#"{"type":"message""#);
        let is_reply = frame.opcode == TEXT && frame.payload.windows(10).any(|ten| ten == br#""reply_to""#);
        match scene.tamper {
            Some(Tamper::LoseMessage) if is_message => scene.tamper = None,
            Some(Tamper::LoseReply) if is_reply => scene.tamper = None,
            Some(Tamper::RepeatMessage) if is_message => {
                scene.tamper = None;
                self.on_frame(frame.clone(), scene, dice);
                self.on_frame(frame, scene, dice);
            }
            Some(Tamper::RepeatReply) if is_reply => {
                scene.tamper = None;
                self.on_frame(frame.clone(), scene, dice);
                self.on_frame(frame, scene, dice);
            }
            Some(Tamper::SwapMessages) if is_message => match self.kept.take() {
                None => self.kept = Some(frame),
                Some(kept) => {
                    scene.tamper = None;
                    self.on_frame(frame, scene, dice);
                    self.on_frame(kept, scene, dice);
                }
            },
            Some(Tamper::LieInReceipt) => {
                let text = String::from_utf8_lossy(&frame.payload).into_owned();
                let lie = text.replace("\"matched\":1,\"queued\":1", "\"matched\":2,\"queued\":2");
                if lie != text && frame.opcode == TEXT {
                    scene.tamper = None;
                }
                let payload = if lie == text { frame.payload } else { lie.into_bytes() };
                self.on_frame(Frame { payload, ..frame }, scene, dice);
            }
            _ => self.on_frame(frame, scene, dice),
        }
    }

    fn on_frame(&mut self, frame: Frame, scene: &mut Scene, dice: &mut Dice) {
        match (frame.opcode, &self.plan) {
            (PING, _) => {
                assert!(scene.rules.timers, "a ping that nobody configured: {self:?}");
                if !self.mute && self.leaving.is_none() && self.parted.is_none() {
                    let mut pong = Vec::new();
                    wire::frame(&mut pong, 0x80 | PONG, &frame.payload, dice);
                    self.to_send.extend(pong);
                }
            }
            (PONG, _) => {
                let expected = self.pongs.pop_front();
                assert_eq!(expected.as_ref(), Some(&frame.payload), "a pong for no ping: {self:?}");
            }
            (CLOSE, _) => self.on_close(&frame.payload, scene, dice),
            // The echo endpoint speaks no JSON of its own but this.
            (TEXT, Plan::Echo) if frame.payload.starts_with(br#"{"type":"disconnect""#) => {
                self.on_text(&frame.payload, scene);
            }
            (opcode, Plan::Echo) => {
                let expected = self.echoes.pop_front();
                assert_eq!(expected, Some((opcode, frame.payload)), "an echo of something else: {self:?}");
            }
            (TEXT, _) => self.on_text(&frame.payload, scene),
            (BINARY, _) | (_, _) => panic!("a {frame:?}: {self:?}"),
        }
    }

    fn on_text(&mut self, text: &[u8], scene: &mut Scene) {
        let shown = || String::from_utf8_lossy(text).into_owned();
        assert!(self.parted.is_none(), "after `disconnect` came {}: {self:?}", shown());
        let said: Said = serde_json::from_slice(text).unwrap_or_else(|error| panic!("{error}: {}", shown()));
        assert!(said.timestamp > 0);
        match said.kind {
            "message" | "broadcast" => return self.on_message(&said, scene),
            "direct" => {
                let Direct { n, session } = payload(&said);
                assert!(self.directs.iter().all(|&(other, _)| other != n), "twice: {}", shown());
                return self.directs.push((n, session.parse().expect("a session")));
            }
            "said" => {
                assert_eq!(said.payload.get(), self.said.to_string(), "out of order: {}: {self:?}", shown());
                self.said += 1;
                return;
            }
            "token_expiring" if self.token == Token::Short => return,
            "disconnect" => {
                let Disconnect { code, reconnect } = payload(&said);
                assert_eq!(reconnect, matches!(code, 1011 | 1012 | 4000..=4499), "{}", shown());
                self.parted = Some(code);
                // What it has not answered by now is not carried out, unless its shard broke.
                if code != 1011 {
                    for (_, want) in &self.ordered {
                        if let &Want::Published(publish) = want {
                            scene.ledger.refused(publish);
                        }
                    }
                }
                return;
            }
            _ => {}
        }
        let id = match said.reply_to.map(RawValue::get) {
            None => Id::None,
            Some(text) => match text.strip_prefix("\"r").and_then(|text| text.strip_suffix('"')) {
                Some(number) => Id::Text(number.parse().expect("an id of ours")),
                None => Id::Number(text.parse().expect("an id of ours")),
            },
        };
        let want = match self.parked.remove(&id) {
            Some(want) => want,
            None => {
                let (expected, want) =
                    self.ordered.pop_front().unwrap_or_else(|| panic!("nobody asked for {}: {self:?}", shown()));
                assert_eq!(id, expected, "out of turn ({want:?} is next): {}: {self:?}", shown());
                want
            }
        };
        self.on_reply(&want, &said, scene);
    }

    fn on_message(&mut self, said: &Said, scene: &mut Scene) {
        let message: Message = payload(said);
        let Data { n } = serde_json::from_str(message.data.get()).expect("data of ours");
        if message.topic == Some(OPERATED) {
            assert!(self.operated.last().is_none_or(|&last| last < n), "twice or out of order: {n} of {OPERATED}");
            return self.operated.push(n);
        }
        assert_eq!(message.data.get(), data_text(n, &scene.rules), "data that is not byte for byte what was published");
        let publisher = match scene.ledger.publishes[n].source {
            Source::Client(number) if scene.rules.auth => Some(format!("u{number}")),
            _ => None,
        };
        assert_eq!(message.publisher, publisher.as_deref());
        let period = match message.topic {
            None => self.everyone.expect("a native client"),
            Some(name) => {
                let topic = TOPICS.iter().position(|&known| known == name).expect("a topic of ours");
                match self.topics[topic] {
                    Membership::In(period) | Membership::Leaving(period) | Membership::Unsure(period) => period,
                    Membership::Out => panic!("a message of `{name}` without a subscription: publish {n}: {self:?}"),
                }
            }
        };
        let Period { acked, asked, .. } = scene.ledger.periods[period];
        let by_handler = self.topics.iter().any(|topic| matches!(topic, Membership::Unsure(_)));
        assert!(acked != NEVER || by_handler, "a message before the ack of the subscription of {asked}: {self:?}");
        scene.ledger.got(period, n);
    }

    fn on_reply(&mut self, want: &Want, said: &Said, scene: &mut Scene) {
        let wrong =
            || -> ! { panic!("client {}: {want:?} was answered {} {}", self.number, said.kind, said.payload.get()) };
        if said.kind == "error" {
            let Failure { code } = payload(said);
            self.errors += 1;
            let refused = want.is_of_handler() && code == "limit_exceeded";
            match *want {
                Want::Error(expected) if expected == code => {}
                Want::Fails(expected) if expected == code || refused => {}
                Want::Posted(publish) if refused => scene.ledger.refused(publish),
                Want::Joined { topic, period } if refused => {
                    scene.ledger.periods[period].left = scene.step;
                    scene.ledger.periods[period].leaving = scene.ledger.periods[period].asked;
                    self.topics[topic] = Membership::Out;
                }
                Want::Left { topic, period } if refused => {
                    scene.ledger.periods[period].leaving = NEVER;
                    self.topics[topic] = Membership::In(period);
                }
                Want::Bye if refused => self.leaving = None,
                _ if refused => {}
                // Given up: what it did before that is done, or not.
                Want::Done | Want::Posted(_) | Want::Joined { .. } | Want::Left { .. } | Want::Fails(_)
                    if scene.rules.operated && code == "internal_error" =>
                {
                    self.overdue += 1;
                }
                _ => wrong(),
            }
            return;
        }
        let acks = |message: String, topic: Option<&str>| {
            if said.kind != "ack" {
                wrong();
            }
            let ack: Ack = payload(said);
            assert!(ack.success && ack.message == message && ack.topic == topic, "{want:?}: {}", said.payload.get());
        };
        let ledger = &mut scene.ledger;
        match (want, said.kind) {
            (Want::Pong, "pong") => {}
            (Want::Authenticated | Want::NotAuthenticated, "auth_result") => {
                let AuthResult { authenticated } = payload(said);
                assert!(authenticated || self.token == Token::Short || *want == Want::NotAuthenticated, "{self:?}");
                assert!(!authenticated || *want == Want::Authenticated, "{self:?}");
                if authenticated && !self.authenticated {
                    self.authenticated = true;
                    ledger.periods[self.everyone.expect("a native client")].acked = scene.step;
                }
            }
            (&Want::Subscribed { topic, period }, _) => {
                acks(format!("Subscribed to {}", TOPICS[topic]), Some(TOPICS[topic]));
                ledger.periods[period].acked = scene.step;
            }
            (&Want::Again { topic }, _) => acks(format!("Subscribed to {}", TOPICS[topic]), Some(TOPICS[topic])),
            (&Want::Unsubscribed { topic, period }, _) => {
                acks(format!("Unsubscribed from {}", TOPICS[topic]), Some(TOPICS[topic]));
                ledger.periods[period].left = scene.step;
                self.topics[topic] = Membership::Out;
            }
            (Want::Listing(expected), "subscriptions") => {
                let Listing { mut subscriptions } = payload(said);
                subscriptions.remove(OPERATED);
                assert_eq!(&subscriptions, expected, "{self:?}");
            }
            (&Want::Published(publish), _) => {
                let topic = TOPICS[ledger.publishes[publish].topic];
                acks(format!("Published to {topic}"), Some(topic));
                ledger.acked(publish, scene.step, receipt(payload(said)));
            }
            (&Want::Posted(publish), "posted") => ledger.acked(publish, scene.step, receipt(payload(said))),
            (Want::Done | Want::Bye, _) => acks("ok".into(), None),
            (&Want::Said { times }, _) => {
                acks("ok".into(), None);
                assert_eq!(std::mem::take(&mut self.said), times, "{self:?}");
            }
            (&Want::Joined { topic, period }, _) => {
                acks("ok".into(), None);
                ledger.periods[period].acked = scene.step;
                self.topics[topic] = Membership::In(period);
            }
            (&Want::Left { topic, period }, _) => {
                acks("ok".into(), None);
                ledger.periods[period].left = scene.step;
                self.topics[topic] = Membership::Out;
            }
            (&Want::Sum(expected), "sum") => {
                assert_eq!(said.payload.get(), format!("{{\"sum\":{expected}}}"));
            }
            _ => wrong(),
        }
    }

    fn on_close(&mut self, payload: &[u8], scene: &Scene, dice: &mut Dice) {
        let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
        assert!(std::str::from_utf8(payload.get(2..).unwrap_or_default()).is_ok(), "a reason that is not UTF-8");
        let drains = scene.drained_at != NEVER;
        let rules = &scene.rules;
        match (self.parted, self.leaving) {
            (Some(parted), leaving) => {
                assert_eq!(code, parted, "`disconnect` and the close frame differ: {self:?}");
                let asked = matches!(leaving, Some((Leaving::Asked(asked), _)) if asked == code);
                let known = match code {
                    1011 => rules.brittle,
                    1012 => drains || rules.operated,
                    4001 | 4002 => rules.timers,
                    4503 | 4504 => rules.operated,
                    4003 => self.token == Token::Short,
                    4501 => self.token == Token::Short && !self.authenticated,
                    4502 => rules.auth && !self.authenticated,
                    4008 => !rules.roomy || self.was_stalled,
                    4506 => self.errors >= rules.errors_max || rules.rough,
                    _ => false,
                };
                assert!(asked || known, "closed with {code}, which nobody asked for: {self:?}");
                if asked {
                    assert!(self.ordered.is_empty(), "closed with replies owed: {self:?}");
                }
            }
            (None, Some((Leaving::Close(own) | Leaving::Mistake(own), _))) => {
                assert_eq!(code, own, "closed with another code: {self:?}");
                // Handlers that take longer than the close timeout are given up.
                let owed = !self.ordered.is_empty() || !self.pongs.is_empty() || !self.echoes.is_empty();
                assert!(!owed, "closed with replies owed: {self:?}");
            }
            (None, _) => panic!("closed with {code}, without `disconnect`: {self:?}"),
        }
        self.closed = Some(code);
        if self.leaving.is_none() {
            let mut answer = Vec::new();
            wire::frame(&mut answer, 0x80 | CLOSE, &code.to_be_bytes(), dice);
            self.to_send.extend(answer);
        }
    }

    fn is_owed_replies(&self) -> bool {
        !self.ordered.is_empty() || !self.parked.is_empty() || !self.pongs.is_empty() || !self.echoes.is_empty()
    }

    fn on_end(&mut self, state: ClientState, world: &World, scene: &Scene) {
        let rules = &scene.rules;
        let drains = scene.drained_at != NEVER;
        let reset = matches!(self.leaving, Some((Leaving::Reset, _)));
        let faulted = world.client_faulted(self.id);
        let excused = faulted || reset || rules.rough || self.was_stalled || self.mute;
        let clean = state == ClientState::ServerClosed { clean: true };
        let end = match (self.is_open, self.parted, self.closed) {
            (false, ..) => {
                let fin = matches!(self.leaving, Some((Leaving::Fin, _)));
                // Nothing can be told to who has no keys.
                let told = self.closed.is_some() || self.link.as_ref().is_some_and(|link| link.is_handshaking());
                assert!(told || excused || fin || drains || rules.tight, "an end without an answer: {self:?}");
                End::Refused
            }
            (true, Some(code), Some(_)) => End::Parted(code),
            (true, None, Some(_)) => End::Wanted,
            // Without a last word it cannot be told from a stream that was cut between two frames.
            (true, _, None)
                if matches!(self.leaving, Some((Leaving::Fin, _)))
                    && clean
                    && !excused
                    && !self.is_owed_replies()
                    && self.reader.rest().is_empty() =>
            {
                End::Wanted
            }
            (true, _, None) => {
                let waits = !self.parked.is_empty();
                // Last words come after what is queued, and a socket buffer of a byte may take longer for that than a
                // close has. Then the server was sending all that time; one that pauses, or cuts sooner, has no excuse.
                let backlog_ms = world.client_backlog_ms(self.id);
                let is_too_slow = backlog_ms >= rules.close_timeout_ms;
                assert!(excused || waits || is_too_slow, "cut ({state:?}) after {backlog_ms} ms of sending: {self:?}");
                End::Cut
            }
        };
        self.end = Some((end, scene.step));
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { plan, is_open, leaving, end, mute, was_stalled, parted, closed, errors, topics, .. } = self;
        write!(f, "client {} ({plan:?}, open {is_open}, leaving {leaving:?}, end {end:?}, ", self.number)?;
        write!(f, "mute {mute}, stalled {was_stalled}, parted {parted:?}, closed {closed:?}, errors {errors}, ")?;
        write!(f, "topics {topics:?}, owed {:?} {:?} ", self.ordered, self.parked)?;
        let unread = String::from_utf8_lossy(&self.reader.rest()[..self.reader.rest().len().min(80)]).into_owned();
        write!(f, "pongs {} echoes {} unsent {} ", self.pongs.len(), self.echoes.len(), self.to_send.len())?;
        write!(f, "unread {unread:?})")
    }
}

fn payload<'a, T: Deserialize<'a>>(said: &Said<'a>) -> T {
    serde_json::from_str(said.payload.get())
        .unwrap_or_else(|error| panic!("{error}: {} {}", said.kind, said.payload.get()))
}

fn receipt(Receipt { matched, queued, dropped }: Receipt) -> Delivery {
    Delivery { matched, queued, dropped }
}
