//! A wire that behaves like a bad network: a decorator over any other [`Wire`], for simulations and for the API's network conditions.
//!
//! Latency, jitter, loss, reordering, duplication, corruption, rate, queue and MTU act on what this peer sends, so that each direction of a
//! link is described at its own sender; a partition can also drop what arrives. One description holds for all remotes but those that have
//! their own. The decisions are made by [`line::Line`], a state machine without a clock, from a seed: the same datagrams at the same times
//! meet the same fate. One task per impaired wire moves due datagrams on; there is no thread.

mod line;
mod pump;
#[cfg(test)]
mod tests;
mod timer;

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::line::{Datagram, Fate, Line};
use self::pump::pump;
use super::{Capabilities, Outgoing, Received, Wire, WriteReady};
use crate::sync::lock;

/// The most bytes that an impaired wire holds back at any time; beyond it datagrams are dropped as by a full queue.
pub const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The most remotes that one partition can name.
pub const PARTITION_REMOTES_MAX: usize = 1_024;

/// The most remotes of an impaired wire that can have conditions of their own; the general ones hold for further ones.
pub const LINKS_MAX: usize = 4_096;

/// For how long what was sent lets answers in, where nothing else is let in: what common firewalls keep for UDP. Connections
/// say more often than that that they are alive.
pub const ANSWER_WINDOW: Duration = Duration::from_secs(30);

/// How a delay varies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JitterShape {
    /// Evenly, from nothing to the jitter.
    #[default]
    Uniform,
    /// Normally about the latency, with the jitter as its standard deviation; never below nothing.
    Normal,
}

/// Losses in bursts: the model of Gilbert and Elliott, a link that is now good, now bad, and changes between datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bursts {
    /// How likely a good link is bad for the next datagram, in parts per million.
    pub begin_ppm: u32,
    /// How likely a bad link is good again for the next datagram, in parts per million.
    pub end_ppm: u32,
    /// The share of datagrams that a bad link loses, in parts per million. A good one has [`Impairment::loss_ppm`].
    pub loss_ppm: u32,
}

/// The conditions of an impaired wire. The default impairs nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impairment {
    /// Added to every datagram sent.
    pub latency: Duration,
    /// How much the delay varies; it reorders datagrams unless the order is kept.
    pub jitter: Duration,
    /// How it varies.
    pub jitter_shape: JitterShape,
    /// Whether no datagram overtakes an earlier one to the same remote, as where jitter comes from queues: each waits for
    /// those before it.
    pub keeps_order: bool,
    /// The share of datagrams lost, in parts per million.
    pub loss_ppm: u32,
    /// Losses in bursts besides.
    pub bursts: Option<Bursts>,
    /// The share of datagrams that skip the delay and overtake those before them, in parts per million.
    pub reorder_ppm: u32,
    /// The share of datagrams that arrive twice, in parts per million.
    pub duplicate_ppm: u32,
    /// The share of datagrams of which one bit is flipped, in parts per million.
    pub corrupt_ppm: u32,
    /// How many bytes leave per second; none is unlimited.
    pub rate_bytes_per_s: Option<NonZeroU64>,
    /// How many bytes may wait for the rate before the newest are dropped.
    pub queue_bytes_max: usize,
    /// Datagrams with a larger payload vanish, as in a tunnel that does not report it.
    pub mtu_max: Option<u16>,
    /// Who is cut off.
    pub partition: Partition,
    /// What arrives is dropped unless this peer has sent something to the same remote within [`ANSWER_WINDOW`]: a
    /// firewall, or a NAT, behind which nobody can be dialled.
    pub answers_only: bool,
}

impl Impairment {
    /// One second at 100 Mbit/s: deeper than most real queues, and bounded.
    pub const QUEUE_BYTES_DEFAULT: usize = 12_500_000;

    fn normalized(self) -> Self {
        Self {
            partition: self.partition.normalized(),
            ..self
        }
    }

    /// Whether a datagram that is sent now leaves unchanged and at once.
    fn passes_all(&self) -> bool {
        self.latency.is_zero()
            && self.jitter.is_zero()
            && self.loss_ppm == 0
            && self.bursts.is_none()
            && self.duplicate_ppm == 0
            && self.corrupt_ppm == 0
            && self.rate_bytes_per_s.is_none()
            && self.mtu_max.is_none()
            && matches!(self.partition, Partition::None)
            && !self.answers_only
    }
}

impl Default for Impairment {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_shape: JitterShape::Uniform,
            keeps_order: false,
            loss_ppm: 0,
            bursts: None,
            reorder_ppm: 0,
            duplicate_ppm: 0,
            corrupt_ppm: 0,
            rate_bytes_per_s: None,
            queue_bytes_max: Self::QUEUE_BYTES_DEFAULT,
            mtu_max: None,
            partition: Partition::None,
            answers_only: false,
        }
    }
}

/// Which directions a partition cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What this peer sends.
    Outgoing,
    /// What reaches this peer.
    Incoming,
    /// Both.
    Both,
}

impl Cut {
    fn outgoing(self) -> bool {
        matches!(self, Self::Outgoing | Self::Both)
    }

    fn incoming(self) -> bool {
        matches!(self, Self::Incoming | Self::Both)
    }
}

/// Whose datagrams vanish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Partition {
    /// Nobody's.
    #[default]
    None,
    /// Everybody's.
    All(Cut),
    /// Those of the named remotes, at most [`PARTITION_REMOTES_MAX`]. IPv4-mapped addresses count as IPv4.
    Remotes {
        /// The remote sockets that are cut off.
        remotes: BTreeSet<SocketAddr>,
        /// In which directions.
        cut: Cut,
    },
}

impl Partition {
    fn cuts(&self, remote: SocketAddr, direction: fn(Cut) -> bool) -> bool {
        match self {
            Self::None => false,
            Self::All(cut) => direction(*cut),
            Self::Remotes { remotes, cut } => direction(*cut) && remotes.contains(&canonical(remote)),
        }
    }

    fn normalized(self) -> Self {
        match self {
            Self::None | Self::All(_) => self,
            Self::Remotes { remotes, cut } => Self::Remotes {
                remotes: remotes
                    .into_iter()
                    .map(canonical)
                    .take(PARTITION_REMOTES_MAX)
                    .collect(),
                cut,
            },
        }
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// What became of the datagrams so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImpairmentStats {
    /// Passed on to the wire below.
    pub sent: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped because the queue, or the bound on held bytes, was full.
    pub overflowed: u64,
    /// Larger than the MTU.
    pub oversized: u64,
    /// Cut off by the partition, in either direction.
    pub partitioned: u64,
    /// Arrived, and answered nothing, where only answers are let in.
    pub unasked: u64,
    /// Sent without the delay.
    pub reordered: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Sent with a flipped bit.
    pub corrupted: u64,
}

/// An impaired wire and the handle that changes its conditions.
#[derive(Debug)]
pub struct Impaired {
    /// Goes into an endpoint.
    pub wire: Arc<ImpairedWire>,
    /// Stays with whoever sets the conditions.
    pub handle: ImpairmentHandle,
}

/// Says which conditions hold for a remote, whose IPv4-mapped address is given as IPv4; `None` for the general ones. It must not call the
/// handle of the wire that asks.
#[derive(Clone)]
pub struct LinkRule(pub Arc<dyn Fn(SocketAddr) -> Option<Impairment> + Send + Sync>);

impl std::fmt::Debug for LinkRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkRule").finish_non_exhaustive()
    }
}

/// Changes the conditions of an impaired wire while it runs.
#[derive(Clone, Debug)]
pub struct ImpairmentHandle(Arc<Mutex<Line>>);

impl ImpairmentHandle {
    /// Sets new conditions for all remotes without their own. Datagrams already under way keep the delay that they were given.
    pub fn set(&self, impairment: Impairment) {
        lock(&self.0).set_impairment(impairment.normalized());
    }

    /// Gives remotes conditions of their own: the rule is asked once for each remote that something is sent to or comes from, and where it
    /// has none the general ones hold. A new rule is asked again for those that are known already.
    pub fn set_rule(&self, rule: LinkRule) {
        lock(&self.0).set_rule(rule);
    }

    /// The general conditions in force.
    pub fn current(&self) -> Impairment {
        lock(&self.0).impairment().clone()
    }

    /// What became of the datagrams so far.
    pub fn stats(&self) -> ImpairmentStats {
        lock(&self.0).stats
    }
}

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Wire>,
    /// Apart from the rest, so that a handle does not keep the wire below.
    line: Arc<Mutex<Line>>,
    /// Wakes the pump: the earliest datagram changed, or the wire was dropped.
    changed: Notify,
    dropped: AtomicBool,
}

/// The decorator; see the module.
#[derive(Debug)]
pub struct ImpairedWire(Arc<Shared>);

impl Impaired {
    /// Puts `impairment` over `inner`. Its random choices follow from `seed`; its task runs on `runtime` until the wire is dropped.
    pub fn new(inner: Arc<dyn Wire>, impairment: Impairment, seed: u64, runtime: &Handle) -> Self {
        let shared = Arc::new(Shared {
            inner,
            line: Arc::new(Mutex::new(Line::new(seed))),
            changed: Notify::new(),
            dropped: AtomicBool::new(false),
        });
        let handle = ImpairmentHandle(Arc::clone(&shared.line));
        handle.set(impairment);
        runtime.spawn(pump(Arc::clone(&shared)));
        Self {
            wire: Arc::new(ImpairedWire(shared)),
            handle,
        }
    }
}

impl Drop for ImpairedWire {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::Release);
        self.0.changed.notify_one();
    }
}

impl Wire for ImpairedWire {
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [Received],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.0.inner.poll_recv(cx, bufs, meta))?;
        let now = Instant::now();
        let mut line = lock(&self.0.line);
        for entry in &mut meta[..count] {
            if line.drops_incoming(now, entry.addr) {
                entry.len = 0;
            }
        }
        Poll::Ready(Ok(count))
    }

    // Never answers WouldBlock: the queue has a bound and a drop policy, as the network it stands for.
    fn try_send(&self, batch: &Outgoing<'_>) -> io::Result<()> {
        let now = Instant::now();
        let mut line = lock(&self.0.line);
        line.meet(canonical(batch.destination));
        if line.passes_at_once(canonical(batch.destination)) {
            // A WouldBlock from below must reach the sender, who then waits on the poller of the wire below.
            self.0.inner.try_send(batch)?;
            line.stats.sent += batch.datagrams().count() as u64;
            return Ok(());
        }
        let first_before = line.next_due();
        for contents in batch.datagrams() {
            let fate = line.push(
                now,
                Datagram {
                    destination: batch.destination,
                    contents: Bytes::copy_from_slice(contents),
                    ecn: batch.ecn,
                    src_ip: batch.src_ip,
                },
            );
            if fate != Fate::Held {
                tracing::trace!(?fate, destination = %batch.destination, "datagram dropped");
            }
        }
        if line.next_due() != first_before {
            self.0.changed.notify_one();
        }
        Ok(())
    }

    fn write_ready(self: Arc<Self>) -> Pin<Box<dyn WriteReady>> {
        Arc::clone(&self.0.inner).write_ready()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.inner.local_addr()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.inner.capabilities()
    }
}
