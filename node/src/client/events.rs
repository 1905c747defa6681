//! Reading the event stream (server-sent events, WHATWG HTML section 9.2), as far as the local API uses it.

use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

use super::ClientError;
use crate::api::events::KEEP_ALIVE;
use crate::api::model::Transfer;

/// The longest line, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Snapshots of transfers, as they change.
pub struct TransferStream {
    lines: BufReader<Box<dyn Read + Send>>,
}

impl TransferStream {
    /// How long a stream may be silent: keep-alive lines come more often.
    pub(super) const SILENCE_MAX: Duration = Duration::from_secs(4 * KEEP_ALIVE.as_secs());

    pub(super) fn new(body: impl Read + Send + 'static) -> Self {
        Self {
            lines: BufReader::new(Box::new(body)),
        }
    }

    /// Waits for the next snapshot; `None` at the end of the stream.
    ///
    /// # Errors
    /// [`ClientError::Lost`] when the connection broke, [`ClientError::Garbled`] when it says something else.
    pub fn next_transfer(&mut self) -> Result<Option<Transfer>, ClientError> {
        let mut data = String::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            let got = (&mut self.lines)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line)
                .map_err(ClientError::Lost)?;
            if got == 0 {
                return Ok(None);
            }
            if line.last() != Some(&b'\n') {
                return Err(ClientError::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            if let Some(piece) = text.strip_prefix("data:") {
                data.push_str(piece.strip_prefix(' ').unwrap_or(piece));
            } else if text.is_empty() && !data.is_empty() {
                let transfer =
                    serde_json::from_str(&data).map_err(|error| ClientError::Garbled(error.into()))?;
                return Ok(Some(transfer));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> Result<Option<Transfer>, ClientError> {
        TransferStream::new(text.as_bytes()).next_transfer()
    }

    #[test]
    fn keep_alive_lines_are_skipped_and_the_end_is_none() {
        assert!(read(": \n\n:\n\nevent: transfer\n\n").unwrap().is_none());
    }

    #[test]
    fn a_stream_that_is_cut_in_a_line_is_lost_and_one_that_says_nonsense_garbled() {
        assert!(matches!(read("data: {\"tran"), Err(ClientError::Lost(_))));
        assert!(matches!(read("data: {}\n\n"), Err(ClientError::Garbled(_))));
    }
}
