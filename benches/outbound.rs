//! What one connection's outbound queue adds to a message, without the kernel.
//! Law: each benchmark answers the one question in its comment.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidewheel::conn::{Enqueued, Gather, Outbound, OutboundLimits};
use tidewheel::io::{Lossy, Palette, SharedFrame, Stream};
use tidewheel::metrics::Drops;
use tidewheel::ws::{self, Opcode};

const LIMITS: OutboundLimits = OutboundLimits { bytes_max: 1_000_000, frames_max: 1024, age_max_ms: 30_000 };
const MESSAGE: [u8; 64] = [b'x'; 64];

/// A queue and what it works with.
#[derive(Default)]
struct Connection {
    palette: Palette,
    gather: Gather,
    queue: Outbound,
    drops: Drops,
}

impl Connection {
    fn reply(&mut self) {
        self.queue.reply(&mut self.palette, 0, |out| ws::frame(out, Opcode::Text, black_box(&MESSAGE)));
    }

    fn publish(&mut self, frame: &Arc<SharedFrame>) {
        let key = self.palette.share(frame.clone(), 1);
        black_box(self.queue.enqueue(key, frame.plain().len() as u32, &LIMITS, 0));
    }

    fn publish_lossy(&mut self, frame: &Arc<SharedFrame>) {
        let key = self.palette.share(frame.clone(), 1);
        let stream = frame.stream().expect("may be dropped");
        let (len, Self { palette, queue, drops, .. }) = (frame.plain().len() as u32, self);
        let enqueued = queue.enqueue_lossy(key, len, stream, &LIMITS, 0, palette, drops);
        assert_eq!(enqueued, Enqueued::Queued);
    }

    /// Begins a send and returns how many bytes it has.
    fn flush(&mut self) -> u32 {
        let part = self.queue.next_send(&mut self.palette, &mut self.gather).expect("something waits");
        self.gather.reset(&mut self.palette);
        self.palette.bytes(part.frame).len() as u32
    }

    fn sent(&mut self, bytes: u32) {
        assert!(self.queue.on_sent(&mut self.palette, bytes).is_none());
    }
}

fn outbound(c: &mut Criterion) {
    let mut group = c.benchmark_group("outbound");
    let frame = SharedFrame::new(MESSAGE.to_vec());
    let mut connection = Connection::default();

    // What does a reply pay from the handler to the kernel and back?
    group.throughput(Throughput::Elements(1));
    group.bench_function("reply, flush, sent", |b| {
        b.iter(|| {
            connection.reply();
            let bytes = connection.flush();
            connection.sent(bytes);
        });
    });
    // And a published message?
    group.bench_function("enqueue, flush, sent", |b| {
        b.iter(|| {
            connection.publish(&frame);
            let bytes = connection.flush();
            connection.sent(bytes);
        });
    });
    // What does each of 16 replies pay that leave together, behind a send in flight?
    group.throughput(Throughput::Elements(16));
    group.bench_function("16 replies behind a send", |b| {
        connection.reply();
        let mut in_flight = connection.flush();
        b.iter(|| {
            (0..16).for_each(|_| connection.reply());
            connection.sent(in_flight);
            in_flight = connection.flush();
        });
        connection.sent(in_flight);
    });
    // And each of 16 published messages, which are gathered into one send?
    group.bench_function("16 published behind a send", |b| {
        connection.publish(&frame);
        let mut in_flight = connection.flush();
        b.iter(|| {
            (0..16).for_each(|_| connection.publish(&frame));
            connection.sent(in_flight);
            in_flight = connection.flush();
        });
        connection.sent(in_flight);
    });
    // What does a publish pay that finds a queue full, where the oldest or the one with its key goes for it?
    group.throughput(Throughput::Elements(1));
    for (policy, keys) in [(Lossy::DropOldest, 1), (Lossy::LatestPerKey, 1024)] {
        let mut full = Connection::default();
        full.publish(&frame);
        full.flush();
        let frames: Vec<_> = (0..keys)
            .map(|key| SharedFrame::lossy(MESSAGE.to_vec(), Stream { policy, topic: 1, key: hash(key) }))
            .collect();
        let mut next = (0..keys as usize).cycle();
        group.bench_function(format!("into a full queue, {policy:?}"), |b| {
            for frame in frames.iter().cycle().take(1024) {
                full.publish_lossy(frame);
            }
            b.iter(|| full.publish_lossy(&frames[next.next().expect("for ever")]));
        });
    }
    group.finish();
}

/// Any function that spreads.
fn hash(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

criterion_group!(benches, outbound);
criterion_main!(benches);
