//! What every wire must do, run over each of them on loopback.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::runtime::Handle;

use super::*;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const DEADLINE: Duration = Duration::from_secs(20);

async fn receive(wire: &dyn Wire, count: usize) -> Vec<(Received, Vec<u8>)> {
    let mut got = Vec::new();
    let mut storage = vec![vec![0; 65_536]; RECEIVE_BATCH_MAX];
    while got.len() < count {
        let mut meta = [Received::default(); RECEIVE_BATCH_MAX];
        let mut bufs: Vec<IoSliceMut<'_>> = storage.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let received = std::future::poll_fn(|cx| wire.poll_recv(cx, &mut bufs, &mut meta));
        let filled = tokio::time::timeout(DEADLINE, received).await.unwrap().unwrap();
        for (entry, buf) in meta[..filled].iter().zip(&storage) {
            for datagram in buf[..entry.len].chunks(entry.stride.max(1)) {
                got.push((*entry, datagram.to_vec()));
            }
        }
    }
    got
}

async fn send(wire: &Arc<dyn Wire>, batch: &Outgoing<'_>) {
    let mut ready = Arc::clone(wire).write_ready();
    while let Err(e) = wire.try_send(batch) {
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        let writable = std::future::poll_fn(|cx| ready.as_mut().poll_writable(cx));
        tokio::time::timeout(DEADLINE, writable).await.unwrap().unwrap();
    }
}

async fn conforms(from: Arc<dyn Wire>, to: Arc<dyn Wire>) {
    let capabilities = from.capabilities();
    assert!(capabilities.send_segments >= 1 && capabilities.receive_segments >= 1);
    let destination = to.local_addr().unwrap();
    assert_ne!(destination.port(), 0);

    let plain = Outgoing {
        destination,
        contents: b"one datagram",
        segment_size: None,
        ecn: Some(Ecn::Ect0),
        src_ip: None,
    };
    send(&from, &plain).await;
    let got = receive(&*to, 1).await;
    assert_eq!(got[0].1, plain.contents);
    assert_eq!(got[0].0.addr, from.local_addr().unwrap());
    assert_eq!(got[0].0.dst_ip, Some(destination.ip()));
    if capabilities.ecn {
        assert_eq!(got[0].0.ecn, Some(Ecn::Ect0));
    }

    // A full batch whose last datagram is shorter.
    let segments = capabilities.send_segments.min(10);
    let contents: Vec<u8> = (0..segments * 1_200 - 100).map(|i| (i / 1_200) as u8).collect();
    let batch = Outgoing {
        contents: &contents,
        segment_size: (segments > 1).then_some(1_200),
        ..plain
    };
    send(&from, &batch).await;
    let got = receive(&*to, segments).await;
    let expected: Vec<&[u8]> = batch.datagrams().collect();
    assert_eq!(
        got.iter().map(|(_, d)| d.as_slice()).collect::<Vec<_>>(),
        expected
    );

    for round in 0..200_u8 {
        let contents = [round; 600];
        let batch = Outgoing {
            contents: &contents,
            ..plain
        };
        send(&from, &batch).await;
        assert_eq!(receive(&*to, 1).await[0].1, contents);
    }
}

#[tokio::test]
async fn the_kernel_wire_conforms() {
    let bind = || Arc::new(KernelWire::bind(LOOPBACK).unwrap());
    conforms(bind(), bind()).await;
}

#[tokio::test]
async fn the_impaired_wire_conforms_with_and_without_conditions() {
    let over = |latency| {
        let conditions = Impairment {
            latency,
            ..Impairment::default()
        };
        let kernel = Arc::new(KernelWire::bind(LOOPBACK).unwrap());
        Impaired::new(kernel, conditions, 1, &Handle::current()).wire
    };
    conforms(over(Duration::ZERO), over(Duration::ZERO)).await;
    let short = Duration::from_millis(1);
    conforms(over(short), over(short)).await;
}

#[tokio::test]
async fn a_taken_port_is_reported_as_such() {
    let held = KernelWire::bind(LOOPBACK).unwrap();
    let addr = held.local_addr().unwrap();
    assert!(matches!(KernelWire::bind(addr), Err(BindError::InUse { addr: it }) if it == addr));
    let foreign = "192.0.2.1:0".parse().unwrap();
    assert!(matches!(
        KernelWire::bind(foreign),
        Err(BindError::Unusable { .. })
    ));
}
