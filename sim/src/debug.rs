//! A run, step by step: let it go on until something happens, and look at a peer.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use hyperfabric_protocol::flood::{Item, ItemKey, ItemKind};
use hyperfabric_protocol::{Fabric, Instant, PeerId};
use serde::{Deserialize, Serialize};

use crate::run::Run;
use crate::scenario::{Scenario, ScenarioError};
use crate::world::{EPOCH, PeerIndex};

/// What there is to say.
pub const HELP: &str = "\
step [N]      let N events happen (1)
until TIME    go on until this many milliseconds
break TEXT    stop when an event's text has this in it; without text, at nothing
go            go on until an event at which to stop, a violation, or the end
peer N        show a peer
violations    show what the checkers have found
quit";

/// The most events that are printed for one command.
const PRINTED_MAX: usize = 200;

/// A run that can be repeated: what a log holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The seed.
    pub seed: u64,
    /// The scenario.
    pub scenario: Scenario,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// The file cannot be read.
    #[error("{0} cannot be read")]
    Io(String, #[source] std::io::Error),
    /// It is not a log.
    #[error("{0} is not a log of this simulator")]
    Json(String, #[source] serde_json::Error),
}

impl Case {
    /// Reads a log.
    ///
    /// # Errors
    /// [`CaseError`] names the file and the reason.
    pub fn read(path: &Path) -> Result<Self, CaseError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| CaseError::Io(name.clone(), error))?;
        serde_json::from_str(&text).map_err(|error| CaseError::Json(name, error))
    }
}

/// A run under observation.
pub struct Debugger {
    run: Run,
    stop_at: Option<String>,
    over: bool,
}

impl Debugger {
    /// Begins a run.
    ///
    /// # Errors
    /// [`ScenarioError`] when the scenario cannot be run.
    pub fn new(case: Case) -> Result<Self, ScenarioError> {
        Ok(Self {
            run: Run::new(case.scenario, case.seed)?,
            stop_at: None,
            over: false,
        })
    }

    /// Carries out a line. Returns what to print, or `None` to end.
    pub fn command(&mut self, line: &str) -> Option<String> {
        let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        Some(match word {
            "" => String::new(),
            "step" => self.go_on(rest.parse().unwrap_or(1), None),
            "go" => self.go_on(u64::MAX, None),
            "until" => match rest.parse() {
                Ok(ms) => self.go_on(u64::MAX, Some(Instant(0).after(Duration::from_millis(ms)))),
                Err(_) => "until what time, in milliseconds?".to_owned(),
            },
            "break" => {
                self.stop_at = (!rest.is_empty()).then(|| rest.to_owned());
                match &self.stop_at {
                    Some(text) => format!("will stop at {text:?}"),
                    None => "will not stop at an event".to_owned(),
                }
            }
            "peer" => rest
                .parse()
                .map_or_else(|_| "which peer, by number?".to_owned(), |n| self.peer(n)),
            "violations" => format!("{:#?}", self.run.violations()),
            "quit" | "exit" => return None,
            _ => HELP.to_owned(),
        })
    }

    fn go_on(&mut self, count: u64, until: Option<Instant>) -> String {
        let mut out = String::new();
        let (mut printed, mut left) = (0, count);
        let found = self.run.violations().len();
        while left > 0 && !self.over && until.is_none_or(|until| self.run.world().now().mono < until) {
            left -= 1;
            let Some(events) = self.run.step() else {
                self.over = true;
                let _written = writeln!(out, "the run is over");
                break;
            };
            let mut stop = false;
            for (at, peer, event) in events {
                let text = format!("{:>9.3} ms p{} {event:?}", at.0 as f64 / 1e6, peer.0);
                stop |= self.stop_at.as_ref().is_some_and(|wanted| text.contains(wanted));
                printed += 1;
                if printed <= PRINTED_MAX || stop {
                    let _written = writeln!(out, "{text}");
                }
            }
            if let Some(violation) = self.run.violations().get(found) {
                let _written = writeln!(out, "VIOLATION {}: {}", violation.checker, violation.what);
                stop = true;
            }
            if stop {
                break;
            }
        }
        if printed > PRINTED_MAX {
            let _written = writeln!(out, "({} events were not printed)", printed - PRINTED_MAX);
        }
        let world = self.run.world();
        let _written = write!(
            out,
            "{:.3} ms, {} events",
            world.now().mono.0 as f64 / 1e6,
            world.events()
        );
        out
    }

    fn peer(&self, number: usize) -> String {
        let world = self.run.world();
        let peer = PeerIndex(number);
        if number >= world.len() {
            return format!("there are {} peers", world.len());
        }
        let Some(fabric) = world.running(peer) else {
            return format!("p{number} {} does not run", world.peer_id(peer).short());
        };
        let mut out = format!(
            "p{number} {}\n{:#?}\n",
            world.peer_id(peer).short(),
            fabric.sizes()
        );
        for link in fabric.neighbors().links() {
            let other = world.peer_of(&link.peer).map_or(usize::MAX, |peer| peer.0);
            let how = if link.dialled { "dialled" } else { "accepted" };
            let _written = writeln!(
                out,
                "connected with p{other}, {how}, since {:.3} ms",
                link.since.0 as f64 / 1e6
            );
        }
        for record in fabric.directory().records() {
            let _written = writeln!(
                out,
                "knows {}{}",
                record.member.name,
                version(fabric, record.member.peer)
            );
        }
        for transfer in fabric.transfers().transfers() {
            let _written = writeln!(
                out,
                "{:?} {}: {:?}",
                transfer.of.role, transfer.of.transfer, transfer.state
            );
        }
        out
    }
}

/// Says which version of a peer's record a peer has: the times in it, in seconds since the world began.
fn version(fabric: &Fabric, origin: PeerId) -> String {
    let key = ItemKey {
        origin,
        kind: ItemKind::Record,
        id: 0,
    };
    let item = fabric
        .flood()
        .get(&key)
        .and_then(|signed| Item::unverified(signed).ok());
    item.map_or_else(
        || ", and has no item of it".to_owned(),
        |item| {
            let since = |ms: u64| (ms as f64 - EPOCH.0 as f64) / 1e3;
            format!(
                ", sequence {:.3}, issued {:.3}",
                since(item.sequence),
                since(item.issued.0)
            )
        },
    )
}
