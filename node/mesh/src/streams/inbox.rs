//! Sorts a connection's incoming streams by their kind byte into bounded channels, and defends against streams that never send one.
//!
//! At most [`AWAITING_KIND_MAX`] streams wait for their byte, each for [`KIND_TIMEOUT`]; beyond that the connection's further streams are
//! not accepted, which slows that peer alone. A stream whose channel is full is reset. A connection with more than [`SILENT_MAX`] streams
//! without a proper kind in its life is closed, and its peer cut off. Echo streams are answered here.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hyperfabric_protocol::fabric::Misbehaved;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};

use super::control::Control;
use super::{BiStream, RecvStream, SendStream, StreamCode, StreamError, StreamKind, echo};
use crate::connection::{Connection, Core, Side};
use crate::endpoint::TokenBucket;
use crate::sync::lock;
use crate::tls::Purpose;

/// Streams of one connection that may wait for their kind byte.
pub const AWAITING_KIND_MAX: usize = 64;
/// How long a stream may stay without its kind byte. [QUIC-6]
pub const KIND_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams without a proper kind byte that a connection may have had before it is closed.
pub const SILENT_MAX: u32 = 256;
/// libp2p substreams that may wait for the swarm.
pub const LIBP2P_QUEUE_MAX: usize = 256;
/// Requests, on prompt and on bulk connections, that may wait for a handler.
pub const REQUEST_QUEUE_MAX: usize = 64;
/// Chunk streams that may wait for their transfer.
pub const CHUNKS_QUEUE_MAX: usize = 32;

/// Incoming streams of one kind. A channel keeps room for 32 from the start, which is 3 KiB unless they are boxed.
pub type Streams = mpsc::Receiver<Box<BiStream>>;

/// The incoming streams of a prompt connection. Dropping a receiver resets the streams of its kind.
#[derive(Debug)]
pub struct PromptStreams {
    /// The control stream; at most one comes, and only on the accepting side.
    pub control: mpsc::Receiver<Control>,
    /// libp2p substreams.
    pub libp2p: Streams,
    /// Requests.
    pub requests: Streams,
}

/// A stream of chunks; the sending half is there when the opener wants answers on it.
#[derive(Debug)]
pub struct ChunkStream {
    /// Towards the sender of the chunks.
    pub send: Option<SendStream>,
    /// The chunks.
    pub recv: RecvStream,
}

/// The incoming streams of a bulk connection. Dropping a receiver resets the streams of its kind.
#[derive(Debug)]
pub struct BulkStreams {
    /// Chunks of transfers.
    pub chunks: mpsc::Receiver<ChunkStream>,
    /// Requests with large bodies.
    pub requests: Streams,
}

impl Connection {
    /// Starts to accept the streams of a prompt connection. Works once; none on other connections or when taken before.
    #[must_use]
    pub fn prompt_streams(&self) -> Option<PromptStreams> {
        if self.purpose() != Purpose::Prompt || !self.take_streams() {
            return None;
        }
        let (control, control_out) = mpsc::channel(1);
        let (libp2p, libp2p_out) = mpsc::channel(LIBP2P_QUEUE_MAX);
        let (requests, requests_out) = mpsc::channel(REQUEST_QUEUE_MAX);
        let sorter = Sorter::new(
            self,
            Outlets {
                control: Some(control),
                libp2p: Some(libp2p),
                requests,
                chunks: None,
            },
        );
        self.core().runtime.spawn(accept_bi(sorter));
        Some(PromptStreams {
            control: control_out,
            libp2p: libp2p_out,
            requests: requests_out,
        })
    }

    /// Starts to accept the streams of a bulk connection. Works once; none on other connections or when taken before.
    #[must_use]
    pub fn bulk_streams(&self) -> Option<BulkStreams> {
        if self.purpose() != Purpose::Bulk || !self.take_streams() {
            return None;
        }
        let (chunks, chunks_out) = mpsc::channel(CHUNKS_QUEUE_MAX);
        let (requests, requests_out) = mpsc::channel(REQUEST_QUEUE_MAX);
        let sorter = Sorter::new(
            self,
            Outlets {
                control: None,
                libp2p: None,
                requests,
                chunks: Some(chunks),
            },
        );
        self.core().runtime.spawn(accept_bi(Arc::clone(&sorter)));
        self.core().runtime.spawn(accept_uni(sorter));
        Some(BulkStreams {
            chunks: chunks_out,
            requests: requests_out,
        })
    }
}

struct Outlets {
    control: Option<mpsc::Sender<Control>>,
    libp2p: Option<mpsc::Sender<Box<BiStream>>>,
    requests: mpsc::Sender<Box<BiStream>>,
    chunks: Option<mpsc::Sender<ChunkStream>>,
}

/// What the tasks of one connection's inbox share.
struct Sorter {
    core: Arc<Core>,
    out: Outlets,
    awaiting: Arc<Semaphore>,
    silent: AtomicU32,
    has_control: AtomicBool,
    echo_rate: Mutex<TokenBucket>,
    echoing: Arc<Semaphore>,
}

impl Sorter {
    fn new(connection: &Connection, out: Outlets) -> Arc<Self> {
        Arc::new(Self {
            core: Arc::clone(connection.core()),
            out,
            awaiting: Arc::new(Semaphore::new(AWAITING_KIND_MAX)),
            silent: AtomicU32::new(0),
            has_control: AtomicBool::new(false),
            echo_rate: Mutex::new(TokenBucket::new(
                echo::ECHOES_PER_SECOND,
                echo::ECHOES_BURST,
                Instant::now(),
            )),
            echoing: Arc::new(Semaphore::new(echo::ECHOES_AT_ONCE_MAX)),
        })
    }

    /// Reads the kind byte; none means that the stream has to go.
    async fn kind(&self, recv: &mut RecvStream) -> Option<StreamKind> {
        let mut byte = [0];
        let read = timeout(KIND_TIMEOUT, recv.read_exact(&mut byte)).await;
        let kind = match read {
            Ok(Ok(())) => StreamKind::from_byte(self.core.purpose, byte[0]),
            Ok(Err(StreamError::ConnectionLost)) => return None,
            Ok(Err(_)) | Err(_) => None,
        };
        if kind.is_none() {
            self.count_silent();
        }
        kind
    }

    /// Counts a stream that says nothing that this connection understands.
    fn count_silent(&self) {
        // Once: the streams that wait behind this one add nothing to the log.
        if self.silent.fetch_add(1, Ordering::Relaxed) == SILENT_MAX {
            self.core.violated(Misbehaved::SilentStreams);
        }
    }

    fn sort(&self, kind: StreamKind, stream: BiStream) {
        let rest = match (kind, &self.out) {
            (StreamKind::Control, _) => return self.take_control(stream),
            (StreamKind::Echo, _) => return self.take_echo(stream),
            (StreamKind::Request, out) => out.requests.try_send(Box::new(stream)).err(),
            (
                StreamKind::Libp2p,
                Outlets {
                    libp2p: Some(libp2p), ..
                },
            ) => libp2p.try_send(Box::new(stream)).err(),
            (
                StreamKind::Chunks,
                Outlets {
                    chunks: Some(chunks), ..
                },
            ) => {
                let BiStream { send, recv, .. } = stream;
                let stream = ChunkStream {
                    send: Some(send),
                    recv,
                };
                if let Err(rest) = chunks.try_send(stream) {
                    refuse_chunks(rest);
                }
                return;
            }
            (StreamKind::Libp2p | StreamKind::Chunks, _) => {
                return stream.refuse(StreamCode::NoKind);
            }
        };
        match rest {
            None => {}
            Some(mpsc::error::TrySendError::Full(stream)) => stream.refuse(StreamCode::Busy),
            Some(mpsc::error::TrySendError::Closed(stream)) => stream.refuse(StreamCode::Cancelled),
        }
    }

    // [QUIC-5]
    fn take_control(&self, stream: BiStream) {
        let ours = self.core.side == Side::Dialled;
        if ours || self.has_control.swap(true, Ordering::AcqRel) {
            return self.core.violated(Misbehaved::SecondControlStream);
        }
        if let Some(control) = &self.out.control {
            // The channel has room for one, and one comes. A reader that is gone drops the stream.
            let _ = control.try_send(Control::start(&self.core, stream));
        }
    }

    fn take_echo(&self, stream: BiStream) {
        let allowed = lock(&self.echo_rate).take(Instant::now());
        let Some(permit) = allowed
            .then(|| Arc::clone(&self.echoing).try_acquire_owned().ok())
            .flatten()
        else {
            return stream.refuse(StreamCode::Busy);
        };
        self.core.runtime.spawn(async move {
            echo::answer(stream).await;
            drop(permit);
        });
    }
}

fn refuse_chunks(rest: mpsc::error::TrySendError<ChunkStream>) {
    let (code, mut stream) = match rest {
        mpsc::error::TrySendError::Full(stream) => (StreamCode::Busy, stream),
        mpsc::error::TrySendError::Closed(stream) => (StreamCode::Cancelled, stream),
    };
    stream.recv.stop(code);
    if let Some(send) = &mut stream.send {
        send.reset(code);
    }
}

async fn accept_bi(sorter: Arc<Sorter>) {
    while let Ok(permit) = Arc::clone(&sorter.awaiting).acquire_owned().await {
        let Ok(stream) = sorter.core.quic.accept_bi().await else {
            return;
        };
        let task = Arc::clone(&sorter);
        let mut stream = BiStream::new(stream);
        sorter.core.runtime.spawn(async move {
            let kind = task.kind(&mut stream.recv).await;
            drop(permit);
            match kind {
                Some(kind) => task.sort(kind, stream),
                None => stream.refuse(StreamCode::NoKind),
            }
        });
    }
}

async fn accept_uni(sorter: Arc<Sorter>) {
    while let Ok(permit) = Arc::clone(&sorter.awaiting).acquire_owned().await {
        let Ok(stream) = sorter.core.quic.accept_uni().await else {
            return;
        };
        let task = Arc::clone(&sorter);
        let mut recv = RecvStream::new(stream);
        sorter.core.runtime.spawn(async move {
            let kind = task.kind(&mut recv).await;
            drop(permit);
            match (kind, &task.out.chunks) {
                (Some(StreamKind::Chunks), Some(chunks)) => {
                    if let Err(rest) = chunks.try_send(ChunkStream { send: None, recv }) {
                        refuse_chunks(rest);
                    }
                }
                (None, _) => recv.stop(StreamCode::NoKind),
                // A request without a way to answer is none.
                (Some(_), _) => {
                    task.count_silent();
                    recv.stop(StreamCode::NoKind);
                }
            }
        });
    }
}
