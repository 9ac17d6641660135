//! TLS on a simulated client's side: what goes over the network instead of what it says.
//!
//! Law: a run is a function of its seed although keys are not: certificates are Ed25519, whose signatures have one length,
//! and no session is resumed, so everything has the same length each time.

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tidewheel::config::tls::Tls;
use tidewheel::io::sim::{ClientId, Dice, World};
use tidewheel::tls::{Certificate, Terms};

/// What the servers of all runs offer, and clients that trust it: with TLS 1.2 and 1.3, and with large and small records.
static SIDES: LazyLock<(Arc<Terms>, [Arc<ClientConfig>; 4])> = LazyLock::new(|| {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let made = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let shown = Certificate::read(made.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.der().clone()).unwrap();
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519];
    let provider = Arc::new(provider);
    let small = Some(100);
    let clients =
        [(&TLS12, None), (&TLS13, None), (&TLS12, small), (&TLS13, small)].map(|(version, record_bytes_max)| {
            let builder =
                ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[version]).unwrap();
            let mut config = builder.with_root_certificates(roots.clone()).with_no_client_auth();
            config.resumption = Resumption::disabled();
            config.max_fragment_size = record_bytes_max;
            Arc::new(config)
        });
    (Arc::new(Terms::new(&Tls::default(), &[shown], None, None).unwrap()), clients)
});

/// What a server offers.
pub fn terms() -> Arc<Terms> {
    SIDES.0.clone()
}

/// A client's end.
pub struct Link(ClientConnection);

impl Link {
    pub fn new(dice: &mut Dice) -> Self {
        let config = SIDES.1[dice.below(4)].clone();
        let mut client = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
        client.set_buffer_limit(None); // of what is said before there are keys
        Self(client)
    }

    /// Both sides do not have keys yet.
    pub fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// What goes over the network when the client says this; what is said before there are keys goes when there are.
    pub fn say(&mut self, plain: &[u8]) -> Vec<u8> {
        self.0.writer().write_all(plain).unwrap();
        self.flush()
    }

    /// What goes over the network when nothing more comes.
    pub fn bye(&mut self) -> Vec<u8> {
        self.0.send_close_notify();
        self.flush()
    }

    /// Changes the client's keys, if there are any to change.
    pub fn refresh(&mut self) {
        let _ = self.0.refresh_traffic_keys(); // TLS 1.2 has no others
    }

    /// What has arrived, opened. Whether there is more for the client to say: the next part of the handshake, or what waited for
    /// its end.
    pub fn take(&mut self, world: &World, id: ClientId, may_answer: bool) -> (Vec<u8>, bool) {
        let arrived = world.client_take(id);
        let (mut arrived, mut plain) = (arrived.as_slice(), Vec::new());
        while !arrived.is_empty() {
            self.0.read_tls(&mut arrived).unwrap();
            self.0.process_new_packets().expect("what the server says is TLS");
            let _ = self.0.reader().read_to_end(&mut plain); // ends with WouldBlock
        }
        let has_more = self.0.wants_write();
        if may_answer {
            world.client_send(id, &self.flush());
        }
        (plain, has_more)
    }

    fn flush(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut out).unwrap();
        }
        out
    }
}
