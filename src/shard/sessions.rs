//! The sessions of a shard: those that live, each beside its connection, and the last ones that have ended.
//! Law: a session leaves its slot when its connection retires, so nothing of it reaches the next user of the slot. Those
//! that have ended are bounded in number and in bytes; the oldest is forgotten first.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::conn::{Conn, ConnPool, Endpoint, Flow, HistoryLimits, Note, Session, Totals, UserId};
use crate::fixed::Chunked;
use crate::id::{ConnKey, SessionId};
use crate::io::Io;
use crate::metrics::{CloseReason, Drop, Drops};

use super::Shard;

/// A session that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub id: SessionId,
    pub user_id: Option<UserId>,
    pub endpoint: Endpoint,
    /// Messages that waited for it and were dropped with it.
    pub unsent: u64,
    pub totals: Totals,
    pub session: Session,
}

impl Ended {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.session.heap_bytes() + self.user_id.as_ref().map_or(0, UserId::heap_bytes)
    }
}

/// The sessions of one shard.
#[derive(Debug)]
pub(super) struct Sessions {
    live: Chunked<Session>,
    ended: VecDeque<Ended>,
    ended_bytes: usize,
}

impl Sessions {
    pub fn new() -> Self {
        Self { live: Chunked::new(), ended: VecDeque::new(), ended_bytes: 0 }
    }

    /// A connection in `slot` was upgraded.
    fn begin(&mut self, slot: u32, address: Option<IpAddr>, unix_ms: u64) {
        self.live.grow_to(slot, Session::default);
        let session = &mut self.live[slot];
        *session = Session::new(address);
        session.open(unix_ms);
    }

    /// The session of a connection, if it was upgraded.
    pub fn get(&self, slot: u32) -> Option<&Session> {
        self.live.get(slot).filter(|session| session.is_open())
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Session> {
        self.live.get_mut(slot).filter(|session| session.is_open())
    }

    /// Takes over what a connection's counter cannot hold.
    #[cold]
    pub fn spill(&mut self, slot: u32, flow: Flow, n: u64) {
        if let Some(session) = self.get_mut(slot) {
            session.spill(flow, n);
        }
    }

    /// A pong has come so long after its ping.
    pub fn set_rtt(&mut self, slot: u32, ns: u64) {
        if let Some(session) = self.get_mut(slot) {
            session.set_rtt_us(ns / 1_000);
        }
    }

    /// Adds an event to a session's history.
    pub fn note(&mut self, slot: u32, note: Note<'_>, count: u32, unix_ms: u64, limits: &HistoryLimits) {
        if let Some(session) = self.get_mut(slot) {
            session.note(note, count, unix_ms, limits);
        }
    }

    /// Adds what a session's queue dropped to its history.
    pub fn note_drops(&mut self, slot: u32, drops: &Drops, unix_ms: u64, limits: &HistoryLimits) {
        for (&policy, &count) in Drop::ALL.iter().zip(drops).filter(|&(_, &count)| count > 0) {
            self.note(slot, Note::Dropped(policy), count.try_into().unwrap_or(u32::MAX), unix_ms, limits);
        }
    }

    /// Takes a session out of its slot.
    fn take(&mut self, slot: u32) -> Option<Session> {
        self.get_mut(slot).map(std::mem::take)
    }

    fn keep(&mut self, ended: Ended, most: usize) {
        self.ended_bytes += ended.bytes();
        self.ended.push_back(ended);
        self.forget_beyond(most);
    }

    /// Forgets the oldest of those that have ended, down to `most` and to the bound in bytes.
    pub(super) fn forget_beyond(&mut self, most: usize) {
        while (self.ended.len() > most || self.ended_bytes > ENDED_BYTES_MAX)
            && let Some(oldest) = self.ended.pop_front()
        {
            self.ended_bytes -= oldest.bytes();
        }
    }

    /// The shard broke and its connections end with it: takes all sessions out of their slots. What waited for each is
    /// told in frames, since whose they were is of no use any more.
    pub fn end_all(
        mut self,
        conns: &ConnPool,
        id: impl Fn(ConnKey) -> SessionId,
        unix_ms: u64,
        limits: &HistoryLimits,
        most: usize,
    ) -> Self {
        for (key, Conn { identity, endpoint, traffic, outbound, .. }) in conns.iter() {
            let Some(mut session) = self.take(key.slot) else { continue };
            if session.closed().is_none() {
                session.note(Note::Closed(CloseReason::Internal, Some(1011)), 1, unix_ms, limits);
            }
            let (user_id, totals) = (identity.as_ref().map(|own| own.user_id.clone()), session.totals(*traffic));
            let unsent = outbound.frames() as u64;
            self.keep(Ended { id: id(key), user_id, endpoint: *endpoint, unsent, totals, session }, most);
        }
        self
    }

    /// Sessions that have ended, the latest first.
    pub fn ended(&self) -> impl Iterator<Item = &Ended> {
        self.ended.iter().rev()
    }

    /// Gives back the memory of the slots; no connection is left.
    pub fn give_back(&mut self) {
        self.live = Chunked::new();
    }

    /// Memory of the slots, what sessions keep elsewhere left out.
    pub fn bytes(&self) -> usize {
        self.live.bytes()
    }

    /// Sessions in slots, which is none once every connection has gone.
    pub fn live(&self, slots: u32) -> usize {
        (0..slots).filter(|&slot| self.get(slot).is_some()).count()
    }
}

impl<I: Io> Shard<I> {
    /// A connection was upgraded.
    pub(super) fn begin_session(&mut self, key: ConnKey, address: Option<IpAddr>) {
        self.sessions.begin(key.slot, address, self.now.unix_ms);
    }

    /// Adds an event to the history of a connection's session.
    pub(super) fn note(&mut self, key: ConnKey, note: Note<'_>) {
        self.note_many(key, note, 1);
    }

    /// Adds an event that has happened `count` times.
    pub(super) fn note_many(&mut self, key: ConnKey, note: Note<'_>, count: u32) {
        self.sessions.note(key.slot, note, count, self.now.unix_ms, &self.settings.history);
    }

    /// Counts for a connection what it has received or sent.
    #[inline]
    pub(super) fn count_flow(&mut self, key: ConnKey, flow: Flow, n: u32) {
        if let Some(conn) = self.conns.get_mut(key)
            && let Some(spilled) = conn.traffic.add(flow, n)
        {
            self.sessions.spill(key.slot, flow, spilled);
        }
    }

    /// A connection retires for this reason: what it was a session of is remembered for a while.
    pub(super) fn end_session(&mut self, key: ConnKey, reason: CloseReason, unsent: u64) {
        let Some(mut session) = self.sessions.take(key.slot) else { return };
        let Some(Conn { identity, endpoint, traffic, .. }) = self.conns.get(key) else { return };
        if session.closed().is_none() {
            session.note(Note::Closed(reason, None), 1, self.now.unix_ms, &self.settings.history);
        }
        let ended = Ended {
            id: self.session_id(key),
            user_id: identity.as_ref().map(|identity| identity.user_id.clone()),
            endpoint: *endpoint,
            unsent,
            totals: session.totals(*traffic),
            session,
        };
        self.sessions.keep(ended, self.settings.closed_sessions_max(self.shared.shards));
    }
}

/// Bytes of ended sessions that one shard remembers.
const ENDED_BYTES_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ShardId;

    fn ended(slot: u32, events: u32) -> Ended {
        let (mut session, limits) = (Session::new(None), HistoryLimits::of_events(10_000));
        session.open(1);
        for _ in 0..events {
            session.note(Note::Subscribed(&"t".repeat(250)), 1, 1, &limits);
        }
        let id = SessionId::new(ShardId(0), ConnKey { slot, generation: 1 }, 7);
        Ended { id, user_id: None, endpoint: Endpoint::Native, unsent: 0, totals: Totals::default(), session }
    }

    #[test]
    fn the_oldest_is_forgotten_first_by_number_and_by_bytes() {
        let mut sessions = Sessions::new();
        for slot in 0..5 {
            sessions.keep(ended(slot, 0), 3);
        }
        let slots = |sessions: &Sessions| sessions.ended().map(|ended| ended.id.conn().slot).collect::<Vec<_>>();
        assert_eq!(slots(&sessions), [4, 3, 2]);
        for slot in 5..25 {
            sessions.keep(ended(slot, 1_200), 1_000); // of 300 KB each
        }
        assert!(sessions.ended_bytes <= ENDED_BYTES_MAX && sessions.ended_bytes > ENDED_BYTES_MAX / 2);
        assert_eq!(slots(&sessions)[0], 24);
        sessions.keep(ended(25, 0), 0);
        assert_eq!((slots(&sessions), sessions.ended_bytes), (vec![], 0));
    }

    #[test]
    fn nothing_of_a_session_reaches_the_next_user_of_its_slot() {
        let (mut sessions, limits) = (Sessions::new(), HistoryLimits::of_events(100));
        sessions.begin(3, Some([192, 0, 2, 7].into()), 1_000);
        sessions.note(3, Note::Subscribed("secret"), 1, 1_001, &limits);
        sessions.spill(3, Flow::BytesIn, 70_000);
        assert_eq!((sessions.live(4), sessions.take(3).is_some(), sessions.live(4)), (1, true, 0));
        sessions.note(3, Note::Authenticated, 1, 1_002, &limits); // a handshake is no session
        sessions.begin(3, None, 2_000);
        let next = sessions.get(3).unwrap();
        assert_eq!((next.address(), next.since(), next.rtt_us(), next.heap_bytes()), (None, 2_000, None, 0));
        assert_eq!(next.totals(Default::default()), Totals::default());
        assert_eq!(next.history(&limits).events.count(), 0);
    }
}
