//! The transfer machine: its inputs, outputs and tables.
//!
//! Both roles live in one machine, because they share the peers, the frames and the need to end: whatever the
//! connection, the disk or the other side does, a transfer ends once, at both ends, delivered or with a [`Fault`].
//! `outgoing` and `incoming` hold the two roles' transitions.
//!
//! - The **receiver numbers the attempts**. Its Accept, whenever it comes, starts the attempt that it names and voids
//!   the one before: after a lost stream either side can start over, and neither can be confused by late chunks.
//! - **Progress is what is durable**. A side that sees none for [`STALL_TIMEOUT`](super::limits::STALL_TIMEOUT) while connected starts over, and
//!   gives up after [`STALLS_MAX`](super::limits::STALLS_MAX) times in a row. An absent peer is waited for.
//! - **What is sealed is delivered**: from there on no cancel and no revocation changes the outcome.
//!
//! It leaves out the payload, the journal and the hashing: those are orders and jobs.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::cbor::Text;
use crate::frame::{Abort, DETAIL_BYTES_MAX, Frame};
use crate::random::Random;
use crate::transfer::limits::INCOMING_MAX;
use crate::transfer::{ChunkRanges, Fault, Offer};
use crate::{Instant, Now, PeerId, TransferId};

mod incoming;
mod outgoing;
mod peers;

use incoming::Incoming;
use outgoing::Outgoing;
use peers::PeerEntry;

/// Which side of a transfer this peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Role {
    /// It sends.
    Sender,
    /// It receives.
    Receiver,
}

/// Where a transfer stands, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum TransferState {
    /// The peer is not connected, other transfers to it come first, or it is to be offered again in a moment.
    Waiting,
    /// Offered, not yet accepted.
    Offering,
    /// The receiver makes ready: policy, space, and a check of what it has.
    Preparing,
    /// Bytes are being sent.
    Sending,
    /// Bytes are expected.
    Receiving,
    /// Everything was sent; the receiver has not confirmed yet.
    Finishing,
    /// Everything arrived; it is being verified and put in its place.
    Sealing,
    /// Over; what is left of it is being removed.
    Ended,
}

/// Why a transfer ended without having been delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}{}{}", if detail.is_some() { ": " } else { "" }, detail.as_deref().unwrap_or(""))]
pub struct TransferError {
    /// What happened.
    pub fault: Fault,
    /// Whether it was found on this side; otherwise the other side said so.
    pub local: bool,
    /// More about it, from the other side.
    pub detail: Option<Text<DETAIL_BYTES_MAX>>,
}

impl TransferError {
    const fn local(fault: Fault) -> Self {
        Self {
            fault,
            local: true,
            detail: None,
        }
    }
}

/// How a peer broke the transfer protocol; its transfer has ended, and it should be cut off. [XFER-18]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Accept names chunks that the payload does not have.
    #[error("transfer {0}: the receiver claims chunks beyond the payload's end")]
    HaveBeyondEnd(TransferId),
    /// Progress exceeds the payload.
    #[error("transfer {0}: the receiver claims more bytes than the payload has")]
    ProgressBeyondSize(TransferId),
    /// Delivered names another digest than Finish.
    #[error("transfer {0}: the receiver claims to have delivered other bytes")]
    DeliveredOtherRoot(TransferId),
    /// Delivered came before Finish.
    #[error("transfer {0}: the receiver claims to have delivered before everything was sent")]
    DeliveredEarly(TransferId),
    /// Finish came twice in one attempt, with different digests.
    #[error("transfer {0}: the sender changed the payload's digest")]
    FinishChanged(TransferId),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A user sends.
    Send {
        /// Drawn at random, or that of the transfer to be resumed.
        transfer: TransferId,
        /// To whom.
        peer: PeerId,
        /// What.
        offer: Offer,
        /// When to give up.
        deadline: Option<Instant>,
        /// Whether an earlier process may have finished it already.
        resumed: bool,
    },
    /// A user cancels, on either side.
    Cancel {
        /// Which.
        transfer: TransferId,
    },
    /// A peer is connected; or still is, over another connection, and frames may have been lost.
    PeerUp {
        /// Who.
        peer: PeerId,
    },
    /// A peer is not connected any more.
    PeerDown {
        /// Who.
        peer: PeerId,
    },
    /// A peer's membership was revoked.
    PeerRevoked {
        /// Who.
        peer: PeerId,
    },
    /// A frame of a transfer arrived. Others are ignored.
    Frame {
        /// From whom.
        peer: PeerId,
        /// The frame.
        frame: Frame,
    },
    /// Every missing chunk of an attempt was handed to the network.
    PayloadSent {
        /// Which transfer.
        transfer: TransferId,
        /// Which attempt.
        attempt: u32,
        /// BLAKE3 of the whole payload.
        root: [u8; 32],
    },
    /// The payload's bytes cannot flow.
    PayloadFailed {
        /// The other side.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// This side's role.
        role: Role,
        /// Which attempt.
        attempt: u32,
        /// Why; `None` when only the stream broke, and another one may do better.
        fault: Option<Fault>,
    },
    /// Chunks have become durable at this receiver.
    ChunksDurable {
        /// From whom they came.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// Every durable chunk, or those that are new: sets are merged.
        have: ChunkRanges,
    },
    /// Nothing has come of an incoming transfer for as long as the owner wants to wait; nothing happens unless it
    /// [may be abandoned](Transfers::may_abandon).
    Abandon {
        /// From whom it came.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// What was offered.
        offer: Offer,
    },
    /// A job is done.
    JobDone(JobResult),
}

/// Heavy or durable work at the receiver. For one transfer there is one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Apply the inbox policy, reserve space, check what an earlier attempt left.
    Prepare {
        /// From whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// What is offered.
        offer: Offer,
    },
    /// Verify, put in place, and record as delivered.
    Seal {
        /// From whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// What its digest must be.
        root: [u8; 32],
    },
    /// Remove what arrived, and the journal's claims. Does nothing to what is delivered.
    Discard {
        /// From whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
    },
}

/// What a [`Job::Prepare`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Ready for the chunks that are not in `have`.
    Ready {
        /// The chunks that are durable and were checked.
        have: ChunkRanges,
    },
    /// The journal says that this transfer was delivered.
    Delivered {
        /// What was delivered.
        root: [u8; 32],
    },
}

/// The result of a [`Job`].
#[derive(Clone, Debug)]
pub enum JobResult {
    /// Of [`Job::Prepare`].
    Prepared {
        /// From whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// What was found, or why the transfer is refused.
        result: Result<Prepared, Fault>,
    },
    /// Of [`Job::Seal`].
    Sealed {
        /// From whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// Whether the payload is delivered.
        result: Result<(), Fault>,
    },
    /// Of [`Job::Discard`].
    Discarded {
        /// From whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
    },
}

/// What the bytes of a transfer must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadOrder {
    /// Send the chunks that are not in `have`, and tell the digest of the whole payload.
    Start {
        /// To whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// Which attempt.
        attempt: u32,
        /// What the receiver has.
        have: ChunkRanges,
    },
    /// Stop sending.
    Stop {
        /// Which transfer.
        transfer: TransferId,
    },
    /// Take chunk streams of this attempt, and of no other.
    Expect {
        /// From whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// Which attempt.
        attempt: u32,
        /// What is received.
        offer: Offer,
    },
    /// Take no more chunk streams; what was received may still become durable.
    Forget {
        /// From whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
    },
    /// The transfer has ended; keep what was received for a later attempt, until its room is needed. [XFER-17]
    Keep {
        /// From whom.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
    },
}

/// What must happen outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a frame.
    Frame {
        /// To whom.
        peer: PeerId,
        /// The frame.
        frame: Frame,
    },
    /// Keep or make a connection.
    Want {
        /// To whom.
        peer: PeerId,
    },
    /// It is not needed any more.
    Unwant {
        /// To whom.
        peer: PeerId,
    },
    /// Move bytes.
    Payload(PayloadOrder),
}

/// A delivered transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// BLAKE3 of the payload.
    pub root: [u8; 32],
}

/// Which transfer an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// The transfer.
    pub transfer: TransferId,
    /// The other side.
    pub peer: PeerId,
    /// This side's role.
    pub role: Role,
}

/// What users see. `Offered` comes first and once, `Ended` last and once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferEvent {
    /// The sender has offered; the receiver has looked at the offer.
    Offered {
        /// Which.
        of: Subject,
        /// What.
        offer: Offer,
    },
    /// Bytes begin to flow.
    Started {
        /// Which.
        of: Subject,
        /// Bytes that the receiver had already.
        resumed_bytes: u64,
    },
    /// More bytes are durable at the receiver.
    Progress {
        /// Which.
        of: Subject,
        /// All of them.
        durable_bytes: u64,
    },
    /// Bytes have stopped to flow; it will be tried again.
    Suspended {
        /// Which.
        of: Subject,
    },
    /// It is over.
    Ended {
        /// Which.
        of: Subject,
        /// How.
        result: Result<Ended, TransferError>,
    },
}

/// A transfer, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferInfo {
    /// Which.
    pub of: Subject,
    /// What.
    pub offer: Offer,
    /// Where it stands.
    pub state: TransferState,
    /// Bytes that are durable at the receiver, as far as this side knows.
    pub durable_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Outgoing(TransferId),
    Incoming(PeerId, TransferId),
}

/// A transfer that is over, and whose other side may not know.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    fault: Fault,
    /// Whether the peer must still be told.
    owed: bool,
    /// Whether what the peer was told may still get lost with the connection.
    unsure: bool,
}

/// The transfer machine.
#[derive(Debug)]
pub struct Transfers {
    random: Random,
    outgoing: BTreeMap<TransferId, Outgoing>,
    incoming: BTreeMap<(PeerId, TransferId), Incoming>,
    peers: BTreeMap<PeerId, PeerEntry>,
    remembered: BTreeMap<(PeerId, TransferId, Role), Remembered>,
    remembered_order: VecDeque<(PeerId, TransferId, Role)>,
    timers: BTreeSet<(Instant, Timer)>,
    /// Unique in this process, so that a stream of an earlier transfer's attempt is never taken for a later one's.
    attempts: u32,
    sends: u64,
    /// Transfers at one time, in each direction.
    limit: usize,
    outputs: VecDeque<Output>,
    events: VecDeque<TransferEvent>,
    jobs: VecDeque<Job>,
}

impl Transfers {
    /// Makes a machine without transfers.
    #[must_use]
    pub fn new(random: Random) -> Self {
        Self {
            random,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            peers: BTreeMap::new(),
            remembered: BTreeMap::new(),
            remembered_order: VecDeque::new(),
            timers: BTreeSet::new(),
            attempts: 0,
            sends: 0,
            limit: INCOMING_MAX,
            outputs: VecDeque::new(),
            events: VecDeque::new(),
            jobs: VecDeque::new(),
        }
    }

    /// Lets no more than this many transfers run at one time, in each direction. Further ones wait at their senders.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, INCOMING_MAX);
        self
    }

    /// Takes in what happened.
    ///
    /// # Errors
    /// [`Violation`] when a peer broke the protocol: its transfer has ended, and it should be cut off.
    pub fn handle_input(&mut self, now: Now, input: Input) -> Result<(), Violation> {
        let now = now.mono;
        match input {
            Input::Send {
                transfer,
                peer,
                offer,
                deadline,
                resumed,
            } => {
                self.on_send(now, Outgoing::new(transfer, peer, offer, deadline, resumed));
            }
            Input::Cancel { transfer } => self.on_cancel(now, transfer),
            Input::PeerUp { peer } => self.on_peer_up(now, peer),
            Input::PeerDown { peer } => self.on_peer_down(now, peer),
            Input::PeerRevoked { peer } => self.on_peer_revoked(now, peer),
            Input::Frame { peer, frame } => return self.on_frame(now, peer, frame),
            Input::PayloadSent {
                transfer,
                attempt,
                root,
            } => self.on_payload_sent(now, transfer, attempt, root),
            Input::PayloadFailed {
                peer,
                transfer,
                role,
                attempt,
                fault,
            } => match role {
                Role::Sender => self.on_sending_failed(now, transfer, attempt, fault),
                Role::Receiver => self.on_receiving_failed(now, (peer, transfer), attempt, fault),
            },
            Input::ChunksDurable { peer, transfer, have } => {
                self.on_chunks_durable(now, (peer, transfer), &have);
            }
            Input::Abandon {
                peer,
                transfer,
                offer,
            } => self.on_abandon((peer, transfer), offer),
            Input::JobDone(result) => match result {
                JobResult::Prepared {
                    peer,
                    transfer,
                    result,
                } => self.on_prepared(now, (peer, transfer), result),
                JobResult::Sealed {
                    peer,
                    transfer,
                    result,
                } => self.on_sealed(now, (peer, transfer), result),
                JobResult::Discarded { peer, transfer } => self.on_discarded((peer, transfer)),
            },
        }
        Ok(())
    }

    /// Acts on the deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        let now = now.mono;
        while let Some(&(at, timer)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Outgoing(transfer) => self.on_outgoing_timeout(now, transfer),
                Timer::Incoming(peer, transfer) => self.on_incoming_timeout(now, (peer, transfer)),
            }
        }
    }

    /// Returns what must happen outside.
    pub fn poll_transmit(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns what users see.
    pub fn poll_event(&mut self) -> Option<TransferEvent> {
        self.events.pop_front()
    }

    /// Returns work whose result comes back as [`Input::JobDone`].
    pub fn poll_job(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Returns every transfer that has not ended.
    pub fn transfers(&self) -> impl Iterator<Item = TransferInfo> + '_ {
        self.outgoing
            .values()
            .map(Outgoing::info)
            .chain(self.incoming.values().map(Incoming::info))
    }

    /// Returns how many transfers go out, come in, and are remembered.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.outgoing.len(), self.incoming.len(), self.remembered.len())
    }

    fn on_frame(&mut self, now: Instant, peer: PeerId, frame: Frame) -> Result<(), Violation> {
        match frame {
            Frame::Offer(offer) => self.on_offer(now, (peer, offer.transfer), offer.offer),
            Frame::Accept(accept) => return self.on_accept(now, peer, accept),
            Frame::Progress(progress) => return self.on_progress(now, peer, &progress),
            Frame::Finish(finish) => return self.on_finish(now, (peer, finish.transfer), finish.root),
            Frame::Delivered(delivered) => return self.on_delivered(now, peer, &delivered),
            Frame::Abort(abort) => self.on_abort(now, peer, abort),
            // Whoever feeds this machine keeps the frames of the others.
            Frame::Hello(_)
            | Frame::Summary(_)
            | Frame::Digest(_)
            | Frame::Forwarding(_)
            | Frame::Items(_)
            | Frame::Goodbye(_)
            | Frame::JoinRequest(_)
            | Frame::JoinReply(_)
            | Frame::RenewRequest(_)
            | Frame::RenewReply(_) => {}
        }
        Ok(())
    }

    fn on_abort(&mut self, now: Instant, peer: PeerId, abort: Abort) {
        if self
            .outgoing
            .get(&abort.transfer)
            .is_some_and(|out| out.peer == peer)
        {
            self.on_outgoing_abort(now, abort);
        } else {
            self.on_incoming_abort((peer, abort.transfer), abort);
        }
    }

    fn on_cancel(&mut self, now: Instant, transfer: TransferId) {
        if self.outgoing.contains_key(&transfer) {
            self.fail_outgoing(now, transfer, TransferError::local(Fault::Cancelled));
        }
        let key = self.incoming.keys().find(|(_, id)| *id == transfer).copied();
        if let Some(key) = key {
            self.fail_incoming(key, TransferError::local(Fault::Cancelled));
        }
    }
}

#[cfg(test)]
mod tests;
