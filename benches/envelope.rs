//! How to read the JSON wire: our scanner against `serde_json` and `simd-json`, on the messages that matter. The table in
//! `app::envelope` is this bench's.

use std::borrow::Cow;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use serde::Deserialize;
use serde_json::value::RawValue;
use simd_json::prelude::*;
use tidewheel::app::envelope::{self, EnvelopeWriter, MessageIdRef};
use tidewheel::pubsub::Delivery;

/// The same cut as `envelope::parse` and `Payload::publish` make: every part, and `data` as it was sent.
#[derive(Deserialize)]
struct SerdeMessage<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct SerdePublish<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(default)]
    exclude_self: bool,
}

/// Payload types of a user's handler, for the messages below.
#[derive(Deserialize)]
#[expect(dead_code, reason = "only how long it takes to fill it is of interest")]
struct UserPublish<T> {
    topic: String,
    data: T,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only how long it takes to fill it is of interest")]
struct Order {
    id: u64,
    name: String,
    price: f64,
    tags: Vec<String>,
    at: (f64, f64),
}

fn ping() -> String {
    r#"{"id":12345678,"type":"ping"}"#.into()
}

fn order(id: usize) -> String {
    format!(
        r#"{{"id":{id},"name":"A name \u00e9 of {id}","price":{id}.125,"tags":["new","café"],"at":[52.52,13.405]}}"#
    )
}

/// A publish whose `data` is a list of `orders` objects.
fn publish(orders: usize) -> String {
    let orders: Vec<_> = (0..orders).map(|index| order(1000 + index)).collect();
    format!(r#"{{"id":7,"type":"publish","payload":{{"topic":"orders.eu.7","data":[{}]}}}}"#, orders.join(","))
}

/// A publish of one long text, as chats and encoded blobs are.
fn publish_text() -> String {
    format!(
        r#"{{"id":7,"type":"publish","payload":{{"topic":"chat.7","data":"{}"}}}}"#,
        "All work and no play. ".repeat(186)
    )
}

fn cut(criterion: &mut Criterion) {
    let messages =
        [("ping", ping()), ("publish_128", publish(1)), ("publish_4k", publish(36)), ("text_4k", publish_text())];
    for (name, text) in messages {
        let is_publish = name != "ping";
        let mut group = criterion.benchmark_group(format!("cut/{name}"));
        group.throughput(Throughput::Bytes(text.len() as u64));
        let bytes = text.clone().into_bytes();
        group.bench_function("scanner", |bench| {
            bench.iter_batched_ref(
                || bytes.clone(),
                |bytes| {
                    let message = envelope::parse(bytes).unwrap();
                    black_box((message.id, message.kind));
                    if is_publish {
                        black_box(message.payload.publish().unwrap());
                    }
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function("serde_json", |bench| {
            bench.iter_batched_ref(
                || bytes.clone(),
                |bytes| {
                    // The bytes are known to be UTF-8, but `from_slice` checks the strings it hands out all the same.
                    let message: SerdeMessage<'_> = serde_json::from_slice(bytes).unwrap();
                    black_box((message.id, &message.kind));
                    if is_publish {
                        let publish: SerdePublish<'_> = serde_json::from_str(message.payload.unwrap().get()).unwrap();
                        black_box((publish.topic, publish.data, publish.key, publish.exclude_self));
                    }
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function("simd_json", |bench| {
            bench.iter_batched_ref(
                || bytes.clone(),
                |bytes| {
                    // `data` cannot be cut out, since it was unescaped in place: it has to be written anew, and a number
                    // with more digits than an f64 comes out as another one.
                    let message = simd_json::to_tape(bytes).unwrap();
                    let message = message.as_value();
                    black_box((message.get("id"), message.get_str("type")));
                    if is_publish {
                        let payload = message.get("payload").unwrap();
                        black_box(payload.get_str("topic"));
                        black_box(payload.get("data").unwrap().encode());
                    }
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

fn typed(criterion: &mut Criterion) {
    for (name, text) in [("128", publish(1)), ("512", publish(4)), ("4k", publish(36)), ("64k", publish(576))] {
        let mut bytes = text.into_bytes();
        let payload = envelope::parse(&mut bytes).unwrap().payload.as_bytes().to_vec();
        let mut group = criterion.benchmark_group(format!("typed/{name}"));
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function("serde_json", |bench| {
            bench.iter_batched_ref(
                || payload.clone(),
                |payload| serde_json::from_slice::<UserPublish<Vec<Order>>>(payload).unwrap(),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("simd_json", |bench| {
            bench.iter_batched_ref(
                || payload.clone(),
                |payload| simd_json::serde::from_slice::<UserPublish<Vec<Order>>>(payload).unwrap(),
                BatchSize::SmallInput,
            );
        });
        let mut buffers = simd_json::Buffers::new(1 << 16);
        group.bench_function("simd_json_buffers", |bench| {
            bench.iter_batched_ref(
                || payload.clone(),
                |payload| {
                    simd_json::serde::from_slice_with_buffers::<UserPublish<Vec<Order>>>(payload, &mut buffers).unwrap()
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

fn write(criterion: &mut Criterion) {
    let mut out = Vec::with_capacity(8192);
    let id = Some(MessageIdRef::Number(12_345_678));
    let mut group = criterion.benchmark_group("write");
    group.bench_function("pong", |bench| {
        bench.iter(|| {
            out.clear();
            EnvelopeWriter::reply(&mut out, black_box(id), 1_700_000_000_000).pong();
        });
    });
    group.bench_function("published", |bench| {
        let receipt = Delivery { matched: 1000, queued: 999, dropped: 1 };
        bench.iter(|| {
            out.clear();
            EnvelopeWriter::reply(&mut out, black_box(id), 1_700_000_000_000).published("orders.eu.7", receipt);
        });
    });
    group.bench_function("message_128", |bench| {
        let data = order(1000);
        bench.iter(|| {
            out.clear();
            EnvelopeWriter::push(&mut out, 1_700_000_000_000).message("orders.eu.7", data.as_bytes(), Some("ann"));
        });
    });
    group.finish();
}

criterion_group!(benches, cut, typed, write);
criterion_main!(benches);
