//! Reservations: of newcomers on all shards exactly as many get a place as there are.

use std::sync::Arc;

use loom::sync::atomic::AtomicUsize;
use loom::thread;
use tidewheel::conn::Seat;
use tidewheel::shard::Tally;

use crate::explore;

/// The last seat for a handshake is taken by one of two, and by another when it is free again.
#[test]
fn a_seat_is_taken_by_one() {
    explore("a_seat_is_taken_by_one", 4, || {
        let taken = Arc::new(AtomicUsize::new(1));
        let other = {
            let taken = taken.clone();
            thread::spawn(move || {
                Seat::take(&taken, 2, &Arc::default()).is_some_and(|seat| (std::mem::forget(seat), true).1)
            })
        };
        let mine = Seat::take(&taken, 2, &Arc::default());
        assert!(mine.is_some() ^ other.join().unwrap(), "one of two");
        assert!(Seat::take(&taken, 2, &Arc::default()).is_none());
        if mine.is_some() {
            drop(mine);
            assert!(Seat::take(&taken, 2, &Arc::default()).is_some(), "free again");
        }
    });
}

/// Of two newcomers one is below the limit, and both are gone when they have left.
#[test]
fn one_newcomer_is_below_the_limit() {
    explore("one_newcomer_is_below_the_limit", 4, || {
        let tally = Arc::new(Tally::default());
        let other = {
            let tally = tally.clone();
            thread::spawn(move || tally.arrives() < 1)
        };
        assert!((tally.arrives() < 1) ^ other.join().unwrap());
        assert!(!tally.leave(1) && tally.leave(1));
    });
}
