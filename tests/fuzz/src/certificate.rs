//! Certificates of clients: a kind of name, and DER that nobody has verified.
//! Law: whatever it is, it is one name within its bounds or none; the same bytes are always the same name.

use tidewheel::config::tls::ClientIdSource;
use tidewheel::id::USER_ID_LENGTH_MAX;
use tidewheel::tls::named;

const KINDS: [ClientIdSource; 3] = [ClientIdSource::CommonName, ClientIdSource::Uri, ClientIdSource::Dns];

/// The first byte is the kind, the others are the certificate.
pub fn try_bytes(bytes: &[u8]) {
    let Some((kind, der)) = bytes.split_first() else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let read = |kind| named(kind, der);
    let Ok(subject) = read(kind) else { return };
    assert!((1..=USER_ID_LENGTH_MAX).contains(&subject.client_id.len()));
    assert_eq!(read(kind), Ok(subject.clone()));
    // Its bytes are there, and not those of several names put together.
    let is_there = |name: &[u8]| der.windows(name.len()).any(|part| part.eq_ignore_ascii_case(name));
    assert!(is_there(subject.client_id.as_bytes()));
    if kind == ClientIdSource::Dns {
        assert_eq!(*subject.client_id, *subject.client_id.to_ascii_lowercase());
    }
    assert_eq!(read(ClientIdSource::None).ok(), None);
}
