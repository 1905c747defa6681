//! The journals of transfers, in the peer's store.
//!
//! [`Store`] is the mesh's store ([`hyperfabric_mesh::store`]) with what a node adds to it: which transfers are being
//! received and what of them is durable, and which are being sent.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

pub use hyperfabric_mesh::store::{BytesTable, SCHEMA_VERSION, StoreError, Table};
use hyperfabric_mesh::store::{get_bytes, list_bytes};
use redb::StorageBackend;

pub mod incoming;
pub mod outgoing;

#[cfg(test)]
mod tests;

pub use incoming::{ClaimRun, Delivered, IncomingRecord, IncomingState, Sealing};
pub use outgoing::{OutgoingRecord, OutgoingState, SourceFingerprint};

/// What [`Store::open`] found.
#[derive(Debug)]
pub struct Opened {
    /// The store, ready for use.
    pub store: Store,
    /// Where a damaged or foreign file was moved; tell the user, what it held is not in `store`.
    pub moved_aside: Option<PathBuf>,
}

/// A handle of the store; clones share it.
#[derive(Clone, Debug)]
pub struct Store(hyperfabric_mesh::store::Store);

impl Deref for Store {
    type Target = hyperfabric_mesh::store::Store;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<hyperfabric_mesh::store::Store> for Store {
    fn from(store: hyperfabric_mesh::store::Store) -> Self {
        Self(store)
    }
}

impl Store {
    /// Opens the store at `path`, or makes one; see [`hyperfabric_mesh::store::Store::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(path: &Path, unix_now: u64) -> Result<Opened, StoreError> {
        let opened = hyperfabric_mesh::store::Store::open(path, unix_now)?;
        Ok(Opened {
            store: opened.store.into(),
            moved_aside: opened.moved_aside,
        })
    }

    /// Makes a store that is gone with its last handle.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn in_memory() -> Result<Self, StoreError> {
        hyperfabric_mesh::store::Store::in_memory().map(Self)
    }

    /// Opens the store in a storage of the caller's.
    ///
    /// # Errors
    /// When the backend fails or holds something else.
    pub fn with_backend<B: StorageBackend>(
        backend: impl Fn() -> io::Result<B> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        hyperfabric_mesh::store::Store::with_backend(backend).map(Self)
    }
}
