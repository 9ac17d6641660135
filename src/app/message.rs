//! A message of a handler's own, ready to be sent, and what else a publish may say.
//! Law: a message's payload is JSON text; what cannot be JSON is refused when the message is made, not when it is sent.

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

/// What a publish says besides its topic and data; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishOptions {
    pub(crate) key: Option<Box<str>>,
}

impl PublishOptions {
    /// Nothing but topic and data.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the message is the latest of, at most 255 bytes, for topics with the policy `latest_per_key`. All messages of a
    /// topic without a key are of one.
    #[must_use]
    pub fn key(mut self, key: impl Into<Box<str>>) -> Self {
        self.key = Some(key.into());
        self
    }
}
