//! Many HyperFabric peers in one process.
//!
//! `real`, behind the feature of that name, runs nodes as users have them, over wires that behave like a bad network.
//! [`world`] runs the protocol alone, in virtual time: no sockets, no threads, no clock, and the same seed gives the
//! same run. It drives [`hyperfabric_protocol::Fabric`] exactly as the real driver does, so what holds here holds
//! there. `calibrate` says how far that is true.
#![forbid(unsafe_code)]

#[cfg(feature = "real")]
pub mod calibrate;
pub mod check;
pub mod conditions;
pub mod debug;
pub mod queue;
#[cfg(feature = "real")]
pub mod real;
pub mod report;
pub mod run;
pub mod scale;
pub mod scenario;
pub mod seed;
pub mod swarm;
pub mod topology;
pub mod units;
pub mod world;
