//! The real storage: files below one folder, reached by folder descriptors only.
//!
//! Every step from the root folder is an `openat` that refuses links, so that a link planted in the inbox, by its
//! owner's mistake or by another program, cannot lead a write out of it. The root itself may be reached over links:
//! it is where the user told us to be.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    self, AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps,
};
use rustix::io::Errno;

use super::{
    Access, Attributes, EntryKind, FolderEntry, Metadata, ModifiedNs, RelPath, Storage, StorageFile,
};

const FOLDER_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Files are the user's own: others get access only by what the user sets.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const FOLDER_MODE: Mode = Mode::RWXU;

/// Nanoseconds in a second.
const SECOND_NS: i64 = 1_000_000_000;

/// Files and folders below one folder of the real file system.
#[derive(Debug)]
pub struct DiskStorage {
    root: OwnedFd,
    place: PathBuf,
}

#[derive(Debug)]
struct DiskFile {
    file: File,
}

impl DiskStorage {
    /// Opens the folder at `place`, which must exist.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn open(place: &Path) -> io::Result<Self> {
        let root = fs::open(
            place,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self {
            root,
            place: place.to_path_buf(),
        })
    }

    /// The folder that it was opened at.
    pub fn place(&self) -> &Path {
        &self.place
    }

    fn folder(&self, path: &RelPath) -> io::Result<OwnedFd> {
        let mut folder = fs::openat(&self.root, ".", FOLDER_FLAGS, Mode::empty())?;
        for name in path.names() {
            folder = fs::openat(&folder, OsStr::from_bytes(name), FOLDER_FLAGS, Mode::empty())?;
        }
        Ok(folder)
    }

    /// The open folder that holds `path`, and its name there.
    fn locate<'a>(&self, path: &'a RelPath) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (parent, name) = path
            .split()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok((self.folder(&parent)?, OsStr::from_bytes(name)))
    }
}

impl Storage for DiskStorage {
    fn open(&self, path: &RelPath, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        let (folder, name) = self.locate(path)?;
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
            Access::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        // A pipe with nobody at its other end would block the open for ever.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = fs::openat(&folder, name, flags, FILE_MODE)?;
        if FileType::from_raw_mode(fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Arc::new(DiskFile {
            file: File::from(file),
        }))
    }

    fn create_folder(&self, path: &RelPath) -> io::Result<()> {
        let (folder, name) = self.locate(path)?;
        Ok(fs::mkdirat(&folder, name, FOLDER_MODE)?)
    }

    fn metadata(&self, path: &RelPath) -> io::Result<Option<Metadata>> {
        if path.is_root() {
            return Ok(Some(Metadata {
                kind: EntryKind::Folder,
                len: 0,
                modified: ModifiedNs(0),
            }));
        }
        let found = self
            .locate(path)
            .and_then(|(folder, name)| metadata_at(&folder, name));
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, folder: &RelPath, entries_max: usize) -> io::Result<Vec<FolderEntry>> {
        let folder = self.folder(folder)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if entries.len() == entries_max {
                break;
            }
            match metadata_at(&folder, OsStr::from_bytes(name)) {
                Ok(metadata) => entries.push(FolderEntry {
                    name: name.to_vec(),
                    metadata,
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    fn rename_no_replace(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        let (from_folder, from_name) = self.locate(from)?;
        let (to_folder, to_name) = self.locate(to)?;
        let renamed = fs::renameat_with(
            &from_folder,
            from_name,
            &to_folder,
            to_name,
            RenameFlags::NOREPLACE,
        );
        match renamed {
            // What a file system without the flag answers.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rename_without_flag(&from_folder, from_name, &to_folder, to_name)
            }
            other => Ok(other?),
        }
    }

    fn remove(&self, path: &RelPath) -> io::Result<()> {
        let removed = self
            .locate(path)
            .and_then(|(folder, name)| remove_at(&folder, name));
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn set_folder_attributes(&self, folder: &RelPath, attributes: Attributes) -> io::Result<()> {
        set_attributes(&self.folder(folder)?, attributes)
    }

    fn sync_folder(&self, folder: &RelPath) -> io::Result<()> {
        Ok(fs::fsync(self.folder(folder)?)?)
    }

    /// Syncs the whole file system: one call, where a sync per file costs seconds for a folder of many small files.
    fn sync_tree(&self, folder: &RelPath) -> io::Result<()> {
        Ok(fs::syncfs(self.folder(folder)?)?)
    }

    fn check_writable(&self, folder: &RelPath) -> io::Result<()> {
        let folder = self.folder(folder)?;
        let access = fs::Access::WRITE_OK | fs::Access::EXEC_OK;
        Ok(fs::accessat(&folder, ".", access, AtFlags::EACCESS)?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = fs::fstatvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl StorageFile for DiskFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        match fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn set_attributes(&self, attributes: Attributes) -> io::Result<()> {
        set_attributes(&self.file, attributes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn metadata_at(folder: &OwnedFd, name: &OsStr) -> io::Result<Metadata> {
    let stat = fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Folder,
        _ => EntryKind::Other,
    };
    let len = match kind {
        EntryKind::File => u64::try_from(stat.st_size).unwrap_or(0),
        EntryKind::Folder | EntryKind::Other => 0,
    };
    let seconds = stat.st_mtime.saturating_mul(1_000_000_000);
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let modified = ModifiedNs(seconds.saturating_add(nanoseconds));
    Ok(Metadata { kind, len, modified })
}

/// Atomic all the same: `link` refuses a taken name, and a rename onto a folder works only while that is empty, which
/// the one made here is.
fn rename_without_flag(
    from_folder: &OwnedFd,
    from_name: &OsStr,
    to_folder: &OwnedFd,
    to_name: &OsStr,
) -> io::Result<()> {
    if metadata_at(from_folder, from_name)?.kind == EntryKind::Folder {
        fs::mkdirat(to_folder, to_name, FOLDER_MODE)?;
        return Ok(fs::renameat(from_folder, from_name, to_folder, to_name)?);
    }
    fs::linkat(from_folder, from_name, to_folder, to_name, AtFlags::empty())?;
    Ok(fs::unlinkat(from_folder, from_name, AtFlags::empty())?)
}

fn remove_at(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match fs::unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return Ok(other?),
    }
    // A received tree can have folders that even their owner may not write to.
    let inner = fs::openat(folder, name, FOLDER_FLAGS, Mode::empty())
        .or_else(|_| open_locked_folder(folder, name))?;
    if fs::fstat(&inner)?.st_mode & FOLDER_MODE.as_raw_mode() != FOLDER_MODE.as_raw_mode() {
        fs::fchmod(&inner, FOLDER_MODE)?;
    }
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        let below = entry.file_name().to_bytes();
        if below != b"." && below != b".." {
            remove_at(&inner, OsStr::from_bytes(below))?;
        }
    }
    Ok(fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?)
}

fn open_locked_folder(folder: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    // `chmodat` follows links, so it is asked only about what is a folder; a swap in between changes the mode of
    // something that this user owns, and opening it is refused below.
    if metadata_at(folder, name)?.kind != EntryKind::Folder {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    fs::chmodat(folder, name, FOLDER_MODE, AtFlags::empty())?;
    Ok(fs::openat(folder, name, FOLDER_FLAGS, Mode::empty())?)
}

fn set_attributes(file: impl AsFd, attributes: Attributes) -> io::Result<()> {
    if let Some(ModifiedNs(ns)) = attributes.modified {
        let modified = Timespec {
            tv_sec: ns.div_euclid(SECOND_NS),
            tv_nsec: ns.rem_euclid(SECOND_NS),
        };
        fs::futimens(
            &file,
            &Timestamps {
                last_access: modified,
                last_modification: modified,
            },
        )?;
    }
    if let Some(mode) = attributes.mode {
        // Masked, so that no sender can make a file set-uid.
        fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777))?;
    }
    Ok(())
}
