//! libp2p's view of a connection: kind-0 streams, and nothing else of it.
//!
//! A [`Line`] is a connection that was attached. While the swarm uses it, a [`Muxer`] holds it; when the swarm lets go and the connection
//! lives on, it goes back to the [`Park`], from which the transport serves it again.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::task::AtomicWaker;
use futures::{AsyncRead, AsyncWrite, FutureExt};
use hyperfabric_protocol::PeerId;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};

use crate::connection::Connection;
use crate::streams::inbox::Streams;
use crate::streams::{BiStream, StreamError, StreamKind};
use crate::sync::lock;

/// An attached connection with the kind-0 streams that its peer opens.
#[derive(Debug)]
pub(super) struct Line {
    connection: Connection,
    streams: Streams,
    /// The stream that made the transport serve the line again.
    first: Option<Box<BiStream>>,
    /// Whether the swarm has had it.
    used: bool,
    /// Counts the bytes that its streams bring.
    received: Arc<AtomicU64>,
}

impl Line {
    pub(super) fn new(connection: Connection, streams: Streams, received: Arc<AtomicU64>) -> Self {
        Self {
            connection,
            streams,
            first: None,
            used: false,
            received,
        }
    }

    fn substream(&self, stream: BiStream) -> Substream {
        Substream {
            stream,
            received: Arc::clone(&self.received),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Ready when the line is to be served (true) or has ended (false).
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.connection.is_open() {
            return Poll::Ready(false);
        }
        if !self.used || self.first.is_some() {
            return Poll::Ready(true);
        }
        self.streams.poll_recv(cx).map(|stream| {
            self.first = stream;
            self.first.is_some()
        })
    }
}

#[derive(Default)]
struct Parking {
    lines: Vec<Line>,
    /// How many lines of each peer the swarm has.
    served: BTreeMap<PeerId, usize>,
}

/// Lines that the swarm does not use; as many as the mesh has connections.
#[derive(Default)]
pub(super) struct Park {
    parking: Mutex<Parking>,
    /// The transport's.
    pub(super) waker: AtomicWaker,
}

impl Park {
    /// Whether the swarm has a line of this peer.
    pub(super) fn serves(&self, peer: &PeerId) -> bool {
        lock(&self.parking).served.contains_key(peer)
    }

    /// Takes a living line to this peer.
    pub(super) fn take(&self, peer: &PeerId) -> Option<Line> {
        let mut parking = lock(&self.parking);
        let usable = |line: &Line| line.connection.peer() == *peer && line.connection.is_open();
        let index = parking.lines.iter().position(usable)?;
        Some(parking.lines.swap_remove(index))
    }

    /// Takes a line that the swarm has never had, or whose peer has opened a stream. Lines that have ended are dropped.
    pub(super) fn wake(&self, cx: &mut Context<'_>) -> Option<Line> {
        let mut parking = lock(&self.parking);
        let mut index = 0;
        while let Some(line) = parking.lines.get_mut(index) {
            match line.poll_wake(cx) {
                Poll::Ready(true) => return Some(parking.lines.swap_remove(index)),
                Poll::Ready(false) => drop(parking.lines.swap_remove(index)),
                Poll::Pending => index += 1,
            }
        }
        None
    }

    fn leave(&self, peer: PeerId) {
        *lock(&self.parking).served.entry(peer).or_default() += 1;
    }

    fn enter(&self, line: Line) {
        let mut parking = lock(&self.parking);
        let peer = line.connection.peer();
        if let Some(count) = parking.served.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                parking.served.remove(&peer);
            }
        }
        if line.connection.is_open() {
            parking.lines.push(line);
        }
        drop(parking);
        self.waker.wake();
    }
}

/// Why the swarm cannot use a connection any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MuxerError {
    /// The connection has ended.
    #[error("the connection has ended")]
    Ended,
    /// No stream can be opened.
    #[error("no stream can be opened")]
    Open(#[source] StreamError),
}

/// A line in use; see the module.
pub(super) struct Muxer {
    /// There until the muxer is dropped.
    line: Option<Line>,
    ended: BoxFuture<'static, ()>,
    opening: Option<BoxFuture<'static, Result<BiStream, StreamError>>>,
    park: Arc<Park>,
}

impl Muxer {
    pub(super) fn new(line: Line, park: Arc<Park>) -> Self {
        park.leave(line.connection.peer());
        let connection = line.connection.clone();
        let ended = async move {
            connection.parted().await;
        };
        Self {
            line: Some(line),
            ended: ended.boxed(),
            opening: None,
            park,
        }
    }

    /// The connection that it is on.
    pub(super) fn connection(&self) -> &Connection {
        &self
            .line
            .as_ref()
            .expect("a muxer has its line until it is dropped")
            .connection
    }

    fn line(&mut self) -> &mut Line {
        let line = self
            .line
            .as_mut()
            .expect("a muxer has its line until it is dropped");
        line.used = true;
        line
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            self.park.enter(line);
        }
    }
}

impl StreamMuxer for Muxer {
    type Substream = Substream;
    type Error = MuxerError;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, MuxerError>> {
        let line = self.line();
        if let Some(first) = line.first.take() {
            return Poll::Ready(Ok(line.substream(*first)));
        }
        let stream = std::task::ready!(line.streams.poll_recv(cx)).ok_or(MuxerError::Ended);
        Poll::Ready(stream.map(|stream| line.substream(*stream)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, MuxerError>> {
        let this = &mut *self;
        let connection = &this.line().connection.clone();
        let opening = this.opening.get_or_insert_with(|| {
            let connection = connection.clone();
            async move { connection.open_bi(StreamKind::Libp2p).await }.boxed()
        });
        let opened = std::task::ready!(opening.poll_unpin(cx));
        this.opening = None;
        let line = this.line();
        let opened = opened.map(|stream| line.substream(stream));
        Poll::Ready(opened.map_err(MuxerError::Open))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), MuxerError>> {
        // The connection is not the swarm's to close.
        self.line();
        self.opening = None;
        Poll::Ready(Ok(()))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, MuxerError>> {
        self.line();
        self.ended.poll_unpin(cx).map(|()| Err(MuxerError::Ended))
    }
}

/// A kind-0 stream; its kind byte is not part of it.
pub(super) struct Substream {
    stream: BiStream,
    received: Arc<AtomicU64>,
}

impl Drop for Substream {
    fn drop(&mut self) {
        // Kademlia drops a substream right after its answer, and counts on the answer's arrival, as every libp2p transport grants it. A
        // reset would outrun it; that a message is cut short shows in its length prefix.
        self.stream.send.finish();
    }
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = AsyncRead::poll_read(Pin::new(&mut self.stream.recv), cx, buf);
        if let Poll::Ready(Ok(bytes)) = read {
            self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.stream.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.stream.send), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_close(Pin::new(&mut self.stream.send), cx)
    }
}
