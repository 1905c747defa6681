//! Where received bytes are put: the few operations on files that the transfer path needs, behind one trait.
//!
//! The trait exists so that the order of writes, syncs and renames can be tested against a storage that forgets what
//! was not synced ([`lossy::LossyStorage`]); [`disk::DiskStorage`] is the real one. Calls block: they are made on
//! worker threads. What it leaves out: any knowledge of transfers, and reading what a user sends, which never goes
//! through our own folders.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

pub mod disk;
pub mod lossy;
pub mod path;

#[cfg(test)]
mod tests;

pub use disk::DiskStorage;
pub use lossy::LossyStorage;
pub use path::{NAME_BYTES_MAX, PATH_BYTES_MAX, PathFault, RelPath};

/// Folders within folders that [`Storage::bytes_below`] follows; what lies deeper was not put there by us.
const DEPTH_MAX: usize = PATH_BYTES_MAX / 2;

/// A time of last change, in nanoseconds since 1970 (negative before).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModifiedNs(pub i64);

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A link, a device, a socket or a pipe.
    Other,
}

/// What is known of a name without opening it; links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: EntryKind,
    /// Its length in bytes; 0 for what is not a file.
    pub len: u64,
    /// When it was last written to; 0 where nobody keeps that.
    pub modified: ModifiedNs,
}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderEntry {
    /// The name, as the file system has it.
    pub name: Vec<u8>,
    /// What it stands for.
    pub metadata: Metadata,
}

/// What [`Storage::open`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
    /// Reading and writing a file that must not exist yet.
    CreateNew,
}

/// A tree of folders and files that belongs to this peer.
pub trait Storage: Debug + Send + Sync + 'static {
    /// Opens a file. Nothing on the way to it, nor itself, may be a link.
    ///
    /// # Errors
    /// As the operating system says; `AlreadyExists` for [`Access::CreateNew`].
    fn open(&self, path: &RelPath, access: Access) -> io::Result<Arc<dyn StorageFile>>;

    /// Makes one folder in an existing one.
    ///
    /// # Errors
    /// As the operating system says; `AlreadyExists` when the name is taken.
    fn create_folder(&self, path: &RelPath) -> io::Result<()>;

    /// Says what is behind a name, `None` when nothing is.
    ///
    /// # Errors
    /// As the operating system says.
    fn metadata(&self, path: &RelPath) -> io::Result<Option<Metadata>>;

    /// Lists a folder, at most `entries_max` names of it.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self, folder: &RelPath, entries_max: usize) -> io::Result<Vec<FolderEntry>>;

    /// Gives a file or folder another name, in one step, only if that name is free.
    ///
    /// It is durable once the folder of the new name has been synced.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken, else as the operating system says.
    fn rename_no_replace(&self, from: &RelPath, to: &RelPath) -> io::Result<()>;

    /// Removes a file, or a folder with all that it holds; one that is missing is no error.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &RelPath) -> io::Result<()>;

    /// Sets permissions and time of a folder.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_folder_attributes(&self, folder: &RelPath, attributes: Attributes) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_folder(&self, folder: &RelPath) -> io::Result<()>;

    /// Makes a folder durable with all that lies below it, contents included.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_tree(&self, folder: &RelPath) -> io::Result<()>;

    /// Checks that names can be put into a folder.
    ///
    /// # Errors
    /// `ReadOnlyFilesystem` or `PermissionDenied` when they cannot, else as the operating system says.
    fn check_writable(&self, folder: &RelPath) -> io::Result<()>;

    /// Bytes that can still be written.
    ///
    /// # Errors
    /// As the operating system says.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Makes a folder and those that lead to it, durably; existing ones are kept.
    ///
    /// # Errors
    /// `NotADirectory` when a name on the way is something else, else as the operating system says.
    fn ensure_folder(&self, path: &RelPath) -> io::Result<()> {
        let mut folder = RelPath::ROOT;
        for name in path.names() {
            let next = folder.join(name).map_err(io::Error::other)?;
            match self.create_folder(&next) {
                Ok(()) => self.sync_folder(&folder)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let found = self.metadata(&next)?.map(|found| found.kind);
                    if found != Some(EntryKind::Folder) {
                        return Err(io::ErrorKind::NotADirectory.into());
                    }
                }
                Err(error) => return Err(error),
            }
            folder = next;
        }
        Ok(())
    }

    /// Adds up the lengths of all files below a folder; a missing folder has none.
    ///
    /// # Errors
    /// As the operating system says.
    fn bytes_below(&self, folder: &RelPath) -> io::Result<u64> {
        let mut total = 0u64;
        let mut folders = vec![(folder.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let entries = match self.list(&folder, usize::MAX) {
                Ok(entries) => entries,
                // Removed by its owner while we look: it holds nothing any more.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                total = total.saturating_add(entry.metadata.len);
                if entry.metadata.kind == EntryKind::Folder
                    && depth < DEPTH_MAX
                    && let Ok(below) = folder.join(&entry.name)
                {
                    folders.push((below, depth + 1));
                }
            }
        }
        Ok(total)
    }
}

/// Permissions and time to set; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, of which only `0o777` are ever set.
    pub mode: Option<u32>,
    /// Time of last change.
    pub modified: Option<ModifiedNs>,
}

/// An open file of a [`Storage`].
pub trait StorageFile: Debug + Send + Sync {
    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// As the operating system says; what was written of it then is undefined.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before that, else as the operating system says.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn size(&self) -> io::Result<u64>;

    /// Cuts or extends the file, without taking space for it.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Extends the file to `len` bytes and takes the space for it; `false` when the file system cannot.
    ///
    /// # Errors
    /// `StorageFull` when there is no room, else as the operating system says.
    fn allocate(&self, len: u64) -> io::Result<bool>;

    /// Sets permissions and time.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_attributes(&self, attributes: Attributes) -> io::Result<()>;

    /// Makes contents and length durable.
    ///
    /// # Errors
    /// As the operating system says; the contents must then be considered lost.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes contents, length and attributes durable.
    ///
    /// # Errors
    /// As the operating system says; the contents must then be considered lost.
    fn sync_all(&self) -> io::Result<()>;
}
