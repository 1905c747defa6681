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
use crate::cert::{MESH_NAME_BYTES_MAX, Membership, MeshRoot};
use crate::{Address, NodeId, PeerId, UnixMillis};

/// What every ticket starts with; the digit is the format's version.
pub const TICKET_PREFIX: &str = "hft1-";
/// What every credential starts with.
pub const CREDENTIAL_PREFIX: &str = "hfc1-";
/// The longest ticket, in characters.
pub const TICKET_CHARS_MAX: usize = 2048;
/// The longest credential, in characters.
pub const CREDENTIAL_CHARS_MAX: usize = 4096;
/// The most addresses in a ticket.
pub const TICKET_ADDRESSES_MAX: usize = 8;
/// How many bytes of a BLAKE3 digest guard against typing mistakes.
const CHECKSUM_BYTES: usize = 4;

/// Why a text is not a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not start like one.
    #[error("expected a text that starts with {0}")]
    NotATicket(&'static str),
    /// It was cut or mistyped.
    #[error("the text is damaged (its checksum does not match): copy it again, whole")]
    Damaged,
    /// It comes from a newer version.
    #[error("the text is whole but cannot be read: {0}")]
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
    /// Returns the hash under which the issuer keeps the ticket. [TICKET-3]
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        blake3::derive_key("hyperfabric ticket secret v1", &self.0)
    }
}

wire_map! {
    /// The fields of a ticket as they are encoded. [TICKET-2]
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

wire_map! {
    /// The fields of a credential as they are encoded. [TICKET-5]
    pub struct CredentialBody {
        /// The mesh authority's key; absent in an open mesh.
        0 => pub authority: Option<PeerId>,
        /// The mesh's name.
        1 => pub mesh_name: Text<MESH_NAME_BYTES_MAX>,
        /// The membership.
        2 => pub membership: Membership,
        /// Who gave it.
        3 => pub issuer: Option<PeerId>,
        /// Where the issuer can be dialled.
        4 => pub addresses: List<Address, TICKET_ADDRESSES_MAX>,
    }
}

/// A membership with the mesh that it is for, in one line of text: what `mesh admit` prints, and the form in which
/// a peer keeps its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential(pub CredentialBody);

impl Credential {
    /// Puts a credential together.
    #[must_use]
    pub fn new(root: &MeshRoot, membership: Membership, issuer: Option<(PeerId, Vec<Address>)>) -> Self {
        let authority = match root {
            MeshRoot::Closed { authority, .. } => Some(*authority),
            MeshRoot::Open { .. } => None,
        };
        let (issuer, addresses) = issuer.map_or((None, Vec::new()), |(peer, list)| (Some(peer), list));
        Self(CredentialBody {
            authority,
            mesh_name: Text::truncating(root.name()),
            membership,
            issuer,
            addresses: List::truncating(addresses),
        })
    }

    /// Returns the mesh.
    #[must_use]
    pub fn root(&self) -> MeshRoot {
        let name = String::from(&*self.0.mesh_name);
        match self.0.authority {
            Some(authority) => MeshRoot::Closed { authority, name },
            None => MeshRoot::Open { name },
        }
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_text(f, CREDENTIAL_PREFIX, cbor::to_bytes(&self.0))
    }
}

impl FromStr for Credential {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        Ok(Self(cbor::from_bytes(&read_text(
            text,
            CREDENTIAL_PREFIX,
            CREDENTIAL_CHARS_MAX,
        )?)?))
    }
}

// [TICKET-1]
fn write_text(f: &mut fmt::Formatter<'_>, prefix: &str, mut bytes: Vec<u8>) -> fmt::Result {
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum);
    write!(f, "{prefix}{}", data_encoding::BASE64URL_NOPAD.encode(&bytes))
}

fn read_text(text: &str, prefix: &'static str, max: usize) -> Result<Vec<u8>, TicketError> {
    let text = text.trim();
    let encoded = text.strip_prefix(prefix).ok_or(TicketError::NotATicket(prefix))?;
    if text.len() > max {
        return Err(TicketError::Damaged);
    }
    let mut bytes = data_encoding::BASE64URL_NOPAD
        .decode(encoded.as_bytes())
        .map_err(|_| TicketError::Damaged)?;
    let (body, sum) = bytes
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or(TicketError::Damaged)?;
    if checksum(body) != *sum {
        return Err(TicketError::Damaged);
    }
    bytes.truncate(bytes.len() - CHECKSUM_BYTES);
    Ok(bytes)
}

// [TICKET-4]
fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut out = [0; CHECKSUM_BYTES];
    out.copy_from_slice(&blake3::hash(body).as_bytes()[..CHECKSUM_BYTES]);
    out
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_text(f, TICKET_PREFIX, cbor::to_bytes(&self.0))
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        Ok(Self(cbor::from_bytes(&read_text(
            text,
            TICKET_PREFIX,
            TICKET_CHARS_MAX,
        )?)?))
    }
}

#[cfg(test)]
mod tests;
