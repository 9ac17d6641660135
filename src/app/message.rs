//! A message of a handler's own, ready to be sent.
//! Law: its payload is JSON text; what cannot be JSON is refused when the message is made, not when it is sent.

use std::borrow::Cow;

use serde::Serialize;

/// A message to a client: its `type` and its payload, written as JSON already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingMessage {
    kind: Cow<'static, str>,
    payload: Vec<u8>,
}

impl OutgoingMessage {
    /// A message of type `kind`.
    ///
    /// # Errors
    /// If the payload cannot be written as JSON (a map with keys that are no strings, say).
    pub fn new<T: Serialize + ?Sized>(
        kind: impl Into<Cow<'static, str>>,
        payload: &T,
    ) -> Result<Self, serde_json::Error> {
        Ok(Self { kind: kind.into(), payload: serde_json::to_vec(payload)? })
    }

    /// The `type`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The payload's JSON text.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}
