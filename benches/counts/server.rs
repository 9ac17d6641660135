//! One real shard on a calm kernel, and what its clients say.
//! Law: what a client says is made before it is counted; what a shard does about it is one turn, the end of the send before
//! included.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tidewheel::Config;
use tidewheel::app::Router;
use tidewheel::config::tls::Tls;
use tidewheel::id::{ConnKey, ShardId};
use tidewheel::metrics::ShardMetrics;
use tidewheel::pubsub::Bus;
use tidewheel::shard::settings::Settings;
use tidewheel::shard::{Shard, Shared};
use tidewheel::tls::{Certificate, Terms};

use crate::calm::Calm;

/// Connections that may come in the life of a server.
const SOCKETS: u32 = 4096;
/// The mask of every message: none that leaves bytes as they are.
const MASK: [u8; 4] = [0x1d, 0xe5, 0x3a, 0x77];

/// The shard.
pub struct Server {
    shard: Shard<Calm>,
    metrics: Arc<ShardMetrics>,
}

impl Server {
    /// With the default configuration but for what `change` changes: whoever has no token is welcome, and nobody is pinged.
    pub fn new(router: Router, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(&Config::default(), SOCKETS, SOCKETS);
        settings.auth_required = false;
        settings.client_connections_max = None;
        settings.address_connections_max = None;
        (settings.idle_timeout_ms, settings.ping_interval_ms) = (0, 0);
        settings.echo_path = Some("/echo".into());
        change(&mut settings);
        let shared = Arc::new(Shared::new(router, Bus::new(1), Arc::default()));
        let metrics: Arc<ShardMetrics> = Arc::default();
        let calm = Calm::new(SOCKETS as usize);
        let now = calm.now();
        let mut shard = Shard::new(ShardId(0), calm, Arc::new(settings), shared, metrics.clone(), Arc::default(), now);
        shard.open();
        let mut server = Self { shard, metrics };
        server.turn(); // it accepts from now on
        server
    }

    /// The kernel.
    pub fn calm(&mut self) -> &mut Calm {
        self.shard.io_mut()
    }

    /// What the shard counts.
    pub fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }

    /// One turn of the loop.
    pub fn turn(&mut self) {
        self.shard.turn().expect("a calm kernel does not break");
    }

    /// Turns until nothing is on its way.
    pub fn rest(&mut self) {
        loop {
            let before = self.calm().sent;
            (0..3).for_each(|_| self.turn());
            if self.calm().sent == before {
                return;
            }
        }
    }

    /// A connection that nothing has come from.
    pub fn newcomer(&mut self) -> ConnKey {
        self.calm().connect();
        self.turn();
        self.calm().adopted().expect("there is room")
    }

    /// A connection that has asked for this and was upgraded.
    pub fn client(&mut self, request: &[u8]) -> ConnKey {
        let conn = self.newcomer();
        self.calm().listen(conn);
        self.calm().say(conn, request);
        self.rest();
        let answer = self.calm().hear();
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
        self.calm().ignore();
        conn
    }

    /// A subscriber.
    pub fn subscriber(&mut self, request: &[u8], topic: &str) -> ConnKey {
        let conn = self.client(request);
        self.calm().say(conn, &text(&format!(r#"{{"type":"subscribe","payload":{{"topic":"{topic}"}}}}"#)));
        self.rest();
        conn
    }
}

/// An upgrade request for `path`, with more headers, each ended by CRLF.
pub fn request(path: &str, headers: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    )
    .into_bytes()
}

/// A masked frame whose first byte is `first`.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(len).expect("less than 64 KiB").to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A text message.
pub fn text(payload: &str) -> Vec<u8> {
    frame(0x81, payload.as_bytes())
}

/// The client's end of TLS.
pub struct Link(ClientConnection);

impl Link {
    /// What a server offers, and a client that trusts it.
    pub fn sides() -> (Arc<Terms>, Self) {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let made =
            rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name").self_signed(&key).expect("signed");
        let shown = Certificate::read(made.pem().as_bytes(), key.serialize_pem().as_bytes()).expect("a certificate");
        let terms = Terms::new(&Tls::default(), &[shown], None, None).expect("what is usual");
        let mut roots = RootCertStore::empty();
        roots.add(made.der().clone()).expect("a certificate");
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        (Arc::new(terms), Self(ClientConnection::new(Arc::new(config), name).expect("what is usual")))
    }

    /// What goes over the network when the client says this.
    pub fn say(&mut self, plain: &[u8]) -> Vec<u8> {
        self.0.writer().write_all(plain).expect("memory");
        let mut out = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut out).expect("memory");
        }
        out
    }

    /// What has arrived, opened.
    pub fn take(&mut self, mut arrived: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        while !arrived.is_empty() {
            self.0.read_tls(&mut arrived).expect("memory");
            self.0.process_new_packets().expect("what the server says is TLS");
            let _ = self.0.reader().read_to_end(&mut plain); // ends with WouldBlock
        }
        plain
    }
}
