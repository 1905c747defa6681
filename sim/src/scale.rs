//! Many peers that become one mesh: how long that takes, and what it costs.

mod recording;

use std::collections::BTreeMap;
use std::time::Duration;

use hyperfabric_protocol::types::{HardwareType, NodeSignature};
use hyperfabric_protocol::{Instant, NodeId};
pub use recording::{FrameCount, ScaleRecording, ScaleSample};
use serde::Serialize;

use crate::conditions::Conditions;
use crate::run::samples::Samples;
use crate::seed::{Seed, Stream};
use crate::topology::{Shape, Topology};
use crate::world::{Disk, PeerIndex, PeerOptions, World, WorldOptions};

/// How often it is looked who has joined.
const LOOK: Duration = Duration::from_millis(100);
/// How long a peer's ticket and certificate count.
const VALID: Duration = Duration::from_secs(90 * 24 * 3600);

/// What mesh is made.
#[derive(Clone, Debug)]
pub struct ScaleConfig {
    /// How many peers.
    pub peers: usize,
    /// What everything is drawn from.
    pub seed: u64,
    /// Who can reach whom.
    pub shape: Shape,
    /// What links are like.
    pub link: Conditions,
    /// Over how long their starts are spread.
    pub join_within: Duration,
    /// Whether each redeems a ticket at the first one; otherwise certificates are handed out beforehand, as they must
    /// be where not everyone reaches the first one.
    pub tickets: bool,
    /// How much virtual time it may take.
    pub limit: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct ScaleReport {
    /// How many peers.
    pub peers: usize,
    /// The seed.
    pub seed: u64,
    /// The hash over all events.
    pub trace_hash: String,
    /// Whether everyone knows everyone.
    pub joined: bool,
    /// How many events happened.
    pub events: u64,
    /// How often an item arrived at a peer, for each peer that was to have it.
    pub arrivals_per_item: f64,
    /// Bytes of control frames that each peer received.
    pub control_bytes_per_peer: u64,
    /// The control frames that each peer received, by type.
    pub frames_per_peer: BTreeMap<&'static str, f64>,
    /// How many items had their signatures checked.
    pub checks: u64,
    /// When the last peer knew everyone, in seconds of virtual time.
    pub virtual_seconds: f64,
    /// How long peers took from their start until they knew as many as had started before them, in milliseconds.
    pub join_ms: Percentiles,
    /// Connections of each peer.
    pub connections: Percentiles,
}

/// A distribution in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: u64,
    /// Nine in ten are below.
    pub p90: u64,
    /// All but one in a hundred are below.
    pub p99: u64,
    /// The most.
    pub max: u64,
}

impl Percentiles {
    /// Makes them of values in any order.
    #[must_use]
    pub fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let at = |percent: usize| {
            values
                .get((values.len().saturating_sub(1)) * percent / 100)
                .copied()
                .unwrap_or(0)
        };
        Self {
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max: at(100),
        }
    }
}

/// A mesh in the making.
pub struct Scale {
    config: ScaleConfig,
    world: World,
    topology: Topology,
    /// When each peer starts, and when it knew as many as had started before it.
    starts: Vec<Instant>,
    joined_at: Vec<Option<Instant>>,
    /// Those who have shown their ticket, and their names.
    joining: BTreeMap<PeerIndex, NodeId>,
    joined: bool,
    samples: Option<Samples<ScaleSample>>,
}

/// Returns the name of a peer.
///
/// # Panics
/// Never: a letter and a number are a node id.
#[must_use]
pub fn name_of(peer: usize) -> NodeId {
    NodeId::new(format!("p{peer}")).expect("a letter and a number are a node id")
}

/// Lets a peer host a node of its name.
pub(crate) fn register(world: &mut World, peer: PeerIndex, name: &NodeId) {
    if let Ok(node) = NodeSignature::new(name.clone(), HardwareType::CpuServer, 10.0, 1000) {
        // A name that somebody else holds by now stays theirs: the machine says so in an event.
        let _held = world.act(peer, |fabric, now| fabric.register(now, node));
    }
}

impl Scale {
    /// Makes the world and its first peer.
    #[must_use]
    pub fn new(config: ScaleConfig, options: WorldOptions) -> Self {
        let mut world = World::with_options(config.seed, config.link, options);
        let topology = Topology::new(Seed(config.seed), &config.shape, config.peers, config.link, 0);
        world.set_topology(&topology);
        let mut draws = world.draws(Stream::Load, 0);
        let mut starts: Vec<Instant> = (0..config.peers)
            .map(|_| Instant(0).after(draws.duration(config.join_within)))
            .collect();
        starts.sort();
        let first = world.add_admitter("scale", "p0");
        register(&mut world, first, &name_of(0));
        Self {
            joined_at: vec![None; config.peers],
            joining: BTreeMap::new(),
            joined: false,
            samples: None,
            config,
            world,
            topology,
            starts,
        }
    }

    /// Returns the world.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// Lets everyone join. Returns whether they have.
    pub fn run(&mut self) -> bool {
        let mut look = Instant(0).after(LOOK);
        let mut next = 1;
        while self.world.now().mono < Instant(0).after(self.config.limit) {
            let start = self.starts.get(next).copied();
            let until = start.map_or(look, |start| start.min(look));
            while self.world.step_until(until) {}
            if start.is_some_and(|start| start <= until) {
                self.add(next);
                next += 1;
            }
            if until == look {
                look = look.after(LOOK);
                self.go_on();
                if self.look() && next == self.config.peers {
                    return true;
                }
            }
        }
        false
    }

    fn add(&mut self, number: usize) {
        let name = name_of(number);
        let contact = PeerIndex(self.topology.first_contact(number).unwrap_or(0));
        if !self.config.tickets {
            let (root, membership) = self.world.certify_next("scale", name.clone(), VALID);
            let issuers = BTreeMap::from([(self.world.peer_id(contact), vec![self.world.address(contact)])]);
            let disk = Disk {
                root: Some(root),
                membership: Some(membership),
                issuers,
                ..Disk::default()
            };
            let peer = self.world.add_peer(disk, PeerOptions::default());
            return register(&mut self.world, peer, &name);
        }
        let address = self.world.address(contact);
        let ticket = self.world.act(PeerIndex(0), |f, now| {
            f.invite(now, name.clone(), VALID, 1, vec![address])
        });
        let peer = self.world.add_peer(Disk::default(), PeerOptions::joining());
        if let Ok((ticket, _)) = ticket {
            self.world.act(peer, |f, now| f.join(now, ticket));
            self.joining.insert(peer, name);
        }
    }

    /// Joining is a process of its own; the daemon starts once it has its certificate.
    fn go_on(&mut self) {
        let has = |world: &World, peer| world.running(peer).is_some_and(|f| f.admission().own().is_some());
        let ready: Vec<PeerIndex> = self
            .joining
            .keys()
            .copied()
            .filter(|peer| has(&self.world, *peer))
            .collect();
        for peer in ready {
            if let Some(name) = self.joining.remove(&peer) {
                self.world.stop(peer);
                self.world.set_options(peer, PeerOptions::default());
                self.world.start(peer);
                register(&mut self.world, peer, &name);
            }
        }
    }

    /// Notes who knows everyone. Returns whether all do.
    fn look(&mut self) -> bool {
        let now = self.world.now().mono;
        let mut missing = 0usize;
        for peer in self.world.peers() {
            let knows = self.world.running(peer).map_or(0, |f| f.directory().len());
            if knows < self.config.peers {
                missing += 1;
            }
            if knows > peer.0 && self.joined_at[peer.0].is_none() {
                self.joined_at[peer.0] = Some(now);
            }
        }
        self.joined = missing == 0;
        let known = self.world.len().saturating_sub(missing);
        let over = self.joined && self.world.len() == self.config.peers;
        self.sample(known, over);
        self.joined
    }

    /// Says what came of it.
    #[must_use]
    pub fn report(&self) -> ScaleReport {
        let took = |(start, joined): (&Instant, &Option<Instant>)| {
            joined.map(|at| u64::try_from(at.since(*start).as_millis()).unwrap_or(u64::MAX))
        };
        let join: Vec<u64> = self.starts.iter().zip(&self.joined_at).filter_map(took).collect();
        let running = self.world.peers().filter_map(|peer| self.world.running(peer));
        let connections = running.map(|f| f.connected().count() as u64).collect();
        let types = self.world.control().types().filter(|(_, frames, _)| *frames > 0);
        let per_peer = |(name, frames, _)| (name, frames as f64 / self.config.peers as f64);
        ScaleReport {
            frames_per_peer: types.map(per_peer).collect(),
            peers: self.config.peers,
            seed: self.config.seed,
            trace_hash: self.world.trace_hash(),
            joined: self.joined,
            events: self.world.events(),
            arrivals_per_item: self.world.items_received() as f64 / (self.config.peers as f64).powi(2),
            control_bytes_per_peer: self.world.control().bytes() / self.config.peers as u64,
            checks: self.world.checks_made(),
            virtual_seconds: Duration::from_nanos(self.world.now().mono.0).as_secs_f64(),
            join_ms: Percentiles::of(join),
            connections: Percentiles::of(connections),
        }
    }
}
