//! A drain under load, of a server process with thousands of clients: nothing that was promised is lost, and clients are
//! told to come back evenly.
//!
//! `TIDEWHEEL_CONNECTIONS=10000 cargo test --test e2e farewell -- --nocapture` runs it as large as that and prints figures.

use std::cell::RefCell;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::process::{Process, serve};
use super::raw::{self, CLOSE, TEXT};

/// What all clients have seen together.
#[derive(Default)]
struct Seen {
    connected: usize,
    replies: u64,
    /// Queues that the acked publishes were put on.
    queued: u64,
    deliveries: u64,
    /// When each was closed and is to come back.
    told: Vec<(Instant, Instant)>,
    everyone_is_in: Rc<Notify>,
}

struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    number: usize,
    seen: Rc<RefCell<Seen>>,
    /// Number of the last message of each publisher, which come in order and without a gap.
    last: Vec<(u64, u64)>,
    /// A request is under way, and how many there have been.
    asking: bool,
    asked: u64,
}

/// Subscribers of one topic, and clients of which one publishes.
const AUDIENCE: usize = 20;
const PUBLISHERS: usize = 10;
const PUBLISH_PAUSE: Duration = Duration::from_millis(20);
const ASK_PAUSE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(120);

impl Client {
    async fn connect(address: SocketAddr, number: usize, seen: Rc<RefCell<Seen>>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, 2 + (number % 8) as u8), 0).into()).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(raw::request("/ws").as_bytes()).await.unwrap();
        let mut received = Vec::new();
        let head = loop {
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(stream.read_buf(&mut received).await.unwrap() > 0, "no answer to the upgrade");
        };
        assert!(received.starts_with(b"HTTP/1.1 101 "));
        received.drain(..head);
        Self { stream, received, number, seen, last: Vec::new(), asking: false, asked: 0 }
    }

    async fn ask(&mut self, text: &str) {
        self.asking = true;
        // Fails once the server has closed, which is read next.
        let _ = self.stream.write_all(&raw::text(text)).await;
    }

    /// Asks and publishes until the server parts.
    async fn live(mut self, topics: usize) {
        self.ask(&format!(r#"{{"id":0,"type":"subscribe","payload":{{"topic":"t{}"}}}}"#, self.number / AUDIENCE))
            .await;
        let publishes = self.number.is_multiple_of(topics * AUDIENCE / PUBLISHERS);
        let pause = if publishes { PUBLISH_PAUSE } else { ASK_PAUSE };
        // Not all at once.
        let mut due = tokio::time::Instant::now() + pause.mul_f64((self.number % 997) as f64 / 997.0);
        loop {
            tokio::select! {
                read = timeout(PATIENCE, self.stream.read_buf(&mut self.received)) => {
                    assert!(read.expect("a silence").unwrap() > 0, "an end without a close frame");
                }
                () = tokio::time::sleep_until(due), if !self.asking => {
                    due += pause;
                    self.asked += 1;
                    let (number, asked) = (self.number, self.asked);
                    let request = match publishes {
                        true => format!(
                            r#"{{"id":{asked},"type":"publish","payload":{{"topic":"t{}","data":[{number},{asked}]}}}}"#,
                            number / AUDIENCE
                        ),
                        false => format!(r#"{{"id":{asked},"type":"ping"}}"#),
                    };
                    self.ask(&request).await;
                }
            }
            while let Some((frame, bytes)) = raw::split(&self.received) {
                self.received.drain(..bytes);
                match frame.first & 0xf {
                    TEXT => self.on_message(&serde_json::from_slice(&frame.payload).unwrap()),
                    CLOSE => return self.part(&frame.payload).await,
                    opcode => panic!("opcode {opcode}"),
                }
            }
        }
    }

    fn on_message(&mut self, message: &Value) {
        let mut seen = self.seen.borrow_mut();
        let payload = &message["payload"];
        let number = |value: &Value| value.as_u64().expect("a number");
        match message["type"].as_str().unwrap() {
            "message" => {
                let (publisher, count) = (number(&payload["data"][0]), number(&payload["data"][1]));
                match self.last.iter_mut().find(|(of, _)| *of == publisher) {
                    Some((_, last)) => {
                        assert_eq!(count, *last + 1, "in order and without a gap");
                        *last = count;
                    }
                    None => self.last.push((publisher, count)),
                }
                seen.deliveries += 1;
            }
            "disconnect" => {
                assert_eq!(payload["code"], 1012);
                let now = Instant::now();
                seen.told.push((now, now + Duration::from_millis(number(&payload["retry_after_ms"]))));
            }
            kind => {
                assert!(matches!(kind, "ack" | "pong"), "{message}");
                assert_eq!(message["reply_to"], self.asked, "{message}");
                self.asking = false;
                seen.replies += 1;
                seen.queued += payload["queued"].as_u64().unwrap_or(0);
                if self.asked == 0 {
                    seen.connected += 1;
                    seen.everyone_is_in.notify_one();
                }
            }
        }
    }

    async fn part(mut self, payload: &[u8]) {
        assert_eq!(payload[..2], 1012u16.to_be_bytes());
        let _ = self.stream.write_all(&raw::close(1012)).await; // the server may have had enough
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest).await; // a reset is an end too
        assert!(rest.is_empty() && self.received.is_empty(), "bytes after the last word");
    }
}

/// How far counts in `bins` equal parts of the window are from equal ones: Pearson's χ².
fn chi_square(times_ms: &[f64], window_ms: f64, bins: usize) -> f64 {
    let mut counts = vec![0.0; bins];
    for time in times_ms {
        counts[((time / window_ms * bins as f64) as usize).min(bins - 1)] += 1.0;
    }
    let expected = times_ms.len() as f64 / bins as f64;
    counts.iter().map(|count: &f64| (count - expected).powi(2) / expected).sum()
}

/// Largest distance between the share of times so far and that of the window: Kolmogorov and Smirnov's D.
fn distance(times_ms: &mut [f64], window_ms: f64) -> f64 {
    times_ms.sort_unstable_by(f64::total_cmp);
    let count = times_ms.len() as f64;
    let distances = times_ms.iter().enumerate().map(|(index, time)| {
        let part = time / window_ms;
        (part - index as f64 / count).abs().max(((index + 1) as f64 / count - part).abs())
    });
    distances.fold(0.0, f64::max)
}

#[test]
fn everyone_leaves_evenly_and_nothing_is_lost() {
    let connections: usize = std::env::var("TIDEWHEEL_CONNECTIONS").ok().map_or(2_000, |count| count.parse().unwrap());
    assert!(connections.is_multiple_of(AUDIENCE * PUBLISHERS), "whole topics, evenly many for each publisher");
    let rate = if connections > 2_000 { 1_000 } else { 400 };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let settings = [
        ("TIDEWHEEL_WEBSOCKET_MAX_TOTAL_CONNECTIONS", "19000"),
        ("TIDEWHEEL_WEBSOCKET_PING_INTERVAL_SECONDS", "0"),
        ("TIDEWHEEL_WEBSOCKET_HANDSHAKE_TIMEOUT", "60s"),
        ("TIDEWHEEL_WEBSOCKET_CLOSE_TIMEOUT", "30s"),
        ("TIDEWHEEL_DRAIN_RECONNECTS_PER_SECOND", &rate.to_string()),
        ("RUST_LOG", "info"),
    ];
    let mut server = Process::spawn(serve("127.0.0.1:0", &settings).stderr(fs::File::create(&log).unwrap()));
    let address = server.address;

    let seen = Rc::new(RefCell::new(Seen::default()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let began = LocalSet::new().block_on(&runtime, async {
        let mut clients = Vec::new();
        for number in 0..connections {
            let client = Client::connect(address, number, seen.clone()).await;
            clients.push(tokio::task::spawn_local(client.live(connections / AUDIENCE)));
        }
        let everyone_is_in = seen.borrow().everyone_is_in.clone();
        while seen.borrow().connected < connections {
            timeout(PATIENCE, everyone_is_in.notified()).await.expect("everyone to be in");
        }
        tokio::time::sleep(Duration::from_secs(2)).await; // of load
        server.signal("-TERM");
        let began = Instant::now();
        for client in clients {
            timeout(PATIENCE, client).await.expect("an end").unwrap();
        }
        began
    });
    assert_eq!(server.wait(), Some(0));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(30), "the drain took {took:?}, more than its deadline");

    // Nothing is lost: each request that the server read has its reply, and each acked delivery has arrived.
    let seen = seen.borrow();
    let log = fs::read_to_string(&log).unwrap();
    let summary = log.lines().rfind(|line| line.contains("served ")).expect("a summary");
    assert!(summary.contains(&format!("drained: {connections} closed cleanly, 0 cut, 0 bytes unsent")), "{summary}");
    assert!(
        summary.contains(&format!("served {connections} connections, {} messages in, ", seen.replies)),
        "{summary}"
    );
    assert_eq!((seen.deliveries, seen.told.len()), (seen.queued, connections));
    assert!(seen.deliveries > 1_000, "a load");

    // Evenly: what is told, what is done, and what comes of both.
    let ms = |time: Instant| time.saturating_duration_since(began).as_secs_f64() * 1000.0;
    let closing_ms = connections as f64 / f64::from(rate) * 1000.0;
    let mut closed: Vec<f64> = seen.told.iter().map(|&(closed, _)| ms(closed)).collect();
    let mut delays: Vec<f64> = seen.told.iter().map(|&(closed, back)| ms(back) - ms(closed)).collect();
    let mut back: Vec<f64> = seen.told.iter().map(|&(_, back)| ms(back)).collect();
    for (what, times, window_ms) in [
        ("closes", &mut closed, closing_ms),
        ("delays", &mut delays, 5_000.0),
        ("returns", &mut back, closing_ms + 5_000.0),
    ] {
        let (chi_square, distance) = (chi_square(times, window_ms, BINS), distance(times, window_ms));
        let most =
            (0..times.len()).map(|from| times[from..].partition_point(|time| *time < times[from] + 1000.0)).max();
        tell(&format!(
            "{what}: window {window_ms:.0} ms, χ² {chi_square:.1} of {CHI_SQUARE_MAX}, D {distance:.4}, at most {} in a \
             second, last after {:.0} ms",
            most.unwrap(),
            times.last().unwrap()
        ));
        // A machine that stands still for a while makes closes late, and with them nothing else.
        let is_even = chi_square < CHI_SQUARE_MAX && distance < 1.63 / (connections as f64).sqrt();
        assert!(is_even || what != "returns", "{what} are not even: χ² {chi_square}, D {distance}");
        assert!(what != "returns" || most.unwrap() <= rate as usize, "more than {rate} come back in a second");
    }
    tell(&format!("{} replies, {} deliveries, all in {took:.1?}; {summary}", seen.replies, seen.deliveries));
}

#[expect(clippy::print_stdout, reason = "captured by the test harness unless asked for")]
fn tell(text: &str) {
    println!("{text}");
}

const BINS: usize = 50;
/// Even times are below this in 99 of 100 runs: the quantile 0.99 of χ² with 49 degrees of freedom. The factor of D is
/// Kolmogorov's for the same.
const CHI_SQUARE_MAX: f64 = 74.9;
