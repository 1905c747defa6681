//! How HyperFabric peers find and reach each other: wires, one QUIC endpoint with three protocols, and libp2p on top of it.
//!
//! Everything that touches a network on behalf of a peer is here, and used by node, bootstrap and sim alike; what a peer *is* lives in
//! `hyperfabric-protocol`, what is done with the bytes lives in `hyperfabric-node`. No type of the QUIC or TLS implementation appears in a
//! public signature.

#![forbid(unsafe_code)]

mod sync;

pub mod wire;
