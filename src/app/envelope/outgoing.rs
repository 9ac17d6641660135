//! What the server says: each message is appended to a buffer as JSON text in one go.
//! Law: no intermediate allocation, text from outside is escaped, and `data` is spliced in as it is.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::{Serialize, Serializer};

use super::MessageIdRef;
use super::json::plain_length;
use crate::id::SessionId;
use crate::metrics::ErrorCode;
use crate::pubsub::Delivery;

/// A message to a client that is about to be appended to `out`; the method chosen decides its `type` and payload.
#[derive(Debug)]
pub struct EnvelopeWriter<'o> {
    out: &'o mut Vec<u8>,
    reply_to: Option<MessageIdRef<'o>>,
    unix_ms: u64,
}

/// What a handler answers with when there is nothing else to say: payload of `ack`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AckResponse<'a> {
    /// Whether the request was carried out.
    pub success: bool,
    /// For people.
    pub message: Cow<'a, str>,
    /// The topic the request was about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<Cow<'a, str>>,
}

/// What a handler answers with when it refuses: payload of `error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorResponse<'a> {
    /// For programs.
    #[serde(serialize_with = "as_label")]
    pub code: ErrorCode,
    /// For people; names the culprit.
    pub message: Cow<'a, str>,
}

impl<'o> EnvelopeWriter<'o> {
    /// An answer to the request named `reply_to`, or to one without a name.
    pub fn reply(out: &'o mut Vec<u8>, reply_to: Option<MessageIdRef<'o>>, unix_ms: u64) -> Self {
        Self { out, reply_to, unix_ms }
    }

    /// A message that nobody asked for.
    pub fn push(out: &'o mut Vec<u8>, unix_ms: u64) -> Self {
        Self { out, reply_to: None, unix_ms }
    }

    /// A message whose payload is JSON text already.
    pub fn raw(self, kind: &str, payload: &[u8]) {
        self.out.extend_from_slice(b"{\"type\":");
        string(self.out, kind);
        self.out.extend_from_slice(b",\"payload\":");
        self.out.extend_from_slice(payload);
        self.end();
    }

    /// Any message of a handler's own.
    ///
    /// # Errors
    /// `payload` cannot be JSON (say, a map whose keys are no strings); nothing was appended then.
    pub fn json<T: Serialize + ?Sized>(self, kind: &str, payload: &T) -> Result<(), serde_json::Error> {
        let before = self.out.len();
        self.out.extend_from_slice(b"{\"type\":");
        string(self.out, kind);
        self.out.extend_from_slice(b",\"payload\":");
        match serde_json::to_writer(&mut *self.out, payload) {
            Ok(()) => self.end(),
            Err(error) => {
                self.out.truncate(before);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Answer to `ping`.
    pub fn pong(self) {
        self.out.extend_from_slice(br#"{"type":"pong","payload":{"timestamp":"#);
        number(self.out, self.unix_ms);
        self.close()
    }

    /// The subscription to `topic` is in force.
    pub fn subscribed(self, topic: &str) {
        self.out.extend_from_slice(br#"{"type":"ack","payload":{"success":true,"message":"Subscribed to "#);
        self.topic(topic).close()
    }

    /// The subscription to `topic` is no more.
    pub fn unsubscribed(self, topic: &str) {
        self.out.extend_from_slice(br#"{"type":"ack","payload":{"success":true,"message":"Unsubscribed from "#);
        self.topic(topic).close()
    }

    /// The subscription to `topic` has ended, and nobody asked for that.
    pub fn unsubscribed_for(self, topic: &str, reason: &str) {
        self.out.extend_from_slice(br#"{"type":"unsubscribed","payload":{"topic":"#);
        string(self.out, topic);
        self.out.extend_from_slice(b",\"reason\":");
        string(self.out, reason);
        self.close()
    }

    /// The message is on the queues of the subscribers of `topic` as `receipt` says.
    pub fn published(self, topic: &str, receipt: Delivery) {
        self.out.extend_from_slice(br#"{"type":"ack","payload":{"success":true,"message":"Published to "#);
        let message = self.topic(topic);
        message.out.extend_from_slice(b",\"matched\":");
        number(message.out, receipt.matched);
        message.out.extend_from_slice(b",\"queued\":");
        number(message.out, receipt.queued);
        message.out.extend_from_slice(b",\"dropped\":");
        number(message.out, receipt.dropped);
        message.close()
    }

    /// The token was good. `expires_at` is in Unix seconds, as the token's `exp`.
    pub fn authenticated(self, user_id: &str, session_id: SessionId, expires_at: Option<u64>) {
        self.out.extend_from_slice(br#"{"type":"auth_result","payload":{"authenticated":true,"user_id":"#);
        string(self.out, user_id);
        self.out.extend_from_slice(b",\"session_id\":");
        display(self.out, &session_id);
        if let Some(expires_at) = expires_at {
            self.out.extend_from_slice(b",\"expires_at\":");
            number(self.out, expires_at);
        }
        self.close()
    }

    /// The token was not good.
    pub fn not_authenticated(self, error: &dyn fmt::Display) {
        self.out.extend_from_slice(br#"{"type":"auth_result","payload":{"authenticated":false,"error":"#);
        display(self.out, error);
        self.close()
    }

    /// What the connection is subscribed to.
    pub fn subscriptions<'t>(self, topics: impl IntoIterator<Item = &'t str>) {
        self.out.extend_from_slice(br#"{"type":"subscriptions","payload":{"subscriptions":["#);
        for (index, topic) in topics.into_iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            string(self.out, topic);
        }
        self.out.push(b']');
        self.close()
    }

    /// The request was refused.
    pub fn error(self, code: ErrorCode, message: &dyn fmt::Display) {
        self.out.extend_from_slice(br#"{"type":"error","payload":{"code":"#);
        string(self.out, code.label());
        self.out.extend_from_slice(b",\"message\":");
        display(self.out, message);
        self.close()
    }

    /// The server closes the connection next, with the close code `code`; whether the client should come back, and
    /// when.
    pub fn disconnect(self, code: u16, reason: &str, reconnect: bool, retry_after_ms: u64) {
        self.out.extend_from_slice(br#"{"type":"disconnect","payload":{"code":"#);
        number(self.out, code.into());
        self.out.extend_from_slice(b",\"reason\":");
        string(self.out, reason);
        self.out.extend_from_slice(if reconnect { b",\"reconnect\":true" } else { b",\"reconnect\":false" });
        self.out.extend_from_slice(b",\"retry_after_ms\":");
        number(self.out, retry_after_ms);
        self.close()
    }

    /// The token expires at `expires_at`, in Unix seconds as its `exp`; time to send `refresh`.
    pub fn token_expiring(self, expires_at: u64) {
        self.out.extend_from_slice(br#"{"type":"token_expiring","payload":{"expires_at":"#);
        number(self.out, expires_at);
        self.close()
    }

    /// `data` was published to `topic`. `data` must be a JSON value; it is not looked at.
    pub fn message(self, topic: &str, data: &[u8], publisher: Option<&str>) {
        self.out.reserve(topic.len() + data.len() + 96);
        self.out.extend_from_slice(br#"{"type":"message","payload":{"topic":"#);
        string(self.out, topic);
        self.out.extend_from_slice(b",\"data\":");
        self.out.extend_from_slice(data);
        if let Some(publisher) = publisher {
            self.out.extend_from_slice(b",\"publisher\":");
            string(self.out, publisher);
        }
        self.close()
    }

    /// `data` is for every connection. `data` must be a JSON value; it is not looked at.
    pub fn broadcast(self, data: &[u8]) {
        self.out.reserve(data.len() + 96);
        self.out.extend_from_slice(br#"{"type":"broadcast","payload":{"data":"#);
        self.out.extend_from_slice(data);
        self.close()
    }

    /// The end of a text that names `topic`, and the topic as a member.
    fn topic(self, topic: &str) -> Self {
        escape(self.out, topic);
        self.out.extend_from_slice(b"\",\"topic\":");
        string(self.out, topic);
        self
    }

    /// The end of a payload and of the message.
    fn close(self) {
        self.out.push(b'}');
        self.end();
    }

    /// What follows the payload.
    fn end(self) {
        match self.reply_to {
            None => {}
            Some(MessageIdRef::Text(id)) => {
                self.out.extend_from_slice(b",\"reply_to\":");
                string(self.out, id);
            }
            Some(MessageIdRef::Number(id)) => {
                self.out.extend_from_slice(b",\"reply_to\":");
                number(self.out, id);
            }
        }
        self.out.extend_from_slice(b",\"timestamp\":");
        number(self.out, self.unix_ms);
        self.out.push(b'}');
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escape(out, text);
    out.push(b'"');
}

fn display(out: &mut Vec<u8>, value: &dyn fmt::Display) {
    struct Escaped<'o>(&'o mut Vec<u8>);
    impl fmt::Write for Escaped<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            escape(self.0, text);
            Ok(())
        }
    }
    out.push(b'"');
    // Writing to memory does not fail; a `Display` that gives up all the same has said what it could.
    let _ = write!(Escaped(out), "{value}");
    out.push(b'"');
}

/// The inside of a string.
fn escape(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        let (plain, special) = rest.split_at(plain_length(rest));
        out.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else { return };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend([byte >> 4, byte & 0xf].map(|digit| HEX_DIGITS[usize::from(digit)]));
            }
        }
        rest = after;
    }
}

fn number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20]; // u64::MAX has 20
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

fn as_label<S: Serializer>(code: &ErrorCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code.label())
}

const HEX_DIGITS: [u8; 16] = *b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ConnKey, ShardId};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const NOW: u64 = 1_700_000_000_123;
    const NASTY: &str = "q\" b\\ n\n r\r t\t nul\0 esc\u{1b} del\u{7f} é😀 \u{2028}";

    /// Writes after what is there already, and reads back what was added.
    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Value {
        let mut out = b"before".to_vec();
        write(&mut out);
        serde_json::from_slice(out.strip_prefix(b"before").unwrap()).unwrap()
    }

    /// Checks a message as the answer to each kind of request, and as a push.
    #[track_caller]
    fn check(kind: &str, payload: Value, write: impl Fn(EnvelopeWriter<'_>)) {
        let push = written(|out| write(EnvelopeWriter::push(out, NOW)));
        assert_eq!(push, json!({"type": kind, "payload": payload, "timestamp": NOW}));
        let reply = |id| written(|out| write(EnvelopeWriter::reply(out, id, NOW)));
        assert_eq!(reply(None), push);
        let number = reply(Some(MessageIdRef::Number(u64::MAX)));
        assert_eq!(number, json!({"type": kind, "payload": payload, "reply_to": u64::MAX, "timestamp": NOW}));
        let text = reply(Some(MessageIdRef::Text(NASTY)));
        assert_eq!(text, json!({"type": kind, "payload": payload, "reply_to": NASTY, "timestamp": NOW}));
        let generic = written(|out| EnvelopeWriter::push(out, NOW).json(kind, &payload).unwrap());
        assert_eq!(generic, push);
    }

    #[test]
    fn every_message() {
        for topic in ["a.b", NASTY] {
            let ack = |verb| AckResponse {
                success: true,
                message: format!("{verb} {topic}").into(),
                topic: Some(topic.into()),
            };
            check("ack", json!(ack("Subscribed to")), |message| message.subscribed(topic));
            check("ack", json!(ack("Unsubscribed from")), |message| message.unsubscribed(topic));
            let mut published = json!(ack("Published to"));
            let counts = json!({"matched": u64::MAX, "queued": 10, "dropped": 0});
            published.as_object_mut().unwrap().extend(counts.as_object().unwrap().clone());
            check("unsubscribed", json!({"topic": topic, "reason": NASTY}), |message| {
                message.unsubscribed_for(topic, NASTY);
            });
            let receipt = Delivery { matched: u64::MAX, queued: 10, dropped: 0 };
            check("ack", published, |message| message.published(topic, receipt));
            check("error", json!({"code": "not_found", "message": topic}), |message| {
                message.error(ErrorCode::NotFound, &topic);
            });
            check("auth_result", json!({"authenticated": false, "error": topic}), |message| {
                message.not_authenticated(&topic);
            });
            let data = json!({"n": [1, null, NASTY]});
            let bytes = data.to_string().into_bytes();
            check("message", json!({"topic": topic, "data": data}), |message| message.message(topic, &bytes, None));
            check("message", json!({"topic": topic, "data": data, "publisher": NASTY}), |message| {
                message.message(topic, &bytes, Some(NASTY));
            });
            check("broadcast", json!({"data": data}), |message| message.broadcast(&bytes));
        }
        check("pong", json!({"timestamp": NOW}), |message| message.pong());
        check("subscriptions", json!({"subscriptions": []}), |message| message.subscriptions([]));
        let topics = ["a", "b.c", NASTY];
        check("subscriptions", json!({"subscriptions": topics}), |message| message.subscriptions(topics));
        check("token_expiring", json!({"expires_at": 0}), |message| message.token_expiring(0));
        for reconnect in [true, false] {
            let payload = json!({"code": 4008, "reason": NASTY, "reconnect": reconnect, "retry_after_ms": 250});
            check("disconnect", payload, |message| message.disconnect(4008, NASTY, reconnect, 250));
        }
        let session = SessionId::new(ShardId(3), ConnKey { slot: 4, generation: 5 }, 6);
        let mut payload = json!({"authenticated": true, "user_id": NASTY, "session_id": session});
        check("auth_result", payload.clone(), |message| message.authenticated(NASTY, session, None));
        payload["expires_at"] = json!(NOW / 1000);
        check("auth_result", payload, |message| message.authenticated(NASTY, session, Some(NOW / 1000)));
    }

    #[test]
    fn data_is_spliced_byte_for_byte() {
        let mut out = Vec::new();
        EnvelopeWriter::push(&mut out, 5).message("t", br#"{ "b":1.50,"a":123456789012345678901 }"#, None);
        let expected =
            r#"{"type":"message","payload":{"topic":"t","data":{ "b":1.50,"a":123456789012345678901 }},"timestamp":5}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_handlers_own_message() {
        check(NASTY, json!([1]), |message| message.json(NASTY, &[1]).unwrap());
        let error = ErrorResponse { code: ErrorCode::Forbidden, message: NASTY.into() };
        check("error", json!({"code": "forbidden", "message": NASTY}), |message| {
            message.json("error", &error).unwrap();
        });
        let mut out = b"before".to_vec();
        let no_json = std::collections::HashMap::from([((1, 2), 3)]);
        assert!(EnvelopeWriter::push(&mut out, NOW).json("x", &no_json).is_err());
        assert_eq!(out, b"before");
    }

    proptest! {
        #[test]
        fn strings_and_numbers(text in any::<String>(), n in any::<u64>(), shift in 0..64_u32) {
            let n = n >> shift;
            let mut out = Vec::new();
            string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
            let mut displayed = Vec::new();
            display(&mut displayed, &text);
            prop_assert_eq!(displayed, out);
            let mut out = Vec::new();
            number(&mut out, n);
            prop_assert_eq!(out, n.to_string().into_bytes());
        }
    }
}
