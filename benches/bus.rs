//! What it costs to carry a published frame from one shard to another, and its count back, without waking anybody.
//! Law: each benchmark answers the one question in its comment.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidewheel::id::{ReceiptIndex, ShardId};
use tidewheel::io::SharedFrame;
use tidewheel::pubsub::{Bus, BusPort, Delivery, Publish, Registry, ShardSet};

const HERE: ShardId = ShardId(0);
const THERE: ShardId = ShardId(1);

/// Takes all mail and answers each publish; returns how many counts came.
fn take_mail(port: &mut BusPort, from: ShardId) -> u64 {
    if !port.has_mail() {
        return 0;
    }
    port.take_senders();
    let mut counted = 0;
    while port.receive_count(from).is_some() {
        counted += 1;
    }
    while let Some(Publish { frame, receipt, .. }) = port.receive_publish(from) {
        black_box(frame.plain());
        port.answer(from, receipt, Delivery { matched: 1, queued: 1, dropped: 0 });
    }
    counted
}

fn bus(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus");
    group.throughput(Throughput::Elements(1));
    let registry = Registry::new(2);
    let topic = registry.join("prices.eur", THERE, 0);
    let frame = SharedFrame::new(vec![b'x'; 128]);
    let receipt = ReceiptIndex::new(0);
    let mut to = ShardSet::default();
    to.insert(THERE);

    // What is the work of a publish, its delivery and its count, all in one thread's cache?
    let bus = Bus::new(2);
    let (mut here, mut there) = (bus.port(HERE), bus.port(THERE));
    group.bench_function("publish, receive, answer, count", |b| {
        b.iter(|| {
            assert!(here.has_room());
            here.publish(to, Some(&topic), &frame, receipt);
            take_mail(&mut there, HERE);
            assert_eq!(take_mail(&mut here, THERE), 1);
        });
    });

    // And between two cores, each of which does what it can meanwhile?
    group.bench_function("between two threads", |b| {
        let bus = Bus::new(2);
        let (mut here, mut there) = (bus.port(HERE), bus.port(THERE));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    take_mail(&mut there, HERE);
                }
            });
            b.iter_custom(|publishes| -> Duration {
                let start = Instant::now();
                let (mut published, mut counted) = (0, 0);
                while counted < publishes {
                    // As many on their way as may be, but no more than a shard takes in a turn.
                    while published < publishes && published - counted < 256 && here.has_room() {
                        here.publish(to, Some(&topic), &frame, receipt);
                        published += 1;
                    }
                    counted += take_mail(&mut here, THERE);
                }
                start.elapsed()
            });
            stop.store(true, Relaxed);
        });
    });
    group.finish();
}

criterion_group!(benches, bus);
criterion_main!(benches);
