//! What other threads want of a shard: no order, reload or drain is slept on, and none is lost at the end.

use std::sync::Arc;

use loom::thread;
use tidewheel::Config;
use tidewheel::app::context::Refused;
use tidewheel::shard::settings::Settings;
use tidewheel::shard::{DrainOrder, Inbox, Order};
use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::{Sleeper, explore};

type Answered = oneshot::Receiver<Result<tidewheel::Delivery, Refused>>;

fn broadcast() -> (Order, Answered) {
    let (answer, answered) = oneshot::channel();
    (Order::Broadcast { data: b"1".to_vec(), answer }, answered)
}

fn settings(edition: u32) -> Arc<Settings> {
    Arc::new(Settings { edition, ..Settings::new(&Config::default(), 1, 1) })
}

/// A shard that begins while others already leave things for it, and sleeps until there is one.
fn found(leave: impl FnOnce(&Inbox) + Send + 'static, is_there: impl Fn(&Inbox) -> bool) {
    let inbox = Arc::new(Inbox::default());
    let other = {
        let inbox = inbox.clone();
        thread::spawn(move || leave(&inbox))
    };
    let sleeper = Arc::new(Sleeper::default());
    inbox.attach(sleeper.clone());
    while !is_there(&inbox) {
        sleeper.nap(|| is_there(&inbox));
    }
    other.join().unwrap();
}

#[test]
fn an_order_is_found() {
    explore("an_order_is_found", 4, || found(|inbox| inbox.push(broadcast().0).unwrap(), Inbox::has_orders));
}

#[test]
fn a_drain_is_found() {
    explore("a_drain_is_found", 4, || found(|inbox| inbox.drain(DrainOrder::within(0)), Inbox::wants_drain));
}

#[test]
fn settings_are_found() {
    let settings = settings(1);
    explore("settings_are_found", 4, move || {
        let settings = settings.clone();
        found(move |inbox| inbox.reload(settings), Inbox::has_settings);
    });
}

/// Of two reloads the shard works by the last one in the end, whenever it takes them up.
#[test]
fn the_last_settings_count() {
    let both = [1, 2].map(settings);
    explore("the_last_settings_count", 3, move || {
        let inbox = Arc::new(Inbox::default());
        let other = {
            let (inbox, both) = (inbox.clone(), both.clone());
            thread::spawn(move || both.into_iter().for_each(|settings| inbox.reload(settings)))
        };
        let sleeper = Arc::new(Sleeper::default());
        inbox.attach(sleeper.clone());
        let mut edition = 0;
        while edition != 2 {
            sleeper.nap(|| inbox.has_settings());
            if let Some(settings) = inbox.take_settings() {
                assert!(settings.edition > edition, "an older configuration comes back");
                edition = settings.edition;
            }
        }
        other.join().unwrap();
        assert!(!inbox.has_settings());
    });
}

/// At the end of a shard an order is refused, or was taken, or is dropped with its answer: nobody waits for one that is
/// in a queue that nobody looks at.
#[test]
fn no_order_is_left_at_the_end() {
    explore("no_order_is_left_at_the_end", 3, || {
        let inbox = Arc::new(Inbox::default());
        let others = [(); 2].map(|()| {
            let inbox = inbox.clone();
            thread::spawn(move || {
                let (order, answered) = broadcast();
                (inbox.push(order), answered)
            })
        });
        let taken = inbox.take_order();
        inbox.close();
        let mut open = 0;
        // All of them first: one may have taken the other's order, to drop it.
        for (pushed, mut answered) in others.map(|other| other.join().unwrap()) {
            match answered.try_recv() {
                Err(TryRecvError::Empty) => {
                    open += 1;
                    assert!(pushed.is_ok() || taken.is_some(), "refused, and still there");
                }
                Err(TryRecvError::Closed) => {}
                Ok(_) => panic!("nobody answers"),
            }
        }
        assert_eq!(open, usize::from(taken.is_some()), "an order is left in the queue");
        assert!(!inbox.has_orders());
    });
}
