//! Requests: bytes in memory that a handler at another node answers.
//!
//! On a stream of its own the asker sends a header (a big-endian `u32` length and that much CBOR) and the body, and
//! ends its half; the answerer sends a header and a body back. Small requests travel on the prompt connection, large
//! ones on the bulk connection, so that they do not stand in the way of small ones. [REQ-1..4]

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use hyperfabric_mesh::driver::BulkError;
use hyperfabric_mesh::{BiStream, Connection, DialError, Purpose, StreamCode, StreamError, StreamKind};
use hyperfabric_protocol::cbor::{self, List, Text, Value};
use hyperfabric_protocol::cert::Membership;
use hyperfabric_protocol::error::{NodeNotFoundError, REASON_BYTES_MAX};
use hyperfabric_protocol::types::{DataType, PacketPriority};
use hyperfabric_protocol::{NodeId, PeerId};

mod body;
mod budget;

pub(super) use budget::Budget;

use self::body::{read_body, read_header};
use super::sending::StartError;
use super::{Inner, Node};

/// The largest body of a request or of its answer, in bytes; larger data is sent as a file.
pub const DATA_BYTES_MAX: usize = 64 << 20;
/// The most keys and values of metadata together.
const METADATA_TEXTS_MAX: usize = 32;
/// How long the header may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take in whose place another one has ended before a request was sent.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a whole request, its handler included, may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

/// A request as its handler gets it.
#[derive(Clone, Debug)]
pub struct DataRequest {
    /// The node that asks; its peer's certificate was checked.
    pub source: NodeId,
    /// The node that is asked.
    pub destination: NodeId,
    /// What the data is.
    pub data_type: DataType,
    /// How urgent it is.
    pub priority: PacketPriority,
    /// Short texts beside the data.
    pub metadata: Vec<(String, String)>,
    /// The data.
    pub data: Bytes,
}

/// Answers the requests of a node: returns the answer's bytes, or what to tell the asker.
pub type DataHandler = Arc<dyn Fn(DataRequest) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The destination is not known.
    #[error(transparent)]
    NotFound(#[from] NodeNotFoundError),
    /// The data is too large for a request.
    #[error("{0} bytes are more than the {DATA_BYTES_MAX} that a request carries: send them as a file")]
    TooLarge(usize),
    /// The destination's peer cannot be reached.
    #[error("the peer of node {0} cannot be reached")]
    Unreachable(NodeId),
    /// There is no connection for a large request.
    #[error(transparent)]
    Bulk(#[from] BulkError),
    /// The stream failed.
    #[error(
        "the request was interrupted, and data in memory cannot be resumed: send it again, or send a file"
    )]
    Stream(#[from] StreamError),
    /// The answer does not follow the format.
    #[error("the answer cannot be read")]
    BadAnswer,
    /// The destination has no handler for data.
    #[error("node {0} does not take data: no handler is registered there")]
    NoHandler(NodeId),
    /// The handler refused.
    #[error("node {node} refused: {reason}")]
    Refused {
        /// The node.
        node: NodeId,
        /// What its handler says.
        reason: String,
    },
    /// It took too long.
    #[error("node {0} did not answer in time")]
    TimedOut(NodeId),
    /// There is more metadata than a request carries.
    #[error("a request carries at most {} entries of metadata, of at most {REASON_BYTES_MAX} bytes each", METADATA_TEXTS_MAX / 2)]
    Metadata,
    /// The node is shutting down, or is in no mesh.
    #[error("this peer is not running as a member of a mesh")]
    NotRunning,
}

impl DataError {
    /// Whether the connection was lost on the way, so that the request may succeed on another one.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        match self {
            Self::Stream(StreamError::ConnectionLost | StreamError::TimedOut) => true,
            Self::Bulk(BulkError::NotConnected) => true,
            Self::Bulk(BulkError::Dial(error)) => {
                !matches!(error, DialError::Refused { .. } | DialError::Untrusted { .. })
            }
            Self::Stream(_)
            | Self::NotFound(_)
            | Self::TooLarge(_)
            | Self::Unreachable(_)
            | Self::BadAnswer
            | Self::NoHandler(_)
            | Self::Refused { .. }
            | Self::TimedOut(_)
            | Self::Metadata
            | Self::NotRunning => false,
        }
    }
}

/// Where a node is.
#[derive(Clone, Debug)]
pub(crate) enum Located {
    /// At this very peer.
    Here,
    /// At the other end of this prompt connection.
    At(Connection),
}

type ShortText = Text<REASON_BYTES_MAX>;

/// The header of a request. [REQ-1]
struct Ask {
    source: NodeId,
    destination: NodeId,
    data_type: DataType,
    priority: PacketPriority,
    bytes: u64,
    metadata: List<ShortText, METADATA_TEXTS_MAX>,
}

impl Value for Ask {
    fn encode(&self, e: &mut cbor::Encoder) {
        e.array(6);
        self.source.encode(e);
        self.destination.encode(e);
        self.data_type.encode(e);
        self.priority.encode(e);
        e.u64(self.bytes);
        self.metadata.encode(e);
    }

    fn decode(d: &mut cbor::Decoder<'_>) -> Result<Self, cbor::DecodeError> {
        if d.array(6)? != 6 {
            return Err(cbor::DecodeError::Invalid("request header"));
        }
        Ok(Self {
            source: Value::decode(d)?,
            destination: Value::decode(d)?,
            data_type: Value::decode(d)?,
            priority: Value::decode(d)?,
            bytes: d.u64()?,
            metadata: Value::decode(d)?,
        })
    }
}

/// What an answer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Answered,
    NoHandler,
    Refused,
}

/// The header of an answer. [REQ-3]
struct Answer {
    status: Status,
    bytes: u64,
    reason: ShortText,
}

impl Value for Answer {
    fn encode(&self, e: &mut cbor::Encoder) {
        e.array(3);
        e.u64(match self.status {
            Status::Answered => 0,
            Status::NoHandler => 1,
            Status::Refused => 2,
        });
        e.u64(self.bytes);
        self.reason.encode(e);
    }

    fn decode(d: &mut cbor::Decoder<'_>) -> Result<Self, cbor::DecodeError> {
        if d.array(3)? != 3 {
            return Err(cbor::DecodeError::Invalid("answer header"));
        }
        let status = match d.u64()? {
            0 => Status::Answered,
            1 => Status::NoHandler,
            2 => Status::Refused,
            _ => return Err(cbor::DecodeError::Invalid("answer status")),
        };
        Ok(Self {
            status,
            bytes: d.u64()?,
            reason: Value::decode(d)?,
        })
    }
}

impl Node {
    /// Answers the requests that reach `node` with `handler`, from now on.
    pub fn on_data(&self, node: NodeId, handler: DataHandler) {
        self.0
            .handlers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node, handler);
    }

    /// Sends bytes to a node and returns its handler's answer. Up to `prompt_max` bytes travel beside the control
    /// frames, more on the connection for transfers.
    ///
    /// # Errors
    /// [`DataError`].
    pub async fn request(
        &self,
        request: DataRequest,
        prompt_max: usize,
        wait: Duration,
    ) -> Result<Bytes, DataError> {
        let node = request.destination.clone();
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, async {
            let located = self.locate(&request.destination, wait, wait).await?;
            self.ask(&located, request, prompt_max).await
        });
        answer.await.map_err(|_| DataError::TimedOut(node))?
    }

    /// Finds a node within `wait`, and connects to its peer within `connect_wait`.
    pub(crate) async fn locate(
        &self,
        node: &NodeId,
        wait: Duration,
        connect_wait: Duration,
    ) -> Result<Located, DataError> {
        match self.find_host(node, wait).await {
            Ok(peer) => {
                let connection = self.connect(peer, connect_wait).await;
                connection
                    .map(Located::At)
                    .ok_or_else(|| DataError::Unreachable(node.clone()))
            }
            Err(StartError::Local(_)) => Ok(Located::Here),
            Err(StartError::NotFound(error)) => Err(error.into()),
            Err(_) => Err(DataError::NotRunning),
        }
    }

    /// Opens a stream for a request, on another connection when this one has ended or drains since it was found.
    async fn open(&self, connection: &Connection) -> Result<BiStream, StreamError> {
        let opened = connection.open_bi(StreamKind::Request).await;
        let lost = matches!(opened, Err(StreamError::ConnectionLost));
        if !lost || connection.purpose() != Purpose::Prompt {
            return opened;
        }
        match self.connect(connection.peer(), RECONNECT_TIMEOUT).await {
            Some(next) => next.open_bi(StreamKind::Request).await,
            None => opened,
        }
    }

    /// Sends a request to where its destination is.
    pub(crate) async fn ask(
        &self,
        located: &Located,
        request: DataRequest,
        prompt_max: usize,
    ) -> Result<Bytes, DataError> {
        if request.data.len() > DATA_BYTES_MAX {
            return Err(DataError::TooLarge(request.data.len()));
        }
        let texts = request.metadata.iter().flat_map(|(k, v)| [k, v]);
        if request.metadata.len() * 2 > METADATA_TEXTS_MAX
            || texts.clone().any(|t| t.len() > REASON_BYTES_MAX)
        {
            return Err(DataError::Metadata);
        }
        let texts = texts.map(|text| ShortText::truncating(text)).collect();
        let node = request.destination.clone();
        // Kept until the answer is here: a bulk connection without a lease is closed.
        let mut lease = None;
        let connection = match located {
            Located::Here => return reply_to(&self.0, request).await.into_result(node),
            Located::At(connection) if request.data.len() <= prompt_max => connection,
            Located::At(connection) => &**lease.insert(self.0.handle.bulk(connection.peer()).await?),
        };
        let mut stream = self.open(connection).await?;
        let ask = Ask {
            source: request.source,
            destination: request.destination,
            data_type: request.data_type,
            priority: request.priority,
            bytes: request.data.len() as u64,
            metadata: List::truncating(texts),
        };
        body::ask(&mut stream.send, &ask, request.data).await?;
        let answer: Answer = read_header(&mut stream.recv).await?;
        let body = match answer.status {
            Status::Answered => read_body(&mut stream.recv, answer.bytes).await?,
            Status::NoHandler | Status::Refused => Bytes::new(),
        };
        let reply = Reply {
            status: answer.status,
            reason: answer.reason.0,
            body,
        };
        reply.into_result(node)
    }
}

/// What a node says to a request.
struct Reply {
    status: Status,
    reason: String,
    body: Bytes,
}

impl Reply {
    fn into_result(self, node: NodeId) -> Result<Bytes, DataError> {
        match self.status {
            Status::Answered => Ok(self.body),
            Status::NoHandler => Err(DataError::NoHandler(node)),
            Status::Refused => Err(DataError::Refused {
                node,
                reason: self.reason,
            }),
        }
    }
}

/// Lets the destination's handler answer.
async fn reply_to(inner: &Inner, request: DataRequest) -> Reply {
    let handler = inner
        .handlers
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&request.destination)
        .cloned();
    let answered = match handler {
        None => {
            return Reply {
                status: Status::NoHandler,
                reason: String::new(),
                body: Bytes::new(),
            };
        }
        Some(handler) => handler(request).await,
    };
    let refused = |reason| Reply {
        status: Status::Refused,
        reason,
        body: Bytes::new(),
    };
    match answered {
        Ok(body) if body.len() <= DATA_BYTES_MAX => Reply {
            status: Status::Answered,
            reason: String::new(),
            body,
        },
        Ok(_) => refused("the answer is too large".to_owned()),
        Err(reason) => refused(reason),
    }
}

/// Answers one request.
pub(super) async fn answer(inner: Arc<Inner>, from: PeerId, mut stream: BiStream) {
    let answered = tokio::time::timeout(REQUEST_TIMEOUT, try_answer(&inner, from, &mut stream)).await;
    match answered {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(peer = %from, error = &error as &dyn std::error::Error, "a request failed");
            stream.refuse(StreamCode::Violation);
        }
        Err(_) => stream.refuse(StreamCode::Busy),
    }
}

async fn try_answer(inner: &Arc<Inner>, from: PeerId, stream: &mut BiStream) -> Result<(), DataError> {
    let header = tokio::time::timeout(HEADER_TIMEOUT, read_header::<Ask>(&mut stream.recv)).await;
    let ask = header.map_err(|_| DataError::BadAnswer)??;
    let length = u32::try_from(ask.bytes)
        .ok()
        .filter(|n| *n as usize <= DATA_BYTES_MAX)
        .ok_or(DataError::BadAnswer)?;
    if !speaks_for(inner, from, &ask.source).await {
        return Err(DataError::BadAnswer);
    }
    let room = inner.requests.room(from, length).await;
    let data = read_body(&mut stream.recv, ask.bytes).await?;
    let mut texts = ask.metadata.0.into_iter().map(|text| text.0);
    let metadata = std::iter::from_fn(|| Some((texts.next()?, texts.next()?))).collect();
    let request = DataRequest {
        source: ask.source,
        destination: ask.destination,
        data_type: ask.data_type,
        priority: ask.priority,
        metadata,
        data,
    };
    let Reply { status, reason, body } = reply_to(inner, request).await;
    let _debt = room.answer(body.len());
    let answer = Answer {
        status,
        bytes: body.len() as u64,
        reason: ShortText::truncating(&reason),
    };
    body::answer(&mut stream.send, &answer, body).await?;
    Ok(())
}

/// Whether a node's name lies within what the asking peer was granted. [REQ-2] Nobody asks in another's name.
async fn speaks_for(inner: &Inner, from: PeerId, source: &NodeId) -> bool {
    let facts = inner.handle.act(move |fabric, now| {
        let name = fabric.directory().member(&from).map(|m| m.name.clone());
        (name, fabric.admission().root().cloned(), now.wall)
    });
    let Ok((name, root, wall)) = facts.await else {
        return false;
    };
    // A peer just connected may ask before its record has come; its certificate came with the handshake.
    let name = name.or_else(|| {
        let connection = inner.handle.connection(&from)?;
        let member = Membership::verify(connection.membership()?, &root?, &from, wall).ok()?;
        Some(member.name)
    });
    name.is_some_and(|name| source.is_within(&name))
}
