//! Streams of a connection: ordered bytes, moved without copying where QUIC allows it.
//!
//! The wrappers end explicitly: a sending half that is dropped before [`SendStream::finish`] is reset, where the QUIC stack would present
//! what was sent as complete. On prompt and bulk connections every stream begins with a kind byte; [`inbox`] reads it on the accepting
//! side, [`control`] frames the control stream.

pub mod control;
pub mod inbox;

mod echo;
mod io;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use quinn::VarInt;

use crate::connection::{Asked, Connection};
use crate::tls::Purpose;

pub use echo::{ECHO_BYTES_MAX, ECHO_TIMEOUT};

/// What a stream is for: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Prompt, 0: a libp2p substream.
    Libp2p,
    /// Prompt, 1: control frames; one, opened by the dialler.
    Control,
    /// Prompt, 2, and bulk, 2: a request and its response.
    Request,
    /// Prompt, 3: bytes to be sent back.
    Echo,
    /// Bulk, 1: chunks of a transfer.
    Chunks,
}

impl StreamKind {
    /// The byte that begins a stream of this kind.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Libp2p => 0,
            Self::Control | Self::Chunks => 1,
            Self::Request => 2,
            Self::Echo => 3,
        }
    }

    /// Reads a kind byte of a connection for `purpose`. [QUIC-4]
    #[must_use]
    pub fn from_byte(purpose: Purpose, byte: u8) -> Option<Self> {
        match (purpose, byte) {
            (Purpose::Prompt, 0) => Some(Self::Libp2p),
            (Purpose::Prompt, 1) => Some(Self::Control),
            (Purpose::Prompt | Purpose::Bulk, 2) => Some(Self::Request),
            (Purpose::Prompt, 3) => Some(Self::Echo),
            (Purpose::Bulk, 1) => Some(Self::Chunks),
            (Purpose::Prompt | Purpose::Bulk | Purpose::Join, _) => None,
        }
    }
}

/// What a side says when it gives up a stream: the application error codes of RESET_STREAM and STOP_SENDING. [QUIC-7]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamCode {
    /// Code 0: dropped without a reason.
    Dropped,
    /// Code 1: its user has changed its mind.
    Cancelled,
    /// Code 2: no kind byte came in time, or an unknown one.
    NoKind,
    /// Code 3: too many streams of its kind are waiting.
    Busy,
    /// Code 4: it broke the protocol, or exceeds a limit.
    Violation,
}

impl StreamCode {
    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Dropped => 0,
            Self::Cancelled => 1,
            Self::NoKind => 2,
            Self::Busy => 3,
            Self::Violation => 4,
        }
    }
}

/// Why a stream cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer gave up sending.
    #[error("the peer reset the stream (code {code})")]
    Reset {
        /// Its [`StreamCode`], or a foreign number.
        code: u64,
    },
    /// The peer does not want more.
    #[error("the peer stopped the stream (code {code})")]
    Stopped {
        /// Its [`StreamCode`], or a foreign number.
        code: u64,
    },
    /// The stream ended before all expected bytes came.
    #[error("the stream ended early")]
    EndedEarly,
    /// More came than is allowed.
    #[error("the stream has more than the allowed bytes")]
    TooLong,
    /// This side has finished, reset or stopped it before.
    #[error("the stream is closed here")]
    Closed,
    /// The other side did not do its part in time.
    #[error("the stream timed out")]
    TimedOut,
    /// The connection has ended; [`Connection::close_cause`] says why.
    #[error("the connection has ended")]
    ConnectionLost,
    /// Such a stream does not exist on a connection for this purpose or side.
    #[error("a {0} connection has no such stream")]
    NotHere(Purpose),
}

impl From<quinn::ConnectionError> for StreamError {
    fn from(_: quinn::ConnectionError) -> Self {
        Self::ConnectionLost
    }
}

impl From<quinn::WriteError> for StreamError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Stopped {
                code: code.into_inner(),
            },
            quinn::WriteError::ConnectionLost(_) => Self::ConnectionLost,
            quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<quinn::ReadError> for StreamError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset {
                code: code.into_inner(),
            },
            quinn::ReadError::ConnectionLost(_) => Self::ConnectionLost,
            quinn::ReadError::ClosedStream
            | quinn::ReadError::IllegalOrderedRead
            | quinn::ReadError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<quinn::ReadExactError> for StreamError {
    fn from(error: quinn::ReadExactError) -> Self {
        match error {
            quinn::ReadExactError::FinishedEarly(_) => Self::EndedEarly,
            quinn::ReadExactError::ReadError(error) => error.into(),
        }
    }
}

/// Both halves of a bidirectional stream; as futures' byte stream it is a libp2p substream.
#[derive(Debug)]
pub struct BiStream {
    /// To the peer.
    pub send: SendStream,
    /// From the peer.
    pub recv: RecvStream,
    /// There when this side asks something that a draining connection waits for.
    _asked: Option<Asked>,
}

impl BiStream {
    pub(crate) fn new((send, recv): (quinn::SendStream, quinn::RecvStream)) -> Self {
        Self {
            send: SendStream::new(send),
            recv: RecvStream::new(recv),
            _asked: None,
        }
    }

    /// Gives up both halves.
    pub fn refuse(mut self, code: StreamCode) {
        self.send.reset(code);
        self.recv.stop(code);
    }
}

/// The sending half of a stream; reset when dropped before it was finished. [QUIC-8]
#[derive(Debug)]
pub struct SendStream {
    inner: quinn::SendStream,
    ended: bool,
}

impl SendStream {
    pub(crate) fn new(inner: quinn::SendStream) -> Self {
        Self { inner, ended: false }
    }

    /// Sends all of `bytes`, copying them. Not cancel-safe: a dropped call may have sent some.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        Ok(self.inner.write_all(bytes).await?)
    }

    /// Sends all of `chunks` without copying; they are left empty. Not cancel-safe.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        Ok(self.inner.write_all_chunks(chunks).await?)
    }

    /// Ends the stream: what was sent is complete. Further calls do nothing.
    pub fn finish(&mut self) {
        self.ended = true;
        // Fails only when the stream has ended already.
        let _ = self.inner.finish();
    }

    /// Gives up: what the peer has not read yet is lost.
    pub fn reset(&mut self, code: StreamCode) {
        self.ended = true;
        let _ = self.inner.reset(VarInt::from_u32(code.code()));
    }

    /// Waits until the peer has acknowledged all bytes of a finished stream.
    ///
    /// # Errors
    /// [`StreamError::Stopped`] when the peer does not want the rest.
    pub async fn delivered(&mut self) -> Result<(), StreamError> {
        match self.inner.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::Stopped {
                code: code.into_inner(),
            }),
            Err(_) => Err(StreamError::ConnectionLost),
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(StreamCode::Dropped);
        }
    }
}

/// The receiving half of a stream; stopped when dropped before its end.
#[derive(Debug)]
pub struct RecvStream {
    inner: quinn::RecvStream,
}

impl RecvStream {
    pub(crate) fn new(inner: quinn::RecvStream) -> Self {
        Self { inner }
    }

    /// Takes the next received pieces, in order and without copying, into the front of `pieces`; none at the end of the stream.
    /// Cancel-safe.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn read_chunks(&mut self, pieces: &mut [Bytes]) -> Result<Option<usize>, StreamError> {
        Ok(self.inner.read_chunks(pieces).await?)
    }

    /// Takes up to `bytes_max` received bytes without copying; none at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn read_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StreamError> {
        let chunk = self.inner.read_chunk(bytes_max, true).await?;
        Ok(chunk.map(|chunk| chunk.bytes))
    }

    /// Fills `bytes`. Not cancel-safe.
    ///
    /// # Errors
    /// [`StreamError::EndedEarly`] when the stream ends before; see [`StreamError`].
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), StreamError> {
        Ok(self.inner.read_exact(bytes).await?)
    }

    /// Reads to the end, at most `bytes_max` bytes. Not cancel-safe.
    ///
    /// # Errors
    /// [`StreamError::TooLong`] beyond `bytes_max`; see [`StreamError`].
    pub async fn read_to_end(&mut self, bytes_max: usize) -> Result<Vec<u8>, StreamError> {
        self.inner
            .read_to_end(bytes_max)
            .await
            .map_err(|error| match error {
                quinn::ReadToEndError::TooLong => StreamError::TooLong,
                quinn::ReadToEndError::Read(error) => error.into(),
            })
    }

    /// Tells the peer not to send more.
    pub fn stop(&mut self, code: StreamCode) {
        // Fails only when the stream has ended already.
        let _ = self.inner.stop(VarInt::from_u32(code.code()));
    }
}

impl Connection {
    /// Opens a bidirectional stream and writes its kind byte. Waits while the peer allows no further stream.
    ///
    /// # Errors
    /// [`StreamError::NotHere`] when the connection's purpose has no such kind, [`StreamError::ConnectionLost`] also when the connection
    /// is not [`Connection::is_open`]; see [`StreamError`].
    pub async fn open_bi(&self, kind: StreamKind) -> Result<BiStream, StreamError> {
        self.check_kind(kind)?;
        // [CONN-10]
        let asked = self.core().life.ask().ok_or(StreamError::ConnectionLost)?;
        let mut stream = BiStream::new(self.core().quic.open_bi().await?);
        stream.send.write_all(&[kind.byte()]).await?;
        if matches!(kind, StreamKind::Request | StreamKind::Echo) {
            stream._asked = Some(asked);
        }
        Ok(stream)
    }

    /// Opens a stream of chunks towards the peer of a bulk connection. Waits while the peer allows no further stream.
    ///
    /// # Errors
    /// As [`Connection::open_bi`].
    pub async fn open_uni(&self, kind: StreamKind) -> Result<SendStream, StreamError> {
        if self.purpose() != Purpose::Bulk {
            return Err(StreamError::NotHere(self.purpose()));
        }
        self.check_kind(kind)?;
        let mut stream = SendStream::new(self.core().quic.open_uni().await?);
        stream.write_all(&[kind.byte()]).await?;
        Ok(stream)
    }

    fn check_kind(&self, kind: StreamKind) -> Result<(), StreamError> {
        match StreamKind::from_byte(self.purpose(), kind.byte()) {
            Some(known) if known == kind => Ok(()),
            _ => Err(StreamError::NotHere(self.purpose())),
        }
    }
}
