//! Which shards have subscribers of a topic, and which compressed forms they take.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use tidewheel::id::ReceiptIndex;
use tidewheel::io::SharedFrame;
use tidewheel::pubsub::{Bus, Delivery, Publish, Registry, WindowCounts};
use tidewheel::ws::deflate::Windows;

use crate::{A, B, C, explore};

/// A publisher that knows a topic from before, and publishes after it has seen the ack of a new subscriber on another
/// shard, finds that shard, whatever the topic's last subscriber does meanwhile.
#[test]
fn a_publish_after_the_ack_finds_the_subscriber() {
    explore("a_publish_after_the_ack_finds_the_subscriber", 4, || {
        let registry = Arc::new(Registry::new(3));
        let known = registry.join("t", C, 0);
        let acked = Arc::new(AtomicBool::new(false));
        let subscriber = {
            let (registry, acked) = (registry.clone(), acked.clone());
            thread::spawn(move || {
                registry.join("t", B, 0);
                acked.store(true, Ordering::Release);
            })
        };
        let leaver = {
            let (registry, known) = (registry.clone(), known.clone());
            thread::spawn(move || registry.leave(&known, C))
        };
        if acked.load(Ordering::Acquire) {
            let interest = known.interest().or_else(|| registry.find("t")?.interest());
            assert!(interest.is_some_and(|shards| shards.contains(B)), "missed after the ack");
        }
        subscriber.join().unwrap();
        leaver.join().unwrap();
        assert_eq!(registry.find("t").unwrap().interest().unwrap().iter().collect::<Vec<_>>(), [B]);
    });
}

/// A shard loses its last subscriber and gets another while publishes are on their way to it: who has come since sees them
/// from one on, and none of those before.
#[test]
fn a_new_subscriber_sees_no_gap() {
    explore("a_new_subscriber_sees_no_gap", 4, || {
        let (registry, bus) = (Registry::new(3), Bus::with_bound(3, 2));
        registry.join("t", C, 0);
        let topic = registry.join("t", B, 0);
        let (registry, mut publisher, mut port) = (Arc::new(registry), bus.port(A), bus.port(B));
        let subscribers = {
            let (registry, topic) = (registry.clone(), topic.clone());
            thread::spawn(move || {
                registry.leave(&topic, B);
                registry.join("t", B, 0);
            })
        };
        for number in 0..2 {
            assert!(publisher.has_room());
            let mut to = topic.interest().expect("alive");
            to.remove(C);
            publisher.publish(to, Some(&topic), &SharedFrame::new(vec![number]), ReceiptIndex::new(0));
        }
        subscribers.join().unwrap();
        let mut seen = Vec::new();
        while let Some(Publish { topic, period, frame, receipt }) = port.receive_publish(A) {
            if topic.is_some_and(|topic| topic.local_in(period, B).is_some()) {
                seen.push(frame.plain()[0]);
            }
            port.answer(A, receipt, Delivery::default());
        }
        assert!([&[][..], &[1], &[0, 1]].contains(&&*seen), "{seen:?}");
    });
}

/// The last of two shards to leave takes the topic out, and it is gone for whoever held it.
#[test]
fn a_topic_dies_once() {
    explore("a_topic_dies_once", 4, || {
        let registry = Arc::new(Registry::new(2));
        let topic = registry.join("t", A, 0);
        registry.join("t", B, 0);
        let other = {
            let (registry, topic) = (registry.clone(), topic.clone());
            thread::spawn(move || registry.leave(&topic, A))
        };
        registry.leave(&topic, B);
        other.join().unwrap();
        assert!(registry.find("t").is_none() && topic.interest().is_none());
    });
}

/// A shard that breaks leaves all topics at once, while another loses its last subscriber of one and gains the first again.
#[test]
fn a_broken_shard_takes_no_topic_along() {
    explore("a_broken_shard_takes_no_topic_along", 4, || {
        let registry = Arc::new(Registry::new(2));
        let topic = registry.join("t", A, 0);
        registry.join("t", B, 0);
        let broken = {
            let registry = registry.clone();
            thread::spawn(move || registry.leave_all(A))
        };
        registry.leave(&topic, B);
        let again = registry.join("t", B, 7);
        broken.join().unwrap();
        assert_eq!((again.local(A), again.local(B)), (None, Some(7)));
        assert_eq!(again.interest().expect("alive").iter().collect::<Vec<_>>(), [B]);
        assert!(Arc::ptr_eq(&again, &registry.find("t").expect("listed")));
    });
}

/// Receivers that come and go on two shards are all counted, and a window is in use as long as it has one.
#[test]
fn windows_count_everybody() {
    explore("windows_count_everybody", 4, || {
        let counts = Arc::new(WindowCounts::default());
        let other = {
            let counts = counts.clone();
            thread::spawn(move || {
                counts.join(9);
                counts.leave(9);
                counts.join(15);
            })
        };
        counts.join(9);
        assert!(!counts.in_use().is_empty(), "one's own is always seen");
        other.join().unwrap();
        assert_eq!(counts.in_use(), [9, 15].into_iter().collect::<Windows>());
        counts.leave(9);
        counts.leave(15);
        assert_eq!(counts.in_use(), Windows::default());
    });
}
