//! After the last chunk: the digest of the whole, a place in the inbox, and the acknowledgement's ground.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use hyperfabric_protocol::transfer::{Offer, PayloadKind};
use hyperfabric_protocol::{PeerId, TransferId, UnixMillis};

use super::super::hash::{Merger, Root};
use super::super::inbox::{Refusal, candidate_names, sender_folder};
use super::super::tree::unpack::{UnpackError, unpack};
use super::prepare::{partial_folder, partial_path, staging_path};
use super::state::Incoming;
use super::{ReceiveError, Receiver, Shared, Violation};
use crate::storage::{Attributes, ModifiedNs, RelPath};
use crate::store::{Delivered, IncomingRecord, IncomingState, Sealing};
use crate::workers::Lane;

/// A transfer that is in the inbox, verified and durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The digest of the whole payload.
    pub root: Root,
    /// Its place, below the data folder.
    pub place: RelPath,
}

impl Receiver {
    /// Verifies a complete transfer and moves it into the inbox; what it returns is durable.
    ///
    /// # Errors
    /// All of them end the transfer: [`Self::discard`] it.
    pub async fn seal(
        &self,
        transfer: TransferId,
        peer: PeerId,
        root: Root,
        now: UnixMillis,
    ) -> Result<Sealed, ReceiveError> {
        let incoming = self.find(transfer, peer)?;
        incoming.set_attempt(None);
        self.settle(&incoming).await?;
        let shared = Arc::clone(&self.shared);
        self.shared
            .workers
            .run_on(Lane::Sync, move || {
                let sealed = shared.seal(&incoming, root, now)?;
                shared.open().remove(&transfer);
                Ok(sealed)
            })
            .await?
    }

    /// Ends a transfer without delivering it: its partial file and its journal are removed.
    ///
    /// A transfer that was delivered stays delivered; an unknown one, or one of another sender, is no error.
    ///
    /// # Errors
    /// When the disk or the journal fails; what is left is removed when the receiver is opened next.
    pub async fn discard(&self, transfer: TransferId, peer: PeerId) -> Result<(), ReceiveError> {
        if let Ok(incoming) = self.find(transfer, peer) {
            incoming.abandon();
            incoming.drained().await;
            self.shared.open().remove(&transfer);
        }
        let shared = Arc::clone(&self.shared);
        self.shared
            .workers
            .run_on(Lane::Sync, move || shared.discard(transfer, peer))
            .await?
    }
}

impl Shared {
    fn discard(&self, transfer: TransferId, peer: PeerId) -> Result<(), ReceiveError> {
        let Some(record) = self.store.incoming(transfer)? else {
            return Ok(());
        };
        if record.peer != peer || matches!(record.state, IncomingState::Delivered(_)) {
            return Ok(());
        }
        // The room is free again whether or not the rest succeeds: nothing more is written for it.
        self.reservations().release(transfer, false);
        // The file first: a journal without its file is a fresh start, a file without its journal is litter.
        self.storage.remove(&partial_path(transfer))?;
        self.storage.remove(&staging_path(transfer))?;
        Ok(self.store.remove_incoming(transfer)?)
    }

    fn seal(&self, incoming: &Incoming, root: Root, now: UnixMillis) -> Result<Sealed, ReceiveError> {
        // [BULK-5]
        self.check_root(incoming, root)?;
        let transfer = incoming.transfer;
        let attributes = attributes(&incoming.offer);
        let staged = match incoming.offer.kind {
            PayloadKind::File => {
                incoming.file.set_attributes(attributes)?;
                incoming.file.sync_all()?;
                incoming.partial.clone()
            }
            PayloadKind::Tree => self.stage_tree(incoming, attributes)?,
        };
        let folder = sender_folder(&incoming.offer.source);
        self.storage.ensure_folder(&folder)?;
        let mut record = self.store.incoming(transfer)?.ok_or(ReceiveError::Cancelled)?;
        for name in candidate_names(&incoming.offer.name, incoming.offer.kind) {
            let place = folder
                .join(name.as_bytes())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            if self.storage.metadata(&place)?.is_some() {
                continue;
            }
            let sealing = Sealing { root, place };
            record.state = IncomingState::Sealing(sealing.clone());
            self.store.put_incoming(&record)?;
            match self.storage.rename_no_replace(&staged, &sealing.place) {
                Ok(()) => {
                    let delivered = self.finish_delivery(&record, &sealing, now)?;
                    return Ok(Sealed {
                        root: delivered.root,
                        place: delivered.place,
                    });
                }
                // Taken since we looked.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ReceiveError::NoFreeName)
    }

    fn check_root(&self, incoming: &Incoming, root: Root) -> Result<(), ReceiveError> {
        let layout = incoming.layout();
        let missing = layout.chunks() - incoming.durable().count();
        if missing > 0 {
            return Err(Violation::Incomplete(missing).into());
        }
        let mut merger = Merger::new(layout);
        self.store.for_each_claim(incoming.transfer, |index, value| {
            if merger.next_index() != index {
                return ControlFlow::Break(());
            }
            merger.push(value);
            ControlFlow::Continue(())
        })?;
        if merger.finish() == Some(root) {
            Ok(())
        } else {
            Err(ReceiveError::RootMismatch)
        }
    }

    fn stage_tree(&self, incoming: &Incoming, attributes: Attributes) -> Result<RelPath, ReceiveError> {
        let staging = staging_path(incoming.transfer);
        self.storage.remove(&staging)?;
        let needed = incoming.offer.size;
        let left = self
            .storage
            .free_bytes()?
            .saturating_sub(self.policy().min_free_bytes);
        if needed > left {
            return Err(Refusal::Disk { needed, left }.into());
        }
        unpack(
            self.storage.as_ref(),
            &incoming.file,
            needed,
            &staging,
            attributes,
        )
        .map_err(|error| match error {
            UnpackError::Manifest(fault) => ReceiveError::Manifest(fault),
            UnpackError::Storage(error) => ReceiveError::Storage(error),
        })?;
        // After a crash a missing staging folder must mean that it was renamed, so its name has to be durable first.
        self.storage.sync_folder(&partial_folder())?;
        Ok(staging)
    }

    /// Everything after the rename; also done after a restart that finds the rename done.
    pub(super) fn finish_delivery(
        &self,
        record: &IncomingRecord,
        sealing: &Sealing,
        now: UnixMillis,
    ) -> Result<Delivered, ReceiveError> {
        self.storage.sync_folder(&sealing.place.parent())?;
        self.storage.sync_folder(&partial_folder())?;
        let delivered = Delivered {
            root: sealing.root,
            place: sealing.place.clone(),
            at: now,
        };
        self.store.mark_delivered(&IncomingRecord {
            state: IncomingState::Delivered(delivered.clone()),
            ..record.clone()
        })?;
        self.reservations().release(record.transfer, true);
        if record.offer.kind == PayloadKind::Tree
            && let Err(error) = self.storage.remove(&partial_path(record.transfer))
        {
            // It is delivered all the same; the next start removes what the journal does not need.
            tracing::warn!(%error, transfer = %record.transfer, "cannot remove an unpacked payload");
        }
        Ok(delivered)
    }
}

fn attributes(offer: &Offer) -> Attributes {
    let milliseconds = offer.modified.and_then(|at| i64::try_from(at.0).ok());
    Attributes {
        mode: offer.mode,
        modified: milliseconds.map(|ms| ModifiedNs(ms.saturating_mul(1_000_000))),
    }
}
