//! `tidewheel token make`: a JWT that a server with the same key accepts; `tidewheel token check`: what a server says of one.
//! Law: a token that is made is all that goes to stdout, so that `TOKEN=$(tidewheel token make …)` works; a key, and a token
//! that is checked, go nowhere.

use std::env;
use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde::Serialize;
use tidewheel::Engine;
use tidewheel::app::auth::{
    Algorithm, AuthError, AuthSettings, Authenticator, Claims as Verified, KeyMaterial, KeySettings, TOKEN_LENGTH_MAX,
    make_token,
};

use super::{Failure, Settings, output, sources};

#[derive(Subcommand)]
pub(super) enum Token {
    /// Make a token and print it.
    ///
    /// Without --key and --key-file the key is taken from the variable TIDEWHEEL_AUTH_SECRET, which keeps it out of
    /// the list of processes.
    Make(Make),
    /// Read a token from stdin and say whether a server with this configuration would accept it, and as whom.
    ///
    /// Files with keys are read and key sets are fetched.
    Check(Check),
}

#[derive(Args)]
pub(super) struct Check {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
pub(super) struct Make {
    /// The user's id, the claim `sub`.
    #[arg(long, value_name = "ID")]
    sub: String,
    /// How long the token is valid: 90s, 15m, 12h, 30d.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_ttl)]
    ttl: u64,
    /// The shared secret, as in `auth.secret`.
    #[arg(long, value_name = "SECRET", conflicts_with = "key_file")]
    key: Option<String>,
    /// A private key in PEM, whose public half the server has in `auth.public_key_file`.
    #[arg(long, value_name = "PEM")]
    key_file: Option<PathBuf>,
    /// HS256 for a secret and RS256 for a private key unless given: HS384, HS512, RS…, PS…, ES256, ES384, EdDSA.
    #[arg(long)]
    algorithm: Option<Algorithm>,
    /// The key's id, `kid`, where the server has more than one key.
    #[arg(long, value_name = "ID")]
    kid: Option<String>,
    /// Topics that may be subscribed to: `*` stands for one segment, `>` for the rest. Without --subscribe and
    /// --publish every topic is allowed; with either, only what is named.
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    subscribe: Vec<String>,
    /// Topics that may be published to, in the same form.
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    publish: Vec<String>,
    /// The claim `iss`, where the server has `auth.issuer`.
    #[arg(long)]
    issuer: Option<String>,
    /// The claim `aud`, where the server has `auth.audience`: one that it takes.
    #[arg(long)]
    audience: Option<String>,
}

impl Token {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Make(make) => make.run(),
            Self::Check(check) => check.run(),
        }
    }
}

impl Check {
    fn run(self) -> Result<(), Failure> {
        let config = sources(self.config, self.settings.flags()?).read().finish()?;
        let mut token = String::new();
        let read = io::stdin().take(TOKEN_LENGTH_MAX as u64 + 2).read_to_string(&mut token);
        read.map_err(|error| Failure::Run(format!("no token on stdin: {error}")))?;
        let Verified { identity, .. } = Engine::check_token(&config, token.trim())?;
        let until = identity.expires_at.map_or_else(|| "ever".to_owned(), |unix_s| format!("{unix_s} (Unix seconds)"));
        output::print(&format!("accepted as {:?}, until {until}\n", &*identity.user_id.text()))
    }
}

impl Make {
    fn run(self) -> Result<(), Failure> {
        let key = self.key()?;
        let file = self.key_file.as_ref().map_or_else(String::new, |path| format!("{}: ", path.display()));
        let is_limited = !(self.subscribe.is_empty() && self.publish.is_empty());
        let claims = Claims {
            topics: is_limited.then_some(Topics { subscribe: self.subscribe, publish: self.publish }),
            iss: self.issuer,
            aud: self.audience,
            ..Claims::new(&self.sub, self.ttl)
        };
        output::print(&format!("{}\n", claims.sign(&key, &file)?))
    }

    fn key(&self) -> Result<KeySettings, Failure> {
        let (key, usual) = if let Some(path) = &self.key_file {
            let pem = fs::read(path).map_err(|error| Failure::Run(format!("{}: {error}", path.display())))?;
            (KeyMaterial::Pem(pem), Algorithm::RS256)
        } else {
            let secret = self.key.clone().or_else(|| env::var(SECRET_VARIABLE).ok());
            let secret = secret.filter(|secret| !secret.is_empty()).ok_or_else(|| {
                Failure::Usage(format!("no key to sign with: give --key, --key-file or the variable {SECRET_VARIABLE}"))
            })?;
            (KeyMaterial::Secret(secret.into_bytes()), Algorithm::HS256)
        };
        Ok(KeySettings { id: self.kid.clone(), algorithm: self.algorithm.unwrap_or(usual), key })
    }
}

/// What a token says, as RFC 7519 spells it.
#[derive(Serialize)]
pub(super) struct Claims {
    pub(super) sub: String,
    pub(super) iat: u64,
    pub(super) exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) aud: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) topics: Option<Topics>,
}

/// Patterns of topics.
#[derive(Serialize)]
pub(super) struct Topics {
    subscribe: Vec<String>,
    publish: Vec<String>,
}

impl Claims {
    /// A token of `sub` for every topic, valid for `ttl_s` seconds from now.
    pub(super) fn new(sub: &str, ttl_s: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { sub: sub.into(), iat: now, exp: now + ttl_s, iss: None, aud: None, topics: None }
    }

    /// The signed token. What is wrong with the key is said of its `file`.
    pub(super) fn sign(&self, key: &KeySettings, file: &str) -> Result<String, Failure> {
        let wrong = |error: &dyn Display| Failure::Usage(error.to_string());
        let token = make_token(self, key).map_err(|error| wrong(&format_args!("{file}{error}")))?;
        let refusal = self.judge().err().or((token.len() > TOKEN_LENGTH_MAX).then_some(AuthError::TooLong));
        match refusal {
            None => Ok(token),
            Some(why) => Err(wrong(&format_args!("no server would accept this token: {why}"))),
        }
    }

    /// What a server says of the claims, signed with a key that it has: perhaps it has only the other half of the real one.
    fn judge(&self) -> Result<(), AuthError> {
        let key = KeySettings { id: None, algorithm: Algorithm::HS256, key: KeyMaterial::Secret(vec![0]) };
        let (issuer, audiences) = (self.iss.clone(), self.aud.iter().cloned().collect());
        let settings = AuthSettings { keys: vec![key.clone()], issuer, audiences, ..AuthSettings::default() };
        let server = Authenticator::new(&settings).expect("one key that fits its algorithm");
        let token = make_token(self, &key).expect("so it does for signing");
        server.verify(&token, self.iat.saturating_mul(1000)).map(drop)
    }
}

/// Seconds, from a whole number with one of the units `s`, `m`, `h`, `d`.
fn parse_ttl(text: &str) -> Result<u64, String> {
    let (number, unit_s) = [("s", 1), ("m", 60), ("h", 60 * 60), ("d", 24 * 60 * 60)]
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .ok_or("a number with a unit is needed: 90s, 15m, 12h, 30d")?;
    let number: u64 = number.parse().map_err(|error| format!("{error}"))?;
    let seconds = number.checked_mul(unit_s).filter(|seconds| (1..=TTL_MAX_S).contains(seconds));
    seconds.ok_or_else(|| "at least a second and at most a hundred years".into())
}

pub(super) const SECRET_VARIABLE: &str = "TIDEWHEEL_AUTH_SECRET";
const TTL_MAX_S: u64 = 100 * 366 * 24 * 60 * 60;
