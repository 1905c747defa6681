//! The event loop of a peer: the only place that reads a clock and moves bytes between the fabric machine and the
//! network.
//!
//! One task owns the [`Fabric`]. Everything else (connections, dials, the local API, workers) sends it
//! messages through one bounded channel and shares a table of live connections. After every message the loop
//! drains the machine: frames go to their connections, dials become tasks, signature checks go to the worker pool,
//! and what touches a disk goes to the [`Host`].
//!
//! Both the node and the bootstrap peer run this loop; they differ in their host.

mod dial;
mod drain;
mod handle;
mod link;
mod serve;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyperfabric_protocol::fabric::{Event, FabricConfig, Input, Job, Misbehaved, Purpose as Use, Transmit};
use hyperfabric_protocol::transfer::PayloadOrder;
use hyperfabric_protocol::{ConnId, Fabric, Now, PeerId};
use tokio::sync::{mpsc, watch};

pub use handle::{BulkError, Handle, Stopped, Traffic};

use link::Link;

use crate::clock::Clock;
use crate::connection::{CloseReason, Connection};
use crate::discovery::{Discovery, Found};
use crate::endpoint::{DialError, Endpoint};
use crate::gate::MeshGate;
use crate::streams::BiStream;
use crate::streams::control::{ControlSendError, ControlSender};
use crate::tls::{Leaf, LeafCell, Purpose, Refusal};
use crate::workers::WorkerPool;

/// Messages that may wait for the loop. Senders wait beyond it, which slows down the peer that they speak for.
const MESSAGES_MAX: usize = 1024;
/// Messages handled before timers and transmits are looked at again.
const BATCH_MAX: usize = 64;
/// How often the loop looks whether this peer's own addresses have changed.
const ADDRESS_INTERVAL: Duration = Duration::from_secs(10);

/// What a peer does beside talking to the network.
pub trait Host: Send + 'static {
    /// Does durable work, off the loop, and reports with [`Handle::done`]. Never called with [`Job::Check`].
    fn job(&mut self, peer: &Handle, job: Job);

    /// Moves the bytes of a transfer, or stops.
    fn payload(&mut self, peer: &Handle, order: PayloadOrder);

    /// Hears what has happened.
    fn event(&mut self, peer: &Handle, event: &Event);

    /// Takes a connection that another peer has dialled to send the bytes of transfers.
    fn bulk(&mut self, peer: &Handle, connection: Connection);

    /// Answers a request that a member has made on its prompt connection.
    fn request(&mut self, peer: &Handle, from: PeerId, stream: BiStream);
}

/// What a driver is made of.
pub struct DriverConfig {
    /// The machine's beginning.
    pub fabric: FabricConfig,
    /// The endpoint, and the connections that it accepts.
    pub endpoint: Endpoint,
    /// See [`Endpoint::bind`].
    pub accepted: mpsc::Receiver<Connection>,
    /// The leaf that the endpoint shows; replaced when the certificate is.
    pub leaf: LeafCell,
    /// The gate that the endpoint asks.
    pub gate: MeshGate,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where signatures are checked.
    pub pool: WorkerPool,
    /// Where tasks run.
    pub runtime: tokio::runtime::Handle,
    /// Addresses to announce instead of those of the interfaces.
    pub announce: Vec<hyperfabric_protocol::Address>,
    /// Kademlia and gossipsub, when they are wanted.
    pub discovery: Option<Discovery>,
}

/// What a caller wants done with the machine.
type Act = Box<dyn FnOnce(&mut Fabric, Now) + Send>;

/// What reaches the loop.
enum Message {
    /// Run this on the machine.
    Act(Act),
    /// Tell the machine.
    Input(Input),
    /// A dial has ended.
    Dialled {
        peer: PeerId,
        purpose: Use,
        result: Result<(Connection, hyperfabric_protocol::Address), DialError>,
    },
    /// A connection's control stream is open.
    Control { conn: ConnId, sender: ControlSender },
    /// A control stream has room for floods again, or had none for too long.
    Room { conn: ConnId, in_time: bool },
    /// The other side has finished it.
    ControlEnded { conn: ConnId },
    /// A member asks something.
    Request { from: PeerId, stream: BiStream },
    /// End.
    Stop,
}

/// The loop's state.
struct Driver<H> {
    fabric: Fabric,
    host: H,
    handle: Handle,
    accepted: mpsc::Receiver<Connection>,
    messages: mpsc::Receiver<Message>,
    links: HashMap<ConnId, Link>,
    leaf: LeafCell,
    gate: MeshGate,
    clock: Arc<dyn Clock>,
    pool: WorkerPool,
    runtime: tokio::runtime::Handle,
    announce: Vec<hyperfabric_protocol::Address>,
    discovery: Option<Discovery>,
    key: hyperfabric_protocol::SigningKey,
    stopped: watch::Sender<bool>,
    published: Option<hyperfabric_protocol::Signed>,
}

/// Starts a peer's event loop and returns the handle to it.
pub fn start<H: Host>(config: DriverConfig, host: impl FnOnce(&Handle) -> H) -> Handle {
    let now = config.clock.now();
    let key = config.fabric.key.clone();
    let (sender, messages) = mpsc::channel(MESSAGES_MAX);
    let (stopped, has_stopped) = watch::channel(false);
    config.gate.set_root(config.fabric.root.clone());
    let fabric = Fabric::new(now, config.fabric);
    for revocation in fabric.admission().revocations() {
        config.gate.revoke(revocation.serial);
    }
    let libp2p = config.discovery.as_ref().map(Discovery::received);
    let runtime = config.runtime.clone();
    let handle = Handle::new(sender, config.endpoint, libp2p, runtime, has_stopped);
    let host = host(&handle);
    let driver = Driver {
        fabric,
        host,
        handle: handle.clone(),
        accepted: config.accepted,
        messages,
        links: HashMap::new(),
        leaf: config.leaf,
        gate: config.gate,
        clock: config.clock,
        pool: config.pool,
        runtime: config.runtime.clone(),
        announce: config.announce,
        discovery: config.discovery,
        key,
        stopped,
        published: None,
    };
    config.runtime.spawn(driver.run());
    handle
}

impl<H: Host> Driver<H> {
    async fn run(mut self) {
        let mut addresses = tokio::time::interval(ADDRESS_INTERVAL);
        loop {
            self.drain();
            let now = self.clock.now();
            let wait = self
                .fabric
                .poll_timeout()
                .map_or(ADDRESS_INTERVAL, |at| at.since(now.mono));
            tokio::select! {
                message = self.messages.recv() => match message {
                    Some(message) => if !self.take(message) { break },
                    None => break,
                },
                Some(connection) = self.accepted.recv() => self.connected(connection, None),
                found = next_found(&mut self.discovery) => self.found(found),
                () = tokio::time::sleep(wait) => self.fabric.handle_timeout(self.clock.now()),
                _ = addresses.tick() => self.look_at_addresses(),
            }
        }
        self.handle.endpoint().close().await;
        // Nobody waits when every handle is gone.
        let _ = self.stopped.send(true);
    }

    /// Handles a message and those that wait behind it. Returns whether to go on.
    fn take(&mut self, first: Message) -> bool {
        let mut next = Some(first);
        for _ in 0..BATCH_MAX {
            let Some(message) = next else { break };
            if !self.handle(message) {
                return false;
            }
            self.drain();
            next = self.messages.try_recv().ok();
        }
        match next {
            Some(message) => self.handle(message),
            None => true,
        }
    }

    fn handle(&mut self, message: Message) -> bool {
        let now = self.clock.now();
        match message {
            Message::Act(act) => act(&mut self.fabric, now),
            Message::Input(Input::Disconnected { conn, reason }) => {
                if let Some(link) = self.links.remove(&conn) {
                    self.handle.forget(&link.connection);
                }
                self.fabric
                    .handle_input(now, Input::Disconnected { conn, reason });
            }
            Message::Input(input) => {
                if let Input::Frame { bytes, .. } = &input {
                    self.handle.count(bytes);
                }
                self.fabric.handle_input(now, input);
            }
            Message::Dialled {
                purpose,
                result: Ok((connection, address)),
                ..
            } => {
                debug_assert_eq!(connection.purpose() == Purpose::Join, purpose == Use::Join);
                self.connected(connection, Some(address));
            }
            Message::Dialled {
                peer,
                purpose,
                result: Err(error),
            } => {
                let permanent = matches!(error, DialError::Refused { .. } | DialError::Untrusted { .. });
                tracing::debug!(%peer, %error, "dial failed");
                if matches!(
                    error,
                    DialError::Refused {
                        reason: Refusal::Revoked
                    }
                ) {
                    tracing::warn!(%peer, "this peer's membership was revoked");
                    self.fabric.handle_input(now, Input::RevokedBy { peer });
                }
                if matches!(error, DialError::FalseWelcome { .. }) {
                    let violation = Misbehaved::FalseWelcome;
                    let input = Input::Violation {
                        peer,
                        purpose,
                        violation,
                    };
                    self.fabric.handle_input(now, input);
                }
                self.handle.note_dial_error(peer, error);
                self.fabric.handle_input(
                    now,
                    Input::DialFailed {
                        peer,
                        purpose,
                        permanent,
                    },
                );
            }
            Message::Control { conn, sender } => self.on_link(conn, |link, handle| link.open(handle, sender)),
            Message::Room { conn, in_time } => self.on_link(conn, |link, handle| link.go_on(handle, in_time)),
            // Behind a Goodbye, which takes the connection out of the table, this is the end of a drain. [QUIC-5]
            Message::ControlEnded { conn } => {
                if let Some(link) = self.links.get(&conn) {
                    link.connection.close(CloseReason::Idle);
                }
            }
            Message::Request { from, stream } => self.host.request(&self.handle, from, stream),
            Message::Stop => return false,
        }
        true
    }

    fn connected(&mut self, connection: Connection, address: Option<hyperfabric_protocol::Address>) {
        let (now, peer) = (self.clock.now(), connection.peer());
        if let Some(violation) = connection.violation() {
            let purpose = Use::Prompt;
            let violation = Input::Violation {
                peer,
                purpose,
                violation,
            };
            return self.fabric.handle_input(now, violation);
        }
        let purpose = match connection.purpose() {
            Purpose::Prompt => Use::Prompt,
            Purpose::Join => Use::Join,
            // Let in just before its peer was cut off.
            Purpose::Bulk if self.fabric.neighbors().is_banned(&peer) => {
                return connection.close(CloseReason::Banned);
            }
            Purpose::Bulk => {
                self.runtime.spawn(serve::watch(&connection, self.handle.clone()));
                return self.host.bulk(&self.handle, connection);
            }
        };
        let libp2p = self
            .discovery
            .as_ref()
            .filter(|_| purpose == Use::Prompt)
            .map(Discovery::attacher);
        self.runtime
            .spawn(serve::run(connection.clone(), self.handle.clone(), libp2p));
        let input = Input::Connected {
            conn: connection.id(),
            peer,
            purpose,
            dialled: connection.side() == crate::connection::Side::Dialled,
            address,
            membership: connection.membership().map(Into::into),
        };
        self.links.insert(connection.id(), Link::new(connection));
        self.fabric.handle_input(now, input);
    }

    /// Does something with a link, which may show that its peer does not keep up.
    fn on_link(
        &mut self,
        conn: ConnId,
        act: impl FnOnce(&mut Link, &Handle) -> Result<(), ControlSendError>,
    ) {
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        match act(link, &self.handle) {
            Ok(()) | Err(ControlSendError::Ended) => {}
            Err(error @ (ControlSendError::Full | ControlSendError::TooLarge { .. })) => {
                // A peer that does not read its control stream cannot be kept: what it misses cannot be dropped.
                tracing::warn!(peer = %link.connection.peer(), %error, "closing a connection that does not keep up");
                link.connection.close(CloseReason::LimitReached);
            }
        }
    }

    /// Carries out everything that the machine asks for.
    fn drain(&mut self) {
        loop {
            if let Some(transmit) = self.fabric.poll_transmit() {
                self.transmit(transmit);
            } else if let Some(job) = self.fabric.poll_job() {
                self.job(job);
            } else if let Some(event) = self.fabric.poll_event() {
                self.event(&event);
            } else {
                break;
            }
        }
        self.publish();
    }

    fn transmit(&mut self, transmit: Transmit) {
        match transmit {
            Transmit::Frame { conn, frame } => self.on_link(conn, |link, handle| link.send(handle, frame)),
            Transmit::Dial {
                peer,
                addresses,
                purpose,
            } => {
                self.runtime
                    .spawn(dial::run(self.handle.clone(), peer, addresses, purpose));
            }
            Transmit::Close { conn, reason } => {
                if let Some(link) = self.links.remove(&conn) {
                    tracing::debug!(peer = %link.connection.peer(), %reason, "closing a connection");
                    self.handle.forget(&link.connection);
                    self.handle.part(&link.connection, link.control, reason);
                }
            }
            Transmit::Payload(order) => self.host.payload(&self.handle, order),
        }
    }

    fn job(&mut self, job: Job) {
        match job {
            Job::Check { items, root } => {
                let (pool, handle, now) = (self.pool.clone(), self.handle.clone(), self.clock.now());
                self.runtime.spawn(async move {
                    let checked = items.clone();
                    let result = pool.run(move || Job::run_check(checked, &root, now)).await;
                    // The machine waits for the end of each check.
                    handle.done(result.unwrap_or_else(|_| Job::refuse(items))).await;
                });
            }
            Job::Persist(_) | Job::Transfer(_) => self.host.job(&self.handle, job),
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::PeerUp { peer, conn, .. } | Event::PeerMoved { peer, conn } => {
                if let Some(link) = self.links.get(conn) {
                    self.handle.remember(*peer, link.connection.clone());
                }
            }
            Event::PeerDown { peer } => self.handle.forget_peer(peer),
            Event::Revoked { serial, peer, .. } => {
                self.gate.revoke(*serial);
                self.handle.cut_off(peer, CloseReason::Revoked);
            }
            Event::Misbehaved { peer, violation } => {
                tracing::warn!(%peer, %violation, "a peer broke the protocol and is cut off");
                self.gate.ban(*peer);
                self.handle.cut_off(peer, CloseReason::Violation);
            }
            Event::JoinMisbehaved { peer, violation } => {
                tracing::info!(%peer, %violation, "a peer broke the protocol while joining");
            }
            Event::Expired { peer } => {
                tracing::info!(%peer, "a member's certificate has expired");
                self.handle.cut_off(peer, CloseReason::Revoked);
            }
            Event::Refused { peer, error } => tracing::info!(%peer, %error, "refused a peer"),
            Event::Joined(_) => self.show_membership(),
            Event::NodeAppeared { .. }
            | Event::NodeGone(_)
            | Event::PeerUnreachable { .. }
            | Event::DuplicateNode { .. }
            | Event::JoinRefused(_)
            | Event::JoinBadReply
            | Event::JoinUnreachable
            | Event::JoinEnded
            | Event::Admitted { .. }
            | Event::RefusedJoin { .. }
            | Event::Persisted { .. }
            | Event::Transfer(_) => {}
        }
        self.host.event(&self.handle, event);
    }

    /// Shows a new certificate from the next handshake on.
    fn show_membership(&mut self) {
        let Some((membership, _)) = self.fabric.admission().own() else {
            return;
        };
        self.gate.set_root(self.fabric.admission().root().cloned());
        match Leaf::generate(&self.key, Some(&membership.to_bytes())) {
            Ok(leaf) => self.leaf.swap(leaf),
            Err(error) => tracing::error!(%error, "cannot make a certificate for the new membership"),
        }
    }

    fn look_at_addresses(&mut self) {
        self.handle.close_idle_bulk();
        let addresses = if self.announce.is_empty() {
            match self.handle.reachable() {
                Ok(addresses) => addresses,
                Err(error) => {
                    tracing::warn!(%error, "cannot list this host's addresses");
                    return;
                }
            }
        } else {
            self.announce.clone()
        };
        self.fabric
            .handle_input(self.clock.now(), Input::Addresses(addresses));
    }

    fn found(&mut self, found: Found) {
        let now = self.clock.now();
        match found {
            Found::Item(signed) => self.fabric.handle_input(now, Input::Found(signed)),
            Found::Address { peer, addresses } => self.fabric.learn(now, peer, addresses, false),
            Found::Wanted { peer } => {
                // Discovery may dial, but not keep: the wish is taken back at once.
                self.fabric.want(now, peer);
                self.fabric.unwant(now, peer);
            }
        }
    }

    /// Publishes this peer's record beyond its neighbors when it is a new one.
    fn publish(&mut self) {
        let Some(discovery) = &self.discovery else { return };
        let record = self.fabric.own_record();
        if let Some(record) = record
            && self.published.as_ref() != Some(record)
        {
            discovery.publish(
                record.clone(),
                self.fabric
                    .own_nodes()
                    .iter()
                    .map(|n| n.node_id.clone())
                    .collect(),
            );
            self.published = Some(record.clone());
        }
    }
}

async fn next_found(discovery: &mut Option<Discovery>) -> Found {
    match discovery {
        Some(discovery) => match discovery.found().await {
            Some(found) => found,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
