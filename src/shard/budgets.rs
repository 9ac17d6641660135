//! How much one turn does when a shard is as large as shards get.
//! Law: whatever is asked for about all connections at once (a reload, a question, a drain, errands), a turn looks at a
//! bounded number of them; so nobody waits for it for longer than in any busy turn.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::flush::{CROWD_A_TURN, LEAVING_A_TURN, LEAVING_MS};
use super::publish::{DELIVERIES_A_TURN, FRAMES_ANYWAY};
use super::queries::ConnectionsQuery;
use super::settings::{CONNS_A_TURN, QUIET_MS, Settings};
use super::{DrainOrder, Inbox, Order, Shard, Shared, Turn};
use crate::app::{PublishOptions, Router};
use crate::config::{ClientLimitPolicy, Config};
use crate::conn::{Conn, Greeting, Identity, Phase};
use crate::id::{ConnKey, ShardId};
use crate::io::{Completion, Doorbell, FrameKey, Io, Now, Palette, Socket, Wait};
use crate::pubsub::Bus;

/// A driver of connections that are silent and take whatever they are sent, at once and for good.
struct Silent {
    palette: Palette,
    now_ms: u64,
    sent: usize,
    /// Who was sent something last, and who has sent something.
    last_sent: Vec<ConnKey>,
    arriving: Vec<(ConnKey, Vec<u8>)>,
    /// How many were closed.
    ended: usize,
    closed: Vec<ConnKey>,
}

struct NoBell;

impl Doorbell for NoBell {
    fn ring(&self) {}
}

impl Io for Silent {
    type Buffer = Vec<u8>;

    fn wait(&mut self, _: Wait) -> std::io::Result<Now> {
        self.now_ms += 1;
        self.last_sent.clear();
        Ok(Now { monotonic_ns: self.now_ms * 1_000_000, unix_ms: self.now_ms })
    }

    fn slept_from_ns(&self) -> Option<u64> {
        None
    }

    fn clock_ns(&self) -> u64 {
        self.now_ms * 1_000_000
    }

    fn poll(&mut self) -> Option<Completion<Vec<u8>>> {
        if let Some((conn, bytes)) = self.arriving.pop() {
            return Some(Completion::Received { conn, bytes, armed: true });
        }
        self.closed.pop().map(|conn| Completion::Closed { conn })
    }

    fn accept(&mut self) {}
    fn pause_accepting(&mut self) {}
    fn stop_accepting(&mut self) {}
    fn adopt(&mut self, _: Socket, _: ConnKey) {}
    fn refuse(&mut self, _: Socket) {}
    fn receive(&mut self, _: ConnKey) {}
    fn pause(&mut self, _: ConnKey) {}

    fn send(&mut self, conn: ConnKey, _: FrameKey, _: u32) {
        self.sent += 1;
        self.last_sent.push(conn);
    }

    fn close(&mut self, conn: ConnKey) {
        self.ended += 1;
        self.closed.push(conn);
    }

    fn shutdown(&mut self, _: ConnKey) {}
    fn ring(&mut self, _: ShardId) {}
    fn announce_sleep(&mut self) {}

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        Arc::new(NoBell)
    }

    fn random(&mut self) -> u64 {
        self.now_ms.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn palette(&mut self) -> &mut Palette {
        &mut self.palette
    }
}

/// A shard with so many open connections, all of one client.
fn shard_of(count: u32) -> Shard<Silent> {
    let settings =
        Settings { auth_required: false, ping_interval_ms: 0, ..Settings::new(&Config::default(), count, count) };
    let shared = Arc::new(Shared::new(Router::default(), Bus::new(1), Arc::default()));
    let palette = Palette::default();
    let [last_sent, closed] = [Vec::new(), Vec::new()];
    let io = Silent { palette, now_ms: 1, sent: 0, last_sent, arriving: Vec::new(), ended: 0, closed };
    let now = Now { monotonic_ns: 1_000_000, unix_ms: 1 };
    let (inbox, metrics) = (Arc::new(Inbox::default()), Arc::default());
    let mut shard = Shard::new(ShardId(0), io, Arc::new(settings), shared, metrics, inbox, now);
    shard.open();
    let ann = Identity { user_id: "ann".into(), expires_at: None, permissions: None };
    for _ in 0..count {
        open_one(&mut shard, &ann);
    }
    shard
}

fn open_one(shard: &mut Shard<Silent>, identity: &Identity) -> ConnKey {
    let now = shard.ms();
    let key = shard.conns.insert_with(|_| Conn::new(now, Greeting::default())).unwrap();
    shard.shared.tally.arrives();
    shard.metrics.opened.add(1);
    shard.begin_session(key, None);
    let conn = shard.conns.get_mut(key).unwrap();
    (conn.phase, conn.identity) = (Phase::Open, Some(identity.clone()));
    shard.metrics.authenticated.add(1);
    let most = Some(u32::MAX);
    shard
        .shared
        .clients
        .admit(&identity.user_id.text(), most, ClientLimitPolicy::EvictOldest, (ShardId(0), key))
        .unwrap();
    shard.reschedule(key);
    key
}

#[test]
fn what_was_spent_of_the_rates_is_forgotten_when_it_is_there_again() {
    let check = |messages: usize, forgotten_after_ms: u64| {
        let mut shard = shard_of(1);
        let key = shard.conns.key_of(0).unwrap();
        shard.turn().unwrap();
        let message = [b"\x81\x8f\0\0\0\0".as_slice(), br#"{"type":"ping"}"#].concat();
        shard.io.inner_mut().arriving.push((key, message.repeat(messages)));
        shard.turn().unwrap();
        let spent_at_ms = shard.now.monotonic_ms();
        while shard.conns.get(key).unwrap().intake.is_some() {
            shard.turn().unwrap();
        }
        let after_ms = shard.now.monotonic_ms() - spent_at_ms;
        assert!((forgotten_after_ms..=forgotten_after_ms + 20).contains(&after_ms), "{messages}: {after_ms} ms");
        assert_eq!(shard.metrics.messages_in.get(), messages as u64);
    };
    check(1, QUIET_MS);
    check(2, QUIET_MS);
    check(100, QUIET_MS);
    check(150, 1_500); // at a hundred a second
}

/// Turns until `is_over`, and returns how many connections were sent something in the one that sent to most.
fn most_a_turn(shard: &mut Shard<Silent>, is_over: impl Fn(&Shard<Silent>) -> bool) -> usize {
    most_of(|shard| shard.io.inner().sent, shard, is_over)
}

/// Turns until `is_over`, and returns by how much `count` grew in the turn in which it grew most.
fn most_of(
    count: impl Fn(&Shard<Silent>) -> usize,
    shard: &mut Shard<Silent>,
    is_over: impl Fn(&Shard<Silent>) -> bool,
) -> usize {
    let mut most = 0;
    for _ in 0..100_000 {
        if is_over(shard) {
            return most;
        }
        let before = count(shard);
        assert_eq!(shard.turn().unwrap(), Turn::Again);
        most = most.max(count(shard) - before);
    }
    panic!("it does not end");
}

fn open(shard: &Shard<Silent>) -> usize {
    shard.conns.iter().filter(|(_, conn)| conn.is_open()).count()
}

#[test]
fn a_reload_that_ends_everybody_takes_many_turns() {
    let mut shard = shard_of(COUNT);
    let mut settings = (*shard.settings).clone();
    settings.idle_timeout_ms = 1;
    settings.edition += 1;
    (0..3).for_each(|_| drop(shard.turn()));
    shard.inbox.reload(Arc::new(settings));
    let most = most_a_turn(&mut shard, |shard| shard.metrics.sends.get() == u64::from(COUNT));
    assert_eq!((open(&shard), shard.shared.clients.len()), (0, 0));
    assert!(most <= AT_ONCE, "{most} were told in one turn");
}

/// All timers fall due while the process is frozen.
#[test]
fn timers_that_fall_due_together_take_many_turns() {
    let mut shard = shard_of(COUNT);
    let mut settings = (*shard.settings).clone();
    settings.ping_interval_ms = 1_000;
    settings.edition += 1;
    shard.inbox.reload(Arc::new(settings));
    (0..COUNT / 4096 + 2).for_each(|_| drop(shard.turn()));
    assert_eq!(shard.io.inner_mut().sent, 0);
    shard.io.inner_mut().now_ms += 2_000;
    let most = most_a_turn(&mut shard, |shard| shard.metrics.sends.get() == u64::from(COUNT));
    assert_eq!(open(&shard), COUNT as usize);
    assert!(most <= AT_ONCE, "{most} were pinged in one turn");
}

#[test]
fn a_drain_at_once_takes_many_turns() {
    let mut shard = shard_of(COUNT);
    shard.inbox.drain(DrainOrder::within(1_000_000));
    let most = most_a_turn(&mut shard, |shard| shard.metrics.sends.get() == u64::from(COUNT));
    assert_eq!(open(&shard), 0);
    // The turn that takes the order looks twice.
    assert!(most <= 2 * AT_ONCE, "{most} were told in one turn");
}

/// Few of those who leave are told in a turn, so that others have theirs; where turns are slow that would take too long.
#[test]
fn few_leave_in_a_turn_and_many_when_turns_are_slow() {
    let most_of_ten = |slow_ms: u64| {
        let mut shard = shard_of(COUNT);
        shard.inbox.drain(DrainOrder::within(1_000_000));
        let told = |shard: &mut Shard<Silent>| {
            let before = shard.io.inner().sent;
            shard.io.inner_mut().now_ms += slow_ms;
            shard.turn().unwrap();
            shard.io.inner().sent - before
        };
        (0..10).map(|_| told(&mut shard)).max().unwrap()
    };
    assert_eq!((most_of_ten(0), most_of_ten(LEAVING_MS)), (LEAVING_A_TURN, AT_ONCE));
}

/// Whoever has not left by the deadline is cut, and nobody is forgotten.
#[test]
fn a_drain_deadline_takes_many_turns() {
    let mut shard = shard_of(COUNT);
    shard.inbox.drain(DrainOrder::within(3));
    let most = most_of(|shard| shard.io.inner().ended, &mut shard, |shard| shard.io.inner().ended == COUNT as usize);
    assert!(most <= AT_ONCE, "{most} were cut in one turn");
    while shard.turn().unwrap() == Turn::Again {}
    assert!(shard.conns.is_empty());
    assert_eq!(shard.metrics.closed_cleanly.get() + shard.metrics.cut.get(), u64::from(COUNT));
}

/// A burst of publishes to a topic that everybody has.
#[test]
fn publishes_to_a_crowd_take_many_turns() {
    let mut shard = shard_of(COUNT);
    for slot in 0..COUNT {
        let key = shard.conns.key_of(slot).unwrap();
        shard.topics.subscribe("t", key, &mut shard.conns);
    }
    let publishes = 24;
    for number in 0..publishes {
        let (answer, _) = oneshot::channel();
        let (topic, data, options) = ("t".into(), vec![b'0' + number as u8 % 10], PublishOptions::default());
        shard.inbox.push(Order::Publish { topic, data, options, answer }).unwrap();
    }
    let queued = |shard: &Shard<Silent>| shard.metrics.queued.get() as usize;
    let most = most_of(queued, &mut shard, |shard| queued(shard) == (publishes * COUNT) as usize);
    let most_allowed = (FRAMES_ANYWAY * COUNT).max(DELIVERIES_A_TURN as u32 + COUNT) as usize;
    assert!(most <= most_allowed, "{most} deliveries in one turn");
}

/// To send to so many takes the kernel most of a second; whoever is answered meanwhile does not wait for that.
#[test]
fn a_crowd_holds_up_nobodys_answer() {
    let mut shard = shard_of(COUNT);
    let keys: Vec<ConnKey> = (0..COUNT).filter_map(|slot| shard.conns.key_of(slot)).collect();
    for &key in &keys {
        shard.topics.subscribe("t", key, &mut shard.conns);
    }
    let (answer, _) = oneshot::channel();
    let (topic, data, options) = ("t".into(), b"1".to_vec(), PublishOptions::default());
    shard.inbox.push(Order::Publish { topic, data, options, answer }).unwrap();
    let mut sent = 0;
    for _ in 0..3 {
        shard.turn().unwrap();
        assert!(shard.io.inner().last_sent.len() <= CROWD_A_TURN);
        sent += shard.io.inner().last_sent.len();
    }
    assert_eq!(shard.metrics.unflushed.get() as usize, keys.len() - sent);
    // The last of the crowd asks something.
    let last = keys[keys.len() - 1];
    shard.io.inner_mut().arriving.push((last, b"\x89\x80\0\0\0\0".to_vec()));
    shard.turn().unwrap();
    assert_eq!(shard.io.inner().last_sent[0], last);
    let most = most_a_turn(&mut shard, |shard| shard.io.inner().sent == keys.len());
    assert!(most <= CROWD_A_TURN, "{most} in one turn");
    let all = most_a_turn(&mut shard, |shard| shard.unflushed.is_empty());
    assert_eq!(all, 0, "the message that it was sent with its answer is not sent to it again");
}

#[test]
fn who_has_the_slot_of_one_that_was_asked_for_is_not_shown() {
    let mut shard = shard_of(20_000);
    let ben = Rc::new(Identity { user_id: "ben".into(), expires_at: None, permissions: None });
    let (answer, mut answered) = oneshot::channel();
    let query = ConnectionsQuery { client: Some("ann".into()), limit: 2, ..ConnectionsQuery::default() };
    shard.look_for(query, answer);
    shard.walk();
    // Every connection that was looked at so far goes, and others come.
    for slot in 0..100 {
        let key = shard.conns.key_of(slot).unwrap();
        shard.retire(key, crate::metrics::CloseReason::Lost);
        shard.conns.remove(key).unwrap();
    }
    for _ in 0..100 {
        open_one(&mut shard, &ben);
    }
    while !shard.walks.is_empty() {
        shard.walk();
    }
    let found = answered.try_recv().unwrap().unwrap();
    let users: Vec<_> = found.connections.iter().map(|state| state.user_id.as_deref().unwrap()).collect();
    assert!(users.iter().all(|&user| user == "ann"), "{users:?} are shown as ann's");
}

const COUNT: u32 = 100_000;
const AT_ONCE: usize = CONNS_A_TURN as usize;
