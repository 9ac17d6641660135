//! Connections on the bare driver: bytes in, bytes out, no protocol. The floor that the engine is compared with, and
//! what the load generator runs on.
//!
//! Law: a lane has at most one send in flight, and all that is written meanwhile leaves in the next one; a lane lives as
//! long as the measurement, so slots are never used again.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;
use tidewheel::id::{ConnKey, ShardId};
use tidewheel::io::bell::Bell;
use tidewheel::io::uring::{ReceiveMode, Uring, UringConfig};
use tidewheel::io::{Completion, FrameKey, Io, Wait, probe};

use super::secure::{self, Socket};

/// Many connections of one thread.
pub struct Lanes {
    io: Uring,
    lanes: Vec<Lane>,
    /// Lanes that were written to and have no send in flight.
    dirty: Vec<ConnKey>,
    /// Lanes whose receive must be armed again.
    rearm: Vec<ConnKey>,
    /// Lanes that the other side has ended.
    ended: usize,
    /// Scratch: what goes through TLS, without it.
    plain: Vec<u8>,
}

#[derive(Default)]
struct Lane {
    sending: bool,
    pending: Option<FrameKey>,
    tls: Option<Box<ClientConnection>>,
}

impl Lanes {
    /// No connections yet; those that `listeners` accept become lanes.
    pub fn new(listeners: Vec<TcpListener>, mode: ReceiveMode) -> io::Result<Self> {
        let io = driver(listeners, mode)?;
        Ok(Self { io, lanes: Vec::new(), dirty: Vec::new(), rearm: Vec::new(), ended: 0, plain: Vec::new() })
    }

    /// Moves in sockets that this process connected; they become lanes in this order.
    pub fn take(&mut self, sockets: Vec<impl Into<Socket>>) -> io::Result<()> {
        for socket in sockets {
            let Socket { tcp, tls } = socket.into();
            let before = self.lanes.len();
            self.io.take(tcp)?;
            while self.lanes.len() == before {
                self.turn(Wait::Forever, &mut |_, _, _| {})?;
            }
            self.lanes[before].tls = tls;
        }
        Ok(())
    }

    /// Lanes that the other side has ended.
    pub fn ended(&self) -> usize {
        self.ended
    }

    /// One turn: waits, hands on what arrived, sends what was written.
    pub fn turn(&mut self, wait: Wait, on_bytes: &mut impl FnMut(&mut Self, ConnKey, &[u8])) -> io::Result<()> {
        let wait = if self.dirty.is_empty() { wait } else { Wait::No };
        self.io.wait(wait)?;
        while let Some(completion) = self.io.poll() {
            match completion {
                Completion::Received { conn, bytes, armed } => {
                    match &mut self.lanes[conn.slot as usize].tls {
                        None => on_bytes(self, conn, &bytes),
                        Some(tls) => {
                            let mut plain = std::mem::take(&mut self.plain);
                            plain.clear(); // what was written last
                            secure::open(tls, &bytes, &mut plain)?;
                            on_bytes(self, conn, &plain);
                            self.plain = plain;
                        }
                    }
                    if !armed {
                        self.rearm.push(conn);
                    }
                }
                Completion::Sent { conn, sent: Ok(_) } => {
                    let lane = &mut self.lanes[conn.slot as usize];
                    lane.sending = false;
                    if lane.pending.is_some() {
                        self.dirty.push(conn);
                    }
                }
                Completion::Accepted(socket) => {
                    let conn = ConnKey { slot: self.lanes.len() as u32, generation: 1 };
                    self.lanes.push(Lane::default());
                    self.io.adopt(socket, conn);
                    self.io.receive(conn);
                }
                Completion::AcceptStopped(error) => return Err(error),
                Completion::ReceiveStopped { conn, .. } => self.rearm.push(conn),
                Completion::ReceiveEnded { .. } | Completion::Sent { .. } => self.ended += 1,
                Completion::Closed { .. } | Completion::Rang => {}
            }
        }
        self.flush();
        Ok(())
    }

    /// Adds bytes to what leaves next.
    pub fn write(&mut self, conn: ConnKey, write: impl FnOnce(&mut Vec<u8>)) {
        let lane = &mut self.lanes[conn.slot as usize];
        let palette = self.io.palette();
        let frame = *lane.pending.get_or_insert_with(|| {
            if !lane.sending {
                self.dirty.push(conn);
            }
            palette.open()
        });
        let plain = &mut self.plain;
        let write = |out: &mut Vec<u8>| match &mut lane.tls {
            None => write(out),
            Some(tls) => {
                plain.clear();
                write(plain);
                secure::seal(tls, plain, out).expect("less than rustls takes at a time");
            }
        };
        palette.append(frame, write).expect("nobody sends a pending frame");
    }

    /// Accepts connections.
    pub fn accept(&mut self) {
        self.io.accept();
    }

    fn flush(&mut self) {
        for conn in self.dirty.drain(..) {
            let lane = &mut self.lanes[conn.slot as usize];
            if let Some(frame) = lane.pending.take() {
                lane.sending = true;
                self.io.send(conn, frame, 0);
                self.io.palette().release(frame);
            }
        }
        // After the turn's buffers have been given back.
        for conn in self.rearm.drain(..) {
            self.io.receive(conn);
        }
    }
}

/// A driver as an engine with one shard has it.
pub fn driver(listeners: Vec<TcpListener>, mode: ReceiveMode) -> io::Result<Uring> {
    Uring::new(UringConfig {
        table: probe::raise_descriptor_limit()?.min(1 << 20) as u32,
        buffers: BUFFERS,
        buffer_size: BUFFER_BYTES,
        mode,
        busy_poll: Duration::ZERO,
        listeners,
        bells: Arc::from([Arc::new(Bell::new()?)]),
        shard: ShardId(0),
    })
}

/// The engine's defaults.
const BUFFERS: u16 = 1024;
const BUFFER_BYTES: u32 = 4096;
