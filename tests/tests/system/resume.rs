//! Transfers survive the sudden end of either side, or of both, and never leave a damaged file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use hyperfabric_tests::files::{b3sum, write_random};
use hyperfabric_tests::process::{freeze, read_bytes};
use hyperfabric_tests::wait::{eventually, until};
use hyperfabric_tests::{Content, Exit, Folder, Mesh, PATIENCE, Peer};

use crate::support::{
    MIB, TRANSFER_DEADLINE, goes_on, of_name, only_whole_files, start_send, transfers, under_way,
};

/// Large enough that a test can act while it is under way.
const FILE_BYTES: u64 = 256 * MIB;
/// How much of a file may be sent again after a crash: one per cent and a window between two syncs.
const SENT_AGAIN_MAX: u64 = FILE_BYTES / 100 + 32 * MIB;
/// How much is durable before something happens: more than one window between two syncs.
const PART_BYTES: u64 = 48 * MIB;

fn pair(file: &str) -> Result<(Mesh, Folder, PathBuf)> {
    let mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let folder = Folder::new()?;
    let path = folder.random(
        file,
        Content {
            bytes: FILE_BYTES,
            seed: 7,
        },
    )?;
    Ok((mesh, folder, path))
}

/// Waits until the whole file is in the inbox. Every file there at any moment must be whole.
fn arrives(receiver: &Peer, source: &Path) -> Result<()> {
    until("the file in the inbox", TRANSFER_DEADLINE, || {
        Ok(!receiver.received()?.is_empty())
    })?;
    only_whole_files(receiver, source)
}

#[test]
fn a_send_goes_on_when_its_receiver_was_killed_and_is_back() -> Result<()> {
    let (mut mesh, _folder, path) = pair("big.bin")?;
    let [alpha, beta] = mesh.by_name();
    let send = start_send(alpha, &path, "beta")?;
    under_way(alpha, PART_BYTES)?;
    beta.kill()?;
    only_whole_files(beta, &path)?;
    beta.up()?;
    let sent = send.wait(TRANSFER_DEADLINE)?.expect(Exit::Done)?.json()?;
    ensure!(sent["resumed_bytes"].as_u64() >= Some(PART_BYTES), "{sent}");
    ensure!(beta.received_named("big.bin")?.1 == b3sum(&path)?);
    Ok(())
}

#[test]
fn a_transfer_goes_on_when_its_sender_was_killed_and_is_back() -> Result<()> {
    let (mut mesh, _folder, path) = pair("big.bin")?;
    let [alpha, beta] = mesh.by_name();
    let _send = start_send(alpha, &path, "beta")?;
    under_way(alpha, PART_BYTES)?;
    alpha.kill()?;
    alpha.up()?;
    arrives(beta, &path)
}

#[test]
fn a_transfer_goes_on_when_both_sides_were_killed() -> Result<()> {
    let (mut mesh, _folder, path) = pair("big.bin")?;
    let [alpha, beta] = mesh.by_name();
    let _send = start_send(alpha, &path, "beta")?;
    under_way(alpha, PART_BYTES)?;
    beta.kill()?;
    alpha.kill()?;
    beta.up()?;
    alpha.up()?;
    arrives(beta, &path)
}

/// Reads a number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

#[test]
fn kills_at_random_moments_never_lose_or_damage_a_file() -> Result<()> {
    // HYPERFABRIC_KILL_ROUNDS=50 for the long run; HYPERFABRIC_SEED repeats one.
    let (rounds, seed) = (
        number("HYPERFABRIC_KILL_ROUNDS", 5),
        number("HYPERFABRIC_SEED", 1),
    );
    eprintln!("HYPERFABRIC_SEED={seed}");
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let mut worst = 0;
    for round in 0..rounds {
        let again = kill_round(alpha, beta, round, seed).with_context(|| format!("round {round}"))?;
        ensure!(
            again <= SENT_AGAIN_MAX,
            "round {round}: {again} bytes were sent again, and at most {SENT_AGAIN_MAX} may be"
        );
        worst = worst.max(again);
    }
    eprintln!("at most {worst} of {FILE_BYTES} bytes were sent again, in {rounds} rounds");
    Ok(())
}

/// Kills one side or both while a file is on its way, and returns how many of its bytes were sent more than once.
///
/// What a sender that is killed had sent is what it had read of the file: the few chunks that it had read ahead count
/// as sent, so that the figure is never too low. What the last one has sent, it says itself.
fn kill_round(alpha: &mut Peer, beta: &mut Peer, round: u64, seed: u64) -> Result<u64> {
    let draw = blake3::hash(&[seed.to_le_bytes(), u64::to_le_bytes(round)].concat());
    let [victims, moment, ..] = draw.as_bytes();
    let name = format!("round{round}.bin");
    let folder = Folder::new()?;
    let path = folder.random(
        &name,
        Content {
            bytes: FILE_BYTES,
            seed: round,
        },
    )?;
    let read_before = read_bytes(alpha.pid()?)?;
    let _send = start_send(alpha, &path, "beta")?;
    let bytes = u64::from(*moment) * (FILE_BYTES * 9 / 10) / 256;
    until("the moment", TRANSFER_DEADLINE, || {
        let all = transfers(alpha)?;
        let this = all.iter().find(|transfer| transfer["name"] == name.as_str());
        Ok(this.is_some_and(|t| t["done_bytes"].as_u64() >= Some(bytes) || t["state"] == "done"))
    })?;
    let (receiver, sender) = [(true, false), (false, true), (true, true)][usize::from(victims % 3)];
    let mut sent = 0;
    if receiver {
        beta.kill()?;
    }
    if sender {
        freeze(alpha.pid()?)?;
        sent += read_bytes(alpha.pid()?)? - read_before;
        alpha.kill()?;
    }
    if receiver {
        beta.up()?;
    }
    if sender {
        alpha.up()?;
    }
    let landed = eventually("the file in the inbox", TRANSFER_DEADLINE, || {
        let all = beta.received()?;
        Ok(all.into_iter().find(|file| file.file_name() == path.file_name()))
    })?;
    if b3sum(&landed)? != b3sum(&path)? {
        bail!("{} is damaged", landed.display());
    }
    until("the sender to know", TRANSFER_DEADLINE, || {
        Ok(of_name(alpha, &name)?["state"] == "done")
    })?;
    sent += of_name(alpha, &name)?["sent_bytes"]
        .as_u64()
        .context("no sent_bytes")?;
    std::fs::remove_file(landed)?;
    sent.checked_sub(FILE_BYTES)
        .with_context(|| format!("a whole file arrived, and only {sent} bytes were sent"))
}

#[test]
fn a_source_that_shrinks_while_it_is_sent_ends_at_both_ends() -> Result<()> {
    let (mut mesh, folder, path) = pair("big.bin")?;
    let [alpha, beta] = mesh.by_name();
    let send = start_send(alpha, &path, "beta")?;
    under_way(alpha, PART_BYTES)?;
    std::fs::File::options()
        .write(true)
        .open(&path)?
        .set_len(PART_BYTES)?;
    let outcome = send.wait(TRANSFER_DEADLINE)?.expect(Exit::Failed)?;
    ensure!(outcome.stderr.contains("changed"), "{}", outcome.stderr);
    until("the end at the receiver", PATIENCE, || {
        Ok(of_name(beta, "big.bin")?["error"]["name"] == "source_changed")
    })?;
    ensure!(beta.received()?.is_empty(), "a part was delivered");
    let small = folder.random("small.bin", Content { bytes: 1000, seed: 2 })?;
    goes_on(alpha, &small, "beta")
}

#[test]
fn a_source_that_changed_in_the_meantime_is_not_continued() -> Result<()> {
    let (mut mesh, _folder, path) = pair("big.bin")?;
    let [alpha, beta] = mesh.by_name();
    let send = start_send(alpha, &path, "beta")?;
    under_way(alpha, PART_BYTES)?;
    beta.kill()?;
    write_random(
        &path,
        Content {
            bytes: FILE_BYTES / 2,
            seed: 8,
        },
    )?;
    beta.up()?;
    let outcome = send.wait(TRANSFER_DEADLINE)?.expect(Exit::Failed)?;
    ensure!(outcome.stderr.contains("changed"), "{}", outcome.stderr);
    ensure!(
        beta.received()?.is_empty(),
        "a file that never existed was delivered"
    );
    Ok(())
}

#[test]
fn a_cancelled_transfer_leaves_nothing_in_the_inbox_and_can_be_resumed() -> Result<()> {
    let (mut mesh, _folder, path) = pair("big.bin")?;
    let [alpha, beta] = mesh.by_name();
    let send = start_send(alpha, &path, "beta")?;
    under_way(alpha, PART_BYTES)?;
    let id = transfers(alpha)?[0]["transfer_id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    alpha.run(&["transfers", "cancel", &id])?.expect(Exit::Done)?;
    ensure!(send.wait(TRANSFER_DEADLINE)?.exit != Exit::Done);
    ensure!(beta.received()?.is_empty());
    alpha.run(&["transfers", "resume", &id])?.expect(Exit::Done)?;
    arrives(beta, &path)
}
