//! permessage-deflate: what is agreed on, against the rules as they are written; what is inflated, against flate2 alone; what
//! is compressed, against a client that has the agreed window and no more.

use flate2::{Decompress, FlushDecompress, Status};
use tidewheel::ws::ProtocolError;
use tidewheel::ws::deflate::{Deflater, InflateLimits, Inflater, Terms, Windows, negotiate};

use crate::script::Script;

/// Which of the three, and its own.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    match script.below(3) {
        0 => offers(script),
        1 => inflate(script),
        _ => compress(script),
    }
}

/// Two headers, and whether the server lets clients' messages refer to each other.
fn offers(mut script: Script<'_>) {
    let terms = Terms { client_context_takeover: script.byte() & 1 == 0 };
    let (first, second) = (script.piece(), script.0);
    let (Ok(first), Ok(second)) = (std::str::from_utf8(first), std::str::from_utf8(second)) else { return };
    let headers = [first, second];
    let agreed = negotiate(headers.into_iter(), &terms);
    let slowly = headers.iter().flat_map(|header| pieces(header, ',')).find_map(|offer| accept(&offer, &terms));
    assert_eq!(agreed.map(|agreed| (agreed.window_bits(), agreed.client_context_takeover())), slowly);
    if let Some(agreed) = agreed {
        let text = format!("{agreed:?}");
        assert_eq!(negotiate([&*text].into_iter(), &terms), Some(agreed), "{text}: an answer that is no offer");
        assert_eq!(agreed.server_window_bits(), Some(agreed.window_bits()).filter(|&bits| bits > 8));
    }
}

/// The window of the server's messages and whether the client's may refer to each other, if the offer is acceptable.
fn accept(offer: &str, terms: &Terms) -> Option<(u8, bool)> {
    let (mut seen, mut window_bits, mut takeover) = (Vec::new(), 15, terms.client_context_takeover);
    let mut parts = pieces(offer, ';').into_iter();
    if parts.next()?.trim_ascii() != "permessage-deflate" {
        return None;
    }
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_ascii().to_owned(), Some(value.trim_ascii().to_owned())),
            None => (part.trim_ascii().to_owned(), None),
        };
        let value = value.map(|value| match value.len() > 1 && value.starts_with('"') && value.ends_with('"') {
            true => value[1..value.len() - 1].to_owned(),
            false => value,
        });
        let bits = |value: &str| (8..=15).find(|bits: &u8| bits.to_string() == value);
        match (&*name, &value) {
            ("server_no_context_takeover", None) => {}
            ("client_no_context_takeover", None) => takeover = false,
            ("server_max_window_bits", Some(value)) => window_bits = bits(value)?,
            ("client_max_window_bits", Some(value)) => drop(bits(value)?),
            ("client_max_window_bits", None) => {}
            _ => return None,
        }
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
    }
    Some((window_bits, takeover))
}

/// The parts between separators that are in no quotes.
fn pieces(text: &str, separator: char) -> Vec<String> {
    let (mut pieces, mut is_quoted) = (vec![String::new()], false);
    for c in text.chars() {
        is_quoted ^= c == '"';
        match c == separator && !is_quoted {
            true => pieces.push(String::new()),
            false => pieces.last_mut().expect("one at least").push(c),
        }
    }
    pieces
}

/// The bounds, and messages as they arrive, one after the other.
fn inflate(mut script: Script<'_>) {
    let takeover = script.byte() & 1 == 0;
    let message_bytes_max = [0, 1, 100, 5_000, 65_536, 65_537, 200_000, 8 << 20][script.below(8)];
    let limits = InflateLimits { message_bytes_max, ratio_max: [1, 10, 200, 2_000][script.below(4)] };
    let (mut inflater, mut slow) = (Inflater::default(), Slow::new(15));
    let (mut inflated_bytes, mut cuts) = (0, 0);
    while !script.is_over() && inflated_bytes < INFLATED_BYTES_MAX {
        // The last is as long as it likes.
        let count = usize::from(script.byte());
        let payload = script.take(if count == 255 { usize::MAX } else { count });
        let inflated = check_message(&mut inflater, &mut slow, payload, takeover, &limits);
        inflated_bytes += inflated.unwrap_or(INFLATED_BYTES_MAX / 8);
        if !takeover || inflated.is_none() {
            slow = Slow::new(15);
        }
        if cuts + payload.len() <= CUTS_MAX {
            cuts += payload.len();
            for cut in 0..payload.len() {
                check_message(&mut Inflater::default(), &mut Slow::new(15), &payload[..cut], takeover, &limits);
            }
        }
    }
}

/// Inflates one message both ways; returns its bytes if it is one.
fn check_message(
    inflater: &mut Inflater,
    slow: &mut Slow,
    payload: &[u8],
    takeover: bool,
    limits: &InflateLimits,
) -> Option<usize> {
    let mut message = Vec::new();
    let outcome = inflater.inflate(payload, takeover, limits, &mut message);
    let by_ratio = payload.len().saturating_mul(limits.ratio_max).max(64 * 1024);
    let bytes_max = limits.message_bytes_max.min(by_ratio);
    assert!(message.capacity() <= bytes_max + 1, "{} bytes for {bytes_max}", message.capacity());
    // The byte over the bound may be there, and what is wrong come next.
    let expected = slow.message(payload, bytes_max + 1);
    match (&outcome, expected) {
        (Ok(()), Some(expected)) => {
            assert!(message == expected, "{} bytes, and {} of flate2", message.len(), expected.len());
            assert!(message.len() <= bytes_max);
        }
        (Ok(()), None) => panic!("a message of what flate2 does not take"),
        (Err(ProtocolError::NotDeflate), expected) => assert!(expected.is_none(), "flate2 takes it"),
        (Err(error), expected) => {
            let is_by_ratio = matches!(error, ProtocolError::InflatesTooMuch { .. });
            assert_eq!(is_by_ratio, by_ratio < limits.message_bytes_max, "{error}");
            assert!(expected.is_none_or(|expected| expected.len() > bytes_max), "{error}");
        }
    }
    if let Err(error) = &outcome {
        assert!(matches!(error.close_code(), 1002 | 1007 | 1009), "{error}");
    }
    outcome.is_ok().then_some(message.len())
}

/// A level, windows, and messages: each a part that is repeated with a change each time.
fn compress(mut script: Script<'_>) {
    let level = 1 + script.below(9) as u32;
    let mask = script.word();
    let windows = Windows::of_mask(mask);
    // Most messages are short: what long ones cost would be taken from the number of those that are tried.
    let most = MESSAGE_BYTES_MAX >> (mask & 7);
    let mut deflater = Deflater::new(level);
    let mut deflated_bytes = 0;
    while !script.is_over() && deflated_bytes < most {
        let (times, step, change) = (script.word(), script.byte(), script.byte());
        let times = 1 + (usize::from(times & 0x7ff) >> (times >> 11 & 7));
        let part = script.piece();
        let mut payload = Vec::new();
        for time in 0..times.min(most / part.len().max(1)) {
            payload.extend_from_slice(part);
            if let Some(last) = payload.last_mut().filter(|_| time % (1 + usize::from(step)) == 0) {
                *last = last.wrapping_add(change).wrapping_mul(31);
            }
        }
        deflated_bytes += payload.len();
        let mut served = 0;
        for (class, window_bits) in windows.forms(payload.len()) {
            assert_eq!(served & class.mask(), 0, "one form for each");
            served |= class.mask();
            let mut out = b"before".to_vec();
            if !deflater.deflate(&payload, window_bits, &mut out) {
                assert_eq!(out, b"before");
                continue;
            }
            assert!(out.starts_with(b"before") && out.len() < b"before".len() + payload.len());
            for bits in (9..=15).filter(|bits| class.mask() & 1 << bits != 0) {
                let inflated = Slow::new(bits).message(&out[b"before".len()..], payload.len());
                assert!(inflated.as_ref() == Some(&payload), "not the same with a window of {bits} bits");
            }
        }
        assert_eq!(served, windows.mask(), "a form for everyone");
    }
}

/// flate2 and nothing else, in steps so small that nothing but its window is there to look back at.
struct Slow(Decompress);

impl Slow {
    fn new(window_bits: u8) -> Self {
        Self(Decompress::new_with_window_bits(false, window_bits))
    }

    /// What a message inflates to, or a beginning of that with more than `enough` bytes; nothing if it is no DEFLATE data.
    fn message(&mut self, payload: &[u8], enough: usize) -> Option<Vec<u8>> {
        let stream = &mut self.0;
        let input = [payload, &[0, 0, 0xff, 0xff]].concat();
        let (mut message, mut rest) = (Vec::new(), &input[..]);
        loop {
            let mut out = [0; STEP_OUT];
            let before = (stream.total_in(), stream.total_out());
            let step = &rest[..rest.len().min(STEP_IN)];
            let status = stream.decompress(step, &mut out, FlushDecompress::Sync).ok()?;
            let (read, written) = ((stream.total_in() - before.0) as usize, (stream.total_out() - before.1) as usize);
            message.extend_from_slice(&out[..written]);
            rest = &rest[read..];
            if status == Status::StreamEnd {
                stream.reset(false); // a block that was the last; what follows begins anew
            }
            if message.len() > enough || rest.is_empty() && written < STEP_OUT {
                return Some(message);
            }
            if read == 0 && written == 0 && status != Status::StreamEnd {
                return None;
            }
        }
    }
}

/// Messages are cut at every place as long as these are no more.
const CUTS_MAX: usize = 64;
/// Longer than the largest window.
const MESSAGE_BYTES_MAX: usize = 100_000;
/// Inflated by one input, before the last message.
const INFLATED_BYTES_MAX: usize = 1 << 20;
const STEP_IN: usize = 7;
const STEP_OUT: usize = 200;
