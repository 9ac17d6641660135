//! The JSON of this server, as far as the load generator speaks it.
//! Law: what is measured is read without an allocation, and compared from its first byte to its last; what is not is parsed as
//! JSON.

use serde::Deserialize;

use super::lanes::Lanes;
use crate::id::ConnKey;
use crate::ws::Opcode;

/// What a server has said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A published message, as this run made it.
    Message(Message),
    /// What a request came to, with how many were subscribed and on how many queues a publish is.
    Ack(Receipt),
    /// A request failed.
    Refused(String),
    /// Something else, of which nothing follows here.
    Other,
    /// A published message that nobody of this run made, or that was changed.
    Changed,
}

/// What a publisher has put into a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Who published it.
    pub(super) publisher: u32,
    /// The how-manieth of this publisher in this topic, from 1.
    pub(super) number: u32,
    /// When it was to leave, on the clock of this process.
    pub(super) due_ns: u64,
}

/// What messages a client may get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    /// The topic it is subscribed to.
    pub(super) topic: &'a str,
    /// What [`publish`] was told for each of them.
    pub(super) data_bytes: usize,
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Receipt {
    #[serde(default)]
    pub(super) queued: u64,
    #[serde(default)]
    pub(super) dropped: u64,
}

/// A client is connected: subscribes it to its topic, and it is ready with the ack; without a topic it is ready now, and this
/// says what [`Lanes::ready`] does.
pub(super) fn join<C: Default>(lanes: &mut Lanes<C>, conn: ConnKey, topic: Option<&str>) -> Option<u64> {
    let Some(topic) = topic else { return lanes.ready(conn) };
    lanes.send(conn, Opcode::Text, subscribe(topic).as_bytes());
    None
}

fn subscribe(topic: &str) -> String {
    format!(r#"{{"id":1,"type":"subscribe","payload":{{"topic":"{topic}"}}}}"#)
}

/// A publish of a message whose `data` has about so many bytes.
pub(super) fn publish(topic: &str, message: &Message, data_bytes: usize) -> String {
    let Message { publisher, number, due_ns } = message;
    let head = format!(r#"{{"p":{publisher},"n":{number},"t":{due_ns},"x":""#);
    let fill = fill(*number, fill_bytes(head.len(), data_bytes));
    format!(r#"{{"id":2,"type":"publish","payload":{{"topic":"{topic}","data":{head}{fill}"}}}}}}"#)
}

#[derive(Deserialize)]
struct Envelope<'a> {
    r#type: &'a str,
    #[serde(default)]
    payload: Option<Payload>,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    success: Option<bool>,
    #[serde(default, alias = "reason")]
    message: Option<String>,
    #[serde(flatten)]
    receipt: Receipt,
}

/// Reads what a server says to a client that expects these messages, or none.
pub(super) fn said(text: &[u8], expected: Option<Expected<'_>>) -> Said {
    if text.starts_with(br#"{"type":"message""#) {
        return expected.and_then(|expected| message(text, expected)).map_or(Said::Changed, Said::Message);
    }
    let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(text) else { return Said::Changed };
    match (envelope.r#type, envelope.payload) {
        ("ack", Some(payload)) if payload.success != Some(false) => Said::Ack(payload.receipt),
        ("ack" | "error" | "disconnect", payload) => {
            Said::Refused(payload.and_then(|payload| payload.message).unwrap_or_default())
        }
        _ => Said::Other,
    }
}

fn message(text: &[u8], expected: Expected<'_>) -> Option<Message> {
    let text = text.strip_prefix(br#"{"type":"message","payload":{"topic":""#)?;
    let text = text.strip_prefix(expected.topic.as_bytes())?;
    let data = text.strip_prefix(br#"","data":"#)?;
    let (publisher, text) = number(data.strip_prefix(br#"{"p":"#)?)?;
    let (of, text) = number(text.strip_prefix(br#","n":"#)?)?;
    let (due_ns, text) = number(text.strip_prefix(br#","t":"#)?)?;
    let text = text.strip_prefix(br#","x":""#)?;
    let message = Message { publisher: publisher.try_into().ok()?, number: of.try_into().ok()?, due_ns };
    let (filler, rest) = text.split_at_checked(fill_bytes(data.len() - text.len(), expected.data_bytes))?;
    let is_whole = is_fill(message.number, filler) && is_rest(rest.strip_prefix(br#""}"#)?);
    is_whole.then_some(message)
}

/// Whether this is what a server adds behind the data: who has published it, where it tells, and when.
fn is_rest(text: &[u8]) -> bool {
    let Some(text) = text.strip_suffix(b"}") else { return false };
    let digits = text.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let Some(publisher) = text[..text.len() - digits].strip_suffix(br#"},"timestamp":"#) else { return false };
    // The user's name is the token's, which this side does not always know.
    let is_publisher = || publisher.strip_prefix(br#","publisher":""#).is_some_and(is_end_of_string);
    digits > 0 && (publisher.is_empty() || is_publisher())
}

/// Whether a JSON string ends with this text and not before it does.
fn is_end_of_string(text: &[u8]) -> bool {
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'"' => return bytes.len() == 0,
            _ => {}
        }
    }
    false
}

/// A number as [`publish`] writes it, and what follows.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at(digits);
    let is_as_written = digits == 1 || !number.starts_with(b"0");
    let number = std::str::from_utf8(number).ok()?.parse().ok()?;
    is_as_written.then_some((number, rest))
}

/// Bytes of the text that fills data up, behind a head of so many bytes and before what ends it.
fn fill_bytes(head_bytes: usize, data_bytes: usize) -> usize {
    data_bytes.saturating_sub(head_bytes + r#""}"#.len())
}

/// Text that neighbours in a topic have not in common.
fn fill(number: u32, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes);
    let mut from = start(number);
    while text.len() < bytes {
        let piece = &ALPHABET[from..];
        text.push_str(&piece[..piece.len().min(bytes - text.len())]);
        from = 0;
    }
    text
}

fn is_fill(number: u32, text: &[u8]) -> bool {
    let first = text.len().min(ALPHABET.len() - start(number));
    let (head, rest) = text.split_at(first);
    let alphabet = ALPHABET.as_bytes();
    alphabet[start(number)..].starts_with(head) && rest.chunks(alphabet.len()).all(|chunk| alphabet.starts_with(chunk))
}

fn start(number: u32) -> usize {
    number as usize % ALPHABET.len()
}

const ALPHABET: &str = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::envelope::EnvelopeWriter;

    const MESSAGE: Message = Message { publisher: 3, number: 77, due_ns: 123_456 };

    fn of(topic: &str, data_bytes: usize) -> Option<Expected<'_>> {
        Some(Expected { topic, data_bytes })
    }

    /// A message as the server makes it of a publish.
    fn delivered(publish: &str) -> String {
        let data = publish.split_once(r#""data":"#).unwrap().1.strip_suffix("}}").unwrap();
        format!(r#"{{"type":"message","payload":{{"topic":"a","data":{data},"publisher":"x"}},"timestamp":1}}"#)
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        for bytes in [0, 50, 100, 128, 1024, 10_000] {
            let publish = publish("a", &MESSAGE, bytes);
            serde_json::from_str::<serde_json::Value>(&publish).unwrap();
            let text = delivered(&publish);
            assert_eq!(said(text.as_bytes(), of("a", bytes)), Said::Message(MESSAGE), "{text}");
            let text = text.replace(r#","publisher":"x""#, "");
            assert_eq!(said(text.as_bytes(), of("a", bytes)), Said::Message(MESSAGE), "{text}");
        }
    }

    /// What the server itself writes, whatever the user is called.
    #[test]
    fn a_message_is_read_as_the_server_writes_it() {
        let publish = publish("a", &MESSAGE, 100);
        let data = publish.split_once(r#""data":"#).unwrap().1.strip_suffix("}}").unwrap();
        for publisher in [None, Some("bench-3"), Some(r#"a "quoted" one}"#)] {
            let mut text = Vec::new();
            EnvelopeWriter::push(&mut text, 1_700_000_000_000).message("a", data.as_bytes(), publisher);
            assert_eq!(said(&text, of("a", 100)), Said::Message(MESSAGE), "{publisher:?}");
        }
    }

    #[test]
    fn a_message_that_was_changed_is_noticed() {
        let text = delivered(&publish("a", &MESSAGE, 300));
        let at = text.find(r#""x":""#).unwrap() + 5;
        for position in [at, at + 100, at + 200] {
            let mut changed = text.clone().into_bytes();
            changed[position] ^= 1;
            assert_eq!(said(&changed, of("a", 300)), Said::Changed);
        }
        assert_eq!(said(br#"{"type":"message","payload":{"topic":"a","data":1}}"#, of("a", 300)), Said::Changed);
    }

    #[test]
    fn a_message_that_was_cut_or_lengthened_is_noticed() {
        let whole = publish("a", &MESSAGE, 300);
        for bytes in [0, 60, 299, 301] {
            let text = delivered(&publish("a", &MESSAGE, bytes));
            assert_eq!(said(text.as_bytes(), of("a", 300)), Said::Changed, "{text}");
        }
        let text = delivered(&whole);
        for len in 20..text.len() {
            assert_eq!(said(&text.as_bytes()[..len], of("a", 300)), Said::Changed, "cut to {len} bytes");
        }
    }

    #[test]
    fn a_message_of_another_topic_is_noticed() {
        let text = delivered(&publish("a", &MESSAGE, 300));
        for topic in ["b", "aa", "", "a\""] {
            assert_eq!(said(text.as_bytes(), of(topic, 300)), Said::Changed, "{topic}");
        }
        assert_eq!(said(text.as_bytes(), None), Said::Changed, "nothing is subscribed");
    }

    #[test]
    fn what_stands_around_the_data_is_compared() {
        let text = delivered(&publish("a", &MESSAGE, 300));
        let check = |from: &str, to: &str| {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert_eq!(said(changed.as_bytes(), of("a", 300)), Said::Changed, "{changed}");
        };
        check(r#""topic""#, r#""topik""#);
        check(r#""p":3"#, r#""p":03"#);
        check(r#""},"publisher""#, r#"","more":1},"publisher""#);
        check(r#"},"publisher""#, r#","publisher""#);
        check(r#""publisher":"x""#, r#""publisher":x"#);
        check(r#""publisher":"x""#, r#""publisher":""#);
        check(r#""publisher":"x""#, r#""publisher":"x","more":"y""#);
        check(r#""publisher":"x""#, r#""somebody":"x""#);
        check(r#""timestamp":1"#, r#""timestamp":"#);
        check(r#","timestamp":1"#, "");
        check(r#""timestamp":1}"#, r#""timestamp":1} "#);
    }

    #[test]
    fn answers_are_told_apart() {
        let ack =
            br#"{"type":"ack","payload":{"success":true,"topic":"a","matched":3,"queued":2,"dropped":1},"reply_to":2}"#;
        assert_eq!(said(ack, None), Said::Ack(Receipt { queued: 2, dropped: 1 }));
        let no = br#"{"type":"error","payload":{"code":"rate_limited","message":"too many"},"reply_to":2}"#;
        assert_eq!(said(no, None), Said::Refused("too many".into()));
        let away =
            br#"{"type":"disconnect","payload":{"code":4503,"reason":"evicted","reconnect":false},"timestamp":1}"#;
        assert_eq!(said(away, None), Said::Refused("evicted".into()));
        let welcome = br#"{"type":"auth_result","payload":{"authenticated":true}}"#;
        assert_eq!(said(welcome, None), Said::Other);
        assert_eq!(said(b"\xff", None), Said::Changed);
    }
}
