//! The impaired wire over a wire that records. What the conditions mean is tested at the line, which needs no clock.

use std::collections::VecDeque;

use super::*;
use crate::wire::{Ecn, RECEIVE_BATCH_MAX};

const REMOTE: &str = "192.0.2.1:4001";

#[derive(Debug, Default)]
struct Recorder {
    /// Each datagram by itself.
    sent: Mutex<Vec<(Instant, SocketAddr, Vec<u8>)>>,
    /// The datagrams of each call that was taken.
    calls: Mutex<Vec<usize>>,
    /// What the next calls answer instead of taking anything.
    refusals: Mutex<VecDeque<io::ErrorKind>>,
    inbox: Mutex<VecDeque<(SocketAddr, Vec<u8>)>>,
    arrived: Notify,
}

#[derive(Debug)]
struct AlwaysReady;

impl WriteReady for AlwaysReady {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Wire for Recorder {
    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [Received],
    ) -> Poll<io::Result<usize>> {
        let Some((addr, bytes)) = lock(&self.inbox).pop_front() else {
            return Poll::Pending;
        };
        bufs[0][..bytes.len()].copy_from_slice(&bytes);
        meta[0] = Received {
            addr,
            len: bytes.len(),
            stride: bytes.len(),
            ..Received::default()
        };
        Poll::Ready(Ok(1))
    }

    fn try_send(&self, batch: &Outgoing<'_>) -> io::Result<()> {
        if let Some(kind) = lock(&self.refusals).pop_front() {
            return Err(kind.into());
        }
        let now = Instant::now();
        let entries = batch.datagrams().map(|it| (now, batch.destination, it.to_vec()));
        let mut sent = lock(&self.sent);
        let before = sent.len();
        sent.extend(entries);
        lock(&self.calls).push(sent.len() - before);
        self.arrived.notify_one();
        Ok(())
    }

    fn write_ready(self: Arc<Self>) -> Pin<Box<dyn WriteReady>> {
        Box::pin(AlwaysReady)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok("192.0.2.9:1".parse().unwrap())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            send_segments: 10,
            receive_segments: RECEIVE_BATCH_MAX,
            mtu_max: 9_000,
            ecn: true,
            may_fragment: false,
        }
    }
}

fn impaired(impairment: Impairment) -> (Arc<Recorder>, Impaired) {
    let below = Arc::new(Recorder::default());
    let wire = Impaired::new(
        Arc::clone(&below) as Arc<dyn Wire>,
        impairment,
        7,
        &Handle::current(),
    );
    (below, wire)
}

fn send(wire: &ImpairedWire, contents: &[u8], segment_size: Option<usize>) {
    wire.try_send(&Outgoing {
        destination: REMOTE.parse().unwrap(),
        contents,
        segment_size,
        ecn: None,
        src_ip: None,
    })
    .unwrap();
}

async fn wait_for(below: &Recorder, count: usize) -> Vec<(Instant, SocketAddr, Vec<u8>)> {
    tokio::time::timeout(Duration::from_secs(60), async {
        while lock(&below.sent).len() < count {
            below.arrived.notified().await;
        }
    })
    .await
    .unwrap();
    lock(&below.sent).clone()
}

#[tokio::test]
async fn without_conditions_a_batch_passes_whole_and_at_once() {
    let (below, it) = impaired(Impairment::default());
    send(&it.wire, &[1; 3_000], Some(1_200));
    assert_eq!(*lock(&below.calls), [3]);
    assert_eq!(it.handle.stats().sent, 3);
}

#[tokio::test]
async fn latency_delays_each_datagram_of_a_batch_and_keeps_their_order() {
    let (below, it) = impaired(Impairment {
        latency: Duration::from_millis(50),
        ..Impairment::default()
    });
    let start = Instant::now();
    let contents: Vec<u8> = (0..25u8).flat_map(|i| [i; 100]).collect();
    send(&it.wire, &contents, Some(100));
    let sent = wait_for(&below, 25).await;
    for (i, (at, destination, bytes)) in sent.iter().enumerate() {
        assert!(*at - start >= Duration::from_millis(50));
        assert_eq!(*destination, REMOTE.parse().unwrap());
        assert_eq!(bytes, &[i as u8; 100]);
    }
    assert_eq!(*lock(&below.calls), [10, 10, 5]);
}

/// Holds nothing back for any time, and yet takes the way through the queue.
fn queued() -> Impairment {
    Impairment {
        mtu_max: Some(9_000),
        ..Impairment::default()
    }
}

#[tokio::test]
async fn only_neighbors_in_the_queue_that_go_alike_share_a_call_and_the_order_stays() {
    let (below, it) = impaired(queued());
    let other: SocketAddr = "192.0.2.2:4001".parse().unwrap();
    let plan = [
        (REMOTE.parse().unwrap(), None, 100),
        (REMOTE.parse().unwrap(), None, 100),
        (other, None, 100),
        (REMOTE.parse().unwrap(), Some(Ecn::Ect0), 100),
        (REMOTE.parse().unwrap(), Some(Ecn::Ect0), 40),
        (REMOTE.parse().unwrap(), Some(Ecn::Ect0), 40),
    ];
    for (i, (destination, ecn, bytes)) in plan.into_iter().enumerate() {
        it.wire
            .try_send(&Outgoing {
                destination,
                contents: &vec![i as u8; bytes],
                segment_size: None,
                ecn,
                src_ip: None,
            })
            .unwrap();
    }
    let sent = wait_for(&below, plan.len()).await;
    for (i, ((_, destination, bytes), planned)) in sent.iter().zip(&plan).enumerate() {
        assert_eq!(*destination, planned.0);
        assert_eq!(*bytes, vec![i as u8; planned.2]);
    }
    assert_eq!(*lock(&below.calls), [2, 1, 2, 1]);
}

#[tokio::test]
async fn a_wire_below_without_room_is_asked_again_and_nothing_is_lost_or_doubled() {
    let (below, it) = impaired(queued());
    lock(&below.refusals).extend([io::ErrorKind::WouldBlock; 3]);
    for i in 0..25u8 {
        send(&it.wire, &[i; 100], None);
    }
    let sent = wait_for(&below, 25).await;
    let marks: Vec<u8> = sent.iter().map(|(_, _, bytes)| bytes[0]).collect();
    assert_eq!(marks, Vec::from_iter(0..25));
    assert_eq!(*lock(&below.calls), [10, 10, 5]);
}

#[tokio::test]
async fn segments_that_are_refused_go_one_by_one_and_only_what_is_refused_again_is_dropped() {
    let (below, it) = impaired(queued());
    lock(&below.refusals).extend([io::ErrorKind::InvalidInput; 2]);
    for i in 0..4u8 {
        send(&it.wire, &[i; 100], None);
    }
    let sent = wait_for(&below, 3).await;
    let marks: Vec<u8> = sent.iter().map(|(_, _, bytes)| bytes[0]).collect();
    assert_eq!(marks, [1, 2, 3]);
    assert_eq!(*lock(&below.calls), [1, 1, 1]);
}

#[tokio::test]
async fn more_than_one_look_at_the_queue_takes_arrives_whole_and_in_order() {
    let (below, it) = impaired(queued());
    for i in 0..1_000u16 {
        send(&it.wire, &i.to_be_bytes(), None);
    }
    let sent = wait_for(&below, 1_000).await;
    for (i, (_, _, bytes)) in sent.iter().enumerate() {
        assert_eq!(*bytes, (i as u16).to_be_bytes());
    }
    assert!(lock(&below.calls).iter().all(|datagrams| *datagrams <= 10));
}

#[tokio::test]
async fn datagrams_above_the_mtu_vanish() {
    let (below, it) = impaired(Impairment {
        mtu_max: Some(1_280),
        ..Impairment::default()
    });
    send(&it.wire, &[1; 1_281], None);
    send(&it.wire, &[2; 1_280], None);
    assert_eq!(wait_for(&below, 1).await[0].2.len(), 1_280);
    assert_eq!(it.handle.stats().oversized, 1);
}

async fn receive(wire: &ImpairedWire) -> usize {
    let mut buffer = [0; 100];
    let mut meta = [Received::default()];
    std::future::poll_fn(|cx| wire.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta))
        .await
        .unwrap();
    meta[0].len
}

#[tokio::test]
async fn a_partition_cuts_the_named_remote_in_the_named_direction_and_heals() {
    let (below, it) = impaired(Impairment::default());
    let cut = |cut| Impairment {
        partition: Partition::Remotes {
            remotes: BTreeSet::from(["[::ffff:192.0.2.1]:4001".parse().unwrap()]),
            cut,
        },
        ..Impairment::default()
    };
    let arrive = |from: &str| {
        lock(&below.inbox).push_back((from.parse().unwrap(), vec![5; 10]));
    };

    it.handle.set(cut(Cut::Outgoing));
    send(&it.wire, &[1], None);
    arrive(REMOTE);
    assert_eq!(receive(&it.wire).await, 10);

    it.handle.set(cut(Cut::Both));
    arrive(REMOTE);
    assert_eq!(receive(&it.wire).await, 0);
    arrive("192.0.2.2:4001");
    assert_eq!(receive(&it.wire).await, 10);
    assert_eq!(it.handle.stats().partitioned, 2);

    it.handle.set(Impairment::default());
    send(&it.wire, &[2], None);
    assert_eq!(wait_for(&below, 1).await[0].2, [2]);
}
