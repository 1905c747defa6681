//! What is stored in Kademlia and announced by gossip: a peer's signed record, as it is flooded.

use hyperfabric_protocol::flood::content::RecordBody;
use hyperfabric_protocol::flood::{Item, ItemKind};
use hyperfabric_protocol::{MeshId, NodeId, Signed, cbor};
use libp2p::kad;

/// Separates these keys from all other digests.
const KEY_CONTEXT: &str = "hyperfabric node name v1";

/// The key under which the record of a node's peer is stored. [DISC-2]
pub(super) fn key(mesh: &MeshId, name: &NodeId) -> kad::RecordKey {
    let mut hasher = blake3::Hasher::new_derive_key(KEY_CONTEXT);
    hasher.update(mesh.as_bytes()).update(name.as_str().as_bytes());
    kad::RecordKey::new(hasher.finalize().as_bytes())
}

/// Reads an item that somebody claims is one; its signature is not checked.
pub(super) fn decode(bytes: &[u8]) -> Option<(Signed, Item)> {
    let signed = Signed::from_bytes(bytes).ok()?;
    let item = Item::unverified(&signed).ok()?;
    Some((signed, item))
}

/// Reads what a record says; none for other items.
pub(super) fn body(item: &Item) -> Option<RecordBody> {
    match item.kind {
        ItemKind::Record => cbor::from_bytes(&item.body).ok(),
        ItemKind::Revocation | ItemKind::Other(_) => None,
    }
}

/// Whether one of the record's nodes is stored under `key`.
pub(super) fn has_name(mesh: &MeshId, item: &Item, wanted: &kad::RecordKey) -> bool {
    body(item).is_some_and(|body| {
        body.nodes
            .0
            .iter()
            .any(|node| key(mesh, &node.node_id) == *wanted)
    })
}
