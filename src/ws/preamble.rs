//! The PROXY protocol, versions 1 and 2: what a proxy says in front of a connection that it passes on, and for whom.
//! Law: bytes in, a verdict out, the same however the bytes were cut; and the header is no longer than the caller allows.
//!
//! The protocol is HAProxy's (`doc/proxy-protocol.txt` there). A header stands before the first byte of the stream,
//! once. Of what it says only the client's address is of interest; the values behind it (TLVs) are passed over.

use std::net::{IpAddr, SocketAddr};

/// How far a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preamble {
    /// Legal so far, and not finished.
    NeedMore,
    /// Complete.
    Complete {
        /// Whose connection it is. `None`: the proxy's own (LOCAL), or it does not say (UNKNOWN, UNIX sockets).
        client: Option<SocketAddr>,
        /// Length of the header: what follows in the bytes is the client's.
        bytes: usize,
    },
}

/// Why bytes are no PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreambleError {
    /// Neither version begins like this.
    #[error("PROXY protocol header missing, which proxy.proxy_protocol requires of this peer")]
    Missing,
    /// Version 1: a line that says something else, or is longer than 107 bytes.
    #[error("PROXY protocol: malformed line")]
    Line,
    /// Version 2: a version, command, address family or protocol that does not exist, or is not TCP.
    #[error("PROXY protocol: unknown version, command or family")]
    Kind,
    /// Version 2: fewer bytes than the addresses of its family have.
    #[error("PROXY protocol: no room for the addresses")]
    Short,
    /// Version 2: more bytes than a request head may have.
    #[error("PROXY protocol: header too long")]
    Long,
}

/// Parses the header at the front of `bytes`; one of version 2 may have `bytes_max` bytes.
///
/// # Errors
/// It is none: told as soon as the bytes cannot become one.
pub fn parse_preamble(bytes: &[u8], bytes_max: usize) -> Result<Preamble, PreambleError> {
    let begins = |signature: &[u8]| bytes.iter().zip(signature).all(|(byte, expected)| byte == expected);
    if begins(LINE) {
        return parse_line(bytes);
    }
    if begins(SIGNATURE) {
        return parse_binary(bytes, bytes_max);
    }
    Err(PreambleError::Missing)
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 5000 80`, ended by CR LF.
fn parse_line(bytes: &[u8]) -> Result<Preamble, PreambleError> {
    let window = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(line_feed) = memchr::memchr(b'\n', window) else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(Preamble::NeedMore) } else { Err(PreambleError::Line) };
    };
    let line = window[..line_feed].strip_suffix(b"\r").and_then(|line| str::from_utf8(line).ok());
    let client = line.and_then(client_of_line).ok_or(PreambleError::Line)?;
    Ok(Preamble::Complete { client, bytes: line_feed + 1 })
}

/// The outer `None` is a line that is wrong.
fn client_of_line(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None); // whatever follows (§2.1)
    }
    let is_ipv4 = match family {
        "TCP4" => true,
        "TCP6" => false,
        _ => return None,
    };
    let address = |word: &str| word.parse::<IpAddr>().ok().filter(|address| address.is_ipv4() == is_ipv4);
    let port = |word: &str| word.parse::<u16>().ok().filter(|port| port.to_string() == word);
    let (client, _server) = (address(words.next()?)?, address(words.next()?)?);
    let (client_port, _server_port) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then_some(Some(SocketAddr::new(client.to_canonical(), client_port)))
}

/// Version 2: signature, version and command, family and protocol, length of the rest, addresses, other values.
fn parse_binary(bytes: &[u8], bytes_max: usize) -> Result<Preamble, PreambleError> {
    let at = |index: usize| bytes.get(index).copied();
    let is_local = match at(12) {
        None => return Ok(Preamble::NeedMore),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(PreambleError::Kind),
    };
    let address_bytes = match at(13) {
        None => return Ok(Preamble::NeedMore),
        Some(_) if is_local => 0, // whatever it says of addresses (§2.2)
        Some(TCP4) => 4,
        Some(TCP6) => 16,
        Some(UNSPECIFIED | UNIX_STREAM) => 0,
        Some(_) => return Err(PreambleError::Kind),
    };
    let [Some(high), Some(low)] = [at(14), at(15)] else { return Ok(Preamble::NeedMore) };
    let rest_bytes = usize::from(u16::from_be_bytes([high, low]));
    // Two addresses, two ports.
    if address_bytes > 0 && rest_bytes < 2 * address_bytes + 4 {
        return Err(PreambleError::Short);
    }
    if BINARY_BYTES + rest_bytes > bytes_max {
        return Err(PreambleError::Long);
    }
    let Some(rest) = bytes.get(BINARY_BYTES..BINARY_BYTES + rest_bytes) else { return Ok(Preamble::NeedMore) };
    let address = match address_bytes {
        4 => rest.first_chunk::<4>().map(|&address| IpAddr::from(address)),
        16 => rest.first_chunk::<16>().map(|&address| IpAddr::from(address)),
        _ => None,
    };
    let ports = rest.get(2 * address_bytes..).unwrap_or_default();
    let client_port = ports.first_chunk().map_or(0, |&port| u16::from_be_bytes(port));
    let client = address.map(|address| SocketAddr::new(address.to_canonical(), client_port));
    Ok(Preamble::Complete { client, bytes: BINARY_BYTES + rest_bytes })
}

const LINE: &[u8] = b"PROXY ";
/// The longest line of version 1, its end included (§2.1).
const LINE_BYTES_MAX: usize = 107;
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, kinds and length of version 2.
const BINARY_BYTES: usize = 16;
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parses what has come so far again and again, byte by byte, and with something behind it.
    #[track_caller]
    fn check(header: &[u8], expected: Result<Option<&str>, PreambleError>) {
        let expected = expected.map(|client| client.map(|client| client.parse().unwrap()));
        let by_byte = (0..=header.len()).map(|count| parse_preamble(&header[..count], 256));
        let first = by_byte.into_iter().find(|verdict| *verdict != Ok(Preamble::NeedMore)).expect("a verdict");
        assert_eq!(first, parse_preamble(&[header, b"GET / HTTP/1.1"].concat(), 256), "with what follows");
        match first {
            Ok(Preamble::Complete { client, bytes }) => assert_eq!((Ok(client), bytes), (expected, header.len())),
            Ok(Preamble::NeedMore) => unreachable!(),
            Err(error) => assert_eq!(Err(error), expected, "{}", header.escape_ascii()),
        }
    }

    #[test]
    fn version_1() {
        check(b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n", Ok(Some("192.0.2.1:5000")));
        check(b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", Ok(Some("[2001:db8::1]:1")));
        check(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Ok(Some("192.0.2.1:1")));
        check(b"PROXY UNKNOWN\r\n", Ok(None));
        check(b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", Ok(None));
        let longest = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 91], b"\r\n"].concat();
        assert_eq!(longest.len(), 107);
        check(&longest, Ok(None));
        for wrong in [
            &b"PROXY \r\n"[..],
            b"PROXY TCP4\r\n",
            b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.256 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            b"PROXY TCP4 \xff 192.0.2.2 1 2\r\n",
            &[LINE, &[b'x'; 101]].concat(),
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 92], b"\r\n"].concat(),
        ] {
            check(wrong, Err(PreambleError::Line));
        }
    }

    fn binary(kind: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        [SIGNATURE, &[kind, family], &(rest.len() as u16).to_be_bytes(), rest].concat()
    }

    #[test]
    fn version_2() {
        let ipv4 = [192, 0, 2, 1, 192, 0, 2, 2, 0x13, 0x88, 0, 80];
        let mut ipv6 = [0; 36];
        for (at, byte) in [(0, 0x20), (1, 1), (15, 9), (33, 7)] {
            ipv6[at] = byte;
        }
        check(&binary(0x21, TCP4, &ipv4), Ok(Some("192.0.2.1:5000")));
        check(&binary(0x21, TCP6, &ipv6), Ok(Some("[2001::9]:7")));
        check(&binary(0x21, TCP4, &[&ipv4[..], &[3, 0, 4, 1, 2, 3, 4]].concat()), Ok(Some("192.0.2.1:5000")));
        check(&binary(0x21, TCP4, &[&ipv4[..], &[0xff; 228]].concat()), Ok(Some("192.0.2.1:5000")));
        check(&binary(0x21, UNSPECIFIED, &[]), Ok(None));
        check(&binary(0x21, UNIX_STREAM, &[b'/'; 216]), Ok(None));
        for family in [UNSPECIFIED, TCP4, TCP6, 0x99] {
            check(&binary(0x20, family, &[]), Ok(None));
            check(&binary(0x20, family, &ipv4), Ok(None));
        }
        check(&binary(0x21, TCP4, &[&ipv4[..], &[0xff; 229]].concat()), Err(PreambleError::Long));
        check(&binary(0x21, TCP4, &ipv4[..11]), Err(PreambleError::Short));
        check(&binary(0x21, TCP6, &ipv6[..35]), Err(PreambleError::Short));
        for (kind, family) in [(0x11, TCP4), (0x31, TCP4), (0x22, TCP4), (0x21, 0x12), (0x21, 0x22), (0x21, 0x41)] {
            check(&binary(kind, family, &ipv4), Err(PreambleError::Kind));
        }
    }

    #[test]
    fn what_is_none() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\r\n\r\n\0\r\nQUIT\r", b"proxy ", b"\x16\x03\x01", b"PROXY\r\n"] {
            check(bytes, Err(PreambleError::Missing));
        }
        assert_eq!(parse_preamble(b"", 256), Ok(Preamble::NeedMore));
    }

    proptest! {
        /// Bytes that begin like a header, or not: never a panic, and the first verdict stays.
        #[test]
        fn any_bytes_any_cut(start in 0..3_usize, skip in 0..4_usize, rest in prop::collection::vec(any::<u8>(), 0..300)) {
            let start = [b"".as_slice(), b"PROXY TCP4", &[SIGNATURE, &[0x21, TCP4, 0]].concat()][start].to_vec();
            let bytes = [&start[..start.len().saturating_sub(skip)], &rest].concat();
            let whole = parse_preamble(&bytes, 200);
            let mut decided = None;
            for count in 0..=bytes.len() {
                let verdict = parse_preamble(&bytes[..count], 200);
                match decided {
                    Some(decided) => prop_assert_eq!(verdict, decided),
                    None if verdict != Ok(Preamble::NeedMore) => decided = Some(verdict),
                    None => {}
                }
            }
            prop_assert_eq!(whole, decided.unwrap_or(Ok(Preamble::NeedMore)));
        }
    }
}
