//! The alerts that this side sends once a handshake is done (RFC 8446 §6); those before are rustls'.

/// Why a connection ends, as its peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert(u8);

impl Alert {
    /// Nothing more is sent.
    pub const CLOSE_NOTIFY: Self = Self(0);
    /// A message of a kind that may not come now.
    pub const UNEXPECTED_MESSAGE: Self = Self(10);
    /// A record that the key does not open.
    pub const BAD_RECORD_MAC: Self = Self(20);
    /// A record that is too long.
    pub const RECORD_OVERFLOW: Self = Self(22);
    /// A field out of its range.
    pub const ILLEGAL_PARAMETER: Self = Self(47);
    /// A message that cannot be read.
    pub const DECODE_ERROR: Self = Self(50);
    /// This side failed.
    pub const INTERNAL_ERROR: Self = Self(80);

    /// Level and description.
    pub fn bytes(self) -> [u8; 2] {
        let (warning, fatal) = (1, 2);
        [if self == Self::CLOSE_NOTIFY { warning } else { fatal }, self.0]
    }
}
