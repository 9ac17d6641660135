//! A client's connection with TLS or without, and the certificate that a server shows to it.
//!
//! Law: clients verify the certificate, and offer one cipher suite of each version (AES-128-GCM, as browsers like it best),
//! so that all servers do the same work.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;

/// A new certificate, and who believes it.
pub struct Authority {
    dir: TempDir,
    roots: RootCertStore,
}

impl Authority {
    /// A certificate for `localhost` with an ECDSA key on P-256, signed by itself.
    ///
    /// # Errors
    /// There is no room for its files.
    pub fn new() -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let pair = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(io::Error::other)?;
        fs::write(dir.path().join(CERTIFICATE), pair.cert.pem())?;
        fs::write(dir.path().join(KEY), pair.signing_key.serialize_pem())?;
        let mut roots = RootCertStore::empty();
        roots.add(pair.cert.der().clone()).map_err(io::Error::other)?;
        Ok(Self { dir, roots })
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What clients offer that speak `version` and come back as `resumption` says.
    ///
    /// # Errors
    /// The version is none of rustls'.
    pub fn offer(
        &self,
        version: &'static SupportedProtocolVersion,
        resumption: Resumption,
    ) -> io::Result<Arc<ClientConfig>> {
        let mut provider = default_provider();
        provider.cipher_suites =
            vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
        let builder = ClientConfig::builder_with_provider(provider.into()).with_protocol_versions(&[version]);
        let builder = builder.map_err(io::Error::other)?.with_root_certificates(self.roots.clone());
        let mut config = builder.with_no_client_auth();
        config.resumption = resumption;
        Ok(config.into())
    }
}

/// A client's end of a connection.
pub struct Socket {
    pub tcp: TcpStream,
    pub tls: Option<Box<ClientConnection>>,
}

impl Socket {
    /// A connection that speaks TLS, beginning with the first byte.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn secure(tcp: TcpStream, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        Ok(Self { tcp, tls: Some(Box::new(tls)) })
    }

    /// What the two sides have agreed on.
    pub fn agreed(&self) -> String {
        let Some(tls) = &self.tls else { return "no TLS".into() };
        let suite = tls.negotiated_cipher_suite().map(|suite| suite.suite());
        let group = tls.negotiated_key_exchange_group().map(|group| group.name());
        format!("{:?}, {suite:?}, {group:?}, {:?}", tls.protocol_version(), tls.handshake_kind())
            .replace("Some(", "")
            .replace(')', "")
    }
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Self { tcp, tls: None }
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.tcp.read(bytes),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.tcp).read(bytes),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.tcp.write(bytes),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.tcp).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => self.tcp.flush(),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.tcp).flush(),
        }
    }
}

/// Adds to `plain` what some bytes of the server's say.
///
/// # Errors
/// They are not what it sealed.
pub fn open(tls: &mut ClientConnection, mut bytes: &[u8], plain: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes)?;
        tls.process_new_packets().map_err(io::Error::other)?;
        match tls.reader().read_to_end(plain) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Adds the records of some bytes to `out`.
///
/// # Errors
/// They are too many at a time.
pub fn seal(tls: &mut ClientConnection, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    tls.writer().write_all(plain)?;
    while tls.wants_write() {
        tls.write_tls(out)?;
    }
    Ok(())
}

/// The server's name.
const NAME: &str = "localhost";
/// Files of the authority's directory.
pub const CERTIFICATE: &str = "server.pem";
pub const KEY: &str = "server.key";
