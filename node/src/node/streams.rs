//! The mesh's streams as the transfers' pipelines see them.

use std::io;

use bytes::Bytes;
use hyperfabric_mesh::{RecvStream, SendStream, StreamError};

use crate::transfer::{ChunkSink, ChunkStream, StreamLost};

pub(super) struct Sink(pub(super) SendStream);

pub(super) struct Stream(pub(super) RecvStream);

fn lost(error: StreamError) -> StreamLost {
    StreamLost(io::Error::other(error))
}

impl ChunkSink for Sink {
    async fn write_all(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamLost> {
        self.0.write_chunks(pieces).await.map_err(lost)
    }

    async fn finish(&mut self) -> Result<(), StreamLost> {
        self.0.finish();
        // A receiver that stops the stream, and a connection that is lost, must not look like a success.
        self.0.delivered().await.map_err(lost)
    }
}

impl ChunkStream for Stream {
    async fn read_batch(&mut self, batch: &mut [Bytes]) -> Result<usize, StreamLost> {
        Ok(self.0.read_chunks(batch).await.map_err(lost)?.unwrap_or(0))
    }
}
