//! The receiving side of a folder: out of the complete, verified payload into a staging folder.
//!
//! Nothing of it is visible to the user until the caller renames the staging folder into the inbox. It needs the
//! payload's space a second time; the space check of an offer counts that in.

use std::io;
use std::sync::Arc;

use super::{ManifestFault, ManifestReader, TreeEntryKind};
use crate::storage::{Access, Attributes, RelPath, Storage, StorageFile};

/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;

/// What owners may do with a received folder whatever the sender's bits say: without them the inbox could not be
/// measured or cleared by its owner.
const FOLDER_MODE_MIN: u32 = 0o700;

/// Why a folder could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The sender's manifest is not acceptable.
    #[error("the folder's manifest is not acceptable")]
    Manifest(#[from] ManifestFault),
    /// The disk failed.
    #[error("the folder could not be unpacked")]
    Storage(#[from] io::Error),
}

/// Unpacks `payload`, of `len` bytes, into the new folder `staging`; returns once everything in it is durable.
///
/// # Errors
/// When the manifest is not acceptable or the disk fails; what was unpacked so far is left for the caller to remove.
pub fn unpack(
    storage: &dyn Storage,
    payload: &Arc<dyn StorageFile>,
    len: u64,
    staging: &RelPath,
    top: Attributes,
) -> Result<(), UnpackError> {
    // The whole manifest is checked before the first file is made. [TREE-7]
    let mut check = ManifestReader::new(len, |at, out: &mut [u8]| payload.read_at(at, out))?;
    while check.next_entry()?.is_some() {}

    storage.create_folder(staging)?;
    let mut reader = ManifestReader::new(len, |at, out: &mut [u8]| payload.read_at(at, out))?;
    let mut folders = vec![(staging.clone(), top)];
    let mut buffer = vec![0; COPY_BYTES];
    while let Some((entry, offset)) = reader.next_entry()? {
        let path = staging.join_path(&entry.path).map_err(ManifestFault::Path)?;
        let attributes = Attributes {
            mode: Some(entry.mode),
            modified: Some(entry.modified),
        };
        match entry.kind {
            TreeEntryKind::Folder => {
                storage.create_folder(&path)?;
                folders.push((path, attributes));
            }
            TreeEntryKind::File { len } => {
                let file = storage.open(&path, Access::CreateNew)?;
                copy(payload, offset, len, &file, &mut buffer)?;
                file.set_attributes(attributes)?;
            }
        }
    }
    // Innermost first: making a file in a folder changes that folder's time.
    for (path, attributes) in folders.iter().rev() {
        let attributes = Attributes {
            mode: attributes.mode.map(|mode| mode | FOLDER_MODE_MIN),
            ..*attributes
        };
        storage.set_folder_attributes(path, attributes)?;
    }
    Ok(storage.sync_tree(staging)?)
}

fn copy(
    from: &Arc<dyn StorageFile>,
    offset: u64,
    len: u64,
    to: &Arc<dyn StorageFile>,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let part = usize::try_from(len - done)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        from.read_at(offset + done, &mut buffer[..part])?;
        to.write_at(done, &buffer[..part])?;
        done += part as u64;
    }
    Ok(())
}
