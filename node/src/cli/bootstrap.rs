//! `hyperfabric bootstrap`: the peer of the bootstrap crate, with the data folder, configuration, log, local API and exit
//! codes of this one.

use hyperfabric_bootstrap::cli::{self, Args, RunError, Signals};
use hyperfabric_bootstrap::{BootstrapConfig, Contact, StartError};
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_node::api::{ApiError, ErrorCode};
use hyperfabric_node::bootstrap::BootstrapApi;
use hyperfabric_node::config::FabricConfig;
use hyperfabric_node::daemon::DaemonError;

use super::{Context, Failure, local, up};

pub(crate) fn run(context: &Context, mut args: Args) -> Result<(), Failure> {
    let config =
        FabricConfig::of(&context.data_dir).map_err(|error| ApiError::of(ErrorCode::Usage, &error))?;
    up::start_log(&config.log)?;
    args.listen.get_or_insert(config.listen);
    for address in &config.bootstrap {
        let contact: Contact = address
            .as_str()
            .parse()
            .map_err(|error| bad_contact(address.as_str(), &error))?;
        args.bootstrap.push(contact);
    }
    let open = args.open.is_some();
    let bootstrap = cli::config(context.data_dir.path(), args).map_err(|error| explain(&error))?;
    let runtime = cli::runtime().map_err(|error| explain(&error))?;
    runtime.block_on(serve(context, &config, bootstrap, open))
}

async fn serve(
    context: &Context,
    config: &FabricConfig,
    bootstrap: BootstrapConfig,
    open: bool,
) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(|error| explain(&error))?;
    if open {
        context
            .data_dir
            .create()
            .map_err(|error| local::daemon_error(&error.into()))?;
    } else {
        // Asked before the lock is made, so that a mistyped folder stays as it is.
        StateFolder::new(context.data_dir.path())
            .key()
            .map_err(|error| local::state_error(&error))?;
    }
    let lock = context.data_dir.lock();
    let _lock = lock.map_err(|error| local::daemon_error(&error.into()))?;
    let peer = cli::start(bootstrap).map_err(|error| explain(&error))?;
    let api = match BootstrapApi::start(&context.data_dir, config, &peer).await {
        Ok(api) => api,
        Err(error) => {
            peer.stop().await;
            return Err(local::daemon_error(&DaemonError::from(error)).into());
        }
    };
    let announced = cli::announce(&peer, context.out.json, Some(api.address()));
    if announced.is_ok() {
        tokio::select! {
            () = signals.received() => {}
            () = api.asked_to_stop() => {}
        }
    }
    api.stop().await;
    peer.stop().await;
    announced.map_err(|error| explain(&error).into())
}

fn bad_contact(address: &str, error: &hyperfabric_bootstrap::ContactError) -> ApiError {
    let error = ApiError::of(ErrorCode::Usage, error);
    ApiError::new(
        error.code,
        format!(
            "the bootstrap address {address} cannot be used: {}",
            error.message
        ),
    )
}

fn explain(error: &RunError) -> ApiError {
    match error {
        RunError::Start(StartError::State(error)) => local::state_error(error),
        RunError::Start(StartError::NotAMember(_)) => ApiError::of(ErrorCode::Refused, error),
        RunError::NoDataDir | RunError::NoName | RunError::Start(StartError::MeshName) => {
            ApiError::of(ErrorCode::Usage, error)
        }
        RunError::System(_) | RunError::Start(_) | RunError::Addresses(_) => {
            ApiError::of(ErrorCode::Failed, error)
        }
    }
}
