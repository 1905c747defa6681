//! Checkers: what must hold whatever happens, looked at while it does.
//!
//! They share no code with what they check: each keeps its own account, from what was asked of the mesh and what its
//! peers report, and has its limits written down anew.

mod bounds;
mod bytes;
mod certificates;
mod directories;
mod honesty;
mod names;
mod promises;
mod transfers;

use std::collections::BTreeSet;
use std::time::Duration;

pub use bounds::Bounds;
pub use bytes::BytesConserved;
pub use certificates::Certificates;
pub use directories::Directories;
pub use honesty::Honesty;
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::{Instant, TransferId, UnixMillis};
pub use names::Names;
pub use promises::Promises;
use serde::Serialize;
pub use transfers::TransfersEnd;

use crate::world::{PeerIndex, World};

/// What must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Who found it.
    pub checker: &'static str,
    /// When, in milliseconds of virtual time.
    pub at_ms: u64,
    /// At which peer, where it is one's.
    pub peer: Option<usize>,
    /// What is wrong.
    pub what: String,
}

/// What a run asks of the mesh, told to the checkers.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    /// A peer is a member under its name from now on.
    Member(PeerIndex),
    /// A peer is a member of another mesh.
    Stranger(PeerIndex),
    /// A peer is a member until its certificate has run out.
    Guest {
        /// Who.
        peer: PeerIndex,
        /// When nobody takes the certificate any more.
        until: UnixMillis,
    },
    /// A peer is a member under the name of another one, too.
    Twin {
        /// Who.
        peer: PeerIndex,
        /// Whose name it has.
        of: PeerIndex,
        /// Whether its certificate is the older one.
        older: bool,
    },
    /// A membership was revoked.
    Revoked(PeerIndex),
    /// A transfer was given to its sender, anew or to be resumed.
    Send {
        /// From whom.
        from: PeerIndex,
        /// To whom.
        to: PeerIndex,
        /// Which.
        transfer: TransferId,
        /// How many bytes.
        size: u64,
    },
    /// A peer's process ended without a word.
    Crashed(PeerIndex),
}

/// Collects violations.
#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<Violation>,
}

/// Violations beyond this are not kept: the first ones say it all.
const FINDINGS_MAX: usize = 100;

impl Findings {
    /// Notes a violation.
    pub fn add(&mut self, checker: &'static str, at: Instant, peer: Option<PeerIndex>, what: String) {
        if self.found.len() < FINDINGS_MAX {
            let at_ms = u64::try_from(Duration::from_nanos(at.0).as_millis()).unwrap_or(u64::MAX);
            self.found.push(Violation {
                checker,
                at_ms,
                peer: peer.map(|peer| peer.0),
                what,
            });
        }
    }

    /// Returns what was found.
    #[must_use]
    pub fn all(&self) -> &[Violation] {
        &self.found
    }
}

/// A checker.
pub trait Check {
    /// Hears what is asked of the mesh.
    fn asked(&mut self, _world: &World, _asked: Asked) {}

    /// Hears what a peer reports.
    fn event(&mut self, _world: &World, _at: Instant, _peer: PeerIndex, _event: &Event, _to: &mut Findings) {}

    /// Looks at the world, several times a second.
    fn look(&mut self, _world: &World, _to: &mut Findings) {}

    /// Looks at the world when everything was mended and the mesh has had time to become quiet.
    fn end(&mut self, _world: &World, _to: &mut Findings) {}
}

/// Returns the sets of members that are connected through members: in a ring, two that are gone make two of them.
fn parts(world: &World, mut left: BTreeSet<PeerIndex>) -> Vec<BTreeSet<PeerIndex>> {
    let mut parts = Vec::new();
    while let Some(first) = left.pop_first() {
        let (mut part, mut open) = (BTreeSet::from([first]), vec![first]);
        while let Some(peer) = open.pop() {
            let reached: Vec<PeerIndex> = left
                .iter()
                .copied()
                .filter(|other| world.can_connect(peer, *other))
                .collect();
            for other in reached {
                left.remove(&other);
                part.insert(other);
                open.push(other);
            }
        }
        parts.push(part);
    }
    parts
}

/// Returns every checker.
#[must_use]
pub fn all() -> Vec<Box<dyn Check>> {
    vec![
        Box::new(TransfersEnd::default()),
        Box::new(BytesConserved),
        Box::new(Directories::default()),
        Box::new(Certificates::default()),
        Box::new(Bounds),
        Box::new(Names::default()),
        Box::new(Promises),
        Box::new(Honesty),
    ]
}
