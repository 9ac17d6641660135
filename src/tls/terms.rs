//! What newcomers of the TLS ports are offered.
//! Law: it is swapped whole; a ticket never outlives the trust under which it was given.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

use super::certificate::Certificate;
use super::names::Names;
use crate::config::tls::{ClientAuth, ClientIdSource, Tls, TlsVersion};

/// What newcomers of the TLS ports are offered; swapped whole by a reload.
#[derive(Debug)]
pub struct Terms {
    /// Versions, certificates, and who must show one.
    pub server: Arc<ServerConfig>,
    /// What of a client's certificate is the client's id.
    pub client_id: ClientIdSource,
    trust: Trust,
}

/// Whose certificates of clients are believed. A ticket holds the certificate it was given for, which nobody verifies
/// again.
#[derive(Debug, PartialEq)]
struct Trust {
    auth: ClientAuth,
    roots: Vec<rustls::pki_types::TrustAnchor<'static>>,
}

/// Why there are no terms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// There is nothing to show.
    #[error("there is no certificate")]
    NoCertificate,
    /// Certificates of clients are asked for, and nobody signs any.
    #[error("there is nobody who signs certificates of clients")]
    NoRoots,
    /// The system gives no random bytes for the keys of tickets, or the library cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Library(String),
}

impl Terms {
    /// The terms of a configuration with these certificates, the first of which is for names that none has, and with
    /// these signers of clients' certificates. Who has a ticket from `before` comes back with it, unless others are
    /// trusted now.
    ///
    /// # Errors
    /// A certificate is missing, or the system gives no random bytes.
    pub fn new(
        tls: &Tls,
        certificates: &[Certificate],
        client_roots: Option<RootCertStore>,
        before: Option<&Self>,
    ) -> Result<Self, TermsError> {
        let library = |error: &dyn std::error::Error| TermsError::Library(error.to_string());
        let names = Names::new(certificates).ok_or(TermsError::NoCertificate)?;
        let provider = Arc::new(default_provider());
        let versions = match tls.min_version {
            TlsVersion::Tls12 => &[&TLS13, &TLS12][..],
            TlsVersion::Tls13 => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions);
        let builder = builder.map_err(|error| library(&error))?;
        let roots = client_roots.filter(|_| tls.client_auth != ClientAuth::None).unwrap_or_else(RootCertStore::empty);
        let trust = Trust { auth: tls.client_auth, roots: roots.roots.clone() };
        let builder = match tls.client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            _ if roots.is_empty() => return Err(TermsError::NoRoots),
            auth => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match auth {
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                    _ => verifier,
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| library(&error))?)
            }
        };
        let mut server = builder.with_cert_resolver(Arc::new(names));
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        // The client keeps all that is needed to come back, sealed: no memory here for those who do not.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = tls.session_tickets as usize;
        if tls.session_tickets > 0 {
            server.ticketer = match before {
                Some(before) if before.trust == trust && before.server.ticketer.enabled() => {
                    before.server.ticketer.clone()
                }
                _ => Ticketer::new().map_err(|error| library(&error))?,
            };
        }
        // Early data can be replayed.
        server.max_early_data_size = 0;
        // So that records can be sealed elsewhere than here, in the kernel for instance.
        server.enable_secret_extraction = true;
        Ok(Self { server: Arc::new(server), client_id: tls.client_id, trust })
    }
}

#[cfg(test)]
mod tests;
