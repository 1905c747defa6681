//! The control stream: frames with a length prefix, both ways, with a bounded queue towards the peer.
//!
//! A frame is a big-endian `u32` length and that many bytes, at most [`FRAME_BYTES_MAX`]. What they mean is the protocol crate's business.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hyperfabric_protocol::fabric::Misbehaved;
use hyperfabric_protocol::frame::FRAME_BYTES_MAX;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::inbox::KIND_TIMEOUT;
use super::{BiStream, RecvStream, SendStream, StreamCode, StreamError, StreamKind};
use crate::connection::{Connection, Core, Side};
use crate::tls::Purpose;

/// Frames that may wait to be sent. [QUIC-14]
pub const CONTROL_QUEUE_FRAMES_MAX: usize = 1_024;
/// Bytes of frames that may wait to be sent.
pub const CONTROL_QUEUE_BYTES_MAX: usize = 1024 * 1024;

const LENGTH_BYTES: usize = 4;
/// Frames that are handed to QUIC at once.
const FRAMES_AT_ONCE: usize = 64;

/// Why a frame was not taken for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlSendError {
    /// The peer does not keep up; the queue's bound is reached.
    #[error("the control queue is full")]
    Full,
    /// The stream or the connection has ended.
    #[error("the control stream has ended")]
    Ended,
    /// The frame is larger than [`FRAME_BYTES_MAX`].
    #[error("a frame of {bytes} bytes exceeds {FRAME_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// Why no further frame comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The peer announced a frame above the limit; the connection was closed for it.
    #[error("the peer announced a frame of {bytes} bytes, more than {FRAME_BYTES_MAX}")]
    Oversized {
        /// The announced size.
        bytes: usize,
    },
    /// The stream failed.
    #[error("the control stream failed")]
    Stream(#[from] StreamError),
}

/// A control stream, ready for frames.
#[derive(Debug)]
pub struct Control {
    /// Towards the peer.
    pub sender: ControlSender,
    /// From the peer.
    pub receiver: ControlReceiver,
}

impl Control {
    pub(super) fn start(core: &Arc<Core>, stream: BiStream) -> Self {
        let (queue, queued) = mpsc::channel(CONTROL_QUEUE_FRAMES_MAX);
        let written = Arc::new(Notify::new());
        core.runtime
            .spawn(write_frames(stream.send, queued, Arc::clone(&written)));
        Self {
            sender: ControlSender {
                queue,
                written,
                room: Arc::new(Semaphore::new(CONTROL_QUEUE_BYTES_MAX)),
            },
            receiver: ControlReceiver {
                core: Arc::clone(core),
                stream: stream.recv,
                buffer: BytesMut::new(),
            },
        }
    }
}

struct Queued {
    frame: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Queues frames for the peer. When the last clone is dropped the stream ends after what is queued.
#[derive(Clone, Debug)]
pub struct ControlSender {
    queue: mpsc::Sender<Queued>,
    /// Told whenever frames have left the queue.
    written: Arc<Notify>,
    room: Arc<Semaphore>,
}

impl ControlSender {
    /// Whether half of the queue is free, in frames and in bytes.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.capacity() >= CONTROL_QUEUE_FRAMES_MAX / 2
            && self.room.available_permits() >= CONTROL_QUEUE_BYTES_MAX / 2
    }

    /// Whether nothing that is queued leaves any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.queue.is_closed()
    }

    /// Waits until [`Self::has_room`], or until the stream has ended.
    pub async fn room(&self) {
        loop {
            let written = self.written.notified();
            tokio::pin!(written);
            written.as_mut().enable();
            if self.has_room() {
                return;
            }
            tokio::select! {
                () = written => {}
                () = self.queue.closed() => return,
            }
        }
    }

    /// Queues a frame, or says that there is no room.
    ///
    /// # Errors
    /// See [`ControlSendError`]; what to drop or whom to cut off is the caller's choice.
    pub fn try_send(&self, frame: Bytes) -> Result<(), ControlSendError> {
        let bytes = frame_len(&frame)?;
        let room = Arc::clone(&self.room)
            .try_acquire_many_owned(bytes)
            .map_err(|_| ControlSendError::Full)?;
        self.queue
            .try_send(Queued { frame, _room: room })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => ControlSendError::Full,
                mpsc::error::TrySendError::Closed(_) => ControlSendError::Ended,
            })
    }

    /// Queues a frame, waiting for room. Cancel-safe.
    ///
    /// # Errors
    /// [`ControlSendError::Ended`] or [`ControlSendError::TooLarge`].
    pub async fn send(&self, frame: Bytes) -> Result<(), ControlSendError> {
        let bytes = frame_len(&frame)?;
        let room = Arc::clone(&self.room)
            .acquire_many_owned(bytes)
            .await
            .map_err(|_| ControlSendError::Ended)?;
        self.queue
            .send(Queued { frame, _room: room })
            .await
            .map_err(|_| ControlSendError::Ended)
    }
}

fn frame_len(frame: &Bytes) -> Result<u32, ControlSendError> {
    let bytes = frame.len();
    match u32::try_from(bytes) {
        Ok(len) if bytes <= FRAME_BYTES_MAX => Ok(len),
        _ => Err(ControlSendError::TooLarge { bytes }),
    }
}

async fn write_frames(mut stream: SendStream, mut queued: mpsc::Receiver<Queued>, written: Arc<Notify>) {
    // Nothing of a batch stays behind: most connections are silent most of the time, and there are many.
    while let Some(first) = queued.recv().await {
        let mut batch = vec![first];
        while batch.len() < FRAMES_AT_ONCE
            && let Ok(next) = queued.try_recv()
        {
            batch.push(next);
        }
        let mut chunks = Vec::with_capacity(2 * batch.len());
        let mut lengths = BytesMut::with_capacity(LENGTH_BYTES * batch.len());
        for queued in &batch {
            lengths.put_u32(queued.frame.len() as u32);
            chunks.push(lengths.split().freeze());
            chunks.push(queued.frame.clone());
        }
        if stream.write_chunks(&mut chunks).await.is_err() {
            return;
        }
        drop(batch);
        written.notify_waiters();
    }
    stream.finish();
}

/// Yields the peer's frames.
#[derive(Debug)]
pub struct ControlReceiver {
    core: Arc<Core>,
    stream: RecvStream,
    /// Holds less than one frame and one piece beyond.
    buffer: BytesMut,
}

impl ControlReceiver {
    /// Waits for the next frame; none when the peer has ended the stream. Cancel-safe.
    ///
    /// # Errors
    /// [`ControlError::Oversized`] after the connection was closed for it, [`ControlError::Stream`] when the stream fails, or ends inside a
    /// frame, for which the connection was closed, too.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ControlError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(FRAME_BYTES_MAX).await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    self.core.violated(Misbehaved::TruncatedFrame);
                    return Err(StreamError::EndedEarly.into());
                }
            }
        }
    }

    // [FRAME-4]
    fn take_frame(&mut self) -> Result<Option<Bytes>, ControlError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let bytes = u32::from_be_bytes(*length) as usize;
        if bytes > FRAME_BYTES_MAX {
            self.core.violated(Misbehaved::OversizedFrame);
            return Err(ControlError::Oversized { bytes });
        }
        if self.buffer.len() < LENGTH_BYTES + bytes {
            return Ok(None);
        }
        if self.buffer.len() == LENGTH_BYTES + bytes {
            // The last one takes the whole buffer along: a quiet connection keeps none.
            let mut frame = std::mem::take(&mut self.buffer);
            frame.advance(LENGTH_BYTES);
            return Ok(Some(frame.freeze()));
        }
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(bytes).freeze()))
    }
}

impl Connection {
    /// Opens the control stream; the dialler's task, once per connection. On a join connection it is the only stream, without a kind byte.
    ///
    /// # Errors
    /// [`StreamError::NotHere`] on the accepting side and on bulk connections; see [`StreamError`].
    pub async fn open_control(&self) -> Result<Control, StreamError> {
        if self.side() == Side::Accepted {
            return Err(StreamError::NotHere(self.purpose()));
        }
        let stream = match self.purpose() {
            Purpose::Prompt => self.open_bi(StreamKind::Control).await?,
            Purpose::Join => BiStream::new(self.core().quic.open_bi().await?),
            Purpose::Bulk => return Err(StreamError::NotHere(Purpose::Bulk)),
        };
        Ok(Control::start(self.core(), stream))
    }

    /// Accepts the one stream of a join connection, waiting up to [`KIND_TIMEOUT`]. On prompt connections it comes out of
    /// [`super::inbox::PromptStreams`].
    ///
    /// # Errors
    /// [`StreamError::NotHere`] on other connections, [`StreamError::TimedOut`]; see [`StreamError`].
    pub async fn accept_join(&self) -> Result<Control, StreamError> {
        if self.purpose() != Purpose::Join || self.side() == Side::Dialled || !self.take_streams() {
            return Err(StreamError::NotHere(self.purpose()));
        }
        let accepted = timeout(KIND_TIMEOUT, self.core().quic.accept_bi()).await;
        let stream = accepted.map_err(|_| StreamError::TimedOut)??;
        Ok(Control::start(self.core(), BiStream::new(stream)))
    }
}

impl Drop for ControlReceiver {
    fn drop(&mut self) {
        self.stream.stop(StreamCode::Cancelled);
    }
}
