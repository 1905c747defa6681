//! A hash over everything that happens: two runs that agree in it have had the same events.
//!
//! Each event counts with its time, its peer and what it carries in canonical form: a frame as the bytes that travel, but
//! items by the hashes of their signed bytes, which the machines have computed already. Nothing in it depends on
//! addresses in memory, the order of a hash table or the width of a machine word.

use hyperfabric_protocol::Instant;
use hyperfabric_protocol::frame::Frame;

/// The hash so far, and how many events went into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    state: [u64; 2],
    pub(super) events: u64,
}

impl Trace {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            state: [seed, 0x243f_6a88_85a3_08d3],
            events: 0,
        }
    }

    /// Returns the hash as text.
    pub(super) fn hash(&self) -> String {
        format!("{:016x}{:016x}", self.state[0], self.state[1])
    }

    /// Begins an event.
    pub(super) fn event(&mut self, at: Instant, kind: u64, peer: usize) {
        self.events += 1;
        self.word(at.0);
        self.word(kind << 32 | peer as u64);
    }

    pub(super) fn word(&mut self, word: u64) {
        // Two rounds of multiply and fold: not cryptographic, nobody attacks a trace.
        let product = u128::from(self.state[0] ^ word) * 0x9e37_79b9_7f4a_7c15_u128;
        let (low, high) = (product as u64, (product >> 64) as u64);
        self.state[0] = self.state[0].rotate_left(23) ^ high.wrapping_add(word);
        self.state[1] = (self.state[1] ^ low)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
            .rotate_left(31)
            ^ self.state[0];
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    pub(super) fn frame(&mut self, frame: &Frame) {
        match frame {
            Frame::Items(items) => {
                self.word(items.items.len() as u64);
                self.word(u64::from(items.answers.unwrap_or(0)));
                for version in items.items.iter() {
                    self.word(version.hash());
                }
            }
            Frame::Summary(summary) => {
                self.word(u64::from(summary.answer == Some(true)));
                self.word(u64::from(summary.items));
                summary.hashes.0.iter().for_each(|hash| self.word(*hash));
            }
            Frame::Digest(digest) => {
                digest
                    .buckets
                    .iter()
                    .for_each(|bucket| self.word(u64::from(bucket)));
                self.word(digest.versions.0.len() as u64);
                digest.versions.0.iter().for_each(|hash| self.word(*hash));
            }
            Frame::Hello(_)
            | Frame::Offer(_)
            | Frame::Accept(_)
            | Frame::Progress(_)
            | Frame::Finish(_)
            | Frame::Delivered(_)
            | Frame::Abort(_)
            | Frame::JoinRequest(_)
            | Frame::JoinReply(_)
            | Frame::RenewRequest(_)
            | Frame::RenewReply(_)
            | Frame::Forwarding(_)
            | Frame::Goodbye(_) => self.bytes(&frame.to_bytes()),
        }
    }
}

/// Returns how long a frame is on the wire, without its length prefix.
pub(super) fn frame_bytes(frame: &Frame) -> u64 {
    let header = |len: usize| match len {
        0..=23 => 1,
        24..=255 => 2,
        256..=65_535 => 3,
        _ => 5,
    };
    match frame {
        Frame::Items(items) => {
            let signed = items.items.iter().map(|v| v.signed().as_bytes().len());
            let list = header(items.items.len()) + signed.map(|len| header(len) + len).sum::<usize>();
            // The frame's array and type, the map with its key, and with a second one for a number.
            let answers = items.answers.map_or(0, |answers| 1 + header(answers as usize));
            (4 + list + answers) as u64
        }
        Frame::Summary(summary) => {
            let (bytes, answer) = (summary.hashes.0.len() * 8, summary.answer.map_or(0, |_| 2));
            (5 + header(bytes) + bytes + answer + header(summary.items as usize)) as u64
        }
        Frame::Digest(digest) => {
            let bytes = digest.versions.0.len() * 8;
            // The map has two keys, and a set of buckets has 32 bytes.
            (5 + header(32) + 32 + header(bytes) + bytes) as u64
        }
        other => other.to_bytes().len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use hyperfabric_protocol::cbor::{self, List};
    use hyperfabric_protocol::flood::{Item, ItemKind, Version};
    use hyperfabric_protocol::frame::{BucketHashes, Digest, Items, Summary, Versions};
    use hyperfabric_protocol::sign::Domain;
    use hyperfabric_protocol::{SigningKey, UnixMillis};

    use super::*;

    #[test]
    fn the_length_of_a_frame_is_that_of_its_bytes() {
        let key = SigningKey::from_bytes(&[1; 32]);
        for (count, size) in [(1, 10), (3, 200), (30, 900), (64, 300), (3, 14_000)] {
            let body = vec![7; size];
            let item = Item::new(
                ItemKind::Record,
                0,
                1,
                UnixMillis(1),
                std::time::Duration::ZERO,
                &body,
            );
            let version =
                Version::read(key.sign(Domain::Item, &cbor::to_bytes(&item))).expect("it is an item");
            let items = List(vec![version; count]);
            for answers in [None, Some(1), Some(23), Some(24), Some(256), Some(u32::MAX)] {
                let items = items.clone();
                let frame = Frame::Items(Items { items, answers });
                assert_eq!(frame_bytes(&frame), frame.to_bytes().len() as u64);
            }
        }
        for (answer, items) in [(None, 0), (Some(true), 23), (None, 24), (None, 70_000)] {
            let hashes = BucketHashes(vec![1; 256]);
            let frame = Frame::Summary(Summary {
                hashes,
                answer,
                items,
            });
            assert_eq!(frame_bytes(&frame), frame.to_bytes().len() as u64);
        }
        for (bucket, count) in [(0, 0), (23, 2), (24, 3), (255, 40), (9, 4000)] {
            let versions = Versions(vec![1; count]);
            let buckets = (0..=bucket).collect();
            let frame = Frame::Digest(Digest { buckets, versions });
            assert_eq!(frame_bytes(&frame), frame.to_bytes().len() as u64);
        }
    }

    #[test]
    fn every_word_and_its_place_count() {
        let hash = |words: &[u64]| {
            let mut trace = Trace::new(1);
            words.iter().for_each(|word| trace.word(*word));
            trace.hash()
        };
        assert_ne!(hash(&[1, 2]), hash(&[2, 1]));
        assert_ne!(hash(&[0]), hash(&[0, 0]));
        assert_ne!(hash(&[1 << 63]), hash(&[0]));
        assert_eq!(hash(&[5, 6]), hash(&[5, 6]));
    }
}
