//! The control plane from outside: real sockets, real signals, and a scrape read by a strict parser.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidewheel::Config;
use tidewheel::control::running::Room;
use tidewheel::control::{self, ControlPlane, ControlSettings, Drains, Holdings, PageSettings};
use tidewheel::control::{Phase, Running, Shards, Stage};
use tidewheel::metrics::{CloseReason, ErrorCode, ShardMetrics};

#[test]
fn every_endpoint_answers_as_the_phase_says() {
    let plane = Plane::start(1);
    let check = |stage: Stage, request: &str, status: u16, content_type: &str, body: &str| {
        plane.phase.advance(stage);
        let answer = plane.get(request);
        assert_eq!((answer.status, answer.header("content-type")), (status, content_type), "{stage:?} {request}");
        assert!(answer.body.contains(body), "{stage:?} {request}: {}", answer.body);
    };
    const TEXT: &str = "text/plain; charset=utf-8";
    const JSON: &str = "application/json";
    const HTML: &str = "text/html; charset=utf-8";
    const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

    check(Stage::Starting, "GET /livez", 200, TEXT, "ok");
    check(Stage::Starting, "GET /readyz", 503, JSON, r#""reason":"the engine has not started yet""#);
    check(Stage::Ready, "GET /livez", 200, TEXT, "ok");
    check(Stage::Ready, "GET /healthz", 200, TEXT, "ok");
    check(Stage::Ready, "GET /readyz", 200, JSON, r#"{"phase":"ready","ready":true}"#);
    check(Stage::Ready, "GET /readyz?verbose", 200, JSON, r#""ready":true"#);
    check(Stage::Ready, "GET /metrics", 200, METRICS, "\n# TYPE websocket_upgrades_total counter\n");
    check(Stage::Ready, "GET /", 200, HTML, r#"data-port="8080" data-tls-port="" data-path="/ws""#);
    check(Stage::Ready, "HEAD /metrics", 200, METRICS, "");
    check(Stage::Ready, "GET /nothing", 404, JSON, r#"{"code":"not_found","message":"#);
    check(Stage::Ready, "GET /livez/", 404, JSON, r#""code":"not_found""#);
    check(Stage::Ready, "GET /..%2fetc/passwd", 404, JSON, r#""code":"not_found""#);
    check(Stage::Ready, "POST /metrics", 405, JSON, r#"{"code":"method_not_allowed","message":"#);
    check(Stage::Ready, "DELETE /", 405, JSON, r#""code":"method_not_allowed""#);
    check(Stage::Draining, "GET /livez", 200, TEXT, "ok");
    check(Stage::Draining, "GET /readyz", 503, JSON, r#""phase":"draining","ready":false,"reason":"the engine drains"#);
    check(Stage::Stopped, "GET /readyz", 503, JSON, r#""phase":"stopped""#);
}

#[test]
fn the_page_runs_nothing_but_its_own_script() {
    let plane = Plane::start(1);
    let nonce = |answer: &Answer| {
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        assert_eq!(answer.body.matches(&format!(r#" nonce="{nonce}""#)).count(), 2, "one style and one script");
        nonce
    };
    let (first, second) = (plane.get("GET /"), plane.get("GET /"));
    assert_ne!(nonce(&first), nonce(&second));
    assert_eq!(first.header("cache-control"), "no-store");
    assert_eq!(first.header("referrer-policy"), "no-referrer");
}

#[test]
fn a_scrape_says_how_far_a_drain_is() {
    let plane = Plane::start(2);
    plane.metrics.iter().for_each(|shard| shard.opened.add(5));
    plane.metrics[1].count_closed(CloseReason::Drain);
    plane.metrics[1].closed_cleanly.add(1);
    plane.metrics[0].unsent_bytes.set(9);
    plane.phase.drain_within(Duration::from_secs(100));
    let scrape = plane.scrape();
    let check = |series: &str, expected: f64| assert_eq!(scrape.samples.get(series), Some(&expected), "{series}");
    check(r#"tidewheel_phase{phase="draining"}"#, 1.0);
    check("tidewheel_drain_connections_left", 9.0);
    check(r#"tidewheel_drain_closed_cleanly_total{shard="1"}"#, 1.0);
    check(r#"tidewheel_drain_cut_total{shard="1"}"#, 0.0);
    check(r#"tidewheel_drain_unsent_bytes{shard="0"}"#, 9.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let deadline = scrape.samples["tidewheel_drain_deadline_timestamp_seconds"];
    assert!((now + 60.0..now + 101.0).contains(&deadline), "{deadline}");
}

#[test]
fn a_scrape_is_openmetrics_and_says_what_was_counted() {
    let plane = Plane::start(2);
    let shard = &plane.metrics[1];
    shard.opened.add(7);
    shard.count_closed(CloseReason::Peer);
    shard.count_closed(CloseReason::SlowConsumer);
    shard.errors[ErrorCode::RateLimited as usize].add(3);
    shard.messages_out.add(u64::MAX);
    shard.subscriptions.set(5);
    shard.thread.set(std::process::id().into());
    [1_000_000, 3_000_000, 60_000_000_000].iter().for_each(|&ns| shard.rtt.observe(ns));
    plane.phase.advance(Stage::Ready);
    let scrape = plane.scrape();

    let check = |series: &str, expected: f64| assert_eq!(scrape.samples.get(series), Some(&expected), "{series}");
    check(r#"active_websocket_connections{shard="0"}"#, 0.0);
    check(r#"active_websocket_connections{shard="1"}"#, 5.0);
    check(r#"websocket_connections_opened_total{shard="1"}"#, 7.0);
    check(r#"websocket_connections_closed_total{shard="1",reason="peer"}"#, 1.0);
    check(r#"websocket_connections_closed_total{shard="1",reason="slow_consumer"}"#, 1.0);
    check(r#"websocket_connections_closed_total{shard="1",reason="drain"}"#, 0.0);
    check(r#"websocket_errors_total{shard="1",code="rate_limited"}"#, 3.0);
    check(r#"websocket_messages_total{shard="1",direction="out"}"#, u64::MAX as f64);
    check(r#"websocket_messages_total{shard="1",direction="in"}"#, 0.0);
    check(r#"websocket_refused_total{shard="0",cause="full"}"#, 0.0);
    check(r#"websocket_dropped_total{shard="0",cause="closed"}"#, 0.0);
    check(r#"tidewheel_subscriptions{shard="1"}"#, 5.0);
    check(r#"websocket_ping_rtt_seconds_bucket{le="0.0005",shard="1"}"#, 0.0);
    check(r#"websocket_ping_rtt_seconds_bucket{le="0.001",shard="1"}"#, 1.0);
    check(r#"websocket_ping_rtt_seconds_bucket{le="10.0",shard="1"}"#, 2.0);
    check(r#"websocket_ping_rtt_seconds_bucket{le="+Inf",shard="1"}"#, 3.0);
    check(r#"websocket_ping_rtt_seconds_count{shard="1"}"#, 3.0);
    check(r#"websocket_ping_rtt_seconds_sum{shard="1"}"#, 60.004);
    check(r#"websocket_ping_rtt_seconds_count{shard="0"}"#, 0.0);
    check(r#"tidewheel_phase{phase="ready"}"#, 1.0);
    check("tidewheel_drain_connections_left", 0.0);
    check("tidewheel_drain_deadline_timestamp_seconds", 0.0);
    check(r#"tidewheel_phase{phase="starting"}"#, 0.0);
    check(concat!(r#"tidewheel_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#), 1.0);
    check("websocket_connections_max", 1.0);
    check("tidewheel_clients", 2.0);
    check(r#"tidewheel_bus_depth{shard="1"}"#, 4.0);
    let between = |series: &str, low: f64, high: f64| {
        let value = scrape.samples[series];
        assert!((low..high).contains(&value), "{series} {value}");
    };
    between(r#"tidewheel_shard_cpu_seconds_total{shard="1"}"#, 1e-9, 1e6);
    between("process_cpu_seconds_total", 0.0, 1e6);
    between("process_virtual_memory_bytes", 1e6, 1e15);
    between("process_open_fds", 5.0, 10_000.0);
    between("process_resident_memory_bytes", 1e6, 1e10);
    between("process_start_time_seconds", 1.7e9, 1e11);
}

#[test]
fn the_books_balance_in_every_scrape_while_a_shard_counts() {
    let plane = Plane::start(1);
    let done = Arc::new(());
    let (still_scraping, shard) = (Arc::downgrade(&done), Arc::clone(&plane.metrics[0]));
    thread::scope(|scope| {
        // Moved in, so that a failed assertion ends the counting too.
        let _done = done;
        scope.spawn(move || {
            while still_scraping.strong_count() > 0 {
                shard.opened.add(1);
                shard.count_closed(CloseReason::Lost);
            }
        });
        let mut last = 0.0;
        for _ in 0..50 {
            let scrape = plane.scrape();
            let opened = scrape.samples[r#"websocket_connections_opened_total{shard="0"}"#];
            let active = scrape.samples[r#"active_websocket_connections{shard="0"}"#];
            let closed = scrape.sum("websocket_connections_closed_total{");
            assert_eq!(opened, active + closed);
            assert!(opened >= last, "a counter went back");
            last = opened;
        }
        assert!(last > 0.0);
    });
}

#[test]
fn a_connection_is_kept_for_the_next_request() {
    let plane = Plane::start(1);
    let mut stream = plane.connect();
    for _ in 0..3 {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
}

#[test]
fn the_slow_the_silent_and_the_endless_are_cut_off_and_hurt_nobody() {
    let plane = Plane::start(1);
    // More than there are places, and none of them ever asks for anything.
    let silent: Vec<TcpStream> = (0..260).map(|_| plane.connect()).collect();
    let mut drip = silent[0].try_clone().unwrap();
    let begun = Instant::now();
    // One byte at a time is no progress.
    let dripping = thread::spawn(move || {
        for byte in b"GET /livez HTTP/1.1\r\nHost: slow".iter().cycle() {
            if drip.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(200));
        }
    });
    let answer = plane.get("GET /livez");
    assert_eq!(answer.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(10), "served after {:?}", begun.elapsed());
    dripping.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "the drip lasted {:?}", begun.elapsed());
    drop(silent);

    // With places free again, neighbours of a slow client do not notice it.
    let mut slow = plane.connect();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost:").unwrap();
    let begun = Instant::now();
    assert_eq!(plane.get("GET /livez").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(1));

    // A request head without end is cut off at the bound, long before its time is up.
    let mut endless = plane.connect();
    endless.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX: ").unwrap();
    let sent = (0..1024).take_while(|_| endless.write_all(&[b'a'; 1024]).is_ok()).count();
    let mut rest = Vec::new();
    let _ = endless.read_to_end(&mut rest);
    let refused = rest.is_empty() || rest.starts_with(b"HTTP/1.1 431 ");
    assert!(sent < 1024 || refused, "{}", String::from_utf8_lossy(&rest));
    assert!(begun.elapsed() < Duration::from_secs(4));
}

/// Whoever asks is served in the place of the oldest that do not, long before their time is up.
#[test]
fn requests_that_are_never_finished_make_room() {
    let plane = Plane::start(1);
    let mut half_asked: Vec<TcpStream> = (0..600).map(|_| plane.connect()).collect();
    for stream in &mut half_asked {
        // The oldest may have had to go by now.
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost:");
    }
    let begun = Instant::now();
    assert_eq!(plane.get("GET /livez").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(4), "they were waited for: {:?}", begun.elapsed());
    let is_open = |stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        stream.peek(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    };
    let open = half_asked.iter().filter(|stream| is_open(stream)).count();
    assert!((200..=256).contains(&open), "{open} of those that did not ask are still there");
    assert!(half_asked[400..].iter().all(is_open), "the oldest go first");
}

#[test]
fn tokio_timers_run_for_threads_that_entered_the_handle() {
    let plane = Plane::start(1);
    let begun = Instant::now();
    plane.control.tokio_handle().block_on(async { tokio::time::sleep(Duration::from_millis(30)).await });
    assert!(begun.elapsed() >= Duration::from_millis(30));
}

#[test]
fn stopping_closes_the_port() {
    let plane = Plane::start(1);
    let address = plane.address;
    let mut open = plane.connect();
    drop(plane.control);
    assert_eq!(open.read(&mut [0; 16]).unwrap_or(0), 0, "the connection ended");
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    TcpListener::bind(address).unwrap();
}

#[test]
fn the_first_signal_drains_the_second_ends_the_process() {
    let check = |signals: [&str; 3], said: [&str; 2], code: i32| {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "signalled_child", "--nocapture", "--include-ignored"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut wait_for = |said: &str| assert!(lines.any(|line| line.ends_with(said)), "the child never said {said}");
        let signal = |name: &str| {
            assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
        };
        wait_for("child started");
        signal(signals[0]);
        wait_for(said[0]);
        signal(signals[1]);
        wait_for(said[1]);
        signal(signals[2]);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signals:?}");
    };
    check(["-TERM", "-HUP", "-INT"], ["on_terminate", "still here"], 1);
    check(["-HUP", "-INT", "-TERM"], ["still here", "on_terminate"], 1);
}

/// Not a test of its own: the process that the test of signals sends them to.
#[test]
#[ignore = "runs as a child of the test of signals"]
fn signalled_child() {
    let mut settings = settings(1);
    settings.signals = true;
    settings.on_terminate = Box::new(|| say("on_terminate"));
    let _control = control::start(settings).unwrap();
    say("child started");
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(100));
        say("still here");
    }

    fn say(what: &str) {
        writeln!(io::stdout(), "{what}").unwrap();
    }
}

/// A running control plane with its port on loopback.
struct Plane {
    control: ControlPlane,
    address: SocketAddr,
    metrics: Vec<Arc<ShardMetrics>>,
    phase: Arc<Phase>,
}

impl Plane {
    fn start(shards: usize) -> Self {
        let settings = settings(shards);
        let (metrics, phase) = (settings.metrics.clone(), Arc::clone(&settings.phase));
        let control = control::start(settings).unwrap();
        let address = control.admin_address().unwrap();
        Self { control, address, metrics, phase }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends one request, `METHOD target`, on a connection of its own.
    fn get(&self, request: &str) -> Answer {
        self.get_with(request, "")
    }

    /// A scrape as Prometheus asks for it.
    fn scrape(&self) -> Scrape {
        let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n";
        let answer = self.get_with("GET /metrics", accept);
        assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
        Scrape::parse(&answer.body)
    }

    fn get_with(&self, request: &str, headers: &str) -> Answer {
        let mut stream = self.connect();
        let host = self.address;
        write!(stream, "{request} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }
}

fn settings(shards: usize) -> ControlSettings {
    let open = Config::parse("auth: {required: false}").unwrap();
    let (inboxes, phase) = (Shards::new(shards, Arc::default()), Arc::<Phase>::default());
    let metrics: Vec<Arc<ShardMetrics>> = (0..shards).map(|_| Arc::default()).collect();
    let running = Arc::new(Running::new(open, Room { connections: 1, slots: 1 }, inboxes, None).unwrap());
    ControlSettings {
        admin: Some(TcpListener::bind("127.0.0.1:0").unwrap()),
        metrics: metrics.clone(),
        holdings: Box::new(move || Holdings {
            clients: 2,
            addresses: 3,
            bus_bound: 64,
            bus_depths: (3..).take(shards).collect(),
        }),
        phase: phase.clone(),
        page: PageSettings { websocket: "127.0.0.1:8080".parse().ok(), tls: None, path: "/ws".into() },
        drains: Arc::new(Drains::new(running.clone(), phase, metrics)),
        running,
        signals: false,
        on_terminate: Box::new(|| {}),
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

/// The samples of one scrape, by series as it is written.
struct Scrape {
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Accepts OpenMetrics as this server may write it, and nothing else: each family once, HELP, TYPE, then its
    /// samples with the right suffix; labels in order; no series twice; one EOF, at the end.
    fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("EOF ends the text");
        assert!(body.ends_with('\n'));
        let mut families = BTreeSet::new();
        let mut samples = BTreeMap::new();
        let mut lines = body.lines().peekable();
        while let Some(line) = lines.next() {
            let (name, help) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).expect(line);
            assert!(is_name(name) && !name.ends_with("_total") && help.ends_with('.'), "{line}");
            assert!(families.insert(name), "{name} is there twice");
            let line = lines.next().expect("a TYPE follows");
            let kind = line.strip_prefix(&format!("# TYPE {name} ")).expect(line);
            let sample_names = match kind {
                "counter" => vec![format!("{name}_total")],
                "gauge" => vec![name.to_owned()],
                "histogram" => ["bucket", "sum", "count"].map(|suffix| format!("{name}_{suffix}")).to_vec(),
                _ => panic!("{line}"),
            };
            let before = samples.len();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (series, value) = line.rsplit_once(' ').expect(line);
                let (sample_name, labels) = series.split_at(series.find('{').unwrap_or(series.len()));
                assert!(sample_names.iter().any(|name| name == sample_name), "{line}");
                assert!(labels.is_empty() || are_labels(labels), "{line}");
                let value: f64 = value.parse().expect(line);
                assert!(value >= 0.0, "{line}");
                assert!(samples.insert(series.to_owned(), value).is_none(), "{series} is there twice");
            }
            assert!(samples.len() > before, "{name} has no samples");
        }
        Self { samples }
    }

    fn sum(&self, prefix: &str) -> f64 {
        self.samples.iter().filter(|(series, _)| series.starts_with(prefix)).map(|(_, value)| value).sum()
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_'))
}

fn are_labels(text: &str) -> bool {
    let Some(labels) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else { return false };
    labels.split(',').all(|label| {
        let value = label.split_once("=\"").filter(|(name, _)| is_name(name)).and_then(|(_, v)| v.strip_suffix('"'));
        value.is_some_and(|value| !value.is_empty() && !value.contains(['"', '\\', '\n']))
    })
}
