//! Folders there and back, and manifests that lie.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::super::source::Source;
use super::super::tests::{Node, Outcome, PEER, Sending, small_tuning};
use super::*;
use crate::storage::{LossyStorage, Storage};
use hyperfabric_protocol::transfer::Fault;

fn walk(folder: &Path) -> Result<TreeSource, SourceFault> {
    TreeSource::walk(std::fs::File::open(folder).unwrap().into())
}

fn rel(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn file(path: &str, len: u64) -> TreeEntry {
    TreeEntry {
        path: rel(path),
        kind: TreeEntryKind::File { len },
        mode: 0o644,
        modified: ModifiedNs(0),
    }
}

fn folder(path: &str) -> TreeEntry {
    TreeEntry {
        kind: TreeEntryKind::Folder,
        ..file(path, 0)
    }
}

fn manifest(entries: &[TreeEntry]) -> Vec<u8> {
    let mut writer = ManifestWriter::new();
    for entry in entries {
        writer.push(entry).unwrap();
    }
    writer.finish()
}

fn read_all(bytes: &[u8], payload: u64) -> Result<Vec<(TreeEntry, u64)>, ManifestFault> {
    let mut reader = ManifestReader::new(payload, |at, out: &mut [u8]| {
        let at = usize::try_from(at).unwrap();
        let found = bytes
            .get(at..at + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    })?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

#[tokio::test]
async fn a_folder_arrives_as_it_was() {
    let from = tempfile::tempdir().unwrap();
    let top = from.path().join("top");
    std::fs::create_dir_all(top.join("a/deep/er")).unwrap();
    std::fs::create_dir(top.join("empty")).unwrap();
    let files = [
        ("a.bin", 5_000),
        ("a/x", 0),
        ("a/deep/er/y", 70_000),
        ("a-b", 1),
        ("z\u{fc}", 4_096),
    ];
    for (number, (name, len)) in (0..).zip(files) {
        std::fs::write(top.join(name), super::super::tests::random_bytes(len, number)).unwrap();
    }
    std::fs::set_permissions(top.join("a.bin"), PermissionsExt::from_mode(0o751)).unwrap();
    symlink("/etc/passwd", top.join("a/link")).unwrap();
    let source = walk(&top).unwrap();
    assert_eq!(
        (source.skipped().count, &source.skipped().listed[..]),
        (1, &[(rel("a/link"), SkippedKind::SymbolicLink)][..])
    );
    assert_eq!(walk(&top).unwrap().digest(), source.digest());

    let to = tempfile::tempdir().unwrap();
    let node = Node::on_disk(to.path(), small_tuning(4_096));
    let place = Sending::new("top", 1, Source::Tree(source), 4_096)
        .deliver(&node)
        .await;
    assert_eq!(place, rel("inbox/alpha/top"));
    let arrived = place.under(to.path());
    for (name, _) in files {
        let (was, is) = (top.join(name), arrived.join(name));
        assert_eq!(
            std::fs::read(&is).unwrap(),
            std::fs::read(&was).unwrap(),
            "{name}"
        );
        let (was, is) = (was.metadata().unwrap(), is.metadata().unwrap());
        assert_eq!(was.mode(), is.mode(), "{name}");
        assert_eq!(
            (was.mtime(), was.mtime_nsec()),
            (is.mtime(), is.mtime_nsec()),
            "{name}"
        );
    }
    let (was, is) = (top.join("a/deep"), arrived.join("a/deep"));
    assert_eq!(was.metadata().unwrap().mtime(), is.metadata().unwrap().mtime());
    assert!(arrived.join("empty").is_dir() && !arrived.join("a/link").exists());
    assert_eq!(std::fs::read_dir(to.path().join("partial")).unwrap().count(), 0);

    let again = Source::Tree(walk(&top).unwrap());
    let place = Sending::new("top", 2, again, 4_096).deliver(&node).await;
    assert_eq!(place, rel("inbox/alpha/top (2)"));
}

#[test]
fn what_is_not_sent_is_listed_up_to_a_bound_and_counted_beyond() {
    let from = tempfile::tempdir().unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        from.path().join("a-pipe"),
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("b-socket")).unwrap();
    for number in 0..SKIPPED_LISTED_MAX {
        symlink("nowhere", from.path().join(format!("link-{number}"))).unwrap();
    }
    let source = walk(from.path()).unwrap();
    let Skipped { count, listed } = source.skipped();
    assert_eq!(*count, SKIPPED_LISTED_MAX as u64 + 2);
    assert_eq!(listed.len(), SKIPPED_LISTED_MAX);
    assert_eq!(
        listed[..3],
        [
            (rel("a-pipe"), SkippedKind::Pipe),
            (rel("b-socket"), SkippedKind::Socket),
            (rel("link-0"), SkippedKind::SymbolicLink)
        ]
    );
}

#[tokio::test]
async fn an_empty_folder_arrives() {
    let from = tempfile::tempdir().unwrap();
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(4_096));
    let source = Source::Tree(walk(from.path()).unwrap());
    let place = Sending::new("e", 1, source, 4_096).deliver(&node).await;
    assert_eq!(storage.list(&place, 10).unwrap(), Vec::new());
}

#[test]
fn a_folder_that_changes_after_the_walk_is_noticed() {
    let changes: [fn(&Path); 3] = [
        |path| std::fs::write(path, [1; 200]).unwrap(),
        |path| std::fs::remove_file(path).unwrap(),
        |path| {
            std::fs::remove_file(path).unwrap();
            symlink("/etc/passwd", path).unwrap();
        },
    ];
    for change in changes {
        let from = tempfile::tempdir().unwrap();
        std::fs::write(from.path().join("f"), [0; 100]).unwrap();
        let source = walk(from.path()).unwrap();
        change(&from.path().join("f"));
        let mut out = vec![0; usize::try_from(source.len()).unwrap()];
        assert!(source.read_at(0, &mut out).is_err());
        assert!(!out.starts_with(b"root:"));
    }
}

#[test]
fn a_payload_can_be_read_from_anywhere() {
    let from = tempfile::tempdir().unwrap();
    for (name, len) in [("a", 100), ("b", 0), ("c", 1), ("d", 5_000)] {
        std::fs::write(from.path().join(name), vec![name.as_bytes()[0]; len]).unwrap();
    }
    let source = walk(from.path()).unwrap();
    let len = usize::try_from(source.len()).unwrap();
    let mut whole = vec![0; len];
    source.read_at(0, &mut whole).unwrap();
    for start in (0..len).step_by(37) {
        let mut part = vec![0; (len - start).min(333)];
        source.read_at(start as u64, &mut part).unwrap();
        assert_eq!(part, whole[start..start + part.len()]);
    }
    assert!(source.read_at(len as u64 - 1, &mut [0; 2]).is_err());
}

#[test]
fn a_manifest_is_read_back_in_order_with_the_places_of_contents() {
    let entries = [
        folder("a"),
        file("a/x", 5),
        folder("a/y"),
        file("a/y/z", 7),
        file("a-b", 1),
    ];
    let bytes = manifest(&entries);
    let begin = bytes.len() as u64;
    let found = read_all(&bytes, begin + 13).unwrap();
    let offsets = [0, 0, 5, 5, 12].map(|at| begin + at);
    let expected: Vec<_> = entries.into_iter().zip(offsets).collect();
    assert_eq!(found, expected);
}

#[test]
fn entries_that_clash_repeat_or_hang_in_the_air_are_refused() {
    let refused = [
        vec![file("a", 0), file("a", 0)],
        vec![folder("a"), file("a", 0)],
        vec![file("a", 0), file("a/b", 0)],
        vec![file("a/b", 0)],
        vec![folder("a"), folder("a/b"), file("c/d", 0)],
        vec![file("b", 0), file("a", 0)],
        vec![folder("a"), file("b", 0), file("a/c", 0)],
    ];
    for entries in refused {
        let bytes = manifest(&entries);
        let fault = read_all(&bytes, bytes.len() as u64).unwrap_err();
        assert!(
            matches!(fault, ManifestFault::Order(_) | ManifestFault::Parent(_)),
            "{entries:?}: {fault:?}"
        );
    }
}

/// A manifest with one entry whose path was put in raw.
fn with_raw_path(path: &[u8], len: u64) -> Vec<u8> {
    use hyperfabric_protocol::cbor::Encoder;
    let mut e = Encoder::new();
    e.array(5);
    e.u64(1);
    e.bytes(path);
    e.u64(len);
    e.u64(0o644);
    e.i64(0);
    let entry = e.into_bytes();
    let mut bytes = b"HFTREE\0\x01\0\0\0\x01".to_vec();
    bytes.extend_from_slice(&(20 + 2 + entry.len() as u64).to_be_bytes());
    bytes.extend_from_slice(&u16::try_from(entry.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(&entry);
    bytes
}

#[test]
fn paths_that_lead_out_are_refused() {
    for path in [
        &b"/etc/passwd"[..],
        b"..",
        b"../x",
        b"a/../../x",
        b"a//b",
        b"./a",
        b"",
        b"a\0b",
    ] {
        let bytes = with_raw_path(path, 0);
        let fault = read_all(&bytes, bytes.len() as u64).unwrap_err();
        assert!(matches!(fault, ManifestFault::Path(_)), "{path:?}: {fault:?}");
    }
}

#[test]
fn lengths_that_do_not_add_up_are_refused() {
    let bytes = manifest(&[file("a", 10), file("b", 20)]);
    let begin = bytes.len() as u64;
    read_all(&bytes, begin + 30).unwrap();
    for payload in [begin, begin + 29, begin + 31] {
        let fault = read_all(&bytes, payload).unwrap_err();
        assert!(matches!(fault, ManifestFault::Sum), "{fault:?}");
    }
    let huge = with_raw_path(b"a", u64::MAX);
    assert!(matches!(read_all(&huge, u64::MAX), Err(ManifestFault::Sum)));
    for cut in 0..bytes.len() {
        assert!(read_all(&bytes[..cut], cut as u64).is_err());
    }
    let mut many = bytes.clone();
    many[8..12].copy_from_slice(&(ENTRIES_MAX + 1).to_be_bytes());
    assert!(matches!(
        read_all(&many, begin + 30),
        Err(ManifestFault::TooLarge)
    ));
    many[8..12].copy_from_slice(&1u32.to_be_bytes());
    assert!(matches!(read_all(&many, begin + 30), Err(ManifestFault::Length)));
}

#[tokio::test]
async fn a_hostile_manifest_leaves_nothing_behind() {
    let storage = LossyStorage::new();
    let node = Node::lossy(&storage, small_tuning(1_024));
    let bytes = with_raw_path(b"../../outside", 0);
    let mut sending = Sending::new("t", 1, Source::Memory(bytes.into()), 1_024);
    sending.offer.kind = hyperfabric_protocol::transfer::PayloadKind::Tree;
    let fault = match sending.attempt(&node, None).await {
        Outcome::ReceiveFailed(error) => error.fault(),
        other => panic!("{other:?}"),
    };
    assert_eq!(fault, Some(Fault::BadManifest));
    node.receiver.discard(sending.transfer(), PEER).await.unwrap();
    for place in ["partial", "inbox/alpha"] {
        assert_eq!(storage.list(&rel(place), 10).unwrap(), Vec::new());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_manifest_or_refused(tail in proptest::collection::vec(any::<u8>(), 0..300), entries in 0u32..4) {
        let mut bytes = b"HFTREE\0\x01".to_vec();
        bytes.extend_from_slice(&entries.to_be_bytes());
        bytes.extend_from_slice(&(20 + tail.len() as u64).to_be_bytes());
        bytes.extend_from_slice(&tail);
        let _ = read_all(&bytes, bytes.len() as u64);
        let _ = read_all(&tail, tail.len() as u64);
    }

    #[test]
    fn a_manifest_with_a_changed_byte_stays_within_its_folder(
        at in 0usize..200, byte in any::<u8>(),
    ) {
        let mut bytes = manifest(&[folder("a"), file("a/x", 5), file("a-b", 1)]);
        let at = at % bytes.len();
        bytes[at] = byte;
        let payload = bytes.len() as u64 + 6;
        bytes.resize(bytes.len() + 6, 0);
        if let Ok(entries) = read_all(&bytes, payload) {
            for (entry, offset) in entries {
                prop_assert!(RelPath::parse(entry.path.as_bytes()).is_ok());
                if let TreeEntryKind::File { len } = entry.kind {
                    prop_assert!(offset + len <= payload);
                }
            }
        }
    }
}
