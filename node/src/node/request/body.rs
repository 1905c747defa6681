//! Headers and bodies of requests and answers on their streams, and how long they may stand still.

use std::time::Duration;

use bytes::Bytes;
use hyperfabric_mesh::{RecvStream, SendStream, StreamError};
use hyperfabric_protocol::cbor::{self, Value};
use tokio::time::timeout;

use super::{DATA_BYTES_MAX, DataError};

/// The largest header, in bytes: 32 texts of 512 bytes, and the rest.
const HEADER_BYTES_MAX: usize = 20 * 1024;
/// How long a body may stand still: as long a silence ends a connection.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// What counts as progress of an answer that its asker takes: what 52 kbit/s carry in that time.
const PROGRESS_BYTES: usize = 64 << 10;
/// Pieces that are asked of a stream at once.
const BATCH_PIECES: usize = 64;
/// Room that is made for a body before it has begun to come.
const BODY_BYTES_AHEAD: usize = 1 << 20;

fn head(header: &impl Value) -> Bytes {
    let header = cbor::to_bytes(header);
    let length = u32::try_from(header.len()).unwrap_or(u32::MAX).to_be_bytes();
    [length.as_slice(), &header].concat().into()
}

/// Sends a header and a body, however long the other side takes to make room for it.
pub(super) async fn ask(send: &mut SendStream, header: &impl Value, body: Bytes) -> Result<(), StreamError> {
    send.write_chunks(&mut [head(header), body]).await?;
    send.finish();
    Ok(())
}

/// Sends a header and a body to somebody who waits for them.
pub(super) async fn answer(
    send: &mut SendStream,
    header: &impl Value,
    mut body: Bytes,
) -> Result<(), StreamError> {
    let mut piece = head(header);
    loop {
        let written = timeout(PROGRESS_TIMEOUT, send.write_chunks(&mut [piece])).await;
        written.map_err(|_| StreamError::TimedOut)??;
        if body.is_empty() {
            break;
        }
        piece = body.split_to(body.len().min(PROGRESS_BYTES));
    }
    send.finish();
    Ok(())
}

pub(super) async fn read_header<T: Value>(recv: &mut RecvStream) -> Result<T, DataError> {
    let mut length = [0; 4];
    recv.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > HEADER_BYTES_MAX {
        return Err(DataError::BadAnswer);
    }
    let mut header = vec![0; length];
    recv.read_exact(&mut header).await?;
    cbor::from_bytes(&header).map_err(|_| DataError::BadAnswer)
}

/// Reads a body of exactly `bytes`, and the end of the stream. [REQ-4]
pub(super) async fn read_body(recv: &mut RecvStream, bytes: u64) -> Result<Bytes, DataError> {
    let length = usize::try_from(bytes)
        .ok()
        .filter(|n| *n <= DATA_BYTES_MAX)
        .ok_or(DataError::BadAnswer)?;
    let mut body = Vec::with_capacity(length.min(BODY_BYTES_AHEAD));
    let mut pieces = vec![Bytes::new(); BATCH_PIECES];
    loop {
        let read = timeout(PROGRESS_TIMEOUT, recv.read_chunks(&mut pieces)).await;
        let Some(count) = read.map_err(|_| StreamError::TimedOut)?? else {
            break;
        };
        for piece in &mut pieces[..count] {
            if piece.len() > length - body.len() {
                return Err(DataError::BadAnswer);
            }
            body.extend_from_slice(&std::mem::take(piece));
        }
    }
    if body.len() == length {
        Ok(body.into())
    } else {
        Err(DataError::BadAnswer)
    }
}
