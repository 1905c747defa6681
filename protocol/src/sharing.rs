//! What the peers of one process share: equal parts of their databases, and the checks of items.
//!
//! In a mesh everyone has the same database, so a simulation of ten thousand peers would hold each of ten thousand
//! records ten thousand times, and look each of them up in cold memory. With this, what is equal is there once. A
//! peer behaves as it does without, but that it does not wait for a check that another one has made.

use alloc::sync::Arc;

use crate::directory::Claim;
use crate::flood::{Held, Record};
use crate::table::Pool;

/// Shared by all clones of it, which go to the peers of one mesh: a check by one counts for all. Not for peers that
/// an enemy can reach: it takes databases of equal 64-bit hashes for equal.
#[derive(Clone, Debug, Default)]
pub struct Sharing {
    pub(crate) items: Pool<Held>,
    pub(crate) records: Pool<Arc<Record>>,
    pub(crate) claims: Pool<Claim>,
}
