//! The demo's processes and the folder that they live in.
//!
//! Every process is this program, started again. All of them are killed by their own ids, and the folder is removed,
//! when [`Peers::end`] is called or the value is dropped, whichever way the demo ends; from then on none can be started,
//! so that a demo which is interrupted while it starts a process leaves none behind.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyperfabric_node::paths::DataDir;
use serde_json::Value;

use super::DemoError;

/// How long a command, or the start of a daemon, may take.
const COMMAND_MAX: Duration = Duration::from_secs(30);
/// How often a process is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How much of a log is shown when its process fails, in lines.
const TAIL_LINES: usize = 12;
/// How often the removal of the folder is tried: a thread that is being abandoned may still write to it.
const REMOVALS_MAX: u32 = 20;

/// The processes, by the names of their peers; each peer has one at a time.
pub(super) struct Peers {
    program: PathBuf,
    folder: PathBuf,
    keep: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ended: bool,
    children: BTreeMap<String, Child>,
}

impl Peers {
    /// Makes the folder.
    pub(super) fn new(keep: bool) -> Result<Self, DemoError> {
        let program = std::env::current_exe().map_err(DemoError::Program)?;
        let folder = tempfile::Builder::new()
            .prefix("hyperfabric-demo-")
            .tempdir()
            .map_err(DemoError::Folder)?;
        Ok(Self {
            program,
            // `end` removes it: the destructor of a guard would not run in an abandoned thread.
            folder: folder.keep(),
            keep,
            state: Mutex::default(),
        })
    }

    /// Returns the folder of everything.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the data folder of a peer.
    pub(super) fn data_dir(&self, peer: &str) -> DataDir {
        DataDir::at(self.folder.join(peer))
    }

    /// Runs a command to its end and returns what it printed.
    pub(super) fn run(&self, peer: &str, arguments: &[&str]) -> Result<String, DemoError> {
        self.start(peer, arguments)?;
        let status = poll(COMMAND_MAX, || self.ended_with(peer))?;
        match status {
            Some(status) if status.success() => {
                fs::read_to_string(self.output(peer)).map_err(DemoError::Folder)
            }
            Some(status) => Err(self.failed(peer, arguments, format!("ended with {status}"))),
            None => {
                self.kill(peer)?;
                Err(self.failed(peer, arguments, late()))
            }
        }
    }

    /// Starts a daemon and waits until it says that it is ready.
    pub(super) fn serve(&self, peer: &str, arguments: &[&str]) -> Result<(), DemoError> {
        self.start(peer, arguments)?;
        let ready = poll(COMMAND_MAX, || {
            if let Some(status) = self.ended_with(peer)? {
                return Err(self.failed(peer, arguments, format!("ended with {status}")));
            }
            let said = fs::read_to_string(self.output(peer)).map_err(DemoError::Folder)?;
            let is_ready =
                |line: &str| serde_json::from_str(line).is_ok_and(|line: Value| line["event"] == "ready");
            Ok(said.lines().any(is_ready).then_some(()))
        })?;
        ready.ok_or_else(|| self.failed(peer, arguments, late()))
    }

    /// Kills the process of a peer, as a power cut would, and returns its id.
    pub(super) fn kill(&self, peer: &str) -> Result<u32, DemoError> {
        let child = self.state().children.remove(peer);
        let mut child = child.ok_or(DemoError::Interrupted)?;
        let id = child.id();
        child
            .kill()
            .and_then(|()| child.wait())
            .map_err(DemoError::Program)?;
        Ok(id)
    }

    /// Ends every process and removes the folder; nothing can be started from then on.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        for (_, mut child) in std::mem::take(&mut state.children) {
            // It may have ended since: neither result says anything new then.
            drop(child.kill());
            drop(child.wait());
        }
        if self.keep {
            return;
        }
        for _ in 0..REMOVALS_MAX {
            match fs::remove_dir_all(&self.folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => pause(),
                _ => return,
            }
        }
    }

    /// Returns the error for a peer's process, with the end of its log.
    pub(super) fn failed(&self, peer: &str, arguments: &[&str], how: String) -> DemoError {
        let text = fs::read(self.log(peer)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
        DemoError::Peer {
            peer: peer.to_owned(),
            // The options of a daemon and a ticket's secret say nothing here.
            command: arguments
                .iter()
                .take(2)
                .copied()
                .filter(|word| word.len() < 32)
                .collect::<Vec<_>>()
                .join(" "),
            how,
            log: format!("{peer}.log"),
            tail,
        }
    }

    fn start(&self, peer: &str, arguments: &[&str]) -> Result<(), DemoError> {
        let mut state = self.state();
        if state.ended {
            return Err(DemoError::Interrupted);
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log(peer));
        let child = Command::new(&self.program)
            .arg("--data-dir")
            .arg(self.data_dir(peer).path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(self.output(peer)).map_err(DemoError::Folder)?)
            .stderr(log.map_err(DemoError::Folder)?)
            .spawn()
            .map_err(DemoError::Program)?;
        state.children.insert(peer.to_owned(), child);
        Ok(())
    }

    /// Returns how the process of a peer has ended, if it has; it is forgotten then.
    fn ended_with(&self, peer: &str) -> Result<Option<ExitStatus>, DemoError> {
        let mut state = self.state();
        let child = state.children.get_mut(peer).ok_or(DemoError::Interrupted)?;
        let status = child.try_wait().map_err(DemoError::Program)?;
        if status.is_some() {
            state.children.remove(peer);
        }
        Ok(status)
    }

    fn output(&self, peer: &str) -> PathBuf {
        self.folder.join(format!("{peer}.out"))
    }

    fn log(&self, peer: &str) -> PathBuf {
        self.folder.join(format!("{peer}.log"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.end();
    }
}

fn late() -> String {
    format!("was not done after {} s", COMMAND_MAX.as_secs())
}

/// Lets a moment pass.
pub(super) fn pause() {
    // A pause that nothing can end early.
    let _ = crossbeam_channel::after(POLL).recv();
}

/// Asks until there is an answer, for at most `max`; `None` when there was none.
pub(super) fn poll<T>(
    max: Duration,
    mut ask: impl FnMut() -> Result<Option<T>, DemoError>,
) -> Result<Option<T>, DemoError> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(Some(answer));
        }
        if begun.elapsed() > max {
            return Ok(None);
        }
        pause();
    }
}
