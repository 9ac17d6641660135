//! What a client sent: one pass over the message validates it and notes where everything is, then it is cut out.
//! Law: spans are taken on the bytes as they came; a string is unescaped in place when it is cut out, which moves
//! nothing else.

use serde::de::DeserializeOwned;

use super::json::{Scanner, Span};
use super::payload::{Member, Members, NAME_SPACE, Payload, as_text, cut_text, name};
use super::{EnvelopeError, ID_LENGTH_MAX, Invalid, MessageId, MessageIdRef};

/// A client's message, cut into its parts.
#[derive(Debug)]
pub struct IncomingMessage<'a> {
    /// The client's name for the request, echoed as `reply_to`.
    pub id: Option<MessageIdRef<'a>>,
    /// The member `type`: which command or handler this is for.
    pub kind: &'a str,
    /// The member `payload`; `{}` when the client sent none.
    pub payload: Payload<'a>,
}

/// Reads one message. `bytes` are the whole message and valid UTF-8, as the WebSocket layer has made sure; they are
/// changed in place where a string has escapes.
///
/// A member that is there twice is an error if this module knows its name, because a proxy in front of the server might
/// have read the other one. Unknown members are validated and ignored.
///
/// # Errors
/// The message is not one JSON object, or `id`, `type` or `payload` is missing or not what it must be. The error
/// carries the id if one was read before the fault.
pub fn parse(bytes: &mut [u8]) -> Result<IncomingMessage<'_>, EnvelopeError> {
    let mut outline = Outline::default();
    let read = outline.read(bytes);
    let (id, verdict) = match outline.id(bytes) {
        Ok(id) => (id, read),
        Err(invalid) => (None, read.and(Err(invalid))),
    };
    let (kind, payload) = match verdict.and_then(|()| Ok((outline.kind(bytes)?, outline.payload(bytes)?))) {
        Ok(spans) => spans,
        Err(cause) => {
            let id = id.and_then(|id| id.cut(&bytes[id.span().range()]).ok());
            return Err(EnvelopeError { id: id.map(MessageId::from), cause });
        }
    };
    let [id_text, kind, text] = bytes
        .get_disjoint_mut([id.map_or(Span::default(), Id::span).range(), kind.range(), payload.range()])
        .expect("the scanner read the three values one after the other");
    let id = match id.map(|id| id.cut(id_text)).transpose() {
        Ok(id) => id,
        Err(cause) => return Err(EnvelopeError { id: None, cause }),
    };
    match as_text(kind, "type") {
        Ok(kind) => Ok(IncomingMessage { id, kind, payload: Payload::new(text, payload.start, outline.members) }),
        Err(cause) => Err(EnvelopeError { id: id.map(MessageId::from), cause }),
    }
}

impl IncomingMessage<'_> {
    /// The payload as the type a handler takes. Uses the message up: keep `id` and `kind` first.
    ///
    /// # Errors
    /// The payload does not fit `T`; the error carries the message's id.
    pub fn parse_payload<T: DeserializeOwned>(self) -> Result<T, EnvelopeError> {
        self.payload.parse().map_err(|cause| EnvelopeError { id: self.id.map(Into::into), cause })
    }
}

/// Where the known members of a message are.
#[derive(Default)]
struct Outline {
    /// The message's opening brace.
    start: usize,
    id: Member,
    kind: Member,
    payload: Member,
    members: Members,
}

#[derive(Clone, Copy)]
enum Id {
    Text(Span),
    Number(u64),
}

impl Outline {
    fn read(&mut self, bytes: &[u8]) -> Result<(), Invalid> {
        let mut scanner = Scanner::new(bytes);
        if scanner.peek() != Some(b'{') {
            scanner.value()?;
            scanner.end()?;
            return Err(Invalid::Type { member: "message", expected: "a JSON object" });
        }
        let Self { start, id, kind, payload, members } = self;
        let message = scanner.object(|scanner, key| {
            match name(bytes, key, &mut [0; NAME_SPACE]) {
                b"type" => kind.found(scanner.value()?),
                b"id" => id.found(scanner.value()?),
                b"payload" => payload.found(members.read(bytes, scanner)?),
                _ => {
                    scanner.value()?;
                }
            }
            Ok(())
        })?;
        *start = message.start;
        Ok(scanner.end()?)
    }

    fn id(&self, bytes: &mut [u8]) -> Result<Option<Id>, Invalid> {
        let invalid = Invalid::Type { member: "id", expected: "a string of at most 64 bytes or an unsigned integer" };
        let Some(value) = self.id.get("id")? else { return Ok(None) };
        let text = &bytes[value.span.range()];
        if text[0] != b'"' {
            let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            return number.map(|number| Some(Id::Number(number))).ok_or(invalid);
        }
        let span = cut_text(bytes, value, "id")?;
        match span.end - span.start <= ID_LENGTH_MAX {
            true => Ok(Some(Id::Text(span))),
            false => Err(Invalid::TooLong { member: "id", length_max: ID_LENGTH_MAX }),
        }
    }

    fn kind(&self, bytes: &mut [u8]) -> Result<Span, Invalid> {
        cut_text(bytes, self.kind.get("type")?.ok_or(Invalid::Missing("type"))?, "type")
    }

    fn payload(&self, bytes: &mut [u8]) -> Result<Span, Invalid> {
        match self.payload.get("payload")? {
            Some(value) if bytes[value.span.start] == b'{' => Ok(value.span),
            Some(_) => Err(Invalid::Type { member: "payload", expected: "an object" }),
            None => {
                // The message's own brace and the byte after it, white space or the first key's quote, become the
                // empty object that a missing payload stands for: both have done their work.
                bytes[self.start + 1] = b'}';
                Ok(Span { start: self.start, end: self.start + 2 })
            }
        }
    }
}

impl Id {
    fn span(self) -> Span {
        if let Self::Text(span) = self { span } else { Span::default() }
    }

    /// The id itself; `text` is what is at its span.
    fn cut(self, text: &[u8]) -> Result<MessageIdRef<'_>, Invalid> {
        match self {
            Self::Text(_) => as_text(text, "id").map(MessageIdRef::Text),
            Self::Number(number) => Ok(MessageIdRef::Number(number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::ErrorCode;
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    /// What `parse` makes of `text`: `id type payload`, or `id: error`.
    fn outcome(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        match parse(&mut bytes) {
            Ok(message) => {
                let payload = std::str::from_utf8(message.payload.as_bytes()).unwrap();
                format!("{} {} {payload}", id_text(message.id), message.kind)
            }
            Err(error) => format!("{}: {error}", id_text(error.id.as_ref().map(MessageId::borrow))),
        }
    }

    fn id_text(id: Option<MessageIdRef<'_>>) -> String {
        match id {
            None => "-".into(),
            Some(MessageIdRef::Text(text)) => format!("{text:?}"),
            Some(MessageIdRef::Number(number)) => number.to_string(),
        }
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(outcome(text), expected, "{text:.200}");
    }

    #[test]
    fn messages() {
        check(r#"{"type":"ping"}"#, "- ping {}");
        check("\t{ \"type\"\n:\r\"ping\" } ", "- ping {}");
        check(r#"{"id":7,"type":"x","payload":{"a":[1, 2]}}"#, r#"7 x {"a":[1, 2]}"#);
        check(r#"{"payload":{ },"type":"x","id":"7"}"#, r#""7" x { }"#);
        check(r#"{"id":"","type":""}"#, r#"""  {}"#);
        check(r#"{"id":18446744073709551615,"type":"x"}"#, "18446744073709551615 x {}");
        check(r#"{"v":{"type":[]},"type":"x","w":[{"id":-1}]}"#, "- x {}");
        check(r#"{"t\u0079pe":"p\u0069ng","\u0069d":"\u00e9\"\ud83d\ude00"}"#, r#""é\"😀" ping {}"#);
        check(&format!(r#"{{"id":"{}","type":"x"}}"#, "é".repeat(32)), &format!("{:?} x {{}}", "é".repeat(32)));
        check(&format!(r#"{{"id":"{}","type":"x"}}"#, "\\u0041".repeat(64)), &format!("{:?} x {{}}", "A".repeat(64)));
        check(
            &format!(r#"{{"type":"x","payload":{}1{}}}"#, r#"{"a":"#.repeat(118), "}".repeat(118)),
            &format!("- x {}1{}", r#"{"a":"#.repeat(118), "}".repeat(118)),
        );
    }

    #[test]
    fn messages_that_are_none() {
        let id = "`id` must be a string of at most 64 bytes or an unsigned integer";
        for text in ["-1", "-0", "1.0", "1e3", "18446744073709551616", "null", "true", "{}", "[1]"] {
            check(&format!(r#"{{"id":{text},"type":"x"}}"#), &format!("-: {id}"));
        }
        let long = format!(r#"{{"id":"{}","type":"x"}}"#, "A".repeat(65));
        check(&long, "-: `id` is longer than 64 bytes");
        assert_eq!(parse(&mut long.into_bytes()).unwrap_err().cause.code(), ErrorCode::TooLarge);
        check(r#"{"id":1,"id":1,"type":"x"}"#, "-: `id` is there twice");
        check(r#"{"id":1}"#, "1: `type` is missing");
        check("{}", "-: `type` is missing");
        check(r#"{"type":5,"id":"a"}"#, r#""a": `type` must be a string"#);
        check(r#"{"type":"x","ty\u0070e":"y","id":1}"#, "1: `type` is there twice");
        check(r#"{"type":"x","payload":null,"id":1}"#, "1: `payload` must be an object");
        check(r#"{"type":"x","payload":[],"id":1}"#, "1: `payload` must be an object");
        check(r#"{"payload":{},"type":"x","payload":{},"id":1}"#, "1: `payload` is there twice");
        check("", "-: not JSON at byte 0: expected a value");
        check("hello", "-: not JSON at byte 0: expected a value");
        check("[]", "-: `message` must be a JSON object");
        check(r#""x""#, "-: `message` must be a JSON object");
        check("5 5", "-: not JSON at byte 2: expected nothing after the message");
        check(r#"{"id":3,"type":"x"}{}"#, "3: not JSON at byte 19: expected nothing after the message");
        check(r#"{"id":3,"type":"x"}\u0000"#, "3: not JSON at byte 19: expected nothing after the message");
        check(r#"{"id":3,"type":"x","payload":{"a":}}"#, "3: not JSON at byte 34: expected a value");
        check(r#"{"id":"a\n3","type""#, r#""a\n3": not JSON at byte 19: expected `:`"#);
        check(r#"{"type":"x","id":3"#, "3: not JSON at byte 18: expected `,` or `}`");
        check(r#"{"id":3x,"type":"x"}"#, "3: not JSON at byte 7: expected `,` or `}`");
        check(&"[".repeat(1 << 20), "-: nested deeper than 120 levels at byte 120");
        let deep = format!(r#"{{"id":1,"payload":{}"#, r#"{"a":"#.repeat(1 << 17));
        check(&deep, "1: nested deeper than 120 levels at byte 613");
        let not_utf8 = parse(&mut b"{\"id\":1,\"type\":\"\xff\"}".to_vec()).map(drop).unwrap_err();
        assert_eq!(
            (not_utf8.id, not_utf8.cause.to_string()),
            (Some(MessageId::Number(1)), "`type` must be valid UTF-8".into())
        );
    }

    proptest! {
        /// Whatever bytes come, a part that is handed out is JSON, and where both parse, `serde_json` reads the same.
        #[test]
        fn agrees_with_serde_json(
            text in r#"\{("(id|type|payload|x|\\u0069d)":(1|-1|"a\\n"|"type"|\{"topic":"t","data":[0-9\[\]{}",]{0,5}\}|\[\]),?){0,4}\} ?"#,
        ) {
            let json = serde_json::from_str::<Json>(&text);
            let mut bytes = text.clone().into_bytes();
            match parse(&mut bytes) {
                Ok(message) => {
                    let json = json.unwrap();
                    prop_assert_eq!(message.kind, json["type"].as_str().unwrap());
                    match message.id {
                        None => prop_assert!(json.get("id").is_none()),
                        Some(MessageIdRef::Text(id)) => prop_assert_eq!(id, json["id"].as_str().unwrap()),
                        Some(MessageIdRef::Number(id)) => prop_assert_eq!(id, json["id"].as_u64().unwrap()),
                    }
                    let payload: Json = serde_json::from_slice(message.payload.as_bytes()).unwrap();
                    prop_assert_eq!(&payload, &json.get("payload").cloned().unwrap_or(json!({})));
                    if let Ok(publish) = message.payload.publish() {
                        prop_assert_eq!(&serde_json::from_slice::<Json>(publish.data).unwrap(), &payload["data"]);
                    }
                }
                Err(EnvelopeError { cause: Invalid::Json(_), .. }) => prop_assert!(json.is_err()),
                Err(_) => prop_assert!(json.is_ok()),
            }
        }

    }
}
