//! The API's socket: where a caller proves that it can read a file by handing over its descriptor.
//!
//! One request and one reply per connection. Only the daemon's own user and root are served: the data folder's mode keeps
//! others away already, and the kernel's word on who connected holds even where that mode was changed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use super::control::Control;
use super::error::{ApiError, ErrorCode};
use super::frame::{self, LENGTH_BYTES, SocketReply, SocketRequest};
use super::model::Accepted;
use super::{routes, source};
use crate::paths::{self, DataDir, PathError};

/// The most callers at one time; further ones wait in the kernel's queue.
const CALLERS_MAX: usize = 64;
/// How long a caller may take to say what it wants.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// The longest path that fits a socket's address, its final zero included (`sun_path` in unix(7)).
const ADDRESS_BYTES_MAX: usize = 108;

/// A path by which a socket can be bound or reached although its real one is too long for a socket's address.
pub(crate) struct SocketPath {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

impl SocketPath {
    /// Finds a short enough path to the socket of a data folder.
    pub(crate) fn of(data_dir: &DataDir) -> io::Result<Self> {
        let path = data_dir.api_socket();
        if path.as_os_str().len() < ADDRESS_BYTES_MAX {
            return Ok(Self { path, _folder: None });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(data_dir.path(), flags, Mode::empty())?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&folder);
        let path = PathBuf::from(format!("/proc/self/fd/{number}/api.sock"));
        Ok(Self {
            path,
            _folder: Some(folder),
        })
    }

    /// The path; valid as long as this value lives.
    pub(crate) fn as_path(&self) -> &Path {
        &self.path
    }
}

/// Binds the socket of a data folder, in place of one that an earlier daemon left behind.
///
/// The caller holds the folder's lock, so no other daemon listens there.
pub(super) fn bind(data_dir: &DataDir) -> Result<UnixListener, PathError> {
    let real = data_dir.api_socket();
    paths::remove_file(&real)?;
    let bound = SocketPath::of(data_dir).and_then(|path| {
        let listener = UnixListener::bind(path.as_path())?;
        fs::set_permissions(&real, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    bound.map_err(PathError::io("listen on", &real))
}

/// Serves callers until `stopping` says so.
pub(super) async fn serve(
    mut listener: UnixListener,
    control: Arc<dyn Control>,
    mut stopping: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(CALLERS_MAX));
    loop {
        let permit = Arc::clone(&permits)
            .acquire_owned()
            .await
            .expect("the semaphore is local and never closed");
        let stream = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted.0,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let control = Arc::clone(&control);
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &*control).await {
                tracing::debug!(%error, "a caller of the API's socket went away");
            }
            drop(permit);
        });
    }
}

async fn answer(mut stream: UnixStream, control: &dyn Control) -> io::Result<()> {
    let reply = match handle(&mut stream, control).await {
        Ok(None) => return Ok(()),
        Ok(Some(accepted)) => SocketReply::Accepted(accepted),
        Err(error) => {
            tracing::warn!(reason = %error, "refused a request on the API's socket");
            SocketReply::Error(error)
        }
    };
    stream.write_all(&frame::encode(&reply)?).await?;
    stream.shutdown().await
}

/// Carries out a caller's request; `None` for a caller that only wanted to know whether a daemon is here.
async fn handle(stream: &mut UnixStream, control: &dyn Control) -> Result<Option<Accepted>, ApiError> {
    check_caller(stream)?;
    let received = tokio::time::timeout(REQUEST_MAX, receive(stream)).await;
    let received =
        received.map_err(|_| ApiError::new(ErrorCode::TimedOut, "the request did not come in time"))??;
    let Some((request, descriptor)) = received else {
        return Ok(None);
    };
    let SocketRequest::Send(mut order) = request;
    let descriptor =
        descriptor.ok_or_else(|| ApiError::new(ErrorCode::Refused, "no descriptor came with the request"))?;
    let path = order
        .path
        .take()
        .ok_or_else(|| ApiError::new(ErrorCode::Usage, "the order has no path"))?;
    // A look at a file waits for its disk, or for a network file system that may be gone.
    let checked = tokio::task::spawn_blocking(move || source::from_descriptor(descriptor, path));
    let source = checked.await.map_err(|_| ApiError::interrupted())??;
    // A caller that goes away before its transfer has begun does not want it any more.
    let mut more = [0];
    tokio::select! {
        begun = control.send(routes::request_of(order, source)?) => Ok(Some(Accepted { transfer_id: begun? })),
        _ = stream.read(&mut more) => Err(ApiError::new(ErrorCode::Failed, "the caller went away")),
    }
}

fn check_caller(stream: &UnixStream) -> Result<(), ApiError> {
    let caller = stream
        .peer_cred()
        .map_err(|error| ApiError::of(ErrorCode::Refused, &error))?
        .uid();
    let own = rustix::process::getuid().as_raw();
    if caller == own || caller == 0 {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Refused,
        format!("user {caller} may not use the daemon of user {own}"),
    ))
}

async fn receive(stream: &mut UnixStream) -> Result<Option<(SocketRequest, Option<OwnedFd>)>, ApiError> {
    let broken = |error: io::Error| ApiError::of(ErrorCode::Usage, &error);
    let mut length = [0; LENGTH_BYTES];
    let first = stream.async_io(Interest::READABLE, || {
        frame::receive_with_descriptor(stream.as_fd(), &mut length)
    });
    let (got, descriptor) = first.await.map_err(broken)?;
    if got == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[got..]).await.map_err(broken)?;
    let length = frame::decode_length(length).ok_or_else(|| {
        ApiError::new(
            ErrorCode::TooLarge,
            format!("the request is larger than {} bytes", frame::FRAME_BYTES_MAX),
        )
    })?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(broken)?;
    let request = serde_json::from_slice(&body).map_err(|error| ApiError::of(ErrorCode::Usage, &error))?;
    Ok(Some((request, descriptor)))
}
