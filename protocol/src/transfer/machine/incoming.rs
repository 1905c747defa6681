//! The receiver's transitions: prepare, receive, seal; and the ways in which each ends early.

use core::time::Duration;

use super::{
    Ended, Job, Output, PayloadOrder, Prepared, Role, Subject, Timer, TransferError, TransferEvent,
    TransferInfo, TransferState, Transfers, Violation,
};
use crate::cbor::Text;
use crate::frame::{Abort, Accept, Delivered, Frame, Progress};
use crate::transfer::limits::{
    FAILURES_MAX, INCOMING_PER_PEER_MAX, JOB_BYTES_PER_SECOND_MIN, JOB_TIME_MAX, KEEPALIVE, PROBE_AFTER,
    RESTART_AFTER, STALL_MARGIN, STALL_TIMEOUT, STALLS_MAX, SUSPENDED_MAX,
};
use crate::transfer::{ChunkRanges, Fault, Offer};
use crate::{Instant, PeerId, TransferId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A Prepare is out; its time is over at the instant.
    Preparing(Instant),
    Receiving {
        attempt: u32,
        /// The digest, once Finish has said it.
        finish: Option<[u8; 32]>,
        /// Whether the attempt's stream broke.
        broken: bool,
    },
    /// For the sender to offer again.
    Suspended,
    /// A Seal is out; its time is over at the instant.
    Sealing([u8; 32], Instant),
    /// Over, but a Prepare is still out.
    Dropping { fault: Fault },
    /// Over; a Discard is out.
    Discarding { fault: Fault },
}

#[derive(Debug)]
pub(super) struct Incoming {
    key: (PeerId, TransferId),
    offer: Offer,
    stage: Stage,
    have: ChunkRanges,
    offered: bool,
    stalls: u32,
    failures: u32,
    /// When the stage's timeout is.
    due: Option<Instant>,
    timer: Option<Instant>,
}

impl Incoming {
    /// A transfer of which nothing is known but the offer, which waits for its sender.
    const fn new(key: (PeerId, TransferId), offer: Offer) -> Self {
        Self {
            key,
            offer,
            stage: Stage::Suspended,
            have: ChunkRanges::new(),
            offered: false,
            stalls: 0,
            failures: 0,
            due: None,
            timer: None,
        }
    }

    const fn subject(&self) -> Subject {
        Subject {
            transfer: self.key.1,
            peer: self.key.0,
            role: Role::Receiver,
        }
    }

    fn durable_bytes(&self) -> u64 {
        self.have.bytes(self.offer.size)
    }

    pub(super) fn info(&self) -> TransferInfo {
        let state = match self.stage {
            Stage::Preparing(_) => TransferState::Preparing,
            Stage::Receiving { .. } => TransferState::Receiving,
            Stage::Suspended => TransferState::Waiting,
            Stage::Sealing(..) => TransferState::Sealing,
            Stage::Dropping { .. } | Stage::Discarding { .. } => TransferState::Ended,
        };
        TransferInfo {
            of: self.subject(),
            offer: self.offer.clone(),
            state,
            durable_bytes: self.durable_bytes(),
        }
    }
}

/// Returns when a job on `size` bytes must be done.
fn job_end(now: Instant, size: u64) -> Instant {
    now.after(JOB_TIME_MAX + Duration::from_secs(size / JOB_BYTES_PER_SECOND_MIN))
}

/// Tells whether what arrived is kept for a later attempt of a transfer that ended so.
const fn keeps_partial(fault: Fault) -> bool {
    matches!(fault, Fault::TimedOut | Fault::Unreachable | Fault::Busy)
}

impl Transfers {
    pub(super) fn on_offer(&mut self, now: Instant, key: (PeerId, TransferId), offer: Offer) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get(&key) else {
            return self.on_new_offer(now, key, offer);
        };
        let same = incoming.offer == offer;
        match incoming.stage {
            Stage::Dropping { .. } | Stage::Discarding { .. } => {
                // What this side's user has cancelled stays so; a sender that takes up what it had cancelled itself
                // is let in once the disk is clean.
                let fault = match self.recall(peer, transfer, Role::Receiver) {
                    Some(Fault::Cancelled) => Fault::Cancelled,
                    Some(_) | None => Fault::Busy,
                };
                self.send_abort(peer, transfer, fault);
            }
            // [XFER-5] The outcome is decided already, but not for these bytes.
            Stage::Sealing(..) if !same => self.send_abort(peer, transfer, Fault::SourceChanged),
            Stage::Preparing(_) | Stage::Receiving { .. } | Stage::Suspended if !same => {
                self.fail_incoming(key, TransferError::local(Fault::SourceChanged));
            }
            // The answer comes with the job's result.
            Stage::Preparing(_) | Stage::Sealing(..) => {}
            // [XFER-4]
            Stage::Receiving { .. } | Stage::Suspended => self.start_attempt(now, key),
        }
    }

    fn on_new_offer(&mut self, now: Instant, key: (PeerId, TransferId), offer: Offer) {
        let (peer, transfer) = key;
        if self.recall(peer, transfer, Role::Receiver) == Some(Fault::Cancelled) {
            // [XFER-12]
            return self.send_abort(peer, transfer, Fault::Cancelled);
        }
        let count = self.peers.get(&peer).map_or(0, |entry| entry.incoming.len());
        let of_peer = count >= INCOMING_PER_PEER_MAX;
        if of_peer || self.incoming.len() >= self.limit {
            // One that its sender does not go on with makes room; what arrived of it stays in the journal.
            let idle = |incoming: &&Incoming| {
                incoming.stage == Stage::Suspended && (!of_peer || incoming.key.0 == peer)
            };
            let Some(victim) = self.incoming.values().find(idle).map(|incoming| incoming.key) else {
                // [XFER-11]
                return self.send_abort(peer, transfer, Fault::Busy);
            };
            self.fail_incoming(victim, TransferError::local(Fault::Unreachable));
        }
        self.unremember(peer, transfer, Role::Receiver);
        let incoming = Incoming {
            stage: Stage::Preparing(job_end(now, offer.size)),
            due: Some(now.after(KEEPALIVE)),
            ..Incoming::new(key, offer.clone())
        };
        self.incoming.insert(key, incoming);
        self.peers.entry(peer).or_default().incoming.insert(transfer);
        self.jobs.push_back(Job::Prepare {
            peer,
            transfer,
            offer,
        });
        self.update_want(peer);
        self.reschedule_incoming(key);
    }

    fn announce(&mut self, key: (PeerId, TransferId)) {
        if let Some(incoming) = self.incoming.get_mut(&key)
            && !core::mem::replace(&mut incoming.offered, true)
        {
            let (of, offer) = (incoming.subject(), incoming.offer.clone());
            self.events.push_back(TransferEvent::Offered { of, offer });
        }
    }

    pub(super) fn on_prepared(
        &mut self,
        now: Instant,
        key: (PeerId, TransferId),
        result: Result<Prepared, Fault>,
    ) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        match (incoming.stage, result) {
            (Stage::Preparing(_), Ok(Prepared::Ready { have })) => {
                incoming.have = have;
                self.announce(key);
                self.suspend_incoming(now, key);
                if self.is_up(peer) {
                    self.start_attempt(now, key);
                }
            }
            (Stage::Preparing(_), Ok(Prepared::Delivered { root })) => {
                // [XFER-7]
                self.send(peer, Frame::Delivered(Delivered { transfer, root }));
                self.remove_incoming(key);
            }
            (Stage::Preparing(_), Err(fault)) => {
                self.announce(key);
                self.suspend_incoming(now, key);
                self.fail_incoming(key, TransferError::local(fault));
            }
            (Stage::Dropping { fault }, Ok(Prepared::Ready { have })) => {
                incoming.have = have;
                self.discard(key, fault);
            }
            (Stage::Dropping { .. }, Ok(Prepared::Delivered { .. }) | Err(_)) => self.remove_incoming(key),
            // Nobody asked.
            (
                Stage::Receiving { .. } | Stage::Suspended | Stage::Sealing(..) | Stage::Discarding { .. },
                Ok(Prepared::Ready { .. } | Prepared::Delivered { .. }) | Err(_),
            ) => {}
        }
    }

    /// Leaves the transfer to wait for its sender.
    fn suspend_incoming(&mut self, now: Instant, key: (PeerId, TransferId)) {
        if let Some(incoming) = self.incoming.get_mut(&key) {
            incoming.stage = Stage::Suspended;
            incoming.due = Some(now.after(SUSPENDED_MAX));
            self.reschedule_incoming(key);
        }
    }

    /// Asks for what is missing, under a new number: chunks of earlier attempts are void. [XFER-2] [XFER-3]
    fn start_attempt(&mut self, now: Instant, key: (PeerId, TransferId)) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        self.attempts = self.attempts.wrapping_add(1);
        let attempt = self.attempts;
        incoming.stage = Stage::Receiving {
            attempt,
            finish: None,
            broken: false,
        };
        incoming.due = Some(now.after(STALL_TIMEOUT + STALL_MARGIN));
        let (of, have, resumed_bytes) = (
            incoming.subject(),
            incoming.have.clone(),
            incoming.durable_bytes(),
        );
        let offer = incoming.offer.clone();
        self.outputs.push_back(Output::Payload(PayloadOrder::Expect {
            peer,
            transfer,
            attempt,
            offer,
        }));
        self.send(
            peer,
            Frame::Accept(Accept {
                transfer,
                have,
                attempt,
            }),
        );
        self.events
            .push_back(TransferEvent::Started { of, resumed_bytes });
        self.reschedule_incoming(key);
    }

    pub(super) fn on_chunks_durable(&mut self, now: Instant, key: (PeerId, TransferId), have: &ChunkRanges) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        let before = incoming.durable_bytes();
        let chunks = incoming.offer.chunks();
        for range in have.ranges() {
            incoming.have.insert(range.start..range.end.min(chunks));
        }
        let durable_bytes = incoming.durable_bytes();
        match incoming.stage {
            Stage::Receiving { broken, .. } if durable_bytes > before => {
                incoming.stalls = 0;
                incoming.failures = 0;
                if !broken {
                    incoming.due = Some(now.after(STALL_TIMEOUT + STALL_MARGIN));
                }
                self.events.push_back(TransferEvent::Progress {
                    of: incoming.subject(),
                    durable_bytes,
                });
                self.send(
                    peer,
                    Frame::Progress(Progress {
                        transfer,
                        durable_bytes,
                    }),
                );
                self.reschedule_incoming(key);
                self.seal_when_complete(now, key);
            }
            Stage::Preparing(_)
            | Stage::Receiving { .. }
            | Stage::Suspended
            | Stage::Sealing(..)
            | Stage::Dropping { .. }
            | Stage::Discarding { .. } => {}
        }
    }

    pub(super) fn on_finish(
        &mut self,
        now: Instant,
        key: (PeerId, TransferId),
        root: [u8; 32],
    ) -> Result<(), Violation> {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get_mut(&key) else {
            // [XFER-12]
            if let Some(fault) = self.recall(peer, transfer, Role::Receiver) {
                self.send_abort(peer, transfer, fault);
            }
            return Ok(());
        };
        match &mut incoming.stage {
            Stage::Receiving {
                finish: Some(known), ..
            } if *known != root => {
                self.fail_incoming(key, TransferError::local(Fault::Violation));
                return Err(Violation::FinishChanged(transfer));
            }
            Stage::Receiving { finish, broken, .. } => {
                // Often the last chunks are not durable yet. [XFER-6]
                *finish = Some(root);
                if !*broken {
                    incoming.due = Some(now.after(STALL_TIMEOUT + STALL_MARGIN));
                }
                self.reschedule_incoming(key);
                self.seal_when_complete(now, key);
            }
            Stage::Sealing(known, _) if *known != root => return Err(Violation::FinishChanged(transfer)),
            // Of an attempt that is void.
            Stage::Preparing(_)
            | Stage::Suspended
            | Stage::Sealing(..)
            | Stage::Dropping { .. }
            | Stage::Discarding { .. } => {}
        }
        Ok(())
    }

    fn seal_when_complete(&mut self, now: Instant, key: (PeerId, TransferId)) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        let Stage::Receiving {
            finish: Some(root), ..
        } = incoming.stage
        else {
            return;
        };
        if incoming.have.count() < incoming.offer.chunks() {
            return;
        }
        incoming.stage = Stage::Sealing(root, job_end(now, incoming.offer.size));
        incoming.due = Some(now.after(KEEPALIVE));
        self.outputs
            .push_back(Output::Payload(PayloadOrder::Forget { peer, transfer }));
        self.jobs.push_back(Job::Seal { peer, transfer, root });
        self.reschedule_incoming(key);
    }

    pub(super) fn on_sealed(&mut self, now: Instant, key: (PeerId, TransferId), result: Result<(), Fault>) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get(&key) else {
            return;
        };
        let Stage::Sealing(root, _) = incoming.stage else {
            return;
        };
        match result {
            Ok(()) => {
                let of = incoming.subject();
                self.send(peer, Frame::Delivered(Delivered { transfer, root }));
                self.events.push_back(TransferEvent::Ended {
                    of,
                    result: Ok(Ended { root }),
                });
                self.remove_incoming(key);
            }
            Err(fault) => {
                self.suspend_incoming(now, key);
                self.fail_incoming(key, TransferError::local(fault));
            }
        }
    }

    pub(super) fn on_discarded(&mut self, key: (PeerId, TransferId)) {
        if self
            .incoming
            .get(&key)
            .is_some_and(|incoming| matches!(incoming.stage, Stage::Discarding { .. }))
        {
            self.remove_incoming(key);
        }
    }

    pub(super) fn on_receiving_failed(
        &mut self,
        now: Instant,
        key: (PeerId, TransferId),
        of_attempt: u32,
        fault: Option<Fault>,
    ) {
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        let Stage::Receiving { attempt, broken, .. } = &mut incoming.stage else {
            return;
        };
        if *attempt != of_attempt {
            return;
        }
        if let Some(fault) = fault {
            return self.fail_incoming(key, TransferError::local(fault));
        }
        *broken = true;
        incoming.due = Some(now.after(RESTART_AFTER));
        self.reschedule_incoming(key);
    }

    pub(super) fn on_incoming_up(&mut self, now: Instant, key: (PeerId, TransferId)) {
        if let Some(incoming) = self
            .incoming
            .get_mut(&key)
            .filter(|incoming| incoming.stage == Stage::Suspended)
        {
            incoming.due = Some(now.after(PROBE_AFTER));
            self.reschedule_incoming(key);
        }
    }

    pub(super) fn on_incoming_down(&mut self, now: Instant, key: (PeerId, TransferId)) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        if !matches!(incoming.stage, Stage::Receiving { .. }) {
            return;
        }
        incoming.stalls = 0;
        incoming.failures = 0;
        self.outputs
            .push_back(Output::Payload(PayloadOrder::Forget { peer, transfer }));
        self.events.push_back(TransferEvent::Suspended {
            of: incoming.subject(),
        });
        self.suspend_incoming(now, key);
    }

    pub(super) fn on_incoming_abort(&mut self, key: (PeerId, TransferId), abort: Abort) {
        let error = TransferError {
            fault: abort.fault,
            local: false,
            detail: abort.detail,
        };
        self.fail_incoming(key, error);
    }

    pub(super) fn on_incoming_timeout(&mut self, now: Instant, key: (PeerId, TransferId)) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        incoming.timer = None;
        let durable_bytes = incoming.durable_bytes();
        match incoming.stage {
            Stage::Preparing(end) | Stage::Sealing(_, end) => {
                // [XFER-9]
                incoming.due = (now < end).then(|| now.after(KEEPALIVE));
                self.send(
                    peer,
                    Frame::Progress(Progress {
                        transfer,
                        durable_bytes,
                    }),
                );
            }
            Stage::Receiving { broken: true, .. } => {
                incoming.failures += 1;
                if incoming.failures >= FAILURES_MAX {
                    return self.fail_incoming(key, TransferError::local(Fault::Unreachable));
                }
                self.start_attempt(now, key);
            }
            Stage::Receiving { broken: false, .. } => {
                // [XFER-10]
                incoming.stalls += 1;
                if incoming.stalls >= STALLS_MAX {
                    return self.fail_incoming(key, TransferError::local(Fault::TimedOut));
                }
                self.start_attempt(now, key);
            }
            Stage::Suspended if self.peers.get(&peer).is_some_and(|entry| entry.up) => {
                // [XFER-13] A sender that has it waiting ignores this; one that has forgotten it says so.
                incoming.due = Some(now.after(PROBE_AFTER));
                let have = incoming.have.clone();
                self.attempts = self.attempts.wrapping_add(1);
                self.send(
                    peer,
                    Frame::Accept(Accept {
                        transfer,
                        have,
                        attempt: self.attempts,
                    }),
                );
            }
            Stage::Suspended => {
                return self.fail_incoming(key, TransferError::local(Fault::Unreachable));
            }
            Stage::Dropping { .. } | Stage::Discarding { .. } => incoming.due = None,
        }
        self.reschedule_incoming(key);
    }

    /// Ends a transfer without success, tells the other side unless that is where it comes from, and lets what
    /// arrived be removed.
    pub(super) fn fail_incoming(&mut self, key: (PeerId, TransferId), error: TransferError) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        let (of, offered, fault) = (incoming.subject(), incoming.offered, error.fault);
        let (preparing, receiving) = match incoming.stage {
            Stage::Preparing(_) => (true, false),
            Stage::Receiving { .. } => (false, true),
            Stage::Suspended => (false, false),
            // [XFER-8] Too late, or over already.
            Stage::Sealing(..) | Stage::Dropping { .. } | Stage::Discarding { .. } => return,
        };
        if receiving {
            self.outputs
                .push_back(Output::Payload(PayloadOrder::Forget { peer, transfer }));
        }
        if error.local {
            self.tell_ended(peer, transfer, Role::Receiver, fault);
        }
        if offered {
            self.events.push_back(TransferEvent::Ended {
                of,
                result: Err(error),
            });
        }
        if preparing {
            if let Some(incoming) = self.incoming.get_mut(&key) {
                incoming.stage = Stage::Dropping { fault };
                incoming.due = None;
            }
            self.reschedule_incoming(key);
        } else {
            self.discard(key, fault);
        }
    }

    /// Tells whether an incoming transfer waits for a sender that is away, or is in the journal only.
    #[must_use]
    pub fn may_abandon(&self, peer: PeerId, transfer: TransferId) -> bool {
        match self
            .incoming
            .get(&(peer, transfer))
            .map(|incoming| incoming.stage)
        {
            None => true,
            Some(Stage::Suspended) => !self.is_up(peer),
            Some(
                Stage::Preparing(_)
                | Stage::Receiving { .. }
                | Stage::Sealing(..)
                | Stage::Dropping { .. }
                | Stage::Discarding { .. },
            ) => false,
        }
    }

    /// Ends a transfer whose sender stays away, and lets what arrived be removed. [XFER-20]
    pub(super) fn on_abandon(&mut self, key: (PeerId, TransferId), offer: Offer) {
        let (peer, transfer) = key;
        if !self.may_abandon(peer, transfer) {
            return;
        }
        self.incoming
            .entry(key)
            .or_insert_with(|| Incoming::new(key, offer));
        self.peers.entry(peer).or_default().incoming.insert(transfer);
        self.announce(key);
        if let Some(incoming) = self.incoming.get_mut(&key) {
            incoming.stage = Stage::Discarding {
                fault: Fault::Unreachable,
            };
            incoming.due = None;
            let of = incoming.subject();
            let error = TransferError {
                detail: Some(Text::truncating(
                    "its sender did not come back, and what had arrived was removed",
                )),
                ..TransferError::local(Fault::Unreachable)
            };
            self.events.push_back(TransferEvent::Ended {
                of,
                result: Err(error),
            });
        }
        self.jobs.push_back(Job::Discard { peer, transfer });
        self.update_want(peer);
        self.reschedule_incoming(key);
    }

    fn discard(&mut self, key: (PeerId, TransferId), fault: Fault) {
        let (peer, transfer) = key;
        // Of an offer that never brought anything there is nothing to keep, but the room that it was promised.
        let empty = self
            .incoming
            .get(&key)
            .is_none_or(|incoming| incoming.have.is_empty());
        if keeps_partial(fault) && !empty {
            self.outputs
                .push_back(Output::Payload(PayloadOrder::Keep { peer, transfer }));
            return self.remove_incoming(key);
        }
        if let Some(incoming) = self.incoming.get_mut(&key) {
            incoming.stage = Stage::Discarding { fault };
            incoming.due = None;
            self.jobs.push_back(Job::Discard { peer, transfer });
            self.reschedule_incoming(key);
        }
    }

    fn remove_incoming(&mut self, key: (PeerId, TransferId)) {
        let (peer, transfer) = key;
        let Some(incoming) = self.incoming.remove(&key) else {
            return;
        };
        if let Some(at) = incoming.timer {
            self.timers.remove(&(at, Timer::Incoming(peer, transfer)));
        }
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.incoming.remove(&transfer);
        }
        self.update_want(peer);
    }

    fn reschedule_incoming(&mut self, key: (PeerId, TransferId)) {
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        if incoming.due != incoming.timer {
            if let Some(at) = incoming.timer {
                self.timers.remove(&(at, Timer::Incoming(key.0, key.1)));
            }
            if let Some(at) = incoming.due {
                self.timers.insert((at, Timer::Incoming(key.0, key.1)));
            }
            incoming.timer = incoming.due;
        }
    }
}
