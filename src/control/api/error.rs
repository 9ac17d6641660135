//! What goes wrong with a request to the API, as its caller is told.
//! Law: every answer that is no success is `{"code", "message"}`; a code has one status, and clients of the WebSocket
//! know the codes that both have by the same names.

use std::collections::BTreeMap;

use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response as Described, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::app::context::Refused;
use crate::control::http::json;
use crate::metrics::ErrorCode;

/// What went wrong, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::control) enum Code {
    /// 400: not JSON, a member of the wrong type, one that is missing or unknown, a value that is not possible.
    InvalidMessage,
    /// 401: no key, or not this server's.
    Unauthorized,
    /// 403: the API is off.
    Forbidden,
    /// 404: the thing named does not exist.
    NotFound,
    /// 405: the path is known, the method is not.
    MethodNotAllowed,
    /// 409: the idempotency key belongs to another request, or the engine was not told how to reload.
    Conflict,
    /// 413: the request, or a part of it, is too large.
    TooLarge,
    /// 415: the body is not `application/json`.
    UnsupportedMediaType,
    /// 422: the configuration to reload is not valid, and nothing has changed; the message has a line for each problem.
    InvalidConfiguration,
    /// 429: a bound is reached, and nothing was done.
    LimitExceeded,
    /// 500: a fault of the server.
    InternalError,
    /// 503: the engine has ended.
    Unavailable,
    /// 504: the engine did not answer in time; what was asked may still be done.
    Timeout,
}

impl Code {
    const ALL: [Self; 13] = [
        Self::InvalidMessage,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::InvalidConfiguration,
        Self::LimitExceeded,
        Self::InternalError,
        Self::Unavailable,
        Self::Timeout,
    ];

    fn status(self) -> StatusCode {
        match self {
            Self::InvalidMessage => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::InvalidConfiguration => StatusCode::UNPROCESSABLE_ENTITY,
            Self::LimitExceeded => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn means(self) -> &'static str {
        match self {
            Self::InvalidMessage => "Not JSON, or a member that is missing, unknown or not possible",
            Self::Unauthorized => "No key, or not this server's",
            Self::Forbidden => "The API is off: the server has no `admin.key`",
            Self::NotFound => "What is named does not exist",
            Self::MethodNotAllowed => "The path has other methods",
            Self::Conflict => "The idempotency key belongs to another request, or there is nothing to reload from",
            Self::TooLarge => "The request, or a part of it, is too large",
            Self::UnsupportedMediaType => "The body is not `application/json`",
            Self::InvalidConfiguration => "The configuration is not valid; nothing has changed",
            Self::LimitExceeded => "A bound is reached; nothing was done",
            Self::InternalError => "A fault of the server",
            Self::Unavailable => "The engine has ended",
            Self::Timeout => "The engine did not answer in time; what was asked may still be done",
        }
    }
}

impl From<ErrorCode> for Code {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::InvalidMessage | ErrorCode::UnknownMessage => Self::InvalidMessage,
            ErrorCode::Unauthorized => Self::Unauthorized,
            ErrorCode::Forbidden => Self::Forbidden,
            ErrorCode::NotFound => Self::NotFound,
            ErrorCode::RateLimited | ErrorCode::LimitExceeded => Self::LimitExceeded,
            ErrorCode::TooLarge => Self::TooLarge,
            ErrorCode::InternalError => Self::InternalError,
        }
    }
}

/// A refusal, with its text for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Error)]
pub(in crate::control) struct ApiError {
    pub(in crate::control) code: Code,
    /// What was wrong, and what to do.
    pub(in crate::control) message: String,
}

impl ApiError {
    pub(in crate::control) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidMessage, message)
    }
}

/// Of the shards' refusals; whatever an order names is found by its answer, so the only thing missing is the engine.
impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused.code {
            ErrorCode::NotFound => Self::new(Code::Unavailable, "the engine has ended"),
            code => Self::new(code.into(), refused.message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json(self.code.status(), &self);
        if self.code == Code::Unauthorized {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// What any endpoint may answer instead of what it is for.
impl IntoResponses for ApiError {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        let describe = |code: Code| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
            let described = ResponseBuilder::new().description(code.means()).content("application/json", content);
            (code.status().as_str().to_owned(), described.build().into())
        };
        Code::ALL.into_iter().map(describe).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_the_wire_has_too_have_the_same_names_there() {
        for &code in ErrorCode::ALL {
            let name = serde_json::to_value(Code::from(code)).unwrap();
            let same = match code {
                ErrorCode::UnknownMessage => "invalid_message",
                ErrorCode::RateLimited => "limit_exceeded",
                code => code.label(),
            };
            assert_eq!(name, same);
        }
    }

    #[test]
    fn every_code_has_a_status_of_its_own() {
        assert_eq!(ApiError::responses().len(), Code::ALL.len());
    }
}
