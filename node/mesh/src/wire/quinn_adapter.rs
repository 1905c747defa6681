//! A [`Wire`] as quinn's socket. The only place where a wire meets a QUIC implementation.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::{Ecn, Outgoing, RECEIVE_BATCH_MAX, Received, Wire, WriteReady};

/// Above 64 KiB in one segmented send Linux answers EMSGSIZE, which the QUIC stack takes for a lost path and falls back to 1,200 bytes.
const SEGMENTED_SEND_BYTES_MAX: usize = 65_000;

/// The kernel never coalesces more than this into one buffer.
const COALESCED_RECEIVE_BYTES_MAX: usize = 65_535;

/// quinn's view of a [`Wire`].
#[derive(Debug)]
pub(crate) struct QuinnSocket {
    wire: Arc<dyn Wire>,
    mtu_max: u16,
}

impl QuinnSocket {
    /// Adapts `wire` for an endpoint whose datagrams never exceed `mtu_max` bytes.
    pub(crate) fn new(wire: Arc<dyn Wire>, mtu_max: u16) -> Self {
        Self { wire, mtu_max }
    }
}

impl AsyncUdpSocket for QuinnSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller(Arc::clone(&self.wire).write_ready()))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.wire.try_send(&Outgoing {
            destination: transmit.destination,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            ecn: transmit.ecn.map(|e| match e {
                EcnCodepoint::Ect0 => Ecn::Ect0,
                EcnCodepoint::Ect1 => Ecn::Ect1,
                EcnCodepoint::Ce => Ecn::Ce,
            }),
            src_ip: transmit.src_ip,
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut received = [Received::default(); RECEIVE_BATCH_MAX];
        let room = meta.len().min(received.len());
        let count = ready!(self.wire.poll_recv(cx, bufs, &mut received[..room]))?;
        for (to, from) in meta.iter_mut().zip(&received[..count]) {
            *to = recv_meta(from);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.wire.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let fitting = SEGMENTED_SEND_BYTES_MAX / usize::from(self.mtu_max.max(1));
        self.wire.capabilities().send_segments.min(fitting).max(1)
    }

    // quinn sizes its receive buffers by this times the MTU; more than one coalesced buffer's worth is never filled.
    fn max_receive_segments(&self) -> usize {
        let fitting = COALESCED_RECEIVE_BYTES_MAX.div_ceil(usize::from(self.mtu_max.max(1)));
        self.wire
            .capabilities()
            .receive_segments
            .min(fitting)
            .max(1)
    }

    fn may_fragment(&self) -> bool {
        self.wire.capabilities().may_fragment
    }
}

fn recv_meta(received: &Received) -> RecvMeta {
    let mut meta = RecvMeta::default();
    meta.addr = received.addr;
    meta.len = received.len;
    meta.stride = received.stride;
    meta.ecn = received.ecn.map(|e| match e {
        Ecn::Ect0 => EcnCodepoint::Ect0,
        Ecn::Ect1 => EcnCodepoint::Ect1,
        Ecn::Ce => EcnCodepoint::Ce,
    });
    meta.dst_ip = received.dst_ip;
    meta
}

#[derive(Debug)]
struct Poller(Pin<Box<dyn WriteReady>>);

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_writable(cx)
    }
}
