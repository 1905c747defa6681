//! Sets of chunks, against the plainest set there is.

use std::collections::BTreeSet;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::cbor::{from_bytes, to_bytes};
use crate::transfer::CHUNK_BYTES;

#[test]
fn bytes_counts_the_last_chunk_as_long_as_it_is() {
    let all: ChunkRanges = core::iter::once(0..3).collect();
    assert_eq!(all.bytes(2 * CHUNK_BYTES + 5), 2 * CHUNK_BYTES + 5);
    let last: ChunkRanges = core::iter::once(2..3).collect();
    assert_eq!(last.bytes(2 * CHUNK_BYTES + 5), 5);
    assert_eq!(ChunkRanges::new().bytes(0), 0);
    let absurd: ChunkRanges = core::iter::once(7..u64::MAX).collect();
    assert_eq!(absurd.bytes(u64::MAX), u64::MAX - 7 * CHUNK_BYTES);
}

#[test]
fn ranges_that_are_empty_unordered_or_touching_are_refused() {
    let encode = |numbers: &[u64]| {
        let mut e = Encoder::new();
        e.array(numbers.len());
        for number in numbers {
            e.u64(*number);
        }
        e.into_bytes()
    };
    assert!(from_bytes::<ChunkRanges>(&encode(&[0, 2, 3, 4])).is_ok());
    for bad in [
        &[1, 1][..],
        &[2, 1],
        &[0, 2, 2, 3],
        &[0, 5, 3, 7],
        &[4, 5, 0, 1],
        &[0, 1, 2],
    ] {
        assert!(from_bytes::<ChunkRanges>(&encode(bad)).is_err(), "{bad:?}");
    }
    let many: Vec<u64> = (0..=RANGES_MAX as u64).flat_map(|n| [n * 2, n * 2 + 1]).collect();
    assert!(from_bytes::<ChunkRanges>(&encode(&many)).is_err());
}

#[test]
fn a_set_with_too_many_ranges_is_cut_to_what_fits() {
    let set: ChunkRanges = (0..RANGES_MAX as u64 * 2).map(|n| n * 2..n * 2 + 1).collect();
    let read: ChunkRanges = from_bytes(&to_bytes(&set)).unwrap();
    assert_eq!(read.ranges(), &set.ranges()[..RANGES_MAX]);
}

proptest! {
    #[test]
    fn it_behaves_like_a_set(parts in prop::collection::vec((0u64..40, 0u64..8), 0..30), end in 0u64..60) {
        let mut set = ChunkRanges::new();
        let mut model = BTreeSet::new();
        for (start, len) in parts {
            set.insert(start..start + len);
            model.extend(start..start + len);
        }
        let listed: Vec<u64> = set.ranges().iter().cloned().flatten().collect();
        prop_assert_eq!(&listed, &model.iter().copied().collect::<Vec<_>>());
        prop_assert!(set.ranges().windows(2).all(|pair| pair[0].end < pair[1].start));
        prop_assert_eq!(set.count(), model.len() as u64);
        prop_assert_eq!(set.is_empty(), model.is_empty());
        let missing: Vec<u64> = set.missing(end).into_iter().flatten().collect();
        prop_assert_eq!(missing, (0..end).filter(|n| !model.contains(n)).collect::<Vec<_>>());
        for n in 0..60 {
            prop_assert_eq!(set.contains(n), model.contains(&n));
        }
        prop_assert_eq!(from_bytes::<ChunkRanges>(&to_bytes(&set)), Ok(set));
    }

    #[test]
    fn no_bytes_break_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(set) = from_bytes::<ChunkRanges>(&bytes) {
            let _ = (set.count(), set.bytes(u64::MAX), set.missing(u64::MAX), set.contains(1));
        }
    }
}
