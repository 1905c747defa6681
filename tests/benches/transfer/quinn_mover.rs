//! The yardstick: a plain quinn program that moves one file, and does nothing else.
//!
//! Same TLS 1.3 suite, key exchange and MTU as the product; no hash, no journal, no sync. Both ends are processes of
//! their own, each with one thread for the network and one for its file, which measured best on two cores.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyperfabric_tests::Running;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use socket2::SockRef;

/// The argument that makes this binary one end of the mover.
pub(crate) const ROLE: &str = "--mover-role";
/// How much is read from or written to a file at once.
const PIECE_BYTES: usize = 1 << 20;
/// How many pieces may wait between the two threads of an end.
const PIECES_WAITING_MAX: usize = 8;
/// What the kernel is asked to hold for the socket.
const SOCKET_BYTES: usize = 4 << 20;
/// What a sender may have in flight: no more than the socket holds. With 16 MiB a receiver that did not run for a moment
/// lost thousands of packets, and a third of the throughput.
const WINDOW_BYTES: u32 = 4 << 20;
/// How long one round may take.
const DEADLINE: Duration = Duration::from_secs(600);
const SERVER_NAME: &str = "mover";

/// Moves `from` to the new file `to` with two processes of this binary.
pub(crate) fn run(from: &Path, to: &Path, mtu: u16) -> Result<()> {
    let program = std::env::current_exe()?;
    let command = |role: &str, file: &Path| {
        let mut command = Command::new(&program);
        command.args([ROLE, role, &mtu.to_string()]).arg(file);
        command
    };
    let mut receiver = command("receive", to)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    {
        use std::io::BufRead as _;
        let stdout = receiver.stdout.take().context("no stdout")?;
        std::io::BufReader::new(stdout).read_line(&mut address)?;
    }
    let sent =
        Running::start(command("send", from).arg(address.trim())).and_then(|sender| sender.wait(DEADLINE));
    if sent.is_err() {
        receiver.kill()?;
    }
    let received = receiver.wait()?;
    sent?.expect(hyperfabric_tests::Exit::Done)?;
    ensure!(received.success(), "the receiver ended with {received}");
    Ok(())
}

/// Runs one end. The arguments are those that [`run`] gives.
pub(crate) fn run_role(arguments: &[String]) -> Result<()> {
    let [role, mtu, file, rest @ ..] = arguments else {
        anyhow::bail!("not enough arguments")
    };
    let (mtu, file) = (mtu.parse()?, Path::new(file));
    // An interval of 2 answers acknowledgements between pieces; the default of 61 starves them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(2)
        .build()?;
    match role.as_str() {
        "receive" => runtime.block_on(receive(file, mtu)),
        _ => runtime.block_on(send(file, rest.first().context("no address")?, mtu)),
    }
}

async fn receive(file: &Path, mtu: u16) -> Result<()> {
    let issued = rcgen::generate_simple_self_signed(vec![SERVER_NAME.to_owned()])?;
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let certificate = CertificateDer::from(issued.cert.der().to_vec());
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport(mtu));
    let endpoint = endpoint(Some(config), mtu)?;
    let hex: String = certificate.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{}/{hex}", endpoint.local_addr()?);

    let connection = endpoint.accept().await.context("closed")?.await?;
    let mut stream = connection.accept_uni().await?;
    let (full, mut to_write) = tokio::sync::mpsc::channel::<Vec<u8>>(PIECES_WAITING_MAX);
    let (written, mut empty) = tokio::sync::mpsc::channel::<Vec<u8>>(PIECES_WAITING_MAX + 2);
    let mut output = File::create_new(file)?;
    let writer = thread::spawn(move || -> Result<()> {
        while let Some(piece) = to_write.blocking_recv() {
            output.write_all(&piece)?;
            // The network's side may have ended; the piece is not needed again then.
            drop(written.try_send(piece));
        }
        Ok(())
    });
    loop {
        let mut piece: Vec<u8> = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE_BYTES, 0);
        let mut filled = 0;
        while filled < piece.len() {
            match stream.read(&mut piece[filled..]).await? {
                Some(read) => filled += read,
                None => break,
            }
        }
        let last = filled < piece.len();
        piece.truncate(filled);
        full.send(piece).await.context("the writer ended")?;
        if last {
            break;
        }
    }
    drop(full);
    writer.join().expect("the writer does not panic")?;
    connection.close(0u32.into(), b"done");
    endpoint.wait_idle().await;
    Ok(())
}

async fn send(file: &Path, to: &str, mtu: u16) -> Result<()> {
    let (address, hex) = to.split_once('/').context("no certificate")?;
    let byte = |index: usize| u8::from_str_radix(&hex[index..index + 2], 16);
    let certificate: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect::<Result<_, _>>()?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(certificate))?;
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport(mtu));
    let endpoint = endpoint(None, mtu)?;

    let (read, mut to_send) = tokio::sync::mpsc::channel::<bytes::Bytes>(PIECES_WAITING_MAX);
    let mut input = File::open(file)?;
    let reader = thread::spawn(move || -> Result<()> {
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            std::io::Read::by_ref(&mut input)
                .take(PIECE_BYTES as u64)
                .read_to_end(&mut piece)?;
            if piece.is_empty() || read.blocking_send(piece.into()).is_err() {
                return Ok(());
            }
        }
    });
    let connection = endpoint
        .connect_with(config, address.parse()?, SERVER_NAME)?
        .await?;
    let mut stream = connection.open_uni().await?;
    while let Some(piece) = to_send.recv().await {
        stream.write_chunk(piece).await?;
    }
    reader.join().expect("the reader does not panic")?;
    stream.finish()?;
    // The receiver closes when everything is written.
    let closed = connection.closed().await;
    ensure!(
        matches!(&closed, quinn::ConnectionError::ApplicationClosed(close) if close.error_code == 0u32.into()),
        "{closed}"
    );
    Ok(())
}

/// AES first, as the product has it on processors with AES instructions.
fn provider() -> Arc<CryptoProvider> {
    let suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider {
        cipher_suites: suites,
        ..default_provider()
    })
}

fn transport(mtu: u16) -> Arc<quinn::TransportConfig> {
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut transport = quinn::TransportConfig::default();
    transport
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(WINDOW_BYTES.into())
        .send_window(WINDOW_BYTES.into())
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

fn endpoint(server: Option<quinn::ServerConfig>, mtu: u16) -> Result<quinn::Endpoint> {
    let socket = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let options = SockRef::from(&socket);
    options.set_recv_buffer_size(SOCKET_BYTES)?;
    options.set_send_buffer_size(SOCKET_BYTES)?;
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(mtu)?;
    Ok(quinn::Endpoint::new(
        config,
        server,
        socket,
        Arc::new(quinn::TokioRuntime),
    )?)
}
