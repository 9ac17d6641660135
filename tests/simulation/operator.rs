//! An operator at work while a run goes on: reloads, questions about connections, and what is done to sessions.
//!
//! Law: a message to a session reaches the client of that session and no other, once; a client has one session. Of the
//! topic that only the operator subscribes to, a session gets what is published while it is subscribed, in order.

use std::collections::HashMap;
use std::sync::Arc;

use tidewheel::app::context::Refused;
use tidewheel::config::ClientLimitPolicy;
use tidewheel::id::SessionId;
use tidewheel::io::sim::Dice;
use tidewheel::shard::errands::{Addressees, Disconnect, Errand, Reached};
use tidewheel::shard::queries::{ConnectionSort, Connections, ConnectionsQuery, SessionReport};
use tidewheel::shard::settings::Settings;
use tidewheel::shard::{Inbox, Order};
use tidewheel::{Delivery, OutgoingMessage, PublishOptions};
use tokio::sync::oneshot;

use crate::client::Client;
use crate::ledger::{NEVER, Step, Tail};

/// The topic that clients do not know of.
pub const OPERATED: &str = "op";

type Answered<T> = oneshot::Receiver<Result<T, Refused>>;

/// What an operator has asked for, and what came of it.
#[derive(Debug)]
pub struct Operator {
    settings: Settings,
    known: Vec<SessionId>,
    looks: Vec<Answered<Connections>>,
    reports: Vec<(SessionId, Answered<Option<SessionReport>>)>,
    errands: Vec<(Answered<Reached>, What)>,
    posts: Vec<Answered<Delivery>>,
    posted: Vec<Post>,
    /// Messages to sessions: to whom, and on how many queues they were put by when.
    directs: Vec<(SessionId, Option<(u64, Step)>)>,
    spans: HashMap<SessionId, Vec<Span>>,
    /// What has been done, to see that it is.
    pub done: u64,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Direct(usize),
    Disconnect,
    Subscribe(SessionId),
    Unsubscribe(SessionId),
}

/// A publish to [`OPERATED`].
#[derive(Debug)]
struct Post {
    sent: Step,
    acked: Step,
    queued: u64,
}

/// From an order to subscribe to the answer of the order to unsubscribe; all but the first are `NEVER` until then.
#[derive(Clone, Copy, Debug)]
struct Span {
    asked: Step,
    joined: Step,
    leaving: Step,
    left: Step,
}

impl Operator {
    pub fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            known: Vec::new(),
            looks: Vec::new(),
            reports: Vec::new(),
            errands: Vec::new(),
            posts: Vec::new(),
            posted: Vec::new(),
            directs: Vec::new(),
            spans: HashMap::new(),
            done: 0,
        }
    }

    /// Does one of the things operators do.
    pub fn act(&mut self, inboxes: &[Arc<Inbox>], step: Step, dice: &mut Dice) {
        let session = (!self.known.is_empty()).then(|| self.known[dice.below(self.known.len())]);
        match (dice.below(14), session) {
            (0, _) => self.reload(inboxes, dice),
            // A shard answers so many at a time and refuses more.
            (1..=2, _) if self.looks.len() < 4 => self.look(&inboxes[dice.below(inboxes.len())], dice),
            (3..=5, _) => self.post(&inboxes[0], step),
            (6, Some(id)) => {
                let (answer, answered) = oneshot::channel();
                inboxes[id.shard().index()].push(Order::Session { id, answer }).expect("far fewer than fit");
                self.reports.push((id, answered));
            }
            (7..=8, Some(session)) => {
                let payload = serde_json::json!({"n": self.directs.len(), "session": session.to_string()});
                let message = OutgoingMessage::new("direct", &payload).expect("JSON");
                self.directs.push((session, None));
                self.run(inboxes, session, Errand::Send(message), What::Direct(self.directs.len() - 1));
            }
            (9, Some(session)) if dice.chance(0.2) => {
                self.run(inboxes, session, Errand::Disconnect(Disconnect::default()), What::Disconnect);
            }
            (10..=12, Some(session)) => {
                let spans = self.spans.entry(session).or_default();
                if spans.last().is_none_or(|span| span.left != NEVER) {
                    spans.push(Span { asked: step, joined: NEVER, leaving: NEVER, left: NEVER });
                    self.run(inboxes, session, Errand::Subscribe { topic: OPERATED.into() }, What::Subscribe(session));
                }
            }
            (13, Some(session)) => {
                if let Some(span) = self.spans.get_mut(&session).and_then(|spans| spans.last_mut())
                    && span.joined != NEVER
                    && span.leaving == NEVER
                {
                    span.leaving = step;
                    let errand = Errand::Unsubscribe { topic: OPERATED.into() };
                    self.run(inboxes, session, errand, What::Unsubscribe(session));
                }
            }
            _ => {}
        }
    }

    fn run(&mut self, inboxes: &[Arc<Inbox>], session: SessionId, errand: Errand, what: What) {
        let (answer, answered) = oneshot::channel();
        let order = Order::Run { errand, addressees: Addressees::Session(session), answer };
        inboxes[session.shard().index()].push(order).expect("far fewer orders than the inbox holds");
        self.errands.push((answered, what));
    }

    fn look(&mut self, inbox: &Inbox, dice: &mut Dice) {
        use ConnectionSort::{Bytes, Idle, Pending, Rtt, Since};
        let sort = [None, Some(Pending), Some(Idle), Some(Rtt), Some(Bytes), Some(Since)][dice.below(6)];
        let (answer, answered) = oneshot::channel();
        let query = ConnectionsQuery { sort, limit: 1 + dice.below(5) as u32, ..ConnectionsQuery::default() };
        inbox.push(Order::Connections { query, answer }).expect("far fewer orders than the inbox holds");
        self.looks.push(answered);
    }

    fn post(&mut self, inbox: &Inbox, step: Step) {
        let (answer, answered) = oneshot::channel();
        let data = format!("{{\"n\":{}}}", self.posted.len()).into_bytes();
        let options = PublishOptions::new();
        inbox.push(Order::Publish { topic: OPERATED.into(), data, options, answer }).expect("as above");
        self.posted.push(Post { sent: step, acked: NEVER, queued: 0 });
        self.posts.push(answered);
    }

    /// Timers and limits that clients need not know of; the bounds only get tighter.
    fn reload(&mut self, inboxes: &[Arc<Inbox>], dice: &mut Dice) {
        use ClientLimitPolicy::{EvictIdle, EvictOldest, Reject};
        let settings = &mut self.settings;
        match dice.below(11) {
            0 => settings.idle_timeout_ms = [0, 1_000, 20_000][dice.below(3)],
            1 => settings.ping_interval_ms = [0, 100, 7_000][dice.below(3)],
            2 => settings.pong_timeout_ms = [50, 3_000][dice.below(2)],
            3 => settings.max_lifetime_ms = [None, Some(500), Some(20_000)][dice.below(3)],
            4 => settings.outbound.frames_max = 1 + dice.below(settings.outbound.frames_max as usize) as u32,
            5 => settings.outbound.age_max_ms = [20, 500, 10_000][dice.below(3)],
            6 => settings.address_connections_max = [None, Some(1), Some(6)][dice.below(3)],
            7 => settings.closed_sessions_kept = dice.below(10),
            8 => settings.handler_timeout_ms = [None, Some(1), Some(300)][dice.below(3)],
            9 => settings.handshakes_max = 1 + dice.below(5) as u32,
            _ => settings.client_limit_policy = [EvictOldest, EvictIdle, Reject][dice.below(3)],
        }
        // Some shards learn of it later.
        let settings = Arc::new(settings.clone());
        let first = dice.below(inboxes.len());
        (0..inboxes.len()).for_each(|at| inboxes[(first + at) % inboxes.len()].reload(settings.clone()));
    }

    /// Takes the answers that have come.
    pub fn read(&mut self, step: Step) {
        let Self { looks, reports, errands, posts, posted, known, directs, spans, done, .. } = self;
        let mut found = Vec::new();
        looks.retain_mut(|look| take(look).is_none_or(|connections| (found.push(connections), false).1));
        for Connections { matched, connections } in found {
            assert!(connections.len() as u64 <= matched);
            known.extend(connections.iter().map(|state| state.session_id));
            *done += 1;
        }
        reports.retain_mut(|(id, report)| match take(report) {
            None => true,
            Some(report) => {
                assert!(report.is_none_or(|report| report.state.session_id == *id), "a report of another session");
                false
            }
        });
        errands.retain_mut(|(answered, what)| {
            let Some(reached) = take(answered) else { return true };
            assert!(reached.matched <= 1 && reached.done <= reached.matched, "{what:?}: {reached:?}");
            *done += reached.done;
            match *what {
                What::Direct(number) => directs[number].1 = Some((reached.done, step)),
                What::Disconnect => {}
                What::Subscribe(session) => {
                    let span = spans.get_mut(&session).and_then(|spans| spans.last_mut()).expect("asked for");
                    match reached.done {
                        0 => (span.leaving, span.left) = (span.asked, step),
                        _ => span.joined = step,
                    }
                }
                What::Unsubscribe(session) => {
                    spans.get_mut(&session).and_then(|spans| spans.last_mut()).expect("asked for").left = step;
                }
            }
            false
        });
        // In the order of the orders, since one shard takes them.
        let first = posted.len() - posts.len();
        let mut answered = 0;
        for (at, post) in posts.iter_mut().enumerate() {
            let Some(delivery) = take(post) else { break };
            (posted[first + at].acked, posted[first + at].queued) = (step, delivery.queued);
            answered += 1;
        }
        posts.drain(..answered);
    }

    /// Whether everything has been answered.
    pub fn is_served(&self) -> bool {
        self.looks.is_empty() && self.errands.is_empty() && self.posts.is_empty() && self.reports.is_empty()
    }

    /// Judges what clients got; `tails` are theirs, by number.
    pub fn judge(&self, clients: &[Client], tails: &[Tail]) {
        let (mut direct, mut by_post) = (vec![0; self.directs.len()], vec![0; self.posted.len()]);
        let mut owners: HashMap<SessionId, usize> = HashMap::new();
        for client in clients {
            client.operated.iter().for_each(|&number| by_post[number] += 1);
            for &(number, session) in &client.directs {
                direct[number] += 1;
                assert_eq!(self.directs[number].0, session, "a message for another session");
                let owner = *owners.entry(session).or_insert(client.number);
                assert_eq!(owner, client.number, "two clients have one session");
                assert_eq!(client.directs[0].1, session, "one client has two sessions");
            }
            let Some(&(_, session)) = client.directs.first() else { continue };
            let spans = self.spans.get(&session).map_or(&[][..], Vec::as_slice);
            for (number, post) in self.posted.iter().enumerate() {
                let may = spans.iter().any(|span| span.asked <= post.acked && post.sent <= span.left);
                let got = client.operated.contains(&number);
                assert!(may || !got, "post {number} {post:?} came outside of {spans:?}: {client:?}");
                let must = spans.iter().any(|span| span.joined < post.sent && post.acked < span.leaving);
                let stays = post.acked < tails[client.number].whole_until;
                assert!(!must || !stays || got, "post {number} {post:?} was missed within {spans:?}: {client:?}");
            }
        }
        for (number, (session, answer)) in self.directs.iter().enumerate() {
            let Some((done, answered)) = *answer else { continue };
            let stays = owners.get(session).is_some_and(|&owner| answered < tails[owner].whole_until);
            let least = if stays { done } else { 0 };
            let received = direct[number];
            assert!((least..=done).contains(&received), "message {number} to {session} came {received} times: {done}");
        }
        for (post, received) in self.posted.iter().zip(by_post) {
            assert!(post.acked == NEVER || received <= post.queued, "more deliveries than queued: {post:?}");
        }
    }
}

/// The answer, once it is there.
fn take<T>(answered: &mut Answered<T>) -> Option<T> {
    match answered.try_recv() {
        Ok(Ok(value)) => Some(value),
        Ok(Err(refused)) => panic!("an order with room was refused: {refused}"),
        Err(oneshot::error::TryRecvError::Empty) => None,
        Err(oneshot::error::TryRecvError::Closed) => panic!("an order was dropped"),
    }
}
