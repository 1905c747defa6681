//! What must hold of real nodes, looked at while a scenario runs.
//!
//! As the checkers of virtual time ([`crate::check`]) these keep their own account and have their limits written down anew.
//! That transfers end, and are what they claim to be, is the ledger's to say.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt as _};
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::transfer::TransferEvent;
use hyperfabric_protocol::{Instant as Moment, PeerId};

use super::site::{Heard, Site};
use crate::check::Findings;
use crate::real::network::Network;
use crate::world::PeerIndex;

/// Neighbors of a peer, and its connections of any kind: those under way of being replaced, joiners, and one for bytes
/// in each direction besides.
const NEIGHBORS_MAX: usize = 32;
const CONNECTIONS_MAX: usize = 4 * NEIGHBORS_MAX + 128;
/// Peers that are asked at once.
const AT_ONCE: usize = 64;

/// What a peer knows.
pub(super) struct View {
    pub(super) place: usize,
    pub(super) id: PeerId,
    /// Of its database.
    pub(super) digest: u64,
    /// Members that it has records of.
    pub(super) known: BTreeSet<PeerId>,
    pub(super) connected: Vec<PeerId>,
}

/// What a peer says of itself while a scenario goes on.
pub(super) struct Seen {
    place: usize,
    /// Members that it has records of.
    pub(super) known: usize,
    pub(super) neighbors: usize,
    connections: usize,
}

/// Asks running peers what they know.
pub(super) async fn views(sites: &[Site], places: &[usize]) -> Vec<View> {
    let view = async |place: usize| {
        let site = &sites[place];
        let (id, node) = (site.id, site.node()?);
        let asked = node.handle().act(move |fabric, _| View {
            place,
            id,
            digest: fabric.flood().digest(),
            known: fabric
                .directory()
                .records()
                .map(|record| record.member.peer)
                .collect(),
            connected: fabric.connected().map(|(peer, _)| peer).collect(),
        });
        asked.await.ok()
    };
    let asked: Vec<Option<View>> = stream::iter(places.iter().copied())
        .map(view)
        .buffered(AT_ONCE)
        .collect()
        .await;
    asked.into_iter().flatten().collect()
}

/// Returns the sets of peers that are connected through each other, by what the topology lets be dialled.
pub(super) fn parts<'a>(network: &Network, views: &'a [View]) -> Vec<Vec<&'a View>> {
    let mut left: Vec<&View> = views.iter().collect();
    let mut parts = Vec::new();
    while let Some(first) = left.pop() {
        let (mut part, mut open) = (vec![first], vec![first]);
        while let Some(view) = open.pop() {
            let (reached, rest) = left
                .into_iter()
                .partition(|other| network.can_connect(view.place, other.place));
            left = rest;
            let reached: Vec<&View> = reached;
            part.extend(&reached);
            open.extend(reached);
        }
        parts.push(part);
    }
    parts
}

/// See the module.
#[derive(Default)]
pub(super) struct Checks {
    findings: Findings,
    /// Who has said of whom that it was revoked.
    told: BTreeMap<usize, BTreeSet<PeerId>>,
    /// The most neighbors that any peer had at any time.
    pub(super) neighbors_max: u64,
}

impl Checks {
    pub(super) const fn findings(&mut self) -> &mut Findings {
        &mut self.findings
    }

    pub(super) fn hear(
        &mut self,
        now: Moment,
        heard: &Heard,
        sites: &[Site],
        strangers: &BTreeSet<usize>,
        revoked: &BTreeSet<usize>,
    ) {
        let place = heard.place;
        let (who, what) = match &heard.event {
            Event::Revoked { peer, .. } => {
                self.told.entry(place).or_default().insert(*peer);
                if !revoked.iter().any(|place| sites[*place].id == *peer) {
                    let what = format!("heard that {} was revoked, and it was not", peer.short());
                    self.findings
                        .add("certificates", now, Some(PeerIndex(place)), what);
                }
                return;
            }
            Event::PeerUp { peer, .. } => (*peer, "connected with"),
            Event::NodeAppeared { peer, .. } => (*peer, "took up a node of"),
            Event::Transfer(TransferEvent::Offered { of, .. }) => (of.peer, "took an offer of"),
            _ => return,
        };
        // What strangers do among themselves is their business.
        let strange = strangers.iter().any(|place| sites[*place].id == who) && !strangers.contains(&place);
        let told = self.told.get(&place).is_some_and(|told| told.contains(&who));
        for (wrong, whose) in [
            (strange, "who is no member"),
            (told, "of whose revocation it had heard"),
        ] {
            if wrong {
                let what = format!("{what} {}, {whose}", who.short());
                self.findings
                    .add("certificates", now, Some(PeerIndex(place)), what);
            }
        }
    }

    /// Looks at how many connections each peer holds, and returns what peers say of themselves.
    pub(super) async fn look(&mut self, now: Moment, sites: &[Site], places: &[usize]) -> Vec<Seen> {
        let look = async |place: usize| {
            let asked = sites[place].node()?.handle().act(move |fabric, _| {
                let sizes = fabric.sizes();
                Seen {
                    place,
                    known: fabric.directory().len(),
                    neighbors: sizes.neighbors,
                    connections: sizes.connections,
                }
            });
            asked.await.ok()
        };
        let asked: Vec<Option<Seen>> = stream::iter(places.iter().copied())
            .map(look)
            .buffered(AT_ONCE)
            .collect()
            .await;
        let seen: Vec<Seen> = asked.into_iter().flatten().collect();
        for peer in &seen {
            self.neighbors_max = self.neighbors_max.max(peer.neighbors as u64);
            for (what, size, max) in [
                ("neighbors", peer.neighbors, NEIGHBORS_MAX),
                ("connections", peer.connections, CONNECTIONS_MAX),
            ] {
                if size > max {
                    let what = format!("has {size} {what}, more than {max}");
                    self.findings
                        .add("connections", now, Some(PeerIndex(peer.place)), what);
                }
            }
        }
        seen
    }

    /// Looks whether all know the same, and that is what is true.
    pub(super) fn end(
        &mut self,
        now: Moment,
        network: &Network,
        views: &[View],
        strangers: &BTreeSet<PeerId>,
        revoked: &BTreeSet<PeerId>,
    ) {
        for part in parts(network, views) {
            // News of a revocation comes from the first peer: who cannot reach it cannot know.
            let hears = part.iter().any(|view| view.place == 0);
            let wanted: BTreeSet<PeerId> = part.iter().map(|view| view.id).collect();
            let unwanted: BTreeSet<PeerId> = strangers.union(revoked).copied().collect();
            for view in &part {
                let peer = Some(PeerIndex(view.place));
                let missing = wanted.difference(&view.known).count();
                if missing > 0 {
                    let what = format!("does not know {missing} of {} running members", wanted.len());
                    self.findings.add("directories", now, peer, what);
                }
                let kept = unwanted.intersection(&view.known).count();
                if kept > 0 && hears {
                    let what = format!("knows {kept} who are no members");
                    self.findings.add("directories", now, peer, what);
                }
                let told = self.told.get(&view.place);
                let outside =
                    |who: &&PeerId| strangers.contains(who) || told.is_some_and(|told| told.contains(who));
                for who in view.connected.iter().filter(outside) {
                    let what = format!("is still connected with {}, who is no member", who.short());
                    self.findings.add("certificates", now, peer, what);
                }
            }
            let digests: BTreeSet<u64> = part.iter().map(|view| view.digest).collect();
            if digests.len() > 1 {
                let what = format!(
                    "{} members have {} different databases",
                    part.len(),
                    digests.len()
                );
                self.findings.add("directories", now, None, what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hyperfabric_mesh::wire::Impairment;

    use super::*;
    use crate::conditions::Conditions;
    use crate::real::LinkTable;
    use crate::seed::Seed;
    use crate::topology::{Shape, Topology};

    fn peer(number: u8) -> PeerId {
        PeerId([number; 32])
    }

    /// Three members, each of which knows these.
    fn views(known: &[u8]) -> Vec<View> {
        let view = |place: u8| View {
            place: usize::from(place),
            id: peer(place),
            digest: 7,
            known: known.iter().copied().map(peer).collect(),
            connected: Vec::new(),
        };
        (0..3).map(view).collect()
    }

    fn found(shape: &Shape, views: &[View], strangers: &[u8], checks: &mut Checks) -> Vec<String> {
        let topology = Topology::new(Seed(1), shape, 8, Conditions::default(), 0);
        let links = LinkTable::new(|_, _| Impairment::default()).with_reach(topology.reach);
        let network = Network::new(links);
        let strangers = strangers.iter().copied().map(peer).collect();
        checks.end(Moment(0), &network, views, &strangers, &BTreeSet::new());
        let found = checks.findings().all().iter();
        found.map(|violation| violation.what.clone()).collect()
    }

    #[test]
    fn a_mesh_that_agrees_on_the_truth_has_nothing_wrong() {
        let found = found(&Shape::Full, &views(&[0, 1, 2]), &[9], &mut Checks::default());
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn who_misses_a_member_or_keeps_a_stranger_or_differs_is_found() {
        let mut wrong = views(&[0, 1, 9]);
        wrong[1].digest = 8;
        let found = found(&Shape::Full, &wrong, &[9], &mut Checks::default());
        assert_eq!(found.len(), 3 + 3 + 1, "{found:#?}");
        assert!(found[6].contains("2 different databases"), "{found:#?}");
    }

    #[test]
    fn those_that_cannot_reach_each_other_need_not_agree() {
        let mut apart = views(&[0, 1, 2]);
        // Nobody links the third with the others.
        apart[2].place = 5;
        apart[2].digest = 8;
        let found = found(&Shape::Line, &apart, &[], &mut Checks::default());
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_connection_with_a_stranger_or_with_one_of_whose_revocation_it_heard_is_found() {
        let mut views = views(&[0, 1, 2]);
        views[0].connected = vec![peer(9)];
        views[1].connected = vec![peer(2)];
        let mut checks = Checks::default();
        checks.told.insert(1, BTreeSet::from([peer(2)]));
        let found = found(&Shape::Full, &views, &[9], &mut checks);
        assert_eq!(found.len(), 2, "{found:#?}");
    }
}
