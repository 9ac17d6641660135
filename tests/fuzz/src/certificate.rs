//! Certificates of clients: a kind of name, and DER that nobody has verified.
//! Law: whatever it is, it is one name within its bounds or none; the same bytes are always the same name.

use tidewheel::config::tls::ClientIdSource;
use tidewheel::id::USER_ID_LENGTH_MAX;
use tidewheel::tls::ClientCertificate;

const KINDS: [ClientIdSource; 3] = [ClientIdSource::CommonName, ClientIdSource::Uri, ClientIdSource::Dns];

/// The first byte is the kind, the others are the certificate.
pub fn try_bytes(bytes: &[u8]) {
    let Some((kind, der)) = bytes.split_first() else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let Ok(certificate) = ClientCertificate::read(der) else { return };
    assert_eq!(ClientCertificate::read(der), Ok(certificate.clone()));
    assert_eq!(certificate.clone().client_id(ClientIdSource::None), Ok(None));
    let Ok(client_id) = certificate.client_id(kind) else { return };
    let client_id = client_id.unwrap();
    assert!((1..=USER_ID_LENGTH_MAX).contains(&client_id.len()));
    // Its bytes are there, and not those of several names put together.
    let is_there = |name: &[u8]| der.windows(name.len()).any(|part| part.eq_ignore_ascii_case(name));
    assert!(is_there(client_id.as_bytes()));
    if kind == ClientIdSource::Dns {
        assert_eq!(*client_id, *client_id.to_ascii_lowercase());
    }
}
