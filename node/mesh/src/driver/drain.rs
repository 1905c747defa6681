//! Connections that the machine has closed for a reason that is nobody's fault, until what was asked on them is answered.
//!
//! The side that closes says so in its last frame, Goodbye, and the other side's machine forgets the connection at once, too. From
//! then on neither opens a stream on it. A side whose own requests and echoes have ended finishes its control stream; when both have,
//! the connection is closed for good, and at the latest after [`DRAIN_TIME`]. [CONN-9] [CONN-10]

use std::time::Duration;

use hyperfabric_protocol::PeerId;
use hyperfabric_protocol::frame::{Frame, Goodbye};
use tokio::time::timeout;

use super::Handle;
use crate::connection::{CloseReason, Connection};
use crate::streams::control::ControlSender;
use crate::tls::Purpose;

/// How long a connection drains at most: what most handlers need, and what a peer may cost that nobody wants any more.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(30);
/// Connections that drain at once; further ones are closed at once. Twice the connections of an ordinary peer.
const DRAINING_MAX: usize = 64;

/// The connections that drain.
#[derive(Debug, Default)]
pub(super) struct Draining(Vec<Connection>);

impl Draining {
    /// Takes a connection in, when there is room. A peer has room for one: of three connections that it may have here, two must be
    /// left for the next one and its successor.
    fn begin(&mut self, connection: &Connection) -> bool {
        self.0.retain(|other| other.close_cause().is_none());
        let peer = connection.peer();
        if self.0.len() >= DRAINING_MAX || self.0.iter().any(|other| other.peer() == peer) {
            return false;
        }
        self.0.push(connection.clone());
        true
    }

    fn end(&mut self, connection: &Connection) {
        self.0.retain(|other| other.id() != connection.id());
    }

    /// Closes what drains with a peer that is cut off.
    pub(super) fn close(&self, peer: &PeerId, reason: CloseReason) {
        for connection in self.0.iter().filter(|connection| connection.peer() == *peer) {
            connection.close(reason);
        }
    }
}

impl Handle {
    /// Closes a connection that the machine has closed: for a fault at once, and else when what was asked on it is answered.
    pub(super) fn part(&self, connection: &Connection, control: Option<ControlSender>, reason: CloseReason) {
        let asked = connection.purpose() == Purpose::Prompt && reason.drains();
        // Without a control stream the machine of neither side has told anybody of the connection.
        let Some(control) = control.filter(|_| asked) else {
            return connection.close(reason);
        };
        let goodbye = Frame::Goodbye(Goodbye::new(reason)).to_bytes();
        if !self.connections().draining.begin(connection) {
            return connection.close(reason);
        }
        connection.core().life.drain();
        if control.try_send(goodbye.into()).is_err() {
            connection.close(reason);
        }
        let (handle, connection) = (self.clone(), connection.clone());
        self.runtime().clone().spawn(async move {
            drain(&connection, control, reason, DRAIN_TIME).await;
            handle.connections().draining.end(&connection);
        });
    }
}

/// Waits for the end of what was asked on a connection by either side, and closes it.
async fn drain(connection: &Connection, control: ControlSender, reason: CloseReason, limit: Duration) {
    let life = &connection.core().life;
    let ended = async {
        life.answered().await;
        drop(control);
        life.other_done().await;
    };
    tokio::select! {
        // Whether in time or not: what is still open then is lost.
        _ = timeout(limit, ended) => connection.close(reason),
        _ = connection.closed() => {}
    }
}

#[cfg(test)]
mod tests;
