//! What a peer of a mesh keeps on its disk: who it is, where it belongs, whom it has admitted.
//!
//! Keys and certificates are files of their own, replaced atomically and readable by their owner alone; tickets,
//! grants, revocations, the address book and the chosen ports are records of the store. Both the node and the
//! bootstrap peer start from a [`StateFolder`].

mod files;
mod records;

use std::io;
use std::path::{Path, PathBuf};

use hyperfabric_protocol::admission::StateChange;
use hyperfabric_protocol::cert::{Admitter, Delegation, Membership, MeshRoot};
use hyperfabric_protocol::fabric::FabricConfig;
use hyperfabric_protocol::ticket::{Credential, TicketError};
use hyperfabric_protocol::{Address, PeerId, Serial, Signed, SigningKey, UnixMillis};

pub use files::{read_private, replace};
pub use records::KnownPeer;

use crate::store::{Store, StoreError};

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder was never initialised.
    #[error("{} is not initialised: run `hyperfabric init` first", .0.display())]
    NotInitialised(PathBuf),
    /// The folder is initialised already.
    #[error("{} is initialised already: its key stays as it is", .0.display())]
    Initialised(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot use {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A key file does not hold a key.
    #[error("{} does not hold a key: restore it from a backup, or start over in another folder", .0.display())]
    BadKey(PathBuf),
    /// A key file can be read by others.
    #[error("{} can be read by others: run `chmod 600` on it", .0.display())]
    Exposed(PathBuf),
    /// The certificate file does not hold a certificate.
    #[error("{} does not hold a certificate: join the mesh again", .path.display())]
    BadCredential {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TicketError,
    },
    /// The peer is in a mesh already.
    #[error("this peer is a member of mesh {0:?} already: use another --data-dir for another mesh")]
    AlreadyMember(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A peer's folder on the disk.
#[derive(Clone, Debug)]
pub struct StateFolder {
    path: PathBuf,
}

impl StateFolder {
    /// Names a folder, which need not exist.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns where the private key is.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.path.join("key")
    }

    /// Returns where the peer's certificate is.
    #[must_use]
    pub fn certificate_file(&self) -> PathBuf {
        self.path.join("certificate")
    }

    /// Returns where the authority's private key is, on the peer that made the mesh. It may be moved offline.
    #[must_use]
    pub fn authority_file(&self) -> PathBuf {
        self.path.join("mesh/authority.key")
    }

    /// Returns where the delegation that makes this peer an admitter is.
    #[must_use]
    pub fn delegation_file(&self) -> PathBuf {
        self.path.join("mesh/delegation")
    }

    /// Returns where the store is.
    #[must_use]
    pub fn store_file(&self) -> PathBuf {
        self.path.join("state.redb")
    }

    /// Refuses a folder that has a key.
    ///
    /// # Errors
    /// [`StateError::Initialised`].
    pub fn check_uninitialised(&self) -> Result<(), StateError> {
        if self.key_file().exists() {
            return Err(StateError::Initialised(self.path.clone()));
        }
        Ok(())
    }

    /// Makes the folder and a new private key.
    ///
    /// # Errors
    /// [`StateError::Initialised`] when there is a key.
    pub fn init(&self) -> Result<SigningKey, StateError> {
        files::make_private_folder(&self.path)?;
        if self.key_file().exists() {
            return Err(StateError::Initialised(self.path.clone()));
        }
        let key = random_key(&self.key_file())?;
        files::write_key(&self.key_file(), &key)?;
        Ok(key)
    }

    /// Reads the private key.
    ///
    /// # Errors
    /// [`StateError::NotInitialised`] when there is none, and what else is wrong with it.
    pub fn key(&self) -> Result<SigningKey, StateError> {
        if !self.key_file().exists() {
            return Err(StateError::NotInitialised(self.path.clone()));
        }
        files::read_key(&self.key_file())
    }

    /// Reads the certificate, when there is one.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn credential(&self) -> Result<Option<Credential>, StateError> {
        let path = self.certificate_file();
        match std::fs::read_to_string(&path) {
            Ok(text) => match text.parse() {
                Ok(credential) => Ok(Some(credential)),
                Err(source) => Err(StateError::BadCredential { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::File { path, source }),
        }
    }

    /// Writes the certificate.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_credential(&self, credential: &Credential) -> Result<(), StateError> {
        replace(&self.certificate_file(), format!("{credential}\n").as_bytes())
    }

    /// Makes a new mesh, with this peer as its first admitter and a member under `name`.
    ///
    /// # Errors
    /// [`StateError::AlreadyMember`], and when files cannot be written.
    pub fn create_mesh(
        &self,
        mesh: &str,
        name: hyperfabric_protocol::NodeId,
        now: UnixMillis,
    ) -> Result<MeshRoot, StateError> {
        let key = self.key()?;
        self.check_no_mesh()?;
        files::make_private_folder(&self.path.join("mesh"))?;
        let path = self.authority_file();
        let authority = if path.exists() {
            files::read_key(&path)?
        } else {
            random_key(&path)?
        };
        files::write_key(&path, &authority)?;
        let root = MeshRoot::Closed {
            authority: authority.peer_id(),
            name: mesh.to_owned(),
        };
        let valid = hyperfabric_protocol::cert::DELEGATION_VALIDITY;
        let delegation = Delegation::issue(&authority, mesh, key.peer_id(), now, valid);
        replace(&self.delegation_file(), delegation.as_bytes())?;
        let admitter = Admitter {
            key: key.clone(),
            delegation: Some(delegation),
        };
        let serial = Serial::new(now, random_bytes(&path)?);
        let validity = hyperfabric_protocol::cert::CERTIFICATE_VALIDITY;
        let membership = admitter.admit(&root, key.peer_id(), name, serial, now, validity);
        self.set_credential(&Credential::new(&root, membership, None))?;
        Ok(root)
    }

    /// Makes this peer a member of an open mesh.
    ///
    /// # Errors
    /// [`StateError::AlreadyMember`], and when files cannot be written.
    pub fn join_open_mesh(
        &self,
        mesh: &str,
        name: hyperfabric_protocol::NodeId,
        now: UnixMillis,
    ) -> Result<MeshRoot, StateError> {
        let key = self.key()?;
        self.check_no_mesh()?;
        let root = MeshRoot::Open {
            name: mesh.to_owned(),
        };
        let membership = Membership::open(&root, &key, name, now);
        self.set_credential(&Credential::new(&root, membership, None))?;
        Ok(root)
    }

    /// Refuses when the peer is in a mesh.
    ///
    /// # Errors
    /// [`StateError::AlreadyMember`].
    pub fn check_no_mesh(&self) -> Result<(), StateError> {
        match self.credential()? {
            Some(credential) => Err(StateError::AlreadyMember(credential.root().name().to_owned())),
            None => Ok(()),
        }
    }

    /// Reads the right to admit others, when this peer has it. An authority whose key is here extends a delegation
    /// that is about to end.
    ///
    /// # Errors
    /// When files are there and cannot be used.
    pub fn admitter(&self, key: &SigningKey) -> Result<Option<Admitter>, StateError> {
        let path = self.delegation_file();
        match std::fs::read(&path) {
            Ok(bytes) => {
                let delegation = Signed::from_bytes(bytes).map_err(|source| StateError::BadCredential {
                    path,
                    source: source.into(),
                })?;
                Ok(Some(Admitter {
                    key: key.clone(),
                    delegation: Some(delegation),
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::File { path, source }),
        }
    }

    /// Puts together what a fabric machine starts with.
    ///
    /// # Errors
    /// When the folder is not initialised or something in it cannot be used.
    pub fn fabric_config(&self, store: &Store, agent: String) -> Result<FabricConfig, StateError> {
        let key = self.key()?;
        let credential = self.credential()?;
        let path = self.key_file();
        let admitter = self.admitter(&key)?;
        Ok(FabricConfig {
            root: credential.as_ref().map(Credential::root),
            membership: credential.map(|c| c.0.membership),
            admitter,
            tickets: records::tickets(store)?,
            grants: records::grants(store)?,
            revocations: records::revocations(store)?,
            incarnation: u64::from_be_bytes(random_bytes(&path)?),
            agent,
            bootstrap: false,
            degree_min: 8,
            degree_max: 12,
            connections_max: 32,
            transfers_max: hyperfabric_protocol::transfer::limits::INCOMING_MAX,
            seed: random_bytes(&path)?,
            key,
        })
    }

    /// Makes state changes durable, in the order in which they must become so.
    ///
    /// # Errors
    /// When one of them cannot be written; those before it are.
    pub fn persist(&self, store: &Store, changes: &[StateChange]) -> Result<(), StateError> {
        for change in changes {
            match change {
                StateChange::Ticket(ticket) => records::put_ticket(store, ticket)?,
                StateChange::TicketGone(hash) => records::delete_ticket(store, hash)?,
                StateChange::Grant(grant) => records::put_grant(store, grant)?,
                StateChange::Revocation { serial, item } => records::put_revocation(store, serial, item)?,
                StateChange::Membership {
                    root,
                    membership,
                    issuer,
                } => {
                    // A renewal does not say who the issuer was; the first contact stays known.
                    let known = self
                        .credential()?
                        .and_then(|c| Some((c.0.issuer?, c.0.addresses.0)));
                    let issuer = issuer.clone().or(known);
                    self.set_credential(&Credential::new(root, membership.clone(), issuer))?;
                }
            }
        }
        Ok(())
    }

    /// Returns the peers to contact first: who admitted this peer, and those connected lately.
    ///
    /// # Errors
    /// When the store or the certificate cannot be read.
    pub fn first_contacts(&self, store: &Store) -> Result<Vec<KnownPeer>, StateError> {
        let mut contacts = records::known_peers(store)?;
        if let Some(credential) = self.credential()?
            && let Some(peer) = credential.0.issuer
        {
            contacts.push(KnownPeer {
                peer,
                addresses: credential.0.addresses.0,
                bootstrap: true,
            });
        }
        Ok(contacts)
    }

    /// Remembers where peers were reached, for the next start.
    ///
    /// # Errors
    /// When the store fails.
    pub fn remember_peers(&self, store: &Store, peers: &[(PeerId, Vec<Address>)]) -> Result<(), StateError> {
        Ok(records::put_known_peers(store, peers)?)
    }

    /// Returns the UDP port under which others know this peer, when it has run before.
    ///
    /// # Errors
    /// When the store fails.
    pub fn listen_port(&self, store: &Store) -> Result<Option<u16>, StateError> {
        Ok(records::listen_port(store)?)
    }

    /// Keeps the UDP port for the next start.
    ///
    /// # Errors
    /// When the store fails.
    pub fn set_listen_port(&self, store: &Store, port: u16) -> Result<(), StateError> {
        Ok(records::put_listen_port(store, port)?)
    }
}

fn random_bytes<const N: usize>(path: &Path) -> Result<[u8; N], StateError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| StateError::File {
        path: path.to_owned(),
        source: io::Error::other(error),
    })?;
    Ok(bytes)
}

fn random_key(path: &Path) -> Result<SigningKey, StateError> {
    Ok(SigningKey::from_bytes(&random_bytes(path)?))
}

#[cfg(test)]
mod tests;
