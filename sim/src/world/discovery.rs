//! What discovery does to a mesh: to store its record under a name, a peer meets those whose keys are closest to it.
//!
//! Real peers do that by libp2p's Kademlia. Here the walk alone is carried out, with the same tables and the same
//! numbers, because the connections that it makes carry floods from then on. Of refreshes of the tables only their time
//! counts, for which a peer waits with its record. Kademlia's own messages and gossip are left out: they are not control
//! frames.

use std::time::Duration;

use hyperfabric_protocol::{Instant, PeerId};

use super::{Happening, PeerIndex, World};
use crate::seed::mix;

/// Peers that a record is stored at (`REPLICAS` of `hyperfabric_mesh::discovery`).
const REPLICAS: usize = 4;
/// Peers that are asked at once (`PARALLELISM` there).
const PARALLELISM: usize = 2;
/// Peers of one distance that are known (`BUCKET_PEERS_MAX` there).
const BUCKET_PEERS_MAX: usize = 4;
/// Peers that an answer tells (Kademlia's k).
const ANSWER_PEERS_MAX: usize = 20;
/// How long no new peer has become known before a record is stored (`CALM` there).
const CALM: Duration = Duration::from_secs(2);
/// It is stored at the latest after this (`CALM_WAIT_MAX` there).
const CALM_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long after a new peer Kademlia begins to refresh a table of fewer peers than an answer tells.
const REFRESH_DELAY: Duration = Duration::from_millis(500);
/// How many answers in a row a lookup of a refresh waits for: two that tell of nobody closer, all others at once, and
/// the slowest of these, as it was seen.
const REFRESH_ANSWERS: u32 = 4;
/// It is stored again this often (`PUT_INTERVAL` there).
const PUT_INTERVAL: Duration = Duration::from_secs(20 * 60);
/// A peer that has not been met or has not answered by then is passed over (`libp2p`'s time for a request).
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Round trips that an answer takes on a connection: one to agree on the protocol, one to ask.
const ASK_ROUND_TRIPS: u32 = 2;

/// Where a peer's key lies: keys are random, and so are eight of their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(u64);

impl Place {
    fn of(peer: &PeerId) -> Self {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&peer.0[8..16]);
        Self(mix(u64::from_be_bytes(bytes)))
    }

    const fn distance(self, other: Self) -> u64 {
        self.0 ^ other.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Not,
    /// To be met or to answer by then.
    Until(Instant),
    Answered,
    Failed,
}

/// A peer that a walk has heard of.
#[derive(Debug)]
struct Stop {
    distance: u64,
    peer: PeerIndex,
    asked: Asked,
}

/// A peer's part in discovery.
#[derive(Debug)]
pub(super) struct Discovery {
    place: Place,
    /// Whom it knows.
    table: Vec<(Place, PeerIndex)>,
    /// When the record is stored next, unless somebody new becomes known.
    put_at: Instant,
    /// When at the latest.
    put_latest: Instant,
    /// Until when the table is being refreshed, and whether that is to be done once more then.
    refresh_until: Instant,
    refresh_again: bool,
    /// The walk that stores it.
    walk: Option<Walk>,
}

/// A walk towards a place.
#[derive(Debug, Default)]
struct Walk {
    /// By distance.
    stops: Vec<Stop>,
    /// How many answers in a row have told of nobody closer.
    no_progress: usize,
}

impl Walk {
    /// How many may be asked at once: more when nobody closer is heard of, to come to an end.
    const fn capacity(&self) -> usize {
        if self.no_progress >= PARALLELISM {
            REPLICAS
        } else {
            PARALLELISM
        }
    }

    fn hear(&mut self, of: Vec<(u64, PeerIndex)>) {
        let range = self.stops.get(REPLICAS - 1).or(self.stops.last());
        let range = range.map_or(u64::MAX, |stop| stop.distance);
        let mut progress = self.stops.len() < REPLICAS;
        for (distance, peer) in of {
            if self.stops.iter().all(|stop| stop.peer != peer) {
                progress |= distance < range;
                self.stops.push(Stop {
                    distance,
                    peer,
                    asked: Asked::Not,
                });
            }
        }
        self.no_progress = if progress { 0 } else { self.no_progress + 1 };
        self.stops.sort_unstable_by_key(|stop| stop.distance);
    }

    fn mark(&mut self, peer: PeerIndex, asked: Asked) {
        let stops = self.stops.iter_mut().filter(|stop| stop.peer == peer);
        stops.for_each(|stop| stop.asked = asked);
    }

    fn waits_for(&self, peer: PeerIndex) -> bool {
        let waits = |stop: &Stop| stop.peer == peer && matches!(stop.asked, Asked::Until(_));
        self.stops.iter().any(waits)
    }

    /// Passes over whom nothing was heard of in time. Tells whether the closest have answered.
    fn has_ended(&mut self, now: Instant) -> bool {
        let late = |stop: &&mut Stop| matches!(stop.asked, Asked::Until(at) if at <= now);
        self.stops
            .iter_mut()
            .filter(late)
            .for_each(|stop| stop.asked = Asked::Failed);
        let answering = self.stops.iter().filter(|stop| stop.asked != Asked::Failed);
        answering.take(REPLICAS).all(|stop| stop.asked == Asked::Answered)
    }

    /// Chooses whom to ask now: the closest that was not asked, also while closer ones are slow to answer.
    fn next(&self) -> Option<PeerIndex> {
        let waiting = self
            .stops
            .iter()
            .filter(|stop| matches!(stop.asked, Asked::Until(_)));
        let room = waiting.count() < self.capacity();
        let next = self.stops.iter().find(|stop| stop.asked == Asked::Not);
        next.filter(|_| room).map(|stop| stop.peer)
    }
}

impl Discovery {
    fn new(peer: &PeerId, now: Instant) -> Self {
        Self {
            place: Place::of(peer),
            table: Vec::new(),
            put_at: now.after(CALM),
            put_latest: now.after(CALM_WAIT_MAX),
            refresh_until: now,
            refresh_again: false,
            walk: None,
        }
    }

    /// The place of the record: that of a name, which has nothing to do with the peer's.
    const fn target(&self) -> Place {
        Place(mix(self.place.0))
    }

    /// Takes somebody into the table. Returns whether there was room.
    fn list(&mut self, place: Place, peer: PeerIndex) -> bool {
        let bucket = |other: Place| self.place.distance(other).leading_zeros();
        let like = self
            .table
            .iter()
            .filter(|(other, _)| bucket(*other) == bucket(place));
        let known = self.table.iter().any(|(_, known)| *known == peer);
        if known || like.count() >= BUCKET_PEERS_MAX {
            return false;
        }
        self.table.push((place, peer));
        true
    }

    /// Returns how many lookups a refresh has: one for itself, and one for each distance beyond the closest peer's.
    fn refresh_lookups(&self) -> u32 {
        let bucket = |(place, _): &(Place, PeerIndex)| self.place.distance(*place).leading_zeros();
        1 + self.table.iter().map(bucket).max().unwrap_or(0)
    }

    /// Takes note of somebody new, for whom the table is refreshed, which takes this long.
    fn refresh(&mut self, now: Instant, takes: Duration) {
        if self.table.len() >= ANSWER_PEERS_MAX {
            return;
        }
        if self.refresh_until > now {
            self.refresh_again = true;
        } else {
            self.refresh_until = now.after(REFRESH_DELAY + takes);
        }
    }

    /// Tells until when the table is being refreshed, if it is.
    fn refreshes(&mut self, now: Instant, takes: Duration) -> bool {
        if self.refresh_until <= now && std::mem::take(&mut self.refresh_again) {
            self.refresh_until = self.refresh_until.after(takes);
        }
        self.refresh_until > now
    }

    /// Returns those it knows closest to a place.
    fn closest(&self, to: Place) -> Vec<(u64, PeerIndex)> {
        let distance = |(place, peer): &(Place, PeerIndex)| (place.distance(to), *peer);
        let mut found: Vec<(u64, PeerIndex)> = self.table.iter().map(distance).collect();
        found.sort_unstable();
        found.truncate(ANSWER_PEERS_MAX);
        found
    }
}

impl World {
    /// Lets a peer that has started take part.
    pub(super) fn begin_discovery(&mut self, index: PeerIndex) {
        if self.options.discovery {
            let discovery = Discovery::new(&self.peers[index.0].id, self.now);
            let at = discovery.put_at;
            self.peers[index.0].discovery = Some(Box::new(discovery));
            self.look_at_discovery(index, at);
        }
    }

    fn look_at_discovery(&mut self, index: PeerIndex, at: Instant) {
        let start = self.peers[index.0].start;
        self.schedule(at, Happening::Discovery { peer: index, start });
    }

    /// A peer is connected, and soon says who it is.
    pub(super) fn met(&mut self, index: PeerIndex, other: PeerId) {
        let now = self.now;
        let Some(met) = self.peer_of(&other) else { return };
        let Some(discovery) = &mut self.peers[index.0].discovery else {
            return;
        };
        let new = discovery.list(Place::of(&other), met);
        if new && discovery.walk.is_none() {
            discovery.put_at = discovery.put_at.max(now.after(CALM).min(discovery.put_latest));
        }
        let takes = self.refresh_takes(index);
        let Some(discovery) = &mut self.peers[index.0].discovery else {
            return;
        };
        if new {
            discovery.refresh(now, takes);
        }
        if discovery.walk.as_ref().is_some_and(|walk| walk.waits_for(met)) {
            self.ask_connected(index, met);
        }
    }

    /// Returns how long a refresh of a peer's table takes.
    fn refresh_takes(&self, index: PeerIndex) -> Duration {
        let Some(discovery) = &self.peers[index.0].discovery else {
            return Duration::ZERO;
        };
        let latency = |(_, other): &(Place, PeerIndex)| {
            let class = self.network.class(index, *other);
            self.network.conditions(class).latency.mean()
        };
        let sum: Duration = discovery.table.iter().map(latency).sum();
        let mean = sum / u32::try_from(discovery.table.len()).unwrap_or(1).max(1);
        mean * 2 * ASK_ROUND_TRIPS * REFRESH_ANSWERS * discovery.refresh_lookups()
    }

    /// Goes on with what is due.
    pub(super) fn discover(&mut self, index: PeerIndex, start: u32) {
        let (now, takes) = (self.now, self.refresh_takes(index));
        let peer = &mut self.peers[index.0];
        let named = peer.fabric.as_ref().is_some_and(|f| !f.own_nodes().is_empty());
        let Some(discovery) = peer.discovery.as_mut().filter(|_| peer.start == start) else {
            return;
        };
        if discovery.walk.is_none() && discovery.put_at <= now {
            let known = discovery.closest(discovery.target());
            if now < discovery.put_latest && discovery.refreshes(now, takes) {
                discovery.put_at = now.after(CALM);
            } else if !named || known.is_empty() {
                // Nothing to store, or nobody to store it: whoever comes next is asked.
                discovery.put_at = now.after(CALM);
                discovery.put_latest = now.after(CALM_WAIT_MAX);
            } else {
                discovery.put_at = now.after(PUT_INTERVAL);
                discovery.put_latest = discovery.put_at;
                let mut walk = Walk::default();
                walk.hear(known);
                discovery.walk = Some(walk);
            }
        }
        if discovery.walk.is_none() {
            let at = discovery.put_at;
            return self.look_at_discovery(index, at);
        }
        self.walk_on(index);
        let walks = self.peers[index.0]
            .discovery
            .as_ref()
            .is_some_and(|d| d.walk.is_some());
        let at = if walks {
            now.after(ASK_TIMEOUT)
        } else {
            now.after(PUT_INTERVAL)
        };
        self.look_at_discovery(index, at);
    }

    fn walk_on(&mut self, index: PeerIndex) {
        let now = self.now;
        while let Some(discovery) = &mut self.peers[index.0].discovery
            && let Some(walk) = &mut discovery.walk
        {
            if walk.has_ended(now) {
                discovery.walk = None;
                return;
            }
            let Some(next) = walk.next() else { return };
            walk.mark(next, Asked::Until(now.after(ASK_TIMEOUT)));
            if self.are_connected(index, next) {
                self.ask_connected(index, next);
            } else if self.running(index).is_some() {
                let (id, address) = (self.peer_id(next), self.address(next));
                // As the real event loop does: discovery may dial, but not keep.
                self.act(index, |fabric, now| {
                    fabric.learn(now, id, vec![address], false);
                    fabric.want(now, id);
                    fabric.unwant(now, id);
                });
            }
        }
    }

    fn ask_connected(&mut self, index: PeerIndex, other: PeerIndex) {
        let latency = self.network.conditions(self.network.class(index, other)).latency;
        let at = self.now.after(latency.mean() * 2 * ASK_ROUND_TRIPS);
        let start = self.peers[index.0].start;
        let answer = Happening::Told {
            peer: index,
            start,
            by: other,
        };
        self.schedule(at, answer);
    }

    /// Somebody has answered.
    pub(super) fn told(&mut self, index: PeerIndex, start: u32, by: PeerIndex) {
        if self.peers[index.0].start != start {
            return;
        }
        let target = self.peers[index.0].discovery.as_ref().map(|d| d.target());
        let told = target.zip(self.peers[by.0].discovery.as_ref());
        let told: Option<Vec<(u64, PeerIndex)>> = told.map(|(target, other)| other.closest(target));
        let discovery = &mut self.peers[index.0].discovery;
        let walk = discovery.as_mut().and_then(|discovery| discovery.walk.as_mut());
        if let (Some(told), Some(walk)) = (told, walk) {
            walk.mark(by, Asked::Answered);
            walk.hear(told.into_iter().filter(|(_, peer)| *peer != index).collect());
        }
        self.walk_on(index);
    }
}
