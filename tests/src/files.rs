//! Files to send: random, reproducible, and compared by their BLAKE3 hash, which is what `b3sum` prints.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// How much is made or read at once.
const PIECE_BYTES: usize = 1 << 20;

/// A temporary folder for the files of one test.
#[derive(Debug)]
pub struct Folder(TempDir);

/// What a file of a test contains: `bytes` pseudo-random bytes that follow from `seed`.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// The length.
    pub bytes: u64,
    /// Equal seeds give equal bytes; a longer content continues a shorter one.
    pub seed: u64,
}

impl Folder {
    /// Makes an empty folder that goes away with the value.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new() -> Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("hyperfabric-").tempdir()?))
    }

    /// Returns the folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes a file of `bytes` zeros that takes no space: large enough to be sent for as long as a test needs, and made
    /// at once.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn sparse(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.path().join(name);
        File::create(&path)?.set_len(bytes)?;
        Ok(path)
    }

    /// Writes a file of random bytes; `name` may have folders in it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn random(&self, name: &str, content: Content) -> Result<PathBuf> {
        let path = self.path().join(name);
        write_random(&path, content)?;
        Ok(path)
    }
}

/// Writes random bytes over a part of a file, whose length stays as it is.
///
/// # Errors
/// When the file cannot be written.
pub fn overwrite(path: &Path, offset: u64, content: Content) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = File::options().write(true).open(path)?;
    let mut bytes = vec![0; usize::try_from(content.bytes)?];
    blake3::Hasher::new()
        .update(&content.seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    Ok(file.write_all_at(&bytes, offset)?)
}

/// Writes a file of random bytes, with the folders above it.
///
/// # Errors
/// When the file cannot be written.
pub fn write_random(path: &Path, content: Content) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut file = BufWriter::with_capacity(PIECE_BYTES, file);
    // The extendable output of a hash: a gigabyte a second, and no dependency more.
    let mut stream = blake3::Hasher::new()
        .update(&content.seed.to_le_bytes())
        .finalize_xof();
    let mut piece = vec![0; PIECE_BYTES];
    let mut left = content.bytes;
    while left > 0 {
        let now = left.min(PIECE_BYTES as u64) as usize;
        stream.fill(&mut piece[..now]);
        file.write_all(&piece[..now])?;
        left -= now as u64;
    }
    file.flush()?;
    Ok(())
}

/// Returns the BLAKE3 hash of a file, in hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn b3sum(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&piece[..read]);
    }
}

/// Returns every regular file below `folder`, sorted; none when the folder is not there.
///
/// # Errors
/// When a folder cannot be read.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Removed between the listing of its parent and now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", folder.display())),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
