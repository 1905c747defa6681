//! A thousand power cuts at random points: nothing false is ever called delivered, nothing wrong is ever visible.

use super::*;
use crate::storage::EntryKind;
use crate::store::IncomingState;
use crate::transfer::TreeSource;

const RUNS: u64 = 1_000;
const CHUNK: u64 = 1_024;

/// Crashes of one run, after which it is let through.
const CRASHES_MAX: u32 = 6;

fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        let next = blake3::hash(&state.to_be_bytes());
        let (first, _) = next.as_bytes().split_at(8);
        state = u64::from_be_bytes(first.try_into().unwrap());
        state % below
    }
}

fn files_below(storage: &LossyStorage, folder: &RelPath) -> Vec<RelPath> {
    let mut found = Vec::new();
    let mut folders = vec![folder.clone()];
    while let Some(folder) = folders.pop() {
        for entry in storage.list(&folder, usize::MAX).unwrap_or_default() {
            let below = folder.join(&entry.name).unwrap();
            match entry.metadata.kind {
                EntryKind::Folder => folders.push(below),
                _ => found.push(below),
            }
        }
    }
    found.sort();
    found
}

/// What the inbox must hold when it holds anything: each file's path below the place, and its bytes.
type Expected = Vec<(Vec<u8>, Vec<u8>)>;

/// Every visible file is one of those expected, whole and right; a claim of delivery is matched by all of them.
fn check(storage: &LossyStorage, store: &Store, sending: &Sending, expected: &Expected, seed: u64) {
    let record = store.incoming(sending.transfer()).unwrap();
    let visible = files_below(storage, &path("inbox"));
    let place = path("inbox/alpha/thing");
    let whole: Vec<RelPath> = expected
        .iter()
        .map(|(below, _)| RelPath::parse(&[place.as_bytes(), below].concat()).unwrap())
        .collect();
    assert!(visible.is_empty() || visible == whole, "seed {seed}: {visible:?}");
    for ((_, content), file) in expected.iter().zip(&visible) {
        let open = storage.open(file, crate::storage::Access::Read).unwrap();
        let mut bytes = vec![0; usize::try_from(open.size().unwrap()).unwrap()];
        open.read_at(0, &mut bytes).unwrap();
        assert!(bytes == *content, "seed {seed}: {file} is wrong");
    }
    if record.is_some_and(|record| matches!(record.state, IncomingState::Delivered(_))) {
        assert_eq!(visible, whole, "seed {seed}: a false delivery");
    }
}

async fn one_run(seed: u64, mut sending: Sending, expected: &Expected) {
    let mut number = numbers(seed);
    let mut storage = LossyStorage::new();
    drop(Node::lossy(&storage, small_tuning(CHUNK)));
    let mut acknowledged = false;
    for crash in 0..=CRASHES_MAX {
        if crash < CRASHES_MAX {
            storage.crash_at(storage.operations() + 1 + number(120));
        }
        let journal = storage.clone();
        let opened = Store::with_backend(move || Ok(journal.journal())).map(|store| {
            check(&storage, &store, &sending, expected, seed);
            let policy = InboxPolicy {
                min_free_bytes: 0,
                ..InboxPolicy::default()
            };
            Node::start(Arc::new(storage.clone()), store, small_tuning(CHUNK), policy)
        });
        if let Ok(Ok(node)) = opened {
            let cut = (number(3) == 0).then(|| usize::try_from(number(40_000)).unwrap());
            match sending.attempt(&node, cut).await {
                Outcome::Delivered { .. } => acknowledged = true,
                Outcome::Lost => assert!(!acknowledged, "seed {seed}: delivered before, now not"),
                Outcome::ReceiveFailed(error) => {
                    assert!(storage.has_crashed(), "seed {seed}: {error:?}");
                }
                Outcome::SendFailed(error) => panic!("seed {seed}: {error:?}"),
            }
        } else {
            assert!(storage.has_crashed(), "seed {seed}: cannot start");
        }
        storage = storage.reboot(number(u64::MAX));
    }
    let node = Node::lossy(&storage, small_tuning(CHUNK));
    check(&storage, &node.store, &sending, expected, seed);
    if acknowledged {
        assert!(
            !files_below(&storage, &path("inbox")).is_empty(),
            "seed {seed}: a false delivery"
        );
    }
    sending.deliver(&node).await;
    check(&storage, &node.store, &sending, expected, seed);
    assert_eq!(
        files_below(&storage, &path("inbox")).len(),
        expected.len(),
        "seed {seed}"
    );
    assert_eq!(files_below(&storage, &path("partial")), [], "seed {seed}");
}

#[tokio::test]
async fn no_crash_makes_a_false_delivery_or_a_wrong_file() {
    for seed in 0..RUNS * 4 / 5 {
        let len = [0, 1, 1_023, 1_025, 8 * 1_024, 20 * 1_024 + 5][usize::try_from(seed % 6).unwrap()];
        let content = random_bytes(len, seed);
        let source = Source::Memory(content.clone().into());
        let sending = Sending::new("thing", 1, source, CHUNK);
        one_run(seed, sending, &vec![(Vec::new(), content)]).await;
    }
}

#[tokio::test]
async fn no_crash_makes_a_false_delivery_or_a_wrong_file_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("d")).unwrap();
    let mut expected = Expected::new();
    for (name, len) in [("/a", 3_000), ("/d/b", 9_000), ("/d/c", 0)] {
        let content = random_bytes(len, len as u64);
        std::fs::write(folder.path().join(&name[1..]), &content).unwrap();
        expected.push((name.as_bytes().to_vec(), content));
    }
    for seed in 0..RUNS / 5 {
        let root = std::fs::File::open(folder.path()).unwrap();
        let source = Source::Tree(TreeSource::walk(root.into()).unwrap());
        let sending = Sending::new("thing", 1, source, CHUNK);
        one_run(RUNS + seed, sending, &expected).await;
    }
}
