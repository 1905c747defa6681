//! Who may speak to the local API.
//!
//! Loopback keeps other hosts out, not other programs on this one: a web page can make a browser send requests to
//! 127.0.0.1, and a name that its owner points there (DNS rebinding) lets it read the answers. So every request must
//! name this server in `Host`, must not come from another origin, and must carry the token that only the owner of the
//! data folder can read. The order matters: a foreign page learns nothing, not even whether a token was right.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, ErrorCode};
use super::token::Token;

/// What a request is compared with.
#[derive(Debug)]
pub(super) struct Guard {
    address: SocketAddr,
    token: Token,
}

impl Guard {
    pub(super) fn new(address: SocketAddr, token: Token) -> Self {
        Self { address, token }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = single(headers, HOST).ok_or_else(foreign_host)?;
        if !self.is_ours(host) {
            return Err(foreign_host());
        }
        if headers.contains_key(ORIGIN) {
            let ours =
                single(headers, ORIGIN).and_then(|origin| origin.strip_prefix("http://")) == Some(host);
            if !ours {
                return Err(ApiError::new(
                    ErrorCode::Refused,
                    "the request comes from another origin",
                ));
            }
        }
        let shown = single(headers, AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        if !shown.is_some_and(|shown| self.token.matches(shown)) {
            let message = if shown.is_some() {
                "the token is wrong"
            } else {
                "the request has no token"
            };
            return Err(ApiError::new(ErrorCode::Unauthorized, message).hint(
                "send `Authorization: Bearer TOKEN` with the content of api.token in the data folder",
            ));
        }
        Ok(())
    }

    /// Tells whether `host` is a loopback name or address with our port.
    fn is_ours(&self, host: &str) -> bool {
        // A client leaves out the port where it is HTTP's own.
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()),
            _ => (host, Some(80)),
        };
        if port != Some(self.address.port()) {
            return false;
        }
        let address = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .unwrap_or(name);
        name.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

/// Lets a request through, or answers why not.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            tracing::warn!(path = request.uri().path(), reason = %error, "refused a request to the local API");
            error.into_response()
        }
    }
}

fn foreign_host() -> ApiError {
    ApiError::new(ErrorCode::Refused, "the request names another host")
}

/// Returns a header that is there exactly once and is text: of two, another program may read the other one.
fn single(headers: &HeaderMap, name: axum::http::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_with_our_port_are_ours() {
        let guard = Guard::new("127.0.0.1:7070".parse().unwrap(), Token::generate().unwrap());
        for host in [
            "127.0.0.1:7070",
            "localhost:7070",
            "LOCALHOST:7070",
            "[::1]:7070",
            "127.0.0.2:7070",
        ] {
            assert!(guard.is_ours(host), "{host}");
        }
        for host in [
            "127.0.0.1",
            "127.0.0.1:7071",
            "localhost",
            "localhost.evil.example:7070",
            "evil.example:7070",
            "10.0.0.1:7070",
            "[::]:7070",
            "[::1]",
            ":7070",
            "",
            "127.0.0.1:7070:7070",
            "user@127.0.0.1:7070",
        ] {
            assert!(!guard.is_ours(host), "{host}");
        }
        let on_80 = Guard::new("127.0.0.1:80".parse().unwrap(), Token::generate().unwrap());
        assert!(on_80.is_ours("localhost") && on_80.is_ours("[::1]") && on_80.is_ours("127.0.0.1:80"));
    }
}
