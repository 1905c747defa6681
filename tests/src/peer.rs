//! One peer: a data folder, and a daemon that works on it while the test wants it to.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::files::{Folder, b3sum, files_below};
use crate::process::{Exit, Outcome, Running, freeze, signal_process, status_field};
use crate::wait::{PATIENCE, eventually, until};
use crate::{binary, http};

/// How long a command may run when the test does not say.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// A peer of the system under test. Its daemon is killed when the value is dropped; an error in its log, or a panic,
/// fails the test then.
#[derive(Debug)]
pub struct Peer {
    name: String,
    id: String,
    folder: Folder,
    daemon: Option<Daemon>,
    tolerated: Vec<String>,
}

#[derive(Debug)]
struct Daemon {
    child: Child,
    ready: Ready,
}

/// The line with which `up --json` says that it serves.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The peer's id.
    pub peer_id: String,
    /// Where it can be reached.
    pub listen: Vec<String>,
    /// The base address of its local API.
    pub api: String,
}

impl Peer {
    /// Makes a peer with `init --name`; its daemon is not started.
    ///
    /// # Errors
    /// When `init` fails.
    pub fn init(name: &str) -> Result<Self> {
        Self::init_with(name, &[])
    }

    /// Makes a peer with further arguments to `init`.
    ///
    /// # Errors
    /// When `init` fails.
    pub fn init_with(name: &str, arguments: &[&str]) -> Result<Self> {
        let mut peer = Self {
            name: name.to_owned(),
            id: String::new(),
            folder: Folder::new()?,
            daemon: None,
            tolerated: Vec::new(),
        };
        let mut init = vec!["init", "--name", name];
        init.extend(arguments);
        let made = peer.json(&init)?;
        peer.id = made["peer_id"].as_str().context("no peer_id")?.to_owned();
        Ok(peer)
    }

    /// Returns the name given at `init`, the `node_id` of the peer's own node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the peer's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns the folder where received files land.
    #[must_use]
    pub fn inbox(&self) -> PathBuf {
        self.data_dir().join("inbox")
    }

    /// Returns a path beside the data folder, for files of the test.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces the configuration file; the peer keeps its name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, yaml: &str) -> Result<()> {
        let text = format!("node:\n  name: {:?}\n{yaml}", self.name);
        Ok(fs::write(self.data_dir().join("config.yaml"), text)?)
    }

    /// Accepts log lines of level ERROR that contain `text`.
    pub fn tolerate(&mut self, text: &str) {
        self.tolerated.push(text.to_owned());
    }

    /// Starts `up --json` on loopback and waits until it serves.
    ///
    /// # Errors
    /// When it ends, or says nothing within [`PATIENCE`].
    pub fn up(&mut self) -> Result<&Ready> {
        self.up_with(&[])
    }

    /// As [`Peer::up`], with further arguments; another `--listen` replaces the one on loopback.
    ///
    /// # Errors
    /// As [`Peer::up`].
    pub fn up_with(&mut self, arguments: &[&str]) -> Result<&Ready> {
        let mut up = vec!["up", "--json", "--api", "127.0.0.1:0"];
        if !arguments.contains(&"--listen") {
            up.extend(["--listen", "127.0.0.1:0"]);
        }
        up.extend(arguments);
        self.serve(&up)
    }

    /// Starts `bootstrap --json` with further arguments and waits until it serves.
    ///
    /// # Errors
    /// As [`Peer::up`].
    pub fn bootstrap_with(&mut self, arguments: &[&str]) -> Result<&Ready> {
        self.serve(&[&["bootstrap", "--json"], arguments].concat())
    }

    /// Starts a command that says with a line of JSON that it serves, and waits for that.
    ///
    /// # Errors
    /// As [`Peer::up`].
    pub fn serve(&mut self, arguments: &[&str]) -> Result<&Ready> {
        ensure!(self.daemon.is_none(), "{} is already up", self.name);
        let mut command = self.command(arguments)?;
        let output = self.scratch("up.out");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut child = command
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(log)
            .spawn()?;
        let ready = eventually("the ready line", PATIENCE, || {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("{} ended: {status}", self.name);
            }
            Ok(fs::read_to_string(&output)?.lines().find_map(Ready::parse))
        });
        match ready {
            Ok(ready) => Ok(&self.daemon.insert(Daemon { child, ready }).ready),
            Err(error) => {
                drop(child.kill());
                drop(child.wait());
                Err(error.context(format!("the log of {}:\n{}", self.name, self.log())))
            }
        }
    }

    /// Returns the daemon's ready line.
    ///
    /// # Errors
    /// When the daemon is not up.
    pub fn ready(&self) -> Result<&Ready> {
        Ok(&self
            .daemon
            .as_ref()
            .with_context(|| format!("{} is not up", self.name))?
            .ready)
    }

    /// Returns the daemon's process id.
    ///
    /// # Errors
    /// When the daemon is not up.
    pub fn pid(&self) -> Result<u32> {
        Ok(self
            .daemon
            .as_ref()
            .with_context(|| format!("{} is not up", self.name))?
            .child
            .id())
    }

    /// Ends the daemon as a power cut would.
    ///
    /// # Errors
    /// When the daemon is not up.
    pub fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("not up")?;
        daemon.child.kill()?;
        daemon.child.wait()?;
        Ok(())
    }

    /// Asks the daemon to end and returns how it did.
    ///
    /// # Errors
    /// When it has not ended within [`PATIENCE`].
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        signal_process(self.pid()?, Signal::TERM)?;
        let daemon = self.daemon.as_mut().context("not up")?;
        let status = eventually("the end of the daemon", PATIENCE, || {
            Ok(daemon.child.try_wait()?)
        })?;
        self.daemon = None;
        Ok(status)
    }

    /// Waits until the daemon has ended by itself.
    ///
    /// # Errors
    /// When it has not within [`PATIENCE`].
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let daemon = self.daemon.as_mut().context("not up")?;
        let status = eventually("the end of the daemon", PATIENCE, || {
            Ok(daemon.child.try_wait()?)
        })?;
        self.daemon = None;
        Ok(status)
    }

    /// Returns a command line of `hyperfabric` for this peer, to start or to change.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary::hyperfabric()?);
        command.args(arguments).arg("--data-dir").arg(self.data_dir());
        // What the user of this machine has set must not reach the test.
        for variable in [
            "XDG_DATA_HOME",
            "XDG_CONFIG_HOME",
            "HYPERFABRIC_DATA_DIR",
            "RUST_LOG",
        ] {
            command.env_remove(variable);
        }
        Ok(command)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it does not start, or does not end.
    pub fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        self.start(arguments)?.wait(COMMAND_DEADLINE)
    }

    /// Starts a command beside the test.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        Running::start(&mut self.command(arguments)?)
    }

    /// Runs a command with `--json`, which must succeed, and returns its object.
    ///
    /// # Errors
    /// When it fails or prints no object.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut with_json = arguments.to_vec();
        with_json.push("--json");
        self.run(&with_json)?.expect(Exit::Done)?.json()
    }

    /// Calls the local API with this peer's token.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn api(&self, method: &str, path: &str) -> Result<http::Response> {
        let token = self.api_token()?;
        let authorization = format!("Bearer {token}");
        http::Request::new(&self.ready()?.api)?
            .header("Authorization", &authorization)
            .send(method, path, "")
    }

    /// Returns the bearer token of the local API.
    ///
    /// # Errors
    /// When there is none.
    pub fn api_token(&self) -> Result<String> {
        Ok(fs::read_to_string(self.data_dir().join("api.token"))?
            .trim()
            .to_owned())
    }

    /// Returns the names of the nodes that this peer knows.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn nodes(&self) -> Result<Vec<String>> {
        Ok(column(&self.json(&["nodes", "list"])?, "nodes", "node_id"))
    }

    /// Waits until this peer knows every one of `names`.
    ///
    /// # Errors
    /// After [`PATIENCE`].
    pub fn knows(&self, names: &[&str]) -> Result<()> {
        until(&format!("{} to know {names:?}", self.name), PATIENCE, || {
            let known = self.nodes()?;
            Ok(names.iter().all(|name| known.iter().any(|node| node == name)))
        })
    }

    /// Returns every file in the inbox, and nothing that is only on its way there.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn received(&self) -> Result<Vec<PathBuf>> {
        files_below(&self.inbox())
    }

    /// Waits until the inbox holds one file of this name, and returns it with its hash.
    ///
    /// # Errors
    /// After [`PATIENCE`].
    pub fn received_named(&self, name: &str) -> Result<(PathBuf, String)> {
        let path = eventually(&format!("{name} in the inbox of {}", self.name), PATIENCE, || {
            Ok(self
                .received()?
                .into_iter()
                .find(|path| path.file_name().is_some_and(|n| n == name)))
        })?;
        let hash = b3sum(&path)?;
        Ok((path, hash))
    }

    /// Stops the daemon where it is, as a process that hangs; it goes on when the value is dropped.
    ///
    /// # Errors
    /// When the daemon is not up.
    pub fn stall(&self) -> Result<Stalled> {
        let id = self.pid()?;
        let stalled = Stalled(id);
        freeze(id)?;
        Ok(stalled)
    }

    /// Returns the multiaddr, with the peer's id, of the daemon's first address on a loopback interface.
    ///
    /// # Errors
    /// When the daemon is not up, or listens elsewhere.
    pub fn address(&self) -> Result<String> {
        let Ready { peer_id, listen, .. } = self.ready()?;
        let loopback = ["/ip4/127.", "/ip6/::1/"];
        let found = listen
            .iter()
            .find(|address| loopback.iter().any(|start| address.starts_with(start)))
            .with_context(|| format!("no loopback address in {listen:?}"))?;
        let plain = found.split("/p2p/").next().unwrap_or(found);
        Ok(format!("{plain}/p2p/{peer_id}"))
    }

    /// Returns the UDP port on which the daemon is reachable.
    ///
    /// # Errors
    /// When the daemon is not up, or names no port.
    pub fn port(&self) -> Result<u16> {
        let listen = &self.ready()?.listen;
        listen
            .iter()
            .find_map(|address| udp_port(address))
            .with_context(|| format!("no UDP port in {listen:?}"))
    }

    /// Returns a number of the daemon's `/proc/<pid>/status`, such as `VmHWM` (the peak of its memory) in KiB.
    ///
    /// # Errors
    /// When the daemon is not up.
    pub fn status_field(&self, field: &str) -> Result<u64> {
        status_field(self.pid()?, field)
    }

    /// Returns everything that the daemons of this peer have logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map_or_else(
            |_| String::new(),
            |log| String::from_utf8_lossy(&log).into_owned(),
        )
    }

    /// Waits until the log contains `text`.
    ///
    /// # Errors
    /// After [`PATIENCE`], with the log.
    pub fn logs(&self, text: &str) -> Result<()> {
        until(&format!("{text:?} in a log"), PATIENCE, || {
            Ok(self.log().contains(text))
        })
        .with_context(|| format!("the log of {}:\n{}", self.name, self.log()))
    }

    fn log_path(&self) -> PathBuf {
        self.scratch("daemon.log")
    }

    /// Returns the log lines that say that something is wrong with the peer itself.
    fn complaints(&self) -> Vec<String> {
        let log = self.log();
        let bad = |line: &&str| {
            (line.contains(" ERROR ") || line.contains("\"level\":\"ERROR\"") || line.contains("panicked at"))
                && !self.tolerated.iter().any(|text| line.contains(text))
        };
        log.lines().filter(bad).map(str::to_owned).collect()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended since: both results say nothing new then.
            drop(daemon.child.kill());
            drop(daemon.child.wait());
        }
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.name, self.log());
            return;
        }
        let complaints = self.complaints();
        assert!(
            complaints.is_empty(),
            "{} logged errors:\n{}",
            self.name,
            complaints.join("\n")
        );
    }
}

/// A daemon that is stopped.
#[derive(Debug)]
pub struct Stalled(u32);

impl Drop for Stalled {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        drop(signal_process(self.0, Signal::CONT));
    }
}

impl Ready {
    fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        if value["event"] != "ready" {
            return None;
        }
        let listen = value["listen"]
            .as_array()?
            .iter()
            .filter_map(|address| Some(address.as_str()?.to_owned()));
        Some(Self {
            peer_id: value["peer_id"].as_str()?.to_owned(),
            listen: listen.collect(),
            api: value["api"].as_str()?.to_owned(),
        })
    }
}

/// Returns one field of every entry of a list in a command's answer.
#[must_use]
pub fn column(answer: &Value, list: &str, field: &str) -> Vec<String> {
    let entries = answer[list].as_array().map(Vec::as_slice).unwrap_or_default();
    entries
        .iter()
        .filter_map(|entry| Some(entry[field].as_str()?.to_owned()))
        .collect()
}

/// Finds the UDP port in a multiaddr (`/ip4/…/udp/PORT/quic-v1`) or a socket address.
fn udp_port(address: &str) -> Option<u16> {
    match address.split_once("/udp/") {
        Some((_, rest)) => rest.split('/').next()?.parse().ok(),
        None => address
            .parse::<std::net::SocketAddr>()
            .ok()
            .map(|address| address.port()),
    }
}

/// Tells whether a file is readable and writable by its owner only.
///
/// # Errors
/// When it is not there.
pub fn is_private(path: &Path) -> Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::metadata(path)?.permissions().mode() & 0o777 == 0o600)
}
