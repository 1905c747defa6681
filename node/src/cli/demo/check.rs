//! Hashes what was sent and what has arrived: here, in the demo itself, so that no daemon is taken at its word.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Folders within folders that are followed.
const DEPTH_MAX: usize = 64;
/// Files that a folder may have for the demo.
const FILES_MAX: usize = 100_000;

/// Returns the BLAKE3 of a file, as `b3sum` prints it; of a folder, that of the names and hashes of its files.
pub(super) fn blake3_of(path: &Path) -> io::Result<String> {
    if !fs::metadata(path)?.is_dir() {
        return file(path);
    }
    let mut hasher = blake3::Hasher::new();
    for found in files(path)? {
        let name = found.strip_prefix(path).unwrap_or(&found);
        hasher.update(name.as_os_str().as_encoded_bytes());
        hasher.update(b"\0");
        hasher.update(file(&found)?.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Returns how many bytes a file has, or the files of a folder together.
pub(super) fn size_of(path: &Path) -> io::Result<u64> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    files(path)?
        .iter()
        .map(|file| Ok(fs::symlink_metadata(file)?.len()))
        .sum()
}

fn file(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Lists the plain files below a folder in the order of their paths; links are not followed, because none is sent.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![(folder.to_path_buf(), 0)];
    while let Some((folder, depth)) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && depth < DEPTH_MAX {
                open.push((entry.path(), depth + 1));
            } else if kind.is_file() {
                found.push(entry.path());
            }
            if found.len() > FILES_MAX {
                return Err(io::Error::other(format!("it has more than {FILES_MAX} files")));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_equal_when_their_files_are() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let tree = folder.path().join(name);
            fs::create_dir_all(tree.join("sub")).unwrap();
            fs::write(tree.join("x"), "1").unwrap();
            fs::write(tree.join("sub/y"), "23").unwrap();
        }
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        assert_eq!(blake3_of(&a).unwrap(), blake3_of(&b).unwrap());
        assert_eq!(size_of(&a).unwrap(), 3);
        fs::write(b.join("sub/y"), "24").unwrap();
        assert_ne!(blake3_of(&a).unwrap(), blake3_of(&b).unwrap());
        let plain = blake3_of(&a.join("x")).unwrap();
        assert_eq!(plain, blake3::hash(b"1").to_hex().to_string());
    }
}
