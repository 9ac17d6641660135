//! Requests and the verdict on them, however they are cut.

use super::*;
use crate::ws::deflate::{Terms, negotiate};

/// The example of RFC 6455 §1.3, as a head without its last line end.
const REQUEST: &str = "GET /chat?room=1 HTTP/1.1\r\n\
    Host: server.example.com\r\n\
    Upgrade: websocket\r\n\
    Connection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Origin: http://example.com\r\n\
    Sec-WebSocket-Protocol: chat, superchat\r\n\
    Sec-WebSocket-Version: 13\r\n";

const LIMITS: HandshakeLimits = HandshakeLimits { header_bytes_max: 1000 };

/// The verdict in words; the bytes arrive in pieces of `step`.
fn verdict(bytes: &[u8], step: usize) -> String {
    let mut seen = 0;
    while seen < bytes.len() {
        let have = (seen + step).min(bytes.len());
        match parse_request(&bytes[..have], seen, &LIMITS) {
            Ok(Progress::NeedMore) => seen = have,
            Ok(Progress::Complete { request, head_bytes }) => {
                assert!(bytes[..head_bytes].ends_with(b"\r\n\r\n"), "frames begin after the empty line");
                return format!("{request:?}");
            }
            Err(error) => return format!("{} {error}", error.status()),
        }
    }
    "need more".to_owned()
}

#[track_caller]
fn check(bytes: impl AsRef<[u8]>, expected: &str) {
    let bytes = bytes.as_ref();
    for step in [bytes.len(), 1, 2, 3, 7, 100] {
        assert_eq!(verdict(bytes, step), expected, "in pieces of {step}");
    }
}

/// The example with `from` replaced by `to`.
#[track_caller]
fn check_changed(from: &str, to: &str, expected: &str) {
    assert!(REQUEST.contains(from));
    check(REQUEST.replacen(from, to, 1) + "\r\n", expected);
}

#[track_caller]
fn check_added(line: &str, expected: &str) {
    check(format!("{REQUEST}{line}\r\n\r\n"), expected);
}

#[track_caller]
fn parse(bytes: &[u8]) -> Upgrade<'_> {
    match parse_request(bytes, 0, &LIMITS) {
        Ok(Progress::Complete { request, .. }) => request,
        other => panic!("{other:?}"),
    }
}

const LEGAL: &str = r#"Upgrade { path: "/chat", host: "server.example.com", origin: Some("http://example.com"), .. }"#;

#[test]
fn legal_requests() {
    check(format!("{REQUEST}\r\n"), LEGAL);
    check([REQUEST.as_bytes(), b"\r\n", b"\x81\x80keys"].concat(), LEGAL);
    check(REQUEST, "need more");
    check("GE", "need more");
    check_changed("Upgrade: websocket", "uPGRADE: WebSocket", LEGAL);
    check_changed("Upgrade: websocket\r\n", "Upgrade:h2c,websocket\r\n", LEGAL);
    check_changed("Upgrade: websocket\r\n", "Upgrade: h2c\r\nUpgrade: websocket\r\nUpgrade: x\r\n", LEGAL);
    check_changed("Connection: Upgrade", "Connection: keep-alive, upgrade", LEGAL);
    check_changed("Connection: Upgrade", "Connection: x\r\nConnection: upgrade\r\nConnection: y", LEGAL);
    check_added("Content-Length: 0", LEGAL);
    check_added("Cookie: latin=\u{e9}", LEGAL);
    check_changed("GET /chat?room=1", "GET http://other:81/chat", &LEGAL.replace("server.example.com", "other:81"));
    check_changed(
        "GET /chat?room=1",
        "GET ws://other?room=1",
        &LEGAL.replace("server.example.com", "other").replace("/chat", "/"),
    );
    for scheme in ["https", "wss", "HTTP"] {
        let target = format!("GET {scheme}://other/chat");
        check_changed("GET /chat?room=1", &target, &LEGAL.replace("server.example.com", "other"));
    }
}

#[test]
fn request_lines() {
    check("\x16\x03\x01\x02\x00\x01", "400 not an HTTP request");
    check("\r\nGET / HTTP/1.1\r\n", "400 not an HTTP request");
    check("GET\t/ HTTP/1.1", "400 not an HTTP request");
    check("POST /ws HTTP/1.1\r\n", "405 method is not GET");
    check("PROPFIND /ws HTTP/1.1\r\n", "405 method is not GET");
    check("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", &format!("400 {}", HandshakeError::UnwantedPreamble));
    check("get /ws HTTP/1.1\r\n", "405 method is not GET");
    check("GETS", "405 method is not GET");
    check("GET /ws HTTP/1.0\r\n", "400 request line: only HTTP/1.1 is spoken here");
    check("GET /ws HTTP/2.0\r\n", "400 request line: only HTTP/1.1 is spoken here");
    check("GET  /ws HTTP/1.1\r\n", "400 request line: only HTTP/1.1 is spoken here");
    check("GET /ws\r\n", "400 request line: no HTTP version");
    check("GET /w s HTTP/1.1\r\n", "400 request line: only HTTP/1.1 is spoken here");
    check("GET /\u{e9} HTTP/1.1\r\n", "400 request line: target is not a URI without fragment");
    check("GET /#a HTTP/1.1\r\n", "400 request line: target is not a URI without fragment");
    check("GET ws HTTP/1.1\r\n", "400 request line: target is neither a path nor a URI");
    check("GET * HTTP/1.1\r\n", "400 request line: target is neither a path nor a URI");
    check("GET /a\x7f HTTP/1.1\r\n", "400 request line: target is not a URI without fragment");
    check("GET ftp://other/ws HTTP/1.1\r\n", "400 request line: target is neither a path nor a URI");
    check("GET http:///ws HTTP/1.1\r\n", "400 request line: target has no host");
    check("GET http://user@other/ws HTTP/1.1\r\n", "400 request line: target has no host");
    check("GET /ws HTTP/1.1\n", "400 line feed without carriage return");
    check("GET /ws HTTP/1.1\r\nHost: a\n", "400 line feed without carriage return");
}

#[test]
fn headers() {
    let missing = |name| format!("400 {name} header missing: this is a WebSocket endpoint");
    check_changed("Host: server.example.com\r\n", "", &missing("Host"));
    check_changed("Upgrade: websocket\r\n", "", &missing("Upgrade: websocket"));
    check_changed("Upgrade: websocket", "Upgrade: websockets", &missing("Upgrade: websocket"));
    check_changed("Connection: Upgrade\r\n", "", &missing("Connection: Upgrade"));
    check_changed("Connection: Upgrade", "Connection: keep-alive", &missing("Connection: Upgrade"));
    check_changed("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", &missing("Sec-WebSocket-Key"));
    check_changed("Sec-WebSocket-Version: 13\r\n", "", &missing("Sec-WebSocket-Version"));
    check("GET /ws HTTP/1.1\r\n\r\n", &missing("Host"));
    check_changed("Version: 13", "Version: 8", "426 Sec-WebSocket-Version header: only 13 is spoken here");
    check_added("Host: b", "400 Host header sent more than once");
    check_added("Origin: b", "400 Origin header sent more than once");
    check_added("sec-websocket-version: 13", "400 Sec-WebSocket-Version header sent more than once");
    check_added("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "400 Sec-WebSocket-Key header sent more than once");
    for host in ["", "a, b", "a,b", "a b", "a\tb", "a/b", "a@b", "a?b", "a#b", "a\\b"] {
        check_changed("Host: server.example.com", &format!("Host: {host}"), "400 Host header: not a host");
    }
    check_changed("http://example.com", "http://\u{e9}", "400 Origin header: not ASCII");
    check_added("Content-Length: 5", "400 request with a body (Content-Length or Transfer-Encoding header)");
    check_added("Transfer-Encoding: chunked", "400 request with a body (Content-Length or Transfer-Encoding header)");
    check_added("no colon", "400 malformed header: invalid header name");
    check_added("Space : x", "400 malformed header: invalid header name");
    check_added("X: a\r\n folded", "400 malformed header: invalid header name");
    check_added("X: a\rb", "400 malformed header: invalid header value");
    check_added("X: a\0b", "400 malformed header: invalid header value");
}

#[test]
fn keys() {
    for key in [
        "",
        "AAAA",
        "A==",
        "dGhlIHNhbXBsZSBub25jZQQ==",
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZR==",
        "dGhlIHNhbXBsZSBub25j!Q==",
        "AAAAAAAAAAAAAAAAAAAAAAAA",
        "dGhlIHNhbXBsZSBub25jZQ==AAAA",
    ] {
        check_changed("dGhlIHNhbXBsZSBub25jZQ==", key, "400 Sec-WebSocket-Key header: not 16 bytes in base64");
    }
    for key in
        ["+/+/+/+/+/+/+/+/+/+/+A==", "0123456789abcdefghijkQ==", "ABCDEFGHIJKLMNOPQRSTUg==", "lmnopqrstuvwxyzVWXYZ9w=="]
    {
        check_changed("dGhlIHNhbXBsZSBub25jZQ==", key, LEGAL);
    }
}

#[test]
fn sizes() {
    check("GET /".to_owned() + &"a".repeat(995), "need more");
    check("GET /".to_owned() + &"a".repeat(996), "414 request line too long");
    let padded = |bytes: usize| format!("{REQUEST}X: {}\r\n\r\n", "a".repeat(bytes - REQUEST.len() - 7));
    check(padded(1000), LEGAL);
    check(padded(1001), "431 request headers too large");
    let many = "a:\r\n".repeat(HEADERS_MAX - 7);
    check(format!("{REQUEST}{many}\r\n"), LEGAL);
    check(format!("{REQUEST}{many}a:\r\n\r\n"), "431 more than 96 request headers");
    let said = format!("`websocket.max_header_bytes` and {HEADERS_MAX} headers: 431");
    assert!(include_str!("../../guide/threats.md").contains(&said), "src/guide/threats.md: {said}");
}

#[test]
fn what_a_request_asks_for() {
    let head = format!(
        "{REQUEST}sec-websocket-protocol:,third ,\r\nAuthorization: Bearer abc\r\nX-Forwarded-For: 10.0.0.1\r\n\
         x-forwarded-for:\t10.0.0.2 \r\nX-Close:by\r\nCookie: a=1; session=x=y;b\r\nCookie: session=2\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    );
    let request = parse(head.as_bytes());
    assert_eq!((request.path, request.query), ("/chat", Some("room=1")));
    assert_eq!(request.protocols().collect::<Vec<_>>(), ["chat", "superchat", "third"]);
    assert_eq!(request.extensions().collect::<Vec<_>>(), ["permessage-deflate; client_max_window_bits"]);
    assert_eq!(request.authorization, Some("Bearer abc"));
    assert_eq!(request.headers("X-Forwarded-For").collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!((request.header("x-forwarded-for"), request.header("x-forwarded")), (Some("10.0.0.1"), None));
    assert_eq!(request.header("x-close"), Some("by"));
    assert_eq!(request.cookies().collect::<Vec<_>>(), [("a", "1"), ("session", "x=y"), ("session", "2")]);
    assert_eq!((request.cookie("session"), request.cookie("b")), (Some("x=y"), None));
}

#[test]
fn a_value_that_is_not_utf8_hides_no_other() {
    let head = [REQUEST.as_bytes(), b"Cookie: bad=\xff; good=1\r\nX: \xff\r\nX: 2\r\n\r\n"].concat();
    let request = parse(&head);
    assert_eq!((request.cookie("bad"), request.cookie("good")), (None, Some("1")));
    assert_eq!(request.header("X"), Some("2"));
    assert!(!format!("{request:?}").contains("good"));
}

#[test]
fn answers() {
    let head = format!("{REQUEST}\r\n");
    let request = parse(head.as_bytes());
    let answer = |subprotocol, offer: Option<&'static str>| {
        let mut out = Vec::new();
        let deflate = negotiate(offer.into_iter(), &Terms { client_context_takeover: true });
        accept(&mut out, &request, subprotocol, deflate);
        String::from_utf8(out).expect("ASCII")
    };
    let plain = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    assert_eq!(answer(None, None), format!("{plain}\r\n"));
    assert_eq!(answer(Some("superchat"), None), format!("{plain}Sec-WebSocket-Protocol: superchat\r\n\r\n"));
    let deflates = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; server_max_window_bits=9";
    assert_eq!(
        answer(None, Some("permessage-deflate; server_max_window_bits=9")),
        format!("{plain}{deflates}\r\n\r\n")
    );

    #[track_caller]
    fn check_refusal(error: HandshakeError, expected: &str) {
        let mut out = Vec::new();
        error.refuse(&mut out);
        assert_eq!(String::from_utf8(out).expect("text"), expected);
    }
    check_refusal(
        HandshakeError::NotGet,
        "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: 18\r\nConnection: close\r\n\r\nmethod is not GET\n",
    );
    check_refusal(
        HandshakeError::WrongVersion,
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: 53\r\nConnection: close\r\n\r\n\
         Sec-WebSocket-Version header: only 13 is spoken here\n",
    );
}
