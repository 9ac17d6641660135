//! The JSON wire: reads what clients send, writes what the server sends. Bytes in, bytes out; no socket, no clock.
//! Law: a message is validated whole before any part of it is believed; `data` is a slice of the very bytes the client
//! sent, and what is written is always JSON.
//!
//! How to read was decided by `benches/envelope.rs` (AMD EPYC, two shared cores, so good to some 20 %; each figure the
//! lower of the medians of two runs). To cut a message into its parts, with `data` as it was sent:
//!
//! | message | bytes | own scanner | `serde_json`, borrowed `RawValue` | `simd-json` tape |
//! |---|---|---|---|---|
//! | ping | 29 | 63 ns | 67 ns | 207 ns |
//! | publish, one object | 171 | 232 ns | 442 ns | 756 ns |
//! | publish, 36 objects in a list | 3776 | 3.3 µs | 7.2 µs | 14.2 µs |
//! | publish, one long text | 4158 | 0.63 µs | 1.27 µs | 1.08 µs |
//!
//! The scanner is twice as fast because it passes over a payload once, where `serde_json` finds the payload first and
//! reads it then. `simd-json` unescapes in place, so `data` has to be written anew, and not byte for byte. To fill a
//! handler's own type from a payload:
//!
//! | payload bytes | `serde_json` | `simd-json` | `simd-json`, kept buffers |
//! |---|---|---|---|
//! | 135 | 438 ns | 589 ns | 345 ns |
//! | 444 | 1.33 µs | 1.26 µs | 1.06 µs |
//! | 3740 | 11.0 µs | 8.2 µs | 7.7 µs |
//! | 59360 | 174 µs | 132 µs | 121 µs |
//!
//! Hence the scanner for every message, and `simd-json` with a thread's buffers for [`IncomingMessage::parse_payload`].

mod incoming;
mod json;
mod outgoing;
mod payload;

use std::fmt;

use crate::metrics::ErrorCode;

pub use crate::id::{MessageId, MessageIdRef};
pub use incoming::{IncomingMessage, parse};
pub use json::{DEPTH_MAX, Expected, Fault, check_json};
pub use outgoing::{AckResponse, EnvelopeWriter, ErrorResponse};
pub use payload::{Authenticate, Payload, Publish, Subscribe, Unsubscribe};

/// Longest text a message's `id` may be, in bytes after unescaping.
pub const ID_LENGTH_MAX: usize = 64;
/// Longest `key` of a publish, in bytes after unescaping.
pub const KEY_LENGTH_MAX: usize = 255;

/// A message that is none, with the id to answer to when there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvelopeError {
    /// The message's id, if it could be read; the error's `reply_to`.
    pub id: Option<MessageId>,
    /// What is wrong.
    pub cause: Invalid,
}

/// What is wrong with a message or its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The message is not JSON.
    Json(Fault),
    /// A member is missing.
    Missing(&'static str),
    /// A member is there more than once, so that two readers could disagree on what it says.
    Repeated(&'static str),
    /// A member, or the message itself, is of the wrong type.
    Type {
        /// The member's name, or `message`.
        member: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// A text is longer than its bound.
    TooLong {
        /// The member's name.
        member: &'static str,
        /// The bound in bytes.
        length_max: usize,
    },
    /// The payload does not fit the type that a handler asked for.
    Payload(Box<str>),
}

impl Invalid {
    /// The code to answer with.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLong { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::InvalidMessage,
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(fault) => fault.fmt(f),
            Self::Missing(member) => write!(f, "`{member}` is missing"),
            Self::Repeated(member) => write!(f, "`{member}` is there twice"),
            Self::Type { member, expected } => write!(f, "`{member}` must be {expected}"),
            Self::TooLong { member, length_max } => write!(f, "`{member}` is longer than {length_max} bytes"),
            Self::Payload(text) => write!(f, "`payload`: {text}"),
        }
    }
}

impl std::error::Error for Invalid {}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl std::error::Error for EnvelopeError {}

impl From<Fault> for Invalid {
    fn from(fault: Fault) -> Self {
        Self::Json(fault)
    }
}

const _: () = assert!(size_of::<MessageId>() == 16); // a parked request carries one
