//! The transfers of both directions as users see them: those under way, and the last ones that have ended.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hyperfabric_protocol::transfer::{Fault, Offer, Role, Subject, TransferError, TransferEvent};
use hyperfabric_protocol::{Instant, Now, TransferId};

use super::lock;
use super::sending::UPLOADS;
use crate::api::model::{Direction, Skipped, SkippedEntry, Transfer, TransferState};
use crate::api::{ApiError, ErrorCode, TransferFeed};
use crate::storage::RelPath;
use crate::transfer::hash::hex;
use crate::transfer::{Outgoing, tree};

/// Ended transfers that are still shown.
const ENDED_MAX: usize = 1000;

/// Said instead of how to resume.
const UPLOAD_HINT: &str =
    "an upload is not kept after its transfer has ended and cannot be resumed: upload it again";

struct Entry {
    view: Transfer,
    began: Instant,
    /// When the last progress was, and how far it was, for the rate.
    last: (Instant, u64),
    /// Counts the bytes sent; at the sender only.
    sent: Option<Arc<AtomicU64>>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<TransferId, Entry>,
    ended: VecDeque<TransferId>,
    /// Places in the inbox that are known before their transfers have ended.
    places: HashMap<TransferId, PathBuf>,
}

/// The table of transfers.
pub(super) struct Board {
    table: Mutex<Table>,
    feed: TransferFeed,
    folder: PathBuf,
    /// Where uploads lie until their transfers have ended.
    uploads: PathBuf,
}

impl Board {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            table: Mutex::default(),
            feed: TransferFeed::default(),
            uploads: folder.join(UPLOADS),
            folder,
        }
    }

    pub(super) fn feed(&self) -> &TransferFeed {
        &self.feed
    }

    pub(super) fn list(&self) -> Vec<Transfer> {
        lock(&self.table).entries.values().map(Entry::shown).collect()
    }

    pub(super) fn get(&self, transfer: TransferId) -> Option<Transfer> {
        lock(&self.table).entries.get(&transfer).map(Entry::shown)
    }

    /// Shows a transfer that this peer begins to send, or takes up again.
    pub(super) fn begin(&self, outgoing: &Outgoing, offer: &Offer, path: Option<PathBuf>, now: Now) {
        let transfer = outgoing.transfer();
        let mut view = view(transfer, Role::Sender, offer, path, now);
        view.skipped = outgoing.source().skipped().map(skipped);
        self.insert(transfer, view, Some(outgoing.sent_counter()), now);
    }

    /// Shows a transfer that ended before this process began.
    pub(super) fn recall(
        &self,
        transfer: TransferId,
        offer: &Offer,
        path: Option<PathBuf>,
        now: Now,
        end: Result<[u8; 32], Fault>,
    ) {
        let mut view = view(transfer, Role::Sender, offer, path, now);
        end_view(
            &mut view,
            &end.map_err(|fault| TransferError {
                fault,
                local: true,
                detail: None,
            }),
            &self.uploads,
        );
        self.insert(transfer, view, None, now);
        let mut table = lock(&self.table);
        table.retire(transfer);
    }

    fn insert(&self, transfer: TransferId, view: Transfer, sent: Option<Arc<AtomicU64>>, now: Now) {
        let entry = Entry {
            last: (now.mono, view.done_bytes),
            began: now.mono,
            sent,
            view,
        };
        let shown = entry.shown();
        let mut table = lock(&self.table);
        table.ended.retain(|id| *id != transfer);
        table.entries.insert(transfer, entry);
        drop(table);
        self.feed.publish(shown);
    }

    /// Notes where a received transfer lies.
    pub(super) fn set_place(&self, transfer: TransferId, place: &RelPath) {
        let path = place.under(&self.folder);
        let mut table = lock(&self.table);
        match table.entries.get_mut(&transfer) {
            Some(entry) => entry.view.path = Some(path),
            None => drop(table.places.insert(transfer, path)),
        }
    }

    /// Takes in what the machine says.
    pub(super) fn hear(&self, event: &TransferEvent, now: Now) {
        let changed = match event {
            TransferEvent::Offered { of, offer } => {
                if of.role == Role::Receiver {
                    self.offered(of, offer, now);
                }
                return;
            }
            TransferEvent::Started { of, resumed_bytes } => self.change(of, |entry| {
                entry.view.state = TransferState::Active;
                entry.view.detail = None;
                entry.view.resumed_bytes = *resumed_bytes;
                entry.view.done_bytes = *resumed_bytes;
                entry.last = (now.mono, *resumed_bytes);
            }),
            TransferEvent::Progress { of, durable_bytes } => {
                self.change(of, |entry| entry.progress(*durable_bytes, now))
            }
            TransferEvent::Suspended { of } => self.change(of, |entry| {
                entry.view.state = TransferState::Waiting;
                entry.view.rate = 0;
                entry.view.detail = Some("waiting for the other peer".to_owned());
            }),
            TransferEvent::Ended { of, result } => {
                let ended = result.as_ref().map(|ended| ended.root).map_err(Clone::clone);
                let view = self.change(of, |entry| {
                    entry.view.seconds = now.mono.since(entry.began).as_secs_f64();
                    end_view(&mut entry.view, &ended, &self.uploads);
                });
                lock(&self.table).retire(of.transfer);
                view
            }
        };
        if let Some(view) = changed {
            self.feed.publish(view);
        }
    }

    fn offered(&self, of: &Subject, offer: &Offer, now: Now) {
        let known = lock(&self.table)
            .entries
            .get(&of.transfer)
            .is_some_and(|e| !e.view.state.is_ended());
        if !known {
            let place = lock(&self.table).places.remove(&of.transfer);
            self.insert(
                of.transfer,
                view(of.transfer, Role::Receiver, offer, place, now),
                None,
                now,
            );
        }
    }

    fn change(&self, of: &Subject, change: impl FnOnce(&mut Entry)) -> Option<Transfer> {
        let mut table = lock(&self.table);
        let entry = table.entries.get_mut(&of.transfer)?;
        change(entry);
        Some(entry.shown())
    }
}

impl Entry {
    fn shown(&self) -> Transfer {
        let sent_bytes = self.sent.as_ref().map_or(0, |sent| sent.load(Ordering::Relaxed));
        Transfer {
            sent_bytes,
            ..self.view.clone()
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rate"
    )]
    fn progress(&mut self, durable_bytes: u64, now: Now) {
        let (at, before) = self.last;
        let seconds = now.mono.since(at).as_secs_f64();
        if seconds > 0.0 && durable_bytes > before {
            let rate = (durable_bytes - before) as f64 / seconds;
            // Half old, half new: syncs come in bursts.
            self.view.rate = if self.view.rate == 0 {
                rate
            } else {
                f64::midpoint(self.view.rate as f64, rate)
            } as u64;
            self.last = (now.mono, durable_bytes);
        }
        self.view.done_bytes = durable_bytes;
        self.view.seconds = now.mono.since(self.began).as_secs_f64();
        self.view.state = if durable_bytes == self.view.bytes {
            TransferState::Sealing
        } else {
            TransferState::Active
        };
    }
}

impl Table {
    /// Puts a transfer behind the others that have ended; the oldest of them is forgotten.
    fn retire(&mut self, transfer: TransferId) {
        self.ended.retain(|id| *id != transfer);
        self.ended.push_back(transfer);
        while self.ended.len() > ENDED_MAX {
            if let Some(oldest) = self.ended.pop_front() {
                self.entries.remove(&oldest);
            }
        }
        self.places.remove(&transfer);
    }
}

fn view(transfer: TransferId, role: Role, offer: &Offer, path: Option<PathBuf>, now: Now) -> Transfer {
    Transfer {
        transfer_id: transfer,
        direction: match role {
            Role::Sender => Direction::Outgoing,
            Role::Receiver => Direction::Incoming,
        },
        state: TransferState::Waiting,
        name: offer.name.0.clone(),
        path,
        source: offer.source.clone(),
        destination: offer.destination.clone(),
        data_type: offer.data_type,
        priority: offer.priority,
        bytes: offer.size,
        done_bytes: 0,
        resumed_bytes: 0,
        sent_bytes: 0,
        rate: 0,
        seconds: 0.0,
        blake3: None,
        route: vec![offer.source.clone(), offer.destination.clone()],
        started_unix_ms: now.wall.0,
        skipped: None,
        detail: None,
        error: None,
    }
}

fn skipped(skipped: &tree::Skipped) -> Skipped {
    let listed = skipped.listed.iter().map(|(path, kind)| SkippedEntry {
        path: path.to_string(),
        kind: *kind,
    });
    Skipped {
        count: skipped.count,
        listed: listed.collect(),
    }
}

fn end_view(view: &mut Transfer, end: &Result<[u8; 32], TransferError>, uploads: &Path) {
    view.rate = 0;
    view.detail = None;
    match end {
        Ok(root) => {
            view.state = TransferState::Done;
            view.done_bytes = view.bytes;
            view.blake3 = Some(hex(root));
        }
        Err(error) => {
            let cancelled = error.fault == Fault::Cancelled;
            view.state = if cancelled {
                TransferState::Cancelled
            } else {
                TransferState::Failed
            };
            let mut error = fault_error(error);
            let upload = view.path.as_deref().and_then(Path::parent) == Some(uploads);
            if upload && error.hint.as_deref().is_some_and(|hint| hint.contains("resume")) {
                error.hint = Some(UPLOAD_HINT.to_owned());
            }
            view.error = Some(error);
        }
    }
}

/// Puts the end of a transfer into the words of the API.
fn fault_error(error: &TransferError) -> ApiError {
    let (code, hint) = match error.fault {
        Fault::NoSuchNode => (
            ErrorCode::NotFound,
            "`hyperfabric nodes` lists the nodes that are known",
        ),
        Fault::NotAccepted => (ErrorCode::Refused, "the receiver's owner sets `inbox.accept`"),
        Fault::QuotaExceeded => (
            ErrorCode::Refused,
            "the receiver's owner sets `inbox.quota_bytes` or empties the inbox",
        ),
        Fault::NoSpace => (
            ErrorCode::Refused,
            "free space at the receiver, then `hyperfabric transfers resume ID`",
        ),
        Fault::InboxUnwritable => (
            ErrorCode::Refused,
            "make the receiver's inbox writable, then `hyperfabric transfers resume ID`",
        ),
        Fault::BadName | Fault::BadManifest => (ErrorCode::Refused, "rename what is sent"),
        Fault::Revoked => (ErrorCode::Refused, "a revoked member needs a new ticket"),
        Fault::TimedOut => (
            ErrorCode::TimedOut,
            "`hyperfabric transfers resume ID` goes on where it stopped",
        ),
        Fault::SourceChanged => (ErrorCode::Failed, "send it again once it is complete"),
        Fault::Cancelled => (
            ErrorCode::Failed,
            "`hyperfabric transfers resume ID` sends it again",
        ),
        Fault::Storage
        | Fault::SourceUnreadable
        | Fault::DigestMismatch
        | Fault::Violation
        | Fault::Unreachable
        | Fault::Busy => (ErrorCode::Failed, "the daemon's log says more"),
    };
    let name = serde_json::to_value(error.fault)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned));
    ApiError::of(code, error)
        .named(name.unwrap_or_default())
        .hint(hint)
}
