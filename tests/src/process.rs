//! Commands that run to their end within a deadline, and what the kernel knows of a running process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::wait::{PATIENCE, eventually, until};

/// The unit of times in `/proc`: 100 per second in every Linux ABI.
const USER_HZ: f64 = 100.0;

/// How a command of the contract ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Done,
    /// 1
    Failed,
    /// 2
    Usage,
    /// 3
    NotFound,
    /// 4
    Refused,
    /// 5
    TimedOut,
    /// Any other code, which the contract does not have.
    Other(i32),
    /// Ended by a signal.
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(0), _) => Self::Done,
            (Some(1), _) => Self::Failed,
            (Some(2), _) => Self::Usage,
            (Some(3), _) => Self::NotFound,
            (Some(4), _) => Self::Refused,
            (Some(5), _) => Self::TimedOut,
            (Some(code), _) => Self::Other(code),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }
}

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// The command line, for messages.
    pub command: String,
}

impl Outcome {
    /// Passes the outcome on if the command ended as expected.
    ///
    /// # Errors
    /// When it did not, with everything it printed.
    pub fn expect(self, exit: Exit) -> Result<Self> {
        let Self {
            command,
            stdout,
            stderr,
            ..
        } = &self;
        ensure!(
            self.exit == exit,
            "{command}: expected {exit:?}, got {:?}\nstdout: {stdout}\nstderr: {stderr}",
            self.exit
        );
        Ok(self)
    }

    /// Returns the one JSON object on standard output.
    ///
    /// # Errors
    /// When there is not exactly one line with an object on it.
    pub fn json(&self) -> Result<Value> {
        let mut lines = self.stdout.lines().filter(|line| !line.trim().is_empty());
        let (Some(line), None) = (lines.next(), lines.next()) else {
            bail!(
                "{}: expected one line of JSON, got: {}",
                self.command,
                self.stdout
            );
        };
        let value: Value = serde_json::from_str(line).with_context(|| format!("{}: {line}", self.command))?;
        ensure!(value.is_object(), "{}: not an object: {line}", self.command);
        Ok(value)
    }

    /// Returns the last line of standard output.
    ///
    /// # Errors
    /// When there is none.
    pub fn last_line(&self) -> Result<&str> {
        self.stdout
            .lines()
            .next_back()
            .with_context(|| format!("{} printed nothing", self.command))
    }
}

/// A command that runs beside the test. It is killed when the value is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    command: String,
}

impl Running {
    /// Starts a command. Its output goes to unnamed files, so that a full pipe never stops it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(command: &mut Command) -> Result<Self> {
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        Ok(Self {
            child,
            stdout,
            stderr,
            command: words.join(" "),
        })
    }

    /// Returns the process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells whether the command has ended.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal_process(self.child.id(), signal)
    }

    /// Waits for the end of the command.
    ///
    /// # Errors
    /// When it does not end within `deadline`; it is killed then.
    pub fn wait(mut self, deadline: Duration) -> Result<Outcome> {
        let ended = eventually("its end", deadline, || Ok(self.child.try_wait()?));
        let (stdout, stderr) = (
            read_from_start(&mut self.stdout)?,
            read_from_start(&mut self.stderr)?,
        );
        let status =
            ended.with_context(|| format!("{}\nstdout: {stdout}\nstderr: {stderr}", self.command))?;
        Ok(Outcome {
            exit: status.into(),
            stdout,
            stderr,
            command: self.command.clone(),
        })
    }

    /// Returns what the command has printed so far.
    ///
    /// # Errors
    /// When the output cannot be read.
    pub fn stdout_so_far(&mut self) -> Result<String> {
        read_from_start(&mut self.stdout)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may have ended since: both results say nothing new then.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Reads a file that another process appends to through a shared offset, without moving that offset.
fn read_from_start(file: &mut File) -> Result<String> {
    // A path below /proc opens the unnamed file again, with an offset of its own.
    use std::os::fd::AsRawFd as _;
    let mut again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut bytes = Vec::new();
    again.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Sends a signal to a process that this test started.
///
/// # Errors
/// When the process is gone.
pub fn signal_process(id: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a process id")?;
    kill_process(pid, signal).with_context(|| format!("cannot signal process {id}"))
}

/// Returns a number of `/proc/<id>/status`: kibibytes for `VmHWM` and `VmRSS`, a count for `Threads`.
///
/// # Errors
/// When the process is gone, or the field unknown.
pub fn status_field(id: u32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/status"))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = value.and_then(|value| value.split_whitespace().next());
    value
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("no {field} of process {id}"))
}

/// Returns how many bytes a process has read with system calls, from files above all, from `/proc/<id>/io`.
///
/// # Errors
/// When the process is gone.
pub fn read_bytes(id: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/io"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    value
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("no rchar of process {id}"))
}

/// Stops every thread of a process, and returns once none of them runs.
///
/// # Errors
/// When the process is gone.
pub fn freeze(id: u32) -> Result<()> {
    signal_process(id, Signal::STOP)?;
    until("every thread to stop", PATIENCE, || {
        for task in fs::read_dir(format!("/proc/{id}/task"))? {
            let stat = fs::read_to_string(task?.path().join("stat"))?;
            // The second field is the command in parentheses and may hold anything: count from its end.
            let (_, rest) = stat.rsplit_once(')').context("malformed stat")?;
            if !rest.trim_start().starts_with('T') {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Returns the processor time that a process has used, in seconds, from `/proc/<id>/stat`.
///
/// # Errors
/// When the process is gone.
pub fn cpu_seconds(id: u32) -> Result<f64> {
    let [user, system, ..] = cpu_times(id)?;
    Ok(user + system)
}

/// As [`cpu_seconds`], with that of its children that have ended and that it has waited for.
///
/// # Errors
/// When the process is gone.
pub fn cpu_seconds_with_children(id: u32) -> Result<f64> {
    Ok(cpu_times(id)?.iter().sum())
}

/// User and system time of a process, then the same of its ended children.
fn cpu_times(id: u32) -> Result<[f64; 4]> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The second field is the command in parentheses and may hold anything: count from its end.
    let (_, rest) = text.rsplit_once(')').context("malformed stat")?;
    let mut times = rest
        .split_whitespace()
        .skip(11)
        .map_while(|field| field.parse::<u64>().ok());
    let mut next = || {
        times
            .next()
            .map(|ticks| ticks as f64 / USER_HZ)
            .context("malformed stat")
    };
    Ok([next()?, next()?, next()?, next()?])
}

/// Runs a command to its end.
///
/// # Errors
/// When it does not start, or does not end within `deadline`.
pub fn run(program: &Path, arguments: &[&str], deadline: Duration) -> Result<Outcome> {
    Running::start(Command::new(program).args(arguments))?.wait(deadline)
}
