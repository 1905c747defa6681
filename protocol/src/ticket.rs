//! Tickets: an invitation in one line of text.
//!
//! A ticket names the mesh, the peer that issued it and where that peer can be dialled, and carries a secret
//! that the issuer keeps only as a hash. Whoever shows the secret to the issuer gets a certificate for the
//! ticket's name. A checksum tells a mistyped ticket from a refused one. [TICKET-1..5]

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::cbor::{self, DecodeError, List, Text, wire_map};
use crate::cert::{MESH_NAME_BYTES_MAX, MeshRoot};
use crate::{Address, NodeId, PeerId, UnixMillis};

/// What every ticket starts with; the digit is the format's version.
pub const TICKET_PREFIX: &str = "hft1-";
/// The longest ticket, in characters.
pub const TICKET_CHARS_MAX: usize = 2048;
/// The most addresses in a ticket.
pub const TICKET_ADDRESSES_MAX: usize = 8;
/// How many bytes of a BLAKE3 digest guard against typing mistakes.
const CHECKSUM_BYTES: usize = 4;

/// Why a text is not a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not start like one.
    #[error("not a ticket: a ticket starts with {TICKET_PREFIX}")]
    NotATicket,
    /// It was cut or mistyped.
    #[error("the ticket is damaged (its checksum does not match): copy it again, whole")]
    Damaged,
    /// It comes from a newer version.
    #[error("the ticket cannot be read: {0}")]
    Malformed(#[from] DecodeError),
}

/// The secret of a ticket; compared by its hash only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TicketSecret(pub [u8; 16]);

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketSecret")
    }
}

impl TicketSecret {
    /// Returns the hash under which the issuer keeps the ticket.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        blake3::derive_key("hyperfabric ticket secret v1", &self.0)
    }
}

wire_map! {
    /// The fields of a ticket as they are encoded.
    pub struct TicketBody {
        /// The mesh authority's key.
        0 => pub authority: PeerId,
        /// The mesh's name.
        1 => pub mesh_name: Text<MESH_NAME_BYTES_MAX>,
        /// Who issued it, and alone can redeem it.
        2 => pub issuer: PeerId,
        /// Where the issuer can be dialled.
        3 => pub addresses: List<Address, TICKET_ADDRESSES_MAX>,
        /// The secret.
        4 => pub secret: [u8; 16],
        /// The name that it grants.
        5 => pub name: NodeId,
        /// When it runs out.
        6 => pub expires: UnixMillis,
    }
}

/// An invitation to a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket(pub TicketBody);

impl Ticket {
    /// Returns the mesh that the ticket leads to.
    #[must_use]
    pub fn root(&self) -> MeshRoot {
        MeshRoot::Closed {
            authority: self.0.authority,
            name: String::from(&*self.0.mesh_name),
        }
    }

    /// Returns the secret.
    #[must_use]
    pub const fn secret(&self) -> TicketSecret {
        TicketSecret(self.0.secret)
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut out = [0; CHECKSUM_BYTES];
    out.copy_from_slice(&blake3::hash(body).as_bytes()[..CHECKSUM_BYTES]);
    out
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = cbor::to_bytes(&self.0);
        bytes.extend_from_slice(&checksum(&bytes));
        write!(
            f,
            "{TICKET_PREFIX}{}",
            data_encoding::BASE64URL_NOPAD.encode(&bytes)
        )
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let text = text.trim();
        let encoded = text
            .strip_prefix(TICKET_PREFIX)
            .ok_or(TicketError::NotATicket)?;
        if text.len() > TICKET_CHARS_MAX {
            return Err(TicketError::Damaged);
        }
        let bytes: Vec<u8> = data_encoding::BASE64URL_NOPAD
            .decode(encoded.as_bytes())
            .map_err(|_| TicketError::Damaged)?;
        let (body, sum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(TicketError::Damaged)?;
        if checksum(body) != *sum {
            return Err(TicketError::Damaged);
        }
        Ok(Self(cbor::from_bytes(body)?))
    }
}
