//! The HTTP server of health and metrics, and what a client can use up of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::serve::Listener;
use axum::{Json, Router};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::Reporter;
use crate::StartError;

/// Clients at once; further ones wait to be accepted.
const VISITS_MAX: usize = 16;
/// From being accepted to the end of the answer.
const VISIT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a client may send in all; one request for a page is some hundred bytes.
const VISIT_BYTES_MAX: usize = 16 * 1024;
/// Prometheus asks for the version of its text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The running server.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// A bound socket and its address.
pub(crate) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// Binds the address. Must be called inside a runtime.
pub(crate) fn bind(address: SocketAddr) -> Result<Bound, StartError> {
    let listen = || -> io::Result<Bound> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Bound {
            address: listener.local_addr()?,
            listener: TcpListener::from_std(listener)?,
        })
    };
    listen().map_err(|source| StartError::Health { address, source })
}

impl Server {
    pub(crate) fn start(runtime: &Runtime, bound: Bound, reporter: Reporter) -> Self {
        let Bound { listener, address } = bound;
        let door = Door {
            listener,
            places: Arc::new(Semaphore::new(VISITS_MAX)),
        };
        let pages = router(reporter, address.ip());
        let task = runtime.spawn(async move {
            // Ends only when it is aborted.
            let _ = axum::serve(door, pages).await;
        });
        Self { address, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the port back; answers under way are finished within [`VISIT_TIMEOUT`].
    pub(crate) async fn stop(self) {
        self.task.abort();
        // The abort is the expected error.
        let _ = self.task.await;
    }
}

fn router(reporter: Reporter, ip: IpAddr) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(reporter)
        .layer(middleware::from_fn(move |request, next| {
            one_answer(ip, request, next)
        }))
}

async fn health(State(reporter): State<Reporter>) -> Response {
    match reporter.health().await {
        Some(health) => Json(health).into_response(),
        None => {
            let body = serde_json::json!({ "status": "unresponsive" });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn metrics(State(reporter): State<Reporter>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], reporter.metrics().await).into_response()
}

/// Answers once per connection, and on loopback only those who asked for loopback: a web page whose name was made to point here is not meant
/// to read the answer.
async fn one_answer(ip: IpAddr, request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let mut response = if ip.is_loopback() && !host.is_some_and(names_loopback) {
        StatusCode::FORBIDDEN.into_response()
    } else {
        next.run(request).await
    };
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn names_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let plain = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || plain.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Accepts a bounded number of clients.
struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Listener for Door {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let deadline = Box::pin(tokio::time::sleep(VISIT_TIMEOUT));
        (
            Visit {
                stream,
                deadline,
                unread: VISIT_BYTES_MAX,
                _place: place,
            },
            address,
        )
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A client's connection with its allowance.
struct Visit {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    unread: usize,
    _place: OwnedSemaphorePermit,
}

impl Visit {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        if self.unread == 0 {
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        // The last read may exceed the allowance by what the buffer holds; there is no read after it.
        self.unread = self.unread.saturating_sub(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_loopback_are_taken_for_it() {
        for host in [
            "localhost",
            "LocalHost:80",
            "127.0.0.1:8080",
            "127.8.8.8",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(names_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "127.0.0.1.example.org:80",
            "localhost.example.org",
            "192.0.2.1:80",
            "::2",
        ] {
            assert!(!names_loopback(host), "{host}");
        }
    }
}
