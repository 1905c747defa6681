//! `hyperfabric status`, `nodes` and `peers`: how things are.

use std::path::Path;

use hyperfabric_node::api::model::{NodeRecord, PeerRecord, Status};
use hyperfabric_node::api::{ApiError, ErrorCode};
use hyperfabric_node::paths;
use hyperfabric_protocol::types::NodeSignature;
use serde_json::json;

use super::args::NodesCommand;
use super::output::{fields, or_dash, table};
use super::units::{latency, now_unix_ms, relative, seconds, size, to_f64};
use super::{Context, Failure};

pub(crate) fn status(context: &Context) -> Result<(), Failure> {
    context.out.answer(&context.client()?.status()?, status_text)
}

fn status_text(status: &Status) -> String {
    let now = now_unix_ms();
    let mesh = match (&status.mesh, status.open) {
        (Some(mesh), true) => format!("{mesh} (open)"),
        (Some(mesh), false) if status.admitter => format!("{mesh} (this peer can invite)"),
        (Some(mesh), false) => mesh.clone(),
        (None, _) => "none yet".to_owned(),
    };
    let expires = status.certificate_expires_unix_ms.map(|at| relative(at, now));
    let mut text = fields(&[
        ("name", status.name.to_string()),
        ("peer", status.peer_id.to_string()),
        ("mesh", mesh),
        ("membership ends", or_dash(expires)),
        ("listens at", status.listen.join("  ")),
        ("up for", seconds(status.uptime_seconds)),
        ("nodes", status.nodes.to_string()),
        ("peers", status.peers.to_string()),
        ("transfers", status.transfers.to_string()),
        (
            "inbox",
            format!(
                "{}, {} free",
                size(status.inbox_bytes),
                size(status.inbox_free_bytes)
            ),
        ),
        ("refused", format!("{} handshakes", status.handshakes_refused)),
        ("version", status.version.clone()),
    ]);
    for warning in &status.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

pub(crate) fn nodes(context: &Context, command: Option<NodesCommand>) -> Result<(), Failure> {
    match command {
        None | Some(NodesCommand::List) => {
            let nodes = context.client()?.nodes()?;
            context
                .out
                .answer(&json!({ "nodes": nodes }), |_| nodes_text(&nodes))
        }
        Some(NodesCommand::Show { node }) => context.out.answer(&context.client()?.node(&node)?, node_text),
        Some(NodesCommand::Register { file }) => {
            let node = read_signature(&file)?;
            let registered = context.client()?.register(&node)?;
            context.out.answer(&registered, |registered| {
                let what = if registered.created {
                    "registered"
                } else {
                    "updated"
                };
                format!("{what} {}", registered.node_id)
            })
        }
    }
}

fn nodes_text(nodes: &[NodeRecord]) -> String {
    let row = |node: &NodeRecord| {
        [
            node.signature.node_id.to_string(),
            node.signature.hardware_type.to_string(),
            format!("{} Gbit/s", node.signature.bandwidth_gbps),
            or_dash(
                node.signature
                    .memory_gb
                    .map(|gigabytes| format!("{gigabytes:.1} GB")),
            ),
            reached(node).to_owned(),
            node.peer_id.short(),
        ]
    };
    table(
        ["NODE", "HARDWARE", "LINK", "MEMORY", "STATE", "PEER"],
        &nodes.iter().map(row).collect::<Vec<_>>(),
    )
}

fn reached(node: &NodeRecord) -> &'static str {
    match (node.local, node.reachable) {
        (true, _) => "here",
        (false, true) => "reachable",
        (false, false) => "unreachable",
    }
}

fn node_text(node: &NodeRecord) -> String {
    let signature = &node.signature;
    let mut rows = vec![
        ("node", signature.node_id.to_string()),
        (
            "hardware",
            format!(
                "{} ({})",
                signature.hardware_type,
                signature.hardware_type.node_type()
            ),
        ),
        ("state", reached(node).to_owned()),
        ("peer", node.peer_id.to_string()),
        ("seen", relative(node.seen_unix_ms, now_unix_ms())),
        (
            "link",
            format!(
                "{} Gbit/s, {}",
                signature.bandwidth_gbps,
                latency(signature.latency_ns)
            ),
        ),
    ];
    let optional = [
        (
            "memory",
            signature.memory_gb.map(|gigabytes| format!("{gigabytes:.1} GB")),
        ),
        (
            "compute units",
            signature.compute_units.map(|units| units.to_string()),
        ),
        ("power", signature.power_watts.map(|watts| format!("{watts} W"))),
        ("rack", signature.rack_position.clone()),
        ("location", signature.physical_location.clone()),
        (
            "coherence",
            signature
                .quantum_coherence_time_us
                .map(|micros| format!("{micros} us")),
        ),
        (
            "neurons",
            signature.neuromorphic_neurons.map(|neurons| neurons.to_string()),
        ),
        (
            "channels",
            signature.photonic_channels.map(|channels| channels.to_string()),
        ),
    ];
    rows.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    rows.extend(
        signature
            .metadata
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone())),
    );
    fields(&rows)
}

fn read_signature(file: &Path) -> Result<NodeSignature, ApiError> {
    let content = paths::read_bounded(file).map_err(|error| ApiError::of(ErrorCode::Failed, &error))?;
    let missing = || ApiError::new(ErrorCode::NotFound, format!("{} does not exist", file.display()));
    // JSON is YAML.
    let node: NodeSignature = serde_yaml_ng::from_slice(&content.ok_or_else(missing)?).map_err(|error| {
        ApiError::new(
            ErrorCode::Usage,
            format!("{} does not describe a node: {error}", file.display()),
        )
    })?;
    node.validate()
        .map_err(|error| ApiError::of(ErrorCode::Usage, &error).named("InvalidNodeError"))?;
    Ok(node)
}

pub(crate) fn peers(context: &Context) -> Result<(), Failure> {
    let peers = context.client()?.peers()?;
    if peers.is_empty() && !context.out.json {
        context.out.note("no peers yet");
        return Ok(());
    }
    context
        .out
        .answer(&json!({ "peers": peers }), |_| peers_text(&peers))
}

fn peers_text(peers: &[PeerRecord]) -> String {
    let row = |peer: &PeerRecord| {
        [
            or_dash(peer.name.as_ref()),
            peer.peer_id.to_string(),
            if peer.connected {
                or_dash(peer.transport.as_ref())
            } else {
                "not connected".to_owned()
            },
            or_dash(peer.rtt_us.map(|micros| latency(micros.saturating_mul(1_000)))),
            or_dash(
                peer.loss_ppm
                    .map(|ppm| format!("{:.2}%", to_f64(u64::from(ppm)) / 1e4)),
            ),
            or_dash(peer.mtu),
            size(peer.sent_bytes),
            size(peer.received_bytes),
            or_dash(peer.address.as_ref()),
        ]
    };
    let headings = [
        "NAME", "PEER", "LINK", "RTT", "LOSS", "MTU", "SENT", "RECEIVED", "ADDRESS",
    ];
    table(headings, &peers.iter().map(row).collect::<Vec<_>>())
}
