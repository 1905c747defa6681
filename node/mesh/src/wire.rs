//! What carries datagrams: one trait, [`Wire`], that the endpoint is built on, and its implementations.
//!
//! The trait is poll-based and speaks in batches, because that is what makes UDP fast (GSO and GRO hand the kernel many datagrams in one
//! call). Its types are plain ones of this crate: the QUIC implementation sits behind `quinn_adapter` and can be replaced without touching
//! a wire. It deliberately knows nothing of connections, encryption or peers.

mod impaired;
mod kernel;
mod quinn_adapter;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

pub use impaired::{
    ANSWER_WINDOW, Bursts, Cut, HELD_BYTES_MAX, Impaired, ImpairedWire, Impairment, ImpairmentHandle,
    ImpairmentStats, JitterShape, LINKS_MAX, LinkRule, PARTITION_REMOTES_MAX, Partition,
};
pub use kernel::{BindError, KernelWire};
pub(crate) use quinn_adapter::QuinnSocket;

/// The largest payload that one UDP datagram over IPv4 can have.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;

/// The most datagrams that one call of [`Wire::poll_recv`] fills buffers with.
pub const RECEIVE_BATCH_MAX: usize = quinn_udp::BATCH_SIZE;

/// The explicit congestion notification of a datagram (RFC 3168).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    /// ECN-capable transport, codepoint 0.
    Ect0,
    /// ECN-capable transport, codepoint 1.
    Ect1,
    /// Congestion experienced.
    Ce,
}

/// Describes one filled receive buffer, which holds one or more datagrams of one sender.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The sender. On a dual-stack wire an IPv4 sender appears as `::ffff:a.b.c.d`.
    pub addr: SocketAddr,
    /// Bytes in the buffer; 0 means that the entry is to be skipped.
    pub len: usize,
    /// The size of each datagram in the buffer; the last one may be smaller.
    pub stride: usize,
    /// The congestion mark of the datagrams.
    pub ecn: Option<Ecn>,
    /// The local address that they were sent to, where the wire can tell.
    pub dst_ip: Option<IpAddr>,
}

impl Default for Received {
    fn default() -> Self {
        Self {
            addr: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
            len: 0,
            stride: 0,
            ecn: None,
            dst_ip: None,
        }
    }
}

/// One or more datagrams to one destination.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where they go, in the address family of the wire.
    pub destination: SocketAddr,
    /// The datagrams, back to back.
    pub contents: &'a [u8],
    /// The size of each datagram but the last, when there is more than one.
    pub segment_size: Option<usize>,
    /// The congestion mark to set.
    pub ecn: Option<Ecn>,
    /// The local address to send from, on a wire bound to a wildcard.
    pub src_ip: Option<IpAddr>,
}

impl<'a> Outgoing<'a> {
    /// Yields the datagrams one by one.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let stride = self.segment_size.unwrap_or(self.contents.len()).max(1);
        self.contents.chunks(stride)
    }
}

/// What a wire can do; the endpoint asks once per call of its own and adapts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The most datagrams that one [`Outgoing`] may hold; at least 1.
    pub send_segments: usize,
    /// The most datagrams that one receive buffer may come back with; at least 1.
    pub receive_segments: usize,
    /// The largest datagram payload that the wire takes, in bytes.
    pub mtu_max: u16,
    /// Whether congestion marks are sent and reported.
    pub ecn: bool,
    /// Whether datagrams might be fragmented below; path MTU discovery is off then.
    pub may_fragment: bool,
}

/// Waits until a wire that answered `WouldBlock` takes datagrams again; each waiting task has its own.
pub trait WriteReady: Send + Sync + Debug {
    /// Resolves when sending is worth another attempt; may be polled again afterwards.
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Carries datagrams between this peer and others.
pub trait Wire: Send + Sync + Debug + 'static {
    /// Receives up to `min(bufs.len(), meta.len(), RECEIVE_BATCH_MAX)` buffers and returns how many were filled.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [Received],
    ) -> Poll<io::Result<usize>>;

    /// Sends the batch, or fails with `WouldBlock`; [`Wire::write_ready`] then tells when to try again.
    fn try_send(&self, batch: &Outgoing<'_>) -> io::Result<()>;

    /// Makes a poller for one waiting task.
    fn write_ready(self: Arc<Self>) -> Pin<Box<dyn WriteReady>>;

    /// The address that the wire is bound to.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// What the wire can do now; GSO may be lost at run time when a device refuses it.
    fn capabilities(&self) -> Capabilities;
}
