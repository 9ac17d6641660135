//! tungstenite as the oracle: the same bytes must give the same messages and the same verdict (close code).
//!
//! # Justified differences
//! Each line is a case of [`justified_differences`]; everything else must agree.
//!
//! | what the client sends | here | tungstenite 0.30 | why |
//! |---|---|---|---|
//! | close code 1014 | accepted | 1002 | registered with IANA like 1012 and 1013 |
//! | a length in a longer form than needed | 1002 | accepted | RFC 6455 §5.2: the minimal number of bytes MUST be used |
//! | a 64-bit length with its top bit set | 1002 | 1009 | §5.2: it MUST be 0, so the frame is broken, not large |
//! | a frame that is broken and too large | 1002 | 1009 | the header is judged before its length is compared |
//! | a control frame of more bytes than a message may have | 1002 | 1009 | §5.5: broken whatever the limit |
//! | a broken header whose payload is still to come | the verdict | waits for the payload | a verdict does not wait for what cannot change it |
//! | text in a cut frame that no further byte can make valid | 1007 | waits for the frame | Autobahn 6.4: fail fast |
//!
//! A close code that may not be sent is 1002 in both; tungstenite tells it as a close event with that code.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;

use proptest::prelude::*;
use tidewheel::ws::{self, Decoder, Event, Extensions, Input, Limits, Opcode};
use tungstenite::protocol::{Message, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, HandshakeError};

/// A message, independent of who decoded it.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// What a stream came to.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Open,
    Closed,
    Failed(u16),
}

/// What the decoder makes of `stream`, cut at `cuts`.
fn ours(stream: &[u8], cuts: &[usize]) -> (Vec<Said>, Verdict) {
    let (mut decoder, limits) = (Decoder::default(), Limits { message_bytes_max: LIMIT, extensions: Extensions::NONE });
    let (mut said, mut from) = (Vec::new(), 0);
    for &to in cuts.iter().chain([&stream.len()]) {
        let mut piece = stream[from..to].to_vec();
        let mut input = Input::new(&mut piece);
        loop {
            match decoder.next(&mut input, &limits) {
                Ok(None) => break,
                Ok(Some(Event::Text(payload))) => said.push(Said::Text(payload.to_vec())),
                Ok(Some(Event::Binary(payload))) => said.push(Said::Binary(payload.to_vec())),
                Ok(Some(Event::Deflated { .. })) => unreachable!("compression was not agreed on"),
                Ok(Some(Event::Ping(payload))) => said.push(Said::Ping(payload.to_vec())),
                Ok(Some(Event::Pong(payload))) => said.push(Said::Pong(payload.to_vec())),
                Ok(Some(Event::Close(close))) => {
                    said.push(Said::Close(close.map(|close| (close.code, close.reason.to_owned()))));
                    return (said, Verdict::Closed);
                }
                Err(error) => return (said, Verdict::Failed(error.close_code())),
            }
        }
        from = to;
    }
    (said, Verdict::Open)
}

/// What tungstenite makes of `stream`.
fn theirs(stream: &[u8], role: Role) -> (Vec<Said>, Verdict) {
    let config = WebSocketConfig::default().max_message_size(Some(LIMIT)).max_frame_size(Some(LIMIT));
    let mut context = WebSocketContext::new(role, Some(config));
    let mut stream = Received(stream);
    let mut said = Vec::new();
    let verdict = loop {
        match context.read(&mut stream) {
            Ok(Message::Text(payload)) => said.push(Said::Text(payload.as_bytes().to_vec())),
            Ok(Message::Binary(payload)) => said.push(Said::Binary(payload.to_vec())),
            Ok(Message::Ping(payload)) => said.push(Said::Ping(payload.to_vec())),
            Ok(Message::Pong(payload)) => said.push(Said::Pong(payload.to_vec())),
            Ok(Message::Close(Some(close))) if close.reason == "Protocol violation" => break Verdict::Failed(1002),
            Ok(Message::Close(close)) => {
                said.push(Said::Close(close.map(|close| (close.code.into(), close.reason.to_string()))));
                break Verdict::Closed;
            }
            Ok(Message::Frame(frame)) => panic!("{frame:?}"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break Verdict::Open,
            Err(Error::Protocol(_)) => break Verdict::Failed(1002),
            Err(Error::Utf8(_)) => break Verdict::Failed(1007),
            Err(Error::Capacity(_)) => break Verdict::Failed(1009),
            Err(error) => panic!("{error:?}"),
        }
    };
    (said, verdict)
}

/// A stream whose peer has sent so much and waits; what is written to it goes nowhere.
struct Received<'a>(&'a [u8]);

impl Read for Received<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { self.0.read(buffer) }
    }
}

impl Write for Received<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's frame as generated.
#[derive(Clone, Debug)]
struct Frame {
    first: u8,
    key: Option<[u8; 4]>,
    payload: Vec<u8>,
}

impl Frame {
    fn encode(&self) -> Vec<u8> {
        let masked = if self.key.is_some() { 0x80 } else { 0 };
        let mut frame = vec![self.first];
        match self.payload.len() {
            bytes @ ..=125 => frame.push(masked | bytes as u8),
            bytes => {
                frame.push(masked | 126);
                frame.extend_from_slice(&u16::try_from(bytes).expect("short frames").to_be_bytes());
            }
        }
        frame.extend_from_slice(self.key.as_ref().map_or(&[], |key| &key[..]));
        let key = self.key.unwrap_or_default();
        frame.extend(self.payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }
}

/// Whether one of `frames` is a justified difference: broken, by itself or by its place among the others, and too large
/// as well; or a close with code 1014.
fn are_judged_differently(frames: &[Frame]) -> bool {
    let mut in_message = false;
    frames.iter().any(|frame| {
        let (opcode, is_large) = (frame.first & 0x0f, frame.payload.len() > LIMIT);
        let is_broken = frame.first & 0x70 != 0 || frame.key.is_none() || opcode > 2;
        let is_out_of_order = opcode < 8 && in_message != (opcode == 0);
        if opcode < 8 {
            in_message = frame.first & 0x80 == 0;
        }
        (is_large && (is_broken || is_out_of_order)) || (opcode == 8 && frame.payload.starts_with(b"\x03\xf6"))
    })
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "\\PC{0,60}".prop_map(String::into_bytes),
        1 => "[a-z]{0,300}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 1..8),
    ]
}

fn close_payload() -> impl Strategy<Value = Vec<u8>> {
    let code = prop_oneof![4 => 1000..1014_u16, 2 => 3000..5000_u16, 2 => 1015..1020_u16, 2 => any::<u16>()];
    prop_oneof![
        1 => Just(Vec::new()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
        8 => (code, "\\PC{0,20}")
            .prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
        1 => Just(b"\x03\xe8\xce".to_vec()),
    ]
}

/// A message: cut into fragments anywhere, within characters too, with control frames between them.
fn message() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let opcode = prop::sample::select(&[1_u8, 2][..]);
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    let control = (prop::sample::select(&[0x89_u8, 0x8a][..]), prop::collection::vec(any::<u8>(), 0..20));
    (opcode, text(), cuts, prop::collection::vec(prop::option::weighted(0.3, control), 4)).prop_map(
        |(opcode, payload, cuts, controls)| {
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
            ends.sort_unstable();
            ends.push(payload.len());
            let (mut frames, mut from, last) = (Vec::new(), 0, ends.len() - 1);
            for (index, &to) in ends.iter().enumerate() {
                let fin = if index == last { 0x80 } else { 0 };
                frames.push((fin | if index == 0 { opcode } else { 0 }, payload[from..to].to_vec()));
                frames.extend(controls[index.min(3)].clone().filter(|_| index < last));
                from = to;
            }
            frames
        },
    )
}

/// Frames of a client that mostly keeps the rules.
fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let control = (prop::sample::select(&[0x89_u8, 0x8a][..]), prop::collection::vec(any::<u8>(), 0..125));
    let broken = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..140));
    let piece = prop_oneof![
        12 => message(),
        3 => control.prop_map(|frame| vec![frame]),
        1 => close_payload().prop_map(|payload| vec![(0x88, payload)]),
        1 => broken.prop_map(|frame| vec![frame]),
    ];
    let key = prop::option::weighted(0.995, any::<[u8; 4]>());
    (prop::collection::vec(piece, 0..8), prop::collection::vec(key, 64))
        .prop_map(|(pieces, keys)| {
            let keys = keys.into_iter().cycle();
            pieces
                .concat()
                .into_iter()
                .zip(keys)
                .map(|((first, payload), key)| Frame { first, key, payload })
                .collect::<Vec<_>>()
        })
        .prop_filter("a justified difference", |frames| !are_judged_differently(frames))
}

fn stream(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(Frame::encode).collect()
}

fn cuts(bytes: usize, cuts: &[prop::sample::Index]) -> Vec<usize> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes + 1)).collect();
    cuts.sort_unstable();
    cuts
}

proptest! {
    /// Whole frames: same messages, same verdict.
    #[test]
    fn same_messages_and_verdict(frames in frames(), at in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let stream = stream(&frames);
        prop_assert_eq!(ours(&stream, &cuts(stream.len(), &at)), theirs(&stream, Role::Server));
    }

    /// Cut off anywhere: same messages, and a verdict that is tungstenite's or what tungstenite will say once it has
    /// seen the rest.
    #[test]
    fn an_early_verdict_is_the_right_one(
        frames in frames(),
        end in any::<prop::sample::Index>(),
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let stream = stream(&frames);
        let (cut, _) = stream.split_at(end.index(stream.len() + 1));
        let (ours_said, ours_verdict) = ours(cut, &cuts(cut.len(), &at));
        let (theirs_said, theirs_verdict) = theirs(cut, Role::Server);
        prop_assert_eq!(ours_said, theirs_said);
        if ours_verdict != theirs_verdict {
            prop_assert_eq!((theirs_verdict, ours_verdict), (Verdict::Open, theirs(&stream, Role::Server).1));
        }
    }

    /// What the encoder writes, tungstenite's client reads.
    #[test]
    fn the_encoder_is_understood(
        messages in prop::collection::vec((prop::sample::select(&OPCODES[..]), "\\PC{0,40}|[a-z]{100,200}", any::<bool>()), 0..8),
        close in prop::option::of((prop::sample::select(&[1000_u16, 1012, 4001, 4999][..]), "\\PC{0,80}")),
    ) {
        let (mut out, mut expected) = (Vec::new(), Vec::new());
        for (opcode, text, by_parts) in messages {
            let bytes = &text.as_bytes()[..if opcode.is_control() { text.len().min(125) } else { text.len() }];
            if by_parts {
                let mark = ws::begin(&mut out);
                out.extend_from_slice(bytes);
                ws::finish(&mut out, mark, opcode);
            } else {
                ws::frame(&mut out, opcode, bytes);
            }
            expected.push(match opcode {
                Opcode::Text => Said::Text(bytes.to_vec()),
                Opcode::Binary => Said::Binary(bytes.to_vec()),
                Opcode::Ping => Said::Ping(bytes.to_vec()),
                _ => Said::Pong(bytes.to_vec()),
            });
        }
        let verdict = if close.is_some() { Verdict::Closed } else { Verdict::Open };
        if let Some((code, reason)) = close {
            ws::close(&mut out, code, &reason);
            expected.push(Said::Close(Some((code, reason[..reason.floor_char_boundary(123)].to_owned()))));
        }
        prop_assert_eq!(theirs(&out, Role::Client), (expected, verdict));
    }
}

/// A case of the table on top: what both say to `bytes`.
#[track_caller]
fn check_difference(bytes: &[u8], ours_verdict: Verdict, theirs_verdict: Verdict) {
    assert_eq!((ours(bytes, &[]).1, theirs(bytes, Role::Server).1), (ours_verdict, theirs_verdict));
}

#[test]
fn justified_differences() {
    use Verdict::{Closed, Failed, Open};
    let too_large = |first: u8| Frame { first, key: Some([0; 4]), payload: vec![b'x'; LIMIT + 1] }.encode();
    check_difference(b"\x88\x82\0\0\0\0\x03\xf6", Closed, Failed(1002));
    check_difference(b"\x81\xfe\0\x01\0\0\0\0a", Failed(1002), Open);
    check_difference(b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0", Failed(1002), Failed(1009));
    check_difference(&too_large(0xc1), Failed(1002), Failed(1009));
    check_difference(&too_large(0x80), Failed(1002), Failed(1009));
    check_difference(&too_large(0x89), Failed(1002), Failed(1009));
    check_difference(b"\xc1\x85\0\0\0\0a", Failed(1002), Open);
    check_difference(b"\x81\x85\0\0\0\0\xf4\x90", Failed(1007), Open);
}

/// Two ends of a connection in memory, the client's view.
#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<(Vec<u8>, Vec<u8>)>>);

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let answer = &mut self.0.borrow_mut().1;
        if answer.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = answer.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&answer[..bytes]);
        answer.drain(..bytes);
        Ok(bytes)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// tungstenite's client shakes hands with us, its subprotocol is chosen, and the first frames are read by both.
#[test]
fn handshake_with_tungstenites_client() {
    use tungstenite::client::IntoClientRequest;

    let pipe = Pipe::default();
    let mut request = "ws://host:8080/ws?a=b".into_client_request().expect("a URI");
    request.headers_mut().insert("Sec-WebSocket-Protocol", "other, tidewheel.v1".parse().expect("a value"));
    let Err(HandshakeError::Interrupted(waiting)) = tungstenite::client::client(request, pipe.clone()) else {
        panic!("the client waits for an answer");
    };

    let sent = std::mem::take(&mut pipe.0.borrow_mut().0);
    let limits = ws::HandshakeLimits { header_bytes_max: 8192 };
    let Ok(ws::Progress::Complete { request, head_bytes }) = ws::parse_request(&sent, 0, &limits) else {
        panic!("{}", String::from_utf8_lossy(&sent));
    };
    assert_eq!((request.path, request.query, request.host, head_bytes), ("/ws", Some("a=b"), "host:8080", sent.len()));
    let mut answer = Vec::new();
    ws::accept(&mut answer, &request, request.protocols().find(|&name| name == "tidewheel.v1"), None);
    ws::frame(&mut answer, Opcode::Text, b"welcome");
    pipe.0.borrow_mut().1 = answer;

    let (mut client, response) = waiting.handshake().expect("an answer the client accepts");
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "tidewheel.v1");
    assert_eq!(client.read().expect("a message"), Message::text("welcome"));
    client.send(Message::text("hello")).expect("sent");
    let sent = std::mem::take(&mut pipe.0.borrow_mut().0);
    assert_eq!(ours(&sent, &[3]), (vec![Said::Text(b"hello".to_vec())], Verdict::Open));
}

const OPCODES: [Opcode; 4] = [Opcode::Text, Opcode::Binary, Opcode::Ping, Opcode::Pong];
/// Largest message and frame in bytes, for both.
const LIMIT: usize = 200;
