//! What a message costs between the kernel's bytes and its handler, and a handshake between two strings; tungstenite
//! beside it. Messages are masked with a key of zeros: the work is the same, and a frame unmasked in place stays valid
//! for the next round.

use std::hint::black_box;
use std::io::{self, Read, Write};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidewheel::ws::{self, Decoder, Extensions, HandshakeLimits, Input, Limits, Opcode, Progress};
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

const LIMITS: Limits = Limits { message_bytes_max: 1 << 20, extensions: Extensions::NONE };

fn message(first: u8, payload_bytes: usize) -> Vec<u8> {
    let mut frame = vec![first];
    match payload_bytes {
        ..=125 => frame.push(0x80 | payload_bytes as u8),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    // Mostly ASCII, as JSON is, with a few longer characters.
    frame.extend(r#"{"type":"message","payload":{"text":"κύμα"}}, "#.bytes().cycle().take(payload_bytes - 1));
    while str::from_utf8(&frame[frame.len() + 1 - payload_bytes..]).is_err() {
        frame.pop();
    }
    let header_bytes = if payload_bytes > 125 { 8 } else { 6 };
    frame.resize(header_bytes + payload_bytes, b' ');
    frame
}

/// A stream that sends the same bytes over and over.
struct Again<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Read for Again<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&self.bytes[self.at..]).read(buffer)?;
        self.at = (self.at + count) % self.bytes.len();
        Ok(count)
    }
}

impl Write for Again<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for (kind, first) in [("text", 0x81), ("binary", 0x82)] {
        for payload_bytes in [64, 1024, 16 * 1024] {
            group.throughput(Throughput::Bytes(payload_bytes as u64));
            let mut bytes = message(first, payload_bytes);

            group.bench_function(BenchmarkId::new(format!("{kind}/tidewheel"), payload_bytes), |b| {
                let mut decoder = Decoder::default();
                b.iter(|| {
                    let mut input = Input::new(black_box(&mut bytes));
                    assert!(black_box(decoder.next(&mut input, &LIMITS)).expect("legal").is_some());
                    assert!(decoder.next(&mut input, &LIMITS).expect("legal").is_none());
                });
            });
            // The same message cut in the middle, as at the end of a receive buffer.
            group.bench_function(BenchmarkId::new(format!("{kind}/tidewheel-cut"), payload_bytes), |b| {
                let mut decoder = Decoder::default();
                b.iter(|| {
                    let (head, tail) = black_box(&mut bytes[..]).split_at_mut(payload_bytes / 2);
                    assert!(decoder.next(&mut Input::new(head), &LIMITS).expect("legal").is_none());
                    let mut input = Input::new(tail);
                    assert!(black_box(decoder.next(&mut input, &LIMITS)).expect("legal").is_some());
                    assert!(decoder.next(&mut input, &LIMITS).expect("legal").is_none());
                });
            });
            for read_buffer in [4 * 1024, 128 * 1024] {
                let name = format!("{kind}/tungstenite-{}k", read_buffer / 1024);
                group.bench_function(BenchmarkId::new(name, payload_bytes), |b| {
                    let config = WebSocketConfig::default().read_buffer_size(read_buffer);
                    let mut context = WebSocketContext::new(Role::Server, Some(config));
                    let mut stream = Again { bytes: &bytes, at: 0 };
                    b.iter(|| black_box(context.read(&mut stream)).expect("legal"));
                });
            }
        }
    }
    group.finish();
}

fn mask(c: &mut Criterion) {
    let mut group = c.benchmark_group("mask");
    for bytes in [16, 64, 100, 1024, 16 * 1024] {
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut payload = vec![0_u8; bytes];
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| ws::mask::apply(black_box(&mut payload), black_box([1, 2, 3, 4])));
        });
    }
    group.finish();
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    for payload_bytes in [64, 1024, 16 * 1024] {
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        let payload = vec![b'x'; payload_bytes];
        let mut out = Vec::with_capacity(2 * payload_bytes);
        group.bench_function(BenchmarkId::new("frame", payload_bytes), |b| {
            b.iter(|| {
                out.clear();
                ws::frame(&mut out, Opcode::Text, black_box(&payload));
                black_box(&out);
            });
        });
        group.bench_function(BenchmarkId::new("begin-finish", payload_bytes), |b| {
            b.iter(|| {
                out.clear();
                let mark = ws::begin(&mut out);
                out.extend_from_slice(black_box(&payload));
                ws::finish(&mut out, mark, Opcode::Text);
                black_box(&out);
            });
        });
    }
    group.finish();
}

fn handshake(c: &mut Criterion) {
    let head = "GET /ws?room=1 HTTP/1.1\r\nHost: server.example.com\r\nConnection: Upgrade\r\nPragma: no-cache\r\n\
        Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)\r\n\
        Upgrade: websocket\r\nOrigin: https://server.example.com\r\nSec-WebSocket-Version: 13\r\n\
        Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\nCookie: session=0123456789abcdef\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidewheel.v1\r\n\
        Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
    let limits = HandshakeLimits { header_bytes_max: 8192 };
    let mut group = c.benchmark_group("handshake");
    group.bench_function("parse", |b| {
        b.iter(|| black_box(ws::parse_request(black_box(head.as_bytes()), 0, &limits)).expect("legal"));
    });
    let Ok(Progress::Complete { request, .. }) = ws::parse_request(head.as_bytes(), 0, &limits) else {
        panic!("a legal head");
    };
    let mut out = Vec::with_capacity(1024);
    group.bench_function("accept", |b| {
        b.iter(|| {
            out.clear();
            ws::accept(&mut out, black_box(&request), Some("tidewheel.v1"), None);
            black_box(&out);
        });
    });
    let names = ["Host", "Connection", "Upgrade", "Sec-WebSocket-Version", "Sec-WebSocket-Key"];
    let theirs = names
        .iter()
        .fold(Request::builder(), |builder, &name| builder.header(name, request.header(name).expect("is there")));
    let theirs = theirs.body(()).expect("a request");
    group.bench_function("accept-tungstenite", |b| {
        b.iter(|| {
            out.clear();
            write_response(&mut out, &create_response(black_box(&theirs)).expect("legal")).expect("written");
            black_box(&out);
        });
    });
    group.finish();
}

criterion_group!(benches, decode, mask, encode, handshake);
criterion_main!(benches);
