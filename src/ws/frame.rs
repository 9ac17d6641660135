//! One frame header (RFC 6455 §5.2): where it ends and whether a client may send it.
//! Law: a header comes out only when all of it is there and it is legal by itself; what it means among other frames
//! (order of fragments, size of the message) is the decoder's to judge.

use super::error::ProtocolError;
use super::message::{CONTROL_BYTES_MAX, Opcode};

/// The extensions agreed in the handshake, as far as frames are concerned: which reserved bits have a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// Legal bits of RSV1 (4), RSV2 (2) and RSV3 (1), on the first frame of a message.
    reserved: u8,
}

impl Extensions {
    /// No extension: all reserved bits must be clear.
    pub const NONE: Self = Self { reserved: 0 };
    /// permessage-deflate (RFC 7692 §6): RSV1 says that a message is compressed.
    pub const DEFLATE: Self = Self { reserved: 4 };
}

/// A client's frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Last frame of its message.
    pub fin: bool,
    /// The reserved bits, all of them legal under the agreed extensions: RSV1 is 4, RSV2 is 2, RSV3 is 1.
    pub reserved: u8,
    /// What the payload is.
    pub opcode: Opcode,
    /// XOR key of the payload.
    pub mask: [u8; 4],
    /// Payload in bytes, as declared.
    pub payload_bytes: u64,
}

/// Parses the header at the front of `bytes`; returns it with its own length in bytes, or `None` if bytes are missing.
///
/// # Errors
/// A header no client may send. The first two bytes are judged as soon as both are there.
#[inline]
pub fn parse(bytes: &[u8], extensions: Extensions) -> Result<Option<(Header, usize)>, ProtocolError> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };

    let (fin, reserved) = (first & 0x80 != 0, (first >> 4) & 0x7);
    let opcode = Opcode::from_bits(first & 0x0f).ok_or(ProtocolError::ReservedOpcode(first & 0x0f))?;
    let legal = if matches!(opcode, Opcode::Text | Opcode::Binary) { extensions.reserved } else { 0 };
    if reserved & !legal != 0 {
        return Err(ProtocolError::ReservedBits(reserved));
    }
    if second & MASKED == 0 {
        return Err(ProtocolError::Unmasked);
    }
    if opcode.is_control() {
        if !fin {
            return Err(ProtocolError::ControlFragmented);
        }
        if usize::from(second & !MASKED) > CONTROL_BYTES_MAX {
            return Err(ProtocolError::ControlTooLong);
        }
    }

    // The length in its three forms, each only for what the shorter ones cannot say.
    let (payload_bytes, shorter_max, rest) = match second & !MASKED {
        LENGTH_16 => {
            let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*length)), LENGTH_7_MAX, rest)
        }
        LENGTH_64 => {
            let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*length), LENGTH_16_MAX, rest)
        }
        length => (u64::from(length), 0, rest),
    };
    if payload_bytes > i64::MAX as u64 {
        return Err(ProtocolError::LengthNegative);
    }
    if shorter_max > 0 && payload_bytes <= shorter_max {
        return Err(ProtocolError::LengthNotMinimal(payload_bytes));
    }
    let Some((&mask, rest)) = rest.split_first_chunk() else { return Ok(None) };
    Ok(Some((Header { fin, reserved, opcode, mask, payload_bytes }, bytes.len() - rest.len())))
}

/// Length in bytes of a client's header whose second byte is `second`.
pub fn header_bytes(second: u8) -> usize {
    match second & !MASKED {
        LENGTH_16 => 8,
        LENGTH_64 => HEADER_BYTES_MAX,
        _ => 6,
    }
}

/// Longest header of a client: two bytes, a 64-bit length, a mask.
pub const HEADER_BYTES_MAX: usize = 14;
/// Value of the 7-bit length that says: 16 bits follow.
pub const LENGTH_16: u8 = 126;
/// Value of the 7-bit length that says: 64 bits follow.
pub const LENGTH_64: u8 = 127;
/// Largest length the 7 bits hold by themselves.
pub const LENGTH_7_MAX: u64 = 125;
/// Largest length the 16-bit form holds.
pub const LENGTH_16_MAX: u64 = u16::MAX as u64;
/// Top bit of the second byte.
const MASKED: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    /// `header` gives its verdict when whole and, if it is legal, asks for more at every shorter length.
    #[track_caller]
    fn check(header: &[u8], expected: Result<(bool, Opcode, u64), ProtocolError>) {
        let got = parse(header, Extensions::NONE).map(|parsed| {
            let (header, bytes) = parsed.expect("a whole header");
            assert_eq!(bytes, header_bytes_of(&header));
            (header.fin, header.opcode, header.payload_bytes)
        });
        assert_eq!(got, expected);
        if expected.is_ok() {
            assert_eq!(header_bytes(header[1]), header.len());
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut], Extensions::NONE), Ok(None), "cut at {cut}");
            }
        }
    }

    fn header_bytes_of(header: &Header) -> usize {
        6 + match header.payload_bytes {
            0..=125 => 0,
            126..=0xffff => 2,
            _ => 8,
        }
    }

    #[test]
    fn legal() {
        check(b"\x81\x80mask", Ok((true, Opcode::Text, 0)));
        check(b"\x02\xfdmask", Ok((false, Opcode::Binary, 125)));
        check(b"\x80\xfe\x00\x7emask", Ok((true, Opcode::Continuation, 126)));
        check(b"\x82\xfe\xff\xffmask", Ok((true, Opcode::Binary, 0xffff)));
        check(b"\x82\xff\0\0\0\0\0\x01\0\0mask", Ok((true, Opcode::Binary, 0x10000)));
        check(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xffmask", Ok((true, Opcode::Binary, i64::MAX as u64)));
        check(b"\x88\xfdmask", Ok((true, Opcode::Close, 125)));
        check(b"\x89\x80mask", Ok((true, Opcode::Ping, 0)));
        check(b"\x8a\x81mask", Ok((true, Opcode::Pong, 1)));
    }

    #[test]
    fn illegal() {
        check(b"\xc1\x80", Err(ProtocolError::ReservedBits(0b100)));
        check(b"\xa1\x80", Err(ProtocolError::ReservedBits(0b010)));
        check(b"\x91\x80", Err(ProtocolError::ReservedBits(0b001)));
        check(b"\x90\x80", Err(ProtocolError::ReservedBits(0b001)));
        check(b"\x99\x80", Err(ProtocolError::ReservedBits(0b001)));
        check(b"\x83\x80", Err(ProtocolError::ReservedOpcode(3)));
        check(b"\x8f\x80", Err(ProtocolError::ReservedOpcode(15)));
        check(b"\x81\x00", Err(ProtocolError::Unmasked));
        check(b"\x09\x80", Err(ProtocolError::ControlFragmented));
        check(b"\x89\xfe", Err(ProtocolError::ControlTooLong));
        check(b"\x88\xff", Err(ProtocolError::ControlTooLong));
        check(b"\x81\xfe\x00\x7d", Err(ProtocolError::LengthNotMinimal(125)));
        check(b"\x81\xff\0\0\0\0\0\0\xff\xff", Err(ProtocolError::LengthNotMinimal(0xffff)));
        check(b"\x81\xff\x80\0\0\0\0\0\0\0", Err(ProtocolError::LengthNegative));
    }

    #[test]
    fn an_agreed_bit_is_legal_where_a_message_begins() {
        let deflate = Extensions { reserved: 0b100 };
        let bits = |header: &[u8]| parse(header, deflate).map(|parsed| parsed.expect("a whole header").0.reserved);
        assert_eq!(bits(b"\xc1\x80mask"), Ok(0b100));
        assert_eq!(bits(b"\x81\x80mask"), Ok(0));
        assert_eq!(bits(b"\xe1\x80mask"), Err(ProtocolError::ReservedBits(0b110)));
        assert_eq!(bits(b"\xc0\x80mask"), Err(ProtocolError::ReservedBits(0b100)));
        assert_eq!(bits(b"\xc9\x80mask"), Err(ProtocolError::ReservedBits(0b100)));
    }
}
