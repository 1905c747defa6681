//! What a peer's owner decides: how many transfers run.

use alloc::vec::Vec;

use super::*;

#[test]
fn a_place_that_becomes_free_goes_to_whoever_waits() {
    let mut rig = Rig::new();
    rig.machine = Transfers::new(random(1)).with_limit(2);
    for n in [1, 2] {
        rig.input(Input::PeerUp { peer: peer(n) });
    }
    // The first and the second go to one peer, the third to another.
    for (n, to) in [(1, 1), (2, 1), (3, 2)] {
        rig.input(Input::Send {
            transfer: TransferId([n; 16]),
            peer: peer(to),
            offer: offer(SIZE),
            deadline: None,
            resumed: false,
        });
    }
    let offered = |rig: &mut Rig| -> Vec<u8> {
        let frames = rig.frames().into_iter();
        let id = |frame| matches!(&frame, Frame::Offer(_)).then_some(frame);
        let offers = frames.filter_map(id);
        offers
            .map(|frame| match frame {
                Frame::Offer(offer) => offer.transfer.0[0],
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(offered(&mut rig), [1, 2]);
    rig.input(Input::PeerDown { peer: peer(1) });
    assert_eq!(offered(&mut rig), [3]);
    rig.input(Input::PeerUp { peer: peer(1) });
    assert_eq!(offered(&mut rig), [1]);
    rig.input(Input::Cancel {
        transfer: TransferId([3; 16]),
    });
    assert_eq!(offered(&mut rig), [2]);
}

#[test]
fn more_incoming_transfers_than_the_owner_allows_are_told_to_come_later() {
    // [XFER-11]
    let mut rig = Rig::new();
    rig.machine = Transfers::new(random(1)).with_limit(3);
    rig.input(Input::PeerUp { peer: P });
    for n in 0..5_u8 {
        let transfer = TransferId([n; 16]);
        rig.frame(Frame::Offer(OfferFrame {
            transfer,
            offer: offer(SIZE),
        }))
        .unwrap();
    }
    assert_eq!(
        (rig.faults(), rig.jobs().len()),
        (Vec::from([Fault::Busy, Fault::Busy]), 3)
    );
}

/// A receiver with a transfer of [`P`], who has left, and another peer that is up.
fn left_by_its_sender(limit: usize) -> Rig {
    let mut rig = Rig::new();
    rig.machine = Transfers::new(random(1)).with_limit(limit);
    rig.input(Input::PeerUp { peer: P });
    rig.input(Input::PeerUp { peer: peer(2) });
    rig.offered();
    rig.prepared(Ok(Prepared::Ready { have: ranges(1) }));
    rig.input(Input::PeerDown { peer: P });
    rig.forget();
    rig
}

fn offered_by_another(rig: &mut Rig, number: u8) {
    let transfer = TransferId([number; 16]);
    let offer = offer(SIZE);
    rig.input(Input::Frame {
        peer: peer(2),
        frame: Frame::Offer(OfferFrame { transfer, offer }),
    });
}

#[test]
fn a_transfer_that_its_sender_has_left_makes_room_for_those_of_others() {
    // [XFER-11]
    let mut rig = left_by_its_sender(1);
    offered_by_another(&mut rig, 1);
    assert_eq!(rig.ended(), [Err(Fault::Unreachable)]);
    assert!(matches!(rig.jobs()[..], [Job::Prepare { peer: by, .. }] if by == peer(2)));
    offered_by_another(&mut rig, 2);
    assert_eq!((rig.faults(), rig.jobs()), (Vec::from([Fault::Busy]), Vec::new()));
}

#[test]
fn a_peer_that_offers_too_much_takes_no_place_from_others() {
    // [XFER-11]
    let mut rig = left_by_its_sender(2 * INCOMING_PER_PEER_MAX);
    for number in 0..=u8::try_from(INCOMING_PER_PEER_MAX).unwrap() {
        offered_by_another(&mut rig, number);
    }
    assert_eq!(
        (rig.faults(), rig.ended()),
        (Vec::from([Fault::Busy]), Vec::new())
    );
    assert_eq!(rig.machine.sizes().1, INCOMING_PER_PEER_MAX + 1);
}
