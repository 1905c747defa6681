//! Signatures: ed25519 over a domain tag and the exact bytes that travel.
//!
//! A [`Signed`] object is kept as the bytes that were signed, is verified before it is parsed and is never
//! encoded again; so two encoders can never disagree about what was signed. The domain tag keeps a signature
//! made for one purpose from being used for another. [SIGN-1..4]

use alloc::sync::Arc;
use alloc::vec::Vec;

use ed25519_dalek::Signer;

use crate::PeerId;
use crate::cbor::{DecodeError, Decoder, Encoder, Value};

/// The bytes before the body: the signer's public key and the signature. [SIGN-1]
pub const SIGNED_HEADER_BYTES: usize = 32 + 64;
/// The largest signed object, in bytes.
pub const SIGNED_BYTES_MAX: usize = 16 * 1024;

/// What a signature is for; part of what is signed. [SIGN-2]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// An authority lets a peer admit others.
    Delegation,
    /// An admitter makes a peer a member.
    Certificate,
    /// A peer publishes something that is flooded.
    Item,
}

impl Domain {
    const fn tag(self) -> &'static [u8] {
        match self {
            Self::Delegation => b"hyperfabric/delegation/1\0",
            Self::Certificate => b"hyperfabric/certificate/1\0",
            Self::Item => b"hyperfabric/item/1\0",
        }
    }
}

/// The signature is wrong, or the key is not a valid one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match")]
pub struct BadSignature;

/// A private ed25519 key. Wiped from memory when dropped; never shown.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl core::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SigningKey({:?})", self.peer_id())
    }
}

impl SigningKey {
    /// Makes the key from its 32 secret bytes.
    #[must_use]
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(secret))
    }

    /// Returns the secret bytes, for the file that keeps them.
    #[must_use]
    pub fn to_bytes(&self) -> zeroize::Zeroizing<[u8; 32]> {
        zeroize::Zeroizing::new(self.0.to_bytes())
    }

    /// Returns the public half.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        PeerId(self.0.verifying_key().to_bytes())
    }

    /// Signs `body` for `domain`.
    #[must_use]
    pub fn sign(&self, domain: Domain, body: &[u8]) -> Signed {
        let signature = self.0.sign(&message(domain, body));
        let mut bytes = Vec::with_capacity(SIGNED_HEADER_BYTES + body.len());
        bytes.extend_from_slice(self.peer_id().as_bytes());
        bytes.extend_from_slice(&signature.to_bytes());
        bytes.extend_from_slice(body);
        Signed(bytes.into())
    }
}

fn message(domain: Domain, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(domain.tag().len() + body.len());
    message.extend_from_slice(domain.tag());
    message.extend_from_slice(body);
    message
}

/// A signed object: signer's key, signature, body, in one shared buffer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Signed(Arc<[u8]>);

impl core::fmt::Debug for Signed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "Signed(by {:?}, {} bytes)",
            self.claimed_signer(),
            self.0.len()
        )
    }
}

impl Signed {
    /// Takes bytes from a peer or a file, unverified.
    ///
    /// # Errors
    /// [`DecodeError`] when they are too short or too long to be a signed object.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Result<Self, DecodeError> {
        let bytes = bytes.into();
        if bytes.len() < SIGNED_HEADER_BYTES {
            return Err(DecodeError::Invalid("signed object"));
        }
        if bytes.len() > SIGNED_BYTES_MAX {
            return Err(DecodeError::TooLong(SIGNED_BYTES_MAX));
        }
        Ok(Self(bytes))
    }

    /// Returns the bytes as they travel. [SIGN-4]
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns who the object says has signed it; true only once [`Self::verify`] has succeeded.
    #[must_use]
    pub fn claimed_signer(&self) -> PeerId {
        let mut key = [0; 32];
        key.copy_from_slice(&self.0[..32]);
        PeerId(key)
    }

    /// Checks the signature and returns the body. [SIGN-3]
    ///
    /// # Errors
    /// [`BadSignature`], also for weak keys and malleable signatures.
    pub fn verify(&self, domain: Domain) -> Result<&[u8], BadSignature> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(self.claimed_signer().as_bytes())
            .map_err(|_| BadSignature)?;
        let signature = ed25519_dalek::Signature::from_slice(&self.0[32..96]).map_err(|_| BadSignature)?;
        let body = self.unverified_body();
        key.verify_strict(&message(domain, body), &signature)
            .map_err(|_| BadSignature)?;
        Ok(body)
    }

    /// Returns the body without checking the signature: for objects whose verification is known to have
    /// succeeded, and for looking up whether verifying is worth the cost.
    #[must_use]
    pub fn unverified_body(&self) -> &[u8] {
        &self.0[SIGNED_HEADER_BYTES..]
    }
}

impl Value for Signed {
    fn encode(&self, e: &mut Encoder) {
        e.bytes(&self.0);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Self::from_bytes(d.bytes(SIGNED_BYTES_MAX)?)
    }
}
