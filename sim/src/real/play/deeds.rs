//! How what is planned is done to real nodes.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use hyperfabric_mesh::PeerAddress;
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_node::node::DataRequest;
use hyperfabric_node::offline;
use hyperfabric_node::{DataType, PacketPriority};
use hyperfabric_protocol::Instant as Moment;

use super::ledger::Order;
use super::site::{Site, StartFailed};
use super::{Done, Play, place_of};
use crate::real::RealError;
use crate::real::load::{End, MESSAGE_BYTES, PROMPT_BYTES_MAX};
use crate::real::testbed::LabError;
use crate::run::arrivals::{CONTACTS, VALID};
use crate::run::deeds::{SEND_AGAIN, SEND_TRIES};
use crate::run::plan::{Deed, transfer_draws, victim_draws};
use crate::scale::name_of;
use crate::scenario::{Fault, Load};
use crate::seed::{Draws, Stream};
use crate::world::PeerIndex;

pub(super) const MESH: &str = "sim";
const STRANGE_MESH: &str = "elsewhere";
/// For how long a router that has forgotten a connection drops its packets: both ends give up within their idle timeout,
/// which is 10 s. [QUIC-12]
const FORGOTTEN: Duration = Duration::from_secs(12);
/// For how long a message looks for its destination.
const LOOK_FOR: Duration = Duration::from_secs(30);
/// How long its sender waits for the answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// When its sender gives a transfer up: in real time nobody waits for peers that have no way to each other.
const GIVES_UP: Duration = Duration::from_secs(120);
/// The streams of what a crash leaves behind begin here.
const CRASH_STREAM: u64 = 3_000_000;

impl Play {
    pub(super) fn add_site(&mut self, folder: StateFolder) -> Result<usize, LabError> {
        let place = self.sites.len();
        let seed = self.seed.stream(Stream::Jitter, place as u64, 0).u64();
        let mut site = Site::new(&self.bed, name_of(place), folder, seed)?;
        site.contacts = self.contacts(place)?;
        let socket = site.address()?.socket;
        self.network.add(socket, site.wire.handle.clone());
        self.sites.push(site);
        Ok(place)
    }

    /// Returns whom a peer knows first: members that it can dial.
    fn contacts(&self, place: usize) -> Result<Vec<PeerAddress>, LabError> {
        let dials = |other: &&usize| self.topology.reach.dials(place, **other);
        let some = self.members.iter().filter(dials).take(CONTACTS);
        some.map(|other| self.sites[*other].address()).collect()
    }

    async fn start(&mut self, place: usize) -> Result<(), RealError> {
        let started = self.sites[place].start(&self.bed, place, &self.tell).await;
        started.map_err(|error| not_started(place, error))
    }

    pub(super) async fn start_first(&mut self) -> Result<(), RealError> {
        self.members.insert(0);
        self.start(0).await
    }

    pub(super) async fn carry_out(&mut self, deed: Deed) -> Result<(), RealError> {
        match deed {
            Deed::Start { ticket } => self.start_peer(ticket).await,
            Deed::Stranger => self.start_stranger().await,
            // Guests and twins are refused beforehand.
            Deed::Joined(_) | Deed::Guest { .. } | Deed::Twin { .. } => Ok(()),
            Deed::JoinAgain(peer) => {
                self.redeem(place_of(peer));
                Ok(())
            }
            Deed::Begin { fault, draw } => self.begin(fault, draw).await,
            Deed::End { fault, victims } => self.end_fault(fault, &victims).await,
            Deed::Send { load, number, tries } => {
                self.send(load, number, tries);
                Ok(())
            }
        }
    }

    async fn start_peer(&mut self, ticket: bool) -> Result<(), RealError> {
        let place = self.sites.len();
        let name = name_of(place);
        let folder = self.bed.folder(&name)?;
        let first = self.sites[0]
            .node()
            .filter(|_| ticket && self.topology.reach.dials(place, 0));
        let invited = match first.cloned() {
            Some(first) => {
                let (address, asked) = (self.sites[0].address()?.to_address(), name.clone());
                let invite = first.handle().act(move |fabric, now| {
                    let addresses = vec![address];
                    fabric.invite(now, asked, VALID, 1, addresses)
                });
                invite.await.ok().and_then(Result::ok)
            }
            None => None,
        };
        if let Some((ticket, _)) = invited {
            let place = self.add_site(folder)?;
            self.sites[place].contacts.clear();
            self.joining.insert(place, ticket);
            let started = self.sites[place].start_bare(&self.bed, place, &self.tell).await;
            started.map_err(|error| not_started(place, error))?;
            self.redeem(place);
            return Ok(());
        }
        self.founder.admit(&folder, &name)?;
        let place = self.add_site(folder)?;
        self.members.insert(place);
        self.start(place).await
    }

    async fn start_stranger(&mut self) -> Result<(), RealError> {
        let name = name_of(self.sites.len());
        let folder = self.bed.folder(&name)?;
        if self.strange.is_none() {
            let chief = hyperfabric_node::NodeId::new("chief").expect("a word is a node id");
            self.strange = Some(self.bed.found(STRANGE_MESH, &chief)?.1);
        }
        if let Some(strange) = &self.strange {
            strange.admit(&folder, &name)?;
        }
        let place = self.add_site(folder)?;
        self.strangers.insert(place);
        self.sites[place].contacts = vec![self.sites[0].address()?];
        self.start(place).await
    }

    /// Shows a ticket.
    fn redeem(&mut self, place: usize) {
        let (Some(ticket), Some(node)) = (self.joining.get(&place).cloned(), self.sites[place].node()) else {
            return;
        };
        let node = node.clone();
        let task = async move {
            let taken = offline::redeem(&node, ticket).await.is_ok();
            if taken {
                node.stop().await;
            }
            Done::Redeemed { place, taken }
        };
        self.tasks.push(task.boxed());
    }

    pub(super) async fn finish(&mut self, done: Done) -> Result<(), RealError> {
        match done {
            Done::Redeemed { place, taken } => {
                if !self.joining.contains_key(&place) {
                    return Ok(());
                }
                if !taken {
                    let now = Moment(0).after(self.passed());
                    self.plan.later(now, Deed::JoinAgain(PeerIndex(place)));
                    return Ok(());
                }
                self.joining.remove(&place);
                self.sites[place].stop().await;
                self.sites[place].contacts = self.contacts(place)?;
                self.members.insert(place);
                self.start(place).await
            }
            Done::Begun(begun) => {
                self.ledger.begun(begun);
                Ok(())
            }
            Done::Answered { begun, end } => {
                self.ledger.answered(begun, end);
                Ok(())
            }
            Done::Remembered { a, b } => {
                self.network.cut_pair(a, b, false);
                Ok(())
            }
        }
    }

    fn victims(&self, draws: &mut Draws, count: usize) -> Vec<usize> {
        let mut pool: Vec<usize> = self.members.difference(&self.down).copied().collect();
        let mut chosen = Vec::new();
        while chosen.len() < count && !pool.is_empty() {
            chosen.push(pool.swap_remove(draws.index(pool.len())));
        }
        chosen
    }

    async fn begin(&mut self, number: usize, draw: u64) -> Result<(), RealError> {
        let mut draws = victim_draws(self.seed, draw);
        let Some(fault) = self.scenario.faults.get(number).cloned() else {
            return Ok(());
        };
        self.recorder.note_begin(number, self.passed());
        let mut lasts = fault.span().1;
        let mut victims = Vec::new();
        match &fault {
            Fault::Partition {
                share, region, way, ..
            } => {
                let region = region.as_deref().and_then(|name| self.topology.region_of(name));
                let side = (0..self.scenario.peers_in_all()).map(|place| match region {
                    Some(region) => self.topology.regions.get(place) == Some(&region),
                    None => draws.happens(share.0),
                });
                self.network.cut(number, side.collect(), *way);
            }
            Fault::Crash { peers, .. } => {
                victims = self.victims(&mut draws, *peers);
                victims.iter().for_each(|place| self.crash(*place));
            }
            Fault::Churn { gone, .. } => {
                lasts = gone.0;
                victims = self.victims(&mut draws, 1);
                victims.iter().for_each(|place| self.crash(*place));
            }
            Fault::Slow { peers, by, .. } => {
                victims = self.victims(&mut draws, *peers);
                victims.iter().for_each(|place| self.sites[*place].lag.set(by.0));
            }
            Fault::Clock {
                peers, ahead, behind, ..
            } => {
                let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
                victims = self.victims(&mut draws, *peers);
                for place in &victims {
                    self.sites[*place].clock.set(ms(ahead.0) - ms(behind.0));
                }
            }
            Fault::Disconnect { pairs, .. } => {
                for _ in 0..*pairs {
                    if let [a, b] = self.victims(&mut draws, 2)[..] {
                        self.forget(a, b);
                    }
                }
            }
            Fault::Revoke { peers, .. } => self.revoke(&mut draws, *peers).await,
            // Refused beforehand.
            Fault::CrashMidway { .. } => {}
        }
        let now = Moment(0).after(self.passed());
        let victims = victims.into_iter().map(PeerIndex).collect();
        self.plan.add(
            now.after(lasts),
            Deed::End {
                fault: number,
                victims,
            },
        );
        Ok(())
    }

    fn crash(&mut self, place: usize) {
        self.network.set_dead(place, true);
        let seed = self
            .seed
            .stream(Stream::Faults, CRASH_STREAM, self.crashes as u64)
            .u64();
        self.sites[place].kill(seed);
        self.down.insert(place);
        self.crashes += 1;
    }

    /// Lets the packets between two peers vanish until both have given their connection up.
    fn forget(&mut self, a: usize, b: usize) {
        self.network.cut_pair(a, b, true);
        let remember = async move {
            tokio::time::sleep(FORGOTTEN).await;
            Done::Remembered { a, b }
        };
        self.tasks.push(remember.boxed());
    }

    async fn revoke(&mut self, draws: &mut Draws, count: usize) {
        for place in self.victims(draws, count) {
            let Some(first) = self.sites[0].node().filter(|_| place != 0).cloned() else {
                continue;
            };
            let name = self.sites[place].name.clone();
            let revoked = first.handle().act(move |fabric, now| fabric.revoke(now, &name));
            if matches!(revoked.await, Ok(Ok(_))) {
                self.members.remove(&place);
                self.revoked.insert(place);
            }
        }
    }

    async fn end_fault(&mut self, number: usize, victims: &[PeerIndex]) -> Result<(), RealError> {
        self.recorder.note_end(number, self.passed());
        let places = victims.iter().copied().map(place_of);
        match self.scenario.faults.get(number) {
            Some(Fault::Partition { .. }) => self.network.heal(number),
            Some(Fault::Crash { .. } | Fault::Churn { .. }) => {
                for place in places {
                    self.revive(place).await?;
                }
            }
            Some(Fault::Slow { .. }) => places.for_each(|place| self.sites[place].lag.set(Duration::ZERO)),
            Some(Fault::Clock { .. }) => places.for_each(|place| self.sites[place].clock.set(0)),
            Some(Fault::Disconnect { .. } | Fault::Revoke { .. } | Fault::CrashMidway { .. }) | None => {}
        }
        Ok(())
    }

    /// Starts a crashed peer again; its journal says what it was sending.
    async fn revive(&mut self, place: usize) -> Result<(), RealError> {
        if !self.down.remove(&place) {
            return Ok(());
        }
        // The old process may still say goodbye until it has ended.
        self.sites[place].settle().await;
        self.network.set_dead(place, false);
        self.start(place).await
    }

    fn send(&mut self, load: usize, number: usize, tries: u32) {
        let members: Vec<usize> = self.members.iter().copied().collect();
        let mut draws = transfer_draws(self.seed, load, number);
        // In virtual time these are the transfer's id.
        let _id = [draws.u64(), draws.u64()];
        let from = members[draws.index(members.len())];
        let to_one = matches!(
            self.scenario.loads.get(load),
            Some(Load::Transfers { to_one: true, .. })
        );
        let drawn = draws.index(members.len());
        let drawn = if to_one { members.len() / 2 } else { drawn };
        // Nobody sends to itself: then the next one is meant.
        let to = if members[drawn] == from {
            members[(drawn + 1) % members.len()]
        } else {
            members[drawn]
        };
        if from == to || self.sites[from].node().is_none() {
            // The members, and who runs, have changed by the next time.
            if tries < SEND_TRIES {
                let again = Moment(0).after(self.passed()).after(SEND_AGAIN);
                let tries = tries + 1;
                self.plan.add(again, Deed::Send { load, number, tries });
            }
            return;
        }
        match self.scenario.loads.get(load) {
            Some(Load::Transfers { size, .. }) => {
                let order = Order {
                    from,
                    to,
                    name: format!("t{load}-{number}"),
                    bytes: usize::try_from(size.0).unwrap_or(usize::MAX),
                    seed: self.seed.0,
                    wait: SEND_AGAIN * SEND_TRIES,
                    timeout: self.time_left().min(GIVES_UP),
                };
                if let Some(task) = self.ledger.send(order, &self.bed, &self.sites) {
                    self.tasks.push(task.map(Done::Begun).boxed());
                }
            }
            Some(Load::Messages { .. }) => self.ask(number, from, to),
            Some(Load::Crowd { .. } | Load::Strangers { .. } | Load::Guests { .. } | Load::Twins { .. })
            | None => {}
        }
    }

    fn ask(&mut self, number: usize, from: usize, to: usize) {
        let Some(node) = self.sites[from].node().cloned() else {
            return;
        };
        let mut data = vec![0; MESSAGE_BYTES];
        blake3::Hasher::new()
            .update(&(number as u64).to_be_bytes())
            .finalize_xof()
            .fill(&mut data);
        let digest = blake3::hash(&data);
        let request = DataRequest {
            source: self.sites[from].name.clone(),
            destination: self.sites[to].name.clone(),
            data_type: DataType::Generic,
            priority: PacketPriority::Medium,
            metadata: Vec::new(),
            data: Bytes::from(data),
        };
        self.ledger.ask();
        let begun = tokio::time::Instant::now();
        let task = async move {
            let answer = tokio::time::timeout(PATIENCE, node.request(request, PROMPT_BYTES_MAX, LOOK_FOR));
            let end = match answer.await {
                Ok(Ok(answer)) if *answer == digest.as_bytes()[..] => {
                    End::Arrived(begun.elapsed().as_secs_f64() * 1e3)
                }
                Ok(Ok(_)) => End::Damaged,
                Ok(Err(error)) => End::Failed(error.to_string()),
                Err(_) => End::Failed(format!("no answer within {PATIENCE:?}")),
            };
            Done::Answered { begun, end }
        };
        self.tasks.push(task.boxed());
    }

    /// Mends whatever has failed.
    pub(super) async fn mend(&mut self) -> Result<(), RealError> {
        for deed in self.plan.take_ends() {
            self.carry_out(deed).await?;
        }
        self.network.mend();
        for place in self.down.clone() {
            self.revive(place).await?;
        }
        Ok(())
    }
}

fn not_started(place: usize, error: StartFailed) -> RealError {
    match error {
        StartFailed::Lab(error) => RealError::Lab(error),
        StartFailed::Node(source) => RealError::Start { peer: place, source },
        StartFailed::Ended => RealError::Ended(place),
    }
}
