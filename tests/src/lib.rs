//! What whole-system tests need: real peers as real processes, files to send, and patience with a deadline.
//!
//! A [`Peer`] is a data folder and the `hyperfabric` binary that works on it; a [`Mesh`] is several of them that
//! joined by ticket. Everything goes over the command line and the local API, as a user's scripts would, so that the
//! tests hold the contract and not the code behind it. No peer outlives its test, and a peer that logs an error
//! fails it.
#![forbid(unsafe_code)]

pub mod binary;
pub mod decoders;
pub mod files;
pub mod http;
pub mod mesh;
pub mod peer;
pub mod process;
pub mod wait;

pub use files::{Content, Folder};
pub use mesh::Mesh;
pub use peer::Peer;
pub use process::{Exit, Outcome, Running};
pub use wait::{PATIENCE, eventually};

/// Ends a test that this machine cannot run, saying why; `tests/run` lists the reasons, and fails on them in CI.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        eprintln!("SKIPPED {}: {}", module_path!(), format_args!($($reason)*));
        return Ok(());
    }};
}
