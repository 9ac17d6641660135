//! The history of a session, packed, against a list.

use tidewheel::conn::{Flow, HistoryLimits, Note, Session, Shown, Traffic};
use tidewheel::metrics::{CloseReason, Drop, ErrorCode};

use crate::script::Script;

/// The bounds, and what happens to the session.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    let events_max = u32::from(script.byte());
    let is_roomy = script.byte() & 1 == 0;
    let of_events = HistoryLimits::of_events(events_max);
    let limits = if is_roomy { HistoryLimits { bytes_max: u32::MAX / 16, ..of_events } } else { of_events };
    let (mut session, mut traffic, mut total) = (Session::default(), Traffic::default(), 0);
    session.open(BEGIN_MS);
    let mut noted: Vec<(Told, u32)> = Vec::new();
    let mut now_ms = BEGIN_MS;
    while !script.is_over() {
        now_ms += u64::from(script.word());
        let count = 1 + u32::from(script.byte());
        match script.below(12) {
            0 => session.set_address(None),
            1 => session.set_address(Some([192, 0, 2, script.byte()].into())),
            2 => session.set_address(Some(std::net::Ipv6Addr::from([script.word(); 8]).into())),
            3 => {
                let n = u32::from(script.word()) << script.below(17);
                total += u64::from(n);
                if let Some(spilled) = traffic.add(Flow::BytesOut, n) {
                    session.spill(Flow::BytesOut, spilled);
                }
            }
            4 => now_ms += u64::from(script.word()) << 20,
            kind => {
                let name = script.piece();
                let name = String::from_utf8_lossy(name);
                let note = match kind {
                    5 => Note::Authenticated,
                    6 => Note::Subscribed(&name),
                    7 => Note::Unsubscribed(&name),
                    8 => Note::Error(ErrorCode::ALL[name.len() % ErrorCode::ALL.len()]),
                    9 => Note::Dropped(Drop::ALL[name.len() % Drop::ALL.len()]),
                    10 => Note::RateLimited,
                    _ => {
                        Note::Closed(CloseReason::ALL[name.len() % CloseReason::ALL.len()], Some(1 + name.len() as u16))
                    }
                };
                session.note(note, count, now_ms, &limits);
                if events_max > 0 {
                    let (told, is_counted) = (Told::new(note), note.is_counted());
                    match noted.last_mut().filter(|last| is_counted && last.0 == told) {
                        Some(run) => run.1 += count,
                        None => noted.push((told, if is_counted { count } else { 1 })),
                    }
                }
            }
        }
        check(&session, &limits, is_roomy, &noted);
        assert_eq!((session.totals(traffic).bytes_out, session.since()), (total, BEGIN_MS));
    }
}

/// What is shown is the end of what was noted, and all that is not is counted.
fn check(session: &Session, limits: &HistoryLimits, is_roomy: bool, noted: &[(Told, u32)]) {
    let Shown { from_begin, forgotten, mut events } = session.history(limits);
    if limits.events_max == 0 {
        return assert_eq!((events.count(), forgotten, from_begin), (0, 0, false));
    }
    let all = 1 + noted.len();
    let kept = all.checked_sub(forgotten as usize).filter(|&kept| kept > 0).expect("the newest one stays");
    let count = kept - usize::from(from_begin);
    let end = noted.len().checked_sub(count).map(|first| &noted[first..]);
    let is_shown = |(told, count): &(Told, u32)| {
        events.next().is_some_and(|(_, event)| told.is_of(event.note) && *count == event.count)
    };
    let is_end = end.is_some_and(|end| end.iter().all(is_shown)) && events.next().is_none();
    assert!(is_end, "{count} of {noted:?} are not {:?}", session.history(limits).events.collect::<Vec<_>>());
    assert!(kept <= limits.events_max as usize, "{kept} of {}", limits.events_max);
    assert!(!is_roomy || kept == all.min(limits.events_max as usize), "{kept} of {all}");
}

/// A note as it is kept: of a long name the front.
#[derive(Debug, PartialEq)]
enum Told {
    Subscribed(String),
    Unsubscribed(String),
    Other(Note<'static>),
}

impl Told {
    fn new(note: Note<'_>) -> Self {
        let front = |name: &str| name[..name.floor_char_boundary(255)].to_owned();
        match note {
            Note::Subscribed(name) => Self::Subscribed(front(name)),
            Note::Unsubscribed(name) => Self::Unsubscribed(front(name)),
            Note::Authenticated => Self::Other(Note::Authenticated),
            Note::Refreshed => Self::Other(Note::Refreshed),
            Note::Error(code) => Self::Other(Note::Error(code)),
            Note::Dropped(cause) => Self::Other(Note::Dropped(cause)),
            Note::RateLimited => Self::Other(Note::RateLimited),
            Note::Closed(reason, code) => Self::Other(Note::Closed(reason, code)),
        }
    }

    fn is_of(&self, note: Note<'_>) -> bool {
        match (self, note) {
            (Self::Subscribed(told), Note::Subscribed(name)) => told == name,
            (Self::Unsubscribed(told), Note::Unsubscribed(name)) => told == name,
            (Self::Other(told), note) => *told == note,
            _ => false,
        }
    }
}

const BEGIN_MS: u64 = 1_700_000_000_000;
