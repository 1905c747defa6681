//! How fast a file moves, and what it costs: our `send` beside a plain quinn program, `scp` and `cp`.
//!
//! `cargo bench -p hyperfabric-tests --bench transfer`, with `-- --help` for the options. The rounds of all are
//! interleaved, so that a busy moment of the machine hits all alike, and every round writes a new file. Nothing is
//! synced but by our `send`, which promises durability; on a disk it pays for that here.
#![forbid(unsafe_code)]

mod measure;
mod movers;
mod quinn_mover;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use hyperfabric_tests::files::b3sum;
use hyperfabric_tests::{Content, Folder, binary};
use measure::{Cost, Spread, measure};
use movers::{Mover, Sshd};

/// Where a memory file system is on most Linux machines: the disk is not what is measured.
const MEMORY_DIR: &str = "/dev/shm";
const GIB: f64 = (1_u64 << 30) as f64;

/// Compares the movers of a file on this machine.
#[derive(Debug, Parser)]
struct Options {
    /// The size of the file, such as 4GiB or 512MiB.
    #[arg(long, default_value = "4GiB", value_parser = parse_size)]
    size: u64,
    /// How often each mover runs.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// The largest datagram, in bytes, for our `send` and for the plain quinn program.
    #[arg(long, default_value_t = 1452, value_parser = clap::value_parser!(u16).range(1200..=6500))]
    mtu: u16,
    /// Where all files lie; by default in memory, if the machine has a folder for that.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Which movers run: any of ours, quinn, scp, cp.
    #[arg(long, value_delimiter = ',', default_value = "ours,quinn,scp,cp")]
    only: Vec<String>,
    /// Given by `cargo bench`, without a meaning here.
    #[arg(long, hide = true)]
    bench: bool,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("expected a number with KiB, MiB or GiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|size| *size > 0)
        .ok_or_else(|| "out of range".to_owned())
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == quinn_mover::ROLE) {
        quinn_mover::run_role(&arguments[1..])?;
    } else {
        compare(&Options::parse())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(options: &Options) -> Result<()> {
    let memory = PathBuf::from(MEMORY_DIR);
    let dir = options.dir.clone().unwrap_or_else(|| {
        if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        }
    });
    ensure!(
        tempfile::env::override_temp_dir(&dir).is_ok(),
        "a temporary folder is already in use"
    );
    let folder = Folder::new()?;
    let movers = movers(options)?;
    let source = folder.random(
        "source.bin",
        Content {
            bytes: options.size,
            seed: 1,
        },
    )?;
    let hash = b3sum(&source)?;
    println!(
        "{} bytes in {}, {} rounds, datagrams of {} bytes at most",
        options.size,
        dir.display(),
        options.rounds,
        options.mtu
    );

    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); movers.len()];
    for round in 0..options.rounds as usize {
        for place in 0..movers.len() {
            // Another order each time: whoever follows a heavy neighbour is not always the same.
            let index = (place + round) % movers.len();
            let mover = &movers[index];
            let to = folder.path().join(format!("round{round}-{index}.bin"));
            let cost = measure(&mover.servers()?, || mover.run(&source, &to, options.mtu))
                .with_context(|| format!("{} in round {}", mover.name(), round + 1))?;
            let arrived = mover.arrived(&to)?;
            ensure!(b3sum(&arrived)? == hash, "{} damaged the file", mover.name());
            fs::remove_file(arrived)?;
            let rate = options.size as f64 / cost.seconds / 1e6;
            eprintln!("round {} {:<18} {rate:7.0} MB/s", round + 1, mover.name());
            costs[index].push(cost);
        }
    }
    report(options, &movers, &costs)
}

fn movers(options: &Options) -> Result<Vec<Mover>> {
    let mut movers = Vec::new();
    for name in &options.only {
        match name.as_str() {
            "ours" => {
                binary::use_release()?;
                movers.push(Mover::ours(options.mtu)?);
            }
            "quinn" => movers.push(Mover::Quinn),
            "scp" => match Sshd::start() {
                Ok(sshd) => movers.push(Mover::Scp(sshd)),
                Err(reason) => println!("scp is left out: {reason:#}"),
            },
            "cp" => movers.push(Mover::Cp),
            other => anyhow::bail!("no mover is called {other}: ours, quinn, scp, cp"),
        }
    }
    Ok(movers)
}

fn report(options: &Options, movers: &[Mover], costs: &[Vec<Cost>]) -> Result<()> {
    let rate = |cost: &Cost| options.size as f64 / cost.seconds / 1e6;
    let cpu = |cost: &Cost| cost.cpu_seconds / (options.size as f64 / GIB);
    println!(
        "\n{:<18} {:>26} {:>26} {:>10}",
        "median (min–max)", "MB/s", "CPU-s per GiB", "peak MiB"
    );
    let mut medians = Vec::new();
    for (mover, costs) in movers.iter().zip(costs) {
        let (rates, cpus) = (
            Spread::of(costs.iter().map(rate))?,
            Spread::of(costs.iter().map(cpu))?,
        );
        let peak = costs.iter().map(|cost| cost.peak_bytes).max().unwrap_or(0) >> 20;
        let rates_text = format!("{:.0} ({:.0}–{:.0})", rates.median, rates.min, rates.max);
        let cpus_text = format!("{:.2} ({:.2}–{:.2})", cpus.median, cpus.min, cpus.max);
        println!("{:<18} {rates_text:>26} {cpus_text:>26} {peak:>10}", mover.name());
        medians.push((mover.name(), rates.median, cpus.median));
    }
    if let [(ours, rate, cpu), others @ ..] = medians.as_slice() {
        for (name, other_rate, other_cpu) in others {
            println!(
                "{ours} against {name}: throughput {:.2}, CPU {:.2}",
                rate / other_rate,
                cpu / other_cpu
            );
        }
    }
    Ok(())
}
