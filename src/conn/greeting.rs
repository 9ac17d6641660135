//! What a connection has until it is a WebSocket.
//! Law: a connection has a greeting exactly as long as its handshake is in flight, so the seat that the greeting holds is
//! given back whichever way the handshake ends.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::metrics::{Refusal, ShardMetrics};
use crate::sync::{AtomicUsize, Ordering};

/// What is known of a connection whose handshake is in flight.
#[derive(Debug, Default)]
pub struct Greeting {
    /// What has arrived of the request, with the PROXY header in front of it if there is one.
    pub head: Vec<u8>,
    /// Where the request begins in what has arrived; `None` while a PROXY header is awaited.
    pub request_at: Option<usize>,
    /// Its port speaks TLS, which begins where the request would.
    pub is_secure: bool,
    /// Who is at the other end of the socket or, once a trusted peer has said so in a PROXY header, whose connection it
    /// passes on. `None` if the driver does not know.
    pub peer: Option<SocketAddr>,
    /// The peer is a trusted proxy, so whose attempt this is is known with the request.
    pub is_proxied: bool,
    /// Decided when it came: its request will be refused for this.
    pub unwelcome: Option<Refusal>,
    /// Its place among the handshakes in flight.
    pub seat: Option<Seat>,
}

/// Size of a [`Greeting`], without the request.
pub const GREETING_BYTES: usize = size_of::<Greeting>();

/// A place among the handshakes that may be in flight; given back when dropped, by the thread that took it.
#[derive(Debug)]
pub struct Seat {
    taken: Arc<AtomicUsize>,
    metrics: Arc<ShardMetrics>,
}

impl Seat {
    /// Takes a place, of which there are `most`. A reservation, not a check: of newcomers on all shards exactly so many
    /// get one.
    pub fn take(taken: &Arc<AtomicUsize>, most: usize, metrics: &Arc<ShardMetrics>) -> Option<Self> {
        let one_more = |count: usize| (count < most).then_some(count + 1);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        metrics.handshakes.set(metrics.handshakes.get() + 1);
        Some(Self { taken: taken.clone(), metrics: metrics.clone() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        self.metrics.handshakes.set(self.metrics.handshakes.get() - 1);
    }
}
