//! Who has no right to be here is told so, and the mesh goes on.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use hyperfabric_mesh::Refusal;
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_protocol::frame::JoinRefusal;
use hyperfabric_protocol::ticket::Ticket;
use hyperfabric_tests::wait::until;
use hyperfabric_tests::{Content, Exit, Folder, Mesh, PATIENCE, Peer};

use crate::handshake::refused;
use crate::support::{MIB, goes_on, start_send, under_way};

/// How soon a revocation must be in force at every reachable peer.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

/// Tries to redeem a ticket; it must be refused for this reason, and both sides must say so.
fn is_refused(mesh: &Mesh, peer: &Peer, ticket: &str, reason: JoinRefusal) -> Result<()> {
    let (issuer, reason) = (&mesh.peers[0], reason.to_string());
    let id = StateFolder::new(peer.data_dir()).key()?.peer_id();
    let logged = || {
        let about = |line: &&str| {
            line.contains("refused a ticket")
                && line.contains(&format!("peer={id}"))
                && line.contains(&format!("refusal={reason}"))
        };
        issuer.log().lines().filter(about).count()
    };
    let before = logged();
    let outcome = peer.run(&["join", ticket, "--json"])?.expect(Exit::Refused)?;
    let error = &outcome.json()?["error"];
    ensure!(
        error["code"] == "refused" && error["message"] == reason.as_str(),
        "{outcome:?}"
    );
    ensure!(outcome.stderr.contains(&reason), "{outcome:?}");
    until("the reason in the issuer's log", PATIENCE, || {
        Ok(logged() == before + 1)
    })?;
    ensure!(
        !peer.data_dir().join("certificate").exists() && issuer.nodes()? == ["alpha"],
        "{} is in the mesh",
        peer.name()
    );
    Ok(())
}

#[test]
fn a_used_ticket_is_refused() -> Result<()> {
    let mut mesh = Mesh::found("lab", "alpha")?;
    let ticket = mesh.invite("beta", &[])?;
    let beta = Peer::init("beta")?;
    beta.run(&["join", &ticket])?.expect(Exit::Done)?;
    let second = Peer::init("beta2")?;
    is_refused(&mesh, &second, &ticket, JoinRefusal::Used)?;
    // Also after a restart: a use is on disk before the certificate leaves.
    mesh.peers[0].kill()?;
    mesh.peers[0].up()?;
    is_refused(&mesh, &second, &ticket, JoinRefusal::Used)
}

#[test]
fn an_expired_ticket_is_refused() -> Result<()> {
    let mesh = Mesh::found("lab", "alpha")?;
    let ticket = mesh.invite("beta", &["--expires", "1s"])?;
    let expired = SystemTime::now() + Duration::from_secs(2);
    until("the ticket to expire", PATIENCE, || {
        Ok(SystemTime::now() > expired)
    })?;
    is_refused(&mesh, &Peer::init("beta")?, &ticket, JoinRefusal::Expired)
}

#[test]
fn a_ticket_with_another_secret_is_refused() -> Result<()> {
    let mesh = Mesh::found("lab", "alpha")?;
    let mut ticket: Ticket = mesh.invite("beta", &[])?.parse()?;
    ticket.0.secret[0] ^= 1;
    let beta = Peer::init("beta")?;
    is_refused(&mesh, &beta, &ticket.to_string(), JoinRefusal::UnknownTicket)
}

#[test]
fn a_ticket_whose_name_was_changed_is_refused() -> Result<()> {
    let mesh = Mesh::found("lab", "alpha")?;
    let mut ticket: Ticket = mesh.invite("beta", &[])?.parse()?;
    ticket.0.name = "gamma".parse()?;
    let gamma = Peer::init("gamma")?;
    is_refused(&mesh, &gamma, &ticket.to_string(), JoinRefusal::OtherName)
}

#[test]
fn a_damaged_ticket_is_recognised_before_anybody_is_asked() -> Result<()> {
    let mesh = Mesh::found("lab", "alpha")?;
    let mut ticket = mesh.invite("beta", &[])?;
    ticket.pop();
    let outcome = Peer::init("beta")?.run(&["join", &ticket])?;
    ensure!(matches!(outcome.exit, Exit::Usage | Exit::Refused), "{outcome:?}");
    ensure!(outcome.stderr.contains("damaged"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn a_revocation_ends_a_running_transfer_everywhere_within_seconds() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta", "gamma"])?;
    let [alpha, beta, gamma] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random(
        "big.bin",
        Content {
            bytes: 1024 * MIB,
            seed: 3,
        },
    )?;
    let small = folder.random("small.bin", Content { bytes: 1000, seed: 4 })?;
    beta.tolerate("revoked");
    let send = start_send(beta, &path, "gamma")?;
    under_way(beta, 8 * MIB)?;
    alpha.run(&["mesh", "revoke", "beta"])?.expect(Exit::Done)?;
    let outcome = send.wait(REVOKED_WITHIN)?.expect(Exit::Refused)?;
    ensure!(
        outcome.stderr.to_lowercase().contains("revoked"),
        "{}",
        outcome.stderr
    );
    ensure!(
        gamma.received()?.is_empty(),
        "a file of a revoked member was delivered"
    );
    // And for good: neither a new connection nor a restart brings it back.
    gamma.kill()?;
    gamma.up()?;
    let again = beta.run(&[
        "send",
        small.to_str().expect("UTF-8"),
        "--to",
        "gamma",
        "--timeout",
        "3s",
    ])?;
    ensure!(again.exit != Exit::Done, "{again:?}");
    ensure!(gamma.received()?.is_empty());
    goes_on(alpha, &small, "gamma")
}

#[test]
fn a_member_of_another_mesh_is_refused_in_the_handshake() -> Result<()> {
    let mut ours = Mesh::start("lab", &["alpha"])?;
    let mut theirs = Mesh::start("den", &["mallory"])?;
    let ([alpha], [mallory]) = (ours.by_name(), theirs.by_name());
    let address = format!(
        "/ip4/127.0.0.1/udp/{}/quic-v1/p2p/{}",
        alpha.port()?,
        alpha.ready()?.peer_id
    );
    mallory.terminate()?;
    mallory.up_with(&["--bootstrap", &address])?;
    // The dialler sees the other certificate first: it refuses, and the dialled peer is told.
    mallory.logs("reason=\"other-mesh\"")?;
    alpha.logs("a dialler refused this peer")?;
    let counted = refused(mallory, Refusal::OtherMesh)?;
    ensure!(counted > 0, "the refusal is not counted");
    let status = mallory.json(&["status"])?;
    ensure!(status["handshakes_refused"].as_u64() >= Some(counted), "{status}");
    ensure!(alpha.json(&["status"])?["handshakes_refused"] == 0);
    ensure!(alpha.nodes()? == ["alpha"], "{:?}", alpha.nodes()?);
    ensure!(mallory.nodes()? == ["mallory"], "{:?}", mallory.nodes()?);
    Ok(())
}
