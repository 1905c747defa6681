//! Membership: who may take part in a mesh, under which name, and until when.
//!
//! An authority key (which may stay offline) delegates to admitters; an admitter certifies members. A peer shows
//! its [`Membership`], the certificate with the delegation that backs it, in every handshake and in its directory
//! record. In an open mesh everyone certifies themselves, and the name proves nothing. [CERT-1..8]
//!
//! Revocation is not checked here: it is a fact that arrives later ([`crate::admission`]).

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::cbor::{self, DecodeError, Text, wire_map};
use crate::sign::{BadSignature, Domain, SIGNED_BYTES_MAX, Signed, SigningKey};
use crate::{MeshId, NodeId, PeerId, Serial, UnixMillis};

/// How far clocks may differ before a validity period is held against a peer.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// How long a certificate is valid when nothing else is asked for: long enough to survive a holiday, short enough
/// that a revocation need not be remembered for ever.
pub const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a delegation is valid when nothing else is asked for.
pub const DELEGATION_VALIDITY: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// A member renews when less than this is left.
pub const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// The longest mesh name, in bytes.
pub const MESH_NAME_BYTES_MAX: usize = 64;
/// The largest encoded membership, in bytes.
pub const MEMBERSHIP_BYTES_MAX: usize = 2048;

/// Why a membership is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The peer shows none.
    #[error("shows no membership certificate")]
    NotAMember,
    /// It belongs to another mesh.
    #[error("is a member of another mesh")]
    OtherMesh,
    /// It has run out.
    #[error("certificate has expired")]
    Expired,
    /// It is not valid yet.
    #[error("certificate is not valid yet (check the clocks)")]
    NotYetValid,
    /// A signature in it is wrong, or it does not fit together.
    #[error("certificate is forged")]
    Forged,
    /// It was made for another key.
    #[error("certificate belongs to another peer")]
    WrongPeer,
    /// It, or the delegation behind it, was revoked.
    #[error("certificate was revoked")]
    Revoked,
    /// It cannot be decoded.
    #[error("certificate cannot be read: {0}")]
    Malformed(#[from] DecodeError),
}

impl From<BadSignature> for CertificateError {
    fn from(_: BadSignature) -> Self {
        Self::Forged
    }
}

wire_map! {
    /// What an authority signs: that `admitter` may certify members. [CERT-2]
    pub struct Delegation {
        /// The mesh.
        0 => pub mesh: MeshId,
        /// Who may admit.
        1 => pub admitter: PeerId,
        /// Start of validity.
        2 => pub not_before: UnixMillis,
        /// End of validity.
        3 => pub not_after: UnixMillis,
        /// The mesh's name, for people.
        4 => pub mesh_name: Text<MESH_NAME_BYTES_MAX>,
    }
}

wire_map! {
    /// What an admitter signs: that `peer` is a member called `name`. [CERT-3]
    pub struct Certificate {
        /// The mesh.
        0 => pub mesh: MeshId,
        /// The member.
        1 => pub peer: PeerId,
        /// The member's `node_id`s are this name or lie below it.
        2 => pub name: NodeId,
        /// Identifies the certificate; of two for one name the lower wins.
        3 => pub serial: Serial,
        /// Start of validity.
        4 => pub not_before: UnixMillis,
        /// End of validity.
        5 => pub not_after: UnixMillis,
    }
}

wire_map! {
    /// A certificate with the delegation that backs it; the form in which it is shown and stored. [CERT-4]
    pub struct Membership {
        /// Signed [`Certificate`].
        0 => pub certificate: Signed,
        /// Signed [`Delegation`]; absent when the authority itself, or in an open mesh the peer itself, signed.
        1 => pub delegation: Option<Signed>,
    }
}

/// What makes a mesh this mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", tag = "kind"))]
pub enum MeshRoot {
    /// Members are certified under this authority.
    Closed {
        /// The authority's public key.
        authority: PeerId,
        /// The mesh's name, for people.
        name: String,
    },
    /// Whoever knows the name is a member.
    Open {
        /// The name.
        name: String,
    },
}

impl MeshRoot {
    /// Returns the mesh's id. [CERT-1]
    #[must_use]
    pub fn id(&self) -> MeshId {
        MeshId(match self {
            Self::Closed { authority, .. } => {
                blake3::derive_key("hyperfabric mesh authority v1", authority.as_bytes())
            }
            Self::Open { name } => blake3::derive_key("hyperfabric open mesh v1", name.as_bytes()),
        })
    }

    /// Returns the mesh's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Closed { name, .. } | Self::Open { name } => name,
        }
    }

    /// Tells whether anyone who knows the name may take part.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }
}

/// A membership that has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The member.
    pub peer: PeerId,
    /// The name it was granted.
    pub name: NodeId,
    /// Its certificate's serial.
    pub serial: Serial,
    /// When its membership ends: the earliest end in the chain.
    pub not_after: UnixMillis,
    /// Who signed the certificate.
    pub admitter: PeerId,
}

impl Delegation {
    /// Makes and signs a delegation valid from `now` on.
    #[must_use]
    pub fn issue(
        authority: &SigningKey,
        mesh_name: &str,
        admitter: PeerId,
        now: UnixMillis,
        valid: Duration,
    ) -> Signed {
        let root = MeshRoot::Closed {
            authority: authority.peer_id(),
            name: String::new(),
        };
        let body = Self {
            mesh: root.id(),
            admitter,
            not_before: now,
            not_after: now.after(valid),
            mesh_name: Text::truncating(mesh_name),
        };
        authority.sign(Domain::Delegation, &cbor::to_bytes(&body))
    }
}

impl Certificate {
    /// Signs the certificate. `signer` must be the authority, an admitter, or in an open mesh the peer itself.
    #[must_use]
    pub fn sign(&self, signer: &SigningKey) -> Signed {
        signer.sign(Domain::Certificate, &cbor::to_bytes(self))
    }
}

impl Membership {
    /// Makes the membership that a peer of an open mesh gives itself.
    #[must_use]
    pub fn open(root: &MeshRoot, key: &SigningKey, name: NodeId, now: UnixMillis) -> Self {
        let certificate = Certificate {
            mesh: root.id(),
            peer: key.peer_id(),
            name,
            serial: Serial([0; 16]),
            not_before: now.before(CLOCK_SKEW_MAX),
            not_after: now.after(CERTIFICATE_VALIDITY),
        };
        Self {
            certificate: certificate.sign(key),
            delegation: None,
        }
    }

    /// Returns the encoded form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::to_bytes(self)
    }

    /// Verifies an encoded membership shown by `peer`: signatures, chain, mesh and validity at `now`.
    ///
    /// # Errors
    /// [`CertificateError`] says why it is refused.
    pub fn verify(
        bytes: &[u8],
        root: &MeshRoot,
        peer: &PeerId,
        now: UnixMillis,
    ) -> Result<Member, CertificateError> {
        if bytes.len() > MEMBERSHIP_BYTES_MAX {
            return Err(DecodeError::TooLong(MEMBERSHIP_BYTES_MAX).into());
        }
        let this: Self = cbor::from_bytes(bytes)?;
        this.verify_chain(root, peer, now)
    }

    // [CERT-5] [CERT-6]
    fn verify_chain(
        &self,
        root: &MeshRoot,
        peer: &PeerId,
        now: UnixMillis,
    ) -> Result<Member, CertificateError> {
        let certificate: Certificate = cbor::from_bytes(self.certificate.verify(Domain::Certificate)?)?;
        // The mesh first: a member of another mesh should hear that, not that its signatures are unknown.
        if certificate.mesh != root.id() {
            return Err(CertificateError::OtherMesh);
        }
        if certificate.peer != *peer {
            return Err(CertificateError::WrongPeer);
        }
        let signer = self.certificate.claimed_signer();
        let mut not_after = certificate.not_after;
        match (root, &self.delegation) {
            (MeshRoot::Open { .. }, None) if signer == *peer => {}
            (MeshRoot::Closed { authority, .. }, None) if signer == *authority => {}
            (MeshRoot::Closed { authority, .. }, Some(delegation))
                if delegation.claimed_signer() == *authority =>
            {
                let delegation: Delegation = cbor::from_bytes(delegation.verify(Domain::Delegation)?)?;
                if delegation.mesh != certificate.mesh || delegation.admitter != signer {
                    return Err(CertificateError::Forged);
                }
                check_validity(delegation.not_before, delegation.not_after, now)?;
                not_after = not_after.min(delegation.not_after);
            }
            (MeshRoot::Open { .. } | MeshRoot::Closed { .. }, None | Some(_)) => {
                return Err(CertificateError::Forged);
            }
        }
        check_validity(certificate.not_before, certificate.not_after, now)?;
        Ok(Member {
            peer: *peer,
            name: certificate.name,
            serial: certificate.serial,
            not_after,
            admitter: signer,
        })
    }
}

// [CERT-7]
fn check_validity(
    not_before: UnixMillis,
    not_after: UnixMillis,
    now: UnixMillis,
) -> Result<(), CertificateError> {
    if now.after(CLOCK_SKEW_MAX) < not_before {
        Err(CertificateError::NotYetValid)
    } else if now.before(CLOCK_SKEW_MAX) > not_after {
        Err(CertificateError::Expired)
    } else {
        Ok(())
    }
}

/// The right to admit members: a key and, unless it is the authority's own, the delegation behind it.
#[derive(Clone, Debug)]
pub struct Admitter {
    /// The key that signs certificates.
    pub key: SigningKey,
    /// The signed [`Delegation`] for that key.
    pub delegation: Option<Signed>,
}

impl Admitter {
    /// Certifies `peer` under `name` for `valid` from `now` on.
    #[must_use]
    pub fn admit(
        &self,
        root: &MeshRoot,
        peer: PeerId,
        name: NodeId,
        serial: Serial,
        now: UnixMillis,
        valid: Duration,
    ) -> Membership {
        let certificate = Certificate {
            mesh: root.id(),
            peer,
            name,
            serial,
            not_before: now.before(CLOCK_SKEW_MAX),
            not_after: now.after(valid),
        };
        Membership {
            certificate: certificate.sign(&self.key),
            delegation: self.delegation.clone(),
        }
    }
}

const _: () = assert!(MEMBERSHIP_BYTES_MAX < SIGNED_BYTES_MAX);

#[cfg(test)]
mod tests;
