//! `hyperfabric join`: becomes a member of a mesh.

use hyperfabric_node::api::{ApiError, ErrorCode};
use hyperfabric_node::offline::{self, JoinError};
use hyperfabric_protocol::cert::Member;
use hyperfabric_protocol::frame::JoinRefusal;
use hyperfabric_protocol::ticket::{CREDENTIAL_PREFIX, Credential, Ticket};
use serde_json::json;

use super::args::Join;
use super::local::daemon_error;
use super::{Context, Failure};

pub(crate) fn run(context: &Context, join: &Join) -> Result<(), Failure> {
    let text = join.ticket.trim();
    let (member, mesh) = if text.starts_with(CREDENTIAL_PREFIX) {
        let credential: Credential = text
            .parse()
            .map_err(|error| ApiError::of(ErrorCode::Usage, &error))?;
        let mesh = credential.root().name().to_owned();
        (offline::adopt(&context.data_dir, &credential), mesh)
    } else {
        let ticket: Ticket = text
            .parse()
            .map_err(|error| ApiError::of(ErrorCode::Usage, &error))?;
        let mesh = ticket.root().name().to_owned();
        let runtime = super::up::runtime()?;
        (
            runtime.block_on(offline::join(&context.data_dir, ticket, join.timeout)),
            mesh,
        )
    };
    let member: Member = member.map_err(|error| explain(&error))?;
    let answer = json!({
        "mesh": mesh,
        "name": member.name,
        "peer_id": member.peer,
        "expires_unix_ms": member.not_after,
    });
    context.out.answer(&answer, |_| {
        format!(
            "A member of mesh {mesh:?}, called {}.\nNext: `hyperfabric up`.\n",
            member.name
        )
    })
}

fn explain(error: &JoinError) -> ApiError {
    match error {
        JoinError::Daemon(error) => daemon_error(error),
        JoinError::Refused(JoinRefusal::NameTaken) => ApiError::of(ErrorCode::Conflict, error)
            .named("DuplicateNodeError")
            .hint("ask for a ticket with another name"),
        JoinError::Refused(_) | JoinError::Certificate(_) => ApiError::of(ErrorCode::Refused, error),
        JoinError::TimedOut(_) => ApiError::of(ErrorCode::TimedOut, error)
            .hint("check that the issuer is running and that its UDP port can be reached from here"),
        JoinError::Unreachable { .. } => ApiError::of(ErrorCode::Failed, error)
            .hint("check that the issuer is running and that its UDP port can be reached from here"),
        JoinError::NoAnswer | JoinError::BadAnswer => ApiError::of(ErrorCode::Failed, error),
    }
}
