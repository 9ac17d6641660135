//! The JSON of this server, as far as the load generator speaks it.
//! Law: what is measured is read without an allocation; what is not is parsed as JSON.

use memchr::memmem;
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
    let fill = fill(*number, data_bytes.saturating_sub(head.len() + 2));
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
    #[serde(default)]
    message: Option<String>,
    #[serde(flatten)]
    receipt: Receipt,
}

/// Reads what a server says.
pub(super) fn said(text: &[u8]) -> Said {
    if text.starts_with(br#"{"type":"message""#) {
        return message(text).map_or(Said::Changed, Said::Message);
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

fn message(text: &[u8]) -> Option<Message> {
    let at = memmem::find(text, br#""data":{"p":"#)? + 8;
    let data = &text[at..];
    let (publisher, data) = number(data.strip_prefix(br#""p":"#)?)?;
    let (of, data) = number(data.strip_prefix(br#","n":"#)?)?;
    let (due_ns, data) = number(data.strip_prefix(br#","t":"#)?)?;
    let data = data.strip_prefix(br#","x":""#)?;
    let fill_bytes = memchr::memchr(b'"', data)?;
    let message = Message { publisher: publisher.try_into().ok()?, number: of.try_into().ok()?, due_ns };
    let is_whole = is_fill(message.number, &data[..fill_bytes]);
    is_whole.then_some(message)
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    Some((number, &text[digits..]))
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

    const MESSAGE: Message = Message { publisher: 3, number: 77, due_ns: 123_456 };

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
            assert_eq!(said(text.as_bytes()), Said::Message(MESSAGE), "{text}");
        }
    }

    #[test]
    fn a_message_that_was_changed_is_noticed() {
        let text = delivered(&publish("a", &MESSAGE, 300));
        let at = text.find(r#""x":""#).unwrap() + 5;
        for position in [at, at + 100, at + 200] {
            let mut changed = text.clone().into_bytes();
            changed[position] ^= 1;
            assert_eq!(said(&changed), Said::Changed);
        }
        assert_eq!(said(br#"{"type":"message","payload":{"topic":"a","data":1}}"#), Said::Changed);
    }

    #[test]
    fn answers_are_told_apart() {
        let ack =
            br#"{"type":"ack","payload":{"success":true,"topic":"a","matched":3,"queued":2,"dropped":1},"reply_to":2}"#;
        assert_eq!(said(ack), Said::Ack(Receipt { queued: 2, dropped: 1 }));
        let no = br#"{"type":"error","payload":{"code":"rate_limited","message":"too many"},"reply_to":2}"#;
        assert_eq!(said(no), Said::Refused("too many".into()));
        let welcome = br#"{"type":"auth_result","payload":{"authenticated":true}}"#;
        assert_eq!(said(welcome), Said::Other);
        assert_eq!(said(b"\xff"), Said::Changed);
    }
}
