//! Why a handshake was refused, and how the refused side learns it.
//!
//! A TLS alert says roughly why; alerts are too few for all reasons, so the CONNECTION_CLOSE frame's reason phrase names it exactly. Both
//! are readable by the refused peer only. A peer that does not know the phrases still has the alert.

use std::sync::atomic::{AtomicU64, Ordering};

use hyperfabric_protocol::cert::CertificateError as MembershipError;
use rustls::CertificateError;

/// Precedes the word of the reason in a close frame's reason phrase. [TLS-6]
const PHRASE_PREFIX: &str = "hyperfabric refused: ";

/// TLS alerts occupy this range of QUIC's transport error codes (RFC 9001, section 4.8).
const CRYPTO_ERRORS: std::ops::Range<u64> = 0x100..0x200;

/// Why a peer is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// It shows no membership.
    #[error("shows no membership certificate of this mesh")]
    NotAMember,
    /// It belongs to another mesh.
    #[error("is a member of another mesh")]
    OtherMesh,
    /// Its membership has run out.
    #[error("shows a membership certificate that has expired")]
    Expired,
    /// Its membership begins later than now.
    #[error("shows a membership certificate that is not valid yet (check the clocks)")]
    NotYetValid,
    /// A signature in its leaf or its membership is wrong.
    #[error("shows a forged certificate")]
    Forged,
    /// Its membership was revoked.
    #[error("shows a membership certificate that was revoked")]
    Revoked,
    /// It is not the peer that was dialled, or the membership is not its own.
    #[error("is another peer than expected")]
    WrongPeer,
    /// This peer does not talk to it.
    #[error("is banned here")]
    Banned,
    /// Its leaf or membership cannot be decoded, or its key is not ed25519.
    #[error("shows a certificate that cannot be read")]
    Malformed,
}

impl Refusal {
    pub(super) const ALL: [Self; 9] = [
        Self::NotAMember,
        Self::OtherMesh,
        Self::Expired,
        Self::NotYetValid,
        Self::Forged,
        Self::Revoked,
        Self::WrongPeer,
        Self::Banned,
        Self::Malformed,
    ];

    /// A stable word for the reason, as in close frames, logs and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotAMember => "not-a-member",
            Self::OtherMesh => "other-mesh",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Forged => "forged",
            Self::Revoked => "revoked",
            Self::WrongPeer => "wrong-peer",
            Self::Banned => "banned",
            Self::Malformed => "malformed",
        }
    }

    /// The rustls error whose alert comes closest.
    pub(super) fn as_certificate_error(self) -> CertificateError {
        match self {
            Self::NotAMember => CertificateError::UnknownIssuer,
            Self::OtherMesh => CertificateError::InvalidPurpose,
            Self::Expired => CertificateError::Expired,
            Self::NotYetValid => CertificateError::NotValidYet,
            Self::Forged => CertificateError::BadSignature,
            Self::Revoked => CertificateError::Revoked,
            Self::WrongPeer => CertificateError::NotValidForName,
            Self::Banned => CertificateError::ApplicationVerificationFailure,
            Self::Malformed => CertificateError::BadEncoding,
        }
    }

    pub(super) fn phrase(self) -> String {
        format!("{PHRASE_PREFIX}{}", self.word())
    }

    /// Reads what a peer said when it closed during the handshake; none when the close was no refusal.
    pub(crate) fn from_close(code: u64, phrase: &[u8]) -> Option<Self> {
        if !CRYPTO_ERRORS.contains(&code) {
            return None;
        }
        let named = phrase
            .strip_prefix(PHRASE_PREFIX.as_bytes())
            .and_then(|word| Self::ALL.into_iter().find(|it| it.word().as_bytes() == word));
        named.or(match code - CRYPTO_ERRORS.start {
            42 => Some(Self::Malformed),
            43 => Some(Self::OtherMesh),
            44 => Some(Self::Revoked),
            45 => Some(Self::Expired),
            48 | 116 => Some(Self::NotAMember),
            49 => Some(Self::Banned),
            51 => Some(Self::Forged),
            _ => None,
        })
    }
}

/// How often this side has refused somebody, by reason; counted from zero.
#[derive(Debug, Default)]
pub(crate) struct Refusals([AtomicU64; Refusal::ALL.len()]);

impl Refusals {
    pub(crate) fn count(&self, reason: Refusal) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> Vec<(Refusal, u64)> {
        Refusal::ALL
            .into_iter()
            .map(|reason| (reason, self.0[reason as usize].load(Ordering::Relaxed)))
            .collect()
    }
}

impl From<MembershipError> for Refusal {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::NotAMember => Self::NotAMember,
            MembershipError::OtherMesh => Self::OtherMesh,
            MembershipError::Expired => Self::Expired,
            MembershipError::NotYetValid => Self::NotYetValid,
            MembershipError::Forged => Self::Forged,
            MembershipError::WrongPeer => Self::WrongPeer,
            MembershipError::Revoked => Self::Revoked,
            MembershipError::Malformed(_) => Self::Malformed,
        }
    }
}
