//! Bodies that are files: they are spooled to disk first, because a transfer reads its source again when it is resumed.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::Api;
use super::control::SendSource;
use super::error::{ApiError, ErrorCode};
use crate::paths::{self, DataDir, PathError};

/// How many pieces of a body may wait for the disk.
const PIECES_MAX: usize = 16;
/// How long a client may pause in the middle of a body.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Writes a body to a file of its own and returns it, durable and ready to be sent.
pub(super) async fn receive(api: &Api, body: Body) -> Result<SendSource, ApiError> {
    let _permit = api.uploads.try_acquire().map_err(|_| {
        ApiError::new(ErrorCode::Busy, "too many uploads at one time").hint("try again in a moment")
    })?;
    let (pieces, received) = mpsc::channel(PIECES_MAX);
    let data_dir = api.data_dir.clone();
    let writer = tokio::task::spawn_blocking(move || spool(&data_dir, received));
    let fed = feed(body, pieces, api.upload_bytes_max).await;
    // A writer that failed is the reason why feeding it failed, so its error goes first.
    let source = writer.await.map_err(|_| ApiError::interrupted())?;
    match (source, fed) {
        (Err(error), _) => Err(ApiError::of(ErrorCode::Failed, &error)),
        (Ok(Some(source)), Ok(())) => Ok(source),
        (Ok(_), Err(error)) => Err(error),
        (Ok(None), Ok(())) => Err(ApiError::interrupted()),
    }
}

/// Removes a spooled body whose transfer did not begin.
pub(super) fn discard(path: &Path) {
    if let Err(error) = paths::remove_file(path) {
        tracing::warn!(%error, "an upload was left behind");
    }
}

fn cut_off(code: ErrorCode, message: &str) -> ApiError {
    ApiError::new(code, message)
        .hint("a body that did not arrive whole is not kept: upload it again, or send the file by its path")
}

async fn feed(body: Body, pieces: mpsc::Sender<Option<Bytes>>, bytes_max: u64) -> Result<(), ApiError> {
    let mut stream = body.into_data_stream();
    let mut bytes = 0;
    loop {
        let piece = tokio::time::timeout(PAUSE_MAX, stream.next())
            .await
            .map_err(|_| cut_off(ErrorCode::TimedOut, "the upload paused for too long"))?;
        let Some(piece) = piece else { break };
        let piece = piece.map_err(|_| cut_off(ErrorCode::Failed, "the upload was cut off"))?;
        bytes += piece.len() as u64;
        if bytes > bytes_max {
            let message = format!("the upload is larger than {bytes_max} bytes");
            return Err(ApiError::new(ErrorCode::TooLarge, message)
                .hint("raise limits.upload_bytes, or use `hyperfabric send`"));
        }
        if pieces.send(Some(piece)).await.is_err() {
            return Ok(());
        }
    }
    // Only a body that ended as it should is kept; a channel that just closes is one that did not.
    drop(pieces.send(None).await);
    Ok(())
}

/// Writes pieces until the end is announced; `None` when it never was, and nothing is left behind then.
fn spool(
    data_dir: &DataDir,
    mut pieces: mpsc::Receiver<Option<Bytes>>,
) -> Result<Option<SendSource>, PathError> {
    let folder = data_dir.uploads();
    paths::make_private_dir(&folder)?;
    let failed = |source| PathError::Io {
        verb: "store an upload in",
        path: folder.clone(),
        source,
    };
    let mut file = tempfile::Builder::new()
        .prefix("upload-")
        .tempfile_in(&folder)
        .map_err(failed)?;
    loop {
        match pieces.blocking_recv() {
            Some(Some(piece)) => file.write_all(&piece).map_err(failed)?,
            Some(None) => break,
            None => return Ok(None),
        }
    }
    file.as_file().sync_all().map_err(failed)?;
    let (file, path) = file.keep().map_err(|error| failed(error.error))?;
    // The journal names this file, so it has to outlive what the journal outlives.
    std::fs::File::open(&folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    let path = path.canonicalize().map_err(failed)?;
    Ok(Some(SendSource {
        file: OwnedFd::from(file),
        path,
        upload: true,
    }))
}
