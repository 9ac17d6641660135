//! The admin API: what an operator, or a backend that publishes, may ask of a running engine.
//! Law: without the key nothing is read, done or told; whatever is asked, the answer begins within [`PATIENCE`], however
//! slow or dead a shard is.
//!
//! The key travels in `Authorization`, which no page can make a browser add to a request to another origin; there is no
//! cookie to ride on, and no CORS header ever allows one to ask for more. So neither a forged request nor a name that is
//! rebound to this address gets past the key.
//!
//! To add an endpoint: an `async fn` with `#[utoipa::path]` that takes `State<Arc<Api>>` and [`body::Body`] or
//! [`body::Asked`], returns `Result<_, ApiError>`, and is named in [`endpoints`]. Its types derive `ToSchema`, deny unknown
//! fields, and say their bounds; the document, the metrics and the tests of both follow from that.

mod body;
mod document;
mod drain;
mod engine;
mod errands;
mod error;
mod once;
mod publish;
mod sessions;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Running;
use super::drain::Drains;
use super::http::method_not_allowed;
use super::shards::Shards;
use crate::metrics::ShardMetrics;
use body::{BODY_BYTES_MAX, UNDER_WAY_BYTES_MAX};
pub(super) use error::{ApiError, Code};
use once::Once;
use usage::Usage;

/// What the endpoints work with.
struct Api {
    running: Arc<Running>,
    shards: Shards,
    drains: Arc<Drains>,
    once: Arc<Once>,
    room: Arc<Semaphore>,
    hasher: RandomState,
    usage: Arc<Usage>,
    metrics: Vec<Arc<ShardMetrics>>,
    /// Without what the configuration says, which may change.
    document: OpenApi,
}

/// The endpoints, and what counts their use.
pub(super) fn build(
    running: Arc<Running>,
    drains: Arc<Drains>,
    metrics: Vec<Arc<ShardMetrics>>,
) -> (Router, Box<dyn Collector>) {
    let (router, document) = endpoints().split_for_parts();
    let once = Arc::<Once>::default();
    let usage = Arc::new(Usage::new(document.paths.paths.keys().cloned(), once.clone()));
    let api = Arc::new(Api {
        shards: running.shards().clone(),
        running,
        drains,
        once,
        room: Arc::new(Semaphore::new(UNDER_WAY_BYTES_MAX)),
        hasher: RandomState::new(),
        usage: usage.clone(),
        metrics,
        document,
    });
    let router = router
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(api.clone(), authorize))
        .layer(middleware::from_fn_with_state(api.clone(), count))
        .with_state(api);
    (router, Box::new(usage))
}

/// Every endpoint, and the document that describes them.
fn endpoints() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(document::begin())
        .routes(routes!(publish::publish))
        .routes(routes!(publish::batch))
        .routes(routes!(publish::broadcast))
        .routes(routes!(errands::send))
        .routes(routes!(errands::disconnect))
        .routes(routes!(errands::subscribe))
        .routes(routes!(errands::unsubscribe))
        .routes(routes!(sessions::connections))
        .routes(routes!(sessions::session))
        .routes(routes!(engine::topics))
        .routes(routes!(engine::shards))
        .routes(routes!(engine::config))
        .routes(routes!(drain::begin, drain::progress))
        .routes(routes!(engine::reload))
        .routes(routes!(engine::openapi))
}

/// Lets nobody pass who does not have the key.
async fn authorize(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let config = api.running.config();
    let Some(key) = &config.admin.key else {
        let how = "the API is off; set admin.key (or TIDEWHEEL_ADMIN_KEY) to 16 characters or more to switch it on";
        return ApiError::new(Code::Forbidden, how).into_response();
    };
    let is_it = bearer(request.headers()).is_some_and(|given| given.ct_eq(key.expose().as_bytes()).into());
    if !is_it {
        let how = "send `Authorization: Bearer KEY` with the server's admin.key";
        return ApiError::new(Code::Unauthorized, how).into_response();
    }
    next.run(request).await
}

/// The credential of the one `Authorization` header there is.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, credential) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(credential)
}

async fn count(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    if let Some(path) = path {
        api.usage.count(path.as_str(), response.status());
    }
    response
}

/// How long an answer of the shards is waited for: less than the port's patience with a request.
const PATIENCE: Duration = Duration::from_secs(3);
