//! Clients that speak TLS. rustls does all of it: what a load generator spends is not what is measured.
//! Law: what is written leaves sealed and in order; what comes is opened before it is read.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::ClientConnection;

use super::Lanes;
use crate::bench::wire::WireError;
use crate::id::ConnKey;
use crate::io::{FrameKey, Palette};

impl<C: Default> Lanes<C> {
    /// A newcomer's part of TLS, if its server speaks that.
    pub(super) fn session(&self) -> io::Result<Option<Box<ClientConnection>>> {
        let Some(tls) = &self.setup.tls else { return Ok(None) };
        let session = ClientConnection::new(Arc::clone(&tls.client), tls.name.clone());
        let mut session = Box::new(session.map_err(io::Error::other)?);
        session.set_buffer_limit(None); // what waits for the handshake is a request and some messages
        Ok(Some(session))
    }

    /// Opens what has come.
    pub(super) fn open(&mut self, conn: ConnKey, mut sealed: &[u8]) -> Result<Vec<u8>, WireError> {
        let mut plain = Vec::new();
        let Some(session) = self.lanes.get_mut(conn).and_then(|lane| lane.tls.as_mut()) else { return Ok(plain) };
        let failed = |error: &dyn std::error::Error| WireError::Tls(error.to_string());
        // Nothing is taken behind the peer's last word.
        while !sealed.is_empty() && session.read_tls(&mut sealed).map_err(|error| failed(&error))? > 0 {
            let state = session.process_new_packets().map_err(|error| failed(&error))?;
            let from = plain.len();
            plain.resize(from + state.plaintext_bytes_to_read(), 0);
            session.reader().read_exact(&mut plain[from..]).map_err(|error| failed(&error))?;
        }
        if session.wants_write() {
            self.write(conn, |_| {}); // what rustls has to say leaves with the next flush
        }
        Ok(plain)
    }
}

/// Seals what was written, with what rustls has to say; `None` if that is nothing yet.
pub(super) fn seal(palette: &mut Palette, session: &mut ClientConnection, plain: FrameKey) -> Option<FrameKey> {
    let sealed = palette.open();
    let outcome = palette.append_from(sealed, plain, |plain, out| -> io::Result<()> {
        session.writer().write_all(plain)?;
        while session.wants_write() {
            session.write_tls(out)?;
        }
        Ok(())
    });
    outcome.expect("neither rustls nor memory has a limit here");
    palette.release(plain);
    let is_empty = palette.bytes(sealed).is_empty();
    if is_empty {
        palette.release(sealed);
    }
    (!is_empty).then_some(sealed)
}
