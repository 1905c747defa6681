//! Data in memory: sent to a node's handler, answered, tried again; and pings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt;
use hyperfabric_mesh::streams::ECHO_BYTES_MAX;
use hyperfabric_protocol::NodeId;
use hyperfabric_protocol::cbor::Text;
use hyperfabric_protocol::error::{
    BufferError, BufferOverflowError, HyperFabricError, LatencyConstraintViolationError, NoRouteFoundError,
    NodeError, NodeNotFoundError, RequestError, RoutingError, UnsupportedOptionError,
};
use hyperfabric_protocol::types::{DataType, PacketPriority, PingResult};

use super::HyperFabricProtocol;
use crate::node::{DATA_BYTES_MAX, DataError, DataRequest, Located, Node, REQUEST_TIMEOUT, lock};

/// How often a request is sent at most, while its connections are lost.
pub const ATTEMPTS_MAX: u32 = 4;
/// How long a destination that is known may take to be connected, again too: longer than a lost connection takes to
/// be noticed.
const CONNECT_WAIT: Duration = Duration::from_secs(30);

/// How data is sent.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// What the data is.
    pub data_type: DataType,
    /// How urgent it is.
    pub priority: PacketPriority,
    /// The round trip that is acceptable, in nanoseconds; none takes the protocol's default.
    pub latency_constraint_ns: Option<u64>,
    /// Whether the nodes must share entanglement. Not implemented in this version: refused when on.
    pub requires_quantum_entanglement: bool,
    /// Whether to compress. Not implemented in this version: refused when on.
    pub compression_enabled: bool,
    /// Whether to encrypt: every byte between two peers is, whatever this says.
    pub encryption_enabled: bool,
    /// Short texts for the handler.
    pub metadata: BTreeMap<String, String>,
    /// For how long to look for a destination that is not known.
    pub wait: Duration,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self {
            data_type: DataType::default(),
            priority: PacketPriority::default(),
            latency_constraint_ns: None,
            requires_quantum_entanglement: false,
            compression_enabled: false,
            encryption_enabled: false,
            metadata: BTreeMap::new(),
            wait: Duration::from_secs(5),
        }
    }
}

fn unknown(node_id: &NodeId) -> HyperFabricError {
    HyperFabricError::Node(NodeError::NotFound(NodeNotFoundError {
        node_id: node_id.clone(),
    }))
}

/// Puts the end of a request into the words of the API reference.
fn data_error(error: DataError, node: &NodeId) -> HyperFabricError {
    let interrupted = error.is_interruption();
    match error {
        DataError::NotFound(error) => NodeError::NotFound(error).into(),
        DataError::TooLarge(bytes) => BufferError::Overflow(BufferOverflowError {
            bytes,
            capacity_bytes: DATA_BYTES_MAX,
        })
        .into(),
        DataError::Unreachable(destination) => {
            RoutingError::NoRouteFound(NoRouteFoundError { destination }).into()
        }
        DataError::Bulk(_) | DataError::Stream(_) if interrupted => {
            RequestError::Interrupted(node.clone()).into()
        }
        DataError::Bulk(_) | DataError::Stream(_) | DataError::BadAnswer => {
            RequestError::BadAnswer(node.clone()).into()
        }
        DataError::NoHandler(node) => RequestError::NoHandler(node).into(),
        DataError::Refused { node, reason } => RequestError::Refused {
            node,
            reason: Text::truncating(&reason),
        }
        .into(),
        DataError::TimedOut(node) => RequestError::TimedOut(node).into(),
        DataError::Metadata => RequestError::Metadata.into(),
        DataError::NotRunning => HyperFabricError::NotRunning,
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl HyperFabricProtocol {
    /// Answers the data that reaches `node` with `handler`: its answer's bytes, or a short reason for a refusal. It
    /// can be set before the services start, and replaces an earlier one.
    pub fn on_data<F, A>(&self, node: NodeId, handler: F)
    where
        F: Fn(DataRequest) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Bytes, String>> + Send + 'static,
    {
        let handler: crate::node::DataHandler = Arc::new(move |request| handler(request).boxed());
        lock(&self.0.handlers).insert(node.clone(), Arc::clone(&handler));
        if let Ok(running) = self.node() {
            running.on_data(node, handler);
        }
    }

    /// Refuses a source that this peer has not registered.
    async fn check_source(&self, node: &Node, source: &NodeId) -> Result<(), HyperFabricError> {
        let wanted = source.clone();
        let here = node
            .handle()
            .act(move |fabric, _| fabric.own_nodes().iter().any(|n| n.node_id == wanted))
            .await
            .map_err(|_| HyperFabricError::NotRunning)?;
        here.then_some(()).ok_or_else(|| unknown(source))
    }

    /// Sends data to a node and returns what its handler answers.
    ///
    /// With fault tolerance a request whose connection is lost is sent again, up to [`ATTEMPTS_MAX`] times, once the
    /// destination is connected again; its handler may then see it more than once.
    ///
    /// # Errors
    /// `NodeNotFoundError` when `source` is not registered here or nobody hosts `destination`,
    /// `LatencyConstraintViolationError` before anything is sent when the measured round trip is longer than allowed,
    /// `BufferOverflowError` when the data is larger than the buffer pool, and what [`HyperFabricError`] has
    /// about requests.
    pub async fn send_data(
        &self,
        source: &NodeId,
        destination: &NodeId,
        data: Bytes,
        options: SendOptions,
    ) -> Result<Bytes, HyperFabricError> {
        for (on, option) in [
            (
                options.requires_quantum_entanglement,
                "requires_quantum_entanglement",
            ),
            (options.compression_enabled, "compression_enabled"),
        ] {
            if on {
                return Err(UnsupportedOptionError { option }.into());
            }
        }
        let node = self.node()?;
        self.check_source(&node, source).await?;
        let packets = self.0.options.packets(data.len()).map_err(BufferError::from)?;
        let room = self.0.room.acquire_many(packets).await;
        let _room = room.map_err(|_| HyperFabricError::NotRunning)?;
        let wait = options.wait;
        let constraint_ns = options
            .latency_constraint_ns
            .or(self.0.options.default_latency_constraint_ns);
        let request = DataRequest {
            source: source.clone(),
            destination: destination.clone(),
            data_type: options.data_type,
            priority: options.priority,
            metadata: options.metadata.into_iter().collect(),
            data,
        };
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, async {
            let mut attempt = 1;
            loop {
                let result = self.attempt(&node, &request, constraint_ns, wait).await;
                match result {
                    Err(Attempt::Failed(error))
                        if error.is_interruption()
                            && self.0.options.enable_fault_tolerance
                            && attempt < ATTEMPTS_MAX =>
                    {
                        tracing::debug!(%destination, attempt, %error, "a request is sent again");
                        attempt += 1;
                    }
                    Err(Attempt::Failed(error)) => return Err(data_error(error, destination)),
                    Err(Attempt::TooFar(error)) => {
                        return Err(RoutingError::LatencyConstraintViolation(error).into());
                    }
                    Ok(answer) => return Ok(answer),
                }
            }
        });
        let answer = answered.await;
        answer.unwrap_or_else(|_| Err(RequestError::TimedOut(destination.clone()).into()))
    }

    async fn attempt(
        &self,
        node: &Node,
        request: &DataRequest,
        constraint_ns: Option<u64>,
        wait: Duration,
    ) -> Result<Bytes, Attempt> {
        let located = node
            .locate(&request.destination, wait, CONNECT_WAIT)
            .await
            .map_err(Attempt::Failed)?;
        let measured_ns = match &located {
            Located::Here => 0,
            Located::At(connection) => nanoseconds(connection.rtt()),
        };
        if let Some(constraint_ns) = constraint_ns
            && measured_ns > constraint_ns
        {
            return Err(Attempt::TooFar(LatencyConstraintViolationError {
                destination: request.destination.clone(),
                constraint_ns,
                measured_ns,
            }));
        }
        let prompt_max = self.0.options.max_packet_size;
        node.ask(&located, request.clone(), prompt_max)
            .await
            .map_err(Attempt::Failed)
    }

    /// Measures the round trip to a node with one packet of `packet_size` bytes. A node that is known and does not
    /// answer is a result without success. Finding it, connecting and the answer may take `timeout_ms` each.
    ///
    /// # Errors
    /// `NodeNotFoundError` when `source` is not registered here or nobody hosts `destination`,
    /// `BufferOverflowError` for a packet that is too large, and [`HyperFabricError::NotRunning`].
    pub async fn ping(
        &self,
        source: &NodeId,
        destination: &NodeId,
        packet_size: usize,
        timeout_ms: u64,
    ) -> Result<PingResult, HyperFabricError> {
        if packet_size > ECHO_BYTES_MAX {
            return Err(BufferError::Overflow(BufferOverflowError {
                bytes: packet_size,
                capacity_bytes: ECHO_BYTES_MAX,
            })
            .into());
        }
        let node = self.node()?;
        self.check_source(&node, source).await?;
        let limit = Duration::from_millis(timeout_ms);
        // Each step has the limit to itself: a timeout around both would race with the search and call an unknown
        // node silent.
        let mut bandwidth_gbps = None;
        let round_trip = match node.locate(destination, limit, limit).await {
            Ok(Located::Here) => Some(Duration::ZERO),
            Ok(Located::At(connection)) => {
                bandwidth_gbps = node.bandwidth_gbps(&connection.peer());
                let payload = vec![0x5a; packet_size];
                let echo = tokio::time::timeout(limit, connection.echo(&payload)).await;
                echo.ok().and_then(Result::ok)
            }
            Err(DataError::Unreachable(_)) => None,
            Err(error) => return Err(data_error(error, destination)),
        };
        Ok(PingResult {
            source: source.clone(),
            destination: destination.clone(),
            latency_ns: round_trip.map_or(0, nanoseconds),
            bandwidth_gbps,
            path: vec![source.clone(), destination.clone()],
            packet_loss_rate: if round_trip.is_some() { 0.0 } else { 1.0 },
            timestamp: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
            success: round_trip.is_some(),
        })
    }
}

/// Why one attempt failed.
enum Attempt {
    Failed(DataError),
    TooFar(LatencyConstraintViolationError),
}
