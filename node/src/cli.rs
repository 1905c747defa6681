//! The command line: what users and scripts type.
//!
//! Most commands are a question to the running daemon over its local API, and its answer as a table or as JSON. Standard
//! output carries the answer and nothing else; progress, hints and errors go to standard error. The exit code is that of
//! [`ErrorCode`](hyperfabric_node::api::ErrorCode).

mod args;
mod bootstrap;
mod completions;
mod config;
mod demo;
mod init;
mod inspect;
mod interrupt;
mod join;
mod local;
mod mesh;
mod output;
mod ping;
mod send;
mod transfers;
mod units;
mod up;

use std::process::ExitCode;

use clap::Parser;
use hyperfabric_node::api::ApiError;
use hyperfabric_node::client::{Client, ClientError};
use hyperfabric_node::paths::DataDir;

use args::{Cli, Command};
use output::Out;

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It failed, and the user should know why.
    Error(ApiError),
    /// It failed, and the answer has said so.
    Said(hyperfabric_node::api::ErrorCode),
    /// Whoever read the output has had enough, such as `head`.
    OutputClosed,
    /// The user interrupted it, and was told what that means.
    Interrupted,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Error(error.into())
    }
}

/// What every command needs.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) data_dir: DataDir,
    pub(crate) out: Out,
}

impl Context {
    /// Finds the daemon of the data folder.
    pub(crate) fn client(&self) -> Result<Client, ClientError> {
        Client::connect(&self.data_dir)
    }
}

/// Runs the command that the process was started with.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help is no error, and a closed pipe is no reason to complain; clap knows the exit code.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let out = Out { json: cli.json };
    match run(cli, out) {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        // What shells report for a program that SIGINT ended.
        Err(Failure::Interrupted) => ExitCode::from(130),
        Err(Failure::Said(code)) => ExitCode::from(code.exit_code()),
        Err(Failure::Error(error)) => {
            out.error(&error);
            ExitCode::from(error.code.exit_code())
        }
    }
}

fn run(cli: Cli, out: Out) -> Result<(), Failure> {
    let command = match cli.command {
        // Completions are asked for by installers, which may have no home.
        Command::Completions { shell } => return completions::run(shell, out),
        // The demo's peers have folders of their own.
        Command::Demo(demo) => return demo::run(out, demo),
        command => command,
    };
    let data_dir = DataDir::find(cli.data_dir)
        .map_err(|error| ApiError::of(hyperfabric_node::api::ErrorCode::Usage, &error))?;
    let context = Context { data_dir, out };
    match command {
        Command::Completions { .. } | Command::Demo(_) => Ok(()),
        Command::Bootstrap(args) => bootstrap::run(&context, args),
        Command::Config { command } => config::run(&context, &command),
        Command::Init(init) => init::run(&context, init),
        Command::Join(join) => join::run(&context, &join),
        Command::Up(up) => up::run(&context, up),
        Command::Mesh { command } => mesh::run(&context, command),
        Command::Nodes { command } => inspect::nodes(&context, command),
        Command::Peers => inspect::peers(&context),
        Command::Ping(ping) => ping::run(&context, ping),
        Command::Send(send) => send::run(&context, send),
        Command::Status => inspect::status(&context),
        Command::Transfers { follow, command } => transfers::run(&context, follow, command),
    }
}

#[cfg(test)]
mod tests;
