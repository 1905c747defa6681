//! A peer that hangs in the middle of a transfer: whoever waits for it is told in time, and others are served.

use std::time::Duration;

use anyhow::{Result, ensure};
use hyperfabric_tests::wait::until;
use hyperfabric_tests::{Content, Exit, Folder, Mesh, PATIENCE};

use crate::support::{MIB, ends_with, goes_on, of_name, under_way};

/// Longer than a test lets it be sent.
const FILE_BYTES: u64 = 1024 * MIB;
/// What the sender allows, in seconds; less than the time after which a silent connection is given up.
const DEADLINE: (&str, f64) = ("6s", 6.0);
/// How much later a busy machine may notice that it is over.
const LATE_SECONDS_MAX: f64 = 3.0;

#[test]
fn a_receiver_that_stalls_ends_the_send_at_its_deadline_and_others_are_served() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta", "gamma"])?;
    let [alpha, beta, gamma] = mesh.by_name();
    let folder = Folder::new()?;
    let big = folder.sparse("big.bin", FILE_BYTES)?;
    let small = folder.random("small.bin", Content { bytes: 1000, seed: 1 })?;
    let big = big.to_str().expect("UTF-8");
    let send = alpha.start(&["send", big, "--to", "beta", "--timeout", DEADLINE.0, "--json"])?;
    under_way(alpha, 8 * MIB)?;
    let stalled = beta.stall()?;
    goes_on(alpha, &small, "gamma")?;
    let outcome = send.wait(PATIENCE)?.expect(Exit::TimedOut)?;
    ensure!(outcome.json()?["error"]["name"] == "timed_out", "{outcome:?}");
    let seconds = of_name(alpha, "big.bin")?["seconds"].as_f64().unwrap_or(f64::MAX);
    ensure!(seconds < DEADLINE.1 + LATE_SECONDS_MAX, "it took {seconds} s");
    goes_on(gamma, &small, "alpha")?;
    drop(stalled);
    ends_with(beta, "big.bin", "timed_out")?;
    ensure!(beta.received()?.is_empty(), "{:?}", beta.received()?);
    goes_on(alpha, &small, "beta")
}

#[test]
fn a_sender_that_stalls_leaves_nothing_in_the_inbox_and_its_room_is_given_to_others() -> Result<()> {
    let quota = format!("inbox:\n  quota_bytes: {}\n", FILE_BYTES + 16 * MIB);
    let mut mesh = Mesh::start_with("lab", &["alpha", "beta", "gamma"], &quota)?;
    let [alpha, beta, gamma] = mesh.by_name();
    let folder = Folder::new()?;
    let big = folder.sparse("big.bin", FILE_BYTES)?;
    let other = folder.random(
        "other.bin",
        Content {
            bytes: 32 * MIB,
            seed: 1,
        },
    )?;
    let big = big.to_str().expect("UTF-8");
    let send = alpha.start(&["send", big, "--to", "beta", "--timeout", DEADLINE.0])?;
    under_way(alpha, 8 * MIB)?;
    let stalled = alpha.stall()?;
    // Nothing has ended: the room is still promised.
    let refused = gamma
        .run(&["send", other.to_str().expect("UTF-8"), "--to", "beta"])?
        .expect(Exit::Refused)?;
    ensure!(refused.stderr.contains("quota"), "{}", refused.stderr);
    until("the receiver to notice", PATIENCE, || {
        Ok(of_name(beta, "big.bin")?["state"] == "waiting")
    })?;
    ensure!(beta.received()?.is_empty(), "{:?}", beta.received()?);
    drop(stalled);
    send.wait(Duration::from_secs(10))?.expect(Exit::TimedOut)?;
    ends_with(beta, "big.bin", "timed_out")?;
    ensure!(beta.received()?.is_empty(), "{:?}", beta.received()?);
    goes_on(gamma, &other, "beta")?;
    goes_on(beta, &other, "alpha")
}
