//! What a peer does on a single connection: beginnings and ends that concern more than one of its machines.

use std::vec::Vec;

use super::*;
use crate::frame::{Hello, PROTOCOL_VERSION};
use crate::{NodeId, UnixMillis};

const CONN: ConnId = ConnId(1);

fn now() -> Now {
    Now {
        mono: Instant(0),
        wall: UnixMillis(1_700_000_000_000),
    }
}

/// A peer of an open mesh, connected to another one by [`CONN`], over which nothing has come yet.
struct Rig {
    fabric: Fabric,
    other: PeerId,
}

fn member(seed: u8) -> (SigningKey, crate::cert::MeshRoot, Membership) {
    let root = crate::cert::MeshRoot::Open { name: "open".into() };
    let key = SigningKey::from_bytes(&[seed; 32]);
    let name = NodeId::new(alloc::format!("member{seed}")).unwrap();
    let membership = Membership::open(&root, &key, name, now().wall);
    (key, root, membership)
}

impl Rig {
    fn new(purpose: Purpose) -> Self {
        let (key, root, membership) = member(1);
        let mut fabric = Fabric::new(
            now(),
            FabricConfig {
                key,
                root: Some(root),
                membership: Some(membership),
                admitter: None,
                tickets: Vec::new(),
                grants: Vec::new(),
                revocations: Vec::new(),
                incarnation: 1,
                agent: "test".into(),
                bootstrap: false,
                degree_min: 1,
                degree_max: 1,
                connections_max: 8,
                transfers_max: 1,
                seed: [1; 32],
            },
        );
        let (other, _, shown) = member(2);
        let other = other.peer_id();
        let connected = Input::Connected {
            conn: CONN,
            peer: other,
            purpose,
            dialled: false,
            address: None,
            membership: Some(shown.to_bytes().into()),
        };
        fabric.handle_input(now(), connected);
        Self { fabric, other }
    }

    fn says(&mut self, frame: &Frame) {
        let bytes = frame.to_bytes();
        self.fabric
            .handle_input(now(), Input::Frame { conn: CONN, bytes });
    }

    fn greets(&mut self) {
        self.says(&Frame::Hello(Hello {
            version: PROTOCOL_VERSION,
            features: 0,
            incarnation: 2,
            agent: crate::cbor::Text::truncating("other"),
        }));
    }

    fn closes(&mut self) -> Vec<CloseReason> {
        let closed = |transmit| match transmit {
            Transmit::Close { conn: CONN, reason } => Some(reason),
            _ => None,
        };
        core::iter::from_fn(|| self.fabric.poll_transmit())
            .filter_map(closed)
            .collect()
    }

    fn violation(&mut self) -> Option<Misbehaved> {
        core::iter::from_fn(|| self.fabric.poll_event()).find_map(|event| match event {
            Event::Misbehaved { violation, .. } | Event::JoinMisbehaved { violation, .. } => Some(violation),
            _ => None,
        })
    }
}

#[test]
fn a_connection_that_the_other_side_leaves_is_forgotten_at_once_and_left_for_the_same_reason() {
    // [CONN-9]
    let codes = (0..12).filter(|code| Goodbye { code: *code }.reason().is_some());
    assert_eq!(codes.collect::<Vec<_>>(), [1, 3, 4]);
    for (code, reason) in [
        (1, CloseReason::Duplicate),
        (4, CloseReason::LimitReached),
        // A fault is no reason to part so, and what nobody knows is none, either.
        (8, CloseReason::Idle),
        (77, CloseReason::Idle),
    ] {
        let mut rig = Rig::new(Purpose::Prompt);
        rig.greets();
        assert_eq!(rig.fabric.connection(&rig.other), Some(CONN));
        rig.closes();
        rig.says(&Frame::Goodbye(Goodbye { code }));
        assert_eq!(rig.fabric.connection(&rig.other), None, "{code}");
        assert_eq!(rig.closes(), [reason]);
        // What comes behind it is not heard, not even a violation.
        rig.greets();
        assert_eq!((rig.closes(), rig.violation()), (Vec::new(), None));
    }
}

#[test]
fn a_goodbye_before_the_hello_or_on_a_join_connection_is_a_violation() {
    let goodbye = Frame::Goodbye(Goodbye::new(CloseReason::Duplicate));
    let mut rig = Rig::new(Purpose::Prompt);
    rig.says(&goodbye);
    assert_eq!(rig.violation(), Some(Misbehaved::OutOfOrder));
    let mut rig = Rig::new(Purpose::Join);
    rig.says(&goodbye);
    assert_eq!(rig.violation(), Some(Misbehaved::OutOfPlace));
}

#[test]
fn a_record_counts_for_an_hour_and_no_longer_than_the_membership_in_it() {
    // [DIR-4]
    let mut rig = Rig::new(Purpose::Prompt);
    let end = rig.fabric.admission().own().unwrap().1.not_after;
    let end = end.after(crate::cert::CLOCK_SKEW_MAX);
    let mut ends = |left: u64| {
        let wall = end.before(Duration::from_secs(left));
        let addresses = alloc::vec![Address::new(alloc::format!("/left/{left}")).unwrap()];
        let at = Now { wall, ..now() };
        rig.fabric.handle_input(at, Input::Addresses(addresses));
        let record = rig.fabric.own_record().unwrap().clone();
        flood::Version::read(record).unwrap().expires()
    };
    let an_hour_later = end.before(Duration::from_secs(3600));
    assert_eq!(ends(7200), an_hour_later);
    assert_eq!(ends(3601), end.before(Duration::from_secs(1)));
    assert_eq!(ends(60), end);
    // Over: what was published last stays as it is, and nothing is due for it.
    assert_eq!(ends(0), end);
    let later = Now {
        mono: Instant(0).after(Duration::from_secs(2 * 3600)),
        wall: end,
    };
    rig.fabric.handle_timeout(later);
    assert!(rig.fabric.poll_timeout().unwrap() > later.mono);
}
