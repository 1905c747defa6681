//! The machine that decides when, and whether, each datagram leaves an impaired wire. It has no clock: `now` is an argument.
//!
//! A link is modelled as a serializer with a tail-drop queue (rate) followed by a delay (latency and jitter). Loss is drawn behind the
//! queue: a datagram lost on the way has still taken its time on the link.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tokio::time::Instant;

use super::{Cut, HELD_BYTES_MAX, Impairment, ImpairmentStats};
use crate::wire::{Ecn, Outgoing};

/// One datagram under way.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) destination: SocketAddr,
    pub(super) contents: Bytes,
    pub(super) ecn: Option<Ecn>,
    pub(super) src_ip: Option<IpAddr>,
}

impl Datagram {
    pub(super) fn as_outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            destination: self.destination,
            contents: &self.contents,
            segment_size: None,
            ecn: self.ecn,
            src_ip: self.src_ip,
        }
    }
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Held,
    Lost,
    Overflowed,
    Oversized,
    Partitioned,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    impairment: Impairment,
    rng: ChaCha8Rng,
    /// When the serializer has sent all that was accepted so far.
    busy_until: Option<Instant>,
    /// Keyed by due time, then by arrival, so that equal delays keep their order.
    held: BTreeMap<(Instant, u64), Datagram>,
    held_bytes: usize,
    arrivals: u64,
    pub(super) stats: ImpairmentStats,
}

impl Line {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            impairment: Impairment::default(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            busy_until: None,
            held: BTreeMap::new(),
            held_bytes: 0,
            arrivals: 0,
            stats: ImpairmentStats::default(),
        }
    }

    pub(super) fn impairment(&self) -> &Impairment {
        &self.impairment
    }

    pub(super) fn set_impairment(&mut self, impairment: Impairment) {
        if impairment.rate_bytes_per_s != self.impairment.rate_bytes_per_s {
            // A backlog at the old rate says nothing about the new one.
            self.busy_until = None;
        }
        self.impairment = impairment;
    }

    /// Nothing to do to a datagram, and none under way that it would overtake.
    pub(super) fn passes_at_once(&self) -> bool {
        self.held.is_empty() && self.impairment.passes_all()
    }

    pub(super) fn drops_incoming(&mut self, remote: SocketAddr) -> bool {
        let cut = self.impairment.partition.cuts(remote, Cut::incoming);
        self.stats.partitioned += u64::from(cut);
        cut
    }

    pub(super) fn push(&mut self, now: Instant, datagram: Datagram) -> Fate {
        let fate = self.decide(now, datagram);
        match fate {
            Fate::Held => {}
            Fate::Lost => self.stats.lost += 1,
            Fate::Overflowed => self.stats.overflowed += 1,
            Fate::Oversized => self.stats.oversized += 1,
            Fate::Partitioned => self.stats.partitioned += 1,
        }
        fate
    }

    fn decide(&mut self, now: Instant, datagram: Datagram) -> Fate {
        let bytes = datagram.contents.len();
        let impairment = &self.impairment;
        if impairment.partition.cuts(datagram.destination, Cut::outgoing) {
            return Fate::Partitioned;
        }
        if impairment.mtu_max.is_some_and(|mtu| bytes > usize::from(mtu)) {
            return Fate::Oversized;
        }
        let Some(departure) = self.serialize(now, bytes) else {
            return Fate::Overflowed;
        };
        if self.draw_ppm() < self.impairment.loss_ppm {
            return Fate::Lost;
        }
        if self.held_bytes + bytes > HELD_BYTES_MAX {
            return Fate::Overflowed;
        }
        let due = departure + self.impairment.latency + self.draw_jitter();
        self.held.insert((due, self.arrivals), datagram);
        self.held_bytes += bytes;
        self.arrivals += 1;
        Fate::Held
    }

    /// When the last bit leaves the serializer; none when its queue is full.
    fn serialize(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        let Some(rate) = self.impairment.rate_bytes_per_s else {
            return Some(now);
        };
        let start = self.busy_until.map_or(now, |busy| busy.max(now));
        let backlog = start.duration_since(now).as_nanos() * u128::from(rate.get()) / NANOS_PER_S;
        if backlog + bytes as u128 > self.impairment.queue_bytes_max as u128 {
            return None;
        }
        let nanos = bytes as u128 * NANOS_PER_S / u128::from(rate.get());
        let departure = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.busy_until = Some(departure);
        Some(departure)
    }

    fn draw_ppm(&mut self) -> u32 {
        if self.impairment.loss_ppm == 0 {
            return u32::MAX;
        }
        // Multiply and shift: uniform to within 1 in 4,000.
        ((u64::from(self.rng.next_u32()) * 1_000_000) >> 32) as u32
    }

    fn draw_jitter(&mut self) -> Duration {
        let jitter = self.impairment.jitter.as_nanos();
        if jitter == 0 {
            return Duration::ZERO;
        }
        let drawn = (jitter * u128::from(self.rng.next_u32())) >> 32;
        Duration::from_nanos(u64::try_from(drawn).unwrap_or(u64::MAX))
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.held.first_key_value().map(|((due, _), _)| *due)
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Datagram> {
        let entry = self.held.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let datagram = entry.remove();
        self.held_bytes -= datagram.contents.len();
        Some(datagram)
    }
}

const NANOS_PER_S: u128 = 1_000_000_000;

#[cfg(test)]
mod tests;
