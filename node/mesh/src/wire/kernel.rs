//! The wire of production: the kernel's UDP socket with segmentation offload (GSO) and receive coalescing (GRO) where the kernel has them.
//!
//! A bind to `[::]` serves IPv4 too, so that a peer has one port and one endpoint whatever the family. It leaves path MTU, pacing and
//! retries to QUIC.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::{Capabilities, DATAGRAM_BYTES_MAX, Ecn, Outgoing, RECEIVE_BATCH_MAX, Received, Wire, WriteReady};

/// Socket buffers asked for, in bytes: 8 ms at 4 Gbit/s, what one busy scheduling round of a shared core costs. The kernel clamps it to its own limit.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Why a UDP port could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error("address {addr} is already in use")]
    InUse {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The address is not one of this host, or may not be used by this user.
    #[error("cannot bind address {addr}")]
    Unusable {
        /// The address asked for.
        addr: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// A kernel UDP socket as a [`Wire`].
#[derive(Debug)]
pub struct KernelWire {
    io: UdpSocket,
    state: UdpSocketState,
}

impl KernelWire {
    /// Binds `addr`; port 0 takes a free one. `[::]` serves both families, and falls back to `0.0.0.0` on a host without IPv6.
    ///
    /// # Errors
    /// [`BindError::InUse`] when the port is taken, [`BindError::Unusable`] for everything else that the system reports.
    ///
    /// # Panics
    /// When called outside a tokio runtime with I/O enabled.
    pub fn bind(addr: SocketAddr) -> Result<Self, BindError> {
        match Self::open(addr) {
            Err(e) if addr.is_ipv6() && addr.ip().is_unspecified() && lacks_ipv6(&e) => {
                Self::open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port())))
            }
            other => other,
        }
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { addr },
            _ => BindError::Unusable { addr, source },
        })
    }

    fn open(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(!addr.ip().is_unspecified())?;
        }
        // Refused sizes cost throughput only.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        let socket: std::net::UdpSocket = socket.into();
        Ok(Self {
            state: UdpSocketState::new((&socket).into())?,
            io: UdpSocket::from_std(socket)?,
        })
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
    )
}

impl Wire for KernelWire {
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [Received],
    ) -> Poll<io::Result<usize>> {
        let mut raw = [RecvMeta::default(); RECEIVE_BATCH_MAX];
        let room = meta.len().min(raw.len());
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let result = self.io.try_io(Interest::READABLE, || {
                self.state.recv((&self.io).into(), bufs, &mut raw[..room])
            });
            match result {
                Ok(count) => {
                    for (to, from) in meta.iter_mut().zip(&raw[..count]) {
                        *to = received(from);
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn try_send(&self, batch: &Outgoing<'_>) -> io::Result<()> {
        let transmit = Transmit {
            destination: batch.destination,
            ecn: batch.ecn.map(codepoint),
            contents: batch.contents,
            segment_size: batch.segment_size,
            src_ip: batch.src_ip,
        };
        self.io.try_io(Interest::WRITABLE, || {
            self.state.send((&self.io).into(), &transmit)
        })
    }

    fn write_ready(self: Arc<Self>) -> Pin<Box<dyn WriteReady>> {
        Box::pin(KernelWriteReady {
            wire: self,
            waiting: None,
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            send_segments: self.state.max_gso_segments(),
            receive_segments: self.state.gro_segments(),
            mtu_max: DATAGRAM_BYTES_MAX as u16,
            ecn: true,
            may_fragment: self.state.may_fragment(),
        }
    }
}

fn received(meta: &RecvMeta) -> Received {
    Received {
        addr: meta.addr,
        len: meta.len,
        stride: meta.stride,
        ecn: meta.ecn.map(|e| match e {
            EcnCodepoint::Ect0 => Ecn::Ect0,
            EcnCodepoint::Ect1 => Ecn::Ect1,
            EcnCodepoint::Ce => Ecn::Ce,
        }),
        dst_ip: meta.dst_ip,
    }
}

fn codepoint(ecn: Ecn) -> EcnCodepoint {
    match ecn {
        Ecn::Ect0 => EcnCodepoint::Ect0,
        Ecn::Ect1 => EcnCodepoint::Ect1,
        Ecn::Ce => EcnCodepoint::Ce,
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Waits on tokio's readiness. A future per task, because `poll_send_ready` remembers the last waker only.
struct KernelWriteReady {
    wire: Arc<KernelWire>,
    waiting: Option<Waiting>,
}

impl fmt::Debug for KernelWriteReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelWriteReady").finish_non_exhaustive()
    }
}

impl WriteReady for KernelWriteReady {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = Arc::clone(&self.wire);
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(async move { wire.io.writable().await }));
        let result = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(result)
    }
}
