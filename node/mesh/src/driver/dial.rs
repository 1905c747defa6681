//! Dials a peer at several addresses, staggered, and takes the first that answers.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyperfabric_protocol::fabric::Purpose as Use;
use hyperfabric_protocol::{Address, PeerId};

use super::{Handle, Message};
use crate::address::PeerAddress;
use crate::connection::Connection;
use crate::endpoint::DialError;
use crate::tls::Purpose;

/// The next address is tried this long after the one before, like RFC 8305's connection attempt delay.
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses beyond these are not tried.
const ADDRESSES_MAX: usize = 8;

pub(super) async fn run(handle: Handle, peer: PeerId, addresses: Vec<Address>, purpose: Use) {
    let result = first(&handle, peer, &addresses, purpose).await;
    // A loop that has ended needs no answer.
    handle
        .send(Message::Dialled {
            peer,
            purpose,
            result,
        })
        .await;
}

async fn first(
    handle: &Handle,
    peer: PeerId,
    addresses: &[Address],
    purpose: Use,
) -> Result<(Connection, Address), DialError> {
    let alpn = match purpose {
        Use::Prompt => Purpose::Prompt,
        Use::Join => Purpose::Join,
    };
    let sockets = addresses.iter().filter_map(|address| {
        let parsed: Result<PeerAddress, _> = address.as_str().parse();
        match parsed {
            Ok(parsed) if parsed.peer.is_none_or(|p| p == peer) => Some((address.clone(), parsed.socket)),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%peer, %address, %error, "an address that cannot be dialled");
                None
            }
        }
    });
    let mut attempts: FuturesUnordered<_> = sockets
        .take(ADDRESSES_MAX)
        .zip(0u32..)
        .map(|((address, socket), index)| async move {
            tokio::time::sleep(STAGGER * index).await;
            let connection = handle.endpoint().dial(peer, socket, alpn).await?;
            Ok((connection, address))
        })
        .collect();
    let mut worst = None;
    while let Some(result) = attempts.next().await {
        match result {
            Ok(connected) => return Ok(connected),
            // A refusal says more than silence at another address.
            Err(
                error @ (DialError::Refused { .. }
                | DialError::Untrusted { .. }
                | DialError::FalseWelcome { .. }),
            ) => worst = Some(error),
            Err(error) => worst = worst.or(Some(error)),
        }
    }
    Err(worst.unwrap_or(DialError::NoAddress))
}
