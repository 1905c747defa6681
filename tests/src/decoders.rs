//! Every decoder that reads what a stranger sent, as one function each: bytes in, no panic out.
//!
//! The fuzz targets and the replay of their corpus call the same functions. What decodes must also survive its own
//! encoding: a value that reads back differently would let two peers disagree about it.

use std::fmt::Debug;
use std::str::FromStr;

use hyperfabric_protocol::admission::{Grant, TicketRecord};
use hyperfabric_protocol::cbor::{self, Value};
use hyperfabric_protocol::cert::{Certificate, Delegation, Membership};
use hyperfabric_protocol::flood::content::RecordBody;
use hyperfabric_protocol::flood::{Item, Revocation};
use hyperfabric_protocol::frame::Frame;
use hyperfabric_protocol::ticket::{Credential, Ticket};
use hyperfabric_protocol::transfer::Offer;
use hyperfabric_protocol::{Address, NodeId, PeerId, Signed};

/// A decoder; its fuzz target and the folder of its corpus have the same name.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// The name.
    pub name: &'static str,
    /// Reads bytes and checks what it finds.
    pub read: fn(&[u8]),
}

/// All of them.
pub const DECODERS: [Decoder; 6] = [
    Decoder {
        name: "certificate",
        read: certificate,
    },
    Decoder {
        name: "flood",
        read: flood,
    },
    Decoder {
        name: "frame",
        read: frame,
    },
    Decoder {
        name: "journal",
        read: journal,
    },
    Decoder {
        name: "offer",
        read: value::<Offer>,
    },
    Decoder {
        name: "text",
        read: text,
    },
];

/// Runs one decoder.
///
/// # Panics
/// When there is none of this name, or when the decoder is broken.
pub fn run(name: &str, bytes: &[u8]) {
    let found = DECODERS.iter().find(|decoder| decoder.name == name);
    let decoder = found.unwrap_or_else(|| panic!("no decoder is called {name}"));
    (decoder.read)(bytes);
}

/// A control frame, without its length.
fn frame(bytes: &[u8]) {
    if let Ok(Some(frame)) = Frame::from_bytes(bytes) {
        assert_eq!(Frame::from_bytes(&frame.to_bytes()), Ok(Some(frame)));
    }
}

/// What stands in a peer's TLS leaf, and the objects inside it.
fn certificate(bytes: &[u8]) {
    value::<Membership>(bytes);
    value::<Certificate>(bytes);
    value::<Delegation>(bytes);
}

/// What floods: the signed envelope, the item in it, and what items say.
fn flood(bytes: &[u8]) {
    if let Ok(signed) = Signed::from_bytes(bytes) {
        assert_eq!(signed.as_bytes(), bytes);
    }
    value::<Item>(bytes);
    value::<RecordBody>(bytes);
    value::<Revocation>(bytes);
}

/// What a peer keeps for itself, and reads back after anything may have happened to its disk.
fn journal(bytes: &[u8]) {
    value::<TicketRecord>(bytes);
    value::<Grant>(bytes);
}

/// What people type or paste.
fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    reads_its_own_text::<Ticket>(text);
    reads_its_own_text::<Credential>(text);
    reads_its_own_text::<NodeId>(text);
    reads_its_own_text::<PeerId>(text);
    reads_its_own_text::<Address>(text);
}

fn value<T: Value + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = cbor::from_bytes::<T>(bytes) {
        assert_eq!(
            cbor::from_bytes::<T>(&cbor::to_bytes(&value)).as_ref(),
            Ok(&value)
        );
    }
}

fn reads_its_own_text<T: FromStr + ToString + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string();
        assert!(
            again.parse::<T>().is_ok_and(|read| read == value),
            "{again} does not read back as {value:?}"
        );
    }
}
