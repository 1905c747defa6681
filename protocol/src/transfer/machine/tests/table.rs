//! What each role does in each of its stages with each input, as one table per role: a column per stage, the stage
//! that follows in each cell, `None` for gone.

use super::*;

type Act = fn(&mut Rig);
type Row<const STAGES: usize> = (&'static str, Act, [Option<TransferState>; STAGES]);

const SENDER_STAGES: [TransferState; 4] = [
    TransferState::Waiting,
    TransferState::Offering,
    TransferState::Sending,
    TransferState::Finishing,
];
const RECEIVER_STAGES: [TransferState; 5] = [
    TransferState::Preparing,
    TransferState::Receiving,
    TransferState::Waiting,
    TransferState::Sealing,
    TransferState::Ended,
];

const W: Option<TransferState> = Some(TransferState::Waiting);
const O: Option<TransferState> = Some(TransferState::Offering);
const S: Option<TransferState> = Some(TransferState::Sending);
const F: Option<TransferState> = Some(TransferState::Finishing);
const P_: Option<TransferState> = Some(TransferState::Preparing);
const R: Option<TransferState> = Some(TransferState::Receiving);
const SEAL: Option<TransferState> = Some(TransferState::Sealing);
const END: Option<TransferState> = Some(TransferState::Ended);

fn other_offer(rig: &mut Rig) {
    rig.frame(Frame::Offer(OfferFrame {
        transfer: ID,
        offer: offer(1),
    }))
    .unwrap();
}

fn sealed(rig: &mut Rig, result: Result<(), Fault>) {
    rig.input(Input::JobDone(JobResult::Sealed {
        peer: P,
        transfer: ID,
        result,
    }));
}

fn broken(rig: &mut Rig, role: Role, fault: Option<Fault>) {
    rig.input(Input::PayloadFailed {
        peer: P,
        transfer: ID,
        role,
        attempt: 1,
        fault,
    });
}

#[rustfmt::skip]
const SENDER: [Row<4>; 15] = [
    //                                                                                 W     O     S     F
    ("accept",                  |r| r.accept(2, 1).unwrap(),                          [W,    S,    S,    S]),
    ("accept, same attempt",    |r| r.accept(1, 1).unwrap(),                          [W,    S,    S,    F]),
    ("accept of everything",    |r| r.accept(2, 4).unwrap(),                          [W,    S,    S,    F]),
    ("accept beyond the end",   |r| assert!(r.accept(2, 5).is_err()),                 [None, None, None, None]),
    ("payload sent",            |r| r.sent(1),                                        [W,    O,    F,    F]),
    ("payload of an old attempt", |r| r.sent(0),                                      [W,    O,    S,    F]),
    ("stream broke",            |r| broken(r, Role::Sender, None),                    [W,    O,    W,    F]),
    ("source unreadable",       |r| broken(r, Role::Sender, Some(Fault::SourceUnreadable)), [W, O,  None, F]),
    ("peer down",               |r| r.input(Input::PeerDown { peer: P }),             [W,    W,    W,    W]),
    ("peer up",                 |r| r.input(Input::PeerUp { peer: P }),               [O,    O,    S,    O]),
    ("revoked",                 |r| r.input(Input::PeerRevoked { peer: P }),          [None, None, None, None]),
    ("cancel",                  |r| r.input(Input::Cancel { transfer: ID }),          [None, None, None, None]),
    ("abort",                   |r| r.abort(Fault::NoSpace),                          [None, None, None, None]),
    ("busy",                    |r| r.abort(Fault::Busy),                             [W,    W,    W,    W]),
    ("a frame of the other role",     |r| r.finish(ROOT).unwrap(),                          [W,    O,    S,    F]),
];

#[rustfmt::skip]
const RECEIVER: [Row<5>; 15] = [
    //                                                                                 P_    R     W     SEAL  END
    ("offer",                   |r| r.offered(),                                      [P_,   R,    R,    SEAL, END]),
    ("another offer",           other_offer,                                          [END,  END,  END,  SEAL, END]),
    ("ready",                   |r| r.prepared(Ok(Prepared::Ready { have: ranges(1) })), [R, R,    W,    SEAL, END]),
    ("delivered before",        |r| r.prepared(Ok(Prepared::Delivered { root: ROOT })), [None, R,  W,    SEAL, END]),
    ("refused",                 |r| r.prepared(Err(Fault::NoSpace)),                  [END,  R,    W,    SEAL, END]),
    ("finish",                  |r| r.finish(ROOT).unwrap(),                          [P_,   R,    W,    SEAL, END]),
    ("durable",                 |r| r.durable(4),                                     [P_,   R,    W,    SEAL, END]),
    ("sealed",                  |r| sealed(r, Ok(())),                                [P_,   R,    W,    None, END]),
    ("not sealed",              |r| sealed(r, Err(Fault::DigestMismatch)),            [P_,   R,    W,    END,  END]),
    ("stream broke",            |r| broken(r, Role::Receiver, None),                  [P_,   R,    W,    SEAL, END]),
    ("disk full",               |r| broken(r, Role::Receiver, Some(Fault::NoSpace)),  [P_,   END,  W,    SEAL, END]),
    ("peer down",               |r| r.input(Input::PeerDown { peer: P }),             [P_,   W,    W,    SEAL, END]),
    ("revoked",                 |r| r.input(Input::PeerRevoked { peer: P }),          [END,  END,  END,  SEAL, END]),
    ("cancel",                  |r| r.input(Input::Cancel { transfer: ID }),          [END,  END,  END,  SEAL, END]),
    ("abort",                   |r| r.abort(Fault::SourceChanged),                    [END,  END,  END,  SEAL, END]),
];

#[test]
fn the_senders_transitions() {
    for (name, act, expected) in SENDER {
        for (stage, expected) in SENDER_STAGES.into_iter().zip(expected) {
            let mut rig = Rig::sender(stage);
            act(&mut rig);
            assert_eq!(rig.state(), expected, "{name} while {stage:?}");
            assert_eq!(
                rig.ended().len(),
                usize::from(expected.is_none()),
                "{name} while {stage:?}"
            );
        }
    }
}

#[test]
fn the_receivers_transitions() {
    for (name, act, expected) in RECEIVER {
        for (stage, expected) in RECEIVER_STAGES.into_iter().zip(expected) {
            let mut rig = Rig::receiver(stage);
            act(&mut rig);
            assert_eq!(rig.state(), expected, "{name} while {stage:?}");
            let announced = stage != TransferState::Preparing && stage != TransferState::Ended;
            let ends = announced && (expected.is_none() || expected == END);
            let refused = stage == TransferState::Preparing && name == "refused";
            assert_eq!(
                rig.ended().len(),
                usize::from(ends || refused),
                "{name} while {stage:?}"
            );
        }
    }
}
