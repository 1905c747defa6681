//! The codec, against an independent one and against hostile bytes.

use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

wire_map! {
    /// One field of every kind.
    #[allow(unreachable_pub, reason = "the macro declares public structs")]
    pub struct Sample {
        0 => pub number: u64,
        1 => pub text: Text<32>,
        2 => pub blob: Blob<64>,
        3 => pub list: List<u32, 8>,
        5 => pub maybe: Option<u16>,
        6 => pub flag: bool,
    }
}

fn sample() -> impl Strategy<Value = Sample> {
    (
        any::<u64>(),
        "[a-zä]{0,10}",
        proptest::collection::vec(any::<u8>(), 0..64),
        proptest::collection::vec(any::<u32>(), 0..8),
        any::<Option<u16>>(),
        any::<bool>(),
    )
        .prop_map(|(number, text, blob, list, maybe, flag)| Sample {
            number,
            text: Text(text),
            blob: Blob(blob.into()),
            list: List(list),
            maybe,
            flag,
        })
}

fn oracle(sample: &Sample) -> serde_cbor::Value {
    use serde_cbor::Value as V;
    let mut map = std::collections::BTreeMap::new();
    map.insert(V::Integer(0), V::Integer(i128::from(sample.number)));
    map.insert(V::Integer(1), V::Text(sample.text.0.clone()));
    map.insert(V::Integer(2), V::Bytes(sample.blob.to_vec()));
    if !sample.list.is_empty() {
        map.insert(
            V::Integer(3),
            V::Array(sample.list.iter().map(|n| V::Integer(i128::from(*n))).collect()),
        );
    }
    if let Some(maybe) = sample.maybe {
        map.insert(V::Integer(5), V::Integer(i128::from(maybe)));
    }
    map.insert(V::Integer(6), V::Bool(sample.flag));
    V::Map(map)
}

proptest! {
    #[test]
    fn what_we_encode_an_independent_decoder_reads_as_the_same_value(sample in sample()) {
        let theirs: serde_cbor::Value = serde_cbor::from_slice(&to_bytes(&sample)).unwrap();
        prop_assert_eq!(theirs, oracle(&sample));
    }

    #[test]
    fn what_an_independent_encoder_writes_we_read_as_the_same_value(sample in sample()) {
        let bytes = serde_cbor::to_vec(&oracle(&sample)).unwrap();
        prop_assert_eq!(from_bytes::<Sample>(&bytes), Ok(sample));
    }

    #[test]
    fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(value) = from_bytes::<Sample>(&bytes) {
            // Strict enough that what was accepted can be written again, unless fields were skipped.
            prop_assert!(to_bytes(&value).len() <= bytes.len());
        }
    }
}

fn raw(pairs: &[(u64, &[u8])]) -> Vec<u8> {
    let mut e = Encoder::new();
    e.map(pairs.len());
    let mut bytes = e.into_bytes();
    for (key, value) in pairs {
        let mut e = Encoder::new();
        e.u64(*key);
        bytes.extend(e.into_bytes());
        bytes.extend_from_slice(value);
    }
    bytes
}

const BASE: [(u64, &[u8]); 4] = [(0, &[1]), (1, b"\x61a"), (2, b"\x41b"), (6, &[0xf5])];

#[test]
fn an_unknown_field_is_skipped_below_the_critical_range_and_refused_in_it() {
    let with = |key: u64| {
        let mut pairs = BASE.to_vec();
        pairs.push((key, &[0x82, 0x01, 0x61, 0x78]));
        from_bytes::<Sample>(&raw(&pairs))
    };
    assert!(with(90).is_ok());
    assert_eq!(with(CRITICAL_KEY), Err(DecodeError::Critical(CRITICAL_KEY)));
}

#[test]
fn keys_must_ascend_without_repetition() {
    let mut pairs = BASE.to_vec();
    pairs.swap(0, 1);
    assert_eq!(from_bytes::<Sample>(&raw(&pairs)), Err(DecodeError::KeyOrder));
    let mut pairs = BASE.to_vec();
    pairs.insert(1, pairs[0]);
    assert_eq!(from_bytes::<Sample>(&raw(&pairs)), Err(DecodeError::KeyOrder));
}

#[test]
fn a_missing_field_is_named() {
    assert_eq!(
        from_bytes::<Sample>(&raw(&BASE[1..])),
        Err(DecodeError::Missing(0))
    );
}

#[test]
fn trailing_bytes_are_refused() {
    let mut bytes = raw(&BASE);
    bytes.push(0);
    assert_eq!(from_bytes::<Sample>(&bytes), Err(DecodeError::Trailing));
}

#[test]
fn too_long_strings_and_lists_are_refused_before_anything_is_allocated() {
    let long: Vec<u8> = [&[0x78, 33][..], &[b'a'; 33]].concat();
    let pairs = [BASE[0], (1, &long[..]), BASE[2], BASE[3]];
    assert_eq!(from_bytes::<Sample>(&raw(&pairs)), Err(DecodeError::TooLong(32)));
    // A list that claims 2^62 entries and has none.
    let list = [0x9b, 0x40, 0, 0, 0, 0, 0, 0, 0];
    let pairs = [BASE[0], BASE[1], BASE[2], (3, &list[..]), BASE[3]];
    assert_eq!(from_bytes::<Sample>(&raw(&pairs)), Err(DecodeError::TooLong(8)));
}

#[test]
fn indefinite_lengths_are_refused() {
    assert!(matches!(
        from_bytes::<Sample>(&[0xbf, 0xff]),
        Err(DecodeError::Malformed(_))
    ));
    let list = [0x9f, 0xff];
    let pairs = [BASE[0], BASE[1], BASE[2], (3, &list[..]), BASE[3]];
    assert!(matches!(
        from_bytes::<Sample>(&raw(&pairs)),
        Err(DecodeError::Malformed(_))
    ));
}

#[test]
fn deep_nesting_in_a_skipped_field_neither_recurses_nor_is_accepted_when_cut() {
    let deep: Vec<u8> = core::iter::repeat_n(0x81, 60_000).chain([0]).collect();
    let mut pairs = BASE.to_vec();
    pairs.push((90, &deep));
    assert!(from_bytes::<Sample>(&raw(&pairs)).is_ok());
    pairs[4].1 = &deep[..59_999];
    assert!(from_bytes::<Sample>(&raw(&pairs)).is_err());
}

#[test]
fn text_is_cut_at_a_character_not_inside_one() {
    assert_eq!(Text::<3>::truncating("aää").0, String::from("aä"));
}
