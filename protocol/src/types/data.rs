//! Kinds of data and their priorities. [TYPE-7]

use crate::cbor::wire_enum;

/// A text is not one of the names that an enum has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind}: expected one of {expected}")]
pub struct UnknownName {
    /// What was expected.
    pub kind: &'static str,
    /// The names that exist.
    pub expected: &'static str,
}

/// Gives an enum its names: `as_str`, `ALL`, `Display`, `FromStr` and serde's strings.
macro_rules! named {
    ($name:ident, $kind:literal, { $($variant:ident = $text:literal),* $(,)? }) => {
        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the value's name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl core::str::FromStr for $name {
            type Err = $crate::types::UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err($crate::types::UnknownName {
                        kind: $kind,
                        expected: concat!($($text, " "),*).trim_ascii_end(),
                    }),
                }
            }
        }

        #[cfg(feature = "serde")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <alloc::string::String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(super) use named;

/// What a payload is; decides codecs, routes and default priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DataType {
    Tensor,
    Parameter,
    Gradient,
    Activation,
    Embedding,
    QuantumState,
    QuantumCircuit,
    NeuromorphicSpike,
    SpikeTrain,
    ControlMessage,
    Metadata,
    Heartbeat,
    #[default]
    Generic,
    Binary,
    Json,
}

named!(DataType, "data type", {
    Tensor = "tensor",
    Parameter = "parameter",
    Gradient = "gradient",
    Activation = "activation",
    Embedding = "embedding",
    QuantumState = "quantum_state",
    QuantumCircuit = "quantum_circuit",
    NeuromorphicSpike = "neuromorphic_spike",
    SpikeTrain = "spike_train",
    ControlMessage = "control_message",
    Metadata = "metadata",
    Heartbeat = "heartbeat",
    Generic = "generic",
    Binary = "binary",
    Json = "json",
});

wire_enum!(DataType {
    Tensor = 0,
    Parameter = 1,
    Gradient = 2,
    Activation = 3,
    Embedding = 4,
    QuantumState = 5,
    QuantumCircuit = 6,
    NeuromorphicSpike = 7,
    SpikeTrain = 8,
    ControlMessage = 9,
    Metadata = 10,
    Heartbeat = 11,
    Generic = 12,
    Binary = 13,
    Json = 14,
});

/// How urgent a payload is; the lower the number, the more urgent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PacketPriority {
    /// Real-time critical.
    UltraHigh = 0,
    /// Low-latency applications.
    High = 1,
    /// Standard applications.
    #[default]
    Medium = 2,
    /// Background tasks.
    Low = 3,
    /// Large transfers.
    Bulk = 4,
}

named!(PacketPriority, "priority", {
    UltraHigh = "ultra_high",
    High = "high",
    Medium = "medium",
    Low = "low",
    Bulk = "bulk",
});

wire_enum!(PacketPriority { UltraHigh = 0, High = 1, Medium = 2, Low = 3, Bulk = 4 });
