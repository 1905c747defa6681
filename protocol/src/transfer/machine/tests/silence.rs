//! Peers that say nothing, are away, or do not come back: both sides reach an end, and hear of it.

use super::*;

#[test]
fn a_silent_receiver_ends_the_transfer_after_some_stalls() {
    // [XFER-10]
    for stage in [
        TransferState::Offering,
        TransferState::Sending,
        TransferState::Finishing,
    ] {
        let mut rig = Rig::sender(stage);
        rig.pass((STALL_TIMEOUT + RETRY_MAX) * STALLS_MAX);
        assert_eq!(rig.ended(), [Err(Fault::TimedOut)], "{stage:?}");
        assert_eq!(rig.faults(), [Fault::TimedOut], "{stage:?}");
        assert_eq!(rig.machine.poll_timeout(), None);
    }
}

#[test]
fn a_silent_sender_ends_the_transfer_after_some_stalls_and_what_arrived_is_kept() {
    // [XFER-10]
    let mut rig = Rig::receiver(TransferState::Receiving);
    rig.durable(2);
    rig.pass((STALL_TIMEOUT + STALL_MARGIN) * (STALLS_MAX + 1));
    assert_eq!(rig.ended(), [Err(Fault::TimedOut)]);
    let outputs = rig.outputs();
    // [XFER-17]
    assert!(outputs.contains(&Output::Payload(PayloadOrder::Keep {
        peer: P,
        transfer: ID
    })));
    let is_abort = |output: &Output| matches!(output, Output::Frame { frame: Frame::Abort(abort), .. } if abort.fault == Fault::TimedOut);
    assert_eq!(outputs.iter().filter(|output| is_abort(output)).count(), 1);
    assert_eq!((rig.jobs(), rig.state()), (Vec::new(), None));
}

#[test]
fn an_offer_of_which_nothing_came_gives_its_room_back_when_it_times_out() {
    // [XFER-17] Offers cost nothing, and the room that they are promised is everybody's.
    let mut rig = Rig::receiver(TransferState::Receiving);
    rig.pass((STALL_TIMEOUT + STALL_MARGIN) * STALLS_MAX);
    assert_eq!(rig.ended(), [Err(Fault::TimedOut)]);
    assert_eq!(rig.faults(), [Fault::TimedOut]);
    assert!(matches!(rig.jobs()[..], [Job::Discard { .. }]));
}

#[test]
fn a_receiver_at_work_says_so_and_the_sender_waits() {
    // [XFER-9]
    let progress = || {
        Frame::Progress(Progress {
            transfer: ID,
            durable_bytes: 0,
        })
    };
    let mut rig = Rig::receiver(TransferState::Preparing);
    rig.pass(KEEPALIVE * 3);
    assert_eq!(rig.frames(), [progress(), progress(), progress()]);
    let mut rig = Rig::sender(TransferState::Offering);
    for _ in 0..100 {
        rig.pass(KEEPALIVE);
        rig.frame(progress()).unwrap();
    }
    assert_eq!(rig.state(), Some(TransferState::Offering));
}

#[test]
fn a_cancel_while_disconnected_is_told_when_the_peer_is_back() {
    // [XFER-12]
    let mut rig = Rig::sender(TransferState::Sending);
    rig.input(Input::PeerDown { peer: P });
    rig.input(Input::Cancel { transfer: ID });
    assert_eq!(rig.frames(), []);
    rig.input(Input::PeerUp { peer: P });
    assert_eq!(rig.faults(), [Fault::Cancelled]);
    rig.accept(3, 0).unwrap();
    assert_eq!(rig.faults(), [Fault::Cancelled], "and again when it asks");
    let mut rig = Rig::receiver(TransferState::Waiting);
    rig.input(Input::Cancel { transfer: ID });
    rig.input(Input::JobDone(JobResult::Discarded {
        peer: P,
        transfer: ID,
    }));
    rig.input(Input::PeerUp { peer: P });
    assert_eq!(rig.faults(), [Fault::Cancelled]);
    rig.offered();
    assert_eq!(
        (rig.faults(), rig.jobs().len()),
        (Vec::from([Fault::Cancelled]), 1)
    );
}

#[test]
fn what_a_sender_said_on_a_connection_that_was_lost_is_said_once_more() {
    // [XFER-12]
    let mut rig = Rig::sender(TransferState::Sending);
    rig.input(Input::Cancel { transfer: ID });
    assert_eq!(rig.faults(), [Fault::Cancelled]);
    rig.input(Input::PeerDown { peer: P });
    rig.input(Input::PeerUp { peer: P });
    assert_eq!(rig.faults(), [Fault::Cancelled]);
    rig.input(Input::PeerDown { peer: P });
    rig.input(Input::PeerUp { peer: P });
    assert_eq!(rig.faults(), []);
    // A receiver's word of an earlier time would end what its sender has taken up again.
    let mut rig = Rig::receiver(TransferState::Receiving);
    rig.input(Input::Cancel { transfer: ID });
    assert_eq!(rig.faults(), [Fault::Cancelled]);
    rig.input(Input::PeerDown { peer: P });
    rig.input(Input::PeerUp { peer: P });
    assert_eq!(rig.faults(), []);
}

#[test]
fn a_transfer_that_its_sender_has_forgotten_ends_and_what_arrived_is_kept() {
    // [XFER-12] [XFER-13]
    let mut rig = Rig::receiver(TransferState::Waiting);
    rig.durable(2);
    rig.input(Input::PeerUp { peer: P });
    rig.pass(PROBE_AFTER);
    assert_eq!(
        rig.frames(),
        [Frame::Accept(Accept {
            transfer: ID,
            have: ranges(2),
            attempt: 2
        })]
    );
    assert_eq!(rig.state(), Some(TransferState::Waiting));
    rig.abort(Fault::Unreachable);
    assert_eq!(
        (rig.ended(), rig.jobs(), rig.state()),
        (Vec::from([Err(Fault::Unreachable)]), Vec::new(), None)
    );
    rig.accept(2, 0).unwrap();
    assert_eq!(rig.faults(), [Fault::Unreachable]);
}

#[test]
fn a_deadline_ends_a_transfer_whose_peer_is_absent() {
    let mut rig = Rig {
        machine: Transfers::new(random(1)),
        now: at(0),
    };
    let deadline = Some(at(1000).mono);
    rig.input(Input::Send {
        transfer: ID,
        peer: P,
        offer: offer(SIZE),
        deadline,
        resumed: false,
    });
    assert_eq!(rig.outputs(), [Output::Want { peer: P }]);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.ended(), [Err(Fault::TimedOut)]);
    assert_eq!(rig.outputs(), [Output::Unwant { peer: P }]);
}

#[test]
fn what_a_sender_that_stays_away_has_left_is_removed() {
    // [XFER-20]
    let mut rig = Rig::new();
    rig.offered();
    rig.prepared(Ok(Prepared::Ready { have: ranges(0) }));
    rig.durable(1);
    let abandon = |rig: &mut Rig, transfer| {
        rig.forget();
        rig.input(Input::Abandon {
            peer: P,
            transfer,
            offer: offer(SIZE),
        });
        let discard = Job::Discard { peer: P, transfer };
        rig.jobs() == [discard]
    };
    assert!(!abandon(&mut rig, ID), "it is under way");
    rig.input(Input::PeerDown { peer: P });
    assert!(abandon(&mut rig, ID));
    assert!(!abandon(&mut rig, ID), "it is over already");
    // One that only the journal knows is announced before it ends.
    let other = TransferId([9; 16]);
    rig.forget();
    assert!(rig.machine.may_abandon(P, other));
    rig.input(Input::Abandon {
        peer: P,
        transfer: other,
        offer: offer(SIZE),
    });
    let events: Vec<TransferEvent> = core::iter::from_fn(|| rig.machine.poll_event()).collect();
    assert!(
        matches!(
            &events[..],
            [TransferEvent::Offered { .. }, TransferEvent::Ended { result: Err(error), .. }]
                if error.fault == Fault::Unreachable && error.detail.is_some()
        ),
        "{events:?}"
    );
    // The sender is back before the disk is clean, and again after that.
    rig.input(Input::PeerUp { peer: P });
    rig.forget();
    rig.offered();
    assert_eq!(rig.faults(), [Fault::Busy]);
    rig.input(Input::JobDone(JobResult::Discarded {
        peer: P,
        transfer: ID,
    }));
    rig.offered();
    assert!(matches!(&rig.jobs()[..], [Job::Prepare { .. }]));
}

#[test]
fn a_job_has_ten_minutes_and_a_second_for_each_16_mib_before_it_counts_as_hung() {
    // [XFER-9]
    for (size, minutes) in [(0, 10), (16 * 1024 * CHUNK_BYTES, 10 + 1024 / 60)] {
        let mut rig = Rig::new();
        let transfer = ID;
        let offer = offer(size);
        rig.frame(Frame::Offer(OfferFrame { transfer, offer })).unwrap();
        rig.forget();
        let minute = Duration::from_secs(60);
        rig.pass(minute * minutes);
        assert_eq!(
            rig.frames().len(),
            usize::try_from(minutes).unwrap() * 6,
            "{size}"
        );
        rig.pass(minute * 2);
        rig.forget();
        rig.pass(minute * 60);
        assert_eq!(rig.frames(), [], "{size}: nobody is told that it goes on");
        assert_eq!(rig.machine.poll_timeout(), None);
    }
}

#[test]
fn a_transfer_whose_sender_is_gone_is_remembered_for_a_day() {
    let mut rig = Rig::receiver(TransferState::Receiving);
    rig.durable(1);
    rig.input(Input::PeerDown { peer: P });
    let hour = Duration::from_secs(3600);
    rig.pass(hour * 24 - Duration::from_secs(1));
    assert_eq!(rig.state(), Some(TransferState::Waiting));
    rig.pass(Duration::from_secs(1));
    assert_eq!((rig.state(), rig.ended()), (None, vec![Err(Fault::Unreachable)]));
}

#[test]
fn what_is_kept_is_counted() {
    let mut rig = Rig::receiver(TransferState::Receiving);
    assert_eq!(rig.machine.sizes(), (0, 1, 0));
    rig.send(TransferId([1; 16]), false);
    rig.send(TransferId([2; 16]), false);
    assert_eq!(rig.machine.sizes(), (2, 1, 0));
    rig.input(Input::Cancel {
        transfer: TransferId([1; 16]),
    });
    assert_eq!(rig.machine.sizes(), (1, 1, 1));
}

#[test]
fn a_sender_that_is_refused_again_and_again_waits_from_half_a_second_to_half_a_minute() {
    // [XFER-11]
    let mut rig = Rig::sender(TransferState::Offering);
    for refusals in 0..12 {
        rig.abort(Fault::Busy);
        assert_eq!(rig.state(), Some(TransferState::Waiting));
        let pause = rig.machine.poll_timeout().unwrap().since(rig.now.mono);
        let usual = Duration::from_millis(500 << refusals.min(6)).min(Duration::from_secs(30));
        assert!(
            pause >= usual * 3 / 4 && pause <= usual * 5 / 4,
            "{pause:?} after {refusals} refusals"
        );
        rig.pass(pause);
        assert!(matches!(rig.frames()[..], [Frame::Offer(_)]));
    }
}

#[test]
fn a_connection_is_wanted_while_something_goes_on_and_no_longer() {
    let wants = |rig: &mut Rig| -> Vec<bool> {
        let want = |output| match output {
            Output::Want { .. } => Some(true),
            Output::Unwant { .. } => Some(false),
            Output::Frame { .. } | Output::Payload(_) => None,
        };
        rig.outputs().into_iter().filter_map(want).collect()
    };
    let mut rig = Rig::new();
    assert_eq!(wants(&mut rig), [], "that it is up is no reason");
    rig.offered();
    rig.prepared(Ok(Prepared::Ready { have: ranges(0) }));
    assert_eq!(wants(&mut rig), [true]);
    rig.input(Input::PeerDown { peer: P });
    assert_eq!(wants(&mut rig), [false], "who receives does not dial");
    rig.input(Input::PeerUp { peer: P });
    assert_eq!(wants(&mut rig), [true]);
    rig.abort(Fault::Cancelled);
    rig.input(Input::JobDone(JobResult::Discarded {
        peer: P,
        transfer: ID,
    }));
    assert_eq!(wants(&mut rig), [false]);
    rig.input(Input::PeerDown { peer: P });
    rig.send(ID, false);
    assert_eq!(wants(&mut rig), [true], "who sends does");
}
