//! Who is certainly not among the peers that are kept: asked once for every record of the mesh.

use crate::PeerId;

/// Words of 64 bits: with [`super::PEERS_KNOWN_MAX`] peers one in sixteen strangers has to be looked up.
const WORDS: usize = 16;

/// A set of peers that may hold more than was added, and never less.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filter([u64; WORDS]);

impl Filter {
    const fn place(peer: &PeerId) -> (usize, u64) {
        let bit = peer.lead() as usize % (WORDS * 64);
        (bit / 64, 1 << (bit % 64))
    }

    pub(super) const fn add(&mut self, peer: &PeerId) {
        let (word, bit) = Self::place(peer);
        self.0[word] |= bit;
    }

    pub(super) const fn may_hold(&self, peer: &PeerId) -> bool {
        let (word, bit) = Self::place(peer);
        self.0[word] & bit != 0
    }
}

impl<'a> FromIterator<&'a PeerId> for Filter {
    fn from_iter<I: IntoIterator<Item = &'a PeerId>>(peers: I) -> Self {
        let mut filter = Self::default();
        peers.into_iter().for_each(|peer| filter.add(peer));
        filter
    }
}
