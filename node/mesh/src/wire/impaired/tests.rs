//! The impaired wire over a wire that records. What the conditions mean is tested at the line, which needs no clock.

use std::collections::VecDeque;

use super::*;
use crate::wire::RECEIVE_BATCH_MAX;

const REMOTE: &str = "192.0.2.1:4001";

#[derive(Debug, Default)]
struct Recorder {
    sent: Mutex<Vec<(Instant, SocketAddr, Vec<u8>)>>,
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
        let entry = (Instant::now(), batch.destination, batch.contents.to_vec());
        lock(&self.sent).push(entry);
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
    assert_eq!(lock(&below.sent)[0].2.len(), 3_000);
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
