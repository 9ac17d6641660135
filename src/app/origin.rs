//! Which pages may connect. A browser lets every page open a WebSocket to every server, and adds the cookies that it
//! has for that server; it also says where the page comes from, and looking at that is up to the server.
//! Law: an `Origin` that is not understood is allowed by `*` alone.

use crate::config::Origins;
use crate::config::origin::{Origin, OriginPattern, split_port};

/// Whether a request for `host` (`Host` as sent) from a page of `origin` (`Origin` as sent, if it was) is allowed.
pub fn is_allowed(rules: &Origins, origin: Option<&str>, host: &str) -> bool {
    let Some(text) = origin else { return rules.allow_missing };
    let page = Origin::parse(text);
    rules.allow.iter().any(|pattern| match (pattern, page) {
        (OriginPattern::Any, _) => true,
        (OriginPattern::Opaque, None) => text == "null",
        (OriginPattern::SameHost, Some(page)) => page.host.eq_ignore_ascii_case(split_port(host).0),
        (OriginPattern::Site { scheme, host, port, below }, Some(page)) => {
            let is_host = if *below { is_below(page.host, host) } else { page.host.eq_ignore_ascii_case(host) };
            is_host && page.scheme.eq_ignore_ascii_case(scheme) && page.port == *port
        }
        _ => false,
    })
}

/// Whether `host` has one label or more in front of `parent`.
fn is_below(host: &str, parent: &str) -> bool {
    let Some((labels, end)) = host.len().checked_sub(parent.len()).and_then(|at| host.split_at_checked(at)) else {
        return false;
    };
    labels.ends_with('.') && end.eq_ignore_ascii_case(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for the host `tides.example.com` on port 8080.
    #[track_caller]
    fn check(allow: &[&str], origin: &str, expected: bool) {
        let allow = allow.iter().map(|pattern| pattern.parse().unwrap()).collect();
        let rules = Origins { allow, allow_missing: true };
        assert_eq!(is_allowed(&rules, Some(origin), "tides.example.com:8080"), expected, "{rules:?} {origin}");
    }

    #[test]
    fn the_same_host() {
        check(&["same_host"], "http://tides.example.com:8080", true);
        check(&["same_host"], "https://tides.example.com", true);
        check(&["same_host"], "http://Tides.EXAMPLE.com:9090", true);
        check(&["same_host"], "http://example.com", false);
        check(&["same_host"], "http://tides.example.com.evil.net", false);
        check(&["same_host"], "http://evil.net/tides.example.com", false);
        check(&["same_host"], "http://tides.example.com@evil.net", false);
        check(&["same_host"], "null", false);
        check(&["same_host"], "", false);
        let same = |origin, host| is_allowed(&Origins::default(), Some(origin), host);
        assert!(same("http://[::1]:9090", "[::1]:8080"));
        assert!(same("http://[::1]", "[::1]"));
        assert!(same("http://localhost:9090", "LOCALHOST:8080"));
        assert!(!same("http://[::1]:8080", "[::2]:8080"));
        assert!(!same("http://localhost:9090", "127.0.0.1:8080"));
    }

    #[test]
    fn sites() {
        check(&["https://app.example.com"], "https://app.example.com", true);
        check(&["https://app.example.com"], "https://APP.example.com:443", true);
        check(&["https://app.example.com:443"], "https://app.example.com", true);
        check(&["HTTPS://App.Example.Com"], "https://app.example.com", true);
        check(&["https://app.example.com"], "http://app.example.com", false);
        check(&["https://app.example.com"], "https://app.example.com:8443", false);
        check(&["https://app.example.com:8443"], "https://app.example.com:8443", true);
        check(&["https://app.example.com:8443"], "https://app.example.com", false);
        check(&["https://app.example.com"], "https://x.app.example.com", false);
        check(&["https://app.example.com"], "https://xapp.example.com", false);
        check(&["http://localhost:3000", "https://a.net"], "https://a.net", true);
        check(&["http://localhost:3000", "https://a.net"], "http://localhost:3001", false);
    }

    #[test]
    fn everything_below() {
        check(&["https://*.example.com"], "https://app.example.com", true);
        check(&["https://*.example.com"], "https://a.b.Example.com", true);
        check(&["https://*.example.com"], "https://example.com", false);
        check(&["https://*.example.com"], "https://evilexample.com", false);
        check(&["https://*.example.com"], "https://.example.com", false);
        check(&["https://*.example.com"], "https://app.example.com.evil.net", false);
        check(&["https://*.example.com"], "https://evil.net/.example.com", false);
        check(&["https://*.example.com"], "http://app.example.com", false);
        check(&["https://*.example.com"], "https://app.example.com:8443", false);
        check(&["https://*.example.com:8443"], "https://app.example.com:8443", true);
        check(&["https://*.example.com"], "https://m", false);
    }

    #[test]
    fn none_and_every() {
        check(&["null"], "null", true);
        check(&["null"], "NULL", false);
        check(&["null"], "", false);
        check(&["null"], "http://null", false);
        check(&["http://null"], "null", false);
        check(&["*"], "null", true);
        check(&["*"], "http://evil.net", true);
        check(&["*"], "what is this", true);
        check(&[], "http://tides.example.com", false);
        for allow in [vec![], vec![OriginPattern::Any]] {
            for allow_missing in [true, false] {
                let rules = Origins { allow: allow.clone(), allow_missing };
                assert_eq!(is_allowed(&rules, None, "a"), allow_missing);
            }
        }
    }
}
