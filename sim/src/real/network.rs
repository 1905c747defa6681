//! Which link a datagram takes, and what is cut: peers are known to the wires by their sockets, and to a scenario by their
//! places.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use hyperfabric_mesh::wire::{Cut, Impairment, ImpairmentHandle, LinkRule, Partition};

use crate::scenario::Way;
use crate::topology::Reach;

/// How the link from one peer to another behaves, by their places.
#[derive(Clone)]
pub struct LinkTable {
    conditions: Arc<dyn Fn(usize, usize) -> Impairment + Send + Sync>,
    reach: Arc<Reach>,
}

impl LinkTable {
    /// Asks `conditions` with the places of sender and receiver.
    pub fn new(conditions: impl Fn(usize, usize) -> Impairment + Send + Sync + 'static) -> Self {
        Self {
            conditions: Arc::new(conditions),
            reach: Arc::default(),
        }
    }

    /// Says who can dial whom; without this, everyone can dial everyone.
    #[must_use]
    pub fn with_reach(self, reach: Reach) -> Self {
        let reach = Arc::new(reach);
        Self { reach, ..self }
    }

    /// Tells whether one of two peers can dial the other.
    #[must_use]
    pub fn connects(&self, a: usize, b: usize) -> bool {
        self.reach.dials(a, b) || self.reach.dials(b, a)
    }

    /// The conditions from one peer to another.
    #[must_use]
    pub fn ask(&self, from: usize, to: usize) -> Impairment {
        let own = (self.conditions)(from, to);
        let (out, back) = (self.reach.dials(from, to), self.reach.dials(to, from));
        let partition = if out || back {
            own.partition
        } else {
            // Each direction is cut where it begins.
            Partition::All(Cut::Outgoing)
        };
        Impairment {
            partition,
            answers_only: out && !back,
            ..own
        }
    }
}

impl fmt::Debug for LinkTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkTable").finish_non_exhaustive()
    }
}

/// Where everybody's socket is.
#[derive(Clone, Debug, Default)]
pub(super) struct Sockets(Arc<RwLock<HashMap<SocketAddr, usize>>>);

impl Sockets {
    pub(super) fn add(&self, socket: SocketAddr, peer: usize) {
        let mut places = self.0.write().unwrap_or_else(PoisonError::into_inner);
        places.insert(socket, peer);
    }

    fn place(&self, remote: SocketAddr) -> Option<usize> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        places.get(&remote).copied()
    }

    /// The rule of the wire of the peer at `place`.
    pub(super) fn rule(&self, place: usize, links: &LinkTable) -> LinkRule {
        let (sockets, links) = (self.clone(), links.clone());
        LinkRule(Arc::new(move |remote| {
            let to = sockets.place(remote)?;
            Some(links.ask(place, to))
        }))
    }
}

/// Some peers that are cut off from all others.
#[derive(Debug)]
struct Side {
    cut_off: Vec<bool>,
    way: Way,
}

impl Side {
    fn stops(&self, from: usize, to: usize) -> bool {
        let off = |peer: usize| self.cut_off.get(peer).copied().unwrap_or(false);
        match self.way {
            Way::Both => off(from) != off(to),
            Way::Outward => off(from) && !off(to),
            Way::Inward => !off(from) && off(to),
        }
    }
}

#[derive(Debug)]
struct State {
    links: LinkTable,
    sides: BTreeMap<usize, Side>,
    pairs: BTreeSet<(usize, usize)>,
    dead: BTreeSet<usize>,
}

impl State {
    /// How the wire of `from` treats what it sends to `to`, and what comes from there.
    fn ask(&self, from: usize, to: usize) -> Impairment {
        let own = self.links.ask(from, to);
        let stopped = self.pairs.contains(&(from.min(to), from.max(to)))
            || self.sides.values().any(|side| side.stops(from, to));
        let partition = if self.dead.contains(&from) {
            Partition::All(Cut::Both)
        } else if stopped {
            Partition::All(Cut::Outgoing)
        } else {
            own.partition
        };
        Impairment { partition, ..own }
    }
}

/// The network below the peers of a scenario, which fails and is mended while they run.
pub(super) struct Network {
    sockets: Sockets,
    state: Arc<RwLock<State>>,
    wires: Vec<ImpairmentHandle>,
}

impl Network {
    pub(super) fn new(links: LinkTable) -> Self {
        Self {
            sockets: Sockets::default(),
            state: Arc::new(RwLock::new(State {
                links,
                sides: BTreeMap::new(),
                pairs: BTreeSet::new(),
                dead: BTreeSet::new(),
            })),
            wires: Vec::new(),
        }
    }

    /// Adds the next peer.
    pub(super) fn add(&mut self, socket: SocketAddr, wire: ImpairmentHandle) {
        let place = self.wires.len();
        self.sockets.add(socket, place);
        wire.set_rule(self.rule(place));
        self.wires.push(wire);
    }

    fn rule(&self, place: usize) -> LinkRule {
        let (sockets, state) = (self.sockets.clone(), Arc::clone(&self.state));
        LinkRule(Arc::new(move |remote| {
            let to = sockets.place(remote)?;
            Some(
                state
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .ask(place, to),
            )
        }))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
        for (place, wire) in self.wires.iter().enumerate() {
            wire.set_rule(self.rule(place));
        }
    }

    /// Cuts some peers off, until the cut of this number is healed.
    pub(super) fn cut(&self, number: usize, cut_off: Vec<bool>, way: Way) {
        self.change(|state| drop(state.sides.insert(number, Side { cut_off, way })));
    }

    pub(super) fn heal(&self, number: usize) {
        self.change(|state| drop(state.sides.remove(&number)));
    }

    /// Keeps two peers from reaching each other, or lets them again.
    pub(super) fn cut_pair(&self, a: usize, b: usize, cut: bool) {
        let pair = (a.min(b), a.max(b));
        self.change(|state| {
            if cut {
                state.pairs.insert(pair);
            } else {
                state.pairs.remove(&pair);
            }
        });
    }

    /// Lets nothing leave or reach a peer whose process has died, or everything again.
    pub(super) fn set_dead(&self, place: usize, dead: bool) {
        self.change(|state| {
            if dead {
                state.dead.insert(place);
            } else {
                state.dead.remove(&place);
            }
        });
    }

    /// Mends everything but the topology.
    pub(super) fn mend(&self) {
        self.change(|state| {
            state.sides.clear();
            state.pairs.clear();
        });
    }

    /// Tells whether one of two peers can dial the other, when nothing has failed.
    pub(super) fn can_connect(&self, a: usize, b: usize) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.links.connects(a, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::Conditions;
    use crate::seed::Seed;
    use crate::topology::{Shape, Topology};

    fn state(shape: &Shape, hidden_ppm: u32) -> State {
        let topology = Topology::new(Seed(1), shape, 20, Conditions::default(), hidden_ppm);
        State {
            links: LinkTable::new(|_, _| Impairment::default()).with_reach(topology.reach),
            sides: BTreeMap::new(),
            pairs: BTreeSet::new(),
            dead: BTreeSet::new(),
        }
    }

    #[test]
    fn a_partition_cuts_the_ways_that_it_names_and_no_others() {
        let cut_off = vec![false, true, true];
        for (way, out, inward) in [
            (Way::Both, true, true),
            (Way::Outward, true, false),
            (Way::Inward, false, true),
        ] {
            let mut state = state(&Shape::Full, 0);
            let cut_off = cut_off.clone();
            state.sides.insert(0, Side { cut_off, way });
            let cut = |from, to| state.ask(from, to).partition == Partition::All(Cut::Outgoing);
            assert_eq!((cut(1, 0), cut(0, 1)), (out, inward), "{way:?}");
            assert!(!cut(1, 2) && !cut(0, 5));
        }
    }

    #[test]
    fn a_hidden_peer_takes_answers_only_and_those_without_a_way_hear_nothing() {
        let hidden = state(&Shape::Full, 1_000_000);
        assert!(hidden.ask(9, 0).answers_only && !hidden.ask(0, 9).answers_only);
        assert_eq!(hidden.ask(0, 9).partition, Partition::None);
        // Two networks, both hidden: nobody can begin.
        assert_eq!(hidden.ask(9, 17).partition, Partition::All(Cut::Outgoing));
        let line = state(&Shape::Line, 0);
        assert_eq!(line.ask(3, 4).partition, Partition::None);
        assert_eq!(line.ask(3, 5).partition, Partition::All(Cut::Outgoing));
    }

    #[test]
    fn the_dead_send_and_hear_nothing() {
        let mut state = state(&Shape::Full, 0);
        state.dead.insert(4);
        assert_eq!(state.ask(4, 5).partition, Partition::All(Cut::Both));
        assert_eq!(state.ask(5, 4).partition, Partition::None);
    }
}
