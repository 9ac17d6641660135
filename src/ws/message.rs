//! What comes out of a stream of frames: opcodes, close codes, events.
//! Law: an event's text is UTF-8 and its close code is one that may be sent; who holds an event need not check again.

use tungstenite::protocol::frame::coding::CloseCode;

/// What a frame carries (RFC 6455 §5.2). The reserved opcodes are not here: a frame that uses one is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message in progress.
    Continuation = 0,
    /// A text message, or its first fragment.
    Text = 1,
    /// A binary message, or its first fragment.
    Binary = 2,
    /// The last frame of its sender.
    Close = 8,
    /// To be answered with a pong of the same payload.
    Ping = 9,
    /// The answer to a ping, or a sign of life nobody asked for.
    Pong = 10,
}

impl Opcode {
    /// The opcode with this number (the low 4 bits of a frame's first byte), unless it is reserved.
    #[inline]
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Continuation),
            1 => Some(Self::Text),
            2 => Some(Self::Binary),
            8 => Some(Self::Close),
            9 => Some(Self::Ping),
            10 => Some(Self::Pong),
            _ => None,
        }
    }

    /// Whether frames of this kind may come between the fragments of a message, and must be short and whole (§5.5).
    #[inline]
    pub fn is_control(self) -> bool {
        self as u8 >= Self::Close as u8
    }
}

/// What a client has said. Payloads are unmasked and lie in the caller's input, or in the decoder if they arrived in
/// pieces; those of messages are mutable so that they can be parsed in place.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A text message: valid UTF-8 until its receiver writes to it.
    Text(&'a mut [u8]),
    /// A binary message.
    Binary(&'a mut [u8]),
    /// A compressed message: what comes out of an [`Inflater`](super::deflate::Inflater) is the text or binary message.
    Deflated {
        /// [`Opcode::Text`] or [`Opcode::Binary`].
        opcode: Opcode,
        /// The compressed payload; not UTF-8, whatever it is.
        payload: &'a mut [u8],
    },
    /// A ping, at most 125 bytes; owes the client a pong.
    Ping(&'a [u8]),
    /// A pong, at most 125 bytes.
    Pong(&'a [u8]),
    /// The client's last word: the decoder yields nothing after it. `None` if it gave no reason.
    Close(Option<Close<'a>>),
}

/// Why a client closes (§5.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close<'a> {
    /// A code that [`may_be_sent`].
    pub code: u16,
    /// Text for people, at most 123 bytes, often empty.
    pub reason: &'a str,
}

/// Whether a close frame may carry `code`: what RFC 6455 §7.4 and the IANA registry define, less the codes that only
/// describe what happened locally (1004–1006, 1015), and all of 3000–4999.
pub fn may_be_sent(code: u16) -> bool {
    code == BAD_GATEWAY || CloseCode::from(code).is_allowed()
}

/// Registered with IANA like its neighbours 1012 and 1013, but unknown to tungstenite.
const BAD_GATEWAY: u16 = 1014;

/// Longest payload of a control frame in bytes (§5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(codes: std::ops::RangeInclusive<u16>, expected: bool) {
        for code in codes {
            assert_eq!(may_be_sent(code), expected, "{code}");
        }
    }

    #[test]
    fn close_codes() {
        check(0..=999, false);
        check(1000..=1003, true);
        check(1004..=1006, false);
        check(1007..=1014, true);
        check(1015..=2999, false);
        check(3000..=4999, true);
        check(5000..=u16::MAX, false);
    }

    #[test]
    fn opcodes_are_their_numbers() {
        for bits in 0..=255 {
            let known = Opcode::from_bits(bits);
            assert_eq!(known.is_some(), matches!(bits, 0..=2 | 8..=10), "{bits}");
            assert!(known.is_none_or(|opcode| opcode as u8 == bits && opcode.is_control() == (bits >= 8)));
        }
    }
}
