//! The local API: what the command line, dashboards and scripts use to speak with a running daemon.
//!
//! [`ApiServer`] serves HTTP on loopback and a socket in the data folder, and drives a [`Control`]. `routes` has the
//! routes, [`model`] the shapes, `guard` says who may ask, [`source`] which files may be read for whom.

pub mod control;
pub mod error;
pub mod events;
pub(crate) mod frame;
mod guard;
mod listener;
pub mod model;
mod openapi;
mod routes;
mod schema;
pub(crate) mod socket;
pub mod source;
pub mod token;
mod upload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::middleware;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};

pub use control::{Answer, Control, Ping, SendRequest, SendSource};
pub use error::{ApiError, ErrorBody, ErrorCode};
pub use events::{FeedItem, TransferFeed};
pub use token::{Token, TokenError};

use crate::config::FabricConfig;
use crate::paths::{self, DataDir, PathError};

/// The most uploads at one time.
const UPLOADS_MAX: usize = 4;
/// The most event streams at one time.
const FOLLOWERS_MAX: usize = 32;

/// Why the local API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiServeError {
    /// The address is taken, or not this host's.
    #[error("cannot serve the local API at {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The address can be reached from other hosts.
    #[error("the local API is served on loopback only, and {address} is not")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// A file in the data folder cannot be written.
    #[error(transparent)]
    File(#[from] PathError),
    /// There is no token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// What every handler shares.
pub(crate) struct Api {
    control: Arc<dyn Control>,
    data_dir: DataDir,
    send_roots: Arc<[PathBuf]>,
    upload_bytes_max: u64,
    uploads: Semaphore,
    followers: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

/// The local API, bound and not yet serving.
pub struct ApiServer {
    address: SocketAddr,
    tcp: TcpListener,
    unix: UnixListener,
    token: Token,
    data_dir: DataDir,
    send_roots: Arc<[PathBuf]>,
    upload_bytes_max: u64,
}

impl ApiServer {
    /// Binds the address of the configuration and the socket of the data folder, and writes where the API is.
    ///
    /// The caller holds the data folder's lock, within a tokio runtime.
    ///
    /// # Errors
    /// [`ApiServeError`] when an address or file is not to be had.
    pub async fn bind(data_dir: &DataDir, config: &FabricConfig) -> Result<Self, ApiServeError> {
        let address = config.api_listen;
        if !address.ip().is_loopback() {
            return Err(ApiServeError::NotLoopback { address });
        }
        let bind_failed = |source| ApiServeError::Bind { address, source };
        let tcp = TcpListener::bind(address).await.map_err(bind_failed)?;
        let bound = tcp.local_addr().map_err(bind_failed)?;
        let token = Token::read_or_create(data_dir)?;
        // Whoever reaches the socket trusts the file, so what an earlier daemon wrote has to go before the socket is there.
        paths::remove_file(&data_dir.api_addr())?;
        let unix = socket::bind(data_dir)?;
        paths::replace_file(&data_dir.api_addr(), format!("{bound}\n").as_bytes())?;
        Ok(Self {
            address: bound,
            tcp,
            unix,
            token,
            data_dir: data_dir.clone(),
            send_roots: config.send_roots.clone().into(),
            upload_bytes_max: config.limits.upload_bytes,
        })
    }

    /// Returns where HTTP is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stopping` becomes true, finishes the requests that are under way, and removes the file that says
    /// where the API is.
    pub async fn serve(self, control: Arc<dyn Control>, stopping: watch::Receiver<bool>) {
        let api = Arc::new(Api {
            control: Arc::clone(&control),
            data_dir: self.data_dir.clone(),
            send_roots: self.send_roots,
            upload_bytes_max: self.upload_bytes_max,
            uploads: Semaphore::new(UPLOADS_MAX),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            stopping: stopping.clone(),
        });
        let guard = Arc::new(guard::Guard::new(self.address, self.token));
        let router = router()
            .with_state(api)
            .layer(middleware::from_fn_with_state(guard, guard::check));
        let mut stop = stopping.clone();
        // An error means that whoever could say "stop" is gone, so it is time to.
        let http = axum::serve(listener::BoundedListener::new(self.tcp), router)
            .with_graceful_shutdown(async move { drop(stop.wait_for(|stopping| *stopping).await) });
        let (served, ()) = tokio::join!(http, socket::serve(self.unix, control, stopping));
        if let Err(error) = served {
            tracing::error!(%error, "the local API ended");
        }
        for path in [self.data_dir.api_addr(), self.data_dir.api_socket()] {
            if let Err(error) = paths::remove_file(&path) {
                tracing::warn!(%error, "a file of the local API was left behind");
            }
        }
    }
}

fn router() -> Router<Arc<Api>> {
    let all = routes::ROUTES.iter().fold(Router::new(), |router, route| {
        router.route(route.path, (route.handler)())
    });
    // The latter holds for the routes that are there when it is called.
    all.fallback(routes::no_such_route)
        .method_not_allowed_fallback(routes::no_such_method)
}

#[cfg(test)]
pub(crate) mod tests;
