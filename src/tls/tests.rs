//! A client and a server that shake hands in memory, and the layer over the simulated kernel.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::handshake::{Failed, Finished, Handshake, Progress};

/// What a server offers, and a client that trusts it.
pub(super) fn configs(
    versions: &[&'static SupportedProtocolVersion],
    suite: Option<rustls::CipherSuite>,
) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let mut provider = default_provider();
    if let Some(suite) = suite {
        provider.cipher_suites.retain(|known| known.suite() == suite);
    }
    let provider = Arc::new(provider);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    server.enable_secret_extraction = true;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

pub(super) fn client(config: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(config.clone(), ServerName::try_from("localhost").unwrap()).unwrap()
}

/// What the client wants to send.
pub(super) fn take_tls(client: &mut ClientConnection) -> Vec<u8> {
    let mut out = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut out).unwrap();
    }
    out
}

/// Gives the client what the server sent.
pub(super) fn give_tls(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets()?;
        let _ = client.reader().read_to_end(&mut plain); // ends with WouldBlock
    }
    Ok(plain)
}

/// Shakes hands in pieces of `piece` bytes; `first` is what the client says right behind its last message.
pub(super) fn shake_hands(
    server: &Arc<ServerConfig>,
    client: &mut ClientConnection,
    first: &[u8],
    piece: usize,
) -> Result<Finished, (Failed, Vec<u8>)> {
    let mut handshake = Handshake::new(server.clone()).unwrap();
    client.writer().write_all(first).unwrap();
    for _ in 0..10 {
        let sent = take_tls(client);
        for from in (0..sent.len()).step_by(piece) {
            let to = sent.len().min(from + piece);
            handshake.receive(&sent[from..to]);
            let mut out = Vec::new();
            let outcome = handshake.advance(&mut out);
            let told = give_tls(client, &out);
            match outcome {
                Ok(Progress::Complete) => {
                    told.unwrap();
                    handshake.receive(&sent[to..]);
                    handshake.receive(&take_tls(client));
                    return handshake.finish().map_err(|failed| (failed, Vec::new()));
                }
                Err(failed) => return Err((failed, out)),
                Ok(Progress::NeedMore) if told.is_err() => {
                    handshake.receive(&take_tls(client));
                    return Err((handshake.advance(&mut Vec::new()).unwrap_err(), Vec::new()));
                }
                Ok(Progress::NeedMore) => {}
            }
        }
    }
    panic!("a handshake without end");
}

#[test]
fn a_handshake_ends_however_it_is_cut() {
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let (server, client_config) = configs(versions, None);
        for (piece, expected) in [(1, false), (7, true), (100, true), (1 << 20, true)] {
            let mut client = client(&client_config);
            let Finished { is_resumed, certificate, is_ended, .. } =
                shake_hands(&server, &mut client, b"", piece).map_err(|(failed, _)| failed).unwrap();
            // The second and later ones come back with the first one's ticket.
            assert_eq!((is_resumed, certificate.is_some(), is_ended), (expected, false, false), "{piece}");
        }
    }
}

#[test]
fn what_follows_the_handshake_is_not_lost() {
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let (server, client_config) = configs(versions, None);
        for piece in [1, 50, 1 << 20] {
            let mut client = client(&client_config);
            let first = [7; 3000];
            let Finished { mut records, mut plain, mut rest, .. } =
                shake_hands(&server, &mut client, &first, piece).map_err(|(failed, _)| failed).unwrap();
            let batch = records.open_all(&mut rest);
            plain.extend_from_slice(&rest[..batch.plain]);
            assert!(plain == first, "{piece}: {} of {} bytes", plain.len(), first.len());
            assert_eq!((batch.taken, batch.end), (rest.len(), None), "{piece}");
        }
    }
}

#[test]
fn failures_are_told() {
    let (server, _) = configs(&[&rustls::version::TLS13], None);
    let (_, stranger) = configs(&[&rustls::version::TLS13], None);
    let (_, old) = configs(&[&rustls::version::TLS12], None);
    let fails = |config: &Arc<ClientConfig>| {
        let (failed, out) = shake_hands(&server, &mut client(config), b"", 1 << 20).unwrap_err();
        (failed.to_string(), out)
    };
    assert!(fails(&stranger).0.contains("received fatal alert"), "{}", fails(&stranger).0);
    let (why, out) = fails(&old);
    assert!(why.contains("incompatible"), "{why}");
    assert_eq!(out, [21, 3, 3, 0, 2, 2, 70], "protocol_version (RFC 8446 §6.2)");
}

#[track_caller]
fn check_first_bytes(bytes: &[u8], expected: &str, told: &[u8]) {
    let (server, _) = configs(&[&rustls::version::TLS13], None);
    let mut handshake = Handshake::new(server).unwrap();
    handshake.receive(bytes);
    let mut out = Vec::new();
    let failed = handshake.advance(&mut out).unwrap_err().to_string();
    assert!(failed.contains(expected), "{failed}");
    assert!(out.starts_with(told), "{}", String::from_utf8_lossy(&out));
}

#[test]
fn what_is_no_handshake() {
    check_first_bytes(b"GET /ws HTTP/1.1\r\n", "without TLS", b"HTTP/1.1 400 Bad Request\r\n");
    check_first_bytes(b"\x00\x01\x02\x03\x04\x05\x06\x07", "InvalidContentType", &[21, 3, 3, 0, 2, 2, 50]);
    // A message of 0xffffff bytes in records of which each is full.
    let mut long = Vec::new();
    for _ in 0..3 {
        long.extend_from_slice(&[22, 3, 1, 0x40, 0]);
        long.extend_from_slice(&[1, 0, 0xff, 0xff]);
        long.resize(long.len() + (1 << 14) - 4, 0);
    }
    check_first_bytes(&long, "", b"");
}
