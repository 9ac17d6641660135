//! A session's 32 bytes, and what happens at its bounds.

use proptest::prelude::*;

use super::*;
use crate::metrics::{CloseReason, Drop, ErrorCode};

const BEGIN: u64 = 1_700_000_000_000;

fn session(address: &str) -> Session {
    let mut session = Session::new(Some(address.parse().unwrap()));
    session.open(BEGIN);
    session
}

fn limits(events_max: u32) -> HistoryLimits {
    HistoryLimits::of_events(events_max)
}

/// The history in short, `begin` first if it is shown, and how many events were forgotten.
fn told(session: &Session, limits: &HistoryLimits) -> (Vec<String>, u32) {
    let Shown { from_begin, forgotten, events } = session.history(limits);
    let begin = from_begin.then(|| "begin".to_owned());
    let events = events.map(|(_, event)| match event.note {
        Note::Subscribed(topic) => format!("+{topic}"),
        Note::Unsubscribed(topic) => format!("-{topic}"),
        note => format!("{note:?}*{}", event.count),
    });
    (begin.into_iter().chain(events).collect(), forgotten)
}

#[test]
fn an_idle_session_with_three_events_has_nothing_on_the_heap() {
    let mut session = session("192.0.2.7");
    session.note(Note::Authenticated, 1, BEGIN + 250, &limits(100));
    session.note(Note::Subscribed("chat.room123"), 1, BEGIN + 800, &limits(100));
    session.set_rtt_us(1_234);
    assert_eq!((session.heap_bytes(), session.address()), (0, Some("192.0.2.7".parse().unwrap())));
    assert_eq!(told(&session, &limits(100)).0, ["begin", "Authenticated*1", "+chat.room123"]);
    session.note(Note::Unsubscribed("chat.room123"), 1, BEGIN + 900, &limits(100));
    assert_eq!(session.heap_bytes(), 56, "one small allocation");
}

#[test]
fn the_bound_is_exact_and_what_is_beyond_it_is_counted() {
    for (max, events) in [(1, 0), (1, 1), (3, 2), (3, 3), (5, 40), (100, 99), (100, 100), (100, 1000)] {
        let mut session = session("192.0.2.7");
        for topic in 0..events {
            session.note(Note::Subscribed(&format!("t{topic}")), 1, BEGIN, &limits(max));
        }
        let all: Vec<_> =
            ["begin".to_owned()].into_iter().chain((0..events).map(|topic| format!("+t{topic}"))).collect();
        let gone = all.len().saturating_sub(max as usize);
        assert_eq!(told(&session, &limits(max)), (all[gone..].to_vec(), gone as u32), "{max} {events}");
    }
}

#[test]
fn without_a_history_only_the_end_is_noted() {
    let mut session = session("192.0.2.7");
    session.note(Note::Authenticated, 1, BEGIN, &limits(0));
    session.note(Note::Closed(CloseReason::Idle, Some(4001)), 1, BEGIN + 5, &limits(0));
    assert_eq!(told(&session, &limits(0)), (vec![], 0));
    let closed = session.closed().unwrap();
    assert_eq!((closed.after_ms, closed.note), (5, Note::Closed(CloseReason::Idle, Some(4001))));
}

#[test]
fn long_names_leave_room_for_fewer_events_and_the_bytes_are_bounded() {
    let (mut session, limits) = (session("2001:db8::1"), limits(100));
    for topic in 0..5_000_u32 {
        session.note(Note::Subscribed(&format!("{topic:0>255}")), 1, BEGIN, &limits);
        assert!(session.heap_bytes() < 4 * 1024, "{}", session.heap_bytes());
    }
    let (shown, forgotten) = told(&session, &limits);
    assert!(shown.len() >= 8 && forgotten as usize == 5_001 - shown.len(), "{} {forgotten}", shown.len());
    assert!(shown.last().unwrap().ends_with("04999"));
    assert_eq!(session.address(), Some("2001:db8::1".parse().unwrap()), "no event, so it is not forgotten");
}

#[test]
fn runs_are_counted() {
    let (mut session, limits) = (session("192.0.2.7"), limits(100));
    for _ in 0..300 {
        session.note(Note::RateLimited, 1, BEGIN, &limits);
    }
    session.note(Note::Dropped(Drop::Closed), 7, BEGIN, &limits);
    session.note(Note::Dropped(Drop::Closed), 8, BEGIN + 1, &limits);
    session.note(Note::Error(ErrorCode::Forbidden), 1, BEGIN, &limits);
    session.note(Note::Error(ErrorCode::NotFound), 1, BEGIN, &limits);
    session.note(Note::Error(ErrorCode::Forbidden), 1, BEGIN, &limits);
    let expected = [
        "begin",
        "RateLimited*300",
        "Dropped(Closed)*15",
        "Error(Forbidden)*1",
        "Error(NotFound)*1",
        "Error(Forbidden)*1",
    ];
    assert_eq!(told(&session, &limits), (expected.map(String::from).to_vec(), 0));
}

#[test]
fn counters_spill_and_add_up() {
    let (mut session, mut traffic) = (session("192.0.2.7"), Traffic::default());
    let mut expected = 0;
    for n in [1, 65_534, 1, 0, 65_535, 65_536, 1 << 31, u32::MAX, 3] {
        expected += u64::from(n);
        if let Some(spilled) = traffic.add(Flow::BytesOut, n) {
            session.spill(Flow::BytesOut, spilled);
        }
        let totals = session.totals(traffic);
        assert_eq!((totals.bytes_out, totals.bytes_in), (expected, 0), "{n}");
    }
    session.note(Note::Authenticated, 1, BEGIN, &limits(2));
    session.note(Note::Refreshed, 1, BEGIN, &limits(2));
    assert_eq!(told(&session, &limits(2)), (vec!["Authenticated*1".into(), "Refreshed*1".into()], 1));
    assert_eq!(session.totals(traffic).bytes_out, expected);
}

#[test]
fn an_address_can_be_put_right() {
    let (mut session, limits) = (session("192.0.2.7"), limits(100));
    session.note(Note::Authenticated, 1, BEGIN, &limits);
    for address in [None, Some("2001:db8::7"), Some("198.51.100.1"), None, Some("::1")] {
        let address = address.map(|address: &str| address.parse().unwrap());
        session.set_address(address);
        assert_eq!((session.address(), told(&session, &limits).0.len()), (address, 2));
        session.spill(Flow::BytesIn, 1);
    }
    assert_eq!(session.totals(Traffic::default()).bytes_in, 5);
}

#[test]
fn a_round_trip_keeps_eleven_bits() {
    assert_eq!(Session::default().rtt_us(), None);
    for us in [0, 1, 2_047, 2_048, 4_097, 1_000_000, 3_600_000_000, u64::MAX] {
        let (rtt, us) = (Rtt::new(us).us().unwrap(), us.clamp(1, (1 << 42) - 1));
        assert!(rtt <= us && us - rtt <= us / 1024, "{us} {rtt}");
    }
}

proptest! {
    #[test]
    fn agrees_with_a_list(max in 1..40_u32, events in proptest::collection::vec((0..4_u8, "[a-z.]{0,30}"), 0..200)) {
        let (mut session, limits) = (session("192.0.2.7"), HistoryLimits { events_max: max, bytes_max: u32::MAX / 16 });
        let mut expected = vec!["begin".to_owned()];
        for (step, (kind, topic)) in events.iter().enumerate() {
            let note = match kind {
                0 => Note::Authenticated,
                1 => Note::Subscribed(topic),
                2 => Note::Unsubscribed(topic),
                _ => Note::Closed(CloseReason::Lost, None),
            };
            session.note(note, 1, BEGIN + 1000 * step as u64, &limits);
            expected.push(match note {
                Note::Subscribed(topic) => format!("+{topic}"),
                Note::Unsubscribed(topic) => format!("-{topic}"),
                note => format!("{note:?}*1"),
            });
            if step % 7 == 0 {
                session.spill(Flow::MessagesIn, 1);
            }
            let gone = expected.len().saturating_sub(max as usize);
            prop_assert_eq!(told(&session, &limits), (expected[gone..].to_vec(), gone as u32));
        }
    }
}
