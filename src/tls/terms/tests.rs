//! Handshakes under the terms, with clients of the same library, in memory.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::HandshakeKind::{Full, FullWithHelloRetryRequest, Resumed};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, ClientConnection, Error, ProtocolVersion, ServerConnection, SupportedProtocolVersion};

use super::*;
use crate::tls::{ClientCertificate, client_roots};

/// Who signs certificates, in a test.
struct Ca(Issuer<'static, KeyPair>, String);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    fn roots(&self) -> RootCertStore {
        client_roots(self.1.as_bytes()).unwrap()
    }

    /// A certificate for these names, one of which is a URI.
    fn sign(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.contains(':') {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    fn certificate(&self, name: &str) -> Certificate {
        let (chain, key) = self.sign(&[name]);
        Certificate::read(chain.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    /// A client that speaks these versions, trusts this CA alone and shows a certificate for `own`, if that is a name.
    fn client(&self, versions: &[&'static SupportedProtocolVersion], own: Option<&str>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_protocol_versions(versions).unwrap().with_root_certificates(self.roots());
        Arc::new(match own {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let (chain, key) = self.sign(&[name]);
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![chain.der().clone()], key).unwrap()
            }
        })
    }
}

/// Talks until both have nothing more to say.
fn shake(client: &Arc<ClientConfig>, terms: &Terms, name: &str) -> Result<(ClientConnection, ServerConnection), Error> {
    let mut client = ClientConnection::new(client.clone(), name.to_owned().try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(terms.server.clone()).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn tls(yaml: &str) -> Tls {
    crate::Config::parse(&format!("tls: {{{yaml}}}")).unwrap().tls
}

/// What became of a handshake: its kind, as the server saw it.
#[track_caller]
fn check(client: &Arc<ClientConfig>, terms: &Terms, resumed: bool) {
    let (_, server) = shake(client, terms, "a.example").unwrap();
    match server.handshake_kind() {
        Some(Resumed) => assert!(resumed, "the ticket was taken"),
        Some(Full | FullWithHelloRetryRequest) => assert!(!resumed, "the ticket was not taken"),
        None => panic!("the handshake has not ended"),
    }
}

const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

#[test]
fn versions() {
    let ca = Ca::new();
    let check = |yaml: &str, versions: &[&'static SupportedProtocolVersion], expected: Option<ProtocolVersion>| {
        let terms = Terms::new(&tls(yaml), &[ca.certificate("a.example")], None, None).unwrap();
        let spoken =
            shake(&ca.client(versions, None), &terms, "a.example").ok().and_then(|(_, s)| s.protocol_version());
        assert_eq!(spoken, expected, "{yaml}");
    };
    check("", BOTH, Some(ProtocolVersion::TLSv1_3));
    check("", &[&TLS12], Some(ProtocolVersion::TLSv1_2));
    check("min_version: 1.3", BOTH, Some(ProtocolVersion::TLSv1_3));
    check("min_version: 1.3", &[&TLS12], None);
}

#[test]
fn http_1_1_is_all_that_is_spoken() {
    let ca = Ca::new();
    let terms = Terms::new(&tls(""), &[ca.certificate("a.example")], None, None).unwrap();
    let check = |protocols: &[&str], expected: Option<Option<&str>>| {
        let mut client = (*ca.client(BOTH, None)).clone();
        client.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let chosen = shake(&Arc::new(client), &terms, "a.example").ok();
        let chosen = chosen.map(|(client, _)| client.alpn_protocol().map(|name| name.to_vec()));
        assert_eq!(chosen, expected.map(|name| name.map(|name| name.as_bytes().to_vec())), "{protocols:?}");
    };
    check(&["h2", "http/1.1"], Some(Some("http/1.1")));
    check(&[], Some(None));
    check(&["h2"], None);
}

#[test]
fn the_name_chooses_the_certificate() {
    let ca = Ca::new();
    let certificates = ["a.example", "*.b.example"].map(|name| ca.certificate(name));
    let terms = Terms::new(&tls(""), &certificates, None, None).unwrap();
    let check = |name: &str, expected: Result<usize, ()>| {
        // A client that asks for what nobody has is shown the first, and refuses it.
        let shown = shake(&ca.client(BOTH, None), &terms, name).map_err(drop);
        let shown = shown.map(|(client, _)| client.peer_certificates().unwrap()[0].clone());
        assert_eq!(shown, expected.map(|index| certificates[index].key.cert[0].clone()), "{name}");
    };
    check("a.example", Ok(0));
    check("c.b.example", Ok(1));
    check("c.example", Err(()));
    assert_eq!(Terms::new(&tls(""), &[], None, None).unwrap_err(), TermsError::NoCertificate);
}

#[test]
fn tickets() {
    let ca = Ca::new();
    let terms = |yaml: &str, before: Option<&Terms>| {
        Terms::new(&tls(yaml), &[ca.certificate("a.example")], None, before).unwrap()
    };
    for versions in [&[&TLS13][..], &[&TLS12]] {
        let first = terms("", None);
        let client = ca.client(versions, None);
        check(&client, &first, false);
        check(&client, &first, true);
        // With other certificates and numbers too, as long as the same clients are trusted.
        let next = terms("session_tickets: 5", Some(&first));
        check(&client, &next, true);
        check(&client, &terms("", None), false);
        let none = terms("session_tickets: 0", Some(&next));
        let client = ca.client(versions, None);
        check(&client, &none, false);
        check(&client, &none, false);
        // Keys that were let go do not come back.
        let client = ca.client(versions, None);
        check(&client, &next, false);
        check(&client, &terms("", Some(&none)), false);
    }
    for (yaml, count) in [("", 2), ("session_tickets: 0", 0), ("session_tickets: 8", 8)] {
        let (client, server) = shake(&ca.client(&[&TLS13], None), &terms(yaml, None), "a.example").unwrap();
        assert_eq!(client.tls13_tickets_received(), count, "{yaml}");
        assert_eq!(server.server_name(), Some("a.example"));
    }
    let server = terms("", None).server;
    assert_eq!(server.max_early_data_size, 0);
    assert!(!server.session_storage.can_cache() && server.enable_secret_extraction);
}

#[test]
fn certificates_of_clients() {
    let (ca, other) = (Ca::new(), Ca::new());
    let terms = |auth: &str| {
        let tls = tls(&format!("client_auth: {auth}, client_id: uri, client_ca_file: f"));
        Terms::new(&tls, &[ca.certificate("a.example")], Some(ca.roots()), None).unwrap()
    };
    let check = |auth: &str, own: Option<(&Ca, &str)>, expected: Result<Option<&str>, ()>| {
        let terms = terms(auth);
        let client = match own {
            None => ca.client(BOTH, None),
            Some((signer, name)) => {
                let mut client = (*ca.client(BOTH, None)).clone();
                let shown = signer.client(BOTH, Some(name));
                client.client_auth_cert_resolver = shown.client_auth_cert_resolver.clone();
                Arc::new(client)
            }
        };
        let named = shake(&client, &terms, "a.example").map_err(drop).map(|(_, server)| {
            let leaf = server.peer_certificates().map(|chain| chain[0].clone());
            leaf.and_then(|leaf| ClientCertificate::read(&leaf).unwrap().client_id(terms.client_id).unwrap())
        });
        assert_eq!(named, expected.map(|id| id.map(Into::into)), "{auth}");
    };
    check("optional", None, Ok(None));
    check("required", None, Err(()));
    check("required", Some((&ca, "spiffe://t/ann")), Ok(Some("spiffe://t/ann")));
    check("optional", Some((&ca, "spiffe://t/ann")), Ok(Some("spiffe://t/ann")));
    check("optional", Some((&other, "spiffe://t/ann")), Err(()));
    check("none", Some((&ca, "spiffe://t/ann")), Ok(None));
    let required = tls("client_auth: required");
    assert_eq!(Terms::new(&required, &[ca.certificate("a")], None, None).unwrap_err(), TermsError::NoRoots);
}

/// A ticket brings a certificate back that nobody verifies again: it must end with the trust in who signed it.
#[test]
fn a_ticket_ends_with_the_trust_it_was_given_under() {
    let (ca, other) = (Ca::new(), Ca::new());
    let terms = |auth: &str, roots: &Ca, before: Option<&Terms>| {
        let tls = tls(&format!("client_auth: {auth}, client_ca_file: f"));
        Terms::new(&tls, &[ca.certificate("a.example")], Some(roots.roots()), before).unwrap()
    };
    for versions in [&[&TLS13][..], &[&TLS12]] {
        let first = terms("optional", &ca, None);
        let client = ca.client(versions, Some("spiffe://t/ann"));
        check(&client, &first, false);
        let (_, server) = shake(&client, &first, "a.example").unwrap();
        assert!(server.handshake_kind() == Some(Resumed) && server.peer_certificates().is_some());
        check(&client, &terms("optional", &ca, Some(&first)), true);
        check(&client, &terms("required", &ca, Some(&first)), false);
        let client = ca.client(versions, Some("spiffe://t/ann"));
        check(&client, &first, false);
        shake(&client, &terms("optional", &other, Some(&first)), "a.example").unwrap_err();
        // Nor does a client come in without a certificate by a ticket of before one was required.
        let client = ca.client(versions, None);
        check(&client, &first, false);
        shake(&client, &terms("required", &ca, Some(&first)), "a.example").unwrap_err();
    }
}
