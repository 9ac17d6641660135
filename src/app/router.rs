//! Which handler has which `type`.
//! Law: a name has one handler, and no handler takes the name of a built-in command.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use serde::de::DeserializeOwned;

use super::context::Context;
use super::handler::{AnyHandler, FnHandler, HandlerError, IntoReply, MessageHandler};

/// The `type`s that the engine answers itself.
pub const BUILT_IN: [&str; 7] =
    ["authenticate", "refresh", "ping", "subscribe", "unsubscribe", "list_subscriptions", "publish"];

/// Why a route could not be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The engine answers this itself.
    #[error("message type `{0}` is a built-in command; choose another name")]
    BuiltIn(String),
    /// Another handler has it.
    #[error("message type `{0}` has a handler already; remove one of the two routes")]
    Taken(String),
}

/// Handlers by message `type`.
#[derive(Default)]
pub struct Router {
    routes: HashMap<Box<str>, Arc<dyn AnyHandler>, RandomState>,
}

impl Router {
    /// Adds a handler.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn add<H: MessageHandler>(&mut self, kind: &str, handler: H) -> Result<(), RouteError> {
        if BUILT_IN.contains(&kind) {
            return Err(RouteError::BuiltIn(kind.into()));
        }
        if self.routes.contains_key(kind) {
            return Err(RouteError::Taken(kind.into()));
        }
        self.routes.insert(kind.into(), Arc::new(handler));
        Ok(())
    }

    /// Adds an async function as a handler.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn add_fn<F, M, R>(&mut self, kind: &str, function: F) -> Result<(), RouteError>
    where
        F: AsyncFn(Context, M) -> Result<R, HandlerError> + Send + Sync + 'static,
        M: DeserializeOwned + 'static,
        R: IntoReply + 'static,
    {
        self.add(kind, FnHandler::new(function))
    }

    pub(crate) fn find(&self, kind: &str) -> Option<Arc<dyn AnyHandler>> {
        self.routes.get(kind).cloned()
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}
