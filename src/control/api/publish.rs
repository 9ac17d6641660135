//! Messages to many: publishes, batches of them, broadcasts.
//! Law: `data` travels byte for byte; the messages of a batch are published in order, and each has its own result.

use std::future::Future;
use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Api;
use super::body::{Body, Object, present};
use super::error::ApiError;
use super::once::{Given, IdempotencyKey};
use crate::app::PublishOptions;
use crate::app::context::Refused;
use crate::app::envelope;
use crate::pubsub::Delivery;

/// A topic's name: dot-separated segments that are neither empty nor `*` nor `>`, without control characters.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(
    pattern = r"^([^.*>\x00-\x1f\x7f-\x9f]|[^.\x00-\x1f\x7f-\x9f]{2,})(\.([^.*>\x00-\x1f\x7f-\x9f]|[^.\x00-\x1f\x7f-\x9f]{2,}))*$"
)]
pub(super) struct Topic(pub(super) String);

/// One message of a batch.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    /// The topic; what is none refuses this message alone.
    topic: String,
    /// Any JSON value; subscribers get the same bytes.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// What it is the latest of, for topics with the policy `latest_per_key`.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    key: Option<String>,
}

/// One message to a topic, once.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishRequest {
    topic: Topic,
    /// Any JSON value; subscribers get the same bytes.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// What it is the latest of, at most 255 bytes, for topics with the policy `latest_per_key`.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, max_length = 255)]
    key: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    idempotency_key: Option<IdempotencyKey>,
}

/// What became of a message; `matched = queued + dropped`.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(super) struct Receipt {
    /// Connections it was for.
    matched: u64,
    /// Queues it was put on.
    queued: u64,
    /// Connections that do not get it, each by a stated and counted policy.
    dropped: u64,
}

impl From<Delivery> for Receipt {
    fn from(Delivery { matched, queued, dropped }: Delivery) -> Self {
        Self { matched, queued, dropped }
    }
}

/// Publishes a message to a topic.
#[utoipa::path(post, path = "/api/publish", tag = "messages", request_body = PublishRequest,
    responses((status = 200, description = "Published", body = Receipt), ApiError))]
pub(super) async fn publish(
    State(api): State<Arc<Api>>,
    Body { value, fingerprint, room }: Body<PublishRequest>,
) -> Result<Given, ApiError> {
    let PublishRequest { topic, data, key, idempotency_key } = value;
    check_json("data", &data)?;
    let shards = api.shards.clone();
    let work = async move {
        let _room = room;
        Ok(Receipt::from(shards.publish_with(&topic.0, &data, options(key)).await?))
    };
    api.once.run(idempotency_key, fingerprint ^ PUBLISH, work).await
}

/// Messages, published in order.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchRequest {
    #[schema(min_items = 1, max_items = 1000, value_type = Vec<Message>)]
    messages: Vec<Object<Message>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    idempotency_key: Option<IdempotencyKey>,
}

/// The results of a batch, in the order of its messages.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct BatchResults {
    results: Vec<BatchResult>,
}

/// What became of one message of a batch.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum BatchResult {
    Published(Receipt),
    Refused(ApiError),
}

/// Publishes up to 1000 messages, in order.
///
/// Each has a result of its own: one that is refused does not keep those behind it.
#[utoipa::path(post, path = "/api/batch", tag = "messages", request_body = BatchRequest,
    responses((status = 200, description = "Each message was published or refused", body = BatchResults), ApiError))]
pub(super) async fn batch(
    State(api): State<Arc<Api>>,
    Body { value, fingerprint, room }: Body<BatchRequest>,
) -> Result<Given, ApiError> {
    let BatchRequest { messages, idempotency_key } = value;
    if !(1..=BATCH_MAX).contains(&messages.len()) {
        return Err(ApiError::invalid(format!("`messages` must be a list of 1 to {BATCH_MAX}")));
    }
    let shards = api.shards.clone();
    let work = async move {
        let _room = room;
        let mut results = Vec::with_capacity(messages.len());
        for portion in messages.chunks(PORTION) {
            // All are on their way, in order, before the first answer is waited for.
            let place = |Object(message): &Object<Message>| {
                let Message { topic, data, key } = message;
                check_json("data", data).map(|()| shards.publish_with(topic, data, options(key.clone())))
            };
            let placed: Vec<_> = portion.iter().map(place).collect();
            for publish in placed {
                results.push(result_of(publish).await);
            }
        }
        Ok(BatchResults { results })
    };
    api.once.run(idempotency_key, fingerprint ^ BATCH, work).await
}

fn options(key: Option<String>) -> PublishOptions {
    key.map_or_else(PublishOptions::new, |key| PublishOptions::new().key(key))
}

async fn result_of(publish: Result<impl Future<Output = Result<Delivery, Refused>>, ApiError>) -> BatchResult {
    let published = match publish {
        Ok(publish) => publish.await.map_err(ApiError::from),
        Err(invalid) => Err(invalid),
    };
    match published {
        Ok(delivery) => BatchResult::Published(delivery.into()),
        Err(refused) => BatchResult::Refused(refused),
    }
}

/// A message to everybody.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BroadcastRequest {
    /// Any JSON value; clients get the same bytes.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    idempotency_key: Option<IdempotencyKey>,
}

/// Sends to every connection, subscribed or not.
#[utoipa::path(post, path = "/api/broadcast", tag = "messages", request_body = BroadcastRequest,
    responses((status = 200, description = "Sent", body = Receipt), ApiError))]
pub(super) async fn broadcast(
    State(api): State<Arc<Api>>,
    Body { value, fingerprint, room }: Body<BroadcastRequest>,
) -> Result<Given, ApiError> {
    let BroadcastRequest { data, idempotency_key } = value;
    check_json("data", &data)?;
    let shards = api.shards.clone();
    let work = async move {
        let _room = room;
        Ok(Receipt::from(shards.broadcast(&data).await?))
    };
    api.once.run(idempotency_key, fingerprint ^ BROADCAST, work).await
}

/// Refuses what a client may not send either: lone surrogates, and what is nested too deep to be read.
pub(super) fn check_json(member: &str, data: &RawValue) -> Result<(), ApiError> {
    envelope::check_json(data.get().as_bytes()).map_err(|fault| ApiError::invalid(format!("`{member}`: {fault}")))
}

/// Messages of one batch.
const BATCH_MAX: usize = 1000;
/// Messages of a batch that wait in the shards' inboxes at a time, so that a batch leaves room for others.
const PORTION: usize = 64;
/// Tell the same body to different endpoints apart.
const PUBLISH: u64 = 1;
const BATCH: u64 = 2;
const BROADCAST: u64 = 3;
