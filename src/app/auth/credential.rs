//! Where the upgrade request may carry a token.
//! Law: a request carries one token or none. Two that differ are refused: which of them counts would be a guess, and
//! whoever can add a cookie or a query could steer it.

use std::fmt;

use crate::ws::Upgrade;

/// Where to look for a token, besides `Authorization` and `Sec-WebSocket-Protocol`.
#[derive(Clone, Debug, Default)]
pub struct Carriers {
    /// The cookie that may carry one.
    pub cookie: Option<String>,
    /// Whether the query may, as `?token=`.
    pub query: bool,
}

/// A part of the request that may carry a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text says it")]
pub enum Carrier {
    Authorization,
    Cookie,
    Subprotocol,
    Query,
}

/// Two parts of a request carry different tokens, or one of them does so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two different tokens, one in {0} and one in {1}: send one")]
pub struct TwoTokens(pub Carrier, pub Carrier);

impl Carriers {
    /// The token of a request, as it was sent, from wherever it is.
    ///
    /// # Errors
    /// There are two that differ.
    pub fn token<'a>(&self, request: &Upgrade<'a>) -> Result<Option<&'a str>, TwoTokens> {
        let mut tokens = self.tokens(request);
        let Some((carrier, token)) = tokens.next() else { return Ok(None) };
        match tokens.find(|&(_, other)| other != token) {
            None => Ok(Some(token)),
            Some((another, _)) => Err(TwoTokens(carrier, another)),
        }
    }

    fn tokens<'a>(&self, request: &Upgrade<'a>) -> impl Iterator<Item = (Carrier, &'a str)> {
        let cookie = self.cookie.as_deref();
        let authorization = request.authorization.and_then(bearer);
        let cookies = request.cookies().filter(move |&(name, _)| Some(name) == cookie).map(|(_, value)| value);
        let subprotocols = request.protocols().filter_map(|offered| offered.strip_prefix("bearer."));
        let query = request.query.filter(|_| self.query).unwrap_or_default();
        let parameters = query.split('&').filter_map(|parameter| parameter.strip_prefix("token="));
        let of = |carrier| move |token| (carrier, token);
        (authorization.into_iter().map(of(Carrier::Authorization)))
            .chain(cookies.map(of(Carrier::Cookie)))
            .chain(subprotocols.map(of(Carrier::Subprotocol)))
            .chain(parameters.map(of(Carrier::Query)))
    }
}

/// The token of `Bearer <token>` (RFC 6750 §2.1). Another scheme is for somebody else, a proxy before this server say.
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ').unwrap_or((authorization, ""));
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_ascii())
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authorization => "the Authorization header",
            Self::Cookie => "the cookie",
            Self::Subprotocol => "Sec-WebSocket-Protocol",
            Self::Query => "the query",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::{HandshakeLimits, Progress, parse_request};

    /// Looks with `carriers` at a request with this query and these header lines.
    #[track_caller]
    fn check_with(carriers: &Carriers, query: &str, lines: &str, expected: Result<Option<&str>, TwoTokens>) {
        let request = format!(
            "GET /ws{query} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{lines}\r\n"
        );
        let limits = HandshakeLimits { header_bytes_max: 4096 };
        match parse_request(request.as_bytes(), 0, &limits) {
            Ok(Progress::Complete { request, .. }) => assert_eq!(carriers.token(&request), expected, "{query} {lines}"),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn check(query: &str, lines: &str, expected: Result<Option<&str>, TwoTokens>) {
        check_with(&Carriers { cookie: Some("sid".into()), query: true }, query, lines, expected);
    }

    #[test]
    fn one_token() {
        check("", "", Ok(None));
        check("", "Authorization: Bearer a.b.c\r\n", Ok(Some("a.b.c")));
        check("", "authorization: bEARER  a.b.c \r\n", Ok(Some("a.b.c")));
        check("", "Authorization: Bearer\r\n", Ok(Some("")));
        check("", "Authorization: Basic YTpi\r\n", Ok(None));
        check("", "Authorization: Bearera.b.c\r\n", Ok(None));
        check("", "Cookie: x=1; sid=a.b.c; y=2\r\n", Ok(Some("a.b.c")));
        check("", "Cookie: SID=a.b.c\r\nCookie: xsid=a; sid\r\n", Ok(None));
        check("", "Sec-WebSocket-Protocol: tidewheel.v1, bearer.a.b.c\r\n", Ok(Some("a.b.c")));
        check("", "Sec-WebSocket-Protocol: tidewheel.v1\r\nSec-WebSocket-Protocol: bearer.a\r\n", Ok(Some("a")));
        check("", "Sec-WebSocket-Protocol: bearer, bearers.a, Bearer.a\r\n", Ok(None));
        check("?token=a.b.c", "", Ok(Some("a.b.c")));
        check("?x=1&token=a.b.c&y", "", Ok(Some("a.b.c")));
        check("?token", "", Ok(None));
        check("?xtoken=a&Token=b", "", Ok(None));
    }

    #[test]
    fn only_where_it_may_be() {
        let nowhere_else = Carriers::default();
        check_with(&nowhere_else, "?token=a", "Cookie: sid=b\r\n", Ok(None));
        check_with(&nowhere_else, "?token=a", "Authorization: Bearer c\r\nCookie: sid=b\r\n", Ok(Some("c")));
        check_with(&nowhere_else, "", "Cookie: =a\r\n", Ok(None));
    }

    #[test]
    fn two_tokens() {
        use Carrier::*;
        let everywhere = "Authorization: Bearer a\r\nCookie: sid=a\r\nSec-WebSocket-Protocol: bearer.a\r\n";
        check("?token=a", everywhere, Ok(Some("a")));
        check("?token=b", everywhere, Err(TwoTokens(Authorization, Query)));
        check("", "Authorization: Bearer a\r\nCookie: sid=b\r\n", Err(TwoTokens(Authorization, Cookie)));
        check("", "Authorization: Bearer\r\nCookie: sid=b\r\n", Err(TwoTokens(Authorization, Cookie)));
        check("", "Cookie: sid=a\r\nSec-WebSocket-Protocol: bearer.b\r\n", Err(TwoTokens(Cookie, Subprotocol)));
        check("", "Cookie: sid=a; sid=b\r\n", Err(TwoTokens(Cookie, Cookie)));
        check("?token=a&token=b", "", Err(TwoTokens(Query, Query)));
        assert_eq!(
            TwoTokens(Cookie, Query).to_string(),
            "two different tokens, one in the cookie and one in the query: send one"
        );
    }
}
