//! The command line of a bootstrap peer: what belongs to a process, such as arguments, signals and exit codes.
//!
//! `hyperfabric-bootstrap` and `hyperfabric bootstrap` take the same [`Args`] and call the same [`run`]; the data folder and `--json` come from
//! outside, because every command of `hyperfabric` has them. Whoever calls sets up the log.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use hyperfabric_mesh::PeerAddress;
use hyperfabric_mesh::clock::SystemClock;
use hyperfabric_mesh::workers::WorkerPool;
use hyperfabric_protocol::NodeId;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::{Bootstrap, BootstrapConfig, CONNECTIONS_MAX_DEFAULT, Contact, OpenMesh, StartError};

/// The network thread looks at its sockets after this many polls of other tasks.
const EVENT_INTERVAL: u32 = 2;
/// More would not fit the ports and descriptors of one host.
const CONNECTIONS_MAX_MAX: u32 = 65_536;

/// Shown below `--help` of `hyperfabric-bootstrap`, and of `hyperfabric bootstrap`.
pub const EXAMPLES: &str = "Examples:
  hyperfabric-bootstrap --listen '[::]:4001'
  hyperfabric-bootstrap --listen 0.0.0.0:4001 --announce 203.0.113.7:4001
  hyperfabric-bootstrap --data-dir /var/lib/hyperfabric --open playground --name first

The health address serves /health (JSON) and /metrics (Prometheus).
Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// The options of a bootstrap peer.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to listen (UDP); port 0 is the port of the last start, or a free one [default: every interface]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// An address to announce instead of those of the interfaces, such as that of a port forward; can be repeated
    #[arg(long, value_name = "ADDR")]
    pub announce: Vec<PeerAddress>,
    /// Another peer to meet first, with its /p2p/ part; can be repeated
    #[arg(long, value_name = "MULTIADDR")]
    pub bootstrap: Vec<Contact>,
    /// Where to serve health and metrics (HTTP); port 0 is a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    pub health: SocketAddr,
    /// How many members can be connected at once
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS_MAX_DEFAULT as u32, value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX_MAX)))]
    pub connections_max: u32,
    /// Take part in an open mesh, which needs no other setup
    #[arg(long, value_name = "MESH")]
    pub open: Option<String>,
    /// The name in the open mesh [default: the host's name]
    #[arg(long, value_name = "NAME", requires = "open")]
    pub name: Option<NodeId>,
}

/// The command `hyperfabric-bootstrap`.
#[derive(Debug, Parser)]
#[command(
    name = "hyperfabric-bootstrap",
    version,
    about = "The first peer that others of a mesh meet: answers first contacts and redeems tickets",
    after_help = EXAMPLES
)]
pub struct Cli {
    /// The folder with this peer's key and state [default: $XDG_DATA_HOME/hyperfabric]
    #[arg(
        long,
        value_name = "DIR",
        env = "HYPERFABRIC_DATA_DIR",
        hide_env_values = true
    )]
    pub data_dir: Option<PathBuf>,
    /// Print one line of JSON when the peer is ready
    #[arg(long)]
    pub json: bool,
    /// The options that `hyperfabric bootstrap` has too
    #[command(flatten)]
    pub args: Args,
}

/// Why the command has failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no place for state.
    #[error("no data folder: give --data-dir, or set XDG_DATA_HOME or HOME")]
    NoDataDir,
    /// The host's name is no name for a peer.
    #[error("the host's name cannot be the peer's: give --name")]
    NoName,
    /// The operating system does not give what a process needs.
    #[error("cannot start the process's threads or signal handlers")]
    System(#[source] io::Error),
    /// The peer does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The interfaces are not known.
    #[error("cannot list this host's addresses")]
    Addresses(#[source] io::Error),
}

impl RunError {
    /// Returns the exit code that the command line promises: 2 for what the user can type differently, else 1.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoDataDir | Self::NoName | Self::Start(StartError::MeshName) => ExitCode::from(2),
            Self::System(_) | Self::Start(_) | Self::Addresses(_) => ExitCode::from(1),
        }
    }
}

impl Cli {
    /// Runs the command until a signal ends it.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn run(self) -> Result<(), RunError> {
        let data_dir = match self.data_dir {
            Some(given) => given,
            None => default_data_dir(std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME"))?,
        };
        run(&data_dir, self.json, self.args)
    }
}

/// Makes the filter of a process's log: what `$HYPERFABRIC_LOG` says, else `$RUST_LOG`, else `default`.
///
/// libp2p reports its own housekeeping as warnings, such as that a mesh of two peers is small. It stays silent below
/// errors unless it is named, as in `info,libp2p=info`.
///
/// # Errors
/// When it is no filter.
pub fn log_filter(default: &str) -> Result<EnvFilter, ParseError> {
    let from = |variable: &str| std::env::var(variable).ok();
    let chosen = from("HYPERFABRIC_LOG").or_else(|| from("RUST_LOG"));
    filter(chosen.as_deref().unwrap_or(default))
}

fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    // Of two directives for one target the later one counts.
    EnvFilter::try_new(format!("libp2p=error,{text}"))
}

/// Runs a bootstrap peer until SIGTERM or SIGINT, on the calling thread.
///
/// # Errors
/// [`RunError`].
pub fn run(data_dir: &Path, json: bool, args: Args) -> Result<(), RunError> {
    let config = config(data_dir, args)?;
    runtime()?.block_on(async {
        let mut signals = Signals::catch()?;
        let peer = start(config)?;
        let announced = announce(&peer, json, None);
        if announced.is_ok() {
            signals.received().await;
        }
        peer.stop().await;
        announced
    })
}

/// Makes the runtime of a peer: one thread, which reads the network.
///
/// # Errors
/// [`RunError::System`].
pub fn runtime() -> Result<tokio::runtime::Runtime, RunError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()
        .map_err(RunError::System)
}

/// Starts a peer on the current runtime.
///
/// # Errors
/// [`RunError`].
pub fn start(config: BootstrapConfig) -> Result<Bootstrap, RunError> {
    let pool = WorkerPool::with_available_cores().map_err(RunError::System)?;
    let runtime = tokio::runtime::Handle::current();
    Ok(Bootstrap::start(
        config,
        runtime,
        pool,
        Arc::new(SystemClock::default()),
    )?)
}

/// The signals that end a peer.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them from now on; to be called first of all, so that a signal that comes during the start ends the peer in order, too.
    ///
    /// # Errors
    /// [`RunError::System`].
    pub fn catch() -> Result<Self, RunError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(RunError::System)?,
            interrupt: signal(SignalKind::interrupt()).map_err(RunError::System)?,
        })
    }

    /// Waits for the first of them.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Says where the peer is, and where its local API is if it has one. That nobody reads it is no reason to end.
///
/// # Errors
/// [`RunError::Addresses`].
pub fn announce(peer: &Bootstrap, json: bool, api: Option<&str>) -> Result<(), RunError> {
    let addresses = peer.addresses().map_err(RunError::Addresses)?;
    let mut out = io::stdout().lock();
    let health = peer.health_address().map(|address| format!("http://{address}"));
    let listen: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let text = if json {
        let ready = serde_json::json!({
            "event": "ready", "peer_id": peer.peer_id().to_string(), "listen": listen, "health": health, "api": api,
        });
        ready.to_string()
    } else {
        let health = health.map_or_else(String::new, |health| format!("\nhealth:  {health}/health"));
        let api = api.map_or_else(String::new, |api| format!("\napi:     {api}"));
        format!(
            "peer:    {}\nmesh:    {}\nlisten:  {}{health}{api}",
            peer.peer_id(),
            peer.mesh(),
            listen.join("\n         ")
        )
    };
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    Ok(())
}

/// Puts together what a peer is started with.
///
/// # Errors
/// [`RunError::NoName`].
pub fn config(data_dir: &Path, args: Args) -> Result<BootstrapConfig, RunError> {
    let open = match (args.open, args.name) {
        (None, _) => None,
        (Some(mesh), Some(name)) => Some(OpenMesh { mesh, name }),
        (Some(mesh), None) => Some(OpenMesh {
            mesh,
            name: host_name().ok_or(RunError::NoName)?,
        }),
    };
    let mut config = BootstrapConfig::new(data_dir);
    config.open = open;
    config.listen = args.listen.unwrap_or(config.listen);
    config.announce = args.announce;
    config.bootstrap = args.bootstrap;
    config.health = Some(args.health);
    config.limits.connections_max = usize::try_from(args.connections_max).unwrap_or(CONNECTIONS_MAX_DEFAULT);
    Ok(config)
}

/// Returns the first label of the host's name.
fn host_name() -> Option<NodeId> {
    let system = rustix::system::uname();
    let name = system.nodename().to_str().ok()?;
    NodeId::new(name.split('.').next()?).ok()
}

fn default_data_dir(
    xdg: Option<std::ffi::OsString>,
    home: Option<std::ffi::OsString>,
) -> Result<PathBuf, RunError> {
    // The XDG specification tells programs to ignore a relative path.
    let absolute =
        |value: Option<std::ffi::OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(xdg)
        .or_else(|| absolute(home).map(|home| home.join(".local/share")))
        .map(|folder| folder.join("hyperfabric"))
        .ok_or(RunError::NoDataDir)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_bounded() {
        Cli::command().debug_assert();
        let parse = |args: &[&str]| Cli::try_parse_from([&["hyperfabric-bootstrap"], args].concat());
        assert_eq!(
            parse(&[]).unwrap().args.connections_max as usize,
            CONNECTIONS_MAX_DEFAULT
        );
        for wrong in [
            &["--connections-max", "0"][..],
            &["--name", "first"],
            &["--bootstrap", "192.0.2.1:4001"],
            &["--listen", "4001"],
            &["--open", "lab", "--name", "a b"],
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }

    #[test]
    fn the_default_folder_follows_xdg_then_home() {
        let find = |xdg: Option<&str>, home: Option<&str>| {
            default_data_dir(xdg.map(Into::into), home.map(Into::into))
        };
        assert_eq!(find(Some("/x"), Some("/h")).unwrap(), Path::new("/x/hyperfabric"));
        assert_eq!(
            find(Some("x"), Some("/h")).unwrap(),
            Path::new("/h/.local/share/hyperfabric")
        );
        assert!(matches!(find(None, None), Err(RunError::NoDataDir)));
    }
}
