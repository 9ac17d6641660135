//! What messages mean: the JSON envelope, who may do what, and the handlers that a user adds.
//!
//! Law: nothing here touches a socket, a queue or another shard. A handler acts through its [`Context`], which only
//! notes what is wanted; the shard does it when the handler's poll returns.

pub mod attempts;
pub mod auth;
pub mod clients;
pub mod context;
pub mod envelope;
pub mod forwarded;
pub mod handler;
pub mod message;
pub mod origin;
mod places;
pub mod router;

pub use attempts::ConnectionAttempts;
pub use clients::{CLIENT_BYTES, Clients};
pub use context::Context;
pub use handler::{HandlerError, IntoReply, MessageHandler};
pub use message::{OutgoingMessage, PublishOptions};
pub use router::{RouteError, Router};
