//! When all is quiet, every member knows the same, and that is what is true.

use std::collections::BTreeSet;

use hyperfabric_protocol::PeerId;

use super::{Asked, Check, Findings};
use crate::world::{PeerIndex, World};

const NAME: &str = "directories";

/// The checker.
#[derive(Debug, Default)]
pub struct Directories {
    members: BTreeSet<PeerIndex>,
    strangers: BTreeSet<PeerIndex>,
    revoked: BTreeSet<PeerIndex>,
}

impl Check for Directories {
    fn asked(&mut self, _world: &World, asked: Asked) {
        match asked {
            Asked::Member(peer) => drop(self.members.insert(peer)),
            Asked::Stranger(peer) => drop(self.strangers.insert(peer)),
            Asked::Revoked(peer) => {
                self.members.remove(&peer);
                self.revoked.insert(peer);
            }
            Asked::Send { .. } | Asked::Crashed(_) => {}
        }
    }

    fn end(&mut self, world: &World, to: &mut Findings) {
        let running = self
            .members
            .iter()
            .copied()
            .filter(|peer| world.running(*peer).is_some());
        for part in parts(world, running.collect()) {
            // News of a revocation comes from the first peer: those that no member connects with it cannot know.
            let hears = part.contains(&PeerIndex(0));
            self.check_part(world, &part, hears, to);
        }
    }
}

/// Returns the sets of members that are connected through members: in a ring, two that are gone make two of them.
fn parts(world: &World, mut left: BTreeSet<PeerIndex>) -> Vec<BTreeSet<PeerIndex>> {
    let mut parts = Vec::new();
    while let Some(first) = left.pop_first() {
        let (mut part, mut open) = (BTreeSet::from([first]), vec![first]);
        while let Some(peer) = open.pop() {
            let reached: Vec<PeerIndex> = left
                .iter()
                .copied()
                .filter(|other| world.can_connect(peer, *other))
                .collect();
            for other in reached {
                left.remove(&other);
                part.insert(other);
                open.push(other);
            }
        }
        parts.push(part);
    }
    parts
}

impl Directories {
    fn check_part(&self, world: &World, part: &BTreeSet<PeerIndex>, hears: bool, to: &mut Findings) {
        let now = world.now().mono;
        let wanted: BTreeSet<PeerId> = part.iter().map(|peer| world.peer_id(*peer)).collect();
        let outside = self.revoked.union(&self.strangers);
        let unwanted: BTreeSet<PeerId> = outside.map(|peer| world.peer_id(*peer)).collect();
        let mut digests = BTreeSet::new();
        for peer in part {
            let Some(fabric) = world.running(*peer) else {
                continue;
            };
            digests.insert(fabric.flood().digest());
            let known: BTreeSet<PeerId> = fabric
                .directory()
                .records()
                .map(|record| record.member.peer)
                .collect();
            let missing = wanted.difference(&known).count();
            if missing > 0 {
                let what = format!("does not know {missing} of {} running members", wanted.len());
                to.add(NAME, now, Some(*peer), what);
            }
            let kept = unwanted.intersection(&known).count();
            if kept > 0 && hears {
                to.add(NAME, now, Some(*peer), format!("knows {kept} who are no members"));
            }
        }
        if digests.len() > 1 {
            let what = format!(
                "there are {} different databases among {} members",
                digests.len(),
                part.len()
            );
            to.add(NAME, now, None, what);
        }
    }
}
