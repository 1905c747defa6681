//! What goes over the API's socket: a u32 length (big endian) and as many bytes of JSON, with one descriptor beside the
//! first bytes of a request. Both ends use these functions, the client on a blocking socket, the daemon on one that is
//! ready.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::model::{Accepted, SendOrder};

/// The largest frame, without its length, in bytes.
pub(crate) const FRAME_BYTES_MAX: usize = 64 * 1024;
/// The size of a frame's length, in bytes.
pub(crate) const LENGTH_BYTES: usize = 4;

/// What a client asks over the socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SocketRequest {
    /// Send the file or folder whose descriptor comes along.
    Send(SendOrder),
}

/// What the daemon answers over the socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SocketReply {
    /// The transfer has begun.
    Accepted(Accepted),
    /// It has not.
    Error(ApiError),
}

/// Puts the length before a message.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - LENGTH_BYTES;
    let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "the request is too large");
    if length > FRAME_BYTES_MAX {
        return Err(too_large());
    }
    let length = u32::try_from(length).map_err(|_| too_large())?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Reads a frame's length; `None` when it is beyond the limit.
pub(crate) fn decode_length(bytes: [u8; LENGTH_BYTES]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes))
        .ok()
        .filter(|length| *length <= FRAME_BYTES_MAX)
}

/// Sends the first bytes of a frame together with a descriptor; returns how many went out.
pub(crate) fn send_with_descriptor(
    socket: impl AsFd,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
    debug_assert!(fits, "the space is for one descriptor");
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives bytes and any descriptor that came with them; 0 bytes are the end.
///
/// # Errors
/// `InvalidData` when more than one descriptor came; the kernel has closed the others then.
pub(crate) fn receive_with_descriptor(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more than one descriptor came",
        ));
    }
    Ok((received.bytes, descriptors.pop()))
}
