//! From the words of a scenario to impaired wires.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::time::Duration;

use hyperfabric_mesh::wire::{Bursts, Impairment, JitterShape};

use super::LinkTable;
use crate::conditions::{Conditions, Latency, Loss};
use crate::scenario::Scenario;
use crate::seed::{Seed, Stream};
use crate::topology::Topology;

/// Peers that a peer is told of at its start, at most.
const CONTACTS_MAX: usize = 4;

/// What a wire does that behaves like `conditions`, in one direction.
#[must_use]
pub fn impairment(conditions: &Conditions) -> Impairment {
    let (latency, jitter, jitter_shape) = match conditions.latency {
        Latency::Constant(latency) => (latency, conditions.jitter, JitterShape::Uniform),
        Latency::Uniform(low, high) => {
            let width = high.saturating_sub(low) + conditions.jitter;
            (low, width, JitterShape::Uniform)
        }
        Latency::Normal { mean, deviation } => (mean + conditions.jitter / 2, deviation, JitterShape::Normal),
    };
    let (loss_ppm, bursts) = match conditions.loss {
        Loss::None => (0, None),
        Loss::Bernoulli { ppm } => (ppm, None),
        Loss::Bursts {
            worsens_ppm,
            mends_ppm,
            good_ppm,
            bad_ppm,
        } => {
            let bursts = Bursts {
                begin_ppm: worsens_ppm,
                end_ppm: mends_ppm,
                loss_ppm: bad_ppm,
            };
            (good_ppm, Some(bursts))
        }
    };
    Impairment {
        latency,
        jitter,
        jitter_shape,
        loss_ppm,
        bursts,
        rate_bytes_per_s: NonZeroU64::new(conditions.bytes_per_second),
        queue_bytes_max: usize::try_from(conditions.queue_bytes_max).unwrap_or(usize::MAX),
        ..Impairment::default()
    }
}

/// Links that each have a constant latency of their own, drawn evenly from a range, and are otherwise like `base`.
#[must_use]
pub fn spread_links(seed: Seed, latency: RangeInclusive<Duration>, base: Conditions) -> LinkTable {
    LinkTable::new(move |from, to| {
        let (low, high) = (from.min(to) as u64, from.max(to) as u64);
        let mut draws = seed.stream(Stream::Jitter, low, high);
        let range = latency.end().saturating_sub(*latency.start());
        let own = *latency.start() + draws.duration(range);
        impairment(&Conditions {
            latency: Latency::Constant(own),
            ..base
        })
    })
}

/// The links of a topology, and `base` where it has none; who has no way to another one hears nothing from there, and who
/// cannot be dialled takes answers only. What a latency varies reorders nothing, as in virtual time: spread over tens of
/// milliseconds it would otherwise look like loss to QUIC, datagram after datagram.
#[must_use]
pub fn topology_links(topology: &Topology, base: Conditions) -> LinkTable {
    let topology = topology.clone();
    let reach = topology.reach.clone();
    let links = LinkTable::new(move |from, to| Impairment {
        keeps_order: true,
        ..impairment(topology.conditions(from, to, &base))
    });
    links.with_reach(reach)
}

/// Links between the regions of a topology, and `base` where it has none; everyone can dial everyone.
#[must_use]
pub fn region_links(topology: &Topology, base: Conditions) -> LinkTable {
    let topology = topology.clone();
    LinkTable::new(move |from, to| impairment(topology.conditions(from, to, &base)))
}

/// The links of a scenario: those of its topology, and between two regions what it says of them.
#[must_use]
pub fn scenario_links(scenario: &Scenario, topology: &Topology) -> LinkTable {
    let mut topology = topology.clone();
    for between in &scenario.between {
        let (a, b) = &between.regions;
        if let (Some(a), Some(b)) = (topology.region_of(a), topology.region_of(b)) {
            topology.set_between(a, b, between.link.conditions());
        }
    }
    topology_links(&topology, topology.base)
}

/// Whom each peer is told of at its start: some of those before it that it has a way to. The first of all is told of
/// nobody; whoever has no way to one before it is told of some after it, and of the first if there are none.
#[must_use]
pub fn contacts(topology: &Topology, peers: usize) -> Vec<Vec<usize>> {
    let told = |peer: usize| {
        let dials = |other: &usize| topology.reach.dials(peer, *other);
        let some: Vec<usize> = (0..peer).rev().filter(dials).take(CONTACTS_MAX).collect();
        if !some.is_empty() || peer == 0 {
            return some;
        }
        let later: Vec<usize> = (peer + 1..peers).filter(dials).take(CONTACTS_MAX).collect();
        if later.is_empty() { vec![0] } else { later }
    };
    (0..peers).map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Shape;

    #[test]
    fn both_directions_of_a_link_have_one_latency_within_the_range_and_links_differ() {
        let range = Duration::from_millis(10)..=Duration::from_millis(500);
        let links = spread_links(Seed(3), range.clone(), Conditions::default());
        let latency = |from, to| links.ask(from, to).latency;
        assert_eq!(latency(3, 8), latency(8, 3));
        assert!((0..100).all(|to| range.contains(&latency(1, to))));
        let different: std::collections::BTreeSet<_> = (0..100).map(|to| latency(1, to)).collect();
        assert!(different.len() > 90);
    }

    #[test]
    fn everyone_can_find_the_first_peer_by_its_contacts() {
        for shape in [Shape::Line, Shape::Grid, Shape::Full, Shape::Ring] {
            let topology = Topology::new(Seed(1), &shape, 50, Conditions::default(), 0);
            let contacts = contacts(&topology, 50);
            assert!(contacts[0].is_empty());
            for (peer, told) in contacts.iter().enumerate().skip(1) {
                assert!(!told.is_empty() && told.len() <= CONTACTS_MAX);
                assert!(told.iter().all(|other| *other < peer), "{shape:?}");
            }
        }
    }

    #[test]
    fn a_normal_latency_and_bursts_reach_the_wire() {
        let conditions = Conditions {
            latency: Latency::Normal {
                mean: Duration::from_millis(40),
                deviation: Duration::from_millis(4),
            },
            loss: Loss::Bursts {
                worsens_ppm: 1,
                mends_ppm: 2,
                good_ppm: 3,
                bad_ppm: 4,
            },
            ..Conditions::default()
        };
        let wire = impairment(&conditions);
        assert_eq!(wire.jitter_shape, JitterShape::Normal);
        assert_eq!((wire.latency.as_millis(), wire.jitter.as_millis()), (40, 4));
        let bursts = wire.bursts.unwrap();
        assert_eq!(
            (wire.loss_ppm, bursts.begin_ppm, bursts.end_ppm, bursts.loss_ppm),
            (3, 1, 2, 4)
        );
    }
}
