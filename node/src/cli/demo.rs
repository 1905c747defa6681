//! `hyperfabric demo`: a throw-away mesh on loopback that shows a transfer and its resumption.
//!
//! Its peers are processes of this program, driven by the commands that a user would type; the demo itself only sends,
//! looks on, hashes and kills. Nothing that a daemon says about a file counts: the files are compared here.

mod check;
mod peers;
mod report;
mod resumption;
mod sample;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hyperfabric_node::api::model::Transfer;
use hyperfabric_node::api::{ApiError, ErrorCode};
use hyperfabric_node::client::{Client, ClientError};
use hyperfabric_node::config::{ConfigError, FabricConfig, save_fabric_config};
use hyperfabric_protocol::types::{DataType, PacketPriority};
use hyperfabric_protocol::{NodeId, TransferId};

use super::args::{Demo, Send};
use super::output::Out;
use super::units::size;
use super::{Context, Failure, interrupt, send};
use peers::{Peers, poll};
use report::{Arrived, Report};

const FIRST: &str = "first";
const ALPHA: &str = "alpha";
const BETA: &str = "beta";
const GAMMA: &str = "gamma";
const NODES: [&str; 3] = [ALPHA, BETA, GAMMA];

/// Where every peer listens: any port, reachable by nobody else.
const LISTEN: &str = "127.0.0.1:0";
/// The tensors of the generated file, and their side: 256 MiB.
const TENSORS: u64 = 16;
const SIDE: u64 = 4096;
/// A given path is used for the second transfer, too, if it is a file of this size: a smaller one has no middle.
const SECOND_BYTES_MIN: u64 = 64 << 20;
/// What must stay free besides the files: each peer keeps 64 MiB free, and writes some state.
const SPARE_BYTES: u64 = 128 << 20;
/// How long the nodes may take to find each other.
const FIND_MAX: Duration = Duration::from_secs(20);
/// How long a transfer may take: this, and a second more for each of so many bytes.
const TRANSFER_MAX: Duration = Duration::from_secs(60);
const SECOND_BYTES: u64 = 4 << 20;

/// Why a demo fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    #[error("cannot use the demo's folder")]
    Folder(#[source] io::Error),
    #[error("cannot run this program again")]
    Program(#[source] io::Error),
    #[error("cannot read {}", path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the demo needs {} in {}, where {} are free", size(*needed), folder.display(), size(*free))]
    NoRoom { needed: u64, free: u64, folder: PathBuf },
    #[error("`{command}` of {peer} {how}; the end of its log {log}:\n  {tail}")]
    Peer {
        peer: String,
        command: String,
        how: String,
        log: String,
        tail: String,
    },
    #[error("what {to} has received differs from what was sent: {received} instead of {sent}")]
    Differs {
        to: &'static str,
        sent: String,
        received: String,
    },
    #[error("{0} transfers in a row ended before their receiver could be killed; give a larger file")]
    TooFast(u32),
    #[error("the transfer began again from the start, although {} were durable", size(*.0))]
    NotResumed(u64),
    #[error("the demo was interrupted")]
    Interrupted,
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        let api = ApiError::of(ErrorCode::Failed, &error);
        Self::Error(match error {
            DemoError::Peer { .. } | DemoError::Differs { .. } | DemoError::NotResumed(_) => {
                api.hint("`hyperfabric demo --keep` keeps the folder with the peers' data and logs")
            }
            DemoError::Path { ref source, .. } if source.kind() == io::ErrorKind::NotFound => ApiError {
                code: ErrorCode::NotFound,
                ..api
            },
            DemoError::NoRoom { .. } => api.hint("set TMPDIR to a folder with more room"),
            _ => api,
        })
    }
}

/// Runs the demo; whichever way it ends, its processes are gone afterwards.
pub(crate) fn run(out: Out, demo: Demo) -> Result<(), Failure> {
    let peers = Arc::new(Peers::new(demo.keep)?);
    let stage = Stage {
        peers: Arc::clone(&peers),
        out,
    };
    let ended = interrupt::run(
        move || stage.play(demo.path.as_deref()).map_err(Failure::from),
        || out.note("\nInterrupted: the demo's processes are being ended."),
    );
    peers.end();
    if demo.keep {
        out.note(&format!("Everything is kept in {}", peers.folder().display()));
    }
    let report = ended?;
    out.answer(&report, Report::text)
}

/// What every scene needs.
#[derive(Clone)]
struct Stage {
    peers: Arc<Peers>,
    out: Out,
}

/// What is sent in which transfer.
struct Files {
    first: PathBuf,
    second: PathBuf,
}

impl Stage {
    fn play(&self, given: Option<&Path>) -> Result<Report, DemoError> {
        let begun = Instant::now();
        let files = self.files(given)?;
        self.out
            .note("A bootstrap peer and the nodes alpha, beta and gamma start on loopback ...");
        let mesh_begun = Instant::now();
        self.found_mesh()?;
        self.meet()?;
        let mesh_seconds = mesh_begun.elapsed().as_secs_f64();
        let sent = self.send_whole(&files.first)?;
        let resumed = resumption::run(self, &files.second)?;
        Ok(Report {
            processes: 1 + NODES.len(),
            mesh_seconds,
            sent,
            resumed,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    /// Chooses the files, and generates one unless the given path serves both transfers.
    fn files(&self, given: Option<&Path>) -> Result<Files, DemoError> {
        let generated = self.peers.folder().join("demo.safetensors");
        let (mut needed, mut first, mut second) = (SPARE_BYTES, generated.clone(), generated.clone());
        let mut generated_bytes = TENSORS * SIDE * SIDE;
        if let Some(given) = given {
            let bytes = check::size_of(given).map_err(unreadable(given))?;
            first = given.to_path_buf();
            if given.is_file() && bytes >= SECOND_BYTES_MIN {
                second = first.clone();
                (needed, generated_bytes) = (needed + 2 * bytes, 0);
            } else {
                needed += bytes + 2 * generated_bytes;
            }
        } else {
            needed += 3 * generated_bytes;
        }
        let folder = self.peers.folder();
        let free = rustix::fs::statvfs(folder).map_err(|errno| DemoError::Folder(errno.into()))?;
        let free = free.f_bavail.saturating_mul(free.f_frsize);
        if free < needed {
            return Err(DemoError::NoRoom {
                needed,
                free,
                folder: folder.to_path_buf(),
            });
        }
        if generated_bytes > 0 {
            self.out.note(&format!(
                "A safetensors file of {} is generated ...",
                size(generated_bytes)
            ));
            sample::write(&generated, TENSORS, SIDE).map_err(DemoError::Folder)?;
        }
        Ok(Files { first, second })
    }

    /// Makes the mesh: the first peer issues tickets, starts, and redeems them.
    fn found_mesh(&self) -> Result<(), DemoError> {
        let peers = &self.peers;
        peers.run(FIRST, &["init", "--name", FIRST])?;
        // Tickets that are made without a daemon carry the configured address.
        let data_dir = peers.data_dir(FIRST);
        let mut config = FabricConfig {
            node_name: NodeId::new(FIRST).ok(),
            ..FabricConfig::default()
        };
        config.listen = LISTEN.parse().expect("a constant address");
        save_fabric_config(&config, &data_dir.config())?;
        peers.run(FIRST, &["mesh", "create", "demo"])?;
        let mut tickets = Vec::new();
        for node in NODES {
            let printed = peers.run(FIRST, &["mesh", "invite", "--name", node])?;
            tickets.push(printed.lines().last().unwrap_or_default().to_owned());
        }
        peers.serve(FIRST, &["bootstrap", "--listen", LISTEN, "--json"])?;
        for (node, ticket) in NODES.into_iter().zip(tickets) {
            peers.run(node, &["init", "--name", node])?;
            peers.run(node, &["join", &ticket])?;
        }
        NODES.into_iter().try_for_each(|node| self.up(node))
    }

    fn up(&self, node: &str) -> Result<(), DemoError> {
        self.peers.serve(node, &["up", "--listen", LISTEN, "--json"])
    }

    /// Waits until the sender can reach both receivers.
    fn meet(&self) -> Result<(), DemoError> {
        let found = poll(FIND_MAX, || {
            let nodes = self.ask(ALPHA, Client::nodes)?;
            let reaches = |name: &str| {
                nodes
                    .iter()
                    .any(|node| node.reachable && node.signature.node_id.as_str() == name)
            };
            Ok((reaches(BETA) && reaches(GAMMA)).then_some(()))
        })?;
        let how = || format!("did not find the other nodes within {} s", FIND_MAX.as_secs());
        found.ok_or_else(|| self.peers.failed(ALPHA, &["up"], how()))
    }

    fn send_whole(&self, path: &Path) -> Result<Arrived, DemoError> {
        self.out
            .note(&format!("alpha sends {} to beta ...", name_of(path)));
        let known = OnceLock::new();
        let transfer = self.send(path, BETA, &known)?;
        self.compare(path, BETA, &transfer)
    }

    /// Sends with the code of `hyperfabric send`, progress bar included.
    fn send(
        &self,
        path: &Path,
        to: &'static str,
        known: &OnceLock<TransferId>,
    ) -> Result<Transfer, DemoError> {
        let context = Context {
            data_dir: self.peers.data_dir(ALPHA),
            out: self.out,
        };
        let bytes = check::size_of(path).map_err(unreadable(path))?;
        let order = Send {
            path: path.to_path_buf(),
            to: NodeId::new(to).expect("a constant name"),
            data_type: DataType::Parameter,
            priority: PacketPriority::Medium,
            timeout: Some(TRANSFER_MAX + Duration::from_secs(bytes / SECOND_BYTES)),
            wait: FIND_MAX,
            sync: false,
        };
        send::transfer(&context, &order, known).map_err(|failure| match failure {
            Failure::Error(error) => {
                let how = format!("did not bring the file to {to} ({error})");
                self.peers.failed(ALPHA, &["up"], how)
            }
            Failure::Said(_) | Failure::OutputClosed | Failure::Interrupted => DemoError::Interrupted,
        })
    }

    /// Hashes both ends of a transfer.
    fn compare(&self, path: &Path, to: &'static str, transfer: &Transfer) -> Result<Arrived, DemoError> {
        let place = self.place(to, transfer.transfer_id)?;
        let hash = |path: &Path| check::blake3_of(path).map_err(unreadable(path));
        let (sent, received) = (hash(path)?, hash(&place)?);
        if sent != received {
            return Err(DemoError::Differs { to, sent, received });
        }
        Ok(Arrived {
            transfer_id: transfer.transfer_id,
            from: ALPHA,
            to,
            name: transfer.name.clone(),
            bytes: transfer.bytes,
            seconds: transfer.seconds,
            blake3: sent,
        })
    }

    /// Finds a received file in its inbox.
    fn place(&self, node: &'static str, id: TransferId) -> Result<PathBuf, DemoError> {
        let transfer = self.ask(node, |client| client.transfer(id))?;
        let how = || "does not say where the file is".to_owned();
        transfer
            .path
            .ok_or_else(|| self.peers.failed(node, &["up"], how()))
    }

    /// Asks the daemon of a peer.
    fn ask<T>(
        &self,
        peer: &str,
        question: impl FnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T, DemoError> {
        let answer = Client::connect(&self.peers.data_dir(peer)).and_then(|client| question(&client));
        answer.map_err(|error| {
            let error = ApiError::from(error);
            self.peers
                .failed(peer, &["up"], format!("does not answer ({error})"))
        })
    }
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> DemoError {
    let path = path.to_path_buf();
    move |source| DemoError::Path { path, source }
}

/// Names a file without the folder that says nothing to the user.
fn name_of(path: &Path) -> std::path::Display<'_> {
    Path::new(path.file_name().unwrap_or(path.as_os_str())).display()
}
