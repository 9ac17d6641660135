//! One session as an operator sees it: since when, from where, how much, how fast, and what has happened.
//!
//! Law: 32 bytes beside each connection. What is seldom needed (a long history, counters that have outgrown their
//! connection's, an IPv6 address) shares one allocation that follows its use; an idle session with a few events has none.
//!
//! ```text
//! tape:   flags | address: 4 or 16 bytes, if known | ledger: 44 bytes, once needed | events, see `history.rs`
//! ledger: what the counters of the connection have spilled, events forgotten, events here, where the last one begins
//! ```

use std::net::IpAddr;

use super::history::{Event, Events, Note};

/// How much of a session's history is kept; beyond, the oldest events are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Events, the beginning of the session included.
    pub events_max: u32,
    /// Bytes of packed events.
    pub bytes_max: u32,
}

impl HistoryLimits {
    /// At most `events_max` events, of 32 bytes in the mean: long topic names leave room for fewer.
    pub fn of_events(events_max: u32) -> Self {
        Self { events_max, bytes_max: (32 * events_max).max(BYTES_MAX_LEAST) }
    }
}

/// What a connection's counters stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "messages of the application, and bytes on the socket")]
pub enum Flow {
    MessagesIn,
    MessagesOut,
    BytesIn,
    BytesOut,
}

/// The counters of one connection that change all the time: small, so that they lie where the data path is anyway.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic([u16; 4]);

impl Traffic {
    /// Adds `n`. What does not fit comes back, for [`Session::spill`].
    #[inline]
    #[must_use]
    pub fn add(&mut self, flow: Flow, n: u32) -> Option<u64> {
        let counter = &mut self.0[flow as usize];
        let sum = u32::from(*counter).wrapping_add(n);
        if sum <= u32::from(u16::MAX) && sum >= n {
            *counter = sum as u16;
            return None;
        }
        Some(u64::from(std::mem::take(counter)) + u64::from(n))
    }
}

/// All that a session has received and sent: messages of the application, and bytes on the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Totals {
    pub messages_in: u64,
    pub messages_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// A session.
#[derive(Debug, Default)]
pub struct Session {
    tape: Tape,
    /// Unix time in milliseconds, 48 bits; 0 before the upgrade.
    since: [u8; 6],
    rtt: Rtt,
}

/// What a session costs beside its connection; printed with the memory budget.
pub const SESSION_BYTES: usize = size_of::<Session>();
const _: () = assert!(SESSION_BYTES == 32);

/// What a session's history shows.
#[derive(Clone, Debug)]
pub struct Shown<'a> {
    /// Whether the beginning of the session is the first event.
    pub from_begin: bool,
    /// Events that were forgotten, the beginning included.
    pub forgotten: u32,
    /// The events after the beginning, oldest first.
    pub events: std::iter::Skip<Events<'a>>,
}

impl Session {
    /// Of a connection that comes from this address, and is no session before it is upgraded.
    pub fn new(address: Option<IpAddr>) -> Self {
        let mut session = Self::default();
        session.set_address(address);
        session
    }

    /// The address that the client is known by, in place of the peer's.
    pub fn set_address(&mut self, address: Option<IpAddr>) {
        let before = address_bytes(self.flags());
        let flag = match address {
            None => {
                self.tape.splice(1, before, &[]);
                0
            }
            Some(IpAddr::V4(v4)) => {
                self.tape.splice(1, before, &v4.octets());
                IS_V4
            }
            Some(IpAddr::V6(v6)) => {
                self.tape.splice(1, before, &v6.octets());
                IS_V6
            }
        };
        self.tape.as_mut_slice()[0] = self.flags() & HAS_LEDGER | flag;
    }

    /// It was upgraded.
    pub fn open(&mut self, unix_ms: u64) {
        self.since.copy_from_slice(&unix_ms.to_le_bytes()[..6]);
    }

    /// Whether it was upgraded.
    pub fn is_open(&self) -> bool {
        self.since != [0; 6]
    }

    /// When it was upgraded, in Unix milliseconds.
    pub fn since(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&self.since);
        u64::from_le_bytes(bytes)
    }

    /// Where the client is, if that is known.
    pub fn address(&self) -> Option<IpAddr> {
        let bytes = self.tape.as_slice();
        match self.flags() & (IS_V4 | IS_V6) {
            IS_V4 => bytes[1..].first_chunk::<4>().map(|octets| (*octets).into()),
            IS_V6 => bytes[1..].first_chunk::<16>().map(|octets| (*octets).into()),
            _ => None,
        }
    }

    /// From the last ping to its pong, in microseconds with an error of at most one in two thousand.
    pub fn rtt_us(&self) -> Option<u64> {
        self.rtt.us()
    }

    /// A pong has come so long after its ping.
    pub fn set_rtt_us(&mut self, us: u64) {
        self.rtt = Rtt::new(us);
    }

    /// Takes over what a connection's counter cannot hold.
    pub fn spill(&mut self, flow: Flow, n: u64) {
        let mut ledger = self.ledger().unwrap_or_else(|| self.open_ledger());
        ledger.totals[flow as usize] += n;
        self.put_ledger(&ledger);
    }

    /// What it has received and sent, together with what its connection still counts.
    pub fn totals(&self, traffic: Traffic) -> Totals {
        let spilled = self.ledger().map_or([0; 4], |ledger| ledger.totals);
        let of = |flow: Flow| spilled[flow as usize] + u64::from(traffic.0[flow as usize]);
        Totals {
            messages_in: of(Flow::MessagesIn),
            messages_out: of(Flow::MessagesOut),
            bytes_in: of(Flow::BytesIn),
            bytes_out: of(Flow::BytesOut),
        }
    }

    /// Adds an event to the history. Without one only the end is noted.
    pub fn note(&mut self, note: Note<'_>, count: u32, unix_ms: u64, limits: &HistoryLimits) {
        if limits.events_max == 0 && !matches!(note, Note::Closed(..)) {
            return;
        }
        let (events, last) = self.extent();
        if note.is_counted()
            && let Some(last) = last
            && let Some((_, run)) = Events::new(&self.events()[last..]).next()
            && run.note == note
        {
            let at = self.tape.len() - size_of::<u32>();
            return self.tape.splice(at, 4, &run.count.saturating_add(count).to_le_bytes());
        }
        let mut bytes = Vec::with_capacity(super::history::EVENT_BYTES_MAX);
        Event { after_ms: unix_ms.saturating_sub(self.since()), note, count }.write(&mut bytes);
        let begin = self.events().len() as u32;
        let end = self.tape.len();
        self.tape.splice(end, 0, &bytes);
        let events = events + 1;
        let is_over = events > limits.events_max + limits.events_max / SLACK
            || begin + bytes.len() as u32 > limits.bytes_max.max(BYTES_MAX_LEAST);
        if is_over || events > WALK_MAX || self.ledger().is_some() {
            let ledger = self.ledger().unwrap_or_else(|| self.open_ledger());
            self.put_ledger(&Ledger { events, last: begin, ..ledger });
        }
        if is_over {
            self.forget(limits);
        }
    }

    /// The history within `limits`.
    pub fn history(&self, limits: &HistoryLimits) -> Shown<'_> {
        let events = Events::new(self.events());
        if limits.events_max == 0 {
            return Shown { from_begin: false, forgotten: 0, events: events.skip(usize::MAX) };
        }
        let forgotten = self.ledger().map_or(0, |ledger| ledger.forgotten);
        let has_begin = u32::from(forgotten == 0);
        let more = (self.extent().0 + has_begin).saturating_sub(limits.events_max);
        Shown {
            from_begin: has_begin > more,
            forgotten: forgotten.saturating_add(more),
            events: events.skip(more.saturating_sub(has_begin) as usize),
        }
    }

    /// The event with which it began to close.
    pub fn closed(&self) -> Option<Event<'_>> {
        let closed = Events::new(self.events()).filter(|(_, event)| matches!(event.note, Note::Closed(..)));
        closed.last().map(|(_, event)| event)
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.tape {
            Tape::Short { .. } => 0,
            Tape::Long { bytes, .. } => bytes.len(),
        }
    }

    /// Forgets the oldest events until what is left is within the limits, with a little room: so that a full history
    /// is not moved for every event.
    fn forget(&mut self, limits: &HistoryLimits) {
        let Some(mut ledger) = self.ledger() else { return };
        let room = limits.bytes_max.max(BYTES_MAX_LEAST) / SLACK * (SLACK - 1);
        let all = self.events().len() as u32;
        let (mut gone, mut bytes) = (0, 0);
        for (at, _) in Events::new(self.events()) {
            // The newest one stays, whatever its length.
            bytes = at as u32;
            let is_within = ledger.events - gone <= limits.events_max.max(1) && all - bytes <= room;
            if is_within || gone + 1 == ledger.events {
                break;
            }
            gone += 1;
        }
        let begin = self.tape.len() - all as usize;
        self.tape.splice(begin, bytes as usize, &[]);
        let with_begin = u32::from(ledger.forgotten == 0);
        ledger.forgotten = ledger.forgotten.saturating_add(gone + with_begin);
        ledger.events -= gone;
        ledger.last -= bytes;
        self.put_ledger(&ledger);
    }

    /// How many events there are, and where the last one begins.
    fn extent(&self) -> (u32, Option<usize>) {
        match self.ledger() {
            Some(ledger) => (ledger.events, (ledger.events > 0).then_some(ledger.last as usize)),
            None => Events::new(self.events()).fold((0, None), |(events, _), (at, _)| (events + 1, Some(at))),
        }
    }

    fn events(&self) -> &[u8] {
        let bytes = self.tape.as_slice();
        &bytes[self.events_begin()..]
    }

    fn flags(&self) -> u8 {
        self.tape.as_slice()[0]
    }

    fn ledger_begin(&self) -> usize {
        1 + address_bytes(self.flags())
    }

    fn events_begin(&self) -> usize {
        self.ledger_begin() + if self.flags() & HAS_LEDGER == 0 { 0 } else { LEDGER_BYTES }
    }

    fn ledger(&self) -> Option<Ledger> {
        let has_one = self.flags() & HAS_LEDGER != 0;
        has_one.then(|| self.tape.as_slice()[self.ledger_begin()..].first_chunk().map(Ledger::read)).flatten()
    }

    /// Makes room for a ledger, and counts what is here.
    #[cold]
    fn open_ledger(&mut self) -> Ledger {
        let (events, last) = self.extent();
        let ledger = Ledger { totals: [0; 4], forgotten: 0, events, last: last.unwrap_or(0) as u32 };
        self.tape.splice(self.ledger_begin(), 0, &ledger.to_bytes());
        self.tape.as_mut_slice()[0] |= HAS_LEDGER;
        ledger
    }

    fn put_ledger(&mut self, ledger: &Ledger) {
        let at = self.ledger_begin();
        self.tape.as_mut_slice()[at..][..LEDGER_BYTES].copy_from_slice(&ledger.to_bytes());
    }
}

fn address_bytes(flags: u8) -> usize {
    match flags & (IS_V4 | IS_V6) {
        IS_V4 => 4,
        IS_V6 => 16,
        _ => 0,
    }
}

/// What a session keeps once its counters have spilled, or its events are many.
#[derive(Clone, Copy, Debug)]
struct Ledger {
    totals: [u64; 4],
    /// Events forgotten, the beginning included.
    forgotten: u32,
    /// Events here.
    events: u32,
    /// Where the last of them begins.
    last: u32,
}

impl Ledger {
    fn read(bytes: &[u8; LEDGER_BYTES]) -> Self {
        let (totals, counts) = bytes.split_at(32);
        let total = |index: usize| totals[8 * index..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let count = |index: usize| counts[4 * index..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        Self { totals: [0, 1, 2, 3].map(total), forgotten: count(0), events: count(1), last: count(2) }
    }

    fn to_bytes(self) -> [u8; LEDGER_BYTES] {
        let mut bytes = [0; LEDGER_BYTES];
        for (place, total) in bytes.chunks_exact_mut(8).zip(self.totals) {
            place.copy_from_slice(&total.to_le_bytes());
        }
        for (place, count) in bytes[32..].chunks_exact_mut(4).zip([self.forgotten, self.events, self.last]) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        bytes
    }
}

/// Bytes: few in place, more in one allocation that grows in small steps.
#[derive(Debug)]
enum Tape {
    Short { len: u8, bytes: [u8; SHORT_MAX] },
    Long { len: u32, bytes: Box<[u8]> },
}

const _: () = assert!(size_of::<Tape>() == 24);

impl Default for Tape {
    /// The flags alone, none of them set.
    fn default() -> Self {
        Self::Short { len: 1, bytes: [0; SHORT_MAX] }
    }
}

impl Tape {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long { len, bytes } => &bytes[..*len as usize],
        }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Self::Short { len, bytes } => &mut bytes[..usize::from(*len)],
            Self::Long { len, bytes } => &mut bytes[..*len as usize],
        }
    }

    fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Puts `added` in the place of `removed` bytes from `at` on.
    fn splice(&mut self, at: usize, removed: usize, added: &[u8]) {
        let (before, after) = (self.len(), self.len() - removed + added.len());
        self.resize(after.max(before));
        let bytes = self.as_mut_slice();
        bytes.copy_within(at + removed..before, at + added.len());
        bytes[at..][..added.len()].copy_from_slice(added);
        self.resize(after);
    }

    fn resize(&mut self, to: usize) {
        match self {
            Self::Short { len, .. } if to <= SHORT_MAX => *len = to as u8,
            Self::Long { len, bytes } if to <= bytes.len() => *len = to as u32,
            _ => {
                // Steps of 32 bytes, an eighth when that is more, less the 8 that the C library's allocator adds.
                let mut bytes = vec![0; (to + to / 8 + 8).next_multiple_of(32) - 8];
                bytes[..self.len()].copy_from_slice(self.as_slice());
                *self = Self::Long { len: to as u32, bytes: bytes.into_boxed_slice() };
            }
        }
    }
}

/// A time in microseconds: 11 bits of it, and how far they are shifted; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rtt(u16);

impl Rtt {
    fn new(us: u64) -> Self {
        let us = us.clamp(1, (1 << 42) - 1);
        let shift = (u64::BITS - us.leading_zeros()).saturating_sub(11);
        Self((shift << 11) as u16 | (us >> shift) as u16)
    }

    fn us(self) -> Option<u64> {
        (self.0 != 0).then(|| u64::from(self.0 & 0x7ff) << (self.0 >> 11))
    }
}

const IS_V4: u8 = 1;
const IS_V6: u8 = 1 << 1;
const HAS_LEDGER: u8 = 1 << 2;
const LEDGER_BYTES: usize = 44;
/// Bytes of a tape that lie in place: an IPv4 address, `authenticated`, and `subscribed` to a topic of up to 12 bytes.
const SHORT_MAX: usize = 22;
/// Events that are counted by walking over them, for want of a ledger.
const WALK_MAX: u32 = 8;
/// A history may be over its limit by this part of it until it is cut.
const SLACK: u32 = 8;
/// Whatever the limit, one event of each kind with the longest topic has room.
const BYTES_MAX_LEAST: u32 = 1024;

#[cfg(test)]
mod tests;
