//! The Prometheus text format, version 0.0.4, of a bootstrap peer's numbers.

use std::fmt::Write as _;

use super::{Reporter, Snapshot};
use crate::counters::Counters;

/// Prints every number; those of the event loop only when it has answered.
pub(super) fn text(reporter: &Reporter, snapshot: Option<&Snapshot>) -> String {
    let shared = &reporter.0;
    let mut page = Page::default();
    page.gauge(
        "up",
        "Whether the event loop answers.",
        u64::from(snapshot.is_some()),
    );
    if let Some(snapshot) = snapshot {
        page.event_loop(snapshot, reporter.uptime(snapshot).as_secs());
    }
    let accepted = shared.handle.endpoint().accepted_connections();
    page.gauge(
        "accepted_connections",
        "Open connections that others have dialled, for any purpose.",
        count(accepted),
    );
    page.counters(&shared.counters);
    page.gauge(
        "warnings",
        "Warnings that /health shows.",
        count(reporter.warnings().len()),
    );
    if let Some(bytes) = resident_bytes() {
        page.gauge(
            "resident_memory_bytes",
            "Memory that the process has in RAM.",
            bytes,
        );
    }
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn event_loop(&mut self, snapshot: &Snapshot, uptime_seconds: u64) {
        self.gauge(
            "connections",
            "Members connected now.",
            count(snapshot.connections),
        );
        self.gauge(
            "members",
            "Members known, this one among them.",
            count(snapshot.members),
        );
        self.gauge(
            "flood_items",
            "Items in the flooded database.",
            count(snapshot.flood_items),
        );
        self.gauge(
            "peers_known",
            "Peers whose addresses are known.",
            count(snapshot.peers_known),
        );
        self.gauge("uptime_seconds", "Seconds since the start.", uptime_seconds);
    }

    fn counters(&mut self, counters: &Counters) {
        for (name, help, counter) in [
            (
                "handshakes_admitted_total",
                "Identities let through in handshakes, in both directions.",
                &counters.handshakes_admitted,
            ),
            (
                "handshakes_refused_total",
                "Identities refused in handshakes, in both directions.",
                &counters.handshakes_refused,
            ),
            (
                "peers_connected_total",
                "Times that a member came up.",
                &counters.peers_up,
            ),
            (
                "peers_unreachable_total",
                "Dials that no address of a peer answered.",
                &counters.peers_unreachable,
            ),
            (
                "joins_admitted_total",
                "Certificates given for tickets, and renewed.",
                &counters.joins_admitted,
            ),
            ("joins_refused_total", "Tickets refused.", &counters.joins_refused),
            (
                "peers_misbehaved_total",
                "Peers cut off because they broke the protocol.",
                &counters.peers_misbehaved,
            ),
        ] {
            self.metric(name, "counter", help, counter.value());
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.metric(name, "gauge", help, value);
    }

    fn metric(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        let name = format_args!("hyperfabric_bootstrap_{name}");
        writeln!(
            self.0,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
        )
        .expect("a string takes what is written to it");
    }
}

fn count(items: usize) -> u64 {
    u64::try_from(items).unwrap_or(u64::MAX)
}

/// Reads the process's resident set. From `status` instead of `statm`, whose unit is the machine's page size.
fn resident_bytes() -> Option<u64> {
    resident_in(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn resident_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_set_is_read_in_bytes_or_left_out() {
        assert_eq!(
            resident_in("Name:\tx\nVmRSS:\t   2048 kB\nThreads:\t4\n"),
            Some(2 * 1024 * 1024)
        );
        assert_eq!(resident_in("VmRSS:\tmuch kB\n"), None);
        assert_eq!(resident_in(""), None);
    }

    #[test]
    fn a_number_has_its_help_and_its_type() {
        let mut page = Page::default();
        page.gauge("up", "Whether it runs.", 1);
        assert_eq!(
            page.0,
            "# HELP hyperfabric_bootstrap_up Whether it runs.\n# TYPE hyperfabric_bootstrap_up gauge\nhyperfabric_bootstrap_up 1\n"
        );
    }
}
