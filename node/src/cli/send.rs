//! `hyperfabric send`: hands a file to the daemon and watches until it has arrived.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hyperfabric_node::api::model::{
    SendOrder, Sent, Skipped, SkippedEntry, SkippedKind, Transfer, TransferState,
};
use hyperfabric_node::api::source::{self, SourceError};
use hyperfabric_node::api::{ApiError, ErrorCode};
use hyperfabric_node::client::ClientError;
use hyperfabric_protocol::{NodeId, TransferId};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::units::{average_rate, millis, rate, seconds, size};
use super::{Context, Failure, args, interrupt};

/// For how long a daemon that went away is waited for.
const RESTART_MAX: Duration = Duration::from_secs(60);
/// How long to pause between two attempts to find it.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

pub(crate) fn run(context: &Context, send: args::Send) -> Result<(), Failure> {
    let begun = Arc::new(OnceLock::new());
    let (worker, known) = (context.clone(), Arc::clone(&begun));
    let to = send.to.clone();
    let sent = interrupt::run(
        move || transfer(&worker, &send, &known),
        || say_interrupted(context, begun.get()),
    )?;
    context.out.answer(&summary(&sent), |summary| {
        let took = rate(average_rate(
            summary.bytes.saturating_sub(summary.resumed_bytes),
            summary.seconds,
        ));
        let route: Vec<&str> = summary.route.iter().map(NodeId::as_str).collect();
        let mut text = format!(
            "sent {} ({}) to {to} in {}, {took}\nblake3    {}\nroute     {}\ntransfer  {}\n",
            sent.name,
            size(summary.bytes),
            seconds(summary.seconds),
            summary.blake3.as_deref().unwrap_or("-"),
            route.join(" > "),
            summary.transfer_id,
        );
        if summary.resumed_bytes > 0 {
            text.push_str(&format!(
                "resumed   {} were already there\n",
                size(summary.resumed_bytes)
            ));
        }
        if let Some(skipped) = &summary.skipped {
            text.push_str(&skipped_text(skipped));
        }
        text
    })
}

/// One line for each entry that is listed, and one for the others.
fn skipped_text(skipped: &Skipped) -> String {
    let mut text = String::new();
    for SkippedEntry { path, kind } in &skipped.listed {
        let kind = match kind {
            SkippedKind::SymbolicLink => "a symbolic link",
            SkippedKind::Pipe => "a pipe",
            SkippedKind::Socket => "a socket",
            SkippedKind::Device => "a device",
            SkippedKind::Other => "neither a file nor a folder",
        };
        text.push_str(&format!("skipped   {path}: {kind}\n"));
    }
    let more = skipped.count - skipped.count.min(skipped.listed.len() as u64);
    if more > 0 {
        text.push_str(&format!("skipped   {more} more, {} in all\n", skipped.count));
    }
    text
}

fn summary(transfer: &Transfer) -> Sent {
    Sent {
        transfer_id: transfer.transfer_id,
        bytes: transfer.bytes,
        seconds: transfer.seconds,
        blake3: transfer.blake3.clone(),
        route: transfer.route.clone(),
        resumed_bytes: transfer.resumed_bytes,
        skipped: transfer.skipped.clone(),
    }
}

fn say_interrupted(context: &Context, id: Option<&TransferId>) {
    context.out.note(&match id {
        Some(id) => format!(
            "\nThe transfer goes on in the daemon.\n  to watch it:  hyperfabric transfers --follow\n  to stop it:   hyperfabric transfers cancel {id}"
        ),
        None => "\nInterrupted before the transfer began.".to_owned(),
    });
}

/// Sends a file or folder and watches until it has arrived; `begun` gets the transfer's id once there is one.
pub(crate) fn transfer(
    context: &Context,
    send: &args::Send,
    begun: &OnceLock<TransferId>,
) -> Result<Transfer, Failure> {
    let file = source::open_for_sending(&send.path).map_err(unreadable)?;
    let order = order(send)?;
    let client = context.client()?;
    let id = client.send(&order, file.as_fd())?.transfer_id;
    // The daemon has its own descriptor now.
    drop(file);
    let _ = begun.set(id);
    let ended = follow(context, id)?;
    match ended.state {
        TransferState::Done => Ok(ended),
        _ => Err(ended.error.unwrap_or_else(|| ended_otherwise(ended.state)).into()),
    }
}

/// The daemon refuses what it may not read for others; what the caller itself cannot open has simply failed.
fn unreadable(error: SourceError) -> ApiError {
    let mut error = ApiError::from(error);
    if error.code == ErrorCode::Refused {
        error.code = ErrorCode::Failed;
    }
    error
}

fn ended_otherwise(state: TransferState) -> ApiError {
    let cancelled = state == TransferState::Cancelled;
    ApiError::new(
        ErrorCode::Failed,
        if cancelled {
            "the transfer was cancelled"
        } else {
            "the transfer failed"
        },
    )
}

fn order(send: &args::Send) -> Result<SendOrder, ApiError> {
    let failed = |error: std::io::Error| ApiError::of(ErrorCode::Failed, &error);
    let path = send.path.canonicalize().map_err(failed)?;
    if path.to_str().is_none() {
        return Err(ApiError::new(
            ErrorCode::Usage,
            format!("the path {} is not UTF-8", path.display()),
        ));
    }
    // A link arrives under its own name, `.` and `..` under that of the folder they lead to.
    let named = |path: &Path| source::arrival_name(None, path);
    let name = std::path::absolute(&send.path)
        .map_err(failed)
        .map(|path| named(&path))?
        .or_else(|_| named(&path))?;
    Ok(SendOrder {
        path: Some(path),
        name: Some(name),
        to: send.to.clone(),
        data_type: send.data_type,
        priority: send.priority,
        timeout_ms: send.timeout.map(millis),
        wait_ms: millis(send.wait),
        sync: send.sync,
    })
}

/// Watches a transfer until it has ended, through restarts of the daemon.
fn follow(context: &Context, id: TransferId) -> Result<Transfer, ApiError> {
    let mut progress = Progress::new(context);
    let mut lost: Option<Instant> = None;
    loop {
        let error = match watch(context, id, &mut progress, &mut lost) {
            Ok(ended) => return Ok(ended),
            Err(error) if error.is_restart() => error,
            Err(error) => return Err(error.into()),
        };
        let since = *lost.get_or_insert_with(Instant::now);
        if since.elapsed() > RESTART_MAX {
            let error = ApiError::from(error);
            return Err(
                error.hint("the transfer goes on when the daemon is started again with `hyperfabric up`")
            );
        }
        progress.say("the daemon is gone; waiting for it to come back");
        // A pause that nothing can end early.
        let _ = crossbeam_channel::after(RETRY_PAUSE).recv();
    }
}

/// Watches a transfer for as long as one connection to the daemon lasts.
fn watch(
    context: &Context,
    id: TransferId,
    progress: &mut Progress,
    lost: &mut Option<Instant>,
) -> Result<Transfer, ClientError> {
    let mut stream = context.client()?.follow(Some(id))?;
    while let Some(transfer) = stream.next_transfer()? {
        *lost = None;
        progress.show(&transfer);
        if transfer.state.is_ended() {
            progress.finish();
            return Ok(transfer);
        }
    }
    Err(ClientError::Lost(std::io::ErrorKind::UnexpectedEof.into()))
}

/// A bar with rate and remaining time on a terminal; elsewhere a line when something worth knowing happens.
struct Progress {
    context: Context,
    bar: ProgressBar,
    begun: bool,
    said: Option<String>,
}

impl Progress {
    fn new(context: &Context) -> Self {
        // Where standard error is no terminal, this target hides the bar.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            context: context.clone(),
            bar,
            begun: false,
            said: None,
        }
    }

    fn show(&mut self, transfer: &Transfer) {
        self.bar.set_length(transfer.bytes);
        self.bar.set_position(transfer.done_bytes);
        if !self.begun && transfer.state == TransferState::Active {
            self.begun = true;
            // What was there before must not count as sent in no time.
            self.bar.reset_eta();
        }
        match (&transfer.detail, transfer.state) {
            (Some(detail), TransferState::Waiting) => self.say(detail),
            (_, TransferState::Sealing) => self.bar.set_message(format!("{}: verifying", transfer.name)),
            _ => {
                self.said = None;
                self.bar.set_message(transfer.name.clone());
            }
        }
    }

    fn say(&mut self, text: &str) {
        if self.said.as_deref() == Some(text) {
            return;
        }
        self.said = Some(text.to_owned());
        if self.bar.is_hidden() {
            self.context.out.note(text);
        } else {
            self.bar.set_message(text.to_owned());
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
