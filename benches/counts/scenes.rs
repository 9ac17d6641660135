//! What is counted: scenes in which the same happens in every round, and only what the server does about it is metered.
//! Law: a scene looks at what was sent after each round, so that nothing is counted that did not happen.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewheel::Context;
use tidewheel::app::auth::{Algorithm, AuthSettings, Authenticator, KeyMaterial, KeySettings, make_token};
use tidewheel::app::{Router, envelope};
use tidewheel::conn::RateLimits;
use tidewheel::id::ConnKey;
use tidewheel::ws::deflate::{Deflater, WINDOW_BITS_MAX};
use tidewheel::ws::{Decoder, Extensions, Input, Limits};

use crate::json::trades;
use crate::server::{Link, Server, frame, request, text};

/// Runs what is to be counted, and counts.
pub type Meter<'m> = &'m mut dyn FnMut(&mut dyn FnMut());

/// Plays one round.
pub type Round = Box<dyn FnMut(Meter<'_>)>;

/// One scene.
pub struct Scene {
    /// What it is called, in tables and in the baseline.
    pub name: &'static str,
    /// Of what a round has some, and how many.
    pub of: (&'static str, u64),
    /// Sets the scene.
    pub set: fn() -> Round,
}

const fn scene(name: &'static str, unit: &'static str, units: u64, set: fn() -> Round) -> Scene {
    Scene { name, of: (unit, units), set }
}

/// All of them.
pub const SCENES: &[Scene] = &[
    scene("echo 64 B", "message", 1, || echo(64, 1)),
    scene("echo 1 KiB", "message", 1, || echo(1024, 1)),
    scene("echo 16 KiB", "message", 1, || echo(16 * 1024, 1)),
    scene("echo 64 B, 16 at once", "message", 16, || echo(64, 16)),
    scene("echo 1 KiB, 16 at once", "message", 16, || echo(1024, 16)),
    scene("echo 16 KiB, 4 at once", "message", 4, || echo(16 * 1024, 4)),
    scene("echo 1 KiB compressed", "message", 1, echo_compressed),
    scene("echo 64 B over TLS", "message", 1, || echo_tls(64)),
    scene("echo 1 KiB over TLS", "message", 1, || echo_tls(1024)),
    scene("echo 16 KiB over TLS", "message", 1, || echo_tls(16 * 1024)),
    scene("command ping", "message", 1, || ask("ping", "", "pong")),
    scene("handler", "message", 1, || ask("add", r#","payload":{"a":1,"b":2}"#, "sum")),
    scene("WebSocket ping", "message", 1, websocket_ping),
    scene("publish to nobody", "publish", 1, || publish(0, 1, false)),
    scene("publish to 1", "publish", 1, || publish(1, 1, false)),
    scene("publish to 100", "publish", 1, || publish(100, 1, false)),
    scene("publish to 1,000", "publish", 1, || publish(1_000, 1, false)),
    scene("publish to 1, 4 at once", "publish", 4, || publish(1, 4, false)),
    scene("publish to 100, 4 at once", "publish", 4, || publish(100, 4, false)),
    scene("publish 1 KiB compressed to 1", "publish", 1, || publish(1, 1, true)),
    scene("publish 1 KiB compressed to 100", "publish", 1, || publish(100, 1, true)),
    scene("publish 1 KiB compressed to 1,000", "publish", 1, || publish(1_000, 1, true)),
    scene("idle: a ping and its pong", "ping", 1, idle_ping),
    scene("idle: a tick with nothing due", "tick", 1, idle_tick),
    scene("connect with a token", "connection", 1, connect),
    scene("decode 64 B", "frame", 1, || decode(64)),
    scene("decode 16 KiB", "frame", 1, || decode(16 * 1024)),
    scene("parse a publish", "message", 1, parse),
    scene("compress 1 KiB", "message", 1, compress),
];

impl Scene {
    /// Sets the scene and plays so many rounds of it.
    pub fn warm(&self, rounds: u32) -> Round {
        let mut round = (self.set)();
        for _ in 0..rounds {
            round(&mut |work| work());
        }
        round
    }
}

/// One client that sends `at_once` messages when all before have come back.
fn echo(bytes: usize, at_once: usize) -> Round {
    let mut server = Server::new(Router::default(), |_| {});
    let conn = server.client(&request("/echo", ""));
    let message = text(&"x".repeat(bytes)).repeat(at_once);
    // What comes back is not masked.
    let answer_bytes = (message.len() - 4 * at_once) as u64;
    Box::new(move |meter| {
        server.calm().say(conn, &message);
        let before = server.calm().sent.1;
        meter(&mut || server.turn());
        assert_eq!(server.calm().sent.1 - before, answer_bytes);
    })
}

/// What comes is inflated, what goes is compressed.
fn echo_compressed() -> Round {
    let mut server = Server::new(Router::default(), |_| {});
    let conn = server.client(&request("/echo", DEFLATE));
    let mut compressed = Vec::new();
    assert!(Deflater::new(3).deflate(trades(7).as_bytes(), WINDOW_BITS_MAX, &mut compressed));
    let message = frame(0xc1, &compressed);
    Box::new(move |meter| {
        server.calm().say(conn, &message);
        let before = server.calm().sent.1;
        meter(&mut || server.turn());
        let sent = server.calm().sent.1 - before;
        assert!((100..900).contains(&sent), "{sent} bytes of {}", trades(7).len());
    })
}

fn echo_tls(bytes: usize) -> Round {
    let (terms, mut link) = Link::sides();
    let mut server = Server::new(Router::default(), |settings| {
        (settings.tls, settings.plain_ports) = (Some(terms), 0);
    });
    let conn = server.newcomer();
    server.calm().listen(conn);
    let hello = link.say(&request("/echo", ""));
    server.calm().say(conn, &hello);
    let mut answer = Vec::new();
    for _ in 0..3 {
        server.rest();
        let arrived = server.calm().hear();
        answer.extend(link.take(&arrived));
        let more = link.say(b"");
        server.calm().say(conn, &more);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    server.calm().ignore();
    let message = text(&"x".repeat(bytes));
    Box::new(move |meter| {
        let sealed = link.say(&message);
        server.calm().say(conn, &sealed);
        let before = server.calm().sent.1;
        // A large one leaves in two records.
        meter(&mut || (0..2).for_each(|_| server.turn()));
        assert!(server.calm().sent.1 - before >= bytes as u64);
    })
}

/// A request and its reply; `kind` has the answer `answer`.
fn ask(kind: &str, payload: &str, answer: &'static str) -> Round {
    #[derive(Deserialize)]
    struct Add {
        a: u64,
        b: u64,
    }
    #[derive(Serialize)]
    struct Sum {
        sum: u64,
    }
    let mut router = Router::default();
    router.add_fn("add", async |_: Context, add: Add| Ok(("sum", Sum { sum: add.a + add.b }))).expect("a free name");
    let mut server = Server::new(router, |_| {});
    let conn = server.client(&request("/ws", ""));
    let message = text(&format!(r#"{{"id":12345678,"type":"{kind}"{payload}}}"#));
    server.calm().listen(conn);
    server.calm().say(conn, &message);
    server.rest();
    let told = server.calm().hear();
    assert!(String::from_utf8_lossy(&told).contains(&format!(r#""type":"{answer}""#)), "{told:?}");
    server.calm().ignore();
    Box::new(move |meter| {
        server.calm().pass(WITHIN_RATES_MS);
        server.calm().say(conn, &message);
        let before = server.calm().sent;
        meter(&mut || server.turn());
        assert_eq!(server.calm().sent.0 - before.0, 1);
        assert_eq!(server.calm().sent.1 - before.1, told.len() as u64);
    })
}

fn websocket_ping() -> Round {
    let mut server = Server::new(Router::default(), |_| {});
    let conn = server.client(&request("/ws", ""));
    let ping = frame(0x89, b"are you there?");
    Box::new(move |meter| {
        server.calm().pass(WITHIN_RATES_MS);
        server.calm().say(conn, &ping);
        let before = server.calm().sent.1;
        meter(&mut || server.turn());
        assert_eq!(server.calm().sent.1 - before, ping.len() as u64 - 4);
    })
}

/// One client publishes to a topic with so many others as subscribers, which takes as many turns as it takes to send to them;
/// the turn after the last brings the ends of the last sends.
fn publish(subscribers: u64, at_once: u64, is_compressed: bool) -> Round {
    let headers = if is_compressed { DEFLATE } else { "" };
    let mut server = Server::new(Router::default(), |_| {});
    for _ in 0..subscribers {
        server.subscriber(&request("/ws", headers), "prices");
    }
    let publisher = server.client(&request("/ws", ""));
    let data =
        if is_compressed { trades(7) } else { json!({ "symbol": "BTC-EUR", "price": 60_123.45, "n": 1 }).to_string() };
    let message = text(&publish_text(&data)).repeat(at_once as usize);
    Box::new(move |meter| {
        server.calm().pass(at_once * WITHIN_RATES_MS);
        server.calm().say(publisher, &message);
        let (queued, sends) = (server.metrics().queued.get(), server.calm().sent.0);
        let turns = subscribers.div_ceil(CROWD_A_TURN).max(1) + 1;
        meter(&mut || (0..turns).for_each(|_| server.turn()));
        assert_eq!(server.metrics().queued.get() - queued, subscribers * at_once);
        // All at once leave in one send, and so do the acks.
        assert_eq!(server.calm().sent.0 - sends, subscribers + 1);
    })
}

/// A shard sends to so many subscribers in a turn.
const CROWD_A_TURN: u64 = 128;

fn publish_text(data: &str) -> String {
    format!(r#"{{"id":12345678,"type":"publish","payload":{{"topic":"prices","data":{data}}}}}"#)
}

/// A connection that says nothing is pinged, and answers.
fn idle_ping() -> Round {
    let mut server = Server::new(Router::default(), |settings| settings.ping_interval_ms = 30_000);
    let conn = server.client(&request("/ws", ""));
    server.calm().listen(conn);
    Box::new(move |meter| {
        server.calm().pass(30_500);
        meter(&mut || server.turn());
        let ping = server.calm().hear();
        assert_eq!(ping.first(), Some(&0x89), "a ping");
        let pong = frame(0x8a, &ping[2..]);
        server.calm().say(conn, &pong);
        meter(&mut || server.turn());
        server.calm().listen(conn);
    })
}

fn idle_tick() -> Round {
    let mut server = Server::new(Router::default(), |settings| settings.ping_interval_ms = 3_600_000);
    server.client(&request("/ws", ""));
    Box::new(move |meter| {
        server.calm().pass(8);
        let before = server.calm().sent;
        meter(&mut || server.turn());
        assert_eq!(server.calm().sent, before);
    })
}

/// A server for whoever has a token, who may send as much as he likes: what is left of a rate is kept until the first ping finds that
/// it is whole again.
pub fn guarded() -> Server {
    let auth = AuthSettings { keys: vec![key()], ..AuthSettings::default() };
    let authenticator = Arc::new(Authenticator::new(&auth).expect("a good key"));
    Server::new(Router::default(), |settings| {
        settings.auth_required = true;
        settings.authenticator = Some(authenticator);
        settings.rates = RateLimits::default();
    })
}

/// The upgrade request of a user of a guarded server.
pub fn request_of(user: &str) -> Vec<u8> {
    let token = make_token(&json!({ "sub": user, "exp": 4_000_000_000_u64 }), &key()).expect("a good key");
    request("/ws", &format!("Authorization: Bearer {token}\r\n"))
}

fn key() -> KeySettings {
    KeySettings { algorithm: Algorithm::HS256, key: KeyMaterial::Secret(vec![7; 32]), id: None }
}

/// A newcomer with a good token in its upgrade request, until it has been told who it is; then it leaves.
fn connect() -> Round {
    let (mut server, request) = (guarded(), request_of("client-1234"));
    let goodbye = frame(0x88, &1000_u16.to_be_bytes());
    Box::new(move |meter| {
        let before = server.metrics().authenticated.get();
        server.calm().connect();
        meter(&mut || server.turn());
        let conn: ConnKey = server.calm().adopted().expect("there is room");
        server.calm().say(conn, &request);
        meter(&mut || (0..2).for_each(|_| server.turn()));
        assert_eq!(server.metrics().authenticated.get() - before, 1);
        server.calm().say(conn, &goodbye);
        server.rest();
    })
}

fn decode(bytes: usize) -> Round {
    const LIMITS: Limits = Limits { message_bytes_max: 1 << 20, extensions: Extensions::NONE };
    // Unmasked twice it is what it was; a message of one byte over and over is text either way.
    let mut message = text(&"x".repeat(bytes));
    let masked = message.clone();
    let mut decoder = Decoder::default();
    Box::new(move |meter| {
        message.copy_from_slice(&masked);
        meter(&mut || {
            let mut input = Input::new(&mut message);
            assert!(decoder.next(&mut input, &LIMITS).expect("legal").is_some());
            assert!(decoder.next(&mut input, &LIMITS).expect("legal").is_none());
        });
    })
}

fn parse() -> Round {
    let text = publish_text(&trades(7));
    let mut bytes = text.clone().into_bytes();
    Box::new(move |meter| {
        bytes.copy_from_slice(text.as_bytes());
        meter(&mut || {
            let message = envelope::parse(&mut bytes).expect("an envelope");
            assert_eq!(message.payload.publish().expect("a publish").topic, "prices");
        });
    })
}

fn compress() -> Round {
    let message = trades(7);
    let (mut deflater, mut out) = (Deflater::new(3), Vec::new());
    Box::new(move |meter| {
        out.clear();
        meter(&mut || assert!(deflater.deflate(message.as_bytes(), WINDOW_BITS_MAX, &mut out)));
    })
}

const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
/// A message so often is within the default of `limits.messages`.
const WITHIN_RATES_MS: u64 = 20;
