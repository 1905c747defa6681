//! Replays the fuzzers' corpus, and mutations of it, through every decoder of what strangers send.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use hyperfabric_tests::decoders::{self, DECODERS, Decoder};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn inputs(decoder: &str) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = fuzz().join("corpus").join(decoder);
    let entries = fs::read_dir(&folder).with_context(|| format!("no corpus {}", folder.display()))?;
    entries
        .map(|entry| {
            let path = entry?.path();
            let bytes = fs::read(&path)?;
            Ok((path, bytes))
        })
        .collect()
}

#[test]
fn every_input_of_the_corpus_is_survived_by_every_decoder() -> Result<()> {
    for Decoder { name, .. } in DECODERS {
        let inputs = inputs(name)?;
        ensure!(!inputs.is_empty(), "the corpus of {name} is empty");
        for (path, bytes) in inputs {
            eprintln!("{}", path.display());
            for decoder in DECODERS {
                (decoder.read)(&bytes);
            }
        }
    }
    Ok(())
}

#[test]
fn every_input_cut_or_changed_at_any_place_is_survived() -> Result<()> {
    for Decoder { name, .. } in DECODERS {
        for (path, bytes) in inputs(name)? {
            eprintln!("{}", path.display());
            for at in 0..bytes.len() {
                decoders::run(name, &bytes[..at]);
                for change in [0x01, 0x20, 0x80, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] ^= change;
                    decoders::run(name, &changed);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn lengths_that_promise_more_than_there_is_allocate_nothing() {
    // Every CBOR type that announces a length, with the largest one.
    for major in [0x5b, 0x7b, 0x9b, 0xbb] {
        let huge = [&[major][..], &[0xff; 8]].concat();
        for nested in [vec![], vec![0x82, 0x00], vec![0xa1, 0x00]] {
            let bytes = [nested, huge.clone()].concat();
            for decoder in DECODERS {
                (decoder.read)(&bytes);
            }
        }
    }
    // Nesting deep enough to overflow the stack of a decoder that recurses.
    for open in [0x81, 0xa1, 0xd8] {
        for decoder in DECODERS {
            (decoder.read)(&vec![open; 60_000]);
        }
    }
}

#[test]
fn every_decoder_has_a_fuzz_target_and_a_corpus() -> Result<()> {
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml"))?;
    let mut complaints = Vec::new();
    for Decoder { name, .. } in DECODERS {
        if !fuzz().join(format!("fuzz_targets/{name}.rs")).is_file()
            || !manifest.contains(&format!("\"{name}\""))
        {
            complaints.push(format!("{name} has no fuzz target"));
        }
    }
    let decoders: BTreeSet<&str> = DECODERS.iter().map(|decoder| decoder.name).collect();
    for entry in fs::read_dir(fuzz().join("corpus"))? {
        let name = entry?.file_name();
        if !decoders.contains(name.to_string_lossy().as_ref()) {
            complaints.push(format!("the corpus {} has no decoder", name.display()));
        }
    }
    ensure!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    Ok(())
}
