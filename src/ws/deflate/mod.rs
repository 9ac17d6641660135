//! permessage-deflate (RFC 7692): what the two sides agree on, and messages in and out of their compressed form.
//! Law: the server's messages never depend on each other (no context takeover), so one compressed form serves all who
//! agreed on the same window; an inflated message is bounded while it is inflated, in bytes and in ratio; nothing here
//! belongs to a connection but what a client's own context takeover needs.

mod codec;
mod offer;
mod windows;

pub use codec::{Deflater, INFLATER_BYTES, InflateLimits, Inflater};
pub use offer::{Agreement, Terms, negotiate};
pub use windows::Windows;

/// The smallest window that can be compressed with, in bits. RFC 7692 knows one of 8 bits too; who asks for that gets
/// plain messages, which are always legal.
pub const WINDOW_BITS_MIN: u8 = 9;
/// The largest window, in bits.
pub const WINDOW_BITS_MAX: u8 = 15;
/// How many windows there are.
pub const WINDOWS: usize = (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1) as usize;
