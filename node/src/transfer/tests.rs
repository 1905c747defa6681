//! Whole transfers between a sender and a receiver over pipes in memory, and what the other test files share.

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use hyperfabric_protocol::cbor::Text;
use hyperfabric_protocol::transfer::{ChunkRanges, Fault, Offer};
use hyperfabric_protocol::types::{DataType, PacketPriority};
use hyperfabric_protocol::{PeerId, TransferId, UnixMillis};
use tokio::sync::mpsc;

use super::inbox::InboxPolicy;
use super::receive::{Parts, Prepared, ReceiveError, Receiver, Tuning};
use super::send::{Outgoing, SendError, Sender};
use super::source::{FileSource, Source};
use super::stream::{ChunkSink, ChunkStream, Pieces, StreamLost};
use super::{BufferPool, Layout, hash};
use crate::storage::{DiskStorage, LossyStorage, RelPath, Storage};
use crate::store::Store;
use crate::workers::WorkerPool;

mod crash;
mod failure;
mod hostile;

pub(super) const PEER: PeerId = PeerId([1; 32]);
const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

/// Bytes of a datagram's payload, the size of the pieces that a QUIC stream hands out.
const PIECE_BYTES: usize = 1_400;

pub(super) fn workers() -> WorkerPool {
    static POOL: OnceLock<WorkerPool> = OnceLock::new();
    POOL.get_or_init(|| WorkerPool::new(NonZeroUsize::new(2).unwrap()).unwrap())
        .clone()
}

/// A pipe in memory; it can be cut after a number of bytes.
pub(super) fn pipe(cut_after: Option<usize>) -> (PipeSink, PipeStream) {
    let (to, from) = mpsc::channel(8);
    let stream = PipeStream { from, rest: None };
    let sink = PipeSink {
        to: Some(to),
        left: cut_after,
    };
    (sink, stream)
}

pub(super) struct PipeSink {
    to: Option<mpsc::Sender<Option<Bytes>>>,
    left: Option<usize>,
}

pub(super) struct PipeStream {
    from: mpsc::Receiver<Option<Bytes>>,
    rest: Option<Bytes>,
}

fn lost() -> StreamLost {
    StreamLost(io::ErrorKind::ConnectionReset.into())
}

impl ChunkSink for PipeSink {
    async fn write_all(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamLost> {
        for piece in pieces {
            let mut piece = std::mem::take(piece);
            let cut = self.left.is_some_and(|left| left < piece.len());
            if let Some(left) = &mut self.left {
                piece.truncate(*left);
                *left -= piece.len();
            }
            let to = self.to.as_ref().ok_or_else(lost)?;
            to.send(Some(piece)).await.map_err(|_| lost())?;
            if cut {
                self.to = None;
                return Err(lost());
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), StreamLost> {
        let to = self.to.as_ref().ok_or_else(lost)?;
        to.send(None).await.map_err(|_| lost())
    }
}

impl ChunkStream for PipeStream {
    async fn read_batch(&mut self, batch: &mut [Bytes]) -> Result<usize, StreamLost> {
        if self.rest.is_none() {
            match self.from.recv().await {
                None => return Err(lost()),
                Some(None) => return Ok(0),
                Some(piece) => self.rest = piece,
            }
        }
        let mut filled = 0;
        if let Some(rest) = &mut self.rest {
            while filled < batch.len() && !rest.is_empty() {
                batch[filled] = rest.split_to(rest.len().min(PIECE_BYTES));
                filled += 1;
            }
        }
        if self.rest.as_ref().is_some_and(Bytes::is_empty) {
            self.rest = None;
        }
        Ok(filled)
    }
}

/// Bytes that are not the same at any two places of a chunk, and compressible by nobody.
pub(super) fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_be_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

pub(super) fn offer_of(name: &str, source: &Source) -> Offer {
    Offer {
        source: "alpha".parse().unwrap(),
        destination: "beta".parse().unwrap(),
        name: Text::truncating(name),
        kind: source.kind(),
        size: source.len(),
        data_type: DataType::Binary,
        priority: PacketPriority::Medium,
        modified: Some(UnixMillis(1_600_000_000_000)),
        mode: Some(0o640),
        sync: None,
    }
}

pub(super) fn small_tuning(chunk_bytes: u64) -> Tuning {
    Tuning {
        chunk_bytes,
        window_min: 2 * chunk_bytes,
        window_max: 4 * chunk_bytes,
        allocate_min: 3 * chunk_bytes,
        ..Tuning::default()
    }
}

/// A receiving node: what it keeps over a restart, and what it does not.
pub(super) struct Node {
    pub(super) receiver: Receiver,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) store: Store,
    /// What was reported as durable.
    pub(super) durable: Arc<Mutex<ChunkRanges>>,
}

impl Node {
    pub(super) fn start(
        storage: Arc<dyn Storage>,
        store: Store,
        tuning: Tuning,
        policy: InboxPolicy,
    ) -> Result<Self, ReceiveError> {
        let durable = Arc::new(Mutex::new(ChunkRanges::new()));
        let reported = Arc::clone(&durable);
        let receiver = Receiver::open(Parts {
            storage: Arc::clone(&storage),
            store: store.clone(),
            workers: workers(),
            buffers: BufferPool::new(usize::try_from(tuning.chunk_bytes).unwrap()),
            policy,
            tuning,
            on_durable: Arc::new(move |_, news| {
                let mut reported = reported.lock().unwrap();
                for range in news.added.ranges() {
                    reported.insert(range.clone());
                }
            }),
        })?;
        Ok(Self {
            receiver,
            storage,
            store,
            durable,
        })
    }

    pub(super) fn on_disk(folder: &Path, tuning: Tuning) -> Self {
        let storage = Arc::new(DiskStorage::open(folder).unwrap());
        let store = Store::open(&folder.join("state.redb"), 0).unwrap().store;
        Self::start(storage, store, tuning, InboxPolicy::default()).unwrap()
    }

    pub(super) fn lossy(storage: &LossyStorage, tuning: Tuning) -> Self {
        let policy = InboxPolicy {
            min_free_bytes: 0,
            ..InboxPolicy::default()
        };
        let journal = storage.clone();
        let store = Store::with_backend(move || Ok(journal.journal())).unwrap();
        Self::start(Arc::new(storage.clone()), store, tuning, policy).unwrap()
    }

    pub(super) fn read(&self, place: &RelPath) -> io::Result<Vec<u8>> {
        let file = self.storage.open(place, crate::storage::Access::Read)?;
        let mut bytes = vec![0; usize::try_from(file.size()?).unwrap()];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// A sending node with one transfer.
pub(super) struct Sending {
    pub(super) outgoing: Arc<Outgoing>,
    pub(super) offer: Offer,
    sender: Sender,
    attempts: u32,
}

/// What one attempt came to.
#[derive(Debug)]
pub(super) enum Outcome {
    Delivered { place: RelPath, already: bool },
    Lost,
    SendFailed(SendError),
    ReceiveFailed(ReceiveError),
}

impl Sending {
    pub(super) fn new(name: &str, number: u8, source: Source, chunk_bytes: u64) -> Self {
        let offer = offer_of(name, &source);
        let layout = Layout::with_chunk_bytes(source.len(), chunk_bytes);
        let outgoing = Outgoing::with_layout(TransferId([number; 16]), source, layout).unwrap();
        Self {
            outgoing: Arc::new(outgoing),
            offer,
            sender: Sender::new(workers(), BufferPool::new(usize::try_from(chunk_bytes).unwrap())),
            attempts: 0,
        }
    }

    pub(super) fn transfer(&self) -> TransferId {
        self.outgoing.transfer()
    }

    /// Offers, sends what is missing, closes.
    pub(super) async fn attempt(&mut self, node: &Node, cut_after: Option<usize>) -> Outcome {
        self.attempts += 1;
        let transfer = self.transfer();
        let prepared = node
            .receiver
            .prepare(transfer, PEER, self.offer.clone(), self.attempts, NOW)
            .await;
        let have = match prepared {
            Ok(Prepared::Ready { have }) => have,
            Ok(Prepared::AlreadyDelivered { place, .. }) => {
                return Outcome::Delivered { place, already: true };
            }
            Err(error) => return Outcome::ReceiveFailed(error),
        };
        let (mut sink, stream) = pipe(cut_after);
        let sending = async {
            let sent = self
                .sender
                .send(&self.outgoing, self.attempts, &have, &mut sink)
                .await;
            // Dropping the sink is how the other side learns of a sender that gave up.
            drop(sink);
            sent
        };
        let receiving = async {
            let Some((header, mut pieces)) = Pieces::open(stream).await? else {
                return Err(lost().into());
            };
            node.receiver
                .receive(header.transfer, PEER, header.attempt, &mut pieces)
                .await
        };
        let (sent, received) = tokio::join!(sending, receiving);
        match (sent, received) {
            (_, Err(error)) if error.fault().is_some() => Outcome::ReceiveFailed(error),
            (Err(error), _) if error.fault().is_some() => Outcome::SendFailed(error),
            (Ok(sent), Ok(())) => match node.receiver.seal(transfer, PEER, sent.root, NOW).await {
                Ok(sealed) => Outcome::Delivered {
                    place: sealed.place,
                    already: false,
                },
                Err(error) => Outcome::ReceiveFailed(error),
            },
            _ => Outcome::Lost,
        }
    }

    pub(super) async fn deliver(&mut self, node: &Node) -> RelPath {
        match self.attempt(node, None).await {
            Outcome::Delivered { place, .. } => place,
            other => panic!("not delivered: {other:?}"),
        }
    }
}

pub(super) fn file_source(folder: &Path, name: &str, content: &[u8]) -> Source {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    let file = std::fs::File::open(path).unwrap();
    Source::File(FileSource::new(file.into()).unwrap())
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

#[tokio::test]
async fn files_of_every_edge_size_arrive_as_they_are() {
    let mib = 1 << 20;
    let mut sizes = vec![0, 1, mib - 1, mib, mib + 1];
    for chunks in [2, 4, 8] {
        sizes.extend([
            (chunks - 1) * mib,
            chunks * mib - 1,
            chunks * mib,
            chunks * mib + 1,
        ]);
        sizes.push((chunks + 1) * mib);
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = Node::on_disk(to.path(), Tuning::default());
    for (number, size) in (0u8..).zip(sizes) {
        let content = random_bytes(size, u64::from(number));
        let name = format!("{size}-{number}.bin");
        let source = file_source(from.path(), &name, &content);
        let mut sending = Sending::new(&name, number, source, 1 << 20);
        let place = sending.deliver(&node).await;
        assert_eq!(place, path(&format!("inbox/alpha/{name}")));
        let found = std::fs::read(place.under(to.path())).unwrap();
        assert!(found == content, "size {size}");
        let again = sending.attempt(&node, None).await;
        assert!(
            matches!(again, Outcome::Delivered { already: true, .. }),
            "{again:?}"
        );
    }
    let left = node.storage.list(&path("partial"), 10).unwrap();
    assert_eq!(left, Vec::new());
}

#[tokio::test]
async fn bytes_in_memory_arrive_with_permissions_and_time() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let to = tempfile::tempdir().unwrap();
    let node = Node::on_disk(to.path(), small_tuning(4_096));
    let content = random_bytes(50_000, 1);
    let source = Source::Memory(content.clone().into());
    let place = Sending::new("m.bin", 1, source, 4_096).deliver(&node).await;
    let place = place.under(to.path());
    assert_eq!(std::fs::read(&place).unwrap(), content);
    let found = std::fs::metadata(&place).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o640);
    assert_eq!(found.mtime(), 1_600_000_000);
}

#[tokio::test]
async fn a_cut_transfer_goes_on_where_it_was_wherever_it_was_cut() {
    let chunk = 4_096;
    let content = random_bytes(40 * 4_096 + 17, 2);
    for cut in 0..55usize {
        let from = tempfile::tempdir().unwrap();
        let storage = LossyStorage::new();
        let node = Node::lossy(&storage, small_tuning(chunk));
        let source = file_source(from.path(), "f", &content);
        let mut sending = Sending::new("f", 1, source, chunk);
        let cut_after = cut * 3_001;
        let outcome = sending.attempt(&node, Some(cut_after)).await;
        assert!(matches!(outcome, Outcome::Lost), "{outcome:?}");
        let have = node.receiver.durable(sending.transfer());
        let before = sending.outgoing.sent_bytes();
        let place = sending.deliver(&node).await;
        assert_eq!(node.read(&place).unwrap(), content);
        // Whole chunks that had arrived were claimed, and are not sent again.
        let arrived = cut_after.saturating_sub(20) / (4_096 + 44);
        assert_eq!(have.unwrap_or_default().count(), arrived as u64, "cut {cut}");
        let again = sending.outgoing.sent_bytes() - before;
        assert_eq!(again, (content.len() - arrived * 4_096) as u64, "cut {cut}");
        assert_eq!(node.durable.lock().unwrap().count(), 41);
    }
}

#[tokio::test]
async fn a_sender_that_has_forgotten_the_values_reads_them_again() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(4_096));
    let content = random_bytes(30 * 4_096, 3);
    let source = || Source::Memory(content.clone().into());
    let mut first = Sending::new("f", 1, source(), 4_096);
    assert!(matches!(first.attempt(&node, Some(60_000)).await, Outcome::Lost));
    let mut second = Sending::new("f", 1, source(), 4_096);
    second.attempts = first.attempts;
    let place = second.deliver(&node).await;
    assert_eq!(node.read(&place).unwrap(), content);
    assert!(second.outgoing.sent_bytes() < 20 * 4_096);
}

#[tokio::test]
async fn a_restarted_receiver_checks_what_it_claims_and_keeps_it() {
    let storage = LossyStorage::new();
    let tuning = small_tuning(4_096);
    let content = random_bytes(30 * 4_096, 3);
    let mut sending = Sending::new("f", 1, Source::Memory(content.clone().into()), 4_096);
    {
        let node = Node::lossy(&storage, tuning);
        assert!(matches!(
            sending.attempt(&node, Some(60_000)).await,
            Outcome::Lost
        ));
    }
    let storage = storage.reboot(0);
    let before = sending.outgoing.sent_bytes();
    // One claimed chunk is damaged behind our back: it alone is sent again.
    let partial = path(&format!("partial/{}", sending.transfer()));
    let file = storage.open(&partial, crate::storage::Access::Write).unwrap();
    file.write_at(3 * 4_096, b"damage").unwrap();
    let node = Node::lossy(&storage, tuning);
    let place = sending.deliver(&node).await;
    assert_eq!(node.read(&place).unwrap(), content);
    let arrived = (60_000 - 20) / (4_096 + 44);
    assert_eq!(sending.outgoing.sent_bytes() - before, (30 - arrived + 1) * 4_096);
}

#[tokio::test]
async fn a_taken_name_is_never_overwritten() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(4_096));
    let mut places = Vec::new();
    for number in 1..=3u8 {
        let content = random_bytes(5_000, u64::from(number));
        let source = Source::Memory(content.clone().into());
        let place = Sending::new("a.bin", number, source, 4_096).deliver(&node).await;
        places.push((place, content));
    }
    for ((place, content), name) in places.iter().zip(["a.bin", "a (2).bin", "a (3).bin"]) {
        assert_eq!(*place, path(&format!("inbox/alpha/{name}")));
        assert_eq!(node.read(place).unwrap(), *content);
    }
}

#[tokio::test]
async fn transfers_at_once_do_not_disturb_each_other() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(4_096));
    let contents: Vec<_> = (0..16).map(|seed| random_bytes(200_000, seed)).collect();
    let all = contents.iter().zip(1u8..).map(|(content, number)| {
        let source = Source::Memory(content.clone().into());
        let mut sending = Sending::new("same name", number, source, 4_096);
        let node = &node;
        async move { (sending.deliver(node).await, content) }
    });
    let mut places = std::collections::BTreeSet::new();
    for (place, content) in futures::future::join_all(all).await {
        assert_eq!(node.read(&place).unwrap(), *content);
        assert!(places.insert(place));
    }
}

#[tokio::test]
async fn what_is_sent_again_after_a_crash_is_bounded() {
    // The bound is 1 % and 32 MiB of a file; windows shrunk by 256 make it 1 % and 128 KiB.
    let chunk = 4_096u64;
    let tuning = Tuning {
        chunk_bytes: chunk,
        window_min: (8 << 20) / 256,
        window_max: (64 << 20) / 256,
        allocate_min: chunk,
        ..Tuning::default()
    };
    let len = 1_000 * 4_096;
    let content = random_bytes(len, 5);
    for seed in 0..20u64 {
        let storage = LossyStorage::new();
        let mut sending = Sending::new("f", 1, Source::Memory(content.clone().into()), chunk);
        {
            let node = Node::lossy(&storage, tuning);
            storage.crash_at(storage.operations() + 200 + seed * 40);
            let outcome = sending.attempt(&node, None).await;
            assert!(!matches!(outcome, Outcome::Delivered { .. }));
        }
        let node = Node::lossy(&storage.reboot(seed), tuning);
        let place = sending.deliver(&node).await;
        assert!(node.read(&place).unwrap() == content);
        let again = sending.outgoing.sent_bytes() - len as u64;
        // What had left the sender and was in the pipe is not the receiver's to keep.
        let in_pipe = 8 * (chunk + 44);
        assert!(
            again <= len as u64 / 100 + (32 << 20) / 256 + in_pipe,
            "seed {seed}: {again}"
        );
    }
}

#[test]
fn the_window_follows_the_size_within_its_limits() {
    let tuning = Tuning::default();
    let mib = 1 << 20;
    assert_eq!(tuning.window(0), 8 * mib);
    assert_eq!(tuning.window(4 << 30), 16 * mib);
    assert_eq!(tuning.window(1 << 40), 64 * mib);
}

#[test]
fn a_digest_is_shown_as_b3sum_prints_it() {
    let root = *blake3::hash(b"").as_bytes();
    assert!(hash::hex(&root).starts_with("af1349b9f5f9a1a6"));
    let fault = ReceiveError::RootMismatch.fault();
    assert_eq!(fault, Some(Fault::DigestMismatch));
}
