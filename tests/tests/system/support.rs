//! What several modules ask of a peer.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyperfabric_tests::files::b3sum;
use hyperfabric_tests::wait::{eventually, until};
use hyperfabric_tests::{Exit, PATIENCE, Peer, Running};
use serde_json::Value;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// How long a whole transfer of a test may take on a busy machine.
pub(crate) const TRANSFER_DEADLINE: Duration = Duration::from_secs(180);

/// The arguments of `send --json`.
pub(crate) fn send_arguments<'a>(path: &'a Path, to: &'a str) -> Vec<&'a str> {
    vec![
        "send",
        path.to_str().expect("test paths are UTF-8"),
        "--to",
        to,
        "--json",
    ]
}

/// Sends a file, checks what the sender says about it, and returns that.
pub(crate) fn send(from: &Peer, path: &Path, to: &str) -> Result<Value> {
    let sent = from.run(&send_arguments(path, to))?.expect(Exit::Done)?.json()?;
    for field in [
        "transfer_id",
        "bytes",
        "seconds",
        "blake3",
        "route",
        "resumed_bytes",
    ] {
        ensure!(sent.get(field).is_some(), "send --json lacks {field}: {sent}");
    }
    if path.is_file() {
        ensure!(sent["blake3"] == b3sum(path)?.as_str(), "the wrong hash: {sent}");
        ensure!(sent["bytes"] == path.metadata()?.len(), "the wrong size: {sent}");
    }
    Ok(sent)
}

/// Starts a send beside the test.
pub(crate) fn start_send(from: &Peer, path: &Path, to: &str) -> Result<Running> {
    from.start(&send_arguments(path, to))
}

/// The transfers that a peer's daemon knows.
pub(crate) fn transfers(peer: &Peer) -> Result<Vec<Value>> {
    let answer = peer.api("GET", "/v1/fabric/transfers")?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
    Ok(answer.json()?.as_array().context("not a list")?.clone())
}

/// Waits until at least `bytes` of an unended transfer are durable at its receiver.
pub(crate) fn under_way(peer: &Peer, bytes: u64) -> Result<()> {
    eventually(&format!("{bytes} bytes of a transfer"), PATIENCE, || {
        let moving = |transfer: &Value| transfer["done_bytes"].as_u64().is_some_and(|done| done >= bytes);
        Ok(transfers(peer)?.iter().any(moving).then_some(()))
    })
}

/// Waits until at least `bytes` of the file called `name` are durable at its receiver.
pub(crate) fn is_moving(peer: &Peer, name: &str, bytes: u64) -> Result<()> {
    until(&format!("{bytes} bytes of {name}"), PATIENCE, || {
        let this = |transfer: &Value| {
            transfer["name"] == name && transfer["done_bytes"].as_u64().is_some_and(|done| done >= bytes)
        };
        Ok(transfers(peer)?.iter().any(this))
    })
}

/// What a peer says about the transfer of the file called `name`.
pub(crate) fn of_name(peer: &Peer, name: &str) -> Result<Value> {
    let all = transfers(peer)?;
    all.into_iter()
        .find(|transfer| transfer["name"] == name)
        .with_context(|| format!("no transfer of {name}"))
}

/// Waits until a peer's transfer of the file called `name` has ended with this error.
pub(crate) fn ends_with(peer: &Peer, name: &str, error: &str) -> Result<()> {
    until(&format!("{error} at {}", peer.name()), PATIENCE, || {
        Ok(of_name(peer, name)?["error"]["name"] == error)
    })
    .with_context(|| format!("{:?}", of_name(peer, name)))
}

/// Fails unless the peer still answers and can still send `path` to `to`.
pub(crate) fn goes_on(peer: &Peer, path: &Path, to: &str) -> Result<()> {
    send(peer, path, to)
        .map(|_| ())
        .context("the daemon does not go on")
}

/// Fails if the inbox holds a file that is not a whole copy of `source`.
pub(crate) fn only_whole_files(peer: &Peer, source: &Path) -> Result<()> {
    let whole = b3sum(source)?;
    for path in peer.received()? {
        ensure!(
            b3sum(&path)? == whole,
            "{} in the inbox is not what was sent",
            path.display()
        );
    }
    Ok(())
}
