//! What a peer must remember over restarts, in one redb file per data folder.
//!
//! Opening it (a damaged file is set aside and reported, never silently emptied), getting over I/O errors, and tables
//! of plain bytes for whoever keeps small records. Calls block on the disk: they are made on worker threads. It leaves
//! out keys and certificates, which are files, and the journals of transfers, which the node keeps in the same file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend,
    StorageError, TableDefinition, TableError, TableHandle, WriteTransaction,
};

mod open;

/// Memory that redb may keep pages in. Its default of 1 GiB would be most of a peer's memory.
const CACHE_BYTES: usize = 4 << 20;

/// The version of the tables and of their records.
pub const SCHEMA_VERSION: u32 = 1;

/// Keys that one listing of a table returns at most.
pub const LIST_ENTRIES_MAX: usize = 100_000;

const META: TableDefinition<'_, &str, u32> = TableDefinition::new("meta");
const SCHEMA_KEY: &str = "schema";

/// A table of plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Where peers were last reached.
    AddressBook,
    /// Signed revocations.
    Revocations,
    /// Tickets issued here, and their uses.
    Tickets,
    /// Certificates and delegations of this mesh.
    Admissions,
    /// Names registered by this peer.
    Nodes,
    /// What this peer has chosen once and keeps, such as its ports and sequence numbers.
    Settings,
}

/// Keys and values, in the order of the keys.
pub type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// A table from bytes to bytes.
pub type BytesTable = TableDefinition<'static, &'static [u8], &'static [u8]>;

impl Table {
    const fn definition(self) -> BytesTable {
        TableDefinition::new(match self {
            Self::AddressBook => "address_book",
            Self::Revocations => "revocations",
            Self::Tickets => "tickets",
            Self::Admissions => "admissions",
            Self::Nodes => "nodes",
            Self::Settings => "settings",
        })
    }
}

/// Why the store could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process works on the same data folder.
    #[error("the store {} is in use by another process: stop that daemon, or give this one another --data-dir", .0.display())]
    Locked(PathBuf),
    /// A newer version of the program wrote it.
    #[error(
        "the store has schema version {found}, this program knows up to {SCHEMA_VERSION}: use a newer program"
    )]
    NewerSchema {
        /// The version found.
        found: u32,
    },
    /// The file could not be opened or set aside.
    #[error("cannot open the store {}", .path.display())]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The database could not do what was asked.
    #[error("the store failed")]
    Database(#[source] Box<redb::Error>),
    /// A record cannot be read.
    #[error("a record in the store is damaged: {0}")]
    Record(&'static str),
}

impl StoreError {
    /// The kind of the input or output error beneath, when there is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Open { source, .. } => Some(source.kind()),
            Self::Database(error) => match error.as_ref() {
                redb::Error::Io(error) => Some(error.kind()),
                redb::Error::PreviousIo => Some(io::ErrorKind::Other),
                _ => None,
            },
            Self::Locked(_) | Self::NewerSchema { .. } | Self::Record(_) => None,
        }
    }
}

/// redb has an error type for each kind of operation; all convert to its one large one.
macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}

from_redb!(
    CommitError,
    DatabaseError,
    StorageError,
    TableError,
    TransactionError
);

/// What [`Store::open`] found.
#[derive(Debug)]
pub struct Opened {
    /// The store, ready for use.
    pub store: Store,
    /// Where a damaged or foreign file was moved; tell the user, what it held is not in `store`.
    pub moved_aside: Option<PathBuf>,
}

type Reopen = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// A handle of the store; clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` only when opening it again has failed.
    database: RwLock<Option<Database>>,
    reopen: Reopen,
    /// redb refuses everything after an I/O error until the database is opened again; a full disk must not need a
    /// restart of the daemon.
    failed: AtomicBool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `path`, or makes one.
    ///
    /// A damaged file, or one that is no store, is renamed to `<name>.corrupt-<unix_now>` and a new one is made.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process has it, [`StoreError::NewerSchema`] after a downgrade,
    /// [`StoreError::Open`] when the file system refuses.
    pub fn open(path: &Path, unix_now: u64) -> Result<Opened, StoreError> {
        let moved_aside = open::prepare(path, unix_now)?;
        let place = path.to_path_buf();
        let store = Self::new(Box::new(move || builder().create(&place)))
            .map_err(|error| open::blame(error, path))?;
        Ok(Opened { store, moved_aside })
    }

    /// Makes a store that is gone with its last handle.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::with_backend(|| Ok(redb::backends::InMemoryBackend::new()))
    }

    /// Opens the store in a storage of the caller's; `backend` is called again after an I/O error.
    ///
    /// # Errors
    /// When the backend fails or holds something else.
    pub fn with_backend<B: StorageBackend>(
        backend: impl Fn() -> io::Result<B> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        Self::new(Box::new(move || {
            let backend = backend().map_err(StorageError::Io)?;
            builder().create_with_backend(backend)
        }))
    }

    fn new(reopen: Reopen) -> Result<Self, StoreError> {
        let database = reopen()?;
        open::check_schema(&database)?;
        Ok(Self {
            shared: Arc::new(Shared {
                database: RwLock::new(Some(database)),
                reopen,
                failed: AtomicBool::new(false),
            }),
        })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When the database fails.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|tables| get_bytes(tables, table.definition(), key))
    }

    /// Writes a record, durably.
    ///
    /// # Errors
    /// When the database fails; the old record is then still there.
    pub fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.write(|tables| {
            tables.open_table(table.definition())?.insert(key, value)?;
            Ok(())
        })
    }

    /// Writes several records, durably, all or none.
    ///
    /// # Errors
    /// When the database fails; the old records are then still there.
    pub fn put_all(&self, table: Table, records: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StoreError> {
        self.write(|tables| {
            let mut opened = tables.open_table(table.definition())?;
            for (key, value) in records {
                opened.insert(key.as_slice(), value.as_slice())?;
            }
            Ok(())
        })
    }

    /// Removes a record, durably; one that is missing is no error.
    ///
    /// # Errors
    /// When the database fails.
    pub fn delete(&self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.write(|tables| {
            tables.open_table(table.definition())?.remove(key)?;
            Ok(())
        })
    }

    /// Lists a table in the order of its keys, at most [`LIST_ENTRIES_MAX`] records.
    ///
    /// # Errors
    /// When the database fails.
    pub fn list(&self, table: Table) -> Result<Records, StoreError> {
        self.read(|tables| list_bytes(tables, table.definition()))
    }

    /// Reads in one transaction, opening the database again after an earlier I/O error.
    ///
    /// # Errors
    /// Those of `work`, and when the database fails.
    pub fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.with_database(|database| work(&database.begin_read()?))
    }

    /// Writes in one transaction, durably, all or nothing.
    ///
    /// # Errors
    /// Those of `work`, after which nothing is written, and when the database fails.
    pub fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.with_database(|database| {
            let transaction = database.begin_write()?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        })
    }

    fn with_database<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.shared.failed.load(Ordering::Acquire) {
            self.recover()?;
        }
        let guard = self
            .shared
            .database
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(database) = guard.as_ref() else {
            return Err(StorageError::PreviousIo.into());
        };
        let result = work(database);
        if let Err(error) = &result
            && error.io_kind().is_some()
        {
            self.shared.failed.store(true, Ordering::Release);
        }
        result
    }

    fn recover(&self) -> Result<(), StoreError> {
        let mut guard = self
            .shared
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if self.shared.failed.load(Ordering::Acquire) {
            // The old one holds the file's lock until it is gone.
            drop(guard.take());
            *guard = Some((self.shared.reopen)()?);
            self.shared.failed.store(false, Ordering::Release);
        }
        Ok(())
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    // Without it redb trusts a file that was damaged after a clean shutdown, and may panic on it much later.
    builder.set_check_integrity_on_open(true);
    builder
}

/// Reads a record in a transaction of the caller's.
///
/// # Errors
/// When the database fails.
pub fn get_bytes(
    tables: &ReadTransaction,
    table: BytesTable,
    key: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    match tables.open_table(table) {
        Ok(table) => Ok(table.get(key)?.map(|value| value.value().to_vec())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Lists a table in a transaction of the caller's, at most [`LIST_ENTRIES_MAX`] records.
///
/// # Errors
/// When the database fails.
pub fn list_bytes(tables: &ReadTransaction, table: BytesTable) -> Result<Records, StoreError> {
    let table = match tables.open_table(table) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut records = Vec::new();
    for record in table.iter()?.take(LIST_ENTRIES_MAX) {
        let (key, value) = record?;
        records.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(records)
}
