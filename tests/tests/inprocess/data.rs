//! `HyperFabricProtocol`: data in memory to a node's handler and back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyperfabric_mesh::wire::Impairment;
use hyperfabric_mesh::{CloseReason, PeerAddress};
use hyperfabric_node::{
    BufferError, DataRequest, HyperFabricError, HyperFabricOptions, HyperFabricProtocol,
    LatencyConstraintViolationError, NodeError, NodeId, NodeNotFoundError, PeerId, RequestError,
    RoutingError, SendOptions,
};
use tokio::sync::Semaphore;

use crate::harness::{Lab, PATIENCE, Seed, eventually, host, id, run};

const LARGE_BYTES: usize = 8 << 20;

async fn protocol(
    lab: &Lab,
    seed: &Seed,
    contacts: &[PeerAddress],
    options: HyperFabricOptions,
) -> HyperFabricProtocol {
    let (config, environment, _) = lab.parts(seed, contacts, Impairment::default());
    let protocol = HyperFabricProtocol::new(options, config, environment).unwrap();
    protocol.start_background_services().await.unwrap();
    assert_eq!(protocol.register_node(host(&seed.name)).await, Ok(true));
    protocol
}

/// Two peers, `a` with the options and `b` with the defaults.
async fn pair(lab: &Lab, options: HyperFabricOptions) -> (HyperFabricProtocol, HyperFabricProtocol) {
    let founder = lab.found("a");
    let [other] = lab.admit(&founder, &["b".to_owned()]).try_into().ok().unwrap();
    let a = protocol(lab, &founder, &[], options).await;
    let node = a.node().unwrap();
    let address = PeerAddress {
        socket: node.handle().endpoint().local_address(),
        peer: Some(node.peer_id()),
    };
    let b = protocol(lab, &other, &[address], HyperFabricOptions::default()).await;
    (a, b)
}

fn peer_id(protocol: &HyperFabricProtocol) -> PeerId {
    protocol.node().unwrap().peer_id()
}

async fn stop(protocols: [HyperFabricProtocol; 2]) {
    for protocol in protocols {
        protocol.stop_background_services().await;
    }
}

fn not_found(node: &str) -> HyperFabricError {
    HyperFabricError::Node(NodeError::NotFound(NodeNotFoundError { node_id: id(node) }))
}

async fn echo(request: DataRequest) -> Result<Bytes, String> {
    Ok(request.data)
}

#[test]
fn data_reaches_the_handler_of_a_node_and_its_answer_comes_back() {
    run(|lab| async move {
        let (a, b) = pair(&lab, HyperFabricOptions::default()).await;
        let seen: Arc<std::sync::Mutex<Vec<DataRequest>>> = Arc::default();
        let notes = Arc::clone(&seen);
        b.on_data(id("b"), move |request| {
            notes.lock().unwrap().push(request.clone());
            echo(request)
        });
        let options = SendOptions {
            metadata: BTreeMap::from([("step".to_owned(), "7".to_owned())]),
            wait: PATIENCE,
            ..SendOptions::default()
        };
        let small = Bytes::from_static(b"gradient");
        let answer = a
            .send_data(&id("a"), &id("b"), small.clone(), options.clone())
            .await;
        assert_eq!(answer, Ok(small.clone()));
        let request = seen.lock().unwrap().pop().unwrap();
        assert_eq!(
            (request.source, request.destination, request.data),
            (id("a"), id("b"), small)
        );
        assert_eq!(request.metadata, [("step".to_owned(), "7".to_owned())]);

        // Large data takes another connection than the one for prompt frames.
        let prompt = a.node().unwrap().handle().connection(&peer_id(&b)).unwrap();
        let before = prompt.stats();
        let large: Bytes = (0..LARGE_BYTES)
            .map(|n| (n % 251) as u8)
            .collect::<Vec<_>>()
            .into();
        let answer = a.send_data(&id("a"), &id("b"), large.clone(), options).await;
        assert!(answer == Ok(large), "the answer differs");
        let after = prompt.stats();
        let moved = after.sent_bytes - before.sent_bytes + after.received_bytes - before.received_bytes;
        assert!(moved < 1 << 20, "{moved} bytes took the prompt connection");

        // And to a node of this very peer.
        a.on_data(id("a"), echo);
        let here = a
            .send_data(
                &id("a"),
                &id("a"),
                Bytes::from_static(b"x"),
                SendOptions::default(),
            )
            .await;
        assert_eq!(here, Ok(Bytes::from_static(b"x")));
        stop([a, b]).await;
    });
}

#[test]
fn what_cannot_be_sent_is_refused_with_the_error_of_the_reference() {
    run(|lab| async move {
        let options = HyperFabricOptions {
            buffer_pool_size: 2,
            max_packet_size: 1024,
            ..HyperFabricOptions::default()
        };
        let (a, b) = pair(&lab, options).await;
        let data = Bytes::from_static(b"x");
        let quick = SendOptions {
            wait: Duration::from_millis(300),
            ..SendOptions::default()
        };
        let patient = SendOptions {
            wait: PATIENCE,
            ..SendOptions::default()
        };
        let send = |from: &'static str, to: &'static str, data: &Bytes, options: &SendOptions| {
            let (a, data, options) = (a.clone(), data.clone(), options.clone());
            async move { a.send_data(&id(from), &id(to), data, options).await }
        };
        let no_handler = HyperFabricError::Request(RequestError::NoHandler(id("b")));
        assert_eq!(send("a", "b", &data, &patient).await, Err(no_handler));
        assert_eq!(send("nobody", "b", &data, &quick).await, Err(not_found("nobody")));
        // A node of another peer is no source here.
        assert_eq!(send("b", "a", &data, &quick).await, Err(not_found("b")));
        assert_eq!(send("a", "nobody", &data, &quick).await, Err(not_found("nobody")));

        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        b.on_data(id("b"), move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Err("not today".to_owned()) }
        });
        let refused = send("a", "b", &data, &quick).await;
        assert!(
            matches!(&refused, Err(HyperFabricError::Request(RequestError::Refused { node, reason }))
                if *node == id("b") && reason.0 == "not today"),
            "{refused:?}"
        );
        let impossible = SendOptions {
            latency_constraint_ns: Some(1),
            ..quick.clone()
        };
        let violation = send("a", "b", &data, &impossible).await;
        assert!(
            matches!(&violation, Err(HyperFabricError::Routing(RoutingError::LatencyConstraintViolation(
                LatencyConstraintViolationError { destination, constraint_ns: 1, measured_ns: 2.. })))
                if *destination == id("b")),
            "{violation:?}"
        );
        let oversized = send("a", "b", &vec![0; 2049].into(), &quick).await;
        assert!(matches!(
            oversized,
            Err(HyperFabricError::Buffer(BufferError::Overflow(_)))
        ));
        let entangled = SendOptions {
            requires_quantum_entanglement: true,
            ..quick.clone()
        };
        let unsupported = send("a", "b", &data, &entangled).await;
        assert!(matches!(unsupported, Err(HyperFabricError::Unsupported(_))));
        let talkative = SendOptions {
            metadata: (0..17).map(|n| (n.to_string(), String::new())).collect(),
            ..quick
        };
        let metadata = send("a", "b", &data, &talkative).await;
        assert_eq!(metadata, Err(HyperFabricError::Request(RequestError::Metadata)));
        assert_eq!(calls.load(Ordering::Relaxed), 1, "a refused request was sent");
        stop([a, b]).await;
    });
}

/// Sends a request whose first connection is lost while the handler works on it. Returns the result, and how often
/// the handler was called.
async fn interrupted(lab: &Lab, enable_fault_tolerance: bool) -> (Result<Bytes, HyperFabricError>, usize) {
    let options = HyperFabricOptions {
        enable_fault_tolerance,
        ..HyperFabricOptions::default()
    };
    let (a, b) = pair(lab, options).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    b.on_data(id("b"), move |request| {
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            if first {
                std::future::pending::<()>().await;
            }
            Ok(request.data)
        }
    });
    let options = SendOptions {
        wait: PATIENCE,
        ..SendOptions::default()
    };
    let (sender, data) = (a.clone(), Bytes::from_static(b"again"));
    let sent = tokio::spawn(async move { sender.send_data(&id("a"), &id("b"), data, options).await });
    eventually("the handler's first call", PATIENCE, async || {
        calls.load(Ordering::Relaxed) == 1
    })
    .await;
    let connection = a.node().unwrap().handle().connection(&peer_id(&b)).unwrap();
    connection.close(CloseReason::Idle);
    let result = tokio::time::timeout(PATIENCE, sent).await.unwrap().unwrap();
    stop([a, b]).await;
    (result, calls.load(Ordering::Relaxed))
}

#[test]
fn a_request_whose_connection_is_lost_is_sent_again_with_fault_tolerance_alone() {
    run(|lab| async move {
        let (result, calls) = interrupted(&lab, true).await;
        assert_eq!(result, Ok(Bytes::from_static(b"again")));
        assert_eq!(calls, 2);
    });
    run(|lab| async move {
        let (result, calls) = interrupted(&lab, false).await;
        assert_eq!(
            result,
            Err(HyperFabricError::Request(RequestError::Interrupted(id("b"))))
        );
        assert_eq!(calls, 1);
    });
}

#[test]
fn requests_in_flight_take_no_more_packets_than_the_pool_has() {
    run(|lab| async move {
        let options = HyperFabricOptions {
            buffer_pool_size: 2,
            max_packet_size: 1024,
            ..HyperFabricOptions::default()
        };
        let (a, b) = pair(&lab, options).await;
        let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let gate = Arc::new(Semaphore::new(0));
        let (in_flight, largest, wait) = (Arc::clone(&busy), Arc::clone(&most), Arc::clone(&gate));
        b.on_data(id("b"), move |request| {
            let (in_flight, largest, wait) =
                (Arc::clone(&in_flight), Arc::clone(&largest), Arc::clone(&wait));
            async move {
                largest.fetch_max(in_flight.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                wait.acquire().await.unwrap().forget();
                in_flight.fetch_sub(1, Ordering::Relaxed);
                Ok(request.data)
            }
        });
        let requests: Vec<_> = (0..6)
            .map(|_| {
                let a = a.clone();
                let options = SendOptions {
                    wait: PATIENCE,
                    ..SendOptions::default()
                };
                tokio::spawn(async move {
                    a.send_data(&id("a"), &id("b"), vec![1; 1000].into(), options)
                        .await
                })
            })
            .collect();
        eventually("two requests at the handler", PATIENCE, async || {
            busy.load(Ordering::Relaxed) == 2
        })
        .await;
        gate.add_permits(6);
        for request in requests {
            let answer = tokio::time::timeout(PATIENCE, request).await.unwrap().unwrap();
            assert_eq!(answer.unwrap().len(), 1000);
        }
        assert_eq!(most.load(Ordering::Relaxed), 2);
        stop([a, b]).await;
    });
}

#[test]
fn a_node_is_registered_once_pinged_and_there_again_after_a_restart() {
    run(|lab| async move {
        let (a, b) = pair(&lab, HyperFabricOptions::default()).await;
        assert_eq!(a.register_node(host(&id("a"))).await, Ok(false));
        assert_eq!(a.register_node(host(&id("a/gpu0"))).await, Ok(true));
        let outside = a.register_node(host(&id("c"))).await;
        assert!(matches!(
            outside,
            Err(HyperFabricError::Node(NodeError::Invalid(_)))
        ));
        eventually("b to know a's nodes", PATIENCE, async || {
            let pinged = b.ping(&id("b"), &id("a/gpu0"), 64, 5000).await;
            pinged.is_ok_and(|result| result.success && result.latency_ns > 0)
        })
        .await;
        assert_eq!(
            b.ping(&id("b"), &id("nobody"), 64, 200).await,
            Err(not_found("nobody"))
        );

        let known = |protocol: &HyperFabricProtocol, node: NodeId| {
            let node_of = protocol.node().unwrap();
            async move {
                let host = node_of
                    .handle()
                    .act(move |f, _| f.directory().host_of(&node))
                    .await;
                host.unwrap()
            }
        };
        b.on_data(id("b"), echo);
        b.stop_background_services().await;
        assert_eq!(
            b.ping(&id("b"), &id("a"), 64, 200).await,
            Err(HyperFabricError::NotRunning)
        );
        b.start_background_services().await.unwrap();
        b.start_background_services().await.unwrap();
        assert_eq!(known(&b, id("b")).await, Some(peer_id(&b)));
        let options = SendOptions {
            wait: PATIENCE,
            ..SendOptions::default()
        };
        let answer = a
            .send_data(&id("a"), &id("b"), Bytes::from_static(b"back"), options)
            .await;
        assert_eq!(answer, Ok(Bytes::from_static(b"back")));
        stop([a, b]).await;
    });
}
