//! Who can reach whom, and over what: regions, classes of links, partitions, and who can be dialled.

use std::collections::{BTreeMap, BTreeSet};

use super::{PeerIndex, World};
use crate::conditions::Conditions;
use crate::topology::{Reach, Topology};

/// Which packets a partition stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// All between the two sides.
    Both,
    /// Those from the cut-off side only.
    Outward,
    /// Those to the cut-off side only.
    Inward,
}

/// Names a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CutId(u32);

#[derive(Debug)]
struct Cut {
    id: CutId,
    /// Whether each peer is on the cut-off side.
    side: Vec<bool>,
    direction: Direction,
}

/// The network below the peers.
#[derive(Debug)]
pub(super) struct Network {
    /// The classes of links; the first is that of all which have no other.
    classes: Vec<Conditions>,
    /// The class between two regions.
    between: Vec<Vec<u16>>,
    region: Vec<u16>,
    /// The classes of single pairs, the lower number first.
    links: BTreeMap<(usize, usize), u16>,
    reach: Option<Reach>,
    cuts: Vec<Cut>,
    pairs: BTreeSet<(PeerIndex, PeerIndex)>,
    next_cut: u32,
}

impl Network {
    pub(super) fn new(conditions: Conditions) -> Self {
        Self {
            classes: vec![conditions],
            between: Vec::new(),
            region: Vec::new(),
            links: BTreeMap::new(),
            reach: None,
            cuts: Vec::new(),
            pairs: BTreeSet::new(),
            next_cut: 0,
        }
    }

    fn set_regions(&mut self, region: Vec<u16>, between: Vec<Vec<Conditions>>) {
        self.region = region;
        self.between.clear();
        for row in between {
            let classes = row.into_iter().map(|conditions| self.class_of(conditions));
            let classes = classes.collect();
            self.between.push(classes);
        }
    }

    /// Returns the class of links that behave like this.
    fn class_of(&mut self, conditions: Conditions) -> u16 {
        let known = self.classes.iter().position(|class| *class == conditions);
        let class = known.unwrap_or_else(|| {
            self.classes.push(conditions);
            self.classes.len() - 1
        });
        u16::try_from(class).unwrap_or(0)
    }

    /// Returns the class of the link between two peers.
    pub(super) fn class(&self, a: PeerIndex, b: PeerIndex) -> u16 {
        let region = |peer: PeerIndex| self.region.get(peer.0).map(|r| usize::from(*r));
        let class = || self.between.get(region(a)?)?.get(region(b)?).copied();
        let own = if self.links.is_empty() {
            None
        } else {
            self.links.get(&(a.0.min(b.0), a.0.max(b.0))).copied()
        };
        own.or_else(class).unwrap_or(0)
    }

    pub(super) fn conditions(&self, class: u16) -> &Conditions {
        self.classes.get(usize::from(class)).unwrap_or(&self.classes[0])
    }

    fn cut(&mut self, side: Vec<bool>, direction: Direction) -> CutId {
        let id = CutId(self.next_cut);
        self.next_cut += 1;
        self.cuts.push(Cut { id, side, direction });
        id
    }

    fn heal(&mut self, id: CutId) {
        self.cuts.retain(|cut| cut.id != id);
    }

    pub(super) fn cut_pair(&mut self, a: PeerIndex, b: PeerIndex, cut: bool) {
        let pair = (a.min(b), a.max(b));
        if cut {
            self.pairs.insert(pair);
        } else {
            self.pairs.remove(&pair);
        }
    }

    /// Tells whether packets get from one peer to another.
    pub(super) fn passes(&self, from: PeerIndex, to: PeerIndex) -> bool {
        if self.pairs.contains(&(from.min(to), from.max(to))) {
            return false;
        }
        let off = |cut: &Cut, peer: PeerIndex| cut.side.get(peer.0).copied().unwrap_or(false);
        self.cuts.iter().all(|cut| match cut.direction {
            Direction::Both => off(cut, from) == off(cut, to),
            Direction::Outward => !off(cut, from) || off(cut, to),
            Direction::Inward => off(cut, from) || !off(cut, to),
        })
    }

    /// Tells whether a handshake between two peers succeeds, if both run.
    pub(super) fn dials(&self, from: PeerIndex, to: PeerIndex) -> bool {
        self.passes(from, to)
            && self.passes(to, from)
            && self.reach.as_ref().is_none_or(|reach| reach.dials(from.0, to.0))
    }
}

impl World {
    /// Puts the peers where a topology has them.
    pub fn set_topology(&mut self, topology: &Topology) {
        self.network
            .set_regions(topology.regions.clone(), topology.between.clone());
        self.network.classes[0] = topology.base;
        let links = topology.links.iter();
        self.network.links = links
            .map(|(pair, conditions)| (*pair, self.network.class_of(*conditions)))
            .collect();
        self.network.reach = Some(topology.reach.clone());
        self.network_changed();
    }

    /// Makes the links between two regions what they are to be from now on; frames under way are not touched.
    pub fn set_between(&mut self, a: u16, b: u16, conditions: Conditions) {
        self.network.classes.push(conditions);
        let class = u16::try_from(self.network.classes.len() - 1).unwrap_or(0);
        for (a, b) in [(a, b), (b, a)] {
            let row = self.network.between.get_mut(usize::from(a));
            if let Some(slot) = row.and_then(|row| row.get_mut(usize::from(b))) {
                *slot = class;
            }
        }
    }

    /// Tells whether either of two peers can dial the other one, as the network is now.
    #[must_use]
    pub fn can_connect(&self, a: PeerIndex, b: PeerIndex) -> bool {
        self.network.dials(a, b) || self.network.dials(b, a)
    }

    /// Cuts some peers off from all others, in one or both directions.
    pub fn cut(&mut self, side: Vec<bool>, direction: Direction) -> CutId {
        let id = self.network.cut(side, direction);
        self.network_changed();
        id
    }

    /// Mends a cut.
    pub fn heal(&mut self, id: CutId) {
        self.network.heal(id);
        self.network_changed();
    }
}
