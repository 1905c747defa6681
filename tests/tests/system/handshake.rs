//! Whoever has no right to connect is refused in the handshake, learns why, and is counted.

use anyhow::{Context as _, Result, ensure};
use hyperfabric_mesh::{DialError, Purpose, Refusal};
use hyperfabric_protocol::cert::Membership;
use hyperfabric_protocol::{PeerId, SigningKey};
use hyperfabric_tests::wait::until;
use hyperfabric_tests::{Exit, Mesh, PATIENCE, Peer};

use crate::stranger::{Authority, DAY, Stranger, credential_of, now};

/// Purposes that need a membership.
const PURPOSES: [Purpose; 2] = [Purpose::Prompt, Purpose::Bulk];

/// How many handshakes a daemon has refused for this reason.
pub(crate) fn refused(peer: &Peer, reason: Refusal) -> Result<u64> {
    let metrics = peer.api("GET", "/metrics")?.body;
    let name = format!(
        "hyperfabric_handshakes_refused_total{{reason=\"{}\"}} ",
        reason.word()
    );
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(count.context("no such counter")?.parse()?)
}

/// How many lines of the daemon's log say that it refused this peer for this reason.
fn logged(daemon: &Peer, peer: PeerId, reason: Refusal) -> usize {
    let (peer, reason) = (format!("peer={peer}"), format!("reason=\"{}\"", reason.word()));
    let about =
        |line: &&str| line.contains("refused a peer") && line.contains(&peer) && line.contains(&reason);
    daemon.log().lines().filter(about).count()
}

/// Dials for every purpose; each dial must be refused for `reason`, in the handshake, and the daemon must say so.
fn is_refused(
    daemon: &Peer,
    key: &SigningKey,
    membership: Option<&Membership>,
    reason: Refusal,
) -> Result<()> {
    let before = refused(daemon, reason)?;
    let stranger = Stranger::new(key, membership)?;
    for purpose in PURPOSES {
        let dialled = stranger.dial(daemon, purpose)?;
        ensure!(
            dialled == Err(DialError::Refused { reason }),
            "{} for {purpose}: {dialled:?}",
            reason.word()
        );
    }
    // The daemon says so once the dialler knows.
    until(reason.word(), PATIENCE, || {
        Ok(logged(daemon, key.peer_id(), reason) == PURPOSES.len()
            && refused(daemon, reason)? == before + PURPOSES.len() as u64)
    })
    .with_context(|| daemon.log())
}

#[test]
fn whoever_shows_no_good_certificate_is_refused_by_name_and_counted() -> Result<()> {
    let mut mesh = Mesh::found("lab", "alpha")?;
    let beta = mesh.join("beta")?;
    let [alpha] = mesh.by_name();
    let (authority, now) = (Authority::of(alpha, "lab")?, now()?);
    let key = SigningKey::from_bytes(&[1; 32]);
    let peer = key.peer_id();

    // Signed by the same hand: what is refused below is refused for what is wrong with it.
    let good = authority.certify(peer, now.before(DAY), now.after(DAY))?;
    let member = Stranger::new(&key, Some(&good))?;
    for purpose in PURPOSES {
        ensure!(member.dial(alpha, purpose)? == Ok(()), "{purpose}");
    }

    is_refused(alpha, &key, None, Refusal::NotAMember)?;
    let expired = authority.certify(peer, now.before(2 * DAY), now.before(DAY))?;
    is_refused(alpha, &key, Some(&expired), Refusal::Expired)?;
    let early = authority.certify(peer, now.after(DAY), now.after(2 * DAY))?;
    is_refused(alpha, &key, Some(&early), Refusal::NotYetValid)?;
    let forged = Membership {
        certificate: authority
            .certificate(peer, now.before(DAY), now.after(DAY))?
            .sign(&SigningKey::from_bytes(&[2; 32])),
        delegation: None,
    };
    is_refused(alpha, &key, Some(&forged), Refusal::Forged)?;
    let den = Authority::new(SigningKey::from_bytes(&[3; 32]), "lab");
    let foreign = den.certify(peer, now.before(DAY), now.after(DAY))?;
    is_refused(alpha, &key, Some(&foreign), Refusal::OtherMesh)?;
    let thief = SigningKey::from_bytes(&[4; 32]);
    is_refused(alpha, &thief, Some(&good), Refusal::WrongPeer)?;

    let (key, membership) = credential_of(&beta)?;
    ensure!(Stranger::new(&key, Some(&membership))?.dial(alpha, Purpose::Prompt)? == Ok(()));
    alpha.run(&["mesh", "revoke", "beta"])?.expect(Exit::Done)?;
    is_refused(alpha, &key, Some(&membership), Refusal::Revoked)?;

    let status = alpha.json(&["status"])?;
    ensure!(
        status["handshakes_refused"] == 7 * PURPOSES.len() as u64,
        "{status}"
    );
    ensure!(alpha.nodes()? == ["alpha"], "{:?}", alpha.nodes()?);
    Ok(())
}
