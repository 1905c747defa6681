//! Two halves of a mesh that do not know of each other, and what happens to a name that both have granted.

use anyhow::{Context as _, Result, ensure};
use hyperfabric_mesh::state::{StateFolder, replace};
use hyperfabric_protocol::PeerId;
use hyperfabric_protocol::cert::{DELEGATION_VALIDITY, Delegation};
use hyperfabric_protocol::ticket::Credential;
use hyperfabric_tests::wait::until;
use hyperfabric_tests::{Content, Exit, Folder, Mesh, PATIENCE, Peer};

use crate::stranger::{Authority, now};
use crate::support::{goes_on, send};

/// Starts a second admitter of the mesh that knows no other peer.
fn second_half(founder: &Peer) -> Result<Mesh> {
    let mut bravo = Peer::init("bravo")?;
    let folder = StateFolder::new(bravo.data_dir());
    let peer = folder.key()?.peer_id();
    let authority = Authority::of(founder, "lab")?;
    // With the authority's own signature, and nobody to meet first.
    let membership = {
        let mut certificate = authority.certificate(peer, now()?, now()?.after(DELEGATION_VALIDITY))?;
        certificate.name = "bravo".parse()?;
        hyperfabric_protocol::cert::Membership {
            certificate: certificate.sign(&authority.key),
            delegation: None,
        }
    };
    folder.set_credential(&Credential::new(&authority.root, membership, None))?;
    let delegation = Delegation::issue(&authority.key, "lab", peer, now()?, DELEGATION_VALIDITY);
    let file = folder.delegation_file();
    std::fs::create_dir_all(file.parent().context("a folder")?)?;
    replace(&file, delegation.as_bytes())?;
    bravo.up()?;
    Ok(Mesh { peers: vec![bravo] })
}

fn id_of(peer: &Peer) -> Result<PeerId> {
    Ok(StateFolder::new(peer.data_dir()).key()?.peer_id())
}

/// The id of the peer that hosts the node, as `peer` sees it.
fn host_of(peer: &Peer, node: &str) -> Result<String> {
    let shown = peer.json(&["nodes", "show", node])?;
    Ok(shown["peer_id"].as_str().context("no peer_id")?.to_owned())
}

#[test]
fn of_two_peers_that_were_granted_one_name_the_later_is_told_and_the_first_goes_on() -> Result<()> {
    let here = Mesh::found("lab", "alpha")?;
    let alpha = &here.peers[0];
    let there = second_half(alpha)?;
    let bravo = &there.peers[0];
    let mut first = here.join("rack")?;
    // Lists are ordered by peer: the later one stands first in them, so that whoever goes by that is wrong.
    let mut second = loop {
        let peer = Peer::init("rack")?;
        if id_of(&peer)? < id_of(&first)? {
            break peer;
        }
    };
    let ticket = there.invite("rack", &[])?;
    second.run(&["join", &ticket])?.expect(Exit::Done)?;
    first.up()?;
    second.up()?;
    first.knows(&["alpha"])?;
    second.knows(&["bravo"])?;
    alpha.knows(&["rack"])?;
    bravo.knows(&["rack"])?;
    let (holder, later) = (first.ready()?.peer_id.clone(), second.ready()?.peer_id.clone());
    ensure!(host_of(alpha, "rack")? == holder && host_of(bravo, "rack")? == later);
    for (peer, other) in [(alpha, "bravo"), (bravo, "alpha")] {
        ensure!(
            !peer.nodes()?.iter().any(|node| node == other),
            "{other} is known already"
        );
    }

    // A member that knows a peer of either half ends the partition.
    let mut bridge = here.join("bridge")?;
    bridge.up_with(&["--bootstrap", &bravo.address()?])?;
    let all = [alpha, bravo, &first, &second, &bridge];
    for peer in all {
        peer.knows(&["alpha", "bravo", "rack", "bridge"])?;
        until(&format!("{} to agree", peer.name()), PATIENCE, || {
            Ok(host_of(peer, "rack")? == holder)
        })?;
        let named = peer.nodes()?.iter().filter(|node| *node == "rack").count();
        ensure!(named == 1, "{} lists it {named} times", peer.name());
    }

    second.logs("DuplicateNodeError: node rack already exists")?;
    let status = second.json(&["status"])?;
    let warnings = status["warnings"].to_string();
    for text in [
        "DuplicateNodeError",
        "node rack ",
        &holder,
        "new ticket",
        "--data-dir",
    ] {
        ensure!(warnings.contains(text), "no {text:?} in {warnings}");
    }
    let said = second.run(&["status"])?.expect(Exit::Done)?.stdout;
    ensure!(said.contains("warning: DuplicateNodeError"), "{said}");
    ensure!(second.json(&["ping", "alpha", "--count", "1"])?["success"] == true);

    for peer in [alpha, bravo, &first, &bridge] {
        ensure!(peer.json(&["status"])?["warnings"] == serde_json::json!([]));
        ensure!(!peer.log().contains("DuplicateNodeError"), "{}", peer.log());
    }
    let folder = Folder::new()?;
    let path = folder.random("f.bin", Content { bytes: 1000, seed: 1 })?;
    send(bravo, &path, "rack")?;
    first.received_named("f.bin")?;
    ensure!(second.received()?.is_empty());
    goes_on(&first, &path, "bravo")?;
    // The way out that the later one was told: another name, in another folder.
    let mut renamed = there.join("rack2")?;
    renamed.up()?;
    alpha.knows(&["rack2"])
}
