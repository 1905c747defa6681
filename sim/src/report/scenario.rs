//! The page of a scenario in virtual time.

use std::time::Duration;

use super::html::{Element, element, text};
use super::map::map;
use super::plot::{Frame, Kind, Series, Shade, byte_unit, max_of, plot};
use super::{Row, page, plots, section};
use crate::run::{Recording, RunReport, Sample};
use crate::scale::Percentiles;
use crate::scenario::{Fault, Way};

/// Into how many stretches of time transfers are counted: bars much thinner than these are hard to see.
pub const TRANSFER_BUCKETS: usize = 50;

/// Returns the page of a run.
#[must_use]
pub fn scenario_page(report: &RunReport, recording: &Recording) -> String {
    let shades = recording.faults.iter().map(|span| Shade {
        label: describe(&span.fault),
        from: span.from.as_secs_f64(),
        until: span.until.as_secs_f64(),
    });
    let frame = Frame {
        seconds: report.virtual_seconds,
        shades: shades.collect(),
    };
    let about = format!("hyperfabric-sim scale, seed {}, in virtual time", report.seed);
    let mut sections = Vec::new();
    if !report.violations.is_empty() {
        sections.push(violations(report));
    }
    if !frame.shades.is_empty() {
        sections.push(faults(&frame));
    }
    let mut figures = transfer_plots(recording, &frame);
    figures.extend(mesh_plots(recording, &frame));
    sections.push(section("Over time", [plots(figures)]));
    let what = if recording.lines_are_ways {
        "ways that there are"
    } else {
        "connections at the end; everyone has a way to everyone"
    };
    let mesh = map(
        "The mesh",
        what,
        report.peers,
        &recording.regions.iter().map(String::as_str).collect::<Vec<_>>(),
        &recording.lines,
    );
    sections.push(section("Who and where", [plots(vec![mesh])]));
    page(&report.intent, &about, rows(report, recording), sections)
}

fn rows(report: &RunReport, recording: &Recording) -> Vec<Row> {
    let bytes = |bytes: u64| {
        let (unit, size) = byte_unit(bytes as f64);
        format!("{:.1} {unit}", bytes as f64 / size)
    };
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
    if let Some(last) = last {
        rows.push(("payload received", bytes(last.payload_bytes)));
        rows.push(("control frames received", bytes(last.control_bytes)));
    }
    rows
}

fn violations(report: &RunReport) -> Element {
    let list = report.violations.iter().map(|found| {
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
        element("li").text(format_args!("{label}, from {from:.1} s until {until:.1} s"))
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
        Fault::Crash { peers, .. } => format!("crash of {peers} peers"),
        Fault::CrashMidway { peers, .. } => format!("crash of {peers} peers in the middle of transfers"),
        Fault::Slow { peers, by, .. } => format!("{peers} peers slower by {:.3} s a job", by.0.as_secs_f64()),
        Fault::Clock {
            peers, ahead, behind, ..
        } => {
            let error = ahead.0.as_secs_f64() - behind.0.as_secs_f64();
            format!("clocks of {peers} peers wrong by {error:.1} s")
        }
        Fault::Disconnect { pairs, .. } => format!("{pairs} pairs of peers disconnected"),
        Fault::Revoke { peers, .. } => format!("{peers} memberships revoked"),
        Fault::Churn { every, gone, .. } => format!(
            "churn: every {:.1} s a peer is gone for {:.1} s",
            every.0.as_secs_f64(),
            gone.0.as_secs_f64()
        ),
    }
}

fn line(name: &'static str, color: &'static str, points: Vec<(f64, f64)>) -> Series {
    Series {
        name,
        color,
        kind: Kind::Line,
        points,
    }
}

/// Delivery, and how long it took, by when transfers ended.
fn transfer_plots(recording: &Recording, frame: &Frame) -> Vec<Element> {
    let width = frame.seconds / TRANSFER_BUCKETS as f64;
    let bucket = |at: Duration| ((at.as_secs_f64() / width) as usize).min(TRANSFER_BUCKETS - 1);
    let mut given = [0.0; TRANSFER_BUCKETS];
    let mut ended = [0.0; TRANSFER_BUCKETS];
    let mut took_ms: Vec<Vec<u64>> = vec![Vec::new(); TRANSFER_BUCKETS];
    for transfer in &recording.transfers {
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
    let dots = |name, color, of: fn(&Percentiles) -> u64| Series {
        name,
        color,
        kind: Kind::Dots,
        points: spread
            .iter()
            .map(|(at, took)| (*at, of(took) as f64 / 1e3))
            .collect(),
    };
    let latency = [
        dots("longest", "c4", |took| took.max),
        dots("90 %", "c1", |took| took.p90),
        dots("median", "c0", |took| took.p50),
    ];
    let unit = format!("transfers in {width:.1} s");
    vec![
        plot("Delivery", &unit, &delivery, frame),
        plot(
            "Time from sender to durable",
            "s, by when they ended",
            &latency,
            frame,
        ),
    ]
}

/// The mesh, at each sample.
fn mesh_plots(recording: &Recording, frame: &Frame) -> Vec<Element> {
    let samples = &recording.samples;
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
    let memory = samples
        .iter()
        .filter_map(|s| Some((s.at.as_secs_f64(), s.rss_bytes? as f64)))
        .collect();
    vec![
        plot("Members known", "members", &known, frame),
        in_bytes(
            "Payload received",
            "/s",
            "c2",
            rates(samples, |s| s.payload_bytes),
            frame,
        ),
        in_bytes(
            "Control frames received",
            "/s",
            "c3",
            rates(samples, |s| s.control_bytes),
            frame,
        ),
        plot("Connections of a member", "connections", &connections, frame),
        in_bytes("Memory of the simulator", "", "c5", memory, frame),
    ]
}

/// What a counter gains per second, at each sample since the one before.
fn rates(samples: &[Sample], of: fn(&Sample) -> u64) -> Vec<(f64, f64)> {
    let rate = |pair: &[Sample]| {
        let [before, now] = pair else { return None };
        let seconds = (now.at - before.at).as_secs_f64();
        Some((now.at.as_secs_f64(), (of(now) - of(before)) as f64 / seconds))
    };
    let first = samples.first().map(|first| (first.at.as_secs_f64(), 0.0));
    first
        .into_iter()
        .chain(samples.windows(2).filter_map(rate))
        .collect()
}

fn in_bytes(
    title: &'static str,
    per: &str,
    color: &'static str,
    points: Vec<(f64, f64)>,
    frame: &Frame,
) -> Element {
    let mut series = [line(title, color, points)];
    let (unit, size) = byte_unit(max_of(&series));
    for (_, value) in &mut series[0].points {
        *value /= size;
    }
    plot(title, &format!("{unit}{per}"), &series, frame)
}
