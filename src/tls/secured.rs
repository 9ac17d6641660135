//! One connection that speaks TLS: its handshake or its keys, an incomplete record, and what is being sent.
//!
//! Law: records leave in the order in which they were sealed; an idle connection holds no buffer.

use rustls::pki_types::CertificateDer;

use super::alert::Alert;
use super::handshake::Handshake;
use super::records::{OVERHEAD_MAX, PLAIN_MAX, Records};
use crate::id::ConnKey;
use crate::io::{FrameKey, Io, Palette};

/// A connection of a TLS port.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) key: ConnKey,
    pub(super) stage: Stage,
    /// The beginning of a record whose end has not come.
    pub(super) partial: Vec<u8>,
    /// What the peer's certificate says of it, until somebody asks.
    pub(super) certificate: Option<Box<CertificateDer<'static>>>,
    /// What the driver is sending.
    flight: Option<Flight>,
    /// What leaves after it.
    queued: Option<Flight>,
    /// This side of the stream ends when all of it has left.
    ends: bool,
    /// The shard was told that nothing more will be received.
    pub(super) told_end: bool,
    /// The shard has closed it: nothing more leaves.
    closed: bool,
}

#[derive(Debug)]
pub(super) enum Stage {
    Handshake(Box<Handshake>),
    Open(Records),
    /// Nothing is sealed or opened any more: it failed, or has said its last.
    Over,
}

/// Sealed bytes on their way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    frame: FrameKey,
    sent: u32,
    /// How many bytes of the shard's frame are in it; 0: the shard knows nothing of it.
    plain: u32,
}

/// Size of a connection here, without what rustls keeps to derive the next keys from.
pub const SECURED_BYTES: usize = size_of::<Secured>();
const _: () = assert!(SECURED_BYTES <= 216, "an idle TLS connection");

impl Secured {
    pub(super) fn new(key: ConnKey, handshake: Handshake) -> Self {
        Self {
            key,
            stage: Stage::Handshake(Box::new(handshake)),
            partial: Vec::new(),
            certificate: None,
            flight: None,
            queued: None,
            ends: false,
            told_end: false,
            closed: false,
        }
    }

    /// Adds to what leaves next, which the shard knows nothing of.
    pub(super) fn queue(&mut self, palette: &mut Palette, write: impl FnOnce(&mut Vec<u8>)) {
        let queued = next(&mut self.queued, palette);
        palette.append(queued.frame, write).expect("a private frame that is not in flight");
    }

    /// Seals the shard's frame from byte `from` on, as much of it as one record holds. `None`: that cannot be.
    pub(super) fn seal(&mut self, palette: &mut Palette, frame: FrameKey, from: u32) -> Option<()> {
        let Stage::Open(records) = &mut self.stage else { return None };
        let queued = next(&mut self.queued, palette);
        debug_assert!(queued.plain == 0, "a shard has one send in flight");
        let from = from as usize;
        let plain = (palette.bytes(frame).len() - from).min(PLAIN_MAX);
        palette.make_room(queued.frame, plain + OVERHEAD_MAX);
        let sealed =
            palette.append_from(queued.frame, frame, |bytes, out| records.seal_data(&bytes[from..from + plain], out));
        sealed.ok()?;
        queued.plain = plain as u32;
        Some(())
    }

    /// Seals the peer's last word, if there are keys.
    pub(super) fn seal_last(&mut self, palette: &mut Palette, alert: Alert) {
        if let Stage::Open(mut records) = std::mem::replace(&mut self.stage, Stage::Over) {
            self.queue(palette, |out| records.seal_alert(alert, out));
        }
    }

    /// Hands what is queued to the driver, unless it is busy with this connection. A key update of the peer is answered
    /// with it and not before, so that of all that come meanwhile one waits.
    pub(super) fn kick<I: Io>(&mut self, io: &mut I) {
        if self.flight.is_some() {
            return;
        }
        if let Stage::Open(records) = &mut self.stage
            && records.owes_update()
        {
            let palette = io.palette();
            let queued = next(&mut self.queued, palette);
            palette.append(queued.frame, |out| records.seal_key_update(out).expect("a key after this one"));
        }
        self.flight = self.queued.take();
        match self.flight {
            Some(flight) => io.send(self.key, flight.frame, 0),
            None if std::mem::take(&mut self.ends) => io.shutdown(self.key),
            None => {}
        }
    }

    /// Ends this side of the stream once everything has left.
    pub(super) fn end<I: Io>(&mut self, io: &mut I) {
        self.ends = true;
        self.kick(io);
    }

    /// The driver's send is over. How many bytes of the shard's frame have left with it, if it is for the shard to know.
    pub(super) fn on_sent<I: Io, E>(&mut self, io: &mut I, sent: Result<u32, E>) -> Option<Result<u32, E>> {
        let mut flight = self.flight?;
        let outcome = match sent {
            Ok(bytes) => {
                flight.sent += bytes;
                let is_short = (flight.sent as usize) < io.palette().bytes(flight.frame).len();
                if is_short && !self.closed {
                    self.flight = Some(flight);
                    io.send(self.key, flight.frame, flight.sent);
                    return None;
                }
                // A record of which a part has left is worth nothing to the peer.
                Ok(if is_short { 0 } else { flight.plain })
            }
            Err(error) => Err(error),
        };
        self.flight = None;
        io.palette().release(flight.frame);
        let mut plain = flight.plain;
        if outcome.is_err() {
            // Nothing behind it will leave either.
            if let Some(queued) = self.queued.take() {
                io.palette().release(queued.frame);
                plain += queued.plain;
            }
        } else if !self.closed {
            self.kick(io);
        }
        (plain > 0).then_some(outcome)
    }

    /// Closes: a last word if nothing is in its way, and then the end. Whether the shard waits for the end of a send that will
    /// not be made.
    pub(super) fn close<I: Io>(&mut self, io: &mut I) -> bool {
        let queued = self.queued.take();
        queued.iter().for_each(|queued| io.palette().release(queued.frame));
        if self.flight.is_none() && queued.is_none() {
            self.seal_last(io.palette(), Alert::CLOSE_NOTIFY);
            self.kick(io);
        }
        self.stage = Stage::Over;
        self.partial = Vec::new();
        (self.closed, self.ends) = (true, false);
        io.close(self.key);
        queued.is_some_and(|queued| queued.plain > 0)
    }
}

/// What leaves next: a frame that is appended to until it does.
fn next<'q>(queued: &'q mut Option<Flight>, palette: &mut Palette) -> &'q mut Flight {
    queued.get_or_insert_with(|| Flight { frame: palette.open(), sent: 0, plain: 0 })
}
