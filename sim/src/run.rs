//! A scenario in the virtual-time world, with every checker watching.
//!
//! What is to happen is planned first, each fault and load from a stream of its own, so that a scenario without one of
//! them is otherwise the same: that is what shrinking relies on. At the end everything is mended, and the mesh has
//! [`QUIET_MAX`] to become quiet before the last checks.

pub(crate) mod arrivals;
pub(crate) mod deeds;
mod faults;
pub(crate) mod plan;
pub(crate) mod recording;
pub(crate) mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use faults::Ambush;
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::ticket::Ticket;
use hyperfabric_protocol::transfer::{Offer, TransferEvent};
use hyperfabric_protocol::{Instant, TransferId};
use plan::{Deed, Plan};
use recording::Recorder;
pub use recording::{FaultSpan, Recording, Sample, TransferSpan, rss_bytes};
pub use samples::SAMPLES_MAX;
use serde::Serialize;

use crate::check::{self, Asked, Check, Findings, Violation};
use crate::scenario::{Scenario, ScenarioError};
use crate::seed::Seed;
use crate::topology::Topology;
use crate::world::{CutId, PeerIndex, World, WorldOptions};

/// How long a mended mesh may take to agree: neighbors compare their databases about once a minute.
pub const QUIET_MAX: Duration = Duration::from_secs(300);
/// After how much of it the last transfers must have ended.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);
/// How often the checkers look.
const LOOK: Duration = Duration::from_millis(250);

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// What the scenario is to show.
    pub intent: String,
    /// The seed.
    pub seed: u64,
    /// The hash over all events.
    pub trace_hash: String,
    /// How many peers there were.
    pub peers: usize,
    /// How many events happened.
    pub events: u64,
    /// How long it took, in seconds of virtual time.
    pub virtual_seconds: f64,
    /// Transfers that were given to their senders.
    pub transfers: usize,
    /// Of these, delivered.
    pub delivered: usize,
    /// Of these, ended with an error.
    pub failed: usize,
    /// What must hold and did not.
    pub violations: Vec<Violation>,
}

/// An outgoing transfer, as its sender's user remembers it.
#[derive(Clone, Debug)]
struct Sent {
    from: PeerIndex,
    to: PeerIndex,
    offer: Offer,
    over: Option<bool>,
    begun: Instant,
    ended: Option<Instant>,
}

/// A run.
pub struct Run {
    scenario: Scenario,
    seed: Seed,
    world: World,
    topology: Topology,
    plan: Plan,
    checks: Vec<Box<dyn Check>>,
    findings: Findings,
    members: BTreeSet<PeerIndex>,
    revoked: BTreeSet<PeerIndex>,
    joining: BTreeMap<PeerIndex, Ticket>,
    /// Who does not run, and whom it was connected to, as its address book has it.
    down: BTreeMap<PeerIndex, Vec<PeerIndex>>,
    /// Peers that have another one's name, and whose.
    twins: BTreeMap<PeerIndex, PeerIndex>,
    ambushes: Vec<Ambush>,
    cuts: BTreeMap<usize, CutId>,
    sent: BTreeMap<TransferId, Sent>,
    mended: bool,
    look_at: Instant,
    recorder: Option<Recorder>,
}

impl Run {
    /// Plans a run.
    ///
    /// # Errors
    /// [`ScenarioError`] when the scenario asks for what no run can do.
    pub fn new(scenario: Scenario, seed: u64) -> Result<Self, ScenarioError> {
        scenario.check()?;
        scenario.check_virtual()?;
        let link = scenario.link.conditions();
        let (shape, hidden_ppm) = scenario.topology.shape();
        let total = scenario.peers_in_all();
        let topology = Topology::new(Seed(seed), &shape, total, link, hidden_ppm);
        let mut world = World::with_options(seed, link, WorldOptions::default());
        world.set_topology(&topology);
        for between in &scenario.between {
            let (a, b) = &between.regions;
            if let (Some(a), Some(b)) = (topology.region_of(a), topology.region_of(b)) {
                world.set_between(a, b, between.link.conditions());
            }
        }
        let plan = Plan::of(&scenario, Seed(seed));
        let mut run = Self {
            scenario,
            seed: Seed(seed),
            world,
            topology,
            plan,
            checks: check::all(),
            findings: Findings::default(),
            members: BTreeSet::new(),
            revoked: BTreeSet::new(),
            joining: BTreeMap::new(),
            down: BTreeMap::new(),
            twins: BTreeMap::new(),
            ambushes: Vec::new(),
            cuts: BTreeMap::new(),
            sent: BTreeMap::new(),
            mended: false,
            look_at: Instant(0),
            recorder: None,
        };
        run.found();
        Ok(run)
    }

    /// Returns the world.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// Returns what the checkers have found so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        self.findings.all()
    }

    /// Lets the next thing happen, planned or not. Returns what peers reported, or `None` when the run is over.
    pub fn step(&mut self) -> Option<Vec<(Instant, PeerIndex, Event)>> {
        let end = Instant(0).after(self.scenario.lasts.0);
        let now = self.world.now().mono;
        if now >= end && !self.mended {
            self.mended = true;
            self.mend();
        }
        if self.mended && (now >= end.after(QUIET_MAX) || self.is_quiet(now, end)) {
            return None;
        }
        let planned = self.plan.next_at().filter(|_| !self.mended);
        let border = if self.mended { end.after(QUIET_MAX) } else { end };
        let until = planned.unwrap_or(border).min(self.look_at).min(border);
        if !self.world.step_until(until) {
            if self.look_at <= until {
                self.look_at = until.after(LOOK);
                self.look();
            }
            if !self.mended {
                while let Some(deed) = self.plan.due(until) {
                    self.carry_out(deed);
                }
            }
        }
        let events = self.world.take_events();
        for (at, peer, event) in &events {
            self.hear(*at, *peer, event);
        }
        Some(events)
    }

    /// Runs to the end.
    pub fn finish(&mut self) -> RunReport {
        while self.step().is_some() {}
        for check in &mut self.checks {
            check.end(&self.world, &mut self.findings);
        }
        self.last_sample();
        self.report()
    }

    /// Says what the run came to.
    #[must_use]
    pub fn report(&self) -> RunReport {
        let over = |delivered| {
            self.sent
                .values()
                .filter(|sent| sent.over == Some(delivered))
                .count()
        };
        RunReport {
            intent: self.scenario.intent.clone(),
            seed: self.seed.0,
            trace_hash: self.world.trace_hash(),
            peers: self.world.len(),
            events: self.world.events(),
            virtual_seconds: Duration::from_nanos(self.world.now().mono.0).as_secs_f64(),
            transfers: self.sent.len(),
            delivered: over(true),
            failed: over(false),
            violations: self.findings.all().to_vec(),
        }
    }

    fn ask(&mut self, asked: Asked) {
        for check in &mut self.checks {
            check.asked(&self.world, asked);
        }
    }

    fn look(&mut self) {
        for check in &mut self.checks {
            check.look(&self.world, &mut self.findings);
        }
        self.go_on_joining();
        self.sample();
    }

    fn hear(&mut self, at: Instant, peer: PeerIndex, event: &Event) {
        for check in &mut self.checks {
            check.event(&self.world, at, peer, event, &mut self.findings);
        }
        match event {
            Event::Transfer(TransferEvent::Ended { of, result }) => {
                if let Some(sent) = self.sent.get_mut(&of.transfer)
                    && sent.from == peer
                {
                    sent.over = Some(result.is_ok());
                    sent.ended = Some(at);
                }
            }
            Event::Joined(_) if self.joining.contains_key(&peer) => self.plan.add(at, Deed::Joined(peer)),
            Event::JoinUnreachable | Event::JoinEnded if self.joining.contains_key(&peer) => {
                self.plan.later(at, Deed::JoinAgain(peer));
            }
            _ => {}
        }
        if let Event::Transfer(event) = event {
            self.fall_into_ambush(at, peer, event);
        }
    }

    /// Tells whether there is nothing left to wait for.
    fn is_quiet(&self, now: Instant, end: Instant) -> bool {
        // A look at every peer is dear: only now and then.
        if self.look_at.since(now) < LOOK || now < end.after(Duration::from_secs(20)) {
            return false;
        }
        let over = self.sent.values().all(|sent| sent.over.is_some());
        let members: Vec<_> = self.members.difference(&self.revoked).collect();
        let running = members.iter().filter_map(|peer| self.world.running(**peer));
        let digests: BTreeSet<u64> = running.map(|fabric| fabric.flood().digest()).collect();
        over && digests.len() <= 1
    }
}
