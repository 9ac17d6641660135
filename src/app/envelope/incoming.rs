//! What a client sent: one pass over the message finds and validates everything, later steps only cut it out.
//! Law: spans are taken on the bytes as they came; a string is unescaped in place when it is handed out, which moves
//! nothing else.

use serde::de::DeserializeOwned;

use super::json::{Fault, Scanner, Span, Value, unescape};
use super::{EnvelopeError, ID_LENGTH_MAX, Invalid, KEY_LENGTH_MAX, MessageId, MessageIdRef};

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

/// Reads one message. `bytes` are the whole message and valid UTF-8, as the WebSocket layer has made sure; they are
/// changed in place where a string has escapes.
///
/// A member that is there twice is an error if this module knows its name, because a proxy in front of the server might
/// have read the other one. Unknown members are validated and ignored.
///
/// # Errors
/// The message is not one JSON object, or `id`, `type` or `payload` is missing or not what it must be. The error carries
/// the id if one was read before the fault.
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
        Ok(kind) => {
            Ok(IncomingMessage { id, kind, payload: Payload { text, start: payload.start, members: outline.members } })
        }
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

impl<'a> Payload<'a> {
    /// The JSON text of the object, as the client sent it.
    pub fn as_bytes(&self) -> &[u8] {
        self.text
    }

    /// The payload as the type a handler takes.
    ///
    /// # Errors
    /// It does not fit `T`.
    pub fn parse<T: DeserializeOwned>(self) -> Result<T, Invalid> {
        serde_json::from_slice(self.text).map_err(|error| Invalid::Payload(error.to_string().into()))
    }

    /// The payload of `authenticate` and `refresh`.
    ///
    /// # Errors
    /// `token` is missing or no string.
    pub fn authenticate(mut self) -> Result<Authenticate<'a>, Invalid> {
        let token = self.text(self.members.token, "token")?.ok_or(Invalid::Missing("token"))?;
        Ok(Authenticate { token: as_text(&self.text[token.range()], "token")? })
    }

    /// The payload of `subscribe`.
    ///
    /// # Errors
    /// `topic` is missing or no string.
    pub fn subscribe(mut self) -> Result<Subscribe<'a>, Invalid> {
        let topic = self.text(self.members.topic, "topic")?.ok_or(Invalid::Missing("topic"))?;
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
        let topic = self.text(self.members.topic, "topic")?.ok_or(Invalid::Missing("topic"))?;
        let data = self.members.data.get("data")?.ok_or(Invalid::Missing("data"))?.span.since(self.start);
        let key = self.text(self.members.key, "key")?;
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

    fn text(&mut self, member: Member, name: &'static str) -> Result<Option<Span>, Invalid> {
        match member.get(name)? {
            None => Ok(None),
            Some(value) => {
                let span = value.span.since(self.start);
                cut_text(self.text, Value { span, ..value }, name).map(Some)
            }
        }
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

/// Where the members of a payload are that a built-in command reads. They are noted for every message, because `type`
/// may come after them, and a second pass over a large `data` costs more.
#[derive(Debug, Default)]
struct Members {
    token: Member,
    topic: Member,
    data: Member,
    key: Member,
    exclude_self: Member,
}

#[derive(Clone, Copy, Debug, Default)]
enum Member {
    #[default]
    Missing,
    Once(Value),
    Repeated,
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
        if span.end - span.start <= ID_LENGTH_MAX { Ok(Some(Id::Text(span))) } else { Err(invalid) }
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

impl Members {
    fn read(&mut self, bytes: &[u8], scanner: &mut Scanner<'_>) -> Result<Value, Fault> {
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
    fn found(&mut self, value: Value) {
        *self = if let Self::Missing = self { Self::Once(value) } else { Self::Repeated };
    }

    fn get(self, name: &'static str) -> Result<Option<Value>, Invalid> {
        match self {
            Self::Missing => Ok(None),
            Self::Once(value) => Ok(Some(value)),
            Self::Repeated => Err(Invalid::Repeated(name)),
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

/// The name a key spells, unescaped into `space` if it has escapes.
fn name<'n>(bytes: &'n [u8], key: Value, space: &'n mut [u8; NAME_SPACE]) -> &'n [u8] {
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
fn cut_text(bytes: &mut [u8], value: Value, member: &'static str) -> Result<Span, Invalid> {
    let Span { start, end } = value.span;
    if bytes[start] != b'"' {
        return Err(Invalid::Type { member, expected: "a string" });
    }
    let inside = &mut bytes[start + 1..end - 1];
    let length = if value.is_escaped { unescape(inside) } else { inside.len() };
    Ok(Span { start: start + 1, end: start + 1 + length })
}

fn as_text<'a>(bytes: &'a [u8], member: &'static str) -> Result<&'a str, Invalid> {
    std::str::from_utf8(bytes).map_err(|_| Invalid::Type { member, expected: "valid UTF-8" })
}

/// Longest spelling of a known name: each of the 12 letters of `exclude_self` as `\uXXXX`.
const NAME_SPACE: usize = 12 * 6;
