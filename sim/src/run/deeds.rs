//! How what is planned is done to the world.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperfabric_protocol::cbor::Text;
use hyperfabric_protocol::transfer::{Offer, PayloadKind};
use hyperfabric_protocol::types::{DataType, PacketPriority};
use hyperfabric_protocol::{Instant, NodeId, TransferId};

use super::plan::{Deed, transfer_draws, victim_draws};
use super::{Asked, DEADLINE, Run, Sent};
use crate::scale::{name_of, register};
use crate::scenario::{Fault, Load, Scenario, Way};
use crate::seed::Draws;
use crate::world::{Direction, Disk, PeerIndex, PeerOptions};

const MESH: &str = "lab";
const STRANGE_MESH: &str = "elsewhere";
/// How long certificates and tickets count.
pub(crate) const VALID: Duration = Duration::from_secs(90 * 24 * 3600);
/// How many peers a newcomer knows at most: what a person would write into a configuration.
pub(crate) const CONTACTS: usize = 4;
/// How often a user tries to send to a node that is not known yet, and with what pause.
pub(crate) const SEND_TRIES: u32 = 30;
pub(crate) const SEND_AGAIN: Duration = Duration::from_secs(2);

impl Scenario {
    /// Returns how many peers a run of it has, those that come later included.
    #[must_use]
    pub fn peers_in_all(&self) -> usize {
        let later = |load: &Load| match load {
            Load::Crowd { peers, .. } | Load::Strangers { peers, .. } => *peers,
            Load::Transfers { .. } | Load::Messages { .. } => 0,
        };
        self.peers + self.loads.iter().map(later).sum::<usize>()
    }
}

impl Run {
    /// Makes the mesh's first peer.
    pub(super) fn found(&mut self) {
        let first = self.world.add_admitter(MESH, name_of(0).as_str());
        register(&mut self.world, first, &name_of(0));
        self.members.insert(first);
        self.ask(Asked::Member(first));
    }

    pub(super) fn carry_out(&mut self, deed: Deed) {
        match deed {
            Deed::Start { ticket } => self.start_peer(ticket),
            Deed::Stranger => self.start_stranger(),
            Deed::Joined(peer) => self.joined(peer),
            Deed::JoinAgain(peer) => self.join_again(peer),
            Deed::Begin { fault, draw } => self.begin(fault, draw),
            Deed::End { fault, victims } => self.end_fault(fault, &victims),
            Deed::Send { load, number, tries } => self.send(load, number, tries),
        }
    }

    fn start_peer(&mut self, ticket: bool) {
        let number = self.world.len();
        let name = name_of(number);
        let first = PeerIndex(0);
        let by_ticket = ticket && self.topology.reach.dials(number, 0) && self.world.running(first).is_some();
        if by_ticket {
            let (address, asked) = (self.world.address(first), name);
            let issued = self
                .world
                .act(first, |f, now| f.invite(now, asked, VALID, 1, vec![address]));
            let peer = self.world.add();
            if let Ok((ticket, _)) = issued {
                self.joining.insert(peer, ticket.clone());
                self.world.act(peer, |f, now| f.join(now, ticket));
            }
            return;
        }
        let contacts = self.contacts(PeerIndex(number));
        let disk = self.disk_of(MESH, name.clone(), contacts);
        let peer = self.world.add_peer(disk, PeerOptions::default());
        register(&mut self.world, peer, &name);
        self.members.insert(peer);
        self.ask(Asked::Member(peer));
    }

    /// Returns whom a peer knows first: members that it can dial.
    fn contacts(&self, peer: PeerIndex) -> Vec<PeerIndex> {
        let dials = |other: &PeerIndex| self.topology.reach.dials(peer.0, other.0);
        self.members
            .iter()
            .copied()
            .filter(dials)
            .take(CONTACTS)
            .collect()
    }

    fn disk_of(&mut self, mesh: &str, name: NodeId, contacts: Vec<PeerIndex>) -> Disk {
        let (root, membership) = self.world.certify_next(mesh, name, VALID);
        let known = |peer: PeerIndex| (self.world.peer_id(peer), vec![self.world.address(peer)]);
        Disk {
            root: Some(root),
            membership: Some(membership),
            issuers: contacts.into_iter().map(known).collect::<BTreeMap<_, _>>(),
            ..Disk::default()
        }
    }

    fn start_stranger(&mut self) {
        let name = name_of(self.world.len());
        let disk = self.disk_of(STRANGE_MESH, name.clone(), vec![PeerIndex(0)]);
        let peer = self.world.add_peer(disk, PeerOptions::default());
        self.ask(Asked::Stranger(peer));
        register(&mut self.world, peer, &name);
    }

    fn joined(&mut self, peer: PeerIndex) {
        if self.joining.remove(&peer).is_none() {
            return;
        }
        // Joining is a process of its own; the daemon starts once it has its certificate.
        self.world.stop(peer);
        self.members.insert(peer);
        self.ask(Asked::Member(peer));
        self.world.start(peer);
        for contact in self.contacts(peer) {
            let (id, address) = (self.world.peer_id(contact), self.world.address(contact));
            self.world.add_issuer(peer, id, vec![address]);
        }
        register(&mut self.world, peer, &name_of(peer.0));
    }

    fn join_again(&mut self, peer: PeerIndex) {
        let Some(ticket) = self.joining.get(&peer).cloned() else {
            return;
        };
        let has = self.world.running(peer).map(|f| f.admission().own().is_some());
        if has == Some(false) {
            self.world.act(peer, |f, now| f.join(now, ticket));
        }
    }

    /// Those whose certificate is on disk go on.
    pub(super) fn go_on_joining(&mut self) {
        let has = |run: &Self, peer| {
            run.world
                .running(peer)
                .is_some_and(|f| f.admission().own().is_some())
        };
        let ready: Vec<PeerIndex> = self
            .joining
            .keys()
            .copied()
            .filter(|peer| has(self, *peer))
            .collect();
        for peer in ready {
            self.joined(peer);
        }
    }

    fn victims(&self, draws: &mut Draws, count: usize) -> Vec<PeerIndex> {
        let mut pool: Vec<PeerIndex> = self
            .members
            .iter()
            .copied()
            .filter(|p| !self.down.contains(p))
            .collect();
        let mut chosen = Vec::new();
        while chosen.len() < count && !pool.is_empty() {
            chosen.push(pool.swap_remove(draws.index(pool.len())));
        }
        chosen
    }

    fn begin(&mut self, number: usize, draw: u64) {
        let now = self.world.now().mono;
        let mut draws = victim_draws(self.seed, draw);
        let Some(fault) = self.scenario.faults.get(number).cloned() else {
            return;
        };
        self.note_begin(number);
        let mut lasts = fault.span().1;
        let mut victims = Vec::new();
        match &fault {
            Fault::Partition {
                share, region, way, ..
            } => {
                self.cut_off(number, share.0, region.as_deref(), *way, &mut draws);
            }
            Fault::Crash { peers, .. } => {
                victims = self.victims(&mut draws, *peers);
                victims.iter().for_each(|peer| self.crash(*peer));
            }
            Fault::Churn { gone, .. } => {
                lasts = gone.0;
                victims = self.victims(&mut draws, 1);
                victims.iter().for_each(|peer| self.crash(*peer));
            }
            Fault::Slow { peers, by, .. } => {
                victims = self.victims(&mut draws, *peers);
                victims.iter().for_each(|peer| self.world.set_slow(*peer, by.0));
            }
            Fault::Clock {
                peers, ahead, behind, ..
            } => {
                let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
                let error = ms(ahead.0) - ms(behind.0);
                victims = self.victims(&mut draws, *peers);
                victims
                    .iter()
                    .for_each(|peer| self.world.set_clock_error(*peer, error));
            }
            Fault::Disconnect { pairs, .. } => {
                for _ in 0..*pairs {
                    if let [a, b] = self.victims(&mut draws, 2)[..] {
                        self.world.disconnect(a, b);
                    }
                }
            }
            Fault::Revoke { peers, .. } => self.revoke(&mut draws, *peers),
        }
        let fault = number;
        self.plan.add(now.after(lasts), Deed::End { fault, victims });
    }

    fn cut_off(&mut self, number: usize, share_ppm: u32, region: Option<&str>, way: Way, draws: &mut Draws) {
        let region = region.and_then(|name| self.topology.region_of(name));
        let total = self.scenario.peers_in_all();
        let side: Vec<bool> = (0..total)
            .map(|peer| match region {
                Some(region) => self.topology.regions.get(peer) == Some(&region),
                None => draws.happens(share_ppm),
            })
            .collect();
        let direction = match way {
            Way::Both => Direction::Both,
            Way::Outward => Direction::Outward,
            Way::Inward => Direction::Inward,
        };
        let cut = self.world.cut(side, direction);
        self.cuts.insert(number, cut);
    }

    fn crash(&mut self, peer: PeerIndex) {
        self.world.kill(peer);
        self.down.insert(peer);
        self.ask(Asked::Crashed(peer));
    }

    fn revoke(&mut self, draws: &mut Draws, count: usize) {
        let first = PeerIndex(0);
        for peer in self.victims(draws, count) {
            if peer == first || self.world.running(first).is_none() {
                continue;
            }
            let name = name_of(peer.0);
            let revoked = self.world.act(first, |f, now| f.revoke(now, &name));
            if revoked.is_ok() {
                self.members.remove(&peer);
                self.revoked.insert(peer);
                self.ask(Asked::Revoked(peer));
            }
        }
    }

    fn end_fault(&mut self, number: usize, victims: &[PeerIndex]) {
        self.note_end(number);
        let Some(fault) = self.scenario.faults.get(number) else {
            return;
        };
        match fault {
            Fault::Partition { .. } => {
                if let Some(cut) = self.cuts.remove(&number) {
                    self.world.heal(cut);
                }
            }
            Fault::Crash { .. } | Fault::Churn { .. } => victims.iter().for_each(|peer| self.revive(*peer)),
            Fault::Slow { .. } => victims
                .iter()
                .for_each(|peer| self.world.set_slow(*peer, Duration::ZERO)),
            Fault::Clock { .. } => victims
                .iter()
                .for_each(|peer| self.world.set_clock_error(*peer, 0)),
            Fault::Disconnect { .. } | Fault::Revoke { .. } => {}
        }
    }

    /// Starts a crashed peer again; it goes on with what it was sending, as the daemon's journal does.
    fn revive(&mut self, peer: PeerIndex) {
        if !self.down.remove(&peer) {
            return;
        }
        self.world.start(peer);
        register(&mut self.world, peer, &name_of(peer.0));
        let open = |sent: &Sent| sent.from == peer && sent.over.is_none();
        let again: Vec<(TransferId, Sent)> = self
            .sent
            .iter()
            .filter(|(_, sent)| open(sent))
            .map(|(transfer, sent)| (*transfer, sent.clone()))
            .collect();
        for (transfer, sent) in again {
            self.hand_over(peer, transfer, sent.to, sent.offer, true);
        }
    }

    fn send(&mut self, load: usize, number: usize, tries: u32) {
        let Some(Load::Transfers { size, .. }) = self.scenario.loads.get(load) else {
            return;
        };
        let size = size.0;
        let mut draws = transfer_draws(self.seed, load, number);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&draws.u64().to_be_bytes());
        id[8..].copy_from_slice(&draws.u64().to_be_bytes());
        let members: Vec<PeerIndex> = self.members.iter().copied().collect();
        let (from, to) = (
            members[draws.index(members.len())],
            members[draws.index(members.len())],
        );
        let node = name_of(to.0);
        let knows = self
            .world
            .running(from)
            .is_some_and(|f| f.directory().host_of(&node).is_some());
        if from == to || !knows {
            // The members, and what they know, have changed by the next time.
            if tries < SEND_TRIES {
                let tries = tries + 1;
                let again = self.world.now().mono.after(SEND_AGAIN);
                self.plan.add(again, Deed::Send { load, number, tries });
            }
            return;
        }
        let offer = Offer {
            source: name_of(from.0),
            destination: node,
            name: Text::truncating("payload"),
            kind: PayloadKind::File,
            size,
            data_type: DataType::Generic,
            priority: PacketPriority::Medium,
            modified: None,
            mode: None,
            sync: None,
        };
        let transfer = TransferId(id);
        let sent = Sent {
            from,
            to,
            offer: offer.clone(),
            over: None,
            begun: self.world.now().mono,
            ended: None,
        };
        self.sent.insert(transfer, sent);
        self.hand_over(from, transfer, to, offer, false);
    }

    fn hand_over(
        &mut self,
        from: PeerIndex,
        transfer: TransferId,
        to: PeerIndex,
        offer: Offer,
        resumed: bool,
    ) {
        let deadline = Instant(0).after(self.scenario.lasts.0 + DEADLINE);
        let peer = self.world.peer_id(to);
        let size = offer.size;
        self.ask(Asked::Send {
            from,
            to,
            transfer,
            size,
        });
        self.world.act(from, |f, now| {
            f.send_to(now, transfer, peer, offer, Some(deadline), resumed);
        });
    }

    /// Mends whatever has failed.
    pub(super) fn mend(&mut self) {
        for deed in self.plan.take_ends() {
            self.carry_out(deed);
        }
        for peer in self.down.clone() {
            self.revive(peer);
        }
        for cut in std::mem::take(&mut self.cuts).into_values() {
            self.world.heal(cut);
        }
        for peer in std::mem::take(&mut self.joining).into_keys() {
            // Whoever has not joined by now is a process without a mesh.
            self.world.stop(peer);
        }
    }
}
