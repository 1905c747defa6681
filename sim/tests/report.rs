//! The page of a scenario: whole, by itself, and true to the run.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hyperfabric_sim::check::Violation;
use hyperfabric_sim::conditions::Conditions;
use hyperfabric_sim::report::{TRANSFER_BUCKETS, scale_page, scenario_page};
use hyperfabric_sim::run::{Run, SAMPLES_MAX};
use hyperfabric_sim::scale::{Scale, ScaleConfig};
use hyperfabric_sim::scenario::Scenario;
use hyperfabric_sim::topology::Shape;
use hyperfabric_sim::world::WorldOptions;

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
fn the_page_of_a_mesh_shows_who_joined_when_and_recording_changes_nothing() {
    let config = |shape| ScaleConfig {
        peers: 30,
        seed: 3,
        tickets: matches!(shape, Shape::Geographic),
        shape,
        link: Conditions::default(),
        join_within: Duration::from_secs(5),
        limit: Duration::from_secs(600),
    };
    let options = WorldOptions {
        discovery: true,
        share: true,
        ..WorldOptions::default()
    };
    let mut quiet = Scale::new(config(Shape::Geographic), options);
    assert!(quiet.run() && quiet.recording().is_none());
    let mut scale = Scale::new(config(Shape::Geographic), options);
    scale.record();
    assert!(scale.run());
    let (report, recording) = (scale.report(), scale.recording().unwrap());
    assert_eq!(report.trace_hash, quiet.report().trace_hash);

    let samples = &recording.samples;
    assert!((10..=SAMPLES_MAX).contains(&samples.len()), "{}", samples.len());
    assert!(samples.windows(2).all(|pair| pair[0].at < pair[1].at));
    let last = samples.last().unwrap();
    assert_eq!((last.started, last.joined, last.complete), (30, 30, 30));
    assert_eq!(last.at.as_secs_f64(), report.virtual_seconds);
    assert_eq!(last.events, report.events);
    let bytes: u64 = recording.frames.iter().map(|of| of.bytes).sum();
    assert_eq!(
        (bytes, bytes / 30),
        (last.control_bytes, report.control_bytes_per_peer)
    );

    let page = scale_page(&report, &recording, 0.5);
    check_page(&page);
    assert!(page.contains("<h1>30 peers join one mesh</h1>") && page.contains(&report.trace_hash));
    for of in &recording.frames {
        assert!(page.contains(&format!(">{}</text>", of.name)), "{of:?}");
    }
    // Joins, connections, control frames, events and memory.
    assert_eq!(lines(&page), [samples.len(); 8]);
    assert_eq!(
        page.matches("</title></circle>").count(),
        30,
        "each peer is drawn"
    );
    assert!(page.contains("eu-west") && page.contains("connections at the end"));

    let mut ring = Scale::new(config(Shape::Ring), options);
    ring.record();
    assert!(ring.run());
    let page = scale_page(&ring.report(), &ring.recording().unwrap(), 0.5);
    assert!(page.contains("30 of 30 peers; 30 of 30 lines: ways that there are"));
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

/// A ring of three, which takes no time.
const SMALL: [&str; 5] = ["scale", "--peers", "3", "--topology", "ring"];

#[test]
fn a_page_that_cannot_be_written_whole_leaves_the_one_that_was_there() {
    let folder = std::env::temp_dir().join(format!("hyperfabric-sim-full-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let html = folder.join("mesh.html");
    std::fs::write(&html, "the last one").unwrap();
    // As on a full disk: a write fails after the first block.
    let limited = "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_hyperfabric-sim")])
        .args(SMALL)
        .arg("--html")
        .arg(&html)
        .output()
        .unwrap();
    let kept = std::fs::read_to_string(&html).unwrap();
    let files = std::fs::read_dir(&folder).unwrap().count();
    std::fs::remove_dir_all(&folder).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot write") && said.contains("mesh.html"),
        "{said}"
    );
    assert_eq!((kept.as_str(), files), ("the last one", 1));
}

#[test]
fn who_reads_no_further_is_not_told_of_it() {
    let virtual_only = ["calibrate", "--virtual-only", "--peers", "3", "--judging", "3"];
    let commands = [&SMALL[..], &virtual_only];
    for arguments in &commands[..1 + usize::from(cfg!(feature = "real"))] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hyperfabric-sim"))
            .args(*arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert!(output.status.success(), "{arguments:?}");
    }
}

#[cfg(feature = "real")]
#[test]
fn the_page_of_a_scenario_on_real_nodes_shows_what_was_sent_and_what_failed_when() {
    use hyperfabric_sim::real::play_recorded;
    use hyperfabric_sim::report::play_page;

    let text = "intent = 'A crash & a cut.'\npeers = 4\njoin_within = '500ms'\nlasts = '9s'\n\
                [[fault]]\nkind = 'crash'\nat = '3s'\nlasts = '2s'\npeers = 1\n\
                [[fault]]\nkind = 'partition'\nat = '2s'\nlasts = '2s'\nshare = '50%'\n\
                [[load]]\nkind = 'transfers'\nat = '1s'\nwithin = '5s'\ncount = 4\nsize = '100KiB'\n\
                [[load]]\nkind = 'messages'\nat = '1s'\nwithin = '5s'\ncount = 8\n";
    let scenario = Scenario::parse(text, Path::new("test.toml")).unwrap();
    let (report, recording) = play_recorded(scenario, 1, &|_| {}).unwrap();
    assert_eq!(report.violations, [], "{report:#?}");

    let samples = &recording.samples;
    assert!((10..=SAMPLES_MAX).contains(&samples.len()), "{}", samples.len());
    assert!(samples.windows(2).all(|pair| pair[0].at < pair[1].at));
    assert!(samples.iter().any(|s| s.running < 4) && samples.last().unwrap().running == 4);
    let spans: Vec<(f64, f64)> = recording
        .faults
        .iter()
        .map(|span| (span.from.as_secs_f64(), span.until.as_secs_f64()))
        .collect();
    for ((from, until), (begins, ends)) in spans.iter().zip([(3.0, 5.0), (2.0, 4.0)]) {
        assert!(
            (begins..begins + 2.0).contains(from) && (ends..ends + 3.0).contains(until),
            "{spans:?}"
        );
    }
    assert_eq!(spans.len(), 2);
    for (spans, of) in [
        (&recording.transfers, &report.transfers),
        (&recording.messages, &report.messages),
    ] {
        let arrived = spans
            .iter()
            .filter(|span| span.ended.is_some_and(|(_, good)| good));
        assert_eq!(
            (spans.len(), arrived.count()),
            (of.sent, of.arrived),
            "{report:#?}"
        );
        assert!(
            spans
                .iter()
                .all(|span| span.ended.is_none_or(|(at, _)| at >= span.from))
        );
    }
    assert_eq!(recording.lines.len(), 6, "{:?}", recording.lines);

    let page = play_page(&report, &recording);
    check_page(&page);
    assert!(page.contains("<h1>A crash &amp; a cut.</h1>"));
    assert!(page.contains("crash of 1 peer,") && page.contains("partition: about 50 %"));
    let plots = page.matches("time, s</text>").count();
    assert_eq!((plots, page.matches("class=\"fault\"").count()), (8, 16));
    assert!(!page.contains("virtual time"));
    assert_eq!(page.matches("</title></circle>").count(), 4, "each peer is drawn");
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
