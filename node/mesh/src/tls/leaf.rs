//! The certificate that this peer shows: made here, renewed while the endpoint runs.
//!
//! The key of a leaf is drawn anew for each leaf and never leaves memory; the peer's own key signs it once (libp2p's TLS specification),
//! so a renewal needs no new identity.

use std::sync::{Arc, RwLock};

use hyperfabric_protocol::SigningKey;
use hyperfabric_protocol::cert::MEMBERSHIP_BYTES_MAX;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::asn1_rs::{FromDer, OctetString};
use x509_parser::prelude::X509Certificate;

use super::Refusal;
use crate::sync::{read, write};

/// libp2p's identity extension, `SEQUENCE { publicKey OCTET STRING, signature OCTET STRING }`. [TLS-3]
const IDENTITY_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 53594, 1, 1];

/// The membership extension: an OCTET STRING with the encoded membership; never critical, so that plain libp2p peers ignore it.
///
/// The arc is that of RFC 5612's enterprise number for documentation, which is never assigned to anyone: nothing else can claim this name.
pub const MEMBERSHIP_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 32473, 7288, 1];

const SIGNING_PREFIX: &[u8] = b"libp2p-tls-handshake:";

/// Why no leaf could be made.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The membership is larger than the protocol allows.
    #[error("membership of {bytes} bytes exceeds {MEMBERSHIP_BYTES_MAX}")]
    MembershipTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The certificate could not be generated.
    #[error("cannot generate a certificate")]
    Generate(#[source] rcgen::Error),
    /// The generated key does not suit the TLS library.
    #[error("cannot use the generated key")]
    Key(#[source] rustls::Error),
}

/// A leaf certificate with its key.
#[derive(Debug)]
pub struct Leaf {
    certified: Arc<CertifiedKey>,
}

impl Leaf {
    /// Makes a leaf for the identity `key` that shows `membership`, the encoded certificate of a mesh, if there is one.
    ///
    /// # Errors
    /// See [`LeafError`].
    pub fn generate(key: &SigningKey, membership: Option<&[u8]>) -> Result<Self, LeafError> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(LeafError::Generate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.custom_extensions.push(identity_extension(key, &pair));
        if let Some(membership) = membership {
            if membership.len() > MEMBERSHIP_BYTES_MAX {
                return Err(LeafError::MembershipTooLarge {
                    bytes: membership.len(),
                });
            }
            params.custom_extensions.push(CustomExtension::from_oid_content(
                &MEMBERSHIP_OID,
                der(DER_OCTET_STRING, membership),
            ));
        }
        let certificate = params.self_signed(&pair).map_err(LeafError::Generate)?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&private).map_err(LeafError::Key)?;
        Ok(Self {
            certified: Arc::new(CertifiedKey::new(vec![certificate.into()], signer)),
        })
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

/// The leaf in use; shared by all handshakes of an endpoint and replaced when the membership is obtained or renewed.
#[derive(Clone, Debug)]
pub struct LeafCell(Arc<RwLock<Arc<Leaf>>>);

impl LeafCell {
    /// Starts with `leaf`.
    #[must_use]
    pub fn new(leaf: Leaf) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(leaf))))
    }

    /// Shows `leaf` from the next handshake on; connections that exist keep what they were made with.
    pub fn swap(&self, leaf: Leaf) {
        *write(&self.0) = Arc::new(leaf);
    }

    /// The leaf in use.
    #[must_use]
    pub fn current(&self) -> Arc<Leaf> {
        Arc::clone(&read(&self.0))
    }
}

fn identity_extension(key: &SigningKey, pair: &KeyPair) -> CustomExtension {
    use rcgen::PublicKeyData;

    let keypair = libp2p::identity::Keypair::ed25519_from_bytes(*key.to_bytes())
        .expect("every 32 bytes are an ed25519 secret");
    let message = [SIGNING_PREFIX, &pair.subject_public_key_info()].concat();
    let signature = keypair.sign(&message).expect("ed25519 signing cannot fail");
    let public = der(DER_OCTET_STRING, &keypair.public().encode_protobuf());
    let content = [public, der(DER_OCTET_STRING, &signature)].concat();
    let mut extension = CustomExtension::from_oid_content(&IDENTITY_OID, der(DER_SEQUENCE, &content));
    extension.set_criticality(true);
    extension
}

const DER_OCTET_STRING: u8 = 0x04;
const DER_SEQUENCE: u8 = 0x30;

/// Encodes one DER value of at most 65,535 bytes (X.690, section 8.1.3).
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        len @ 0..0x80 => out.push(len as u8),
        len @ 0x80..0x100 => out.extend([0x81, len as u8]),
        len => {
            out.push(0x82);
            out.extend((len as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(content);
    out
}

/// Takes the membership out of a leaf; none when it has no such extension. [TLS-4]
pub(super) fn membership_of(leaf: &CertificateDer<'_>) -> Result<Option<Arc<[u8]>>, Refusal> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| Refusal::Malformed)?;
    let mut found = None;
    for extension in certificate.extensions() {
        let is_ours = extension.oid.iter().is_some_and(|arcs| arcs.eq(MEMBERSHIP_OID));
        if !is_ours {
            continue;
        }
        let (rest, octets) = OctetString::from_der(extension.value).map_err(|_| Refusal::Malformed)?;
        let bytes = octets.as_ref();
        if !rest.is_empty() || bytes.len() > MEMBERSHIP_BYTES_MAX || found.is_some() {
            return Err(Refusal::Malformed);
        }
        found = Some(Arc::from(bytes));
    }
    Ok(found)
}
