//! The doorbell: nobody is slept on, and one pays for the wake.

use std::sync::Arc;

use loom::thread;
use tidewheel::id::ReceiptIndex;
use tidewheel::io::SharedFrame;
use tidewheel::io::bell::Bell;
use tidewheel::pubsub::{Bus, ShardSet};

use crate::{A, B, explore};

/// A shard that announces its sleep, finds no mail and sleeps is rung by whoever posts; nobody is slept on.
#[test]
fn mail_is_never_slept_on() {
    explore("mail_is_never_slept_on", 4, || {
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
    explore("one_of_many_rings", 4, || {
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
