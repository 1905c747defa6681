//! The virtual-time world: peers, the links between them, and one queue of what happens next.
//!
//! It is the sibling of the real event loop. Frames arrive after a link's latency, in order; jobs run in place
//! against a [`Disk`] that remembers what was made durable; payload bytes are counted, not carried. Two events at
//! one time happen in the order in which they were scheduled, so a run depends on its seed alone.

mod disk;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

pub use disk::Disk;
use hyperfabric_protocol::cert::{Admitter, DELEGATION_VALIDITY, Delegation, MeshRoot};
use hyperfabric_protocol::fabric::{Event, FabricConfig, Input, Job, JobResult, Purpose, Transmit};
use hyperfabric_protocol::random::Random;
use hyperfabric_protocol::transfer::{CHUNK_BYTES, ChunkRanges, Offer, PayloadOrder};
use hyperfabric_protocol::{
    Address, ConnId, Fabric, Instant, NodeId, Now, PeerId, Serial, SigningKey, TransferId, UnixMillis,
};

/// When every world begins, on the wall clock.
pub const EPOCH: UnixMillis = UnixMillis(1_800_000_000_000);
/// How long a dial to somebody who is not there takes to fail.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Names a peer of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub usize);

/// How links behave.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// One way, for frames and payload alike.
    pub latency: Duration,
    /// Payload bytes per second of one transfer.
    pub bytes_per_second: u64,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(10),
            bytes_per_second: 100_000_000,
        }
    }
}

/// A peer: its machine, its disk, and whether it runs.
struct Peer {
    key: SigningKey,
    fabric: Option<Fabric>,
    disk: Disk,
    starts: u64,
    bootstrap: bool,
    /// Payloads being sent: transfer and attempt.
    sending: BTreeSet<(TransferId, u32)>,
    /// Payloads expected: sender, transfer and attempt.
    expecting: BTreeMap<(PeerId, TransferId), (u32, Offer)>,
}

/// A connection between two peers; both ends have their own number for it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    ends: [(PeerIndex, ConnId); 2],
}

enum Happening {
    Input {
        peer: PeerIndex,
        start: u64,
        input: Input,
    },
    Timeout {
        peer: PeerIndex,
        start: u64,
    },
    Dial {
        from: PeerIndex,
        start: u64,
        peer: PeerId,
        address: Option<PeerIndex>,
        purpose: Purpose,
    },
    Chunk {
        from: PeerIndex,
        to: PeerIndex,
        transfer: TransferId,
        attempt: u32,
        chunk: u64,
        missing: Arc<Vec<u64>>,
        at: usize,
    },
}

/// The world.
pub struct World {
    now: Instant,
    peers: Vec<Peer>,
    index: BTreeMap<PeerId, PeerIndex>,
    connections: BTreeMap<u64, Connection>,
    /// From an end's number to the connection's.
    ends: BTreeMap<(PeerIndex, ConnId), u64>,
    next_connection: u64,
    next_event: u64,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    timeouts: BTreeMap<PeerIndex, Instant>,
    cut: BTreeSet<(PeerIndex, PeerIndex)>,
    conditions: Conditions,
    seed: u64,
    log: Vec<(Instant, PeerIndex, Event)>,
}

impl World {
    /// Makes an empty world.
    #[must_use]
    pub fn new(seed: u64, conditions: Conditions) -> Self {
        Self {
            now: Instant(0),
            peers: Vec::new(),
            index: BTreeMap::new(),
            connections: BTreeMap::new(),
            ends: BTreeMap::new(),
            next_connection: 0,
            next_event: 0,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            timeouts: BTreeMap::new(),
            cut: BTreeSet::new(),
            conditions,
            seed,
            log: Vec::new(),
        }
    }

    /// Returns the time on both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now {
            mono: self.now,
            wall: EPOCH.after(Duration::from_nanos(self.now.0)),
        }
    }

    /// Adds a peer that belongs to no mesh, and starts it.
    pub fn add(&mut self) -> PeerIndex {
        self.add_with(Disk::default(), false)
    }

    /// Adds the first admitter of a new mesh, under `name`, and starts it.
    ///
    /// # Panics
    /// When `name` is not a node id.
    pub fn add_admitter(&mut self, mesh: &str, name: &str) -> PeerIndex {
        let authority = SigningKey::from_bytes(&self.secret(u64::MAX));
        let root = MeshRoot::Closed {
            authority: authority.peer_id(),
            name: mesh.to_owned(),
        };
        let key = SigningKey::from_bytes(&self.secret(self.peers.len() as u64));
        let wall = self.now().wall;
        let delegation = Delegation::issue(&authority, mesh, key.peer_id(), wall, DELEGATION_VALIDITY);
        let admitter = Admitter {
            key,
            delegation: Some(delegation),
        };
        let name = NodeId::new(name).expect("the caller's name is a node id");
        let serial = Serial::new(wall, [0; 10]);
        let validity = hyperfabric_protocol::cert::CERTIFICATE_VALIDITY;
        let membership = admitter.admit(&root, admitter.key.peer_id(), name, serial, wall, validity);
        let disk = Disk {
            root: Some(root),
            membership: Some(membership),
            admitter: Some(admitter),
            ..Disk::default()
        };
        self.add_with(disk, true)
    }

    fn secret(&self, n: u64) -> [u8; 32] {
        let mut out = [0; 32];
        out[..8].copy_from_slice(&self.seed.to_be_bytes());
        out[8..16].copy_from_slice(&n.to_be_bytes());
        // Spread the bits: keys that differ in one byte would share a bucket of the flood database.
        Random::from_seed(out).bytes()
    }

    fn add_with(&mut self, disk: Disk, bootstrap: bool) -> PeerIndex {
        let index = PeerIndex(self.peers.len());
        let key = SigningKey::from_bytes(&self.secret(index.0 as u64));
        self.index.insert(key.peer_id(), index);
        self.peers.push(Peer {
            key,
            fabric: None,
            disk,
            starts: 0,
            bootstrap,
            sending: BTreeSet::new(),
            expecting: BTreeMap::new(),
        });
        self.start(index);
        index
    }

    /// Starts a peer with what its disk has.
    pub fn start(&mut self, index: PeerIndex) {
        let now = self.now();
        let seed = self.secret((index.0 as u64) << 32 | self.peers[index.0].starts);
        let peer = &mut self.peers[index.0];
        peer.starts += 1;
        let mut fabric = Fabric::new(
            now,
            FabricConfig {
                key: peer.key.clone(),
                root: peer.disk.root.clone(),
                membership: peer.disk.membership.clone(),
                admitter: peer.disk.admitter.clone(),
                tickets: peer.disk.tickets.values().cloned().collect(),
                grants: peer.disk.grants.values().cloned().collect(),
                revocations: peer.disk.revocations.values().cloned().collect(),
                incarnation: peer.starts,
                agent: "world".to_owned(),
                bootstrap: peer.bootstrap,
                degree_min: 8,
                degree_max: 12,
                connections_max: 32,
                transfers_max: hyperfabric_protocol::transfer::limits::INCOMING_MAX,
                seed,
            },
        );
        for (issuer, addresses) in &peer.disk.issuers {
            fabric.learn(now, *issuer, addresses.clone(), true);
        }
        fabric.handle_input(now, Input::Addresses(vec![address_of(index)]));
        peer.fabric = Some(fabric);
        self.drain(index);
    }

    /// Stops a peer at once, as `kill -9` does: the others hear nothing until their connections time out; here
    /// they are told after one latency, as a stateless reset would.
    pub fn kill(&mut self, index: PeerIndex) {
        let peer = &mut self.peers[index.0];
        peer.fabric = None;
        peer.sending.clear();
        peer.expecting.clear();
        self.timeouts.remove(&index);
        let dead: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.ends.iter().any(|(p, _)| *p == index))
            .map(|(id, _)| *id)
            .collect();
        for id in dead {
            self.lose(id);
        }
    }

    /// Loses every connection between two peers.
    pub fn disconnect(&mut self, a: PeerIndex, b: PeerIndex) {
        let between = |c: &Connection| c.ends.iter().all(|(p, _)| *p == a || *p == b);
        let ids: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| between(c))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.lose(id);
        }
    }

    /// Keeps two peers from reaching each other, or lets them again.
    pub fn partition(&mut self, a: PeerIndex, b: PeerIndex, cut: bool) {
        let pair = (a.min(b), a.max(b));
        if cut {
            self.cut.insert(pair);
            self.disconnect(a, b);
        } else {
            self.cut.remove(&pair);
        }
    }

    fn reachable(&self, a: PeerIndex, b: PeerIndex) -> bool {
        !self.cut.contains(&(a.min(b), a.max(b))) && self.peers[b.0].fabric.is_some()
    }

    /// Returns a peer's machine.
    ///
    /// # Panics
    /// When the peer does not run.
    #[must_use]
    pub fn fabric(&self, index: PeerIndex) -> &Fabric {
        self.peers[index.0].fabric.as_ref().expect("the peer runs")
    }

    /// Returns a peer's disk.
    #[must_use]
    pub fn disk(&self, index: PeerIndex) -> &Disk {
        &self.peers[index.0].disk
    }

    /// Returns who a peer is.
    #[must_use]
    pub fn peer_id(&self, index: PeerIndex) -> PeerId {
        self.peers[index.0].key.peer_id()
    }

    /// Returns a peer's address.
    #[must_use]
    pub fn address(&self, index: PeerIndex) -> Address {
        address_of(index)
    }

    /// Lets a peer's user act.
    ///
    /// # Panics
    /// When the peer does not run.
    pub fn act<R>(&mut self, index: PeerIndex, act: impl FnOnce(&mut Fabric, Now) -> R) -> R {
        let now = self.now();
        let result = act(self.peers[index.0].fabric.as_mut().expect("the peer runs"), now);
        self.drain(index);
        result
    }

    /// Returns everything that has happened, in order.
    #[must_use]
    pub fn log(&self) -> &[(Instant, PeerIndex, Event)] {
        &self.log
    }

    /// Runs until `done` or for `limit` of virtual time. Returns whether it was done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now.after(limit);
        loop {
            if done(self) {
                return true;
            }
            match self.queue.peek() {
                Some(Reverse((at, _))) if *at <= end => self.step(),
                Some(_) | None => {
                    self.now = end;
                    return done(self);
                }
            }
        }
    }

    /// Runs for a stretch of virtual time.
    pub fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    fn schedule(&mut self, delay: Duration, happening: Happening) {
        let id = self.next_event;
        self.next_event += 1;
        self.happenings.insert(id, happening);
        self.queue.push(Reverse((self.now.after(delay), id)));
    }

    fn step(&mut self) {
        let Some(Reverse((at, id))) = self.queue.pop() else {
            return;
        };
        self.now = self.now.max(at);
        match self.happenings.remove(&id) {
            Some(Happening::Input { peer, start, input }) => self.input(peer, start, input),
            Some(Happening::Timeout { peer, start }) => self.timeout(peer, start, at),
            Some(Happening::Dial {
                from,
                start,
                peer,
                address,
                purpose,
            }) => {
                self.dial(from, start, peer, address, purpose);
            }
            Some(Happening::Chunk {
                from,
                to,
                transfer,
                attempt,
                chunk,
                missing,
                at,
            }) => {
                self.chunk(from, to, transfer, attempt, chunk, &missing, at);
            }
            None => {}
        }
    }

    fn input(&mut self, index: PeerIndex, start: u64, input: Input) {
        let now = self.now();
        let peer = &mut self.peers[index.0];
        if peer.starts != start {
            return;
        }
        if let Some(fabric) = &mut peer.fabric {
            fabric.handle_input(now, input);
            self.drain(index);
        }
    }

    fn timeout(&mut self, index: PeerIndex, start: u64, at: Instant) {
        let now = self.now();
        // A timeout that was superseded by an earlier one has nothing to say.
        if self.timeouts.get(&index) != Some(&at) || self.peers[index.0].starts != start {
            return;
        }
        self.timeouts.remove(&index);
        if let Some(fabric) = &mut self.peers[index.0].fabric {
            fabric.handle_timeout(now);
            self.drain(index);
        }
    }

    /// Carries out what a machine asks for, until it asks for nothing more.
    fn drain(&mut self, index: PeerIndex) {
        loop {
            let now = self.now();
            let Some(fabric) = &mut self.peers[index.0].fabric else {
                return;
            };
            if let Some(transmit) = fabric.poll_transmit() {
                self.transmit(index, transmit);
            } else if let Some(job) = fabric.poll_job() {
                let result = match job {
                    Job::Check { items, root } => Job::run_check(items, &root, now),
                    Job::Persist(persist) => {
                        self.peers[index.0].disk.persist(&persist.changes);
                        JobResult::Persisted {
                            id: persist.id,
                            ok: true,
                        }
                    }
                    Job::Transfer(job) => JobResult::Transfer(self.peers[index.0].disk.run(job)),
                };
                if let Some(fabric) = &mut self.peers[index.0].fabric {
                    fabric.handle_input(now, Input::JobDone(result));
                }
            } else if let Some(event) = fabric.poll_event() {
                self.log.push((self.now, index, event));
            } else {
                break;
            }
        }
        self.arm(index);
    }

    fn arm(&mut self, index: PeerIndex) {
        let Some(at) = self.peers[index.0].fabric.as_ref().and_then(Fabric::poll_timeout) else {
            return;
        };
        let at = at.max(self.now);
        if self.timeouts.get(&index).is_some_and(|armed| *armed <= at) {
            return;
        }
        self.timeouts.insert(index, at);
        let start = self.peers[index.0].starts;
        self.schedule(at.since(self.now), Happening::Timeout { peer: index, start });
    }

    fn transmit(&mut self, index: PeerIndex, transmit: Transmit) {
        let latency = self.conditions.latency;
        let start = self.peers[index.0].starts;
        match transmit {
            Transmit::Frame { conn, bytes } => {
                if let Some((other, conn)) = self.other_end(index, conn) {
                    let start = self.peers[other.0].starts;
                    let input = Input::Frame { conn, bytes };
                    self.schedule(
                        latency,
                        Happening::Input {
                            peer: other,
                            start,
                            input,
                        },
                    );
                }
            }
            Transmit::Dial {
                peer,
                addresses,
                purpose,
            } => {
                let address = addresses.iter().find_map(index_of);
                let found = address.filter(|to| self.reachable(index, *to));
                // One round trip for the handshake.
                let delay = if found.is_some() {
                    latency * 2
                } else {
                    DIAL_TIMEOUT
                };
                self.schedule(
                    delay,
                    Happening::Dial {
                        from: index,
                        start,
                        peer,
                        address: found,
                        purpose,
                    },
                );
            }
            Transmit::Close { conn, .. } => {
                if let Some(id) = self.ends.get(&(index, conn)).copied() {
                    self.lose(id);
                }
            }
            Transmit::Payload(order) => self.payload(index, order),
        }
    }

    fn other_end(&self, index: PeerIndex, conn: ConnId) -> Option<(PeerIndex, ConnId)> {
        let connection = self.connections.get(self.ends.get(&(index, conn))?)?;
        connection.ends.into_iter().find(|end| *end != (index, conn))
    }

    fn dial(
        &mut self,
        from: PeerIndex,
        start: u64,
        peer: PeerId,
        address: Option<PeerIndex>,
        purpose: Purpose,
    ) {
        let to = address.filter(|to| self.reachable(from, *to) && self.peers[to.0].key.peer_id() == peer);
        let Some(to) = to else {
            self.input(
                from,
                start,
                Input::DialFailed {
                    peer,
                    purpose,
                    permanent: false,
                },
            );
            return;
        };
        if self.peers[from.0].starts != start {
            return;
        }
        let id = self.next_connection;
        self.next_connection += 1;
        let ends = [(from, ConnId(id * 2)), (to, ConnId(id * 2 + 1))];
        self.connections.insert(id, Connection { ends });
        for end in ends {
            self.ends.insert(end, id);
        }
        for (me, other) in [(0, 1), (1, 0)] {
            let dialled = me == 0;
            let (index, conn) = ends[me];
            let (other, _) = ends[other];
            let membership = self.peers[other.0]
                .fabric
                .as_ref()
                .and_then(|f| f.admission().own());
            let input = Input::Connected {
                conn,
                peer: self.peers[other.0].key.peer_id(),
                purpose,
                dialled,
                address: dialled.then(|| address_of(other)),
                membership: membership.map(|(m, _)| m.to_bytes().into()),
            };
            self.input(index, self.peers[index.0].starts, input);
        }
    }

    /// Ends a connection at both ends, one latency from now.
    fn lose(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        for (index, conn) in connection.ends {
            self.ends.remove(&(index, conn));
            let start = self.peers[index.0].starts;
            let input = Input::Disconnected { conn, reason: None };
            self.schedule(
                self.conditions.latency,
                Happening::Input {
                    peer: index,
                    start,
                    input,
                },
            );
        }
    }

    fn connected(&self, a: PeerIndex, b: PeerIndex) -> bool {
        self.connections
            .values()
            .any(|c| c.ends.iter().all(|(p, _)| *p == a || *p == b))
    }

    fn payload(&mut self, index: PeerIndex, order: PayloadOrder) {
        match order {
            PayloadOrder::Start {
                peer,
                transfer,
                attempt,
                have,
            } => {
                let Some(to) = self.index.get(&peer).copied() else {
                    return;
                };
                let size = self.size_of(index, transfer);
                let end = size.div_ceil(CHUNK_BYTES);
                let missing: Vec<u64> = have.missing(end).into_iter().flatten().collect();
                self.peers[index.0].sending.retain(|(t, _)| *t != transfer);
                self.peers[index.0].sending.insert((transfer, attempt));
                self.next_chunk(index, to, transfer, attempt, Arc::new(missing), 0);
            }
            PayloadOrder::Stop { transfer } => self.peers[index.0].sending.retain(|(t, _)| *t != transfer),
            PayloadOrder::Expect {
                peer,
                transfer,
                attempt,
                offer,
            } => {
                self.peers[index.0]
                    .expecting
                    .insert((peer, transfer), (attempt, offer));
            }
            PayloadOrder::Forget { peer, transfer } => {
                self.peers[index.0].expecting.remove(&(peer, transfer));
            }
            // The disks of the world do not fill up.
            PayloadOrder::Keep { .. } => {}
        }
    }

    fn size_of(&self, index: PeerIndex, transfer: TransferId) -> u64 {
        let mut known = self.fabric(index).transfers().transfers();
        known
            .find(|info| info.of.transfer == transfer)
            .map_or(0, |info| info.offer.size)
    }

    fn next_chunk(
        &mut self,
        from: PeerIndex,
        to: PeerIndex,
        transfer: TransferId,
        attempt: u32,
        missing: Arc<Vec<u64>>,
        at: usize,
    ) {
        if let Some(chunk) = missing.get(at).copied() {
            let time = Duration::from_nanos(CHUNK_BYTES * 1_000_000_000 / self.conditions.bytes_per_second);
            self.schedule(
                time,
                Happening::Chunk {
                    from,
                    to,
                    transfer,
                    attempt,
                    chunk,
                    missing,
                    at,
                },
            );
        } else {
            let start = self.peers[from.0].starts;
            let input = Input::PayloadSent {
                transfer,
                attempt,
                root: payload_root(transfer),
            };
            self.schedule(
                Duration::ZERO,
                Happening::Input {
                    peer: from,
                    start,
                    input,
                },
            );
        }
    }

    #[allow(clippy::too_many_arguments, reason = "they are the fields of the happening")]
    fn chunk(
        &mut self,
        from: PeerIndex,
        to: PeerIndex,
        transfer: TransferId,
        attempt: u32,
        chunk: u64,
        missing: &Arc<Vec<u64>>,
        at: usize,
    ) {
        let sender = self.peers[from.0].key.peer_id();
        if !self.peers[from.0].sending.contains(&(transfer, attempt)) || !self.connected(from, to) {
            return;
        }
        let expected = self.peers[to.0]
            .expecting
            .get(&(sender, transfer))
            .is_some_and(|(a, _)| *a == attempt);
        if expected && self.peers[to.0].fabric.is_some() {
            let have: ChunkRanges = std::iter::once(chunk..chunk + 1).collect();
            self.peers[to.0].disk.store(sender, transfer, chunk);
            let start = self.peers[to.0].starts;
            let input = Input::ChunksDurable {
                peer: sender,
                transfer,
                have,
            };
            self.schedule(
                self.conditions.latency,
                Happening::Input {
                    peer: to,
                    start,
                    input,
                },
            );
        }
        self.next_chunk(from, to, transfer, attempt, Arc::clone(missing), at + 1);
    }
}

/// Returns the digest that the payload of a transfer has in this world.
#[must_use]
pub fn payload_root(transfer: TransferId) -> [u8; 32] {
    let mut root = [0; 32];
    root[..16].copy_from_slice(transfer.as_bytes());
    root
}

fn address_of(index: PeerIndex) -> Address {
    Address::new(format!("/sim/{}", index.0)).expect("a short printable text is an address")
}

fn index_of(address: &Address) -> Option<PeerIndex> {
    address
        .as_str()
        .strip_prefix("/sim/")?
        .parse()
        .ok()
        .map(PeerIndex)
}
