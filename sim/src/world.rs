//! The virtual-time world: peers, the links between them, and one queue of what happens next.
//!
//! It is the sibling of the real event loop. A frame arrives after what its link and QUIC do to it (`links`); work
//! on disk takes time, and a crash loses what was not synced (`peers`); payload bytes are counted, not carried
//! (`payload`). Two events at one time happen in the order in which they were scheduled, and what is drawn comes from
//! streams of one seed, so a run depends on its seed alone: [`World::trace_hash`] says whether two runs were the same.

mod checks;
mod discovery;
mod disk;
mod links;
mod network;
mod payload;
mod peers;
mod slab;
mod trace;

use std::collections::BTreeMap;
use std::time::Duration;

use checks::Checks;
pub use disk::{Disk, Received};
use hyperfabric_protocol::cert::MeshRoot;
use hyperfabric_protocol::fabric::{Event, Input};
use hyperfabric_protocol::frame::Tally;
use hyperfabric_protocol::sharing::Sharing;
use hyperfabric_protocol::{Address, ConnId, Fabric, Instant, Now, PeerId, UnixMillis};
use links::Connection;
use network::Network;
pub use network::{CutId, Direction};
use payload::Stream as PayloadStream;
pub use payload::{Ledger, payload_root};
use peers::Peer;
pub use peers::PeerOptions;
use slab::Slab;
use trace::Trace;

pub use crate::conditions::Conditions;
use crate::queue::Queue;
use crate::seed::{Draws, Seed, Stream};

/// When every world begins, on the wall clock.
pub const EPOCH: UnixMillis = UnixMillis(1_800_000_000_000);

/// Names a peer of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub usize);

/// What waits in the queue. A happening for a peer names the start that it is meant for, and is void after a restart.
#[derive(Debug)]
enum Happening {
    Timeout {
        peer: PeerIndex,
        start: u32,
    },
    Frame {
        conn: ConnId,
        frame: links::Carried,
        bytes: u64,
    },
    /// Anything that happens seldom.
    Input {
        peer: PeerIndex,
        start: u32,
        input: Box<Input>,
    },
    Dial(Box<links::Dialling>),
    /// The acceptor's welcome reaches the dialler.
    Welcome {
        conn: u64,
    },
    /// A side hears that the other one has closed, or that it knows nothing of the connection.
    Closed {
        conn: ConnId,
        reason: Option<hyperfabric_protocol::neighbors::CloseReason>,
    },
    /// A side has heard nothing since then.
    Idle {
        conn: ConnId,
        since: Instant,
    },
    Chunk(Box<PayloadStream>),
    DiskDone {
        peer: PeerIndex,
        start: u32,
    },
    /// A peer looks what discovery has to do.
    Discovery {
        peer: PeerIndex,
        start: u32,
    },
    /// Another one has told it whom it knows.
    Told {
        peer: PeerIndex,
        start: u32,
        by: PeerIndex,
    },
}

/// What a world keeps beside its peers.
#[derive(Clone, Copy, Debug)]
pub struct WorldOptions {
    /// Whether frames are encoded and read again on their way. Otherwise both ends share them, which large worlds need.
    pub bytes: bool,
    /// Whether events are kept for [`World::log`] and [`World::take_events`].
    pub log: bool,
    /// Whether peers meet those that Kademlia makes them meet.
    pub discovery: bool,
    /// Whether peers share equal parts of their databases, and the checks of items, for worlds of one mesh where no check
    /// has to take its time.
    pub share: bool,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            bytes: true,
            log: true,
            discovery: false,
            share: false,
        }
    }
}

/// The world.
pub struct World {
    now: Instant,
    seed: Seed,
    options: WorldOptions,
    peers: Vec<Peer>,
    index: BTreeMap<PeerId, PeerIndex>,
    roots: BTreeMap<String, MeshRoot>,
    network: Network,
    connections: Vec<Option<Box<Connection>>>,
    queue: Queue,
    happenings: Slab<Happening>,
    checks: Checks,
    sharing: Option<Sharing>,
    ledger: Ledger,
    faults: Draws,
    trace: Trace,
    items_received: u64,
    control: Tally,
    dials: u64,
    log: Vec<(Instant, PeerIndex, Event)>,
}

impl World {
    /// Makes an empty world whose links are all alike.
    #[must_use]
    pub fn new(seed: u64, conditions: Conditions) -> Self {
        Self::with_options(seed, conditions, WorldOptions::default())
    }

    /// Makes an empty world.
    #[must_use]
    pub fn with_options(seed: u64, conditions: Conditions, options: WorldOptions) -> Self {
        let seed = Seed(seed);
        Self {
            now: Instant(0),
            seed,
            options,
            peers: Vec::new(),
            index: BTreeMap::new(),
            roots: BTreeMap::new(),
            network: Network::new(conditions),
            connections: Vec::new(),
            queue: Queue::new(),
            happenings: Slab::new(),
            checks: Checks::default(),
            sharing: options.share.then(Sharing::default),
            ledger: Ledger::default(),
            faults: seed.stream(Stream::Faults, 0, 0),
            trace: Trace::new(seed.0),
            items_received: 0,
            control: Tally::default(),
            dials: 0,
            log: Vec::new(),
        }
    }

    /// Returns the time on both clocks of a peer whose wall clock is right.
    #[must_use]
    pub fn now(&self) -> Now {
        Now {
            mono: self.now,
            wall: EPOCH.after(Duration::from_nanos(self.now.0)),
        }
    }

    /// Returns how many peers there are, running or not.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.peers.len()
    }

    /// Tells whether there is nobody.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Returns a hash over every event so far. It is the same for the same seed and commit, in every build.
    #[must_use]
    pub fn trace_hash(&self) -> String {
        self.trace.hash()
    }

    /// Returns how many events have happened.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.trace.events
    }

    /// Returns how many items have arrived in frames, again or for the first time.
    #[must_use]
    pub const fn items_received(&self) -> u64 {
        self.items_received
    }

    /// Returns which frames have arrived, and their bytes.
    #[must_use]
    pub const fn control(&self) -> &Tally {
        &self.control
    }

    /// Returns how often somebody has dialled.
    #[must_use]
    pub const fn dials(&self) -> u64 {
        self.dials
    }

    /// Returns how many items had their signatures checked.
    #[must_use]
    pub const fn checks_made(&self) -> u64 {
        self.checks.made
    }

    /// Returns what became of the payload bytes.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns the stream of random numbers for `what`; numbers below a million are the world's own.
    #[must_use]
    pub fn draws(&self, what: Stream, number: u32) -> Draws {
        self.seed.stream(what, 1_000_000 + u64::from(number), 0)
    }

    /// Returns a peer's machine.
    ///
    /// # Panics
    /// When the peer does not run.
    #[must_use]
    pub fn fabric(&self, index: PeerIndex) -> &Fabric {
        self.running(index).expect("the peer runs")
    }

    /// Returns a peer's machine, when it runs.
    #[must_use]
    pub fn running(&self, index: PeerIndex) -> Option<&Fabric> {
        self.peers.get(index.0)?.fabric.as_deref()
    }

    /// Returns the numbers of all peers.
    pub fn peers(&self) -> impl Iterator<Item = PeerIndex> + use<> {
        (0..self.peers.len()).map(PeerIndex)
    }

    /// Returns a peer's disk.
    #[must_use]
    pub fn disk(&self, index: PeerIndex) -> &Disk {
        &self.peers[index.0].disk
    }

    /// Returns who a peer is.
    #[must_use]
    pub fn peer_id(&self, index: PeerIndex) -> PeerId {
        self.peers[index.0].id
    }

    /// Returns the peer with this id.
    #[must_use]
    pub fn peer_of(&self, id: &PeerId) -> Option<PeerIndex> {
        self.index.get(id).copied()
    }

    /// Returns a peer's address.
    #[must_use]
    pub fn address(&self, index: PeerIndex) -> Address {
        links::address_of(index)
    }

    /// Lets a peer's user act.
    ///
    /// # Panics
    /// When the peer does not run.
    pub fn act<R>(&mut self, index: PeerIndex, act: impl FnOnce(&mut Fabric, Now) -> R) -> R {
        let now = self.clock(index);
        self.trace.event(self.now, 1, index.0);
        let fabric = self.peers[index.0].fabric.as_mut().expect("the peer runs");
        let result = act(fabric, now);
        self.drain(index);
        result
    }

    /// Returns everything that has happened, in order.
    #[must_use]
    pub fn log(&self) -> &[(Instant, PeerIndex, Event)] {
        &self.log
    }

    /// Takes everything that has happened out of the log.
    pub fn take_events(&mut self) -> Vec<(Instant, PeerIndex, Event)> {
        std::mem::take(&mut self.log)
    }

    /// Returns how a peer is configured.
    #[must_use]
    pub fn options(&self, index: PeerIndex) -> PeerOptions {
        self.peers[index.0].options
    }

    /// Runs until `done` or for `limit` of virtual time. Returns whether it was done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now.after(limit);
        while !done(self) {
            if !self.step_until(end) {
                return done(self);
            }
        }
        true
    }

    /// Runs for a stretch of virtual time.
    pub fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.step_until(end) {}
    }

    /// Lets the next event happen, when it is due by `end`; otherwise the time becomes `end`. Returns whether one did.
    pub fn step_until(&mut self, end: Instant) -> bool {
        let due = self.queue.peek().filter(|entry| entry.time <= end.0);
        if due.is_none() {
            self.now = self.now.max(end);
            return false;
        }
        let Some(entry) = self.queue.pop() else {
            return false;
        };
        self.now = self.now.max(Instant(entry.time));
        if let Some(happening) = self.happenings.remove(entry.item) {
            self.happen(happening);
        }
        true
    }

    fn schedule(&mut self, at: Instant, happening: Happening) {
        let slot = self.happenings.insert(happening);
        self.queue.push(at.max(self.now).0, slot);
    }

    fn schedule_input(&mut self, at: Instant, peer: PeerIndex, input: Input) {
        let start = self.peers[peer.0].start;
        let input = Box::new(input);
        self.schedule(at, Happening::Input { peer, start, input });
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Timeout { peer, start } => self.timeout(peer, start),
            Happening::Frame { conn, frame, bytes } => self.arrive(conn, frame, bytes),
            Happening::Input { peer, start, input } => self.input(peer, start, *input),
            Happening::Dial(dialling) => self.dialled(&dialling),
            Happening::Welcome { conn } => self.welcome(conn),
            Happening::Closed { conn, reason } => self.end(conn, reason),
            Happening::Idle { conn, since } => self.idle(conn, since),
            Happening::Chunk(stream) => self.chunk(*stream),
            Happening::DiskDone { peer, start } => self.disk_done(peer, start),
            Happening::Discovery { peer, start } => self.discover(peer, start),
            Happening::Told { peer, start, by } => self.told(peer, start, by),
        }
    }
}
