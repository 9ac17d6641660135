//! Frames to the client, appended to a buffer.
//! Law: unmasked, final, no reserved bit but that of a compressed message, length in its shortest form (RFC 6455 §5.1,
//! §5.2).

use super::frame::{LENGTH_7_MAX, LENGTH_16, LENGTH_16_MAX, LENGTH_64};
use super::message::{CONTROL_BYTES_MAX, Opcode, may_be_sent};

/// Appends a whole frame.
pub fn frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    debug_assert!(!opcode.is_control() || payload.len() <= CONTROL_BYTES_MAX);
    whole(out, opcode as u8, payload);
}

/// Appends a message's frame whose payload is compressed (RFC 7692 §6), to a client that agreed to that.
pub fn deflated_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    debug_assert!(!opcode.is_control());
    whole(out, RSV1 | opcode as u8, payload);
}

fn whole(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    let (header, header_bytes) = header(first, payload.len());
    out.reserve(header_bytes + payload.len());
    out.extend_from_slice(&header[..header_bytes]);
    out.extend_from_slice(payload);
}

/// The payload of a whole frame that was written here.
pub fn payload(frame: &[u8]) -> &[u8] {
    let header_bytes = match frame.get(1) {
        Some(&LENGTH_16) => 4,
        Some(&LENGTH_64) => HEADER_BYTES_MAX,
        _ => 2,
    };
    frame.get(header_bytes..).unwrap_or_default()
}

/// Where a frame of yet unknown length begins.
#[derive(Debug)]
#[must_use = "the frame has no header until `finish`"]
pub struct Mark {
    payload: usize,
}

/// Begins a frame: what is appended to `out` until [`finish`] is its payload.
pub fn begin(out: &mut Vec<u8>) -> Mark {
    out.extend_from_slice(&[0; HEADER_RESERVED]);
    Mark { payload: out.len() }
}

/// Ends the frame that began at `mark`: writes its header. The payload moves by 2 bytes if it is shorter than 126
/// bytes and by 6 if it is longer than 65,535; in between it stays where it was written.
pub fn finish(out: &mut Vec<u8>, mark: Mark, opcode: Opcode) {
    let Mark { payload } = mark;
    let start = payload - HEADER_RESERVED;
    debug_assert!(!opcode.is_control() || out.len() - payload <= CONTROL_BYTES_MAX);
    let (header, header_bytes) = header(opcode as u8, out.len() - payload);
    if header_bytes < HEADER_RESERVED {
        out.drain(start + header_bytes..payload);
    } else if header_bytes > HEADER_RESERVED {
        out.splice(payload..payload, [0; HEADER_BYTES_MAX - HEADER_RESERVED]);
    }
    out[start..start + header_bytes].copy_from_slice(&header[..header_bytes]);
}

/// Appends a frame whose payload `write` appends.
pub fn frame_of(out: &mut Vec<u8>, opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) {
    let mark = begin(out);
    write(out);
    finish(out, mark, opcode);
}

/// Appends a close frame; `reason` is cut to 123 bytes at a character boundary.
pub fn close(out: &mut Vec<u8>, code: u16, reason: &str) {
    debug_assert!(may_be_sent(code), "{code}");
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    let mark = begin(out);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
    finish(out, mark, Opcode::Close);
}

/// A header, and how many of its bytes count.
#[inline]
fn header(first: u8, payload_bytes: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut header = [FIN | first, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    match payload_bytes as u64 {
        bytes @ ..=LENGTH_7_MAX => {
            header[1] = bytes as u8;
            (header, 2)
        }
        bytes @ ..=LENGTH_16_MAX => {
            header[1] = LENGTH_16;
            header[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
            (header, 4)
        }
        bytes => {
            header[1] = LENGTH_64;
            header[2..].copy_from_slice(&bytes.to_be_bytes());
            (header, HEADER_BYTES_MAX)
        }
    }
}

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
/// Longest header of a server, in bytes.
pub const HEADER_BYTES_MAX: usize = 10;
/// Header bytes that [`begin`] reserves: right for payloads of 126 to 65,535 bytes.
const HEADER_RESERVED: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// All ways to write a frame give `header` and the payload, and leave what was in the buffer alone.
    #[track_caller]
    fn check(payload_bytes: usize, header: &[u8]) {
        let bytes: Vec<u8> = (0..payload_bytes).map(|index| index as u8).collect();
        let expected = [b"before", header, &bytes].concat();
        assert!(payload(&expected[6..]) == bytes, "payload of {payload_bytes}");

        let mut out = b"before".to_vec();
        frame(&mut out, Opcode::Text, &bytes);
        assert!(out == expected, "frame of {payload_bytes}: {:x?}", &out[..20.min(out.len())]);

        let mut out = b"before".to_vec();
        let mark = begin(&mut out);
        out.extend_from_slice(&bytes);
        finish(&mut out, mark, Opcode::Text);
        assert!(out == expected, "begin, finish of {payload_bytes}: {:x?}", &out[..20.min(out.len())]);

        let mut out = b"before".to_vec();
        frame_of(&mut out, Opcode::Text, |out| out.extend_from_slice(&bytes));
        assert!(out == expected, "frame_of of {payload_bytes}: {:x?}", &out[..20.min(out.len())]);

        for (opcode, first) in [(Opcode::Text, 0xc1), (Opcode::Binary, 0xc2)] {
            let mut out = b"before".to_vec();
            deflated_frame(&mut out, opcode, &bytes);
            assert_eq!((out[6], out.len()), (first, expected.len()));
            assert!(out[7..] == expected[7..], "deflated frame of {payload_bytes}");
        }
    }

    #[test]
    fn lengths_in_their_shortest_form() {
        check(0, b"\x81\x00");
        check(1, b"\x81\x01");
        check(125, b"\x81\x7d");
        check(126, b"\x81\x7e\x00\x7e");
        check(0xffff, b"\x81\x7e\xff\xff");
        check(0x10000, b"\x81\x7f\0\0\0\0\0\x01\0\0");
    }

    #[track_caller]
    fn check_close(reason: &str, kept_bytes: usize) {
        let mut out = Vec::new();
        close(&mut out, 4001, reason);
        let expected = [&[0x88, 2 + kept_bytes as u8, 0x0f, 0xa1][..], &reason.as_bytes()[..kept_bytes]].concat();
        assert_eq!(out, expected);
    }

    #[test]
    fn close_reasons_are_cut_between_characters() {
        check_close("", 0);
        check_close("idle timeout", 12);
        check_close(&"x".repeat(123), 123);
        check_close(&"x".repeat(200), 123);
        check_close(&"é".repeat(62), 122);
        check_close(&"🌊".repeat(40), 120);
    }
}
