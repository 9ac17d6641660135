//! The load generator: it finds nothing where nothing is wrong, and what is wrong where something is.
//! Law: each finding is shown once by a server that makes the mistake.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tidewheel::app::auth::{Algorithm, KeyMaterial, KeySettings};
use tidewheel::bench::echo::{self, Echo};
use tidewheel::bench::fanout::{self, Fanout, Life};
use tidewheel::bench::idle::{self, Idle};
use tidewheel::bench::newcomers::{self, Newcomers};
use tidewheel::bench::{Credentials, Progress, Report, Setup, Tls};
use tidewheel::metrics::{CloseReason, TlsHandshake};
use tidewheel::tls::trust;
use tungstenite::Message;

use super::certificates::Authority;
use super::server::Server;

const SECRET: &str = "a-secret-of-32-bytes-for-the-tests";
const OPEN: &str = "echo_path: /echo\n\
    limits: {connection_attempts: null, messages: null, bytes: null}\n\
    auth: {secret: a-secret-of-32-bytes-for-the-tests}\n";

fn setup(address: SocketAddr, path: &str, connections: u32) -> Setup {
    let key =
        KeySettings { id: None, algorithm: Algorithm::HS256, key: KeyMaterial::Secret(SECRET.as_bytes().to_vec()) };
    Setup {
        targets: vec![address],
        host: address.to_string(),
        path: path.to_owned(),
        tls: None,
        sources: vec!["127.0.0.9".parse().unwrap(), "127.0.0.10".parse().unwrap()],
        connections,
        threads: 2,
        handshakes_at_once: 64,
        dials_per_second: None,
        credentials: Credentials::Key { name: "bench".into(), key, expires_at: u64::from(u32::MAX) },
        process: None, // the threads of other tests come and go in this one
        patience: super::PATIENCE,
    }
}

fn echo(in_flight: u32, rate: Option<f64>, size: usize) -> Echo {
    Echo { in_flight, size, rate, time: WHILE, warm_up: Duration::from_millis(50) }
}

fn fanout(topics: u32, publishers: u32, rate: Option<f64>, life: Option<Life>) -> Fanout {
    let warm_up = Duration::from_millis(50);
    Fanout { topics, publishers, rate, in_flight: 2, size: 200, time: WHILE, warm_up, life }
}

#[track_caller]
fn clean(report: std::io::Result<Report>) -> Report {
    let report = report.unwrap();
    assert!(report.findings.is_empty(), "{report}");
    report
}

#[test]
fn echoes_are_all_there() {
    let server = Server::start(OPEN);
    let own = |echo| clean(echo::run(setup(server.address, "/echo", 50), echo, &|_| {}));
    for report in [own(echo(3, None, 16)), own(echo(1, None, 20_000)), own(echo(1, Some(2_000.0), 100))] {
        assert!(report.get("messages").unwrap() > 0.0, "{report}");
    }
    server.rest();
}

/// One topic for each publisher, several topics of one publisher, several publishers of one topic.
#[test]
fn what_is_published_reaches_everybody_once() {
    let server = Server::start(OPEN);
    for (topics, publishers, rate) in [(1, 1, None), (3, 3, Some(300.0)), (7, 2, None), (2, 5, Some(300.0))] {
        let run = fanout(topics, publishers, rate, None);
        let report = clean(fanout::run(setup(server.address, "/ws", 60), run, &|_| {}));
        assert!(report.get("delivered").unwrap() > report.get("published").unwrap(), "{report}");
    }
    server.rest();
}

/// What is sealed comes whole, however it is cut into records; every client shakes hands anew.
#[test]
fn over_tls() {
    let authority = Authority::of_server();
    let server = Server::start(&format!("{OPEN}{}\n", authority.yaml("")));
    let over = |path, connections, authority: Option<&Authority>| {
        let client = match authority {
            Some(authority) => trust::client(trust::of_pem(authority.issuer.pem().as_bytes()).unwrap()),
            None => trust::client_of_anybody(),
        };
        let tls = Some(Tls::new(client.unwrap(), "localhost").unwrap());
        Setup { tls, ..setup(server.tls_address.unwrap(), path, connections) }
    };
    let known = Some(&authority);
    for of in [echo(3, None, 16), echo(1, None, 100_000), echo(1, Some(2_000.0), 100)] {
        let report = clean(echo::run(over("/echo", 20, known), of, &|_| {}));
        assert!(report.get("messages").unwrap() > 0.0, "{report}");
    }
    let report = clean(fanout::run(over("/ws", 30, known), fanout(3, 3, None, None), &|_| {}));
    assert!(report.get("delivered").unwrap() > report.get("published").unwrap(), "{report}");
    let come = Newcomers::Connect { time: WHILE, topic: Some("bench".into()) };
    let report = clean(newcomers::run(over("/ws", 10, None), come, &|_| {}));
    assert!(report.get("served").unwrap() > 0.0, "{report}");
    let handshakes = |how| server.sum(|shard| &shard.tls_handshakes[how as usize]);
    assert_eq!((handshakes(TlsHandshake::Resumed), handshakes(TlsHandshake::Failed)), (0, 0));
    let stranger = Authority::of_server();
    let error = echo::run(over("/echo", 2, Some(&stranger)), echo(1, None, 16), &|_| {}).unwrap_err().to_string();
    assert!(error.contains(" was not let in: TLS: invalid peer certificate"), "{error}");
}

#[test]
fn a_day_in_the_life() {
    let server = Server::start(OPEN);
    let life = Life { leavers_per_second: 200.0, slow_per_second: 50.0, pause: Duration::from_millis(50) };
    let run = fanout(3, 2, Some(200.0), Some(life));
    let report = clean(fanout::run(setup(server.address, "/ws", 80), run, &|_| {}));
    assert!(report.get("left").unwrap() > 10.0 && report.get("came").unwrap() > 90.0, "{report}");
    server.rest();
}

#[test]
fn idle_clients_answer_and_are_all_reached() {
    let server = Server::start(&format!("{OPEN}websocket: {{ping_interval_seconds: 1}}\n"));
    let of = |topic: Option<&str>| Idle { time: Duration::from_millis(1_500), topic: topic.map(str::to_owned) };
    let report = clean(idle::run(setup(server.address, "/ws", 300), of(Some("all")), &|_| {}));
    for (name, expected) in [("connections", 300.0), ("answered_a_ping", 300.0), ("reached_by_one_message", 300.0)] {
        assert_eq!(report.get(name), Some(expected), "{report}");
    }
    assert!(report.get("server_pings_while_idle").unwrap() > 0.0, "{report}");
    assert_eq!(server.closed(CloseReason::Peer), 300, "all have left");
    let report = clean(idle::run(setup(server.address, "/echo", 10), of(None), &|_| {}));
    assert_eq!(report.get("reached_by_one_message"), None, "any server will do");
    server.rest();
}

/// When the last of many has gone, nothing of them is left but what is remembered of the latest.
#[test]
fn memory_of_many_goes_back() {
    let server = Server::build(1, &format!("{OPEN}websocket: {{max_total_connections: 6000}}\n"), |builder| builder);
    let pool_bytes = || server.sum(|shard| &shard.pool_bytes);
    let spare_bytes = || server.sum(|shard| &shard.spare_out_bytes);
    for _ in 0..2 {
        let idle = Idle { time: Duration::from_millis(10), topic: Some("all".into()) };
        let report = clean(idle::run(setup(server.address, "/ws", 4_500), idle, &|_| {}));
        assert_eq!(report.get("answered_a_ping"), Some(4_500.0));
        super::until("the pools to be given back", || (1..EMPTY).contains(&pool_bytes()));
        super::until("what was kept for replies to be given back", || spare_bytes() == 0);
    }
    let few = Idle { time: Duration::from_millis(10), topic: None };
    clean(idle::run(setup(server.address, "/ws", 10), few, &|_| {}));
    assert!(pool_bytes() > EMPTY && spare_bytes() > 0, "those of few are kept");
    server.rest();
}

/// With as many as the rate lets in: who is refused is told when to come back, and comes.
#[test]
fn newcomers_and_storms_are_served() {
    let server = Server::start(&format!("{OPEN}websocket: {{max_connections_per_client: 1}}\n"));
    let come = Newcomers::Connect { time: WHILE, topic: Some("all".into()) };
    let report = clean(newcomers::run(setup(server.address, "/ws", 20), come, &|_| {}));
    assert!(report.get("served").unwrap() > 0.0, "{report}");
    let storm = Newcomers::Storm { topic: Some("all".into()) };
    // Other clients: one of those before, whose request the server reads only now, would evict its successor.
    let mut others = setup(server.address, "/ws", 200);
    if let Credentials::Key { name, .. } = &mut others.credentials {
        *name = "storm".into();
    }
    let report = clean(newcomers::run(others, storm, &|_| {}));
    assert_eq!(report.get("back"), Some(200.0), "{report}");
    server.rest();

    let narrow = "echo_path: /echo\nauth: {secret: a-secret-of-32-bytes-for-the-tests}\n\
        limits: {connection_attempts: {per_second: 1, burst: 3}}\n";
    let server = Server::start(narrow);
    let report = clean(newcomers::run(setup(server.address, "/ws", 8), Newcomers::Storm { topic: None }, &|_| {}));
    assert_eq!(report.get("back"), Some(8.0), "{report}");
    assert!(report.get("refused_with_retry_after").unwrap() > 0.0, "{report}");
}

#[test]
fn who_is_never_let_in_is_named() {
    let server = Server::start(&OPEN.replace(SECRET, "another-secret-of-32-bytes-and-more"));
    let mut setup = setup(server.address, "/ws", 1);
    setup.patience = Duration::from_secs(2);
    let error = echo::run(setup, echo(1, None, 16), &|_| {}).unwrap_err().to_string();
    assert!(error.contains("connecting: 0 of 1"), "{error}");
}

/// What becomes of a client's messages, by the mistake of a server.
fn findings(in_flight: u32, answer: fn(&mut TcpStream, u32, Vec<u8>)) -> Vec<String> {
    let address = serve(move |socket| lie(socket, answer));
    echo::run(impatient(address), echo(in_flight, None, 64), &|_| {}).unwrap().findings
}

/// Serves every client on a thread of its own.
fn serve(client: impl FnOnce(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let client = client.clone();
            thread::spawn(move || client(socket));
        }
    });
    address
}

/// Two clients that give up soon.
fn impatient(address: SocketAddr) -> Setup {
    Setup { patience: Duration::from_secs(2), ..setup(address, "/", 2) }
}

/// Serves one client; each message of it is answered by `answer`, which is told the how-manieth it is.
fn lie(mut socket: TcpStream, answer: impl Fn(&mut TcpStream, u32, Vec<u8>)) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let text = String::from_utf8(head).unwrap();
    let key = text.split("Sec-WebSocket-Key: ").nth(1).unwrap().lines().next().unwrap();
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let answer_head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    let _ = socket.write_all(answer_head.as_bytes());
    for number in 0.. {
        let mut frame = [0; 6 + 64];
        if socket.read_exact(&mut frame).is_err() {
            return;
        }
        let (mask, payload) = (&frame[2..6], &frame[6..]);
        answer(&mut socket, number, payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect());
    }
}

fn say(socket: &mut TcpStream, payload: &[u8]) {
    let _ = socket.write_all(&[&[0x82, payload.len() as u8], payload].concat()); // the client may have had enough
}

#[test]
fn mistakes_are_found() {
    let check = |answer: fn(&mut TcpStream, u32, Vec<u8>), expected: &str| {
        let found = findings(4, answer);
        match expected {
            "" => assert!(found.is_empty(), "{found:?}"),
            _ => assert!(found.iter().any(|found| found.contains(expected)), "{expected}: {found:?}"),
        }
    };
    check(|socket, _, payload| say(socket, &payload), "");
    check(
        |socket, number, mut payload| {
            payload[40] ^= u8::from(number == 20);
            say(socket, &payload);
        },
        "came back changed, or to someone else",
    );
    check(
        |socket, number, mut payload| {
            payload[7] ^= u8::from(number == 20); // when it was due
            say(socket, &payload);
        },
        "came back changed, or to someone else",
    );
    check(
        |socket, number, payload| {
            say(socket, &payload);
            if number == 20 {
                say(socket, &payload);
            }
        },
        "came twice or out of order",
    );
    check(
        |socket, number, payload| {
            if number != 20 {
                say(socket, &payload);
            }
        },
        "never came back",
    );
    check(
        |socket, number, payload| match number {
            20 => drop(socket.write_all(b"\x88\x02\x03\xe9")),
            _ => say(socket, &payload),
        },
        "Closed(1001)",
    );
    check(
        |socket, number, payload| match number {
            20 => drop(socket.write_all(b"\x82\x81\x01\x02\x03\x04\x05")),
            _ => say(socket, &payload),
        },
        "Masked",
    );
    check(
        |socket, number, payload| match number {
            20 => drop(socket.shutdown(std::net::Shutdown::Both)),
            _ => say(socket, &payload),
        },
        "connections ended by themselves",
    );
}

/// A message in several frames, with a ping in between, is a message.
#[test]
fn fragments_of_a_server_are_put_together() {
    let found = findings(1, |socket, _, payload| {
        let (first, rest) = payload.split_at(10);
        let fragments = [&[0x02, 10][..], first, &[0x89, 1, b'?'], &[0x80, 54], rest].concat();
        for piece in fragments.chunks(7) {
            let _ = socket.write_all(piece);
        }
        // The answer to the ping.
        let mut pong = [0; 7];
        let _ = socket.read_exact(&mut pong);
        assert_eq!(pong[..2], [0x8a, 0x81]);
    });
    assert!(found.iter().all(|found| !found.contains("changed")), "{found:?}");
}

/// Has a server stand still until a run waits for what it has not answered, which is after the window.
#[derive(Clone, Default)]
struct Stall(Arc<AtomicBool>);

impl Stall {
    fn wait(&self) {
        super::until("the end of the window", || self.0.load(Ordering::Acquire));
    }

    /// Ends it when the run is at this.
    fn end_at(&self, what: &'static str) -> impl Fn(Progress) + use<> {
        let is_over = Arc::clone(&self.0);
        move |progress| is_over.store(is_over.load(Ordering::Acquire) || progress.what == what, Ordering::Release)
    }
}

/// How many latencies a report has.
fn latencies(report: &Report, name: &str) -> u64 {
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    json["latency"][name]["count"].as_u64().unwrap_or_default()
}

/// What was due in a window that a server slept through is all measured, although far fewer may be unanswered at a time.
#[test]
fn a_stall_at_the_end_hides_no_echo() {
    let stall = Stall::default();
    let address = serve({
        let stall = stall.clone();
        move |socket| {
            lie(socket, |socket, _, payload| {
                stall.wait();
                say(socket, &payload);
            });
        }
    });
    let watch = stall.end_at("the last ones");
    let report = clean(echo::run(impatient(address), echo(1, Some(RATE), 64), &watch));
    assert!(latencies(&report, "round_trip_since_due") >= DUE, "{report}");
    assert_eq!(report.get("messages"), Some(0.0), "none was answered in the window");
}

#[test]
fn what_was_due_and_never_sent_is_found() {
    let address = serve(|socket| lie(socket, |_, _, _| {}));
    let report = echo::run(impatient(address), echo(1, Some(RATE), 64), &|_| {}).unwrap();
    for expected in ["512 messages never came back", "messages were due and never sent", "the last ones: 0 of "] {
        assert!(report.findings.iter().any(|found| found.contains(expected)), "{expected}: {report}");
    }
}

/// Serves a publisher and a subscriber of one topic; `change` makes of a message what is delivered.
fn serve_topic(stall: &Stall, change: fn(&str) -> String) -> SocketAddr {
    let (stall, subscriber) = (stall.clone(), Arc::new(Mutex::new(None)));
    serve(move |socket| {
        let Ok(mut client) = tungstenite::accept(socket.try_clone().unwrap()) else { return };
        while let Ok(message) = client.read() {
            let Message::Text(text) = message else { continue };
            let ack = r#"{"type":"ack","payload":{"success":true,"queued":1,"dropped":0},"reply_to":1,"timestamp":1}"#;
            if let Some((_, data)) = text.split_once(r#""data":"#) {
                stall.wait();
                let data = data.strip_suffix("}}").unwrap();
                let message =
                    format!(r#"{{"type":"message","payload":{{"topic":"bench.0","data":{data}}},"timestamp":1}}"#);
                let mut subscriber = subscriber.lock().unwrap();
                let Some(subscriber) = subscriber.as_mut() else { return };
                tell(subscriber, &change(&message));
            } else {
                *subscriber.lock().unwrap() = Some(socket.try_clone().unwrap());
            }
            let _ = client.send(ack.into()); // the client may have had enough
        }
    })
}

/// Writes a text of 126 to 65,535 bytes.
fn tell(socket: &mut TcpStream, text: &str) {
    let len = u16::try_from(text.len()).unwrap().to_be_bytes();
    let _ = socket.write_all(&[&[0x81, 126], &len[..], text.as_bytes()].concat()); // the client may have had enough
}

#[test]
fn a_stall_at_the_end_hides_no_delivery() {
    let stall = Stall::default();
    let address = serve_topic(&stall, str::to_owned);
    let watch = stall.end_at("the last receipts");
    let report = clean(fanout::run(impatient(address), fanout(1, 1, Some(RATE), None), &watch));
    assert!(latencies(&report, "due_to_delivery") >= DUE, "{report}");
    assert_eq!(report.get("delivered"), Some(0.0), "none was delivered in the window");
}

#[test]
fn messages_that_were_changed_are_found() {
    let check = |change: fn(&str) -> String, expected: &str| {
        let stall = Stall(Arc::new(AtomicBool::new(true)));
        let found = fanout::run(impatient(serve_topic(&stall, change)), fanout(1, 1, None, None), &|_| {});
        let found = found.unwrap().findings;
        match expected {
            "" => assert!(found.is_empty(), "{found:?}"),
            _ => assert!(found.iter().any(|found| found.contains(expected)), "{expected}: {found:?}"),
        }
    };
    const CHANGED: &str = "messages were changed, or were another topic's";
    check(str::to_owned, "");
    check(|text| text.replace("bench.0", "bench.1"), CHANGED);
    check(|text| [&text[..text.len() - 60], r#""}},"timestamp":1}"#].concat(), CHANGED);
    check(|text| text.replace(r#""}}"#, r#"","y":0}}"#), CHANGED);
}

/// So many a second that one client in each of two threads may not have all of a window unanswered; and how many are due in
/// it, but for where it begins and ends.
const RATE: f64 = 5_000.0;
const DUE: u64 = 1_400;
/// More than a wheel without timers takes, and less than one chunk of anything.
const EMPTY: u64 = 4096;
const WHILE: Duration = Duration::from_millis(300);
