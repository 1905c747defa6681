//! The connection machine: which peers this one is connected to, over which connection, and whom it dials.
//!
//! It exists so that the questions which connections make hard have one answer each, found without a socket:
//! which of two simultaneous connections survives, when a peer counts as restarted, whom to dial when a neighbor
//! is lost, and what to do with the thirty-third. Every bound and delay is a constant here or in the configuration.
//!
//! A connection counts only once its Hello has arrived. Of several connections to one peer, exactly one survives,
//! and it is always **the dialler of a connection who closes it as a duplicate**, because the dialler alone knows
//! whether it still has the connection that is to replace it: an acceptor that closed the "wrong" one would, after
//! a half-lost connection, close the only one that works. A peer closes a connection that it dialled when it has
//! one that the other side dialled and the other side's id is smaller, or one that it dialled itself later. So two
//! peers that dial each other at once keep the connection that the smaller id dialled. [CONN-4] [CONN-5]
//!
//! It leaves out what a connection is made of, who may connect (the handshake decides that before `Connected`), and
//! every frame but Hello.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::cbor::Text;
use crate::frame::{Frame, Hello, PROTOCOL_VERSION};
use crate::random::Random;
use crate::{Address, ConnId, Instant, Now, PeerId};

mod connections;
mod dialling;
mod filter;
mod peers;
mod room;

use filter::Filter;
use peers::{Conn, Dial, Peer};

/// How long a connection may be silent before its Hello: several round trips of the slowest link worth having.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// When a dial that was never answered counts as failed; longer than any handshake timeout of the driver, so that
/// it only catches a driver that forgot.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// The first pause after a failed dial.
pub const DIAL_BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest pause between dials: a peer that was away for hours is back within half a minute.
pub const DIAL_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The pause before a lost neighbor is dialled again: a restarted process needs about that long to bind its port.
pub const REDIAL_DELAY: Duration = Duration::from_millis(50);
/// After how many failed dials a lost neighbor is one candidate among others.
pub const LOST_DIALS_MAX: u32 = 8;
/// A connection that lasted this long was good: its loss does not count as a failure. Shorter ones do, or two
/// processes with one key would evict each other as fast as they can dial.
pub const STABLE_AFTER: Duration = Duration::from_secs(2);
/// Dials in flight at once: a handshake costs a signature at both ends.
pub const DIALS_MAX: usize = 8;
/// How long a connection beyond `degree_max` that nobody wants is kept.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// One in this many of a bootstrap peer's connections is kept free for newcomers, who know nobody else.
pub const ROOM_SHARE: usize = 8;
/// How long a newcomer may stay at a bootstrap peer that needs room: by then it has the directory, and neighbors.
pub const ROOM_STAY: Duration = Duration::from_secs(10);
/// How short that becomes while newcomers take the last of the room: long enough for a few round trips.
pub const ROOM_STAY_MIN: Duration = Duration::from_millis(500);
/// How long a peer with enough neighbors stays away from bootstrap peers after one has let it go: of ten thousand
/// members 17 come back each second, and any part of a mesh that has lost the others sends somebody before long.
pub const BOOTSTRAP_PAUSE: Duration = Duration::from_secs(600);
/// How long a peer that broke the protocol is refused.
pub const BAN_DURATION: Duration = Duration::from_secs(600);
/// How many banned peers are remembered; beyond that the ban that ends first is lifted.
pub const BANS_MAX: usize = 1024;
/// How long a peer waits for the other one to close a duplicate before it takes the newer connection to be a
/// replacement: a few round trips.
pub const DIAL_RACE: Duration = Duration::from_secs(1);
/// How many peers are known by address. The directory may have a hundred times as many; when full, a newcomer takes
/// the place of one that is of no use now, with a chance that leaves everyone equally likely to be known.
pub const PEERS_KNOWN_MAX: usize = 64;
/// How many peers the directory offers when nobody is left to dial.
pub const CANDIDATES: usize = 8;
/// How many of them can be bootstrap peers: the lists that people write are short.
pub const BOOTSTRAPS_MAX: usize = 64;
/// Connections per peer; honest peers have two for a moment. Beyond that the oldest is closed.
pub const CONNECTIONS_PER_PEER_MAX: usize = 4;
/// Addresses kept per peer and source; the rest is ignored.
pub const ADDRESSES_PER_PEER_MAX: usize = 16;

/// Who this peer is and how many connections it keeps.
#[derive(Clone, Debug)]
pub struct NeighborsConfig {
    /// This peer.
    pub local: PeerId,
    /// Drawn at random when the process starts.
    pub incarnation: u64,
    /// What this peer runs, for people.
    pub agent: String,
    /// Below this many connected peers it dials more.
    pub degree_min: usize,
    /// Above this many it closes what is idle.
    pub degree_max: usize,
    /// The most connected peers.
    pub connections_max: usize,
    /// Whether it is a bootstrap peer, which keeps room for newcomers.
    pub bootstrap: bool,
}

impl NeighborsConfig {
    /// Returns the configuration of an ordinary peer: 8 to 12 neighbors, 32 at most.
    #[must_use]
    pub fn new(local: PeerId, incarnation: u64, agent: impl Into<String>) -> Self {
        Self {
            local,
            incarnation,
            agent: agent.into(),
            degree_min: 8,
            degree_max: 12,
            connections_max: 32,
            bootstrap: false,
        }
    }
}

/// Why a connection is closed; its number is the application error code of the wire's close frame. [CONN-8]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum CloseReason {
    /// The process ends.
    #[error("the peer shuts down")]
    Shutdown,
    /// Another connection between the two peers survives.
    #[error("another connection to the same peer is kept")]
    Duplicate,
    /// The connection belongs to an earlier process of the peer.
    #[error("the peer was restarted")]
    Restarted,
    /// Nobody needs it.
    #[error("the connection was idle")]
    Idle,
    /// Too many connections.
    #[error("too many connections")]
    LimitReached,
    /// No Hello came.
    #[error("no Hello arrived in time")]
    HelloTimeout,
    /// The two peers share no version of the protocol.
    #[error("the peer speaks an incompatible version of the protocol")]
    Incompatible,
    /// The membership was revoked or has expired.
    #[error("the peer's membership was revoked or has expired")]
    Revoked,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol")]
    Violation,
    /// It broke the protocol a short while ago.
    #[error("the peer is refused because it broke the protocol")]
    Banned,
}

impl CloseReason {
    /// Every reason, in the order of the codes.
    pub const ALL: [Self; 10] = [
        Self::Shutdown,
        Self::Duplicate,
        Self::Restarted,
        Self::Idle,
        Self::LimitReached,
        Self::HelloTimeout,
        Self::Incompatible,
        Self::Revoked,
        Self::Violation,
        Self::Banned,
    ];

    /// Tells whether a connection that is closed for this drains: it is nobody's fault, and what was asked on it is
    /// still answered. [CONN-9]
    #[must_use]
    pub const fn drains(self) -> bool {
        matches!(self, Self::Duplicate | Self::Idle | Self::LimitReached)
    }

    /// Returns the code that stands for the reason on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// Returns the reason that `code` stands for.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A prompt connection is established and its peer authenticated.
    Connected {
        /// The connection.
        conn: ConnId,
        /// Who is at the other end.
        peer: PeerId,
        /// Whether this side dialled it.
        dialled: bool,
        /// The address that was dialled.
        address: Option<Address>,
    },
    /// Its first frame arrived.
    Hello {
        /// The connection.
        conn: ConnId,
        /// The frame.
        hello: Hello,
    },
    /// It is gone. Not expected, and ignored, for a connection that this machine closed.
    Disconnected {
        /// The connection.
        conn: ConnId,
        /// What the other side said, when it closed the connection in words.
        reason: Option<CloseReason>,
    },
    /// Every address of a dial failed.
    DialFailed {
        /// Who was dialled.
        peer: PeerId,
        /// Whether the peer answered and refused, so that trying again soon is of no use.
        permanent: bool,
    },
    /// Where a peer can be dialled, replacing what the same source said earlier. No addresses: forget them.
    Learned {
        /// The peer.
        peer: PeerId,
        /// Where it can be dialled.
        addresses: Vec<Address>,
        /// Whether a user named it as a first contact. One bootstrap peer is always kept connected, and its
        /// addresses are kept beside those that the directory says.
        bootstrap: bool,
    },
    /// Where a peer can be dialled that the directory knows and that may be needed: it is kept even when full.
    Candidate {
        /// The peer.
        peer: PeerId,
        /// Where it can be dialled.
        addresses: Vec<Address>,
    },
    /// Something needs a connection to this peer now; to be balanced by `Unwant`.
    Want {
        /// The peer.
        peer: PeerId,
    },
    /// It does not need it any more.
    Unwant {
        /// The peer.
        peer: PeerId,
    },
    /// The peer's membership was revoked or has expired: close, forget.
    Remove {
        /// The peer.
        peer: PeerId,
    },
    /// The peer broke the protocol: close, and refuse it for [`BAN_DURATION`].
    Ban {
        /// The peer.
        peer: PeerId,
        /// Why, for the close frame and the log.
        reason: CloseReason,
    },
}

/// What must happen on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// Send a frame.
    Frame {
        /// On this connection.
        conn: ConnId,
        /// The frame.
        frame: Frame,
    },
    /// Dial, trying the addresses in this order; answered by `Connected` or `DialFailed`.
    Dial {
        /// Whom.
        peer: PeerId,
        /// Where.
        addresses: Vec<Address>,
    },
    /// Close a connection.
    Close {
        /// The connection.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
}

/// What others should know. For each peer `Up` and `Down` alternate, and `Moved` lies between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer is connected.
    Up {
        /// The peer.
        peer: PeerId,
        /// Where to send frames.
        conn: ConnId,
        /// Whether it is another process than the one that was connected last.
        restarted: bool,
    },
    /// Another connection carries the peer now. Frames sent on the one before may be lost.
    Moved {
        /// The peer.
        peer: PeerId,
        /// Where to send frames.
        conn: ConnId,
    },
    /// The peer is not connected any more.
    Down {
        /// The peer.
        peer: PeerId,
    },
    /// A wanted peer could not be dialled, or has no address. It stays wanted, and is dialled again.
    Unreachable {
        /// The peer.
        peer: PeerId,
    },
}

/// A connected peer, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The peer.
    pub peer: PeerId,
    /// Its connection.
    pub conn: ConnId,
    /// Whether this side dialled.
    pub dialled: bool,
    /// The address that was dialled.
    pub address: Option<Address>,
    /// What the peer runs.
    pub agent: String,
    /// When it came up.
    pub since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Conn(ConnId),
    Peer(PeerId),
    Ban(PeerId),
    Room,
    Return,
}

/// The connection machine.
#[derive(Debug)]
pub struct Neighbors {
    config: NeighborsConfig,
    random: Random,
    peers: BTreeMap<PeerId, Peer>,
    filter: Filter,
    conns: BTreeMap<ConnId, Conn>,
    conns_seen: u64,
    /// How many peers were learned of while the table was full.
    strangers_seen: u64,
    bans: BTreeMap<PeerId, Instant>,
    /// Sets of peers by what can be done with them, so that no input looks at every peer. `ready` ones can be
    /// dialled now; the next three are subsets of it.
    ready: BTreeSet<PeerId>,
    ready_wanted: BTreeSet<PeerId>,
    ready_lost: BTreeSet<PeerId>,
    bootstraps: BTreeSet<PeerId>,
    flying: BTreeSet<PeerId>,
    linked: BTreeSet<PeerId>,
    /// Linked peers that nobody needs, by the time since when.
    idle: BTreeSet<(Instant, PeerId)>,
    /// When the next of them may be let go, if room is needed.
    room_at: Option<Instant>,
    /// Until when enough neighbors make up for a bootstrap peer.
    return_at: Option<Instant>,
    /// Whether a random peer is to take the place of a bootstrap peer.
    mingles: bool,
    timers: BTreeSet<(Instant, Timer)>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Neighbors {
    /// Makes a machine that knows nobody.
    #[must_use]
    pub fn new(config: NeighborsConfig, random: Random) -> Self {
        Self {
            config,
            random,
            peers: BTreeMap::new(),
            filter: Filter::default(),
            conns: BTreeMap::new(),
            conns_seen: 0,
            strangers_seen: 0,
            bans: BTreeMap::new(),
            ready: BTreeSet::new(),
            ready_wanted: BTreeSet::new(),
            ready_lost: BTreeSet::new(),
            bootstraps: BTreeSet::new(),
            flying: BTreeSet::new(),
            linked: BTreeSet::new(),
            idle: BTreeSet::new(),
            room_at: None,
            return_at: None,
            mingles: false,
            timers: BTreeSet::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        let now = now.mono;
        match input {
            Input::Connected {
                conn,
                peer,
                dialled,
                address,
            } => {
                self.on_connected(now, conn, peer, dialled, address);
            }
            Input::Hello { conn, hello } => self.on_hello(now, conn, hello),
            Input::Disconnected { conn, reason } => self.on_disconnected(now, conn, reason),
            Input::DialFailed { peer, permanent } => self.on_dial_failed(now, peer, permanent),
            Input::Learned {
                peer,
                addresses,
                bootstrap,
            } => self.on_learned(peer, addresses, bootstrap),
            Input::Candidate { peer, addresses } => self.on_candidate(peer, addresses),
            Input::Want { peer } => self.on_want(peer),
            Input::Unwant { peer } => self.on_unwant(now, peer),
            Input::Remove { peer } => self.on_remove(now, peer),
            Input::Ban { peer, reason } => self.ban(now, peer, reason),
        }
        self.make_room(now);
        self.dial_more(now);
    }

    /// Acts on the deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        let now = now.mono;
        while let Some(&(at, timer)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Conn(conn) => self.on_hello_timeout(now, conn),
                Timer::Peer(peer) => self.on_peer_timeout(now, peer),
                Timer::Ban(peer) => {
                    self.bans.remove(&peer);
                    self.reindex(peer);
                }
                Timer::Room => self.room_at = None,
                Timer::Return => self.return_at = None,
            }
        }
        self.make_room(now);
        self.dial_more(now);
    }

    /// Returns what must now happen on the network.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Returns what others should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Tells whether a peer is refused because it broke the protocol.
    #[must_use]
    pub fn is_banned(&self, peer: &PeerId) -> bool {
        self.bans.contains_key(peer)
    }

    /// Returns the connection to send frames to `peer` on, while it is up.
    #[must_use]
    pub fn connection(&self, peer: PeerId) -> Option<ConnId> {
        self.peers.get(&peer)?.current
    }

    /// Returns who is at the other end of `conn`, once its Hello has arrived: other frames before that break the
    /// protocol. [CONN-1]
    #[must_use]
    pub fn peer_of(&self, conn: ConnId) -> Option<PeerId> {
        self.conns
            .get(&conn)
            .filter(|c| c.hello.is_some())
            .map(|c| c.peer)
    }

    /// Returns the connected peers.
    pub fn links(&self) -> impl Iterator<Item = Link> + '_ {
        self.linked.iter().filter_map(|id| {
            let peer = self.peers.get(id)?;
            let conn = self.conns.get(&peer.current?)?;
            Some(Link {
                peer: *id,
                conn: conn.id,
                dialled: conn.dialled,
                address: conn.address.clone(),
                agent: conn
                    .hello
                    .as_ref()
                    .map(|hello| hello.agent.0.clone())
                    .unwrap_or_default(),
                since: peer.up_since,
            })
        })
    }

    /// Returns how many peers are known, connected or not.
    #[must_use]
    pub fn known(&self) -> usize {
        self.peers.len()
    }

    /// Returns how many peers are known, banned and being dialled.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.peers.len(), self.bans.len(), self.flying.len())
    }

    fn hello(&self) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            features: 0,
            incarnation: self.config.incarnation,
            agent: Text::truncating(&self.config.agent),
        }
    }
}

#[cfg(test)]
mod tests;
