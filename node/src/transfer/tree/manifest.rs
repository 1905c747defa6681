//! What a folder's payload begins with: the list of its folders and files, in one order only.
//!
//! `HFTREE`, two bytes of version, the number of entries (u32) and of the manifest's bytes (u64), then each entry as a
//! length (u16) and a CBOR array. Entries are walked one at a time, so that a manifest of a million costs no memory.
//! The order is that of a walk: each folder before what it holds, names ascending by their bytes. A strict order makes
//! every check local: a repeated path, a file that is also a folder, a folder that was never announced all break it.

use std::io;

use hyperfabric_protocol::cbor::{DecodeError, Decoder, Encoder};

use super::super::source::SourceFault;
use crate::storage::{ModifiedNs, PATH_BYTES_MAX, PathFault, RelPath};

/// Entries of a manifest.
pub const ENTRIES_MAX: u32 = 1_000_000;

/// Bytes of a whole manifest.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Bytes of one entry: its path and a few integers.
const ENTRY_BYTES_MAX: usize = PATH_BYTES_MAX + 64;

const MAGIC: [u8; 8] = *b"HFTREE\0\x01";
const HEADER_BYTES: usize = 20;
const READ_BYTES: usize = 64 << 10;

const FOLDER: u64 = 0;
const FILE: u64 = 1;

/// One folder or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// Its path below the folder that is sent.
    pub path: RelPath,
    /// What it is.
    pub kind: TreeEntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Time of last change.
    pub modified: ModifiedNs,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeEntryKind {
    /// A folder, whose contents follow as entries of their own.
    Folder,
    /// A file of `len` bytes.
    File {
        /// Its bytes.
        len: u64,
    },
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestFault {
    /// It does not begin as one.
    #[error("the manifest does not begin as one, or is of an unknown version")]
    NotAManifest,
    /// It has too many entries or bytes.
    #[error("the manifest is larger than allowed")]
    TooLarge,
    /// It ends within an entry, or does not end after the last one.
    #[error("the manifest does not end where it says")]
    Length,
    /// An entry is not what an entry must be.
    #[error("an entry of the manifest is malformed")]
    Entry(#[source] DecodeError),
    /// An entry has a path that leads elsewhere.
    #[error("an entry of the manifest has a path that is not allowed")]
    Path(#[source] PathFault),
    /// Entries are repeated or not in the order of a walk.
    #[error("the manifest's entries are repeated or out of order at {0}")]
    Order(RelPath),
    /// An entry lies in what is not an announced folder.
    #[error("the manifest puts {0} into what is not a folder of it")]
    Parent(RelPath),
    /// The lengths of the files do not make up the payload.
    #[error("the manifest's lengths do not add up to the payload")]
    Sum,
    /// The manifest could not be read from the disk.
    #[error("the manifest could not be read")]
    Read(#[source] io::Error),
}

/// Writes a manifest, entry by entry.
#[derive(Debug)]
pub struct ManifestWriter {
    bytes: Vec<u8>,
    entries: u32,
}

impl ManifestWriter {
    /// Begins one.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; HEADER_BYTES],
            entries: 0,
        }
    }

    /// Adds an entry; the caller keeps the order.
    ///
    /// # Errors
    /// [`SourceFault::TooMuch`] when it has too many entries or bytes.
    pub fn push(&mut self, entry: &TreeEntry) -> Result<(), SourceFault> {
        if self.entries == ENTRIES_MAX {
            return Err(SourceFault::TooMuch {
                what: "entries",
                max: u64::from(ENTRIES_MAX),
            });
        }
        let mut e = Encoder::new();
        e.array(5);
        let (kind, len) = match entry.kind {
            TreeEntryKind::Folder => (FOLDER, 0),
            TreeEntryKind::File { len } => (FILE, len),
        };
        e.u64(kind);
        e.bytes(entry.path.as_bytes());
        e.u64(len);
        e.u64(u64::from(entry.mode));
        e.i64(entry.modified.0);
        let encoded = e.into_bytes();
        let length = u16::try_from(encoded.len())
            .ok()
            .filter(|_| (self.bytes.len() + encoded.len() + 2) as u64 <= MANIFEST_BYTES_MAX)
            .ok_or(SourceFault::TooMuch {
                what: "bytes of names",
                max: MANIFEST_BYTES_MAX,
            })?;
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(&encoded);
        self.entries += 1;
        Ok(())
    }

    /// The whole manifest.
    pub fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len() as u64;
        self.bytes[..8].copy_from_slice(&MAGIC);
        self.bytes[8..12].copy_from_slice(&self.entries.to_be_bytes());
        self.bytes[12..20].copy_from_slice(&len.to_be_bytes());
        self.bytes
    }
}

impl Default for ManifestWriter {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a manifest from the beginning of a payload, checking each entry as it comes.
pub struct ManifestReader<R> {
    read_at: R,
    /// Bytes of the whole payload.
    payload: u64,
    /// Bytes of the manifest.
    manifest: u64,
    entries_left: u32,
    /// Where the next bytes are read from.
    offset: u64,
    buffer: Vec<u8>,
    used: usize,
    /// Where the next file's contents begin.
    content: u64,
    last: Option<TreeEntry>,
    /// The folders that the last entry lies in, outermost first, itself included when it is one.
    open_folders: Vec<RelPath>,
}

impl<R: FnMut(u64, &mut [u8]) -> io::Result<()>> ManifestReader<R> {
    /// Reads what the manifest of a payload of `payload` bytes begins with. [TREE-2]
    ///
    /// # Errors
    /// When it is none, or too large.
    pub fn new(payload: u64, mut read_at: R) -> Result<Self, ManifestFault> {
        if payload < HEADER_BYTES as u64 {
            return Err(ManifestFault::NotAManifest);
        }
        let mut header = [0; HEADER_BYTES];
        read_at(0, &mut header).map_err(ManifestFault::Read)?;
        let (magic, rest) = header.split_at(8);
        let (entries, manifest) = rest.split_at(4);
        if magic != MAGIC {
            return Err(ManifestFault::NotAManifest);
        }
        let entries_left = entries.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
        let manifest = manifest
            .iter()
            .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        if entries_left > ENTRIES_MAX || manifest > MANIFEST_BYTES_MAX {
            return Err(ManifestFault::TooLarge);
        }
        if manifest < HEADER_BYTES as u64 || manifest > payload {
            return Err(ManifestFault::Length);
        }
        Ok(Self {
            read_at,
            payload,
            manifest,
            entries_left,
            offset: HEADER_BYTES as u64,
            buffer: Vec::new(),
            used: 0,
            content: manifest,
            last: None,
            open_folders: Vec::new(),
        })
    }

    /// The next entry and where its contents begin in the payload; `None` after the last, when all adds up.
    ///
    /// # Errors
    /// The first thing that is wrong; nothing may be read after that.
    pub fn next_entry(&mut self) -> Result<Option<(TreeEntry, u64)>, ManifestFault> {
        if self.entries_left == 0 {
            // [TREE-6]
            let all_read = self.offset == self.manifest && self.used == self.buffer.len();
            return match (all_read, self.content == self.payload) {
                (true, true) => Ok(None),
                (false, _) => Err(ManifestFault::Length),
                (true, false) => Err(ManifestFault::Sum),
            };
        }
        self.entries_left -= 1;
        let length = self.take(2)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length > ENTRY_BYTES_MAX {
            return Err(ManifestFault::TooLarge);
        }
        let entry = decode(self.take(length)?)?;
        self.check_place(&entry)?;
        let begin = self.content;
        if let TreeEntryKind::File { len } = entry.kind {
            self.content = begin
                .checked_add(len)
                .filter(|end| *end <= self.payload)
                .ok_or(ManifestFault::Sum)?;
        }
        self.last = Some(entry.clone());
        Ok(Some((entry, begin)))
    }

    // [TREE-4]
    fn check_place(&mut self, entry: &TreeEntry) -> Result<(), ManifestFault> {
        if let Some(last) = &self.last
            && !last.path.names().lt(entry.path.names())
        {
            return Err(ManifestFault::Order(entry.path.clone()));
        }
        let parent = entry.path.parent();
        while self.open_folders.last().is_some_and(|open| *open != parent) {
            self.open_folders.pop();
        }
        if self.open_folders.is_empty() && !parent.is_root() {
            return Err(ManifestFault::Parent(entry.path.clone()));
        }
        if entry.kind == TreeEntryKind::Folder {
            self.open_folders.push(entry.path.clone());
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&[u8], ManifestFault> {
        if self.buffer.len() - self.used < count {
            self.buffer.drain(..self.used);
            self.used = 0;
            let have = self.buffer.len();
            let left = usize::try_from(self.manifest - self.offset).unwrap_or(usize::MAX);
            let more = READ_BYTES.min(left);
            self.buffer.resize(have + more, 0);
            (self.read_at)(self.offset, &mut self.buffer[have..]).map_err(ManifestFault::Read)?;
            self.offset += more as u64;
            if self.buffer.len() < count {
                return Err(ManifestFault::Length);
            }
        }
        let taken = &self.buffer[self.used..self.used + count];
        self.used += count;
        Ok(taken)
    }
}

impl<R> std::fmt::Debug for ManifestReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManifestReader")
            .field("entries_left", &self.entries_left)
            .finish_non_exhaustive()
    }
}

// [TREE-3] [TREE-5]
fn decode(bytes: &[u8]) -> Result<TreeEntry, ManifestFault> {
    let (kind, path, len, mode, modified) = decode_fields(bytes).map_err(ManifestFault::Entry)?;
    let path = RelPath::parse(path).map_err(ManifestFault::Path)?;
    let kind = match (kind, len) {
        (FOLDER, 0) => TreeEntryKind::Folder,
        (FILE, len) => TreeEntryKind::File { len },
        _ => return Err(ManifestFault::Entry(DecodeError::Invalid("kind"))),
    };
    let mode = u32::try_from(mode)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or(ManifestFault::Entry(DecodeError::Invalid("mode")))?;
    Ok(TreeEntry {
        path,
        kind,
        mode,
        modified: ModifiedNs(modified),
    })
}

type Fields<'b> = (u64, &'b [u8], u64, u64, i64);

fn decode_fields(bytes: &[u8]) -> Result<Fields<'_>, DecodeError> {
    let mut d = Decoder::new(bytes);
    if d.array(5)? != 5 {
        return Err(DecodeError::Invalid("length"));
    }
    let fields = (d.u64()?, d.bytes(PATH_BYTES_MAX)?, d.u64()?, d.u64()?, d.i64()?);
    d.end()?;
    Ok(fields)
}
