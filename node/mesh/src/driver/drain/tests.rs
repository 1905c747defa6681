//! Real loops on loopback whose connections are closed while requests are open on them.

use hyperfabric_protocol::SigningKey;
use hyperfabric_protocol::fabric::{FabricConfig, Purpose as Use};

use super::*;
use crate::connection::CloseCause;
use crate::driver::Message;
use crate::driver::tests::{POLL, Peer, config, start, until};
use crate::endpoint::tests::{Peer as Raw, connect, setup, within};
use crate::streams::{BiStream, StreamError, StreamKind};

const QUESTION: &[u8] = b"question";
const ANSWER: &[u8] = b"answer";

/// Two members, the one with the smaller id first.
fn two() -> [Peer; 2] {
    let mut keys = [1, 2].map(|seed| SigningKey::from_bytes(&[seed; 32]));
    keys.sort_by_key(SigningKey::peer_id);
    keys.map(|key| start(config(key)))
}

impl Peer {
    /// Asks on a connection, and returns both ends of the stream when the question has arrived at `other`.
    async fn ask(&self, connection: &Connection, other: &mut Self) -> [BiStream; 2] {
        let mut asked = connection.open_bi(StreamKind::Request).await.unwrap();
        asked.send.write_all(QUESTION).await.unwrap();
        asked.send.finish();
        let mut taken = within(other.requests.recv()).await.unwrap();
        assert_eq!(within(taken.recv.read_to_end(100)).await.unwrap(), QUESTION);
        [asked, taken]
    }
}

async fn answer([mut asked, mut taken]: [BiStream; 2]) {
    taken.send.write_all(ANSWER).await.unwrap();
    taken.send.finish();
    assert_eq!(within(asked.recv.read_to_end(100)).await.unwrap(), ANSWER);
}

/// Why a connection has ended, whoever said it.
async fn reason(connection: &Connection) -> CloseReason {
    match within(connection.closed()).await {
        CloseCause::Local(reason)
        | CloseCause::ClosedByPeer {
            reason: Some(reason), ..
        } => reason,
        other => panic!("{other}"),
    }
}

/// Dials a second connection from the first peer, as if both had dialled at once, and returns that of the second one
/// which it replaces, at both of its ends.
async fn race(small: &Peer, large: &Peer) -> [Connection; 2] {
    let old = large.meet(small).await;
    let at_small = small.handle.connection(&large.id()).unwrap();
    let dialled = small
        .handle
        .endpoint()
        .dial(large.id(), large.socket(), Purpose::Prompt)
        .await;
    let message = Message::Dialled {
        peer: large.id(),
        purpose: Use::Prompt,
        result: Ok((dialled.unwrap(), large.address())),
    };
    assert!(small.handle.send(message).await);
    [old, at_small]
}

async fn moved(from: &Peer, to: &Peer, old: &Connection) {
    let peer = to.id();
    until(|| from.handle.connection(&peer).is_some_and(|c| c.id() != old.id())).await;
}

#[tokio::test]
async fn requests_both_ways_survive_the_close_of_a_duplicate_and_new_ones_take_the_other_connection() {
    let [mut small, mut large] = two();
    let old = large.meet(&small).await;
    let at_small = small.handle.connection(&large.id()).unwrap();
    let to_small = large.ask(&old, &mut small).await;
    let to_large = small.ask(&at_small, &mut large).await;

    race(&small, &large).await;
    moved(&large, &small, &old).await;
    moved(&small, &large, &at_small).await;
    for connection in [&old, &at_small] {
        assert_eq!(connection.close_cause(), None);
        assert!(!connection.is_open());
        let late = connection.open_bi(StreamKind::Request).await;
        assert_eq!(late.unwrap_err(), StreamError::ConnectionLost);
        assert_eq!(connection.echo(b"late").await, Err(StreamError::ConnectionLost));
    }
    let next = large.handle.connection(&small.id()).unwrap();
    answer(large.ask(&next, &mut small).await).await;

    answer(to_small).await;
    assert_eq!(
        old.close_cause(),
        None,
        "the other side still waits for an answer"
    );
    answer(to_large).await;
    assert_eq!(reason(&old).await, CloseReason::Duplicate);
    assert_eq!(reason(&at_small).await, CloseReason::Duplicate);
}

#[tokio::test]
async fn a_duplicate_on_which_nothing_is_asked_is_gone_at_once() {
    let [small, large] = two();
    let [old, at_small] = race(&small, &large).await;
    assert_eq!(reason(&old).await, CloseReason::Duplicate);
    assert_eq!(reason(&at_small).await, CloseReason::Duplicate);
}

#[tokio::test]
async fn a_request_survives_that_the_other_side_makes_room_for_somebody_else() {
    let mut full = start(FabricConfig {
        connections_max: 1,
        ..config(SigningKey::from_bytes(&[3; 32]))
    });
    let [asker, wanted] = two();
    let connection = asker.meet(&full).await;
    let asked = asker.ask(&connection, &mut full).await;

    full.meet(&wanted).await;
    let peer = full.id();
    until(|| asker.handle.connection(&peer).is_none()).await;
    assert_eq!((connection.close_cause(), connection.is_open()), (None, false));
    answer(asked).await;
    assert_eq!(reason(&connection).await, CloseReason::LimitReached);
}

#[tokio::test]
async fn whoever_is_cut_off_loses_what_drains_at_once() {
    let [mut small, mut large] = two();
    let old = large.meet(&small).await;
    let at_small = small.handle.connection(&large.id()).unwrap();
    let _open = [
        large.ask(&old, &mut small).await,
        small.ask(&at_small, &mut large).await,
    ];
    race(&small, &large).await;
    moved(&large, &small, &old).await;
    large.handle.cut_off(&small.id(), CloseReason::Revoked);
    assert_eq!(reason(&old).await, CloseReason::Revoked);
}

#[tokio::test]
async fn a_peer_that_never_answers_or_never_lets_go_is_left_when_the_time_is_over() {
    let (a, mut b) = (setup(1).start(), setup(2).start());
    for unanswered in [true, false] {
        let [dialled, _accepted] = connect(&a, &mut b, Purpose::Prompt).await;
        let control = dialled.open_control().await.unwrap();
        let _asked = if unanswered {
            dialled.core().life.other_is_done();
            Some(dialled.open_bi(StreamKind::Request).await.unwrap())
        } else {
            None
        };
        within(drain(&dialled, control.sender, CloseReason::Idle, POLL)).await;
        assert_eq!(dialled.close_cause(), Some(CloseCause::Local(CloseReason::Idle)));
    }
}

#[tokio::test]
async fn one_connection_of_a_peer_drains_and_no_more_than_the_bound_in_all() {
    let mut hub = setup(255).start();
    let mut draining = Draining::default();
    let mut peers: Vec<(Raw, Connection)> = Vec::new();
    for seed in 0..=DRAINING_MAX {
        let raw = setup(u8::try_from(seed).unwrap()).start();
        let [dialled, accepted] = connect(&raw, &mut hub, Purpose::Prompt).await;
        assert_eq!(draining.begin(&accepted), seed < DRAINING_MAX, "{seed}");
        peers.push((raw, dialled));
    }
    let (last, ended) = &peers[DRAINING_MAX - 1];
    ended.close(CloseReason::Idle);
    let [_dialled, accepted] = connect(last, &mut hub, Purpose::Prompt).await;
    until(|| draining.begin(&accepted)).await;

    // With room for others, there is none for a second one of the same peer.
    let first = draining.0.remove(0);
    let [_dialled, accepted] = connect(last, &mut hub, Purpose::Prompt).await;
    assert!(!draining.begin(&accepted));
    assert!(draining.begin(&first));
}
