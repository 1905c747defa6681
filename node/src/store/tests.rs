//! What the store promises: nothing lost, nothing silently emptied, bounded.

use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::ops::ControlFlow;

use hyperfabric_protocol::cbor::Text;
use hyperfabric_protocol::transfer::{Fault, Offer, PayloadKind};
use hyperfabric_protocol::types::{DataType, PacketPriority};
use hyperfabric_protocol::{PeerId, TransferId, UnixMillis};

use redb::{Database, TableDefinition};

use super::incoming::DELIVERED_MAX;
use super::*;
use crate::storage::lossy::Operation;
use crate::storage::{LossyStorage, RelPath};

/// Where the store records its schema's version.
const SCHEMA: TableDefinition<'_, &str, u32> = TableDefinition::new("meta");

fn offer() -> Offer {
    Offer {
        source: "alpha/gpu0".parse().unwrap(),
        destination: "beta".parse().unwrap(),
        name: Text::truncating("weights.bin"),
        kind: PayloadKind::File,
        size: 5 << 20,
        data_type: DataType::Parameter,
        priority: PacketPriority::High,
        modified: Some(UnixMillis(1_700_000_000_123)),
        mode: Some(0o640),
        sync: None,
    }
}

fn incoming(number: u128, state: IncomingState) -> IncomingRecord {
    IncomingRecord {
        transfer: TransferId(number.to_be_bytes()),
        peer: PeerId([7; 32]),
        offer: offer(),
        started: UnixMillis(5),
        state,
    }
}

fn place() -> RelPath {
    RelPath::parse(b"inbox/alpha/weights.bin").unwrap()
}

fn claims(store: &Store, transfer: TransferId) -> Vec<(u64, u8)> {
    let mut found = Vec::new();
    store
        .for_each_claim(transfer, |index, value| {
            found.push((index, value[0]));
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

#[test]
fn records_survive_closing_and_opening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let states = [
        IncomingState::Receiving,
        IncomingState::Sealing(Sealing {
            root: [3; 32],
            place: place(),
        }),
    ];
    {
        let opened = Store::open(&path, 0).unwrap();
        assert_eq!(opened.moved_aside, None);
        opened.store.put(Table::Settings, b"port", b"4433").unwrap();
        for (number, state) in (0..).zip(states.clone()) {
            opened.store.put_incoming(&incoming(number, state)).unwrap();
        }
    }
    let opened = Store::open(&path, 0).unwrap();
    assert_eq!(opened.moved_aside, None);
    let store = opened.store;
    assert_eq!(
        store.get(Table::Settings, b"port").unwrap().as_deref(),
        Some(&b"4433"[..])
    );
    assert_eq!(store.get(Table::Tickets, b"port").unwrap(), None);
    assert_eq!(store.incoming_all().unwrap().len(), 2);
    for (number, state) in (0..).zip(states) {
        let record = incoming(number, state);
        assert_eq!(store.incoming(record.transfer).unwrap(), Some(record));
    }
}

#[test]
fn tables_list_in_order_and_forget_what_is_deleted() {
    let store = Store::in_memory().unwrap();
    assert_eq!(store.list(Table::AddressBook).unwrap(), Vec::new());
    let rows = [(b"b", b"2"), (b"a", b"1")].map(|(key, value)| (key.to_vec(), value.to_vec()));
    store.put_all(Table::AddressBook, &rows).unwrap();
    store.delete(Table::AddressBook, b"missing").unwrap();
    let keys: Vec<_> = store
        .list(Table::AddressBook)
        .unwrap()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(keys, [b"a".to_vec(), b"b".to_vec()]);
    store.delete(Table::AddressBook, b"a").unwrap();
    assert_eq!(store.list(Table::AddressBook).unwrap().len(), 1);
}

#[test]
fn claims_are_walked_in_order_and_kept_apart() {
    let store = Store::in_memory().unwrap();
    let (one, other) = (TransferId([1; 16]), TransferId([2; 16]));
    let run = |first, values: &[u8]| ClaimRun {
        first,
        values: values.iter().map(|&value| [value; 32]).collect(),
    };
    store.claim(one, &[run(300, &[30]), run(2, &[12, 13])]).unwrap();
    store.claim(one, &[run(0, &[10, 11])]).unwrap();
    store.claim(other, &[run(0, &[99])]).unwrap();
    assert_eq!(
        claims(&store, one),
        [(0, 10), (1, 11), (2, 12), (3, 13), (300, 30)]
    );
    store.drop_claims(one).unwrap();
    assert_eq!(claims(&store, one), []);
    assert_eq!(claims(&store, other), [(0, 99)]);
    let long = run(0, &[5; 10_000]);
    store.claim(one, std::slice::from_ref(&long)).unwrap();
    assert_eq!(claims(&store, one).len(), 10_000);
    store.remove_incoming(one).unwrap();
    assert_eq!(claims(&store, one), []);
}

#[test]
fn delivered_transfers_are_remembered_up_to_a_bound() {
    let store = Store::in_memory().unwrap();
    let delivered = || {
        IncomingState::Delivered(Delivered {
            root: [1; 32],
            place: place(),
            at: UnixMillis(9),
        })
    };
    let numbers = 0..u128::from(DELIVERED_MAX) + 3;
    for number in numbers.clone() {
        store.mark_delivered(&incoming(number, delivered())).unwrap();
    }
    assert_eq!(store.incoming_all().unwrap().len() as u64, DELIVERED_MAX);
    assert_eq!(store.incoming(TransferId(2u128.to_be_bytes())).unwrap(), None);
    let last = incoming(numbers.end - 1, delivered());
    assert_eq!(store.incoming(last.transfer).unwrap(), Some(last));
}

#[test]
fn outgoing_transfers_are_read_back_in_every_state() {
    let store = Store::in_memory().unwrap();
    let states = [
        OutgoingState::Active,
        OutgoingState::Delivered {
            root: [4; 32],
            at: UnixMillis(1),
        },
        OutgoingState::Failed {
            fault: Fault::SourceChanged,
            at: UnixMillis(2),
        },
    ];
    let fingerprints = [
        SourceFingerprint::File {
            len: 1,
            modified_ns: -2,
            inode: 3,
            device: 4,
        },
        SourceFingerprint::Tree([5; 32]),
        SourceFingerprint::Memory([6; 32]),
    ];
    for (number, (state, fingerprint)) in (0u128..).zip(states.into_iter().zip(fingerprints)) {
        let record = OutgoingRecord {
            transfer: TransferId(number.to_be_bytes()),
            offer: offer(),
            path: (number > 0).then(|| b"/data/\xff".to_vec()),
            fingerprint,
            started: UnixMillis(3),
            state,
        };
        store.put_outgoing(&record).unwrap();
        store.put_outgoing(&record).unwrap();
        assert_eq!(store.outgoing(record.transfer).unwrap(), Some(record));
    }
    assert_eq!(store.outgoing_all().unwrap().len(), 3);
    store.remove_outgoing(TransferId([0; 16])).unwrap();
    assert_eq!(store.outgoing_all().unwrap().len(), 2);
}

#[test]
fn a_locked_store_is_its_own_error_and_stays_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let first = Store::open(&path, 0).unwrap();
    let second = Store::open(&path, 0).unwrap_err();
    assert!(
        matches!(&second, StoreError::Locked(locked) if *locked == path),
        "{second:?}"
    );
    assert!(second.to_string().contains("--data-dir"));
    drop(first);
    assert_eq!(Store::open(&path, 0).unwrap().moved_aside, None);
}

#[test]
fn a_foreign_file_is_moved_aside_with_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let long = vec![b'x'; 100_000];
    for (attempt, content) in [&b"not a database"[..], &long].into_iter().enumerate() {
        std::fs::write(&path, content).unwrap();
        let opened = Store::open(&path, 77).unwrap();
        let aside = opened.moved_aside.unwrap();
        let suffix = ["state.redb.corrupt-77", "state.redb.corrupt-77-2"][attempt];
        assert_eq!(aside, folder.path().join(suffix));
        assert_eq!(std::fs::read(aside).unwrap(), content);
        opened.store.put(Table::Nodes, b"k", b"v").unwrap();
    }
}

#[test]
fn another_programs_database_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let table: TableDefinition<'_, u64, u64> = TableDefinition::new("theirs");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(table).unwrap().insert(1, 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(Store::open(&path, 1).unwrap().moved_aside.is_some());
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(SCHEMA)
        .unwrap()
        .insert("schema", SCHEMA_VERSION + 1)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Store::open(&path, 1).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found } if found == SCHEMA_VERSION + 1));
    assert!(path.exists());
}

#[test]
fn a_truncated_or_overwritten_store_is_moved_aside_or_read_right() {
    for at in 0..40u64 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        {
            let store = Store::open(&path, 0).unwrap().store;
            let rows: Vec<_> = (0..200u32)
                .map(|number| (number.to_be_bytes().to_vec(), vec![1; 500]))
                .collect();
            store.put_all(Table::Settings, &rows).unwrap();
        }
        let len = std::fs::metadata(&path).unwrap().len();
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        if at % 4 == 0 {
            file.set_len(len * (at + 1) / 41).unwrap();
        } else {
            file.seek(SeekFrom::Start(len * at / 40)).unwrap();
            file.write_all(&[0x5a; 5_000]).unwrap();
        }
        drop(file);
        let opened = Store::open(&path, 1).unwrap();
        let count = opened.store.list(Table::Settings).unwrap().len();
        assert_eq!(
            count,
            if opened.moved_aside.is_some() { 0 } else { 200 },
            "damage {at}"
        );
    }
}

#[test]
fn a_full_disk_fails_one_write_and_not_the_store() {
    let storage = LossyStorage::new();
    let journal = storage.clone();
    let store = Store::with_backend(move || Ok(journal.journal())).unwrap();
    store.put(Table::Settings, b"a", b"1").unwrap();
    for error in [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
        storage.fail(Operation::Journal, error);
        let failed = store.put(Table::Settings, b"a", b"2").unwrap_err();
        assert_eq!(failed.io_kind(), Some(error));
        storage.heal();
        assert_eq!(
            store.get(Table::Settings, b"a").unwrap().as_deref(),
            Some(&b"1"[..])
        );
    }
    store.put(Table::Settings, b"a", b"3").unwrap();
}

#[test]
fn what_was_committed_survives_every_crash() {
    for seed in 0..300u64 {
        let storage = LossyStorage::new();
        let journal = storage.clone();
        let store = Store::with_backend(move || Ok(journal.journal())).unwrap();
        storage.crash_at(storage.operations() + 1 + seed % 60);
        let mut committed = 0u32;
        while store
            .put(Table::Settings, b"n", &(committed + 1).to_be_bytes())
            .is_ok()
        {
            committed += 1;
        }
        drop(store);
        let found = storage.reboot(seed);
        let store = Store::with_backend(move || Ok(found.journal())).unwrap();
        let value = store.get(Table::Settings, b"n").unwrap();
        let value = value.map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
        // The commit that the crash interrupted may have reached the disk.
        assert!(
            (committed..=committed + 1).contains(&value),
            "seed {seed}: {value} {committed}"
        );
    }
}
