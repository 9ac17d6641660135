//! The frame decoder: a stream gives the same however it is cut, and memory follows what was received.

use tidewheel::ws::deflate::{InflateLimits, Inflater};
use tidewheel::ws::{Decoder, Event, Extensions, Input, Limits, Opcode, ProtocolError};

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
    inflate(&whole.0, &limits);
    assert_eq!(decode(stream, std::iter::repeat(1), &limits), whole, "byte by byte");
    assert_eq!(decode(stream, sizes.into_iter().cycle(), &limits), whole, "in pieces of {sizes:?}");
    if stream.len() <= EVERY_CUT {
        for cut in 1..stream.len() {
            assert_eq!(decode(stream, [cut, stream.len()].into_iter().cycle(), &limits), whole, "cut at {cut}");
        }
    }
}

/// What came out of a stream.
#[derive(Debug, PartialEq)]
enum Seen {
    Message(Opcode, Vec<u8>),
    Deflated(Opcode, Vec<u8>),
    Close(Option<(u16, String)>),
    Error(ProtocolError),
}

/// What comes out of the stream in pieces of these sizes, and whether nothing is held at the end.
fn decode(stream: &[u8], mut sizes: impl Iterator<Item = usize>, limits: &Limits) -> (Vec<Seen>, bool) {
    let (mut decoder, mut seen, mut rest) = (Decoder::default(), Vec::new(), stream);
    let mut received = Vec::new();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().expect("it never ends").min(rest.len()));
        rest = after;
        received.clear();
        received.extend_from_slice(piece);
        let mut input = Input::new(&mut received);
        loop {
            match decoder.next(&mut input, limits) {
                Ok(Some(event)) => seen.push(match event {
                    Event::Text(text) => {
                        assert!(std::str::from_utf8(text).is_ok(), "a text that is not UTF-8");
                        assert!(text.len() <= limits.message_bytes_max);
                        Seen::Message(Opcode::Text, text.to_vec())
                    }
                    Event::Binary(payload) => {
                        assert!(payload.len() <= limits.message_bytes_max);
                        Seen::Message(Opcode::Binary, payload.to_vec())
                    }
                    Event::Deflated { opcode, payload } => {
                        assert_eq!(limits.extensions, Extensions::DEFLATE, "compressed, and nobody agreed to that");
                        // What cannot be compressed gets longer; it is judged by what it inflates to.
                        assert!(payload.len() <= limits.message_bytes_max + limits.message_bytes_max / 7 + 64);
                        Seen::Deflated(opcode, payload.to_vec())
                    }
                    Event::Ping(payload) => Seen::Message(Opcode::Ping, payload.to_vec()),
                    Event::Pong(payload) => Seen::Message(Opcode::Pong, payload.to_vec()),
                    Event::Close(close) => Seen::Close(close.map(|close| (close.code, close.reason.to_owned()))),
                }),
                Ok(None) => break,
                Err(error) => {
                    assert!(matches!(error.close_code(), 1002 | 1007 | 1009), "{error}");
                    seen.push(Seen::Error(error));
                }
            }
        }
        assert!(input.is_empty(), "None means that all input is consumed");
        let arrived = stream.len() - rest.len();
        assert!(decoder.held_bytes() <= 2 * arrived + HELD_MORE, "{} held of {arrived}", decoder.held_bytes());
    }
    (seen, decoder.is_idle())
}

/// What is compressed becomes a message within its bound, or an error.
fn inflate(seen: &[Seen], limits: &Limits) {
    let bounds = InflateLimits { message_bytes_max: limits.message_bytes_max, ratio_max: 200 };
    let (mut inflater, mut message) = (Inflater::default(), Vec::new());
    for event in seen {
        let Seen::Deflated(_, payload) = event else { continue };
        match inflater.inflate(payload, true, &bounds, &mut message) {
            Ok(()) => assert!(message.len() <= limits.message_bytes_max),
            Err(error) => assert!(matches!(error.close_code(), 1002 | 1007 | 1009), "{error}"),
        }
    }
}

/// This bit of the first byte: compression was agreed on.
const DEFLATES: u8 = 0x40;
/// Streams of so many bytes are cut at every place.
const EVERY_CUT: usize = 64;
/// The small constant of [`Decoder::held_bytes`].
const HELD_MORE: usize = 512;
