//! Makes a restarted peer recognisable: its endpoint answers packets of forgotten connections with a stateless reset (RFC 9000, section
//! 10.3), which the other side notices within a round trip instead of an idle timeout.
//!
//! For that, the reset tokens and the shape of connection ids must be the same after the restart, so both follow from the identity.
//! [QUIC-13]

use std::sync::Arc;

use hyperfabric_protocol::SigningKey;
use quinn_proto::crypto::{CryptoError, HmacKey};
use quinn_proto::{ConnectionIdGenerator, HashedConnectionIdGenerator};

/// blake3 as a keyed hash. Own, because whose HMAC the QUIC stack has an implementation for depends on the features of the whole build.
pub(super) struct ResetKey([u8; 32]);

impl ResetKey {
    pub(super) fn derive(identity: &SigningKey) -> Arc<Self> {
        Arc::new(Self(derive("hyperfabric/1 stateless reset key", identity)))
    }
}

fn derive(context: &str, identity: &SigningKey) -> [u8; 32] {
    blake3::derive_key(context, &*identity.to_bytes())
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let hash = blake3::keyed_hash(&self.0, data);
        signature_out.copy_from_slice(&hash.as_bytes()[..signature_out.len()]);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let hash = blake3::keyed_hash(&self.0, data);
        // blake3 compares hashes in constant time.
        match <[u8; blake3::OUT_LEN]>::try_from(signature) {
            Ok(signature) if hash == signature => Ok(()),
            _ => Err(CryptoError),
        }
    }
}

/// Makes generators of connection ids that a restarted endpoint recognises as its own.
pub(super) fn connection_ids(
    identity: &SigningKey,
) -> impl Fn() -> Box<dyn ConnectionIdGenerator> + Send + Sync + 'static {
    let derived = derive("hyperfabric/1 connection id key", identity);
    let (word, _) = derived.split_first_chunk().expect("32 bytes hold 8");
    let key = u64::from_be_bytes(*word);
    move || Box::new(HashedConnectionIdGenerator::from_key(key))
}
