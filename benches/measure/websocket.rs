//! The client's half of RFC 6455, as far as a load generator needs it: a handshake on a blocking socket, masked frames
//! out, whole frames in.

use std::io::{self, Read, Write};

/// Shakes hands on `path`; the socket is a WebSocket when this returns.
///
/// # Errors
/// The server answered with something else than 101.
pub fn shake_hands(socket: &mut (impl Read + Write), path: &str) -> io::Result<()> {
    shake_hands_with(socket, path, "")
}

/// The same, and agrees on an extension, if there is one to offer.
///
/// # Errors
/// As above, or it did not take the offer.
pub fn shake_hands_offering(socket: &mut (impl Read + Write), path: &str, offer: Option<&str>) -> io::Result<()> {
    let line = offer.map(|offer| format!("Sec-WebSocket-Extensions: {offer}\r\n")).unwrap_or_default();
    shake_hands_with(socket, path, &line)
}

/// The same with further header lines, each with its line end.
///
/// # Errors
/// As above.
pub fn shake_hands_with(socket: &mut (impl Read + Write), path: &str, lines: &str) -> io::Result<()> {
    socket.write_all(request(path, lines).as_bytes())?;
    socket.flush()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Nothing follows the head until the client speaks.
        let mut piece = [0; 1024];
        let count = socket.read(&mut piece)?;
        head.extend_from_slice(&piece[..count]);
        if count == 0 {
            break;
        }
    }
    let is_switched = head.starts_with(b"HTTP/1.1 101 ");
    // The accept of the sample key, from RFC 6455 §1.3.
    let is_accepted = head.windows(28).any(|window| window == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let is_agreed =
        head.windows(ANSWER.len()).any(|window| window == ANSWER) == lines.contains("Sec-WebSocket-Extensions");
    if is_switched && is_accepted && is_agreed {
        return Ok(());
    }
    Err(io::Error::other(format!("no upgrade: {}", String::from_utf8_lossy(&head))))
}

/// An upgrade request, with further header lines, each with its line end.
pub fn request(path: &str, lines: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

/// The first frame in bytes of a server, if it is whole: opcode, payload, and where it ends.
pub fn split(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let [first, second, ..] = *bytes else { return None };
    let (length, header) = match second {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10),
        length => (usize::from(length), 2),
    };
    Some((first & 0xf, bytes.get(header..header + length)?, header + length))
}

/// Sends a text message and returns the next one from the server.
///
/// # Errors
/// The connection broke, or what came is not a short text frame.
pub fn ask(socket: &mut (impl Read + Write), text: &str) -> io::Result<String> {
    let mut frame = Vec::new();
    text_frame(&mut frame, text.as_bytes(), [1, 2, 3, 4]);
    socket.write_all(&frame)?;
    socket.flush()?;
    let mut header = [0; 2];
    socket.read_exact(&mut header)?;
    let len = match header {
        [0x81, 126] => {
            let mut len = [0; 2];
            socket.read_exact(&mut len)?;
            usize::from(u16::from_be_bytes(len))
        }
        [0x81, len @ ..126] => usize::from(len),
        _ => return Err(io::Error::other(format!("not a short text frame: {header:x?}"))),
    };
    let mut answer = vec![0; len];
    socket.read_exact(&mut answer)?;
    String::from_utf8(answer).map_err(io::Error::other)
}

/// Appends a masked text frame.
pub fn text_frame(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    out.push(0x81);
    match payload.len() {
        len @ ..126 => out.push(0x80 | len as u8),
        len => {
            out.push(0x80 | 126);
            out.extend_from_slice(&u16::try_from(len).expect("a short message").to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Appends what a server sends for the same message.
pub fn server_text_frame(out: &mut Vec<u8>, payload: &[u8]) {
    tidewheel::ws::frame(out, tidewheel::ws::Opcode::Text, payload);
}

/// The line in which a server agrees on an extension.
const ANSWER: &[u8] = b"Sec-WebSocket-Extensions: ";
/// The header of a server's ping, all of it with the time that it carries, and a sign of life.
pub const PING: [u8; 2] = [0x89, 8];
pub const PING_BYTES: usize = 10;
pub const PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];
