//! A receiver that cannot, or does not want to, take a file says so; nothing half-done is ever visible.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use hyperfabric_tests::files::b3sum;
use hyperfabric_tests::wait::until;
use hyperfabric_tests::{Content, Exit, Folder, Mesh, PATIENCE, Peer, skip};

use crate::support::{MIB, goes_on, send_arguments, start_send, transfers, under_way};

/// Sends a file that must not arrive, and returns what the sender was told.
fn not_taken(from: &Peer, to: &Peer, path: &Path, exit: Exit) -> Result<String> {
    let outcome = from.run(&send_arguments(path, to.name()))?.expect(exit)?;
    let name = path.file_name();
    ensure!(
        !to.received()?.iter().any(|file| file.file_name() == name),
        "it is in the inbox all the same"
    );
    Ok(outcome.stderr)
}

#[test]
fn what_a_sender_that_does_not_return_has_left_is_removed() -> Result<()> {
    let (mut mesh, _folder, large, _) = pair("inbox:\n  abandoned_after_seconds: 2\n")?;
    let [alpha, beta] = mesh.by_name();
    std::fs::File::options()
        .write(true)
        .open(&large)?
        .set_len(512 * MIB)?;
    let _send = start_send(alpha, &large, "beta")?;
    under_way(alpha, 16 * MIB)?;
    alpha.kill()?;
    let partial = beta.data_dir().join("partial");
    ensure!(std::fs::read_dir(&partial)?.count() == 1, "nothing had arrived");
    beta.logs("the sender has not come back: what arrived is removed")?;
    until("the room to be free", PATIENCE, || {
        Ok(std::fs::read_dir(&partial)?.count() == 0)
    })?;
    let ended = transfers(beta)?;
    ensure!(
        ended[0]["state"] == "failed" && ended[0]["error"]["name"] == "unreachable",
        "{ended:?}"
    );
    // Who comes back after all begins anew.
    alpha.up()?;
    ensure!(beta.received_named("large.bin")?.1 == b3sum(&large)?);
    Ok(())
}

/// A mesh of two whose second peer has this configuration, with a file of 4 MiB and a small one.
fn pair(yaml: &str) -> Result<(Mesh, Folder, PathBuf, PathBuf)> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [_, beta] = mesh.by_name();
    beta.terminate()?;
    beta.configure(yaml)?;
    beta.up()?;
    mesh.peers[0].knows(&["beta"])?;
    let folder = Folder::new()?;
    let large = folder.random(
        "large.bin",
        Content {
            bytes: 4 * MIB,
            seed: 1,
        },
    )?;
    let small = folder.random("small.bin", Content { bytes: 1000, seed: 2 })?;
    Ok((mesh, folder, large, small))
}

#[test]
fn a_file_beyond_the_quota_is_refused_and_a_smaller_one_is_taken() -> Result<()> {
    let (mut mesh, _folder, large, small) = pair("inbox:\n  quota_bytes: 1048576\n")?;
    let [alpha, beta] = mesh.by_name();
    let said = not_taken(alpha, beta, &large, Exit::Refused)?;
    ensure!(said.contains("quota"), "{said}");
    goes_on(alpha, &small, "beta")
}

#[test]
fn an_inbox_that_accepts_nobody_refuses() -> Result<()> {
    let (mut mesh, _folder, large, _) = pair("inbox:\n  accept: none\n")?;
    let [alpha, beta] = mesh.by_name();
    not_taken(alpha, beta, &large, Exit::Refused)?;
    Ok(())
}

#[test]
fn free_space_that_must_stay_is_not_used() -> Result<()> {
    // More than any disk has.
    let (mut mesh, _folder, large, _) = pair("inbox:\n  min_free_bytes: 4611686018427387904\n")?;
    let [alpha, beta] = mesh.by_name();
    let said = not_taken(alpha, beta, &large, Exit::Refused)?;
    ensure!(said.contains("free") || said.contains("space"), "{said}");
    Ok(())
}

/// A file system of its own below a peer's data folder; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts, or returns `None` where that is not allowed.
    fn new(path: &Path, arguments: &[&str]) -> Option<Self> {
        let mounted = Command::new("mount").args(arguments).arg(path).output().ok()?;
        mounted.status.success().then(|| Self(path.to_path_buf()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazy: a daemon may still hold files of it.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_ends_a_transfer_with_an_error_and_the_daemon_goes_on() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha"])?;
    let mut beta = mesh.join("beta")?;
    // Moved onto a small disk as a whole: inbox and partial files lie on one file system.
    let kept = beta.scratch("kept");
    std::fs::rename(beta.data_dir(), &kept)?;
    std::fs::create_dir(beta.data_dir())?;
    let options = ["-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs"];
    let Some(_disk) = Mounted::new(&beta.data_dir(), &options) else {
        skip!("mounting a small disk needs root");
    };
    for entry in std::fs::read_dir(&kept)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), beta.data_dir().join(entry.file_name()))?;
        }
    }
    beta.configure("inbox:\n  min_free_bytes: 0\n")?;
    beta.tolerate("No space left");
    beta.up()?;
    let [alpha] = mesh.by_name();
    alpha.knows(&["beta"])?;
    let folder = Folder::new()?;
    let large = folder.random(
        "large.bin",
        Content {
            bytes: 64 * MIB,
            seed: 1,
        },
    )?;
    let small = folder.random("small.bin", Content { bytes: 1000, seed: 2 })?;
    let outcome = alpha.run(&send_arguments(&large, "beta"))?;
    ensure!(
        matches!(outcome.exit, Exit::Failed | Exit::Refused),
        "{outcome:?}"
    );
    ensure!(outcome.stderr.contains("space"), "{}", outcome.stderr);
    ensure!(beta.received()?.is_empty());
    goes_on(alpha, &small, "beta")?;
    beta.terminate()?;
    Ok(())
}

#[test]
fn a_read_only_inbox_ends_a_transfer_with_an_error_and_the_daemon_goes_on() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    std::fs::create_dir_all(beta.inbox())?;
    let Some(disk) = Mounted::new(&beta.inbox(), &["-t", "tmpfs", "-o", "ro", "tmpfs"]) else {
        skip!("mounting a read-only inbox needs root");
    };
    let folder = Folder::new()?;
    let path = folder.random(
        "f.bin",
        Content {
            bytes: 2 * MIB,
            seed: 1,
        },
    )?;
    beta.tolerate("Read-only");
    let outcome = alpha.run(&send_arguments(&path, "beta"))?;
    ensure!(
        matches!(outcome.exit, Exit::Failed | Exit::Refused),
        "{outcome:?}"
    );
    drop(disk);
    goes_on(alpha, &path, "beta")
}
