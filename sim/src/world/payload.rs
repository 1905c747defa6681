//! Payloads: bytes that are counted, not carried.
//!
//! A stream puts one chunk after another on the link, which transfers between the same two peers share; a chunk that has
//! arrived goes to the receiver's disk. Whatever becomes of a byte is in the [`Ledger`].

use std::sync::Arc;
use std::time::Duration;

use hyperfabric_protocol::TransferId;
use hyperfabric_protocol::fabric::Input;
use hyperfabric_protocol::transfer::{CHUNK_BYTES, ChunkRanges, PayloadOrder, Role};

use super::{Happening, PeerIndex, World};
use crate::conditions::IDLE_TIMEOUT;

/// How long a stream waits before it looks whether the way is open again.
const STALLED: Duration = Duration::from_secs(1);

/// What became of the payload bytes that were put on links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Sent.
    pub sent: u64,
    /// Of these, received by a transfer that expected them.
    pub received: u64,
    /// Received in an attempt that had been replaced or ended.
    pub void: u64,
    /// Lost with the connection.
    pub lost: u64,
    /// On their way.
    pub in_flight: u64,
}

/// The stream of an attempt.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    from: PeerIndex,
    from_start: u32,
    to: PeerIndex,
    transfer: TransferId,
    attempt: u32,
    missing: Arc<Vec<u64>>,
    at: usize,
    size: u64,
    stalled: Duration,
}

impl Stream {
    fn chunk_bytes(&self) -> u64 {
        let chunk = self.missing.get(self.at).copied().unwrap_or(0);
        self.size.saturating_sub(chunk * CHUNK_BYTES).min(CHUNK_BYTES)
    }
}

/// Returns the digest that the payload of a transfer has in every world.
#[must_use]
pub fn payload_root(transfer: TransferId) -> [u8; 32] {
    let mut root = [0; 32];
    root[..16].copy_from_slice(transfer.as_bytes());
    root
}

impl World {
    pub(super) fn payload(&mut self, index: PeerIndex, order: PayloadOrder) {
        let peer_state = &mut self.peers[index.0];
        match order {
            PayloadOrder::Start {
                peer,
                transfer,
                attempt,
                have,
            } => {
                peer_state.sending.insert(transfer, attempt);
                let from_start = peer_state.start;
                let Some(to) = self.index.get(&peer).copied() else {
                    return;
                };
                let size = self.size_of(index, transfer);
                let missing: Vec<u64> = have
                    .missing(size.div_ceil(CHUNK_BYTES))
                    .into_iter()
                    .flatten()
                    .collect();
                let stream = Stream {
                    from: index,
                    from_start,
                    to,
                    transfer,
                    attempt,
                    missing: Arc::new(missing),
                    at: 0,
                    size,
                    stalled: Duration::ZERO,
                };
                self.next_chunk(stream);
            }
            PayloadOrder::Stop { transfer } => drop(peer_state.sending.remove(&transfer)),
            PayloadOrder::Expect {
                peer,
                transfer,
                attempt,
                offer,
            } => drop(peer_state.expecting.insert((peer, transfer), (attempt, offer))),
            PayloadOrder::Forget { peer, transfer } => {
                drop(peer_state.expecting.remove(&(peer, transfer)));
            }
            // The disks of the world do not fill up.
            PayloadOrder::Keep { .. } => {}
        }
    }

    fn size_of(&self, index: PeerIndex, transfer: TransferId) -> u64 {
        let known = self
            .running(index)
            .and_then(|f| f.transfers().transfers().find(|t| t.of.transfer == transfer));
        known.map_or(0, |info| info.offer.size)
    }

    /// Puts the stream's next chunk on the link, or ends the stream.
    fn next_chunk(&mut self, stream: Stream) {
        if stream.at < stream.missing.len() {
            let bytes = stream.chunk_bytes();
            self.ledger.sent += bytes;
            self.ledger.in_flight += bytes;
            let class = self.network.class(stream.from, stream.to);
            let conditions = self.network.conditions(class);
            // The link is shared by all streams between the two, in turns.
            let sharing = self.peers[stream.from.0].sending.len().max(1);
            let time = conditions.transmission(bytes * sharing as u64);
            self.schedule(self.now.after(time), Happening::Chunk(Box::new(stream)));
        } else {
            let input = Input::PayloadSent {
                transfer: stream.transfer,
                attempt: stream.attempt,
                root: payload_root(stream.transfer),
            };
            if self.peers[stream.from.0].start == stream.from_start {
                self.schedule_input(self.now, stream.from, input);
            }
        }
    }

    /// A chunk is through.
    pub(super) fn chunk(&mut self, mut stream: Stream) {
        let bytes = stream.chunk_bytes();
        self.trace.event(self.now, 8, stream.from.0);
        self.trace
            .word(stream.missing.get(stream.at).copied().unwrap_or(0));
        let sender = &self.peers[stream.from.0];
        let goes_on = sender.start == stream.from_start
            && sender.fabric.is_some()
            && sender.sending.get(&stream.transfer) == Some(&stream.attempt);
        if !goes_on {
            self.ledger.in_flight -= bytes;
            self.ledger.lost += bytes;
            return;
        }
        let open = self.network.passes(stream.from, stream.to)
            && self.network.passes(stream.to, stream.from)
            && self.peers[stream.to.0].fabric.is_some();
        if !open && stream.stalled < IDLE_TIMEOUT {
            stream.stalled += STALLED;
            return self.schedule(self.now.after(STALLED), Happening::Chunk(Box::new(stream)));
        }
        self.ledger.in_flight -= bytes;
        if !open || !self.are_connected(stream.from, stream.to) {
            self.ledger.lost += bytes;
            return self.stream_failed(&stream);
        }
        stream.stalled = Duration::ZERO;
        self.receive(&stream, bytes);
        stream.at += 1;
        self.next_chunk(stream);
    }

    fn receive(&mut self, stream: &Stream, bytes: u64) {
        let sender = self.peers[stream.from.0].id;
        let expected = self.peers[stream.to.0].expecting.get(&(sender, stream.transfer));
        if expected.is_some_and(|(attempt, _)| *attempt == stream.attempt) {
            self.ledger.received += bytes;
            let chunk = stream.missing[stream.at];
            self.store_chunk(stream.to, sender, stream.transfer, chunk);
        } else {
            self.ledger.void += bytes;
        }
    }

    fn stream_failed(&mut self, stream: &Stream) {
        let (from, to) = (stream.from, stream.to);
        let failed = |peer, role| Input::PayloadFailed {
            peer,
            transfer: stream.transfer,
            role,
            attempt: stream.attempt,
            fault: None,
        };
        let (sender, receiver) = (self.peers[from.0].id, self.peers[to.0].id);
        self.peers[from.0].sending.remove(&stream.transfer);
        self.schedule_input(self.now, from, failed(receiver, Role::Sender));
        if self.peers[to.0].fabric.is_some() {
            self.schedule_input(self.now, to, failed(sender, Role::Receiver));
        }
    }

    /// Returns every chunk that a receiver has of a transfer.
    #[must_use]
    pub fn received(&self, index: PeerIndex, from: PeerIndex, transfer: TransferId) -> Option<&ChunkRanges> {
        let key = (self.peers[from.0].id, transfer);
        self.peers[index.0]
            .disk
            .received
            .get(&key)
            .map(|received| &received.have)
    }
}
