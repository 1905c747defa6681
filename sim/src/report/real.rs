//! The page of a run of real nodes.

use super::bars::bars;
use super::html::Element;
use super::map::map;
use super::{Row, page, plots, section};
use crate::real::{Delivery, RealReport};

/// Returns the page of a run. `contacts` says whom each peer was told of at its start, and `regions` where each one is,
/// if anywhere.
#[must_use]
pub fn real_page(report: &RealReport, contacts: &[Vec<usize>], regions: &[&str]) -> String {
    let title = format!("{} real nodes on a bad network", report.peers);
    let about = format!("hyperfabric-sim run, seed {}", report.seed);
    let mut lines: Vec<(usize, usize)> = contacts
        .iter()
        .enumerate()
        .flat_map(|(peer, known)| {
            known
                .iter()
                .map(move |other| (peer.min(*other), peer.max(*other)))
        })
        .collect();
    lines.sort_unstable();
    lines.dedup();
    let contacts = map(
        "The mesh",
        "whom peers were told of",
        report.peers,
        regions,
        &lines,
    );
    let sections = vec![
        section("How long it took", [plots(durations(report))]),
        section("Who knew whom at first", [plots(vec![contacts])]),
    ];
    page(&title, &about, rows(report), sections)
}

fn rows(report: &RealReport) -> Vec<Row> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (connections, dials, datagrams) = (report.connections, report.dials, report.datagrams);
    let mut rows = vec![
        (
            "peers that know everyone",
            format!("{} of {}", report.know_all, report.peers),
        ),
        ("delivered", format!("{:.2} %", 100.0 * report.delivery_ratio)),
        ("messages", arrived(&report.messages)),
        ("transfers", arrived(&report.transfers)),
        (
            "connections of a peer",
            format!("{:.1} on average, {} at most", connections.mean, connections.max),
        ),
        (
            "dials of a peer",
            format!("{:.1} on average, {} at most", dials.mean, dials.max),
        ),
        (
            "memory",
            format!(
                "{:.2} MiB for each idle peer, {:.0} MiB at most in all",
                mib(report.rss_per_peer_bytes),
                mib(report.rss_peak_bytes)
            ),
        ),
        (
            "processor",
            format!(
                "{:.1} s in all; {:.3} of one while idle",
                report.cpu_seconds, report.idle_cpu
            ),
        ),
        (
            "datagrams",
            format!(
                "{} sent, {} lost, {} dropped by full queues",
                datagrams.sent, datagrams.lost, datagrams.overflowed
            ),
        ),
    ];
    for of in [&report.messages, &report.transfers] {
        rows.extend(
            of.errors
                .iter()
                .map(|(error, count)| ("error", format!("{count} times: {error}"))),
        );
    }
    rows
}

fn arrived(of: &Delivery) -> String {
    format!("{} of {} arrived, {} damaged", of.arrived, of.sent, of.damaged)
}

fn durations(report: &RealReport) -> Vec<Element> {
    let phases = [
        ("start", report.start_seconds),
        ("meeting", report.meet_seconds),
        ("messages", report.messages_seconds),
        ("transfers", report.transfers_seconds),
    ];
    let spread = |title, color, of: &Delivery| {
        let took = of.milliseconds;
        let rows = [
            ("median", took.p50),
            ("90 %", took.p90),
            ("99 %", took.p99),
            ("longest", took.max),
        ];
        bars(title, "ms", color, &rows)
    };
    vec![
        spread("Messages, until they were answered", "c0", &report.messages),
        spread("Transfers, until they had ended", "c1", &report.transfers),
        bars("Phases of the run", "s", "c2", &phases),
    ]
}
