//! Who can reach whom, and where everybody is. The same words serve the virtual-time world and impaired wires.

mod custom;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub use custom::{
    Custom, CustomSpec, DialledBy, DialledByWord, Dials, NODES_MAX, NodeSpec, REGIONS_MAX, RegionsSpec,
    TopologyError, WaySpec,
};

use crate::conditions::{Conditions, Latency};
use crate::seed::{Seed, Stream};

/// The shape of a mesh: between whom there is a way at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Everyone reaches everyone.
    Full,
    /// Each reaches the one before and the one after.
    Line,
    /// A line whose ends meet.
    Ring,
    /// Rows below each other; each reaches the four around it.
    Grid,
    /// Each but the first reaches its parent, and a parent this many children.
    Tree {
        /// The children of a parent.
        fanout: usize,
    },
    /// A ring in which each reaches some on both sides, and some of these ways lead somewhere else (Watts and
    /// Strogatz).
    SmallWorld {
        /// How many on each side.
        near: usize,
        /// How many in a million ways lead somewhere else.
        rewired_ppm: u32,
    },
    /// Everyone reaches everyone, from regions of the world with the round trips between them.
    Geographic,
    /// As listed: pairs of peers.
    Listed(Vec<(usize, usize)>),
    /// As somebody has written it down.
    Custom(Arc<Custom>),
}

/// The regions of [`Shape::Geographic`].
pub const REGIONS: [&str; 6] = [
    "us-east",
    "us-west",
    "eu-west",
    "sa-east",
    "ap-south",
    "ap-northeast",
];

/// Round trips between them in milliseconds: what large clouds publish for their data centres, rounded.
const ROUND_TRIPS_MS: [[u64; 6]; 6] = [
    [2, 65, 75, 115, 200, 160],
    [65, 2, 135, 175, 225, 105],
    [75, 135, 2, 185, 120, 210],
    [115, 175, 185, 2, 300, 260],
    [200, 225, 120, 300, 2, 130],
    [160, 105, 210, 260, 130, 2],
];

/// Who can dial a peer, where not everyone can.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Door {
    /// Peers of its region.
    Region,
    /// These.
    Only(BTreeSet<usize>),
}

/// Who can dial whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The ways of each peer; without them, everyone has a way to everyone.
    ways: Option<Vec<BTreeSet<usize>>>,
    /// The network that a peer hides in: only peers of the same one can dial it.
    hidden: Vec<Option<u16>>,
    /// The regions that doors speak of.
    home: Vec<u16>,
    doors: BTreeMap<usize, Door>,
    /// From whom to whom there is no dialling whatever else holds.
    refused: BTreeSet<(usize, usize)>,
}

impl Reach {
    /// Tells whether a handshake gets from one peer to another.
    #[must_use]
    pub fn dials(&self, from: usize, to: usize) -> bool {
        let way = match &self.ways {
            Some(ways) => ways.get(from).is_some_and(|way| way.contains(&to)),
            None => true,
        };
        let network = |peer: usize| self.hidden.get(peer).copied().flatten();
        let opens = match self.doors.get(&to) {
            None => true,
            Some(Door::Region) => self.home.get(from) == self.home.get(to),
            Some(Door::Only(others)) => others.contains(&from),
        };
        way && (network(to).is_none() || network(to) == network(from))
            && opens
            && !self.refused.contains(&(from, to))
    }
}

/// A mesh's shape, filled in.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The region of each peer.
    pub regions: Vec<u16>,
    /// The links between regions.
    pub between: Vec<Vec<Conditions>>,
    /// The links of single pairs of peers, the lower number first.
    pub links: BTreeMap<(usize, usize), Conditions>,
    /// The links of which nothing else is said.
    pub base: Conditions,
    /// Who can dial whom.
    pub reach: Reach,
    names: Vec<String>,
    peers: usize,
}

impl Topology {
    /// Fills a shape in for this many peers, of which some, in parts per million, can be dialled only from their own
    /// network of eight.
    #[must_use]
    pub fn new(seed: Seed, shape: &Shape, peers: usize, link: Conditions, hidden_ppm: u32) -> Self {
        if let Shape::Custom(custom) = shape {
            return Self::written(custom, link);
        }
        let mut draws = seed.stream(Stream::Topology, 0, 0);
        let geographic = *shape == Shape::Geographic;
        let regions = (0..peers)
            .map(|_| {
                if geographic {
                    u16::try_from(draws.index(REGIONS.len())).unwrap_or(0)
                } else {
                    0
                }
            })
            .collect();
        let between = if geographic {
            region_links(link)
        } else {
            Vec::new()
        };
        let mut draws = seed.stream(Stream::Topology, 1, 0);
        // The first peer is everyone's first contact.
        let hidden = (0..peers)
            .map(|peer| {
                (peer > 0 && draws.happens(hidden_ppm)).then(|| u16::try_from(peer / 8).unwrap_or(u16::MAX))
            })
            .collect();
        let ways = ways(seed, shape, peers);
        Self {
            regions,
            between,
            links: BTreeMap::new(),
            base: link,
            reach: Reach {
                ways,
                hidden,
                ..Reach::default()
            },
            names: if geographic {
                REGIONS.map(str::to_owned).to_vec()
            } else {
                Vec::new()
            },
            peers,
        }
    }

    fn written(custom: &Custom, link: Conditions) -> Self {
        let base = custom.base(link);
        let links = custom.links.iter();
        Self {
            regions: custom.region.clone(),
            between: custom.between(base),
            links: links.map(|(pair, link)| (*pair, link.conditions())).collect(),
            base,
            reach: custom.reach.clone(),
            names: custom.region_names.clone(),
            peers: custom.len(),
        }
    }

    /// Returns what the link from one peer to another is like: that of the pair, or of their regions, or `otherwise`.
    #[must_use]
    pub fn conditions<'a>(&'a self, from: usize, to: usize, otherwise: &'a Conditions) -> &'a Conditions {
        let region = |peer: usize| self.regions.get(peer).map_or(0, |region| usize::from(*region));
        let between = || self.between.get(region(from))?.get(region(to));
        let own = self.links.get(&(from.min(to), from.max(to)));
        own.or_else(between).unwrap_or(otherwise)
    }

    /// Makes the links between two regions, in both directions, what they are to be.
    pub fn set_between(&mut self, a: u16, b: u16, conditions: Conditions) {
        for (a, b) in [(a, b), (b, a)] {
            let row = self.between.get_mut(usize::from(a));
            if let Some(slot) = row.and_then(|row| row.get_mut(usize::from(b))) {
                *slot = conditions;
            }
        }
    }

    /// Returns whom a peer knows first: somebody that it can dial, with a lower number where there is one.
    #[must_use]
    pub fn first_contact(&self, peer: usize) -> Option<usize> {
        let below = (0..peer).find(|other| self.reach.dials(peer, *other));
        below.or_else(|| (peer + 1..self.peers).find(|other| self.reach.dials(peer, *other)))
    }

    /// Returns how many ways there are, when not everyone has one to everyone.
    #[must_use]
    pub fn ways(&self) -> Option<usize> {
        self.reach
            .ways
            .as_ref()
            .map(|ways| ways.iter().map(BTreeSet::len).sum::<usize>() / 2)
    }

    /// Returns the ways that there are as pairs of peers, when not everyone has one to everyone.
    #[must_use]
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        let of_peer = |(peer, others): (usize, &BTreeSet<usize>)| -> Vec<(usize, usize)> {
            others.range(peer + 1..).map(|other| (peer, *other)).collect()
        };
        let ways = self.reach.ways.iter().flatten();
        ways.enumerate().flat_map(of_peer).collect()
    }

    /// Returns the number of a region.
    #[must_use]
    pub fn region_of(&self, name: &str) -> Option<u16> {
        let at = self.names.iter().position(|region| region == name)?;
        u16::try_from(at).ok()
    }

    /// Returns the name of each peer's region, where peers have regions.
    #[must_use]
    pub fn region_names(&self) -> Vec<&str> {
        if self.names.is_empty() {
            return Vec::new();
        }
        let name = |region: &u16| self.names.get(usize::from(*region)).map_or("", String::as_str);
        self.regions.iter().map(name).collect()
    }
}

fn region_links(link: Conditions) -> Vec<Vec<Conditions>> {
    let between = |row: &[u64; 6]| {
        let conditions = |round_trip: &u64| Conditions {
            latency: Latency::Constant(Duration::from_micros(round_trip * 500)),
            ..link
        };
        row.iter().map(conditions).collect()
    };
    ROUND_TRIPS_MS.iter().map(between).collect()
}

fn ways(seed: Seed, shape: &Shape, peers: usize) -> Option<Vec<BTreeSet<usize>>> {
    let mut ways = vec![BTreeSet::new(); peers];
    let mut join = |a: usize, b: usize| {
        if a != b && a < peers && b < peers {
            ways[a].insert(b);
            ways[b].insert(a);
        }
    };
    match shape {
        Shape::Full | Shape::Geographic | Shape::Custom(_) => return None,
        Shape::Line => (1..peers).for_each(|n| join(n - 1, n)),
        Shape::Ring => (0..peers).for_each(|n| join(n, (n + 1) % peers)),
        Shape::Grid => {
            let width = peers.isqrt().max(1);
            for n in 0..peers {
                if (n + 1) % width != 0 {
                    join(n, n + 1);
                }
                join(n, n + width);
            }
        }
        Shape::Tree { fanout } => (1..peers).for_each(|n| join(n, (n - 1) / (*fanout).max(1))),
        Shape::SmallWorld { near, rewired_ppm } => {
            let mut draws = seed.stream(Stream::Topology, 2, 0);
            for n in 0..peers {
                for step in 1..=*near {
                    let rewired = step > 1 && draws.happens(*rewired_ppm);
                    let other = if rewired {
                        draws.index(peers)
                    } else {
                        (n + step) % peers
                    };
                    join(n, other);
                }
            }
        }
        Shape::Listed(pairs) => pairs.iter().for_each(|(a, b)| join(*a, *b)),
    }
    Some(ways)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(shape: &Shape, peers: usize) -> Topology {
        Topology::new(Seed(1), shape, peers, Conditions::default(), 0)
    }

    fn reached(topology: &Topology, peers: usize) -> usize {
        let (mut seen, mut open) = (BTreeSet::from([0]), vec![0]);
        while let Some(peer) = open.pop() {
            for other in (0..peers).filter(|other| topology.reach.dials(peer, *other)) {
                if seen.insert(other) {
                    open.push(other);
                }
            }
        }
        seen.len()
    }

    #[test]
    fn every_shape_is_in_one_piece_and_has_its_ways() {
        let small = Shape::SmallWorld {
            near: 3,
            rewired_ppm: 100_000,
        };
        for (shape, ways) in [
            (Shape::Full, None),
            (Shape::Geographic, None),
            (Shape::Line, Some(35)),
            (Shape::Ring, Some(36)),
            (Shape::Grid, Some(60)),
            (Shape::Tree { fanout: 2 }, Some(35)),
        ] {
            let topology = topology(&shape, 36);
            assert_eq!(topology.ways(), ways, "{shape:?}");
            assert_eq!(reached(&topology, 36), 36, "{shape:?}");
        }
        let topology = topology(&small, 100);
        assert_eq!(reached(&topology, 100), 100);
        assert!((270..=300).contains(&topology.ways().unwrap_or(0)));
    }

    #[test]
    fn everyone_has_a_first_contact_that_can_be_dialled() {
        for shape in [Shape::Line, Shape::Tree { fanout: 3 }, Shape::Grid, Shape::Full] {
            let topology = topology(&shape, 50);
            for peer in 0..50 {
                let contact = topology
                    .first_contact(peer)
                    .unwrap_or_else(|| panic!("{shape:?}: {peer} has none"));
                assert!(topology.reach.dials(peer, contact) && (contact < peer || peer == 0));
            }
        }
    }

    #[test]
    fn hidden_peers_dial_out_and_are_dialled_from_their_own_network_only() {
        let topology = Topology::new(Seed(1), &Shape::Full, 64, Conditions::default(), 1_000_000);
        assert!(topology.reach.dials(9, 0) && !topology.reach.dials(0, 9));
        assert!(topology.reach.dials(8, 9) && topology.reach.dials(9, 8));
        assert!(!topology.reach.dials(17, 9));
    }

    #[test]
    fn regions_are_as_far_apart_in_both_directions() {
        for (a, row) in ROUND_TRIPS_MS.iter().enumerate() {
            for (b, round_trip) in row.iter().enumerate() {
                assert_eq!(*round_trip, ROUND_TRIPS_MS[b][a]);
            }
        }
    }
}
