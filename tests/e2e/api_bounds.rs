//! The admin API where shards do not answer: every question has an answer in time, and nothing grows without end.

use std::net::{SocketAddr, TcpListener};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use serde_json::{Value, json};
use tidewheel::Config;
use tidewheel::control::running::Room;
use tidewheel::control::{self, ControlPlane, ControlSettings, Drains, Holdings, PageSettings, Phase, Running, Shards};

use super::api::KEY;
use super::http::{self, Answer};

/// A control plane whose shards never take an order.
struct Deaf {
    shards: Shards,
    admin: SocketAddr,
    _control: ControlPlane,
}

impl Deaf {
    fn start() -> Self {
        let config = Config::parse(&format!("admin: {{key: {KEY}}}\nauth: {{required: false}}")).unwrap();
        let (shards, phase) = (Shards::new(2, Arc::default()), Arc::<Phase>::default());
        let running = Running::new(config, Room { connections: 1, slots: 1 }, shards.clone(), None).unwrap();
        let running = Arc::new(running);
        let control = control::start(ControlSettings {
            admin: Some(TcpListener::bind("127.0.0.1:0").unwrap()),
            metrics: Vec::new(),
            holdings: Box::new(Holdings::default),
            phase: phase.clone(),
            page: PageSettings { websocket: "127.0.0.1:8080".parse().ok(), tls: None, path: "/ws".into() },
            drains: Arc::new(Drains::new(running.clone(), phase, Vec::new())),
            running,
            signals: false,
            on_terminate: Box::new(|| {}),
        })
        .unwrap();
        Self { shards, admin: control.admin_address().unwrap(), _control: control }
    }

    fn ask(&self, request: &str, body: &str) -> Answer {
        let headers = format!("Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n");
        http::request(self.admin, request, &headers, body.as_bytes())
    }

    #[track_caller]
    fn check(&self, request: &str, body: Value, status: u16, code: &str) {
        let answer = self.ask(request, &body.to_string());
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{request}: {answer:?}");
    }
}

#[test]
fn shards_that_do_not_answer() {
    let deaf = Deaf::start();
    let id = "00000000-0000-8000-8000-000000000000";
    thread::scope(|scope| {
        for (request, body) in [
            ("POST /api/publish", json!({"topic": "t", "data": 1, "idempotency_key": "k"})),
            // The same once more: it waits for the first.
            ("POST /api/publish", json!({"topic": "t", "data": 1, "idempotency_key": "k"})),
            ("POST /api/batch", json!({"messages": [{"topic": "t", "data": 1}]})),
            ("POST /api/broadcast", json!({"data": 1})),
            ("POST /api/send", json!({"session_id": id, "payload": 1})),
            ("POST /api/disconnect", json!({"topic": "t"})),
            ("POST /api/subscribe", json!({"session_id": id, "topic": "t"})),
            ("POST /api/unsubscribe", json!({"session_id": id, "topic": "t"})),
            ("GET /api/topics", json!(null)),
        ] {
            let deaf = &deaf;
            scope.spawn(move || deaf.check(request, body, 504, "timeout"));
        }
    });
    // What needs no shard is answered all the same.
    for path in ["shards", "config", "openapi.json"] {
        assert_eq!(deaf.ask(&format!("GET /api/{path}"), "").status, 200, "{path}");
    }
    let metrics = http::request(deaf.admin, "GET /metrics", "", b"").body;
    assert!(metrics.contains("tidewheel_api_idempotency_total{event=\"replayed\"} 1\n"), "{metrics}");
    assert!(
        metrics.contains("tidewheel_api_requests_total{endpoint=\"/api/publish\",outcome=\"failed\"} 2\n"),
        "{metrics}"
    );

    // Until the inbox is full: then there is an answer at once.
    let mut places = 0;
    while poll_once(pin!(deaf.shards.broadcast(&1))).is_pending() {
        places += 1;
        assert!(places <= 1024, "an inbox has a bound");
    }
    deaf.check("POST /api/broadcast", json!({"data": 1}), 429, "limit_exceeded");
}

/// Bodies of requests that nobody finishes take up room, up to a bound.
#[test]
fn room_for_bodies() {
    const MOST: usize = 4 * 1024 * 1024;
    let deaf = Deaf::start();
    let body = |bytes: usize| json!({"topic": "t", "data": "x".repeat(bytes - json!({"topic": "t", "data": ""}).to_string().len())});
    let publish_15 = || {
        thread::scope(|scope| {
            let (deaf, body) = (&deaf, body(MOST));
            for _ in 0..15 {
                let body = body.clone();
                scope.spawn(move || deaf.check("POST /api/publish", body, 504, "timeout"));
            }
        });
    };
    publish_15();
    let small = json!({"topic": "t", "data": 1});
    deaf.check("POST /api/publish", small.clone(), 504, "timeout");
    // What is left is less than this.
    deaf.check("POST /api/publish", body(MOST), 429, "limit_exceeded");
    deaf.check("POST /api/publish", body(MOST - small.to_string().len()), 504, "timeout");
    deaf.check("POST /api/publish", small, 429, "limit_exceeded");
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
