//! Frames to messages.
//! Law: a whole message that lies in the input is lent from there, unmasked in place; anything else is gathered in one
//! buffer that follows the bytes received, never the lengths declared, and is gone once its message has been handled.

mod memory;

use super::error::ProtocolError;
use super::frame::{self, Extensions, Header};
use super::mask;
use super::message::{CONTROL_BYTES_MAX, Close, Event, Opcode, may_be_sent};

pub use memory::Memory;

/// A cursor over lent bytes: what was received and not yet decoded.
#[derive(Debug)]
pub struct Input<'b> {
    unread: &'b mut [u8],
    short_fragments: u32,
    memory: Option<&'b mut Memory>,
}

impl<'b> Input<'b> {
    /// Starts at the front of `bytes`, which decoding overwrites.
    pub fn new(bytes: &'b mut [u8]) -> Self {
        Self { unread: bytes, short_fragments: 0, memory: None }
    }

    /// As [`Input::new`]; what has to be gathered is gathered in memory that other messages had before.
    pub fn with_memory(bytes: &'b mut [u8], memory: &'b mut Memory) -> Self {
        Self { unread: bytes, short_fragments: 0, memory: Some(memory) }
    }

    /// The unread bytes.
    pub fn rest(&self) -> &[u8] {
        self.unread
    }

    /// Whether everything has been read.
    pub fn is_empty(&self) -> bool {
        self.unread.is_empty()
    }

    /// How many frames of at most 125 bytes have begun so far that do not end their message. Whoever sends many makes much
    /// work with few bytes.
    pub fn short_fragments(&self) -> u32 {
        self.short_fragments
    }

    /// Takes the next `count` bytes, or all if there are fewer.
    fn take(&mut self, count: usize) -> &'b mut [u8] {
        let unread = std::mem::take(&mut self.unread);
        let (taken, rest) = unread.split_at_mut(count.min(unread.len()));
        self.unread = rest;
        taken
    }
}

/// What a client may ask of the decoder.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest message in bytes, all fragments together. A larger one ends the connection (1009) as soon as a frame
    /// header declares it.
    pub message_bytes_max: usize,
    /// What was agreed in the handshake.
    pub extensions: Extensions,
}

impl Limits {
    /// Largest payload of a message in bytes. A compressed one may be a little over what it inflates to: what cannot be
    /// compressed gets longer, with zlib's least memory and its fixed codes by up to 13.2 % (its `deflateBound`), and the
    /// sender has no say in it.
    fn payload_bytes_max(&self, is_deflated: bool) -> usize {
        let more = if is_deflated { self.message_bytes_max / 7 + 64 } else { 0 };
        self.message_bytes_max.saturating_add(more)
    }
}

/// The receiving half of one connection. Eight bytes, and nothing behind them between two messages.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

const _: () = assert!(size_of::<Decoder>() == 8);

impl Decoder {
    /// The next event in `input`; call until it returns `None`, which means that all input is consumed and more is
    /// needed. After [`Event::Close`] or an error nothing more comes: the rest of the stream is swallowed.
    ///
    /// # Errors
    /// The client broke the protocol; close with [`ProtocolError::close_code`].
    #[inline]
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        limits: &Limits,
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        self.settle_into(input.memory.as_deref_mut());
        loop {
            match self.step(input, limits) {
                Ok(Step::Lent(event)) => return Ok(Some(event)),
                Ok(Step::Gathered) => break,
                Ok(Step::Again) => {}
                Ok(Step::Starved) => return Ok(None),
                Err(error) => {
                    self.end();
                    return Err(error);
                }
            }
        }
        self.partial.as_deref_mut().map_or(Ok(None), Partial::event)
    }

    /// Gives back what the last event was gathered in. The following [`next`](Self::next) does this by itself, so only
    /// a caller that stops before `next` has returned `None` needs it.
    #[inline]
    pub fn settle(&mut self) {
        self.settle_into(None);
    }

    /// As [`Decoder::settle`]; what is given back is for the next message.
    #[inline]
    pub fn settle_into(&mut self, memory: Option<&mut Memory>) {
        let Some(partial) = &self.partial else { return };
        match partial.reading {
            Reading::Data { fin: true, left: 0, .. } => self.give_back(memory),
            Reading::Control { opcode: Opcode::Close, left: 0, .. } => self.end(),
            Reading::Control { left: 0, .. } => self.next_frame(memory),
            _ => {}
        }
    }

    /// The decoder of a stream of which nothing more is looked at.
    pub fn ended() -> Self {
        let mut ended = Self::default();
        ended.end();
        ended
    }

    /// Whether the stream is between two messages, so that nothing is held for it. False for good once it has ended.
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// Memory held for an incomplete message, in bytes: at most twice the bytes received of it and a small constant.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            size_of::<Partial>() + partial.message.as_ref().map_or(0, |message| message.bytes.capacity())
        })
    }

    /// Goes one frame, or what is there of it, forward.
    #[inline]
    fn step<'b>(&mut self, input: &mut Input<'b>, limits: &Limits) -> Result<Step<'b>, ProtocolError> {
        match self.partial.as_deref_mut().map(|partial| &mut partial.reading) {
            None | Some(Reading::Header { received: 0, .. }) => {
                if let Some((header, header_bytes)) = frame::parse(input.rest(), limits.extensions)? {
                    input.take(header_bytes);
                    return self.open_frame(header, input, limits);
                }
                // The input ends before or inside a header: keep what is there of it, if anything.
                let cut = input.take(usize::MAX);
                if !cut.is_empty() {
                    let mut bytes = [0; frame::HEADER_BYTES_MAX];
                    bytes[..cut.len()].copy_from_slice(cut);
                    self.gathering(input.memory.as_deref_mut()).reading =
                        Reading::Header { bytes, received: cut.len() as u8 };
                }
                Ok(Step::Starved)
            }
            Some(Reading::Header { bytes, received }) => {
                match resume_header(bytes, received, input, limits.extensions)? {
                    Some(header) => self.open_frame(header, input, limits),
                    None => Ok(Step::Starved),
                }
            }
            Some(Reading::Data { .. } | Reading::Control { .. }) => self.gather(input, limits),
            Some(Reading::Ended) => {
                input.take(usize::MAX);
                Ok(Step::Starved)
            }
        }
    }

    /// A header is complete: judges it among the other frames, then lends the payload if it is whole and a message by
    /// itself, or starts to gather it.
    #[inline]
    fn open_frame<'b>(
        &mut self,
        header: Header,
        input: &mut Input<'b>,
        limits: &Limits,
    ) -> Result<Step<'b>, ProtocolError> {
        let Header { fin, opcode, mask: key, payload_bytes, reserved } = header;
        let is_deflated = reserved != 0; // the only meaning that a reserved bit can have
        let message = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        let is_first = message.is_none();
        let is_control = opcode.is_control();

        if !is_control {
            if !fin && payload_bytes <= CONTROL_BYTES_MAX as u64 {
                input.short_fragments += 1;
            }
            match (opcode == Opcode::Continuation, is_first) {
                (true, true) => return Err(ProtocolError::ContinuationUnexpected),
                (false, false) => return Err(ProtocolError::ContinuationExpected),
                (true, false) | (false, true) => {}
            }
            let bytes = payload_bytes.saturating_add(message.map_or(0, |message| message.bytes.len() as u64));
            let limit = limits.payload_bytes_max(message.map_or(is_deflated, |message| message.is_deflated));
            if bytes > limit as u64 {
                return Err(ProtocolError::MessageTooLarge { bytes, limit });
            }
        }

        let left = payload_bytes as usize; // at most the limit, or 125
        if left <= input.rest().len() && (is_control || (fin && is_first)) {
            let payload = input.take(left);
            mask::apply(payload, key);
            let event = match is_deflated {
                true => Event::Deflated { opcode, payload },
                false => lent_event(opcode, payload)?,
            };
            if opcode == Opcode::Close {
                self.end();
            } else if self.partial.is_some() {
                self.next_frame(input.memory.as_deref_mut());
            }
            return Ok(Step::Lent(event));
        }

        let partial = self.gathering(input.memory.as_deref_mut());
        if is_control {
            partial.reading =
                Reading::Control { opcode, key, left: left as u8, received: 0, payload: [0; CONTROL_BYTES_MAX] };
        } else {
            partial.reading = Reading::Data { fin, key, left };
            partial.message.get_or_insert_with(|| Message::new(opcode, is_deflated));
        }
        self.gather(input, limits)
    }

    /// Takes what the input has of the frame in progress.
    fn gather<'b>(&mut self, input: &mut Input<'b>, limits: &Limits) -> Result<Step<'b>, ProtocolError> {
        let Some(partial) = self.partial.as_deref_mut() else { return Ok(Step::Starved) };
        match (&mut partial.reading, &mut partial.message) {
            (Reading::Data { fin, key, left }, Some(message)) => {
                let piece = input.take(*left);
                *left -= piece.len();
                *key = mask::apply(piece, *key);
                let bytes_max = match *fin {
                    true => message.bytes.len() + piece.len() + *left,
                    false => limits.payload_bytes_max(message.is_deflated),
                };
                message.append(piece, bytes_max, input.memory.as_deref_mut())?;
                match (*left, *fin) {
                    (0, true) => message.complete().map(|()| Step::Gathered),
                    (0, false) => {
                        self.next_frame(input.memory.as_deref_mut());
                        Ok(Step::Again)
                    }
                    _ => Ok(Step::Starved),
                }
            }
            (Reading::Control { key, left, received, payload, .. }, _) => {
                let piece = input.take(usize::from(*left));
                *key = mask::apply(piece, *key);
                payload[usize::from(*received)..][..piece.len()].copy_from_slice(piece);
                *left -= piece.len() as u8;
                *received += piece.len() as u8;
                Ok(if *left == 0 { Step::Gathered } else { Step::Starved })
            }
            _ => Ok(Step::Starved),
        }
    }

    /// A frame that did not end its message is over, or one that came between: on to the next header.
    fn next_frame(&mut self, memory: Option<&mut Memory>) {
        match &mut self.partial {
            Some(partial) if partial.message.is_some() => partial.reading = Reading::BETWEEN_FRAMES,
            _ => self.give_back(memory),
        }
    }

    /// Nothing is gathered any more.
    fn give_back(&mut self, memory: Option<&mut Memory>) {
        if let (Some(partial), Some(memory)) = (self.partial.take(), memory) {
            memory.keep(partial);
        }
    }

    /// The stream is over: frees what was gathered, and remembers that nothing may follow.
    #[cold]
    fn end(&mut self) {
        *self.gathering(None) = Partial { message: None, reading: Reading::Ended };
    }

    /// Where it is gathered; what is being read is for the caller to say.
    fn gathering(&mut self, memory: Option<&mut Memory>) -> &mut Partial {
        self.partial.get_or_insert_with(|| memory.and_then(Memory::partial).unwrap_or_default())
    }
}

/// How far one step went.
enum Step<'b> {
    /// An event that lies in the input.
    Lent(Event<'b>),
    /// An event that lies in [`Partial`].
    Gathered,
    /// A frame is over, its message is not.
    Again,
    /// All input is consumed.
    Starved,
}

/// What is kept from one input to the next while a frame or a message is incomplete, or once the stream has ended.
#[derive(Debug, Default)]
struct Partial {
    /// The data message in progress: from its first frame's header on, across the control frames in between.
    message: Option<Message>,
    reading: Reading,
}

impl Partial {
    /// The event of the frame that has just been completed.
    fn event(&mut self) -> Result<Option<Event<'_>>, ProtocolError> {
        match (&mut self.reading, &mut self.message) {
            (Reading::Control { opcode, received, payload, .. }, _) => {
                lent_event(*opcode, &mut payload[..usize::from(*received)]).map(Some)
            }
            (Reading::Data { .. }, Some(Message { opcode, is_deflated, bytes, .. })) => {
                Ok(Some(match (opcode, is_deflated) {
                    (&mut opcode, true) => Event::Deflated { opcode, payload: bytes },
                    (Opcode::Text, false) => Event::Text(bytes),
                    (_, false) => Event::Binary(bytes),
                }))
            }
            _ => Ok(None),
        }
    }
}

/// Where in the stream of frames an incomplete message stands.
#[derive(Debug, Default)]
enum Reading {
    /// In a header, `received` bytes of it are here.
    Header { bytes: [u8; frame::HEADER_BYTES_MAX], received: u8 },
    /// In the payload of a data frame, which goes to the message; `key` is for the next byte. With `fin` and nothing
    /// left the message has been handed out.
    Data { fin: bool, key: [u8; 4], left: usize },
    /// In the payload of a control frame. With nothing left it has been handed out.
    Control { opcode: Opcode, key: [u8; 4], left: u8, received: u8, payload: [u8; CONTROL_BYTES_MAX] },
    /// After a close frame or an error.
    #[default]
    Ended,
}

impl Reading {
    const BETWEEN_FRAMES: Self = Self::Header { bytes: [0; frame::HEADER_BYTES_MAX], received: 0 };
}

/// A data message that arrives in pieces.
#[derive(Debug)]
struct Message {
    /// [`Opcode::Text`] or [`Opcode::Binary`].
    opcode: Opcode,
    /// Compressed: its text shows only when it has been inflated.
    is_deflated: bool,
    bytes: Vec<u8>,
    /// Plain text only: so many bytes are whole, valid characters; at most 3 more may wait for the rest of theirs.
    checked: usize,
}

impl Message {
    fn new(opcode: Opcode, is_deflated: bool) -> Self {
        Self { opcode, is_deflated, bytes: Vec::new(), checked: 0 }
    }

    fn is_plain_text(&self) -> bool {
        self.opcode == Opcode::Text && !self.is_deflated
    }

    /// Adds unmasked bytes of a message that will have at most `bytes_max`.
    fn append(&mut self, piece: &[u8], bytes_max: usize, memory: Option<&mut Memory>) -> Result<(), ProtocolError> {
        let needed = self.bytes.len() + piece.len();
        if needed > self.bytes.capacity() {
            // Doubling keeps the cost linear in the bytes received, however small the pieces.
            let capacity = (2 * self.bytes.capacity()).max(CAPACITY_MIN).min(bytes_max).max(needed);
            match memory {
                Some(memory) => memory.grow(&mut self.bytes, needed, capacity),
                None => self.bytes.reserve_exact(capacity - self.bytes.len()),
            }
        }
        self.bytes.extend_from_slice(piece);
        if self.is_plain_text() {
            let unchecked = &self.bytes[self.checked..];
            match simdutf8::compat::from_utf8(unchecked) {
                Ok(text) => self.checked += text.len(),
                Err(cut) if cut.error_len().is_none() => self.checked += cut.valid_up_to(),
                Err(_) => return Err(ProtocolError::TextNotUtf8),
            }
            // No byte is looked at again but those of a cut character, so the cost stays linear in the bytes.
            debug_assert!(self.bytes.len() - self.checked <= 3);
        }
        Ok(())
    }

    /// Judges the end of the message: a text may not end inside a character.
    fn complete(&self) -> Result<(), ProtocolError> {
        if self.is_plain_text() && self.checked < self.bytes.len() { Err(ProtocolError::TextNotUtf8) } else { Ok(()) }
    }
}

/// Goes on with a header that was cut by the end of an input.
fn resume_header(
    bytes: &mut [u8; frame::HEADER_BYTES_MAX],
    received: &mut u8,
    input: &mut Input<'_>,
    extensions: Extensions,
) -> Result<Option<Header>, ProtocolError> {
    loop {
        let have = usize::from(*received);
        let wanted = if have < 2 { 2 } else { frame::header_bytes(bytes[1]) };
        let piece = input.take(wanted - have);
        bytes[have..][..piece.len()].copy_from_slice(piece);
        *received += piece.len() as u8;
        if let Some((header, _)) = frame::parse(&bytes[..usize::from(*received)], extensions)? {
            return Ok(Some(header));
        }
        if input.is_empty() {
            return Ok(None);
        }
    }
}

/// The event of a frame that is an event by itself and whose unmasked payload is all here.
#[inline]
fn lent_event(opcode: Opcode, payload: &mut [u8]) -> Result<Event<'_>, ProtocolError> {
    match opcode {
        Opcode::Text if simdutf8::basic::from_utf8(payload).is_err() => Err(ProtocolError::TextNotUtf8),
        Opcode::Text => Ok(Event::Text(payload)),
        Opcode::Binary => Ok(Event::Binary(payload)),
        Opcode::Ping => Ok(Event::Ping(payload)),
        Opcode::Pong => Ok(Event::Pong(payload)),
        Opcode::Close => close(payload).map(Event::Close),
        Opcode::Continuation => Err(ProtocolError::ContinuationUnexpected),
    }
}

/// The payload of a close frame: nothing, or a code and a reason (RFC 6455 §5.5.1).
fn close(payload: &[u8]) -> Result<Option<Close<'_>>, ProtocolError> {
    match payload {
        [] => Ok(None),
        [_] => Err(ProtocolError::CloseCodeCut),
        &[high, low, ref reason @ ..] => {
            let reason = str::from_utf8(reason).map_err(|_| ProtocolError::CloseReasonNotUtf8)?;
            let code = u16::from_be_bytes([high, low]);
            if may_be_sent(code) { Ok(Some(Close { code, reason })) } else { Err(ProtocolError::CloseCode(code)) }
        }
    }
}

/// Smallest buffer for a message in pieces, in bytes, unless the message will be shorter.
const CAPACITY_MIN: usize = 64;

#[cfg(test)]
mod tests;
