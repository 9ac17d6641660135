//! The client's half of RFC 6455, as far as a load generator needs it.
//! Law: bytes in, frames out; nothing here knows a socket. What a server may not send is an error that names it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use tungstenite::handshake::derive_accept_key;

use crate::ws::{Opcode, mask};

/// What a server sent that no server may send, or that was not agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// RFC 6455 §5.1.
    #[error("a masked frame")]
    Masked,
    /// RFC 6455 §5.2.
    #[error("a frame with reserved bits {0:#x}")]
    Reserved(u8),
    /// RFC 6455 §5.4.
    #[error("a fragment without a beginning, or a message within a message")]
    Fragments,
    /// No memory is kept for it.
    #[error("a message of more than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    /// RFC 7230 §3.
    #[error("no HTTP response: {0}")]
    NoResponse(String),
    /// RFC 6455 §4.1.
    #[error("a response without the right Sec-WebSocket-Accept")]
    Accept,
    /// RFC 8446.
    #[error("TLS: {0}")]
    Tls(String),
}

/// A frame in bytes of a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'b> {
    pub(super) opcode: u8,
    pub(super) fin: bool,
    pub(super) payload: &'b [u8],
    /// Bytes of it, header included.
    pub(super) len: usize,
}

/// The first frame in `bytes`, if all of it is there.
pub(super) fn split(bytes: &[u8]) -> Result<Option<Frame<'_>>, WireError> {
    let &[first, second, ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(WireError::Reserved(first & 0x70));
    }
    let header = match second {
        126 => 4,
        127 => 10,
        0x80.. => return Err(WireError::Masked),
        _ => 2,
    };
    let Some(length) = bytes.get(2..header) else { return Ok(None) };
    let length = match header {
        2 => u64::from(second),
        _ => length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
    };
    let length = usize::try_from(length).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
    let len = header + length.ok_or(WireError::TooLong)?;
    let payload = bytes.get(header..len);
    Ok(payload.map(|payload| Frame { opcode: first & 0xf, fin: first & 0x80 != 0, payload, len }))
}

/// Appends a masked frame.
pub(super) fn frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], key: [u8; 4]) {
    out.push(0x80 | opcode as u8);
    match payload.len() {
        len @ ..=125 => out.push(0x80 | len as u8),
        len @ ..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    mask::apply(&mut out[start..], key);
}

/// Appends an upgrade request.
pub(super) fn request(out: &mut Vec<u8>, host: &str, path: &str, nonce: [u8; 16], token: Option<&str>) {
    let key = STANDARD.encode(nonce);
    for part in ["GET ", path, " HTTP/1.1\r\nHost: ", host, "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for part in ["Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ", &key, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if let Some(token) = token {
        for part in ["Authorization: Bearer ", token, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// What a server answered to an upgrade request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The connection is a WebSocket; the response was so many bytes long.
    Switched(usize),
    /// It is not, and when to come back, if that was said.
    Refused { status: u16, retry_after_s: Option<u64> },
}

/// Reads the response to a request with this nonce, if all of it is there.
pub(super) fn response(bytes: &[u8], nonce: [u8; 16]) -> Result<Option<Answer>, WireError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => {
            return Err(WireError::NoResponse(format!("{HEAD_BYTES_MAX} bytes and no end")));
        }
        Err(error) => return Err(WireError::NoResponse(error.to_string())),
    };
    let header = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let status = response.code.unwrap_or_default();
    if status != 101 {
        let retry_after_s = header("retry-after").and_then(|seconds| seconds.trim().parse().ok());
        return Ok(Some(Answer::Refused { status, retry_after_s }));
    }
    let accept = derive_accept_key(STANDARD.encode(nonce).as_bytes());
    if header("sec-websocket-accept") != Some(&accept) {
        return Err(WireError::Accept);
    }
    Ok(Some(Answer::Switched(len)))
}

/// The largest message that is put together.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::{self, Decoder, Event, Extensions, Input, Limits};

    /// What this side writes, the server's decoder reads; what the server's encoder writes, this side reads.
    #[test]
    fn speaks_with_the_servers_half() {
        for len in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
            let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut out = Vec::new();
            frame(&mut out, Opcode::Binary, &payload, [1, 2, 3, 4]);
            let limits = Limits { message_bytes_max: 1 << 20, extensions: Extensions::NONE };
            let mut decoder = Decoder::default();
            let mut input = Input::new(&mut out);
            let Ok(Some(Event::Binary(bytes))) = decoder.next(&mut input, &limits) else { panic!("{len}") };
            assert!(bytes == payload, "{len}");

            let mut back = Vec::new();
            ws::frame(&mut back, Opcode::Binary, &payload);
            for cut in [0, 1, 3, 9, back.len() - 1] {
                assert_eq!(split(&back[..cut.min(back.len() - 1)]), Ok(None), "{len} cut at {cut}");
            }
            let whole = Frame { opcode: 2, fin: true, payload: &payload, len: back.len() };
            assert_eq!(split(&back), Ok(Some(whole)));
        }
    }

    #[test]
    fn what_no_server_may_send_is_named() {
        assert_eq!(split(b"\x81\x80"), Err(WireError::Masked));
        assert_eq!(split(b"\xc1\x00"), Err(WireError::Reserved(0x40)));
        assert_eq!(split(b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"), Err(WireError::TooLong));
    }

    #[test]
    fn reads_what_a_server_answers() {
        let nonce = *b"the sample nonce";
        let mut asked = Vec::new();
        request(&mut asked, "localhost", "/ws", nonce, Some("a.b.c"));
        let limits = ws::HandshakeLimits { header_bytes_max: 16 << 10 };
        let progress = ws::parse_request(&asked, 0, &limits).unwrap();
        let ws::Progress::Complete { request: upgrade, .. } = progress else { panic!("{progress:?}") };
        assert_eq!(
            (upgrade.header("authorization"), upgrade.header("host")),
            (Some("Bearer a.b.c"), Some("localhost"))
        );
        let mut answer = Vec::new();
        ws::accept(&mut answer, &upgrade, None, None);
        let len = answer.len();
        answer.extend_from_slice(b"\x81\x00");
        assert_eq!(response(&answer[..len - 1], nonce), Ok(None));
        assert_eq!(response(&answer, nonce), Ok(Some(Answer::Switched(len))));
        assert_eq!(response(&answer, *b"of someone else!"), Err(WireError::Accept));

        let mut refusal = Vec::new();
        ws::refuse(&mut refusal, 503, "full", &[("Retry-After", "7")]);
        assert_eq!(response(&refusal, nonce), Ok(Some(Answer::Refused { status: 503, retry_after_s: Some(7) })));
        assert!(matches!(response(b"SSH-2.0\r\n", nonce), Err(WireError::NoResponse(_))));
        assert!(matches!(
            response(&[b"HTTP/1.1 200 OK\r\na: ", &[b'a'; 20_000][..]].concat(), nonce),
            Err(WireError::NoResponse(_))
        ));
    }
}
