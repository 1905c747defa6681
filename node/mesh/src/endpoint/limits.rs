//! What others may use up of an endpoint, and the ledger that counts it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyperfabric_protocol::PeerId;
use tokio::time::Instant;

use crate::sync::lock;
use crate::tls::Purpose;

/// The most handshakes at once; further first packets are refused.
pub(super) const HANDSHAKES_MAX: usize = 256;

/// Lines per second that refused strangers can put into the log above debug level, and at once after a quiet time.
const REFUSALS_LOGGED_PER_SECOND: u32 = 10;
const REFUSALS_LOGGED_BURST: u32 = 100;

/// Above this many handshakes at once an address must prove itself (Retry), so that spoofed ones cannot take all places.
pub(super) const HANDSHAKES_BEFORE_RETRY: usize = 32;

/// How many connections others may have with this endpoint. Dialled ones are not counted: this peer chose them. [QUIC-11]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub connections_max: usize,
    /// From one IPv4 address or one IPv6 /64 network. Generous, since many peers can share an address behind a NAT.
    pub per_address_max: usize,
    /// Prompt connections of one peer: more than one for simultaneous dials and for a restart before the old one is known dead.
    pub prompt_per_peer_max: usize,
    /// Bulk connections of one peer.
    pub bulk_per_peer_max: usize,
    /// Join connections of one peer.
    pub join_per_peer_max: usize,
    /// Join connections per second, after a burst of [`Limits::join_burst`].
    pub join_per_second: u32,
    /// Join connections at once after a quiet time.
    pub join_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            per_address_max: 256,
            prompt_per_peer_max: 3,
            bulk_per_peer_max: 8,
            join_per_peer_max: 1,
            join_per_second: 2,
            join_burst: 32,
        }
    }
}

impl Limits {
    fn per_peer_max(&self, purpose: Purpose) -> usize {
        match purpose {
            Purpose::Prompt => self.prompt_per_peer_max,
            Purpose::Bulk => self.bulk_per_peer_max,
            Purpose::Join => self.join_per_peer_max,
        }
    }
}

/// Allows a number of events per second after a burst.
#[derive(Debug)]
pub struct TokenBucket {
    per_second: u32,
    burst: u32,
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    /// A bucket that is full at `now`.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            per_second,
            burst,
            tokens: f64::from(burst),
            filled: now,
        }
    }

    /// Takes one event, if it is allowed.
    pub fn take(&mut self, now: Instant) -> bool {
        let elapsed: Duration = now.saturating_duration_since(self.filled);
        self.filled = now;
        self.tokens =
            (self.tokens + elapsed.as_secs_f64() * f64::from(self.per_second)).min(f64::from(self.burst));
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// Which limit a connection met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LimitHit {
    #[error("too many connections")]
    Total,
    #[error("too many connections from this address")]
    Address,
    #[error("too many connections of this peer")]
    Peer,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    addresses: HashMap<IpAddr, usize>,
    peers: HashMap<(PeerId, Purpose), usize>,
}

/// Counts accepted connections; its maps are as large as the number of open connections.
#[derive(Debug)]
pub(super) struct Ledger {
    counts: Mutex<Counts>,
    joins: Mutex<TokenBucket>,
    log: Mutex<TokenBucket>,
}

impl Ledger {
    pub(super) fn new(limits: &Limits) -> Self {
        let now = Instant::now();
        let joins = TokenBucket::new(limits.join_per_second, limits.join_burst, now);
        let log = TokenBucket::new(REFUSALS_LOGGED_PER_SECOND, REFUSALS_LOGGED_BURST, now);
        Self {
            counts: Mutex::default(),
            joins: Mutex::new(joins),
            log: Mutex::new(log),
        }
    }

    pub(super) fn total(&self) -> usize {
        lock(&self.counts).total
    }

    pub(super) fn take_join(&self) -> bool {
        lock(&self.joins).take(Instant::now())
    }

    /// Whether a refusal may still be logged above debug level.
    pub(super) fn may_log(&self) -> bool {
        lock(&self.log).take(Instant::now())
    }

    /// Whether a connection from `ip` would be turned away whoever it is.
    pub(super) fn is_full_for(&self, limits: &Limits, ip: IpAddr) -> Option<LimitHit> {
        let counts = lock(&self.counts);
        if counts.total >= limits.connections_max {
            return Some(LimitHit::Total);
        }
        let of_address = counts.addresses.get(&network(ip)).copied();
        (of_address.unwrap_or(0) >= limits.per_address_max).then_some(LimitHit::Address)
    }

    /// Enters a connection; it is counted until the entry is dropped.
    pub(super) fn enter(
        self: &Arc<Self>,
        limits: &Limits,
        ip: IpAddr,
        peer: PeerId,
        purpose: Purpose,
    ) -> Result<Entry, LimitHit> {
        if let Some(hit) = self.is_full_for(limits, ip) {
            return Err(hit);
        }
        let mut counts = lock(&self.counts);
        let of_peer = counts.peers.entry((peer, purpose)).or_default();
        if *of_peer >= limits.per_peer_max(purpose) {
            return Err(LimitHit::Peer);
        }
        *of_peer += 1;
        let ip = network(ip);
        *counts.addresses.entry(ip).or_default() += 1;
        counts.total += 1;
        Ok(Entry {
            ledger: Arc::clone(self),
            ip,
            peer: (peer, purpose),
        })
    }
}

/// A counted connection.
#[derive(Debug)]
pub(super) struct Entry {
    ledger: Arc<Ledger>,
    ip: IpAddr,
    peer: (PeerId, Purpose),
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut counts = lock(&self.ledger.counts);
        counts.total -= 1;
        decrement(&mut counts.addresses, self.ip);
        decrement(&mut counts.peers, self.peer);
    }
}

fn decrement<K: Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// One IPv6 customer has a whole /64.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let bits = v6.to_bits() & !u128::from(u64::MAX);
            Ipv6Addr::from_bits(bits).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(limits: &Limits) -> Arc<Ledger> {
        Arc::new(Ledger::new(limits))
    }

    #[tokio::test]
    async fn each_limit_is_met_on_its_own_and_freed_by_dropping_the_entry() {
        let limits = Limits {
            connections_max: 4,
            per_address_max: 3,
            prompt_per_peer_max: 2,
            ..Limits::default()
        };
        let ledger = ledger(&limits);
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        let enter = |ip, peer| ledger.enter(&limits, ip, PeerId([peer; 32]), Purpose::Prompt);
        let first = enter(here, 1).unwrap();
        let _second = enter("::ffff:192.0.2.1".parse().unwrap(), 1).unwrap();
        assert_eq!(enter(here, 1).unwrap_err(), LimitHit::Peer);
        let _third = enter(here, 2).unwrap();
        assert_eq!(enter(here, 3).unwrap_err(), LimitHit::Address);
        let _fourth = enter("2001:db8::1".parse().unwrap(), 3).unwrap();
        let elsewhere = "2001:db8:1::1".parse().unwrap();
        assert_eq!(enter(elsewhere, 4).unwrap_err(), LimitHit::Total);
        drop(first);
        assert_eq!(ledger.total(), 3);
        let _again = enter(elsewhere, 4).unwrap();
    }

    #[tokio::test]
    async fn an_ipv6_network_counts_as_one_address() {
        let limits = Limits {
            per_address_max: 1,
            ..Limits::default()
        };
        let ledger = ledger(&limits);
        let enter = |ip: &str, peer| {
            let ip = ip.parse().unwrap();
            ledger.enter(&limits, ip, PeerId([peer; 32]), Purpose::Prompt)
        };
        let _first = enter("2001:db8::1", 1).unwrap();
        assert_eq!(enter("2001:db8::2", 2).unwrap_err(), LimitHit::Address);
        let _other = enter("2001:db8:0:1::1", 3).unwrap();
    }

    #[tokio::test]
    async fn a_bucket_allows_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(2, 3, start);
        let taken = (0..10).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 3);
        let later = start + Duration::from_millis(1_600);
        let taken = (0..10).filter(|_| bucket.take(later)).count();
        assert_eq!(taken, 3);
    }
}
