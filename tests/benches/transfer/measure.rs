//! What a round costs: wall time, processor time of both ends, and the largest memory of one process.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hyperfabric_tests::process::{cpu_seconds_with_children, status_field};
use hyperfabric_tests::wait::until;

/// How often memory is looked at. The kernel keeps the peak, so that only the end of a process can be missed.
const LOOK: Duration = Duration::from_millis(20);
/// How long the children of a server may take to end after their work.
const SETTLE: Duration = Duration::from_secs(5);

/// The cost of one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_bytes: u64,
}

/// Runs `work` and measures it: the processes that it starts and waits for, and the `servers` that run all the time.
pub(crate) fn measure(servers: &[u32], work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let own = std::process::id();
    let cpu = || -> Result<f64> {
        let mut seconds = cpu_seconds_with_children(own)?;
        for server in servers {
            seconds += cpu_seconds_with_children(*server)?;
        }
        Ok(seconds)
    };
    let ended = AtomicBool::new(false);
    let (before, begin) = (cpu()?, Instant::now());
    let (peaks, result, seconds) = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(own, &ended));
        let result = work();
        let seconds = begin.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        (
            watcher.join().expect("the watcher does not panic"),
            result,
            seconds,
        )
    });
    result?;
    until("the children of the servers", SETTLE, || {
        Ok(servers.iter().all(|server| children(*server).is_empty()))
    })?;
    let peak_bytes = peaks.into_values().max().unwrap_or(0);
    Ok(Cost {
        seconds,
        cpu_seconds: cpu()? - before,
        peak_bytes,
    })
}

/// Follows the peak memory of every process below `own`.
fn watch(own: u32, ended: &AtomicBool) -> BTreeMap<u32, u64> {
    let mut peaks = BTreeMap::new();
    loop {
        let last = ended.load(Ordering::Relaxed);
        // The servers are among the children.
        let mut open = children(own);
        while let Some(process) = open.pop() {
            // Gone between two looks: its last peak stays.
            if let Ok(kib) = status_field(process, "VmHWM") {
                let peak: &mut u64 = peaks.entry(process).or_default();
                *peak = (*peak).max(kib * 1024);
            }
            open.extend(children(process));
        }
        if last {
            return peaks;
        }
        thread::park_timeout(LOOK);
    }
}

fn children(process: u32) -> Vec<u32> {
    // A thread lists the children that it started; any thread of ours may have.
    let threads = fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Median, smallest and largest of some numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(numbers: impl Iterator<Item = f64>) -> Result<Self> {
        let mut sorted: Vec<f64> = numbers.collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (
            *sorted.first().context("no rounds")?,
            *sorted.last().context("no rounds")?,
        );
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Ok(Self {
            median: f64::midpoint(low, high),
            min,
            max,
        })
    }
}
