//! Which pages may connect: what browsers say with `Origin`, and requests that do not say it.

use serde_json::json;
use tidewheel::metrics::Refusal;

use super::auth::SECRET;
use super::raw::request_with;
use super::server::Server;

/// The status of the answer to a request for `path` of 127.0.0.1 with these header lines, and what else it says.
#[track_caller]
fn ask(server: &Server, path: &str, lines: &str) -> (u16, String) {
    let mut raw = server.raw();
    raw.write(request_with(path, lines).as_bytes());
    let head = raw.head();
    if head.starts_with("HTTP/1.1 101 ") {
        raw.text(r#"{"type":"ping","id":1}"#);
        // The native endpoint answers, the other one returns it.
        let message = raw.json();
        assert!(message["reply_to"] == 1 || message["id"] == 1, "{message}");
        return (101, head);
    }
    raw.rest();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    (status, head)
}

/// Pages of these origins get these answers, and the last one is how a request without `Origin` is answered.
#[track_caller]
fn check(origins: &str, pages: &[(&str, u16)], missing: u16) {
    let server = Server::start(origins);
    for &(page, expected) in pages {
        let (status, head) = ask(&server, "/ws", &format!("Origin: {page}\r\n"));
        assert_eq!(status, expected, "{origins}: {page}: {head}");
    }
    assert_eq!(ask(&server, "/ws", "").0, missing, "{origins}");
    server.rest();
    let expected = pages.iter().map(|page| page.1).chain([missing]).filter(|&status| status == 403).count();
    assert_eq!(server.sum(|shard| &shard.refused[Refusal::Origin as usize]), expected as u64, "{origins}");
}

#[test]
fn unless_told_otherwise_only_pages_of_the_same_host() {
    let pages = [
        ("http://127.0.0.1", 101),
        ("http://127.0.0.1:9090", 101),
        ("https://127.0.0.1:9443", 101),
        ("http://127.0.0.2", 403),
        ("http://localhost", 403),
        ("https://evil.example", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("http://evil.example/127.0.0.1", 403),
        ("null", 403),
        ("", 403),
    ];
    check("", &pages, 101);
    check("origins: {allow_missing: false}", &pages, 403);
    check("origins: {allow: same_host, allow_missing: true}", &pages, 101);
}

#[test]
fn pages_that_are_listed() {
    check("origins: {allow: []}", &[("http://127.0.0.1", 403), ("null", 403)], 101);
    check(
        "origins: {allow: ['https://app.example.com', 'https://*.example.net']}",
        &[
            ("https://app.example.com", 101),
            ("https://App.Example.com", 101),
            ("http://app.example.com", 403),
            ("https://app.example.com:8443", 403),
            ("https://example.com", 403),
            ("https://a.example.net", 101),
            ("https://a.b.example.net", 101),
            ("https://example.net", 403),
            ("https://anexample.net", 403),
            ("http://127.0.0.1", 403),
            ("null", 403),
        ],
        101,
    );
    check("origins: {allow: [null]}", &[("null", 101), ("http://127.0.0.1", 403)], 101);
    check("origins: {allow: ['*']}", &[("null", 101), ("https://evil.example", 101), ("what", 101)], 101);
    check("origins: {allow: ['*'], allow_missing: false}", &[("https://evil.example", 101)], 403);
}

/// The host is the one that the browser resolved, whatever its case and port.
#[test]
fn the_host_of_the_request() {
    let server = Server::start("");
    let check = |host: &str, page: &str, expected: u16| {
        let mut raw = server.raw();
        let request = request_with("/ws", &format!("Origin: {page}\r\n"));
        raw.write(request.replace("Host: 127.0.0.1", &format!("Host: {host}")).as_bytes());
        let head = raw.head();
        assert!(head.starts_with(&format!("HTTP/1.1 {expected} ")), "{host} {page}: {head}");
    };
    check("tides.example.com:8080", "https://tides.example.com", 101);
    check("TIDES.example.com", "https://tides.Example.com:8443", 101);
    check("[::1]:8080", "http://[::1]:9090", 101);
    check("[::1]:8080", "http://[::2]:8080", 403);
    check("tides.example.com", "https://example.com", 403);
    server.rest();
}

#[test]
fn before_anything_is_authenticated() {
    let server = Server::start(&format!("echo_path: /echo\nauth: {{secret: '{SECRET}', cookie: session}}"));
    let evil = "Origin: https://evil.example\r\n";
    let status = |path: &str, lines: &str| ask(&server, path, &format!("{evil}{lines}")).0;
    assert_eq!(status("/ws", ""), 403);
    assert_eq!(status("/ws", "Cookie: session=bad\r\n"), 403);
    assert_eq!(status("/ws", "Cookie: session=bad\r\nAuthorization: Bearer worse\r\n"), 403);
    assert_eq!(status("/echo", ""), 403);
    assert_eq!(status("/elsewhere", ""), 404);
    assert_eq!(status("/ws", "Origin: http://127.0.0.1\r\n"), 400);
    server.rest();
    let refused = |cause: Refusal| server.sum(|shard| &shard.refused[cause as usize]);
    assert_eq!((refused(Refusal::Origin), refused(Refusal::Unauthorized)), (4, 0));

    // What a page's author finds in the answer.
    let mut raw = server.raw();
    raw.write(request_with("/ws", evil).as_bytes());
    let (_, _, body) = raw.refusal();
    assert!(body.contains("origins.allow"), "{body}");
    let mut client = server.connect();
    client.refused("subscribe", json!({"topic": "t"}), "unauthorized");
    client.close();
    server.rest();
}
