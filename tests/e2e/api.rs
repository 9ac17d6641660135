//! The admin API over real HTTP, with real clients on two shards.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::thread;

use serde_json::{Value, json};

use super::client::Client;
use super::http::{self, Answer};
use super::server::Server;

pub const KEY: &str = "0123456789abcdef";
pub const WITH_KEY: &str = "admin: {listen: 127.0.0.1:0, key: 0123456789abcdef}\n";
const JSON: &str = "Authorization: Bearer 0123456789abcdef\r\nContent-Type: application/json\r\n";

pub struct Api {
    pub server: Server,
}

impl Api {
    pub fn start(yaml: &str) -> Self {
        Self { server: Server::start(&format!("{WITH_KEY}{yaml}")) }
    }

    #[track_caller]
    pub fn ask(&self, request: &str, body: &str) -> Answer {
        http::request(self.server.admin, request, JSON, body.as_bytes())
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.ask(&format!("POST /api/{path}"), &body.to_string());
        assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
        answer.json()
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let answer = self.ask(&format!("GET /api/{path}"), "");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// Expects an error with this status and code, whose text contains `text`.
    #[track_caller]
    pub fn refused(&self, request: &str, body: &str, status: u16, code: &str, text: &str) {
        let answer = self.ask(request, body);
        check_error(&answer, status, code, text);
    }

    /// A count of the metrics.
    #[track_caller]
    pub fn metric(&self, series: &str) -> u64 {
        let text = http::request(self.server.admin, "GET /metrics", "", b"").body;
        let line = text.lines().find_map(|line| line.strip_prefix(series)).expect(series);
        line.trim().parse().unwrap()
    }
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, code: &str, text: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let error = answer.json();
    assert_eq!(error["code"], code, "{error}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains(text)), "{text}: {error}");
    assert_eq!(error.as_object().unwrap().len(), 2, "{error}");
}

#[test]
fn without_a_key_the_api_is_off() {
    let server = Server::start("");
    for request in ["GET /api/openapi.json", "POST /api/publish"] {
        let answer = http::request(server.admin, request, JSON, b"{}");
        check_error(&answer, 403, "forbidden", "TIDEWHEEL_ADMIN_KEY");
    }
    assert_eq!(http::request(server.admin, "GET /metrics", "", b"").status, 200);
}

#[test]
fn only_the_key_opens_it() {
    let api = Api::start("");
    let check = |headers: &str, status: u16| {
        let answer = http::request(api.server.admin, "GET /api/openapi.json", headers, b"");
        assert_eq!(answer.status, status, "{headers}");
        if status == 401 {
            check_error(&answer, 401, "unauthorized", "Authorization: Bearer KEY");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
        assert_eq!(answer.header("access-control-allow-origin"), "", "no page elsewhere may ask");
    };
    let bearer = |key: &str| format!("Authorization: Bearer {key}\r\n");
    check(&bearer(KEY), 200);
    check(&format!("authorization: bearer {KEY}\r\n"), 200);
    check("", 401);
    check(&bearer(""), 401);
    check(&bearer(&KEY[1..]), 401);
    check(&bearer(&format!("{KEY}0")), 401);
    check(&bearer("0123456789abcdeF"), 401);
    check(&format!("Authorization: Basic {KEY}\r\n"), 401);
    check(&format!("Authorization: {KEY}\r\n"), 401);
    check(&format!("X-Api-Key: {KEY}\r\n"), 401);
    check(&bearer("0123456789abcdeg").repeat(2), 401);
    check(&bearer(KEY).repeat(2), 401);
    check(&format!("{}Origin: http://evil.example\r\n", bearer(KEY)), 200);
    let preflight = http::request(api.server.admin, "OPTIONS /api/publish", "Origin: http://evil.example\r\n", b"");
    assert_eq!((preflight.status, preflight.header("access-control-allow-headers")), (401, ""));
    // Nothing else needs it.
    for path in ["/", "/metrics", "/livez", "/readyz", "/healthz"] {
        assert_eq!(http::request(api.server.admin, &format!("GET {path}"), "", b"").status, 200, "{path}");
    }
    let denied =
        |path: &str| api.metric(&format!(r#"tidewheel_api_requests_total{{endpoint="{path}",outcome="denied"}}"#));
    assert_eq!((denied("/api/openapi.json"), denied("/api/publish")), (10, 1));
}

#[test]
fn requests_that_are_none() {
    let api = Api::start("limits: {topic_length: 10, messages: null, bytes: null, connection_attempts: null}");
    let publish = |body: &str, code: &str, text: &str| {
        let status = if code == "too_large" { 413 } else { 400 };
        api.refused("POST /api/publish", body, status, code, text);
    };
    publish("", "invalid_message", "EOF");
    publish("[]", "invalid_message", "expected an object");
    publish(r#"["t",1]"#, "invalid_message", "expected an object");
    publish("{", "invalid_message", "EOF");
    publish("topic=t", "invalid_message", "the body is not JSON: ");
    publish(r#"{"topic":"t"}"#, "invalid_message", "missing field `data`");
    publish(r#"{"data":1}"#, "invalid_message", "missing field `topic`");
    publish(r#"{"topic":"t","data":1,"dta":2}"#, "invalid_message", "unknown field `dta`");
    publish(r#"{"topic":"t","data":1,"topic":"u"}"#, "invalid_message", "duplicate field `topic`");
    publish(r#"{"topic":7,"data":1}"#, "invalid_message", "expected a string");
    publish(r#"{"topic":"t","data":1} x"#, "invalid_message", "trailing");
    publish(r#"{"topic":"","data":1}"#, "invalid_message", "empty");
    publish(r#"{"topic":"a.*","data":1}"#, "invalid_message", "`*`");
    publish(r#"{"topic":"12345678901","data":1}"#, "too_large", "10 bytes");
    publish(r#"{"topic":"t","data":"\ud800"}"#, "invalid_message", "`data`: not JSON at byte");
    publish(&format!(r#"{{"topic":"t","data":{}}}"#, "[".repeat(119) + &"]".repeat(119)), "invalid_message", "deeper");
    publish(r#"{"topic":"t","data":1,"idempotency_key":""}"#, "invalid_message", "1 to 128");
    publish(r#"{"topic":"t","data":1,"idempotency_key":null}"#, "invalid_message", "null");
    let key = "k".repeat(129);
    publish(&format!(r#"{{"topic":"t","data":1,"idempotency_key":"{key}"}}"#), "invalid_message", "1 to 128");

    let admin = api.server.admin;
    let bearer = "Authorization: Bearer 0123456789abcdef\r\n";
    for content_type in ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"] {
        let answer = http::request(admin, "POST /api/publish", &format!("{bearer}{content_type}"), b"{}");
        check_error(&answer, 415, "unsupported_media_type", "application/json");
    }
    api.refused("GET /api/publish", "", 405, "method_not_allowed", "");
    assert_eq!(api.ask("DELETE /api/publish", "").header("allow"), "POST");
    assert_eq!(api.ask("POST /api/openapi.json", "").header("allow"), "GET,HEAD");
    api.refused("GET /api/nothing", "", 404, "not_found", "");
    api.refused("GET /api/publish/", "", 404, "not_found", "");

    let ok = api.ask("POST /api/publish", r#"{"topic":"1234567890","data":1}"#);
    assert_eq!((ok.status, ok.json()), (200, json!({"matched": 0, "queued": 0, "dropped": 0})));
    assert_eq!(api.metric(r#"tidewheel_api_requests_total{endpoint="/api/publish",outcome="ok"}"#), 1);
}

/// The bound on a body: just under, at and over it, declared or not.
#[test]
fn bodies_up_to_the_bound() {
    const MOST: usize = 4 * 1024 * 1024;
    let api = Api::start("");
    let body = |bytes: usize| {
        let around = r#"{"topic":"t","data":""}"#.len();
        format!(r#"{{"topic":"t","data":"{}"}}"#, "x".repeat(bytes - around))
    };
    assert_eq!(api.ask("POST /api/publish", &body(MOST - 1)).status, 200);
    assert_eq!(api.ask("POST /api/publish", &body(MOST)).status, 200);
    // Refused by what it declares, before it is sent.
    let headers = format!("{JSON}Content-Length: {}\r\n", MOST + 1);
    check_error(&http::request(api.server.admin, "POST /api/publish", &headers, b""), 413, "too_large", "4194304");
    let chunked = |bytes: usize| {
        let mut text = String::new();
        for chunk in body(bytes).as_bytes().chunks(1 << 16) {
            write!(text, "{:x}\r\n{}\r\n", chunk.len(), str::from_utf8(chunk).unwrap()).unwrap();
        }
        http::request(
            api.server.admin,
            "POST /api/publish",
            &format!("{JSON}Transfer-Encoding: chunked\r\n"),
            (text + "0\r\n\r\n").as_bytes(),
        )
    };
    assert_eq!(chunked(MOST).status, 200);
    check_error(&chunked(MOST + 1), 413, "too_large", "4194304");
}

#[test]
fn publishes_reach_both_shards_byte_for_byte() {
    let api = Api::start("");
    let (mut one, mut two) = api.server.connect_across();
    one.subscribe("t");
    two.subscribe("t");
    let data = r#"{"z":1.50,"a":12345678901234567890.0e-3,"m":[ 1 ,"\u00e9é"]}"#;
    let answer = api.ask("POST /api/publish", &format!(r#"{{"data": {data}, "topic": "t"}}"#));
    assert_eq!((answer.status, answer.json()), (200, json!({"matched": 2, "queued": 2, "dropped": 0})));
    for client in [&mut one, &mut two] {
        let text = client.text();
        assert!(text.contains(&format!(r#""data":{data}"#)), "{text}");
    }
    assert_eq!(api.post("publish", json!({"topic": "elsewhere", "data": null}))["matched"], 0);

    let receipt = api.post("broadcast", json!({"data": [1]}));
    assert_eq!(receipt, json!({"matched": 2, "queued": 2, "dropped": 0}));
    assert_eq!(one.expect("broadcast"), json!({"data": [1]}));
    assert_eq!(two.expect("broadcast"), json!({"data": [1]}));
    one.quiet();
    two.quiet();
}

#[test]
fn a_batch_is_published_in_order_and_each_message_has_its_result() {
    let api = Api::start("");
    let (mut one, mut two) = api.server.connect_across();
    one.subscribe("t");
    two.subscribe("t");
    let mut messages: Vec<Value> = (0..1000).map(|number| json!({"topic": "t", "data": number})).collect();
    messages[500] = json!({"topic": "..", "data": 500});
    let results = api.post("batch", json!({"messages": messages}));
    let results = results["results"].as_array().unwrap();
    assert_eq!(results.len(), 1000);
    for (number, result) in results.iter().enumerate() {
        match number {
            500 => assert_eq!(result["code"], "invalid_message", "{result}"),
            _ => assert_eq!(*result, json!({"matched": 2, "queued": 2, "dropped": 0}), "{number}"),
        }
    }
    for client in [&mut one, &mut two] {
        (0..1000).filter(|number| *number != 500).for_each(|number| assert_eq!(client.data("t"), number));
        client.quiet();
    }
    messages.push(json!({"topic": "t", "data": 1000}));
    let over = json!({"messages": messages}).to_string();
    api.refused("POST /api/batch", &over, 400, "invalid_message", "1 to 1000");
    api.refused("POST /api/batch", r#"{"messages":[]}"#, 400, "invalid_message", "1 to 1000");
    let unknown = r#"{"messages":[{"topic":"t","data":1,"x":1}]}"#;
    api.refused("POST /api/batch", unknown, 400, "invalid_message", "unknown field `x`");
    let list = r#"{"messages":[["t",1]]}"#;
    api.refused("POST /api/batch", list, 400, "invalid_message", "expected an object");
    one.quiet();
}

#[test]
fn an_idempotency_key_is_published_once() {
    let api = Api::start("");
    let mut client = api.server.connect();
    client.subscribe("t");
    let body = |data: u32, key: &str| json!({"topic": "t", "data": data, "idempotency_key": key}).to_string();
    let first = api.ask("POST /api/publish", &body(1, "a"));
    let again = api.ask("POST /api/publish", &body(1, "a"));
    assert_eq!((first.status, first.header("idempotency-replayed")), (200, ""));
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, "true"));
    assert_eq!(first.body, again.body);
    assert_eq!(client.data("t"), 1);
    client.quiet();
    // Another body, another endpoint, and another key.
    api.refused("POST /api/publish", &body(2, "a"), 409, "conflict", "another request");
    let batch = json!({"messages": [{"topic": "t", "data": 1}], "idempotency_key": "a"}).to_string();
    api.refused("POST /api/batch", &batch, 409, "conflict", "another request");
    api.post("publish", json!({"topic": "t", "data": 2, "idempotency_key": "b".repeat(128)}));
    assert_eq!(client.data("t"), 2);
    // What was refused is free to be tried again.
    let bad = json!({"topic": "..", "data": 3, "idempotency_key": "c"}).to_string();
    api.refused("POST /api/publish", &bad, 400, "invalid_message", "");
    api.post("publish", json!({"topic": "t", "data": 3, "idempotency_key": "c"}));
    assert_eq!(client.data("t"), 3);

    // Many at once: one of them publishes, all of them get its receipt.
    let subscribers: Vec<Client> = (0..4).map(|_| api.server.connect()).collect();
    let answers: BTreeSet<String> = thread::scope(|scope| {
        let ask = || scope.spawn(|| api.ask("POST /api/publish", &body(4, "d")));
        let asked: Vec<_> = (0..16).map(|_| ask()).collect();
        asked.into_iter().map(|answer| answer.join().unwrap().body).collect()
    });
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(client.data("t"), 4);
    client.quiet();
    let event = |event: &str| api.metric(&format!(r#"tidewheel_api_idempotency_total{{event="{event}"}}"#));
    assert_eq!((event("replayed"), event("conflict"), event("forgotten")), (16, 2, 0));
    drop(subscribers);
}

/// The document names every path there is, and no other.
#[test]
fn the_document_and_the_routes_are_the_same() {
    let api = Api::start("limits: {topic_length: 77, messages: null, bytes: null, connection_attempts: null}");
    let document = api.get("openapi.json");
    assert_eq!(document["openapi"].as_str().unwrap()[..4], *"3.1.");
    assert_eq!(document["components"]["schemas"]["Topic"]["maxLength"], 77);
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let request = format!("{} {}", method.to_uppercase(), path.replace("{id}", "x"));
            if request != "POST /api/drain" {
                let answer = api.ask(&request, "7");
                let status = answer.status.to_string();
                assert!(!operation["responses"][&status].is_null(), "{request}: {status} is not in the document");
                let is_there = answer.status != 405 && !answer.body.contains("served here");
                assert!(is_there, "{request} is not served: {answer:?}");
            }
            let without_key = http::request(api.server.admin, &request, "", b"");
            assert_eq!(without_key.status, 401, "{request}");
        }
    }
    // The metrics list the routes as they were built.
    let metrics = http::request(api.server.admin, "GET /metrics", "", b"").body;
    let counted: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix(r#"tidewheel_api_requests_total{endpoint=""#)?.split('"').next())
        .collect();
    let described: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(counted, described);
}

#[test]
fn the_configuration_is_told_without_its_secrets() {
    let api = Api::start(
        "websocket: {pong_timeout: 90s, max_message_size: 64KiB}\nauth: {secret: hush-hush-hush, required: false, \
         jwks: ['http://127.0.0.1:9/keys?of=hush']}",
    );
    let answer = api.ask("GET /api/config", "");
    let config = answer.json();
    assert_eq!((&config["admin"]["key"], &config["auth"]["secret"]), (&json!("***"), &json!("***")));
    assert_eq!(config["auth"]["jwks"][0]["source"], "http://127.0.0.1:9/keys?***");
    assert_eq!(config["websocket"]["pong_timeout"], "90s");
    assert_eq!(config["websocket"]["max_message_size"], "64KiB");
    assert_eq!(config["limits"]["topic_length"], 255);
    assert!(!answer.body.contains("hush") && !answer.body.contains(KEY), "{}", answer.body);
}

/// What it has ordered is done either way.
#[test]
fn who_ends_its_side_is_answered() {
    let api = Api::start("auth: {required: false}");
    let mut client = api.server.connect();
    client.subscribe("t");
    let body = json!({"topic": "t", "data": 1}).to_string();
    for request in ["POST /api/publish", "GET /api/connections", "GET /metrics"] {
        let body = if request.starts_with("POST") { body.as_bytes() } else { b"" };
        assert_eq!(http::last_request(api.server.admin, request, JSON, body).status, 200, "{request}");
    }
    assert_eq!(client.data("t"), 1);
    client.close();
    api.server.rest();
}
