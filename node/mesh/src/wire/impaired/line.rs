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

use super::{
    ANSWER_WINDOW, Cut, HELD_BYTES_MAX, Impairment, ImpairmentStats, JitterShape, LINKS_MAX, LinkRule,
    canonical,
};
use crate::wire::{Ecn, Outgoing};

/// One datagram under way.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) destination: SocketAddr,
    pub(super) contents: Bytes,
    pub(super) ecn: Option<Ecn>,
    pub(super) src_ip: Option<IpAddr>,
}

impl Datagram {
    /// Whether both can be segments of one batch, as far as everything but their sizes goes.
    pub(super) fn goes_as(&self, other: &Self) -> bool {
        self.destination == other.destination && self.ecn == other.ecn && self.src_ip == other.src_ip
    }

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

/// The conditions of some remotes, and what they have led to so far.
#[derive(Debug, Default)]
struct Link {
    impairment: Impairment,
    /// When the serializer has sent all that was accepted so far.
    busy_until: Option<Instant>,
    /// Whether a link with bursts is in one.
    bad: bool,
    /// When the last datagram of a link that keeps the order arrives.
    last_due: Option<Instant>,
}

impl Link {
    fn set(&mut self, impairment: Impairment) {
        if impairment.rate_bytes_per_s != self.impairment.rate_bytes_per_s {
            // A backlog at the old rate says nothing about the new one.
            self.busy_until = None;
        }
        self.impairment = impairment;
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

    fn loses(&mut self, chance: &mut Chance) -> bool {
        let mut loss = self.impairment.loss_ppm;
        if let Some(bursts) = self.impairment.bursts {
            let change = if self.bad {
                bursts.end_ppm
            } else {
                bursts.begin_ppm
            };
            self.bad ^= chance.of_ppm(change);
            if self.bad {
                loss = bursts.loss_ppm;
            }
        }
        chance.of_ppm(loss)
    }

    /// When a datagram arrives that has left the serializer.
    fn arrival(&mut self, departure: Instant, chance: &mut Chance) -> Instant {
        let due = departure + self.delay(chance);
        if !self.impairment.keeps_order {
            return due;
        }
        let due = self.last_due.map_or(due, |last| due.max(last));
        self.last_due = Some(due);
        due
    }

    fn delay(&self, chance: &mut Chance) -> Duration {
        let Impairment {
            latency,
            jitter,
            jitter_shape,
            ..
        } = self.impairment;
        if jitter.is_zero() {
            return latency;
        }
        match jitter_shape {
            JitterShape::Uniform => latency + jitter.mul_f64(chance.fraction()),
            JitterShape::Normal => {
                let seconds = latency.as_secs_f64() + jitter.as_secs_f64() * chance.normal();
                Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
            }
        }
    }
}

/// The random choices of a line.
#[derive(Debug)]
struct Chance(ChaCha8Rng);

impl Chance {
    /// Whether something that happens with a likelihood of so many parts per million happens; what never does draws nothing.
    fn of_ppm(&mut self, ppm: u32) -> bool {
        // Multiply and shift: uniform to within 1 in 4,000.
        ppm > 0 && ((u64::from(self.0.next_u32()) * 1_000_000) >> 32) < u64::from(ppm)
    }

    /// From 0 to 1, without 1.
    fn fraction(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }

    /// With a mean of 0 and a deviation of 1, by the transform of Box and Muller.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.fraction(), self.fraction());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// One of `count`, which is not 0.
    fn below(&mut self, count: usize) -> usize {
        ((count as u64 * u64::from(self.0.next_u32())) >> 32) as usize
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    general: Link,
    /// Remotes with conditions of their own, at most [`LINKS_MAX`].
    links: BTreeMap<SocketAddr, Link>,
    rule: Option<LinkRule>,
    /// When something was last sent to those that only answers are taken from, at most [`LINKS_MAX`] of them: further
    /// ones are not heard.
    asked: BTreeMap<SocketAddr, Instant>,
    chance: Chance,
    /// Keyed by due time, then by arrival, so that equal delays keep their order.
    held: BTreeMap<(Instant, u64), Datagram>,
    held_bytes: usize,
    /// What has been taken off to be sent, and may not have been sent yet: nothing overtakes it, and its bytes count.
    leaving: usize,
    leaving_bytes: usize,
    arrivals: u64,
    pub(super) stats: ImpairmentStats,
}

impl Line {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            general: Link::default(),
            links: BTreeMap::new(),
            rule: None,
            asked: BTreeMap::new(),
            chance: Chance(ChaCha8Rng::seed_from_u64(seed)),
            held: BTreeMap::new(),
            held_bytes: 0,
            leaving: 0,
            leaving_bytes: 0,
            arrivals: 0,
            stats: ImpairmentStats::default(),
        }
    }

    pub(super) fn impairment(&self) -> &Impairment {
        &self.general.impairment
    }

    pub(super) fn set_impairment(&mut self, impairment: Impairment) {
        self.general.set(impairment);
    }

    pub(super) fn set_rule(&mut self, rule: LinkRule) {
        let mut known = std::mem::take(&mut self.links);
        known.retain(|remote, link| (rule.0)(*remote).map(|own| link.set(own.normalized())).is_some());
        self.links = known;
        self.rule = Some(rule);
    }

    /// Learns the conditions of a remote. The address is canonical.
    pub(super) fn meet(&mut self, remote: SocketAddr) {
        let Some(rule) = &self.rule else { return };
        if self.links.len() < LINKS_MAX
            && !self.links.contains_key(&remote)
            && let Some(own) = (rule.0)(remote)
        {
            self.links.entry(remote).or_default().set(own.normalized());
        }
    }

    /// Nothing to do to a datagram, and none under way that it would overtake. The address is canonical.
    pub(super) fn passes_at_once(&self, remote: SocketAddr) -> bool {
        let link = self.links.get(&remote).unwrap_or(&self.general);
        self.held.is_empty() && self.leaving == 0 && link.impairment.passes_all()
    }

    pub(super) fn drops_incoming(&mut self, now: Instant, remote: SocketAddr) -> bool {
        let remote = canonical(remote);
        self.meet(remote);
        let link = self.links.get(&remote).unwrap_or(&self.general);
        let cut = link.impairment.partition.cuts(remote, Cut::incoming);
        let asked = |at: &Instant| now.saturating_duration_since(*at) <= ANSWER_WINDOW;
        let unasked = !cut && link.impairment.answers_only && !self.asked.get(&remote).is_some_and(asked);
        self.stats.partitioned += u64::from(cut);
        self.stats.unasked += u64::from(unasked);
        cut || unasked
    }

    /// Remembers that something was sent to a remote that only answers are taken from.
    fn ask(&mut self, now: Instant, remote: SocketAddr) {
        if self.asked.len() >= LINKS_MAX {
            self.asked
                .retain(|_, at| now.saturating_duration_since(*at) <= ANSWER_WINDOW);
        }
        if self.asked.len() < LINKS_MAX || self.asked.contains_key(&remote) {
            self.asked.insert(remote, now);
        }
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

    fn decide(&mut self, now: Instant, mut datagram: Datagram) -> Fate {
        let bytes = datagram.contents.len();
        let remote = canonical(datagram.destination);
        self.meet(remote);
        let link = self.links.get(&remote).unwrap_or(&self.general);
        if link.impairment.answers_only {
            self.ask(now, remote);
        }
        let link = self.links.get_mut(&remote).unwrap_or(&mut self.general);
        let impairment = &link.impairment;
        if impairment.partition.cuts(remote, Cut::outgoing) {
            return Fate::Partitioned;
        }
        if impairment.mtu_max.is_some_and(|mtu| bytes > usize::from(mtu)) {
            return Fate::Oversized;
        }
        let Some(departure) = link.serialize(now, bytes) else {
            return Fate::Overflowed;
        };
        let chance = &mut self.chance;
        if link.loses(chance) {
            return Fate::Lost;
        }
        let copies = 1 + usize::from(chance.of_ppm(link.impairment.duplicate_ppm));
        if self.held_bytes + self.leaving_bytes + copies * bytes > HELD_BYTES_MAX {
            return Fate::Overflowed;
        }
        if chance.of_ppm(link.impairment.corrupt_ppm) && bytes > 0 {
            datagram.contents = flip_a_bit(&datagram.contents, chance);
            self.stats.corrupted += 1;
        }
        self.stats.duplicated += copies as u64 - 1;
        for _ in 0..copies {
            let due = if chance.of_ppm(link.impairment.reorder_ppm) {
                self.stats.reordered += 1;
                departure
            } else {
                link.arrival(departure, chance)
            };
            self.held.insert((due, self.arrivals), datagram.clone());
            self.held_bytes += bytes;
            self.arrivals += 1;
        }
        Fate::Held
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.held.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes off what is due, in order, at most `datagrams_max` of it. Until [`Line::all_left`] it is on its way out.
    pub(super) fn take_due(&mut self, now: Instant, datagrams_max: usize, due: &mut Vec<Datagram>) {
        while due.len() < datagrams_max
            && let Some(datagram) = self.pop_due(now)
        {
            self.leaving += 1;
            self.leaving_bytes += datagram.contents.len();
            due.push(datagram);
        }
    }

    /// What was taken off has reached the wire below.
    pub(super) fn all_left(&mut self) {
        self.stats.sent += self.leaving as u64;
        self.leaving = 0;
        self.leaving_bytes = 0;
    }

    fn pop_due(&mut self, now: Instant) -> Option<Datagram> {
        let entry = self.held.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let datagram = entry.remove();
        self.held_bytes -= datagram.contents.len();
        Some(datagram)
    }
}

fn flip_a_bit(contents: &[u8], chance: &mut Chance) -> Bytes {
    let mut flipped = contents.to_vec();
    let bit = chance.below(8 * flipped.len());
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped.into()
}

const NANOS_PER_S: u128 = 1_000_000_000;

#[cfg(test)]
mod tests;
