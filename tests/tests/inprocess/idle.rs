//! Two hundred nodes that have nothing to do.
//!
//! Sixty of them are told of a few others each and come to know all; the rest keep to groups, because two hundred that
//! all meet cost an unoptimised build minutes of two processors in handshakes and signatures, and prove nothing more.

use std::time::{Duration, Instant};

use hyperfabric_mesh::PeerAddress;
use hyperfabric_mesh::wire::Impairment;

use crate::harness::{Lab, Peer, Seed, eventually, run};

const NODES: usize = 200;
/// Those that meet each other.
const MEETING: usize = 60;
/// The others stand together in groups of this size.
const GROUP: usize = 10;
/// Members that a node is told of at its start; the rest it learns.
const CONTACTS: usize = 3;
/// For all to know all; longer than it takes, because the machine may be busy with other things.
const CONVERGENCE: Duration = Duration::from_secs(180);

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Processor time that this process has used.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // In ticks of 10 ms: utime and stime, by proc(5).
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(10 * ticks)
}

/// Starts nodes that are told of a few of those before them.
async fn start(lab: &Lab, seeds: &[Seed]) -> Vec<Peer> {
    let mut peers: Vec<Peer> = Vec::new();
    for seed in seeds {
        let known = peers.len();
        let contacts: Vec<PeerAddress> = (0..CONTACTS.min(known))
            .map(|n| peers[known - 1 - n * known / CONTACTS].address())
            .collect();
        peers.push(lab.host(seed, &contacts, Impairment::default()).await);
    }
    peers
}

async fn know_each_other(peers: &[Peer]) {
    for peer in peers {
        eventually("a node to know all", CONVERGENCE, async || {
            peer.knows().await.len() == peers.len()
        })
        .await;
    }
}

/// Nodes whose packets and wakeups are counted: enough that each has as many neighbors as it wants.
const COUNTED: usize = 20;
/// The most packets a second that an end of an idle connection may send: one end keeps it alive, the other acknowledges
/// that, and now and then somebody has something to say.
const PACKETS_MAX: f64 = 1.2;
/// How long they are counted.
const COUNTING: Duration = Duration::from_secs(12);
/// How long nodes that know each other go on to greet, identify and balance their connections.
const SETTLING: Duration = Duration::from_secs(40);

/// How often this thread, which runs all nodes, has gone to sleep.
fn sleeps() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = |line: &str| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok();
    status.lines().find_map(line).unwrap()
}

/// Packets sent over the connections between `peers`, and the number of their ends.
fn packets(peers: &[Peer]) -> (u64, u64) {
    let ids: Vec<_> = peers.iter().map(|peer| peer.node.peer_id()).collect();
    let ends = peers
        .iter()
        .flat_map(|peer| ids.iter().filter_map(|id| peer.node.handle().connection(id)));
    ends.fold((0, 0), |(packets, ends), connection| {
        (packets + connection.stats().sent_packets, ends + 1)
    })
}

#[test]
#[allow(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn an_idle_connection_is_quiet() {
    run(|lab| async move {
        let founder = lab.found("n0");
        let names: Vec<String> = (1..COUNTED).map(|n| format!("n{n}")).collect();
        let mut seeds = vec![founder.clone()];
        seeds.extend(lab.admit(&founder, &names));
        let peers = start(&lab, &seeds).await;
        know_each_other(&peers).await;
        // What is measured is a stretch of time, so it has to pass; what comes before it is not idleness.
        tokio::time::sleep(SETTLING).await;
        let (before, slept, used) = (packets(&peers), sleeps(), processor_time());
        tokio::time::sleep(COUNTING).await;
        let (after, seconds) = (packets(&peers), COUNTING.as_secs_f64());
        let sent = after.0.saturating_sub(before.0) as f64 / seconds;
        println!(
            "each of {COUNTED} idle nodes has {:.1} connections, sends {:.1} packets, is woken {:.1} times and works {:.2} ms a second",
            after.1 as f64 / COUNTED as f64,
            sent / COUNTED as f64,
            (sleeps() - slept) as f64 / seconds / COUNTED as f64,
            (processor_time() - used).as_secs_f64() * 1e3 / seconds / COUNTED as f64,
        );
        let each = sent / after.1 as f64;
        assert!(
            each <= PACKETS_MAX,
            "{each:.2} packets a second at each end of a connection"
        );
        for peer in peers {
            peer.node.stop().await;
        }
    });
}

#[test]
fn two_hundred_idle_nodes_add_no_thread_and_find_each_other() {
    run(|lab| async move {
        let founder = lab.found("n0");
        let names: Vec<String> = (1..NODES).map(|n| format!("n{n}")).collect();
        let mut seeds = vec![founder.clone()];
        seeds.extend(lab.admit(&founder, &names));
        // libp2p has one thread for its timers in a process, whatever the number of nodes: the first node makes it.
        let (first, rest) = seeds.split_at(1);
        let first = start(&lab, first).await;
        eventually("the first node's timers", CONVERGENCE, async || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let mut names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
            names.any(|name| name.trim() == "futures-timer")
        })
        .await;
        let before = threads();

        let begun = Instant::now();
        let (meeting, apart) = rest.split_at(MEETING);
        let meeting = start(&lab, meeting).await;
        know_each_other(&meeting).await;
        println!("{MEETING} nodes know each other after {:?}", begun.elapsed());
        let mut groups = Vec::new();
        for group in apart.chunks(GROUP) {
            let group = start(&lab, group).await;
            know_each_other(&group).await;
            groups.push(group);
        }
        println!("{NODES} nodes run after {:?}", begun.elapsed());
        assert_eq!(threads(), before, "nodes added threads");

        let (used, since) = (processor_time(), Instant::now());
        // What is measured is a stretch of time, so it has to pass.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let share = (processor_time() - used).as_secs_f64() / since.elapsed().as_secs_f64();
        println!("{NODES} idle nodes use {share:.2} of a processor");
        assert_eq!(threads(), before, "nodes added threads");

        let all = first
            .into_iter()
            .chain(meeting)
            .chain(groups.into_iter().flatten());
        let stopping: Vec<_> = all
            .map(|peer| tokio::spawn(async move { peer.node.stop().await }))
            .collect();
        for stopped in stopping {
            stopped.await.unwrap();
        }
    });
}
