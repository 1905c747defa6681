//! The two ways of simulating, held against each other: what the world in virtual time says a mesh costs, and what real
//! nodes cost.
//!
//! A [`Case`] is one situation, drawn from a seed: who is told of whom at the start, how far peers are apart, which
//! packets are lost, who starts when, and how long all are watched. Both ways get the same one. Compared is what the
//! protocol decides: control frames, their bytes, and how many message rounds a newcomer needs until it knows
//! everybody. What QUIC and libp2p add is told beside it, and what this machine adds is kept out by latencies that are
//! far larger than its pauses.
//!
//! The constants of the world's model may be set by the first case only. The others judge it.

mod case;
mod reality;
mod table;
mod virtually;

use hyperfabric_protocol::frame::Tally;
use serde::Serialize;

pub use case::{Case, cases};
pub use table::{Quantity, TOLERANCE_PERCENT, details, table};

use crate::real::{OnProgress, RealError};

/// What one way of simulating has shown of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Observed {
    /// Peers that knew all others in the end.
    pub know_all: usize,
    /// Control frames that a peer received.
    pub frames_per_peer: f64,
    /// Bytes of them, without length prefixes.
    pub control_bytes_per_peer: f64,
    /// Message rounds from a peer's start until it knew all that had started up to then: half of the peers needed no
    /// more.
    pub join_rounds_p50: f64,
    /// Nine in ten needed no more.
    pub join_rounds_p90: f64,
    /// Dials of a peer.
    pub dials_per_peer: f64,
    /// Connections of a peer in the end.
    pub connections_per_peer: f64,
    /// Frames and bytes of each type, for each peer.
    pub types: Vec<FrameType>,
}

/// A type of frame, and how much of it a peer received.
#[derive(Clone, Debug, Serialize)]
pub struct FrameType {
    /// Its name.
    pub name: &'static str,
    /// Frames.
    pub frames: f64,
    /// Their bytes.
    pub bytes: f64,
}

/// What real nodes have beside control frames, for each peer.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Beside {
    /// Bytes of Kademlia, gossipsub and identify that it received.
    pub libp2p_bytes: f64,
    /// Datagrams that it sent: control, libp2p, and all that QUIC adds.
    pub datagrams: f64,
}

/// A case, and how the two ways compare in it.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The case.
    pub case: Case,
    /// A message there and back, between half of all pairs of peers, takes no longer, in milliseconds.
    pub round_ms: f64,
    /// What real nodes showed.
    pub real: Observed,
    /// What the world in virtual time showed.
    pub scale: Observed,
    /// What is not compared.
    pub beside: Beside,
    /// What is.
    pub quantities: Vec<Quantity>,
}

impl Comparison {
    /// Tells whether every quantity is close enough, and all peers knew each other both ways.
    #[must_use]
    pub fn holds(&self) -> bool {
        let all = |observed: &Observed| observed.know_all == self.case.peers;
        all(&self.real) && all(&self.scale) && self.quantities.iter().all(|quantity| quantity.holds)
    }
}

/// Runs a case both ways.
///
/// # Errors
/// [`RealError`] when real peers cannot be made or end by themselves.
pub fn compare(case: &Case, on_progress: OnProgress<'_>) -> Result<Comparison, RealError> {
    let situation = case.situation();
    let scale = virtually::observe(case, &situation);
    let (real, beside) = reality::observe(case, &situation, on_progress)?;
    let quantities = table::quantities(&real, &scale);
    Ok(Comparison {
        case: case.clone(),
        round_ms: situation.round.as_secs_f64() * 1_000.0,
        real,
        scale,
        beside,
        quantities,
    })
}

/// Runs a case in virtual time alone.
#[must_use]
pub fn in_virtual_time(case: &Case) -> Observed {
    virtually::observe(case, &case.situation())
}

fn types(tally: &Tally, peers: usize) -> Vec<FrameType> {
    let per_peer = |count: u64| count as f64 / peers.max(1) as f64;
    let used = tally.types().filter(|(_, frames, _)| *frames > 0);
    let row = |(name, frames, bytes)| FrameType {
        name,
        frames: per_peer(frames),
        bytes: per_peer(bytes),
    };
    used.map(row).collect()
}
