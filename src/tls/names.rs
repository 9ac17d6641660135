//! Which certificate a newcomer is shown, by the name that it asks for.
//! Law: an exact name goes before one with `*`, and whoever asks for neither gets the first certificate.

use std::sync::Arc;

use ahash::AHashMap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;

/// All certificates by name. As many as the configuration names, whatever clients ask for.
#[derive(Debug)]
pub(super) struct Names {
    exact: AHashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// Those with a first label `*`, by the rest.
    below: AHashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    first: Arc<CertifiedKey>,
}

impl Names {
    /// `None`: there is no certificate at all.
    pub(super) fn new(certificates: &[Certificate]) -> Option<Self> {
        let first = certificates.first()?.key.clone();
        let mut names = Self { exact: AHashMap::new(), below: AHashMap::new(), first };
        for certificate in certificates {
            for name in certificate.names() {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(rest) => (&mut names.below, rest),
                    None => (&mut names.exact, name.as_str()),
                };
                map.entry(name.into()).or_default().push(certificate.key.clone());
            }
        }
        Some(names)
    }

    /// The first of its certificates that `suits`, as there may be one for each kind of key; if none does the first, so
    /// that the handshake says what is missing.
    fn find(&self, asked: Option<&str>, suits: impl Fn(&CertifiedKey) -> bool) -> &Arc<CertifiedKey> {
        let of_name = |asked: &str| {
            let asked = asked.to_ascii_lowercase();
            let rest = asked.split_once('.').map(|(_, rest)| rest);
            self.exact.get(&*asked).or_else(|| self.below.get(rest?))
        };
        match asked.and_then(of_name) {
            Some(all) => all.iter().find(|key| suits(key)).or(all.first()).unwrap_or(&self.first),
            None => &self.first,
        }
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        Some(self.find(hello.server_name(), |key| key.key.choose_scheme(schemes).is_some()).clone())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::SignatureAlgorithm::{ECDSA, ED25519};

    use super::*;

    fn certificate(names: &[&str], algorithm: &'static rcgen::SignatureAlgorithm) -> Certificate {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate_for(algorithm).unwrap();
        let chain = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        Certificate::read(chain.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    #[test]
    fn the_certificate_of_a_name() {
        let certificates =
            [&["first.example"][..], &["A.example", "*.wild.example"], &["own.wild.example", "*.x.y", "*"]]
                .map(|names| certificate(names, &rcgen::PKCS_ECDSA_P256_SHA256));
        let names = Names::new(&certificates).unwrap();
        let check = |asked: Option<&str>, expected: usize| {
            let found = names.find(asked, |_| true);
            let index = certificates.iter().position(|certificate| Arc::ptr_eq(&certificate.key, found));
            assert_eq!(index, Some(expected), "{asked:?}");
        };
        check(None, 0);
        check(Some(""), 0);
        check(Some("first.example"), 0);
        check(Some("unknown.example"), 0);
        check(Some("a.example"), 1);
        check(Some("A.eXample"), 1);
        check(Some("b.a.example"), 0);
        check(Some("any.wild.example"), 1);
        check(Some("ANY.WILD.example"), 1);
        check(Some("wild.example"), 0);
        check(Some("two.labels.wild.example"), 0);
        check(Some("own.wild.example"), 2);
        check(Some("z.x.y"), 2);
        check(Some("single"), 0);
        assert!(Names::new(&[]).is_none());
    }

    #[test]
    fn of_several_for_a_name_the_one_whose_key_the_client_knows() {
        let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519];
        let certificates = kinds.map(|kind| certificate(&["a.example"], kind));
        let names = Names::new(&certificates).unwrap();
        for algorithm in [ECDSA, ED25519] {
            let found = names.find(Some("a.example"), |key| key.key.algorithm() == algorithm);
            assert_eq!(found.key.algorithm(), algorithm);
        }
        assert_eq!(names.find(Some("a.example"), |_| false).key.algorithm(), ECDSA);
    }
}
