//! Checkers: what must hold whatever happens, looked at while it does.
//!
//! They share no code with what they check: each keeps its own account, from what was asked of the mesh and what its
//! peers report, and has its limits written down anew.

mod bounds;
mod bytes;
mod certificates;
mod directories;
mod transfers;

use std::time::Duration;

pub use bounds::Bounds;
pub use bytes::BytesConserved;
pub use certificates::Certificates;
pub use directories::Directories;
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::{Instant, TransferId};
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
    /// A peer is a member of another mesh, or its membership has run out.
    Stranger(PeerIndex),
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

/// Returns every checker.
#[must_use]
pub fn all() -> Vec<Box<dyn Check>> {
    vec![
        Box::new(TransfersEnd::default()),
        Box::new(BytesConserved),
        Box::new(Directories::default()),
        Box::new(Certificates::default()),
        Box::new(Bounds),
    ]
}
