//! The one error that the local API and the command line show.
//!
//! Its code decides the HTTP status and the exit code; its name is that of the typed error behind it, such as
//! `NodeNotFoundError`, for programs that want to tell more apart than six exit codes can.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense: a missing or malformed argument.
    Usage,
    /// The token is missing or wrong.
    Unauthorized,
    /// The request is understood and will not be carried out.
    Refused,
    /// The node, transfer, member or route does not exist.
    NotFound,
    /// The route exists, with another method.
    MethodNotAllowed,
    /// It collides with what is already there.
    Conflict,
    /// A body, name or list exceeds its limit.
    TooLarge,
    /// A limit on simultaneous work is reached; later it may work.
    Busy,
    /// It was tried and did not work.
    Failed,
    /// The daemon is starting or stopping.
    Unavailable,
    /// It took longer than was allowed.
    TimedOut,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 11] = [
        Self::Usage,
        Self::Unauthorized,
        Self::Refused,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::TooLarge,
        Self::Busy,
        Self::Failed,
        Self::Unavailable,
        Self::TimedOut,
    ];

    /// Returns the exit code of a command that ends this way: 1 failed, 2 usage, 3 not found, 4 refused, 5 timed out.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Unavailable | Self::Busy => 1,
            Self::Usage | Self::MethodNotAllowed => 2,
            Self::NotFound => 3,
            Self::Unauthorized | Self::Refused | Self::Conflict | Self::TooLarge => 4,
            Self::TimedOut => 5,
        }
    }

    /// Returns the HTTP status of an answer that carries it.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Usage => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Refused => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure it was.
    pub code: ErrorCode,
    /// The name of the typed error behind it, such as `NodeNotFoundError`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What went wrong, for people; its causes follow after colons.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The body of every answer that is not a success: `{"error": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

impl ApiError {
    /// Makes an error with a message.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            name: None,
            message: message.into(),
            hint: None,
        }
    }

    /// Makes an error whose message is that of `error` and all of its causes.
    #[must_use]
    pub fn of(code: ErrorCode, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Self::new(code, message)
    }

    /// Adds the name of the typed error behind it.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns the error for work that panicked or was dropped by the runtime.
    pub(crate) fn interrupted() -> Self {
        Self::new(ErrorCode::Unavailable, "the daemon is stopping")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.code.status(), Json(ErrorBody { error: self })).into_response()
    }
}
