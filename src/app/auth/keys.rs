//! Keys as they are configured, and what can be told of them before the first token comes.
//! Law: a key is checked against its one algorithm when the server starts; the text of a public key is never a secret.

use std::fmt;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation};
use serde::Serialize;
use thiserror::Error;

use super::jwk::{JwkError, rsa_key};

/// Most keys, since a token without a key id may have to be tried on all of them.
pub const KEYS_MAX: usize = 16;

/// One key: for verifying the secret or the public key, for making tokens the secret or the private key.
#[derive(Clone, Debug)]
pub struct KeySettings {
    /// The one algorithm of this key.
    pub algorithm: Algorithm,
    /// The key itself.
    pub key: KeyMaterial,
    /// The `kid` that picks this key.
    pub id: Option<String>,
}

/// A key as it is configured.
#[derive(Clone)]
pub enum KeyMaterial {
    /// Shared secret of HS256, HS384 and HS512. RFC 7518 §3.2 wants at least 32, 48 or 64 bytes.
    Secret(Vec<u8>),
    /// PEM text of an RSA (PKCS#1 or PKCS#8, at least 2048 bits), EC or Ed25519 key (PKCS#8).
    Pem(Vec<u8>),
}

/// Why a configured key or set of keys cannot be used. Of one key the text says it as of the file or the secret that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the text says it")]
pub enum AuthSetupError {
    #[error("no key to verify tokens with")]
    NoKeys,
    #[error("more than {KEYS_MAX} keys")]
    TooManyKeys,
    #[error("two keys have the same id and algorithm; write another `id` for one of them, or remove it")]
    SameId,
    #[error("is empty; write 32 random bytes or more")]
    EmptySecret,
    #[error("is the text of a PEM key, and a public key as a secret would let everyone sign; name its file instead")]
    SecretIsPem,
    #[error("is a secret, and {0:?} needs a PEM key; write HS256, HS384 or HS512")]
    NeedsPem(Algorithm),
    #[error("is a PEM key, and {0:?} needs a secret; write its algorithm, such as RS256, ES256 or EdDSA")]
    NeedsSecret(Algorithm),
    #[error(
        "holds no public key in PEM form that {0:?} can use; write the `algorithm` of this key, or the file of another"
    )]
    WrongKey(Algorithm),
    #[error("holds a private key, and verifying needs the public one; make it with `openssl pkey -in FILE -pubout`")]
    PrivateKey,
    #[error("holds an RSA key shorter than 2048 bits or longer than 8192; ask its issuer for another")]
    RsaSize,
}

/// Why a token could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the text says it")]
pub enum MakeTokenError {
    #[error("cannot sign with this key: it is a secret, and {0:?} needs a private key in PEM form")]
    NeedsPem(Algorithm),
    #[error("cannot sign with this key: it is a PEM key, and {0:?} needs a secret")]
    NeedsSecret(Algorithm),
    #[error("cannot sign with this key: it is a public one, and signing needs the private one")]
    PublicKey,
    #[error(
        "cannot sign with this key: it is no private key in PEM form that {0:?} can use; name its own algorithm, and write EC \
         and Ed25519 keys as PKCS#8 (`openssl pkey -in FILE -out NEW`)"
    )]
    WrongKey(Algorithm),
    #[error("these claims cannot be a token: {0}")]
    Claims(jsonwebtoken::errors::Error),
}

/// Signs `claims` with `key`, whose material is the secret or the PEM text of the private key.
///
/// # Errors
/// The key does not fit its algorithm, or `claims` cannot be JSON.
pub fn make_token<C: Serialize>(claims: &C, key: &KeySettings) -> Result<String, MakeTokenError> {
    let algorithm = key.algorithm;
    let wrong_key = |_| match &key.key {
        KeyMaterial::Pem(pem) if pem_label(pem).is_some_and(|label| label.ends_with("PUBLIC KEY")) => {
            MakeTokenError::PublicKey
        }
        _ => MakeTokenError::WrongKey(algorithm),
    };
    let signing_key = match (&key.key, algorithm.family()) {
        (KeyMaterial::Secret(secret), AlgorithmFamily::Hmac) => Ok(EncodingKey::from_secret(secret)),
        (KeyMaterial::Secret(_), _) => return Err(MakeTokenError::NeedsPem(algorithm)),
        (KeyMaterial::Pem(_), AlgorithmFamily::Hmac) => return Err(MakeTokenError::NeedsSecret(algorithm)),
        (KeyMaterial::Pem(pem), AlgorithmFamily::Rsa) => EncodingKey::from_rsa_pem(pem),
        (KeyMaterial::Pem(pem), AlgorithmFamily::Ec) => EncodingKey::from_ec_pem(pem),
        (KeyMaterial::Pem(pem), AlgorithmFamily::Ed) => EncodingKey::from_ed_pem(pem),
    }
    .map_err(wrong_key)?;
    let header = Header { kid: key.id.clone(), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &signing_key).map_err(|error| match error.kind() {
        ErrorKind::Json(_) => MakeTokenError::Claims(error),
        _ => wrong_key(error),
    })
}

/// Keys of one issuer, ready to verify with.
#[derive(Debug)]
pub struct KeySet(Vec<Key>);

impl KeySet {
    /// Prepares configured keys.
    ///
    /// # Errors
    /// A key does not fit its algorithm, or there are none, too many or two with the same name.
    pub fn new(settings: &[KeySettings]) -> Result<Self, AuthSetupError> {
        match settings.len() {
            0 => return Err(AuthSetupError::NoKeys),
            1..=KEYS_MAX => {}
            _ => return Err(AuthSetupError::TooManyKeys),
        }
        let mut keys: Vec<Key> = Vec::with_capacity(settings.len());
        for settings in settings {
            let key = Key::new(settings)?;
            if key.id.is_some() && keys.iter().any(|other| other.is_the_same_as(&key)) {
                return Err(AuthSetupError::SameId);
            }
            keys.push(key);
        }
        Ok(Self(keys))
    }

    pub(super) fn of_keys(keys: Vec<Key>) -> Self {
        Self(keys)
    }

    pub(super) fn keys(&self) -> &[Key] {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A key, ready to verify with.
#[derive(Debug)]
pub(super) struct Key {
    pub id: Option<String>,
    pub key: DecodingKey,
    /// Names the key's algorithm alone, and leaves the claims to us: the library would ask the system for the time.
    pub validation: Validation,
}

impl Key {
    pub(super) fn new(settings: &KeySettings) -> Result<Self, AuthSetupError> {
        let algorithm = settings.algorithm;
        let key = match (&settings.key, algorithm.family()) {
            (KeyMaterial::Secret(secret), AlgorithmFamily::Hmac) => from_secret(secret)?,
            (KeyMaterial::Secret(_), _) => return Err(AuthSetupError::NeedsPem(algorithm)),
            (KeyMaterial::Pem(_), AlgorithmFamily::Hmac) => return Err(AuthSetupError::NeedsSecret(algorithm)),
            (KeyMaterial::Pem(pem), _) => from_pem(pem, algorithm)?,
        };
        Ok(Self::pinned(settings.id.clone(), key, algorithm))
    }

    /// A key that has been checked, for tokens of this algorithm and no other.
    pub(super) fn pinned(id: Option<String>, key: DecodingKey, algorithm: Algorithm) -> Self {
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        Self { id, key, validation }
    }

    pub(super) fn is_for(&self, algorithm: Algorithm) -> bool {
        self.validation.algorithms.contains(&algorithm)
    }

    /// Whether a token could mean both.
    pub(super) fn is_the_same_as(&self, other: &Self) -> bool {
        self.id == other.id && self.validation.algorithms == other.validation.algorithms
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret(_) => "Secret(..)",
            Self::Pem(_) => "Pem(..)",
        })
    }
}

fn from_secret(secret: &[u8]) -> Result<DecodingKey, AuthSetupError> {
    if secret.is_empty() {
        return Err(AuthSetupError::EmptySecret);
    }
    if secret.trim_ascii_start().starts_with(b"-----BEGIN") {
        return Err(AuthSetupError::SecretIsPem);
    }
    Ok(DecodingKey::from_secret(secret))
}

/// A public key. The library takes the first key-like part of whatever it is given and leaves size and curve to the
/// first token, so both are checked here.
fn from_pem(pem: &[u8], algorithm: Algorithm) -> Result<DecodingKey, AuthSetupError> {
    match pem_label(pem) {
        Some("PUBLIC KEY" | "RSA PUBLIC KEY") => {}
        Some(label) if label.ends_with("PRIVATE KEY") => return Err(AuthSetupError::PrivateKey),
        _ => return Err(AuthSetupError::WrongKey(algorithm)),
    }
    let key = match algorithm.family() {
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem),
        _ => DecodingKey::from_ed_pem(pem),
    };
    let key = key.map_err(|_| AuthSetupError::WrongKey(algorithm))?;
    let length = key.try_get_as_bytes().map_or(0, <[u8]>::len);
    match algorithm {
        Algorithm::ES256 if length != 1 + 2 * 32 => Err(AuthSetupError::WrongKey(algorithm)), // a point, uncompressed
        Algorithm::ES384 if length != 1 + 2 * 48 => Err(AuthSetupError::WrongKey(algorithm)),
        _ if algorithm.family() == AlgorithmFamily::Rsa => match check_rsa(&key) {
            Ok(()) => Ok(key),
            Err(JwkError::Size) => Err(AuthSetupError::RsaSize),
            Err(_) => Err(AuthSetupError::WrongKey(algorithm)),
        },
        _ => Ok(key),
    }
}

/// What would be wrong with an RSA key if its issuer had published it.
fn check_rsa(key: &DecodingKey) -> Result<(), JwkError> {
    let jwk = Jwk::from_decoding_key(key, None).ok().and_then(|jwk| serde_json::to_value(jwk).ok());
    rsa_key(&jwk.ok_or(JwkError::Numbers)?).map(drop)
}

/// What the first part of a PEM text says that it is.
fn pem_label(pem: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(pem).ok()?.split_once("-----BEGIN ")?.1;
    Some(text.split_once("-----")?.0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{AuthSettings, Authenticator};
    use super::*;
    use serde_json::json;

    pub(in super::super) const SECRET: &[u8] = b"a secret of at least sixty-four bytes, as RFC 7518 wants for HS512";

    /// A key of `tests/keys`.
    pub(in super::super) fn pem(name: &str) -> KeyMaterial {
        let path = format!("{}/tests/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"));
        KeyMaterial::Pem(std::fs::read(path).unwrap())
    }

    pub(in super::super) fn secret() -> KeyMaterial {
        KeyMaterial::Secret(SECRET.to_vec())
    }

    pub(in super::super) fn key(algorithm: Algorithm, key: KeyMaterial) -> KeySettings {
        KeySettings { algorithm, key, id: None }
    }

    pub(in super::super) fn named(id: &str, key: KeySettings) -> KeySettings {
        KeySettings { id: Some(id.into()), ..key }
    }

    pub(in super::super) fn hs256() -> KeySettings {
        key(Algorithm::HS256, secret())
    }

    #[track_caller]
    fn check(keys: &[KeySettings], expected: AuthSetupError) {
        let settings = AuthSettings { keys: keys.to_vec(), ..AuthSettings::default() };
        assert_eq!(Authenticator::new(&settings).map(drop), Err(expected), "{keys:?}");
    }

    #[test]
    fn unfit_keys() {
        use Algorithm::*;
        check(&[], AuthSetupError::NoKeys);
        check(&vec![hs256(); KEYS_MAX + 1], AuthSetupError::TooManyKeys);
        check(&[named("a", hs256()), named("a", hs256())], AuthSetupError::SameId);
        check(&[key(HS256, KeyMaterial::Secret(vec![]))], AuthSetupError::EmptySecret);
        check(&[key(HS256, KeyMaterial::Secret(b"\n-----BEGIN PUBLIC KEY".to_vec()))], AuthSetupError::SecretIsPem);
        check(&[key(HS256, pem("rsa_public"))], AuthSetupError::NeedsSecret(HS256));
        check(&[key(RS256, secret())], AuthSetupError::NeedsPem(RS256));
        check(&[key(RS256, pem("rsa_private"))], AuthSetupError::PrivateKey);
        check(&[key(RS256, pem("rsa_short_public"))], AuthSetupError::RsaSize);
        check(&[key(RS256, pem("es256_public"))], AuthSetupError::WrongKey(RS256));
        check(&[key(ES256, pem("es384_public"))], AuthSetupError::WrongKey(ES256));
        check(&[key(ES384, pem("es256_public"))], AuthSetupError::WrongKey(ES384));
        check(&[key(EdDSA, pem("es256_public"))], AuthSetupError::WrongKey(EdDSA));
        check(&[key(RS256, KeyMaterial::Pem(b"no PEM".to_vec()))], AuthSetupError::WrongKey(RS256));
    }

    #[test]
    fn signing_needs_the_private_key() {
        use Algorithm::*;
        let check = |signer: KeySettings, why: MakeTokenError| {
            assert_eq!(make_token(&json!({}), &signer), Err(why), "{signer:?}");
        };
        check(key(RS256, pem("rsa_public")), MakeTokenError::PublicKey);
        check(key(ES256, pem("es256_public")), MakeTokenError::PublicKey);
        check(key(RS256, secret()), MakeTokenError::NeedsPem(RS256));
        check(key(HS256, pem("rsa_private")), MakeTokenError::NeedsSecret(HS256));
        check(key(RS256, pem("es256_private")), MakeTokenError::WrongKey(RS256));
        check(key(ES384, pem("es256_private")), MakeTokenError::WrongKey(ES384));
        check(key(EdDSA, pem("es256_private")), MakeTokenError::WrongKey(EdDSA));
        check(key(RS256, KeyMaterial::Pem(b"no PEM".to_vec())), MakeTokenError::WrongKey(RS256));
        let sec1 = "-----BEGIN EC PRIVATE KEY-----\nMHc=\n-----END EC PRIVATE KEY-----\n";
        check(key(ES256, KeyMaterial::Pem(sec1.into())), MakeTokenError::WrongKey(ES256));
    }

    #[test]
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", hs256().key), "Secret(..)");
        assert_eq!(format!("{:?}", pem("rsa_private")), "Pem(..)");
    }
}
