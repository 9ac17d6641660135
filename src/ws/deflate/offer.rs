//! The negotiation (RFC 7692 §5 and §7.1): from the client's offers to what both will do.
//! Law: an offer with anything unknown, doubled or out of range is passed over as a whole, as §5 asks; none that is
//! acceptable is no error, just no compression.

use std::num::NonZeroU8;

use super::{WINDOW_BITS_MAX, WINDOW_BITS_MIN};

/// What this server agrees to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether a client's messages may refer to its earlier ones, which costs an inflater of its own for as long as it
    /// is connected.
    pub client_context_takeover: bool,
}

/// What was agreed, in one byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Agreement(NonZeroU8);

const CLIENT_TAKEOVER: u8 = 0x10;
const STATES_WINDOW: u8 = 0x20;
const WINDOW: u8 = 0x0f;

impl Agreement {
    fn new(server_window_bits: Option<u8>, client_takeover: bool) -> Self {
        let window = server_window_bits.map_or(WINDOW_BITS_MAX, |bits| bits | STATES_WINDOW);
        let byte = window | if client_takeover { CLIENT_TAKEOVER } else { 0 };
        Self(NonZeroU8::new(byte).expect("a window has bits"))
    }

    /// The window of the server's messages in bits, 8 to 15.
    #[inline]
    pub fn window_bits(self) -> u8 {
        self.0.get() & WINDOW
    }

    /// The same, unless it is one that nobody can compress with.
    pub fn server_window_bits(self) -> Option<u8> {
        Some(self.window_bits()).filter(|&bits| bits >= WINDOW_BITS_MIN)
    }

    /// Whether the client's messages may refer to its earlier ones.
    pub fn client_context_takeover(self) -> bool {
        self.0.get() & CLIENT_TAKEOVER != 0
    }

    /// Appends the value of the answer's `Sec-WebSocket-Extensions`.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(EXTENSION.as_bytes());
        out.extend_from_slice(b"; server_no_context_takeover");
        if !self.client_context_takeover() {
            out.extend_from_slice(b"; client_no_context_takeover");
        }
        if self.0.get() & STATES_WINDOW != 0 {
            out.extend_from_slice(format!("; server_max_window_bits={}", self.0.get() & WINDOW).as_bytes());
        }
    }
}

impl std::fmt::Debug for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = Vec::new();
        self.write(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

/// The first acceptable offer among the values of `Sec-WebSocket-Extensions`, each a list in the client's order.
pub fn negotiate<'a>(mut headers: impl Iterator<Item = &'a str>, terms: &Terms) -> Option<Agreement> {
    headers.find_map(|list| split(list, ',').find_map(|offer| judge(offer, terms)))
}

fn judge(offer: &str, terms: &Terms) -> Option<Agreement> {
    let mut parts = split(offer, ';').map(str::trim_ascii);
    if parts.next()? != EXTENSION {
        return None;
    }
    let (mut server_takeover, mut client_takeover, mut server_bits, mut client_bits) = (None, None, None, None);
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_ascii(), Some(unquoted(value.trim_ascii())?)),
            None => (part, None),
        };
        let (seen, legal) = match name {
            "server_no_context_takeover" => (server_takeover.replace(0), value.is_none()),
            "client_no_context_takeover" => (client_takeover.replace(0), value.is_none()),
            "server_max_window_bits" => {
                let bits = window_bits(value?)?;
                (server_bits.replace(bits), true)
            }
            // Only a hint: what the client compresses with, this server can read.
            "client_max_window_bits" => {
                let bits = value.map_or(Some(WINDOW_BITS_MAX), window_bits)?;
                (client_bits.replace(bits), true)
            }
            _ => return None,
        };
        if seen.is_some() || !legal {
            return None;
        }
    }
    Some(Agreement::new(server_bits, terms.client_context_takeover && client_takeover.is_none()))
}

/// §7.1.2: a decimal integer from 8 to 15 without leading zeros.
fn window_bits(value: &str) -> Option<u8> {
    let bits: u8 = value.parse().ok()?;
    ((8..=WINDOW_BITS_MAX).contains(&bits) && !value.starts_with(['0', '+'])).then_some(bits)
}

/// The token inside quotes, or the token itself (RFC 6455 §9.1: what is quoted has to be a token, so nothing is escaped; here
/// it has to be a number, too).
fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => Some(value),
    }
}

/// Splits at a separator outside quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}

const EXTENSION: &str = "permessage-deflate";

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(takeover: bool, headers: &[&str], expected: Option<&str>) {
        let terms = Terms { client_context_takeover: takeover };
        let agreed = negotiate(headers.iter().copied(), &terms).map(|agreement| format!("{agreement:?}"));
        assert_eq!(
            agreed.as_deref(),
            expected.map(|e| format!("permessage-deflate; server_no_context_takeover{e}")).as_deref()
        );
    }

    const NO_CLIENT: &str = "; client_no_context_takeover";

    #[test]
    fn offers() {
        check(false, &[], None);
        check(false, &[""], None);
        check(false, &["x-webkit-deflate-frame"], None);
        check(false, &["permessage-deflate"], Some(NO_CLIENT));
        check(true, &["permessage-deflate"], Some(""));
        check(true, &["permessage-deflate; client_no_context_takeover"], Some(NO_CLIENT));
        check(false, &["permessage-deflate; client_max_window_bits"], Some(NO_CLIENT));
        check(true, &["permessage-deflate;client_max_window_bits=8"], Some(""));
        check(
            true,
            &["permessage-deflate; server_no_context_takeover; server_max_window_bits=\"10\""],
            Some("; server_max_window_bits=10"),
        );
        check(true, &["permessage-deflate; server_max_window_bits=8"], Some("; server_max_window_bits=8"));
        check(
            true,
            &["permessage-deflate; server_max_window_bits=15; client_max_window_bits=15"],
            Some("; server_max_window_bits=15"),
        );
    }

    #[test]
    fn the_first_acceptable_offer_counts() {
        let (bad, good) =
            ("permessage-deflate; server_max_window_bits=16", "permessage-deflate; server_max_window_bits=9");
        let expected = Some("; client_no_context_takeover; server_max_window_bits=9");
        check(false, &[&format!("{bad}, {good}, permessage-deflate")], expected);
        check(false, &["foo; x=\"a,permessage-deflate,b\"", bad, good], expected);
    }

    #[test]
    fn what_is_wrong_with_an_offer_declines_it() {
        for wrong in [
            "server_no_context_takeover=1",
            "client_no_context_takeover=",
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=08",
            "server_max_window_bits=+9",
            "server_max_window_bits=\"9",
            "client_max_window_bits=16",
            "client_max_window_bits; client_max_window_bits",
            "server_max_window_bits=9; server_max_window_bits=9",
            "client_no_context_takeover; client_no_context_takeover",
            "server_no_context_takeover; server_no_context_takeover",
            "mystery",
            "",
        ] {
            check(true, &[&format!("permessage-deflate; {wrong}")], None);
        }
        check(true, &["Permessage-deflate"], None);
    }

    #[test]
    fn a_window_of_8_bits_is_agreed_to_and_never_used() {
        let bits =
            |offer| negotiate([offer].into_iter(), &Terms { client_context_takeover: false })?.server_window_bits();
        assert_eq!(bits("permessage-deflate; server_max_window_bits=8"), None);
        assert_eq!(bits("permessage-deflate; server_max_window_bits=9"), Some(9));
        assert_eq!(bits("permessage-deflate"), Some(15));
    }
}
