//! A bootstrap peer serves its owner while it runs, and follows the same configuration as a daemon.

use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use hyperfabric_tests::peer::column;
use hyperfabric_tests::wait::until;
use hyperfabric_tests::{Content, Exit, Folder, Mesh, PATIENCE, Peer};

use crate::support::{MIB, TRANSFER_DEADLINE, send_arguments, start_send, transfers};

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn founder(name: &str) -> Result<Peer> {
    let peer = Peer::init(name)?;
    peer.run(&["mesh", "create", "lab"])?.expect(Exit::Done)?;
    Ok(peer)
}

fn joined(by: &Peer, name: &str) -> Result<Peer> {
    let invited = by.run(&["mesh", "invite", "--name", name])?.expect(Exit::Done)?;
    let peer = Peer::init(name)?;
    peer.run(&["join", invited.last_line()?])?.expect(Exit::Done)?;
    Ok(peer)
}

fn admitted(by: &Peer, name: &str) -> Result<Peer> {
    let peer = Peer::init(name)?;
    let admission = by.json(&["mesh", "admit", peer.id(), "--name", name])?;
    let certificate = admission["certificate"].as_str().context("no certificate")?;
    peer.run(&["join", certificate])?.expect(Exit::Done)?;
    Ok(peer)
}

#[test]
fn a_running_bootstrap_peer_invites_admits_and_revokes() -> Result<()> {
    let mut first = founder("first")?;
    first.bootstrap_with(&["--listen", "127.0.0.1:0"])?;
    let mut beta = joined(&first, "beta")?;
    beta.up()?;
    let mut gamma = admitted(&first, "gamma")?;
    gamma.up()?;
    gamma.knows(&["beta", "gamma"])?;
    let members = column(&first.json(&["mesh", "members"])?, "members", "name");
    for name in ["first", "beta", "gamma"] {
        ensure!(members.iter().any(|member| member == name), "{members:?}");
    }
    let status = first.json(&["status"])?;
    ensure!(
        status["name"] == "first" && status["admitter"] == true,
        "{status}"
    );
    first.run(&["mesh", "revoke", "beta"])?.expect(Exit::Done)?;
    beta.logs("this peer's membership was revoked")?;
    until("the revocation in the list", PATIENCE, || {
        let members = first.json(&["mesh", "members"])?;
        let revoked = |member: &serde_json::Value| member["name"] == "beta" && member["revoked"] == true;
        Ok(members["members"]
            .as_array()
            .is_some_and(|list| list.iter().any(revoked)))
    })
}

#[test]
fn a_bootstrap_peer_moves_no_files_and_says_so() -> Result<()> {
    let mut first = founder("first")?;
    first.bootstrap_with(&["--listen", "127.0.0.1:0"])?;
    let folder = Folder::new()?;
    let path = folder.random("f", Content { bytes: 1, seed: 0 })?;
    let outcome = first
        .run(&send_arguments(&path, "first"))?
        .expect(Exit::Refused)?;
    ensure!(outcome.stderr.contains("moves no files"), "{}", outcome.stderr);
    let second = first.run(&["up"])?.expect(Exit::Refused)?;
    ensure!(second.stderr.contains("already runs"), "{}", second.stderr);
    let status = first.terminate()?;
    ensure!(status.success(), "{status}");
    ensure!(
        !first.data_dir().join("api.sock").exists(),
        "a socket was left behind"
    );
    Ok(())
}

#[test]
fn a_running_daemon_admits_a_peer_by_its_key() -> Result<()> {
    let mesh = Mesh::found("lab", "alpha")?;
    let mut beta = admitted(&mesh.peers[0], "beta")?;
    beta.up()?;
    beta.knows(&["alpha", "beta"])
}

#[test]
fn a_bootstrap_peer_listens_and_dials_as_configured() -> Result<()> {
    let mut first = founder("first")?;
    let port = free_port()?;
    first.configure(&format!("listen: [\"127.0.0.1:{port}\"]\n"))?;
    first.bootstrap_with(&[])?;
    ensure!(first.port()? == port, "{:?}", first.ready()?);
    let mut second = joined(&first, "second")?;
    // What it remembers from joining is the same address; a peer that has forgotten it finds it in the configuration.
    std::fs::remove_file(second.data_dir().join("state.redb"))?;
    let address = first.ready()?.listen[0].clone();
    second.configure(&format!(
        "listen: [\"127.0.0.1:0\"]\nbootstrap: [\"{address}\"]\n"
    ))?;
    second.bootstrap_with(&[])?;
    until("the configured peer to be connected", PATIENCE, || {
        let peers = second.json(&["peers"])?;
        let list = peers["peers"].as_array().context("no list")?;
        Ok(list
            .iter()
            .any(|peer| peer["peer_id"] == first.id() && peer["connected"] == true))
    })
}

#[test]
fn a_port_that_was_asked_for_once_is_kept() -> Result<()> {
    let mut alpha = founder("alpha")?;
    let port = free_port()?;
    alpha.serve(&["up", "--json", "--listen", &format!("127.0.0.1:{port}")])?;
    ensure!(alpha.port()? == port, "{:?}", alpha.ready()?);
    alpha.terminate()?;
    alpha.up()?;
    ensure!(alpha.port()? == port, "{:?}", alpha.ready()?);
    Ok(())
}

#[test]
fn two_listen_addresses_are_refused_by_name() -> Result<()> {
    let alpha = founder("alpha")?;
    let twice = ["up", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"];
    let outcome = alpha.run(&twice)?.expect(Exit::Usage)?;
    ensure!(outcome.stderr.contains("--listen"), "{}", outcome.stderr);
    alpha.configure("listen: [\"127.0.0.1:0\", \"[::1]:0\"]\n")?;
    for command in [&["up"][..], &["bootstrap"], &["config", "check"]] {
        let outcome = alpha.run(command)?.expect(Exit::Usage)?;
        ensure!(
            outcome.stderr.contains("`listen` cannot be"),
            "{command:?}: {}",
            outcome.stderr
        );
    }
    Ok(())
}

#[test]
fn no_more_transfers_run_than_the_configuration_allows() -> Result<()> {
    let mut mesh = Mesh::start_with("lab", &["alpha", "beta"], "limits:\n  transfers: 1\n")?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let mut sends = Vec::new();
    for seed in 0..3 {
        let path = folder.random(
            &format!("f{seed}"),
            Content {
                bytes: 48 * MIB,
                seed,
            },
        )?;
        sends.push(start_send(alpha, &path, "beta")?);
    }
    until("the end of all three", TRANSFER_DEADLINE, || {
        let all = transfers(alpha)?;
        let count = |states: &[&str]| {
            let is = |transfer: &&serde_json::Value| states.iter().any(|state| transfer["state"] == *state);
            all.iter().filter(is).count()
        };
        let running = count(&["active", "sealing"]);
        ensure!(running <= 1, "{running} run at once: {all:?}");
        Ok(count(&["done"]) == 3)
    })?;
    for send in sends {
        send.wait(TRANSFER_DEADLINE)?.expect(Exit::Done)?;
    }
    ensure!(beta.received()?.len() == 3, "{:?}", beta.received()?);
    Ok(())
}
