//! The handshake of one connection: rustls fed with what has come, until both sides have keys.
//!
//! Law: bytes go in and come out; what a peer makes this side hold is bounded by [`RECEIVED_MAX`] beyond what rustls itself
//! holds of a handshake.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConfig, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus};
use rustls::{HandshakeKind, server::ServerConnectionData};

use super::records::Records;

/// A handshake in flight.
pub struct Handshake {
    rustls: UnbufferedServerConnection,
    /// What has come and was not taken yet.
    received: Vec<u8>,
    /// So many bytes of it are whole records that rustls was given already, whose payloads it has moved together: parts of a
    /// message that is longer.
    given: usize,
    /// It stands in line for its next step.
    pub is_waiting: bool,
    /// The peer's stream has ended behind what has come.
    pub has_ended: bool,
}

/// Both sides have keys.
#[derive(Debug)]
pub struct Finished {
    /// What protects everything from here on.
    pub records: Records,
    /// What has come behind the handshake and is not opened yet.
    pub rest: Vec<u8>,
    /// The peer's own certificate, if it showed one that is trusted.
    pub certificate: Option<CertificateDer<'static>>,
    /// An earlier session was resumed.
    pub is_resumed: bool,
}

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More has to come.
    NeedMore,
    /// [`Handshake::finish`] has the keys.
    Complete,
}

/// Why a handshake leads nowhere. What is in `out` is the peer's to know.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// Not understood, or no common ground.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// It is a request for a port without TLS.
    #[error("a request without TLS")]
    Plain,
    /// This side failed.
    #[error("reading it panicked: {0}")]
    Panic(String),
    /// More than a handshake is.
    #[error("more than {RECEIVED_MAX} bytes that complete no message of a handshake")]
    TooLong,
}

impl Handshake {
    /// A handshake on the server's side.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let rustls = UnbufferedServerConnection::new(config)?;
        Ok(Self { rustls, received: Vec::new(), given: 0, is_waiting: false, has_ended: false })
    }

    /// Takes bytes that came.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Whether so many have come that no more are to be read before the next step.
    pub fn is_full(&self) -> bool {
        self.received.len() > RECEIVED_MAX
    }

    /// Goes as far as what has come allows. What the peer has to get is added to `out`.
    ///
    /// # Errors
    /// Why the handshake leads nowhere.
    pub fn advance(&mut self, out: &mut Vec<u8>) -> Result<Progress, Failed> {
        if is_request(&self.received) {
            out.extend_from_slice(NOT_PLAIN);
            return Err(Failed::Plain);
        }
        // Record by record: what follows the handshake's last one is not rustls' any more. It would answer a key update there
        // with a message that its keys are taken away from.
        let mut taken = 0;
        let (mut end, mut is_whole) = record_end(&self.received, self.given);
        let progress = loop {
            let UnbufferedStatus { discard, state } = self.rustls.process_tls_records(&mut self.received[taken..end]);
            let progress = match state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, out);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::WriteTraffic(_)) => Some(Progress::Complete),
                // Nothing that is read, and no end: the record of the peer's `Finished` is the last that rustls is given, with
                // nothing behind that in it (RFC 8446 §5.1), and before it rustls takes neither for what the peer says. Early
                // data is not offered.
                Ok(_) => Some(Progress::NeedMore),
                Err(error) => {
                    self.say_why(out);
                    return Err(error.into());
                }
            };
            taken += discard;
            let Some(progress) = progress else { continue };
            if is_whole {
                self.given = end;
            }
            if progress == Progress::Complete || end == self.received.len() {
                self.received.drain(..taken);
                self.given -= taken;
                break progress;
            }
            (end, is_whole) = record_end(&self.received, end); // a message may be longer than a record
        };
        let is_too_long = progress == Progress::NeedMore && self.received.len() > RECEIVED_MAX;
        if is_too_long { Err(Failed::TooLong) } else { Ok(progress) }
    }

    /// What rustls has for a peer after an error: an alert. It must not be asked for more than it has, since it would go on
    /// with what it was given before.
    fn say_why(&mut self, out: &mut Vec<u8>) {
        while self.rustls.wants_write() {
            match self.rustls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out),
                _ => return,
            }
        }
    }

    /// Takes the keys out of a complete handshake; rustls' part of it ends here.
    ///
    /// # Errors
    /// The configuration does not allow it (`enable_secret_extraction`).
    pub fn finish(self) -> Result<Finished, Failed> {
        let Self { rustls, received: rest, .. } = self;
        let is_resumed = rustls.handshake_kind() == Some(HandshakeKind::Resumed);
        let certificate = rustls.peer_certificates().and_then(<[_]>::first).cloned();
        let (secrets, kernel) = rustls.dangerous_into_kernel_connection()?;
        let records = Records::new(secrets, kernel);
        let records = records.ok_or_else(|| rustls::Error::General("a cipher suite without keys to take".into()))?;
        Ok(Finished { records, rest, certificate, is_resumed })
    }
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").field("received", &self.received.len()).finish_non_exhaustive()
    }
}

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) {
    let from = out.len();
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = data.encode(&mut []) {
        out.resize(from + required_size, 0);
        data.encode(&mut out[from..]).expect("as much room as it asked for");
    }
}

/// Where the record that begins at `from` ends (RFC 8446 §5.1), and whether all of it is there; else that is where all ends.
fn record_end(received: &[u8], from: usize) -> (usize, bool) {
    let end = match received[from..].get(3..5) {
        Some(&[high, low]) => from + 5 + usize::from(u16::from_be_bytes([high, low])),
        _ => usize::MAX,
    };
    if end <= received.len() { (end, true) } else { (received.len(), false) }
}

/// Whether this is the beginning of an HTTP request: a method in capitals, where TLS has the number 22.
fn is_request(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_uppercase)
}

/// Bytes of a peer that complete no message of the handshake, at most. A ClientHello has one or two KiB, a message with a chain
/// of client certificates four to ten.
pub const RECEIVED_MAX: usize = 32 * 1024;

const NOT_PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 47\r\n\
    Connection: close\r\n\r\nThis port speaks TLS: use wss:// in the address";

const _: () = assert!(RECEIVED_MAX > super::records::PLAIN_MAX + 2048, "a record fits");
