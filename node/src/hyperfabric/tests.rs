//! What the protocol says before it runs, and how its options bound memory.

use hyperfabric_protocol::error::BufferOverflowError;

use super::*;

fn refused(options: HyperFabricOptions) -> Option<HyperFabricError> {
    HyperFabricProtocol::open("/nowhere", options).err()
}

#[test]
fn the_defaults_are_those_of_the_api_reference() {
    let options = HyperFabricOptions::default();
    assert!(!options.enable_ml_routing && !options.enable_quantum_optimization);
    assert!(options.enable_fault_tolerance);
    assert_eq!(options.default_latency_constraint_ns, None);
    assert_eq!(
        (options.buffer_pool_size, options.max_packet_size),
        (1000, 65_536)
    );
}

#[test]
fn an_option_without_an_implementation_is_refused_by_its_name() {
    for (options, option) in [
        (
            HyperFabricOptions {
                enable_ml_routing: true,
                ..HyperFabricOptions::default()
            },
            "enable_ml_routing",
        ),
        (
            HyperFabricOptions {
                enable_quantum_optimization: true,
                ..HyperFabricOptions::default()
            },
            "enable_quantum_optimization",
        ),
    ] {
        assert_eq!(refused(options), Some(UnsupportedOptionError { option }.into()));
    }
    assert_eq!(refused(HyperFabricOptions::default()), None);
}

#[test]
fn data_takes_as_many_packets_as_it_fills_and_never_more_than_the_pool_has() {
    let options = HyperFabricOptions {
        buffer_pool_size: 3,
        max_packet_size: 100,
        ..HyperFabricOptions::default()
    };
    let packets = |bytes| options.packets(bytes);
    assert_eq!(
        [packets(0), packets(1), packets(100), packets(101), packets(300)],
        [Ok(1), Ok(1), Ok(1), Ok(2), Ok(3)]
    );
    let overflow = BufferOverflowError {
        bytes: 301,
        capacity_bytes: 300,
    };
    assert_eq!(packets(301), Err(overflow));
}

#[tokio::test]
async fn a_protocol_that_does_not_run_says_so() {
    let place = tempfile::tempdir().unwrap();
    let protocol = HyperFabricProtocol::open(place.path(), HyperFabricOptions::default()).unwrap();
    let id = NodeId::new("a").unwrap();
    let pinged = protocol.ping(&id, &id, 64, 5000).await;
    assert_eq!(pinged, Err(HyperFabricError::NotRunning));
    // Nobody has initialised the folder.
    let started = protocol.start_background_services().await;
    assert!(matches!(
        started,
        Err(ServicesError::Daemon(DaemonError::State(_)))
    ));
    protocol.stop_background_services().await;
}
