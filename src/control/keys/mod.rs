//! The keys that tokens are checked with: those of the configuration, those of files, and those that issuers publish.
//! Law: what a source said last and was good stays until it says something else that is good. Keys of files are there from
//! the start or there is no start; those of URLs come when they come.

mod fetch;
mod keep;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use rustls::ClientConfig;

use crate::app::auth::{Algorithm, Authenticator, Claims, KeyMaterial, KeySet, KeySettings, SkippedKey, Trusted, Wish};
use crate::config::keys::{KeySource, Origin};
use crate::config::{Auth, Secret, file};
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
#[derive(Clone, PartialEq, Eq)]
struct Terms {
    lifetime: Duration,
    interval: Duration,
    timeout: Duration,
    bytes_max: usize,
    /// The text of `auth.jwks_ca_file`.
    ca: Option<Vec<u8>>,
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
    /// A key or a file is missing or cannot be used.
    pub(super) fn read(auth: &Auth, before: Option<&Self>) -> Result<(Self, Vec<String>), String> {
        let mut files = Vec::new();
        let fixed = fixed(auth, &mut files)?;
        let (sources, odd) = sources(auth, before.map(|before| &*before.sources).unwrap_or_default())?;
        Ok((Self { fixed, files, sources }, odd))
    }

    /// What checks tokens with the keys that are there now, if any are to be.
    pub(super) fn authenticator(&self, auth: &Auth) -> Option<Authenticator> {
        if self.fixed.is_empty() && self.sources.is_empty() {
            return None;
        }
        let of = |source: &Arc<Source>| {
            let issuer = source.settings.issuer.clone().or_else(|| auth.issuer.clone());
            let audience = source.settings.audience.clone().or_else(|| auth.audience.clone());
            Some(Trusted { issuer, audience, keys: source.set()? })
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
            changed.push("auth.jwks_ca_file");
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

/// Judges a token as a server with this configuration would now. Fetches key sets, each once.
///
/// # Errors
/// Why the token is refused, and what could not be fetched.
pub fn check_token(auth: &Auth, token: &str) -> Result<Claims, String> {
    let (keys, _) = Keys::read(auth, None)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let mut missing = String::new();
    for source in keys.sources.iter().filter(|source| source.set().is_none()) {
        let looked = runtime.block_on(source.read()).and_then(|(text, _)| source.take_up(text));
        if let Err((_, why)) = looked {
            missing.push_str(&format!("\n{}: {why}", source.settings.name()));
        }
    }
    let authenticator = keys.authenticator(auth).ok_or("there is no key to check it with")?;
    let unix_ms = super::running::unix_s() * 1000;
    authenticator.verify(token, unix_ms).map_err(|error| format!("{error}{missing}"))
}

/// The keys of the configuration and of its PEM files.
fn fixed(auth: &Auth, files: &mut Vec<(&'static str, Vec<u8>)>) -> Result<Vec<Trusted>, String> {
    let mut material = |key: &'static str, secret: &Option<Secret>, pem: &Option<PathBuf>| -> Result<_, String> {
        if let Some(secret) = secret {
            return Ok(Some(KeyMaterial::Secret(secret.expose().as_bytes().to_vec())));
        }
        let Some(path) = pem else { return Ok(None) };
        let wrong = |error| format!("public_key_file {} cannot be read: {error}", path.display());
        let pem = file::read(path).map_err(wrong)?;
        files.push((key, pem.clone()));
        Ok(Some(KeyMaterial::Pem(pem)))
    };
    type Group = (Option<String>, Option<String>, Vec<KeySettings>);
    let mut groups: Vec<Group> = Vec::new();
    let mut add = |issuer: &Option<String>, audience: &Option<String>, key: KeySettings| {
        let issuer = issuer.clone().or_else(|| auth.issuer.clone());
        let audience = audience.clone().or_else(|| auth.audience.clone());
        match groups.iter_mut().find(|(of, with, _)| *of == issuer && *with == audience) {
            Some((_, _, keys)) => keys.push(key),
            None => groups.push((issuer, audience, vec![key])),
        }
    };
    if let Some(key) = material(PUBLIC_KEY_FILE, &auth.secret, &auth.public_key_file)? {
        let usual = if auth.secret.is_some() { Algorithm::HS256 } else { Algorithm::RS256 };
        add(&None, &None, KeySettings { id: None, algorithm: auth.algorithm.unwrap_or(usual), key });
    }
    for key in &auth.keys {
        let Some(material) = material(KEYS, &key.secret, &key.public_key_file)? else { continue };
        let settings = KeySettings { id: key.id.clone(), algorithm: key.algorithm(), key: material };
        add(&key.issuer, &key.audience, settings);
    }
    let trusted = |(issuer, audience, keys): Group| {
        let keys = KeySet::new(&keys).map_err(|error| error.to_string())?;
        Ok(Trusted { issuer, audience, keys: Arc::new(keys) })
    };
    groups.into_iter().map(trusted).collect()
}

/// The sources, and what is odd in those that are read.
fn sources(auth: &Auth, before: &[Arc<Source>]) -> Result<(Vec<Arc<Source>>, Vec<String>), String> {
    if auth.jwks.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let ca = match &auth.jwks_ca_file {
        None => None,
        Some(path) => {
            let wrong = |error| format!("jwks_ca_file {} cannot be read: {error}", path.display());
            Some(file::read(path).map_err(wrong)?)
        }
    };
    let is_tls = auth.jwks.iter().any(|source| source.source.starts_with("https:"));
    let tls = (is_tls || ca.is_some()).then(|| fetch::trust(ca.as_deref())).transpose();
    let tls = tls.map_err(|why| format!("jwks_ca_file {why}"))?;
    let terms = Terms {
        lifetime: auth.jwks_lifetime,
        interval: auth.jwks_interval,
        timeout: auth.jwks_timeout,
        bytes_max: auth.jwks_max_bytes.0,
        ca,
    };
    let (mut sources, mut odd) = (Vec::new(), Vec::new());
    for settings in &auth.jwks {
        let (source, skipped) = Source::new(settings, &terms, tls.clone(), before)?;
        odd.extend(skipped.iter().map(|key| format!("{}: {key}", settings.name())));
        sources.push(source);
    }
    Ok((sources, odd))
}

impl Source {
    fn new(
        settings: &KeySource,
        terms: &Terms,
        tls: Option<Arc<ClientConfig>>,
        before: &[Arc<Self>],
    ) -> Result<(Arc<Self>, Vec<SkippedKey>), String> {
        let before = before.iter().find(|before| before.settings == *settings);
        let wrong = |why: &dyn fmt::Display| format!("jwks {}: {why}", settings.name());
        let (place, found, skipped) = match settings.origin().map_err(|why| wrong(&why))? {
            Origin::Url(url) => {
                let found = before.map(|before| before.found.lock().clone());
                (Place::Url(url), found.unwrap_or_default(), Vec::new())
            }
            Origin::File(path) => {
                let text = read_file(path, terms.bytes_max).map_err(|(_, why)| wrong(&why))?;
                let (set, skipped) = read_set(settings, &text).map_err(|why| wrong(&why))?;
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
                let most = self.terms.lifetime.max(MAX_AGE_MAX);
                let fresh = max_age.unwrap_or(self.terms.lifetime).min(most).max(self.terms.interval);
                (counted, Ok((fresh, is_new)))
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
            assert_eq!(verdict.map(drop), expected.map_err(str::to_owned), "{auth} {claims}");
        };
        let sets = "jwks: [{source: SET, issuer: n}, {source: SET, issuer: s}]";
        check(sets, r#"{"sub": "ann", "iss": "n"}"#, Ok(()));
        check(sets, r#"{"sub": "ann", "iss": "s"}"#, Ok(()));
        check(sets, r#"{"sub": "ann", "iss": "e"}"#, Err("token from another issuer"));
        let keys = "keys: [{id: k, secret: SECRET, audience: tides}, {id: k, secret: SECRET, audience: moons}]";
        check(keys, r#"{"sub": "ann", "aud": "tides"}"#, Ok(()));
        check(keys, r#"{"sub": "ann", "aud": "moons"}"#, Ok(()));
        check(keys, r#"{"sub": "ann", "aud": "suns"}"#, Err("token for another audience"));
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
