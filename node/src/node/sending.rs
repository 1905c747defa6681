//! Beginning, resuming and ending outgoing transfers, over restarts of this process.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyperfabric_mesh::driver::Stopped;
use hyperfabric_protocol::cbor::Text;
use hyperfabric_protocol::error::NodeNotFoundError;
use hyperfabric_protocol::transfer::{Fault, Offer, PayloadKind};
use hyperfabric_protocol::types::{DataType, PacketPriority};
use hyperfabric_protocol::{NodeId, PeerId, TransferId, UnixMillis};
use rustix::fs::{FileType, fstat};

use super::{Inner, Node, lock};
use crate::store::{OutgoingRecord, OutgoingState, StoreError};
use crate::transfer::{FileSource, Outgoing, SendError, Source, SourceFault, TreeSource};
use crate::workers::{Lane, WorkerError};

/// Why a transfer does not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The source cannot be sent.
    #[error("cannot send this")]
    Source(#[from] SourceFault),
    /// It cannot be cut into chunks.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The destination is not known.
    #[error(transparent)]
    NotFound(#[from] NodeNotFoundError),
    /// The destination is this very peer.
    #[error("node {0} is hosted by this peer: copy the file instead")]
    Local(NodeId),
    /// This peer is in no mesh.
    #[error("this peer is not a member of a mesh")]
    NotAMember,
    /// The name is not one that the receiver could take.
    #[error(
        "the name is longer than {} bytes",
        hyperfabric_protocol::transfer::FILE_NAME_BYTES_MAX
    )]
    Name,
    /// The journal cannot be written.
    #[error("cannot write the transfer into the journal")]
    Journal(#[from] StoreError),
    /// A background job failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    Random,
    /// No such transfer was begun here.
    #[error("transfer {0} was not begun by this peer, or was forgotten")]
    UnknownTransfer(TransferId),
    /// The transfer was delivered.
    #[error("transfer {0} has been delivered")]
    Delivered(TransferId),
    /// The source has no path.
    #[error("transfer {0} cannot be resumed: its bytes came from memory, and nothing on the disk has them")]
    NoPath(TransferId),
    /// The source was an upload.
    #[error(
        "transfer {0} cannot be resumed: it sent an upload, which is not kept after the end; upload it again"
    )]
    Upload(TransferId),
    /// The node is shutting down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A transfer to begin.
#[derive(Debug)]
pub struct NewTransfer {
    /// An open file or folder.
    pub file: OwnedFd,
    /// Where it lies, for opening it again after a restart.
    pub path: Option<PathBuf>,
    /// The name under which it arrives.
    pub name: String,
    /// The node that gets it.
    pub to: NodeId,
    /// What it is.
    pub data_type: DataType,
    /// How urgent it is.
    pub priority: PacketPriority,
    /// After how long it fails if it has not ended.
    pub timeout: Option<Duration>,
    /// For how long to look for a node that is not known.
    pub wait: Duration,
    /// Whether the receiver makes every chunk durable as it arrives.
    pub sync: bool,
}

/// How long the journal may take to say what the user has been told.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is asked.
const JOURNAL_POLL: Duration = Duration::from_millis(20);

/// The folder of files that were uploaded for sending, below the data folder.
pub(super) const UPLOADS: &str = "uploads";

/// Removes the source of an ended transfer, if it was made for it.
fn remove_upload(uploads: &std::path::Path, source: Option<&[u8]>) {
    let Some(path) = source.map(|bytes| PathBuf::from(OsStr::from_bytes(bytes))) else {
        return;
    };
    if path.parent() == Some(uploads)
        && let Err(error) = std::fs::remove_file(&path)
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove an upload that has been sent");
    }
}

/// Removes uploads that no transfer will send: those of a process that was killed in between.
fn remove_orphans(uploads: &std::path::Path, active: &[OutgoingRecord]) {
    let Ok(entries) = std::fs::read_dir(uploads) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let bytes = path.as_os_str().as_bytes();
        let wanted = active
            .iter()
            .any(|r| r.state == OutgoingState::Active && r.path.as_deref() == Some(bytes));
        if !wanted {
            remove_upload(uploads, Some(bytes));
        }
    }
}

fn open_source(file: OwnedFd) -> Result<Source, SourceFault> {
    let folder = fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    if folder {
        TreeSource::walk(file).map(Source::Tree)
    } else {
        FileSource::new(file).map(Source::File)
    }
}

impl Node {
    /// Begins a transfer and returns once it is in the journal; it goes on by itself, over restarts too.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn send(&self, new: NewTransfer) -> Result<TransferId, StartError> {
        let inner = &self.0;
        // A node that is stopping is still a member, and cannot say so.
        let own = self
            .handle()
            .act(|fabric, _| fabric.admission().own().map(|(_, own)| own.name.clone()));
        let source_node = own.await?.ok_or(StartError::NotAMember)?;
        let source = inner.pool.run(move || open_source(new.file)).await??;
        if let Some(skipped) = source.skipped()
            && skipped.count > 0
        {
            let (name, count) = (&new.name, skipped.count);
            tracing::warn!(%name, count, "links, devices, sockets and pipes in the folder are not sent");
        }
        if new.name.len() > hyperfabric_protocol::transfer::FILE_NAME_BYTES_MAX {
            return Err(StartError::Name);
        }
        let peer = self.find_host(&new.to, new.wait).await?;
        let offer = Offer {
            source: source_node,
            destination: new.to,
            name: Text(new.name),
            kind: source.kind(),
            size: source.len(),
            data_type: new.data_type,
            priority: new.priority,
            modified: source
                .modified()
                .map(|ns| UnixMillis(u64::try_from(ns.0 / 1_000_000).unwrap_or(0))),
            mode: source.mode(),
            sync: new.sync.then_some(true),
        };
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| StartError::Random)?;
        let transfer = TransferId(id);
        let record = OutgoingRecord {
            transfer,
            offer: offer.clone(),
            path: new.path.as_ref().map(|path| path.as_os_str().as_bytes().to_vec()),
            fingerprint: source.fingerprint(),
            started: inner.clock.now().wall,
            state: OutgoingState::Active,
        };
        let outgoing = Arc::new(Outgoing::new(transfer, source)?);
        inner.write_outgoing(record).await?;
        inner.board.begin(&outgoing, &offer, new.path, inner.clock.now());
        lock(&inner.sources).insert(transfer, outgoing);
        let timeout = new.timeout;
        inner
            .handle
            .act(move |fabric, now| {
                let deadline = timeout.map(|timeout| now.mono.after(timeout));
                fabric.send_to(now, transfer, peer, offer, deadline, false);
            })
            .await?;
        Ok(transfer)
    }

    /// Cancels a transfer, from either side.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn cancel(&self, transfer: TransferId) -> Result<(), Stopped> {
        self.0
            .handle
            .act(move |fabric, now| fabric.cancel(now, transfer))
            .await
    }

    /// Goes on with an outgoing transfer that has failed or was cancelled.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn resume(&self, transfer: TransferId) -> Result<(), StartError> {
        let mut record = self.0.ended_outgoing(transfer).await?;
        match record.state {
            OutgoingState::Active => return Ok(()),
            OutgoingState::Delivered { .. } => return Err(StartError::Delivered(transfer)),
            OutgoingState::Failed { .. } => {}
        }
        let path = record
            .path
            .as_deref()
            .map(|path| std::path::Path::new(OsStr::from_bytes(path)));
        if path.is_some_and(|path| path.parent() == Some(&self.0.folder.path().join(UPLOADS))) {
            return Err(StartError::Upload(transfer));
        }
        record.state = OutgoingState::Active;
        let host = self.find_host(&record.offer.destination, Duration::ZERO).await?;
        self.0.reopen(&record).await?;
        self.0.write_outgoing(record.clone()).await?;
        self.0.offer_again(record, host).await;
        Ok(())
    }

    /// Takes up the outgoing transfers of earlier processes.
    pub(super) async fn resume_all(&self) {
        let store = self.0.store.clone();
        let records = match self.0.pool.run_on(Lane::Sync, move || store.outgoing_all()).await {
            Ok(Ok(records)) => records,
            Ok(Err(error)) => return tracing::error!(%error, "cannot read the journal of transfers"),
            Err(error) => return tracing::error!(%error, "cannot read the journal of transfers"),
        };
        let (uploads, listed) = (self.0.folder.path().join(UPLOADS), records.clone());
        let cleaned = self
            .0
            .pool
            .run_on(Lane::Sync, move || remove_orphans(&uploads, &listed))
            .await;
        if let Err(error) = cleaned {
            tracing::warn!(%error, "cannot look for uploads that nobody sends");
        }
        for record in records {
            let now = self.0.clock.now();
            let path = record
                .path
                .clone()
                .map(|p| PathBuf::from(std::ffi::OsString::from_vec(p)));
            match record.state {
                OutgoingState::Active => match self.0.reopen(&record).await {
                    Ok(outgoing) => {
                        self.0.board.begin(&outgoing, &record.offer, path, now);
                        lock(&self.0.waiting).push(record);
                    }
                    Err(error) => {
                        let fault = match &error {
                            StartError::Source(SourceFault::Changed(_)) => Fault::SourceChanged,
                            _ => Fault::SourceUnreadable,
                        };
                        let transfer = record.transfer;
                        tracing::warn!(%transfer, error = &error as &dyn std::error::Error, "cannot go on with a transfer");
                        self.0
                            .board
                            .recall(transfer, &record.offer, path, now, Err(fault));
                        self.0.outgoing_ended(transfer, Err(fault)).await;
                    }
                },
                OutgoingState::Delivered { root, .. } => {
                    self.0
                        .board
                        .recall(record.transfer, &record.offer, path, now, Ok(root));
                }
                OutgoingState::Failed { fault, .. } => {
                    self.0
                        .board
                        .recall(record.transfer, &record.offer, path, now, Err(fault));
                }
            }
        }
        resume_waiting(&self.0);
    }
}

/// Offers the transfers of earlier processes whose destinations are known by now.
pub(super) fn resume_waiting(inner: &Arc<Inner>) {
    if lock(&inner.waiting).is_empty() {
        return;
    }
    let inner = Arc::clone(inner);
    let runtime = inner.handle.runtime().clone();
    runtime.spawn(async move {
        let waiting: Vec<NodeId> = lock(&inner.waiting)
            .iter()
            .map(|r| r.offer.destination.clone())
            .collect();
        let hosts = inner.handle.act(move |fabric, _| {
            let host = |node: NodeId| fabric.directory().host_of(&node).map(|peer| (node, peer));
            waiting.into_iter().filter_map(host).collect::<Vec<_>>()
        });
        for (node, host) in hosts.await.unwrap_or_default() {
            let ready: Vec<OutgoingRecord> = lock(&inner.waiting)
                .extract_if(.., |record| record.offer.destination == node)
                .collect();
            for record in ready {
                inner.offer_again(record, host).await;
            }
        }
    });
}

impl Inner {
    async fn write_outgoing(&self, record: OutgoingRecord) -> Result<(), StartError> {
        let store = self.store.clone();
        Ok(self
            .pool
            .run_on(Lane::Sync, move || store.put_outgoing(&record))
            .await??)
    }

    /// Reads what the journal has of an outgoing transfer; one that has just ended is waited for until the journal
    /// says so too.
    async fn ended_outgoing(&self, transfer: TransferId) -> Result<OutgoingRecord, StartError> {
        let limit = tokio::time::Instant::now() + JOURNAL_TIMEOUT;
        loop {
            let store = self.store.clone();
            let read = move || store.outgoing(transfer);
            let record = self.pool.run_on(Lane::Sync, read).await??;
            let record = record.ok_or(StartError::UnknownTransfer(transfer))?;
            let ended = self
                .board
                .get(transfer)
                .is_some_and(|shown| shown.state.is_ended());
            let written = !matches!(record.state, OutgoingState::Active);
            if written || !ended || tokio::time::Instant::now() > limit {
                return Ok(record);
            }
            tokio::time::sleep(JOURNAL_POLL).await;
        }
    }

    /// Opens the source of a transfer again and checks that it is what it was.
    async fn reopen(&self, record: &OutgoingRecord) -> Result<Arc<Outgoing>, StartError> {
        let transfer = record.transfer;
        let bytes = record.path.clone().ok_or(StartError::NoPath(transfer))?;
        let fingerprint = record.fingerprint;
        let folder = record.offer.kind == PayloadKind::Tree;
        let opened = move || -> Result<Source, SourceFault> {
            let path = PathBuf::from(OsStr::from_bytes(&bytes));
            let source = open_source(crate::transfer::source::open_path(&path, folder)?)?;
            if source.fingerprint() == fingerprint {
                Ok(source)
            } else {
                Err(SourceFault::Changed(crate::storage::RelPath::ROOT))
            }
        };
        let source = self.pool.run(opened).await??;
        let outgoing = Arc::new(Outgoing::new(transfer, source)?);
        lock(&self.sources).insert(transfer, Arc::clone(&outgoing));
        Ok(outgoing)
    }

    async fn offer_again(&self, record: OutgoingRecord, host: PeerId) {
        let now = self.clock.now();
        let path = record
            .path
            .map(|p| PathBuf::from(std::ffi::OsString::from_vec(p)));
        let outgoing = lock(&self.sources).get(&record.transfer).cloned();
        if let Some(outgoing) = outgoing {
            self.board.begin(&outgoing, &record.offer, path, now);
        }
        let (transfer, offer) = (record.transfer, record.offer);
        let offered = self
            .handle
            .act(move |fabric, now| fabric.send_to(now, transfer, host, offer, None, true))
            .await;
        // A node that is shutting down takes the transfer up at its next start.
        let _ = offered;
    }

    /// Writes the end of an outgoing transfer down.
    pub(super) async fn outgoing_ended(&self, transfer: TransferId, end: Result<[u8; 32], Fault>) {
        lock(&self.sources).remove(&transfer);
        lock(&self.sending).remove(&transfer);
        let (store, at) = (self.store.clone(), self.clock.now().wall);
        let uploads = self.folder.path().join(UPLOADS);
        let write = move || -> Result<(), StoreError> {
            let Some(mut record) = store.outgoing(transfer)? else {
                return Ok(());
            };
            remove_upload(&uploads, record.path.as_deref());
            record.state = match end {
                Ok(root) => OutgoingState::Delivered { root, at },
                Err(fault) => OutgoingState::Failed { fault, at },
            };
            store.put_outgoing(&record)
        };
        match self.pool.run_on(Lane::Sync, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%transfer, %error, "cannot write the end of a transfer"),
            Err(error) => tracing::error!(%transfer, %error, "cannot write the end of a transfer"),
        }
    }
}
