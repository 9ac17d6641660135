//! The upgrade request (RFC 6455 §4.2): parse, judge, accept or refuse.
//! Law: HTTP/1.1 GET with exactly one of each header that matters and no body, or an answer that names the culprit; the
//! verdict does not depend on how the bytes were cut, and each byte is searched once however they were.

use std::fmt;
use std::io::Write;

use http::StatusCode;
use tungstenite::handshake::derive_accept_key;

use super::deflate::Agreement;

/// What a client may ask for before it is a WebSocket.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeLimits {
    /// Largest request head in bytes, request line and final empty line included. A longer one is answered 414 if its
    /// request line alone does not fit, else 431.
    pub header_bytes_max: usize,
}

/// How far a request is.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Legal so far, and not finished.
    NeedMore,
    /// A complete and legal upgrade request.
    Complete {
        /// What the client asks for.
        request: Upgrade<'a>,
        /// Length of the request head: what follows in the bytes are frames.
        head_bytes: usize,
    },
}

/// Parses the request at the front of `bytes`, of which the first `already_seen` were there at the previous call: pass
/// 0 first, then the length of `bytes` at the call before, so that a head that trickles in is not searched over and
/// over.
///
/// # Errors
/// The request is refused: answer with [`HandshakeError::refuse`] and close. Told as soon as the bytes cannot become a
/// legal request line, or a head within the limits; faults of the headers are told when the head is complete.
pub fn parse_request<'a>(
    bytes: &'a [u8],
    already_seen: usize,
    limits: &HandshakeLimits,
) -> Result<Progress<'a>, HandshakeError> {
    // What is not HTTP shows in its first bytes (TLS on the plain port, say).
    if let Some((&byte, _)) = bytes.iter().zip(METHOD).find(|(byte, expected)| byte != expected) {
        // Worth a word of its own: it is the first mistake that is made with a proxy.
        if bytes.starts_with(PREAMBLE) {
            return Err(HandshakeError::UnwantedPreamble);
        }
        if PREAMBLE.starts_with(bytes) {
            return Ok(Progress::NeedMore);
        }
        return Err(if byte.is_ascii_alphanumeric() { HandshakeError::NotGet } else { HandshakeError::NotHttp });
    }

    let window = &bytes[..bytes.len().min(limits.header_bytes_max)];
    let unseen = window.get(already_seen..).unwrap_or_default();
    for line_feed in memchr::memchr_iter(b'\n', unseen).map(|at| already_seen + at) {
        let Some(line) = window[..line_feed].strip_suffix(b"\r") else { return Err(HandshakeError::BareLineFeed) };
        match memchr::memchr(b'\n', line) {
            None => {
                request_target(line)?;
            }
            Some(first) if line.ends_with(b"\r\n") => {
                let (request_line, headers) = (&line[..first - 1], &window[first + 1..=line_feed]);
                let request = Upgrade::new(request_target(request_line)?, headers)?;
                return Ok(Progress::Complete { request, head_bytes: line_feed + 1 });
            }
            Some(_) => {}
        }
    }
    if bytes.len() > limits.header_bytes_max {
        let line_fits = memchr::memchr(b'\n', window).is_some();
        return Err(if line_fits { HandshakeError::HeadTooLarge } else { HandshakeError::RequestLineTooLong });
    }
    Ok(Progress::NeedMore)
}

/// A legal upgrade request; everything is borrowed from its bytes.
#[derive(Clone, Copy)]
pub struct Upgrade<'a> {
    /// Path as sent, percent-encoding included; begins with `/`.
    pub path: &'a str,
    /// What follows the `?`, if there is one.
    pub query: Option<&'a str>,
    /// `Host`, or the authority of a target in absolute form; not empty.
    pub host: &'a str,
    /// `Origin`; browsers always send it.
    pub origin: Option<&'a str>,
    /// `Authorization`, scheme included.
    pub authorization: Option<&'a str>,
    /// `Sec-WebSocket-Key`: 16 bytes in base64.
    pub key: &'a str,
    /// The header lines, each with its line end, and the empty line; all legal.
    lines: &'a [u8],
}

impl<'a> Upgrade<'a> {
    fn new(target: Target<'a>, lines: &'a [u8]) -> Result<Self, HandshakeError> {
        let mut parsed = [httparse::EMPTY_HEADER; HEADERS_MAX];
        match httparse::parse_headers(lines, &mut parsed) {
            Ok(_) => {}
            Err(httparse::Error::TooManyHeaders) => return Err(HandshakeError::TooManyHeaders),
            Err(error) => return Err(HandshakeError::BadHeader(error)),
        }

        let (mut hosts, mut origins, mut authorizations) =
            (Single::of("Host"), Single::of("Origin"), Single::of("Authorization"));
        let (mut keys, mut versions) = (Single::of("Sec-WebSocket-Key"), Single::of("Sec-WebSocket-Version"));
        let (mut upgrades, mut connects) = (false, false);
        for httparse::Header { name, value } in parsed.iter().take_while(|header| !header.name.is_empty()) {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            for single in [&mut hosts, &mut origins, &mut authorizations, &mut keys, &mut versions] {
                if is(single.name) {
                    single.put(value)?;
                }
            }
            if is("Upgrade") {
                upgrades |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"websocket"));
            } else if is("Connection") {
                connects |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
            } else if is("Transfer-Encoding") || (is("Content-Length") && *value != b"0") {
                return Err(HandshakeError::HasBody);
            }
        }

        let host = hosts.value.ok_or(HandshakeError::Missing("Host"))?;
        if host.is_empty() || host.contains([' ', '\t', ',', '/', '@', '?', '#', '\\']) {
            return Err(HandshakeError::Invalid("Host", "not a host"));
        }
        if !upgrades {
            return Err(HandshakeError::Missing("Upgrade: websocket"));
        }
        if !connects {
            return Err(HandshakeError::Missing("Connection: Upgrade"));
        }
        match versions.value {
            Some("13") => {}
            Some(_) => return Err(HandshakeError::WrongVersion),
            None => return Err(HandshakeError::Missing("Sec-WebSocket-Version")),
        }
        let key = keys.value.ok_or(HandshakeError::Missing("Sec-WebSocket-Key"))?;
        if !is_16_bytes_in_base64(key.as_bytes()) {
            return Err(HandshakeError::Invalid("Sec-WebSocket-Key", "not 16 bytes in base64"));
        }
        let (path, query) = match target.path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target.path_and_query, None),
        };
        Ok(Self {
            path: if path.is_empty() { "/" } else { path },
            query,
            host: target.authority.unwrap_or(host),
            origin: origins.value,
            authorization: authorizations.value,
            key,
            lines,
        })
    }

    /// The values of all headers called `name`, in order; one that is not UTF-8 is passed over.
    pub fn headers<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.raw_headers(name).filter_map(|value| str::from_utf8(value).ok())
    }

    /// The value of the first header called `name`.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers(name).next()
    }

    /// The client's subprotocols, the one it likes best first (§4.1), over all headers.
    pub fn protocols(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.raw_headers("Sec-WebSocket-Protocol").flat_map(tokens).filter_map(|token| str::from_utf8(token).ok())
    }

    /// The client's extension offers, one list a header, to be parsed by who knows the extension (§9.1).
    pub fn extensions(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.headers("Sec-WebSocket-Extensions")
    }

    /// Names and values of the cookies, values as sent; one that is not UTF-8 hides no other.
    pub fn cookies(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.raw_headers("Cookie")
            .flat_map(|value| value.split(|&byte| byte == b';'))
            .filter_map(|pair| str::from_utf8(pair).ok()?.trim_ascii().split_once('='))
    }

    /// The value of the first cookie called `name`.
    pub fn cookie(&self, name: &str) -> Option<&'a str> {
        self.cookies().find(|&(known, _)| known == name).map(|(_, value)| value)
    }

    /// The values of all headers called `name`, in order, as bytes without spaces around them.
    ///
    /// Walks the header lines again, which costs less than keeping them: most names are asked for once or never.
    pub fn raw_headers<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let mut rest = self.lines;
        std::iter::from_fn(move || {
            let (line, after) = rest.split_at_checked(memchr::memchr(b'\n', rest)? + 1)?;
            rest = after;
            Some(line)
        })
        .filter_map(move |line| {
            let (known, value) = line.split_at_checked(memchr::memchr(b':', line)?)?;
            known.eq_ignore_ascii_case(name.as_bytes()).then(|| value[1..].trim_ascii())
        })
    }
}

/// Names what may be logged: keys, cookies and tokens are left out.
impl fmt::Debug for Upgrade<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade")
            .field("path", &self.path)
            .field("host", &self.host)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// Appends the response that completes the handshake (§4.2.2), with the subprotocol that was chosen, if any, and what was
/// agreed about compression.
pub fn accept(out: &mut Vec<u8>, request: &Upgrade<'_>, subprotocol: Option<&str>, deflate: Option<Agreement>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(derive_accept_key(request.key.as_bytes()).as_bytes());
    if let Some(subprotocol) = subprotocol {
        debug_assert!(request.protocols().any(|offered| offered == subprotocol));
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_bytes());
    }
    if let Some(deflate) = deflate {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        deflate.write(out);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends an HTTP answer instead of an upgrade; the connection closes after it. `reason` is the body, as text for
/// people; names and values of `extra_headers` are the server's own.
pub fn refuse(out: &mut Vec<u8>, status: u16, reason: &str, extra_headers: &[(&str, &str)]) {
    let phrase = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let mut write = |line: fmt::Arguments<'_>| out.write_fmt(line).expect("writing to a Vec cannot fail");
    write(format_args!("HTTP/1.1 {status} {phrase}\r\n"));
    for (name, value) in extra_headers {
        debug_assert!(!name.contains(['\r', '\n']) && !value.contains(['\r', '\n']));
        write(format_args!("{name}: {value}\r\n"));
    }
    write(format_args!("Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n", reason.len() + 1));
    write(format_args!("Connection: close\r\n\r\n{reason}\n"));
}

/// Why a request is not upgraded. Its text is for the client's developer and names the header at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The first bytes are not those of an HTTP request.
    #[error("not an HTTP request")]
    NotHttp,
    /// The PROXY protocol from somebody who is not to speak it.
    #[error("PROXY protocol header from a peer for which proxy.trusted and proxy.proxy_protocol do not ask for one")]
    UnwantedPreamble,
    /// Another method than GET.
    #[error("method is not GET")]
    NotGet,
    /// A request line of another shape than `GET target HTTP/1.1`.
    #[error("request line: {0}")]
    RequestLine(&'static str),
    /// The request line alone is larger than the limit.
    #[error("request line too long")]
    RequestLineTooLong,
    /// The head is larger than the limit.
    #[error("request headers too large")]
    HeadTooLarge,
    /// More headers than an upgrade request can need.
    #[error("more than {HEADERS_MAX} request headers")]
    TooManyHeaders,
    /// A line that ends in LF alone, which parties on the way may read differently.
    #[error("line feed without carriage return")]
    BareLineFeed,
    /// A header line that is not `name: value`.
    #[error("malformed header: {0}")]
    BadHeader(httparse::Error),
    /// A header that an upgrade needs.
    #[error("{0} header missing: this is a WebSocket endpoint")]
    Missing(&'static str),
    /// A header that may come once.
    #[error("{0} header sent more than once")]
    Repeated(&'static str),
    /// A header whose value cannot be right.
    #[error("{0} header: {1}")]
    Invalid(&'static str, &'static str),
    /// A WebSocket version other than 13.
    #[error("Sec-WebSocket-Version header: only 13 is spoken here")]
    WrongVersion,
    /// Content-Length other than 0, or Transfer-Encoding.
    #[error("request with a body (Content-Length or Transfer-Encoding header)")]
    HasBody,
}

impl HandshakeError {
    /// The HTTP status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotGet => 405,
            Self::RequestLineTooLong => 414,
            Self::WrongVersion => 426,
            Self::HeadTooLarge | Self::TooManyHeaders => 431,
            Self::NotHttp
            | Self::UnwantedPreamble
            | Self::RequestLine(_)
            | Self::BareLineFeed
            | Self::BadHeader(_)
            | Self::Missing(_)
            | Self::Repeated(_)
            | Self::Invalid(..)
            | Self::HasBody => 400,
        }
    }

    /// Headers that the answer owes the client.
    pub fn extra_headers(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::NotGet => &[("Allow", "GET")],
            Self::WrongVersion => {
                &[("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
            }
            _ => &[],
        }
    }

    /// Appends the whole answer.
    pub fn refuse(&self, out: &mut Vec<u8>) {
        refuse(out, self.status(), &self.to_string(), self.extra_headers());
    }
}

/// What a request is for.
struct Target<'a> {
    /// From the absolute form; it then overrides `Host` (RFC 9112 §3.2.2).
    authority: Option<&'a str>,
    path_and_query: &'a str,
}

/// The target of the request line `GET target HTTP/1.1`.
fn request_target(line: &[u8]) -> Result<Target<'_>, HandshakeError> {
    let bad = |why| Err(HandshakeError::RequestLine(why));
    let Some(line) = line.strip_prefix(METHOD) else { return bad("not GET") };
    let Some(space) = memchr::memchr(b' ', line) else { return bad("no HTTP version") };
    let (target, version) = line.split_at(space);
    if version != b" HTTP/1.1" {
        return bad("only HTTP/1.1 is spoken here");
    }
    let target = match str::from_utf8(target) {
        Ok(target) if target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') => target,
        _ => return bad("target is not a URI without fragment"),
    };
    if target.starts_with('/') {
        return Ok(Target { authority: None, path_and_query: target });
    }
    let absolute = SCHEMES.iter().find_map(|scheme| {
        let start = target.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme))?;
        Some(&target[start.len()..])
    });
    let Some(absolute) = absolute else { return bad("target is neither a path nor a URI") };
    let (authority, path_and_query) = absolute.split_at(absolute.find(['/', '?']).unwrap_or(absolute.len()));
    if authority.is_empty() || authority.contains('@') {
        return bad("target has no host");
    }
    Ok(Target { authority: Some(authority), path_and_query })
}

/// A header that may come once.
struct Single<'a> {
    name: &'static str,
    value: Option<&'a str>,
}

impl<'a> Single<'a> {
    fn of(name: &'static str) -> Self {
        Self { name, value: None }
    }

    /// Takes the header's value. One that is not ASCII is refused, not ignored: a check that looks at it must not
    /// mistake it for absent.
    fn put(&mut self, value: &'a [u8]) -> Result<(), HandshakeError> {
        let Some(text) = str::from_utf8(value).ok().filter(|text| text.is_ascii()) else {
            return Err(HandshakeError::Invalid(self.name, "not ASCII"));
        };
        match self.value.replace(text) {
            None => Ok(()),
            Some(_) => Err(HandshakeError::Repeated(self.name)),
        }
    }
}

/// The elements of a comma-separated list, empty ones left out (RFC 9110 §5.6.1).
fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// 22 characters and two of padding, where the last character has 2 bits to say and 4 that must be clear.
fn is_16_bytes_in_base64(key: &[u8]) -> bool {
    let Some((text, b"==")) = key.split_last_chunk() else { return false };
    text.len() == 22
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
        && matches!(text.last(), Some(b'A' | b'Q' | b'g' | b'w'))
}

const METHOD: &[u8] = b"GET ";
/// How version 1 of the PROXY protocol begins.
const PREAMBLE: &[u8] = b"PROXY ";
/// Schemes of a target in absolute form (RFC 6455 §4.1 item 2, and what they stand for).
const SCHEMES: [&str; 4] = ["http://", "https://", "ws://", "wss://"];
/// Most headers of a request. Browsers behind two proxies send about 40.
const HEADERS_MAX: usize = 96;

#[cfg(test)]
mod tests;
