//! Room at a bootstrap peer: who is let go, and how those come back.

use super::*;

/// A bootstrap peer for 16 others, which keeps room for two.
fn bootstrap() -> Rig {
    Rig::new(NeighborsConfig {
        connections_max: 16,
        bootstrap: true,
        ..config(1, 9)
    })
}

/// A peer with eight neighbors that the bootstrap peer 2 has just let go, and that has heard of nobody else.
fn let_go() -> Rig {
    let mut rig = Rig::new(config(1, 9));
    rig.learn(2, true);
    rig.bring_up(2, 2, true);
    for n in 10..18 {
        rig.bring_up(n, n as u8, false);
    }
    rig.pass(ROOM_STAY);
    rig.transmits();
    rig.lose(2, Some(CloseReason::Idle));
    rig
}

#[test]
fn a_bootstrap_peer_near_its_limit_lets_those_go_that_have_been_idle_longest() {
    // [CONN-11]
    let mut rig = bootstrap();
    for n in 0..14 {
        rig.bring_up(n, n as u8 + 2, false);
        rig.pass(Duration::from_secs(1));
    }
    rig.input(Input::Want { peer: peer(2) });
    rig.input(Input::Want { peer: peer(3) });
    rig.input(Input::Unwant { peer: peer(3) });
    rig.pass(IDLE_TIMEOUT * 3);
    assert_eq!(rig.closes(), [], "seven eighths of its places are taken");
    rig.bring_up(20, 20, false);
    rig.bring_up(21, 21, false);
    assert_eq!(
        rig.closes(),
        [(2, CloseReason::Idle), (3, CloseReason::Idle)],
        "the first one is needed, and the second one was until a while ago"
    );
    assert_eq!(rig.machine.links().count(), 14);
}

#[test]
fn newcomers_to_a_full_bootstrap_peer_get_in_once_others_have_stayed_for_a_while() {
    // [CONN-7] [CONN-11]
    let mut rig = bootstrap();
    for n in 0..16 {
        rig.bring_up(n, n as u8 + 2, false);
    }
    rig.transmits();
    rig.connect(20, 20, false);
    assert_eq!(rig.closes(), [(20, CloseReason::LimitReached)]);
    rig.pass(ROOM_STAY_MIN - Duration::from_millis(1));
    assert_eq!(rig.closes(), []);
    rig.pass(Duration::from_millis(1));
    assert_eq!(
        rig.closes().len(),
        1,
        "with a place free again they may stay for longer"
    );
    rig.pass(ROOM_STAY / 2 - ROOM_STAY_MIN - Duration::from_millis(1));
    assert_eq!(rig.closes(), []);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.closes().len(), 1);
    for n in 20..60 {
        rig.bring_up(n, n as u8, false);
        let refused = |close: &(u64, CloseReason)| close.1 == CloseReason::LimitReached;
        assert!(!rig.closes().iter().any(refused), "newcomer {n} was refused");
        rig.pass(ROOM_STAY / 2);
    }
}

#[test]
fn a_bootstrap_peer_holds_on_to_other_bootstrap_peers() {
    let mut rig = bootstrap();
    rig.learn(2, true);
    for n in 0..16 {
        rig.bring_up(n, n as u8 + 2, n == 0);
    }
    rig.transmits();
    rig.pass(ROOM_STAY);
    assert_eq!(
        rig.closes(),
        [(1, CloseReason::Idle), (2, CloseReason::Idle)],
        "the first one is a bootstrap peer"
    );
}

#[test]
fn an_ordinary_peer_lets_nobody_go_that_has_dialled_it() {
    let mut rig = Rig::new(config(1, 9));
    for n in 0..32 {
        rig.bring_up(n, n as u8 + 2, false);
    }
    rig.transmits();
    rig.pass(IDLE_TIMEOUT * 3);
    assert_eq!(rig.closes(), []);
}

#[test]
fn a_peer_that_was_let_go_comes_back_rarely_while_it_has_enough_neighbors() {
    // [CONN-11]
    let mut rig = let_go();
    assert_eq!(rig.dials(), []);
    rig.pass(BOOTSTRAP_PAUSE * 3 / 4 - Duration::from_secs(1));
    assert_eq!(rig.dials(), []);
    let back = (0..302).find(|_| {
        rig.pass(Duration::from_secs(1));
        rig.dials() == [peer(2)]
    });
    assert!(back.is_some(), "it stays away");
    // What is lost to a fault is dialled at once, as ever.
    rig.bring_up(3, 2, true);
    rig.pass(STABLE_AFTER);
    rig.dials();
    rig.lose(3, None);
    rig.pass(Duration::from_millis(70));
    assert_eq!(rig.dials(), [peer(2)]);
}

#[test]
fn a_peer_that_was_let_go_comes_back_soon_when_it_loses_a_neighbor() {
    // [CONN-11]
    let mut rig = let_go();
    rig.pass(DIAL_BACKOFF_MAX * 2);
    assert_eq!(rig.dials(), []);
    rig.lose(10, None);
    assert_eq!(rig.dials(), [peer(2)]);
}

#[test]
fn a_peer_that_was_let_go_connects_to_another_one_instead() {
    // [CONN-11]
    let mut rig = let_go();
    rig.learn(3, true);
    rig.learn(30, false);
    rig.learn(31, false);
    assert_eq!(rig.dials(), [peer(30)]);
    rig.bring_up(30, 30, true);
    rig.pass(DIAL_BACKOFF_MAX * 2);
    assert_eq!(rig.dials(), [], "once is enough");
}
