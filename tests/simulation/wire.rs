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

/// The same with an offer of permessage-deflate.
pub fn request_with_offer(path: &str, window_bits: u32, takeover: bool) -> String {
    let takeover = if takeover { "" } else { "; client_no_context_takeover" };
    let offer = format!("permessage-deflate; server_max_window_bits={window_bits}{takeover}");
    request(path).replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n"))
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
    /// The window of the server's compressed messages, if there may be such.
    window_bits: Option<u8>,
    /// Whether the client's may refer to each other.
    pub takeover: bool,
    /// Frames so far.
    pub frames: usize,
    /// Compressed messages so far.
    pub inflated: usize,
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
        let (mut body, mut deflate) = (0, None);
        if status == 101 {
            assert_eq!(value("Sec-WebSocket-Accept"), Some(ACCEPT), "{text}");
            if let Some(agreed) = value("Sec-WebSocket-Extensions") {
                assert!(agreed.starts_with("permessage-deflate; server_no_context_takeover"), "{agreed}");
                let bits = agreed.split_once("server_max_window_bits=").expect("as it was offered").1;
                deflate = Some((bits.parse().expect("a number"), !agreed.contains("client_no_context_takeover")));
            }
        } else {
            body = value("Content-Length").expect("the length of the body").parse().expect("a length");
            assert_eq!(value("Connection"), Some(if status == 426 { "Upgrade" } else { "close" }), "{text}");
            assert_eq!(value("Retry-After").is_some(), matches!(status, 429 | 503), "{text}");
        }
        if rest.len() < head + body {
            return None;
        }
        self.at += head + body;
        if let Some((window_bits, takeover)) = deflate {
            (self.window_bits, self.takeover) = (Some(window_bits), takeover);
        }
        Some(status)
    }

    /// Whether compression was agreed on.
    pub fn deflates(&self) -> bool {
        self.window_bits.is_some()
    }

    /// The next whole frame, inflated if it is compressed.
    pub fn frame(&mut self) -> Option<Frame> {
        let &[first, second, ref rest @ ..] = self.rest() else { return None };
        let opcode = first & 0xf;
        let is_deflated = first & 0xf0 == 0xc0 && self.window_bits.is_some() && opcode < CLOSE;
        assert!(first & 0xf0 == 0x80 || is_deflated, "a frame of the server is final and uses what was agreed");
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
        let mut payload = self.rest().get(header..header + length)?.to_vec();
        self.at += header + length;
        self.frames += 1;
        if is_deflated {
            payload = inflate(payload, self.window_bits.expect("agreed"));
            self.inflated += 1;
        }
        assert!(opcode != TEXT || std::str::from_utf8(&payload).is_ok(), "a text that is not UTF-8");
        Some(Frame { opcode, payload })
    }
}

/// Inflates a message of the server, which refers to none before it and, with so many bits, to nothing beyond the window.
fn inflate(mut payload: Vec<u8>, window_bits: u8) -> Vec<u8> {
    payload.extend_from_slice(&[0, 0, 0xff, 0xff]);
    let mut stream = flate2::Decompress::new_with_window_bits(false, window_bits);
    let (mut message, mut rest) = (Vec::new(), &payload[..]);
    while !rest.is_empty() {
        // Pieces shorter than any window, so that nothing but the window is there to look back at.
        let mut piece = [0; 200];
        let before = (stream.total_in(), stream.total_out());
        stream.decompress(rest, &mut piece, flate2::FlushDecompress::Sync).expect("DEFLATE data of its window");
        message.extend_from_slice(&piece[..(stream.total_out() - before.1) as usize]);
        rest = &rest[(stream.total_in() - before.0) as usize..];
    }
    message
}

/// Compresses the messages of a client.
#[derive(Debug)]
pub struct Deflater(flate2::Compress);

impl Default for Deflater {
    fn default() -> Self {
        Self(flate2::Compress::new(flate2::Compression::fast(), false))
    }
}

impl Deflater {
    /// The compressed form of a message, which may refer to those before if `takeover`.
    pub fn deflate(&mut self, payload: &[u8], takeover: bool) -> Vec<u8> {
        if !takeover {
            self.0.reset();
        }
        if payload.is_empty() {
            return vec![0]; // as RFC 7692 §7.2.3.6 has it: there is nothing to flush
        }
        let mut out = Vec::with_capacity(payload.len() + 100);
        self.0.compress_vec(payload, &mut out, flate2::FlushCompress::Sync).expect("no error");
        assert!(out.ends_with(&[0, 0, 0xff, 0xff]), "room for all of it");
        out.truncate(out.len() - 4);
        out
    }
}
