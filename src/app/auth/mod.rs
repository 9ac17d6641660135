//! Who a client is: JSON Web Tokens (RFC 7519), verified against the configured keys and an argument for the time.
//! Law: a key verifies tokens of its one algorithm and no other; no error text holds any part of a token or a key.

mod credential;
mod jwk;
mod keys;
mod wish;

use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use thiserror::Error;

use self::keys::Key;
use crate::conn::Identity;
use crate::conn::permissions::{Permissions, PermissionsError};

pub use self::credential::{Carrier, Carriers, TwoTokens};
pub use self::jwk::{JwkError, JwksError, SET_KEYS_MAX, SkippedKey};
pub use self::keys::{AuthSetupError, KEYS_MAX, KeyMaterial, KeySet, KeySettings, MakeTokenError, make_token};
pub use self::wish::Wish;
pub use crate::id::USER_ID_LENGTH_MAX;
pub use jsonwebtoken::Algorithm;

/// Longest token that is looked at, in bytes.
pub const TOKEN_LENGTH_MAX: usize = 16 << 10;
/// Most keys that one token is tried on.
pub const TRIES_MAX: usize = KEYS_MAX;

/// What tokens are measured against.
#[derive(Clone, Debug, Default)]
pub struct AuthSettings {
    /// Keys that tokens may be signed with; at least one, at most [`KEYS_MAX`].
    pub keys: Vec<KeySettings>,
    /// What the claim `iss` must be, if anything.
    pub issuer: Option<String>,
    /// What the claim `aud` must be or hold, one of them. Without any, a token that has an audience is refused, because it was
    /// made for someone else (RFC 7519 §4.1.3).
    pub audiences: Vec<String>,
    /// How far the clocks of server and issuer may be apart, to the millisecond.
    pub leeway: Duration,
}

/// What a token said, all of it verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Who, until when, and what is allowed; the part a connection keeps.
    pub identity: Identity,
    /// The claim `max_connections`: at most so many connections of this user at a time.
    pub max_connections: Option<u32>,
}

/// Why a token is refused. The text is fit for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the text says it")]
pub enum AuthError {
    #[error("token longer than {TOKEN_LENGTH_MAX} bytes")]
    TooLong,
    #[error("not a JSON Web Token, or its algorithm is not supported")]
    Malformed,
    #[error("token requires an extension that is not supported")]
    Critical,
    #[error("token signed with an unknown key")]
    UnknownKey,
    #[error("token could be signed with any of more than {TRIES_MAX} keys; one that names its key (`kid`) is needed")]
    TooManyKeys,
    #[error("algorithm {0:?} is not allowed for this key")]
    Algorithm(Algorithm),
    #[error("bad signature")]
    Signature,
    #[error("token expired")]
    Expired,
    #[error("token not valid yet")]
    NotYetValid,
    #[error("token from another issuer")]
    Issuer,
    #[error("token for another audience")]
    Audience,
    #[error("claim `{claim}` must be {expected}")]
    Claim { claim: &'static str, expected: &'static str },
    #[error("claim {0}")]
    Permissions(PermissionsError),
}

/// Keys, and whose tokens they sign: a key is good for the tokens of its issuer alone.
#[derive(Clone, Debug)]
pub struct Trusted {
    /// What the claim `iss` must be, if anything.
    pub issuer: Option<String>,
    /// What the claim `aud` must be or hold; as in [`AuthSettings::audiences`].
    pub audiences: Vec<String>,
    /// The keys.
    pub keys: Arc<KeySet>,
}

/// Verifies tokens.
#[derive(Debug)]
pub struct Authenticator {
    trusted: Vec<Trusted>,
    leeway_ms: u64,
    /// Whom to tell of a key that nobody has.
    wishes: Vec<Arc<Wish>>,
}

impl Authenticator {
    /// Prepares the keys.
    ///
    /// # Errors
    /// A key does not fit its algorithm, or there are none, too many or two with the same name.
    pub fn new(settings: &AuthSettings) -> Result<Self, AuthSetupError> {
        let keys = Arc::new(KeySet::new(&settings.keys)?);
        let (issuer, audiences) = (settings.issuer.clone(), settings.audiences.clone());
        Ok(Self::trusting(vec![Trusted { issuer, audiences, keys }], settings.leeway, Vec::new()))
    }

    /// Verifies tokens of several issuers. A token whose `kid` no key has raises `wishes`.
    pub fn trusting(trusted: Vec<Trusted>, leeway: Duration, wishes: Vec<Arc<Wish>>) -> Self {
        Self { trusted, leeway_ms: leeway.as_millis().try_into().unwrap_or(u64::MAX), wishes }
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.trusted.iter().map(|trusted| trusted.keys.len()).sum()
    }

    /// Verifies `token` at the time `unix_ms` (Unix milliseconds).
    ///
    /// The token's `kid` picks the keys of that id; keys without an id stand in for ids that no key has. Without a `kid`
    /// any key of the token's algorithm will do, of at most [`TRIES_MAX`]. `sub` is required; `exp` is not, but holds when
    /// it is there, as `nbf` does. `iss` and `aud` are what the key that signed the token is trusted with; a key that is
    /// there for several issuers or audiences is trusted with each.
    ///
    /// # Errors
    /// The first thing wrong with the token; the signature is checked before any claim is.
    pub fn verify(&self, token: &str, unix_ms: u64) -> Result<Claims, AuthError> {
        if token.len() > TOKEN_LENGTH_MAX {
            return Err(AuthError::TooLong);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::Malformed)?;
        if header.crit.is_some() {
            return Err(AuthError::Critical); // RFC 7515 §4.1.11: not understood, so not accepted
        }
        let kid = header.kid.as_deref();
        let is_known = kid.is_some_and(|kid| self.has(kid));
        let mut refusal = AuthError::UnknownKey;
        let mut misdirected = None;
        let mut tries = 0;
        for (trusted, key) in self.candidates(kid.filter(|_| is_known), kid.is_some()) {
            if !key.is_for(header.alg) {
                if refusal == AuthError::UnknownKey {
                    refusal = AuthError::Algorithm(header.alg);
                }
                continue;
            }
            tries += 1;
            if tries > TRIES_MAX {
                return Err(AuthError::TooManyKeys);
            }
            match jsonwebtoken::decode(token, &key.key, &key.validation) {
                Ok(verified) => match self.check(trusted, verified.claims, unix_ms) {
                    // The same key may be there for another issuer or audience too. Who fits the issuer comes nearest.
                    Err(error @ (AuthError::Issuer | AuthError::Audience)) => {
                        misdirected = misdirected.filter(|nearest| *nearest == AuthError::Audience).or(Some(error));
                    }
                    verdict => return verdict,
                },
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => refusal = AuthError::Signature,
                Err(_) => return Err(AuthError::Malformed),
            }
        }
        if let Some(error) = misdirected {
            return Err(error); // its key is known, so no other one is wished for
        }
        if kid.is_some() && !is_known && !self.wishes.is_empty() {
            self.wishes.iter().for_each(|wish| wish.raise());
            return Err(AuthError::UnknownKey);
        }
        Err(refusal)
    }

    fn has(&self, kid: &str) -> bool {
        self.trusted.iter().any(|trusted| trusted.keys.keys().iter().any(|key| key.id.as_deref() == Some(kid)))
    }

    /// The keys that a token may mean: those of the id that is `known`, those without an id if it names another one, and
    /// all if it names none.
    fn candidates(&self, known: Option<&str>, named: bool) -> impl Iterator<Item = (&Trusted, &Key)> {
        let all = self.trusted.iter().flat_map(|trusted| trusted.keys.keys().iter().map(move |key| (trusted, key)));
        all.filter(move |(_, key)| match known {
            Some(_) => key.id.as_deref() == known,
            None => !named || key.id.is_none(),
        })
    }

    fn check(&self, trusted: &Trusted, claims: RawClaims, unix_ms: u64) -> Result<Claims, AuthError> {
        let mut expires_at = None;
        if let Some(exp) = &claims.exp {
            let exp_s = as_seconds(exp).ok_or(AuthError::Claim { claim: "exp", expected: "a number of seconds" })?;
            if unix_ms >= exp_s.saturating_mul(1000).saturating_add(self.leeway_ms) {
                return Err(AuthError::Expired);
            }
            expires_at = Some(NonZeroU64::new(exp_s).ok_or(AuthError::Expired)?);
        }
        if let Some(nbf) = &claims.nbf {
            let nbf_s = as_seconds(nbf).ok_or(AuthError::Claim { claim: "nbf", expected: "a number of seconds" })?;
            if unix_ms.saturating_add(self.leeway_ms) < nbf_s.saturating_mul(1000) {
                return Err(AuthError::NotYetValid);
            }
        }
        if let Some(issuer) = &trusted.issuer
            && claims.iss.as_ref().and_then(Value::as_str) != Some(issuer)
        {
            return Err(AuthError::Issuer);
        }
        let is_ours = |aud: &Value| trusted.audiences.iter().any(|ours| aud.as_str() == Some(ours));
        let is_for_us = match &claims.aud {
            None => trusted.audiences.is_empty(),
            Some(Value::Array(all)) => all.iter().any(is_ours),
            Some(aud) => is_ours(aud),
        };
        if !is_for_us {
            return Err(AuthError::Audience);
        }
        let user_id = match claims.sub {
            Some(Value::String(sub)) if (1..=USER_ID_LENGTH_MAX).contains(&sub.len()) => sub.as_str().into(),
            _ => return Err(AuthError::Claim { claim: "sub", expected: "a string of 1 to 255 bytes" }),
        };
        let max_connections = match claims.max_connections {
            None => None,
            Some(most) => match most.as_u64() {
                Some(most @ 1..) => Some(u32::try_from(most).unwrap_or(u32::MAX)),
                _ => return Err(AuthError::Claim { claim: "max_connections", expected: "a positive integer" }),
            },
        };
        let permissions = match claims.topics {
            None => None,
            Some(topics) => Some(Rc::new(Permissions::from_claim(&topics).map_err(AuthError::Permissions)?)),
        };
        Ok(Claims { identity: Identity { user_id, expires_at, permissions }, max_connections })
    }
}

/// The claims as they came; each is judged by itself, so that an error can name it. A claim that is `null` is there, and
/// wrong: to take it for absent would turn it into "no end" or "every topic".
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawClaims {
    #[serde(deserialize_with = "present")]
    sub: Option<Value>,
    #[serde(deserialize_with = "present")]
    exp: Option<Value>,
    #[serde(deserialize_with = "present")]
    nbf: Option<Value>,
    #[serde(deserialize_with = "present")]
    iss: Option<Value>,
    #[serde(deserialize_with = "present")]
    aud: Option<Value>,
    #[serde(deserialize_with = "present")]
    topics: Option<Value>,
    #[serde(deserialize_with = "present")]
    max_connections: Option<Value>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// A NumericDate (RFC 7519 §2) in whole seconds; what lies before 1970 is 1970, and fractions are dropped.
fn as_seconds(date: &Value) -> Option<u64> {
    date.as_u64().or_else(|| date.as_f64().map(|seconds| seconds as u64))
}

#[cfg(test)]
mod tests {
    use super::keys::tests::{SECRET, hs256, key, named, pem, secret};
    use super::*;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;
    use std::slice::from_ref;

    const NOW_S: u64 = 1_700_000_000;

    fn settings(keys: &[KeySettings]) -> AuthSettings {
        AuthSettings { keys: keys.to_vec(), ..AuthSettings::default() }
    }

    fn verify(settings: &AuthSettings, token: &str) -> Result<Claims, AuthError> {
        Authenticator::new(settings).unwrap().verify(token, NOW_S * 1000)
    }

    /// Signs for an identity with `signer` and verifies with `keys`.
    #[track_caller]
    fn check_key(signer: KeySettings, keys: &[KeySettings], expected: Result<(), AuthError>) {
        let token = make_token(&json!({"sub": "ann"}), &signer).unwrap();
        assert_eq!(verify(&settings(keys), &token).map(drop), expected, "{signer:?} {keys:?}");
    }

    #[test]
    fn every_algorithm() {
        use Algorithm::*;
        let another = KeyMaterial::Secret(b"another".to_vec());
        let families: [(&[Algorithm], _, _, _); 5] = [
            (&[HS256, HS384, HS512], secret(), secret(), another),
            (
                &[RS256, RS384, RS512, PS256, PS384, PS512],
                pem("rsa_private"),
                pem("rsa_public"),
                pem("rsa_other_public"),
            ),
            (&[ES256], pem("es256_private"), pem("es256_public"), pem("es256_other_public")),
            (&[ES384], pem("es384_private"), pem("es384_public"), pem("es384_other_public")),
            (&[EdDSA], pem("ed25519_private"), pem("ed25519_public"), pem("ed25519_other_public")),
        ];
        for (algorithms, private, public, other) in families {
            for algorithm in algorithms {
                let signer = key(*algorithm, private.clone());
                check_key(signer.clone(), &[key(*algorithm, public.clone())], Ok(()));
                check_key(signer.clone(), &[key(*algorithm, other.clone())], Err(AuthError::Signature));
                for pinned in algorithms.iter().filter(|pinned| *pinned != algorithm) {
                    let error = AuthError::Algorithm(*algorithm);
                    check_key(signer.clone(), &[key(*pinned, public.clone())], Err(error));
                }
            }
        }
        check_key(key(RS256, pem("rsa_private")), &[key(RS256, pem("rsa_public_pkcs1"))], Ok(()));
    }

    #[test]
    fn a_public_key_is_no_secret() {
        let KeyMaterial::Pem(public) = pem("rsa_public") else { unreachable!() };
        let forger = key(Algorithm::HS256, KeyMaterial::Secret(public));
        check_key(forger, &[key(Algorithm::RS256, pem("rsa_public"))], Err(AuthError::Algorithm(Algorithm::HS256)));
    }

    #[test]
    fn key_ids() {
        let [old, new] =
            [named("old", key(Algorithm::HS256, KeyMaterial::Secret(b"another".to_vec()))), named("new", hs256())];
        let both = [old.clone(), new.clone()];
        check_key(new.clone(), &both, Ok(()));
        check_key(hs256(), &both, Ok(())); // no kid: all are tried
        check_key(hs256(), &[KeySettings { id: None, ..old.clone() }, hs256()], Ok(())); // as many without an id as one likes
        check_key(named("old", hs256()), &both, Err(AuthError::Signature));
        check_key(named("gone", hs256()), &both, Err(AuthError::UnknownKey));
        check_key(named("gone", hs256()), &[old.clone(), hs256()], Ok(())); // the key without an id stands in
        check_key(named("gone", old.clone()), &[old, hs256()], Err(AuthError::Signature)); // and is what it failed on
        check_key(new, &[hs256()], Ok(()));
    }

    fn trusting(trusted: &[(&str, &[KeySettings])], wishes: &[Arc<Wish>]) -> Authenticator {
        let trusted = trusted.iter().map(|(issuer, keys)| Trusted {
            issuer: (!issuer.is_empty()).then(|| (*issuer).to_owned()),
            audiences: Vec::new(),
            keys: Arc::new(KeySet::new(keys).unwrap()),
        });
        Authenticator::trusting(trusted.collect(), Duration::ZERO, wishes.to_vec())
    }

    #[test]
    fn a_key_speaks_for_its_issuer_alone() {
        let of = |secret: &str| named("1", key(Algorithm::HS256, KeyMaterial::Secret(secret.into())));
        let (north, south) = (of("north"), of("south")); // both call their key `1`
        let authenticator = trusting(&[("n", from_ref(&north)), ("s", from_ref(&south))], &[]);
        let check = |issuer: &str, signer: &KeySettings, expected: Result<(), AuthError>| {
            let token = make_token(&json!({"sub": "ann", "iss": issuer}), signer).unwrap();
            assert_eq!(authenticator.verify(&token, NOW_S * 1000).map(drop), expected, "{issuer} {signer:?}");
        };
        check("n", &north, Ok(()));
        check("s", &south, Ok(()));
        check("n", &south, Err(AuthError::Issuer));
        check("s", &north, Err(AuthError::Issuer));
        check("n", &of("mallory"), Err(AuthError::Signature));
        check("n", &KeySettings { id: None, ..north.clone() }, Ok(()));
        check("n", &named("2", north.clone()), Err(AuthError::UnknownKey));
    }

    #[test]
    fn issuers_and_audiences_may_share_a_key() {
        let set = super::jwk::tests::set(&[super::jwk::tests::jwk("es256_public", Some("1"))]);
        let shared = Arc::new(KeySet::from_jwks(&set, Algorithm::ES256).unwrap().0);
        let other = Arc::new(KeySet::new(&[named("1", key(Algorithm::ES256, pem("es256_other_public")))]).unwrap());
        let of = |issuer: &str, audience: &str, keys: &Arc<KeySet>| Trusted {
            issuer: Some(issuer.to_owned()),
            audiences: if audience.is_empty() { Vec::new() } else { audience.split(' ').map(str::to_owned).collect() },
            keys: keys.clone(),
        };
        let check = |trusted: &[Trusted], issuer: &str, audience: &str, expected: Result<(), AuthError>| {
            let mut claims = json!({"sub": "ann", "iss": issuer});
            if !audience.is_empty() {
                claims["aud"] = audience.into();
            }
            let signer = key(Algorithm::ES256, pem("es256_private"));
            for signer in [named("1", signer.clone()), signer] {
                let token = make_token(&claims, &signer).unwrap();
                let authenticator = Authenticator::trusting(trusted.to_vec(), Duration::ZERO, Vec::new());
                let verdict = authenticator.verify(&token, NOW_S * 1000).map(drop);
                assert_eq!(verdict, expected, "{issuer} {audience} {signer:?}");
            }
        };
        let issuers = [of("n", "", &shared), of("s", "", &shared), of("w", "", &other)];
        check(&issuers, "n", "", Ok(()));
        check(&issuers, "s", "", Ok(()));
        check(&issuers, "w", "", Err(AuthError::Issuer));
        check(&issuers, "e", "", Err(AuthError::Issuer));
        check(&issuers, "s", "tides", Err(AuthError::Audience));
        let audiences = [of("n", "tides", &shared), of("n", "moons", &shared), of("s", "moons", &shared)];
        check(&audiences, "n", "tides", Ok(()));
        check(&audiences, "n", "moons", Ok(()));
        check(&audiences, "s", "moons", Ok(()));
        check(&audiences, "n", "suns", Err(AuthError::Audience));
        check(&audiences, "s", "tides", Err(AuthError::Audience));
        check(&audiences, "e", "tides", Err(AuthError::Issuer));
        let several = [of("n", "tides moons", &shared)];
        check(&several, "n", "tides", Ok(()));
        check(&several, "n", "moons", Ok(()));
        check(&several, "n", "suns", Err(AuthError::Audience));
        check(&several, "n", "", Err(AuthError::Audience));
    }

    #[test]
    fn one_token_is_tried_on_so_many_keys() {
        let of = |n: usize| key(Algorithm::HS256, KeyMaterial::Secret(format!("{n}").into_bytes()));
        let keys: Vec<_> = (0..TRIES_MAX).map(|n| named(&n.to_string(), of(n))).collect();
        let check = |more: usize, signer: KeySettings, expected: Result<(), AuthError>| {
            let others: Vec<_> = (0..more).map(|n| named(&format!("more-{n}"), of(100 + n))).collect();
            let trusted: [(&str, &[KeySettings]); 2] = [("", &keys), ("", &others)];
            let authenticator = trusting(&trusted[..1 + more.min(1)], &[]);
            let token = make_token(&json!({"sub": "ann"}), &signer).unwrap();
            assert_eq!(authenticator.verify(&token, NOW_S * 1000).map(drop), expected);
        };
        check(0, of(TRIES_MAX - 1), Ok(()));
        check(0, of(99), Err(AuthError::Signature));
        check(1, of(0), Ok(()));
        check(1, of(100), Err(AuthError::TooManyKeys));
        check(1, named("more-0", of(100)), Ok(()));
        let cost = format!("| {TRIES_MAX} signatures a token |");
        assert!(include_str!("../../guide/threats.md").contains(&cost), "src/guide/threats.md: {cost}");
    }

    #[test]
    fn a_key_that_nobody_has_is_wished_for() {
        let wish = Arc::new(Wish::default());
        let check_with = |keys: &[KeySettings], signer: KeySettings, raised: bool| {
            let token = make_token(&json!({"sub": "ann"}), &signer).unwrap();
            let verdict = trusting(&[("", keys)], from_ref(&wish)).verify(&token, NOW_S * 1000).map(drop);
            assert_eq!(verdict == Err(AuthError::UnknownKey), raised, "{verdict:?}");
            assert_eq!(wish.lower(), raised);
        };
        let check = |signer: KeySettings, raised: bool| check_with(&[named("a", hs256())], signer, raised);
        let another = || key(Algorithm::HS256, KeyMaterial::Secret(b"another".to_vec()));
        check(named("a", hs256()), false);
        check(named("b", hs256()), true);
        check(named("a", another()), false);
        check(another(), false);
        // One without an id stands in, but is not the one that was meant.
        check_with(&[hs256()], named("b", hs256()), false);
        check_with(&[hs256()], named("b", another()), true);
    }

    /// Keys and where to find them, as the token itself would have it (RFC 8725 §3.10).
    #[test]
    fn a_token_does_not_bring_its_own_key() {
        let public = |name: &str| serde_json::from_value(super::jwk::tests::jwk(name, Some("k"))).unwrap();
        let url = Some("https://example.com/keys".to_owned());
        let header = Header { jwk: Some(public("rsa_other_public")), ..Header::new(Algorithm::RS256) };
        let header = Header { jku: url.clone(), x5u: url, kid: Some("../../dev/null' OR 1=1".into()), ..header };
        let KeyMaterial::Pem(forged) = pem("rsa_private") else { unreachable!() };
        let signer = EncodingKey::from_rsa_pem(&forged).unwrap();
        let token = jsonwebtoken::encode(&header, &json!({"sub": "ann"}), &signer).unwrap();
        let text = super::jwk::tests::set(&[super::jwk::tests::jwk("rsa_other_public", Some("k"))]);
        let keys = Arc::new(KeySet::from_jwks(&text, Algorithm::RS256).unwrap().0);
        let trusted = vec![Trusted { issuer: None, audiences: Vec::new(), keys }];
        let authenticator = Authenticator::trusting(trusted, Duration::ZERO, Vec::new());
        assert_eq!(authenticator.verify(&token, 0), Err(AuthError::UnknownKey));
    }

    #[test]
    fn claims() {
        let of_ours = AuthSettings {
            issuer: Some("us".into()),
            audiences: vec!["tides".into()],
            leeway: Duration::from_millis(2500),
            ..settings(&[hs256()])
        };
        let check = |claims: Value, expected: Result<(), &str>| {
            let mut all = json!({"sub": "ann", "iss": "us", "aud": "tides"});
            all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
            let verdict = verify(&of_ours, &make_token(&all, &hs256()).unwrap());
            assert_eq!(verdict.map(drop).map_err(|error| error.to_string()), expected.map_err(String::from), "{all}");
        };
        check(json!({}), Ok(()));
        check(json!({"exp": NOW_S + 1, "nbf": NOW_S, "iat": NOW_S, "jti": "x"}), Ok(()));
        check(json!({"exp": NOW_S - 2}), Ok(())); // the leeway
        check(json!({"exp": NOW_S - 3}), Err("token expired"));
        check(json!({"exp": NOW_S as f64 + 0.5}), Ok(()));
        check(json!({"exp": 1e30}), Ok(()));
        check(json!({"exp": u64::MAX}), Ok(()));
        check(json!({"exp": 0}), Err("token expired"));
        check(json!({"exp": -5}), Err("token expired"));
        check(json!({"exp": null}), Err("claim `exp` must be a number of seconds"));
        check(json!({"exp": "never"}), Err("claim `exp` must be a number of seconds"));
        check(json!({"nbf": NOW_S + 2}), Ok(()));
        check(json!({"nbf": NOW_S + 3}), Err("token not valid yet"));
        check(json!({"nbf": []}), Err("claim `nbf` must be a number of seconds"));
        check(json!({"iss": "them"}), Err("token from another issuer"));
        check(json!({"iss": null}), Err("token from another issuer"));
        check(json!({"aud": ["moons", "tides"]}), Ok(()));
        check(json!({"aud": "moons"}), Err("token for another audience"));
        check(json!({"aud": ["moons"]}), Err("token for another audience"));
        check(json!({"aud": null}), Err("token for another audience"));
        check(json!({"sub": ""}), Err("claim `sub` must be a string of 1 to 255 bytes"));
        check(json!({"sub": "x".repeat(255)}), Ok(()));
        check(json!({"sub": "x".repeat(256)}), Err("claim `sub` must be a string of 1 to 255 bytes"));
        check(json!({"sub": 7}), Err("claim `sub` must be a string of 1 to 255 bytes"));
        check(json!({"max_connections": 3}), Ok(()));
        check(json!({"max_connections": 0}), Err("claim `max_connections` must be a positive integer"));
        check(json!({"topics": {"publish": ["a.>"]}}), Ok(()));
        let shape = "claim `topics` must be an object with lists of strings `subscribe` and `publish`";
        check(json!({"topics": null}), Err(shape));
        let part = "claim `topics.publish`: `*` and `>` must be whole segments of a pattern";
        check(json!({"topics": {"publish": ["a.b*"]}}), Err(part));
    }

    /// RFC 7519 §4.1.4 and §4.1.5: not on or after `exp`, and from `nbf` on.
    #[test]
    fn a_token_counts_from_one_instant_to_another() {
        let token = make_token(&json!({"sub": "ann", "nbf": NOW_S, "exp": NOW_S + 10}), &hs256()).unwrap();
        let check = |leeway_ms, after_nbf_ms: i64, expected: Result<(), AuthError>| {
            let settings = AuthSettings { leeway: Duration::from_millis(leeway_ms), ..settings(&[hs256()]) };
            let authenticator = Authenticator::new(&settings).unwrap();
            let verdict = authenticator.verify(&token, (NOW_S * 1000).checked_add_signed(after_nbf_ms).unwrap());
            assert_eq!(verdict.map(drop), expected, "{leeway_ms} ms of leeway, {after_nbf_ms} ms after `nbf`");
        };
        for leeway_ms in [0, 1, 2_500] {
            let early_ms = -(leeway_ms as i64);
            let late_ms = 10_000 - early_ms;
            check(leeway_ms, early_ms - 1, Err(AuthError::NotYetValid));
            check(leeway_ms, early_ms, Ok(()));
            check(leeway_ms, late_ms - 1, Ok(()));
            check(leeway_ms, late_ms, Err(AuthError::Expired));
        }
    }

    #[test]
    fn an_audience_is_for_someone() {
        let token = make_token(&json!({"sub": "ann", "aud": "tides"}), &hs256()).unwrap();
        assert_eq!(verify(&settings(&[hs256()]), &token), Err(AuthError::Audience));
    }

    #[test]
    fn what_is_said_is_kept() {
        let claims = json!({"sub": "ann", "exp": NOW_S + 9, "max_connections": 2, "topics": {"subscribe": ["a.*"]}});
        let Claims { identity, max_connections } =
            verify(&settings(&[hs256()]), &make_token(&claims, &hs256()).unwrap()).unwrap();
        assert_eq!((&*identity.user_id.text(), max_connections), ("ann", Some(2)));
        assert_eq!(identity.expires_at.map(NonZeroU64::get), Some(NOW_S + 9));
        assert!(identity.may_subscribe("a.b") && !identity.may_publish("a.b"));
        let free = verify(&settings(&[hs256()]), &make_token(&json!({"sub": "bob"}), &hs256()).unwrap()).unwrap();
        assert_eq!((free.identity.expires_at, free.max_connections), (None, None));
        assert!(free.identity.may_subscribe("a.b") && free.identity.may_publish("a.b"));
    }

    #[test]
    fn tokens_that_are_none() {
        let check = |token: &str, expected| {
            assert_eq!(verify(&settings(&[hs256()]), token).map(drop), Err(expected), "{token}");
        };
        let good = make_token(&json!({"sub": "ann"}), &hs256()).unwrap();
        let parts: Vec<_> = good.split('.').collect();
        check("", AuthError::Malformed);
        check("a.b", AuthError::Malformed);
        check("a.b.c", AuthError::Malformed);
        check(&format!("{good}."), AuthError::Malformed);
        check(&format!("{good}="), AuthError::Malformed);
        check(&format!("{}.{}.", parts[0], parts[1]), AuthError::Signature);
        check(&format!("{}.{}A.{}", parts[0], parts[1], parts[2]), AuthError::Signature);
        check(&"x".repeat(TOKEN_LENGTH_MAX), AuthError::Malformed);
        check(&"x".repeat(TOKEN_LENGTH_MAX + 1), AuthError::TooLong);
        // {"alg":"none"} and {"alg":"NONE"}, unsigned, as RFC 8725 §2.1 tells of.
        check(&format!("eyJhbGciOiJub25lIn0.{}.", parts[1]), AuthError::Malformed);
        check(&format!("eyJhbGciOiJOT05FIn0.{}.", parts[1]), AuthError::Malformed);
        // Signed well, but the claims are no object.
        check(&make_token(&json!("ann"), &hs256()).unwrap(), AuthError::Malformed);
        let header = Header { crit: Some(vec!["b64".into()]), ..Header::new(Algorithm::HS256) };
        let critical = jsonwebtoken::encode(&header, &json!({"sub": "ann"}), &EncodingKey::from_secret(SECRET));
        check(&critical.unwrap(), AuthError::Critical);
    }
}
