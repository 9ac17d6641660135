//! The JSON envelope, the payloads of the commands, and what is written back.

use serde::de::IgnoredAny;
use serde_json::Value;
use tidewheel::app::envelope::{
    EnvelopeWriter, Expected, ID_LENGTH_MAX, Invalid, KEY_LENGTH_MAX, MessageId, check_json, parse,
};

/// A message, as the WebSocket layer passes it on: UTF-8.
pub fn try_bytes(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
    match check_json(bytes) {
        Ok(()) => assert!(is_json, "{text}"),
        Err(fault) => {
            assert!(fault.at <= bytes.len());
            let is_stricter = matches!(fault.expected, Expected::SurrogatePair | Expected::Shallower);
            assert!(is_stricter || !is_json, "{fault}: {text}");
        }
    }
    let mut message = bytes.to_vec();
    match parse(&mut message) {
        Err(error) => {
            error.id.iter().for_each(check_id);
            assert!(!is_json || !matches!(error.cause, Invalid::Json(fault) if !is_strict(fault.expected)), "{error}");
        }
        Ok(message) => {
            assert!(is_json, "{text}");
            let id = message.id.map(MessageId::from);
            id.iter().for_each(check_id);
            answer(id.as_ref(), message.kind, message.payload.as_bytes());
        }
    }
    for command in [publish, subscribe, authenticate, fill] {
        command(&mut bytes.to_vec(), text);
    }
}

fn is_strict(expected: Expected) -> bool {
    matches!(expected, Expected::SurrogatePair | Expected::Shallower)
}

fn check_id(id: &MessageId) {
    if let MessageId::Text(text) = id {
        assert!(text.len() <= ID_LENGTH_MAX);
    }
}

/// What is written is JSON, and says what was asked.
fn answer(id: Option<&MessageId>, kind: &str, payload: &[u8]) {
    let mut out = Vec::new();
    EnvelopeWriter::reply(&mut out, id.map(MessageId::borrow), 1_767_225_600_000).raw(kind, payload);
    assert!(serde_json::from_slice::<IgnoredAny>(&out).is_ok(), "{}", String::from_utf8_lossy(&out));
    let mut out = Vec::new();
    EnvelopeWriter::reply(&mut out, id.map(MessageId::borrow), 1_767_225_600_000).subscribed(kind);
    let value: Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!(value["payload"]["topic"].as_str(), Some(kind));
    match id {
        None => assert!(value.get("reply_to").is_none()),
        Some(MessageId::Text(text)) => assert_eq!(value["reply_to"].as_str(), Some(&**text)),
        Some(MessageId::Number(number)) => assert_eq!(value["reply_to"].as_u64(), Some(*number)),
    }
}

fn publish(bytes: &mut [u8], text: &str) {
    let Ok(message) = parse(bytes) else { return };
    let Ok(publish) = message.payload.publish() else { return };
    assert!(publish.key.is_none_or(|key| key.len() <= KEY_LENGTH_MAX));
    let data = std::str::from_utf8(publish.data).expect("a part of a text");
    assert!(text.contains(data), "data travels as it came");
    assert!(check_json(publish.data).is_ok(), "{data}");
    let mut out = Vec::new();
    EnvelopeWriter::push(&mut out, 0).message(publish.topic, publish.data, publish.key);
    assert!(serde_json::from_slice::<IgnoredAny>(&out).is_ok(), "{}", String::from_utf8_lossy(&out));
}

fn subscribe(bytes: &mut [u8], _: &str) {
    let Ok(message) = parse(bytes) else { return };
    let _ = message.payload.subscribe(); // an error, or a topic that is checked elsewhere
}

fn authenticate(bytes: &mut [u8], _: &str) {
    let Ok(message) = parse(bytes) else { return };
    let _ = message.payload.authenticate(); // an error, or a token that is checked elsewhere
}

/// A handler's own type, read by `simd-json`, is the one that `serde_json` reads.
fn fill(bytes: &mut [u8], _: &str) {
    let Ok(message) = parse(bytes) else { return };
    let theirs = serde_json::from_slice::<Value>(message.payload.as_bytes());
    if let (Ok(ours), Ok(theirs)) = (message.payload.parse::<Value>(), theirs) {
        assert_eq!(without_doubt(ours), without_doubt(theirs));
    }
}

/// The last bit of a float is another matter, and so is whether `-0` is the float or the integer.
fn without_doubt(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() || number.as_u64() == Some(0) => Value::Null,
        Value::Array(items) => items.into_iter().map(without_doubt).collect(),
        Value::Object(members) => {
            Value::Object(members.into_iter().map(|(name, value)| (name, without_doubt(value))).collect())
        }
        value => value,
    }
}
