//! When all is quiet, every member knows the same, and that is what is true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyperfabric_protocol::{PeerId, UnixMillis};

use super::{Asked, Check, Findings, parts};
use crate::world::{PeerIndex, World};

const NAME: &str = "directories";
/// How much later than its end a record may be dropped.
const EXPIRY_MAX: Duration = Duration::from_secs(10);

/// The checker.
#[derive(Debug, Default)]
pub struct Directories {
    members: BTreeSet<PeerIndex>,
    strangers: BTreeSet<PeerIndex>,
    guests: BTreeMap<PeerIndex, UnixMillis>,
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
            Asked::Guest { peer, until } => drop(self.guests.insert(peer, until)),
            Asked::Twin { .. } | Asked::Send { .. } | Asked::Crashed(_) => {}
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

impl Directories {
    fn check_part(&self, world: &World, part: &BTreeSet<PeerIndex>, hears: bool, to: &mut Findings) {
        let now = world.now().mono;
        let wanted: BTreeSet<PeerId> = part.iter().map(|peer| world.peer_id(*peer)).collect();
        let over = |(_, until): &(&PeerIndex, &UnixMillis)| until.after(EXPIRY_MAX) < world.now().wall;
        let guests = self.guests.iter().filter(over).map(|(peer, _)| peer);
        let outside = self.revoked.union(&self.strangers).chain(guests);
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
