//! Key sets as issuers publish them: JSON Web Keys (RFC 7517, RFC 7518 §6, RFC 8037).
//! Law: a key is pinned to one algorithm when it is read, and is public: shared secrets and private keys are refused. A
//! key that cannot be used is named and left out; the others are.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use thiserror::Error;

use super::keys::{Key, KeySet};

/// Most keys of one set that can be used.
pub const SET_KEYS_MAX: usize = 64;

/// Why a set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the text says it")]
pub enum JwksError {
    #[error("not a JSON Web Key Set: an object with a list `keys` is expected")]
    Malformed,
    #[error("more than {SET_KEYS_MAX} keys")]
    TooManyKeys,
    #[error("no key that can be used{}", .0.as_ref().map(|first| format!(": {first}")).unwrap_or_default())]
    NoKeys(Option<SkippedKey>),
}

/// A key of a set that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("keys[{index}]{}: {why}", .id.as_ref().map(|id| format!(" `{id}`")).unwrap_or_default())]
pub struct SkippedKey {
    /// Its place in the set.
    pub index: usize,
    /// Its `kid`, without what cannot be printed and cut at 64 characters.
    pub id: Option<String>,
    /// What is wrong with it.
    pub why: JwkError,
}

/// What is wrong with one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the text says it")]
pub enum JwkError {
    #[error("not a JSON Web Key: `{0}` is missing or of another type")]
    Malformed(&'static str),
    #[error("a shared secret has no place in a key set")]
    Secret,
    #[error("a private key has no place in a key set")]
    Private,
    #[error("keys of this type are not supported; RSA, EC and OKP are")]
    Type,
    #[error("this curve is not supported; P-256, P-384 and Ed25519 are")]
    Curve,
    #[error("its algorithm is not supported, or not one of such a key")]
    Algorithm,
    #[error("the RSA key is shorter than 2048 bits or longer than 8192")]
    Size,
    #[error("its numbers are no key of this type")]
    Numbers,
    #[error("another key of the set has the same id and algorithm")]
    SameId,
}

impl KeySet {
    /// Reads a set. RSA keys that name no algorithm are for `rsa_algorithm`. Keys that are not for signatures are passed
    /// over; keys that cannot be used are told.
    ///
    /// # Errors
    /// It is no set, or no key of it can be used.
    pub fn from_jwks(text: &[u8], rsa_algorithm: Algorithm) -> Result<(Self, Vec<SkippedKey>), JwksError> {
        #[derive(Deserialize)]
        struct Set<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let set: Set<'_> = serde_json::from_slice(text).map_err(|_| JwksError::Malformed)?;
        let (mut keys, mut skipped) = (Vec::<Key>::new(), Vec::new());
        for (index, text) in set.keys.iter().enumerate() {
            let jwk: Value = serde_json::from_str(text.get()).map_err(|_| JwksError::Malformed)?;
            let same_id = |key: &Key| key.id.is_some() && keys.iter().any(|other| other.is_the_same_as(key));
            match read_key(&jwk, rsa_algorithm) {
                Ok(None) => {}
                Ok(Some(key)) if same_id(&key) => {
                    skipped.push(SkippedKey { index, id: printable_id(&jwk), why: JwkError::SameId });
                }
                Ok(Some(_)) if keys.len() == SET_KEYS_MAX => return Err(JwksError::TooManyKeys),
                Ok(Some(key)) => keys.push(key),
                Err(why) => skipped.push(SkippedKey { index, id: printable_id(&jwk), why }),
            }
        }
        if keys.is_empty() {
            return Err(JwksError::NoKeys(skipped.into_iter().next()));
        }
        Ok((Self::of_keys(keys), skipped))
    }
}

/// `None`: it is not for signatures, which is no mistake.
fn read_key(jwk: &Value, rsa_algorithm: Algorithm) -> Result<Option<Key>, JwkError> {
    let kind = text(jwk, "kty")?.ok_or(JwkError::Malformed("kty"))?;
    let id = text(jwk, "kid")?.map(str::to_owned);
    if text(jwk, "use")?.is_some_and(|purpose| purpose != "sig") {
        return Ok(None);
    }
    if let Some(operations) = jwk.get("key_ops") {
        let operations = operations.as_array().ok_or(JwkError::Malformed("key_ops"))?;
        if !operations.iter().any(|operation| operation == "verify") {
            return Ok(None);
        }
    }
    if kind == "oct" {
        return Err(JwkError::Secret);
    }
    if jwk.get("d").is_some() {
        return Err(JwkError::Private);
    }
    let named = text(jwk, "alg")?.map(|name| name.parse::<Algorithm>().map_err(|_| JwkError::Algorithm)).transpose()?;
    let (algorithm, key) = match kind {
        "RSA" => {
            let algorithm = named.unwrap_or(rsa_algorithm);
            if algorithm.family() != AlgorithmFamily::Rsa {
                return Err(JwkError::Algorithm);
            }
            (algorithm, rsa_key(jwk)?)
        }
        "EC" => {
            let (algorithm, bytes, verification): (_, _, &'static dyn VerificationAlgorithm) =
                match text(jwk, "crv")?.ok_or(JwkError::Malformed("crv"))? {
                    "P-256" => (Algorithm::ES256, 32, &ECDSA_P256_SHA256_FIXED),
                    "P-384" => (Algorithm::ES384, 48, &ECDSA_P384_SHA384_FIXED),
                    _ => return Err(JwkError::Curve),
                };
            let point = [&[UNCOMPRESSED], &*number(jwk, "x")?, &*number(jwk, "y")?].concat();
            if point.len() != 1 + 2 * bytes || ParsedPublicKey::new(verification, &point).is_err() {
                return Err(JwkError::Numbers);
            }
            (algorithm, DecodingKey::from_ec_der(&point))
        }
        "OKP" => {
            if text(jwk, "crv")?.ok_or(JwkError::Malformed("crv"))? != "Ed25519" {
                return Err(JwkError::Curve);
            }
            let point = number(jwk, "x")?;
            if point.len() != 32 || ParsedPublicKey::new(&ED25519, &point).is_err() {
                return Err(JwkError::Numbers);
            }
            (Algorithm::EdDSA, DecodingKey::from_ed_der(&point))
        }
        _ => return Err(JwkError::Type),
    };
    if named.is_some_and(|named| named != algorithm) {
        return Err(JwkError::Algorithm);
    }
    Ok(Some(Key::pinned(id, key, algorithm)))
}

/// An RSA key of a size and with an exponent that the verifier takes.
pub(super) fn rsa_key(jwk: &Value) -> Result<DecodingKey, JwkError> {
    let (modulus, exponent) = (number(jwk, "n")?, number(jwk, "e")?);
    let modulus: &[u8] = &modulus[modulus.iter().take_while(|&&byte| byte == 0).count()..];
    let bits = 8 * modulus.len() - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
    if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Err(JwkError::Size);
    }
    // Odd, above one and below 2^33, which is what the verifier takes.
    let exponent: &[u8] = &exponent[exponent.iter().take_while(|&&byte| byte == 0).count()..];
    let is_exponent = exponent.len() <= 4 && exponent.last().is_some_and(|last| last % 2 == 1) && exponent != [1];
    if !is_exponent || modulus.last().is_none_or(|last| last % 2 == 0) {
        return Err(JwkError::Numbers);
    }
    Ok(DecodingKey::from_rsa_raw_components(modulus, exponent))
}

/// A member that is text, if it is there.
fn text<'a>(jwk: &'a Value, name: &'static str) -> Result<Option<&'a str>, JwkError> {
    match jwk.get(name) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or(JwkError::Malformed(name)),
    }
}

/// A member that is bytes in base64url.
fn number(jwk: &Value, name: &'static str) -> Result<Vec<u8>, JwkError> {
    let text = text(jwk, name)?.ok_or(JwkError::Malformed(name))?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| JwkError::Malformed(name))
}

/// A key id as the log may show it: whoever publishes the set chose it.
fn printable_id(jwk: &Value) -> Option<String> {
    let id = jwk.get("kid")?.as_str()?;
    Some(id.chars().filter(|c| !c.is_control()).take(64).collect())
}

/// The first byte of a point of which both coordinates follow (SEC 1 §2.3.3).
const UNCOMPRESSED: u8 = 4;
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;

#[cfg(test)]
pub(super) mod tests {
    use super::super::keys::tests::pem;
    use super::super::{AuthError, Authenticator};
    use super::super::{KeyMaterial, KeySettings, Trusted, make_token};
    use super::*;
    use serde_json::json;
    use std::sync::Arc;
    use std::time::Duration;

    /// The public half of a key of `tests/keys`, as its issuer would publish it.
    pub(in super::super) fn jwk(name: &str, kid: Option<&str>) -> Value {
        let KeyMaterial::Pem(text) = pem(name) else { unreachable!() };
        let key = match name {
            rsa if rsa.starts_with("rsa") => DecodingKey::from_rsa_pem(&text),
            ec if ec.starts_with("es") => DecodingKey::from_ec_pem(&text),
            _ => DecodingKey::from_ed_pem(&text),
        };
        let jwk = jsonwebtoken::jwk::Jwk::from_decoding_key(&key.unwrap(), None).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        if let Some(kid) = kid {
            jwk["kid"] = kid.into();
        }
        jwk
    }

    pub(in super::super) fn set(keys: &[Value]) -> Vec<u8> {
        json!({ "keys": keys }).to_string().into_bytes()
    }

    fn with(mut jwk: Value, member: &str, value: Value) -> Value {
        jwk[member] = value;
        jwk
    }

    fn verify(keys: Vec<u8>, signer: &str, algorithm: Algorithm) -> Result<(), AuthError> {
        let key = KeySettings { id: Some("k".into()), algorithm, key: pem(&format!("{signer}_private")) };
        let token = make_token(&json!({"sub": "ann"}), &key).unwrap();
        let keys = Arc::new(KeySet::from_jwks(&keys, Algorithm::RS256).unwrap().0);
        let trusted = vec![Trusted { issuer: None, audiences: Vec::new(), keys }];
        Authenticator::trusting(trusted, Duration::ZERO, Vec::new()).verify(&token, 0).map(drop)
    }

    #[test]
    fn keys_of_every_type_verify() {
        use Algorithm::*;
        let check = |signer: &str, algorithm| {
            let public = || jwk(&format!("{signer}_public"), Some("k"));
            assert_eq!(verify(set(&[public()]), signer, algorithm), Ok(()), "{algorithm:?}");
            let named = with(with(public(), "alg", json!(format!("{algorithm:?}"))), "use", json!("sig"));
            assert_eq!(verify(set(&[named]), signer, algorithm), Ok(()), "{algorithm:?}");
            let other = jwk(&format!("{signer}_other_public"), Some("k"));
            assert_eq!(verify(set(&[other]), signer, algorithm), Err(AuthError::Signature), "{algorithm:?}");
        };
        check("rsa", RS256);
        check("es256", ES256);
        check("es384", ES384);
        check("ed25519", EdDSA);
        let rsa = |alg: &str| set(&[with(jwk("rsa_public", Some("k")), "alg", json!(alg))]);
        for (alg, algorithm) in [("RS512", RS512), ("PS256", PS256)] {
            assert_eq!(verify(rsa(alg), "rsa", algorithm), Ok(()));
            assert_eq!(verify(rsa(alg), "rsa", RS384), Err(AuthError::Algorithm(RS384)));
        }
        // A key that names no algorithm is still for one alone.
        assert_eq!(verify(set(&[jwk("rsa_public", Some("k"))]), "rsa", PS256), Err(AuthError::Algorithm(PS256)));
    }

    #[test]
    fn bad_keys_are_named_and_the_good_ones_used() {
        let good = jwk("es256_public", Some("good"));
        let check = |bad: Value, id: Option<&str>, why: JwkError| {
            let named = SkippedKey { index: 0, id: id.map(String::from), why };
            let (keys, skipped) = KeySet::from_jwks(&set(&[bad.clone(), good.clone()]), Algorithm::RS256).unwrap();
            assert_eq!((keys.len(), skipped), (1, vec![named.clone()]), "{bad}");
            assert_eq!(
                KeySet::from_jwks(&set(&[bad]), Algorithm::RS256).map(drop),
                Err(JwksError::NoKeys(Some(named)))
            );
        };
        let rsa = || jwk("rsa_public", Some("a"));
        let p256 = || jwk("es256_public", Some("a"));
        let ed = || jwk("ed25519_public", Some("a"));
        let some = Some("a");
        check(json!({"kid": "a"}), some, JwkError::Malformed("kty"));
        check(json!("a key"), None, JwkError::Malformed("kty"));
        check(json!({"kty": 7}), None, JwkError::Malformed("kty"));
        check(json!({"kty": "oct", "k": "AAAA", "kid": "a"}), some, JwkError::Secret);
        check(json!({"kty": "AKP", "kid": "a\n\u{7}"}), some, JwkError::Type);
        check(with(rsa(), "d", json!("AQAB")), some, JwkError::Private);
        check(with(rsa(), "kid", json!(7)), None, JwkError::Malformed("kid"));
        check(with(rsa(), "alg", json!("HS256")), some, JwkError::Algorithm);
        check(with(rsa(), "alg", json!("none")), some, JwkError::Algorithm);
        check(with(rsa(), "alg", json!("ES256")), some, JwkError::Algorithm);
        check(with(p256(), "alg", json!("ES384")), some, JwkError::Algorithm);
        check(with(ed(), "alg", json!("RS256")), some, JwkError::Algorithm);
        check(with(rsa(), "n", json!("A A")), some, JwkError::Malformed("n"));
        check(with(rsa(), "e", json!("")), some, JwkError::Numbers);
        check(with(rsa(), "e", json!("AQ")), some, JwkError::Numbers);
        check(with(rsa(), "e", json!("BA")), some, JwkError::Numbers);
        check(with(rsa(), "e", json!("AQAAAAE")), some, JwkError::Numbers); // of five bytes
        let even = URL_SAFE_NO_PAD.encode([0xfe; 256]);
        check(with(rsa(), "n", json!(even)), some, JwkError::Numbers);
        check(jwk("rsa_short_public", some), some, JwkError::Size);
        check(with(rsa(), "n", json!("")), some, JwkError::Size);
        let huge = URL_SAFE_NO_PAD.encode([0xff; 1025]);
        check(with(rsa(), "n", json!(huge)), some, JwkError::Size);
        check(with(p256(), "crv", json!("P-521")), some, JwkError::Curve);
        check(with(p256(), "crv", json!("P-384")), some, JwkError::Numbers);
        check(with(p256(), "x", ed()["x"].clone()), some, JwkError::Numbers); // not on the curve
        check(with(p256(), "y", json!(null)), some, JwkError::Malformed("y"));
        check(with(ed(), "crv", json!("X25519")), some, JwkError::Curve);
        check(with(ed(), "x", json!("AAAA")), some, JwkError::Numbers);
        check(with(rsa(), "key_ops", json!("verify")), some, JwkError::Malformed("key_ops"));
    }

    #[test]
    fn sets() {
        let read = |text: &[u8]| KeySet::from_jwks(text, Algorithm::RS256);
        let check = |keys: &[Value], expected: usize| {
            let (keys, skipped) = read(&set(keys)).unwrap();
            assert_eq!((keys.len(), skipped), (expected, vec![]));
        };
        let p256 = |kid| jwk("es256_public", kid);
        check(&[p256(Some("a")), p256(Some("b")), p256(None), p256(None)], 4);
        check(&[p256(Some("a")), jwk("rsa_public", Some("a"))], 2); // one id, two algorithms
        check(&[p256(Some("a")), with(p256(Some("b")), "use", json!("enc"))], 1);
        check(&[p256(Some("a")), with(p256(Some("b")), "key_ops", json!(["deriveKey"]))], 1);
        check(&[p256(Some("a")), with(p256(Some("b")), "key_ops", json!(["verify"]))], 2);
        check(&[with(jwk("rsa_public", None), "e", json!("_____w"))], 1); // an exponent of four bytes
        let (keys, skipped) = read(&set(&[p256(Some("a")), p256(Some("a"))])).unwrap();
        assert_eq!(
            (keys.len(), skipped[0].to_string().as_str()),
            (1, "keys[1] `a`: another key of the set has the same id and algorithm")
        );
        let many = |count: usize| (0..count).map(|n| jwk("es256_public", Some(&n.to_string()))).collect::<Vec<_>>();
        check(&many(SET_KEYS_MAX), SET_KEYS_MAX);
        assert_eq!(read(&set(&many(SET_KEYS_MAX + 1))).map(drop), Err(JwksError::TooManyKeys));
        assert_eq!(read(&set(&[])).map(drop), Err(JwksError::NoKeys(None)));
        for text in ["", "null", "[]", "{}", r#"{"keys": {}}"#, r#"{"keys": []"#, "<html>", r#"{"kty":"oct","k":"AA"}"#]
        {
            assert_eq!(read(text.as_bytes()).map(drop), Err(JwksError::Malformed), "{text}");
        }
        assert_eq!(read(b"\xff").map(drop), Err(JwksError::Malformed));
    }
}
