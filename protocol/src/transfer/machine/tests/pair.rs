//! A sender and a receiver, with everything between them and below them that can be lost, late or restarted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::transfer::limits::FAILURES_MAX;

/// What survives a restart of the receiver.
#[derive(Default)]
struct Disk {
    durable: ChunkRanges,
    delivered: Option<[u8; 32]>,
    deliveries: u32,
    /// The most that was ever durable; a report of it may still be on its way after a discard.
    peak_bytes: u64,
}

struct World {
    now: Now,
    sides: [Transfers; 2],
    offer: Offer,
    connected: bool,
    /// Frames on their way to the side.
    frames: [VecDeque<Frame>; 2],
    /// The attempt that the sender's bytes belong to, and the chunks still to be sent.
    sending: Option<(u32, VecDeque<u64>)>,
    /// Chunks that arrived and are not durable yet.
    buffered: BTreeSet<u64>,
    expected: Option<u32>,
    jobs: Vec<Job>,
    disk: Disk,
    sent: BTreeMap<u64, u32>,
    ends: [Vec<Result<Ended, TransferError>>; 2],
    restarts: u8,
    /// What the faults may still do before giving up would be right.
    breaks: u32,
    millis: u64,
}

const SENDER: usize = 0;
const RECEIVER: usize = 1;

impl World {
    fn new(chunks: u64) -> Self {
        let mut world = Self {
            now: at(0),
            sides: [Transfers::new(random(1)), Transfers::new(random(2))],
            offer: offer(chunks.saturating_mul(CHUNK_BYTES).saturating_sub(1)),
            connected: false,
            frames: [VecDeque::new(), VecDeque::new()],
            sending: None,
            buffered: BTreeSet::new(),
            expected: None,
            jobs: Vec::new(),
            disk: Disk::default(),
            sent: BTreeMap::new(),
            ends: [Vec::new(), Vec::new()],
            restarts: 0,
            breaks: FAILURES_MAX - 1,
            millis: 100_000,
        };
        world.start_sending(false);
        world
    }

    fn start_sending(&mut self, resumed: bool) {
        let offer = self.offer.clone();
        let send = Input::Send {
            transfer: ID,
            peer: peer(RECEIVER),
            offer,
            deadline: None,
            resumed,
        };
        self.input(SENDER, send);
    }

    fn input(&mut self, side: usize, input: Input) {
        self.sides[side]
            .handle_input(self.now, input)
            .expect("honest peers break no rule");
        self.drain(side);
    }

    fn drain(&mut self, side: usize) {
        while let Some(output) = self.sides[side].poll_transmit() {
            match output {
                Output::Frame { frame, .. } => {
                    assert!(self.connected);
                    self.frames[1 - side].push_back(frame);
                }
                Output::Want { .. } | Output::Unwant { .. } => {}
                Output::Payload(PayloadOrder::Start { attempt, have, .. }) => {
                    let chunks = have.missing(self.offer.chunks()).into_iter().flatten().collect();
                    self.sending = Some((attempt, chunks));
                }
                Output::Payload(PayloadOrder::Stop { .. }) => self.sending = None,
                Output::Payload(PayloadOrder::Expect { attempt, .. }) => self.expected = Some(attempt),
                Output::Payload(PayloadOrder::Forget { .. }) => self.expected = None,
                Output::Payload(PayloadOrder::Keep { .. }) => {}
            }
        }
        while let Some(event) = self.sides[side].poll_event() {
            match event {
                TransferEvent::Progress { durable_bytes, .. }
                | TransferEvent::Started {
                    resumed_bytes: durable_bytes,
                    ..
                } => {
                    assert!(
                        durable_bytes <= self.disk.peak_bytes,
                        "claimed more than is durable"
                    );
                }
                TransferEvent::Ended { result, .. } => {
                    if result.is_ok() {
                        assert_eq!(
                            self.disk.delivered,
                            Some(ROOT),
                            "only what is sealed is delivered"
                        );
                    }
                    self.ends[side].push(result);
                }
                TransferEvent::Offered { .. } | TransferEvent::Suspended { .. } => {}
            }
        }
        while let Some(job) = self.sides[side].poll_job() {
            assert_eq!(side, RECEIVER);
            self.jobs.push(job);
        }
    }

    fn connect(&mut self) {
        if !self.connected {
            self.connected = true;
            self.input(SENDER, Input::PeerUp { peer: peer(RECEIVER) });
            self.input(RECEIVER, Input::PeerUp { peer: peer(SENDER) });
        }
    }

    fn disconnect(&mut self) {
        if self.connected {
            self.connected = false;
            self.frames = [VecDeque::new(), VecDeque::new()];
            self.input(SENDER, Input::PeerDown { peer: peer(RECEIVER) });
            self.input(RECEIVER, Input::PeerDown { peer: peer(SENDER) });
        }
    }

    /// Another connection takes over; what was on its way is lost.
    fn move_connection(&mut self) {
        if self.connected {
            self.frames = [VecDeque::new(), VecDeque::new()];
            self.input(SENDER, Input::PeerUp { peer: peer(RECEIVER) });
            self.input(RECEIVER, Input::PeerUp { peer: peer(SENDER) });
        }
    }

    fn deliver(&mut self, side: usize) -> bool {
        let Some(frame) = self.frames[side].pop_front() else {
            return false;
        };
        let frame = Frame::from_bytes(&frame.to_bytes()).unwrap().unwrap();
        self.input(
            side,
            Input::Frame {
                peer: peer(1 - side),
                frame,
            },
        );
        true
    }

    fn send_chunk(&mut self) -> bool {
        let Some((attempt, chunks)) = &mut self.sending else {
            return false;
        };
        let attempt = *attempt;
        if let Some(chunk) = chunks.pop_front() {
            if self.expected == Some(attempt) {
                self.buffered.insert(chunk);
                *self.sent.entry(chunk).or_default() += 1;
            }
        } else {
            self.sending = None;
            self.input(
                SENDER,
                Input::PayloadSent {
                    transfer: ID,
                    attempt,
                    root: ROOT,
                },
            );
        }
        true
    }

    fn sync(&mut self) -> bool {
        if self.buffered.is_empty() {
            return false;
        }
        for chunk in core::mem::take(&mut self.buffered) {
            self.disk.durable.insert(chunk..chunk + 1);
        }
        let have = self.disk.durable.clone();
        self.disk.peak_bytes = self.disk.peak_bytes.max(have.bytes(self.offer.size));
        self.input(
            RECEIVER,
            Input::ChunksDurable {
                peer: peer(SENDER),
                transfer: ID,
                have,
            },
        );
        true
    }

    fn work(&mut self, which: usize) -> bool {
        if self.jobs.is_empty() {
            return false;
        }
        let job = self.jobs.remove(which % self.jobs.len());
        let (peer, transfer) = (peer(SENDER), ID);
        let result = match job {
            Job::Prepare { .. } => {
                let result = Ok(match self.disk.delivered {
                    Some(root) => Prepared::Delivered { root },
                    None => Prepared::Ready {
                        have: self.disk.durable.clone(),
                    },
                });
                JobResult::Prepared {
                    peer,
                    transfer,
                    result,
                }
            }
            Job::Seal { root, .. } => {
                assert_eq!(
                    self.disk.durable.count(),
                    self.offer.chunks(),
                    "sealed before everything was durable"
                );
                assert_eq!(root, ROOT);
                self.disk.delivered = Some(root);
                self.disk.deliveries += 1;
                JobResult::Sealed {
                    peer,
                    transfer,
                    result: Ok(()),
                }
            }
            Job::Discard { .. } => {
                if self.disk.delivered.is_none() {
                    self.disk.durable = ChunkRanges::new();
                    self.buffered.clear();
                }
                JobResult::Discarded { peer, transfer }
            }
        };
        self.input(RECEIVER, Input::JobDone(result));
        true
    }

    fn restart(&mut self, side: usize) {
        let up = self.connected;
        self.disconnect();
        self.restarts += 1;
        self.sides[side] = Transfers::new(random(self.restarts));
        if side == SENDER {
            self.sending = None;
            // The journal of the sender knows what has ended.
            if self.ends[SENDER].is_empty() {
                self.start_sending(true);
            }
        } else {
            self.buffered.clear();
            self.jobs.clear();
            self.expected = None;
        }
        if up {
            self.connect();
        }
    }

    fn break_stream(&mut self, side: usize) {
        let (transfer, fault) = (ID, None);
        if let (SENDER, Some((attempt, _))) = (side, &self.sending) {
            let attempt = *attempt;
            self.sending = None;
            let peer = peer(RECEIVER);
            self.input(
                SENDER,
                Input::PayloadFailed {
                    peer,
                    transfer,
                    role: Role::Sender,
                    attempt,
                    fault,
                },
            );
        }
        if let (RECEIVER, Some(attempt)) = (side, self.expected) {
            self.buffered.clear();
            let peer = peer(SENDER);
            self.input(
                RECEIVER,
                Input::PayloadFailed {
                    peer,
                    transfer,
                    role: Role::Receiver,
                    attempt,
                    fault,
                },
            );
        }
    }

    fn advance(&mut self, millis: u64) {
        self.now.mono = self.now.mono.after(Duration::from_millis(millis));
        for side in 0..2 {
            self.sides[side].handle_timeout(self.now);
            self.drain(side);
        }
    }

    fn act(&mut self, (what, how): (u8, u8), cancels: bool) {
        let side = usize::from(how % 2);
        match what % 24 {
            0..=6 => drop(self.deliver(side)),
            7..=11 => drop(self.send_chunk()),
            12..=13 => drop(self.sync()),
            14..=15 => drop(self.work(how.into())),
            16 => self.connect(),
            17 => self.disconnect(),
            18 => self.move_connection(),
            19 if how > 127 => self.restart(side),
            20 if self.breaks > 0 => {
                self.breaks -= 1;
                self.break_stream(side);
            }
            21 if cancels && how > 200 => self.input(side, Input::Cancel { transfer: ID }),
            _ => {
                let millis = (u64::from(how) * 20).min(self.millis);
                self.millis -= millis;
                self.advance(millis);
            }
        }
    }

    /// Everything works again, until both sides have nothing left to do.
    fn come_to_rest(&mut self) {
        self.connect();
        let end = self.now.mono.after(Duration::from_secs(900));
        while self.now.mono < end {
            let moved = [
                self.deliver(SENDER),
                self.deliver(RECEIVER),
                self.send_chunk(),
                self.sync(),
                self.work(0),
            ];
            if moved == [false; 5] {
                if self.sides.iter().all(|side| side.transfers().next().is_none()) {
                    break;
                }
                self.advance(500);
            }
        }
        for side in &self.sides {
            assert_eq!(side.transfers().collect::<Vec<_>>(), [], "every transfer ends");
            assert_eq!(side.poll_timeout(), None);
        }
    }
}

#[test]
fn every_size_arrives_and_every_chunk_is_sent_once() {
    for chunks in [0, 1, 2, 3, 64] {
        let mut world = World::new(chunks);
        world.come_to_rest();
        assert_eq!(
            world.ends,
            [[Ok(Ended { root: ROOT })], [Ok(Ended { root: ROOT })]]
        );
        assert_eq!(
            (world.sent.len() as u64, world.sent.values().all(|n| *n == 1)),
            (chunks, true)
        );
        assert_eq!(world.now, at(0), "nothing waits for a timer");
    }
}

#[test]
fn what_is_durable_is_not_sent_again_after_a_restart() {
    for side in [SENDER, RECEIVER] {
        let mut world = World::new(10);
        world.connect();
        while world.sent.len() < 5 {
            let _ = [
                world.deliver(SENDER),
                world.deliver(RECEIVER),
                world.work(0),
                world.send_chunk(),
                world.sync(),
            ];
        }
        world.restart(side);
        world.come_to_rest();
        assert_eq!(world.ends[SENDER], [Ok(Ended { root: ROOT })]);
        assert!(world.sent.values().all(|n| *n == 1), "{:?}", world.sent);
    }
}

proptest! {
    #[test]
    fn whatever_is_lost_both_sides_end_and_the_payload_is_delivered_once(
        chunks in 0u64..12,
        actions in prop::collection::vec(any::<(u8, u8)>(), 0..200),
    ) {
        let mut world = World::new(chunks);
        for action in actions {
            world.act(action, false);
        }
        world.come_to_rest();
        prop_assert_eq!(world.disk.deliveries, 1);
        prop_assert_eq!(&world.ends[SENDER], &[Ok(Ended { root: ROOT })]);
        prop_assert!(world.ends[RECEIVER].len() <= 1);
    }

    #[test]
    fn with_cancels_both_sides_end_and_agree_unless_it_was_sealed(
        chunks in 0u64..12,
        actions in prop::collection::vec(any::<(u8, u8)>(), 0..200),
    ) {
        let mut world = World::new(chunks);
        for action in actions {
            world.act(action, true);
        }
        world.come_to_rest();
        prop_assert_eq!(world.ends[SENDER].len(), 1);
        prop_assert!(world.ends[RECEIVER].iter().filter(|end| end.is_ok()).count() <= 1);
        prop_assert!(world.disk.deliveries <= 1);
        if world.ends[SENDER][0].is_ok() {
            prop_assert_eq!(world.disk.deliveries, 1);
        }
    }
}
