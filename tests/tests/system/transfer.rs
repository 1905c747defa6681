//! Files arrive as they were.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use hyperfabric_tests::files::b3sum;
use hyperfabric_tests::{Content, Exit, Folder, Mesh};

use crate::support::{KIB, MIB, send};

#[test]
fn a_file_arrives_verified_in_the_folder_of_its_sender() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random(
        "weights.bin",
        Content {
            bytes: 24 * MIB + 12_345,
            seed: 1,
        },
    )?;
    let sent = send(alpha, &path, "beta")?;
    ensure!(sent["resumed_bytes"] == 0, "{sent}");
    ensure!(sent["route"] == serde_json::json!(["alpha", "beta"]), "{sent}");
    let (landed, hash) = beta.received_named("weights.bin")?;
    ensure!(hash == b3sum(&path)?);
    ensure!(
        landed.starts_with(beta.inbox().join("alpha")),
        "landed at {}",
        landed.display()
    );
    Ok(())
}

#[test]
fn every_size_around_the_edges_of_chunks_arrives() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let around = [1, 2, 4, 8]
        .into_iter()
        .flat_map(|chunks| [chunks * MIB - 1, chunks * MIB, chunks * MIB + 1]);
    let whole_chunks = [3, 5, 7, 9].into_iter().map(|chunks| chunks * MIB);
    for bytes in [0, 1, 1023, KIB, KIB + 1]
        .into_iter()
        .chain(around)
        .chain(whole_chunks)
    {
        let name = format!("{bytes}.bin");
        let path = folder.random(&name, Content { bytes, seed: bytes })?;
        send(alpha, &path, "beta")?;
        ensure!(beta.received_named(&name)?.1 == b3sum(&path)?, "{bytes} bytes");
    }
    Ok(())
}

#[test]
fn a_folder_arrives_as_a_tree() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let names = [
        "run/a.bin",
        "run/deep/er/b.bin",
        "run/deep/empty.bin",
        "run/deep/\u{e9}t\u{e9}.bin",
    ];
    for (seed, name) in names.iter().enumerate() {
        let bytes = if name.contains("empty") {
            0
        } else {
            300 * KIB + seed as u64
        };
        folder.random(
            name,
            Content {
                bytes,
                seed: seed as u64,
            },
        )?;
    }
    send(alpha, &folder.path().join("run"), "beta")?;
    for name in names {
        let landed = beta.inbox().join("alpha").join(name);
        ensure!(b3sum(&landed)? == b3sum(&folder.path().join(name))?, "{name}");
    }
    Ok(())
}

#[test]
fn two_files_of_one_name_are_both_kept() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let paths = ["one/same.bin", "two/same.bin"];
    for (seed, name) in paths.iter().enumerate() {
        let path = folder.random(
            name,
            Content {
                bytes: 10 * KIB,
                seed: seed as u64,
            },
        )?;
        send(alpha, &path, "beta")?;
    }
    let received = beta.received()?;
    let hashes: Vec<String> = received.iter().map(|path| b3sum(path)).collect::<Result<_>>()?;
    for name in paths {
        ensure!(
            hashes.contains(&b3sum(&folder.path().join(name))?),
            "{name} is lost; the inbox: {received:?}"
        );
    }
    Ok(())
}

#[test]
fn an_unknown_node_is_looked_for_and_then_not_found() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha"])?;
    let [alpha] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random("f", Content { bytes: 1, seed: 0 })?;
    let path = path.to_str().context("UTF-8")?;
    alpha
        .run(&["send", path, "--to", "nobody", "--wait", "1s"])?
        .expect(Exit::NotFound)?;
    alpha
        .run(&["send", "/no/such/file", "--to", "alpha"])?
        .expect(Exit::NotFound)?;
    Ok(())
}

#[test]
fn a_transfer_without_an_end_stops_at_its_timeout() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    beta.kill()?;
    let folder = Folder::new()?;
    let path = folder.random("f", Content { bytes: MIB, seed: 0 })?;
    let path = path.to_str().context("UTF-8")?;
    alpha
        .run(&["send", path, "--to", "beta", "--timeout", "2s"])?
        .expect(Exit::TimedOut)?;
    Ok(())
}

#[test]
fn a_file_the_caller_cannot_read_is_not_sent() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random("secret", Content { bytes: 10, seed: 0 })?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000))?;
    if fs::File::open(&path).is_ok() {
        hyperfabric_tests::skip!("file permissions do not hold for this user (root)");
    }
    alpha
        .run(&["send", path.to_str().context("UTF-8")?, "--to", "beta"])?
        .expect(Exit::Failed)?;
    ensure!(beta.received()?.is_empty());
    Ok(())
}

#[test]
fn a_large_file_needs_little_memory_at_either_end() -> Result<()> {
    const PEAK_KIB_MAX: u64 = 120 * 1024;
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random(
        "large.bin",
        Content {
            bytes: 512 * MIB,
            seed: 1,
        },
    )?;
    send(alpha, &path, "beta")?;
    for peer in [alpha, beta] {
        let peak = peer.status_field("VmHWM")?;
        ensure!(peak <= PEAK_KIB_MAX, "{} needed {peak} KiB", peer.name());
    }
    Ok(())
}
