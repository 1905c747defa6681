//! The transfer machine, alone and against another one.

use core::time::Duration;
use std::format;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::frame::{Accept, Delivered, Finish, OfferFrame, Progress};
use crate::transfer::limits::{
    ENDED_REMEMBERED_MAX, INCOMING_PER_PEER_MAX, KEEPALIVE, PROBE_AFTER, RESTART_AFTER, RETRY_MAX,
    SENDING_MAX, STALL_MARGIN, STALL_TIMEOUT, STALLS_MAX,
};
use crate::transfer::{CHUNK_BYTES, PayloadKind};
use crate::types::{DataType, PacketPriority};
use crate::{NodeId, UnixMillis};

mod owner;
mod pair;
mod silence;
mod table;

const ID: TransferId = TransferId([7; 16]);
const ROOT: [u8; 32] = [9; 32];
const OTHER: [u8; 32] = [8; 32];

fn at(millis: u64) -> Now {
    Now {
        mono: Instant(millis * 1_000_000),
        wall: UnixMillis(millis),
    }
}

fn peer(n: usize) -> PeerId {
    PeerId([u8::try_from(n).unwrap(); 32])
}

fn random(n: u8) -> Random {
    Random::from_seed([n; 32])
}

fn offer(size: u64) -> Offer {
    Offer {
        source: NodeId::new("a").unwrap(),
        destination: NodeId::new("b").unwrap(),
        name: Text::truncating("file"),
        kind: PayloadKind::File,
        size,
        data_type: DataType::Generic,
        priority: PacketPriority::Medium,
        modified: None,
        mode: None,
        sync: None,
    }
}

fn ranges(end: u64) -> ChunkRanges {
    core::iter::once(0..end).collect()
}

/// A machine with a clock, whose peer is [`P`].
struct Rig {
    machine: Transfers,
    now: Now,
}

const P: PeerId = PeerId([1; 32]);
const SIZE: u64 = 4 * CHUNK_BYTES;

impl Rig {
    fn new() -> Self {
        let mut rig = Self {
            machine: Transfers::new(random(1)),
            now: at(0),
        };
        rig.input(Input::PeerUp { peer: P });
        rig
    }

    fn input(&mut self, input: Input) {
        self.machine.handle_input(self.now, input).unwrap();
    }

    fn frame(&mut self, frame: Frame) -> Result<(), Violation> {
        self.machine
            .handle_input(self.now, Input::Frame { peer: P, frame })
    }

    fn send(&mut self, transfer: TransferId, resumed: bool) {
        self.input(Input::Send {
            transfer,
            peer: P,
            offer: offer(SIZE),
            deadline: None,
            resumed,
        });
    }

    fn accept(&mut self, attempt: u32, chunks: u64) -> Result<(), Violation> {
        self.frame(Frame::Accept(Accept {
            transfer: ID,
            have: ranges(chunks),
            attempt,
        }))
    }

    fn offered(&mut self) {
        self.frame(Frame::Offer(OfferFrame {
            transfer: ID,
            offer: offer(SIZE),
        }))
        .unwrap();
    }

    fn prepared(&mut self, result: Result<Prepared, Fault>) {
        self.input(Input::JobDone(JobResult::Prepared {
            peer: P,
            transfer: ID,
            result,
        }));
    }

    fn durable(&mut self, chunks: u64) {
        self.input(Input::ChunksDurable {
            peer: P,
            transfer: ID,
            have: ranges(chunks),
        });
    }

    fn finish(&mut self, root: [u8; 32]) -> Result<(), Violation> {
        self.frame(Frame::Finish(Finish { transfer: ID, root }))
    }

    fn delivered(&mut self, root: [u8; 32]) -> Result<(), Violation> {
        self.frame(Frame::Delivered(Delivered { transfer: ID, root }))
    }

    fn abort(&mut self, fault: Fault) {
        self.frame(Frame::Abort(Abort {
            transfer: ID,
            fault,
            detail: None,
        }))
        .unwrap();
    }

    fn sent(&mut self, attempt: u32) {
        self.input(Input::PayloadSent {
            transfer: ID,
            attempt,
            root: ROOT,
        });
    }

    /// Brings a sender to a stage.
    fn sender(stage: TransferState) -> Self {
        let mut rig = Self::new();
        match stage {
            TransferState::Waiting => {
                rig.input(Input::PeerDown { peer: P });
                rig.send(ID, false);
            }
            TransferState::Offering => rig.send(ID, false),
            TransferState::Sending => {
                rig.send(ID, false);
                rig.accept(1, 0).unwrap();
            }
            TransferState::Finishing => {
                rig.send(ID, false);
                rig.accept(1, 0).unwrap();
                rig.sent(1);
            }
            TransferState::Preparing
            | TransferState::Receiving
            | TransferState::Sealing
            | TransferState::Ended => {
                unreachable!("not a sender's")
            }
        }
        assert_eq!(rig.state(), Some(stage));
        rig.forget();
        rig
    }

    /// Brings a receiver to a stage.
    fn receiver(stage: TransferState) -> Self {
        let mut rig = Self::new();
        rig.offered();
        let ready = Ok(Prepared::Ready { have: ranges(0) });
        match stage {
            TransferState::Preparing => {}
            TransferState::Receiving => rig.prepared(ready),
            TransferState::Waiting => {
                rig.prepared(ready);
                rig.input(Input::PeerDown { peer: P });
            }
            TransferState::Sealing => {
                rig.prepared(ready);
                rig.finish(ROOT).unwrap();
                rig.durable(4);
            }
            TransferState::Ended => {
                rig.prepared(ready);
                rig.input(Input::Cancel { transfer: ID });
            }
            TransferState::Offering | TransferState::Sending | TransferState::Finishing => {
                unreachable!("not a receiver's")
            }
        }
        assert_eq!(rig.state(), Some(stage));
        rig.forget();
        rig
    }

    fn state(&self) -> Option<TransferState> {
        self.machine.transfers().next().map(|info| info.state)
    }

    fn forget(&mut self) {
        while self.machine.poll_transmit().is_some() {}
        while self.machine.poll_event().is_some() {}
        while self.machine.poll_job().is_some() {}
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.now.mono.after(duration);
        while let Some(due) = self.machine.poll_timeout().filter(|due| *due <= end) {
            self.now.mono = self.now.mono.max(due);
            self.machine.handle_timeout(self.now);
        }
        self.now.mono = end;
    }

    fn outputs(&mut self) -> Vec<Output> {
        core::iter::from_fn(|| self.machine.poll_transmit()).collect()
    }

    fn frames(&mut self) -> Vec<Frame> {
        let frame = |output| match output {
            Output::Frame { frame, .. } => Some(frame),
            Output::Want { .. } | Output::Unwant { .. } | Output::Payload(_) => None,
        };
        self.outputs().into_iter().filter_map(frame).collect()
    }

    fn faults(&mut self) -> Vec<Fault> {
        let fault = |frame| {
            if let Frame::Abort(abort) = frame {
                Some(abort.fault)
            } else {
                None
            }
        };
        self.frames().into_iter().filter_map(fault).collect()
    }

    fn ended(&mut self) -> Vec<Result<[u8; 32], Fault>> {
        let ended = |event| match event {
            TransferEvent::Ended { result, .. } => {
                Some(result.map(|end| end.root).map_err(|error| error.fault))
            }
            TransferEvent::Offered { .. }
            | TransferEvent::Started { .. }
            | TransferEvent::Progress { .. }
            | TransferEvent::Suspended { .. } => None,
        };
        core::iter::from_fn(|| self.machine.poll_event())
            .filter_map(ended)
            .collect()
    }

    fn jobs(&mut self) -> Vec<Job> {
        core::iter::from_fn(|| self.machine.poll_job()).collect()
    }
}

#[test]
fn an_error_names_the_fault_and_the_detail() {
    let mut error = TransferError::local(Fault::NoSpace);
    assert_eq!(format!("{error}"), "the receiver's disk is full");
    error.detail = Some(Text::truncating("inbox"));
    assert_eq!(format!("{error}"), "the receiver's disk is full: inbox");
}

#[test]
fn a_transfer_discarded_is_gone_once_the_job_is_done() {
    let mut rig = Rig::receiver(TransferState::Preparing);
    rig.abort(Fault::Cancelled);
    assert_eq!(rig.jobs(), [], "one job at a time");
    rig.prepared(Ok(Prepared::Ready { have: ranges(1) }));
    assert_eq!(
        rig.jobs(),
        [Job::Discard {
            peer: P,
            transfer: ID
        }]
    );
    rig.offered();
    assert_eq!(
        rig.faults(),
        [Fault::Busy],
        "its sender may offer it again once it is gone"
    );
    rig.input(Input::JobDone(JobResult::Discarded {
        peer: P,
        transfer: ID,
    }));
    assert_eq!(
        (rig.state(), rig.ended()),
        (None, Vec::new()),
        "nothing was announced, so nothing ends"
    );
}

#[test]
fn finish_before_the_last_chunk_is_remembered_but_not_across_attempts() {
    // [XFER-6]
    let mut rig = Rig::receiver(TransferState::Receiving);
    rig.finish(ROOT).unwrap();
    rig.durable(3);
    assert_eq!(rig.jobs(), []);
    rig.offered();
    rig.durable(4);
    assert_eq!(rig.jobs(), [], "the new attempt has not said Finish");
    rig.finish(ROOT).unwrap();
    assert_eq!(
        rig.jobs(),
        [Job::Seal {
            peer: P,
            transfer: ID,
            root: ROOT
        }]
    );
}

#[test]
fn an_offer_repeated_while_receiving_keeps_what_is_durable() {
    // [XFER-4]
    let mut rig = Rig::receiver(TransferState::Receiving);
    rig.durable(2);
    rig.forget();
    rig.offered();
    assert_eq!(
        rig.frames(),
        [Frame::Accept(Accept {
            transfer: ID,
            have: ranges(2),
            attempt: 2
        })]
    );
}

#[test]
fn a_transfer_delivered_before_is_answered_without_events() {
    // [XFER-7]
    let mut rig = Rig::receiver(TransferState::Preparing);
    rig.prepared(Ok(Prepared::Delivered { root: ROOT }));
    assert_eq!(
        rig.frames(),
        [Frame::Delivered(Delivered {
            transfer: ID,
            root: ROOT
        })]
    );
    assert_eq!((rig.machine.poll_event(), rig.state()), (None, None));
}

#[test]
fn a_resumed_sender_believes_delivered_and_a_new_one_does_not() {
    let mut rig = Rig::new();
    rig.send(ID, true);
    rig.delivered(ROOT).unwrap();
    assert_eq!(rig.ended(), [Ok(ROOT)]);
    let mut rig = Rig::sender(TransferState::Sending);
    assert_eq!(rig.delivered(ROOT), Err(Violation::DeliveredEarly(ID)));
    assert_eq!(rig.ended(), [Err(Fault::Violation)]);
    let mut rig = Rig::sender(TransferState::Finishing);
    assert_eq!(rig.delivered(OTHER), Err(Violation::DeliveredOtherRoot(ID)));
    let mut rig = Rig::sender(TransferState::Finishing);
    rig.delivered(ROOT).unwrap();
    assert_eq!(rig.ended(), [Ok(ROOT)]);
}

#[test]
fn every_other_violation_is_named() {
    let progress = Frame::Progress(Progress {
        transfer: ID,
        durable_bytes: SIZE + 1,
    });
    assert_eq!(
        Rig::sender(TransferState::Sending).frame(progress),
        Err(Violation::ProgressBeyondSize(ID))
    );
    let mut rig = Rig::receiver(TransferState::Receiving);
    rig.finish(ROOT).unwrap();
    assert_eq!(rig.finish(OTHER), Err(Violation::FinishChanged(ID)));
    assert_eq!(rig.ended(), [Err(Fault::Violation)]);
}

#[test]
fn a_receiver_whose_stream_broke_asks_for_the_rest() {
    // [XFER-3]
    let mut rig = Rig::receiver(TransferState::Receiving);
    let role = Role::Receiver;
    rig.input(Input::PayloadFailed {
        peer: P,
        transfer: ID,
        role,
        attempt: 1,
        fault: None,
    });
    rig.pass(RESTART_AFTER);
    assert_eq!(
        rig.frames(),
        [Frame::Accept(Accept {
            transfer: ID,
            have: ranges(0),
            attempt: 2
        })]
    );
    rig.input(Input::PayloadFailed {
        peer: P,
        transfer: ID,
        role,
        attempt: 1,
        fault: Some(Fault::NoSpace),
    });
    assert_eq!(
        rig.state(),
        Some(TransferState::Receiving),
        "that attempt is over"
    );
    rig.input(Input::PayloadFailed {
        peer: P,
        transfer: ID,
        role,
        attempt: 2,
        fault: Some(Fault::NoSpace),
    });
    assert_eq!(
        (rig.ended(), rig.faults()),
        (Vec::from([Err(Fault::NoSpace)]), Vec::from([Fault::NoSpace]))
    );
    assert_eq!(
        rig.jobs(),
        [Job::Discard {
            peer: P,
            transfer: ID
        }]
    );
}

#[test]
fn a_sender_that_takes_up_what_it_has_cancelled_is_let_in_once_the_disk_is_clean() {
    // [XFER-12]
    let mut rig = Rig::receiver(TransferState::Receiving);
    rig.frame(Frame::Abort(Abort {
        transfer: ID,
        fault: Fault::Cancelled,
        detail: None,
    }))
    .unwrap();
    rig.offered();
    assert_eq!(rig.faults(), [Fault::Busy]);
    rig.input(Input::JobDone(JobResult::Discarded {
        peer: P,
        transfer: ID,
    }));
    rig.offered();
    assert_eq!(rig.faults(), []);
    assert!(matches!(rig.jobs().last(), Some(Job::Prepare { .. })));
}

#[test]
fn urgent_transfers_go_first_and_old_ones_before_new_ones() {
    let mut rig = Rig::new();
    rig.input(Input::PeerDown { peer: P });
    let priorities = [
        PacketPriority::Bulk,
        PacketPriority::Medium,
        PacketPriority::UltraHigh,
        PacketPriority::Medium,
    ];
    for n in 0..40_u8 {
        let offer = Offer {
            priority: priorities[usize::from(n % 4)],
            ..offer(SIZE)
        };
        let transfer = TransferId([n; 16]);
        rig.input(Input::Send {
            transfer,
            peer: P,
            offer,
            deadline: None,
            resumed: false,
        });
    }
    rig.forget();
    rig.input(Input::PeerUp { peer: P });
    let offered = |rig: &mut Rig| -> Vec<u8> {
        let id = |frame| {
            if let Frame::Offer(offer) = frame {
                Some(offer.transfer.0[0])
            } else {
                None
            }
        };
        rig.frames().into_iter().filter_map(id).collect()
    };
    let first = offered(&mut rig);
    assert_eq!(
        (first.len(), first),
        (SENDING_MAX, Vec::from([2, 6, 10, 14, 18, 22, 26, 30]))
    );
    for n in [2, 6, 10, 14] {
        rig.input(Input::Cancel {
            transfer: TransferId([n; 16]),
        });
    }
    assert_eq!(offered(&mut rig), [34, 38, 1, 3]);
}

#[test]
fn a_peer_cannot_have_too_many_transfers_here() {
    // [XFER-11]
    let mut rig = Rig::new();
    for n in 0..=INCOMING_PER_PEER_MAX {
        let transfer = TransferId([u8::try_from(n).unwrap(); 16]);
        rig.frame(Frame::Offer(OfferFrame {
            transfer,
            offer: offer(SIZE),
        }))
        .unwrap();
    }
    assert_eq!(
        (rig.faults(), rig.jobs().len()),
        (Vec::from([Fault::Busy]), INCOMING_PER_PEER_MAX)
    );
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut rig = Rig::new();
    for n in 0..ENDED_REMEMBERED_MAX as u128 * 2 {
        rig.send(TransferId(n.to_be_bytes()), false);
        rig.input(Input::Cancel {
            transfer: TransferId(n.to_be_bytes()),
        });
    }
    assert_eq!(rig.machine.remembered.len(), ENDED_REMEMBERED_MAX);
    assert_eq!(rig.machine.remembered_order.len(), ENDED_REMEMBERED_MAX);
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let id = any::<bool>().prop_map(|other| if other { TransferId([6; 16]) } else { ID });
    let numbers = (0u64..8, 0u64..8, 0u32..6, any::<bool>());
    (id, numbers, 0u8..6, 0u64..17).prop_map(
        |(transfer, (from, len, attempt, flag), kind, code)| match kind {
            0 => Frame::Offer(OfferFrame {
                transfer,
                offer: offer(if flag { SIZE } else { u64::MAX - from }),
            }),
            1 => {
                let have = core::iter::once(from..from + len).collect();
                Frame::Accept(Accept {
                    transfer,
                    have,
                    attempt,
                })
            }
            2 => Frame::Progress(Progress {
                transfer,
                durable_bytes: from * CHUNK_BYTES,
            }),
            3 => Frame::Finish(Finish {
                transfer,
                root: if flag { ROOT } else { OTHER },
            }),
            4 => Frame::Delivered(Delivered {
                transfer,
                root: if flag { ROOT } else { OTHER },
            }),
            _ => Frame::Abort(Abort {
                transfer,
                fault: Fault::from_code(code).unwrap(),
                detail: None,
            }),
        },
    )
}

proptest! {
    #[test]
    fn no_order_of_frames_and_results_breaks_the_machine(
        steps in prop::collection::vec((any_frame(), 0u8..12, 0u32..6), 0..200)
    ) {
        let mut rig = Rig::new();
        rig.send(ID, false);
        for (frame, what, n) in steps {
            match what {
                0 => rig.prepared(Ok(Prepared::Ready { have: ranges(n.into()) })),
                1 => rig.prepared(if n > 2 { Err(Fault::Storage) } else { Ok(Prepared::Delivered { root: ROOT }) }),
                2 => {
                    let result = if n > 2 { Ok(()) } else { Err(Fault::DigestMismatch) };
                    rig.input(Input::JobDone(JobResult::Sealed { peer: P, transfer: ID, result }));
                }
                3 => rig.durable(n.into()),
                4 => rig.sent(n),
                5 => rig.pass(Duration::from_secs(10 * u64::from(n))),
                6 => rig.input(if n > 2 { Input::PeerUp { peer: P } } else { Input::PeerDown { peer: P } }),
                7 => rig.input(Input::JobDone(JobResult::Discarded { peer: P, transfer: ID })),
                8 if n == 0 => rig.input(Input::PeerRevoked { peer: P }),
                _ => drop(rig.frame(frame)),
            }
            let running = rig.machine.peers.get(&P).map_or(0, |entry| entry.running.len());
            prop_assert!(running <= SENDING_MAX);
            prop_assert!(rig.machine.timers.len() <= rig.machine.outgoing.len() + rig.machine.incoming.len());
        }
    }
}
