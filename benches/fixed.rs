//! What one operation of each bounded structure costs, at the size of a full shard.
//! Law: each benchmark answers the one question in its comment.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidewheel::fixed::{RingQueue, SlotMap, TimerWheel};
use tidewheel::id::ConnKey;

/// Connections of a full shard.
const CONNECTIONS: u32 = 100_000;
/// A connection's memory, with a niche as a real one has.
type Conn = (Box<u8>, [u64; 24]);

fn full_pool() -> (SlotMap<Conn>, Vec<ConnKey>) {
    let mut pool = SlotMap::new(CONNECTIONS);
    let mut keys: Vec<_> = (0..CONNECTIONS).map(|_| pool.insert_with(|_| (Box::new(0), [0; 24])).unwrap()).collect();
    // The order in which completions come has nothing to do with the order of admission.
    let mut state = 1_u64;
    for at in (1..keys.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        keys.swap(at, (state >> 33) as usize % (at + 1));
    }
    (pool, keys)
}

fn slot_map(c: &mut Criterion) {
    let mut group = c.benchmark_group("slot_map");
    group.throughput(Throughput::Elements(1));
    let (mut pool, keys) = full_pool();
    // What does a completion pay to find its connection, wherever that is?
    let mut at = 0;
    group.bench_function("find a connection", |b| {
        b.iter(|| {
            at = (at + 1) % keys.len();
            black_box(pool.get_mut(keys[at])).unwrap().1[0] += 1;
        });
    });
    // What does the pool add to admitting and releasing a connection?
    let mut key = keys[0];
    group.bench_function("release and admit", |b| {
        b.iter(|| {
            let conn = pool.remove(key).unwrap();
            key = pool.insert_with(|_| conn).unwrap();
        });
    });
    group.finish();
}

fn ring_queue(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring_queue");
    group.throughput(Throughput::Elements(1));
    // What does the queue add to a message to a connection that keeps up?
    let mut queue = RingQueue::new(1024);
    group.bench_function("push and pop", |b| {
        b.iter(|| {
            queue.push_back(black_box(7_u32)).unwrap();
            black_box(queue.pop_front());
        });
    });
    // What does a burst cost a message, storage from nothing to 64 places and back included?
    group.throughput(Throughput::Elements(64));
    group.bench_function("burst of 64", |b| {
        b.iter(|| {
            (0..64).for_each(|n| queue.push_back(black_box(n)).unwrap());
            while let Some(key) = queue.pop_front() {
                black_box(key);
            }
        });
    });
    group.finish();
}

fn timer_wheel(c: &mut Criterion) {
    const TICK_MS: u64 = 100;
    let mut group = c.benchmark_group("timer_wheel");
    let full_wheel = || {
        let mut wheel = TimerWheel::new(CONNECTIONS, TICK_MS, 0);
        (0..CONNECTIONS).for_each(|slot| wheel.schedule(slot, 1 + u64::from(slot) * 7 % 300_000));
        wheel
    };
    // What does it cost to move one connection's deadline?
    group.throughput(Throughput::Elements(1));
    let mut wheel = full_wheel();
    let mut slot = 0;
    group.bench_function("move a deadline", |b| {
        b.iter(|| {
            slot = (slot + 7919) % CONNECTIONS;
            wheel.schedule(slot, black_box(30_000 + u64::from(slot)));
        });
    });
    // What does a turn pay for time when nothing is due?
    let mut wheel = full_wheel();
    group.bench_function("a turn with nothing due", |b| b.iter(|| black_box(wheel.pop_expired(black_box(0)))));
    // What does a timer cost in all, over five minutes of turns, each timer set again when it fires?
    group.sample_size(20).throughput(Throughput::Elements(u64::from(CONNECTIONS)));
    group.bench_function("five minutes, tick by tick", |b| {
        b.iter_batched_ref(
            full_wheel,
            |wheel| {
                for now_ms in (0..300_000).step_by(TICK_MS as usize) {
                    while let Some(slot) = wheel.pop_expired(now_ms) {
                        wheel.schedule(slot, now_ms + 300_000);
                    }
                }
            },
            BatchSize::LargeInput,
        );
    });
    // And when a suspended machine wakes up after a year?
    group.bench_function("a jump of a year", |b| {
        b.iter_batched_ref(
            full_wheel,
            |wheel| while wheel.pop_expired(365 * 24 * 3_600_000).is_some() {},
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, slot_map, ring_queue, timer_wheel);
criterion_main!(benches);
