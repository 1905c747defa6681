//! Finding out what a store's file is before it is used: ours, someone else's, or damaged.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase};

use super::{META, SCHEMA_KEY, SCHEMA_VERSION, StoreError, TableHandle, builder};

/// Names that are tried for a damaged file, should there be several within one second.
const ASIDE_NAMES_MAX: u32 = 1_000;

/// Readable by its owner only, as every other file of the peer's state.
const FILE_MODE: u32 = 0o600;

/// What came out of looking at a file.
enum Found {
    Usable,
    Damaged,
}

/// Leaves a usable store at `path`; returns where a damaged file went, when there was one.
pub(super) fn prepare(path: &Path, unix_now: u64) -> Result<Option<PathBuf>, StoreError> {
    let as_open = |source| StoreError::Open {
        path: path.to_path_buf(),
        source,
    };
    let mut moved_aside = None;
    if path.try_exists().map_err(as_open)? {
        // Tickets, addresses and the names of files are nobody else's business, whatever the umask was.
        std::fs::set_permissions(path, Permissions::from_mode(FILE_MODE)).map_err(as_open)?;
        match look(path)? {
            Found::Usable => return Ok(None),
            Found::Damaged => moved_aside = Some(move_aside(path, unix_now).map_err(as_open)?),
        }
    }
    create(path)?;
    Ok(moved_aside)
}

fn look(path: &Path) -> Result<Found, StoreError> {
    match builder().open(path) {
        Ok(database) => match check_schema(&database) {
            Ok(()) => Ok(Found::Usable),
            Err(StoreError::Record(_)) => Ok(Found::Damaged),
            Err(StoreError::Database(error)) if is_damage(&error) => Ok(Found::Damaged),
            Err(error) => Err(error),
        },
        Err(error) => match blame(error.into(), path) {
            StoreError::Database(error) if is_damage(&error) => Ok(Found::Damaged),
            StoreError::Open { source, .. } if is_damaged_content(&source) => Ok(Found::Damaged),
            error => Err(error),
        },
    }
}

fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. } => true,
        redb::Error::Io(error) => is_damaged_content(error),
        _ => false,
    }
}

/// Errors that speak of what is in the file; all others are about reaching it, and moving it away would be wrong.
fn is_damaged_content(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}

/// Gives an error of opening the name of the file and the way out of it.
pub(super) fn blame(error: StoreError, path: &Path) -> StoreError {
    match error {
        StoreError::Database(error) => match *error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
                StoreError::Locked(path.to_path_buf())
            }
            redb::Error::Io(source) => StoreError::Open {
                path: path.to_path_buf(),
                source,
            },
            other => StoreError::Database(Box::new(other)),
        },
        other => other,
    }
}

/// Makes the file under another name first: a crash while redb fills it would leave what looks like damage.
fn create(path: &Path) -> Result<(), StoreError> {
    let as_open = |source| StoreError::Open {
        path: path.to_path_buf(),
        source,
    };
    let fresh = with_suffix(path, ".new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(as_open(error)),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&fresh)
        .map_err(as_open)?;
    let database = FileBackend::new(file)
        .and_then(|file| builder().create_with_backend(file))
        .map_err(|error| blame(error.into(), path))?;
    check_schema(&database)?;
    drop(database);
    std::fs::rename(&fresh, path).map_err(as_open)?;
    sync_parent(path).map_err(as_open)
}

fn move_aside(path: &Path, unix_now: u64) -> io::Result<PathBuf> {
    for attempt in 1..=ASIDE_NAMES_MAX {
        let suffix = match attempt {
            1 => format!(".corrupt-{unix_now}"),
            _ => format!(".corrupt-{unix_now}-{attempt}"),
        };
        let aside = with_suffix(path, &suffix);
        if !aside.try_exists()? {
            std::fs::rename(path, &aside)?;
            sync_parent(path)?;
            return Ok(aside);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(suffix);
    path.with_file_name(name)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Checks the version that a database records, and records ours in an empty one.
pub(super) fn check_schema(database: &Database) -> Result<(), StoreError> {
    let tables = database.begin_read()?;
    let mut any = false;
    let mut has_meta = false;
    for table in tables.list_tables()? {
        any = true;
        has_meta |= table.name() == META.name();
    }
    if !any {
        drop(tables);
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert(SCHEMA_KEY, SCHEMA_VERSION)?;
        transaction.commit()?;
        return Ok(());
    }
    if !has_meta {
        return Err(StoreError::Record("it is some other program's database"));
    }
    let found = tables
        .open_table(META)?
        .get(SCHEMA_KEY)?
        .map(|found| found.value());
    match found {
        Some(SCHEMA_VERSION) => Ok(()),
        Some(found) if found > SCHEMA_VERSION => Err(StoreError::NewerSchema { found }),
        _ => Err(StoreError::Record("it has no schema version")),
    }
}
