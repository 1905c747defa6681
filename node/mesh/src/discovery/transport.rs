//! A libp2p transport that does not dial: it says whom the swarm wants to meet, and waits for a connection to be attached.
//!
//! Left to itself Kademlia dials every peer that it hears of (500 peers made 106,000 dials). Here a wish costs a token and waits in a
//! bounded table; the mesh decides whether it is granted.

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use hyperfabric_protocol::{Address, PeerId};
use libp2p::Multiaddr;
use libp2p::core::Transport;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::muxer::{Line, Muxer, Park};
use super::{Found, from_libp2p, to_libp2p};
use crate::address::PeerAddress;
use crate::endpoint::TokenBucket;

/// How long the swarm waits for a peer that it wants to meet.
pub(super) const WISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers that the swarm may wait for at once.
const WISHES_MAX: usize = 16;
/// Addresses of a peer that are passed on.
const ADDRESSES_MAX: usize = 8;
/// New wishes a second, in the long run: a query needs a handful of them.
const WISHES_PER_SECOND: u32 = 1;
/// New wishes at once.
const WISHES_BURST: u32 = 16;

/// Why a wish of the swarm was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WishError {
    /// The swarm has a connection to this peer.
    #[error("the peer is connected already")]
    AlreadyConnected,
    /// Too many wishes.
    #[error("too many peers are wanted")]
    TooMany,
    /// No connection came.
    #[error("the peer was not met in time")]
    TimedOut,
    /// Discovery is ending.
    #[error("discovery is ending")]
    Ending,
    /// Addresses to listen on are the mesh's matter.
    #[error("the mesh listens, not libp2p")]
    NotHere,
}

type Output = (libp2p::PeerId, Muxer);
type Event = TransportEvent<Ready<Result<Output, WishError>>, WishError>;

/// See the module.
pub(super) struct MeshTransport {
    attached: mpsc::Receiver<Line>,
    found: mpsc::Sender<Found>,
    park: Arc<Park>,
    waiting: BTreeMap<PeerId, Vec<oneshot::Sender<Muxer>>>,
    /// Wishes that the mesh has not been told of, so that it learns all addresses of a peer before it dials.
    untold: BTreeMap<PeerId, Vec<Address>>,
    budget: TokenBucket,
    listener: ListenerId,
}

impl MeshTransport {
    pub(super) fn new(attached: mpsc::Receiver<Line>, found: mpsc::Sender<Found>) -> Self {
        Self {
            attached,
            found,
            park: Arc::default(),
            waiting: BTreeMap::new(),
            untold: BTreeMap::new(),
            budget: TokenBucket::new(WISHES_PER_SECOND, WISHES_BURST, Instant::now()),
            listener: ListenerId::next(),
        }
    }

    fn muxer(&self, line: Line) -> Muxer {
        Muxer::new(line, Arc::clone(&self.park))
    }

    fn wish(&mut self, peer: PeerId, address: &Multiaddr) -> Result<oneshot::Receiver<Muxer>, WishError> {
        self.waiting.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.is_closed());
            !waiters.is_empty()
        });
        if !self.waiting.contains_key(&peer)
            && (self.waiting.len() >= WISHES_MAX || !self.budget.take(Instant::now()))
        {
            return Err(WishError::TooMany);
        }
        let waiters = self.waiting.entry(peer).or_default();
        if waiters.len() >= ADDRESSES_MAX {
            return Err(WishError::TooMany);
        }
        let (waiter, granted) = oneshot::channel();
        waiters.push(waiter);
        let addresses = self.untold.entry(peer).or_default();
        addresses
            .extend(dialable(address, peer).map(|address| PeerAddress::new(address.socket).to_address()));
        Ok(granted)
    }

    /// Tells the mesh. A full channel drops the wish, which then times out.
    fn tell(&mut self) {
        for (peer, addresses) in std::mem::take(&mut self.untold) {
            if !addresses.is_empty() {
                let _ = self.found.try_send(Found::Address { peer, addresses });
            }
            let _ = self.found.try_send(Found::Wanted { peer });
        }
    }

    /// Gives a line to whoever waits for its peer, or returns it.
    fn grant(&mut self, line: Line) -> Option<Muxer> {
        let peer = line.connection().peer();
        let mut muxer = self.muxer(line);
        for waiter in self.waiting.remove(&peer).unwrap_or_default() {
            match waiter.send(muxer) {
                Ok(()) => return None,
                Err(back) => muxer = back,
            }
        }
        Some(muxer)
    }

    fn incoming(&self, muxer: Muxer) -> Event {
        let connection = muxer.connection();
        let remote = Multiaddr::from(PeerAddress::new(connection.remote_address()));
        let peer = to_libp2p(connection.peer());
        TransportEvent::Incoming {
            listener_id: self.listener,
            upgrade: ready(Ok((peer, muxer))),
            // Which of this peer's addresses it was is not known, and nobody asks.
            local_addr: Multiaddr::empty(),
            send_back_addr: remote,
        }
    }
}

impl Transport for MeshTransport {
    type Output = Output;
    type Error = WishError;
    type ListenerUpgrade = Ready<Result<Output, WishError>>;
    type Dial = BoxFuture<'static, Result<Output, WishError>>;

    fn listen_on(&mut self, _: ListenerId, _: Multiaddr) -> Result<(), TransportError<WishError>> {
        Err(TransportError::Other(WishError::NotHere))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<WishError>> {
        let Some((name, peer)) = target(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        if let Some(line) = self.park.take(&peer) {
            return Ok(ready(Ok((name, self.muxer(line)))).boxed());
        }
        if self.park.serves(&peer) {
            return Err(TransportError::Other(WishError::AlreadyConnected));
        }
        let granted = self.wish(peer, &address).map_err(TransportError::Other)?;
        let met = async move {
            match timeout(WISH_TIMEOUT, granted).await {
                Ok(Ok(muxer)) => Ok((name, muxer)),
                Ok(Err(_)) => Err(WishError::Ending),
                Err(_) => Err(WishError::TimedOut),
            }
        };
        Ok(met.boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        let this = &mut *self;
        this.park.waker.register(cx.waker());
        this.tell();
        while let Poll::Ready(Some(line)) = this.attached.poll_recv(cx) {
            if let Some(muxer) = this.grant(line) {
                return Poll::Ready(this.incoming(muxer));
            }
        }
        match this.park.wake(cx) {
            Some(line) => {
                let muxer = this.muxer(line);
                Poll::Ready(this.incoming(muxer))
            }
            None => Poll::Pending,
        }
    }
}

/// The peer that an address ends in.
fn target(address: &Multiaddr) -> Option<(libp2p::PeerId, PeerId)> {
    match address.iter().last() {
        Some(Protocol::P2p(name)) => Some((name, from_libp2p(&name)?)),
        _ => None,
    }
}

/// Reads an address at which `peer` can be dialled over QUIC.
pub(super) fn dialable(address: &Multiaddr, peer: PeerId) -> Option<PeerAddress> {
    let parsed: PeerAddress = address.to_string().parse().ok()?;
    let of_peer = parsed.peer.is_none_or(|named| named == peer);
    let a_place = parsed.socket.port() != 0 && !parsed.socket.ip().is_unspecified();
    (of_peer && a_place).then_some(parsed)
}
