//! Publishes and their counts between two shards: each is received once, in order, and answered once; evictions are
//! named once.

use std::sync::Arc;

use loom::thread;
use tidewheel::id::{ReceiptIndex, ShardId};
use tidewheel::io::{Doorbell, SharedFrame};
use tidewheel::pubsub::{Bus, BusPort, Delivery, Publish};

use crate::{A, B, Sleeper, conn, explore};

/// One shard's end of the bus, and who sleeps.
struct Shard {
    port: BusPort,
    sleepers: Arc<[Sleeper; 2]>,
    id: ShardId,
}

impl Shard {
    fn two(bound: usize) -> [Self; 2] {
        let (bus, sleepers) = (Bus::with_bound(2, bound), Arc::new([Sleeper::default(), Sleeper::default()]));
        [A, B].map(|id| Self { port: bus.port(id), sleepers: sleepers.clone(), id })
    }

    fn other(&self) -> ShardId {
        ShardId(1 - self.id.0)
    }

    fn publish(&mut self, receipt: u32) {
        let frame = SharedFrame::new(receipt.to_le_bytes().to_vec());
        self.port.publish(self.port.others(), None, &frame, ReceiptIndex::new(receipt));
    }

    /// Receives a publish and answers it; which one it was.
    fn answer(&mut self) -> Option<u32> {
        let Publish { frame, receipt, .. } = self.port.receive_publish(self.other())?;
        self.port.answer(self.other(), receipt, Delivery { matched: 1, ..Delivery::default() });
        Some(u32::from_le_bytes(*frame.plain().first_chunk().expect("four bytes")))
    }

    /// The end of a turn and the wait for the next.
    fn sleep(&mut self) {
        for shard in self.port.take_rings().iter() {
            self.sleepers[shard.index()].ring();
        }
        let port = &self.port;
        self.sleepers[self.id.index()].nap(|| port.has_mail());
        self.port.take_senders();
    }
}

/// More publishes than there is room for: the publisher goes on when it gets counts.
#[test]
fn a_publish_is_answered_once() {
    explore("a_publish_is_answered_once", 2, || {
        let [mut a, mut b] = Shard::two(1);
        let receiver = thread::spawn(move || {
            let mut received = Vec::new();
            while received.len() < 2 {
                b.sleep();
                received.extend(std::iter::from_fn(|| b.answer()));
            }
            for shard in b.port.take_rings().iter() {
                b.sleepers[shard.index()].ring();
            }
            received
        });
        let mut counted = Vec::new();
        for receipt in 0..2 {
            while !a.port.has_room() {
                a.sleep();
                counted.extend(std::iter::from_fn(|| a.port.receive_count(B)));
            }
            a.publish(receipt);
        }
        while counted.len() < 2 {
            a.sleep();
            counted.extend(std::iter::from_fn(|| a.port.receive_count(B)));
        }
        assert_eq!(receiver.join().unwrap(), [0, 1]);
        let once = Delivery { matched: 1, ..Delivery::default() };
        assert_eq!(counted, [0, 1].map(|receipt| (ReceiptIndex::new(receipt), once)));
        assert!(a.port.receive_count(B).is_none());
    });
}

/// A shard that breaks between a publish and its answer, and is about one of its own: the other's is answered with nothing,
/// and the answer to its own reaches nobody.
#[test]
fn a_publish_to_a_shard_that_breaks_is_answered_once() {
    explore("a_publish_to_a_shard_that_breaks_is_answered_once", 2, || {
        let [mut a, mut b] = Shard::two(2);
        assert!(a.port.has_room() && b.port.has_room());
        let breaks = thread::spawn(move || {
            b.publish(9);
            let in_hand = b.port.receive_publish(A).is_some();
            b.port.restart();
            let mut received = usize::from(in_hand);
            while received < 1 {
                b.sleep();
                received += usize::from(b.answer().is_some());
            }
            b.port.take_rings().iter().for_each(|shard| b.sleepers[shard.index()].ring());
            // Until the answer to the old shard's own has come and gone.
            while !b.port.has_room() || b.port.receive_count(A).is_some() {
                b.sleep();
            }
            (b, in_hand)
        });
        a.publish(3);
        let mut counted = Vec::new();
        let mut answered = None;
        while counted.is_empty() || answered.is_none() {
            a.sleep();
            counted.extend(std::iter::from_fn(|| a.port.receive_count(B)));
            answered = answered.or(a.answer());
        }
        a.port.take_rings().iter().for_each(|shard| a.sleepers[shard.index()].ring());
        let (mut b, in_hand) = breaks.join().unwrap();
        let matched = u64::from(!in_hand);
        assert_eq!(counted, [(ReceiptIndex::new(3), Delivery { matched, ..Delivery::default() })]);
        assert_eq!((answered, a.port.receive_count(B), b.port.receive_count(A)), (Some(9), None, None));
    });
}

/// Who is evicted is named once, and the shard it is on does not sleep on it.
#[test]
fn an_eviction_arrives_once() {
    explore("an_eviction_arrives_once", 3, || {
        let [mut a, mut b] = Shard::two(1);
        let evicts = thread::spawn(move || {
            for slot in [4, 5] {
                b.port.evict(A, conn(slot));
                b.port.take_rings().iter().for_each(|shard| b.sleepers[shard.index()].ring());
            }
        });
        let mut gone = Vec::new();
        while gone.len() < 2 {
            a.sleep();
            gone.extend(std::iter::from_fn(|| a.port.next_evicted()));
        }
        evicts.join().unwrap();
        assert_eq!(gone, [4, 5].map(conn));
    });
}
