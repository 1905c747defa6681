//! Members that keep to the format and use it without measure: floods of valid frames, streams and connections.
//!
//! After every assault the victim still answers an honest member, its memory is bounded, and nothing was logged as an
//! error. A member may be cut off for what it does here, and need not be: nobody else may notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyperfabric_mesh::wire::Impairment;
use hyperfabric_node::node::DataRequest;
use hyperfabric_node::transfer::StreamHeader;
use hyperfabric_node::transfer::stream::ChunkHeader;
use hyperfabric_node::{DataType, PacketPriority, TransferId};
use hyperfabric_protocol::cbor::{self, List, Text};
use hyperfabric_protocol::cert::Membership;
use hyperfabric_protocol::flood::{Item, ItemKind, Version};
use hyperfabric_protocol::frame::{
    Abort, Accept, BucketHashes, Delivered, Digest, Finish, Frame, Items, JoinRequest, OfferFrame, Progress,
    RenewRequest, Summary, Versions,
};
use hyperfabric_protocol::sign::Domain;
use hyperfabric_protocol::transfer::{CHUNK_BYTES, ChunkRanges, Fault, Offer, PayloadKind};
use quinn::Connection;

use crate::harness::{Lab, PATIENCE, Peer, ended, id, run};
use crate::raw::{BULK, CHUNKS, Control, ECHO, JOIN, PROMPT, REQUEST, Raw, resident_kib};

/// Frames, streams or connections of an assault.
const MANY: u32 = 10_000;
/// How much memory an assault may take, on both sides.
const GROWTH_KIB_MAX: u64 = 96 * 1024;
/// What an honest member may have to wait for an answer meanwhile.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);

struct Siege {
    victim: Peer,
    honest: Peer,
    to: SocketAddr,
}

impl Siege {
    async fn begin(lab: &Lab, attackers: usize) -> (Self, Vec<Raw>) {
        let founder = lab.found("victim");
        let mut names = vec!["honest".to_owned()];
        names.extend((0..attackers).map(|n| format!("h{n}")));
        let seeds = lab.admit(&founder, &names);
        let victim = lab.host(&founder, &[], Impairment::default()).await;
        victim.node.on_data(
            id("victim"),
            Arc::new(|request: DataRequest| Box::pin(async { Ok(request.data) })),
        );
        let honest = lab
            .host(&seeds[0], &[victim.address()], Impairment::default())
            .await;
        let to = victim.address().socket;
        let this = Self { victim, honest, to };
        this.ask().await;
        (this, seeds[1..].iter().map(Raw::new).collect())
    }

    /// An honest member asks something. Returns how long the answer took.
    async fn ask(&self) -> Duration {
        let begun = Instant::now();
        let request = DataRequest {
            source: id("honest"),
            destination: id("victim"),
            data_type: DataType::Generic,
            priority: PacketPriority::Medium,
            metadata: Vec::new(),
            data: Bytes::from_static(b"alive?"),
        };
        let answer = self.honest.node.request(request, 1024, PATIENCE).await;
        assert_eq!(answer.unwrap(), "alive?");
        begun.elapsed()
    }

    /// Lets a member do its worst while an honest one asks again and again.
    async fn assault(&self, what: &str, assault: impl Future<Output = String>) -> String {
        let (before, begun) = (resident_kib(), Instant::now());
        let (mut largest, mut slowest, mut asked) = (before, Duration::ZERO, 0);
        let mut assault = std::pin::pin!(assault);
        let outcome = loop {
            let ask = async {
                let took = self.ask().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                took
            };
            tokio::select! {
                outcome = &mut assault => break outcome,
                took = ask => {
                    asked += 1;
                    slowest = slowest.max(took);
                }
            }
            largest = largest.max(resident_kib());
        };
        slowest = slowest.max(self.ask().await);
        let growth = largest.max(resident_kib()) - before;
        println!(
            "{what}: {outcome}; {:?}, {growth} KiB more, {asked} answers, the slowest in {slowest:?}",
            begun.elapsed()
        );
        assert!(growth <= GROWTH_KIB_MAX, "{what}: memory grew by {growth} KiB");
        assert!(
            slowest <= ANSWER_TIME_MAX,
            "{what}: an honest member waited {slowest:?}"
        );
        assert!(self.honest.is_connected_to(self.victim.id()).await, "{what}");
        outcome
    }

    /// Sends [`MANY`] frames, reading whatever comes, or fewer when the connection ends.
    async fn frames(&self, raw: &Raw, mut frame: impl FnMut(u32) -> Vec<u8>) -> String {
        let (connection, control) = raw.greet(self.to).await;
        let Control { mut send, mut recv } = control;
        let read = tokio::spawn(async move {
            let mut bytes = 0;
            while let Ok(Some(chunk)) = recv.read_chunk(1 << 20, true).await {
                bytes += chunk.bytes.len();
            }
            bytes
        });
        let mut sent = 0;
        for n in 0..MANY {
            let frame = frame(n);
            let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
            if send
                .write_all(&[length.as_slice(), &frame].concat())
                .await
                .is_err()
            {
                break;
            }
            sent += 1;
            // A flood on the victim's own thread must leave it a turn.
            tokio::task::yield_now().await;
        }
        let end = connection.close_reason();
        connection.close(0_u32.into(), b"");
        format!(
            "{sent} frames sent, {} bytes came back, {}",
            read.await.unwrap(),
            end_of(end)
        )
    }
}

const CUT_OFF: &str = "cut off: ";

fn end_of(end: Option<quinn::ConnectionError>) -> String {
    end.map_or_else(|| "not cut off".to_owned(), |end| format!("{CUT_OFF}{end}"))
}

fn offer(source: &str, destination: &str, name: &str, size: u64) -> Offer {
    Offer {
        source: id(source),
        destination: id(destination),
        name: Text(name.to_owned()),
        kind: PayloadKind::File,
        size,
        data_type: DataType::Generic,
        priority: PacketPriority::Medium,
        modified: None,
        mode: None,
        sync: None,
    }
}

fn number(n: u32) -> TransferId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    TransferId(bytes)
}

#[test]
fn floods_of_flooding_cost_bounded_memory_and_stop_nobody() {
    run(|lab| async move {
        let (siege, raws) = Siege::begin(&lab, 7).await;
        let now = lab.bed.clock.now().wall;
        let padding = vec![7; 14 * 1024];
        let own = |raw: &Raw, kind, id: u64, sequence, body: &[u8]| {
            let item = Item::new(kind, id, sequence, now, Duration::from_secs(3600), body);
            Version::read(raw.key.sign(Domain::Item, &cbor::to_bytes(&item))).unwrap()
        };
        let items = |items| Frame::Items(Items::new(List::truncating(items))).to_bytes();
        // Signed well, and never taken: the victim has to check each.
        let mut large = (0..4)
            .map(|n| own(&raws[0], ItemKind::Record, n, 1, &padding))
            .collect::<Vec<_>>();
        let record = |n: u32| {
            large.rotate_left(1);
            large[0] = own(&raws[0], ItemKind::Record, u64::from(n) + 1, 1, &padding);
            items(large.clone())
        };
        let outcome = siege
            .assault("large records", siege.frames(&raws[0], record))
            .await;
        assert!(outcome.contains(CUT_OFF), "{outcome}");
        let revoke = |n: u32| items(vec![own(&raws[1], ItemKind::Revocation, u64::from(n), 1, b"x")]);
        let outcome = siege
            .assault("revocations by a plain member", siege.frames(&raws[1], revoke))
            .await;
        assert!(outcome.contains(CUT_OFF), "{outcome}");
        let versions = |n: u32| items(vec![own(&raws[2], ItemKind::Record, 0, u64::from(n) + 1, b"x")]);
        let outcome = siege
            .assault(
                "unreadable versions of one record",
                siege.frames(&raws[2], versions),
            )
            .await;
        assert!(outcome.contains(CUT_OFF), "{outcome}");
        let summary = |n: u32| {
            let hashes = BucketHashes(vec![u64::from(n); 256]);
            let answer = Some(true);
            Frame::Summary(Summary {
                hashes,
                answer,
                items: n,
            })
            .to_bytes()
        };
        siege.assault("summaries", siege.frames(&raws[3], summary)).await;
        let digest = |n: u32| {
            let first = u8::try_from(n % 256).unwrap();
            Frame::Digest(Digest {
                buckets: (first..=255).collect(),
                versions: Versions::default(),
            })
            .to_bytes()
        };
        siege.assault("digests", siege.frames(&raws[4], digest)).await;
        let counts = |_: u32| {
            vec![
                0x82, 0x03, 0xa1, 0x00, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ]
        };
        let outcome = siege
            .assault("an array of 2^64 entries", siege.frames(&raws[5], counts))
            .await;
        assert!(outcome.contains(CUT_OFF), "{outcome}");
        siege.honest.node.stop().await;
        siege.victim.node.stop().await;
    });
}

#[test]
fn floods_of_offers_and_of_others_transfers_stop_nobody() {
    run(|lab| async move {
        let (siege, raws) = Siege::begin(&lab, 8).await;
        let offers = |size: u64, to: &'static str, name: &'static str, from: &'static str| {
            move |n: u32| {
                let (transfer, offer) = (number(n), offer(from, to, name, size));
                Frame::Offer(OfferFrame { transfer, offer }).to_bytes()
            }
        };
        siege
            .assault(
                "offers",
                siege.frames(&raws[0], offers(1 << 20, "victim", "x", "h0")),
            )
            .await;
        siege
            .assault(
                "offers of nothing",
                siege.frames(&raws[1], offers(0, "victim", "x", "h1")),
            )
            .await;
        siege
            .assault(
                "offers of everything",
                siege.frames(&raws[2], offers(1 << 60, "victim", "x", "h2")),
            )
            .await;
        siege
            .assault(
                "offers with bad names",
                siege.frames(&raws[3], offers(1, "victim", "..", "h3")),
            )
            .await;
        siege
            .assault(
                "offers to nobody",
                siege.frames(&raws[4], offers(1, "nobody", "x", "h4")),
            )
            .await;
        let (path, digest) = lab.file("payload", 24 << 20);
        let mut events = siege.honest.node.events();
        let theirs = siege.honest.send(&path, &id("victim")).await;
        let foreign = |n: u32| {
            let transfer = theirs;
            match n % 5 {
                0 => Frame::Accept(Accept {
                    transfer,
                    have: ChunkRanges::new(),
                    attempt: n,
                }),
                1 => Frame::Progress(Progress {
                    transfer,
                    durable_bytes: u64::MAX,
                }),
                2 => Frame::Finish(Finish {
                    transfer,
                    root: [9; 32],
                }),
                3 => Frame::Delivered(Delivered {
                    transfer,
                    root: [9; 32],
                }),
                _ => Frame::Abort(Abort {
                    transfer,
                    fault: Fault::Cancelled,
                    detail: None,
                }),
            }
            .to_bytes()
        };
        siege
            .assault("frames of another's transfer", siege.frames(&raws[5], foreign))
            .await;
        let claim = |_: u32| {
            let (transfer, offer) = (theirs, offer("h6", "victim", "payload", 24 << 20));
            Frame::Offer(OfferFrame { transfer, offer }).to_bytes()
        };
        siege
            .assault(
                "offers under another's transfer id",
                siege.frames(&raws[6], claim),
            )
            .await;
        assert_eq!(ended(&mut events, theirs).await, Ok(*digest.as_bytes()));
        siege.honest.node.stop().await;
        siege.victim.node.stop().await;
    });
}

/// Opens streams that begin with `start`, and leaves them so.
async fn streams(connection: &Connection, start: &[u8], count: u32) -> String {
    let (mut held, mut opened) = (Vec::new(), 0);
    let open = async {
        while opened < count {
            let Ok((mut send, recv)) = connection.open_bi().await else {
                break;
            };
            if send.write_all(start).await.is_err() {
                continue;
            }
            opened += 1;
            held.push((send, recv));
            if held.len() > 200 {
                held.drain(..100);
            }
        }
    };
    // Where the victim allows no more streams, that is the end of it.
    let _ = tokio::time::timeout(Duration::from_secs(8), open).await;
    format!("{opened} streams opened, {}", end_of(connection.close_reason()))
}

#[test]
fn floods_of_streams_and_connections_stop_nobody() {
    run(|lab| async move {
        let (siege, raws) = Siege::begin(&lab, 9).await;
        let to = siege.to;
        let unknown = |attempt| {
            [
                [CHUNKS].as_slice(),
                &StreamHeader {
                    transfer: number(7),
                    attempt,
                }
                .to_bytes(),
            ]
            .concat()
        };
        let bulk = raws[0].enter(to, BULK).await.unwrap();
        siege
            .assault(
                "chunk streams of an unknown transfer",
                streams(&bulk, &unknown(1), MANY),
            )
            .await;
        let bulk = raws[1].enter(to, BULK).await.unwrap();
        siege
            .assault(
                "chunk streams without a header",
                streams(&bulk, &[CHUNKS, 1], MANY),
            )
            .await;
        let prompt = raws[2].enter(to, PROMPT).await.unwrap();
        siege
            .assault("requests without a header", streams(&prompt, &[REQUEST, 0], MANY))
            .await;
        let prompt = raws[3].enter(to, PROMPT).await.unwrap();
        let payload = [[ECHO].as_slice(), &vec![7; 60 << 10]].concat();
        siege
            .assault("echoes that never end", streams(&prompt, &payload, MANY))
            .await;
        let prompt = raws[4].enter(to, PROMPT).await.unwrap();
        siege
            .assault("libp2p substreams that say nothing", streams(&prompt, &[0], MANY))
            .await;
        let many = async {
            let (connection, mut control) = raws[5].greet(to).await;
            let transfer = number(5);
            let offer = offer("h5", "victim", "x", 4096 * CHUNK_BYTES);
            control
                .write(&Frame::Offer(OfferFrame { transfer, offer }))
                .await
                .unwrap();
            let attempt = control
                .read(|frame| match frame {
                    Frame::Accept(accept) => Some(accept.attempt),
                    _ => None,
                })
                .await;
            let mut open = Vec::new();
            for n in 0..8 {
                let Some(bulk) = raws[5].enter(to, BULK).await else {
                    break;
                };
                for index in 0..32 {
                    let (mut send, recv) = bulk.open_bi().await.unwrap();
                    let header = ChunkHeader {
                        index: n * 32 + index,
                        len: 1 << 20,
                        value: [0; 32],
                    };
                    let start = [
                        [CHUNKS].as_slice(),
                        &StreamHeader { transfer, attempt }.to_bytes(),
                        &header.to_bytes(),
                    ]
                    .concat();
                    if send.write_all(&start).await.is_ok()
                        && send.write_all(&vec![1; 100 << 10]).await.is_ok()
                    {
                        open.push((send, recv));
                    }
                }
                open.push(bulk.open_bi().await.unwrap());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            format!("{} streams, {}", open.len(), end_of(connection.close_reason()))
        };
        siege.assault("many streams of one attempt", many).await;
        let joins = async {
            let mut entered = 0;
            for _ in 0..200 {
                entered += u32::from(raws[6].enter(to, JOIN).await.is_some());
            }
            format!("{entered} connections")
        };
        siege.assault("connections for joining", joins).await;
        let requests = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let connection = raws[7].enter(to, JOIN).await.unwrap();
            let (send, recv) = connection.open_bi().await.unwrap();
            let mut control = Control { send, recv };
            let request = JoinRequest {
                secret: [7; 16],
                name: id("x"),
            };
            let mut sent = 0;
            while sent < MANY && control.write(&Frame::JoinRequest(request.clone())).await.is_ok() {
                sent += 1;
                tokio::task::yield_now().await;
            }
            format!("{sent} requests, {}", end_of(connection.close_reason()))
        };
        let outcome = siege.assault("join requests on one connection", requests).await;
        assert!(outcome.contains(CUT_OFF), "{outcome}");
        let membership: Membership = cbor::from_bytes(raws[8].membership()).unwrap();
        let renew = |_: u32| {
            let membership = membership.clone();
            Frame::RenewRequest(RenewRequest { membership }).to_bytes()
        };
        siege.assault("renewals", siege.frames(&raws[8], renew)).await;
        siege.honest.node.stop().await;
        siege.victim.node.stop().await;
    });
}
