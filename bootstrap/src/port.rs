//! The UDP port, which stays the same over restarts because others have written it down.

use std::net::SocketAddr;

use hyperfabric_mesh::KernelWire;
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_mesh::store::Store;
use hyperfabric_mesh::wire::{BindError, Wire as _};

use crate::StartError;

/// Binds `listen`; its port 0 stands for the kept port, and for a free one at the first start. Must be called inside a runtime.
pub(crate) fn bind(
    folder: &StateFolder,
    store: &Store,
    listen: SocketAddr,
) -> Result<KernelWire, StartError> {
    let kept = folder.listen_port(store)?;
    let port = match listen.port() {
        0 => kept.unwrap_or(0),
        asked => asked,
    };
    let wire = KernelWire::bind(SocketAddr::new(listen.ip(), port)).map_err(|error| match error {
        BindError::InUse { addr } if listen.port() == 0 => StartError::KeptPort { port: addr.port() },
        error @ (BindError::InUse { .. } | BindError::Unusable { .. }) => StartError::Listen(error),
    })?;
    let bound = wire.local_addr().map_err(StartError::Socket)?;
    folder.set_listen_port(store, bound.port())?;
    Ok(wire)
}
