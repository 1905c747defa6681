//! Moves due datagrams from an impaired wire to the wire below.
//!
//! All that is due is taken off at once and goes out in as few calls as the wire below can take it in: one call for each datagram
//! makes the last one of a burst late by what the calls for those before it cost, half a millisecond for thirty of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Shared;
use super::line::Datagram;
use super::timer::Timer;
use crate::sync::lock;
use crate::wire::{DATAGRAM_BYTES_MAX, Outgoing, WriteReady};

/// The most datagrams that are taken off at a time: two calls of a kernel that segments. What becomes due meanwhile comes next.
const DUE_MAX: usize = 128;

/// Passes due datagrams to the wire below, in order, until the impaired wire is dropped.
pub(super) async fn pump(shared: Arc<Shared>) {
    let mut write_ready = Arc::clone(&shared.inner).write_ready();
    let mut timer = Timer::new();
    let (mut due, mut joined) = (Vec::with_capacity(DUE_MAX), Vec::new());
    while !shared.dropped.load(Ordering::Acquire) {
        let next = {
            let mut line = lock(&shared.line);
            line.all_left();
            line.take_due(Instant::now(), DUE_MAX, &mut due);
            line.next_due()
        };
        if !due.is_empty() {
            send_all(&shared, &mut write_ready, &due, &mut joined).await;
            due.clear();
            continue;
        }
        match next {
            Some(at) => {
                // Both outcomes lead to the same look at the queue, so the branch order does not matter.
                tokio::select! {
                    () = timer.until(at) => {}
                    () = shared.changed.notified() => {}
                }
            }
            None => shared.changed.notified().await,
        }
    }
}

async fn send_all(
    shared: &Shared,
    write_ready: &mut Pin<Box<dyn WriteReady>>,
    due: &[Datagram],
    joined: &mut Vec<u8>,
) {
    let mut rest = due;
    while !rest.is_empty() {
        // A line that is never empty must leave the thread to the other tasks now and then.
        tokio::task::coop::consume_budget().await;
        // Asked each time, because a device may refuse segments while we run.
        let (run, after) = rest.split_at(run_length(rest, shared.inner.capabilities().send_segments));
        rest = after;
        if run.len() > 1 {
            joined.clear();
            run.iter()
                .for_each(|datagram| joined.extend_from_slice(&datagram.contents));
            let batch = Outgoing {
                contents: joined,
                segment_size: Some(run[0].contents.len()),
                ..run[0].as_outgoing()
            };
            match send_on(shared, write_ready, &batch).await {
                Ok(()) => continue,
                // The whole call was refused, which does not mean that each of them would be.
                Err(e) => tracing::debug!(error = %e, "segments refused below the impaired wire"),
            }
        }
        for datagram in run {
            if let Err(e) = send_on(shared, write_ready, &datagram.as_outgoing()).await {
                // What a network does with a datagram that it cannot deliver.
                tracing::debug!(error = %e, destination = %datagram.destination, "datagram dropped below the impaired wire");
            }
        }
    }
}

/// How many of the first datagrams can go out in one call: all of one size but the last, which may be smaller.
fn run_length(due: &[Datagram], segments_max: usize) -> usize {
    let Some(first) = due.first() else { return 0 };
    let size = first.contents.len();
    let (mut count, mut bytes) = (1, size);
    for next in &due[1..] {
        let (last, more) = (&due[count - 1], next.contents.len());
        let fits = count < segments_max && bytes + more <= DATAGRAM_BYTES_MAX;
        // An empty datagram would be no segment at all.
        if !fits || !next.goes_as(first) || last.contents.len() < size || more > size || more == 0 {
            break;
        }
        count += 1;
        bytes += more;
    }
    count
}

/// Sends one batch, however long the wire below takes to have room for it.
async fn send_on(
    shared: &Shared,
    write_ready: &mut Pin<Box<dyn WriteReady>>,
    batch: &Outgoing<'_>,
) -> io::Result<()> {
    loop {
        match shared.inner.try_send(batch) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                std::future::poll_fn(|cx| write_ready.as_mut().poll_writable(cx)).await?;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
