//! A scenario on real nodes, in real time, with checkers watching.
//!
//! What happens when is planned as for virtual time ([`crate::run`]), from the same seed. Faults are carried out on the
//! nodes themselves: wires are cut, processes die with what their disks had not synced, jobs wait, wall clocks are wrong.
//! At the end everything is mended, and the mesh has some minutes to become quiet before the last checks. It leaves out
//! what the operating system decides: two runs of one seed differ in time, and so in what they show.

mod check;
mod deeds;
mod ledger;
mod recording;
mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use hyperfabric_protocol::Instant as Moment;
use hyperfabric_protocol::ticket::Ticket;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::check::Checks;
use self::ledger::{Begun, Ledger};
use self::recording::Recorder;
use self::site::{Heard, Site};
use super::network::Network;
use super::testbed::{Founder, LabError, Testbed};
use super::{Datagrams, Delivery, OnProgress, Phase, Progress, RealError, Spread, Usage};
use crate::check::Violation;
use crate::real::links::scenario_links;
use crate::run::plan::Plan;
use crate::run::{DEADLINE, QUIET_MAX, Recording};
use crate::scenario::Scenario;
use crate::seed::Seed;
use crate::topology::Topology;
use crate::world::PeerIndex;

/// How often the checkers look.
const LOOK: Duration = Duration::from_millis(500);
/// After the last fault was mended, connections may still look alive that are not: several keep-alives.
const SETTLE: Duration = Duration::from_secs(3);
/// What peers say and nobody has read yet; beyond it those who say more wait.
const HEARD_MAX: usize = 4_096;

/// What a scenario on real nodes came to.
#[derive(Clone, Debug, Serialize)]
pub struct PlayReport {
    /// What the scenario is to show.
    pub intent: String,
    /// The seed.
    pub seed: u64,
    /// How many peers there were, those that came later included.
    pub peers: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How long the mesh took to become quiet after everything was mended, in seconds.
    pub quiet_seconds: f64,
    /// Of transfers.
    pub transfers: Delivery,
    /// Of messages.
    pub messages: Delivery,
    /// Processes that died.
    pub crashes: usize,
    /// Peers with a ticket that had not become members by the end.
    pub not_joined: usize,
    /// Connections of a member: the mean at the end, and the most at any time.
    pub connections: Spread,
    /// Processor seconds of everything.
    pub cpu_seconds: f64,
    /// The most memory that the process had.
    pub rss_peak_bytes: u64,
    /// What became of datagrams.
    pub datagrams: Datagrams,
    /// What must hold and did not.
    pub violations: Vec<Violation>,
}

/// What has ended that was begun.
enum Done {
    /// A ticket was shown; the process has ended if it was taken.
    Redeemed { place: usize, taken: bool },
    /// A transfer was begun, or not.
    Begun(Begun),
    /// A message was answered, or not.
    Answered { begun: Instant, end: super::load::End },
    /// A router that forgot a connection passes packets again.
    Remembered { a: usize, b: usize },
}

struct Play {
    scenario: Scenario,
    seed: Seed,
    bed: Testbed,
    founder: Founder,
    strange: Option<Founder>,
    topology: Topology,
    network: Network,
    sites: Vec<Site>,
    members: BTreeSet<usize>,
    strangers: BTreeSet<usize>,
    revoked: BTreeSet<usize>,
    down: BTreeSet<usize>,
    joining: BTreeMap<usize, Ticket>,
    plan: Plan,
    tasks: FuturesUnordered<BoxFuture<'static, Done>>,
    tell: mpsc::Sender<Heard>,
    ledger: Ledger,
    checks: Checks,
    recorder: Recorder,
    crashes: usize,
    begun: Instant,
}

/// Carries a scenario out on real nodes.
///
/// # Errors
/// [`RealError`] when the scenario asks for what real nodes cannot do, or a node cannot be made. What goes wrong in it is
/// in the report.
pub fn play(scenario: Scenario, seed: u64, on_progress: OnProgress<'_>) -> Result<PlayReport, RealError> {
    play_recorded(scenario, seed, on_progress).map(|(report, _)| report)
}

/// Carries a scenario out on real nodes, and says also what it looked like over time.
///
/// # Errors
/// As [`play`].
pub fn play_recorded(
    scenario: Scenario,
    seed: u64,
    on_progress: OnProgress<'_>,
) -> Result<(PlayReport, Recording), RealError> {
    scenario.check()?;
    scenario.check_real()?;
    super::runtime()?.block_on(async {
        let before = Usage::now().map_err(RealError::Usage)?;
        let (mut play, mut heard) = Play::new(scenario, seed)?;
        let quiet = play.run(&mut heard, on_progress).await?;
        let report = play.end(before, quiet).await?;
        Ok(report)
    })
}

impl Play {
    fn new(scenario: Scenario, seed: u64) -> Result<(Self, mpsc::Receiver<Heard>), LabError> {
        let link = scenario.link.conditions();
        let (shape, hidden_ppm) = scenario.topology.shape();
        let topology = Topology::new(Seed(seed), &shape, scenario.peers_in_all(), link, hidden_ppm);
        let network = Network::new(scenario_links(&scenario, &topology));
        let bed = Testbed::new()?;
        let (folder, founder) = bed.found(deeds::MESH, &crate::scale::name_of(0))?;
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        let plan = Plan::of(&scenario, Seed(seed));
        let mut play = Self {
            scenario,
            seed: Seed(seed),
            bed,
            founder,
            strange: None,
            topology,
            network,
            sites: Vec::new(),
            members: BTreeSet::new(),
            strangers: BTreeSet::new(),
            revoked: BTreeSet::new(),
            down: BTreeSet::new(),
            joining: BTreeMap::new(),
            plan,
            tasks: FuturesUnordered::new(),
            tell,
            ledger: Ledger::default(),
            checks: Checks::default(),
            recorder: Recorder::default(),
            crashes: 0,
            begun: Instant::now(),
        };
        play.add_site(folder)?;
        Ok((play, heard))
    }

    fn passed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Lets everything happen; returns how long the mesh took to become quiet in the end.
    async fn run(
        &mut self,
        heard: &mut mpsc::Receiver<Heard>,
        on_progress: OnProgress<'_>,
    ) -> Result<Duration, RealError> {
        self.begun = Instant::now();
        self.start_first().await?;
        let lasts = self.scenario.lasts.0;
        let mut mended = None;
        let mut look_at = LOOK;
        loop {
            let now = self.passed();
            if mended.is_none() && now >= lasts {
                self.mend().await?;
                mended = Some(self.passed());
            }
            if mended.is_none() {
                while let Some(deed) = self.plan.due(Moment(0).after(self.passed())) {
                    self.carry_out(deed).await?;
                }
            }
            if look_at <= self.passed() {
                self.look(false).await;
                self.tell_progress(mended, on_progress);
                look_at = self.passed() + LOOK;
                if let Some(since) = mended {
                    let quiet = self.passed().saturating_sub(since);
                    if quiet >= QUIET_MAX || (quiet >= SETTLE && self.is_quiet().await) {
                        return Ok(quiet);
                    }
                }
            }
            let next = self.plan.next_at().filter(|_| mended.is_none());
            let deed_at = next.map_or(look_at, |at| Duration::from_nanos(at.0));
            let border = if mended.is_none() { lasts } else { look_at };
            let until = self.begun + deed_at.min(look_at).min(border);
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                Some(said) = heard.recv() => self.hear(&said),
                Some(done) = self.tasks.next(), if !self.tasks.is_empty() => self.finish(done).await?,
            }
        }
    }

    fn tell_progress(&self, mended: Option<Duration>, on_progress: OnProgress<'_>) {
        let seconds = |time: Duration| usize::try_from(time.as_secs()).unwrap_or(usize::MAX);
        let (phase, done, of) = match mended {
            None => (Phase::Scenario, self.passed(), self.scenario.lasts.0),
            Some(since) => (Phase::Quiet, self.passed().saturating_sub(since), QUIET_MAX),
        };
        on_progress(Progress {
            phase,
            done: seconds(done),
            of: seconds(of),
        });
    }

    fn hear(&mut self, heard: &Heard) {
        self.ledger.hear(heard);
        self.checks.hear(
            Moment(0).after(self.passed()),
            heard,
            &self.sites,
            &self.strangers,
            &self.revoked,
        );
    }

    /// When transfers that are begun now have to have ended.
    fn time_left(&self) -> Duration {
        (self.scenario.lasts.0 + DEADLINE).saturating_sub(self.passed())
    }

    async fn look(&mut self, last: bool) {
        let now = Moment(0).after(self.passed());
        let seen = self.checks.look(now, &self.sites, &self.running()).await;
        self.sample(&seen, last);
        let pool = self.bed.pool.clone();
        self.ledger
            .look(now, &self.sites, &pool, self.checks.findings())
            .await;
    }

    /// Members whose process runs.
    fn running(&self) -> Vec<usize> {
        let runs = |place: &usize| self.sites[*place].node().is_some();
        self.members.iter().copied().filter(runs).collect()
    }

    async fn is_quiet(&self) -> bool {
        self.ledger.is_over() && self.agree().await
    }

    /// Whether all that can know each other know the same.
    async fn agree(&self) -> bool {
        let views = check::views(&self.sites, &self.running()).await;
        check::parts(&self.network, &views).iter().all(|part| {
            let digests: BTreeSet<u64> = part.iter().map(|view| view.digest).collect();
            let knows = |view: &&check::View| part.iter().all(|other| view.known.contains(&other.id));
            digests.len() <= 1 && part.iter().all(knows)
        })
    }

    async fn end(mut self, before: Usage, quiet: Duration) -> Result<(PlayReport, Recording), RealError> {
        self.look(true).await;
        let views = check::views(&self.sites, &self.running()).await;
        let now = Moment(0).after(self.passed());
        let unwanted = |places: &BTreeSet<usize>| places.iter().map(|place| self.sites[*place].id).collect();
        let (strangers, revoked) = (unwanted(&self.strangers), unwanted(&self.revoked));
        self.checks.end(now, &self.network, &views, &strangers, &revoked);
        self.ledger.end(now, &self.sites, self.checks.findings());
        let connected: Vec<u64> = views.iter().map(|view| view.connected.len() as u64).collect();
        let datagrams = self.sites.iter().map(|site| site.wire.handle.stats());
        let datagrams = datagrams.fold(Datagrams::default(), Datagrams::with);
        let seconds = self.passed().as_secs_f64();
        let not_joined = self.joining.len();
        let recording = self.recording(&views);
        let stops = self.sites.iter_mut().map(Site::stop);
        futures::future::join_all(stops).await;
        let after = Usage::now().map_err(RealError::Usage)?;
        let report = PlayReport {
            intent: self.scenario.intent,
            seed: self.seed.0,
            peers: self.sites.len(),
            seconds,
            quiet_seconds: quiet.as_secs_f64(),
            transfers: self.ledger.transfers(),
            messages: self.ledger.messages(),
            crashes: self.crashes,
            not_joined,
            connections: Spread {
                max: self.checks.neighbors_max,
                ..Spread::of(&connected)
            },
            cpu_seconds: (after.processor - before.processor).as_secs_f64(),
            rss_peak_bytes: after.rss_peak_bytes,
            datagrams,
            violations: self.checks.findings().all().to_vec(),
        };
        Ok((report, recording))
    }
}

/// A peer as the plan names it.
const fn place_of(peer: PeerIndex) -> usize {
    peer.0
}
