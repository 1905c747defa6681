//! Nobody is blamed: every peer of a simulated mesh keeps the rules, whatever its network, disk and clock do to it.

use hyperfabric_protocol::Instant;
use hyperfabric_protocol::fabric::Event;

use super::{Check, Findings};
use crate::world::{PeerIndex, World};

const NAME: &str = "honesty";

/// The checker.
#[derive(Debug)]
pub struct Honesty;

impl Check for Honesty {
    fn event(&mut self, _world: &World, at: Instant, peer: PeerIndex, event: &Event, to: &mut Findings) {
        if let Event::Misbehaved { peer: who, violation } | Event::JoinMisbehaved { peer: who, violation } =
            event
        {
            let what = format!("accuses {}, which {violation}", who.short());
            to.add(NAME, at, Some(peer), what);
        }
    }
}
