//! Streams over loopback and over a bad network: what arrives, what is reset, and what ends a connection.

use std::time::Duration;

use super::inbox::{KIND_TIMEOUT, SILENT_MAX};
use super::*;
use crate::connection::{CloseCause, CloseReason};
use crate::endpoint::tests::{Peer, Setup, connect, setup, within};
use crate::streams::control::{ControlError, ControlSendError};
use crate::wire::Impairment;
use hyperfabric_protocol::frame::FRAME_BYTES_MAX;

fn two_peers() -> (Peer, Peer) {
    (setup(1).start(), setup(2).start())
}

fn violation() -> CloseCause {
    CloseCause::ClosedByPeer {
        code: u64::from(CloseReason::Violation.code()),
        reason: Some(CloseReason::Violation),
    }
}

fn pattern(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i * 31 / 7) as u8).collect()
}

#[tokio::test]
async fn an_echo_comes_back_in_both_directions() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _streams = (dialled.prompt_streams(), accepted.prompt_streams());
    assert!(accepted.prompt_streams().is_none());
    for bytes in [0, 1, ECHO_BYTES_MAX] {
        let payload = pattern(bytes);
        within(dialled.echo(&payload)).await.unwrap();
        within(accepted.echo(&payload)).await.unwrap();
    }
    let too_much = dialled.echo(&pattern(ECHO_BYTES_MAX + 1)).await;
    assert_eq!(too_much.unwrap_err(), StreamError::TooLong);
}

#[tokio::test]
async fn a_flood_of_echoes_is_cut_off_and_the_connection_lives() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _streams = accepted.prompt_streams();
    let mut refused = 0;
    for _ in 0..400 {
        refused += u32::from(within(dialled.echo(b"flood")).await.is_err());
    }
    assert!(refused > 0);
    assert_eq!(dialled.close_cause(), None);
}

#[tokio::test]
async fn requests_and_substreams_reach_their_channels_with_their_bytes() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let mut streams = accepted.prompt_streams().unwrap();
    for kind in [StreamKind::Request, StreamKind::Libp2p] {
        let mut asked = dialled.open_bi(kind).await.unwrap();
        asked.send.write_all(b"question").await.unwrap();
        asked.send.finish();
        let channel = match kind {
            StreamKind::Request => &mut streams.requests,
            _ => &mut streams.libp2p,
        };
        let mut served = within(channel.recv()).await.unwrap();
        let question = within(served.recv.read_to_end(100)).await.unwrap();
        assert_eq!(question, b"question");
        let mut answer = [Bytes::from_static(b"ans"), Bytes::from_static(b"wer")];
        served.send.write_chunks(&mut answer).await.unwrap();
        served.send.finish();
        let mut answer = [0; 6];
        within(asked.recv.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"answer");
        within(served.send.delivered()).await.unwrap();
    }
    let nowhere = dialled.open_bi(StreamKind::Chunks).await;
    assert_eq!(nowhere.unwrap_err(), StreamError::NotHere(Purpose::Prompt));
}

#[tokio::test]
async fn a_dropped_half_is_reset_and_not_taken_for_complete() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let mut streams = accepted.prompt_streams().unwrap();
    let mut asked = dialled.open_bi(StreamKind::Request).await.unwrap();
    asked.send.write_all(b"half of").await.unwrap();
    let mut served = within(streams.requests.recv()).await.unwrap();
    drop(asked);
    let read = within(served.recv.read_to_end(100)).await;
    assert_eq!(read.unwrap_err(), StreamError::Reset { code: 0 });
    let stopped = within(served.send.delivered()).await;
    assert_eq!(stopped.unwrap_err(), StreamError::Stopped { code: 0 });
}

#[tokio::test]
async fn streams_beyond_a_full_channel_are_reset_as_busy() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _unread = accepted.prompt_streams().unwrap();
    let mut held = Vec::new();
    for _ in 0..=inbox::REQUEST_QUEUE_MAX {
        held.push(dialled.open_bi(StreamKind::Request).await.unwrap());
    }
    let busy = u64::from(StreamCode::Busy.code());
    let last = held.last_mut().unwrap();
    let read = within(last.recv.read_to_end(1)).await;
    assert_eq!(read.unwrap_err(), StreamError::Reset { code: busy });
}

#[tokio::test]
async fn control_frames_arrive_whole_and_in_order_both_ways() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let mut streams = accepted.prompt_streams().unwrap();
    let mut ours = dialled.open_control().await.unwrap();
    let mut theirs = within(streams.control.recv()).await.unwrap();
    let frames: Vec<Bytes> = [0, 1, 1_000, FRAME_BYTES_MAX, 5].map(pattern).into();
    for frame in &frames {
        within(ours.sender.send(frame.clone())).await.unwrap();
        within(theirs.sender.send(frame.clone())).await.unwrap();
    }
    for frame in &frames {
        let got = within(theirs.receiver.next()).await.unwrap();
        assert_eq!(got.as_ref(), Some(frame));
        let got = within(ours.receiver.next()).await.unwrap();
        assert_eq!(got.as_ref(), Some(frame));
    }
    drop(ours.sender);
    assert_eq!(within(theirs.receiver.next()).await, Ok(None));
    let at_acceptor = accepted.open_control().await;
    assert_eq!(at_acceptor.unwrap_err(), StreamError::NotHere(Purpose::Prompt));
}

#[tokio::test]
async fn a_join_connection_carries_frames_without_a_kind() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Join).await;
    let ours = dialled.open_control().await.unwrap();
    ours.sender.try_send(Bytes::from_static(b"ticket")).unwrap();
    let mut theirs = within(accepted.accept_join()).await.unwrap();
    let frame = within(theirs.receiver.next()).await.unwrap();
    assert_eq!(frame.as_deref(), Some(b"ticket".as_slice()));
    assert!(accepted.accept_join().await.is_err());
}

#[tokio::test]
async fn the_control_queue_is_bounded() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _unread = accepted.prompt_streams().unwrap();
    let ours = dialled.open_control().await.unwrap();
    let frame = pattern(FRAME_BYTES_MAX);
    let mut queued = 0;
    let error = loop {
        match ours.sender.try_send(frame.clone()) {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, ControlSendError::Full);
    assert_eq!(queued, control::CONTROL_QUEUE_BYTES_MAX / FRAME_BYTES_MAX);
    let oversized = ours.sender.try_send(pattern(FRAME_BYTES_MAX + 1));
    let bytes = FRAME_BYTES_MAX + 1;
    assert_eq!(oversized.unwrap_err(), ControlSendError::TooLarge { bytes });
}

#[tokio::test]
async fn an_oversized_control_frame_is_a_violation() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let mut streams = accepted.prompt_streams().unwrap();
    let mut raw = dialled.open_bi(StreamKind::Control).await.unwrap();
    let mut theirs = within(streams.control.recv()).await.unwrap();
    let bytes = FRAME_BYTES_MAX + 1;
    let length = u32::try_from(bytes).unwrap().to_be_bytes();
    raw.send.write_all(&length).await.unwrap();
    let error = within(theirs.receiver.next()).await.unwrap_err();
    assert_eq!(error, ControlError::Oversized { bytes });
    assert_eq!(within(dialled.closed()).await, violation());
}

#[tokio::test]
async fn a_second_control_stream_or_one_from_the_acceptor_is_a_violation() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _streams = accepted.prompt_streams().unwrap();
    let _first = dialled.open_control().await.unwrap();
    let _second = dialled.open_control().await.unwrap();
    assert_eq!(within(dialled.closed()).await, violation());

    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _streams = dialled.prompt_streams().unwrap();
    let _stream = accepted.open_bi(StreamKind::Control).await.unwrap();
    assert_eq!(within(accepted.closed()).await, violation());
}

#[tokio::test]
async fn a_silent_stream_is_reset_and_its_connection_lives() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _streams = accepted.prompt_streams().unwrap();
    // A stream exists for the acceptor once a later one was used.
    let mut silent = BiStream::new(dialled.core().quic.open_bi().await.unwrap());
    within(dialled.echo(b"later")).await.unwrap();
    let code = u64::from(StreamCode::NoKind.code());
    let read = tokio::time::timeout(2 * KIND_TIMEOUT, silent.recv.read_to_end(1)).await;
    assert_eq!(read.unwrap().unwrap_err(), StreamError::Reset { code });
    within(dialled.echo(b"alive")).await.unwrap();

    let mut unknown = BiStream::new(dialled.core().quic.open_bi().await.unwrap());
    unknown.send.write_all(&[99]).await.unwrap();
    let read = within(unknown.recv.read_to_end(1)).await;
    assert_eq!(read.unwrap_err(), StreamError::Reset { code });
}

#[tokio::test]
async fn a_flood_of_streams_without_a_kind_closes_the_connection() {
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Prompt).await;
    let _streams = accepted.prompt_streams().unwrap();
    let flood = async {
        for _ in 0..=SILENT_MAX {
            // Ends without a kind, which counts as one that never comes and does not make the test wait.
            let Ok((mut send, _recv)) = dialled.core().quic.open_bi().await else {
                return;
            };
            let _ = send.finish();
        }
    };
    within(flood).await;
    assert_eq!(within(dialled.closed()).await, violation());
}

async fn receive_all(stream: &mut RecvStream) -> (usize, Vec<u8>) {
    let mut pieces = vec![Bytes::new(); 64];
    let (mut total, mut head) = (0, Vec::new());
    while let Some(count) = stream.read_chunks(&mut pieces).await.unwrap() {
        for piece in &pieces[..count] {
            total += piece.len();
            if head.len() < 2 * 1024 * 1024 {
                head.extend_from_slice(piece);
            }
        }
    }
    (total, head)
}

#[tokio::test]
async fn a_bulk_stream_moves_64_mib_in_either_shape() {
    const PIECE: usize = 256 * 1024;
    const PIECES: usize = 256;
    let (a, mut b) = two_peers();
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Bulk).await;
    let mut streams = accepted.bulk_streams().unwrap();
    let piece = pattern(PIECE);
    let sender = tokio::spawn({
        let (dialled, piece) = (dialled.clone(), piece.clone());
        async move {
            let mut stream = dialled.open_uni(StreamKind::Chunks).await.unwrap();
            for _ in 0..PIECES {
                stream.write_chunks(&mut [piece.clone()]).await.unwrap();
            }
            stream.finish();
            stream.delivered().await.unwrap();
        }
    });
    let mut stream = within(streams.chunks.recv()).await.unwrap();
    assert!(stream.send.is_none());
    let (total, head) = within(receive_all(&mut stream.recv)).await;
    assert_eq!(total, PIECE * PIECES);
    assert_eq!(head[..PIECE], piece[..]);
    within(sender).await.unwrap();
    assert!(dialled.stats().mtu > 1_452, "{:?}", dialled.stats());

    let mut stream = dialled.open_bi(StreamKind::Chunks).await.unwrap();
    stream.send.write_all(b"chunk").await.unwrap();
    let served = within(streams.chunks.recv()).await.unwrap();
    assert!(served.send.is_some());
}

#[tokio::test]
async fn the_configured_mtu_bounds_path_discovery() {
    let small = |seed| {
        Setup {
            mtu_max: 1_452,
            ..setup(seed)
        }
        .start()
    };
    let (a, mut b) = (small(1), small(2));
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Bulk).await;
    let mut streams = accepted.bulk_streams().unwrap();
    let mut stream = dialled.open_uni(StreamKind::Chunks).await.unwrap();
    stream.write_all(&pattern(4_000_000)).await.unwrap();
    stream.finish();
    let mut stream = within(streams.chunks.recv()).await.unwrap();
    assert_eq!(within(receive_all(&mut stream.recv)).await.0, 4_000_000);
    assert!(dialled.stats().mtu <= 1_452);
}

#[tokio::test]
async fn a_mebibyte_arrives_intact_over_a_bad_network() {
    let bad = |seed| {
        Setup {
            impairment: Impairment {
                latency: Duration::from_millis(50),
                loss_ppm: 10_000,
                ..Impairment::default()
            },
            ..setup(seed)
        }
        .start()
    };
    let (a, mut b) = (bad(1), bad(2));
    let [dialled, accepted] = connect(&a, &mut b, Purpose::Bulk).await;
    let mut streams = accepted.bulk_streams().unwrap();
    let sent = pattern(1024 * 1024);
    let mut stream = dialled.open_uni(StreamKind::Chunks).await.unwrap();
    let sender = tokio::spawn({
        let mut chunks = [sent.clone()];
        async move {
            stream.write_chunks(&mut chunks).await.unwrap();
            stream.finish();
            stream.delivered().await.unwrap();
        }
    });
    let mut stream = within(streams.chunks.recv()).await.unwrap();
    let (_, received) = within(receive_all(&mut stream.recv)).await;
    assert_eq!(received, sent);
    within(sender).await.unwrap();
    assert!(a.network.stats().lost > 0);
    assert!(dialled.rtt() >= Duration::from_millis(100));
}
