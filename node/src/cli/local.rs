//! Commands of `hyperfabric mesh` that need no daemon.

use std::time::Duration;

use hyperfabric_mesh::clock::{Clock, SystemClock};
use hyperfabric_mesh::state::{StateError, StateFolder};
use hyperfabric_node::api::model::{Admission, AdmitRequest, Invitation, InviteRequest};
use hyperfabric_node::api::{ApiError, ErrorCode};
use hyperfabric_node::config::FabricConfig;
use hyperfabric_node::daemon::DaemonError;
use hyperfabric_node::hardware;
use hyperfabric_node::offline::{self, OfflineError};
use hyperfabric_node::paths::PathError;
use hyperfabric_protocol::admission::AdmitError;
use serde_json::json;

use super::args::Create;
use super::{Context, Failure};

/// Puts what is wrong with a peer's folder into the words of the command line.
pub(crate) fn state_error(error: &StateError) -> ApiError {
    let code = match error {
        StateError::NotInitialised(_) => ErrorCode::NotFound,
        StateError::Initialised(_) | StateError::AlreadyMember(_) => ErrorCode::Refused,
        StateError::File { .. }
        | StateError::BadKey(_)
        | StateError::Exposed(_)
        | StateError::BadCredential { .. }
        | StateError::Store(_) => ErrorCode::Failed,
    };
    ApiError::of(code, error)
}

/// Puts why a daemon does not start into the words of the command line.
pub(crate) fn daemon_error(error: &DaemonError) -> ApiError {
    match error {
        DaemonError::State(error) => state_error(error),
        DaemonError::NoMesh | DaemonError::Membership(_) => ApiError::of(ErrorCode::Refused, error),
        DaemonError::Bootstrap(..) => ApiError::of(ErrorCode::Usage, error),
        DaemonError::Path(PathError::Locked { .. }) => {
            ApiError::of(ErrorCode::Refused, error).hint("stop it first, or use another --data-dir")
        }
        DaemonError::Path(_)
        | DaemonError::Store(_)
        | DaemonError::Bind { .. }
        | DaemonError::Storage(_)
        | DaemonError::Workers(_)
        | DaemonError::Node(_)
        | DaemonError::Api(_) => ApiError::of(ErrorCode::Failed, error),
    }
}

fn offline_error(error: &OfflineError) -> ApiError {
    match error {
        OfflineError::Daemon(error) => daemon_error(error),
        OfflineError::Config(error) => ApiError::of(ErrorCode::Usage, error),
        OfflineError::Admit(AdmitError::NotAnAdmitter) => ApiError::of(ErrorCode::Refused, error),
        OfflineError::Admit(AdmitError::NameTaken { .. }) => {
            ApiError::of(ErrorCode::Conflict, error).named("DuplicateNodeError")
        }
        OfflineError::Admit(AdmitError::Uses) => ApiError::of(ErrorCode::Usage, error),
        OfflineError::Admit(AdmitError::TooManyTickets) | OfflineError::NotWritten => {
            ApiError::of(ErrorCode::Failed, error)
        }
    }
}

pub(crate) fn create_mesh(context: &Context, create: &Create) -> Result<(), Failure> {
    let folder = StateFolder::new(context.data_dir.path());
    let config =
        FabricConfig::of(&context.data_dir).map_err(|error| ApiError::of(ErrorCode::Usage, &error))?;
    let name = config.node_name.unwrap_or_else(hardware::host_name);
    let wall = SystemClock::default().now().wall;
    let made = if create.open {
        folder.join_open_mesh(&create.mesh, name.clone(), wall)
    } else {
        folder.create_mesh(&create.mesh, name.clone(), wall)
    };
    let root = made.map_err(|error| state_error(&error))?;
    let answer = json!({ "mesh": create.mesh, "mesh_id": root.id(), "name": name, "open": create.open });
    context.out.answer(&answer, |_| {
        if create.open {
            format!("The open mesh {:?}, with this peer as {name}. Others: `hyperfabric init --open {}`.\n", create.mesh, create.mesh)
        } else {
            format!(
                "The mesh {:?}, with this peer as {name}, its first admitter.\nThe authority's key is {}: keep a copy in a safe place.\nNext: `hyperfabric up`, and `hyperfabric mesh invite --name NAME` for each further host.\n",
                create.mesh,
                folder.authority_file().display()
            )
        }
    })
}

pub(crate) fn invite(context: &Context, request: &InviteRequest) -> Result<Invitation, Failure> {
    let valid = Duration::from_secs(request.expires_seconds);
    let ticket = offline::invite(&context.data_dir, request.name.clone(), valid, request.uses)
        .map_err(|error| offline_error(&error))?;
    Ok(Invitation {
        ticket: ticket.to_string(),
        name: request.name.clone(),
        expires_unix_ms: ticket.0.expires.0,
        uses: request.uses,
    })
}

pub(crate) fn admit(context: &Context, request: &AdmitRequest) -> Result<Admission, Failure> {
    let AdmitRequest { peer_id, name } = request.clone();
    let credential =
        offline::admit(&context.data_dir, peer_id, name.clone()).map_err(|error| offline_error(&error))?;
    Ok(Admission {
        name,
        peer_id,
        certificate: credential.to_string(),
    })
}
