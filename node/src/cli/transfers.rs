//! `hyperfabric transfers`: what is under way, and what became of the rest.

use hyperfabric_node::api::model::{Direction, Transfer, TransferState};
use serde_json::json;

use super::args::TransfersCommand;
use super::output::{Out, table};
use super::units::{now_unix_ms, rate, relative, size, to_f64};
use super::{Context, Failure};

pub(crate) fn run(context: &Context, follow: bool, command: Option<TransfersCommand>) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        Some(TransfersCommand::Cancel { id }) => context.out.answer(&client.cancel(id)?, line),
        Some(TransfersCommand::Resume { id }) => context.out.answer(&client.resume(id)?, line),
        None if follow => {
            let mut stream = client.follow(None)?;
            while let Some(transfer) = stream.next_transfer()? {
                context.out.answer(&transfer, line)?;
            }
            context.out.note("the daemon has stopped");
            Ok(())
        }
        None => list(context.out, &client.transfers()?),
    }
}

fn list(out: Out, transfers: &[Transfer]) -> Result<(), Failure> {
    if out.json {
        return out.object(&json!({ "transfers": transfers }));
    }
    if transfers.is_empty() {
        out.note("no transfers");
        return Ok(());
    }
    let now = now_unix_ms();
    let rows: Vec<[String; 8]> = transfers
        .iter()
        .map(|transfer| {
            [
                transfer.transfer_id.to_string(),
                transfer.name.clone(),
                peer(transfer),
                state(transfer.state).to_owned(),
                size(transfer.bytes),
                share(transfer),
                if transfer.state == TransferState::Active {
                    rate(transfer.rate)
                } else {
                    "-".to_owned()
                },
                relative(transfer.started_unix_ms, now),
            ]
        })
        .collect();
    out.text(&table(
        [
            "TRANSFER", "NAME", "WITH", "STATE", "SIZE", "DONE", "RATE", "BEGUN",
        ],
        &rows,
    ))
}

fn line(transfer: &Transfer) -> String {
    let why = transfer
        .error
        .as_ref()
        .map(|error| error.message.as_str())
        .or(transfer.detail.as_deref());
    format!(
        "{}  {}  {}  {}  {} of {}{}",
        transfer.transfer_id,
        transfer.name,
        peer(transfer),
        state(transfer.state),
        share(transfer),
        size(transfer.bytes),
        why.map_or_else(String::new, |why| format!("  ({why})")),
    )
}

fn peer(transfer: &Transfer) -> String {
    match transfer.direction {
        Direction::Outgoing => format!("to {}", transfer.destination),
        Direction::Incoming => format!("from {}", transfer.source),
    }
}

fn state(state: TransferState) -> &'static str {
    match state {
        TransferState::Waiting => "waiting",
        TransferState::Active => "active",
        TransferState::Sealing => "verifying",
        TransferState::Done => "done",
        TransferState::Failed => "failed",
        TransferState::Cancelled => "cancelled",
    }
}

fn share(transfer: &Transfer) -> String {
    if transfer.bytes == 0 {
        return if transfer.state == TransferState::Done {
            "100%"
        } else {
            "0%"
        }
        .to_owned();
    }
    // Rounded down: 100% is all of it.
    format!(
        "{:.0}%",
        (to_f64(transfer.done_bytes) / to_f64(transfer.bytes) * 100.0).floor()
    )
}
