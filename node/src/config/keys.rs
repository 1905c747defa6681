//! The table of configuration keys.
//!
//! A key's `set` answers `None` for a value that it does not accept; what it does accept stands beside it in words,
//! for the error and for the comments of a written file. Top-level keys stand before sections, and the keys of one
//! section together, so that a written file is valid YAML.

use std::path::PathBuf;

use hyperfabric_protocol::NodeId;
use hyperfabric_protocol::cert::MESH_NAME_BYTES_MAX;
use hyperfabric_protocol::transfer::limits::INCOMING_MAX;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;

use super::{Accept, Backend, FabricConfig, MTU_MAX, MTU_MIN};

/// The longest list that a key takes.
const LIST_MAX: usize = 256;
/// The largest number that a count in `limits` takes.
const COUNT_MAX: u32 = 65_536;
/// A leap year.
const YEAR_SECONDS: u64 = 366 * 24 * 3600;

/// One configuration key.
pub struct Key {
    /// Its name with its section, such as `inbox.accept`.
    pub path: &'static str,
    /// What it means, as a sentence.
    pub help: &'static str,
    /// What it accepts.
    pub allowed: &'static str,
    /// Reads the value out of a configuration.
    pub get: fn(&FabricConfig) -> Value,
    /// Puts a value into a configuration; `None` when the value is not allowed.
    pub set: fn(&mut FabricConfig, &Value) -> Option<()>,
}

/// Every key.
pub const KEYS: &[Key] = &[
    Key {
        path: "mesh",
        help: "The open mesh to be part of; a mesh with tickets is named by the certificate instead.",
        allowed: "a name of 1 to 64 bytes without control characters, or null",
        get: |c| json!(c.mesh),
        set: |c, v| {
            c.mesh = optional(v, |name: String| {
                let plain = !name.is_empty() && !name.chars().any(char::is_control);
                (plain && name.len() <= MESH_NAME_BYTES_MAX).then_some(name)
            })?;
            Some(())
        },
    },
    Key {
        path: "listen",
        help: "Where other peers reach this one; port 0 takes a free port and keeps it over restarts.",
        allowed: "a list of one ADDRESS:PORT with an IP address, such as [\"0.0.0.0:0\"]; [::]:PORT is every interface and both IP versions",
        get: |c| json!([c.listen]),
        set: |c, v| {
            let [listen] = list(v)?.try_into().ok()?;
            c.listen = listen;
            Some(())
        },
    },
    Key {
        path: "bootstrap",
        help: "Peers to meet first.",
        allowed: "a list of multiaddrs, such as [\"/ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3KooW...\"]",
        get: |c| json!(c.bootstrap),
        set: |c, v| {
            c.bootstrap = list(v)?;
            c.bootstrap
                .iter()
                .all(|address| address.as_str().starts_with('/'))
                .then_some(())
        },
    },
    Key {
        path: "log",
        help: "What the daemon logs.",
        allowed: "error, warn, info, debug, trace, or a filter such as info,hyperfabric_mesh=debug",
        get: |c| json!(c.log),
        set: |c, v| {
            c.log = parse::<String>(v)?;
            EnvFilter::try_new(&c.log).ok().map(|_| ())
        },
    },
    Key {
        path: "node.name",
        help: "The node_id of this host's own node; its devices are NAME/gpu0 and so on.",
        allowed: "1 to 128 characters of A-Z a-z 0-9 . _ - in segments separated by /, or null",
        get: |c| json!(c.node_name),
        set: |c, v| {
            c.node_name = optional(v, Some)?;
            Some(())
        },
    },
    Key {
        path: "api.listen",
        help: "Where the local API is served; port 0 takes a free port.",
        allowed: "a loopback ADDRESS:PORT, such as 127.0.0.1:7070",
        get: |c| json!(c.api_listen),
        set: |c, v| {
            c.api_listen = parse(v)?;
            c.api_listen.ip().is_loopback().then_some(())
        },
    },
    Key {
        path: "transport.mtu_max",
        help: "The largest datagram that path MTU discovery tries, in bytes.",
        allowed: "a number from 1200 to 9000",
        get: |c| json!(c.transport.mtu_max),
        set: |c, v| {
            c.transport.mtu_max = parse(v)?;
            (MTU_MIN..=MTU_MAX).contains(&c.transport.mtu_max).then_some(())
        },
    },
    Key {
        path: "transport.backend",
        help: "What carries datagrams.",
        allowed: "kernel",
        get: |c| match c.transport.backend {
            Backend::Kernel => json!("kernel"),
        },
        set: |c, v| {
            c.transport.backend = match v.as_str()? {
                "kernel" => Backend::Kernel,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        path: "inbox.accept",
        help: "Whose files are taken.",
        allowed: "all, none, or a list of member names",
        get: |c| match &c.inbox.accept {
            Accept::All => json!("all"),
            Accept::None => json!("none"),
            Accept::Only(names) => json!(names),
        },
        set: |c, v| {
            c.inbox.accept = match v.as_str() {
                Some("all") => Accept::All,
                Some("none") => Accept::None,
                Some(_) => return None,
                None => Accept::Only(list::<NodeId>(v)?),
            };
            Some(())
        },
    },
    Key {
        path: "inbox.quota_bytes",
        help: "The most that the inbox may hold, in bytes.",
        allowed: "a whole number, or null for no limit",
        get: |c| json!(c.inbox.quota_bytes),
        set: |c, v| {
            c.inbox.quota_bytes = optional(v, Some)?;
            Some(())
        },
    },
    Key {
        path: "inbox.min_free_bytes",
        help: "What must stay free on the inbox's file system, in bytes.",
        allowed: "a whole number",
        get: |c| json!(c.inbox.min_free_bytes),
        set: |c, v| {
            c.inbox.min_free_bytes = parse(v)?;
            Some(())
        },
    },
    Key {
        path: "inbox.abandoned_after_seconds",
        help: "After how long without a byte a transfer whose sender is away is given up, and what arrived removed.",
        allowed: "a number from 1 to 31622400, which is a year",
        get: |c| json!(c.inbox.abandoned_after_seconds),
        set: |c, v| {
            c.inbox.abandoned_after_seconds = parse(v)?;
            (1..=YEAR_SECONDS)
                .contains(&c.inbox.abandoned_after_seconds)
                .then_some(())
        },
    },
    Key {
        path: "send.roots",
        help: "Folders below which the HTTP API may send files by path; the command line needs none.",
        allowed: "a list of absolute paths",
        get: |c| json!(c.send_roots),
        set: |c, v| {
            c.send_roots = list::<PathBuf>(v)?;
            c.send_roots.iter().all(|root| root.is_absolute()).then_some(())
        },
    },
    Key {
        path: "limits.connections",
        help: "Connections at one time.",
        allowed: "a number from 1 to 65536",
        get: |c| json!(c.limits.connections),
        set: |c, v| {
            c.limits.connections = count(v)?;
            Some(())
        },
    },
    Key {
        path: "limits.connections_per_address",
        help: "Connections at one time with one address that has not yet proved who it is.",
        allowed: "a number from 1 to 65536",
        get: |c| json!(c.limits.connections_per_address),
        set: |c, v| {
            c.limits.connections_per_address = count(v)?;
            Some(())
        },
    },
    Key {
        path: "limits.transfers",
        help: "Transfers at one time, in each direction; further ones wait at their senders.",
        allowed: "a number from 1 to 1024",
        get: |c| json!(c.limits.transfers),
        set: |c, v| {
            c.limits.transfers = count(v)?;
            (c.limits.transfers as usize <= INCOMING_MAX).then_some(())
        },
    },
    Key {
        path: "limits.upload_bytes",
        help: "The largest body that is taken as an upload over HTTP, in bytes.",
        allowed: "a whole number",
        get: |c| json!(c.limits.upload_bytes),
        set: |c, v| {
            c.limits.upload_bytes = parse(v)?;
            Some(())
        },
    },
];

/// Tells whether some key lies in the section `name`.
#[must_use]
pub fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .split_once('.')
            .is_some_and(|(section, _)| section == name)
    })
}

/// Returns the key or section that was probably meant by `unknown`.
#[must_use]
pub fn nearest(unknown: &str) -> Option<&'static str> {
    // A section that was given a value: name something that can take one.
    if is_section(unknown) {
        return KEYS
            .iter()
            .map(|key| key.path)
            .find(|path| path.starts_with(unknown) && *path != unknown);
    }
    // A key of the right name in the wrong section is the likelier mistake than any typing error.
    let last = unknown.rsplit('.').next().unwrap_or(unknown);
    let same_name = KEYS
        .iter()
        .map(|key| key.path)
        .find(|path| path.rsplit('.').next() == Some(last));
    if same_name.is_some() {
        return same_name;
    }
    let sections = KEYS
        .iter()
        .filter_map(|key| key.path.split_once('.'))
        .map(|(section, _)| section);
    // Of a section that exists, its own keys are meant.
    let inside = unknown
        .split_once('.')
        .map(|(section, _)| section)
        .filter(|section| is_section(section));
    let fits =
        |path: &&str| inside.is_none_or(|section| path.split_once('.').is_some_and(|(of, _)| of == section));
    let candidates = KEYS.iter().map(|key| key.path).chain(sections).filter(fits);
    let (distance, best) = candidates.map(|path| (edits(unknown, path), path)).min()?;
    (distance <= 2 + unknown.len() / 4).then_some(best)
}

/// Counts the insertions, removals and replacements that turn `from` into `to` (Levenshtein's distance).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

fn parse<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

fn list<T: DeserializeOwned>(value: &Value) -> Option<Vec<T>> {
    // A section with nothing below it is YAML's way to write an empty list by accident.
    if value.is_null() {
        return Some(Vec::new());
    }
    (value.as_array()?.len() <= LIST_MAX).then(|| parse(value))?
}

fn optional<T: DeserializeOwned>(value: &Value, check: fn(T) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() {
        Some(None)
    } else {
        check(parse(value)?).map(Some)
    }
}

fn count(value: &Value) -> Option<u32> {
    parse(value).filter(|count| (1..=COUNT_MAX).contains(count))
}
