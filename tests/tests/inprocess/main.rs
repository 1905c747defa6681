//! Several nodes in this one process: what they do together on wires that the tests control.
//!
//! Everything here runs the node as a library, on one runtime and one worker pool, over kernel sockets on loopback or
//! impaired ones. Tests take turns, because they count threads and memory of the process; after each one nothing
//! may have been logged as an error. Processes, signals and the command line are the `system` tests' business.
#![allow(
    clippy::arc_with_non_send_sync,
    reason = "one runtime on one thread; the future types ask for an Arc"
)]
#![allow(clippy::too_many_lines, reason = "a scenario is read from top to bottom")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod data;
mod events;
mod greedy;
mod harness;
mod hostile;
mod idle;
mod raw;
mod siege;
mod transfer;
