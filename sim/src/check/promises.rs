//! What a peer has been told is on the disk of whoever told it.

use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::{Instant, NodeId, PeerId};

use super::{Check, Findings};
use crate::world::{PeerIndex, World};

const NAME: &str = "promises";

/// The checker.
#[derive(Debug)]
pub struct Promises;

impl Promises {
    /// Notes when an issuer's disk does not have a name that it has granted.
    fn check_grant(
        world: &World,
        at: Instant,
        issuer: PeerIndex,
        name: &NodeId,
        whose: &PeerId,
        to: &mut Findings,
    ) {
        let grant = world.disk(issuer).grants.get(name);
        if grant.is_none_or(|grant| grant.peer != *whose) {
            let what = format!("has granted {name} to {}, and not written it down", whose.short());
            to.add(NAME, at, Some(issuer), what);
        }
        let used = |ticket: &&hyperfabric_protocol::admission::TicketRecord| ticket.used_by.contains(whose);
        if world.disk(issuer).tickets.values().find(used).is_none() {
            let what = format!(
                "has let {} in, and no ticket on its disk is used up",
                whose.short()
            );
            to.add(NAME, at, Some(issuer), what);
        }
    }
}

impl Check for Promises {
    fn event(&mut self, world: &World, at: Instant, peer: PeerIndex, event: &Event, to: &mut Findings) {
        match event {
            Event::Admitted { peer: whose, name } => Self::check_grant(world, at, peer, name, whose, to),
            Event::Joined(member) => {
                if world.disk(peer).membership.is_none() {
                    let what = "calls itself a member, and has no certificate on its disk".to_owned();
                    to.add(NAME, at, Some(peer), what);
                }
                // Certificates that were made by hand have no issuer among the peers.
                let issuer = world.peer_of(&member.admitter).filter(|issuer| *issuer != peer);
                if let Some(issuer) = issuer {
                    Self::check_grant(world, at, issuer, &member.name, &member.peer, to);
                }
            }
            _ => {}
        }
    }
}
