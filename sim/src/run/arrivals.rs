//! Who comes: members by hand and by ticket, strangers, guests and twins.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperfabric_protocol::cert::CLOCK_SKEW_MAX;
use hyperfabric_protocol::{NodeId, UnixMillis};

use super::plan::victim_draws;
use super::{Asked, Run};
use crate::scale::{name_of, register};
use crate::world::{Disk, PeerIndex, PeerOptions};

const MESH: &str = "lab";
const STRANGE_MESH: &str = "elsewhere";
/// How long certificates and tickets count.
pub(crate) const VALID: Duration = Duration::from_secs(90 * 24 * 3600);
/// How many peers a newcomer knows at most: what a person would write into a configuration.
pub(crate) const CONTACTS: usize = 4;
/// How much earlier than now the older one of two certificates for a name was made.
const TWIN_AGE: Duration = Duration::from_secs(3600);

impl Run {
    /// Makes the mesh's first peer.
    pub(super) fn found(&mut self) {
        let first = self.world.add_admitter(MESH, name_of(0).as_str());
        register(&mut self.world, first, &name_of(0));
        self.members.insert(first);
        self.ask(Asked::Member(first));
    }

    pub(super) fn start_peer(&mut self, ticket: bool) {
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
        let wall = self.world.now().wall;
        let disk = self.disk_of(MESH, name.clone(), contacts, wall, VALID);
        let peer = self.world.add_peer(disk, self.options());
        register(&mut self.world, peer, &name);
        self.members.insert(peer);
        self.ask(Asked::Member(peer));
    }

    fn options(&self) -> PeerOptions {
        let max = self.scenario.connections_max;
        max.map_or_else(PeerOptions::default, PeerOptions::with_connections)
    }

    /// Returns the name that a peer was granted.
    pub(super) fn name(&self, peer: PeerIndex) -> NodeId {
        name_of(self.twins.get(&peer).unwrap_or(&peer).0)
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

    fn disk_of(
        &mut self,
        mesh: &str,
        name: NodeId,
        contacts: Vec<PeerIndex>,
        issued: UnixMillis,
        valid: Duration,
    ) -> Disk {
        let (root, membership) = self.world.certify_next_at(mesh, name, issued, valid);
        let known = |peer: PeerIndex| (self.world.peer_id(peer), vec![self.world.address(peer)]);
        Disk {
            root: Some(root),
            membership: Some(membership),
            issuers: contacts.into_iter().map(known).collect::<BTreeMap<_, _>>(),
            ..Disk::default()
        }
    }

    pub(super) fn start_stranger(&mut self) {
        let name = name_of(self.world.len());
        let wall = self.world.now().wall;
        let disk = self.disk_of(STRANGE_MESH, name.clone(), vec![PeerIndex(0)], wall, VALID);
        let peer = self.world.add_peer(disk, self.options());
        self.ask(Asked::Stranger(peer));
        register(&mut self.world, peer, &name);
    }

    /// Starts a member whose certificate is old, and counts for so long still.
    pub(super) fn start_guest(&mut self, stay: Duration) {
        let number = self.world.len();
        let name = name_of(number);
        let wall = self.world.now().wall;
        let until = wall.after(stay);
        let issued = wall.before(VALID);
        // Clocks may differ by as much as is tolerated beyond the end.
        let valid = until.before(CLOCK_SKEW_MAX).since(issued);
        let contacts = self.contacts(PeerIndex(number));
        let disk = self.disk_of(MESH, name.clone(), contacts, issued, valid);
        let peer = self.world.add_peer(disk, self.options());
        self.ask(Asked::Guest { peer, until });
        register(&mut self.world, peer, &name);
    }

    /// Starts a member under the name of another one, with a certificate that is older or younger than that one's.
    pub(super) fn start_twin(&mut self, draw: u64) {
        let mut draws = victim_draws(self.seed, draw);
        let first = PeerIndex(0);
        let taken = |of: &PeerIndex| *of != first && !self.twins.iter().any(|(a, b)| a == of || b == of);
        let pool: Vec<PeerIndex> = self.members.iter().copied().filter(taken).collect();
        let Some(of) = pool.get(draws.index(pool.len())).copied() else {
            return;
        };
        let older = draws.below(2) == 0;
        let number = self.world.len();
        let wall = self.world.now().wall;
        let issued = if older { wall.before(TWIN_AGE) } else { wall };
        let contacts = self.contacts(PeerIndex(number));
        let disk = self.disk_of(MESH, name_of(of.0), contacts, issued, VALID);
        let peer = self.world.add_peer(disk, self.options());
        self.twins.insert(peer, of);
        register(&mut self.world, peer, &name_of(of.0));
        self.members.insert(peer);
        self.ask(Asked::Member(peer));
        self.ask(Asked::Twin { peer, of, older });
    }

    pub(super) fn joined(&mut self, peer: PeerIndex) {
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

    pub(super) fn join_again(&mut self, peer: PeerIndex) {
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
}
