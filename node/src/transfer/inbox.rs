//! Where received files go, what they may be called, and how much of them is taken.
//!
//! `inbox/<sender>/<name>`: one folder for each sending node. A node id may contain `/` (`name/gpu0`); its folder
//! escapes that as `%2F` instead of nesting, because a nested folder could clash with a file that node `name` sent
//! under the name `gpu0`. Nothing is ever overwritten: a taken name becomes `name (2).ext`, and so on.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperfabric_protocol::transfer::{Fault, Offer, PayloadKind};
use hyperfabric_protocol::{NodeId, PeerId, TransferId, UnixMillis};

use crate::config::Accept;
use crate::storage::{NAME_BYTES_MAX, PathFault, RelPath};

/// Long enough for a host to be repaired, short enough that a forgotten file does not keep its room for good.
pub const ABANDONED_AFTER_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Names that are tried for a file whose name is taken.
pub const CLASH_NAMES_MAX: u32 = 10_000;

/// Incoming transfers that may be unfinished at once.
pub const UNFINISHED_MAX: usize = 256;

/// Of those, how many may come from one peer.
pub const UNFINISHED_PER_PEER_MAX: usize = 64;

/// The folder of received files, below the data folder.
pub const INBOX: &[u8] = b"inbox";

/// The folder of unfinished files, below the data folder; nobody but this program looks into it.
pub const PARTIAL: &[u8] = b"partial";

/// Bytes of a sender's folder name that are kept when it is too long; the rest is its digest.
const SENDER_NAME_KEPT: usize = 200;

/// What this node takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxPolicy {
    /// Whose files it takes.
    pub accept: Accept,
    /// Bytes that the inbox may hold, unfinished transfers included; `None` for no limit.
    pub quota_bytes: Option<u64>,
    /// Bytes that must stay free on the disk.
    pub min_free_bytes: u64,
    /// After how long without a byte a transfer whose sender is away is given up, and what arrived removed.
    pub abandoned_after: Duration,
}

impl Default for InboxPolicy {
    fn default() -> Self {
        Self {
            accept: Accept::All,
            quota_bytes: None,
            // Enough for the journal and the logs of everybody else on this disk to go on.
            min_free_bytes: 256 << 20,
            abandoned_after: ABANDONED_AFTER_DEFAULT,
        }
    }
}

/// Why an offer is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing is taken from this sender.
    #[error("the inbox policy accepts nothing from this sender")]
    NotAccepted,
    /// The quota would be exceeded.
    #[error("the transfer needs {needed} bytes, the inbox quota has {left} left")]
    Quota {
        /// Bytes announced.
        needed: u64,
        /// Bytes left.
        left: u64,
    },
    /// The disk has too little room.
    #[error("the transfer needs {needed} bytes, the disk has {left} left to give")]
    Disk {
        /// Bytes announced, twice for a folder, which is unpacked.
        needed: u64,
        /// Bytes left.
        left: u64,
    },
    /// Too many transfers are unfinished.
    #[error("too many transfers are unfinished")]
    Busy,
    /// The name is not acceptable.
    #[error(transparent)]
    Name(#[from] NameFault),
}

impl Refusal {
    /// What the other side is told.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotAccepted => Fault::NotAccepted,
            Self::Quota { .. } => Fault::QuotaExceeded,
            Self::Disk { .. } => Fault::NoSpace,
            Self::Busy => Fault::Busy,
            Self::Name(_) => Fault::BadName,
        }
    }
}

/// Why a name is not given to a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// It is not one plain name.
    #[error("the name {name:?} is refused")]
    Path {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        fault: PathFault,
    },
    /// It names a place in another folder.
    #[error("the name {0:?} is refused: it has a \"/\"")]
    Separator(String),
    /// It has characters that a terminal would obey.
    #[error("the name {0:?} is refused: it has control characters")]
    Control(String),
}

/// Checks the name of an offered file or folder. [XFER-15]
///
/// # Errors
/// Names what is wrong with it, and the name.
pub fn check_name(name: &str) -> Result<(), NameFault> {
    if name.chars().any(|c| c.is_control() && c != '\0') {
        return Err(NameFault::Control(name.to_owned()));
    }
    RelPath::parse(name.as_bytes()).map_err(|fault| NameFault::Path {
        name: name.to_owned(),
        fault,
    })?;
    if name.contains('/') {
        return Err(NameFault::Separator(name.to_owned()));
    }
    Ok(())
}

/// The name of a sender's folder in the inbox.
pub fn sender_folder_name(sender: &NodeId) -> String {
    let mut name = String::new();
    for (at, byte) in sender.to_string().bytes().enumerate() {
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'@') || (byte == b'.' && at > 0);
        if plain {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    if name.len() > NAME_BYTES_MAX {
        let digest = blake3::hash(name.as_bytes()).to_hex();
        name.truncate(SENDER_NAME_KEPT);
        name.push('~');
        name.push_str(&digest[..32]);
    }
    name
}

/// The folder of what a node sent, below the data folder.
pub fn sender_folder(sender: &NodeId) -> RelPath {
    RelPath::parse(INBOX)
        .and_then(|inbox| inbox.join(sender_folder_name(sender).as_bytes()))
        .expect("an escaped id is a plain name of limited length")
}

/// The names to try for a file, in order: its own, then numbered ones.
pub fn candidate_names(name: &str, kind: PayloadKind) -> impl Iterator<Item = String> {
    let dot = match kind {
        // A leading dot begins a hidden name, not an extension.
        PayloadKind::File => name.rfind('.').filter(|at| *at > 0).unwrap_or(name.len()),
        PayloadKind::Tree => name.len(),
    };
    let (stem, extension) = name.split_at(dot);
    (1..=CLASH_NAMES_MAX).map(move |number| {
        if number == 1 {
            return name.to_owned();
        }
        let suffix = format!(" ({number}){extension}");
        // An extension too long to keep is cut with the rest.
        if suffix.len() >= NAME_BYTES_MAX {
            let suffix = format!(" ({number})");
            return format!("{}{suffix}", cut(name, NAME_BYTES_MAX - suffix.len()));
        }
        format!("{}{suffix}", cut(stem, NAME_BYTES_MAX - suffix.len()))
    })
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Room promised to unfinished transfers, so that two offers are not promised the same bytes.
///
/// A sender that never comes back must not keep others out: promises whose transfers are not under way give way.
#[derive(Clone, Debug)]
pub(super) struct Reservations {
    /// Bytes of finished files in the inbox, as last counted.
    pub(super) used: u64,
    held: BTreeMap<TransferId, Reservation>,
}

#[derive(Clone, Copy, Debug)]
struct Reservation {
    peer: [u8; 32],
    size: u64,
    /// Bytes that the disk is to give in all, and those that it has not given yet.
    disk_bytes: u64,
    to_take: u64,
    /// From when on it gives way to others: its transfer is not under way.
    idle_from: Option<UnixMillis>,
}

impl Reservation {
    fn is_idle(&self, now: UnixMillis) -> bool {
        self.idle_from.is_some_and(|from| from <= now)
    }
}

impl Reservations {
    /// Begins with what the inbox holds.
    pub(super) fn new(used: u64) -> Self {
        Self {
            used,
            held: BTreeMap::new(),
        }
    }
}

/// What an offer needs and what there is, to decide on it.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub(super) policy: InboxPolicy,
    pub(super) free_bytes: u64,
}

impl Reservations {
    /// Bytes that an offer needs on the disk: a folder is there twice while it is unpacked.
    pub(super) fn disk_bytes(offer: &Offer) -> u64 {
        match offer.kind {
            PayloadKind::File => offer.size,
            PayloadKind::Tree => offer.size.saturating_mul(2),
        }
    }

    /// Whether the quota, by the bytes counted last, has room.
    pub(super) fn check_quota(&self, offer: &Offer, policy: &InboxPolicy) -> Result<(), Refusal> {
        let Some(quota) = policy.quota_bytes else {
            return Ok(());
        };
        let promised: u64 = self.held.values().map(|held| held.size).sum();
        let left = quota.saturating_sub(self.used.saturating_add(promised));
        if offer.size > left {
            return Err(Refusal::Quota {
                needed: offer.size,
                left,
            });
        }
        Ok(())
    }

    /// Promises room for a new transfer.
    pub(super) fn reserve(
        &mut self,
        transfer: TransferId,
        peer: [u8; 32],
        offer: &Offer,
        room: &Room,
    ) -> Result<(), Refusal> {
        self.check(peer, offer, room)?;
        self.hold(transfer, peer, offer, Self::disk_bytes(offer));
        Ok(())
    }

    fn check(&self, peer: [u8; 32], offer: &Offer, room: &Room) -> Result<(), Refusal> {
        let of_peer = self.held.values().filter(|held| held.peer == peer).count();
        if self.held.len() >= UNFINISHED_MAX || of_peer >= UNFINISHED_PER_PEER_MAX {
            return Err(Refusal::Busy);
        }
        self.check_quota(offer, &room.policy)?;
        let needed = Self::disk_bytes(offer);
        let promised: u64 = self.held.values().map(|held| held.to_take).sum();
        let left = room
            .free_bytes
            .saturating_sub(room.policy.min_free_bytes)
            .saturating_sub(promised);
        if needed > left {
            return Err(Refusal::Disk { needed, left });
        }
        Ok(())
    }

    /// Finds the idle transfers, the longest idle first, that must give way so that an offer can be promised room; none
    /// when even all of them would not be enough, or none is needed.
    pub(super) fn victims(
        &self,
        peer: [u8; 32],
        offer: &Offer,
        room: &Room,
        now: UnixMillis,
    ) -> Vec<(TransferId, PeerId)> {
        let mut rest = self.clone();
        let mut room = room.clone();
        let mut idle: Vec<_> = self.held.iter().filter(|(_, held)| held.is_idle(now)).collect();
        idle.sort_unstable_by_key(|(_, held)| held.idle_from);
        let mut victims = Vec::new();
        let mut idle = idle.into_iter();
        while rest.check(peer, offer, &room).is_err() {
            let Some((transfer, held)) = idle.next() else {
                return Vec::new();
            };
            rest.held.remove(transfer);
            room.free_bytes = room
                .free_bytes
                .saturating_add(held.disk_bytes.saturating_sub(held.to_take));
            victims.push((*transfer, PeerId(held.peer)));
        }
        victims
    }

    /// Notes that a transfer is not under way any more, and that what arrived of it gives way to others, later or now.
    pub(super) fn set_idle(&mut self, transfer: TransferId, peer: PeerId, from: UnixMillis) {
        if let Some(held) = self.held.get_mut(&transfer)
            && held.peer == peer.0
        {
            held.idle_from = Some(from);
        }
    }

    /// Notes that a transfer is under way again.
    pub(super) fn set_busy(&mut self, transfer: TransferId, peer: PeerId) {
        if let Some(held) = self.held.get_mut(&transfer)
            && held.peer == peer.0
        {
            held.idle_from = None;
        }
    }

    /// Whether a transfer gives way to others.
    pub(super) fn is_idle(&self, transfer: TransferId, now: UnixMillis) -> bool {
        self.held.get(&transfer).is_some_and(|held| held.is_idle(now))
    }

    /// Holds room without asking: for a transfer that was promised it before a restart.
    pub(super) fn hold(&mut self, transfer: TransferId, peer: [u8; 32], offer: &Offer, to_take: u64) {
        let reservation = Reservation {
            peer,
            size: offer.size,
            disk_bytes: Self::disk_bytes(offer),
            to_take,
            idle_from: None,
        };
        self.held.insert(transfer, reservation);
    }

    /// Notes that the disk has given some of the promised bytes.
    pub(super) fn taken(&mut self, transfer: TransferId, bytes: u64) {
        if let Some(held) = self.held.get_mut(&transfer) {
            held.to_take = held.to_take.saturating_sub(bytes);
        }
    }

    /// Ends a promise; a delivered transfer's bytes are used from now on.
    pub(super) fn release(&mut self, transfer: TransferId, delivered: bool) {
        if let Some(held) = self.held.remove(&transfer)
            && delivered
        {
            self.used = self.used.saturating_add(held.size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_lead_elsewhere_or_speak_to_terminals_are_refused() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in [
            "",
            ".",
            "..",
            "../up",
            "/etc/passwd",
            "a/b",
            "a\0b",
            "a\nb",
            "\u{1b}[2J",
            "a\u{85}",
            &long,
        ] {
            let fault = check_name(name).unwrap_err();
            assert!(fault.to_string().contains(&format!("{name:?}")), "{fault}");
        }
        for name in ["a", ".hidden", "a b", "ü.bin", "...", "-rf", "a\\b"] {
            check_name(name).unwrap();
        }
    }

    #[test]
    fn every_sender_has_a_folder_of_its_own() {
        let folder = |id: &str| sender_folder_name(&id.parse().unwrap());
        assert_eq!(folder("alpha"), "alpha");
        assert_eq!(folder("alpha/gpu0"), "alpha%2Fgpu0");
        let long = ["a/".repeat(60), "b".to_owned()].concat();
        assert!(folder(&long).len() <= NAME_BYTES_MAX);
        let other = ["a/".repeat(60), "c".to_owned()].concat();
        assert_ne!(folder(&long), folder(&other));
    }

    #[test]
    fn a_clash_is_numbered_before_the_extension() {
        let names = |name, kind| candidate_names(name, kind).take(3).collect::<Vec<_>>();
        assert_eq!(
            names("a.bin", PayloadKind::File),
            ["a.bin", "a (2).bin", "a (3).bin"]
        );
        assert_eq!(names(".rc", PayloadKind::File), [".rc", ".rc (2)", ".rc (3)"]);
        assert_eq!(names("v1.2", PayloadKind::Tree), ["v1.2", "v1.2 (2)", "v1.2 (3)"]);
    }

    proptest! {
        #[test]
        fn every_candidate_for_a_good_name_is_a_good_name(name in "[a-z .€\u{1f600}-]{1,100}") {
            prop_assume!(check_name(&name).is_ok());
            for kind in [PayloadKind::File, PayloadKind::Tree] {
                let names: Vec<_> = candidate_names(&name, kind).take(20).collect();
                for name in &names {
                    prop_assert_eq!(check_name(name), Ok(()));
                }
                let distinct: std::collections::BTreeSet<_> = names.iter().collect();
                prop_assert_eq!(distinct.len(), names.len());
            }
        }
    }
}
