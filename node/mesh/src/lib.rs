//! How HyperFabric peers find and reach each other: wires, one QUIC endpoint with three protocols, and libp2p on top of it.
//!
//! Everything that touches a network on behalf of a peer is here, and used by node, bootstrap and sim alike; what a peer *is* lives in
//! `hyperfabric-protocol`, what is done with the bytes lives in `hyperfabric-node`. No type of the QUIC implementation appears in a public
//! signature, so that another one can take its place.

#![forbid(unsafe_code)]

mod sync;

pub mod address;
pub mod clock;
pub mod connection;
pub mod discovery;
pub mod driver;
pub mod endpoint;
pub mod events;
pub mod gate;
pub mod state;
pub mod store;
pub mod streams;
pub mod tls;
pub mod wire;
pub mod workers;

pub use address::PeerAddress;
pub use connection::{CloseCause, CloseReason, Connection, ConnectionStats, Side};
pub use discovery::{Attacher, Discovery, DiscoveryConfig, DiscoveryHandle, DiscoveryStats, Found};
pub use endpoint::{DialError, Endpoint, EndpointConfig, EndpointError, Limits};
pub use events::{EventSender, Events};
pub use streams::control::{Control, ControlReceiver, ControlSender};
pub use streams::inbox::{BulkStreams, ChunkStream, PromptStreams};
pub use streams::{BiStream, RecvStream, SendStream, StreamCode, StreamError, StreamKind};
pub use tls::{Gate, Leaf, LeafCell, Purpose, Refusal};
pub use wire::{KernelWire, Wire};
