//! A member that speaks QUIC by hand: a valid certificate, and no rule of the protocol that it must keep.
//!
//! The mesh's own connections cannot break the rules (they write every stream's kind, and refuse large frames), so this
//! one is plain quinn. It shows the leaf that the TLS rules of the specification ask for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ed25519_dalek::Signer as _;
use hyperfabric_protocol::SigningKey;
use hyperfabric_protocol::frame::{Frame, Hello, PROTOCOL_VERSION};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PublicKeyData as _};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, SignatureScheme};

use crate::harness::{Seed, within};

pub(crate) const PROMPT: &[u8] = b"hyperfabric/1";
pub(crate) const BULK: &[u8] = b"hyperfabric-bulk/1";
pub(crate) const JOIN: &[u8] = b"hyperfabric-join/1";
/// Kind bytes of streams.
pub(crate) const CONTROL: u8 = 1;
pub(crate) const CHUNKS: u8 = 1;
pub(crate) const REQUEST: u8 = 2;
pub(crate) const ECHO: u8 = 3;

const IDENTITY_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 53594, 1, 1];

/// Somebody who believes everybody: what the victim proves does not matter here.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// One DER value (X.690, section 8.1.3).
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x82], length.as_slice(), content].concat()
}

/// As [`der`], in the fewest bytes, for content below 128 bytes.
fn short_der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 0x80);
    [&[tag, length], content].concat()
}

fn leaf(key: &SigningKey, membership: &[u8]) -> CertifiedKey {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let identity = ed25519_dalek::SigningKey::from_bytes(&key.to_bytes());
    let message = [
        b"libp2p-tls-handshake:".as_slice(),
        &pair.subject_public_key_info(),
    ]
    .concat();
    let signature = identity.sign(&message).to_bytes();
    // libp2p's protobuf of a public key: type 1 (ed25519), then 32 bytes.
    let public = [[8, 1, 0x12, 32].as_slice(), identity.verifying_key().as_bytes()].concat();
    let content = [short_der(0x04, &public), short_der(0x04, &signature)].concat();
    let mut shown = CustomExtension::from_oid_content(&IDENTITY_OID, short_der(0x30, &content));
    shown.set_criticality(true);
    let membership =
        CustomExtension::from_oid_content(&hyperfabric_mesh::tls::MEMBERSHIP_OID, der(0x04, membership));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![shown, membership];
    let certificate = params.self_signed(&pair).unwrap();
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&private).unwrap();
    CertifiedKey::new(vec![certificate.into()], signer)
}

/// Resident memory of this process, in KiB.
pub(crate) fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A member without manners.
pub(crate) struct Raw {
    endpoint: quinn::Endpoint,
    pub(crate) key: SigningKey,
    membership: Vec<u8>,
}

impl Raw {
    pub(crate) fn new(seed: &Seed) -> Self {
        let credential = seed.folder.credential().unwrap().unwrap();
        Self {
            endpoint: quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap(),
            key: seed.folder.key().unwrap(),
            membership: credential.0.membership.to_bytes(),
        }
    }

    pub(crate) fn membership(&self) -> &[u8] {
        &self.membership
    }

    pub(crate) async fn dial(&self, to: SocketAddr, alpn: &[u8]) -> Result<Connection, ConnectionError> {
        let endpoint = &self.endpoint;
        within(
            "a handshake",
            endpoint.connect_with(self.config(alpn), to, "peer").unwrap(),
        )
        .await
    }

    /// Dials for one purpose with a first packet that announces another.
    pub(crate) async fn dial_marked(
        &self,
        to: SocketAddr,
        alpn: &[u8],
        mark: &'static [u8; 3],
    ) -> Result<Connection, ConnectionError> {
        let mut config = self.config(alpn);
        config.initial_dst_cid_provider(Arc::new(move || {
            quinn::ConnectionId::new(&[[7; 13].as_slice(), mark].concat())
        }));
        let connecting = self.endpoint.connect_with(config, to, "peer").unwrap();
        within("a handshake", connecting).await
    }

    /// Dials, and waits until it is let in; none when it is not.
    pub(crate) async fn enter(&self, to: SocketAddr, alpn: &[u8]) -> Option<Connection> {
        let connection = self.dial(to, alpn).await.ok()?;
        let welcome = within("a welcome", connection.accept_uni()).await;
        welcome.ok().map(|_| connection)
    }

    fn config(&self, alpn: &[u8]) -> quinn::ClientConfig {
        let shown = leaf(&self.key, &self.membership);
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls.enable_sni = false;
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    }

    /// Dials, opens the control stream and says hello.
    pub(crate) async fn greet(&self, to: SocketAddr) -> (Connection, Control) {
        let connection = self.dial(to, PROMPT).await.unwrap();
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&[CONTROL]).await.unwrap();
        let mut control = Control { send, recv };
        let hello = Hello {
            version: PROTOCOL_VERSION,
            features: 0,
            incarnation: 1,
            agent: hyperfabric_protocol::cbor::Text("raw".to_owned()),
        };
        control.write(&Frame::Hello(hello)).await.unwrap();
        (connection, control)
    }
}

/// A control stream.
pub(crate) struct Control {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Control {
    pub(crate) async fn write(&mut self, frame: &Frame) -> Result<(), quinn::WriteError> {
        let bytes = frame.to_bytes();
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        self.send.write_all(&[length.as_slice(), &bytes].concat()).await
    }

    /// Reads frames until `wanted` turns one into something.
    pub(crate) async fn read<T>(&mut self, mut wanted: impl FnMut(Frame) -> Option<T>) -> T {
        within("a frame", async {
            loop {
                let mut length = [0; 4];
                self.recv.read_exact(&mut length).await.unwrap();
                let mut frame = vec![0; u32::from_be_bytes(length) as usize];
                self.recv.read_exact(&mut frame).await.unwrap();
                let frame = Frame::from_bytes(&frame).unwrap();
                assert!(!matches!(frame, Some(Frame::Abort(_))), "{frame:?}");
                if let Some(found) = frame.and_then(&mut wanted) {
                    return found;
                }
            }
        })
        .await
    }
}
