//! Tokens in the upgrade request: everywhere they may travel, and nowhere else.

use serde_json::{Value, json};
use tidewheel::metrics::Refusal;

use super::auth::{SECRET, in_an_hour, now_s, token};
use super::client::Client;
use super::raw::{Raw, close, request_with, text};
use super::server::Server;

/// A server with this in its section `auth`, besides a key.
fn server(auth: &str) -> Server {
    Server::start(&format!("auth: {{secret: '{SECRET}', {auth}}}"))
}

fn refused(server: &Server, cause: Refusal) -> u64 {
    server.sum(|shard| &shard.refused[cause as usize])
}

/// The upgrade succeeds; returns its head.
#[track_caller]
fn upgraded(server: &Server, path: &str, lines: &str) -> (Raw, String) {
    let mut raw = server.raw();
    raw.write(request_with(path, lines).as_bytes());
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{lines}: {head}");
    (raw, head)
}

/// The request authenticates: the first message says so, without being asked, and commands are taken at once.
#[track_caller]
fn let_in(server: &Server, path: &str, lines: &str) {
    let (mut raw, head) = upgraded(server, path, lines);
    let expected = lines.contains("tidewheel.v1").then_some("tidewheel.v1");
    let chosen = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "));
    assert_eq!(chosen, expected, "{lines}");
    let first = raw.json();
    assert_eq!((&first["type"], first.get("reply_to")), (&json!("auth_result"), None), "{lines}: {first}");
    assert_eq!(first["payload"]["user_id"], "alice", "{first}");
    assert_eq!(first["payload"]["authenticated"], true, "{first}");
    assert!(first["payload"]["expires_at"].as_u64().unwrap() > now_s(), "{first}");
    raw.text(r#"{"type":"subscribe","payload":{"topic":"t"},"id":1}"#);
    assert_eq!(raw.json()["type"], "ack");
    raw.write(&close(1000));
    assert_eq!(raw.closed(), 1000);
}

/// The request is upgraded as if it carried nothing: the client still has to authenticate.
#[track_caller]
fn ignored(server: &Server, path: &str, lines: &str) {
    let (mut raw, _) = upgraded(server, path, lines);
    raw.text(r#"{"type":"list_subscriptions","id":1}"#);
    let first = raw.json();
    assert_eq!(
        (&first["payload"]["code"], &first["reply_to"]),
        (&json!("unauthorized"), &json!(1)),
        "{lines}: {first}"
    );
}

/// The request is refused; returns the body.
#[track_caller]
fn turned_away(server: &Server, path: &str, lines: &str, status: u16) -> String {
    let mut raw = server.raw();
    raw.write(request_with(path, lines).as_bytes());
    let (got, head, body) = raw.refusal();
    assert_eq!(got, status, "{lines}: {head}{body}");
    let challenge = "\r\nWWW-Authenticate: Bearer error=\"invalid_token\"\r\n";
    assert_eq!(head.contains(challenge), status == 401, "{head}");
    body
}

fn authorization(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[test]
fn wherever_it_may_be() {
    let server = server("cookie: session, query: true");
    let good = token(in_an_hour());
    let_in(&server, "/ws", &authorization(&good));
    let_in(&server, "/ws", &format!("authorization: bearer {good}\r\n"));
    let_in(&server, "/ws", &format!("Cookie: theme=dark; session={good}\r\n"));
    let_in(&server, "/ws", &format!("Sec-WebSocket-Protocol: tidewheel.v1, bearer.{good}\r\n"));
    let_in(&server, "/ws", &format!("Sec-WebSocket-Protocol: bearer.{good}\r\n"));
    let_in(&server, &format!("/ws?v=2&token={good}"), "");
    let_in(&server, &format!("/ws?token={good}"), &authorization(&good));
    // Who sends none still may, and one for somebody else is none.
    ignored(&server, "/ws", "");
    ignored(&server, "/ws", "Authorization: Basic YTpi\r\nCookie: theme=dark\r\n");
    ignored(&server, "/ws?tokens=1", "Sec-WebSocket-Protocol: tidewheel.v1\r\n");
    server.rest();
    assert_eq!(refused(&server, Refusal::Unauthorized), 0);
}

#[test]
fn nowhere_else() {
    let server = server("cookie: null");
    let good = token(in_an_hour());
    ignored(&server, &format!("/ws?token={good}"), "");
    ignored(&server, "/ws?token=bad", &format!("Cookie: session={good}\r\n"));
    let_in(&server, "/ws?token=bad", &format!("{}Cookie: session=bad\r\n", authorization(&good)));
    server.rest();
}

#[test]
fn the_cookie_has_the_configured_name() {
    let server = server("cookie: sid");
    let good = token(in_an_hour());
    let_in(&server, "/ws", &format!("Cookie: session=bad; sid={good}\r\n"));
    ignored(&server, "/ws", &format!("Cookie: session={good}; SID={good}\r\n"));
    turned_away(&server, "/ws", "Cookie: sid=bad\r\n", 401);
    server.rest();
}

#[test]
fn bad_tokens() {
    let server = server("cookie: session, query: true");
    let mut neighbour = server.connect();
    let expired = token(json!({"sub": "alice", "exp": now_s() - 1}));
    let mut check = |path: &str, lines: &str, why: &str| {
        let body = turned_away(&server, path, lines, 401);
        assert!(body.contains(why) && !body.contains(&expired), "{body}");
        neighbour.quiet();
    };
    check("/ws", &authorization(&expired), "token expired");
    check("/ws", &authorization(&token(json!({"sub": "alice", "aud": "others"}))), "another audience");
    check("/ws", &authorization("a.b.c"), "not a JSON Web Token");
    check("/ws", "Authorization: Bearer\r\n", "not a JSON Web Token");
    check("/ws", &format!("Cookie: session={expired}\r\n"), "token expired");
    check("/ws", &format!("Sec-WebSocket-Protocol: tidewheel.v1, bearer.{expired}\r\n"), "token expired");
    check(&format!("/ws?token={expired}"), "", "token expired");
    assert_eq!(refused(&server, Refusal::Unauthorized), 7);
    // Where there is nothing to authenticate for, that is what is said.
    turned_away(&server, "/elsewhere", &authorization(&expired), 404);
    neighbour.close();
    server.rest();
}

#[test]
fn two_tokens() {
    let server = server("cookie: session, query: true");
    let (good, other) = (token(in_an_hour()), token(json!({"sub": "bob"})));
    let check = |path: &str, lines: &str, one: &str, another: &str| {
        let body = turned_away(&server, path, lines, 400);
        assert!(body.contains(one) && body.contains(another), "{body}");
        assert!(!body.contains(&good) && !body.contains(&other), "{body}");
    };
    let header = authorization(&good);
    check("/ws", &format!("{header}Cookie: session={other}\r\n"), "Authorization", "cookie");
    check("/ws", &format!("{header}Sec-WebSocket-Protocol: bearer.{other}\r\n"), "Authorization", "Protocol");
    check(&format!("/ws?token={other}"), &format!("Cookie: session={good}\r\n"), "cookie", "query");
    server.rest();
    assert_eq!((refused(&server, Refusal::BadRequest), refused(&server, Refusal::Unauthorized)), (3, 0));
}

#[test]
fn it_is_an_authentication_like_any_other() {
    let server = server("expiry_grace: 1s, timeout: 300ms");
    let claims = json!({"sub": "alice", "exp": now_s() + 2, "topics": {"subscribe": ["chat.*"]}});
    let header = format!("Bearer {}", token(claims));
    let (mut client, _) = Client::connect_to(server.address, "/ws", &[("Authorization", &header)]);
    let result = client.expect("auth_result");
    client.subscribe("chat.a");
    client.refused("subscribe", json!({"topic": "news"}), "forbidden");
    assert_eq!(super::handlers::block_on(server.handle.broadcast(&1)).unwrap().queued, 1);
    assert_eq!(client.expect("broadcast"), json!({"data": 1}));
    let text = client.refused("authenticate", json!({"token": token(in_an_hour())}), "invalid_message");
    assert!(text.contains("already authenticated"), "{text}");
    // It outlasts the time for `authenticate`, ends with its token, and is refreshed as any other.
    assert!(client.expect("token_expiring")["expires_at"].is_u64());
    let reply = client.ask("refresh", json!({"token": token(in_an_hour())}));
    assert_eq!(reply["payload"]["session_id"], result["session_id"], "{reply}");
    client.subscribe("news");
    client.close();

    // Frames behind the request are those of the user already.
    let mut raw = server.raw();
    let request = request_with("/ws", &authorization(&token(in_an_hour())));
    raw.write(&[request.as_bytes(), &text_of("list_subscriptions"), &text_of("ping")].concat());
    raw.head();
    let kinds = [raw.json(), raw.json(), raw.json()].map(|message| message["type"].clone());
    assert_eq!(kinds, ["auth_result", "subscriptions", "pong"].map(Value::from));
    drop(raw);
    server.rest();
}

fn text_of(kind: &str) -> Vec<u8> {
    text(&json!({"type": kind}).to_string())
}

#[test]
fn where_nobody_needs_one() {
    // A key, and nobody has to use it: who brings a token must bring a good one.
    let optional = server("required: false");
    let_in(&optional, "/ws", &authorization(&token(in_an_hour())));
    turned_away(&optional, "/ws", &authorization("bad"), 401);
    optional.connect().subscribe("t");
    optional.rest();

    // Without a key there is nothing to judge by.
    let open = Server::start("auth: {required: false, cookie: session, query: true}");
    for lines in [authorization("bad"), format!("{}Cookie: session=worse\r\n", authorization("bad"))] {
        let (mut raw, _) = upgraded(&open, "/ws?token=worst", &lines);
        raw.text(r#"{"type":"subscribe","payload":{"topic":"t"},"id":1}"#);
        assert_eq!(raw.json()["type"], "ack");
    }
    open.rest();

    // The echo endpoint asks nobody, so it looks at nothing.
    let echo = Server::start(&format!("echo_path: /echo\nauth: {{secret: '{SECRET}'}}"));
    let (mut raw, _) = upgraded(&echo, "/echo", &authorization("bad"));
    raw.text("hello");
    assert_eq!(raw.next().unwrap().payload, b"hello");
    drop(raw);
    echo.rest();
}
