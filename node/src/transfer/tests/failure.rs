//! Full disks, read-only inboxes, quotas, and sources that change: typed, without a trace, and not the end of others.

use std::io::ErrorKind;
use std::time::Duration;

use super::super::inbox::Refusal;
use super::super::source::SourceFault;
use super::*;
use crate::storage::lossy::Operation;

const CHUNK: u64 = 4_096;

fn memory(len: usize, seed: u64) -> Source {
    Source::Memory(random_bytes(len, seed).into())
}

async fn fails_with(node: &Node, sending: &mut Sending) -> Fault {
    let fault = match sending.attempt(node, None).await {
        Outcome::ReceiveFailed(error) => error.fault().unwrap(),
        other => panic!("it did not fail: {other:?}"),
    };
    node.receiver.discard(sending.transfer(), PEER).await.unwrap();
    fault
}

/// Nothing of the transfer is left, and another one works.
async fn works(node: &Node) {
    for folder in ["partial", "inbox/alpha"] {
        let left = node.storage.list(&path(folder), 10).unwrap_or_default();
        assert_eq!(left, Vec::new());
    }
    Sending::new("after", 99, memory(20_000, 9), CHUNK)
        .deliver(node)
        .await;
}

#[tokio::test]
async fn a_disk_that_fails_in_any_step_is_a_typed_fault_and_leaves_nothing() {
    let operations = [
        (Operation::Write, ErrorKind::StorageFull, Fault::NoSpace),
        (Operation::Resize, ErrorKind::StorageFull, Fault::NoSpace),
        (
            Operation::Create,
            ErrorKind::ReadOnlyFilesystem,
            Fault::InboxUnwritable,
        ),
        (
            Operation::Rename,
            ErrorKind::PermissionDenied,
            Fault::InboxUnwritable,
        ),
        (Operation::Sync, ErrorKind::Other, Fault::Storage),
        (Operation::SyncFolder, ErrorKind::Other, Fault::Storage),
        (Operation::Journal, ErrorKind::StorageFull, Fault::NoSpace),
    ];
    for (operation, error, expected) in operations {
        let storage = LossyStorage::new();
        let node = Node::lossy(&storage, small_tuning(CHUNK));
        storage.fail(operation, error);
        let mut sending = Sending::new("f", 1, memory(100_000, 1), CHUNK);
        let fault = match sending.attempt(&node, None).await {
            Outcome::ReceiveFailed(error) => error.fault().unwrap(),
            other => panic!("it did not fail: {other:?}"),
        };
        assert_eq!(fault, expected, "{operation:?}");
        storage.heal();
        node.receiver.discard(sending.transfer(), PEER).await.unwrap();
        works(&node).await;
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_meanwhile_is_a_typed_fault() {
    let storage = LossyStorage::new();
    let tuning = Tuning {
        allocate_min: u64::MAX,
        ..small_tuning(CHUNK)
    };
    let node = Node::lossy(&storage, tuning);
    let mut sending = Sending::new("f", 1, memory(100_000, 1), CHUNK);
    storage.fail(Operation::Write, ErrorKind::StorageFull);
    assert_eq!(fails_with(&node, &mut sending).await, Fault::NoSpace);
    storage.heal();
    works(&node).await;
}

#[tokio::test]
async fn offers_beyond_quota_or_space_are_refused_before_a_byte_is_sent() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(CHUNK));
    let policy = InboxPolicy {
        quota_bytes: Some(50_000),
        min_free_bytes: 0,
        ..InboxPolicy::default()
    };
    node.receiver.set_policy(policy.clone());
    let mut large = Sending::new("large", 1, memory(50_001, 1), CHUNK);
    assert_eq!(fails_with(&node, &mut large).await, Fault::QuotaExceeded);
    let mut fits = Sending::new("fits", 2, memory(30_000, 2), CHUNK);
    // An unfinished transfer holds its room, over a restart too.
    assert!(matches!(fits.attempt(&node, Some(9_000)).await, Outcome::Lost));
    let mut second = Sending::new("second", 3, memory(30_000, 3), CHUNK);
    assert_eq!(fails_with(&node, &mut second).await, Fault::QuotaExceeded);
    drop(node);
    let node = Node::lossy(&storage.reboot(1), small_tuning(CHUNK));
    node.receiver.set_policy(policy.clone());
    assert_eq!(fails_with(&node, &mut second).await, Fault::QuotaExceeded);
    let place = fits.deliver(&node).await;
    assert_eq!(fails_with(&node, &mut second).await, Fault::QuotaExceeded);
    // The user clears the inbox.
    node.storage.remove(&place).unwrap();
    second.deliver(&node).await;

    node.receiver.set_policy(InboxPolicy {
        min_free_bytes: u64::MAX,
        ..InboxPolicy::default()
    });
    let mut third = Sending::new("third", 4, memory(10, 4), CHUNK);
    assert_eq!(fails_with(&node, &mut third).await, Fault::NoSpace);
    node.receiver.set_policy(InboxPolicy {
        accept: crate::config::Accept::None,
        ..policy
    });
    assert_eq!(fails_with(&node, &mut third).await, Fault::NotAccepted);
}

#[tokio::test]
async fn one_peer_cannot_take_all_places() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(CHUNK));
    for number in 0..u8::MAX {
        let sending = Sending::new("f", number, memory(10_000, 1), CHUNK);
        let prepared = node
            .receiver
            .prepare(sending.transfer(), PEER, sending.offer.clone(), 1, NOW)
            .await;
        if usize::from(number) < super::super::inbox::UNFINISHED_PER_PEER_MAX {
            prepared.unwrap();
        } else {
            let error = prepared.unwrap_err();
            assert!(matches!(error, ReceiveError::Refused(Refusal::Busy)), "{error:?}");
            break;
        }
    }
    let sending = Sending::new("f", 250, memory(10_000, 1), CHUNK);
    let other = PeerId([2; 32]);
    let prepared = node
        .receiver
        .prepare(sending.transfer(), other, sending.offer.clone(), 1, NOW)
        .await;
    assert!(prepared.is_ok());
}

#[tokio::test]
async fn names_that_climb_out_are_refused_by_name() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(CHUNK));
    for name in ["../up", "/etc/passwd", "..", "a/b", "bell\u{7}"] {
        let mut sending = Sending::new(name, 1, memory(10, 1), CHUNK);
        assert_eq!(fails_with(&node, &mut sending).await, Fault::BadName, "{name}");
    }
    works(&node).await;
}

#[tokio::test]
async fn a_source_that_changes_or_shrinks_is_a_typed_fault() {
    let folder = tempfile::tempdir().unwrap();
    let content = random_bytes(100_000, 1);
    let change: [fn(&Path); 3] = [
        |path| std::fs::write(path, random_bytes(100_000, 2)).unwrap(),
        |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(50_000).unwrap();
        },
        |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(200_000).unwrap();
        },
    ];
    for change in change {
        let storage = LossyStorage::new();
        let node = Node::lossy(&storage, small_tuning(CHUNK));
        let mut sending = Sending::new("f", 1, file_source(folder.path(), "f", &content), CHUNK);
        assert!(matches!(
            sending.attempt(&node, Some(30_000)).await,
            Outcome::Lost
        ));
        // The clock of file times moves in steps of some milliseconds.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let failed = loop {
            change(&folder.path().join("f"));
            match sending.attempt(&node, Some(60_000)).await {
                Outcome::SendFailed(error) => break error,
                _ => assert!(std::time::Instant::now() < deadline, "the change went unnoticed"),
            }
        };
        assert!(
            matches!(failed, SendError::Source(SourceFault::Changed(_))),
            "{failed:?}"
        );
        assert_eq!(failed.fault(), Some(Fault::SourceChanged));
        node.receiver.discard(sending.transfer(), PEER).await.unwrap();
        works(&node).await;
    }
}

#[tokio::test]
async fn what_is_not_a_regular_file_is_not_sent() {
    let folder = std::fs::File::open("/").unwrap();
    assert!(matches!(
        FileSource::new(folder.into()),
        Err(SourceFault::NotAFile)
    ));
    let device = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(
        FileSource::new(device.into()),
        Err(SourceFault::NotAFile)
    ));
}

#[tokio::test]
async fn a_cancelled_transfer_leaves_nothing_and_gives_its_room_back() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(CHUNK));
    node.receiver.set_policy(InboxPolicy {
        quota_bytes: Some(100_000),
        min_free_bytes: 0,
        ..InboxPolicy::default()
    });
    let mut sending = Sending::new("f", 1, memory(100_000, 1), CHUNK);
    assert!(matches!(
        sending.attempt(&node, Some(50_000)).await,
        Outcome::Lost
    ));
    node.receiver.discard(sending.transfer(), PEER).await.unwrap();
    assert_eq!(node.store.incoming(sending.transfer()).unwrap(), None);
    assert_eq!(node.receiver.durable(sending.transfer()), None);
    works(&node).await;
}

#[tokio::test]
async fn a_transfer_of_which_nothing_has_come_for_long_enough_is_abandoned() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::on_disk(folder.path(), small_tuning(CHUNK));
    let mut sending = Sending::new("slow", 7, memory(30_000, 7), CHUNK);
    assert!(matches!(sending.attempt(&node, Some(9_000)).await, Outcome::Lost));
    let limit = InboxPolicy::default().abandoned_after;
    let written = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let after = |time: Duration| {
        hyperfabric_protocol::UnixMillis(u64::try_from((written + time).as_millis()).unwrap())
    };
    let idle = node.receiver.idle(after(limit / 2)).await.unwrap();
    assert!(idle.abandoned.is_empty());
    assert!(idle.next.unwrap() > limit / 3 && idle.next.unwrap() <= limit / 2 + Duration::from_secs(60));
    let idle = node.receiver.idle(after(limit * 2)).await.unwrap();
    assert_eq!((idle.abandoned.len(), idle.next), (1, None));
}

/// Offers, loses the stream after some chunks, and ends as a sender does that never comes back.
async fn left_behind(node: &Node, id: u8) -> Sending {
    let mut sending = Sending::new("f", id, memory(60_000, 1), CHUNK);
    assert!(matches!(sending.attempt(node, Some(30_000)).await, Outcome::Lost));
    sending
}

#[tokio::test]
async fn what_is_kept_of_an_ended_transfer_gives_way_when_its_room_is_needed() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(CHUNK));
    node.receiver.set_policy(InboxPolicy {
        quota_bytes: Some(200_000),
        min_free_bytes: 0,
        ..InboxPolicy::default()
    });
    let (first, second) = (left_behind(&node, 1).await, left_behind(&node, 2).await);
    // Both may still go on: nothing gives way.
    let mut third = Sending::new("g", 3, memory(100_000, 1), CHUNK);
    let refused = third.attempt(&node, None).await;
    assert!(matches!(
        refused,
        Outcome::ReceiveFailed(ReceiveError::Refused(Refusal::Quota { left: 80_000, .. }))
    ));
    node.receiver
        .keep(second.transfer(), PEER, NOW.before(Duration::from_secs(1)));
    node.receiver.keep(first.transfer(), PEER, NOW);
    // In vain, and so not at all.
    let mut huge = Sending::new("h", 4, memory(200_001, 1), CHUNK);
    assert_eq!(fails_with(&node, &mut huge).await, Fault::QuotaExceeded);
    for kept in [&first, &second] {
        assert!(node.store.incoming(kept.transfer()).unwrap().is_some());
    }
    // The one that ended first goes first, and no more than are needed.
    third.deliver(&node).await;
    assert_eq!(node.store.incoming(second.transfer()).unwrap(), None);
    assert!(node.store.incoming(first.transfer()).unwrap().is_some());
    let (mut first, mut second) = (first, second);
    assert_eq!(
        fails_with(&node, &mut Sending::new("i", 5, memory(100_001, 1), CHUNK)).await,
        Fault::QuotaExceeded
    );
    first.deliver(&node).await;
    // What gave way can come again, from its beginning, when there is room.
    assert_eq!(fails_with(&node, &mut second).await, Fault::QuotaExceeded);
}

#[tokio::test]
async fn another_sender_cannot_make_a_transfer_give_way() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(CHUNK));
    node.receiver.set_policy(InboxPolicy {
        quota_bytes: Some(100_000),
        min_free_bytes: 0,
        ..InboxPolicy::default()
    });
    let sending = left_behind(&node, 1).await;
    let other = PeerId([2; 32]);
    let offer = Sending::new("f", 1, memory(10, 1), CHUNK).offer;
    let stolen = node
        .receiver
        .prepare(sending.transfer(), other, offer, 1, NOW)
        .await;
    assert!(matches!(stolen, Err(ReceiveError::Violation(_))));
    node.receiver.keep(sending.transfer(), other, NOW);
    let mut large = Sending::new("g", 2, memory(90_000, 1), CHUNK);
    assert_eq!(fails_with(&node, &mut large).await, Fault::QuotaExceeded);
    assert!(node.store.incoming(sending.transfer()).unwrap().is_some());
}
