//! Before the first chunk: may it come, is there room, and what of it is there already.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, RwLock};

use futures::stream::{self, StreamExt, TryStreamExt};
use hyperfabric_protocol::transfer::limits::SUSPENDED_MAX;
use hyperfabric_protocol::transfer::{ChunkRanges, Offer, PayloadKind, RANGES_MAX};
use hyperfabric_protocol::{PeerId, TransferId, UnixMillis};

use super::super::hash::{CHUNKS_MAX, ChunkValue, Layout, Merger, Root};
use super::super::inbox::{self, INBOX, PARTIAL, Refusal, Reservations, Room};
use super::state::{Incoming, claim_runs};
use super::{Parts, ReceiveError, Receiver, Shared, Violation};
use crate::storage::{Access, EntryKind, RelPath, StorageFile};
use crate::store::{Delivered, IncomingRecord, IncomingState, StoreError};

/// Claimed chunks that one job checks; small enough that other transfers' chunks get a turn.
const CHECK_CHUNKS: usize = 16;

/// Jobs that check claims at once.
const CHECK_JOBS: usize = 2;

/// Partial files that are looked at when a receiver starts; no more can have been made.
const PARTIAL_ENTRIES_MAX: usize = 4 * inbox::UNFINISHED_MAX;

/// What becomes of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// The sender may send what is missing.
    Ready {
        /// Chunks that are there, durable and checked.
        have: ChunkRanges,
    },
    /// It was delivered before; the sender missed the acknowledgement.
    AlreadyDelivered {
        /// The verified digest.
        root: Root,
        /// Its place, below the data folder.
        place: RelPath,
    },
}

/// The partial file of a transfer, below the data folder.
pub(super) fn partial_path(transfer: TransferId) -> RelPath {
    partial_folder()
        .join(transfer.to_string().as_bytes())
        .expect("hexadecimal digits are a plain name")
}

/// The folder that a folder is unpacked into before its rename.
pub(super) fn staging_path(transfer: TransferId) -> RelPath {
    partial_folder()
        .join(format!("{transfer}.tree").as_bytes())
        .expect("hexadecimal digits and a suffix are a plain name")
}

pub(super) fn partial_folder() -> RelPath {
    RelPath::parse(PARTIAL).expect("a constant plain name")
}

fn inbox_folder() -> RelPath {
    RelPath::parse(INBOX).expect("a constant plain name")
}

impl Receiver {
    /// Takes up the journal and the partial files that are there; blocks on the disk.
    ///
    /// Partial files that the journal does not know are removed, room for unfinished transfers is held again.
    ///
    /// # Errors
    /// When the disk or the journal fails.
    pub fn open(parts: Parts) -> Result<Self, ReceiveError> {
        let storage = parts.storage;
        storage.ensure_folder(&partial_folder())?;
        storage.ensure_folder(&inbox_folder())?;
        let mut reservations = Reservations::new(storage.bytes_below(&inbox_folder())?);
        let mut known = Vec::new();
        for record in parts.store.incoming_all()? {
            if matches!(record.state, IncomingState::Delivered(_)) {
                continue;
            }
            let partial = partial_path(record.transfer);
            // Space that was taken ahead is taken already.
            let on_disk = storage.metadata(&partial)?.map_or(0, |found| found.len);
            let to_take = Reservations::disk_bytes(&record.offer).saturating_sub(on_disk);
            reservations.hold(record.transfer, record.peer.0, &record.offer, to_take);
            // Its sender is given the time to come back that it would have without a restart.
            let idle_from = record.started.after(SUSPENDED_MAX);
            reservations.set_idle(record.transfer, record.peer, idle_from);
            known.push(partial);
            known.push(staging_path(record.transfer));
        }
        for entry in storage.list(&partial_folder(), PARTIAL_ENTRIES_MAX)? {
            if let Ok(path) = partial_folder().join(&entry.name)
                && !known.contains(&path)
            {
                storage.remove(&path)?;
            }
        }
        Ok(Self {
            shared: Arc::new(Shared {
                storage,
                store: parts.store,
                workers: parts.workers,
                buffers: parts.buffers,
                policy: RwLock::new(parts.policy),
                tuning: parts.tuning,
                on_durable: parts.on_durable,
                reservations: Mutex::new(reservations),
                open: Mutex::new(HashMap::new()),
                preparing: Mutex::new(HashSet::new()),
            }),
        })
    }

    /// Decides on an offer and finds out what of it is there; streams of earlier attempts are not taken any more.
    ///
    /// # Errors
    /// A refusal, a violation, or a failure of disk or journal; all of them end the transfer.
    pub async fn prepare(
        &self,
        transfer: TransferId,
        peer: PeerId,
        offer: Offer,
        attempt: u32,
        now: UnixMillis,
    ) -> Result<Prepared, ReceiveError> {
        let _turn = Turn::take(&self.shared, transfer).ok_or(Refusal::Busy)?;
        self.shared.reservations().set_busy(transfer, peer);
        let prepared = self.prepare_busy(transfer, peer, offer, attempt, now).await;
        if prepared.is_err() {
            // The machine says what becomes of what was there; until then it is nobody's.
            self.shared.reservations().set_idle(transfer, peer, now);
        }
        prepared
    }

    async fn prepare_busy(
        &self,
        transfer: TransferId,
        peer: PeerId,
        offer: Offer,
        attempt: u32,
        now: UnixMillis,
    ) -> Result<Prepared, ReceiveError> {
        if let Some(have) = self.reopen(transfer, peer, &offer, attempt).await? {
            return Ok(Prepared::Ready { have });
        }
        let found = match self.find_or_begin(transfer, peer, &offer, now).await {
            Err(ReceiveError::Refused(
                refusal @ (Refusal::Quota { .. } | Refusal::Disk { .. } | Refusal::Busy),
            )) => {
                if !self.make_room(peer, &offer, now).await? {
                    return Err(refusal.into());
                }
                self.find_or_begin(transfer, peer, &offer, now).await?
            }
            found => found?,
        };
        let (record, file, claims) = match found {
            Found::Delivered(delivered) => {
                return Ok(Prepared::AlreadyDelivered {
                    root: delivered.root,
                    place: delivered.place,
                });
            }
            Found::Open { record, file, claims } => (*record, file, claims),
        };
        let layout = self.shared.tuning.layout(record.offer.size);
        let have = self.check_claims(transfer, &file, layout, claims).await?;
        let incoming = Incoming::new(
            (transfer, record.peer, record.offer),
            (partial_path(transfer), file),
            layout,
            have.clone(),
            (self.shared.store.clone(), Arc::clone(&self.shared.on_durable)),
        );
        incoming.set_attempt(Some(attempt));
        self.shared.open().insert(transfer, Arc::new(incoming));
        Ok(Prepared::Ready { have })
    }

    async fn find_or_begin(
        &self,
        transfer: TransferId,
        peer: PeerId,
        offer: &Offer,
        now: UnixMillis,
    ) -> Result<Found, ReceiveError> {
        let (shared, offer) = (Arc::clone(&self.shared), offer.clone());
        self.shared
            .workers
            .run(move || shared.find_or_begin(transfer, peer, offer, now))
            .await?
    }

    /// Removes what is kept of transfers that are not under way, as far as an offer needs their room; returns whether
    /// there was anything to remove.
    async fn make_room(&self, peer: PeerId, offer: &Offer, now: UnixMillis) -> Result<bool, ReceiveError> {
        let (shared, wanted) = (Arc::clone(&self.shared), offer.clone());
        let victims = self
            .shared
            .workers
            .run(move || shared.victims(peer, &wanted, now))
            .await??;
        let mut removed = false;
        for (victim, of) in victims {
            let Some(_turn) = Turn::take(&self.shared, victim) else {
                // Its sender is back.
                continue;
            };
            if self.shared.reservations().is_idle(victim, now) {
                tracing::info!(transfer = %victim, "an unfinished transfer gives way to another one");
                self.discard(victim, of).await?;
                removed = true;
            }
        }
        Ok(removed)
    }

    /// The chunks of a transfer that is open already; `None` when it has to be taken up from the journal.
    async fn reopen(
        &self,
        transfer: TransferId,
        peer: PeerId,
        offer: &Offer,
        attempt: u32,
    ) -> Result<Option<ChunkRanges>, ReceiveError> {
        let Some(incoming) = self.shared.open().get(&transfer).cloned() else {
            return Ok(None);
        };
        if incoming.peer != peer {
            return Err(Violation::IdInUse.into());
        }
        if incoming.offer != *offer {
            return Err(ReceiveError::OfferChanged);
        }
        // Streams of the earlier attempt bring nothing more from here on.
        incoming.set_attempt(None);
        if self.settle(&incoming).await.is_ok() {
            let have = incoming.durable();
            if have.ranges().len() <= RANGES_MAX {
                incoming.set_attempt(Some(attempt));
                return Ok(Some(have));
            }
        }
        incoming.drained().await;
        self.shared.open().remove(&transfer);
        Ok(None)
    }

    /// Reads claimed chunks again; what does not have its claimed value is claimed no longer. [BULK-9]
    async fn check_claims(
        &self,
        transfer: TransferId,
        file: &Arc<dyn StorageFile>,
        layout: Layout,
        mut claims: Vec<(u64, ChunkValue)>,
    ) -> Result<ChunkRanges, ReceiveError> {
        let claimed = claims.len();
        keep_announceable(&mut claims);
        let batches: Vec<Vec<_>> = claims.chunks(CHECK_CHUNKS).map(<[_]>::to_vec).collect();
        let mut good: Vec<(u64, ChunkValue)> = stream::iter(batches)
            .map(|batch| {
                let file = Arc::clone(file);
                self.shared.workers.run(move || check_batch(&file, layout, batch))
            })
            .buffered(CHECK_JOBS)
            .try_concat()
            .await?;
        if good.len() < claimed {
            tracing::warn!(%transfer, lost = claimed - good.len(), "claimed chunks are not on the disk");
            let runs = claim_runs(&mut good);
            let store = self.shared.store.clone();
            self.shared
                .workers
                .run(move || store.replace_claims(transfer, &runs))
                .await??;
        }
        Ok(good.iter().map(|(index, _)| *index..*index + 1).collect())
    }
}

/// Gives up claims that no frame has room to announce: the sender would send those chunks a second time.
fn keep_announceable(claims: &mut Vec<(u64, ChunkValue)>) {
    let mut ranges = 0;
    let mut expected = None;
    let end = claims.iter().position(|(index, _)| {
        if expected != Some(*index) {
            ranges += 1;
        }
        expected = Some(index + 1);
        ranges > RANGES_MAX
    });
    claims.truncate(end.unwrap_or(claims.len()));
}

/// Keeps a transfer's prepares apart from each other, and from making room.
struct Turn<'a> {
    shared: &'a Shared,
    transfer: TransferId,
}

impl<'a> Turn<'a> {
    fn take(shared: &'a Shared, transfer: TransferId) -> Option<Self> {
        shared
            .preparing()
            .insert(transfer)
            .then(|| Self { shared, transfer })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.preparing().remove(&self.transfer);
    }
}

fn check_batch(
    file: &Arc<dyn StorageFile>,
    layout: Layout,
    mut batch: Vec<(u64, ChunkValue)>,
) -> Vec<(u64, ChunkValue)> {
    let mut buffer = Vec::new();
    batch.retain(|(index, value)| {
        buffer.resize(layout.chunk_len(*index), 0);
        // A chunk that cannot be read is one that is sent again; if the disk is dying, writing it will say so.
        file.read_at(layout.offset(*index), &mut buffer).is_ok() && layout.value(*index, &buffer) == *value
    });
    batch
}

enum Found {
    Delivered(Delivered),
    Open {
        record: Box<IncomingRecord>,
        file: Arc<dyn StorageFile>,
        claims: Vec<(u64, ChunkValue)>,
    },
}

impl Shared {
    fn find_or_begin(
        &self,
        transfer: TransferId,
        peer: PeerId,
        offer: Offer,
        now: UnixMillis,
    ) -> Result<Found, ReceiveError> {
        match self.store.incoming(transfer)? {
            Some(record) if record.peer != peer => Err(Violation::IdInUse.into()),
            Some(record) if record.offer != offer => Err(ReceiveError::OfferChanged),
            Some(record) => self.resume(record, now),
            None => self.begin(transfer, peer, offer, now),
        }
    }

    fn begin(
        &self,
        transfer: TransferId,
        peer: PeerId,
        offer: Offer,
        now: UnixMillis,
    ) -> Result<Found, ReceiveError> {
        if !self.policy().accept.allows(&offer.source) {
            return Err(Refusal::NotAccepted.into());
        }
        inbox::check_name(&offer.name).map_err(Refusal::Name)?;
        // [BULK-10]
        if self.tuning.layout(offer.size).chunks() > CHUNKS_MAX {
            return Err(ReceiveError::TooLarge);
        }
        self.reserve(transfer, peer, &offer)?;
        let record = IncomingRecord {
            transfer,
            peer,
            offer,
            started: now,
            state: IncomingState::Receiving,
        };
        match self.create_partial(&record) {
            Ok(file) => Ok(Found::Open {
                record: Box::new(record),
                file,
                claims: Vec::new(),
            }),
            Err(error) => {
                // Best effort: what stays is removed when the receiver is opened next.
                let _ = self.storage.remove(&partial_path(transfer));
                let _ = self.store.remove_incoming(transfer);
                self.reservations().release(transfer, false);
                Err(error)
            }
        }
    }

    fn reserve(&self, transfer: TransferId, peer: PeerId, offer: &Offer) -> Result<(), ReceiveError> {
        let policy = self.policy();
        // The user may have cleared the inbox since it was counted last: count again before saying no.
        if self.reservations().check_quota(offer, &policy).is_err() {
            let used = self.storage.bytes_below(&inbox_folder())?;
            self.reservations().used = used;
        }
        let room = self.room()?;
        Ok(self.reservations().reserve(transfer, peer.0, offer, &room)?)
    }

    fn room(&self) -> Result<Room, ReceiveError> {
        Ok(Room {
            policy: self.policy(),
            free_bytes: self.storage.free_bytes()?,
        })
    }

    fn victims(
        &self,
        peer: PeerId,
        offer: &Offer,
        now: UnixMillis,
    ) -> Result<Vec<(TransferId, PeerId)>, ReceiveError> {
        let room = self.room()?;
        Ok(self.reservations().victims(peer.0, offer, &room, now))
    }

    fn create_partial(&self, record: &IncomingRecord) -> Result<Arc<dyn StorageFile>, ReceiveError> {
        // Found out now, not after the last byte.
        let folder = inbox::sender_folder(&record.offer.source);
        self.storage.ensure_folder(&folder)?;
        self.storage.check_writable(&folder)?;
        let path = partial_path(record.transfer);
        self.storage.remove(&path)?;
        let file = self.storage.open(&path, Access::CreateNew)?;
        let size = record.offer.size;
        let allocated = size >= self.tuning.allocate_min && file.allocate(size)?;
        if allocated {
            self.reservations().taken(record.transfer, size);
        } else {
            file.set_len(size)?;
        }
        self.storage.sync_folder(&partial_folder())?;
        self.store.put_incoming(record)?;
        Ok(file)
    }

    fn resume(&self, record: IncomingRecord, now: UnixMillis) -> Result<Found, ReceiveError> {
        let transfer = record.transfer;
        match &record.state {
            IncomingState::Delivered(delivered) => return Ok(Found::Delivered(delivered.clone())),
            IncomingState::Sealing(sealing) => {
                if let Some(delivered) = self.finish_sealing(&record, sealing, now)? {
                    return Ok(Found::Delivered(delivered));
                }
                // From here on the staged files may be touched again, so the place written down means nothing.
                self.store.put_incoming(&IncomingRecord {
                    state: IncomingState::Receiving,
                    ..record.clone()
                })?;
            }
            IncomingState::Receiving => {}
        }
        if !self.policy().accept.allows(&record.offer.source) {
            return Err(Refusal::NotAccepted.into());
        }
        let record = IncomingRecord {
            state: IncomingState::Receiving,
            ..record
        };
        match self.storage.open(&partial_path(transfer), Access::Write) {
            Ok(file) => {
                let claims = self.claims(transfer)?;
                Ok(Found::Open {
                    record: Box::new(record),
                    file,
                    claims,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.store.drop_claims(transfer)?;
                let file = self.create_partial(&record)?;
                Ok(Found::Open {
                    record: Box::new(record),
                    file,
                    claims: Vec::new(),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn claims(&self, transfer: TransferId) -> Result<Vec<(u64, ChunkValue)>, StoreError> {
        let mut claims = Vec::new();
        self.store.for_each_claim(transfer, |index, value| {
            claims.push((index, value));
            ControlFlow::Continue(())
        })?;
        Ok(claims)
    }

    /// Finds out whether the rename that was written down had happened before the crash.
    fn finish_sealing(
        &self,
        record: &IncomingRecord,
        sealing: &crate::store::Sealing,
        now: UnixMillis,
    ) -> Result<Option<Delivered>, ReceiveError> {
        let (staged, kind) = match record.offer.kind {
            PayloadKind::File => (partial_path(record.transfer), EntryKind::File),
            PayloadKind::Tree => (staging_path(record.transfer), EntryKind::Folder),
        };
        if self.storage.metadata(&staged)?.is_some() {
            return Ok(None);
        }
        // The staged name was durable before the place was written down: only the rename can have taken it away.
        let in_place = self.storage.metadata(&sealing.place)?;
        if in_place.map(|found| found.kind) != Some(kind) {
            return Ok(None);
        }
        if kind == EntryKind::File && !self.has_root(&sealing.place, record, sealing.root)? {
            return Ok(None);
        }
        self.finish_delivery(record, sealing, now).map(Some)
    }

    fn has_root(&self, place: &RelPath, record: &IncomingRecord, root: Root) -> Result<bool, ReceiveError> {
        let file = self.storage.open(place, Access::Read)?;
        if file.size()? != record.offer.size {
            return Ok(false);
        }
        let layout = self.tuning.layout(record.offer.size);
        let mut merger = Merger::new(layout);
        let mut buffer = Vec::new();
        for index in 0..layout.chunks() {
            buffer.resize(layout.chunk_len(index), 0);
            file.read_at(layout.offset(index), &mut buffer)?;
            merger.push(layout.value(index, &buffer));
        }
        Ok(merger.finish() == Some(root))
    }
}
