//! What two threads share, under every interleaving that loom can tell apart.
//!
//!     RUSTFLAGS='--cfg tidewheel_model' cargo test --test model --target-dir target/model
#![cfg(tidewheel_model)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use tidewheel::id::{ReceiptIndex, ShardId};
use tidewheel::io::SharedFrame;
use tidewheel::io::bell::Bell;
use tidewheel::pubsub::{Bus, Registry, ShardSet};

const A: ShardId = ShardId(0);
const B: ShardId = ShardId(1);
const C: ShardId = ShardId(2);

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(model);
}

/// A shard that announces its sleep, finds no mail and sleeps is rung by whoever posts; nobody is slept on.
#[test]
fn mail_is_never_slept_on() {
    explore(|| {
        let bell = Arc::new(Bell::new().unwrap());
        let bus = Bus::new(2);
        let poster = {
            let (bell, mut port) = (bell.clone(), bus.port(A));
            thread::spawn(move || {
                let mut to = ShardSet::default();
                to.insert(B);
                assert!(port.has_room());
                port.publish(to, None, &SharedFrame::new(vec![1]), ReceiptIndex::new(0));
                bell.take_sleeper()
            })
        };
        let port = bus.port(B);
        bell.announce_sleep();
        let sleeps = !port.has_mail();
        if !sleeps {
            bell.awake();
        }
        let rung = poster.join().unwrap();
        assert!(!sleeps || rung, "the shard sleeps on its mail and nobody rang");
        assert!(port.has_mail());
    });
}

/// Of two posters exactly one rings a shard that sleeps through both.
#[test]
fn one_of_many_rings() {
    explore(|| {
        let bell = Arc::new(Bell::new().unwrap());
        bell.announce_sleep();
        let other = {
            let bell = bell.clone();
            thread::spawn(move || bell.take_sleeper())
        };
        let (mine, theirs) = (bell.take_sleeper(), other.join().unwrap());
        assert!(mine ^ theirs, "one and only one pays for the wake");
    });
}

/// A publisher that knows a topic from before, and publishes after it has seen the ack of a new subscriber on another
/// shard, finds that shard, whatever the topic's last subscriber does meanwhile.
#[test]
fn a_publish_after_the_ack_finds_the_subscriber() {
    explore(|| {
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

/// The last of two shards to leave takes the topic out, and it is gone for whoever held it.
#[test]
fn a_topic_dies_once() {
    explore(|| {
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
