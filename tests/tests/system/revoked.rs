//! A revocation reaches every peer that can be reached, also over others, and ends what is under way there.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyperfabric_tests::wait::until;
use hyperfabric_tests::{Content, Exit, Folder, Mesh, PATIENCE, Peer, skip};

use crate::support::{MIB, goes_on, is_moving, of_name, start_send};

/// How soon a revocation must be in force at every reachable peer.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);
const FILE_BYTES: u64 = 1024 * MIB;

fn is_connected(peer: &Peer, to: &str) -> Result<bool> {
    let peers = peer.api("GET", "/v1/fabric/peers")?.json()?;
    let peers = peers.as_array().context("not a list")?;
    Ok(peers
        .iter()
        .any(|record| record["peer_id"] == to && record["connected"] == true))
}

/// Starts a mesh whose first peer speaks IPv4 and whose last one IPv6: neither can reach the other, and the two between
/// them reach both.
fn chain() -> Result<Mesh> {
    let mut mesh = Mesh::found("lab", "alpha")?;
    for (name, listen) in [("beta", "[::]:0"), ("gamma", "[::]:0"), ("delta", "[::1]:0")] {
        let mut peer = mesh.join(name)?;
        let contact = match &mesh.peers[..] {
            [_, _, gamma] => {
                let id = &gamma.ready()?.peer_id;
                format!("/ip6/::1/udp/{}/quic-v1/p2p/{id}", gamma.port()?)
            }
            others => others[0].address()?,
        };
        peer.up_with(&["--listen", listen, "--bootstrap", &contact])?;
        mesh.peers.push(peer);
    }
    for peer in &mesh.peers {
        peer.knows(&["alpha", "beta", "gamma", "delta"])?;
    }
    Ok(mesh)
}

#[test]
fn a_revocation_ends_what_is_under_way_at_peers_that_only_others_can_reach() -> Result<()> {
    if UdpSocket::bind("[::1]:0").is_err() {
        skip!("a peer that another one cannot reach needs IPv6 on loopback");
    }
    let mut mesh = chain()?;
    let [alpha, beta, gamma, delta] = mesh.by_name();
    let revoked = beta.ready()?.peer_id.clone();
    let folder = Folder::new()?;
    let sends = ["gamma", "delta"].map(|to| {
        let path = folder.sparse(&format!("{to}.bin"), FILE_BYTES)?;
        start_send(beta, &path, to)
    });
    for to in ["gamma", "delta"] {
        is_moving(beta, &format!("{to}.bin"), 8 * MIB)?;
    }
    for peer in [&*alpha, gamma, delta] {
        until("a connection to the member", PATIENCE, || {
            is_connected(peer, &revoked)
        })?;
    }
    ensure!(
        !is_connected(alpha, &delta.ready()?.peer_id)?,
        "delta is reached without help"
    );
    ensure!(
        !is_connected(delta, &alpha.ready()?.peer_id)?,
        "alpha is reached without help"
    );

    beta.tolerate("revoked");
    let begun = Instant::now();
    alpha.run(&["mesh", "revoke", "beta"])?.expect(Exit::Done)?;
    let left = || REVOKED_WITHIN.saturating_sub(begun.elapsed());
    for (peer, file) in [(&*gamma, "gamma.bin"), (&*delta, "delta.bin")] {
        until(&format!("the transfer's end at {}", peer.name()), left(), || {
            Ok(of_name(peer, file)?["error"]["name"] == "revoked")
        })?;
    }
    for peer in [&*alpha, gamma, delta] {
        until(&format!("{} to cut it off", peer.name()), left(), || {
            Ok(!is_connected(peer, &revoked)?)
        })?;
    }
    for send in sends {
        let outcome = send?.wait(left())?.expect(Exit::Refused)?;
        ensure!(outcome.json()?["error"]["name"] == "revoked", "{outcome:?}");
    }
    for peer in [&*alpha, gamma, delta] {
        ensure!(
            !peer.nodes()?.iter().any(|node| node == "beta"),
            "{} knows it",
            peer.name()
        );
        ensure!(peer.received()?.is_empty(), "{:?}", peer.received()?);
    }
    let small = folder.random("small.bin", Content { bytes: 1000, seed: 1 })?;
    goes_on(gamma, &small, "delta")?;
    goes_on(gamma, &small, "alpha")
}
