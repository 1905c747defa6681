//! Two endpoints on loopback: who is let in, who is told what, and what becomes of connections.

use std::collections::BTreeSet;
use std::sync::mpsc as std_mpsc;

use super::*;
use crate::connection::{CloseCause, Side};
use crate::tls::{Leaf, Purpose, Refusal};
use crate::wire::{Impaired, Impairment, ImpairmentHandle, KernelWire};

/// Long enough for a loaded machine; no test waits for it in vain.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Takes the membership for the verdict: `member` is let in, the word of a refusal is refused so.
#[derive(Default)]
pub(crate) struct TestGate {
    pub(crate) open: bool,
    pub(crate) banned: Mutex<BTreeSet<PeerId>>,
}

impl Gate for TestGate {
    fn admit(&self, peer: &PeerId, membership: Option<&[u8]>, purpose: Purpose) -> Result<(), Refusal> {
        if lock(&self.banned).contains(peer) {
            return Err(Refusal::Banned);
        }
        if self.open || purpose == Purpose::Join {
            return Ok(());
        }
        let told = |word: &[u8]| match word {
            b"other-mesh" => Err(Refusal::OtherMesh),
            b"expired" => Err(Refusal::Expired),
            b"not-yet-valid" => Err(Refusal::NotYetValid),
            b"revoked" => Err(Refusal::Revoked),
            b"member" => Ok(()),
            _ => Err(Refusal::Forged),
        };
        membership.map_or(Err(Refusal::NotAMember), told)
    }
}

pub(crate) struct Peer {
    pub(crate) endpoint: Endpoint,
    pub(crate) accepted: mpsc::Receiver<Connection>,
    pub(crate) leaf: LeafCell,
    pub(crate) key: SigningKey,
    pub(crate) network: ImpairmentHandle,
}

pub(crate) struct Setup {
    pub(crate) seed: u8,
    pub(crate) membership: Option<&'static [u8]>,
    pub(crate) gate: TestGate,
    pub(crate) limits: Limits,
    pub(crate) bind: SocketAddr,
    pub(crate) impairment: Impairment,
    pub(crate) mtu_max: u16,
}

pub(crate) fn setup(seed: u8) -> Setup {
    Setup {
        seed,
        membership: Some(b"member"),
        gate: TestGate::default(),
        limits: Limits::default(),
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        impairment: Impairment::default(),
        mtu_max: MTU_MAX_DEFAULT,
    }
}

impl Setup {
    pub(crate) fn start(self) -> Peer {
        let key = SigningKey::from_bytes(&[self.seed; 32]);
        let leaf = LeafCell::new(Leaf::generate(&key, self.membership).unwrap());
        let kernel = Arc::new(KernelWire::bind(self.bind).unwrap());
        let impaired = Impaired::new(kernel, self.impairment, u64::from(self.seed), &Handle::current());
        let (endpoint, accepted) = Endpoint::bind(EndpointConfig {
            wire: impaired.wire,
            identity: SigningKey::from_bytes(&[self.seed; 32]),
            leaf: leaf.clone(),
            gate: Arc::new(self.gate),
            runtime: Handle::current(),
            mtu_max: self.mtu_max,
            limits: self.limits,
        })
        .unwrap();
        Peer {
            endpoint,
            accepted,
            leaf,
            key,
            network: impaired.handle,
        }
    }
}

impl Peer {
    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    pub(crate) async fn dial(&self, to: &Self, purpose: Purpose) -> Result<Connection, DialError> {
        let peer = to.endpoint.peer();
        self.endpoint.dial(peer, to.address(), purpose).await
    }

    pub(crate) async fn accept(&mut self) -> Connection {
        within(self.accepted.recv()).await.unwrap()
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap()
}

pub(crate) async fn connect(from: &Peer, to: &mut Peer, purpose: Purpose) -> [Connection; 2] {
    let dialled = from.dial(to, purpose).await.unwrap();
    [dialled, to.accept().await]
}

#[tokio::test]
async fn two_endpoints_connect_and_know_each_other() {
    let (a, mut b) = (setup(1).start(), setup(2).start());
    for purpose in Purpose::ALL {
        let [dialled, accepted] = connect(&a, &mut b, purpose).await;
        assert_eq!(dialled.peer(), b.endpoint.peer());
        assert_eq!(accepted.peer(), a.endpoint.peer());
        assert_eq!((dialled.side(), accepted.side()), (Side::Dialled, Side::Accepted));
        assert_eq!((dialled.purpose(), accepted.purpose()), (purpose, purpose));
        assert_eq!(accepted.membership(), Some(b"member".as_slice()));
        assert_eq!(dialled.membership(), Some(b"member".as_slice()));
        assert_eq!(dialled.remote_address(), b.address());
        assert_eq!(accepted.remote_address(), a.address());
        assert!(dialled.stats().sent_bytes > 0);
        assert_eq!(dialled.close_cause(), None);
    }
}

#[tokio::test]
async fn a_dual_stack_endpoint_is_reached_by_ipv4_and_reports_it_as_such() {
    let wildcard = Setup {
        bind: "[::]:0".parse().unwrap(),
        ..setup(2)
    };
    let (a, mut b) = (setup(1).start(), wildcard.start());
    let address = SocketAddr::from(([127, 0, 0, 1], b.address().port()));
    let peer = b.endpoint.peer();
    let dialled = a.endpoint.dial(peer, address, Purpose::Prompt).await;
    assert_eq!(dialled.unwrap().remote_address(), address);
    assert_eq!(b.accept().await.remote_address(), a.address());
    let back = b.endpoint.dial(a.endpoint.peer(), a.address(), Purpose::Bulk);
    assert_eq!(back.await.unwrap().remote_address(), a.address());
}

#[tokio::test]
async fn a_peer_other_than_the_dialled_one_is_not_accepted() {
    let (a, b) = (setup(1).start(), setup(2).start());
    let wrong = PeerId([7; 32]);
    let result = a.endpoint.dial(wrong, b.address(), Purpose::Prompt).await;
    let expected = DialError::Untrusted {
        address: b.address(),
        reason: Refusal::WrongPeer,
    };
    assert_eq!(result.unwrap_err(), expected);
    let itself = a.dial(&a, Purpose::Prompt).await;
    assert_eq!(itself.unwrap_err(), DialError::Myself);
}

#[tokio::test]
async fn whoever_the_acceptor_refuses_learns_the_reason() {
    let b = setup(2).start();
    for (i, (membership, reason)) in [
        (None, Refusal::NotAMember),
        (Some(b"other-mesh".as_slice()), Refusal::OtherMesh),
        (Some(b"expired"), Refusal::Expired),
        (Some(b"not-yet-valid"), Refusal::NotYetValid),
        (Some(b"revoked"), Refusal::Revoked),
        (Some(b"nonsense"), Refusal::Forged),
    ]
    .into_iter()
    .enumerate()
    {
        let a = Setup {
            membership,
            ..setup(10 + i as u8)
        }
        .start();
        for purpose in [Purpose::Prompt, Purpose::Bulk] {
            let result = a.dial(&b, purpose).await;
            assert_eq!(result.unwrap_err(), DialError::Refused { reason });
        }
    }
    assert_eq!(b.endpoint.accepted_connections(), 0);
}

#[tokio::test]
async fn whoever_the_dialler_refuses_is_named_with_the_reason() {
    let a = setup(1).start();
    for (i, (membership, reason)) in [
        (None, Refusal::NotAMember),
        (Some(b"expired".as_slice()), Refusal::Expired),
        (Some(b"revoked"), Refusal::Revoked),
    ]
    .into_iter()
    .enumerate()
    {
        let b = Setup {
            membership,
            ..setup(10 + i as u8)
        }
        .start();
        let result = a.dial(&b, Purpose::Prompt).await;
        let address = b.address();
        assert_eq!(result.unwrap_err(), DialError::Untrusted { address, reason });
    }
    let refused = [Refusal::NotAMember, Refusal::Expired, Refusal::Revoked];
    for (reason, count) in a.endpoint.refusals() {
        assert_eq!(count, u64::from(refused.contains(&reason)), "{reason}");
    }
}

#[tokio::test]
async fn joining_needs_no_membership_but_a_ban_holds() {
    let stranger = Setup {
        membership: None,
        ..setup(1)
    };
    let gate = TestGate::default();
    let banned = SigningKey::from_bytes(&[3; 32]).peer_id();
    lock(&gate.banned).insert(banned);
    let host = Setup { gate, ..setup(2) };
    let (a, mut b) = (stranger.start(), host.start());
    let [_dialled, accepted] = connect(&a, &mut b, Purpose::Join).await;
    assert_eq!(accepted.membership(), None);
    let reason = Refusal::Banned;
    let result = setup(3).start().dial(&b, Purpose::Join).await;
    assert_eq!(result.unwrap_err(), DialError::Refused { reason });
}

#[tokio::test]
async fn a_swapped_leaf_takes_effect_for_the_next_handshake() {
    let outsider = Setup {
        membership: None,
        ..setup(1)
    };
    let (a, b) = (outsider.start(), setup(2).start());
    let reason = Refusal::NotAMember;
    let result = a.dial(&b, Purpose::Prompt).await;
    assert_eq!(result.unwrap_err(), DialError::Refused { reason });
    a.leaf.swap(Leaf::generate(&a.key, Some(b"member")).unwrap());
    a.dial(&b, Purpose::Prompt).await.unwrap();
    b.leaf.swap(Leaf::generate(&b.key, Some(b"expired")).unwrap());
    let result = a.dial(&b, Purpose::Bulk).await;
    let (address, reason) = (b.address(), Refusal::Expired);
    assert_eq!(result.unwrap_err(), DialError::Untrusted { address, reason });
}

#[tokio::test]
async fn limits_turn_the_surplus_away_and_count_down_again() {
    let limits = Limits {
        prompt_per_peer_max: 1,
        join_per_second: 0,
        join_burst: 1,
        ..Limits::default()
    };
    let host = Setup { limits, ..setup(2) };
    let (a, mut b) = (setup(1).start(), host.start());
    let [first, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let busy = DialError::Busy { address: b.address() };
    let second = a.dial(&b, Purpose::Prompt).await;
    assert_eq!(second.unwrap_err(), busy);
    let [_join, _] = connect(&a, &mut b, Purpose::Join).await;
    let other = setup(3).start();
    assert_eq!(other.dial(&b, Purpose::Join).await.unwrap_err(), busy);

    first.close(CloseReason::Idle);
    within(accepted.closed()).await;
    // The count follows the close by one scheduling round.
    within(async {
        while a.dial(&b, Purpose::Prompt).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_address_with_too_many_connections_is_refused_before_its_handshake() {
    let limits = Limits {
        per_address_max: 1,
        ..Limits::default()
    };
    let host = Setup { limits, ..setup(2) };
    let (a, mut b) = (setup(1).start(), host.start());
    let _held = connect(&a, &mut b, Purpose::Prompt).await;
    let address = b.address();
    let result = setup(3).start().dial(&b, Purpose::Prompt).await;
    assert_eq!(result.unwrap_err(), DialError::Busy { address });
}

#[tokio::test]
async fn a_hundred_dials_at_once_all_succeed_though_retry_sets_in() {
    let mut b = setup(2).start();
    let mut dials = tokio::task::JoinSet::new();
    for seed in 100..200 {
        let a = setup(seed).start();
        let (peer, address) = (b.endpoint.peer(), b.address());
        dials.spawn(async move {
            let connection = a.endpoint.dial(peer, address, Purpose::Prompt).await;
            (a, connection.unwrap())
        });
    }
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(b.accept().await);
        held.push(within(dials.join_next()).await.unwrap().unwrap().1);
    }
}

#[tokio::test]
async fn both_sides_learn_why_a_connection_ended() {
    let (a, mut b) = (setup(1).start(), setup(2).start());
    for reason in [CloseReason::Duplicate, CloseReason::Revoked] {
        let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
        dialled.close(reason);
        assert_eq!(within(dialled.closed()).await, CloseCause::Local(reason));
        let told = CloseCause::ClosedByPeer {
            code: u64::from(reason.code()),
            reason: Some(reason),
        };
        assert_eq!(within(accepted.closed()).await, told);
        assert_eq!(accepted.close_cause(), Some(told));
    }
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    drop(dialled.clone());
    assert_eq!(dialled.close_cause(), None);
    drop(dialled);
    let unneeded = CloseCause::ClosedByPeer {
        code: u64::from(CloseReason::Idle.code()),
        reason: Some(CloseReason::Idle),
    };
    assert_eq!(within(accepted.closed()).await, unneeded);
}

#[tokio::test]
async fn a_closed_endpoint_tells_its_peers_and_frees_its_port() {
    let (a, mut b) = (setup(1).start(), setup(2).start());
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let address = b.address();
    b.endpoint.close().await;
    let told = CloseCause::ClosedByPeer {
        code: u64::from(CloseReason::Shutdown.code()),
        reason: Some(CloseReason::Shutdown),
    };
    assert_eq!(within(dialled.closed()).await, told);
    let here = CloseCause::Local(CloseReason::Shutdown);
    assert_eq!(within(accepted.closed()).await, here);
    assert!(within(b.accepted.recv()).await.is_none());
    let result = b.dial(&a, Purpose::Prompt).await;
    assert_eq!(result.unwrap_err(), DialError::EndpointClosed);

    // The impaired wire's task lets go one scheduling round later; the handles above are still held.
    within(async {
        while KernelWire::bind(address).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_there_is_a_timeout_and_a_senseless_address_an_error() {
    let a = setup(1).start();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let peer = PeerId([7; 32]);
    let result = a.endpoint.dial(peer, address, Purpose::Prompt).await;
    assert_eq!(result.unwrap_err(), DialError::TimedOut { address });
    for text in ["127.0.0.1:0", "[::1]:4001"] {
        let address = text.parse().unwrap();
        let result = a.endpoint.dial(peer, address, Purpose::Prompt).await;
        assert_eq!(result.unwrap_err(), DialError::Address { address });
    }
}

/// Runs a peer on a runtime of its own and ends it as a crash would: its tasks stop, nothing is sent.
fn crashing_peer(
    bind: SocketAddr,
) -> (
    SocketAddr,
    PeerId,
    std_mpsc::SyncSender<()>,
    std::thread::JoinHandle<()>,
) {
    let (tell, told) = std_mpsc::sync_channel(1);
    let (crash, crashed) = std_mpsc::sync_channel::<()>(1);
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let peer = runtime.block_on(async { Setup { bind, ..setup(2) }.start() });
        let mut accepted = peer.accepted;
        let held = runtime.spawn(async move {
            let mut held = Vec::new();
            while let Some(connection) = accepted.recv().await {
                held.push(connection);
            }
        });
        tell.send((peer.endpoint.local_address(), peer.endpoint.peer()))
            .unwrap();
        crashed.recv().unwrap();
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop((held, peer.endpoint, peer.network));
    });
    let (address, id) = told.recv().unwrap();
    (address, id, crash, thread)
}

#[tokio::test]
async fn a_peer_restarted_on_its_port_is_noticed_within_two_seconds() {
    let a = setup(1).start();
    let (address, id, crash, thread) = crashing_peer(SocketAddr::from(([127, 0, 0, 1], 0)));
    let dialled = a.endpoint.dial(id, address, Purpose::Prompt).await.unwrap();
    crash.send(()).unwrap();
    tokio::task::spawn_blocking(|| thread.join())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(dialled.close_cause(), None);

    let _restarted = Setup {
        bind: address,
        ..setup(2)
    }
    .start();
    let noticed = tokio::time::timeout(Duration::from_secs(2), dialled.closed()).await;
    assert_eq!(noticed.unwrap(), CloseCause::Reset);
}

#[tokio::test]
async fn a_healed_partition_within_the_idle_time_keeps_the_connection() {
    let (a, mut b) = (setup(1).start(), setup(2).start());
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _streams = accepted.prompt_streams().unwrap();
    a.network.set(Impairment {
        partition: crate::wire::Partition::All(crate::wire::Cut::Both),
        ..Impairment::default()
    });
    let cut_off = tokio::time::timeout(Duration::from_millis(300), dialled.echo(b"lost")).await;
    assert!(cut_off.is_err());
    a.network.set(Impairment::default());
    within(dialled.echo(b"found")).await.unwrap();
}

#[tokio::test]
async fn half_open_handshakes_do_not_keep_an_honest_peer_out() {
    let mut b = setup(2).start();
    let deaf = Setup {
        impairment: Impairment {
            partition: crate::wire::Partition::All(crate::wire::Cut::Incoming),
            ..Impairment::default()
        },
        ..setup(1)
    }
    .start();
    let mut dials = tokio::task::JoinSet::new();
    for _ in 0..600 {
        let endpoint = deaf.endpoint.clone();
        let (peer, address) = (b.endpoint.peer(), b.address());
        dials.spawn(async move { endpoint.dial(peer, address, Purpose::Prompt).await });
    }
    within(async {
        while deaf.network.stats().partitioned < 100 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for purpose in Purpose::ALL {
        let honest = setup(3).start();
        let [dialled, _accepted] = connect(&honest, &mut b, purpose).await;
        assert_eq!(dialled.close_cause(), None);
    }
}

#[tokio::test]
async fn random_datagrams_at_the_port_harm_nobody() {
    let (a, mut b) = (setup(1).start(), setup(2).start());
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _streams = accepted.prompt_streams().unwrap();
    let noise = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut bytes = [0; 1_400];
    for round in 0..5_000_usize {
        getrandom::fill(&mut bytes).unwrap();
        // Half of them begin like a first packet of QUIC version 1.
        if round % 2 == 0 {
            bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        }
        let length = 1 + round * 7 % bytes.len();
        let _ = noise.try_send_to(&bytes[..length], b.address());
        if round % 100 == 0 {
            within(dialled.echo(b"still here")).await.unwrap();
        }
    }
    assert_eq!(b.endpoint.accepted_connections(), 1);
}
