//! A storage in memory that forgets: after a crash, what was not synced may be there, or not, or half.
//!
//! It exists to test the order of writes, syncs, renames and journal commits. Contents and names are kept twice, as
//! a running system sees them and as they would be found after a power cut; the difference is a list of pending
//! changes, of which a crash keeps a seeded random subset: real disks reorder writes between two syncs. The journal
//! of a node ([`LossyStorage::journal`]) lives in the same world, so that one crash hits both. It is more hostile than
//! any real file system; it leaves out bit rot, which digests are for.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Access, Attributes, EntryKind, FolderEntry, Metadata, ModifiedNs, RelPath, Storage, StorageFile,
};

mod world;

use world::{JOURNAL_INODE, Node, World};

/// Kinds of operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Writing to a file.
    Write,
    /// Changing a file's length.
    Resize,
    /// Syncing a file's contents.
    Sync,
    /// Making a file or folder.
    Create,
    /// Renaming.
    Rename,
    /// Removing.
    Remove,
    /// Syncing a folder's names.
    SyncFolder,
    /// Any write, sync or resize of the journal.
    Journal,
}

/// Files in memory whose unsynced changes a crash may lose; clones are handles of the same storage.
#[derive(Clone, Debug, Default)]
pub struct LossyStorage {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    world: World,
    /// Operations that changed something so far.
    operations: u64,
    crash_at: Option<u64>,
    crashed: bool,
    failures: BTreeMap<Operation, io::ErrorKind>,
    capacity_bytes: Option<u64>,
    /// Handles of each file that are open: it stays for them when its name is gone.
    open: BTreeMap<u64, usize>,
}

#[derive(Debug)]
struct LossyFile {
    storage: LossyStorage,
    inode: u64,
}

impl Drop for LossyFile {
    fn drop(&mut self) {
        let mut shared = self.storage.lock();
        if let Some(handles) = shared.open.get_mut(&self.inode) {
            *handles -= 1;
            if *handles == 0 {
                shared.open.remove(&self.inode);
            }
        }
    }
}

/// The journal's bytes within a [`LossyStorage`], as a backend for redb.
#[derive(Debug)]
pub struct LossyJournal {
    storage: LossyStorage,
}

impl LossyStorage {
    /// An empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations that changed something so far, those of the journal included.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Lets the machine die at the operation with this number: it and all that follow fail.
    pub fn crash_at(&self, operation: u64) {
        self.lock().crash_at = Some(operation);
    }

    /// Files whose contents are kept, with and without a name.
    #[cfg(test)]
    pub(super) fn files_kept(&self) -> usize {
        self.lock().world.files_kept()
    }

    /// Whether the machine has died.
    pub fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// Lets every operation of a kind fail from now on.
    pub fn fail(&self, operation: Operation, error: io::ErrorKind) {
        self.lock().failures.insert(operation, error);
    }

    /// Ends what [`Self::fail`] began.
    pub fn heal(&self) {
        self.lock().failures.clear();
    }

    /// Limits the bytes of all files together; beyond it writes fail with `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity_bytes = bytes;
    }

    /// What a machine finds that starts again after a power cut: synced changes, and those others that `seed` keeps.
    pub fn reboot(&self, seed: u64) -> Self {
        let shared = self.lock();
        Self {
            shared: Arc::new(Mutex::new(Shared {
                world: shared.world.after_crash(seed),
                capacity_bytes: shared.capacity_bytes,
                ..Shared::default()
            })),
        }
    }

    /// The journal's bytes, for redb to keep its database in.
    pub fn journal(&self) -> LossyJournal {
        LossyJournal {
            storage: self.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation, and fails it when that was asked for.
    fn change(&self, operation: Operation) -> io::Result<MutexGuard<'_, Shared>> {
        let mut shared = self.lock();
        shared.operations += 1;
        if shared.crash_at.is_some_and(|at| shared.operations >= at) {
            shared.crashed = true;
        }
        shared.check_alive()?;
        match shared.failures.get(&operation) {
            Some(&kind) => Err(kind.into()),
            None => Ok(shared),
        }
    }

    fn look(&self) -> io::Result<MutexGuard<'_, Shared>> {
        let shared = self.lock();
        shared.check_alive()?;
        Ok(shared)
    }

    fn write(&self, kind: Operation, inode: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut shared = self.change(kind)?;
        let end = offset.saturating_add(data.len() as u64);
        shared.check_room(inode, end)?;
        shared.world.write(inode, offset, data)
    }

    fn resize(&self, kind: Operation, inode: u64, len: u64) -> io::Result<()> {
        let mut shared = self.change(kind)?;
        shared.check_room(inode, len)?;
        shared.world.set_len(inode, len)
    }

    fn read(&self, inode: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.look()?.world.read(inode, offset, out)
    }

    fn size_of(&self, inode: u64) -> io::Result<u64> {
        self.look()?.world.size(inode)
    }
}

impl Shared {
    fn check_alive(&self) -> io::Result<()> {
        if self.crashed {
            return Err(io::Error::other("the machine has lost its power"));
        }
        Ok(())
    }

    fn check_room(&self, inode: u64, end: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity_bytes else {
            return Ok(());
        };
        let grown = end.saturating_sub(self.world.size(inode)?);
        if grown > 0 && self.world.used_bytes().saturating_add(grown) > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Storage for LossyStorage {
    fn open(&self, path: &RelPath, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        let inode = if access == Access::CreateNew {
            self.change(Operation::Create)?.world.create_file(path)?
        } else {
            match self.look()?.world.lookup(path) {
                Some(Node::File(inode)) => inode,
                Some(Node::Folder) => return Err(io::ErrorKind::InvalidInput.into()),
                None => return Err(io::ErrorKind::NotFound.into()),
            }
        };
        *self.lock().open.entry(inode).or_default() += 1;
        Ok(Arc::new(LossyFile {
            storage: self.clone(),
            inode,
        }))
    }

    fn create_folder(&self, path: &RelPath) -> io::Result<()> {
        self.change(Operation::Create)?.world.create_folder(path)
    }

    fn metadata(&self, path: &RelPath) -> io::Result<Option<Metadata>> {
        let shared = self.look()?;
        Ok(match shared.world.lookup(path) {
            Some(node) => Some(metadata_of(&shared.world, node)?),
            None => None,
        })
    }

    fn list(&self, folder: &RelPath, entries_max: usize) -> io::Result<Vec<FolderEntry>> {
        let shared = self.look()?;
        if shared.world.lookup(folder) != Some(Node::Folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        shared
            .world
            .children(folder)
            .take(entries_max)
            .map(|(name, node)| {
                Ok(FolderEntry {
                    name,
                    metadata: metadata_of(&shared.world, node)?,
                })
            })
            .collect()
    }

    fn rename_no_replace(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        self.change(Operation::Rename)?.world.rename(from, to)
    }

    fn remove(&self, path: &RelPath) -> io::Result<()> {
        self.change(Operation::Remove)?.world.remove(path);
        Ok(())
    }

    fn set_folder_attributes(&self, folder: &RelPath, _: Attributes) -> io::Result<()> {
        match self.look()?.world.lookup(folder) {
            Some(Node::Folder) => Ok(()),
            Some(Node::File(_)) | None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn sync_folder(&self, folder: &RelPath) -> io::Result<()> {
        let mut shared = self.change(Operation::SyncFolder)?;
        let Shared { world, open, .. } = &mut *shared;
        world.sync_folder(folder);
        world.forget_nameless(|inode| open.contains_key(&inode));
        Ok(())
    }

    fn sync_tree(&self, folder: &RelPath) -> io::Result<()> {
        self.change(Operation::Sync)?.world.sync_tree(folder)
    }

    fn check_writable(&self, _: &RelPath) -> io::Result<()> {
        match self.look()?.failures.get(&Operation::Rename) {
            Some(&kind) => Err(kind.into()),
            None => Ok(()),
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let shared = self.look()?;
        let capacity = shared.capacity_bytes.unwrap_or(u64::MAX);
        Ok(capacity.saturating_sub(shared.world.used_bytes()))
    }
}

fn metadata_of(world: &World, node: Node) -> io::Result<Metadata> {
    Ok(match node {
        Node::Folder => Metadata {
            kind: EntryKind::Folder,
            len: 0,
            modified: ModifiedNs(0),
        },
        Node::File(inode) => Metadata {
            kind: EntryKind::File,
            len: world.size(inode)?,
            modified: ModifiedNs(0),
        },
    })
}

impl StorageFile for LossyFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.storage.write(Operation::Write, self.inode, offset, data)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.storage.read(self.inode, offset, out)
    }

    fn size(&self) -> io::Result<u64> {
        self.storage.size_of(self.inode)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.storage.resize(Operation::Resize, self.inode, len)
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        self.set_len(len.max(self.size()?))?;
        Ok(true)
    }

    fn set_attributes(&self, _: Attributes) -> io::Result<()> {
        self.storage.look().map(|_| ())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.storage.change(Operation::Sync)?.world.sync(self.inode)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl redb::StorageBackend for LossyJournal {
    fn len(&self) -> Result<u64, io::Error> {
        self.storage.size_of(JOURNAL_INODE)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.storage.read(JOURNAL_INODE, offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.storage.resize(Operation::Journal, JOURNAL_INODE, len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.storage.change(Operation::Journal)?.world.sync(JOURNAL_INODE)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.storage
            .write(Operation::Journal, JOURNAL_INODE, offset, data)
    }
}
