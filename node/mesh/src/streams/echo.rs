//! Echo streams: what `ping` measures. Answered here, so that no busy application delays or forgets them.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{BiStream, StreamCode, StreamError, StreamKind};
use crate::connection::Connection;

/// The largest payload of an echo.
pub const ECHO_BYTES_MAX: usize = 64 * 1024;

/// How long the answering side waits for the payload, and the asking side for the answer.
pub const ECHO_TIMEOUT: Duration = Duration::from_secs(5);

/// Echoes that a peer may have answered per second, and at once after a pause.
pub(super) const ECHOES_PER_SECOND: u32 = 100;
pub(super) const ECHOES_BURST: u32 = 100;
/// Echoes of one connection that are being answered at the same time.
pub(super) const ECHOES_AT_ONCE_MAX: usize = 8;

impl Connection {
    /// Sends `payload` on a stream of its own and returns how long it took to come back.
    ///
    /// # Errors
    /// [`StreamError::Stopped`] or [`StreamError::Reset`] when the peer answers no more for now, [`StreamError::TimedOut`] after
    /// [`ECHO_TIMEOUT`], [`StreamError::EndedEarly`] when something else came back.
    pub async fn echo(&self, payload: &[u8]) -> Result<Duration, StreamError> {
        if payload.len() > ECHO_BYTES_MAX {
            return Err(StreamError::TooLong);
        }
        let started = Instant::now();
        let exchange = async {
            let mut stream = self.open_bi(StreamKind::Echo).await?;
            stream.send.write_all(payload).await?;
            stream.send.finish();
            stream.recv.read_to_end(ECHO_BYTES_MAX).await
        };
        let answer = timeout(ECHO_TIMEOUT, exchange)
            .await
            .map_err(|_| StreamError::TimedOut)??;
        if answer != payload {
            return Err(StreamError::EndedEarly);
        }
        Ok(started.elapsed())
    }
}

/// Sends back what comes, then ends. [QUIC-10]
pub(super) async fn answer(mut stream: BiStream) {
    let exchange = async {
        let payload = stream.recv.read_to_end(ECHO_BYTES_MAX).await?;
        stream.send.write_all(&payload).await?;
        stream.send.finish();
        Ok::<(), StreamError>(())
    };
    match timeout(ECHO_TIMEOUT, exchange).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => stream.refuse(StreamCode::Violation),
    }
}
