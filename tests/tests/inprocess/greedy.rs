//! A member that asks for everything at once and takes its time, beside one that asks for the most that is allowed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyperfabric_mesh::wire::Impairment;
use hyperfabric_node::node::{DATA_BYTES_MAX, DataRequest};
use hyperfabric_node::{DataType, NodeId, PacketPriority};
use hyperfabric_protocol::cbor::{Encoder, Value};
use quinn::{Connection, RecvStream, SendStream};

use crate::harness::{Lab, PATIENCE, Peer, Seed, eventually, id, run, within};
use crate::raw::{BULK, Control, REQUEST, Raw};

/// The code of a stream that broke a rule or exceeds a limit.
const VIOLATION: u32 = 4;
/// How often the greedy member sends one more byte on each of its streams.
const TRICKLE: Duration = Duration::from_secs(1);

/// Asks for `bytes` at `destination`, and sends none of them.
async fn ask(
    connection: &Connection,
    source: &NodeId,
    destination: &NodeId,
    bytes: usize,
) -> (SendStream, RecvStream) {
    let mut header = Encoder::new();
    header.array(6);
    source.encode(&mut header);
    destination.encode(&mut header);
    DataType::Generic.encode(&mut header);
    PacketPriority::Medium.encode(&mut header);
    header.u64(bytes as u64);
    header.array(0);
    let header = header.into_bytes();
    let length = u32::try_from(header.len()).unwrap().to_be_bytes();
    let (mut send, recv) = connection.open_bi().await.unwrap();
    let start = [[REQUEST].as_slice(), &length, &header].concat();
    send.write_all(&start).await.unwrap();
    (send, recv)
}

/// A victim whose node answers with the size of what it is sent, and a member without manners.
async fn victim(lab: &Lab) -> (Peer, Seed, Raw) {
    let founder = lab.found("victim");
    let names = ["honest", "greedy"].map(str::to_owned);
    let [honest, greedy] = lab.admit(&founder, &names).try_into().ok().unwrap();
    let victim = lab.host(&founder, &[], Impairment::default()).await;
    victim.node.on_data(
        id("victim"),
        Arc::new(|request: DataRequest| {
            Box::pin(async move { Ok(Bytes::from(request.data.len().to_string())) })
        }),
    );
    (victim, honest, Raw::new(&greedy))
}

/// Connects as a member does, so that requests are taken.
async fn greet(raw: &Raw, victim: &Peer) -> (Connection, Control) {
    let greeted = raw.greet(victim.address().socket).await;
    eventually("the greedy member's greeting", PATIENCE, async || {
        victim.is_connected_to(raw.key.peer_id()).await
    })
    .await;
    greeted
}

#[test]
fn while_a_member_stalls_its_requests_the_largest_one_of_another_member_is_answered() {
    run(|lab| async move {
        let (victim, honest, raw) = victim(&lab).await;
        let to = victim.address();
        let _greeted = greet(&raw, &victim).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let connection = raw.enter(to.socket, BULK).await.unwrap();
            for _ in 0..5 {
                held.push(ask(&connection, &id("greedy"), &id("victim"), DATA_BYTES_MAX).await);
            }
        }
        // Always a little progress, so that no timeout helps.
        let trickle = tokio::spawn(async move {
            let mut tick = tokio::time::interval(TRICKLE);
            loop {
                tick.tick().await;
                for (send, _) in &mut held {
                    send.write_all(b"x").await.unwrap();
                }
            }
        });
        let honest = lab.host(&honest, &[to], Impairment::default()).await;
        let request = DataRequest {
            source: id("honest"),
            destination: id("victim"),
            data_type: DataType::Generic,
            priority: PacketPriority::Medium,
            metadata: Vec::new(),
            data: vec![7; DATA_BYTES_MAX].into(),
        };
        let answer = within("the answer", honest.node.request(request, 0, PATIENCE)).await;
        assert_eq!(answer.unwrap(), DATA_BYTES_MAX.to_string());
        assert!(!trickle.is_finished(), "the greedy member was let down");
        trickle.abort();
        honest.node.stop().await;
        victim.node.stop().await;
    });
}

#[test]
fn a_request_that_stands_still_is_ended_and_makes_room_for_the_next_one_of_its_peer() {
    run(|lab| async move {
        let (victim, _, raw) = victim(&lab).await;
        let (connection, _control) = greet(&raw, &victim).await;
        let (_held, mut stalled) = ask(&connection, &id("greedy"), &id("victim"), DATA_BYTES_MAX).await;
        let (mut send, mut next) = ask(&connection, &id("greedy"), &id("victim"), 1).await;
        send.write_all(b"x").await.unwrap();
        send.finish().unwrap();
        let answer = within("the answer of the next request", next.read_to_end(100)).await;
        assert!(answer.unwrap().ends_with(b"1"));
        let ended = within("the end of the stalled request", stalled.read_to_end(100)).await;
        let code = quinn::VarInt::from_u32(VIOLATION);
        assert_eq!(
            ended,
            Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)))
        );
        victim.node.stop().await;
    });
}
