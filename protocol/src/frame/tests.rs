//! Frames: each kind comes back as it went, and nothing that arrives can do harm.

use std::string::String;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::UnixMillis;
use crate::flood::ItemKind;
use crate::sign::{Domain, SigningKey};
use crate::transfer::PayloadKind;
use crate::types::{DataType, PacketPriority};

fn offer() -> Offer {
    Offer {
        source: NodeId::new("a").unwrap(),
        destination: NodeId::new("b/gpu0").unwrap(),
        name: Text(String::from("weights.safetensors")),
        kind: PayloadKind::File,
        size: 5_000_000,
        data_type: DataType::Parameter,
        priority: PacketPriority::High,
        modified: Some(UnixMillis(17)),
        mode: Some(0o644),
        sync: None,
    }
}

fn every_frame() -> Vec<Frame> {
    let mut frames = most_frames();
    frames.push(Frame::Goodbye(Goodbye::new(CloseReason::Duplicate)));
    frames
}

fn summary() -> Summary {
    Summary {
        hashes: BucketHashes((0..256).collect()),
        answer: Some(true),
        items: 10_000,
    }
}

fn most_frames() -> Vec<Frame> {
    let transfer = TransferId([9; 16]);
    let key = SigningKey::from_bytes(&[1; 32]);
    let signed = key.sign(Domain::Certificate, b"body");
    let lifetime = core::time::Duration::from_secs(9);
    let item = crate::flood::Item::new(ItemKind::Record, 0, 1, UnixMillis(17), lifetime, b"body");
    let item = key.sign(Domain::Item, &crate::cbor::to_bytes(&item));
    let membership = Membership {
        certificate: signed.clone(),
        delegation: Some(signed.clone()),
    };
    vec![
        Frame::Hello(Hello {
            version: 1,
            features: 0,
            incarnation: u64::MAX,
            agent: Text(String::from("x")),
        }),
        Frame::Summary(summary()),
        Frame::Digest(Digest {
            buckets: Buckets::from_iter([0, 7, 255]),
            versions: Versions(vec![7, u64::MAX]),
        }),
        Frame::Items(Items {
            items: List(vec![Version::read(item).unwrap()]),
            answers: Some(3),
        }),
        Frame::Forwarding(Forwarding { wanted: false }),
        Frame::Offer(OfferFrame {
            transfer,
            offer: offer(),
        }),
        Frame::Accept(Accept {
            transfer,
            have: [0..3, 5..6].into_iter().collect(),
            attempt: 1,
        }),
        Frame::Progress(Progress {
            transfer,
            durable_bytes: 1 << 40,
        }),
        Frame::Finish(Finish {
            transfer,
            root: [1; 32],
        }),
        Frame::Delivered(Delivered {
            transfer,
            root: [1; 32],
        }),
        Frame::Abort(Abort {
            transfer,
            fault: Fault::NoSpace,
            detail: Some(Text(String::from("full"))),
        }),
        Frame::JoinRequest(JoinRequest {
            secret: [2; 16],
            name: NodeId::new("a").unwrap(),
        }),
        Frame::JoinReply(JoinReply {
            membership: Some(membership.clone()),
            refusal: None,
        }),
        Frame::RenewRequest(RenewRequest { membership }),
        Frame::RenewReply(JoinReply {
            membership: None,
            refusal: Some(JoinRefusal::Used),
        }),
    ]
}

#[test]
fn every_kind_of_frame_comes_back_as_it_went() {
    for frame in every_frame() {
        let bytes = frame.to_bytes();
        assert!(bytes.len() <= FRAME_BYTES_MAX);
        assert_eq!(Frame::from_bytes(&bytes), Ok(Some(frame)));
    }
}

#[test]
fn every_frame_is_cbor_to_an_independent_decoder() {
    for frame in every_frame() {
        let value: serde_cbor::Value = serde_cbor::from_slice(&frame.to_bytes()).unwrap();
        assert_eq!(
            serde_cbor::to_vec(&value).unwrap(),
            frame.to_bytes(),
            "{frame:?} has another canonical form"
        );
    }
}

#[test]
fn an_unknown_frame_is_skipped_below_the_critical_range_and_refused_in_it() {
    assert_eq!(Frame::from_bytes(&[0x82, 0x18, 99, 0xa0]), Ok(None));
    assert_eq!(
        Frame::from_bytes(&[0x82, 0x18, 128, 0xa0]),
        Err(DecodeError::Critical(128))
    );
}

#[test]
fn the_largest_batches_fit_into_a_frame() {
    let key = SigningKey::from_bytes(&[1; 32]);
    let item = crate::flood::Item::new(
        ItemKind::Record,
        u64::MAX,
        u64::MAX,
        UnixMillis(u64::MAX),
        core::time::Duration::MAX,
        &[0; crate::flood::ITEM_BODY_BYTES_MAX],
    );
    let item = Version::read(key.sign(Domain::Item, &crate::cbor::to_bytes(&item))).unwrap();
    let items = Items {
        items: List(vec![item.clone(), item.clone(), item]),
        answers: Some(u32::MAX),
    };
    assert!(Frame::Items(items).to_bytes().len() <= FRAME_BYTES_MAX);
    let digest = Digest {
        buckets: (0..=255).collect(),
        versions: Versions(vec![u64::MAX; DIGEST_VERSIONS_MAX]),
    };
    assert!(Frame::Digest(digest).to_bytes().len() <= FRAME_BYTES_MAX);
}

proptest! {
    #[test]
    fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _read = Frame::from_bytes(&bytes);
    }

    #[test]
    fn a_damaged_frame_never_panics(index in 0usize..15, at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = every_frame()[index].to_bytes();
        let i = at.index(bytes.len());
        bytes[i] = to;
        let _read = Frame::from_bytes(&bytes);
        // A frame that was cut is never read as a whole one; of an unknown kind nothing is read at all.
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(!matches!(Frame::from_bytes(&bytes), Ok(Some(_))));
    }
}
