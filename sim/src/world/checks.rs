//! Signature checks, once for each item of a world.
//!
//! Whether an item is right depends on its bytes, the mesh and the time, not on who asks; a thousand peers that accept
//! it need its three signatures checked once. The answer brings the first copy of the item along, so that all
//! databases share it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use hyperfabric_protocol::cert::{CLOCK_SKEW_MAX, MeshRoot};
use hyperfabric_protocol::flood::{Checked, Content, Version, content};
use hyperfabric_protocol::{ConnId, UnixMillis};

/// The most items that are remembered; beyond that all are forgotten and checked again.
const REMEMBERED_MAX: usize = 1 << 20;

/// Takes a hash for what it is.
#[derive(Debug, Default)]
pub(super) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

#[derive(Debug)]
struct Known {
    version: Arc<Version>,
    content: Content,
    root: MeshRoot,
    since: UnixMillis,
}

impl Known {
    /// Tells whether the answer is still the one that a new check would give.
    fn counts(&self, version: &Arc<Version>, root: &MeshRoot, wall: UnixMillis) -> bool {
        let in_force = match &self.content {
            Content::Record(record) => wall.before(CLOCK_SKEW_MAX) <= record.member.not_after,
            Content::Revocation(_) => true,
        };
        let same = Arc::ptr_eq(&self.version, version) || *self.version == **version;
        same && in_force && wall >= self.since && self.root == *root
    }
}

/// The items that were found right. It is never walked through, so its order does not matter.
#[derive(Debug, Default)]
pub(super) struct Checks {
    known: HashMap<u64, Known, BuildHasherDefault<Identity>>,
    pub(super) made: u64,
}

impl Checks {
    /// Does what [`hyperfabric_protocol::fabric::Job::run_check`] does.
    pub(super) fn run(
        &mut self,
        items: Vec<(ConnId, Arc<Version>)>,
        root: &MeshRoot,
        wall: UnixMillis,
    ) -> Vec<Checked> {
        let check = |(from, version)| self.check(from, version, root, wall);
        items.into_iter().map(check).collect()
    }

    fn check(&mut self, from: ConnId, version: Arc<Version>, root: &MeshRoot, wall: UnixMillis) -> Checked {
        let hash = version.hash();
        if let Some(known) = self.known.get(&hash)
            && known.counts(&version, root, wall)
        {
            return Checked {
                from,
                version: Arc::clone(&known.version),
                result: Ok(known.content.clone()),
            };
        }
        self.made += 1;
        let result = content::check(version.signed(), root, wall);
        if let Ok(content) = &result {
            if self.known.len() >= REMEMBERED_MAX {
                self.known.clear();
            }
            let known = Known {
                version: Arc::clone(&version),
                content: content.clone(),
                root: root.clone(),
                since: wall,
            };
            self.known.insert(hash, known);
        }
        Checked {
            from,
            version,
            result,
        }
    }
}
