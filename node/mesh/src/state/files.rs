//! Files that are either the old ones or the new ones, and nobody else's business.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use hyperfabric_protocol::SigningKey;
use zeroize::Zeroizing;

use super::StateError;

/// What a key file starts with; the digit is the format's version.
const KEY_PREFIX: &str = "hyperfabric-key-1 ";
/// Larger files are not keys.
const KEY_FILE_BYTES_MAX: u64 = 256;

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::File { path, source }
}

/// Makes a folder, and those above it, for this user alone.
pub(super) fn make_private_folder(path: &Path) -> Result<(), StateError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed(path))
}

/// Replaces a file with mode 0600 so that, whatever happens, the old or the new content is there.
///
/// # Errors
/// When the file cannot be written; the old one is then still there.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(failed(path))
}

/// Reads a small file that only its owner may read.
///
/// # Errors
/// [`StateError::Exposed`] when others may, and when it cannot be read.
pub fn read_private(path: &Path) -> Result<Zeroizing<String>, StateError> {
    let metadata = std::fs::metadata(path).map_err(failed(path))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(StateError::Exposed(path.to_owned()));
    }
    if metadata.len() > KEY_FILE_BYTES_MAX {
        return Err(StateError::BadKey(path.to_owned()));
    }
    Ok(Zeroizing::new(
        std::fs::read_to_string(path).map_err(failed(path))?,
    ))
}

pub(super) fn write_key(path: &Path, key: &SigningKey) -> Result<(), StateError> {
    let hex: String = key.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let text = Zeroizing::new(format!("{KEY_PREFIX}{}\n", Zeroizing::new(hex).as_str()));
    replace(path, text.as_bytes())
}

pub(super) fn read_key(path: &Path) -> Result<SigningKey, StateError> {
    let text = read_private(path)?;
    let bad = || StateError::BadKey(path.to_owned());
    let hex = text
        .trim_end()
        .strip_prefix(KEY_PREFIX)
        .ok_or_else(bad)?
        .as_bytes();
    let (pairs, rest) = hex.as_chunks::<2>();
    if pairs.len() != 32 || !rest.is_empty() {
        return Err(bad());
    }
    let mut secret = Zeroizing::new([0; 32]);
    for (byte, pair) in secret.iter_mut().zip(pairs) {
        let digits = std::str::from_utf8(pair).map_err(|_| bad())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
    }
    Ok(SigningKey::from_bytes(&secret))
}
