//! The keys that tokens are checked with: those of the configuration, those of files, and those that issuers publish.
//! Law: what a source said last and was good stays until it says something else that is good. Keys of files are there from
//! the start or there is no start; those of URLs come when they come.

mod fetch;
mod keep;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use rustls::ClientConfig;

use crate::app::auth::{Algorithm, Authenticator, Claims, KeyMaterial, KeySet, KeySettings, SkippedKey, Trusted, Wish};
use crate::config::keys::{KeySource, Origin};
use crate::config::{self, Auth, Problem, Problems, Secret, file};
pub(super) use keep::keep;

/// All keys of a configuration.
pub(super) struct Keys {
    /// Those that are there from the start.
    fixed: Vec<Trusted>,
    /// The text of each file with a key, by the key of the configuration.
    files: Vec<(&'static str, Vec<u8>)>,
    /// In the order of `auth.jwks`.
    sources: Vec<Arc<Source>>,
}

/// A key set and where it comes from.
pub(super) struct Source {
    settings: KeySource,
    place: Place,
    terms: Terms,
    tls: Option<Arc<ClientConfig>>,
    found: Mutex<Found>,
    wish: Arc<Wish>,
    pub(super) counts: Arc<Counts>,
}

enum Place {
    File(Box<Path>),
    Url(Uri),
}

/// How a source is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Terms {
    lifetime: Duration,
    interval: Duration,
    timeout: Duration,
    bytes_max: usize,
    /// The text of `auth.jwks_ca_file`.
    ca: Option<Vec<u8>>,
}

impl Terms {
    /// For how long a set is fresh whose issuer says `max_age`, or nothing.
    fn fresh(&self, max_age: Option<Duration>) -> Duration {
        let most = self.lifetime.max(MAX_AGE_MAX);
        max_age.unwrap_or(self.lifetime).min(most).max(self.interval)
    }
}

/// What a source said last that was good.
#[derive(Clone, Default)]
struct Found {
    text: Vec<u8>,
    set: Option<Arc<KeySet>>,
}

/// What became of looking at a source.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) outcomes: [AtomicU64; Outcome::ALL.len()],
    /// Unix seconds when it was last good; 0: never.
    pub(super) last_success_s: AtomicU64,
}

/// What became of one look at a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It said something new.
    Changed,
    /// It said what it said before.
    Unchanged,
    /// There was no connection, or no file.
    Unreachable,
    /// It took too long.
    Timeout,
    /// The answer was none: another status than 200, or broken off.
    Refused,
    /// It was too large.
    TooLarge,
    /// It was no key set, or one without a key that can be used.
    Invalid,
}

impl Outcome {
    pub(super) const ALL: [Self; 7] = [
        Self::Changed,
        Self::Unchanged,
        Self::Unreachable,
        Self::Timeout,
        Self::Refused,
        Self::TooLarge,
        Self::Invalid,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
        }
    }
}

impl Keys {
    /// Reads all that is there. A source that was there `before` and has not changed is the same one, and a URL's keys
    /// stay whatever else changes. Also tells what is odd.
    ///
    /// # Errors
    /// All that is wrong with keys and files.
    pub(super) fn read(auth: &Auth, before: Option<&Self>) -> Result<(Self, Vec<String>), Problems> {
        let mut reading = Reading::default();
        let fixed = reading.fixed(auth);
        let sources = reading.sources(auth, before.map(|before| &*before.sources).unwrap_or_default());
        let Reading { files, wrong, odd } = reading;
        if wrong.is_empty() { Ok((Self { fixed, files, sources }, odd)) } else { Err(Problems(wrong)) }
    }

    /// What checks tokens with the keys that are there now, if any are to be.
    pub(super) fn authenticator(&self, auth: &Auth) -> Option<Authenticator> {
        if self.fixed.is_empty() && self.sources.is_empty() {
            return None;
        }
        let of = |source: &Arc<Source>| {
            let (issuer, audiences) = auth.bound_to(&source.settings.issuer, &source.settings.audience);
            Some(Trusted { issuer, audiences, keys: source.set()? })
        };
        let trusted = self.fixed.iter().cloned().chain(self.sources.iter().filter_map(of)).collect();
        let fetched = self.sources.iter().filter(|source| matches!(source.place, Place::Url(_)));
        Some(Authenticator::trusting(trusted, auth.leeway, fetched.map(|source| source.wish.clone()).collect()))
    }

    pub(super) fn sources(&self) -> &[Arc<Source>] {
        &self.sources
    }

    /// The keys of the configuration whose files hold something else than `before`.
    pub(super) fn changed_files(&self, before: &Self) -> Vec<&'static str> {
        let texts = |keys: &Self, name| -> Vec<Vec<u8>> {
            let of_name = keys.files.iter().filter(|(key, _)| *key == name);
            of_name.map(|(_, text)| text.clone()).collect()
        };
        let sets = |keys: &Self| -> Vec<Vec<u8>> {
            let of_files = keys.sources.iter().filter(|source| matches!(source.place, Place::File(_)));
            of_files.map(|source| source.found.lock().text.clone()).collect()
        };
        let ca = |keys: &Self| keys.sources.first().map(|source| source.terms.ca.clone());
        let mut changed = Vec::new();
        for key in [PUBLIC_KEY_FILE, KEYS] {
            if texts(self, key) != texts(before, key) {
                changed.push(key);
            }
        }
        if sets(self) != sets(before) {
            changed.push("auth.jwks");
        }
        if ca(self) != ca(before) && !self.sources.is_empty() && !before.sources.is_empty() {
            changed.push(CA_FILE);
        }
        changed
    }

    /// Sources of which nothing is known yet, if there is no key at all.
    pub(super) fn awaited(&self) -> Vec<String> {
        if !self.fixed.is_empty() || self.sources.iter().any(|source| source.set().is_some()) {
            return Vec::new();
        }
        self.sources.iter().map(|source| source.settings.name()).collect()
    }
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CheckTokenError {
    /// The configuration is not valid, or a file with keys cannot be used: nothing is known of the token.
    #[error(transparent)]
    Config(#[from] Problems),
    /// The system has no means to fetch key sets.
    #[error("key sets cannot be fetched: {0}")]
    System(#[from] io::Error),
    /// A server would refuse it. Also says what could not be fetched.
    #[error("refused: {0}")]
    Refused(String),
}

/// Judges a token as a server with this configuration would now. Fetches key sets, each once.
///
/// # Errors
/// The token is refused, or could not be judged.
pub fn check_token(auth: &Auth, token: &str) -> Result<Claims, CheckTokenError> {
    let (keys, _) = Keys::read(auth, None)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut missing = String::new();
    for source in keys.sources.iter().filter(|source| source.set().is_none()) {
        let looked = runtime.block_on(source.read()).and_then(|(text, _)| source.take_up(text));
        if let Err((_, why)) = looked {
            missing.push_str(&format!("\n{}: {why}", source.settings.name()));
        }
    }
    let refused = |why: &dyn fmt::Display| CheckTokenError::Refused(format!("{why}{missing}"));
    let authenticator = keys.authenticator(auth).ok_or_else(|| refused(&"there is no key to check it with"))?;
    let unix_ms = super::running::unix_s() * 1000;
    authenticator.verify(token, unix_ms).map_err(|error| refused(&error))
}

/// What is found while keys and files are read.
#[derive(Default)]
struct Reading {
    files: Vec<(&'static str, Vec<u8>)>,
    wrong: Vec<Problem>,
    odd: Vec<String>,
}

impl Reading {
    /// The keys of the configuration and of its PEM files, together where they are trusted alike.
    fn fixed(&mut self, auth: &Auth) -> Vec<Trusted> {
        type Group = (Option<String>, Vec<String>, Vec<KeySettings>);
        let mut groups: Vec<Group> = Vec::new();
        let mut add = |issuer: &Option<String>, audience: &Option<Vec<String>>, key: KeySettings| {
            let (issuer, audiences) = auth.bound_to(issuer, audience);
            match groups.iter_mut().find(|(of, with, _)| *of == issuer && *with == audiences) {
                Some((_, _, keys)) => keys.push(key),
                None => groups.push((issuer, audiences, vec![key])),
            }
        };
        let usual = if auth.secret.is_some() { Algorithm::HS256 } else { Algorithm::RS256 };
        let algorithm = auth.algorithm.unwrap_or(usual);
        if let Some(key) = self.key("auth", None, algorithm, &auth.secret, &auth.public_key_file) {
            add(&None, &None, key);
        }
        for (index, key) in auth.keys.iter().enumerate() {
            let section = format!("auth.keys[{index}]");
            let settings = self.key(&section, key.id.clone(), key.algorithm(), &key.secret, &key.public_key_file);
            if let Some(settings) = settings {
                add(&key.issuer, &key.audience, settings);
            }
        }
        let trusted = |(issuer, audiences, keys): Group| match KeySet::new(&keys) {
            Ok(keys) => Some(Trusted { issuer, audiences, keys: Arc::new(keys) }),
            // Each has been tried by itself, so it is about all of them.
            Err(error) => self.refuse(KEYS, &error),
        };
        groups.into_iter().filter_map(trusted).collect()
    }

    /// The key of a section, if there is one that can be used.
    fn key(
        &mut self,
        section: &str,
        id: Option<String>,
        algorithm: Algorithm,
        secret: &Option<Secret>,
        file: &Option<PathBuf>,
    ) -> Option<KeySettings> {
        let (name, shown, key) = match (secret, file) {
            (Some(secret), _) => ("secret", String::new(), KeyMaterial::Secret(secret.expose().as_bytes().to_vec())),
            (None, Some(path)) => {
                let pem = self.file(&format!("{section}.public_key_file"), path)?;
                // Of the entries of a list the list is the key.
                self.files.push((if section == "auth" { PUBLIC_KEY_FILE } else { KEYS }, pem.clone()));
                ("public_key_file", format!("{} ", path.display()), KeyMaterial::Pem(pem))
            }
            (None, None) => return None,
        };
        let settings = KeySettings { id, algorithm, key };
        match KeySet::new(slice::from_ref(&settings)) {
            Ok(_) => Some(settings),
            Err(error) => self.refuse(&format!("{section}.{name}"), &format_args!("{shown}{error}")),
        }
    }

    /// The sources that can be used.
    fn sources(&mut self, auth: &Auth, before: &[Arc<Source>]) -> Vec<Arc<Source>> {
        if auth.jwks.is_empty() {
            return Vec::new();
        }
        let ca = auth.jwks_ca_file.as_ref().and_then(|path| self.file(CA_FILE, path));
        let is_tls = auth.jwks.iter().any(|source| source.source.starts_with("https:"));
        // What the machine trusts is not asked for where a file that cannot be read should have said it.
        let tls = match (&auth.jwks_ca_file, &ca) {
            (Some(path), Some(ca)) => {
                fetch::trust(Some(ca)).map_err(|why| format!("{} {why}", path.display())).map(Some)
            }
            (None, _) if is_tls => fetch::trust(None).map(Some),
            _ => Ok(None),
        };
        let tls = tls.unwrap_or_else(|why| self.refuse(CA_FILE, &why));
        let terms = Terms {
            lifetime: auth.jwks_lifetime,
            interval: auth.jwks_interval,
            timeout: auth.jwks_timeout,
            bytes_max: auth.jwks_max_bytes.0,
            ca,
        };
        let mut sources = Vec::new();
        for (index, settings) in auth.jwks.iter().enumerate() {
            let (key, name) = (format!("auth.jwks[{index}].source"), settings.name());
            let source = Source::new(settings, &terms, tls.clone(), before);
            let source = source.map_or_else(|why| self.refuse(&key, &format_args!("{name}: {why}")), Some);
            let Some((source, skipped)) = source else { continue };
            self.odd.extend(skipped.iter().map(|skipped| format!("{key}: {name}: {skipped}")));
            sources.push(source);
        }
        sources
    }

    fn file(&mut self, key: &str, path: &Path) -> Option<Vec<u8>> {
        match file::read(path) {
            Ok(text) => Some(text),
            Err(error) => self.refuse(key, &format_args!("{} cannot be read: {error}", path.display())),
        }
    }

    fn refuse<T>(&mut self, key: &str, why: &dyn fmt::Display) -> Option<T> {
        self.wrong.push(Problem { place: config::Place::Unwritten, key: key.to_owned(), message: why.to_string() });
        None
    }
}

impl Source {
    fn new(
        settings: &KeySource,
        terms: &Terms,
        tls: Option<Arc<ClientConfig>>,
        before: &[Arc<Self>],
    ) -> Result<(Arc<Self>, Vec<SkippedKey>), String> {
        let before = before.iter().find(|before| before.settings == *settings);
        let (place, found, skipped) = match settings.origin()? {
            Origin::Url(url) => {
                let found = before.map(|before| before.found.lock().clone());
                (Place::Url(url), found.unwrap_or_default(), Vec::new())
            }
            Origin::File(path) => {
                let text = read_file(path, terms.bytes_max).map_err(|(_, why)| why)?;
                let (set, skipped) = read_set(settings, &text)?;
                (Place::File(path.into()), Found { text, set: Some(Arc::new(set)) }, skipped)
            }
        };
        if let Some(before) = before
            && before.terms == *terms
            && before.found.lock().text == found.text
        {
            return Ok((before.clone(), skipped));
        }
        let counts = before.map(|before| before.counts.clone()).unwrap_or_default();
        if let Place::File(_) = place {
            counts.last_success_s.store(super::running::unix_s(), Relaxed);
        }
        let (settings, terms, found) = (settings.clone(), terms.clone(), Mutex::new(found));
        Ok((Arc::new(Self { settings, place, terms, tls, found, wish: Arc::default(), counts }), skipped))
    }

    /// Looks at the source once. What it says counts from now on, if it is good. `Ok`: for how long it is fresh, and
    /// whether it is new. Logs what came of it.
    async fn look(&self) -> Result<(Duration, bool), ()> {
        let outcome = self.read().await.and_then(|(text, max_age)| Ok((self.take_up(text)?, max_age)));
        let (counted, result) = match outcome {
            Ok((is_new, max_age)) => {
                self.counts.last_success_s.store(super::running::unix_s(), Relaxed);
                let counted = if is_new { Outcome::Changed } else { Outcome::Unchanged };
                (counted, Ok((self.terms.fresh(max_age), is_new)))
            }
            Err((counted, why)) => {
                let (source, has_keys) = (self.settings.name(), self.set().is_some());
                let age_s = super::running::unix_s().saturating_sub(self.counts.last_success_s.load(Relaxed));
                match has_keys {
                    true => tracing::warn!(source, age_s, "key set not refreshed: {why}; the last good one stays"),
                    false => tracing::error!(source, "no key set: {why}; until there is one its tokens are refused"),
                }
                (counted, Err(()))
            }
        };
        self.counts.outcomes[counted as usize].fetch_add(1, Relaxed);
        result
    }

    async fn read(&self) -> Result<(Vec<u8>, Option<Duration>), (Outcome, String)> {
        use fetch::FetchError::{Http, Status, Timeout, TooLarge, Unreachable};
        match &self.place {
            Place::File(path) => read_file(path, self.terms.bytes_max).map(|text| (text, None)),
            Place::Url(url) => {
                let answer = fetch::fetch(url, self.terms.timeout, self.terms.bytes_max, self.tls.as_ref()).await;
                answer.map(|answer| (answer.body.to_vec(), answer.max_age)).map_err(|error| {
                    let outcome = match error {
                        Unreachable(_) => Outcome::Unreachable,
                        Timeout(_) => Outcome::Timeout,
                        Http(_) | Status(_) => Outcome::Refused,
                        TooLarge(_) => Outcome::TooLarge,
                    };
                    (outcome, error.to_string())
                })
            }
        }
    }

    /// Whether the text is new.
    fn take_up(&self, text: Vec<u8>) -> Result<bool, (Outcome, String)> {
        if self.found.lock().text == text {
            return Ok(false);
        }
        let (set, skipped) = read_set(&self.settings, &text).map_err(|why| (Outcome::Invalid, why))?;
        let source = self.settings.name();
        for key in &skipped {
            tracing::warn!(source, "a key of the set is left out: {key}");
        }
        tracing::info!(source, keys = set.len(), "key set taken up");
        *self.found.lock() = Found { text, set: Some(Arc::new(set)) };
        Ok(true)
    }

    fn set(&self) -> Option<Arc<KeySet>> {
        self.found.lock().set.clone()
    }

    /// How many keys it has.
    pub(super) fn keys(&self) -> u64 {
        self.set().map_or(0, |set| set.len() as u64)
    }
}

fn read_set(settings: &KeySource, text: &[u8]) -> Result<(KeySet, Vec<SkippedKey>), String> {
    KeySet::from_jwks(text, settings.algorithm.unwrap_or(Algorithm::RS256)).map_err(|error| error.to_string())
}

fn read_file(path: &Path, bytes_max: usize) -> Result<Vec<u8>, (Outcome, String)> {
    let text = file::read(path).map_err(|error| (Outcome::Unreachable, format!("cannot be read: {error}")))?;
    if text.len() > bytes_max {
        return Err((Outcome::TooLarge, format!("is longer than {bytes_max} bytes")));
    }
    Ok(text)
}

const PUBLIC_KEY_FILE: &str = "auth.public_key_file";
const KEYS: &str = "auth.keys";
const CA_FILE: &str = "auth.jwks_ca_file";
/// The longest `max-age` that is believed, unless `auth.jwks_lifetime` is longer: a key that its issuer withdraws is
/// believed no longer than that.
const MAX_AGE_MAX: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn a_key_may_be_there_for_several() {
        let directory = tempfile::tempdir().unwrap();
        let set = directory.path().join("keys.json");
        let pem = |name: &str| std::fs::read(format!("{}/tests/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let public = jsonwebtoken::DecodingKey::from_ec_pem(&pem("es256_public")).unwrap();
        let jwk = jsonwebtoken::jwk::Jwk::from_decoding_key(&public, None).unwrap();
        std::fs::write(&set, serde_json::json!({"keys": [jwk]}).to_string()).unwrap();
        let secret = "0123456789abcdef0123456789abcdef";
        let signers = [
            KeySettings { id: None, algorithm: Algorithm::ES256, key: KeyMaterial::Pem(pem("es256_private")) },
            KeySettings { id: Some("k".into()), algorithm: Algorithm::HS256, key: KeyMaterial::Secret(secret.into()) },
        ];
        let check = |auth: &str, claims: &str, expected: Result<(), &str>| {
            let auth = auth.replace("SET", set.to_str().unwrap()).replace("SECRET", secret);
            let config = Config::parse(&format!("auth: {{{auth}}}")).unwrap();
            config.validate().unwrap();
            let signer = &signers[usize::from(auth.starts_with("keys"))];
            let claims: serde_json::Value = serde_json::from_str(claims).unwrap();
            let verdict = check_token(&config.auth, &crate::app::auth::make_token(&claims, signer).unwrap());
            let verdict = verdict.map(drop).map_err(|error| error.to_string());
            assert_eq!(verdict, expected.map_err(|why| format!("refused: {why}")), "{auth} {claims}");
        };
        let sets = "jwks: [{source: SET, issuer: n}, {source: SET, issuer: s}]";
        check(sets, r#"{"sub": "ann", "iss": "n"}"#, Ok(()));
        check(sets, r#"{"sub": "ann", "iss": "s"}"#, Ok(()));
        check(sets, r#"{"sub": "ann", "iss": "e"}"#, Err("token from another issuer"));
        let keys = "keys: [{id: k, secret: SECRET, audience: tides}, {id: k, secret: SECRET, audience: moons}]";
        check(keys, r#"{"sub": "ann", "aud": "tides"}"#, Ok(()));
        check(keys, r#"{"sub": "ann", "aud": "moons"}"#, Ok(()));
        check(keys, r#"{"sub": "ann", "aud": "suns"}"#, Err("token for another audience"));
        let sets = "jwks: [{source: SET, audience: [web, mobile]}, {source: SET, issuer: e, audience: []}], issuer: n, audience: all";
        check(sets, r#"{"sub": "ann", "iss": "n", "aud": "web"}"#, Ok(()));
        check(sets, r#"{"sub": "ann", "iss": "n", "aud": ["other", "mobile"]}"#, Ok(()));
        check(sets, r#"{"sub": "ann", "iss": "n", "aud": "all"}"#, Err("token for another audience"));
        check(sets, r#"{"sub": "ann", "iss": "e"}"#, Ok(()));
        check(sets, r#"{"sub": "ann", "iss": "e", "aud": "all"}"#, Err("token for another audience"));
        let all = "jwks: SET, audience: [web, mobile]";
        check(all, r#"{"sub": "ann", "aud": "mobile"}"#, Ok(()));
        check(all, r#"{"sub": "ann"}"#, Err("token for another audience"));
    }

    /// The keys and beginnings of all that is wrong with keys and files; `GOOD` is where the keys of the tests are, `DIR` an
    /// empty place with an `empty.json`.
    #[track_caller]
    fn check(auth: &str, expected: &[&str]) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("empty.json"), r#"{"keys": []}"#).unwrap();
        let (place, good) =
            (directory.path().display().to_string(), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys"));
        let auth = auth.replace("DIR", &place).replace("GOOD", good);
        let config = Config::parse(&format!("auth: {{{auth}}}")).unwrap();
        config.validate().unwrap();
        let wrong = match Keys::read(&config.auth, None) {
            Ok(_) => Vec::new(),
            Err(Problems(wrong)) => wrong,
        };
        let shown = |problem: &Problem| problem.to_string().replace(&place, "DIR").replace(good, "GOOD");
        let said: Vec<_> = wrong.iter().map(shown).collect();
        assert_eq!(said.len(), expected.len(), "{said:#?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.starts_with(expected), "{said} instead of {expected}");
        }
        let told = check_token(&config.auth, "").err();
        assert_eq!(matches!(told, Some(CheckTokenError::Config(_))), !expected.is_empty(), "{told:?}");
    }

    #[test]
    fn all_that_is_wrong_is_told_with_its_key_and_file() {
        check("public_key_file: GOOD/rsa_public.pem", &[]);
        check("secret: s, keys: [{id: a, algorithm: ES256, public_key_file: GOOD/es256_public.pem}]", &[]);
        check("public_key_file: DIR/none.pem", &["auth.public_key_file: DIR/none.pem cannot be read: No such file"]);
        check(
            "public_key_file: GOOD/es256_public.pem",
            &[
                "auth.public_key_file: GOOD/es256_public.pem holds no public key in PEM form that RS256 can use; write the",
            ],
        );
        check("secret: '-----BEGIN PUBLIC KEY-----'", &["auth.secret: is the text of a PEM key, and a public key as"]);
        check(
            "public_key_file: GOOD/rsa_short_public.pem, jwks_ca_file: DIR/none.pem, \
             keys: [{id: a, public_key_file: GOOD/rsa_private.pem}, {id: a, secret: '-----BEGIN'}, {secret: s}, \
             {public_key_file: DIR/none.pem}, {algorithm: ES384, public_key_file: GOOD/es256_public.pem}], \
             jwks: ['https://127.0.0.1/', DIR/none.json, DIR/empty.json, GOOD/rsa_public.pem]",
            &[
                "auth.public_key_file: GOOD/rsa_short_public.pem holds an RSA key shorter than 2048 bits or longer",
                "auth.keys[0].public_key_file: GOOD/rsa_private.pem holds a private key, and verifying needs the public",
                "auth.keys[1].secret: is the text of a PEM key",
                "auth.keys[3].public_key_file: DIR/none.pem cannot be read: No such file",
                "auth.keys[4].public_key_file: GOOD/es256_public.pem holds no public key in PEM form that ES384 can use",
                "auth.jwks_ca_file: DIR/none.pem cannot be read: No such file",
                "auth.jwks[1].source: DIR/none.json: cannot be read: No such file",
                "auth.jwks[2].source: DIR/empty.json: no key that can be used",
                "auth.jwks[3].source: GOOD/rsa_public.pem: not a JSON Web Key Set",
            ],
        );
        check(
            "jwks: https://127.0.0.1/, jwks_ca_file: DIR/empty.json",
            &["auth.jwks_ca_file: DIR/empty.json holds no certificate"],
        );
    }

    /// Neither a mistake nor a whim of the issuer keeps a key that it withdraws for longer than an hour, or makes a server ask
    /// all the time.
    #[test]
    fn a_set_is_fresh_for_as_long_as_its_issuer_says_within_bounds() {
        let check = |(lifetime, interval), max_age: Option<u64>, expected| {
            let [lifetime, interval] = [lifetime, interval].map(Duration::from_secs);
            let terms = Terms { lifetime, interval, timeout: lifetime, bytes_max: 1, ca: None };
            let fresh = terms.fresh(max_age.map(Duration::from_secs));
            assert_eq!(fresh.as_secs(), expected, "{terms:?} {max_age:?}");
        };
        let (usual, long, rare) = ((300, 10), (86_400, 10), (300, 7_200));
        check(usual, None, 300);
        check(usual, Some(0), 10);
        check(usual, Some(60), 60);
        check(usual, Some(3_599), 3_599);
        check(usual, Some(31_536_000), 3_600);
        check(usual, Some(u64::MAX), 3_600);
        check(long, None, 86_400);
        check(long, Some(31_536_000), 86_400);
        check(rare, None, 7_200);
        check(rare, Some(31_536_000), 7_200);
    }

    /// A failure says how old the set in use is, whatever the clock has done since that was fetched.
    #[test]
    fn a_clock_that_was_set_back_is_no_failure() {
        let config = Config::parse("auth: {jwks: 'http://127.0.0.1:1/'}").unwrap();
        let (keys, _) = Keys::read(&config.auth, None).unwrap();
        let source = &keys.sources[0];
        source.counts.last_success_s.store(u64::MAX, Relaxed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(runtime.block_on(source.look()), Err(()));
        assert_eq!(source.counts.outcomes[Outcome::Unreachable as usize].load(Relaxed), 1);
    }
}
