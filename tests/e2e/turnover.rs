//! Connections that come and go in every way, in numbers: afterwards the server is as it was, by its own metrics.
//! Law: the server is a process of its own, so that what it holds is not mixed with the clients'. `TIDEWHEEL_CHURN` says
//! how many connections; 200,000 take minutes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::auth::{SECRET, in_an_hour, token};
use super::http;
use super::process::Process;
use super::raw::{CLOSE, Raw, close, request_with};

const THREADS: u64 = 4;
/// Requests that a thread leaves unfinished at a time.
const UNFINISHED_MAX: usize = 100;

#[test]
fn nothing_stays_of_those_who_went() {
    let number = std::env::var("TIDEWHEEL_CHURN").ok().map_or(3_000, |text| text.parse().expect("a number"));
    let server = Process::start(&[
        ("TIDEWHEEL_AUTH_SECRET", SECRET),
        ("TIDEWHEEL_AUTH_REQUIRED", "true"),
        ("TIDEWHEEL_WEBSOCKET_HANDSHAKE_TIMEOUT", "500ms"),
        ("TIDEWHEEL_WEBSOCKET_MAX_TOTAL_CONNECTIONS", "4000"),
        ("TIDEWHEEL_LIMITS_CONNECTION_ATTEMPTS_PER_SECOND", "100000"),
        ("TIDEWHEEL_LIMITS_CONNECTION_ATTEMPTS_BURST", "100000"),
    ]);
    // The first fill what is kept on purpose: receive buffers, slots, tables, and the allocator's arenas.
    churn(&server, number / 4, 0);
    let before = at_rest(&server);
    let begun = Instant::now();
    let evicted = churn(&server, number, 1);
    let took = begun.elapsed();
    let after = at_rest(&server);

    let came = |name: &str| after.sum(name) - before.sum(name);
    let ended = |reason: &str| {
        let (name, label) = ("websocket_connections_closed_total", format!("reason=\"{reason}\""));
        after.sum_of(name, &label) - before.sum_of(name, &label)
    };
    assert_eq!(came("websocket_connections_opened_total"), number as f64);
    assert_eq!(came("websocket_connections_closed_total"), number as f64);
    assert_eq!(ended("evicted"), evicted as f64);
    let unfinished = ended("handshake_timeout");
    assert_eq!(unfinished, (number / 5) as f64, "every fifth never finishes its request");
    assert_eq!(came("websocket_upgrades_total"), number as f64 - unfinished);
    assert_eq!(came("websocket_connection_duration_seconds_count"), number as f64 - unfinished);
    assert_eq!(came("websocket_deliveries_matched_total"), came("websocket_deliveries_queued_total"));
    for name in ["process_open_fds", "process_threads", "tidewheel_pool_bytes"] {
        assert!(after.sum(name) <= before.sum(name), "{name}: {} before, {} after", before.sum(name), after.sum(name));
    }
    let [rss, grown] = [before.sum("process_resident_memory_bytes"), came("process_resident_memory_bytes")];
    assert!(grown < 8e6, "{grown} bytes more than the {rss} before");
    let mut said = String::new();
    let per_second = number as f64 / took.as_secs_f64();
    writeln!(said, "{number} connections in {took:.1?}, {per_second:.0} a second; {evicted} evicted").unwrap();
    writeln!(said, "resident {:.1} MB before, {:+.2} MB after", rss / 1e6, grown / 1e6).unwrap();
    std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()).unwrap();
}

/// Lets `number` clients come and go, and says how many of them had to make room for newer ones of the same user.
fn churn(server: &Process, number: u64, round: u64) -> u64 {
    let evicted = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let evicted = &evicted;
            scope.spawn(move || {
                let mut crowd = Crowd::new(server.address, thread, round);
                (0..number).filter(|client| client % THREADS == thread).for_each(|client| crowd.client(client));
                evicted.fetch_add(crowd.leave(), Ordering::Relaxed);
            });
        }
    });
    evicted.into_inner()
}

/// The clients of one thread.
struct Crowd {
    address: SocketAddr,
    thread: u64,
    /// Whose requests will never be complete.
    unfinished: VecDeque<Raw>,
    /// One user's, who may have five.
    stayed: VecDeque<Raw>,
    evicted: u64,
    user: String,
}

impl Crowd {
    fn new(address: SocketAddr, thread: u64, round: u64) -> Self {
        let user = format!("crowd-{round}-{thread}");
        Self { address, thread, unfinished: VecDeque::new(), stayed: VecDeque::new(), evicted: 0, user }
    }

    fn client(&mut self, client: u64) {
        if client.is_multiple_of(5) {
            let mut raw = self.connect(client);
            raw.write(b"GET /ws HTTP/1.1\r\nHost: half-o");
            self.unfinished.push_back(raw);
            if self.unfinished.len() > UNFINISHED_MAX {
                self.timed_out();
            }
            return;
        }
        let stays = client % 5 == 4;
        let user = if stays { self.user.clone() } else { format!("{}-{client}", self.user) };
        let mut raw = self.connect(client);
        open(&mut raw, &user, client);
        match client % 5 {
            1 => raw.reset(),
            2 => drop(raw),
            3 => {
                raw.write(&close(1000));
                assert_eq!(raw.closed(), 1000);
            }
            _ => {
                self.stayed.push_back(raw);
                if self.stayed.len() > 5 {
                    let mut oldest = self.stayed.pop_front().expect("more than five");
                    assert_eq!(oldest.until(CLOSE).payload[..2], 4503_u16.to_be_bytes());
                    oldest.write(&close(4503)); // else the server waits for it
                    self.evicted += 1;
                }
            }
        }
    }

    /// From one of many addresses: each has its own ports, and its own entry where attempts are counted.
    fn connect(&self, client: u64) -> Raw {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let ip = Ipv4Addr::new(127, 1 + self.thread as u8, (client / 250 % 250) as u8, 1 + (client % 250) as u8);
        socket.bind(&SocketAddrV4::new(ip, 0).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        Raw::over(TcpStream::from(socket))
    }

    fn timed_out(&mut self) {
        let mut oldest = self.unfinished.pop_front().expect("some are left");
        assert_eq!(oldest.refusal().0, 408);
    }

    fn leave(mut self) -> u64 {
        while !self.unfinished.is_empty() {
            self.timed_out();
        }
        self.evicted
    }
}

/// Upgrades, authenticates one way or the other, subscribes, and now and then publishes.
fn open(raw: &mut Raw, user: &str, client: u64) {
    let mut claims = in_an_hour();
    claims["sub"] = json!(user);
    let token = token(claims);
    if client.is_multiple_of(2) {
        raw.write(request_with("/ws", &format!("Authorization: Bearer {token}\r\n")).as_bytes());
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    } else {
        raw.upgrade("/ws");
        raw.text(&json!({"type": "authenticate", "payload": {"token": token}}).to_string());
        assert_eq!(raw.json()["payload"]["authenticated"], true);
    }
    let topic = format!("topic.{}", client % 100);
    raw.text(&json!({"id": 1, "type": "subscribe", "payload": {"topic": topic}}).to_string());
    until_reply(raw, 1);
    if client % 16 == 1 {
        raw.text(&json!({"id": 2, "type": "publish", "payload": {"topic": topic, "data": client}}).to_string());
        until_reply(raw, 2);
    }
}

fn until_reply(raw: &mut Raw, id: u64) {
    while raw.json()["reply_to"] != id {}
}

/// A scrape of a server that holds nothing any more.
#[track_caller]
fn at_rest(server: &Process) -> Scrape {
    const NOTHING: [&str; 13] = [
        "active_websocket_connections",
        "tidewheel_handshakes_in_flight",
        "tidewheel_authenticated_connections",
        "tidewheel_clients",
        "tidewheel_client_addresses",
        "tidewheel_subscriptions",
        "tidewheel_topics",
        "tidewheel_frame_bytes",
        "tidewheel_inbound_bytes",
        "tidewheel_bus_depth",
        "tidewheel_publishers_in_line",
        "tidewheel_senders_in_line",
        "tidewheel_receipts_waiting",
    ];
    let mut scrape = Scrape::of(server);
    super::until("a server that holds nothing", || {
        scrape = Scrape::of(server);
        NOTHING.iter().all(|name| scrape.sum(name) == 0.0)
    });
    scrape
}

/// Every series with its value.
struct Scrape(Vec<(String, f64)>);

impl Scrape {
    fn of(server: &Process) -> Self {
        let body = http::request(server.admin(), "GET /metrics", "", b"").body;
        let samples = body.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        Self(samples.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect())
    }

    /// The sum of all series of this name.
    #[track_caller]
    fn sum(&self, name: &str) -> f64 {
        self.sum_of(name, "")
    }

    /// The sum of all series of this name with this label.
    #[track_caller]
    fn sum_of(&self, name: &str, label: &str) -> f64 {
        let is_of = |series: &str| series.split('{').next() == Some(name) && series.contains(label);
        let mut values = self.0.iter().filter(|(series, _)| is_of(series)).map(|(_, value)| *value).peekable();
        assert!(values.peek().is_some(), "nothing is called {name} with {label}");
        values.sum()
    }
}
