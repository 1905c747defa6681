//! The sender's transitions: wait for the turn, offer, send, finish, hear that it was delivered.

use core::time::Duration;

use super::{
    Ended, Output, PayloadOrder, Role, Subject, Timer, TransferError, TransferEvent, TransferInfo,
    TransferState, Transfers, Violation,
};
use crate::frame::{Abort, Accept, Delivered, Finish, Frame, OfferFrame, Progress};
use crate::transfer::limits::{FAILURES_MAX, OUTGOING_MAX, RETRY_MAX, RETRY_MIN, STALL_TIMEOUT, STALLS_MAX};
use crate::transfer::{Fault, Offer};
use crate::{Instant, PeerId, TransferId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// For the peer, or for its turn.
    Waiting,
    /// For the end of a pause.
    Pausing(Instant),
    Offering,
    Sending {
        attempt: u32,
    },
    Finishing {
        attempt: u32,
    },
}

#[derive(Debug)]
pub(super) struct Outgoing {
    transfer: TransferId,
    pub(super) peer: PeerId,
    offer: Offer,
    deadline: Option<Instant>,
    /// Whether an earlier process may have sent Finish.
    resumed: bool,
    /// Its age among the others.
    sequence: u64,
    stage: Stage,
    /// Known once the source was read to its end.
    root: Option<[u8; 32]>,
    offered: bool,
    durable_bytes: u64,
    stall_at: Instant,
    stalls: u32,
    failures: u32,
    refusals: u32,
    timer: Option<Instant>,
}

impl Outgoing {
    pub(super) const fn new(
        transfer: TransferId,
        peer: PeerId,
        offer: Offer,
        deadline: Option<Instant>,
        resumed: bool,
    ) -> Self {
        Self {
            transfer,
            peer,
            offer,
            deadline,
            resumed,
            sequence: 0,
            stage: Stage::Waiting,
            root: None,
            offered: false,
            durable_bytes: 0,
            stall_at: Instant(0),
            stalls: 0,
            failures: 0,
            refusals: 0,
            timer: None,
        }
    }

    const fn subject(&self) -> Subject {
        Subject {
            transfer: self.transfer,
            peer: self.peer,
            role: Role::Sender,
        }
    }

    pub(super) fn info(&self) -> TransferInfo {
        let state = match self.stage {
            Stage::Waiting | Stage::Pausing(_) => TransferState::Waiting,
            Stage::Offering => TransferState::Offering,
            Stage::Sending { .. } => TransferState::Sending,
            Stage::Finishing { .. } => TransferState::Finishing,
        };
        TransferInfo {
            of: self.subject(),
            offer: self.offer.clone(),
            state,
            durable_bytes: self.durable_bytes,
        }
    }

    fn due(&self) -> Option<Instant> {
        let stage = match self.stage {
            Stage::Waiting => None,
            Stage::Pausing(until) => Some(until),
            Stage::Offering | Stage::Sending { .. } | Stage::Finishing { .. } => Some(self.stall_at),
        };
        [stage, self.deadline].into_iter().flatten().min()
    }
}

impl Transfers {
    fn outgoing_with(&mut self, peer: PeerId, transfer: TransferId) -> Option<&mut Outgoing> {
        self.outgoing.get_mut(&transfer).filter(|out| out.peer == peer)
    }

    pub(super) fn on_send(&mut self, now: Instant, mut out: Outgoing) {
        let (transfer, peer) = (out.transfer, out.peer);
        if self.outgoing.contains_key(&transfer) {
            return;
        }
        if self.outgoing.len() >= OUTGOING_MAX {
            let result = Err(TransferError::local(Fault::Busy));
            self.events.push_back(TransferEvent::Ended {
                of: out.subject(),
                result,
            });
            return;
        }
        self.unremember(peer, transfer, Role::Sender);
        self.sends += 1;
        out.sequence = self.sends;
        self.outgoing.insert(transfer, out);
        self.peers.entry(peer).or_default().outgoing.insert(transfer);
        self.enqueue(transfer);
        self.update_want(peer);
        self.pump(now, peer);
        self.reschedule_outgoing(transfer);
    }

    /// Lets a transfer wait for its turn: urgent ones first, then old ones.
    fn enqueue(&mut self, transfer: TransferId) {
        if let Some(out) = self.outgoing.get_mut(&transfer) {
            out.stage = Stage::Waiting;
            let entry = self.peers.entry(out.peer).or_default();
            entry.queue.insert((out.offer.priority, out.sequence, transfer));
        }
    }

    /// Offers; what is offered again keeps its id. [XFER-1]
    pub(super) fn offer(&mut self, now: Instant, transfer: TransferId) {
        let Some(out) = self.outgoing.get_mut(&transfer) else {
            return;
        };
        out.stage = Stage::Offering;
        out.stall_at = now.after(STALL_TIMEOUT);
        let (peer, offer) = (out.peer, out.offer.clone());
        if !core::mem::replace(&mut out.offered, true) {
            self.events.push_back(TransferEvent::Offered {
                of: out.subject(),
                offer: offer.clone(),
            });
        }
        self.send(peer, Frame::Offer(OfferFrame { transfer, offer }));
        self.reschedule_outgoing(transfer);
    }

    pub(super) fn on_accept(&mut self, now: Instant, peer: PeerId, accept: Accept) -> Result<(), Violation> {
        let transfer = accept.transfer;
        let Some(out) = self.outgoing_with(peer, transfer) else {
            // [XFER-12] One that was forgotten in a restart may still be resumed by its user.
            let fault = self
                .recall(peer, transfer, Role::Sender)
                .unwrap_or(Fault::Unreachable);
            self.send_abort(peer, transfer, fault);
            return Ok(());
        };
        if accept
            .have
            .ranges()
            .last()
            .is_some_and(|range| range.end > out.offer.chunks())
        {
            return self.on_outgoing_violation(now, transfer, Violation::HaveBeyondEnd(transfer));
        }
        let running = match out.stage {
            // It was offered on a connection that is gone, or is about to be offered again.
            Stage::Waiting | Stage::Pausing(_) => return Ok(()),
            Stage::Offering => None,
            Stage::Sending { attempt } => Some((attempt, true)),
            Stage::Finishing { attempt } => Some((attempt, false)),
        };
        if running.is_some_and(|(attempt, _)| attempt == accept.attempt) {
            return Ok(());
        }
        // [XFER-3] The receiver may start over at any time.
        let attempt = accept.attempt;
        let durable_bytes = accept.have.bytes(out.offer.size);
        let complete = accept.have.count() == out.offer.chunks();
        out.durable_bytes = durable_bytes;
        out.refusals = 0;
        out.stall_at = now.after(STALL_TIMEOUT);
        let (of, root) = (out.subject(), out.root.filter(|_| complete));
        out.stage = if root.is_some() {
            Stage::Finishing { attempt }
        } else {
            Stage::Sending { attempt }
        };
        if running.is_some_and(|(_, sending)| sending) {
            self.outputs
                .push_back(Output::Payload(PayloadOrder::Stop { transfer }));
        }
        self.events.push_back(TransferEvent::Started {
            of,
            resumed_bytes: durable_bytes,
        });
        match root {
            Some(root) => self.send(peer, Frame::Finish(Finish { transfer, root })),
            None => {
                let order = PayloadOrder::Start {
                    peer,
                    transfer,
                    attempt,
                    have: accept.have,
                };
                self.outputs.push_back(Output::Payload(order));
            }
        }
        self.reschedule_outgoing(transfer);
        Ok(())
    }

    pub(super) fn on_progress(
        &mut self,
        now: Instant,
        peer: PeerId,
        progress: &Progress,
    ) -> Result<(), Violation> {
        let (transfer, durable_bytes) = (progress.transfer, progress.durable_bytes);
        let Some(out) = self.outgoing_with(peer, transfer) else {
            return Ok(());
        };
        if durable_bytes > out.offer.size {
            return self.on_outgoing_violation(now, transfer, Violation::ProgressBeyondSize(transfer));
        }
        let more = durable_bytes > out.durable_bytes;
        match out.stage {
            Stage::Waiting | Stage::Pausing(_) => return Ok(()),
            // [XFER-9] A receiver that prepares or seals says so by repeating itself.
            Stage::Offering | Stage::Finishing { .. } => out.stall_at = now.after(STALL_TIMEOUT),
            Stage::Sending { .. } => {
                if more {
                    out.stall_at = now.after(STALL_TIMEOUT);
                }
            }
        }
        if more {
            out.durable_bytes = durable_bytes;
            out.stalls = 0;
            out.failures = 0;
            let of = out.subject();
            self.events
                .push_back(TransferEvent::Progress { of, durable_bytes });
        }
        self.reschedule_outgoing(transfer);
        Ok(())
    }

    pub(super) fn on_payload_sent(
        &mut self,
        now: Instant,
        transfer: TransferId,
        attempt: u32,
        root: [u8; 32],
    ) {
        let Some(out) = self.outgoing.get_mut(&transfer) else {
            return;
        };
        if out.stage != (Stage::Sending { attempt }) {
            return;
        }
        if out.root.is_some_and(|known| known != root) {
            return self.fail_outgoing(now, transfer, TransferError::local(Fault::SourceChanged));
        }
        out.root = Some(root);
        out.stage = Stage::Finishing { attempt };
        out.stall_at = now.after(STALL_TIMEOUT);
        let peer = out.peer;
        self.send(peer, Frame::Finish(Finish { transfer, root }));
        self.reschedule_outgoing(transfer);
    }

    pub(super) fn on_delivered(
        &mut self,
        now: Instant,
        peer: PeerId,
        delivered: &Delivered,
    ) -> Result<(), Violation> {
        let transfer = delivered.transfer;
        let Some(out) = self.outgoing_with(peer, transfer) else {
            return Ok(());
        };
        match out.root {
            Some(root) if root != delivered.root => {
                return self.on_outgoing_violation(now, transfer, Violation::DeliveredOtherRoot(transfer));
            }
            // [XFER-7] An earlier process of this peer sent Finish, and never heard the answer.
            None if !out.resumed => {
                return self.on_outgoing_violation(now, transfer, Violation::DeliveredEarly(transfer));
            }
            Some(_) | None => {}
        }
        self.end_outgoing(now, transfer, Ok(Ended { root: delivered.root }));
        Ok(())
    }

    fn on_outgoing_violation(
        &mut self,
        now: Instant,
        transfer: TransferId,
        what: Violation,
    ) -> Result<(), Violation> {
        self.fail_outgoing(now, transfer, TransferError::local(Fault::Violation));
        Err(what)
    }

    pub(super) fn on_outgoing_abort(&mut self, now: Instant, abort: Abort) {
        let transfer = abort.transfer;
        if abort.fault == Fault::Busy {
            // [XFER-11]
            let Some(out) = self.outgoing.get_mut(&transfer) else {
                return;
            };
            out.refusals = out.refusals.saturating_add(1);
            let pause = self.pause(self.outgoing.get(&transfer).map_or(1, |out| out.refusals));
            return self.suspend_outgoing(now, transfer, Some(pause));
        }
        let error = TransferError {
            fault: abort.fault,
            local: false,
            detail: abort.detail,
        };
        self.fail_outgoing(now, transfer, error);
    }

    pub(super) fn on_sending_failed(
        &mut self,
        now: Instant,
        transfer: TransferId,
        attempt: u32,
        fault: Option<Fault>,
    ) {
        let Some(out) = self.outgoing.get_mut(&transfer) else {
            return;
        };
        if out.stage != (Stage::Sending { attempt }) {
            return;
        }
        if let Some(fault) = fault {
            return self.fail_outgoing(now, transfer, TransferError::local(fault));
        }
        out.failures += 1;
        let failures = out.failures;
        if failures >= FAILURES_MAX {
            return self.fail_outgoing(now, transfer, TransferError::local(Fault::Unreachable));
        }
        let pause = self.pause(failures);
        self.suspend_outgoing(now, transfer, Some(pause));
    }

    /// Returns the pause after the `count`th failure in a row.
    fn pause(&mut self, count: u32) -> Duration {
        self.random
            .jittered((RETRY_MIN * (1 << count.saturating_sub(1).min(6))).min(RETRY_MAX))
    }

    /// Gives up the turn, to be offered again when the peer is up and, with `pause`, not before it is over.
    pub(super) fn suspend_outgoing(&mut self, now: Instant, transfer: TransferId, pause: Option<Duration>) {
        let Some(out) = self.outgoing.get_mut(&transfer) else {
            return;
        };
        let peer = out.peer;
        let (flowing, sending) = match out.stage {
            Stage::Waiting | Stage::Pausing(_) | Stage::Offering => (false, false),
            Stage::Sending { .. } => (true, true),
            Stage::Finishing { .. } => (true, false),
        };
        if sending {
            self.outputs
                .push_back(Output::Payload(PayloadOrder::Stop { transfer }));
        }
        if flowing {
            self.events
                .push_back(TransferEvent::Suspended { of: out.subject() });
        }
        out.stage = pause.map_or(Stage::Waiting, |pause| Stage::Pausing(now.after(pause)));
        self.release(peer, transfer);
        if pause.is_none() {
            self.enqueue(transfer);
        }
        self.reschedule_outgoing(transfer);
        self.pump(now, peer);
    }

    fn release(&mut self, peer: PeerId, transfer: TransferId) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.running.remove(&transfer);
            entry.queue.retain(|(_, _, queued)| *queued != transfer);
        }
    }

    /// The peer is connected, anew or otherwise: whatever waits for its answer is said again.
    pub(super) fn on_outgoing_up(&mut self, now: Instant, transfer: TransferId) {
        let Some(out) = self.outgoing.get_mut(&transfer) else {
            return;
        };
        out.stalls = 0;
        out.failures = 0;
        match out.stage {
            Stage::Waiting => {}
            // The bytes have their own connection.
            Stage::Sending { .. } => {}
            Stage::Pausing(_) => {
                self.enqueue(transfer);
                self.reschedule_outgoing(transfer);
            }
            Stage::Offering | Stage::Finishing { .. } => self.offer(now, transfer),
        }
    }

    pub(super) fn on_outgoing_timeout(&mut self, now: Instant, transfer: TransferId) {
        let Some(out) = self.outgoing.get_mut(&transfer) else {
            return;
        };
        out.timer = None;
        if out.deadline.is_some_and(|at| at <= now) {
            return self.fail_outgoing(now, transfer, TransferError::local(Fault::TimedOut));
        }
        match out.stage {
            Stage::Pausing(until) if until <= now => {
                let peer = out.peer;
                self.enqueue(transfer);
                self.pump(now, peer);
            }
            Stage::Offering | Stage::Sending { .. } | Stage::Finishing { .. } if out.stall_at <= now => {
                // [XFER-10]
                out.stalls += 1;
                let stalls = out.stalls;
                if stalls >= STALLS_MAX {
                    return self.fail_outgoing(now, transfer, TransferError::local(Fault::TimedOut));
                }
                let pause = self.pause(stalls);
                self.suspend_outgoing(now, transfer, Some(pause));
            }
            Stage::Waiting
            | Stage::Pausing(_)
            | Stage::Offering
            | Stage::Sending { .. }
            | Stage::Finishing { .. } => {}
        }
        self.reschedule_outgoing(transfer);
    }

    /// Ends a transfer without success, and tells the other side unless that is where it comes from.
    pub(super) fn fail_outgoing(&mut self, now: Instant, transfer: TransferId, error: TransferError) {
        let Some(out) = self.outgoing.get(&transfer) else {
            return;
        };
        if error.local && (out.offered || out.resumed) {
            self.tell_ended(out.peer, transfer, Role::Sender, error.fault);
        }
        self.end_outgoing(now, transfer, Err(error));
    }

    fn end_outgoing(&mut self, now: Instant, transfer: TransferId, result: Result<Ended, TransferError>) {
        let Some(out) = self.outgoing.remove(&transfer) else {
            return;
        };
        if matches!(out.stage, Stage::Sending { .. }) {
            self.outputs
                .push_back(Output::Payload(PayloadOrder::Stop { transfer }));
        }
        if let Some(at) = out.timer {
            self.timers.remove(&(at, Timer::Outgoing(transfer)));
        }
        self.release(out.peer, transfer);
        if let Some(entry) = self.peers.get_mut(&out.peer) {
            entry.outgoing.remove(&transfer);
        }
        self.events.push_back(TransferEvent::Ended {
            of: out.subject(),
            result,
        });
        self.update_want(out.peer);
        self.pump(now, out.peer);
    }

    fn reschedule_outgoing(&mut self, transfer: TransferId) {
        let Some(out) = self.outgoing.get_mut(&transfer) else {
            return;
        };
        let due = out.due();
        if due != out.timer {
            if let Some(at) = out.timer {
                self.timers.remove(&(at, Timer::Outgoing(transfer)));
            }
            if let Some(at) = due {
                self.timers.insert((at, Timer::Outgoing(transfer)));
            }
            out.timer = due;
        }
    }
}
