//! Doorbells: a driver that sleeps is woken by threads and by other rings, and never sleeps over a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tidewheel::id::ShardId;
use tidewheel::io::bell::Bell;
use tidewheel::io::uring::{ReceiveMode, Uring, UringConfig};
use tidewheel::io::{Completion, Io, Wait};

use crate::server::PATIENCE;

fn two_bells() -> Arc<[Arc<Bell>]> {
    Arc::from([Arc::new(Bell::new().unwrap()), Arc::new(Bell::new().unwrap())])
}

fn driver(shard: u16, bells: &Arc<[Arc<Bell>]>) -> Uring {
    Uring::new(UringConfig {
        table: 4,
        buffers: 2,
        buffer_size: 64,
        mode: ReceiveMode::Recv,
        busy_poll: Duration::ZERO,
        listeners: Vec::new(),
        bells: Arc::clone(bells),
        shard: ShardId(shard),
    })
    .unwrap()
}

#[test]
fn a_bell_wakes_a_driver_from_a_thread_and_from_another_ring() {
    let bells = two_bells();
    let mut other = driver(1, &bells);
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let tell = tell;
            let mut io = driver(0, &bells);
            for round in 0..6 {
                bells[0].announce_sleep();
                tell.send(()).unwrap();
                let start = Instant::now();
                io.wait(Wait::AtMost(PATIENCE)).unwrap();
                assert!(start.elapsed() < PATIENCE, "round {round}: not woken");
                assert!(matches!(io.poll(), Some(Completion::Rang)), "round {round}");
                assert!(io.poll().is_none(), "round {round}: woken twice by one ring");
                bells[0].awake();
            }
            tell.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(30));
            io.wait(Wait::No).unwrap();
            assert!(io.poll().is_none(), "who is awake is not rung");
        });
        for round in 0..7 {
            told.recv().unwrap();
            // Long enough that it sleeps in the kernel mostly; a ring that comes earlier must work as well.
            std::thread::sleep(Duration::from_millis(round % 3));
            if round % 2 == 0 {
                bells[0].ring();
            } else {
                other.ring(ShardId(0));
                other.wait(Wait::No).unwrap();
                assert!(other.poll().is_none(), "a message that arrived is not reported to its sender");
            }
        }
    });
}

#[test]
fn a_shard_that_has_no_ring_yet_is_rung_all_the_same() {
    let bells = two_bells();
    let mut other = driver(1, &bells);
    bells[0].announce_sleep();
    other.ring(ShardId(0));
    other.wait(Wait::No).unwrap();
    let mut late = driver(0, &bells);
    late.wait(Wait::AtMost(PATIENCE)).unwrap();
    assert!(matches!(late.poll(), Some(Completion::Rang)));
}

/// A lost wake-up would leave a shard in `wait` with a message in its inbox until its time is over.
#[test]
fn no_wake_up_is_lost() {
    const MESSAGES: u64 = 20_000;
    let bells = two_bells();
    let inboxes = [AtomicU64::new(0), AtomicU64::new(0)];
    let stop = AtomicBool::new(false);
    // A plain thread feeds shard 0, which passes every message on to shard 1 through its ring.
    let shard = |me: usize| {
        let mut io = driver(me as u16, &bells);
        let mut seen = 0;
        while !stop.load(Ordering::Relaxed) {
            bells[me].announce_sleep();
            let more = inboxes[me].load(Ordering::Acquire) > seen;
            let start = Instant::now();
            io.wait(if more { Wait::No } else { Wait::AtMost(PATIENCE) }).unwrap();
            bells[me].awake();
            assert!(start.elapsed() < PATIENCE, "shard {me} slept over a message");
            while io.poll().is_some() {}
            while inboxes[me].load(Ordering::Acquire) > seen {
                seen += 1;
                if me == 0 {
                    inboxes[1].fetch_add(1, Ordering::Release);
                    io.ring(ShardId(1));
                } else if seen == MESSAGES {
                    stop.store(true, Ordering::Relaxed);
                    bells[0].ring();
                }
            }
        }
        seen
    };
    std::thread::scope(|scope| {
        let shards = [scope.spawn(|| shard(0)), scope.spawn(|| shard(1))];
        for i in 0..MESSAGES {
            inboxes[0].fetch_add(1, Ordering::Release);
            bells[0].ring();
            if i % 16 == 0 {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        for shard in shards {
            assert_eq!(shard.join().unwrap(), MESSAGES);
        }
    });
}
