//! The client's half of RFC 6455, as far as a load generator needs it: a handshake on a blocking socket, masked frames
//! out, whole frames in.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Shakes hands on `path`; the socket is a WebSocket when this returns.
///
/// # Errors
/// The server answered with something else than 101.
pub fn shake_hands(socket: &mut TcpStream, path: &str) -> io::Result<()> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(request.as_bytes())?;
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
    if is_switched && is_accepted {
        return Ok(());
    }
    Err(io::Error::other(format!("no upgrade: {}", String::from_utf8_lossy(&head))))
}

/// Sends a text message and returns the next one from the server.
///
/// # Errors
/// The connection broke, or what came is not a short text frame.
pub fn ask(socket: &mut TcpStream, text: &str) -> io::Result<String> {
    let mut frame = Vec::new();
    text_frame(&mut frame, text.as_bytes(), [1, 2, 3, 4]);
    socket.write_all(&frame)?;
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

/// A server's ping without a payload, and the answer to it.
pub const PING: [u8; 2] = [0x89, 0];
pub const PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];
