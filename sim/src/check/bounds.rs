//! Every table and queue stays within its bound.

use super::{Check, Findings};
use crate::world::World;

const NAME: &str = "bounds";

/// The bounds, as ARCHITECTURE and SPEC have them, written down once more: a bound that was loosened by mistake must not
/// loosen its check.
const NEIGHBORS_MAX: usize = 32;
const BOOTSTRAP_NEIGHBORS_MAX: usize = 1_024;
/// Those under way of being replaced, and joiners.
const SPARE_CONNECTIONS: usize = 128;
const KNOWN_MAX: usize = 256 + 64;
const BANS_MAX: usize = 1_024;
const DIALS_MAX: usize = 8;
const ITEMS_MAX: usize = 200_000;
const WAITING_MAX: usize = 8_192;
const TICKETS_MAX: usize = 10_000;
const REVOCATIONS_MAX: usize = 100_000;
const PERSISTING_MAX: usize = 4_096;
const OUTGOING_MAX: usize = 4_096;
const INCOMING_MAX: usize = 1_024;
const REMEMBERED_MAX: usize = 1_024;

/// The checker.
#[derive(Debug)]
pub struct Bounds;

impl Check for Bounds {
    fn look(&mut self, world: &World, to: &mut Findings) {
        for peer in world.peers() {
            let Some(fabric) = world.running(peer) else {
                continue;
            };
            let sizes = fabric.sizes();
            let options = world.options(peer);
            let most = if options.bootstrap {
                BOOTSTRAP_NEIGHBORS_MAX
            } else {
                NEIGHBORS_MAX
            };
            let neighbors = most.min(options.connections_max);
            for (what, size, max) in [
                ("neighbors", sizes.neighbors, neighbors),
                (
                    "connections",
                    sizes.connections,
                    4 * neighbors + SPARE_CONNECTIONS,
                ),
                ("known peers", sizes.known, KNOWN_MAX + neighbors),
                ("banned peers", sizes.bans, BANS_MAX),
                ("dials in flight", sizes.dials, DIALS_MAX),
                ("items", sizes.items, ITEMS_MAX),
                ("deferred versions", sizes.deferred, WAITING_MAX),
                ("versions to be checked", sizes.checking, 2 * WAITING_MAX),
                ("records", sizes.records, ITEMS_MAX),
                ("tickets", sizes.tickets, TICKETS_MAX),
                ("revocations", sizes.revocations, REVOCATIONS_MAX),
                ("state changes", sizes.persisting, PERSISTING_MAX),
                ("outgoing transfers", sizes.outgoing, OUTGOING_MAX),
                ("incoming transfers", sizes.incoming, INCOMING_MAX),
                ("remembered transfers", sizes.remembered, REMEMBERED_MAX),
            ] {
                if size > max {
                    to.add(
                        NAME,
                        world.now().mono,
                        Some(peer),
                        format!("has {size} {what}, more than {max}"),
                    );
                }
            }
        }
    }
}
