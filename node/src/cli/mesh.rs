//! `hyperfabric mesh`: who belongs to the mesh.

use hyperfabric_node::api::model::{AdmitRequest, Invitation, InviteRequest, Member};
use hyperfabric_node::client::ClientError;
use serde_json::json;

use super::args::{Invite, MeshCommand};
use super::output::table;
use super::units::{now_unix_ms, relative};
use super::{Context, Failure};

pub(crate) fn run(context: &Context, command: MeshCommand) -> Result<(), Failure> {
    match command {
        MeshCommand::Create(create) => super::local::create_mesh(context, &create),
        MeshCommand::Admit(admit) => {
            let request = AdmitRequest {
                peer_id: admit.pubkey,
                name: admit.name,
            };
            let admission = match context.client() {
                Ok(client) => client.admit(&request)?,
                Err(ClientError::NotRunning { .. }) => super::local::admit(context, &request)?,
                Err(error) => return Err(error.into()),
            };
            context.out.answer(&admission, |admission| {
                format!(
                    "A certificate for {}, called {}:\n{}\n",
                    admission.peer_id, admission.name, admission.certificate
                )
            })
        }
        MeshCommand::Invite(invite) => {
            let request = request(invite);
            let invitation = match context.client() {
                Ok(client) => client.invite(&request)?,
                Err(ClientError::NotRunning { .. }) => super::local::invite(context, &request)?,
                Err(error) => return Err(error.into()),
            };
            context.out.answer(&invitation, invitation_text)
        }
        MeshCommand::Members => {
            let members = context.client()?.members()?;
            context
                .out
                .answer(&json!({ "members": members }), |_| members_text(&members))
        }
        MeshCommand::Revoke { name } => {
            let revoked = context.client()?.revoke(name)?;
            context.out.answer(&revoked, |revoked| {
                format!(
                    "revoked {} ({} certificates)",
                    revoked.name,
                    revoked.serials.len()
                )
            })
        }
    }
}

fn request(invite: Invite) -> InviteRequest {
    InviteRequest {
        name: invite.name,
        expires_seconds: invite.expires.as_secs(),
        uses: invite.uses,
    }
}

/// The ticket stands alone on the last line, where scripts find it.
fn invitation_text(invitation: &Invitation) -> String {
    let uses = if invitation.uses == 1 {
        "once".to_owned()
    } else {
        format!("{} times", invitation.uses)
    };
    let ends = relative(invitation.expires_unix_ms, now_unix_ms());
    format!(
        "A ticket for {}, good {uses}, ends {ends}:\n{}\n",
        invitation.name, invitation.ticket
    )
}

fn members_text(members: &[Member]) -> String {
    let now = now_unix_ms();
    let row = |member: &Member| {
        let state = match (member.revoked, member.connected) {
            (true, _) => "revoked",
            (false, true) => "connected",
            (false, false) => "-",
        };
        [
            member.name.to_string(),
            member.peer_id.to_string(),
            if member.admitter { "admitter" } else { "member" }.to_owned(),
            state.to_owned(),
            relative(member.expires_unix_ms, now),
            member.serial.to_string(),
        ]
    };
    table(
        ["NAME", "PEER", "ROLE", "STATE", "ENDS", "SERIAL"],
        &members.iter().map(row).collect::<Vec<_>>(),
    )
}
