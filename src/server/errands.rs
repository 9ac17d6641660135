//! What the embedding program may ask of certain connections.

use std::future::Future;

use super::EngineHandle;
use crate::app::OutgoingMessage;
use crate::app::context::Refused;
use crate::control::{Target, TopicEntry};
use crate::shard::errands::{Disconnect, Errand, Reached, TopicQuery};

impl EngineHandle {
    /// Sends a message to a session, or to all connections of a client or of a topic. A queue at its bound drops it and
    /// its connection is closed, as for a published message. To one session messages go in the order of the calls, if
    /// each is awaited.
    ///
    /// # Errors
    /// `limit_exceeded` if the engine is busy, `not_found` if it has ended; nothing was done then.
    pub fn send_to<T: Into<Target>>(
        &self,
        target: T,
        message: OutgoingMessage,
    ) -> impl Future<Output = Result<Reached, Refused>> + Send + use<T> {
        self.inner.shards.run(target.into(), Errand::Send(message))
    }

    /// Closes connections, each after what is queued for it and owed to it. Those that come meanwhile may stay.
    ///
    /// # Errors
    /// Those of [`EngineHandle::send_to`].
    pub fn disconnect<T: Into<Target>>(
        &self,
        target: T,
        how: Disconnect,
    ) -> impl Future<Output = Result<Reached, Refused>> + Send + use<T> {
        self.inner.shards.run(target.into(), Errand::Disconnect(how))
    }

    /// Subscribes connections to a topic, whatever their clients' permissions; the clients are not told. Who is
    /// subscribed already counts as done.
    ///
    /// # Errors
    /// Those of [`EngineHandle::send_to`]; what a connection may not have is in [`Reached::refusal`].
    pub fn subscribe<T: Into<Target>>(
        &self,
        target: T,
        topic: &str,
    ) -> impl Future<Output = Result<Reached, Refused>> + Send + use<T> {
        self.inner.shards.run(target.into(), Errand::Subscribe { topic: topic.into() })
    }

    /// Ends connections' subscriptions to a topic; the clients are not told. `done` counts those that had one.
    ///
    /// # Errors
    /// Those of [`EngineHandle::send_to`].
    pub fn unsubscribe<T: Into<Target>>(
        &self,
        target: T,
        topic: &str,
    ) -> impl Future<Output = Result<Reached, Refused>> + Send + use<T> {
        self.inner.shards.run(target.into(), Errand::Unsubscribe { topic: topic.into() })
    }

    /// The first topics with subscribers that a query asks for, in order of their names. Subscribers come and go while
    /// they are counted.
    ///
    /// # Errors
    /// `limit_exceeded` if the engine is busy, `not_found` if it has ended.
    pub fn topics(&self, query: TopicQuery) -> impl Future<Output = Result<Vec<TopicEntry>, Refused>> + Send + use<> {
        self.inner.shards.topics(query)
    }
}
