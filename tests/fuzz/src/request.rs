//! The upgrade request: the same verdict however it is cut, and everything that is read from a legal one.

use tidewheel::app::auth::Carriers;
use tidewheel::app::origin::is_allowed;
use tidewheel::config::Origins;
use tidewheel::ws::deflate::{Terms, negotiate};
use tidewheel::ws::{self, HandshakeError, HandshakeLimits, Progress, Upgrade};

use crate::script::Script;

/// The limit of a head, how it is cut, and the bytes of a client.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    let limits = HandshakeLimits { header_bytes_max: 100 + 8 * usize::from(script.byte()) };
    let size = 1 + usize::from(script.byte());
    let stream = script.0;
    let whole = verdict(ws::parse_request(stream, 0, &limits), stream);
    let (mut seen, mut cut) = (0, None);
    while seen < stream.len() && cut.is_none() {
        let there = (seen + size).min(stream.len());
        cut = verdict(ws::parse_request(&stream[..there], seen, &limits), stream);
        seen = there;
    }
    assert_eq!(cut, whole, "in pieces of {size}");
}

/// Where a legal head ends, or why it is none; nothing if more is needed.
fn verdict(progress: Result<Progress<'_>, HandshakeError>, stream: &[u8]) -> Option<Result<usize, HandshakeError>> {
    match progress {
        Ok(Progress::NeedMore) => None,
        Ok(Progress::Complete { request, head_bytes }) => {
            assert!(stream[..head_bytes].ends_with(b"\r\n\r\n") && stream.starts_with(b"GET "));
            look_at(&request);
            Some(Ok(head_bytes))
        }
        Err(error) => {
            let mut answer = Vec::new();
            error.refuse(&mut answer);
            check_answer(&answer, error.status());
            Some(Err(error))
        }
    }
}

fn look_at(request: &Upgrade<'_>) {
    assert!(request.path.starts_with('/') && !request.host.is_empty());
    let legal = |text: &str| !text.contains(['\r', '\n', '\0']);
    assert!(legal(request.path) && legal(request.host) && request.query.is_none_or(legal));
    assert!(request.protocols().all(|offered| !offered.is_empty() && legal(offered)));
    assert!(request.extensions().all(legal));
    assert!(request.cookies().all(|(name, value)| legal(name) && legal(value)));
    assert_eq!(request.header("host").is_some(), request.header("Host").is_some());
    let carriers = Carriers { cookie: Some("sid".into()), query: true };
    if let Ok(Some(token)) = carriers.token(request) {
        assert!(legal(token));
    }
    let origins = Origins::default();
    if is_allowed(&origins, request.origin, request.host) && request.origin.is_some() {
        let host = request.host.to_ascii_lowercase();
        let host = host.rsplit_once(':').map_or(&*host, |(host, _)| host);
        let origin = request.origin.unwrap_or_default().to_ascii_lowercase();
        assert!(origin.contains(host), "{origin} is allowed for {host}");
    }
    let mut answer = Vec::new();
    let deflate = negotiate(request.extensions(), &Terms { client_context_takeover: true });
    ws::accept(&mut answer, request, request.protocols().next(), deflate);
    check_answer(&answer, 101);
}

/// An answer is one head with its status, and no peer can write lines into it.
fn check_answer(answer: &[u8], status: u16) {
    let text = std::str::from_utf8(answer).expect("answers are UTF-8");
    assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.split("\r\n").skip(1).all(|line| line.contains(": ") && !line.contains(['\r', '\n'])), "{text}");
    assert_eq!(body.is_empty(), status == 101);
}
