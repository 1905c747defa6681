//! Which link a datagram takes: peers are known to the wires by their sockets, and to a scenario by their places.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use hyperfabric_mesh::wire::{Impairment, LinkRule};

/// How the link from one peer to another behaves, by their places.
#[derive(Clone)]
pub struct LinkTable(Arc<dyn Fn(usize, usize) -> Impairment + Send + Sync>);

impl LinkTable {
    /// Asks `conditions` with the places of sender and receiver.
    pub fn new(conditions: impl Fn(usize, usize) -> Impairment + Send + Sync + 'static) -> Self {
        Self(Arc::new(conditions))
    }

    /// The conditions from one peer to another.
    #[must_use]
    pub fn ask(&self, from: usize, to: usize) -> Impairment {
        (self.0)(from, to)
    }
}

impl fmt::Debug for LinkTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkTable").finish_non_exhaustive()
    }
}

/// Where everybody's socket is.
#[derive(Clone, Debug, Default)]
pub(super) struct Sockets(Arc<RwLock<HashMap<SocketAddr, usize>>>);

impl Sockets {
    pub(super) fn add(&self, socket: SocketAddr, peer: usize) {
        let mut places = self.0.write().unwrap_or_else(PoisonError::into_inner);
        places.insert(socket, peer);
    }

    /// The rule of the wire of the peer at `place`.
    pub(super) fn rule(&self, place: usize, links: &LinkTable) -> LinkRule {
        let (sockets, links) = (self.clone(), links.clone());
        LinkRule(Arc::new(move |remote| {
            let places = sockets.0.read().unwrap_or_else(PoisonError::into_inner);
            let to = *places.get(&remote)?;
            Some(links.ask(place, to))
        }))
    }
}
