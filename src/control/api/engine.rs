//! The engine itself: its topics, its shards, its configuration, and this API's own description.
//! Law: what is told has a bounded size, and no secret is in it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use super::body::{Asked, present};
use super::document;
use super::error::{ApiError, Code};
use super::publish::Topic;
use super::{Api, PATIENCE};
use crate::control::http::json;
use crate::control::shards::TopicEntry;
use crate::control::{ReloadError, Reloaded};
use crate::metrics::ShardMetrics;
use crate::shard::errands::TopicQuery;

/// Topics with subscribers, in order of their names.
#[utoipa::path(get, path = "/api/topics", tag = "engine", params(TopicsQuery),
    responses((status = 200, description = "The first of those asked for", body = Topics), ApiError))]
pub(super) async fn topics(
    State(api): State<Arc<Api>>,
    Asked(TopicsQuery { limit, prefix, after }): Asked<TopicsQuery>,
) -> Result<Response, ApiError> {
    let limit = limit.unwrap_or(100);
    if !(1..=TOPICS_MAX).contains(&limit) {
        return Err(ApiError::invalid(format!("`limit` must be 1 to {TOPICS_MAX}")));
    }
    // One more than asked for tells whether there are more.
    let prefix = prefix.unwrap_or_default().into();
    let query = TopicQuery { prefix, after: after.map(Into::into), limit: limit + 1 };
    let late = |_| ApiError::new(Code::Timeout, "the engine does not answer");
    let mut found = timeout(PATIENCE, api.shards.topics(query)).await.map_err(late)??;
    let more = found.len() > limit;
    found.truncate(limit);
    let topics = found.into_iter().map(TopicInfo::from).collect();
    Ok(json(StatusCode::OK, &Topics { topics, more }))
}

/// Which topics.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TopicsQuery {
    /// How many at most.
    #[serde(default, deserialize_with = "present")]
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// What their names begin with.
    #[serde(default, deserialize_with = "present")]
    #[param(nullable = false)]
    prefix: Option<String>,
    /// Only names behind this one: the last of a page gives the next page.
    #[serde(default, deserialize_with = "present")]
    #[param(nullable = false)]
    after: Option<String>,
}

/// A page of topics.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Topics {
    topics: Vec<TopicInfo>,
    /// Whether there are more, behind the last of these.
    more: bool,
}

/// A topic with subscribers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct TopicInfo {
    topic: Topic,
    /// Subscribers on all shards.
    subscribers: u64,
    /// The shards that have some.
    shards: Vec<u16>,
}

impl From<TopicEntry> for TopicInfo {
    fn from(TopicEntry { name, subscribers, shards }: TopicEntry) -> Self {
        Self { topic: Topic(name.into()), subscribers, shards: shards.into_iter().map(|shard| shard.0).collect() }
    }
}

/// What each shard holds and has done.
#[utoipa::path(get, path = "/api/shards", tag = "engine",
    responses((status = 200, description = "Every shard, in order", body = Shards), ApiError))]
pub(super) async fn shards(State(api): State<Arc<Api>>) -> Response {
    let shards = api.metrics.iter().enumerate().map(|(index, metrics)| Shard::read(index, metrics)).collect();
    json(StatusCode::OK, &Shards { shards })
}

/// The shards.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Shards {
    shards: Vec<Shard>,
}

/// One shard. Counts are since the start; `/metrics` has more.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Shard {
    shard: u64,
    /// Connections now.
    connections: u64,
    /// Connections authenticated now.
    authenticated: u64,
    /// Subscriptions now.
    subscriptions: u64,
    /// Topics with subscribers on this shard now.
    topics: u64,
    /// Outbound frames alive now.
    frames: u64,
    /// Handlers waiting now.
    parked_handlers: u64,
    /// Connections admitted.
    opened: u64,
    messages_in: u64,
    messages_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Messages published on this shard.
    published: u64,
    /// Deliveries dropped, for whatever reason.
    dropped: u64,
    /// Turns of the loop.
    turns: u64,
    /// Times a publisher waited for room on the bus.
    bus_full: u64,
    /// Receives that found no free buffer.
    receives_starved: u64,
}

impl Shard {
    fn read(index: usize, metrics: &ShardMetrics) -> Self {
        Self {
            shard: index as u64,
            connections: metrics.active(),
            authenticated: metrics.authenticated.get(),
            subscriptions: metrics.subscriptions.get(),
            topics: metrics.topics.get(),
            frames: metrics.frames.get(),
            parked_handlers: metrics.parked.get(),
            opened: metrics.opened.get(),
            messages_in: metrics.messages_in.get(),
            messages_out: metrics.messages_out.get(),
            bytes_in: metrics.bytes_in.get(),
            bytes_out: metrics.bytes_out.get(),
            published: metrics.published.get(),
            dropped: metrics.dropped.iter().map(|count| count.get()).sum(),
            turns: metrics.turns.get(),
            bus_full: metrics.bus_full.get(),
            receives_starved: metrics.starved.get(),
        }
    }
}

/// The configuration in force, as it is written in a file; secrets are masked.
#[utoipa::path(get, path = "/api/config", tag = "engine",
    responses((status = 200, description = "Every key", body = serde_json::Value), ApiError))]
pub(super) async fn config(State(api): State<Arc<Api>>) -> Response {
    json(StatusCode::OK, &api.running.config().to_value())
}

/// Read the configuration again from where it came from, and take up what can change while the engine runs: all of it,
/// or, if anything is wrong, nothing.
#[utoipa::path(post, path = "/api/reload", tag = "engine",
    responses((status = 200, description = "What was taken up, by every shard from its next turn on", body = Reload),
        ApiError))]
pub(super) async fn reload(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    match api.running.reload_from_sources() {
        Ok(Reloaded { applied, restart, warnings }) => Ok(json(StatusCode::OK, &Reload { applied, restart, warnings })),
        Err(error @ ReloadError::NoSource) => Err(ApiError::new(Code::Conflict, error.to_string())),
        Err(error) => Err(ApiError::new(Code::InvalidConfiguration, error.to_string())),
    }
}

/// What a reload did.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Reload {
    /// The keys that have new values.
    applied: Vec<String>,
    /// The keys that were changed and wait for a restart.
    restart: Vec<String>,
    /// What is legal and odd.
    warnings: Vec<String>,
}

/// This document.
#[utoipa::path(get, path = "/api/openapi.json", tag = "engine",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value), ApiError))]
pub(super) async fn openapi(State(api): State<Arc<Api>>) -> Response {
    let mut document = api.document.clone();
    document::complete(&mut document, api.running.config().limits.topic_length);
    json(StatusCode::OK, &document)
}

/// Topics of one page.
const TOPICS_MAX: usize = 1000;
