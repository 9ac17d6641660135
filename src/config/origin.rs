//! How web origins are written, in `origins.allow` and by browsers.
//! Law: what is not wholly understood is no origin and no pattern; nothing in either is passed over.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Where a page comes from (RFC 6454 §6.2): `scheme://host`, and the port where it is not the scheme's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// As written; its case means nothing.
    pub scheme: &'a str,
    /// As written, IPv6 addresses in brackets; its case means nothing.
    pub host: &'a str,
    /// `None` is also what was written as 80 of http or 443 of https.
    pub port: Option<u16>,
}

/// One entry of `origins.allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`: every origin.
    Any,
    /// `same_host`: the host that the request is for, on whatever port and by whatever scheme.
    SameHost,
    /// `null`: what a browser sends for pages without an origin, such as local files and sandboxed frames.
    Opaque,
    /// `https://example.com`, or `https://*.example.com` for every host below it, and not that host itself.
    Site {
        /// As [`Origin::scheme`].
        scheme: Box<str>,
        /// As [`Origin::host`], without the `*.`.
        host: Box<str>,
        /// As [`Origin::port`].
        port: Option<u16>,
        /// Whether the pattern began with `*.`.
        below: bool,
    },
}

impl<'a> Origin<'a> {
    /// Reads `scheme://host[:port]`; `None` for anything else, `null` included.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let (host, port) = split_port(authority);
        let port = match port {
            None => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
        };
        let own_port = SCHEME_PORTS.iter().find(|(known, _)| scheme.eq_ignore_ascii_case(known)).map(|&(_, port)| port);
        let is_origin = is_scheme(scheme) && is_host(host);
        is_origin.then_some(Self { scheme, host, port: port.filter(|_| port != own_port) })
    }
}

/// Splits `host[:port]`; colons in brackets belong to an IPv6 address.
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

impl FromStr for OriginPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "*" => return Ok(Self::Any),
            "same_host" => return Ok(Self::SameHost),
            "null" => return Ok(Self::Opaque),
            _ => {}
        }
        let below = text.contains("://*.");
        let whole = text.replacen("://*.", "://", 1);
        match Origin::parse(&whole) {
            Some(Origin { scheme, host, port }) if !(below && host.starts_with('[')) => {
                Ok(Self::Site { scheme: scheme.into(), host: host.into(), port, below })
            }
            _ => Err(format!(
                "`{text}` is no origin: write same_host, null, '*', or scheme://host with a port if it has one and no \
                 path, such as https://example.com, https://*.example.com or http://localhost:3000"
            )),
        }
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::SameHost => f.write_str("same_host"),
            Self::Opaque => f.write_str("null"),
            Self::Site { scheme, host, port, below } => {
                write!(f, "{scheme}://{}{host}", if *below { "*." } else { "" })?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// A name in ASCII, as browsers send international ones too, or an address.
fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let labels = text.strip_suffix('.').unwrap_or(text);
    labels.split('.').all(|label| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    })
}

const SCHEME_PORTS: [(&str, u16); 2] = [("http", 80), ("https", 443)];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, &str, Option<u16>)>) {
        let expected = expected.map(|(scheme, host, port)| Origin { scheme, host, port });
        assert_eq!(Origin::parse(text), expected, "{text}");
    }

    #[track_caller]
    fn check_pattern(text: &str, expected: Option<OriginPattern>) {
        match (text.parse::<OriginPattern>(), expected) {
            (Ok(pattern), expected) => {
                assert_eq!(pattern.to_string(), text);
                assert_eq!(Some(pattern), expected, "{text}");
            }
            (Err(problem), expected) => {
                assert_eq!(None, expected, "{problem}");
                assert!(problem.starts_with(&format!("`{text}` is no origin: ")), "{problem}");
            }
        }
    }

    #[test]
    fn origins() {
        check("http://example.com", Some(("http", "example.com", None)));
        check("https://example.com:8443", Some(("https", "example.com", Some(8443))));
        check("HTTPS://Example.COM:443", Some(("HTTPS", "Example.COM", None)));
        check("http://a:443", Some(("http", "a", Some(443))));
        check("http://a:80", Some(("http", "a", None)));
        check("http://127.0.0.1:9090", Some(("http", "127.0.0.1", Some(9090))));
        check("http://[::1]", Some(("http", "[::1]", None)));
        check("http://[::1]:9090", Some(("http", "[::1]", Some(9090))));
        check("http://example.com.", Some(("http", "example.com.", None)));
        check("chrome-extension://abc", Some(("chrome-extension", "abc", None)));
        for wrong in [
            "",
            "null",
            "example.com",
            "//example.com",
            "://example.com",
            "http:example.com",
            "1http://a",
            "ht tp://a",
            "http://",
            "file://",
            "http://.",
            "http://a..b",
            "http://.a",
            "http://a/",
            "http://a/path",
            "http://a?b",
            "http://a#b",
            "http://a\\b",
            "http://user@a",
            "http://a b",
            "http://a http://b",
            "http://a,http://b",
            "http://*.a",
            "http://\u{e9}.com",
            "http://::1",
            "http://[::1",
            "http://[a]",
            "http://[::1].a",
            "http://a:",
            "http://a:+1",
            "http://a:65536",
            "http://a:b",
            "http://a:1:2",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn patterns() {
        let site = |scheme: &str, host: &str, port, below| {
            Some(OriginPattern::Site { scheme: scheme.into(), host: host.into(), port, below })
        };
        check_pattern("*", Some(OriginPattern::Any));
        check_pattern("same_host", Some(OriginPattern::SameHost));
        check_pattern("null", Some(OriginPattern::Opaque));
        check_pattern("https://example.com", site("https", "example.com", None, false));
        check_pattern("https://*.example.com", site("https", "example.com", None, true));
        check_pattern("https://*.example.com:8443", site("https", "example.com", Some(8443), true));
        check_pattern("http://[::1]:1", site("http", "[::1]", Some(1), false));
        for wrong in [
            "",
            "Null",
            "same-host",
            "**",
            "*.example.com",
            "example.com",
            "https://*",
            "https://*.",
            "https://*example.com",
            "https://a*.example.com",
            "https://a.*.example.com",
            "https://*.*.example.com",
            "https://*.[::1]",
            "*://example.com",
            "https://example.com:*",
            "https://example.com/",
            " https://example.com",
        ] {
            check_pattern(wrong, None);
        }
    }
}
