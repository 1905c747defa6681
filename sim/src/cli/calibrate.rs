//! The command `calibrate`: the same situations with real nodes and in virtual time, in one table.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Result, ensure};
use clap::Args;
use hyperfabric_sim::calibrate::{self, Comparison, in_virtual_time};
use hyperfabric_sim::real::{PEERS_MAX, Progress};
use hyperfabric_sim::units::Span;
use serde_json::json;

use super::output::{self, say};

pub(super) const EXAMPLES: &str = "Examples:
  hyperfabric-sim calibrate
  hyperfabric-sim calibrate --peers 30 --judging 30 --case tree --details";

#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// Peers of the case that the world in virtual time is calibrated on
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=PEERS_MAX as i64))]
    peers: u32,
    /// Peers of the cases that judge it
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(2..=PEERS_MAX as i64))]
    judging: u32,
    /// The seed of the first case; each of the others has the next one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only cases whose names begin like this
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    case: String,
    /// How long starts are apart on average; a busy machine needs more
    #[arg(long, value_name = "TIME")]
    start_every: Option<Span>,
    /// How long all are left alone after the last start
    #[arg(long, value_name = "TIME")]
    rest: Option<Span>,
    /// Print how many frames of each type there were
    #[arg(long)]
    details: bool,
    /// Print what virtual time says, without real nodes
    #[arg(long)]
    virtual_only: bool,
}

pub(super) fn run(args: &CalibrateArgs, json: bool) -> Result<bool> {
    let cases = calibrate::cases(args.peers as usize, args.judging as usize, args.seed);
    let mut chosen: Vec<_> = cases
        .into_iter()
        .filter(|case| case.name.starts_with(&args.case))
        .collect();
    for case in &mut chosen {
        case.start_every = args.start_every.map_or(case.start_every, |every| every.0);
        case.rest = args.rest.map_or(case.rest, |rest| rest.0);
    }
    ensure!(!chosen.is_empty(), "no case's name begins with {:?}", args.case);
    if args.virtual_only {
        for case in chosen {
            let said = serde_json::to_string_pretty(&in_virtual_time(&case))?;
            if !output::line(format_args!("{said}"))? {
                break;
            }
        }
        return Ok(true);
    }
    let mut comparisons: Vec<Comparison> = Vec::with_capacity(chosen.len());
    for case in chosen {
        let name = case.name.clone();
        comparisons.push(calibrate::compare(&case, &|progress| show(&name, progress))?);
    }
    let good = comparisons.iter().all(Comparison::holds);
    if json {
        say!("{}", json!({ "holds": good, "cases": comparisons }));
        return Ok(good);
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    output::print(format_args!("{}", calibrate::table(&comparisons)))?;
    if args.details {
        for comparison in &comparisons {
            say!("{}", comparison.case.name);
            output::print(format_args!("{}", calibrate::details(comparison)))?;
        }
    }
    Ok(good)
}

/// Shows on a terminal how many peers of a case have started.
fn show(case: &str, progress: Progress) {
    let mut errors = std::io::stderr();
    if errors.is_terminal() {
        // A progress line that cannot be written is not missed.
        let _ = write!(
            errors,
            "\r\x1b[K{case}: {} of {} peers",
            progress.done, progress.of
        );
        let _ = errors.flush();
    }
}
