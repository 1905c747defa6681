//! `hyperfabric bootstrap`: the command of the bootstrap crate, with the data folder, log and exit codes of this one.

use hyperfabric_bootstrap::StartError;
use hyperfabric_bootstrap::cli::{self, Args, RunError};
use hyperfabric_node::api::{ApiError, ErrorCode};
use hyperfabric_node::config::FabricConfig;

use super::{Context, Failure, local, up};

pub(crate) fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let config =
        FabricConfig::of(&context.data_dir).map_err(|error| ApiError::of(ErrorCode::Usage, &error))?;
    up::start_log(&config.log)?;
    cli::run(context.data_dir.path(), context.out.json, args).map_err(|error| explain(&error).into())
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
