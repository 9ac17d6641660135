//! The client's half of the wire: upgrade requests and masked frames written, answers and frames read.
//! Law: shares no code with the server, and takes nothing that RFC 6455 does not allow a server to send.

use tidewheel::io::sim::Dice;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// The key of RFC 6455 §1.3, and what a server has to make of it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An upgrade request for `path`.
pub fn request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// Appends a masked frame whose first byte is `first`.
pub fn frame(out: &mut Vec<u8>, first: u8, payload: &[u8], dice: &mut Dice) {
    header(out, first, payload.len() as u64);
    let mask = if dice.chance(0.1) { [0; 4] } else { (dice.bits() as u32).to_ne_bytes() };
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Appends the header of a masked frame, up to its mask.
pub fn header(out: &mut Vec<u8>, first: u8, length: u64) {
    out.push(first);
    match length {
        0..126 => out.push(0x80 | length as u8),
        126..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend(length.to_be_bytes());
        }
    }
}

/// Appends a message, whole or in fragments with pings between them; returns the payloads of the pings.
pub fn message(out: &mut Vec<u8>, opcode: u8, payload: &[u8], dice: &mut Dice) -> Vec<Vec<u8>> {
    let mut pings = Vec::new();
    let mut rest = payload;
    let mut first = opcode;
    while dice.chance(0.25) {
        let (part, after) = rest.split_at(dice.below(rest.len() + 1));
        frame(out, first, part, dice);
        (rest, first) = (after, 0);
        if dice.chance(0.3) {
            let ping: Vec<u8> = (0..dice.below(20)).map(|_| dice.bits() as u8).collect();
            frame(out, 0x80 | PING, &ping, dice);
            pings.push(ping);
        }
    }
    frame(out, 0x80 | first, rest, dice);
    pings
}

/// A frame of the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// What has arrived and was not looked at.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    at: usize,
}

impl Reader {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.at));
        self.bytes.extend_from_slice(bytes);
    }

    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// The status of a whole HTTP answer, whose body is read too.
    pub fn response(&mut self) -> Option<u16> {
        let rest = self.rest();
        let head = rest.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let text = std::str::from_utf8(&rest[..head]).expect("an answer in ASCII");
        let status = text.strip_prefix("HTTP/1.1 ").and_then(|text| text[..3].parse().ok()).expect("a status line");
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let mut body = 0;
        if status == 101 {
            assert_eq!(value("Sec-WebSocket-Accept"), Some(ACCEPT), "{text}");
        } else {
            body = value("Content-Length").expect("the length of the body").parse().expect("a length");
            assert_eq!(value("Connection"), Some(if status == 426 { "Upgrade" } else { "close" }), "{text}");
            assert_eq!(value("Retry-After").is_some(), matches!(status, 429 | 503), "{text}");
        }
        if rest.len() < head + body {
            return None;
        }
        self.at += head + body;
        Some(status)
    }

    /// The next whole frame.
    pub fn frame(&mut self) -> Option<Frame> {
        let &[first, second, ref rest @ ..] = self.rest() else { return None };
        assert_eq!(first & 0xf0, 0x80, "a frame of the server is final and uses no extension");
        let opcode = first & 0xf;
        assert!(matches!(opcode, TEXT | BINARY | CLOSE | PING | PONG), "opcode {opcode}");
        assert!(second & 0x80 == 0, "a frame of the server is not masked");
        let (length, header) = match second {
            126 => {
                let length = u16::from_be_bytes(*rest.first_chunk()?);
                assert!(length >= 126, "length {length} not in its shortest form");
                (usize::from(length), 4)
            }
            127 => {
                let length = u64::from_be_bytes(*rest.first_chunk()?);
                assert!(length > 0xffff, "length {length} not in its shortest form");
                (length as usize, 10)
            }
            length => (usize::from(length), 2),
        };
        assert!(opcode < CLOSE || length <= 125, "a control frame of {length} bytes");
        let payload = self.rest().get(header..header + length)?.to_vec();
        self.at += header + length;
        assert!(opcode != TEXT || std::str::from_utf8(&payload).is_ok(), "a text that is not UTF-8");
        Some(Frame { opcode, payload })
    }
}
