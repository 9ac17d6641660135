//! What one member adds to a publish: its place on the queue, and its part of the flush, without the kernel.
//! Law: each benchmark answers the one question in its comment.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidewheel::conn::{Conn, ConnPool, FlushLine, Gather, Greeting, OutboundLimits, Unflushed};
use tidewheel::fixed::SlotSet;
use tidewheel::io::{Palette, SharedFrame};
use tidewheel::pubsub::{Queues, fan_out};

const LIMITS: OutboundLimits = OutboundLimits { bytes_max: 1_000_000, frames_max: 1024, age_max_ms: 30_000 };
const FRAME_BYTES: usize = 132;

/// A topic and the connections of its shard.
struct Topic {
    conns: ConnPool,
    palette: Palette,
    gather: Gather,
    members: SlotSet,
    unflushed: Unflushed,
    over: Vec<u32>,
}

impl Topic {
    /// Every `nth` connection has become a member, in any order: after some churn that is so.
    fn new(members: u32, nth: u32) -> Self {
        let mut conns = ConnPool::new(members * nth);
        for _ in 0..members * nth {
            conns.insert_with(|_| Conn::new(0, Greeting::default())).expect("within the capacity");
        }
        let mut slots: Vec<u32> = (0..members).map(|member| member * nth).collect();
        let mut state = 1_u64;
        for at in (1..slots.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            slots.swap(at, (state >> 33) as usize % (at + 1));
        }
        let mut members = SlotSet::new();
        assert!(slots.into_iter().all(|slot| members.insert(slot)));
        let (palette, gather) = (Palette::default(), Gather::default());
        Self { conns, palette, gather, members, unflushed: Unflushed::default(), over: Vec::new() }
    }

    fn publish(&mut self) {
        let Self { conns, palette, members, unflushed, over, .. } = self;
        let frame = SharedFrame::new(vec![b'x'; FRAME_BYTES]);
        let queues = Queues { conns, palette, limits: &LIMITS, now: 0, unflushed, over, on_drop: &mut |_, _| {} };
        let fanned = fan_out(black_box(frame), members.iter(), None, queues);
        assert_eq!(fanned.delivery.queued, members.len() as u64);
    }

    /// Begins every send, and ends it when all have begun.
    fn flush(&mut self) {
        let Self { conns, palette, gather, unflushed, .. } = self;
        let crowd = unflushed.len(FlushLine::Crowd);
        for _ in 0..crowd {
            let slot = unflushed.next(FlushLine::Crowd).expect("listed");
            let conn = conns.slot_mut(slot).expect("live");
            assert!(conn.unflushed.take(FlushLine::Crowd));
            black_box(conn.outbound.next_send(palette, gather));
        }
        gather.reset(palette);
        for slot in self.members.iter() {
            let conn = conns.slot_mut(slot).expect("live");
            let bytes = conn.outbound.bytes() as u32;
            assert!(conn.outbound.on_sent(palette, bytes).is_none());
        }
    }
}

fn fanout(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout");
    for members in [1_000, 5_000, 100_000] {
        group.throughput(Throughput::Elements(u64::from(members)));
        let topics = [("", Topic::new(members, 1)), (", every tenth", Topic::new(members, 10))];
        for (which, mut topic) in topics {
            // What does it cost to put a frame on every member's queue?
            group.bench_function(BenchmarkId::new(format!("queue{which}"), members), |b| {
                b.iter_custom(|publishes| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..publishes {
                        let start = Instant::now();
                        topic.publish();
                        spent += start.elapsed();
                        topic.flush();
                    }
                    spent
                });
            });
            // And with its way out, but for the system call?
            group.bench_function(BenchmarkId::new(format!("queue, flush, sent{which}"), members), |b| {
                b.iter(|| {
                    topic.publish();
                    topic.flush();
                });
            });
            // And when eight publishes leave together? Of each.
            group.throughput(Throughput::Elements(u64::from(members) * 8));
            group.bench_function(BenchmarkId::new(format!("eight together{which}"), members), |b| {
                b.iter(|| {
                    (0..8).for_each(|_| topic.publish());
                    topic.flush();
                });
            });
            group.throughput(Throughput::Elements(u64::from(members)));
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = fanout
}
criterion_main!(benches);
