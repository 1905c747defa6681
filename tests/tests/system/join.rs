//! Peers are admitted by ticket, find each other, and stay who they are.

use std::time::Duration;

use anyhow::{Result, ensure};
use hyperfabric_tests::peer::column;
use hyperfabric_tests::wait::{eventually, until};
use hyperfabric_tests::{Content, Exit, Folder, Mesh, PATIENCE, Peer};

use crate::support::{MIB, send};

#[test]
fn peers_that_join_by_ticket_list_each_other() -> Result<()> {
    let mesh = Mesh::start("lab", &["alpha", "beta", "gamma"])?;
    let ids: Vec<String> = mesh
        .peers
        .iter()
        .map(|peer| Ok(peer.ready()?.peer_id.clone()))
        .collect::<Result<_>>()?;
    for peer in &mesh.peers {
        until("every other peer in `peers`", PATIENCE, || {
            let known = column(&peer.json(&["peers"])?, "peers", "peer_id");
            Ok(ids
                .iter()
                .filter(|id| **id != peer.ready().expect("up").peer_id)
                .all(|id| known.contains(id)))
        })?;
    }
    Ok(())
}

#[test]
fn a_node_can_be_pinged_and_shown_by_name() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let shown = alpha.json(&["nodes", "show", "beta"])?;
    ensure!(
        shown["node_id"] == "beta" && shown["peer_id"] == beta.ready()?.peer_id.as_str(),
        "{shown}"
    );
    let ping = alpha.json(&["ping", "beta", "--count", "3"])?;
    ensure!(ping["success"] == true && ping["destination"] == "beta", "{ping}");
    ensure!(ping["bandwidth_gbps"].is_null(), "nothing was measured: {ping}");
    let folder = Folder::new()?;
    let path = folder.random(
        "f",
        Content {
            bytes: 32 * MIB,
            seed: 1,
        },
    )?;
    send(alpha, &path, "beta")?;
    let ping = alpha.json(&["ping", "beta", "--count", "1"])?;
    ensure!(ping["bandwidth_gbps"].as_f64() > Some(0.0), "{ping}");
    let back = beta.json(&["ping", "alpha", "--count", "1"])?;
    ensure!(back["bandwidth_gbps"].is_null(), "nothing went this way: {back}");
    ensure!(alpha.run(&["ping", "nobody", "--count", "1"])?.exit == Exit::NotFound);
    Ok(())
}

#[test]
fn a_restart_keeps_ports_and_identity_and_the_others_know_it_as_the_same_peer() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let (before, port) = (beta.ready()?.clone(), beta.port()?);
    let status = beta.terminate()?;
    ensure!(status.success(), "SIGTERM ended the daemon with {status}");
    beta.up()?;
    ensure!(beta.ready()?.peer_id == before.peer_id, "another identity");
    ensure!(beta.port()? == port, "port {port} became {}", beta.port()?);
    ensure!(
        beta.ready()?.api == before.api,
        "the API moved from {} to {}",
        before.api,
        beta.ready()?.api
    );
    alpha.knows(&["beta"])?;
    beta.knows(&["alpha"])
}

#[test]
fn a_ticket_can_be_made_without_a_daemon_and_redeemed_when_it_is_back() -> Result<()> {
    let mut mesh = Mesh::found("lab", "alpha")?;
    mesh.peers[0].terminate()?;
    let ticket = mesh.invite("beta", &[])?;
    mesh.peers[0].up()?;
    let mut beta = Peer::init("beta")?;
    beta.run(&["join", &ticket])?.expect(Exit::Done)?;
    beta.up()?;
    beta.knows(&["alpha", "beta"])
}

#[test]
fn an_open_mesh_needs_no_ticket_but_an_address() -> Result<()> {
    let mut alpha = Peer::init_with("alpha", &["--open", "plaza"])?;
    alpha.up()?;
    let address = format!(
        "/ip4/127.0.0.1/udp/{}/quic-v1/p2p/{}",
        alpha.port()?,
        alpha.ready()?.peer_id
    );
    let mut beta = Peer::init_with("beta", &["--open", "plaza"])?;
    beta.up_with(&["--bootstrap", &address])?;
    let named = |peer: &Peer, prefix: &str| {
        until(&format!("{prefix} in the open mesh"), PATIENCE, || {
            Ok(peer.nodes()?.iter().any(|node| node.starts_with(prefix)))
        })
    };
    named(&alpha, "beta")?;
    named(&beta, "alpha")
}

#[test]
fn the_second_claim_to_a_name_is_refused_and_the_first_goes_on() -> Result<()> {
    let mut mesh = Mesh::found("lab", "alpha")?;
    let tickets = (mesh.invite("beta", &[])?, mesh.invite("beta", &[])?);
    let mut first = Peer::init("beta")?;
    first.run(&["join", &tickets.0])?.expect(Exit::Done)?;
    first.up()?;
    let second = Peer::init("beta")?;
    let refused = second
        .run(&["join", &tickets.1, "--json"])?
        .expect(Exit::Refused)?;
    ensure!(
        refused.json()?["error"]["name"] == "DuplicateNodeError",
        "{refused:?}"
    );
    first.knows(&["alpha", "beta"])?;
    let [alpha] = mesh.by_name();
    ensure!(alpha.json(&["ping", "beta", "--count", "1"])?["success"] == true);
    Ok(())
}

#[test]
fn a_peer_that_was_killed_and_is_back_is_known_as_such_within_two_seconds() -> Result<()> {
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let id = beta.ready()?.peer_id.clone();
    let connected_since = |peer: &Peer| -> Result<Option<u64>> {
        let peers = peer.api("GET", "/v1/fabric/peers")?.json()?;
        let record = peers
            .as_array()
            .into_iter()
            .flatten()
            .find(|record| record["peer_id"] == id.as_str());
        Ok(record
            .filter(|record| record["connected"] == true)
            .and_then(|r| r["connected_unix_ms"].as_u64()))
    };
    let before = eventually("a connection", PATIENCE, || connected_since(alpha))?;
    let port = beta.port()?;
    let restarts = || {
        alpha
            .log()
            .matches(&format!("connected peer={id} restarted=true"))
            .count()
    };
    ensure!(restarts() == 0, "{}", alpha.log());
    beta.kill()?;
    beta.up()?;
    ensure!(beta.port()? == port, "port {port} became {}", beta.port()?);
    until("a new connection", Duration::from_secs(2), || {
        Ok(connected_since(alpha)? > Some(before) && restarts() > 0)
    })?;
    ensure!(alpha.json(&["ping", "beta", "--count", "1"])?["success"] == true);
    Ok(())
}

#[test]
fn no_ticket_is_made_for_a_name_that_is_taken() -> Result<()> {
    let mesh = Mesh::start("lab", &["alpha", "beta"])?;
    for name in ["alpha", "beta"] {
        let refused = mesh.peers[0]
            .run(&["mesh", "invite", "--name", name, "--json"])?
            .expect(Exit::Refused)?;
        ensure!(
            refused.json()?["error"]["name"] == "DuplicateNodeError",
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn a_node_outside_the_name_that_was_granted_is_not_registered() -> Result<()> {
    let mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = &mesh.peers[..] else {
        anyhow::bail!("two peers")
    };
    let mut node = beta.json(&["nodes", "show", "beta"])?;
    for field in ["peer_id", "local", "reachable", "seen_unix_ms"] {
        node.as_object_mut().expect("an object").remove(field);
    }
    let file = beta.scratch("node.json");
    let path = file.to_str().expect("UTF-8").to_owned();
    let mut register = |name: &str| {
        node["node_id"] = name.into();
        std::fs::write(&file, node.to_string())?;
        beta.run(&["nodes", "register", &path, "--json"])
    };
    for name in ["alpha", "alpha/gpu9", "betamax"] {
        let refused = register(name)?.expect(Exit::Refused)?;
        ensure!(
            refused.json()?["error"]["name"] == "InvalidNodeError",
            "{refused:?}"
        );
    }
    register("beta/gpu9")?.expect(Exit::Done)?;
    alpha.knows(&["beta/gpu9"])
}
