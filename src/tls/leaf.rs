//! What is read of a certificate: names and time, of the server's own and of clients'.
//! Law: no bytes are a panic; what cannot be read whole is not read at all.

use x509_cert::Certificate;
use x509_cert::der::asn1::{Any, ObjectIdentifier};
use x509_cert::der::{Decode, Tag, TagNumber, Tagged};

/// The bytes are no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no X.509 certificate: {0}")]
pub struct Unreadable(String);

/// What a certificate says of itself. Whether anybody signed it is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Leaf {
    /// `None`: one that is no text.
    pub(super) common_names: Vec<Option<String>>,
    pub(super) uris: Vec<String>,
    /// In lower case.
    pub(super) dns_names: Vec<String>,
    /// How many IP addresses it names.
    pub(super) addresses: usize,
    /// Unix seconds.
    pub(super) not_before_s: u64,
    /// Unix seconds.
    pub(super) not_after_s: u64,
}

impl Leaf {
    pub(super) fn read(der: &[u8]) -> Result<Self, Unreadable> {
        let unreadable = |error: x509_cert::der::Error| Unreadable(error.to_string());
        let certificate = Certificate::from_der(der).map_err(unreadable)?;
        let certificate = certificate.tbs_certificate();
        let validity = certificate.validity();
        let mut leaf = Self {
            not_before_s: validity.not_before.to_unix_duration().as_secs(),
            not_after_s: validity.not_after.to_unix_duration().as_secs(),
            ..Self::default()
        };
        let attributes = certificate.subject().iter();
        leaf.common_names = attributes.filter(|one| one.oid == COMMON_NAME).map(|one| text(&one.value)).collect();
        let extensions = certificate.extensions().into_iter().flatten();
        for extension in extensions.filter(|extension| extension.extn_id == SUBJECT_ALT_NAME) {
            // By tag, so that kinds of names that nobody asks for need not be understood.
            for name in Vec::<Any>::from_der(extension.extn_value.as_bytes()).map_err(unreadable)? {
                let Tag::ContextSpecific { constructed: false, number } = name.tag() else { continue };
                let text = || ascii(name.value()).ok_or_else(|| Unreadable("a name is not ASCII".to_owned()));
                match number {
                    DNS_NAME => leaf.dns_names.push(text()?.to_ascii_lowercase()),
                    URI => leaf.uris.push(text()?),
                    IP_ADDRESS => leaf.addresses += 1,
                    _ => {}
                }
            }
        }
        Ok(leaf)
    }
}

/// The text of a DirectoryString (RFC 5280 §4.1.2.4), of the kinds that CAs use.
fn text(value: &Any) -> Option<String> {
    match value.tag() {
        Tag::Utf8String => String::from_utf8(value.value().to_vec()).ok(),
        Tag::PrintableString | Tag::Ia5String => ascii(value.value()),
        _ => None,
    }
}

fn ascii(bytes: &[u8]) -> Option<String> {
    bytes.is_ascii().then(|| String::from_utf8_lossy(bytes).into_owned())
}

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
// Of GeneralName, RFC 5280 §4.2.1.6.
const DNS_NAME: TagNumber = TagNumber(2);
const URI: TagNumber = TagNumber(6);
const IP_ADDRESS: TagNumber = TagNumber(7);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType, date_time_ymd};

    use super::*;

    fn made(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    /// A certificate of which every kind of name is read.
    fn full() -> Vec<u8> {
        made(|params| {
            params.distinguished_name.push(DnType::CommonName, "Ann Ähre");
            params.distinguished_name.push(DnType::OrganizationName, "Tides");
            params.subject_alt_names = vec![
                SanType::DnsName("A.example".try_into().unwrap()),
                SanType::DnsName("*.b.example".try_into().unwrap()),
                SanType::URI("spiffe://tides/ann".try_into().unwrap()),
                SanType::IpAddress([127, 0, 0, 1].into()),
                SanType::Rfc822Name("ann@a.example".try_into().unwrap()),
                SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], "upn".into())),
            ];
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2051, 1, 1); // from 2050 on in another form
        })
    }

    #[test]
    fn names_and_times() {
        let expected = Leaf {
            common_names: vec![Some("Ann Ähre".to_owned())],
            uris: vec!["spiffe://tides/ann".to_owned()],
            dns_names: vec!["a.example".to_owned(), "*.b.example".to_owned()],
            addresses: 1,
            not_before_s: 1_577_836_800,
            not_after_s: 2_556_144_000,
        };
        assert_eq!(Leaf::read(&full()), Ok(expected));
    }

    #[test]
    fn common_names() {
        let check = |value: DnValue, expected: Option<&str>| {
            let der = made(|params| params.distinguished_name.push(DnType::CommonName, value));
            assert_eq!(Leaf::read(&der).unwrap().common_names, [expected.map(str::to_owned)]);
        };
        check(DnValue::PrintableString("Ann".try_into().unwrap()), Some("Ann"));
        check(DnValue::Ia5String("ann@a".try_into().unwrap()), Some("ann@a"));
        check(DnValue::BmpString("Ann".try_into().unwrap()), None);
        assert_eq!(Leaf::read(&made(|_| {})).unwrap().common_names, []);
    }

    #[test]
    fn what_is_no_certificate() {
        let mut more = full(); // of another length each time: signatures are
        for bytes in [&b""[..], b"\x30\x00", b"\x30\x84\xff\xff\xff\xff", &more[1..], &more[..more.len() - 1]] {
            Leaf::read(bytes).unwrap_err();
        }
        more.push(0);
        Leaf::read(&more).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Leaf::read(&bytes);
        }
    }

    /// Every byte of a good certificate is damaged, in every bit and to the extremes, and then many at random places: it is
    /// read, or it is not.
    #[test]
    fn no_damage_is_a_panic() {
        let good = full();
        let mut read = 0;
        for at in 0..good.len() {
            for byte in (0..8).map(|bit| good[at] ^ (1 << bit)).chain([0, 0x7f, 0x80, 0xff]) {
                let mut bad = good.clone();
                bad[at] = byte;
                read += usize::from(Leaf::read(&bad).is_ok());
            }
        }
        assert!(read > good.len(), "damage to key and signature is not looked at: {read}");
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        for _ in 0..20_000 {
            let mut bad = good.clone();
            for _ in 0..=next(4) {
                let at = next(bad.len());
                match next(3) {
                    0 => bad[at] = next(256) as u8,
                    1 => drop(bad.remove(at)),
                    _ => bad.insert(at, next(256) as u8),
                }
            }
            let _ = Leaf::read(&bad);
        }
    }
}
