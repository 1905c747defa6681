//! The command line of the simulator.

mod args;
#[cfg(feature = "real")]
mod calibrate;
mod output;
#[cfg(feature = "real")]
mod run;
mod scale;
#[cfg(feature = "real")]
mod simulate;

use std::io::BufRead as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use args::{Cli, Command, SwarmArgs};
use clap::Parser as _;
use hyperfabric_sim::debug::{Case, Debugger, HELP};
use hyperfabric_sim::run::RunReport;
use hyperfabric_sim::swarm::{self, Failure};
use output::say;
use serde_json::json;

/// Runs the command.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            output::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether everything held.
fn run(cli: &Cli) -> Result<bool> {
    match &cli.command {
        #[cfg(feature = "real")]
        Command::Run(args) => run::run(args, cli.json),
        #[cfg(feature = "real")]
        Command::Calibrate(args) => calibrate::run(args, cli.json),
        #[cfg(feature = "real")]
        Command::Conditions(args) => simulate::conditions(args, cli.json),
        #[cfg(feature = "real")]
        Command::LoadTest(args) => simulate::load_test(args, cli.json),
        Command::Scale(args) => scale::run(args, cli.json),
        Command::Replay { seed } => replay(*seed, cli.json),
        Command::Swarm(args) => swarm(args, cli.json),
        Command::Debug { log } => debug(log).map(|()| true),
    }
}

fn replay(seed: u64, json: bool) -> Result<bool> {
    let outcome = swarm::try_seed(seed);
    let good = outcome.is_ok();
    match outcome {
        Ok(report) if json => say!("{}", serde_json::to_string(&report)?),
        Ok(report) => say!("{report:#?}"),
        Err(failure) if json => say!("{}", serde_json::to_string(&*failure)?),
        Err(failure) => {
            say!("{:#?}", failure.report);
            say!(
                "the smallest scenario found to fail like this, in {} runs:",
                failure.runs
            );
            say!("{:#?}", failure.shrunk);
        }
    }
    Ok(good)
}

/// Tries seeds on every core.
fn swarm(args: &SwarmArgs, json: bool) -> Result<bool> {
    let begin = Instant::now();
    let next = AtomicU64::new(args.from);
    let end = AtomicU64::new(args.from.saturating_add(args.seeds));
    let events = AtomicU64::new(0);
    let failures: Mutex<Vec<Failure>> = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        break;
                    }
                    match try_seed(seed, args.fail_fast) {
                        Ok(report) => drop(events.fetch_add(report.events, Ordering::Relaxed)),
                        Err(failure) => {
                            if args.fail_fast {
                                // Those before it are under way by now, and go on: the first one is the same every time.
                                end.fetch_min(seed, Ordering::Relaxed);
                            }
                            if !json {
                                tell(&failure);
                            }
                            failures
                                .lock()
                                .unwrap_or_else(std::sync::PoisonError::into_inner)
                                .push(*failure);
                        }
                    }
                }
            });
        }
    });
    let mut failures = failures
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    failures.sort_by_key(|failure| failure.seed);
    if args.fail_fast {
        failures.truncate(1);
    }
    if let Some(folder) = &args.logs {
        write_logs(folder, &failures)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let failed: Vec<u64> = failures.iter().map(|failure| failure.seed).collect();
    if json {
        let found = json!({
            "seeds": args.seeds,
            "from": args.from,
            "failed": failed,
            "seconds": seconds,
            "events": events.into_inner(),
            "failures": failures,
        });
        say!("{found}");
    } else {
        say!(
            "{} seeds in {seconds:.1} s, {} failed: {failed:?}",
            args.seeds,
            failed.len()
        );
    }
    Ok(failed.is_empty())
}

fn try_seed(seed: u64, as_drawn: bool) -> Result<RunReport, Box<Failure>> {
    if as_drawn {
        swarm::try_as_drawn(seed)
    } else {
        swarm::try_seed(seed)
    }
}

fn tell(failure: &Failure) {
    let violations = &failure.report.violations;
    if let Some(first) = violations.first() {
        let (seed, count) = (failure.seed, violations.len());
        output::note(format_args!("seed {seed}: {count} violations, first {first:?}"));
    }
}

/// Writes what `debug` reads.
fn write_logs(folder: &Path, failures: &[Failure]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for failure in failures {
        let case = Case {
            seed: failure.seed,
            scenario: failure.shrunk.clone(),
        };
        let path = folder.join(format!("seed-{}.json", failure.seed));
        std::fs::write(&path, serde_json::to_string_pretty(&case)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn debug(log: &str) -> Result<()> {
    let case = match log.parse() {
        Ok(seed) => Case {
            seed,
            scenario: swarm::scenario(seed),
        },
        Err(_) => Case::read(log.as_ref())?,
    };
    say!("{:#?}\n{HELP}", case.scenario);
    let mut debugger = Debugger::new(case)?;
    let mut lines = std::io::stdin().lock().lines();
    loop {
        output::print(format_args!("> "))?;
        let Some(line) = lines.next().transpose()? else {
            return Ok(());
        };
        match debugger.command(&line) {
            Some(answer) => say!("{answer}"),
            None => return Ok(()),
        }
    }
}
