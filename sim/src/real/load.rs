//! Messages and transfers between random peers, checked against what was sent.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use hyperfabric_mesh::Events;
use hyperfabric_node::node::{DataRequest, NewTransfer};
use hyperfabric_node::storage::{Access, RelPath, Storage};
use hyperfabric_node::{DataType, NodeId, PacketPriority, TransferId};
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::random::Random;
use hyperfabric_protocol::transfer::TransferEvent;
use tokio::sync::broadcast::error::RecvError;

use super::lab::Running;
use super::{Delivery, OnProgress, Percentiles, Phase, Progress, RealConfig};

/// Bytes of a message.
pub(super) const MESSAGE_BYTES: usize = 256;
/// Requests up to this size travel on the prompt connection.
pub(super) const PROMPT_BYTES_MAX: usize = 64 << 10;

/// How one message or transfer ended; an arrival, after how many milliseconds.
pub(super) enum End {
    Arrived(f64),
    Damaged,
    Failed(String),
}

/// Draws of a pair before it is taken although the two have no way to each other: where hardly anyone has one, the report
/// shall say so.
const DRAWS_MAX: usize = 1_000;

/// Who sends to whom: two different peers, one of which can dial the other.
fn pairs(config: &RealConfig, what: u8, count: usize) -> Vec<(usize, usize)> {
    let mut seed = [what; 32];
    seed[..8].copy_from_slice(&config.seed.to_be_bytes());
    let mut random = Random::from_seed(seed);
    let peers = config.contacts.len() as u64;
    let mut pair = || {
        let from = random.below(peers);
        let to = (from + 1 + random.below(peers - 1)) % peers;
        (from as usize, to as usize)
    };
    let mut connected = || {
        let mut drawn = pair();
        for _ in 0..DRAWS_MAX {
            if config.links.connects(drawn.0, drawn.1) {
                break;
            }
            drawn = pair();
        }
        drawn
    };
    (0..count).map(|_| connected()).collect()
}

pub(super) fn delivery(ends: Vec<End>) -> Delivery {
    let (mut taken, mut errors, mut damaged) = (Vec::new(), BTreeMap::new(), 0);
    let sent = ends.len();
    for end in ends {
        match end {
            End::Arrived(milliseconds) => taken.push(milliseconds),
            End::Damaged => damaged += 1,
            End::Failed(error) => *errors.entry(error).or_default() += 1,
        }
    }
    Delivery {
        sent,
        arrived: taken.len(),
        milliseconds: Percentiles::of(taken),
        errors,
        damaged,
    }
}

pub(super) async fn messages(lab: &Running, config: &RealConfig, on_progress: OnProgress<'_>) -> Delivery {
    let (done, of) = (AtomicUsize::new(0), config.messages);
    let ends = stream::iter(pairs(config, 1, of).into_iter().enumerate())
        .map(|(number, (from, to))| {
            let done = &done;
            async move {
                let end = message(lab, config, number, from, to).await;
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                on_progress(Progress {
                    phase: Phase::Messages,
                    done,
                    of,
                });
                end
            }
        })
        .buffer_unordered(config.messages_at_once.max(1))
        .collect()
        .await;
    delivery(ends)
}

async fn message(lab: &Running, config: &RealConfig, number: usize, from: usize, to: usize) -> End {
    let mut data = vec![0; MESSAGE_BYTES];
    blake3::Hasher::new()
        .update(&(number as u64).to_be_bytes())
        .finalize_xof()
        .fill(&mut data);
    let digest = blake3::hash(&data);
    let request = DataRequest {
        source: lab.peers[from].name.clone(),
        destination: lab.peers[to].name.clone(),
        data_type: DataType::Generic,
        priority: PacketPriority::Medium,
        metadata: Vec::new(),
        data: Bytes::from(data),
    };
    let begun = Instant::now();
    let node = &lab.peers[from].node;
    match node.request(request, PROMPT_BYTES_MAX, config.limit).await {
        Ok(answer) if *answer == digest.as_bytes()[..] => End::Arrived(begun.elapsed().as_secs_f64() * 1e3),
        Ok(_) => End::Damaged,
        Err(error) => End::Failed(error.to_string()),
    }
}

pub(super) async fn transfers(lab: &Running, config: &RealConfig, on_progress: OnProgress<'_>) -> Delivery {
    let (done, of) = (AtomicUsize::new(0), config.transfers);
    let ends = stream::iter(pairs(config, 2, of).into_iter().enumerate())
        .map(|(number, (from, to))| {
            let done = &done;
            async move {
                let end = transfer(lab, config, number, from, to).await;
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                on_progress(Progress {
                    phase: Phase::Transfers,
                    done,
                    of,
                });
                end
            }
        })
        .buffer_unordered(config.transfers_at_once.max(1))
        .collect()
        .await;
    delivery(ends)
}

async fn transfer(lab: &Running, config: &RealConfig, number: usize, from: usize, to: usize) -> End {
    let name = format!("t{number}");
    let (path, digest) = match lab.bed.file(&name, config.seed, config.transfer_bytes) {
        Ok(made) => made,
        Err(error) => return End::Failed(format!("cannot make a payload: {error}")),
    };
    let end = send(lab, config, &name, &path, &digest, from, to).await;
    // The folder goes at the end of the run whatever becomes of this.
    let _ = std::fs::remove_file(&path);
    end
}

async fn send(
    lab: &Running,
    config: &RealConfig,
    name: &str,
    path: &std::path::Path,
    digest: &blake3::Hash,
    from: usize,
    to: usize,
) -> End {
    let file = match File::open(path) {
        Ok(file) => file.into(),
        Err(error) => return End::Failed(error.to_string()),
    };
    let new = NewTransfer {
        file,
        path: Some(path.to_owned()),
        name: name.to_owned(),
        to: lab.peers[to].name.clone(),
        data_type: DataType::Generic,
        priority: PacketPriority::Medium,
        timeout: Some(config.limit),
        wait: config.limit,
        sync: false,
    };
    let sender = &lab.peers[from];
    let mut events = sender.node.events();
    let begun = Instant::now();
    let transfer = match sender.node.send(new).await {
        Ok(transfer) => transfer,
        Err(error) => return End::Failed(error.to_string()),
    };
    match ended(&mut events, transfer).await {
        Ok(root) if root == *digest.as_bytes() && arrived(lab, name, digest, from, to) => {
            End::Arrived(begun.elapsed().as_secs_f64() * 1e3)
        }
        Ok(_) => End::Damaged,
        Err(error) => End::Failed(error),
    }
}

async fn ended(events: &mut Events, transfer: TransferId) -> Result<[u8; 32], String> {
    loop {
        match events.recv().await {
            Ok(Event::Transfer(TransferEvent::Ended { of, result })) if of.transfer == transfer => {
                return result.map(|ended| ended.root).map_err(|error| error.to_string());
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Err("the sender has ended".to_owned()),
        }
    }
}

/// Whether the receiver's inbox has what was sent; it is read past the node.
fn arrived(lab: &Running, name: &str, digest: &blake3::Hash, from: usize, to: usize) -> bool {
    inbox_has(&*lab.peers[to].storage, &lab.peers[from].name, name, digest)
}

/// The place of what a node has sent, in the inbox of its receiver.
pub(super) fn inbox_path(sender: &NodeId, name: &str) -> Option<RelPath> {
    RelPath::parse(format!("inbox/{sender}/{name}").as_bytes()).ok()
}

/// Whether an inbox has what was sent.
pub(super) fn inbox_has(storage: &dyn Storage, sender: &NodeId, name: &str, digest: &blake3::Hash) -> bool {
    let Some(path) = inbox_path(sender, name) else {
        return false;
    };
    let read = storage.open(&path, Access::Read).and_then(|file| {
        let mut content = vec![0; usize::try_from(file.size()?).unwrap_or(0)];
        file.read_at(0, &mut content)?;
        Ok(content)
    });
    read.is_ok_and(|content| blake3::hash(&content) == *digest)
}
