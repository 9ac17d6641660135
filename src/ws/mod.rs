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
//! | [`deflate`] | compressed messages: the negotiation, both codecs, who shares a compressed form |
//! | [`error`] | how a peer can misbehave, and the close code for it |
//!
//! # Where other protocol stages go
//! **TLS** is a stage of bytes in front of [`Input`]: records are decrypted in the lent buffer, and the plain text is
//! what `Input` is made of. Nothing here knows of it.
//!
//! **permessage-deflate** (RFC 7692) is a stage between a message's event and its receiver.
//! [`Upgrade::extensions`] yields the client's offers, [`deflate::negotiate`] makes an [`Agreement`](deflate::Agreement) of
//! them, and [`Extensions::DEFLATE`] lets the bit that marks a compressed message pass [`frame::parse`]. Such a message comes
//! out of the decoder as [`Event::Deflated`], whole and unmasked. Its caller owns the inflaters (one for a shard, and one for
//! each client whose messages refer to each other), inflates it, and checks its text then. The other way the caller compresses
//! what it has encoded, and [`deflated_frame`] puts it on the wire.
//!
//! # The loop of a caller
//! ```
//! use tidewheel::ws::{self, Decoder, Event, Extensions, Input, Limits, Opcode};
//!
//! let (mut decoder, mut replies) = (Decoder::default(), Vec::new());
//! let limits = Limits { message_bytes_max: 1 << 20, extensions: Extensions::NONE };
//! let mut received = *b"\x81\x82\x00\x00\x00\x00hi"; // as it came from the kernel, any number of frames
//! let mut input = Input::new(&mut received);
//! loop {
//!     match decoder.next(&mut input, &limits) {
//!         Ok(Some(Event::Text(text))) => ws::frame(&mut replies, Opcode::Text, text),
//!         Ok(Some(Event::Ping(payload))) => ws::frame(&mut replies, Opcode::Pong, payload),
//!         Ok(Some(Event::Close(close))) => ws::close(&mut replies, close.map_or(1000, |close| close.code), ""),
//!         Ok(Some(Event::Binary(_) | Event::Deflated { .. } | Event::Pong(_))) => {}
//!         Ok(None) => break, // all input consumed; nothing is held unless a message is incomplete
//!         Err(error) => break ws::close(&mut replies, error.close_code(), &error.to_string()),
//!     }
//! }
//! assert_eq!(replies, b"\x81\x02hi");
//! ```

pub mod decoder;
pub mod deflate;
pub mod encoder;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod message;
pub mod preamble;

pub use decoder::{Decoder, Input, Limits};
pub use encoder::{Mark, begin, close, deflated_frame, finish, frame, frame_of, payload};
pub use error::ProtocolError;
pub use frame::Extensions;
pub use handshake::{HandshakeError, HandshakeLimits, Progress, Upgrade, accept, parse_request, refuse};
pub use message::{Close, Event, Opcode};
pub use preamble::{Preamble, PreambleError, parse_preamble};
