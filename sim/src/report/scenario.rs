//! The page of a scenario in virtual time.

use std::time::Duration;

use super::html::{Element, element, text};
use super::map::map;
use super::plot::{Frame, Kind, Series, Shade, bytes, in_bytes, line, plot, rates};
use super::{Row, page, plots, section};
use crate::check::Violation;
use crate::run::{FaultSpan, Recording, RunReport, Sample, TransferSpan};
use crate::scale::Percentiles;
use crate::scenario::{Fault, Way};

/// Into how many stretches of time transfers are counted: bars much thinner than these are hard to see.
pub const TRANSFER_BUCKETS: usize = 50;

/// Returns the page of a run.
#[must_use]
pub fn scenario_page(report: &RunReport, recording: &Recording) -> String {
    let frame = frame("virtual time", report.virtual_seconds, &recording.faults);
    let about = format!("hyperfabric-sim scale, seed {}, in virtual time", report.seed);
    let mut figures = Vec::from(transfer_plots(recording, &frame));
    figures.extend(mesh_plots(&recording.samples, &frame));
    let sections = sections(&report.violations, recording, report.peers, &frame, figures);
    page(&report.intent, &about, rows(report, recording), sections)
}

/// Puts the sections of a scenario together: what did not hold, what was wrong when, the plots, and the mesh.
pub(super) fn sections(
    violations: &[Violation],
    recording: &Recording,
    peers: usize,
    frame: &Frame,
    figures: Vec<Element>,
) -> Vec<Element> {
    let mut sections = Vec::new();
    if !violations.is_empty() {
        sections.push(not_held(violations));
    }
    if !frame.shades.is_empty() {
        sections.push(faults(frame));
    }
    sections.push(section("Over time", [plots(figures)]));
    let what = lines_are(recording.lines_are_ways);
    let regions: Vec<&str> = recording.regions.iter().map(String::as_str).collect();
    let mesh = map("The mesh", what, peers, &regions, &recording.lines);
    sections.push(section("Who and where", [plots(vec![mesh])]));
    sections
}

/// Says what the lines of a drawn mesh are.
pub(super) const fn lines_are(ways: bool) -> &'static str {
    if ways {
        "ways that there are"
    } else {
        "connections at the end; everyone has a way to everyone"
    }
}

/// Makes what all plots have in common.
pub(super) fn frame(time: &'static str, seconds: f64, faults: &[FaultSpan]) -> Frame {
    let shades = faults.iter().map(|span| Shade {
        label: describe(&span.fault),
        from: span.from.as_secs_f64(),
        until: span.until.as_secs_f64(),
    });
    Frame {
        time,
        seconds,
        shades: shades.collect(),
    }
}

fn rows(report: &RunReport, recording: &Recording) -> Vec<Row> {
    let last = recording.samples.last();
    let mut rows = vec![
        ("peers", report.peers.to_string()),
        (
            "transfers",
            format!(
                "{} given to their senders: {} delivered, {} ended with an error",
                report.transfers, report.delivered, report.failed
            ),
        ),
        ("violations", report.violations.len().to_string()),
        ("virtual time", format!("{:.1} s", report.virtual_seconds)),
        ("events", report.events.to_string()),
        ("trace", report.trace_hash.clone()),
    ];
    let counted = [
        ("payload received", last.and_then(|last| last.payload_bytes)),
        (
            "control frames received",
            last.and_then(|last| last.control_bytes),
        ),
    ];
    let counted = counted.into_iter();
    rows.extend(counted.filter_map(|(what, count)| Some((what, bytes(count?)))));
    rows
}

fn not_held(violations: &[Violation]) -> Element {
    let list = violations.iter().map(|found| {
        let at = Duration::from_millis(found.at_ms).as_secs_f64();
        let peer = found.peer.map_or(String::new(), |peer| format!(", p{peer}"));
        text(
            "li",
            "bad",
            format_args!("{at:.1} s{peer}, {}: {}", found.checker, found.what),
        )
    });
    section("What did not hold", [element("ul").children(list)])
}

fn faults(frame: &Frame) -> Element {
    let list = frame.shades.iter().map(|shade| {
        let Shade { label, from, until } = shade;
        if until > from {
            element("li").text(format_args!("{label}, from {from:.1} s until {until:.1} s"))
        } else {
            element("li").text(format_args!("{label}, at {from:.1} s"))
        }
    });
    let note = text("p", "dim", "Shaded in the plots, by number.");
    section("What went wrong", [element("ol").children(list), note])
}

fn describe(fault: &Fault) -> String {
    match fault {
        Fault::Partition {
            share, region, way, ..
        } => {
            let who = region.as_ref().map_or_else(
                || format!("about {:.0} % of the peers", f64::from(share.0) / 1e4),
                Clone::clone,
            );
            let what = match way {
                Way::Both => "cut off",
                Way::Outward => "cut off, what they send is lost",
                Way::Inward => "cut off, what is sent to them is lost",
            };
            format!("partition: {who} {what}")
        }
        Fault::Crash { peers, .. } => format!("crash of {}", some(*peers, "peer")),
        Fault::CrashMidway { peers, .. } => {
            format!("crash of {} in the middle of transfers", some(*peers, "peer"))
        }
        Fault::Slow { peers, by, .. } => {
            let who = some(*peers, "peer");
            format!("{who} slower by {:.3} s a job", by.0.as_secs_f64())
        }
        Fault::Clock {
            peers, ahead, behind, ..
        } => {
            let error = ahead.0.as_secs_f64() - behind.0.as_secs_f64();
            format!("clocks of {} wrong by {error:.1} s", some(*peers, "peer"))
        }
        Fault::Disconnect { pairs, .. } => format!("{} of peers disconnected", some(*pairs, "pair")),
        Fault::Revoke { peers, .. } => format!("{} revoked", some(*peers, "membership")),
        Fault::Churn { every, gone, .. } => format!(
            "churn: every {:.1} s a peer is gone for {:.1} s",
            every.0.as_secs_f64(),
            gone.0.as_secs_f64()
        ),
    }
}

fn transfer_plots(recording: &Recording, frame: &Frame) -> [Element; 2] {
    deliveries(
        ["Delivery", "Time from sender to durable"],
        "transfers",
        &recording.transfers,
        frame,
    )
}

fn some(count: usize, what: &str) -> String {
    let end = if count == 1 { "" } else { "s" };
    format!("{count} {what}{end}")
}

/// Delivery, and how long it took, by when things ended.
pub(super) fn deliveries(
    titles: [&str; 2],
    what: &str,
    spans: &[TransferSpan],
    frame: &Frame,
) -> [Element; 2] {
    let width = frame.seconds / TRANSFER_BUCKETS as f64;
    let bucket = |at: Duration| ((at.as_secs_f64() / width) as usize).min(TRANSFER_BUCKETS - 1);
    let mut given = [0.0; TRANSFER_BUCKETS];
    let mut ended = [0.0; TRANSFER_BUCKETS];
    let mut took_ms: Vec<Vec<u64>> = vec![Vec::new(); TRANSFER_BUCKETS];
    for transfer in spans {
        given[bucket(transfer.from)] += 1.0;
        if let Some((at, delivered)) = transfer.ended {
            ended[bucket(at)] += 1.0;
            if delivered {
                let took = (at - transfer.from).as_millis();
                took_ms[bucket(at)].push(u64::try_from(took).unwrap_or(u64::MAX));
            }
        }
    }
    let middle = |bucket: usize| (bucket as f64 + 0.5) * width;
    let counts = |name, color, kind, counts: Vec<f64>| Series {
        name,
        color,
        kind,
        points: (0..).map(middle).zip(counts).collect(),
    };
    let delivered = took_ms.iter().map(|took| took.len() as f64).collect();
    let delivery = [
        // What was delivered stands before all that ended: what is still seen of these has failed.
        counts("ended with an error", "c4", Kind::Bars(width), ended.to_vec()),
        counts("delivered", "c2", Kind::Bars(width), delivered),
        counts("given to senders", "c0", Kind::Steps(width), given.to_vec()),
    ];
    let spread: Vec<(f64, Percentiles)> = took_ms
        .into_iter()
        .enumerate()
        .filter(|(_, took)| !took.is_empty())
        .map(|(n, took)| (middle(n), Percentiles::of(took)))
        .collect();
    let longest = spread.iter().map(|(_, took)| took.max).max().unwrap_or(0);
    let (time, size) = if longest < 2_000 { ("ms", 1.0) } else { ("s", 1e3) };
    let dots = |name, color, of: fn(&Percentiles) -> u64| Series {
        name,
        color,
        kind: Kind::Dots,
        points: spread
            .iter()
            .map(|(at, took)| (*at, of(took) as f64 / size))
            .collect(),
    };
    let latency = [
        dots("longest", "c4", |took| took.max),
        dots("90 %", "c1", |took| took.p90),
        dots("median", "c0", |took| took.p50),
    ];
    let counted = format!("{what} in {width:.1} s");
    let took = format!("{time}, by when they ended");
    [
        plot(titles[0], &counted, &delivery, frame),
        plot(titles[1], &took, &latency, frame),
    ]
}

/// The mesh, at each sample.
pub(super) fn mesh_plots(samples: &[Sample], frame: &Frame) -> Vec<Element> {
    let at_each = |name, color, of: fn(&Sample) -> f64| {
        line(
            name,
            color,
            samples.iter().map(|s| (s.at.as_secs_f64(), of(s))).collect(),
        )
    };
    let known = [
        at_each("members that run", "c2", |s| s.running as f64),
        at_each("known to a member, on average", "c0", |s| s.known_mean),
        at_each("known to the one who knows the fewest", "c1", |s| {
            s.known_min as f64
        }),
    ];
    let connections = [
        at_each("on average", "c0", |s| s.connections_mean),
        at_each("most", "c1", |s| s.connections_max as f64),
    ];
    let counter = |of: fn(&Sample) -> Option<u64>| -> Vec<(f64, u64)> {
        let read = |s: &Sample| Some((s.at.as_secs_f64(), of(s)?));
        samples.iter().filter_map(read).collect()
    };
    let memory = counter(|s| s.rss_bytes);
    let (payload, control, datagrams) = (
        counter(|s| s.payload_bytes),
        counter(|s| s.control_bytes),
        counter(|s| s.datagrams),
    );
    let mut made = vec![plot("Members known", "members", &known, frame)];
    for (title, color, counter) in [
        ("Payload received", "c2", payload),
        ("Control frames received", "c3", control),
    ] {
        if !counter.is_empty() {
            made.push(in_bytes(title, "/s", color, rates(&counter), frame));
        }
    }
    if !datagrams.is_empty() {
        let sent = [line("all peers together", "c3", rates(&datagrams))];
        made.push(plot("Datagrams sent", "a second", &sent, frame));
    }
    made.push(plot(
        "Connections of a member",
        "connections",
        &connections,
        frame,
    ));
    let memory = memory.into_iter().map(|(at, bytes)| (at, bytes as f64));
    made.push(in_bytes(
        "Memory of the simulator",
        "",
        "c5",
        memory.collect(),
        frame,
    ));
    made
}
