//! The trait of a message handler, and what it may answer.
//!
//! A handler runs on the shard of the connection whose message it handles. Its future is polled once at once; if it is
//! pending it parks, and the connection's next message is read meanwhile, so a later message may be answered first.
//! A panic is caught at the message: the client gets `internal_error`, and the connection lives on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::Context;
use super::envelope::{AckResponse, EnvelopeError, IncomingMessage};
use super::message::OutgoingMessage;
use crate::metrics::ErrorCode;

/// Handles the messages of one `type`.
pub trait MessageHandler: Send + Sync + 'static {
    /// What the payload must be; anything else is answered `invalid_message` and never reaches the handler.
    type Message: DeserializeOwned + 'static;
    /// What is answered.
    type Reply: IntoReply;

    /// Handles one message. The future need not be `Send`: it stays on the connection's shard, where tokio timers and
    /// tokio-based clients work.
    fn handle(
        &self,
        context: Context,
        message: Self::Message,
    ) -> impl Future<Output = Result<Self::Reply, HandlerError>>;
}

/// Something that can be the reply to a request: every request gets exactly one.
pub trait IntoReply {
    /// The reply.
    ///
    /// # Errors
    /// If the payload cannot be written as JSON.
    fn into_reply(self) -> Result<OutgoingMessage, HandlerError>;
}

impl IntoReply for OutgoingMessage {
    fn into_reply(self) -> Result<OutgoingMessage, HandlerError> {
        Ok(self)
    }
}

/// `()` is answered `ack {success: true}`.
impl IntoReply for () {
    fn into_reply(self) -> Result<OutgoingMessage, HandlerError> {
        AckResponse { success: true, message: "ok".into(), topic: None }.into_reply()
    }
}

impl IntoReply for AckResponse<'_> {
    fn into_reply(self) -> Result<OutgoingMessage, HandlerError> {
        Ok(OutgoingMessage::new("ack", &self)?)
    }
}

/// A `type` and a payload.
impl<T: Serialize> IntoReply for (&'static str, T) {
    fn into_reply(self) -> Result<OutgoingMessage, HandlerError> {
        Ok(OutgoingMessage::new(self.0, &self.1)?)
    }
}

/// Why a handler did not do what was asked; becomes an `error` message.
#[derive(Debug)]
pub struct HandlerError {
    /// The code the client sees.
    pub code: ErrorCode,
    /// The text the client sees.
    pub message: String,
    /// What the log says beside it, never the client.
    pub cause: Option<Box<dyn std::error::Error>>,
}

impl HandlerError {
    /// An error the client is told in these words.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None }
    }
}

/// Any other error is `internal_error` to the client; its text goes to the log only.
impl<E: std::error::Error + 'static> From<E> for HandlerError {
    fn from(cause: E) -> Self {
        Self { code: ErrorCode::InternalError, message: "the handler failed".into(), cause: Some(Box::new(cause)) }
    }
}

/// What a handler's future comes to.
pub type Outcome = Result<OutgoingMessage, HandlerError>;
/// A handler's future, on its shard.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Outcome>>>;

/// A handler whose message type has been forgotten.
pub(crate) trait AnyHandler: Send + Sync {
    /// Reads the payload and makes the future; it owns what it needs, so it can outlive the receive buffer.
    fn call(self: Arc<Self>, context: Context, message: IncomingMessage<'_>) -> Result<HandlerFuture, EnvelopeError>;
}

impl<H: MessageHandler> AnyHandler for H {
    fn call(self: Arc<Self>, context: Context, message: IncomingMessage<'_>) -> Result<HandlerFuture, EnvelopeError> {
        let message = message.parse_payload::<H::Message>()?;
        Ok(Box::pin(async move { self.handle(context, message).await?.into_reply() }))
    }
}

/// Makes a handler of an async function.
pub(crate) struct FnHandler<F, M> {
    function: F,
    message: std::marker::PhantomData<fn(M)>,
}

impl<F, M> FnHandler<F, M> {
    pub(crate) fn new(function: F) -> Self {
        Self { function, message: std::marker::PhantomData }
    }
}

impl<F, M, R> MessageHandler for FnHandler<F, M>
where
    F: AsyncFn(Context, M) -> Result<R, HandlerError> + Send + Sync + 'static,
    M: DeserializeOwned + 'static,
    R: IntoReply,
{
    type Message = M;
    type Reply = R;

    fn handle(&self, context: Context, message: M) -> impl Future<Output = Result<R, HandlerError>> {
        (self.function)(context, message)
    }
}
