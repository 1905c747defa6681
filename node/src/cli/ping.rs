//! `hyperfabric ping`: echoes one at a time, so that each can be shown when it comes back.

use hyperfabric_node::api::ErrorCode;
use hyperfabric_node::api::model::{PING_TIMEOUT_MS_MAX, PingReport, PingRequest};

use hyperfabric_protocol::NodeId;

use super::units::{latency, millis, to_f64};
use super::{Context, Failure, args};

pub(crate) fn run(context: &Context, ping: args::Ping) -> Result<(), Failure> {
    let client = context.client()?;
    let timeout_ms = millis(ping.timeout).clamp(1, PING_TIMEOUT_MS_MAX);
    let one = PingRequest {
        node: ping.node,
        count: 1,
        size: ping.size,
        timeout_ms,
    };
    let mut all: Option<PingReport> = None;
    for number in 0..ping.count {
        if number > 0 {
            // A pause that nothing can end early.
            let _ = crossbeam_channel::after(ping.interval).recv();
        }
        let report = client.ping(&one)?;
        if !context.out.json {
            let sample = report.samples_ns.first().copied().flatten();
            let answer = sample.map_or_else(|| "no answer".to_owned(), latency);
            context
                .out
                .text(&format!("{} bytes to {}: {answer}", ping.size, one.node))?;
        }
        all = Some(match all {
            Some(before) => merge(before, report),
            None => report,
        });
    }
    let Some(all) = all else { return Ok(()) };
    context.out.answer(&all, text)?;
    if all.success {
        return Ok(());
    }
    // The answer says it all on standard output, where JSON is one object.
    context.out.note(&format!("error: {} did not answer", one.node));
    Err(Failure::Said(ErrorCode::TimedOut))
}

/// Adds a report of later echoes to an earlier one.
fn merge(mut before: PingReport, after: PingReport) -> PingReport {
    before.samples_ns.extend(after.samples_ns);
    let mut answered: Vec<u64> = before.samples_ns.iter().copied().flatten().collect();
    answered.sort_unstable();
    let lost = before.samples_ns.len() - answered.len();
    before.latency_ns = answered.get(answered.len() / 2).copied().unwrap_or(0);
    before.packet_loss_rate = count(lost) / count(before.samples_ns.len());
    before.success |= after.success;
    if after.success {
        before.path = after.path;
        before.bandwidth_gbps = after.bandwidth_gbps.or(before.bandwidth_gbps);
    }
    before
}

fn text(all: &PingReport) -> String {
    let answered = || all.samples_ns.iter().copied().flatten();
    let path: Vec<&str> = all.path.iter().map(NodeId::as_str).collect();
    let lost = format!("{:.0}% lost", all.packet_loss_rate * 100.0);
    match (answered().min(), answered().max()) {
        (Some(min), Some(max)) => format!(
            "min {}, median {}, max {}, {lost}, over {}{}",
            latency(min),
            latency(all.latency_ns),
            latency(max),
            path.join(" > "),
            all.bandwidth_gbps.map_or_else(String::new, |gbps| format!(
                "; the last transfer ran at {gbps:.2} Gbit/s"
            ))
        ),
        _ => lost,
    }
}

fn count(number: usize) -> f64 {
    to_f64(u64::try_from(number).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(sample: Option<u64>) -> PingReport {
        PingReport {
            source: NodeId::new("a").unwrap(),
            destination: NodeId::new("b").unwrap(),
            latency_ns: sample.unwrap_or(0),
            bandwidth_gbps: None,
            path: vec![],
            packet_loss_rate: if sample.is_some() { 0.0 } else { 1.0 },
            timestamp: 1.0,
            success: sample.is_some(),
            samples_ns: vec![sample],
        }
    }

    #[test]
    fn echoes_add_up_to_one_report() {
        let all = [Some(3), Some(2), Some(9)]
            .into_iter()
            .map(report)
            .fold(report(None), merge);
        assert_eq!((all.latency_ns, all.success), (3, true));
        assert!((all.packet_loss_rate - 0.25).abs() < 1e-9);
        assert_eq!(all.samples_ns, [None, Some(3), Some(2), Some(9)]);
        let none = merge(report(None), report(None));
        assert!(!none.success && none.latency_ns == 0 && none.packet_loss_rate > 0.99);
    }
}
