//! The demo's second transfer, whose receiver is killed in the middle and started again.
//!
//! The middle is what the sender says of its progress, never a moment: on a fast machine a transfer is over in the time
//! that a slow one needs to begin.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use hyperfabric_node::api::model::Transfer;
use hyperfabric_protocol::TransferId;

use super::peers::pause;
use super::report::{Arrived, Resumed};
use super::{ALPHA, DemoError, GAMMA, Stage, name_of};
use crate::cli::units::size;

/// The receiver is killed when this part of the transfer, one in so many, is durable.
const KILL_AT: u64 = 4;
/// How often the transfer is begun anew if it ends before its receiver is killed.
const ATTEMPTS_MAX: u32 = 3;

type Sending = JoinHandle<Result<Transfer, DemoError>>;

/// Sends `path` to a receiver that is killed meanwhile, and checks that the transfer goes on where it was.
pub(super) fn run(stage: &Stage, path: &Path) -> Result<Resumed, DemoError> {
    for _ in 0..ATTEMPTS_MAX {
        stage.out.note(&format!(
            "alpha sends {} to gamma, which is killed on the way ...",
            name_of(path)
        ));
        let known = Arc::new(OnceLock::new());
        let (worker, told, source) = (stage.clone(), Arc::clone(&known), path.to_path_buf());
        let sending: Sending = thread::Builder::new()
            .name("send".to_owned())
            .spawn(move || worker.send(&source, GAMMA, &told))
            .map_err(DemoError::Program)?;
        if let Some(killed_at_bytes) = middle(stage, &known, &sending)? {
            return restart(stage, path, sending, killed_at_bytes);
        }
        let ended = finish(sending)?;
        stage
            .out
            .note("It had ended before gamma could be killed; once more.");
        std::fs::remove_file(stage.place(GAMMA, ended.transfer_id)?).map_err(DemoError::Folder)?;
    }
    Err(DemoError::TooFast(ATTEMPTS_MAX))
}

/// Waits until a part of the transfer is durable at its receiver; `None` when it has ended before.
fn middle(stage: &Stage, known: &OnceLock<TransferId>, sending: &Sending) -> Result<Option<u64>, DemoError> {
    // The sending has a deadline of its own.
    while !sending.is_finished() {
        if let Some(id) = known.get() {
            let now = stage.ask(ALPHA, |client| client.transfer(*id))?;
            if now.state.is_ended() {
                return Ok(None);
            }
            if now.done_bytes >= now.bytes / KILL_AT {
                return Ok(Some(now.done_bytes));
            }
        }
        pause();
    }
    Ok(None)
}

fn restart(stage: &Stage, path: &Path, sending: Sending, killed_at_bytes: u64) -> Result<Resumed, DemoError> {
    let process = stage.peers.kill(GAMMA)?;
    let gone = Instant::now();
    stage.out.note(&format!(
        "gamma (process {process}) was killed with {} durable; it is started again ...",
        size(killed_at_bytes)
    ));
    stage.up(GAMMA)?;
    let restart_seconds = gone.elapsed().as_secs_f64();
    let transfer = finish(sending)?;
    if transfer.resumed_bytes == 0 {
        return Err(DemoError::NotResumed(killed_at_bytes));
    }
    let arrived: Arrived = stage.compare(path, GAMMA, &transfer)?;
    Ok(Resumed {
        arrived,
        killed_at_bytes,
        resumed_bytes: transfer.resumed_bytes,
        restart_seconds,
    })
}

fn finish(sending: Sending) -> Result<Transfer, DemoError> {
    // A panic has said on standard error why.
    sending.join().unwrap_or(Err(DemoError::Interrupted))
}
