//! Nobody deals with a peer whose membership it knows to be revoked, or has run out, or that never was a member.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::transfer::{Role, TransferEvent};
use hyperfabric_protocol::{Instant, PeerId, UnixMillis};

use super::{Asked, Check, Findings};
use crate::world::{PeerIndex, World};

const NAME: &str = "certificates";
/// How long something that began while a certificate counted may take.
const GRACE: Duration = Duration::from_secs(10);

/// The checker.
#[derive(Debug, Default)]
pub struct Certificates {
    strangers: BTreeSet<PeerId>,
    /// Who was revoked, and who has said that it knows.
    revoked: BTreeSet<PeerId>,
    told: BTreeMap<PeerIndex, BTreeSet<PeerId>>,
    /// Whose certificate runs out, and when.
    guests: BTreeMap<PeerId, UnixMillis>,
    /// Whose clock was wrong at some time: they cannot be blamed for what they take for valid.
    confused: BTreeSet<PeerIndex>,
}

impl Certificates {
    /// Tells whether a peer has run out for another one that knows what time it is.
    fn is_over(&self, world: &World, peer: PeerIndex, who: &PeerId) -> bool {
        let over = |until: &UnixMillis| until.after(GRACE) < world.now().wall;
        !self.confused.contains(&peer) && self.guests.get(who).is_some_and(over)
    }
}

impl Check for Certificates {
    fn asked(&mut self, world: &World, asked: Asked) {
        match asked {
            Asked::Stranger(peer) => drop(self.strangers.insert(world.peer_id(peer))),
            Asked::Revoked(peer) => drop(self.revoked.insert(world.peer_id(peer))),
            Asked::Guest { peer, until } => drop(self.guests.insert(world.peer_id(peer), until)),
            Asked::Member(_) | Asked::Twin { .. } | Asked::Send { .. } | Asked::Crashed(_) => {}
        }
    }

    fn event(&mut self, world: &World, at: Instant, peer: PeerIndex, event: &Event, to: &mut Findings) {
        let (who, what) = match event {
            Event::Revoked { peer: who, .. } => {
                self.told.entry(peer).or_default().insert(*who);
                if !self.revoked.contains(who) {
                    to.add(
                        NAME,
                        at,
                        Some(peer),
                        format!("heard that {} was revoked, and it was not", who.short()),
                    );
                }
                return;
            }
            Event::PeerUp { peer: who, .. } => (*who, "connected with"),
            Event::NodeAppeared { peer: who, .. } => (*who, "took up a node of"),
            Event::Transfer(TransferEvent::Offered { of, .. }) if of.role == Role::Receiver => {
                (of.peer, "took an offer of")
            }
            _ => return,
        };
        // Strangers are strangers to each other, too; what they do among themselves is their business.
        if self.strangers.contains(&who) && !self.strangers.contains(&world.peer_id(peer)) {
            to.add(
                NAME,
                at,
                Some(peer),
                format!("{what} {}, who is no member", who.short()),
            );
        }
        if self.is_over(world, peer, &who) {
            to.add(
                NAME,
                at,
                Some(peer),
                format!("{what} {}, whose certificate has run out", who.short()),
            );
        }
        if self.told.get(&peer).is_some_and(|told| told.contains(&who)) {
            to.add(
                NAME,
                at,
                Some(peer),
                format!("{what} {}, of whose revocation it had heard", who.short()),
            );
        }
    }

    fn look(&mut self, world: &World, _to: &mut Findings) {
        let right = world.now().wall;
        let wrong = world.peers().filter(|peer| world.clock(*peer).wall != right);
        self.confused.extend(wrong);
    }

    fn end(&mut self, world: &World, to: &mut Findings) {
        for peer in world.peers() {
            let Some(fabric) = world.running(peer) else {
                continue;
            };
            let me = world.peer_id(peer);
            if self.strangers.contains(&me) || self.revoked.contains(&me) {
                continue;
            }
            // Of a revocation only those must know who have said so.
            let told = |who: &PeerId| self.told.get(&peer).is_some_and(|told| told.contains(who));
            let outside = |who: &PeerId| {
                self.strangers.contains(who)
                    || (self.revoked.contains(who) && told(who))
                    || self.is_over(world, peer, who)
            };
            for (who, _) in fabric.connected().filter(|(who, _)| outside(who)) {
                let what = format!("is still connected with {}, who is no member", who.short());
                to.add(NAME, world.now().mono, Some(peer), what);
            }
        }
    }
}
