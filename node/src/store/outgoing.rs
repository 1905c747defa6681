//! The journal of what is sent: enough to go on after a restart, and to show what became of it.

use hyperfabric_protocol::cbor::{DecodeError, Decoder, Encoder, Value};
use hyperfabric_protocol::transfer::{Fault, Offer};
use hyperfabric_protocol::{TransferId, UnixMillis};
use redb::{ReadableTable, ReadableTableMetadata, TableDefinition};

use super::{BytesTable, Store, StoreError, get_bytes, list_bytes};
use crate::storage::PATH_BYTES_MAX;
use crate::transfer::hash::Root;

/// Ended transfers that are remembered; the oldest are forgotten first.
pub const ENDED_MAX: u64 = 10_000;

const OUTGOING: BytesTable = TableDefinition::new("outgoing");
const ENDED_ORDER: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outgoing_ended");

/// What tells one state of a source from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceFingerprint {
    /// A file, by what the file system says of it.
    File {
        /// Bytes.
        len: u64,
        /// Time of last change, in nanoseconds since 1970.
        modified_ns: i64,
        /// Which file of its device.
        inode: u64,
        /// Which device.
        device: u64,
    },
    /// A folder, by the digest of its manifest and of the fingerprints of its files.
    Tree([u8; 32]),
    /// Bytes in memory, by their digest.
    Memory([u8; 32]),
}

/// An outgoing transfer as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingRecord {
    /// Which transfer.
    pub transfer: TransferId,
    /// What is offered, and to whom.
    pub offer: Offer,
    /// The absolute path of the source; `None` for one that cannot be opened again.
    pub path: Option<Vec<u8>>,
    /// What the source was when the transfer began.
    pub fingerprint: SourceFingerprint,
    /// When it began.
    pub started: UnixMillis,
    /// How far it is.
    pub state: OutgoingState,
}

/// How far an outgoing transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutgoingState {
    /// It goes on until it ends, over restarts too.
    Active,
    /// The receiver has it.
    Delivered {
        /// The digest that the receiver confirmed.
        root: Root,
        /// When.
        at: UnixMillis,
    },
    /// It ended otherwise.
    Failed {
        /// Why.
        fault: Fault,
        /// When.
        at: UnixMillis,
    },
}

impl Store {
    /// Writes an outgoing transfer, durably; once it has ended, the oldest ended ones are forgotten.
    ///
    /// # Errors
    /// When the database fails.
    pub fn put_outgoing(&self, record: &OutgoingRecord) -> Result<(), StoreError> {
        self.write(|tables| {
            let mut outgoing = tables.open_table(OUTGOING)?;
            let key = record.transfer.0.as_slice();
            let had_ended = match outgoing.get(key)? {
                Some(bytes) => decode(record.transfer, bytes.value())?.state != OutgoingState::Active,
                None => false,
            };
            outgoing.insert(key, encode(record).as_slice())?;
            if record.state == OutgoingState::Active || had_ended {
                return Ok(());
            }
            let mut order = tables.open_table(ENDED_ORDER)?;
            let next = order.last()?.map_or(0, |(last, _)| last.value() + 1);
            order.insert(next, key)?;
            while order.len()? > ENDED_MAX {
                let Some((_, oldest)) = order.pop_first()? else {
                    break;
                };
                outgoing.remove(oldest.value())?;
            }
            Ok(())
        })
    }

    /// Reads an outgoing transfer.
    ///
    /// # Errors
    /// When the database fails or the record is damaged.
    pub fn outgoing(&self, transfer: TransferId) -> Result<Option<OutgoingRecord>, StoreError> {
        self.read(|tables| get_bytes(tables, OUTGOING, &transfer.0))?
            .map(|bytes| decode(transfer, &bytes))
            .transpose()
    }

    /// Lists the outgoing transfers, ended ones included, in no particular order.
    ///
    /// # Errors
    /// When the database fails or a record is damaged.
    pub fn outgoing_all(&self) -> Result<Vec<OutgoingRecord>, StoreError> {
        self.read(|tables| list_bytes(tables, OUTGOING))?
            .iter()
            .map(|(key, bytes)| {
                let id: [u8; 16] = key
                    .as_slice()
                    .try_into()
                    .map_err(|_| StoreError::Record("the id of an outgoing transfer"))?;
                decode(TransferId(id), bytes)
            })
            .collect()
    }

    /// Forgets an outgoing transfer, durably; one that is missing is no error.
    ///
    /// # Errors
    /// When the database fails.
    pub fn remove_outgoing(&self, transfer: TransferId) -> Result<(), StoreError> {
        self.write(|tables| {
            tables.open_table(OUTGOING)?.remove(transfer.0.as_slice())?;
            Ok(())
        })
    }
}

impl Value for SourceFingerprint {
    fn encode(&self, e: &mut Encoder) {
        match self {
            Self::File {
                len,
                modified_ns,
                inode,
                device,
            } => {
                e.array(5);
                e.u64(0);
                e.u64(*len);
                e.i64(*modified_ns);
                e.u64(*inode);
                e.u64(*device);
            }
            Self::Tree(digest) | Self::Memory(digest) => {
                e.array(2);
                e.u64(if matches!(self, Self::Tree(_)) { 1 } else { 2 });
                e.bytes(digest);
            }
        }
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        match (d.array(5)?, d.u64()?) {
            (5, 0) => Ok(Self::File {
                len: d.u64()?,
                modified_ns: d.i64()?,
                inode: d.u64()?,
                device: d.u64()?,
            }),
            (2, 1) => Ok(Self::Tree(d.fixed_bytes()?)),
            (2, 2) => Ok(Self::Memory(d.fixed_bytes()?)),
            _ => Err(DecodeError::Invalid("fingerprint")),
        }
    }
}

fn encode(record: &OutgoingRecord) -> Vec<u8> {
    let mut e = Encoder::new();
    e.array(8);
    record.offer.encode(&mut e);
    e.bool(record.path.is_some());
    e.bytes(record.path.as_deref().unwrap_or_default());
    record.fingerprint.encode(&mut e);
    e.u64(record.started.0);
    match record.state {
        OutgoingState::Active => {
            e.u64(0);
            e.u64(0);
            e.u64(0);
        }
        OutgoingState::Delivered { root, at } => {
            e.u64(1);
            e.bytes(&root);
            e.u64(at.0);
        }
        OutgoingState::Failed { fault, at } => {
            e.u64(2);
            fault.encode(&mut e);
            e.u64(at.0);
        }
    }
    e.into_bytes()
}

fn decode(transfer: TransferId, bytes: &[u8]) -> Result<OutgoingRecord, StoreError> {
    decode_cbor(transfer, bytes).map_err(|_| StoreError::Record("an outgoing transfer"))
}

fn decode_cbor(transfer: TransferId, bytes: &[u8]) -> Result<OutgoingRecord, DecodeError> {
    let mut d = Decoder::new(bytes);
    if d.array(8)? != 8 {
        return Err(DecodeError::Invalid("length"));
    }
    let offer = Offer::decode(&mut d)?;
    let has_path = d.bool()?;
    let path = d.bytes(PATH_BYTES_MAX)?.to_vec();
    let fingerprint = SourceFingerprint::decode(&mut d)?;
    let started = UnixMillis(d.u64()?);
    let state = match d.u64()? {
        0 => {
            d.u64()?;
            d.u64()?;
            OutgoingState::Active
        }
        1 => OutgoingState::Delivered {
            root: d.fixed_bytes()?,
            at: UnixMillis(d.u64()?),
        },
        2 => OutgoingState::Failed {
            fault: Fault::decode(&mut d)?,
            at: UnixMillis(d.u64()?),
        },
        _ => return Err(DecodeError::Invalid("state")),
    };
    d.end()?;
    Ok(OutgoingRecord {
        transfer,
        offer,
        path: has_path.then_some(path),
        fingerprint,
        started,
        state,
    })
}
