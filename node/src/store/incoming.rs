//! The journal of what arrives: offers, claims of durable chunks, and what was delivered.
//!
//! A claim says "these chunks, with these values, were synced to the partial file"; it is written after that sync and
//! never before. Claims are kept as runs of neighboring chunks under the key (transfer, first index), so that a seal
//! can merge them in order without holding them all. Delivered transfers are remembered, so that a sender that missed
//! the last acknowledgement is told so instead of sending again; their number is bounded.

use std::ops::ControlFlow;

use hyperfabric_protocol::cbor::{DecodeError, Decoder, Encoder, Value};
use hyperfabric_protocol::transfer::Offer;
use hyperfabric_protocol::{PeerId, TransferId, UnixMillis};
use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, TableError};

use super::{BytesTable, Store, StoreError, get_bytes, list_bytes};
use crate::storage::{PATH_BYTES_MAX, RelPath};
use crate::transfer::hash::{ChunkValue, Root, VALUE_BYTES};

/// Delivered transfers that are remembered; the oldest are forgotten first.
pub const DELIVERED_MAX: u64 = 10_000;

/// Chunks in one row of claims, which bounds a row to 128 KiB.
pub const CLAIM_RUN_CHUNKS_MAX: usize = 4_096;

const INCOMING: BytesTable = TableDefinition::new("incoming");
const CLAIMS: BytesTable = TableDefinition::new("incoming_claims");
const DELIVERED_ORDER: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("incoming_delivered");

/// An incoming transfer as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingRecord {
    /// Which transfer.
    pub transfer: TransferId,
    /// Who sends it.
    pub peer: PeerId,
    /// What was offered.
    pub offer: Offer,
    /// When it was first accepted.
    pub started: UnixMillis,
    /// How far it is.
    pub state: IncomingState,
}

/// How far an incoming transfer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IncomingState {
    /// Its chunks are arriving.
    Receiving,
    /// It is complete and verified, and is about to get its place in the inbox.
    Sealing(Sealing),
    /// It is in the inbox.
    Delivered(Delivered),
}

/// The place that a complete transfer is about to be renamed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealing {
    /// The verified digest.
    pub root: Root,
    /// The place, which was free when this was written.
    pub place: RelPath,
}

/// Where and when a transfer was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The verified digest.
    pub root: Root,
    /// Its place in the inbox.
    pub place: RelPath,
    /// When.
    pub at: UnixMillis,
}

/// The values of neighboring chunks, of which the first has the index `first`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRun {
    /// Index of the first chunk.
    pub first: u64,
    /// One value for each chunk from there on; [`CLAIM_RUN_CHUNKS_MAX`] at most.
    pub values: Vec<ChunkValue>,
}

impl Store {
    /// Writes an incoming transfer, durably.
    ///
    /// # Errors
    /// When the database fails.
    pub fn put_incoming(&self, record: &IncomingRecord) -> Result<(), StoreError> {
        self.write(|tables| {
            let bytes = encode(record);
            tables
                .open_table(INCOMING)?
                .insert(record.transfer.0.as_slice(), bytes.as_slice())?;
            Ok(())
        })
    }

    /// Reads an incoming transfer.
    ///
    /// # Errors
    /// When the database fails or the record is damaged.
    pub fn incoming(&self, transfer: TransferId) -> Result<Option<IncomingRecord>, StoreError> {
        self.read(|tables| get_bytes(tables, INCOMING, &transfer.0))?
            .map(|bytes| decode(transfer, &bytes))
            .transpose()
    }

    /// Lists the incoming transfers, delivered ones included, in no particular order.
    ///
    /// # Errors
    /// When the database fails or a record is damaged.
    pub fn incoming_all(&self) -> Result<Vec<IncomingRecord>, StoreError> {
        self.read(|tables| list_bytes(tables, INCOMING))?
            .iter()
            .map(|(key, bytes)| {
                let id: [u8; 16] = key
                    .as_slice()
                    .try_into()
                    .map_err(|_| StoreError::Record("the id of an incoming transfer"))?;
                decode(TransferId(id), bytes)
            })
            .collect()
    }

    /// Claims chunks, durably; their bytes must have been synced before.
    ///
    /// # Errors
    /// When the database fails; nothing is claimed then.
    pub fn claim(&self, transfer: TransferId, runs: &[ClaimRun]) -> Result<(), StoreError> {
        self.write(|tables| add_claims(tables, transfer, runs))
    }

    /// Forgets all claims of a transfer and claims these instead, durably, all or nothing.
    ///
    /// # Errors
    /// When the database fails; the old claims are then still there.
    pub fn replace_claims(&self, transfer: TransferId, runs: &[ClaimRun]) -> Result<(), StoreError> {
        self.write(|tables| {
            remove_claims(tables, transfer)?;
            add_claims(tables, transfer, runs)
        })
    }

    /// Walks the claimed chunks in the order of their indexes.
    ///
    /// # Errors
    /// When the database fails or a record is damaged.
    pub fn for_each_claim(
        &self,
        transfer: TransferId,
        mut visit: impl FnMut(u64, ChunkValue) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.read(|tables| {
            let claims = match tables.open_table(CLAIMS) {
                Ok(claims) => claims,
                Err(TableError::TableDoesNotExist(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let (first, last) = (claim_key(transfer, 0), claim_key(transfer, u64::MAX));
            for row in claims.range(first.as_slice()..=last.as_slice())? {
                let (key, values) = row?;
                let first = claim_index(key.value())?;
                let (values, rest) = values.value().as_chunks::<VALUE_BYTES>();
                if !rest.is_empty() {
                    return Err(StoreError::Record("claimed chunks"));
                }
                for (index, value) in (first..).zip(values) {
                    if visit(index, *value).is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    /// Forgets all claims of a transfer, durably.
    ///
    /// # Errors
    /// When the database fails.
    pub fn drop_claims(&self, transfer: TransferId) -> Result<(), StoreError> {
        self.write(|tables| remove_claims(tables, transfer))
    }

    /// Marks a transfer as delivered, durably, and forgets its claims and the oldest deliveries.
    ///
    /// # Errors
    /// When the database fails.
    pub fn mark_delivered(&self, record: &IncomingRecord) -> Result<(), StoreError> {
        self.write(|tables| {
            let mut incoming = tables.open_table(INCOMING)?;
            let bytes = encode(record);
            incoming.insert(record.transfer.0.as_slice(), bytes.as_slice())?;
            remove_claims(tables, record.transfer)?;
            let mut order = tables.open_table(DELIVERED_ORDER)?;
            let next = order.last()?.map_or(0, |(last, _)| last.value() + 1);
            order.insert(next, record.transfer.0.as_slice())?;
            while order.len()? > DELIVERED_MAX {
                let Some((_, oldest)) = order.pop_first()? else {
                    break;
                };
                incoming.remove(oldest.value())?;
            }
            Ok(())
        })
    }

    /// Forgets a transfer with all its claims, durably; one that is missing is no error.
    ///
    /// # Errors
    /// When the database fails.
    pub fn remove_incoming(&self, transfer: TransferId) -> Result<(), StoreError> {
        self.write(|tables| {
            tables.open_table(INCOMING)?.remove(transfer.0.as_slice())?;
            remove_claims(tables, transfer)
        })
    }
}

fn add_claims(
    tables: &redb::WriteTransaction,
    transfer: TransferId,
    runs: &[ClaimRun],
) -> Result<(), StoreError> {
    let mut claims = tables.open_table(CLAIMS)?;
    for run in runs {
        let mut first = run.first;
        for values in run.values.chunks(CLAIM_RUN_CHUNKS_MAX) {
            let key = claim_key(transfer, first);
            claims.insert(key.as_slice(), values.as_flattened())?;
            first += values.len() as u64;
        }
    }
    Ok(())
}

fn remove_claims(tables: &redb::WriteTransaction, transfer: TransferId) -> Result<(), StoreError> {
    let mut claims = tables.open_table(CLAIMS)?;
    let (first, last) = (claim_key(transfer, 0), claim_key(transfer, u64::MAX));
    claims.retain_in(first.as_slice()..=last.as_slice(), |_, _| false)?;
    Ok(())
}

fn claim_key(transfer: TransferId, first: u64) -> [u8; 24] {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&transfer.0);
    key[16..].copy_from_slice(&first.to_be_bytes());
    key
}

fn claim_index(key: &[u8]) -> Result<u64, StoreError> {
    key.get(16..)
        .and_then(|index| index.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or(StoreError::Record("the key of claimed chunks"))
}

const RECEIVING: u64 = 0;
const SEALING: u64 = 1;
const DELIVERED: u64 = 2;

fn encode(record: &IncomingRecord) -> Vec<u8> {
    let mut e = Encoder::new();
    e.array(7);
    record.peer.encode(&mut e);
    record.offer.encode(&mut e);
    e.u64(record.started.0);
    let (state, root, place, at) = match &record.state {
        IncomingState::Receiving => (RECEIVING, &[0; VALUE_BYTES], &RelPath::ROOT, UnixMillis(0)),
        IncomingState::Sealing(sealing) => (SEALING, &sealing.root, &sealing.place, UnixMillis(0)),
        IncomingState::Delivered(delivered) => (DELIVERED, &delivered.root, &delivered.place, delivered.at),
    };
    e.u64(state);
    e.bytes(root);
    e.bytes(place.as_bytes());
    e.u64(at.0);
    e.into_bytes()
}

fn decode(transfer: TransferId, bytes: &[u8]) -> Result<IncomingRecord, StoreError> {
    decode_cbor(transfer, bytes).map_err(|_| StoreError::Record("an incoming transfer"))
}

fn decode_cbor(transfer: TransferId, bytes: &[u8]) -> Result<IncomingRecord, DecodeError> {
    let mut d = Decoder::new(bytes);
    if d.array(7)? != 7 {
        return Err(DecodeError::Invalid("length"));
    }
    let peer = PeerId::decode(&mut d)?;
    let offer = Offer::decode(&mut d)?;
    let started = UnixMillis(d.u64()?);
    let state = d.u64()?;
    let root = d.fixed_bytes()?;
    let place = d.bytes(PATH_BYTES_MAX)?;
    let at = UnixMillis(d.u64()?);
    d.end()?;
    let place = || RelPath::parse(place).map_err(|_| DecodeError::Invalid("place"));
    let state = match state {
        RECEIVING => IncomingState::Receiving,
        SEALING => IncomingState::Sealing(Sealing {
            root,
            place: place()?,
        }),
        DELIVERED => IncomingState::Delivered(Delivered {
            root,
            place: place()?,
            at,
        }),
        _ => return Err(DecodeError::Invalid("state")),
    };
    Ok(IncomingRecord {
        transfer,
        peer,
        offer,
        started,
        state,
    })
}
