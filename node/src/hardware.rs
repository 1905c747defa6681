//! What this host is made of, as nodes of the fabric.
//!
//! Everything is read from `/proc` and `/sys`, below a root folder that tests replace. The host itself is always one
//! node; a device that its kernel shows is one below it. Nothing is asked of a driver, so a device whose size the kernel
//! does not tell is listed without one.

mod pci;

use std::fs;
use std::path::Path;

use hyperfabric_protocol::NodeId;
use hyperfabric_protocol::types::{
    HardwareType, MAX_BANDWIDTH_GBPS, MIN_BANDWIDTH_GBPS, NodeSignature, NodeType,
    QUANTUM_COHERENCE_THRESHOLD_US,
};

/// The highest latency of a link to a quantum processor, in nanoseconds.
pub const MAX_LATENCY_QUANTUM_NS: u64 = 100_000;
/// The latency that a link is said to have until it is measured, in nanoseconds: a switch and two kernels.
pub const LINK_LATENCY_NS_UNMEASURED: u64 = 50_000;
/// The most devices that a host lists: a folder of `/sys` that is larger is not a host's.
const DEVICES_MAX: usize = 64;
/// The size of a block device's sectors in `/sys`, whatever the device's own is.
const SECTOR_BYTES: u64 = 512;
/// The name of a host whose own name cannot be one.
const FALLBACK_NAME: &str = "node";

/// Detects this host and its devices; the host is named after itself.
#[must_use]
pub fn detect_hardware_capabilities() -> Vec<NodeSignature> {
    let root = Path::new("/");
    detect_in(root, &host_name_in(root))
}

/// Returns the name that this host's own node has unless it is given another.
#[must_use]
pub fn host_name() -> NodeId {
    host_name_in(Path::new("/"))
}

/// Detects a host, called `name`, and its devices from the `/proc` and `/sys` below `root`.
///
/// The host comes first. Bandwidths are clamped to what the fabric knows; the kernel's own word stays in the metadata.
#[must_use]
pub fn detect_in(root: &Path, name: &NodeId) -> Vec<NodeSignature> {
    let link = Link::fastest(root);
    let mut host = link.node(name.clone(), HardwareType::CpuServer);
    if let Some(host) = &mut host {
        host.compute_units = Some(cpu_count(root));
        host.memory_gb = memory_gb(root);
    }
    let mut nodes: Vec<NodeSignature> = host.into_iter().collect();
    nodes.extend(pci::accelerators(root).filter_map(|(label, device)| {
        let mut node = link.node(below(name, &label)?, device.hardware_type)?;
        node.memory_gb = device.memory_bytes.map(gigabytes);
        node.metadata.insert("pci".to_owned(), device.address);
        node.metadata.insert("pci_id".to_owned(), device.id);
        Some(node)
    }));
    nodes.extend(nvme_disks(root).into_iter().filter_map(|disk| {
        let mut node = link.node(below(name, &disk.name)?, HardwareType::StorageArray)?;
        node.metadata
            .insert("capacity_bytes".to_owned(), disk.bytes.to_string());
        Some(node)
    }));
    nodes
}

/// Tells whether a node fits the limits of the fabric.
#[must_use]
pub fn validate_hardware_compatibility(node: &NodeSignature) -> bool {
    let quantum = node.hardware_type.node_type() == NodeType::Quantum;
    let coherent = node
        .quantum_coherence_time_us
        .is_none_or(|time| time >= QUANTUM_COHERENCE_THRESHOLD_US);
    node.validate().is_ok()
        && (MIN_BANDWIDTH_GBPS..=MAX_BANDWIDTH_GBPS).contains(&node.bandwidth_gbps)
        && (!quantum || (coherent && node.latency_ns <= MAX_LATENCY_QUANTUM_NS))
}

/// The link that connects a host with others.
struct Link {
    megabits: Option<u64>,
    name: Option<String>,
}

impl Link {
    /// Finds the fastest interface that is up, real devices before virtual ones.
    fn fastest(root: &Path) -> Self {
        let interfaces = names_in(&root.join("sys/class/net"))
            .into_iter()
            .filter(|name| name != "lo");
        let mut best: Option<(bool, u64, String)> = None;
        for name in interfaces {
            let folder = root.join("sys/class/net").join(&name);
            if text(&folder.join("operstate")).as_deref() != Some("up") {
                continue;
            }
            // A virtual interface has no speed, or one that means nothing: the kernel says 10000 for every veth.
            let real = folder.join("device").exists();
            let speed = text(&folder.join("speed"))
                .and_then(|speed| speed.parse().ok())
                .unwrap_or(0);
            let this = (real, speed, name);
            if best
                .as_ref()
                .is_none_or(|best| (this.0, this.1) > (best.0, best.1))
            {
                best = Some(this);
            }
        }
        match best {
            Some((true, megabits @ 1.., name)) => Self {
                megabits: Some(megabits),
                name: Some(name),
            },
            Some((_, _, name)) => Self {
                megabits: None,
                name: Some(name),
            },
            None => Self {
                megabits: None,
                name: None,
            },
        }
    }

    fn node(&self, id: NodeId, hardware_type: HardwareType) -> Option<NodeSignature> {
        let gigabits = self
            .megabits
            .map_or(MIN_BANDWIDTH_GBPS, |megabits| to_f64(megabits) / 1e3);
        let bandwidth = gigabits.clamp(MIN_BANDWIDTH_GBPS, MAX_BANDWIDTH_GBPS);
        let mut node = NodeSignature::new(id, hardware_type, bandwidth, LINK_LATENCY_NS_UNMEASURED).ok()?;
        if let (Some(megabits), Some(name)) = (self.megabits, &self.name) {
            node.metadata.insert("link".to_owned(), name.clone());
            node.metadata.insert("link_mbps".to_owned(), megabits.to_string());
        }
        Some(node)
    }
}

struct Disk {
    name: String,
    bytes: u64,
}

fn nvme_disks(root: &Path) -> Vec<Disk> {
    let folder = root.join("sys/block");
    // nvme0n1 is the first namespace of the first controller; its partitions are not listed here.
    let disks = names_in(&folder)
        .into_iter()
        .filter(|name| name.starts_with("nvme") && !name.contains('c'));
    disks
        .filter_map(|name| {
            let sectors: u64 = text(&folder.join(&name).join("size"))?.parse().ok()?;
            (sectors > 0).then(|| Disk {
                bytes: sectors.saturating_mul(SECTOR_BYTES),
                name,
            })
        })
        .take(DEVICES_MAX)
        .collect()
}

fn cpu_count(root: &Path) -> u32 {
    let info = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let count = info.lines().filter(|line| line.starts_with("processor")).count();
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

fn memory_gb(root: &Path) -> Option<f64> {
    let info = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(gigabytes(kibibytes.saturating_mul(1_024)))
}

fn gigabytes(bytes: u64) -> f64 {
    to_f64(bytes) / 1e9
}

#[allow(
    clippy::cast_precision_loss,
    reason = "quantities of hardware are shown, not computed with"
)]
fn to_f64(value: u64) -> f64 {
    value as f64
}

fn host_name_in(root: &Path) -> NodeId {
    let name = text(&root.join("proc/sys/kernel/hostname")).unwrap_or_default();
    // Of a fully qualified name the first label is what people call the host.
    let label: String = name
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    NodeId::new(label)
        .or_else(|_| NodeId::new(FALLBACK_NAME))
        .expect("the fallback is a node id")
}

fn below(name: &NodeId, label: &str) -> Option<NodeId> {
    NodeId::new(format!("{name}/{label}")).ok()
}

/// Returns the sorted names in a folder; none when it is not there.
fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Returns a one-line file without its line end.
fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests;
