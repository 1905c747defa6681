//! One conformance suite for every storage, then what each promises beyond it.

use std::io::ErrorKind;

use super::lossy::Operation;
use super::*;

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn on_every_storage(check: impl Fn(&dyn Storage)) {
    let folder = tempfile::tempdir().unwrap();
    check(&DiskStorage::open(folder.path()).unwrap());
    check(&LossyStorage::new());
}

fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn bytes_are_read_back_where_they_were_written() {
    on_every_storage(|storage| {
        storage.ensure_folder(&path("a/b")).unwrap();
        let file = storage.open(&path("a/b/f"), Access::CreateNew).unwrap();
        file.write_at(5, b"hello").unwrap();
        file.sync_data().unwrap();
        let mut out = [9; 10];
        storage
            .open(&path("a/b/f"), Access::Read)
            .unwrap()
            .read_at(0, &mut out)
            .unwrap();
        assert_eq!(&out, b"\0\0\0\0\0hello");
        assert_eq!(kind(file.read_at(6, &mut out)), Some(ErrorKind::UnexpectedEof));
        assert_eq!(storage.bytes_below(&path("a")).unwrap(), 10);
        assert_eq!(storage.bytes_below(&path("missing")).unwrap(), 0);
    });
}

#[test]
fn nothing_existing_is_ever_replaced() {
    on_every_storage(|storage| {
        for name in ["f", "g"] {
            storage.open(&path(name), Access::CreateNew).unwrap();
        }
        assert_eq!(
            kind(storage.open(&path("f"), Access::CreateNew)),
            Some(ErrorKind::AlreadyExists)
        );
        assert_eq!(
            kind(storage.rename_no_replace(&path("f"), &path("g"))),
            Some(ErrorKind::AlreadyExists)
        );
        storage.create_folder(&path("d")).unwrap();
        storage.create_folder(&path("e")).unwrap();
        assert_eq!(
            kind(storage.rename_no_replace(&path("d"), &path("e"))),
            Some(ErrorKind::AlreadyExists)
        );
        assert!(storage.ensure_folder(&path("f/below")).is_err());
        storage.rename_no_replace(&path("f"), &path("d/f")).unwrap();
        assert_eq!(storage.metadata(&path("f")).unwrap(), None);
    });
}

#[test]
fn a_folder_is_removed_and_renamed_with_all_that_it_holds() {
    on_every_storage(|storage| {
        storage.ensure_folder(&path("d/inner")).unwrap();
        storage.open(&path("d/inner/f"), Access::CreateNew).unwrap();
        storage.sync_tree(&path("d")).unwrap();
        storage.rename_no_replace(&path("d"), &path("e")).unwrap();
        storage.sync_folder(&RelPath::ROOT).unwrap();
        assert!(storage.metadata(&path("e/inner/f")).unwrap().is_some());
        storage.remove(&path("e")).unwrap();
        storage.remove(&path("e")).unwrap();
        assert_eq!(storage.list(&RelPath::ROOT, 10).unwrap(), Vec::new());
    });
}

#[test]
fn a_listing_is_bounded() {
    on_every_storage(|storage| {
        for name in ["a", "b", "c"] {
            storage.open(&path(name), Access::CreateNew).unwrap();
        }
        assert_eq!(storage.list(&RelPath::ROOT, 2).unwrap().len(), 2);
    });
}

#[test]
fn space_is_taken_ahead_or_the_file_system_says_that_it_cannot() {
    on_every_storage(|storage| {
        let file = storage.open(&path("f"), Access::CreateNew).unwrap();
        if file.allocate(1 << 20).unwrap() {
            assert_eq!(file.size().unwrap(), 1 << 20);
        }
    });
}

#[test]
fn a_link_on_the_way_is_never_followed() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    std::os::unix::fs::symlink(outside.path(), folder.path().join("inbox")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), folder.path().join("file")).unwrap();
    let storage = DiskStorage::open(folder.path()).unwrap();
    assert!(storage.open(&path("inbox/secret"), Access::Read).is_err());
    assert!(storage.open(&path("file"), Access::Write).is_err());
    assert!(storage.open(&path("inbox/new"), Access::CreateNew).is_err());
    assert!(storage.ensure_folder(&path("inbox/sender")).is_err());
    storage.open(&path("own"), Access::CreateNew).unwrap();
    assert!(
        storage
            .rename_no_replace(&path("own"), &path("inbox/own"))
            .is_err()
    );
    storage.remove(&path("inbox")).unwrap();
    assert!(outside.path().join("secret").exists());
    assert!(!outside.path().join("new").exists());
}

#[test]
fn attributes_are_masked_and_set() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = tempfile::tempdir().unwrap();
    let storage = DiskStorage::open(folder.path()).unwrap();
    let file = storage.open(&path("f"), Access::CreateNew).unwrap();
    file.set_attributes(Attributes {
        mode: Some(0o6_755),
        modified: Some(ModifiedNs(-1_500_000_000)),
    })
    .unwrap();
    let found = std::fs::metadata(folder.path().join("f")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7_777, 0o755);
    assert_eq!((found.mtime(), found.mtime_nsec()), (-2, 500_000_000));
}

#[test]
fn what_was_synced_survives_every_crash() {
    for seed in 0..200 {
        let storage = LossyStorage::new();
        storage.ensure_folder(&path("partial")).unwrap();
        storage.ensure_folder(&path("inbox")).unwrap();
        let file = storage.open(&path("partial/f"), Access::CreateNew).unwrap();
        file.write_at(0, &vec![7; 20_000]).unwrap();
        file.sync_data().unwrap();
        storage
            .rename_no_replace(&path("partial/f"), &path("inbox/f"))
            .unwrap();
        storage.sync_folder(&path("inbox")).unwrap();
        let found = storage.reboot(seed);
        let mut out = vec![0; 20_000];
        found
            .open(&path("inbox/f"), Access::Read)
            .unwrap()
            .read_at(0, &mut out)
            .unwrap();
        assert_eq!(out, vec![7; 20_000], "seed {seed}");
        assert_eq!(found.metadata(&path("partial/f")).unwrap(), None, "seed {seed}");
    }
}

#[test]
fn what_was_not_synced_is_lost_by_some_crashes_and_kept_by_others() {
    let storage = LossyStorage::new();
    storage.ensure_folder(&path("d")).unwrap();
    let file = storage.open(&path("d/f"), Access::CreateNew).unwrap();
    file.write_at(0, &vec![7; 20_000]).unwrap();
    storage.rename_no_replace(&path("d/f"), &path("g")).unwrap();
    let mut found = [false; 4];
    for seed in 0..200 {
        let after = storage.reboot(seed);
        let at = |name| after.metadata(&path(name)).unwrap();
        found[0] |= at("d/f").is_some();
        found[1] |= at("g").is_some_and(|file| file.len == 20_000);
        found[2] |= at("g").is_some_and(|file| file.len == 0);
        found[3] |= at("d/f").is_none() && at("g").is_none();
    }
    assert_eq!(found, [true; 4]);
}

#[test]
fn a_storage_fails_when_told_to() {
    let storage = LossyStorage::new();
    storage.fail(Operation::Write, ErrorKind::ReadOnlyFilesystem);
    let file = storage.open(&path("f"), Access::CreateNew).unwrap();
    assert_eq!(kind(file.write_at(0, b"x")), Some(ErrorKind::ReadOnlyFilesystem));
    storage.heal();
    storage.set_capacity(Some(10));
    file.write_at(0, &[0; 10]).unwrap();
    assert_eq!(kind(file.write_at(1, &[0; 10])), Some(ErrorKind::StorageFull));
    assert_eq!(storage.free_bytes().unwrap(), 0);
    storage.crash_at(storage.operations() + 1);
    assert!(file.write_at(0, b"x").is_err());
    assert!(storage.has_crashed() && file.size().is_err());
}

#[test]
fn a_file_that_was_removed_is_kept_while_somebody_has_it_open_or_a_crash_may_bring_it_back() {
    let storage = LossyStorage::new();
    let file = storage.open(&path("f"), Access::CreateNew).unwrap();
    file.write_at(0, b"x").unwrap();
    file.sync_all().unwrap();
    storage.sync_folder(&RelPath::ROOT).unwrap();
    storage.remove(&path("f")).unwrap();
    let back = |storage: &LossyStorage| {
        (0..20).any(|seed| storage.reboot(seed).metadata(&path("f")).unwrap().is_some())
    };
    assert!(back(&storage), "the removal was not synced");
    storage.sync_folder(&RelPath::ROOT).unwrap();
    assert!(!back(&storage));
    assert_eq!((storage.files_kept(), file.size().unwrap()), (1, 1));
    drop(file);
    storage.sync_folder(&RelPath::ROOT).unwrap();
    assert_eq!((storage.files_kept(), storage.reboot(0).files_kept()), (0, 0));
}
