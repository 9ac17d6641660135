//! Reloads of a running engine: a change of each kind of key is taken up by what is connected and by who comes later.
//! Law: every test sees the old value at work first, so it fails where the reload is ignored.

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::json;
use tidewheel::config::{Apply, Sources};
use tidewheel::control::Reloaded;
use tidewheel::metrics::{CloseReason, Drop, Refusal};
use tidewheel::{Config, Context, StartError};

use super::api::{Api, WITH_KEY};
use super::auth::{SECRET, now_s, token};
use super::certificates::Authority;
use super::client::Client;
use super::limits::pings;
use super::raw::{PING, request, request_with, text};
use super::server::{Server, config};

/// Reloads with another configuration, in the form of [`Server::start`].
#[track_caller]
pub fn reload(server: &Server, yaml: &str) -> Reloaded {
    server.handle.reload(config(2, yaml)).unwrap()
}

/// Every key is changed by itself: one that is live is applied, any other one waits for a restart, and nothing else is
/// said to have changed.
#[test]
fn every_key_is_applied_or_said_to_wait() {
    let authority = Authority::new();
    authority.issue("server", &["a.example"]);
    let files = authority.path();
    let [chain, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|file| files.join(file).display().to_string());
    let server = Server::start(&format!(
        "auth: {{required: false, secret: '0123456789abcdef0123456789abcdef'}}\nlimits: {{errors: 50}}\n\
         proxy: {{trusted: 10.1.0.0/16}}\ndrain: {{deadline: 30s}}\n\
         tls: {{cert_file: {chain}, key_file: {key}, client_ca_file: {ca}, client_auth: required}}",
    ));
    let values = [
        "null",
        "7",
        "7s",
        "7KiB",
        "2MiB",
        "8",
        "64",
        "32KiB",
        "true",
        "false",
        "poll",
        "reject",
        "drop_oldest",
        "json",
        "debug",
        "HS512",
        "127.0.0.1:0, 127.0.0.1:0",
        "127.0.0.1:1",
        "*",
        "/another",
        "10.0.0.0/8",
        "0123456789abcdef",
        "[{pattern: a.b, policy: drop_oldest}]",
        "[{id: k, secret: 0123456789abcdef0123456789abcdef}]",
        "http://127.0.0.1:1/",
        "[{cert_file: c, key_file: k}]",
        "optional",
        "uri",
        "1.3",
    ];
    let begun = server.handle.config();
    let mut untried = Vec::new();
    for key in Config::reference() {
        if key.apply == Apply::Section || key.path.contains("[]") {
            continue;
        }
        let mut tried = false;
        for value in values {
            let mut changed = (*begun).clone();
            if changed.set(&key.path, value).is_err() || changed == *begun || changed.validate().is_err() {
                continue;
            }
            let Ok(reloaded) = server.handle.reload(changed) else { continue }; // a file that is not there
            tried = true;
            let (applied, waits) = (reloaded.applied, reloaded.restart);
            // The section of the key, if it was switched off so far; keys of it, if it is switched on now.
            let below = |path: &String| path.starts_with(&key.path) || key.path.starts_with(&format!("{path}."));
            match key.apply {
                Apply::Live => assert!(!applied.is_empty() && applied.iter().all(below), "{} {applied:?}", key.path),
                _ => assert_eq!((&applied, &waits), (&vec![], &vec![key.path.clone()]), "{}", key.path),
            }
            assert!(key.apply == Apply::Restart || waits.is_empty(), "{}: {waits:?} wait", key.path);
            let back = server.handle.reload((*begun).clone()).unwrap();
            assert_eq!(back.applied.is_empty(), key.apply == Apply::Restart, "{}: {back:?}", key.path);
            break;
        }
        if !tried {
            untried.push(key.path.as_str());
        }
    }
    // It names a file, which is not there.
    assert!(untried.iter().all(|key| ["auth.public_key_file"].contains(key)), "{untried:?}");
    assert_eq!(*server.handle.config(), *begun);
    server.connect().quiet();
}

#[test]
fn a_bad_configuration_changes_nothing() {
    let server = Server::start("");
    let mut client = server.connect();
    let mut bad = config(2, "limits: {topic_length: 3, errors: 0}\nwebsocket: {pong_timeout: 2h}\necho_path: /ws");
    let Err(StartError::Config(problems)) = server.handle.reload(bad.clone()) else { panic!("it was taken up") };
    assert_eq!(problems.0.len(), 3, "{problems}");
    client.subscribe("longer");
    bad = config(2, "limits: {topic_length: 3}\nauth: {required: false, public_key_file: /nonexistent.pem}");
    let Err(StartError::Config(wrong)) = server.handle.reload(bad) else { panic!("it was taken up") };
    assert!(wrong.to_string().starts_with("auth.public_key_file: /nonexistent.pem cannot be read"), "{wrong}");
    client.subscribe("longer.still");
    let reloaded = reload(&server, "limits: {topic_length: 3}");
    assert!(reloaded.applied.contains(&"limits.topic_length".to_owned()), "{reloaded:?}");
    client.refused("subscribe", json!({"topic": "longer.yet"}), "too_large");
}

#[test]
fn limits_of_what_is_connected() {
    let server = Server::start("");
    let mut client = server.connect();
    client.subscribe("one");
    client.subscribe("two");
    reload(&server, "limits: {subscriptions_per_connection: 2}");
    client.refused("subscribe", json!({"topic": "three"}), "limit_exceeded");
    reload(&server, "limits: {subscriptions_per_connection: 3}");
    client.subscribe("three");

    let mut raw = server.raw_open();
    let large = |bytes: usize| text(&format!(r#"{{"id":1,"type":"ping"{}}}"#, " ".repeat(bytes)));
    raw.write(&large(5000));
    assert_eq!(raw.json()["reply_to"], 1);
    reload(&server, "websocket: {max_message_size: 1KiB, max_header_bytes: 400B, ping_interval_seconds: 0}");
    raw.write(&large(500));
    assert_eq!(raw.json()["reply_to"], 1);
    raw.write(&large(5000));
    assert_eq!(raw.closed(), 1009);
    let mut raw = server.raw();
    raw.write(request_with("/ws", &format!("X: {}\r\n", "x".repeat(400))).as_bytes());
    assert_eq!(raw.refusal().0, 431);

    reload(&server, "limits: {errors: 3}");
    for _ in 0..2 {
        client.refused("nonsense", json!({}), "unknown_message");
    }
    client.tell("nonsense", json!({}));
    client.parted(4506, false);
}

/// What was spent at one rate means nothing at another: it begins anew.
#[test]
fn rates_of_what_is_connected() {
    let server = Server::start("");
    let mut raw = server.raw_open();
    let burst = |raw: &mut _| pings(raw, 40).0;
    assert_eq!(burst(&mut raw), 40);
    reload(&server, "limits: {messages: {per_second: 1, burst: 20}}");
    assert!((20..40).contains(&burst(&mut raw)));
    // The same again: nothing is given back.
    reload(&server, "limits: {messages: {per_second: 1, burst: 20}, errors: 60}");
    assert!(burst(&mut raw) < 20);
    reload(&server, "limits: {messages: {per_second: 2, burst: 30}}");
    assert!((30..40).contains(&burst(&mut raw)));
    reload(&server, "limits: {bytes: {per_second: 1B, burst: 300B}, messages: null}");
    assert!((5..30).contains(&burst(&mut raw)));
    reload(&server, "");
    assert_eq!(burst(&mut raw), 40);
}

#[test]
fn who_may_connect() {
    let status = |server: &Server, lines: &str| {
        let mut raw = server.raw();
        raw.write(request_with("/ws", lines).as_bytes());
        raw.head().split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    let server = Server::start("");
    let page = "Origin: https://elsewhere.example\r\n";
    assert_eq!((status(&server, page), status(&server, "")), (403, 101));
    reload(&server, "origins: {allow: ['https://elsewhere.example'], allow_missing: false}");
    assert_eq!((status(&server, page), status(&server, "")), (101, 403));

    reload(&server, "limits: {connection_attempts: {per_second: 1, burst: 2}}");
    let refused = || server.sum(|shard| &shard.refused[Refusal::RateLimited as usize]);
    let statuses: Vec<u16> = (0..12).map(|_| status(&server, "")).collect();
    assert!(refused() > 5, "{statuses:?}");
    // Other keys leave alone what was counted.
    reload(&server, "limits: {connection_attempts: {per_second: 1, burst: 2}, errors: 60}");
    let before = refused();
    for _ in 0..6 {
        status(&server, "");
    }
    assert!(refused() > before + 2);
    reload(&server, "");
    assert_eq!((0..12).map(|_| status(&server, "")).collect::<Vec<_>>(), [101; 12]);
}

#[test]
fn how_many_may_connect() {
    let all = |most: u32| format!("websocket: {{max_total_connections: {most}, ping_interval_seconds: 0}}");
    let server = Server::start(&all(10));
    let status = || {
        let mut raw = server.raw();
        raw.write(request("/ws").as_bytes());
        let head = raw.head();
        (head.split(' ').nth(1).unwrap().to_owned(), raw)
    };
    let _two = (server.connect(), server.connect());
    reload(&server, &all(2));
    assert_eq!(status().0, "503");
    // Who is being told so has a place until it has gone.
    let gone = |left: u64| super::until("the refused to be gone", || server.active() == left);
    gone(2);
    reload(&server, &all(3));
    let third = status();
    assert_eq!((third.0.as_str(), status().0.as_str()), ("101", "503"));
    // There are places for ten.
    let reloaded = reload(&server, &all(11));
    assert_eq!((reloaded.applied.len(), reloaded.restart), (0, vec!["websocket.max_total_connections".to_owned()]));
    assert!(
        reloaded.warnings.iter().any(|warning| warning.contains("11 is more than the 10")),
        "{:?}",
        reloaded.warnings
    );
    assert_eq!(status().0, "503", "the last value that was taken up holds");
    gone(3);
    // What the machine allows is computed at a start.
    let auto = reload(&server, "websocket: {ping_interval_seconds: 0}");
    assert_eq!((auto.applied.len(), auto.restart), (0, vec!["websocket.max_total_connections".to_owned()]));
    assert!(
        auto.warnings.iter().any(|warning| warning.contains("auto is computed at the start")),
        "{:?}",
        auto.warnings
    );
    reload(&server, &all(10));
    assert_eq!(status().0, "101");
}

#[test]
fn how_many_of_one_client() {
    let yaml = |limits: &str| format!("auth: {{secret: '{SECRET}'}}\nwebsocket: {{{limits}}}");
    let server = Server::start(&yaml("max_connections_per_client: null"));
    let enter = || {
        let mut client = server.connect();
        let reply = client.ask("authenticate", json!({"token": token(json!({"sub": "alice"}))}));
        (client, reply["payload"]["authenticated"] == true)
    };
    let (mut first, mut second) = (enter().0, enter().0);
    reload(&server, &yaml("max_connections_per_client: 2, client_limit_policy: reject"));
    first.quiet(); // who is there stays
    assert!(!enter().1);
    reload(&server, &yaml("max_connections_per_client: 2"));
    let mut third = enter().0;
    first.parted(4503, false);
    second.quiet();
    // A limit of one makes room of them all with the next newcomer.
    reload(&server, &yaml("max_connections_per_client: 1"));
    let mut fourth = enter().0;
    second.parted(4503, false);
    third.parted(4503, false);
    fourth.quiet();
}

/// Which tokens are good, and where they may be.
#[test]
fn keys() {
    let other = "another secret of at least thirty-two bytes";
    let server = Server::start(&format!("auth: {{secret: '{SECRET}'}}"));
    let is_good = |claims: serde_json::Value| {
        let reply = server.connect().ask("authenticate", json!({"token": token(claims)}));
        reply["payload"]["authenticated"] == true
    };
    let alice = json!({"sub": "alice"});
    let mut before = server.connect();
    before.ask("authenticate", json!({"token": token(alice.clone())}));
    assert!(is_good(alice.clone()));
    reload(&server, &format!("auth: {{secret: '{other}'}}"));
    assert!(!is_good(alice.clone()));
    before.quiet(); // whoever is in stays in
    reload(&server, &format!("auth: {{secret: '{SECRET}', issuer: i, audience: a}}"));
    assert!(!is_good(alice.clone()));
    assert!(is_good(json!({"sub": "alice", "iss": "i", "aud": "a"})));
    reload(&server, &format!("auth: {{secret: '{SECRET}', algorithm: HS512}}"));
    assert!(!is_good(alice.clone()));
    let late = json!({"sub": "alice", "exp": now_s() - 30});
    reload(&server, &format!("auth: {{secret: '{SECRET}'}}"));
    assert!(!is_good(late.clone()));
    reload(&server, &format!("auth: {{secret: '{SECRET}', leeway: 10m}}"));
    assert!(is_good(late));

    let carried = |path: &str, lines: &str| {
        let mut raw = server.raw();
        raw.upgrade_with(path, lines);
        raw.text(r#"{"id":1,"type":"subscribe","payload":{"topic":"t"}}"#);
        loop {
            let said = raw.json();
            if said["reply_to"] == 1 {
                return said["type"] == "ack";
            }
        }
    };
    let (query, cookie) = (format!("/ws?token={}", token(alice.clone())), format!("Cookie: sid={}\r\n", token(alice)));
    assert!(!carried(&query, "") && !carried("/ws", &cookie));
    reload(&server, &format!("auth: {{secret: '{SECRET}', query: true, cookie: sid}}"));
    assert!(carried(&query, "") && carried("/ws", &cookie));

    // Nobody has to show one, then everybody, those who are connected too.
    reload(&server, "auth: {required: false}");
    let mut anybody = server.connect();
    anybody.subscribe("t");
    reload(&server, &format!("auth: {{secret: '{SECRET}', timeout: 1h}}"));
    anybody.refused("subscribe", json!({"topic": "u"}), "unauthorized");
}

/// The file may change although its name does not.
#[test]
fn a_key_file_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("issuer.pem");
    let key = |name: &str| fs::read(format!("{}/tests/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"))).unwrap();
    fs::write(&file, key("es256_other_public")).unwrap();
    let yaml = format!("auth: {{public_key_file: {}, algorithm: ES256}}", file.display());
    let server = Server::start(&yaml);
    let signer = tidewheel::app::auth::KeySettings {
        id: None,
        algorithm: tidewheel::config::Algorithm::ES256,
        key: tidewheel::app::auth::KeyMaterial::Pem(key("es256_private")),
    };
    let token = tidewheel::app::auth::make_token(&json!({"sub": "alice"}), &signer).unwrap();
    let is_good = || server.connect().ask("authenticate", json!({"token": token}))["payload"]["authenticated"] == true;
    assert!(!is_good());
    assert_eq!(reload(&server, &yaml), Reloaded::default());
    fs::write(&file, key("es256_public")).unwrap();
    assert!(!is_good(), "it is read when told so");
    assert_eq!(reload(&server, &yaml).applied, ["auth.public_key_file"]);
    assert!(is_good());
    fs::write(&file, "no key").unwrap();
    assert!(server.handle.reload(config(2, &yaml)).is_err());
    assert!(is_good());
}

/// A shorter time holds at once for who is connected: it counts from when it began, not from the reload.
#[test]
fn timers_of_what_is_connected() {
    let long = "idle_timeout_seconds: 0, ping_interval_seconds: 0, pong_timeout: 1h, handshake_timeout: 1h, \
                close_timeout: 1h";
    let websocket = |keys: &str| format!("websocket: {{{keys}}}");
    let server = Server::start(&websocket(long));

    let mut unfinished = server.raw();
    unfinished.write(b"GET /ws HTTP/1.1\r\n");
    let mut client = server.connect();
    client.quiet();
    reload(&server, &websocket(&long.replace("handshake_timeout: 1h", "handshake_timeout: 100ms")));
    assert_eq!(unfinished.refusal().0, 408);
    client.quiet();

    let mut silent = server.raw_open();
    reload(&server, &websocket(&long.replace("ping_interval_seconds: 0", "ping_interval_seconds: 1")));
    silent.until(PING);
    reload(
        &server,
        &websocket(
            &long
                .replace("ping_interval_seconds: 0, pong_timeout: 1h", "ping_interval_seconds: 1, pong_timeout: 100ms"),
        ),
    );
    assert_eq!(silent.json()["payload"]["code"], 4002);
    // It does not answer the close frame either, and nobody waits for an hour.
    reload(&server, &websocket(&long.replace("close_timeout: 1h", "close_timeout: 100ms")));
    silent.rest();

    let mut idle = server.connect();
    reload(&server, &websocket(&long.replace("idle_timeout_seconds: 0", "idle_timeout_seconds: 1")));
    idle.parted(4001, true);
    reload(&server, &websocket(long));
    thread::sleep(Duration::from_millis(1500));
    server.connect().quiet();

    reload(&server, &format!("auth: {{secret: '{SECRET}', timeout: 1h}}"));
    let mut nobody = server.connect();
    nobody.refused("subscribe", json!({"topic": "t"}), "unauthorized");
    reload(&server, &format!("auth: {{secret: '{SECRET}', timeout: 100ms}}"));
    nobody.parted(4502, false);

    reload(&server, &format!("auth: {{secret: '{SECRET}', expiry_grace: 1h}}"));
    let mut late = server.connect();
    late.ask("authenticate", json!({"token": token(json!({"sub": "alice", "exp": now_s() + 2}))}));
    late.expect("token_expiring");
    late.quiet();
    reload(&server, &format!("auth: {{secret: '{SECRET}', expiry_grace: 0s}}"));
    late.parted(4003, true);
}

#[test]
fn bounds_of_queues() {
    let yaml = |outbound: &str| {
        format!("outbound: {{{outbound}}}\nwebsocket: {{close_timeout: 300ms, ping_interval_seconds: 0}}")
    };
    let server = Server::start(&yaml("max_bytes: 64MB, max_frames: 100000, max_age: 1h"));
    let stall = |topic: &str| {
        let mut slow = super::lifecycle::narrow(server.address);
        slow.text(&format!(r#"{{"type":"subscribe","payload":{{"topic":"{topic}"}}}}"#));
        assert_eq!(slow.json()["type"], "ack");
        slow
    };
    let mut publisher = server.connect();
    let padding = json!("x".repeat(16 * 1024));
    let mut fill = |topic: &str| {
        for _ in 0..400 {
            assert_eq!(publisher.publish(topic, padding.clone()), (1, 1, 0));
        }
    };
    // By age, of what has waited already.
    let _slow = stall("age");
    fill("age");
    reload(&server, &yaml("max_bytes: 64MB, max_frames: 100000, max_age: 100ms"));
    super::until("the first to be parted from", || server.closed(CloseReason::SlowConsumer) == 1);
    // By bytes and by frames, with the next message.
    for (topic, bound, count) in [("bytes", "max_bytes: 1MB", 2), ("frames", "max_frames: 10, max_bytes: 64MB", 3)] {
        reload(&server, &yaml("max_bytes: 64MB, max_frames: 100000, max_age: 1h"));
        let _slow = stall(topic);
        fill(topic);
        reload(&server, &yaml(&format!("{bound}, max_age: 1h")));
        assert_eq!(server.connect().publish(topic, json!(0)), (1, 0, 1));
        super::until("it to be parted from", || server.closed(CloseReason::SlowConsumer) == count);
    }
}

/// The next message of a topic that is there already goes by the new policy, and what waits keeps its own.
#[test]
fn policies_of_topics_that_are_there() {
    let yaml = |keys: &str| {
        format!(
            "outbound: {{max_frames: 8, max_bytes: 10MB, max_age: 1h}}\n{keys}\nwebsocket: {{ping_interval_seconds: 0}}"
        )
    };
    let rule = |policy: &str| yaml(&format!("topics: [{{pattern: t, policy: {policy}}}]"));
    let server = Server::start(&rule("drop_newest"));
    let drops = |policy: Drop| server.sum(|shard| &shard.dropped[policy as usize]);
    // The publisher's shard is another one than the subscriber's, or the same: either takes the policies up.
    let mut slow = super::lifecycle::narrow(server.address);
    slow.text(r#"{"type":"subscribe","payload":{"topic":"t"}}"#);
    assert_eq!(slow.json()["type"], "ack");
    let mut publishers = [server.connect(), server.connect(), server.connect()];
    let padding = "x".repeat(100_000);
    super::until("a full queue", || {
        publishers[0].publish("t", json!([0, padding]));
        drops(Drop::DropNewest) > 0
    });
    let mut number = 0;
    let mut publish = |key: &str| {
        number += 1;
        for publisher in &mut publishers[1..] {
            publisher.quiet(); // its shard has had turns since
        }
        let publisher = &mut publishers[number % 3];
        publisher.ack("publish", json!({"topic": "t", "data": [number, 0], "key": key}));
    };
    let newest = drops(Drop::DropNewest);
    publish("a"); // 1 is the one that does not come
    assert_eq!(drops(Drop::DropNewest), newest + 1);

    // Of what waits under the old policy the oldest goes.
    assert_eq!(reload(&server, &rule("drop_oldest")).applied, ["topics"]);
    let newest = drops(Drop::DropNewest);
    publish("a"); // 2
    assert_eq!(drops(Drop::DropNewest), newest + 1, "counted by the policy of the one that went");

    reload(&server, &rule("latest_per_key"));
    publish("a"); // 3
    publish("a"); // 4, in its place
    assert_eq!(drops(Drop::LatestPerKey), 1);
    reload(&server, &rule("drop_oldest"));
    publish("a"); // 5
    reload(&server, &rule("latest_per_key"));
    publish("a"); // 6, behind 5 and not in the place of 4, or the last to come would not be the latest
    assert_eq!(drops(Drop::LatestPerKey), 1);

    let reloaded = reload(&server, &yaml("").replace("max_frames", "policy: drop_newest, max_frames"));
    assert_eq!(reloaded.applied, ["outbound.policy", "topics"]);
    let newest = drops(Drop::DropNewest);
    publish("a"); // 7
    assert_eq!(drops(Drop::DropNewest), newest + 1);

    let mut numbers = Vec::new();
    while numbers.last() != Some(&6) {
        let data = slow.json()["payload"]["data"][0].as_u64().unwrap();
        numbers.extend((data > 0).then_some(data));
    }
    assert_eq!(numbers, [2, 4, 5, 6]);

    // Back to parting from who is slow.
    reload(&server, &yaml(""));
    super::until("it to be parted from", || {
        publishers[0].publish("t", json!([8, padding]));
        server.closed(CloseReason::SlowConsumer) == 1
    });
    std::mem::drop((slow, publishers));
    server.rest();
}

#[test]
fn the_patience_with_handlers_and_the_drain() {
    let server = Server::build(
        2,
        "limits: {handler_timeout: null}\ndrain: {deadline: 1h}\nwebsocket: {close_timeout: 1h}",
        |builder| {
            builder.route("wait", async |_: Context, _: serde_json::Value| {
                std::future::pending::<()>().await;
                Ok(())
            })
        },
    );
    let mut client = server.connect();
    client.tell("wait", json!({}));
    reload(&server, "limits: {handler_timeout: 100ms}\ndrain: {deadline: 1h}\nwebsocket: {close_timeout: 1h}");
    client.quiet(); // the first one waits on
    client.refused("wait", json!({}), "internal_error");
    // The first one is owed to the client for good, but for the deadline.
    reload(&server, "drain: {deadline: 100ms}\nwebsocket: {close_timeout: 1h}");
    assert_eq!(server.stop().cut, 1);
}

/// Reloads without end while others talk: nobody loses anything.
#[test]
fn reloads_at_load() {
    let server = Server::start("");
    thread::scope(|scope| {
        let talk = || {
            let (mut publisher, mut subscriber): (Client, Client) = (server.connect(), server.connect());
            let topic = format!("t{:?}", thread::current().id()).replace(['(', ')'], "");
            subscriber.subscribe(&topic);
            for number in 0..500 {
                assert_eq!(publisher.publish(&topic, json!(number)), (1, 1, 0));
                assert_eq!(subscriber.data(&topic), number);
            }
        };
        let talking: Vec<_> = (0..4).map(|_| scope.spawn(talk)).collect();
        let mut reloads = 0;
        while talking.iter().any(|thread| !thread.is_finished()) {
            reload(
                &server,
                &format!(
                    "limits: {{errors: {}, messages: null, bytes: null, connection_attempts: null}}",
                    reloads % 100 + 1
                ),
            );
            reloads += 1;
        }
        assert!(reloads > 10);
    });
    server.rest();
}

/// The same by the API, from where the configuration came from.
#[test]
fn by_the_api() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidewheel.yaml");
    let write = |yaml: &str| {
        let usual = "listen: 127.0.0.1:0\nshards: 2\nauth: {required: false}\nlimits: {connection_attempts: null}\n";
        fs::write(&file, format!("{usual}{WITH_KEY}{yaml}")).unwrap();
    };
    write("");
    let sources = Sources { file: Some(file.clone()), ..Sources::default() };
    let begun = sources.read().finish().unwrap();
    let reread = move || {
        let draft = sources.read();
        let warnings = draft.warnings();
        Ok((draft.finish()?, warnings))
    };
    let server = Server::run(tidewheel::Engine::builder(begun).reread(reread));
    let api = Api { server };
    let mut client = api.server.connect();
    let reloads = |outcome: &str| api.metric(&format!("tidewheel_config_reloads_total{{outcome=\"{outcome}\"}}"));
    assert_eq!((reloads("applied"), reloads("refused")), (0, 0));

    write(
        "origins: {allow_missing: false}\nio: {wait: poll}\nwebsocket: {ping_interval_seconds: 0, idle_timeout_seconds: 0}",
    );
    let reloaded = api.post("reload", json!(null));
    assert_eq!(
        reloaded["applied"],
        json!(["websocket.idle_timeout_seconds", "websocket.ping_interval_seconds", "origins.allow_missing"])
    );
    assert_eq!(reloaded["restart"], json!(["io.wait"]));
    assert!(reloaded["warnings"][0].as_str().unwrap().contains("websocket.ping_interval_seconds"), "{reloaded}");
    let mut raw = api.server.raw();
    raw.write(request("/ws").as_bytes());
    assert_eq!(raw.refusal().0, 403);
    assert_eq!(api.get("config")["origins"]["allow_missing"], false);
    assert_eq!(api.get("config")["io"]["wait"], "recv");
    assert_eq!((reloads("applied"), reloads("refused")), (1, 0));

    write("path: ws\nauht: {secret: hunter2}");
    let answer = api.ask("POST /api/reload", "");
    assert_eq!((answer.status, &answer.json()["code"]), (422, &json!("invalid_configuration")));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(
        message.lines().count() == 2 && message.contains("did you mean `auth`") && !message.contains("hunter2"),
        "{message}"
    );
    assert_eq!((reloads("applied"), reloads("refused")), (1, 1));
    client.quiet();

    // The key of the API itself.
    fs::write(&file, "listen: 127.0.0.1:0\nauth: {required: false}\nadmin: {key: another-key-of-the-api}\n").unwrap();
    api.post("reload", json!(null));
    assert_eq!(api.ask("GET /api/config", "").status, 401);
    client.quiet();
}
