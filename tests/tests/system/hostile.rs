//! Whoever knows the port can send anything to it; the peer behind it does not care.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use hyperfabric_tests::files::b3sum;
use hyperfabric_tests::wait::largest_during;
use hyperfabric_tests::{Content, Exit, Folder, Mesh};

use crate::support::{MIB, TRANSFER_DEADLINE, goes_on, send, start_send};

/// How much the memory of a peer may grow under the flood, in KiB.
const GROWTH_KIB_MAX: u64 = 20 * 1024;

/// A datagram that looks like QUIC to a varying depth: pure noise, a first packet with a mutated body, an unknown
/// version, a short header, a truncated one.
fn datagram(number: u64) -> Vec<u8> {
    let mut noise = vec![0; 1472];
    blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut noise);
    let length = match number % 7 {
        0 => usize::from(noise[0]) % 64,
        1 | 2 => 1200,
        _ => usize::from(u16::from_le_bytes([noise[1], noise[2]])) % noise.len(),
    };
    match number % 5 {
        // An Initial packet of version 1 with 8-byte connection ids and no token.
        0 | 1 => {
            noise[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            noise[14] = 8;
            noise[23..26].copy_from_slice(&[0, 0x44, 0x90]);
        }
        2 => noise[..5].copy_from_slice(&[0xc0, 0xff, 0, 0, 0x1d]),
        3 => noise[0] = 0x40 | (noise[0] & 0x3f),
        _ => {}
    }
    noise.truncate(length.max(1));
    noise
}

/// Sends until told to stop, from a new port every so often.
fn flood(port: u16, stop: &AtomicBool) -> Result<u64> {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..500 {
            // A full socket buffer at the other end is what a flood meets.
            sent += u64::from(socket.send_to(&datagram(sent), ("127.0.0.1", port)).is_ok());
        }
        // Leaves a processor to the peers: this tests what they keep, not who computes faster.
        thread::yield_now();
    }
    Ok(sent)
}

#[test]
fn noise_at_the_port_neither_stops_a_transfer_nor_grows_the_peers() -> Result<()> {
    let seconds = std::env::var("HYPERFABRIC_FLOOD_SECONDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(5);
    let mut mesh = Mesh::start("lab", &["alpha", "beta"])?;
    let [alpha, beta] = mesh.by_name();
    let folder = Folder::new()?;
    let path = folder.random(
        "first.bin",
        Content {
            bytes: 256 * MIB,
            seed: 1,
        },
    )?;
    send(alpha, &path, "beta")?;
    let before = (alpha.status_field("VmHWM")?, beta.status_field("VmHWM")?);

    let stop = AtomicBool::new(false);
    let ports = [alpha.port()?, beta.port()?];
    let again = folder.path().join("second.bin");
    std::fs::rename(&path, &again)?;
    let sent = thread::scope(|scope| {
        let floods = ports.map(|port| {
            let stop = &stop;
            scope.spawn(move || flood(port, stop))
        });
        let transfer = start_send(alpha, &again, "beta");
        let watched = largest_during(Duration::from_secs(seconds), || beta.status_field("VmRSS"));
        let outcome = transfer.and_then(|transfer| transfer.wait(TRANSFER_DEADLINE));
        stop.store(true, Ordering::Relaxed);
        let mut sent = 0;
        for flood in floods {
            sent += flood.join().expect("a flood does not panic")?;
        }
        watched?;
        outcome?.expect(Exit::Done)?;
        anyhow::Ok(sent)
    })?;
    ensure!(sent > 1_000, "only {sent} datagrams were sent");
    ensure!(beta.received_named("second.bin")?.1 == b3sum(&again)?);
    for (peer, before) in [(&*alpha, before.0), (&*beta, before.1)] {
        let growth = peer.status_field("VmHWM")?.saturating_sub(before);
        ensure!(growth <= GROWTH_KIB_MAX, "{} grew by {growth} KiB", peer.name());
    }
    goes_on(
        beta,
        &folder.random("back.bin", Content { bytes: 1000, seed: 2 })?,
        "alpha",
    )
}
