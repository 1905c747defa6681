//! A connection as the loop knows it, and what waits to be sent on it.
//!
//! Control frames go into the connection's queue at once, and a peer that leaves it full is given up [QUIC-14]. Floods are too many
//! for that: a newcomer is sent the whole directory. They wait here, as shared versions and not as bytes, until half of the queue
//! is free, so that they never fill it and other frames overtake them.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use hyperfabric_protocol::ConnId;
use hyperfabric_protocol::frame::Frame;
use tokio::time::timeout;

use super::{Handle, Message};
use crate::connection::Connection;
use crate::streams::control::{ControlSendError, ControlSender};

/// Frames for a connection whose control stream is not open yet.
const UNSENT_FRAMES_MAX: usize = 256;
/// Frames of items that may wait: the largest database, 200,000 items in frames of some 60, and some news.
const FLOODS_MAX: usize = 4_096;
/// How long half of the queue may take to be sent: a link of 70 kbit/s does.
const ROOM_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) control: Option<ControlSender>,
    /// Frames for a control stream that is still being opened.
    unsent: Vec<Bytes>,
    /// Items for a control stream that has no room for them.
    floods: VecDeque<Frame>,
    /// Whether a task waits for that room.
    awaits_room: bool,
}

impl Link {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            control: None,
            unsent: Vec::new(),
            floods: VecDeque::new(),
            awaits_room: false,
        }
    }

    /// Takes the control stream, and sends what has waited for it.
    pub(super) fn open(&mut self, handle: &Handle, control: ControlSender) -> Result<(), ControlSendError> {
        for frame in std::mem::take(&mut self.unsent) {
            control.try_send(frame)?;
        }
        self.control = Some(control);
        self.pour(handle)
    }

    /// Sends a frame, or lets it wait.
    pub(super) fn send(&mut self, handle: &Handle, frame: Frame) -> Result<(), ControlSendError> {
        match (&self.control, frame) {
            (_, frame @ Frame::Items(_)) => {
                if self.floods.len() >= FLOODS_MAX {
                    return Err(ControlSendError::Full);
                }
                self.floods.push_back(frame);
                self.pour(handle)
            }
            (Some(control), frame) => control.try_send(frame.to_bytes().into()),
            (None, frame) if self.unsent.len() < UNSENT_FRAMES_MAX => {
                self.unsent.push(frame.to_bytes().into());
                Ok(())
            }
            (None, _) => Err(ControlSendError::Full),
        }
    }

    /// Goes on with the floods after a wait for room.
    pub(super) fn go_on(&mut self, handle: &Handle, in_time: bool) -> Result<(), ControlSendError> {
        self.awaits_room = false;
        if in_time {
            self.pour(handle)
        } else {
            Err(ControlSendError::Full)
        }
    }

    /// Sends floods while there is room, and has somebody wait for more.
    fn pour(&mut self, handle: &Handle) -> Result<(), ControlSendError> {
        let Some(control) = &self.control else {
            return Ok(());
        };
        while control.has_room()
            && let Some(frame) = self.floods.pop_front()
        {
            control.try_send(frame.to_bytes().into())?;
        }
        if control.has_ended() {
            return Err(ControlSendError::Ended);
        }
        if !self.floods.is_empty() && !self.awaits_room {
            self.awaits_room = true;
            let waiting = wait_for_room(handle.clone(), self.connection.id(), control.clone());
            handle.runtime().spawn(waiting);
        }
        Ok(())
    }
}

async fn wait_for_room(handle: Handle, conn: ConnId, control: ControlSender) {
    let in_time = timeout(ROOM_TIMEOUT, control.room()).await.is_ok();
    // A sender that is kept would keep the stream from ending.
    drop(control);
    handle.send(Message::Room { conn, in_time }).await;
}

#[cfg(test)]
mod tests;
