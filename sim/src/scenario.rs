//! Scenarios: a mesh, what it carries, and what goes wrong, in words that both kinds of simulation understand.
//!
//! A file is TOML and begins with a sentence of intent. What it does not know is refused by name.

mod modes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::conditions::{Conditions, Latency, Loss};
use crate::topology::{CustomSpec, REGIONS, Shape, TopologyError};
use crate::units::{Bytes, Rate, Share, Span};

/// The most peers of a scenario.
pub const PEERS_MAX: usize = 1_000_000;

/// Why a scenario cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or has a key or value that has no meaning here.
    #[error("{} is not a scenario", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("{field}: {reason}")]
    Value {
        /// The key.
        field: &'static str,
        /// What it must be.
        reason: &'static str,
    },
    /// There is no such region.
    #[error("{name:?} is no region; there are {known}")]
    Region {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The topology is wrong.
    #[error("topology")]
    Topology(#[from] TopologyError),
    /// The topology has not as many nodes as the scenario has peers.
    #[error("peers: the topology lists {nodes} nodes, and there are {peers} peers with those who come later")]
    Peers {
        /// How many it lists.
        nodes: usize,
        /// How many there are.
        peers: usize,
    },
    /// There is no such scenario.
    #[error("{name:?} is no file, and no scenario of this program: these are {names}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        names: String,
    },
    /// This kind of simulation cannot carry it out.
    #[error("{key}: {reason}")]
    Mode {
        /// The key, and where it stands.
        key: String,
        /// Why, and what to do.
        reason: &'static str,
    },
}

/// A scenario.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is to show, in a sentence.
    pub intent: String,
    /// How many peers.
    pub peers: usize,
    /// Over how long their starts are spread.
    #[serde(default = "ten_seconds")]
    pub join_within: Span,
    /// How long it takes. Afterwards whatever failed is mended, and the mesh has time to become quiet.
    pub lasts: Span,
    /// Who can reach whom.
    #[serde(default)]
    pub topology: TopologySpec,
    /// What links are like.
    #[serde(default)]
    pub link: LinkSpec,
    /// How many others an ordinary peer is connected to at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<usize>,
    /// Links between regions that are different.
    #[serde(default)]
    pub between: Vec<BetweenSpec>,
    /// What goes wrong.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    /// What the mesh is used for.
    #[serde(default, rename = "load")]
    pub loads: Vec<Load>,
}

const fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}

/// The shape of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "shape", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TopologySpec {
    /// Everyone reaches everyone.
    #[default]
    Full,
    /// A line.
    Line,
    /// A ring.
    Ring,
    /// A square grid.
    Grid,
    /// A tree.
    Tree {
        /// Children of a parent.
        fanout: usize,
    },
    /// A ring with shortcuts.
    SmallWorld {
        /// Ways to each side.
        near: usize,
        /// How many of them lead somewhere else.
        rewired: Share,
    },
    /// Regions of the world.
    Geographic {
        /// How many peers can be dialled from their own network only.
        #[serde(default)]
        hidden: Share,
    },
    /// As listed.
    Listed {
        /// Pairs of peers.
        ways: Vec<(usize, usize)>,
    },
    /// As written here: nodes, regions, links, who can dial whom.
    Custom(Box<CustomSpec>),
}

impl TopologySpec {
    /// Returns the shape, and how many peers are hidden, in parts per million.
    ///
    /// # Panics
    /// When the topology is written and wrong, which [`Scenario::check`] refuses.
    #[must_use]
    pub fn shape(&self) -> (Shape, u32) {
        match self {
            Self::Full => (Shape::Full, 0),
            Self::Line => (Shape::Line, 0),
            Self::Ring => (Shape::Ring, 0),
            Self::Grid => (Shape::Grid, 0),
            Self::Tree { fanout } => (Shape::Tree { fanout: *fanout }, 0),
            Self::SmallWorld { near, rewired } => {
                let (near, rewired_ppm) = (*near, rewired.0);
                (Shape::SmallWorld { near, rewired_ppm }, 0)
            }
            Self::Geographic { hidden } => (Shape::Geographic, hidden.0),
            Self::Listed { ways } => (Shape::Listed(ways.clone()), 0),
            Self::Custom(spec) => {
                let custom = spec.resolve().expect("a scenario's topology was checked");
                (Shape::Custom(Arc::new(custom)), 0)
            }
        }
    }
}

/// What a link is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// How long packets travel, one way; the mean, when there is a deviation.
    #[serde(default = "ten_milliseconds")]
    pub latency: Span,
    /// The longest that they travel; then latencies are evenly spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_max: Option<Span>,
    /// The standard deviation; then latencies are normally distributed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deviation: Option<Span>,
    /// What is added, evenly spread.
    #[serde(default)]
    pub jitter: Span,
    /// How many packets are lost.
    #[serde(default)]
    pub loss: Share,
    /// How many packets turn a good link bad, when loss comes in bursts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bursts: Option<Share>,
    /// Bytes per second.
    #[serde(default = "hundred_megabytes")]
    pub rate: Rate,
    /// What may wait for the link.
    #[serde(default = "ten_megabytes")]
    pub queue: Bytes,
}

const fn ten_milliseconds() -> Span {
    Span(Duration::from_millis(10))
}

const fn hundred_megabytes() -> Rate {
    Rate(100_000_000)
}

const fn ten_megabytes() -> Bytes {
    Bytes(10_000_000)
}

/// How many packets turn a bad link good: bursts are ten packets long on average, and lose half of them.
const MENDS_PPM: u32 = 100_000;
const BURST_LOSS_PPM: u32 = 500_000;

impl Default for LinkSpec {
    fn default() -> Self {
        Self {
            latency: ten_milliseconds(),
            latency_max: None,
            deviation: None,
            jitter: Span::default(),
            loss: Share::default(),
            bursts: None,
            rate: hundred_megabytes(),
            queue: ten_megabytes(),
        }
    }
}

impl LinkSpec {
    /// Returns whether anything can come through.
    #[must_use]
    pub const fn carries(&self) -> bool {
        self.rate.0 > 0 && self.loss.0 < 1_000_000
    }

    /// Returns the conditions.
    #[must_use]
    pub fn conditions(&self) -> Conditions {
        let latency = match (self.latency_max, self.deviation) {
            (Some(max), _) => Latency::Uniform(self.latency.0, max.0),
            (None, Some(deviation)) => Latency::Normal {
                mean: self.latency.0,
                deviation: deviation.0,
            },
            (None, None) => Latency::Constant(self.latency.0),
        };
        let loss = match (self.bursts, self.loss.0) {
            (Some(worsens), good_ppm) => Loss::Bursts {
                worsens_ppm: worsens.0,
                mends_ppm: MENDS_PPM,
                good_ppm,
                bad_ppm: BURST_LOSS_PPM,
            },
            (None, 0) => Loss::None,
            (None, ppm) => Loss::Bernoulli { ppm },
        };
        Conditions {
            latency,
            jitter: self.jitter.0,
            loss,
            bytes_per_second: self.rate.0,
            queue_bytes_max: self.queue.0,
        }
    }
}

/// A link between two regions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BetweenSpec {
    /// The two regions.
    pub regions: (String, String),
    /// What the link is like.
    pub link: LinkSpec,
}

/// Which way a partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Both.
    #[default]
    Both,
    /// What the cut-off peers send is lost.
    Outward,
    /// What is sent to them is lost.
    Inward,
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// Some peers are cut off from the others.
    Partition {
        /// When.
        at: Span,
        /// For how long.
        lasts: Span,
        /// How many of the peers.
        #[serde(default)]
        share: Share,
        /// Or those of a region.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<String>,
        /// In which direction.
        #[serde(default)]
        way: Way,
    },
    /// Processes end without a word, lose what was not synced, and start again.
    Crash {
        /// When.
        at: Span,
        /// For how long they are gone.
        lasts: Span,
        /// How many.
        peers: usize,
    },
    /// Processes crash while a payload is on its way: when a transfer next begins, goes on or ends, one of its two sides.
    CrashMidway {
        /// From when on.
        at: Span,
        /// For how long they are gone.
        lasts: Span,
        /// How many.
        peers: usize,
    },
    /// Peers take longer for everything.
    Slow {
        /// When.
        at: Span,
        /// For how long.
        lasts: Span,
        /// How many.
        peers: usize,
        /// How much longer for each job.
        by: Span,
    },
    /// Wall clocks are wrong.
    Clock {
        /// When.
        at: Span,
        /// For how long.
        lasts: Span,
        /// How many.
        peers: usize,
        /// By how much they are ahead.
        #[serde(default)]
        ahead: Span,
        /// By how much they are behind.
        #[serde(default)]
        behind: Span,
        /// Whether they are set right while their hosts start anew.
        #[serde(default)]
        reboots: bool,
    },
    /// Connections are lost, as when a router forgets them.
    Disconnect {
        /// When.
        at: Span,
        /// How many pairs of peers.
        pairs: usize,
    },
    /// Memberships are revoked.
    Revoke {
        /// When.
        at: Span,
        /// How many.
        peers: usize,
    },
    /// Peers crash and start again, one after the other.
    Churn {
        /// From when on.
        at: Span,
        /// Until this much later.
        lasts: Span,
        /// How often one goes.
        every: Span,
        /// For how long it is gone.
        gone: Span,
    },
}

impl Fault {
    /// Returns when it begins and how long it lasts.
    #[must_use]
    pub const fn span(&self) -> (Duration, Duration) {
        match self {
            Self::Partition { at, lasts, .. }
            | Self::Crash { at, lasts, .. }
            | Self::CrashMidway { at, lasts, .. }
            | Self::Slow { at, lasts, .. }
            | Self::Clock { at, lasts, .. } => (at.0, lasts.0),
            Self::Churn { at, lasts, gone, .. } => (at.0, lasts.0.saturating_add(gone.0)),
            Self::Disconnect { at, .. } | Self::Revoke { at, .. } => (at.0, Duration::ZERO),
        }
    }
}

/// What the mesh is used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Load {
    /// Payloads from some peers to others.
    Transfers {
        /// From when on.
        at: Span,
        /// Over how long.
        within: Span,
        /// How many.
        count: usize,
        /// How large.
        size: Bytes,
        /// Whether all go to one peer.
        #[serde(default)]
        to_one: bool,
    },
    /// Small requests from some peers to others, which answer them. Real nodes only.
    Messages {
        /// From when on.
        at: Span,
        /// Over how long.
        within: Span,
        /// How many.
        count: usize,
    },
    /// More peers than at first want to join.
    Crowd {
        /// When.
        at: Span,
        /// Over how long.
        within: Span,
        /// How many.
        peers: usize,
    },
    /// Peers of another mesh knock.
    Strangers {
        /// When.
        at: Span,
        /// How many.
        peers: usize,
    },
    /// Members join whose certificates soon run out, and knock again afterwards.
    Guests {
        /// When.
        at: Span,
        /// How many.
        peers: usize,
        /// How long their certificates count.
        stay: Span,
    },
    /// Members join under names that others were granted as well, by an admitter that had not heard of it.
    Twins {
        /// When.
        at: Span,
        /// How many.
        peers: usize,
    },
}

impl Scenario {
    /// Reads a scenario from a file.
    ///
    /// # Errors
    /// [`ScenarioError`] names the file, the place and the reason.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path).map_err(|source| ScenarioError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Reads a scenario from the text of the file at `path`.
    ///
    /// # Errors
    /// [`ScenarioError`] names the file, the place and the reason.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text).map_err(|source| ScenarioError::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Checks what a file can say and no run can do.
    ///
    /// # Errors
    /// [`ScenarioError`] names the key.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let value = |field, reason| Err(ScenarioError::Value { field, reason });
        if self.intent.trim().is_empty() {
            return value("intent", "say in a sentence what the scenario is to show");
        }
        if self.peers < 2 || self.peers > PEERS_MAX {
            return value("peers", "between 2 and 1,000,000");
        }
        if self.link.rate.0 == 0 || self.between.iter().any(|b| b.link.rate.0 == 0) {
            return value("rate", "at least 1B/s");
        }
        if self.connections_max.is_some_and(|max| !(4..=32).contains(&max)) {
            return value("connections_max", "between 4 and 32");
        }
        if self.link.loss.0 >= 1_000_000 {
            return value("loss", "below 100%");
        }
        self.check_topology()?;
        let late = self.faults.iter().any(|fault| fault.span().0 > self.lasts.0);
        if late {
            return value("fault", "begins within `lasts`");
        }
        Ok(())
    }

    fn check_topology(&self) -> Result<(), ScenarioError> {
        let known: Vec<&str> = match &self.topology {
            TopologySpec::Geographic { .. } => REGIONS.to_vec(),
            TopologySpec::Custom(spec) => {
                spec.resolve()?;
                let (nodes, peers) = (spec.count(), self.peers_in_all());
                if nodes != peers {
                    return Err(ScenarioError::Peers { nodes, peers });
                }
                spec.regions.names.iter().map(String::as_str).collect()
            }
            _ => Vec::new(),
        };
        if known.is_empty() && !self.between.is_empty() {
            let field = "between";
            let reason = "needs a topology with regions, such as shape = \"geographic\"";
            return Err(ScenarioError::Value { field, reason });
        }
        let cut = self.faults.iter().filter_map(|fault| match fault {
            Fault::Partition { region, .. } => region.as_ref(),
            _ => None,
        });
        let between = self.between.iter().flat_map(|b| [&b.regions.0, &b.regions.1]);
        match between.chain(cut).find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(ScenarioError::Region {
                name: name.clone(),
                known: if known.is_empty() {
                    "none, as the topology has none".to_owned()
                } else {
                    known.join(", ")
                },
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Scenario, String> {
        let scenario: Scenario = toml::from_str(text).map_err(|error| error.to_string())?;
        scenario.check().map_err(|error| error.to_string())?;
        Ok(scenario)
    }

    #[test]
    fn every_scenario_of_this_repository_can_be_read_and_says_what_it_is_for() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        assert_eq!(names.len(), 5, "{names:?}");
        for path in names {
            let scenario = Scenario::read(&path).unwrap_or_else(|error| panic!("{error:?}"));
            assert!(
                scenario.intent.ends_with('.'),
                "{}: {}",
                path.display(),
                scenario.intent
            );
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let good = "intent = 'x.'\npeers = 5\nlasts = '1s'\n";
        assert!(read(good).is_ok());
        for (text, name) in [
            ("pears = 5\n", "pears"),
            ("[link]\nlatencyy = '1ms'\n", "latencyy"),
            (
                "[[fault]]\nkind = 'crash'\nat = '1s'\nlasts = '1s'\npeers = 1\nhow = 2\n",
                "how",
            ),
            ("[[fault]]\nkind = 'flood'\nat = '1s'\n", "flood"),
            ("[topology]\nshape = 'donut'\n", "donut"),
        ] {
            let error = read(&format!("{good}{text}")).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_no_run_can_do_is_refused_with_a_reason() {
        for (text, reason) in [
            ("intent = ''\npeers = 5\nlasts = '1s'\n", "intent"),
            ("intent = 'x.'\npeers = 1\nlasts = '1s'\n", "between 2 and"),
            ("intent = 'x.'\npeers = 5\nlasts = '1 day'\n", "time"),
            (
                "intent = 'x.'\npeers = 5\nlasts = '9s'\n[[fault]]\nkind='partition'\nat='1s'\nlasts='1s'\nregion='mars'\n",
                "mars",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
