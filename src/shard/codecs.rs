//! Compression on a shard: what it sends, compressed; what it receives, inflated.
//! Law: the codecs belong to the shard, but for the inflaters of connections whose messages refer to each other. A message
//! that need not be compressed, or does not get shorter, is sent plain; so is one whose compressor panicked, which is
//! thrown away.

use std::sync::Arc;

use crate::config::Compression;
use crate::contain::contain;
use crate::id::ConnKey;
use crate::io::{Form, Io, SharedFrame, Stream};
use crate::metrics::{Deflated, Inflated, ShardMetrics};
use crate::ws::deflate::{Agreement, Deflater, InflateLimits, Inflater, Windows};
use crate::ws::{self, Event, Opcode, ProtocolError};

use super::Shard;

/// The codecs of one shard, and their buffers.
#[derive(Debug)]
pub(super) struct Codecs {
    level: u32,
    min_bytes: usize,
    deflater: Deflater,
    /// For clients whose messages stand each by itself.
    inflater: Option<Inflater>,
    /// The message compressed last.
    compressed: Vec<u8>,
    /// The message inflated last.
    message: Vec<u8>,
    /// What the next message for many is written to.
    plain: Vec<u8>,
    metrics: Arc<ShardMetrics>,
}

/// Why a connection ends in the middle of its bytes.
#[derive(Debug)]
pub(super) enum Failed {
    Peer(ProtocolError),
    Panic(String),
}

impl Codecs {
    pub(super) fn new(compression: &Compression, metrics: Arc<ShardMetrics>) -> Self {
        Self {
            level: compression.level,
            min_bytes: compression.min_size.0,
            deflater: Deflater::new(compression.level),
            inflater: None,
            compressed: Vec::new(),
            message: Vec::new(),
            plain: Vec::new(),
            metrics,
        }
    }

    /// Takes what of the settings concerns every message.
    pub(super) fn set(&mut self, compression: &Compression) {
        self.min_bytes = compression.min_size.0;
        if self.level != compression.level {
            self.level = compression.level;
            self.deflater = Deflater::new(self.level);
        }
    }

    /// Appends a message for one client.
    pub(super) fn frame_of(
        &mut self,
        out: &mut Vec<u8>,
        opcode: Opcode,
        deflate: Option<Agreement>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let from = out.len();
        ws::frame_of(out, opcode, write);
        let Some(window_bits) = deflate.and_then(Agreement::server_window_bits) else { return };
        if self.compress(ws::payload(&out[from..]), window_bits) {
            out.truncate(from);
            ws::deflated_frame(out, opcode, &self.compressed);
        }
    }

    /// A text message for many, with the compressed forms that the clients of these windows get. It is written where the one
    /// before was, since nobody knows yet how long it is.
    pub(super) fn shared(
        &mut self,
        stream: Option<Stream>,
        windows: Windows,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Arc<SharedFrame> {
        let mut plain = std::mem::take(&mut self.plain);
        ws::frame_of(&mut plain, Opcode::Text, write);
        let forms = self.forms(&plain, windows);
        let frame = SharedFrame::with_forms(plain.as_slice().to_vec(), stream, forms);
        reuse(&mut plain);
        self.plain = plain;
        frame
    }

    fn forms(&mut self, plain: &[u8], windows: Windows) -> Vec<Form> {
        let payload = ws::payload(plain);
        let mut forms = Vec::new();
        for (class, window_bits) in windows.forms(payload.len()) {
            if self.compress(payload, window_bits) {
                let mut bytes = Vec::new();
                ws::deflated_frame(&mut bytes, Opcode::Text, &self.compressed);
                forms.push(Form { classes: class.mask(), bytes: bytes.into_boxed_slice() });
            }
        }
        forms
    }

    /// Compresses a payload into `compressed`, if that is worth it.
    fn compress(&mut self, payload: &[u8], window_bits: u8) -> bool {
        if payload.len() < self.min_bytes {
            return false;
        }
        let Self { deflater, compressed, .. } = self;
        reuse(compressed);
        let outcome = match contain(|| deflater.deflate(payload, window_bits, compressed)) {
            Ok(true) => Deflated::Compressed,
            Ok(false) => Deflated::Incompressible,
            Err(panic) => {
                tracing::error!(panic, "compressing a message panicked; it is sent plain");
                self.deflater = Deflater::new(self.level);
                Deflated::Failed
            }
        };
        self.metrics.deflated[outcome as usize].add(1);
        if outcome != Deflated::Compressed {
            return false;
        }
        self.metrics.deflated_from_bytes.add(payload.len() as u64);
        self.metrics.deflated_to_bytes.add(self.compressed.len() as u64);
        true
    }
}

impl<I: Io> Shard<I> {
    /// Inflates a message and acts on it.
    pub(super) fn on_deflated(&mut self, key: ConnKey, opcode: Opcode, payload: &[u8]) -> Result<(), Failed> {
        let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.is_open()) else { return Ok(()) };
        let takeover = conn.deflate.is_some_and(Agreement::client_context_takeover);
        let inflater = if takeover {
            let own = &mut conn.intake.get_or_insert_default().inflater;
            self.inflaters += usize::from(own.is_none());
            &mut **own.get_or_insert_default()
        } else {
            self.codecs.inflater.get_or_insert_default()
        };
        self.fair.watch();
        let limits = InflateLimits {
            message_bytes_max: self.settings.messages.message_bytes_max,
            ratio_max: self.settings.compression.max_ratio,
        };
        let mut message = std::mem::take(&mut self.codecs.message);
        reuse(&mut message);
        let inflated = match contain(|| inflater.inflate(payload, takeover, &limits, &mut message)) {
            Ok(inflated) => inflated,
            Err(panic) => {
                // What it was in the middle of goes with it.
                *inflater = Inflater::default();
                return Err(Failed::Panic(panic));
            }
        };
        let outcome = match inflated {
            Ok(()) => Inflated::Inflated,
            Err(ProtocolError::NotDeflate) => Inflated::Malformed,
            Err(_) => Inflated::TooLarge,
        };
        self.metrics.inflated[outcome as usize].add(1);
        inflated.map_err(Failed::Peer)?;
        self.metrics.inflated_from_bytes.add(payload.len() as u64);
        self.metrics.inflated_to_bytes.add(message.len() as u64);
        // Blocks that yield nothing are work too.
        let cost = message.len().max(payload.len());
        let refusals = self.refusals(key);
        match opcode {
            Opcode::Text if simdutf8::basic::from_utf8(&message).is_err() => {
                return Err(Failed::Peer(ProtocolError::TextNotUtf8));
            }
            Opcode::Text => self.on_event(key, Event::Text(&mut message), cost),
            _ => self.on_event(key, Event::Binary(&mut message), cost),
        }
        self.weigh_refusal(key, refusals, cost);
        reuse(&mut message);
        self.codecs.message = message;
        Ok(())
    }
}

/// Empties a buffer, and gives a large one back to the allocator.
fn reuse(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(SPARE_BYTES_MAX);
}

/// A buffer keeps so much from one message to the next.
const SPARE_BYTES_MAX: usize = 1024 * 1024;
