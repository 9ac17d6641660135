//! The frame decoder: a stream gives the same however it is cut, and memory follows what was received.

use tidewheel::ws::deflate::{InflateLimits, Inflater};
use tidewheel::ws::{Decoder, Event, Extensions, Input, Limits};

use crate::script::Script;

/// The limit of a message and what was agreed on, how the stream is cut, and the stream.
pub fn try_bytes(bytes: &[u8]) {
    let mut script = Script(bytes);
    let kind = script.byte();
    let limits = Limits {
        message_bytes_max: [0, 1, 125, 126, 1_000, 1 << 16][usize::from(kind & !DEFLATES) % 6],
        extensions: if kind & DEFLATES == 0 { Extensions::NONE } else { Extensions::DEFLATE },
    };
    let sizes = [script.byte(), script.byte(), script.byte()].map(|size| 1 + usize::from(size));
    let stream = script.0;
    let whole = decode(stream, std::iter::repeat(stream.len().max(1)), &limits);
    assert_eq!(decode(stream, std::iter::repeat(1), &limits), whole, "byte by byte");
    assert_eq!(decode(stream, sizes.into_iter().cycle(), &limits), whole, "in pieces of {sizes:?}");
    if stream.len() <= EVERY_CUT {
        for cut in 1..stream.len() {
            assert_eq!(decode(stream, [cut, stream.len()].into_iter().cycle(), &limits), whole, "cut at {cut}");
        }
    }
}

/// What comes out of the stream in pieces of these sizes, and whether nothing is held at the end.
fn decode(stream: &[u8], mut sizes: impl Iterator<Item = usize>, limits: &Limits) -> (Vec<String>, bool) {
    let (mut decoder, mut events, mut rest) = (Decoder::default(), Vec::new(), stream);
    let (mut inflater, mut inflated) = (Inflater::default(), Vec::new());
    let bounds = InflateLimits { message_bytes_max: limits.message_bytes_max, ratio_max: 200 };
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().expect("it never ends").min(rest.len()));
        rest = after;
        let mut piece = piece.to_vec();
        let mut input = Input::new(&mut piece);
        loop {
            match decoder.next(&mut input, limits) {
                Ok(Some(event)) => {
                    // What cannot be compressed gets longer; it is judged by what it inflates to.
                    let longer = match &event {
                        Event::Deflated { .. } => limits.message_bytes_max / 7 + 64,
                        _ => 0,
                    };
                    let payload_bytes = match &event {
                        Event::Text(text) => {
                            assert!(std::str::from_utf8(text).is_ok(), "a text that is not UTF-8");
                            text.len()
                        }
                        Event::Binary(payload) => payload.len(),
                        Event::Deflated { payload, .. } => {
                            assert_eq!(limits.extensions, Extensions::DEFLATE, "compressed, and nobody agreed to that");
                            let outcome = inflater.inflate(payload, true, &bounds, &mut inflated);
                            events.push(format!("{outcome:?} {inflated:?}"));
                            payload.len()
                        }
                        _ => 0,
                    };
                    assert!(payload_bytes <= limits.message_bytes_max + longer);
                    events.push(format!("{event:?}"));
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(matches!(error.close_code(), 1002 | 1007 | 1009), "{error}");
                    events.push(error.to_string());
                }
            }
        }
        assert!(input.is_empty(), "None means that all input is consumed");
        let received = stream.len() - rest.len();
        assert!(decoder.held_bytes() <= 2 * received + HELD_MORE, "{} held of {received}", decoder.held_bytes());
    }
    (events, decoder.is_idle())
}

/// This bit of the first byte: compression was agreed on.
const DEFLATES: u8 = 0x40;
/// Streams of so many bytes are cut at every place.
const EVERY_CUT: usize = 64;
/// The small constant of [`Decoder::held_bytes`].
const HELD_MORE: usize = 512;
