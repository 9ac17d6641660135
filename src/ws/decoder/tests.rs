//! Streams of frames and what comes out of them, however they are cut.

use proptest::prelude::*;

use super::*;

/// A client's frame: first byte as given, length in its shortest form, masked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first];
    match payload.len() {
        bytes @ ..=125 => frame.push(0x80 | bytes as u8),
        bytes @ ..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(bytes as u16).to_be_bytes());
        }
        bytes => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

fn show(event: Event<'_>) -> String {
    let text = String::from_utf8_lossy;
    match event {
        Event::Text(payload) => format!("Text({})", str::from_utf8(payload).expect("validated")),
        Event::Binary(payload) => format!("Binary({})", text(payload)),
        Event::Deflated { opcode, payload } => format!("Deflated {opcode:?}({payload:02x?})"),
        Event::Ping(payload) => format!("Ping({})", text(payload)),
        Event::Pong(payload) => format!("Pong({})", text(payload)),
        Event::Close(None) => "Close".to_owned(),
        Event::Close(Some(Close { code, reason })) => format!("Close({code} {reason})"),
    }
}

fn plain(message_bytes_max: usize) -> Limits {
    Limits { message_bytes_max, extensions: Extensions::NONE }
}

/// Decodes `stream` in the pieces that `cuts` makes of it; an error ends the list.
fn decode(decoder: &mut Decoder, stream: &[u8], cuts: &[usize], limits: Limits) -> String {
    decode_in(None, decoder, stream, cuts, limits)
}

/// The same, in memory of other messages.
fn decode_in(
    mut memory: Option<&mut Memory>,
    decoder: &mut Decoder,
    stream: &[u8],
    cuts: &[usize],
    limits: Limits,
) -> String {
    let (mut events, mut from) = (Vec::new(), 0);
    for &to in cuts.iter().chain([&stream.len()]) {
        let mut piece = stream[from..to].to_vec();
        let mut input = Input { memory: memory.as_deref_mut(), ..Input::new(&mut piece) };
        from = to;
        loop {
            match decoder.next(&mut input, &limits) {
                Ok(Some(event)) => events.push(show(event)),
                Ok(None) => break,
                Err(error) => events.push(format!("{} {error}", error.close_code())),
            }
        }
        assert!(input.is_empty(), "None means that all input is consumed");
    }
    events.join(", ")
}

/// `frames` give `expected`, in one piece, in any two, and byte by byte; and nothing is held at the end of it unless
/// the stream has ended.
#[track_caller]
fn check(frames: &[Vec<u8>], expected: &str) {
    check_with(Extensions::NONE, frames, expected);
}

#[track_caller]
fn check_with(extensions: Extensions, frames: &[Vec<u8>], expected: &str) {
    let stream = frames.concat();
    let every_byte: Vec<usize> = (1..stream.len()).collect();
    let two_pieces = (0..stream.len()).map(|cut| vec![cut]);
    for cuts in two_pieces.chain([vec![], every_byte]) {
        let mut decoder = Decoder::default();
        assert_eq!(
            decode(&mut decoder, &stream, &cuts, Limits { message_bytes_max: LIMIT, extensions }),
            expected,
            "cuts {cuts:?}"
        );
        let ended = expected.contains("Close") || expected.contains("100");
        assert_eq!((decoder.is_idle(), decoder.held_bytes() == 0), (!ended, !ended), "cuts {cuts:?}");
    }
}

#[test]
fn whole_messages() {
    check(&[frame(0x81, b"hello")], "Text(hello)");
    check(&[frame(0x81, b"")], "Text()");
    check(&[frame(0x82, &[b'x'; 126])], &format!("Binary({})", "x".repeat(126)));
    check(&[frame(0x81, "κόσμε🌊".as_bytes()), frame(0x82, b"b")], "Text(κόσμε🌊), Binary(b)");
    check(&[frame(0x89, b"are you"), frame(0x8a, b"")], "Ping(are you), Pong()");
    check(&[frame(0x89, &[b'p'; 125])], &format!("Ping({})", "p".repeat(125)));
}

#[test]
fn fragmented_messages() {
    check(&[frame(0x01, b"a"), frame(0x00, b"b"), frame(0x80, b"c")], "Text(abc)");
    check(&[frame(0x02, b"a"), frame(0x80, b"")], "Binary(a)");
    check(&[frame(0x01, b""), frame(0x00, b""), frame(0x80, b"")], "Text()");
    check(&[frame(0x01, b"a"), frame(0x80, b"b"), frame(0x81, b"c")], "Text(ab), Text(c)");
    check(&[frame(0x01, b"\xce"), frame(0x00, b"\xba\xf0\x9f"), frame(0x80, b"\x8c\x8a")], "Text(κ🌊)");
}

#[test]
fn control_frames_between_fragments() {
    check(&[frame(0x01, b"a"), frame(0x89, b"p"), frame(0x80, b"b")], "Ping(p), Text(ab)");
    check(
        &[frame(0x02, b"a"), frame(0x89, b"1"), frame(0x00, b"b"), frame(0x8a, b"2"), frame(0x80, b"c")],
        "Ping(1), Pong(2), Binary(abc)",
    );
    check(&[frame(0x01, b"a"), frame(0x88, b"\x03\xe8bye"), frame(0x80, b"b")], "Close(1000 bye)");
}

#[test]
fn compressed_messages() {
    let check = |frames: &[Vec<u8>], expected| check_with(Extensions::DEFLATE, frames, expected);
    check(&[frame(0xc1, b"\xf2\x48"), frame(0x81, b"plain")], "Deflated Text([f2, 48]), Text(plain)");
    check(&[frame(0xc2, b"")], "Deflated Binary([])");
    check(&[frame(0x41, b"\xf2"), frame(0x89, b"p"), frame(0x80, b"\xff")], "Ping(p), Deflated Text([f2, ff])");
    check(&[frame(0x41, b"a"), frame(0xc0, b"b")], "1002 reserved bits 0b100 set without an extension");
    check(&[frame(0xc9, b"")], "1002 reserved bits 0b100 set without an extension");
    check(&[frame(0xe1, b"")], "1002 reserved bits 0b110 set without an extension");
    check_with(Extensions::NONE, &[frame(0xc1, b"a")], "1002 reserved bits 0b100 set without an extension");
}

/// What cannot be compressed gets longer, and whoever compresses it does not know by how much.
#[test]
fn a_compressed_form_may_be_longer_than_its_message() {
    #[track_caller]
    fn check(sizes: &[usize], expected: Result<usize, u16>) {
        let limits = Limits { message_bytes_max: 7_000, extensions: Extensions::DEFLATE };
        let last = sizes.len() - 1;
        let frames = sizes.iter().enumerate().map(|(index, &size)| {
            let fin = if index == last { 0x80 } else { 0 };
            frame(fin | if index == 0 { 0x42 } else { 0 }, &vec![7; size])
        });
        let (mut stream, mut decoder) = (frames.collect::<Vec<_>>().concat(), Decoder::default());
        let got = match decoder.next(&mut Input::new(&mut stream), &limits) {
            Ok(Some(Event::Deflated { payload, .. })) => Ok(payload.len()),
            Ok(event) => panic!("{event:?}"),
            Err(error) => Err(error.close_code()),
        };
        assert_eq!(got, expected, "{sizes:?}");
    }
    check(&[7_001], Ok(7_001));
    check(&[8_064], Ok(8_064)); // a seventh, and 64
    check(&[4_000, 0, 4_064], Ok(8_064));
    check(&[8_065], Err(1009));
    check(&[8_064, 1], Err(1009));
}

#[test]
fn closes() {
    check(&[frame(0x88, b"")], "Close");
    check(&[frame(0x88, b"\x03\xe8")], "Close(1000 )");
    check(&[frame(0x88, b"\x0f\xa1idle"), frame(0x81, b"ignored")], "Close(4001 idle)");
    check(&[frame(0x88, b"\x03\xf6")], "Close(1014 )");
    check(&[frame(0x88, b"\x03")], "1002 close frame with half a code");
    check(&[frame(0x88, b"\x03\xee")], "1002 close code 1006 may not be sent");
    check(&[frame(0x88, b"\x00\x00")], "1002 close code 0 may not be sent");
    check(&[frame(0x88, b"\x03\xe8\xff")], "1007 close reason is not UTF-8");
    let mut ended = Decoder::ended();
    assert_eq!(
        (decode(&mut ended, &frame(0x81, b"ignored"), &[3], plain(LIMIT)), ended.is_idle()),
        (String::new(), false)
    );
}

#[test]
fn broken_frames() {
    check(&[frame(0xc1, b"a")], "1002 reserved bits 0b100 set without an extension");
    check(&[frame(0x83, b"a")], "1002 reserved opcode 3");
    check(&[frame(0x8b, b"")], "1002 reserved opcode 11");
    check(&[b"\x81\x01a".to_vec()], "1002 frame without a mask");
    check(&[frame(0x09, b"")], "1002 fragmented control frame");
    check(&[frame(0x89, &[0; 126])], "1002 control frame of more than 125 bytes");
    check(&[b"\x82\xfe\x00\x05keyshello".to_vec()], "1002 length 5 not in its shortest form");
    check(&[b"\x82\xff\x80\0\0\0\0\0\0\0keys".to_vec()], "1002 length with its top bit set");
    check(&[frame(0x80, b"a")], "1002 continuation without a message to continue");
    check(&[frame(0x00, b"a")], "1002 continuation without a message to continue");
    check(&[frame(0x01, b"a"), frame(0x81, b"b")], "1002 new message inside a fragmented one");
    check(&[frame(0x81, b"a"), frame(0x80, b"b")], "Text(a), 1002 continuation without a message to continue");
}

#[test]
fn broken_text() {
    let not_utf8 = "1007 text is not UTF-8";
    check(&[frame(0x81, b"a\xff")], not_utf8);
    check(&[frame(0x81, b"a\xce")], not_utf8);
    check(&[frame(0x81, b"\xed\xa0\x80")], not_utf8);
    check(&[frame(0x01, b"a\xce"), frame(0x80, b"")], not_utf8);
    check(&[frame(0x01, b"a\xce"), frame(0x80, b"b")], not_utf8);
}

#[test]
fn messages_over_the_limit() {
    check(&[frame(0x82, &[b'x'; LIMIT])], &format!("Binary({})", "x".repeat(LIMIT)));
    check(&[frame(0x82, &[b'x'; LIMIT + 1])], "1009 message of 301 bytes or more, limit 300");
    check(&[frame(0x02, &[0; 200]), frame(0x80, &[0; 101])], "1009 message of 301 bytes or more, limit 300");
    check(
        &[frame(0x02, &[0; 300]), frame(0x00, b""), frame(0x00, b"x")],
        "1009 message of 301 bytes or more, limit 300",
    );
}

/// The verdict on `stream`, which is cut off, is there before the frame is.
#[track_caller]
fn check_early(stream: &[u8], expected: &str) {
    assert_eq!(decode(&mut Decoder::default(), stream, &[], plain(LIMIT)), expected);
}

#[test]
fn verdicts_do_not_wait() {
    check_early(b"\xc1\x80", "1002 reserved bits 0b100 set without an extension");
    check_early(b"\x82\xff\0\0\0\x7f\0\0\0\0keys", "1009 message of 545460846592 bytes or more, limit 300");
    check_early(&frame(0x80, &[0; 99])[..6], "1002 continuation without a message to continue");
    check_early(&frame(0x81, b"ab\xf4\x90\x80\x80cd")[..6 + 4], "1007 text is not UTF-8");
    check_early(&frame(0x81, b"ab\xf4\x90\x80\x80cd")[..6 + 3], "");
    check_early(&frame(0x01, b"\xf4\x90"), "1007 text is not UTF-8");
}

#[test]
fn a_whole_message_is_lent_in_place_and_one_in_pieces_is_given_back() {
    let limits = plain(LIMIT);
    let mut whole = frame(0x81, b"hello");
    let place = whole[6..].as_ptr();
    let mut decoder = Decoder::default();
    let mut input = Input::new(&mut whole);
    assert!(matches!(decoder.next(&mut input, &limits), Ok(Some(Event::Text(text))) if text.as_ptr() == place));
    assert!(decoder.is_idle());

    // The header alone was cut: it is kept, the payload is lent.
    let mut cut = frame(0x81, b"hello");
    let (head, tail) = cut.split_at_mut(3);
    let place = tail[3..].as_ptr();
    assert_eq!(decoder.next(&mut Input::new(head), &limits), Ok(None));
    assert!(!decoder.is_idle());
    let mut input = Input::new(tail);
    assert!(matches!(decoder.next(&mut input, &limits), Ok(Some(Event::Text(text))) if text.as_ptr() == place));
    assert!(decoder.is_idle());

    let mut cut = frame(0x81, b"hello");
    let (head, tail) = cut.split_at_mut(8);
    assert_eq!(decoder.next(&mut Input::new(head), &limits), Ok(None));
    assert_eq!(decoder.next(&mut Input::new(tail), &limits), Ok(Some(Event::Text(&mut b"hello".to_owned()))));
    assert!(decoder.held_bytes() > 0);
    decoder.settle();
    assert_eq!((decoder.held_bytes(), decoder.is_idle()), (0, true));
}

#[test]
fn what_a_message_was_gathered_in_serves_the_next() {
    let (limits, mut memory, mut decoder) = (plain(LIMIT), Memory::default(), Decoder::default());
    for _ in 0..2 {
        let mut message = frame(0x81, &[b'x'; 200]);
        let (head, tail) = message.split_at_mut(150);
        assert_eq!(decoder.next(&mut Input::with_memory(head, &mut memory), &limits), Ok(None));
        assert_eq!(memory.bytes(), 0, "all of it is in use");
        let mut input = Input::with_memory(tail, &mut memory);
        assert!(matches!(decoder.next(&mut input, &limits), Ok(Some(Event::Text(text))) if text.len() == 200));
        assert_eq!(decoder.next(&mut input, &limits), Ok(None));
        assert_eq!(input.short_fragments(), 0);
        assert_eq!(memory.bytes(), size_of::<Partial>() + 200);
    }
}

#[test]
fn fragments_that_hardly_bring_their_message_forward_are_counted() {
    #[track_caller]
    fn check(frames: &[Vec<u8>], expected: u32) {
        let (mut stream, mut decoder) = (frames.concat(), Decoder::default());
        let mut input = Input::new(&mut stream);
        while let Ok(Some(_)) = decoder.next(&mut input, &plain(LIMIT)) {}
        assert_eq!((input.short_fragments(), input.is_empty()), (expected, true));
    }
    check(&[frame(0x81, b"a"), frame(0x89, b"p")], 0);
    check(&[frame(0x01, b""), frame(0x89, b"p"), frame(0x00, &[b'a'; 125]), frame(0x80, b"c")], 2);
    check(&[frame(0x02, &[0; 126]), frame(0x00, b"a"), frame(0x80, b"")], 1);
}

/// A megabyte in one-byte fragments, each followed by an empty one: one buffer, grown in a few steps, never larger than
/// twice what came or than a message may be.
#[test]
fn tiny_fragments_cost_one_growing_buffer() {
    const MESSAGE_BYTES: usize = 1_000_000;
    let limits = plain(MESSAGE_BYTES);
    let mut decoder = Decoder::default();
    let (mut growths, mut held) = (0, 0);
    for received in 1..=MESSAGE_BYTES {
        let is_last = received == MESSAGE_BYTES;
        let mut fragment =
            [frame(u8::from(received == 1), b"x"), frame(if is_last { 0x80 } else { 0x00 }, b"")].concat();
        let mut input = Input::new(&mut fragment);
        match decoder.next(&mut input, &limits) {
            Ok(None) => assert!(!is_last),
            Ok(Some(Event::Text(text))) => assert!(is_last && text.len() == MESSAGE_BYTES),
            other => panic!("{other:?}"),
        }
        if decoder.held_bytes() != held {
            growths += 1;
            held = decoder.held_bytes();
            assert!(held <= (2 * received).min(MESSAGE_BYTES) + SMALL, "{held} bytes for {received}");
        }
    }
    assert!(growths <= 16, "{growths}");
    decoder.settle();
    assert!(decoder.is_idle());
}

proptest! {
    /// Whatever comes: no panic, memory follows the bytes received, and how they were cut changes nothing.
    #[test]
    fn any_bytes(stream in noise(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Decoder::default();
        let events = decode(&mut pieces, &stream, &cuts, plain(1000));
        prop_assert!(pieces.held_bytes() <= 2 * stream.len() + SMALL, "{} of {}", pieces.held_bytes(), stream.len());
        let mut whole = Decoder::default();
        prop_assert_eq!(&events, &decode(&mut whole, &stream, &[], plain(1000)));
        prop_assert_eq!(pieces.is_idle(), whole.is_idle());
        // Nor does what others have left behind.
        let mut memory = Memory::default();
        for _ in 0..2 {
            let mut another = Decoder::default();
            let again = decode_in(Some(&mut memory), &mut another, &stream, &cuts, plain(1000));
            prop_assert_eq!(&events, &again);
            prop_assert!(another.held_bytes() <= 2 * stream.len() + SMALL, "{} of {}", another.held_bytes(), stream.len());
            prop_assert_eq!(pieces.is_idle(), another.is_idle());
            another.settle_into(Some(&mut memory));
        }
    }
}

/// Bytes that look enough like frames to get past the first header.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let first = prop::sample::select(&[0x01, 0x02, 0x00, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8a][..]);
    let payload = prop_oneof![
        "\\PC{0,40}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..300),
        Just(Vec::new()),
    ];
    let piece = prop_oneof![
        8 => (first, payload).prop_map(|(first, payload)| frame(first, &payload)),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

const LIMIT: usize = 300;
/// What may be held beside the message itself.
const SMALL: usize = size_of::<Partial>() + CAPACITY_MIN;
