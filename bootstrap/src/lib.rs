//! The first peer that others meet: a mesh peer in server roles, small enough for a 256 MiB VM.
//!
//! A bootstrap peer is an ordinary member of its mesh that hosts no node. It answers first contacts, redeems the tickets that it has issued,
//! passes on records and revocations, and takes no transfers. It needs one UDP port that others can reach, and a data folder that was made by
//! `hyperfabric init` with `mesh create` or `join`, or by itself in an open mesh ([`OpenMesh`]).
//!
//! The library has no statics and installs neither signal handlers nor a log subscriber: several peers can live in one process. What belongs
//! to a process is in [`cli`], which the binary `hyperfabric-bootstrap` and the command `hyperfabric bootstrap` share. The command also serves
//! the local API, which lies above this crate.
//!
//! # Memory
//! Everything that others can make grow has a bound: connections by [`BootstrapLimits`], tables by the protocol's own limits. Measured on
//! x86-64 Linux: 19 MiB of resident memory idle, and 200 KiB for each connected member, with discovery running and handshakes that come all
//! at once. In 256 MiB, leave room for the system: 1,024 members take some 225 MiB, 700 some 160 MiB. The test
//! `a_connected_member_costs_little_memory` holds both numbers to a limit.

#![forbid(unsafe_code)]

mod book;
mod config;
mod counters;
mod health;
mod host;
mod peer;
mod port;

pub mod cli;

pub use config::{
    BootstrapConfig, BootstrapLimits, CONNECTIONS_MAX_DEFAULT, Contact, ContactError, OpenMesh,
};
pub use health::{ANSWER_TIMEOUT, Health, Reporter};
pub use peer::{Bootstrap, StartError};
