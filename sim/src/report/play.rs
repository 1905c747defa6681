//! The page of a scenario on real nodes.

use super::plot::bytes;
use super::scenario::{deliveries, frame, mesh_plots, sections};
use super::{Row, page};
use crate::real::{Delivery, PlayReport};
use crate::run::Recording;

/// Returns the page of a scenario.
#[must_use]
pub fn play_page(report: &PlayReport, recording: &Recording) -> String {
    let frame = frame("time", report.seconds, &recording.faults);
    let about = format!("hyperfabric-sim run, seed {}, on real nodes", report.seed);
    let mut figures = Vec::new();
    for (titles, what, spans) in [
        (
            ["Transfers", "Time from sender to durable"],
            "transfers",
            &recording.transfers,
        ),
        (
            ["Messages", "Time from question to answer"],
            "messages",
            &recording.messages,
        ),
    ] {
        if !spans.is_empty() {
            figures.extend(deliveries(titles, what, spans, &frame));
        }
    }
    figures.extend(mesh_plots(&recording.samples, &frame));
    let sections = sections(&report.violations, recording, report.peers, &frame, figures);
    page(&report.intent, &about, rows(report), sections)
}

fn rows(report: &PlayReport) -> Vec<Row> {
    let (connections, datagrams) = (report.connections, report.datagrams);
    let mut rows = vec![
        ("peers", report.peers.to_string()),
        ("violations", report.violations.len().to_string()),
        (
            "time",
            format!(
                "{:.1} s; quiet {:.1} s after everything was mended",
                report.seconds, report.quiet_seconds
            ),
        ),
        (
            "processes",
            format!(
                "{} died; {} newcomers did not get in",
                report.crashes, report.not_joined
            ),
        ),
    ];
    for (what, of) in [("transfers", &report.transfers), ("messages", &report.messages)] {
        if of.sent > 0 {
            rows.push((what, delivery(of)));
            let errors = of.errors.iter();
            rows.extend(errors.map(|(error, count)| ("error", format!("{count} times: {error}"))));
        }
    }
    rows.extend([
        (
            "connections of a member",
            format!(
                "{:.1} on average at the end, {} at most at any time",
                connections.mean, connections.max
            ),
        ),
        (
            "cost",
            format!(
                "{:.1} s of a processor, {} of memory at most",
                report.cpu_seconds,
                bytes(report.rss_peak_bytes)
            ),
        ),
        (
            "datagrams",
            format!(
                "{} sent, {} lost, {} dropped by full queues",
                datagrams.sent, datagrams.lost, datagrams.overflowed
            ),
        ),
    ]);
    rows
}

fn delivery(of: &Delivery) -> String {
    let took = of.milliseconds;
    format!(
        "{} of {} arrived, {} damaged; median {:.0} ms, 90 % {:.0} ms, 99 % {:.0} ms, longest {:.0} ms",
        of.arrived, of.sent, of.damaged, took.p50, took.p90, took.p99, took.max
    )
}
