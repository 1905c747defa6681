//! A peer's small records in the store, in the wire's CBOR.

use hyperfabric_protocol::admission::{Grant, TicketRecord};
use hyperfabric_protocol::cbor::{self, Value};
use hyperfabric_protocol::{Address, PeerId, Serial, Signed};

use crate::store::{Store, StoreError, Table};

/// Keys of grants begin with this, to tell them from what else may be kept beside them.
const GRANT: u8 = b'g';
/// Peers remembered for the next start: more than a peer's neighbors, few enough to try.
const KNOWN_PEERS_MAX: usize = 64;
/// Addresses remembered for each.
const ADDRESSES_MAX: usize = 8;
/// The setting that holds the UDP port under which others know this peer.
const LISTEN_PORT: &[u8] = b"listen_port";

/// A peer that can be contacted at the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub addresses: Vec<Address>,
    /// Whether a connection to it is to be kept in any case.
    pub bootstrap: bool,
}

fn decode_all<T: Value>(records: Vec<(Vec<u8>, Vec<u8>)>, what: &'static str) -> Result<Vec<T>, StoreError> {
    records
        .into_iter()
        .map(|(_, value)| cbor::from_bytes(&value).map_err(|_| StoreError::Record(what)))
        .collect()
}

pub(super) fn tickets(store: &Store) -> Result<Vec<TicketRecord>, StoreError> {
    decode_all(store.list(Table::Tickets)?, "ticket")
}

pub(super) fn put_ticket(store: &Store, ticket: &TicketRecord) -> Result<(), StoreError> {
    store.put(Table::Tickets, &ticket.secret_hash, &cbor::to_bytes(ticket))
}

pub(super) fn delete_ticket(store: &Store, hash: &[u8; 32]) -> Result<(), StoreError> {
    store.delete(Table::Tickets, hash)
}

fn grant_key(grant: &Grant) -> Vec<u8> {
    [&[GRANT], grant.name.as_str().as_bytes()].concat()
}

pub(super) fn grants(store: &Store) -> Result<Vec<Grant>, StoreError> {
    let mut records = store.list(Table::Admissions)?;
    records.retain(|(key, _)| key.first() == Some(&GRANT));
    decode_all(records, "grant")
}

pub(super) fn put_grant(store: &Store, grant: &Grant) -> Result<(), StoreError> {
    store.put(Table::Admissions, &grant_key(grant), &cbor::to_bytes(grant))
}

pub(super) fn revocations(store: &Store) -> Result<Vec<Signed>, StoreError> {
    let records = store.list(Table::Revocations)?;
    records
        .into_iter()
        .map(|(_, value)| Signed::from_bytes(value).map_err(|_| StoreError::Record("revocation")))
        .collect()
}

pub(super) fn put_revocation(store: &Store, serial: &Serial, item: &Signed) -> Result<(), StoreError> {
    store.put(Table::Revocations, serial.as_bytes(), item.as_bytes())
}

type AddressList = cbor::List<Address, ADDRESSES_MAX>;

pub(super) fn known_peers(store: &Store) -> Result<Vec<KnownPeer>, StoreError> {
    let records = store.list(Table::AddressBook)?;
    let peers = records.into_iter().take(KNOWN_PEERS_MAX).map(|(key, value)| {
        let peer = key
            .try_into()
            .map(PeerId)
            .map_err(|_| StoreError::Record("peer"))?;
        let addresses: AddressList = cbor::from_bytes(&value).map_err(|_| StoreError::Record("address"))?;
        Ok(KnownPeer {
            peer,
            addresses: addresses.0,
            bootstrap: false,
        })
    });
    peers.collect()
}

/// Replaces the address book.
pub(super) fn put_known_peers(store: &Store, peers: &[(PeerId, Vec<Address>)]) -> Result<(), StoreError> {
    let keep = &peers[..peers.len().min(KNOWN_PEERS_MAX)];
    let old = store.list(Table::AddressBook)?;
    let new: Vec<(Vec<u8>, Vec<u8>)> = keep
        .iter()
        .map(|(peer, addresses)| {
            (
                peer.0.to_vec(),
                cbor::to_bytes(&AddressList::truncating(addresses.clone())),
            )
        })
        .collect();
    if old == new {
        return Ok(());
    }
    store.put_all(Table::AddressBook, &new)?;
    for (key, _) in old {
        if !new.iter().any(|(kept, _)| *kept == key) {
            store.delete(Table::AddressBook, &key)?;
        }
    }
    Ok(())
}

pub(super) fn listen_port(store: &Store) -> Result<Option<u16>, StoreError> {
    let Some(value) = store.get(Table::Settings, LISTEN_PORT)? else {
        return Ok(None);
    };
    let bytes = value.try_into().map_err(|_| StoreError::Record("port"))?;
    Ok(Some(u16::from_be_bytes(bytes)))
}

pub(super) fn put_listen_port(store: &Store, port: u16) -> Result<(), StoreError> {
    if listen_port(store)? == Some(port) {
        return Ok(());
    }
    store.put(Table::Settings, LISTEN_PORT, &port.to_be_bytes())
}
