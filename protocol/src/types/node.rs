//! Nodes: what an endpoint of the fabric is and what it can do.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::data::named;
use crate::NodeId;
use crate::cbor::{DecodeError, Decoder, Encoder, Value, wire_enum, wire_map};

/// What a node is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum HardwareType {
    NvidiaH100,
    NvidiaA100,
    NvidiaRtx4090,
    AmdMi300x,
    AmdMi250x,
    IntelGaudi2,
    QuantumQpu,
    QuantumAnnealer,
    NeuromorphicChip,
    IntelLoihi,
    PhotonicSwitch,
    OpticalInterconnect,
    CpuServer,
    StorageArray,
    NetworkSwitch,
    Custom,
}

named!(HardwareType, "hardware type", {
    NvidiaH100 = "nvidia_h100",
    NvidiaA100 = "nvidia_a100",
    NvidiaRtx4090 = "nvidia_rtx4090",
    AmdMi300x = "amd_mi300x",
    AmdMi250x = "amd_mi250x",
    IntelGaudi2 = "intel_gaudi2",
    QuantumQpu = "quantum_qpu",
    QuantumAnnealer = "quantum_annealer",
    NeuromorphicChip = "neuromorphic_chip",
    IntelLoihi = "intel_loihi",
    PhotonicSwitch = "photonic_switch",
    OpticalInterconnect = "optical_interconnect",
    CpuServer = "cpu_server",
    StorageArray = "storage_array",
    NetworkSwitch = "network_switch",
    Custom = "custom",
});

wire_enum!(HardwareType {
    NvidiaH100 = 0,
    NvidiaA100 = 1,
    NvidiaRtx4090 = 2,
    AmdMi300x = 3,
    AmdMi250x = 4,
    IntelGaudi2 = 5,
    QuantumQpu = 6,
    QuantumAnnealer = 7,
    NeuromorphicChip = 8,
    IntelLoihi = 9,
    PhotonicSwitch = 10,
    OpticalInterconnect = 11,
    CpuServer = 12,
    StorageArray = 13,
    NetworkSwitch = 14,
    Custom = 15,
});

/// The family that a [`HardwareType`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum NodeType {
    Accelerator,
    Quantum,
    Neuromorphic,
    Photonic,
    Compute,
    Storage,
    Network,
    Custom,
}

named!(NodeType, "node type", {
    Accelerator = "accelerator",
    Quantum = "quantum",
    Neuromorphic = "neuromorphic",
    Photonic = "photonic",
    Compute = "compute",
    Storage = "storage",
    Network = "network",
    Custom = "custom",
});

impl HardwareType {
    /// Returns the family.
    #[must_use]
    pub const fn node_type(self) -> NodeType {
        match self {
            Self::NvidiaH100
            | Self::NvidiaA100
            | Self::NvidiaRtx4090
            | Self::AmdMi300x
            | Self::AmdMi250x
            | Self::IntelGaudi2 => NodeType::Accelerator,
            Self::QuantumQpu | Self::QuantumAnnealer => NodeType::Quantum,
            Self::NeuromorphicChip | Self::IntelLoihi => NodeType::Neuromorphic,
            Self::PhotonicSwitch | Self::OpticalInterconnect => NodeType::Photonic,
            Self::CpuServer => NodeType::Compute,
            Self::StorageArray => NodeType::Storage,
            Self::NetworkSwitch => NodeType::Network,
            Self::Custom => NodeType::Custom,
        }
    }
}

/// The most entries in a node's metadata.
pub const METADATA_ENTRIES_MAX: usize = 16;
/// The longest key or value in a node's metadata, and the longest free text, in bytes.
const TEXT_BYTES_MAX: usize = 128;
/// The largest value of any unit on the wire: keeps every conversion to a float exact.
const WIRE_MAX: f64 = 9_007_199_254_740_992.0;

/// Why a node specification is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNode {
    /// Bandwidth must be positive and finite.
    #[error("bandwidth_gbps must be positive")]
    Bandwidth,
    /// An optional quantity is negative, not finite or absurdly large.
    #[error("{0} must be a finite number that is not negative")]
    Quantity(&'static str),
    /// A quantum processor must say how long it keeps its state.
    #[error("a quantum_qpu must state quantum_coherence_time_us")]
    CoherenceTime,
    /// A text is too long.
    #[error("{0} is longer than {TEXT_BYTES_MAX} bytes")]
    Text(&'static str),
    /// There is too much metadata.
    #[error("metadata has more than {METADATA_ENTRIES_MAX} entries")]
    Metadata,
}

/// What a node is, as registered in the fabric.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct NodeSignature {
    /// The node's name, unique in its mesh.
    pub node_id: NodeId,
    /// What it is made of.
    pub hardware_type: HardwareType,
    /// Bandwidth of its link, in Gbit/s.
    pub bandwidth_gbps: f64,
    /// Latency of its link, in nanoseconds.
    pub latency_ns: u64,
    /// Memory, in GB (10^9 bytes).
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub memory_gb: Option<f64>,
    /// Cores, streaming multiprocessors, or what its kind counts.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub compute_units: Option<u32>,
    /// Power, in watts.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub power_watts: Option<f64>,
    /// Where in a rack it stands.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub rack_position: Option<String>,
    /// Where on earth it stands.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub physical_location: Option<String>,
    /// Coherence time of a quantum processor, in microseconds.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub quantum_coherence_time_us: Option<f64>,
    /// Neurons of a neuromorphic chip.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub neuromorphic_neurons: Option<u64>,
    /// Channels of a photonic component.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub photonic_channels: Option<u32>,
    /// Anything else, as short texts.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "BTreeMap::is_empty"))]
    pub metadata: BTreeMap<String, String>,
}

impl NodeSignature {
    /// Makes a signature with the required fields.
    ///
    /// # Errors
    /// [`InvalidNode`] as for [`Self::validate`].
    pub fn new(
        node_id: NodeId,
        hardware_type: HardwareType,
        bandwidth_gbps: f64,
        latency_ns: u64,
    ) -> Result<Self, InvalidNode> {
        let this = Self {
            node_id,
            hardware_type,
            bandwidth_gbps,
            latency_ns,
            memory_gb: None,
            compute_units: None,
            power_watts: None,
            rack_position: None,
            physical_location: None,
            quantum_coherence_time_us: None,
            neuromorphic_neurons: None,
            photonic_channels: None,
            metadata: BTreeMap::new(),
        };
        // A coherence time can only be set afterwards, so that requirement is left to the registration.
        match this.validate() {
            Ok(()) | Err(InvalidNode::CoherenceTime) => Ok(this),
            Err(error) => Err(error),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`InvalidNode`] names the first field that is wrong.
    pub fn validate(&self) -> Result<(), InvalidNode> {
        if !(self.bandwidth_gbps > 0.0 && self.bandwidth_gbps * 1e6 < WIRE_MAX) {
            return Err(InvalidNode::Bandwidth);
        }
        for (name, value, factor) in [
            ("memory_gb", self.memory_gb, 1e9),
            ("power_watts", self.power_watts, 1e3),
            ("quantum_coherence_time_us", self.quantum_coherence_time_us, 1e3),
        ] {
            if value.is_some_and(|v| !(v >= 0.0 && v * factor < WIRE_MAX)) {
                return Err(InvalidNode::Quantity(name));
            }
        }
        for (name, value) in [
            ("rack_position", &self.rack_position),
            ("physical_location", &self.physical_location),
        ] {
            if value.as_ref().is_some_and(|v| v.len() > TEXT_BYTES_MAX) {
                return Err(InvalidNode::Text(name));
            }
        }
        if self.metadata.len() > METADATA_ENTRIES_MAX {
            return Err(InvalidNode::Metadata);
        }
        if self
            .metadata
            .iter()
            .any(|(k, v)| k.len() > TEXT_BYTES_MAX || v.len() > TEXT_BYTES_MAX)
        {
            return Err(InvalidNode::Text("metadata"));
        }
        if self.hardware_type == HardwareType::QuantumQpu
            && self.quantum_coherence_time_us.unwrap_or(0.0) <= 0.0
        {
            return Err(InvalidNode::CoherenceTime);
        }
        Ok(())
    }
}

type ShortText = crate::cbor::Text<TEXT_BYTES_MAX>;

wire_map! {
    /// The wire's form of a [`NodeSignature`]: integers in small units. [TYPE-6]
    #[allow(unreachable_pub, reason = "the macro declares public structs; this one stays in its module")]
    pub struct WireNode {
        0 => pub node_id: NodeId,
        1 => pub hardware_type: HardwareType,
        2 => pub bandwidth_kbps: u64,
        3 => pub latency_ns: u64,
        4 => pub memory_bytes: Option<u64>,
        5 => pub compute_units: Option<u32>,
        6 => pub power_mw: Option<u64>,
        7 => pub rack_position: Option<ShortText>,
        8 => pub physical_location: Option<ShortText>,
        9 => pub coherence_ns: Option<u64>,
        10 => pub neurons: Option<u64>,
        11 => pub channels: Option<u32>,
        12 => pub metadata: Metadata,
    }
}

/// Metadata on the wire: a sorted list of key and value, so that equal metadata has equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(unreachable_pub, reason = "a field of WireNode")]
pub struct Metadata(BTreeMap<String, String>);

impl Value for Metadata {
    fn encode(&self, e: &mut Encoder) {
        e.array(self.0.len() * 2);
        for (key, value) in &self.0 {
            e.text(key);
            e.text(value);
        }
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let len = d.array(METADATA_ENTRIES_MAX * 2)?;
        if len % 2 != 0 {
            return Err(DecodeError::Invalid("metadata"));
        }
        let mut out = BTreeMap::new();
        for _ in 0..len / 2 {
            let key = String::from(d.text(TEXT_BYTES_MAX)?);
            if out.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(DecodeError::KeyOrder);
            }
            out.insert(key, String::from(d.text(TEXT_BYTES_MAX)?));
        }
        Ok(Self(out))
    }

    fn is_absent(&self) -> bool {
        self.0.is_empty()
    }

    fn absent() -> Option<Self> {
        Some(Self::default())
    }
}

/// Converts a checked quantity to the wire's smaller unit.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "validate bounds the product to 2^53"
)]
fn scale(value: f64, factor: f64) -> u64 {
    // `no_std` has no `f64::round`; adding a half and truncating is the same for what is not negative.
    (value * factor + 0.5).min(WIRE_MAX) as u64
}

#[allow(clippy::cast_precision_loss, reason = "bounded to 2^53 when decoded")]
fn unscale(value: u64, factor: f64) -> f64 {
    value as f64 / factor
}

impl Value for NodeSignature {
    fn encode(&self, e: &mut Encoder) {
        let text = |t: &Option<String>| t.as_deref().map(ShortText::truncating);
        WireNode {
            node_id: self.node_id.clone(),
            hardware_type: self.hardware_type,
            bandwidth_kbps: scale(self.bandwidth_gbps, 1e6).max(1),
            latency_ns: self.latency_ns,
            memory_bytes: self.memory_gb.map(|v| scale(v, 1e9)),
            compute_units: self.compute_units,
            power_mw: self.power_watts.map(|v| scale(v, 1e3)),
            rack_position: text(&self.rack_position),
            physical_location: text(&self.physical_location),
            coherence_ns: self.quantum_coherence_time_us.map(|v| scale(v, 1e3)),
            neurons: self.neuromorphic_neurons,
            channels: self.photonic_channels,
            metadata: Metadata(self.metadata.clone()),
        }
        .encode(e);
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let wire = WireNode::decode(d)?;
        let quantities: Vec<u64> = [
            Some(wire.bandwidth_kbps),
            wire.memory_bytes,
            wire.power_mw,
            wire.coherence_ns,
        ]
        .into_iter()
        .flatten()
        .collect();
        if quantities.into_iter().any(|v| unscale(v, 1.0) >= WIRE_MAX) {
            return Err(DecodeError::Invalid("node quantity"));
        }
        let node = Self {
            node_id: wire.node_id,
            hardware_type: wire.hardware_type,
            bandwidth_gbps: unscale(wire.bandwidth_kbps, 1e6),
            latency_ns: wire.latency_ns,
            memory_gb: wire.memory_bytes.map(|v| unscale(v, 1e9)),
            compute_units: wire.compute_units,
            power_watts: wire.power_mw.map(|v| unscale(v, 1e3)),
            rack_position: wire.rack_position.map(|t| t.0),
            physical_location: wire.physical_location.map(|t| t.0),
            quantum_coherence_time_us: wire.coherence_ns.map(|v| unscale(v, 1e3)),
            neuromorphic_neurons: wire.neurons,
            photonic_channels: wire.channels,
            metadata: wire.metadata.0,
        };
        node.validate()
            .map_err(|_| DecodeError::Invalid("node signature"))?;
        Ok(node)
    }
}
