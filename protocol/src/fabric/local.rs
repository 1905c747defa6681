//! What this peer's own user asks of the fabric.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Fabric, Purpose, RECORD_LIFETIME, RECORD_REFRESH, Transmit};
use crate::admission::AdmitError;
use crate::cbor::{self, List, Text};
use crate::cert::{CLOCK_SKEW_MAX, Member, Membership, MeshRoot};
use crate::error::{DuplicateNodeError, InvalidNodeError, NodeNotFoundError};
use crate::flood::content::{NODES_PER_PEER_MAX, NodeList, RecordBody, revocation_id};
use crate::flood::{self, Content, ITEM_BODY_BYTES_MAX, ItemKey, ItemKind, Revocation};
use crate::neighbors;
use crate::ticket::Ticket;
use crate::transfer::{self, Offer};
use crate::types::NodeSignature;
use crate::{Address, Instant, NodeId, Now, PeerId, TransferId};

/// Why a node is not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The id is taken.
    #[error(transparent)]
    Duplicate(#[from] DuplicateNodeError),
    /// The specification is refused.
    #[error(transparent)]
    Invalid(#[from] InvalidNodeError),
    /// This peer is in no mesh.
    #[error("this peer is not a member of a mesh: `hyperfabric join` a mesh first")]
    NotAMember,
}

/// Why a transfer does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Nobody hosts the destination.
    #[error(transparent)]
    NotFound(#[from] NodeNotFoundError),
    /// The destination is hosted by this very peer.
    #[error("node {0} is hosted by this peer: nothing to send")]
    Local(NodeId),
}

/// Why a member is not revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    /// This peer may not.
    #[error("this peer is not an admitter of the mesh")]
    NotAnAdmitter,
    /// No member has that name.
    #[error("no member is called {0}")]
    UnknownMember(NodeId),
    /// It is this peer.
    #[error("a peer cannot revoke itself")]
    Own,
}

impl Fabric {
    /// Publishes this peer's record again, while it is a member.
    pub(super) fn publish_record(&mut self, now: Now) {
        let Some((membership, member)) = self.admission.own() else {
            return;
        };
        let (membership, member) = (membership.clone(), member.clone());
        // [DIR-4] Those who come later do not take it once the membership has ended, and databases would differ.
        let left = member.not_after.after(CLOCK_SKEW_MAX).since(now.wall);
        let lifetime = RECORD_LIFETIME.min(left);
        if lifetime.is_zero() {
            self.refresh_at = None;
            return;
        }
        let body = RecordBody {
            membership,
            addresses: List::truncating(self.addresses.clone()),
            nodes: NodeList(self.nodes.clone()),
            bootstrap: self.bootstrap.then_some(true),
            agent: Some(Text::truncating(&self.agent)),
        };
        let bytes = cbor::to_bytes(&body);
        let signed = self
            .flood
            .publish(now, &self.key, ItemKind::Record, 0, lifetime, &bytes);
        let hash = flood::hash_of(&signed);
        self.directory
            .insert(Arc::new(flood::Record::new(member, body, hash)));
        self.refresh_at = Some(now.mono.after(self.random.jittered(RECORD_REFRESH)));
    }

    /// Returns this peer's record as it is flooded, for publication elsewhere.
    #[must_use]
    pub fn own_record(&self) -> Option<&crate::Signed> {
        self.flood.get(&ItemKey {
            origin: self.local,
            kind: ItemKind::Record,
            id: 0,
        })
    }

    /// Registers a node of this peer, or replaces its specification.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register(&mut self, now: Now, node: NodeSignature) -> Result<(), RegisterError> {
        let node_id = node.node_id.clone();
        node.validate().map_err(|reason| InvalidNodeError::Field {
            node_id: node_id.clone(),
            reason,
        })?;
        let (_, member) = self.admission.own().ok_or(RegisterError::NotAMember)?;
        if !node_id.is_within(&member.name) {
            return Err(InvalidNodeError::OutsideGrant {
                node_id,
                granted: member.name.clone(),
            }
            .into());
        }
        let earlier = (member.serial, self.local);
        let open = self.admission.root().is_some_and(MeshRoot::is_open);
        if let Some(holder) = self.directory.host_of(&node_id)
            && holder != self.local
            && !open
            && self
                .directory
                .member(&holder)
                .is_some_and(|m| (m.serial, holder) < earlier)
        {
            return Err(DuplicateNodeError { node_id, holder }.into());
        }
        let mut nodes = self.nodes.clone();
        nodes.retain(|n| n.node_id != node_id);
        nodes.push(node);
        let bytes: usize = nodes.iter().map(|n| cbor::to_bytes(n).len()).sum();
        // What is left of an item's body holds the membership and the addresses.
        if nodes.len() > NODES_PER_PEER_MAX || bytes > ITEM_BODY_BYTES_MAX - 4 * 1024 {
            return Err(InvalidNodeError::TooMany(NODES_PER_PEER_MAX).into());
        }
        self.nodes = nodes;
        self.publish_record(now);
        self.settle(now);
        Ok(())
    }

    /// Returns the nodes that this peer hosts.
    #[must_use]
    pub fn own_nodes(&self) -> &[NodeSignature] {
        &self.nodes
    }

    /// Tells the fabric where a peer can be dialled, before its record says so.
    pub fn learn(&mut self, now: Now, peer: PeerId, addresses: Vec<Address>, bootstrap: bool) {
        self.neighbors_input(
            now,
            neighbors::Input::Learned {
                peer,
                addresses,
                bootstrap,
            },
        );
        self.settle(now);
    }

    /// Asks for a connection to a peer now; balanced by [`Self::unwant`].
    pub fn want(&mut self, now: Now, peer: PeerId) {
        self.want_known(now, peer);
        self.settle(now);
    }

    /// Takes one [`Self::want`] back.
    pub fn unwant(&mut self, now: Now, peer: PeerId) {
        self.neighbors_input(now, neighbors::Input::Unwant { peer });
        self.settle(now);
    }

    /// Offers bytes to a node; the caller names the transfer, or one that an earlier start has begun.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(
        &mut self,
        now: Now,
        transfer: TransferId,
        offer: Offer,
        deadline: Option<Instant>,
        resumed: bool,
    ) -> Result<PeerId, SendError> {
        let node_id = offer.destination.clone();
        let peer = self.directory.host_of(&node_id).ok_or(NodeNotFoundError {
            node_id: node_id.clone(),
        })?;
        if peer == self.local {
            return Err(SendError::Local(node_id));
        }
        self.send_to(now, transfer, peer, offer, deadline, resumed);
        Ok(peer)
    }

    /// Offers bytes to a peer that is known to host the destination.
    pub fn send_to(
        &mut self,
        now: Now,
        transfer: TransferId,
        peer: PeerId,
        offer: Offer,
        deadline: Option<Instant>,
        resumed: bool,
    ) {
        self.transfers_input(
            now,
            transfer::Input::Send {
                transfer,
                peer,
                offer,
                deadline,
                resumed,
            },
        );
        self.settle(now);
    }

    /// Cancels a transfer, from either side.
    pub fn cancel(&mut self, now: Now, transfer: TransferId) {
        self.transfers_input(now, transfer::Input::Cancel { transfer });
        self.settle(now);
    }

    /// Gives up an incoming transfer of which nothing has come for long. Returns whether it is: one that is under way,
    /// or whose sender is connected, is not.
    pub fn abandon(&mut self, now: Now, peer: PeerId, transfer: TransferId, offer: Offer) -> bool {
        if !self.transfers.may_abandon(peer, transfer) {
            return false;
        }
        self.transfers_input(
            now,
            transfer::Input::Abandon {
                peer,
                transfer,
                offer,
            },
        );
        self.settle(now);
        true
    }

    /// Redeems a ticket at its issuer.
    pub fn join(&mut self, now: Now, ticket: Ticket) {
        let (peer, addresses) = (ticket.0.issuer, ticket.0.addresses.0.clone());
        self.admission.join(ticket);
        self.transmits.push_back(Transmit::Dial {
            peer,
            addresses,
            purpose: Purpose::Join,
        });
        self.settle(now);
    }

    /// Takes a certificate that an admitter has made for this peer by hand.
    pub fn adopt(
        &mut self,
        now: Now,
        root: MeshRoot,
        membership: Membership,
        issuer: Option<(PeerId, Vec<Address>)>,
    ) {
        self.admission.adopt(now, root, membership, issuer);
        self.settle(now);
    }

    /// Issues a ticket; it may be shown once the returned persist job has succeeded.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn invite(
        &mut self,
        now: Now,
        name: NodeId,
        valid: Duration,
        uses: u32,
        addresses: Vec<Address>,
    ) -> Result<(Ticket, u64), AdmitError> {
        let holder = self
            .directory
            .name_holder(&name, &PeerId([0; 32]))
            .filter(|h| self.holds_name(h));
        let issued = self.admission.invite(now, name, valid, uses, addresses, holder);
        self.settle(now);
        issued
    }

    /// Admits a peer directly; the membership may be shown once the returned persist job has succeeded.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn admit(&mut self, now: Now, peer: PeerId, name: NodeId) -> Result<(Membership, u64), AdmitError> {
        let holder = self
            .directory
            .name_holder(&name, &peer)
            .filter(|h| self.holds_name(h));
        let admitted = self.admission.admit(now, peer, name, holder);
        self.settle(now);
        admitted
    }

    /// Ends a membership, everywhere. Returns whose.
    ///
    /// # Errors
    /// [`RevokeError`].
    pub fn revoke(&mut self, now: Now, name: &NodeId) -> Result<Member, RevokeError> {
        let admitter = self
            .admission
            .admitter()
            .cloned()
            .ok_or(RevokeError::NotAnAdmitter)?;
        let member = self
            .find_member(name)
            .ok_or_else(|| RevokeError::UnknownMember(name.clone()))?;
        if member.peer == self.local {
            return Err(RevokeError::Own);
        }
        let revocation = Revocation {
            peer: member.peer,
            name: member.name.clone(),
            serial: member.serial,
            not_after: member.not_after,
            delegation: admitter.delegation.clone(),
        };
        let id = revocation_id(&member.serial);
        let lifetime = member.not_after.after(CLOCK_SKEW_MAX).since(now.wall);
        let body = cbor::to_bytes(&revocation);
        self.flood
            .publish(now, &self.key, ItemKind::Revocation, id, lifetime, &body);
        let key = ItemKey {
            origin: self.local,
            kind: ItemKind::Revocation,
            id,
        };
        let content = Content::Revocation(Arc::new(revocation));
        self.on_flood(now, crate::flood::Event::Accepted { key, content });
        self.settle(now);
        Ok(member)
    }

    /// Finds a member by its name: in the directory, or among the grants made here.
    fn find_member(&self, name: &NodeId) -> Option<Member> {
        let listed = self
            .directory
            .records()
            .map(|r| &r.member)
            .find(|m| m.name == *name)
            .cloned();
        listed.or_else(|| {
            let grant = self.admission.grants().find(|g| g.name == *name)?;
            Some(Member {
                peer: grant.peer,
                name: grant.name.clone(),
                serial: grant.serial,
                not_after: grant.not_after,
                admitter: self.local,
            })
        })
    }
}
