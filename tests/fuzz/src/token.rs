//! Tokens: whatever is sent, nobody gets in without a key; with one, claims are what they must be.

use std::cell::OnceCell;
use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header};
use serde_json::value::RawValue;
use tidewheel::app::auth::{Algorithm, AuthSettings, Authenticator, KeyMaterial, KeySettings, USER_ID_LENGTH_MAX};

use crate::script::Script;

/// Which keys are known; then a token, or claims that are signed here.
pub fn try_bytes(bytes: &[u8]) {
    thread_local! { static KNOWN: OnceCell<[Authenticator; 2]> = const { OnceCell::new() } }
    let mut script = Script(bytes);
    let kind = script.byte();
    let Ok(text) = std::str::from_utf8(script.0) else { return };
    KNOWN.with(|known| {
        let known = known.get_or_init(|| [authenticator(false), authenticator(true)]);
        let authenticator = &known[usize::from(kind & 1)];
        if kind & 2 == 0 {
            // No seed is signed with these keys.
            assert!(authenticator.verify(text, NOW_MS).is_err(), "a forged token: {text}");
        } else if let Some(token) = signed(text) {
            check(authenticator, &token);
        }
    });
}

fn check(authenticator: &Authenticator, token: &str) {
    let Ok(claims) = authenticator.verify(token, NOW_MS) else { return };
    let identity = &claims.identity;
    assert!((1..=USER_ID_LENGTH_MAX).contains(&identity.user_id.text().len()));
    assert_ne!(claims.max_connections, Some(0));
    if let Some(expires_at) = identity.expires_at {
        assert!(expires_at.get().saturating_mul(1000).saturating_add(LEEWAY_MS) > NOW_MS, "expired");
        let later = expires_at.get().saturating_mul(1000).saturating_add(LEEWAY_MS);
        assert!(authenticator.verify(token, later).is_err(), "valid for ever");
    }
    if let Some(permissions) = &identity.permissions {
        let _ = (permissions.may_subscribe("a.b"), permissions.may_publish("a.b")); // either, without a panic
    }
    // One bit of the signature.
    let mut broken = token.as_bytes().to_vec();
    let at = broken.len() - 10;
    broken[at] = if broken[at] == b'A' { b'B' } else { b'A' };
    let broken = String::from_utf8(broken).expect("ASCII");
    assert!(authenticator.verify(&broken, NOW_MS).is_err(), "the signature is not looked at");
}

/// The token of these claims, which are written as they stand; nothing if they are no JSON.
fn signed(claims: &str) -> Option<String> {
    let claims: Box<RawValue> = serde_json::from_str(claims).ok()?;
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET)).ok()
}

fn authenticator(is_strict: bool) -> Authenticator {
    let key = |algorithm, pem: &str| KeySettings { algorithm, key: KeyMaterial::Pem(pem.into()), id: None };
    let secret = KeySettings { algorithm: Algorithm::HS256, key: KeyMaterial::Secret(SECRET.into()), id: None };
    let keys = vec![
        secret,
        key(Algorithm::RS256, include_str!("../../keys/rsa_public.pem")),
        key(Algorithm::ES256, include_str!("../../keys/es256_public.pem")),
        key(Algorithm::EdDSA, include_str!("../../keys/ed25519_public.pem")),
    ];
    let strict = |text: &str| is_strict.then(|| text.to_owned());
    let (issuer, audiences) = (strict("i"), strict("a").into_iter().collect());
    let leeway = Duration::from_millis(LEEWAY_MS);
    Authenticator::new(&AuthSettings { keys, issuer, audiences, leeway }).expect("good keys")
}

const SECRET: &[u8] = b"a secret of thirty-two bytes: known here, and to no seed";
const NOW_MS: u64 = 1_767_225_600_000;
const LEEWAY_MS: u64 = 1_500;
