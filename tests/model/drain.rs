//! The end of an engine: no shard ends before the last connection of all, and none waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use loom::thread;
use tidewheel::io::Doorbell;
use tidewheel::shard::Tally;

use crate::{Sleeper, explore};

/// An engine of so many shards.
struct Engine {
    tally: Tally,
    sleepers: Vec<Sleeper>,
    /// What is true at this instant, whatever a thread knows of it: connections, shards that accept.
    left: [AtomicUsize; 2],
}

impl Engine {
    fn new(shards: usize) -> Arc<Self> {
        let tally = Tally::default();
        (0..shards).for_each(|_| tally.opens());
        let left = [AtomicUsize::new(0), AtomicUsize::new(shards)];
        Arc::new(Self { tally, sleepers: (0..shards).map(|_| Sleeper::default()).collect(), left })
    }

    fn arrives(&self) {
        self.left[0].fetch_add(1, SeqCst);
        self.tally.arrives();
    }

    fn leaves(&self, shard: usize) {
        self.left[0].fetch_sub(1, SeqCst);
        let is_over = self.tally.leave(1);
        self.wake_others(shard, is_over);
    }

    fn stops(&self, shard: usize) {
        self.left[1].fetch_sub(1, SeqCst);
        let is_over = self.tally.stops();
        self.wake_others(shard, is_over);
    }

    fn wake_others(&self, shard: usize, is_over: bool) {
        let others = self.sleepers.iter().enumerate().filter(|&(other, _)| is_over && other != shard);
        others.for_each(|(_, other)| other.ring());
    }

    /// Waits for the end, as a shard does that has nobody left.
    fn ends(&self, shard: usize) {
        while !self.tally.is_over() {
            self.sleepers[shard].nap(|| self.tally.is_over());
        }
        let left = self.left.each_ref().map(|left| left.load(SeqCst));
        assert_eq!(left, [0, 0], "shard {shard} ends before connections and shards that accept");
    }
}

/// One shard has nobody; the other gets somebody until it stops, and loses him before or afterwards.
fn two_shards(loses_first: bool) {
    let engine = Engine::new(2);
    let other = {
        let engine = engine.clone();
        thread::spawn(move || {
            engine.arrives();
            if loses_first {
                engine.leaves(1);
                engine.stops(1);
            } else {
                engine.stops(1);
                engine.leaves(1);
            }
            engine.ends(1);
        })
    };
    engine.stops(0);
    engine.ends(0);
    other.join().unwrap();
}

#[test]
fn two_shards_end_together() {
    explore("two_shards_end_together", 4, || two_shards(false));
}

#[test]
fn two_shards_end_together_though_the_last_connection_goes_first() {
    explore("two_shards_end_together_though_the_last_connection_goes_first", 4, || two_shards(true));
}

/// One shard waits; of the others one stops while the other counts the last connection out.
#[test]
fn three_shards_end_together() {
    explore("three_shards_end_together", 2, || {
        let engine = Engine::new(3);
        engine.arrives();
        engine.stops(1);
        let others = [1, 2].map(|shard| {
            let engine = engine.clone();
            thread::spawn(move || {
                match shard {
                    1 => engine.leaves(1),
                    _ => engine.stops(2),
                }
                engine.ends(shard);
            })
        });
        engine.stops(0);
        engine.ends(0);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// The drain's total is noted once, and all shards read the same.
#[test]
fn the_drain_begins_once() {
    explore("the_drain_begins_once", 4, || {
        let tally = Arc::new(Tally::default());
        tally.arrives();
        let other = {
            let tally = tally.clone();
            thread::spawn(move || {
                tally.arrives();
                tally.total()
            })
        };
        let (mine, theirs) = (tally.total(), other.join().unwrap());
        assert!(mine.0 == theirs.0 && (mine.1 ^ theirs.1), "{mine:?} {theirs:?}");
    });
}
