//! Where the keys for tokens come from: `auth.keys` and `auth.jwks`.
//! Law: every key has one algorithm and every source one form, told before anything is read from it.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use http::Uri;

use super::node::section;
use super::units::SECRET_MASK;
use super::{Algorithm, Auth, Secret};

section! {
    /// One key, of one issuer.
    TokenKey {
        /// The `kid` that picks this key. `null`: it stands in for ids that no key has.
        live id: Option<String> = None,
        /// The one algorithm of the key. `null`: HS256 with a secret, RS256 with a public key.
        live algorithm: Option<Algorithm> = None,
        /// Shared secret of the HS algorithms. Either this or `public_key_file`.
        live secret: Option<Secret> = None,
        /// PEM file with the issuer's public key, for the other algorithms.
        live public_key_file: Option<PathBuf> = None,
        /// Required `iss` claim of tokens signed with this key. `null`: what `auth.issuer` says.
        live issuer: Option<String> = None,
        /// What the `aud` claim of these tokens must be or hold, one of them. `null`: what `auth.audience` says. `[]`: none may
        /// be there.
        live audience: Option<Vec<String>> = None,
    }
}

section! {
    /// A key set (JWKS) of one issuer.
    KeySource(source) {
        /// An `https://` or `http://` URL, which is fetched while the server runs, or a file, which must be good when it
        /// starts and is read again when it changes.
        live source: Location = Location::default(),
        /// Required `iss` claim of tokens signed with keys of the set. `null`: what `auth.issuer` says.
        live issuer: Option<String> = None,
        /// What the `aud` claim of these tokens must be or hold, one of them. `null`: what `auth.audience` says. `[]`: none may
        /// be there.
        live audience: Option<Vec<String>> = None,
        /// The algorithm of RSA keys that name none. `null`: RS256.
        live algorithm: Option<Algorithm> = None,
    }
}

/// Where a key set is, as it was written. It is shown without its query, which may hold what is secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Location(String);

impl Location {
    /// Of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As it may be seen.
    pub fn shown(&self) -> String {
        match self.0.split_once('?') {
            Some((place, _)) if place.contains("://") => format!("{place}?{SECRET_MASK}"),
            _ => self.0.clone(),
        }
    }
}

impl Deref for Location {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shown())
    }
}

/// What a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// A file.
    File(&'a Path),
    /// An `http` or `https` URL with a host.
    Url(Uri),
}

impl KeySource {
    /// Where it is.
    ///
    /// # Errors
    /// It is no URL although it looks like one.
    pub fn origin(&self) -> Result<Origin<'_>, &'static str> {
        if !self.source.contains("://") {
            return Ok(Origin::File(Path::new(&*self.source)));
        }
        let url: Uri = self.source.parse().map_err(|_| "is not a URL")?;
        match (url.scheme_str(), url.authority()) {
            (Some("http" | "https"), Some(authority)) if authority.as_str().contains('@') => {
                Err("has a name or password in it, which would end up in logs")
            }
            (Some("http" | "https"), Some(authority)) if !authority.host().is_empty() => Ok(Origin::Url(url)),
            _ => Err("is not an http or https URL"),
        }
    }

    /// How it is called in logs: without a name, a password or a query, which may hold what is secret.
    pub fn name(&self) -> String {
        let Some((scheme, rest)) = self.source.split_once("://") else { return self.source.to_string() };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        format!("{scheme}://{}{path}", authority.rsplit('@').next().unwrap_or_default())
    }
}

impl Auth {
    /// Whether there is, or will be, something to check tokens with.
    pub fn has_keys(&self) -> bool {
        self.secret.is_some() || self.public_key_file.is_some() || !self.keys.is_empty() || !self.jwks.is_empty()
    }

    /// Tells what is wrong with `keys` and `jwks`.
    pub(super) fn check_keys(&self, wrong: &mut dyn FnMut(&str, String)) {
        if self.keys.len() > KEYS_MAX {
            wrong("auth.keys", format!("has more than {KEYS_MAX} keys; put them in a key set of auth.jwks"));
        }
        for (index, key) in self.keys.iter().enumerate() {
            let path = format!("auth.keys[{index}]");
            let is_symmetric = key.algorithm.map(is_symmetric);
            match (&key.secret, &key.public_key_file) {
                (None, None) => wrong(&path, "has no key; write `secret` or `public_key_file`".to_owned()),
                (Some(_), Some(_)) => wrong(&path, "has a `secret` and a `public_key_file`; remove one".to_owned()),
                (Some(secret), None) if secret.expose().is_empty() => {
                    wrong(&format!("{path}.secret"), "is empty; write 32 random bytes or more".to_owned());
                }
                (Some(_), None) if is_symmetric == Some(false) => {
                    wrong(
                        &format!("{path}.algorithm"),
                        "does not work with a secret; write HS256, HS384 or HS512".to_owned(),
                    );
                }
                (None, Some(_)) if is_symmetric == Some(true) => wrong(
                    &format!("{path}.algorithm"),
                    "does not work with a public key; write its algorithm, such as RS256, ES256 or EdDSA".to_owned(),
                ),
                _ => {}
            }
            let is_same = |other: &TokenKey| {
                let sort =
                    |key: &TokenKey| (key.id.clone(), key.algorithm(), self.bound_to(&key.issuer, &key.audience));
                key.id.is_some() && sort(other) == sort(key)
            };
            if self.keys[..index].iter().any(is_same) {
                wrong(&format!("{path}.id"), "is there twice for the same algorithm and issuer; remove one".to_owned());
            }
        }
        if self.jwks.len() > SOURCES_MAX {
            wrong("auth.jwks", format!("has more than {SOURCES_MAX} sources"));
        }
        for (index, source) in self.jwks.iter().enumerate() {
            let path = format!("auth.jwks[{index}]");
            match source.origin() {
                _ if source.source.is_empty() => {
                    wrong(&format!("{path}.source"), "is empty; write a URL or a file".to_owned());
                }
                Err(why) => wrong(&format!("{path}.source"), format!("`{}` {why}", source.name())),
                Ok(_) => {}
            }
            if source.algorithm.is_some_and(|algorithm| !is_rsa(algorithm)) {
                let what = "is for RSA keys that name none; write RS256, RS384, RS512, PS256, PS384 or PS512";
                wrong(&format!("{path}.algorithm"), what.to_owned());
            }
            let is_same = |other: &KeySource| (&other.source, &other.issuer) == (&source.source, &source.issuer);
            if self.jwks[..index].iter().any(is_same) {
                let what = "is there twice for the same issuer; write one, with a list where it has several audiences";
                wrong(&format!("{path}.source"), what.to_owned());
            }
        }
    }

    /// Tells what is legal and probably not meant.
    pub(super) fn odd_keys(&self, odd: &mut dyn FnMut(&str, String)) {
        for (index, key) in self.keys.iter().enumerate() {
            if key.secret.as_ref().is_some_and(|secret| secret.expose().len() < SECRET_BYTES_MIN) {
                let path = format!("auth.keys[{index}].secret");
                odd(&path, format!("is shorter than {SECRET_BYTES_MIN} bytes and could be guessed"));
            }
        }
        for (index, source) in self.jwks.iter().enumerate() {
            let path = format!("auth.jwks[{index}].source");
            if let Ok(Origin::Url(url)) = source.origin()
                && url.scheme_str() == Some("http")
                && !url.host().is_some_and(is_loopback)
            {
                odd(&path, "is http: whoever is on the way can put a key of their own into it; write https".to_owned());
            }
        }
        if let Some(algorithm) = self.algorithm
            && self.secret.is_none()
            && self.public_key_file.is_none()
        {
            let what = "is for auth.secret or auth.public_key_file, and neither is there; write it in the entry of \
                        auth.keys or auth.jwks that it is for, or remove it";
            odd("auth.algorithm", format!("{algorithm:?} {what}"));
        }
        let is_https =
            |source: &KeySource| matches!(source.origin(), Ok(Origin::Url(url)) if url.scheme_str() == Some("https"));
        if let Some(file) = &self.jwks_ca_file
            && !self.jwks.iter().any(is_https)
        {
            let what = "is for https sources of auth.jwks, and there is none; add one, or remove this";
            odd("auth.jwks_ca_file", format!("{} {what}", file.display()));
        }
        if let Some((first, others)) = self.nameless().split_first() {
            let (others, each) = match others {
                [] => (String::new(), ""),
                _ => (format!(", nor has {}", others.join(", nor ")), " for each"),
            };
            // That key has no section that an issuer could be written in.
            let own = if first.contains('[') { String::new() } else { format!("; that of {first} is auth.issuer") };
            let what = "whoever holds its keys can sign in the name of the others; write one";
            odd(first, format!("has no `issuer` of its own{others}: {what}{each}{own}"));
        }
    }

    /// The issuer and the audiences that a key or a key set is bound to: its own, or else those of all.
    pub(crate) fn bound_to(
        &self,
        issuer: &Option<String>,
        audience: &Option<Vec<String>>,
    ) -> (Option<String>, Vec<String>) {
        let audiences = audience.as_ref().or(self.audience.as_ref()).cloned().unwrap_or_default();
        (issuer.as_ref().or(self.issuer.as_ref()).cloned(), audiences)
    }

    /// What has no issuer of its own, if its tokens could pass for those of somebody else. A key set is one issuer's, which
    /// rotates its keys itself; keys that do not differ in their issuer are one issuer's too, which rotates them here.
    fn nameless(&self) -> Vec<String> {
        let own = match (&self.secret, &self.public_key_file) {
            (Some(_), _) => Some("auth.secret".to_owned()),
            (None, Some(_)) => Some("auth.public_key_file".to_owned()),
            (None, None) => None,
        };
        let key = |(index, key): (usize, &TokenKey)| (format!("auth.keys[{index}]"), key.issuer.is_some());
        let set = |(index, set): (usize, &KeySource)| (format!("auth.jwks[{index}]"), set.issuer.is_some());
        let all = self.keys.iter().enumerate().map(key).chain(self.jwks.iter().enumerate().map(set));
        let (named, nameless): (Vec<_>, Vec<_>) = all.partition(|(_, is_named)| *is_named);
        let nameless = nameless.into_iter().map(|(path, _)| path);
        let has_set = self.jwks.iter().any(|set| set.issuer.is_none());
        let are_several = has_set && nameless.len() + usize::from(own.is_some()) > 1;
        match self.issuer {
            // It is the issuer of the key beside it, so the others should have one of theirs.
            Some(_) if are_several => nameless.collect(),
            None if are_several || !named.is_empty() => own.into_iter().chain(nameless).collect(),
            _ => Vec::new(),
        }
    }
}

impl TokenKey {
    /// The one algorithm of the key.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm.unwrap_or(if self.secret.is_some() { Algorithm::HS256 } else { Algorithm::RS256 })
    }
}

fn is_symmetric(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

fn is_rsa(algorithm: Algorithm) -> bool {
    algorithm.family() == jsonwebtoken::AlgorithmFamily::Rsa
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// RFC 7518 §3.2, for HS256.
pub(super) const SECRET_BYTES_MIN: usize = 32;
/// Configured keys, beside `secret` or `public_key_file`.
const KEYS_MAX: usize = 15;
/// Key sets.
const SOURCES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[track_caller]
    fn check(auth: &str, expected: &[&str]) {
        let config = Config::parse(&format!("auth: {{{auth}}}")).unwrap();
        let mut wrong = Vec::new();
        config.auth.check_keys(&mut |key, message| wrong.push(format!("{key} {message}")));
        assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
        for (wrong, expected) in wrong.iter().zip(expected) {
            assert!(wrong.starts_with(expected), "{wrong:?} instead of {expected:?}");
        }
        assert_eq!(config.validate().is_ok(), expected.is_empty());
    }

    #[track_caller]
    fn odd(auth: &str, expected: &str) {
        let config = Config::parse(&format!("auth: {{{auth}}}")).unwrap();
        let odd: Vec<_> = config.warnings().into_iter().map(|problem| problem.key).collect();
        assert_eq!(odd.join(" "), expected);
    }

    #[test]
    fn keys() {
        check("keys: [{id: a, secret: s}, {id: b, public_key_file: f, algorithm: ES256}, {secret: t}]", &[]);
        check("keys: [{id: a, secret: s}, {id: a, secret: t, algorithm: HS512}]", &[]);
        check("keys: [{id: a, secret: s, issuer: n}, {id: a, secret: t, issuer: s}]", &[]);
        check("keys: [{id: a, secret: s}, {id: a, secret: t}]", &["auth.keys[1].id is there twice"]);
        check(
            "keys: [{id: a, secret: s}, {id: a, secret: t, issuer: n}], issuer: n",
            &["auth.keys[1].id is there twice"],
        );
        check(
            "keys: [{id: a, secret: s, audience: n}, {id: a, secret: t}], audience: n",
            &["auth.keys[1].id is there"],
        );
        check("keys: [{id: a}]", &["auth.keys[0] has no key"]);
        check("keys: [{secret: s, public_key_file: f}]", &["auth.keys[0] has a `secret` and a"]);
        check("keys: [{secret: ''}]", &["auth.keys[0].secret is empty"]);
        check("keys: [{secret: s, algorithm: RS256}]", &["auth.keys[0].algorithm does not work with a secret"]);
        check(
            "keys: [{public_key_file: s, algorithm: HS256}]",
            &["auth.keys[0].algorithm does not work with a public"],
        );
        let keys = |count: usize| format!("keys: [{}]", vec!["{secret: s}"; count].join(", "));
        check(&keys(15), &[]);
        check(&keys(16), &["auth.keys has more than 15 keys"]);
        check("secret: s, keys: [{id: a, secret: s}], jwks: f.json", &[]);
    }

    #[test]
    fn sources() {
        check("jwks: [keys.json, /etc/keys.json, 'https://a.example/keys?b=c', 'http://[::1]:8080/']", &[]);
        check("jwks: https://a.example/keys", &[]);
        check("jwks: [{source: https://a.example/keys, issuer: a, audience: b, algorithm: PS256}, f.json]", &[]);
        check("jwks: [f.json, {source: f.json, issuer: a}]", &[]);
        check("jwks: [f.json, f.json]", &["auth.jwks[1].source is there twice"]);
        check("jwks: [{issuer: a}]", &["auth.jwks[0].source is empty"]);
        check("jwks: ['ftp://a.example/keys?secret']", &["auth.jwks[0].source `ftp://a.example/keys` is not an http"]);
        check("jwks: ['https://']", &["auth.jwks[0].source `https://` is not a URL"]);
        check("jwks: ['https://a:b@c.example/']", &["auth.jwks[0].source `https://c.example/` has a name"]);
        check("jwks: ['https://a b/']", &["auth.jwks[0].source `https://a b/` is not a URL"]);
        check("jwks: [{source: f, algorithm: HS256}]", &["auth.jwks[0].algorithm is for RSA keys"]);
        check("jwks: [{source: f, algorithm: ES256}]", &["auth.jwks[0].algorithm is for RSA keys"]);
        let sources =
            |count: u32| format!("jwks: [{}]", (0..count).map(|n| format!("f{n}")).collect::<Vec<_>>().join(", "));
        check(&sources(8), &[]);
        check(&sources(9), &["auth.jwks has more than 8 sources"]);
    }

    #[test]
    fn what_is_odd() {
        odd("keys: [{secret: short}]", "auth.keys[0].secret");
        odd("jwks: https://a.example/", "");
        odd("jwks: http://a.example/", "auth.jwks[0].source");
        odd("jwks: ['http://127.0.0.1:80/']", "");
    }

    #[test]
    fn issuers_that_could_sign_in_the_name_of_others() {
        let check = |auth: &str, expected: &str| {
            // Long enough to be no oddity itself.
            odd(&auth.replace("secret: s", "secret: 0123456789abcdef0123456789abcdef"), expected);
        };
        // One issuer, however many keys it has.
        check("jwks: a", "");
        check("keys: [{id: a, secret: s}, {id: b, secret: s}]", "");
        check("secret: s, keys: [{id: a, secret: s}], issuer: i", "");
        check("keys: [{id: a, secret: s, issuer: i}, {id: b, secret: s, issuer: i}]", "");
        // Several, each with its own.
        check("jwks: [{source: a, issuer: a}, {source: b, issuer: b}]", "");
        check("jwks: [a, {source: b, issuer: b}], issuer: i", "");
        check("secret: s, keys: [{id: a, secret: s}], jwks: [{source: b, issuer: b}], issuer: i", "");
        check("secret: s, keys: [{id: a, secret: s, issuer: a}], issuer: i", "");
        // Who writes the same one twice means it.
        check("jwks: [{source: a, issuer: i}, {source: b, issuer: i}]", "");
        check("keys: [{secret: s}], jwks: [{source: a, issuer: i}], issuer: i", "");
        // Tokens of some may say that they are from any.
        check("jwks: [a, b]", "auth.jwks[0]");
        check("jwks: [a, {source: b, issuer: b}]", "auth.jwks[0]");
        check("jwks: [{source: a, issuer: a}, b]", "auth.jwks[1]");
        check("secret: s, jwks: a", "auth.secret");
        check("public_key_file: a.pem, jwks: [{source: b, issuer: b}]", "auth.public_key_file");
        check("keys: [{id: a, public_key_file: a.pem}], jwks: b", "auth.keys[0]");
        check("keys: [{id: a, secret: s, issuer: a}], jwks: b", "auth.jwks[0]");
        check("keys: [{id: a, secret: s, issuer: a}, {id: b, secret: s}]", "auth.keys[1]");
        check("secret: s, keys: [{id: a, secret: s, issuer: a}]", "auth.secret");
        // The issuer is the same for want of another one.
        check("jwks: [a, b], issuer: i", "auth.jwks[0]");
        check("secret: s, jwks: a, issuer: i", "auth.jwks[0]");
        check("keys: [{secret: s}], jwks: [a, {source: b, issuer: b}], issuer: i", "auth.keys[0]");
    }

    #[test]
    fn a_missing_issuer_is_told_with_its_remedy() {
        let check = |auth: &str, expected: &str| {
            let config = Config::parse(&format!("auth: {{{auth}}}")).unwrap();
            assert_eq!(config.warnings()[0].to_string(), expected);
        };
        check(
            "jwks: [{source: a, issuer: a}, b]",
            "auth.jwks[1]: has no `issuer` of its own: whoever holds its keys can sign in the name of the others; write one",
        );
        check(
            "public_key_file: a, jwks: [a, b]",
            "auth.public_key_file: has no `issuer` of its own, nor has auth.jwks[0], nor auth.jwks[1]: whoever holds its keys \
             can sign in the name of the others; write one for each; that of auth.public_key_file is auth.issuer",
        );
    }

    #[test]
    fn what_the_guide_shows_is_not_odd() {
        let guide = include_str!("../guide/keys.md");
        let yaml = guide.split("```").find_map(|block| block.strip_prefix("yaml\n")).unwrap();
        let config = Config::parse(yaml).unwrap();
        config.validate().unwrap();
        assert_eq!(config.warnings(), []);
    }

    #[test]
    fn what_has_no_effect_is_odd() {
        let secret = "0123456789abcdef0123456789abcdef";
        odd("jwks: keys.json, algorithm: HS256", "auth.algorithm");
        odd(&format!("keys: [{{id: a, secret: {secret}}}], algorithm: HS512"), "auth.algorithm");
        odd("required: false, algorithm: HS512", "auth.algorithm");
        odd(&format!("secret: {secret}, algorithm: HS512"), "");
        odd("public_key_file: a.pem, algorithm: ES256", "");
        odd(&format!("secret: {secret}, jwks_ca_file: ca.pem"), "auth.jwks_ca_file");
        odd("jwks: keys.json, jwks_ca_file: ca.pem", "auth.jwks_ca_file");
        odd("jwks: 'http://127.0.0.1:80/', jwks_ca_file: ca.pem", "auth.jwks_ca_file");
        odd("jwks: https://a.example/, jwks_ca_file: ca.pem", "");
        odd("jwks: keys.json, algorithm: HS256, jwks_ca_file: ca.pem", "auth.algorithm auth.jwks_ca_file");
    }
}
