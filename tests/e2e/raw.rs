//! A client that writes every byte itself: the upgrade, the masks, and whatever no library would send.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::SockRef;

use super::server::tcp;

pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;
/// Set in the first byte of a frame that ends its message.
pub const FIN: u8 = 0x80;

/// One frame of the server.
#[derive(Debug, PartialEq)]
pub struct Frame {
    /// FIN, reserved bits and opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

/// A client that does as it is told.
pub struct Raw {
    pub stream: TcpStream,
    received: Vec<u8>,
    /// Bytes of `received` that have been looked at.
    taken: usize,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(tcp(address))
    }

    /// Goes on with a connection that was made elsewhere.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        Self { stream, received: Vec::new(), taken: 0 }
    }

    /// Makes the upgrade by hand.
    #[track_caller]
    pub fn upgrade(&mut self, path: &str) {
        self.upgrade_with(path, "");
    }

    /// Upgrades with a request that has further header lines, each with its line end.
    #[track_caller]
    pub fn upgrade_with(&mut self, path: &str, lines: &str) {
        self.write(request_with(path, lines).as_bytes());
        let answer = self.head();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        // RFC 6455 §1.3 has this pair.
        assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
    }

    /// Writes bytes. That the server has closed already is no failure here: what it said shows when it is read.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                panic!("{error}");
            }
            _ => {}
        }
    }

    /// Writes one masked frame that is a whole message.
    #[track_caller]
    pub fn frame(&mut self, opcode: u8, payload: &[u8]) {
        self.write(&masked(FIN | opcode, payload));
    }

    /// Writes one text message.
    #[track_caller]
    pub fn text(&mut self, text: &str) {
        self.frame(TEXT, text.as_bytes());
    }

    /// Reads an HTTP head, without the empty line.
    #[track_caller]
    pub fn head(&mut self) -> String {
        loop {
            let unread = &self.received[self.taken..];
            if let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(unread[..end + 4].to_vec()).unwrap();
                self.taken += end + 4;
                return head;
            }
            let so_far = String::from_utf8_lossy(unread).into_owned();
            assert!(self.more(), "the stream ended in {so_far:?}");
        }
    }

    /// Reads an HTTP answer and the end of the stream: status, head and body.
    #[track_caller]
    pub fn refusal(&mut self) -> (u16, String, String) {
        let head = self.head();
        self.rest();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        (status, head, String::from_utf8(self.received[self.taken..].to_vec()).unwrap())
    }

    /// What was read and not looked at, as text.
    pub fn body(&self) -> String {
        String::from_utf8_lossy(&self.received[self.taken..]).into_owned()
    }

    /// Reads one frame; `None` at the end of the stream.
    #[track_caller]
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, bytes)) = split(&self.received[self.taken..]) {
                self.taken += bytes;
                return Some(frame);
            }
            if !self.more() {
                let rest = &self.received[self.taken..];
                assert!(rest.is_empty(), "the stream ended in a frame: {rest:?}");
                return None;
            }
        }
    }

    /// Reads frames until one of this opcode comes.
    #[track_caller]
    pub fn until(&mut self, opcode: u8) -> Frame {
        loop {
            let frame = self.next().expect("a frame instead of the end of the stream");
            if frame.first & 0xf == opcode {
                return frame;
            }
        }
    }

    /// Reads one text message and its JSON.
    #[track_caller]
    pub fn json(&mut self) -> Value {
        serde_json::from_slice(&self.until(TEXT).payload).unwrap()
    }

    /// Reads up to the close frame and to the end of the stream behind it; returns the code.
    #[track_caller]
    pub fn closed(&mut self) -> u16 {
        let close = self.until(CLOSE);
        assert!(close.payload.len() >= 2, "a close frame without a code");
        assert_eq!(self.next(), None, "something after the close frame");
        u16::from_be_bytes([close.payload[0], close.payload[1]])
    }

    /// Reads to the end of the stream.
    #[track_caller]
    pub fn rest(&mut self) {
        while self.more() {}
    }

    /// Ends this side of the stream.
    pub fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Resets the connection.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Reads what there is; `false` at the end of the stream, also one that broke.
    #[track_caller]
    fn more(&mut self) -> bool {
        self.received.drain(..std::mem::take(&mut self.taken));
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.received.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true, // the process was frozen: nothing has come
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error} behind {} bytes", self.received.len()),
        }
    }
}

/// An upgrade request with the key of RFC 6455 §1.3.
pub fn request(path: &str) -> String {
    request_with(path, "")
}

/// The same with more header lines, each with its line end.
pub fn request_with(path: &str, lines: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{lines}\r\n"
    )
}

/// A client's frame: `first` is FIN, reserved bits and opcode.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        bytes @ ..126 => frame.push(0x80 | bytes as u8),
        bytes @ ..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((bytes as u16).to_be_bytes());
        }
        bytes => {
            frame.push(0x80 | 127);
            frame.extend((bytes as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A text message in one frame.
pub fn text(text: &str) -> Vec<u8> {
    masked(FIN | TEXT, text.as_bytes())
}

/// A close frame.
pub fn close(code: u16) -> Vec<u8> {
    masked(FIN | CLOSE, &code.to_be_bytes())
}

/// The first frame in the bytes of a server, and how many of them it takes.
pub fn split(bytes: &[u8]) -> Option<(Frame, usize)> {
    let [first, second, ..] = *bytes else { return None };
    assert_eq!(second & 0x80, 0, "a server does not mask");
    let (length, header) = match second {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize, 10),
        length => (usize::from(length), 2),
    };
    let payload = bytes.get(header..header + length)?.to_vec();
    Some((Frame { first, payload }, header + length))
}

pub const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
