//! Who may connect: the TLS 1.3 configuration of every connection, with identity and membership checked inside the handshake.
//!
//! A peer shows one self-signed leaf. It carries libp2p's identity extension, which proves the ed25519 key behind the [`PeerId`], and in
//! a mesh the membership certificate as a second extension. Both sides check both before any byte of an application flows; what a
//! membership means is decided by the [`Gate`], which this module only calls. A refusal travels as a TLS alert with a reason phrase, so
//! that both ends can say why ([`Refusal`]).
//!
//! Authentication is ed25519 and ECDSA, which is not post-quantum; the key exchange prefers X25519MLKEM768. Session resumption is off:
//! all peers share one server name, and a resumed session would skip the gate.
//!
//! [`PeerId`]: hyperfabric_protocol::PeerId

mod leaf;
mod refusal;
mod session;
mod verifier;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};

pub use leaf::{Leaf, LeafCell, LeafError, MEMBERSHIP_OID};
pub use refusal::Refusal;
pub(crate) use refusal::Refusals;
pub(crate) use session::{ClientCrypto, Handshake, ServerCrypto};
pub use verifier::Gate;
pub(crate) use verifier::{Admitted, SessionCell};

/// The name that diallers give; peers are told apart by key, so it is the same for all and never sent (no SNI).
pub(crate) const SERVER_NAME: &str = "l";

/// What a connection is for; negotiated by ALPN. [QUIC-1]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Control, link state, messages, requests and libp2p; one per pair of connected peers.
    Prompt,
    /// The bytes of transfers, dialled by the side that sends them.
    Bulk,
    /// A ticket in exchange for a certificate; needs no membership.
    Join,
}

impl Purpose {
    /// All purposes, in the order in which the accepting side prefers them.
    pub const ALL: [Self; 3] = [Self::Prompt, Self::Bulk, Self::Join];

    /// The protocol name in the handshake.
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Prompt => b"hyperfabric/1",
            Self::Bulk => b"hyperfabric-bulk/1",
            Self::Join => b"hyperfabric-join/1",
        }
    }

    fn from_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.alpn() == name)
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Prompt => "prompt",
            Self::Bulk => "bulk",
            Self::Join => "join",
        })
    }
}

/// [TLS-2] AES first: three times as fast as ChaCha20 where the CPU has it. AES-128 must stay, QUIC's Initial packets need it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        // Named here because other crates of the build switch rustls features that change its defaults.
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
}
