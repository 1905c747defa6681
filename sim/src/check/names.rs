//! Of two members that were granted one name, everybody takes the same one for its holder: the one with the older
//! certificate.

use std::collections::BTreeSet;

use hyperfabric_protocol::PeerId;

use super::{Asked, Check, Findings, parts};
use crate::scale::name_of;
use crate::world::{PeerIndex, World};

const NAME: &str = "names";

#[derive(Debug)]
struct Pair {
    /// Whose number the name has.
    name: PeerIndex,
    holder: PeerIndex,
    loser: PeerIndex,
}

/// The checker.
#[derive(Debug, Default)]
pub struct Names {
    members: BTreeSet<PeerIndex>,
    pairs: Vec<Pair>,
}

impl Check for Names {
    fn asked(&mut self, _world: &World, asked: Asked) {
        match asked {
            Asked::Member(peer) => drop(self.members.insert(peer)),
            Asked::Revoked(peer) => drop(self.members.remove(&peer)),
            Asked::Twin { peer, of, older } => {
                let (holder, loser) = if older { (peer, of) } else { (of, peer) };
                let name = of;
                self.pairs.push(Pair { name, holder, loser });
            }
            Asked::Stranger(_) | Asked::Guest { .. } | Asked::Send { .. } | Asked::Crashed(_) => {}
        }
    }

    fn end(&mut self, world: &World, to: &mut Findings) {
        let running = |peer: &PeerIndex| world.running(*peer).is_some();
        for part in parts(world, self.members.iter().copied().filter(running).collect()) {
            for pair in &self.pairs {
                pair.check(world, &part, to);
            }
        }
    }
}

impl Pair {
    fn check(&self, world: &World, part: &BTreeSet<PeerIndex>, to: &mut Findings) {
        let now = world.now().mono;
        // Who is gone, or is called nobody's member any more, leaves nothing to disagree about.
        if !part.contains(&self.holder) || !part.contains(&self.loser) {
            return;
        }
        let (name, holder) = (name_of(self.name.0), world.peer_id(self.holder));
        for peer in part {
            let host: Option<PeerId> = world.running(*peer).and_then(|f| f.directory().host_of(&name));
            if host != Some(holder) {
                let found = host.map_or_else(|| "nobody".to_owned(), |host| host.short());
                let what = format!(
                    "takes {found} for the host of {name}, and it is {}",
                    holder.short()
                );
                to.add(NAME, now, Some(*peer), what);
            }
        }
    }
}
