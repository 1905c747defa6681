//! A [`Wire`] as quinn's socket. The only place where a wire meets a QUIC implementation.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll, ready};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::sync::{read, write};

use super::{Capabilities, Ecn, Outgoing, RECEIVE_BATCH_MAX, Received, Wire, WriteReady};

/// Above 64 KiB in one segmented send Linux answers EMSGSIZE, which the QUIC stack takes for a lost path and falls back to 1,200 bytes.
const SEGMENTED_SEND_BYTES_MAX: usize = 65_000;

/// The kernel never coalesces more than this into one buffer.
const COALESCED_RECEIVE_BYTES_MAX: usize = 65_535;

/// Buffers that a quiet endpoint lets a wire fill at once. quinn keeps [`RECEIVE_BATCH_MAX`] of 64 KiB each, of which the kernel gives an
/// endpoint only the pages that were written to; with one in use, what neighbors say now and then costs a page or two.
const RECEIVE_BUFFERS_MIN: usize = 1;

/// quinn's view of a [`Wire`].
#[derive(Debug)]
pub(crate) struct QuinnSocket {
    /// None once detached: handles of closed connections keep the socket alive, and must not keep the port.
    wire: RwLock<Option<Arc<dyn Wire>>>,
    mtu_max: u16,
    room: ReceiveRoom,
}

/// How many buffers a wire may fill in one call: twice as many after a call that has filled all, half as many when half was enough.
#[derive(Debug)]
struct ReceiveRoom(AtomicUsize);

impl ReceiveRoom {
    const fn new() -> Self {
        Self(AtomicUsize::new(RECEIVE_BUFFERS_MIN))
    }

    fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Learns how many were filled of `room`. Only one task receives, so nothing is lost between reading and writing.
    fn filled(&self, count: usize, room: usize) {
        if count >= room {
            self.0.store((2 * room).min(RECEIVE_BATCH_MAX), Ordering::Relaxed);
        } else if 2 * count <= room {
            self.0
                .store((room / 2).max(RECEIVE_BUFFERS_MIN), Ordering::Relaxed);
        }
    }
}

impl QuinnSocket {
    /// Adapts `wire` for an endpoint whose datagrams never exceed `mtu_max` bytes.
    pub(crate) fn new(wire: Arc<dyn Wire>, mtu_max: u16) -> Self {
        Self {
            wire: RwLock::new(Some(wire)),
            mtu_max,
            room: ReceiveRoom::new(),
        }
    }

    /// Lets go of the wire: nothing is sent or received any more.
    pub(crate) fn detach(&self) {
        write(&self.wire).take();
    }

    fn capability<T>(&self, of: fn(Capabilities) -> T) -> Option<T> {
        read(&self.wire).as_ref().map(|wire| of(wire.capabilities()))
    }
}

impl AsyncUdpSocket for QuinnSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            socket: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let guard = read(&self.wire);
        let Some(wire) = guard.as_ref() else {
            return Ok(());
        };
        wire.try_send(&Outgoing {
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
        let room = self.room.now().min(meta.len()).min(bufs.len());
        let guard = read(&self.wire);
        let Some(wire) = guard.as_ref() else {
            return Poll::Pending;
        };
        let count = ready!(wire.poll_recv(cx, &mut bufs[..room], &mut received[..room]))?;
        self.room.filled(count, room);
        for (to, from) in meta.iter_mut().zip(&received[..count]) {
            *to = recv_meta(from);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match read(&self.wire).as_ref() {
            Some(wire) => wire.local_addr(),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn max_transmit_segments(&self) -> usize {
        let fitting = SEGMENTED_SEND_BYTES_MAX / usize::from(self.mtu_max.max(1));
        let segments = self.capability(|it| it.send_segments).unwrap_or(1);
        segments.min(fitting).max(1)
    }

    // quinn sizes its receive buffers by this times the MTU; more than one coalesced buffer's worth is never filled.
    fn max_receive_segments(&self) -> usize {
        let fitting = COALESCED_RECEIVE_BYTES_MAX.div_ceil(usize::from(self.mtu_max.max(1)));
        let segments = self.capability(|it| it.receive_segments).unwrap_or(1);
        segments.min(fitting).max(1)
    }

    fn may_fragment(&self) -> bool {
        self.capability(|it| it.may_fragment).unwrap_or(false)
    }
}

fn recv_meta(received: &Received) -> RecvMeta {
    RecvMeta {
        addr: received.addr,
        len: received.len,
        stride: received.stride,
        ecn: received.ecn.map(|e| match e {
            Ecn::Ect0 => EcnCodepoint::Ect0,
            Ecn::Ect1 => EcnCodepoint::Ect1,
            Ecn::Ce => EcnCodepoint::Ce,
        }),
        dst_ip: received.dst_ip,
    }
}

/// Holds a poller of the wire only while a task waits, for the same reason.
#[derive(Debug)]
struct Poller {
    socket: Arc<QuinnSocket>,
    waiting: Option<Pin<Box<dyn WriteReady>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => match read(&self.socket.wire).as_ref() {
                Some(wire) => Arc::clone(wire).write_ready(),
                None => return Poll::Ready(Ok(())),
            },
        };
        let result = waiting.as_mut().poll_writable(cx);
        if result.is_pending() {
            self.waiting = Some(waiting);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_endpoint_uses_one_buffer_and_a_busy_one_all() {
        let room = ReceiveRoom::new();
        assert_eq!(room.now(), 1);
        for _ in 0..10 {
            room.filled(room.now(), room.now());
        }
        assert_eq!(room.now(), RECEIVE_BATCH_MAX);
        room.filled(RECEIVE_BATCH_MAX - 1, RECEIVE_BATCH_MAX);
        assert_eq!(room.now(), RECEIVE_BATCH_MAX);
        while room.now() > 1 {
            let before = room.now();
            room.filled(before / 2, before);
            assert_eq!(room.now(), before / 2);
        }
    }
}
