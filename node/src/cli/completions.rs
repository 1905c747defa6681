//! `hyperfabric completions`.

use clap::CommandFactory;
use serde_json::json;

use super::Failure;
use super::args::Cli;
use super::output::Out;

pub(crate) fn run(shell: clap_complete::Shell, out: Out) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hyperfabric", &mut script);
    let script = String::from_utf8_lossy(&script);
    out.answer(&json!({ "shell": shell.to_string(), "script": script }), |_| {
        script.to_string()
    })
}
