//! `hyperfabric up`: the daemon, in the foreground.

use std::io::IsTerminal;

use hyperfabric_node::api::{ApiError, ErrorCode};
use hyperfabric_node::config::FabricConfig;
use hyperfabric_node::daemon::Daemon;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::args::Up;
use super::local::daemon_error;
use super::{Context, Failure};

/// How many tasks run before the network is looked at again. tokio's 61 starve small requests beside transfers.
const EVENT_INTERVAL: u32 = 2;

/// Makes the runtime of a daemon: one thread, which reads the network.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, ApiError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()
        .map_err(|error| ApiError::of(ErrorCode::Failed, &error))
}

pub(crate) fn run(context: &Context, up: Up) -> Result<(), Failure> {
    let mut config =
        FabricConfig::of(&context.data_dir).map_err(|error| ApiError::of(ErrorCode::Usage, &error))?;
    if let Some(listen) = up.listen {
        config.listen = listen;
    }
    config.bootstrap.extend(up.bootstrap);
    if let Some(api) = up.api {
        config.api_listen = api;
    }
    start_log(&config.log)?;
    runtime()?.block_on(serve(context, &config))
}

/// Sends the log to standard error.
pub(crate) fn start_log(filter: &str) -> Result<(), ApiError> {
    let filter = hyperfabric_bootstrap::cli::log_filter(filter).map_err(|error| {
        ApiError::of(ErrorCode::Usage, &error)
            .hint("the filter comes from $HYPERFABRIC_LOG, $RUST_LOG or `log`, whichever is there first")
    })?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .init();
    Ok(())
}

async fn serve(context: &Context, config: &FabricConfig) -> Result<(), Failure> {
    let failed = |error: std::io::Error| ApiError::of(ErrorCode::Failed, &error);
    // Before the daemon starts, so that no signal finds nobody listening.
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let daemon = Daemon::start(&context.data_dir, config)
        .await
        .map_err(|error| daemon_error(&error))?;
    let ready = daemon.ready();
    let answer = json!({
        "event": "ready",
        "peer_id": ready.peer_id,
        "name": ready.name,
        "listen": ready.listen,
        "api": ready.api,
    });
    let said = context.out.answer(&answer, |_| {
        let listen: String = ready
            .listen
            .iter()
            .map(|address| format!("\n  {address}"))
            .collect();
        format!(
            "{} is up. Other peers reach it at{listen}\nThe local API is at {}\n",
            ready.name, ready.api
        )
    });
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("interrupted: draining"),
        () = daemon.asked_to_stop() => tracing::info!("asked to stop: draining"),
    }
    daemon.stop().await;
    // Whoever started the daemon may have stopped reading; that is no reason for it to end.
    match said {
        Ok(()) | Err(Failure::OutputClosed) => Ok(()),
        Err(failure) => Err(failure),
    }
}
