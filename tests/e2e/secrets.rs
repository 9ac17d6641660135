//! What nobody may read who only reads what the server says: tokens, and the keys of tokens and of the API.
//! Law: the server runs at its most talkative, and secrets travel in every way that there is, right and wrong; then all that it
//! has said, to whomever, is searched for any piece of them.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use serde_json::json;

use super::auth::{SECRET, in_an_hour, now_s, token};
use super::http;
use super::process::{Process, serve};
use super::raw::{self, FIN, Raw, TEXT, masked, request_with};

const ADMIN_KEY: &str = "an-admin-key-nobody-should-read";

/// Everything that was said by the server, and everything that must not be in it.
struct Search {
    said: Vec<(String, String)>,
    secrets: Vec<(String, String)>,
}

impl Search {
    /// A token's claims and its signature give it away as much as all of it does. Its header does not.
    fn secret(&mut self, name: &str, secret: &str) -> String {
        let parts: Vec<&str> = secret.split('.').collect();
        let parts = if parts.len() == 3 { &parts[1..] } else { &parts[..] };
        self.secrets.extend(parts.iter().map(|part| (name.to_owned(), (*part).to_owned())));
        secret.to_owned()
    }

    fn hear(&mut self, from: &str, text: impl Into<String>) {
        self.said.push((from.to_owned(), text.into()));
    }

    /// The names of the secrets that leaked, and where to.
    fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (from, text) in &self.said {
            for (name, secret) in &self.secrets {
                // A long piece, as an excerpt in an error would be.
                let is_in = secret.as_bytes().windows(secret.len().min(12)).any(|piece| {
                    let piece = std::str::from_utf8(piece).expect("secrets are ASCII");
                    text.contains(piece)
                });
                if is_in {
                    leaks.push(format!("{name} in {from}: {text}"));
                }
            }
        }
        leaks
    }
}

/// All that comes until the stream ends or the server falls silent.
fn everything(raw: &mut Raw) -> String {
    raw.half_close();
    let mut bytes = raw.body().into_bytes();
    let _ = raw.stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn no_token_and_no_key_is_ever_said() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let settings = [
        ("RUST_LOG", "trace"),
        ("TIDEWHEEL_AUTH_REQUIRED", "true"),
        ("TIDEWHEEL_AUTH_SECRET", SECRET),
        ("TIDEWHEEL_AUTH_COOKIE", "session"),
        ("TIDEWHEEL_AUTH_QUERY", "true"),
        ("TIDEWHEEL_ADMIN_KEY", ADMIN_KEY),
    ];
    let errors = File::create(log.path()).unwrap();
    let mut server = Process::spawn(serve("127.0.0.1:0", &settings).stderr(Stdio::from(errors)));
    let mut search = Search { said: Vec::new(), secrets: Vec::new() };
    search.secrets.push(("the secret of tokens".into(), SECRET.into()));
    search.secret("the admin key", ADMIN_KEY);

    // Good and bad in every way, in every carrier.
    let claims =
        |number: usize| json!({"sub": format!("user-{number}"), "exp": now_s() + 3600, "nonce": "a b c d e f"});
    let mut tokens = vec![("a good token", token(claims(1)))];
    tokens.push(("an expired token", token(json!({"sub": "late", "exp": now_s() - 3600}))));
    tokens.push(("a token without an end", token(json!({"sub": "endless"}))));
    let good = token(claims(2));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    tokens.push(("a forged token", format!("{signed}.{}", signature.chars().rev().collect::<String>())));
    tokens.push(("no token at all", "NotATokenButASecretAllTheSame0123456789".into()));
    for (name, token) in &tokens {
        let token = search.secret(name, token);
        let lines = [
            ("/ws".to_owned(), format!("Authorization: Bearer {token}\r\n")),
            ("/ws".into(), format!("Authorization: Basic {token}\r\n")),
            ("/ws".into(), format!("Cookie: session={token}; other={token}\r\n")),
            ("/ws".into(), format!("Sec-WebSocket-Protocol: tidewheel.v1, bearer.{token}\r\n")),
            (format!("/ws?token={token}"), String::new()),
            (format!("/elsewhere?token={token}"), String::new()),
            (format!("/{token}"), String::new()),
            ("/ws".into(), format!("Origin: https://elsewhere.example\r\nAuthorization: Bearer {token}\r\n")),
            ("/ws".into(), format!("Authorization: Bearer {token}\r\nContent-Length: 5\r\n")),
            ("/ws".into(), format!("Authorization: Bearer {token}\r\nX: {}\r\n", "x".repeat(20_000))),
            ("/ws".into(), format!("Authorization Bearer {token}\r\n")),
            ("/ws".into(), format!("Authorization: Bearer {token}\r\nCookie: session=another.token.here\r\n")),
        ];
        for (path, lines) in lines {
            let mut raw = Raw::connect(server.address);
            raw.write(request_with(&path, &lines).as_bytes());
            let what = lines.split(':').next().unwrap_or_default().to_owned();
            search.hear(&format!("the answer to {what}"), everything(&mut raw));
        }
        // Half a request, and nothing more.
        let mut raw = Raw::connect(server.address);
        raw.write(format!("GET /ws?token={token} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n").as_bytes());
        search.hear("the answer to half a request", everything(&mut raw));
        // In messages, whole and broken ones.
        for text in [
            json!({"id": 1, "type": "authenticate", "payload": {"token": token}}).to_string(),
            format!(r#"{{"type":"authenticate","payload":{{"token":"{token}""#),
            format!(r#"{{"type":"authenticate","payload":{{"token":["{token}"]}}}}"#),
            format!(r#"{{"type":"authenticate","payload":"{token}"}}"#),
            format!(r#"{{"type":"refresh","payload":{{"token":"{token}"}}}}"#),
            format!(r#"{{"type":"{token}","payload":{{}}}}"#),
            token.clone(),
        ] {
            let mut raw = Raw::connect(server.address);
            raw.upgrade("/ws");
            raw.write(&raw::text(&text));
            let is_type = text.starts_with(&format!(r#"{{"type":"{token}"#));
            let answer = everything(&mut raw);
            // Who calls a message by its token gets that name back, alone.
            search.hear("the answer to a message", if is_type { String::new() } else { answer });
        }
        let mut raw = Raw::connect(server.address);
        raw.upgrade("/ws");
        raw.write(&masked(FIN | TEXT, &[token.as_bytes(), b"\xff"].concat()));
        search.hear("the answer to a broken text", everything(&mut raw));
    }

    // Somebody is there while operators look, with the right key and with wrong ones.
    let mut raw = Raw::connect(server.address);
    let token = search.secret("the token of who stays", &token(in_an_hour()));
    raw.upgrade_with("/ws", &format!("Authorization: Bearer {token}\r\n"));
    raw.json();
    raw.text(&json!({"type": "refresh", "payload": {"token": token}}).to_string());
    let session = raw.json();
    let id = session["payload"]["session_id"].as_str().unwrap().to_owned();
    search.hear("the answer to a refresh", session.to_string());
    let wrong_key = search.secret("a wrong admin key", "a-wrong-admin-key-0123456789");
    let keys = [("the key", ADMIN_KEY), ("a wrong key", &*wrong_key)]
        .map(|(name, key)| (name, format!("Authorization: Bearer {key}\r\nCookie: session={token}\r\n")));
    for path in [
        "/metrics".to_owned(),
        "/".into(),
        "/readyz".into(),
        "/api/config".into(),
        "/api/shards".into(),
        "/api/connections".into(),
        "/api/connections?state=closed&limit=1000".into(),
        format!("/api/sessions/{id}"),
        "/api/topics".into(),
        "/api/openapi.json".into(),
        format!("/api/connections?token={token}&key={ADMIN_KEY}"),
        format!("/{token}"),
    ] {
        for (name, header) in &keys {
            let answer = http::request(server.admin(), &format!("GET {path}"), header, b"");
            search.hear(&format!("GET {path} with {name}"), answer.body);
        }
    }
    let (_, header) = &keys[0];
    let closed = http::request(server.admin(), "GET /api/connections?state=closed&limit=1000", header, b"").json();
    for ended in closed["connections"].as_array().unwrap() {
        let path = format!("GET /api/sessions/{}", ended["session_id"].as_str().unwrap());
        search.hear(&path, http::request(server.admin(), &path, header, b"").body);
    }
    let reloaded = http::request(server.admin(), "POST /api/reload", header, b"");
    search.hear("a reload", reloaded.body);
    server.signal("-TERM");
    search.hear("the last words", everything(&mut raw));
    assert_eq!(server.wait(), Some(0));
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(said.contains("TRACE") || said.contains("DEBUG"), "it was to be talkative: {said}");
    said.lines().for_each(|line| search.hear("the log", line));
    let leaks = search.leaks();
    assert!(leaks.is_empty(), "{} leaks, the first is: {}", leaks.len(), leaks.join("\n"));

    // This search finds what there is to find.
    let mut canary = Search { said: Vec::new(), secrets: Vec::new() };
    let token = canary.secret("a token", &good);
    canary.hear("an excerpt", format!("unexpected {:?}", &token[60..80]));
    assert_eq!(canary.leaks().len(), 1);
}
