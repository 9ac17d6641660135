//! Authentication: every algorithm, every way a token can be wrong, and what happens when it ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tidewheel::Target;
use tidewheel::app::auth::{Algorithm, KeyMaterial, KeySettings, make_token};
use tidewheel::metrics::{CloseReason, ErrorCode};

use super::client::Client;
use super::handlers::block_on;
use super::server::Server;

pub const SECRET: &str = "a secret of at least sixty-four bytes, as RFC 7518 wants for HS512";

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn path(key: &str) -> String {
    format!("{}/tests/keys/{key}.pem", env!("CARGO_MANIFEST_DIR"))
}

fn signed(claims: Value, algorithm: Algorithm, key: KeyMaterial) -> String {
    make_token(&claims, &KeySettings { algorithm, key, id: None }).unwrap()
}

/// A token that the usual server accepts, if the claims are good.
pub fn token(claims: Value) -> String {
    signed(claims, Algorithm::HS256, KeyMaterial::Secret(SECRET.into()))
}

pub fn in_an_hour() -> Value {
    json!({"sub": "alice", "exp": now_s() + 3600})
}

/// The client is told that the token is good.
#[track_caller]
fn accepted(client: &mut Client, token: &str) -> Value {
    let reply = client.ask("authenticate", json!({"token": token}));
    assert_eq!((&reply["type"], &reply["payload"]["authenticated"]), (&json!("auth_result"), &json!(true)), "{reply}");
    reply["payload"].clone()
}

/// The client is told that the token is bad and why, and its connection is closed.
#[track_caller]
fn turned_away(server: &Server, token: &str, why: &str) {
    let mut client = server.connect();
    let reply = client.ask("authenticate", json!({"token": token}));
    assert_eq!((&reply["type"], &reply["payload"]["authenticated"]), (&json!("auth_result"), &json!(false)), "{reply}");
    let error = reply["payload"]["error"].as_str().unwrap();
    assert!(error.contains(why), "{error:?} does not say {why:?}");
    assert!(token.is_empty() || !error.contains(token), "{error}");
    client.parted(4501, false);
}

#[test]
fn algorithms() {
    let pem = |key: &str| KeyMaterial::Pem(std::fs::read(path(key)).unwrap());
    let secret = || KeyMaterial::Secret(SECRET.into());
    let check = |auth: &str, algorithm: Algorithm, key: KeyMaterial| {
        let server = Server::start(&format!("auth: {{{auth}}}"));
        let mut client = server.connect();
        let result = accepted(&mut client, &signed(in_an_hour(), algorithm, key));
        assert_eq!(result["user_id"], "alice");
        assert!(result["expires_at"].as_u64().unwrap() > now_s());
        assert_eq!(result["session_id"].as_str().unwrap().len(), 36);
        client.subscribe("t");
        // Another algorithm, with the right key or with the public key as the secret, is not let in.
        turned_away(&server, &signed(in_an_hour(), Algorithm::HS384, secret()), "HS384");
        turned_away(&server, &unsigned("none"), "");
        client.close();
        server.rest();
    };
    check(&format!("secret: '{SECRET}'"), Algorithm::HS256, secret());
    check(&format!("secret: '{SECRET}', algorithm: HS512"), Algorithm::HS512, secret());
    check(&format!("public_key_file: {}", path("rsa_public")), Algorithm::RS256, pem("rsa_private"));
    check(&format!("public_key_file: {}, algorithm: PS256", path("rsa_public")), Algorithm::PS256, pem("rsa_private"));
    check(
        &format!("public_key_file: {}, algorithm: ES256", path("es256_public")),
        Algorithm::ES256,
        pem("es256_private"),
    );
    check(
        &format!("public_key_file: {}, algorithm: EdDSA", path("ed25519_public")),
        Algorithm::EdDSA,
        pem("ed25519_private"),
    );
}

/// A token that claims `alg` and has no signature.
fn unsigned(alg: &str) -> String {
    let parts = [json!({"alg": alg, "typ": "JWT"}), in_an_hour()].map(|part| base64url(part.to_string().as_bytes()));
    format!("{}.{}.", parts[0], parts[1])
}

fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, &byte| bits << 8 | usize::from(byte)) << (8 * (3 - chunk.len()));
        text.extend((0..=chunk.len()).map(|digit| char::from(ALPHABET[bits >> (18 - 6 * digit) & 63])));
    }
    text
}

#[test]
fn bad_tokens() {
    let server = Server::start(&format!("auth: {{secret: '{SECRET}', issuer: us, audience: them}}"));
    let with = |member: &str, value: Value| {
        let mut claims = json!({"sub": "alice", "exp": now_s() + 3600, "iss": "us", "aud": ["others", "them"]});
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(member)),
            value => claims[member] = value,
        }
        token(claims)
    };
    let mut client = server.connect();
    assert_eq!(accepted(&mut client, &with("nbf", json!(now_s() - 10)))["user_id"], "alice");

    turned_away(&server, "", "not a JSON Web Token");
    turned_away(&server, "a.b.c", "not a JSON Web Token");
    turned_away(&server, &"x".repeat(20_000), "longer");
    turned_away(&server, &unsigned("none"), "");
    turned_away(&server, &unsigned("HS256"), "signature");
    let other = KeyMaterial::Secret(b"another secret of more than thirty-two bytes".to_vec());
    turned_away(&server, &signed(in_an_hour(), Algorithm::HS256, other), "signature");
    let pem = KeyMaterial::Pem(std::fs::read(path("rsa_private")).unwrap());
    turned_away(&server, &signed(in_an_hour(), Algorithm::RS256, pem), "RS256");
    turned_away(&server, &with("exp", json!(now_s() - 1)), "expired");
    turned_away(&server, &with("exp", json!("soon")), "`exp`");
    turned_away(&server, &with("nbf", json!(now_s() + 3600)), "not valid yet");
    turned_away(&server, &with("iss", json!("others")), "issuer");
    turned_away(&server, &with("iss", Value::Null), "issuer");
    turned_away(&server, &with("aud", json!("others")), "audience");
    turned_away(&server, &with("aud", Value::Null), "audience");
    turned_away(&server, &with("sub", Value::Null), "`sub`");
    turned_away(&server, &with("sub", json!("")), "`sub`");
    turned_away(&server, &with("topics", json!(["a"])), "topics");
    let mut forged = with("sub", json!("mallory"));
    let (head, tail) = (forged.find('.').unwrap(), forged.rfind('.').unwrap());
    let good = with("sub", json!("alice"));
    forged.replace_range(tail.., &good[good.rfind('.').unwrap()..]);
    assert!(head < tail);
    turned_away(&server, &forged, "signature");

    client.quiet();
    client.close();
    server.rest();
    assert_eq!(server.closed(CloseReason::AuthFailed), 18);
}

#[test]
fn nothing_before_authentication() {
    let server = Server::start(&format!("auth: {{secret: '{SECRET}'}}\nlimits: {{errors: 100}}"));
    let mut client = server.connect();
    client.quiet();
    for (kind, payload) in [
        ("subscribe", json!({"topic": "t"})),
        ("unsubscribe", json!({"topic": "t"})),
        ("publish", json!({"topic": "t", "data": 1})),
        ("list_subscriptions", json!({})),
        ("anything", json!({})),
        ("refresh", json!({"token": token(in_an_hour())})),
    ] {
        client.refused(kind, payload, "unauthorized");
    }
    // What is said to everyone is not said to strangers.
    let receipt = super::handlers::block_on(server.handle.broadcast(&1)).unwrap();
    assert_eq!(receipt.matched, 0);
    accepted(&mut client, &token(in_an_hour()));
    let receipt = super::handlers::block_on(server.handle.broadcast(&2)).unwrap();
    assert_eq!(receipt.queued, 1);
    assert_eq!(client.expect("broadcast"), json!({"data": 2}));
    // Once is enough; twice is a mistake that costs nothing more than an error.
    client.refused("authenticate", json!({"token": token(in_an_hour())}), "invalid_message");
    client.subscribe("t");
    assert_eq!(client.publish("t", json!(1)), (1, 1, 0));
    assert_eq!(client.expect("message"), json!({"topic": "t", "data": 1, "publisher": "alice"}));
    client.close();
    server.rest();
}

#[test]
fn who_does_not_authenticate_in_time() {
    let server = Server::start(&format!("auth: {{secret: '{SECRET}', timeout: 300ms}}"));
    let mut stranger = server.connect();
    let mut friend = server.connect();
    accepted(&mut friend, &token(in_an_hour()));
    stranger.parted(4502, false);
    assert_eq!(server.sum(|shard| &shard.errors[ErrorCode::Unauthorized as usize]), 0);
    friend.quiet();
    friend.close();
    server.rest();
}

#[test]
fn permissions() {
    let server = Server::start(&format!("auth: {{secret: '{SECRET}'}}"));
    let claims = json!({
        "sub": "alice", "exp": now_s() + 3600,
        "topics": {"subscribe": ["chat.*", "news.>"], "publish": ["chat.alice"]},
    });
    let mut client = server.connect();
    accepted(&mut client, &token(claims));
    client.subscribe("chat.bob");
    client.subscribe("chat.alice");
    client.subscribe("news.a.b.c");
    for topic in ["chat", "chat.bob.private", "news", "other"] {
        let text = client.refused("subscribe", json!({"topic": topic}), "forbidden");
        assert!(text.contains("subscribe"), "{text}");
    }
    assert_eq!(client.publish("chat.alice", json!(1)), (1, 1, 0));
    assert_eq!(client.data("chat.alice"), 1);
    for topic in ["chat.bob", "news.a", "other"] {
        client.refused("publish", json!({"topic": topic, "data": 1}), "forbidden");
    }
    // A new token of the same user brings its own permissions. What it withdraws ends; what no token allowed, an operator has allowed.
    let reached = block_on(server.handle.subscribe(Target::Client("alice".into()), "other")).unwrap();
    assert_eq!(reached.done, 1);
    let claims = json!({
        "sub": "alice", "exp": now_s() + 3600, "topics": {"subscribe": ["chat.bob"], "publish": [">"]},
    });
    let reply = client.ask("refresh", json!({"token": token(claims)}));
    assert_eq!(reply["payload"]["authenticated"], true, "{reply}");
    let mut ended = [client.expect("unsubscribed"), client.expect("unsubscribed")].map(|ended| ended["topic"].clone());
    ended.sort_by_key(|topic| topic.to_string());
    assert_eq!(ended, [json!("chat.alice"), json!("news.a.b.c")]);
    assert_eq!(client.publish("chat.alice", json!(2)), (0, 0, 0));
    assert_eq!(client.publish("chat.bob", json!(3)), (1, 1, 0));
    assert_eq!(client.data("chat.bob"), 3);
    let claims = json!({"sub": "alice", "exp": now_s() + 3600, "topics": {"publish": [">"]}});
    let reply = client.ask("refresh", json!({"token": token(claims)}));
    assert_eq!(reply["payload"]["authenticated"], true, "{reply}");
    assert_eq!(client.expect("unsubscribed")["topic"], "chat.bob");
    client.refused("subscribe", json!({"topic": "chat.carol"}), "forbidden");
    assert_eq!(client.publish("other", json!(1)), (1, 1, 0));
    client.close();
    server.rest();
}

#[test]
fn refreshing() {
    let server = Server::start(&format!("auth: {{secret: '{SECRET}'}}"));
    let mut client = server.connect();
    let first = accepted(&mut client, &token(in_an_hour()));
    let expires_at = now_s() + 7200;
    let reply = client.ask("refresh", json!({"token": token(json!({"sub": "alice", "exp": expires_at}))}));
    assert_eq!(
        reply["payload"],
        json!({"authenticated": true, "user_id": "alice", "session_id": first["session_id"], "expires_at": expires_at})
    );
    // A token without an end has none.
    let reply = client.ask("refresh", json!({"token": token(json!({"sub": "alice"}))}));
    assert_eq!(reply["payload"]["expires_at"], Value::Null);
    // Another user's, or a bad one, changes nothing.
    client.refused("refresh", json!({"token": token(json!({"sub": "bob", "exp": now_s() + 60}))}), "forbidden");
    let reply = client.ask("refresh", json!({"token": token(json!({"sub": "alice", "exp": now_s() - 60}))}));
    assert_eq!((&reply["type"], &reply["payload"]["authenticated"]), (&json!("auth_result"), &json!(false)), "{reply}");
    client.subscribe("t");
    assert_eq!(client.publish("t", json!(1)), (1, 1, 0));
    client.close();
    server.rest();
}

#[test]
fn a_token_that_ends() {
    let server = Server::start(&format!("auth: {{secret: '{SECRET}', expiry_grace: 1s}}"));
    let mut lasting = server.connect();
    let mut ending = server.connect();
    let mut endless = server.connect();
    let expires_at = now_s() + 2;
    accepted(&mut lasting, &token(json!({"sub": "alice", "exp": expires_at})));
    accepted(&mut ending, &token(json!({"sub": "bob", "exp": expires_at})));
    accepted(&mut endless, &token(json!({"sub": "carol"})));
    // Both are told in time; who has a new token stays.
    assert_eq!(lasting.expect("token_expiring"), json!({"expires_at": expires_at}));
    let reply = lasting.ask("refresh", json!({"token": token(in_an_hour())}));
    assert_eq!(reply["payload"]["authenticated"], true, "{reply}");
    assert_eq!(ending.expect("token_expiring"), json!({"expires_at": expires_at}));
    ending.parted(4003, true);
    lasting.quiet();
    endless.quiet();
    super::until("the count", || server.closed(CloseReason::Expired) == 1);
    lasting.close();
    endless.close();
    server.rest();
}

/// For as long a token is good after its end, whether it comes then or was there before; the grace period, which is for
/// refreshing, comes on top.
#[test]
fn leeway_is_for_clocks_that_differ() {
    let server = Server::start(&format!("auth: {{secret: '{SECRET}', leeway: 1h, expiry_grace: 0s}}"));
    let mut client = server.connect();
    let expires_at = now_s() - 60;
    accepted(&mut client, &token(json!({"sub": "alice", "exp": expires_at, "nbf": now_s() + 60})));
    assert_eq!(client.expect("token_expiring"), json!({"expires_at": expires_at}));
    std::thread::sleep(Duration::from_millis(50));
    client.subscribe("t");
    turned_away(&server, &token(json!({"sub": "alice", "exp": now_s() - 7200})), "expired");
    client.close();
    server.rest();
}
