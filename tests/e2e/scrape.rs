//! The metrics of a server at work, read by the tools that will read them: Prometheus' parsers and `promtool`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde::de::IgnoredAny;
use serde_json::json;
use tidewheel::{Context, OutgoingMessage};

use super::server::Server;

/// Prometheus' Python client, scraping.
struct Scraper {
    python: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Scraper {
    fn start(server: &Server) -> Self {
        let mut python = Command::new(tool(".venv/bin/python"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/scrape.py"))
            .arg(format!("http://{}/metrics", server.admin))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (python.stdin.take().unwrap(), BufReader::new(python.stdout.take().unwrap()));
        Self { python, stdin, stdout }
    }

    /// Scrapes in both formats, checks what must hold in every scrape, and returns sums over the shards.
    #[track_caller]
    fn scrape(&mut self) -> BTreeMap<String, f64> {
        self.stdin.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the scraper says why above; is its package missing? `tests/run rust` installs it");
        serde_json::from_str(&line).unwrap()
    }

    fn stop(self) {
        let Self { mut python, stdin, .. } = self;
        drop(stdin);
        assert!(python.wait().unwrap().success());
    }
}

#[test]
fn the_books_of_a_server_at_work() {
    let server = Server::build(2, "", |builder| {
        builder.route("later", async |_: Context, _: IgnoredAny| {
            tokio::task::yield_now().await; // it is pending once, however slow the machine
            Ok(OutgoingMessage::new("done", &json!({}))?)
        })
    });
    let mut scraper = Scraper::start(&server);
    let idle = scraper.scrape();
    assert_eq!((idle["opened"], idle["websocket_connections_max"]), (0.0, 4096.0));

    let stop = AtomicBool::new(false);
    let [connections, publishes, deliveries, parked] = [(); 4].map(|()| AtomicU64::new(0));
    thread::scope(|scope| {
        for number in 0..6 {
            let (server, stop) = (&server, &stop);
            let (connections, publishes, deliveries, parked) = (&connections, &publishes, &deliveries, &parked);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut client = server.connect();
                    connections.fetch_add(1, Ordering::Relaxed);
                    client.subscribe(&format!("t.{}", number % 2));
                    for round in 0..20 {
                        let (matched, queued, dropped) = client.publish(&format!("t.{}", round % 2), json!(round));
                        assert_eq!((matched, dropped), (queued, 0));
                        publishes.fetch_add(1, Ordering::Relaxed);
                        deliveries.fetch_add(matched, Ordering::Relaxed);
                    }
                    client.refused("no such thing", json!({}), "unknown_message");
                    assert_eq!(client.ask("later", json!({}))["type"], "done");
                    parked.fetch_add(1, Ordering::Relaxed);
                    client.close();
                }
            });
        }
        let _stop = Stop(&stop);
        // At least five, and as many as it takes to see all of it under way.
        let (mut scrapes, mut seen) = (0, false);
        while scrapes < 5 || !seen || connections.load(Ordering::Relaxed) < 60 {
            seen |= scraper.scrape()["active"] > 0.0;
            scrapes += 1;
        }
        promtool(&["check", "metrics"], &plain(&server));
    });
    server.rest();
    let last = scraper.scrape();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let check = |name: &str, expected: f64| assert_eq!(last[name], expected, "{name}");
    for name in ["active", "tidewheel_subscriptions", "tidewheel_frame_bytes", "tidewheel_inbound_bytes"] {
        check(name, 0.0);
    }
    for name in ["opened", "closed", "websocket_upgrades_total", "unknown"] {
        check(name, count(&connections));
    }
    check("websocket_connection_duration_seconds_count", last["websocket_upgrades_total"]);
    check("websocket_handshake_duration_seconds_count", last["websocket_upgrades_total"]);
    check("websocket_published_total", count(&publishes));
    check("websocket_deliveries_matched_total", count(&deliveries));
    check("websocket_deliveries_queued_total", count(&deliveries));
    check("parked", count(&parked));
    // Subscription, publishes, the unknown one and the handler.
    check("messages_in", 23.0 * count(&connections));
    check("websocket_outbound_queue_bytes_count", last["websocket_outbound_queue_frames_count"]);
    let at_least = |name: &str, least: f64| assert!(last[name] >= least, "{name} is {}", last[name]);
    at_least("websocket_receipt_duration_seconds_count", 1.0);
    at_least("websocket_outbound_queue_frames_count", last["tidewheel_sends_total"]);
    at_least("tidewheel_turn_events_sum", last["messages_in"]);
    at_least("tidewheel_shard_cpu_seconds_total", 0.001);
    scraper.stop();
}

#[test]
fn alerts_fire_when_they_should() {
    promtool(&["check", "rules", "prometheus/recording.rules.yml", "prometheus/alerts.rules.yml"], "");
    promtool(&["test", "rules", "prometheus/rules.test.yml"], "");
}

/// Ends the traffic, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The metrics as a reader gets them who does not ask for OpenMetrics.
fn plain(server: &Server) -> String {
    let mut stream = super::server::tcp(server.admin);
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Runs Prometheus' checker, which must find nothing.
#[track_caller]
fn promtool(arguments: &[&str], input: &str) {
    let mut promtool = Command::new(tool(".tools/promtool"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stderr.is_empty(), "promtool {arguments:?}:\n{stdout}{stderr}");
}

/// What `tests/run` installs.
fn tool(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path);
    assert!(path.exists(), "{} is missing: run `tests/run rust`, which makes it", path.display());
    path
}
