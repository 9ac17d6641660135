//! RFC 6455, server side, as a value: bytes in, events out.
//! Law: no socket, no clock, no thread; what a peer sent is an event or an error with a close code, never a panic; a
//! connection between two messages holds no memory here.
//!
//! # The map, in the order of a connection's life
//! | file | its one job |
//! |---|---|
//! | [`preamble`] | what a proxy says in front of it all |
//! | [`handshake`] | the upgrade request: parse, judge, accept or refuse |
//! | [`mod@frame`] | one frame header: parse and judge |
//! | [`decoder`] | frames to messages: in place if whole, in one growing buffer if not |
//! | [`mask`] | XOR with the client's key |
//! | [`message`] | what comes out: opcodes, close codes, events |
//! | [`encoder`] | frames to the client, appended to a buffer |
//! | [`error`] | how a peer can misbehave, and the close code for it |
//!
//! # Where other protocol stages go
//! **TLS** is a stage of bytes in front of [`Input`]: records are decrypted in the lent buffer, and the plain text is
//! what `Input` is made of. Nothing here knows of it.
//!
//! **permessage-deflate** (RFC 7692) is a stage between a message's last payload byte and its event.
//! [`Upgrade::extensions`] yields the client's offers; what was agreed becomes an [`Extensions`] value, which decides
//! the reserved bits that [`frame::parse`] lets pass; they travel to the decoder in
//! [`Header::reserved`](self::frame::Header::reserved). There a payload becomes an event in two places, one for a message
//! that lies in the input and one for a gathered message: a compressed one is inflated there, and its text is then
//! validated after inflating instead of as it arrives.
//!
//! # The loop of a caller
//! ```
//! use tidewheel::ws::{self, Decoder, Event, Input, Limits, Opcode};
//!
//! let (mut decoder, mut replies) = (Decoder::default(), Vec::new());
//! let limits = Limits { message_bytes_max: 1 << 20 };
//! let mut received = *b"\x81\x82\x00\x00\x00\x00hi"; // as it came from the kernel, any number of frames
//! let mut input = Input::new(&mut received);
//! loop {
//!     match decoder.next(&mut input, &limits) {
//!         Ok(Some(Event::Text(text))) => ws::frame(&mut replies, Opcode::Text, text),
//!         Ok(Some(Event::Ping(payload))) => ws::frame(&mut replies, Opcode::Pong, payload),
//!         Ok(Some(Event::Close(close))) => ws::close(&mut replies, close.map_or(1000, |close| close.code), ""),
//!         Ok(Some(Event::Binary(_) | Event::Pong(_))) => {}
//!         Ok(None) => break, // all input consumed; nothing is held unless a message is incomplete
//!         Err(error) => break ws::close(&mut replies, error.close_code(), &error.to_string()),
//!     }
//! }
//! assert_eq!(replies, b"\x81\x02hi");
//! ```

pub mod decoder;
pub mod encoder;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod message;
pub mod preamble;

pub use decoder::{Decoder, Input, Limits};
pub use encoder::{Mark, begin, close, finish, frame, frame_of};
pub use error::ProtocolError;
pub use frame::Extensions;
pub use handshake::{HandshakeError, HandshakeLimits, Progress, Upgrade, accept, parse_request, refuse};
pub use message::{Close, Event, Opcode};
pub use preamble::{Preamble, PreambleError, parse_preamble};
