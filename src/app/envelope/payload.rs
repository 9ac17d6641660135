//! The payload of a client's message: as the built-in commands read it, and as the type a handler takes.
//! Law: reading uses the payload up, because it is done in place; `data` is the bytes that came, untouched.

use std::cell::RefCell;

use serde::de::DeserializeOwned;
use simd_json::ErrorType;

use super::json::{Fault, Scanner, Span, Value, unescape};
use super::{Invalid, KEY_LENGTH_MAX};

/// The payload of a message: a valid JSON object. Reading it uses it up, because that is done in place.
#[derive(Debug)]
pub struct Payload<'a> {
    text: &'a mut [u8],
    /// Where `text` begins in the message, whose offsets `members` are.
    start: usize,
    members: Members,
}

/// Payload of `authenticate` and `refresh`.
#[derive(Debug, PartialEq, Eq)]
pub struct Authenticate<'a> {
    /// The JSON Web Token.
    pub token: &'a str,
}

/// Payload of `subscribe`. `recover` is accepted and ignored.
#[derive(Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// The topic's name, not checked yet.
    pub topic: &'a str,
}

/// Payload of `unsubscribe`.
pub type Unsubscribe<'a> = Subscribe<'a>;

/// Payload of `publish`.
#[derive(Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// The topic's name, not checked yet.
    pub topic: &'a str,
    /// Any JSON value, byte for byte as the client sent it, without the white space around it.
    pub data: &'a [u8],
    /// What `latest_per_key` keeps the latest of.
    pub key: Option<&'a str>,
    /// Whether the publisher's own subscription is passed over.
    pub exclude_self: bool,
}

impl<'a> Payload<'a> {
    /// The object `text`, which begins at `start` of the message whose pass found `members`.
    pub(super) fn new(text: &'a mut [u8], start: usize, members: Members) -> Self {
        Self { text, start, members }
    }

    /// The JSON text of the object, as the client sent it.
    pub fn as_bytes(&self) -> &[u8] {
        self.text
    }

    /// The payload as the type a handler takes. An integer beyond 64 bits is an error, also for a float.
    ///
    /// # Errors
    /// It does not fit `T`.
    pub fn parse<T: DeserializeOwned>(self) -> Result<T, Invalid> {
        let deserializer = if self.text.len() > BUFFERED_LENGTH_MAX {
            simd_json::Deserializer::from_slice(self.text)
        } else {
            BUFFERS.with_borrow_mut(|buffers| simd_json::Deserializer::from_slice_with_buffers(self.text, buffers))
        };
        // The buffers are free again: what `T` does while it is filled may come back here.
        deserializer.and_then(|mut deserializer| T::deserialize(&mut deserializer)).map_err(|error| {
            match error.error() {
                ErrorType::Serde(text) => Invalid::Payload(text.as_str().into()),
                kind => Invalid::Payload(format!("{kind:?}").into()), // `ExpectedString`; where, it does not say
            }
        })
    }

    /// The payload of `authenticate` and `refresh`.
    ///
    /// # Errors
    /// `token` is missing or no string.
    pub fn authenticate(mut self) -> Result<Authenticate<'a>, Invalid> {
        let token = self.string(self.members.token, "token")?.ok_or(Invalid::Missing("token"))?;
        Ok(Authenticate { token: as_text(&self.text[token.range()], "token")? })
    }

    /// The payload of `subscribe`.
    ///
    /// # Errors
    /// `topic` is missing or no string.
    pub fn subscribe(mut self) -> Result<Subscribe<'a>, Invalid> {
        let topic = self.string(self.members.topic, "topic")?.ok_or(Invalid::Missing("topic"))?;
        Ok(Subscribe { topic: as_text(&self.text[topic.range()], "topic")? })
    }

    /// The payload of `unsubscribe`.
    ///
    /// # Errors
    /// `topic` is missing or no string.
    pub fn unsubscribe(self) -> Result<Unsubscribe<'a>, Invalid> {
        self.subscribe()
    }

    /// The payload of `publish`.
    ///
    /// # Errors
    /// `topic` or `data` is missing, or a member is not what it must be.
    pub fn publish(mut self) -> Result<Publish<'a>, Invalid> {
        let topic = self.string(self.members.topic, "topic")?.ok_or(Invalid::Missing("topic"))?;
        let data = self.members.data.get("data")?.ok_or(Invalid::Missing("data"))?.span.since(self.start);
        let key = self.string(self.members.key, "key")?;
        let exclude_self = match self.members.exclude_self.get("exclude_self")? {
            None => false,
            Some(value) => match &self.text[value.span.since(self.start).range()] {
                b"true" => true,
                b"false" => false,
                _ => return Err(Invalid::Type { member: "exclude_self", expected: "true or false" }),
            },
        };
        if key.is_some_and(|key| key.end - key.start > KEY_LENGTH_MAX) {
            return Err(Invalid::TooLong { member: "key", length_max: KEY_LENGTH_MAX });
        }
        // All that is changed in place is changed: from here on the bytes are only looked at.
        let text: &'a [u8] = self.text;
        let topic = as_text(&text[topic.range()], "topic")?;
        let key = key.map(|key| as_text(&text[key.range()], "key")).transpose()?;
        Ok(Publish { topic, data: &text[data.range()], key, exclude_self })
    }

    fn string(&mut self, member: Member, name: &'static str) -> Result<Option<Span>, Invalid> {
        match member.get(name)? {
            None => Ok(None),
            Some(value) => {
                let span = value.span.since(self.start);
                cut_text(self.text, Value { span, ..value }, name).map(Some)
            }
        }
    }
}

/// Where the members of a payload are that a built-in command reads. They are noted for every message, because `type`
/// may come after them, and a second pass over a large `data` costs more.
#[derive(Debug, Default)]
pub(super) struct Members {
    token: Member,
    topic: Member,
    data: Member,
    key: Member,
    exclude_self: Member,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Member {
    #[default]
    Missing,
    Once(Value),
    Repeated,
}

impl Members {
    pub(super) fn read(&mut self, bytes: &[u8], scanner: &mut Scanner<'_>) -> Result<Value, Fault> {
        if scanner.peek() != Some(b'{') {
            return scanner.value();
        }
        let span = scanner.object(|scanner, key| {
            let member = match name(bytes, key, &mut [0; NAME_SPACE]) {
                b"topic" => &mut self.topic,
                b"data" => &mut self.data,
                b"key" => &mut self.key,
                b"exclude_self" => &mut self.exclude_self,
                b"token" => &mut self.token,
                _ => return scanner.value().map(drop),
            };
            member.found(scanner.value()?);
            Ok(())
        })?;
        Ok(Value { span, is_escaped: false })
    }
}

impl Member {
    pub(super) fn found(&mut self, value: Value) {
        *self = if let Self::Missing = self { Self::Once(value) } else { Self::Repeated };
    }

    pub(super) fn get(self, name: &'static str) -> Result<Option<Value>, Invalid> {
        match self {
            Self::Missing => Ok(None),
            Self::Once(value) => Ok(Some(value)),
            Self::Repeated => Err(Invalid::Repeated(name)),
        }
    }
}

/// The name a key spells, unescaped into `space` if it has escapes.
pub(super) fn name<'n>(bytes: &'n [u8], key: Value, space: &'n mut [u8; NAME_SPACE]) -> &'n [u8] {
    let inside = &bytes[key.span.start + 1..key.span.end - 1];
    match space.get_mut(..inside.len()) {
        Some(space) if key.is_escaped => {
            space.copy_from_slice(inside);
            let length = unescape(space);
            &space[..length]
        }
        _ => inside, // plain, or too long for any name known here
    }
}

/// The inside of a string, unescaped in place.
pub(super) fn cut_text(bytes: &mut [u8], value: Value, member: &'static str) -> Result<Span, Invalid> {
    let Span { start, end } = value.span;
    if bytes[start] != b'"' {
        return Err(Invalid::Type { member, expected: "a string" });
    }
    let inside = &mut bytes[start + 1..end - 1];
    let length = if value.is_escaped { unescape(inside) } else { inside.len() };
    Ok(Span { start: start + 1, end: start + 1 + length })
}

pub(super) fn as_text<'a>(bytes: &'a [u8], member: &'static str) -> Result<&'a str, Invalid> {
    std::str::from_utf8(bytes).map_err(|_| Invalid::Type { member, expected: "valid UTF-8" })
}

/// Longest payload that is parsed with the thread's buffers, in bytes. They keep the size of the largest one, up to
/// some six times this, so larger payloads get their own.
const BUFFERED_LENGTH_MAX: usize = 16 << 10;

thread_local! {
    static BUFFERS: RefCell<simd_json::Buffers> = RefCell::new(simd_json::Buffers::new(BUFFERED_LENGTH_MAX));
}

/// Longest spelling of a known name: each of the 12 letters of `exclude_self` as `\uXXXX`.
pub(super) const NAME_SPACE: usize = 12 * 6;

#[cfg(test)]
mod tests {
    use super::super::{MessageId, parse};
    use super::*;
    use crate::metrics::ErrorCode;
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    /// What a built-in command makes of `payload`.
    #[track_caller]
    fn check_payload<T: std::fmt::Debug + PartialEq>(
        read: impl for<'a> Fn(Payload<'a>) -> Result<T, Invalid>,
        payload: &str,
        expected: Result<T, &str>,
    ) {
        let mut bytes = format!(r#" {{"type":"x","payload": {payload}}}"#).into_bytes();
        let outcome = read(parse(&mut bytes).unwrap().payload).map_err(|invalid| invalid.to_string());
        assert_eq!(outcome, expected.map_err(String::from), "{payload}");
    }

    #[test]
    fn tokens_and_topics() {
        let token = |payload: Payload<'_>| payload.authenticate().map(|authenticate| authenticate.token.to_owned());
        check_payload(token, r#"{"token":"a.b.c","x":1}"#, Ok("a.b.c".into()));
        check_payload(token, r#"{"tok\u0065n":"a\u002eb"}"#, Ok("a.b".into()));
        check_payload(token, r#"{}"#, Err("`token` is missing"));
        check_payload(token, r#"{"token":1}"#, Err("`token` must be a string"));
        check_payload(token, r#"{"token":"a","token":"b"}"#, Err("`token` is there twice"));
        let topic = |payload: Payload<'_>| payload.subscribe().map(|subscribe| subscribe.topic.to_owned());
        check_payload(topic, r#"{"topic":"a.b","recover":{"epoch":1,"offset":2}}"#, Ok("a.b".into()));
        check_payload(topic, r#"{"topic":"\u00e9/\\"}"#, Ok("é/\\".into()));
        check_payload(topic, r#"{"recover":{"topic":"a"}}"#, Err("`topic` is missing"));
        check_payload(topic, r#"{"topic":null}"#, Err("`topic` must be a string"));
        let unsubscribe = |payload: Payload<'_>| payload.unsubscribe().map(|unsubscribe| unsubscribe.topic.to_owned());
        check_payload(unsubscribe, r#"{"topic":"a","topic":"b"}"#, Err("`topic` is there twice"));
    }

    #[test]
    fn publishes() {
        let read = |payload: Payload<'_>| {
            let publish = payload.publish()?;
            let data = String::from_utf8(publish.data.to_vec()).unwrap();
            Ok(format!("{} {data} {:?} {}", publish.topic, publish.key, publish.exclude_self))
        };
        let check = |payload, expected: Result<&str, _>| check_payload(read, payload, expected.map(String::from));
        check(r#"{"topic":"a","data":1}"#, Ok("a 1 None false"));
        check(r#"{"data":null,"topic":"a"}"#, Ok("a null None false"));
        check(
            r#"{"topic":"a","data" : {"b":1.50,"a":"\u0041" } ,"x":0}"#,
            Ok(r#"a {"b":1.50,"a":"\u0041" } None false"#),
        );
        check(
            r#"{"topic":"a","data":123456789012345678901234567890e5}"#,
            Ok("a 123456789012345678901234567890e5 None false"),
        );
        check(
            r#"{"\u0074opic":"\t","data":"\t","key":"\u006b","exclude_self":true}"#,
            Ok("\t \"\\t\" Some(\"k\") true"),
        );
        check(r#"{"topic":"a","data":[],"exclude_self":false,"key":""}"#, Ok(r#"a [] Some("") false"#));
        check(r#"{"topic":"a"}"#, Err("`data` is missing"));
        check(r#"{"data":1}"#, Err("`topic` is missing"));
        check(r#"{"topic":"a","data":1,"data":2}"#, Err("`data` is there twice"));
        check(r#"{"topic":"a","data":1,"key":7}"#, Err("`key` must be a string"));
        check(r#"{"topic":"a","data":1,"exclude_self":"true"}"#, Err("`exclude_self` must be true or false"));
        assert_eq!(Invalid::TooLong { member: "key", length_max: 1 }.code(), ErrorCode::TooLarge);
        let long = format!(r#"{{"topic":"a","data":1,"key":"{}"}}"#, "k".repeat(KEY_LENGTH_MAX + 1));
        check(&long, Err("`key` is longer than 255 bytes"));
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Typed {
        name: String,
        price: f64,
        count: Option<i32>,
        #[serde(default)]
        tags: std::collections::BTreeMap<String, Json>,
    }

    #[test]
    fn typed_payloads() {
        let read = |payload: Payload<'_>| payload.parse::<Typed>();
        let typed = Typed { name: "é\"".into(), price: 3.0, count: None, tags: Default::default() };
        check_payload(read, r#"{"name":"\u00e9\"","price":3,"other":[{}]}"#, Ok(typed));
        let tags = [("a".to_owned(), json!([1, {"b": null}]))].into();
        let typed = Typed { name: "n".into(), price: -1.5e3, count: Some(-7), tags };
        check_payload(read, r#"{"tags":{"a":[1,{"b":null}]},"count":-7,"price":-1.5e3,"name":"n"}"#, Ok(typed));
        let misfit = |payload: &str, expected: &str| {
            let mut bytes = format!(r#"{{"id":9,"type":"x","payload":{payload}}}"#).into_bytes();
            let error = parse(&mut bytes).unwrap().parse_payload::<Typed>().unwrap_err();
            assert_eq!((error.id, error.cause.code()), (Some(MessageId::Number(9)), ErrorCode::InvalidMessage));
            assert_eq!(error.cause.to_string(), expected);
        };
        misfit("{}", "`payload`: missing field `name`");
        misfit(r#"{"name":1,"price":1}"#, "`payload`: ExpectedString");
        misfit(r#"{"name":"","price":1,"count":99999999999}"#, "`payload`: ExpectedSigned");
        misfit(r#"{"name":"","price":123456789012345678901234567890}"#, "`payload`: InvalidNumber");
        let large = format!(r#"{{"name":"{}","price":0}}"#, "n".repeat(BUFFERED_LENGTH_MAX));
        check_payload(|payload| Ok(payload.parse::<Typed>()?.name.len()), &large, Ok(BUFFERED_LENGTH_MAX));
    }

    proptest! {
        #[test]
        fn data_is_untouched(data in any::<Vec<String>>(), topic in any::<String>(), pretty in any::<bool>()) {
            let data = if pretty { serde_json::to_string_pretty(&data) } else { serde_json::to_string(&data) }.unwrap();
            let quoted = serde_json::to_string(&topic).unwrap();
            let mut bytes = format!(r#"{{"payload":{{"topic":{quoted},"data":{data}}},"type":"publish"}}"#).into_bytes();
            let publish = parse(&mut bytes).unwrap().payload.publish().unwrap();
            prop_assert_eq!((publish.topic, publish.data), (topic.as_str(), data.as_bytes()));
        }
    }
}
