//! Whole-system tests: real processes, the command line and the local API, loopback only.
//!
//! One binary, so that the harness is linked once; one module per promise to users.
#![forbid(unsafe_code)]

mod api;
mod bootstrap;
mod contract;
mod hostile;
mod inbox;
mod join;
mod refused;
mod resume;
mod support;
mod transfer;
