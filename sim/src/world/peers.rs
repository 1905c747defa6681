//! Peers: their processes, clocks and disks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hyperfabric_protocol::admission::Persist;
use hyperfabric_protocol::cert::{
    Admitter, CERTIFICATE_VALIDITY, DELEGATION_VALIDITY, Delegation, Membership, MeshRoot,
};
use hyperfabric_protocol::fabric::{Event, FabricConfig, Input, Job, JobResult};
use hyperfabric_protocol::neighbors::CloseReason;
use hyperfabric_protocol::transfer::{self, Offer};
use hyperfabric_protocol::{
    Address, Fabric, Instant, NodeId, Now, PeerId, Serial, SigningKey, TransferId, UnixMillis,
};

use super::discovery::Discovery;
use super::links::address_of;
use super::{Disk, EPOCH, Happening, PeerIndex, World};

/// How long a disk takes to sync.
const SYNC: Duration = Duration::from_millis(2);
/// A member of a simulated mesh has at most this many connections.
const CONNECTIONS_MAX: usize = 32;
/// And a bootstrap peer this many. [QUIC-11]
const BOOTSTRAP_CONNECTIONS_MAX: usize = 1_024;

/// What peers run, for people: as long as what real ones say.
const AGENT: &str = concat!("hyperfabric/", env!("CARGO_PKG_VERSION"));

/// How a peer is configured.
#[derive(Clone, Copy, Debug)]
pub struct PeerOptions {
    /// Whether others may keep a connection to it beyond their neighbors.
    pub bootstrap: bool,
    /// It keeps at least this many neighbors.
    pub degree_min: usize,
    /// It dials no more than this many.
    pub degree_max: usize,
    /// It is connected to at most this many.
    pub connections_max: usize,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self {
            bootstrap: false,
            degree_min: 8,
            degree_max: 12,
            connections_max: CONNECTIONS_MAX,
        }
    }
}

impl PeerOptions {
    /// Returns those of a process that joins and ends: it has no neighbors.
    #[must_use]
    pub fn joining() -> Self {
        Self {
            degree_min: 0,
            degree_max: 0,
            ..Self::default()
        }
    }

    /// Returns those of a peer that is connected to at most `max` others, and leaves as much of that to those who dial it
    /// as usual.
    #[must_use]
    pub fn with_connections(max: usize) -> Self {
        let usual = Self::default();
        let share = |degree: usize| (degree * max / usual.connections_max).max(1);
        Self {
            degree_min: share(usual.degree_min),
            degree_max: share(usual.degree_max),
            connections_max: max,
            ..usual
        }
    }

    /// Returns those of a bootstrap peer.
    #[must_use]
    pub fn bootstrap() -> Self {
        Self {
            bootstrap: true,
            connections_max: BOOTSTRAP_CONNECTIONS_MAX,
            ..Self::default()
        }
    }
}

/// Work that is on its way to the disk.
#[derive(Debug)]
enum DiskJob {
    Persist(Persist),
    Transfer(transfer::Job),
    Chunk {
        peer: PeerId,
        transfer: TransferId,
        chunk: u64,
    },
    /// No disk has to do with it: a check that a slow peer takes its time for.
    Done(JobResult),
}

/// A peer: its machine, its disk, and whether it runs.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    key: SigningKey,
    pub(super) fabric: Option<Box<Fabric>>,
    pub(super) disk: Disk,
    /// Numbers the starts of its process.
    pub(super) start: u32,
    pub(super) options: PeerOptions,
    /// By how many milliseconds its wall clock is wrong.
    clock_error_ms: i64,
    /// How long each of its jobs takes longer.
    pub(super) slow: Duration,
    /// Nothing is served by its disk before this.
    disk_free: Instant,
    disk_jobs: VecDeque<DiskJob>,
    /// The deadline for which a timeout is in the queue.
    armed: Option<Instant>,
    pub(super) conns: BTreeSet<u64>,
    pub(super) discovery: Option<Box<Discovery>>,
    /// Connections that it has no more, and whose other side may not have heard so.
    pub(super) ghosts: BTreeSet<u64>,
    /// Payloads being sent, with their attempt.
    pub(super) sending: BTreeMap<TransferId, u32>,
    /// Payloads expected: sender, transfer and attempt.
    pub(super) expecting: BTreeMap<(PeerId, TransferId), (u32, Offer)>,
}

impl World {
    /// Adds a peer that belongs to no mesh, and starts it.
    pub fn add(&mut self) -> PeerIndex {
        self.add_peer(Disk::default(), PeerOptions::default())
    }

    /// Adds the first admitter of a mesh, under `name`, and starts it.
    ///
    /// # Panics
    /// When `name` is not a node id.
    pub fn add_admitter(&mut self, mesh: &str, name: &str) -> PeerIndex {
        let authority = self.authority(mesh);
        let key = self.key(self.peers.len());
        let wall = self.now().wall;
        let delegation = Delegation::issue(&authority, mesh, key.peer_id(), wall, DELEGATION_VALIDITY);
        let admitter = Admitter {
            key,
            delegation: Some(delegation),
        };
        let name = NodeId::new(name).expect("the caller's name is a node id");
        let root = self.root(mesh);
        let serial = Serial::new(wall, [0; 10]);
        let membership = admitter.admit(
            &root,
            admitter.key.peer_id(),
            name,
            serial,
            wall,
            CERTIFICATE_VALIDITY,
        );
        let disk = Disk {
            root: Some(root),
            membership: Some(membership),
            admitter: Some(admitter),
            ..Disk::default()
        };
        self.add_peer(disk, PeerOptions::bootstrap())
    }

    /// Makes the membership of a peer that is to be added next, by hand, as `mesh admit` does; it counts from now on
    /// for this long.
    #[must_use]
    pub fn certify_next(&mut self, mesh: &str, name: NodeId, valid: Duration) -> (MeshRoot, Membership) {
        let wall = self.now().wall;
        self.certify_next_at(mesh, name, wall, valid)
    }

    /// Makes a membership as [`Self::certify_next`] does, that counts from `wall` on.
    #[must_use]
    pub fn certify_next_at(
        &mut self,
        mesh: &str,
        name: NodeId,
        wall: UnixMillis,
        valid: Duration,
    ) -> (MeshRoot, Membership) {
        let (authority, number) = (self.authority(mesh), self.peers.len());
        // Whoever admits by hand is an admitter as any other: its delegation makes part of what members send.
        let key = SigningKey::from_bytes(&self.seed.secret(u64::MAX - 1, 0));
        let delegation = Delegation::issue(&authority, mesh, key.peer_id(), wall, DELEGATION_VALIDITY);
        let admitter = Admitter {
            key,
            delegation: Some(delegation),
        };
        let mut random = [0; 10];
        random[2..].copy_from_slice(&(number as u64).to_be_bytes());
        let root = self.root(mesh);
        let peer = self.key(number).peer_id();
        let membership = admitter.admit(&root, peer, name, Serial::new(wall, random), wall, valid);
        (root, membership)
    }

    fn authority(&self, mesh: &str) -> SigningKey {
        let number = mesh.bytes().fold(1, |sum: u64, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        SigningKey::from_bytes(&self.seed.secret(u64::MAX, number))
    }

    fn root(&mut self, mesh: &str) -> MeshRoot {
        let authority = self.authority(mesh).peer_id();
        let root = self
            .roots
            .entry(mesh.to_owned())
            .or_insert_with(|| MeshRoot::Closed {
                authority,
                name: mesh.to_owned(),
            });
        root.clone()
    }

    fn key(&self, number: usize) -> SigningKey {
        SigningKey::from_bytes(&self.seed.secret(number as u64, 0))
    }

    /// Adds a peer that has this on its disk, and starts it.
    pub fn add_peer(&mut self, disk: Disk, options: PeerOptions) -> PeerIndex {
        let index = PeerIndex(self.peers.len());
        let key = self.key(index.0);
        let id = key.peer_id();
        self.index.insert(id, index);
        self.peers.push(Peer {
            id,
            key,
            fabric: None,
            disk,
            start: 0,
            options,
            clock_error_ms: 0,
            slow: Duration::ZERO,
            disk_free: Instant(0),
            disk_jobs: VecDeque::new(),
            armed: None,
            conns: BTreeSet::new(),
            discovery: None,
            ghosts: BTreeSet::new(),
            sending: BTreeMap::new(),
            expecting: BTreeMap::new(),
        });
        self.start(index);
        index
    }

    /// Returns the time on a peer's own clocks.
    #[must_use]
    pub fn clock(&self, index: PeerIndex) -> Now {
        let wall = EPOCH.after(Duration::from_nanos(self.now.0)).0;
        Now {
            mono: self.now,
            wall: UnixMillis(wall.saturating_add_signed(self.peers[index.0].clock_error_ms)),
        }
    }

    /// Sets a peer's wall clock wrong by this much.
    pub fn set_clock_error(&mut self, index: PeerIndex, error_ms: i64) {
        self.peers[index.0].clock_error_ms = error_ms;
    }

    /// Makes a peer take this much longer for each of its jobs.
    pub fn set_slow(&mut self, index: PeerIndex, slow: Duration) {
        self.peers[index.0].slow = slow;
    }

    /// Makes every new transfer to a peer end with a fault, or lets them again.
    pub fn set_refuses(&mut self, index: PeerIndex, fault: Option<transfer::Fault>) {
        self.peers[index.0].disk.refuses = fault;
    }

    /// Configures a peer otherwise from its next start on.
    pub fn set_options(&mut self, index: PeerIndex, options: PeerOptions) {
        self.peers[index.0].options = options;
    }

    /// Starts a peer with what its disk has.
    pub fn start(&mut self, index: PeerIndex) {
        let now = self.clock(index);
        let peer = &mut self.peers[index.0];
        peer.start += 1;
        self.trace.event(self.now, 2, index.0);
        let seed = self.seed.secret(index.0 as u64, u64::from(peer.start));
        let mut fabric = Fabric::with_sharing(
            now,
            FabricConfig {
                key: peer.key.clone(),
                root: peer.disk.root.clone(),
                membership: peer.disk.membership.clone(),
                admitter: peer.disk.admitter.clone(),
                tickets: peer.disk.tickets.values().cloned().collect(),
                grants: peer.disk.grants.values().cloned().collect(),
                revocations: peer.disk.revocations.values().cloned().collect(),
                incarnation: u64::from(peer.start),
                agent: AGENT.to_owned(),
                bootstrap: peer.options.bootstrap,
                degree_min: peer.options.degree_min,
                degree_max: peer.options.degree_max,
                connections_max: peer.options.connections_max,
                transfers_max: transfer::limits::INCOMING_MAX,
                seed,
            },
            self.sharing.as_ref(),
        );
        for (issuer, addresses) in &peer.disk.issuers {
            fabric.learn(now, *issuer, addresses.clone(), true);
        }
        fabric.handle_input(now, Input::Addresses(vec![address_of(index)]));
        peer.fabric = Some(Box::new(fabric));
        peer.disk_free = self.now;
        self.reset_forgotten(index);
        self.begin_discovery(index);
        self.drain(index);
    }

    /// Remembers where a peer can be dialled, as the file of a member's issuers does.
    pub fn add_issuer(&mut self, index: PeerIndex, issuer: PeerId, addresses: Vec<Address>) {
        let now = self.clock(index);
        let peer = &mut self.peers[index.0];
        peer.disk.issuers.insert(issuer, addresses.clone());
        if let Some(fabric) = &mut peer.fabric {
            fabric.learn(now, issuer, addresses, true);
            self.drain(index);
        }
    }

    /// Stops a peer as an owner does: its connections are closed in words, and its disk is in order.
    pub fn stop(&mut self, index: PeerIndex) {
        while self.disk_job(index) {}
        self.trace.event(self.now, 3, index.0);
        for id in self.peers[index.0].conns.clone() {
            self.close(index, id, CloseReason::Shutdown);
        }
        self.forget_process(index);
    }

    /// Stops a peer at once, as `kill -9` or a power cut does. The others hear nothing until their connections time out
    /// or its next process answers. Of what was on its way to the disk a part may have arrived, in order.
    pub fn kill(&mut self, index: PeerIndex) {
        self.trace.event(self.now, 4, index.0);
        let waiting = self.peers[index.0].disk_jobs.len();
        let written = self.faults.index(waiting + 1);
        for job in self.peers[index.0]
            .disk_jobs
            .drain(..)
            .take(written)
            .collect::<Vec<_>>()
        {
            let _unheard = self.write(index, job);
        }
        self.abandon(index);
        self.forget_process(index);
    }

    fn forget_process(&mut self, index: PeerIndex) {
        let peer = &mut self.peers[index.0];
        peer.fabric = None;
        peer.disk_jobs.clear();
        peer.armed = None;
        peer.conns.clear();
        peer.discovery = None;
        peer.sending.clear();
        peer.expecting.clear();
    }

    pub(super) fn input(&mut self, index: PeerIndex, start: u32, input: Input) {
        let now = self.clock(index);
        let peer = &mut self.peers[index.0];
        if peer.start != start {
            return;
        }
        if let Some(fabric) = &mut peer.fabric {
            self.trace.event(self.now, 5, index.0);
            fabric.handle_input(now, input);
            self.drain(index);
        }
    }

    pub(super) fn timeout(&mut self, index: PeerIndex, start: u32) {
        let now = self.clock(index);
        let peer = &mut self.peers[index.0];
        // A timeout that was superseded by an earlier one has nothing to say.
        if peer.start != start || peer.armed != Some(self.now) {
            return;
        }
        peer.armed = None;
        if let Some(fabric) = &mut peer.fabric {
            self.trace.event(self.now, 6, index.0);
            fabric.handle_timeout(now);
            self.drain(index);
        }
    }

    /// Carries out what a machine asks for, until it asks for nothing more.
    pub(super) fn drain(&mut self, index: PeerIndex) {
        loop {
            let Some(fabric) = &mut self.peers[index.0].fabric else {
                return;
            };
            if let Some(transmit) = fabric.poll_transmit() {
                self.transmit(index, transmit);
            } else if let Some(job) = fabric.poll_job() {
                self.job(index, job);
            } else if let Some(event) = fabric.poll_event() {
                if let Event::PeerUp { peer, .. } = &event
                    && self.options.discovery
                {
                    self.met(index, *peer);
                }
                if self.options.log {
                    self.log.push((self.now, index, event));
                }
            } else {
                break;
            }
        }
        self.arm(index);
    }

    fn arm(&mut self, index: PeerIndex) {
        let peer = &mut self.peers[index.0];
        let Some(at) = peer.fabric.as_ref().and_then(|fabric| fabric.poll_timeout()) else {
            return;
        };
        let at = at.max(self.now);
        if peer.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        peer.armed = Some(at);
        let start = peer.start;
        self.schedule(at, Happening::Timeout { peer: index, start });
    }

    fn job(&mut self, index: PeerIndex, job: Job) {
        match job {
            Job::Check { items, root } => {
                let now = self.clock(index);
                let result = JobResult::Checked(self.checks.run(items, &root, now.wall));
                let peer = &mut self.peers[index.0];
                if !peer.slow.is_zero() {
                    self.queue_disk(index, DiskJob::Done(result));
                } else if let Some(fabric) = &mut peer.fabric {
                    fabric.handle_input(now, Input::JobDone(result));
                }
            }
            Job::Persist(persist) => self.queue_disk(index, DiskJob::Persist(persist)),
            Job::Transfer(job) => self.queue_disk(index, DiskJob::Transfer(job)),
        }
    }

    /// Begins to write a chunk that has arrived.
    pub(super) fn store_chunk(&mut self, index: PeerIndex, peer: PeerId, transfer: TransferId, chunk: u64) {
        self.queue_disk(
            index,
            DiskJob::Chunk {
                peer,
                transfer,
                chunk,
            },
        );
    }

    fn queue_disk(&mut self, index: PeerIndex, job: DiskJob) {
        let peer = &mut self.peers[index.0];
        let (start, begins) = (peer.start, peer.disk_free.max(self.now));
        let done = begins.after(SYNC + peer.slow);
        // Syncs are shared by all that waits: only a slow peer works off its jobs one after the other.
        if !peer.slow.is_zero() {
            peer.disk_free = done;
        }
        peer.disk_jobs.push_back(job);
        self.schedule(done, Happening::DiskDone { peer: index, start });
    }

    pub(super) fn disk_done(&mut self, index: PeerIndex, start: u32) {
        if self.peers[index.0].start == start {
            self.disk_job(index);
        }
    }

    /// Ends the disk's oldest job, and reports it. Returns whether there was one.
    fn disk_job(&mut self, index: PeerIndex) -> bool {
        let Some(job) = self.peers[index.0].disk_jobs.pop_front() else {
            return false;
        };
        let input = self.write(index, job);
        let start = self.peers[index.0].start;
        self.input(index, start, input);
        true
    }

    /// Makes a job durable. Returns what its machine is told of it.
    fn write(&mut self, index: PeerIndex, job: DiskJob) -> Input {
        let disk = &mut self.peers[index.0].disk;
        match job {
            DiskJob::Persist(persist) => {
                disk.persist(&persist.changes);
                let id = persist.id;
                Input::JobDone(JobResult::Persisted { id, ok: true })
            }
            DiskJob::Transfer(job) => Input::JobDone(JobResult::Transfer(disk.run(job))),
            DiskJob::Chunk {
                peer,
                transfer,
                chunk,
            } => {
                disk.store(peer, transfer, chunk);
                let have = std::iter::once(chunk..chunk + 1).collect();
                Input::ChunksDurable { peer, transfer, have }
            }
            DiskJob::Done(result) => Input::JobDone(result),
        }
    }
}
