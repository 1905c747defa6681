//! A peer's folder: what is written is read back, and what is wrong is named.

use std::os::unix::fs::PermissionsExt;

use hyperfabric_protocol::NodeId;
use hyperfabric_protocol::admission::Grant;

use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn folder() -> (tempfile::TempDir, StateFolder) {
    let place = tempfile::tempdir().unwrap();
    let folder = StateFolder::new(place.path().join("peer"));
    (place, folder)
}

fn name(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

#[test]
fn a_key_is_made_once_and_is_readable_by_its_owner_alone() {
    let (_place, folder) = folder();
    assert!(matches!(folder.key(), Err(StateError::NotInitialised(_))));
    let key = folder.init().unwrap();
    assert_eq!(folder.key().unwrap().peer_id(), key.peer_id());
    assert!(matches!(folder.init(), Err(StateError::Initialised(_))));
    let mode = std::fs::metadata(folder.key_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn an_exposed_or_damaged_key_is_named_and_left_alone() {
    let (_place, folder) = folder();
    folder.init().unwrap();
    let path = folder.key_file();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(folder.key(), Err(StateError::Exposed(p)) if p == path));
    replace(&path, b"hyperfabric-key-1 abc\n").unwrap();
    assert!(matches!(folder.key(), Err(StateError::BadKey(p)) if p == path));
    assert_eq!(std::fs::read(&path).unwrap(), b"hyperfabric-key-1 abc\n");
}

#[test]
fn a_mesh_is_created_once_and_makes_its_creator_an_admitter_and_a_member() {
    let (_place, folder) = folder();
    let key = folder.init().unwrap();
    let root = folder.create_mesh("lab", name("first"), NOW).unwrap();
    let credential = folder.credential().unwrap().unwrap();
    assert_eq!(credential.root(), root);
    let bytes = credential.0.membership.to_bytes();
    let member = Membership::verify(&bytes, &root, &key.peer_id(), NOW).unwrap();
    assert_eq!(member.name, name("first"));
    assert!(folder.admitter(&key).unwrap().is_some());
    let again = folder.create_mesh("other", name("first"), NOW);
    assert!(matches!(again, Err(StateError::AlreadyMember(mesh)) if mesh == "lab"));
}

#[test]
fn a_damaged_certificate_is_reported_not_ignored() {
    let (_place, folder) = folder();
    folder.init().unwrap();
    folder.create_mesh("lab", name("first"), NOW).unwrap();
    replace(&folder.certificate_file(), b"hfc1-xyz").unwrap();
    assert!(matches!(
        folder.credential(),
        Err(StateError::BadCredential { .. })
    ));
}

#[test]
fn state_changes_are_there_when_the_peer_starts_again() {
    let (_place, folder) = folder();
    let key = folder.init().unwrap();
    folder.create_mesh("lab", name("first"), NOW).unwrap();
    let store = Store::open(&folder.store_file(), 0).unwrap().store;
    let grant = Grant {
        name: name("gpu"),
        peer: PeerId([4; 32]),
        serial: Serial([5; 16]),
        not_after: NOW,
    };
    let item = key.sign(hyperfabric_protocol::sign::Domain::Item, b"revoked");
    let changes = [
        StateChange::Grant(grant.clone()),
        StateChange::Revocation {
            serial: Serial([6; 16]),
            item: item.clone(),
        },
    ];
    folder.persist(&store, &changes).unwrap();
    let address = Address::new("/ip4/127.0.0.1/udp/1/quic-v1").unwrap();
    folder
        .remember_peers(&store, &[(PeerId([1; 32]), vec![address.clone()])])
        .unwrap();
    folder
        .remember_peers(&store, &[(PeerId([2; 32]), vec![address.clone()])])
        .unwrap();
    drop(store);
    let store = Store::open(&folder.store_file(), 0).unwrap().store;
    let config = folder.fabric_config(&store, String::from("test")).unwrap();
    assert_eq!(config.grants, [grant]);
    assert_eq!(config.revocations, [item]);
    assert!(config.admitter.is_some());
    let contacts = folder.first_contacts(&store).unwrap();
    assert_eq!(
        contacts,
        [KnownPeer {
            peer: PeerId([2; 32]),
            addresses: vec![address],
            bootstrap: false
        }]
    );
}

#[test]
fn the_port_is_kept_and_can_be_changed() {
    let (_place, folder) = folder();
    let store = Store::in_memory().unwrap();
    assert_eq!(folder.listen_port(&store).unwrap(), None);
    folder.set_listen_port(&store, 4001).unwrap();
    folder.set_listen_port(&store, 4002).unwrap();
    assert_eq!(folder.listen_port(&store).unwrap(), Some(4002));
}
