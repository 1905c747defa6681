//! What the impaired wire delivers beside what it was asked for: latency, loss and rate, over kernel sockets on loopback.
//!
//! A datagram takes some time on loopback that nobody asked for: the kernel's, and until the receiver wakes. The same datagrams
//! through a wire that impairs nothing say how much. Both are printed; what a condition adds is what is compared.
//!
//! `cargo bench -p hyperfabric-tests --bench impaired`, with `-- --help` for the options.
#![forbid(unsafe_code)]

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use hyperfabric_mesh::wire::{
    Bursts, Impaired, Impairment, JitterShape, KernelWire, Outgoing, RECEIVE_BATCH_MAX, Received, Wire,
};
use tokio::runtime::Handle;
use tokio::time::timeout;

const DATAGRAM_BYTES: usize = 200;
/// Datagrams that are offered at once, every [`PACE`].
const BURST: u64 = 32;
const PACE: Duration = Duration::from_micros(800);
/// Nothing has arrived for so long: the rest was lost.
const SILENCE: Duration = Duration::from_secs(2);

/// Measures the impaired wire on this machine.
#[derive(Debug, Parser)]
struct Options {
    /// How many datagrams each condition gets.
    #[arg(long, default_value_t = 1_000_000)]
    datagrams: u64,
    /// Given by `cargo bench`, without a meaning here.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What arrived of the datagrams that were sent.
struct Arrived {
    count: u64,
    latency: Duration,
    first: Instant,
    last: Instant,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let bare = runtime
        .block_on(measure(Impairment::default(), options.datagrams))?
        .latency;
    println!("without impairment: latency {:.3} ms\n", millis(bare));
    println!(
        "{:<44} {:>12} {:>12} {:>12} {:>8}",
        "condition", "asked", "measured", "added", "off by"
    );
    for (name, impairment) in conditions() {
        let arrived = runtime.block_on(measure(impairment.clone(), options.datagrams))?;
        report(name, &impairment, options.datagrams, &arrived, bare);
    }
    Ok(())
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn conditions() -> Vec<(&'static str, Impairment)> {
    let base = Impairment::default();
    let delayed = |ms| Impairment {
        latency: Duration::from_millis(ms),
        ..base.clone()
    };
    vec![
        ("latency of 5 ms", delayed(5)),
        ("latency of 50 ms", delayed(50)),
        (
            "latency of 100 ms, deviation of 10 ms",
            Impairment {
                jitter: Duration::from_millis(10),
                jitter_shape: JitterShape::Normal,
                ..delayed(100)
            },
        ),
        (
            "latency of 20 ms, 1 % lost",
            Impairment {
                loss_ppm: 10_000,
                ..delayed(20)
            },
        ),
        (
            "latency of 20 ms, bursts that lose 5 %",
            Impairment {
                bursts: Some(Bursts {
                    begin_ppm: 10_526,
                    end_ppm: 200_000,
                    loss_ppm: 1_000_000,
                }),
                ..delayed(20)
            },
        ),
        (
            "5 MB/s, offered more",
            Impairment {
                rate_bytes_per_s: NonZeroU64::new(5_000_000),
                queue_bytes_max: 50_000,
                ..base
            },
        ),
    ]
}

fn report(name: &str, impairment: &Impairment, sent: u64, arrived: &Arrived, bare: Duration) {
    let line = |what: &str, asked: f64, measured: f64, before: f64, unit: &str| {
        let added = measured - before;
        let off = (added / asked - 1.0) * 100.0;
        println!(
            "{:<44} {:>12} {:>12} {:>12} {off:>+7.2}%",
            format!("{name}: {what}"),
            format!("{asked:.3} {unit}"),
            format!("{measured:.3} {unit}"),
            format!("{added:.3} {unit}")
        );
    };
    if let Some(rate) = impairment.rate_bytes_per_s {
        let seconds = (arrived.last - arrived.first).as_secs_f64();
        let got = (arrived.count * DATAGRAM_BYTES as u64) as f64 / seconds / 1e6;
        line("rate", rate.get() as f64 / 1e6, got, 0.0, "MB/s");
        return;
    }
    let loss = match impairment.bursts {
        Some(bursts) => {
            let bad = f64::from(bursts.begin_ppm) / f64::from(bursts.begin_ppm + bursts.end_ppm);
            bad * f64::from(bursts.loss_ppm) / 1e4
        }
        None => f64::from(impairment.loss_ppm) / 1e4,
    };
    let (asked, measured) = (millis(impairment.latency), millis(arrived.latency));
    line("latency", asked, measured, millis(bare), "ms");
    if loss > 0.0 {
        let lost = 100.0 - arrived.count as f64 * 100.0 / sent as f64;
        line("loss", loss, lost, 0.0, "%");
    }
}

async fn measure(impairment: Impairment, datagrams: u64) -> Result<Arrived> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let receiver = Arc::new(KernelWire::bind(local)?);
    let impaired = Impaired::new(
        Arc::new(KernelWire::bind(local)?),
        impairment,
        1,
        &Handle::current(),
    );
    let (to, epoch) = (receiver.local_addr()?, Instant::now());
    let receiving = tokio::spawn(receive(receiver, epoch));
    let mut pace = tokio::time::interval(PACE);
    let mut sent = 0;
    while sent < datagrams {
        pace.tick().await;
        for _ in 0..BURST.min(datagrams - sent) {
            let mut contents = [0; DATAGRAM_BYTES];
            let nanos = u64::try_from(epoch.elapsed().as_nanos())?;
            contents[..8].copy_from_slice(&nanos.to_be_bytes());
            impaired.wire.try_send(&Outgoing {
                destination: to,
                contents: &contents,
                segment_size: None,
                ecn: None,
                src_ip: None,
            })?;
            sent += 1;
        }
    }
    receiving.await?
}

async fn receive(wire: Arc<KernelWire>, epoch: Instant) -> Result<Arrived> {
    let mut buffers = vec![vec![0; 1 << 16]; RECEIVE_BATCH_MAX];
    let (mut count, mut latency, mut span) = (0u64, Duration::ZERO, None);
    loop {
        let mut slices: Vec<IoSliceMut<'_>> =
            buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut meta = vec![Received::default(); RECEIVE_BATCH_MAX];
        let filled = std::future::poll_fn(|cx| wire.poll_recv(cx, &mut slices, &mut meta));
        let Ok(filled) = timeout(SILENCE, filled).await else {
            break;
        };
        let filled = filled?;
        let now = Instant::now();
        let (first, _) = span.unwrap_or((now, now));
        span = Some((first, now));
        for (slice, meta) in slices[..filled].iter().zip(&meta) {
            for datagram in slice[..meta.len].chunks(meta.stride.max(1)) {
                let sent = u64::from_be_bytes(datagram[..8].try_into()?);
                latency += (now - epoch).saturating_sub(Duration::from_nanos(sent));
                count += 1;
            }
        }
    }
    let (first, last) = span.context("nothing arrived")?;
    Ok(Arrived {
        count,
        latency: latency.div_f64(count as f64),
        first,
        last,
    })
}
