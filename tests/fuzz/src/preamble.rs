//! The PROXY protocol: the same verdict however the header is cut, and never more than it may have.

use tidewheel::ws::{Preamble, PreambleError, parse_preamble};

use crate::script::Script;

/// How long a header may be, and the bytes of a proxy.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    let bytes_max = 16 + 4 * usize::from(script.byte());
    let stream = script.0;
    let whole = parse_preamble(stream, bytes_max);
    if let Ok(Preamble::Complete { bytes, .. }) = whole {
        assert!(bytes <= stream.len() && bytes <= bytes_max.max(LINE_BYTES_MAX));
    }
    let mut told: Option<Result<Preamble, PreambleError>> = None;
    for end in 0..=stream.len() {
        let now = parse_preamble(&stream[..end], bytes_max);
        match told {
            None if now != Ok(Preamble::NeedMore) => told = Some(now),
            None => {}
            Some(verdict) => assert_eq!(now, verdict, "another verdict after {end} bytes"),
        }
    }
    assert_eq!(told.unwrap_or(Ok(Preamble::NeedMore)), whole);
}

/// The longest header of version 1.
const LINE_BYTES_MAX: usize = 107;
