//! No byte of a payload appears or vanishes unaccounted for.

use super::{Check, Findings};
use crate::world::World;

const NAME: &str = "bytes";
const CHUNK: u64 = 1 << 20;

/// The checker.
#[derive(Debug)]
pub struct BytesConserved;

impl Check for BytesConserved {
    fn look(&mut self, world: &World, to: &mut Findings) {
        let ledger = world.ledger();
        let known = ledger.received + ledger.void + ledger.lost + ledger.in_flight;
        if known != ledger.sent {
            let what = format!("{} bytes were sent, and {known} are accounted for", ledger.sent);
            to.add(NAME, world.now().mono, None, what);
        }
    }

    fn end(&mut self, world: &World, to: &mut Findings) {
        self.look(world, to);
        let mut on_disks = 0;
        for peer in world.peers() {
            for ((_, transfer), received) in &world.disk(peer).received {
                let chunks = received.offer.size.div_ceil(CHUNK);
                if received.have.count() > received.arrivals || received.have.count() > chunks {
                    let what = format!("transfer {transfer} has chunks on disk that never arrived");
                    to.add(NAME, world.now().mono, Some(peer), what);
                }
                // The last chunk may be shorter, and a chunk may come again.
                on_disks += received.have.count().saturating_sub(1) * CHUNK;
            }
        }
        if on_disks > world.ledger().received {
            let what = format!(
                "{on_disks} bytes are on disks, and {} arrived",
                world.ledger().received
            );
            to.add(NAME, world.now().mono, None, what);
        }
    }
}
