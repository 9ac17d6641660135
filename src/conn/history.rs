//! What has happened to one session, packed: an event is a byte for its kind, its time and a small detail.
//! Law: memory follows the events that there are, never the bound; events are written at the end and forgotten from the
//! front; a run of equal events that can be counted is one event.
//!
//! ```text
//! event: kind:4 | time:3 | more:1, then 7 bits of time a byte while `more`; detail by kind
//! time:  milliseconds after the session's begin, low bits first: 2 bytes for the first second, 5 for a month
//! ```

use crate::metrics::{CloseReason, Drop, ErrorCode};

/// Something that happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// It became a user's.
    Authenticated,
    /// Its token was renewed.
    Refreshed,
    /// It became a member of a topic; a name is cut after 255 bytes.
    Subscribed(&'a str),
    /// It is no member of a topic any more.
    Unsubscribed(&'a str),
    /// It was answered with an error. Counted.
    Error(ErrorCode),
    /// Messages for it were dropped by a policy. Counted.
    Dropped(Drop),
    /// A message of it was over a rate. Counted.
    RateLimited,
    /// It began to close: why, and with which code if a close frame was sent.
    Closed(CloseReason, Option<u16>),
}

/// An event as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Milliseconds after the session's begin.
    pub after_ms: u64,
    /// What happened.
    pub note: Note<'a>,
    /// How often in a row, from that time on.
    pub count: u32,
}

/// Bytes of a topic's name that are kept.
pub const TOPIC_BYTES_MAX: usize = 255;
/// Bytes of the longest event: kind and time, length, name.
pub const EVENT_BYTES_MAX: usize = 7 + 1 + TOPIC_BYTES_MAX;

impl Event<'_> {
    /// Appends the event to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let time = self.after_ms.min(TIME_MAX);
        let mut rest = time >> 3;
        out.push(self.note.kind() | ((time & 7) as u8) << 4 | more(rest));
        while rest > 0 {
            out.push((rest & 0x7f) as u8 | more(rest >> 7));
            rest >>= 7;
        }
        match self.note {
            Note::Authenticated | Note::Refreshed => {}
            Note::Subscribed(topic) | Note::Unsubscribed(topic) => {
                let topic = &topic[..topic.floor_char_boundary(TOPIC_BYTES_MAX)];
                out.push(topic.len() as u8);
                out.extend_from_slice(topic.as_bytes());
            }
            Note::Error(code) => out.push(code as u8),
            Note::Dropped(cause) => out.push(cause as u8),
            Note::RateLimited => {}
            Note::Closed(reason, code) => {
                out.push(reason as u8);
                out.extend_from_slice(&code.unwrap_or(0).to_le_bytes()); // no close frame carries 0
            }
        }
        if self.note.is_counted() {
            out.extend_from_slice(&self.count.to_le_bytes());
        }
    }
}

impl Note<'_> {
    /// Whether a run of it is one event, whose last four bytes are its length.
    pub fn is_counted(&self) -> bool {
        matches!(self, Note::Error(_) | Note::Dropped(_) | Note::RateLimited)
    }

    fn kind(&self) -> u8 {
        match self {
            Note::Authenticated => 0,
            Note::Refreshed => 1,
            Note::Subscribed(_) => 2,
            Note::Unsubscribed(_) => 3,
            Note::Error(_) => 4,
            Note::Dropped(_) => 5,
            Note::RateLimited => 6,
            Note::Closed(..) => 7,
        }
    }
}

/// The events of packed bytes, in order, each with where it begins.
#[derive(Clone, Debug)]
pub struct Events<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Events<'a> {
    /// Those of `bytes`, which [`Event::write`] wrote.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn read(&mut self) -> Option<Event<'a>> {
        let head = self.byte()?;
        let (mut time, mut shift, mut is_more) = (u64::from(head >> 4 & 7), 3, head & MORE != 0);
        while is_more {
            let byte = self.byte()?;
            time |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            is_more = byte & MORE != 0;
        }
        let note = match head & 0xf {
            0 => Note::Authenticated,
            1 => Note::Refreshed,
            2 => Note::Subscribed(self.topic()?),
            3 => Note::Unsubscribed(self.topic()?),
            4 => Note::Error(*ErrorCode::ALL.get(usize::from(self.byte()?))?),
            5 => Note::Dropped(*Drop::ALL.get(usize::from(self.byte()?))?),
            6 => Note::RateLimited,
            7 => {
                let reason = *CloseReason::ALL.get(usize::from(self.byte()?))?;
                let code = u16::from_le_bytes(*self.take(2)?.first_chunk()?);
                Note::Closed(reason, (code != 0).then_some(code))
            }
            _ => return None,
        };
        let count = if note.is_counted() { u32::from_le_bytes(*self.take(4)?.first_chunk()?) } else { 1 };
        Some(Event { after_ms: time, note, count })
    }

    fn topic(&mut self) -> Option<&'a str> {
        let len = self.byte()?;
        str::from_utf8(self.take(usize::from(len))?).ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at + count)?;
        self.at += count;
        Some(taken)
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = (usize, Event<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let event = self.read();
        debug_assert_eq!(event.is_none(), at == self.bytes.len(), "an event that was not written here");
        event.map(|event| (at, event))
    }
}

fn more(rest: u64) -> u8 {
    if rest > 0 { MORE } else { 0 }
}

const MORE: u8 = 0x80;
/// 139 years; what is later happened then.
const TIME_MAX: u64 = (1 << 42) - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(after_ms: u64, note: Note<'_>, bytes: usize) {
        let (mut out, event) = (Vec::new(), Event { after_ms, note, count: 1 });
        event.write(&mut out);
        assert_eq!((out.len(), Events::new(&out).collect::<Vec<_>>()), (bytes, vec![(0, event)]));
    }

    #[test]
    fn an_event_is_as_long_as_it_must_be() {
        check(0, Note::Authenticated, 1);
        check(7, Note::Authenticated, 1);
        check(8, Note::Refreshed, 2);
        check(1_023, Note::Refreshed, 2);
        check(1_024, Note::Refreshed, 3);
        check(30 * 86_400_000, Note::Refreshed, 6);
        check(TIME_MAX, Note::Authenticated, 7);
        check(100, Note::Subscribed("topic.123"), 2 + 1 + 9);
        check(100, Note::Unsubscribed(""), 3);
        check(0, Note::Error(ErrorCode::InternalError), 6);
        check(0, Note::Dropped(Drop::Closed), 6);
        check(0, Note::RateLimited, 5);
        check(0, Note::Closed(CloseReason::Internal, None), 4);
        check(0, Note::Closed(CloseReason::Peer, Some(1000)), 4);
        check(TIME_MAX, Note::Subscribed(&"t".repeat(TOPIC_BYTES_MAX)), EVENT_BYTES_MAX);
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let name = format!("t{}", "é".repeat(200));
        let mut out = Vec::new();
        Event { after_ms: 0, note: Note::Subscribed(&name), count: 1 }.write(&mut out);
        let (_, event) = Events::new(&out).next().unwrap();
        assert_eq!(event.note, Note::Subscribed(&name[..255]));
        let name = format!("tt{}", "é".repeat(200));
        out.clear();
        Event { after_ms: 0, note: Note::Subscribed(&name), count: 1 }.write(&mut out);
        assert_eq!(Events::new(&out).next().unwrap().1.note, Note::Subscribed(&name[..254]));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(events in proptest::collection::vec((0..=TIME_MAX, 0..8_u8, "[a-zé.]{0,40}", 1..9_u32), 0..40)) {
            let notes: Vec<_> = events
                .iter()
                .map(|(after_ms, kind, topic, count)| {
                    let note = match kind {
                        0 => Note::Authenticated,
                        1 => Note::Refreshed,
                        2 => Note::Subscribed(topic),
                        3 => Note::Unsubscribed(topic),
                        4 => Note::Error(ErrorCode::ALL[topic.len() % ErrorCode::ALL.len()]),
                        5 => Note::Dropped(Drop::ALL[topic.len() % Drop::ALL.len()]),
                        6 => Note::RateLimited,
                        _ => Note::Closed(CloseReason::ALL[topic.len() % CloseReason::ALL.len()], (topic.len() > 9).then_some(4001)),
                    };
                    Event { after_ms: *after_ms, note, count: if note.is_counted() { *count } else { 1 } }
                })
                .collect();
            let mut out = Vec::new();
            notes.iter().for_each(|event| event.write(&mut out));
            prop_assert_eq!(Events::new(&out).map(|(_, event)| event).collect::<Vec<_>>(), notes);
        }
    }
}
