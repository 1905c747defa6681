//! The address book: where members were reached lately, kept for the next start.

use std::sync::Arc;
use std::time::Duration;

use hyperfabric_mesh::driver::{Handle, Stopped};
use hyperfabric_mesh::workers::Lane;
use hyperfabric_protocol::{Address, Fabric, PeerId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::host::Disk;

/// Connections come and go in bursts: the disk sees one write for all changes of this time.
const SAVE_INTERVAL: Duration = Duration::from_secs(30);
/// Members that are remembered. A start needs a few that still answer.
const ENTRIES_MAX: usize = 64;

type Entry = (PeerId, Vec<Address>);

/// The task that keeps the address book.
#[derive(Debug)]
pub(crate) struct Keeper {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts with what the book has.
    pub(crate) fn start(peer: Handle, disk: Disk, book: Vec<Entry>, changed: Arc<Notify>) -> Self {
        let (stop, stopping) = watch::channel(false);
        let runtime = peer.runtime().clone();
        let task = runtime.spawn(keep(peer, disk, book, changed, stopping));
        Self { stop, task }
    }

    /// Saves a last time; to be called while the peer's loop still runs.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the address book was not saved");
        }
    }
}

async fn keep(
    peer: Handle,
    disk: Disk,
    mut book: Vec<Entry>,
    changed: Arc<Notify>,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        // A keeper that was dropped ends like one that was stopped.
        let mut stop = tokio::select! {
            () = changed.notified() => false,
            _ = stopping.wait_for(|stop| *stop) => true,
        };
        if !stop {
            let waited = tokio::time::timeout(SAVE_INTERVAL, stopping.wait_for(|stop| *stop)).await;
            stop = waited.is_ok();
        }
        let Ok(connected) = peer.act(|fabric, _| connected(fabric)).await else {
            return;
        };
        book = merge(book, connected);
        save(&disk, book.clone()).await;
        if stop {
            return;
        }
    }
}

/// Lists the connected members, other bootstrap peers first, with the addresses that they announce.
fn connected(fabric: &Fabric) -> Vec<Entry> {
    let records = fabric
        .connected()
        .filter_map(|(peer, _)| fabric.directory().record(&peer));
    let (first, second): (Vec<_>, Vec<_>) = records
        .filter(|record| !record.body.addresses.0.is_empty())
        .partition(|record| record.body.bootstrap == Some(true));
    let entry =
        |record: &hyperfabric_protocol::flood::Record| (record.member.peer, record.body.addresses.0.clone());
    first
        .into_iter()
        .chain(second)
        .map(entry)
        .take(ENTRIES_MAX * 2)
        .collect()
}

/// Puts those who are connected before those who were. Who has a place keeps it, so that a large mesh does not turn the book over at every
/// save; and an empty mesh erases nobody.
fn merge(book: Vec<Entry>, mut connected: Vec<Entry>) -> Vec<Entry> {
    let mut gone = Vec::new();
    let mut merged = Vec::new();
    for old in book {
        match connected.iter().position(|(peer, _)| *peer == old.0) {
            Some(index) => merged.push(connected.remove(index)),
            None => gone.push(old),
        }
    }
    merged.append(&mut connected);
    merged.append(&mut gone);
    merged.truncate(ENTRIES_MAX);
    merged
}

async fn save(disk: &Disk, book: Vec<Entry>) {
    let (folder, store) = (disk.folder.clone(), disk.store.clone());
    let saved = disk
        .pool
        .run_on(Lane::Sync, move || folder.remember_peers(&store, &book))
        .await;
    match saved {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(
            error = &error as &dyn std::error::Error,
            "cannot save the address book"
        ),
        Err(error) => tracing::error!(%error, "cannot save the address book"),
    }
}

/// Makes the machine dial those who are known.
pub(crate) async fn learn(peer: &Handle, contacts: Vec<(PeerId, Vec<Address>, bool)>) -> Result<(), Stopped> {
    let local = peer.peer_id();
    peer.act(move |fabric, now| {
        for (peer, addresses, bootstrap) in contacts.into_iter().filter(|(peer, ..)| *peer != local) {
            fabric.learn(now, peer, addresses, bootstrap);
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(peer: u8, port: u16) -> Entry {
        let address = Address::new(format!("/ip4/192.0.2.1/udp/{port}/quic-v1")).unwrap();
        (PeerId([peer; 32]), vec![address])
    }

    #[test]
    fn connected_members_come_first_and_keep_their_places() {
        let book = merge(
            vec![entry(1, 1), entry(2, 2), entry(3, 3)],
            vec![entry(4, 4), entry(3, 33), entry(2, 2)],
        );
        assert_eq!(book, [entry(2, 2), entry(3, 33), entry(4, 4), entry(1, 1)]);
    }

    #[test]
    fn an_empty_mesh_erases_nobody_and_a_large_one_fills_the_book_and_no_more() {
        assert_eq!(merge(vec![entry(1, 1)], Vec::new()), [entry(1, 1)]);
        let many: Vec<Entry> = (0..200).map(|peer| entry(peer, 1)).collect();
        let book = merge(vec![entry(201, 1)], many);
        assert_eq!(book.len(), ENTRIES_MAX);
        assert!(!book.contains(&entry(201, 1)));
    }
}
