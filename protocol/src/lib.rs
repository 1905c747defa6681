//! What a HyperFabric peer *is*: pure state machines, types and the wire format.
//!
//! This crate has no sockets, files, clocks, threads or operating-system randomness; it is `no_std`, so that
//! the compiler holds it to that. The time ([`Now`]) and the seed of its random numbers are arguments. The same
//! bytes therefore flow whether the machines are driven by real wires (`hyperfabric-mesh`) or in virtual time
//! (`hyperfabric-sim`).
//!
//! Every state machine here has the same verbs:
//!
//! | verb | meaning |
//! |---|---|
//! | `handle_input(now, …)` | something happened |
//! | `handle_timeout(now)` | a deadline announced earlier has passed |
//! | `poll_transmit()` | what must now happen on the network |
//! | `poll_event()` | what users and other machines should know |
//! | `poll_job()` | heavy or durable work, whose result comes back as an input |
//! | `poll_timeout()` | the next deadline |
//!
//! The contract: after every mutation drain all of them to empty, then read the next deadline.
//!
//! [`Fabric`] is the outermost machine. `SPEC.md` beside this crate numbers every rule of the wire format; code
//! and tests cite the numbers.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod admission;
pub mod cbor;
pub mod cert;
pub mod directory;
pub mod error;
pub mod fabric;
pub mod flood;
pub mod frame;
pub mod id;
pub mod neighbors;
pub mod random;
pub mod sharing;
pub mod sign;
mod table;
pub mod ticket;
pub mod time;
pub mod transfer;
pub mod types;

pub use cbor::DecodeError;
pub use fabric::Fabric;
pub use id::{Address, ConnId, MeshId, NodeId, PeerId, Serial, TransferId};
pub use sign::{Signed, SigningKey};
pub use time::{Instant, Now, UnixMillis};
