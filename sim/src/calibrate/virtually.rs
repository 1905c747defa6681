//! A case in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperfabric_protocol::Instant;

use super::case::{Case, Situation};
use super::{Observed, types};
use crate::scale::register;
use crate::world::{Disk, PeerIndex, PeerOptions, World, WorldOptions};

/// The mesh's name.
const MESH: &str = "sim";
/// How long certificates count.
const VALID: Duration = Duration::from_secs(90 * 24 * 3600);
/// How often it is looked whether a newcomer knows the others, both ways.
pub(super) const LOOK: Duration = Duration::from_millis(5);

/// Peers that are being watched.
struct Watch {
    world: World,
    joining: BTreeMap<usize, Instant>,
    joins: Vec<Option<Duration>>,
}

pub(super) fn observe(case: &Case, situation: &Situation) -> Observed {
    let options = WorldOptions {
        bytes: false,
        log: false,
        discovery: true,
        share: false,
    };
    let mut world = World::with_options(case.seed, situation.base, options);
    world.set_topology(&situation.topology);
    let mut watch = Watch {
        world,
        joining: BTreeMap::new(),
        joins: vec![None; case.peers],
    };
    for (place, (start, contacts)) in situation.starts.iter().zip(&situation.contacts).enumerate() {
        watch.run_until(Instant(0).after(*start));
        watch.add(place, contacts);
    }
    let end = watch.world.now().mono.after(case.rest);
    watch.run_until(end);
    watch.observed(case, situation)
}

impl Watch {
    fn add(&mut self, place: usize, contacts: &[usize]) {
        let name = hyperfabric_protocol::NodeId::new(format!("n{place}"))
            .expect("a letter and a number are a node id");
        let (root, membership) = self.world.certify_next(MESH, name.clone(), VALID);
        let contact = |other: &usize| {
            let other = PeerIndex(*other);
            (self.world.peer_id(other), vec![self.world.address(other)])
        };
        let disk = Disk {
            root: Some(root),
            membership: Some(membership),
            issuers: contacts.iter().map(contact).collect(),
            ..Disk::default()
        };
        let peer = self.world.add_peer(disk, PeerOptions::default());
        register(&mut self.world, peer, &name);
        self.joining.insert(place, self.world.now().mono);
    }

    fn run_until(&mut self, end: Instant) {
        while self.world.now().mono < end {
            let look = self.world.now().mono.after(LOOK);
            let next = if self.joining.is_empty() {
                end
            } else {
                look.min(end)
            };
            while self.world.step_until(next) {}
            self.look();
        }
    }

    /// Notes who knows as many as have started up to its own start.
    fn look(&mut self) {
        let (world, joins, now) = (&self.world, &mut self.joins, self.world.now().mono);
        self.joining.retain(|place, start| {
            let knows = world.fabric(PeerIndex(*place)).directory().len();
            if knows > *place {
                joins[*place] = Some(now.since(*start));
            }
            knows <= *place
        });
    }

    fn observed(&self, case: &Case, situation: &Situation) -> Observed {
        let fabrics = || self.world.peers().map(|peer| self.world.fabric(peer));
        let tally = self.world.control();
        let per_peer = |count: u64| count as f64 / case.peers as f64;
        let connections: usize = fabrics().map(|fabric| fabric.connected().count()).sum();
        let (join_rounds_p50, join_rounds_p90) = super::table::rounds(&self.joins, situation.round);
        Observed {
            know_all: fabrics().filter(|f| f.directory().len() == case.peers).count(),
            frames_per_peer: per_peer(tally.frames()),
            control_bytes_per_peer: per_peer(tally.bytes()),
            join_rounds_p50,
            join_rounds_p90,
            dials_per_peer: per_peer(self.world.dials()),
            connections_per_peer: per_peer(connections as u64),
            types: types(tally, case.peers),
        }
    }
}
