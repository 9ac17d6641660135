//! The drain, from outside: begun, and looked at.
//! Law: the answer leaves before the drain begins with the shards, since an engine without connections is gone at once.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Api;
use super::body::{Body, present};
use super::error::ApiError;
use crate::config::Config;
use crate::control::drain::Progress;
use crate::control::http::json;
use crate::shard::DrainOrder;

/// How to drain; what is missing is as configured.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainRequest {
    /// For how long newcomers are still accepted, such as `5s`.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, pattern = "^([0-9]+(ms|s|m|h))$", example = "5s")]
    wait: Option<String>,
    /// Within which time after that everyone is told, at most, or `auto`.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, pattern = "^([0-9]+(ms|s|m|h)|auto)$", example = "auto")]
    spread: Option<String>,
    /// When who is left is cut. Not shorter than both together.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, pattern = "^([0-9]+(ms|s|m|h))$", example = "30s")]
    deadline: Option<String>,
    /// How many clients may be told to come back within a second.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, minimum = 1, maximum = 1_000_000)]
    reconnects_per_second: Option<u32>,
}

/// Drains the server: tells everyone when to come back, closes all connections, and ends.
///
/// Of two drains the more urgent of each time counts.
#[utoipa::path(post, path = "/api/drain", tag = "engine", request_body = DrainRequest,
    responses((status = 200, description = "The drain begins", body = Progress), ApiError))]
pub(super) async fn begin(
    State(api): State<Arc<Api>>,
    Body { value, .. }: Body<DrainRequest>,
) -> Result<Response, ApiError> {
    let DrainRequest { wait, spread, deadline, reconnects_per_second } = value;
    let mut config = Config { drain: api.drains.configured(), ..Config::default() };
    let rate = reconnects_per_second.map(|rate| rate.to_string());
    for (key, text) in [
        ("drain.wait", wait),
        ("drain.spread", spread),
        ("drain.deadline", deadline),
        ("drain.reconnects_per_second", rate),
    ] {
        if let Some(text) = text {
            config.set(key, &text).map_err(|problems| ApiError::invalid(problems.to_string()))?;
        }
    }
    config.drain.validate().map_err(|problems| ApiError::invalid(problems.to_string()))?;
    let order = DrainOrder::new(&config.drain);
    api.drains.announce(order.deadline_ms);
    let drains = api.drains.clone();
    tokio::spawn(async move {
        tokio::time::sleep(ANSWER).await;
        drains.begin_by(order);
    });
    Ok(progress(State(api)).await)
}

/// How far a drain is.
#[utoipa::path(get, path = "/api/drain", tag = "engine",
    responses((status = 200, description = "Progress", body = Progress), ApiError))]
pub(super) async fn progress(State(api): State<Arc<Api>>) -> Response {
    json(StatusCode::OK, &api.drains.progress())
}

/// How long an answer is given to leave.
const ANSWER: Duration = Duration::from_millis(100);
