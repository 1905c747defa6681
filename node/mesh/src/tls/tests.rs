//! Leaves and reasons; the handshakes themselves are tested at the endpoint.

use std::sync::Arc;

use hyperfabric_protocol::SigningKey;
use hyperfabric_protocol::cert::MEMBERSHIP_BYTES_MAX;
use libp2p_tls::certificate;
use rustls::pki_types::CertificateDer;

use super::leaf::membership_of;
use super::*;

fn leaf(membership: Option<&[u8]>) -> CertificateDer<'static> {
    let leaf = Leaf::generate(&SigningKey::from_bytes(&[3; 32]), membership).unwrap();
    leaf.certified().cert[0].clone()
}

#[test]
fn a_leaf_proves_the_identity_to_plain_libp2p_and_carries_the_membership() {
    let expected = SigningKey::from_bytes(&[3; 32]).peer_id();
    for membership in [None, Some(vec![]), Some(vec![9; 100]), Some(vec![9; 2_000])] {
        let leaf = leaf(membership.as_deref());
        let parsed = certificate::parse(&leaf).unwrap();
        assert_eq!(parsed.peer_id().to_string(), expected.to_string());
        let found = membership_of(&leaf).unwrap();
        assert_eq!(found.as_deref(), membership.as_deref());
    }
}

#[test]
fn a_membership_above_the_limit_makes_no_leaf() {
    let key = SigningKey::from_bytes(&[3; 32]);
    let result = Leaf::generate(&key, Some(&vec![0; MEMBERSHIP_BYTES_MAX + 1]));
    assert!(matches!(result, Err(LeafError::MembershipTooLarge { .. })));
}

// The outer signature algorithm is not signed, so a few changed bytes are harmless; none may change what the leaf says.
#[test]
fn a_changed_byte_never_changes_what_a_leaf_says() {
    let leaf = leaf(Some(b"membership"));
    let peer = certificate::parse(&leaf).unwrap().peer_id();
    let mut accepted = 0;
    for at in 0..leaf.len() {
        let mut bytes = leaf.to_vec();
        bytes[at] ^= 0x10;
        let changed = CertificateDer::from(bytes);
        let membership = membership_of(&changed);
        let Ok(parsed) = certificate::parse(&changed) else {
            continue;
        };
        accepted += 1;
        assert_eq!(parsed.peer_id(), peer, "byte {at}");
        assert_eq!(membership.unwrap().as_deref(), Some(b"membership".as_slice()));
    }
    assert!(accepted < 8, "{accepted}");
}

#[test]
fn every_refusal_survives_the_close_frame() {
    for refusal in Refusal::ALL {
        let alert: u8 = rustls::AlertDescription::from(refusal.as_certificate_error()).into();
        let code = 0x100 + u64::from(alert);
        let told = Refusal::from_close(code, refusal.phrase().as_bytes());
        assert_eq!(told, Some(refusal));
        assert_eq!(Refusal::from_close(0xa, refusal.phrase().as_bytes()), None);
    }
}

#[test]
fn an_alert_alone_tells_the_kind_of_refusal() {
    for (refusal, understood) in [
        (Refusal::NotAMember, Refusal::NotAMember),
        (Refusal::OtherMesh, Refusal::OtherMesh),
        (Refusal::Expired, Refusal::Expired),
        (Refusal::NotYetValid, Refusal::Expired),
        (Refusal::Forged, Refusal::Forged),
        (Refusal::Revoked, Refusal::Revoked),
        (Refusal::Banned, Refusal::Banned),
        (Refusal::Malformed, Refusal::Malformed),
    ] {
        let alert: u8 = rustls::AlertDescription::from(refusal.as_certificate_error()).into();
        let told = Refusal::from_close(0x100 + u64::from(alert), b"certificate");
        assert_eq!(told, Some(understood));
    }
}

#[test]
fn a_swapped_leaf_is_the_current_one() {
    let key = SigningKey::from_bytes(&[3; 32]);
    let cell = LeafCell::new(Leaf::generate(&key, None).unwrap());
    let before = cell.current();
    cell.clone().swap(Leaf::generate(&key, None).unwrap());
    assert!(!Arc::ptr_eq(&before, &cell.current()));
}
