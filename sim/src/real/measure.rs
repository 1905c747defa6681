//! What the process uses, from `/proc` (proc(5)), and how numbers are spread.

use std::io;
use std::time::{Duration, Instant};

use rustix::param::clock_ticks_per_second;
use serde::Serialize;

/// How long the peers are left alone to see what they use by themselves: several keep-alives.
const IDLE: Duration = Duration::from_secs(5);

/// What the process has used so far.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Processor time, of all threads.
    pub processor: Duration,
    /// Memory now.
    pub rss_bytes: u64,
    /// The most memory so far.
    pub rss_peak_bytes: u64,
}

impl Usage {
    /// Reads it.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn now() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        // utime and stime.
        let ticks: u64 = after_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        let status = std::fs::read_to_string("/proc/self/status")?;
        Ok(Self {
            processor: Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64),
            rss_bytes: kibibytes(&status, "VmRSS:") * 1024,
            rss_peak_bytes: kibibytes(&status, "VmHWM:") * 1024,
        })
    }
}

fn kibibytes(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// What peers use that have nothing to do.
pub(super) struct Idle {
    pub(super) share: f64,
    pub(super) rss_bytes: u64,
}

pub(super) async fn idle(settle: Duration) -> io::Result<Idle> {
    tokio::time::sleep(settle).await;
    let (before, begun) = (Usage::now()?, Instant::now());
    tokio::time::sleep(IDLE).await;
    let after = Usage::now()?;
    Ok(Idle {
        share: (after.processor - before.processor).as_secs_f64() / begun.elapsed().as_secs_f64(),
        rss_bytes: after.rss_bytes,
    })
}

/// How numbers are spread, by nearest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// Nine of ten are not above this.
    pub p90: f64,
    /// Ninety-nine of a hundred are not above this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    /// Of these numbers; zeros when there are none.
    #[must_use]
    pub fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let place = (share * numbers.len() as f64).ceil() as usize;
            numbers.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self {
            p50: rank(0.5),
            p90: rank(0.9),
            p99: rank(0.99),
            max: rank(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numbers_that_were_given() {
        let numbers = (1..=200).rev().map(f64::from).collect();
        let expected = Percentiles {
            p50: 100.0,
            p90: 180.0,
            p99: 198.0,
            max: 200.0,
        };
        assert_eq!(Percentiles::of(numbers), expected);
        assert_eq!(Percentiles::of(vec![7.0]).p50, 7.0);
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }

    #[test]
    fn the_process_uses_memory_and_time() {
        let usage = Usage::now().unwrap();
        assert!(usage.rss_bytes > 100_000 && usage.rss_peak_bytes >= usage.rss_bytes / 2);
    }
}
