//! Key sets: keys that rotate, issuers that fail, and tokens that lie about their key.
//! Law: no test waits for a time; it waits for what the issuer or the metrics say has happened.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::Jwk;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tidewheel::app::auth::{Algorithm, KeyMaterial, KeySettings, make_token};
use tidewheel::{Engine, StartError};

use super::auth::in_an_hour;
use super::certificates::Authority;
use super::client::Client;
use super::http;
use super::server::{Server, config};
use super::until;

fn pem(name: &str) -> Vec<u8> {
    fs::read(format!("{}/tests/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A public key of `tests/keys` as its issuer would publish it.
pub fn jwk(name: &str, kid: &str) -> Value {
    let text = pem(&format!("{name}_public"));
    let key = match name {
        rsa if rsa.starts_with("rsa") => DecodingKey::from_rsa_pem(&text),
        ec if ec.starts_with("es") => DecodingKey::from_ec_pem(&text),
        _ => DecodingKey::from_ed_pem(&text),
    };
    let mut jwk = serde_json::to_value(Jwk::from_decoding_key(&key.unwrap(), None).unwrap()).unwrap();
    jwk["kid"] = kid.into();
    jwk
}

pub fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn sign(claims: &Value, kid: Option<&str>, algorithm: Algorithm, key: KeyMaterial) -> String {
    make_token(claims, &KeySettings { id: kid.map(String::from), algorithm, key }).unwrap()
}

fn token(name: &str, kid: &str) -> String {
    let algorithm = match name {
        "rsa" => Algorithm::RS256,
        "es256" => Algorithm::ES256,
        "es384" => Algorithm::ES384,
        _ => Algorithm::EdDSA,
    };
    sign(&in_an_hour(), Some(kid), algorithm, KeyMaterial::Pem(pem(&format!("{name}_private"))))
}

/// An HTTP server that answers every request in the same way until it is told another one.
struct Issuer {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    reply: Mutex<(Vec<u8>, Duration)>,
    fetches: AtomicU64,
}

impl Issuer {
    fn new(reply: Vec<u8>) -> Self {
        Self::start(reply, None)
    }

    fn start(reply: Vec<u8>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { reply: Mutex::new((reply, Duration::ZERO)), fetches: AtomicU64::new(0) });
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (state, stream, tls) = (shared.clone(), stream.unwrap(), tls.clone());
                thread::spawn(move || match tls {
                    None => state.answer(stream),
                    Some(tls) => state.answer(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream)),
                });
            }
        });
        Self { address, state }
    }

    fn say(&self, reply: Vec<u8>) {
        self.state.reply.lock().unwrap().0 = reply;
    }

    fn wait_before_it_answers(&self, delay: Duration) {
        self.state.reply.lock().unwrap().1 = delay;
    }

    fn fetches(&self) -> u64 {
        self.state.fetches.load(SeqCst)
    }

    /// The source of its key set, with what else is configured about it.
    fn source(&self, more: &str) -> String {
        format!("{{source: 'http://{}/keys?tenant=1'{more}}}", self.address)
    }
}

impl State {
    /// Whatever goes wrong here is the client's wish.
    fn answer(&self, mut stream: impl Read + Write) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        assert!(head.starts_with(b"GET /keys?tenant=1 HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&head));
        let (reply, delay) = self.reply.lock().unwrap().clone();
        self.fetches.fetch_add(1, SeqCst);
        thread::sleep(delay);
        let _ = stream.write_all(&reply);
        let _ = stream.flush();
    }
}

fn reply(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

fn ok(keys: &[Value]) -> Vec<u8> {
    reply("200 OK", "Content-Type: application/jwk-set+json\r\n", &set(keys))
}

/// Fetches as often as the configuration allows.
const EAGER: &str = "jwks_lifetime: 100ms, jwks_interval: 100ms";
/// Fetches once.
const LAZY: &str = "jwks_lifetime: 1h, jwks_interval: 1h";

fn server(sources: &str, more: &str) -> Server {
    Server::start(&format!("auth: {{jwks: [{sources}], {more}}}"))
}

/// What a new connection is told of a token: nothing, or why it is refused.
#[track_caller]
fn verdict(server: &Server, token: &str) -> Result<(), String> {
    let mut client = server.connect();
    let reply = client.ask("authenticate", json!({"token": token}));
    let payload = &reply["payload"];
    match payload["authenticated"].as_bool() {
        Some(true) => Ok(()),
        _ => Err(payload["error"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()),
    }
}

#[track_caller]
fn accepted_in_time(server: &Server, token: &str) {
    until("a good token to be accepted", || verdict(server, token).is_ok());
}

#[track_caller]
fn refused(server: &Server, token: &str, why: &str) {
    let error = verdict(server, token).expect_err("it was accepted");
    assert!(error.contains(why), "{error:?} does not say {why:?}");
}

/// The value of a series that begins like this.
fn metric(server: &Server, series: &str) -> f64 {
    let page = http::request(server.admin, "GET /metrics", "", b"").body;
    let line = page.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("{series} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn outcomes(server: &Server, outcome: &str) -> f64 {
    metric(server, &format!("tidewheel_jwks_fetches_total{{source=\"0\",outcome=\"{outcome}\"}}"))
}

#[test]
fn keys_rotate_under_connections_that_stay() {
    let issuer = Issuer::new(ok(&[jwk("rsa", "a")]));
    let server = server(&issuer.source(""), EAGER);
    accepted_in_time(&server, &token("rsa", "a"));
    let mut early = server.connect();
    early.ask("authenticate", json!({"token": token("rsa", "a")}));
    early.subscribe("t");

    issuer.say(ok(&[jwk("rsa", "a"), jwk("es256", "b")]));
    accepted_in_time(&server, &token("es256", "b"));
    assert_eq!(verdict(&server, &token("rsa", "a")), Ok(()));
    issuer.say(ok(&[jwk("es256", "b"), jwk("ed25519", "c"), jwk("es384", "d")]));
    accepted_in_time(&server, &token("ed25519", "c"));
    assert_eq!(verdict(&server, &token("es384", "d")), Ok(()));
    refused(&server, &token("rsa", "a"), "unknown key");

    // Who came with a key that is gone stays, and refreshes with one that is there.
    assert_eq!(early.publish("t", json!(1)), (1, 1, 0));
    assert_eq!(early.data("t"), 1);
    early.ack_refresh(&token("ed25519", "c"));
    assert!(outcomes(&server, "changed") >= 3.0);
    assert_eq!(metric(&server, "tidewheel_jwks_keys{source=\"0\"}"), 3.0);
    assert!(metric(&server, "tidewheel_jwks_last_success_timestamp_seconds{source=\"0\"}") > 1.7e9);
    until("the same set again", || outcomes(&server, "unchanged") > 0.0);
}

impl Client {
    #[track_caller]
    fn ack_refresh(&mut self, token: &str) {
        let reply = self.ask("refresh", json!({"token": token}));
        assert_eq!(reply["payload"]["authenticated"], true, "{reply}");
    }
}

#[test]
fn an_unknown_key_is_looked_for_and_not_too_often() {
    let issuer = Issuer::new(ok(&[jwk("rsa", "a")]));
    let early = server(&issuer.source(""), "jwks_lifetime: 1h, jwks_interval: 100ms");
    accepted_in_time(&early, &token("rsa", "a"));
    issuer.say(ok(&[jwk("rsa", "a"), jwk("es256", "b")]));
    let before = issuer.fetches();
    refused(&early, &token("es256", "b"), "unknown key"); // which asks for the set; whoever comes again is let in
    until("a fetch before its time", || issuer.fetches() > before);
    accepted_in_time(&early, &token("es256", "b"));
    drop(early);

    let issuer = Issuer::new(ok(&[jwk("rsa", "a")]));
    let lazy = server(&issuer.source(""), LAZY);
    accepted_in_time(&lazy, &token("rsa", "a"));
    for n in 0..50 {
        refused(&lazy, &token("rsa", &format!("made-up-{n}")), "unknown key");
    }
    assert_eq!(issuer.fetches(), 1);
}

#[test]
fn what_the_issuer_says_about_freshness_counts() {
    let fresh = |headers: &str| reply("200 OK", headers, &set(&[jwk("rsa", "a")]));
    // Within bounds: not more often than the interval, not more rarely than an hour or the lifetime.
    for (terms, headers, again) in [
        ("jwks_lifetime: 1h, jwks_interval: 100ms", "Cache-Control: public, max-age=0\r\n", true),
        ("jwks_lifetime: 1h, jwks_interval: 100ms", "Cache-Control: no-store\r\n", true),
        ("jwks_lifetime: 100ms, jwks_interval: 100ms", "Cache-Control: max-age=3600\r\n", false),
        ("jwks_lifetime: 1h, jwks_interval: 1h", "Cache-Control: max-age=0\r\n", false),
    ] {
        let issuer = Issuer::new(fresh(headers));
        let server = server(&issuer.source(""), terms);
        // Without a key id, so that one that comes before the set asks for no other.
        let nameless = sign(&in_an_hour(), None, Algorithm::RS256, KeyMaterial::Pem(pem("rsa_private")));
        accepted_in_time(&server, &nameless);
        if again {
            until("a second fetch", || issuer.fetches() >= 2);
        } else {
            thread::sleep(Duration::from_millis(300)); // three lifetimes
            assert_eq!(issuer.fetches(), 1, "{headers}");
        }
    }
}

#[test]
fn the_last_good_set_outlives_every_failure() {
    let good = || ok(&[jwk("rsa", "a")]);
    let issuer = Issuer::new(good());
    let server = server(&issuer.source(""), &format!("{EAGER}, jwks_timeout: 500ms, jwks_max_bytes: 4KiB"));
    accepted_in_time(&server, &token("rsa", "a"));
    let secret = json!({"kty": "oct", "k": "AAAA", "kid": "x"});
    let huge = format!("{}{}", set(&[jwk("es256", "b")]), " ".repeat(4096));
    let endless = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\n{}\r\n", " ".repeat(8192));
    let redirect = "Location: http://127.0.0.1:1/\r\n";
    let failures: [(&str, Vec<u8>, &str); 14] = [
        ("no answer", vec![], "refused"),
        ("no HTTP", b"\x16\x03\x01\r\n\r\n".to_vec(), "refused"),
        ("a header without end", [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 100_000]].concat(), "refused"),
        ("half an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_vec(), "refused"),
        ("a server that is down", reply("503 Service Unavailable", "", &set(&[jwk("es256", "b")])), "refused"),
        ("another place", reply("302 Found", redirect, ""), "refused"),
        ("too much", reply("200 OK", "", &huge), "too_large"),
        ("too much, bit by bit", endless.into_bytes(), "too_large"),
        ("a page", reply("200 OK", "Content-Type: application/json\r\n", "<html>Please log in</html>"), "invalid"),
        ("bytes", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n".to_vec(), vec![0xff; 4]].concat(), "invalid"),
        ("another object", reply("200 OK", "", r#"{"issuer": "a"}"#), "invalid"),
        ("no key", ok(&[]), "invalid"),
        ("a shared secret", ok(&[secret]), "invalid"),
        ("a short key", ok(&[jwk("rsa_short", "b")]), "invalid"),
    ];
    for (what, bytes, outcome) in failures {
        let before = outcomes(&server, outcome);
        issuer.say(bytes);
        until(what, || outcomes(&server, outcome) > before);
        assert_eq!(verdict(&server, &token("rsa", "a")), Ok(()), "{what}");
        refused(&server, &token("es256", "b"), "unknown key");
    }
    issuer.say(good());
    issuer.wait_before_it_answers(Duration::from_secs(5));
    until("a slow issuer", || outcomes(&server, "timeout") > 0.0);
    assert_eq!(verdict(&server, &token("rsa", "a")), Ok(()));
    issuer.wait_before_it_answers(Duration::ZERO);
    // The content type says nothing that the content does not.
    issuer.say(reply("200 OK", "Content-Type: text/html\r\n", &set(&[jwk("es256", "b")])));
    accepted_in_time(&server, &token("es256", "b"));
}

#[test]
fn without_a_first_set_nobody_is_let_in() {
    let issuer = Issuer::new(reply("500 Internal Server Error", "", ""));
    let server = server(&issuer.source(""), EAGER);
    until("a failure", || outcomes(&server, "refused") > 0.0);
    refused(&server, &token("rsa", "a"), "unknown key");
    let ready = || http::request(server.admin, "GET /readyz", "", b"");
    let answer = ready();
    assert_eq!(answer.status, 503);
    let reason = answer.json()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains(&format!("http://{}/keys", issuer.address)) && !reason.contains("tenant"), "{reason}");
    issuer.say(ok(&[jwk("rsa", "a")]));
    until("the first set", || ready().status == 200);
    accepted_in_time(&server, &token("rsa", "a"));
    issuer.say(reply("500 Internal Server Error", "", ""));
    let failures = outcomes(&server, "refused");
    until("another failure", || outcomes(&server, "refused") > failures);
    assert_eq!(ready().status, 200);
}

#[test]
fn algorithms_are_not_confused() {
    let issuer = Issuer::new(ok(&[jwk("rsa", "a"), jwk("es256", "b")]));
    let server = server(&issuer.source(""), LAZY);
    accepted_in_time(&server, &token("rsa", "a"));
    let public = jwk("rsa", "a");
    let text = |member: &str| public[member].as_str().unwrap().to_owned().into_bytes();
    for secret in
        [pem("rsa_public"), text("n"), set(std::slice::from_ref(&public)).into_bytes(), public.to_string().into_bytes()]
    {
        let forged = |kid| sign(&in_an_hour(), kid, Algorithm::HS256, KeyMaterial::Secret(secret.clone()));
        refused(&server, &forged(Some("a")), "HS256 is not allowed");
        refused(&server, &forged(None), "HS256 is not allowed");
    }
    let private = || KeyMaterial::Pem(pem("rsa_private"));
    refused(&server, &sign(&in_an_hour(), Some("a"), Algorithm::PS256, private()), "PS256 is not allowed");
    refused(&server, &sign(&in_an_hour(), Some("b"), Algorithm::RS256, private()), "RS256 is not allowed");
    assert_eq!(verdict(&server, &sign(&in_an_hour(), None, Algorithm::RS256, private())), Ok(()));
    for kid in ["", "A", "../a", "a\u{0}", "a' OR '1'='1", "http://127.0.0.1:1/", &"a".repeat(4000)] {
        refused(&server, &token("rsa", kid), "unknown key");
    }
    let other = sign(&in_an_hour(), Some("a"), Algorithm::ES256, KeyMaterial::Pem(pem("es256_private")));
    refused(&server, &other, "ES256 is not allowed");
    assert_eq!(issuer.fetches(), 1);
}

#[test]
fn issuers_with_the_same_key_id() {
    let (north, south) = (Issuer::new(ok(&[jwk("rsa", "1")])), Issuer::new(ok(&[jwk("es256", "1")])));
    let sources = [north.source(", issuer: north"), south.source(", issuer: south, audience: tides")].join(", ");
    let more = "keys: [{id: '1', secret: 0123456789abcdef0123456789abcdef, issuer: east}]";
    let server = server(&sources, &format!("{LAZY}, {more}"));
    let of = |issuer: &str, audience: Value, name: &str| {
        let mut claims = in_an_hour();
        claims["iss"] = issuer.into();
        if !audience.is_null() {
            claims["aud"] = audience;
        }
        let (algorithm, key) = match name {
            "rsa" => (Algorithm::RS256, KeyMaterial::Pem(pem("rsa_private"))),
            "es256" => (Algorithm::ES256, KeyMaterial::Pem(pem("es256_private"))),
            _ => (Algorithm::HS256, KeyMaterial::Secret(b"0123456789abcdef0123456789abcdef".to_vec())),
        };
        sign(&claims, Some("1"), algorithm, key)
    };
    accepted_in_time(&server, &of("north", Value::Null, "rsa"));
    accepted_in_time(&server, &of("south", json!("tides"), "es256"));
    assert_eq!(verdict(&server, &of("east", Value::Null, "secret")), Ok(()));
    refused(&server, &of("south", json!("tides"), "rsa"), "another issuer");
    refused(&server, &of("north", Value::Null, "es256"), "another issuer");
    refused(&server, &of("north", Value::Null, "secret"), "another issuer");
    refused(&server, &of("south", Value::Null, "es256"), "another audience");
    refused(&server, &of("north", json!("tides"), "rsa"), "another audience");
}

#[test]
fn a_file_is_read_again_when_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.json");
    let yaml = |more: &str| format!("auth: {{jwks: '{}', jwks_interval: {more}}}", file.display());
    let refused_to_start = |text: &str, why: &str| {
        fs::write(&file, text).unwrap();
        let Err(StartError::Config(wrong)) = Engine::builder(config(1, &yaml("100ms"))).start() else {
            panic!("{text}")
        };
        let said = wrong.to_string();
        assert!(said.contains(why) && said.contains("keys.json"), "{said}");
    };
    refused_to_start("", "not a JSON Web Key Set");
    refused_to_start(r#"{"keys": []}"#, "no key that can be used");
    refused_to_start(&set(&[jwk("rsa_short", "a")]), "shorter than 2048 bits");
    refused_to_start(&" ".repeat(300_000), "longer than 262144 bytes");
    fs::remove_file(&file).unwrap();
    assert!(Engine::builder(config(1, &yaml("100ms"))).start().is_err());

    fs::write(&file, set(&[jwk("rsa", "a")])).unwrap();
    let server = Server::start(&yaml("100ms"));
    assert_eq!(verdict(&server, &token("rsa", "a")), Ok(()));
    fs::write(&file, set(&[jwk("es256", "b")])).unwrap();
    accepted_in_time(&server, &token("es256", "b"));
    refused(&server, &token("rsa", "a"), "unknown key");
    fs::write(&file, "{").unwrap();
    until("a bad file", || outcomes(&server, "invalid") > 0.0);
    assert_eq!(verdict(&server, &token("es256", "b")), Ok(()));
    drop(server);

    // One that is rarely looked at is read by a reload, and a bad one refuses it.
    fs::write(&file, set(&[jwk("rsa", "a")])).unwrap();
    let server = Server::start(&yaml("1h"));
    fs::write(&file, set(&[jwk("es256", "b")])).unwrap();
    refused(&server, &token("es256", "b"), "unknown key");
    assert_eq!(server.handle.reload(config(2, &yaml("1h"))).unwrap().applied, ["auth.jwks"]);
    assert_eq!(verdict(&server, &token("es256", "b")), Ok(()));
    fs::write(&file, "{").unwrap();
    assert!(server.handle.reload(config(2, &yaml("1h"))).is_err());
    assert_eq!(verdict(&server, &token("es256", "b")), Ok(()));
}

/// A reload keeps what was fetched, drops sources that are gone and asks new ones.
#[test]
fn sources_come_and_go_with_reloads() {
    let (first, second) = (Issuer::new(ok(&[jwk("rsa", "a")])), Issuer::new(ok(&[jwk("es256", "b")])));
    let server = server(&first.source(""), LAZY);
    accepted_in_time(&server, &token("rsa", "a"));
    let reload = |sources: &str, more: &str| {
        server.handle.reload(config(2, &format!("auth: {{jwks: [{sources}], {more}}}"))).unwrap()
    };
    first.say(reply("500 Internal Server Error", "", ""));
    reload(&[first.source(""), second.source("")].join(", "), "jwks_lifetime: 30m, jwks_interval: 1h");
    assert_eq!(verdict(&server, &token("rsa", "a")), Ok(()));
    accepted_in_time(&server, &token("es256", "b"));
    reload(&second.source(""), LAZY);
    until("the first one to be gone", || verdict(&server, &token("rsa", "a")).is_err());
    assert_eq!(verdict(&server, &token("es256", "b")), Ok(()));
}

#[test]
fn https_is_believed_with_the_right_certificate_only() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (leaf, key) = authority.sign("keys", &["127.0.0.1"]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let tls = tls.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap();
    let issuer = Issuer::start(ok(&[jwk("rsa", "a")]), Some(Arc::new(tls)));
    let port = issuer.address.port();

    let trust = |file: PathBuf| format!("{EAGER}, jwks_ca_file: {}", file.display());
    let [own, other] = [&authority, &stranger].map(|authority| authority.path().join("ca.pem"));
    let source = |host: &str| format!("'https://{host}:{port}/keys?tenant=1'");
    let good = server(&source("127.0.0.1"), &trust(own.clone()));
    accepted_in_time(&good, &token("rsa", "a"));
    drop(good);
    for (host, file) in [("127.0.0.1", other), ("localhost", own)] {
        let server = server(&source(host), &trust(file));
        until("a certificate that is not believed", || outcomes(&server, "unreachable") > 0.0);
        refused(&server, &token("rsa", "a"), "unknown key");
    }
    let empty = authority.path().join("empty.pem");
    fs::write(&empty, "nothing").unwrap();
    let yaml = format!("auth: {{jwks: {}, {}}}", source("127.0.0.1"), trust(empty));
    let Err(StartError::Config(wrong)) = Engine::builder(config(1, &yaml)).start() else { panic!("it started") };
    let why = wrong.to_string();
    assert!(why.starts_with("auth.jwks_ca_file: ") && why.ends_with("empty.pem holds no certificate"), "{why}");
}
