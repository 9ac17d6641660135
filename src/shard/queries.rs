//! What operators and other threads ask about connections and sessions.
//! Law: a question about all connections looks at a bounded number of them in a turn and keeps no more than are asked
//! for, so that no other connection waits for it; at most four are on their way.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::context::{Answer, Refused};
use crate::conn::{Conn, Endpoint, Event, Note, Phase, Session, Totals, UserId};
use crate::id::{ConnKey, SessionId};
use crate::io::Io;
use crate::metrics::ErrorCode;

use super::Shard;
use super::sessions::Ended;

/// Which connections are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionsQuery {
    /// What the first ones have most of. Unless it is given, open connections come oldest first, and closed ones latest
    /// first.
    pub sort: Option<ConnectionSort>,
    /// How many are answered at most, 1 to 1,000.
    pub limit: u32,
    /// Whether those that live are asked for, or the last that have ended.
    pub state: ConnectionState,
    /// Only those of this client (the claim `sub`).
    pub client: Option<String>,
    /// Only those that are subscribed to this topic; none of those that have ended.
    pub topic: Option<String>,
}

impl Default for ConnectionsQuery {
    fn default() -> Self {
        Self { sort: None, limit: 100, state: ConnectionState::Open, client: None, topic: None }
    }
}

/// What connections are sorted by, the largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionSort {
    /// Bytes that wait to be sent.
    Pending,
    /// Time since the last message in either direction.
    Idle,
    /// Time from the last ping to its pong.
    Rtt,
    /// Bytes received and sent.
    Bytes,
    /// Age of the session: the oldest first.
    Since,
}

/// Which connections there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// Upgraded, and not gone; those that are closing among them.
    #[default]
    Open,
    /// Gone, as far as they are remembered (`websocket.closed_sessions_kept`).
    Closed,
}

/// Connections, in the order that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Connections {
    /// How many there are of the kind that was asked for.
    pub matched: u64,
    /// The first of them.
    pub connections: Vec<SessionState>,
}

/// One session now, or at its end.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SessionState {
    /// Its id.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// The claim `sub`, once it is authenticated.
    pub user_id: Option<String>,
    /// The client's address, as far as the server can tell.
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The shard that serves it.
    pub shard: u16,
    /// `native` or `echo`.
    pub endpoint: &'static str,
    /// `open`, `closing` or `closed`.
    pub phase: &'static str,
    /// When it was upgraded, in Unix milliseconds.
    pub since: u64,
    /// Milliseconds since the last message in either direction; 0 once it has ended.
    pub idle_ms: u64,
    /// Milliseconds from the last ping of the server to its pong.
    pub rtt_ms: Option<f64>,
    /// What it has received and sent.
    #[serde(flatten)]
    pub totals: Totals,
    /// Frames that wait behind the send in flight.
    pub pending_frames: u64,
    /// Bytes that wait or are in flight.
    pub pending_bytes: u64,
    /// Topics it is subscribed to.
    pub subscriptions: u64,
    /// How it ended, or is ending.
    pub closed: Option<SessionEnd>,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SessionEnd {
    /// When it began to close, in Unix milliseconds.
    pub at: u64,
    /// Why: a label of `websocket_connections_closed_total`.
    pub reason: &'static str,
    /// The code of the server's close frame; `null` if it sent none.
    pub code: Option<u16>,
    /// Milliseconds from the upgrade until then.
    pub duration_ms: u64,
    /// Published messages that waited for it and were dropped with it.
    pub unsent: u64,
}

/// One session with its history.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SessionReport {
    /// Its state.
    #[serde(flatten)]
    pub state: SessionState,
    /// The topics it is subscribed to.
    pub topics: Vec<String>,
    /// Events that `websocket.max_session_history` has no room for any more.
    pub forgotten: u64,
    /// The last events, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// Something that happened to a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct HistoryEntry {
    /// When, in Unix milliseconds; of a run of equal events, the first.
    pub at: u64,
    /// `connected`, `authenticated`, `refreshed`, `subscribed`, `unsubscribed`, `error`, `dropped`, `rate_limited` or
    /// `closed`.
    pub event: &'static str,
    /// Of `subscribed` and `unsubscribed`: the topic, cut after 255 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Of `error`: its code. Of `dropped`: the policy. Of `closed`: the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// Of `closed`: the code of the server's close frame, if it sent one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// Of `error`, `dropped` and `rate_limited`: how many in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
}

impl ConnectionsQuery {
    /// # Errors
    /// `invalid_message` if the limit is out of range.
    pub fn check(&self) -> Result<(), Refused> {
        if (1..=LIMIT_MAX).contains(&self.limit) {
            return Ok(());
        }
        let what = format!("limit: {} is out of range; write 1 to {LIMIT_MAX}", self.limit);
        Err(Refused::new(ErrorCode::InvalidMessage, what))
    }

    /// The first of what several shards have found.
    pub fn merge(&self, parts: impl IntoIterator<Item = Connections>) -> Connections {
        let mut all = Connections::default();
        for part in parts {
            all.matched += part.matched;
            all.connections.extend(part.connections);
        }
        all.connections.sort_by_key(|state| Reverse(self.rank(state)));
        all.connections.truncate(self.limit as usize);
        all
    }

    /// The higher, the further in front.
    fn rank(&self, state: &SessionState) -> u64 {
        match (self.sort, &state.closed) {
            (Some(ConnectionSort::Pending), _) => state.pending_bytes,
            (Some(ConnectionSort::Idle), _) => state.idle_ms,
            (Some(ConnectionSort::Rtt), _) => state.rtt_ms.map_or(0, |ms| (ms * 1000.0) as u64),
            (Some(ConnectionSort::Bytes), _) => state.totals.bytes_in + state.totals.bytes_out,
            (None, Some(closed)) if self.state == ConnectionState::Closed => closed.at,
            (Some(ConnectionSort::Since) | None, _) => u64::MAX - state.since,
        }
    }
}

/// A look at all connections, a slice a turn.
#[derive(Debug)]
struct Walk {
    query: ConnectionsQuery,
    answer: Answer<Connections>,
    /// The slot to look at next.
    next: u32,
    matched: u64,
    /// The best so far by rank, slot and generation, the worst of them on top.
    best: BinaryHeap<Reverse<(u64, u32, u32)>>,
}

/// The looks that are on their way.
#[derive(Debug, Default)]
pub(super) struct Walks(VecDeque<Walk>);

impl Walks {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<I: Io> Shard<I> {
    /// Begins to look for connections, or answers at once where that costs little.
    pub(super) fn look_for(&mut self, query: ConnectionsQuery, answer: Answer<Connections>) {
        if let Err(refused) = query.check() {
            let _ = answer.send(Err(refused)); // nobody waits for it
        } else if query.state == ConnectionState::Closed {
            let _ = answer.send(Ok(self.ended(&query)));
        } else if self.walks.0.len() >= WALKS_MAX {
            let what = "other questions about all connections are being answered; ask again later";
            let _ = answer.send(Err(Refused::new(ErrorCode::LimitExceeded, what)));
        } else {
            self.walks.0.push_back(Walk { query, answer, next: 0, matched: 0, best: BinaryHeap::new() });
        }
    }

    /// Goes on with the oldest look.
    pub(super) fn walk(&mut self) {
        let Some(mut walk) = self.walks.0.pop_front() else { return };
        if walk.answer.is_closed() {
            return;
        }
        // Topics come and go between two slices, and their numbers with them.
        let topic = walk.query.topic.as_deref().map(|name| self.topics.find(name));
        let to = if topic == Some(None) { u32::MAX } else { walk.next.saturating_add(SLICE) };
        for slot in walk.next..to.min(self.conns.slots()) {
            if topic == Some(None) {
                break;
            }
            let Some(key) = self.conns.key_of(slot) else { continue };
            let (Some(conn), Some(session)) = (self.conns.get(key), self.sessions.get(slot)) else { continue };
            let is_subscribed = topic.flatten().is_none_or(|topic| conn.subscriptions.has(topic));
            if is_subscribed
                && is_of(walk.query.client.as_deref(), conn.identity.as_ref().map(|identity| &identity.user_id))
            {
                walk.matched += 1;
                let rank = self.rank_live(walk.query.sort, conn, session);
                if walk.best.len() < walk.query.limit as usize {
                    walk.best.push(Reverse((rank, slot, key.generation)));
                } else if walk.best.peek().is_some_and(|Reverse((worst, ..))| *worst < rank) {
                    walk.best.pop();
                    walk.best.push(Reverse((rank, slot, key.generation)));
                }
            }
        }
        walk.next = to;
        if to < self.conns.slots() {
            return self.walks.0.push_front(walk);
        }
        let Walk { query, answer, matched, best, .. } = walk;
        // Who has gone since is no longer there to be described, and who has its slot was not asked for.
        let states =
            best.into_iter().filter_map(|Reverse((_, slot, generation))| self.describe(ConnKey { slot, generation }));
        let found = Connections { matched, connections: states.collect() };
        let _ = answer.send(Ok(query.merge([found])));
    }

    /// As [`ConnectionsQuery::rank`], without describing it.
    fn rank_live(&self, sort: Option<ConnectionSort>, conn: &Conn, session: &Session) -> u64 {
        match sort {
            Some(ConnectionSort::Pending) => conn.outbound.bytes() as u64,
            Some(ConnectionSort::Idle) => u64::from(self.ms().wrapping_sub(conn.active)),
            Some(ConnectionSort::Rtt) => session.rtt_us().unwrap_or(0),
            Some(ConnectionSort::Bytes) => {
                let Totals { bytes_in, bytes_out, .. } = session.totals(conn.traffic);
                bytes_in + bytes_out
            }
            Some(ConnectionSort::Since) | None => u64::MAX - session.since(),
        }
    }

    fn ended(&self, query: &ConnectionsQuery) -> Connections {
        let client = query.client.as_deref();
        let ended = self
            .sessions
            .ended()
            .filter(|ended| is_of(client, ended.user_id.as_ref()))
            .filter(|_| query.topic.is_none());
        let states: Vec<_> = ended.map(|ended| self.describe_ended(ended)).collect();
        query.merge([Connections { matched: states.len() as u64, connections: states }])
    }

    /// Everything about one session, also one that has ended not long ago.
    pub(super) fn report(&self, id: SessionId) -> Option<SessionReport> {
        let live = self.find_session(id).and_then(|key| Some((key, self.describe(key)?)));
        if let Some((key, state)) = live
            && let (Some(conn), Some(session)) = (self.conns.get(key), self.sessions.get(key.slot))
        {
            let topics = conn.subscriptions.as_slice().iter();
            let topics = topics.map(|&topic| self.topics.topic(topic).name().to_owned());
            return Some(self.with_history(state, topics.collect(), session));
        }
        let ended = self.sessions.ended().find(|ended| ended.id == id);
        ended.map(|ended| self.with_history(self.describe_ended(ended), Vec::new(), &ended.session))
    }

    fn describe(&self, key: ConnKey) -> Option<SessionState> {
        let (conn, session) = (self.conns.get(key)?, self.sessions.get(key.slot)?);
        Some(SessionState {
            session_id: self.session_id(key),
            user_id: conn.identity.as_ref().map(|identity| identity.user_id.text().to_string()),
            address: session.address(),
            shard: self.id.0,
            endpoint: label(conn.endpoint),
            phase: if matches!(conn.phase, Phase::Open) { "open" } else { "closing" },
            since: session.since(),
            idle_ms: self.ms().wrapping_sub(conn.active).into(),
            rtt_ms: rtt_ms(session),
            totals: session.totals(conn.traffic),
            pending_frames: conn.outbound.frames() as u64,
            pending_bytes: conn.outbound.bytes() as u64,
            subscriptions: conn.subscriptions.len() as u64,
            closed: if conn.is_open() { None } else { end_of(session, 0) },
        })
    }

    fn describe_ended(&self, ended: &Ended) -> SessionState {
        let Ended { id, user_id, endpoint, unsent, totals, session } = ended;
        SessionState {
            session_id: *id,
            user_id: user_id.as_ref().map(|user_id| user_id.text().to_string()),
            address: session.address(),
            shard: self.id.0,
            endpoint: label(*endpoint),
            phase: "closed",
            since: session.since(),
            idle_ms: 0,
            rtt_ms: rtt_ms(session),
            totals: *totals,
            pending_frames: 0,
            pending_bytes: 0,
            subscriptions: 0,
            closed: end_of(session, *unsent),
        }
    }

    fn with_history(&self, state: SessionState, topics: Vec<String>, session: &Session) -> SessionReport {
        let shown = session.history(&self.settings.history);
        let begin = HistoryEntry { at: state.since, event: "connected", ..HistoryEntry::default() };
        let events = shown.events.map(|(_, event)| entry(state.since, event));
        let history = shown.from_begin.then_some(begin).into_iter().chain(events).collect();
        SessionReport { state, topics, forgotten: shown.forgotten.into(), history }
    }
}

fn is_of(client: Option<&str>, user_id: Option<&UserId>) -> bool {
    client.is_none_or(|client| user_id.is_some_and(|user_id| *user_id.text() == *client))
}

fn label(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Native => "native",
        Endpoint::Echo => "echo",
    }
}

fn rtt_ms(session: &Session) -> Option<f64> {
    session.rtt_us().map(|us| us as f64 / 1000.0)
}

fn end_of(session: &Session, unsent: u64) -> Option<SessionEnd> {
    let Event { after_ms, note: Note::Closed(reason, code), .. } = session.closed()? else { return None };
    Some(SessionEnd { at: session.since() + after_ms, reason: reason.label(), code, duration_ms: after_ms, unsent })
}

fn entry(since: u64, event: Event<'_>) -> HistoryEntry {
    let Event { after_ms, note, count } = event;
    let plain = HistoryEntry { at: since + after_ms, ..HistoryEntry::default() };
    let counted = |event, cause| HistoryEntry { event, cause, count: Some(count), ..plain.clone() };
    match note {
        Note::Authenticated => HistoryEntry { event: "authenticated", ..plain },
        Note::Refreshed => HistoryEntry { event: "refreshed", ..plain },
        Note::Subscribed(topic) => HistoryEntry { event: "subscribed", topic: Some(topic.into()), ..plain },
        Note::Unsubscribed(topic) => HistoryEntry { event: "unsubscribed", topic: Some(topic.into()), ..plain },
        Note::Error(code) => counted("error", Some(code.label())),
        Note::Dropped(policy) => counted("dropped", Some(policy.label())),
        Note::RateLimited => counted("rate_limited", None),
        Note::Closed(reason, code) => HistoryEntry { event: "closed", cause: Some(reason.label()), code, ..plain },
    }
}

/// Most connections that one question is answered with.
const LIMIT_MAX: u32 = 1_000;
/// Slots that are looked at in one turn.
const SLICE: u32 = 4_096;
/// Looks at all connections that may be on their way on one shard.
const WALKS_MAX: usize = 4;
