//! The page of a mesh that many peers have joined, in virtual time.

use super::bars::bars;
use super::html::Element;
use super::map::map;
use super::plot::{Frame, bytes, in_bytes, line, plot, rates};
use super::scenario::lines_are;
use super::{Row, page, plots, section};
use crate::scale::{Percentiles, ScaleRecording, ScaleReport, ScaleSample};

/// Returns the page of a mesh. `seconds` is how long this machine took.
#[must_use]
pub fn scale_page(report: &ScaleReport, recording: &ScaleRecording, seconds: f64) -> String {
    let title = format!("{} peers join one mesh", report.peers);
    let about = format!("hyperfabric-sim scale, seed {}, in virtual time", report.seed);
    let frame = Frame {
        time: "virtual time",
        seconds: report.virtual_seconds,
        shades: Vec::new(),
    };
    let regions: Vec<&str> = recording.regions.iter().map(String::as_str).collect();
    let what = lines_are(recording.lines_are_ways);
    let mesh = map("The mesh", what, report.peers, &regions, &recording.lines);
    let sections = vec![
        section("Over time", [plots(over_time(&recording.samples, &frame))]),
        section("Of each peer", [plots(of_each(report, recording))]),
        section("Who and where", [plots(vec![mesh])]),
    ];
    page(&title, &about, rows(report, recording, seconds), sections)
}

fn rows(report: &ScaleReport, recording: &ScaleRecording, seconds: f64) -> Vec<Row> {
    let outcome = if report.joined {
        format!("everyone knows everyone after {:.1} s", report.virtual_seconds)
    } else {
        format!(
            "they have NOT come together within {:.1} s",
            report.virtual_seconds
        )
    };
    let mut rows = vec![
        ("outcome", outcome),
        (
            "events",
            format!(
                "{}, in {seconds:.1} s of this machine: {:.0} a second",
                report.events,
                report.events as f64 / seconds.max(f64::MIN_POSITIVE)
            ),
        ),
        (
            "an item arrives",
            format!("{:.1} times at each peer", report.arrivals_per_item),
        ),
        ("signatures checked", report.checks.to_string()),
        (
            "control frames",
            format!("{} received by each peer", bytes(report.control_bytes_per_peer)),
        ),
    ];
    let memory = recording.samples.last().and_then(|last| last.rss_bytes);
    rows.extend(memory.map(|memory| ("memory of the simulator", bytes(memory))));
    rows.push(("trace", report.trace_hash.clone()));
    rows
}

/// The mesh, at each sample.
fn over_time(samples: &[ScaleSample], frame: &Frame) -> Vec<Element> {
    let at_each = |name, color, of: fn(&ScaleSample) -> f64| {
        let points = samples.iter().map(|s| (s.at.as_secs_f64(), of(s)));
        line(name, color, points.collect())
    };
    let counter = |of: fn(&ScaleSample) -> u64| -> Vec<(f64, u64)> {
        samples.iter().map(|s| (s.at.as_secs_f64(), of(s))).collect()
    };
    let joins = [
        at_each("started", "c2", |s| s.started as f64),
        at_each("know all that had started before them", "c0", |s| s.joined as f64),
        at_each("know everyone", "c1", |s| s.complete as f64),
    ];
    let connections = [
        at_each("on average", "c0", |s| s.connections_mean),
        at_each("most", "c1", |s| s.connections_max as f64),
    ];
    let events = [line("all peers together", "c4", rates(&counter(|s| s.events)))];
    let control = rates(&counter(|s| s.control_bytes));
    let memory = samples
        .iter()
        .filter_map(|s| Some((s.at.as_secs_f64(), s.rss_bytes? as f64)));
    vec![
        plot("Joins", "peers", &joins, frame),
        plot("Connections of a peer", "connections", &connections, frame),
        in_bytes("Control frames received", "/s", "c3", control, frame),
        plot("Events", "a second of virtual time", &events, frame),
        in_bytes("Memory of the simulator", "", "c5", memory.collect(), frame),
    ]
}

fn of_each(report: &ScaleReport, recording: &ScaleRecording) -> Vec<Element> {
    let peers = report.peers as f64;
    let frames = recording.frames.iter();
    let counts: Vec<(&str, f64)> = frames
        .clone()
        .map(|of| (of.name, of.frames as f64 / peers))
        .collect();
    let sizes: Vec<(&str, f64)> = frames
        .map(|of| (of.name, of.bytes as f64 / peers / 1e3))
        .collect();
    let spread = |title, unit, color, of: Percentiles, size: f64| {
        let rows = [
            ("median", of.p50),
            ("90 %", of.p90),
            ("99 %", of.p99),
            ("most", of.max),
        ];
        bars(
            title,
            unit,
            color,
            &rows.map(|(name, of)| (name, of as f64 / size)),
        )
    };
    vec![
        spread(
            "From its start until it knows all that started before",
            "s",
            "c0",
            report.join_ms,
            1e3,
        ),
        spread("Connections at the end", "", "c1", report.connections, 1.0),
        bars("Frames received, by type", "", "c3", &counts),
        bars("Their bytes", "kB", "c3", &sizes),
    ]
}
