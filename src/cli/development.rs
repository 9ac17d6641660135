//! Serving without a key: only on loopback, with a key that is made for one process and never stored.
//! Law: whoever can reach the port from outside needs a token signed with a key that somebody chose.

use std::fmt;

use tidewheel::app::auth::{Algorithm, KeyMaterial, KeySettings};
use tidewheel::config::{Draft, Secret};

use super::Failure;
use super::token::Claims;

/// Who may connect.
pub(super) enum Access {
    /// Everyone; tokens are not asked for.
    Open,
    /// Holders of a token that the configured key accepts.
    Configured,
    /// Holders of a certificate that names them.
    Certified,
    /// Holders of this token, signed with a key of this process alone.
    Development { token: String, secret: Secret },
}

impl Access {
    /// Decides from the configuration, and completes it with a key where one is made.
    ///
    /// # Errors
    /// The system gives no random bytes. That a key is needed and there is none is a problem of the draft.
    pub(super) fn decide(draft: &mut Draft) -> Result<Self, Failure> {
        let config = &mut draft.config;
        if !config.auth.required {
            return Ok(Self::Open);
        }
        if config.auth.has_keys() {
            return Ok(Self::Configured);
        }
        if config.tls.names_clients() {
            return Ok(Self::Certified);
        }
        let algorithm = config.auth.algorithm.unwrap_or(Algorithm::HS256);
        if !matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) {
            return Ok(Self::Configured); // of a public key, which validation will find missing
        }
        let public = config.public_addresses().find(|address| !address.ip().is_loopback());
        if let Some(public) = public {
            let message = format!(
                "{public} can be reached from outside, and there is no key to check tokens with. Set auth.secret, or the \
                 variable TIDEWHEEL_AUTH_SECRET, to 32 random bytes or more, or auth.public_key_file to the PEM file, or \
                 auth.jwks to the key set, of whoever issues your tokens. To try it, listen on 127.0.0.1 only: a key for development is made then"
            );
            draft.wrong("auth.required", message);
            return Ok(Self::Configured);
        }
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| Failure::Run(format!("no random bytes for a key: {error}")))?;
        let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = KeySettings { id: None, algorithm, key: KeyMaterial::Secret(secret.as_bytes().to_vec()) };
        let claims = Claims {
            iss: config.auth.issuer.clone(),
            aud: config.auth.audience.iter().flatten().next().cloned(),
            ..Claims::new("developer", TOKEN_TTL_S)
        };
        let secret = Secret::new(secret);
        config.auth.secret = Some(secret.clone());
        Ok(Self::Development { token: claims.sign(&key, "")?, secret })
    }

    /// Completes a configuration that is read later with the key that was made, while none is configured.
    pub(super) fn complete(&self, draft: &mut Draft) {
        let auth = &mut draft.config.auth;
        if let Self::Development { secret, .. } = self
            && !auth.has_keys()
        {
            auth.secret = Some(secret.clone());
        }
    }

    /// The end of the page's address that hands the token over. Browsers keep it to themselves.
    pub(super) fn fragment(&self) -> String {
        match self {
            Self::Development { token, .. } => format!("#token={token}"),
            Self::Open | Self::Configured | Self::Certified => String::new(),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open to everyone: auth.required is false",
            Self::Configured => "for holders of a token that the configured key accepts",
            Self::Certified => "for holders of a certificate that the configured CA signed, over TLS",
            Self::Development { .. } => "no key is configured: one is made for this process alone, for development",
        })
    }
}

/// Longer than a day of work, shorter than a forgotten process.
const TOKEN_TTL_S: u64 = 24 * 60 * 60;
