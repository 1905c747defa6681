//! The crate root; modules land with their first user.

pub mod storage;
pub mod store;
pub mod transfer;

pub use hyperfabric_mesh::workers;
