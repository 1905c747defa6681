//! A topology that somebody has written down: nodes, where they are and who can dial them, the latencies between regions,
//! and single links that are different. It is a file of its own, or part of a scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Door, Reach};
use crate::conditions::{Conditions, Latency};
use crate::scenario::LinkSpec;
use crate::units::Span;

/// The most nodes of a written topology: beyond this, shapes describe a mesh better.
pub const NODES_MAX: usize = 20_000;
/// The most regions of a written topology.
pub const REGIONS_MAX: usize = 256;

/// Why a written topology cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
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
    #[error("{} is not a topology", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// There are too few nodes, or too many.
    #[error("node: {0} nodes are not between 2 and {NODES_MAX}")]
    Nodes(usize),
    /// Two nodes have one name.
    #[error("[[node]]: the name {0:?} is there twice")]
    DuplicateNode(String),
    /// There is no such node.
    #[error("{place}: there is no node {name:?}")]
    UnknownNode {
        /// Where it is named.
        place: String,
        /// The name.
        name: String,
    },
    /// There is no such region.
    #[error("{place}: there is no region {name:?}; `regions.names` has {known}")]
    UnknownRegion {
        /// Where it is named.
        place: String,
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// Two regions have one name.
    #[error("regions.names: {0:?} is there twice")]
    DuplicateRegion(String),
    /// There are too many regions.
    #[error("regions.names: {0} regions are more than {REGIONS_MAX}")]
    Regions(usize),
    /// The matrix has not a row for each region.
    #[error("regions.latency: {rows} rows for {regions} regions")]
    Rows {
        /// How many it has.
        rows: usize,
        /// How many it must have.
        regions: usize,
    },
    /// A row has not a latency for each region.
    #[error("regions.latency: the row of {region:?} has {columns} latencies for {regions} regions")]
    Columns {
        /// Whose row.
        region: String,
        /// How many it has.
        columns: usize,
        /// How many it must have.
        regions: usize,
    },
    /// A way leads from a node to itself.
    #[error("[[way]] number {number}: {name:?} needs no way to itself")]
    Loop {
        /// Which, from 1 on.
        number: usize,
        /// The node.
        name: String,
    },
    /// Two ways are between the same nodes.
    #[error("[[way]] number {number}: {a:?} and {b:?} have a way already")]
    DuplicateWay {
        /// Which, from 1 on.
        number: usize,
        /// One node.
        a: String,
        /// The other.
        b: String,
    },
    /// A link is without a rate, or loses everything.
    #[error("{place}: a link needs a rate of at least 1B/s, and loses less than 100%")]
    Link {
        /// Where it stands.
        place: String,
    },
    /// Nobody can meet the first node.
    #[error("node: the others meet {0:?} first, so somebody must be able to dial it; put another node first")]
    FirstUnreachable(String),
}

/// A topology as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomSpec {
    /// What links are like of which nothing else is said; without it, as the scenario or the command line has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkSpec>,
    /// Regions, or classes of nodes.
    #[serde(default)]
    pub regions: RegionsSpec,
    /// The nodes; the others meet the first one first.
    #[serde(rename = "node")]
    pub nodes: Vec<NodeSpec>,
    /// Pairs of nodes of which there is more to say.
    #[serde(default, rename = "way")]
    pub ways: Vec<WaySpec>,
    /// Whether those who have no way listed cannot reach each other.
    #[serde(default)]
    pub ways_only: bool,
}

/// Regions and how far they are apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionsSpec {
    /// What they are called.
    #[serde(default)]
    pub names: Vec<String>,
    /// How long packets travel, one way: a row for each region to send from, in it a latency for each to send to.
    #[serde(default)]
    pub latency: Vec<Vec<Span>>,
}

/// A node, or some that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// What it is called here.
    pub name: String,
    /// How many there are; several are called `name-1`, `name-2` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Where it is; the first region when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Who can dial it.
    #[serde(default)]
    pub dialled_by: DialledBy,
}

/// Who can dial a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DialledBy {
    /// In a word.
    Word(DialledByWord),
    /// These nodes only.
    Nodes(Vec<String>),
    /// Nothing is said: everyone.
    #[default]
    Unsaid,
}

/// Who can dial a node, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DialledByWord {
    /// Everyone.
    Everyone,
    /// Nodes of its own region.
    Region,
    /// Nobody: it dials the others.
    Nobody,
}

/// Which of two nodes can dial the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dials {
    /// Each.
    #[default]
    Both,
    /// The first one named.
    First,
    /// Neither.
    Nobody,
}

/// A pair of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaySpec {
    /// The two.
    pub nodes: (String, String),
    /// What their link is like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkSpec>,
    /// Which can dial the other.
    #[serde(default)]
    pub dials: Dials,
}

/// A written topology with its names resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Custom {
    link: Option<LinkSpec>,
    /// The name of each node.
    pub(super) nodes: Vec<String>,
    /// The region of each node.
    pub(super) region: Vec<u16>,
    pub(super) region_names: Vec<String>,
    latency: Vec<Vec<Duration>>,
    pub(super) links: BTreeMap<(usize, usize), LinkSpec>,
    pub(super) reach: Reach,
}

impl CustomSpec {
    /// Reads a topology from a file.
    ///
    /// # Errors
    /// [`TopologyError`] names the file, the place and the reason.
    pub fn read(path: &Path) -> Result<Self, TopologyError> {
        let text = std::fs::read_to_string(path).map_err(|source| TopologyError::Io {
            path: path.to_owned(),
            source,
        })?;
        let spec: Self = toml::from_str(&text).map_err(|source| TopologyError::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        spec.resolve()?;
        Ok(spec)
    }

    /// Resolves the names.
    ///
    /// # Errors
    /// [`TopologyError`] names the place and the reason.
    pub fn resolve(&self) -> Result<Custom, TopologyError> {
        self.check_regions()?;
        self.check_links()?;
        let mut custom = Custom {
            link: self.link,
            region_names: self.regions.names.clone(),
            latency: self
                .regions
                .latency
                .iter()
                .map(|row| row.iter().map(|span| span.0).collect())
                .collect(),
            ..Custom::default()
        };
        let mut numbers = BTreeMap::new();
        for node in &self.nodes {
            let region = self.region(node)?;
            for name in node.names() {
                if numbers.insert(name.clone(), custom.nodes.len()).is_some() {
                    return Err(TopologyError::DuplicateNode(name));
                }
                if custom.nodes.len() >= NODES_MAX {
                    return Err(TopologyError::Nodes(self.count()));
                }
                custom.nodes.push(name);
                custom.region.push(region);
            }
        }
        if custom.nodes.len() < 2 {
            return Err(TopologyError::Nodes(custom.nodes.len()));
        }
        custom.reach.home.clone_from(&custom.region);
        self.resolve_doors(&numbers, &mut custom)?;
        self.resolve_ways(&numbers, &mut custom)?;
        if !(1..custom.nodes.len()).any(|other| custom.reach.dials(other, 0)) {
            return Err(TopologyError::FirstUnreachable(custom.nodes[0].clone()));
        }
        Ok(custom)
    }

    /// Returns how many nodes are listed.
    #[must_use]
    pub fn count(&self) -> usize {
        let counts = self.nodes.iter().map(|node| node.count.unwrap_or(1));
        counts.fold(0, usize::saturating_add)
    }

    fn check_regions(&self) -> Result<(), TopologyError> {
        let RegionsSpec { names, latency } = &self.regions;
        if names.len() > REGIONS_MAX {
            return Err(TopologyError::Regions(names.len()));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
            return Err(TopologyError::DuplicateRegion(twice.clone()));
        }
        if !latency.is_empty() && latency.len() != names.len() {
            let (rows, regions) = (latency.len(), names.len());
            return Err(TopologyError::Rows { rows, regions });
        }
        match names
            .iter()
            .zip(latency)
            .find(|(_, row)| row.len() != names.len())
        {
            Some((region, row)) => Err(TopologyError::Columns {
                region: region.clone(),
                columns: row.len(),
                regions: names.len(),
            }),
            None => Ok(()),
        }
    }

    fn check_links(&self) -> Result<(), TopologyError> {
        let own = self.link.iter().map(|link| (link, "link".to_owned()));
        let ways = self.ways.iter().enumerate();
        let ways = ways.filter_map(|(at, way)| Some((way.link.as_ref()?, way_place(at))));
        match own.chain(ways).find(|(link, _)| !link.carries()) {
            Some((_, place)) => Err(TopologyError::Link { place }),
            None => Ok(()),
        }
    }

    fn region(&self, node: &NodeSpec) -> Result<u16, TopologyError> {
        let Some(name) = &node.region else {
            return Ok(0);
        };
        let at = self.regions.names.iter().position(|region| region == name);
        at.and_then(|at| u16::try_from(at).ok())
            .ok_or_else(|| TopologyError::UnknownRegion {
                place: format!("region of node {:?}", node.name),
                name: name.clone(),
                known: self.regions.names.join(", "),
            })
    }

    fn resolve_doors(
        &self,
        numbers: &BTreeMap<String, usize>,
        custom: &mut Custom,
    ) -> Result<(), TopologyError> {
        for node in &self.nodes {
            let door = match &node.dialled_by {
                DialledBy::Unsaid | DialledBy::Word(DialledByWord::Everyone) => continue,
                DialledBy::Word(DialledByWord::Region) => Door::Region,
                DialledBy::Word(DialledByWord::Nobody) => Door::Only(BTreeSet::new()),
                DialledBy::Nodes(names) => {
                    let place = || format!("dialled_by of node {:?}", node.name);
                    let number = |name: &String| number_of(numbers, name, place);
                    Door::Only(names.iter().map(number).collect::<Result<_, _>>()?)
                }
            };
            for name in node.names() {
                custom.reach.doors.insert(numbers[&name], door.clone());
            }
        }
        Ok(())
    }

    fn resolve_ways(
        &self,
        numbers: &BTreeMap<String, usize>,
        custom: &mut Custom,
    ) -> Result<(), TopologyError> {
        let mut ways = vec![BTreeSet::new(); if self.ways_only { custom.nodes.len() } else { 0 }];
        let mut seen = BTreeSet::new();
        for (at, way) in self.ways.iter().enumerate() {
            let (a, b) = &way.nodes;
            let from = number_of(numbers, a, || way_place(at))?;
            let to = number_of(numbers, b, || way_place(at))?;
            let pair = (from.min(to), from.max(to));
            if from == to {
                let (number, name) = (at + 1, a.clone());
                return Err(TopologyError::Loop { number, name });
            }
            if !seen.insert(pair) {
                return Err(TopologyError::DuplicateWay {
                    number: at + 1,
                    a: a.clone(),
                    b: b.clone(),
                });
            }
            if let Some(link) = way.link {
                custom.links.insert(pair, link);
            }
            if self.ways_only {
                ways[from].insert(to);
                ways[to].insert(from);
            }
            match way.dials {
                Dials::Both => {}
                Dials::First => drop(custom.reach.refused.insert((to, from))),
                Dials::Nobody => custom.reach.refused.extend([(to, from), (from, to)]),
            }
        }
        custom.reach.ways = self.ways_only.then_some(ways);
        Ok(())
    }
}

fn way_place(at: usize) -> String {
    format!("[[way]] number {}", at + 1)
}

fn number_of(
    numbers: &BTreeMap<String, usize>,
    name: &str,
    place: impl Fn() -> String,
) -> Result<usize, TopologyError> {
    numbers
        .get(name)
        .copied()
        .ok_or_else(|| TopologyError::UnknownNode {
            place: place(),
            name: name.to_owned(),
        })
}

impl NodeSpec {
    fn names(&self) -> impl Iterator<Item = String> + '_ {
        let (single, count) = (self.count.is_none(), self.count.unwrap_or(1));
        (1..=count.min(NODES_MAX + 1)).map(move |number| {
            if single {
                self.name.clone()
            } else {
                format!("{}-{number}", self.name)
            }
        })
    }
}

impl Custom {
    /// Returns how many nodes there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether there are none, as in no topology that was resolved.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns what links are like of which nothing else is said.
    #[must_use]
    pub fn base(&self, otherwise: Conditions) -> Conditions {
        self.link.map_or(otherwise, |link| link.conditions())
    }

    /// Returns two regions between which packets do not travel equally long in both directions.
    #[must_use]
    pub fn uneven(&self) -> Option<(&str, &str)> {
        let pairs = (0..self.latency.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        let (a, b) = pairs
            .into_iter()
            .find(|(a, b)| self.latency[*a][*b] != self.latency[*b][*a])?;
        Some((&self.region_names[a], &self.region_names[b]))
    }

    /// The links between regions.
    pub(super) fn between(&self, link: Conditions) -> Vec<Vec<Conditions>> {
        let conditions = |latency: &Duration| Conditions {
            latency: Latency::Constant(*latency),
            ..link
        };
        let row = |row: &Vec<Duration>| row.iter().map(conditions).collect();
        self.latency.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests;
