//! TLS sessions for the QUIC stack, each with its own [`SessionCell`].
//!
//! The stack wants one configuration per endpoint, and its client-certificate verifier does not see the ALPN. Here every session gets a
//! configuration of its own (microseconds: provider and key are shared), whose certificate resolver notes the protocol of the ClientHello
//! before the verifier runs.

use std::any::Any;
use std::sync::Arc;

use hyperfabric_protocol::PeerId;
use quinn_proto::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn_proto::crypto::{
    ClientConfig, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session,
    UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureScheme, version::TLS13};

use super::verifier::Verifier;
use super::{Gate, LeafCell, Purpose, SessionCell, provider};

const CHECKED: &str = "the same provider built a configuration when the endpoint was made";

/// Makes the sessions of accepted connections.
pub(crate) struct ServerCrypto {
    provider: Arc<CryptoProvider>,
    leaf: LeafCell,
    gate: Arc<dyn Gate>,
    /// Answers what does not depend on a session: Initial keys and Retry tags.
    stateless: QuicServerConfig,
}

impl ServerCrypto {
    pub(crate) fn new(leaf: LeafCell, gate: Arc<dyn Gate>) -> Result<Self, rustls::Error> {
        let provider = provider();
        let cell = Arc::new(SessionCell::default());
        let tls = server_config(&provider, &leaf, &gate, cell)?;
        let stateless = QuicServerConfig::try_from(tls)
            .map_err(|_| rustls::Error::General("no initial cipher suite".into()))?;
        Ok(Self {
            provider,
            leaf,
            gate,
            stateless,
        })
    }
}

// [TLS-1]
fn server_config(
    provider: &Arc<CryptoProvider>,
    leaf: &LeafCell,
    gate: &Arc<dyn Gate>,
    cell: Arc<SessionCell>,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let verifier = Verifier::new(Arc::clone(gate), Arc::clone(&cell), None);
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Resolver {
            key: leaf.current().certified(),
            cell: Some(cell),
        }));
    config.alpn_protocols = Purpose::ALL.map(|it| it.alpn().to_vec()).to_vec();
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

impl ServerConfig for ServerCrypto {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.stateless.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.stateless.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        let cell = Arc::new(SessionCell::default());
        let tls = server_config(&self.provider, &self.leaf, &self.gate, Arc::clone(&cell)).expect(CHECKED);
        let quic = QuicServerConfig::try_from(tls).expect(CHECKED);
        Box::new(GatedSession {
            inner: Arc::new(quic).start_session(version, params),
            cell,
        })
    }
}

/// Makes the session of one dialled connection.
pub(crate) struct ClientCrypto {
    inner: Arc<QuicClientConfig>,
    cell: Arc<SessionCell>,
}

impl ClientCrypto {
    pub(crate) fn new(
        leaf: &LeafCell,
        gate: &Arc<dyn Gate>,
        expected: PeerId,
        purpose: Purpose,
    ) -> Result<Self, rustls::Error> {
        let cell = SessionCell::for_purpose(purpose);
        let verifier = Verifier::new(Arc::clone(gate), Arc::clone(&cell), Some(expected));
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(Resolver {
                key: leaf.current().certified(),
                cell: None,
            }));
        tls.alpn_protocols = vec![purpose.alpn().to_vec()];
        tls.enable_sni = false;
        tls.resumption = Resumption::disabled();
        let inner = QuicClientConfig::try_from(tls)
            .map_err(|_| rustls::Error::General("no initial cipher suite".into()))?;
        Ok(Self {
            inner: Arc::new(inner),
            cell,
        })
    }

    pub(crate) fn cell(&self) -> Arc<SessionCell> {
        Arc::clone(&self.cell)
    }
}

impl ClientConfig for ClientCrypto {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let inner = Arc::clone(&self.inner).start_session(version, server_name, params)?;
        Ok(Box::new(GatedSession {
            inner,
            cell: Arc::clone(&self.cell),
        }))
    }
}

/// Shows the leaf; on the accepting side also notes what the session is for.
#[derive(Debug)]
struct Resolver {
    key: Arc<CertifiedKey>,
    cell: Option<Arc<SessionCell>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offered: Vec<Purpose> = hello.alpn()?.filter_map(Purpose::from_alpn).collect();
        // rustls chooses by the same rule: the first of our own that the client offers.
        let chosen = Purpose::ALL.into_iter().find(|it| offered.contains(it));
        if let (Some(cell), Some(purpose)) = (&self.cell, chosen) {
            cell.set_purpose(purpose);
        }
        Some(Arc::clone(&self.key))
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What [`Session::handshake_data`] holds here.
pub(crate) struct Handshake {
    pub(crate) cell: Arc<SessionCell>,
    /// The protocol that TLS negotiated.
    pub(crate) purpose: Option<Purpose>,
}

/// Passes everything on, but puts the exact reason of a refusal into the close frame.
struct GatedSession {
    inner: Box<dyn Session>,
    cell: Arc<SessionCell>,
}

impl Session for GatedSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }

    // Present from the start, so that a failed handshake can be explained.
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let negotiated = self.inner.handshake_data();
        let purpose = negotiated
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| Purpose::from_alpn(&data.protocol?));
        Some(Box::new(Handshake {
            cell: Arc::clone(&self.cell),
            purpose,
        }))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(buf).map_err(|mut error| {
            if let Some(refusal) = self.cell.refusal() {
                error.reason = refusal.phrase();
            }
            error
        })
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.inner.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}
