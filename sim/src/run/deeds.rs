//! How what is planned is done to the world; payloads are sent here.

use std::time::Duration;

use hyperfabric_protocol::cbor::Text;
use hyperfabric_protocol::transfer::{Offer, PayloadKind};
use hyperfabric_protocol::types::{DataType, PacketPriority};
use hyperfabric_protocol::{Instant, TransferId};

use super::plan::{Deed, transfer_draws};
use super::{Asked, DEADLINE, Run, Sent};
use crate::scenario::{Load, Scenario};
use crate::world::PeerIndex;

/// How often a user tries to send to a node that is not known yet, and with what pause.
pub(crate) const SEND_TRIES: u32 = 30;
pub(crate) const SEND_AGAIN: Duration = Duration::from_secs(2);

impl Scenario {
    /// Returns how many peers a run of it has, those that come later included.
    #[must_use]
    pub fn peers_in_all(&self) -> usize {
        let later = |load: &Load| match load {
            Load::Crowd { peers, .. }
            | Load::Strangers { peers, .. }
            | Load::Guests { peers, .. }
            | Load::Twins { peers, .. } => *peers,
            Load::Transfers { .. } | Load::Messages { .. } => 0,
        };
        self.peers + self.loads.iter().map(later).sum::<usize>()
    }
}

impl Run {
    pub(super) fn carry_out(&mut self, deed: Deed) {
        match deed {
            Deed::Start { ticket } => self.start_peer(ticket),
            Deed::Stranger => self.start_stranger(),
            Deed::Guest { stay } => self.start_guest(stay),
            Deed::Twin { draw } => self.start_twin(draw),
            Deed::Joined(peer) => self.joined(peer),
            Deed::JoinAgain(peer) => self.join_again(peer),
            Deed::Begin { fault, draw } => self.begin(fault, draw),
            Deed::End { fault, victims } => self.end_fault(fault, &victims),
            Deed::Send { load, number, tries } => self.send(load, number, tries),
        }
    }

    fn send(&mut self, load: usize, number: usize, tries: u32) {
        let Some(Load::Transfers { size, to_one, .. }) = self.scenario.loads.get(load) else {
            return;
        };
        let (size, to_one) = (size.0, *to_one);
        let mut draws = transfer_draws(self.seed, load, number);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&draws.u64().to_be_bytes());
        id[8..].copy_from_slice(&draws.u64().to_be_bytes());
        let members: Vec<PeerIndex> = self.members.iter().copied().collect();
        let (from, drawn) = (
            members[draws.index(members.len())],
            members[draws.index(members.len())],
        );
        let to = if to_one { members[members.len() / 2] } else { drawn };
        let node = self.name(to);
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
            source: self.name(from),
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

    pub(super) fn hand_over(
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
}
