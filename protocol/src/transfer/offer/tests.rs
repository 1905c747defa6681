//! Offers and faults on the wire.

use super::*;
use crate::NodeId;
use crate::cbor::{from_bytes, to_bytes};

fn offer(size: u64) -> Offer {
    Offer {
        source: NodeId::new("a").unwrap(),
        destination: NodeId::new("b/gpu0").unwrap(),
        name: Text::truncating("weights.safetensors"),
        kind: PayloadKind::Tree,
        size,
        data_type: DataType::Tensor,
        priority: PacketPriority::Bulk,
        modified: Some(UnixMillis(1)),
        mode: None,
        sync: None,
    }
}

#[test]
fn a_payload_has_a_chunk_for_every_started_mebibyte() {
    let cases = [
        (0, 0),
        (1, 1),
        (CHUNK_BYTES, 1),
        (CHUNK_BYTES + 1, 2),
        (u64::MAX, 1 << 44),
    ];
    for (size, chunks) in cases {
        assert_eq!(offer(size).chunks(), chunks, "{size} bytes");
    }
}

#[test]
fn an_offer_reads_as_it_was_written() {
    for size in [0, 1, u64::MAX] {
        assert_eq!(from_bytes(&to_bytes(&offer(size))), Ok(offer(size)));
    }
}

#[test]
fn every_fault_has_a_number_of_its_own() {
    let mut known = 0;
    for code in 0..256 {
        if let Some(fault) = Fault::from_code(code) {
            assert_eq!(fault.code(), code);
            known += 1;
        }
    }
    assert!(known >= 17);
}
