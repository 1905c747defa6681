//! A folder as one payload: a manifest, then the contents of its files one after the other. [TREE-1]
//!
//! This way a folder is hashed, resumed and verified exactly as a file is, and arrives in one rename. Here is the
//! sending side, which walks by folder descriptors and follows no link; links, devices, sockets and pipes are not
//! sent but counted, and the first of them listed [TREE-8]. The format is in [`manifest`], the receiving side in [`unpack`].

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use serde::{Deserialize, Serialize};

use super::source::{FileIdentity, SourceFault, check_identity, read_unchanged};
use crate::storage::{ModifiedNs, RelPath};

pub mod manifest;
pub mod unpack;

#[cfg(test)]
mod tests;

pub use manifest::{
    ENTRIES_MAX, MANIFEST_BYTES_MAX, ManifestFault, ManifestReader, ManifestWriter, TreeEntry, TreeEntryKind,
};

/// Names listed of what is not sent; beyond it they are only counted. Whoever follows a transfer gets the list with
/// every change, so it has to stay small.
pub const SKIPPED_LISTED_MAX: usize = 20;

const OPEN_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A folder, walked once, whose files are read as parts of one payload.
#[derive(Debug)]
pub struct TreeSource {
    root: OwnedFd,
    mode: u32,
    modified: ModifiedNs,
    manifest: Vec<u8>,
    files: Vec<SentFile>,
    len: u64,
    digest: [u8; 32],
    skipped: Skipped,
    /// Chunks are read mostly in order, so that the file read last is most often the next one too.
    last_open: Mutex<Option<(usize, Arc<File>)>>,
}

/// What lay in the folder and is not sent: links, devices, sockets and pipes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many there were.
    pub count: u64,
    /// The first of them, at most [`SKIPPED_LISTED_MAX`].
    pub listed: Vec<(RelPath, SkippedKind)>,
}

/// What an entry of a folder is that is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkippedKind {
    /// A symbolic link.
    SymbolicLink,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A device.
    Device,
    /// What this program does not know.
    Other,
}

impl SkippedKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::SymbolicLink,
        Self::Pipe,
        Self::Socket,
        Self::Device,
        Self::Other,
    ];
}

#[derive(Debug)]
struct SentFile {
    path: RelPath,
    /// Where its contents begin in the payload.
    offset: u64,
    identity: FileIdentity,
}

impl TreeSource {
    /// Walks an open folder.
    ///
    /// # Errors
    /// When something in it cannot be read, or there is too much of it.
    pub fn walk(root: OwnedFd) -> Result<Self, SourceFault> {
        let at_root = |error: rustix::io::Errno| SourceFault::unreadable(&RelPath::ROOT, error.into());
        let stat = fstat(&root).map_err(at_root)?;
        let mut walk = Walk {
            writer: ManifestWriter::new(),
            files: Vec::new(),
            content_bytes: 0,
            skipped: Skipped::default(),
            identities: blake3::Hasher::new(),
        };
        let top = openat(&root, ".", OPEN_FLAGS | OFlags::DIRECTORY, Mode::empty()).map_err(at_root)?;
        walk.folder(&top, &RelPath::ROOT)?;
        let manifest = walk.writer.finish();
        walk.identities.update(&manifest);
        let begin = manifest.len() as u64;
        for file in &mut walk.files {
            file.offset += begin;
        }
        Ok(Self {
            root,
            mode: stat.st_mode & 0o777,
            modified: FileIdentity::of(&stat).modified,
            len: begin + walk.content_bytes,
            manifest,
            files: walk.files,
            digest: *walk.identities.finalize().as_bytes(),
            skipped: walk.skipped,
            last_open: Mutex::new(None),
        })
    }

    /// Bytes of the payload: manifest and contents.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: there is a manifest at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Permission bits of the folder.
    pub fn mode(&self) -> u32 {
        self.mode
    }

    /// Time of last change of the folder.
    pub fn modified(&self) -> ModifiedNs {
        self.modified
    }

    /// Tells one state of the folder from another.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// What lies in the folder and is not sent.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Fills `out` from `offset` of the payload.
    ///
    /// # Errors
    /// [`SourceFault::Changed`] when a file is not what it was when the folder was walked.
    pub fn read_at(&self, mut offset: u64, mut out: &mut [u8]) -> Result<(), SourceFault> {
        if let Some(rest) = usize::try_from(offset)
            .ok()
            .and_then(|at| self.manifest.get(at..))
        {
            let taken = rest.len().min(out.len());
            out[..taken].copy_from_slice(&rest[..taken]);
            out = &mut out[taken..];
            offset += taken as u64;
        }
        let mut next = self
            .files
            .partition_point(|file| file.offset + file.identity.len <= offset);
        while !out.is_empty() {
            let Some(file) = self.files.get(next) else {
                return Err(SourceFault::Changed(RelPath::ROOT));
            };
            let within = offset - file.offset;
            let left = usize::try_from(file.identity.len - within).unwrap_or(usize::MAX);
            let (part, rest) = out.split_at_mut(left.min(out.len()));
            let open = self.open(next)?;
            read_unchanged(&open, file.identity, within, part, &file.path)?;
            offset += part.len() as u64;
            out = rest;
            next += 1;
        }
        Ok(())
    }

    fn open(&self, index: usize) -> Result<Arc<File>, SourceFault> {
        let mut last = self.last_open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((open, file)) = last.as_ref()
            && *open == index
        {
            return Ok(Arc::clone(file));
        }
        let sent = &self.files[index];
        let file = open_below(&self.root, &sent.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SourceFault::Changed(sent.path.clone()),
            _ => SourceFault::unreadable(&sent.path, error),
        })?;
        let file = Arc::new(file);
        check_identity(&file, sent.identity, &sent.path)?;
        *last = Some((index, Arc::clone(&file)));
        Ok(file)
    }
}

fn open_below(root: &OwnedFd, path: &RelPath) -> io::Result<File> {
    let mut names = path.names().peekable();
    let mut folder: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        let name = OsStr::from_bytes(name);
        let at = folder.as_ref().unwrap_or(root);
        if names.peek().is_some() {
            folder = Some(openat(at, name, OPEN_FLAGS | OFlags::DIRECTORY, Mode::empty())?);
        } else {
            let file = openat(at, name, OPEN_FLAGS | OFlags::NONBLOCK, Mode::empty())?;
            return Ok(File::from(file));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

struct Walk {
    writer: ManifestWriter,
    files: Vec<SentFile>,
    content_bytes: u64,
    skipped: Skipped,
    identities: blake3::Hasher,
}

impl Walk {
    /// Recursion is bounded by the length of a path: a folder deeper than that is refused before it is entered.
    fn folder(&mut self, folder: &OwnedFd, path: &RelPath) -> Result<(), SourceFault> {
        for name in sorted_names(folder).map_err(|error| SourceFault::unreadable(path, error))? {
            let below = path
                .join(&name)
                .map_err(|fault| SourceFault::unreadable(path, io::Error::other(fault)))?;
            self.entry(folder, OsStr::from_bytes(&name), below)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &OwnedFd, name: &OsStr, path: RelPath) -> Result<(), SourceFault> {
        let unreadable = |error: rustix::io::Errno| SourceFault::unreadable(&path, error.into());
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(unreadable)?;
        let identity = FileIdentity::of(&stat);
        let mut entry = TreeEntry {
            path: path.clone(),
            kind: TreeEntryKind::Folder,
            mode: stat.st_mode & 0o777,
            modified: identity.modified,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.writer.push(&entry)?;
                let inner = openat(folder, name, OPEN_FLAGS | OFlags::DIRECTORY, Mode::empty())
                    .map_err(unreadable)?;
                self.folder(&inner, &path)
            }
            FileType::RegularFile => {
                entry.kind = TreeEntryKind::File { len: identity.len };
                self.writer.push(&entry)?;
                self.identities.update(&identity.inode.to_be_bytes());
                self.identities.update(&identity.device.to_be_bytes());
                // An empty file has no part in the payload, and a search by offset must not find it.
                if identity.len > 0 {
                    self.files.push(SentFile {
                        path,
                        offset: self.content_bytes,
                        identity,
                    });
                }
                self.content_bytes = self.content_bytes.saturating_add(identity.len);
                Ok(())
            }
            FileType::Symlink => self.skip(path, SkippedKind::SymbolicLink),
            FileType::Fifo => self.skip(path, SkippedKind::Pipe),
            FileType::Socket => self.skip(path, SkippedKind::Socket),
            FileType::CharacterDevice | FileType::BlockDevice => self.skip(path, SkippedKind::Device),
            FileType::Unknown => self.skip(path, SkippedKind::Other),
        }
    }

    #[allow(clippy::unnecessary_wraps, reason = "an arm beside others that can fail")]
    fn skip(&mut self, path: RelPath, kind: SkippedKind) -> Result<(), SourceFault> {
        self.skipped.count += 1;
        if self.skipped.listed.len() < SKIPPED_LISTED_MAX {
            self.skipped.listed.push((path, kind));
        }
        Ok(())
    }
}

fn sorted_names(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
        if names.len() > ENTRIES_MAX as usize {
            return Err(io::Error::other("the folder has too many entries"));
        }
    }
    names.sort_unstable();
    Ok(names)
}
