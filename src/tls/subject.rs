//! Who a client's certificate names.
//! Law: an id is there once or nobody is named: of two names nobody chooses one for a client.

use super::leaf::{Leaf, Unreadable};
use crate::config::tls::ClientIdSource;
use crate::id::USER_ID_LENGTH_MAX;

/// A client's certificate, read. Who signed it is not looked at here: the handshake has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate(Leaf);

/// Why a certificate that somebody trusted signed names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
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

impl ClientCertificate {
    /// Of DER.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(der: &[u8]) -> Result<Self, Unreadable> {
        Leaf::read(der).map(Self)
    }

    /// When it ends, in Unix seconds. A ticket may bring back one that has ended: whoever admits its holder looks at this.
    pub fn not_after_s(&self) -> u64 {
        self.0.not_after_s
    }

    /// The client's id by this kind of name: 1 to [`USER_ID_LENGTH_MAX`] bytes. `None` if certificates do not say who a
    /// client is.
    ///
    /// # Errors
    /// It does not have exactly one name of the kind, or none that can be an id.
    pub fn client_id(self, kind: ClientIdSource) -> Result<Option<Box<str>>, NameError> {
        let Leaf { common_names, uris, dns_names, .. } = self.0;
        let all = |texts: Vec<String>| texts.into_iter().map(Some).collect();
        let mut names: Vec<Option<String>> = match kind {
            ClientIdSource::None => return Ok(None),
            ClientIdSource::CommonName => common_names,
            ClientIdSource::Uri => all(uris),
            ClientIdSource::Dns => all(dns_names),
        };
        let count = names.len();
        let (Some(name), 1) = (names.pop(), count) else { return Err(NameError::Count { kind, count }) };
        let name = name.ok_or(NameError::NoText)?;
        match name.len() {
            1..=USER_ID_LENGTH_MAX => Ok(Some(name.into())),
            bytes => Err(NameError::Length { bytes }),
        }
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
        let certificate = ClientCertificate::read(certificate.der()).unwrap();
        assert_eq!(certificate.not_after_s(), 1_893_456_000);
        assert_eq!(certificate.clone().client_id(ClientIdSource::None), Ok(None));
        match (certificate.client_id(source), expected) {
            (Err(said), Err(why)) => assert!(said.to_string().contains(why), "{said}"),
            (named, expected) => assert_eq!(named, Ok(Some(expected.unwrap().into()))),
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
}
