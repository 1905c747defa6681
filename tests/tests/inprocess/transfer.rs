//! A file over a bad network.

use std::time::{Duration, Instant};

use hyperfabric_mesh::wire::Impairment;
use hyperfabric_node::node::StartError;

use crate::harness::{ended, run};

const FILE_BYTES: usize = 3 << 20;

#[test]
fn two_nodes_in_one_process_move_a_file_over_a_wire_with_50_ms_and_1_percent_loss() {
    run(|lab| async move {
        let bad = Impairment {
            latency: Duration::from_millis(50),
            loss_ppm: 10_000,
            ..Impairment::default()
        };
        let founder = lab.found("a");
        let [other] = lab.admit(&founder, &["b".to_owned()]).try_into().ok().unwrap();
        let a = lab.host(&founder, &[], bad.clone()).await;
        let b = lab.host(&other, &[a.address()], bad).await;
        let (path, digest) = lab.file("payload", FILE_BYTES);
        let (mut at_a, mut at_b) = (a.node.events(), b.node.events());
        let begun = Instant::now();
        let transfer = a.send(&path, &b.seed.name).await;
        assert_eq!(ended(&mut at_a, transfer).await, Ok(*digest.as_bytes()));
        assert_eq!(ended(&mut at_b, transfer).await, Ok(*digest.as_bytes()));
        let arrived = std::fs::read(b.seed.folder.path().join("inbox/a/payload")).unwrap();
        assert_eq!(blake3::hash(&arrived), digest);
        let stats = a.network.stats();
        println!(
            "{FILE_BYTES} bytes in {:?}; {} datagrams sent, {} lost",
            begun.elapsed(),
            stats.sent,
            stats.lost
        );
        assert!(stats.lost > 0, "the network was not bad");
        a.node.stop().await;
        b.node.stop().await;
    });
}

#[test]
fn a_node_that_has_stopped_says_so_to_who_wants_to_send() {
    run(|lab| async move {
        let founder = lab.found("a");
        let a = lab.host(&founder, &[], Impairment::default()).await;
        let (path, _) = lab.file("payload", 1);
        a.node.stop().await;
        let refused = a.try_send(&path, &founder.name).await;
        assert!(matches!(refused, Err(StartError::Stopped(_))), "{refused:?}");
    });
}
