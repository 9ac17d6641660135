//! Whose connection it is that a proxy passes on, by the headers `Forwarded` (RFC 7239) and `X-Forwarded-For`.
//!
//! Law: only what a trusted peer has written is believed. Every proxy appends whom it got the request from, so the hops
//! are read from the right: each trusted one vouches for the one before it, and the first that is not trusted is the
//! client, whatever stands left of it. A hop that is hidden, unknown or malformed ends the walk at the last that was good.

use std::net::{IpAddr, SocketAddr};

use crate::config::network::Network;
use crate::ws::Upgrade;

/// The client's address; its port is 0 where the proxy does not tell one.
///
/// Proxies that write one of the two headers pass the other on as it came, so where both are there and do not lead to
/// the same client, neither is believed: the client is the peer.
pub fn client_of(peer: SocketAddr, request: &Upgrade<'_>, trusted: &[Network]) -> SocketAddr {
    if !is_trusted(peer, trusted) {
        return peer;
    }
    let walk = |name: &str, address_of: fn(&[u8]) -> Option<SocketAddr>| {
        let lines: Vec<&[u8]> = request.raw_headers(name).collect();
        let hops = lines.iter().rev().flat_map(|line| Backwards { rest: Some(line), separator: b',' });
        let mut client = peer;
        for hop in hops.filter(|hop| hop.is_none_or(|hop| !hop.is_empty())) {
            let Some(address) = hop.and_then(address_of) else { break };
            client = address;
            if !is_trusted(client, trusted) {
                break;
            }
        }
        (!lines.is_empty()).then_some(client)
    };
    match (walk("Forwarded", forwarded_for), walk("X-Forwarded-For", node)) {
        (None, None) => peer,
        (Some(client), None) | (None, Some(client)) => client,
        (Some(client), Some(other)) if client.ip() == other.ip() => client,
        (Some(_), Some(_)) => peer,
    }
}

/// Whether what this peer says of others is believed.
pub fn is_trusted(peer: SocketAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(peer.ip()))
}

/// The parts of a list from the last to the first, without spaces around them. A separator in quotes is none; `None`, as
/// the last, for a part whose quotes are not as they must be (RFC 9110 §5.6.4).
///
/// From the right, because what is left of the last trusted hop may be anything, quotes that never end included. So a quote
/// counts only where one can be: a trusted hop with a stray one would else become one part with what stands left of it.
struct Backwards<'a> {
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Iterator for Backwards<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Option<&'a [u8]>> {
        let rest = self.rest.take()?;
        let is_apart = |byte: Option<&u8>| byte.is_none_or(|byte| b",; \t".contains(byte));
        let (mut quoted, mut at) = (false, rest.len());
        while let Some(before) = at.checked_sub(1) {
            at = before;
            match (rest[at], quoted) {
                (b'"', true) if is_escaped(&rest[..at]) => {}
                (b'"', false) if is_apart(rest.get(at + 1)) && !is_escaped(&rest[..at]) => quoted = true,
                (b'"', true) if is_apart(rest[..at].last()) || rest[..at].ends_with(b"=") => quoted = false,
                (b'"', _) => return Some(None),
                (byte, false) if byte == self.separator => {
                    self.rest = Some(&rest[..at]);
                    return Some(Some(rest[at + 1..].trim_ascii()));
                }
                _ => {}
            }
        }
        Some((!quoted).then(|| rest.trim_ascii()))
    }
}

/// Whether what follows these bytes has a backslash before it that is not itself behind one.
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The parameter `for` of an element of `Forwarded`, which must be there once.
fn forwarded_for(element: &[u8]) -> Option<SocketAddr> {
    let mut found = None;
    for pair in (Backwards { rest: Some(element), separator: b';' }) {
        let pair = pair?;
        let (name, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => continue,
        };
        if name.eq_ignore_ascii_case(b"for") && found.replace(value).is_some() {
            return None;
        }
    }
    node(found?)
}

/// An address as proxies write it: IPv6 with or without brackets, with or without a port, in quotes or not.
fn node(text: &[u8]) -> Option<SocketAddr> {
    let text = str::from_utf8(text).ok()?;
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address.to_canonical(), 0));
    }
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            (
                address.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6)?,
                rest.strip_prefix(':').or(rest.is_empty().then_some("0"))?,
            )
        }
        None => {
            let (address, port) = text.split_once(':')?;
            (address.parse::<IpAddr>().ok().filter(IpAddr::is_ipv4)?, port)
        }
    };
    // A port may be hidden behind a name where the address is not (RFC 7239 §6.3).
    let port = if port.starts_with('_') { 0 } else { port.parse().ok()? };
    Some(SocketAddr::new(address.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ws::{HandshakeLimits, Progress, parse_request};

    /// A request from this peer with these lines; 10.0.0.0/8 and fd00::/8 are trusted.
    fn resolve(peer: &str, lines: &[u8]) -> SocketAddr {
        let head: &[u8] = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
        let bytes = [head, lines, b"\r\n"].concat();
        let Ok(Progress::Complete { request, .. }) =
            parse_request(&bytes, 0, &HandshakeLimits { header_bytes_max: 1 << 20 })
        else {
            panic!("a request with {}", lines.escape_ascii());
        };
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        client_of(SocketAddr::new(peer.parse().unwrap(), 5000), &request, &trusted)
    }

    /// From the trusted 10.0.0.1.
    #[track_caller]
    fn check(lines: &str, client: &str) {
        let lines = lines.replace('\n', "\r\n") + "\r\n";
        assert_eq!(resolve("10.0.0.1", lines.as_bytes()).to_string(), client, "{lines}");
    }

    const PEER: &str = "10.0.0.1:5000";

    #[test]
    fn who_is_not_trusted_is_not_believed() {
        for peer in ["192.0.2.1", "11.0.0.1", "127.0.0.1", "2001:db8::1"] {
            let lines = b"X-Forwarded-For: 192.0.2.9\r\nForwarded: for=192.0.2.9\r\n";
            assert_eq!(resolve(peer, lines).ip().to_string(), peer);
        }
        for peer in ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"] {
            assert_eq!(resolve(peer, b"X-Forwarded-For: 192.0.2.9\r\n").to_string(), "192.0.2.9:0");
        }
    }

    #[test]
    fn the_rightmost_hop_that_is_not_trusted() {
        check("X: y", PEER);
        check("X-Forwarded-For: 192.0.2.9", "192.0.2.9:0");
        check("X-Forwarded-For: 1.1.1.1, 192.0.2.9", "192.0.2.9:0");
        check("X-Forwarded-For: 1.1.1.1,192.0.2.9 , 10.0.0.2", "192.0.2.9:0");
        check("X-Forwarded-For: 192.0.2.9, 10.0.0.3\nX: y\nx-forwarded-for: 10.0.0.2", "192.0.2.9:0");
        check("X-Forwarded-For: 1.1.1.1\nX-Forwarded-For: 192.0.2.9", "192.0.2.9:0");
        check("X-Forwarded-For: 10.0.0.3, 10.0.0.2", "10.0.0.3:0");
        check("X-Forwarded-For: ,, 192.0.2.9 ,,", "192.0.2.9:0");
        check("X-Forwarded-For:", PEER);
        check("Forwarded: for=192.0.2.9", "192.0.2.9:0");
        check("Forwarded: for=1.1.1.1, for=192.0.2.9;proto=https;by=10.0.0.9, For=10.0.0.2", "192.0.2.9:0");
        check("Forwarded: for=1.1.1.1\nForwarded: host=a;FOR=\"192.0.2.9\"", "192.0.2.9:0");
    }

    #[test]
    fn how_addresses_are_written() {
        for (written, client) in [
            ("192.0.2.9:4711", "192.0.2.9:4711"),
            ("\"192.0.2.9:4711\"", "192.0.2.9:4711"),
            ("2001:db8::9", "[2001:db8::9]:0"),
            ("[2001:db8::9]", "[2001:db8::9]:0"),
            ("\"[2001:db8::9]\"", "[2001:db8::9]:0"),
            ("\"[2001:db8::9]:4711\"", "[2001:db8::9]:4711"),
            ("\"[2001:db8::9]:_port\"", "[2001:db8::9]:0"),
            ("::ffff:192.0.2.9", "192.0.2.9:0"),
            ("\"[::ffff:192.0.2.9]:4711\"", "192.0.2.9:4711"),
        ] {
            check(&format!("X-Forwarded-For: {written}"), client);
            check(&format!("X-Forwarded-For: 1.1.1.1, {written}, ::ffff:10.0.0.2"), client);
            check(&format!("Forwarded: for={written}"), client);
            check(&format!("Forwarded: by=\"[::1]\" ; for={written};host=\"a, b;for=1.1.1.1\""), client);
        }
    }

    #[test]
    fn what_is_no_address_ends_the_walk() {
        for hop in [
            "unknown",
            "_hidden",
            "\"_hidden\"",
            "nobody",
            "192.0.2",
            "192.0.2.9:",
            "192.0.2.9:x",
            "192.0.2.9:65536",
            "[2001:db8::9",
            "2001:db8::9]",
            "[192.0.2.9]",
            "[2001:db8::9]4711",
            "[2001:db8::9]:",
            "\"192.0.2.9",
            "192.0.2.9\"",
            "fe80::1%eth0",
            "192.0.2.09",
            "\"\"",
            "192.0.2.9 192.0.2.8",
            "\u{e9}",
        ] {
            check(&format!("X-Forwarded-For: 1.1.1.1, {hop}"), PEER);
            check(&format!("Forwarded: for=1.1.1.1, for={hop}"), PEER);
            check(&format!("X-Forwarded-For: 1.1.1.1, {hop}, 10.0.0.2"), "10.0.0.2:0");
            check(&format!("Forwarded: for={hop}, for=10.0.0.2"), "10.0.0.2:0");
        }
        check("Forwarded: for=1.1.1.1, by=192.0.2.9", PEER);
        check("Forwarded: for=1.1.1.1, for=192.0.2.9;for=192.0.2.8", PEER);
        check("Forwarded: for=1.1.1.1, for", PEER);
        check("Forwarded: for=1.1.1.1, for=", PEER);
        check("Forwarded: 192.0.2.9", PEER);
        check("X-Forwarded-For: for=192.0.2.9", PEER);
    }

    /// What a proxy quotes may hold quotes itself; what it writes wrong is not believed, and does not reach out to the left.
    #[test]
    fn quotes_within_quotes() {
        for left in ["", "for=1.1.1.1;x=\", ", "for=1.1.1.1;x=\"\\\", ", "\", ", "\\, "] {
            check(&format!("Forwarded: {left}for=192.0.2.9;host=\"a\\\"b\""), "192.0.2.9:0");
            check(&format!("Forwarded: {left}host=\"a\\\", for=2.2.2.2;\\\\\";for=192.0.2.9"), "192.0.2.9:0");
            for stray in ["a\"b", "\"a\"b", "\"a\\\"", "a\\\""] {
                check(&format!("Forwarded: {left}for=192.0.2.9;host={stray}"), PEER);
            }
        }
    }

    /// What the client sends itself stands left of what the proxy adds, and changes nothing.
    #[test]
    fn both_headers() {
        check("Forwarded: for=192.0.2.9\nX-Forwarded-For: 192.0.2.9", "192.0.2.9:0");
        check("Forwarded: for=\"192.0.2.9:1\"\nX-Forwarded-For: 1.1.1.1, 192.0.2.9", "192.0.2.9:1");
        check("Forwarded: for=192.0.2.9\nX-Forwarded-For: 192.0.2.8", PEER);
        check("Forwarded: nonsense\nX-Forwarded-For: 192.0.2.8", PEER);
        check("Forwarded: for=192.0.2.9\nX-Forwarded-For:", PEER);
    }

    proptest! {
        #[test]
        fn nothing_to_the_left_matters(
            name in 0..2_usize,
            // Whatever a header line may hold.
            left in "[ -~]{0,60}|[\",;=\\\\ ]{0,20}",
            lines in 0..2_usize,
        ) {
            let (name, hop) = [("X-Forwarded-For", "192.0.2.9"), ("Forwarded", "for=192.0.2.9;proto=http")][name];
            let separator = [", ".to_owned(), format!("\r\n{name}: ")][lines].clone();
            let lines = format!("{name}: {left}{separator}{hop}\r\n");
            prop_assert_eq!(resolve("10.0.0.1", lines.as_bytes()).to_string(), "192.0.2.9:0");
        }
    }
}
