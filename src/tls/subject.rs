//! Who a client's certificate names.
//! Law: an id is there once or nobody is named: of two names nobody chooses one for a client.

use rustls::pki_types::CertificateDer;

use super::leaf::{Leaf, Unreadable};
use super::terms::Terms;
use crate::config::tls::ClientIdSource;
use crate::id::USER_ID_LENGTH_MAX;

/// Who a certificate names, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertSubject {
    /// 1 to [`USER_ID_LENGTH_MAX`] bytes.
    pub client_id: Box<str>,
    /// When the certificate ends, in Unix seconds. A ticket may bring back one that has ended: whoever admits its holder
    /// looks at this.
    pub not_after_s: u64,
}

/// Why a certificate that somebody trusted signed names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// It cannot be read.
    #[error("the client's certificate cannot be read: {0}")]
    Unreadable(#[from] Unreadable),
    /// It names nobody, or several.
    #[error("the client's certificate has {count} names of the kind `{}`; tls.client_id asks for one", kind.as_str())]
    Count {
        /// The kind.
        kind: ClientIdSource,
        /// How many there are.
        count: usize,
    },
    /// The name is text of a kind that is not read: BMPString, TeletexString or UniversalString.
    #[error("the common name of the client's certificate is neither UTF8String nor PrintableString")]
    NoText,
    /// The name is empty or too long.
    #[error("the name in the client's certificate has {bytes} bytes; 1 to {USER_ID_LENGTH_MAX} are possible")]
    Length {
        /// Its length.
        bytes: usize,
    },
}

/// Who a certificate names that the handshake has verified. `None`: certificates do not say who a client is.
///
/// # Errors
/// It does not name exactly one.
pub fn subject(terms: &Terms, leaf: &CertificateDer<'_>) -> Result<Option<CertSubject>, CertError> {
    match terms.client_id {
        ClientIdSource::None => Ok(None),
        kind => named(kind, leaf).map(Some),
    }
}

/// When a certificate ends, in Unix seconds.
///
/// # Errors
/// It cannot be read.
pub fn not_after_s(leaf: &CertificateDer<'_>) -> Result<u64, Unreadable> {
    Leaf::read(leaf).map(|leaf| leaf.not_after_s)
}

/// Who a certificate (DER) names, by this kind of name.
///
/// # Errors
/// It does not name exactly one.
pub fn named(kind: ClientIdSource, leaf: &[u8]) -> Result<CertSubject, CertError> {
    let Leaf { common_names, uris, dns_names, not_after_s, .. } = Leaf::read(leaf)?;
    let all = |texts: Vec<String>| texts.into_iter().map(Some).collect();
    let mut names: Vec<Option<String>> = match kind {
        ClientIdSource::None => Vec::new(),
        ClientIdSource::CommonName => common_names,
        ClientIdSource::Uri => all(uris),
        ClientIdSource::Dns => all(dns_names),
    };
    let count = names.len();
    let (Some(name), 1) = (names.pop(), count) else { return Err(CertError::Count { kind, count }) };
    let name = name.ok_or(CertError::NoText)?;
    match name.len() {
        1..=USER_ID_LENGTH_MAX => Ok(CertSubject { client_id: name.into(), not_after_s }),
        bytes => Err(CertError::Length { bytes }),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SanType, date_time_ymd};

    use super::*;

    /// What is named by a certificate with these common names and these other names, `uri:` or `dns:`.
    #[track_caller]
    fn check(source: ClientIdSource, common_name: Option<DnValue>, others: &[&str], expected: Result<&str, &str>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_after = date_time_ymd(2030, 1, 1);
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        for other in others {
            params.subject_alt_names.push(match other.split_once(':') {
                Some(("uri", uri)) => SanType::URI(uri.try_into().unwrap()),
                Some((_, name)) => SanType::DnsName(name.try_into().unwrap()),
                None => panic!("{other}"),
            });
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let named = named(source, certificate.der());
        match expected {
            Ok(id) => assert_eq!(named, Ok(CertSubject { client_id: id.into(), not_after_s: 1_893_456_000 })),
            Err(why) => {
                let said = named.unwrap_err().to_string();
                assert!(said.contains(why), "{said}");
            }
        }
    }

    fn text(text: &str) -> Option<DnValue> {
        Some(DnValue::Utf8String(text.to_owned()))
    }

    #[test]
    fn common_names() {
        use ClientIdSource::CommonName;
        check(CommonName, text("ann"), &["uri:a:b"], Ok("ann"));
        check(CommonName, text(&"é".repeat(127)), &[], Ok(&"é".repeat(127)));
        check(CommonName, text(&"é".repeat(128)), &[], Err("256 bytes; 1 to 255"));
        check(CommonName, text(""), &[], Err("has 0 bytes"));
        check(CommonName, None, &["dns:a.example"], Err("0 names of the kind `common_name`"));
        check(CommonName, Some(DnValue::BmpString("ann".try_into().unwrap())), &[], Err("neither UTF8String"));
    }

    #[test]
    fn uris() {
        use ClientIdSource::Uri;
        check(Uri, text("ann"), &["uri:spiffe://tides/ann", "dns:a.example"], Ok("spiffe://tides/ann"));
        check(Uri, text("ann"), &["uri:a:b", "uri:c:d"], Err("2 names of the kind `uri`"));
        check(Uri, text("ann"), &[], Err("0 names of the kind `uri`"));
        check(Uri, None, &[&format!("uri:{}", "u".repeat(256))], Err("256 bytes"));
    }

    #[test]
    fn dns_names() {
        use ClientIdSource::Dns;
        check(Dns, text("ann"), &["uri:a:b", "dns:Pump-7.Example"], Ok("pump-7.example"));
        check(Dns, None, &["dns:a.example", "dns:b.example"], Err("2 names of the kind `dns`"));
    }

    #[test]
    fn what_is_no_certificate() {
        let said = named(ClientIdSource::Uri, b"0").unwrap_err();
        assert!(matches!(said, CertError::Unreadable(_)), "{said}");
    }
}
