//! Admission: how a peer becomes a member, stays one, and stops being one.
//!
//! An admitter issues tickets and redeems them; a joiner shows one; members renew their certificates before these
//! run out; revocations end memberships. What must survive (a ticket's use, a grant, a revocation, an own
//! certificate) is written down before anyone is told of it: the machine hands out a [`Persist`] job and goes on
//! when that has succeeded. [JOIN-1..8]

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use crate::cbor::{self, List, Text, wire_map};
use crate::cert::{Admitter, CERTIFICATE_VALIDITY, Member, Membership, MeshRoot, RENEW_BEFORE};
use crate::flood::Revocation;
use crate::frame::{Frame, JoinRefusal, JoinReply, JoinRequest, RenewRequest};
use crate::random::Random;
use crate::sign::SigningKey;
use crate::ticket::{TICKET_ADDRESSES_MAX, Ticket, TicketBody, TicketSecret};
use crate::{Address, ConnId, Instant, MeshId, NodeId, Now, PeerId, Serial, UnixMillis};

/// The most tickets that wait to be used.
pub const TICKETS_MAX: usize = 10_000;
/// The most uses of one ticket.
pub const TICKET_USES_MAX: u32 = 1000;
/// How long after a failed renewal the next one is tried.
const RENEW_RETRY: Duration = Duration::from_secs(600);
/// A member that asks for a renewal again this soon is not answered: each answer costs a write to the disk, and whoever
/// keeps the rules waits ten times as long.
const RENEW_ANSWER_INTERVAL: Duration = Duration::from_secs(60);
/// Members whose last renewal is remembered for that; when as many have asked within the interval, the next one has to
/// ask again.
const RENEWALS_MAX: usize = 1024;
/// The most revocations remembered; each is forgotten when its certificate would have ended.
pub const REVOCATIONS_MAX: usize = 100_000;

wire_map! {
    /// A ticket as its issuer remembers it: without the secret.
    pub struct TicketRecord {
        /// Hash of the secret.
        0 => pub secret_hash: [u8; 32],
        /// The name that it grants. A ticket of several uses grants `name`, `name-2`, `name-3` …
        1 => pub name: NodeId,
        /// When it runs out.
        2 => pub expires: UnixMillis,
        /// How many peers may use it.
        3 => pub uses: u32,
        /// Who has used it.
        4 => pub used_by: List<PeerId, 1000>,
    }
}

wire_map! {
    /// A name that this admitter has granted.
    pub struct Grant {
        /// The name.
        0 => pub name: NodeId,
        /// Whose it is.
        1 => pub peer: PeerId,
        /// The certificate.
        2 => pub serial: Serial,
        /// When it ends.
        3 => pub not_after: UnixMillis,
    }
}

/// Something that must be on disk before the machine goes on.
#[derive(Clone, Debug, PartialEq)]
pub enum StateChange {
    /// A ticket was issued or used.
    Ticket(TicketRecord),
    /// A ticket is of no more use.
    TicketGone([u8; 32]),
    /// A name was granted.
    Grant(Grant),
    /// A membership was revoked, here or elsewhere; the signed item.
    Revocation {
        /// The certificate that ended.
        serial: Serial,
        /// The flooded item.
        item: crate::Signed,
    },
    /// This peer has a new certificate.
    Membership {
        /// Its mesh.
        root: MeshRoot,
        /// The certificate.
        membership: Membership,
        /// Who gave it, and where that peer can be dialled.
        issuer: Option<(PeerId, Vec<Address>)>,
    },
}

/// State changes to write down, together, and a number under which to report back.
#[derive(Clone, Debug, PartialEq)]
pub struct Persist {
    /// Names the job.
    pub id: u64,
    /// What to write.
    pub changes: Vec<StateChange>,
}

/// What others should know.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// This peer is a member now, or has a longer certificate.
    Joined(Member),
    /// This peer was refused.
    Refused(JoinRefusal),
    /// The issuer's answer does not make sense.
    BadReply,
    /// Another peer was admitted here.
    Admitted {
        /// The peer.
        peer: PeerId,
        /// Its name.
        name: NodeId,
    },
    /// Another peer was refused here.
    RefusedOther {
        /// The peer.
        peer: PeerId,
        /// Why.
        refusal: JoinRefusal,
    },
    /// Changes are on disk, or could not be written.
    Persisted {
        /// Which.
        id: u64,
        /// Whether they are.
        ok: bool,
    },
}

/// Why a ticket cannot be issued or a peer cannot be admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// This peer may not admit.
    #[error("this peer is not an admitter of a mesh: `hyperfabric mesh create` makes one")]
    NotAnAdmitter,
    /// The name is taken.
    #[error("the name {name} is taken by peer {holder}")]
    NameTaken {
        /// The name.
        name: NodeId,
        /// Whose it is.
        holder: PeerId,
    },
    /// Too many tickets wait.
    #[error("more than {TICKETS_MAX} tickets are waiting to be used")]
    TooManyTickets,
    /// The number of uses is out of range.
    #[error("a ticket has 1 to {TICKET_USES_MAX} uses")]
    Uses,
}

#[derive(Debug)]
enum Pending {
    /// Answer a joiner.
    Reply {
        conn: ConnId,
        peer: PeerId,
        name: NodeId,
        membership: Membership,
        /// The ticket, when this is its bearer's first use of it.
        secret_hash: Option<[u8; 32]>,
        renew: bool,
    },
    /// Announce that this peer is a member.
    Own { member: Member, membership: Membership },
    /// Only tell the user.
    Note,
}

/// The machine's state.
#[derive(Debug)]
pub struct Admission {
    key: SigningKey,
    root: Option<MeshRoot>,
    own: Option<(Membership, Member)>,
    admitter: Option<Admitter>,
    tickets: BTreeMap<[u8; 32], TicketRecord>,
    grants: BTreeMap<NodeId, Grant>,
    revoked: BTreeMap<Serial, Revocation>,
    joining: Option<Ticket>,
    pending: BTreeMap<u64, Pending>,
    next_persist: u64,
    renew_after: Instant,
    /// Who was asked for a longer certificate.
    renewing: Option<PeerId>,
    /// When members were renewed, for as long as that keeps them waiting.
    renewed: BTreeMap<PeerId, Instant>,
    random: Random,
    transmits: VecDeque<(ConnId, Frame)>,
    events: VecDeque<Event>,
    jobs: VecDeque<Persist>,
}

impl Admission {
    /// Starts with what the store has.
    #[must_use]
    pub fn new(
        key: SigningKey,
        root: Option<MeshRoot>,
        own: Option<(Membership, Member)>,
        admitter: Option<Admitter>,
        tickets: Vec<TicketRecord>,
        grants: Vec<Grant>,
        random: Random,
    ) -> Self {
        Self {
            key,
            root,
            own,
            admitter,
            tickets: tickets.into_iter().map(|t| (t.secret_hash, t)).collect(),
            grants: grants.into_iter().map(|g| (g.name.clone(), g)).collect(),
            revoked: BTreeMap::new(),
            joining: None,
            pending: BTreeMap::new(),
            next_persist: 0,
            renew_after: Instant(0),
            renewed: BTreeMap::new(),
            renewing: None,
            random,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            jobs: VecDeque::new(),
        }
    }

    /// Returns the mesh.
    #[must_use]
    pub const fn root(&self) -> Option<&MeshRoot> {
        self.root.as_ref()
    }

    /// Returns the mesh's id.
    #[must_use]
    pub fn mesh(&self) -> Option<MeshId> {
        self.root.as_ref().map(MeshRoot::id)
    }

    /// Returns this peer's membership.
    #[must_use]
    pub fn own(&self) -> Option<(&Membership, &Member)> {
        self.own.as_ref().map(|(membership, member)| (membership, member))
    }

    /// Returns this peer's right to admit.
    #[must_use]
    pub const fn admitter(&self) -> Option<&Admitter> {
        self.admitter.as_ref()
    }

    /// Takes the own certificate up that the store has, now that it counts.
    pub(crate) fn restore_own(&mut self, membership: Membership, member: Member) {
        self.own = Some((membership, member));
    }

    /// Tells whether a certificate was revoked.
    #[must_use]
    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.revoked.contains_key(serial)
    }

    /// Returns the names that were granted here and still count.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.grants.values().filter(|g| !self.is_revoked(&g.serial))
    }

    /// Returns every revocation in force.
    pub fn revocations(&self) -> impl Iterator<Item = &Revocation> {
        self.revoked.values()
    }

    /// Returns how many tickets, grants and revocations there are, and state changes that are not on disk yet.
    pub(crate) fn sizes(&self) -> (usize, usize, usize, usize) {
        (
            self.tickets.len(),
            self.grants.len(),
            self.revoked.len(),
            self.pending.len(),
        )
    }

    fn persist(&mut self, changes: Vec<StateChange>, then: Pending) -> u64 {
        let id = self.next_persist;
        self.next_persist += 1;
        self.pending.insert(id, then);
        self.jobs.push_back(Persist { id, changes });
        id
    }

    fn serial(&mut self, now: Now) -> Serial {
        let random = self.random.bytes();
        Serial::new(now.wall, random)
    }

    /// Finds out who holds a name already, among the grants made here.
    fn granted_to_other(&self, name: &NodeId, peer: Option<&PeerId>, now: UnixMillis) -> Option<PeerId> {
        let counts = |g: &&Grant| Some(&g.peer) != peer && g.not_after > now && !self.is_revoked(&g.serial);
        // The names above it and it itself, each looked up; then those below, which follow it in order.
        let mut above = Some(name.as_str());
        while let Some(text) = above {
            let grant = NodeId::new(text).ok().and_then(|id| self.grants.get(&id));
            if let Some(grant) = grant.filter(counts) {
                return Some(grant.peer);
            }
            above = text.rsplit_once('/').map(|(head, _)| head);
        }
        self.grants
            .range(name.clone()..)
            .map(|(_, grant)| grant)
            .take_while(|g| g.name.as_str().starts_with(name.as_str()))
            .filter(|g| g.name.is_within(name))
            .find(counts)
            .map(|g| g.peer)
    }

    /// Issues a ticket. It may be shown once the returned job has succeeded.
    ///
    /// # Errors
    /// [`AdmitError`].
    #[allow(clippy::too_many_arguments, reason = "they are the fields of a ticket")]
    pub fn invite(
        &mut self,
        now: Now,
        name: NodeId,
        valid: Duration,
        uses: u32,
        addresses: Vec<Address>,
        holder: Option<PeerId>,
    ) -> Result<(Ticket, u64), AdmitError> {
        self.forget_expired_tickets(now);
        let (
            Some(MeshRoot::Closed {
                authority,
                name: mesh,
            }),
            Some(_),
        ) = (&self.root, &self.admitter)
        else {
            return Err(AdmitError::NotAnAdmitter);
        };
        if uses == 0 || uses > TICKET_USES_MAX {
            return Err(AdmitError::Uses);
        }
        if let Some(holder) = holder.or_else(|| self.granted_to_other(&name, None, now.wall)) {
            return Err(AdmitError::NameTaken { name, holder });
        }
        if self.tickets.len() >= TICKETS_MAX {
            return Err(AdmitError::TooManyTickets);
        }
        let secret = TicketSecret(self.random.bytes());
        let ticket = Ticket(TicketBody {
            authority: *authority,
            mesh_name: Text::truncating(mesh),
            issuer: self.key.peer_id(),
            addresses: List::<_, TICKET_ADDRESSES_MAX>::truncating(addresses),
            secret: secret.0,
            name: name.clone(),
            expires: now.wall.after(valid),
        });
        let record = TicketRecord {
            secret_hash: secret.hash(),
            name,
            expires: now.wall.after(valid),
            uses,
            used_by: List::default(),
        };
        self.tickets.insert(record.secret_hash, record.clone());
        let id = self.persist(alloc::vec![StateChange::Ticket(record)], Pending::Note);
        Ok((ticket, id))
    }

    fn forget_expired_tickets(&mut self, now: Now) {
        let expired: Vec<[u8; 32]> = self
            .tickets
            .values()
            .filter(|t| t.expires < now.wall)
            .map(|t| t.secret_hash)
            .collect();
        for hash in &expired {
            self.tickets.remove(hash);
        }
        if !expired.is_empty() {
            self.persist(
                expired.into_iter().map(StateChange::TicketGone).collect(),
                Pending::Note,
            );
        }
    }

    /// Admits a peer directly, without a ticket. The membership may be shown once the job has succeeded.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn admit(
        &mut self,
        now: Now,
        peer: PeerId,
        name: NodeId,
        holder: Option<PeerId>,
    ) -> Result<(Membership, u64), AdmitError> {
        if let Some(holder) = holder.or_else(|| self.granted_to_other(&name, Some(&peer), now.wall)) {
            return Err(AdmitError::NameTaken { name, holder });
        }
        let (membership, grant) = self
            .certify(now, peer, name, None)
            .ok_or(AdmitError::NotAnAdmitter)?;
        let id = self.persist(alloc::vec![StateChange::Grant(grant)], Pending::Note);
        Ok((membership, id))
    }

    fn certify(
        &mut self,
        now: Now,
        peer: PeerId,
        name: NodeId,
        serial: Option<Serial>,
    ) -> Option<(Membership, Grant)> {
        let fresh = self.serial(now);
        let root = self.root.as_ref()?;
        let admitter = self.admitter.as_ref()?;
        let serial = serial.unwrap_or(fresh);
        let membership = admitter.admit(root, peer, name.clone(), serial, now.wall, CERTIFICATE_VALIDITY);
        let grant = Grant {
            name: name.clone(),
            peer,
            serial,
            not_after: now.wall.after(CERTIFICATE_VALIDITY),
        };
        self.grants.insert(name, grant.clone());
        Some((membership, grant))
    }

    /// Starts to join with a ticket: the driver is to dial the issuer for joining.
    pub fn join(&mut self, ticket: Ticket) {
        self.root = Some(ticket.root());
        self.joining = Some(ticket);
    }

    /// A connection for joining is up. The side that has a ticket for that peer shows it. [JOIN-1]
    pub fn handle_join_connection(&mut self, conn: ConnId, peer: PeerId, dialled: bool) {
        if let (true, Some(ticket)) = (dialled, &self.joining)
            && ticket.0.issuer == peer
        {
            let request = JoinRequest {
                secret: ticket.0.secret,
                name: ticket.0.name.clone(),
            };
            self.transmits.push_back((conn, Frame::JoinRequest(request)));
        }
    }

    /// Redeems a ticket. `holder` is who else in the directory holds the name.
    pub fn handle_join_request(
        &mut self,
        now: Now,
        conn: ConnId,
        peer: PeerId,
        request: &JoinRequest,
        holder: Option<PeerId>,
    ) {
        match self.redeem(now, peer, request, holder) {
            Ok((membership, changes, name, secret_hash)) => {
                let then = Pending::Reply {
                    conn,
                    peer,
                    name,
                    membership,
                    secret_hash,
                    renew: false,
                };
                self.persist(changes, then);
            }
            Err(refusal) => {
                self.events.push_back(Event::RefusedOther { peer, refusal });
                let reply = JoinReply {
                    membership: None,
                    refusal: Some(refusal),
                };
                self.transmits.push_back((conn, Frame::JoinReply(reply)));
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "used once, next to its only caller")]
    fn redeem(
        &mut self,
        now: Now,
        peer: PeerId,
        request: &JoinRequest,
        holder: Option<PeerId>,
    ) -> Result<(Membership, Vec<StateChange>, NodeId, Option<[u8; 32]>), JoinRefusal> {
        if self.admitter.is_none() {
            return Err(JoinRefusal::NotAnAdmitter);
        }
        let hash = TicketSecret(request.secret).hash();
        let ticket = self.tickets.get(&hash).ok_or(JoinRefusal::UnknownTicket)?;
        if ticket.name != request.name {
            return Err(JoinRefusal::OtherName);
        }
        // [JOIN-4] A joiner whose answer was lost asks again and gets the same certificate.
        let again = ticket.used_by.iter().position(|p| *p == peer);
        if again.is_none() {
            if ticket.expires < now.wall {
                return Err(JoinRefusal::Expired);
            }
            if ticket.used_by.len() >= usize::try_from(ticket.uses).unwrap_or(usize::MAX) {
                return Err(JoinRefusal::Used);
            }
        }
        let index = again.unwrap_or(ticket.used_by.len());
        let name = numbered(&ticket.name, index).ok_or(JoinRefusal::NameTaken)?;
        let earlier = self
            .grants
            .get(&name)
            .filter(|g| g.peer == peer)
            .map(|g| g.serial);
        if earlier.is_some_and(|serial| self.is_revoked(&serial)) {
            return Err(JoinRefusal::Revoked);
        }
        if holder.is_some() || self.granted_to_other(&name, Some(&peer), now.wall).is_some() {
            return Err(JoinRefusal::NameTaken);
        }
        let (membership, grant) = self
            .certify(now, peer, name.clone(), earlier)
            .ok_or(JoinRefusal::NotAnAdmitter)?;
        let ticket = self.tickets.get_mut(&hash).ok_or(JoinRefusal::UnknownTicket)?;
        if again.is_none() {
            ticket.used_by.0.push(peer);
        }
        let changes = alloc::vec![StateChange::Ticket(ticket.clone()), StateChange::Grant(grant)];
        // Only a first use can be taken back: the earlier one of a bearer that asks again is on the disk.
        Ok((membership, changes, name, again.is_none().then_some(hash)))
    }

    /// Takes the issuer's answer. Returns whether it is acceptable. [JOIN-6]
    pub fn handle_join_reply(&mut self, now: Now, peer: PeerId, reply: JoinReply) {
        let Some(ticket) = self.joining.take_if(|t| t.0.issuer == peer) else {
            return;
        };
        let root = ticket.root();
        match (reply.membership, reply.refusal) {
            (_, Some(refusal)) => self.events.push_back(Event::Refused(refusal)),
            (Some(membership), None) => {
                let issuer = Some((peer, ticket.0.addresses.0.clone()));
                self.adopt(now, root, membership, issuer);
            }
            (None, None) => self.events.push_back(Event::BadReply),
        }
    }

    /// Takes an own certificate that was given by hand or renewed.
    pub fn adopt(
        &mut self,
        now: Now,
        root: MeshRoot,
        membership: Membership,
        issuer: Option<(PeerId, Vec<Address>)>,
    ) {
        match Membership::verify(&cbor::to_bytes(&membership), &root, &self.key.peer_id(), now.wall) {
            Ok(member) => {
                self.root = Some(root.clone());
                let change = StateChange::Membership {
                    root,
                    membership: membership.clone(),
                    issuer,
                };
                self.persist(alloc::vec![change], Pending::Own { member, membership });
            }
            Err(_) => self.events.push_back(Event::BadReply),
        }
    }

    /// Asks an admitter that this peer is connected to for a longer certificate, when it is time. [JOIN-7]
    pub fn renew_if_due(&mut self, now: Now, conn: ConnId, peer: PeerId) {
        let Some((membership, member)) = &self.own else {
            return;
        };
        let open = self.root.as_ref().is_some_and(MeshRoot::is_open);
        let due = member.not_after.since(now.wall) < RENEW_BEFORE && !open;
        if due && member.admitter == peer && peer != self.key.peer_id() && self.renew_after <= now.mono {
            self.renew_after = now.mono.after(RENEW_RETRY);
            let request = RenewRequest {
                membership: membership.clone(),
            };
            self.renewing = Some(peer);
            self.transmits.push_back((conn, Frame::RenewRequest(request)));
        }
    }

    /// Extends a member's certificate: same name, same serial, a later end. [JOIN-8]
    pub fn handle_renew_request(&mut self, now: Now, conn: ConnId, peer: PeerId, request: &RenewRequest) {
        let verified = self
            .root
            .as_ref()
            .map(|root| Membership::verify(&cbor::to_bytes(&request.membership), root, &peer, now.wall));
        let refusal = match verified {
            Some(Ok(member)) if self.is_revoked(&member.serial) => JoinRefusal::Revoked,
            Some(Ok(_)) if self.admitter.is_some() && !self.may_renew(now, peer) => return,
            Some(Ok(member)) => match self.certify(now, peer, member.name.clone(), Some(member.serial)) {
                Some((membership, grant)) => {
                    let (name, secret_hash) = (member.name, None);
                    let then = Pending::Reply {
                        conn,
                        peer,
                        name,
                        membership,
                        secret_hash,
                        renew: true,
                    };
                    self.persist(alloc::vec![StateChange::Grant(grant)], then);
                    return;
                }
                None => JoinRefusal::NotAnAdmitter,
            },
            Some(Err(_)) | None => JoinRefusal::NotAnAdmitter,
        };
        let reply = JoinReply {
            membership: None,
            refusal: Some(refusal),
        };
        self.transmits.push_back((conn, Frame::RenewReply(reply)));
    }

    /// Whether a member has let enough time pass since it was renewed last; if so, it counts as renewed now.
    fn may_renew(&mut self, now: Now, peer: PeerId) -> bool {
        self.renewed
            .retain(|_, at| at.after(RENEW_ANSWER_INTERVAL) > now.mono);
        let may = self.renewed.len() < RENEWALS_MAX && !self.renewed.contains_key(&peer);
        if may {
            self.renewed.insert(peer, now.mono);
        }
        may
    }

    /// Takes a renewed certificate, when it was asked for, from whom it was asked, and only if it is the same one with
    /// a later end: an old one could be replayed.
    pub fn handle_renew_reply(&mut self, now: Now, peer: PeerId, reply: JoinReply) {
        if self.renewing.take_if(|asked| *asked == peer).is_none() {
            return;
        }
        let (Some(membership), Some(root), Some((_, own))) = (reply.membership, self.root.clone(), &self.own)
        else {
            return;
        };
        let shown = Membership::verify(&cbor::to_bytes(&membership), &root, &self.key.peer_id(), now.wall);
        let longer =
            |new: &Member| new.name == own.name && new.serial == own.serial && new.not_after > own.not_after;
        if shown.is_ok_and(|new| longer(&new)) {
            self.adopt(now, root, membership, None);
        }
    }

    /// Extends this peer's own certificate when it is time and nobody else has to be asked: in an open mesh, and at an
    /// admitter that certified itself.
    pub fn renew_own(&mut self, now: Now) {
        let Some((_, member)) = &self.own else {
            return;
        };
        let due = member.not_after.since(now.wall) < RENEW_BEFORE && self.renew_after <= now.mono;
        let (name, serial, itself) = (member.name.clone(), member.serial, member.admitter == member.peer);
        let Some(root) = self.root.clone().filter(|_| due && itself) else {
            return;
        };
        self.renew_after = now.mono.after(RENEW_RETRY);
        let peer = self.key.peer_id();
        let membership = if root.is_open() {
            Some(Membership::open(&root, &self.key, name, now.wall))
        } else {
            self.certify(now, peer, name, Some(serial))
                .map(|(membership, _)| membership)
        };
        if let Some(membership) = membership {
            self.adopt(now, root, membership, None);
        }
    }

    /// Notes that a membership has ended. Returns whether that is news.
    pub fn handle_revocation(&mut self, now: Now, revocation: Revocation) -> bool {
        self.revoked
            .retain(|_, r| r.not_after.after(crate::cert::CLOCK_SKEW_MAX) > now.wall);
        if self.revoked.len() >= REVOCATIONS_MAX {
            return false;
        }
        self.revoked.insert(revocation.serial, revocation).is_none()
    }

    /// Writes a revocation down. It counts at once; the disk is for after a restart.
    pub fn keep_revocation(&mut self, serial: Serial, item: crate::Signed) -> u64 {
        self.persist(
            alloc::vec![StateChange::Revocation { serial, item }],
            Pending::Note,
        )
    }

    /// A persist job has ended.
    pub fn handle_persisted(&mut self, id: u64, ok: bool) {
        match (self.pending.remove(&id), ok) {
            (
                Some(Pending::Reply {
                    conn,
                    peer,
                    name,
                    membership,
                    renew,
                    ..
                }),
                true,
            ) => {
                let reply = JoinReply {
                    membership: Some(membership),
                    refusal: None,
                };
                let frame = if renew {
                    Frame::RenewReply(reply)
                } else {
                    Frame::JoinReply(reply)
                };
                self.transmits.push_back((conn, frame));
                self.events.push_back(Event::Admitted { peer, name });
            }
            (
                Some(Pending::Reply {
                    conn,
                    peer,
                    secret_hash,
                    name,
                    renew,
                    ..
                }),
                false,
            ) => {
                // [JOIN-3] Not on disk: it has not happened. A second request of the same bearer may still get there.
                let again = |pending: &Pending| match pending {
                    Pending::Reply {
                        peer: other,
                        name: of,
                        ..
                    } => *other == peer && *of == name,
                    Pending::Own { .. } | Pending::Note => false,
                };
                let again = self.pending.values().any(again);
                if let Some(ticket) = secret_hash
                    .filter(|_| !again)
                    .and_then(|hash| self.tickets.get_mut(&hash))
                {
                    ticket.used_by.0.retain(|p| *p != peer);
                    self.grants.remove(&name);
                }
                let reply = JoinReply {
                    membership: None,
                    refusal: Some(JoinRefusal::Storage),
                };
                let frame = if renew {
                    Frame::RenewReply(reply)
                } else {
                    Frame::JoinReply(reply)
                };
                self.transmits.push_back((conn, frame));
            }
            (Some(Pending::Own { member, membership }), true) => {
                self.own = Some((membership, member.clone()));
                self.events.push_back(Event::Joined(member));
            }
            (Some(Pending::Own { .. }), false) => self.events.push_back(Event::Refused(JoinRefusal::Storage)),
            (Some(Pending::Note) | None, _) => {}
        }
        self.events.push_back(Event::Persisted { id, ok });
    }

    /// Returns the next frame to send, with its connection.
    pub fn poll_transmit(&mut self) -> Option<(ConnId, Frame)> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns what must be written down next.
    pub fn poll_job(&mut self) -> Option<Persist> {
        self.jobs.pop_front()
    }
}

/// Returns the name that the `index`-th user of a ticket gets: `name`, then `name-2`, `name-3` … [JOIN-5]
fn numbered(name: &NodeId, index: usize) -> Option<NodeId> {
    if index == 0 {
        Some(name.clone())
    } else {
        NodeId::new(alloc::format!("{name}-{}", index + 1)).ok()
    }
}

#[cfg(test)]
mod tests;
