//! Names of things: peers, meshes, nodes, transfers, connections, certificates and addresses.
//!
//! Each is a newtype that can only hold a valid value; what comes from a peer or a user is parsed into one.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::cbor::{DecodeError, Decoder, Encoder, Value};

/// The multihash prefix of an ed25519 public key in libp2p: identity hash, 36 bytes, protobuf key header.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// Why a text is not an id of the asked kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is not a base58 libp2p id of an ed25519 key.
    #[error("not a peer id: expected the base58 form of an ed25519 key, like 12D3KooW…")]
    PeerId,
    /// The text is not hexadecimal of the right length.
    #[error("not an id: expected {0} hexadecimal digits")]
    Hex(usize),
    /// The text is not a node id.
    #[error(
        "not a node id: expected 1 to {NODE_ID_BYTES_MAX} characters of A-Z a-z 0-9 . _ - in segments separated by /, no segment starting with a dot"
    )]
    NodeId,
    /// The text is empty, too long or has characters that no address has.
    #[error("not an address: expected up to {ADDRESS_BYTES_MAX} printable characters")]
    Address,
}

/// Who a peer is: its ed25519 public key.
///
/// Shown and parsed as libp2p's base58 peer id, so that the same peer has the same name in both worlds. The
/// order is that of the key's bytes, which is also the order of libp2p's bytes. [TYPE-1]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

impl PeerId {
    /// Returns the public key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first 32 bits: evenly spread, and in the order of the ids.
    #[must_use]
    pub const fn lead(&self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// Returns libp2p's binary form: the identity multihash of the protobuf-encoded key.
    #[must_use]
    pub fn to_multihash(self) -> [u8; 38] {
        let mut out = [0; 38];
        out[..6].copy_from_slice(&PEER_ID_PREFIX);
        out[6..].copy_from_slice(&self.0);
        out
    }

    /// Reads libp2p's binary form.
    ///
    /// # Errors
    /// [`IdError::PeerId`] when it is not the identity multihash of an ed25519 key.
    pub fn from_multihash(bytes: &[u8]) -> Result<Self, IdError> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX).ok_or(IdError::PeerId)?;
        Ok(Self(key.try_into().map_err(|_| IdError::PeerId)?))
    }

    /// Returns the last six characters, enough to tell peers apart in a log line.
    #[must_use]
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len() - 6..].to_string()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId(…{})", self.short())
    }
}

impl FromStr for PeerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() > 64 {
            return Err(IdError::PeerId);
        }
        let bytes: Vec<u8> = bs58::decode(text).into_vec().map_err(|_| IdError::PeerId)?;
        Self::from_multihash(&bytes)
    }
}

/// Declares a fixed-size id that is shown as lower-case hexadecimal.
macro_rules! hex_id {
    ($(#[$meta:meta])* $name:ident, $len:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Returns the bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), data_encoding::HEXLOWER.encode(&self.0[..4]))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let bytes = data_encoding::HEXLOWER_PERMISSIVE
                    .decode(text.as_bytes())
                    .map_err(|_| IdError::Hex($len * 2))?;
                Ok(Self(bytes.try_into().map_err(|_| IdError::Hex($len * 2))?))
            }
        }

        impl Value for $name {
            fn encode(&self, e: &mut Encoder) {
                e.bytes(&self.0);
            }
            fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                d.fixed_bytes().map(Self)
            }
        }

        serde_text!($name);
    };
}

/// Gives a type its text form in serde formats.
macro_rules! serde_text {
    ($name:ident) => {
        #[cfg(feature = "serde")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

impl Value for PeerId {
    fn encode(&self, e: &mut Encoder) {
        e.bytes(&self.0);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.fixed_bytes().map(Self)
    }
}

serde_text!(PeerId);

hex_id!(
    /// Which mesh: a digest of its authority's key, or of an open mesh's name ([`crate::cert::MeshRoot::id`]).
    MeshId,
    32
);
hex_id!(
    /// Which transfer; drawn at random by its sender.
    TransferId,
    16
);
hex_id!(
    /// Which certificate. The first 6 bytes are its issue time in milliseconds, the rest is random, so that of
    /// two certificates for one name the lower serial is the earlier one. [TYPE-2]
    Serial,
    16
);

impl Serial {
    /// Makes a serial from an issue time and ten random bytes.
    #[must_use]
    pub fn new(issued: crate::UnixMillis, random: [u8; 10]) -> Self {
        let mut out = [0; 16];
        out[..6].copy_from_slice(&issued.0.to_be_bytes()[2..]);
        out[6..].copy_from_slice(&random);
        Self(out)
    }
}

/// The longest node id, in bytes.
pub const NODE_ID_BYTES_MAX: usize = 128;
/// The longest segment of a node id, in bytes: a file name made of one stays a legal file name.
pub const NODE_ID_SEGMENT_BYTES_MAX: usize = 63;

/// The name of a node: `name`, or `name/gpu0` for a device below it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Parses a node id. [TYPE-3]
    ///
    /// # Errors
    /// [`IdError::NodeId`] says what is allowed.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        let segment_ok = |s: &str| {
            !s.is_empty()
                && s.len() <= NODE_ID_SEGMENT_BYTES_MAX
                && !s.starts_with('.')
                && s.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if text.len() <= NODE_ID_BYTES_MAX && text.split('/').all(segment_ok) {
            Ok(Self(text.into()))
        } else {
            Err(IdError::NodeId)
        }
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether this id is `grant` or lies below it.
    #[must_use]
    pub fn is_within(&self, grant: &Self) -> bool {
        self.0
            .strip_prefix(&*grant.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.0)
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl Value for NodeId {
    fn encode(&self, e: &mut Encoder) {
        e.text(&self.0);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Self::new(d.text(NODE_ID_BYTES_MAX)?).map_err(|_| DecodeError::Invalid("node id"))
    }
}

serde_text!(NodeId);

/// The longest address text, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 128;

/// Where a peer can be dialled: a multiaddr in text form, such as `/ip4/192.0.2.1/udp/4001/quic-v1`.
///
/// The machines only carry addresses about; what they mean is up to the mesh crate.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

impl Address {
    /// Accepts an address text. [TYPE-4]
    ///
    /// # Errors
    /// [`IdError::Address`] when it is empty, too long or not printable ASCII.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        let ok =
            !text.is_empty() && text.len() <= ADDRESS_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
        if ok { Ok(Self(text)) } else { Err(IdError::Address) }
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Address {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl Value for Address {
    fn encode(&self, e: &mut Encoder) {
        e.text(&self.0);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Self::new(d.text(ADDRESS_BYTES_MAX)?).map_err(|_| DecodeError::Invalid("address"))
    }
}

serde_text!(Address);

/// Which connection; numbered by whoever drives the machine, never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);
