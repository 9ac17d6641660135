//! What is done to certain connections: those of a session, of a client, of a topic.
//! Law: an operator is not bound by the permissions of tokens, but by every bound on a connection; the answer counts whom
//! it was meant for and whom it was done to, and nobody at all is 404.

use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::Api;
use super::body::{Body, present};
use super::error::{ApiError, Code};
use super::once::{Given, IdempotencyKey};
use super::publish::{Topic, check_json};
use crate::app::OutgoingMessage;
use crate::control::shards::{Shards, Target};
use crate::shard::errands::{Disconnect, Errand, Reached};

/// The id of a session, as its client was told in `auth_result`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
pub(super) struct SessionId(String);

/// The id of a client: the claim `sub` of its token.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(value_type = String)]
pub(super) struct ClientId(String);

/// Whom it was done to.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Outcome {
    /// Open connections that were meant.
    matched: u64,
    /// Those of them that it was done to; for a message, those on whose queue it was put.
    done: u64,
    /// Why it was not done to others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    refused: Option<ApiError>,
}

/// Sends a message to a session or to all connections of a client.
///
/// It is queued like a published message: a connection whose queue is at its bound is disconnected.
#[utoipa::path(post, path = "/api/send", tag = "connections", request_body = SendRequest,
    responses((status = 200, description = "Queued for those that are there", body = Outcome), ApiError))]
pub(super) async fn send(
    State(api): State<Arc<Api>>,
    Body { value, fingerprint, room }: Body<SendRequest>,
) -> Result<Given, ApiError> {
    let SendRequest { session_id, client, kind, payload, idempotency_key } = value;
    let target = target(session_id, client, None)?;
    check_json("payload", &payload)?;
    let kind = kind.map_or_else(|| DIRECT.to_owned(), |Kind(kind)| kind);
    let message = OutgoingMessage::new(kind, &payload).map_err(|error| ApiError::invalid(error.to_string()))?;
    let shards = api.shards.clone();
    let work = async move {
        let _room = room;
        outcome(&shards, target, Errand::Send(message)).await
    };
    api.once.run(idempotency_key, fingerprint ^ SEND, work).await
}

/// A message to one session or one client.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SendRequest {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    session_id: Option<SessionId>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    client: Option<ClientId>,
    /// The `type` of the message; `direct` if there is none.
    #[serde(default, rename = "type", deserialize_with = "present")]
    #[schema(nullable = false)]
    kind: Option<Kind>,
    /// Any JSON value; the client gets the same bytes.
    #[schema(value_type = serde_json::Value)]
    payload: Box<RawValue>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    idempotency_key: Option<IdempotencyKey>,
}

/// The `type` of a message: 1 to 64 printable ASCII characters without spaces.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, pattern = "^[!-~]{1,64}$", min_length = 1, max_length = 64)]
pub(super) struct Kind(String);

impl TryFrom<String> for Kind {
    type Error = &'static str;

    fn try_from(kind: String) -> Result<Self, Self::Error> {
        match (1..=64).contains(&kind.len()) && kind.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(kind)),
            false => Err("`type` must be 1 to 64 printable ASCII characters without spaces"),
        }
    }
}

/// Closes a session, all connections of a client, or all subscribers of a topic.
///
/// What is queued for a connection and owed to it is sent first, then a `disconnect` that says why.
#[utoipa::path(post, path = "/api/disconnect", tag = "connections", request_body = DisconnectRequest,
    responses((status = 200, description = "They are being closed", body = Outcome), ApiError))]
pub(super) async fn disconnect(
    State(api): State<Arc<Api>>,
    Body { value, room, .. }: Body<DisconnectRequest>,
) -> Result<Given, ApiError> {
    let DisconnectRequest { session_id, client, topic, code, reason, reconnect } = value;
    let target = target(session_id, client, topic)?;
    let usual = Disconnect::default();
    let code = code.map_or(usual.code, |CloseCode(code)| code);
    let reason = reason.unwrap_or(usual.reason);
    if reason.len() > REASON_BYTES_MAX {
        let message = format!("`reason` may have {REASON_BYTES_MAX} bytes");
        return Err(ApiError::new(Code::TooLarge, message));
    }
    run(&api, target, Errand::Disconnect(Disconnect { code, reason, reconnect }), room).await
}

/// Who is to be closed, and how.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DisconnectRequest {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    session_id: Option<SessionId>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    client: Option<ClientId>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    topic: Option<Topic>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    code: Option<CloseCode>,
    /// Text for people, at most 123 bytes.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, max_length = 123)]
    reason: Option<String>,
    /// Whether the client should come back; if it is missing, the code says it: 4000 to 4499 come back.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    reconnect: Option<bool>,
}

/// A close code that an application may use; 4504 if there is none.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "f64")]
pub(super) struct CloseCode(u16);

/// JSON has one kind of number, so 4504.0 is one too.
impl TryFrom<f64> for CloseCode {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        match number as u16 {
            code @ (1000 | 3000..=4999) if f64::from(code) == number => Ok(Self(code)),
            _ => Err("`code` must be 1000 or 3000 to 4999"),
        }
    }
}

impl ToSchema for CloseCode {}

impl PartialSchema for CloseCode {
    fn schema() -> RefOr<Schema> {
        let from_to = |from: u16, to: u16| {
            ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(from)).maximum(Some(to)).build()
        };
        RefOr::T(OneOfBuilder::new().item(from_to(1000, 1000)).item(from_to(3000, 4999)).build().into())
    }
}

/// Subscribes a session, or all connections of a client that are there now, to a topic.
///
/// Whatever its token allows; the client is not told. Whoever is subscribed already counts as done.
#[utoipa::path(post, path = "/api/subscribe", tag = "connections", request_body = SubscribeRequest,
    responses((status = 200, description = "In force", body = Outcome), ApiError))]
pub(super) async fn subscribe(
    State(api): State<Arc<Api>>,
    Body { value: SubscribeRequest { session_id, client, topic }, room, .. }: Body<SubscribeRequest>,
) -> Result<Given, ApiError> {
    let target = target(session_id, client, None)?;
    run(&api, target, Errand::Subscribe { topic: topic.0.into() }, room).await
}

/// Ends the subscription of a session, or of all connections of a client, to a topic.
///
/// The client is not told.
#[utoipa::path(post, path = "/api/unsubscribe", tag = "connections", request_body = SubscribeRequest,
    responses((status = 200, description = "In force; `done` counts those that were subscribed", body = Outcome), ApiError))]
pub(super) async fn unsubscribe(
    State(api): State<Arc<Api>>,
    Body { value: SubscribeRequest { session_id, client, topic }, room, .. }: Body<SubscribeRequest>,
) -> Result<Given, ApiError> {
    let target = target(session_id, client, None)?;
    run(&api, target, Errand::Unsubscribe { topic: topic.0.into() }, room).await
}

/// Whose subscription to what.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SubscribeRequest {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    session_id: Option<SessionId>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    client: Option<ClientId>,
    topic: Topic,
}

/// The schemas above of which exactly one of some members must be there, and those members.
pub(super) const ONE_OF: &[(&str, &[&str])] = &[
    ("SendRequest", &["session_id", "client"]),
    ("DisconnectRequest", &["session_id", "client", "topic"]),
    ("SubscribeRequest", &["session_id", "client"]),
];

fn target(session_id: Option<SessionId>, client: Option<ClientId>, topic: Option<Topic>) -> Result<Target, ApiError> {
    match (session_id, client, topic) {
        (Some(SessionId(id)), None, None) => match id.parse() {
            Ok(id) => Ok(Target::Session(id)),
            Err(_) => Err(ApiError::invalid("`session_id` must be a UUID")),
        },
        (None, Some(ClientId(client)), None) => Ok(Target::Client(client.into())),
        (None, None, Some(Topic(topic))) => Ok(Target::Topic(topic.into())),
        _ => Err(ApiError::invalid(
            "name whom it is for: exactly one of `session_id`, `client` and, to disconnect, `topic`",
        )),
    }
}

async fn run(api: &Api, target: Target, errand: Errand, room: OwnedSemaphorePermit) -> Result<Given, ApiError> {
    let shards = api.shards.clone();
    let work = async move {
        let _room = room;
        outcome(&shards, target, errand).await
    };
    // Done twice is as good as once.
    api.once.run(None, 0, work).await
}

async fn outcome(shards: &Shards, target: Target, errand: Errand) -> Result<Outcome, ApiError> {
    let Reached { matched, done, refusal } = shards.run(target, errand).await?;
    match refusal.map(ApiError::from) {
        None if matched == 0 => Err(ApiError::new(Code::NotFound, "there is no such connection")),
        Some(refused) if done == 0 => Err(refused),
        refused => Ok(Outcome { matched, done, refused }),
    }
}

/// The `type` of a message that has none.
const DIRECT: &str = "direct";
/// Bytes of a close frame's reason (RFC 6455 §5.5).
const REASON_BYTES_MAX: usize = 123;
/// Tells the same body to different endpoints apart.
const SEND: u64 = 4;
