//! Commands, options and their help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hyperfabric_node::api::model::{PING_COUNT_MAX, PING_SIZE_BYTES_MAX};
use hyperfabric_protocol::types::{DataType, PacketPriority};
use hyperfabric_protocol::{NodeId, TransferId};

use super::units::parse_duration;

/// Moves data between the hosts of a private mesh: verified, resumable, encrypted end to end.
#[derive(Debug, Parser)]
#[command(name = "hyperfabric", version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// The folder with this peer's key, state and inbox [default: $XDG_DATA_HOME/hyperfabric]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "HYPERFABRIC_DATA_DIR",
        hide_env_values = true
    )]
    pub(crate) data_dir: Option<PathBuf>,

    /// Print JSON: one object, or one per line where there are many
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused, 5 timed out.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make this host a peer: a data folder, a key and a token for the local API
    #[command(after_help = INIT_EXAMPLES)]
    Init(Init),
    /// Become a member of a mesh with a ticket or a certificate
    #[command(after_help = JOIN_EXAMPLES)]
    Join(Join),
    /// Run the daemon in the foreground
    #[command(after_help = UP_EXAMPLES)]
    Up(Up),
    /// Make and revoke memberships of the mesh
    Mesh {
        #[command(subcommand)]
        command: MeshCommand,
    },
    /// Show the nodes of the mesh, or make this peer host one
    #[command(after_help = NODES_EXAMPLES)]
    Nodes {
        #[command(subcommand)]
        command: Option<NodesCommand>,
    },
    /// Show the peers that this one knows, and how it is connected with them
    Peers,
    /// Show how the daemon is
    Status,
    /// Measure the way to a node
    #[command(after_help = PING_EXAMPLES)]
    Ping(Ping),
    /// Send a file or a folder to a node
    #[command(after_help = SEND_EXAMPLES)]
    Send(Send),
    /// Show transfers, follow, cancel or resume them
    #[command(after_help = TRANSFERS_EXAMPLES, args_conflicts_with_subcommands = true)]
    Transfers {
        /// Print every change until interrupted
        #[arg(long)]
        follow: bool,
        #[command(subcommand)]
        command: Option<TransfersCommand>,
    },
    /// Show or check the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Run a bootstrap peer: the first that others meet, which hosts no node and takes no files
    #[command(after_help = BOOTSTRAP_EXAMPLES)]
    Bootstrap(hyperfabric_bootstrap::cli::Args),
    /// See it work: a throw-away mesh on this host, a transfer, and one that survives a crash
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(Demo),
    /// Print the completions of a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

const INIT_EXAMPLES: &str = "Examples:
  hyperfabric init --name rack1
  hyperfabric init --open playground";

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The node_id of the host's own node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<NodeId>,
    /// Take part in the open mesh of this name, which needs no ticket
    #[arg(long, value_name = "MESH", value_parser = parse_mesh)]
    pub(crate) open: Option<String>,
}

const JOIN_EXAMPLES: &str =
    "The ticket's issuer must be running. Start the daemon afterwards with `hyperfabric up`.

Example:
  hyperfabric join hft1-...";

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// What `hyperfabric mesh invite` printed, or the certificate that `hyperfabric mesh admit` printed
    pub(crate) ticket: String,
    /// How long to try to reach the issuer
    #[arg(long, value_name = "D", default_value = "15s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

const UP_EXAMPLES: &str = "SIGTERM and Ctrl-C drain and end it; transfers go on at the next start.

Examples:
  hyperfabric up
  hyperfabric up --listen 0.0.0.0:4001
  hyperfabric up --bootstrap /ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3KooW...";

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Where to be reachable by UDP, this time; the port is kept for later starts that name none
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// A peer to meet first, with its peer id
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) bootstrap: Vec<hyperfabric_protocol::Address>,
    /// Where to serve the local API; loopback only
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) api: Option<std::net::SocketAddr>,
}

const CREATE_EXAMPLES: &str = "The mesh authority's key is written to mesh/authority.key in the data folder. Keep a copy of it in a safe place: it
alone can make further admitters.

Examples:
  hyperfabric mesh create lab
  hyperfabric mesh create playground --open";

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The mesh's name
    #[arg(value_parser = parse_mesh)]
    pub(crate) mesh: String,
    /// Let whoever knows the name take part, without tickets
    #[arg(long)]
    pub(crate) open: bool,
}

const ADMIT_EXAMPLES: &str =
    "The certificate stands alone on the last line; `hyperfabric join` takes it on the admitted host.

Example:
  hyperfabric mesh admit 12D3KooW... --name rack2";

#[derive(Debug, Args)]
pub(crate) struct Admit {
    /// The peer's id, as `hyperfabric init` printed it
    pub(crate) pubkey: hyperfabric_protocol::PeerId,
    /// The name to grant
    #[arg(long, value_name = "NAME")]
    pub(crate) name: NodeId,
}

/// Takes a mesh's name.
fn parse_mesh(text: &str) -> Result<String, String> {
    let max = hyperfabric_protocol::cert::MESH_NAME_BYTES_MAX;
    if text.is_empty() || text.len() > max || text.chars().any(char::is_control) {
        return Err(format!(
            "a mesh name has 1 to {max} bytes and no control characters"
        ));
    }
    Ok(text.to_owned())
}

const NODES_EXAMPLES: &str = "Examples:
  hyperfabric nodes
  hyperfabric nodes show rack1/gpu0
  hyperfabric nodes register array.yaml";

#[derive(Debug, Subcommand)]
pub(crate) enum NodesCommand {
    /// List every known node
    List,
    /// Show everything about one node
    Show {
        /// Its node_id
        node: NodeId,
    },
    /// Make this peer host the node that a file describes
    #[command(after_help = REGISTER_EXAMPLE)]
    Register {
        /// A YAML or JSON file with the fields of a node signature
        file: PathBuf,
    },
}

const REGISTER_EXAMPLE: &str = "Example of a file:
  node_id: rack1/array
  hardware_type: storage_array
  bandwidth_gbps: 100
  latency_ns: 20000";

const PING_EXAMPLES: &str = "Examples:
  hyperfabric ping rack1
  hyperfabric ping rack1/gpu0 --count 100 --interval 10ms --json";

#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// The node
    pub(crate) node: NodeId,
    /// How many echoes to send
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(PING_COUNT_MAX)))]
    pub(crate) count: u32,
    /// How large an echo is, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=i64::from(PING_SIZE_BYTES_MAX)))]
    pub(crate) size: u32,
    /// How long to pause between two
    #[arg(long, value_name = "D", default_value = "200ms", value_parser = parse_duration)]
    pub(crate) interval: Duration,
    /// How long to wait for each
    #[arg(long, value_name = "D", default_value = "5s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

const SEND_EXAMPLES: &str =
    "The transfer belongs to the daemon: it goes on when this command is interrupted, and \
survives a restart of either side.

Examples:
  hyperfabric send weights.safetensors --to rack1
  hyperfabric send checkpoints/ --to archive --type parameter --priority bulk
  hyperfabric send report.json --to desk --timeout 30s --json";

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The file or folder; a folder arrives as a tree
    pub(crate) path: PathBuf,
    /// The node that gets it
    #[arg(long, value_name = "NODE")]
    pub(crate) to: NodeId,
    /// What it is: tensor, parameter, gradient, activation, embedding, spike_train, json, binary, generic, ...
    #[arg(long = "type", value_name = "T", default_value_t = DataType::Generic)]
    pub(crate) data_type: DataType,
    /// How urgent it is: ultra_high, high, medium, low or bulk
    #[arg(long, value_name = "P", default_value_t = PacketPriority::Medium)]
    pub(crate) priority: PacketPriority,
    /// Give up when the transfer has not ended after this time
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// How long to look for a node that is not known
    #[arg(long, value_name = "D", default_value = "10s", value_parser = parse_duration)]
    pub(crate) wait: Duration,
    /// Have the receiver make every chunk durable as it arrives: slower, but less to send again after a crash
    #[arg(long)]
    pub(crate) sync: bool,
}

const TRANSFERS_EXAMPLES: &str = "Examples:
  hyperfabric transfers
  hyperfabric transfers --follow --json
  hyperfabric transfers cancel 9f86d081884c7d659a2feaa0c55ad015";

#[derive(Debug, Subcommand)]
pub(crate) enum TransfersCommand {
    /// End a transfer
    Cancel {
        /// Its transfer_id
        id: TransferId,
    },
    /// Begin a failed or cancelled transfer again where it stopped
    Resume {
        /// Its transfer_id
        id: TransferId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MeshCommand {
    /// Make a new mesh, with this peer as its first admitter
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Make a certificate for a peer whose key is known, without a ticket
    #[command(after_help = ADMIT_EXAMPLES)]
    Admit(Admit),
    /// Make a ticket that lets another host join
    #[command(after_help = INVITE_EXAMPLES)]
    Invite(Invite),
    /// List the members
    Members,
    /// Revoke every certificate of a name
    Revoke {
        /// The member's name
        name: NodeId,
    },
}

const INVITE_EXAMPLES: &str =
    "Whoever has the ticket can join under its name, so hand it over with care. The ticket \
stands alone on the last line.

Examples:
  hyperfabric mesh invite --name rack1
  hyperfabric mesh invite --name worker --expires 1h --uses 8";

#[derive(Debug, Args)]
pub(crate) struct Invite {
    /// The name that the ticket grants
    #[arg(long, value_name = "NAME")]
    pub(crate) name: NodeId,
    /// For how long it is valid
    #[arg(long, value_name = "D", default_value = "24h", value_parser = parse_duration)]
    pub(crate) expires: Duration,
    /// How often it can be used
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uses: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every key with its meaning and the value in force
    Show,
    /// Say whether the configuration file is right
    Check,
}

const BOOTSTRAP_EXAMPLES: &str = "The health address serves /health (JSON) and /metrics (Prometheus).

Examples:
  hyperfabric bootstrap --listen 0.0.0.0:4001
  hyperfabric bootstrap --listen 0.0.0.0:4001 --announce 203.0.113.7:4001
  hyperfabric bootstrap --open playground --name first";

const DEMO_EXAMPLES: &str = "Four processes are started on loopback and a file of 256 MiB is generated, in a folder below $TMPDIR that is removed
at the end. Nothing else is touched; --data-dir plays no part.

Examples:
  hyperfabric demo
  hyperfabric demo model.safetensors";

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The file or folder to send instead of a generated one
    pub(crate) path: Option<PathBuf>,
    /// Keep the folder, with the peers' data and logs
    #[arg(long)]
    pub(crate) keep: bool,
}

const COMPLETIONS_EXAMPLES: &str = "Examples:
  hyperfabric completions bash > ~/.local/share/bash-completion/completions/hyperfabric
  hyperfabric completions fish > ~/.config/fish/completions/hyperfabric.fish";
