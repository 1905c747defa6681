//! Members with valid certificates that break every rule, while an honest one sends a file to the same peer.
//!
//! They share the victim's process, so the memory that is measured is that of both sides of every attack.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyperfabric_mesh::wire::Impairment;
use hyperfabric_node::transfer::StreamHeader;
use hyperfabric_node::transfer::stream::ChunkHeader;
use hyperfabric_node::{DataType, NodeId, PacketPriority, PeerId, TransferId};
use hyperfabric_protocol::cbor::{List, Text};
use hyperfabric_protocol::fabric::{Event, Misbehaved};
use hyperfabric_protocol::flood::{FloodViolation, Item, ItemKind, Version};
use hyperfabric_protocol::frame::{Frame, Items, OfferFrame};
use hyperfabric_protocol::sign::Domain;
use hyperfabric_protocol::transfer::{CHUNK_BYTES, Offer, PayloadKind, TransferEvent};
use hyperfabric_protocol::{Signed, UnixMillis};
use quinn::Connection;

use crate::harness::{PATIENCE, Peer, ended, eventually, id, run, within};
use crate::raw::{BULK, CHUNKS, CONTROL, PROMPT, Raw, resident_kib};

/// Streams without a kind byte.
const STREAMS: u32 = 5_000;
/// Records of a flood.
const RECORDS: u64 = 100_000;
/// Records in a frame.
const BATCH: u64 = 64;
/// How much memory both sides of all attacks may take.
const GROWTH_KIB_MAX: u64 = 64 * 1024;
/// The honest member's file, and how fast its link is: it is under way during every attack.
const FILE_BYTES: usize = 24 << 20;
const BYTES_PER_SECOND: u64 = 1 << 20;

/// Follows the largest resident memory until told to stop.
fn watch_memory(stop: &Arc<AtomicBool>) -> Arc<AtomicU64> {
    let (stop, largest) = (Arc::clone(stop), Arc::new(AtomicU64::new(0)));
    let seen = Arc::clone(&largest);
    tokio::spawn(async move {
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while !stop.load(Ordering::Relaxed) {
            seen.fetch_max(resident_kib(), Ordering::Relaxed);
            look.tick().await;
        }
    });
    largest
}

/// The peer has closed the connection by itself.
async fn cut_off(what: &str, connection: &Connection) {
    let error = within(what, connection.closed()).await;
    assert!(
        matches!(error, quinn::ConnectionError::ApplicationClosed(_)),
        "{what}: the connection ended with {error}"
    );
}

/// Opens streams that never say what they are, over as many connections as that takes.
async fn silent_streams(raw: &Raw, to: SocketAddr) -> (u32, u32) {
    let (mut opened, mut connections) = (0, 0);
    while opened < STREAMS {
        let Some(connection) = raw.enter(to, PROMPT).await else {
            // It has lost its place for now.
            break;
        };
        connections += 1;
        let before = opened;
        while let Ok((mut send, _recv)) = connection.open_bi().await {
            if send.finish().is_err() {
                break;
            }
            opened += 1;
        }
        cut_off("silent streams", &connection).await;
        assert!(
            opened - before < 2_000,
            "{} silent streams on one connection",
            opened - before
        );
    }
    (opened, connections)
}

async fn oversized_frame(raw: &Raw, to: SocketAddr) {
    let (connection, mut control) = raw.greet(to).await;
    control
        .send
        .write_all(&(64 * 1024 + 1_u32).to_be_bytes())
        .await
        .unwrap();
    cut_off("an oversized frame", &connection).await;
}

async fn truncated_frame(raw: &Raw, to: SocketAddr) {
    let (connection, mut control) = raw.greet(to).await;
    control.send.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
    control.send.finish().unwrap();
    cut_off("a truncated frame", &connection).await;
}

async fn second_control_stream(raw: &Raw, to: SocketAddr) {
    let (connection, _control) = raw.greet(to).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&[CONTROL]).await.unwrap();
    cut_off("a second control stream", &connection).await;
}

async fn malformed_frame(raw: &Raw, to: SocketAddr) {
    let (connection, mut control) = raw.greet(to).await;
    let garbage = [0, 0, 0, 6, 0x9f, 0xff, 0xff, 0x1b, 0x00, 0xc0];
    control.send.write_all(&garbage).await.unwrap();
    cut_off("a malformed frame", &connection).await;
}

async fn false_digest(raw: &Raw, to: SocketAddr, source: &NodeId, destination: &NodeId) {
    let (connection, mut control) = raw.greet(to).await;
    let transfer = TransferId([0xbd; 16]);
    let offer = Offer {
        source: source.clone(),
        destination: destination.clone(),
        name: Text("lie".to_owned()),
        kind: PayloadKind::File,
        size: 4 * CHUNK_BYTES,
        data_type: DataType::Generic,
        priority: PacketPriority::Medium,
        modified: None,
        mode: None,
        sync: None,
    };
    control
        .write(&Frame::Offer(OfferFrame { transfer, offer }))
        .await
        .unwrap();
    let attempt = control
        .read(|frame| match frame {
            Frame::Accept(accept) if accept.transfer == transfer => Some(accept.attempt),
            _ => None,
        })
        .await;
    let bulk = raw.dial(to, BULK).await.unwrap();
    let (mut stream, _answers) = bulk.open_bi().await.unwrap();
    let header = ChunkHeader {
        index: 0,
        len: u32::try_from(CHUNK_BYTES).unwrap(),
        value: [7; 32],
    };
    let payload = vec![1; header.len as usize];
    let start = StreamHeader { transfer, attempt }.to_bytes();
    let bytes = [[CHUNKS].as_slice(), &start, &header.to_bytes(), &payload].concat();
    // The peer may close before it has taken all of it.
    let _ = stream.write_all(&bytes).await;
    cut_off("a false digest", &connection).await;
    cut_off("a false digest, on the bulk connection", &bulk).await;
}

/// Sends [`RECORDS`] records, or fewer when it is cut off. Returns how many.
async fn flood(raw: &Raw, to: SocketAddr, mut record: impl FnMut(u64) -> Signed) -> (u64, Connection) {
    let (connection, mut control) = raw.greet(to).await;
    let mut sent = 0;
    while sent < RECORDS {
        let read = |signed| Version::read(signed).unwrap();
        let items = (sent..(sent + BATCH).min(RECORDS))
            .map(&mut record)
            .map(read)
            .collect();
        let items = Frame::Items(Items::new(List::truncating(items)));
        if control.write(&items).await.is_err() {
            break;
        }
        sent += BATCH;
        // A flood on the victim's own thread must leave it a turn.
        tokio::task::yield_now().await;
    }
    (sent.min(RECORDS), connection)
}

fn item(kind: ItemKind, number: u64, sequence: u64, now: UnixMillis) -> Vec<u8> {
    let item = Item::new(
        kind,
        number,
        sequence,
        now,
        Duration::from_secs(3600),
        b"not a record",
    );
    hyperfabric_protocol::cbor::to_bytes(&item)
}

/// Signed by nobody: another origin each time.
fn forged(number: u64, now: UnixMillis) -> Signed {
    let origin = blake3::hash(&number.to_be_bytes());
    let body = item(ItemKind::Record, 0, 1, now);
    let bytes = [origin.as_bytes().as_slice(), &[9; 64], &body].concat();
    Signed::from_bytes(bytes).unwrap()
}

#[test]
fn hostile_members_are_cut_off_alone_and_cost_bounded_memory() {
    run(|lab| async move {
        let founder = lab.found("victim");
        let names = [
            "honest", "h0", "h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8", "h9",
        ];
        let names = names.map(str::to_owned);
        let seeds = lab.admit(&founder, &names);
        let victim = lab.host(&founder, &[], Impairment::default()).await;
        let slow = Impairment {
            rate_bytes_per_s: NonZeroU64::new(BYTES_PER_SECOND),
            queue_bytes_max: 64 << 10,
            ..Impairment::default()
        };
        let honest = lab.host(&seeds[0], &[victim.address()], slow).await;
        let (path, digest) = lab.file("payload", FILE_BYTES);
        let (mut at_end, mut all) = (honest.node.events(), honest.node.events());
        let transfer = honest.send(&path, &id("victim")).await;
        eventually("the honest transfer", PATIENCE, async || {
            honest.is_connected_to(victim.id()).await
        })
        .await;

        let (to, now) = (victim.address().socket, lab.bed.clock.now().wall);
        let raws: Vec<Raw> = seeds[1..].iter().map(Raw::new).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let before = resident_kib();
        let largest = watch_memory(&stop);

        let blamed = watch_blame(&victim);
        let (opened, connections) = silent_streams(&raws[0], to).await;
        println!("{opened} silent streams over {connections} connections");
        // One to be found out on, and those that were let in before that was noted.
        assert!(connections <= 3, "{connections} connections of silent streams");
        for alpn in [PROMPT, BULK] {
            assert!(raws[0].enter(to, alpn).await.is_none(), "it was let in again");
        }
        truncated_frame(&raws[7], to).await;
        second_control_stream(&raws[8], to).await;
        let marked = raws[9].dial_marked(to, PROMPT, b"hfb").await;
        cut_off("a false mark", &marked.unwrap()).await;
        oversized_frame(&raws[1], to).await;
        malformed_frame(&raws[2], to).await;
        false_digest(&raws[3], to, &id("h3"), &id("victim")).await;

        let (sent, connection) = flood(&raws[4], to, |n| forged(n, now)).await;
        cut_off("forged records", &connection).await;
        println!("cut off after {sent} forged records at most");
        let key = &raws[5].key;
        let own = |n| key.sign(Domain::Item, &item(ItemKind::Record, 0, n + 1, now));
        let (sent, connection) = flood(&raws[5], to, own).await;
        cut_off("versions of one record", &connection).await;
        println!("cut off after {sent} versions of one record at most");
        // What a newer peer may know of is nobody's fault, and nobody's memory.
        let unknown = |n| {
            let body = item(ItemKind::Other(99), n, 1, now);
            Signed::from_bytes([raws[6].key.peer_id().0.as_slice(), &[9; 64], &body].concat()).unwrap()
        };
        let (sent, _connection) = flood(&raws[6], to, unknown).await;
        println!("{sent} records of an unknown kind");

        let end = ended(&mut at_end, transfer).await;
        stop.store(true, Ordering::Relaxed);
        let growth = largest.load(Ordering::Relaxed).saturating_sub(before);
        println!("memory grew by {growth} KiB at most");
        assert_eq!(end, Ok(*digest.as_bytes()));
        let suspended = std::iter::from_fn(|| all.try_recv().ok())
            .any(|event| matches!(event, Event::Transfer(TransferEvent::Suspended { .. })));
        assert!(!suspended, "the honest transfer was interrupted");
        assert!(growth <= GROWTH_KIB_MAX, "memory grew by {growth} KiB");
        assert_eq!(victim.knows().await, ["honest", "victim"]);
        let blamed = blamed.lock().unwrap().clone();
        let reasons = |raw: &Raw| -> Vec<String> {
            let of = blamed.iter().filter(|(peer, _)| *peer == raw.key.peer_id());
            of.map(|(_, violation)| violation.to_string()).collect()
        };
        let expected = [
            (0, Misbehaved::SilentStreams),
            (1, Misbehaved::OversizedFrame),
            (3, Misbehaved::ChunkDigest),
            (4, Misbehaved::Flood(FloodViolation::Forged)),
            (5, Misbehaved::Flood(FloodViolation::TooFast)),
            (7, Misbehaved::TruncatedFrame),
            (8, Misbehaved::SecondControlStream),
            (9, Misbehaved::FalseMark),
        ];
        for (index, violation) in expected {
            assert_eq!(reasons(&raws[index]), [violation.to_string()], "h{index}");
        }
        assert_eq!(reasons(&raws[2]).len(), 1);
        assert_eq!(reasons(&raws[6]), [""; 0]);
        // The rule breakers are refused for a while; the honest member is not.
        for raw in raws.iter().filter(|raw| !reasons(raw).is_empty()) {
            assert!(raw.enter(to, PROMPT).await.is_none());
        }
        assert!(honest.is_connected_to(victim.id()).await);
        honest.node.stop().await;
        victim.node.stop().await;
    });
}

/// Follows whom a peer cuts off, and why.
fn watch_blame(peer: &Peer) -> Arc<Mutex<Vec<(PeerId, Misbehaved)>>> {
    let (blamed, mut events) = (Arc::new(Mutex::new(Vec::new())), peer.node.events());
    let found = Arc::clone(&blamed);
    tokio::spawn(async move {
        while let Ok(event) = events.recv().await {
            if let Event::Misbehaved { peer, violation } = event {
                found.lock().unwrap().push((peer, violation));
            }
        }
    });
    blamed
}
