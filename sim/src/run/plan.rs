//! What is to happen in a run, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperfabric_protocol::Instant;

use crate::scenario::{Fault, Load, Scenario};
use crate::seed::{Draws, Seed, Stream};
use crate::world::PeerIndex;

/// How long a peer waits before it shows its ticket again.
const JOIN_AGAIN: Duration = Duration::from_secs(2);
/// The streams of faults and loads begin here; lower numbers are the world's own.
const STREAMS: u64 = 2_000_000;

/// Something that a run does.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    /// A peer starts that has its certificate, or that has a ticket.
    Start { ticket: bool },
    /// A peer of another mesh starts and dials the first one.
    Stranger,
    /// A member starts whose certificate counts for so long only.
    Guest { stay: Duration },
    /// A member starts under the name of another one, drawn from `draw`.
    Twin { draw: u64 },
    /// A peer has its certificate: its daemon starts.
    Joined(PeerIndex),
    /// A peer shows its ticket again.
    JoinAgain(PeerIndex),
    /// A fault begins; its victims are drawn from `draw`.
    Begin { fault: usize, draw: u64 },
    /// It ends for those that it has struck.
    End { fault: usize, victims: Vec<PeerIndex> },
    /// A payload is sent.
    Send { load: usize, number: usize, tries: u32 },
}

/// The plan: by time, then in the order in which it was made.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    deeds: BTreeMap<(Instant, u64), Deed>,
    next: u64,
}

impl Plan {
    pub(crate) fn of(scenario: &Scenario, seed: Seed) -> Self {
        let mut plan = Self::default();
        let mut draws = seed.stream(Stream::Load, STREAMS, 0);
        for _ in 1..scenario.peers {
            plan.at(
                draws.duration(scenario.join_within.0),
                Deed::Start { ticket: false },
            );
        }
        for (fault, what) in scenario.faults.iter().enumerate() {
            plan.add_fault(seed, fault, what);
        }
        for (load, what) in scenario.loads.iter().enumerate() {
            plan.add_load(seed, load, what);
        }
        plan
    }

    fn add_fault(&mut self, seed: Seed, fault: usize, what: &Fault) {
        // The stream depends on when the fault strikes, and not on how many others stand before it.
        let (at, length) = what.span();
        let name = at.as_nanos() ^ (length.as_nanos() << 20);
        let mut draws = seed.stream(
            Stream::Faults,
            STREAMS,
            u64::try_from(name & u128::from(u64::MAX)).unwrap_or(0),
        );
        let Fault::Churn { lasts, every, .. } = what else {
            let draw = draws.u64();
            return self.at(at, Deed::Begin { fault, draw });
        };
        let mut passed = Duration::ZERO;
        while passed < lasts.0 && !every.0.is_zero() {
            let draw = draws.u64();
            self.at(at + passed, Deed::Begin { fault, draw });
            passed += every.0;
        }
    }

    fn add_load(&mut self, seed: Seed, load: usize, what: &Load) {
        let mut draws = seed.stream(Stream::Load, STREAMS + 1, load as u64);
        match what {
            Load::Transfers {
                at, within, count, ..
            }
            | Load::Messages { at, within, count } => {
                for number in 0..*count {
                    let tries = 0;
                    self.at(
                        at.0 + draws.duration(within.0),
                        Deed::Send { load, number, tries },
                    );
                }
            }
            Load::Crowd { at, within, peers } => {
                for _ in 0..*peers {
                    self.at(at.0 + draws.duration(within.0), Deed::Start { ticket: true });
                }
            }
            Load::Strangers { at, peers } => {
                for _ in 0..*peers {
                    self.at(at.0, Deed::Stranger);
                }
            }
            Load::Guests { at, peers, stay } => {
                for _ in 0..*peers {
                    self.at(at.0, Deed::Guest { stay: stay.0 });
                }
            }
            Load::Twins { at, peers } => {
                for _ in 0..*peers {
                    let draw = draws.u64();
                    self.at(at.0, Deed::Twin { draw });
                }
            }
        }
    }

    fn at(&mut self, at: Duration, deed: Deed) {
        self.add(Instant(0).after(at), deed);
    }

    pub(crate) fn add(&mut self, at: Instant, deed: Deed) {
        self.deeds.insert((at, self.next), deed);
        self.next += 1;
    }

    pub(crate) fn later(&mut self, now: Instant, deed: Deed) {
        self.add(now.after(JOIN_AGAIN), deed);
    }

    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.deeds.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn due(&mut self, now: Instant) -> Option<Deed> {
        let first = self.deeds.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    /// Takes out what still has to be ended, and forgets the rest.
    pub(crate) fn take_ends(&mut self) -> Vec<Deed> {
        let is_end = |deed: &Deed| matches!(deed, Deed::End { .. } | Deed::Joined(_));
        let deeds = std::mem::take(&mut self.deeds);
        deeds.into_values().filter(is_end).collect()
    }
}

/// Returns the stream from which a struck fault draws its victims.
pub(crate) fn victim_draws(seed: Seed, draw: u64) -> Draws {
    seed.stream(Stream::Faults, STREAMS + 1, draw)
}

/// Returns the stream of one transfer.
pub(crate) fn transfer_draws(seed: Seed, load: usize, number: usize) -> Draws {
    seed.stream(Stream::Load, STREAMS + 2 + load as u64, number as u64)
}
