//! Moving payloads: from a source through a stream of chunks into the inbox, verified and resumable.
//!
//! Nothing here knows connections or the protocol's state machine: the pipelines are generic over two small traits
//! ([`ChunkSink`], [`ChunkStream`]), and whoever drives them decides when. Hashing and disk work run on the worker
//! pool, so that these futures can live on the thread that reads the network.

pub mod buffers;
pub mod hash;
pub mod inbox;
pub mod receive;
pub mod send;
pub mod source;
pub mod stream;
pub mod tree;

#[cfg(test)]
mod tests;

pub use buffers::BufferPool;
pub use hash::{ChunkValue, Layout, Root};
pub use inbox::InboxPolicy;
pub use receive::{Prepared, ReceiveError, Receiver, Sealed};
pub use send::{Outgoing, SendError, Sender, Sent};
pub use source::{FileSource, Source, SourceFault};
pub use stream::{ChunkSink, ChunkStream, Pieces, StreamHeader, StreamLost};
pub use tree::TreeSource;
