//! Whole-system tests: real processes, the command line and the local API, loopback only.
//!
//! One binary, so that the harness is linked once; one module per promise to users.
#![forbid(unsafe_code)]

mod api;
mod bootstrap;
mod changed;
mod contract;
mod handshake;
mod hostile;
mod inbox;
mod join;
mod partition;
mod refused;
mod resume;
mod revoked;
mod stall;
mod stranger;
mod support;
mod transfer;
