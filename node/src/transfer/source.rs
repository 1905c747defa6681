//! What is sent: an open file, bytes in memory, or a folder, read by position from worker threads.
//!
//! A source is read once, and must not change meanwhile: each read is followed by a look at length, time and identity
//! of the file, so that a receiver never gets a mix of two versions without both sides knowing. A file comes as an
//! open descriptor, never as a path: whoever asked to send it has proved that it may read it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use hyperfabric_protocol::transfer::{Fault, PayloadKind};
use rustix::fs::{FileType, Stat, fstat};

use super::tree::{Skipped, TreeSource};
use crate::storage::{ModifiedNs, RelPath};
use crate::store::SourceFingerprint;

/// Why a source cannot be sent, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum SourceFault {
    /// It is not a regular file.
    #[error("the source is not a regular file")]
    NotAFile,
    /// It was changed, shortened or replaced since the transfer began.
    #[error("the source changed while it was sent{}", in_folder(.0))]
    Changed(RelPath),
    /// It cannot be read.
    #[error("the source cannot be read{}", in_folder(.path))]
    Unreadable {
        /// Which file of a folder; empty for the source itself.
        path: RelPath,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A folder has more in it than can be sent at once.
    #[error("the folder has more than {max} {what}")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: u64,
    },
}

fn in_folder(path: &RelPath) -> String {
    if path.is_root() {
        String::new()
    } else {
        format!(": {path}")
    }
}

impl SourceFault {
    /// What the other side and the user are told.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Changed(_) => Fault::SourceChanged,
            Self::NotAFile | Self::Unreadable { .. } | Self::TooMuch { .. } => Fault::SourceUnreadable,
        }
    }

    pub(super) fn unreadable(path: &RelPath, source: io::Error) -> Self {
        Self::Unreadable {
            path: path.clone(),
            source,
        }
    }
}

/// Something that can be sent.
#[derive(Debug)]
pub enum Source {
    /// An open file.
    File(FileSource),
    /// Bytes that are already in memory; they are sent without a copy.
    Memory(Bytes),
    /// A folder, as one payload.
    Tree(TreeSource),
}

/// An open regular file, and what it was when it was opened.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    identity: FileIdentity,
    mode: u32,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity {
    pub(super) len: u64,
    pub(super) modified: ModifiedNs,
    pub(super) inode: u64,
    pub(super) device: u64,
}

impl FileIdentity {
    pub(super) fn of(stat: &Stat) -> Self {
        let seconds = stat.st_mtime.saturating_mul(1_000_000_000);
        let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Self {
            len: u64::try_from(stat.st_size).unwrap_or(0),
            modified: ModifiedNs(seconds.saturating_add(nanoseconds)),
            inode: stat.st_ino,
            device: stat.st_dev,
        }
    }
}

/// Opens a file or folder for sending, by its path.
///
/// # Errors
/// [`SourceFault::Unreadable`].
pub fn open_path(path: &std::path::Path, folder: bool) -> Result<OwnedFd, SourceFault> {
    let kind = if folder {
        rustix::fs::OFlags::DIRECTORY
    } else {
        rustix::fs::OFlags::empty()
    };
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK | kind;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map_err(|error| SourceFault::unreadable(&RelPath::ROOT, error.into()))
}

impl FileSource {
    /// Takes an open file.
    ///
    /// # Errors
    /// [`SourceFault::NotAFile`] for anything but a regular file.
    pub fn new(file: OwnedFd) -> Result<Self, SourceFault> {
        let stat = fstat(&file).map_err(|error| SourceFault::unreadable(&RelPath::ROOT, error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(SourceFault::NotAFile);
        }
        Ok(Self {
            file: File::from(file),
            identity: FileIdentity::of(&stat),
            mode: stat.st_mode & 0o777,
        })
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), SourceFault> {
        read_unchanged(&self.file, self.identity, offset, out, &RelPath::ROOT)
    }
}

/// Reads, and then checks that the file is still the one that was announced.
pub(super) fn read_unchanged(
    file: &File,
    expected: FileIdentity,
    offset: u64,
    out: &mut [u8],
    path: &RelPath,
) -> Result<(), SourceFault> {
    match file.read_exact_at(out, offset) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(SourceFault::Changed(path.clone()));
        }
        Err(error) => return Err(SourceFault::unreadable(path, error)),
    }
    check_identity(file, expected, path)
}

pub(super) fn check_identity(file: &File, expected: FileIdentity, path: &RelPath) -> Result<(), SourceFault> {
    let stat = fstat(file).map_err(|error| SourceFault::unreadable(path, error.into()))?;
    if FileIdentity::of(&stat) == expected {
        Ok(())
    } else {
        Err(SourceFault::Changed(path.clone()))
    }
}

impl Source {
    /// Bytes of the payload.
    pub fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.identity.len,
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Tree(tree) => tree.len(),
        }
    }

    /// Whether the payload has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What lies in a folder and is not sent; `None` for what is no folder.
    pub fn skipped(&self) -> Option<&Skipped> {
        match self {
            Self::File(_) | Self::Memory(_) => None,
            Self::Tree(tree) => Some(tree.skipped()),
        }
    }

    /// What it becomes at the receiver.
    pub fn kind(&self) -> PayloadKind {
        match self {
            Self::File(_) | Self::Memory(_) => PayloadKind::File,
            Self::Tree(_) => PayloadKind::Tree,
        }
    }

    /// Permission bits to offer.
    pub fn mode(&self) -> Option<u32> {
        match self {
            Self::File(file) => Some(file.mode),
            Self::Memory(_) => None,
            Self::Tree(tree) => Some(tree.mode()),
        }
    }

    /// Time of last change to offer.
    pub fn modified(&self) -> Option<ModifiedNs> {
        match self {
            Self::File(file) => Some(file.identity.modified),
            Self::Memory(_) => None,
            Self::Tree(tree) => Some(tree.modified()),
        }
    }

    /// What tells this state of the source from another, over restarts.
    pub fn fingerprint(&self) -> SourceFingerprint {
        match self {
            Self::File(file) => SourceFingerprint::File {
                len: file.identity.len,
                modified_ns: file.identity.modified.0,
                inode: file.identity.inode,
                device: file.identity.device,
            },
            Self::Memory(bytes) => SourceFingerprint::Memory(*blake3::hash(bytes).as_bytes()),
            Self::Tree(tree) => SourceFingerprint::Tree(tree.digest()),
        }
    }

    /// Fills `out` from `offset`; what it read is of the announced state of the source.
    ///
    /// # Errors
    /// [`SourceFault::Changed`] when the source is not what it was.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), SourceFault> {
        match self {
            Self::File(file) => file.read_at(offset, out),
            Self::Memory(bytes) => {
                out.copy_from_slice(&memory_range(bytes, offset, out.len())?);
                Ok(())
            }
            Self::Tree(tree) => tree.read_at(offset, out),
        }
    }

    /// The bytes themselves, when they are in memory.
    pub(super) fn in_memory(&self, offset: u64, len: usize) -> Option<Result<Bytes, SourceFault>> {
        match self {
            Self::Memory(bytes) => Some(memory_range(bytes, offset, len)),
            Self::File(_) | Self::Tree(_) => None,
        }
    }

    /// Checks that nothing was changed since the source was opened.
    ///
    /// # Errors
    /// [`SourceFault::Changed`] when the source is not what it was.
    pub fn check_unchanged(&self) -> Result<(), SourceFault> {
        match self {
            Self::File(file) => check_identity(&file.file, file.identity, &RelPath::ROOT),
            // Each of a folder's files is checked by the read of its last byte.
            Self::Memory(_) | Self::Tree(_) => Ok(()),
        }
    }
}

fn memory_range(bytes: &Bytes, offset: u64, len: usize) -> Result<Bytes, SourceFault> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(len);
    if end > bytes.len() {
        return Err(SourceFault::Changed(RelPath::ROOT));
    }
    Ok(bytes.slice(start..end))
}
