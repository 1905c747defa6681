//! QUIC's parameters, by purpose and side.
//!
//! The accepting side must choose them before it knows the ALPN. So a dialler marks the purpose in the destination connection id of its
//! first packet, which is random otherwise: the mark only chooses windows, and a connection whose mark promised more than its ALPN is
//! closed. A dialler without a mark gets the settings of a prompt connection.

use std::sync::Arc;
use std::time::Duration;

use hyperfabric_protocol::SigningKey;
use quinn::{
    ConnectionId, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};

use super::congestion::BulkCongestion;
use super::limits::HANDSHAKES_MAX;
use super::reset;
use crate::tls::{Purpose, ServerCrypto};

/// The smallest `mtu_max`: what every QUIC path carries.
pub const MTU_MAX_MIN: u16 = 1_200;

/// The default upper bound of path MTU discovery. Above some 6,550 bytes ten segments no longer fit one segmented send.
pub const MTU_MAX_DEFAULT: u16 = 6_000;

/// A peer that answers nothing for this long is gone. [QUIC-12]
const IDLE_TIMEOUT_MS: u32 = 10_000;
/// A restarted peer must be noticed within 2 s, and only a packet can make it answer. An idle node does little else than
/// send these packets, so the sides do not use the same time: each packet and its acknowledgement start both clocks again,
/// and with equal ones both sides would send, each time. [QUIC-12]
const KEEP_ALIVE_DIALLER: Duration = Duration::from_millis(1_300);
/// Only when the dialler is silent, or its packets take long.
const KEEP_ALIVE_ACCEPTOR: Duration = Duration::from_millis(1_700);
/// Keeps NAT bindings and the idle timer at bay while the other side hashes or thinks.
const KEEP_ALIVE_OTHER: Duration = Duration::from_secs(3);

/// Streams that a peer may have open on a prompt connection; further ones wait there until others end. QUIC keeps two places of
/// 17 bytes for each from the start, in tables whose size is a power of two and that are filled to seven eighths: 96, and a few of this
/// peer's own, take 4 KiB where 256 take 17. [QUIC-9]
pub(crate) const PROMPT_STREAMS_MAX: u32 = 96;
/// Streams of each direction type that the sender may have open on a bulk connection.
pub(crate) const BULK_STREAMS_MAX: u32 = 32;

/// What is sent on a prompt connection is small, and this times [`PROMPT_STREAMS_MAX`] is what a hostile peer could make us hold.
const PROMPT_STREAM_WINDOW: u32 = 128 * 1024;
/// That sum, so that streams which nobody reads cannot stall the others.
const PROMPT_WINDOW: u32 = PROMPT_STREAMS_MAX * PROMPT_STREAM_WINDOW;
const PROMPT_SEND_WINDOW: u64 = 4 * 1024 * 1024;
/// A bandwidth-delay product of 1 Gbit/s at 64 ms.
const BULK_STREAM_WINDOW: u32 = 8 * 1024 * 1024;
const BULK_WINDOW: u32 = 16 * 1024 * 1024;
const BULK_SEND_WINDOW: u64 = 16 * 1024 * 1024;
/// Tickets, certificates and refusals.
const JOIN_WINDOW: u32 = 256 * 1024;

/// Out of first packets, before a connection exists.
const INCOMING_BUFFER_BYTES: u64 = 16 * 1024;
const INCOMING_BUFFERS_BYTES: u64 = 4 * 1024 * 1024;

const DIAL_CID_BYTES: usize = 16;
const MARK_BYTES: usize = 3;

/// The configurations of an endpoint, made once.
pub(super) struct Transports {
    prompt: [Arc<TransportConfig>; 2],
    bulk: [Arc<TransportConfig>; 2],
    join: [Arc<TransportConfig>; 2],
}

const DIALLING: usize = 0;
const ACCEPTING: usize = 1;

impl Transports {
    pub(super) fn new(mtu_max: u16) -> Self {
        let both = |purpose| {
            [
                Arc::new(transport(purpose, DIALLING, mtu_max)),
                Arc::new(transport(purpose, ACCEPTING, mtu_max)),
            ]
        };
        Self {
            prompt: both(Purpose::Prompt),
            bulk: both(Purpose::Bulk),
            join: both(Purpose::Join),
        }
    }

    fn of(&self, purpose: Purpose) -> &[Arc<TransportConfig>; 2] {
        match purpose {
            Purpose::Prompt => &self.prompt,
            Purpose::Bulk => &self.bulk,
            Purpose::Join => &self.join,
        }
    }

    pub(super) fn dialling(&self, purpose: Purpose) -> Arc<TransportConfig> {
        Arc::clone(&self.of(purpose)[DIALLING])
    }

    /// The endpoint's default for connections without a mark.
    pub(super) fn accepting(&self, crypto: &Arc<ServerCrypto>) -> ServerConfig {
        self.accepting_for(crypto, Purpose::Prompt)
    }

    pub(super) fn accepting_for(&self, crypto: &Arc<ServerCrypto>, purpose: Purpose) -> ServerConfig {
        let mut config = ServerConfig::with_crypto(Arc::clone(crypto) as Arc<_>);
        config
            .transport_config(Arc::clone(&self.of(purpose)[ACCEPTING]))
            .max_incoming(HANDSHAKES_MAX)
            .incoming_buffer_size(INCOMING_BUFFER_BYTES)
            .incoming_buffer_size_total(INCOMING_BUFFERS_BYTES);
        config
    }
}

fn transport(purpose: Purpose, side: usize, mtu_max: u16) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(mtu_max);
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(mtu))
        .keep_alive_interval(Some(match (purpose, side) {
            (Purpose::Prompt, DIALLING) => KEEP_ALIVE_DIALLER,
            (Purpose::Prompt, _) => KEEP_ALIVE_ACCEPTOR,
            (Purpose::Bulk | Purpose::Join, _) => KEEP_ALIVE_OTHER,
        }));
    // The one unidirectional stream that a dialler takes is the acceptor's welcome.
    let (bidi, uni) = match (purpose, side) {
        (Purpose::Prompt, DIALLING) => (PROMPT_STREAMS_MAX, 1),
        (Purpose::Prompt, _) => (PROMPT_STREAMS_MAX, 0),
        (Purpose::Bulk | Purpose::Join, DIALLING) => (0, 1),
        (Purpose::Bulk, _) => (BULK_STREAMS_MAX, BULK_STREAMS_MAX),
        (Purpose::Join, _) => (1, 0),
    };
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(bidi))
        .max_concurrent_uni_streams(VarInt::from_u32(uni));
    let (stream, connection, send) = match purpose {
        Purpose::Prompt => (PROMPT_STREAM_WINDOW, PROMPT_WINDOW, PROMPT_SEND_WINDOW),
        Purpose::Bulk => (BULK_STREAM_WINDOW, BULK_WINDOW, BULK_SEND_WINDOW),
        Purpose::Join => (JOIN_WINDOW, JOIN_WINDOW, u64::from(JOIN_WINDOW)),
    };
    config
        .stream_receive_window(VarInt::from_u32(stream))
        .receive_window(VarInt::from_u32(connection))
        .send_window(send);
    match purpose {
        Purpose::Bulk => {
            config.congestion_controller_factory(Arc::new(BulkCongestion::default()));
        }
        // What is sent here fits a datagram or two. With segmentation offload each connection keeps a buffer for ten of them, 14 KiB.
        Purpose::Prompt | Purpose::Join => {
            config.enable_segmentation_offload(false);
        }
    }
    config
}

pub(super) fn endpoint_config(identity: &SigningKey, mtu_max: u16) -> EndpointConfig {
    let mut config = EndpointConfig::new(reset::ResetKey::derive(identity));
    config
        .cid_generator(reset::connection_ids(identity))
        .supported_versions(vec![1]);
    config
        .max_udp_payload_size(mtu_max)
        .expect("at least 1,200 bytes");
    config
}

fn mark(purpose: Purpose) -> [u8; MARK_BYTES] {
    match purpose {
        Purpose::Prompt => *b"hfp",
        Purpose::Bulk => *b"hfb",
        Purpose::Join => *b"hfj",
    }
}

/// Draws the destination connection id of a first packet: random, then the mark of the purpose. [QUIC-2]
pub(super) fn dial_cid(purpose: Purpose) -> ConnectionId {
    let mut bytes = [0; DIAL_CID_BYTES];
    let (random, marked) = bytes.split_at_mut(DIAL_CID_BYTES - MARK_BYTES);
    // RFC 9000, section 7.2 wants it unpredictable; without entropy no handshake would succeed either.
    let _ = getrandom::fill(random);
    marked.copy_from_slice(&mark(purpose));
    ConnectionId::new(&bytes)
}

/// Reads the mark of a first packet.
pub(super) fn marked_purpose(cid: &ConnectionId) -> Option<Purpose> {
    if cid.len() != DIAL_CID_BYTES {
        return None;
    }
    Purpose::ALL
        .into_iter()
        .find(|purpose| cid.ends_with(&mark(*purpose)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialled_connection_id_tells_its_purpose_and_differs_each_time() {
        for purpose in Purpose::ALL {
            let first = dial_cid(purpose);
            assert_eq!(marked_purpose(&first), Some(purpose));
            assert_ne!(first, dial_cid(purpose));
        }
        assert_eq!(marked_purpose(&ConnectionId::new(&[7; 16])), None);
        assert_eq!(marked_purpose(&ConnectionId::new(b"hfb")), None);
    }
}
