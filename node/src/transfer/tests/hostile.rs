//! Senders that lie: each lie has its name, and nothing of it reaches the disk or another's transfer.

use std::time::Duration;

use super::super::receive::Violation;
use super::super::stream::{ChunkHeader, StreamHeader};
use super::*;

const CHUNK: u64 = 4_096;
const LEN: usize = 10 * 4_096 + 100;

struct Victim {
    node: Node,
    sending: Sending,
    content: Vec<u8>,
}

impl Victim {
    async fn new() -> Self {
        Self::with(small_tuning(CHUNK)).await
    }

    async fn with(tuning: Tuning) -> Self {
        let node = Node::lossy(&LossyStorage::new(), tuning);
        let content = random_bytes(LEN, 1);
        let sending = Sending::new("f", 1, Source::Memory(content.clone().into()), CHUNK);
        node.receiver
            .prepare(sending.transfer(), PEER, sending.offer.clone(), 1, NOW)
            .await
            .unwrap();
        Self {
            node,
            sending,
            content,
        }
    }

    fn chunk(&self, index: u64) -> (ChunkHeader, Vec<u8>) {
        let layout = Layout::with_chunk_bytes(LEN as u64, CHUNK);
        let start = usize::try_from(layout.offset(index)).unwrap();
        let data = self.content[start..start + layout.chunk_len(index)].to_vec();
        let header = ChunkHeader {
            index,
            len: u32::try_from(data.len()).unwrap(),
            value: layout.value(index, &data),
        };
        (header, data)
    }

    async fn receive(&self, chunks: &[(ChunkHeader, Vec<u8>)]) -> Result<(), ReceiveError> {
        let mut bytes = Vec::new();
        for (header, data) in chunks {
            bytes.extend_from_slice(&header.to_bytes());
            bytes.extend_from_slice(data);
        }
        self.receive_bytes(1, bytes).await
    }

    async fn receive_bytes(&self, attempt: u32, bytes: Vec<u8>) -> Result<(), ReceiveError> {
        let (mut sink, stream) = pipe(None);
        let transfer = self.sending.transfer();
        let send = async {
            let header = StreamHeader { transfer, attempt }.to_bytes();
            // A receiver that refuses stops reading: that is no failure of this test.
            let _ = sink.write_all(&mut [header.to_vec().into(), bytes.into()]).await;
            let _ = sink.finish().await;
        };
        let receive = async {
            let (header, mut pieces) = Pieces::open(stream).await.unwrap().unwrap();
            self.node
                .receiver
                .receive(header.transfer, PEER, header.attempt, &mut pieces)
                .await
        };
        tokio::join!(send, receive).1
    }

    async fn violates(&self, chunks: &[(ChunkHeader, Vec<u8>)], expected: Violation) {
        match self.receive(chunks).await {
            Err(ReceiveError::Violation(found)) => assert_eq!(found, expected),
            other => panic!("expected {expected:?}, found {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_false_digest_is_named_and_its_chunk_is_not_claimed() {
    let victim = Victim::new().await;
    let (header, mut data) = victim.chunk(3);
    data[100] ^= 1;
    let chunks = [victim.chunk(0), (header, data)];
    victim.violates(&chunks, Violation::ChunkDigestMismatch(3)).await;
    let durable = victim.node.receiver.durable(victim.sending.transfer()).unwrap();
    assert!(!durable.contains(3));
    let fault = ReceiveError::Violation(Violation::ChunkDigestMismatch(3)).fault();
    assert_eq!(fault, Some(Fault::DigestMismatch));
}

#[tokio::test]
async fn a_false_digest_ends_a_stream_that_stays_open_without_waiting_for_any_timer() {
    let tuning = Tuning {
        // Nothing that is done now and then is done before this test has failed.
        sync_interval: Duration::from_secs(24 * 3600),
        ..small_tuning(CHUNK)
    };
    let victim = Victim::with(tuning).await;
    let transfer = victim.sending.transfer();
    let (mut sink, stream) = pipe(None);
    let receive = async {
        let (_, mut pieces) = Pieces::open(stream).await.unwrap().unwrap();
        victim.node.receiver.receive(transfer, PEER, 1, &mut pieces).await
    };
    let send = async {
        let (header, mut data) = victim.chunk(3);
        data[100] ^= 1;
        let start = StreamHeader { transfer, attempt: 1 }.to_bytes().to_vec();
        let mut pieces = [start.into(), header.to_bytes().to_vec().into(), data.into()];
        sink.write_all(&mut pieces).await.unwrap();
        // The sender says nothing more, and does not go away either.
        std::future::pending::<()>().await;
    };
    let received = async {
        tokio::select! {
            received = receive => received,
            () = send => unreachable!("it never ends"),
        }
    };
    let received = tokio::time::timeout(Duration::from_secs(60), received).await;
    match received.expect("the stream was ended") {
        Err(ReceiveError::Violation(found)) => assert_eq!(found, Violation::ChunkDigestMismatch(3)),
        other => panic!("not a violation: {other:?}"),
    }
}

#[tokio::test]
async fn an_attempt_has_one_stream_at_a_time() {
    let victim = Victim::new().await;
    let transfer = victim.sending.transfer();
    let (mut sink, stream) = pipe(None);
    let start = StreamHeader { transfer, attempt: 1 }.to_bytes().to_vec();
    sink.write_all(&mut [start.into()]).await.unwrap();
    let (_, mut pieces) = Pieces::open(stream).await.unwrap().unwrap();
    let mut first = Box::pin(victim.node.receiver.receive(transfer, PEER, 1, &mut pieces));
    assert!(futures::poll!(first.as_mut()).is_pending());
    let second = victim.receive(&[victim.chunk(0)]).await;
    assert!(matches!(second, Err(ReceiveError::NotOpen)), "{second:?}");
    assert_eq!(victim.node.receiver.durable(transfer).unwrap().count(), 0);
    // Another attempt's stream does not wait for the end of this one.
    victim.node.receiver.expect(transfer, PEER, Some(2)).unwrap();
    let (mut other, stream) = pipe(None);
    let start = StreamHeader { transfer, attempt: 2 }.to_bytes().to_vec();
    other.write_all(&mut [start.into()]).await.unwrap();
    other.finish().await.unwrap();
    let (_, mut pieces) = Pieces::open(stream).await.unwrap().unwrap();
    victim
        .node
        .receiver
        .receive(transfer, PEER, 2, &mut pieces)
        .await
        .unwrap();
    let ended = first.await;
    assert!(matches!(ended, Err(ReceiveError::NotOpen)), "{ended:?}");
}

#[tokio::test]
async fn headers_that_contradict_the_offer_are_violations() {
    let victim = Victim::new().await;
    let (header, data) = victim.chunk(2);
    let out_of_range = ChunkHeader { index: 11, ..header };
    victim
        .violates(&[(out_of_range, data.clone())], Violation::ChunkOutOfRange(11))
        .await;
    let huge = ChunkHeader {
        index: u64::MAX,
        ..header
    };
    victim
        .violates(&[(huge, data.clone())], Violation::ChunkOutOfRange(u64::MAX))
        .await;
    for len in [0, 4_095, 4_097, u32::MAX] {
        let wrong = ChunkHeader { len, ..header };
        victim
            .violates(&[(wrong, data.clone())], Violation::ChunkLength(2))
            .await;
    }
    let long_tail = ChunkHeader { index: 10, ..header };
    victim
        .violates(&[(long_tail, data)], Violation::ChunkLength(10))
        .await;
    let repeated = [victim.chunk(5), victim.chunk(5)];
    victim.violates(&repeated, Violation::ChunkRepeated(5)).await;
}

#[tokio::test]
async fn a_stream_that_ends_within_a_chunk_is_a_violation_and_its_whole_chunks_count() {
    let victim = Victim::new().await;
    let (first, data) = victim.chunk(0);
    let mut bytes = [first.to_bytes().to_vec(), data].concat();
    bytes.extend_from_slice(&victim.chunk(1).0.to_bytes()[..20]);
    let result = victim.receive_bytes(1, bytes).await;
    assert!(
        matches!(result, Err(ReceiveError::Violation(Violation::Truncated))),
        "{result:?}"
    );
    let durable = victim.node.receiver.durable(victim.sending.transfer()).unwrap();
    assert_eq!(durable.count(), 1);
}

#[tokio::test]
async fn a_false_or_early_end_is_refused_and_nothing_becomes_visible() {
    let victim = Victim::new().await;
    let transfer = victim.sending.transfer();
    victim.receive(&[victim.chunk(0)]).await.unwrap();
    let early = victim.node.receiver.seal(transfer, PEER, [0; 32], NOW).await;
    assert!(
        matches!(early, Err(ReceiveError::Violation(Violation::Incomplete(10)))),
        "{early:?}"
    );
    let offer = victim.sending.offer.clone();
    victim
        .node
        .receiver
        .prepare(transfer, PEER, offer, 1, NOW)
        .await
        .unwrap();
    let rest: Vec<_> = (1..11).map(|index| victim.chunk(index)).collect();
    victim.receive(&rest).await.unwrap();
    let wrong = victim
        .node
        .receiver
        .seal(transfer, PEER, [0; 32], NOW)
        .await
        .unwrap_err();
    assert_eq!(wrong.fault(), Some(Fault::DigestMismatch));
    victim.node.receiver.discard(transfer, PEER).await.unwrap();
    for folder in ["inbox/alpha", "partial"] {
        assert_eq!(victim.node.storage.list(&path(folder), 10).unwrap(), Vec::new());
    }
}

#[tokio::test]
async fn streams_of_earlier_attempts_and_of_unknown_transfers_bring_nothing() {
    let victim = Victim::new().await;
    let transfer = victim.sending.transfer();
    let offer = victim.sending.offer.clone();
    victim
        .node
        .receiver
        .prepare(transfer, PEER, offer, 2, NOW)
        .await
        .unwrap();
    let late = victim.receive(&[victim.chunk(0)]).await;
    assert!(matches!(late, Err(ReceiveError::NotOpen)), "{late:?}");
    assert_eq!(victim.node.receiver.durable(transfer).unwrap().count(), 0);
    let (_sink, stream) = pipe(None);
    let mut pieces = Pieces::headless(stream);
    let unknown = victim
        .node
        .receiver
        .receive(TransferId([9; 16]), PEER, 1, &mut pieces)
        .await;
    assert!(matches!(unknown, Err(ReceiveError::NotOpen)), "{unknown:?}");
}

#[tokio::test]
async fn nobody_can_touch_the_transfer_of_another_peer() {
    let victim = Victim::new().await;
    let transfer = victim.sending.transfer();
    let thief = PeerId([66; 32]);
    let offer = victim.sending.offer.clone();
    let claimed = victim
        .node
        .receiver
        .prepare(transfer, thief, offer.clone(), 9, NOW)
        .await;
    assert!(
        matches!(claimed, Err(ReceiveError::Violation(Violation::IdInUse))),
        "{claimed:?}"
    );
    victim.node.receiver.discard(transfer, thief).await.unwrap();
    let sealed = victim.node.receiver.seal(transfer, thief, [0; 32], NOW).await;
    assert!(matches!(sealed, Err(ReceiveError::NotOpen)), "{sealed:?}");
    let changed = Offer {
        size: offer.size + 1,
        ..offer
    };
    let other = victim
        .node
        .receiver
        .prepare(transfer, PEER, changed, 9, NOW)
        .await;
    assert!(matches!(other, Err(ReceiveError::OfferChanged)), "{other:?}");
    victim.receive(&[victim.chunk(0)]).await.unwrap();
}

#[tokio::test]
async fn a_receiver_that_claims_too_much_is_refused_by_the_sender() {
    let victim = Victim::new().await;
    let (mut sink, _stream) = pipe(None);
    let have: ChunkRanges = std::iter::once(0..12).collect();
    let sender = Sender::new(workers(), BufferPool::new(4_096));
    let result = sender.send(&victim.sending.outgoing, 1, &have, &mut sink).await;
    assert!(matches!(result, Err(SendError::FalseClaim)), "{result:?}");
}

#[tokio::test]
async fn chunks_in_any_order_make_the_same_file() {
    let victim = Victim::new().await;
    let order = [7, 2, 10, 0, 9, 1, 5, 3, 8, 6, 4];
    let chunks: Vec<_> = order.iter().map(|index| victim.chunk(*index)).collect();
    victim.receive(&chunks[..6]).await.unwrap();
    victim.receive(&chunks[6..]).await.unwrap();
    let root = *blake3::hash(&victim.content).as_bytes();
    let sealed = victim
        .node
        .receiver
        .seal(victim.sending.transfer(), PEER, root, NOW)
        .await
        .unwrap();
    assert_eq!(victim.node.read(&sealed.place).unwrap(), victim.content);
}
