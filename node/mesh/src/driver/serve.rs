//! One task for each prompt or join connection: reads its control frames and its requests until it ends.

use std::time::Duration;

use hyperfabric_protocol::PeerId;
use hyperfabric_protocol::fabric::{Input, Misbehaved, Purpose as Use};

use super::{Handle, Message};
use crate::connection::{CloseCause, CloseReason, Connection, Side};
use crate::discovery::Attacher;
use crate::streams::control::{Control, ControlError, ControlReceiver};
use crate::streams::inbox::Streams;
use crate::streams::{BiStream, StreamError};
use crate::tls::Purpose;

/// How long the other side may take to open its control stream.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn run(connection: Connection, handle: Handle, libp2p: Option<Attacher>) {
    let conn = connection.id();
    let (control, mut requests) = open(&connection, libp2p).await;
    match control {
        Ok(Control { sender, receiver }) => {
            if handle.send(Message::Control { conn, sender }).await {
                read(&connection, &handle, receiver, &mut requests).await;
            }
        }
        Err(error) => {
            tracing::debug!(peer = %connection.peer(), %error, "no control stream");
            connection.close(CloseReason::HelloTimeout);
        }
    }
    let reason = match connection.closed().await {
        CloseCause::ClosedByPeer {
            reason: Some(reason), ..
        } => Some(reason),
        CloseCause::Refused(refusal) => {
            tracing::info!(peer = %connection.peer(), "refused by the peer: this peer {refusal}");
            None
        }
        CloseCause::ClosedByPeer { reason: None, .. }
        | CloseCause::Reset
        | CloseCause::TimedOut
        | CloseCause::Local(_)
        | CloseCause::Transport { .. } => None,
    };
    if let Some(violation) = connection.violation() {
        let purpose = match connection.purpose() {
            Purpose::Prompt | Purpose::Bulk => Use::Prompt,
            Purpose::Join => Use::Join,
        };
        report(&handle, connection.peer(), purpose, violation).await;
    }
    handle
        .send(Message::Input(Input::Disconnected { conn, reason }))
        .await;
}

/// Tells the machine how a peer broke the protocol.
pub(super) async fn report(handle: &Handle, peer: PeerId, purpose: Use, violation: Misbehaved) {
    let violation = Input::Violation {
        peer,
        purpose,
        violation,
    };
    handle.send(Message::Input(violation)).await;
}

/// Waits for the end of a connection that others use, and reports a violation that ended it.
pub(super) fn watch(connection: &Connection, handle: Handle) -> impl Future<Output = ()> + Send + use<> {
    let (peer, ended) = (connection.peer(), connection.watch());
    async move {
        if let Some(violation) = ended.await {
            report(&handle, peer, Use::Prompt, violation).await;
        }
    }
}

/// Opens or accepts the control stream.
async fn open(
    connection: &Connection,
    libp2p: Option<Attacher>,
) -> (Result<Control, StreamError>, Option<Streams>) {
    if connection.purpose() == Purpose::Join {
        let control = match connection.side() {
            Side::Dialled => connection.open_control().await,
            Side::Accepted => connection.accept_join().await,
        };
        return (control, None);
    }
    let Some(mut streams) = connection.prompt_streams() else {
        return (Err(StreamError::ConnectionLost), None);
    };
    if let Some(libp2p) = libp2p {
        libp2p.attach(connection.clone(), streams.libp2p).await;
    }
    let control = match connection.side() {
        Side::Dialled => connection.open_control().await,
        Side::Accepted => match tokio::time::timeout(CONTROL_TIMEOUT, streams.control.recv()).await {
            Ok(Some(control)) => Ok(control),
            Ok(None) => Err(StreamError::ConnectionLost),
            Err(_) => Err(StreamError::TimedOut),
        },
    };
    (control, Some(streams.requests))
}

/// Passes frames and requests on until the connection ends, which it does soon after its control stream.
async fn read(
    connection: &Connection,
    handle: &Handle,
    mut control: ControlReceiver,
    requests: &mut Option<Streams>,
) {
    let (conn, peer) = (connection.id(), connection.peer());
    let mut ended = false;
    loop {
        tokio::select! {
            frame = control.next(), if !ended => match frame {
                Ok(Some(bytes)) => {
                    let input = Input::Frame { conn, bytes: bytes.into() };
                    if !handle.send(Message::Input(input)).await {
                        return;
                    }
                }
                Ok(None) => {
                    ended = true;
                    connection.core().life.other_is_done();
                    if !handle.send(Message::ControlEnded { conn }).await {
                        return;
                    }
                }
                // A violation has closed it already. A reset may come from a process that is going down.
                Err(ControlError::Oversized { .. } | ControlError::Stream(_)) => {
                    connection.close(CloseReason::Idle);
                    return;
                }
            },
            stream = next_request(requests) => {
                if !handle.send(Message::Request { from: peer, stream }).await {
                    return;
                }
            }
            _ = connection.closed() => return,
        }
    }
}

async fn next_request(requests: &mut Option<Streams>) -> BiStream {
    if let Some(receiver) = requests {
        if let Some(stream) = receiver.recv().await {
            return *stream;
        }
        *requests = None;
    }
    std::future::pending().await
}
