//! TLS between the driver and the shard: a driver on top of a driver.
//!
//! Law: a connection that was [secured](Layer::secure) says nothing in the clear and yields nothing that was not opened, but
//! for what comes after its last word, which nobody looks at; all others pass through as they are. Above this, nobody can tell
//! which is which.
//!
//! A connection's handshake is rustls' (`handshake.rs`); what follows is sealed and opened here with its keys (`records.rs`), so
//! that an idle connection holds those and no buffer. A step of a handshake costs as much as a hundred messages, so such steps
//! stand in line and have a share of the time.
//!
//! Received bytes are opened where they lie, if a record came whole, and else when its last byte is there. A send of the
//! shard's becomes one record, at most [`PLAIN_MAX`] bytes of it, and ends when the last byte of that has
//! left: a large frame that many subscribers wait for costs one record each at a time.

mod alert;
mod bytes;
mod certificate;
mod handshake;
mod leaf;
mod names;
mod records;
mod secured;
mod subject;
mod terms;
pub mod trust;

use std::collections::VecDeque;
use std::io;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::ServerConfig;

use self::alert::Alert;
use self::handshake::{Failed, Finished, Handshake, Progress};
use self::records::End;
use self::secured::{Secured, Stage};
use crate::contain::contain;
use crate::fixed::{Chunked, Line};
use crate::id::{ConnKey, ShardId};
use crate::io::{Completion, Doorbell, FrameKey, Io, Lost, Now, Palette, Socket, Wait};
use crate::metrics::{PanicSite, ShardMetrics, TlsHandshake};

pub use bytes::Bytes;
pub use certificate::*;
pub use handshake::RECEIVED_MAX;
pub use leaf::Unreadable;
pub use records::{OVERHEAD_MAX, PLAIN_MAX};
pub use secured::SECURED_BYTES;
pub use subject::*;
pub use terms::*;

/// A driver whose connections may speak TLS.
pub struct Layer<I: Io> {
    io: I,
    /// By slot.
    conns: Chunked<Option<Box<Secured>>>,
    live: usize,
    /// Handshakes whose next step waits for its share of a turn; each is there once.
    waiting: Line<ConnKey>,
    /// What is to be yielded before the next completion of the driver.
    yields: VecDeque<Completion<Bytes<I::Buffer>>>,
    share: Share,
    /// Scratch: what a handshake wants to send.
    out: Vec<u8>,
    metrics: Arc<ShardMetrics>,
}

/// What handshakes may take of the time.
#[derive(Debug, Default)]
struct Share {
    /// When the turn began.
    began_ns: u64,
    /// How long it has been spent on handshakes.
    spent_ns: i64,
    /// How long it may still be; what was beyond, if less than nothing.
    left_ns: i64,
}

impl<I: Io> Layer<I> {
    /// Puts the layer on a driver.
    pub fn new(io: I, metrics: Arc<ShardMetrics>) -> Self {
        Self {
            io,
            conns: Chunked::new(),
            live: 0,
            waiting: Line::new(),
            yields: VecDeque::new(),
            share: Share::default(),
            out: Vec::new(),
            metrics,
        }
    }

    /// The driver below.
    pub fn inner(&self) -> &I {
        &self.io
    }

    /// The same, to change.
    pub fn inner_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// Takes the layer off.
    pub fn into_inner(self) -> I {
        self.io
    }

    /// Connections that speak TLS.
    pub fn live(&self) -> usize {
        self.live
    }

    /// From here on an adopted connection speaks TLS, which the peer begins; `received` is what has come of that.
    pub fn secure(&mut self, conn: ConnKey, config: &Arc<ServerConfig>, received: &[u8]) {
        let handshake = match Handshake::new(config.clone()) {
            Ok(handshake) => handshake,
            Err(error) => {
                tracing::error!(%error, "TLS cannot be spoken with this configuration");
                let lost = Lost::Broken(ErrorKind::InvalidInput);
                return self.yields.push_back(Completion::ReceiveEnded { conn, lost });
            }
        };
        self.conns.grow_to(conn.slot, || None);
        self.conns[conn.slot] = Some(Box::new(Secured::new(conn, handshake)));
        self.live += 1;
        self.metrics.tls_connections.set(self.live as u64);
        if !received.is_empty() {
            self.on_handshake_bytes(conn, received);
        }
    }

    /// The certificate that the peer has shown, if one was asked for; given once.
    pub fn take_certificate(&mut self, conn: ConnKey) -> Option<CertificateDer<'static>> {
        self.secured(conn)?.certificate.take().map(|certificate| *certificate)
    }

    #[inline]
    fn secured(&mut self, conn: ConnKey) -> Option<&mut Secured> {
        find(&mut self.conns, conn)
    }

    /// What a completion of the driver is to the shard; `None` if nothing, or if it was added to `yields`.
    fn translate(&mut self, completion: Completion<I::Buffer>) -> Option<Completion<Bytes<I::Buffer>>> {
        Some(match completion {
            Completion::Received { conn, bytes, armed } => match self.secured(conn) {
                None => Completion::Received { conn, bytes: Bytes::Whole(bytes), armed },
                Some(_) => return self.on_received(conn, bytes, armed),
            },
            Completion::Sent { conn, sent } => match find(&mut self.conns, conn) {
                Some(secured) => Completion::Sent { conn, sent: secured.on_sent(&mut self.io, sent)? },
                None => Completion::Sent { conn, sent },
            },
            Completion::ReceiveStopped { conn, starved } => {
                if self.secured(conn).is_some_and(|secured| secured.told_end) {
                    return None;
                }
                Completion::ReceiveStopped { conn, starved }
            }
            Completion::ReceiveEnded { conn, lost } => {
                if lost == Lost::EndOfStream
                    && let Some(handshake) = self.waiting_handshake(conn)
                {
                    handshake.has_ended = true; // what came before has its step first, in its turn
                } else {
                    self.end_received(conn, lost);
                }
                return None;
            }
            Completion::Closed { conn } => {
                if let Some(place) = self.conns.get_mut(conn.slot)
                    && place.take_if(|secured| secured.key == conn).is_some()
                {
                    self.live -= 1;
                    self.metrics.tls_connections.set(self.live as u64);
                }
                Completion::Closed { conn }
            }
            Completion::Accepted(socket) => Completion::Accepted(socket),
            Completion::AcceptStopped(error) => Completion::AcceptStopped(error),
            Completion::Rang => Completion::Rang,
        })
    }

    /// Bytes of a secured connection.
    fn on_received(&mut self, conn: ConnKey, bytes: I::Buffer, armed: bool) -> Option<Completion<Bytes<I::Buffer>>> {
        let secured = self.secured(conn).filter(|secured| !secured.told_end)?;
        match secured.stage {
            // After its last word nobody looks at what comes: how much it is, and that more is to be asked for, is the shard's
            // to know.
            Stage::Over => return Some(Completion::Received { conn, bytes: Bytes::Whole(bytes), armed }),
            Stage::Open(_) => self.open_received(conn, bytes, armed),
            Stage::Handshake(_) => {
                // That bytes came is for the shard to know, even if they are nothing yet.
                self.yields.push_back(Completion::Received { conn, bytes: Bytes::Own(Vec::new(), 0), armed });
                self.on_handshake_bytes(conn, &bytes);
            }
        }
        self.yields.pop_front()
    }

    fn open_received(&mut self, conn: ConnKey, mut bytes: I::Buffer, armed: bool) {
        let Some(secured) = find(&mut self.conns, conn) else { return };
        let Secured { stage: Stage::Open(records), partial, .. } = secured else { return };
        let (mut taken, mut plain, mut end) = (0, 0, None);
        if !partial.is_empty() {
            taken = records::rest_of_record(partial, &bytes);
            partial.extend_from_slice(&bytes[..taken]);
            let batch = records.open_all(partial);
            if batch.taken > 0 {
                let opened = Bytes::Own(std::mem::take(partial), batch.plain);
                self.yields.push_back(Completion::Received { conn, bytes: opened, armed: true });
            }
            end = batch.end;
        }
        if end.is_none() {
            let batch = records.open_all(&mut bytes[taken..]);
            partial.extend_from_slice(&bytes[taken + batch.taken..]);
            bytes.copy_within(taken..taken + batch.plain, 0);
            (plain, end) = (batch.plain, batch.end);
        }
        self.yields.push_back(Completion::Received { conn, bytes: Bytes::Opened(bytes, plain), armed });
        self.answer(conn, end);
    }

    /// What records that came make this side do.
    fn answer(&mut self, conn: ConnKey, end: Option<End>) {
        let Some(secured) = find(&mut self.conns, conn) else { return };
        if let Stage::Open(records) = &mut secured.stage
            && let updates @ 1.. = records.take_updates()
        {
            self.metrics.tls_key_updates.add(u64::from(updates));
            secured.kick(&mut self.io);
        }
        let lost = match end {
            None => return,
            Some(End::CloseNotify) => Lost::EndOfStream,
            Some(End::Fatal) => {
                secured.stage = Stage::Over;
                Lost::Broken(ErrorKind::ConnectionAborted)
            }
            Some(End::Misbehaved(alert)) => {
                tracing::debug!(slot = conn.slot, ?alert, "TLS record refused");
                secured.seal_last(self.io.palette(), alert);
                secured.kick(&mut self.io);
                Lost::Broken(ErrorKind::InvalidData)
            }
        };
        secured.partial = Vec::new();
        secured.told_end = true;
        self.yields.push_back(Completion::ReceiveEnded { conn, lost });
    }

    fn on_handshake_bytes(&mut self, conn: ConnKey, bytes: &[u8]) {
        let Some(secured) = find(&mut self.conns, conn) else { return };
        let Stage::Handshake(handshake) = &mut secured.stage else { return };
        handshake.receive(bytes);
        if handshake.is_full() {
            self.io.pause(conn);
        }
        if !std::mem::replace(&mut handshake.is_waiting, true) {
            let conns = &self.conns;
            self.waiting.push(conn, self.live, |conn| {
                let place = conns.get(conn.slot).and_then(|place| place.as_deref());
                place.is_some_and(|secured| secured.key == conn && matches!(secured.stage, Stage::Handshake(_)))
            });
            self.metrics.tls_waiting.set(self.waiting.len() as u64);
        }
    }

    /// The next handshake in line, if this turn has time for it.
    fn advance_next(&mut self) -> bool {
        if !self.share.has_time() {
            return false;
        }
        let Some(conn) = self.waiting.pop() else { return false };
        self.metrics.tls_waiting.set(self.waiting.len() as u64);
        let Some(handshake) = self.waiting_handshake(conn) else { return true };
        let (was_full, has_ended) = (handshake.is_full(), handshake.has_ended);
        let from_ns = self.io.clock_ns();
        self.advance(conn);
        self.share.spend((self.io.clock_ns() - from_ns) as i64);
        if has_ended {
            self.end_received(conn, Lost::EndOfStream);
        } else if was_full && self.secured(conn).is_some_and(|secured| !secured.told_end) {
            self.io.receive(conn);
        }
        true
    }

    /// The handshake of a connection, if it stands in line for its next step.
    fn waiting_handshake(&mut self, conn: ConnKey) -> Option<&mut Handshake> {
        match &mut self.secured(conn)?.stage {
            Stage::Handshake(handshake) if handshake.is_waiting => Some(handshake),
            _ => None,
        }
    }

    /// Nothing more will be received; told once.
    fn end_received(&mut self, conn: ConnKey, lost: Lost) {
        if !self.secured(conn).is_some_and(|secured| std::mem::replace(&mut secured.told_end, true)) {
            self.yields.push_back(Completion::ReceiveEnded { conn, lost });
        }
    }

    /// The next step of a handshake.
    fn advance(&mut self, conn: ConnKey) {
        let Some(secured) = find(&mut self.conns, conn) else { return };
        let Stage::Handshake(handshake) = &mut secured.stage else { return };
        handshake.is_waiting = false;
        self.out.clear();
        // What it could have left half changed is thrown away with it.
        let mut outcome =
            contain(|| handshake.advance(&mut self.out)).unwrap_or_else(|panic| Err(Failed::Panic(panic)));
        let mut finished = None;
        if let Ok(Progress::Complete) = outcome
            && let Stage::Handshake(handshake) = std::mem::replace(&mut secured.stage, Stage::Over)
        {
            match handshake.finish() {
                Ok(keys) => finished = Some(keys),
                Err(failed) => outcome = Err(failed),
            }
        }
        if !self.out.is_empty() {
            secured.queue(self.io.palette(), |out| out.extend_from_slice(&self.out));
            secured.kick(&mut self.io);
        }
        match outcome {
            Ok(_) => finished.into_iter().for_each(|finished| self.finish(conn, finished)),
            Err(failed) => {
                if let Failed::Panic(panic) = &failed {
                    self.metrics.panics[PanicSite::Connection as usize].add(1);
                    tracing::error!(slot = conn.slot, panic, "a TLS handshake panicked; its connection is closed");
                }
                tracing::debug!(slot = conn.slot, %failed, "TLS handshake failed");
                self.metrics.tls_handshakes[TlsHandshake::Failed as usize].add(1);
                secured.stage = Stage::Over;
                secured.told_end = true;
                let lost = Lost::Broken(ErrorKind::InvalidData);
                self.yields.push_back(Completion::ReceiveEnded { conn, lost });
            }
        }
    }

    /// Both sides have keys: what has come behind the handshake is the first of what they protect.
    fn finish(&mut self, conn: ConnKey, finished: Finished) {
        let Some(secured) = find(&mut self.conns, conn) else { return };
        let Finished { mut records, mut rest, certificate, is_resumed } = finished;
        let how = if is_resumed { TlsHandshake::Resumed } else { TlsHandshake::Full };
        self.metrics.tls_handshakes[how as usize].add(1);
        let batch = records.open_all(&mut rest);
        secured.stage = Stage::Open(records);
        secured.certificate = certificate.map(Box::new);
        secured.partial = rest[batch.taken..].to_vec();
        if batch.plain > 0 {
            self.yields.push_back(Completion::Received { conn, bytes: Bytes::Own(rest, batch.plain), armed: true });
        }
        self.answer(conn, batch.end);
    }
}

/// The connection of a key, if it speaks TLS.
#[inline]
fn find(conns: &mut Chunked<Option<Box<Secured>>>, conn: ConnKey) -> Option<&mut Secured> {
    conns.get_mut(conn.slot)?.as_deref_mut().filter(|secured| secured.key == conn)
}

impl Share {
    /// Whether one more step may be made.
    fn has_time(&self) -> bool {
        self.left_ns >= 0
    }

    /// A step took so long: more than a turn may have left, which the next ones make up for.
    fn spend(&mut self, step_ns: i64) {
        self.spent_ns += step_ns;
        self.left_ns -= step_ns.clamp(1, OWED_MAX_NS);
    }

    /// A turn is over, which had worked until `until_ns`; the next begins at `now_ns`. It has a third of what all else took; one
    /// step always, where that was next to nothing.
    fn begin(&mut self, until_ns: u64, now_ns: u64) {
        let worked_ns = until_ns.saturating_sub(self.began_ns) as i64 - self.spent_ns;
        let left_ns = if worked_ns < IDLE_NS { 0 } else { self.left_ns.min(0) + worked_ns / 3 };
        *self = Self { began_ns: now_ns, spent_ns: 0, left_ns };
    }
}

/// What all else takes in a turn of a shard that is not busy: less than a line of senders gets.
const IDLE_NS: i64 = 50_000;
/// The most that a step counts for: longer than any signature takes, and a process that was frozen meanwhile does not make up for it.
const OWED_MAX_NS: i64 = 10_000_000;

impl<I: Io> Io for Layer<I> {
    type Buffer = Bytes<I::Buffer>;

    fn wait(&mut self, wait: Wait) -> io::Result<Now> {
        let has_work = !self.waiting.is_empty() || !self.yields.is_empty();
        let now = self.io.wait(if has_work { Wait::No } else { wait })?;
        self.share.begin(self.io.slept_from_ns().unwrap_or(now.monotonic_ns), now.monotonic_ns);
        Ok(now)
    }

    fn slept_from_ns(&self) -> Option<u64> {
        self.io.slept_from_ns()
    }

    fn clock_ns(&self) -> u64 {
        self.io.clock_ns()
    }

    fn poll(&mut self) -> Option<Completion<Self::Buffer>> {
        loop {
            if let Some(completion) = self.yields.pop_front() {
                return Some(completion);
            }
            match self.io.poll() {
                Some(completion) => {
                    if let Some(completion) = self.translate(completion) {
                        return Some(completion);
                    }
                }
                None if self.advance_next() => {}
                None => return None,
            }
        }
    }

    fn accept(&mut self) {
        self.io.accept();
    }

    fn pause_accepting(&mut self) {
        self.io.pause_accepting();
    }

    fn stop_accepting(&mut self) {
        self.io.stop_accepting();
    }

    fn peer(&self, socket: &Socket) -> Option<SocketAddr> {
        self.io.peer(socket)
    }

    fn port(&self, socket: &Socket) -> usize {
        self.io.port(socket)
    }

    fn adopt(&mut self, socket: Socket, conn: ConnKey) {
        self.io.adopt(socket, conn);
    }

    fn refuse(&mut self, socket: Socket) {
        self.io.refuse(socket);
    }

    fn receive(&mut self, conn: ConnKey) {
        // A handshake that has received too much is read from again after its step.
        if !self.waiting_handshake(conn).is_some_and(|handshake| handshake.is_full()) {
            self.io.receive(conn);
        }
    }

    fn pause(&mut self, conn: ConnKey) {
        self.io.pause(conn);
    }

    /// One record of it; nothing can be said to a peer whose handshake is not over.
    fn send(&mut self, conn: ConnKey, frame: FrameKey, from: u32) {
        match find(&mut self.conns, conn) {
            Some(secured) => match secured.seal(self.io.palette(), frame, from) {
                Some(()) => secured.kick(&mut self.io),
                None => {
                    self.yields.push_back(Completion::Sent { conn, sent: Err(ErrorKind::NotConnected) });
                }
            },
            None => self.io.send(conn, frame, from),
        }
    }

    fn close(&mut self, conn: ConnKey) {
        match find(&mut self.conns, conn) {
            Some(secured) => {
                if secured.close(&mut self.io) {
                    self.yields.push_back(Completion::Sent { conn, sent: Err(ErrorKind::ConnectionAborted) });
                }
            }
            None => self.io.close(conn),
        }
    }

    fn shutdown(&mut self, conn: ConnKey) {
        match find(&mut self.conns, conn) {
            Some(secured) => {
                secured.seal_last(self.io.palette(), Alert::CLOSE_NOTIFY);
                secured.end(&mut self.io);
            }
            None => self.io.shutdown(conn),
        }
    }

    fn ring(&mut self, shard: ShardId) {
        self.io.ring(shard);
    }

    fn announce_sleep(&mut self) {
        self.io.announce_sleep();
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        self.io.doorbell()
    }

    fn busy_polls(&self) -> (u64, u64) {
        self.io.busy_polls()
    }

    fn overflows(&self) -> u64 {
        self.io.overflows()
    }

    fn give_back(&mut self) {
        if self.live == 0 {
            self.conns = Chunked::new();
        }
        self.io.give_back();
    }

    fn random(&mut self) -> u64 {
        self.io.random()
    }

    fn palette(&mut self) -> &mut Palette {
        self.io.palette()
    }
}

#[cfg(test)]
mod tests;
