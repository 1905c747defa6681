//! A newcomer is sent a large database, by a real loop over a real connection.

use std::time::Instant;

use hyperfabric_protocol::cert::{CERTIFICATE_VALIDITY, MeshRoot};
use hyperfabric_protocol::fabric::FabricConfig;
use hyperfabric_protocol::flood::content::revocation_id;
use hyperfabric_protocol::flood::{Item, ItemKind, Revocation};
use hyperfabric_protocol::frame::{BucketHashes, Items, Summary};
use hyperfabric_protocol::sign::Domain;
use hyperfabric_protocol::{NodeId, Now, PeerId, Serial, Signed, SigningKey, cbor};

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::connection::CloseReason;
use crate::driver::tests::{POLL, Peer, config, start};
use crate::endpoint::tests::{DEADLINE, connect, setup};
use crate::streams::control::{CONTROL_QUEUE_BYTES_MAX, CONTROL_QUEUE_FRAMES_MAX};
use crate::tls::Purpose;

/// More of them than a control queue holds.
const ITEMS: usize = 6_000;

fn authority() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

/// What a member of a closed mesh starts with.
fn member(key: SigningKey, name: &str, now: Now) -> FabricConfig {
    let root = MeshRoot::Closed {
        authority: authority().peer_id(),
        name: "lab".to_owned(),
    };
    let admitter = hyperfabric_protocol::cert::Admitter {
        key: authority(),
        delegation: None,
    };
    let name = NodeId::new(name).unwrap();
    let serial = Serial::new(now.wall, key.peer_id().0[..10].try_into().unwrap());
    let membership = admitter.admit(&root, key.peer_id(), name, serial, now.wall, CERTIFICATE_VALIDITY);
    FabricConfig {
        root: Some(root),
        membership: Some(membership),
        ..config(key)
    }
}

fn revocation(number: u64, now: Now) -> Signed {
    let mut serial = [0; 16];
    serial[..8].copy_from_slice(&number.to_be_bytes());
    let body = Revocation {
        peer: PeerId([1; 32]),
        name: NodeId::new("a-member-that-was-revoked/some-time-ago-and-had-a-name-of-this-length").unwrap(),
        serial: Serial(serial),
        not_after: now.wall.after(CERTIFICATE_VALIDITY),
        delegation: None,
    };
    let id = revocation_id(&body.serial);
    let kind = ItemKind::Revocation;
    let item = Item::new(
        kind,
        id,
        now.wall.0,
        now.wall,
        CERTIFICATE_VALIDITY,
        &cbor::to_bytes(&body),
    );
    authority().sign(Domain::Item, &cbor::to_bytes(&item))
}

async fn items(peer: &Peer) -> usize {
    peer.handle.act(|fabric, _| fabric.flood().len()).await.unwrap()
}

#[tokio::test]
async fn a_newcomer_is_sent_more_items_than_a_control_queue_holds() {
    let now = SystemClock::default().now();
    let revocations: Vec<Signed> = (0..ITEMS as u64).map(|n| revocation(n, now)).collect();
    let bytes: usize = revocations.iter().map(|signed| signed.as_bytes().len()).sum();
    assert!(bytes > CONTROL_QUEUE_BYTES_MAX, "{bytes}");
    let old = start(FabricConfig {
        revocations,
        ..member(SigningKey::from_bytes(&[1; 32]), "old", now)
    });
    assert!(items(&old).await >= ITEMS);
    let newcomer = start(member(SigningKey::from_bytes(&[2; 32]), "new", now));
    let connection = newcomer.meet(&old).await;
    let begun = Instant::now();
    while items(&newcomer).await < ITEMS {
        assert_eq!(connection.close_cause(), None);
        assert!(
            begun.elapsed() < DEADLINE,
            "only {} have come",
            items(&newcomer).await
        );
        tokio::time::sleep(POLL).await;
    }
    assert!(connection.is_open());
}

fn summary() -> Frame {
    Frame::Summary(Summary {
        hashes: BucketHashes(Vec::new()),
        answer: None,
        items: 0,
    })
}

fn flood() -> Frame {
    Frame::Items(Items::new(cbor::List(Vec::new())))
}

#[tokio::test]
async fn floods_wait_for_a_peer_that_does_not_read_and_other_frames_overtake_them() {
    let (a, mut b) = (setup(1).start(), setup(2).start());
    let [dialled, _accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let handle = start(config(SigningKey::from_bytes(&[3; 32]))).handle;
    let control = dialled.open_control().await.unwrap();
    let mut link = Link::new(dialled.clone());
    link.open(&handle, control.sender.clone()).unwrap();
    // Nothing runs in between, so that nothing leaves the queue.
    let mut taken = 0;
    while link.floods.is_empty() {
        link.send(&handle, flood()).unwrap();
        taken += 1;
    }
    assert_eq!(taken, CONTROL_QUEUE_FRAMES_MAX / 2 + 2);
    for _ in 0..CONTROL_QUEUE_FRAMES_MAX / 2 - 1 {
        link.send(&handle, summary()).unwrap();
    }
    let full = link.send(&handle, summary());
    assert_eq!(full, Err(ControlSendError::Full));
    while link.floods.len() < FLOODS_MAX {
        link.send(&handle, flood()).unwrap();
    }
    assert_eq!(link.send(&handle, flood()), Err(ControlSendError::Full));
    assert_eq!(link.go_on(&handle, false), Err(ControlSendError::Full));
    dialled.close(CloseReason::Idle);
    handle.stop().await;
}
