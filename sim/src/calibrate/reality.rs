//! A case with real nodes.

use std::time::Duration;

use hyperfabric_protocol::frame::Tally;

use super::case::{Case, Situation};
use super::virtually::LOOK;
use super::{Beside, Observed, table, types};
use crate::real::{self, OnProgress, RealConfig, RealError, Schedule};

pub(super) fn observe(
    case: &Case,
    situation: &Situation,
    on_progress: OnProgress<'_>,
) -> Result<(Observed, Beside), RealError> {
    let config = RealConfig {
        seed: case.seed,
        contacts: situation.contacts.clone(),
        links: real::region_links(&situation.topology, situation.base),
        messages: 0,
        transfers: 0,
        transfer_bytes: 0,
        messages_at_once: 1,
        transfers_at_once: 1,
        limit: Duration::ZERO,
        settle: Duration::ZERO,
    };
    let schedule = Schedule {
        starts: situation.starts.clone(),
        rest: case.rest,
        look: LOOK,
    };
    let seen = real::observe(&config, &schedule, on_progress)?;
    let mut tally = Tally::default();
    let mut libp2p = 0;
    for traffic in &seen.traffic {
        tally.merge(&traffic.control);
        libp2p += traffic.libp2p_bytes;
    }
    let per_peer = |count: u64| count as f64 / case.peers as f64;
    let (join_rounds_p50, join_rounds_p90) = table::rounds(&seen.joins, situation.round);
    let observed = Observed {
        know_all: seen.know_all,
        frames_per_peer: per_peer(tally.frames()),
        control_bytes_per_peer: per_peer(tally.bytes()),
        join_rounds_p50,
        join_rounds_p90,
        dials_per_peer: seen.dials.mean,
        connections_per_peer: seen.connections.mean,
        types: types(&tally, case.peers),
    };
    let beside = Beside {
        libp2p_bytes: per_peer(libp2p),
        datagrams: per_peer(seen.datagrams.sent),
    };
    Ok((observed, beside))
}
