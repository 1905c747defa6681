//! Moving payloads: from a source through a stream of chunks into the inbox, verified and resumable.
//!
//! Nothing here knows connections or the protocol's state machine: the pipelines are generic over two small traits
//! ([`stream::ChunkSink`], [`stream::ChunkStream`]), and whoever drives them decides when. Hashing and disk work run
//! on the worker pool, so that these futures can live on the thread that reads the network.

pub mod hash;
