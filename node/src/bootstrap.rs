//! The local API of a bootstrap peer: the same socket, address and token as a daemon's, for what such a peer can do.
//!
//! It invites, admits and revokes, and shows whom it knows. It hosts no node and moves no files, and says so when it is
//! asked to.

use std::sync::Arc;

use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt};
use hyperfabric_bootstrap::{Bootstrap, Reporter};
use hyperfabric_mesh::PeerAddress;
use hyperfabric_protocol::types::NodeSignature;
use hyperfabric_protocol::{NodeId, TransferId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::control::{Answer, Control, Ping, SendRequest};
use crate::api::model::{
    Admission, AdmitRequest, Invitation, InviteRequest, Member, NodeRecord, PeerRecord, PingReport,
    Registered, Revoked, Status, Transfer,
};
use crate::api::{ApiError, ApiServeError, ApiServer, ErrorCode, FeedItem};
use crate::config::FabricConfig;
use crate::directory::{Directory, find_node, unavailable};
use crate::paths::DataDir;

/// The local API of a running bootstrap peer.
#[derive(Debug)]
pub struct BootstrapApi {
    address: String,
    stopping: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl BootstrapApi {
    /// Serves it on the current runtime; the caller holds the data folder's lock.
    ///
    /// # Errors
    /// [`ApiServeError`].
    pub async fn start(
        data_dir: &DataDir,
        config: &FabricConfig,
        peer: &Bootstrap,
    ) -> Result<Self, ApiServeError> {
        let server = ApiServer::bind(data_dir, config).await?;
        let (stopping, stopped) = watch::channel(false);
        let announce = peer.announced().iter();
        let control = BootstrapControl {
            directory: Directory {
                handle: peer.handle().clone(),
                events: peer.events().clone(),
                announce: announce
                    .map(|at| PeerAddress::new(at.socket).to_address())
                    .collect(),
            },
            reporter: peer.reporter(),
            started: tokio::time::Instant::now(),
            shutdown: stopping.clone(),
        };
        Ok(Self {
            address: format!("http://{}", server.address()),
            task: tokio::spawn(server.serve(Arc::new(control), stopped)),
            stopping,
        })
    }

    /// Returns where HTTP is served.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits until the API is asked to end the process.
    pub async fn asked_to_stop(&self) {
        let mut stopping = self.stopping.subscribe();
        // An error cannot be: the sender is here.
        let _ = stopping.wait_for(|stop| *stop).await;
    }

    /// Finishes the requests that are under way, for a moment at most.
    pub async fn stop(self) {
        self.stopping.send_replace(true);
        if tokio::time::timeout(crate::daemon::API_DRAIN, self.task)
            .await
            .is_err()
        {
            tracing::info!("requests that were still running are abandoned");
        }
    }
}

struct BootstrapControl {
    directory: Directory,
    reporter: Reporter,
    started: tokio::time::Instant,
    shutdown: watch::Sender<bool>,
}

impl BootstrapControl {
    async fn try_status(&self) -> Result<Status, ApiError> {
        let name = self
            .directory
            .act(|fabric, _| fabric.admission().own().map(|(_, m)| m.name.clone()));
        let status = match name.await? {
            Some(name) => self.directory.status(name, self.started).await?,
            None => return Err(unavailable()),
        };
        Ok(Status {
            warnings: self.reporter.warnings(),
            ..status
        })
    }
}

fn not_here<T: Send + 'static>() -> Answer<'static, T> {
    let error = ApiError::new(
        ErrorCode::Refused,
        "a bootstrap peer hosts no node and moves no files",
    );
    async move { Err(error.hint("ask a peer that runs `hyperfabric up`")) }.boxed()
}

fn no_transfer<T: Send + 'static>(id: TransferId) -> Answer<'static, T> {
    let error = ApiError::new(ErrorCode::NotFound, format!("transfer {id} is not known"));
    async move { Err(error) }.boxed()
}

impl Control for BootstrapControl {
    fn status(&self) -> Answer<'_, Status> {
        self.try_status().boxed()
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeRecord>> {
        self.directory.nodes().boxed()
    }

    fn node(&self, id: NodeId) -> Answer<'_, NodeRecord> {
        async move { find_node(self.directory.nodes().await?, id) }.boxed()
    }

    fn register(&self, _: NodeSignature) -> Answer<'_, Registered> {
        not_here()
    }

    fn peers(&self) -> Answer<'_, Vec<PeerRecord>> {
        self.directory.peers().boxed()
    }

    fn ping(&self, _: Ping) -> Answer<'_, PingReport> {
        not_here()
    }

    fn send(&self, _: SendRequest) -> Answer<'_, TransferId> {
        not_here()
    }

    fn transfers(&self) -> Answer<'_, Vec<Transfer>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn transfer(&self, id: TransferId) -> Answer<'_, Transfer> {
        no_transfer(id)
    }

    fn cancel(&self, id: TransferId) -> Answer<'_, Transfer> {
        no_transfer(id)
    }

    fn resume(&self, id: TransferId) -> Answer<'_, Transfer> {
        no_transfer(id)
    }

    fn transfer_events(&self) -> BoxStream<'static, FeedItem> {
        stream::pending().boxed()
    }

    fn invite(&self, request: InviteRequest) -> Answer<'_, Invitation> {
        self.directory.invite(request).boxed()
    }

    fn admit(&self, request: AdmitRequest) -> Answer<'_, Admission> {
        self.directory.admit(request).boxed()
    }

    fn members(&self) -> Answer<'_, Vec<Member>> {
        self.directory.members().boxed()
    }

    fn revoke(&self, name: NodeId) -> Answer<'_, Revoked> {
        self.directory.revoke(name).boxed()
    }

    fn metrics(&self) -> Answer<'_, String> {
        async { Ok(self.reporter.metrics().await) }.boxed()
    }

    fn request_shutdown(&self) {
        self.shutdown.send_replace(true);
    }
}
