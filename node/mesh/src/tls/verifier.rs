//! Checks the other side's leaf inside the handshake, as dialler and as acceptor.

use std::fmt;
use std::sync::{Arc, Mutex};

use hyperfabric_protocol::PeerId;
use libp2p_tls::certificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme,
};

use super::leaf::membership_of;
use super::{Purpose, Refusal};
use crate::sync::lock;

/// A leaf with the largest membership stays below 3 KiB.
const LEAF_BYTES_MAX: usize = 8 * 1024;

/// Decides who may connect. Called inside every handshake, on both sides, on the network thread: it must not block.
pub trait Gate: Send + Sync {
    /// Admits `peer`, whose key is proven, or says why not. `membership` is what its leaf carries, unchecked; it must be verified against
    /// `peer`. For [`Purpose::Join`] none is needed.
    ///
    /// # Errors
    /// The reason, which is logged here and told to the peer.
    fn admit(&self, peer: &PeerId, membership: Option<&[u8]>, purpose: Purpose) -> Result<(), Refusal>;
}

/// A peer that passed the gate.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(crate) peer: PeerId,
    pub(crate) membership: Option<Arc<[u8]>>,
    pub(crate) purpose: Purpose,
}

#[derive(Debug, Default)]
struct SessionState {
    purpose: Option<Purpose>,
    claimed: Option<PeerId>,
    outcome: Option<Result<Admitted, Refusal>>,
}

/// What one handshake has found out. It exists because the parts of a TLS session do not see each other: the certificate resolver knows
/// the protocol, the verifier the peer, and the QUIC stack reports neither when the handshake fails.
#[derive(Debug, Default)]
pub(crate) struct SessionCell(Mutex<SessionState>);

impl SessionCell {
    pub(super) fn for_purpose(purpose: Purpose) -> Arc<Self> {
        let cell = Self::default();
        cell.set_purpose(purpose);
        Arc::new(cell)
    }

    pub(super) fn set_purpose(&self, purpose: Purpose) {
        lock(&self.0).purpose = Some(purpose);
    }

    pub(crate) fn purpose(&self) -> Option<Purpose> {
        lock(&self.0).purpose
    }

    /// Who the other side is, also when it was refused; none before its key was proven.
    pub(crate) fn claimed(&self) -> Option<PeerId> {
        lock(&self.0).claimed
    }

    pub(crate) fn refusal(&self) -> Option<Refusal> {
        lock(&self.0).outcome.as_ref()?.as_ref().err().copied()
    }

    pub(crate) fn admitted(&self) -> Option<Admitted> {
        lock(&self.0).outcome.as_ref()?.as_ref().ok().cloned()
    }
}

/// The verifier of one session.
pub(super) struct Verifier {
    gate: Arc<dyn Gate>,
    cell: Arc<SessionCell>,
    /// The peer that was dialled; none on the accepting side.
    expected: Option<PeerId>,
}

impl Verifier {
    pub(super) fn new(gate: Arc<dyn Gate>, cell: Arc<SessionCell>, expected: Option<PeerId>) -> Arc<Self> {
        Arc::new(Self { gate, cell, expected })
    }

    fn verify(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        let Some(purpose) = self.cell.purpose() else {
            // rustls has chosen no protocol of ours, so the session ends here anyway.
            return Err(Error::NoApplicationProtocol);
        };
        let outcome = self.judge(leaf, others, purpose);
        let result = match &outcome {
            Ok(_) => Ok(()),
            Err(refusal) => Err(Error::InvalidCertificate(refusal.as_certificate_error())),
        };
        lock(&self.cell.0).outcome = Some(outcome);
        result
    }

    // [TLS-5]
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        purpose: Purpose,
    ) -> Result<Admitted, Refusal> {
        if !others.is_empty() || leaf.len() > LEAF_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let parsed = certificate::parse(leaf).map_err(|e| match Error::from(e) {
            Error::InvalidCertificate(CertificateError::BadEncoding) => Refusal::Malformed,
            _ => Refusal::Forged,
        })?;
        let peer = PeerId::from_multihash(&parsed.peer_id().to_bytes()).map_err(|_| Refusal::Malformed)?;
        lock(&self.cell.0).claimed = Some(peer);
        if self.expected.is_some_and(|expected| expected != peer) {
            return Err(Refusal::WrongPeer);
        }
        let membership = membership_of(leaf)?;
        self.gate.admit(&peer, membership.as_deref(), purpose)?;
        Ok(Admitted {
            peer,
            membership,
            purpose,
        })
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

/// The leaf's key signs the handshake; ours are all P-256, libp2p's specification allows the others.
const SCHEMES: [SignatureScheme; 3] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
];

fn verify_signature(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    certificate::parse(leaf)?.verify_signature(signed.scheme, message, signed.signature())?;
    Ok(HandshakeSignatureValid::assertion())
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, others)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, others)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
