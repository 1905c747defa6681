//! What the peers of one process share: equal parts of their databases, and the checks of items.
//!
//! In a mesh everyone has the same database, so a simulation of ten thousand peers would hold each of ten thousand
//! records ten thousand times, and look each of them up in cold memory. With this, what is equal is there once. A
//! peer behaves as it does without, but that it does not wait for a check that another one has made.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use spin::Mutex;

use crate::cert::{CertificateError, Member, Membership, MeshRoot};
use crate::directory::Claim;
use crate::flood::{Held, Record};
use crate::table::Pool;
use crate::{PeerId, UnixMillis};

/// Shared by all clones of it, which go to the peers of one mesh: a check by one counts for all. Not for peers that
/// an enemy can reach: it takes databases of equal 64-bit hashes for equal.
#[derive(Clone, Debug, Default)]
pub struct Sharing {
    pub(crate) items: Pool<Held>,
    pub(crate) records: Pool<Arc<Record>>,
    pub(crate) claims: Pool<Claim>,
    /// Memberships that were checked, by the hash of their bytes.
    members: Arc<Mutex<BTreeMap<[u8; 32], Member>>>,
}

impl Sharing {
    /// Checks a membership as [`Membership::verify`] does, or finds that somebody else has.
    pub(crate) fn verify(
        &self,
        shown: &[u8],
        root: &MeshRoot,
        peer: &PeerId,
        now: UnixMillis,
    ) -> Result<Member, CertificateError> {
        let hash = *blake3::hash(shown).as_bytes();
        let known = self.members.lock().get(&hash).cloned();
        let in_force = |member: &Member| {
            member.peer == *peer && now.before(crate::cert::CLOCK_SKEW_MAX) <= member.not_after
        };
        if let Some(member) = known.filter(in_force) {
            return Ok(member);
        }
        let member = Membership::verify(shown, root, peer, now)?;
        self.members.lock().insert(hash, member.clone());
        Ok(member)
    }
}
