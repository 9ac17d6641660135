//! What does it cost to compress a message, and to inflate one?
//!
//! ```text
//! cargo bench --bench deflate
//! ```

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidewheel::ws::deflate::{Deflater, InflateLimits, Inflater, WINDOW_BITS_MAX};

#[path = "measure/json.rs"]
mod json;

/// The default of `websocket.compression.level`.
const LEVEL: u32 = 3;
const LIMITS: InflateLimits = InflateLimits { message_bytes_max: 1 << 20, ratio_max: 200 };

/// As much JSON as `bytes`, cut off.
fn message(bytes: usize) -> Vec<u8> {
    (0..).flat_map(|number| json::trades(number).into_bytes()).take(bytes).collect()
}

fn codecs(c: &mut Criterion) {
    for (name, bytes) in [("256 B", 256), ("1 KiB", 1024), ("16 KiB", 16 * 1024)] {
        let message = message(bytes);
        let (mut deflater, mut inflater) = (Deflater::new(LEVEL), Inflater::default());
        let mut compressed = Vec::new();
        assert!(deflater.deflate(&message, WINDOW_BITS_MAX, &mut compressed));

        let mut group = c.benchmark_group("compress");
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            let mut out = Vec::new();
            b.iter(|| {
                out.clear();
                deflater.deflate(black_box(&message), WINDOW_BITS_MAX, &mut out)
            });
        });
        group.finish();

        let mut group = c.benchmark_group("inflate");
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            let mut out = Vec::new();
            b.iter(|| inflater.inflate(black_box(&compressed), false, &LIMITS, &mut out));
        });
        group.finish();
    }
}

criterion_group!(benches, codecs);
criterion_main!(benches);
