//! What goes wrong, how it ends, and how everything is mended.

use std::time::Duration;

use hyperfabric_protocol::transfer::TransferEvent;
use hyperfabric_protocol::{Instant, PeerId, TransferId};

use super::plan::{Deed, victim_draws};
use super::{Asked, Run, Sent};
use crate::scale::register;
use crate::scenario::{Fault, Way};
use crate::seed::Draws;
use crate::world::{Direction, PeerIndex};

/// The most that happens to transfers before a peer falls into an ambush.
const AMBUSH_SKIPS_MAX: u64 = 12;

/// A crash that waits for something to happen to a transfer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ambush {
    fault: usize,
    /// What may happen to transfers before.
    skips: u64,
    /// Whether it is the other side of the transfer that crashes.
    other: bool,
}

impl Ambush {
    fn new(fault: usize, draws: &mut Draws) -> Self {
        Self {
            fault,
            skips: draws.below(AMBUSH_SKIPS_MAX),
            other: draws.below(2) == 0,
        }
    }
}

impl Run {
    fn victims(&self, draws: &mut Draws, count: usize) -> Vec<PeerIndex> {
        let mut pool: Vec<PeerIndex> = self
            .members
            .iter()
            .copied()
            .filter(|p| !self.down.contains_key(p))
            .collect();
        let mut chosen = Vec::new();
        while chosen.len() < count && !pool.is_empty() {
            chosen.push(pool.swap_remove(draws.index(pool.len())));
        }
        chosen
    }

    pub(super) fn begin(&mut self, number: usize, draw: u64) {
        let now = self.world.now().mono;
        let mut draws = victim_draws(self.seed, draw);
        let Some(fault) = self.scenario.faults.get(number).cloned() else {
            return;
        };
        self.note_begin(number);
        let mut lasts = fault.span().1;
        let mut victims = Vec::new();
        match &fault {
            Fault::Partition {
                share, region, way, ..
            } => {
                self.cut_off(number, share.0, region.as_deref(), *way, &mut draws);
            }
            Fault::Crash { peers, .. } => {
                victims = self.victims(&mut draws, *peers);
                victims.iter().for_each(|peer| self.crash(*peer));
            }
            Fault::CrashMidway { peers, .. } => {
                for _ in 0..*peers {
                    self.ambushes.push(Ambush::new(number, &mut draws));
                }
                return;
            }
            Fault::Churn { gone, .. } => {
                lasts = gone.0;
                victims = self.victims(&mut draws, 1);
                victims.iter().for_each(|peer| self.crash(*peer));
            }
            Fault::Slow { peers, by, .. } => {
                victims = self.victims(&mut draws, *peers);
                victims.iter().for_each(|peer| self.world.set_slow(*peer, by.0));
            }
            Fault::Clock {
                peers, ahead, behind, ..
            } => {
                let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
                let error = ms(ahead.0) - ms(behind.0);
                victims = self.victims(&mut draws, *peers);
                victims
                    .iter()
                    .for_each(|peer| self.world.set_clock_error(*peer, error));
            }
            Fault::Disconnect { pairs, .. } => {
                for _ in 0..*pairs {
                    if let [a, b] = self.victims(&mut draws, 2)[..] {
                        self.world.disconnect(a, b);
                    }
                }
            }
            Fault::Revoke { peers, .. } => self.revoke(&mut draws, *peers),
        }
        let fault = number;
        self.plan.add(now.after(lasts), Deed::End { fault, victims });
    }

    fn cut_off(&mut self, number: usize, share_ppm: u32, region: Option<&str>, way: Way, draws: &mut Draws) {
        let region = region.and_then(|name| self.topology.region_of(name));
        let total = self.scenario.peers_in_all();
        let side: Vec<bool> = (0..total)
            .map(|peer| match region {
                Some(region) => self.topology.regions.get(peer) == Some(&region),
                None => draws.happens(share_ppm),
            })
            .collect();
        let direction = match way {
            Way::Both => Direction::Both,
            Way::Outward => Direction::Outward,
            Way::Inward => Direction::Inward,
        };
        let cut = self.world.cut(side, direction);
        self.cuts.insert(number, cut);
    }

    fn crash(&mut self, peer: PeerIndex) {
        let connected = self
            .world
            .running(peer)
            .map(|f| f.connected().map(|(id, _)| id).collect());
        let connected: Vec<PeerId> = connected.unwrap_or_default();
        let book = connected.iter().filter_map(|id| self.world.peer_of(id)).collect();
        self.world.kill(peer);
        self.down.insert(peer, book);
        self.ask(Asked::Crashed(peer));
    }

    /// Something has happened to a transfer: one of its sides may crash of it.
    pub(super) fn fall_into_ambush(&mut self, at: Instant, peer: PeerIndex, event: &TransferEvent) {
        let (TransferEvent::Started { of, .. }
        | TransferEvent::Progress { of, .. }
        | TransferEvent::Ended { of, .. }) = event
        else {
            return;
        };
        let Some(ambush) = self.ambushes.first_mut() else {
            return;
        };
        if ambush.skips > 0 {
            ambush.skips -= 1;
            return;
        }
        let Ambush { fault, other, .. } = self.ambushes.remove(0);
        let victim = if other {
            self.world.peer_of(&of.peer)
        } else {
            Some(peer)
        };
        let alive = |peer: &PeerIndex| self.members.contains(peer) && !self.down.contains_key(peer);
        let victims: Vec<PeerIndex> = victim.into_iter().filter(alive).collect();
        victims.iter().for_each(|peer| self.crash(*peer));
        let lasts = self
            .scenario
            .faults
            .get(fault)
            .map_or(Duration::ZERO, |fault| fault.span().1);
        self.plan.add(at.after(lasts), Deed::End { fault, victims });
    }

    fn revoke(&mut self, draws: &mut Draws, count: usize) {
        let first = PeerIndex(0);
        for peer in self.victims(draws, count) {
            if peer == first || self.world.running(first).is_none() {
                continue;
            }
            let name = self.name(peer);
            let revoked = self.world.act(first, |f, now| f.revoke(now, &name));
            // A name that two peers were granted leads to either of them.
            if let Some(peer) = revoked.ok().and_then(|member| self.world.peer_of(&member.peer)) {
                self.members.remove(&peer);
                self.revoked.insert(peer);
                self.ask(Asked::Revoked(peer));
            }
        }
    }

    pub(super) fn end_fault(&mut self, number: usize, victims: &[PeerIndex]) {
        self.note_end(number);
        let Some(fault) = self.scenario.faults.get(number) else {
            return;
        };
        match fault {
            Fault::Partition { .. } => {
                if let Some(cut) = self.cuts.remove(&number) {
                    self.world.heal(cut);
                }
            }
            Fault::Crash { .. } | Fault::CrashMidway { .. } | Fault::Churn { .. } => {
                victims.iter().for_each(|peer| self.revive(*peer));
            }
            Fault::Slow { .. } => victims
                .iter()
                .for_each(|peer| self.world.set_slow(*peer, Duration::ZERO)),
            Fault::Clock { reboots, .. } => {
                let reboots = *reboots;
                for peer in victims {
                    let runs = !self.down.contains_key(peer);
                    if reboots && runs {
                        self.crash(*peer);
                    }
                    self.world.set_clock_error(*peer, 0);
                    if reboots && runs {
                        self.revive(*peer);
                    }
                }
            }
            Fault::Disconnect { .. } | Fault::Revoke { .. } => {}
        }
    }

    /// Starts a crashed peer again; it goes on with what it was sending, as the daemon's journal does.
    fn revive(&mut self, peer: PeerIndex) {
        let Some(book) = self.down.remove(&peer) else {
            return;
        };
        self.world.start(peer);
        for known in book {
            let (id, address) = (self.world.peer_id(known), self.world.address(known));
            self.world
                .act(peer, |f, now| f.learn(now, id, vec![address], false));
        }
        let name = self.name(peer);
        register(&mut self.world, peer, &name);
        let open = |sent: &Sent| sent.from == peer && sent.over.is_none();
        let again: Vec<(TransferId, Sent)> = self
            .sent
            .iter()
            .filter(|(_, sent)| open(sent))
            .map(|(transfer, sent)| (*transfer, sent.clone()))
            .collect();
        for (transfer, sent) in again {
            self.hand_over(peer, transfer, sent.to, sent.offer, true);
        }
    }

    /// Mends whatever has failed.
    pub(super) fn mend(&mut self) {
        self.ambushes.clear();
        for deed in self.plan.take_ends() {
            self.carry_out(deed);
        }
        for peer in self.down.keys().copied().collect::<Vec<_>>() {
            self.revive(peer);
        }
        for cut in std::mem::take(&mut self.cuts).into_values() {
            self.world.heal(cut);
        }
        for peer in std::mem::take(&mut self.joining).into_keys() {
            // Whoever has not joined by now is a process without a mesh.
            self.world.stop(peer);
        }
    }
}
