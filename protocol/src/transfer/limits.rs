//! The bounds and delays of transfers, each with its reason.

use core::time::Duration;

/// After how long without durable progress a connected side starts over: longer than a disk's worst pauses.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The receiver waits this much longer, so that the two sides do not start over at once.
pub const STALL_MARGIN: Duration = Duration::from_secs(5);
/// How many stalls in a row end a transfer: two minutes and a half of silence.
pub const STALLS_MAX: u32 = 4;
/// How many broken payload streams in a row, without progress between them, end a transfer. [XFER-19]
pub const FAILURES_MAX: u32 = 8;
/// The first pause before an offer is repeated.
pub const RETRY_MIN: Duration = Duration::from_millis(500);
/// The longest.
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long a receiver whose stream broke waits for the sender to offer again, before it asks for the rest itself.
pub const RESTART_AFTER: Duration = Duration::from_secs(3);
/// How often a receiver that prepares or seals repeats its Progress, so that the sender does not take it for dead.
pub const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long it does so before the job counts as hung, beside the time that the bytes take.
pub const JOB_TIME_MAX: Duration = Duration::from_secs(600);
/// The slowest disk that a job is given time for, in bytes per second.
pub const JOB_BYTES_PER_SECOND_MIN: u64 = 16 * 1024 * 1024;
/// How long a receiver remembers a transfer whose sender is gone. What arrived stays in the journal.
pub const SUSPENDED_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a connected sender may keep a transfer waiting before the receiver asks whether it still knows it.
pub const PROBE_AFTER: Duration = Duration::from_secs(60);
/// Outgoing transfers, waiting ones included; one more ends with [`Fault::Busy`](super::Fault::Busy).
pub const OUTGOING_MAX: usize = 4096;
/// Incoming transfers of one peer; one more is told [`Fault::Busy`](super::Fault::Busy), and offered again later.
pub const INCOMING_PER_PEER_MAX: usize = 64;
/// Incoming transfers of all peers, with the same answer; a peer's owner can set less.
pub const INCOMING_MAX: usize = 1024;
/// Transfers to one peer that are offered or sent at once; the others wait by priority, then age.
pub const SENDING_MAX: usize = 8;
/// Ended transfers whose fault is remembered for a peer that has not heard of it; the oldest is forgotten.
pub const ENDED_REMEMBERED_MAX: usize = 1024;
