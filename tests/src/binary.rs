//! Where the `hyperfabric` binary is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

// The tests of one process share one build; the lock also keeps cargo from waiting on itself.
static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// Returns the binary under test: `$HYPERFABRIC_BIN`, or the one that cargo builds now.
///
/// # Errors
/// When the variable names no file, or the build fails.
pub fn hyperfabric() -> Result<&'static Path> {
    match BINARY.get_or_init(|| find().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => bail!("no hyperfabric binary: {error}"),
    }
}

fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HYPERFABRIC_BIN").map(PathBuf::from) {
        ensure!(path.is_file(), "HYPERFABRIC_BIN={} is not a file", path.display());
        return Ok(path);
    }
    build(&[])
}

/// Makes every peer of this process run a release build, for measurements.
///
/// # Errors
/// When the build fails, or a peer was started before.
pub fn use_release() -> Result<()> {
    let binary = match std::env::var_os("HYPERFABRIC_BIN") {
        Some(_) => find()?,
        None => build(&["--release"])?,
    };
    ensure!(BINARY.set(Ok(binary)).is_ok(), "a binary is already in use");
    Ok(())
}

fn build(profile: &[&str]) -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--offline",
            "-q",
            "-p",
            "hyperfabric-node",
            "--bin",
            "hyperfabric",
        ])
        .arg("--message-format=json-render-diagnostics")
        .args(profile)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cargo does not start")?;
    ensure!(output.status.success(), "cargo build: {}", output.status);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo names no executable")
}
