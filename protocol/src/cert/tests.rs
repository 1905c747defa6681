//! Memberships: accepted when the chain holds, refused by name when it does not.

use core::time::Duration;
use std::string::String;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn name(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

fn mesh() -> (SigningKey, MeshRoot, Admitter) {
    let authority = key(1);
    let root = MeshRoot::Closed {
        authority: authority.peer_id(),
        name: String::from("lab"),
    };
    let delegation = Delegation::issue(&authority, "lab", key(2).peer_id(), NOW, DELEGATION_VALIDITY);
    (
        authority,
        root,
        Admitter {
            key: key(2),
            delegation: Some(delegation),
        },
    )
}

fn verify(
    m: &Membership,
    root: &MeshRoot,
    peer: &SigningKey,
    at: UnixMillis,
) -> Result<Member, CertificateError> {
    Membership::verify(&m.to_bytes(), root, &peer.peer_id(), at)
}

fn admitted() -> (MeshRoot, Membership) {
    let (_, root, admitter) = mesh();
    let m = admitter.admit(
        &root,
        key(3).peer_id(),
        name("gpu-1"),
        Serial([7; 16]),
        NOW,
        CERTIFICATE_VALIDITY,
    );
    (root, m)
}

#[test]
fn a_member_admitted_under_a_delegation_is_accepted() {
    let (root, m) = admitted();
    let member = verify(&m, &root, &key(3), NOW).unwrap();
    assert_eq!(member.name, name("gpu-1"));
    assert_eq!(member.admitter, key(2).peer_id());
    assert_eq!(member.not_after, NOW.after(CERTIFICATE_VALIDITY));
}

#[test]
fn a_member_admitted_by_the_authority_itself_is_accepted() {
    let (authority, root, _) = mesh();
    let admitter = Admitter {
        key: authority,
        delegation: None,
    };
    let m = admitter.admit(&root, key(3).peer_id(), name("a"), Serial([1; 16]), NOW, DAY);
    assert!(verify(&m, &root, &key(3), NOW).is_ok());
}

#[test]
fn validity_is_checked_with_five_minutes_of_tolerance() {
    let (root, m) = admitted();
    let end = NOW.after(CERTIFICATE_VALIDITY);
    assert!(verify(&m, &root, &key(3), end.after(CLOCK_SKEW_MAX)).is_ok());
    let late = end.after(CLOCK_SKEW_MAX + Duration::from_secs(1));
    assert_eq!(verify(&m, &root, &key(3), late), Err(CertificateError::Expired));
    let early = NOW.before(DAY);
    assert_eq!(
        verify(&m, &root, &key(3), early),
        Err(CertificateError::NotYetValid)
    );
}

#[test]
fn an_expired_delegation_ends_the_memberships_under_it() {
    let authority = key(1);
    let (_, root, _) = mesh();
    let delegation = Delegation::issue(&authority, "lab", key(2).peer_id(), NOW, DAY);
    let admitter = Admitter {
        key: key(2),
        delegation: Some(delegation),
    };
    let m = admitter.admit(&root, key(3).peer_id(), name("a"), Serial([1; 16]), NOW, DAY * 30);
    assert_eq!(verify(&m, &root, &key(3), NOW).unwrap().not_after, NOW.after(DAY));
    assert_eq!(
        verify(&m, &root, &key(3), NOW.after(DAY * 2)),
        Err(CertificateError::Expired)
    );
}

#[test]
fn every_way_of_not_being_a_member_has_its_name() {
    let (root, m) = admitted();
    assert_eq!(verify(&m, &root, &key(4), NOW), Err(CertificateError::WrongPeer));
    let other = MeshRoot::Closed {
        authority: key(9).peer_id(),
        name: String::from("other"),
    };
    assert_eq!(verify(&m, &other, &key(3), NOW), Err(CertificateError::OtherMesh));

    // An admitter without, or with somebody else's, delegation.
    let (_, _, admitter) = mesh();
    let rogue = Admitter {
        key: key(5),
        delegation: None,
    };
    let forged = rogue.admit(&root, key(3).peer_id(), name("x"), Serial([1; 16]), NOW, DAY);
    assert_eq!(
        verify(&forged, &root, &key(3), NOW),
        Err(CertificateError::Forged)
    );
    let rogue = Admitter {
        key: key(5),
        delegation: admitter.delegation,
    };
    let forged = rogue.admit(&root, key(3).peer_id(), name("x"), Serial([1; 16]), NOW, DAY);
    assert_eq!(
        verify(&forged, &root, &key(3), NOW),
        Err(CertificateError::Forged)
    );
    // A delegation that somebody else signed.
    let fake = Delegation::issue(&key(5), "lab", key(5).peer_id(), NOW, DAY);
    let rogue = Admitter {
        key: key(5),
        delegation: Some(fake),
    };
    let forged = rogue.admit(&root, key(3).peer_id(), name("x"), Serial([1; 16]), NOW, DAY);
    assert_eq!(
        verify(&forged, &root, &key(3), NOW),
        Err(CertificateError::Forged)
    );
}

#[test]
fn no_single_byte_of_a_membership_can_be_changed() {
    let (root, m) = admitted();
    let bytes = m.to_bytes();
    for i in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[i] ^= 1;
        let got = Membership::verify(&bad, &root, &key(3).peer_id(), NOW);
        assert!(
            got.is_err(),
            "byte {i} of {} was changed and nobody noticed",
            bytes.len()
        );
    }
}

#[test]
fn an_open_mesh_takes_whoever_signs_for_themselves_under_its_name() {
    let root = MeshRoot::Open {
        name: String::from("playground"),
    };
    let m = Membership::open(&root, &key(3), name("me"), NOW);
    assert!(verify(&m, &root, &key(3), NOW).is_ok());
    let other = MeshRoot::Open {
        name: String::from("elsewhere"),
    };
    assert_eq!(verify(&m, &other, &key(3), NOW), Err(CertificateError::OtherMesh));
    let (closed, _) = admitted();
    assert!(verify(&m, &closed, &key(3), NOW).is_err());
}

#[test]
fn an_open_membership_signed_by_another_is_refused() {
    let root = MeshRoot::Open {
        name: String::from("playground"),
    };
    let admitter = Admitter {
        key: key(5),
        delegation: None,
    };
    let m = admitter.admit(&root, key(3).peer_id(), name("me"), Serial([0; 16]), NOW, DAY);
    assert_eq!(verify(&m, &root, &key(3), NOW), Err(CertificateError::Forged));
}

#[test]
fn of_two_serials_the_earlier_one_is_lower() {
    let first = Serial::new(UnixMillis(1000), [0xff; 10]);
    let second = Serial::new(UnixMillis(1001), [0; 10]);
    assert!(first < second);
}
