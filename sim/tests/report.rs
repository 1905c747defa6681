//! The page of a scenario: whole, by itself, and true to the run.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::Command;

use hyperfabric_sim::check::Violation;
use hyperfabric_sim::report::{TRANSFER_BUCKETS, scenario_page};
use hyperfabric_sim::run::{Run, SAMPLES_MAX};
use hyperfabric_sim::scenario::Scenario;

/// Follows every tag of a page, and fails where one closes what is not open.
fn check_tags(page: &str) {
    let mut open = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
    while let Some(begin) = rest.find('<') {
        rest = &rest[begin + 1..];
        let (tag, after) = rest.split_once('>').unwrap();
        assert!(!tag.contains('<'), "{tag:?} is not closed");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.starts_with("meta ") => {}
            None => {
                open.push(tag.split(' ').next().unwrap());
                check_attributes(tag);
            }
        }
        rest = after;
    }
    assert!(open.is_empty(), "{open:?} are still open");
}

/// Fails where an attribute runs or fetches something.
fn check_attributes(tag: &str) {
    let names = tag
        .split('"')
        .step_by(2)
        .filter_map(|part| part.trim().strip_suffix('='));
    for name in names.filter_map(|name| name.split(' ').next_back()) {
        let acts = name.starts_with("on") || ["src", "href", "style"].contains(&name);
        assert!(!acts, "{tag:?} has {name}");
    }
}

fn check_page(page: &str) {
    check_tags(page);
    for word in ["http", "<script", "<link", "<img", "url(", "@import"] {
        let found = page.find(word).map(|at| &page[at..page.len().min(at + 40)]);
        assert_eq!(found, None);
    }
}

/// The points of each line that a page draws.
fn lines(page: &str) -> Vec<usize> {
    let begins = page.split(" points=\"").skip(1);
    begins
        .map(|part| part.split('"').next().unwrap().split(' ').count())
        .collect()
}

#[test]
fn the_page_of_a_partition_shows_it_and_every_sample() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/partition.toml");
    let mut scenario = Scenario::read(&path).unwrap();
    scenario.peers = 24;
    let quiet = Run::new(scenario.clone(), 1).unwrap().finish();
    let mut run = Run::new(scenario, 1).unwrap();
    run.record();
    let report = run.finish();
    assert_eq!(report.trace_hash, quiet.trace_hash, "to record changes nothing");

    let recording = run.recording().unwrap();
    let samples = &recording.samples;
    assert!(
        (SAMPLES_MAX / 2..=SAMPLES_MAX).contains(&samples.len()),
        "{}",
        samples.len()
    );
    assert!(samples.windows(2).all(|pair| pair[0].at < pair[1].at));
    assert_eq!(recording.transfers.len(), report.transfers);
    let delivered = recording
        .transfers
        .iter()
        .filter(|t| t.ended.is_some_and(|(_, good)| good));
    assert_eq!(delivered.count(), report.delivered);
    // The region is away for a minute, and others join meanwhile: somebody must have known fewer than all.
    let known = |at: u64| samples.iter().find(|s| s.at.as_secs() >= at).unwrap();
    assert!(known(60).known_min < known(60).running);
    assert_eq!(samples.last().unwrap().known_min, samples.last().unwrap().running);

    let page = scenario_page(&report, &recording);
    check_page(&page);
    assert!(page.contains(&format!("<h1>{}</h1>", report.intent)));
    assert!(page.contains(&report.trace_hash));
    assert!(page.contains("partition: eu-west cut off, from 30.0 s until 90.0 s"));
    let plots = page.matches("virtual time, s").count();
    assert_eq!(
        page.matches("class=\"fault\"").count(),
        plots,
        "the fault is in each plot"
    );
    let (mut of_samples, mut of_buckets) = (0, 0);
    for points in lines(&page) {
        of_samples += usize::from(points == samples.len());
        of_buckets += usize::from(points == 2 * TRANSFER_BUCKETS);
    }
    assert_eq!((of_samples, of_buckets), (8, 1), "{:?}", lines(&page));
    let drawn = page.matches("</title></circle>").count();
    assert_eq!(drawn, report.peers, "each peer is drawn");

    assert!(!page.contains("What did not hold"));
    let mut broken = report;
    broken.violations.push(Violation {
        checker: "bounds",
        at_ms: 1_500,
        peer: Some(3),
        what: "has 7 > 6 <items>".to_owned(),
    });
    let page = scenario_page(&broken, &recording);
    check_page(&page);
    assert!(page.contains("1.5 s, p3, bounds: has 7 &gt; 6 &lt;items&gt;"));
}

#[test]
fn what_a_file_says_is_no_markup() {
    let folder = std::env::temp_dir().join(format!("hyperfabric-sim-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (mine, html) = (folder.join("mine.toml"), folder.join("mine.html"));
    let text = "intent = '<script>alert(1)</script> & \"more\"'\npeers = 3\nlasts = '12s'\n\
                topology = { shape = 'ring' }\n";
    std::fs::write(&mine, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hyperfabric-sim"))
        .args(["scale", "--json", "--scenario"])
        .arg(&mine)
        .arg("--html")
        .arg(&html)
        .output();
    let page = std::fs::read_to_string(&html);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.unwrap().status.success());
    let page = page.unwrap();
    check_page(&page);
    assert!(page.contains("<h1>&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;more&quot;</h1>"));
    assert!(page.contains("3 of 3 peers; 3 of 3 lines: ways that there are"));
}

#[cfg(feature = "real")]
#[test]
fn the_page_of_real_nodes_has_their_numbers_and_contacts() {
    use std::collections::BTreeMap;

    use hyperfabric_sim::real::{Datagrams, Delivery, Percentiles, RealReport, Spread};
    use hyperfabric_sim::report::real_page;

    let delivery = |p50, error: &str| Delivery {
        sent: 10,
        arrived: 9,
        milliseconds: Percentiles {
            p50,
            p90: 70.0,
            p99: 80.0,
            max: 90.5,
        },
        errors: BTreeMap::from([(error.to_owned(), 1)]),
        damaged: 0,
    };
    let report = RealReport {
        peers: 4,
        seed: 7,
        know_all: 3,
        delivery_ratio: 0.9,
        messages: delivery(41.5, "the <peer> is \"away\""),
        transfers: delivery(62.5, "timed out"),
        start_seconds: 1.0,
        meet_seconds: 2.0,
        messages_seconds: 3.0,
        transfers_seconds: 4.0,
        cpu_seconds: 5.0,
        idle_cpu: 0.1,
        rss_idle_bytes: 1 << 20,
        rss_per_peer_bytes: 1 << 20,
        rss_peak_bytes: 1 << 23,
        connections: Spread::default(),
        dials: Spread::default(),
        datagrams: Datagrams::default(),
    };
    let contacts = [vec![1], vec![2, 0], vec![3], vec![0]];
    let page = real_page(&report, &contacts, &["eu-west", "us-east", "eu-west", "ap-south"]);
    check_page(&page);
    for shown in ["41.5 ms", "62.5 ms", "90.5 ms", "3 of 4", "90.00 %", "timed out"] {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(page.contains("the &lt;peer&gt; is &quot;away&quot;"));
    assert!(page.contains("4 of 4 peers; 4 of 4 lines: whom peers were told of"));
    assert!(page.contains("<title>p3, ap-south</title>"));
}
