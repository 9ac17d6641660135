//! A certificate that the server shows, out of the PEM texts of it and of its key.
//! Law: what is taken can be served: the key signs for the certificate, and both are understood.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, RootCertStore};

use super::leaf::{Leaf, Unreadable};

/// A certificate with its chain and its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    leaf: Leaf,
}

/// Why a certificate cannot be served, with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// There is none.
    #[error("holds no certificate in PEM form; from DER it is made with `openssl x509 -inform der`")]
    NoCertificate,
    /// There is a key instead.
    #[error("holds a private key and no certificate; are cert_file and key_file the wrong way round?")]
    KeyInstead,
    /// It is no PEM text.
    #[error("is no PEM text: {0}")]
    NoPem(String),
    /// It is no certificate, or the key of it is of a kind that is not served.
    #[error("holds a certificate that cannot be used: {0}")]
    Unusable(String),
    /// There is no key.
    #[error("holds no private key in PEM form (PKCS#8, PKCS#1 or SEC1)")]
    NoKey,
    /// The key needs a passphrase, which nobody could type.
    #[error("holds a key with a passphrase; take it off with `openssl pkey -in FILE -out NEW` and protect the file")]
    EncryptedKey,
    /// The key is not PEM.
    #[error("is no PEM text: {0}")]
    NoKeyPem(String),
    /// The key is of a kind that is not served.
    #[error(
        "holds a private key that cannot be used: {0}; write RSA of 2048 bits or more, P-256, P-384, P-521 or Ed25519"
    )]
    UnusableKey(String),
    /// The key is another one's.
    #[error("holds a key that does not fit the first certificate of the other file, which must be the server's own")]
    Mismatch,
}

impl CertificateError {
    /// Whether the file with the key is to blame.
    pub fn is_of_key(&self) -> bool {
        match self {
            Self::NoCertificate | Self::KeyInstead | Self::NoPem(_) | Self::Unusable(_) => false,
            Self::NoKey | Self::EncryptedKey | Self::NoKeyPem(_) | Self::UnusableKey(_) | Self::Mismatch => true,
        }
    }
}

impl From<Unreadable> for CertificateError {
    fn from(error: Unreadable) -> Self {
        Self::Unusable(error.to_string())
    }
}

impl Certificate {
    /// Takes a chain, the server's own certificate first, and its key.
    ///
    /// # Errors
    /// It could not be served. An end that has passed is none: a client may look away, and a server that does not start
    /// helps nobody.
    pub fn read(chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, CertificateError> {
        let chain = certificates(chain_pem)?;
        let Some(own) = chain.first() else {
            let is_key = PrivateKeyDer::from_pem_slice(chain_pem).is_ok();
            return Err(if is_key { CertificateError::KeyInstead } else { CertificateError::NoCertificate });
        };
        let leaf = Leaf::read(own)?;
        let key = private_key(key_pem)?;
        let key = CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| match error {
            Error::InconsistentKeys(_) => CertificateError::Mismatch,
            Error::InvalidCertificate(_) => CertificateError::Unusable(error.to_string()),
            // Which names the kinds itself, at length.
            Error::General(why) => CertificateError::UnusableKey(why),
            error => CertificateError::UnusableKey(error.to_string()),
        })?;
        Ok(Self { key: Arc::new(key), leaf })
    }

    /// The names that it is for, in lower case; a first label `*` is for any one.
    pub fn names(&self) -> &[String] {
        &self.leaf.dns_names
    }

    /// Whether it is for any name or address: without, no client of today takes it.
    pub fn is_named(&self) -> bool {
        !self.leaf.dns_names.is_empty() || self.leaf.addresses > 0
    }

    /// When it begins, in Unix seconds.
    pub fn not_before_s(&self) -> u64 {
        self.leaf.not_before_s
    }

    /// When it ends, in Unix seconds.
    pub fn not_after_s(&self) -> u64 {
        self.leaf.not_after_s
    }
}

/// The certificates of a PEM text that clients' certificates may be signed with.
///
/// # Errors
/// There are none, or one cannot be used.
pub fn client_roots(pem: &[u8]) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|error| CertificateError::Unusable(error.to_string()))?;
    }
    if roots.is_empty() { Err(CertificateError::NoCertificate) } else { Ok(roots) }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| CertificateError::NoPem(pem_error(&error)))
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    // PKCS#8 says so in its label, the older forms in a header.
    if memchr::memmem::find(pem, b"ENCRYPTED").is_some() {
        return Err(CertificateError::EncryptedKey);
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => CertificateError::NoKey,
        error => CertificateError::NoKeyPem(pem_error(&error)),
    })
}

/// Without what is written there: it may be of a key.
fn pem_error(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end; is the file whole?".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a section begins in no known way".to_owned(),
        pem::Error::Base64Decode(_) => "a section is not base64".to_owned(),
        _ => "it cannot be taken apart".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CertifiedKey as Made, KeyPair, generate_simple_self_signed};

    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let Made { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    #[track_caller]
    fn check(chain: &str, key: &str, is_of_key: bool, said: &str) {
        let error = Certificate::read(chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert_eq!(error.is_of_key(), is_of_key, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }

    #[test]
    fn what_is_served() {
        let (chain, key) = made(&["A.example", "*.b.example"]);
        let certificate = Certificate::read(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(certificate.names(), ["a.example", "*.b.example"]);
        assert!(certificate.is_named() && certificate.not_before_s() < certificate.not_after_s());
        // A whole chain, with what people write between the sections, in one file with the key.
        let (other, _) = made(&["ca.example"]);
        let all = format!("subject=a\n{chain}\nissuer=b\n{other}\n{key}");
        assert_eq!(Certificate::read(all.as_bytes(), all.as_bytes()).unwrap().key.cert.len(), 2);
        let (chain, key) = made(&["127.0.0.1"]);
        let by_address = Certificate::read(chain.as_bytes(), key.as_bytes()).unwrap();
        assert!(by_address.is_named() && by_address.names().is_empty());
        let key = KeyPair::generate().unwrap();
        let chain = CertificateParams::default().self_signed(&key).unwrap().pem();
        assert!(!Certificate::read(chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap().is_named());
    }

    #[test]
    fn what_is_not() {
        let (chain, key) = made(&["a.example"]);
        let (other, other_key) = made(&["b.example"]);
        check("", &key, false, "no certificate in PEM form");
        check("0\u{82}\u{1}", &key, false, "no certificate in PEM form");
        check(&key, &chain, false, "the wrong way round");
        check(&chain[..chain.len() - 40], &key, false, "has no end");
        check("-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n", &key, false, "not base64");
        check("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key, false, "no X.509");
        check(&chain, "", true, "no private key");
        check(&chain, &chain, true, "no private key");
        check(&chain, &key[..key.len() - 40], true, "has no end");
        check(&chain, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", true, "cannot be used");
        check(&chain, &key.replace("PRIVATE", "ENCRYPTED PRIVATE"), true, "passphrase");
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        check(&chain, old, true, "passphrase");
        check(&chain, &other_key, true, "does not fit");
        check(&format!("{other}{chain}"), &key, true, "must be the server's own");
    }

    #[test]
    fn no_message_shows_a_key() {
        let (chain, key) = made(&["a.example"]);
        let secret = key.lines().nth(1).unwrap();
        for bad in
            [key.replace("\n-----END", "%\n-----END"), key.replace("-----END", "----END"), format!("{key}{key}%")]
        {
            if let Err(error) = Certificate::read(chain.as_bytes(), bad.as_bytes()) {
                assert!(!format!("{error} {error:?}").contains(secret), "{error}");
            }
        }
        assert!(Certificate::read(chain.as_bytes(), key.replace("-----END", "----END").as_bytes()).is_err());
    }

    #[test]
    fn roots() {
        let (one, key) = made(&["a"]);
        let (two, _) = made(&["b"]);
        assert_eq!(client_roots(format!("{one}{two}").as_bytes()).unwrap().len(), 2);
        for (pem, said) in [
            ("", "no certificate"),
            (&*key, "no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be used"),
        ] {
            let error = client_roots(pem.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
