//! Ctrl-C and SIGTERM for commands that have something to say about them.

use std::thread;

use crossbeam_channel::{Receiver, bounded, select};
use hyperfabric_node::api::{ApiError, ErrorCode};
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;

/// Runs `work` beside the wait for an interruption; on one, `said` is called and the work is abandoned.
pub(crate) fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    said: impl FnOnce(),
) -> Result<T, Failure> {
    let (done, finished) = bounded(1);
    let spawned = thread::Builder::new()
        .name("command".to_owned())
        .spawn(move || drop(done.send(work())));
    spawned.map_err(|error| ApiError::of(ErrorCode::Failed, &error))?;
    let interrupted = listen();
    select! {
        recv(finished) -> result => {
            // The sender is dropped without a result only by a panic, which has said why.
            result.unwrap_or_else(|_| Err(ApiError::new(ErrorCode::Failed, "the command broke off").into()))
        }
        recv(interrupted) -> _ => {
            said();
            Err(Failure::Interrupted)
        }
    }
}

/// Returns a channel that gets a message at the first SIGINT or SIGTERM.
fn listen() -> Receiver<()> {
    let (interrupted, receiver) = bounded(1);
    let spawned = thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if wait() {
            let _ = interrupted.send(());
        }
        // Without a listener a signal ends the process at once, as it does by default; the channel stays open for that.
        loop {
            thread::park();
        }
    });
    if spawned.is_ok() {
        receiver
    } else {
        crossbeam_channel::never()
    }
}

/// Waits for SIGINT or SIGTERM; `false` when they cannot be waited for.
fn wait() -> bool {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return false;
    };
    runtime.block_on(async {
        let Ok(mut terminated) = signal(SignalKind::terminate()) else {
            return false;
        };
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted.is_ok(),
            terminated = terminated.recv() => terminated.is_some(),
        }
    })
}
