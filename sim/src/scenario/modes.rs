//! What each kind of simulation makes of a scenario: those that come with the program, other sizes, and what one kind
//! cannot do.

use std::path::Path;

use super::{Fault, Load, Scenario, ScenarioError, TopologySpec};

/// The scenarios that come with the program.
const NAMED: [(&str, &str); 5] = [
    ("churn", include_str!("../../scenarios/churn.toml")),
    ("flash-crowd", include_str!("../../scenarios/flash-crowd.toml")),
    ("partition", include_str!("../../scenarios/partition.toml")),
    (
        "slow-receiver",
        include_str!("../../scenarios/slow-receiver.toml"),
    ),
    ("thin-link", include_str!("../../scenarios/thin-link.toml")),
];

impl Scenario {
    /// Reads a scenario from a file, or takes one of those that come with the program by its name.
    ///
    /// # Errors
    /// [`ScenarioError`]; one for a name that is neither lists those that there are.
    pub fn find(file_or_name: &str) -> Result<Self, ScenarioError> {
        let path = Path::new(file_or_name);
        let named = NAMED.iter().find(|(name, _)| *name == file_or_name);
        match named {
            Some((_, text)) if !path.exists() => Self::parse(text, path),
            None if !path.exists() && path.extension().is_none() => {
                let names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
                Err(ScenarioError::Unknown {
                    name: file_or_name.to_owned(),
                    names: names.join(", "),
                })
            }
            _ => Self::read(path),
        }
    }

    /// Returns the same scenario with another number of peers: those who come later, and those whom a fault strikes, are
    /// as many in proportion, and at least one.
    #[must_use]
    pub fn with_peers(mut self, peers: usize) -> Self {
        let before = self.peers.max(1);
        let scale = |of: &mut usize| {
            if *of > 0 {
                *of = (*of * peers / before).max(1);
            }
        };
        for load in &mut self.loads {
            match load {
                Load::Crowd { peers, .. }
                | Load::Strangers { peers, .. }
                | Load::Guests { peers, .. }
                | Load::Twins { peers, .. } => scale(peers),
                Load::Transfers { .. } | Load::Messages { .. } => {}
            }
        }
        for fault in &mut self.faults {
            match fault {
                Fault::Crash { peers, .. }
                | Fault::CrashMidway { peers, .. }
                | Fault::Slow { peers, .. }
                | Fault::Clock { peers, .. }
                | Fault::Revoke { peers, .. }
                | Fault::Disconnect { pairs: peers, .. } => scale(peers),
                Fault::Partition { .. } | Fault::Churn { .. } => {}
            }
        }
        self.peers = peers;
        self
    }

    /// Checks what virtual time cannot carry out.
    ///
    /// # Errors
    /// [`ScenarioError::Mode`] names the key.
    pub fn check_virtual(&self) -> Result<(), ScenarioError> {
        if let TopologySpec::Custom(spec) = &self.topology
            && let Ok(custom) = spec.resolve()
            && let Some((a, b)) = custom.uneven()
        {
            return Err(ScenarioError::Mode {
                key: format!("topology.regions.latency, between {a:?} and {b:?}"),
                reason: "in virtual time packets travel equally long in both directions: make it so, or use `run`",
            });
        }
        let messages = |load: &Load| matches!(load, Load::Messages { .. });
        match self.loads.iter().position(messages) {
            Some(at) => Err(ScenarioError::Mode {
                key: format!("kind = \"messages\", in [[load]] number {}", at + 1),
                reason: "requests and their answers belong to nodes, and virtual time runs the protocol alone: use `run`",
            }),
            None => Ok(()),
        }
    }

    /// Returns the key of something that only virtual time can carry out.
    #[cfg(feature = "real")]
    fn virtual_only(&self) -> Option<&'static str> {
        let fault = |fault: &Fault| match fault {
            Fault::CrashMidway { .. } => Some("kind = \"crash-midway\""),
            Fault::Clock { reboots: true, .. } => Some("reboots = true"),
            _ => None,
        };
        let load = |load: &Load| match load {
            Load::Guests { .. } => Some("kind = \"guests\""),
            Load::Twins { .. } => Some("kind = \"twins\""),
            _ => None,
        };
        let limit = self.connections_max.map(|_| "connections_max");
        let faults = self.faults.iter().find_map(fault);
        limit.or(faults).or_else(|| self.loads.iter().find_map(load))
    }

    /// Checks what real nodes on this machine cannot carry out.
    ///
    /// # Errors
    /// [`ScenarioError::Mode`] names the key.
    #[cfg(feature = "real")]
    pub fn check_real(&self) -> Result<(), ScenarioError> {
        let refuse = |key: String, reason| Err(ScenarioError::Mode { key, reason });
        let peers = self.peers_in_all();
        if peers > crate::real::PEERS_MAX {
            return refuse(
                format!("peers = {}, {peers} with those who come later", self.peers),
                "one process runs at most 2,000 real nodes: scale it down with `--peers`, or use `scale`",
            );
        }
        if let Some(key) = self.virtual_only() {
            return refuse(
                key.to_owned(),
                "real nodes do not do this: use `scale`, which runs the protocol in virtual time",
            );
        }
        let queue_max = hyperfabric_mesh::wire::HELD_BYTES_MAX as u64;
        let links = self.between.iter().map(|between| &between.link);
        match links.chain([&self.link]).find(|link| link.queue.0 > queue_max) {
            Some(link) => refuse(
                format!("queue = {:?}", link.queue.to_string()),
                "an impaired wire of real nodes holds at most 64MiB",
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scenarios_of_the_program_are_found_by_name_and_run_in_both_modes() {
        for (name, _) in NAMED {
            let scenario = Scenario::find(name).unwrap();
            assert_eq!(
                scenario.check_virtual().map_err(|e| e.to_string()),
                Ok(()),
                "{name}"
            );
            #[cfg(feature = "real")]
            assert_eq!(scenario.check_real().map_err(|e| e.to_string()), Ok(()), "{name}");
        }
        let error = Scenario::find("chrun").unwrap_err().to_string();
        assert!(error.contains("chrun") && error.contains("churn"), "{error}");
        let error = Scenario::find("missing.toml").unwrap_err();
        assert!(matches!(error, ScenarioError::Io { .. }), "{error:?}");
    }

    #[test]
    fn another_size_keeps_the_proportions() {
        let crowd = Scenario::find("flash-crowd").unwrap().with_peers(5);
        assert_eq!((crowd.peers, crowd.peers_in_all()), (5, 55));
        let slow = Scenario::find("slow-receiver").unwrap().with_peers(6);
        assert!(matches!(slow.faults[0], Fault::Slow { peers: 1, .. }), "{slow:?}");
    }

    #[test]
    fn what_one_kind_of_simulation_cannot_do_is_refused_by_key() {
        let text = "intent = 'x.'\npeers = 3000\nlasts = '9s'\n\
            [[load]]\nkind = 'messages'\nat = '1s'\nwithin = '1s'\ncount = 3\n";
        let scenario = Scenario::parse(text, Path::new("x.toml")).unwrap();
        let error = scenario.check_virtual().unwrap_err().to_string();
        assert!(
            error.contains("messages") && error.contains("number 1"),
            "{error}"
        );
        #[cfg(feature = "real")]
        {
            let error = scenario.check_real().unwrap_err().to_string();
            assert!(error.contains("peers = 3000"), "{error}");
            let mut deep = scenario.with_peers(10);
            deep.link.queue = crate::units::Bytes(1 << 30);
            let error = deep.check_real().unwrap_err().to_string();
            assert!(error.contains("queue"), "{error}");
        }
    }

    #[test]
    fn a_topology_in_a_scenario_is_checked_with_it() {
        let text = "intent = 'x.'\npeers = 2\nlasts = '9s'\n\
            [[fault]]\nkind = 'partition'\nat = '1s'\nlasts = '1s'\nregion = 'home'\n\
            [topology]\nshape = 'custom'\n\
            [topology.regions]\nnames = ['home', 'cloud']\nlatency = [['1ms', '9ms'], ['8ms', '1ms']]\n\
            [[topology.node]]\nname = 'a'\n[[topology.node]]\nname = 'b'\nregion = 'cloud'\n";
        let parse = |text: &str| Scenario::parse(text, Path::new("x.toml"));
        let scenario = parse(text).unwrap();
        let error = scenario.check_virtual().unwrap_err().to_string();
        assert!(
            error.contains("cloud") && error.contains("both directions"),
            "{error}"
        );
        let even = parse(&text.replace("'8ms'", "'9ms'")).unwrap();
        assert_eq!(even.check_virtual().map_err(|error| error.to_string()), Ok(()));
        for (from, to, reason) in [
            ("region = 'home'", "region = 'mars'", "there are home, cloud"),
            ("peers = 2", "peers = 3", "2 nodes"),
            ("region = 'cloud'", "region = 'clouds'", "topology"),
            ("shape = 'custom'", "shape = 'custom'\nnods = 2", "x.toml"),
        ] {
            let error = parse(&text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
