//! Several peers of one mesh, joined by ticket.

use anyhow::{Context as _, Result};

use crate::peer::Peer;
use crate::process::Exit;

/// A running mesh. The first peer created it and admits the others.
#[derive(Debug)]
pub struct Mesh {
    /// All peers; the admitter is the first.
    pub peers: Vec<Peer>,
}

impl Mesh {
    /// Starts a mesh of the named peers and waits until all know each other.
    ///
    /// # Errors
    /// When a step fails or does not happen in time.
    pub fn start(name: &str, peers: &[&str]) -> Result<Self> {
        Self::start_with(name, peers, "")
    }

    /// As [`Mesh::start`], with a configuration for every peer.
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub fn start_with(name: &str, peers: &[&str], yaml: &str) -> Result<Self> {
        let mut mesh = Self::found_with(name, peers.first().context("a mesh without peers")?, yaml)?;
        for peer in peers.iter().skip(1) {
            let mut peer = mesh.join(peer)?;
            peer.configure(yaml)?;
            peer.up()?;
            mesh.peers.push(peer);
        }
        for peer in &mesh.peers {
            peer.knows(peers)?;
        }
        Ok(mesh)
    }

    /// Starts a mesh of one peer, its admitter.
    ///
    /// # Errors
    /// When a step fails.
    pub fn found(name: &str, admitter: &str) -> Result<Self> {
        Self::found_with(name, admitter, "")
    }

    fn found_with(name: &str, admitter: &str, yaml: &str) -> Result<Self> {
        let mut peer = Peer::init(admitter)?;
        peer.configure(yaml)?;
        peer.run(&["mesh", "create", name])?.expect(Exit::Done)?;
        peer.up()?;
        Ok(Self { peers: vec![peer] })
    }

    /// Invites a further peer and lets it join; its daemon is not started, and it stays with the caller.
    ///
    /// # Errors
    /// When a step fails.
    pub fn join(&self, name: &str) -> Result<Peer> {
        let ticket = self.invite(name, &[])?;
        let peer = Peer::init(name)?;
        peer.run(&["join", &ticket])?.expect(Exit::Done)?;
        Ok(peer)
    }

    /// Asks the admitter for a ticket.
    ///
    /// # Errors
    /// When `mesh invite` fails.
    pub fn invite(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut invite = vec!["mesh", "invite", "--name", name];
        invite.extend(arguments);
        Ok(self.peers[0]
            .run(&invite)?
            .expect(Exit::Done)?
            .last_line()?
            .to_owned())
    }

    /// Returns the peers as an array, to be named by the test.
    #[must_use]
    pub fn by_name<const N: usize>(&mut self) -> [&mut Peer; N] {
        let count = self.peers.len();
        let peers: Vec<&mut Peer> = self.peers.iter_mut().collect();
        peers
            .try_into()
            .unwrap_or_else(|_| panic!("the mesh has {count} peers, not {N}"))
    }
}
