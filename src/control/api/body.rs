//! What comes in: JSON bodies and query strings, and the room that they are given.
//! Law: a body is read only if it may be that large and there is room for it with all the others that are under way;
//! whatever is not understood is an error that names the member.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::sync::OwnedSemaphorePermit;

use super::Api;
use super::error::{ApiError, Code};

/// A request's JSON body.
pub(super) struct Body<T> {
    pub(super) value: T,
    /// A hash of its bytes, as they came.
    pub(super) fingerprint: u64,
    /// To be kept until nothing is left of what was asked.
    pub(super) room: OwnedSemaphorePermit,
}

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(Code::UnsupportedMediaType, "send JSON, with `Content-Type: application/json`"));
        }
        let (bytes, room) = read(request, api).await?;
        let value = serde_json::from_slice(&bytes).map_err(|error| match error.is_data() {
            true => ApiError::invalid(error.to_string()),
            false => ApiError::invalid(format!("the body is not JSON: {error}")),
        })?;
        let Object(value) = value;
        Ok(Self { value, fingerprint: api.hasher.hash_one(&*bytes), room })
    }
}

async fn read(request: Request, api: &Arc<Api>) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
    let too_large = || {
        let most = BODY_BYTES_MAX;
        ApiError::new(Code::TooLarge, format!("a request may have {most} bytes; send several"))
    };
    // What is not declared may be as large as it gets.
    let declared = request.body().size_hint().upper().unwrap_or(BODY_BYTES_MAX as u64);
    if declared > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let room = Arc::clone(&api.room).try_acquire_many_owned(declared as u32);
    let room = room.map_err(|_| ApiError::new(Code::LimitExceeded, "too much is under way; send it again later"))?;
    match Bytes::from_request(request, api).await {
        Ok(bytes) => Ok((bytes, room)),
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
        Err(_) => Err(ApiError::invalid("the body broke off")),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// A struct from a JSON object, and from nothing else: of itself serde also takes a list of the members' values.
#[derive(Clone, Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }

        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

/// A request's query string.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let asked = Query::try_from_uri(&parts.uri);
        asked.map(|Query(asked)| Self(asked)).map_err(|rejection| ApiError::invalid(rejection.body_text()))
    }
}

/// For members that may be missing, but not `null`.
pub(super) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Bytes of one body; beyond, 413.
pub(super) const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of the bodies that are under way together; beyond, 429.
pub(super) const UNDER_WAY_BYTES_MAX: usize = 16 * BODY_BYTES_MAX;
