//! The configuration of a peer: one YAML file in which every key has a default.
//!
//! [`keys`] is the one table that says which keys exist, what they mean and what they accept. Reading, checking,
//! writing and `hyperfabric config show` all follow it, so a key cannot be known to one and unknown to another. A key
//! that is not in the table is an error, because a setting that is misspelt and silently ignored is worse than one
//! that is missing.

pub mod keys;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use hyperfabric_protocol::{Address, NodeId};
use serde_json::{Map, Value};

use crate::paths::{self, DataDir, PathError};
use crate::transfer::inbox::ABANDONED_AFTER_DEFAULT;

/// The smallest datagram that QUIC allows (RFC 9000, section 14).
pub const MTU_MIN: u16 = 1_200;
/// The largest datagram that discovery tries: a jumbo frame.
pub const MTU_MAX: u16 = 9_000;

/// What a peer was told by its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FabricConfig {
    /// `node.name`: the `node_id` of the host's own node.
    pub node_name: Option<NodeId>,
    /// `mesh`: the open mesh to be part of. A peer with a certificate is part of the mesh that the certificate names.
    pub mesh: Option<String>,
    /// `listen`: where to be reachable; port 0 takes a free one and keeps it over restarts.
    pub listen: SocketAddr,
    /// `bootstrap`: peers to meet first, as multiaddrs.
    pub bootstrap: Vec<Address>,
    /// `api.listen`: where the local API is served; loopback only.
    pub api_listen: SocketAddr,
    /// `transport.*`
    pub transport: TransportConfig,
    /// `inbox.*`
    pub inbox: InboxConfig,
    /// `send.roots`: folders below which the HTTP API may send files by path; none by default.
    pub send_roots: Vec<PathBuf>,
    /// `limits.*`
    pub limits: Limits,
    /// `log`: a filter as in the crate `tracing-subscriber`.
    pub log: String,
}

/// How datagrams travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportConfig {
    /// The largest datagram that path MTU discovery tries, in bytes, from [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu_max: u16,
    /// What carries them.
    pub backend: Backend,
}

/// What carries datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's UDP sockets.
    Kernel,
}

/// Which files this peer takes, and how much room they may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxConfig {
    /// Whose files.
    pub accept: Accept,
    /// The most that the inbox may hold, in bytes; `None` is no limit.
    pub quota_bytes: Option<u64>,
    /// What must stay free on the inbox's file system, in bytes.
    pub min_free_bytes: u64,
    /// After how long without a byte a transfer whose sender is away is given up, in seconds.
    pub abandoned_after_seconds: u64,
}

/// Whose files are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Every member's.
    All,
    /// Nobody's.
    None,
    /// Those of the named members and of the nodes below them.
    Only(Vec<NodeId>),
}

impl Accept {
    /// Tells whether files of the node `sender` are taken.
    #[must_use]
    pub fn allows(&self, sender: &NodeId) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Only(names) => names.iter().any(|name| sender.is_within(name)),
        }
    }
}

/// How much others may make this peer hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time.
    pub connections: u32,
    /// Connections at one time with one address that has not proved who it is.
    pub connections_per_address: u32,
    /// Transfers at one time, in each direction; further ones wait at their senders.
    pub transfers: u32,
    /// The largest body that is taken as an upload over HTTP, in bytes.
    pub upload_bytes: u64,
}

impl Default for FabricConfig {
    fn default() -> Self {
        Self {
            node_name: None,
            mesh: None,
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            bootstrap: Vec::new(),
            api_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            transport: TransportConfig {
                mtu_max: MTU_MAX,
                backend: Backend::Kernel,
            },
            inbox: InboxConfig {
                accept: Accept::All,
                quota_bytes: None,
                min_free_bytes: 64 << 20,
                abandoned_after_seconds: ABANDONED_AFTER_DEFAULT.as_secs(),
            },
            send_roots: Vec::new(),
            limits: Limits {
                connections: 256,
                connections_per_address: 32,
                transfers: 64,
                upload_bytes: 16 << 30,
            },
            log: "info".to_owned(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] PathError),
    /// The file is not there.
    #[error("there is no configuration file {}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is not YAML.
    #[error("{} is not valid YAML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// A key does not exist.
    #[error("unknown key `{key}`{}", nearest.map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?")))]
    UnknownKey {
        /// The key as it stands in the file, with its sections.
        key: String,
        /// The key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A value is not allowed.
    #[error("`{key}` cannot be {value}: expected {allowed}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// The value as it stands in the file.
        value: Value,
        /// What is allowed.
        allowed: &'static str,
    },
}

/// Reads a configuration file; keys that it does not have keep their defaults.
///
/// # Errors
/// [`ConfigError`] names the file, or the key and what it accepts.
pub fn load_fabric_config(config_file: &Path) -> Result<FabricConfig, ConfigError> {
    let Some(text) = paths::read_bounded(config_file)? else {
        return Err(ConfigError::Missing {
            path: config_file.to_path_buf(),
        });
    };
    let syntax = |source| ConfigError::Syntax {
        path: config_file.to_path_buf(),
        source,
    };
    // By way of YAML's own value, because JSON's takes the last of two equal keys in silence.
    let document: serde_yaml_ng::Value = serde_yaml_ng::from_slice(&text).map_err(syntax)?;
    let document: Value = serde_yaml_ng::from_value(document).map_err(syntax)?;
    FabricConfig::from_value(&document)
}

/// Writes a configuration file atomically: every key with its meaning as a comment and its value.
///
/// # Errors
/// [`ConfigError::File`] when it cannot be written; an existing file is then intact.
pub fn save_fabric_config(config: &FabricConfig, config_file: &Path) -> Result<(), ConfigError> {
    Ok(paths::replace_file(config_file, config.to_yaml().as_bytes())?)
}

impl FabricConfig {
    /// Reads the configuration of a data folder; the defaults when it has none.
    ///
    /// # Errors
    /// As [`load_fabric_config`].
    pub fn of(data_dir: &DataDir) -> Result<Self, ConfigError> {
        match load_fabric_config(&data_dir.config()) {
            Err(ConfigError::Missing { .. }) => Ok(Self::default()),
            loaded => loaded,
        }
    }

    /// Reads a configuration out of a parsed document.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`] or [`ConfigError::BadValue`] for the first key that is not right.
    pub fn from_value(document: &Value) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        match document {
            // An empty file, or one that has comments only.
            Value::Null => Ok(config),
            Value::Object(entries) => {
                config.set_section("", entries)?;
                Ok(config)
            }
            _ => Err(ConfigError::UnknownKey {
                key: document.to_string(),
                nearest: None,
            }),
        }
    }

    fn set_section(&mut self, section: &str, entries: &Map<String, Value>) -> Result<(), ConfigError> {
        for (name, value) in entries {
            let key = if section.is_empty() {
                name.clone()
            } else {
                format!("{section}.{name}")
            };
            if let Some(known) = keys::KEYS.iter().find(|known| known.path == key) {
                if (known.set)(self, value).is_none() {
                    return Err(ConfigError::BadValue {
                        key: known.path,
                        value: value.clone(),
                        allowed: known.allowed,
                    });
                }
                continue;
            }
            match value {
                Value::Object(inner) if keys::is_section(&key) => self.set_section(&key, inner)?,
                // A section that is there but empty: all its keys are commented out.
                Value::Null if keys::is_section(&key) => {}
                _ => {
                    let nearest = keys::nearest(&key);
                    return Err(ConfigError::UnknownKey { key, nearest });
                }
            }
        }
        Ok(())
    }

    /// Returns every key with its value, nested by section.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut document = Map::new();
        for key in keys::KEYS {
            let value = (key.get)(self);
            match key.path.split_once('.') {
                None => {
                    document.insert(key.path.to_owned(), value);
                }
                Some((section, name)) => {
                    let entry = document
                        .entry(section)
                        .or_insert_with(|| Value::Object(Map::new()));
                    if let Value::Object(entries) = entry {
                        entries.insert(name.to_owned(), value);
                    }
                }
            }
        }
        Value::Object(document)
    }

    /// Returns the text of a configuration file: every key with its meaning as a comment and its value.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut text =
            String::from("# HyperFabric configuration. `hyperfabric config check` reads it critically.\n");
        let mut section = "";
        for key in keys::KEYS {
            let (in_section, name) = key.path.split_once('.').unwrap_or(("", key.path));
            let indent = if in_section.is_empty() { "" } else { "  " };
            if in_section != section {
                text.push_str(&format!("\n{in_section}:\n"));
                section = in_section;
            } else if in_section.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("{indent}# {} Accepts: {}.\n", key.help, key.allowed));
            // JSON is YAML's flow style: one line per key, whatever the value is.
            text.push_str(&format!("{indent}{name}: {}\n", (key.get)(self)));
        }
        text
    }
}

#[cfg(test)]
mod tests;
