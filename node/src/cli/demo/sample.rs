//! A file to send: safetensors, the format in which model weights travel.
//!
//! Its layout (<https://github.com/huggingface/safetensors>, section "Format"): the length of the header as 8 bytes,
//! little endian; a JSON header with `dtype`, `shape` and `data_offsets` of each tensor; then the tensors, without gaps.
//! The content is the output of BLAKE3 for a fixed key: it does not compress, any bytes are valid 8-bit weights, and every
//! demo sends the same file, so that its hash can be told beforehand.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

/// What the tensors are derived from.
const SEED: &[u8] = b"hyperfabric demo";
/// How much is generated at a time, in bytes.
const PIECE_BYTES: usize = 1 << 20;
/// The header is filled with blanks to a multiple of this, so that the tensors are aligned.
const ALIGN: usize = 8;

/// Writes a safetensors file of `tensors` square matrices of `side` × `side` 8-bit weights.
pub(super) fn write(path: &Path, tensors: u64, side: u64) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(PIECE_BYTES, File::create_new(path)?);
    let header = header(tensors, side);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut stream = blake3::Hasher::new().update(SEED).finalize_xof();
    let mut piece = vec![0; PIECE_BYTES];
    let mut rest = tensors * side * side;
    while rest > 0 {
        let length = piece.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        stream.fill(&mut piece[..length]);
        out.write_all(&piece[..length])?;
        rest -= length as u64;
    }
    out.flush()
}

fn header(tensors: u64, side: u64) -> String {
    let bytes = side * side;
    let mut header = Map::new();
    header.insert(
        "__metadata__".to_owned(),
        json!({ "made_by": "hyperfabric demo" }),
    );
    for layer in 0..tensors {
        header.insert(
            format!("layers.{layer}.weight"),
            json!({ "dtype": "I8", "shape": [side, side], "data_offsets": [layer * bytes, (layer + 1) * bytes] }),
        );
    }
    let mut text = Value::Object(header).to_string();
    let length = text.len().next_multiple_of(ALIGN);
    text.extend(std::iter::repeat_n(' ', length - text.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_describes_every_byte_that_follows_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, 3, 16).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (length, rest) = bytes.split_at(8);
        let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
        assert_eq!(length % ALIGN, 0);
        let (header, data) = rest.split_at(length);
        let header: Value = serde_json::from_slice(header).unwrap();
        let mut ends: Vec<u64> = Vec::new();
        for layer in 0..3 {
            let tensor = &header[format!("layers.{layer}.weight")];
            assert_eq!(
                (&tensor["dtype"], &tensor["shape"]),
                (&json!("I8"), &json!([16, 16]))
            );
            assert_eq!(tensor["data_offsets"][0], ends.last().copied().unwrap_or(0));
            ends.push(tensor["data_offsets"][1].as_u64().unwrap());
        }
        assert_eq!(ends, [256, 512, 768]);
        assert_eq!(data.len(), 768);
    }
}
