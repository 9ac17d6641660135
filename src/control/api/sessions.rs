//! Who is connected, who was, and what has happened to them.
//! Law: what is told has a bounded size, and no shard stops working for it.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;

use super::body::{Asked, present};
use super::error::{ApiError, Code};
use super::{Api, PATIENCE};
use crate::control::http::json;
use crate::id::SessionId;
use crate::shard::queries::{ConnectionSort, ConnectionState, Connections, ConnectionsQuery, SessionReport};

/// Connections: those that are open, or the last that have ended.
///
/// Unless `sort` is given, open ones come oldest first, and closed ones latest first.
#[utoipa::path(get, path = "/api/connections", tag = "connections", params(ConnectionsParams),
    responses((status = 200, description = "The first of those asked for", body = Connections), ApiError))]
pub(super) async fn connections(
    State(api): State<Arc<Api>>,
    Asked(ConnectionsParams { sort, limit, state, client, topic }): Asked<ConnectionsParams>,
) -> Result<Response, ApiError> {
    let usual = ConnectionsQuery::default();
    let (limit, state) = (limit.unwrap_or(usual.limit), state.unwrap_or(usual.state));
    let asked = api.shards.connections(ConnectionsQuery { sort, limit, state, client, topic });
    let found = timeout(PATIENCE, asked).await.map_err(|_| late())??;
    Ok(json(StatusCode::OK, &found))
}

/// Which connections.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ConnectionsParams {
    /// What the first ones have most of.
    #[serde(default, deserialize_with = "present")]
    #[param(nullable = false, inline)]
    sort: Option<ConnectionSort>,
    /// How many at most.
    #[serde(default, deserialize_with = "present")]
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// Whether those that are open are asked for, or the last that have ended.
    #[serde(default, deserialize_with = "present")]
    #[param(nullable = false, inline)]
    state: Option<ConnectionState>,
    /// Only those of this client: the claim `sub`.
    #[serde(default, deserialize_with = "present")]
    #[param(nullable = false)]
    client: Option<String>,
    /// Only those that are subscribed to this topic; none of those that have ended.
    #[serde(default, deserialize_with = "present")]
    #[param(nullable = false)]
    topic: Option<String>,
}

/// One session: its state and its history, also for a while after its end.
#[utoipa::path(get, path = "/api/sessions/{id}", tag = "connections",
    params(("id" = String, Path, description = "The id of the session, as its client was told in `auth_result`",
        pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")),
    responses((status = 200, description = "What is known of it", body = SessionReport), ApiError))]
pub(super) async fn session(
    State(api): State<Arc<Api>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let id = id.ok().filter(|id| id.len() == ID_LENGTH).and_then(|Path(id)| id.parse::<SessionId>().ok());
    let id = id.ok_or_else(|| ApiError::invalid("the id of a session is a UUID"))?;
    let known = timeout(PATIENCE, api.shards.session(id)).await.map_err(|_| late())??;
    let unknown = || ApiError::new(Code::NotFound, "no session has this id, or it ended too long ago");
    Ok(json(StatusCode::OK, &known.ok_or_else(unknown)?))
}

fn late() -> ApiError {
    ApiError::new(Code::Timeout, "the engine does not answer")
}

/// Characters of a UUID with its hyphens.
const ID_LENGTH: usize = 36;
