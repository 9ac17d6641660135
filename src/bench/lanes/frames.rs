//! From bytes of a server to what a part is told.
//! Law: what is whole is read where it lies; what is not is kept until the rest has come.

use super::{End, Lanes, PARTING_NS, Part, Partial, Stage};
use crate::bench::counts::Count;
use crate::bench::wire::{self, Answer, WireError};
use crate::id::ConnKey;
use crate::ws::Opcode;

impl<C: Default> Lanes<C> {
    pub(super) fn received<P: Part<Client = C>>(&mut self, part: &mut P, conn: ConnKey, bytes: &[u8]) {
        self.counts.add(Count::BytesIn, bytes.len() as u64);
        if self.lanes.get(conn).is_none_or(|lane| lane.tls.is_none()) {
            return self.received_plain(part, conn, bytes);
        }
        match self.open(conn, bytes) {
            Ok(plain) if plain.is_empty() => {}
            Ok(plain) => self.received_plain(part, conn, &plain),
            Err(error) => self.end(conn, End::Broken(error)),
        }
    }

    fn received_plain<P: Part<Client = C>>(&mut self, part: &mut P, conn: ConnKey, bytes: &[u8]) {
        let Some(lane) = self.lanes.get_mut(conn) else { return };
        let outcome = match lane.partial.take() {
            None => self.read(part, conn, bytes).map(|taken| (taken, None)),
            Some(mut partial) => {
                partial.bytes.extend_from_slice(bytes);
                let bytes = std::mem::take(&mut partial.bytes);
                if let Some(lane) = self.lanes.get_mut(conn) {
                    lane.partial = (partial.opcode != 0).then_some(partial);
                }
                self.read(part, conn, &bytes).map(|taken| (taken, Some(bytes)))
            }
        };
        match outcome {
            Ok((taken, gathered)) => {
                let rest = gathered.as_deref().unwrap_or(bytes).get(taken..).unwrap_or_default();
                let Some(lane) = self.lanes.get_mut(conn).filter(|lane| lane.stage != Stage::Closing) else { return };
                if !rest.is_empty() {
                    lane.partial.get_or_insert_default().bytes.extend_from_slice(rest);
                }
            }
            Err(error) => self.end(conn, End::Broken(error)),
        }
    }

    /// Reads what is whole of the bytes; returns how many those were.
    fn read<P: Part<Client = C>>(&mut self, part: &mut P, conn: ConnKey, bytes: &[u8]) -> Result<usize, WireError> {
        let mut taken = 0;
        loop {
            let Some(lane) = self.lanes.get_mut(conn) else { return Ok(taken) };
            match lane.stage {
                Stage::Closing => return Ok(bytes.len()),
                Stage::Shaking => match wire::response(bytes, nonce(conn, lane.since_ns))? {
                    None => return Ok(0),
                    Some(Answer::Refused { status, retry_after_s }) => {
                        self.end(conn, End::Refused { status, retry_after_s });
                        return Ok(bytes.len());
                    }
                    Some(Answer::Switched(len)) => {
                        (lane.stage, lane.let_in) = (Stage::Open, true);
                        self.shaking -= 1;
                        self.counts.add(Count::Opened, 1);
                        part.opened(self, conn);
                        taken = len;
                    }
                },
                Stage::Open | Stage::Leaving => match wire::split(&bytes[taken..])? {
                    None => return Ok(taken),
                    Some(frame) => {
                        taken += frame.len;
                        self.on_frame(part, conn, &frame)?;
                    }
                },
            }
        }
    }

    fn on_frame<P: Part<Client = C>>(
        &mut self,
        part: &mut P,
        conn: ConnKey,
        frame: &wire::Frame<'_>,
    ) -> Result<(), WireError> {
        let Some(lane) = self.lanes.get_mut(conn) else { return Ok(()) };
        let is_open = lane.stage == Stage::Open;
        let is_within = lane.partial.is_some();
        match (Opcode::from_bits(frame.opcode), frame.fin) {
            (Some(Opcode::Close), true) => {
                let code = frame.payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                // The server ends the stream (RFC 6455 §7.1.1); who does not is not waited for.
                self.parting.push_back((self.now_ns + PARTING_NS, conn));
                lane.end.get_or_insert_with(|| Box::new(if is_open { End::Closed(code) } else { End::Left }));
                if is_open {
                    lane.stage = Stage::Leaving;
                    self.send(conn, Opcode::Close, &frame.payload[..frame.payload.len().min(2)]);
                }
            }
            (Some(Opcode::Ping), true) => {
                self.counts.add(Count::Pings, 1);
                self.send(conn, Opcode::Pong, frame.payload);
            }
            (Some(opcode @ (Opcode::Text | Opcode::Binary | Opcode::Pong)), true)
                if opcode == Opcode::Pong || !is_within =>
            {
                if is_open {
                    part.message(self, conn, opcode, frame.payload);
                }
            }
            (Some(Opcode::Text | Opcode::Binary), false) if !is_within => {
                lane.partial = Some(Box::new(Partial {
                    bytes: Vec::new(),
                    opcode: frame.opcode,
                    message: frame.payload.to_vec(),
                }));
            }
            (Some(Opcode::Continuation), fin) if is_within => {
                let Some(mut partial) = lane.partial.take() else { return Ok(()) };
                partial.message.extend_from_slice(frame.payload);
                if partial.message.len() > wire::MESSAGE_BYTES_MAX {
                    return Err(WireError::TooLong);
                }
                match (fin, Opcode::from_bits(partial.opcode)) {
                    (true, Some(opcode)) if is_open => part.message(self, conn, opcode, &partial.message),
                    (true, _) => {}
                    (false, _) => lane.partial = Some(partial),
                }
            }
            _ => return Err(WireError::Fragments),
        }
        Ok(())
    }
}

/// The nonce of a handshake: sixteen bytes that no other one has.
pub(super) fn nonce(conn: ConnKey, since_ns: u64) -> [u8; 16] {
    let words = [since_ns, u64::from(conn.slot) << 32 | u64::from(conn.generation)];
    let mut nonce = [0; 16];
    for (bytes, word) in nonce.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    nonce
}
