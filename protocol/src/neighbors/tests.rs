//! The connection machine, alone and against another one.

use std::format;
use std::vec::Vec;

use super::*;
use crate::UnixMillis;

mod race;
mod room;

fn at(millis: u64) -> Now {
    Now {
        mono: Instant(millis * 1_000_000),
        wall: UnixMillis(millis),
    }
}

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn random(n: u8) -> Random {
    Random::from_seed([n; 32])
}

fn config(local: u8, incarnation: u64) -> NeighborsConfig {
    NeighborsConfig::new(peer(local), incarnation, "test")
}

fn addresses(n: u16) -> Vec<Address> {
    Vec::from([Address::new(format!("/ip4/192.0.2.1/udp/{n}/quic-v1")).unwrap()])
}

fn hello(incarnation: u64) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        features: 0,
        incarnation,
        agent: Text::truncating("other"),
    }
}

/// A machine with a clock, and what it said since the last look.
struct Rig {
    machine: Neighbors,
    now: Now,
}

impl Rig {
    fn new(config: NeighborsConfig) -> Self {
        Self {
            machine: Neighbors::new(config, random(7)),
            now: at(0),
        }
    }

    fn input(&mut self, input: Input) {
        self.machine.handle_input(self.now, input);
    }

    fn learn(&mut self, n: u8, bootstrap: bool) {
        self.input(Input::Learned {
            peer: peer(n),
            addresses: addresses(n.into()),
            bootstrap,
        });
    }

    fn connect(&mut self, conn: u64, n: u8, dialled: bool) {
        self.input(Input::Connected {
            conn: ConnId(conn),
            peer: peer(n),
            dialled,
            address: None,
        });
    }

    fn greet(&mut self, conn: u64, incarnation: u64) {
        self.input(Input::Hello {
            conn: ConnId(conn),
            hello: hello(incarnation),
        });
    }

    fn bring_up(&mut self, conn: u64, n: u8, dialled: bool) {
        self.connect(conn, n, dialled);
        self.greet(conn, 1);
    }

    fn lose(&mut self, conn: u64, reason: Option<CloseReason>) {
        self.input(Input::Disconnected {
            conn: ConnId(conn),
            reason,
        });
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, duration: Duration) {
        let end = self.now.mono.after(duration);
        while let Some(due) = self.machine.poll_timeout().filter(|due| *due <= end) {
            self.now.mono = self.now.mono.max(due);
            self.machine.handle_timeout(self.now);
        }
        self.now.mono = end;
        self.machine.handle_timeout(self.now);
    }

    fn events(&mut self) -> Vec<Event> {
        core::iter::from_fn(|| self.machine.poll_event()).collect()
    }

    fn transmits(&mut self) -> Vec<Transmit> {
        core::iter::from_fn(|| self.machine.poll_transmit()).collect()
    }

    fn dials(&mut self) -> Vec<PeerId> {
        let dialled = |transmit| match transmit {
            Transmit::Dial { peer, .. } => Some(peer),
            Transmit::Frame { .. } | Transmit::Close { .. } => None,
        };
        self.transmits().into_iter().filter_map(dialled).collect()
    }

    fn closes(&mut self) -> Vec<(u64, CloseReason)> {
        let closed = |transmit| match transmit {
            Transmit::Close { conn, reason } => Some((conn.0, reason)),
            Transmit::Frame { .. } | Transmit::Dial { .. } => None,
        };
        self.transmits().into_iter().filter_map(closed).collect()
    }
}

#[test]
fn every_close_reason_has_the_code_of_its_place() {
    for (code, reason) in CloseReason::ALL.into_iter().enumerate() {
        assert_eq!(reason.code() as usize, code);
        assert_eq!(CloseReason::from_code(code as u64), Some(reason));
    }
    assert_eq!(CloseReason::from_code(CloseReason::ALL.len() as u64), None);
}

#[test]
fn a_connection_counts_once_its_hello_has_arrived() {
    let mut rig = Rig::new(config(1, 9));
    rig.connect(1, 2, false);
    let said = rig.transmits();
    assert!(
        matches!(&said[..], [Transmit::Frame { conn: ConnId(1), frame: Frame::Hello(h) }] if h.incarnation == 9)
    );
    assert_eq!((rig.events(), rig.machine.peer_of(ConnId(1))), (Vec::new(), None));
    rig.greet(1, 1);
    assert_eq!(
        rig.events(),
        [Event::Up {
            peer: peer(2),
            conn: ConnId(1),
            restarted: false
        }]
    );
    assert_eq!(rig.machine.peer_of(ConnId(1)), Some(peer(2)));
    assert_eq!(rig.machine.links().count(), 1);
}

#[test]
fn a_connection_without_a_hello_is_closed_in_time() {
    // [CONN-3]
    let mut rig = Rig::new(config(1, 9));
    rig.connect(1, 2, false);
    rig.pass(HELLO_TIMEOUT - Duration::from_millis(1));
    assert_eq!(rig.closes(), []);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.closes(), [(1, CloseReason::HelloTimeout)]);
    assert_eq!(
        (rig.events(), rig.machine.known(), rig.machine.poll_timeout()),
        (Vec::new(), 0, None)
    );
}

#[test]
fn a_second_hello_is_a_violation_and_bans() {
    // [CONN-1]
    let mut rig = Rig::new(config(1, 9));
    rig.bring_up(1, 2, false);
    rig.greet(1, 1);
    assert_eq!(rig.closes(), [(1, CloseReason::Violation)]);
    rig.connect(2, 2, false);
    assert_eq!(rig.closes(), [(2, CloseReason::Banned)]);
    rig.pass(BAN_DURATION);
    rig.bring_up(3, 2, false);
    assert!(rig.machine.connection(peer(2)).is_some());
}

#[test]
fn version_zero_is_incompatible() {
    // [CONN-2]
    let mut rig = Rig::new(config(1, 9));
    rig.connect(1, 2, false);
    rig.input(Input::Hello {
        conn: ConnId(1),
        hello: Hello {
            version: 0,
            ..hello(1)
        },
    });
    assert_eq!(rig.closes(), [(1, CloseReason::Incompatible)]);
}

#[test]
fn a_restarted_peer_is_known_at_once_and_its_old_connections_are_closed() {
    // [CONN-6]
    let mut rig = Rig::new(config(1, 9));
    rig.bring_up(1, 2, true);
    rig.events();
    rig.connect(2, 2, false);
    rig.transmits();
    rig.greet(2, 2);
    assert_eq!(rig.closes(), [(1, CloseReason::Restarted)]);
    let up = Event::Up {
        peer: peer(2),
        conn: ConnId(2),
        restarted: true,
    };
    assert_eq!(rig.events(), [Event::Down { peer: peer(2) }, up]);
    // What the old process said is read late.
    rig.lose(2, None);
    rig.connect(3, 2, false);
    rig.connect(4, 2, false);
    rig.greet(4, 3);
    rig.transmits();
    rig.greet(3, 2);
    assert_eq!(rig.closes(), [(3, CloseReason::Restarted)]);
    assert_eq!(rig.machine.connection(peer(2)), Some(ConnId(4)));
}

#[test]
fn a_lost_neighbor_is_dialled_again_at_once_and_then_ever_less_often() {
    let mut rig = Rig::new(config(1, 9));
    rig.learn(2, false);
    assert_eq!(rig.dials(), [peer(2)]);
    rig.bring_up(1, 2, true);
    rig.pass(STABLE_AFTER);
    rig.dials();
    rig.lose(1, None);
    rig.pass(Duration::from_millis(70));
    assert_eq!(rig.dials(), [peer(2)]);
    let mut dials = 0;
    for _ in 0..600 {
        rig.input(Input::DialFailed {
            peer: peer(2),
            permanent: false,
        });
        rig.pass(Duration::from_secs(1));
        dials += rig.dials().len();
    }
    assert!((20..=40).contains(&dials), "{dials} dials in ten minutes");
}

#[test]
fn a_peer_that_leaves_on_purpose_is_not_dialled_at_once() {
    for reason in [CloseReason::Idle, CloseReason::Banned, CloseReason::Incompatible] {
        let mut rig = Rig::new(config(1, 9));
        rig.learn(2, false);
        rig.bring_up(1, 2, true);
        rig.pass(STABLE_AFTER);
        rig.dials();
        rig.lose(1, Some(reason));
        rig.pass(Duration::from_secs(20));
        assert_eq!(rig.dials(), [], "{reason}");
        rig.pass(Duration::from_secs(20));
        assert_eq!(rig.dials(), [peer(2)], "{reason}");
    }
}

#[test]
fn a_peer_that_is_told_of_its_revocation_asks_soon_whether_it_may_come_back_and_then_waits() {
    // [CONN-8]
    let mut rig = Rig::new(config(1, 9));
    rig.learn(2, false);
    rig.bring_up(1, 2, true);
    rig.pass(STABLE_AFTER);
    rig.dials();
    rig.lose(1, Some(CloseReason::Revoked));
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.dials(), [peer(2)]);
    rig.input(Input::DialFailed {
        peer: peer(2),
        permanent: true,
    });
    rig.pass(Duration::from_secs(20));
    assert_eq!(rig.dials(), []);
}

#[test]
fn a_connection_drains_unless_a_fault_or_the_end_of_a_process_closes_it() {
    // [CONN-9]
    let drains = |reason: &CloseReason| reason.drains();
    let which: Vec<CloseReason> = CloseReason::ALL.into_iter().filter(drains).collect();
    assert_eq!(
        which,
        [
            CloseReason::Duplicate,
            CloseReason::Idle,
            CloseReason::LimitReached
        ]
    );
}

#[test]
fn a_wanted_peer_is_dialled_now_and_reported_when_it_cannot_be() {
    let mut rig = Rig::new(config(1, 9));
    rig.input(Input::Want { peer: peer(2) });
    assert_eq!(rig.events(), [Event::Unreachable { peer: peer(2) }]);
    rig.learn(2, false);
    assert_eq!(rig.dials(), [peer(2)]);
    rig.input(Input::DialFailed {
        peer: peer(2),
        permanent: true,
    });
    assert_eq!(rig.events(), [Event::Unreachable { peer: peer(2) }]);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.dials(), []);
    rig.input(Input::Want { peer: peer(2) });
    assert_eq!(rig.dials(), [peer(2)], "the pause is skipped once");
}

#[test]
fn connections_beyond_the_limit_are_refused_unless_wanted() {
    // [CONN-7]
    let mut rig = Rig::new(config(1, 9));
    for n in 0..32 {
        rig.bring_up(n, n as u8 + 2, false);
    }
    rig.transmits();
    rig.connect(100, 100, false);
    assert_eq!(rig.closes(), [(100, CloseReason::LimitReached)]);
    rig.input(Input::Want { peer: peer(101) });
    rig.connect(101, 101, false);
    assert_eq!(
        rig.closes(),
        [(31, CloseReason::LimitReached)],
        "the newest unwanted one makes room"
    );
    rig.connect(102, 2, false);
    assert_eq!(rig.closes(), [], "a linked peer may come a second time");
}

#[test]
fn an_idle_connection_beyond_the_degree_is_closed_by_its_dialler() {
    let mut rig = Rig::new(config(1, 9));
    for n in 0..12 {
        rig.bring_up(n, n as u8 + 2, false);
    }
    rig.learn(50, false);
    rig.input(Input::Want { peer: peer(50) });
    assert_eq!(rig.dials(), [peer(50)]);
    rig.bring_up(50, 50, true);
    rig.transmits();
    rig.pass(IDLE_TIMEOUT * 2);
    assert_eq!(rig.closes(), []);
    rig.input(Input::Unwant { peer: peer(50) });
    rig.pass(IDLE_TIMEOUT - Duration::from_millis(1));
    assert_eq!(rig.closes(), []);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.closes(), [(50, CloseReason::Idle)]);
}

#[test]
fn one_bootstrap_peer_is_always_kept() {
    let mut rig = Rig::new(config(1, 9));
    for n in 0..8 {
        rig.bring_up(n, n as u8 + 10, false);
    }
    rig.learn(2, true);
    rig.learn(3, true);
    rig.learn(4, false);
    let dials = rig.dials();
    assert_eq!(dials.len(), 1);
    assert!([peer(2), peer(3)].contains(&dials[0]));
}

#[test]
fn a_removed_peer_is_closed_and_never_dialled() {
    let mut rig = Rig::new(config(1, 9));
    rig.learn(2, true);
    rig.bring_up(1, 2, true);
    rig.transmits();
    rig.input(Input::Remove { peer: peer(2) });
    assert_eq!(rig.closes(), [(1, CloseReason::Revoked)]);
    rig.pass(Duration::from_secs(3600));
    assert_eq!((rig.dials(), rig.machine.known()), (Vec::new(), 0));
}

fn named(n: u64) -> PeerId {
    PeerId(*blake3::hash(&n.to_be_bytes()).as_bytes())
}

#[test]
fn many_known_peers_are_dialled_a_few_at_a_time() {
    let mut rig = Rig::new(config(1, 9));
    for n in 0..PEERS_KNOWN_MAX as u64 + 10 {
        rig.input(Input::Learned {
            peer: named(n),
            addresses: addresses(1),
            bootstrap: false,
        });
    }
    assert_eq!(rig.machine.known(), PEERS_KNOWN_MAX);
    let mut flying = rig.dials();
    assert_eq!(flying.len(), DIALS_MAX);
    for _ in DIALS_MAX..PEERS_KNOWN_MAX {
        rig.input(Input::DialFailed {
            peer: flying.remove(0),
            permanent: false,
        });
        flying.extend(rig.dials());
        assert_eq!(flying.len(), DIALS_MAX);
    }
}

#[test]
fn of_more_peers_than_are_kept_everyone_is_as_likely_to_be() {
    let mut rig = Rig::new(config(1, 9));
    let count = 20 * PEERS_KNOWN_MAX as u64;
    for n in 0..count {
        rig.input(Input::Learned {
            peer: named(n),
            addresses: addresses(1),
            bootstrap: false,
        });
    }
    let kept: Vec<u64> = (0..count)
        .filter(|n| rig.machine.peers.contains_key(&named(*n)))
        .collect();
    assert_eq!(kept.len(), PEERS_KNOWN_MAX);
    // Those that are dialled stay, the others are drawn: about half of them come from each half. Three in eight are as
    // far from that as three in four.
    let early = kept.iter().filter(|n| **n < count / 2).count();
    assert!(
        (PEERS_KNOWN_MAX * 3 / 8..=PEERS_KNOWN_MAX * 3 / 4).contains(&early),
        "{early} of {} come from the first half",
        kept.len()
    );
}

#[test]
fn a_machine_that_has_nobody_left_to_dial_takes_what_the_directory_offers() {
    let mut rig = Rig::new(config(1, 9));
    for n in 0..PEERS_KNOWN_MAX as u64 {
        rig.input(Input::Learned {
            peer: named(n),
            addresses: addresses(1),
            bootstrap: false,
        });
    }
    assert!(!rig.machine.is_hungry());
    let mut flying = rig.dials();
    while let Some(peer) = flying.pop() {
        rig.input(Input::DialFailed {
            peer,
            permanent: false,
        });
        flying.extend(rig.dials());
    }
    assert!(rig.machine.is_hungry(), "everybody known waits after a failure");
    for n in 0..CANDIDATES as u64 {
        let candidate = Input::Candidate {
            peer: named(1_000_000 + n),
            addresses: addresses(1),
        };
        rig.input(candidate);
    }
    assert_eq!(rig.dials().len(), CANDIDATES);
    assert_eq!(
        rig.machine.known(),
        PEERS_KNOWN_MAX,
        "they took the place of others"
    );
    assert!(!rig.machine.is_hungry());
}
