//! How a client can break the protocol, and the close code that tells it.
//! Law: every error names the culprit and maps to exactly one of 1002, 1007, 1009.

use tungstenite::protocol::frame::coding::CloseCode;

/// What the client did wrong. The connection is over: the decoder yields nothing after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A reserved bit is set that no agreed extension gives a meaning (RFC 6455 §5.2).
    #[error("reserved bits {0:#05b} set without an extension")]
    ReservedBits(u8),
    /// One of the opcodes 3–7 and 11–15.
    #[error("reserved opcode {0}")]
    ReservedOpcode(u8),
    /// A frame from a client without a mask (§5.1).
    #[error("frame without a mask")]
    Unmasked,
    /// A control frame without FIN (§5.5).
    #[error("fragmented control frame")]
    ControlFragmented,
    /// A control frame that declares more than 125 bytes (§5.5).
    #[error("control frame of more than 125 bytes")]
    ControlTooLong,
    /// A length in a longer form than it needs (§5.2).
    #[error("length {0} not in its shortest form")]
    LengthNotMinimal(u64),
    /// A 64-bit length with its top bit set (§5.2).
    #[error("length with its top bit set")]
    LengthNegative,
    /// A continuation frame while no message is in progress (§5.4).
    #[error("continuation without a message to continue")]
    ContinuationUnexpected,
    /// A new message before the last fragment of the one in progress (§5.4).
    #[error("new message inside a fragmented one")]
    ContinuationExpected,
    /// A close frame whose payload is one byte: half a code (§5.5.1).
    #[error("close frame with half a code")]
    CloseCodeCut,
    /// A close code that may not be sent (§7.4).
    #[error("close code {0} may not be sent")]
    CloseCode(u16),
    /// A close reason that is not UTF-8.
    #[error("close reason is not UTF-8")]
    CloseReasonNotUtf8,
    /// A text message that is not UTF-8, told as soon as no further byte could make it so (§8.1).
    #[error("text is not UTF-8")]
    TextNotUtf8,
    /// A message that is, or whose next frame declares that it will be, larger than the limit.
    #[error("message of {bytes} bytes or more, limit {limit}")]
    MessageTooLarge {
        /// Bytes received and declared so far.
        bytes: u64,
        /// The limit in bytes.
        limit: usize,
    },
    /// A compressed message that no inflater can read (RFC 7692 §7.2.2).
    #[error("compressed message is not DEFLATE data")]
    NotDeflate,
    /// A compressed message that grows out of all proportion when it is inflated.
    #[error("{compressed} compressed bytes inflate to {bytes} or more, limit {limit}")]
    InflatesTooMuch {
        /// Inflated bytes so far.
        bytes: u64,
        /// The limit in bytes, which follows from `compressed`.
        limit: usize,
        /// Compressed bytes.
        compressed: usize,
    },
}

impl ProtocolError {
    /// The code for the close frame that ends the connection (§7.4.1).
    pub fn close_code(&self) -> u16 {
        let code = match self {
            Self::TextNotUtf8 | Self::CloseReasonNotUtf8 | Self::NotDeflate => CloseCode::Invalid,
            Self::MessageTooLarge { .. } | Self::InflatesTooMuch { .. } => CloseCode::Size,
            Self::ReservedBits(_)
            | Self::ReservedOpcode(_)
            | Self::Unmasked
            | Self::ControlFragmented
            | Self::ControlTooLong
            | Self::LengthNotMinimal(_)
            | Self::LengthNegative
            | Self::ContinuationUnexpected
            | Self::ContinuationExpected
            | Self::CloseCodeCut
            | Self::CloseCode(_) => CloseCode::Protocol,
        };
        code.into()
    }
}
