//! `hyperfabric init`: makes a host a peer.

use hyperfabric_mesh::clock::{Clock, SystemClock};
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_node::api::{ApiError, ErrorCode, Token};
use hyperfabric_node::config::{FabricConfig, save_fabric_config};
use hyperfabric_node::hardware;
use serde_json::json;

use super::args::Init;
use super::local::state_error;
use super::{Context, Failure};

pub(crate) fn run(context: &Context, init: Init) -> Result<(), Failure> {
    let failed = |error: &(dyn std::error::Error + 'static)| ApiError::of(ErrorCode::Failed, error);
    let folder = StateFolder::new(context.data_dir.path());
    let mut config =
        FabricConfig::of(&context.data_dir).map_err(|error| ApiError::of(ErrorCode::Usage, &error))?;
    folder
        .check_uninitialised()
        .map_err(|error| state_error(&error))?;
    context.data_dir.create().map_err(|error| failed(&error))?;
    Token::read_or_create(&context.data_dir).map_err(|error| failed(&error))?;
    let name = init
        .name
        .or(config.node_name.clone())
        .unwrap_or_else(hardware::host_name);
    config.node_name = Some(name.clone());
    config.mesh.clone_from(&init.open);
    save_fabric_config(&config, &context.data_dir.config()).map_err(|error| failed(&error))?;
    // Last: with it the folder counts as initialised.
    let key = folder.init().map_err(|error| state_error(&error))?;
    if let Some(mesh) = &init.open {
        let wall = SystemClock::default().now().wall;
        folder
            .join_open_mesh(mesh, name.clone(), wall)
            .map_err(|error| state_error(&error))?;
    }
    let answer = json!({
        "peer_id": key.peer_id(),
        "name": name,
        "data_dir": context.data_dir.path(),
        "mesh": init.open,
    });
    context.out.answer(&answer, |_| {
        let next = match &init.open {
            Some(mesh) => format!("It is a member of the open mesh {mesh:?}: start it with `hyperfabric up --bootstrap MULTIADDR`."),
            None => "Next: `hyperfabric join TICKET`, or `hyperfabric mesh create MESH` for a new mesh.".to_owned(),
        };
        format!("Peer {} in {}, called {name}.\n{next}\n", key.peer_id(), context.data_dir.path().display())
    })
}
