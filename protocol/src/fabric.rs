//! The fabric peer: one state machine made of smaller ones.
//!
//! [`Fabric`] routes inputs to the machine that they concern and lets the machines hear of each other:
//! connections ([`crate::neighbors`]) carry floods ([`crate::flood`]), whose records fill the directory
//! ([`crate::directory`]), which teaches the neighbors whom to dial; admission ([`crate::admission`]) decides who
//! may be here at all; transfers ([`crate::transfer`]) run over connections. It holds no policy of its own
//! beyond that order.
//!
//! Whoever drives it (`hyperfabric_mesh::driver` on real wires, `hyperfabric_sim::world` in virtual time) feeds it
//! [`Input`]s and carries out its [`Transmit`]s and [`Job`]s.

mod io;
mod local;
mod settle;
mod sizes;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

pub use io::{
    Event, FabricConfig, Input, Job, JobResult, Misbehaved, Purpose, RECORD_LIFETIME, RECORD_REFRESH,
    Transmit,
};
pub use local::{RegisterError, RevokeError, SendError};
pub use sizes::Sizes;

use crate::admission::Admission;
use crate::cert::{CertificateError, Member, Membership};
use crate::directory::Directory;
use crate::flood::{self, Content, Flood};
use crate::frame::{Abort, Frame, Goodbye, OfferFrame};
use crate::neighbors::{self, CloseReason, Neighbors, NeighborsConfig};
use crate::random::Random;
use crate::sharing::Sharing;
use crate::sign::SigningKey;
use crate::transfer::{self, Fault, Transfers};
use crate::types::NodeSignature;
use crate::{Address, ConnId, Instant, Now, PeerId};

/// How often ends of memberships and renewals are looked at.
const TICK: Duration = Duration::from_secs(2);
/// A wall clock that was set by more than this makes a peer publish its record anew: with a date from the future, or
/// one long past, nobody has taken it. [DIR-4]
const CLOCK_STEP: Duration = Duration::from_secs(60);

/// A connection as the fabric knows it.
#[derive(Clone, Debug)]
struct Conn {
    peer: PeerId,
    purpose: Purpose,
    dialled: bool,
    member: Option<Member>,
    /// Whether its first frame has arrived: Hello, or on a join connection the request.
    greeted: bool,
}

impl Conn {
    const fn new(peer: PeerId, purpose: Purpose, dialled: bool) -> Self {
        Self {
            peer,
            purpose,
            dialled,
            member: None,
            greeted: false,
        }
    }
}

/// A peer of the fabric.
#[derive(Debug)]
pub struct Fabric {
    key: SigningKey,
    local: PeerId,
    agent: alloc::string::String,
    bootstrap: bool,
    addresses: Vec<Address>,
    nodes: Vec<NodeSignature>,
    neighbors: Neighbors,
    flood: Flood,
    directory: Directory,
    admission: Admission,
    transfers: Transfers,
    conns: BTreeMap<ConnId, Conn>,
    /// The connection that frames for a peer go out on.
    up: BTreeMap<PeerId, ConnId>,
    refresh_at: Option<Instant>,
    tick_at: Instant,
    /// Both clocks at the last look at them.
    clocks: Now,
    /// This peer's certificate, when it did not count at the start: a host's clock may be wrong until its network is up.
    dormant: Option<Membership>,
    sharing: Option<Sharing>,
    random: Random,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    jobs: VecDeque<Job>,
}

impl Fabric {
    /// Starts a peer with what its store has.
    #[must_use]
    pub fn new(now: Now, config: FabricConfig) -> Self {
        Self::with_sharing(now, config, None)
    }

    /// Starts a peer that shares its database with the others of its process.
    #[must_use]
    pub fn with_sharing(now: Now, config: FabricConfig, sharing: Option<&Sharing>) -> Self {
        let mut random = Random::from_seed(config.seed);
        let local = config.key.peer_id();
        let stored = config.membership;
        let own = stored.as_ref().and_then(|membership| {
            let root = config.root.as_ref()?;
            let member = Membership::verify(&membership.to_bytes(), root, &local, now.wall).ok()?;
            Some((membership.clone(), member))
        });
        let neighbors = NeighborsConfig {
            local,
            incarnation: config.incarnation,
            agent: config.agent.clone(),
            degree_min: config.degree_min,
            degree_max: config.degree_max,
            connections_max: config.connections_max,
            bootstrap: config.bootstrap,
        };
        let mut this = Self {
            dormant: stored.filter(|_| own.is_none()),
            local,
            agent: config.agent,
            bootstrap: config.bootstrap,
            addresses: Vec::new(),
            nodes: Vec::new(),
            neighbors: Neighbors::new(neighbors, Random::from_seed(random.bytes())),
            flood: Flood::with_sharing(local, Random::from_seed(random.bytes()), sharing),
            directory: Directory::with_sharing(local, sharing),
            admission: Admission::new(
                config.key.clone(),
                config.root,
                own,
                config.admitter,
                config.tickets,
                config.grants,
                Random::from_seed(random.bytes()),
            ),
            transfers: Transfers::new(Random::from_seed(random.bytes())).with_limit(config.transfers_max),
            conns: BTreeMap::new(),
            up: BTreeMap::new(),
            refresh_at: None,
            tick_at: now.mono,
            clocks: now,
            key: config.key,
            sharing: sharing.cloned(),
            random,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            jobs: VecDeque::new(),
        };
        this.restore_revocations(now, config.revocations);
        this.settle(now);
        this
    }

    fn restore_revocations(&mut self, now: Now, items: Vec<crate::Signed>) {
        let Some(root) = self.admission.root().cloned() else {
            return;
        };
        for signed in items {
            if let Ok(Content::Revocation(revocation)) = flood::content::check(&signed, &root, now.wall) {
                self.admission.handle_revocation(now, (*revocation).clone());
                self.flood.restore(now, signed);
            }
        }
    }

    /// Returns who this peer is.
    #[must_use]
    pub const fn peer_id(&self) -> PeerId {
        self.local
    }

    /// Returns the directory.
    #[must_use]
    pub const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Returns the admission machine.
    #[must_use]
    pub const fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Returns the transfer machine.
    #[must_use]
    pub const fn transfers(&self) -> &Transfers {
        &self.transfers
    }

    /// Returns the flood database.
    #[must_use]
    pub const fn flood(&self) -> &Flood {
        &self.flood
    }

    /// Returns the connection machine.
    #[must_use]
    pub const fn neighbors(&self) -> &Neighbors {
        &self.neighbors
    }

    /// Returns the peers with a prompt connection, and that connection.
    pub fn connected(&self) -> impl Iterator<Item = (PeerId, ConnId)> {
        self.up.iter().map(|(peer, conn)| (*peer, *conn))
    }

    /// Returns the connection to a peer, when there is one.
    #[must_use]
    pub fn connection(&self, peer: &PeerId) -> Option<ConnId> {
        self.up.get(peer).copied()
    }

    /// Takes something that happened.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        match input {
            Input::Connected {
                conn,
                peer,
                purpose,
                dialled,
                address,
                membership,
            } => {
                let state = Conn::new(peer, purpose, dialled);
                self.handle_connected(now, conn, state, address, membership);
            }
            Input::Disconnected { conn, reason } => self.handle_disconnected(now, conn, reason),
            Input::DialFailed {
                peer,
                purpose,
                permanent,
            } => self.handle_dial_failed(now, peer, purpose, permanent),
            Input::RevokedBy { peer } => self.transfers_input(now, transfer::Input::PeerRevoked { peer }),
            Input::Frame { conn, bytes } => self.handle_bytes(now, conn, &bytes),
            Input::Decoded { conn, frame } => self.handle_frame(now, conn, Some(frame)),
            Input::Addresses(addresses) => self.handle_addresses(now, addresses),
            Input::Found(signed) => self.handle_found(now, signed),
            Input::PayloadSent {
                transfer,
                attempt,
                root,
            } => {
                self.transfers_input(
                    now,
                    transfer::Input::PayloadSent {
                        transfer,
                        attempt,
                        root,
                    },
                );
            }
            Input::PayloadFailed {
                peer,
                transfer,
                role,
                attempt,
                fault,
            } => {
                self.transfers_input(
                    now,
                    transfer::Input::PayloadFailed {
                        peer,
                        transfer,
                        role,
                        attempt,
                        fault,
                    },
                );
            }
            Input::ChunksDurable { peer, transfer, have } => {
                self.transfers_input(now, transfer::Input::ChunksDurable { peer, transfer, have });
            }
            Input::Violation {
                peer,
                purpose,
                violation,
            } => self.blame(now, peer, purpose, violation),
            Input::JobDone(result) => self.handle_job(now, result),
        }
        self.settle(now);
    }

    fn handle_dial_failed(&mut self, now: Now, peer: PeerId, purpose: Purpose, permanent: bool) {
        match purpose {
            Purpose::Prompt => self.neighbors_input(now, neighbors::Input::DialFailed { peer, permanent }),
            Purpose::Join => self.events.push_back(Event::JoinUnreachable),
        }
    }

    fn handle_bytes(&mut self, now: Now, conn: ConnId, bytes: &[u8]) {
        match Frame::from_bytes(bytes) {
            Ok(frame) => self.handle_frame(now, conn, frame),
            Err(error) => self.refuse_frame(now, conn, Misbehaved::Frame(error)),
        }
    }

    fn handle_addresses(&mut self, now: Now, addresses: Vec<Address>) {
        if self.addresses != addresses {
            self.addresses = addresses;
            self.publish_record(now);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.neighbors.handle_timeout(now);
        self.flood.handle_timeout(now);
        self.transfers.handle_timeout(now);
        if self.refresh_at.is_some_and(|at| at <= now.mono) {
            self.publish_record(now);
        }
        if self.tick_at <= now.mono {
            self.tick_at = now.mono.after(TICK);
            self.tick(now);
        }
        self.settle(now);
    }

    /// Tells whether the wall clock was set since the last look.
    fn clock_was_set(&mut self, now: Now) -> bool {
        let before = core::mem::replace(&mut self.clocks, now);
        let expected = before.wall.after(now.mono.since(before.mono));
        expected.0.abs_diff(now.wall.0) > u64::try_from(CLOCK_STEP.as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes up the certificate that did not count at the start, once it does.
    fn wake_membership(&mut self, now: Now) {
        let Some((membership, root)) = self.dormant.take().zip(self.admission.root()) else {
            return;
        };
        match Membership::verify(&membership.to_bytes(), root, &self.local, now.wall) {
            // Another one has come meanwhile.
            _ if self.admission.own().is_some() => {}
            Ok(member) => {
                self.admission.restore_own(membership, member.clone());
                self.publish_record(now);
                self.events.push_back(Event::Joined(member));
            }
            Err(_) => self.dormant = Some(membership),
        }
    }

    fn tick(&mut self, now: Now) {
        self.wake_membership(now);
        if self.clock_was_set(now) {
            self.publish_record(now);
            self.flood.handle_clock_set(now, &self.key);
        }
        let skew = crate::cert::CLOCK_SKEW_MAX;
        let ended: Vec<PeerId> = self
            .conns
            .values()
            .filter(|c| {
                c.member
                    .as_ref()
                    .is_some_and(|m| now.wall.before(skew) > m.not_after)
            })
            .map(|c| c.peer)
            .collect();
        self.admission.renew_own(now);
        for peer in ended {
            self.events.push_back(Event::Expired { peer });
            self.neighbors_input(now, neighbors::Input::Remove { peer });
        }
        let links: Vec<(PeerId, ConnId)> = self.connected().collect();
        for (peer, conn) in links {
            self.admission.renew_if_due(now, conn, peer);
        }
    }

    fn handle_connected(
        &mut self,
        now: Now,
        conn: ConnId,
        mut state: Conn,
        address: Option<Address>,
        membership: Option<Arc<[u8]>>,
    ) {
        let (peer, purpose, dialled) = (state.peer, state.purpose, state.dialled);
        if purpose == Purpose::Join {
            self.conns.insert(conn, state);
            self.admission.handle_join_connection(conn, peer, dialled);
            return;
        }
        // The handshake has checked this already, against the same facts; a revocation may have come since.
        match self.verify_member(now, peer, membership.as_deref()) {
            Ok(member) => {
                state.member = Some(member);
                self.conns.insert(conn, state);
                self.neighbors_input(
                    now,
                    neighbors::Input::Connected {
                        conn,
                        peer,
                        dialled,
                        address,
                    },
                );
            }
            Err(error) => {
                self.events.push_back(Event::Refused { peer, error });
                self.transmits.push_back(Transmit::Close {
                    conn,
                    reason: CloseReason::Revoked,
                });
            }
        }
    }

    /// Checks a membership shown by a peer against the mesh and the revocations known now.
    ///
    /// # Errors
    /// [`CertificateError`] says why the peer may not be here.
    pub fn verify_member(
        &self,
        now: Now,
        peer: PeerId,
        shown: Option<&[u8]>,
    ) -> Result<Member, CertificateError> {
        let root = self.admission.root().ok_or(CertificateError::NotAMember)?;
        let shown = shown.ok_or(CertificateError::NotAMember)?;
        // What the directory has was verified when it came; only its end may have passed since.
        let known = self.directory.record(&peer).filter(|record| {
            record.body.membership.to_bytes() == shown
                && now.wall.before(crate::cert::CLOCK_SKEW_MAX) <= record.member.not_after
        });
        let member = match known {
            Some(record) => record.member.clone(),
            None => match &self.sharing {
                Some(sharing) => sharing.verify(shown, root, &peer, now.wall)?,
                None => Membership::verify(shown, root, &peer, now.wall)?,
            },
        };
        if self.admission.is_revoked(&member.serial) {
            Err(CertificateError::Revoked)
        } else {
            Ok(member)
        }
    }

    fn handle_disconnected(&mut self, now: Now, conn: ConnId, reason: Option<CloseReason>) {
        let Some(state) = self.conns.remove(&conn) else {
            return;
        };
        match state.purpose {
            Purpose::Prompt => {
                // What was sent before the close is lost with it: the reason alone tells this peer that the other
                // side has ended its transfers for good.
                if reason == Some(CloseReason::Revoked) {
                    self.transfers_input(now, transfer::Input::PeerRevoked { peer: state.peer });
                }
                self.neighbors_input(now, neighbors::Input::Disconnected { conn, reason });
            }
            Purpose::Join if state.dialled => self.events.push_back(Event::JoinEnded),
            Purpose::Join => {}
        }
    }

    /// Forgets a connection that the other side has left, and leaves it as well. [CONN-9]
    fn handle_goodbye(&mut self, now: Now, conn: ConnId, goodbye: &Goodbye) {
        let reason = goodbye.reason();
        self.handle_disconnected(now, conn, reason);
        self.transmits.push_back(Transmit::Close {
            conn,
            reason: reason.unwrap_or(CloseReason::Idle),
        });
    }

    /// Takes a frame; `None` is one of a kind that may be skipped.
    fn handle_frame(&mut self, now: Now, conn: ConnId, frame: Option<Frame>) {
        let Some(state) = self.conns.get(&conn) else {
            return;
        };
        // What was read before its connections were closed does not count any more.
        if state.purpose == Purpose::Prompt && self.neighbors.is_banned(&state.peer) {
            return;
        }
        let outcome = match frame {
            // By far the most frequent frame, and the only one for which a copy of the state would count.
            Some(Frame::Items(items)) if state.greeted && state.purpose == Purpose::Prompt => self
                .flood
                .handle_items(now, conn, state.peer, &items)
                .map_err(Misbehaved::Flood),
            Some(frame) => {
                let state = state.clone();
                self.route_frame(now, conn, &state, frame)
            }
            None if state.greeted || state.purpose == Purpose::Join => Ok(()),
            None => Err(Misbehaved::OutOfOrder),
        };
        if let Err(violation) = outcome {
            self.refuse_frame(now, conn, violation);
        }
    }

    fn refuse_frame(&mut self, now: Now, conn: ConnId, violation: Misbehaved) {
        let Some(state) = self.conns.get(&conn) else {
            return;
        };
        let (peer, purpose, dialled) = (state.peer, state.purpose, state.dialled);
        match purpose {
            Purpose::Prompt if self.neighbors.is_banned(&peer) => {}
            Purpose::Prompt => self.misbehaved(now, peer, violation),
            Purpose::Join => {
                // The end of the one that this peer dialled is still to be heard of.
                if !dialled {
                    self.conns.remove(&conn);
                }
                self.blame(now, peer, Purpose::Join, violation);
                self.transmits.push_back(Transmit::Close {
                    conn,
                    reason: CloseReason::Violation,
                });
            }
        }
    }

    // [FRAME-3]
    fn route_frame(&mut self, now: Now, conn: ConnId, state: &Conn, frame: Frame) -> Result<(), Misbehaved> {
        let peer = state.peer;
        let joining = state.purpose == Purpose::Join;
        // [CONN-1] Hello comes first, and once.
        if !joining && state.greeted == matches!(frame, Frame::Hello(_)) {
            return Err(Misbehaved::OutOfOrder);
        }
        match frame {
            Frame::JoinRequest(request) if joining && !state.dialled => {
                // [JOIN-1] Each request costs a write to the disk.
                if state.greeted {
                    return Err(Misbehaved::JoinRepeated);
                }
                if let Some(conn) = self.conns.get_mut(&conn) {
                    conn.greeted = true;
                }
                let holder = self.directory.name_holder(&request.name, &peer);
                let holder = holder.filter(|h| self.holds_name(h));
                self.admission
                    .handle_join_request(now, conn, peer, &request, holder);
            }
            Frame::JoinReply(reply) if joining && state.dialled => {
                self.admission.handle_join_reply(now, peer, reply);
            }
            Frame::Hello(hello) if !joining => {
                if let Some(conn) = self.conns.get_mut(&conn) {
                    conn.greeted = true;
                }
                self.neighbors_input(now, neighbors::Input::Hello { conn, hello });
            }
            Frame::Summary(summary) if !joining => self.flood.handle_summary(now, conn, &summary),
            Frame::Forwarding(forwarding) if !joining => self.flood.handle_forwarding(conn, &forwarding),
            Frame::Digest(digest) if !joining => self.flood.handle_digest(now, conn, &digest),
            Frame::Items(items) if !joining => {
                self.flood
                    .handle_items(now, conn, peer, &items)
                    .map_err(Misbehaved::Flood)?;
            }
            Frame::Goodbye(goodbye) if !joining => self.handle_goodbye(now, conn, &goodbye),
            Frame::RenewRequest(request) if !joining => {
                self.admission.handle_renew_request(now, conn, peer, &request);
            }
            Frame::RenewReply(reply) if !joining => self.admission.handle_renew_reply(now, peer, reply),
            Frame::Offer(offer) if !joining => self.handle_offer(now, state, offer)?,
            Frame::Accept(_)
            | Frame::Progress(_)
            | Frame::Finish(_)
            | Frame::Delivered(_)
            | Frame::Abort(_)
                if !joining =>
            {
                self.transfers
                    .handle_input(now, transfer::Input::Frame { peer, frame })
                    .map_err(Misbehaved::Transfer)?;
            }
            Frame::JoinRequest(_)
            | Frame::JoinReply(_)
            | Frame::Hello(_)
            | Frame::Summary(_)
            | Frame::Digest(_)
            | Frame::Forwarding(_)
            | Frame::Items(_)
            | Frame::Goodbye(_)
            | Frame::RenewRequest(_)
            | Frame::RenewReply(_)
            | Frame::Offer(_)
            | Frame::Accept(_)
            | Frame::Progress(_)
            | Frame::Finish(_)
            | Frame::Delivered(_)
            | Frame::Abort(_) => return Err(Misbehaved::OutOfPlace),
        }
        Ok(())
    }

    fn handle_offer(&mut self, now: Now, state: &Conn, offer: OfferFrame) -> Result<(), Misbehaved> {
        let peer = state.peer;
        // [XFER-14] Nobody sends in another's name.
        if state
            .member
            .as_ref()
            .is_none_or(|m| !offer.offer.source.is_within(&m.name))
        {
            return Err(Misbehaved::ForeignSource);
        }
        if !self.nodes.iter().any(|n| n.node_id == offer.offer.destination) {
            let abort = Abort {
                transfer: offer.transfer,
                fault: Fault::NoSuchNode,
                detail: None,
            };
            if let Some(conn) = self.up.get(&peer) {
                self.transmits.push_back(Transmit::Frame {
                    conn: *conn,
                    frame: Frame::Abort(abort),
                });
            }
            return Ok(());
        }
        let frame = Frame::Offer(offer);
        self.transfers
            .handle_input(now, transfer::Input::Frame { peer, frame })
            .map_err(Misbehaved::Transfer)
    }

    fn holds_name(&self, peer: &PeerId) -> bool {
        self.directory
            .member(peer)
            .is_some_and(|m| !self.admission.is_revoked(&m.serial))
    }

    /// Takes an item that was found elsewhere than on a link (a Kademlia record, a gossip message).
    fn handle_found(&mut self, now: Now, signed: crate::Signed) {
        // Nobody to blame: a violation is only an item not taken.
        let Ok(version) = flood::Version::read(signed) else {
            return;
        };
        let items = crate::frame::Items::new(crate::cbor::List(alloc::vec![version]));
        let nobody = ConnId(u64::MAX);
        let _taken = self.flood.handle_items(now, nobody, self.local, &items);
    }

    fn handle_job(&mut self, now: Now, result: JobResult) {
        match result {
            JobResult::Checked(checked) => {
                for item in checked {
                    if let Err((conn, violation)) = self.flood.handle_checked(now, item)
                        && let Some(peer) = self.conns.get(&conn).map(|c| c.peer)
                    {
                        self.misbehaved(now, peer, Misbehaved::Flood(violation));
                    }
                }
            }
            JobResult::Persisted { id, ok } => self.admission.handle_persisted(id, ok),
            JobResult::Transfer(result) => self.transfers_input(now, transfer::Input::JobDone(result)),
        }
    }

    fn blame(&mut self, now: Now, peer: PeerId, purpose: Purpose, violation: Misbehaved) {
        match purpose {
            Purpose::Prompt => self.misbehaved(now, peer, violation),
            Purpose::Join => self.events.push_back(Event::JoinMisbehaved { peer, violation }),
        }
    }

    /// Cuts a peer off that has broken the protocol. [FRAME-5]
    fn misbehaved(&mut self, now: Now, peer: PeerId, violation: Misbehaved) {
        // Each of its streams may report the same: once is enough for the log.
        if self.neighbors.is_banned(&peer) {
            return;
        }
        self.events.push_back(Event::Misbehaved { peer, violation });
        self.neighbors_input(
            now,
            neighbors::Input::Ban {
                peer,
                reason: CloseReason::Violation,
            },
        );
    }

    fn neighbors_input(&mut self, now: Now, input: neighbors::Input) {
        self.neighbors.handle_input(now, input);
    }

    fn transfers_input(&mut self, now: Now, input: transfer::Input) {
        // Only frames can violate the protocol; these inputs are local.
        if let Err(violation) = self.transfers.handle_input(now, input) {
            debug_assert!(false, "a local input was refused: {violation}");
        }
    }

    /// Returns the next thing to do on the network.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the next piece of heavy or durable work.
    pub fn poll_job(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.neighbors.poll_timeout(),
            self.flood.poll_timeout(),
            self.transfers.poll_timeout(),
            self.refresh_at,
        ]
        .into_iter()
        .flatten()
        .chain([self.tick_at])
        .min()
    }
}

#[cfg(test)]
mod tests;
